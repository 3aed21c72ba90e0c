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
//! | nobody dies | nobody | the sleeper gets it, while the waker lives on |
//!
//! The longest delay from the interruption to the end of the sleeper's operation is reported, not judged. But a delay can be so
//! long that no wake-up has ended the sleep: a slice of it was over, and the sleeper looked again by itself. That is *late*. It
//! is right while the waker stands between its change and its wake-up. After a death it is not, since any death wakes; if it is
//! late time and again, a wake-up is missing.

use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU32, Linux, Ordering, Platform, TID};
use crossproc_primitives::{LockError, Objects, Value};
use crossproc_segment::Segment;
use crossproc_segment::plain::Plain;
use crossproc_tests::{Board, HANG};

use crate::arena::{
    Arena, Doing, Play, Role, code, fall_asleep, nanos, of_access, of_lock, one_step, run_to_exit,
    run_to_mark, steps,
};
use crate::cast::{self, of_barrier, of_condvar, of_event, of_once, of_semaphore, wide};
use crate::options::Options;
use crate::queue_cast as queues;
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::step::{Ending, Verdict};

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
    Case {
        name: "Queue: a message",
        waker: queues::sends,
        sleeper: queues::waits_for_a_message,
        done: queues::has_message,
        owed: false,
        instead: queues::sends_at_last,
        for_all: true,
    },
    Case {
        name: "Queue: a message, while another one is in hand",
        waker: queues::sends_with_a_message,
        sleeper: queues::waits_for_a_message,
        done: queues::has_message,
        owed: true,
        instead: queues::sends_at_last,
        for_all: true,
    },
    Case {
        name: "Queue: room",
        waker: queues::receives,
        sleeper: queues::waits_for_room,
        done: queues::has_room,
        owed: false,
        instead: queues::receives_at_last,
        for_all: false,
    },
    Case {
        name: "Queue, empty: close",
        waker: queues::closes,
        sleeper: queues::waits_for_a_message,
        done: queues::is_closed,
        owed: false,
        instead: queues::closes_at_last,
        for_all: true,
    },
    Case {
        name: "Queue, full: close",
        waker: queues::fills_and_closes,
        sleeper: queues::waits_for_room,
        done: queues::is_closed,
        owed: false,
        instead: queues::closes_at_last,
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

/// A lock that knows its owner and takes over from dead ones, but whose waiters sleep until they are woken: for ever,
const ENDLESS: Case = Case {
    name: "(planted) futex lock, endless wait",
    waker: |s| {
        let word = &cast::flawed(s)[0];
        flawed_lock(word, None);
        Box::new(move || flawed_unlock(word))
    },
    sleeper: |s| flawed_sleeper(s, None),
    done: |s| cast::flawed_words(s)[0].load(Ordering::SeqCst) == 0,
    owed: true,
    instead: nothing,
    for_all: true,
};

/// or until they look again by themselves.
const SLICED: Case = Case {
    name: "(planted) futex lock, nobody told of a death",
    sleeper: |s| flawed_sleeper(s, Some(Duration::from_millis(50))),
    ..ENDLESS
};

fn flawed_sleeper(segment: &Segment, slice: Option<Duration>) -> Play {
    let word = &cast::flawed(segment)[0];
    Box::new(move || {
        flawed_lock(word, slice);
        flawed_unlock(word)
    })
}

const FLAWED_WAITERS: u32 = 1 << 31;

fn flawed_lock(word: &AtomicU32, slice: Option<Duration>) {
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
        Linux.wait(word, wanted, &[], slice.map(|slice| Linux.now().saturating_add(slice)));
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
    /// The longest delay, in nanoseconds,
    worst: u64,
    /// and how often it was longer than [`LATE`].
    late: u64,
}

/// No wake-up takes as long, unless the machine is overloaded; what is left of a slice of the sleep does (50 ms at least, see
/// `sync/wait.rs`).
const LATE: Duration = Duration::from_millis(10);

impl Part {
    fn wrong(&mut self, place: u64, what: &str) {
        self.stuck.push((place, what.to_owned()));
    }

    /// The sleeper at `at` must come to its end, after what happened at the moment `since`.
    fn must_end(&mut self, arena: &Arena, at: usize, place: u64, since: u64, limit: Duration) {
        match arena.await_told(at, limit) {
            Some(code::OK | code::OWNER_DIED) => self.took(arena.ended(at).saturating_sub(since)),
            Some(told) => self.wrong(place, &format!("the sleeper's operation returned {told}")),
            None => self.wrong(place, "the sleeper is stuck"),
        }
    }

    fn took(&mut self, nanos: u64) {
        self.worst = self.worst.max(nanos);
        self.late += u64::from(Duration::from_nanos(nanos) > LATE);
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

/// A wake-up is missing if the sleeper was late as often in a row: once, the machine may have been busy with something else.
const TRIES: u32 = 10;

/// Interrupts at each of the places. `interrupt` returns how many instructions there are if that is less than it was asked for.
/// If who is interrupted `dies`, no sleeper must be late.
fn at_each(
    options: &Options,
    dies: bool,
    mut interrupt: impl FnMut(&mut Part, u64) -> Result<(), u64>,
) -> Part {
    let length = || interrupt(&mut Part::default(), u64::MAX).expect_err("there is an end");
    let places = options.places(length);
    let mut part = Part::default();
    for place in places {
        let late = part.late;
        if part.is_enough() || interrupt(&mut part, place).is_err() {
            break;
        }
        part.places += 1;
        for _ in 1..TRIES {
            if !dies || part.late == late || part.is_enough() {
                break;
            }
            part.late = late;
            let _ = interrupt(&mut part, place);
        }
        if dies && part.late > late {
            part.wrong(place, "nobody wakes the sleeper: it sleeps until a slice of its sleep is over");
        }
    }
    part
}

/// The role, by a process that has locked and slept before: the first time takes long to step through.
fn rested(role: Role) -> impl FnOnce(&Segment) -> Play {
    move |segment| {
        drop(segment.lock("rest").expect("a lock").lock());
        let never = segment.event("never").expect("an event");
        assert!(never.wait_timeout(Duration::from_millis(1)).is_err(), "nobody sets it");
        role(segment)
    }
}

/// The waker is killed, or frozen, at each place.
fn waker_interrupted(board: &Board, case: &Case, dies: bool, limit: Duration, options: &Options) -> Part {
    at_each(options, dies, |part, place| {
        let arena = Arena::new(board, |_| ());
        let mut waker = arena.victim(WAKER, rested(case.waker));
        let sleeper = arena.extra(FIRST, case.sleeper);
        arena.await_asleep(FIRST, &sleeper);
        if !steps(&mut waker, place) {
            return Err(waker.count());
        }
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
        Ok(())
    })
}

/// How often the other sleeper may be woken instead.
const MISSES: u32 = 10;

/// Two sleep; the one that is woken dies at each place after that. The waker lives on: its death would wake the other one.
fn woken_dies(board: &Board, case: &Case, limit: Duration, options: &Options) -> Part {
    at_each(options, true, |part, place| {
        for _ in 0..MISSES {
            let arena = Arena::new(board, |_| ());
            let mut waker = arena.victim(WAKER, rested(case.waker));
            let mut first = arena.victim(FIRST, rested(case.sleeper));
            // It comes before the first one sleeps: that one would wake, and be the last to sleep.
            let second = arena.ready_extra(SECOND, case.sleeper);
            assert!(fall_asleep(&mut first), "{}: the sleeper does not sleep", case.name);
            arena.go_on(SECOND);
            arena.await_asleep(SECOND, &second);
            // A slice of its sleep may have ended meanwhile.
            assert!(fall_asleep(&mut first), "{}: the sleeper does not sleep", case.name);
            let since = nanos();
            if !run_to_mark(&mut waker, limit) {
                part.wrong(place, "the waker does not end");
            }
            let awake = loop {
                match one_step(&mut first) {
                    Doing::Stepped => break true,
                    Doing::Asleep if arena.told(SECOND).is_none() => {}
                    Doing::Asleep | Doing::Over => break false,
                }
            };
            if !awake {
                continue;
            }
            part.took(nanos() - since);
            let asleep = first.count();
            if !steps(&mut first, place) {
                return Err(first.count() - asleep);
            }
            let since = nanos();
            first.kill();
            part.must_end(&arena, SECOND, place, since, limit);
            if arena.told(SECOND).is_some() && second.end(limit) != Some(Ending::Status(0)) {
                part.wrong(place, "the sleeper does not end well");
            }
            return Ok(());
        }
        part.wrong(place, "always the other sleeper is woken");
        Err(0)
    })
}

/// One of two sleepers dies asleep, the one that came first or the other one. The waker lives on.
fn sleeper_dies(board: &Board, case: &Case, limit: Duration) -> Part {
    at_each(&Options::default(), true, |part, place| {
        if place > 1 {
            return Err(1);
        }
        let arena = Arena::new(board, |_| ());
        let mut waker = arena.victim(WAKER, rested(case.waker));
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
        let since = nanos();
        if !run_to_mark(&mut waker, limit) {
            part.wrong(place, "the waker does not end");
        }
        part.must_end(&arena, SECOND, place, since, limit);
        Ok(())
    })
}

/// The waker comes to its end and lives on: only it can have woken the sleeper.
fn nobody_dies(board: &Board, case: &Case, limit: Duration) -> Part {
    at_each(&Options::default(), true, |part, place| {
        if place > 0 {
            return Err(0);
        }
        let arena = Arena::new(board, |_| ());
        let mut waker = arena.victim(WAKER, rested(case.waker));
        let sleeper = arena.extra(FIRST, case.sleeper);
        arena.await_asleep(FIRST, &sleeper);
        let since = nanos();
        if !run_to_mark(&mut waker, limit) {
            part.wrong(place, "the waker does not end");
        }
        part.must_end(&arena, FIRST, place, since, limit);
        Ok(())
    })
}

/// Interrupts at every place, or for a quick run at a sample of them.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    let board = Arena::board();
    let mut report = Report::new(MODE);
    for (_, case) in options.share_of(CASES, |case| case.name) {
        let mut row = Row::new(format!("sleepers: {}", case.name));
        let mut part = |name: &str, try_it: &dyn Fn() -> Part| {
            let started = Instant::now();
            let found = try_it();
            eprintln!(
                "sleepers: {}: {name}: {} places in {:.1?}, {} bad; the longest delay {:.1?}, {} late",
                case.name,
                found.places,
                started.elapsed(),
                found.stuck.len(),
                Duration::from_nanos(found.worst),
                found.late,
            );
            row.add(name, found.places);
            row.add("late", found.late);
            row.took(Duration::from_nanos(found.worst));
            let bad = found.stuck.into_iter();
            row.found(
                found.places,
                bad.map(|(place, text)| (format!("{name} after {place}"), Verdict::Wedged, text)),
            );
        };
        part("nobody dies", &|| nobody_dies(&board, case, HANG));
        part("waker dies", &|| waker_interrupted(&board, case, true, HANG, options));
        part("waker stops", &|| waker_interrupted(&board, case, false, HANG, options));
        if case.for_all {
            part("woken dies", &|| woken_dies(&board, case, HANG, options));
            part("sleeper dies", &|| sleeper_dies(&board, case, HANG));
        }
        report.rows.push(row);
    }
    let all = Options::default();
    for case in [&ENDLESS, &SLICED] {
        let found = waker_interrupted(&board, case, true, Duration::from_millis(200), &all);
        let mut row = Row::new(format!("sleepers: {}", case.name));
        (row.planted, row.must_fail) = (true, true);
        let bad = found.stuck.into_iter();
        row.found(
            found.places,
            bad.map(|(place, text)| (format!("waker dies after {place}"), Verdict::Wedged, text)),
        );
        report.rows.push(row);
    }
    report
}
