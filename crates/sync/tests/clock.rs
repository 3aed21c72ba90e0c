//! Time limits, on a clock that goes as these tests want.
//!
//! The algorithms know no clock but [`Platform::now`], and hand the kernel moments on it, never lengths of time. The
//! kernel's CLOCK_MONOTONIC can not be set; this one jumps back and forth, to show that nothing is concluded from it
//! but what it says: a wait ends when the clock has come to the deadline, at the first look after that, and not before,
//! however often it is woken; and no sleep is asked for that goes beyond the deadline.
#![cfg(not(crossproc_model))]
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::num::{NonZeroU16, NonZeroU64};

use crossproc_atomic::{AtomicU32, AtomicU64, Deadline, Liveness, OWNER_DIED, Owner, Pending, Platform};
use crossproc_sync::{
    AcquireFailure, Barrier, BarrierFailure, BarrierWords, BinaryWords, BrokenBy, CondvarWords, EventFailure,
    EventWords, LockFailure, LockWords, OnceFailure, OnceWords, PermitCell, ReaderCell, RwLockWords,
    SemaphoreWords, Wait, WaitFailure, Woken,
};

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
/// What the clock shows at first.
const START: u64 = 1_000_000 * SECOND;
const DEADLINE: u64 = START + 5 * SECOND;
/// Whatever happens, everything is looked at again after this.
const SLICE_MAX: u64 = SECOND;

/// What is to be seen of the other participant, who lives.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Token {
    /// Nothing: sleeps are short.
    Missing,
    Alive,
    /// Its token is marked, and there is no proof of its death: it dumps core, say.
    Marked,
}

/// A participant, the clock, and who it is that plays with it.
struct World<'a> {
    number: u16,
    token: Token,
    /// Of the other one.
    token_word: AtomicU32,
    now: Cell<u64>,
    /// What the clock showed at each sleep, and until when that was to be.
    sleeps: RefCell<Vec<(u64, Option<Deadline>)>>,
    /// What happens in the n-th sleep, and what the clock shows after it.
    script: Box<dyn Fn(usize) -> u64 + 'a>,
}

impl<'a> World<'a> {
    fn new(number: u16, token: Token, script: impl Fn(usize) -> u64 + 'a) -> Self {
        let token_word = AtomicU32::new(if token == Token::Marked { OWNER_DIED } else { 77 });
        let (now, sleeps) = (Cell::new(START), RefCell::default());
        Self { number, token, token_word, now, sleeps, script: Box::new(script) }
    }

    /// Who has everything, and never sleeps.
    fn other() -> Self {
        Self::new(2, Token::Alive, |_| panic!("the other one has no reason to sleep"))
    }

    fn sleep(&self, until: Option<Deadline>) {
        let nth = self.sleeps.borrow().len();
        assert!(nth < 100, "it sleeps on and on");
        self.sleeps.borrow_mut().push((self.now.get(), until));
        self.now.set((self.script)(nth));
    }
}

impl Platform for World<'_> {
    fn tid(&self) -> u32 {
        self.number.into()
    }
    fn announce(&self, _: &AtomicU32) -> Pending {
        Pending { before: 0, now: 1 }
    }
    fn retract(&self, _: Pending) {}
    fn hold_announced(&self, _: &AtomicU32) {}
    fn hold(&self, _: &AtomicU32) {}
    fn keep(&self, _: &AtomicU32) {}
    fn unhold(&self, _: &AtomicU32) {}
    fn wait(&self, _: &AtomicU32, _: u32, _: &[(&AtomicU32, u32)], until: Option<Deadline>) {
        self.sleep(until);
    }
    fn wake(&self, _: &AtomicU32, _: u32) -> u32 {
        0
    }
    fn now(&self) -> Deadline {
        Deadline(self.now.get())
    }
    fn thread_exists(&self, _: u32) -> bool {
        true
    }
    fn spins(&self) -> u32 {
        0
    }
}

impl Liveness for World<'_> {
    fn me(&self) -> Owner {
        Owner::new(self.number - 1, 1).expect("a generation")
    }
    fn is_dead(&self, _: Owner) -> bool {
        false
    }
    fn token(&self, _: Owner) -> Option<(&AtomicU32, u32)> {
        let now = self.token_word.load(crossproc_atomic::Ordering::Relaxed);
        (self.token != Token::Missing).then_some((&self.token_word, now))
    }
    fn await_proof(&self, _: Owner, until: Option<Deadline>) {
        // Cut into slices there (`participant.rs`).
        let slice = Deadline(self.now.get().saturating_add(SLICE_MAX));
        self.sleep(Some(until.map_or(slice, |until| until.min(slice))));
    }
    fn comings(&self) -> u32 {
        0
    }
    fn wait_among_peers(&self, _: &AtomicU32, _: u32, _: u32, until: Option<Deadline>) {
        self.sleep(until);
    }
    fn is_alone(&self) -> bool {
        false
    }
}

/// One of each. What can be taken is taken by the other one.
#[derive(Default)]
struct Things {
    lock: LockWords,
    semaphore: SemaphoreWords,
    permits: [PermitCell; 2],
    binary: BinaryWords,
    written: RwLockWords,
    read: RwLockWords,
    readers: [[ReaderCell; 2]; 2],
    event: EventWords,
    condvar: CondvarWords,
    barrier: BarrierWords,
    parties: [AtomicU64; 2],
    begun: OnceWords,
}

const TWO: NonZeroU16 = NonZeroU16::new(2).expect("not 0");

impl Things {
    fn of(other: &World<'_>) -> Self {
        let it = Self::default();
        it.lock.lock(other, None).expect("free");
        it.semaphore.init(0, SemaphoreWords::MAX);
        it.binary.acquire(other, Wait::Try).expect("free");
        it.written.write(&it.readers[0], other, Wait::Try).expect("free");
        it.read.read(&it.readers[1], other, Wait::Try).expect("free");
        assert!(it.condvar.is_used_with(NonZeroU64::MIN));
        it.barrier.set_parties(TWO);
        it.begun.begin(other, Wait::Try).expect("free");
        it
    }

    fn barrier<'a, 'b>(&'a self, live: &'a World<'b>) -> Barrier<'a, World<'b>> {
        Barrier { words: &self.barrier, cells: &self.parties, parties: TWO, live }
    }
}

#[derive(Debug, PartialEq)]
enum End {
    Had,
    TimedOut,
}

type Until = Option<Deadline>;

/// A wait, and how the other one ends it.
struct Case {
    name: &'static str,
    wait: fn(&Things, &World<'_>, Until) -> End,
    give: fn(&Things, &World<'_>),
}

/// What was had, or that it was not had in time; all else is a failure.
fn end<T, E: std::fmt::Debug + PartialEq>(result: Result<T, E>, timed_out: E) -> End {
    match result {
        Ok(_) => End::Had,
        Err(error) if error == timed_out => End::TimedOut,
        Err(error) => panic!("{error:?}"),
    }
}

const CASES: &[Case] = &[
    Case {
        name: "lock",
        wait: |it, me, until| end(it.lock.lock(me, until), LockFailure::TimedOut),
        give: |it, other| it.lock.unlock(other),
    },
    Case {
        name: "semaphore",
        wait: |it, me, until| {
            end(it.semaphore.acquire(&it.permits, me, Wait::Until(until)), AcquireFailure::TimedOut)
        },
        give: |it, other| it.semaphore.release(&it.permits, other, 1).expect("not too many"),
    },
    Case {
        name: "binary semaphore",
        wait: |it, me, until| end(it.binary.acquire(me, Wait::Until(until)), WaitFailure::TimedOut),
        give: |it, other| assert!(it.binary.release(other)),
    },
    Case {
        name: "reader behind a writer",
        wait: |it, me, until| {
            end(it.written.read(&it.readers[0], me, Wait::Until(until)), LockFailure::TimedOut)
        },
        give: |it, other| it.written.unlock(other, false),
    },
    Case {
        name: "writer behind a writer",
        wait: |it, me, until| {
            end(it.written.write(&it.readers[0], me, Wait::Until(until)), LockFailure::TimedOut)
        },
        give: |it, other| it.written.unlock(other, false),
    },
    Case {
        name: "writer behind a reader",
        wait: |it, me, until| {
            end(it.read.write(&it.readers[1], me, Wait::Until(until)), LockFailure::TimedOut)
        },
        give: |it, other| it.read.leave(&it.readers[1], other),
    },
    Case {
        name: "event",
        wait: |it, me, until| end(it.event.wait(me, Wait::Until(until)), EventFailure::TimedOut),
        give: |it, other| it.event.set(other),
    },
    Case {
        name: "condition variable",
        wait: |it, me, until| match it.condvar.sleep(me, it.condvar.announce(me), until) {
            Woken::Notified => End::Had,
            Woken::TimedOut => End::TimedOut,
            Woken::PeerDied => panic!("it lives"),
        },
        give: |it, other| it.condvar.notify(other, 1),
    },
    Case {
        name: "barrier",
        wait: |it, me, until| {
            let waited = it.barrier(me).wait(Wait::Until(until), None::<fn()>);
            end(waited, BarrierFailure::Broken(BrokenBy::Timeout))
        },
        give: |it, other| assert!(it.barrier(other).wait(Wait::Try, None::<fn()>).is_ok()),
    },
    Case {
        name: "once, to do it",
        wait: |it, me, until| end(it.begun.begin(me, Wait::Until(until)), LockFailure::TimedOut),
        give: |it, other| it.begun.complete(other),
    },
    Case {
        name: "once, to see it done",
        wait: |it, me, until| end(it.begun.wait(me, Wait::Until(until)), OnceFailure::TimedOut),
        give: |it, other| it.begun.complete(other),
    },
];

/// Runs every case with each token that the other one may have.
fn for_all(run: impl Fn(&Case, Token, &str)) {
    for case in CASES {
        for token in [Token::Missing, Token::Alive, Token::Marked] {
            run(case, token, &format!("{}, token {token:?}", case.name));
        }
    }
}

/// Each sleep has an end, after the time it began, within a slice, and not after the deadline.
fn check_sleeps(world: &World<'_>, deadline: Until, what: &str) {
    for &(now, until) in world.sleeps.borrow().iter() {
        let until = until.unwrap_or_else(|| panic!("{what}: a sleep without an end at {now}"));
        assert!(until.0 > now, "{what}: at {now}, until {until:?}");
        assert!(until.0 <= now.saturating_add(SLICE_MAX), "{what}: at {now}, until {until:?}");
        assert!(deadline.is_none_or(|deadline| until <= deadline), "{what}: at {now}, until {until:?}");
    }
}

#[test]
fn a_wait_ends_when_the_clock_says_so_and_not_before() {
    // Woken for no reason, set back, to before the machine was started too, set forward, to just before the deadline.
    const JUMPS: [u64; 11] = [
        START,
        START,
        START - HOUR,
        0,
        1,
        START + SECOND,
        DEADLINE - 1,
        START - 1,
        DEADLINE - 1,
        DEADLINE - 2,
        0,
    ];
    for_all(|case, token, what| {
        for at_last in [DEADLINE, DEADLINE + 1, DEADLINE + 365 * 24 * HOUR, u64::MAX] {
            let other = World::other();
            let things = Things::of(&other);
            let world = World::new(1, token, |n| JUMPS.get(n).copied().unwrap_or(at_last));
            let ended = (case.wait)(&things, &world, Some(Deadline(DEADLINE)));
            assert_eq!(ended, End::TimedOut, "{what}, at last {at_last}");
            assert_eq!(world.sleeps.borrow().len(), JUMPS.len() + 1, "{what}, at last {at_last}");
            check_sleeps(&world, Some(Deadline(DEADLINE)), what);
        }
    });
}

#[test]
fn a_wait_that_is_given_what_it_waits_for_is_not_too_late() {
    for_all(|case, token, what| {
        for clock in [0, START, DEADLINE - 1, DEADLINE, u64::MAX] {
            let other = World::other();
            let things = Things::of(&other);
            let world = World::new(1, token, |n| {
                if n < 3 {
                    return START - n as u64;
                }
                // While it slept, it got it, and the clock was set.
                (case.give)(&things, &other);
                clock
            });
            let ended = (case.wait)(&things, &world, Some(Deadline(DEADLINE)));
            assert_eq!(ended, End::Had, "{what}, clock {clock}");
            assert_eq!(world.sleeps.borrow().len(), 4, "{what}, clock {clock}");
            check_sleeps(&world, Some(Deadline(DEADLINE)), what);
        }
    });
}

#[test]
fn a_wait_without_a_time_limit_has_no_use_for_the_clock() {
    const JUMPS: [u64; 6] = [START - HOUR, 0, START + 1_000_000 * HOUR, 0, START, START + HOUR];
    for_all(|case, token, what| {
        let other = World::other();
        let things = Things::of(&other);
        let world = World::new(1, token, |n| {
            JUMPS.get(n).copied().unwrap_or_else(|| {
                (case.give)(&things, &other);
                START
            })
        });
        assert_eq!((case.wait)(&things, &world, None), End::Had, "{what}");
        assert_eq!(world.sleeps.borrow().len(), JUMPS.len() + 1, "{what}");
        check_sleeps(&world, None, what);
    });
}

#[test]
fn a_deadline_that_has_passed_is_not_slept_for() {
    for_all(|case, token, what| {
        for deadline in [0, START - 1, START] {
            let other = World::other();
            let things = Things::of(&other);
            let world = World::new(1, token, |_| panic!("{what}: a sleep until {deadline}"));
            let ended = (case.wait)(&things, &world, Some(Deadline(deadline)));
            assert_eq!(ended, End::TimedOut, "{what}, deadline {deadline}");
        }
    });
}
