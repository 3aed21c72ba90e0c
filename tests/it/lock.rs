//! Exclusion, time limits, poison and depth, between processes.

use std::time::{Duration, Instant};

use crossproc_primitives::{Guard, Lock, LockError, Mutex, RLock, Value};
use crossproc_tests::{Board, HANG, await_asleep, child, join};

/// The outcome of an attempt, as a word that travels.
pub(crate) fn said<G>(result: &Result<G, LockError<G>>) -> String {
    match result {
        Ok(_) => "Ok".to_owned(),
        Err(error) => format!("{error:?}").trim_end_matches("(..)").to_owned(),
    }
}

const INSIDE: usize = 0;
const BROKEN: usize = 1;
const SUM: usize = 2;

#[test]
fn processes_exclude_each_other() {
    fn work((board, lock, turns): (Board, Lock, u64)) {
        for turn in 0..turns {
            let guard = if turn % 8 == 0 { lock.lock_timeout(HANG) } else { lock.lock() }.unwrap();
            if board.swap(INSIDE, 1) != 0 {
                board.add(BROKEN, 1);
            }
            // Two steps: somebody in between would be lost.
            let sum = board.get(SUM);
            std::hint::spin_loop();
            board.set(SUM, sum + 1);
            board.set(INSIDE, 0);
            drop(guard);
        }
    }
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let children: Vec<_> = (0..3).map(|_| child(work, (board.clone(), lock.clone(), 5000))).collect();
    work((board.clone(), lock, 5000));
    children.into_iter().for_each(join);
    assert_eq!((board.get(BROKEN), board.get(SUM)), (0, 20_000));
}

#[test]
fn a_mutex_loses_nothing() {
    fn work((mutex, turns): (Mutex<[u64; 3]>, u64)) {
        for _ in 0..turns {
            let mut data = mutex.lock().unwrap();
            let [a, b, c] = *data;
            *data = [a + 1, b + 2, c + 3];
        }
    }
    let mutex = Mutex::new([0; 3]).unwrap();
    let children: Vec<_> = (0..3).map(|_| child(work, (mutex.clone(), 5000))).collect();
    children.into_iter().for_each(join);
    assert_eq!(*mutex.lock().unwrap(), [15_000, 30_000, 45_000]);
}

#[test]
fn without_exclusion_the_same_work_loses() {
    // What the tests above would find if the lock did nothing.
    fn work((board, turns): (Board, u64)) {
        board.meet(3, 2, 1);
        for _ in 0..turns {
            let sum = board.get(SUM);
            std::hint::spin_loop();
            board.set(SUM, sum + 1);
        }
    }
    let board = Board::new(8);
    let mut expected = 0;
    // On one CPU it takes a switch at the right moment.
    for round in 0..1000 {
        board.set(3, 0);
        let other = child(work, (board.clone(), 20_000));
        work((board.clone(), 20_000));
        join(other);
        expected += 40_000;
        if board.get(SUM) != expected {
            return;
        }
        assert!(round < 200, "two processes never met");
    }
}

/// Holds the lock from the moment `board[0]` is 1 until `board[1]` is 1.
fn hold((board, lock): (Board, Lock)) {
    let guard = lock.lock().unwrap();
    board.set(0, 1);
    board.await_at_least(1, 1);
    drop(guard);
    board.set(0, 2);
    board.await_at_least(1, 2);
}

#[test]
fn a_lock_held_by_another_process_is_not_waited_for_longer_than_asked() {
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let holder = child(hold, (board.clone(), lock.clone()));
    board.await_at_least(0, 1);
    assert_eq!(lock.holder(), Some(holder.pid()), "its main thread");

    assert_eq!(said(&lock.try_lock()), "WouldBlock");
    // Below and above the length of a slice of sleep.
    for limit in [0, 1, 30, 120].map(Duration::from_millis) {
        let started = Instant::now();
        assert_eq!(said(&lock.lock_timeout(limit)), "TimedOut");
        assert!(started.elapsed() >= limit);

        let deadline = Instant::now() + limit;
        assert_eq!(said(&lock.lock_deadline(deadline)), "TimedOut");
        assert!(Instant::now() >= deadline);
    }
    assert_eq!(said(&lock.lock_deadline(Instant::now())), "TimedOut");
    assert_eq!(lock.try_acquire(), Err(LockError::WouldBlock));
    assert_eq!(lock.acquire_timeout(Duration::from_millis(5)), Err(LockError::TimedOut));

    // Who gave up left nothing that keeps the next one out.
    board.set(1, 1);
    board.await_at_least(0, 2);
    assert_eq!(said(&lock.try_lock()), "Ok");
    board.set(1, 2);
    join(holder);
}

#[test]
fn a_timed_waiter_gets_the_lock_when_it_is_released() {
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let holder = child(hold, (board.clone(), lock.clone()));
    board.await_at_least(0, 1);
    let waiter = child(
        |(board, lock): (Board, Lock)| {
            board.set(2, 1);
            said(&lock.lock_timeout(HANG))
        },
        (board.clone(), lock.clone()),
    );
    board.await_at_least(2, 1);
    await_asleep(waiter.pid());
    board.set(1, 2);
    assert_eq!(join(waiter), "Ok");
    join(holder);
}

#[test]
fn every_sleeper_is_woken_in_turn() {
    fn wait((board, lock): (Board, Lock)) {
        board.add(2, 1);
        let guard = lock.lock().unwrap();
        board.add(3, 1);
        drop(guard);
    }
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let guard = lock.lock().unwrap();
    let waiters: Vec<_> = (0..4).map(|_| child(wait, (board.clone(), lock.clone()))).collect();
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    board.await_at_least(2, 4);
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    assert_eq!(board.get(3), 0);
    drop(guard);
    waiters.into_iter().for_each(join);
    assert_eq!(board.get(3), 4);
    assert_eq!(said(&lock.try_lock()), "Ok");
}

#[test]
fn a_panic_of_the_holder_is_told_and_is_not_a_death() {
    let (lock, mutex) = (Lock::new().unwrap(), Mutex::new([1_u32, 2]).unwrap());
    fn stop_halfway((lock, mutex): (Lock, Mutex<[u32; 2]>)) {
        let _guard = lock.lock().unwrap();
        let mut data = mutex.lock().unwrap();
        data[0] = 7;
        panic!("halfway");
    }
    let panicking = child(stop_halfway, (lock.clone(), mutex.clone()));
    assert_eq!(panicking.wait(), crossproc_process::ExitStatus::Code(101));

    assert_eq!(said(&lock.lock()), "Poisoned");
    assert_eq!(said(&lock.lock()), "Poisoned", "until somebody says that it is consistent");
    let seen = join(child(
        |lock: Lock| {
            let told = said(&lock.lock());
            lock.lock().unwrap_err().into_guard().unwrap().mark_consistent();
            told
        },
        lock.clone(),
    ));
    assert_eq!(seen, "Poisoned");
    assert_eq!(said(&lock.lock()), "Ok");

    let data = mutex.with_repair(|data| data[1] = 8).unwrap();
    assert_eq!(*data, [7, 8], "what the panicking one wrote is there");
    drop(data);
    assert_eq!(*mutex.lock().unwrap(), [7, 8]);
}

#[test]
fn an_rlock_is_free_when_its_holder_has_released_it_as_often_as_it_locked() {
    fn nest((board, lock): (Board, RLock)) {
        let first = lock.lock().unwrap();
        let second = lock.lock().unwrap();
        let third = lock.try_lock().unwrap();
        board.set(0, 1);
        board.await_at_least(1, 1);
        drop(first);
        drop(third);
        assert!(lock.is_mine());
        board.set(0, 2);
        board.await_at_least(1, 2);
        drop(second);
        assert!(!lock.is_mine());
        board.set(0, 3);
        board.await_at_least(1, 3);
    }
    let (board, lock) = (Board::new(8), RLock::new().unwrap());
    let holder = child(nest, (board.clone(), lock.clone()));
    for stage in [1, 2] {
        board.await_at_least(0, stage);
        assert_eq!(said(&lock.try_lock()), "WouldBlock");
        assert_eq!(said(&lock.lock_timeout(Duration::from_millis(5))), "TimedOut");
        board.set(1, stage);
    }
    board.await_at_least(0, 3);
    assert_eq!(said(&lock.try_lock()), "Ok");
    board.set(1, 3);
    join(holder);
}

#[test]
fn the_lock_of_a_value_keeps_out_other_holders_and_writers() {
    fn write(value: Value<[u64; 4]>) {
        value.set([9; 4]).unwrap();
    }
    let value = Value::new([0_u64; 4]).unwrap();
    let mut guard = value.lock().unwrap();
    let writer = child(write, value.clone());
    await_asleep(writer.pid());
    assert_eq!(join(child(|value: Value<[u64; 4]>| said(&value.try_lock()), value.clone())), "WouldBlock");
    assert_eq!(
        join(child(|value: Value<[u64; 4]>| value.get().unwrap(), value.clone())),
        [0; 4],
        "readers come in"
    );
    guard.update(|old| old.map(|word| word + 1)).unwrap();
    assert_eq!(value.get().unwrap(), [1; 4]);
    drop(guard);
    join(writer);
    assert_eq!(value.get().unwrap(), [9; 4]);
}
