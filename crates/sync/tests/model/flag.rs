//! Events: no set is slept through, and who goes on has seen what the setter did.

use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_sync::{EventFailure, EventWords, Wait};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// An event, and what is done before it is set; loom reports who looks at that without having seen the setting.
struct Guarded {
    event: EventWords,
    data: UnsafeCell<u64>,
}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { event: EventWords::default(), data: UnsafeCell::new(0) })
    }

    fn set(&self, process: &Process) {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.data.with_mut(|data| unsafe { *data += 1 });
        self.event.set(process);
    }

    fn look(&self) {
        // SAFETY: as above.
        assert_eq!(self.data.with(|data| unsafe { *data }), 1);
    }
}

#[test]
fn a_waiter_is_let_go_even_if_the_event_is_cleared_at_once() {
    let seen = explore("event_pulse", 500, 3, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let me = Process::new(&kernel, 1);
        let setter = {
            let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
            thread::spawn(move || {
                let process = Process::new(&kernel, 2);
                guarded.set(&process);
                assert!(guarded.event.clear());
                // For those who come only now.
                guarded.event.set(&process);
            })
        };
        outcome.push(u64::from(guarded.event.is_set()));
        guarded.event.wait(&me, Wait::FOREVER).expect("it is set");
        guarded.look();
        setter.join().expect("ends well");
    });
    assert!(seen.contains(&vec![0]), "{seen:?}");
}

#[test]
fn who_clears_or_looks_has_seen_what_the_setter_did() {
    let seen = explore("event_clear", 15, 3, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let setter = {
            let (kernel, guarded) = (Arc::clone(&kernel), Arc::clone(&guarded));
            thread::spawn(move || guarded.set(&Process::new(&kernel, 1)))
        };
        let looker = {
            let guarded = Arc::clone(&guarded);
            thread::spawn(move || {
                let is_set = guarded.event.is_set();
                if is_set {
                    guarded.look();
                }
                is_set
            })
        };
        let cleared = guarded.event.clear();
        if cleared {
            guarded.look();
        }
        let looked = looker.join().expect("ends well");
        setter.join().expect("ends well");
        assert_ne!(guarded.event.is_set(), cleared);
        outcome.extend([u64::from(cleared), u64::from(looked)]);
    });
    for wanted in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        assert!(seen.contains(&wanted[..]), "outcome {wanted:?} was never explored: {seen:?}");
    }
}

/// The setter is killed before each of its shared accesses in turn.
#[test]
fn a_setter_may_die_anywhere() {
    let mut seen = BTreeSet::new();
    for accesses in 0..6 {
        seen.extend(explore(&format!("event_setter_dies_{accesses}"), 10, 3, move |outcome| {
            let (kernel, guarded) = (Kernel::new(), Guarded::new());
            let [survivor, victim] = [1, 2].map(|tid| Process::new(&kernel, tid));
            let victim = {
                let guarded = Arc::clone(&guarded);
                thread::spawn(move || {
                    if victim.run_until_killed(accesses, &[], || guarded.set(&victim)).is_some() {
                        victim.die(&[]);
                    }
                })
            };
            let waited = guarded.event.wait(&survivor, Wait::FOREVER);
            victim.join().expect("the model thread ends well");
            assert_eq!(waited.is_ok(), guarded.event.is_set(), "it was set, or it never will be");
            if waited.is_ok() {
                guarded.look();
            } else {
                assert_eq!(waited, Err(EventFailure::PeerDied));
            }
            outcome.push(u64::from(waited.is_ok()));
        }));
    }
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}

/// A waiter is killed before each of its shared accesses in turn, while another one waits.
#[test]
fn a_waiter_may_die_anywhere() {
    for accesses in 0..9 {
        explore(&format!("event_waiter_dies_{accesses}"), 10, 1, move |_| {
            let (kernel, guarded) = (Kernel::new(), Guarded::new());
            let [survivor, victim, setter] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
            let victim = {
                let guarded = Arc::clone(&guarded);
                thread::spawn(move || {
                    victim.run_until_killed(accesses, &[], || guarded.event.wait(&victim, Wait::FOREVER));
                })
            };
            let setter = {
                let guarded = Arc::clone(&guarded);
                thread::spawn(move || guarded.set(&setter))
            };
            guarded.event.wait(&survivor, Wait::FOREVER).expect("it is set");
            guarded.look();
            setter.join().expect("ends well");
            victim.join().expect("the model thread ends well");
        });
    }
}
