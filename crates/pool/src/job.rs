//! A job: what one call of `submit`, `map` or `imap` asks for. It is cut into chunks, each of which is a task for a worker, and
//! collects their outcomes. It knows bytes only: who holds the typed handle decodes them, in a thread of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use crossproc_process::portable::Portable;

use crate::TaskError;
use crate::callbacks::Callback;

/// How far a job, or a pool, has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// So many items have an outcome, whatever it is.
    pub done: u64,
    /// So many there are, as far as is known.
    pub total: u64,
}

/// What came of a chunk: the bytes of its results, or why there are none for all of its items.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) items: u32,
    pub(crate) results: Result<Vec<u8>, TaskError>,
}

/// In which order outcomes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    AsSubmitted,
    AsTheyCome,
}

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) function: Portable,
    order: Order,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By number of the chunk, from `first` on; `AsTheyCome`: by when they came. Shared, so that they are read without the lock: reading
    /// runs the users' own code.
    outcomes: VecDeque<Option<Arc<Outcome>>>,
    first: u64,
    progress: Progress,
    /// Chunks without an outcome.
    open_chunks: u64,
    /// Threads that wait for all outcomes, or for the next one.
    waiting: Waiting,
    /// Of the future that the handle is, which was asked last with this one.
    waker: Option<Waker>,
    callbacks: Vec<Callback>,
}

#[derive(Debug, Default)]
struct Waiting {
    for_all: usize,
    for_next: usize,
}

/// What is to be done when the locks are released: to run the code of others.
#[derive(Debug, Default)]
pub(crate) struct Afterwards {
    pub(crate) wakers: Vec<Waker>,
    pub(crate) callbacks: Vec<Callback>,
}

impl Job {
    pub(crate) fn new(function: Portable, order: Order) -> Self {
        Self { function, order, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for the outcomes of further chunks, which have so many items; returns the number of the first.
    pub(crate) fn expect(&self, chunks: impl IntoIterator<Item = u32>) -> u64 {
        let mut state = self.lock();
        let number = state.first + state.outcomes.len() as u64;
        for items in chunks {
            state.progress.total += u64::from(items);
            state.open_chunks += 1;
            if self.order == Order::AsSubmitted {
                state.outcomes.push_back(None);
            }
        }
        number
    }

    /// Notes the outcome of a chunk.
    pub(crate) fn complete(&self, chunk: u64, outcome: Outcome, afterwards: &mut Afterwards) {
        let mut state = self.lock();
        state.progress.done += u64::from(outcome.items);
        state.open_chunks -= 1;
        match self.order {
            Order::AsTheyCome => state.outcomes.push_back(Some(Arc::new(outcome))),
            Order::AsSubmitted => {
                let place = (chunk - state.first) as usize;
                state.outcomes[place] = Some(Arc::new(outcome));
            }
        }
        if state.open_chunks == 0 {
            afterwards.wakers.extend(state.waker.take());
            afterwards.callbacks.append(&mut state.callbacks);
        }
        // The kernel is asked only if somebody sleeps.
        if state.waiting.for_next > 0 || (state.open_chunks == 0 && state.waiting.for_all > 0) {
            self.changed.notify_all();
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.lock().progress
    }

    pub(crate) fn is_done(&self) -> bool {
        self.lock().open_chunks == 0
    }

    /// Waits until all chunks have outcomes, or until the deadline; true if they have.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while state.open_chunks > 0 {
            state.waiting.for_all += 1;
            let (again, is_late) = self.sleep(state, deadline);
            state = again;
            state.waiting.for_all -= 1;
            if is_late {
                break;
            }
        }
        state.open_chunks == 0
    }

    /// True if all chunks have outcomes; otherwise `waker` will be woken when they have.
    pub(crate) fn is_done_or_wakes(&self, waker: &Waker) -> bool {
        // Cloned and dropped without the lock: a waker is code of others.
        let waker = waker.clone();
        let mut state = self.lock();
        let is_done = state.open_chunks == 0;
        let unused = if is_done { Some(waker) } else { state.waker.replace(waker) };
        drop(state);
        drop(unused);
        is_done
    }

    /// Runs `callback` when all chunks have outcomes; gives it back if they have.
    pub(crate) fn call_when_done(&self, callback: Callback) -> Option<Callback> {
        let mut state = self.lock();
        if state.open_chunks == 0 {
            return Some(callback);
        }
        state.callbacks.push(callback);
        None
    }

    /// All outcomes in turn; they stay, for whoever else asks (a callback). Only when all are there.
    pub(crate) fn outcomes(&self) -> Vec<Arc<Outcome>> {
        self.lock().outcomes.iter().flatten().cloned().collect()
    }

    /// The outcome of a job with one chunk, when it is there.
    pub(crate) fn only_outcome(&self) -> Option<Arc<Outcome>> {
        self.lock().outcomes.front().cloned().flatten()
    }

    /// The next outcome in the job's order, if it is there.
    pub(crate) fn try_next(&self) -> Option<Arc<Outcome>> {
        Self::pop(&mut self.lock())
    }

    /// Waits for the next outcome in the job's order until the deadline. To be called only while there are chunks that have
    /// not been taken.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Option<Arc<Outcome>> {
        let mut state = self.lock();
        loop {
            if let Some(outcome) = Self::pop(&mut state) {
                return Some(outcome);
            }
            state.waiting.for_next += 1;
            let (again, is_late) = self.sleep(state, deadline);
            state = again;
            state.waiting.for_next -= 1;
            if is_late {
                return Self::pop(&mut state);
            }
        }
    }

    fn pop(state: &mut State) -> Option<Arc<Outcome>> {
        let outcome = state.outcomes.front_mut()?.take()?;
        state.outcomes.pop_front();
        state.first += 1;
        Some(outcome)
    }

    fn sleep<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, State>, bool) {
        match deadline {
            None => (self.changed.wait(state).unwrap_or_else(PoisonError::into_inner), false),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let (state, waited) =
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                (state, waited.timed_out())
            }
        }
    }
}
