//! Who sleeps is woken by a death, whoever died; the dead give their slots back.

use std::time::{Duration, Instant};

use crossproc_primitives::{AccessError, Objects, Value};
use crossproc_process::Process;
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::{
    Board, HANG, await_asleep, child, isolated, join, kill_and_reap, tied_to_parent, wait_for,
};

const READY: usize = 0;
const WOKEN: usize = 1;

/// Attached and idle.
fn stay((board, segment): (Board, Segment)) {
    tied_to_parent();
    segment.check_attached().unwrap();
    board.add(READY, 1);
    loop {
        std::thread::park();
    }
}

/// Sleeps until the value changes or nobody else is left; says how that ended.
fn sleep_on((board, value): (Board, Value<u64>)) -> Result<u64, String> {
    tied_to_parent();
    board.add(READY, 1);
    let result = value.wait_while_timeout(HANG, |&v| v == 0);
    board.add(WOKEN, 1);
    match result {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err("timed out".into()),
        Err(AccessError::PeerDied) => Err("peer died".into()),
        Err(other) => Err(other.to_string()),
    }
}

/// A segment with a value for a child and this process; the board is another segment, to which the deaths mean nothing.
fn value_in(segment: &Segment) -> Value<u64> {
    segment.value("v", 0).unwrap()
}

fn small() -> Segment {
    SegmentOptions::new().participants(8).anonymous(4096).unwrap()
}

#[test]
fn who_waits_for_the_dead_is_told() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        let peer = child(stay, (board.clone(), segment.clone()));
        board.await_at_least(READY, 1);
        let waiter = std::thread::spawn(move || {
            let started = Instant::now();
            let result = value.wait_while_timeout(HANG, |&v| v == 0);
            (result, started.elapsed())
        });
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&peer);
        let (result, took) = waiter.join().unwrap();
        assert_eq!(result, Err(AccessError::PeerDied));
        println!("told after {took:?}");
    });
}

#[test]
fn who_comes_to_wait_after_the_death_is_told_too() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        let peer = child(stay, (board.clone(), segment.clone()));
        board.await_at_least(READY, 1);
        kill_and_reap(&peer);
        assert_eq!(value.wait_while_timeout(HANG, |&v| v == 0), Err(AccessError::PeerDied));
    });
}

#[test]
fn waiting_before_the_first_peer_came_is_no_error() {
    let value = value_in(&small());
    assert_eq!(value.wait_while_timeout(Duration::from_millis(120), |&v| v == 0), Ok(None));
}

#[test]
fn who_waits_is_not_told_while_one_peer_is_left() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        let peers = [0, 1].map(|_| child(stay, (board.clone(), segment.clone())));
        board.await_at_least(READY, 2);
        kill_and_reap(&peers[0]);
        assert_eq!(value.wait_while_timeout(Duration::from_millis(120), |&v| v == 0), Ok(None));
        kill_and_reap(&peers[1]);
        assert_eq!(value.wait_while_timeout(HANG, |&v| v == 0), Err(AccessError::PeerDied));
    });
}

/// Leaves as soon as it is told to, in good order.
fn leave((board, segment): (Board, Segment)) {
    tied_to_parent();
    segment.check_attached().unwrap();
    board.add(READY, 1);
    board.await_at_least(WOKEN, 1);
}

#[test]
fn a_peer_that_leaves_in_good_order_is_gone_as_well() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        let peer = child(leave, (board.clone(), segment.clone()));
        board.await_at_least(READY, 1);
        let waiter = std::thread::spawn(move || value.wait_while_timeout(HANG, |&v| v == 0));
        std::thread::sleep(Duration::from_millis(20));
        board.set(WOKEN, 1);
        join(peer);
        assert_eq!(waiter.join().unwrap(), Err(AccessError::PeerDied));
    });
}

#[test]
fn a_peer_that_came_while_others_slept_is_watched_too() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        // Asleep long enough that its slices have grown.
        let waiter = std::thread::spawn(move || value.wait_while_timeout(HANG, |&v| v == 0));
        std::thread::sleep(Duration::from_millis(400));
        let peer = child(stay, (board.clone(), segment.clone()));
        board.await_at_least(READY, 1);
        let killed = Instant::now();
        kill_and_reap(&peer);
        assert_eq!(waiter.join().unwrap(), Err(AccessError::PeerDied));
        println!("told after {:?}", killed.elapsed());
    });
}

/// The kernel wakes one sleeper of a token; that one has to wake the rest.
#[test]
fn one_death_wakes_every_sleeper() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        let sleepers: Vec<Process<_>> =
            (0..5).map(|_| child(sleep_on, (board.clone(), value.clone()))).collect();
        board.await_at_least(READY, 5);
        sleepers.iter().for_each(|sleeper| await_asleep(sleeper.pid()));
        // One after the other, until one is alone but for us; then we leave as well.
        drop((value, segment));
        let mut sleepers = sleepers.into_iter();
        let last = sleepers.next_back().unwrap();
        sleepers.for_each(|sleeper| kill_and_reap(&sleeper));
        assert_eq!(join(last), Err("peer died".to_owned()));
        assert_eq!(board.get(WOKEN), 1);
    });
}

#[test]
fn a_death_is_noticed_without_futex_waitv() {
    isolated(|()| {
        crossproc_atomic::set_futex_waitv(false);
        let (board, segment) = (Board::new(8), small());
        let value = value_in(&segment);
        let peer = child(stay, (board.clone(), segment.clone()));
        board.await_at_least(READY, 1);
        let waiter = std::thread::spawn(move || value.wait_while_timeout(HANG, |&v| v == 0));
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&peer);
        assert_eq!(waiter.join().unwrap(), Err(AccessError::PeerDied));
    });
}

#[test]
fn slots_of_the_dead_are_given_to_the_living() {
    isolated(|()| {
        let board = Board::new(8);
        let segment = SegmentOptions::new().participants(3).anonymous(4096).unwrap();
        let mut generations = Vec::new();
        for round in 0..20 {
            let pair = [0, 1].map(|_| child(stay, (board.clone(), segment.clone())));
            board.await_at_least(READY, 2 * (round + 1));
            let attached = segment.attached().unwrap();
            assert_eq!(attached.len(), 3, "{attached:?}");
            let mut pids: Vec<u32> = attached.iter().filter(|p| !p.is_me).map(|p| p.pid).collect();
            let mut expected = pair.each_ref().map(Process::pid);
            pids.sort_unstable();
            expected.sort_unstable();
            assert_eq!(pids, expected);
            generations.extend(attached.iter().filter(|p| !p.is_me).map(|p| p.owner.bits()));
            pair.iter().for_each(kill_and_reap);
            wait_for("the dead to be seen", || segment.attached().unwrap().len() == 1);
        }
        generations.sort_unstable();
        generations.dedup();
        assert_eq!(generations.len(), 40, "no identity is given twice");
    });
}

/// Attached and idle, in a segment with room for more than a board has.
fn stay_among_many(segment: Segment) {
    tied_to_parent();
    segment.value("ready", 0_u64).unwrap().fetch_add(1);
    loop {
        std::thread::park();
    }
}

/// More peers than one call of the kernel can watch: then sleeps are short.
#[test]
fn a_death_among_very_many_is_noticed() {
    isolated(|()| {
        let segment = SegmentOptions::new().participants(200).anonymous(64 * 1024).unwrap();
        let (value, ready) = (value_in(&segment), segment.value("ready", 0_u64).unwrap());
        let peers: Vec<_> = (0..135).map(|_| child(stay_among_many, segment.clone())).collect();
        wait_for("all to be there", || ready.get() == Ok(135));
        assert_eq!(segment.attached().unwrap().len(), 136);
        let waiter = std::thread::spawn(move || value.wait_while_timeout(HANG, |&v| v == 0));
        std::thread::sleep(Duration::from_millis(20));
        peers.iter().for_each(kill_and_reap);
        assert_eq!(waiter.join().unwrap(), Err(AccessError::PeerDied));
    });
}
