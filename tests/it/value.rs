//! Values are whole, whoever writes, reads, sleeps or dies.

use std::time::{Duration, Instant};

use crossproc_primitives::{LockError, RawValue, Value};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, child, fresh_seed, join, kill_and_reap, tied_to_parent, wait_for,
};

use crate::lock::said;

type Large = [u64; 4096];

/// Writes n, n, n, .. for n = 1, 2, ..; announces each before and after.
fn write_for_ever((board, value, first): (Board, Value<Large>, u64)) {
    tied_to_parent();
    for n in first.. {
        board.set(0, n);
        value.set([n; 4096]).unwrap();
        board.set(1, n);
    }
}

#[test]
fn a_writer_killed_anywhere_leaves_the_old_value_or_the_new_one() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let (board, value) = (Board::new(8), Value::new([0_u64; 4096]).unwrap());
    let mut in_between = 0;
    for _ in 0..40 {
        let first = board.get(1) + 1;
        let writer = child(write_for_ever, (board.clone(), value.clone(), first));
        board.await_at_least(1, first + 1);
        std::thread::sleep(Duration::from_micros(rng.below(2000)));
        kill_and_reap(&writer);
        let (begun, done) = (board.get(0), board.get(1));
        let words = value.get().unwrap();
        assert!(words.iter().all(|&word| word == words[0]), "torn: {} and others", words[0]);
        assert!((done..=begun).contains(&words[0]), "{} of {done}..={begun}", words[0]);
        in_between += u64::from(done != begun);
        // The next writer starts from what is there, whatever that is.
        board.set(1, begun);
    }
    println!("{in_between} of 40 writers died within a write");
    value.set([7; 4096]).unwrap();
    assert_eq!(value.get().unwrap()[4095], 7);
}

#[test]
fn a_writer_killed_while_it_computes_leaves_the_old_value() {
    fn update((board, value): (Board, Value<[u64; 32]>)) {
        tied_to_parent();
        value
            .update(|old| {
                board.set(0, old[0]);
                loop {
                    std::thread::park();
                }
            })
            .unwrap();
    }
    let (board, value) = (Board::new(8), Value::new([5_u64; 32]).unwrap());
    let writer = child(update, (board.clone(), value.clone()));
    board.await_at_least(0, 5);
    assert_eq!(value.get(), Ok([5; 32]), "readers do not wait");
    let next =
        child(|value: Value<[u64; 32]>| value.update(|old| old.map(|word| word + 1)).unwrap(), value.clone());
    await_asleep(next.pid());
    kill_and_reap(&writer);
    assert_eq!(join(next), [6; 32]);
    assert_eq!(value.get(), Ok([6; 32]));
    // A value is whole all the same, but who holds the lock for more than that wants to know.
    assert_eq!(said(&value.lock()), "OwnerDied");
}

#[test]
fn a_holder_killed_after_it_wrote_leaves_the_new_value_and_a_mark() {
    fn write_and_park((board, value): (Board, Value<[u64; 32]>)) {
        tied_to_parent();
        let mut guard = value.lock().unwrap();
        guard.set([6; 32]);
        board.set(0, 1);
        loop {
            std::thread::park();
        }
    }
    let (board, value) = (Board::new(8), Value::new([5_u64; 32]).unwrap());
    let writer = child(write_and_park, (board.clone(), value.clone()));
    board.await_at_least(0, 1);
    kill_and_reap(&writer);
    assert_eq!(value.get(), Ok([6; 32]));
    match value.lock() {
        Err(LockError::OwnerDied(guard)) => assert_eq!(guard.get(), Ok([6; 32])),
        other => panic!("{}", said(&other)),
    }
    value.set([7; 32]).unwrap();
    assert_eq!(value.get(), Ok([7; 32]));
}

#[test]
fn no_update_is_lost() {
    fn update((large, small, raw, float): (Value<[u64; 16]>, Value<u64>, RawValue<u16>, Value<f64>)) {
        for _ in 0..2000 {
            large.update(|old| old.map(|word| word + 1)).unwrap();
            small.update(|n| n + 1).unwrap();
            small.fetch_add(1);
            raw.fetch_add(1);
            float.fetch_add(0.5);
            // A holder's update must not undo what others do without the lock.
            small.lock().unwrap().update(|n| n + 1).unwrap();
        }
    }
    let handles = (
        Value::new([0_u64; 16]).unwrap(),
        Value::new(0_u64).unwrap(),
        RawValue::new(0_u16).unwrap(),
        Value::new(0.0_f64).unwrap(),
    );
    let children: Vec<_> = (0..2).map(|_| child(update, handles.clone())).collect();
    update(handles.clone());
    children.into_iter().for_each(join);
    assert_eq!(handles.0.get(), Ok([6000; 16]));
    assert_eq!(handles.1.get(), Ok(18_000));
    assert_eq!(handles.2.get(), Ok(6000));
    assert_eq!(handles.3.get(), Ok(3000.0));
}

#[test]
fn who_waits_for_a_change_is_woken_by_another_process() {
    fn wait((board, small, large): (Board, Value<u64>, Value<[u64; 8]>)) -> (u64, [u64; 8]) {
        tied_to_parent();
        board.set(0, 1);
        let small = small.wait_while(|&n| n < 3).unwrap();
        board.set(0, 2);
        (small, large.wait_while(|words| words[7] == 0).unwrap())
    }
    let (board, small) = (Board::new(8), Value::new(0_u64).unwrap());
    let large = Value::new([0_u64; 8]).unwrap();
    let waiter = child(wait, (board.clone(), small.clone(), large.clone()));
    board.await_at_least(0, 1);
    await_asleep(waiter.pid());
    for _ in 0..3 {
        small.fetch_add(1);
    }
    board.await_at_least(0, 2);
    await_asleep(waiter.pid());
    large.set([4; 8]).unwrap();
    assert_eq!(join(waiter), (3, [4; 8]));
}

#[test]
fn all_who_wait_for_a_change_are_woken() {
    fn wait((board, value): (Board, Value<u32>)) -> u32 {
        tied_to_parent();
        board.add(0, 1);
        value.wait_while(|&n| n == 0).unwrap()
    }
    let (board, value) = (Board::new(8), Value::new(0_u32).unwrap());
    let waiters: Vec<_> = (0..4).map(|_| child(wait, (board.clone(), value.clone()))).collect();
    board.await_at_least(0, 4);
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    // One of them dies asleep: that keeps nobody from being woken.
    let mut waiters = waiters;
    kill_and_reap(&waiters.remove(1));
    value.set(9).unwrap();
    assert!(waiters.into_iter().map(join).all(|n| n == 9));
}

#[test]
fn waiting_for_a_change_ends_at_its_time() {
    let value = Value::new([1_u64; 8]).unwrap();
    let started = Instant::now();
    let limit = Duration::from_millis(80);
    assert_eq!(value.wait_while_timeout(limit, |words| words[0] == 1), Ok(None));
    assert!(started.elapsed() >= limit);
    let deadline = Instant::now() + limit;
    assert_eq!(value.wait_while_deadline(deadline, |words| words[0] == 1), Ok(None));
    assert!(Instant::now() >= deadline);
    assert_eq!(value.wait_while_timeout(HANG, |words| words[0] == 2), Ok(Some([1; 8])));
}

#[test]
fn a_reader_with_a_read_only_attachment_sees_every_value_whole() {
    fn read((board, name): (Board, String)) -> (u64, u64) {
        use crossproc_primitives::Objects;
        let segment = crossproc_segment::SegmentOptions::new().read_only(true).open(&name).unwrap();
        let value = segment.value("value", [0_u64; 64]).unwrap();
        board.set(0, 1);
        let (mut last, mut changes) = (0, 0);
        wait_for("a hundred changes", || {
            for _ in 0..1000 {
                let words = value.get().unwrap();
                assert!(words.iter().all(|&word| word == words[0]));
                assert!(words[0] >= last, "from {last} back to {}", words[0]);
                changes += u64::from(words[0] > last);
                last = words[0];
            }
            changes >= 100
        });
        assert!(value.set([0; 64]).is_err());
        (last, changes)
    }
    use crossproc_primitives::Objects;
    let name = format!("it-reader-{}", std::process::id());
    let segment = crossproc_segment::Segment::create(&name, 16 * 1024).unwrap();
    let value = segment.value("value", [0_u64; 64]).unwrap();
    let board = Board::new(8);
    let reader = child(read, (board.clone(), name));
    board.await_at_least(0, 1);
    let mut n = 0;
    while reader.is_alive() {
        for _ in 0..100 {
            n += 1;
            value.set([n; 64]).unwrap();
        }
    }
    let (last, changes) = join(reader);
    assert!(last <= n && changes >= 100);
}
