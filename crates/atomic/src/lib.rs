//! Words that processes share: atomics, waiting and waking, event counts, and who is alive.
//!
//! This is the lowest floor of crossproc. It knows no segment and no primitive: the algorithms of
//! `crossproc-sync` and `crossproc-ring` borrow the words defined here and never learn where they
//! live, so the same text runs on an mmap, on a heap buffer (sanitizers, Miri) and under loom.
//!
//! What it does not do: map memory, start processes, or decide who has died ([`Liveness`] is
//! implemented by `crossproc-segment`, which has the participants).
//!
//! Read first: [`Platform`] and [`Liveness`] in `platform.rs`, then `event.rs`.
//!
//! ```
//! use crossproc_atomic::{AtomicU32, EventCount, Linux, Ordering};
//!
//! let ready = AtomicU32::new(0);
//! let changed = EventCount::default();
//! std::thread::scope(|s| {
//!     s.spawn(|| {
//!         ready.store(1, Ordering::Release);
//!         changed.notify_after_store(&Linux);
//!     });
//!     while ready.load(Ordering::Acquire) == 0 {
//!         let ticket = changed.listen();
//!         if ready.load(Ordering::Acquire) == 0 {
//!             changed.sleep(&Linux, ticket, None);
//!         }
//!     }
//! });
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

mod event;
mod platform;
mod share;

// The one place where the machine is exchanged for the model. The flag has the project's own name:
// a user's `--cfg loom` must never turn words in an mmap into loom objects.
#[cfg(not(crossproc_model))]
mod machine;
#[cfg(not(crossproc_model))]
mod pair;
#[cfg(not(crossproc_model))]
pub use machine::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence, fence_after_rmw, light_fence, pause};
#[cfg(not(crossproc_model))]
pub use pair::AtomicPair;

#[cfg(crossproc_model)]
pub mod model;
#[cfg(crossproc_model)]
pub use model::{AtomicPair, AtomicU32, AtomicU64, fence, fence_after_rmw, light_fence, pause};

#[cfg(all(feature = "std", not(crossproc_model)))]
mod linux;
#[cfg(all(feature = "std", not(crossproc_model)))]
pub use linux::{
    Linux, LockedWord, WATCHED_WORDS, held_locks, is_process_stamp, is_spinning, on_thread_exit,
    proc_is_ours, process_stamp, set_futex_waitv, set_spinning,
};

#[cfg(all(feature = "std", not(crossproc_model)))]
mod membarrier;
#[cfg(all(feature = "std", not(crossproc_model)))]
pub use membarrier::{heavy_fence, register_light_fences};

pub use core::sync::atomic::Ordering;
pub use event::{EventCount, Ticket};
pub use platform::{Deadline, Liveness, Owner, Pending, Platform};
pub use share::Shared;

/// `word & TID` is the thread that holds a robust word (the kernel's robust-futex format).
pub const TID: u32 = 0x3fff_ffff;
/// Set by the kernel in a robust word when the thread that held it died.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// Set in a robust word while somebody may be asleep on it.
pub const WAITERS: u32 = 0x8000_0000;
