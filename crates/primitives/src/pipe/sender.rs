//! The end of a direction at which messages are sent.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Write};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossproc_ring::{End, Extent, FrameWriter, NoTurn, Presence, Watch};
use crossproc_segment::{Participants, Segment, handover};
use crossproc_sync::{Effort, WaitFailure};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes::{Reserved, RingBytes};
use super::courier::{CLEAN, LABEL, PARCEL, Parcel, Refused};
use super::error::SendError;
use super::link::{Link, Loans};
use super::pace::Pace;
use crate::audit::Violation;
use crate::lock::{Wait, before, within};
use crate::object_queue::{BUFFER_KEPT, fault, layout_of};
use crate::spin::Spin;
use crate::transfer::{Fault, Miscoded};

/// A message on its way out.
pub(super) struct Outgoing<'a> {
    slices: &'a [IoSlice<'a>],
    len: usize,
    /// Its handles, if it has any.
    parcel: Option<&'a Parcel>,
}

impl<'a> Outgoing<'a> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn new(slices: &'a [IoSlice<'a>], parcel: Option<&'a Parcel>) -> Self {
        let label = if parcel.is_some() { LABEL } else { 0 };
        Self { slices, len: total(slices) + label, parcel }
    }

    fn is_sent(&self) {
        if let Some(parcel) = self.parcel {
            parcel.is_sent();
        }
    }

    fn tag(&self) -> u8 {
        if self.parcel.is_some() { PARCEL } else { 0 }
    }
}

/// The sending end of a pipe, or of one direction of a duplex one.
///
/// Clones share the end: all of them send, in this process and in those that handles are handed to, and no message is
/// torn by another. The end is closed when the last handle of it is dropped ([`RecvError::Closed`](super::RecvError::Closed)), or
/// when the last process that has one dies ([`RecvError::PeerDied`](super::RecvError::PeerDied)).
///
/// A message of up to half the pipe's capacity goes at once: if the sender is killed before that moment, nothing was sent. A longer one
/// goes in parts, and nobody else sends meanwhile; if the sender is killed in the middle, no receiver gets any of it.
///
/// A handle that is on its way to another process keeps the end open, as long as the process that sent it has another handle in the
/// pipe's segment. (Should it never arrive, until that process ends.)
///
/// Values may have handles in them: of this crate (a segment, a queue, another end of a pipe), and descriptors
/// ([`Handed`](crossproc_segment::handover::Handed)), at most 16192 in a message. The receiver's are its own, and what was
/// sent may be dropped.
///
/// It is `Send` and not `Sync`: give each thread a clone.
///
/// ```
/// use crossproc_primitives::Pipe;
///
/// let (receiver, sender) = Pipe::simplex::<String>()?;
/// let other = sender.clone();
/// std::thread::scope(|s| {
///     s.spawn(move || sender.send(&"from here".to_owned()));
///     s.spawn(move || other.send(&"and from there".to_owned()));
/// });
/// assert_eq!(receiver.recv()?.len() + receiver.recv()?.len(), 23);
/// assert!(receiver.recv().is_err(), "both are gone");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sender<T> {
    pub(super) link: Arc<Link>,
    pub(super) local: RefCell<Local>,
    spin: Spin,
    nonblocking: Cell<bool>,
    message: PhantomData<fn(T) -> T>,
}

/// What a handle knows.
pub(super) struct Local {
    pub(super) writer: FrameWriter,
    watch: Watch,
    /// Behind the last CLEAN that it wrote.
    cleaned: u64,
    /// Values are serialised into it: before it is this handle's turn, so that nobody waits for a `Serialize`.
    buffer: Vec<u8>,
}

/// What became of an attempt.
pub(super) enum Turn {
    Sent,
    /// A part of it.
    Progress,
}

impl<T> Sender<T> {
    pub(super) fn of(link: Arc<Link>) -> Self {
        let local =
            Local { writer: FrameWriter::default(), watch: Watch::default(), cleaned: 0, buffer: Vec::new() };
        Self {
            link,
            local: RefCell::new(local),
            spin: Spin::new(),
            nonblocking: Cell::new(false),
            message: PhantomData,
        }
    }

    pub(super) fn bytes(&self) -> &RingBytes {
        &self.link.bytes
    }

    // ---- Bytes

    /// Sends bytes as one message, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`, `TimedOut` or `NotAtOnce`.
    #[inline]
    pub fn send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_slices(&[IoSlice::new(message)], message.len(), Wait::FOREVER)
    }

    /// Sends bytes as one message, if there is room for it.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut`.
    #[inline]
    pub fn try_send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_slices(&[IoSlice::new(message)], message.len(), Wait::Try)
    }

    /// Sends bytes as one message, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `NotAtOnce`.
    pub fn send_bytes_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_slices(&[IoSlice::new(message)], message.len(), within(timeout))
    }

    /// Sends bytes as one message, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_bytes_deadline(&self, message: &[u8], deadline: Instant) -> Result<(), SendError> {
        self.send_slices(&[IoSlice::new(message)], message.len(), before(deadline))
    }

    /// Sends the bytes of several slices, one behind the other, as one message; waits for room as long as it takes.
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes).
    ///
    /// ```
    /// use std::io::IoSlice;
    ///
    /// let (receiver, sender) = crossproc_primitives::Pipe::simplex::<()>()?;
    /// sender.send_vectored(&[IoSlice::new(b"head, "), IoSlice::new(b"body")])?;
    /// assert_eq!(receiver.recv_bytes()?, b"head, body");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn send_vectored(&self, slices: &[IoSlice<'_>]) -> Result<(), SendError> {
        self.send_slices(slices, total(slices), Wait::FOREVER)
    }

    /// Bytes of a message that goes at once, at the most.
    #[must_use]
    pub fn at_once_max(&self) -> usize {
        self.link.ring().shape().whole_max().min(self.link.message_max)
    }

    /// Bytes of a message at the most.
    #[must_use]
    pub fn message_max(&self) -> usize {
        self.link.message_max
    }

    /// Bytes that the pipe has room for in this direction, with 8 and up to 7 more for each message.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.link.ring().shape().bytes()
    }

    #[inline]
    fn send_slices(&self, slices: &[IoSlice<'_>], len: usize, wait: Wait) -> Result<(), SendError> {
        self.send_message(&Outgoing { slices, len, parcel: None }, wait)
    }

    #[inline]
    fn send_message(&self, message: &Outgoing<'_>, wait: Wait) -> Result<(), SendError> {
        let live = self.link.live().ok_or(SendError::NotAttached)?;
        let local = &mut *self.local.borrow_mut();
        self.end_forgotten(local);
        if message.len <= self.at_once_max() {
            let mut busy = false;
            if let Some(sent) = self.attempt(live, local, message, &mut busy) {
                return sent;
            }
            if wait == Wait::Try && !busy {
                return Err(SendError::Full);
            }
        }
        self.send_later(live, local, message, wait)
    }

    /// Sends a message that goes at once.
    #[inline]
    pub(super) fn attempt(
        &self,
        live: &Participants,
        local: &mut Local,
        message: &Outgoing<'_>,
        busy: &mut bool,
    ) -> Option<Result<(), SendError>> {
        let room = match self.room(live, local, message.len, busy)? {
            Ok(room) => room,
            Err(error) => return Some(Err(error)),
        };
        match message.parcel {
            None => self.link.bytes.write(room, message.slices, 0),
            Some(parcel) => {
                if let Err(error) = self.send_parcel(parcel, local) {
                    self.pass_turn(local);
                    return error.map(Err);
                }
                self.write_labelled(room, parcel, message.slices, 0);
            }
        }
        local.writer.publish(self.link.ring(), room, message.len, message.tag());
        message.is_sent();
        self.pass_turn(local);
        Some(Ok(()))
    }

    /// In its turn, and when there is room for the message. `None`: not now.
    #[cold]
    fn send_parcel(&self, parcel: &Parcel, local: &mut Local) -> Result<(), Option<SendError>> {
        let courier = self.link.courier.as_ref().ok_or(SendError::NoHandles)?;
        let Err(refused) = courier.send(parcel, local.writer.position()) else { return Ok(()) };
        if matches!(refused, Refused::Now | Refused::TooMany) {
            self.ask_to_clean(parcel, local);
        }
        Err(match refused {
            Refused::Now => None,
            Refused::TooMany => Some(SendError::TooManyHandles),
            Refused::Closed => Some(SendError::Closed),
            Refused::Never => {
                let why = Fault::NotPassedOn;
                Some(SendError::Unserializable(Miscoded { layout: layout_of::<T>(), why }))
            }
        })
    }

    /// Has the receiver drop packets without a message, which may be why the socket is full. Once until it has come so far.
    fn ask_to_clean(&self, parcel: &Parcel, local: &mut Local) {
        let ring = self.link.ring();
        let received = local.writer.position().saturating_sub(ring.len() as u64);
        if received < local.cleaned {
            return;
        }
        if let Some(room) = local.writer.room(ring, LABEL) {
            self.link.bytes.write(room, &[IoSlice::new(&parcel.clean_label())], 0);
            local.writer.publish(ring, room, LABEL, CLEAN);
            local.cleaned = local.writer.position();
        }
    }

    #[cold]
    fn write_labelled(&self, to: Extent, parcel: &Parcel, slices: &[IoSlice<'_>], skip: usize) {
        let label = parcel.label();
        let all: Vec<_> = std::iter::once(IoSlice::new(&label)).chain(slices.iter().copied()).collect();
        self.link.bytes.write(to, &all, skip);
    }

    /// Takes the turn, and finds room for a message that goes at once. Without room it gives the turn back.
    #[inline]
    fn room(
        &self,
        live: &Participants,
        local: &mut Local,
        len: usize,
        busy: &mut bool,
    ) -> Option<Result<Extent, SendError>> {
        let has_room = |local: &Local| local.writer.may_have_room(self.link.ring(), len);
        if let Err(error) = self.take_turn(live, local, busy, has_room)? {
            return Some(Err(error));
        }
        let room = local.writer.room(self.link.ring(), len);
        if room.is_none() {
            self.pass_turn(local);
        }
        room.map(Ok)
    }

    /// Takes the turn, if there is anything to do in it: others would have to wait for it, and be woken after it.
    #[inline]
    fn take_turn(
        &self,
        live: &Participants,
        local: &mut Local,
        busy: &mut bool,
        has_room: impl FnOnce(&Local) -> bool,
    ) -> Option<Result<(), SendError>> {
        match self.link.other_end(live, &mut local.watch) {
            Presence::There | Presence::NotYet => {}
            Presence::Left => return Some(Err(SendError::Closed)),
            Presence::Died => return Some(Err(SendError::PeerDied)),
        }
        if !local.writer.has_turn() && !has_room(local) {
            return None;
        }
        match local.writer.take_turn(self.link.ring(), live) {
            Ok(()) => Some(Ok(())),
            Err(NoTurn::Damaged) => Some(Err(SendError::Damaged)),
            Err(NoTurn::Taken) => {
                *busy = true;
                None
            }
        }
    }

    #[inline]
    pub(super) fn pass_turn(&self, local: &mut Local) {
        local.writer.pass_turn(self.link.ring());
        self.link.notify();
    }

    /// At the start of an operation: a place or a future that was leaked (`mem::forget`) has left the turn with this handle.
    #[inline]
    fn end_forgotten(&self, local: &mut Local) {
        if local.writer.has_turn() {
            local.writer.abort(self.link.ring());
            self.pass_turn(local);
        }
    }

    /// Gives up what this handle is about to send, if there is anything.
    pub(super) fn give_up(&mut self) {
        // In a forked child the turn is its parent's.
        if self.link.live().is_some() {
            self.end_forgotten(&mut self.local.borrow_mut());
        }
    }

    #[cold]
    #[inline(never)]
    fn send_later(
        &self,
        live: &Participants,
        local: &mut Local,
        message: &Outgoing<'_>,
        wait: Wait,
    ) -> Result<(), SendError> {
        if message.len > self.link.message_max {
            return Err(SendError::TooLong { most: self.link.message_max });
        }
        let at_once = message.len <= self.at_once_max();
        if !at_once && wait == Wait::Try {
            return Err(SendError::NotAtOnce { most: self.at_once_max() });
        }
        let (mut done, mut pace) = (0, Pace::default());
        let result = loop {
            let attempt = |_: Effort, busy: &mut bool| {
                if at_once {
                    let sent = self.attempt(live, local, message, busy)?;
                    return Some(sent.map(|()| Turn::Sent));
                }
                self.send_part(live, local, message, &mut done, busy)
            };
            match self.link.wait(live, &self.spin, wait, attempt) {
                Ok(Ok(Turn::Progress)) => {
                    if pace.is_over(local.writer.position(), self.link.shape, wait).is_some() {
                        break Err(SendError::TimedOut);
                    }
                }
                Ok(result) => break result.map(drop),
                Err(WaitFailure::WouldBlock) => break Err(SendError::Full),
                Err(WaitFailure::TimedOut) => break Err(SendError::TimedOut),
            }
        };
        if local.writer.has_turn() {
            local.writer.abort(self.link.ring());
            self.pass_turn(local);
        }
        result
    }

    /// Sends what there is room for of a message that goes in parts.
    pub(super) fn send_part(
        &self,
        live: &Participants,
        local: &mut Local,
        message: &Outgoing<'_>,
        done: &mut usize,
        busy: &mut bool,
    ) -> Option<Result<Turn, SendError>> {
        let ring = self.link.ring();
        if let Err(error) = self.take_turn(live, local, busy, |local| local.writer.may_begin(ring))? {
            return Some(Err(error));
        }
        if !local.writer.is_in_frame() {
            // First: what is sent of a parcel without a message is in the way of others.
            if !local.writer.can_begin(ring) {
                self.pass_turn(local);
                return None;
            }
            if let Some(Err(error)) = message.parcel.map(|parcel| self.send_parcel(parcel, local)) {
                self.pass_turn(local);
                return error.map(Err);
            }
            if !local.writer.begin(ring, message.len as u64, message.tag()) {
                self.pass_turn(local);
                return None;
            }
        }
        let part = local.writer.room_for_part(ring)?;
        match message.parcel {
            None => self.link.bytes.write(part, message.slices, *done),
            Some(parcel) => self.write_labelled(part, parcel, message.slices, *done),
        }
        *done += part.len;
        let last = local.writer.publish_part(ring, part);
        if last {
            message.is_sent();
            self.pass_turn(local);
            return Some(Ok(Turn::Sent));
        }
        self.link.notify();
        Some(Ok(Turn::Progress))
    }

    // ---- In place

    /// A place for a message of up to `n` bytes, waiting for room as long as it takes. What was written there is sent by
    /// [`Reserved::commit`]; until then nobody else sends through this end.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; [`NotAtOnce`](SendError::NotAtOnce) for more than [`at_once_max`](Self::at_once_max).
    ///
    /// ```
    /// let (receiver, mut sender) = crossproc_primitives::Pipe::simplex::<()>()?;
    /// let mut place = sender.reserve(100)?;
    /// place[..5].copy_from_slice(b"hello");
    /// place.commit(5);
    /// assert_eq!(receiver.recv_bytes()?, b"hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(&mut self, n: usize) -> Result<Reserved<'_, T>, SendError> {
        self.reserve_within(n, Wait::FOREVER)
    }

    /// As [`reserve`](Self::reserve), if there is room.
    ///
    /// # Errors
    ///
    /// As there, and [`Full`](SendError::Full).
    pub fn try_reserve(&mut self, n: usize) -> Result<Reserved<'_, T>, SendError> {
        self.reserve_within(n, Wait::Try)
    }

    /// As [`reserve`](Self::reserve), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](SendError::TimedOut).
    pub fn reserve_timeout(&mut self, n: usize, timeout: Duration) -> Result<Reserved<'_, T>, SendError> {
        self.reserve_within(n, within(timeout))
    }

    /// As [`reserve`](Self::reserve), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](SendError::TimedOut).
    pub fn reserve_deadline(&mut self, n: usize, deadline: Instant) -> Result<Reserved<'_, T>, SendError> {
        self.reserve_within(n, before(deadline))
    }

    fn reserve_within(&mut self, n: usize, wait: Wait) -> Result<Reserved<'_, T>, SendError> {
        let room = self.find_room(n, wait)?;
        Ok(Reserved { sender: self, room })
    }

    fn find_room(&self, n: usize, wait: Wait) -> Result<Extent, SendError> {
        let live = self.link.live().ok_or(SendError::NotAttached)?;
        if n > self.at_once_max() {
            return Err(SendError::NotAtOnce { most: self.at_once_max() });
        }
        let local = &mut *self.local.borrow_mut();
        self.end_forgotten(local);
        let room = self.link.wait(live, &self.spin, wait, |_, busy| self.room(live, local, n, busy));
        match room {
            Ok(room) => room,
            Err(WaitFailure::WouldBlock) => Err(SendError::Full),
            Err(WaitFailure::TimedOut) => Err(SendError::TimedOut),
        }
    }

    pub(super) fn commit(&mut self, room: Extent, n: usize) {
        if self.link.live().is_some() {
            self.local.get_mut().writer.publish(self.link.ring(), room, n, 0);
        }
    }

    pub(super) fn give_turn_back(&mut self) {
        // In a forked child the turn is its parent's.
        if self.link.live().is_some() {
            let local = self.local.get_mut();
            local.writer.pass_turn(self.link.ring());
            self.link.notify();
        }
    }

    // ---- The end

    /// Whether [`Write`] gives up with `WouldBlock` where it would have to wait. Of this handle only; `send` has `try_` forms.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.set(nonblocking);
    }

    /// Drops this handle. The end is closed if it was the last one.
    pub fn close(self) {}

    /// True if nobody has the receiving end: what is sent can not be received any more.
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

impl<T: Serialize> Sender<T> {
    /// Sends a value, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`, `TimedOut` or `NotAtOnce`.
    pub fn send(&self, message: &T) -> Result<(), SendError> {
        self.send_within(message, Wait::FOREVER)
    }

    /// Sends a value if there is room.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut`.
    pub fn try_send(&self, message: &T) -> Result<(), SendError> {
        self.send_within(message, Wait::Try)
    }

    /// Sends a value, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `NotAtOnce`.
    pub fn send_timeout(&self, message: &T, timeout: Duration) -> Result<(), SendError> {
        self.send_within(message, within(timeout))
    }

    /// Sends a value, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`send_timeout`](Self::send_timeout).
    pub fn send_deadline(&self, message: &T, deadline: Instant) -> Result<(), SendError> {
        self.send_within(message, before(deadline))
    }

    /// Serialises a value behind what the buffer has, and its handles.
    pub(super) fn encode(
        &self,
        message: &T,
        buffer: Vec<u8>,
    ) -> Result<(Vec<u8>, Option<Parcel>), SendError> {
        let live = self.link.live().ok_or(SendError::NotAttached)?;
        // What an earlier failure of this thread left.
        let _ = handover::last_error();
        let ((written, descriptors), loans) =
            Loans::of(|| handover::pack(|| postcard::to_extend(message, buffer)));
        let bytes = written.map_err(|error| {
            let why = if handover::last_error().is_some() { Fault::Handle } else { fault(&error) };
            SendError::Unserializable(Miscoded { layout: layout_of::<T>(), why })
        })?;
        let parcel = Parcel::new(descriptors, loans, live);
        if parcel.is_some() && self.link.courier.is_none() {
            return Err(SendError::NoHandles);
        }
        Ok((bytes, parcel))
    }

    fn send_within(&self, message: &T, wait: Wait) -> Result<(), SendError> {
        let mut buffer = std::mem::take(&mut self.local.borrow_mut().buffer);
        buffer.clear();
        let (buffer, parcel) = self.encode(message, buffer)?;
        let sent = match &parcel {
            None => self.send_slices(&[IoSlice::new(&buffer)], buffer.len(), wait),
            Some(parcel) => {
                let slices = [IoSlice::new(&buffer)];
                self.send_message(&Outgoing::new(&slices, Some(parcel)), wait)
            }
        };
        if buffer.capacity() <= BUFFER_KEPT {
            self.local.borrow_mut().buffer = buffer;
        }
        sent
    }
}

/// A write is a message, of at most [`at_once_max`](Sender::at_once_max) bytes: the first ones of a longer buffer. Nothing is buffered,
/// so there is nothing to flush. To write nothing sends nothing.
impl<T> Write for &Sender<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let len = total(slices).min(self.at_once_max());
        if len > 0 {
            let wait = if self.nonblocking.get() { Wait::Try } else { Wait::FOREVER };
            self.send_slices(slices, len, wait)?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As for `&Sender`.
impl<T> Write for Sender<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self).write(buf)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn total(slices: &[IoSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

impl<T> Clone for Sender<T> {
    /// Another handle of the same end.
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.link))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl<T> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.link.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let link = Link::deserialize(deserializer, layout_of::<T>(), End::Writer)?;
        Ok(Self::of(Arc::new(link)))
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.link.debug("Sender", f)
    }
}
