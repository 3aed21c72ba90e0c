//! What the handles of all queues are, whatever a message is: a place in the exchange ring, and the waiting.
//!
//! ```text
//!  the head (the ring's words, and what else a queue has); claims, 8 bytes for each lane; records; slots; cells
//! ```
//!
//! Each part begins on a pair of cache lines. What is in the cells is the business of `queue.rs` and `bytes_queue.rs`.

use std::cell::OnceCell;

use crossproc_atomic::{AtomicU64, Liveness};
use crossproc_ring::{Exchange, ExchangeWords, Hand, Lane, Refusal, Shape};
use crossproc_segment::{Error, ErrorKind, ObjectSpec, Participants, PlacedSlice, Segment};
use crossproc_sync::{Effort, WaitFailure, wait_for};

use crate::handle::{Fresh, Handle};
use crate::lock::Wait;
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
        let after = |at: u64, words: usize| (at + words as u64 * 8).next_multiple_of(128);
        let records = after(head, shape.lanes());
        let slots = after(records, shape.record_words());
        Self { claims: head, records, slots, cells: after(slots, shape.slot_words()) }
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

/// A handle of a ring: a lane of its own, claimed when it is made and given back when it is dropped.
pub(crate) struct RingHandle {
    pub(crate) handle: Handle<ExchangeWords>,
    claims: PlacedSlice<AtomicU64>,
    records: PlacedSlice<AtomicU64>,
    slots: PlacedSlice<AtomicU64>,
    shape: Shape,
    parts: Parts,
    pub(crate) lane: OnceCell<Lane>,
}

impl RingHandle {
    /// Writes the first words of a ring, behind a head of so many bytes.
    pub(crate) fn init(fresh: &Fresh<'_>, shape: Shape, head: u64) {
        let parts = Parts::of(&shape, head);
        let words = fresh.place::<ExchangeWords>(0);
        let claims = fresh.place_slice(parts.claims, shape.lanes() as u64);
        let records = fresh.place_slice(parts.records, shape.record_words() as u64);
        let slots = fresh.place_slice(parts.slots, shape.slot_words() as u64);
        Exchange::new(&shape, &words, &claims, &records, &slots).init();
    }

    /// Each part is compared with the size of the object, but the cells.
    pub(crate) fn of(handle: Handle<ExchangeWords>, head: u64) -> Result<Self, Error> {
        let (lanes, hands) = handle.words.lanes_and_hands();
        let shape = Shape::new(handle.count(), lanes, hands).ok_or_else(|| {
            let capacity = handle.count();
            Error::new(
                ErrorKind::Damaged,
                format!("no queue has a capacity of {capacity} and {lanes} lanes of {hands} hands"),
            )
        })?;
        let parts = Parts::of(&shape, head);
        let claims = handle.place_slice(parts.claims, shape.lanes() as u64)?;
        let records = handle.place_slice(parts.records, shape.record_words() as u64)?;
        let slots = handle.place_slice(parts.slots, shape.slot_words() as u64)?;
        let ring = Self { handle, claims, records, slots, shape, parts, lane: OnceCell::new() };
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

    #[inline]
    pub(crate) fn lane(&self, live: &Participants) -> Result<&Lane, Unusable> {
        match self.lane.get() {
            Some(lane) => Ok(lane),
            None => self.claim(live),
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
        let mut turn = match self.with_hand() {
            Ok(turn) => turn,
            Err(Unusable::NoHand) => match self.receive_in_place() {
                Some(received) => return Ok(received),
                // Another receiver may have taken it, and left a spare cell.
                None => self.with_hand().map_err(RecvError::Unusable)?,
            },
            Err(why) => return Err(RecvError::Unusable(why)),
        };
        match turn.receive(wait, near) {
            Ok(deliveries) => Ok((turn, deliveries)),
            Err(why) => {
                turn.put_back();
                Err(why)
            }
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
            lane: OnceCell::new(),
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
    Damaged,
    NotAttached,
}

impl Unsent {
    pub(crate) fn with<V>(self, value: V) -> SendError<V> {
        match self {
            Self::Full => SendError::Full(value),
            Self::TimedOut => SendError::TimedOut(value),
            Self::Closed => SendError::Closed(value),
            Self::PeerDied => SendError::PeerDied(value),
            Self::Damaged => SendError::Unusable(value, Unusable::Damaged),
            Self::NotAttached => SendError::Unusable(value, Unusable::NotAttached),
        }
    }
}

impl Turn<'_> {
    /// Sends what is in the hand's cell.
    #[inline]
    pub(crate) fn send(&mut self, wait: Wait, near: impl Fn(u32)) -> Result<(), Unsent> {
        if self.queue.handle.live().is_none() {
            return Err(Unsent::NotAttached); // a forked child's copy of its parent's loan
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
            Refusal::Damaged => return Err(Unsent::Damaged),
            Refusal::WouldBlock if wait == Wait::Try => return Err(Unsent::Full),
            Refusal::WouldBlock => {}
        }
        let Self { queue, live, lane, hand } = self;
        let ring = queue.ring();
        let mut attempt = |effort: Effort| {
            let alone = effort.is_full() && live.is_alone() && {
                ring.recover(*live);
                ring.is_last(lane)
            };
            // After that: who is gone has taken all that it is going to take.
            match ring.send(lane, hand, |_| ()) {
                Ok(()) => Some(Ok(())),
                Err(Refusal::Closed) => Some(Err(Unsent::Closed)),
                Err(Refusal::Damaged) => Some(Err(Unsent::Damaged)),
                Err(Refusal::WouldBlock) => alone.then_some(Err(Unsent::PeerDied)),
            }
        };
        match wait_for(*live, &queue.handle.words.not_full, wait, &mut attempt) {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock) => Err(Unsent::Full),
            // Perhaps woken for a slot that would be nobody's otherwise.
            Err(WaitFailure::TimedOut) => attempt(Effort::Light).unwrap_or(Err(Unsent::TimedOut)),
        }
    }

    /// Receives into the hand.
    #[inline]
    fn receive(&mut self, wait: Wait, near: impl Fn(u32)) -> Result<u8, RecvError> {
        let deliveries = match self.queue.ring().receive(self.lane, &mut self.hand, near) {
            Ok(deliveries) => deliveries,
            Err(Refusal::WouldBlock) if wait == Wait::Try => self.receive_left_behind()?,
            Err(_) => self.receive_later(wait)?,
        };
        let words = &self.queue.handle.words;
        if deliveries == 1 {
            words.not_full.notify_some_after_rmw(self.live, 1);
        } else {
            // Not from the ring: if this one was woken for a message there, another has to get it.
            words.not_empty.notify_some_after_rmw(self.live, 1);
        }
        Ok(deliveries)
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
        let Self { queue, live, lane, hand } = self;
        let ring = queue.ring();
        let mut attempt = |effort: Effort| {
            if !effort.is_full() {
                return ring.receive(lane, hand, |_| ()).ok().map(Ok);
            }
            // First who is gone, then what they left in their hands, then what is in the ring: nothing can be overlooked.
            let alone = wait != Wait::Try && live.is_alone();
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
        };
        match wait_for(*live, &queue.handle.words.not_empty, wait, &mut attempt) {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock) => Err(RecvError::Empty),
            // Perhaps woken for a message that nobody would be woken for otherwise.
            Err(WaitFailure::TimedOut) => attempt(Effort::Light).unwrap_or(Err(RecvError::TimedOut)),
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
