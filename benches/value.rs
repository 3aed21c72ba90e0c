//! What it costs to read a value while another process writes it, and to write one.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_benches::{Better, Scale, Turns, pin};
use crossproc_primitives::{Mutex, Value};
use crossproc_segment::plain::Plain;
use crossproc_tests::{Board, child, join, tied_to_parent};

fn main() {
    let scale = Scale::from_arguments();
    pin(0);
    reading(scale, "u64", write_for::<u64>, 0_u64);
    reading(scale, "[u64; 8]", write_for::<[u64; 8]>, [0_u64; 8]);
    writing(scale, "u64", 0_u64);
    writing(scale, "[u64; 8]", [0_u64; 8]);
}

const NOBODY: u64 = 0;
const VALUE: u64 = 1;
const MUTEX: u64 = 2;
const QUIT: u64 = 3;

const BATCH: u32 = 512;

// The board, cache lines apart.
const WANTED: usize = 0;
const DOING: usize = 8;
const WRITES: usize = 16;

type Writer<T> = fn((Board, Value<T>, Mutex<T>, u64));

/// Writes what is wanted, without a pause.
fn write_for<T: Plain + AnyBitPattern>((board, value, mutex, _): (Board, Value<T>, Mutex<T>, u64)) {
    tied_to_parent();
    pin(1);
    let mut doing = NOBODY;
    let mut writes = 0;
    let first = value.get().unwrap();
    loop {
        let wanted = board.get(WANTED);
        if wanted != doing {
            doing = wanted;
            board.set(DOING, doing);
        }
        match doing {
            VALUE => (0..64).for_each(|_| value.set(black_box(first)).unwrap()),
            MUTEX => (0..64).for_each(|_| *mutex.lock().unwrap() = black_box(first)),
            QUIT => return,
            _ => thread::sleep(Duration::from_micros(50)),
        }
        writes += 64;
        board.set(WRITES, writes);
    }
}

/// Nanoseconds for one call beside a writer: the median of batches, over `time`. Batches during which the writer stood still
/// (it waits for a CPU) do not count; those during which the reader did are rare and far from the median.
fn each_beside(time: Duration, writes: impl Fn() -> u64, mut call: impl FnMut()) -> f64 {
    let mut batches = Vec::new();
    let started = Instant::now();
    let mut before = writes();
    while started.elapsed() < time || batches.is_empty() {
        let begun = Instant::now();
        (0..BATCH).for_each(|_| call());
        let took = begun.elapsed();
        let now = writes();
        if now != before {
            batches.push(took.as_nanos() as f64 / f64::from(BATCH));
        }
        before = now;
    }
    batches.sort_by(f64::total_cmp);
    batches[batches.len() / 2]
}

/// Nanoseconds for one call, over `time`.
fn each(time: Duration, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut count = 0_u64;
    while started.elapsed() < time {
        (0..64).for_each(|_| call());
        count += 64;
    }
    started.elapsed().as_nanos() as f64 / count as f64
}

fn reading<T: Plain + AnyBitPattern + Send + Sync>(scale: Scale, name: &str, write: Writer<T>, first: T) {
    let time = scale.time(Duration::from_millis(20));
    let (board, value) = (Board::new(64), Value::new(first).unwrap());
    let (mutex, std) = (Mutex::new(first).unwrap(), std::sync::Mutex::new(first));
    let writer = child(write, (board.clone(), value.clone(), mutex.clone(), 0));
    let let_write = |what: u64| {
        board.set(WANTED, what);
        while board.get(DOING) != what {
            thread::yield_now();
        }
    };
    let writes = || board.get(WRITES);
    Turns::new(
        format!("Value<{name}> read while another process writes it without a pause"),
        "ns",
        Better::Less,
    )
    .subject("crossproc Value", || {
        let_write(VALUE);
        each_beside(time, writes, || _ = black_box(black_box(&value).get().unwrap()))
    })
    .against("crossproc Mutex, writer is a process", ">= 10 x faster", 0.1, || {
        let_write(MUTEX);
        each_beside(time, writes, || _ = black_box(*black_box(&mutex).lock().unwrap()))
    })
    .against("std::sync::Mutex, writer is a thread", ">= 10 x faster", 0.1, || {
        let_write(NOBODY);
        let (stop, writes) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                pin(1);
                while !stop.load(Ordering::Relaxed) {
                    (0..64).for_each(|_| *std.lock().unwrap() = black_box(first));
                    writes.fetch_add(64, Ordering::Relaxed);
                }
            });
            let writes = || writes.load(Ordering::Relaxed);
            let figure = each_beside(time, writes, || _ = black_box(*black_box(&std).lock().unwrap()));
            stop.store(true, Ordering::Relaxed);
            figure
        })
    })
    .subject("crossproc Value, nobody writes", || {
        let_write(NOBODY);
        each(time, || _ = black_box(black_box(&value).get().unwrap()))
    })
    .run(scale.rounds(40));
    let_write(NOBODY);
    board.set(WANTED, QUIT);
    join(writer);
}

fn writing<T: Plain + AnyBitPattern>(scale: Scale, name: &str, first: T) {
    let time = scale.time(Duration::from_millis(5));
    let (value, mutex, std) =
        (Value::new(first).unwrap(), Mutex::new(first).unwrap(), std::sync::Mutex::new(first));
    Turns::new(format!("Value<{name}> written, nobody else there"), "ns", Better::Less)
        .subject("crossproc Value, set", || each(time, || black_box(&value).set(black_box(first)).unwrap()))
        .subject("crossproc Mutex", || each(time, || *black_box(&mutex).lock().unwrap() = black_box(first)))
        .subject("std::sync::Mutex (threads only)", || {
            each(time, || *black_box(&std).lock().unwrap() = black_box(first))
        })
        .run(scale.rounds(100));
}
