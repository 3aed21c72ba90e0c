//! What a lock costs, free and contended.

use std::cell::RefCell;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_benches::pthread::RobustMutex;
use crossproc_benches::{Better, Scale, Turns};
use crossproc_primitives::{Lock, Mutex, RLock};
use crossproc_process::Process;
use crossproc_tests::{Board, child, join, tied_to_parent};

fn main() {
    let scale = Scale::from_arguments();
    uncontended(scale);
    for processes in [2, 4] {
        for work in [Work { hold: 0, pause: 0 }, Work { hold: 0, pause: 10 }, Work { hold: 10, pause: 10 }] {
            contended(scale, processes, work);
        }
    }
}

/// Nanoseconds for one of `count` calls.
fn each(count: u64, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    for _ in 0..count {
        call();
    }
    started.elapsed().as_nanos() as f64 / count as f64
}

fn uncontended(scale: Scale) {
    let n = scale.count(20_000);
    let (lock, rlock, mutex) = (Lock::new().unwrap(), RLock::new().unwrap(), Mutex::new(0_u64).unwrap());
    let (std, parking_lot, robust) =
        (std::sync::Mutex::new(0_u64), parking_lot::Mutex::new(0_u64), RobustMutex::new());
    Turns::new("Lock, uncontended lock+unlock", "ns", Better::Less)
        .subject("crossproc Lock", || each(n, || drop(black_box(&lock).lock().unwrap())))
        .against("std::sync::Mutex (threads only)", "<= 1.3 x std", 1.3, || {
            each(n, || drop(black_box(&std).lock().unwrap()))
        })
        .against("pthread robust, process-shared", "< pthread robust", 1.0, || {
            each(n, || drop(black_box(&robust).lock()))
        })
        .subject("parking_lot::Mutex (threads only)", || each(n, || drop(black_box(&parking_lot).lock())))
        .subject("crossproc Mutex<u64>, locked and changed", || {
            each(n, || *black_box(&mutex).lock().unwrap() += 1)
        })
        .subject("crossproc RLock", || each(n, || drop(black_box(&rlock).lock().unwrap())))
        .subject("crossproc Lock, try_lock", || each(n, || drop(black_box(&lock).try_lock().unwrap())))
        .run(scale.rounds(500));
}

// ---- Contended: processes that do nothing but lock, change two words, unlock and pause ----

/// What each does, in spin hints.
#[derive(Clone, Copy)]
struct Work {
    /// With the lock, beside the two words.
    hold: u64,
    /// Without it.
    pause: u64,
}

const OURS: u64 = 0;
const ROBUST: u64 = 1;
const QUIT: u64 = 2;

// The board, cache lines apart.
const ROUND: usize = 0;
const SUBJECT: usize = 1;
const HOLD: usize = 2;
const PAUSE: usize = 3;
const STOP: usize = 8;
const READY: usize = 16;
const DATA: usize = 24;
const COUNT: usize = 32;
const STRIDE: usize = 8;

fn contend((board, lock, robust, me): (Board, Lock, RobustMutex, usize)) {
    tied_to_parent();
    for round in 1.. {
        while board.get(ROUND) < round {
            thread::sleep(Duration::from_micros(100));
        }
        let Work { hold, pause } = Work { hold: board.get(HOLD), pause: board.get(PAUSE) };
        let change = || {
            let n = board[DATA].load(Ordering::Relaxed);
            board[DATA].store(n + 1, Ordering::Relaxed);
            idle(hold);
            board[DATA + 1].store(n + 1, Ordering::Relaxed);
        };
        let mut count = 0;
        let stop = || board[STOP].load(Ordering::Relaxed) >= round;
        match board.get(SUBJECT) {
            OURS => {
                while !stop() {
                    let guard = lock.lock().unwrap();
                    change();
                    drop(guard);
                    count += 1;
                    idle(pause);
                }
            }
            ROBUST => {
                while !stop() {
                    let guard = robust.lock();
                    change();
                    drop(guard);
                    count += 1;
                    idle(pause);
                }
            }
            _ => return,
        }
        board.set(COUNT + me * STRIDE, count);
        board.add(READY, 1);
    }
}

fn idle(turns: u64) {
    for _ in 0..turns {
        spin_loop();
    }
}

struct Crowd {
    board: Board,
    workers: Vec<Process<()>>,
    round: u64,
    time: Duration,
}

impl Crowd {
    fn new(processes: usize, work: Work, time: Duration) -> Self {
        let board = Board::new(COUNT + processes * STRIDE);
        board.set(HOLD, work.hold);
        board.set(PAUSE, work.pause);
        let (lock, robust) = (Lock::new().unwrap(), RobustMutex::new());
        let workers = (0..processes)
            .map(|me| child(contend, (board.clone(), lock.clone(), robust.clone(), me)))
            .collect();
        Self { board, workers, round: 0, time }
    }

    /// Lets all work for a while; returns how often each had the lock, per microsecond in all, and the smallest share of the
    /// largest.
    fn turn(&mut self, subject: u64) -> (f64, f64) {
        self.round += 1;
        let board = &self.board;
        let before = board.get(DATA);
        board.set(SUBJECT, subject);
        board.set(ROUND, self.round);
        let started = Instant::now();
        thread::sleep(self.time);
        board.set(STOP, self.round);
        let took = started.elapsed();
        board.await_at_least(READY, self.round * self.workers.len() as u64);
        let counts: Vec<_> = (0..self.workers.len()).map(|me| board.get(COUNT + me * STRIDE)).collect();
        let sum: u64 = counts.iter().sum();
        assert_eq!(board.get(DATA) - before, sum, "nothing was lost");
        rate_and_share(&counts, took)
    }

    fn quit(self) {
        self.board.set(SUBJECT, QUIT);
        self.board.set(ROUND, self.round + 1);
        self.workers.into_iter().for_each(join);
    }
}

fn rate_and_share(counts: &[u64], took: Duration) -> (f64, f64) {
    let sum: u64 = counts.iter().sum();
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    (sum as f64 / took.as_micros().max(1) as f64, *least as f64 / (*most).max(1) as f64)
}

/// The same work by threads, under a lock that only threads can share.
fn threads(
    count: usize,
    Work { hold, pause }: Work,
    time: Duration,
    locked: impl Fn(&dyn Fn()) + Sync,
) -> (f64, f64) {
    let (left, right) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let work = || {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            locked(&|| {
                let n = left.load(Ordering::Relaxed);
                left.store(n + 1, Ordering::Relaxed);
                idle(hold);
                right.store(n + 1, Ordering::Relaxed);
            });
            count += 1;
            idle(pause);
        }
        count
    };
    thread::scope(|scope| {
        let started = Instant::now();
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let took = started.elapsed();
        let counts: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        rate_and_share(&counts, took)
    })
}

fn contended(scale: Scale, processes: usize, work: Work) {
    let time = scale.time(Duration::from_millis(60));
    let crowd = RefCell::new(Crowd::new(processes, work, time));
    // On which CPUs and pages processes find themselves makes a difference: new ones every now and then.
    let renewed = || {
        if crowd.borrow().round >= 4 {
            crowd.replace(Crowd::new(processes, work, time)).quit();
        }
        crowd.borrow_mut()
    };
    let (std, parking_lot) = (std::sync::Mutex::new(()), parking_lot::Mutex::new(()));
    let shares = RefCell::new(vec![Vec::new(); 4]);
    let keep = |subject: usize, (rate, share): (f64, f64)| {
        shares.borrow_mut()[subject].push(share);
        rate
    };
    let title = match work {
        Work { hold: 0, pause: 0 } => "two words changed, no pause".to_owned(),
        Work { hold, pause } => format!("{hold} spin hints with the lock, {pause} without"),
    };
    Turns::new(format!("Lock, {processes} processes contending: {title}"), "M/s", Better::More)
        .subject("crossproc Lock", || keep(0, renewed().turn(OURS)))
        .against("pthread robust, process-shared", ">= 2 x its throughput", 2.0, || {
            keep(1, crowd.borrow_mut().turn(ROBUST))
        })
        .subject("std::sync::Mutex, as many threads", || {
            keep(
                2,
                threads(processes, work, time, |change| {
                    let _guard = std.lock().unwrap();
                    change();
                }),
            )
        })
        .subject("parking_lot::Mutex, as many threads", || {
            keep(
                3,
                threads(processes, work, time, |change| {
                    let _guard = parking_lot.lock();
                    change();
                }),
            )
        })
        .run(scale.rounds(20));
    let shares: Vec<_> = shares
        .into_inner()
        .into_iter()
        .map(|mut shares: Vec<f64>| {
            shares.sort_by(f64::total_cmp);
            format!("{:.2} (worst {:.2})", shares[shares.len() / 2], shares[0])
        })
        .collect();
    println!("  least share / largest share, in this order, medians: {}", shares.join(", "));
    crowd.into_inner().quit();
}
