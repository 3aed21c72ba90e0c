//! What a message costs between processes, beside queues between the threads of one process.

mod iceoryx;

use std::cell::RefCell;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use crossproc_benches::vyukov::Vyukov;
use crossproc_benches::{Better, Scale, Turns, pin};
use crossproc_primitives::{Queue, QueueOptions};
use crossproc_process::Process;
use crossproc_segment::plain::Plain;
use crossproc_tests::{Board, child, join, tied_to_parent};

fn main() {
    let scale = Scale::from_arguments();
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| name.contains(only));
    if wanted("uncontended") {
        uncontended::<u64>(scale);
        uncontended::<Wide>(scale);
    }
    if wanted("in place") {
        in_place(scale);
    }
    if wanted("round trip") {
        round_trip(scale);
        large(scale);
    }
    if wanted("handles") {
        handles(scale);
    }
    if wanted("grid") {
        for capacity in [64, 1024, 65536] {
            for pairs in [1, 2, 4] {
                grid::<u64>(scale, pairs, capacity);
                grid::<Wide>(scale, pairs, capacity);
            }
        }
    }
}

/// 256 bytes.
type Wide = [u64; 32];

/// A message that is made from a number and checked when it is received.
trait Load: Plain + Send + Sync {
    const NAME: &'static str;
    fn of(n: u64) -> Self;
    fn check(&self) -> u64;
}

impl Load for u64 {
    const NAME: &'static str = "u64";
    fn of(n: u64) -> Self {
        n
    }
    fn check(&self) -> u64 {
        *self
    }
}

impl Load for Wide {
    const NAME: &'static str = "256 B";
    fn of(n: u64) -> Self {
        [n; 32]
    }
    fn check(&self) -> u64 {
        assert!(self.iter().all(|&word| word == self[0]), "torn");
        self[0]
    }
}

/// Nanoseconds for one of `count` calls.
fn each(count: u64, mut call: impl FnMut(u64)) -> f64 {
    let started = Instant::now();
    for n in 0..count {
        call(n);
    }
    started.elapsed().as_nanos() as f64 / count as f64
}

fn uncontended<T: Load>(scale: Scale) {
    let n = scale.count(20_000);
    let queue = Queue::<T>::new(1024).unwrap();
    let shared = Queue::<T>::new(1024).unwrap().share();
    let (vyukov, crossbeam) = (Vyukov::<T>::new(1024), ArrayQueue::<T>::new(1024));
    Turns::new(format!("Queue<{}>, uncontended send+recv", T::NAME), "ns", Better::Less)
        .subject("crossproc Queue", || {
            each(n, |n| {
                black_box(&queue).try_send(T::of(n)).unwrap();
                assert_eq!(queue.try_recv().unwrap().check(), n);
            })
        })
        .against("Vyukov's queue (threads only)", "<= 1.5 x", 1.5, || {
            each(n, |n| {
                assert!(black_box(&vyukov).push(T::of(n)));
                assert_eq!(vyukov.pop().unwrap().check(), n);
            })
        })
        .subject("crossbeam ArrayQueue (threads only)", || {
            each(n, |n| {
                assert!(black_box(&crossbeam).push(T::of(n)).is_ok());
                assert_eq!(crossbeam.pop().unwrap().check(), n);
            })
        })
        .subject("crossproc SharedQueue", || {
            each(n, |n| {
                black_box(&shared).try_send(T::of(n)).unwrap();
                assert_eq!(shared.try_recv().unwrap().check(), n);
            })
        })
        .run(scale.rounds(300));
}

const MEBIBYTE: usize = 1 << 20;

fn in_place(scale: Scale) {
    let n = scale.count(200);
    let options = QueueOptions::new(4).lanes(1);
    let large = options.anonymous::<[u8; MEBIBYTE]>().unwrap();
    let small = options.anonymous::<[u8; 64]>().unwrap();
    let (from, mut to) = (vec![1_u8; MEBIBYTE], vec![0_u8; MEBIBYTE]);
    Turns::new("Queue, loan -> send -> recv_ref -> drop", "ns", Better::Less)
        .subject("1 MiB", || {
            each(n, |n| {
                let mut loan = large.loan().unwrap();
                loan[MEBIBYTE - 1] = n as u8;
                loan.send().unwrap();
                assert_eq!(large.recv_ref().unwrap()[MEBIBYTE - 1], n as u8);
            })
        })
        .against("64 B", "<= 1.3 x (cost independent of size)", 1.3, || {
            each(n, |n| {
                let mut loan = small.loan().unwrap();
                loan[63] = n as u8;
                loan.send().unwrap();
                assert_eq!(small.recv_ref().unwrap()[63], n as u8);
            })
        })
        .subject("memcpy of 1 MiB", || {
            each(n.min(20), |_| black_box(&mut to).copy_from_slice(black_box(&from)))
        })
        .run(scale.rounds(50));
}

// ---- Processes that work in rounds ----

// The board, cache lines apart.
const ROUND: usize = 0;
const QUIT: usize = 8;
const READY: usize = 16;
const DONE: usize = 24;
const PING: usize = 32;
const PONG: usize = 48;
const TIMES: usize = 64;
const STRIDE: usize = 16;

/// Nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits for the next round, all at once; false: there is none.
fn next_round(board: &Board, round: u64, parties: u64) -> bool {
    while board.get(ROUND) < round {
        thread::sleep(Duration::from_micros(50));
    }
    board.add(READY, 1);
    while board.get(READY) < round * parties {
        thread::yield_now();
    }
    board.get(QUIT) == 0
}

/// Tries again until it comes off: spins, and if there are more workers than CPUs lets others run.
#[inline]
fn until<R>(crowded: bool, mut attempt: impl FnMut() -> Option<R>) -> R {
    let mut tries = 0;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        tries += 1;
        if tries > 16 {
            spin_loop();
        }
        if crowded && tries > 100 {
            thread::yield_now();
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Part {
    board: Board,
    me: usize,
    pairs: usize,
    each: u64,
}

fn work<T: Load>((part, queue): (Part, Queue<T>)) {
    tied_to_parent();
    let Part { board, me, pairs, each } = part;
    pin(cpu_of(me, pairs));
    let crowded = pairs > 1;
    for round in 1.. {
        if !next_round(&board, round, 2 * pairs as u64) {
            return;
        }
        let began = now();
        if me < pairs {
            for n in 0..each {
                until(crowded, || queue.try_send(T::of(n)).ok());
            }
        } else {
            let sum = (0..each)
                .fold(0_u64, |sum, _| sum.wrapping_add(until(crowded, || queue.try_recv().ok()).check()));
            black_box(sum);
        }
        board.set(TIMES + me * STRIDE, began);
        board.set(TIMES + me * STRIDE + 1, now());
        board.add(DONE, 1);
    }
}

/// The two halves of a pair on different CPUs.
fn cpu_of(me: usize, pairs: usize) -> usize {
    if me < pairs { me % 2 } else { (me - pairs + 1) % 2 }
}

struct Crowd {
    board: Board,
    workers: Vec<Process<()>>,
    round: u64,
}

impl Crowd {
    fn new<T: Load>(pairs: usize, capacity: usize, each: u64) -> Self {
        let board = Board::new(TIMES + 2 * pairs * STRIDE);
        let queue = Queue::<T>::new(capacity).unwrap();
        let part = |me| Part { board: board.clone(), me, pairs, each };
        let workers = (0..2 * pairs).map(|me| child(work::<T>, (part(me), queue.clone()))).collect();
        Self { board, workers, round: 0 }
    }

    /// One round; from the first to begin to the last to end, in nanoseconds.
    fn turn(&mut self) -> u64 {
        self.round += 1;
        self.board.set(ROUND, self.round);
        self.board.await_at_least(DONE, self.round * self.workers.len() as u64);
        let (board, workers) = (&self.board, self.workers.len());
        let time = |at| (0..workers).map(move |me| board.get(TIMES + me * STRIDE + at));
        time(1).max().unwrap() - time(0).min().unwrap()
    }

    fn quit(self) {
        self.board.set(QUIT, 1);
        self.board.set(ROUND, self.round + 1);
        self.workers.into_iter().for_each(join);
    }
}

/// The same by threads; nanoseconds.
fn threads<T: Load>(
    pairs: usize,
    each: u64,
    push: impl Fn(T) -> bool + Sync,
    pop: impl Fn() -> Option<T> + Sync,
) -> u64 {
    let gate = AtomicU64::new(0);
    let crowded = pairs > 1;
    let timed = |me: usize, work: &dyn Fn()| {
        pin(cpu_of(me, pairs));
        gate.fetch_add(1, Ordering::SeqCst);
        while gate.load(Ordering::SeqCst) < 2 * pairs as u64 {
            thread::yield_now();
        }
        let began = now();
        work();
        (began, now())
    };
    let produce = || (0..each).for_each(|n| until(crowded, || push(T::of(n)).then_some(())));
    let consume = || {
        black_box((0..each).fold(0_u64, |sum, _| sum.wrapping_add(until(crowded, &pop).check())));
    };
    let times: Vec<_> = thread::scope(|scope| {
        let (timed, produce, consume) = (&timed, &produce, &consume);
        let producers = (0..pairs).map(|me| scope.spawn(move || timed(me, produce)));
        let workers: Vec<_> =
            producers.chain((pairs..2 * pairs).map(|me| scope.spawn(move || timed(me, consume)))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    times.iter().map(|time| time.1).max().unwrap() - times.iter().map(|time| time.0).min().unwrap()
}

fn grid<T: Load>(scale: Scale, pairs: usize, capacity: usize) {
    let bursts = if size_of::<T>() > 8 { 4 } else { 1 };
    let each = scale.count((capacity as u64 * 4).max(200_000 / bursts) / pairs as u64);
    let messages = (each * pairs as u64) as f64;
    let rate = move |nanoseconds: u64| messages * 1e3 / nanoseconds.max(1) as f64;
    let crowd = RefCell::new(Crowd::new::<T>(pairs, capacity, each));
    let ours = || {
        // On which CPUs and pages processes find themselves makes a difference: new ones every now and then.
        if crowd.borrow().round >= 6 {
            crowd.replace(Crowd::new::<T>(pairs, capacity, each)).quit();
        }
        rate(crowd.borrow_mut().turn())
    };
    let (vyukov, crossbeam) = (Vyukov::<T>::new(capacity), ArrayQueue::<T>::new(capacity));
    Turns::new(
        format!("Queue<{}>, {pairs} senders and {pairs} receivers, capacity {capacity}", T::NAME),
        "M/s",
        Better::More,
    )
    .subject("crossproc Queue (processes)", ours)
    .against("Vyukov's queue (threads)", ">= 1.0 x the better one", 1.0, || {
        rate(threads(pairs, each, |value| vyukov.push(value), || vyukov.pop()))
    })
    .against("crossbeam ArrayQueue (threads)", ">= 1.0 x the better one", 1.0, || {
        rate(threads(pairs, each, |value| crossbeam.push(value).is_ok(), || crossbeam.pop()))
    })
    .run(scale.rounds(15));
    crowd.into_inner().quit();
}

// ---- There and back ----

const BARE: u64 = 0;
const SPINNING: u64 = 1;
const ICEORYX: u64 = 2;
const LARGE: u64 = 3;
const SMALL: u64 = 4;
const HOW: usize = 9;

/// The queues of one direction.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Way {
    words: Queue<u64>,
    large: Queue<[u8; MEBIBYTE]>,
    small: Queue<[u8; 64]>,
}

impl Way {
    fn new() -> Self {
        let options = QueueOptions::new(2).lanes(2);
        let large = options.anonymous().expect("memory for a queue");
        let small = options.anonymous().expect("memory for a queue");
        Self { words: Queue::new(64).expect("memory for a queue"), large, small }
    }
}

/// Sends a message that was written in place, at both of its ends.
fn send_in_place<const N: usize>(queue: &Queue<[u8; N]>, n: u64) {
    let mut loan = queue.loan().expect("a hand");
    (loan[0], loan[N - 1]) = (n as u8, n as u8);
    assert!(loan.try_send().is_ok(), "there is room");
}

/// Receives it, and reads it where it is.
fn receive_in_place<const N: usize>(queue: &Queue<[u8; N]>) -> u64 {
    let message = until(false, || queue.try_recv_ref().ok());
    assert_eq!(message[0], message[N - 1]);
    u64::from(message[0])
}

fn echo((board, count, there, back, files): (Board, u64, Way, Way, iceoryx::Files)) {
    tied_to_parent();
    pin(1);
    let iceoryx = iceoryx::End::<u64>::new(&files, false);
    iceoryx.connected();
    let (large, small) = ((&there.large, &back.large), (&there.small, &back.small));
    let (there, back) = (&there.words, &back.words);
    for round in 1.. {
        if !next_round(&board, round, 2) {
            return;
        }
        let how = board.get(HOW);
        for n in 1..=count {
            match how {
                BARE => {
                    while board[PING].load(Ordering::Acquire) != n {
                        spin_loop();
                    }
                    board[PONG].store(n, Ordering::Release);
                }
                SPINNING => until(false, || back.try_send(until(false, || there.try_recv().ok())).ok()),
                ICEORYX => iceoryx.send(iceoryx.receive(|value| *value)),
                LARGE => send_in_place(large.1, receive_in_place(large.0)),
                _ => send_in_place(small.1, receive_in_place(small.0)),
            }
        }
        board[PING].store(0, Ordering::Relaxed);
        board.add(DONE, 1);
    }
}

/// Two processes, of which one sends back what the other sends.
struct Echo {
    board: Board,
    there: Way,
    back: Way,
    iceoryx: iceoryx::End<u64>,
    /// Removes them when it goes.
    _files: iceoryx::Files,
    count: u64,
    other: Process<()>,
    round: u64,
}

impl Echo {
    fn new(count: u64) -> Self {
        let board = Board::new(TIMES);
        let (there, back, files) = (Way::new(), Way::new(), iceoryx::Files::new());
        let other = child(echo, (board.clone(), count, there.clone(), back.clone(), files.lent()));
        let iceoryx = iceoryx::End::new(&files, true);
        iceoryx.connected();
        Self { board, there, back, iceoryx, _files: files, count, other, round: 0 }
    }

    /// Nanoseconds there and back.
    fn turn(&mut self, how: u64) -> f64 {
        self.round += 1;
        let board = &self.board;
        board.set(HOW, how);
        board.set(PONG, 0);
        board.set(ROUND, self.round);
        assert!(next_round(board, self.round, 2));
        let began = now();
        for n in 1..=self.count {
            match how {
                BARE => {
                    board[PING].store(n, Ordering::Release);
                    while board[PONG].load(Ordering::Acquire) != n {
                        spin_loop();
                    }
                }
                SPINNING => {
                    until(false, || self.there.words.try_send(n).ok());
                    assert_eq!(until(false, || self.back.words.try_recv().ok()), n);
                }
                ICEORYX => {
                    self.iceoryx.send(n);
                    assert_eq!(self.iceoryx.receive(|value| *value), n);
                }
                LARGE => {
                    send_in_place(&self.there.large, n);
                    assert_eq!(receive_in_place(&self.back.large), n & 0xff);
                }
                _ => {
                    send_in_place(&self.there.small, n);
                    assert_eq!(receive_in_place(&self.back.small), n & 0xff);
                }
            }
        }
        let spent = now() - began;
        board.await_at_least(DONE, self.round);
        spent as f64 / self.count as f64
    }

    fn quit(self) {
        self.board.set(QUIT, 1);
        self.board.set(ROUND, self.round + 1);
        self.board.add(READY, 1);
        join(self.other);
    }
}

fn round_trip(scale: Scale) {
    pin(0);
    let echo = RefCell::new(Echo::new(scale.count(2000)));
    Turns::new("Queue<u64>, there and back, spinning", "ns", Better::Less)
        .subject("crossproc Queue", || echo.borrow_mut().turn(SPINNING))
        .against("two bare cache lines", "<= 1.4 x", 1.4, || echo.borrow_mut().turn(BARE))
        .subject("iceoryx2 (zero-copy)", || echo.borrow_mut().turn(ICEORYX))
        .run(scale.rounds(60));
    echo.into_inner().quit();
}

/// Messages written and read where they are: between two processes, there and back.
fn large(scale: Scale) {
    pin(0);
    let echo = RefCell::new(Echo::new(scale.count(500)));
    let (from, mut to) = (vec![1_u8; MEBIBYTE], vec![0_u8; MEBIBYTE]);
    Turns::new(
        "Queue, loan -> send -> recv_ref -> drop, there and back between processes",
        "ns",
        Better::Less,
    )
    .subject("1 MiB", || echo.borrow_mut().turn(LARGE))
    .against("64 B", "<= 1.3 x (cost independent of size)", 1.3, || echo.borrow_mut().turn(SMALL))
    .subject("memcpy of 1 MiB, once", || {
        each(scale.count(20), |_| black_box(&mut to).copy_from_slice(black_box(&from)))
    })
    .run(scale.rounds(40));
    echo.into_inner().quit();
}

// ---- Handles, as users hold them ----

const THREADS: usize = 2;
const SHARED: u64 = 1;

/// One process whose threads all send, or all receive: each with a clone of the handle, or all with the same.
fn crew((part, queue): (Part, Queue<u64>)) {
    tied_to_parent();
    let Part { board, me, each, .. } = part;
    let sends = me == 0;
    let work = |thread: usize, send: &dyn Fn(u64) -> bool, receive: &dyn Fn() -> Option<u64>| {
        pin((me + thread) % 2);
        for n in 0..each {
            if sends {
                until(true, || send(n).then_some(()));
            } else {
                black_box(until(true, receive));
            }
        }
    };
    let one = queue.clone().share();
    let clones: Vec<_> = (0..THREADS).map(|_| std::sync::Mutex::new(queue.clone())).collect();
    for round in 1.. {
        if !next_round(&board, round, 2) {
            return;
        }
        let shared = board.get(HOW) == SHARED;
        let began = now();
        thread::scope(|scope| {
            for (thread, clone) in clones.iter().enumerate() {
                let (work, one) = (&work, &one);
                scope.spawn(move || {
                    let own = clone.lock().expect("nobody panics with it");
                    if shared {
                        work(thread, &|n| one.try_send(n).is_ok(), &|| one.try_recv().ok());
                    } else {
                        work(thread, &|n| own.try_send(n).is_ok(), &|| own.try_recv().ok());
                    }
                });
            }
        });
        board.set(TIMES + me * STRIDE, began);
        board.set(TIMES + me * STRIDE + 1, now());
        board.add(DONE, 1);
    }
}

fn handles(scale: Scale) {
    let each = scale.count(100_000);
    let board = Board::new(TIMES + 2 * STRIDE);
    let queue = QueueOptions::new(1024).lanes(16).anonymous::<u64>().unwrap();
    let part = |me| Part { board: board.clone(), me, pairs: 1, each };
    let workers = (0..2).map(|me| child(crew, (part(me), queue.clone()))).collect();
    let crowd = RefCell::new(Crowd { board: board.clone(), workers, round: 0 });
    let rate = |how| {
        board.set(HOW, how);
        (THREADS as u64 * each) as f64 * 1e3 / crowd.borrow_mut().turn().max(1) as f64
    };
    Turns::new("Queue<u64>, two processes with two threads each", "M/s", Better::More)
        .subject("a clone for each thread", || rate(0))
        .subject("one SharedQueue for both", || rate(SHARED))
        .run(scale.rounds(15));
    crowd.into_inner().quit();
}
