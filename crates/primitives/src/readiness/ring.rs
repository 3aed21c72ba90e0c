//! When the ends of a queue are ready.

use std::sync::Arc;

use crossproc_atomic::{EventCount, Liveness};
use crossproc_ring::{Exchange, ExchangeWords, Refusal};

use super::{Source, Wakes};
use crate::ring_handle::RingHandle;

/// What is waited for at a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RingEnd {
    /// A message, or that there never will be one.
    NotEmpty,
    /// Room, or that there never will be any.
    NotFull,
}

impl RingHandle {
    /// The queue of this handle, to be waited for without it.
    pub(crate) fn source(&self, end: RingEnd) -> Arc<Source> {
        let at = match end {
            RingEnd::NotEmpty => std::mem::offset_of!(ExchangeWords, not_empty),
            RingEnd::NotFull => std::mem::offset_of!(ExchangeWords, not_full),
        };
        let event = self.handle.place::<EventCount>(at as u64).expect("it is one of the ring's words");
        let (shape, parts) = (self.shape(), self.placed());
        Source::new(self.handle.segment(), event, Wakes::One, move |live| {
            let (words, claims, records, slots) = &parts;
            is_ready(&Exchange::new(&shape, words, claims, records, slots), live, end)
        })
    }
}

/// As the attempts in `ring_handle.rs`, in the same order, without taking anything.
fn is_ready(ring: &Exchange<'_>, live: &impl Liveness, end: RingEnd) -> bool {
    let onlooker = ring.onlooker();
    let refusal = || match end {
        RingEnd::NotEmpty => ring.receive_refusal(&onlooker),
        RingEnd::NotFull => ring.send_refusal(&onlooker),
    };
    // Who lives is asked of the kernel: only if need be.
    if refusal().is_none() {
        return true;
    }
    let alone = live.is_alone();
    let recovery = ring.recover(live);
    // Among all lanes is that of the handle itself.
    let alone = alone && ring.lanes_claimed() <= 1;
    // Who may still turn out to have left a message keeps the end open.
    let is_over = end == RingEnd::NotFull || !recovery.is_pending;
    let has_orphan = end == RingEnd::NotEmpty && ring.has_orphan();
    has_orphan
        || match refusal() {
            None | Some(Refusal::Damaged) => true,
            Some(Refusal::Closed) => is_over,
            Some(Refusal::WouldBlock) => is_over && alone,
        }
}
