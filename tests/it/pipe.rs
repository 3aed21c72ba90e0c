//! Pipes: messages come whole, in order and once, however many write and read; the end of one side is told to the other.
//!
//! What Python's `Connection` does, row by row, is in `connection.rs`.

use std::future::Future;
use std::io::{ErrorKind as IoErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossproc_primitives::pipe::{Receiver, RecvError, SendError, Sender};
use crossproc_primitives::{Connection, Mutex, Objects, Pipe, PipeOptions, Queue, Value, Waitable, wait_any};
use crossproc_segment::Segment;
use crossproc_segment::handover::Handed;
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, await_state, child, fresh_seed, isolated, join, kill_and_reap,
    tied_to_parent,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::{End, Forked};

const READY: usize = 0;
const SENT: usize = 1;
const RECEIVED: usize = 2;

pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn seeded(what: &str) -> u64 {
    let seed = fresh_seed();
    println!("{what}: seed {seed}");
    seed
}

pub(crate) fn for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// A message that tells in all its bytes who sent it, which one it is, and how long.
fn message(writer: u64, number: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [writer, number, len as u64].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.truncate(len);
    let start = bytes.len();
    bytes.extend((start..len).map(|k| filler(writer, number, k)));
    bytes
}

pub(crate) fn filler(writer: u64, number: u64, at: usize) -> u8 {
    (writer * 97 + number * 31) as u8 ^ (at as u8).wrapping_mul(7) ^ (at >> 8) as u8
}

/// Who sent it, and which it is.
fn check(bytes: &[u8]) -> (u64, u64) {
    let word = |k: usize| u64::from_le_bytes(bytes[k * 8..k * 8 + 8].try_into().unwrap());
    let (writer, number, len) = (word(0), word(1), word(2) as usize);
    assert_eq!(len, bytes.len(), "whole");
    for (k, &byte) in bytes.iter().enumerate().skip(24) {
        assert_eq!(byte, filler(writer, number, k), "byte {k} of message {number} of {writer}");
    }
    (writer, number)
}

/// Lengths that go at once, at the border, in parts, and longer than the ring of 4 KiB.
fn length(rng: &mut Rng) -> usize {
    match rng.below(6) {
        0 => 24,
        1 | 2 => 24 + rng.below(200) as usize,
        3 => 2030 + rng.below(30) as usize,
        4 => 3000 + rng.below(3000) as usize,
        _ => 24 + rng.below(20_000) as usize,
    }
}

const RING: usize = 4096;

// ---- Sizes and limits

#[test]
fn sending_in_vain_ends_at_the_deadline_and_leaves_nothing() {
    let (receiver, sender) = PipeOptions::new().capacity(RING).message_max(20_000).simplex::<()>().unwrap();
    assert_eq!(sender.send_bytes(&[0; 20_001]), Err(SendError::TooLong { most: 20_000 }));
    assert_eq!(sender.at_once_max(), RING / 2 - 8);
    assert_eq!(sender.try_send_bytes(&[0; RING / 2]), Err(SendError::NotAtOnce { most: RING / 2 - 8 }));
    // In the middle of a message that goes in parts: nobody gets a part of it.
    let limit = Duration::from_millis(30);
    let started = Instant::now();
    assert_eq!(sender.send_bytes_timeout(&[1; 20_000], limit), Err(SendError::TimedOut));
    assert!(started.elapsed() >= limit);
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    sender.try_send_bytes(b"after it").unwrap();
    assert_eq!(receiver.try_recv_bytes().unwrap(), b"after it");
    let mut sent = 0;
    while sender.try_send_bytes(&[2; 100]).is_ok() {
        sent += 1;
    }
    assert!(sent >= RING / 112 - 1, "{sent} messages of 100 bytes fit");
    assert_eq!(sender.send_bytes_timeout(&[2; 100], limit), Err(SendError::TimedOut));
    sender.audit().unwrap();
    assert_eq!((0..).take_while(|_| receiver.try_recv_bytes().is_ok()).count(), sent);
}

fn send_long_and_short((board, sender): (Board, Sender<()>)) {
    tied_to_parent();
    board.add(READY, 1);
    sender.send_bytes(&message(1, 1, 50_000)).unwrap();
    sender.send_bytes(&message(1, 2, 30)).unwrap();
}

#[test]
fn a_deadline_in_the_middle_of_a_message_loses_nothing() {
    let board = Board::new(4);
    let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<()>().unwrap();
    let other = child(send_long_and_short, (board.clone(), sender));
    board.await_at_least(READY, 1);
    assert_eq!(receiver.poll(Some(HANG)), Ok(true));
    signal(other.pid(), Signal::STOP);
    await_state(other.pid(), 'T');
    // Some of it is there, and is taken.
    for _ in 0..3 {
        assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
        assert_eq!(receiver.recv_bytes_timeout(Duration::from_millis(10)), Err(RecvError::TimedOut));
    }
    // The rest is this handle's.
    let second = receiver.clone();
    assert_eq!(second.recv_bytes_timeout(Duration::from_millis(10)), Err(RecvError::TimedOut));
    signal(other.pid(), Signal::CONT);
    assert_eq!(check(&receiver.recv_bytes_timeout(HANG).unwrap()), (1, 1));
    assert_eq!(check(&second.recv_bytes_timeout(HANG).unwrap()), (1, 2));
    join(other);
}

#[test]
fn who_gives_up_in_the_middle_of_a_message_leaves_the_others_in_step() {
    let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<()>().unwrap();
    let other = child(send_long_and_short, (Board::new(4), sender));
    assert_eq!(receiver.poll(Some(HANG)), Ok(true));
    signal(other.pid(), Signal::STOP);
    await_state(other.pid(), 'T');
    let first = receiver.clone();
    assert_eq!(first.try_recv_bytes(), Err(RecvError::Empty), "it has some of it");
    drop(first);
    signal(other.pid(), Signal::CONT);
    assert_eq!(check(&receiver.recv_bytes_timeout(HANG).unwrap()), (1, 2), "the rest of 1 is passed over");
    join(other);
}

// ---- In place

#[test]
fn places_and_looks_hold_a_message_until_it_is_sent_or_taken() {
    fn take((board, mut receiver): (Board, Receiver<()>)) -> u64 {
        tied_to_parent();
        board.add(READY, 1);
        let mut sum = 0;
        while let Ok(message) = receiver.peek() {
            sum += check(&message).1;
            message.release();
        }
        sum
    }
    let board = Board::new(4);
    let (receiver, mut sender) = PipeOptions::new().capacity(RING).simplex::<()>().unwrap();
    let other = child(take, (board.clone(), receiver.clone()));
    drop(receiver);
    for n in 1..=2000_u64 {
        let len = 24 + (n as usize * 37) % 1900;
        if n % 5 == 0 {
            // In parts: gathered at the other side.
            sender.send_bytes_timeout(&message(3, n, 2000 + len), HANG).unwrap();
            continue;
        }
        let mut place = sender.reserve_timeout(len + 10, HANG).unwrap();
        place[..len].copy_from_slice(&message(3, n, len));
        if n % 7 == 0 {
            drop(place); // nothing is sent
            sender.send_bytes_timeout(&message(3, n, len), HANG).unwrap();
        } else {
            place.commit(len);
        }
    }
    drop(sender);
    assert_eq!(join(other), 2000 * 2001 / 2);
}

#[test]
fn a_message_that_a_dead_one_looked_at_is_received_by_the_next() {
    fn look((board, mut receiver): (Board, Receiver<()>)) {
        tied_to_parent();
        let _message = receiver.peek().unwrap();
        board.add(READY, 1);
        for_ever()
    }
    fn keep((board, mut sender): (Board, Sender<()>)) {
        tied_to_parent();
        let mut place = sender.reserve(100).unwrap();
        place.fill(1);
        board.add(READY, 1);
        for_ever()
    }
    let board = Board::new(4);
    let (receiver, sender) = Pipe::simplex::<()>().unwrap();
    sender.send_bytes(b"seen").unwrap();
    let other = child(look, (board.clone(), receiver.clone()));
    board.await_at_least(READY, 1);
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty), "it is the other one's turn");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let first = receiver.recv_bytes_timeout(HANG);
            (receiver, first)
        });
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&other);
        let (receiver, first) = receiving.join().unwrap();
        assert_eq!(first.unwrap(), b"seen");

        let other = child(keep, (board.clone(), sender.clone()));
        board.await_at_least(READY, 2);
        assert_eq!(sender.try_send_bytes(b"x"), Err(SendError::Full), "it is the other one's turn");
        kill_and_reap(&other);
        sender.send_bytes_timeout(b"y", HANG).unwrap();
        assert_eq!(receiver.recv_bytes().unwrap(), b"y");
    });
}

// ---- Read and Write

#[test]
fn a_stream_of_bytes_comes_as_it_was_written() {
    fn write((seed, mut here): (u64, Connection<(), ()>)) -> u64 {
        tied_to_parent();
        let mut rng = Rng::new(seed);
        let mut sum = 0;
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..rng.below(5000)).map(|_| rng.below(256) as u8).collect();
            sum = bytes.iter().fold(sum, |sum: u64, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
            here.write_all(&bytes).unwrap();
            if rng.below(10) == 0 {
                here.send_bytes(b"").unwrap();
            }
        }
        sum
    }
    let seed = seeded("stream");
    let mut rng = Rng::new(seed + 1);
    let (here, there) = PipeOptions::new().capacity(RING).duplex::<(), ()>().unwrap();
    let other = child(write, (seed, there));
    let (mut sum, mut buffer) = (0, vec![0; 6000]);
    loop {
        let len = 1 + rng.below(buffer.len() as u64) as usize;
        let (a, b) = buffer[..len].split_at_mut(len / 3);
        let n = match rng.below(2) {
            0 => (&here).read(b).map(|n| (b, n)),
            _ => (&here)
                .read_vectored(&mut [IoSliceMut::new(a), IoSliceMut::new(b)])
                .map(|n| (&mut buffer[..], n)),
        };
        let (bytes, n) = n.unwrap();
        if n == 0 {
            break;
        }
        sum = bytes[..n].iter().fold(sum, |sum: u64, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    }
    assert_eq!(sum, join(other));
}

#[test]
fn a_stream_that_may_not_wait_says_so() {
    let (here, there) = PipeOptions::new().capacity(RING).duplex::<(), ()>().unwrap();
    here.set_nonblocking(true);
    let mut buffer = [0; 10];
    assert_eq!((&here).read(&mut buffer).unwrap_err().kind(), IoErrorKind::WouldBlock);
    let mut written = 0;
    let error = loop {
        match (&here).write_vectored(&[IoSlice::new(&[1; 700]), IoSlice::new(&[2; 300])]) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), IoErrorKind::WouldBlock);
    assert!(written >= 3000, "{written} bytes");
    // What a short buffer leaves is the next message.
    assert_eq!((&there).read(&mut buffer).unwrap(), 10);
    let rest = there.recv_bytes().unwrap();
    assert_eq!((rest.len(), rest[0], rest[989]), (990, 1, 2));
    there.close();
    assert_eq!((&here).read(&mut buffer).unwrap(), 0);
    assert_eq!((&here).write(b"x").unwrap_err().kind(), IoErrorKind::BrokenPipe);
}

// ---- Many

#[test]
fn messages_of_two_writers_and_two_readers_are_never_mixed() {
    const EACH: u64 = 4000;
    fn write((writer, seed, sender): (u64, u64, Sender<()>)) {
        tied_to_parent();
        let mut rng = Rng::new(seed);
        for number in 0..EACH {
            sender.send_bytes_timeout(&message(writer, number, length(&mut rng)), HANG).unwrap();
        }
    }
    /// How many of each writer, and the sum of their numbers.
    fn read(receiver: Receiver<()>) -> [[u64; 2]; 2] {
        tied_to_parent();
        let (mut seen, mut next) = ([[0; 2]; 2], [0; 2]);
        loop {
            match receiver.recv_bytes_timeout(HANG) {
                Ok(bytes) => {
                    let (writer, number) = check(&bytes);
                    assert!(number >= next[writer as usize], "those of one writer come in order");
                    next[writer as usize] = number + 1;
                    seen[writer as usize][0] += 1;
                    seen[writer as usize][1] += number;
                }
                Err(RecvError::Closed) => return seen,
                Err(error) => panic!("{error}"),
            }
        }
    }
    let seed = seeded("two by two");
    let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<()>().unwrap();
    let readers = [0; 2].map(|_| child(read, receiver.clone()));
    let writers = [0, 1].map(|writer| child(write, (writer, seed + writer, sender.clone())));
    drop((receiver, sender));
    writers.into_iter().for_each(join);
    let seen = readers.map(join);
    println!("{seen:?}");
    for (one, other) in seen[0].iter().zip(&seen[1]) {
        assert_eq!([one[0] + other[0], one[1] + other[1]], [EACH, EACH * (EACH - 1) / 2]);
    }
}

/// Writers and readers are killed at random; nothing is torn, nothing comes twice, a killed reader takes at most one along.
#[test]
fn a_storm_of_kills_tears_and_doubles_nothing() {
    const WRITERS: usize = 2;
    const READERS: usize = 2;
    // For each writer, the number that it sends next.
    const NEXT: usize = 8;
    fn write((writer, seed, board, sender): (u64, u64, Board, Sender<()>)) {
        tied_to_parent();
        let mut rng = Rng::new(seed);
        board.add(READY, 1);
        loop {
            // Before: a number that was used once is not used again, whether it was sent or not.
            let number = board.add(NEXT + writer as usize, 1);
            sender.send_bytes(&message(writer, number, length(&mut rng))).unwrap();
            board.add(SENT, 1);
        }
    }
    fn read((board, receiver): (Board, Receiver<()>)) {
        tied_to_parent();
        board.add(READY, 1);
        let mut next = [0; WRITERS];
        loop {
            let (writer, number) = check(&receiver.recv_bytes().unwrap());
            assert!(number >= next[writer as usize], "{number} of {writer} comes again, or late");
            next[writer as usize] = number + 1;
            board.add(RECEIVED, 1);
        }
    }
    let mut rng = Rng::new(seeded("storm"));
    let board = Board::new(40);
    let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<()>().unwrap();
    let mut seed = rng.below(1 << 30);
    let mut writer = |w: usize| {
        seed += 1;
        child(write, (w as u64, seed, board.clone(), sender.clone()))
    };
    let reader = |_: usize| child(read, (board.clone(), receiver.clone()));
    let mut writers: Vec<_> = (0..WRITERS).map(&mut writer).collect();
    let mut readers: Vec<_> = (0..READERS).map(reader).collect();
    let ends = Instant::now() + Duration::from_secs(4);
    let (mut kills, mut reader_kills) = (0, 0);
    while Instant::now() < ends {
        std::thread::sleep(Duration::from_micros(rng.below(3000)));
        let victim = rng.below((WRITERS + READERS) as u64) as usize;
        kills += 1;
        if victim < WRITERS {
            kill_and_reap(&writers[victim]);
            writers[victim] = writer(victim);
        } else {
            let victim = victim - WRITERS;
            kill_and_reap(&readers[victim]);
            reader_kills += 1;
            readers[victim] = reader(victim);
        }
    }
    // They go on after all that.
    let (sent, received) = (board.get(SENT), board.get(RECEIVED));
    board.await_at_least(SENT, sent + 200);
    board.await_at_least(RECEIVED, received + 200);
    writers.iter().for_each(kill_and_reap);
    // What is left comes to its end.
    let before = board.get(SENT);
    drop(sender);
    for reader in readers {
        match reader.wait_timeout(HANG) {
            Some(_) => {}
            None => panic!("a reader does not see the end"),
        }
    }
    let received = board.get(RECEIVED);
    println!("{kills} kills ({reader_kills} of readers): {before} sent, {received} received");
    // Counted after the send, and after the receive: each death may hide one.
    let lost = before.saturating_sub(received);
    assert!(lost <= reader_kills, "{lost} are missing after {reader_kills} deaths of readers");
    assert!(received <= before + kills, "{received} received of {before}");
    receiver.audit().unwrap();
}

#[test]
fn a_stopped_writer_holds_up_nobody_but_its_own_end() {
    let board = Board::new(4);
    fn write((board, sender): (Board, Sender<u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        for n in 0.. {
            if sender.send(&n).is_err() {
                return;
            }
        }
    }
    let (here, there) = Pipe::duplex::<u64, u64>().unwrap();
    let (sender, receiver) = there.split();
    let other = child(write, (board.clone(), sender));
    board.await_at_least(READY, 1);
    here.recv_timeout(HANG).unwrap();
    signal(other.pid(), Signal::STOP);
    await_state(other.pid(), 'T');
    while here.try_recv().is_ok() {}
    assert_eq!(here.recv_timeout(Duration::from_millis(30)), Err(RecvError::TimedOut));
    here.send(&1).unwrap();
    assert_eq!(receiver.recv(), Ok(1), "the other direction is not concerned");
    signal(other.pid(), Signal::CONT);
    here.recv_timeout(HANG).unwrap();
    drop(here);
    join(other);
}

// ---- Handles

#[test]
fn ends_travel_through_processes_and_stay_open_on_the_way() {
    fn relay((depth, sender): (u32, Sender<u32>)) {
        tied_to_parent();
        sender.send(&depth).unwrap();
        if depth > 0 {
            join(child(relay, (depth - 1, sender)));
        }
    }
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    join(child(relay, (3, sender)));
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [3, 2, 1, 0]);
    assert_eq!(receiver.recv(), Err(RecvError::Closed));
}

#[test]
fn a_pipe_has_a_name_in_a_segment() {
    fn answer(segment: Segment) {
        tied_to_parent();
        let far = segment.pipe::<u32, u64>("squares").unwrap().far().unwrap();
        while let Ok(n) = far.recv() {
            far.send(&(u64::from(n) * u64::from(n))).unwrap();
        }
    }
    let segment = Segment::anonymous(256 * 1024).unwrap();
    let pipe = segment.pipe::<u32, u64>("squares").unwrap();
    let near = pipe.near().unwrap();
    assert_eq!(near.try_recv(), Err(RecvError::Empty), "nobody has come yet, so nobody is missed");
    near.send(&3).unwrap();
    let other = child(answer, segment.clone());
    assert_eq!(near.recv_timeout(HANG), Ok(9));
    drop(near);
    join(other);
    // Both have left; who comes now is a new pair.
    let (near, far) = (pipe.near().unwrap(), pipe.far().unwrap());
    near.send(&5).unwrap();
    assert_eq!(far.recv(), Ok(5));
    let error = segment.pipe::<u32, u32>("squares").unwrap_err();
    assert_eq!(error.kind(), crossproc_segment::ErrorKind::WrongType, "{error}");
}

#[test]
fn a_forked_child_has_neither_end() {
    isolated(|()| {
        let (here, there) = Pipe::duplex::<u32, u32>().unwrap();
        here.send(&1).unwrap();
        let forked = Forked::new(|| {
            assert_eq!(here.send(&2), Err(SendError::NotAttached));
            assert_eq!(there.try_recv(), Err(RecvError::NotAttached));
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!((there.recv(), there.try_recv()), (Ok(1), Err(RecvError::Empty)));
    });
}

#[test]
fn many_pipes_leave_nothing_behind() {
    isolated(|()| {
        let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
        drop(Pipe::duplex::<u32, u32>().unwrap());
        let before = (count("fd"), count("map_files"));
        for round in 0..10_000_u32 {
            let (here, there) = PipeOptions::new().capacity(64).duplex::<u32, u32>().unwrap();
            here.send(&round).unwrap();
            assert_eq!(there.recv(), Ok(round));
        }
        assert_eq!((count("fd"), count("map_files")), before);
    });
}

// ---- Without a thread that waits

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The future's result, or `None` if it has none until then.
pub(crate) fn block_on<F: Future>(future: F, limit: Duration) -> Option<F::Output> {
    let (mut future, waker) = (pin!(future), Arc::new(Unpark(std::thread::current())).into());
    let ends = Instant::now() + limit;
    loop {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(done);
        }
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

#[test]
fn a_task_talks_to_another_process() {
    fn echo((board, there): (Board, Connection<u64, u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        while let Ok(bytes) = there.recv_bytes() {
            there.send_bytes(&bytes).unwrap();
        }
    }
    let board = Board::new(4);
    let (here, there) = PipeOptions::new().capacity(RING).duplex::<u64, u64>().unwrap();
    let other = child(echo, (board.clone(), there));
    board.await_at_least(READY, 1);
    let (mut sender, mut receiver) = here.split();
    for number in 0..50_u64 {
        if number % 5 == 0 {
            await_asleep(other.pid());
        }
        assert_eq!(block_on(sender.send_async(&number), HANG), Some(Ok(())));
        assert_eq!(block_on(receiver.recv_async(), HANG), Some(Ok(number)));
    }
    // In parts, longer than both rings together: somebody has to receive meanwhile.
    let long = message(1, 1, 50_000);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || block_on(receiver.recv_bytes_async(), HANG).unwrap());
        assert_eq!(block_on(sender.send_bytes_async(&long), HANG), Some(Ok(())));
        assert!(receiving.join().unwrap().unwrap() == long);
        drop(sender);
    });
    join(other);
}

#[test]
fn a_task_that_is_dropped_has_sent_nothing_and_lost_nothing() {
    let (mut receiver, mut sender) = PipeOptions::new().capacity(RING).simplex::<()>().unwrap();
    let moment = Duration::from_millis(5);
    assert_eq!(block_on(receiver.recv_bytes_async(), moment), None);
    // In the middle of a message: given up. What was there of it goes when somebody looks, and the next one comes whole.
    assert_eq!(block_on(sender.send_bytes_async(&message(1, 1, 30_000)), moment), None);
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    sender.send_bytes_timeout(&message(1, 2, 100), HANG).unwrap();
    assert_eq!(check(&block_on(receiver.recv_bytes_async(), HANG).unwrap().unwrap()), (1, 2));
    // A reader that is dropped in the middle goes on with its next call.
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let long = message(1, 3, 200_000);
            let sent = sender.send_bytes_timeout(&long, HANG);
            (sender, sent)
        });
        let received = loop {
            if let Some(received) = block_on(receiver.recv_bytes_async(), Duration::from_micros(20)) {
                break received;
            }
        };
        assert_eq!(check(&received.unwrap()), (1, 3));
        let (sender, sent) = sending.join().unwrap();
        assert_eq!(sent, Ok(()));
        drop(sender);
    });
    assert_eq!(block_on(receiver.recv_bytes_async(), HANG), Some(Err(RecvError::Closed)));
}

#[test]
fn a_task_is_told_of_a_death() {
    fn hold((board, _there): (Board, Connection<u64, u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        for_ever()
    }
    let board = Board::new(4);
    let (mut here, there) = Pipe::duplex::<u64, u64>().unwrap();
    let other = child(hold, (board.clone(), there));
    board.await_at_least(READY, 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || block_on(here.recv_async(), HANG));
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&other);
        assert_eq!(waiting.join().unwrap(), Some(Err(RecvError::PeerDied)));
    });
}

#[test]
fn of_many_connections_the_one_that_has_something_is_told() {
    isolated(|()| {
        // Each has a descriptor.
        let limit = rustix::process::Resource::Nofile;
        let now = rustix::process::getrlimit(limit);
        let soft = now.maximum.map_or(4096, |most| most.min(4096));
        rustix::process::setrlimit(limit, rustix::process::Rlimit { current: Some(soft), ..now }).unwrap();
        let count = (soft as usize - 64).min(1000);
        let pair = |_| PipeOptions::new().capacity(64).duplex::<u32, u32>().unwrap();
        let (here, there): (Vec<_>, Vec<_>) = (0..count).map(pair).unzip();
        let all: Vec<&dyn Waitable> = here.iter().map(|it| it as &dyn Waitable).collect();
        assert_eq!(wait_any(&all, Some(Duration::from_millis(5))), []);
        for at in [0, count / 2, count - 1] {
            there[at].send(&7).unwrap();
            assert_eq!(wait_any(&all, Some(HANG)), [at]);
            assert_eq!(here[at].recv(), Ok(7));
        }
        std::thread::scope(|scope| {
            let later = there[count / 3].clone();
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                later.send(&8).unwrap();
            });
            assert_eq!(wait_any(&all, Some(HANG)), [count / 3]);
        });
        println!("{count} connections");
    });
}

// ---- Handles in messages

/// Any handle, to a process that runs.
#[derive(serde::Serialize, serde::Deserialize)]
struct Luggage {
    number: u32,
    queue: Queue<u64>,
    value: Value<u64>,
    lock: Mutex<u64>,
    segment: Segment,
    pipe: Connection<u32, u32>,
    file: Handed<OwnedFd>,
}

#[test]
fn any_handle_goes_to_a_process_that_runs() {
    fn unpack((board, there): (Board, Connection<u32, Luggage>)) {
        tied_to_parent();
        board.add(READY, 1);
        let mut luggage = there.recv_timeout(HANG).unwrap();
        luggage.queue.send(u64::from(luggage.number)).unwrap();
        luggage.value.set(8).unwrap();
        *luggage.lock.lock().unwrap() += 1;
        luggage.segment.value("v", 0_u64).unwrap().set(9).unwrap();
        luggage.pipe.send(&10).unwrap();
        let mut file = std::fs::File::from(luggage.file.0);
        file.write_all(b"11").unwrap();
        // The same segment again is the same memory.
        let again = there.recv_timeout(HANG).unwrap();
        assert!(std::ptr::eq(luggage.segment.mapping().base(), again.segment.mapping().base()));
        luggage = again;
        there.send(&luggage.number).unwrap();
    }
    let board = Board::new(4);
    let (here, there) = Pipe::duplex::<Luggage, u32>().unwrap();
    let other = child(unpack, (board.clone(), there));
    board.await_at_least(READY, 1);
    let (end, their_end) = Pipe::duplex::<u32, u32>().unwrap();
    let (mut reads, writes) = {
        let (reads, writes) = rustix::pipe::pipe().unwrap();
        (std::fs::File::from(reads), writes)
    };
    let mut luggage = Luggage {
        number: 7,
        queue: Queue::new(4).unwrap(),
        value: Value::new(0).unwrap(),
        lock: Mutex::new(40).unwrap(),
        segment: Segment::anonymous(4096).unwrap(),
        pipe: their_end,
        file: Handed(writes),
    };
    let in_segment = luggage.segment.value("v", 0_u64).unwrap();
    here.send(&luggage).unwrap();
    assert_eq!(luggage.queue.recv_timeout(HANG), Ok(7));
    luggage.number = 17;
    here.send(&luggage).unwrap();
    assert_eq!(here.recv_timeout(HANG), Ok(17));
    assert_eq!((luggage.value.get(), in_segment.get()), (Ok(8), Ok(9)));
    assert_eq!(*luggage.lock.lock().unwrap(), 41);
    assert_eq!(end.recv_timeout(HANG), Ok(10));
    join(other);
    drop(luggage);
    assert_eq!(end.recv(), Err(RecvError::Closed), "both ends that were sent are gone");
    let mut text = String::new();
    reads.read_to_string(&mut text).unwrap();
    assert_eq!(text, "11", "and the pipe's");
}

#[test]
fn an_end_on_its_way_is_open() {
    let (mail, post) = Pipe::simplex::<Sender<u32>>().unwrap();
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    post.send(&sender).unwrap();
    drop(sender);
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty), "it is on its way");
    let arrived = mail.recv().unwrap();
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    arrived.send(&3).unwrap();
    drop(arrived);
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(3), Err(RecvError::Closed)));
}

#[test]
fn more_descriptors_than_a_packet_takes_go_in_one_message() {
    isolated(|()| {
        let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (receiver, sender) = Pipe::simplex::<(Vec<Handed<OwnedFd>>, u32)>().unwrap();
        let before = fds();
        let event = |n: u32| Handed(rustix::event::eventfd(n, rustix::event::EventfdFlags::CLOEXEC).unwrap());
        let all: Vec<_> = (0..300).map(event).collect();
        sender.send(&(all, 5)).unwrap();
        assert_eq!(fds(), before, "what was sent may be dropped");
        let (all, five) = receiver.recv().unwrap();
        assert_eq!((all.len(), five), (300, 5));
        for (n, fd) in (0..).zip(&all) {
            let mut count = [0; 8];
            if n > 0 {
                rustix::io::read(&fd.0, &mut count).unwrap();
            }
            assert_eq!(u64::from_ne_bytes(count), n, "in their order");
        }
        drop(all);
        // A message that is not made a value of takes its handles along.
        sender.send(&(vec![event(1)], 6)).unwrap();
        let bytes = receiver.recv_bytes().unwrap();
        assert_eq!(bytes.last(), Some(&6));
        sender.send(&(vec![event(1)], 7)).unwrap();
        assert_eq!(receiver.discard(), Ok(bytes.len()));
        sender.send(&(vec![event(2)], 8)).unwrap();
        let (all, eight) = receiver.recv().unwrap();
        assert_eq!((all.len(), eight), (1, 8));
        drop(all);
        assert_eq!(fds(), before);
    });
}

/// The kernel counts a user's descriptors that are on their way; a privileged process may exceed the limit.
#[test]
fn who_sends_handles_waits_while_too_many_are_on_their_way() {
    isolated(|()| {
        const LIMIT: u64 = 128;
        let (receiver, sender) = Pipe::simplex::<Vec<Handed<OwnedFd>>>().unwrap();
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let many = || (0..15).map(|_| Handed(event())).collect::<Vec<_>>();
        sender.send(&many()).unwrap();
        receiver.recv().unwrap();
        let nofile = rustix::process::Resource::Nofile;
        let now = rustix::process::getrlimit(nofile);
        rustix::process::setrlimit(nofile, rustix::process::Rlimit { current: Some(LIMIT), ..now }).unwrap();
        // Nobody else uses this number: what is on its way is ours.
        let nobody = rustix::process::Uid::from_raw(fresh_seed() as u32 % 1_000_000 + 1_000_000);
        if let Err(error) = rustix::thread::set_thread_uid(nobody) {
            println!("not run: becoming another user: {error}");
            return;
        }
        let sent = (0..20).take_while(|_| sender.try_send(&many()).is_ok()).count() as u64;
        assert!((LIMIT / 15..=LIMIT / 15 + 2).contains(&sent), "{sent} messages of 15");
        assert_eq!(sender.try_send(&many()), Err(SendError::Full));
        let moment = Duration::from_millis(10);
        assert_eq!(sender.send_timeout(&many(), moment), Err(SendError::TimedOut));
        // Without handles there is room.
        sender.try_send(&vec![]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(moment);
                let lengths: Vec<_> =
                    (0..sent + 2).map(|_| receiver.recv_timeout(HANG).unwrap().len()).collect();
                assert_eq!(lengths.iter().sum::<usize>(), (sent as usize + 1) * 15);
            });
            sender.send_timeout(&many(), HANG).unwrap();
        });
    });
}

#[test]
fn a_pipe_with_a_name_carries_no_handles() {
    let segment = Segment::anonymous(256 * 1024).unwrap();
    let pipe = segment.pipe::<Segment, u8>("p").unwrap();
    assert_eq!(pipe.near().unwrap().send(&segment), Err(SendError::NoHandles));
}

/// Who sends and who receives handles are killed at random; no descriptor stays, and what arrives are those that were sent.
#[test]
fn a_storm_of_kills_leaks_no_descriptor() {
    const ROUNDS: u64 = 60;
    type Message = (u64, Vec<Handed<OwnedFd>>);
    fn send((board, sender): (Board, Sender<Message>)) {
        tied_to_parent();
        board.add(READY, 1);
        for n in 0.. {
            let event = |k| {
                let count = (n % 1000) as u32 * 10 + k + 1;
                Handed(rustix::event::eventfd(count, rustix::event::EventfdFlags::CLOEXEC).unwrap())
            };
            sender.send(&(n, (0..3).map(event).collect())).unwrap();
            board.add(SENT, 1);
        }
    }
    fn receive((board, receiver): (Board, Receiver<Message>)) {
        tied_to_parent();
        board.add(READY, 1);
        loop {
            match receiver.recv() {
                Ok((n, fds)) => {
                    for (k, fd) in (0..).zip(&fds) {
                        let mut count = [0; 8];
                        rustix::io::read(&fd.0, &mut count).unwrap();
                        assert_eq!(u64::from_ne_bytes(count), n % 1000 * 10 + k + 1, "of another message");
                    }
                    assert_eq!(fds.len(), 3);
                    board.add(RECEIVED, 1);
                }
                // Those of a message that a dead one had begun to receive.
                Err(RecvError::HandlesLost) => drop(board.add(3, 1)),
                Err(error) => panic!("{error}"),
            }
        }
    }
    isolated(|()| {
        let seed = seeded("handles");
        let mut rng = Rng::new(seed);
        let board = Board::new(8);
        let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<Message>().unwrap();
        let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let sending = || child(send, (board.clone(), sender.clone()));
        let receiving = || child(receive, (board.clone(), receiver.clone()));
        let (mut s, mut r) = (sending(), receiving());
        let before = fds();
        let mut deaths = 0;
        for _ in 0..ROUNDS {
            std::thread::sleep(Duration::from_micros(rng.below(3000)));
            if rng.below(2) == 0 {
                kill_and_reap(&s);
                s = sending();
            } else {
                kill_and_reap(&r);
                deaths += 1;
                r = receiving();
            }
        }
        let received = board.get(RECEIVED);
        board.await_at_least(RECEIVED, received + 100);
        assert_eq!(fds(), before);
        // The one that lives has what it started with: its own, and none of the hundreds that it was sent.
        let theirs = std::fs::read_dir(format!("/proc/{}/fd", r.pid())).unwrap().count();
        assert!(theirs < 40, "{theirs} descriptors");
        let lost = board.get(3);
        assert!(lost <= deaths, "{lost} messages lost their handles after {deaths} deaths");
        println!("{received} received, {lost} lost their handles, {deaths} receivers killed");
        kill_and_reap(&s);
        kill_and_reap(&r);
    });
}
