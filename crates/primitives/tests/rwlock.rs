//! What an `RwLock` does, as one process sees it. What it does between processes is in the package `tests`.
#![allow(missing_docs)]

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crossproc_atomic::AtomicU64 as Word;
use crossproc_primitives::{AccessError, Guard, LockError, Objects, RwLock, RwLockReadGuard};
use crossproc_segment::{ErrorKind, Segment, Span};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What takes longer than this hangs.
const HANG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);

/// Waits until a writer has announced itself: from then on new readers are kept out.
fn await_writer(lock: &RwLock<u64>) {
    let started = Instant::now();
    while lock.writer().is_none() {
        assert!(started.elapsed() < HANG, "no writer came");
        thread::yield_now();
    }
}

#[test]
fn many_read_or_one_writes() -> Outcome {
    let lock = RwLock::new(7_u64)?;
    let (first, second) = (lock.read()?, lock.try_read()?);
    assert_eq!((*first, *second, lock.readers(), lock.writer()), (7, 7, 2, None));
    thread::scope(|s| {
        s.spawn(|| {
            assert_eq!(*lock.read_timeout(HANG).expect("shared"), 7);
            assert_eq!(lock.try_write().err(), Some(LockError::WouldBlock));
            let started = Instant::now();
            assert_eq!(lock.write_timeout(SHORT).err(), Some(LockError::TimedOut));
            assert_eq!((lock.writer(), lock.audit()), (None, Ok(())), "it has taken back all that it said");
            assert!(started.elapsed() >= SHORT, "gave up early");
            assert_eq!(
                lock.write_deadline(started).err(),
                Some(LockError::TimedOut),
                "a deadline in the past"
            );
            assert_eq!(*lock.read().expect("a writer that gave up keeps nobody out"), 7);
        });
    });
    drop((first, second));
    let mut guard = lock.write()?;
    *guard += 1;
    assert_eq!((*guard, lock.readers()), (8, 0));
    assert!(lock.writer().is_some());
    thread::scope(|s| {
        s.spawn(|| {
            assert_eq!(lock.try_read().err(), Some(LockError::WouldBlock));
            assert_eq!(lock.try_write().err(), Some(LockError::WouldBlock));
            let started = Instant::now();
            assert_eq!(lock.read_timeout(SHORT).err(), Some(LockError::TimedOut));
            assert!(started.elapsed() >= SHORT, "gave up early");
            let deadline = Instant::now() + SHORT;
            assert_eq!(lock.read_deadline(deadline).err(), Some(LockError::TimedOut));
            assert!(Instant::now() >= deadline, "gave up early");
        });
    });
    drop(guard);
    assert_eq!(*lock.read_deadline(Instant::now() + HANG)?, 8);
    assert_eq!(lock.readers(), 0);
    lock.audit()?;
    Ok(())
}

#[test]
fn who_writes_and_asks_again_is_told() -> Outcome {
    let lock = RwLock::new(0_u64)?;
    let guard = lock.write()?;
    assert_eq!(lock.read().err(), Some(LockError::WouldDeadlock));
    assert_eq!(lock.try_read().err(), Some(LockError::WouldDeadlock));
    assert_eq!(lock.write().err(), Some(LockError::WouldDeadlock));
    assert_eq!(lock.clone().try_write().err(), Some(LockError::WouldDeadlock));
    assert_eq!(lock.readers(), 0);
    drop(guard);
    let _reading = lock.read()?;
    assert_eq!(lock.write_timeout(SHORT).err(), Some(LockError::TimedOut), "it waits for itself");
    Ok(())
}

#[test]
fn a_writer_that_waits_keeps_new_readers_out() -> Outcome {
    let lock = RwLock::new(0_u64)?;
    let reading = lock.read()?;
    thread::scope(|s| {
        let writer = s.spawn(|| *lock.write().expect("nobody died") = 1);
        await_writer(&lock);
        assert_eq!(lock.try_read().err(), Some(LockError::WouldBlock));
        assert_eq!(lock.read_timeout(SHORT).err(), Some(LockError::TimedOut));
        let reader = s.spawn(|| *lock.read().expect("nobody died"));
        assert!(!writer.is_finished() && !reader.is_finished() && *reading == 0);
        drop(reading);
        writer.join().expect("no panic");
        assert_eq!(reader.join().expect("no panic"), 1, "it came after the writer");
    });
    lock.audit()?;
    Ok(())
}

#[test]
fn a_writer_that_gives_up_lets_those_go_on_that_it_kept_out() -> Outcome {
    let lock = RwLock::new(0_u64)?;
    let reading = lock.read()?;
    thread::scope(|s| {
        let writer = s.spawn(|| assert_eq!(lock.write_timeout(4 * SHORT).err(), Some(LockError::TimedOut)));
        await_writer(&lock);
        let reader = s.spawn(|| lock.read_timeout(HANG).map(|guard| *guard).ok());
        writer.join().expect("no panic");
        assert_eq!(reader.join().expect("no panic"), Some(0), "beside the one that reads on");
    });
    drop(reading);
    Ok(())
}

#[test]
fn a_write_guard_becomes_a_read_guard() -> Outcome {
    let lock = RwLock::new(0_u64)?;
    thread::scope(|s| {
        let mut guard = lock.write()?;
        let others = [(); 2].map(|()| s.spawn(|| *lock.write().expect("nobody died") += 10));
        let reader = s.spawn(|| *lock.read().expect("nobody died"));
        *guard = 1;
        let reading = guard.downgrade();
        assert_eq!((*reading, lock.readers() >= 1), (1, true));
        assert_eq!(lock.try_write().err(), Some(LockError::WouldBlock));
        thread::sleep(SHORT);
        assert_eq!(*reading, 1, "no writer came in between");
        drop(reading);
        for other in others {
            other.join().expect("no panic");
        }
        assert!([1, 11, 21].contains(&reader.join().expect("no panic")));
        assert_eq!(*lock.read()?, 21);
        Ok(())
    })
}

#[test]
fn a_panic_of_a_writer_is_told_to_all_until_a_writer_says_otherwise() -> Outcome {
    let lock = RwLock::new([1_u64, 1])?;
    let poison = || {
        let panicked = thread::scope(|s| {
            s.spawn(|| {
                let mut guard = lock.write().expect("in order");
                guard[0] += 1;
                panic!("on purpose");
            })
            .join()
        });
        assert!(panicked.is_err());
    };
    poison();
    for _ in 0..2 {
        match lock.read() {
            Err(LockError::Poisoned(guard)) => assert_eq!(*guard, [2, 1], "the data can be looked at"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lock.readers(), 0, "an error lets go of its guard");
    assert!(matches!(lock.write(), Err(LockError::Poisoned(_))));
    assert_eq!(AccessError::from(lock.try_read().unwrap_err()), AccessError::Poisoned);
    let downgraded = lock.write().unwrap_err().into_guard().expect("acquired").downgrade();
    assert_eq!(*downgraded, [2, 1]);
    assert!(matches!(lock.read(), Err(LockError::Poisoned(_))), "nobody has said that it is consistent");
    drop(downgraded);
    let guard = lock.with_repair(|data| data[1] = data[0])?;
    drop(guard);
    assert_eq!(*lock.read()?, [2, 2]);

    poison();
    lock.write().unwrap_err().into_guard().expect("acquired").mark_consistent();
    assert_eq!(*lock.read()?, [3, 2]);
    lock.audit()?;
    Ok(())
}

#[test]
fn a_panic_of_a_reader_is_nobody_elses_business() -> Outcome {
    let lock = RwLock::new(1_u64)?;
    let panicked = thread::scope(|s| {
        s.spawn(|| {
            let _guard = lock.read().expect("free");
            panic!("on purpose");
        })
        .join()
    });
    assert!(panicked.is_err());
    assert_eq!(lock.readers(), 0);
    *lock.write()? = 2;
    Ok(())
}

#[test]
fn leaked_guards_keep_their_lock() -> Outcome {
    let lock = RwLock::new(1_u64)?;
    // References may have left the thread.
    let alive = thread::scope(|s| s.spawn(|| &**Box::leak(Box::new(lock.read().expect("free")))).join());
    let alive = alive.expect("no panic");
    assert_eq!((*alive, lock.readers()), (1, 1));
    assert_eq!(lock.try_write().err(), Some(LockError::WouldBlock), "a `&mut` to what is borrowed");
    assert_eq!(*lock.read()?, 1);

    let lock = RwLock::new(1_u64)?;
    let alive = thread::scope(|s| s.spawn(|| &mut **Box::leak(Box::new(lock.write().expect("free")))).join());
    let alive = alive.expect("no panic");
    assert_eq!(lock.try_read().err(), Some(LockError::WouldBlock), "a `&` to what is being changed");
    assert_eq!(lock.try_write().err(), Some(LockError::WouldBlock), "a second `&mut` to the same data");
    *alive = 2;
    Ok(())
}

#[test]
fn a_read_guard_is_shared_between_threads() -> Outcome {
    fn is_sync<T: Sync>(_: &T) {}
    let lock = RwLock::new(5_u64)?;
    let guard = lock.read()?;
    is_sync(&guard);
    thread::scope(|s| s.spawn(|| assert_eq!(*guard, 5)).join()).expect("no panic");
    is_sync::<RwLock<u64>>(&lock);
    Ok(())
}

#[test]
fn threads_exclude_each_other_and_none_is_kept_out() -> Outcome {
    const WRITES: u64 = 3000;
    let lock = RwLock::new([0_u64; 2])?;
    let (start, reads, done) = (Barrier::new(6), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|s| {
        for writer in 0..2 {
            let (lock, start, done) = (&lock, &start, &done);
            s.spawn(move || {
                start.wait();
                for turn in 0..WRITES {
                    let mut both = match (turn + writer) % 3 {
                        0 => lock.write(),
                        1 => lock.write_timeout(HANG),
                        _ => loop {
                            match lock.try_write() {
                                Err(LockError::WouldBlock) => thread::yield_now(),
                                tried => break tried,
                            }
                        },
                    }
                    .expect("nobody died");
                    both[0] += 1;
                    std::hint::spin_loop();
                    both[1] += 1;
                    if turn % 5 == 0 {
                        let both = both.downgrade();
                        assert_eq!(both[0], both[1]);
                    }
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        for _ in 0..4 {
            s.spawn(|| {
                start.wait();
                // Readers that never pause: a writer that was not preferred would hardly ever find them all gone.
                while done.load(Ordering::SeqCst) < 2 {
                    let both = lock.read().expect("nobody died");
                    assert_eq!(both[0], both[1], "torn");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(*lock.read()?, [2 * WRITES; 2]);
    assert!(reads.into_inner() > 0);
    lock.audit()?;
    Ok(())
}

#[test]
fn names_types_and_layouts() -> Outcome {
    let segment = Segment::anonymous(256 * 1024)?;
    let lock = segment.rwlock("limits", [1_u16; 5])?;
    let same = segment.rwlock("limits", [0_u16; 5])?;
    lock.write()?[4] = 9;
    assert_eq!(*same.read()?, [1, 1, 1, 1, 9]);
    assert_eq!(segment.rwlock("limits", 0_u32).unwrap_err().kind(), ErrorKind::WrongType);
    assert_eq!(segment.mutex("limits", [1_u16; 5]).unwrap_err().kind(), ErrorKind::WrongKind);
    // Data longer than a cache line does not reach into the words behind it.
    let long = segment.rwlock("long", [u64::MAX; 100])?;
    assert_eq!((long.readers(), long.writer()), (0, None));
    let first = long.read()?;
    assert!(first.iter().all(|&word| word == u64::MAX));
    let threads = thread::scope(|s| s.spawn(|| long.readers()).join()).expect("no panic");
    assert_eq!(threads, 1);
    drop(first);
    long.write()?.fill(0);
    long.audit()?;
    let text = format!("{lock:?}");
    assert!(text.contains("readers: 0") && text.contains("writer: None"), "{text}");
    Ok(())
}

#[test]
fn guards_of_many_locks_go_in_any_order() -> Outcome {
    let locks = [RwLock::new(1_u64)?, RwLock::new(2)?, RwLock::new(3)?];
    let (a, b, c) = (locks[0].write()?, locks[1].write()?, locks[2].read()?);
    drop(a);
    let (send, receive) = channel();
    thread::scope(|s| {
        s.spawn(|| send.send(*locks[0].write().expect("free")).expect("heard"));
        assert_eq!(receive.recv_timeout(HANG), Ok(1));
    });
    let b: RwLockReadGuard<'_, u64> = b.downgrade();
    drop(c);
    assert_eq!(*b, 2);
    *locks[2].write()? = 4;
    drop(b);
    assert_eq!(*locks[1].write()?, 2);
    Ok(())
}

#[test]
fn scribbled_words_do_no_harm() -> Outcome {
    let segment = Segment::anonymous(64 * 1024)?;
    let lock = segment.rwlock("lock", 1_u64)?;
    drop(lock.read()?);
    let object = segment.objects()[0].object;
    let words =
        segment.mapping().place_slice::<Word>(Span { offset: object.offset, count: object.bytes / 8 })?;
    // The words up to the event count, the data is the ninth; then the cells, eight words each.
    let interesting: Vec<_> = (0..5).chain((16..words.len()).step_by(8)).collect();
    let mut found = 0;
    for &at in &interesting {
        for bits in [1, 2, 4, 8, 12, 1 << 18, (1 << 18) - 1, 1 << 32, 3 << 61, u64::MAX, u64::MAX << 18] {
            words[at].store(bits, Ordering::SeqCst);
            found += u64::from(lock.audit().is_err());
            drop((lock.try_read().ok(), lock.try_write().ok(), lock.readers(), format!("{lock:?}")));
            drop(lock.read_timeout(Duration::ZERO).ok());
            if let Ok(guard) = lock.write_timeout(Duration::ZERO) {
                drop(guard.downgrade());
            }
            (0..5).chain([at]).for_each(|at| words[at].store(0, Ordering::SeqCst));
        }
    }
    assert!(found > 10, "the audit found {found}");
    assert_eq!(*lock.read()?, 1);
    lock.audit()?;
    Ok(())
}

#[test]
fn a_process_has_room_for_many_readers_and_says_when_it_has_no_more() -> Outcome {
    const MOST: usize = (1 << 18) - 1;
    let lock = RwLock::new(0_u64)?;
    let guards = (0..MOST).map(|_| lock.read()).collect::<Result<Vec<_>, _>>()?;
    assert_eq!(lock.readers(), MOST as u64);
    assert_eq!(lock.read().err(), Some(LockError::WouldDeadlock));
    assert_eq!(lock.try_read().err(), Some(LockError::WouldDeadlock));
    assert_eq!(lock.try_write().err(), Some(LockError::WouldBlock));
    drop(guards);
    assert_eq!(lock.readers(), 0);
    *lock.write()? = 1;
    assert_eq!(*lock.read()?, 1);
    Ok(())
}
