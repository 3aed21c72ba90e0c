//! What a barrier does, as the threads of one process see it.
#![allow(missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{Barrier, BarrierError, BarrierTurn, BrokenBy, Objects};
use crossproc_segment::{ErrorKind, Segment};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const HANG: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(20);

const fn broken<T>(why: BrokenBy) -> Result<T, BarrierError> {
    Err(BarrierError::Broken(why))
}

/// Waits until so many wait.
#[track_caller]
fn await_waiting(barrier: &Barrier, count: usize) {
    let started = Instant::now();
    while barrier.waiting() != count {
        assert!(started.elapsed() < HANG, "{barrier:?} instead of {count}");
        thread::yield_now();
    }
}

/// What becomes of one that waits when `then` is called.
fn waiter_when(barrier: &Barrier, then: impl FnOnce()) -> Result<BarrierTurn, BarrierError> {
    thread::scope(|s| {
        let waiter = s.spawn(|| barrier.wait_timeout(HANG));
        await_waiting(barrier, 1);
        then();
        waiter.join().unwrap()
    })
}

#[test]
fn nobody_passes_before_all_have_come() -> Outcome {
    const PARTIES: u32 = 4;
    const TURNS: u32 = 500;
    let barrier = Barrier::new(PARTIES as usize)?;
    let (come, places) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|s| {
        for _ in 0..PARTIES {
            s.spawn(|| {
                for turn in 0..TURNS {
                    come.fetch_add(1, Ordering::Relaxed);
                    let passed = barrier.wait_timeout(HANG).unwrap();
                    assert!(come.load(Ordering::Relaxed) >= PARTIES * (turn + 1), "somebody has yet to come");
                    assert_eq!(passed.is_last, passed.index == 3);
                    // Each place is taken once a turn.
                    places.fetch_add(1 << (8 * passed.index), Ordering::Relaxed);
                    barrier.wait_timeout(HANG).unwrap();
                    if passed.is_last {
                        assert_eq!(places.swap(0, Ordering::Relaxed), 0x0101_0101);
                    }
                    barrier.wait_timeout(HANG).unwrap();
                }
            });
        }
    });
    assert_eq!((barrier.waiting(), barrier.parties(), barrier.is_broken()), (0, 4, false));
    barrier.audit()?;
    Ok(())
}

#[test]
fn more_threads_than_parties_take_turns() -> Outcome {
    // Late ones find that several turns have gone by: theirs was complete all the same.
    let (barrier, passed) = (Barrier::new(2)?, AtomicU32::new(0));
    thread::scope(|s| {
        for _ in 0..6 {
            s.spawn(|| {
                loop {
                    match barrier.wait_timeout(HANG) {
                        Ok(_) => passed.fetch_add(1, Ordering::Relaxed),
                        Err(error) => return assert_eq!(error, BarrierError::Broken(BrokenBy::Abort)),
                    };
                }
            });
        }
        let started = Instant::now();
        while passed.load(Ordering::Relaxed) < 20_000 {
            assert!(started.elapsed() < HANG, "{barrier:?}");
            thread::yield_now();
        }
        barrier.abort().unwrap();
    });
    assert_eq!(passed.load(Ordering::Relaxed) % 2, 0, "two by two");
    Ok(())
}

#[test]
fn one_party_passes_at_once() -> Outcome {
    let barrier = Barrier::new(1)?;
    let alone = BarrierTurn { index: 0, is_last: true };
    assert_eq!(barrier.wait(), Ok(alone));
    assert_eq!(barrier.try_wait(), Ok(alone));
    assert_eq!(barrier.wait_timeout(Duration::ZERO), Ok(alone));
    assert_eq!(barrier.wait_deadline(Instant::now()), Ok(alone));
    Ok(())
}

#[test]
fn a_try_passes_only_as_the_last_one() -> Outcome {
    let barrier = Barrier::new(2)?;
    assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock));
    assert_eq!(barrier.waiting(), 0, "it has not come");
    let mut tried = None;
    let waited = waiter_when(&barrier, || tried = Some(barrier.try_wait()));
    assert_eq!(waited, Ok(BarrierTurn { index: 0, is_last: false }));
    assert_eq!(tried, Some(Ok(BarrierTurn { index: 1, is_last: true })));
    Ok(())
}

#[test]
fn a_timeout_breaks_it_for_all_until_it_is_reset() -> Outcome {
    let barrier = Barrier::new(3)?;
    let waited = waiter_when(&barrier, || {
        for limit in [0, 30].map(Duration::from_millis) {
            let started = Instant::now();
            assert_eq!(barrier.wait_timeout(limit), broken(BrokenBy::Timeout));
            assert!(started.elapsed() >= limit || !limit.is_zero(), "only the first one had to wait");
        }
    });
    assert_eq!(waited, broken(BrokenBy::Timeout));
    assert!(barrier.is_broken());
    assert_eq!(barrier.waiting(), 0);
    assert_eq!(barrier.wait(), broken(BrokenBy::Timeout), "who comes is told at once");
    assert_eq!(barrier.try_wait(), broken(BrokenBy::Timeout));
    barrier.abort()?;
    assert_eq!(barrier.wait(), broken(BrokenBy::Timeout), "the first reason stays");
    barrier.audit()?;
    barrier.reset()?;
    assert!(!barrier.is_broken());
    thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| barrier.wait_timeout(HANG).unwrap());
        }
    });

    let (started, limit) = (Instant::now(), Duration::from_millis(120));
    assert_eq!(barrier.wait_deadline(started + limit), broken(BrokenBy::Timeout));
    assert!(started.elapsed() >= limit, "gave up early");
    Ok(())
}

#[test]
fn abort_and_reset_are_told_to_those_who_wait() -> Outcome {
    let barrier = Barrier::new(2)?;
    barrier.reset()?;
    assert_eq!(waiter_when(&barrier, || barrier.abort().unwrap()), broken(BrokenBy::Abort));
    assert_eq!(barrier.wait(), broken(BrokenBy::Abort));
    barrier.reset()?;
    assert_eq!(waiter_when(&barrier, || assert_eq!(barrier.reset(), Ok(0))), broken(BrokenBy::Reset));
    assert!(!barrier.is_broken(), "and at once usable again");
    assert_eq!(
        waiter_when(&barrier, || assert!(barrier.wait().unwrap().is_last)).map(|turn| turn.index),
        Ok(0)
    );
    barrier.abort()?;
    assert_eq!(barrier.wait(), broken(BrokenBy::Abort), "also if nobody waits");
    Ok(())
}

#[test]
fn the_reason_of_a_broken_turn_reaches_those_who_look_late() -> Outcome {
    // Broken and reset again at once, several times: the waiter may wake up at any time.
    let barrier = Barrier::new(2)?;
    for _ in 0..500 {
        let waited = waiter_when(&barrier, || {
            barrier.abort().unwrap();
            for _ in 0..3 {
                barrier.reset().unwrap();
                assert_eq!(barrier.wait_timeout(Duration::ZERO), broken(BrokenBy::Timeout));
            }
            barrier.reset().unwrap();
        });
        assert_eq!(waited, broken(BrokenBy::Abort));
        // The same for one that was let through.
        let waited = waiter_when(&barrier, || {
            barrier.try_wait().unwrap();
            for _ in 0..3 {
                assert_eq!(barrier.wait_timeout(Duration::ZERO), broken(BrokenBy::Timeout));
                barrier.reset().unwrap();
            }
        });
        assert_eq!(waited, Ok(BarrierTurn { index: 0, is_last: false }));
        barrier.audit()?;
    }
    Ok(())
}

#[test]
fn the_last_one_acts_before_the_others_go_on() -> Outcome {
    const PARTIES: u32 = 3;
    let barrier = Barrier::new(PARTIES as usize)?;
    let acted = AtomicU32::new(0);
    thread::scope(|s| {
        for n in 0..PARTIES {
            let (barrier, acted) = (&barrier, &acted);
            s.spawn(move || {
                let act = || {
                    thread::sleep(Duration::from_millis(1));
                    acted.fetch_add(1, Ordering::Relaxed);
                };
                for turn in 1..=50 {
                    match n {
                        0 => barrier.wait_then(act),
                        1 => barrier.wait_then_timeout(HANG, act),
                        _ => barrier.wait_then_deadline(Instant::now() + HANG, act),
                    }
                    .unwrap();
                    assert_eq!(acted.load(Ordering::Relaxed), turn, "once a turn");
                    barrier.wait().unwrap();
                }
            });
        }
    });
    Ok(())
}

#[test]
fn who_comes_while_the_action_runs_belongs_to_the_next_turn() -> Outcome {
    let barrier = Barrier::new(1)?;
    let (acting, go) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|s| {
        let last = s.spawn(|| {
            barrier.wait_then(|| {
                acting.store(1, Ordering::SeqCst);
                while go.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
            })
        });
        while acting.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock));
        barrier.audit().unwrap();
        let next = s.spawn(|| barrier.wait_timeout(HANG));
        thread::sleep(SOON);
        assert!(!next.is_finished());
        go.store(1, Ordering::SeqCst);
        last.join().unwrap().unwrap();
        next.join().unwrap().unwrap();
    });
    Ok(())
}

#[test]
fn an_action_that_takes_too_long_for_those_who_wait_has_run_in_vain() -> Outcome {
    let barrier = Barrier::new(2)?;
    thread::scope(|s| {
        let waiter = s.spawn(|| barrier.wait_timeout(SOON));
        await_waiting(&barrier, 1);
        let acted = barrier.wait_then(|| assert_eq!(waiter.join().unwrap(), broken(BrokenBy::Timeout)));
        assert_eq!(acted, broken(BrokenBy::Timeout));
    });
    // One that comes while it runs has no place in this turn, and breaks nothing when its time is up.
    barrier.reset()?;
    let waited = waiter_when(&barrier, || {
        let late = || assert_eq!(barrier.wait_timeout(Duration::ZERO), Err(BarrierError::TimedOut));
        assert!(barrier.wait_then(late).unwrap().is_last);
    });
    assert_eq!(waited.map(|turn| turn.index), Ok(0));
    Ok(())
}

#[test]
fn a_panic_in_the_action_breaks_it() -> Outcome {
    let barrier = Barrier::new(2)?;
    let waited = waiter_when(&barrier, || {
        let panicking = AssertUnwindSafe(|| barrier.wait_then(|| panic!("on purpose")));
        assert!(catch_unwind(panicking).is_err());
    });
    assert_eq!(waited, broken(BrokenBy::Panic));
    assert_eq!(barrier.wait(), broken(BrokenBy::Panic));
    Ok(())
}

#[test]
fn a_number_that_can_not_be_is_refused() -> Outcome {
    for parties in [0, 65_536, usize::MAX] {
        assert_eq!(Barrier::new(parties).unwrap_err().kind(), ErrorKind::InvalidLength);
    }
    assert_eq!(Barrier::new(65_535)?.parties(), 65_535);
    let segment = Segment::anonymous(16 * 1024)?;
    let barrier = segment.barrier("start", 2)?;
    let error = segment.barrier("start", 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert!(error.to_string().contains("2 parties, not 3"), "{error}");
    let same = segment.barrier("start", 2)?;
    assert_eq!(
        waiter_when(&barrier, || assert!(same.try_wait().unwrap().is_last)).map(|turn| turn.index),
        Ok(0)
    );
    Ok(())
}

#[test]
fn errors_say_what_to_do() {
    for why in [BrokenBy::PartyDied, BrokenBy::Timeout, BrokenBy::Abort, BrokenBy::Panic] {
        assert!(BarrierError::Broken(why).to_string().contains("`reset` it"), "{why:?}");
    }
    assert!(BarrierError::Broken(BrokenBy::Reset).to_string().contains("wait again"));
    assert!(BarrierError::NotAttached.to_string().contains("attach again"));
    assert!(BarrierError::WouldBlock.to_string().contains("yet to come"));
}

#[test]
fn a_party_that_panics_breaks_it() -> Outcome {
    let segment = Segment::anonymous(64 * 1024)?;
    let barrier = segment.barrier("it", 2)?;
    let own = segment.barrier("it", 2)?; // a registration of its own
    let panicking = AssertUnwindSafe(move || {
        let _own = own;
        panic!("on purpose");
    });
    assert!(catch_unwind(panicking).is_err());
    assert_eq!(barrier.wait_timeout(HANG), broken(BrokenBy::Panic));
    Ok(())
}
