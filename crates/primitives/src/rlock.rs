//! `RLock`: a lock that its holder may lock again.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crossproc_segment::{Error, ObjectSpec, Segment};
use crossproc_sync::LockWords;

use crate::handle::{Handle, handle_serde};
use crate::lock::{Guard, Lock, LockError, Panic, Wait, before, lock_spec, marked, within};

/// A robust lock that the thread holding it may lock again; it is free when every guard is gone.
///
/// ```
/// let lock = crossproc_primitives::RLock::new()?;
/// let outer = lock.lock()?;
/// let inner = lock.lock()?;
/// drop(outer);
/// assert!(lock.is_mine());
/// drop(inner);
/// assert!(!lock.is_mine());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RLock {
    pub(crate) lock: Lock,
}

/// Holds an [`RLock`] once; dropping it releases once.
#[must_use = "dropping the guard releases the lock"]
pub struct RLockGuard<'a> {
    pub(crate) rlock: &'a RLock,
    panic: Panic,
    not_send: PhantomData<*const ()>,
}

impl RLock {
    const SPEC: ObjectSpec = lock_spec("RLock");

    /// An RLock in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new() -> Result<Self, Error> {
        Ok(Self::of(Handle::anonymous(&Self::SPEC, |_| ())?))
    }

    pub(crate) fn named(segment: &Segment, name: &str) -> Result<Self, Error> {
        Ok(Self::of(Handle::named(segment, name, &Self::SPEC, |_| ())?))
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Ok(Self::of(Handle::attach(segment, index, &Self::SPEC)?))
    }

    fn of(handle: Handle<LockWords>) -> Self {
        Self { lock: Lock { handle } }
    }

    fn handle(&self) -> &Handle<LockWords> {
        &self.lock.handle
    }

    /// Acquires the lock (again), waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`, `TimedOut` or `WouldDeadlock`. The mark of a dead or panicked holder
    /// comes with every locking, inner ones included, until it is taken away.
    pub fn lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.wait(Wait::FOREVER)
    }

    /// Acquires the lock if it is free, held by the calling thread, or its holder is dead.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `TimedOut`.
    pub fn try_lock(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.wait(Wait::Try)
    }

    /// Acquires the lock, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.wait(within(timeout))
    }

    /// Acquires the lock, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_deadline(&self, deadline: Instant) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.wait(before(deadline))
    }

    /// Acquires the lock; if its last holder died or panicked, lets `repair` put things right first.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never with a guard inside.
    pub fn with_repair(&self, repair: impl FnOnce()) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        self.lock().or_else(|e| e.repair(|_| repair()))
    }

    /// True if the calling thread holds the lock.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        self.lock.is_mine()
    }

    /// True if somebody held the lock a moment ago.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.lock.segment()
    }

    fn wait(&self, wait: Wait) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        let words = &self.lock.handle.words;
        let marks = if self.is_mine() {
            // Saturating: the word is shared, and a peer may have written anything.
            words.set_depth(words.depth().saturating_add(1));
            words.marks()
        } else {
            let marks = self.lock.raw_lock(wait)?;
            words.set_depth(0);
            marks
        };
        let guard = RLockGuard { rlock: self, panic: Panic::watch(), not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }
}

impl Guard for RLockGuard<'_> {
    fn mark_consistent(&mut self) {
        self.rlock.lock.handle.words.mark_consistent();
    }
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        if !self.rlock.is_mine() {
            return; // a forked child's copy, or the thread is ending and has given the lock up
        }
        let words = &self.rlock.lock.handle.words;
        match words.depth().checked_sub(1) {
            Some(depth) => words.set_depth(depth),
            None => self.rlock.lock.raw_unlock(&self.panic),
        }
    }
}

impl std::fmt::Debug for RLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RLock")
            .field("lock", &self.lock)
            .field("depth", &self.lock.handle.words.depth())
            .finish()
    }
}

impl std::fmt::Debug for RLockGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RLockGuard").field(self.rlock).finish()
    }
}

handle_serde!(RLock);
