//! What a `Once` does, as one process sees it. What it does between processes is in the package `tests`.
#![allow(missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{Objects, Once, OnceError};
use crossproc_segment::Segment;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What takes longer than this hangs.
const HANG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);

#[test]
fn it_is_done_once() -> Outcome {
    for _ in 0..200 {
        let (once, count, start) = (Once::new()?, AtomicU64::new(0), Barrier::new(4));
        assert!(!once.is_completed());
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    start.wait();
                    once.call(|_| {
                        count.fetch_add(1, Ordering::Relaxed);
                    })
                    .expect("nobody died");
                    assert_eq!(count.load(Ordering::Relaxed), 1, "it is done when `call` returns");
                });
            }
        });
        assert!(once.is_completed());
        once.audit()?;
    }
    Ok(())
}

#[test]
fn when_it_is_done_nobody_waits_or_fails() -> Outcome {
    let once = Once::new()?;
    once.try_call(|state| assert!(!state.previous_died() && !state.previous_panicked()))?;
    let past = Instant::now();
    once.call(|_| unreachable!("it is done"))?;
    once.try_call(|_| unreachable!("it is done"))?;
    once.call_timeout(Duration::ZERO, |_| unreachable!("it is done"))?;
    once.call_deadline(past, |_| unreachable!("it is done"))?;
    once.wait()?;
    once.wait_timeout(Duration::ZERO)?;
    once.wait_deadline(past)?;
    once.audit()?;
    Ok(())
}

#[test]
fn who_comes_while_it_is_being_done_waits_as_long_as_asked() -> Outcome {
    let (once, inside, go) = (Once::new()?, Barrier::new(2), Barrier::new(2));
    thread::scope(|s| {
        let doing = s.spawn(|| {
            once.call(|_| {
                inside.wait();
                go.wait();
            })
        });
        inside.wait();
        assert_eq!(once.try_call(|_| ()), Err(OnceError::WouldBlock));
        let started = Instant::now();
        assert_eq!(once.call_timeout(SHORT, |_| ()), Err(OnceError::TimedOut));
        assert_eq!(once.call_deadline(started, |_| ()), Err(OnceError::TimedOut));
        assert_eq!(once.wait_timeout(SHORT), Err(OnceError::TimedOut));
        assert_eq!(once.wait_deadline(started), Err(OnceError::TimedOut));
        assert!(started.elapsed() >= 2 * SHORT, "gave up early");
        once.audit().expect("in order");
        let waiting = [s.spawn(|| once.wait()), s.spawn(|| once.call(|_| unreachable!("it is done")))];
        thread::sleep(SHORT);
        assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
        go.wait();
        assert_eq!(doing.join().expect("no panic"), Ok(()));
        for waiter in waiting {
            assert_eq!(waiter.join().expect("no panic"), Ok(()));
        }
    });
    Ok(())
}

#[test]
fn its_own_closure_is_told_not_to_call_it() -> Outcome {
    let once = Once::new()?;
    once.call(|_| {
        assert_eq!(once.call(|_| ()), Err(OnceError::WouldDeadlock));
        assert_eq!(once.try_call(|_| ()), Err(OnceError::WouldDeadlock));
        assert_eq!(once.call_timeout(SHORT, |_| ()), Err(OnceError::WouldDeadlock));
        assert_eq!(once.wait(), Err(OnceError::WouldDeadlock));
        assert!(!once.is_completed());
    })?;
    once.call(|_| unreachable!("it is done"))?;
    Ok(())
}

#[test]
fn after_a_panic_the_next_one_does_it() -> Outcome {
    let (once, inside, go) = (Once::new()?, Barrier::new(2), Barrier::new(2));
    thread::scope(|s| {
        let panicking = s.spawn(|| {
            catch_unwind(AssertUnwindSafe(|| {
                once.call(|_| {
                    inside.wait();
                    go.wait();
                    panic!("on purpose");
                })
            }))
            .is_err()
        });
        inside.wait();
        let only_waits = s.spawn(|| once.wait_timeout(HANG));
        let (told, tell) = channel();
        let shared = &once;
        let next = s.spawn(move || {
            shared.call(|state| {
                told.send((state.previous_died(), state.previous_panicked())).expect("heard");
            })
        });
        thread::sleep(SHORT);
        go.wait();
        assert!(panicking.join().expect("caught"));
        assert_eq!(tell.recv_timeout(HANG), Ok((false, true)));
        assert_eq!(next.join().expect("no panic"), Ok(()));
        assert_eq!(only_waits.join().expect("no panic"), Ok(()), "it does not matter who has done it");
    });
    once.audit()?;
    Ok(())
}

#[test]
fn a_panic_within_the_closure_of_another_is_that_ones() -> Outcome {
    let (outer, inner) = (Once::new()?, Once::new()?);
    outer.call(|_| {
        let panicked = catch_unwind(AssertUnwindSafe(|| inner.call(|_| panic!("on purpose"))));
        assert!(panicked.is_err());
    })?;
    assert!(outer.is_completed() && !inner.is_completed());
    inner.call(|state| assert!(state.previous_panicked()))?;
    Ok(())
}

#[test]
fn it_has_a_name() -> Outcome {
    let segment = Segment::anonymous(16 * 1024)?;
    segment.once("filled")?.call(|_| ())?;
    let same = segment.once("filled")?;
    assert!(same.is_completed());
    assert_eq!(format!("{same:?}"), "Once { is_completed: true, .. }");
    assert!(segment.lock("filled").is_err(), "another kind");
    Ok(())
}
