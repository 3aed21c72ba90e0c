//! The storm: processes lock, change two words and unlock, while others of them are killed at random moments.
//!
//! Each worker keeps a *phase* word in shared memory, so that whoever finds it dead knows what it was doing:
//!
//! ```text
//!  OUTSIDE    it holds nothing                             its death must be reported to nobody
//!  LOCKING    in an attempt to lock, or right beside it    its death may be reported, once at most
//!  HOLDING    it holds the lock                            its death must be reported to exactly one next owner
//!  UNLOCKING  in the release, or right beside it           as LOCKING
//! ```
//!
//! What the lock guards: two words that are equal, and one count per worker slot, which goes up between the two. So a next owner
//! that is told of a death can see how far the dead one came, and the sum of the counts is one of the two words at any moment.
//! A lock that lets two in, loses a word, or hands over a half-changed pair without a report is found at the next turn.
//!
//! Every other time a worker holds the lock within another one, and it does not always release them in order.
//!
//! One or two workers are killed at a time, and the next ones only when the reports of these are accounted for: "exactly one"
//! is counted, not estimated. Some are stopped first (SIGSTOP), and are then killed while the others sleep.
//!
//! The same storm over a *flag lock* (a word that is swapped from 0 to 1 and has nobody's name on it) must get stuck or be caught,
//! in every run: a storm that finds no planted bug proves nothing.

use std::fmt;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use crossproc_atomic::{Linux, Platform};
use crossproc_primitives::{Guard, Lock, LockError};
use crossproc_process::{ExitStatus, Process};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::children::{HANG, await_asleep, child, kill_and_reap, state_of, tied_to_parent};
use crate::random::Rng;

/// How long a storm is to be, and from which seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends when this many have died while holding,
    pub holding: u64,
    /// and not before this time.
    pub at_least: Duration,
    /// Rounds in which an idle waiter is timed.
    pub idle_rounds: u64,
    /// Of all random choices.
    pub seed: u64,
}

/// What came out of a storm. Everything in it was counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed that gives the same choices again.
    pub seed: u64,
    /// Over the robust lock.
    pub robust: Outcome,
    /// Nanoseconds from `kill` until the idle waiter had the lock, sorted.
    pub idle: Vec<u64>,
    /// The same for holders that held another lock around it.
    pub idle_inner: Vec<u64>,
    /// What went wrong while that was measured.
    pub idle_failure: Option<String>,
    /// Over the planted bug.
    pub flag: Outcome,
}

/// What one storm did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Processes that were killed, by the phase in which they died.
    pub died: Died,
    /// Of all: killed while they were stopped.
    pub stopped: u64,
    /// Of all: killed two at a time.
    pub in_pairs: u64,
    /// Times a next owner was told `OwnerDied`.
    pub reports: u64,
    /// Times the lock was acquired.
    pub acquired: u64,
    /// Times both words were changed; what they hold at the end.
    pub changes: u64,
    /// Changes that a dead holder left half done and a next owner put right.
    pub repairs: u64,
    /// Two inside at once, or somebody was inside who was not there.
    pub exclusion_violations: u64,
    /// The words differed without a report, or did not fit the counts.
    pub lost_words: u64,
    /// Why it ended early.
    pub failure: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// How many died in which phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Died {
    /// Outside of the lock.
    pub outside: u64,
    /// In `lock`.
    pub locking: u64,
    /// With the lock.
    pub holding: u64,
    /// In the release.
    pub unlocking: u64,
}

const WORKERS: usize = 4;

const OUTSIDE: u64 = 0;
const LOCKING: u64 = 1;
const HOLDING: u64 = 2;
const UNLOCKING: u64 = 3;

// The board: cache lines apart, so that the storm itself is not what the processes wait for.
const STOP: usize = 0;
const LEFT: usize = 8;
const RIGHT: usize = 9;
const INSIDE: usize = 16;
const ACQUIRED: usize = 24;
const REPORTS: usize = 25;
/// Whom the last one who was told of a death found inside.
const FOUND: usize = 26;
const REPAIRS: usize = 27;
const EXCLUSION: usize = 32;
const LOST: usize = 33;
const FLAG: usize = 40;
const WORKER: usize = 64;
const STRIDE: usize = 16;
const PHASE: usize = 0;
const COUNT: usize = 8;
const WORDS: usize = WORKER + WORKERS * STRIDE;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Robust,
    Flag,
}

#[derive(Serialize, Deserialize)]
struct Job {
    board: Board,
    lock: Lock,
    kind: Kind,
    index: usize,
    /// A number that no other worker of this storm ever has.
    life: u64,
    seed: u64,
}

fn worker(job: Job) {
    tied_to_parent();
    let mut rng = Rng::new(job.seed);
    let own = Lock::new().expect("memory for a lock");
    let phase = &job.board[WORKER + job.index * STRIDE + PHASE];
    let enter = |at| phase.store(at, crossproc_atomic::Ordering::SeqCst);
    while job.board.get(STOP) == 0 {
        // An inner lock is told of in another way than an outermost one.
        let mut around = rng.once_in(2).then(|| own.lock().expect("nobody else has it"));
        enter(LOCKING);
        match job.kind {
            Kind::Robust => {
                // Who gives up leaves its traces in the word too.
                let locked = match rng.below(8) {
                    0 => job.lock.try_lock(),
                    1 => job.lock.lock_timeout(Duration::from_micros(rng.below(200))),
                    _ => job.lock.lock(),
                };
                let guard = match locked {
                    Ok(guard) => {
                        enter(HOLDING);
                        job.come_in(false);
                        guard
                    }
                    Err(LockError::OwnerDied(mut guard)) => {
                        job.board.set(FOUND, job.board.get(INSIDE));
                        job.board.add(REPORTS, 1);
                        enter(HOLDING);
                        job.come_in(true);
                        guard.mark_consistent();
                        guard
                    }
                    Err(LockError::WouldBlock | LockError::TimedOut) => continue,
                    Err(error) => panic!("{error}"),
                };
                if rng.once_in(4) {
                    around = None; // not in the order of locking
                }
                job.change(&mut rng);
                enter(UNLOCKING);
                drop(guard);
            }
            Kind::Flag => {
                while job.board.swap(FLAG, 1) == 1 {
                    yield_now();
                }
                enter(HOLDING);
                job.come_in(false);
                job.change(&mut rng);
                enter(UNLOCKING);
                job.board.set(FLAG, 0);
            }
        }
        enter(OUTSIDE);
        drop(around);
        pass_time(rng.below(200));
    }
}

/// Something between nothing and a time slice.
fn pass_time(turns: u64) {
    for _ in 0..turns {
        std::hint::spin_loop();
    }
}

impl Job {
    fn come_in(&self, somebody_died: bool) {
        let board = &self.board;
        let before = board.swap(INSIDE, self.life);
        // Who died inside is found there by the one who is told, and by nobody else.
        if before != 0 && !somebody_died {
            board.add(EXCLUSION, 1);
        }
        board.add(ACQUIRED, 1);
        let (left, right) = (board.get(LEFT), board.get(RIGHT));
        let counted: u64 = (0..WORKERS).map(|w| board.get(WORKER + w * STRIDE + COUNT)).sum();
        if left == right {
            if counted != left {
                board.add(LOST, 1);
            }
        } else if somebody_died && left == right + 1 && (counted == left || counted == right) {
            board.set(LEFT, counted);
            board.set(RIGHT, counted);
            board.add(REPAIRS, 1);
        } else {
            board.add(LOST, 1);
        }
    }

    fn change(&self, rng: &mut Rng) {
        let board = &self.board;
        let (left, right) = (board.get(LEFT), board.get(RIGHT));
        board.set(LEFT, left + 1);
        pass_time(rng.below(60));
        board.add(WORKER + self.index * STRIDE + COUNT, 1);
        if rng.once_in(16) {
            yield_now();
        } else if rng.once_in(64) {
            sleep(Duration::from_micros(rng.below(100)));
        }
        pass_time(rng.below(60));
        board.set(RIGHT, right + 1);
        if board.swap(INSIDE, 0) != self.life {
            board.add(EXCLUSION, 1);
        }
    }
}

/// Runs a whole storm.
///
/// # Panics
///
/// If processes can not be started or killed.
#[must_use]
pub fn run(config: &Config) -> Report {
    let robust = Storm::new(Kind::Robust, config.seed).run(config.holding, config.at_least, HANG);
    let ([idle, idle_inner], idle_failure) = match time_idle_waiter(config.idle_rounds, config.seed) {
        Ok(times) => (times, None),
        Err(failure) => (Default::default(), Some(failure)),
    };
    // It gets stuck at the first death of a holder. If it does not, it is not the lock that this storm is to find.
    let flag = Storm::new(Kind::Flag, config.seed).run(50, Duration::ZERO, Duration::from_secs(2));
    Report { seed: config.seed, robust, idle, idle_inner, idle_failure, flag }
}

struct Storm {
    board: Board,
    lock: Lock,
    kind: Kind,
    rng: Rng,
    workers: Vec<Process<()>>,
    /// Of the worker in each slot.
    lives: Vec<u64>,
    next_life: u64,
    /// Reports that have been assigned to a death.
    accounted: u64,
    out: Outcome,
}

impl Storm {
    fn new(kind: Kind, seed: u64) -> Self {
        let mut storm = Self {
            board: Board::new(WORDS),
            lock: Lock::new().expect("memory for a lock"),
            kind,
            rng: Rng::new(seed),
            workers: Vec::new(),
            lives: vec![0; WORKERS],
            next_life: 1,
            accounted: 0,
            out: Outcome::default(),
        };
        for index in 0..WORKERS {
            let worker = storm.start(index);
            storm.workers.push(worker);
        }
        storm
    }

    fn start(&mut self, index: usize) -> Process<()> {
        self.lives[index] = self.next_life;
        self.next_life += 1;
        self.board.set(WORKER + index * STRIDE + PHASE, OUTSIDE);
        let (board, lock) = (self.board.clone(), self.lock.clone());
        let job = Job { board, lock, kind: self.kind, index, life: self.lives[index], seed: self.rng.bits() };
        child(worker, job)
    }

    fn run(mut self, holding: u64, at_least: Duration, patience: Duration) -> Outcome {
        let started = Instant::now();
        while self.out.died.holding < holding || started.elapsed() < at_least {
            if let Err(failure) = self.kill_some(patience) {
                self.out.failure = Some(failure);
                break;
            }
        }
        if self.out.failure.is_none() {
            self.out.failure = self.stop().err();
        }
        // Also those that are stuck.
        self.workers.clear();
        let board = &self.board;
        self.out.reports = board.get(REPORTS);
        self.out.acquired = board.get(ACQUIRED);
        self.out.repairs = board.get(REPAIRS);
        self.out.exclusion_violations = board.get(EXCLUSION);
        self.out.lost_words = board.get(LOST);
        self.out.changes = board.get(RIGHT);
        self.out.took = started.elapsed();
        self.out
    }

    /// Kills one or two, and waits until their reports have come.
    fn kill_some(&mut self, patience: Duration) -> Result<(), String> {
        let first = self.rng.below(WORKERS as u64) as usize;
        let mut victims = vec![first];
        if self.rng.once_in(8) {
            victims.push((first + 1 + self.rng.below(WORKERS as u64 - 1) as usize) % WORKERS);
            self.out.in_pairs += 2;
        }
        sleep(Duration::from_micros(self.rng.below(1000)));
        if self.rng.once_in(8) {
            for &victim in &victims {
                self.workers[victim].signal(19).map_err(|e| e.to_string())?; // SIGSTOP
            }
            self.out.stopped += victims.len() as u64;
            sleep(Duration::from_micros(self.rng.below(2000)));
        }
        for &victim in &victims {
            self.workers[victim].kill().map_err(|e| e.to_string())?;
        }
        let (mut holding, mut doubtful) = (0, 0);
        for &victim in &victims {
            // Counted only if this is what ended it.
            match self.workers[victim].wait_timeout(HANG) {
                Some(ExitStatus::Signal(9)) => {}
                Some(other) => {
                    return Err(format!("a worker ended by itself: {other}, {}", self.last_words(victim)));
                }
                None => return Err("a killed process did not end".to_owned()),
            }
            match self.board.get(WORKER + victim * STRIDE + PHASE) {
                OUTSIDE => self.out.died.outside += 1,
                HOLDING => {
                    self.out.died.holding += 1;
                    holding += 1;
                }
                LOCKING => {
                    self.out.died.locking += 1;
                    doubtful += 1;
                }
                _ => {
                    self.out.died.unlocking += 1;
                    doubtful += 1;
                }
            }
        }

        let acquired = self.board.get(ACQUIRED);
        let died = Instant::now();
        // The second acquisition from now began after the death, so it has been told if there is anything to tell.
        while self.board.get(ACQUIRED) < acquired + 2 || self.board.get(REPORTS) < self.accounted + holding {
            if died.elapsed() > patience {
                return Err(self.what_is_stuck(&victims, holding));
            }
            sleep(Duration::from_micros(20));
        }
        let reports = self.board.get(REPORTS) - self.accounted;
        if !(holding..=holding + doubtful).contains(&reports) {
            return Err(format!("{holding} died holding and {doubtful} near it, and {reports} were told"));
        }
        let found = self.board.get(FOUND);
        if reports == 1 && found != 0 && !victims.iter().any(|&victim| self.lives[victim] == found) {
            return Err(format!("worker {found} was found inside, which is not one that was killed"));
        }
        self.accounted += reports;
        for victim in victims {
            self.workers[victim] = self.start(victim);
        }
        Ok(())
    }

    fn what_is_stuck(&self, victims: &[usize], holding: u64) -> String {
        let told = self.board.get(REPORTS) - self.accounted;
        let living = (0..WORKERS).filter(|w| !victims.contains(w));
        let states: Vec<_> = living
            .map(|w| {
                let phase = ["outside", "locking", "holding", "unlocking"];
                let phase = phase[self.board.get(WORKER + w * STRIDE + PHASE) as usize % 4];
                format!("{phase} ({})", state_of(self.workers[w].pid()))
            })
            .collect();
        format!(
            "stuck after {holding} died holding, {told} told; the others are {}; {:?}",
            states.join(", "),
            self.lock
        )
    }

    /// Lets all come to an end, and looks at what they leave.
    fn stop(&mut self) -> Result<(), String> {
        self.board.set(STOP, 1);
        for index in 0..WORKERS {
            match self.workers[index].wait_timeout(HANG) {
                Some(ExitStatus::Code(0)) => {}
                Some(other) => {
                    return Err(format!("a worker ended with {other}: {}", self.last_words(index)));
                }
                None => return Err(self.what_is_stuck(&[], 0)),
            }
        }
        let board = &self.board;
        if board.get(REPORTS) != self.accounted {
            return Err(format!("{} were told of {} deaths", board.get(REPORTS), self.accounted));
        }
        let counted: u64 = (0..WORKERS).map(|w| board.get(WORKER + w * STRIDE + COUNT)).sum();
        if (board.get(LEFT), board.get(RIGHT)) != (counted, counted) {
            return Err(format!(
                "{} and {} at the end, {counted} counted",
                board.get(LEFT),
                board.get(RIGHT)
            ));
        }
        if self.kind == Kind::Robust {
            drop(self.lock.try_lock().map_err(|e| format!("the lock at the end: {e}"))?);
        }
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> String {
        match self.workers[index].try_join() {
            Err(error) => error.to_string(),
            Ok(_) => "no word".to_owned(),
        }
    }
}

// ---- How soon an idle waiter has the lock ----

const HELD: usize = 0;
const ROUND: usize = 8;
const WAITING: usize = 16;
const GOT: usize = 24;
const GOT_AT: usize = 25;

fn hold_for_ever((board, lock, round, within): (Board, Lock, u64, bool)) {
    tied_to_parent();
    let outer = Lock::new().expect("memory for a lock");
    let _outer = within.then(|| outer.lock().expect("nobody else has it"));
    let _guard = lock.lock().expect("nobody died");
    board.set(HELD, round);
    loop {
        std::thread::park();
    }
}

fn wait_round_by_round((board, lock, rounds): (Board, Lock, u64)) {
    tied_to_parent();
    for round in 1..=rounds {
        board.await_at_least(ROUND, round);
        board.set(WAITING, round);
        let locked = lock.lock();
        let now = Linux.now().0;
        match locked {
            Err(LockError::OwnerDied(mut guard)) => guard.mark_consistent(),
            other => panic!("told {:?} instead of OwnerDied", other.map(drop)),
        }
        board.set(GOT_AT, now);
        board.set(GOT, round);
    }
}

/// One holder, one waiter asleep in `lock`, nobody else: nanoseconds from the kill until the waiter has the lock. First for
/// holders of this lock only, then for those that hold it within another one.
fn time_idle_waiter(rounds: u64, seed: u64) -> Result<[Vec<u64>; 2], String> {
    let mut rng = Rng::new(seed);
    let (board, lock) = (Board::new(64), Lock::new().map_err(|e| e.to_string())?);
    let mut waiter = child(wait_round_by_round, (board.clone(), lock.clone(), rounds));
    let mut times = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        let within = round % 2 == 0;
        let holder = child(hold_for_ever, (board.clone(), lock.clone(), round, within));
        board.await_at_least(HELD, round);
        board.set(ROUND, round);
        board.await_at_least(WAITING, round);
        await_asleep(waiter.pid());
        // Anywhere in its first slices of sleep.
        sleep(Duration::from_micros(rng.below(if rounds > 50 { 100_000 } else { 10_000 })));
        let killed_at = Linux.now().0;
        kill_and_reap(&holder);
        let started = Instant::now();
        while board.get(GOT) < round {
            if started.elapsed() > HANG {
                return Err("the idle waiter sleeps on".to_owned());
            }
            if let Err(error) = waiter.try_join() {
                return Err(error.to_string());
            }
            sleep(Duration::from_micros(50));
        }
        times[usize::from(within)].push(board.get(GOT_AT).saturating_sub(killed_at));
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    Ok(times)
}

// ---- What people and programs read ----

impl Died {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.outside + self.locking + self.holding + self.unlocking
    }
}

impl Outcome {
    /// True if nothing was wrong.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.failure.is_none() && self.exclusion_violations == 0 && self.lost_words == 0
    }
}

impl Report {
    /// True if the robust lock kept its promises and the planted bug was found.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.robust.is_right() && self.idle_failure.is_none() && !self.flag.is_right()
    }

    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let Outcome { died, stopped, in_pairs, reports, acquired, changes, repairs, .. } = &self.robust;
        let Outcome { exclusion_violations, lost_words, took, failure, .. } = &self.robust;
        let times = |sorted: &[u64]| {
            let of = |q| match quantile_ms(sorted, q) {
                ms if ms.is_nan() => "null".to_owned(),
                ms => format!("{ms:.4}"),
            };
            let (median, p99, max) = (of(0.5), of(0.99), of(1.0));
            format!("{{\"rounds\":{},\"median\":{median},\"p99\":{p99},\"max\":{max}}}", sorted.len())
        };
        format!(
            "{{\"storm\":\"lock\",\"right\":{},\"seed\":{},\"seconds\":{:.1},\"killed\":{},\"died_holding\":{},\
             \"died_locking\":{},\"died_unlocking\":{},\"died_outside\":{},\"killed_stopped\":{stopped},\
             \"killed_in_pairs\":{in_pairs},\"reports\":{reports},\"acquired\":{acquired},\"changes\":{changes},\
             \"repairs\":{repairs},\"exclusion_violations\":{exclusion_violations},\"lost_words\":{lost_words},\
             \"failure\":{},\"idle_waiter_ms\":{},\"idle_waiter_inner_ms\":{},\
             \"flag_lock_caught\":{},\"flag_lock_kills\":{}}}",
            self.is_right(),
            self.seed,
            took.as_secs_f64(),
            died.total(),
            died.holding,
            died.locking,
            died.unlocking,
            died.outside,
            failure
                .as_ref()
                .or(self.idle_failure.as_ref())
                .map_or("null".to_owned(), |text| format!("{text:?}")),
            times(&self.idle),
            times(&self.idle_inner),
            !self.flag.is_right(),
            self.flag.died.total(),
        )
    }
}

/// The q-quantile of sorted nanoseconds, in milliseconds.
fn quantile_ms(sorted: &[u64], q: f64) -> f64 {
    let at = (q * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).map_or(f64::NAN, |&ns| ns as f64 / 1e6)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { died, took, .. } = &self.robust;
        let out = &self.robust;
        writeln!(f, "storm over the lock: seed {}, {:.1} s", self.seed, took.as_secs_f64())?;
        writeln!(
            f,
            "  killed           {} processes ({} of them stopped first, {} in pairs)",
            died.total(),
            out.stopped,
            out.in_pairs
        )?;
        writeln!(f, "    while holding  {}", died.holding)?;
        writeln!(f, "    in lock        {}    in the release {}", died.locking, died.unlocking)?;
        writeln!(f, "    outside        {}", died.outside)?;
        let doubtful = out.reports.saturating_sub(died.holding);
        writeln!(
            f,
            "  OwnerDied        {} times: exactly one next owner for each death while holding, {doubtful} for deaths in \
             lock and release, 0 for deaths outside",
            out.reports
        )?;
        writeln!(
            f,
            "  acquired         {} times, {} changes, {} repaired",
            out.acquired, out.changes, out.repairs
        )?;
        writeln!(
            f,
            "  violations       exclusion {}, lost words {}",
            out.exclusion_violations, out.lost_words
        )?;
        if let Some(failure) = &out.failure {
            writeln!(f, "  FAILED           {failure}")?;
        }
        match &self.idle_failure {
            None => {
                let line = |sorted: &[u64]| {
                    let [median, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile_ms(sorted, q));
                    format!(
                        "{median:.3} ms (median), {p99:.3} (p99), {max:.3} (max) in {} rounds",
                        sorted.len()
                    )
                };
                writeln!(f, "  idle waiter      has the lock after {}", line(&self.idle))?;
                writeln!(
                    f,
                    "                   if the holder held another one around it: {}",
                    line(&self.idle_inner)
                )?;
            }
            Some(failure) => writeln!(f, "  FAILED           idle waiter: {failure}")?,
        }
        writeln!(f, "planted bug, a flag lock in the same storm:")?;
        let flag = &self.flag;
        let how = match &flag.failure {
            Some(how) => how.clone(),
            None => format!("exclusion {}, lost words {}", flag.exclusion_violations, flag.lost_words),
        };
        let verdict = if flag.is_right() { "NOT CAUGHT" } else { "caught" };
        writeln!(
            f,
            "  {verdict:<16} after {} kills, {:.1} s: {how}",
            flag.died.total(),
            flag.took.as_secs_f64()
        )?;
        write!(f, "{}", if self.is_right() { "all right" } else { "NOT RIGHT" })
    }
}
