#![allow(unsafe_code)]
//! `RwLock<T>`: the room of the guards that give `&T` to many or `&mut T` to one, into shared memory.
//!
//! Claim: between `write` and the guard's drop no other thread of any process that keeps to the protocol touches the
//! data, and between `read` and the guard's drop nobody changes it. (A write guard that is leaked keeps the lock for the life of
//! the process, a read guard that is leaked keeps writers out for as long: references may have outlived the thread.) Who
//! keeps it: the lock's words (`crossproc-sync`, `rwlock.rs`). Not claimed: safety of the *values* against a peer that
//! writes without the lock; whatever it writes, `T` has no invalid bits.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_atomic::{Liveness, Platform};
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Payload, Placed, PlacedSlice, Segment};
use crossproc_sync::{ReaderCell, RwLockWords};

use crate::audit::Violation;
use crate::handle::{Fresh, Handle, SLOTS_ALONE, handle_serde, spec};
use crate::lock::{Guard, LockError, Panic, Wait, before, failed, marked, within};

/// Where the data begins: after the lock's words, on a cache line of its own. Behind it are the cells.
const DATA: u64 = 64;

/// Data behind a robust lock that many may hold for reading, or one for writing.
///
/// A reader that meets no writer changes one word, which belongs to its own process: readers in different processes do
/// not take cache lines from each other. That makes writing dearer: a writer looks at the words of all processes that have
/// ever read. Where reading is short and writing not rare, a [`Mutex`](crate::Mutex) is faster.
///
/// A writer that waits keeps new readers out, so that it is not kept waiting for ever; it waits for those who were there before.
/// Therefore a thread that holds a read guard must not ask again: `read` waits for a writer that may be waiting for this
/// very thread, and `write` waits for it in any case. The forms with a time limit end such a wait.
///
/// *Robust*: a process that is killed while it reads is as if it had stopped reading. One that is killed while it has a
/// write guard passes the lock on: readers and writers are told so ([`LockError::OwnerDied`], with the guard inside) until a
/// *writer* says [`Guard::mark_consistent`]; a panic likewise ([`LockError::Poisoned`]). Readers have nothing to
/// repair with: they look at the data, and use it or leave it.
///
/// `T` is plain data for which every bit pattern is a value, as for [`Mutex`](crate::Mutex).
///
/// ```
/// let limits = crossproc_primitives::RwLock::new([10_u32, 20])?;
/// {
///     let (first, second) = (limits.read()?, limits.read()?);
///     assert_eq!(first[0] + second[1], 30);
///     assert!(limits.try_write().is_err());
/// }
/// limits.write()?[0] = 11;
/// assert_eq!(*limits.read()?, [11, 20]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A read guard gives no `&mut`, and does not repair:
///
/// ```compile_fail,E0594
/// let limits = crossproc_primitives::RwLock::new([10_u32, 20]).unwrap();
/// limits.read().unwrap()[0] = 11;
/// ```
///
/// ```compile_fail,E0599
/// use crossproc_primitives::Guard;
/// let limits = crossproc_primitives::RwLock::new([10_u32, 20]).unwrap();
/// limits.read().unwrap().mark_consistent();
/// ```
///
/// ```compile_fail,E0277
/// let flag = crossproc_primitives::RwLock::new(true);
/// ```
pub struct RwLock<T: Plain + AnyBitPattern> {
    handle: Handle<RwLockWords>,
    cells: PlacedSlice<ReaderCell>,
    data: Placed<Payload<T>>,
}

/// Holds an [`RwLock`] for reading; derefs to the data. Dropping it releases.
#[must_use = "dropping the guard releases the lock"]
pub struct RwLockReadGuard<'a, T: Plain + AnyBitPattern> {
    rwlock: &'a RwLock<T>,
    not_send: PhantomData<*const ()>,
}

/// Holds an [`RwLock`] for writing; derefs to the data. Dropping it releases.
#[must_use = "dropping the guard releases the lock"]
pub struct RwLockWriteGuard<'a, T: Plain + AnyBitPattern> {
    rwlock: &'a RwLock<T>,
    panic: Panic,
    not_send: PhantomData<*const ()>,
}

// SAFETY: a guard, shared, gives `&T` only, and plain data is Sync.
unsafe impl<T: Plain + AnyBitPattern> Sync for RwLockReadGuard<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Plain + AnyBitPattern> Sync for RwLockWriteGuard<'_, T> {}

type ReadResult<'a, T> = Result<RwLockReadGuard<'a, T>, LockError<RwLockReadGuard<'a, T>>>;
type WriteResult<'a, T> = Result<RwLockWriteGuard<'a, T>, LockError<RwLockWriteGuard<'a, T>>>;

impl<T: Plain + AnyBitPattern> RwLock<T> {
    const CELLS: u64 = DATA + (size_of::<T>() as u64).next_multiple_of(size_of::<ReaderCell>() as u64);

    fn spec(slots: usize) -> ObjectSpec {
        let cells = slots as u64 * size_of::<ReaderCell>() as u64;
        spec::<T>(ObjectKind::new("RwLock"), 1, Self::CELLS + cells)
    }

    /// A lock in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new(value: T) -> Result<Self, Error> {
        Self::of(Handle::anonymous(&Self::spec(SLOTS_ALONE), |fresh| Self::first(fresh, value))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, value: T) -> Result<Self, Error> {
        let spec = Self::spec(segment.participant_slots());
        Self::of(Handle::named(segment, name, &spec, |fresh| Self::first(fresh, value))?)
    }

    fn first(fresh: &Fresh<'_>, value: T) {
        let data = fresh.place::<Payload<T>>(DATA);
        // SAFETY: nobody can find the object before it is made.
        unsafe { *data.get_mut() = value };
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        let spec = Self::spec(segment.participant_slots());
        Self::of(Handle::attach(segment, index, &spec)?)
    }

    fn of(handle: Handle<RwLockWords>) -> Result<Self, Error> {
        const { assert!(align_of::<T>() <= 64, "the data is aligned to 64 bytes at most") };
        let (cells, data) = (handle.cells(Self::CELLS)?, handle.place(DATA)?);
        Ok(Self { handle, cells, data })
    }

    fn handle(&self) -> &Handle<RwLockWords> {
        &self.handle
    }

    /// Acquires the lock for reading, waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock` or `TimedOut`. `OwnerDied` and `Poisoned` have the read guard inside.
    /// `WouldDeadlock`: the calling thread has the lock for writing, or its process has 262 143 read guards.
    #[inline]
    pub fn read(&self) -> Result<RwLockReadGuard<'_, T>, LockError<RwLockReadGuard<'_, T>>> {
        self.wait_to_read(Wait::FOREVER)
    }

    /// Acquires the lock for reading, unless a writer holds it or waits for it (or another reader that met a writer is just
    /// being let in).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and `WouldBlock`.
    #[inline]
    pub fn try_read(&self) -> Result<RwLockReadGuard<'_, T>, LockError<RwLockReadGuard<'_, T>>> {
        self.wait_to_read(Wait::Try)
    }

    /// Acquires the lock for reading, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and `TimedOut`.
    pub fn read_timeout(
        &self,
        timeout: Duration,
    ) -> Result<RwLockReadGuard<'_, T>, LockError<RwLockReadGuard<'_, T>>> {
        self.wait_to_read(within(timeout))
    }

    /// Acquires the lock for reading, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and `TimedOut`.
    pub fn read_deadline(
        &self,
        deadline: Instant,
    ) -> Result<RwLockReadGuard<'_, T>, LockError<RwLockReadGuard<'_, T>>> {
        self.wait_to_read(before(deadline))
    }

    /// Acquires the lock for writing, waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock` or `TimedOut`.
    #[inline]
    pub fn write(&self) -> Result<RwLockWriteGuard<'_, T>, LockError<RwLockWriteGuard<'_, T>>> {
        self.wait_to_write(Wait::FOREVER)
    }

    /// Acquires the lock for writing if nobody living holds it.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `TimedOut`.
    #[inline]
    pub fn try_write(&self) -> Result<RwLockWriteGuard<'_, T>, LockError<RwLockWriteGuard<'_, T>>> {
        self.wait_to_write(Wait::Try)
    }

    /// Acquires the lock for writing, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn write_timeout(
        &self,
        timeout: Duration,
    ) -> Result<RwLockWriteGuard<'_, T>, LockError<RwLockWriteGuard<'_, T>>> {
        self.wait_to_write(within(timeout))
    }

    /// Acquires the lock for writing, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn write_deadline(
        &self,
        deadline: Instant,
    ) -> Result<RwLockWriteGuard<'_, T>, LockError<RwLockWriteGuard<'_, T>>> {
        self.wait_to_write(before(deadline))
    }

    /// Acquires the lock for writing; if its last writer died or panicked, lets `repair` put the data right first.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never with a guard inside.
    pub fn with_repair(
        &self,
        repair: impl FnOnce(&mut T),
    ) -> Result<RwLockWriteGuard<'_, T>, LockError<RwLockWriteGuard<'_, T>>> {
        self.write().or_else(|e| e.repair(|guard| repair(guard)))
    }

    /// How many read guards there were a moment ago, in all processes. Those of the dead do not count.
    #[must_use]
    pub fn readers(&self) -> u64 {
        let live = self.handle.live();
        self.handle.words.readers(&self.cells, |owner| live.is_some_and(|live| live.is_gone(owner)))
    }

    /// The thread that held the lock for writing a moment ago, or waited for readers to leave, by the kernel's
    /// number.
    #[must_use]
    pub fn writer(&self) -> Option<u32> {
        Some(self.handle.words.writer_tid()).filter(|&tid| tid != 0)
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    /// Looks for what can not be in the lock's words: somebody scribbled over them, or there is a bug. Changes nothing.
    ///
    /// # Errors
    ///
    /// What was found. While others use the lock, it can be a moment between two of their steps.
    pub fn audit(&self) -> Result<(), Violation> {
        let live = self.handle.live();
        let is_gone = |owner| live.is_none_or(|live| live.is_gone(owner));
        self.handle.words.audit(&self.cells, is_gone).map_err(Violation::new)
    }

    #[inline(always)] // as in `lock.rs`
    fn wait_to_read(&self, wait: Wait) -> ReadResult<'_, T> {
        let Some(live) = self.handle.live() else { return Err(LockError::NotAttached) };
        let marks = self.handle.words.read(&self.cells, live, wait).map_err(failed)?;
        let guard = RwLockReadGuard { rwlock: self, not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }

    #[inline(always)]
    fn wait_to_write(&self, wait: Wait) -> WriteResult<'_, T> {
        let Some(live) = self.handle.live() else { return Err(LockError::NotAttached) };
        let marks = self.handle.words.write(&self.cells, live, wait).map_err(failed)?;
        // Should the thread end without releasing, the lock stays locked: references may live on in another thread.
        live.keep(self.handle.words.futex_word());
        let guard = RwLockWriteGuard { rwlock: self, panic: Panic::watch(), not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }
}

impl<'a, T: Plain + AnyBitPattern> RwLockWriteGuard<'a, T> {
    /// Goes on reading, with no other writer in between. What is known of the data (a dead or panicked writer) stays
    /// known.
    ///
    /// ```
    /// let lock = crossproc_primitives::RwLock::new(1_u64)?;
    /// let mut guard = lock.write()?;
    /// *guard = 2;
    /// let guard = guard.downgrade();
    /// assert_eq!((*guard, *lock.read()?), (2, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn downgrade(self) -> RwLockReadGuard<'a, T> {
        let guard = std::mem::ManuallyDrop::new(self);
        let rwlock = guard.rwlock;
        if let Some(live) = rwlock.handle.live() {
            rwlock.handle.words.downgrade(&rwlock.cells, live, guard.panic.began());
        }
        RwLockReadGuard { rwlock, not_send: PhantomData }
    }
}

impl<T: Plain + AnyBitPattern> Clone for RwLock<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), cells: self.cells.clone(), data: self.data.clone() }
    }
}

impl<T: Plain + AnyBitPattern> Guard for RwLockWriteGuard<'_, T> {
    fn mark_consistent(&mut self) {
        if let Some(live) = self.rwlock.handle.live() {
            self.rwlock.handle.words.mark_consistent(live);
        }
    }
}

impl<T: Plain + AnyBitPattern> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is counted as a reader, which keeps writers out, and the data is reached through guards only.
        unsafe { self.rwlock.data.get() }
    }
}

impl<T: Plain + AnyBitPattern> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock for writing, and the data is reached through guards only.
        unsafe { self.rwlock.data.get() }
    }
}

impl<T: Plain + AnyBitPattern> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock for writing, the data is reached through guards only, and `&mut self` is
        // exclusive.
        unsafe { self.rwlock.data.get_mut() }
    }
}

impl<T: Plain + AnyBitPattern> Drop for RwLockReadGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Not in a forked child: there it is a copy, and its parent's goes on reading.
        if let Some(live) = self.rwlock.handle.live() {
            self.rwlock.handle.words.leave(&self.rwlock.cells, live);
        }
    }
}

impl<T: Plain + AnyBitPattern> Drop for RwLockWriteGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(live) = self.rwlock.handle.live() {
            self.rwlock.handle.words.unlock(live, self.panic.began());
        }
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let marks = self.handle.words.marks();
        f.debug_struct("RwLock")
            .field("type", &T::LAYOUT.name)
            .field("readers", &self.readers())
            .field("writer", &self.writer())
            .field("owner_died", &marks.owner_died())
            .field("poisoned", &marks.poisoned())
            .finish_non_exhaustive()
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RwLockReadGuard").field(self.rwlock).finish()
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RwLockWriteGuard").field(self.rwlock).finish()
    }
}

handle_serde!(RwLock<T: Plain, AnyBitPattern>);
