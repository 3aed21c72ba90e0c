//! The supervisor: the thread that starts workers, sees them end, and starts others in their place.
//!
//! It is the only one who starts and reaps. What an end means for tasks is the collector's business (`Engine`), to whom it says DIED
//! when the worker has ended, so behind everything that the worker said.

use std::sync::Arc;
use std::time::Duration;

use crossproc_primitives::{BytesQueue, RawArray};
use crossproc_process::{Handed, Process, Stdio};

use crate::PoolError;
use crate::builder::Recipe;
use crate::engine::{Engine, await_news};
use crate::wire::{DIED, END, LAST_WORKER, ReplyHead};
use crate::worker::{Initializer, Orders, work};

/// So often in a row a start may fail.
const FAILED_STARTS: u32 = 8;
/// Between failed starts; twice as long each time.
const PAUSE: Duration = Duration::from_millis(5);

/// Starts workers.
pub(crate) struct Starter {
    pub(crate) recipe: Recipe,
    pub(crate) tasks: BytesQueue,
    pub(crate) replies: BytesQueue,
    pub(crate) words: RawArray<u64>,
    pub(crate) last_number: u32,
}

impl Starter {
    pub(crate) fn new(recipe: Recipe, tasks: BytesQueue, replies: BytesQueue, words: RawArray<u64>) -> Self {
        Self { recipe, tasks, replies, words, last_number: 0 }
    }

    /// Starts one worker, and notes it.
    pub(crate) fn start(&mut self, engine: &Engine) -> Result<Arc<Process<()>>, String> {
        let number = self.free_number(engine);
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
        engine.lock().hire(number, Arc::clone(&process));
        self.last_number = number;
        Ok(process)
    }

    /// A number that no worker has.
    fn free_number(&self, engine: &Engine) -> u32 {
        let state = engine.lock();
        let mut number = self.last_number;
        loop {
            number = number % LAST_WORKER + 1;
            if state.crew.iter().all(|worker| worker.number != number) {
                return number;
            }
        }
    }
}

/// The supervisor's thread; returns when no worker is left and none will be started.
pub(crate) fn supervise(engine: &Engine, mut starter: Starter, mut crew: Vec<(u32, Arc<Process<()>>)>) {
    let mut failed_starts = 0;
    loop {
        crew.retain(|(number, process)| {
            let has_ended = process.exit_status().is_some();
            if has_ended {
                say(&starter.replies, ReplyHead::of_worker(DIED, *number));
            }
            !has_ended
        });
        let is_over = engine.needs_nobody();
        if is_over && crew.is_empty() {
            break;
        }
        let mut limit = None;
        if !is_over && crew.len() < engine.processes {
            match starter.start(engine) {
                Ok(process) => {
                    failed_starts = 0;
                    crew.push((starter.last_number, process));
                    continue;
                }
                Err(_) if failed_starts < FAILED_STARTS => {
                    limit = Some(PAUSE * 2_u32.pow(failed_starts));
                    failed_starts += 1;
                }
                Err(error) => {
                    engine.end(PoolError::CannotStart(error));
                    continue;
                }
            }
        }
        let processes: Vec<_> = crew.iter().map(|(_, process)| Arc::clone(process)).collect();
        await_news(engine, &processes, limit);
    }
    say(&starter.replies, ReplyHead::of_worker(END, 0));
}

/// The parent's words to itself.
fn say(replies: &BytesQueue, head: ReplyHead) {
    // The collector receives until END, so there will be room.
    let _ = replies.send(&head.to_bytes());
}
