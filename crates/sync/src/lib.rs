//! Locks for memory shared by processes, which survive the death of their holder at any instruction.
//!
//! The algorithms borrow their words ([`LockWords`]) and are handed liveness as an argument, so this crate
//! knows neither segments nor processes: bring memory that is shared, a [`Platform`] and a [`Liveness`]
//! from `crossproc-atomic`, and it works in any runtime. `crossproc-primitives` does so for segments.
//!
//! What it does not do: guard data. The typed `Lock`, `Mutex<T>` and `RLock` with their guards are in
//! `crossproc-primitives`.
//!
//! Read first: `lock.rs`, whose head has the protocol.
//!
//! [`Platform`]: crossproc_atomic::Platform
//! [`Liveness`]: crossproc_atomic::Liveness
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

mod barrier;
mod condvar;
mod flag;
mod lock;
mod once;
mod rwlock;
mod semaphore;
mod wait;

pub use barrier::{Barrier, BarrierFailure, BarrierWords, BrokenBy, Passed, TooManyHandles};
pub use condvar::{CondvarWords, Waiter, Woken};
pub use flag::{EventFailure, EventWords};
pub use lock::{LockFailure, LockWords, Marks};
pub use once::{OnceFailure, OnceWords, Previous};
pub use rwlock::{ReaderCell, RwLockWords};
pub use semaphore::{AcquireFailure, BinaryWords, OverRelease, PermitCell, SemaphoreWords};
pub use wait::{Effort, Wait, WaitFailure, wait_for};
