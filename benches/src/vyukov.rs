#![allow(unsafe_code)]
//! The bounded queue of D. Vyukov (1024cores.net), for the threads of one process: what ours is compared with.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

#[repr(align(128))]
#[derive(Debug, Default)]
struct Apart<T>(T);

struct Slot<T> {
    ticket: AtomicUsize,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// A queue of a power of two.
pub struct Vyukov<T> {
    head: Apart<AtomicUsize>,
    tail: Apart<AtomicUsize>,
    slots: Box<[Slot<T>]>,
}

// SAFETY: a value is written by who has won the slot's ticket and read by who has won it after that.
unsafe impl<T: Send> Sync for Vyukov<T> {}

impl<T> std::fmt::Debug for Vyukov<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vyukov").field("capacity", &self.slots.len()).finish_non_exhaustive()
    }
}

impl<T: Copy> Vyukov<T> {
    /// A queue for so many values.
    ///
    /// # Panics
    ///
    /// If that is no power of two.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "the queue takes powers of two only");
        let slot = |at| Slot { ticket: AtomicUsize::new(at), value: UnsafeCell::new(MaybeUninit::uninit()) };
        Self { head: Apart::default(), tail: Apart::default(), slots: (0..capacity).map(slot).collect() }
    }

    fn slot(&self, ticket: usize) -> &Slot<T> {
        &self.slots[ticket & (self.slots.len() - 1)]
    }

    /// False if it is full.
    #[inline]
    pub fn push(&self, value: T) -> bool {
        let mut ticket = self.tail.0.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(ticket);
            let ahead = slot.ticket.load(Ordering::Acquire).wrapping_sub(ticket) as isize;
            if ahead < 0 {
                return false;
            }
            if ahead > 0 {
                ticket = self.tail.0.load(Ordering::Relaxed);
                continue;
            }
            let next = ticket.wrapping_add(1);
            match self.tail.0.compare_exchange_weak(ticket, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    // SAFETY: the ticket is ours, and the slot's last value has been read.
                    unsafe { (*slot.value.get()).write(value) };
                    slot.ticket.store(next, Ordering::Release);
                    return true;
                }
                Err(now) => ticket = now,
            }
        }
    }

    /// `None` if it is empty.
    #[inline]
    pub fn pop(&self) -> Option<T> {
        let mut ticket = self.head.0.load(Ordering::Relaxed);
        loop {
            let slot = self.slot(ticket);
            let next = ticket.wrapping_add(1);
            let ahead = slot.ticket.load(Ordering::Acquire).wrapping_sub(next) as isize;
            if ahead < 0 {
                return None;
            }
            if ahead > 0 {
                ticket = self.head.0.load(Ordering::Relaxed);
                continue;
            }
            match self.head.0.compare_exchange_weak(ticket, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    // SAFETY: the ticket is ours, and the value has been written.
                    let value = unsafe { (*slot.value.get()).assume_init() };
                    slot.ticket.store(ticket.wrapping_add(self.slots.len()), Ordering::Release);
                    return Some(value);
                }
                Err(now) => ticket = now,
            }
        }
    }
}
