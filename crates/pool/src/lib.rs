//! A pool of worker processes that one death cannot break.
//!
//! ```
//! use crossproc_pool::Pool;
//!
//! let pool = Pool::builder().processes(2).build()?;
//! let cubes = pool.map(|n: u64| n.pow(3), 0..10)?;
//! assert_eq!(cubes, [0, 1, 8, 27, 64, 125, 216, 343, 512, 729]);
//!
//! // A task that kills its worker takes nothing else along.
//! let fatal = pool.submit(|()| -> () { std::process::abort() }, ())?;
//! let harmless = pool.submit(|text: String| text.len(), "seven".to_owned())?;
//! println!("{}", fatal.get().unwrap_err()); // worker 4711, which had the task, died: SIGABRT (signal 6)
//! assert_eq!(harmless.get()?, 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | Python | here |
//! |---|---|
//! | `apply` | [`Pool::apply`] |
//! | `apply_async`, `submit` | [`Pool::submit`], which returns a [`Task`]: `wait`, `get`, `is_done`, `is_successful`, `cancel`, `on_done`, and a `Future` |
//! | `map`, `starmap` | [`Pool::map`], [`Pool::map_chunked`], [`Pool::try_map`]: several arguments are a tuple |
//! | `map_async`, `starmap_async` | [`Pool::map_async`], [`Pool::map_async_chunked`], with progress |
//! | `imap`, `imap_unordered` | [`Pool::imap`], [`Pool::imap_unordered`], which look ahead only so far |
//! | `close`, `terminate`, `join` | the same; dropping terminates, as `with` does |
//! | `initializer`, `maxtasksperchild` | [`PoolBuilder::initializer`], [`PoolBuilder::max_tasks_per_child`] |
//! | a worker dies | its task fails, is tried again, or the pool ends: [`OnWorkerDeath`] |
//!
//! # What follows from how it works
//!
//! * Workers are [processes](crossproc_process) of this program in which `main` does not run. Their standard input is empty.
//! * A result is deserialised by whoever takes it, in its own thread. What can not be is an error of that task only.
//! * Nobody waits for anybody else's callback, and a panic in one is the end of that one only.
//! * A worker that is stopped (SIGSTOP) holds up the task that it has or is just taking. All others go on, but for
//!   [`close`](Pool::close) and [`join`](Pool::join), which wait until it has ended.
//! * A start that takes long (a fork server that is stopped) holds up nothing but the worker's place.
//! * A task that does not end is not interrupted; [`Pool::terminate`] ends it with its worker.
//!
//! # Where things are
//!
//! `wire.rs` has the protocol between parent and workers: read it first. `engine.rs` is the parent's state, `supervisor.rs` starts workers
//! and sees them die, `worker.rs` is the other side, `batch.rs` the form of arguments and results, `job.rs` collects outcomes. `pool.rs`,
//! `builder.rs`, `task.rs` and `map.rs` are what users see.
#![forbid(unsafe_code)]

mod batch;
mod builder;
mod callbacks;
mod engine;
#[cfg(test)]
mod engine_tests;
mod error;
mod job;
mod map;
mod pool;
mod supervisor;
mod task;
mod wire;
mod worker;

pub use builder::{OnWorkerDeath, PoolBuilder};
pub use error::{PoolError, TaskError};
pub use job::Progress;
pub use map::{Imap, MapTask, TimedOut};
pub use pool::Pool;
pub use task::Task;
