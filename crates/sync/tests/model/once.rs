//! Something that is done once.

use std::cell::Cell;
use std::collections::BTreeSet;

use crossproc_atomic::Owner;
use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_sync::{LockFailure, OnceFailure, OnceWords, Previous, Wait};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use crate::rwlock::ThreadOf;

/// What is to be done once, and how often it was; loom reports every unordered pair of accesses to that.
struct Task {
    words: OnceWords,
    done: UnsafeCell<u64>,
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self { words: OnceWords::default(), done: UnsafeCell::new(0) })
    }

    fn add(&self) {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.done.with_mut(|done| unsafe { *done += 1 });
    }

    fn done(&self) -> u64 {
        // SAFETY: as above, if anybody else writes it.
        self.done.with(|done| unsafe { *done })
    }

    /// Does it unless it is done; how it went before.
    fn call(&self, process: &Process) -> Option<Previous> {
        let previous = self.words.begin(process, Wait::FOREVER).expect("no deadline");
        if previous.is_some() {
            assert_eq!(self.words.begin(process, Wait::FOREVER), Err(LockFailure::WouldDeadlock));
            assert_eq!(self.words.wait(process, Wait::FOREVER), Err(OnceFailure::WouldDeadlock));
            self.add();
            self.words.complete(process);
        }
        previous
    }
}

fn beside<R: 'static>(
    kernel: &Arc<Kernel>,
    task: &Arc<Task>,
    tid: u32,
    f: impl FnOnce(&Process, &Task) -> R + 'static,
) -> thread::JoinHandle<R> {
    let (process, task) = (Process::new(kernel, tid), Arc::clone(task));
    thread::spawn(move || f(&process, &task))
}

#[test]
fn one_does_it_and_all_see_it_done() {
    explore("once", 30, 1, |_| {
        let (kernel, task) = (Kernel::new(), Task::new());
        let others = [1, 3].map(|tid| {
            beside(&kernel, &task, tid, move |process, task| {
                let previous = task.call(process);
                assert_eq!(task.done(), 1);
                u64::from(previous.is_some())
            })
        });
        let me = Process::new(&kernel, 2);
        let mut did = u64::from(task.call(&me).is_some());
        assert_eq!(task.done(), 1);
        did += others.map(|other| other.join().expect("ends well")).iter().sum::<u64>();
        assert_eq!(did, 1);
        assert_eq!(task.words.audit(|_| false), Ok(()));
    });
}

#[test]
fn who_only_waits_or_only_looks_sees_it_done_too() {
    let seen = explore("once_wait", 500, 2, |outcome| {
        let (kernel, task) = (Kernel::new(), Task::new());
        let me = Process::new(&kernel, 2);
        let waiter = beside(&kernel, &task, 1, |process, task| {
            assert_eq!(task.words.wait(process, Wait::FOREVER), Ok(()));
            assert_eq!(task.done(), 1);
        });
        let onlooker = beside(&kernel, &task, 3, |_, task| {
            let done = task.words.is_completed();
            done && task.done() == 1
        });
        assert_eq!(task.call(&me), Some(Previous::None));
        waiter.join().expect("ends well");
        outcome.push(u64::from(onlooker.join().expect("ends well")));
    });
    assert_eq!(seen.len(), 2, "seen done, and not: {seen:?}");
}

/// Whoever does it is killed before each of its shared accesses in turn.
#[test]
fn a_death_anywhere_is_survived_and_told_exactly() {
    let mut told = BTreeSet::new();
    for accesses in 0..17 {
        told.extend(explore(&format!("once_death_{accesses}"), 1, 3, move |outcome| {
            let (kernel, task) = (Kernel::new(), Task::new());
            let victim = beside(&kernel, &task, 1, move |process, task| {
                let state = Cell::new(0);
                process.run_until_killed(accesses, &[task.words.futex_word()], || {
                    if task.words.begin(process, Wait::FOREVER).expect("no deadline").is_some() {
                        state.set(1);
                        task.add();
                        task.words.complete(process);
                        state.set(2);
                    }
                });
                state.get()
            });
            let survivor = Process::new(&kernel, 2);
            let previous = task.call(&survivor);
            assert!(task.words.is_completed());
            let state = victim.join().expect("the model thread ends well");
            let died = previous == Some(Previous::Died);
            assert_eq!(task.done(), 1 + u64::from(died && state == 1));
            assert_eq!(task.words.audit(|owner| owner != Owner::new(2, 1).expect("2")), Ok(()));
            outcome.extend([state, previous.map_or(0, |previous| 1 + u64::from(previous == Previous::Died))]);
        }));
    }
    for (outcome, what) in [
        ([0, 1], "a death before it was begun is not told"),
        ([1, 2], "a death in the middle of it is told"),
        ([1, 0], "a death after it was done is no matter"),
        ([2, 0], "it was done"),
    ] {
        assert!(told.contains(&outcome[..]), "{what}: never seen in {told:?}");
    }
    for outcome in [[0, 2], [2, 1], [2, 2], [1, 1]] {
        assert!(!told.contains(&outcome[..]), "{outcome:?} must not be: {told:?}");
    }
}

#[test]
fn who_only_waits_is_told_that_nobody_is_left() {
    let mut seen = BTreeSet::new();
    for accesses in 0..14 {
        seen.extend(explore(&format!("once_alone_{accesses}"), 500, 3, move |outcome| {
            let (kernel, task) = (Kernel::new(), Task::new());
            let me = Process::new(&kernel, 2);
            let victim = beside(&kernel, &task, 1, move |process, task| {
                process.run_until_killed(accesses, &[task.words.futex_word()], || {
                    task.words.begin(process, Wait::FOREVER).expect("nobody else does it");
                    task.add();
                    task.words.complete(process);
                });
                // It is gone in any case: leaves, or was killed.
                process.die(&[task.words.futex_word()]);
            });
            let waited = task.words.wait(&me, Wait::FOREVER);
            match waited {
                Ok(()) => assert_eq!(task.done(), 1),
                Err(failure) => assert_eq!(failure, OnceFailure::PeerDied),
            }
            victim.join().expect("ends well");
            assert_eq!(waited.is_ok(), task.words.is_completed());
            outcome.push(u64::from(waited.is_ok()));
        }));
    }
    assert_eq!(seen.len(), 2, "done, and given up: {seen:?}");
}

/// The last process: one of its threads does it, another one waits.
#[test]
fn who_waits_beside_the_one_that_does_it_waits_until_it_has_ended() {
    for panics in [false, true] {
        let seen = explore(if panics { "once_panic" } else { "once_threads" }, 20, 3, move |outcome| {
            let (kernel, task) = (Kernel::new(), Task::new());
            let owner = Owner::new(2, 1).expect("generation 1 is an identity");
            let me = Process::new(&kernel, 2);
            let me = ThreadOf { process: &me, owner, alone: true };
            let previous = task.words.begin(&me, Wait::FOREVER);
            assert_eq!(previous, Ok(Some(Previous::None)));
            let waiter = beside(&kernel, &task, 3, move |process, task| {
                let live = ThreadOf { process, owner, alone: true };
                let waited = task.words.wait(&live, Wait::FOREVER);
                if waited.is_ok() {
                    assert_eq!(task.done(), 1);
                }
                waited.is_ok()
            });
            task.add();
            if panics {
                task.words.give_up(&me);
            } else {
                task.words.complete(&me);
            }
            outcome.push(u64::from(waiter.join().expect("ends well")));
            if panics {
                assert_eq!(task.words.begin(&me, Wait::Try), Ok(Some(Previous::Panicked)));
            }
        });
        assert_eq!(seen, BTreeSet::from([vec![u64::from(!panics)]]));
    }
}
