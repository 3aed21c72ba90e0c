//! How a pool is made.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use crossproc_primitives::{BytesQueue, BytesQueueOptions, RawArray};
use crossproc_process::portable::{Portable, catch};
use crossproc_process::{StartMethod, available_parallelism};
use crossproc_segment::{ErrorKind, handover};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Serialize, de::DeserializeOwned};

use crate::batch::{Items, push_argument};
use crate::engine::{Engine, slots_for};
use crate::supervisor::{Starter, say_end, supervise};
use crate::wire::Words;
use crate::{Pool, PoolError};

/// Workers at the most: each is a participant in the pool's memory.
const MOST: usize = 100;
/// Messages that need no more memory than the queues have from the start.
const INLINE: usize = 240;

/// What happens to a task whose worker dies: it is killed, crashes, or the task calls `exit`.
///
/// A task is what a worker takes at one time. Of a `map` that is a *chunk* of items: all items of the chunk share its fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnWorkerDeath {
    /// It fails with [`TaskError::WorkerDied`](crate::TaskError::WorkerDied). Nothing else is harmed.
    #[default]
    FailTask,
    /// Another worker begins it anew, at most so often; then it fails with [`TaskError::WorkerDied`](crate::TaskError::WorkerDied). For tasks
    /// that may be done more than once.
    Retry(u8),
    /// The death of any worker, idle or not, ends the pool, as Python's `ProcessPoolExecutor` has it: all that has no outcome yet fails with
    /// [`PoolError::WorkerDied`].
    FailPool,
}

impl OnWorkerDeath {
    pub(crate) fn retries(self) -> u32 {
        match self {
            Self::Retry(times) => times.into(),
            Self::FailTask | Self::FailPool => 0,
        }
    }
}

type Prepare = dyn Fn() -> Result<(Portable, Vec<u8>, Vec<OwnedFd>), String> + Send;

/// How workers are started.
pub(crate) struct Recipe {
    pub(crate) name: String,
    pub(crate) method: StartMethod,
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) max_tasks: Option<u64>,
    /// What the initializer is, with its argument as it is at this moment.
    pub(crate) initializer: Option<Box<Prepare>>,
}

/// The settings of a [`Pool`]; made by [`Pool::builder`].
///
/// ```
/// use crossproc_pool::{OnWorkerDeath, Pool};
///
/// let pool = Pool::builder()
///     .processes(2)
///     .env("LEVEL", "high")
///     .max_tasks_per_child(100)
///     .on_worker_death(OnWorkerDeath::Retry(3))
///     .build()?;
/// assert_eq!(pool.apply(|()| std::env::var("LEVEL").unwrap(), ())?, "high");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a builder starts nothing until `build` is called"]
pub struct PoolBuilder {
    processes: Option<usize>,
    on_death: OnWorkerDeath,
    message_max: usize,
    recipe: Recipe,
}

impl PoolBuilder {
    pub(crate) fn new() -> Self {
        let recipe = Recipe {
            name: "pool".into(),
            method: StartMethod::Spawn,
            environment: Vec::new(),
            current_dir: None,
            max_tasks: None,
            initializer: None,
        };
        Self { processes: None, on_death: OnWorkerDeath::default(), message_max: 1 << 30, recipe }
    }

    /// How many workers, 1 to 100. Default: [`available_parallelism`].
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = Some(processes);
        self
    }

    /// A function that each worker calls before its first task, the replacements of dead workers too.
    ///
    /// This is how *handles* (queues, locks, values) reach the workers: they travel in this argument, not in those of tasks. Where
    /// tasks find them again is a `static`.
    ///
    /// ```
    /// use std::sync::OnceLock;
    /// use crossproc_pool::Pool;
    /// use crossproc_primitives::Value;
    ///
    /// static HITS: OnceLock<Value<u32>> = OnceLock::new();
    ///
    /// let hits = Value::new(0_u32)?;
    /// let pool = Pool::builder()
    ///     .processes(2)
    ///     .initializer(|hits| HITS.set(hits).unwrap(), hits.clone())
    ///     .build()?;
    /// pool.map(|n: u32| drop(HITS.get().unwrap().fetch_add(n)), [1, 2, 3])?;
    /// assert_eq!(hits.get()?, 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// If it panics, or its argument can not be passed, the pool ends: tasks fail with [`PoolError::Initializer`], which says why. (Python
    /// starts worker after worker then, for ever.)
    pub fn initializer<A>(mut self, function: fn(A), argument: A) -> Self
    where
        A: Serialize + DeserializeOwned + Send + 'static,
    {
        self.recipe.initializer = Some(Box::new(move || {
            let portable = Portable::new::<Items, A, ()>(function).map_err(|error| error.to_string())?;
            let mut bytes = Vec::new();
            // Serialising runs code of others, here in a thread of the pool.
            let packed = catch(|| handover::pack(|| push_argument(&mut bytes, &argument)));
            let ((), descriptors) = packed.map_err(|panic| panic.message)?;
            Ok((portable, bytes, descriptors))
        }));
        self
    }

    /// So many tasks a worker does; then it ends, and another is started in its place. A chunk of a `map` counts as one, as in Python.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn max_tasks_per_child(mut self, tasks: u64) -> Self {
        assert!(tasks > 0, "a worker that may do no task is of no use");
        self.recipe.max_tasks = Some(tasks);
        self
    }

    /// What happens to the task of a worker that dies. Default: it fails.
    pub fn on_worker_death(mut self, policy: OnWorkerDeath) -> Self {
        self.on_death = policy;
        self
    }

    /// The workers are called this and a number. Default: "pool".
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.recipe.name = name.into();
        self
    }

    /// How workers are made. Default: [`StartMethod::Spawn`]. [`Fork`](crossproc_process::Fork) is an error of [`build`](Self::build): it copies
    /// a process amid what its threads do, and a pool has threads.
    pub fn start_method(mut self, method: impl Into<StartMethod>) -> Self {
        self.recipe.method = method.into();
        self
    }

    /// Sets an environment variable of the workers. The others are those of this process.
    pub fn env(mut self, variable: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.recipe.environment.push((variable.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable of the workers.
    pub fn env_remove(mut self, variable: impl AsRef<OsStr>) -> Self {
        self.recipe.environment.push((variable.as_ref().to_owned(), None));
        self
    }

    /// The directory in which the workers run. Default: that of this process.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.recipe.current_dir = Some(directory.into());
        self
    }

    /// The arguments of a task, and its results, have at most so many bytes. Default: 1 GiB. At most 2 GiB.
    ///
    /// So much address space, not memory, is reserved for each task that can be on its way, about a thousand. Where that much can not be had
    /// (`ulimit -v`), it is less, but not below 1 MiB.
    pub fn message_max(mut self, bytes: usize) -> Self {
        self.message_max = bytes.clamp(1 << 20, 1 << 31);
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// [`PoolError::CannotStart`] if a worker can not be started, for less than 1 or more than 100 workers, and for
    /// [`StartMethod::Fork`]. None is left then.
    pub fn build(self) -> Result<Pool, PoolError> {
        let Self { processes, on_death, message_max, recipe } = self;
        let processes = processes.unwrap_or_else(|| available_parallelism().get().min(MOST));
        if !(1..=MOST).contains(&processes) {
            let text = format!("it was to have {processes} of them; 1 to {MOST} are possible");
            return Err(PoolError::CannotStart(text));
        }
        if matches!(recipe.method, StartMethod::Fork(_)) {
            let text = "`StartMethod::Fork` copies a process amid what its threads do, and a pool has threads: use `Spawn` or `ForkServer`";
            return Err(PoolError::CannotStart(text.into()));
        }
        let slots = slots_for(processes);
        let [tasks, replies] = queues(slots, processes, message_max)?;
        let words = RawArray::new(slots).map_err(cannot_start)?;
        let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(cannot_start)?;
        let engine = Engine::new(processes, on_death, Words(words.clone()), tasks.clone(), poke);
        let engine = Arc::new(engine);
        let collecting = replies.clone();
        let starter = Starter { recipe, tasks, replies: replies.clone(), words };

        // If one fails, those before it are killed and reaped when `crew` and `engine` are dropped.
        let mut crew = Vec::new();
        for number in 1..=processes as u32 {
            crew.push((number, starter.start(&engine, number).map_err(PoolError::CannotStart)?));
        }
        let shared = Arc::clone(&engine);
        let collect = move || shared.collect(&collecting);
        let collector =
            thread::Builder::new().name("pool replies".into()).spawn(collect).map_err(cannot_start)?;
        let shared = Arc::clone(&engine);
        let supervise = move || {
            supervise(&shared, starter, crew);
            let _ = collector.join();
            shared.say_ended();
        };
        if let Err(error) = thread::Builder::new().name("pool workers".into()).spawn(supervise) {
            // The collector holds the workers, and nobody else will tell it to end.
            engine.end(cannot_start(&error));
            say_end(&engine, &replies);
            return Err(cannot_start(error));
        }
        Ok(Pool::of(engine))
    }
}

/// The queues, for messages as long as there is address space for.
fn queues(slots: usize, processes: usize, most: usize) -> Result<[BytesQueue; 2], PoolError> {
    let mut most = most;
    loop {
        let make = || {
            // The dead keep their lane until somebody finds them.
            let options = BytesQueueOptions::new(slots).lanes(2 * processes + 8);
            options.inline(INLINE).message_max(most).kept(16 << 10).anonymous()
        };
        match make().and_then(|tasks| Ok([tasks, make()?])) {
            Ok(queues) => return Ok(queues),
            Err(error) => {
                let is_size = matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::NoMemory);
                if !is_size || most <= 1 << 20 {
                    return Err(cannot_start(error));
                }
                most = (most / 4).max(1 << 20);
            }
        }
    }
}

fn cannot_start(error: impl fmt::Display) -> PoolError {
    PoolError::CannotStart(error.to_string())
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("processes", &self.processes)
            .field("on_worker_death", &self.on_death)
            .finish_non_exhaustive()
    }
}
