//! What a sandbox forbids is made up for.

use crossproc_primitives::Lock;
use crossproc_tests::{Board, HANG, await_asleep, child, join, kill_and_reap, not_run, tied_to_parent};

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
