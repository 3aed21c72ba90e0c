//! One direction of a pipe, as a handle of one of its ends has it.
//!
//! ```text
//!    0  the ring's words
//!  640  message_max   bytes of a message at the most; written before anybody can find it
//!  768  cells         two for each participant
//!       data          from a multiple of 64 on
//! ```

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use crossproc_atomic::{
    AtomicU64, Linux, Ordering, Owner, heavy_fence, pause, register_light_fences, shared_struct,
};
use crossproc_ring::{End, FrameRing, FrameShape, FrameWords, Presence, Watch};
use crossproc_segment::handover::{Handed, de_error, ser_error};
use crossproc_segment::plain::Layout;
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Participants, PlacedSlice, Segment};
use crossproc_sync::{Effort, WaitFailure, wait_for};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes::RingBytes;
use super::courier::Courier;
use crate::handle::{Handle, spec_of};
use crate::lock::Wait;
use crate::spin::Spin;

const KIND: ObjectKind = ObjectKind::new("Pipe");

shared_struct! {
    /// What a direction has behind the words of its ring.
    struct LinkWords: 128 {
        message_max: AtomicU64,
        unused: [AtomicU64; 15],
    }
}

const LINK_AT: u64 = size_of::<FrameWords>() as u64;
const CELLS_AT: u64 = LINK_AT + size_of::<LinkWords>() as u64;

/// Bytes of a message, if nobody says otherwise: the most that a header can say.
pub(super) const MESSAGE_MAX: usize = (1 << 56) - 1;

/// Looks of who may not wait, at somebody else's turn; before the last ones the CPU is left to others.
const TRIES: u32 = 68;
const YIELDS: u32 = 4;

/// Where the data begins in a segment for so many participants.
fn data_at(slots: usize) -> u64 {
    (CELLS_AT + 8 * FrameRing::cells_for(slots) as u64).next_multiple_of(64)
}

/// A hold of an end of one direction. Clones of a handle share it.
pub(super) struct Link {
    pub(super) handle: Handle<FrameWords>,
    pub(super) cells: PlacedSlice<AtomicU64>,
    pub(super) bytes: RingBytes,
    pub(super) shape: FrameShape,
    pub(super) message_max: usize,
    pub(super) end: End,
    /// By which handles in messages go; none for a pipe in a segment.
    pub(super) courier: Option<Courier>,
    /// This process has registered for heavy fences.
    light: bool,
    /// The hold is for who receives the handle, who gives it back.
    is_lent: bool,
}

thread_local! {
    /// What this thread has lent since [`Loans::of`] began; `None` outside of that.
    static LENT: RefCell<Option<Vec<Link>>> = const { RefCell::new(None) };
}

/// The holds that were lent with a message. Dropped, it takes them back; so they are lent for good only by [`lend`](Self::lend).
#[derive(Default)]
pub(super) struct Loans(Vec<Link>);

impl Loans {
    /// Serialises a message, and collects what that lends.
    pub(super) fn of<R>(serialise: impl FnOnce() -> R) -> (R, Self) {
        /// What an outer call has lent so far; in place again after a panic as well.
        struct Outer(Option<Vec<Link>>);
        impl Drop for Outer {
            fn drop(&mut self) {
                let inner = LENT.replace(self.0.take());
                drop(inner);
            }
        }
        let outer = Outer(LENT.replace(Some(Vec::new())));
        let result = serialise();
        let lent = LENT.take().unwrap_or_default();
        drop(outer);
        (result, Self(lent))
    }

    /// The message is there: who receives it gives them back.
    pub(super) fn lend(&mut self) {
        self.0.drain(..).for_each(Link::lend);
    }
}

impl Link {
    fn shape(capacity: u64) -> Result<FrameShape, Error> {
        FrameShape::new(capacity).filter(|_| capacity > 0).ok_or_else(|| {
            let text = format!("a pipe of {capacity} bytes: there can be 1 to 2^40");
            Error::new(ErrorKind::InvalidLength, text)
        })
    }

    fn spec(layout: &'static Layout, capacity: usize, slots: usize) -> Result<ObjectSpec, Error> {
        let shape = Self::shape(capacity as u64)?;
        Ok(spec_of(KIND, layout, capacity as u64, data_at(slots) + shape.bytes() as u64))
    }

    /// Bytes of a segment that has directions of these capacities.
    pub(super) fn segment_bytes(capacities: &[usize], slots: usize) -> Result<usize, Error> {
        let mut sum = 0_usize;
        for &capacity in capacities {
            sum = sum.saturating_add(data_at(slots) as usize + Self::shape(capacity as u64)?.bytes() + 64);
        }
        Ok(sum)
    }

    /// The direction of this name, made if there is none.
    pub(super) fn direction(
        segment: &Segment,
        name: &str,
        layout: &'static Layout,
        capacity: usize,
        message_max: usize,
    ) -> Result<Handle<FrameWords>, Error> {
        let spec = Self::spec(layout, capacity, segment.participant_slots())?;
        Handle::named(segment, name, &spec, |fresh| {
            let words = fresh.place::<LinkWords>(LINK_AT);
            words.message_max.store(message_max as u64, Ordering::Relaxed);
        })
    }

    /// Takes hold of an end.
    pub(super) fn hold(
        handle: Handle<FrameWords>,
        end: End,
        courier: Option<Courier>,
    ) -> Result<Self, Error> {
        // What the directory says is compared with the object's length; a count that was written over fails.
        let damaged = |error: Error| Error::new(ErrorKind::Damaged, error.to_string());
        let shape = Self::shape(handle.count()).map_err(damaged)?;
        let slots = handle.segment().participant_slots();
        let cells = handle.place_slice(CELLS_AT, FrameRing::cells_for(slots) as u64)?;
        let words = handle.place_slice(data_at(slots), shape.words() as u64)?;
        let bytes = RingBytes::new(words, shape);
        let message_max = handle.place::<LinkWords>(LINK_AT)?.message_max.load(Ordering::Relaxed);
        let message_max = usize::try_from(message_max).unwrap_or(MESSAGE_MAX).min(MESSAGE_MAX);
        let light = register_light_fences();
        let live = handle.segment().participants()?;
        FrameRing::new(&handle.words, bytes.words(), &cells, shape).hold(end, live).map_err(|_| {
            let text = "this process has as many handles of this end as can be counted; clone one instead";
            Error::new(ErrorKind::Unsupported, text)
        })?;
        Ok(Self { handle, cells, bytes, shape, message_max, end, courier, light, is_lent: false })
    }

    #[inline]
    pub(super) fn ring(&self) -> FrameRing<'_> {
        FrameRing::new(&self.handle.words, self.bytes.words(), &self.cells, self.shape)
    }

    /// This process's place in the segment; `None` in a forked child.
    #[inline]
    pub(super) fn live(&self) -> Option<&Participants> {
        self.handle.live()
    }

    pub(super) fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    /// True if handles go by the same socket for both.
    pub(super) fn has_courier_of(&self, other: &Self) -> bool {
        let sockets = self.courier.as_ref().zip(other.courier.as_ref());
        sockets.is_some_and(|(a, b)| Arc::ptr_eq(&a.0, &b.0))
    }

    /// Tells who sleeps, after this end has changed something or given its turn back.
    #[inline(always)]
    pub(super) fn notify(&self) {
        self.ring().notify(self.end, &Linux, self.light);
    }

    /// As the other end does: after something was done in its place.
    #[cold]
    pub(super) fn notify_as_other(&self) {
        self.ring().notify(self.end.other(), &Linux, self.light);
    }

    /// Whether anybody has the other end.
    #[inline]
    pub(super) fn other_end(&self, live: &Participants, watch: &mut Watch) -> Presence {
        self.ring().presence(self.end.other(), live, watch)
    }

    /// Calls `attempt` until it returns something: again and again at first, then asleep in between. The attempt is told whether to make
    /// a full effort, and notes by `busy` that it is somebody else's turn.
    #[cold]
    #[inline(never)]
    pub(super) fn wait<R>(
        &self,
        live: &Participants,
        spin: &Spin,
        wait: Wait,
        mut attempt: impl FnMut(Effort, &mut bool) -> Option<R>,
    ) -> Result<R, WaitFailure> {
        let mut busy = false;
        if wait == Wait::Try {
            // Who is at work is done in a moment, unless it was stopped or is in the middle of a long message.
            for look in 0..TRIES {
                busy = false;
                if let Some(found) = attempt(Effort::Full, &mut busy) {
                    return Ok(found);
                }
                if !busy {
                    break;
                }
                if look < TRIES - YIELDS { pause() } else { std::thread::yield_now() }
            }
            return Err(WaitFailure::WouldBlock);
        }
        let mut found = None;
        spin.spin(|| {
            found = attempt(Effort::Light, &mut busy);
            found.is_some()
        });
        if let Some(found) = found {
            return Ok(found);
        }
        let ring = self.ring();
        let asleep = Instant::now();
        let found = wait_for(live, ring.event(self.end), wait, |effort| {
            busy = false;
            if let Some(found) = attempt(Effort::Light, &mut busy) {
                return Some(found);
            }
            if !effort.is_full() {
                return None;
            }
            ring.before_sleeping(self.end, busy, heavy_fence);
            let mut busy_now = false;
            let found = attempt(Effort::Full, &mut busy_now);
            if found.is_none() && busy_now && !busy {
                // It was nobody's turn before.
                ring.before_sleeping(self.end, true, heavy_fence);
                return attempt(Effort::Full, &mut busy);
            }
            found
        });
        spin.slept(asleep.elapsed());
        found
    }

    /// Lends a hold to whoever receives the handle.
    pub(super) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_with(self.courier.as_ref(), serializer)
    }

    /// As [`serialize`](Self::serialize); the courier may travel with another handle.
    pub(super) fn serialize_with<S: Serializer>(
        &self,
        courier: Option<&Courier>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let live =
            self.live().ok_or_else(|| ser_error("this process is not attached to the pipe's segment"))?;
        let lender = crossproc_atomic::Liveness::me(live).bits();
        let socket = courier.map(|courier| Handed(courier.0.as_fd()));
        let bytes = (self.segment(), self.handle.index(), lender, socket).serialize(serializer)?;
        let lent = Self::hold(self.handle.clone(), self.end, None).map_err(ser_error)?;
        LENT.with_borrow_mut(|loans| match loans {
            Some(loans) => loans.push(lent),
            // Not in a message of a pipe: nobody would say that it was not sent.
            None => lent.lend(),
        });
        Ok(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        layout: &'static Layout,
        end: End,
    ) -> Result<Self, D::Error> {
        type Sent = (Segment, u32, u64, Option<Handed<OwnedFd>>);
        let (segment, index, lender, socket): Sent = Deserialize::deserialize(deserializer)?;
        let courier = socket.map(|Handed(socket)| Courier(Arc::new(socket)));
        let any = spec_of(KIND, layout, 1, CELLS_AT);
        let link = Handle::attach(segment, index, &any).and_then(|handle| Self::hold(handle, end, courier));
        let link = link.map_err(de_error)?;
        if let Some(lender) = Owner::from_bits(lender) {
            link.ring().give_back(end, lender);
        }
        Ok(link)
    }

    /// Leaves the hold to who gives it back.
    fn lend(mut self) {
        self.is_lent = true;
        drop(self);
    }

    pub(super) fn debug(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(name)
            .field("bytes", &self.ring().len())
            .field("capacity", &self.shape.bytes())
            .finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Not in a forked child: the hold is its parent's.
        if let (Some(live), false) = (self.live(), self.is_lent) {
            self.ring().let_go(self.end, live);
        }
    }
}
