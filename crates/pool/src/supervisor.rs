//! The supervisor: the thread that has workers started, sees them end, and has others started in their place.
//!
//! It is the only one who reaps. What an end means for tasks is the collector's business (`Engine`), to whom it says DIED when the
//! worker has ended, so behind everything that the worker said. It never waits for a start, which takes long if something is stopped:
//! that is done by a thread of its own, one start at a time.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{BytesQueue, RawArray};
use crossproc_process::{Handed, Process, Stdio};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::PoolError;
use crate::builder::Recipe;
use crate::engine::Engine;
use crate::wire::{DIED, END, LAST_WORKER, ReplyHead};
use crate::worker::{Initializer, Orders, work};

/// So often in a row a start may fail when there is no worker left. While there is one, it is tried on and on.
const FAILED_STARTS: u32 = 8;
/// So many idle workers may die in a row before there is a pause.
const IDLE_DEATHS: u32 = 8;
/// The shortest pause between starts that fail, or are in vain; twice as long each time, at the most 2^7 of it.
const PAUSE: Duration = Duration::from_millis(5);
/// The end waits so long for a start. A later one cleans up after itself.
const GRACE: Duration = Duration::from_millis(200);
/// Between two attempts to do what can not be done now, as to reap a worker that has ended and that a debugger has.
const RETRY: Duration = Duration::from_millis(10);
/// So long at the most the collector does not receive. (It runs wakers, code of others.)
const PATIENCE: Duration = Duration::from_secs(30);

type Started = Result<Arc<Process<()>>, String>;

/// Starts workers.
pub(crate) struct Starter {
    pub(crate) recipe: Recipe,
    pub(crate) tasks: BytesQueue,
    pub(crate) replies: BytesQueue,
    pub(crate) words: RawArray<u64>,
}

impl Starter {
    /// Starts the worker with this number, and notes it.
    pub(crate) fn start(&self, engine: &Engine, number: u32) -> Started {
        let recipe = &self.recipe;
        let initializer = match &recipe.initializer {
            None => None,
            Some(prepare) => {
                let (function, argument, descriptors) = prepare()?;
                let descriptors = descriptors.into_iter().map(Handed).collect();
                Some(Initializer { function: function.words(), argument, descriptors })
            }
        };
        let orders = Orders {
            number,
            tasks: self.tasks.clone(),
            replies: self.replies.clone(),
            words: self.words.clone(),
            retries: engine.on_death.retries(),
            max_tasks: recipe.max_tasks,
            initializer,
        };
        let name = format!("{}-{number}", recipe.name);
        let mut builder =
            recipe.method.builder().name(name).stdin(Stdio::null()).daemon(true).kill_on_drop(true);
        for (variable, value) in &recipe.environment {
            builder = match value {
                Some(value) => builder.env(variable, value),
                None => builder.env_remove(variable),
            };
        }
        if let Some(directory) = &recipe.current_dir {
            builder = builder.current_dir(directory);
        }
        let process = Arc::new(builder.spawn(work, orders).map_err(|error| error.to_string())?);
        if engine.lock().hire(number, &process) { Ok(process) } else { Err("the pool has ended".into()) }
    }
}

/// A number that no worker has.
fn free_number(engine: &Engine, last: u32) -> u32 {
    let state = engine.lock();
    let mut number = last;
    loop {
        number = number % LAST_WORKER + 1;
        if state.crew.iter().all(|worker| worker.number != number) {
            return number;
        }
    }
}

/// Has a worker started by a thread of its own, which notifies the supervisor.
fn start(engine: &Arc<Engine>, starter: &Arc<Mutex<Starter>>, number: u32) -> Receiver<Started> {
    let (sender, receiver) = channel();
    let (engine, starter, own_sender) = (Arc::clone(engine), Arc::clone(starter), sender.clone());
    let run = move || {
        let started = starter.lock().unwrap_or_else(PoisonError::into_inner).start(&engine, number);
        let _ = own_sender.send(started);
        engine.notify_supervisor();
    };
    if let Err(error) = thread::Builder::new().name("pool start".into()).spawn(run) {
        let _ = sender.send(Err(error.to_string()));
    }
    receiver
}

/// The pause before a start after so many that were of no use.
fn pause_after(useless: u32) -> Duration {
    useless.checked_sub(1).map_or(Duration::ZERO, |more| PAUSE * 2_u32.pow(more.min(7)))
}

/// The supervisor's thread; returns when no worker is left and none will be started. The crew has the numbers from 1 on.
pub(crate) fn supervise(engine: &Arc<Engine>, starter: Starter, mut crew: Vec<(u32, Arc<Process<()>>)>) {
    engine.note_own_thread();
    let replies = starter.replies.clone();
    let starter = Arc::new(Mutex::new(starter));
    let mut starting: Option<Receiver<Started>> = None;
    let mut number = crew.len() as u32;
    let (mut failed_starts, mut last_start) = (0, Instant::now());
    let mut sees_end = false;
    loop {
        let before = crew.len();
        crew.retain(|(number, process)| {
            let has_ended = process.exit_status().is_some();
            if has_ended {
                say(engine, &replies, ReplyHead::of_worker(DIED, *number));
            }
            !has_ended
        });
        let can_not_reap = sees_end && crew.len() == before;
        let is_over = engine.needs_nobody();
        if is_over && crew.is_empty() {
            match starting.take().map(|starting| starting.recv_timeout(GRACE)) {
                Some(Ok(Ok(process))) => crew.push((number, process)),
                _ => break,
            }
        }
        let started = starting.as_ref().map(Receiver::try_recv);
        let started = match started {
            Some(Ok(started)) => Some(started),
            Some(Err(TryRecvError::Disconnected)) => Some(Err("it panicked".into())),
            Some(Err(TryRecvError::Empty)) | None => None,
        };
        if let Some(started) = started {
            starting = None;
            match started {
                Ok(process) => {
                    failed_starts = 0;
                    crew.push((number, process));
                }
                Err(error) => {
                    // It may have come as far as to take a task.
                    say(engine, &replies, ReplyHead::of_worker(DIED, number));
                    failed_starts += 1;
                    if crew.is_empty() && failed_starts > FAILED_STARTS {
                        engine.end(PoolError::CannotStart(error));
                    }
                }
            }
            continue;
        }
        let mut limit = None;
        if !is_over && starting.is_none() && crew.len() < engine.processes {
            let in_vain = engine.lock().idle_deaths.saturating_sub(IDLE_DEATHS);
            let next_start = last_start + pause_after(failed_starts).max(pause_after(in_vain));
            let left = next_start.saturating_duration_since(Instant::now());
            if left.is_zero() {
                number = free_number(engine, number);
                last_start = Instant::now();
                starting = Some(start(engine, &starter, number));
                continue;
            }
            limit = Some(left);
        }
        let mut processes: Vec<_> = crew.iter().map(|(_, process)| Arc::clone(process)).collect();
        if can_not_reap {
            // The descriptor would be readable at once, again and again.
            processes.clear();
            limit = Some(RETRY);
        }
        sees_end = await_news(engine, &processes, limit);
    }
    say_end(engine, &replies);
}

/// Ends the collector.
pub(crate) fn say_end(engine: &Engine, replies: &BytesQueue) {
    engine.lock().may_end = true;
    say(engine, replies, ReplyHead::of_worker(END, 0));
}

/// The parent's words to itself.
fn say(engine: &Engine, replies: &BytesQueue, head: ReplyHead) {
    // The collector receives until END, so there will be room, unless the memory is damaged.
    if let Err(why) = replies.send_timeout(&head.to_bytes(), PATIENCE) {
        engine.end(PoolError::Damaged(why.to_string()));
        // The collector waits no longer.
        let _ = replies.close();
    }
}

/// Waits until the supervisor is notified, a worker has ended, or the time is up; true if a worker has.
fn await_news(engine: &Engine, crew: &[Arc<Process<()>>], limit: Option<Duration>) -> bool {
    let mut polled: Vec<_> = std::iter::once(engine.poke.as_fd())
        .chain(crew.iter().map(|process| process.as_fd()))
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    let limit = limit
        .map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) });
    if poll(&mut polled, limit.as_ref()).is_err() {
        // Interrupted, or something is short: not at once.
        thread::sleep(RETRY);
        return false;
    }
    if !polled[0].revents().is_empty() {
        let _ = rustix::io::read(&engine.poke, &mut [0; 8]);
    }
    polled[1..].iter().any(|process| !process.revents().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_starts_are_in_vain_the_longer_is_the_pause() {
        assert_eq!(pause_after(0), Duration::ZERO);
        assert_eq!([1, 2, 3].map(pause_after), [PAUSE, 2 * PAUSE, 4 * PAUSE]);
        assert_eq!(pause_after(u32::MAX), 128 * PAUSE);
    }
}
