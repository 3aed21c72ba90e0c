//! `Lock`: Python's `Lock`, robust; and what the guards of all locks have in common.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crossproc_atomic::{Linux, Platform};
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Segment};
pub(crate) use crossproc_sync::Wait;
use crossproc_sync::{LockFailure, LockWords, Marks};

use crate::handle::{Handle, handle_serde, spec};

/// Why a lock was not acquired; or that it was, with something to know.
///
/// Both `?` into `Box<dyn Error>` and `?` into [`AccessError`](crate::AccessError) work, and let go of the guard.
/// [`OwnerDied`](Self::OwnerDied) and [`Poisoned`](Self::Poisoned) *have* the lock: the guard is inside. They come
/// again at each locking until somebody calls [`Guard::mark_consistent`].
pub enum LockError<G> {
    /// Acquired, but a process died while it held the lock: what it guards may be half-changed.
    OwnerDied(G),
    /// Acquired, but a holder panicked: what it guards may be half-changed.
    Poisoned(G),
    /// Somebody else holds it (`try_` forms).
    WouldBlock,
    /// Somebody else held it until the deadline.
    TimedOut,
    /// The calling thread holds it already.
    WouldDeadlock,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl<G> LockError<G> {
    pub(crate) fn text(&self) -> &'static str {
        match self {
            Self::OwnerDied(_) => {
                "a process died while it held the lock; look at the data, then call `mark_consistent` on the guard"
            }
            Self::Poisoned(_) => {
                "a holder of the lock panicked; look at the data, then call `mark_consistent` on the guard"
            }
            Self::WouldBlock => "the lock is held by somebody else",
            Self::TimedOut => "the lock was held by somebody else until the deadline",
            Self::WouldDeadlock => "the calling thread holds the lock already; use an RLock to lock it again",
            Self::NotAttached => {
                "this process is not attached to the segment for writing (after a fork, attach again with `Segment::attach_again`)"
            }
        }
    }

    /// The guard, if the lock was acquired all the same.
    pub fn into_guard(self) -> Option<G> {
        match self {
            Self::OwnerDied(guard) | Self::Poisoned(guard) => Some(guard),
            _ => None,
        }
    }

    pub(crate) fn map<H>(self, f: impl FnOnce(G) -> H) -> LockError<H> {
        match self {
            Self::OwnerDied(guard) => LockError::OwnerDied(f(guard)),
            Self::Poisoned(guard) => LockError::Poisoned(f(guard)),
            Self::WouldBlock => LockError::WouldBlock,
            Self::TimedOut => LockError::TimedOut,
            Self::WouldDeadlock => LockError::WouldDeadlock,
            Self::NotAttached => LockError::NotAttached,
        }
    }
}

/// Equal if the reason is the same, whatever guards are inside.
impl<G, H> PartialEq<LockError<H>> for LockError<G> {
    fn eq(&self, other: &LockError<H>) -> bool {
        self.text() == other.text()
    }
}

impl<G> Eq for LockError<G> {}

impl<G: Guard> LockError<G> {
    /// After a death or a panic: lets `repair` put things right, marks them consistent, and goes on.
    ///
    /// # Errors
    ///
    /// The error itself, if the lock was not acquired.
    ///
    /// ```
    /// use std::time::Duration;
    /// let log = crossproc_primitives::Mutex::new([0_u64; 4])?;
    /// let guard = log.lock_timeout(Duration::from_secs(1)).or_else(|e| e.repair(|log| log.fill(0)))?;
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn repair(self, repair: impl FnOnce(&mut G)) -> Result<G, Self> {
        match self {
            Self::OwnerDied(mut guard) | Self::Poisoned(mut guard) => {
                repair(&mut guard);
                guard.mark_consistent();
                Ok(guard)
            }
            failure => Err(failure),
        }
    }
}

impl<G> std::fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OwnerDied(_) => "OwnerDied(..)",
            Self::Poisoned(_) => "Poisoned(..)",
            Self::WouldBlock => "WouldBlock",
            Self::TimedOut => "TimedOut",
            Self::WouldDeadlock => "WouldDeadlock",
            Self::NotAttached => "NotAttached",
        })
    }
}

impl<G> std::fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// `?` in a function that returns `Box<dyn Error>` lets go of the guard and keeps the reason, as an
/// [`AccessError`](crate::AccessError). (`LockError` is no `Error` itself: with a guard inside, it could not be boxed.)
impl<G> From<LockError<G>> for Box<dyn std::error::Error> {
    fn from(error: LockError<G>) -> Self {
        Box::new(crate::AccessError::from(error))
    }
}

/// As for `Box<dyn Error>`.
impl<G> From<LockError<G>> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: LockError<G>) -> Self {
        Box::new(crate::AccessError::from(error))
    }
}

/// What every guard can do.
pub trait Guard {
    /// Says that the guarded data is consistent: the marks of a dead or panicked holder go.
    fn mark_consistent(&mut self);
}

/// The lock to be released is not held by the calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld;

impl std::fmt::Display for NotHeld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "the calling thread does not hold the lock (released too many times, or by another thread)",
        )
    }
}

impl std::error::Error for NotHeld {}

/// Whether a panic begins while a lock is held: one that was under way before is none of the lock's business.
pub(crate) struct Panic {
    was_panicking: bool,
}

impl Panic {
    #[inline]
    pub(crate) fn watch() -> Self {
        Self { was_panicking: std::thread::panicking() }
    }

    #[inline]
    pub(crate) fn began(&self) -> bool {
        !self.was_panicking && std::thread::panicking()
    }
}

/// Until when to wait, in a user's terms.
pub(crate) fn within(timeout: Duration) -> Wait {
    Wait::Until(Some(Linux.now().saturating_add(timeout)))
}

/// As [`within`].
pub(crate) fn before(deadline: Instant) -> Wait {
    within(deadline.saturating_duration_since(Instant::now()))
}

/// A mutual exclusion lock between processes that survives the death of its holder.
///
/// It guards nothing by itself; see [`Mutex`](crate::Mutex) for a lock with data behind it. Waiters sleep in the
/// kernel; a holder that is killed is noticed in a fraction of a millisecond, and the next one gets
/// [`LockError::OwnerDied`] with the guard inside. A holder that is merely stopped keeps the lock: use the timed
/// forms where that matters.
///
/// Uncontended it costs two atomic read-modify-writes and no system call. It is unfair: a thread that comes by may
/// take it before one that was woken.
///
/// ```
/// use crossproc_primitives::{Lock, LockError};
///
/// let lock = Lock::new()?;
/// {
///     let _guard = lock.lock()?;
///     assert_eq!(lock.try_lock().err(), Some(LockError::WouldDeadlock));
/// }
/// lock.acquire()?; // without a guard, as in Python
/// lock.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A guard belongs to the thread that locked:
///
/// ```compile_fail
/// let lock = crossproc_primitives::Lock::new().unwrap();
/// let guard = lock.lock().unwrap();
/// std::thread::scope(|s| { s.spawn(move || drop(guard)); });
/// ```
#[derive(Clone)]
pub struct Lock {
    pub(crate) handle: Handle<LockWords>,
}

/// Holds a [`Lock`]; dropping it releases.
#[must_use = "dropping the guard releases the lock"]
pub struct LockGuard<'a> {
    pub(crate) lock: &'a Lock,
    panic: Panic,
    /// Robust words name a thread: `!Send`.
    not_send: PhantomData<*const ()>,
}

thread_local! {
    /// Keeps the segments of locks that were acquired without a guard mapped until they are released.
    static ACQUIRED: std::cell::RefCell<Vec<Lock>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Lock {
    const SPEC: ObjectSpec = lock_spec("Lock");

    /// A lock in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new() -> Result<Self, Error> {
        Ok(Self { handle: Handle::anonymous(&Self::SPEC, |_| ())? })
    }

    pub(crate) fn named(segment: &Segment, name: &str) -> Result<Self, Error> {
        Ok(Self { handle: Handle::named(segment, name, &Self::SPEC, |_| ())? })
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Ok(Self { handle: Handle::attach(segment, index, &Self::SPEC)? })
    }

    fn handle(&self) -> &Handle<LockWords> {
        &self.handle
    }

    /// Acquires the lock, waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock` or `TimedOut`.
    #[inline]
    pub fn lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.wait(Wait::FOREVER)
    }

    /// Acquires the lock if it is free or its holder is dead.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `TimedOut`.
    #[inline]
    pub fn try_lock(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.wait(Wait::Try)
    }

    /// Acquires the lock, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.wait(within(timeout))
    }

    /// Acquires the lock, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_deadline(&self, deadline: Instant) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.wait(before(deadline))
    }

    /// Acquires the lock; if its last holder died or panicked, lets `repair` put things right first.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never with a guard inside.
    pub fn with_repair(&self, repair: impl FnOnce()) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        self.lock().or_else(|e| e.repair(|_| repair()))
    }

    /// Acquires the lock without a guard; to be released by [`release`](Self::release) in the same thread.
    ///
    /// # Errors
    ///
    /// See [`LockError`]. With `OwnerDied` and `Poisoned` the lock *is* acquired;
    /// [`mark_consistent`](Self::mark_consistent) takes the mark away.
    pub fn acquire(&self) -> Result<(), LockError<()>> {
        self.keep(self.lock())
    }

    /// As [`acquire`](Self::acquire), if it is free or its holder is dead.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and `WouldBlock`.
    pub fn try_acquire(&self) -> Result<(), LockError<()>> {
        self.keep(self.try_lock())
    }

    /// As [`acquire`](Self::acquire), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and `TimedOut`.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<(), LockError<()>> {
        self.keep(self.lock_timeout(timeout))
    }

    /// As [`acquire`](Self::acquire), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and `TimedOut`.
    pub fn acquire_deadline(&self, deadline: Instant) -> Result<(), LockError<()>> {
        self.keep(self.lock_deadline(deadline))
    }

    /// Releases a lock taken by [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if the calling thread did not acquire it so.
    pub fn release(&self) -> Result<(), NotHeld> {
        let kept = ACQUIRED.with_borrow_mut(|acquired| {
            let at = acquired.iter().rposition(|lock| lock.handle.is_same(&self.handle))?;
            Some(acquired.remove(at))
        });
        match kept {
            Some(lock) if lock.handle.live().is_some_and(|live| lock.handle.words.is_mine(live)) => {
                drop(LockGuard { lock: &lock, panic: Panic::watch(), not_send: PhantomData });
                Ok(())
            }
            _ => Err(NotHeld),
        }
    }

    /// The holder says that what the lock guards is consistent. Does nothing if the calling thread does not hold it.
    pub fn mark_consistent(&self) {
        if self.is_mine() {
            self.handle.words.mark_consistent();
        }
    }

    /// True if the calling thread holds the lock.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        self.handle.live().is_some_and(|live| self.handle.words.is_mine(live))
    }

    /// True if somebody held the lock a moment ago.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.handle.words.is_locked()
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    /// The thread that held the lock a moment ago, by the kernel's number.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        Some(self.handle.words.holder_tid()).filter(|&tid| tid != 0)
    }

    #[inline(always)] // as below: the result would come back through memory
    fn wait(&self, wait: Wait) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        let marks = self.raw_lock(wait)?;
        let guard = LockGuard { lock: self, panic: Panic::watch(), not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }

    /// On `Ok` the calling thread holds the words.
    #[inline(always)]
    pub(crate) fn raw_lock<G>(&self, wait: Wait) -> Result<Marks, LockError<G>> {
        let Some(live) = self.handle.live() else { return Err(LockError::NotAttached) };
        let result = match wait {
            Wait::Try => self.handle.words.try_lock(live),
            Wait::Until(until) => self.handle.words.lock(live, until),
        };
        result.map_err(failed)
    }

    /// After [`raw_lock`](Self::raw_lock), for guards that hand out references: should the thread end without releasing,
    /// the lock stays locked, since the references may live on in another thread.
    #[inline]
    pub(crate) fn keep_at_thread_end(&self) {
        if let Some(live) = self.handle.live() {
            live.keep(self.handle.words.futex_word());
        }
    }

    /// Releases what [`raw_lock`](Self::raw_lock) acquired, unless this is a forked child's copy.
    #[inline(always)] // a call here costs a quarter of the whole pair: its saved registers must drain before the CAS
    pub(crate) fn raw_unlock(&self, panic: &Panic) {
        if let Some(live) = self.handle.live() {
            if panic.began() && self.handle.words.is_mine(live) {
                self.handle.words.mark_poisoned();
            }
            self.handle.words.unlock(live);
        }
    }

    fn keep(&self, locked: Result<LockGuard<'_>, LockError<LockGuard<'_>>>) -> Result<(), LockError<()>> {
        let keep = |guard: LockGuard<'_>| {
            ACQUIRED.with_borrow_mut(|acquired| acquired.push(self.clone()));
            std::mem::forget(guard);
        };
        locked.map(keep).map_err(|e| e.map(keep))
    }
}

#[cold]
pub(crate) fn failed<G>(failure: LockFailure) -> LockError<G> {
    match failure {
        LockFailure::WouldBlock => LockError::WouldBlock,
        LockFailure::TimedOut => LockError::TimedOut,
        LockFailure::WouldDeadlock => LockError::WouldDeadlock,
    }
}

#[cold]
pub(crate) fn marked<G>(marks: Marks, guard: G) -> LockError<G> {
    if marks.owner_died() { LockError::OwnerDied(guard) } else { LockError::Poisoned(guard) }
}

impl Guard for LockGuard<'_> {
    fn mark_consistent(&mut self) {
        self.lock.handle.words.mark_consistent();
    }
}

impl Drop for LockGuard<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.raw_unlock(&self.panic);
    }
}

impl std::fmt::Debug for LockGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LockGuard").field(self.lock).finish()
    }
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let marks = self.handle.words.marks();
        f.debug_struct("Lock")
            .field("holder", &self.holder())
            .field("owner_died", &marks.owner_died())
            .field("poisoned", &marks.poisoned())
            .finish_non_exhaustive()
    }
}

handle_serde!(Lock);

/// What an object that is just a lock's words is.
pub(crate) const fn lock_spec(kind: &str) -> ObjectSpec {
    spec::<()>(ObjectKind::new(kind), 1, size_of::<LockWords>() as u64)
}
