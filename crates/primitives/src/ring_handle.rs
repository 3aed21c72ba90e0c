//! What the handles of all queues are, whatever a message is: a place in the exchange ring, and the waiting.
//!
//! ```text
//!  the head (the ring's words, and what else a queue has); claims, 8 bytes for each lane; records; slots; cells
//! ```
//!
//! Each part begins on a pair of cache lines. What is in the cells is the business of `queue.rs` and `bytes_queue.rs`.

use std::cell::OnceCell;
use std::time::Instant;

use crossproc_atomic::{AtomicPair, AtomicU64, EventCount, Liveness, is_process_stamp, process_stamp};
use crossproc_ring::{Exchange, ExchangeWords, Hand, Lane, Refusal, Shape};
use crossproc_segment::{Error, ErrorKind, ObjectSpec, Participants, Placed, PlacedSlice, Segment};
use crossproc_sync::{Effort, WaitFailure, wait_for};

use crate::handle::{Fresh, Handle};
use crate::lock::Wait;
use crate::spin::Spin;
use crate::transfer::{RecvError, SendError, Unusable};

/// Where the parts behind the head begin, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    claims: u64,
    records: u64,
    slots: u64,
    pub(crate) cells: u64,
}

impl Parts {
    /// Behind a head of so many bytes, a multiple of 128.
    pub(crate) fn of(shape: &Shape, head: u64) -> Self {
        let after = |at: u64, bytes: usize| (at + bytes as u64).next_multiple_of(128);
        let records = after(head, shape.lanes() * size_of::<AtomicU64>());
        let slots = after(records, shape.record_words() * size_of::<AtomicU64>());
        Self { claims: head, records, slots, cells: after(slots, shape.capacity() * size_of::<AtomicPair>()) }
    }
}

/// How large a ring is, if it can be.
pub(crate) fn shape_of(capacity: usize, lanes: usize, hands: usize) -> Result<Shape, Error> {
    Shape::new(capacity as u64, lanes as u64, hands as u64).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidLength,
            format!(
                "a queue of {capacity} with {lanes} lanes of {hands} hands: none of them can be 0, and there are at most {} \
                 lanes, {} hands and {} cells (capacity + lanes x hands)",
                Shape::LANES_MAX,
                Shape::HANDS_MAX,
                Shape::CELLS_MAX
            ),
        )
    })
}

/// The queue of this name, whatever its size: `any` says what it must be, `made` what it is if there is none.
pub(crate) fn open_or_make(
    segment: &Segment,
    name: &str,
    any: &ObjectSpec,
    made: &ObjectSpec,
    first: impl FnOnce(&Fresh<'_>),
) -> Result<Handle<ExchangeWords>, Error> {
    let open = || {
        let object = segment.open_object(name, any)?;
        Handle::attach(segment.clone(), object.index, any)
    };
    match open() {
        Err(e) if e.kind() == ErrorKind::NotFound && !segment.is_read_only() => {}
        opened => return opened,
    }
    match Handle::named(segment, name, made, first) {
        // Another process was faster, with another shape: its queue is the one.
        Err(e) if e.kind() == ErrorKind::TooSmall => open(),
        made => made,
    }
}

/// Where the ring's parts are: words, claims, records, slots.
pub(crate) type Placements =
    (Placed<ExchangeWords>, PlacedSlice<AtomicU64>, PlacedSlice<AtomicU64>, PlacedSlice<AtomicPair>);

/// A handle of a ring: a lane of its own, claimed when it is made and given back when it is dropped.
pub(crate) struct RingHandle {
    pub(crate) handle: Handle<ExchangeWords>,
    claims: PlacedSlice<AtomicU64>,
    records: PlacedSlice<AtomicU64>,
    slots: PlacedSlice<AtomicPair>,
    shape: Shape,
    parts: Parts,
    /// In which incarnation of the process the handle was made.
    stamp: u64,
    pub(crate) lane: OnceCell<Lane>,
    sending: Spin,
    receiving: Spin,
}

impl RingHandle {
    /// Writes the first words of a ring, behind a head of so many bytes.
    pub(crate) fn init(fresh: &Fresh<'_>, shape: Shape, head: u64) {
        let parts = Parts::of(&shape, head);
        let words = fresh.place::<ExchangeWords>(0);
        let claims = fresh.place_slice(parts.claims, shape.lanes() as u64);
        let records = fresh.place_slice(parts.records, shape.record_words() as u64);
        let slots = fresh.place_slice(parts.slots, shape.capacity() as u64);
        Exchange::new(&shape, &words, &claims, &records, &slots).init();
    }

    /// Each part is compared with the size of the object, but the cells. `inline`: whether [`Shape::inline`].
    pub(crate) fn of(handle: Handle<ExchangeWords>, head: u64, inline: bool) -> Result<Self, Error> {
        let (lanes, hands) = handle.words.lanes_and_hands();
        let shape = Shape::new(handle.count(), lanes, hands);
        let shape = shape.map(|shape| if inline { shape.inline() } else { shape }).ok_or_else(|| {
            let capacity = handle.count();
            Error::new(
                ErrorKind::Damaged,
                format!("no queue has a capacity of {capacity} and {lanes} lanes of {hands} hands"),
            )
        })?;
        let parts = Parts::of(&shape, head);
        let claims = handle.place_slice(parts.claims, shape.lanes() as u64)?;
        let records = handle.place_slice(parts.records, shape.record_words() as u64)?;
        let slots = handle.place_slice(parts.slots, shape.capacity() as u64)?;
        let ring = Self {
            handle,
            claims,
            records,
            slots,
            shape,
            parts,
            stamp: process_stamp(),
            lane: OnceCell::new(),
            sending: Spin::new(),
            receiving: Spin::new(),
        };
        ring.join();
        Ok(ring)
    }

    /// So that others know of this handle; should there be no lane, the first operation says so.
    fn join(&self) {
        if let Some(live) = self.handle.live() {
            let _ = self.lane(live);
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    #[inline]
    pub(crate) fn ring(&self) -> Exchange<'_> {
        Exchange::new(&self.shape, &self.handle.words, &self.claims, &self.records, &self.slots)
    }

    /// The words, claims, records and slots.
    pub(crate) fn placed(&self) -> Placements {
        (self.handle.words.clone(), self.claims.clone(), self.records.clone(), self.slots.clone())
    }

    #[inline]
    pub(crate) fn lane(&self, live: &Participants) -> Result<&Lane, Unusable> {
        match self.lane.get() {
            Some(lane) => Ok(lane),
            None => self.claim(live),
        }
    }

    /// The lane, if there is one and this is no forked child's copy of it.
    #[inline]
    pub(crate) fn own_lane(&self) -> Option<&Lane> {
        self.lane.get().filter(|_| is_process_stamp(self.stamp))
    }

    /// Wakes one of those who sleep, after an exchange.
    #[inline]
    pub(crate) fn notify_one(&self, event: &EventCount) {
        if event.has_listeners_after_rmw() {
            self.wake_one(event);
        }
    }

    #[cold]
    fn wake_one(&self, event: &EventCount) {
        if let Some(live) = self.handle.live() {
            event.notify_some_after_rmw(live, 1);
        }
    }

    #[cold]
    fn claim(&self, live: &Participants) -> Result<&Lane, Unusable> {
        let lane = self.ring().claim(live).map_err(|_| Unusable::NoLane)?;
        Ok(self.lane.get_or_init(|| lane))
    }

    /// What every operation needs.
    #[inline]
    pub(crate) fn with_hand(&self) -> Result<Turn<'_>, Unusable> {
        let live = self.handle.live().ok_or(Unusable::NotAttached)?;
        let lane = self.lane(live)?;
        let hand = self.ring().take_hand(lane).ok_or(Unusable::NoHand)?;
        Ok(Turn { queue: self, live, lane, hand })
    }

    /// For a hand that was taken before, and not put back.
    pub(crate) fn resume(&self, hand: Hand) -> Result<Turn<'_>, Unusable> {
        let live = self.handle.live().ok_or(Unusable::NotAttached)?;
        Ok(Turn { queue: self, live, lane: self.lane(live)?, hand })
    }

    /// A hand with the next message, and how often that was delivered; `near` as for [`Exchange::receive`].
    pub(crate) fn receive(&self, wait: Wait, near: impl Fn(u32)) -> Result<(Turn<'_>, u8), RecvError> {
        let mut turn = match self.hand_to_receive()? {
            Ok(turn) => turn,
            Err(received) => return Ok(received),
        };
        match turn.receive(wait, near) {
            Ok(deliveries) => Ok((turn, deliveries)),
            Err(why) => {
                turn.put_back();
                Err(why)
            }
        }
    }

    /// One attempt to receive, of a future: `None` if it would have to wait.
    pub(crate) fn receive_now(&self, effort: Effort) -> Option<Result<(Turn<'_>, u8), RecvError>> {
        let mut turn = match self.hand_to_receive() {
            Ok(Ok(turn)) => turn,
            Ok(Err(received)) => return Some(Ok(received)),
            Err(why) => return Some(Err(why)),
        };
        match turn.attempt_to_receive(effort, true) {
            Some(Ok(deliveries)) => {
                turn.received(deliveries);
                Some(Ok((turn, deliveries)))
            }
            other => {
                turn.put_back();
                other.map(|failed| Err(failed.err().unwrap_or(RecvError::Empty)))
            }
        }
    }

    /// A spare hand; or, if there is none, one that has a message already.
    fn hand_to_receive(&self) -> Result<Result<Turn<'_>, (Turn<'_>, u8)>, RecvError> {
        match self.with_hand() {
            Ok(turn) => Ok(Ok(turn)),
            Err(Unusable::NoHand) => match self.receive_in_place() {
                Some(received) => Ok(Err(received)),
                // Another receiver may have taken it, and left a spare cell.
                None => self.with_hand().map(Ok).map_err(RecvError::Unusable),
            },
            Err(why) => Err(RecvError::Unusable(why)),
        }
    }

    /// For a handle whose lane came with messages of a dead one in its hands.
    #[cold]
    fn receive_in_place(&self) -> Option<(Turn<'_>, u8)> {
        let live = self.handle.live()?;
        let lane = self.lane(live).ok()?;
        let (hand, deliveries) = self.ring().receive_in_place(lane)?;
        Some((Turn { queue: self, live, lane, hand }, deliveries))
    }

    /// True if nobody is left but this handle.
    pub(crate) fn is_alone(&self) -> bool {
        self.handle.live().is_some_and(|live| {
            live.is_alone() && {
                self.ring().recover(live);
                self.lane.get().is_some_and(|lane| self.ring().is_last(lane))
            }
        })
    }

    /// Gives the lane back; a clone has one again.
    pub(crate) fn leave(&mut self) {
        if let (Some(live), Some(lane)) = (self.handle.live(), self.lane.take()) {
            self.ring().leave(live, lane);
        }
    }

    pub(crate) fn close(&self) -> Result<bool, Unusable> {
        let live = self.handle.live().ok_or(Unusable::NotAttached)?;
        let onlooker;
        let lane = match self.lane.get() {
            Some(lane) => lane,
            None => {
                onlooker = self.ring().onlooker();
                &onlooker
            }
        };
        self.ring().close(live, lane).map_err(|_| Unusable::Damaged)
    }

    /// Whoever only looks needs no lane. `None` if this process is not attached.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Exchange<'_>, &Lane) -> R) -> Option<R> {
        self.handle.live()?;
        let ring = self.ring();
        Some(match self.lane.get() {
            Some(lane) => look(&ring, lane),
            None => look(&ring, &ring.onlooker()),
        })
    }
}

impl Clone for RingHandle {
    /// Another handle, with a lane of its own.
    fn clone(&self) -> Self {
        let ring = Self {
            handle: self.handle.clone(),
            claims: self.claims.clone(),
            records: self.records.clone(),
            slots: self.slots.clone(),
            shape: self.shape,
            parts: self.parts,
            stamp: process_stamp(),
            lane: OnceCell::new(),
            sending: Spin::new(),
            receiving: Spin::new(),
        };
        ring.join();
        ring
    }
}

impl Drop for RingHandle {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A hand of a queue, taken.
pub(crate) struct Turn<'a> {
    queue: &'a RingHandle,
    pub(crate) live: &'a Participants,
    pub(crate) lane: &'a Lane,
    pub(crate) hand: Hand,
}

/// Why something was not sent; the value is the caller's.
pub(crate) enum Unsent {
    Full,
    TimedOut,
    Closed,
    PeerDied,
    Unusable(Unusable),
}

impl Unsent {
    pub(crate) fn with<V>(self, value: V) -> SendError<V> {
        match self {
            Self::Full => SendError::Full(value),
            Self::TimedOut => SendError::TimedOut(value),
            Self::Closed => SendError::Closed(value),
            Self::PeerDied => SendError::PeerDied(value),
            Self::Unusable(why) => SendError::Unusable(value, why),
        }
    }
}

impl Turn<'_> {
    /// Sends what is in the hand's cell.
    #[inline]
    pub(crate) fn send(&mut self, wait: Wait, near: impl Fn(u32)) -> Result<(), Unsent> {
        if self.queue.handle.live().is_none() {
            return Err(Unsent::Unusable(Unusable::NotAttached)); // a forked child's copy of its parent's loan
        }
        match self.queue.ring().send(self.lane, &mut self.hand, near) {
            Ok(()) => {}
            Err(refusal) => self.send_later(wait, refusal)?,
        }
        self.queue.handle.words.not_empty.notify_some_after_rmw(self.live, 1);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn send_later(&mut self, wait: Wait, refusal: Refusal) -> Result<(), Unsent> {
        match refusal {
            Refusal::Closed => return Err(Unsent::Closed),
            Refusal::Damaged => return Err(Unsent::Unusable(Unusable::Damaged)),
            Refusal::WouldBlock if wait == Wait::Try => return Err(Unsent::Full),
            Refusal::WouldBlock => {}
        }
        let queue = self.queue;
        let mut sent = None;
        if queue.sending.spin(|| {
            sent = self.attempt_to_send(Effort::Light);
            sent.is_some()
        }) {
            return sent.unwrap_or(Err(Unsent::Full));
        }
        let asleep = Instant::now();
        let waited =
            wait_for(self.live, &queue.handle.words.not_full, wait, |effort| self.attempt_to_send(effort));
        queue.sending.slept(asleep.elapsed());
        match waited {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock) => Err(Unsent::Full),
            // Perhaps woken for a slot that would be nobody's otherwise.
            Err(WaitFailure::TimedOut) => {
                self.attempt_to_send(Effort::Light).unwrap_or(Err(Unsent::TimedOut))
            }
        }
    }

    /// `None` if it would have to wait.
    fn attempt_to_send(&mut self, effort: Effort) -> Option<Result<(), Unsent>> {
        let Self { queue, live, lane, hand } = self;
        let ring = queue.ring();
        let mut attempt = || match ring.send(lane, hand, |_| ()) {
            Ok(()) => Some(Ok(())),
            Err(Refusal::Closed) => Some(Err(Unsent::Closed)),
            Err(Refusal::Damaged) => Some(Err(Unsent::Unusable(Unusable::Damaged))),
            Err(Refusal::WouldBlock) => None,
        };
        // Who lives is asked of the kernel: not if there is room.
        let sent = attempt();
        if sent.is_some() || !effort.is_full() || !live.is_alone() {
            return sent;
        }
        ring.recover(*live);
        // Who is gone has taken all that it is going to take.
        if ring.is_last(lane) { attempt().or(Some(Err(Unsent::PeerDied))) } else { None }
    }

    /// One attempt to send what is in the hand's cell, of a future: `None` if it would have to wait.
    pub(crate) fn send_now(&mut self, effort: Effort) -> Option<Result<(), Unsent>> {
        if self.queue.handle.live().is_none() {
            return Some(Err(Unsent::Unusable(Unusable::NotAttached))); // a forked child's copy of its parent's loan
        }
        let sent = self.attempt_to_send(effort)?;
        if sent.is_ok() {
            self.queue.handle.words.not_empty.notify_some_after_rmw(self.live, 1);
        }
        Some(sent)
    }

    /// Receives into the hand.
    #[inline]
    fn receive(&mut self, wait: Wait, near: impl Fn(u32)) -> Result<u8, RecvError> {
        let deliveries = match self.queue.ring().receive(self.lane, &mut self.hand, near) {
            Ok(deliveries) => deliveries,
            Err(Refusal::WouldBlock) if wait == Wait::Try => self.receive_left_behind()?,
            Err(_) => self.receive_later(wait)?,
        };
        self.received(deliveries);
        Ok(deliveries)
    }

    /// Tells the others.
    #[inline]
    fn received(&self, deliveries: u8) {
        let words = &self.queue.handle.words;
        if deliveries == 1 {
            words.not_full.notify_some_after_rmw(self.live, 1);
        } else {
            // Not from the ring: if this one was woken for a message there, another has to get it.
            words.not_empty.notify_some_after_rmw(self.live, 1);
        }
    }

    /// The ring is empty: what have the dead?
    #[cold]
    #[inline(never)]
    fn receive_left_behind(&mut self) -> Result<u8, RecvError> {
        let ring = self.queue.ring();
        ring.recover(self.live);
        ring.receive_orphan(self.lane, &mut self.hand).ok_or(RecvError::Empty)
    }

    #[cold]
    #[inline(never)]
    fn receive_later(&mut self, wait: Wait) -> Result<u8, RecvError> {
        let queue = self.queue;
        let may_end = wait != Wait::Try;
        let mut received = None;
        if may_end
            && queue.receiving.spin(|| {
                received = self.attempt_to_receive(Effort::Light, may_end);
                received.is_some()
            })
        {
            return received.unwrap_or(Err(RecvError::Empty));
        }
        let asleep = Instant::now();
        let waited = wait_for(self.live, &queue.handle.words.not_empty, wait, |effort| {
            self.attempt_to_receive(effort, may_end)
        });
        queue.receiving.slept(asleep.elapsed());
        match waited {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock) => Err(RecvError::Empty),
            // Perhaps woken for a message that nobody would be woken for otherwise.
            Err(WaitFailure::TimedOut) => {
                self.attempt_to_receive(Effort::Light, may_end).unwrap_or(Err(RecvError::TimedOut))
            }
        }
    }

    /// `None` if it would have to wait; `may_end`: says as well if it would wait in vain.
    fn attempt_to_receive(&mut self, effort: Effort, may_end: bool) -> Option<Result<u8, RecvError>> {
        let Self { queue, live, lane, hand } = self;
        let ring = queue.ring();
        // Who lives is asked of the kernel: not if there is a message.
        let received = ring.receive(lane, hand, |_| ()).ok().map(Ok);
        if received.is_some() || !effort.is_full() {
            return received;
        }
        // First who is gone, then what they left in their hands, then what is in the ring: nothing can be overlooked.
        let alone = may_end && live.is_alone();
        let recovery = ring.recover(*live);
        let alone = alone && !recovery.is_pending && ring.is_last(lane);
        if let Some(deliveries) = ring.receive_orphan(lane, hand) {
            return Some(Ok(deliveries));
        }
        match ring.receive(lane, hand, |_| ()) {
            Ok(deliveries) => Some(Ok(deliveries)),
            Err(Refusal::Damaged) => Some(Err(RecvError::Unusable(Unusable::Damaged))),
            // Who may still turn out to have left a message keeps the end open.
            Err(Refusal::Closed) => (!recovery.is_pending).then_some(Err(RecvError::Closed)),
            Err(Refusal::WouldBlock) => alone.then_some(Err(RecvError::PeerDied)),
        }
    }

    #[inline]
    pub(crate) fn put_back(self) {
        self.queue.ring().put_back(self.lane, self.hand);
    }

    /// The message was received. False, and nothing is done, in a forked child: what it has is a copy of its parent's guard.
    #[inline]
    pub(crate) fn release(self) -> bool {
        let is_ours = self.queue.handle.live().is_some();
        if is_ours {
            self.queue.ring().release(self.lane, self.hand);
        }
        is_ours
    }
}
