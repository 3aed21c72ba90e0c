//! A process is killed while it holds a lock that another one sleeps for.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc::process::parent;
use crossproc::{ExitStatus, Guard, LockError, Mutex, Value};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};

use super::Program;
use super::children::{Child, LIMIT, finish, start, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::Check;

pub const PROGRAM: Program =
    Program { name: "owner_dies", title: "A process dies while it holds the lock", run };

const ROUNDS: usize = 20;
/// Two accounts, 1000 in all.
const WHOLE: [u64; 2] = [600, 400];
const HALFWAY: [u64; 2] = [500, 400];

/// What the processes share.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Shared {
    accounts: Mutex<[u64; 2]>,
    /// The owner is in the middle of it.
    halfway: Value<bool>,
    /// The next one is about to lock.
    waiting: Value<bool>,
    /// Nanoseconds of CLOCK_MONOTONIC, which is the same in all processes.
    killed_at: Value<u64>,
    owned_at: Value<u64>,
}

/// What the next owner met with.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Taken {
    owner_died: bool,
    found: [u64; 2],
    /// What the lock's next holder finds after the repair; `None` if it was told of the death again.
    repaired: Option<[u64; 2]>,
}

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing(&format!(
        "Two accounts hold 1000 together. A process locks them, takes 100 out of the first, and is killed (SIGKILL) \
         before it puts them into the second, while the next process sleeps in lock(). {ROUNDS} times:",
    ));
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(round()?);
    }
    let mut check = |what: &str, is_right: fn(&Taken) -> bool| {
        let right = rounds.iter().filter(|(taken, _)| is_right(taken)).count();
        recorder.check(Check::equal(what, format!("{right} of {ROUNDS}"), format!("{ROUNDS} of {ROUNDS}")));
    };
    check("told that the owner died", |taken| taken.owner_died);
    check("found 500 and 400", |taken| taken.found == HALFWAY);
    check("repaired, and the mark gone", |taken| taken.repaired == Some(WHOLE));

    let mut times: Vec<_> = rounds.iter().map(|(_, time)| *time).collect();
    times.sort_unstable();
    recorder.took("kill to next owner, median", times[ROUNDS / 2]);
    recorder.took("kill to next owner, longest", times[ROUNDS - 1]);
    Ok(())
}

/// One death; returns what the next owner met with, and how long it took from the kill until it had the lock.
fn round() -> Result<(Taken, Duration), Failure> {
    let shared = Shared {
        accounts: Mutex::new(WHOLE)?,
        halfway: Value::new(false)?,
        waiting: Value::new(false)?,
        killed_at: Value::new(0)?,
        owned_at: Value::new(0)?,
    };
    let owner = start("owner", own, shared.clone())?;
    shared.halfway.wait_while_timeout(LIMIT, |halfway| !halfway)?.ok_or_else(|| too_long("the owner"))?;
    let next = start("next", own_next, shared.clone())?;
    shared
        .waiting
        .wait_while_timeout(LIMIT, |waiting| !waiting)?
        .ok_or_else(|| too_long("the next owner"))?;
    until_asleep(&next)?;

    shared.killed_at.set(now())?;
    owner.kill()?;
    let status = owner.wait_timeout(LIMIT).ok_or_else(|| too_long("killing the owner"))?;
    if status != ExitStatus::Signal(9) {
        return Err(Failure::new(format!("the owner ended with {status} and was to be killed")));
    }
    let taken = finish(next)?;
    let waited = shared.owned_at.get()?.saturating_sub(shared.killed_at.get()?);
    Ok((taken, Duration::from_nanos(waited)))
}

fn own(shared: Shared) -> Result<(), Failure> {
    let mut accounts = shared.accounts.lock()?;
    accounts[0] -= 100;
    shared.halfway.set(true)?;
    until_parent_ends();
    accounts[1] += 100;
    Ok(())
}

fn own_next(shared: Shared) -> Result<Taken, Failure> {
    shared.waiting.set(true)?;
    let locked = shared.accounts.lock();
    shared.owned_at.set(now())?;
    let (mut accounts, owner_died) = match locked {
        Ok(accounts) => (accounts, false),
        Err(LockError::OwnerDied(accounts)) => (accounts, true),
        Err(other) => return Err(other.into()),
    };
    let found = *accounts;
    accounts[0] = 1000 - accounts[1];
    accounts.mark_consistent();
    drop(accounts);
    let repaired = shared.accounts.lock().ok().map(|accounts| *accounts);
    Ok(Taken { owner_died, found, repaired })
}

/// Sleeps until it is killed, or the tour itself was.
pub fn until_parent_ends() {
    if let Some(parent) = parent() {
        // A failing poll only means that the transfer goes on.
        let _ = poll(&mut [PollFd::new(parent, PollFlags::IN)], None);
    }
}

/// Comes back when the process sleeps in the kernel.
pub fn until_asleep<R>(child: &Child<R>) -> Result<(), Failure> {
    let since = Instant::now();
    let mut seen_asleep = 0;
    while seen_asleep < 3 {
        if since.elapsed() > LIMIT {
            return Err(too_long("falling asleep"));
        }
        sleep(Duration::from_millis(1));
        // proc_pid_stat(5): the state is the letter behind the name, which stands in parentheses and may have
        // anything in it.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid()))?;
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        seen_asleep = if state == Some('S') { seen_asleep + 1 } else { 0 };
    }
    Ok(())
}

pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
