//! Semaphores: nothing is lost, doubled or slept through, whoever is killed where.

use std::cell::Cell;
use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_atomic::{AtomicU32, Deadline, Liveness, Owner, Pending, Platform};
use crossproc_sync::{
    AcquireFailure, BinaryWords, OverRelease, PermitCell, SemaphoreWords, Wait, WaitFailure,
};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// Slots that there are; slot 0 is nobody's.
const SLOTS: usize = 5;

struct Semaphore {
    words: SemaphoreWords,
    cells: [PermitCell; SLOTS],
    data: UnsafeCell<u64>,
}

impl Semaphore {
    fn new(permits: u32, limit: u32) -> Arc<Self> {
        let words = SemaphoreWords::default();
        words.init(permits, limit);
        Arc::new(Self { words, cells: Default::default(), data: UnsafeCell::new(0) })
    }

    fn acquire(&self, live: &impl Liveness, wait: Wait) -> Result<(), AcquireFailure> {
        self.words.acquire(&self.cells, live, wait)
    }

    fn give_back(&self, live: &impl Liveness) {
        self.words.give_back(&self.cells, live);
    }

    fn release(&self, live: &impl Liveness, n: u32) -> Result<(), OverRelease> {
        self.words.release(&self.cells, live, n)
    }

    fn held(&self, live: &impl Liveness) -> u32 {
        self.words.held(&self.cells, live)
    }

    fn add(&self) {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.data.with_mut(|data| unsafe { *data += 1 });
    }

    fn sum(&self) -> u64 {
        // SAFETY: as above.
        self.data.with(|data| unsafe { *data })
    }

    fn add_one(&self, live: &impl Liveness) {
        self.acquire(live, Wait::FOREVER).expect("somebody gives it back");
        self.add();
        self.give_back(live);
    }

    /// What is free, when all is quiet and those who live hold nothing: found by taking it.
    fn take_all(&self, live: &impl Liveness) -> u32 {
        assert_eq!(self.words.audit(&self.cells), Ok(()));
        while self.acquire(live, Wait::Try).is_ok() {}
        assert_eq!(self.words.count(), 0);
        assert_eq!(self.words.audit(&self.cells), Ok(()));
        self.held(live)
    }
}

/// A thread of a process with another identity than its own: one of several threads, or in a slot that others had before.
struct Of<'a> {
    thread: &'a Process,
    me: Owner,
}

impl Platform for Of<'_> {
    fn tid(&self) -> u32 {
        self.thread.tid()
    }
    fn announce(&self, word: &AtomicU32) -> Pending {
        self.thread.announce(word)
    }
    fn retract(&self, pending: Pending) {
        self.thread.retract(pending);
    }
    fn hold_announced(&self, word: &AtomicU32) {
        self.thread.hold_announced(word);
    }
    fn hold(&self, word: &AtomicU32) {
        self.thread.hold(word);
    }
    fn keep(&self, word: &AtomicU32) {
        self.thread.keep(word);
    }
    fn unhold(&self, word: &AtomicU32) {
        self.thread.unhold(word);
    }
    fn wait(&self, word: &AtomicU32, expected: u32, also: &[(&AtomicU32, u32)], until: Option<Deadline>) {
        self.thread.wait(word, expected, also, until);
    }
    fn wake(&self, word: &AtomicU32, count: u32) -> u32 {
        self.thread.wake(word, count)
    }
    fn now(&self) -> Deadline {
        self.thread.now()
    }
    fn thread_exists(&self, tid: u32) -> bool {
        self.thread.thread_exists(tid)
    }
    fn spins(&self) -> u32 {
        self.thread.spins()
    }
}

impl Liveness for Of<'_> {
    fn me(&self) -> Owner {
        self.me
    }
    fn is_dead(&self, owner: Owner) -> bool {
        let of_my_slot = owner.slot() == self.me.slot();
        if of_my_slot { owner != self.me } else { self.thread.is_dead(owner) }
    }
    fn is_gone(&self, owner: Owner) -> bool {
        let of_my_slot = owner.slot() == self.me.slot();
        if of_my_slot { owner != self.me } else { self.thread.is_gone(owner) }
    }
    fn token(&self, owner: Owner) -> Option<(&AtomicU32, u32)> {
        self.thread.token(owner)
    }
    fn await_proof(&self, owner: Owner, until: Option<Deadline>) {
        self.thread.await_proof(owner, until);
    }
    fn comings(&self) -> u32 {
        self.thread.comings()
    }
    fn wait_among_peers(&self, word: &AtomicU32, expected: u32, comings: u32, until: Option<Deadline>) {
        self.thread.wait_among_peers(word, expected, comings, until);
    }
    fn is_alone(&self) -> bool {
        self.thread.is_alone()
    }
}

fn owner(slot: u16, generation: u64) -> Owner {
    Owner::new(slot, generation).expect("an identity")
}

/// Runs `f` as thread `tid`, which is a process of its own.
fn beside<R: 'static>(
    kernel: &Arc<Kernel>,
    semaphore: &Arc<Semaphore>,
    tid: u32,
    f: impl FnOnce(&Process, &Semaphore) -> R + 'static,
) -> thread::JoinHandle<R> {
    let (process, semaphore) = (Process::new(kernel, tid), Arc::clone(semaphore));
    thread::spawn(move || f(&process, &semaphore))
}

#[test]
fn one_permit_excludes_and_nobody_sleeps_for_ever() {
    explore("semaphore_exclusion", 1000, 3, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(1, 1));
        let other = beside(&kernel, &semaphore, 1, |me, semaphore| semaphore.add_one(me));
        let me = Process::new(&kernel, 2);
        semaphore.add_one(&me);
        other.join().expect("ends well");
        assert_eq!(semaphore.sum(), 2);
        assert_eq!(semaphore.take_all(&me), 1);
    });
}

#[test]
fn three_at_one_permit_strand_nobody() {
    explore("semaphore_three", 40, 1, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(1, 1));
        let others =
            [1, 2].map(|tid| beside(&kernel, &semaphore, tid, |me, semaphore| semaphore.add_one(me)));
        let me = Process::new(&kernel, 3);
        semaphore.add_one(&me);
        others.into_iter().for_each(|other| other.join().expect("ends well"));
        assert_eq!(semaphore.sum(), 3);
        assert_eq!(semaphore.take_all(&me), 1);
    });
}

#[test]
fn a_release_of_two_wakes_two() {
    // With two preemptions both are asleep by then; real loads would make too much of that.
    let bound = if cfg!(crossproc_model_rmw) { 2 } else { 1 };
    explore("semaphore_two", 500, bound, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(0, 9));
        let take = |me: &Process, semaphore: &Semaphore| {
            semaphore.acquire(me, Wait::FOREVER).expect("one is released");
        };
        let others = [1, 2].map(|tid| beside(&kernel, &semaphore, tid, take));
        let me = Process::new(&kernel, 3);
        semaphore.release(&me, 2).expect("there is room");
        others.into_iter().for_each(|other| other.join().expect("ends well"));
        assert_eq!(semaphore.take_all(&me), 0);
    });
}

/// What was done before a release is seen by who acquires.
#[test]
fn a_release_tells_what_was_done_before() {
    explore("semaphore_signal", 20, 3, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(0, 9));
        let consumer = beside(&kernel, &semaphore, 1, |me, semaphore| {
            semaphore.acquire(me, Wait::FOREVER).expect("one is released");
            semaphore.words.consume(&semaphore.cells, me);
            semaphore.sum()
        });
        let me = Process::new(&kernel, 2);
        semaphore.add();
        semaphore.release(&me, 1).expect("there is room");
        assert_eq!(consumer.join().expect("ends well"), 1);
        assert_eq!(semaphore.take_all(&me), 0);
    });
}

#[test]
fn one_who_gives_up_strands_nobody() {
    let seen = explore("semaphore_timeout", 30, 1, |outcome| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(0, 9));
        let impatient = beside(&kernel, &semaphore, 1, |me, semaphore| {
            let took = semaphore.acquire(me, Wait::Until(Some(Deadline(0))));
            if took.is_ok() {
                semaphore.give_back(me);
            }
            took.is_ok()
        });
        let patient = beside(&kernel, &semaphore, 2, |me, semaphore| semaphore.add_one(me));
        let me = Process::new(&kernel, 3);
        semaphore.release(&me, 1).expect("there is room");
        outcome.push(u64::from(impatient.join().expect("ends well")));
        patient.join().expect("ends well");
        assert_eq!(semaphore.take_all(&me), 1);
    });
    assert_eq!(seen.len(), 2, "both outcomes: {seen:?}");
}

/// Three change counts and cells at once, each recording what another did.
#[test]
fn nothing_is_lost_between_count_and_cells() {
    explore("semaphore_records", 400, 2, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(2, 9));
        let keep = |me: &Process, semaphore: &Semaphore| {
            let kept = u32::from(semaphore.acquire(me, Wait::Try).is_ok());
            assert_eq!(semaphore.held(me), kept);
            kept
        };
        let others = [1, 2].map(|tid| beside(&kernel, &semaphore, tid, keep));
        let me = Process::new(&kernel, 3);
        semaphore.release(&me, 1).expect("there is room");
        let kept: u32 = others.into_iter().map(|other| other.join().expect("ends well")).sum();
        assert_eq!(kept, 2, "there were two at least");
        assert_eq!(semaphore.take_all(&me), 1);
    });
}

#[test]
fn a_release_is_refused_above_the_limit() {
    let seen = explore("semaphore_limit", 24, 3, |outcome| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(1, 2));
        let other = beside(&kernel, &semaphore, 1, |me, semaphore| semaphore.release(me, 1).is_ok());
        let me = Process::new(&kernel, 2);
        let mine = semaphore.release(&me, 2).is_ok();
        let one = semaphore.release(&me, 1).is_ok();
        let others = other.join().expect("ends well");
        assert!(!mine && one != others, "only one more fits in");
        outcome.push(u64::from(semaphore.take_all(&me)));
    });
    assert_eq!(seen, BTreeSet::from([vec![2]]));
}

/// A release that is refused, or of nothing, wakes nobody, and those who sleep are still woken by the next one.
#[test]
fn a_refused_release_strands_nobody() {
    explore("semaphore_refused", 20, 2, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(0, 1));
        let waiter = beside(&kernel, &semaphore, 1, |me, semaphore| semaphore.add_one(me));
        let me = Process::new(&kernel, 2);
        assert_eq!(semaphore.release(&me, 2), Err(OverRelease));
        semaphore.release(&me, 0).expect("nothing fits in");
        semaphore.release(&me, 1).expect("one fits in");
        waiter.join().expect("ends well");
        assert_eq!(semaphore.take_all(&me), 1);
    });
}

/// Two threads of one process: what one acquired, the other gives back.
#[test]
fn permits_are_counted_to_the_process() {
    explore("semaphore_threads", 600, 3, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(2, 2));
        let other = beside(&kernel, &semaphore, 1, |thread, semaphore| {
            let me = Of { thread, me: owner(3, 1) };
            semaphore.acquire(&me, Wait::Try).expect("there are two");
            semaphore.give_back(&me);
        });
        let (thread, peer) = (Process::new(&kernel, 2), Process::new(&kernel, 4));
        let me = Of { thread: &thread, me: owner(3, 1) };
        semaphore.acquire(&me, Wait::Try).expect("there are two");
        other.join().expect("ends well");
        assert_eq!((semaphore.words.count(), semaphore.held(&me)), (1, 1));
        semaphore.release(&me, 1).expect("it holds one");
        assert_eq!(semaphore.take_all(&peer), 2);
    });
}

/// Two threads of a process in a slot whose last process left a permit behind, and a third that looks for such.
#[test]
fn what_the_last_one_in_the_slot_left_comes_back_once() {
    explore("semaphore_slot", 150, 2, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(2, 9));
        let (first, second) = (Process::new(&kernel, 1), Process::new(&kernel, 2));
        let predecessor = Of { thread: &first, me: owner(3, 1) };
        semaphore.acquire(&predecessor, Wait::Try).expect("there are two");
        let take = |thread: &Process, semaphore: &Semaphore| {
            let me = Of { thread, me: owner(3, 2) };
            semaphore.acquire(&me, Wait::Try).expect("there are two");
        };
        let other = {
            let semaphore = Arc::clone(&semaphore);
            thread::spawn(move || take(&first, &semaphore))
        };
        take(&second, &semaphore);
        other.join().expect("ends well");
        let me = Of { thread: &second, me: owner(3, 2) };
        assert_eq!((semaphore.words.count(), semaphore.held(&me)), (0, 2));
    });
}

/// A process is killed before each of its shared accesses in turn, with another one waiting or arriving.
#[test]
fn a_death_anywhere_gives_the_permit_back_once() {
    let mut seen = BTreeSet::new();
    for accesses in 1..28 {
        seen.extend(explore(&format!("semaphore_death_{accesses}"), 8, 2, move |outcome| {
            let (kernel, semaphore) = (Kernel::new(), Semaphore::new(1, 1));
            let victim = beside(&kernel, &semaphore, 1, move |process, semaphore| {
                let done = Cell::new(0);
                process.run_until_killed(accesses, &[], || {
                    semaphore.acquire(process, Wait::FOREVER).expect("somebody gives it back");
                    done.set(1);
                    semaphore.add();
                    semaphore.give_back(process);
                    done.set(2);
                });
                done.get()
            });
            let survivor = Process::new(&kernel, 2);
            semaphore.add_one(&survivor);
            outcome.push(victim.join().expect("the model thread ends well"));
            assert_eq!(semaphore.take_all(&survivor), 1);
        }));
    }
    assert_eq!(seen, BTreeSet::from([vec![0], vec![1], vec![2]]));
}

#[test]
fn a_death_while_using_up_leaves_all_or_nothing() {
    let mut seen = BTreeSet::new();
    for accesses in 8..24 {
        seen.extend(explore(&format!("semaphore_consume_{accesses}"), 40, 2, move |outcome| {
            let (kernel, semaphore) = (Kernel::new(), Semaphore::new(1, 1));
            let victim = beside(&kernel, &semaphore, 1, move |process, semaphore| {
                let consume = || {
                    semaphore.acquire(process, Wait::Try)?;
                    semaphore.words.consume(&semaphore.cells, process);
                    Ok::<(), AcquireFailure>(())
                };
                process.run_until_killed(accesses, &[], consume).is_some_and(|done| done.is_ok())
            });
            let survivor = Process::new(&kernel, 2);
            let tried = semaphore.acquire(&survivor, Wait::Try).is_ok();
            if tried {
                semaphore.give_back(&survivor);
            }
            let consumed = victim.join().expect("the model thread ends well");
            let left = semaphore.take_all(&survivor);
            assert!(!consumed || left == 0);
            outcome.extend([u64::from(consumed), u64::from(left)]);
        }));
    }
    assert_eq!(seen, BTreeSet::from([vec![0, 0], vec![0, 1], vec![1, 0]]));
}

/// One died with two permits; two look for them at once, one of them waiting for both.
#[test]
fn the_permits_of_the_dead_come_back_once() {
    explore("semaphore_heirs", 300, 2, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(2, 9));
        let victim = Process::new(&kernel, 1);
        semaphore.acquire(&victim, Wait::Try).expect("there are two");
        semaphore.acquire(&victim, Wait::Try).expect("there are two");
        victim.die(&[]);
        let heir = beside(&kernel, &semaphore, 2, |me, semaphore| {
            semaphore.acquire(me, Wait::FOREVER).expect("a dead one has two");
        });
        let me = Process::new(&kernel, 3);
        semaphore.acquire(&me, Wait::FOREVER).expect("a dead one has two");
        heir.join().expect("ends well");
        assert_eq!((semaphore.words.count(), semaphore.held(&me)), (0, 1));
    });
}

/// Somebody uses up a permit, which wakes nobody, just when a dead one's is to come back.
#[test]
fn who_is_disturbed_while_it_looks_for_the_dead_looks_again() {
    explore("semaphore_disturbed", 20, 2, |_| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(2, 9));
        let (victim, me) = (Process::new(&kernel, 1), Process::new(&kernel, 3));
        semaphore.acquire(&victim, Wait::Try).expect("there are two");
        let user = Process::new(&kernel, 2);
        semaphore.acquire(&user, Wait::Try).expect("there are two");
        victim.die(&[]);
        let user = {
            let semaphore = Arc::clone(&semaphore);
            thread::spawn(move || semaphore.words.consume(&semaphore.cells, &user))
        };
        semaphore.acquire(&me, Wait::FOREVER).expect("a dead one has one");
        user.join().expect("ends well");
        assert_eq!((semaphore.words.count(), semaphore.held(&me)), (0, 1));
    });
}

/// A sleeper that was woken may be killed before it takes what it was woken for.
#[test]
fn a_woken_one_that_is_killed_strands_nobody() {
    for accesses in (9..26).step_by(2) {
        explore(&format!("semaphore_woken_{accesses}"), 20, 1, move |_| {
            let (kernel, semaphore) = (Kernel::new(), Semaphore::new(0, 9));
            let me = Process::new(&kernel, 3);
            let victim = beside(&kernel, &semaphore, 1, move |process, semaphore| {
                let acquire = || semaphore.acquire(process, Wait::FOREVER);
                if process.run_until_killed(accesses, &[], acquire).is_some() {
                    process.die(&[]);
                }
            });
            let waiter = beside(&kernel, &semaphore, 2, |me, semaphore| semaphore.add_one(me));
            semaphore.release(&me, 1).expect("there is room");
            victim.join().expect("the model thread ends well");
            waiter.join().expect("ends well");
            assert_eq!(semaphore.take_all(&me), 1);
        });
    }
}

#[test]
fn who_waits_for_nobody_is_told() {
    let seen = explore("semaphore_alone", 200, 3, |outcome| {
        let (kernel, semaphore) = (Kernel::new(), Semaphore::new(0, 9));
        let peer = beside(&kernel, &semaphore, 1, |process, semaphore| {
            // Killed before or after it has released one.
            process.run_until_killed(4, &[], || semaphore.release(process, 1)).is_some()
        });
        let me = Process::new(&kernel, 2);
        let took = semaphore.acquire(&me, Wait::FOREVER);
        assert!(matches!(took, Ok(()) | Err(AcquireFailure::PeerDied)));
        peer.join().expect("the model thread ends well");
        outcome.push(u64::from(took.is_ok()));
        if took == Err(AcquireFailure::PeerDied) {
            assert_eq!(semaphore.acquire(&me, Wait::Try), Err(AcquireFailure::WouldBlock));
        }
    });
    assert!(!seen.is_empty());
}

// ---- Binary ----

struct Binary {
    words: BinaryWords,
    data: UnsafeCell<u64>,
}

impl Binary {
    fn new() -> Arc<Self> {
        Arc::new(Self { words: BinaryWords::default(), data: UnsafeCell::new(0) })
    }

    fn add_one(&self, live: &impl Liveness) {
        self.words.acquire(live, Wait::FOREVER).expect("somebody releases it");
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.data.with_mut(|data| unsafe { *data += 1 });
        assert!(self.words.release(live));
    }
}

#[test]
fn a_binary_semaphore_excludes_and_nobody_sleeps_for_ever() {
    explore("binary_exclusion", 200, 3, |_| {
        let (kernel, binary) = (Kernel::new(), Binary::new());
        let others = [1, 2].map(|tid| {
            let (process, binary) = (Process::new(&kernel, tid), Arc::clone(&binary));
            thread::spawn(move || binary.add_one(&process))
        });
        others.into_iter().for_each(|other| other.join().expect("ends well"));
        let me = Process::new(&kernel, 3);
        assert!(!binary.words.release(&me), "it is free");
        assert_eq!(binary.words.audit(8), Ok(()));
    });
}

#[test]
fn a_binary_semaphore_is_handed_on_by_others() {
    explore("binary_turn", 30, 3, |_| {
        let (kernel, binary) = (Kernel::new(), Binary::new());
        let me = Process::new(&kernel, 1);
        binary.words.acquire(&me, Wait::Try).expect("it is free");
        let other = {
            let (process, binary) = (Process::new(&kernel, 2), Arc::clone(&binary));
            thread::spawn(move || binary.words.release(&process))
        };
        binary.words.acquire(&me, Wait::FOREVER).expect("the other one releases it");
        assert!(other.join().expect("ends well"));
        assert_eq!(binary.words.holder(&me), Some(me.me()));
        assert_eq!(binary.words.acquire(&me, Wait::Try), Err(WaitFailure::WouldBlock));
    });
}

#[test]
fn a_dead_ones_binary_semaphore_is_free() {
    let mut seen = BTreeSet::new();
    for accesses in 0..5 {
        seen.extend(explore(&format!("binary_death_{accesses}"), 40, 1, move |outcome| {
            let (kernel, binary) = (Kernel::new(), Binary::new());
            let victim = {
                let (process, binary) = (Process::new(&kernel, 1), Arc::clone(&binary));
                thread::spawn(move || {
                    process.run_until_killed(accesses, &[], || binary.add_one(&process)).is_some()
                })
            };
            let others = [2, 3].map(|tid| {
                let (process, binary) = (Process::new(&kernel, tid), Arc::clone(&binary));
                thread::spawn(move || binary.add_one(&process))
            });
            outcome.push(u64::from(victim.join().expect("the model thread ends well")));
            others.into_iter().for_each(|other| other.join().expect("ends well"));
            assert_eq!(binary.words.holder(&Process::new(&kernel, 4)), None);
        }));
    }
    assert_eq!(seen.len(), 2, "killed, and not: {seen:?}");
}
