//! Calls: each is answered once, by a server that lives.

use std::time::{Duration, Instant};

use crossproc_primitives::{Call, CallError, Objects};
use crossproc_segment::Segment;
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, await_state, child, fresh_seed, isolated, join, kill_and_reap,
    tied_to_parent,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::{End, Forked};

const READY: usize = 0;
const SERVED: usize = 1;

/// What is asked, and what is answered: each tells in all its words which one it is.
type Question = [u64; 5];
type Answer = [u64; 3];

fn answer(question: Question) -> Answer {
    assert_eq!(question, [question[0]; 5], "torn");
    [question[0] * 3; 3]
}

fn serve((board, call): (Board, Call<Question, Answer>)) -> u64 {
    tied_to_parent();
    board.add(READY, 1);
    let mut again = 0;
    while let Ok(request) = call.serve() {
        again += u64::from(request.is_redelivered());
        board.add(SERVED, 1);
        let reply = answer(*request);
        request.reply(reply);
    }
    again
}

#[test]
fn callers_and_servers_in_processes_of_their_own_get_their_own_answers() {
    fn ask((call, from): (Call<Question, Answer>, u64)) {
        tied_to_parent();
        for n in from..from + 20_000 {
            assert_eq!(call.call_timeout(&[n; 5], HANG), Ok([n * 3; 3]));
        }
    }
    let board = Board::new(4);
    let call = Call::new().unwrap();
    let servers = [0; 2].map(|_| child(serve, (board.clone(), call.clone())));
    board.await_at_least(READY, 2);
    let callers = [1, 1_000_000].map(|from| child(ask, (call.clone(), from)));
    callers.into_iter().for_each(join);
    assert_eq!(board.get(SERVED), 40_000);
    call.audit().unwrap();
    // Each waits for somebody; the last one is alone, and ends by itself.
    drop(servers);
}

#[test]
fn who_sleeps_is_woken_by_a_request_and_by_its_reply() {
    let board = Board::new(4);
    let call = Call::new().unwrap();
    let server = child(serve, (board.clone(), call.clone()));
    board.await_at_least(READY, 1);
    for n in 1..=20 {
        await_asleep(server.pid());
        assert_eq!(call.call_timeout(&[n; 5], HANG), Ok([n * 3; 3]));
    }
    drop(call);
    assert_eq!(join(server), 0, "it is alone now");
}

#[test]
fn a_deadline_ends_a_call_that_nobody_serves_and_one_that_takes_too_long() {
    let board = Board::new(4);
    let call = Call::<Question, Answer>::new().unwrap();
    let (started, limit) = (Instant::now(), Duration::from_millis(30));
    assert_eq!(call.call_timeout(&[1; 5], limit), Err(CallError::TimedOut));
    assert!(started.elapsed() >= limit);
    assert_eq!(call.try_serve().unwrap_err(), CallError::Empty, "it was taken back");

    let server = child(serve, (board.clone(), call.clone()));
    board.await_at_least(READY, 1);
    let signal = |signal| kill_process(Pid::from_raw(server.pid() as i32).unwrap(), signal).unwrap();
    for n in 1..20 {
        signal(Signal::STOP);
        await_state(server.pid(), 'T');
        assert_eq!(call.call_timeout(&[n; 5], Duration::from_millis(5)), Err(CallError::TimedOut));
        signal(Signal::CONT);
        // Whether the first one was served meanwhile or not.
        assert_eq!(call.call_timeout(&[n + 100; 5], HANG), Ok([(n + 100) * 3; 3]));
    }
    drop(call);
    join(server);
}

#[test]
fn a_request_whose_server_was_killed_is_served_by_the_next() {
    fn take((board, call): (Board, Call<Question, Answer>)) {
        tied_to_parent();
        let _request = call.serve().unwrap();
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let board = Board::new(4);
    let call = Call::<Question, Answer>::new().unwrap();
    let first = child(take, (board.clone(), call.clone()));
    std::thread::scope(|scope| {
        let theirs = call.clone();
        let calling = scope.spawn(move || theirs.call_timeout(&[7; 5], HANG));
        board.await_at_least(READY, 1);
        let second = child(serve, (board.clone(), call.clone()));
        board.await_at_least(READY, 2);
        kill_and_reap(&first);
        assert_eq!(calling.join().unwrap(), Ok([21; 3]));
        assert_eq!(call.call_timeout(&[8; 5], HANG), Ok([24; 3]));
        drop(call);
        assert_eq!(join(second), 1, "it was told that it came again");
    });
}

#[test]
fn who_calls_the_dead_is_told() {
    let board = Board::new(4);
    let call = Call::new().unwrap();
    let server = child(serve, (board.clone(), call.clone()));
    board.await_at_least(READY, 1);
    kill_and_reap(&server);
    assert_eq!(call.call_timeout(&[7; 5], HANG), Err(CallError::PeerDied));
    // Somebody new may come.
    let server = child(serve, (board.clone(), call.clone()));
    assert_eq!(call.call_timeout(&[7; 5], HANG), Ok([21; 3]));
    drop(call);
    join(server);
}

#[test]
fn callers_and_servers_are_killed_at_random_and_the_others_go_on() {
    fn ask((board, call, from): (Board, Call<Question, Answer>, u64)) {
        tied_to_parent();
        board.add(READY, 1);
        for n in from.. {
            assert_eq!(call.call(&[n; 5]), Ok([n * 3; 3]));
            board.add(2, 1);
        }
    }
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let board = Board::new(8);
    let call = Call::<Question, Answer>::new().unwrap();
    let server = || child(serve, (board.clone(), call.clone()));
    let caller = |n: u64| child(ask, (board.clone(), call.clone(), n));
    let mut servers = [server(), server()];
    let mut callers = [caller(0), caller(1 << 32)];
    let ends = Instant::now() + Duration::from_secs(3);
    let mut kills = 0;
    while Instant::now() < ends {
        std::thread::sleep(Duration::from_micros(rng.below(2000)));
        let which = rng.below(2) as usize;
        kills += 1;
        if rng.below(2) == 0 {
            kill_and_reap(&servers[which]);
            servers[which] = server();
        } else {
            kill_and_reap(&callers[which]);
            callers[which] = caller(rng.below(1 << 40));
        }
    }
    let answered = board.get(2);
    board.await_at_least(2, answered + 500);
    println!("{kills} kills, {} answered", board.get(2));
    assert_eq!(call.call_timeout(&[5; 5], HANG), Ok([15; 3]));
    for process in &callers {
        kill_and_reap(process);
    }
    for process in &servers {
        kill_and_reap(process);
    }
}

#[test]
fn a_call_has_a_name_in_a_segment() {
    let segment = Segment::anonymous(16 * 1024).unwrap();
    let (call, server) = (segment.calls::<u8, u16>("c").unwrap(), segment.calls::<u8, u16>("c").unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let request = server.serve().unwrap();
            drop(request); // left to the next server, which is this one
            let request = server.serve().unwrap();
            let reply = u16::from(*request) * 256;
            request.reply(reply);
        });
        assert_eq!(call.call_timeout(&2, HANG), Ok(512));
    });
    assert!(segment.calls::<u8, u32>("c").is_err());
}

#[test]
fn a_forked_child_can_neither_call_nor_serve() {
    isolated(|()| {
        let call = Call::<u8, u8>::new().unwrap();
        let forked = Forked::new(|| {
            assert_eq!(call.call(&1), Err(CallError::NotAttached));
            assert_eq!(call.try_serve().unwrap_err(), CallError::NotAttached);
        });
        assert_eq!(forked.end(), End::Exited(0));
    });
}
