//! Names: made by exactly one, seen whole by all, gone with the last user however that one ended.

use crossproc_primitives::Objects;
use crossproc_segment::{ErrorKind, Segment, SegmentOptions, Unlink};
use crossproc_tests::{
    Board, HANG, Rng, child, fresh_seed, isolated, join, kill_and_reap, tied_to_parent, wait_for,
};

use crate::kernel::{End, Forked};

/// A name that no other test has.
fn name(what: &str) -> String {
    format!("it-names-{what}-{}", std::process::id())
}

fn is_listed(name: &str) -> bool {
    SegmentOptions::new().names().unwrap().iter().any(|listed| listed == name)
}

const LEN: usize = 10_000;
const START: usize = 0;
const ATTACHED: usize = 8;
const LEAVE: usize = 16;
const GONE: usize = 24;
const RESULT: usize = 32;
const ID: usize = 40;
const CREATED: u64 = 1;
const OPENED: u64 = 2;
const EXISTS: u64 = 3;

/// One of two who want the same name at the same moment, again and again; the first one compares.
fn race((board, me, name, rounds, seed): (Board, usize, String, u64, u64)) -> [u64; 3] {
    tied_to_parent();
    let mut rng = Rng::new(seed + me as u64);
    let mut won = [0; 3];
    for round in 1..=rounds {
        let create_only = (round % 3 == 0) || (round % 3 == 1 && me == 0);
        // Each is ahead by turns: by nothing, by a call or two, by about as long as it takes to make one.
        let behind = (me as u64 + round).is_multiple_of(2);
        let delay = if behind { rng.below([1, 1_000, 100_000][round as usize / 2 % 3]) } else { 0 };
        board.meet(START, 2, round);
        for _ in 0..delay {
            std::hint::spin_loop();
        }
        let made =
            if create_only { Segment::create(&name, LEN) } else { Segment::open_or_create(&name, LEN) };
        let (result, segment) = match made {
            Ok(segment) if segment.creator_pid() == std::process::id() => (CREATED, segment),
            Ok(segment) => (OPENED, segment),
            Err(error) if error.kind() == ErrorKind::Exists && create_only => {
                // The other one stays until both have attached.
                (EXISTS, Segment::open(&name).unwrap_or_else(|e| panic!("round {round}: {e}")))
            }
            Err(error) => panic!("round {round}: {error}"),
        };
        assert!(segment.capacity() >= LEN, "whole");
        assert_eq!(
            segment.value("same", [round; 16]).unwrap().get(),
            Ok([round; 16]),
            "nothing of the round before"
        );
        board.set(RESULT + me, result);
        board.set(ID + me, segment.id() as u64);
        board.meet(ATTACHED, 2, round);
        assert_eq!(board.get(ID), board.get(ID + 1), "round {round}: one segment");
        let both = [board.get(RESULT), board.get(RESULT + 1)];
        let creators = both.iter().filter(|&&result| result == CREATED).count();
        assert_eq!(creators, 1, "round {round}: {both:?}");
        won[result as usize - 1] += 1;
        board.meet(LEAVE, 2, round);
        drop(segment);
        board.meet(GONE, 2, round);
        if me == 0 && round % 8 == 0 {
            assert_eq!(
                Segment::open(&name).unwrap_err().kind(),
                ErrorKind::NotFound,
                "the last one removed it"
            );
        }
    }
    won
}

#[test]
fn of_two_who_create_a_name_at_the_same_moment_exactly_one_does() {
    const ROUNDS: u64 = 1000;
    let seed = fresh_seed();
    let (board, name) = (Board::new(64), name("race"));
    let other = child(race, (board.clone(), 1, name.clone(), ROUNDS, seed));
    let first = child(race, (board, 0, name.clone(), ROUNDS, seed));
    let (a, b) = (join(first), join(other));
    println!("seed {seed}; created, opened, exists: {a:?} and {b:?}");
    assert_eq!(a[0] + b[0], ROUNDS);
    assert!(a[0] > 0 && b[0] > 0, "each was first at times");
    assert!(a[1] + b[1] > 0 && a[2] + b[2] > 0);
    assert!(!is_listed(&name));
}

#[test]
fn who_opens_a_name_sees_all_of_it_or_nothing() {
    fn open_again_and_again((board, name): (Board, String)) -> (u64, u64) {
        tied_to_parent();
        let (mut found, mut missing) = (0, 0);
        board.set(1, 1);
        while board.get(0) == 0 || found == 0 {
            match Segment::open(&name) {
                Ok(segment) => {
                    assert!(segment.capacity() >= LEN);
                    found += 1;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => missing += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (found, missing)
    }
    let (board, name) = (Board::new(64), name("half"));
    let openers: Vec<_> =
        (0..2).map(|_| child(open_again_and_again, (board.clone(), name.clone()))).collect();
    board.await_at_least(1, 1);
    for _ in 0..200 {
        // An opener that has not left yet keeps it alive.
        drop(Segment::open_or_create(&name, LEN).unwrap());
    }
    let last = Segment::open_or_create(&name, LEN).unwrap();
    board.set(0, 1);
    let counts: Vec<_> = openers.into_iter().map(join).collect();
    println!("found and missing: {counts:?}");
    drop(last);
    assert!(!is_listed(&name));
}

fn stay((board, name): (Board, String)) {
    tied_to_parent();
    let segment = Segment::open(&name).unwrap();
    let value = segment.value("value", 0_u64).unwrap();
    value.fetch_add(1);
    board.add(0, 1);
    loop {
        std::thread::park();
    }
}

#[test]
fn a_stranger_that_comes_and_goes_never_removes_the_name() {
    isolated(|()| {
        for policy in [Unlink::LastClose, Unlink::OwnerDrop, Unlink::Never] {
            let (board, name) = (Board::new(8), name("stranger"));
            let segment = SegmentOptions::new().unlink_policy(policy).create(&name, LEN).unwrap();
            let value = segment.value("value", 5_u64).unwrap();
            let still_there = |what: &str| {
                assert!(is_listed(&name), "{policy:?}: {what}");
                let look = |name: String| {
                    Segment::open(&name).unwrap().value("value", 0_u64).unwrap().get().unwrap()
                };
                assert_eq!(Ok(join(child(look, name.clone()))), value.get(), "{policy:?}: {what}");
            };

            for _ in 0..5 {
                join(child(|name: String| drop(Segment::open(&name).unwrap()), name.clone()));
            }
            still_there("opened and dropped");

            join(child(|segment: Segment| drop(segment), segment.clone()));
            still_there("handed over and dropped");

            let leave = child(
                |name: String| {
                    std::mem::forget(Segment::open(&name).unwrap());
                    std::process::exit(3);
                },
                name.clone(),
            );
            let _: &crossproc_process::Process<()> = &leave;
            assert_eq!(leave.wait().code(), Some(3));
            still_there("exited");

            let killed = child(stay, (board.clone(), name.clone()));
            board.await_at_least(0, 1);
            kill_and_reap(&killed);
            still_there("killed");

            join(child(
                |name: String| {
                    let segment = Segment::open(&name).unwrap();
                    let forked = Forked::new(|| {
                        drop(segment.attach_again().unwrap());
                        drop(segment.clone());
                    });
                    assert_eq!(forked.end(), End::Exited(0));
                },
                name.clone(),
            ));
            still_there("forked");

            join(child(
                |name: String| {
                    assert!(SegmentOptions::new().read_only(true).open(&name).unwrap().is_read_only());
                },
                name.clone(),
            ));
            still_there("read");

            drop((segment, value));
            match policy {
                Unlink::Never => Segment::unlink(&name).unwrap(),
                _ => assert!(!is_listed(&name), "{policy:?}: the owner has left"),
            }
        }
    });
}

#[test]
fn the_last_of_several_users_removes_the_name_whoever_was_killed_before() {
    let (board, name) = (Board::new(8), name("last"));
    let segment = Segment::create(&name, LEN).unwrap();
    segment.value("value", 0_u64).unwrap();
    let users: Vec<_> = (0..3).map(|_| child(stay, (board.clone(), name.clone()))).collect();
    board.await_at_least(0, 3);
    assert_eq!(segment.living().unwrap(), 4);
    kill_and_reap(&users[0]);
    kill_and_reap(&users[1]);
    wait_for("the dead to be known as such", || segment.living().unwrap() == 2);
    drop(segment);
    assert!(is_listed(&name), "one still lives");
    assert_eq!(Segment::open(&name).unwrap().value("value", 0_u64).unwrap().get(), Ok(3));
    assert!(is_listed(&name));
    kill_and_reap(&users[2]);
    assert_eq!(Segment::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!is_listed(&name));
}

/// Makes a segment in a process group of its own, with two more processes that use it.
fn make_a_group((board, name): (Board, String)) {
    rustix::process::setpgid(None, None).unwrap();
    let segment = Segment::create(&name, LEN).unwrap();
    segment.value("value", 0_u64).unwrap();
    let family: Vec<_> = (0..2).map(|_| child(stay, (board.clone(), name.clone()))).collect();
    board.await_at_least(0, 2);
    board.set(1, 1);
    for member in family {
        member.wait();
    }
}

#[test]
fn a_group_that_is_killed_as_a_whole_leaves_nothing_to_the_next_one() {
    isolated(|()| {
        use rustix::process::{
            Pid, Signal, WaitOptions, getpid, kill_process_group, set_child_subreaper, wait,
        };
        // Who loses its parent comes to this process, so that all can be waited for.
        set_child_subreaper(Some(getpid())).unwrap();
        for next in ["open", "create", "open_or_create"] {
            let (board, name) = (Board::new(8), name("group"));
            let first = child(make_a_group, (board.clone(), name.clone()));
            board.await_at_least(1, 1);
            assert!(is_listed(&name));
            let group = Pid::from_raw(first.pid().cast_signed()).unwrap();
            kill_process_group(group, Signal::KILL).unwrap();
            assert_eq!(first.wait_timeout(HANG).unwrap().signal(), Some(9));
            wait_for("all of the group to end", || wait(WaitOptions::NOHANG).is_err());

            assert!(is_listed(&name), "nobody was left to remove it");
            match next {
                "open" => {
                    assert_eq!(Segment::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
                    assert!(!is_listed(&name), "but it was found dead, and removed");
                }
                _ => {
                    let fresh = match next {
                        "create" => Segment::create(&name, LEN),
                        _ => Segment::open_or_create(&name, LEN),
                    };
                    let fresh = fresh.unwrap();
                    assert_eq!(fresh.creator_pid(), std::process::id());
                    assert!(fresh.objects().is_empty(), "nothing of the dead ones is in it");
                    drop(fresh);
                    assert!(!is_listed(&name));
                }
            }
        }
    });
}
