//! Barriers between processes: all pass together or none, and nobody waits for a dead party.

use std::time::Duration;

use crossproc_primitives::{Barrier, BarrierError, BarrierTurn, BrokenBy, Objects};
use crossproc_process::{ExitStatus, Process};
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::{
    Board, HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, tied_to_parent, wait_for,
};
use rustix::process::Signal;

use crate::event::signal;
use crate::kernel::{End, Forked};

const READY: usize = 0;
const GO: usize = 1;
const COME: usize = 2;
const PLACES: usize = 3;

fn said(result: Result<BarrierTurn, BarrierError>) -> String {
    match result {
        Ok(turn) => format!("passed {}", turn.index),
        Err(BarrierError::Broken(why)) => format!("{why:?}"),
        Err(other) => format!("{other:?}"),
    }
}

/// Waits once when it is told to (at once if it has been).
fn wait((board, barrier): (Board, Barrier)) -> String {
    tied_to_parent();
    board.add(READY, 1);
    board.await_at_least(GO, 1);
    said(barrier.wait_timeout(HANG))
}

/// A process that has the barrier and has yet to be told to wait.
fn party(board: &Board, barrier: &Barrier) -> Process<String> {
    let before = board.get(READY);
    let process = child(wait, (board.clone(), barrier.clone()));
    board.await_at_least(READY, before + 1);
    process
}

/// A process that waits, so many of them together.
fn sleepers<const N: usize>(board: &Board, barrier: &Barrier) -> [Process<String>; N] {
    board.set(GO, 1);
    let before = barrier.waiting();
    let sleepers = [(); N].map(|()| party(board, barrier));
    wait_for("all to wait", || barrier.waiting() == before + N);
    sleepers.iter().for_each(|sleeper| await_asleep(sleeper.pid()));
    sleepers
}

fn new(parties: usize) -> (Board, Barrier) {
    (Board::new(8), Barrier::new(parties).unwrap())
}

const PARTY_DIED: Result<BarrierTurn, BarrierError> = Err(BarrierError::Broken(BrokenBy::PartyDied));

#[test]
fn processes_pass_turn_by_turn() {
    const PARTIES: u64 = 3;
    const TURNS: u64 = 1000;
    fn work((board, barrier): (Board, Barrier)) {
        tied_to_parent();
        for turn in 0..TURNS {
            board.add(COME, 1);
            let passed = barrier.wait_timeout(HANG).unwrap();
            assert!(board.get(COME) >= PARTIES * (turn + 1), "somebody has yet to come");
            board.add(PLACES, 1 << (8 * passed.index));
            let acted = barrier.wait_then(|| assert_eq!(board.swap(PLACES, 0), 0x01_0101));
            acted.unwrap();
        }
    }
    let (board, barrier) = new(3);
    let children: Vec<_> = (1..PARTIES).map(|_| child(work, (board.clone(), barrier.clone()))).collect();
    work((board.clone(), barrier.clone()));
    children.into_iter().for_each(join);
    assert_eq!((board.get(COME), barrier.waiting(), barrier.is_broken()), (PARTIES * TURNS, 0, false));
    barrier.audit().unwrap();
}

#[test]
fn a_party_that_dies_before_it_comes_breaks_it() {
    let (board, barrier) = new(3);
    let missing = party(&Board::new(8), &barrier);
    let [waiting] = sleepers(&board, &barrier);
    kill_and_reap(&missing);
    assert_eq!(join(waiting), "PartyDied");

    let barrier = Barrier::new(3).unwrap();
    kill_and_reap(&party(&Board::new(8), &barrier));
    assert_eq!(barrier.try_wait(), PARTY_DIED, "who comes later is told as well");
    assert_eq!(barrier.wait(), PARTY_DIED);
    assert!(barrier.is_broken());
    assert_eq!(barrier.reset(), Ok(1));
    assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock));
}

#[test]
fn a_party_that_dies_while_it_waits_breaks_it() {
    let (board, barrier) = new(4);
    let [victim, first, second] = sleepers(&board, &barrier);
    kill_and_reap(&victim);
    assert_eq!([first, second].map(join), ["PartyDied", "PartyDied"]);
    assert_eq!(barrier.wait(), PARTY_DIED);
    assert_eq!(barrier.reset(), Ok(1));
    let others: [_; 3] = sleepers(&board, &barrier);
    assert_eq!(said(barrier.wait()), "passed 3");
    let mut places = others.map(join);
    places.sort();
    assert_eq!(places, ["passed 0", "passed 1", "passed 2"]);
}

#[test]
fn a_party_that_dies_when_all_have_come_is_missed_in_the_next_turn() {
    let (board, barrier) = new(3);
    let [victim, other] = sleepers(&board, &barrier);
    signal(&victim, Signal::STOP);
    await_state(victim.pid(), 'T');
    assert_eq!(said(barrier.wait()), "passed 2");
    assert!(join(other).starts_with("passed"));
    // It has been let through, and never learns it.
    kill_and_reap(&victim);
    assert_eq!(barrier.wait(), PARTY_DIED);
    assert_eq!(barrier.reset(), Ok(1));
}

#[test]
fn a_stopped_party_learns_later_how_its_turn_ended() {
    let (board, barrier) = new(2);
    let [stopped] = sleepers(&board, &barrier);
    signal(&stopped, Signal::STOP);
    await_state(stopped.pid(), 'T');
    barrier.abort().unwrap();
    for _ in 0..3 {
        assert_eq!(barrier.reset(), Ok(0));
        assert_eq!(said(barrier.wait_timeout(Duration::ZERO)), "Timeout");
    }
    signal(&stopped, Signal::CONT);
    assert_eq!(join(stopped), "Abort");

    barrier.reset().unwrap();
    let [stopped] = sleepers(&board, &barrier);
    signal(&stopped, Signal::STOP);
    await_state(stopped.pid(), 'T');
    assert_eq!(said(barrier.try_wait()), "passed 1");
    for _ in 0..3 {
        assert_eq!(said(barrier.wait_timeout(Duration::ZERO)), "Timeout");
        assert_eq!(barrier.reset(), Ok(0));
    }
    signal(&stopped, Signal::CONT);
    assert_eq!(join(stopped), "passed 0");
}

#[test]
fn a_deadline_a_reset_and_an_abort_are_told_in_all_processes() {
    let (board, barrier) = new(3);
    let [sleeper] = sleepers(&board, &barrier);
    assert_eq!(said(barrier.wait_timeout(Duration::from_millis(60))), "Timeout");
    assert_eq!(join(sleeper), "Timeout");
    assert_eq!(join(party(&board, &barrier)), "Timeout", "until it is reset");
    barrier.reset().unwrap();
    let [sleeper] = sleepers(&board, &barrier);
    barrier.reset().unwrap();
    assert_eq!(join(sleeper), "Reset");
    let [sleeper] = sleepers(&board, &barrier);
    barrier.abort().unwrap();
    assert_eq!(join(sleeper), "Abort");
}

#[test]
fn an_action_that_never_ends_well_breaks_it() {
    fn act((board, barrier, panics): (Board, Barrier, bool)) {
        tied_to_parent();
        let _ = barrier.wait_then(|| {
            board.set(COME, 1);
            assert!(!panics, "on purpose");
            loop {
                std::thread::park();
            }
        });
    }
    for panics in [false, true] {
        let (board, barrier) = new(2);
        let [sleeper] = sleepers(&board, &barrier);
        let actor = child(act, (board.clone(), barrier.clone(), panics));
        board.await_at_least(COME, 1);
        if panics {
            assert_eq!(actor.wait_timeout(HANG), Some(ExitStatus::Code(101)));
        } else {
            assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock), "it runs");
            kill_and_reap(&actor);
        }
        assert_eq!(join(sleeper), if panics { "Panic" } else { "PartyDied" });
    }
}

/// Has the barrier, drops what it is told to, and stays until it is told to end.
fn hold((board, segment, handles, dropped): (Board, Segment, usize, usize)) {
    tied_to_parent();
    let mut all: Vec<_> = (0..handles).map(|_| segment.barrier("it", 2).unwrap()).collect();
    let clones: Vec<_> = all.iter().chain(&all).cloned().collect();
    drop(clones);
    all.truncate(handles - dropped);
    board.add(READY, 1);
    board.await_at_least(GO, 1);
    if board.get(GO) == 2 {
        std::process::exit(0); // without dropping anything
    }
}

#[test]
fn who_has_a_handle_is_a_party_and_nobody_else() {
    let segment = Segment::anonymous(64 * 1024).unwrap();
    let barrier = segment.barrier("it", 2).unwrap();
    for (handles, dropped, end, is_party) in [
        (1, 0, 0, true),
        (3, 2, 0, true),
        (0, 0, 0, false),
        (1, 1, 0, false),
        (3, 3, 0, false),
        (1, 0, 1, false),
        (2, 0, 2, true),
    ] {
        let what = format!("{handles} handles, {dropped} dropped, end {end}");
        let board = Board::new(8);
        let holder = child(hold, (board.clone(), segment.clone(), handles, dropped));
        board.await_at_least(READY, 1);
        assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock), "{what}");
        if end == 0 {
            kill_and_reap(&holder);
        } else {
            board.set(GO, end);
            assert_eq!(holder.wait_timeout(HANG), Some(ExitStatus::Code(0)), "{what}");
        }
        let expected = if is_party { PARTY_DIED } else { Err(BarrierError::WouldBlock) };
        assert_eq!(barrier.try_wait(), expected, "{what}");
        assert_eq!(barrier.reset(), Ok(usize::from(is_party)), "{what}");
    }
}

#[test]
fn parties_that_leave_in_good_order_break_nothing() {
    isolated(|()| {
        let segment = Segment::anonymous(64 * 1024).unwrap();
        let barrier = segment.barrier("it", 2).unwrap();
        let (leaves, stays) = (Board::new(8), Board::new(8));
        let first = child(hold, (leaves.clone(), segment.clone(), 1, 0));
        let second = child(hold, (stays.clone(), segment.clone(), 1, 0));
        leaves.await_at_least(READY, 1);
        stays.await_at_least(READY, 1);
        let waiter = std::thread::spawn({
            let barrier = barrier.clone();
            move || barrier.wait_timeout(HANG)
        });
        wait_for("it to wait", || barrier.waiting() == 1);
        leaves.set(GO, 1);
        join(first);
        stays.set(GO, 1);
        join(second);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(barrier.waiting(), 1, "nobody has died, and others may come");
        assert!(barrier.try_wait().unwrap().is_last);
        assert_eq!(waiter.join().unwrap().map(|turn| turn.index), Ok(0));
    });
}

#[test]
fn who_gets_the_slot_of_a_dead_party_does_not_hide_its_death() {
    // Room for this process and one other.
    let segment = SegmentOptions::new().participants(2).anonymous(64 * 1024).unwrap();
    let barrier = segment.barrier("it", 2).unwrap();
    let mut struck = 0;
    for _ in 0..3 {
        let board = Board::new(8);
        let victim = child(hold, (board.clone(), segment.clone(), 1, 0));
        board.await_at_least(READY, 1);
        kill_and_reap(&victim);
        let board = Board::new(8);
        let next = child(hold, (board.clone(), segment.clone(), 1, 0));
        board.await_at_least(READY, 1);
        assert_eq!(barrier.try_wait(), PARTY_DIED);
        struck += barrier.reset().unwrap();
        assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock), "the new one is alive");
        board.set(GO, 1);
        join(next);
        assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock), "it has left in good order");
    }
    assert_eq!(struck, 3);
}

#[test]
fn a_forked_child_is_no_party_and_takes_no_handle_of_its_parent_away() {
    fn fork_and_stay((board, barrier): (Board, Barrier)) {
        tied_to_parent();
        let mut copy = Some(barrier);
        let forked = Forked::new(|| {
            let barrier = copy.take().unwrap();
            assert_eq!(barrier.wait(), Err(BarrierError::NotAttached));
            assert_eq!(barrier.try_wait(), Err(BarrierError::NotAttached));
            assert_eq!(barrier.abort(), Err(BarrierError::NotAttached));
            assert_eq!(barrier.reset(), Err(BarrierError::NotAttached));
            assert_eq!((barrier.parties(), barrier.is_broken()), (2, false));
            drop(barrier);
        });
        assert_eq!(forked.end(), End::Exited(0));
        board.set(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let (board, barrier) = new(2);
    let parent = child(fork_and_stay, (board.clone(), barrier.clone()));
    board.await_at_least(READY, 1);
    assert_eq!(barrier.try_wait(), Err(BarrierError::WouldBlock), "the forked child was no party");
    kill_and_reap(&parent);
    assert_eq!(barrier.wait_timeout(HANG), PARTY_DIED, "its parent was");
}

#[test]
fn the_maker_may_leave_the_barrier_to_others() {
    let (board, barrier) = new(2);
    board.set(GO, 1);
    let parties = [0; 2].map(|_| child(wait, (board.clone(), barrier.clone())));
    board.await_at_least(READY, 2);
    drop(barrier);
    let mut told = parties.map(join);
    told.sort();
    assert_eq!(told, ["passed 0", "passed 1"]);
}
