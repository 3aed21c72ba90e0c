//! A set event lets all go, and nobody waits for the dead.

use std::time::{Duration, Instant};

use crossproc_primitives::{Event, Objects, WaitError};
use crossproc_process::Process;
use crossproc_segment::Segment;
use crossproc_tests::{
    Board, HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, tied_to_parent,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::{End, Forked};

const READY: usize = 0;
const GO: usize = 1;

fn wait((board, event): (Board, Event)) -> Result<(), String> {
    tied_to_parent();
    board.add(READY, 1);
    event.wait_timeout(HANG).map_err(|error| format!("{error:?}"))
}

/// A process that is asleep in `wait`.
fn sleeper(board: &Board, event: &Event) -> Process<Result<(), String>> {
    let before = board.get(READY);
    let process = child(wait, (board.clone(), event.clone()));
    board.await_at_least(READY, before + 1);
    await_asleep(process.pid());
    process
}

/// Attached, and told to go: then it ends in good order.
fn stay((board, event): (Board, Event)) {
    tied_to_parent();
    assert!(!event.is_set());
    board.add(READY, 1);
    board.await_at_least(GO, 1);
}

pub(crate) fn signal<R>(process: &Process<R>, signal: Signal) {
    let pid = Pid::from_raw(process.pid().cast_signed()).expect("a process id");
    kill_process(pid, signal).expect("a child can be signalled");
}

#[test]
fn a_pulse_lets_all_sleepers_go() {
    let (board, event) = (Board::new(8), Event::new().unwrap());
    let sleepers: Vec<_> = (0..4).map(|_| sleeper(&board, &event)).collect();
    event.set().unwrap();
    assert_eq!(event.clear(), Ok(true));
    for sleeper in sleepers {
        assert_eq!(join(sleeper), Ok(()));
    }
    assert!(!event.is_set());
}

#[test]
fn a_stopped_waiter_learns_later_of_a_pulse_and_holds_nobody_up() {
    let (board, event) = (Board::new(8), Event::new().unwrap());
    let (stopped, other) = (sleeper(&board, &event), sleeper(&board, &event));
    signal(&stopped, Signal::STOP);
    await_state(stopped.pid(), 'T');
    for _ in 0..3 {
        event.set().unwrap();
        event.clear().unwrap();
    }
    assert_eq!(join(other), Ok(()));
    signal(&stopped, Signal::CONT);
    assert_eq!(join(stopped), Ok(()));
}

#[test]
fn a_waiter_that_is_killed_is_no_loss() {
    let (board, event) = (Board::new(8), Event::new().unwrap());
    let mut sleepers: Vec<_> = (0..3).map(|_| sleeper(&board, &event)).collect();
    kill_and_reap(&sleepers.remove(1));
    event.set().unwrap();
    for sleeper in sleepers {
        assert_eq!(join(sleeper), Ok(()));
    }
}

#[test]
fn who_sets_it_and_dies_has_set_it() {
    fn set_and_die((board, event): (Board, Event)) {
        tied_to_parent();
        board.await_at_least(GO, 1);
        event.set().unwrap();
        std::process::abort();
    }
    isolated(|()| {
        for _ in 0..10 {
            let (board, event) = (Board::new(8), Event::new().unwrap());
            let setter = child(set_and_die, (board.clone(), event.clone()));
            let waiter = std::thread::spawn({
                let event = event.clone();
                move || event.wait_timeout(HANG)
            });
            board.set(GO, 1);
            // Its last peer is gone by then, or soon will be; and has set the event before.
            assert_eq!(waiter.join().unwrap(), Ok(()));
            drop(setter);
        }
    });
}

#[test]
fn who_is_left_alone_is_told() {
    isolated(|()| {
        for killed in [true, false] {
            for asleep in [true, false] {
                let (board, event) = (Board::new(8), Event::new().unwrap());
                // Waiting before the first one comes is no error.
                assert_eq!(event.wait_timeout(Duration::from_millis(80)), Err(WaitError::TimedOut));
                let peers = [0; 2].map(|_| child(stay, (board.clone(), event.clone())));
                board.await_at_least(READY, 2);
                let waiter = {
                    let event = event.clone();
                    move || event.wait_timeout(HANG)
                };
                let waiter = asleep.then(|| std::thread::spawn(waiter.clone()));
                let [first, second] = peers;
                kill_and_reap(&first);
                assert_eq!(
                    event.wait_timeout(Duration::from_millis(80)),
                    Err(WaitError::TimedOut),
                    "one is left"
                );
                if killed {
                    kill_and_reap(&second);
                } else {
                    board.set(GO, 1);
                    join(second);
                }
                let told = match waiter {
                    Some(waiter) => waiter.join().unwrap(),
                    None => event.wait_timeout(HANG),
                };
                assert_eq!(told, Err(WaitError::PeerDied), "killed: {killed}, asleep: {asleep}");
                event.set().unwrap();
                assert_eq!(event.wait(), Ok(()), "set is set");
            }
        }
    });
}

#[test]
fn nobody_waits_longer_than_asked_while_others_live() {
    let (board, event) = (Board::new(8), Event::new().unwrap());
    let peer = child(stay, (board.clone(), event.clone()));
    board.await_at_least(READY, 1);
    for limit in [0, 1, 30, 120].map(Duration::from_millis) {
        let started = Instant::now();
        assert_eq!(event.wait_timeout(limit), Err(WaitError::TimedOut));
        assert!(started.elapsed() >= limit);
    }
    board.set(GO, 1);
    join(peer);
}

#[test]
fn a_forked_child_sets_nothing_until_it_attaches() {
    isolated(|()| {
        let segment = Segment::anonymous(4096).unwrap();
        let event = segment.event("event").unwrap();
        let forked = Forked::new(|| {
            assert_eq!(event.set(), Err(WaitError::NotAttached));
            assert_eq!(event.clear(), Err(WaitError::NotAttached));
            assert_eq!(event.wait(), Err(WaitError::NotAttached));
            assert_eq!(event.wait_timeout(Duration::ZERO), Err(WaitError::NotAttached));
            assert!(!event.is_set());
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert!(!event.is_set());
        let forked = Forked::new(|| segment.attach_again().unwrap().event("event").unwrap().set().unwrap());
        assert_eq!(event.wait_timeout(HANG), Ok(()));
        assert_eq!(forked.end(), End::Exited(0));
    });
}
