//! What messages cost beside their time: system calls, and the time of both processes on their CPUs. And how long it takes to wake who
//! sleeps.

use std::collections::BTreeMap;
use std::hint::spin_loop;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossproc_benches::futex;
use crossproc_benches::syscalls::Tracer;
use crossproc_benches::vyukov::Vyukov;
use crossproc_benches::{Better, Figures, Scale, Turns, pin};
use crossproc_primitives::Queue;
use crossproc_primitives::spsc::{self, Consumer, Producer};
use crossproc_process::Process;
use crossproc_tests::{Board, HANG, child, join, tied_to_parent};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let scale = Scale::from_arguments();
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|only| name.contains(only));
    if wanted("woken") {
        woken(scale);
    }
    if wanted("cpu") {
        cpu(scale);
    }
    if wanted("syscalls") {
        syscalls(scale);
    }
}

const CAPACITY: usize = 1024;

// What the processes are to do.
const QUIT: u64 = 0;
const WAKE_FUTEX: u64 = 1;
const WAKE_QUEUE: u64 = 2;
const WAKE_SPSC: u64 = 3;
const STREAM_QUEUE: u64 = 4;
const STREAM_SPSC: u64 = 5;
const STREAM_QUEUE_TRY: u64 = 6;
const STREAM_SPSC_TRY: u64 = 7;

// The board, cache lines apart.
const ORDER: usize = 0;
const COUNT: usize = 1;
const ROUND: usize = 2;
const READY: usize = 16;
const DONE: usize = 32;
/// The word that the bare futex is about.
const BELL: usize = 48;
/// How many were received, and when the last one was.
const SEEN: usize = 64;
const SEEN_AT: usize = 65;
/// What the receiver's process has used of its CPU.
const USED: usize = 66;
/// 1 while this one works: the sender and, a cache line behind, the receiver.
const WORKS: usize = 80;
const WORDS: usize = 128;

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// By a clock that all processes share.
fn now() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Who sends, and who receives.
const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// The ends that one of the two has.
struct Ends {
    queue: Queue<u64>,
    producer: Option<Producer<u64>>,
    consumer: Option<Consumer<u64>>,
}

impl Ends {
    fn producer(&mut self) -> &mut Producer<u64> {
        self.producer.as_mut().expect("the sender has it")
    }

    fn consumer(&mut self) -> &mut Consumer<u64> {
        self.consumer.as_mut().expect("the receiver has it")
    }
}

/// Tries until it comes off, without a system call.
fn insist<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    loop {
        if let Ok(done) = attempt() {
            return done;
        }
        spin_loop();
    }
}

fn send_all(ends: &mut Ends, order: u64, count: u64) {
    for n in 0..count {
        match order {
            STREAM_QUEUE => ends.queue.send(n).expect("the receiver lives"),
            STREAM_QUEUE_TRY => insist(|| ends.queue.try_send(n)),
            STREAM_SPSC => ends.producer().push(n).expect("the receiver lives"),
            _ => insist(|| ends.producer().try_push(n)),
        }
    }
}

fn receive_all(ends: &mut Ends, order: u64, count: u64) {
    for n in 0..count {
        let value = match order {
            STREAM_QUEUE => ends.queue.recv().expect("the sender lives"),
            STREAM_QUEUE_TRY => insist(|| ends.queue.try_recv()),
            STREAM_SPSC => ends.consumer().pop().expect("the sender lives"),
            _ => insist(|| ends.consumer().try_pop()),
        };
        assert_eq!(value, n);
    }
}

/// Sleeps until there is one more, as often as wanted, and says when it woke up.
fn sleep_for_all(board: &Board, ends: &mut Ends, order: u64, count: u64) {
    for n in 1..=count {
        match order {
            WAKE_FUTEX => futex::await_value(&board[BELL], n as u32),
            WAKE_QUEUE => assert_eq!(ends.queue.recv_timeout(HANG), Ok(n)),
            _ => assert_eq!(ends.consumer().pop_timeout(HANG), Ok(n)),
        }
        board.set(SEEN_AT, now());
        board.set(SEEN, n);
    }
}

type Parts = (Board, usize, Queue<u64>, Option<Producer<u64>>, Option<Consumer<u64>>);

/// One of the two processes, in rounds.
fn party((board, me, queue, producer, consumer): Parts) {
    tied_to_parent();
    pin(me);
    let mut ends = Ends { queue, producer, consumer };
    for round in 1.. {
        while board.get(ROUND) < round {
            thread::sleep(Duration::from_micros(50));
        }
        let (order, count) = (board.get(ORDER), board.get(COUNT));
        if order == QUIT {
            return;
        }
        let before = nanoseconds(ClockId::ProcessCPUTime);
        meet(&board, round);
        board.set(WORKS + 16 * me, 1);
        match order {
            WAKE_FUTEX..=WAKE_SPSC => sleep_for_all(&board, &mut ends, order, count),
            _ if me == SENDER => send_all(&mut ends, order, count),
            _ => receive_all(&mut ends, order, count),
        }
        board.set(WORKS + 16 * me, 0);
        board.add(USED, nanoseconds(ClockId::ProcessCPUTime) - before);
        board.add(DONE, 1);
    }
}

/// Both begin at the same moment.
fn meet(board: &Board, round: u64) {
    board.add(READY, 1);
    while board.get(READY) < 2 * round {
        thread::yield_now();
    }
}

/// Two processes; or this one, which then sends, and another one.
struct Pair {
    board: Board,
    ends: Option<Ends>,
    children: Vec<Process<()>>,
    round: u64,
}

impl Pair {
    fn new(sends_itself: bool) -> Self {
        let board = Board::new(WORDS);
        let queue = Queue::new(CAPACITY).expect("memory for a queue");
        let (producer, consumer) = spsc::channel(CAPACITY).expect("memory for a queue");
        let mut children = vec![child(party, (board.clone(), RECEIVER, queue.clone(), None, Some(consumer)))];
        let ends = if sends_itself {
            Some(Ends { queue, producer: Some(producer), consumer: None })
        } else {
            children.push(child(party, (board.clone(), SENDER, queue, Some(producer), None)));
            None
        };
        Self { board, ends, children, round: 0 }
    }

    fn order(&mut self, order: u64, count: u64) {
        self.round += 1;
        [BELL, SEEN, USED].iter().for_each(|&word| self.board.set(word, 0));
        self.board.set(ORDER, order);
        self.board.set(COUNT, count);
        self.board.set(ROUND, self.round);
    }

    fn await_end(&self) {
        self.board.await_at_least(DONE, self.round * self.children.len() as u64);
    }

    fn quit(mut self) {
        self.order(QUIT, 0);
        self.children.into_iter().for_each(join);
    }
}

/// So long the sender waits, so that the receiver is asleep.
const PAUSE: Duration = Duration::from_micros(300);

/// The sender's side of one round of wake-ups: medians of nanoseconds until the receiver is awake; and what both used of their CPUs
/// for it, each time.
fn wake(pair: &mut Pair, order: u64, count: u64) -> (f64, f64) {
    pair.order(order, count);
    meet(&pair.board, pair.round);
    let board = pair.board.clone();
    let ends = pair.ends.as_mut().expect("this process sends");
    let (mut times, mut used) = (Vec::new(), 0);
    for n in 1..=count {
        thread::sleep(PAUSE);
        let before = nanoseconds(ClockId::ThreadCPUTime);
        let began = now();
        match order {
            WAKE_FUTEX => futex::set_and_wake(&board[BELL], n as u32),
            WAKE_QUEUE => ends.queue.send(n).expect("there is room"),
            _ => ends.producer().push(n).expect("there is room"),
        }
        used += nanoseconds(ClockId::ThreadCPUTime) - before;
        while board[SEEN].load(Ordering::Acquire) < n {
            thread::sleep(Duration::from_micros(20));
        }
        times.push(board.get(SEEN_AT).saturating_sub(began) as f64);
    }
    pair.await_end();
    let median = Figures(vec![times]).quantile(0, 0.5);
    (median, (used + board.get(USED)) as f64 / count as f64)
}

/// The receiver sleeps each time.
fn woken(scale: Scale) {
    pin(SENDER);
    let count = scale.count(100);
    let pair = std::cell::RefCell::new(Pair::new(true));
    let round = |order| wake(&mut pair.borrow_mut(), order, count);
    Turns::new("A sleeping receiver is woken", "ns", Better::Less)
        .subject("crossproc Queue<u64>, send -> recv", || round(WAKE_QUEUE).0)
        .against("bare futex", "<= 1.1 x", 1.1, || round(WAKE_FUTEX).0)
        .subject("crossproc spsc, push -> pop", || round(WAKE_SPSC).0)
        .run(scale.rounds(30));
    Turns::new("A sleeping receiver is woken: CPU time of both", "ns", Better::Less)
        .subject("crossproc Queue<u64>, send -> recv", || round(WAKE_QUEUE).1)
        .subject("bare futex", || round(WAKE_FUTEX).1)
        .subject("crossproc spsc, push -> pop", || round(WAKE_SPSC).1)
        .run(scale.rounds(30));
    pair.into_inner().quit();
}

/// Both send and receive without a pause.
fn cpu(scale: Scale) {
    let count = scale.count(400_000);
    let pair = std::cell::RefCell::new(Pair::new(false));
    let round = |order| {
        let mut pair = pair.borrow_mut();
        pair.order(order, count);
        pair.await_end();
        pair.board.get(USED) as f64 / count as f64
    };
    let vyukov = Vyukov::new(CAPACITY);
    Turns::new(format!("A stream of u64, capacity {CAPACITY}: CPU time of both"), "ns", Better::Less)
        .subject("crossproc Queue, send and recv", || round(STREAM_QUEUE))
        .subject("crossproc Queue, try_send and try_recv", || round(STREAM_QUEUE_TRY))
        .subject("crossproc spsc, push and pop", || round(STREAM_SPSC))
        .subject("Vyukov's queue (threads that spin)", || threads(&vyukov, count))
        .run(scale.rounds(25));
    pair.into_inner().quit();
}

fn threads(queue: &Vyukov<u64>, count: u64) -> f64 {
    let used = |work: &dyn Fn()| {
        let before = nanoseconds(ClockId::ThreadCPUTime);
        work();
        nanoseconds(ClockId::ThreadCPUTime) - before
    };
    let sum = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            pin(RECEIVER);
            used(&|| {
                for n in 0..count {
                    assert_eq!(insist(|| queue.pop().ok_or(())), n);
                }
            })
        });
        let sender = scope.spawn(|| {
            pin(SENDER);
            used(&|| (0..count).for_each(|n| insist(|| if queue.push(n) { Ok(()) } else { Err(()) })))
        });
        sender.join().unwrap() + receiver.join().unwrap()
    });
    sum as f64 / count as f64
}

/// Counts system calls while both are busy, by stopping them at each.
fn syscalls(scale: Scale) {
    let count = scale.count(2_000_000);
    println!("\nSystem calls of both processes while both are busy, {count} messages, capacity {CAPACITY}");
    for (name, order) in [
        ("Queue<u64>, try_send and try_recv", STREAM_QUEUE_TRY),
        ("Queue<u64>, send and recv", STREAM_QUEUE),
        ("spsc, try_push and try_pop", STREAM_SPSC_TRY),
        ("spsc, push and pop", STREAM_SPSC),
    ] {
        let mut pair = Pair::new(false);
        // Once without being watched: what is done the first time is done.
        pair.order(order, count / 10);
        pair.await_end();
        let pids: Vec<_> = pair.children.iter().map(Process::pid).collect();
        let mut tracer = match Tracer::attach(&pids) {
            Ok(tracer) => tracer,
            Err(error) => {
                println!("  not counted: tracing is not allowed here ({error})");
                return pair.quit();
            }
        };
        pair.order(order, count);
        let board = &pair.board;
        let mut calls = BTreeMap::<u64, u64>::new();
        tracer.watch(
            |number| {
                let busy = [SENDER, RECEIVER].iter().all(|me| board.get(WORKS + 16 * me) == 1);
                *calls.entry(number).or_default() += u64::from(busy);
            },
            || board.get(DONE) >= 2 * pair.round,
        );
        drop(tracer);
        calls.retain(|_, calls| *calls > 0);
        let sum: u64 = calls.values().sum();
        println!("  {name:<44} {sum:>10}  {:.6} each  by number: {calls:?}", sum as f64 / count as f64);
        pair.quit();
    }
}
