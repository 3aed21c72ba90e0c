//! What a condition variable does, as the threads of one process see it.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{
    Condvar, CondvarError, Guard, Lock, LockError, Mutex, NotifyError, Objects, RLock,
};
use crossproc_segment::Segment;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const HANG: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(20);

fn said<G>(result: Result<G, CondvarError<G>>) -> String {
    match result {
        Ok(_) => "Ok".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

#[test]
fn a_notified_waiter_has_the_lock_again() -> Outcome {
    let (mutex, changed) = (Mutex::new(0_u32)?, Condvar::new()?);
    thread::scope(|s| {
        let waiter = s.spawn(|| {
            let mut guard = mutex.lock().unwrap();
            *guard = 1;
            let guard = changed.wait_while(guard, |n| *n == 1).unwrap();
            assert_eq!(mutex.try_lock().err(), Some(LockError::WouldDeadlock), "it holds the lock");
            *guard
        });
        // Once it is 1 and the lock can be had, the other one waits.
        loop {
            let mut guard = mutex.lock().unwrap();
            if *guard == 1 {
                *guard = 2;
                changed.notify_one(&guard).unwrap();
                break;
            }
            drop(guard);
            thread::yield_now();
        }
        assert_eq!(waiter.join().unwrap(), 2);
    });
    assert!(!mutex.is_locked());
    changed.audit()?;
    Ok(())
}

#[test]
fn who_waits_in_vain_is_told_at_the_deadline_and_has_the_lock() -> Outcome {
    let (lock, changed) = (Lock::new()?, Condvar::new()?);
    for limit in [0, 1, 30, 120].map(Duration::from_millis) {
        let started = Instant::now();
        let error = changed.wait_timeout(lock.lock()?, limit).unwrap_err();
        assert!(started.elapsed() >= limit, "gave up early");
        assert_eq!(format!("{error:?}"), "TimedOut(Some(..))");
        assert!(lock.is_mine());
        let guard = error.into_guard().expect("it is held");

        let deadline = Instant::now() + limit;
        assert_eq!(said(changed.wait_while_deadline(guard, deadline, |()| true)), "TimedOut(Some(..))");
        assert!(Instant::now() >= deadline, "gave up early");
        assert!(!lock.is_mine(), "the guard went with the error");
    }
    assert_eq!(said(changed.wait_deadline(lock.lock()?, Instant::now())), "TimedOut(Some(..))");
    Ok(())
}

#[test]
fn a_condition_that_ends_without_a_notification_is_seen_at_the_deadline() -> Outcome {
    let (mutex, changed) = (Mutex::new(0_u32)?, Condvar::new()?);
    let mut asked = 0;
    let guard = changed.wait_while_timeout(mutex.lock()?, SOON, |n| {
        asked += 1;
        *n = asked;
        asked < 2
    })?;
    assert_eq!(*guard, 2);
    Ok(())
}

#[test]
fn no_wait_lasts_past_its_deadline_whoever_has_the_lock() -> Outcome {
    let (lock, changed) = (Lock::new()?, Condvar::new()?);
    let (asking, over) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|s| {
        let waiter = s.spawn(|| {
            let guard = lock.lock().unwrap();
            asking.store(1, Ordering::SeqCst);
            let told = said(changed.wait_timeout(guard, SOON));
            over.store(1, Ordering::SeqCst);
            assert!(!lock.is_mine());
            assert_eq!(lock.try_lock().err(), Some(LockError::WouldBlock), "somebody else has it");
            told
        });
        while asking.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let guard = lock.lock_timeout(HANG).expect("it is released for the wait");
        let started = Instant::now();
        while over.load(Ordering::SeqCst) == 0 && started.elapsed() < HANG {
            thread::yield_now();
        }
        assert_eq!(over.load(Ordering::SeqCst), 1, "it waits for the lock");
        assert_eq!(waiter.join().unwrap(), "TimedOut(None)");
        drop(guard);
    });
    drop(lock.try_lock()?);
    Ok(())
}

#[test]
fn who_gives_up_passes_its_wake_up_on() -> Outcome {
    // One with a deadline and one without wait; one is notified while the lock is held past the deadline.
    let mut rounds = 0;
    while rounds < 20 {
        let (lock, changed) = (Lock::new()?, Condvar::new()?);
        let (asking, through) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|s| {
            let timed = s.spawn(|| {
                let guard = lock.lock().unwrap();
                asking.fetch_add(1, Ordering::SeqCst);
                said(changed.wait_timeout(guard, Duration::from_millis(60)))
            });
            let patient = s.spawn(|| {
                let guard = lock.lock().unwrap();
                asking.fetch_add(1, Ordering::SeqCst);
                let told = said(changed.wait_timeout(guard, HANG));
                through.store(1, Ordering::SeqCst);
                told
            });
            while asking.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            let guard = lock.lock_timeout(HANG).unwrap();
            thread::sleep(Duration::from_millis(5));
            changed.notify_one(&guard).unwrap();
            // Or its time was up before we had the lock: that round was another one.
            match timed.join().unwrap().as_str() {
                "TimedOut(None)" => rounds += 1,
                told => assert_eq!(told, "TimedOut(Some(..))"),
            }
            drop(guard);
            assert_eq!(patient.join().unwrap(), "Ok", "after {rounds} rounds");
        });
    }
    Ok(())
}

#[test]
fn as_many_are_woken_as_asked_at_least_and_all_if_all() -> Outcome {
    const WAITERS: u32 = 6;
    let (mutex, changed) = (Mutex::new([0_u32; 2])?, Condvar::new()?);
    thread::scope(|s| {
        for _ in 0..WAITERS {
            s.spawn(|| {
                let mut guard = mutex.lock().unwrap();
                guard[0] += 1;
                let mut guard = changed.wait_while(guard, |[_, permits]| *permits == 0).unwrap();
                guard[1] -= 1;
                guard[0] -= 1;
            });
        }
        let until = |count: u32| {
            let started = Instant::now();
            while mutex.lock().unwrap()[0] != count {
                assert!(started.elapsed() < HANG, "never came to {count}");
                thread::yield_now();
            }
        };
        until(WAITERS);
        let give = |permits: usize| {
            let mut guard = mutex.lock().unwrap();
            guard[1] += u32::try_from(permits).unwrap();
            changed.notify_n(&guard, permits).unwrap();
        };
        give(0);
        give(1);
        until(5);
        give(2);
        until(3);
        let mut guard = mutex.lock().unwrap();
        guard[1] = 3;
        changed.notify_all(&guard).unwrap();
        drop(guard);
        until(0);
    });
    Ok(())
}

#[test]
fn an_rlock_is_released_as_deep_as_it_is_held_and_locked_again_as_deep() -> Outcome {
    let (lock, changed) = (RLock::new()?, Condvar::new()?);
    let asking = AtomicU32::new(0);
    thread::scope(|s| {
        let waiter = s.spawn(|| {
            let outer = lock.lock().unwrap();
            let middle = lock.lock().unwrap();
            let inner = lock.lock().unwrap();
            asking.store(1, Ordering::SeqCst);
            let inner = changed.wait_timeout(inner, HANG).unwrap();
            for guard in [inner, outer, middle] {
                assert!(lock.is_mine());
                drop(guard);
            }
            assert!(!lock.is_mine());
        });
        while asking.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let guard = lock.lock_timeout(HANG).expect("it is released altogether");
        let again = lock.lock().unwrap();
        changed.notify_one(&again).unwrap();
        drop((guard, again));
        waiter.join().unwrap();
    });
    drop(lock.try_lock()?);
    Ok(())
}

#[test]
fn another_lock_is_refused() -> Outcome {
    let segment = Segment::anonymous(16 * 1024)?;
    let (changed, other) = (segment.condvar("changed")?, segment.condvar("other")?);
    let locks = [segment.lock("a")?, segment.lock("b")?, Lock::new()?];
    changed.notify_all(&locks[0].lock()?)?;
    for wrong in &locks[1..] {
        assert_eq!(changed.notify_one(&wrong.lock()?), Err(NotifyError::WrongLock));
        assert_eq!(said(changed.wait(wrong.lock()?)), "WrongLock(..)");
        let error = changed.wait_while(wrong.lock()?, |()| false).unwrap_err();
        assert!(wrong.is_mine(), "it is still held");
        drop(error.into_guard().expect("the guard"));
        other.notify_one(&locks[1].lock()?)?;
    }
    // The same lock by another handle.
    let same = segment.lock("a")?;
    assert_eq!(said(segment.condvar("changed")?.wait_timeout(same.lock()?, SOON)), "TimedOut(Some(..))");
    Ok(())
}

#[test]
fn the_mark_of_a_panic_comes_with_the_end_of_the_wait() -> Outcome {
    let (mutex, changed) = (Mutex::new(0_u32)?, Condvar::new()?);
    thread::scope(|s| {
        let waiter = s.spawn(|| {
            let mut guard = mutex.lock().unwrap();
            *guard = 1;
            let error = changed.wait_while_timeout(guard, HANG, |n| *n == 1).unwrap_err();
            assert_eq!(format!("{error:?}"), "Poisoned(..)");
            let mut guard = error.into_guard().unwrap();
            guard.mark_consistent();
            // A closure that panics does so with the lock held.
            let panicking =
                std::panic::AssertUnwindSafe(|| changed.wait_while(guard, |_| panic!("on purpose")));
            assert!(std::panic::catch_unwind(panicking).is_err());
        });
        let panicking = s.spawn(|| {
            loop {
                let guard = mutex.lock().unwrap();
                if *guard == 1 {
                    changed.notify_all(&guard).unwrap();
                    panic!("on purpose");
                }
                drop(guard);
                thread::yield_now();
            }
        });
        assert!(panicking.join().is_err());
        waiter.join().unwrap();
    });
    assert!(matches!(mutex.lock(), Err(LockError::Poisoned(_))), "the second panic");
    Ok(())
}

#[test]
fn a_bounded_buffer_loses_nothing() -> Outcome {
    const ITEMS: u64 = 20_000;
    let (buffer, changed) = (Mutex::new([0_u64; 3])?, Condvar::new()?);
    let sum = thread::scope(|s| {
        let consumers = [(); 2].map(|()| {
            s.spawn(|| {
                let mut sum = 0;
                loop {
                    let mut guard =
                        changed.wait_while(buffer.lock().unwrap(), |[full, ..]| *full == 0).unwrap();
                    let [full, item, taken] = *guard;
                    assert_eq!(full, 1);
                    if item == 0 {
                        return sum;
                    }
                    sum += item;
                    *guard = [0, 0, taken + 1];
                    changed.notify_all(&guard).unwrap();
                }
            })
        });
        for item in (1..=ITEMS).chain([0]) {
            let mut guard = changed.wait_while(buffer.lock().unwrap(), |[full, ..]| *full == 1).unwrap();
            guard[0] = 1;
            guard[1] = item;
            changed.notify_all(&guard).unwrap();
        }
        consumers.map(|consumer| consumer.join().unwrap()).iter().sum::<u64>()
    });
    assert_eq!(sum, ITEMS * (ITEMS + 1) / 2);
    assert_eq!(buffer.lock()?[2], ITEMS);
    Ok(())
}

#[test]
fn errors_become_boxes_that_say_what_to_do() -> Outcome {
    let (lock, changed) = (Lock::new()?, Condvar::new()?);
    let wait = || -> Outcome {
        drop(changed.wait_timeout(lock.lock()?, Duration::ZERO)?);
        Ok(())
    };
    assert!(wait().unwrap_err().to_string().contains("until the deadline"));
    assert!(!lock.is_mine());
    let wait = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        drop(changed.wait_timeout(lock.lock()?, Duration::ZERO)?);
        Ok(())
    };
    assert!(wait().is_err());
    assert!(NotifyError::WrongLock.to_string().contains("another lock"));
    assert!(NotifyError::NotAttached.to_string().contains("attach again"));
    let texts = [
        CondvarError::<()>::TimedOut(None).to_string(),
        CondvarError::PeerDied(()).to_string(),
        CondvarError::OwnerDied(()).to_string(),
        CondvarError::Poisoned(()).to_string(),
        CondvarError::WrongLock(()).to_string(),
        CondvarError::<()>::NotAttached.to_string(),
    ];
    assert_eq!(std::collections::BTreeSet::from(texts).len(), 6);
    Ok(())
}
