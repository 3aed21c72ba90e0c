//! Barriers: all of a generation learn the same, none waits for the dead, and who goes on has seen what all did.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::NonZeroU16;

use crossproc_atomic::AtomicU64;
use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_sync::{Barrier, BarrierFailure, BarrierWords, BrokenBy, Passed, Wait};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// A barrier, and data of each party (0 is that of the action).
struct Shared {
    words: BarrierWords,
    cells: [AtomicU64; 5],
    data: [UnsafeCell<u64>; 4],
    parties: NonZeroU16,
}

impl Shared {
    fn new(parties: u16) -> Arc<Self> {
        let parties = NonZeroU16::new(parties).expect("not zero");
        let words = BarrierWords::default();
        words.set_parties(parties);
        Arc::new(Self { words, cells: Default::default(), data: Default::default(), parties })
    }

    fn with<'a>(&'a self, live: &'a Process) -> Barrier<'a, Process> {
        Barrier { words: &self.words, cells: &self.cells, parties: self.parties, live }
    }

    fn wait(&self, live: &Process) -> Result<Passed, BarrierFailure> {
        self.with(live).wait(Wait::FOREVER, None::<fn()>)
    }

    /// Writes its own data, waits, and reads that of everybody.
    fn meet(&self, live: &Process, me: usize, acts: bool) -> Result<Passed, BarrierFailure> {
        self.with(live).register().expect("room");
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        let write = |at: usize| self.data[at].with_mut(|data| unsafe { *data += 1 });
        // SAFETY: as above.
        let read = |at: usize| self.data[at].with(|data| unsafe { *data });
        let all = 1..=usize::from(self.parties.get());
        write(me);
        let act = || {
            assert!(all.clone().all(|at| read(at) == 1), "the last one acts");
            write(0);
        };
        let passed = self.with(live).wait(Wait::FOREVER, acts.then_some(act))?;
        assert!(all.clone().all(|at| read(at) == 1), "who goes on sees what all did");
        assert_eq!(read(0), u64::from(acts));
        Ok(passed)
    }
}

const fn broken<T>(why: BrokenBy) -> Result<T, BarrierFailure> {
    Err(BarrierFailure::Broken(why))
}

#[test]
fn who_goes_on_has_seen_what_all_did() {
    for acts in [false, true] {
        let name = if acts { "barrier_action" } else { "barrier_two" };
        let seen = explore(name, 100, 2, move |outcome| {
            let (kernel, shared) = (Kernel::new(), Shared::new(2));
            let [me, other] = [1, 2].map(|tid| Process::new(&kernel, tid));
            let other = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let first = shared.meet(&other, 2, acts).expect("all come");
                    // The next generation begins before the last one is over.
                    let second = shared.wait(&other).expect("all come");
                    (first.index + second.index, usize::from(first.is_last) + usize::from(second.is_last))
                })
            };
            let first = shared.meet(&me, 1, acts).expect("all come");
            let second = shared.wait(&me).expect("all come");
            let (places, lasts) = other.join().expect("ends well");
            assert_eq!(places + first.index + second.index, 2);
            assert_eq!(lasts + usize::from(first.is_last) + usize::from(second.is_last), 2);
            assert!(!shared.words.is_damaged(shared.parties));
            outcome.push(first.index.into());
        });
        assert_eq!(seen.len(), 2, "both orders: {seen:?}");
    }
}

#[test]
fn three_meet() {
    explore("barrier_three", 100, 1, |_| {
        let (kernel, shared) = (Kernel::new(), Shared::new(3));
        let [me, second, third] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
        let others = [second, third].map(|process| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let at = process_number(&process);
                shared.meet(&process, at, false).expect("all come").index
            })
        });
        let mut places = vec![shared.meet(&me, 1, false).expect("all come").index];
        places.extend(others.map(|other| other.join().expect("ends well")));
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2]);
    });
}

fn process_number(process: &Process) -> usize {
    use crossproc_atomic::Platform;
    process.tid() as usize
}

/// A party is killed before each of its shared accesses in turn, from when it is one until it has gone on. (Who is killed
/// before it has a handle is none, and nobody can miss it.)
#[test]
fn a_party_may_die_anywhere() {
    for acts in [false, true] {
        let mut seen = BTreeSet::new();
        for accesses in 0..24 {
            let name = if acts { "barrier_death_acting" } else { "barrier_death" };
            seen.extend(explore(&format!("{name}_{accesses}"), 3, 2, move |outcome| {
                let (kernel, shared) = (Kernel::new(), Shared::new(2));
                let [me, victim] = [1, 2].map(|tid| Process::new(&kernel, tid));
                let victim = {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        let passed = Cell::new(false);
                        shared.with(&victim).register().expect("room");
                        let all = || {
                            let act = acts.then_some(|| ());
                            passed.set(shared.with(&victim).wait(Wait::FOREVER, act).is_ok());
                        };
                        if victim.run_until_killed(accesses, &[], all).is_some() {
                            victim.die(&[]);
                        }
                        passed.get()
                    })
                };
                shared.with(&me).register().expect("room");
                let waited = shared.wait(&me);
                let victim_passed = victim.join().expect("the model thread ends well");
                assert!(!shared.words.is_damaged(shared.parties));
                match waited {
                    Ok(passed) => assert!(passed.is_last == (passed.index == 1)),
                    Err(why) => {
                        assert_eq!(why, BarrierFailure::Broken(BrokenBy::PartyDied));
                        assert!(!victim_passed, "one of them passed and the other did not");
                    }
                }
                // Who died is missed from now on, until somebody resets.
                assert_eq!(shared.wait(&me), broken(BrokenBy::PartyDied));
                assert_eq!(shared.with(&me).reset(), 1);
                assert_eq!(
                    shared.with(&me).wait(Wait::Try, None::<fn()>),
                    Err(BarrierFailure::WouldBlock),
                    "as good as new"
                );
                outcome.extend([u64::from(waited.is_ok()), u64::from(victim_passed)]);
            }));
        }
        for (wanted, what) in [
            ([0, 0], "it died before the last one had come"),
            ([1, 0], "it died when all had come"),
            ([1, 1], "it died when it had gone on"),
        ] {
            assert!(seen.contains(&wanted[..]), "{what}: never seen in {seen:?}");
        }
    }
}

#[test]
fn a_party_that_leaves_in_good_order_is_not_missed() {
    // Its last handle goes, and then it does; whoever read its cell before must not take that for a death.
    let seen = explore("barrier_leaves", 5, 4, |outcome| {
        let (kernel, shared) = (Kernel::new(), Shared::new(2));
        let [me, leaving, _stays] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
        shared.with(&me).register().expect("room");
        shared.with(&leaving).register().expect("room");
        let leaving = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.with(&leaving).deregister();
                leaving.die(&[]);
            })
        };
        let tried = shared.with(&me).wait(Wait::Try, None::<fn()>);
        assert_eq!(tried, Err(BarrierFailure::WouldBlock));
        leaving.join().expect("ends well");
        assert_eq!(shared.with(&me).reset(), 0);
        outcome.push(0);
    });
    assert_eq!(seen.len(), 1);
}

#[test]
fn a_deadline_is_told_to_all_or_to_none() {
    let seen = explore("barrier_timeout", 50, 3, |outcome| {
        let (kernel, shared) = (Kernel::new(), Shared::new(2));
        let [me, other] = [1, 2].map(|tid| Process::new(&kernel, tid));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.wait(&other))
        };
        let now = Wait::Until(Some(crossproc_atomic::Deadline(0)));
        let timed = shared.with(&me).wait(now, None::<fn()>);
        let waited = other.join().expect("ends well");
        assert_eq!(timed.is_ok(), waited.is_ok());
        if timed.is_err() {
            assert_eq!((timed, waited), (broken(BrokenBy::Timeout), broken(BrokenBy::Timeout)));
        }
        outcome.push(u64::from(timed.is_ok()));
    });
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}

#[test]
fn a_generation_that_was_broken_and_reset_lets_nobody_through() {
    let seen = explore("barrier_reset", 100, 3, |outcome| {
        let (kernel, shared) = (Kernel::new(), Shared::new(2));
        let [me, other] = [1, 2].map(|tid| Process::new(&kernel, tid));
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let mut told = 0;
                while let Err(why) = shared.wait(&other) {
                    assert_eq!(why, BarrierFailure::Broken(BrokenBy::Abort));
                    told += 1;
                    thread::yield_now();
                }
                told
            })
        };
        shared.with(&me).abort(BrokenBy::Abort);
        assert_eq!(shared.with(&me).reset(), 0);
        // If the other one had gone through before, nobody would come.
        shared.wait(&me).expect("all come");
        let told = other.join().expect("ends well");
        assert!(!shared.words.is_damaged(shared.parties));
        outcome.push(u64::from(told != 0));
    });
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}

/// Two reset, and a party dies: it is struck off by one of them, or breaks the barrier again.
#[test]
fn a_death_is_told_by_a_reset_or_breaks_what_comes_after() {
    let seen = explore("barrier_two_resets", 100, 3, |outcome| {
        let (kernel, shared) = (Kernel::new(), Shared::new(2));
        let [me, other, victim] = [1, 2, 3].map(|tid| Process::new(&kernel, tid));
        for process in [&me, &other, &victim] {
            shared.with(process).register().expect("room");
        }
        shared.with(&me).abort(BrokenBy::Abort);
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.with(&other).reset())
        };
        let mut struck = shared.with(&me).reset();
        victim.die(&[]);
        struck += other.join().expect("ends well");
        let after = shared.with(&me).wait(Wait::Try, None::<fn()>);
        if struck == 0 {
            assert_eq!(after, broken(BrokenBy::PartyDied), "nobody was told");
            assert_eq!(shared.with(&me).reset(), 1);
        } else {
            assert_eq!((struck, after), (1, Err(BarrierFailure::WouldBlock)));
        }
        assert!(!shared.words.is_damaged(shared.parties));
        outcome.push(struck as u64);
    });
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}
