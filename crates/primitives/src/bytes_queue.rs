//! `BytesQueue`: messages that are bytes, of any length. Handles over the exchange ring of `crossproc-ring`, with sleeping.
//!
//! ```text
//!    0  the ring's words (384 bytes)
//!  384  stride       from cell to cell, in bytes
//!  392  window       bytes of a cell's window
//!  400  kept         bytes of a spare cell's window that stay
//!  512  the ring's parts and the cells (`ring_handle.rs`, `byte_cells.rs`)
//! ```
//!
//! These are written before anybody can find the queue. A handle copies them once, and compares what follows from them
//! with the size of the object and of its windows. What a death leaves in a window, and who gives it back, is in `byte_cells.rs`.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Ordering, shared_struct};
use crossproc_ring::{ExchangeWords, Hand, Shape};
use crossproc_segment::plain::{Layout, Plain};
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Segment};
use crossproc_sync::Effort;

use crate::audit::Violation;
use crate::byte_cells::{Body, ByteCells, CellSizes};
use crate::handle::{Fresh, Handle, handle_serde, spec_of};
use crate::lock::{Wait, before, within};
use crate::readiness::{RingEnd, Source};
use crate::ring_handle::{Parts, RingHandle, Turn, open_or_make, shape_of};
use crate::transfer::{RecvError, SendError, Unusable};

shared_struct! {
    /// What a queue for messages of any size has behind the words of its ring.
    struct BytesWords: 128 {
        stride: AtomicU64,
        window: AtomicU64,
        kept: AtomicU64,
        unused: [AtomicU64; 13],
    }
}

const KIND: ObjectKind = ObjectKind::new("BytesQueue");
const WORDS_AT: u64 = size_of::<ExchangeWords>() as u64;
/// Where the ring's parts begin.
const HEAD: u64 = WORDS_AT + size_of::<BytesWords>() as u64;

/// How a [`BytesQueue`] or an [`ObjectQueue`](crate::ObjectQueue) is made.
///
/// ```
/// use crossproc_primitives::BytesQueueOptions;
///
/// let pictures = BytesQueueOptions::new(100).lanes(8).hands(1).message_max(64 << 20).anonymous()?;
/// assert_eq!((pictures.capacity(), pictures.message_max()), (100, 64 << 20));
/// # Ok::<(), crossproc_segment::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "options make nothing by themselves"]
pub struct BytesQueueOptions {
    capacity: usize,
    lanes: usize,
    hands: usize,
    inline: usize,
    message_max: usize,
    kept: usize,
}

impl BytesQueueOptions {
    /// A queue for so many messages of up to 1 MiB, with 32 lanes of 2 hands; messages of up to 240 bytes need no more memory than the
    /// queue has from the start.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, lanes: 32, hands: 2, inline: 240, message_max: 1 << 20, kept: 64 << 10 }
    }

    /// So many handles there can be at one time, in all processes.
    pub fn lanes(self, lanes: usize) -> Self {
        Self { lanes, ..self }
    }

    /// So many loans and received messages a handle can hold at one time.
    pub fn hands(self, hands: usize) -> Self {
        Self { hands, ..self }
    }

    /// Messages of so many bytes at least are kept in memory that the queue has from the start: capacity + lanes x hands times that, and
    /// a little more. Longer ones take memory while they are sent, waiting and received, which costs them a few system calls.
    pub fn inline(self, bytes: usize) -> Self {
        Self { inline: bytes, ..self }
    }

    /// Messages have so many bytes at the most (rounded up to pages of 4096). For each that there is room for, so much address space
    /// is reserved, but no memory.
    pub fn message_max(self, bytes: usize) -> Self {
        Self { message_max: bytes, ..self }
    }

    /// So much of the memory of a longer message is not given back when it has been received, but kept for the next one: 64 KiB unless
    /// set, for each message that there is room for. A queue that is busy with long messages is several times faster if it keeps all
    /// their memory.
    pub fn kept(self, bytes: usize) -> Self {
        Self { kept: bytes, ..self }
    }

    /// So many bytes of windows a segment must have for this queue: see
    /// [`SegmentOptions::windows`](crossproc_segment::SegmentOptions::windows).
    ///
    /// # Errors
    ///
    /// [`InvalidLength`](ErrorKind::InvalidLength) as [`anonymous`](Self::anonymous).
    pub fn windows(&self) -> Result<u64, Error> {
        let (shape, sizes) = self.check()?;
        Ok(windows_of(&shape, &sizes))
    }

    /// A queue in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// [`InvalidLength`](ErrorKind::InvalidLength) if the capacity, lanes or hands are 0, there are more than 65536 lanes, 64 hands or, all
    /// in all, 4 194 304 cells (capacity + lanes x hands), or messages could be longer than 8 TiB;
    /// [`TooLarge`](ErrorKind::TooLarge) and [`NoMemory`](ErrorKind::NoMemory) if there is not so much address space; otherwise if the
    /// segment can not be made.
    pub fn anonymous(self) -> Result<BytesQueue, Error> {
        self.anonymous_of(KIND, u8::LAYOUT)
    }

    /// The queue of this name, made if there is none. One that is there already keeps its sizes.
    ///
    /// The segment must have been made with [`windows`](Self::windows), unless `message_max` is no larger than `inline`.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous), and as for all [`Objects`](crate::Objects).
    pub fn in_segment(self, segment: &Segment, name: &str) -> Result<BytesQueue, Error> {
        self.named_of(KIND, u8::LAYOUT, segment, name)
    }

    pub(crate) fn anonymous_of(self, kind: ObjectKind, layout: &'static Layout) -> Result<BytesQueue, Error> {
        let (shape, sizes) = self.check()?;
        let made = made_of(kind, layout, &shape, &sizes);
        BytesQueue::of(Handle::anonymous(&made, |fresh| first(fresh, shape, &sizes))?)
    }

    pub(crate) fn named_of(
        self,
        kind: ObjectKind,
        layout: &'static Layout,
        segment: &Segment,
        name: &str,
    ) -> Result<BytesQueue, Error> {
        let (shape, sizes) = self.check()?;
        let made = made_of(kind, layout, &shape, &sizes);
        let any = any_shape(kind, layout);
        BytesQueue::of(open_or_make(segment, name, &any, &made, |fresh| first(fresh, shape, &sizes))?)
    }

    fn check(&self) -> Result<(Shape, CellSizes), Error> {
        let Self { capacity, lanes, hands, inline, message_max, kept } = *self;
        let sizes = CellSizes::for_messages(inline, message_max, kept).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidLength,
                format!("messages of {inline} bytes inline and {message_max} at the most: 8 TiB are the most there can be"),
            )
        })?;
        Ok((shape_of(capacity, lanes, hands)?, sizes))
    }
}

/// What another process's queue must be.
fn any_shape(kind: ObjectKind, layout: &'static Layout) -> ObjectSpec {
    spec_of(kind, layout, 1, HEAD)
}

/// What a queue of our own is.
fn made_of(kind: ObjectKind, layout: &'static Layout, shape: &Shape, sizes: &CellSizes) -> ObjectSpec {
    let end = Parts::of(shape, HEAD).cells.saturating_add(cells_bytes(shape, sizes));
    let spec = spec_of(kind, layout, shape.capacity() as u64, end);
    ObjectSpec { windows: windows_of(shape, sizes), ..spec }
}

fn cells_bytes(shape: &Shape, sizes: &CellSizes) -> u64 {
    (shape.cells() as u64).saturating_mul(sizes.stride() as u64)
}

fn windows_of(shape: &Shape, sizes: &CellSizes) -> u64 {
    (shape.cells() as u64).saturating_mul(sizes.window() as u64)
}

fn first(fresh: &Fresh<'_>, shape: Shape, sizes: &CellSizes) {
    let words = fresh.place::<BytesWords>(WORDS_AT);
    words.stride.store(sizes.stride() as u64, Ordering::Relaxed);
    words.window.store(sizes.window() as u64, Ordering::Relaxed);
    words.kept.store(sizes.kept() as u64, Ordering::Relaxed);
    RingHandle::init(fresh, shape, HEAD);
}

/// A queue for messages that are bytes, each as long as it likes, between any number of sending and receiving processes and threads.
///
/// It is a [`Queue`](crate::Queue) in all but what a message is: first in, first out, without locks; a process that is stopped or killed
/// at any instruction keeps nobody else from sending and receiving; handles are `Send`, not `Sync`, with a lane each
/// ([`Unusable::NoLane`]). *Every* message is kept until it has been read: one whose receiver is killed is received again, whole, and
/// says so ([`BytesMessage::deliveries`]).
///
/// Messages that are longer than [`inline`](BytesQueueOptions::inline) take memory of the segment while they are there: allocated before
/// they are written, so that a full file system or machine is an error ([`Unfit::NoMemory`](crate::Unfit::NoMemory)) and not a crash, and
/// given back when they have been received, but for what is [`kept`](BytesQueueOptions::kept). They are written once, and read in place.
///
/// ```
/// use crossproc_primitives::BytesQueue;
///
/// let queue = BytesQueue::new(10)?;
/// queue.send(b"short")?;
/// queue.send(&[7; 300_000])?;
/// assert_eq!(queue.recv()?, b"short");
///
/// let long = queue.recv_ref()?; // in place, without a copy
/// assert!(long.len() == 300_000 && long.iter().all(|byte| *byte == 7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BytesQueue {
    ring: RingHandle,
    cells: ByteCells,
    /// The hands of the lane were looked through for what a dead one left in them.
    is_tidy: Cell<bool>,
    /// A message that did not fit into its receiver's buffer: the next to be received.
    kept: Cell<Option<Box<Received>>>,
}

/// A received message, without its queue.
pub(crate) struct Received {
    hand: Hand,
    body: Body,
    deliveries: u8,
}

impl BytesQueue {
    /// A queue for so many messages of up to 1 MiB, in an anonymous segment of its own; see [`BytesQueueOptions`].
    ///
    /// # Errors
    ///
    /// As [`BytesQueueOptions::anonymous`].
    pub fn new(capacity: usize) -> Result<Self, Error> {
        BytesQueueOptions::new(capacity).anonymous()
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::attach_of(KIND, u8::LAYOUT, segment, index)
    }

    pub(crate) fn attach_of(
        kind: ObjectKind,
        layout: &'static Layout,
        segment: Segment,
        index: u32,
    ) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &any_shape(kind, layout))?)
    }

    fn of(handle: Handle<ExchangeWords>) -> Result<Self, Error> {
        let words = handle.place::<BytesWords>(WORDS_AT)?;
        let [stride, window, kept] =
            [&words.stride, &words.window, &words.kept].map(|word| word.load(Ordering::Relaxed));
        let sizes = CellSizes::new(stride, window, kept).ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!("no queue has cells of {stride} bytes and windows of {window} that keep {kept}"),
            )
        })?;
        let ring = RingHandle::of(handle, HEAD, false)?;
        let shape = ring.shape();
        // Compared with the size of the object and of its windows.
        let words = ring.handle.place_slice(ring.parts().cells, cells_bytes(&shape, &sizes) / 8)?;
        let (windows, windows_at) = ring.handle.windows(windows_of(&shape, &sizes))?;
        let cells = ByteCells::new(words, windows, sizes, ring.handle.segment().clone(), windows_at);
        Ok(Self::with(ring, cells))
    }

    fn with(ring: RingHandle, cells: ByteCells) -> Self {
        let queue = Self { ring, cells, is_tidy: Cell::new(false), kept: Cell::new(None) };
        // If there is no lane, the first operation says so.
        let _ = queue.join();
        queue
    }

    pub(crate) fn handle(&self) -> &Handle<ExchangeWords> {
        &self.ring.handle
    }

    /// A lane, without what a dead process left in the windows of its spare cells.
    fn join(&self) -> Result<(), Unusable> {
        if !self.is_tidy.get() {
            self.ring.lane(self.ring.handle.live().ok_or(Unusable::NotAttached)?)?;
            self.tidy();
        }
        Ok(())
    }

    fn tidy(&self) {
        let Some(lane) = self.ring.lane.get() else { return };
        let ring = self.ring.ring();
        let hands: Vec<Hand> = std::iter::from_fn(|| ring.take_hand(lane)).collect();
        for hand in hands {
            self.cells.trim(hand.cell());
            ring.put_back(lane, hand);
        }
        self.is_tidy.set(true);
    }

    fn with_hand(&self) -> Result<Turn<'_>, Unusable> {
        self.join()?;
        self.ring.with_hand()
    }

    /// Sends bytes, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `TimedOut`.
    pub fn send(&self, message: &[u8]) -> Result<(), SendError<()>> {
        self.send_within(message, Wait::FOREVER)
    }

    /// Sends bytes if there is room.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut` or `PeerDied`.
    pub fn try_send(&self, message: &[u8]) -> Result<(), SendError<()>> {
        self.send_within(message, Wait::Try)
    }

    /// Sends bytes, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`.
    pub fn send_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), SendError<()>> {
        self.send_within(message, within(timeout))
    }

    /// Sends bytes, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`.
    pub fn send_deadline(&self, message: &[u8], deadline: Instant) -> Result<(), SendError<()>> {
        self.send_within(message, before(deadline))
    }

    fn send_within(&self, message: &[u8], wait: Wait) -> Result<(), SendError<()>> {
        // Short messages in one piece: this is the way that has to be fast.
        let is_plain = message.len() <= self.cells.sizes().inline() && self.is_tidy.get();
        if let (Some(live), Some(lane), true) = (self.ring.handle.live(), self.ring.lane.get(), is_plain) {
            let write = |hand: &mut Hand| self.cells.write_inline(hand, message);
            if self.ring.ring().send_at_once(lane, write, |cell| self.cells.expect_write(cell)) {
                self.ring.handle.words.not_empty.notify_some_after_rmw(live, 1);
                return Ok(());
            }
        }
        self.send_slowly(message, wait)
    }

    #[cold]
    #[inline(never)]
    fn send_slowly(&self, message: &[u8], wait: Wait) -> Result<(), SendError<()>> {
        let mut loan = self.loan_within(message.len(), wait)?;
        loan.copy_from_slice(message);
        loan.send_within(wait).map_err(|unsent| unsent.map(drop))
    }

    /// Room for a message of so many bytes that is written in place. Its first content is arbitrary: what was there before.
    ///
    /// A loan can be kept as long as one likes; it takes nothing from the queue's capacity. Nobody sees it before it is sent.
    ///
    /// ```
    /// let queue = crossproc_primitives::BytesQueue::new(4)?;
    /// let mut picture = queue.loan(500_000)?;
    /// picture.fill(7);
    /// picture.send().map_err(|e| e.map(drop))?;
    /// assert_eq!(queue.recv_ref()?[499_999], 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SendError::Unfit`] or [`SendError::Unusable`]; `NoHand` if this handle holds as many loans and messages as it may.
    pub fn loan(&self, len: usize) -> Result<BytesLoan<'_>, SendError<()>> {
        self.loan_within(len, Wait::FOREVER)
    }

    pub(crate) fn loan_within(&self, len: usize, wait: Wait) -> Result<BytesLoan<'_>, SendError<()>> {
        let mut turn = self.with_hand().map_err(|why| SendError::Unusable((), why))?;
        // Before memory is asked for that would have to be given back at once.
        let is_long = len > self.cells.sizes().inline();
        if is_long && wait == Wait::Try && self.ring.ring().is_full(turn.lane) {
            turn.put_back();
            return Err(if self.is_closed() { SendError::Closed(()) } else { SendError::Full(()) });
        }
        match self.cells.prepare(&mut turn.hand, len) {
            Ok(body) => Ok(BytesLoan { queue: self, turn: Some(turn), body }),
            Err(why) => {
                self.put_back(turn);
                Err(SendError::Unfit((), why))
            }
        }
    }

    /// For a hand whose message was not sent.
    fn put_back(&self, turn: Turn<'_>) {
        // A forked child has a copy of its parent's loan.
        if self.ring.handle.live().is_some() {
            self.cells.trim(turn.hand.cell());
        }
        turn.put_back();
    }

    /// For a hand whose message was received.
    fn release(&self, turn: Turn<'_>) {
        let cell = turn.hand.cell();
        // First this, or a message without its bytes could be received again. The cell stays in our lane.
        if turn.release() {
            self.cells.trim(cell);
        }
    }

    /// Receives the next message, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    pub fn recv(&self) -> Result<Vec<u8>, RecvError> {
        Ok(self.recv_ref_within(Wait::FOREVER)?.to_vec())
    }

    /// Receives the next message if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `PeerDied`.
    pub fn try_recv(&self) -> Result<Vec<u8>, RecvError> {
        Ok(self.recv_ref_within(Wait::Try)?.to_vec())
    }

    /// Receives the next message, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        Ok(self.recv_ref_within(within(timeout))?.to_vec())
    }

    /// Receives the next message, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        Ok(self.recv_ref_within(before(deadline))?.to_vec())
    }

    /// Receives the next message in place, waiting for one as long as it takes. It counts as received when the guard is dropped.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    pub fn recv_ref(&self) -> Result<BytesMessage<'_>, RecvError> {
        self.recv_ref_within(Wait::FOREVER)
    }

    /// Receives the next message in place if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `PeerDied`.
    pub fn try_recv_ref(&self) -> Result<BytesMessage<'_>, RecvError> {
        self.recv_ref_within(Wait::Try)
    }

    /// Receives the next message in place, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<BytesMessage<'_>, RecvError> {
        self.recv_ref_within(within(timeout))
    }

    /// Receives the next message in place, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_ref_deadline(&self, deadline: Instant) -> Result<BytesMessage<'_>, RecvError> {
        self.recv_ref_within(before(deadline))
    }

    pub(crate) fn recv_ref_within(&self, wait: Wait) -> Result<BytesMessage<'_>, RecvError> {
        let (turn, body, deliveries) = self.receive(wait)?;
        Ok(BytesMessage { queue: self, turn: Some(turn), body, deliveries })
    }

    fn receive(&self, wait: Wait) -> Result<(Turn<'_>, Body, u8), RecvError> {
        if let Some(kept) = self.kept()? {
            return Ok(kept);
        }
        let (turn, deliveries) = self.ring.receive(wait, |cell| self.cells.expect_read(cell))?;
        self.with_body(turn, deliveries)
    }

    /// What must be received first; else the lane is ready.
    fn kept(&self) -> Result<Option<(Turn<'_>, Body, u8)>, RecvError> {
        if let Some(kept) = self.kept.take() {
            let turn = self.ring.resume(kept.hand).map_err(RecvError::Unusable)?;
            return Ok(Some((turn, kept.body, kept.deliveries)));
        }
        self.join().map_err(RecvError::Unusable)?;
        Ok(None)
    }

    fn with_body<'a>(&'a self, turn: Turn<'a>, deliveries: u8) -> Result<(Turn<'a>, Body, u8), RecvError> {
        match self.cells.received(&turn.hand) {
            Some(body) => Ok((turn, body, deliveries)),
            None => {
                self.release(turn);
                Err(RecvError::Unusable(Unusable::Damaged))
            }
        }
    }

    /// One attempt to receive, of a future, in place: `None` if it would have to wait; else what [`message`](Self::message) takes.
    pub(crate) fn recv_now(&self, effort: Effort) -> Option<Result<Received, RecvError>> {
        let received = match self.kept() {
            Ok(Some(kept)) => Ok(kept),
            Ok(None) => {
                self.ring.receive_now(effort)?.and_then(|(turn, deliveries)| self.with_body(turn, deliveries))
            }
            Err(why) => Err(why),
        };
        Some(received.map(|(turn, body, deliveries)| Received { hand: turn.hand, body, deliveries }))
    }

    pub(crate) fn message(&self, received: Received) -> Result<BytesMessage<'_>, RecvError> {
        let turn = self.ring.resume(received.hand).map_err(RecvError::Unusable)?;
        let Received { body, deliveries, .. } = received;
        Ok(BytesMessage { queue: self, turn: Some(turn), body, deliveries })
    }

    /// One attempt to send, of a future: `None` if it would have to wait.
    pub(crate) fn send_now(
        &self,
        len: usize,
        effort: Effort,
        write: impl FnOnce(&mut BytesLoan<'_>) -> Result<(), SendError<()>>,
    ) -> Option<Result<(), SendError<()>>> {
        let mut loan = match self.loan_within(len, Wait::Try) {
            Ok(loan) => loan,
            // No memory was asked for, since there is no room.
            Err(SendError::Full(())) => {
                return (effort.is_full() && self.ring.is_alone()).then_some(Err(SendError::PeerDied(())));
            }
            Err(why) => return Some(Err(why)),
        };
        if let Err(why) = write(&mut loan) {
            return Some(Err(why));
        }
        let sent = loan.turn.as_mut().expect("taken on the way out only").send_now(effort)?;
        if let (Ok(()), Some(turn)) = (&sent, loan.turn.take_if(|_| sent.is_ok())) {
            // The hand has another, spare cell now.
            turn.put_back();
        }
        Some(sent.map_err(|unsent| unsent.with(())))
    }

    pub(crate) fn source(&self, end: RingEnd) -> Arc<Source> {
        self.ring.source(end)
    }

    /// Receives the next message into a buffer, waiting for one as long as it takes; returns how many bytes it has.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`. [`BufferTooShort`](RecvError::BufferTooShort) for a message that is longer than
    /// `buffer`: this handle keeps it and receives it next. (If the handle is dropped before that, or its process ends, another one does.)
    pub fn recv_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, Wait::FOREVER)
    }

    /// Receives the next message into a buffer if there is one; returns how many bytes it has.
    ///
    /// # Errors
    ///
    /// See [`recv_into`](Self::recv_into) and [`RecvError`]; never `TimedOut` or `PeerDied`.
    pub fn try_recv_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, Wait::Try)
    }

    /// Receives the next message into a buffer, waiting for one at most `timeout`; returns how many bytes it has.
    ///
    /// # Errors
    ///
    /// See [`recv_into`](Self::recv_into) and [`RecvError`]; never `Empty`.
    pub fn recv_into_timeout(&self, buffer: &mut [u8], timeout: Duration) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, within(timeout))
    }

    /// Receives the next message into a buffer, waiting for one until `deadline` at most; returns how many bytes it has.
    ///
    /// # Errors
    ///
    /// See [`recv_into`](Self::recv_into) and [`RecvError`]; never `Empty`.
    pub fn recv_into_deadline(&self, buffer: &mut [u8], deadline: Instant) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, before(deadline))
    }

    fn recv_into_within(&self, buffer: &mut [u8], wait: Wait) -> Result<usize, RecvError> {
        let (turn, body, deliveries) = self.receive(wait)?;
        let bytes = body.len();
        match buffer.get_mut(..bytes) {
            Some(buffer) => {
                buffer.copy_from_slice(self.cells.get(&turn.hand, body));
                self.release(turn);
                Ok(bytes)
            }
            None => {
                self.kept.set(Some(Box::new(Received { hand: turn.hand, body, deliveries })));
                Err(RecvError::BufferTooShort { bytes })
            }
        }
    }

    /// Receives messages until the queue is closed and empty (or can not be used any more), waiting for each.
    pub fn iter(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// Receives the messages that are there.
    pub fn try_iter(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
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
            match self.try_recv_ref() {
                Ok(_) => thrown_away += 1,
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

    /// A handle to be cloned, which has no lane itself.
    pub(crate) fn without_lane(mut self) -> Self {
        // A message that is kept comes back, to whoever receives next.
        self.kept.take();
        self.ring.leave();
        self
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

    /// Bytes of a message that takes no more memory than the queue has from the start.
    #[must_use]
    pub fn inline(&self) -> usize {
        self.cells.sizes().inline()
    }

    /// Bytes of a message at the most.
    #[must_use]
    pub fn message_max(&self) -> usize {
        self.cells.sizes().most()
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
        self.ring.ring().audit().and_then(|()| self.cells.audit()).map_err(Violation::new)
    }
}

impl Clone for BytesQueue {
    /// Another handle, with a lane of its own.
    fn clone(&self) -> Self {
        Self::with(self.ring.clone(), self.cells.clone())
    }
}

impl std::fmt::Debug for BytesQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BytesQueue")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("message_max", &self.message_max())
            .field("closed", &self.is_closed())
            .field("handles", &self.ring.ring().lanes_claimed())
            .finish_non_exhaustive()
    }
}

/// Room for a message of a [`BytesQueue`]; derefs to its bytes. Dropping it sends nothing.
#[must_use = "a loan that is dropped is not sent"]
pub struct BytesLoan<'a> {
    queue: &'a BytesQueue,
    /// Taken only on the way out.
    turn: Option<Turn<'a>>,
    body: Body,
}

impl<'a> BytesLoan<'a> {
    /// Makes the message shorter, if it is longer than `len`.
    pub fn truncate(&mut self, len: usize) {
        let turn = self.turn.as_mut().expect("taken on the way out only");
        self.queue.cells.shorten(&mut turn.hand, &mut self.body, len);
    }

    /// Sends the message, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `TimedOut`. The loan is in it, as it was.
    pub fn send(self) -> Result<(), SendError<BytesLoan<'a>>> {
        self.send_within(Wait::FOREVER)
    }

    /// Sends the message if there is room.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut` or `PeerDied`. The loan is in it.
    pub fn try_send(self) -> Result<(), SendError<BytesLoan<'a>>> {
        self.send_within(Wait::Try)
    }

    /// Sends the message, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`. The loan is in it.
    pub fn send_timeout(self, timeout: Duration) -> Result<(), SendError<BytesLoan<'a>>> {
        self.send_within(within(timeout))
    }

    /// Sends the message, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`. The loan is in it.
    pub fn send_deadline(self, deadline: Instant) -> Result<(), SendError<BytesLoan<'a>>> {
        self.send_within(before(deadline))
    }

    pub(crate) fn send_within(mut self, wait: Wait) -> Result<(), SendError<BytesLoan<'a>>> {
        let turn = self.turn.as_mut().expect("taken on the way out only");
        let cells = &self.queue.cells;
        if let Err(unsent) = turn.send(wait, |cell| cells.expect_write(cell)) {
            return Err(unsent.with(self));
        }
        // The hand has another, spare cell now.
        if let Some(turn) = self.turn.take() {
            turn.put_back();
        }
        Ok(())
    }
}

impl Drop for BytesLoan<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.queue.put_back(turn);
        }
    }
}

impl Deref for BytesLoan<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let turn = self.turn.as_ref().expect("taken on the way out only");
        self.queue.cells.get(&turn.hand, self.body)
    }
}

impl DerefMut for BytesLoan<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let turn = self.turn.as_mut().expect("taken on the way out only");
        self.queue.cells.get_mut(&mut turn.hand, self.body)
    }
}

impl std::fmt::Debug for BytesLoan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BytesLoan").field("len", &self.body.len()).finish_non_exhaustive()
    }
}

/// A received message of a [`BytesQueue`], in place; derefs to its bytes. It counts as received when this is dropped.
///
/// If the process dies before that, somebody else receives the message once more. The same if this is leaked and the queue's
/// handle dropped.
#[must_use = "dropping it drops the message"]
pub struct BytesMessage<'a> {
    queue: &'a BytesQueue,
    /// Taken only on the way out.
    turn: Option<Turn<'a>>,
    body: Body,
    deliveries: u8,
}

impl BytesMessage<'_> {
    /// How often the message was delivered, with this time: more than 1 if a receiver died that had it. 255 is "or more".
    ///
    /// So a message that kills whoever works on it can be given up.
    #[must_use]
    pub fn deliveries(&self) -> u8 {
        self.deliveries
    }

    /// True if a receiver that had the message died.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.deliveries > 1
    }
}

impl Drop for BytesMessage<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.queue.release(turn);
        }
    }
}

impl Deref for BytesMessage<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let turn = self.turn.as_ref().expect("taken on the way out only");
        self.queue.cells.get(&turn.hand, self.body)
    }
}

impl std::fmt::Debug for BytesMessage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BytesMessage")
            .field("len", &self.body.len())
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

handle_serde!(BytesQueue);
