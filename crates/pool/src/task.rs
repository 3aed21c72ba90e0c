//! What a caller holds of work that it has given to a pool.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::TaskError;
use crate::batch::Results;
use crate::callbacks::Callback;
use crate::engine::Engine;
use crate::job::{Job, Progress};

/// A call that a pool was asked to make: what [`Pool::submit`](crate::Pool::submit) returns, Python's `AsyncResult`.
///
/// It has exactly one outcome, whatever happens: the result, or a [`TaskError`]. Dropping it gives up the outcome, not the task.
///
/// It is also a [`Future`], on every runtime:
///
/// ```
/// # fn block_on<F: std::future::Future>(f: F) -> F::Output {
/// #     struct Unpark(std::thread::Thread);
/// #     impl std::task::Wake for Unpark {
/// #         fn wake(self: std::sync::Arc<Self>) { self.0.unpark() }
/// #     }
/// #     let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
/// #     let mut f = std::pin::pin!(f);
/// #     loop {
/// #         match f.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
/// #             std::task::Poll::Ready(output) => return output,
/// #             std::task::Poll::Pending => std::thread::park(),
/// #         }
/// #     }
/// # }
/// use crossproc_pool::Pool;
///
/// let pool = Pool::builder().processes(1).build()?;
/// let (a, b) = (pool.submit(|n: u32| n + 1, 1)?, pool.submit(|n: u32| n + 1, 2)?);
/// let sum = block_on(async { Ok::<_, crossproc_pool::TaskError>(a.await? + b.await?) });
/// assert_eq!(sum?, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "whether the task succeeded is known by its handle only"]
pub struct Task<R> {
    engine: Arc<Engine>,
    job: Arc<Job>,
    result: PhantomData<fn() -> R>,
}

/// Methods that both handles have.
macro_rules! waiting_methods {
    ($handle:ident) => {
        impl<R> $handle<R> {
            pub(crate) fn new(engine: Arc<Engine>, job: Arc<Job>) -> Self {
                Self { engine, job, result: PhantomData }
            }

            /// Waits until there is an outcome.
            pub fn wait(&self) {
                self.job.wait(None);
            }

            /// Waits until there is an outcome, at most for `limit`; true if there is one.
            #[must_use]
            pub fn wait_timeout(&self, limit: Duration) -> bool {
                // A limit beyond the end of the clock is no limit.
                self.job.wait(Instant::now().checked_add(limit))
            }

            /// Waits until there is an outcome, at most until `deadline`; true if there is one.
            #[must_use]
            pub fn wait_deadline(&self, deadline: Instant) -> bool {
                self.job.wait(Some(deadline))
            }

            /// True if there is an outcome (Python's `ready`).
            #[must_use]
            pub fn is_done(&self) -> bool {
                self.job.is_done()
            }

            /// How many of its items have an outcome, and how many there are.
            #[must_use]
            pub fn progress(&self) -> Progress {
                self.job.progress()
            }
        }

        impl<R> fmt::Debug for $handle<R> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($handle))
                    .field("progress", &self.progress())
                    .finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use waiting_methods;

waiting_methods!(Task);

impl<R> Task<R> {
    /// Cancels the task if no worker has begun it. True if that came off: then its outcome is [`TaskError::Cancelled`]. A task that
    /// has been begun is not interrupted.
    pub fn cancel(&self) -> bool {
        self.engine.cancel(&self.job) > 0
    }
}

impl<R: DeserializeOwned> Task<R> {
    /// Waits for the outcome.
    ///
    /// # Errors
    ///
    /// Why there is no result: [`TaskError`].
    pub fn get(self) -> Result<R, TaskError> {
        self.wait();
        outcome(&self.job)
    }

    /// The outcome if it is there, each time it is asked for.
    #[must_use]
    pub fn try_get(&self) -> Option<Result<R, TaskError>> {
        self.is_done().then(|| outcome(&self.job))
    }

    /// Waits for the outcome, at most for `limit`; `None` if it is not there then.
    #[must_use]
    pub fn get_timeout(&self, limit: Duration) -> Option<Result<R, TaskError>> {
        self.wait_timeout(limit).then(|| outcome(&self.job))
    }

    /// True if there is a result, and no error; `None` while there is no outcome.
    #[must_use]
    pub fn is_successful(&self) -> Option<bool> {
        self.try_get().map(|outcome| outcome.is_ok())
    }

    /// Calls `callback` with the outcome when that is there, in a thread of the pool that does nothing else: others wait for it only
    /// if they are callbacks too, and a panic in it harms nobody. Any number can be given; [`Pool::join`](crate::Pool::join) waits for them.
    ///
    /// ```
    /// use crossproc_pool::Pool;
    ///
    /// let pool = Pool::builder().processes(1).build()?;
    /// let (sender, receiver) = std::sync::mpsc::channel();
    /// pool.submit(|n: u32| n * n, 7)?.on_done(move |square| sender.send(square).unwrap());
    /// assert_eq!(receiver.recv()?, Ok(49));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_done(&self, callback: impl FnOnce(Result<R, TaskError>) + Send + 'static) {
        let job = Arc::clone(&self.job);
        let callback = Callback(Box::new(move || callback(outcome(&job))));
        if let Some(callback) = self.job.call_when_done(callback) {
            self.engine.callbacks.call(callback);
        }
    }
}

/// Of a job with one item that is done.
fn outcome<R: DeserializeOwned>(job: &Job) -> Result<R, TaskError> {
    let outcome = job.only_outcome().expect("asked for when it is there");
    match &outcome.results {
        Ok(bytes) => Results(bytes).next(),
        Err(error) => Err(error.clone()),
    }
}

impl<R: DeserializeOwned> Future for Task<R> {
    type Output = Result<R, TaskError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.job.is_done_or_wakes(context.waker()) {
            Poll::Ready(outcome(&self.job))
        } else {
            Poll::Pending
        }
    }
}
