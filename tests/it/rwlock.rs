//! Many read or one writes, between processes; what becomes of the lock when one of them dies, stops, or is forked.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crossproc_primitives::{Guard, Lock, LockError, Objects, RwLock};
use crossproc_process::Process;
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, await_state, child, fresh_seed, isolated, join, kill_and_reap,
    tied_to_parent, wait_for,
};
use serde::{Deserialize, Serialize};

use crate::kernel::{End, Forked};
use crate::lock::said;

type Pair = RwLock<[u64; 2]>;

const HELD: usize = 0;
const GO: usize = 1;
const READING: usize = 2;
const WRITING: usize = 3;
const BROKEN: usize = 4;

fn pair() -> (Board, Pair) {
    (Board::new(8), RwLock::new([0; 2]).unwrap())
}

/// The data, with no guard left behind.
fn seen(lock: &Pair) -> [u64; 2] {
    *lock.read().unwrap()
}

/// What trying says, without keeping what it gets.
fn try_read(lock: &Pair) -> String {
    said(&lock.try_read())
}

fn try_write(lock: &Pair) -> String {
    said(&lock.try_write())
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn stop<R>(process: &Process<R>) {
    process.signal(19).unwrap(); // SIGSTOP
    await_state(process.pid(), 'T');
}

#[test]
fn readers_share_and_writers_exclude() {
    fn work((board, lock, turns): (Board, Pair, u64)) {
        tied_to_parent();
        board.meet(HELD, 3, 1);
        for turn in 0..turns {
            if turn % 4 == 0 {
                let mut data = if turn % 8 == 0 { lock.write_timeout(HANG) } else { lock.write() }.unwrap();
                if board.add(WRITING, 1) != 0 || board.get(READING) != 0 {
                    board.add(BROKEN, 1);
                }
                data[0] += 1;
                std::hint::spin_loop();
                data[1] += 1;
                board.set(WRITING, 0);
            } else {
                let data = lock.read().unwrap();
                board.add(READING, 1);
                if board.get(WRITING) != 0 || data[0] != data[1] {
                    board.add(BROKEN, 1);
                }
                board.add(READING, u64::MAX);
            }
        }
    }
    let (board, lock) = pair();
    let children: Vec<_> = (0..2).map(|_| child(work, (board.clone(), lock.clone(), 8000))).collect();
    work((board.clone(), lock.clone(), 8000));
    children.into_iter().for_each(join);
    assert_eq!((board.get(BROKEN), seen(&lock)), (0, [6000; 2]));
    assert_eq!((lock.readers(), lock.writer(), lock.audit()), (0, None, Ok(())));
}

/// Reads from the moment `board[HELD]` has grown until `board[GO]` is 1.
fn read_until_told((board, lock): (Board, Pair)) {
    tied_to_parent();
    let guard = lock.read().unwrap();
    board.add(HELD, 1);
    board.await_at_least(GO, 1);
    drop(guard);
}

#[test]
fn processes_read_at_the_same_time_and_hold_a_writer_up() {
    let (board, lock) = pair();
    let readers = [(); 2].map(|()| child(read_until_told, (board.clone(), lock.clone())));
    board.await_at_least(HELD, 2);
    assert_eq!((lock.readers(), seen(&lock)), (2, [0; 2]));
    assert_eq!(try_write(&lock), "WouldBlock");
    assert_eq!(said(&lock.write_timeout(Duration::from_millis(120))), "TimedOut");
    assert_eq!(try_read(&lock), "Ok", "who gave up keeps nobody out");
    board.set(GO, 1);
    readers.into_iter().for_each(join);
    assert_eq!(try_write(&lock), "Ok");
}

fn write_and_say(lock: Pair) -> String {
    tied_to_parent();
    let mut locked = lock.write_timeout(HANG);
    if let Ok(data) = &mut locked {
        **data = data.map(|n| n + 1);
    }
    said(&locked)
}

fn read_and_say(lock: Pair) -> (String, [u64; 2]) {
    tied_to_parent();
    let locked = lock.read_timeout(HANG);
    let told = said(&locked);
    let guard = locked.or_else(|e| e.into_guard().ok_or(())).unwrap();
    (told, *guard)
}

#[test]
fn a_writer_that_waits_in_another_process_keeps_new_readers_out() {
    let (board, lock) = pair();
    let reader = child(read_until_told, (board.clone(), lock.clone()));
    board.await_at_least(HELD, 1);
    let writer = child(write_and_say, lock.clone());
    wait_for("the writer", || lock.writer() == Some(writer.pid()));
    assert_eq!(try_read(&lock), "WouldBlock");
    assert_eq!(said(&lock.read_timeout(Duration::from_millis(60))), "TimedOut");
    let late = child(read_and_say, lock.clone());
    await_asleep(writer.pid());
    await_asleep(late.pid());
    board.set(GO, 1);
    join(reader);
    assert_eq!(join(writer), "Ok");
    assert_eq!(join(late), ("Ok".to_owned(), [1; 2]), "it came after the writer");
}

// ---- Deaths ----

/// How somebody holds the lock, and how that ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Ends {
    IsKilled,
    Exits,
    BecomesAnother,
}

fn end(board: &Board, how: Ends) -> ! {
    board.add(HELD, 1);
    match how {
        Ends::IsKilled => park(),
        Ends::Exits => {
            board.await_at_least(GO, 1);
            std::process::exit(0);
        }
        Ends::BecomesAnother => {
            board.await_at_least(GO, 1);
            panic!("{}", Command::new("sleep").arg("1000").exec());
        }
    }
}

fn read_for_good((board, lock, how): (Board, Pair, Ends)) {
    tied_to_parent();
    let _guards = (lock.read().unwrap(), lock.read().unwrap());
    end(&board, how);
}

/// Half of a change, within another lock or not.
fn write_half((board, lock, within, how): (Board, Pair, bool, Ends)) {
    tied_to_parent();
    let outer = Lock::new().unwrap();
    let _outer = within.then(|| outer.lock().unwrap());
    let mut guard = lock.write().unwrap();
    guard[0] += 1;
    end(&board, how);
}

const ALL_ENDS: [Ends; 3] = [Ends::IsKilled, Ends::Exits, Ends::BecomesAnother];

fn let_end<R>(board: &Board, process: &Process<R>, how: Ends) {
    if how == Ends::IsKilled {
        process.kill().unwrap();
    }
    board.set(GO, 1);
}

#[test]
fn a_dead_reader_holds_up_nobody() {
    for how in ALL_ENDS {
        for asleep in [true, false] {
            let (board, lock) = pair();
            let reader = child(read_for_good, (board.clone(), lock.clone(), how));
            board.await_at_least(HELD, 1);
            assert_eq!((lock.readers(), try_write(&lock)), (2, "WouldBlock".to_owned()));
            let told = if asleep {
                let writer = child(write_and_say, lock.clone());
                wait_for("the writer", || lock.writer() == Some(writer.pid()));
                await_asleep(writer.pid());
                let_end(&board, &reader, how);
                join(writer)
            } else {
                let_end(&board, &reader, how);
                write_and_say(lock.clone())
            };
            assert_eq!(told, "Ok", "{how:?}: a reader leaves nothing half-done");
            assert_eq!((seen(&lock), lock.readers()), ([1; 2], 0));
            assert_eq!(lock.audit(), Ok(()));
            let _ = reader.kill();
        }
    }
}

#[test]
fn a_dead_writer_is_told_of_until_a_writer_has_repaired() {
    for how in ALL_ENDS {
        for within in [false, true] {
            let (board, lock) = pair();
            let writer = child(write_half, (board.clone(), lock.clone(), within, how));
            board.await_at_least(HELD, 1);
            assert_eq!(try_read(&lock), "WouldBlock");
            let waiting = [(); 2].map(|()| child(read_and_say, lock.clone()));
            let waiting_to_write = child(write_and_say, lock.clone());
            waiting.iter().for_each(|process| await_asleep(process.pid()));
            await_asleep(waiting_to_write.pid());
            let_end(&board, &writer, how);
            for reader in waiting {
                assert_eq!(join(reader), ("OwnerDied".to_owned(), [1, 0]), "{how:?}, {within}");
            }
            assert_eq!(join(waiting_to_write), "OwnerDied");
            // They looked, and did nothing about it.
            assert_eq!(try_read(&lock), "OwnerDied");
            let repaired = lock.with_repair(|data| data[1] = data[0]).unwrap();
            drop(repaired);
            assert_eq!((try_read(&lock), seen(&lock)), ("Ok".to_owned(), [1; 2]));
            assert_eq!(join(child(write_and_say, lock.clone())), "Ok");
            assert_eq!(lock.audit(), Ok(()));
            let _ = writer.kill();
        }
    }
}

#[test]
fn a_writer_that_was_killed_before_anybody_came_is_told_of() {
    for within in [false, true] {
        for reads in [true, false] {
            let (board, lock) = pair();
            let writer = child(write_half, (board.clone(), lock.clone(), within, Ends::IsKilled));
            board.await_at_least(HELD, 1);
            kill_and_reap(&writer);
            // The first look is enough.
            let told = if reads { try_read(&lock) } else { try_write(&lock) };
            assert_eq!(told, "OwnerDied");
            assert_eq!((try_read(&lock), try_write(&lock)), ("OwnerDied".into(), "OwnerDied".into()));
        }
    }
}

#[test]
fn a_writer_that_was_killed_while_it_waited_is_no_matter() {
    let (board, lock) = pair();
    let reader = child(read_until_told, (board.clone(), lock.clone()));
    board.await_at_least(HELD, 1);
    let writer = child(write_and_say, lock.clone());
    wait_for("the writer", || lock.writer() == Some(writer.pid()));
    await_asleep(writer.pid());
    let kept_out = child(read_and_say, lock.clone());
    await_asleep(kept_out.pid());
    kill_and_reap(&writer);
    assert_eq!(join(kept_out), ("Ok".to_owned(), [0; 2]), "beside the first one, which goes on reading");
    assert_eq!((try_read(&lock), lock.readers(), lock.writer()), ("Ok".to_owned(), 1, None));
    board.set(GO, 1);
    join(reader);
    assert_eq!(try_write(&lock), "Ok");
    assert_eq!(lock.audit(), Ok(()));
}

#[test]
fn readers_and_writers_that_were_killed_while_they_waited_for_a_writer_are_no_matter() {
    let (_, lock) = pair();
    let mut guard = lock.write().unwrap();
    let readers = [(); 2].map(|()| child(read_and_say, lock.clone()));
    let writers = [(); 2].map(|()| child(write_and_say, lock.clone()));
    readers.iter().for_each(|process| await_asleep(process.pid()));
    writers.iter().for_each(|process| await_asleep(process.pid()));
    kill_and_reap(&readers[0]);
    kill_and_reap(&writers[0]);
    *guard = [5; 2];
    drop(guard);
    let [_, reader] = readers;
    let [_, writer] = writers;
    let (told, data) = join(reader);
    assert!(told == "Ok" && [[5; 2], [6; 2]].contains(&data), "{told} {data:?}");
    assert_eq!(join(writer), "Ok");
    assert_eq!((seen(&lock), lock.readers()), ([6; 2], 0));
}

#[test]
fn a_stopped_writer_is_not_robbed() {
    let (board, lock) = pair();
    let writer = child(write_half, (board.clone(), lock.clone(), false, Ends::IsKilled));
    board.await_at_least(HELD, 1);
    stop(&writer);
    // Longer than several slices of sleep.
    assert_eq!(said(&lock.read_timeout(Duration::from_millis(300))), "TimedOut");
    assert_eq!(said(&lock.write_timeout(Duration::from_millis(300))), "TimedOut");
    assert_eq!(try_read(&lock), "WouldBlock");
    kill_and_reap(&writer);
    assert_eq!(said(&lock.read_timeout(HANG)), "OwnerDied");
}

#[test]
fn a_stopped_reader_is_not_overrun() {
    let (board, lock) = pair();
    let reader = child(read_for_good, (board.clone(), lock.clone(), Ends::IsKilled));
    board.await_at_least(HELD, 1);
    stop(&reader);
    assert_eq!(said(&lock.write_timeout(Duration::from_millis(300))), "TimedOut");
    assert_eq!((try_write(&lock), try_read(&lock)), ("WouldBlock".into(), "Ok".into()));
    kill_and_reap(&reader);
    assert_eq!(said(&lock.write_timeout(HANG)), "Ok");
}

#[test]
fn a_panic_is_told_to_other_processes() {
    fn panic_halfway(lock: Pair) {
        let mut data = lock.write().unwrap();
        data[0] = 7;
        panic!("halfway");
    }
    let (_, lock) = pair();
    let panicking = child(panic_halfway, lock.clone());
    assert_eq!(panicking.wait(), crossproc_process::ExitStatus::Code(101));
    assert_eq!(join(child(read_and_say, lock.clone())), ("Poisoned".to_owned(), [7, 0]));
    assert_eq!(join(child(write_and_say, lock.clone())), "Poisoned");
    drop(lock.with_repair(|data| data[1] = 7).unwrap());
    assert_eq!(join(child(read_and_say, lock.clone())), ("Ok".to_owned(), [7; 2]));
}

#[test]
fn who_has_the_slot_of_a_dead_reader_does_not_inherit_its_count() {
    isolated(|()| {
        fn come_and_go((board, lock): (Board, Pair)) {
            tied_to_parent();
            assert_eq!(lock.readers(), 0, "those of the dead do not count");
            let guards = (lock.read().unwrap(), lock.read().unwrap());
            board.add(READING, lock.readers());
            drop(guards.0);
            assert_eq!((lock.readers(), try_write(&lock)), (1, "WouldBlock".to_owned()));
            drop(guards.1);
            assert_eq!(lock.readers(), 0);
        }
        // Room for two: whoever comes has the slot of who was here before.
        let segment = SegmentOptions::new().participants(2).anonymous(4096).unwrap();
        let (board, lock) = (Board::new(8), segment.rwlock("pair", [0_u64; 2]).unwrap());
        for round in 1..=3 {
            let reader = child(read_for_good, (board.clone(), lock.clone(), Ends::IsKilled));
            board.await_at_least(HELD, round);
            assert_eq!(lock.readers(), 2);
            kill_and_reap(&reader);
            join(child(come_and_go, (board.clone(), lock.clone())));
            assert_eq!(board.get(READING), 2 * round);
            // And who comes while the dead one's count is still there.
            assert_eq!(try_write(&lock), "Ok");
        }
        assert_eq!(lock.audit(), Ok(()));
    });
}

#[test]
fn who_left_with_a_forgotten_read_guard_is_forgotten_too() {
    fn forget((board, segment): (Board, Segment)) {
        tied_to_parent();
        let lock = segment.rwlock("pair", [0_u64; 2]).unwrap();
        std::mem::forget(lock.read().unwrap());
        drop((lock, segment));
        board.set(HELD, 1);
        board.await_at_least(GO, 1);
    }
    let segment = SegmentOptions::new().participants(4).anonymous(4096).unwrap();
    let (board, lock) = (Board::new(8), segment.rwlock("pair", [0_u64; 2]).unwrap());
    let process = child(forget, (board.clone(), segment));
    board.await_at_least(HELD, 1);
    // It lives on, but it has let go of the memory.
    assert_eq!(said(&lock.write_timeout(HANG)), "Ok");
    board.set(GO, 1);
    join(process);
}

// ---- Forks ----

#[test]
fn a_forked_child_has_no_part_in_its_parents_guards() {
    isolated(|()| {
        let (_, lock) = pair();
        let other = RwLock::new(0_u64).unwrap();
        let mut guards = Some((lock.read().unwrap(), other.write().unwrap()));
        lock.segment().check_attached().unwrap();
        let forked = Forked::new(|| {
            drop(guards.take());
            assert_eq!((said(&lock.read()), try_read(&lock)), ("NotAttached".into(), "NotAttached".into()));
            assert_eq!((said(&lock.write()), try_write(&lock)), ("NotAttached".into(), "NotAttached".into()));
            assert_eq!(said(&lock.read_timeout(Duration::ZERO)), "NotAttached");
            assert_eq!(said(&lock.write_timeout(Duration::ZERO)), "NotAttached");
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!(lock.readers(), 1, "its parent goes on reading");
        let asked = child(
            |(lock, other): (Pair, RwLock<u64>)| (try_write(&lock), said(&other.try_read())),
            (lock.clone(), other.clone()),
        );
        assert_eq!(join(asked), ("WouldBlock".to_owned(), "WouldBlock".to_owned()));

        // Downgraded in the child, it is nothing there either.
        let (reading, writing) = guards.take().unwrap();
        let mut writing = Some(writing);
        let forked = Forked::new(|| drop(writing.take().map(|guard| guard.downgrade())));
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!((said(&other.try_read()), other.readers()), ("WouldDeadlock".to_owned(), 0));
        drop((reading, writing));
        assert_eq!((try_write(&lock), said(&other.try_write())), ("Ok".to_owned(), "Ok".to_owned()));
    });
}

#[test]
fn a_forked_child_that_attaches_again_reads_and_writes_like_any_other() {
    isolated(|()| {
        let segment = Segment::anonymous(16 * 1024).unwrap();
        let lock = segment.rwlock("pair", [1_u64; 2]).unwrap();
        let board = Board::new(8);
        let guard = lock.read().unwrap();
        let forked = Forked::new(|| {
            let own = segment.attach_again().unwrap().rwlock("pair", [0_u64; 2]).unwrap();
            assert_eq!((own.readers(), seen(&own)), (1, [1; 2]));
            assert_eq!(said(&own.write_timeout(Duration::from_millis(60))), "TimedOut");
            board.set(HELD, 1);
            let mut guard = own.write_timeout(HANG).unwrap();
            guard[0] = 2;
            board.set(HELD, 2);
            park();
        });
        board.await_at_least(HELD, 1);
        drop(guard);
        board.await_at_least(HELD, 2);
        assert_eq!(try_read(&lock), "WouldBlock");
        assert_eq!(forked.kill(), End::Killed(9));
        assert_eq!(said(&lock.read_timeout(HANG)), "OwnerDied");
        assert_eq!(*lock.read().unwrap_err().into_guard().unwrap(), [2, 1]);
    });
}

// ---- All at once ----

/// Reads and writes until it is killed. A writer changes two words, one after the other.
fn until_killed((board, lock, seed): (Board, Pair, u64)) {
    tied_to_parent();
    let mut random = Rng::new(seed);
    let broken = || board.add(BROKEN, 1);
    loop {
        if random.once_in(3) {
            let written = match lock.write_timeout(HANG) {
                Err(LockError::OwnerDied(mut guard)) => {
                    let [a, b] = *guard;
                    if a != b && a != b + 1 {
                        broken();
                    }
                    guard[1] = a;
                    guard.mark_consistent();
                    board.add(WRITING, 1);
                    guard
                }
                Ok(guard) => guard,
                Err(_) => {
                    broken();
                    continue;
                }
            };
            let mut guard = written;
            if guard[0] != guard[1] {
                broken();
            }
            guard[0] += 1;
            (0..random.below(64)).for_each(|_| std::hint::spin_loop());
            guard[1] += 1;
            if random.once_in(2) {
                let guard = guard.downgrade();
                if guard[0] != guard[1] {
                    broken();
                }
            }
        } else {
            match lock.read_timeout(HANG) {
                Ok(guard) if guard[0] == guard[1] => {}
                // A writer's death: between its two stores, or not.
                Err(LockError::OwnerDied(guard)) if guard[0].wrapping_sub(guard[1]) <= 1 => {}
                _ => {
                    broken();
                }
            }
        }
        board.add(GO, 1);
    }
}

#[test]
fn kills_at_random_moments_leave_a_lock_that_works() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut random = Rng::new(seed);
    let (board, lock) = pair();
    let start = |random: &mut Rng| child(until_killed, (board.clone(), lock.clone(), random.bits()));
    let mut workers: Vec<_> = (0..3).map(|_| start(&mut random)).collect();
    for _ in 0..40 {
        let before = board.get(GO);
        board.await_at_least(GO, before + 1 + random.below(2000));
        let victim = random.below(3) as usize;
        kill_and_reap(&workers[victim]);
        workers[victim] = start(&mut random);
    }
    let before = board.get(GO);
    board.await_at_least(GO, before + 1000);
    workers.iter().for_each(kill_and_reap);
    println!("{} turns, {} repairs", board.get(GO), board.get(WRITING));
    assert_eq!(board.get(BROKEN), 0);
    let guard = lock.write_timeout(HANG).or_else(|e| e.repair(|data| data[1] = data[0])).unwrap();
    assert_eq!(guard[0], guard[1]);
    drop(guard);
    assert_eq!((lock.readers(), lock.writer(), lock.audit()), (0, None, Ok(())));
}
