//! Deaths and stops around sleepers.
//!
//! An operation that wakes somebody is interrupted after each of its instructions, by death or for good, while others sleep; and
//! who was woken is killed after each of its instructions, before it does what it was woken for. Nobody must sleep for ever.
//!
//! | Part | who is interrupted | what must happen |
//! |---|---|---|
//! | waker dies | whoever releases (sets, notifies), after each instruction | the sleeper gets what it waits for, if that was done or is owed for the death |
//! | waker stops | the same, frozen | if that was done, the sleeper gets it while the other is frozen |
//! | woken dies | the sleeper that was woken, after each instruction from its wake-up on | the other sleeper gets it |
//! | sleeper dies | a sleeper, asleep | the other sleeper gets it |
//!
//! The longest delay from the interruption to the end of the sleeper's operation is reported, not judged.

use std::time::Duration;

use crossproc_atomic::{AtomicU32, Linux, Ordering, Platform, TID};
use crossproc_primitives::{LockError, Objects, Value};
use crossproc_segment::Segment;
use crossproc_segment::plain::Plain;
use crossproc_tests::{Board, HANG};

use crate::arena::{Arena, Doing, Play, Role, code, nanos, of_access, of_lock, one_step, run_to_exit, steps};
use crate::cast::{self, of_barrier, of_condvar, of_event, of_once, of_semaphore, wide};
use crate::options::Options;
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::step::{Ending, Verdict, Victim};

/// The name of this mode.
pub const MODE: &str = "sleepers";

/// An object with sleepers.
struct Case {
    name: &'static str,
    /// Gets ready to wake: has the lock, say. Its play releases, sets, notifies.
    waker: Role,
    /// Its play sleeps until it has what it waits for, and then lets go of it.
    sleeper: Role,
    /// True if the waker's change can be seen: a sleeper need not wait any longer. Only looks.
    done: fn(&Segment) -> bool,
    /// If the waker dies before its change, its sleepers are owed it: the lock of a dead one is free.
    owed: bool,
    /// Does for the sleepers what the dead one did not.
    instead: Role,
    /// What was done is done for all sleepers, or passed on by who was woken.
    for_all: bool,
}

fn holds<G: 'static, E: std::fmt::Debug>(guard: Result<G, E>) -> Play {
    let guard = guard.expect("nobody else has it yet");
    Box::new(move || {
        drop(guard);
        code::OK
    })
}

fn waits<T: Plain + PartialEq>(value: &'static Value<T>, first: T) -> Play {
    Box::new(move || of_access(&value.wait_while(|now| *now == first)))
}

fn nothing(_: &Segment) -> Play {
    Box::new(|| code::OK)
}

const CASES: &[Case] = &[
    Case {
        name: "Lock",
        waker: |s| holds(cast::lock(s).lock()),
        sleeper: |s| {
            let lock = cast::lock(s);
            Box::new(move || of_lock(lock.lock()))
        },
        done: |s| s.lock("lock").is_ok_and(|lock| !lock.is_locked()),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "Lock within another",
        waker: |s| {
            std::mem::forget(cast::rlock(s).lock());
            holds(cast::lock(s).lock())
        },
        sleeper: |s| {
            let lock = cast::lock(s);
            Box::new(move || of_lock(lock.lock()))
        },
        done: |s| s.lock("lock").is_ok_and(|lock| !lock.is_locked()),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "RLock",
        waker: |s| holds(cast::rlock(s).lock()),
        sleeper: |s| {
            let lock = cast::rlock(s);
            Box::new(move || of_lock(lock.lock()))
        },
        done: |s| s.rlock("rlock").is_ok_and(|lock| !lock.is_locked()),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "Mutex",
        waker: |s| holds(cast::mutex(s).lock()),
        sleeper: |s| {
            let mutex = cast::mutex(s);
            Box::new(move || of_lock(mutex.lock()))
        },
        done: |s| s.mutex("mutex", wide(0)).is_ok_and(|mutex| !mutex.is_locked()),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "Value, one word: wait_while",
        waker: cast::roles::word_add,
        sleeper: |s| waits(cast::word(s), 1), // the rehearsal of the waker adds one
        done: |s| s.value("word", 0_u64).is_ok_and(|word| word.get() != Ok(1)),
        owed: false,
        instead: cast::roles::word_add,
        for_all: true,
    },
    Case {
        name: "Value, wide: wait_while",
        waker: |s| {
            let value = cast::value(s);
            Box::new(move || of_access(&value.set(wide(1))))
        },
        sleeper: |s| waits(cast::value(s), wide(0)),
        done: |s| s.value("value", wide(0)).is_ok_and(|value| value.get() != Ok(wide(0))),
        owed: false,
        instead: |s| {
            let value = cast::value(s);
            Box::new(move || of_access(&value.set(wide(2))))
        },
        for_all: true,
    },
    Case {
        name: "Semaphore: a permit",
        waker: |s| holds(cast::semaphore(s).acquire()),
        sleeper: |s| {
            let semaphore = cast::semaphore(s);
            Box::new(move || of_semaphore(&semaphore.acquire()))
        },
        done: |s| s.semaphore("semaphore", 1).is_ok_and(|semaphore| semaphore.available() > 0),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "Semaphore: what was announced",
        waker: announce,
        sleeper: |s| {
            let signals = cast::signals(s);
            Box::new(move || {
                let permit = signals.acquire();
                let told = of_semaphore(&permit);
                permit.into_iter().for_each(crossproc_primitives::Permit::consume);
                told
            })
        },
        done: |s| s.semaphore("signals", 0).is_ok_and(|signals| signals.available() > 0),
        owed: false,
        instead: announce,
        for_all: false,
    },
    Case {
        name: "BinarySemaphore",
        waker: |s| {
            let binary = cast::binary(s);
            binary.acquire().expect("nobody else has it yet");
            Box::new(move || u64::from(binary.release().is_err()) * code::ERROR)
        },
        sleeper: |s| {
            let binary = cast::binary(s);
            Box::new(move || {
                let told = of_semaphore(&binary.acquire());
                told.max(u64::from(binary.release().is_err()) * code::ERROR)
            })
        },
        done: |s| s.binary_semaphore("binary").is_ok_and(|binary| !binary.is_taken()),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "RwLock: a writer, and a reader who waits",
        waker: |s| holds(cast::rwlock(s).write()),
        sleeper: |s| {
            let rwlock = cast::rwlock(s);
            Box::new(move || of_lock(rwlock.read()))
        },
        done: no_writer,
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "RwLock: a writer, and another who waits",
        waker: |s| holds(cast::rwlock(s).write()),
        sleeper: write_once,
        done: no_writer,
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "RwLock: a reader, and a writer who waits",
        waker: |s| holds(cast::rwlock(s).read()),
        sleeper: write_once,
        done: |s| s.rwlock("rwlock", wide(0)).is_ok_and(|rwlock| rwlock.readers() == 0),
        owed: true,
        instead: nothing,
        for_all: true,
    },
    Case {
        name: "Condvar: wait_while, notify_all",
        waker: |s| change_and_notify(s, true),
        sleeper: wait_for_change,
        done: is_changed,
        owed: false,
        instead: |s| change_and_notify(s, true),
        for_all: true,
    },
    Case {
        name: "Condvar: wait_while, notify_one",
        waker: |s| change_and_notify(s, false),
        sleeper: wait_for_change,
        done: is_changed,
        owed: false,
        instead: |s| change_and_notify(s, false),
        for_all: false,
    },
    Case {
        name: "Event",
        waker: set_event,
        sleeper: |s| {
            let event = cast::event(s);
            Box::new(move || of_event(&event.wait()))
        },
        done: |s| s.event("event").is_ok_and(|event| event.is_set()),
        owed: false,
        instead: set_event,
        for_all: true,
    },
    Case {
        name: "Barrier: the last one comes",
        waker: come,
        sleeper: come,
        done: |s| s.barrier("barrier", 2).is_ok_and(|barrier| barrier.waiting() == 0),
        owed: true,
        instead: nothing,
        for_all: false,
    },
    Case {
        name: "Once: wait",
        waker: cast::roles::once_call,
        sleeper: |s| {
            let once = cast::once(s);
            Box::new(move || of_once(&once.wait()))
        },
        done: |s| s.once("once").is_ok_and(|once| once.is_completed()),
        owed: false,
        instead: cast::roles::once_call,
        for_all: true,
    },
];

fn announce(segment: &Segment) -> Play {
    let signals = cast::signals(segment);
    Box::new(move || u64::from(signals.release().is_err()) * code::ERROR)
}

fn write_once(segment: &Segment) -> Play {
    let rwlock = cast::rwlock(segment);
    Box::new(move || of_lock(rwlock.write()))
}

/// A writer first lets newcomers in, and only then gives up the lock for which the others have queued.
fn no_writer(segment: &Segment) -> bool {
    let rwlock = segment.objects().into_iter().find(|object| object.name == "rwlock").expect("it was made");
    let word = segment.mapping().place::<AtomicU32>(rwlock.object.offset).expect("its first word");
    word.load(Ordering::SeqCst) & TID == 0
}

fn set_event(segment: &Segment) -> Play {
    let event = cast::event(segment);
    Box::new(move || of_event(&event.set()))
}

fn come(segment: &Segment) -> Play {
    let barrier = cast::barrier(segment);
    Box::new(move || of_barrier(&barrier.wait()))
}

fn wait_for_change(segment: &Segment) -> Play {
    let (mutex, condvar) = (cast::mutex(segment), cast::condvar(segment));
    Box::new(move || match mutex.lock() {
        Ok(guard) => of_condvar(&condvar.wait_while(guard, |data| *data == wide(0))),
        other => of_lock(other),
    })
}

fn change_and_notify(segment: &Segment, all: bool) -> Play {
    let (mutex, condvar) = (cast::mutex(segment), cast::condvar(segment));
    Box::new(move || {
        let mut guard = match mutex.lock().or_else(|e| e.repair(|_| ())) {
            Ok(guard) => guard,
            other => return of_lock(other),
        };
        *guard = wide(1);
        let told = if all { condvar.notify_all(&guard) } else { condvar.notify_one(&guard) };
        u64::from(told.is_err()) * code::ERROR
    })
}

/// True if it can be seen: nobody has the lock.
fn is_changed(segment: &Segment) -> bool {
    segment.mutex("mutex", wide(0)).is_ok_and(|mutex| match mutex.try_lock() {
        Ok(guard) | Err(LockError::OwnerDied(guard)) => *guard == wide(1),
        Err(_) => false,
    })
}

/// A lock that knows its owner and takes over from dead ones, but whose waiters sleep until they are woken.
const PLANTED: Case = Case {
    name: "(planted) futex lock with an endless wait",
    waker: |s| {
        let word = &cast::flawed(s)[0];
        flawed_lock(word);
        Box::new(move || flawed_unlock(word))
    },
    sleeper: |s| {
        let word = &cast::flawed(s)[0];
        Box::new(move || {
            flawed_lock(word);
            flawed_unlock(word)
        })
    },
    done: |s| cast::flawed_words(s)[0].load(Ordering::SeqCst) == 0,
    owed: true,
    instead: nothing,
    for_all: true,
};

const FLAWED_WAITERS: u32 = 1 << 31;

fn flawed_lock(word: &AtomicU32) {
    let me = std::process::id();
    if word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return;
    }
    loop {
        let seen = word.load(Ordering::Relaxed);
        let free = seen & !FLAWED_WAITERS == 0 || !Linux.thread_exists(seen & !FLAWED_WAITERS);
        let wanted = if free { me | FLAWED_WAITERS } else { seen | FLAWED_WAITERS };
        if word.compare_exchange(seen, wanted, Ordering::Acquire, Ordering::Relaxed).is_err() {
            continue;
        }
        if free {
            return;
        }
        Linux.wait(word, wanted, &[], None);
    }
}

fn flawed_unlock(word: &AtomicU32) -> u64 {
    if word.swap(0, Ordering::Release) & FLAWED_WAITERS != 0 {
        Linux.wake(word, 1);
    }
    code::OK
}

/// What became of the sleepers of one part.
#[derive(Debug, Default)]
struct Part {
    /// Places at which somebody was interrupted.
    places: u64,
    stuck: Vec<(u64, String)>,
    /// The longest delay, in nanoseconds.
    worst: u64,
}

impl Part {
    fn wrong(&mut self, place: u64, what: &str) {
        self.stuck.push((place, what.to_owned()));
    }

    /// The sleeper at `at` must come to its end, after what happened at the moment `since`.
    fn must_end(&mut self, arena: &Arena, at: usize, place: u64, since: u64, limit: Duration) {
        match arena.await_told(at, limit) {
            Some(code::OK | code::OWNER_DIED) => {
                self.worst = self.worst.max(arena.ended(at).saturating_sub(since));
            }
            Some(told) => self.wrong(place, &format!("the sleeper's operation returned {told}")),
            None => self.wrong(place, "the sleeper is stuck"),
        }
    }

    /// Each of them may have taken its whole time.
    fn is_enough(&self) -> bool {
        self.stuck.len() > 3
    }
}

const FIRST: usize = 0;
const SECOND: usize = 1;
const WAKER: usize = 2;
const INSTEAD: usize = 3;

/// The waker is killed, or frozen, at each place.
fn waker_interrupted(board: &Board, case: &Case, dies: bool, limit: Duration, stride: u64) -> Part {
    let mut part = Part::default();
    for place in (0..).step_by(stride as usize) {
        let arena = Arena::new(board, |_| ());
        let mut waker = arena.victim(WAKER, case.waker);
        let sleeper = arena.extra(FIRST, case.sleeper);
        arena.await_asleep(FIRST, &sleeper);
        if !steps(&mut waker, place) {
            break;
        }
        part.places += 1;
        let since = nanos();
        let mut frozen = None;
        if dies {
            waker.kill();
        } else {
            frozen = Some(waker);
        }
        let required = (case.done)(arena.segment()) || dies && case.owed;
        if required && arena.told(FIRST).is_none() {
            part.must_end(&arena, FIRST, place, since, limit);
        }
        if let Some(mut waker) = frozen {
            if !run_to_exit(&mut waker, limit) {
                part.wrong(place, "the waker does not end when it goes on");
            }
        } else if arena.extra(INSTEAD, case.instead).end(limit) != Some(Ending::Status(0)) {
            part.wrong(place, "nobody can do what the dead one did not");
        }
        if arena.await_told(FIRST, limit).is_none() {
            if !required {
                part.wrong(place, "the sleeper is stuck, though others went on");
            }
        } else if sleeper.end(limit) != Some(Ending::Status(0)) {
            part.wrong(place, "the sleeper does not end well");
        }
        if part.is_enough() {
            break;
        }
    }
    part
}

/// Steps until it sleeps; false if it came to its end.
fn fall_asleep(victim: &mut Victim) -> bool {
    loop {
        match one_step(victim) {
            Doing::Stepped => {}
            Doing::Asleep => return true,
            Doing::Over => return false,
        }
    }
}

/// Two sleep; the one that is woken dies at each place after that.
fn woken_dies(board: &Board, case: &Case, limit: Duration, stride: u64) -> Part {
    let mut part = Part::default();
    let (mut place, mut missed) = (0, 0);
    loop {
        let arena = Arena::new(board, |_| ());
        let mut waker = arena.victim(WAKER, case.waker);
        let mut first = arena.victim(FIRST, |segment| {
            // The first sleep of a process asks how many CPUs there are, which is a long way to step.
            let never = segment.event("never").expect("an event");
            assert!(never.wait_timeout(Duration::from_millis(1)).is_err(), "nobody sets it");
            (case.sleeper)(segment)
        });
        assert!(fall_asleep(&mut first), "{}: the sleeper does not sleep", case.name);
        let second = arena.extra(SECOND, case.sleeper);
        arena.await_asleep(SECOND, &second);
        // A slice of its sleep may have ended meanwhile.
        assert!(fall_asleep(&mut first), "{}: the sleeper does not sleep", case.name);
        if !run_to_exit(&mut waker, limit) {
            part.wrong(place, "the waker does not end");
        }
        let awake = loop {
            match one_step(&mut first) {
                Doing::Stepped => break true,
                Doing::Asleep if arena.told(SECOND).is_none() => {}
                Doing::Asleep | Doing::Over => break false,
            }
        };
        if !awake && missed < 10 {
            missed += 1; // the other one was woken: once more
            continue;
        }
        if !steps(&mut first, place) || place > 10_000 {
            break;
        }
        part.places += 1;
        let since = nanos();
        first.kill();
        part.must_end(&arena, SECOND, place, since, limit);
        if arena.told(SECOND).is_some() && second.end(limit) != Some(Ending::Status(0)) {
            part.wrong(place, "the sleeper does not end well");
        }
        if part.is_enough() {
            break;
        }
        (place, missed) = (place + stride, 0);
    }
    part
}

/// One of two sleepers dies asleep, the one that came first or the other one.
fn sleeper_dies(board: &Board, case: &Case, limit: Duration) -> Part {
    let mut part = Part::default();
    for place in 0..2 {
        let arena = Arena::new(board, |_| ());
        let mut waker = arena.victim(WAKER, case.waker);
        let sleeper = || {
            let sleeper = arena.extra(FIRST, case.sleeper);
            arena.await_asleep(FIRST, &sleeper);
            sleeper
        };
        let before = (place == 0).then(sleeper);
        let second = arena.extra(SECOND, case.sleeper);
        arena.await_asleep(SECOND, &second);
        let doomed = before.unwrap_or_else(sleeper);
        drop(doomed); // kills it
        part.places += 1;
        let since = nanos();
        if !run_to_exit(&mut waker, limit) {
            part.wrong(place, "the waker does not end");
        }
        part.must_end(&arena, SECOND, place, since, limit);
    }
    part
}

/// Interrupts at every place, or for a quick run at every seventh.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    let board = Arena::board();
    let mut report = Report::new(MODE);
    let stride = if options.quick { 7 } else { 1 };
    for (_, case) in options.share_of(CASES, |case| case.name) {
        let mut row = Row::new(format!("sleepers: {}", case.name));
        let mut part = |name: &str, found: Part| {
            row.add(name, found.places);
            row.took(Duration::from_nanos(found.worst));
            let bad = found.stuck.into_iter();
            row.found(
                found.places,
                bad.map(|(place, text)| (format!("{name} after {place}"), Verdict::Wedged, text)),
            );
        };
        part("waker dies", waker_interrupted(&board, case, true, HANG, stride));
        part("waker stops", waker_interrupted(&board, case, false, HANG, stride));
        if case.for_all {
            part("woken dies", woken_dies(&board, case, HANG, stride));
            part("sleeper dies", sleeper_dies(&board, case, HANG));
        }
        report.rows.push(row);
    }
    let found = waker_interrupted(&board, &PLANTED, true, Duration::from_millis(200), 1);
    let mut row = Row::new("sleepers: (planted) futex lock, endless wait");
    (row.planted, row.must_fail) = (true, true);
    let bad = found.stuck.into_iter();
    row.found(
        found.places,
        bad.map(|(place, text)| (format!("waker dies after {place}"), Verdict::Wedged, text)),
    );
    report.rows.push(row);
    report
}
