//! Waiting for queues without a thread.
//!
//! The futures of a handle borrow it exclusively: so they are `Send`, as it is, though a shared reference to it is not.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use crossproc_atomic::{EventCount, Liveness};
use crossproc_ring::{Exchange, ExchangeWords};
use crossproc_segment::plain::Plain;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Readiness, RingEnd, Source, Still, WaitTarget, Waitable, Wakes, Watching};
use crate::bytes_queue::{BytesMessage, BytesQueue};
use crate::joinable_queue::{JoinError, JoinableQueue, Task};
use crate::lock::Wait;
use crate::object_queue::{ObjectMessage, ObjectQueue};
use crate::queue::{Message, Queue};
use crate::shared_queue::{SharedObjectQueue, SharedQueue};
use crate::transfer::{RecvError, SendError};

const READY_TWICE: &str = "a future is not polled again once it was ready";

/// The descriptors of a queue.
macro_rules! descriptors {
    ($queue:ident $(<$param:ident $(: $bound:path $(, $any:path)?)?>)?, |$self:ident, $end:ident| $source:expr) => {
        impl $(<$param $(: $bound $(+ $any)?)?>)? $queue $(<$param>)? {
            fn end(&self, $end: RingEnd) -> Arc<Source> {
                let $self = self;
                $source
            }

            /// A descriptor that becomes readable when there is something to receive, for event loops: see [`Readiness`].
            ///
            /// It is ready as well when nobody is left who could send: receive with [`recv_timeout`](Self::recv_timeout) and
            /// [`Duration::ZERO`](std::time::Duration::ZERO), which says so (`PeerDied`). [`try_recv`](Self::try_recv) does not: a loop
            /// with it would spin.
            ///
            /// # Errors
            ///
            /// If there are no descriptors left.
            pub fn readable(&self) -> io::Result<Readiness> {
                Readiness::new(self.end(RingEnd::NotEmpty))
            }

            /// A descriptor that becomes *readable* when there is room to send, for event loops: see [`Readiness`].
            ///
            /// It is ready as well when nobody is left who could receive: send with [`send_timeout`](Self::send_timeout) and
            /// [`Duration::ZERO`](std::time::Duration::ZERO), which says so (`PeerDied`). [`try_send`](Self::try_send) does not: a loop
            /// with it would spin.
            ///
            /// # Errors
            ///
            /// If there are no descriptors left.
            pub fn writable(&self) -> io::Result<Readiness> {
                Readiness::new(self.end(RingEnd::NotFull))
            }
        }

        /// Ready if there is something to receive.
        impl $(<$param $(: $bound $(+ $any)?)?>)? Waitable for $queue $(<$param>)? {
            fn target(&self) -> WaitTarget<'_> {
                WaitTarget::source(self.end(RingEnd::NotEmpty))
            }
        }
    };
}

descriptors!(Queue<T: Plain>, |queue, end| queue.source(end));
descriptors!(JoinableQueue<T: Plain, AnyBitPattern>, |tasks, end| tasks.queue.source(end));
descriptors!(BytesQueue, |queue, end| queue.source(end));
descriptors!(ObjectQueue<T>, |queue, end| queue.bytes.source(end));
descriptors!(SharedQueue<T: Plain>, |queue, end| queue.0.with(|queue| queue.source(end)));
descriptors!(SharedObjectQueue<T>, |queue, end| queue.0.with(|queue| queue.bytes.source(end)));

impl<T: Plain> Queue<T> {
    /// Sends a value, waiting for room as [`send`](Self::send) does: for tasks of any runtime.
    ///
    /// If the future is dropped before it is ready, the value was not sent, and is dropped with it. It borrows the handle exclusively,
    /// so that it can move between threads; who wants to send and receive at the same time clones the handle.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_async(&mut self, value: T) -> impl Future<Output = Result<(), SendError<T>>> + Unpin + '_ {
        let (mut watching, value) = (Watching::default(), Still(value));
        poll_fn(move |cx| {
            let Still(value) = &value;
            watching.poll(
                cx,
                || self.source(RingEnd::NotFull),
                |effort| Some(self.send_now(value, effort)?.map_err(|unsent| unsent.with(*value))),
            )
        })
    }

    /// Receives the next message, waiting for one as [`recv`](Self::recv) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing: it has no message before it is ready, and a wake-up that was meant for it is passed on. Put it
    /// into a `select!`, or give it the time limit of the runtime. While it waits, it costs nobody a system call but who sends the message.
    ///
    /// The first future of a process that waits, of whatever kind, starts a thread, which sleeps for all of them. If none can be started (no
    /// more threads are allowed), a future that waits wakes its task at once, each time it is polled: nothing is lost, but the task is
    /// polled again and again until a thread can be had.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
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
    /// use crossproc_primitives::Queue;
    ///
    /// let mut queue = Queue::new(1)?;
    /// let mut sender = queue.clone();
    /// thread::spawn(move || block_on(async move {
    ///     sender.send_async(1_u32).await?;
    ///     sender.send_async(2).await // when there is room
    /// }));
    /// let sum = block_on(async { Ok::<_, crossproc_primitives::RecvError>(queue.recv_async().await? + queue.recv_async().await?) });
    /// assert_eq!(sum, Ok(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_async(&mut self) -> impl Future<Output = Result<T, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            watching.poll(cx, || self.source(RingEnd::NotEmpty), |effort| self.recv_now(effort))
        })
    }
}

impl<T: Plain + AnyBitPattern> Queue<T> {
    /// Receives the next message in place, waiting for one as [`recv_ref`](Self::recv_ref) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`recv_ref`](Self::recv_ref).
    ///
    /// # Panics
    ///
    /// The future, if it is polled again after it was ready.
    pub fn recv_ref_async(&mut self) -> impl Future<Output = Result<Message<'_, T>, RecvError>> + Unpin {
        let (mut watching, mut queue) = (Watching::default(), Some(self));
        poll_fn(move |cx| {
            let handle = queue.as_deref().expect(READY_TWICE);
            let received =
                watching.poll(cx, || handle.source(RingEnd::NotEmpty), |effort| handle.hand_now(effort));
            received.map(|received| {
                let queue: &Self = queue.take().expect(READY_TWICE);
                received.and_then(|received| queue.message(received))
            })
        })
    }
}

impl<T: Plain + AnyBitPattern> JoinableQueue<T> {
    /// Sends a task, waiting for room: as [`Queue::send_async`].
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_async(&mut self, task: T) -> impl Future<Output = Result<(), SendError<T>>> + Unpin + '_ {
        self.queue.send_async(task)
    }

    /// Receives the next task, waiting for one as [`recv`](Self::recv) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// The future, if it is polled again after it was ready.
    pub fn recv_async(&mut self) -> impl Future<Output = Result<Task<'_, T>, RecvError>> + Unpin {
        let (mut watching, mut tasks) = (Watching::default(), Some(self));
        poll_fn(move |cx| {
            let queue = &tasks.as_deref().expect(READY_TWICE).queue;
            let received =
                watching.poll(cx, || queue.source(RingEnd::NotEmpty), |effort| queue.hand_now(effort));
            received.map(|received| {
                let tasks: &Self = tasks.take().expect(READY_TWICE);
                received.and_then(|received| Ok(tasks.task(tasks.queue.message(received)?)))
            })
        })
    }

    /// Waits until every task that was sent has been done, as [`join`](Self::join) does: for tasks of any runtime.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join).
    pub fn join_async(&mut self) -> impl Future<Output = Result<(), JoinError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            watching.poll(
                cx,
                || self.finished(),
                |_| match self.join_within(Wait::Try) {
                    Err(JoinError::TimedOut) => None,
                    joined => Some(joined),
                },
            )
        })
    }

    /// Ready if all tasks have been done.
    fn finished(&self) -> Arc<Source> {
        let at = std::mem::offset_of!(ExchangeWords, finished) as u64;
        let event = self.handle().place::<EventCount>(at).expect("it is one of the ring's words");
        let (shape, placed) = self.queue.placed();
        Source::new(self.handle().segment(), event, Wakes::All, move |live| {
            let (words, claims, records, slots) = &placed;
            let ring = Exchange::new(&shape, words, claims, records, slots);
            let is_finished = || ring.is_finished(&ring.onlooker());
            is_finished() || {
                let alone = live.is_alone();
                ring.recover(live);
                alone && ring.lanes_claimed() <= 1 || is_finished()
            }
        })
    }
}

impl BytesQueue {
    /// Sends bytes, waiting for room as [`send`](Self::send) does: for tasks of any runtime.
    ///
    /// If the future is dropped before it is ready, they were not sent.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_async<'a>(
        &'a mut self,
        message: &'a [u8],
    ) -> impl Future<Output = Result<(), SendError<()>>> + Unpin + 'a {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            watching.poll(
                cx,
                || self.source(RingEnd::NotFull),
                |effort| {
                    self.send_now(message.len(), effort, |loan| {
                        loan.copy_from_slice(message);
                        Ok(())
                    })
                },
            )
        })
    }

    /// Receives the next message, waiting for one as [`recv`](Self::recv) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn recv_async(&mut self) -> impl Future<Output = Result<Vec<u8>, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            let received =
                watching.poll(cx, || self.source(RingEnd::NotEmpty), |effort| self.recv_now(effort));
            received.map(|received| Ok(self.message(received?)?.to_vec()))
        })
    }

    /// Receives the next message in place, waiting for one as [`recv_ref`](Self::recv_ref) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`recv_ref`](Self::recv_ref).
    ///
    /// # Panics
    ///
    /// The future, if it is polled again after it was ready.
    pub fn recv_ref_async(&mut self) -> impl Future<Output = Result<BytesMessage<'_>, RecvError>> + Unpin {
        let (mut watching, mut queue) = (Watching::default(), Some(self));
        poll_fn(move |cx| {
            let handle = queue.as_deref().expect(READY_TWICE);
            let received =
                watching.poll(cx, || handle.source(RingEnd::NotEmpty), |effort| handle.recv_now(effort));
            received.map(|received| {
                let queue: &Self = queue.take().expect(READY_TWICE);
                received.and_then(|received| queue.message(received))
            })
        })
    }
}

impl<T: Serialize> ObjectQueue<T> {
    /// Sends a value, waiting for room as [`send`](Self::send) does: for tasks of any runtime.
    ///
    /// If the future is dropped before it is ready, the value was not sent, and is dropped with it.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Panics
    ///
    /// The future, if it is polled again after it was ready.
    pub fn send_async(&mut self, value: T) -> impl Future<Output = Result<(), SendError<T>>> + Unpin + '_ {
        let (mut watching, mut value) = (Watching::default(), Still(Some(value)));
        poll_fn(move |cx| {
            let Still(value) = &mut value;
            let sent = {
                let value = value.as_ref().expect(READY_TWICE);
                watching.poll(
                    cx,
                    || self.bytes.source(RingEnd::NotFull),
                    |effort| self.send_now(value, effort),
                )
            };
            sent.map(|sent| {
                let value = value.take().expect(READY_TWICE);
                sent.map_err(|unsent| unsent.map(|()| value))
            })
        })
    }
}

impl<T: DeserializeOwned> ObjectQueue<T> {
    /// Receives the next message, waiting for one as [`recv`](Self::recv) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn recv_async(&mut self) -> impl Future<Output = Result<T, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            let received = watching.poll(
                cx,
                || self.bytes.source(RingEnd::NotEmpty),
                |effort| self.bytes.recv_now(effort),
            );
            received.map(|received| Ok(self.decoded(self.bytes.message(received?)?)?.into_inner()))
        })
    }

    /// Receives the next message and keeps it in the queue's memory, waiting for one as [`recv_ref`](Self::recv_ref) does: for tasks of any
    /// runtime.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`recv_ref`](Self::recv_ref).
    ///
    /// # Panics
    ///
    /// The future, if it is polled again after it was ready.
    pub fn recv_ref_async(
        &mut self,
    ) -> impl Future<Output = Result<ObjectMessage<'_, T>, RecvError>> + Unpin {
        let (mut watching, mut queue) = (Watching::default(), Some(self));
        poll_fn(move |cx| {
            let bytes = &queue.as_deref().expect(READY_TWICE).bytes;
            let received =
                watching.poll(cx, || bytes.source(RingEnd::NotEmpty), |effort| bytes.recv_now(effort));
            received.map(|received| {
                let queue: &Self = queue.take().expect(READY_TWICE);
                received.and_then(|received| queue.decoded(queue.bytes.message(received)?))
            })
        })
    }
}

impl<T: Plain> SharedQueue<T> {
    /// As [`Queue::send_async`], for tasks that share the queue. While it waits, it has no lane.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_async(&self, value: T) -> impl Future<Output = Result<(), SendError<T>>> + Unpin + '_ {
        let (mut watching, value) = (Watching::default(), Still(value));
        poll_fn(move |cx| {
            let Still(value) = &value;
            watching.poll(
                cx,
                || self.end(RingEnd::NotFull),
                |effort| {
                    let sent = self.0.with(|queue| queue.send_now(value, effort))?;
                    Some(sent.map_err(|unsent| unsent.with(*value)))
                },
            )
        })
    }

    /// As [`Queue::recv_async`], for tasks that share the queue. While it waits, it has no lane.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_async(&self) -> impl Future<Output = Result<T, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            watching.poll(
                cx,
                || self.end(RingEnd::NotEmpty),
                |effort| self.0.with(|queue| queue.recv_now(effort)),
            )
        })
    }
}

impl<T: Serialize> SharedObjectQueue<T> {
    /// As [`ObjectQueue::send_async`], for tasks that share the queue. While it waits, it has no lane.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn send_async(&self, value: T) -> impl Future<Output = Result<(), SendError<T>>> + Unpin + '_ {
        let (mut watching, mut value) = (Watching::default(), Still(Some(value)));
        poll_fn(move |cx| {
            let Still(value) = &mut value;
            let sent = {
                let value = value.as_ref().expect(READY_TWICE);
                watching.poll(
                    cx,
                    || self.end(RingEnd::NotFull),
                    |effort| self.0.with(|queue| queue.send_now(value, effort)),
                )
            };
            sent.map(|sent| {
                let value = value.take().expect(READY_TWICE);
                sent.map_err(|unsent| unsent.map(|()| value))
            })
        })
    }
}

impl<T: DeserializeOwned> SharedObjectQueue<T> {
    /// As [`ObjectQueue::recv_async`], for tasks that share the queue. While it waits, it has no lane.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_async(&self) -> impl Future<Output = Result<T, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            watching.poll(
                cx,
                || self.end(RingEnd::NotEmpty),
                |effort| {
                    self.0.with(|queue| {
                        let received = queue.bytes.recv_now(effort)?;
                        Some(received.and_then(|received| {
                            Ok(queue.decoded(queue.bytes.message(received)?)?.into_inner())
                        }))
                    })
                },
            )
        })
    }
}
