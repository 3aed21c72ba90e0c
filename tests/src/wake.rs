//! How soon a sleeper knows: one process has what another one waits for, is killed, and the time until the sleeper is awake
//! and has it (or has been told) is taken; and what waiting costs.
//!
//! The sleeper is a thread of the measuring process, alone with the one that is killed. It has slept for a random time, so
//! its slices have any length.

use std::fmt;
use std::thread::{self, sleep};
use std::time::Duration;

use crossproc_atomic::{Linux, Platform, set_futex_waitv};
use crossproc_primitives::{
    AccessError, BarrierError, BrokenBy, CondvarError, Guard, LockError, Objects, OnceError, WaitError,
};
use crossproc_segment::{Segment, SegmentOptions};
use rustix::time::{ClockId, clock_gettime};

use crate::board::Board;
use crate::children::{HANG, await_asleep, child, kill_and_reap, tied_to_parent};
use crate::random::Rng;

/// What is waited for, how a process comes to have it, and how one waits for it.
struct Case {
    name: &'static str,
    /// In the process that is killed: has it when this returns, and for as long as what is returned lives.
    hold: fn(&Segment, &mut dyn FnMut()) -> Result<(), String>,
    /// Until it is had, or until the one who has it is known to be dead. An error for any other end.
    wait: fn(&Segment, Duration) -> Result<(), String>,
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

/// After a death: the lock with a mark, which is taken away for the next round.
fn told<G: Guard>(locked: Result<G, LockError<G>>) -> Result<(), String> {
    match locked {
        Err(LockError::OwnerDied(mut guard)) => {
            guard.mark_consistent();
            Ok(())
        }
        Ok(_) => Err("had the lock and was not told of the death".to_owned()),
        Err(other) => Err(other.to_string()),
    }
}

/// Attached, and nothing else.
fn be_there(_: &Segment, held: &mut dyn FnMut()) -> Result<(), String> {
    held();
    Ok(())
}

const CASES: &[Case] = &[
    Case {
        name: "Lock",
        hold: |s, held| {
            let lock = s.lock("it").map_err(text)?;
            let _guard = lock.lock().map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| told(s.lock("it").map_err(text)?.lock_timeout(limit)),
    },
    Case {
        name: "Lock, held within another one",
        hold: |s, held| {
            let (outer, lock) = (s.lock("outer").map_err(text)?, s.lock("it").map_err(text)?);
            let _outer = outer.lock().or_else(|e| e.repair(|_| ())).map_err(text)?;
            let _guard = lock.lock().map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| told(s.lock("it").map_err(text)?.lock_timeout(limit)),
    },
    Case {
        name: "RwLock, writer dies, reader waits",
        hold: |s, held| {
            let lock = s.rwlock("it", 0_u64).map_err(text)?;
            let _guard = lock.write().or_else(|e| e.repair(|_| ())).map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| match s.rwlock("it", 0_u64).map_err(text)?.read_timeout(limit) {
            Err(LockError::OwnerDied(_)) => Ok(()),
            Ok(_) => Err("read and was not told of the death".to_owned()),
            Err(other) => Err(text(other)),
        },
    },
    Case {
        name: "RwLock, reader dies, writer waits",
        hold: |s, held| {
            let lock = s.rwlock("it", 0_u64).map_err(text)?;
            let _guard = lock.read().map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| s.rwlock("it", 0_u64).map_err(text)?.write_timeout(limit).map(drop).map_err(text),
    },
    Case {
        name: "Semaphore",
        hold: |s, held| {
            let semaphore = s.semaphore("it", 1).map_err(text)?;
            let _permit = semaphore.acquire().map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| s.semaphore("it", 1).map_err(text)?.acquire_timeout(limit).map(drop).map_err(text),
    },
    Case {
        name: "BinarySemaphore",
        hold: |s, held| {
            s.binary_semaphore("it").map_err(text)?.acquire().map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| {
            let semaphore = s.binary_semaphore("it").map_err(text)?;
            semaphore.acquire_timeout(limit).map_err(text)?;
            semaphore.release().map_err(text)
        },
    },
    Case {
        name: "Event",
        hold: be_there,
        wait: |s, limit| match s.event("it").map_err(text)?.wait_timeout(limit) {
            Err(WaitError::PeerDied) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    },
    Case {
        name: "Condvar",
        hold: be_there,
        wait: |s, limit| {
            let (lock, condvar) = (s.lock("lock").map_err(text)?, s.condvar("it").map_err(text)?);
            let guard = lock.lock().map_err(text)?;
            match condvar.wait_timeout(guard, limit) {
                // A death is a spurious wake-up, and when nobody is left it is an error.
                Ok(_) | Err(CondvarError::PeerDied(_)) => Ok(()),
                Err(other) => Err(text(other)),
            }
        },
    },
    Case {
        name: "Barrier",
        hold: |s, held| {
            let _barrier = s.barrier("it", 2).map_err(text)?;
            held();
            Ok(())
        },
        wait: |s, limit| {
            let barrier = s.barrier("it", 2).map_err(text)?;
            match barrier.wait_timeout(limit) {
                Err(BarrierError::Broken(BrokenBy::PartyDied)) => barrier.reset().map(drop).map_err(text),
                other => Err(format!("{other:?}")),
            }
        },
    },
    Case {
        name: "Once",
        hold: |s, held| {
            let once = s.once("it").map_err(text)?;
            once.call(|_| {
                held();
            })
            .map_err(text)
        },
        // Not completed, so that the next round has something to begin.
        wait: |s, limit| {
            let once = s.once("it").map_err(text)?;
            let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                once.call_timeout(limit, |state| {
                    std::panic::resume_unwind(Box::new(state.previous_died()));
                })
            }));
            match called {
                Err(panic) if panic.downcast_ref() == Some(&true) => Ok(()),
                Err(_) => Err("runs it and was not told of the death".to_owned()),
                Ok(Err(OnceError::TimedOut)) => Err("timed out".to_owned()),
                Ok(other) => Err(format!("{other:?}")),
            }
        },
    },
    Case {
        name: "Value",
        hold: be_there,
        wait: |s, limit| match s.value("it", 0_u64).map_err(text)?.wait_while_timeout(limit, |&v| v == 0) {
            Err(AccessError::PeerDied) => Ok(()),
            other => Err(format!("{other:?}")),
        },
    },
];

fn hold_until_killed((board, segment, case, round): (Board, Segment, usize, u64)) {
    tied_to_parent();
    let result = (CASES[case].hold)(&segment, &mut || {
        board.set(case, round);
        loop {
            thread::park();
        }
    });
    panic!("was to be killed: {result:?}");
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Times {
    /// Of whom.
    pub name: &'static str,
    /// Nanoseconds from `kill` until the sleeper knew, sorted.
    pub woken: Vec<u64>,
}

/// Kills who is waited for, `rounds` times for each kind; with `futex_waitv` or without it.
///
/// # Errors
///
/// Which sleeper was not woken, or with the wrong result.
///
/// # Panics
///
/// If processes can not be started.
pub fn kill_to_wake(rounds: u64, waitv: bool, seed: u64) -> Result<Vec<Times>, String> {
    set_futex_waitv(waitv);
    let mut rng = Rng::new(seed);
    let mut all = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let board = Board::new(CASES.len());
        let segment = SegmentOptions::new().participants(4).anonymous(16 * 1024).expect("memory");
        let mut woken = Vec::new();
        for round in 1..=rounds {
            let victim = child(hold_until_killed, (board.clone(), segment.clone(), number, round));
            board.await_at_least(number, round);
            let (tell, told) = std::sync::mpsc::channel();
            let segment = segment.clone();
            let sleeper = thread::spawn(move || {
                tell.send(Linux.tid()).expect("it is being waited for");
                let result = (case.wait)(&segment, HANG);
                (result, Linux.now().0)
            });
            await_asleep(told.recv().expect("the sleeper begins"));
            sleep(Duration::from_micros(rng.below(if round % 8 == 0 { 150_000 } else { 5000 })));
            let killed = Linux.now().0;
            kill_and_reap(&victim);
            let (result, knew) =
                sleeper.join().map_err(|_| format!("{}: the sleeper panicked", case.name))?;
            result.map_err(|e| format!("{}, round {round}: {e}", case.name))?;
            woken.push(knew.saturating_sub(killed));
        }
        woken.sort_unstable();
        all.push(Times { name: case.name, woken });
    }
    set_futex_waitv(true);
    Ok(all)
}

/// What sleepers of all kinds cost while nothing happens: of each the share of one CPU, over `time`.
///
/// # Panics
///
/// If processes can not be started.
#[must_use]
pub fn cpu_while_waiting(time: Duration) -> Vec<(&'static str, f64)> {
    let sleepers: Vec<_> = CASES
        .iter()
        .enumerate()
        .map(|(number, case)| {
            let board = Board::new(CASES.len());
            let segment = SegmentOptions::new().participants(4).anonymous(16 * 1024).expect("memory");
            let victim = child(hold_until_killed, (board.clone(), segment.clone(), number, 1));
            board.await_at_least(number, 1);
            let sleeper = thread::spawn(move || {
                let cpu = || {
                    let used = clock_gettime(ClockId::ThreadCPUTime);
                    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
                };
                let before = (cpu(), Linux.now().0);
                // It times out: that is the point.
                let _ = (case.wait)(&segment, time);
                (cpu() - before.0) / ((Linux.now().0 - before.1) as f64 / 1e9)
            });
            (case.name, victim, sleeper)
        })
        .collect();
    sleepers
        .into_iter()
        .map(|(name, victim, sleeper)| {
            let share = sleeper.join().expect("the sleeper ends");
            kill_and_reap(&victim);
            (name, share)
        })
        .collect()
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |q: f64| {
            let at = (q * self.woken.len().saturating_sub(1) as f64).round() as usize;
            self.woken.get(at).map_or(f64::NAN, |&ns| ns as f64 / 1e6)
        };
        let Self { name, woken } = self;
        write!(f, "{name:<36}{:>9.3}{:>9.3}{:>9.3}{:>8}", at(0.5), at(0.99), at(1.0), woken.len())
    }
}
