//! `SharedQueue<T>` and `SharedObjectQueue<T>`: one name for a queue that several threads of a process use.

use std::time::{Duration, Instant};

use crossproc_segment::plain::Plain;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::object_queue::ObjectQueue;
use crate::queue::Queue;
use crate::shared_handles::SharedHandles;
use crate::transfer::{RecvError, SendError, Unusable};

/// A [`Queue`] for several threads of this process at once: `Sync`.
///
/// It keeps a handle for each thread that uses it at the same time, made when it is first needed, so it takes as many lanes. Where a
/// thread can have a [`Queue`] of its own, that is faster by two atomic operations.
///
/// ```
/// let queue = crossproc_primitives::Queue::new(4)?.share();
/// std::thread::scope(|s| {
///     s.spawn(|| queue.send(7_u32).unwrap());
///     assert_eq!(queue.recv(), Ok(7));
/// });
/// # Ok::<(), crossproc_segment::Error>(())
/// ```
pub struct SharedQueue<T: Plain>(pub(crate) SharedHandles<Queue<T>>);

/// An [`ObjectQueue`] for several threads of this process at once: `Sync`. In all else as [`SharedQueue`].
///
/// ```
/// let queue = crossproc_primitives::ObjectQueue::new(4)?.share();
/// std::thread::scope(|s| {
///     s.spawn(|| queue.send("seven".to_owned()).unwrap());
///     assert_eq!(queue.recv().unwrap(), "seven");
/// });
/// # Ok::<(), crossproc_segment::Error>(())
/// ```
pub struct SharedObjectQueue<T>(pub(crate) SharedHandles<ObjectQueue<T>>);

/// The methods of a shared queue, each that of the queue, with a handle that no other thread uses meanwhile.
macro_rules! shared_methods {
    ($shared:ident, $queue:ident, [$($any:path)?], [$($sent:path)?], [$($received:path)?]) => {
        impl<T $(: $any)?> $shared<T> {
            pub(crate) fn new(origin: $queue<T>) -> Self {
                let lanes = origin.lanes();
                Self(SharedHandles::new(origin.without_lane(), lanes))
            }

            /// A handle for one thread, with a lane of its own.
            #[must_use]
            pub fn handle(&self) -> $queue<T> {
                self.0.another()
            }

            #[doc = concat!("As [`", stringify!($queue), "::close`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn close(&self) -> Result<bool, Unusable> {
                self.0.with($queue::close)
            }

            #[doc = concat!("As [`", stringify!($queue), "::len`].")]
            #[must_use]
            pub fn len(&self) -> usize {
                self.0.with($queue::len)
            }

            #[doc = concat!("As [`", stringify!($queue), "::is_empty`].")]
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.with($queue::is_empty)
            }
        }

        impl<T $(: $sent)?> $shared<T> {
            #[doc = concat!("As [`", stringify!($queue), "::send`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn send(&self, value: T) -> Result<(), SendError<T>> {
                self.0.with(|queue| queue.send(value))
            }

            #[doc = concat!("As [`", stringify!($queue), "::try_send`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
                self.0.with(|queue| queue.try_send(value))
            }

            #[doc = concat!("As [`", stringify!($queue), "::send_timeout`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendError<T>> {
                self.0.with(|queue| queue.send_timeout(value, timeout))
            }

            #[doc = concat!("As [`", stringify!($queue), "::send_deadline`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn send_deadline(&self, value: T, deadline: Instant) -> Result<(), SendError<T>> {
                self.0.with(|queue| queue.send_deadline(value, deadline))
            }
        }

        impl<T $(: $received)?> $shared<T> {
            #[doc = concat!("As [`", stringify!($queue), "::recv`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn recv(&self) -> Result<T, RecvError> {
                self.0.with($queue::recv)
            }

            #[doc = concat!("As [`", stringify!($queue), "::try_recv`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn try_recv(&self) -> Result<T, RecvError> {
                self.0.with($queue::try_recv)
            }

            #[doc = concat!("As [`", stringify!($queue), "::recv_timeout`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
                self.0.with(|queue| queue.recv_timeout(timeout))
            }

            #[doc = concat!("As [`", stringify!($queue), "::recv_deadline`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvError> {
                self.0.with(|queue| queue.recv_deadline(deadline))
            }
        }

        impl<T $(: $any)?> std::fmt::Debug for $shared<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.with(|queue| f.debug_tuple(stringify!($shared)).field(queue).finish())
            }
        }
    };
}

shared_methods!(SharedQueue, Queue, [Plain], [Plain], [Plain]);
shared_methods!(SharedObjectQueue, ObjectQueue, [], [Serialize], [DeserializeOwned]);
