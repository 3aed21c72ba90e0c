//! The tempest: processes use every object that can be waited for, all at once, while others of them are killed.
//!
//! Four workers share one segment with few participant slots, so that slots are taken over all the time. Each picks an object and
//! an operation at random, always with a deadline, and tells on the board what it is doing. One after the other is killed wherever
//! it is (some are stopped before) and replaced at once.
//!
//! What must hold, whoever died where:
//!
//! * no call lasts past its deadline (by more than [`GRACE`], for a machine that is busy), no worker stops making progress;
//! * two words that only the holder of a lock changes are equal, or the next holder was told of a death;
//! * a binary semaphore has one holder at a time;
//! * at the end nothing is leaked: all permits are free, every lock can be had at once, a writer meets no reader of the past,
//!   exactly one participant is left, as many descriptors are open as before.
//!
//! The exact accounting of each death is `storm.rs`'s and the single-step harness's; this is about all of them together.
//! A planted bug, a semaphore that is a bare count, must leak in the same storm.

use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc_primitives::{
    BarrierError, CondvarError, Guard, LockError, Mutex, Objects, OnceError, RwLock, SemaphoreError,
    WaitError,
};
use crossproc_process::{ExitStatus, Process};
use crossproc_segment::{Segment, SegmentOptions};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::children::{HANG, child, tied_to_parent};
use crate::random::Rng;

/// How long a tempest is to be, and from which seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends when so many were killed,
    pub kills: u64,
    /// and not before this time.
    pub at_least: Duration,
    /// Of all random choices.
    pub seed: u64,
}

/// What came out. Everything in it was counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed that gives the same choices again.
    pub seed: u64,
    /// Processes killed, in the operation they were in.
    pub killed: u64,
    /// Of these: stopped before.
    pub stopped: u64,
    /// Killed while they were in an operation of this object, and operations that came to their end.
    pub objects: Vec<(&'static str, u64, u64)>,
    /// The longest that a call lasted past its deadline, in microseconds.
    pub latest_us: u64,
    /// Calls that lasted past their deadline by more than [`GRACE`].
    pub late: u64,
    /// Half-changed data that nobody was told of; two holders at once.
    pub violations: u64,
    /// Times somebody was told of a death, or of a broken barrier.
    pub told: u64,
    /// What was wrong at the end, or what got stuck.
    pub failures: Vec<String>,
    /// Permits that the planted bug had lost at the end.
    pub planted_lost: u64,
    /// How long it took.
    pub took: Duration,
}

/// A call that lasts longer than this past its deadline is a failure; far more than a slice of any sleep.
pub const GRACE: Duration = Duration::from_secs(3);

const WORKERS: usize = 4;
const SLOTS: u32 = 6;
const PERMITS: u32 = 2;
const ONCES: u64 = 16;
const PLANTED_PERMITS: u64 = 1000;

const NAMES: [&str; 12] = [
    "Lock",
    "RLock",
    "Mutex",
    "RwLock",
    "Semaphore",
    "BoundedSemaphore",
    "BinarySemaphore",
    "Event",
    "Condvar",
    "Barrier",
    "Once",
    "Value",
];

// The board: cache lines apart.
const STOP: usize = 0;
const LATEST: usize = 8;
const LATE: usize = 9;
const VIOLATIONS: usize = 10;
const TOLD: usize = 11;
/// The life that has the binary semaphore.
const INSIDE: usize = 16;
/// The planted bug: permits that are free.
const PLANTED: usize = 24;
/// How often the initialiser of each `Once` came to its end.
const COMPLETED: usize = 32;
/// How many operations of each object came to their end.
const DONE: usize = COMPLETED + ONCES as usize;
const WORKER: usize = DONE + 16;
const STRIDE: usize = 8;
/// In a worker's line: what it does (1 + object), how often it did something, its life, and whether it is to be killed.
const DOING: usize = 0;
const TURNS: usize = 1;
const LIFE: usize = 2;
const DOOMED: usize = 3;
const WORDS: usize = WORKER + WORKERS * STRIDE;

#[derive(Serialize, Deserialize)]
struct Job {
    board: Board,
    segment: Segment,
    index: usize,
    life: u64,
    seed: u64,
}

/// Two words that are equal whenever nobody is between the two changes.
type Pair = [u64; 2];

fn worker(job: Job) {
    tied_to_parent();
    let mut rng = Rng::new(job.seed);
    if let Err(error) = job.work(&mut rng) {
        panic!("{error}");
    }
}

impl Job {
    fn work(&self, rng: &mut Rng) -> Result<(), Box<dyn std::error::Error>> {
        let Self { board, segment, .. } = self;
        let (lock, rlock) = (segment.lock("lock")?, segment.rlock("rlock")?);
        let mutex: Mutex<Pair> = segment.mutex("mutex", [0, 0])?;
        let rwlock: RwLock<Pair> = segment.rwlock("rwlock", [0, 0])?;
        let semaphore = segment.semaphore("semaphore", PERMITS)?;
        let bounded = segment.bounded_semaphore("bounded", PERMITS)?;
        let binary = segment.binary_semaphore("binary")?;
        let event = segment.event("event")?;
        let (gate, condvar) = (segment.mutex("gate", 0_u64)?, segment.condvar("condvar")?);
        let barrier = segment.barrier("barrier", 2)?;
        let value = segment.value("value", [0_u64; 4])?;
        let word = segment.value("word", 0_u64)?;
        let line = WORKER + self.index * STRIDE;
        while board.get(STOP) == 0 {
            let object = rng.below(NAMES.len() as u64) as usize;
            let longest = if rng.once_in(4) { 20_000 } else { 300 };
            let limit = Duration::from_micros(rng.below(longest));
            let started = Instant::now();
            board.set(line + DOING, 1 + object as u64);
            match NAMES[object] {
                "Lock" => self.told(lock.lock_timeout(limit), rng)?,
                "RLock" => {
                    let outer = rlock.lock_timeout(limit).or_else(|e| e.repair(|_| ()));
                    if outer.is_ok() && rng.once_in(2) {
                        drop(rlock.lock());
                    }
                    self.told(outer, rng)?;
                }
                "Mutex" => match mutex.lock_timeout(limit) {
                    Ok(mut pair) => self.change(&mut pair, rng),
                    Err(LockError::OwnerDied(mut pair)) => {
                        self.repair(&mut pair);
                        pair.mark_consistent();
                    }
                    Err(LockError::TimedOut) => {}
                    Err(other) => return Err(other.into()),
                },
                "RwLock" if rng.once_in(3) => match rwlock.write_timeout(limit) {
                    Ok(mut pair) => self.change(&mut pair, rng),
                    Err(LockError::OwnerDied(mut pair)) => {
                        self.repair(&mut pair);
                        pair.mark_consistent();
                    }
                    Err(LockError::TimedOut) => {}
                    Err(other) => return Err(other.into()),
                },
                "RwLock" => match rwlock.read_timeout(limit) {
                    Ok(pair) => {
                        let first = pair[0];
                        pass_time(rng.below(200));
                        // Nobody may have written meanwhile.
                        self.expect(pair[0] == pair[1] && pair[0] == first);
                    }
                    Err(LockError::OwnerDied(_)) => drop(board.add(TOLD, 1)),
                    Err(LockError::TimedOut) => {}
                    Err(other) => return Err(other.into()),
                },
                "Semaphore" => match semaphore.acquire_timeout(limit) {
                    Ok(_permit) => pass_time(rng.below(300)),
                    Err(SemaphoreError::TimedOut) => {}
                    Err(other) => return Err(other.into()),
                },
                "BoundedSemaphore" => match bounded.acquire_timeout(limit) {
                    Ok(permit) if rng.once_in(2) => {
                        permit.keep();
                        pass_time(rng.below(300));
                        bounded.release()?;
                    }
                    Ok(_permit) => pass_time(rng.below(300)),
                    Err(SemaphoreError::TimedOut) => {}
                    Err(other) => return Err(other.into()),
                },
                "BinarySemaphore" => match binary.acquire_timeout(limit) {
                    Ok(()) => {
                        let before = board.swap(INSIDE, self.life);
                        self.expect(before == 0 || self.is_doomed(before));
                        pass_time(rng.below(300));
                        board.set(INSIDE, 0);
                        binary.release()?;
                    }
                    Err(SemaphoreError::TimedOut) => {}
                    Err(other) => return Err(other.into()),
                },
                "Event" => match rng.below(4) {
                    0 => event.set()?,
                    1 => drop(event.clear()?),
                    _ => match event.wait_timeout(limit) {
                        Ok(()) | Err(WaitError::TimedOut) => {}
                        Err(other) => return Err(other.into()),
                    },
                },
                "Condvar" => {
                    let guard = match gate.lock_timeout(limit) {
                        Ok(guard) => guard,
                        Err(LockError::OwnerDied(mut guard)) => {
                            guard.mark_consistent();
                            guard
                        }
                        Err(LockError::TimedOut) => continue,
                        Err(other) => return Err(other.into()),
                    };
                    match rng.below(3) {
                        0 => condvar.notify_one(&guard)?,
                        1 => condvar.notify_all(&guard)?,
                        _ => match condvar.wait_timeout(guard, limit) {
                            Ok(_) | Err(CondvarError::TimedOut(_)) => {}
                            Err(CondvarError::OwnerDied(mut guard)) => guard.mark_consistent(),
                            Err(other) => return Err(other.into()),
                        },
                    }
                }
                "Barrier" => match barrier.wait_timeout(limit) {
                    Ok(_) => {}
                    Err(BarrierError::Broken(_)) => {
                        board.add(TOLD, 1);
                        barrier.reset()?;
                    }
                    Err(other) => return Err(other.into()),
                },
                "Once" => {
                    let number = rng.below(ONCES);
                    let once = segment.once(&format!("once {number}"))?;
                    let mut initialise = || {
                        pass_time(rng.below(300));
                        board.add(COMPLETED + number as usize, 1);
                    };
                    match once.call_timeout(limit, |_| initialise()) {
                        Ok(()) => self.expect(board.get(COMPLETED + number as usize) > 0),
                        Err(OnceError::TimedOut) => {}
                        Err(other) => return Err(other.into()),
                    }
                }
                _ => {
                    // The planted bug beside it: between these two a death loses a permit.
                    board.add(PLANTED, u64::MAX);
                    match value.lock_timeout(limit).or_else(|e| e.repair(|_| ())) {
                        Ok(mut guard) => drop(guard.update(|v| v.map(|x| x + 1))?),
                        Err(LockError::TimedOut) => {}
                        Err(other) => return Err(other.into()),
                    }
                    let got = value.get()?;
                    self.expect(got == [got[0]; 4]);
                    word.fetch_add(1);
                    let _ =
                        word.wait_while_timeout(limit.min(Duration::from_micros(200)), |&w| w % 3 == 0)?;
                    board.add(PLANTED, 1);
                }
            }
            let late = started.elapsed().saturating_sub(2 * limit);
            let late_us = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
            if late_us > board.get(LATEST) {
                board.set(LATEST, late_us);
            }
            if late > GRACE {
                board.add(LATE, 1);
            }
            board.set(line + DOING, 0);
            board.add(DONE + object, 1);
            board.add(line + TURNS, 1);
        }
        Ok(())
    }

    /// A lock that guards nothing: held for a while, and repaired if somebody died.
    fn told<G: Guard>(&self, locked: Result<G, LockError<G>>, rng: &mut Rng) -> Result<(), String> {
        match locked {
            Ok(_guard) => pass_time(rng.below(300)),
            Err(LockError::OwnerDied(mut guard)) => {
                self.board.add(TOLD, 1);
                guard.mark_consistent();
            }
            Err(LockError::TimedOut) => {}
            Err(other) => return Err(other.to_string()),
        }
        Ok(())
    }

    fn change(&self, pair: &mut Pair, rng: &mut Rng) {
        self.expect(pair[0] == pair[1]);
        pair[0] += 1;
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        pass_time(rng.below(300));
        pair[1] += 1;
    }

    fn repair(&self, pair: &mut Pair) {
        self.board.add(TOLD, 1);
        self.expect(pair[0] == pair[1] || pair[0] == pair[1] + 1);
        pair[1] = pair[0];
    }

    fn expect(&self, right: bool) {
        if !right {
            self.board.add(VIOLATIONS, 1);
        }
    }

    /// True if the process with this life has been killed, or will be before it does anything more.
    fn is_doomed(&self, life: u64) -> bool {
        let line = |index| WORKER + index * STRIDE;
        let of_living = |&index: &usize| self.board.get(line(index) + LIFE) == life;
        (0..WORKERS).find(of_living).is_none_or(|index| self.board.get(line(index) + DOOMED) != 0)
    }
}

/// Something between nothing and a time slice.
fn pass_time(turns: u64) {
    if turns % 64 == 63 {
        std::thread::yield_now();
    }
    (0..turns).for_each(|_| std::hint::spin_loop());
}

/// Runs a whole tempest.
///
/// # Panics
///
/// If processes can not be started or killed.
#[must_use]
pub fn run(config: &Config) -> Report {
    // The first attachment of a process opens one descriptor for good.
    drop(Board::new(1));
    let descriptors = open_descriptors();
    let mut report = Tempest::new(config.seed).run(config);
    report.failures.extend(match open_descriptors() {
        after if after > descriptors => Some(format!("{descriptors} descriptors before, {after} after")),
        _ => None,
    });
    report
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

struct Tempest {
    board: Board,
    segment: Segment,
    rng: Rng,
    workers: Vec<Process<()>>,
    next_life: u64,
    report: Report,
}

impl Tempest {
    fn new(seed: u64) -> Self {
        let segment = SegmentOptions::new().participants(SLOTS).anonymous(64 * 1024).expect("memory");
        let mut tempest = Self {
            board: Board::new(WORDS),
            segment,
            rng: Rng::new(seed),
            workers: Vec::new(),
            next_life: 1,
            report: Report {
                seed,
                objects: NAMES.iter().map(|&name| (name, 0, 0)).collect(),
                ..Report::default()
            },
        };
        tempest.board.set(PLANTED, PLANTED_PERMITS);
        for index in 0..WORKERS {
            let worker = tempest.start(index);
            tempest.workers.push(worker);
        }
        tempest
    }

    fn start(&mut self, index: usize) -> Process<()> {
        let (line, life) = (WORKER + index * STRIDE, self.next_life);
        self.next_life += 1;
        // In this order: nobody takes the new one for doomed, or the old one for living.
        self.board.set(line + LIFE, life);
        self.board.set(line + DOOMED, 0);
        self.board.set(line + DOING, 0);
        let (board, segment) = (self.board.clone(), self.segment.clone());
        child(worker, Job { board, segment, index, life, seed: self.rng.bits() })
    }

    fn run(mut self, config: &Config) -> Report {
        let started = Instant::now();
        while self.report.killed < config.kills || started.elapsed() < config.at_least {
            if let Err(failure) = self.kill_one() {
                self.report.failures.push(failure);
                break;
            }
        }
        if self.report.failures.is_empty() {
            let failure = self.stop().and_then(|()| self.look_around()).err();
            self.report.failures.extend(failure);
        }
        self.workers.clear();
        let board = &self.board;
        for (at, object) in self.report.objects.iter_mut().enumerate() {
            object.2 = board.get(DONE + at);
        }
        self.report.latest_us = board.get(LATEST);
        self.report.late = board.get(LATE);
        self.report.violations = board.get(VIOLATIONS);
        self.report.told = board.get(TOLD);
        self.report.planted_lost = PLANTED_PERMITS.wrapping_sub(board.get(PLANTED));
        self.report.took = started.elapsed();
        self.report
    }

    fn kill_one(&mut self) -> Result<(), String> {
        let victim = self.rng.below(WORKERS as u64) as usize;
        let line = WORKER + victim * STRIDE;
        let turns = self.board.get(line + TURNS);
        sleep(Duration::from_micros(self.rng.below(500)));
        // Now and then it is made sure that all get on.
        if self.rng.once_in(16) {
            let before: Vec<u64> =
                (0..WORKERS).map(|w| self.board.get(WORKER + w * STRIDE + TURNS)).collect();
            let since = Instant::now();
            for (worker, before) in before.into_iter().enumerate() {
                while self.board.get(WORKER + worker * STRIDE + TURNS) == before {
                    if since.elapsed() > HANG {
                        return Err(self.what_is_stuck(worker));
                    }
                    if let Err(error) = self.workers[worker].try_join() {
                        return Err(format!("worker {worker}: {error}"));
                    }
                    sleep(Duration::from_micros(50));
                }
            }
        } else if turns == 0 && self.rng.once_in(2) {
            return Ok(()); // it has hardly begun
        }
        if self.rng.once_in(8) {
            self.workers[victim].signal(19).map_err(|e| e.to_string())?; // SIGSTOP
            self.report.stopped += 1;
            sleep(Duration::from_micros(self.rng.below(2000)));
        }
        self.board.set(line + DOOMED, 1);
        self.workers[victim].kill().map_err(|e| e.to_string())?;
        match self.workers[victim].wait_timeout(HANG) {
            Some(ExitStatus::Signal(9)) => {}
            Some(other) => {
                let words = self.workers[victim].try_join().err().map(|e| e.to_string());
                return Err(format!("a worker ended by itself: {other}, {}", words.unwrap_or_default()));
            }
            None => return Err("a killed process did not end".to_owned()),
        }
        self.report.killed += 1;
        if let Some(object) = self.board.get(line + DOING).checked_sub(1) {
            self.report.objects[object as usize % NAMES.len()].1 += 1;
        }
        self.board.set(line + TURNS, 0);
        self.workers[victim] = self.start(victim);
        Ok(())
    }

    fn what_is_stuck(&self, worker: usize) -> String {
        let doing = |w: usize| match self.board.get(WORKER + w * STRIDE + DOING).checked_sub(1) {
            Some(object) => NAMES[object as usize % NAMES.len()],
            None => "nothing",
        };
        let all: Vec<_> = (0..WORKERS).map(doing).collect();
        format!("worker {worker} is stuck in {}; all: {all:?}", doing(worker))
    }

    /// Lets all come to an end.
    fn stop(&mut self) -> Result<(), String> {
        self.board.set(STOP, 1);
        for index in 0..WORKERS {
            match self.workers[index].wait_timeout(HANG) {
                Some(ExitStatus::Code(0)) => {}
                Some(other) => {
                    let words = self.workers[index].try_join().err().map(|e| e.to_string());
                    return Err(format!("a worker ended with {other}: {}", words.unwrap_or_default()));
                }
                None => return Err(self.what_is_stuck(index)),
            }
        }
        Ok(())
    }

    /// What they leave.
    fn look_around(&self) -> Result<(), String> {
        let wrong = |what: &str, found: &dyn fmt::Debug| Err(format!("{what} at the end: {found:?}"));
        let text = |e: &dyn fmt::Display| e.to_string();
        let segment = &self.segment;
        let attached = segment.attached().map_err(|e| text(&e))?;
        if attached.len() != 1 {
            return wrong("participants", &attached);
        }
        let semaphore = segment.semaphore("semaphore", PERMITS).map_err(|e| text(&e))?;
        let bounded = segment.bounded_semaphore("bounded", PERMITS).map_err(|e| text(&e))?;
        if (semaphore.available(), bounded.available()) != (PERMITS, PERMITS) {
            return wrong("permits", &(semaphore, bounded));
        }
        let lock = segment.lock("lock").map_err(|e| text(&e))?;
        drop(lock.try_lock().or_else(|e| e.repair(|_| ())).map_err(|e| format!("Lock at the end: {e}"))?);
        let rlock = segment.rlock("rlock").map_err(|e| text(&e))?;
        drop(rlock.try_lock().or_else(|e| e.repair(|_| ())).map_err(|e| format!("RLock at the end: {e}"))?);
        let mutex = segment.mutex("mutex", [0_u64, 0]).map_err(|e| text(&e))?;
        drop(mutex.try_lock().or_else(|e| e.repair(|_| ())).map_err(|e| format!("Mutex at the end: {e}"))?);
        let rwlock = segment.rwlock("rwlock", [0_u64, 0]).map_err(|e| text(&e))?;
        drop(
            rwlock
                .try_write()
                .or_else(|e| e.repair(|_| ()))
                .map_err(|e| format!("RwLock at the end: {e}"))?,
        );
        let binary = segment.binary_semaphore("binary").map_err(|e| text(&e))?;
        binary.try_acquire().map_err(|e| format!("BinarySemaphore at the end: {e}"))?;
        for number in 0..ONCES as usize {
            // One that died after it had counted itself, before it was through, is followed by another one.
            let once = segment.once(&format!("once {number}")).map_err(|e| text(&e))?;
            if once.is_completed() && self.board.get(COMPLETED + number) == 0 {
                return wrong("Once", &number);
            }
        }
        let event = segment.event("event").map_err(|e| text(&e))?;
        let condvar = segment.condvar("condvar").map_err(|e| text(&e))?;
        let barrier = segment.barrier("barrier", 2).map_err(|e| text(&e))?;
        barrier.reset().map_err(|e| format!("Barrier at the end: {e}"))?;
        let audits = [
            semaphore.audit(),
            bounded.audit(),
            binary.audit(),
            rwlock.audit(),
            event.audit(),
            condvar.audit(),
            barrier.audit(),
        ];
        audits.into_iter().collect::<Result<(), _>>().map_err(|e| text(&e))
    }
}

impl Report {
    /// True if every promise was kept and the planted bug was found.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.failures.is_empty() && self.late == 0 && self.violations == 0 && self.planted_lost > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, killed, stopped, told, late, latest_us, violations, planted_lost, took, .. } = self;
        writeln!(f, "tempest over all objects: seed {seed}, {:.1} s", took.as_secs_f64())?;
        writeln!(f, "  killed           {killed} processes ({stopped} of them stopped first)")?;
        writeln!(f, "  object               killed in it    operations")?;
        for (name, killed_in, done) in &self.objects {
            writeln!(f, "    {name:<20}{killed_in:>10} {done:>13}")?;
        }
        writeln!(f, "  told             {told} times of a death or a broken barrier")?;
        writeln!(
            f,
            "  deadlines        {late} missed; the latest return {:.1} ms after one",
            *latest_us as f64 / 1e3
        )?;
        writeln!(f, "  violations       {violations}")?;
        for failure in &self.failures {
            writeln!(f, "  FAILED           {failure}")?;
        }
        let planted = if *planted_lost > 0 { "caught" } else { "NOT CAUGHT" };
        writeln!(f, "planted bug, a semaphore that is a bare count: {planted}, {planted_lost} permits lost")?;
        write!(f, "{}", if self.is_right() { "all right" } else { "NOT RIGHT" })
    }
}
