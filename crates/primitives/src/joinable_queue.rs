//! `JoinableQueue<T>`: a queue whose messages are tasks, and a way to wait until all of them have been done.
//!
//! Nothing is counted. What is unfinished is there to be seen: in the ring, in the hand of who works on it, or in that of a dead
//! one, from where it goes to another. So the death of a worker, or of a process between two steps, leaves no count wrong.

use std::ops::Deref;
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_atomic::Liveness;
use crossproc_ring::ExchangeWords;
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ObjectKind, Segment};
use crossproc_sync::{WaitFailure, wait_for};

use crate::audit::Violation;
use crate::handle::{Handle, handle_serde};
use crate::lock::{Wait, before, within};
use crate::queue::{Message, Queue, QueueOptions};
use crate::transfer::{RecvError, SendError, Unusable};

/// A queue of tasks: Python's `JoinableQueue`.
///
/// Who receives a [`Task`] works on it and says [`done`](Task::done); [`join`](Self::join) waits until that has been said of all tasks.
/// A task that its worker did not finish comes back: to another worker, and marked ([`Task::deliveries`]), when the worker's process
/// dies or its handle to the queue is dropped.
///
/// After [`close`](Self::close) workers get `Closed` as soon as nothing is left to be received, though another may still be at work.
/// If that one dies, its task is received by whoever asks next: keep a receiver until [`join`](Self::join) has returned, or let
/// `join` say `PeerDied`.
///
/// Otherwise it is a [`Queue`], and a handle as that is. The handle has [`hands`](Queue::hands) for so many tasks at one time.
///
/// ```
/// use crossproc_primitives::JoinableQueue;
///
/// let tasks = JoinableQueue::new(10)?;
/// tasks.send(1_u32)?;
/// let task = tasks.recv()?;
/// assert!(!tasks.is_finished());
/// assert_eq!(*task, 1);
/// task.done();
/// tasks.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct JoinableQueue<T: Plain + AnyBitPattern> {
    pub(crate) queue: Queue<T>,
}

/// Why waiting for the last task ended without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// There were unfinished tasks until the deadline.
    TimedOut,
    /// There are unfinished tasks, and nobody is left who could do them.
    PeerDied,
    /// This process can not use the queue.
    Unusable(Unusable),
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut => f.write_str("there were unfinished tasks until the deadline"),
            Self::PeerDied => f.write_str(
                "there are unfinished tasks, and all other processes that used the queue are gone; receive them here",
            ),
            Self::Unusable(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}

const KIND: ObjectKind = ObjectKind::new("JoinableQueue");

impl QueueOptions {
    /// A [`JoinableQueue`] in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn joinable<T: Plain + AnyBitPattern>(self) -> Result<JoinableQueue<T>, Error> {
        Ok(JoinableQueue { queue: self.anonymous_of(KIND)? })
    }

    /// The [`JoinableQueue`] of this name, made if there is none.
    ///
    /// # Errors
    ///
    /// As [`in_segment`](Self::in_segment).
    pub fn joinable_in_segment<T: Plain + AnyBitPattern>(
        self,
        segment: &Segment,
        name: &str,
    ) -> Result<JoinableQueue<T>, Error> {
        Ok(JoinableQueue { queue: self.named_of(KIND, segment, name)? })
    }
}

impl<T: Plain + AnyBitPattern> JoinableQueue<T> {
    /// A queue for so many tasks, in an anonymous segment of its own; see [`QueueOptions::joinable`].
    ///
    /// # Errors
    ///
    /// As [`QueueOptions::anonymous`].
    pub fn new(capacity: usize) -> Result<Self, Error> {
        QueueOptions::new(capacity).joinable()
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Ok(Self { queue: Queue::attach_of(KIND, segment, index)? })
    }

    pub(crate) fn handle(&self) -> &Handle<ExchangeWords> {
        self.queue.handle()
    }

    /// Sends a task, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Queue::send`].
    #[inline]
    pub fn send(&self, task: T) -> Result<(), SendError<T>> {
        self.queue.send(task)
    }

    /// Sends a task if there is room.
    ///
    /// # Errors
    ///
    /// As [`Queue::try_send`].
    #[inline]
    pub fn try_send(&self, task: T) -> Result<(), SendError<T>> {
        self.queue.try_send(task)
    }

    /// Sends a task, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Queue::send_timeout`].
    pub fn send_timeout(&self, task: T, timeout: Duration) -> Result<(), SendError<T>> {
        self.queue.send_timeout(task, timeout)
    }

    /// Sends a task, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`Queue::send_deadline`].
    pub fn send_deadline(&self, task: T, deadline: Instant) -> Result<(), SendError<T>> {
        self.queue.send_deadline(task, deadline)
    }

    /// Receives the next task, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`Queue::recv_ref`].
    pub fn recv(&self) -> Result<Task<'_, T>, RecvError> {
        Ok(self.task(self.queue.recv_ref()?))
    }

    /// Receives the next task if there is one.
    ///
    /// # Errors
    ///
    /// As [`Queue::try_recv_ref`].
    pub fn try_recv(&self) -> Result<Task<'_, T>, RecvError> {
        Ok(self.task(self.queue.try_recv_ref()?))
    }

    /// Receives the next task, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Queue::recv_ref_timeout`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Task<'_, T>, RecvError> {
        Ok(self.task(self.queue.recv_ref_timeout(timeout)?))
    }

    /// Receives the next task, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`Queue::recv_ref_deadline`].
    pub fn recv_deadline(&self, deadline: Instant) -> Result<Task<'_, T>, RecvError> {
        Ok(self.task(self.queue.recv_ref_deadline(deadline)?))
    }

    pub(crate) fn task<'a>(&'a self, message: Message<'a, T>) -> Task<'a, T> {
        Task { queue: self, message: Some(message) }
    }

    /// Waits until every task that was sent has been done, as long as it takes.
    ///
    /// Tasks that this very handle has received and not done are waited for as well: for ever, if nobody else does them.
    ///
    /// # Errors
    ///
    /// See [`JoinError`]; never `TimedOut`.
    pub fn join(&self) -> Result<(), JoinError> {
        self.join_within(Wait::FOREVER)
    }

    /// Waits until every task that was sent has been done, at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), JoinError> {
        self.join_within(within(timeout))
    }

    /// Waits until every task that was sent has been done, until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`JoinError`].
    pub fn join_deadline(&self, deadline: Instant) -> Result<(), JoinError> {
        self.join_within(before(deadline))
    }

    /// True if there was a moment just now at which every task had been done.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.join_within(Wait::Try).is_ok()
    }

    pub(crate) fn join_within(&self, wait: Wait) -> Result<(), JoinError> {
        let unusable = JoinError::Unusable;
        let live = self.handle().live().ok_or(unusable(Unusable::NotAttached))?;
        let lane = self.queue.lane(live).map_err(unusable)?;
        let ring = self.queue.ring();
        let finished = wait_for(live, &self.handle().words.finished, wait, |effort| {
            let alone = effort.is_full() && {
                let alone = live.is_alone();
                ring.recover(live);
                alone && ring.is_last(lane)
            };
            if ring.is_finished(lane) { Some(Ok(())) } else { alone.then_some(Err(JoinError::PeerDied)) }
        });
        match finished {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock | WaitFailure::TimedOut) => Err(JoinError::TimedOut),
        }
    }

    /// As [`Queue::close`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn close(&self) -> Result<bool, Unusable> {
        self.queue.close()
    }

    /// How many tasks nobody had received a moment ago.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// True if there was no task a moment ago that nobody had received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// True if the queue was full a moment ago.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// True if it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// How many tasks it has room for. Never changes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.queue.segment()
    }

    /// As [`Queue::audit`].
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.queue.audit()
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinableQueue")
            .field("queue", &self.queue)
            .field("finished", &self.is_finished())
            .finish()
    }
}

handle_serde!(JoinableQueue<T: Plain, AnyBitPattern>);

/// A task that this handle has received; derefs to it.
///
/// If it is dropped without [`done`](Self::done), by a panic say, it stays this handle's, and comes back to others when the handle is
/// dropped or its process ends.
#[must_use = "a task that is not done is unfinished for as long as this handle lives"]
pub struct Task<'a, T: Plain + AnyBitPattern> {
    queue: &'a JoinableQueue<T>,
    /// Taken only on the way out.
    message: Option<Message<'a, T>>,
}

impl<T: Plain + AnyBitPattern> Task<'_, T> {
    /// The task is finished: Python's `task_done`.
    pub fn done(mut self) {
        drop(self.message.take());
        if let Some(live) = self.queue.handle().live() {
            self.queue.handle().words.finished.notify_after_store(live);
        }
    }

    /// How often the task was delivered, with this time: more than 1 if a worker died that had it.
    #[must_use]
    pub fn deliveries(&self) -> u8 {
        self.message.as_ref().map_or(0, Message::deliveries)
    }
}

impl<T: Plain + AnyBitPattern> Drop for Task<'_, T> {
    fn drop(&mut self) {
        std::mem::forget(self.message.take());
    }
}

impl<T: Plain + AnyBitPattern> Deref for Task<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.message.as_ref().expect("taken on the way out only")
    }
}

impl<T: Plain + AnyBitPattern + std::fmt::Debug> std::fmt::Debug for Task<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("task", &**self).field("deliveries", &self.deliveries()).finish()
    }
}
