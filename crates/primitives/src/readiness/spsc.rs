//! Waiting for the ends of an spsc queue without a thread.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::offset_of;
use std::sync::Arc;

use crossproc_atomic::{EventCount, heavy_fence};
use crossproc_ring::{BlockRing, BlockWords, Role};
use crossproc_segment::plain::Plain;

use super::{Readiness, Source, Still, WaitTarget, Waitable, Wakes, Watching};
use crate::spsc::{Consumer, PopError, Producer, PushError, Side};

/// When there is something to do for who has the role.
pub(super) fn source<T: Plain>(side: &Side<T>) -> Arc<Source> {
    let role = side.role;
    let at = match role {
        Role::Producer => offset_of!(BlockWords, not_full),
        Role::Consumer => offset_of!(BlockWords, not_empty),
    };
    let event = side.handle.place::<EventCount>(at as u64).expect("it is one of the ring's words");
    let (words, blocks, shape) = (side.handle.words.clone(), side.cells.words().clone(), side.shape);
    // Only one can have the role, so whoever waits there is told.
    Source::new(side.handle.segment(), event, Wakes::All, move |live| {
        let ring = BlockRing::new(&words, &blocks, shape);
        let is_ready = || {
            ring.is_closed()
                || match role {
                    Role::Producer => !ring.is_full(),
                    Role::Consumer => !ring.is_empty(),
                }
        };
        if is_ready() {
            return true;
        }
        if role == Role::Consumer {
            ring.before_sleeping(heavy_fence);
        }
        is_ready() || ring.is_abandoned(role.other(), live, || live.living() <= 1)
    })
}

impl<T: Plain> Producer<T> {
    /// Pushes an element, waiting for room as [`push`](Self::push) does: for tasks of any runtime.
    ///
    /// If the future is dropped before it is ready, the element was not pushed, and is dropped with it.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    pub fn push_async(&mut self, value: T) -> impl Future<Output = Result<(), PushError<T>>> + Unpin + '_ {
        let mut watching = Watching::default();
        let value = Still(value);
        poll_fn(move |cx| {
            let Self { side, ring, light, .. } = self;
            let Still(value) = &value;
            watching.poll(cx, || source(side), |effort| Self::push_now(side, ring, *light, *value, effort))
        })
    }

    /// A descriptor that becomes readable when there is room, for event loops: see [`Readiness`].
    ///
    /// It is ready as well when the consumer is gone: push with [`push_timeout`](Self::push_timeout) and
    /// [`Duration::ZERO`](std::time::Duration::ZERO), which says so. [`try_push`](Self::try_push) does not tell of a consumer that
    /// died: a loop with it would spin.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn writable(&self) -> io::Result<Readiness> {
        Readiness::new(source(&self.side))
    }
}

impl<T: Plain> Consumer<T> {
    /// Pops an element, waiting for one as [`pop`](Self::pop) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing: no element is popped before it is ready.
    ///
    /// # Errors
    ///
    /// As [`pop`](Self::pop).
    ///
    /// ```
    /// # use std::{future::Future, pin::pin, sync::Arc, task::{Context, Poll, Wake}, thread};
    /// # struct Unpark(thread::Thread);
    /// # impl Wake for Unpark { fn wake(self: Arc<Self>) { self.0.unpark() } }
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     let (mut future, waker) = (pin!(future), Arc::new(Unpark(thread::current())).into());
    /// #     loop {
    /// #         if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) { return done }
    /// #         thread::park();
    /// #     }
    /// # }
    /// let (mut producer, mut consumer) = crossproc_primitives::spsc::channel::<u32>(8)?;
    /// block_on(async {
    ///     producer.push_async(7).await?;
    ///     assert_eq!(consumer.pop_async().await?, 7);
    ///     Ok::<(), Box<dyn std::error::Error>>(())
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pop_async(&mut self) -> impl Future<Output = Result<T, PopError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            let Self { side, ring, .. } = self;
            watching.poll(cx, || source(side), |effort| Self::pop_now(side, ring, effort))
        })
    }

    /// A descriptor that becomes readable when there is an element, for event loops: see [`Readiness`].
    ///
    /// It is ready as well when the producer is gone: pop with [`pop_timeout`](Self::pop_timeout) and
    /// [`Duration::ZERO`](std::time::Duration::ZERO), which says so. [`try_pop`](Self::try_pop) does not tell of a producer that
    /// died: a loop with it would spin.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn readable(&self) -> io::Result<Readiness> {
        Readiness::new(source(&self.side))
    }
}

impl<T: Plain> Waitable for Producer<T> {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget::source(source(&self.side))
    }
}

impl<T: Plain> Waitable for Consumer<T> {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget::source(source(&self.side))
    }
}
