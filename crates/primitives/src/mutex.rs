#![allow(unsafe_code)]
//! `Mutex<T>`: the room of the guard that gives `&mut T` into shared memory.
//!
//! Claim: between `lock` and the guard's drop no other thread of any process that keeps to the protocol touches
//! the data. (A guard that is leaked keeps the lock for the life of the process: references may have outlived the
//! thread.) Who keeps it: the lock's words (`crossproc-sync`, `lock.rs`). Not claimed: safety of the *values*
//! against a peer that writes without the lock; whatever it writes, `T` has no invalid bits.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Payload, Placed, Segment};
use crossproc_sync::LockWords;

use crate::handle::{Fresh, Handle, handle_serde, spec};
use crate::lock::{Guard, Lock, LockError, Panic, Wait, before, marked, within};

/// Where the data begins: after the lock's words, on a cache line of its own.
const DATA: u64 = 64;

/// Data behind a robust lock.
///
/// `T` is plain data for which every bit pattern is a value (integers, floats, arrays and structs of them: derive
/// `Plain`). A type with invalid bit patterns (`bool`, `char`, enums) does not compile; use
/// [`Value`](crate::Value), which copies and checks.
///
/// ```
/// let counts = crossproc_primitives::Mutex::new([0_u32; 3])?;
/// counts.lock()?[1] += 5;
/// assert_eq!(*counts.lock()?, [0, 5, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// ```compile_fail
/// let flag = crossproc_primitives::Mutex::new(true);
/// ```
pub struct Mutex<T: Plain + AnyBitPattern> {
    pub(crate) lock: Lock,
    data: Placed<Payload<T>>,
}

/// Holds a [`Mutex`]; derefs to the data. Dropping it releases.
#[must_use = "dropping the guard releases the lock"]
pub struct MutexGuard<'a, T: Plain + AnyBitPattern> {
    pub(crate) mutex: &'a Mutex<T>,
    panic: Panic,
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives `&T` only, and plain data is Sync.
unsafe impl<T: Plain + AnyBitPattern> Sync for MutexGuard<'_, T> {}

impl<T: Plain + AnyBitPattern> Mutex<T> {
    const SPEC: ObjectSpec = spec::<T>(ObjectKind::new("Mutex"), 1, DATA + size_of::<T>() as u64);

    /// A mutex in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new(value: T) -> Result<Self, Error> {
        Self::of(Handle::anonymous(&Self::SPEC, |fresh| Self::first(fresh, value))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, value: T) -> Result<Self, Error> {
        Self::of(Handle::named(segment, name, &Self::SPEC, |fresh| Self::first(fresh, value))?)
    }

    fn first(fresh: &Fresh<'_>, value: T) {
        let data = fresh.place::<Payload<T>>(DATA);
        // SAFETY: nobody can find the object before it is made.
        unsafe { *data.get_mut() = value };
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &Self::SPEC)?)
    }

    fn of(handle: Handle<LockWords>) -> Result<Self, Error> {
        const { assert!(align_of::<T>() <= 64, "the data is aligned to 64 bytes at most") };
        let data = handle.place(DATA)?;
        Ok(Self { lock: Lock { handle }, data })
    }

    fn handle(&self) -> &Handle<LockWords> {
        &self.lock.handle
    }

    /// Acquires the lock, waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock` or `TimedOut`.
    #[inline]
    pub fn lock(&self) -> Result<MutexGuard<'_, T>, LockError<MutexGuard<'_, T>>> {
        self.wait(Wait::FOREVER)
    }

    /// Acquires the lock if it is free or its holder is dead.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `TimedOut`.
    #[inline]
    pub fn try_lock(&self) -> Result<MutexGuard<'_, T>, LockError<MutexGuard<'_, T>>> {
        self.wait(Wait::Try)
    }

    /// Acquires the lock, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<MutexGuard<'_, T>, LockError<MutexGuard<'_, T>>> {
        self.wait(within(timeout))
    }

    /// Acquires the lock, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_deadline(
        &self,
        deadline: Instant,
    ) -> Result<MutexGuard<'_, T>, LockError<MutexGuard<'_, T>>> {
        self.wait(before(deadline))
    }

    /// Acquires the lock; if its last holder died or panicked, lets `repair` put the data right first.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never with a guard inside.
    pub fn with_repair(
        &self,
        repair: impl FnOnce(&mut T),
    ) -> Result<MutexGuard<'_, T>, LockError<MutexGuard<'_, T>>> {
        self.lock().or_else(|e| e.repair(|guard| repair(guard)))
    }

    /// True if somebody held the lock a moment ago.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// The thread that held the lock a moment ago, by the kernel's number.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        self.lock.holder()
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.lock.segment()
    }

    #[inline(always)] // as in `lock.rs`
    fn wait(&self, wait: Wait) -> Result<MutexGuard<'_, T>, LockError<MutexGuard<'_, T>>> {
        let marks = self.lock.raw_lock(wait)?;
        self.lock.keep_at_thread_end();
        let guard = MutexGuard { mutex: self, panic: Panic::watch(), not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }
}

impl<T: Plain + AnyBitPattern> Clone for Mutex<T> {
    fn clone(&self) -> Self {
        Self { lock: self.lock.clone(), data: self.data.clone() }
    }
}

impl<T: Plain + AnyBitPattern> Guard for MutexGuard<'_, T> {
    fn mark_consistent(&mut self) {
        self.mutex.lock.handle.words.mark_consistent();
    }
}

impl<T: Plain + AnyBitPattern> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock, and the data is reached through guards only.
        unsafe { self.mutex.data.get() }
    }
}

impl<T: Plain + AnyBitPattern> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock, the data is reached through guards only, and `&mut self` is exclusive.
        unsafe { self.mutex.data.get_mut() }
    }
}

impl<T: Plain + AnyBitPattern> Drop for MutexGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.mutex.lock.raw_unlock(&self.panic);
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutex").field("type", &T::LAYOUT.name).field("lock", &self.lock).finish()
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MutexGuard").field(self.mutex).finish()
    }
}

handle_serde!(Mutex<T: Plain, AnyBitPattern>);
