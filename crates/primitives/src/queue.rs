//! `Queue<T>`: any number of senders and receivers. Handles over the exchange ring of `crossproc-ring`, with sleeping.
//!
//! ```text
//!    0  the ring's words (384 bytes)
//!  384  claims, 8 bytes for each lane; records; slots; cells: each part begins on a pair of cache lines
//! ```
//!
//! Each handle claims a lane of the ring when it is made, and gives it back when it is dropped.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_ring::{Exchange, ExchangeWords, Hand, Lane, Refusal, Shape};
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Participants, Segment};
use crossproc_sync::Effort;

use crate::audit::Violation;
use crate::handle::{Handle, handle_serde, spec};
use crate::lock::{Wait, before, within};
use crate::readiness::{RingEnd, Source};
use crate::ring_handle::{Parts, Placements, RingHandle, Turn, Unsent, open_or_make, shape_of};
use crate::shared_queue::SharedQueue;
use crate::slab::{Copy, Slab};
use crate::transfer::{RecvError, SendError, Unusable};

/// How a [`Queue`] is made.
///
/// ```
/// use crossproc_primitives::QueueOptions;
///
/// let orders = QueueOptions::new(100).lanes(8).hands(4).anonymous::<u64>()?;
/// assert_eq!(orders.capacity(), 100);
/// # Ok::<(), crossproc_segment::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "options make nothing by themselves"]
pub struct QueueOptions {
    capacity: usize,
    lanes: usize,
    hands: usize,
}

impl QueueOptions {
    /// A queue for so many messages, with 32 lanes of 2 hands.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, lanes: 32, hands: 2 }
    }

    /// So many handles there can be at one time, in all processes.
    pub fn lanes(self, lanes: usize) -> Self {
        Self { lanes, ..self }
    }

    /// So many loans and received messages a handle can hold at one time. Each takes the memory of one message.
    pub fn hands(self, hands: usize) -> Self {
        Self { hands, ..self }
    }

    /// A queue in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// [`InvalidLength`](crossproc_segment::ErrorKind::InvalidLength) if a number is 0, there are more than 65536 lanes, 64 hands or, all in all,
    /// 4 194 304 cells (capacity + lanes x hands); otherwise if the segment can not be made.
    pub fn anonymous<T: Plain>(self) -> Result<Queue<T>, Error> {
        self.anonymous_of(KIND)
    }

    pub(crate) fn anonymous_of<T: Plain>(self, kind: ObjectKind) -> Result<Queue<T>, Error> {
        let shape = self.shape::<T>()?;
        Queue::of(Handle::anonymous(&made_of::<T>(kind, &shape), |fresh| {
            RingHandle::init(fresh, shape, HEAD)
        })?)
    }

    /// The queue of this name, made if there is none. One that is there already keeps its capacity, lanes and hands.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous), and as for all [`Objects`](crate::Objects).
    pub fn in_segment<T: Plain>(self, segment: &Segment, name: &str) -> Result<Queue<T>, Error> {
        self.named_of(KIND, segment, name)
    }

    pub(crate) fn named_of<T: Plain>(
        self,
        kind: ObjectKind,
        segment: &Segment,
        name: &str,
    ) -> Result<Queue<T>, Error> {
        let shape = self.shape::<T>()?;
        let made = made_of::<T>(kind, &shape);
        Queue::of(open_or_make(segment, name, &any_shape::<T>(kind), &made, |fresh| {
            RingHandle::init(fresh, shape, HEAD);
        })?)
    }

    fn shape<T: Plain>(self) -> Result<Shape, Error> {
        let shape = shape_of(self.capacity, self.lanes, self.hands)?;
        Ok(if Slab::<T>::INLINE { shape.inline() } else { shape })
    }
}

const KIND: ObjectKind = ObjectKind::new("Queue");

/// Where the ring's parts begin: behind its words.
const HEAD: u64 = size_of::<ExchangeWords>() as u64;

/// Where the cells end.
fn end<T: Plain>(shape: &Shape) -> u64 {
    let cells = if Slab::<T>::INLINE { 0 } else { shape.cells() as u64 };
    Parts::of(shape, HEAD).cells.saturating_add(cells.saturating_mul(Slab::<T>::STRIDE as u64))
}

/// What a queue of our own is.
fn made_of<T: Plain>(kind: ObjectKind, shape: &Shape) -> ObjectSpec {
    spec::<T>(kind, shape.capacity() as u64, end::<T>(shape))
}

/// What another process's queue must be.
fn any_shape<T: Plain>(kind: ObjectKind) -> ObjectSpec {
    spec::<T>(kind, 1, HEAD)
}

/// A queue for plain data, between any number of sending and receiving processes and threads: Python's `Queue`, without its
/// feeder thread, its pickling and its locks.
///
/// [`send`](Self::send) copies a value in and [`recv`](Self::recv) copies one out; [`loan`](Self::loan) and
/// [`recv_ref`](Self::recv_ref) do the same in place, without a copy. Messages are received in the order in which they were sent.
///
/// Sending and receiving are one atomic compare-and-swap each, on a slot of the ring, and no system call while both sides are
/// busy. There is no lock, and no moment at which a message is half in the queue: a process that is *stopped or killed* at any
/// instruction keeps nobody else from sending and receiving. A message whose sender had not finished is not there; one whose
/// receiver died while it had it is received once more, by somebody else, and says so ([`Message::deliveries`]). With
/// [`recv_ref`](Self::recv_ref) a receiver has a message until the guard is dropped, so nothing is ever lost; with
/// [`recv`](Self::recv) until it has been copied, so a receiver that is killed right then takes that one message with it.
///
/// A queue is a *handle*, used by one thread at a time (`Send`, not `Sync`): each has a lane of its own in the queue. Clone it for
/// another thread, hand it to another process, or [`share`](Self::share) it between threads. There are as many lanes as
/// [`QueueOptions::lanes`] says; who comes when all are taken gets [`Unusable::NoLane`] from what it tries to do.
///
/// `Closed` means that nothing is left in the queue. Another receiver may still have a message in its hand; if it dies with that,
/// the message is there to be received once more. A guard that is dropped by a panic counts as received (a [`Task`](crate::Task) does
/// not).
///
/// Waiting ends with `PeerDied` when there is no other handle left, in this process neither, and all other processes that were attached to the segment,
/// at least one since this process came, are gone.
///
/// A slot takes 16 bytes, a lane 128 or more. A message of at most 8 bytes travels in the slot (on x86-64); any other takes its size
/// rounded up to a power of two, or from 64 bytes on to a whole number of cache lines, and there is room for capacity + lanes x hands
/// of them.
///
/// ```
/// use crossproc_primitives::{Queue, RecvError};
///
/// let numbers = Queue::new(10)?;
/// numbers.send(1_u32)?;
/// numbers.send(2)?;
/// assert_eq!((numbers.recv()?, numbers.recv()?), (1, 2));
/// assert_eq!(numbers.try_recv(), Err(RecvError::Empty));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It is not `Sync`:
///
/// ```compile_fail,E0277
/// let queue = crossproc_primitives::Queue::<u32>::new(1).unwrap();
/// std::thread::scope(|s| s.spawn(|| queue.try_recv()).join());
/// ```
pub struct Queue<T: Plain> {
    ring: RingHandle,
    slab: Slab<T>,
}

impl<T: Plain> Queue<T> {
    /// A queue for so many messages, in an anonymous segment of its own; see [`QueueOptions`].
    ///
    /// # Errors
    ///
    /// As [`QueueOptions::anonymous`].
    pub fn new(capacity: usize) -> Result<Self, Error> {
        QueueOptions::new(capacity).anonymous()
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::attach_of(KIND, segment, index)
    }

    pub(crate) fn attach_of(kind: ObjectKind, segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &any_shape::<T>(kind))?)
    }

    fn of(handle: Handle<ExchangeWords>) -> Result<Self, Error> {
        Slab::<T>::check_cpu()?;
        let ring = RingHandle::of(handle, HEAD, Slab::<T>::INLINE)?;
        // Compared with the size of the object.
        let (start, end) = (ring.parts().cells, end::<T>(&ring.shape()));
        let slab = Slab::new(ring.handle.place_slice(start, end - start)?);
        Ok(Self { ring, slab })
    }

    pub(crate) fn handle(&self) -> &Handle<ExchangeWords> {
        &self.ring.handle
    }

    #[inline]
    pub(crate) fn ring(&self) -> Exchange<'_> {
        self.ring.ring()
    }

    #[inline]
    pub(crate) fn lane(&self, live: &Participants) -> Result<&Lane, Unusable> {
        self.ring.lane(live)
    }

    /// Sends a value, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `TimedOut`.
    #[inline]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_within(value, Wait::FOREVER)
    }

    /// Sends a value if there is room.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut` or `PeerDied`.
    #[inline]
    pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_within(value, Wait::Try)
    }

    /// Sends a value, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`.
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendError<T>> {
        self.send_within(value, within(timeout))
    }

    /// Sends a value, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`.
    pub fn send_deadline(&self, value: T, deadline: Instant) -> Result<(), SendError<T>> {
        self.send_within(value, before(deadline))
    }

    #[inline]
    fn send_within(&self, value: T, wait: Wait) -> Result<(), SendError<T>> {
        // In one piece, without a `Turn` that would go through memory: this is the way that has to be fast.
        if let Some(lane) = self.ring.own_lane() {
            let write = |hand: &mut Hand| self.slab.write(hand, &value);
            if self.ring().send_at_once(lane, write, |cell| self.slab.expect_write(cell)) {
                self.ring.notify_one(&self.ring.handle.words.not_empty);
                return Ok(());
            }
        }
        self.send_slowly(value, wait)
    }

    #[cold]
    #[inline(never)]
    fn send_slowly(&self, value: T, wait: Wait) -> Result<(), SendError<T>> {
        let mut turn = match self.ring.with_hand() {
            Ok(turn) => turn,
            Err(why) => return Err(SendError::Unusable(value, why)),
        };
        self.slab.write(&mut turn.hand, &value);
        let sent = turn.send(wait, |cell| self.slab.expect_write(cell));
        turn.put_back();
        sent.map_err(|unsent| unsent.with(value))
    }

    /// Sends values from the front of the slice as long as there is room; returns how many were sent.
    ///
    /// Each is a message of its own. Sleeping receivers are woken once.
    ///
    /// # Errors
    ///
    /// [`SendError::Closed`] or [`SendError::Unusable`] if none was sent for that reason.
    pub fn send_many(&self, values: &[T]) -> Result<usize, SendError<()>> {
        let mut turn = self.ring.with_hand().map_err(|why| SendError::Unusable((), why))?;
        let ring = self.ring();
        let mut sent = 0;
        let mut end = Ok(());
        for value in values {
            self.slab.write(&mut turn.hand, value);
            end = ring.send(turn.lane, &mut turn.hand, |cell| self.slab.expect_write(cell));
            if end.is_err() {
                break;
            }
            sent += 1;
        }
        if sent > 0 {
            self.ring
                .handle
                .words
                .not_empty
                .notify_some_after_rmw(turn.live, u32::try_from(sent).unwrap_or(u32::MAX));
        }
        turn.put_back();
        match end {
            Err(Refusal::Closed) if sent == 0 => Err(SendError::Closed(())),
            Err(Refusal::Damaged) if sent == 0 => Err(SendError::Unusable((), Unusable::Damaged)),
            _ => Ok(sent),
        }
    }

    /// Receives the next message, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_within(Wait::FOREVER)
    }

    /// Receives the next message if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `PeerDied`.
    #[inline]
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.recv_within(Wait::Try)
    }

    /// Receives the next message, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_within(within(timeout))
    }

    /// Receives the next message, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvError> {
        self.recv_within(before(deadline))
    }

    #[inline]
    fn recv_within(&self, wait: Wait) -> Result<T, RecvError> {
        if let Some(lane) = self.ring.own_lane() {
            let mut copy = Copy::new();
            let read = |hand: &Hand| self.slab.copy(hand, &mut copy);
            if self.ring().receive_at_once(lane, read, |cell| self.slab.expect_read(cell)) {
                self.ring.notify_one(&self.ring.handle.words.not_full);
                return copy.checked().map_err(RecvError::Invalid);
            }
        }
        self.recv_slowly(wait)
    }

    #[cold]
    #[inline(never)]
    fn recv_slowly(&self, wait: Wait) -> Result<T, RecvError> {
        let (turn, _) = self.receive(wait)?;
        let value = self.slab.read(&turn.hand);
        turn.release();
        value.map_err(RecvError::Invalid)
    }

    fn receive(&self, wait: Wait) -> Result<(Turn<'_>, u8), RecvError> {
        self.ring.receive(wait, |cell| self.slab.expect_read(cell))
    }

    /// One attempt to send, of a future: `None` if it would have to wait.
    pub(crate) fn send_now(&self, value: &T, effort: Effort) -> Option<Result<(), Unsent>> {
        let mut turn = match self.ring.with_hand() {
            Ok(turn) => turn,
            Err(why) => return Some(Err(Unsent::Unusable(why))),
        };
        self.slab.write(&mut turn.hand, value);
        let sent = turn.send_now(effort);
        turn.put_back();
        sent
    }

    /// One attempt to receive, of a future: `None` if it would have to wait.
    pub(crate) fn recv_now(&self, effort: Effort) -> Option<Result<T, RecvError>> {
        Some(self.ring.receive_now(effort)?.and_then(|(turn, _)| {
            let value = self.slab.read(&turn.hand);
            turn.release();
            value.map_err(RecvError::Invalid)
        }))
    }

    /// The same, in place: what [`message`](Self::message) takes.
    pub(crate) fn hand_now(&self, effort: Effort) -> Option<Result<(Hand, u8), RecvError>> {
        Some(self.ring.receive_now(effort)?.map(|(turn, deliveries)| (turn.hand, deliveries)))
    }

    pub(crate) fn message(&self, (hand, deliveries): (Hand, u8)) -> Result<Message<'_, T>, RecvError> {
        let turn = self.ring.resume(hand).map_err(RecvError::Unusable)?;
        Ok(Message { queue: self, turn: Some(turn), deliveries })
    }

    pub(crate) fn source(&self, end: RingEnd) -> Arc<Source> {
        self.ring.source(end)
    }

    pub(crate) fn placed(&self) -> (Shape, Placements) {
        (self.ring.shape(), self.ring.placed())
    }

    /// Receives the messages that are there, at most `limit`, and puts them at the end of `into`; returns how many.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; only if none was received.
    pub fn recv_many(&self, into: &mut Vec<T>, limit: usize) -> Result<usize, RecvError> {
        let before = into.len();
        while into.len() - before < limit {
            match self.try_recv() {
                Ok(value) => into.push(value),
                Err(why) if into.len() == before => return Err(why),
                Err(_) => break,
            }
        }
        Ok(into.len() - before)
    }

    /// Receives messages until the queue is closed and empty (or can not be used any more), waiting for each.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// Receives the messages that are there.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    /// A handle to be cloned, which has no lane itself.
    pub(crate) fn without_lane(mut self) -> Self {
        self.ring.leave();
        self
    }

    /// For several threads of this process. To hand it to another process, hand over a [`handle`](SharedQueue::handle).
    #[must_use]
    pub fn share(self) -> SharedQueue<T> {
        SharedQueue::new(self)
    }

    /// Closes the queue, for all: nothing is sent from now on, what is in it can be received. False if it was closed already.
    ///
    /// # Errors
    ///
    /// See [`Unusable`].
    pub fn close(&self) -> Result<bool, Unusable> {
        self.ring.close()
    }

    /// Closes the queue and throws away what is in it; returns how many messages that were.
    ///
    /// # Errors
    ///
    /// See [`Unusable`].
    pub fn shutdown(&self) -> Result<usize, Unusable> {
        self.close()?;
        let mut thrown_away = 0;
        loop {
            match self.try_recv() {
                Ok(_) | Err(RecvError::Invalid(_)) => thrown_away += 1,
                Err(RecvError::Unusable(why)) => return Err(why),
                Err(_) => return Ok(thrown_away),
            }
        }
    }

    /// How many messages were in the queue a moment ago; 0 if this process can not use it.
    ///
    /// Those that a receiver has in its hand, or had when it died, are not counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.look(|ring, lane| ring.len(lane)).unwrap_or(0)
    }

    /// True if the queue had no message a moment ago.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.look(|ring, lane| ring.is_empty(lane)).unwrap_or(true)
    }

    /// True if the queue was full a moment ago.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.ring.look(|ring, lane| ring.is_full(lane)).unwrap_or(false)
    }

    /// True if it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.ring.look(|ring, lane| ring.is_closed(lane)).unwrap_or(false)
    }

    /// How many messages it has room for. Never changes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ring.shape().capacity()
    }

    /// How many handles there can be at one time.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.ring.shape().lanes()
    }

    /// How many loans and received messages a handle can hold at one time.
    #[must_use]
    pub fn hands(&self) -> usize {
        self.ring.shape().hands()
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.ring.handle.segment()
    }

    /// Looks for words in shared memory that contradict each other. Changes nothing; exact while nobody uses it.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.ring().audit().map_err(Violation::new)
    }
}

impl<T: Plain + AnyBitPattern> Queue<T> {
    /// Room for a message that is written in place. Its first content is arbitrary: what was there before.
    ///
    /// A loan can be kept as long as one likes; it takes nothing from the queue's capacity. Nobody sees it before it is sent.
    ///
    /// ```
    /// let images = crossproc_primitives::Queue::<[u8; 4096]>::new(4)?;
    /// let mut image = images.loan()?;
    /// image.fill(7);
    /// image.send().map_err(|e| e.map(drop))?;
    /// assert_eq!(images.recv_ref()?[4095], 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Unusable`]; `NoHand` if this handle holds as many loans and messages as it may.
    pub fn loan(&self) -> Result<Loan<'_, T>, Unusable> {
        Ok(Loan { queue: self, turn: Some(self.ring.with_hand()?) })
    }

    /// Receives the next message in place, waiting for one as long as it takes. It counts as received when the guard is dropped.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    pub fn recv_ref(&self) -> Result<Message<'_, T>, RecvError> {
        self.recv_ref_within(Wait::FOREVER)
    }

    /// Receives the next message in place if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `PeerDied`.
    pub fn try_recv_ref(&self) -> Result<Message<'_, T>, RecvError> {
        self.recv_ref_within(Wait::Try)
    }

    /// Receives the next message in place, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<Message<'_, T>, RecvError> {
        self.recv_ref_within(within(timeout))
    }

    /// Receives the next message in place, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_ref_deadline(&self, deadline: Instant) -> Result<Message<'_, T>, RecvError> {
        self.recv_ref_within(before(deadline))
    }

    fn recv_ref_within(&self, wait: Wait) -> Result<Message<'_, T>, RecvError> {
        let (turn, deliveries) = self.receive(wait)?;
        Ok(Message { queue: self, turn: Some(turn), deliveries })
    }
}

/// Room for a message of a [`Queue`]; derefs to it. Dropping it sends nothing.
#[must_use = "a loan that is dropped is not sent"]
pub struct Loan<'a, T: Plain> {
    queue: &'a Queue<T>,
    /// Taken only on the way out.
    turn: Option<Turn<'a>>,
}

impl<'a, T: Plain> Loan<'a, T> {
    /// Sends the message, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `TimedOut`. The loan is in it, as it was.
    pub fn send(self) -> Result<(), SendError<Loan<'a, T>>> {
        self.send_within(Wait::FOREVER)
    }

    /// Sends the message if there is room.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut` or `PeerDied`. The loan is in it.
    pub fn try_send(self) -> Result<(), SendError<Loan<'a, T>>> {
        self.send_within(Wait::Try)
    }

    /// Sends the message, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`. The loan is in it.
    pub fn send_timeout(self, timeout: Duration) -> Result<(), SendError<Loan<'a, T>>> {
        self.send_within(within(timeout))
    }

    /// Sends the message, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`. The loan is in it.
    pub fn send_deadline(self, deadline: Instant) -> Result<(), SendError<Loan<'a, T>>> {
        self.send_within(before(deadline))
    }

    fn send_within(mut self, wait: Wait) -> Result<(), SendError<Loan<'a, T>>> {
        let turn = self.turn.as_mut().expect("taken on the way out only");
        // The hand has another, spare cell then; dropping the loan puts it back.
        let slab = &self.queue.slab;
        turn.send(wait, |cell| slab.expect_write(cell)).map_err(|unsent| unsent.with(self))
    }
}

impl<T: Plain> Drop for Loan<'_, T> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.put_back();
        }
    }
}

impl<T: Plain + AnyBitPattern> Deref for Loan<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        let turn = self.turn.as_ref().expect("taken on the way out only");
        self.queue.slab.get(&turn.hand)
    }
}

impl<T: Plain + AnyBitPattern> DerefMut for Loan<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        let turn = self.turn.as_mut().expect("taken on the way out only");
        self.queue.slab.get_mut(&mut turn.hand)
    }
}

/// A received message, in place; derefs to it. It counts as received when this is dropped.
///
/// If the process dies before that, somebody else receives the message once more. The same if this is leaked and the queue's
/// handle dropped.
#[must_use = "dropping it drops the message"]
pub struct Message<'a, T: Plain> {
    queue: &'a Queue<T>,
    /// Taken only on the way out.
    turn: Option<Turn<'a>>,
    deliveries: u8,
}

impl<T: Plain> Message<'_, T> {
    /// How often the message was delivered, with this time: more than 1 if a receiver died that had it. 255 is "or more".
    ///
    /// So a message that kills whoever works on it can be given up.
    #[must_use]
    pub fn deliveries(&self) -> u8 {
        self.deliveries
    }

    /// True if a receiver that had the message died, or gave it up: its handle went while the message was leaked.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.deliveries > 1
    }
}

impl<T: Plain> Drop for Message<'_, T> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.release();
        }
    }
}

impl<T: Plain + AnyBitPattern> Deref for Message<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        let turn = self.turn.as_ref().expect("taken on the way out only");
        self.queue.slab.get(&turn.hand)
    }
}

impl<T: Plain> Clone for Queue<T> {
    /// Another handle, with a lane of its own.
    fn clone(&self) -> Self {
        Self { ring: self.ring.clone(), slab: self.slab.clone() }
    }
}

impl<T: Plain> std::fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("type", &T::LAYOUT.name)
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .field("handles", &self.ring().lanes_claimed())
            .finish_non_exhaustive()
    }
}

impl<T: Plain + std::fmt::Debug + AnyBitPattern> std::fmt::Debug for Loan<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Loan").field(&**self).finish()
    }
}

impl<T: Plain + std::fmt::Debug + AnyBitPattern> std::fmt::Debug for Message<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("value", &**self).field("deliveries", &self.deliveries).finish()
    }
}

handle_serde!(Queue<T: Plain>);
