//! A forked child has a copy of every handle and takes no part in anything until it attaches.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::time::Duration;

use crossproc_primitives::{
    AccessError, Array, Guard, Lock, LockError, Mutex, Objects, RLock, RawValue, Value,
};
use crossproc_segment::{ErrorKind, Segment, SegmentOptions};
use crossproc_tests::{Board, HANG, await_asleep, child, isolated, join};

use crate::kernel::{End, Forked};
use crate::lock::said;

/// A name that no other test has.
fn name(what: &str) -> String {
    format!("it-fork-{what}-{}", std::process::id())
}

/// Whether `f` panics, without a word on standard error.
fn panics<R>(f: impl FnOnce() -> R) -> bool {
    let hook = take_hook();
    set_hook(Box::new(|_| ()));
    let panicked = catch_unwind(AssertUnwindSafe(f)).is_err();
    set_hook(hook);
    panicked
}

#[test]
fn an_inherited_guard_does_nothing() {
    isolated(|()| {
        let lock = Lock::new().unwrap();
        let rlock = RLock::new().unwrap();
        let mutex = Mutex::new([5_u64; 4]).unwrap();
        let value = Value::new([5_u64; 4]).unwrap();
        let array = Array::from_slice(&[5_u64; 4]).unwrap();
        let guards = (
            lock.lock().unwrap(),
            rlock.lock().unwrap(),
            mutex.lock().unwrap(),
            value.lock().unwrap(),
            array.lock().unwrap(),
        );
        lock.segment().check_attached().unwrap();
        let mut guards = Some(guards);
        let forked = Forked::new(|| drop(guards.take()));
        assert_eq!(forked.end(), End::Exited(0));

        assert!(lock.is_mine() && rlock.is_mine());
        type Handles = (Lock, RLock, Mutex<[u64; 4]>, Value<[u64; 4]>, Array<u64>);
        let others = child(
            |(lock, rlock, mutex, value, array): Handles| {
                [
                    said(&lock.try_lock()),
                    said(&rlock.try_lock()),
                    said(&mutex.try_lock()),
                    said(&value.try_lock()),
                    said(&array.try_lock()),
                ]
            },
            (lock.clone(), rlock.clone(), mutex.clone(), value.clone(), array.clone()),
        );
        assert_eq!(join(others), ["WouldBlock"; 5]);
        drop(guards);
        assert_eq!(said(&lock.try_lock()), "Ok");
        assert_eq!(said(&rlock.try_lock()), "Ok");
        assert_eq!(said(&mutex.try_lock()), "Ok");
        assert_eq!(said(&value.try_lock()), "Ok");
        assert_eq!(said(&array.try_lock()), "Ok");
    });
}

#[test]
fn handles_answer_not_attached_in_a_forked_child() {
    isolated(|()| {
        let segment = Segment::anonymous(16 * 1024).unwrap();
        let lock = segment.lock("lock").unwrap();
        let rlock = segment.rlock("rlock").unwrap();
        let mutex = segment.mutex("mutex", 1_u64).unwrap();
        let (small, large) =
            (segment.value("small", 1_u64).unwrap(), segment.value("large", [1_u64; 8]).unwrap());
        let raw = segment.raw_value("raw", 1_u64).unwrap();
        let array = segment.array("array", &[1_u64, 2]).unwrap();
        let raw_array = segment.raw_array("raw array", &[1_u64, 2]).unwrap();
        let forked = Forked::new(|| {
            assert_eq!(segment.participants().unwrap_err().kind(), ErrorKind::NotAttached);
            assert_eq!(segment.lock("another").unwrap_err().kind(), ErrorKind::NotAttached);
            assert_eq!(said(&lock.lock()), "NotAttached");
            assert_eq!(said(&lock.try_lock()), "NotAttached");
            assert_eq!(said(&lock.lock_timeout(Duration::ZERO)), "NotAttached");
            assert_eq!(lock.acquire(), Err(LockError::NotAttached));
            assert!(lock.release().is_err() && !lock.is_mine());
            assert_eq!(said(&rlock.lock()), "NotAttached");
            assert_eq!(said(&mutex.lock()), "NotAttached");
            assert_eq!(said(&small.lock()), "NotAttached");
            assert_eq!(said(&array.lock()), "NotAttached");
            assert_eq!(small.set(2), Err(AccessError::NotAttached));
            assert_eq!(large.set([2; 8]), Err(AccessError::NotAttached));
            assert_eq!(small.update(|n| n + 1), Err(AccessError::NotAttached));
            assert_eq!(large.update(|n| n), Err(AccessError::NotAttached));
            assert_eq!(raw.set(2), Err(AccessError::NotAttached));
            assert_eq!(array.get(0), Err(AccessError::NotAttached));
            assert_eq!(array.set(0, 2), Err(AccessError::NotAttached));
            assert_eq!(raw_array.set(0, 2), Err(AccessError::NotAttached));
            assert_eq!(raw_array.fetch_add(0, 2), Err(AccessError::NotAttached));
            assert!(panics(|| small.fetch_add(1)) && panics(|| raw.fetch_add(1)));
            assert_eq!(
                small.wait_while_timeout(Duration::from_millis(5), |&n| n == 1),
                Err(AccessError::NotAttached),
                "a sleeper has to announce itself"
            );
            // Reading changes nothing, and a copy of the mapping is enough for it.
            assert_eq!((small.get(), raw.get(), raw_array.get(1)), (Ok(1), Ok(1), Ok(2)));
            assert_eq!(large.get(), Ok([1; 8]));
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!((small.get(), raw.get(), array.to_vec()), (Ok(1), Ok(1), Ok(vec![1, 2])));
        assert_eq!(said(&lock.try_lock()), "Ok");
        assert_eq!(segment.living().unwrap(), 1);
    });
}

#[test]
fn a_forked_child_that_attaches_again_is_a_participant_like_any_other() {
    isolated(|()| {
        let board = Board::new(8);
        let segment = Segment::anonymous(16 * 1024).unwrap();
        let (lock, value) = (segment.lock("lock").unwrap(), segment.value("value", 1_u64).unwrap());
        let guard = lock.lock().unwrap();
        let forked = Forked::new(|| {
            let own = segment.attach_again().unwrap();
            assert_eq!(own.id(), segment.id());
            assert_eq!(own.living().unwrap(), 2);
            let (own_lock, own_value) = (own.lock("lock").unwrap(), own.value("value", 0_u64).unwrap());
            assert_eq!(said(&lock.try_lock()), "NotAttached", "the inherited handle stays what it is");
            assert_eq!(own_value.fetch_add(1), 1);
            assert_eq!(said(&own_lock.try_lock()), "WouldBlock");
            assert_eq!(said(&own_lock.lock_timeout(Duration::from_millis(60))), "TimedOut");
            board.set(0, 1);
            std::mem::forget(own_lock.lock_timeout(HANG).unwrap());
            board.set(0, 2);
            board.await_at_least(1, 1);
        });
        board.await_at_least(0, 1);
        await_asleep(forked.pid());
        assert_eq!(value.get(), Ok(2));
        drop(guard);
        board.await_at_least(0, 2);
        assert_eq!(said(&lock.try_lock()), "WouldBlock");
        board.set(1, 1);
        assert_eq!(forked.end(), End::Exited(0));
        // It ended with the lock.
        let mut guard = lock.lock_timeout(HANG).unwrap_err().into_guard().unwrap();
        guard.mark_consistent();
        drop(guard);
        assert_eq!(said(&lock.try_lock()), "Ok");
        assert_eq!(segment.living().unwrap(), 1);
    });
}

#[test]
fn a_forked_child_that_opens_the_name_is_a_participant_too() {
    isolated(|()| {
        let name = name("open");
        let segment = Segment::create(&name, 4096).unwrap();
        let value = segment.value("value", 1_u64).unwrap();
        let forked = Forked::new(|| {
            let own = Segment::open(&name).unwrap();
            assert_eq!(own.value("value", 0_u64).unwrap().fetch_add(1), 1);
            drop((own, value.clone(), segment.clone()));
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!(value.get(), Ok(2));
        assert_eq!(Segment::open(&name).unwrap().id(), segment.id(), "the name is still there");
        drop((segment, value));
        assert_eq!(Segment::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn what_a_forked_child_drops_is_not_lost_to_its_parent() {
    isolated(|()| {
        let name = name("drop");
        let mut segment = Some(Segment::create(&name, 4096).unwrap());
        let mut value = Some(segment.as_ref().unwrap().value("value", 1_u64).unwrap());
        let forked = Forked::new(|| drop((segment.take(), value.take())));
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!(
            join(child(|name: String| Segment::open(&name).unwrap().living().unwrap(), name.clone())),
            2
        );
        assert_eq!(value.as_ref().unwrap().fetch_add(1), 1);
        assert!(SegmentOptions::new().names().unwrap().contains(&name));
    });
}

#[test]
fn a_forked_child_holds_no_lock_of_its_parent_alive() {
    // The parent dies with the lock while a forked child with a copy of everything lives on.
    isolated(|()| {
        fn hold_and_fork((board, lock): (Board, Lock)) {
            let outer = Lock::new().unwrap();
            let _guards = (outer.lock().unwrap(), lock.lock().unwrap());
            let forked = Forked::new(|| {
                crossproc_tests::tied_to_parent();
                board.set(0, u64::from(std::process::id()));
                board.await_at_least(1, 1);
            });
            std::mem::forget(forked);
            board.await_at_least(0, 1);
            board.set(2, 1);
            loop {
                std::thread::park();
            }
        }
        let (board, lock) = (Board::new(8), Lock::new().unwrap());
        let holder = child(hold_and_fork, (board.clone(), lock.clone()));
        board.await_at_least(2, 1);
        crossproc_tests::kill_and_reap(&holder);
        assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied");
        board.set(1, 1);
    });
}

#[test]
fn values_and_locks_serve_a_family_of_forks() {
    isolated(|()| {
        let segment = Segment::anonymous(16 * 1024).unwrap();
        let (mutex, raw) = (segment.mutex("sum", 0_u64).unwrap(), segment.raw_value("raw", 0_u64).unwrap());
        let _: &RawValue<u64> = &raw;
        let family: Vec<_> = (0..3)
            .map(|_| {
                Forked::new(|| {
                    let own = segment.attach_again().unwrap();
                    let mutex = own.mutex("sum", 0_u64).unwrap();
                    for _ in 0..2000 {
                        *mutex.lock().unwrap() += 1;
                    }
                })
            })
            .collect();
        for forked in family {
            assert_eq!(forked.end(), End::Exited(0));
        }
        assert_eq!(*mutex.lock().unwrap(), 6000);
    });
}
