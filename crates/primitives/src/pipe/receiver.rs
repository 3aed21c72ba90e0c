//! The end of a direction at which messages are received.
//!
//! A message in parts is gathered in memory of the handle, in its turn. If a deadline passes before the last part has come, the handle
//! keeps the turn and what it has: its next receive goes on there, so no message is lost to a deadline. Other handles of the end wait meanwhile,
//! as they would for the rest of it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut, Read};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU32, Ordering, fence};
use crossproc_ring::{Chunk, DamagedFrames, End, Extent, FrameReader, FrameWriter, NoTurn, Presence, Watch};
use crossproc_segment::{Participants, Segment, handover};
use crossproc_sync::{Effort, WaitFailure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes::{Peeked, RingBytes};
use super::courier::{CLEAN, LABEL, PARCEL};
use super::error::RecvError;
use super::link::Link;
use super::message::{Came, Fill, Found, Gathered, Message, Shown, Take, Taken};
use super::pace::Pace;
use crate::audit::Violation;
use crate::lock::{Wait, before, within};
use crate::object_queue::{BUFFER_KEPT, fault, layout_of};
use crate::spin::Spin;
use crate::transfer::{Fault, Miscoded};

/// So much memory is asked for at once for a message in parts, whatever its length is said to be.
const RESERVED: usize = 4 << 20;

/// More than there are at a time: each handle writes one. Somebody who does not keep to that holds up nobody.
const CLEAN_MAX: usize = 4096;

/// The receiving end of a pipe, or of one direction of a duplex one.
///
/// Clones share the end: each message is received by one of them, whole. The end is closed when the last handle of it is dropped or
/// the last process dies that has one; then sending fails ([`SendError::Closed`](super::SendError::Closed),
/// [`PeerDied`](super::SendError::PeerDied)).
///
/// A receiver that is killed takes at most the message along that it was receiving. One of up to half the pipe's capacity is received
/// again by the next receiver, unless the first one had all of it; of a longer one, which comes in parts, the rest is passed over.
///
/// It is `Send` and not `Sync`: give each thread a clone.
///
/// [`Read`] reads the bytes of one message after the other; what a short buffer leaves of one is what this handle reads or receives next.
/// The end of file is that all senders have left; if the last of them died, it is `ConnectionReset`.
pub struct Receiver<T> {
    pub(super) link: Arc<Link>,
    pub(super) local: RefCell<Local>,
    spin: Spin,
    nonblocking: Cell<bool>,
    message: PhantomData<fn(T) -> T>,
}

/// What a handle knows.
pub(super) struct Local {
    reader: FrameReader,
    watch: Watch,
    gathered: Gathered,
    /// What came with the message that was taken last.
    pub(super) came: Came,
    /// Values are deserialised from it. In shared memory another process could change them between a check and their use.
    buffer: Vec<u8>,
    /// For who waits for this handle without a thread, if anybody does.
    kept: Option<Arc<Kept>>,
}

/// What a handle keeps from one call to the next: looked at by other threads, before they sleep.
#[derive(Default)]
pub(super) struct Kept(AtomicU32);

impl Kept {
    const NOTHING: u32 = 0;
    /// The turn, in the middle of a message.
    const TURN: u32 = 1;
    /// A message, or the rest of one.
    const MESSAGE: u32 = 2;

    pub(super) fn has_turn(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::TURN
    }

    pub(super) fn has_message(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::MESSAGE
    }

    pub(super) fn keep_turn(&self, keep: bool) {
        self.keep(if keep { Self::TURN } else { Self::NOTHING });
    }

    fn keep(&self, what: u32) {
        self.0.store(what, Ordering::Release);
        // Before the handle looks at the ring again: who is told of what it does not see there any more, sees this.
        fence(Ordering::SeqCst);
    }
}

impl Local {
    /// What the handle keeps, from now on for all to see.
    pub(super) fn kept(&mut self) -> Arc<Kept> {
        let kept = Arc::clone(self.kept.get_or_insert_default());
        self.tell();
        kept
    }

    /// In its turn: how far it has come.
    pub(super) fn position(&self) -> u64 {
        self.reader.position()
    }

    /// After each change of what it keeps.
    fn tell(&self) {
        if let Some(kept) = &self.kept {
            kept.keep(match (self.gathered.is_whole, self.reader.is_in_frame()) {
                (true, _) => Kept::MESSAGE,
                (false, true) => Kept::TURN,
                (false, false) => Kept::NOTHING,
            });
        }
    }
}

impl<T> Receiver<T> {
    pub(super) fn of(link: Arc<Link>) -> Self {
        let local = Local {
            reader: FrameReader::default(),
            watch: Watch::default(),
            gathered: Gathered::default(),
            came: Came::default(),
            buffer: Vec::new(),
            kept: None,
        };
        Self {
            link,
            local: RefCell::new(local),
            spin: Spin::new(),
            nonblocking: Cell::new(false),
            message: PhantomData,
        }
    }

    /// Of a receiver that has just been made, and has no clones.
    pub(super) fn share_courier(&mut self, with: &Link) {
        if let Some(link) = Arc::get_mut(&mut self.link) {
            link.courier.clone_from(&with.courier);
        }
    }

    pub(super) fn bytes(&self) -> &RingBytes {
        &self.link.bytes
    }

    // ---- The next message

    /// Finds the next message of up to `limit` bytes; `take` says what is done with it.
    #[inline]
    fn next<R>(&self, wait: Wait, limit: usize, take: &mut impl Take<R>) -> Result<R, RecvError> {
        let live = self.link.live().ok_or(RecvError::NotAttached)?;
        let local = &mut *self.local.borrow_mut();
        let mut pace = Pace::default();
        loop {
            match self.attempt(live, local, limit, take, Effort::Light, &mut false) {
                Some(Ok(Found::Message(message))) => return Ok(message),
                Some(Err(error)) => return Err(error),
                Some(Ok(Found::Progress)) => self.after_part(local, &mut pace, wait)?,
                None => break,
            }
        }
        self.next_later(live, local, wait, limit, take)
    }

    /// Ends a call that finds one part after the other.
    #[cold]
    fn after_part(&self, local: &mut Local, pace: &mut Pace, wait: Wait) -> Result<(), RecvError> {
        let Some(over) = pace.is_over(local.reader.position(), self.link.shape, wait) else { return Ok(()) };
        self.leave_off(local);
        Err(Self::not_there(over))
    }

    /// Between two parts; between two messages the turn is another one's.
    pub(super) fn leave_off(&self, local: &mut Local) {
        if local.reader.has_turn() && !local.reader.is_in_frame() {
            self.pass_turn(local);
        }
    }

    fn not_there(failure: WaitFailure) -> RecvError {
        match failure {
            WaitFailure::WouldBlock => RecvError::Empty,
            WaitFailure::TimedOut => RecvError::TimedOut,
        }
    }

    #[cold]
    #[inline(never)]
    fn next_later<R>(
        &self,
        live: &Participants,
        local: &mut Local,
        wait: Wait,
        limit: usize,
        take: &mut impl Take<R>,
    ) -> Result<R, RecvError> {
        let mut pace = Pace::default();
        loop {
            let attempt = |effort, busy: &mut bool| self.attempt(live, local, limit, take, effort, busy);
            match self.link.wait(live, &self.spin, wait, attempt) {
                Ok(Ok(Found::Progress)) => self.after_part(local, &mut pace, wait)?,
                Ok(Ok(Found::Message(message))) => break Ok(message),
                Ok(Err(error)) => break Err(error),
                Err(failure) => break Err(Self::not_there(failure)),
            }
        }
    }

    #[inline]
    pub(super) fn attempt<R>(
        &self,
        live: &Participants,
        local: &mut Local,
        limit: usize,
        take: &mut impl Take<R>,
        effort: Effort,
        busy: &mut bool,
    ) -> Option<Result<Found<R>, RecvError>> {
        if local.gathered.is_whole {
            return Some(Self::serve_gathered(local, limit, take));
        }
        if self.finds_nothing(live, local, effort) {
            return None;
        }
        let ring = self.link.ring();
        match local.reader.take_turn(ring, live) {
            Ok(()) => {}
            Err(NoTurn::Damaged) => return Some(Err(RecvError::Damaged)),
            Err(NoTurn::Taken) => {
                *busy = true;
                return None;
            }
        }
        let chunk = match self.next_chunk(local) {
            Ok(Some(chunk)) => chunk,
            Ok(None) if local.reader.has_passed() => {
                self.link.notify();
                return Some(Ok(Found::Progress));
            }
            Ok(None) => match self.nothing_there(live, local, effort)? {
                Ok(chunk) => chunk,
                Err(error) => return Some(Err(error)),
            },
            Err(_) => {
                self.pass_turn(local);
                return Some(Err(RecvError::Damaged));
            }
        };
        match chunk {
            Chunk::Whole { at, tag } if self.behind_label(at, tag).len <= limit => {
                let at = self.behind_label(at, tag);
                let shown = Shown::InPlace { at, chunk };
                let taken = take.take(Message::InPlace(&self.link.bytes, at), Some(shown));
                Some(Ok(Found::Message(match taken {
                    Taken::Yes(message) => {
                        self.receive_parcel(local, chunk);
                        local.reader.take(ring, chunk);
                        self.pass_turn(local);
                        message
                    }
                    Taken::No(message) => {
                        if local.reader.has_passed() {
                            // The turn stays; who waits for room need not wait for that.
                            self.link.notify();
                        }
                        message
                    }
                })))
            }
            Chunk::Whole { at, tag } => {
                self.pass_turn(local);
                Some(Err(RecvError::TooLong { bytes: self.behind_label(at, tag).len }))
            }
            chunk => self.gather(local, limit, take, chunk),
        }
    }

    /// True if there is no need to take the turn: others would have to wait for it, and be woken after it.
    #[inline]
    fn finds_nothing(&self, live: &Participants, local: &mut Local, effort: Effort) -> bool {
        if local.reader.has_turn() || !local.reader.finds_nothing(self.link.ring()) {
            return false;
        }
        // Perhaps nothing will ever come: that is found out in the turn.
        let ended = |presence| matches!(presence, Presence::Left | Presence::Died);
        !(effort.is_full() && ended(self.link.other_end(live, &mut local.watch)))
    }

    /// The next chunk of a message.
    #[inline]
    fn next_chunk(&self, local: &mut Local) -> Result<Option<Chunk>, DamagedFrames> {
        let found = local.reader.next(self.link.ring());
        match found {
            Ok(Some(Chunk::Whole { tag: CLEAN, .. })) => self.clean(local, found),
            found => found,
        }
    }

    /// What is found is no message: a sender asks to have packets dropped that belong to none.
    #[cold]
    fn clean(
        &self,
        local: &mut Local,
        mut found: Result<Option<Chunk>, DamagedFrames>,
    ) -> Result<Option<Chunk>, DamagedFrames> {
        let ring = self.link.ring();
        for _ in 0..CLEAN_MAX {
            let Ok(Some(chunk @ Chunk::Whole { at, tag: CLEAN })) = found else { break };
            if let (Some(courier), LABEL) = (&self.link.courier, at.len) {
                let mut label = [0; LABEL];
                self.link.bytes.read(at, &mut label);
                courier.clean(label);
            }
            local.reader.take(ring, chunk);
            found = local.reader.next(ring);
        }
        self.link.notify();
        match found {
            Ok(Some(Chunk::Whole { tag: CLEAN, .. })) => Ok(None),
            found => found,
        }
    }

    /// A message in parts: begins, goes on, ends.
    #[cold]
    #[inline(never)]
    fn gather<R>(
        &self,
        local: &mut Local,
        limit: usize,
        take: &mut impl Take<R>,
        chunk: Chunk,
    ) -> Option<Result<Found<R>, RecvError>> {
        let ring = self.link.ring();
        let mut last_part = false;
        match chunk {
            Chunk::Begin { len, tag } => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let label = if tag == PARCEL { LABEL.min(len) } else { 0 };
                if len - label > self.link.message_max {
                    // No sender that keeps to the protocol has written it.
                    self.pass_turn(local);
                    return Some(Err(RecvError::Damaged));
                }
                if len - label > limit {
                    self.pass_turn(local);
                    return Some(Err(RecvError::TooLong { bytes: len - label }));
                }
                local.gathered.clear();
                local.gathered.has_parcel = label == LABEL;
                if label == 0 && take.buffer().is_some() {
                    local.gathered.direct = Some(0);
                } else {
                    local.gathered.bytes.reserve(len.min(RESERVED));
                }
            }
            Chunk::Part { at, last } => {
                // Together they are no longer than was said at the beginning, which the buffer was compared with.
                match (&mut local.gathered.direct, take.buffer()) {
                    (Some(done), Some(buffer)) => {
                        self.link.bytes.read(at, &mut buffer[*done..]);
                        *done += at.len;
                    }
                    _ => self.link.bytes.append(at, &mut local.gathered.bytes),
                }
                last_part = last;
            }
            // Its sender has died, or given up.
            Chunk::Abort | Chunk::Whole { .. } => local.gathered.clear(),
        }
        if last_part && local.gathered.has_parcel {
            // What it has come with is known now; the turn is needed for it.
            local.gathered.read = LABEL;
            local.gathered.came = self.unpack_parcel(local.gathered.bytes.get(..LABEL));
        }
        local.reader.take(ring, chunk);
        if !last_part {
            local.tell();
            self.link.notify();
            return Some(Ok(Found::Progress));
        }
        self.pass_turn(local);
        if let Some(len) = local.gathered.direct.take() {
            local.tell();
            return Some(Ok(Found::Message(match take.take(Message::Direct(len), None) {
                Taken::Yes(message) | Taken::No(message) => message,
            })));
        }
        local.gathered.is_whole = true;
        local.tell();
        Some(Self::serve_gathered(local, limit, take))
    }

    fn serve_gathered<R>(
        local: &mut Local,
        limit: usize,
        take: &mut impl Take<R>,
    ) -> Result<Found<R>, RecvError> {
        let bytes = local.gathered.rest().len();
        if bytes > limit {
            return Err(RecvError::TooLong { bytes });
        }
        Ok(Found::Message(match take.take(Message::Gathered(&mut local.gathered), Some(Shown::Gathered)) {
            Taken::Yes(message) => {
                local.came = std::mem::take(&mut local.gathered.came);
                local.gathered.clear();
                local.tell();
                message
            }
            Taken::No(message) => message,
        }))
    }

    /// The bytes of a message without its label, if it has one.
    #[inline]
    fn behind_label(&self, at: Extent, tag: u8) -> Extent {
        if tag != PARCEL || at.len < LABEL {
            return at;
        }
        Extent { at: at.at + LABEL, len: at.len - LABEL }
    }

    /// Before the message is taken.
    #[inline]
    fn receive_parcel(&self, local: &mut Local, chunk: Chunk) {
        local.came = match chunk {
            Chunk::Whole { at, tag: PARCEL } if at.len >= LABEL => {
                let mut label = [0; LABEL];
                self.link.bytes.read(Extent { len: LABEL, ..at }, &mut label);
                self.unpack_parcel(Some(&label))
            }
            _ => Came::Nothing,
        };
    }

    #[cold]
    fn unpack_parcel(&self, label: Option<&[u8]>) -> Came {
        let label = label.and_then(|label| label.try_into().ok());
        let came = label.zip(self.link.courier.as_ref()).and_then(|(label, courier)| courier.receive(label));
        came.map_or(Came::Lost, Came::Handles)
    }

    /// There is no chunk. In a frame the turn is kept.
    #[cold]
    #[inline(never)]
    fn nothing_there(
        &self,
        live: &Participants,
        local: &mut Local,
        effort: Effort,
    ) -> Option<Result<Chunk, RecvError>> {
        let ring = self.link.ring();
        let error = if !effort.is_full() {
            None
        } else if local.reader.is_in_frame() {
            if ring.is_turn_of_dead(End::Writer, live) {
                // Who takes a dead one's turn ends its frame.
                let mut writer = FrameWriter::default();
                if writer.take_turn(ring, live).is_ok() {
                    writer.pass_turn(ring);
                    self.link.notify_as_other();
                }
            }
            None
        } else {
            match self.link.other_end(live, &mut local.watch) {
                Presence::Left => Some(RecvError::Closed),
                Presence::Died => Some(RecvError::PeerDied),
                Presence::There | Presence::NotYet => None,
            }
        };
        // What came before they left, or was done in the place of a dead one, is there by now.
        let again = if effort.is_full() { self.next_chunk(local) } else { Ok(None) };
        match (again, error) {
            (Ok(Some(chunk)), _) => Some(Ok(chunk)),
            (Err(_), _) => {
                self.pass_turn(local);
                Some(Err(RecvError::Damaged))
            }
            (Ok(None), error) => {
                if !local.reader.is_in_frame() {
                    self.pass_turn(local);
                }
                error.map(Err)
            }
        }
    }

    #[inline]
    fn pass_turn(&self, local: &mut Local) {
        let was_in_frame = local.reader.is_in_frame();
        local.reader.pass_turn(self.link.ring());
        if was_in_frame {
            local.tell();
        }
        self.link.notify();
    }

    // ---- Bytes

    /// Receives the next message, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`, `TimedOut` or `TooLong`.
    pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(usize::MAX, Wait::FOREVER)
    }

    /// Receives the next message if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `TooLong`.
    pub fn try_recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(usize::MAX, Wait::Try)
    }

    /// Receives the next message, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TooLong`.
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(usize::MAX, within(timeout))
    }

    /// Receives the next message, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    pub fn recv_bytes_deadline(&self, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(usize::MAX, before(deadline))
    }

    /// Receives the next message if it has at most `max` bytes, waiting for one as long as it takes. A longer one stays in the pipe.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    ///
    /// ```
    /// use crossproc_primitives::{Pipe, pipe::RecvError};
    ///
    /// let (receiver, sender) = Pipe::simplex::<()>()?;
    /// sender.send_bytes(&[7; 1000])?;
    /// sender.send_bytes(b"short")?;
    /// assert_eq!(receiver.recv_bytes_max(100), Err(RecvError::TooLong { bytes: 1000 }));
    /// assert_eq!(receiver.discard()?, 1000); // or receive it with a higher limit
    /// assert_eq!(receiver.recv_bytes_max(100)?, b"short");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_bytes_max(&self, max: usize) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(max, Wait::FOREVER)
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), if there is a message.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut`.
    pub fn try_recv_bytes_max(&self, max: usize) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(max, Wait::Try)
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_bytes_max_timeout(&self, max: usize, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(max, within(timeout))
    }

    /// As [`recv_bytes_max`](Self::recv_bytes_max), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_bytes_max_deadline(&self, max: usize, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_bytes_within(max, before(deadline))
    }

    fn recv_bytes_within(&self, max: usize, wait: Wait) -> Result<Vec<u8>, RecvError> {
        self.next(wait, max, &mut |message: Message<'_>, _| Taken::Yes(message.into_vec()))
    }

    /// Receives the next message into `buffer`, waiting for one as long as it takes; returns how long it is. One that is longer than the
    /// buffer stays in the pipe.
    ///
    /// Of a message in parts, each goes there at once: if it does not come to its end, some of it may stand there, but no more than there is
    /// room for.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    pub fn recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, Wait::FOREVER)
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), if there is a message.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut`.
    pub fn try_recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, Wait::Try)
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_bytes_into_timeout(&self, buffer: &mut [u8], timeout: Duration) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, within(timeout))
    }

    /// As [`recv_bytes_into`](Self::recv_bytes_into), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_bytes_into_deadline(&self, buffer: &mut [u8], deadline: Instant) -> Result<usize, RecvError> {
        self.recv_into_within(buffer, before(deadline))
    }

    #[inline]
    fn recv_into_within(&self, buffer: &mut [u8], wait: Wait) -> Result<usize, RecvError> {
        let received = self.next(wait, buffer.len(), &mut Fill(buffer));
        if received.is_err() {
            self.local.borrow_mut().gathered.keep(buffer);
        }
        received
    }

    /// Drops the next message, however long, if there is one; returns its length.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `TooLong`.
    pub fn discard(&self) -> Result<usize, RecvError> {
        match self.next(Wait::Try, 0, &mut |_: Message<'_>, _| Taken::Yes(0)) {
            Err(RecvError::TooLong { bytes }) => {
                let local = &mut *self.local.borrow_mut();
                if local.gathered.is_whole {
                    local.gathered.clear();
                    local.tell();
                    return Ok(bytes);
                }
                self.discard_long(local)
            }
            result => result,
        }
    }

    /// A message that is still in the ring, at least in a part.
    fn discard_long(&self, local: &mut Local) -> Result<usize, RecvError> {
        let live = self.link.live().ok_or(RecvError::NotAttached)?;
        let ring = self.link.ring();
        local.reader.take_turn(ring, live).map_err(|no_turn| match no_turn {
            NoTurn::Taken => RecvError::Empty,
            NoTurn::Damaged => RecvError::Damaged,
        })?;
        let found = self.next_chunk(local);
        let len = match found {
            Ok(Some(chunk @ (Chunk::Whole { .. } | Chunk::Begin { .. }))) => {
                local.reader.take(ring, chunk);
                match chunk {
                    Chunk::Whole { at, tag } => Ok(self.behind_label(at, tag).len),
                    Chunk::Begin { len, .. } => Ok(usize::try_from(len).unwrap_or(usize::MAX)),
                    _ => Err(RecvError::Empty),
                }
            }
            Ok(_) => Err(RecvError::Empty), // another one was faster
            Err(_) => Err(RecvError::Damaged),
        };
        // The rest of a message that has begun is passed over, as that of a dead reader is.
        self.pass_turn(local);
        len
    }

    /// True if a message is there, or has begun to come, or none will ever come (then receiving says why); waits at most `timeout` for
    /// that, or as long as it takes.
    ///
    /// As Python's `poll`, but for one who has to wait for the rest of a long message.
    ///
    /// # Errors
    ///
    /// [`NotAttached`](RecvError::NotAttached), [`Damaged`](RecvError::Damaged).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let (receiver, sender) = crossproc_primitives::Pipe::simplex::<u8>()?;
    /// assert!(!receiver.poll(Some(Duration::ZERO))?);
    /// sender.send(&1)?;
    /// assert!(receiver.poll(None)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn poll(&self, timeout: Option<Duration>) -> Result<bool, RecvError> {
        let wait = match timeout {
            None => Wait::FOREVER,
            Some(Duration::ZERO) => Wait::Try,
            Some(timeout) => within(timeout),
        };
        let live = self.link.live().ok_or(RecvError::NotAttached)?;
        let local = &mut *self.local.borrow_mut();
        let found =
            self.link.wait(live, &self.spin, wait, |effort, busy| self.look(live, local, effort, busy));
        match found {
            Ok(Err(RecvError::Closed | RecvError::PeerDied)) | Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Something if a receive would not wait now (but for the rest of a message).
    fn look(
        &self,
        live: &Participants,
        local: &mut Local,
        effort: Effort,
        busy: &mut bool,
    ) -> Option<Result<(), RecvError>> {
        if local.gathered.is_whole {
            return Some(Ok(()));
        }
        if self.finds_nothing(live, local, effort) {
            return None;
        }
        let ring = self.link.ring();
        match local.reader.take_turn(ring, live) {
            Ok(()) => {}
            Err(NoTurn::Damaged) => return Some(Err(RecvError::Damaged)),
            Err(NoTurn::Taken) => {
                *busy = true;
                return None;
            }
        }
        let found = match self.next_chunk(local) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => self.nothing_there(live, local, effort)?.map(drop),
            Err(_) => Err(RecvError::Damaged),
        };
        self.leave_off(local);
        Some(found)
    }

    // ---- In place

    /// Looks at the next message in place, waiting for one as long as it takes. It stays in the pipe until [`Peeked::release`]; until
    /// then, or until the guard is dropped, nobody else receives through this end.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`, `TimedOut` or `TooLong`.
    ///
    /// ```
    /// let (mut receiver, sender) = crossproc_primitives::Pipe::simplex::<()>()?;
    /// sender.send_bytes(b"first")?;
    /// sender.send_bytes(b"second")?;
    /// assert_eq!(&*receiver.peek()?, b"first"); // dropped: it stays
    /// let message = receiver.peek()?;
    /// assert_eq!(&*message, b"first");
    /// message.release();
    /// assert_eq!(receiver.recv_bytes()?, b"second");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn peek(&mut self) -> Result<Peeked<'_, T>, RecvError> {
        self.peek_within(Wait::FOREVER)
    }

    /// As [`peek`](Self::peek), if there is a message.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `TooLong`.
    pub fn try_peek(&mut self) -> Result<Peeked<'_, T>, RecvError> {
        self.peek_within(Wait::Try)
    }

    /// As [`peek`](Self::peek), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TooLong`.
    pub fn peek_timeout(&mut self, timeout: Duration) -> Result<Peeked<'_, T>, RecvError> {
        self.peek_within(within(timeout))
    }

    /// As [`peek`](Self::peek), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TooLong`.
    pub fn peek_deadline(&mut self, deadline: Instant) -> Result<Peeked<'_, T>, RecvError> {
        self.peek_within(before(deadline))
    }

    fn peek_within(&mut self, wait: Wait) -> Result<Peeked<'_, T>, RecvError> {
        let mut look = |_: Message<'_>, shown: Option<Shown>| Taken::No(shown.unwrap_or(Shown::Gathered));
        let shown = self.next(wait, usize::MAX, &mut look)?;
        let gathered = match shown {
            Shown::InPlace { .. } => None,
            Shown::Gathered => Some(self.take_gathered()),
        };
        Ok(Peeked { receiver: self, shown, gathered })
    }

    pub(super) fn take_shown(&mut self, at: Shown) {
        if let (Shown::InPlace { chunk, .. }, Some(_)) = (at, self.link.live()) {
            let local = &mut *self.local.borrow_mut();
            // Nobody makes handles of them: they are closed.
            self.receive_parcel(local, chunk);
            local.came = Came::Nothing;
            local.reader.take(self.link.ring(), chunk);
        }
    }

    /// A message that was gathered, to be looked at.
    fn take_gathered(&mut self) -> Gathered {
        let local = self.local.get_mut();
        let gathered = std::mem::take(&mut local.gathered);
        local.tell();
        gathered
    }

    pub(super) fn put_gathered_back(&mut self, gathered: Gathered) {
        let local = self.local.get_mut();
        local.gathered = gathered;
        local.tell();
    }

    pub(super) fn give_turn_back(&mut self) {
        // In a forked child the turn is its parent's.
        if self.link.live().is_some() && self.local.get_mut().reader.has_turn() {
            self.pass_turn(&mut self.local.borrow_mut());
        }
    }

    // ---- The end

    /// Whether [`Read`] gives up with `WouldBlock` where it would have to wait. Of this handle only; `recv` has `try_` forms.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.set(nonblocking);
    }

    /// Drops this handle. The end is closed if it was the last one.
    pub fn close(self) {}

    /// True if nobody has the sending end: nothing comes any more but what is there.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let watch = &mut self.local.borrow_mut().watch;
        self.link
            .live()
            .is_none_or(|live| matches!(self.link.other_end(live, watch), Presence::Left | Presence::Died))
    }

    /// The segment in which the pipe lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.link.segment()
    }

    /// Looks for words in shared memory that contradict each other. Changes nothing; exact while nobody uses the pipe.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.link.ring().audit().map_err(Violation::new)
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a value, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`, `TimedOut` or `TooLong`.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_within(Wait::FOREVER)
    }

    /// Receives a value if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `TooLong`.
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.recv_within(Wait::Try)
    }

    /// Receives a value, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TooLong`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_within(within(timeout))
    }

    /// Receives a value, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`recv_timeout`](Self::recv_timeout).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvError> {
        self.recv_within(before(deadline))
    }

    /// Receives values until none comes any more, waiting for each.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    #[inline]
    fn recv_within(&self, wait: Wait) -> Result<T, RecvError> {
        let mut buffer = std::mem::take(&mut self.local.borrow_mut().buffer);
        // Of a message in parts, its memory itself.
        let mut gathered = (Vec::new(), 0);
        let received = self.next(wait, usize::MAX, &mut |message: Message<'_>, _| {
            buffer.clear();
            match message {
                Message::InPlace(bytes, at) => bytes.append(at, &mut buffer),
                Message::Gathered(it) => gathered = (std::mem::take(&mut it.bytes), it.read),
                Message::Direct(_) => {} // of who has a buffer
            }
            Taken::Yes(())
        });
        let came = std::mem::take(&mut self.local.borrow_mut().came);
        let (long, read) = gathered;
        // Without the handle: a `Deserialize` may use it.
        let value =
            received.and_then(|()| decode(if long.is_empty() { &buffer } else { &long[read..] }, came));
        let local = &mut *self.local.borrow_mut();
        local.gathered.reuse(long);
        if buffer.capacity() <= BUFFER_KEPT {
            local.buffer = buffer;
        }
        value
    }
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], came: Came) -> Result<T, RecvError> {
    // What an earlier failure of this thread left.
    let _ = handover::last_error();
    let descriptors = match came {
        Came::Nothing => return decode_here(bytes),
        Came::Handles(descriptors) => descriptors,
        Came::Lost => return Err(RecvError::HandlesLost),
    };
    handover::unpack(descriptors, || decode_here(bytes))
}

fn decode_here<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecvError> {
    let undecodable = |why| RecvError::Undecodable(Miscoded { layout: layout_of::<T>(), why });
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(undecodable(Fault::BytesLeft)),
        Err(_) if handover::last_error().is_some() => Err(undecodable(Fault::Handle)),
        Err(error) => Err(undecodable(fault(&error))),
    }
}

/// Reads from the message that comes next, or from the rest of the one before. Messages without bytes are passed over.
impl<T> Read for &Receiver<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(buf)])
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        let wait = if self.nonblocking.get() { Wait::Try } else { Wait::FOREVER };
        loop {
            match self.read_some(bufs, wait) {
                Ok(0) => {}
                Ok(n) => return Ok(n),
                Err(RecvError::Closed) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<T> Receiver<T> {
    fn read_some(&self, bufs: &mut [IoSliceMut<'_>], wait: Wait) -> Result<usize, RecvError> {
        let mut rest = Vec::new();
        let read = self.next(wait, usize::MAX, &mut |message: Message<'_>, _| match message {
            Message::Gathered(gathered) => {
                let n = scatter(gathered.rest(), bufs);
                gathered.read += n;
                let all = gathered.rest().is_empty();
                if all { Taken::Yes(n) } else { Taken::No(n) }
            }
            Message::InPlace(bytes, at) if bufs.first().is_some_and(|buf| buf.len() >= at.len) => {
                bytes.read(at, &mut bufs[0]);
                Taken::Yes(at.len)
            }
            Message::InPlace(bytes, at) => {
                bytes.append(at, &mut rest);
                let n = scatter(&rest, bufs);
                Taken::Yes(n)
            }
            Message::Direct(_) => Taken::Yes(0), // of who has a buffer
        })?;
        if read < rest.len() {
            let local = &mut *self.local.borrow_mut();
            local.gathered = Gathered { bytes: rest, read, is_whole: true, ..Gathered::default() };
            local.tell();
        }
        Ok(read)
    }
}

/// Fills one buffer after the other; returns how many bytes they took.
fn scatter(mut from: &[u8], bufs: &mut [IoSliceMut<'_>]) -> usize {
    let all = from.len();
    for buf in bufs {
        let n = from.len().min(buf.len());
        let (now, later) = from.split_at(n);
        buf[..n].copy_from_slice(now);
        from = later;
    }
    all - from.len()
}

/// As for `&Receiver`.
impl<T> Read for Receiver<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self).read_vectored(bufs)
    }
}

impl<T> Clone for Receiver<T> {
    /// Another handle of the same end. What this one has of a message stays with it.
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.link))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // In the middle of a message: the rest of it is passed over.
        self.give_turn_back();
    }
}

impl<T> Serialize for Receiver<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.link.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Receiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let link = Link::deserialize(deserializer, layout_of::<T>(), End::Reader)?;
        Ok(Self::of(Arc::new(link)))
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.link.debug("Receiver", f)
    }
}
