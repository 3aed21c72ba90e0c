//! What a sandbox forbids is made up for.

use crossproc_primitives::{BytesQueue, Lock};
use crossproc_segment::SegmentOptions;
use crossproc_tests::{Board, HANG, await_asleep, child, join, kill_and_reap, not_run, tied_to_parent};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::kernel;
use crate::lock::said;

fn hold((board, lock): (Board, Lock)) {
    tied_to_parent();
    // The inner one of two locks: of the outer one the kernel itself would tell.
    let outer = Lock::new().unwrap();
    let _guards = (outer.lock().unwrap(), lock.lock().unwrap());
    board.set(0, 1);
    loop {
        std::thread::park();
    }
}

/// Waits without `futex_waitv`: `None` if it can not be forbidden.
fn wait_without((board, lock, errno): (Board, Lock, i32)) -> Option<String> {
    tied_to_parent();
    if kernel::deny(libc::SYS_futex_waitv, errno).is_err() {
        board.set(1, 2);
        return None;
    }
    assert_eq!(kernel::probe_futex_waitv(), Some(errno), "the filter works");
    board.set(1, 1);
    Some(said(&lock.lock_timeout(HANG)))
}

fn a_death_is_noticed_when_futex_waitv_answers(errno: i32) {
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let holder = child(hold, (board.clone(), lock.clone()));
    board.await_at_least(0, 1);
    let waiter = child(wait_without, (board.clone(), lock.clone(), errno));
    if board.await_at_least(1, 1) == 1 {
        await_asleep(waiter.pid());
    }
    kill_and_reap(&holder);
    match join(waiter) {
        Some(told) => assert_eq!(told, "OwnerDied"),
        None => not_run("system call filters (seccomp) are not allowed"),
    }
}

/// A segment is longer than files may be: an error, and not SIGXFSZ.
#[test]
fn a_limit_of_the_size_of_files_is_an_error() {
    let kinds = child(
        |()| {
            let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
            setrlimit(Resource::Fsize, limit).unwrap();
            let too_large = SegmentOptions::new().anonymous(1 << 21).unwrap_err();
            let queue = BytesQueue::new(4).map(drop).map_err(|error| format!("{:?}", error.kind()));
            assert!(SegmentOptions::new().anonymous(4096).is_ok());
            (format!("{:?}: {too_large}", too_large.kind()), queue)
        },
        (),
    );
    let (segment, queue) = join(kinds);
    assert!(segment.starts_with("TooLarge: ") && segment.contains("ulimit -f"), "{segment}");
    assert_eq!(queue, Err("TooLarge".to_owned()));
}

#[test]
fn a_death_is_noticed_on_a_kernel_without_futex_waitv() {
    a_death_is_noticed_when_futex_waitv_answers(libc::ENOSYS);
}

#[test]
fn a_death_is_noticed_in_a_sandbox_that_denies_futex_waitv() {
    a_death_is_noticed_when_futex_waitv_answers(libc::EPERM);
}

#[test]
fn a_release_wakes_a_waiter_without_futex_waitv() {
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let guard = lock.lock().unwrap();
    let waiter = child(wait_without, (board.clone(), lock.clone(), libc::ENOSYS));
    if board.await_at_least(1, 1) == 1 {
        await_asleep(waiter.pid());
    }
    drop(guard);
    match join(waiter) {
        Some(told) => assert_eq!(told, "Ok"),
        None => not_run("system call filters (seccomp) are not allowed"),
    }
}
