//! A queue with one producer and one consumer: nothing is lost, torn or there twice, whoever is killed, stopped or replaced.

use std::time::{Duration, Instant};

use crossproc_derive::Plain;
use crossproc_primitives::Objects;
use crossproc_primitives::spsc::{self, Consumer, PopError, Producer, PushError};
use crossproc_process::Process;
use crossproc_segment::plain::Plain;
use crossproc_segment::{ErrorKind, Segment};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, await_state, child, fresh_seed, isolated, join, kill_and_reap, not_run,
    tied_to_parent, wait_for,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::kernel::{self, End, Forked};

fn signal<R>(process: &Process<R>, signal: Signal) {
    kill_process(Pid::from_raw(process.pid() as i32).unwrap(), signal).unwrap();
}

/// An element that tells which one it is in all its bytes.
trait Numbered: Plain + PartialEq + std::fmt::Debug + Send {
    fn of(n: u64) -> Self;
}

impl Numbered for u8 {
    fn of(n: u64) -> Self {
        n as u8
    }
}

impl Numbered for u64 {
    fn of(n: u64) -> Self {
        n
    }
}

macro_rules! arrays {
    ($($unit:ty; $n:literal),* $(,)?) => {$(
        impl Numbered for [$unit; $n] {
            fn of(n: u64) -> Self {
                std::array::from_fn(|k| (n as $unit).wrapping_mul(31).wrapping_add(k as $unit))
            }
        }
    )*};
}
arrays!(u8; 3, u16; 5, u32; 7, u8; 64, u64; 32, u8; 1001, u64; 512);

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C, align(64))]
struct Line {
    words: [u64; 8],
}

impl Numbered for Line {
    fn of(n: u64) -> Self {
        Self { words: [n; 8] }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(checked, crate = crossproc_segment)]
#[repr(C)]
struct Checked {
    number: u64,
    odd: bool,
    rest: [u8; 7],
}

impl Numbered for Checked {
    fn of(n: u64) -> Self {
        Self { number: n, odd: n % 2 == 1, rest: [n as u8; 7] }
    }
}

fn push_numbers<T: Numbered>((mut producer, count): (Producer<T>, u64)) {
    tied_to_parent();
    for n in 0..count {
        producer.push_timeout(T::of(n), HANG).unwrap();
    }
}

fn stream<T: Numbered>(capacity: usize, count: u64) {
    let (producer, mut consumer) = spsc::channel::<T>(capacity).unwrap();
    let other = child(push_numbers::<T>, (producer, count));
    assert_eq!(consumer.peer(), Some(other.pid()));
    for n in 0..count {
        assert_eq!(consumer.pop_timeout(HANG), Ok(T::of(n)), "element {n}");
    }
    join(other);
    assert_eq!(consumer.pop(), Err(PopError::PeerDied), "it has left, and nobody else is there");
    consumer.audit().unwrap();
}

#[test]
fn a_million_elements_come_in_order() {
    stream::<u64>(1000, 1_000_000);
}

#[test]
fn elements_of_every_size_and_alignment_come_whole() {
    stream::<u8>(100, 20_000);
    stream::<[u8; 3]>(100, 20_000);
    stream::<[u16; 5]>(100, 20_000);
    stream::<[u32; 7]>(100, 20_000);
    stream::<[u8; 64]>(100, 20_000);
    stream::<Line>(100, 20_000);
    stream::<Checked>(100, 20_000);
    stream::<[u64; 32]>(100, 5000);
    stream::<[u8; 1001]>(10, 2000);
    stream::<[u64; 512]>(10, 2000);
}

#[test]
fn the_smallest_queue_works() {
    stream::<u64>(1, 20_000);
    stream::<[u64; 512]>(1, 2000);
}

#[test]
fn batches_and_places_come_in_order() {
    fn push((mut producer, count): (Producer<u64>, u64)) {
        tied_to_parent();
        let mut n = 0;
        while n < count {
            match n % 3 {
                0 => {
                    let values: Vec<u64> = (n..count.min(n + 100)).collect();
                    n += producer.push_many(&values).unwrap() as u64;
                }
                1 => {
                    let mut place = producer.reserve_timeout(40, HANG).unwrap();
                    let len = place.len().min((count - n) as usize);
                    for k in 0..len {
                        place[k] = n + k as u64;
                    }
                    place.commit(len);
                    n += len as u64;
                }
                _ => {
                    let values: Vec<u64> = (n..count.min(n + 10)).collect();
                    n += producer.push_all(&values).map_or(0, |()| values.len() as u64);
                }
            }
            if n % 7 == 0 && n < count {
                producer.push_timeout(n, HANG).unwrap();
                n += 1;
            }
        }
        producer.close();
    }
    let count = 200_000;
    let (producer, mut consumer) = spsc::channel::<u64>(500).unwrap();
    let other = child(push, (producer, count));
    let mut n = 0;
    let mut out = [0; 64];
    while n < count {
        let some = consumer.pop_many(&mut out).unwrap();
        for value in &out[..some] {
            assert_eq!(*value, n);
            n += 1;
        }
        if n < count {
            let peeked = consumer.peek_timeout(HANG).unwrap();
            let some = peeked.len().min(1 + n as usize % 9);
            assert!(peeked[..some].iter().zip(n..).all(|(value, n)| *value == n));
            peeked.release(some);
            n += some as u64;
        }
    }
    assert_eq!(consumer.pop_timeout(HANG), Err(PopError::Closed));
    join(other);
}

// ---- Taking over

const PUSHED: usize = 0;
const POPPED: usize = 8;
const MISSING: usize = 16;
const AGAIN: usize = 24;
const READY: usize = 32;
const CAPACITY: usize = 64;
const ROUNDS: u64 = 60;

/// A segment with a queue, a board, and a seeded generator.
fn stage() -> (Segment, Board, Rng) {
    let seed = fresh_seed();
    println!("seed {seed}");
    (Segment::anonymous(64 * 1024).unwrap(), Board::new(40), Rng::new(seed))
}

/// A while in which anything from nothing to thousands of elements is passed.
fn a_while(rng: &mut Rng) {
    std::thread::sleep(Duration::from_micros(rng.below(3000)));
}

#[test]
fn a_killed_producer_is_followed_by_one_that_goes_on_where_it_stopped() {
    fn push((board, segment, first): (Board, Segment, u64)) {
        tied_to_parent();
        let mut producer = segment.producer::<[u64; 3]>("q", CAPACITY).unwrap();
        board.add(READY, 1);
        for n in first.. {
            producer.push([n; 3]).unwrap();
            board.set(PUSHED, n + 1);
        }
    }
    let (segment, board, mut rng) = stage();
    let mut consumer = segment.consumer::<[u64; 3]>("q", CAPACITY).unwrap();
    let (mut popped, mut unannounced) = (0, 0);
    for round in 0..ROUNDS {
        let first = popped + consumer.len() as u64;
        let producer = child(push, (board.clone(), segment.clone(), first));
        board.await_at_least(READY, round + 1);
        for _ in 0..rng.below(3000) {
            assert_eq!(consumer.pop_timeout(HANG), Ok([popped; 3]));
            popped += 1;
        }
        kill_and_reap(&producer);
        consumer.audit().unwrap();
        let (announced, there) = (board.get(PUSHED), popped + consumer.len() as u64);
        assert!((announced..=announced + 1).contains(&there), "{announced} were pushed, {there} are there");
        unannounced += there - announced;
        board.set(PUSHED, there);
    }
    println!("{popped} elements; {unannounced} of {ROUNDS} producers died just behind a push");
    drop(segment.producer::<[u64; 3]>("q", CAPACITY).unwrap());
    consumer.iter().for_each(|value| {
        assert_eq!(value, [popped; 3]);
        popped += 1;
    });
    assert_eq!(popped, board.get(PUSHED));
}

#[test]
fn a_killed_consumer_takes_one_copy_along_at_the_most() {
    fn pop((board, segment): (Board, Segment)) {
        tied_to_parent();
        let mut consumer = segment.consumer::<[u64; 3]>("q", CAPACITY).unwrap();
        let mut next = board.get(POPPED);
        board.add(READY, 1);
        assert_eq!(consumer.redelivered(), 0);
        let first = consumer.pop().unwrap();
        if first == [next + 1; 3] {
            board.add(MISSING, 1); // its predecessor had it
            next += 1;
        }
        assert_eq!(first, [next; 3]);
        board.set(POPPED, next + 1);
        for n in next + 1.. {
            assert_eq!(consumer.pop().unwrap(), [n; 3]);
            board.set(POPPED, n + 1);
        }
    }
    let (segment, board, mut rng) = stage();
    let mut producer = segment.producer::<[u64; 3]>("q", CAPACITY).unwrap();
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| (0..).take_while(|&n| producer.push([n; 3]).is_ok()).count());
        for round in 0..ROUNDS {
            let before = board.get(POPPED);
            let consumer = child(pop, (board.clone(), segment.clone()));
            board.await_at_least(READY, round + 1);
            a_while(&mut rng);
            kill_and_reap(&consumer);
            assert!(board.get(POPPED) >= before);
        }
        let mut consumer = segment.consumer::<[u64; 3]>("q", CAPACITY).unwrap();
        consumer.close();
        let last = consumer.iter().last().map_or(0, |value| value[0] + 1);
        assert!(last.max(board.get(POPPED)) <= pushing.join().unwrap() as u64);
    });
    println!("{} elements, {} missing", board.get(POPPED), board.get(MISSING));
    assert!(board.get(MISSING) <= ROUNDS);
}

#[test]
fn of_elements_in_place_a_killed_consumer_takes_none_along() {
    fn pop((board, segment): (Board, Segment)) {
        tied_to_parent();
        let mut consumer = segment.consumer::<[u64; 3]>("q", CAPACITY).unwrap();
        board.add(READY, 1);
        let again = consumer.redelivered() as u64;
        let done = board.get(POPPED);
        let mut next = consumer.peek().unwrap()[0][0];
        assert!(next <= done, "{} are lost", next - done);
        assert!(done - next <= again, "{} come again, {again} are said to", done - next);
        board.add(AGAIN, done - next);
        loop {
            let peeked = consumer.peek().unwrap();
            for value in &*peeked {
                assert_eq!(*value, [next; 3]);
                next += 1;
                board.set(POPPED, next.max(done));
            }
            let all = peeked.len();
            peeked.release(all);
        }
    }
    let (segment, board, mut rng) = stage();
    let mut producer = segment.producer::<[u64; 3]>("q", CAPACITY).unwrap();
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| (0..).take_while(|&n| producer.push([n; 3]).is_ok()).count());
        for round in 0..ROUNDS {
            let consumer = child(pop, (board.clone(), segment.clone()));
            board.await_at_least(READY, round + 1);
            a_while(&mut rng);
            kill_and_reap(&consumer);
        }
        segment.consumer::<[u64; 3]>("q", CAPACITY).unwrap().close();
        pushing.join().unwrap();
    });
    println!("{} elements, {} came again", board.get(POPPED), board.get(AGAIN));
}

#[test]
fn a_role_is_taken_once_and_the_error_says_by_whom() {
    fn hold((board, segment): (Board, Segment)) {
        tied_to_parent();
        let _producer = segment.producer::<u64>("q", 10).unwrap();
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let (segment, board, _) = stage();
    let consumer = segment.consumer::<u64>("q", 10).unwrap();
    let holder = child(hold, (board.clone(), segment.clone()));
    board.await_at_least(READY, 1);
    let refused = segment.producer::<u64>("q", 10).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::RoleTaken);
    assert!(refused.to_string().contains(&holder.pid().to_string()), "{refused}");
    assert_eq!(consumer.peer(), Some(holder.pid()));
    // Stopped is not dead.
    signal(&holder, Signal::STOP);
    await_state(holder.pid(), 'T');
    assert_eq!(segment.producer::<u64>("q", 10).unwrap_err().kind(), ErrorKind::RoleTaken);
    kill_and_reap(&holder);
    assert_eq!(consumer.peer(), None);
    segment.producer::<u64>("q", 10).unwrap().push(1).unwrap();
}

// ---- Waiting

/// Pops one element after another and announces them, until there are no more.
fn pop_and_tell((board, mut consumer): (Board, Consumer<u64>)) -> String {
    tied_to_parent();
    board.add(READY, 1);
    loop {
        match consumer.pop() {
            Ok(n) => board.set(POPPED, n),
            Err(error) => return format!("{error:?}"),
        }
    }
}

#[test]
fn a_push_wakes_a_consumer_that_sleeps() {
    let board = Board::new(40);
    let (mut producer, consumer) = spsc::channel::<u64>(10).unwrap();
    let other = child(pop_and_tell, (board.clone(), consumer));
    board.await_at_least(READY, 1);
    for n in 1..=20 {
        await_asleep(other.pid());
        producer.push(n).unwrap();
        board.await_at_least(POPPED, n);
    }
    await_asleep(other.pid());
    producer.close();
    assert_eq!(join(other), "Closed");
}

#[test]
fn a_pop_wakes_a_producer_that_sleeps() {
    fn push((board, mut producer): (Board, Producer<u64>)) -> String {
        tied_to_parent();
        loop {
            match producer.push(7) {
                Ok(()) => board.add(PUSHED, 1),
                Err(error) => return format!("{error:?}"),
            };
        }
    }
    let board = Board::new(40);
    let (producer, mut consumer) = spsc::channel::<u64>(4).unwrap();
    let other = child(push, (board.clone(), producer));
    for _ in 0..20 {
        await_asleep(other.pid());
        let before = board.get(PUSHED);
        while board.get(PUSHED) == before {
            let _ = consumer.try_pop();
        }
    }
    await_asleep(other.pid());
    consumer.close();
    assert_eq!(join(other), "Closed(..)");
}

#[test]
fn without_membarrier_a_push_wakes_all_the_same() {
    isolated(|()| {
        if kernel::deny(libc::SYS_membarrier, libc::ENOSYS).is_err() {
            return not_run("system call filters (seccomp) are not allowed");
        }
        assert!(!crossproc_atomic::heavy_fence() && !crossproc_atomic::register_light_fences());
        let board = Board::new(40);
        let (mut producer, consumer) = spsc::channel::<u64>(10).unwrap();
        // It inherits the filter.
        let other = child(pop_and_tell, (board.clone(), consumer));
        board.await_at_least(READY, 1);
        for n in 1..=20 {
            await_asleep(other.pid());
            producer.push(n).unwrap();
            board.await_at_least(POPPED, n);
        }
        producer.close();
        assert_eq!(join(other), "Closed");
    });
}

#[test]
fn who_waits_for_the_dead_is_told_and_has_all_they_pushed() {
    fn push((board, mut producer): (Board, Producer<u64>)) {
        tied_to_parent();
        (0..5).for_each(|n| producer.push(n).unwrap());
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let board = Board::new(40);
    let (producer, mut consumer) = spsc::channel::<u64>(10).unwrap();
    let other = child(push, (board.clone(), producer));
    board.await_at_least(READY, 1);
    std::thread::scope(|scope| {
        let popping = scope.spawn(|| {
            let popped: Vec<u64> = consumer.iter().collect();
            (popped, consumer.pop())
        });
        std::thread::sleep(Duration::from_millis(20));
        let killed = Instant::now();
        kill_and_reap(&other);
        let (popped, end) = popping.join().unwrap();
        println!("told {:?} after the death", killed.elapsed());
        assert_eq!((popped, end), (vec![0, 1, 2, 3, 4], Err(PopError::PeerDied)));
    });

    let (mut producer, consumer) = spsc::channel::<u64>(10).unwrap();
    fn hold((board, _consumer): (Board, Consumer<u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let other = child(hold, (board.clone(), consumer));
    board.await_at_least(READY, 2);
    while producer.try_push(1).is_ok() {}
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| producer.push(2));
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&other);
        assert_eq!(pushing.join().unwrap(), Err(PushError::PeerDied(2)));
    });
}

#[test]
fn a_stopped_consumer_is_waited_for_no_longer_than_asked() {
    let board = Board::new(40);
    let (mut producer, consumer) = spsc::channel::<u64>(10).unwrap();
    let other = child(pop_and_tell, (board.clone(), consumer));
    board.await_at_least(READY, 1);
    signal(&other, Signal::STOP);
    await_state(other.pid(), 'T');
    let mut n = 0;
    while producer.try_push(n + 1).is_ok() {
        n += 1;
    }
    assert!(n >= 10);
    let (started, limit) = (Instant::now(), Duration::from_millis(80));
    assert_eq!(producer.push_timeout(0, limit), Err(PushError::Timeout(0)));
    assert!(started.elapsed() >= limit);
    signal(&other, Signal::CONT);
    board.await_at_least(POPPED, n);
    producer.push_timeout(n + 1, HANG).unwrap();
    board.await_at_least(POPPED, n + 1);
    drop(producer);
    assert_eq!(join(other), "PeerDied");
}

// ---- Handing over

#[test]
fn a_role_goes_with_the_handle_from_process_to_process() {
    fn relay((mut producer, mut consumer, first): (Producer<u64>, Consumer<u64>, u64)) {
        tied_to_parent();
        assert_eq!((producer.len(), consumer.redelivered()), (5, 0));
        (0..5).for_each(|k| producer.push(first + k).unwrap());
        (0..5).for_each(|k| assert_eq!(consumer.pop(), Ok(first - 5 + k)));
        if first < 20 {
            join(child(relay, (producer, consumer, first + 5)));
        }
    }
    let (mut producer, consumer) = spsc::channel::<u64>(20).unwrap();
    (0..5).for_each(|n| producer.push(n).unwrap());
    join(child(relay, (producer, consumer, 5)));
}

#[test]
fn a_role_that_a_child_did_not_receive_comes_back() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Unwelcome {
        producer: Producer<u64>,
        #[serde(deserialize_with = "refuse")]
        bad: u8,
    }
    fn refuse<'de, D: serde::Deserializer<'de>>(_: D) -> Result<u8, D::Error> {
        Err(serde::de::Error::custom("not this"))
    }
    let (mut producer, mut consumer) = spsc::channel::<u64>(7).unwrap();
    producer.push(1).unwrap();
    let failed = Process::spawn(|_: Unwelcome| (), Unwelcome { producer, bad: 1 });
    assert!(failed.is_err());
    assert_eq!(consumer.pop(), Ok(1));
    wait_for("the child's end to be known", || consumer.pop_timeout(HANG) == Err(PopError::PeerDied));
}

#[test]
fn a_forked_child_has_neither_end() {
    isolated(|()| {
        let (mut producer, mut consumer) = spsc::channel::<u64>(7).unwrap();
        producer.push(1).unwrap();
        let forked = Forked::new(|| {
            assert_eq!(producer.push(2), Err(PushError::NotAttached(2)));
            assert_eq!(producer.push_many(&[2]), Err(PushError::NotAttached(())));
            assert_eq!(consumer.try_pop(), Err(PopError::NotAttached));
            producer.close();
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!((consumer.pop(), producer.is_closed()), (Ok(1), false));
    });
}
