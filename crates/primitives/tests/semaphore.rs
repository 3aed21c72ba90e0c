//! What semaphores do, as the threads of one process see it. What they do between processes is in the package `tests`.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{
    BinarySemaphore, BoundedSemaphore, Objects, Permit, ReleaseError, Semaphore, SemaphoreError,
};
use crossproc_segment::{ErrorKind, Segment, SegmentOptions};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What takes longer hangs.
const HANG: Duration = Duration::from_secs(30);
const MAX: u32 = (1 << 20) - 1;

#[test]
fn so_many_hold_it_as_there_are_permits() -> Outcome {
    let semaphore = Semaphore::new(3)?;
    let permits: Vec<Permit<'_>> = (0..3).map(|_| semaphore.acquire()).collect::<Result<_, _>>()?;
    assert_eq!((semaphore.available(), semaphore.held()), (0, 3));
    assert_eq!(semaphore.try_acquire().err(), Some(SemaphoreError::WouldBlock));
    let limit = Duration::from_millis(30);
    let started = Instant::now();
    assert_eq!(semaphore.acquire_timeout(limit).err(), Some(SemaphoreError::TimedOut));
    assert!(started.elapsed() >= limit, "gave up early");
    let deadline = Instant::now() + limit;
    assert_eq!(semaphore.acquire_deadline(deadline).err(), Some(SemaphoreError::TimedOut));
    assert!(Instant::now() >= deadline, "gave up early");
    assert_eq!(semaphore.acquire_deadline(deadline).err(), Some(SemaphoreError::TimedOut), "it has passed");
    drop(permits);
    assert_eq!((semaphore.available(), semaphore.held()), (3, 0));
    assert_eq!(semaphore.audit(), Ok(()));
    Ok(())
}

#[test]
fn no_more_are_inside_than_there_are_permits() -> Outcome {
    let (semaphore, inside, most) = (BoundedSemaphore::new(2)?, AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for turn in 0..2000 {
                    let permit =
                        if turn % 8 == 0 { semaphore.acquire_timeout(HANG) } else { semaphore.acquire() };
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit.expect("somebody gives one back"));
                }
            });
        }
    });
    assert_eq!(most.into_inner(), 2, "both were taken at once, and never more");
    assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
    Ok(())
}

#[test]
fn kept_permits_are_released_first_and_then_new_ones_are_added() -> Outcome {
    let semaphore = Semaphore::new(4)?;
    for _ in 0..4 {
        semaphore.acquire()?.keep();
    }
    assert_eq!((semaphore.available(), semaphore.held()), (0, 4));
    semaphore.release()?;
    assert_eq!((semaphore.available(), semaphore.held()), (1, 3));
    semaphore.release_many(2)?;
    assert_eq!((semaphore.available(), semaphore.held()), (3, 1));
    semaphore.release_many(5)?;
    assert_eq!((semaphore.available(), semaphore.held()), (8, 0));
    semaphore.release_many(0)?;
    semaphore.release()?;
    assert_eq!((semaphore.available(), semaphore.held()), (9, 0));
    Ok(())
}

#[test]
fn a_permit_that_was_released_under_its_guard_is_made_up_for() -> Outcome {
    // The sum is that of Python's semaphore, whoever is thought to hold what.
    let semaphore = Semaphore::new(2)?;
    let permit = semaphore.acquire()?;
    semaphore.release()?;
    assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
    drop(permit);
    assert_eq!((semaphore.available(), semaphore.held()), (3, 0));

    let bounded = BoundedSemaphore::new(1)?;
    let permit = bounded.acquire()?;
    bounded.release()?;
    drop(permit);
    assert_eq!((bounded.available(), bounded.held()), (1, 0), "not above the bound");
    Ok(())
}

#[test]
fn what_is_used_up_does_not_come_back() -> Outcome {
    let filled = Semaphore::new(0)?;
    assert_eq!(filled.try_acquire().err(), Some(SemaphoreError::WouldBlock));
    thread::scope(|s| -> Outcome {
        let consumer = s.spawn(|| {
            (0..1000).for_each(|_| filled.acquire().expect("a producer is there").consume());
        });
        for _ in 0..200 {
            filled.release_many(5)?;
        }
        consumer.join().expect("no panic");
        Ok(())
    })?;
    assert_eq!((filled.available(), filled.held()), (0, 0));
    Ok(())
}

#[test]
fn a_release_of_n_lets_n_waiters_go() -> Outcome {
    let (semaphore, through) = (Semaphore::new(0)?, AtomicU32::new(0));
    let await_through = |n| {
        let started = Instant::now();
        while through.load(Ordering::SeqCst) < n {
            assert!(started.elapsed() < HANG, "{n} were to be let go");
            thread::yield_now();
        }
    };
    thread::scope(|s| -> Outcome {
        for _ in 0..6 {
            s.spawn(|| {
                semaphore.acquire().expect("one is released").consume();
                through.fetch_add(1, Ordering::SeqCst);
            });
        }
        for (n, sum) in [(1, 1), (3, 4), (2, 6)] {
            semaphore.release_many(n)?;
            await_through(sum);
            assert_eq!(semaphore.available(), 0);
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn over_release_changes_nothing() -> Outcome {
    let bounded = BoundedSemaphore::new(2)?;
    assert_eq!(bounded.bound(), 2);
    assert_eq!(bounded.release(), Err(ReleaseError::OverRelease));
    let permit = bounded.acquire()?;
    assert_eq!(bounded.release_many(2), Err(ReleaseError::OverRelease));
    assert_eq!((bounded.available(), bounded.held()), (1, 1));
    drop(permit);
    // With more in its hands than are to be released.
    for _ in 0..2 {
        bounded.acquire()?.keep();
    }
    assert_eq!(bounded.release_many(3), Err(ReleaseError::OverRelease));
    assert_eq!((bounded.available(), bounded.held()), (0, 2));
    bounded.release_many(2)?;
    // Used up: there is room again.
    bounded.acquire()?.consume();
    bounded.release()?;
    assert_eq!(bounded.release(), Err(ReleaseError::OverRelease));

    let nothing = BoundedSemaphore::new(0)?;
    assert_eq!(nothing.release(), Err(ReleaseError::OverRelease));

    let many = Semaphore::new(MAX)?;
    assert_eq!(many.release(), Err(ReleaseError::OverRelease));
    many.acquire()?.keep();
    many.release()?;
    many.acquire()?.consume();
    assert_eq!(many.release_many(u32::MAX), Err(ReleaseError::OverRelease));
    many.release()?;
    assert_eq!((many.available(), many.held()), (MAX, 0));
    let message = ReleaseError::OverRelease.to_string();
    assert!(message.contains("more often than it was acquired"), "{message}");
    Ok(())
}

#[test]
fn a_permit_for_which_there_is_no_room_any_more_goes() -> Outcome {
    let semaphore = Semaphore::new(MAX)?;
    let permit = semaphore.acquire()?;
    permit.keep();
    let permit = semaphore.acquire()?;
    semaphore.release()?; // the kept one
    semaphore.release()?; // the one with a guard
    drop(permit);
    assert_eq!((semaphore.available(), semaphore.held()), (MAX, 0));
    assert_eq!(semaphore.audit(), Ok(()));
    Ok(())
}

#[test]
fn more_permits_than_can_be_are_refused() {
    let error = Semaphore::new(MAX + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidLength);
    assert!(error.to_string().contains("1048575"), "{error}");
    assert_eq!(BoundedSemaphore::new(u32::MAX).unwrap_err().kind(), ErrorKind::InvalidLength);
    let segment = Segment::anonymous(16 * 1024).unwrap();
    assert_eq!(segment.semaphore("s", MAX + 1).unwrap_err().kind(), ErrorKind::InvalidLength);
    assert_eq!(segment.bounded_semaphore("s", MAX + 1).unwrap_err().kind(), ErrorKind::InvalidLength);
}

#[test]
fn named_ones_are_one_and_keep_their_first_value() -> Outcome {
    let segment = Segment::anonymous(16 * 1024)?;
    let (one, same) = (segment.semaphore("s", 3)?, segment.semaphore("s", 7)?);
    one.acquire()?.keep();
    assert_eq!((same.available(), same.held()), (2, 1), "one process has them");
    let (bounded, same) = (segment.bounded_semaphore("b", 2)?, segment.bounded_semaphore("b", 9)?);
    bounded.acquire()?.keep();
    assert_eq!((same.bound(), same.available()), (2, 1));
    assert_eq!(segment.bounded_semaphore("s", 3).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(segment.semaphore("b", 3).unwrap_err().kind(), ErrorKind::WrongKind);
    let (turn, same) = (segment.binary_semaphore("t")?, segment.binary_semaphore("t")?);
    turn.acquire()?;
    assert!(same.is_taken());
    assert_eq!(segment.lock("t").unwrap_err().kind(), ErrorKind::WrongKind);
    Ok(())
}

#[test]
fn who_attached_for_reading_only_can_look() -> Outcome {
    let name = format!("semaphore-reader-{}", std::process::id());
    let segment = SegmentOptions::new().create(&name, 16 * 1024)?;
    let (semaphore, turn) = (segment.semaphore("s", 2)?, segment.binary_semaphore("t")?);
    let permit = semaphore.acquire()?;
    turn.acquire()?;
    let reader = SegmentOptions::new().read_only(true).open(&name)?;
    let (seen, seen_turn) = (reader.semaphore("s", 0)?, reader.binary_semaphore("t")?);
    assert_eq!((seen.available(), seen.held()), (1, 0));
    assert_eq!(seen.try_acquire().err(), Some(SemaphoreError::NotAttached));
    assert_eq!(seen.acquire().err(), Some(SemaphoreError::NotAttached));
    assert_eq!(seen.release(), Err(ReleaseError::NotAttached));
    assert_eq!(seen.audit(), Ok(()));
    assert!(seen_turn.is_taken() && seen_turn.holder().is_none());
    assert_eq!(seen_turn.try_acquire(), Err(SemaphoreError::NotAttached));
    assert_eq!(seen_turn.release(), Err(ReleaseError::NotAttached));
    let message = SemaphoreError::NotAttached.to_string();
    assert!(message.contains("attach"), "{message}");
    drop(permit);
    assert_eq!(seen.available(), 2);
    Ok(())
}

#[test]
fn a_permit_is_the_processs_and_may_go_to_another_thread() -> Outcome {
    let semaphore = Semaphore::new(1)?;
    let permit = semaphore.acquire()?;
    thread::scope(|s| s.spawn(move || drop(permit)).join().expect("no panic"));
    assert_eq!((semaphore.available(), semaphore.held()), (1, 0));
    std::mem::forget(semaphore.acquire()?);
    semaphore.release()?;
    assert_eq!(semaphore.available(), 1);
    Ok(())
}

#[test]
fn a_binary_semaphore_is_taken_by_one_and_released_by_anybody() -> Outcome {
    let turn = BinarySemaphore::new()?;
    assert!(!turn.is_taken());
    assert_eq!(turn.release(), Err(ReleaseError::OverRelease));
    turn.acquire()?;
    assert!(turn.is_taken());
    assert_eq!(turn.holder(), Some(std::process::id()));
    assert_eq!(turn.try_acquire(), Err(SemaphoreError::WouldBlock));
    let limit = Duration::from_millis(30);
    let started = Instant::now();
    assert_eq!(turn.acquire_timeout(limit), Err(SemaphoreError::TimedOut));
    assert!(started.elapsed() >= limit, "gave up early");
    assert_eq!(turn.acquire_deadline(Instant::now()), Err(SemaphoreError::TimedOut));
    thread::scope(|s| -> Outcome {
        let waiter = s.spawn(|| turn.acquire_timeout(HANG));
        thread::sleep(Duration::from_millis(5));
        turn.release()?;
        waiter.join().expect("no panic")?;
        Ok(())
    })?;
    turn.release()?;
    assert_eq!((turn.is_taken(), turn.holder()), (false, None));
    assert_eq!(turn.audit(), Ok(()));
    Ok(())
}

#[test]
fn threads_take_turns_by_two_binary_semaphores() -> Outcome {
    let (ping, pong) = (BinarySemaphore::new()?, BinarySemaphore::new()?);
    let sum = AtomicU32::new(0);
    pong.acquire()?;
    thread::scope(|s| {
        s.spawn(|| {
            for turn in 0..500 {
                ping.acquire_timeout(HANG).expect("the other one releases it");
                assert_eq!(sum.swap(2 * turn + 1, Ordering::Relaxed), 2 * turn);
                pong.release().expect("it is taken");
            }
        });
        for turn in 0..500 {
            pong.acquire_timeout(HANG).expect("the other one releases it");
            assert_eq!(sum.swap(2 * turn + 2, Ordering::Relaxed), 2 * turn + 1);
            ping.release().expect("it is taken");
        }
    });
    assert_eq!(sum.into_inner(), 1000);
    Ok(())
}

/// Whatever bits a peer writes into the words: an answer, and no panic.
#[test]
fn scribbled_words_do_no_harm() -> Outcome {
    use crossproc_atomic::AtomicU64;
    use crossproc_segment::plain::Plain;
    use crossproc_segment::{ObjectKind, ObjectSpec, Span};

    let segment = SegmentOptions::new().participants(4).objects(4).anonymous(4096)?;
    let semaphore = segment.semaphore("s", 2)?;
    let bounded = segment.bounded_semaphore("b", 2)?;
    let turn = segment.binary_semaphore("t")?;
    let words = |name: &str, kind: ObjectKind| {
        let spec = ObjectSpec { kind, layout: <()>::LAYOUT, count: 1, bytes: 8, align: 8, windows: 0 };
        let object = segment.open_object(name, &spec)?;
        let span = Span { offset: object.offset, count: object.bytes / 8 };
        segment.mapping().place_slice::<AtomicU64>(span)
    };
    let areas = [
        words("s", ObjectKind::new("Semaphore"))?,
        words("b", ObjectKind::new("BoundedSemaphore"))?,
        words("t", ObjectKind::new("BinarySemaphore"))?,
    ];
    assert_eq!(areas.each_ref().map(|area| area.len()), [16, 16, 2]);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    println!("seed {random:#x}");
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut found = 0;
    for round in 0..20_000_u32 {
        for area in &areas {
            let at = next() as usize % area.len();
            let bits = match next() % 4 {
                0 => 0,
                1 => u64::MAX,
                2 => area[at].load(Ordering::Relaxed) ^ 1 << (next() % 64),
                _ => next(),
            };
            area[at].store(bits, Ordering::Relaxed);
        }
        found += u32::from(semaphore.audit().is_err()) + u32::from(turn.audit().is_err());
        let zero = Duration::ZERO;
        if let Ok(permit) = semaphore.acquire_timeout(zero) {
            if round % 2 == 0 { permit.consume() } else { drop(permit) }
        }
        drop(bounded.try_acquire());
        let _ = (semaphore.release(), bounded.release_many(3), bounded.available(), semaphore.held());
        let _ = (turn.try_acquire(), turn.is_taken(), turn.holder(), turn.acquire_timeout(zero));
        let _ = (turn.release(), format!("{semaphore:?} {bounded:?} {turn:?}"));
    }
    assert!(found > 1000, "the audit saw it {found} times");
    Ok(())
}
