//! The pool, as its user sees it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossproc_process::portable::Portable;
use serde::{Serialize, de::DeserializeOwned};

use crate::batch::{Items, first_items, push_argument};
use crate::engine::Engine;
use crate::job::{Job, Order, Progress};
use crate::map::submit;
use crate::{Imap, MapTask, PoolBuilder, PoolError, Task, TaskError};

/// Worker processes that call functions of this program: Python's `Pool` and `ProcessPoolExecutor` in one.
///
/// Functions are plain functions, or closures that capture nothing, with one argument; several are a tuple (Python's `starmap` is
/// [`map`](Self::map) with such a function). Arguments and results are what serde and postcard can serialise, of any size up to
/// [`message_max`](PoolBuilder::message_max). Handles are given to all workers by an [`initializer`](PoolBuilder::initializer).
///
/// A worker that dies is replaced, and takes no more along than the task that it had: see [`OnWorkerDeath`](crate::OnWorkerDeath). All
/// methods can be called by several threads at once. Dropping a pool [terminates](Self::terminate) it; call [`close`](Self::close) and
/// [`join`](Self::join) before that to have everything finished. Workers end with the process that made the pool, however that ends.
///
/// A copy of that process (`fork`) has no part in the pool: calls are [`PoolError::NotParent`] there, or do nothing, and no handle that it
/// has inherited gets an outcome any more. (Waiting for one does not end.)
///
/// ```
/// use crossproc_pool::Pool;
///
/// fn power((base, exponent): (u64, u32)) -> u64 {
///     base.pow(exponent)
/// }
///
/// let pool = Pool::builder().processes(4).build()?;
/// assert_eq!(pool.map(|n: u32| n * n, 1..=10)?, [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]);
/// assert_eq!(pool.map(power, [(2, 10), (10, 3)])?, [1024, 1000]);
/// let task = pool.submit(power, (3, 3))?;
/// assert_eq!(task.get()?, 27);
/// pool.close();
/// pool.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pool {
    engine: Arc<Engine>,
}

/// An automatic chunk ends when its arguments have so many bytes.
const CHUNK_BYTES: usize = 4 << 20;

impl Pool {
    pub(crate) fn of(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// A pool with as many workers as can run at the same time here.
    ///
    /// # Errors
    ///
    /// As [`PoolBuilder::build`].
    pub fn new() -> Result<Self, PoolError> {
        Self::builder().build()
    }

    /// Settings for a pool: number of workers, initializer, what a death means, ..
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }

    /// Gives a call to the pool; does not wait (Python's `apply_async`, or `submit` of an executor).
    ///
    /// An argument that can not be serialised is an error of the task.
    ///
    /// # Errors
    ///
    /// [`PoolError`] if the pool takes no tasks any more.
    pub fn submit<A, R>(&self, function: fn(A) -> R, argument: A) -> Result<Task<R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let job = self.job(function, Order::AsSubmitted)?;
        let mut arguments = Vec::new();
        push_argument(&mut arguments, &argument);
        let end = arguments.len();
        submit(&self.engine, &job, arguments, vec![(end, 1)])?;
        Ok(Task::new(Arc::clone(&self.engine), job))
    }

    /// Calls a function in a worker, and waits for its result.
    ///
    /// # Errors
    ///
    /// Why there is none: [`TaskError`].
    pub fn apply<A, R>(&self, function: fn(A) -> R, argument: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.submit(function, argument)?.get()
    }

    /// Calls a function for each item, and waits for all results; they are in the order of the items.
    ///
    /// The items travel in chunks, so that each worker gets about four; a chunk ends earlier when its arguments have 4 MiB. What the results of
    /// a chunk have together is limited by [`message_max`](PoolBuilder::message_max): with very large results, take
    /// [`map_chunked`](Self::map_chunked).
    ///
    /// # Errors
    ///
    /// The first error in the order of the items; only when all have an outcome, as in Python. [`try_map`](Self::try_map) has them all.
    pub fn map<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.map_async(function, items)?.get()
    }

    /// As [`map`](Self::map), with so many items in a chunk: 1 for items that take long and differently long, more for quick ones.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// If `chunk_size` is 0.
    pub fn map_chunked<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
        chunk_size: usize,
    ) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.map_async_chunked(function, items, chunk_size)?.get()
    }

    /// Calls a function for each item, and waits until all have an outcome, which are in the order of the items.
    ///
    /// ```
    /// use crossproc_pool::{Pool, TaskError};
    ///
    /// let pool = Pool::builder().processes(2).build()?;
    /// let halves = pool.try_map(|n: u32| if n % 2 == 0 { n / 2 } else { panic!("{n} is odd") }, [4, 5])?;
    /// assert_eq!(halves[0], Ok(2));
    /// assert!(matches!(&halves[1], Err(TaskError::Panicked { message, .. }) if message == "5 is odd"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn try_map<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<Result<R, TaskError>>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Ok(self.map_async(function, items)?.get_each())
    }

    /// As [`map`](Self::map), without waiting for the results.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn map_async<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
    ) -> Result<MapTask<R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.start_map(function, items, None)
    }

    /// As [`map_chunked`](Self::map_chunked), without waiting for the results.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    ///
    /// # Panics
    ///
    /// If `chunk_size` is 0.
    pub fn map_async_chunked<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
        chunk_size: usize,
    ) -> Result<MapTask<R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        assert!(chunk_size > 0, "a chunk has one item at least");
        self.start_map(function, items, Some(chunk_size))
    }

    fn start_map<A, R>(
        &self,
        function: fn(A) -> R,
        items: impl IntoIterator<Item = A>,
        chunk_size: Option<usize>,
    ) -> Result<MapTask<R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let job = self.job(function, Order::AsSubmitted)?;
        let mut items = items.into_iter();
        // About four chunks for each worker, if it is known how many items there are.
        let fair = |items: usize| items.div_ceil(4 * self.engine.processes).max(1);
        let known = match (chunk_size, items.size_hint()) {
            (Some(given), _) => Some(given),
            (None, (least, most)) => (most == Some(least)).then(|| fair(least)),
        };
        // Who gives a size, gets it.
        let most_bytes = if chunk_size.is_some() { usize::MAX } else { CHUNK_BYTES };
        let submitted = match known {
            Some(chunk_size) => self.submit_in_pieces(&job, &mut items, chunk_size, most_bytes),
            None => {
                let mut arguments = Vec::new();
                let count = items.map(|item| push_argument(&mut arguments, &item)).count();
                let (mut chunks, mut end) = (Vec::new(), 0);
                while end < arguments.len() {
                    let (bytes, items) = first_items(&arguments[end..], fair(count), most_bytes);
                    end += bytes;
                    chunks.push((end, items));
                }
                submit(&self.engine, &job, arguments, chunks)
            }
        };
        if let Err(why) = submitted {
            self.engine.cancel(&job);
            return Err(why);
        }
        Ok(MapTask::new(Arc::clone(&self.engine), job))
    }

    /// So that the workers begin while further arguments are serialised.
    fn submit_in_pieces<A: Serialize>(
        &self,
        job: &Arc<Job>,
        items: &mut impl Iterator<Item = A>,
        chunk_size: usize,
        most_bytes: usize,
    ) -> Result<(), PoolError> {
        const PIECE: usize = 16 << 10;
        let mut is_all = false;
        while !is_all {
            let (mut arguments, mut chunks) = (Vec::with_capacity(PIECE), Vec::new());
            while !is_all && arguments.len() < PIECE {
                let (start, mut count) = (arguments.len(), 0);
                while count < chunk_size && arguments.len() - start < most_bytes {
                    let Some(item) = items.next() else {
                        is_all = true;
                        break;
                    };
                    push_argument(&mut arguments, &item);
                    count += 1;
                }
                if count > 0 {
                    chunks.push((arguments.len(), count as u32));
                }
            }
            if !chunks.is_empty() {
                submit(&self.engine, job, arguments, chunks)?;
            }
        }
        Ok(())
    }

    /// Calls a function for what an iterator brings, which may be endless; results come in the order of the items.
    ///
    /// ```
    /// use crossproc_pool::Pool;
    ///
    /// let pool = Pool::builder().processes(2).build()?;
    /// let squares = pool.imap(|n: u64| n * n, 1..)?;
    /// let sum: u64 = squares.take(4).collect::<Result<Vec<_>, _>>()?.iter().sum();
    /// assert_eq!(sum, 1 + 4 + 9 + 16);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit). Should the pool be closed later, that is an error in the place of the results that there are
    /// none of.
    pub fn imap<A, R, I>(&self, function: fn(A) -> R, items: I) -> Result<Imap<I::IntoIter, R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.start_imap(function, items, Order::AsSubmitted)
    }

    /// As [`imap`](Self::imap), but results come as soon as they are there, in any order.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn imap_unordered<A, R, I>(
        &self,
        function: fn(A) -> R,
        items: I,
    ) -> Result<Imap<I::IntoIter, R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        self.start_imap(function, items, Order::AsTheyCome)
    }

    fn start_imap<A, R, I>(
        &self,
        function: fn(A) -> R,
        items: I,
        order: Order,
    ) -> Result<Imap<I::IntoIter, R>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        I: IntoIterator<Item = A>,
    {
        let job = self.job(function, order)?;
        Ok(Imap::new(Arc::clone(&self.engine), job, items.into_iter()))
    }

    fn job<A, R>(&self, function: fn(A) -> R, order: Order) -> Result<Arc<Job>, PoolError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.engine.require_open()?;
        let function =
            Portable::new::<Items, A, R>(function).map_err(|error| PoolError::Function(error.to_string()))?;
        Ok(Arc::new(Job::new(function, order)))
    }

    /// How many items have an outcome, and how many were given to the pool, since it was made.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.engine.progress()
    }

    /// How many workers it has, or is about to have again.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.engine.processes
    }

    /// The process ids of the workers of this moment.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<u32> {
        if !self.engine.is_ours() {
            return Vec::new();
        }
        self.engine.lock().crew.iter().map(|worker| worker.process.pid()).collect()
    }

    /// Takes no more tasks; the workers end when those that there are have been done.
    pub fn close(&self) {
        self.engine.close();
    }

    /// Ends the workers at once (SIGKILL). What has no outcome fails with [`PoolError::Terminated`]. Does not wait for the workers: see
    /// [`join`](Self::join).
    pub fn terminate(&self) {
        self.engine.end(PoolError::Terminated);
    }

    /// Waits until all workers have ended, after [`close`](Self::close) or [`terminate`](Self::terminate), and all callbacks have been
    /// called (but the one that calls this, if a callback does).
    ///
    /// # Errors
    ///
    /// [`PoolError::StillOpen`] before that, [`PoolError::WouldDeadlock`] in a waker, which the pool's own thread runs.
    pub fn join(&self) -> Result<(), PoolError> {
        self.join_until(None).map(drop)
    }

    /// As [`join`](Self::join), at most for `limit` (callbacks as long as they take); true if all workers have ended.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn join_timeout(&self, limit: Duration) -> Result<bool, PoolError> {
        self.join_until(Instant::now().checked_add(limit))
    }

    fn join_until(&self, deadline: Option<Instant>) -> Result<bool, PoolError> {
        match self.engine.require_open() {
            Ok(()) => return Err(PoolError::StillOpen),
            Err(PoolError::NotParent) => return Err(PoolError::NotParent),
            Err(_) if self.engine.is_own_thread() => return Err(PoolError::WouldDeadlock),
            Err(_) => {}
        }
        let has_ended = self.engine.wait_for_end(deadline);
        if has_ended {
            self.engine.callbacks.finish(true);
        }
        Ok(has_ended)
    }
}

impl Drop for Pool {
    /// Terminates it, and waits until the workers are gone; not, if a waker drops it, which runs in the thread that would be waited for. In a
    /// copy (`fork`) of the process that made it, does nothing.
    fn drop(&mut self) {
        if self.engine.is_ours() {
            self.terminate();
            if !self.engine.is_own_thread() {
                self.engine.wait_for_end(None);
            }
            self.engine.callbacks.finish(false);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("processes", &self.processes())
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}
