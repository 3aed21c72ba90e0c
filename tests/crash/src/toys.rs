//! Bugs that were put there, so that each run shows that it finds such. Nobody should use these.
//!
//! | Toy | what is wrong | who finds it |
//! |---|---|---|
//! | flag lock | a set flag says that somebody has the lock, not who: nobody can take it from a dead one | all |
//! | ticket queue | a slot is claimed before it is filled, and whoever pops waits for it | all |
//! | torn pair | two words that belong together are stored one after the other | all |
//! | hasty recovery | a repair that first says "repaired" and then repairs | double crashes |

use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_segment::plain::Plain;
use crossproc_segment::{ObjectKind, ObjectSpec, PlacedSlice, Segment, Span};

use crate::scene::{Found, Operation, expect, lost, on, wedged};
use crate::step::marked;

const ALL: &[&str] = &["kills", "images", "double", "trap"];

/// Sixteen words.
struct Words {
    /// For as long as this is held, the process takes part.
    _segment: Segment,
    words: PlacedSlice<AtomicU64>,
}

fn find(segment: &Segment) -> Words {
    let kind = ObjectKind::new("Toy");
    let spec = ObjectSpec { kind, layout: u64::LAYOUT, count: 16, bytes: 128, align: 8, windows: 0 };
    let object = segment.open_or_create_object("toy", &spec, |_, _| ()).expect("a toy");
    let span = Span { offset: object.offset, count: 16 };
    let words = segment.mapping().place_slice(span).expect("its words");
    Words { _segment: segment.clone(), words }
}

impl Words {
    fn get(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::Acquire)
    }

    fn set(&self, at: usize, value: u64) {
        self.words[at].store(value, Ordering::Release);
    }

    fn swap_if(&self, at: usize, from: u64, to: u64) -> bool {
        self.words[at].compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// What never comes is waited for no longer than this.
const PATIENCE: Duration = Duration::from_millis(50);

/// Waits until `attempt` succeeds, if it does in time.
fn until(mut attempt: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !attempt() {
        if started.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The planted bugs.
#[must_use]
pub fn all() -> Vec<Operation> {
    vec![flag_lock(), ticket_queue(), torn_pair(), hasty_recovery()]
}

/// Word 0: set while somebody has the lock.
fn flag_lock() -> Operation {
    fn lock(toy: &Words) -> bool {
        // Without a look at the clock first, which takes more instructions at one time than at another.
        toy.swap_if(0, 0, 1) || until(|| toy.swap_if(0, 0, 1))
    }
    fn lock_and_unlock(toy: &Words) {
        if lock(toy) {
            toy.set(0, 0);
        }
    }
    on(find)
        .victim(|toy| marked(|| lock_and_unlock(toy)))
        .recover(|toy| {
            marked(|| toy.swap_if(0, 0, 1));
        })
        .check(|toy, _| if lock(toy) { Ok(()) } else { wedged("the lock can not be had") })
        .named("toy: flag lock", "")
        .planted(ALL)
}

/// Word 0: tickets given out; word 1: tickets served; from word 2 on: slots, 0 while they are empty.
fn ticket_queue() -> Operation {
    fn slot(ticket: u64) -> usize {
        2 + (ticket % 8) as usize
    }
    fn push(toy: &Words, value: u64) {
        let ticket = toy.words[0].fetch_add(1, Ordering::AcqRel);
        toy.set(slot(ticket), value);
    }
    fn pop(toy: &Words) -> Result<Option<u64>, crate::scene::Bad> {
        let ticket = toy.get(1);
        if ticket == toy.get(0) {
            return Ok(None);
        }
        if !until(|| toy.get(slot(ticket)) != 0) {
            return wedged("a slot is claimed, and never filled");
        }
        toy.set(1, ticket + 1);
        Ok(Some(toy.words[slot(ticket)].swap(0, Ordering::AcqRel)))
    }
    on(find)
        .victim(|toy| marked(|| push(toy, 7)))
        .recover(|toy| marked(|| push(toy, 8)))
        .check(|toy, after| {
            let mut found = Vec::new();
            while let Some(value) = pop(toy)? {
                found.push(value);
            }
            if after.returned && !found.contains(&7) {
                return lost("what was pushed is not there");
            }
            expect(found.iter().all(|value| [7, 8].contains(value)), || format!("{found:?}"))
        })
        .named("toy: ticket queue", "")
        .planted(ALL)
}

/// Words 0 and 1 are always to be the same.
fn torn_pair() -> Operation {
    on(find)
        .victim(|toy| {
            marked(|| {
                toy.set(0, 1);
                toy.set(1, 1);
            });
        })
        .recover(|toy| {
            marked(|| toy.get(0));
        })
        .check(|toy, _| same(toy, 0))
        .named("toy: torn pair", "")
        .planted(ALL)
}

fn same(toy: &Words, at: usize) -> Found {
    let (one, other) = (toy.get(at), toy.get(at + 1));
    expect(one == other, || format!("{one} and {other} belong together"))
}

/// Words 1 and 2 are to be the same whenever word 0 does not say that somebody is at work.
fn hasty_recovery() -> Operation {
    fn repair(toy: &Words) {
        if toy.get(0) != 0 {
            toy.set(0, 0); // this should be the last step
            toy.set(2, toy.get(1));
        }
    }
    on(find)
        .victim(|toy| {
            marked(|| {
                toy.set(0, 1);
                toy.set(1, 1);
                toy.set(2, 1);
                toy.set(0, 0);
            });
        })
        .recover(|toy| marked(|| repair(toy)))
        .check(|toy, _| {
            repair(toy);
            same(toy, 1)
        })
        .named("toy: hasty recovery", "")
        .planted(&["double"])
}
