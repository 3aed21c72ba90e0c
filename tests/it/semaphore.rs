//! Permits of the dead come back, once, and whoever waits for one is woken; a binary semaphore is handed from process to process.

use std::time::{Duration, Instant};

use crossproc_primitives::{
    BinarySemaphore, BoundedSemaphore, Objects, ReleaseError, Semaphore, SemaphoreError,
};
use crossproc_process::Process;
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, await_state, child, fresh_seed, isolated, join, kill_and_reap,
    tied_to_parent, wait_for,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::{End, Forked};

const READY: usize = 0;
const THROUGH: usize = 1;
const GO: usize = 2;
const INSIDE: usize = 3;
const BROKEN: usize = 4;

fn signal<R>(process: &Process<R>, signal: Signal) {
    let pid = Pid::from_raw(process.pid() as i32).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Takes `n` permits for good, one of them with a guard, and stays.
fn hold((board, semaphore, n): (Board, Semaphore, u64)) {
    tied_to_parent();
    let _guard = semaphore.acquire().unwrap();
    (1..n).for_each(|_| semaphore.acquire().unwrap().keep());
    board.add(READY, 1);
    loop {
        std::thread::park();
    }
}

/// Waits for a permit, keeps it until told to go, and gives it back.
fn wait_for_one((board, semaphore): (Board, Semaphore)) -> Result<(), String> {
    tied_to_parent();
    board.add(READY, 1);
    let permit = semaphore.acquire_timeout(HANG).map_err(|e| e.to_string())?;
    board.add(THROUGH, 1);
    board.await_at_least(GO, 1);
    drop(permit);
    Ok(())
}

#[test]
fn no_more_processes_are_inside_than_there_are_permits() {
    fn work((board, semaphore, turns): (Board, BoundedSemaphore, u64)) {
        for turn in 0..turns {
            let permit = semaphore.acquire_timeout(HANG).unwrap();
            if board.add(INSIDE, 1) >= 2 {
                board.add(BROKEN, 1);
            }
            std::hint::spin_loop();
            board.add(INSIDE, u64::MAX);
            match turn % 3 {
                0 => drop(permit),
                1 => {
                    permit.keep();
                    semaphore.release().unwrap();
                }
                _ => {
                    permit.consume();
                    semaphore.release().unwrap();
                }
            }
        }
    }
    let (board, semaphore) = (Board::new(8), BoundedSemaphore::new(2).unwrap());
    let children: Vec<_> = (0..3).map(|_| child(work, (board.clone(), semaphore.clone(), 3000))).collect();
    work((board.clone(), semaphore.clone(), 3000));
    children.into_iter().for_each(join);
    assert_eq!(board.get(BROKEN), 0);
    assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
    assert_eq!(semaphore.audit(), Ok(()));
}

#[test]
fn what_a_producer_releases_consumers_take_once() {
    fn consume((semaphore, n): (Semaphore, u64)) {
        (0..n).for_each(|_| semaphore.acquire_timeout(HANG).unwrap().consume());
    }
    let semaphore = Semaphore::new(0).unwrap();
    let consumers = [2000, 3000].map(|n| child(consume, (semaphore.clone(), n)));
    for turn in 0..1000 {
        semaphore.release_many(2 + turn % 9).unwrap();
    }
    consumers.into_iter().for_each(join);
    let released: u32 = (0..1000).map(|turn| 2 + turn % 9).sum();
    assert_eq!((semaphore.available(), semaphore.held()), (released - 5000, 0));
}

#[test]
fn the_permits_of_a_dead_process_come_back() {
    let (board, semaphore) = (Board::new(8), Semaphore::new(5).unwrap());
    let holder = child(hold, (board.clone(), semaphore.clone(), 3));
    board.await_at_least(READY, 1);
    assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
    kill_and_reap(&holder);
    wait_for("the permits to come back", || semaphore.available() == 5);
    semaphore.audit().unwrap();
    // Once.
    for _ in 0..5 {
        semaphore.try_acquire().unwrap().keep();
    }
    assert_eq!(semaphore.try_acquire().err(), Some(SemaphoreError::WouldBlock));
}

#[test]
fn a_try_finds_the_permit_of_a_dead_process() {
    let (board, semaphore) = (Board::new(8), BoundedSemaphore::new(1).unwrap());
    fn take((board, semaphore): (Board, BoundedSemaphore)) {
        semaphore.acquire().unwrap().keep();
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let holder = child(take, (board.clone(), semaphore.clone()));
    board.await_at_least(READY, 1);
    assert_eq!(semaphore.try_acquire().err(), Some(SemaphoreError::WouldBlock));
    kill_and_reap(&holder);
    wait_for("the proof", || semaphore.try_acquire().is_ok());
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn a_process_that_ends_in_good_order_gives_back_what_it_kept() {
    let semaphore = Semaphore::new(3).unwrap();
    join(child(
        |semaphore: Semaphore| {
            semaphore.acquire().unwrap().keep();
            std::mem::forget(semaphore.acquire().unwrap());
        },
        semaphore.clone(),
    ));
    assert_eq!((semaphore.available(), semaphore.held()), (3, 0));
}

#[test]
fn what_was_used_up_does_not_come_back_by_a_death() {
    fn use_up((board, semaphore): (Board, Semaphore)) {
        tied_to_parent();
        semaphore.acquire().unwrap().consume();
        semaphore.acquire().unwrap().keep();
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let (board, semaphore) = (Board::new(8), Semaphore::new(4).unwrap());
    let consumer = child(use_up, (board.clone(), semaphore.clone()));
    board.await_at_least(READY, 1);
    kill_and_reap(&consumer);
    wait_for("the kept one to come back", || semaphore.available() == 3);
    semaphore.audit().unwrap();
}

#[test]
fn as_many_waiters_are_let_go_as_permits_come_back() {
    let (board, semaphore) = (Board::new(8), Semaphore::new(2).unwrap());
    let holder = child(hold, (board.clone(), semaphore.clone(), 2));
    board.await_at_least(READY, 1);
    let waiters: Vec<_> = (0..3).map(|_| child(wait_for_one, (board.clone(), semaphore.clone()))).collect();
    board.await_at_least(READY, 4);
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    let killed = Instant::now();
    kill_and_reap(&holder);
    board.await_at_least(THROUGH, 2);
    println!("two were let go {:?} after the death", killed.elapsed());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(board.get(THROUGH), 2, "two permits were left behind");
    board.set(GO, 1);
    for waiter in waiters {
        assert_eq!(join(waiter), Ok(()));
    }
    assert_eq!(semaphore.available(), 2);
    semaphore.audit().unwrap();
}

#[test]
fn a_death_is_noticed_by_waiters_without_futex_waitv() {
    isolated(|()| {
        crossproc_atomic::set_futex_waitv(false);
        let (board, semaphore) = (Board::new(8), Semaphore::new(1).unwrap());
        let holder = child(hold, (board.clone(), semaphore.clone(), 1));
        board.await_at_least(READY, 1);
        std::thread::scope(|s| {
            let waiter = s.spawn(|| semaphore.acquire_timeout(HANG).map(drop));
            std::thread::sleep(Duration::from_millis(20));
            kill_and_reap(&holder);
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
    });
}

#[test]
fn a_killed_waiter_strands_nobody() {
    let (board, semaphore) = (Board::new(8), Semaphore::new(0).unwrap());
    board.set(GO, 1);
    for round in 0..20 {
        let waiters = [0, 1].map(|_| child(wait_for_one, (board.clone(), semaphore.clone())));
        board.await_at_least(READY, 2 * round + 2);
        waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
        // One may be woken and then killed, or killed asleep.
        let [victim, other] = waiters;
        if round % 2 == 0 {
            semaphore.release().unwrap();
            kill_and_reap_or_done(victim);
        } else {
            kill_and_reap(&victim);
            semaphore.release().unwrap();
        }
        assert_eq!(join(other), Ok(()));
        wait_for("the permit to be back", || semaphore.available() == 1);
        semaphore.acquire().unwrap().consume();
    }
}

/// Kills a child that may have ended by itself before.
fn kill_and_reap_or_done<R>(process: Process<R>) {
    let _ = process.kill();
    assert!(process.wait_timeout(HANG).is_some(), "it can not survive that");
}

#[test]
fn a_stopped_waiter_that_swallowed_the_wake_up_holds_up_the_others_for_a_slice_at_most() {
    let (board, semaphore) = (Board::new(8), Semaphore::new(0).unwrap());
    let waiters = [0, 1].map(|_| child(wait_for_one, (board.clone(), semaphore.clone())));
    board.await_at_least(READY, 2);
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    let [stopped, other] = waiters;
    signal(&stopped, Signal::STOP);
    await_state(stopped.pid(), 'T');
    let released = Instant::now();
    semaphore.release().unwrap();
    board.await_at_least(THROUGH, 1);
    println!("the other one has it after {:?}", released.elapsed());
    board.set(GO, 1);
    assert_eq!(join(other), Ok(()));
    signal(&stopped, Signal::CONT);
    assert_eq!(join(stopped), Ok(()));
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn a_stopped_holder_keeps_its_permit() {
    let (board, semaphore) = (Board::new(8), Semaphore::new(2).unwrap());
    let holder = child(hold, (board.clone(), semaphore.clone(), 2));
    board.await_at_least(READY, 1);
    signal(&holder, Signal::STOP);
    await_state(holder.pid(), 'T');
    let limit = Duration::from_millis(120);
    let started = Instant::now();
    assert_eq!(semaphore.acquire_timeout(limit).err(), Some(SemaphoreError::TimedOut));
    assert!(started.elapsed() >= limit);
    assert_eq!(semaphore.available(), 0);
    kill_and_reap(&holder);
    assert!(semaphore.acquire_timeout(HANG).is_ok());
}

#[test]
fn who_waits_and_nobody_is_left_to_release_is_told() {
    fn stay((board, semaphore): (Board, Semaphore)) {
        tied_to_parent();
        assert_eq!(semaphore.held(), 0);
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    isolated(|()| {
        let (board, semaphore) = (Board::new(8), Semaphore::new(0).unwrap());
        let early = semaphore.acquire_timeout(Duration::from_millis(60));
        assert_eq!(early.err(), Some(SemaphoreError::TimedOut), "the first other one may be on its way");
        let peer = child(stay, (board.clone(), semaphore.clone()));
        board.await_at_least(READY, 1);
        std::thread::scope(|s| {
            let waiter = s.spawn(|| semaphore.acquire_timeout(HANG).map(drop));
            std::thread::sleep(Duration::from_millis(20));
            kill_and_reap(&peer);
            assert_eq!(waiter.join().unwrap(), Err(SemaphoreError::PeerDied));
        });
        assert_eq!(semaphore.acquire().err(), Some(SemaphoreError::PeerDied));
        assert_eq!(semaphore.try_acquire().err(), Some(SemaphoreError::WouldBlock));
        // Whoever holds one can release it in another thread.
        semaphore.release().unwrap();
        let mine = semaphore.acquire().unwrap();
        let limit = Duration::from_millis(60);
        assert_eq!(semaphore.acquire_timeout(limit).err(), Some(SemaphoreError::TimedOut));
        drop(mine);
        semaphore.acquire().unwrap().consume();
    });
}

#[test]
fn a_release_by_who_holds_none_adds_one() {
    let (semaphore, bounded) = (Semaphore::new(1).unwrap(), BoundedSemaphore::new(1).unwrap());
    let permit = semaphore.acquire().unwrap();
    bounded.acquire().unwrap().keep();
    let others = |(semaphore, bounded): (Semaphore, BoundedSemaphore)| {
        semaphore.release().unwrap();
        bounded.release().unwrap();
        let too_many = bounded.release() == Err(ReleaseError::OverRelease);
        (semaphore.available(), semaphore.held(), too_many)
    };
    assert_eq!(join(child(others, (semaphore.clone(), bounded.clone()))), (1, 0, true));
    drop(permit);
    assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
    assert_eq!((bounded.available(), bounded.held()), (1, 1));
    assert_eq!(bounded.release(), Err(ReleaseError::OverRelease));
}

#[test]
fn a_forked_child_takes_no_part() {
    isolated(|()| {
        let semaphore = Semaphore::new(2).unwrap();
        let turn = BinarySemaphore::new().unwrap();
        turn.acquire().unwrap();
        let mut permit = Some(semaphore.acquire().unwrap());
        let forked = Forked::new(|| {
            drop(permit.take());
            assert_eq!(semaphore.acquire().err(), Some(SemaphoreError::NotAttached));
            assert_eq!(semaphore.try_acquire().err(), Some(SemaphoreError::NotAttached));
            assert_eq!(semaphore.release(), Err(ReleaseError::NotAttached));
            assert_eq!(semaphore.release_many(2), Err(ReleaseError::NotAttached));
            assert_eq!((semaphore.available(), semaphore.held()), (1, 0));
            assert_eq!(turn.try_acquire(), Err(SemaphoreError::NotAttached));
            assert_eq!(turn.release(), Err(ReleaseError::NotAttached));
            assert!(turn.is_taken());
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!((semaphore.available(), semaphore.held()), (1, 1));
        let forked = Forked::new(|| permit.take().unwrap().consume());
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!((semaphore.available(), semaphore.held()), (1, 1));
        drop(permit);
        assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
        assert_eq!(turn.holder(), Some(std::process::id()));
    });
}

#[test]
fn a_forked_child_that_attaches_holds_what_it_acquires_itself() {
    isolated(|()| {
        let segment = Segment::anonymous(16 * 1024).unwrap();
        let semaphore = segment.semaphore("s", 3).unwrap();
        let mut permit = Some(semaphore.acquire().unwrap());
        let forked = Forked::new(|| {
            let own = segment.attach_again().unwrap().semaphore("s", 0).unwrap();
            assert_eq!(own.held(), 0);
            own.acquire().unwrap().keep();
            drop(permit.take()); // its parent's
            assert_eq!((own.available(), own.held()), (1, 1));
        });
        assert_eq!(forked.end(), End::Exited(0));
        wait_for("the child's permit to come back", || semaphore.available() == 2);
        assert_eq!(semaphore.held(), 1);
        drop(permit);
        assert_eq!(semaphore.available(), 3);
    });
}

/// The dead one's slot, and its cell with it, goes to the next process.
#[test]
fn who_gets_the_slot_of_a_dead_process_does_not_get_its_permits() {
    let (board, segment) = (Board::new(8), SegmentOptions::new().participants(2).anonymous(4096).unwrap());
    let semaphore = segment.semaphore("s", 3).unwrap();
    for round in 1..=15 {
        let holder = child(hold, (board.clone(), semaphore.clone(), 2));
        board.await_at_least(READY, round);
        assert_eq!(semaphore.available(), 1);
        kill_and_reap(&holder);
        if round % 3 == 0 {
            wait_for("the permits to come back", || semaphore.available() == 3);
        }
        // Else it is the next one in the slot that finds them.
    }
    wait_for("the permits to come back", || semaphore.available() == 3);
    semaphore.audit().unwrap();
}

/// Children that take and give in every way are killed at random moments, again and again: no permit is lost or doubled.
#[test]
fn a_storm_of_deaths_loses_and_doubles_nothing() {
    const PERMITS: u32 = 5;
    fn work((board, semaphore, seed): (Board, Semaphore, u64)) {
        tied_to_parent();
        let mut rng = Rng::new(seed);
        board.add(READY, 1);
        let mut guards = Vec::new();
        loop {
            match rng.below(6) {
                0 | 1 => guards.extend(semaphore.try_acquire()),
                2 => drop(guards.pop()),
                3 => {
                    // At most two of the five are ever waited for with some in hand.
                    guards.clear();
                    while semaphore.held() > 0 {
                        semaphore.release().unwrap();
                    }
                    drop(semaphore.acquire_timeout(HANG).unwrap());
                }
                4 => {
                    if let Ok(permit) = semaphore.try_acquire() {
                        permit.keep();
                    }
                }
                _ => {
                    let held = semaphore.held() - guards.len() as u32;
                    semaphore.release_many(held).unwrap();
                }
            }
        }
    }
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let (board, semaphore) = (Board::new(8), Semaphore::new(PERMITS).unwrap());
    let mut children: Vec<_> =
        (0..3).map(|n| child(work, (board.clone(), semaphore.clone(), seed + n))).collect();
    for kill in 0..60 {
        board.await_at_least(READY, kill + 3);
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        let at = rng.below(3) as usize;
        let fresh = child(work, (board.clone(), semaphore.clone(), seed + 100 + kill));
        let old = std::mem::replace(&mut children[at], fresh);
        kill_and_reap(&old);
        assert!(semaphore.available() <= PERMITS);
    }
    children.iter().for_each(kill_and_reap);
    wait_for("all permits to come back", || semaphore.available() == PERMITS);
    semaphore.audit().unwrap();
}

// ---- Binary ----

#[test]
fn processes_exclude_each_other_by_a_binary_semaphore() {
    fn work((board, turn, turns): (Board, BinarySemaphore, u64)) {
        for _ in 0..turns {
            turn.acquire_timeout(HANG).unwrap();
            if board.swap(INSIDE, 1) != 0 {
                board.add(BROKEN, 1);
            }
            std::hint::spin_loop();
            board.set(INSIDE, 0);
            turn.release().unwrap();
        }
    }
    let (board, turn) = (Board::new(8), BinarySemaphore::new().unwrap());
    let children: Vec<_> = (0..3).map(|_| child(work, (board.clone(), turn.clone(), 4000))).collect();
    work((board.clone(), turn.clone(), 4000));
    children.into_iter().for_each(join);
    assert_eq!(board.get(BROKEN), 0);
    assert!(!turn.is_taken());
}

#[test]
fn a_binary_semaphore_is_released_by_another_process() {
    let turn = BinarySemaphore::new().unwrap();
    turn.acquire().unwrap();
    let release = |turn: BinarySemaphore| {
        let holder = turn.holder();
        let tried = turn.try_acquire();
        turn.release().unwrap();
        (holder, tried.is_ok(), turn)
    };
    let (holder, tried, back) = join(child(release, turn.clone()));
    assert_eq!((holder, tried), (Some(std::process::id()), false));
    assert!(!back.is_taken() && !turn.is_taken());
    assert_eq!(turn.release(), Err(ReleaseError::OverRelease));
    turn.acquire().unwrap();
    assert!(back.is_taken(), "the handle came back and leads to the same");
}

fn take((board, turn): (Board, BinarySemaphore)) {
    tied_to_parent();
    turn.acquire().unwrap();
    board.add(READY, 1);
    loop {
        std::thread::park();
    }
}

#[test]
fn a_binary_semaphore_is_free_when_who_took_it_dies() {
    let (board, turn) = (Board::new(8), BinarySemaphore::new().unwrap());
    let holder = child(take, (board.clone(), turn.clone()));
    board.await_at_least(READY, 1);
    assert_eq!(turn.holder(), Some(holder.pid()));
    assert_eq!(turn.acquire_timeout(Duration::from_millis(60)), Err(SemaphoreError::TimedOut));
    kill_and_reap(&holder);
    wait_for("it to be free", || !turn.is_taken());
    assert_eq!(turn.holder(), None);
    turn.try_acquire().unwrap();
    turn.release().unwrap();
    assert_eq!(turn.release(), Err(ReleaseError::OverRelease));
}

#[test]
fn who_waits_for_a_dead_ones_binary_semaphore_gets_it() {
    fn pass((board, turn): (Board, BinarySemaphore)) {
        tied_to_parent();
        board.add(READY, 1);
        turn.acquire_timeout(HANG).unwrap();
        if board.add(INSIDE, 1) > 0 {
            board.add(BROKEN, 1);
        }
        std::thread::sleep(Duration::from_millis(2));
        board.add(INSIDE, u64::MAX);
        turn.release().unwrap();
    }
    let (board, turn) = (Board::new(8), BinarySemaphore::new().unwrap());
    let holder = child(take, (board.clone(), turn.clone()));
    board.await_at_least(READY, 1);
    let waiters: Vec<_> = (0..3).map(|_| child(pass, (board.clone(), turn.clone()))).collect();
    board.await_at_least(READY, 4);
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    kill_and_reap(&holder);
    waiters.into_iter().for_each(join);
    assert_eq!(board.get(BROKEN), 0);
    assert!(!turn.is_taken());
}
