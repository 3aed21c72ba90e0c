//! What a message costs between processes, beside queues between the threads of one process.

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
use crossproc_tests::{Board, HANG, child, join, tied_to_parent};

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
    }
    if wanted("blocked") {
        blocked(scale);
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
const SLEEPING: u64 = 2;
const HOW: usize = 9;

fn echo((board, count, there, back): (Board, u64, Queue<u64>, Queue<u64>)) {
    tied_to_parent();
    pin(1);
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
                _ => back.send_timeout(there.recv_timeout(HANG).unwrap(), HANG).unwrap(),
            }
        }
        board[PING].store(0, Ordering::Relaxed);
        board.add(DONE, 1);
    }
}

/// Two processes, of which one sends back what the other sends.
struct Echo {
    board: Board,
    there: Queue<u64>,
    back: Queue<u64>,
    count: u64,
    other: Process<()>,
    round: u64,
}

impl Echo {
    fn new(count: u64) -> Self {
        let board = Board::new(TIMES);
        let (there, back) = (Queue::new(64).unwrap(), Queue::new(64).unwrap());
        let other = child(echo, (board.clone(), count, there.clone(), back.clone()));
        Self { board, there, back, count, other, round: 0 }
    }

    /// Nanoseconds there and back.
    fn turn(&mut self, how: u64, pause: Duration) -> f64 {
        self.round += 1;
        let board = &self.board;
        board.set(HOW, how);
        board.set(PONG, 0);
        board.set(ROUND, self.round);
        assert!(next_round(board, self.round, 2));
        let mut spent = 0;
        for n in 1..=self.count {
            if pause > Duration::ZERO {
                thread::sleep(pause);
            }
            let began = now();
            match how {
                BARE => {
                    board[PING].store(n, Ordering::Release);
                    while board[PONG].load(Ordering::Acquire) != n {
                        spin_loop();
                    }
                }
                SPINNING => {
                    until(false, || self.there.try_send(n).ok());
                    assert_eq!(until(false, || self.back.try_recv().ok()), n);
                }
                _ => {
                    self.there.send_timeout(n, HANG).unwrap();
                    assert_eq!(self.back.recv_timeout(HANG).unwrap(), n);
                }
            }
            spent += now() - began;
        }
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
        .subject("crossproc Queue", || echo.borrow_mut().turn(SPINNING, Duration::ZERO))
        .against("two bare cache lines", "<= 1.4 x", 1.4, || echo.borrow_mut().turn(BARE, Duration::ZERO))
        .run(scale.rounds(60));
    echo.into_inner().quit();
}

fn blocked(scale: Scale) {
    let echo = RefCell::new(Echo::new(scale.count(200)));
    let pause = Duration::from_micros(300);
    Turns::new("Queue<u64>, there and back, both asleep each time", "ns", Better::Less)
        .subject("crossproc Queue", || echo.borrow_mut().turn(SLEEPING, pause))
        .run(scale.rounds(20));
    echo.into_inner().quit();
}
