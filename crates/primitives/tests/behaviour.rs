//! What the types do, as one process sees it. What they do between processes is in the package `tests`.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use crossproc_primitives::{
    AccessError, Array, Lock, LockError, Mutex, Objects, RLock, RawArray, RawValue, Value,
};
use crossproc_segment::{ErrorKind, Segment, SegmentOptions};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[test]
fn a_lock_is_held_until_its_guard_goes() -> Outcome {
    let lock = Lock::new()?;
    let guard = lock.lock()?;
    assert!(lock.is_mine() && lock.is_locked());
    assert_eq!(lock.try_lock().err(), Some(LockError::WouldDeadlock));
    std::thread::scope(|s| {
        s.spawn(|| assert_eq!(lock.try_lock().err(), Some(LockError::WouldBlock)));
        s.spawn(|| {
            let start = Instant::now();
            assert_eq!(lock.lock_timeout(Duration::from_millis(30)).err(), Some(LockError::TimedOut));
            assert!(start.elapsed() >= Duration::from_millis(30), "gave up early");
            let deadline = Instant::now() + Duration::from_millis(30);
            assert_eq!(lock.lock_deadline(deadline).err(), Some(LockError::TimedOut));
            assert!(Instant::now() >= deadline, "gave up early");
            assert_eq!(
                lock.lock_deadline(deadline).err(),
                Some(LockError::TimedOut),
                "a deadline in the past"
            );
        });
    });
    drop(guard);
    assert!(!lock.is_locked());
    drop(lock.try_lock()?);
    Ok(())
}

#[test]
fn acquire_and_release_are_checked() -> Outcome {
    let (lock, other) = (Lock::new()?, Lock::new()?);
    assert!(lock.release().is_err(), "released too many times");
    lock.acquire()?;
    assert_eq!(lock.acquire(), Err(LockError::WouldDeadlock));
    assert!(other.release().is_err(), "another lock");
    std::thread::scope(|s| {
        s.spawn(|| assert!(lock.release().is_err(), "another thread")).join().expect("no panic");
    });
    lock.release()?;
    assert!(lock.release().is_err());
    {
        let _guard = lock.lock()?;
        assert!(lock.release().is_err(), "a guard is not released from under it");
    }
    lock.acquire_timeout(Duration::from_secs(1))?;
    drop(lock.clone());
    lock.release()?;
    Ok(())
}

#[test]
fn a_panic_poisons_until_somebody_says_otherwise() -> Outcome {
    let mutex = Mutex::new(1_u64)?;
    let shared = mutex.clone();
    let panicked = std::thread::spawn(move || {
        let mut guard = shared.lock().expect("nobody died");
        *guard = 2;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    for _ in 0..2 {
        assert!(matches!(mutex.lock(), Err(LockError::Poisoned(guard)) if *guard == 2));
    }
    let guard = mutex.with_repair(|value| *value = 3)?;
    assert_eq!(*guard, 3);
    drop(guard);
    assert_eq!(*mutex.lock()?, 3);
    Ok(())
}

#[test]
fn a_thread_that_ends_with_the_lock_counts_as_dead() -> Outcome {
    let lock = Lock::new()?;
    let inside = lock.clone();
    std::thread::spawn(move || std::mem::forget(inside.lock())).join().expect("no panic");
    match lock.lock() {
        Err(LockError::OwnerDied(_)) => {}
        other => panic!("{other:?}"),
    }
    assert!(matches!(lock.lock(), Err(LockError::OwnerDied(_))), "the mark stays");
    drop(lock.with_repair(|| ())?);
    drop(lock.lock()?);

    let inside = lock.clone();
    std::thread::spawn(move || inside.acquire().expect("free")).join().expect("no panic");
    assert_eq!(lock.acquire(), Err(LockError::OwnerDied(())));
    lock.mark_consistent();
    lock.release()?;
    lock.acquire()?;
    lock.release()?;
    Ok(())
}

#[test]
fn a_leaked_guard_that_gave_references_keeps_its_lock() -> Outcome {
    let mutex = Mutex::new(1_u64)?;
    let alive =
        std::thread::scope(|s| s.spawn(|| &mut **Box::leak(Box::new(mutex.lock().expect("free")))).join());
    let alive = alive.expect("no panic");
    assert_eq!(mutex.try_lock().err(), Some(LockError::WouldBlock), "a second `&mut` to the same data");
    *alive = 2;
    Ok(())
}

#[test]
fn a_panic_that_was_under_way_poisons_nothing() -> Outcome {
    struct Reads<'a>(&'a Array<u8>);
    impl Drop for Reads<'_> {
        fn drop(&mut self) {
            assert_eq!(self.0.get(0), Ok(7));
        }
    }
    let array = Array::from_slice(&[7_u8])?;
    let panicked = std::thread::scope(|s| {
        s.spawn(|| {
            let _reads = Reads(&array);
            panic!("on purpose");
        })
        .join()
    });
    assert!(panicked.is_err());
    assert_eq!(array.get(0)?, 7);
    Ok(())
}

#[test]
fn an_rlock_is_free_when_its_last_guard_is() -> Outcome {
    let lock = RLock::new()?;
    let guards = [lock.lock()?, lock.try_lock()?, lock.lock_timeout(Duration::ZERO)?];
    for guard in guards {
        assert!(lock.is_mine());
        std::thread::scope(|s| {
            s.spawn(|| assert_eq!(lock.try_lock().err(), Some(LockError::WouldBlock))).join()
        })
        .expect("no panic");
        drop(guard);
    }
    assert!(!lock.is_mine() && !lock.is_locked());
    Ok(())
}

#[test]
fn threads_exclude_each_other() -> Outcome {
    let counts = Mutex::new([0_u64; 2])?;
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..20_000 {
                    let mut both = counts.lock().expect("nobody died");
                    both[0] += 1;
                    both[1] += 1;
                }
            });
        }
    });
    assert_eq!(*counts.lock()?, [80_000; 2]);
    Ok(())
}

#[test]
fn values_of_all_sizes_keep_what_is_set() -> Outcome {
    fn check<T: crossproc_segment::plain::Plain + PartialEq + std::fmt::Debug>(
        first: T,
        second: T,
    ) -> Outcome {
        for value in [Value::new(first)?, Segment::anonymous(64 * 1024)?.value("v", first)?] {
            assert_eq!(value.get()?, first);
            value.set(second)?;
            assert_eq!(value.get()?, second);
            assert_eq!(value.update(|_| first)?, first);
            let mut guard = value.lock()?;
            assert_eq!(guard.update(|_| second)?, second);
            guard.set(first);
            assert_eq!(guard.get()?, first);
        }
        let raw = RawValue::new(first)?;
        raw.set(second)?;
        assert_eq!(raw.get()?, second);
        Ok(())
    }
    check(1_u8, 255)?;
    check(true, false)?;
    check('x', 'ß')?;
    check(-1_i64, i64::MIN)?;
    check(1.5_f32, -0.25)?;
    check(u128::MAX, 3)?;
    check([1_u8; 3], [7; 3])?;
    check([5_u64; 32], [6; 32])?;
    check([5_u32; 3000], [6; 3000])?;
    check((), ())?;
    Ok(())
}

#[test]
fn a_value_is_locked_against_larger_writes_only() -> Outcome {
    let (small, large) = (Value::new(1_u64)?, Value::new([1_u64; 2])?);
    let _both = (small.lock()?, large.lock()?);
    small.set(2)?;
    assert_eq!(small.fetch_add(5), 2);
    assert_eq!(small.get()?, 7);
    assert_eq!(large.set([2; 2]), Err(AccessError::WouldDeadlock));
    assert_eq!(large.get()?, [1; 2], "readers are not kept out");
    Ok(())
}

#[test]
fn arithmetic_is_that_of_the_type() -> Outcome {
    let byte = Value::new(250_u8)?;
    assert_eq!(byte.fetch_add(10), 250);
    assert_eq!(byte.get()?, 4);
    assert_eq!(byte.fetch_sub(5), 4);
    assert_eq!(byte.get()?, 255);
    let signed = Value::new(i64::MAX)?;
    signed.fetch_add(1);
    assert_eq!(signed.get()?, i64::MIN);
    let float = Value::new(0.5_f64)?;
    float.fetch_add(0.25);
    assert_eq!(float.get()?, 0.75);
    assert_eq!(float.compare_exchange(0.5, 1.0), Err(0.75));
    assert_eq!(float.compare_exchange(0.75, 1.0), Ok(0.75));
    assert_eq!(float.swap(2.0), 1.0);
    let raw = RawArray::<i16>::from_slice(&[-1, 32767])?;
    assert_eq!(raw.fetch_add(1, 1)?, 32767);
    assert_eq!(raw.to_vec()?, [-1, -32768]);
    assert_eq!(raw.compare_exchange(0, -1, 9)?, Ok(-1));
    assert_eq!(raw.compare_exchange(0, -1, 9)?, Err(9));
    Ok(())
}

#[test]
fn waiting_ends_when_the_value_changes_or_the_time_is_over() -> Outcome {
    let value = Value::new([0_u64; 3])?;
    assert_eq!(value.wait_while_timeout(Duration::from_millis(20), |v| v[0] == 0)?, None);
    std::thread::scope(|s| {
        let waiter = s.spawn(|| value.wait_while(|v| v[2] < 3));
        for n in 1..=3 {
            value.set([n; 3]).expect("nobody died");
        }
        assert_eq!(waiter.join().expect("no panic"), Ok([3; 3]));
    });
    Ok(())
}

#[test]
fn arrays_are_read_and_written_by_index_range_and_guard() -> Outcome {
    let array = Array::from_slice(&[1_u32, 2, 3, 4])?;
    array.set(3, 40)?;
    array.set_slice(1, &[20, 30])?;
    assert_eq!(array.slice(1..=2)?, [20, 30]);
    assert_eq!(array.update(0, |x| x + 9)?, 10);
    assert_eq!(array.iter()?.sum::<u32>(), 100);
    array.lock()?.reverse();
    assert_eq!(array.to_vec()?, [40, 30, 20, 10]);
    array.fill(7)?;
    assert_eq!(array.get(2)?, 7);

    assert_eq!(array.get(4), Err(AccessError::OutOfBounds { index: 4, len: 4 }));
    assert_eq!(array.slice(2..9).err(), Some(AccessError::OutOfBounds { index: 4, len: 4 }));
    assert_eq!(array.set_slice(3, &[1, 2]).err(), Some(AccessError::OutOfBounds { index: 4, len: 4 }));
    assert_eq!(array.slice(usize::MAX..).err(), Some(AccessError::OutOfBounds { index: usize::MAX, len: 4 }));
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let backwards = array.slice(3..1);
    assert!(backwards.is_err());
    let guard = array.lock()?;
    assert_eq!(array.get(0), Err(AccessError::WouldDeadlock));
    drop(guard);

    assert_eq!(Array::<u64>::new(3)?.to_vec()?, [0; 3]);
    assert_eq!(Array::<u64>::new(0).unwrap_err().kind(), ErrorKind::InvalidLength);
    assert_eq!(Array::<u64>::new(usize::MAX).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(Array::<u64>::new(1 << 50).unwrap_err().kind(), ErrorKind::NoMemory);
    assert_eq!(RawArray::from_slice(&[true, false])?.to_vec()?, [true, false]);
    assert_eq!(Array::from_slice(&['a', 'b'])?.to_vec()?, ['a', 'b']);
    assert_eq!(Array::from_slice(&[1_u128 << 100, 2])?.get(0)?, 1 << 100);
    Ok(())
}

#[test]
fn bits_that_are_no_value_are_an_error() -> Outcome {
    let segment = Segment::anonymous(4096)?;
    let flag = segment.value("flag", true)?;
    // A peer that scribbles: bytes of the object behind the typed handle's back.
    let offset = segment.objects()[0].object.offset + 72;
    let word = segment.mapping().place::<crossproc_atomic::AtomicU64>(offset)?;
    word.store(2, crossproc_atomic::Ordering::Relaxed);
    assert!(matches!(flag.get(), Err(AccessError::Invalid(_))));
    assert!(matches!(flag.update(|x| !x), Err(AccessError::Invalid(_))));
    flag.set(false)?;
    assert!(!flag.get()?);

    let small = segment.value("small", 5_u16)?;
    let word =
        segment.mapping().place::<crossproc_atomic::AtomicU64>(segment.objects()[1].object.offset + 72)?;
    word.store(5 | 1 << 40, crossproc_atomic::Ordering::Relaxed);
    assert_eq!(small.compare_exchange(5, 6), Ok(5), "bits that are no part of the number");
    assert_eq!(small.get()?, 6);

    // A large value whose copies are corrupt does not keep a reader for ever.
    let large = segment.value("large", [1_u64; 4])?;
    let offset = segment.objects()[2].object.offset + 128;
    let latest = segment.mapping().place::<crossproc_atomic::AtomicU64>(offset)?;
    latest.store(u64::MAX, crossproc_atomic::Ordering::Relaxed);
    assert_eq!(large.get(), Err(AccessError::Unsteady));
    large.set([2; 4])?;
    assert_eq!(large.get()?, [2; 4]);
    Ok(())
}

#[test]
fn one_name_is_one_object_of_one_type() -> Outcome {
    let segment = SegmentOptions::new().objects(8).anonymous(64 * 1024)?;
    let (a, b) = (segment.mutex("m", 5_u32)?, segment.mutex("m", 6_u32)?);
    *a.lock()? += 1;
    assert_eq!(*b.lock()?, 6);
    assert_eq!(segment.mutex("m", 0_u64).unwrap_err().kind(), ErrorKind::WrongType);
    assert_eq!(segment.value("m", 0_u32).unwrap_err().kind(), ErrorKind::WrongKind);
    segment.array("a", &[1_u8, 2, 3])?;
    assert_eq!(segment.array("a", &[0_u8])?.to_vec()?, [1, 2, 3]);
    assert_eq!(segment.array("a", &[0_u8; 4]).unwrap_err().kind(), ErrorKind::TooSmall);
    segment.lock("l")?.acquire()?;
    assert!(segment.lock("l")?.is_mine());
    segment.lock("l")?.release()?;
    drop(segment.rlock("r")?.lock()?);
    segment.raw_value("rv", 1.0_f32)?.set(2.0)?;
    assert_eq!(segment.raw_array("ra", &[1_i8])?.get(0)?, 1);
    Ok(())
}

#[test]
fn handles_travel_through_a_handover_and_nowhere_else() -> Outcome {
    let array = Array::from_slice(&[1_u16, 2])?;
    assert!(postcard::to_allocvec(&array).is_err(), "outside of a handover");
    let (bytes, descriptors) = crossproc_segment::handover::pack(|| postcard::to_allocvec(&array));
    let bytes = bytes?;
    let again: Array<u16> =
        crossproc_segment::handover::unpack(descriptors, || postcard::from_bytes(&bytes))?;
    again.set(1, 9)?;
    assert_eq!(array.to_vec()?, [1, 9]);
    let (_, descriptors) = crossproc_segment::handover::pack(|| postcard::to_allocvec(&array));
    let other =
        crossproc_segment::handover::unpack(descriptors, || postcard::from_bytes::<Array<u32>>(&bytes));
    assert!(other.is_err(), "another type");
    Ok(())
}
