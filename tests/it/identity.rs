//! A process id is no identity: somebody else gets it.
//!
//! The kernel gives a process the id that is asked for (`clone3` with `set_tid`) to who has the right: root, or anybody in a PID
//! namespace of his own. Both ways are tried.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crossproc_primitives::{Lock, Objects};
use crossproc_tests::{
    Board, HANG, await_asleep, child, isolated, join, kill_and_reap, not_run, tied_to_parent,
};

use crate::kernel::{self, End};
use crate::lock::said;

const HELD: usize = 0;
const INNOCENT: usize = 1;
const TOLD: usize = 2;

fn hold((board, lock): (Board, Lock)) {
    tied_to_parent();
    // The inner one of two locks: of the outer one the kernel itself would tell.
    let outer = Lock::new().unwrap();
    let _guards = (outer.lock().unwrap(), lock.lock().unwrap());
    board.set(HELD, 1);
    loop {
        thread::park();
    }
}

/// Kills a process that holds the lock and gives its id to a copy of this process, which runs `innocent`; then runs `then`.
///
/// An error if the kernel does not give ids away; a panic for all that must not be.
fn with_reused_id(innocent: fn(&Board, &Lock), then: fn(&Board, &Lock)) -> io::Result<()> {
    for _ in 0..100 {
        let (board, lock) = (Board::new(8), Lock::new().unwrap());
        let holder = child(hold, (board.clone(), lock.clone()));
        board.await_at_least(HELD, 1);
        kill_and_reap(&holder);
        let id = holder.pid().cast_signed();
        let forked = kernel::fork_as(id, || {
            tied_to_parent();
            assert_eq!(std::process::id(), holder.pid());
            board.set(INNOCENT, 1);
            innocent(&board, &lock);
        });
        match forked {
            // Another process of the machine was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
            forked => forked?,
        }
        let ended = catch_unwind(AssertUnwindSafe(|| {
            board.await_at_least(INNOCENT, 1);
            then(&board, &lock);
        }));
        kernel::kill(id);
        kernel::wait(id);
        return ended.map_err(|panic| resume_unwind(panic));
    }
    Err(io::Error::other("other processes are always quicker to take a free process id"))
}

/// Runs `case` as the user that we are, and as root of namespaces of our own. One of the two has to be possible.
///
/// To be called in a process that has attached to nothing yet.
fn in_both_places(what: &str, case: fn() -> io::Result<()>) {
    let there = in_namespaces(case);
    let here = case();
    println!("{what}: here {here:?}, in namespaces of our own {there:?}");
    if let (Err(here), Err(there)) = (here, there) {
        not_run(&format!("{what}: {here}; in namespaces of our own: {there}"));
    }
}

/// Runs `case` as the first process of a PID namespace.
fn in_namespaces(case: fn() -> io::Result<()>) -> io::Result<()> {
    // An exit code that means `errno`: 0 and 101 have another meaning.
    const ERRNO: i32 = 110;
    let tell = |result: io::Result<()>| {
        if let Err(error) = result {
            std::process::exit(ERRNO + error.raw_os_error().unwrap_or(0));
        }
    };
    // Only a process with one thread can go into a user namespace, and only its children are in the PID namespace.
    let outer = kernel::fork(|| {
        tell(kernel::enter_namespaces());
        let first = kernel::fork(|| {
            tell(kernel::mount_own_proc());
            tell(case());
        });
        match kernel::wait(first) {
            End::Exited(code) => std::process::exit(code),
            end => panic!("{end:?}"),
        }
    });
    match kernel::wait(outer) {
        End::Exited(0) => Ok(()),
        End::Exited(ERRNO) => Err(io::Error::other("no process id was to be had")),
        End::Exited(code) if code > ERRNO => Err(io::Error::from_raw_os_error(code - ERRNO)),
        end => panic!("the case failed in a namespace of its own: {end:?}"),
    }
}

#[test]
fn an_innocent_process_with_the_id_of_a_dead_holder_is_not_taken_for_it() {
    fn case() -> io::Result<()> {
        with_reused_id(
            |_, _| {
                loop {
                    thread::park();
                }
            },
            |_, lock| {
                assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied");
                drop(lock.with_repair(|| ()).unwrap());
                assert_eq!(join(child(|lock: Lock| said(&lock.try_lock()), lock.clone())), "Ok");
            },
        )
    }
    isolated(|()| in_both_places("reuse of a process id by a stranger", case));
}

#[test]
fn a_user_of_the_lock_with_the_id_of_its_dead_holder_is_not_taken_for_it() {
    fn case() -> io::Result<()> {
        with_reused_id(
            |board, lock| {
                // The lock word names a thread with exactly our number.
                let own = lock.segment().attach_again().unwrap().lock("it").unwrap();
                let told = said(&own.lock_timeout(HANG));
                board.set(TOLD, if told == "OwnerDied" { 1 } else { 2 });
                let guard = own.with_repair(|| ()).unwrap();
                board.set(HELD, 2);
                board.await_at_least(HELD, 3);
                drop(guard);
                board.set(HELD, 4);
                loop {
                    thread::park();
                }
            },
            |board, lock| {
                assert_eq!(board.await_at_least(TOLD, 1), 1, "it was told of the death");
                board.await_at_least(HELD, 2);
                assert_eq!(said(&lock.try_lock()), "WouldBlock", "now it is the holder, and alive");
                let waiter = child(|lock: Lock| said(&lock.lock_timeout(HANG)), lock.clone());
                await_asleep(waiter.pid());
                board.set(HELD, 3);
                assert_eq!(join(waiter), "Ok");
                board.await_at_least(HELD, 4);
            },
        )
    }
    isolated(|()| in_both_places("reuse of a process id by a user of the lock", case));
}
