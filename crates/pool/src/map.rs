//! Many calls at once: `map_async` and `imap`.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};

use crate::batch::{Results, first_items, push_argument};
use crate::callbacks::Callback;
use crate::engine::{Batch, Engine};
use crate::job::{Job, Outcome, Progress};
use crate::task::waiting_methods;
use crate::{PoolError, TaskError};

/// The calls of one `map`: what [`Pool::map_async`](crate::Pool::map_async) returns, Python's `MapResult`.
///
/// Each item has an outcome of its own. Dropping this gives up the outcomes, not the work. It is a [`Future`], with what [`get`](Self::get)
/// returns.
#[must_use = "whether the calls succeeded is known by their handle only"]
pub struct MapTask<R> {
    engine: Arc<Engine>,
    job: Arc<Job>,
    result: PhantomData<fn() -> R>,
}

waiting_methods!(MapTask);

impl<R> MapTask<R> {
    /// Cancels the items that no worker has begun, and those in a chunk with them; returns how many. Their outcome is
    /// [`TaskError::Cancelled`].
    pub fn cancel(&self) -> u64 {
        self.engine.cancel(&self.job)
    }
}

impl<R: DeserializeOwned> MapTask<R> {
    /// Waits for all outcomes; returns the results, in the order of the items.
    ///
    /// # Errors
    ///
    /// The first error in the order of the items; only when all have an outcome, as in Python.
    pub fn get(self) -> Result<Vec<R>, TaskError> {
        self.wait();
        all_or_first_error(&self.job)
    }

    /// What [`get`](Self::get) returns, if all have an outcome, each time it is asked for.
    #[must_use]
    pub fn try_get(&self) -> Option<Result<Vec<R>, TaskError>> {
        self.is_done().then(|| all_or_first_error(&self.job))
    }

    /// Waits for all outcomes, at most for `limit`; `None` if not all are there then.
    #[must_use]
    pub fn get_timeout(&self, limit: Duration) -> Option<Result<Vec<R>, TaskError>> {
        self.wait_timeout(limit).then(|| all_or_first_error(&self.job))
    }

    /// True if all have a result, and none an error; `None` while not all have an outcome.
    #[must_use]
    pub fn is_successful(&self) -> Option<bool> {
        self.try_get().map(|outcome| outcome.is_ok())
    }

    /// Waits for all outcomes; returns them in the order of the items.
    #[must_use]
    pub fn get_each(self) -> Vec<Result<R, TaskError>> {
        self.wait();
        let mut each = Vec::new();
        for outcome in self.job.outcomes() {
            let mut reader = Reader::new(outcome);
            each.extend(std::iter::from_fn(|| reader.next()));
        }
        each
    }

    /// Calls `callback` with what [`get`](Self::get) would return when that is there; see [`Task::on_done`](crate::Task::on_done).
    pub fn on_done(&self, callback: impl FnOnce(Result<Vec<R>, TaskError>) + Send + 'static) {
        let job = Arc::clone(&self.job);
        let callback = Callback(Box::new(move || callback(all_or_first_error(&job))));
        if let Some(callback) = self.job.call_when_done(callback) {
            self.engine.callbacks.call(callback);
        }
    }
}

fn all_or_first_error<R: DeserializeOwned>(job: &Job) -> Result<Vec<R>, TaskError> {
    let items = job.progress().total as usize;
    let mut all = Vec::with_capacity(items);
    for outcome in job.outcomes() {
        Results(outcome.results.as_ref().map_err(TaskError::clone)?).all(outcome.items, &mut all)?;
    }
    debug_assert_eq!(all.len(), items, "an outcome was taken away");
    Ok(all)
}

impl<R: DeserializeOwned> Future for MapTask<R> {
    type Output = Result<Vec<R>, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.job.is_done_or_wakes(context.waker()) {
            Poll::Ready(all_or_first_error(&self.job))
        } else {
            Poll::Pending
        }
    }
}

/// Reads the items of one chunk.
struct Reader {
    outcome: Arc<Outcome>,
    /// Items that have not been read.
    left: u32,
    /// Bytes that have been read.
    at: usize,
}

impl Reader {
    fn new(outcome: Arc<Outcome>) -> Self {
        Self { left: outcome.items, outcome, at: 0 }
    }

    fn next<R: DeserializeOwned>(&mut self) -> Option<Result<R, TaskError>> {
        self.left = self.left.checked_sub(1)?;
        Some(match &self.outcome.results {
            Err(error) => Err(error.clone()),
            Ok(bytes) => {
                let mut results = Results(&bytes[self.at..]);
                let result = results.next();
                self.at = bytes.len() - results.0.len();
                result
            }
        })
    }
}

/// Calls of a function with what an iterator brings, made ahead of whoever takes the results: what [`Pool::imap`](crate::Pool::imap) and
/// [`Pool::imap_unordered`](crate::Pool::imap_unordered) return.
///
/// The iterator is asked for items only from within [`next`](Iterator::next), and only for so many that
/// [`look_ahead`](Self::look_ahead) of them have been given to the pool and their results not taken: so it may be endless. Dropping this
/// cancels what has not been begun.
#[must_use = "it calls nothing before results are taken"]
pub struct Imap<I, R> {
    engine: Arc<Engine>,
    job: Arc<Job>,
    /// `None` when it has ended.
    items: Option<I>,
    chunk_size: usize,
    look_ahead: usize,
    /// Items that were given to the pool and not taken from it.
    outstanding: usize,
    /// What is being read.
    current: Option<Reader>,
    /// Why the pool took no more.
    refused: Option<PoolError>,
    result: PhantomData<fn() -> R>,
}

/// A result did not come in time; it still will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the next result did not come in time; ask again later")
    }
}

impl std::error::Error for TimedOut {}

impl<I, R> Imap<I, R> {
    pub(crate) fn new(engine: Arc<Engine>, job: Arc<Job>, items: I) -> Self {
        let look_ahead = 32.max(8 * engine.processes);
        Self {
            engine,
            job,
            items: Some(items),
            chunk_size: 1,
            look_ahead,
            outstanding: 0,
            current: None,
            refused: None,
            result: PhantomData,
        }
    }

    /// So many items make one task. Default: 1. More are faster if the function is quick.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn chunk_size(mut self, items: usize) -> Self {
        assert!(items > 0, "a chunk has one item at least");
        self.chunk_size = items;
        self
    }

    /// So many items, one chunk at least, may be ahead of the results taken. Default: 8 for each worker, 32 at least.
    pub fn look_ahead(mut self, items: usize) -> Self {
        self.look_ahead = items;
        self
    }

    /// How many results are there, taken or not, and how many items have been given to the pool so far.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.job.progress()
    }
}

impl<I, A, R> Imap<I, R>
where
    I: Iterator<Item = A>,
    A: Serialize,
    R: DeserializeOwned,
{
    /// The next result, or why there is none for an item; `None` when all have been taken. Waits at most for `limit` (but for the
    /// iterator as long as that takes).
    ///
    /// # Errors
    ///
    /// [`TimedOut`].
    pub fn next_timeout(&mut self, limit: Duration) -> Result<Option<Result<R, TaskError>>, TimedOut> {
        self.next_until(Instant::now().checked_add(limit))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Result<R, TaskError>>, TimedOut> {
        self.look();
        // While results are there, two chunks for each that is taken, so that a slow iterator does not keep them back.
        let mut given = 0;
        while (given < 2 || self.current.is_none()) && self.give_chunk() {
            given += 1;
            self.look();
        }
        while self.current.is_none() {
            if self.outstanding == 0 {
                return Ok(self.refused.take().map(|why| Err(why.into())));
            }
            self.current = Some(Reader::new(self.job.next(deadline).ok_or(TimedOut)?));
        }
        self.outstanding -= 1;
        let result = self.current.as_mut().and_then(Reader::next);
        self.current.take_if(|current| current.left == 0);
        Ok(result)
    }

    /// Takes the next chunk up if it is there.
    fn look(&mut self) {
        if self.current.is_none() {
            self.current = self.job.try_next().map(Reader::new);
        }
    }

    /// Gives the pool one more chunk; false if it may not have more, or there is none.
    fn give_chunk(&mut self) -> bool {
        let room = self.look_ahead.saturating_sub(self.outstanding);
        let Some(items) = self.items.as_mut().filter(|_| room >= self.chunk_size || self.outstanding == 0)
        else {
            return false;
        };
        let mut arguments = Vec::new();
        items.take(self.chunk_size).for_each(|item| push_argument(&mut arguments, &item));
        let (end, items) = first_items(&arguments, usize::MAX, usize::MAX);
        if (items as usize) < self.chunk_size {
            self.items = None;
        }
        if items == 0 {
            return false;
        }
        match submit(&self.engine, &self.job, arguments, vec![(end, items)]) {
            Ok(()) => self.outstanding += items as usize,
            Err(why) => {
                self.items = None;
                self.refused = Some(why);
            }
        }
        self.items.is_some()
    }
}

/// Gives chunks of a job to the pool.
pub(crate) fn submit(
    engine: &Engine,
    job: &Arc<Job>,
    arguments: Vec<u8>,
    chunks: Vec<(usize, u32)>,
) -> Result<(), PoolError> {
    engine.submit(Batch { job: Arc::clone(job), arguments, chunks, first: 0, sent: 0 })
}

impl<I, A, R> Iterator for Imap<I, R>
where
    I: Iterator<Item = A>,
    A: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_until(None).ok().flatten()
    }
}

impl<I, R> Drop for Imap<I, R> {
    fn drop(&mut self) {
        self.engine.cancel(&self.job);
    }
}

impl<I, R> fmt::Debug for Imap<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap")
            .field("outstanding", &self.outstanding)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}
