//! Holders, parties and peers are killed while others wait for them: everybody goes on.

use std::time::Duration;

use crossproc::{Barrier, BarrierError, BrokenBy, Event, RwLock, Semaphore, Value, WaitError};

use super::Program;
use super::children::{Child, LIMIT, finish, start, too_long};
use super::owner_dies::{now, until_asleep, until_parent_ends};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::Check;

pub const PROGRAM: Program = Program { name: "nobody_waits", title: "Nobody waits for the dead", run };

const ROUNDS: usize = 10;

/// What one process has, or is, and others wait for.
struct Scene {
    what: &'static str,
    /// How many sleep for the same thing.
    waiters: u32,
    /// What the waiters should say.
    expected: &'static str,
    /// Runs in the process that is killed.
    hold: fn(Shared) -> Result<(), Failure>,
    /// Runs in each of the others, and says how the waiting ended.
    wait: fn(Shared) -> Result<Woken, Failure>,
}

const SCENES: &[Scene] = &[
    Scene {
        what: "holder of a Semaphore's permits",
        waiters: 2,
        expected: "got a permit",
        hold: hold_permits,
        wait: want_permit,
    },
    Scene {
        what: "reader of an RwLock",
        waiters: 2,
        expected: "wrote",
        hold: hold_reading,
        wait: want_writing,
    },
    Scene {
        what: "third party of a Barrier",
        waiters: 2,
        expected: "broken: a party died",
        hold: hold_barrier,
        wait: want_barrier,
    },
    Scene {
        what: "the one to set an Event",
        waiters: 1,
        expected: "nobody is left",
        hold: hold_nothing,
        wait: want_event,
    },
];

/// What the processes share, each object in a segment of its own.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Shared {
    semaphore: Semaphore,
    rwlock: RwLock<u64>,
    /// Not in the hands of who only made it: that one would be a party.
    barrier: Option<Barrier>,
    event: Event,
    /// How many waiters there are, and how many of them have been woken.
    waiters: u32,
    leaving: Value<u32>,
    held: Value<bool>,
    waiting: Value<u32>,
}

/// How the waiting of one process ended, and when: nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Woken {
    how: String,
    at: u64,
}

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing(&format!(
        "One process has what others sleep for, and is killed (SIGKILL). {ROUNDS} times each; the time is from the kill \
         until the last of the sleepers has gone on:",
    ));
    for scene in SCENES {
        let mut times = Vec::new();
        let mut right = 0;
        for _ in 0..ROUNDS {
            let (woken, took) = round(scene)?;
            right += usize::from(woken.iter().all(|woken| woken.how == scene.expected));
            times.push(took);
        }
        let expected = format!("{ROUNDS} of {ROUNDS} times");
        let others = if scene.waiters == 1 { "who waits" } else { "both who wait" };
        recorder.found(scene.what, format!("killed; {others}: {}", scene.expected));
        recorder.check(Check::equal("  and so it was", format!("{right} of {ROUNDS} times"), expected));
        times.sort_unstable();
        recorder.took("  kill to awake, median", times[ROUNDS / 2]);
    }
    Ok(())
}

/// One death; returns how the waiters fared, and how long it took until the last of them was awake.
fn round(scene: &Scene) -> Result<(Vec<Woken>, Duration), Failure> {
    // Made by the one who is killed, so that nobody is attached but those who take part.
    let (held, waiting, leaving) = (Value::new(false)?, Value::new(0)?, Value::new(0)?);
    let mut shared = Shared {
        semaphore: Semaphore::new(2)?,
        rwlock: RwLock::new(0)?,
        barrier: Some(Barrier::new(scene.waiters as usize + 1)?),
        event: Event::new()?,
        waiters: scene.waiters,
        leaving,
        held: held.clone(),
        waiting: waiting.clone(),
    };
    let victim = start("holder", scene.hold, shared.clone())?;
    held.wait_while_timeout(LIMIT, |held| !held)?.ok_or_else(|| too_long("the holder"))?;
    let waiters = (0..scene.waiters)
        .map(|_| start("waiter", scene.wait, shared.clone()))
        .collect::<Result<Vec<Child<Woken>>, _>>()?;
    shared.barrier = None;
    drop(shared);
    let all = scene.waiters;
    waiting.wait_while_timeout(LIMIT, |&there| there < all)?.ok_or_else(|| too_long("the waiters"))?;
    waiters.iter().try_for_each(until_asleep)?;

    let killed = now();
    victim.kill()?;
    victim.wait_timeout(LIMIT).ok_or_else(|| too_long("killing the holder"))?;
    let woken = waiters.into_iter().map(finish).collect::<Result<Vec<_>, _>>()?;
    let last = woken.iter().map(|woken| woken.at).max().unwrap_or(killed);
    Ok((woken, Duration::from_nanos(last.saturating_sub(killed))))
}

impl Shared {
    /// Waits, and does not leave before all have been woken: who leaves is gone as well.
    fn wait(self, wait: impl FnOnce(&Self) -> Result<&'static str, Failure>) -> Result<Woken, Failure> {
        self.waiting.fetch_add(1);
        let how = wait(&self)?.to_owned();
        let woken = Woken { how, at: now() };
        self.leaving.fetch_add(1);
        let all = self.waiters;
        self.leaving.wait_while_timeout(LIMIT, |&there| there < all)?;
        Ok(woken)
    }
}

fn hold_permits(shared: Shared) -> Result<(), Failure> {
    let _both = (shared.semaphore.acquire()?, shared.semaphore.acquire()?);
    shared.held.set(true)?;
    until_parent_ends();
    Ok(())
}

fn want_permit(shared: Shared) -> Result<Woken, Failure> {
    shared.wait(|shared| {
        shared.semaphore.acquire_timeout(LIMIT)?.keep();
        Ok("got a permit")
    })
}

fn hold_reading(shared: Shared) -> Result<(), Failure> {
    let _reading = shared.rwlock.read()?;
    shared.held.set(true)?;
    until_parent_ends();
    Ok(())
}

fn want_writing(shared: Shared) -> Result<Woken, Failure> {
    shared.wait(|shared| {
        *shared.rwlock.write_timeout(LIMIT)? += 1;
        Ok("wrote")
    })
}

fn hold_barrier(shared: Shared) -> Result<(), Failure> {
    shared.held.set(true)?;
    until_parent_ends();
    Ok(())
}

fn want_barrier(shared: Shared) -> Result<Woken, Failure> {
    shared.wait(|shared| {
        let barrier = shared.barrier.as_ref().ok_or_else(|| Failure::new("no barrier was handed over"))?;
        match barrier.wait_timeout(LIMIT) {
            Err(BarrierError::Broken(BrokenBy::PartyDied)) => Ok("broken: a party died"),
            Err(other) => Err(other.into()),
            Ok(_) => Ok("passed"),
        }
    })
}

fn hold_nothing(shared: Shared) -> Result<(), Failure> {
    shared.held.set(true)?;
    until_parent_ends();
    Ok(())
}

fn want_event(shared: Shared) -> Result<Woken, Failure> {
    shared.wait(|shared| match shared.event.wait_timeout(LIMIT) {
        Err(WaitError::PeerDied) => Ok("nobody is left"),
        Err(other) => Err(other.into()),
        Ok(()) => Ok("set"),
    })
}
