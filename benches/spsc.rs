//! What the queue with one producer and one consumer costs between two processes: there and back, and as a stream.
//!
//! Peers: a bare ping-pong (two words in two lines, no queue at all), the textbook ring (two indices, each side caching the other's), and
//! iceoryx2, all between the same two processes; and rtrb between threads, which is all it can do.

mod iceoryx;

use std::fmt::Debug;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_benches::{Better, Scale, Turns, pin};
use crossproc_primitives::spsc::{self, Consumer, Producer};
use crossproc_segment::plain::Plain;
use crossproc_tests::{Board, child, join, tied_to_parent};
use iceoryx2::prelude::ZeroCopySend;

/// What is sent: one word, or a line of them.
trait Payload: Plain + Send + Copy + Debug + ZeroCopySend {
    const NAME: &'static str;
    fn of(n: u64) -> Self;
    fn number(&self) -> u64;
}

impl Payload for u64 {
    const NAME: &'static str = "u64";
    fn of(n: u64) -> Self {
        n
    }
    fn number(&self) -> u64 {
        *self
    }
}

impl Payload for [u64; 8] {
    const NAME: &'static str = "[u64; 8]";
    fn of(n: u64) -> Self {
        [n; 8]
    }
    fn number(&self) -> u64 {
        self[7]
    }
}

/// Capacities of the streams.
const CAPACITIES: [usize; 4] = [64, 256, 4096, 65_536];
const BATCH: usize = 32;

// What the child is to do: a round trip or a stream, over which of them.
const QUIT: u64 = 0;
const BARE: u64 = 1;
const TRIPS: u64 = 2;
const TRIPS_TEXTBOOK: u64 = 3;
const TRIPS_TRY: u64 = 4;
const TRIPS_ICEORYX: u64 = 5;
const STREAM: u64 = 10; // + index of the capacity
const TEXTBOOK: u64 = 20;
const BATCHES: u64 = 30;

// The board: orders, and the bare ping-pong, in lines of their own.
const ORDER: usize = 0;
const COUNT: usize = 1;
const ROUND: usize = 2;
const STARTED: usize = 16;
const DONE: usize = 32;
const PING: usize = 48;
const PONG: usize = 64;

/// The textbook ring, over words of a board: one place per word, each side caching the other's index.
struct Textbook<'a, const N: usize> {
    tail: &'a AtomicU64,
    head: &'a AtomicU64,
    places: &'a [AtomicU64; N],
    mine: u64,
    theirs: u64,
}

/// Words that a textbook ring needs: two indices, and its places.
const fn textbook_words(places: usize) -> usize {
    32 + places
}

impl<'a, const N: usize> Textbook<'a, N> {
    fn new(board: &'a Board) -> Self {
        let (tail, head) = (&board[0], &board[16]);
        let places = board.words()[32..][..N].try_into().unwrap();
        Self { tail, head, places, mine: 0, theirs: 0 }
    }

    #[inline]
    fn push(&mut self, value: u64) -> bool {
        if self.mine - self.theirs == N as u64 {
            self.theirs = self.head.load(Ordering::Acquire);
            if self.mine - self.theirs == N as u64 {
                return false;
            }
        }
        self.places[self.mine as usize & (N - 1)].store(value, Ordering::Relaxed);
        self.mine += 1;
        self.tail.store(self.mine, Ordering::Release);
        true
    }

    #[inline]
    fn pop(&mut self) -> Option<u64> {
        if self.mine == self.theirs {
            self.theirs = self.tail.load(Ordering::Acquire);
            if self.mine == self.theirs {
                return None;
            }
        }
        let value = self.places[self.mine as usize & (N - 1)].load(Ordering::Relaxed);
        self.mine += 1;
        self.head.store(self.mine, Ordering::Release);
        Some(value)
    }
}

/// Runs `$f` for the capacity with this index, as a constant.
macro_rules! at_capacity {
    ($index:expr, $f:ident $arguments:tt) => {
        match $index {
            0 => $f::<64> $arguments,
            1 => $f::<256> $arguments,
            2 => $f::<4096> $arguments,
            _ => $f::<65_536> $arguments,
        }
    };
}

fn textbook_in<const N: usize>(board: &Board, count: u64) {
    let mut ring = Textbook::<N>::new(board);
    for n in 0..count {
        while !ring.push(black_box(n)) {}
    }
}

fn textbook_out<const N: usize>(board: &Board, count: u64) {
    let mut ring = Textbook::<N>::new(board);
    for n in 0..count {
        loop {
            if let Some(value) = ring.pop() {
                assert_eq!(value, n);
                break;
            }
        }
    }
}

fn textbook_trips(there: &Board, back: &Board, count: u64, first: bool) {
    let (mut out, mut into) = match first {
        true => (Textbook::<64>::new(there), Textbook::<64>::new(back)),
        false => (Textbook::<64>::new(back), Textbook::<64>::new(there)),
    };
    for n in 0..count {
        if first {
            out.push(n);
        }
        while into.pop() != Some(n) {}
        if !first {
            out.push(n);
        }
    }
}

fn push_all<T: Payload>(producer: &mut Producer<T>, count: u64) {
    for n in 0..count {
        producer.push(T::of(black_box(n))).unwrap();
    }
}

fn pop_all<T: Payload>(consumer: &mut Consumer<T>, count: u64) {
    for n in 0..count {
        assert_eq!(consumer.pop().unwrap().number(), n);
    }
}

fn push_batches<T: Payload>(producer: &mut Producer<T>, count: u64) {
    let values = [T::of(1); BATCH];
    let mut left = count as usize;
    while left > 0 {
        left -= producer.push_many(&values[..left.min(BATCH)]).unwrap();
    }
}

fn pop_batches<T: Payload>(consumer: &mut Consumer<T>, count: u64) {
    let mut values = [T::of(0); BATCH];
    let mut left = count as usize;
    while left > 0 {
        left -= consumer.pop_many(&mut values[..left.min(BATCH)]).unwrap();
    }
}

type Handles<T> = (Board, Vec<Board>, iceoryx::Files, Producer<T>, Consumer<T>, Vec<Consumer<T>>);

/// The other process: pops what streams, and sends back what goes there and back.
fn answer<T: Payload>((board, textbooks, files, mut back, mut there, mut streams): Handles<T>) {
    tied_to_parent();
    pin(1);
    let iceoryx = iceoryx::End::<T>::new(&files, false);
    iceoryx.connected();
    for round in 1.. {
        let mut looks = 0_u32;
        while board.get(ROUND) < round {
            looks += 1;
            if looks > 10_000 {
                thread::sleep(Duration::from_micros(50));
            }
        }
        let (order, count) = (board.get(ORDER), board.get(COUNT));
        board.set(STARTED, round);
        match order {
            QUIT => return,
            BARE => {
                for n in 1..=count {
                    while board[PING].load(Ordering::Acquire) != n {}
                    board[PONG].store(n, Ordering::Release);
                }
            }
            TRIPS => {
                for _ in 0..count {
                    let value = there.pop().unwrap();
                    back.push(value).unwrap();
                }
            }
            TRIPS_TRY => {
                for _ in 0..count {
                    let value = loop {
                        if let Ok(value) = there.try_pop() {
                            break value;
                        }
                    };
                    back.try_push(value).unwrap();
                }
            }
            TRIPS_ICEORYX => {
                for _ in 0..count {
                    let value = iceoryx.receive(|value| *value);
                    iceoryx.send(value);
                }
            }
            TRIPS_TEXTBOOK => textbook_trips(&textbooks[0], &textbooks[1], count, false),
            BATCHES.. => pop_batches(&mut streams[(order - BATCHES) as usize], count),
            TEXTBOOK.. => at_capacity!(order - TEXTBOOK, textbook_out(&textbooks[2], count)),
            _ => pop_all(&mut streams[(order - STREAM) as usize], count),
        }
        board.set(DONE, round);
    }
}

/// This side of it.
struct Pair<'a> {
    board: &'a Board,
    round: std::cell::Cell<u64>,
}

impl Pair<'_> {
    /// Seconds that `work` takes, beside the other process which does what was ordered.
    fn together(&self, order: u64, count: u64, work: impl FnOnce()) -> f64 {
        let round = self.round.get() + 1;
        self.round.set(round);
        self.board.set(ORDER, order);
        self.board.set(COUNT, count);
        self.board.set(PING, 0);
        self.board.set(PONG, 0);
        self.board.set(ROUND, round);
        while self.board.get(STARTED) < round {
            spin_loop();
        }
        let started = Instant::now();
        work();
        while self.board.get(DONE) < round {
            spin_loop();
        }
        started.elapsed().as_secs_f64()
    }
}

fn measure<T: Payload>(scale: Scale) {
    let only = std::env::var("SPSC_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || name.contains(&only);
    let board = Board::new(128);
    let largest = textbook_words(CAPACITIES[CAPACITIES.len() - 1]);
    let textbooks = vec![Board::new(textbook_words(64)), Board::new(textbook_words(64)), Board::new(largest)];
    let clear = |board: &Board| [0, 16].iter().for_each(|&at| board.set(at, 0));
    let (mut there, answers) = spsc::channel::<T>(64).unwrap();
    let (back, mut into) = spsc::channel::<T>(64).unwrap();
    let (mut streams, ends): (Vec<_>, Vec<_>) =
        CAPACITIES.iter().map(|&capacity| spsc::channel::<T>(capacity).unwrap()).unzip();
    let files = iceoryx::Files::new();
    let parts = (board.clone(), textbooks.clone(), files.lent(), back, answers, ends);
    let other = child(answer::<T>, parts);
    let iceoryx = iceoryx::End::<T>::new(&files, true);
    iceoryx.connected();
    let pair = Pair { board: &board, round: 0.into() };

    let trips = scale.count(2000);
    let name = format!("{}: there and back between two processes", T::NAME);
    let per_trip = |seconds: f64| seconds * 1e9 / trips as f64;
    if wanted("trips") {
        let into = std::cell::RefCell::new(&mut into);
        let there = std::cell::RefCell::new(&mut there);
        let mut turns = Turns::new(name, "ns", Better::Less)
            .subject("crossproc spsc, push and pop", || {
                let (mut there, mut into) = (there.borrow_mut(), into.borrow_mut());
                per_trip(pair.together(TRIPS, trips, || {
                    for n in 0..trips {
                        there.push(T::of(n)).unwrap();
                        assert_eq!(into.pop().unwrap().number(), n);
                    }
                }))
            })
            .against("bare ping-pong, two words in two lines", "<= 1.1 x bare", 1.1, || {
                per_trip(pair.together(BARE, trips, || {
                    for n in 1..=trips {
                        board[PING].store(n, Ordering::Release);
                        while board[PONG].load(Ordering::Acquire) != n {}
                    }
                }))
            })
            .subject("crossproc spsc, try_push and try_pop", || {
                let (mut there, mut into) = (there.borrow_mut(), into.borrow_mut());
                per_trip(pair.together(TRIPS_TRY, trips, || {
                    for n in 0..trips {
                        there.try_push(T::of(n)).unwrap();
                        while into.try_pop().is_err() {}
                    }
                }))
            });
        turns = turns.against("iceoryx2 (zero-copy)", "<= 1/3 of iceoryx2", 1.0 / 3.0, || {
            per_trip(pair.together(TRIPS_ICEORYX, trips, || {
                for n in 0..trips {
                    iceoryx.send(T::of(n));
                    assert_eq!(iceoryx.receive(T::number), n);
                }
            }))
        });
        if size_of::<T>() == 8 {
            turns = turns.subject("textbook ring", || {
                textbooks[..2].iter().for_each(clear);
                per_trip(pair.together(TRIPS_TEXTBOOK, trips, || {
                    textbook_trips(&textbooks[0], &textbooks[1], trips, true);
                }))
            });
        }
        turns.subject("rtrb (threads only)", || per_trip(rtrb_trips::<T>(trips))).run(scale.rounds(60));
    }

    for (index, capacity) in CAPACITIES.into_iter().enumerate() {
        if !wanted("stream") {
            continue;
        }
        let count = scale.count(400_000);
        let millions = |seconds: f64| count as f64 / seconds / 1e6;
        let stream = std::cell::RefCell::new(&mut streams[index]);
        let mut turns =
            Turns::new(format!("{}: a stream, capacity {capacity}", T::NAME), "M/s", Better::More).subject(
                "crossproc spsc, one by one",
                || {
                    let mut stream = stream.borrow_mut();
                    millions(pair.together(STREAM + index as u64, count, || push_all(&mut stream, count)))
                },
            );
        if size_of::<T>() == 8 {
            turns = turns.against("textbook ring", ">= 1.2 x", 1.2, || {
                clear(&textbooks[2]);
                millions(pair.together(TEXTBOOK + index as u64, count, || {
                    at_capacity!(index, textbook_in(&textbooks[2], count));
                }))
            });
        }
        turns
            .against("rtrb (threads only)", ">= 1.5 x", 1.5, || millions(rtrb_stream::<T>(capacity, count)))
            .subject("crossproc spsc, batches of 32", || {
                let mut stream = stream.borrow_mut();
                millions(pair.together(BATCHES + index as u64, count, || push_batches(&mut stream, count)))
            })
            .run(scale.rounds(25));
    }
    board.set(ORDER, QUIT);
    board.set(ROUND, pair.round.get() + 1);
    join(other);
}

fn rtrb_stream<T: Payload>(capacity: usize, count: u64) -> f64 {
    let (mut producer, mut consumer) = rtrb::RingBuffer::<T>::new(capacity);
    let started = AtomicU64::new(0);
    thread::scope(|scope| {
        let popping = scope.spawn(|| {
            pin(1);
            started.store(1, Ordering::Release);
            for n in 0..count {
                loop {
                    if let Ok(value) = consumer.pop() {
                        assert_eq!(value.number(), n);
                        break;
                    }
                }
            }
        });
        while started.load(Ordering::Acquire) == 0 {}
        let begun = Instant::now();
        for n in 0..count {
            while producer.push(T::of(black_box(n))).is_err() {}
        }
        popping.join().unwrap();
        begun.elapsed().as_secs_f64()
    })
}

fn rtrb_trips<T: Payload>(count: u64) -> f64 {
    let (mut there, mut answers) = rtrb::RingBuffer::<T>::new(64);
    let (mut back, mut into) = rtrb::RingBuffer::<T>::new(64);
    let started = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            started.store(1, Ordering::Release);
            for _ in 0..count {
                let value = loop {
                    if let Ok(value) = answers.pop() {
                        break value;
                    }
                };
                let _ = back.push(value);
            }
        });
        while started.load(Ordering::Acquire) == 0 {}
        let begun = Instant::now();
        for n in 0..count {
            let _ = there.push(T::of(n));
            while into.pop().is_err() {}
        }
        begun.elapsed().as_secs_f64()
    })
}

fn main() {
    let scale = Scale::from_arguments();
    pin(0);
    measure::<u64>(scale);
    measure::<[u64; 8]>(scale);
}
