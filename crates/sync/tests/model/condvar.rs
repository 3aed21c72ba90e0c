//! Condition variables: no wake-up is lost, whoever dies or gives up.

use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_sync::{CondvarWords, LockWords, Woken};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

struct Shared {
    lock: LockWords,
    changed: CondvarWords,
    ready: UnsafeCell<bool>,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lock: LockWords::default(),
            changed: CondvarWords::default(),
            ready: UnsafeCell::new(false),
        })
    }

    fn is_ready(&self) -> bool {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.ready.with(|ready| unsafe { *ready })
    }

    /// With the lock held before and after: sleeps until it is ready, or nobody is left.
    fn wait_until_ready(&self, process: &Process) -> Woken {
        self.lock.lock(process, None).expect("no deadline");
        let mut woken = Woken::Notified;
        while !self.is_ready() && woken != Woken::PeerDied {
            let waiter = self.changed.announce(process);
            self.lock.unlock(process);
            woken = self.changed.sleep(process, waiter, None);
            self.lock.lock(process, None).expect("no deadline");
        }
        let end = if self.is_ready() { Woken::Notified } else { woken };
        self.lock.unlock(process);
        end
    }

    fn make_ready(&self, process: &Process, count: u32) {
        self.lock.lock(process, None).expect("no deadline");
        // SAFETY: as above.
        self.ready.with_mut(|ready| unsafe { *ready = true });
        self.changed.notify(process, count);
        self.lock.unlock(process);
    }
}

#[test]
fn a_wake_up_is_not_lost() {
    explore("condvar_one", 100, 3, |_| {
        let (kernel, shared) = (Kernel::new(), Shared::new());
        let me = Process::new(&kernel, 1);
        let notifier = {
            let (kernel, shared) = (Arc::clone(&kernel), Arc::clone(&shared));
            thread::spawn(move || shared.make_ready(&Process::new(&kernel, 2), 1))
        };
        assert_eq!(shared.wait_until_ready(&me), Woken::Notified);
        notifier.join().expect("ends well");
    });
}

#[test]
fn all_are_woken() {
    explore("condvar_all", 100, 1, |_| {
        let (kernel, shared) = (Kernel::new(), Shared::new());
        let [me, other, notifier] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
        let waiter = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || assert_eq!(shared.wait_until_ready(&other), Woken::Notified))
        };
        let notifier = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.make_ready(&notifier, u32::MAX))
        };
        assert_eq!(shared.wait_until_ready(&me), Woken::Notified);
        waiter.join().expect("ends well");
        notifier.join().expect("ends well");
    });
}

/// One is notified, which may be the one that dies before each of its shared accesses in turn.
#[test]
fn a_waiter_that_dies_takes_no_wake_up_with_it() {
    for accesses in 0..24 {
        explore(&format!("condvar_waiter_dies_{accesses}"), 10, 1, move |_| {
            let (kernel, shared) = (Kernel::new(), Shared::new());
            let [me, victim, notifier] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
            let victim = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let words = [shared.lock.futex_word()];
                    let ended =
                        victim.run_until_killed(accesses, &words, || shared.wait_until_ready(&victim));
                    if ended.is_some() {
                        victim.die(&[]);
                    }
                })
            };
            let notifier = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.make_ready(&notifier, 1))
            };
            assert_eq!(shared.wait_until_ready(&me), Woken::Notified);
            shared.make_ready(&me, 1); // for the other one, if that wake-up was ours
            victim.join().expect("the model thread ends well");
            notifier.join().expect("ends well");
        });
    }
}

#[test]
fn a_notifier_that_dies_wakes_all_the_same() {
    let mut seen = BTreeSet::new();
    for accesses in 0..12 {
        seen.extend(explore(&format!("condvar_notifier_dies_{accesses}"), 10, 3, move |outcome| {
            let (kernel, shared) = (Kernel::new(), Shared::new());
            let [me, victim] = [1, 2].map(|tid| Process::new(&kernel, tid));
            let victim = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let words = [shared.lock.futex_word()];
                    let ended = victim.run_until_killed(accesses, &words, || shared.make_ready(&victim, 1));
                    if ended.is_some() {
                        victim.die(&[]);
                    }
                })
            };
            let woken = shared.wait_until_ready(&me);
            victim.join().expect("the model thread ends well");
            assert_eq!(woken == Woken::Notified, shared.is_ready(), "it is ready, or never will be");
            outcome.push(u64::from(woken == Woken::Notified));
        }));
    }
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}

/// Another one lives, so nobody is alone; and nobody notifies, if the victim dies before it does.
#[test]
fn a_death_wakes_who_waits() {
    for accesses in 0..12 {
        explore(&format!("condvar_any_death_{accesses}"), 10, 2, move |_| {
            let (kernel, shared) = (Kernel::new(), Shared::new());
            let [me, victim, _other] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
            shared.lock.lock(&me, None).expect("no deadline");
            let waiter = shared.changed.announce(&me);
            let victim = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let words = [shared.lock.futex_word()];
                    let ended = victim.run_until_killed(accesses, &words, || shared.make_ready(&victim, 1));
                    if ended.is_some() {
                        victim.die(&[]);
                    }
                })
            };
            shared.lock.unlock(&me);
            assert_eq!(shared.changed.sleep(&me, waiter, None), Woken::Notified);
            victim.join().expect("the model thread ends well");
        });
    }
}

/// One of two is notified. The one that can not have the lock in time gives up, and may be the one that was meant.
#[test]
fn who_gives_up_passes_its_wake_up_on() {
    explore("condvar_give_up", 100, 1, |_| {
        let (kernel, shared) = (Kernel::new(), Shared::new());
        let [me, hurried, notifier] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
        let hurried = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.lock.lock(&hurried, None).expect("no deadline");
                let ready = shared.is_ready();
                let waiter = shared.changed.announce(&hurried);
                shared.lock.unlock(&hurried);
                if !ready {
                    assert_eq!(shared.changed.sleep(&hurried, waiter, None), Woken::Notified);
                    shared.changed.give_up(&hurried, waiter);
                }
            })
        };
        let notifier = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.make_ready(&notifier, 1))
        };
        assert_eq!(shared.wait_until_ready(&me), Woken::Notified);
        shared.make_ready(&me, 1); // for the other one, if that wake-up was ours
        hurried.join().expect("ends well");
        notifier.join().expect("ends well");
    });
}

#[test]
fn the_lock_that_is_brought_first_is_the_one() {
    let seen = explore("condvar_lock", 4, 3, |outcome| {
        let shared = Shared::new();
        let [a, b] = [1, 2].map(|id| core::num::NonZeroU64::new(id).expect("not zero"));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.changed.is_used_with(a))
        };
        let mine = shared.changed.is_used_with(b);
        let its = other.join().expect("ends well");
        assert_ne!(mine, its);
        assert_eq!(shared.changed.is_used_with(b), mine);
        outcome.push(u64::from(mine));
    });
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}
