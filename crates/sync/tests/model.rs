//! Every interleaving and every allowed reordering of processes at a lock, with deaths, by loom.
//!
//! `protocol.rs` beside this file checks the protocol as such, step by step with deaths everywhere; this one
//! checks the code and its memory orderings. Run by `cargo xtask model` in two configurations.
#![cfg(crossproc_model)]
#![allow(missing_docs)]

#[path = "model/barrier.rs"]
mod barrier;
#[path = "model/condvar.rs"]
mod condvar;
#[path = "model/flag.rs"]
mod flag;
#[path = "model/once.rs"]
mod once;
#[path = "model/rwlock.rs"]
mod rwlock;
#[path = "model/semaphore.rs"]
mod semaphore;

use std::cell::Cell;
use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_sync::{LockFailure, LockWords};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// A lock and the data it guards; loom reports every unordered pair of accesses to the data.
struct Guarded {
    lock: LockWords,
    data: UnsafeCell<u64>,
}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: LockWords::default(), data: UnsafeCell::new(0) })
    }

    fn add(&self) {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.data.with_mut(|data| unsafe { *data += 1 });
    }

    fn sum(&self) -> u64 {
        // SAFETY: as above.
        self.data.with(|data| unsafe { *data })
    }

    fn add_one(&self, process: &Process) -> u64 {
        let marks = self.lock.lock(process, None).expect("no deadline");
        self.add();
        if !marks.is_clean() {
            self.lock.mark_consistent();
        }
        self.lock.unlock(process);
        u64::from(marks.owner_died())
    }
}

#[test]
fn holders_exclude_each_other_and_nobody_sleeps_for_ever() {
    // Two threads, each twice: the second locking of one meets every state that the first of the other leaves.
    explore("lock_exclusion", 1000, 3, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let twice = |process: &Process, guarded: &Guarded| {
            assert_eq!(guarded.add_one(process) + guarded.add_one(process), 0, "nobody died");
        };
        let other = {
            let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
            thread::spawn(move || twice(&Process::new(&kernel, 1), &guarded))
        };
        twice(&Process::new(&kernel, 2), &guarded);
        other.join().expect("ends well");
        assert_eq!(guarded.sum(), 4);
        assert!(!guarded.lock.is_locked());
    });
}

#[test]
fn three_at_a_lock_strand_nobody() {
    explore("lock_three", 25, 1, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let others: Vec<_> = (1..=2)
            .map(|tid| {
                let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
                thread::spawn(move || guarded.add_one(&Process::new(&kernel, tid)))
            })
            .collect();
        guarded.add_one(&Process::new(&kernel, 3));
        for other in others {
            assert_eq!(other.join().expect("ends well"), 0, "nobody died");
        }
        assert_eq!(guarded.sum(), 3);
    });
}

#[test]
fn a_failed_try_changes_nothing() {
    let seen = explore("lock_try", 20, 3, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let other = {
            let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
            thread::spawn(move || guarded.add_one(&Process::new(&kernel, 1)))
        };
        let me = Process::new(&kernel, 2);
        let tried = guarded.lock.try_lock(&me);
        match tried {
            Ok(marks) => {
                assert!(marks.is_clean());
                // First the data: looking at the word again would order us after its last holder by itself.
                guarded.add();
                assert_eq!(guarded.lock.try_lock(&me), Err(LockFailure::WouldDeadlock));
                guarded.lock.unlock(&me);
            }
            Err(failure) => assert_eq!(failure, LockFailure::WouldBlock),
        }
        other.join().expect("ends well");
        outcome.push(u64::from(tried.is_ok()));
    });
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}

/// A process is killed before each of its shared accesses in turn, with another waiting or arriving: the lock is the
/// outermost that the process holds (announced throughout), or an inner one.
#[test]
fn a_death_anywhere_is_survived_and_reported_exactly() {
    for inner in [false, true] {
        let mut reported = BTreeSet::new();
        let (name, steps) = if inner { ("lock_inner_death", 3..11) } else { ("lock_death", 0..8) };
        for accesses in steps {
            reported.extend(explore(&format!("{name}_{accesses}"), 10, 3, move |outcome| {
                let (kernel, guarded) = (Kernel::new(), Guarded::new());
                let victim = {
                    let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
                    thread::spawn(move || {
                        let process = Process::new(&kernel, 1);
                        let outer = LockWords::default();
                        let held = Cell::new(0);
                        process.run_until_killed(
                            accesses,
                            &[guarded.lock.futex_word(), outer.futex_word()],
                            || {
                                if inner {
                                    outer.lock(&process, None).expect("free");
                                }
                                guarded.lock.lock(&process, None).expect("no deadline");
                                held.set(1);
                                guarded.add();
                                held.set(2);
                                guarded.lock.unlock(&process);
                                held.set(3);
                            },
                        );
                        held.get()
                    })
                };
                let survivor = Process::new(&kernel, 2);
                let mut reports = guarded.add_one(&survivor);
                let held = victim.join().expect("the model thread ends well");
                reports += guarded.add_one(&survivor);
                assert!(reports <= 1, "one death was reported twice");
                outcome.extend([held, reports]);
            }));
        }
        for (outcome, what) in [
            ([0, 0], "a death before holding is not reported"),
            ([2, 1], "a death while holding is reported"),
            ([2, 0], "a death after giving it back is not reported"),
            ([3, 0], "a holder that released is not reported"),
        ] {
            assert!(reported.contains(&outcome[..]), "{what}: never seen in {reported:?}");
        }
        assert!(!reported.contains(&[3, 1][..]), "reported although it had released: {reported:?}");
    }
}

/// One has died with the lock; of two who come, one inherits it while the other looks.
#[test]
fn a_lock_is_inherited_once() {
    for inner in [false, true] {
        let name = if inner { "lock_inheritance_inner" } else { "lock_inheritance" };
        explore(name, 60, 2, move |_| {
            let (kernel, guarded) = (Kernel::new(), Guarded::new());
            let (victim, outer) = (Process::new(&kernel, 1), LockWords::default());
            if inner {
                outer.lock(&victim, None).expect("free");
            }
            guarded.lock.lock(&victim, None).expect("free");
            victim.die(&[guarded.lock.futex_word(), outer.futex_word()]);
            let heir = {
                let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
                thread::spawn(move || guarded.add_one(&Process::new(&kernel, 2)))
            };
            let reports = guarded.add_one(&Process::new(&kernel, 3)) + heir.join().expect("ends well");
            assert_eq!(reports, 1, "exactly one is told");
            assert_eq!(guarded.sum(), 2);
        });
    }
}
