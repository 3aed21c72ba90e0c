//! The storm over a pool: tasks are done while, every ten milliseconds, a random worker is killed. Each task may be tried three times more.
//!
//! Each task counts its runs in a shared array, before it does anything else and after all it does. So it is known of every handle:
//! it has one outcome; a result is the right one; an error is `WorkerDied` after exactly four attempts, none of which came
//! to its end, but for the moment between the end and the reply.

use std::fmt;
use std::sync::OnceLock;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crossproc_pool::{OnWorkerDeath, Pool, TaskError};
use crossproc_primitives::RawArray;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::children::HANG;
use crate::random::Rng;

/// How long a storm is to be, and from which seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Ends when so many tasks have been done,
    pub tasks: u64,
    /// and not before this time.
    pub at_least: Duration,
    /// Of all random choices.
    pub seed: u64,
}

/// What came out of a storm. Everything in it was counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The seed that gives the same choices again.
    pub seed: u64,
    /// Handles that were waited for.
    pub tasks: u64,
    /// Workers that were killed.
    pub kills: u64,
    /// Runs that were begun.
    pub runs: u64,
    /// Tasks that failed with `WorkerDied` after four attempts.
    pub given_up: u64,
    /// What must not be.
    pub wrong: Vec<String>,
}

const WORKERS: usize = 4;
const RETRIES: u8 = 3;
/// Tasks that are there at one time.
const ROUND: usize = 500;
const BETWEEN_KILLS: Duration = Duration::from_millis(10);

/// For each task of a round: how often it was begun, and ended.
static RUNS: OnceLock<RawArray<u64>> = OnceLock::new();

/// One task: short or, some of them, longer than the time between two kills; with little data or much.
fn work((place, spin, data): (usize, u64, Vec<u8>)) -> (usize, Vec<u8>) {
    let runs = RUNS.get().expect("the initializer has run");
    let _ = runs.fetch_add(2 * place, 1);
    if spin > 0 {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_micros(spin) {
            std::hint::spin_loop();
        }
    }
    let result = (place, data.iter().rev().copied().collect());
    let _ = runs.fetch_add(2 * place + 1, 1);
    result
}

/// A storm.
///
/// # Panics
///
/// If there is no pool to be had.
#[must_use]
pub fn run(config: &Config) -> Report {
    let mut report = Report { seed: config.seed, ..Report::default() };
    let runs = RawArray::<u64>::new(2 * ROUND).expect("memory");
    let pool = Pool::builder()
        .processes(WORKERS)
        .on_worker_death(OnWorkerDeath::Retry(RETRIES))
        .initializer(|runs| RUNS.set(runs).expect("once"), runs.clone())
        .build()
        .expect("a pool");
    let is_over = OnceLock::new();
    let begun = Instant::now();
    thread::scope(|scope| {
        let (killed, stop, seed) = (&pool, &is_over, config.seed);
        let killer = scope.spawn(move || kill_workers(killed, stop, seed));
        let mut rng = Rng::new(config.seed);
        while report.wrong.is_empty() && (report.tasks < config.tasks || begun.elapsed() < config.at_least) {
            round(&pool, &runs, &mut rng, &mut report);
        }
        let _ = is_over.set(());
        report.kills = killer.join().unwrap_or_default();
    });
    let squares = pool.map(|n: u64| n * n, 0..1000);
    if squares != Ok((0..1000).map(|n| n * n).collect()) {
        report.wrong.push("the pool did not compute a correct map afterwards".into());
    }
    report
}

fn kill_workers(pool: &Pool, is_over: &OnceLock<()>, seed: u64) -> u64 {
    let mut rng = Rng::new(seed ^ 0x5ee_d0f7);
    let mut kills = 0;
    while is_over.get().is_none() {
        sleep(BETWEEN_KILLS);
        let pids = pool.worker_pids();
        if pids.is_empty() {
            continue;
        }
        let victim = pids[rng.below(pids.len() as u64) as usize];
        // The pool may have reaped it since: then the number is nobody's, or its next holder's, who is a worker too if it is ours.
        if pool.worker_pids().contains(&victim) {
            let pid = Pid::from_raw(victim as i32);
            kills += u64::from(pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()));
        }
    }
    kills
}

fn round(pool: &Pool, runs: &RawArray<u64>, rng: &mut Rng, report: &mut Report) {
    for place in 0..2 * ROUND {
        runs.set(place, 0).expect("a place");
    }
    let mut handles = Vec::with_capacity(ROUND);
    for place in 0..ROUND {
        let spin = if rng.once_in(50) { 12_000 } else { rng.below(300) };
        let length = if rng.once_in(20) { rng.below(100_000) } else { rng.below(100) };
        let data: Vec<u8> = (0..length).map(|n| (n as u8) ^ place as u8).collect();
        match pool.submit(work, (place, spin, data.clone())) {
            Ok(task) => handles.push((task, data)),
            Err(why) => {
                report.wrong.push(format!("task {place} was refused: {why}"));
                return;
            }
        }
    }
    for (place, (task, data)) in handles.into_iter().enumerate() {
        report.tasks += 1;
        let Some(outcome) = task.get_timeout(HANG) else {
            report.wrong.push(format!("task {place} has no outcome"));
            return;
        };
        let [begun, ended] = [0, 1].map(|which| runs.get(2 * place + which).expect("a place"));
        report.runs += begun;
        let what =
            format!("begun {begun} times, ended {ended} times: {:?}", outcome.as_ref().map(|_| "a result"));
        let most = u64::from(RETRIES) + 1;
        let is_right = match outcome {
            Ok((same, reversed)) => {
                same == place && reversed.iter().rev().eq(data.iter()) && ended >= 1 && begun <= most
            }
            Err(TaskError::WorkerDied { attempts, .. }) => {
                report.given_up += 1;
                // Who is killed between the claim of a task and its first step has made an attempt, and counted nothing.
                u64::from(attempts) == most && begun <= most
            }
            Err(_) => false,
        };
        if !is_right {
            report.wrong.push(format!("task {place}: {what}"));
        }
    }
}

impl Report {
    /// True if no promise was broken.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.wrong.is_empty() && self.kills > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, tasks, kills, runs, given_up, wrong } = self;
        write!(f, "storm over a pool, seed {seed}: {tasks} tasks in {runs} runs, {kills} workers killed, ")?;
        write!(f, "{given_up} tasks given up after {} attempts; {} wrong", RETRIES + 1, wrong.len())?;
        wrong.iter().take(10).try_for_each(|wrong| write!(f, "\n  {wrong}"))
    }
}
