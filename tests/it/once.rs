//! Something is done once, in one of all processes, whoever dies, stops, or is forked while it does it.

use std::time::Duration;

use crossproc_primitives::{Objects, Once, OnceError};
use crossproc_process::{ExitStatus, Process};
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::{
    Board, HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, tied_to_parent,
};
use serde::{Deserialize, Serialize};

use crate::kernel::{End, Forked};

const INSIDE: usize = 0;
const GO: usize = 1;
const DONE: usize = 2;
const CAME: usize = 3;

#[test]
fn of_several_processes_one_does_it() {
    const ROUNDS: usize = 100;
    fn work((board, onces): (Board, Vec<Once>)) -> u64 {
        tied_to_parent();
        let mut did = 0;
        for (round, once) in onces.iter().enumerate() {
            board.meet(CAME, 4, round as u64 + 1);
            once.call(|state| {
                assert!(!state.previous_died() && !state.previous_panicked());
                did += 1;
                board.add(DONE, 1);
            })
            .unwrap();
            assert_eq!(board.get(DONE) as usize, round + 1, "it is done when `call` returns");
            board.meet(INSIDE, 4, round as u64 + 1);
        }
        did
    }
    let segment = SegmentOptions::new().objects(ROUNDS as u32).anonymous(64 * 1024).unwrap();
    let names = (0..ROUNDS).map(|round| round.to_string());
    let onces: Vec<_> = names.map(|name| segment.once(&name).unwrap()).collect();
    let board = Board::new(8);
    let children: Vec<_> = (0..3).map(|_| child(work, (board.clone(), onces.clone()))).collect();
    let mut did = work((board, onces.clone()));
    did += children.into_iter().map(join).sum::<u64>();
    assert_eq!(did as usize, ROUNDS);
    assert!(onces.iter().all(|once| once.is_completed() && once.audit() == Ok(())));
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Ends {
    WhenDone,
    IsKilled,
    Exits,
    Panics,
}

fn do_it((board, once, how): (Board, Once, Ends)) {
    tied_to_parent();
    once.call(|_| {
        board.set(INSIDE, 1);
        board.await_at_least(GO, 1);
        match how {
            Ends::WhenDone => {}
            Ends::IsKilled => loop {
                std::thread::park();
            },
            Ends::Exits => std::process::exit(3),
            Ends::Panics => panic!("on purpose"),
        }
        board.add(DONE, 1);
    })
    .unwrap();
}

/// Does it unless it is done; `None`, or what it was told: died, panicked.
fn call(once: Once, board: &Board) -> Option<(bool, bool)> {
    let mut told = None;
    let called = once.call_timeout(HANG, |state| {
        told = Some((state.previous_died(), state.previous_panicked()));
        board.add(DONE, 1);
    });
    assert_eq!(called, Ok(()));
    assert_eq!(board.get(DONE), 1, "done, once");
    told
}

fn call_it((board, once): (Board, Once)) -> Option<(bool, bool)> {
    tied_to_parent();
    call(once, &board)
}

fn wait_for_it((_, once): (Board, Once)) -> Result<(), String> {
    tied_to_parent();
    once.wait_timeout(HANG).map_err(|e| e.to_string())
}

struct Case {
    board: Board,
    once: Once,
    doing: Process<()>,
}

/// A process is doing it.
fn case(how: Ends) -> Case {
    let (board, once) = (Board::new(8), Once::new().unwrap());
    let doing = child(do_it, (board.clone(), once.clone(), how));
    board.await_at_least(INSIDE, 1);
    assert!(!once.is_completed());
    assert_eq!(once.try_call(|_| unreachable!("another process does it")), Err(OnceError::WouldBlock));
    Case { board, once, doing }
}

fn let_end(Case { board, doing, .. }: &Case, how: Ends) {
    board.set(GO, 1);
    match how {
        Ends::IsKilled => kill_and_reap(doing),
        Ends::Exits => assert_eq!(doing.wait(), ExitStatus::Code(3)),
        Ends::Panics => assert_eq!(doing.wait(), ExitStatus::Code(101)),
        Ends::WhenDone => assert_eq!(doing.wait(), ExitStatus::Code(0)),
    }
}

#[test]
fn when_who_did_it_dies_or_panics_the_next_one_does_it_and_is_told() {
    for (how, told) in [
        (Ends::WhenDone, None),
        (Ends::IsKilled, Some((true, false))),
        (Ends::Exits, Some((true, false))),
        (Ends::Panics, Some((false, true))),
    ] {
        let case = case(how);
        let callers = [(); 2].map(|()| child(call_it, (case.board.clone(), case.once.clone())));
        let waiter = child(wait_for_it, (case.board.clone(), case.once.clone()));
        callers.iter().for_each(|caller| await_asleep(caller.pid()));
        await_asleep(waiter.pid());
        let_end(&case, how);
        let said: Vec<_> = callers.into_iter().filter_map(join).collect();
        assert_eq!(said, Vec::from_iter(told), "{how:?}");
        assert_eq!(join(waiter), Ok(()));
        assert_eq!(case.once.audit(), Ok(()));

        // The same if nobody waited.
        let case = self::case(how);
        let_end(&case, how);
        assert_eq!(call(case.once.clone(), &case.board), told, "{how:?}");
        assert_eq!((case.once.is_completed(), case.once.audit()), (true, Ok(())));
    }
}

#[test]
fn who_is_killed_while_it_waits_is_no_matter() {
    let case = case(Ends::WhenDone);
    let callers = [(); 3].map(|()| child(call_it, (case.board.clone(), case.once.clone())));
    let waiters = [(); 2].map(|()| child(wait_for_it, (case.board.clone(), case.once.clone())));
    callers.iter().for_each(|process| await_asleep(process.pid()));
    waiters.iter().for_each(|process| await_asleep(process.pid()));
    kill_and_reap(&callers[0]);
    kill_and_reap(&waiters[0]);
    let_end(&case, Ends::WhenDone);
    for caller in callers.into_iter().skip(1) {
        assert_eq!(join(caller), None);
    }
    assert_eq!(waiters.into_iter().skip(1).map(join).collect::<Vec<_>>(), [Ok(())]);
}

#[test]
fn who_is_stopped_while_it_does_it_is_waited_for() {
    let case = case(Ends::WhenDone);
    case.doing.signal(19).unwrap(); // SIGSTOP
    await_state(case.doing.pid(), 'T');
    let call = case.once.call_timeout(Duration::from_millis(300), |_| unreachable!("it is being done"));
    assert_eq!(call, Err(OnceError::TimedOut));
    assert_eq!(case.once.wait_timeout(Duration::from_millis(120)), Err(OnceError::TimedOut));
    case.board.set(GO, 1);
    case.doing.signal(18).unwrap(); // SIGCONT
    assert_eq!(case.once.call_timeout(HANG, |_| unreachable!("it is being done")), Ok(()));
    assert_eq!(case.board.get(DONE), 1);
    join(case.doing);
}

#[test]
fn who_only_waits_is_told_when_nobody_is_left_to_do_it() {
    isolated(|()| {
        fn stay((board, segment): (Board, Segment)) {
            tied_to_parent();
            segment.check_attached().unwrap();
            board.set(CAME, 1);
            board.await_at_least(CAME, 2);
        }
        let segment = SegmentOptions::new().participants(4).anonymous(4096).unwrap();
        let (board, once) = (Board::new(8), segment.once("it").unwrap());
        let short = Duration::from_millis(120);
        assert_eq!(once.wait_timeout(short), Err(OnceError::TimedOut), "before the first other one came");
        let doing = child(do_it, (board.clone(), once.clone(), Ends::IsKilled));
        let bystander = child(stay, (board.clone(), segment.clone()));
        board.await_at_least(INSIDE, 1);
        board.await_at_least(CAME, 1);
        kill_and_reap(&doing);
        assert_eq!(once.wait_timeout(short), Err(OnceError::TimedOut), "somebody is left who could do it");
        let waiting = std::thread::spawn({
            let once = once.clone();
            move || once.wait_timeout(HANG)
        });
        board.set(CAME, 2);
        join(bystander);
        assert_eq!(waiting.join().unwrap(), Err(OnceError::PeerDied));
        assert_eq!(once.wait(), Err(OnceError::PeerDied));

        // A thread of this process that does it is somebody, too.
        let doing = std::thread::spawn({
            let (board, once) = (board.clone(), once.clone());
            move || {
                once.call(|state| {
                    assert!(state.previous_died());
                    board.set(INSIDE, 2);
                    board.await_at_least(GO, 2);
                })
            }
        });
        board.await_at_least(INSIDE, 2);
        assert_eq!(once.wait_timeout(short), Err(OnceError::TimedOut));
        board.set(GO, 2);
        assert_eq!(once.wait_timeout(HANG), Ok(()));
        assert_eq!(doing.join().unwrap(), Ok(()));
    });
}

#[test]
fn a_forked_child_takes_no_part() {
    isolated(|()| {
        let segment = Segment::anonymous(16 * 1024).unwrap();
        let (once, done) = (segment.once("it").unwrap(), segment.once("done").unwrap());
        done.call(|_| ()).unwrap();
        segment.check_attached().unwrap();
        let forked = Forked::new(|| {
            assert_eq!(once.call(|_| unreachable!("not attached")), Err(OnceError::NotAttached));
            assert_eq!(once.try_call(|_| unreachable!("not attached")), Err(OnceError::NotAttached));
            assert_eq!(once.wait(), Err(OnceError::NotAttached));
            assert_eq!((done.call(|_| unreachable!("done")), done.wait()), (Ok(()), Ok(())));
            assert!(!once.is_completed());
            let own = segment.attach_again().unwrap();
            assert!(own.once("done").unwrap().is_completed());
        });
        assert_eq!(forked.end(), End::Exited(0));

        // Forked in the middle of it.
        let called = once.call(|_| {
            let forked = Forked::new(|| {
                assert_eq!(once.call(|_| unreachable!("not attached")), Err(OnceError::NotAttached));
            });
            assert_eq!(forked.end(), End::Exited(0));
            let asked = child(|once: Once| once.try_call(|_| ()) == Err(OnceError::WouldBlock), once.clone());
            assert!(join(asked), "its parent is still doing it");
        });
        assert_eq!((called, once.is_completed()), (Ok(()), true));
    });
}
