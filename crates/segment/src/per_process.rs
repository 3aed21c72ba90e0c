#![allow(unsafe_code)]
//! The room of statics that a forked child must not share with its parent.
//!
//! A `static` mutex that was locked by another thread at the moment of a fork stays locked in the child for
//! ever, and what it guards may be half changed. So the child gets a new value and leaves its parent's alone.
//!
//! Claim: a value, once published, is never freed. A process leaks one value per fork in its ancestry.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use crossproc_atomic::process_stamp;

/// A static of which every incarnation of the process (see [`process_stamp`]) makes its own.
#[derive(Debug)]
pub struct PerProcess<T: 'static> {
    current: AtomicPtr<Stamped<T>>,
}

#[derive(Debug)]
struct Stamped<T> {
    stamp: u64,
    value: T,
}

impl<T: Default + Send + Sync + 'static> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    /// With nothing made yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { current: AtomicPtr::new(null_mut()) }
    }

    /// This incarnation's value, made when it is first asked for.
    pub fn get(&self) -> &'static T {
        let stamp = process_stamp();
        loop {
            let seen = self.current.load(Ordering::Acquire);
            // SAFETY: null, or published below and never freed since.
            match unsafe { seen.as_ref() } {
                Some(stamped) if stamped.stamp == stamp => return &stamped.value,
                _ => {}
            }
            let fresh = Box::into_raw(Box::new(Stamped { stamp, value: T::default() }));
            if self.current.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // SAFETY: made by `Box::into_raw` above and not published: another thread was first.
                drop(unsafe { Box::from_raw(fresh) });
            }
        }
    }
}
