//! `Once`: something that is done in one of all processes.

use std::time::{Duration, Instant};

use crossproc_atomic::Liveness;
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Segment};
use crossproc_sync::{LockFailure, OnceFailure, OnceWords, Previous};

use crate::audit::Violation;
use crate::handle::{Handle, handle_serde, spec};
use crate::lock::{LockError, Wait, before, within};

/// Why [`Once`] is not known to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnceError {
    /// Somebody else is doing it (`try_call`).
    WouldBlock,
    /// It was not done until the deadline.
    TimedOut,
    /// The calling thread is doing it: this was called from inside the closure.
    WouldDeadlock,
    /// Nobody is doing it, and all other processes that were attached to the segment are gone (`wait` forms). Other threads of
    /// this process do not count.
    PeerDied,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl std::fmt::Display for OnceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "somebody else is doing it",
            Self::TimedOut => "it was not done until the deadline",
            Self::WouldDeadlock => "the calling thread is doing it; do not call a Once from its own closure",
            Self::PeerDied => {
                "nobody is doing it, and all other processes that were attached to the segment are gone; \
                 do it here, with `call`"
            }
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        })
    }
}

impl std::error::Error for OnceError {}

impl From<LockFailure> for OnceError {
    fn from(failure: LockFailure) -> Self {
        match failure {
            LockFailure::WouldBlock => Self::WouldBlock,
            LockFailure::TimedOut => Self::TimedOut,
            LockFailure::WouldDeadlock => Self::WouldDeadlock,
        }
    }
}

impl From<OnceFailure> for OnceError {
    fn from(failure: OnceFailure) -> Self {
        match failure {
            OnceFailure::WouldBlock => Self::WouldBlock,
            OnceFailure::TimedOut => Self::TimedOut,
            OnceFailure::WouldDeadlock => Self::WouldDeadlock,
            OnceFailure::PeerDied => Self::PeerDied,
        }
    }
}

/// Something that is done once, by one thread of one of all processes: filling a table, say.
///
/// Whoever calls first does it; the others wait. When it is done, calling it again is one atomic load, and what was done is
/// visible. If the process that was doing it dies, or the closure panics, the next one to call does it again, and is
/// told so ([`OnceState`]): what it finds may be half done. (It may even be all done, if the process was killed right
/// at the end: so doing it twice must be no harm.)
///
/// ```
/// use crossproc_primitives::{Once, RawArray};
///
/// let (squares, filled) = (RawArray::from_slice(&[0_u64; 100])?, Once::new()?);
/// for _ in 0..3 {
///     filled.call(|_| (0..100).for_each(|n| squares.set(n, (n * n) as u64).unwrap()))?;
///     assert_eq!(squares.get(7)?, 49);
/// }
/// assert!(filled.is_completed());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Once {
    handle: Handle<OnceWords>,
}

/// Told to who does it: what became of the attempt before this one.
#[derive(Debug)]
pub struct OnceState {
    previous: Previous,
}

impl OnceState {
    /// True if the last process that was doing it died.
    #[must_use]
    pub fn previous_died(&self) -> bool {
        self.previous == Previous::Died
    }

    /// True if the last closure that was doing it panicked.
    #[must_use]
    pub fn previous_panicked(&self) -> bool {
        self.previous == Previous::Panicked
    }
}

/// The calling thread is doing it.
struct Running<'a> {
    once: &'a Once,
    done: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Not in a child that was forked by the closure: it has a copy, and its parent is doing it.
        if let Some(live) = self.once.handle.live() {
            if self.done {
                self.once.handle.words.complete(live);
            } else {
                self.once.handle.words.give_up(live);
            }
        }
    }
}

impl Once {
    const SPEC: ObjectSpec = spec::<()>(ObjectKind::new("Once"), 1, size_of::<OnceWords>() as u64);

    /// A `Once` in an anonymous segment of its own, not done.
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

    fn handle(&self) -> &Handle<OnceWords> {
        &self.handle
    }

    /// Makes sure that it is done: does it, unless it is done already; waits while somebody else is doing it.
    ///
    /// # Errors
    ///
    /// See [`OnceError`]; never `WouldBlock`, `TimedOut` or `PeerDied`. Once it is done there are no errors at all.
    ///
    /// # Panics
    ///
    /// If `f` does.
    #[inline]
    pub fn call(&self, f: impl FnOnce(&OnceState)) -> Result<(), OnceError> {
        self.run(Wait::FOREVER, f)
    }

    /// As [`call`](Self::call), if nobody else is doing it.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), and `WouldBlock`.
    ///
    /// # Panics
    ///
    /// If `f` does.
    #[inline]
    pub fn try_call(&self, f: impl FnOnce(&OnceState)) -> Result<(), OnceError> {
        self.run(Wait::Try, f)
    }

    /// As [`call`](Self::call), waiting for somebody else at most `timeout`. How long `f` takes is up to `f`.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), and `TimedOut`.
    ///
    /// # Panics
    ///
    /// If `f` does.
    pub fn call_timeout(&self, timeout: Duration, f: impl FnOnce(&OnceState)) -> Result<(), OnceError> {
        self.run(within(timeout), f)
    }

    /// As [`call`](Self::call), waiting for somebody else until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), and `TimedOut`.
    ///
    /// # Panics
    ///
    /// If `f` does.
    pub fn call_deadline(&self, deadline: Instant, f: impl FnOnce(&OnceState)) -> Result<(), OnceError> {
        self.run(before(deadline), f)
    }

    /// True if it is done. A read-only attachment will do.
    #[inline]
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.handle.words.is_completed()
    }

    /// Waits until somebody has done it, as long as it takes.
    ///
    /// # Errors
    ///
    /// [`OnceError::PeerDied`] if nobody is doing it and all other processes that were attached to the segment, at least one
    /// since this process came, are gone; [`OnceError::WouldDeadlock`]; [`OnceError::NotAttached`].
    #[inline]
    pub fn wait(&self) -> Result<(), OnceError> {
        self.wait_until(Wait::FOREVER)
    }

    /// As [`wait`](Self::wait), at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), and [`OnceError::TimedOut`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), OnceError> {
        self.wait_until(within(timeout))
    }

    /// As [`wait`](Self::wait), until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), and [`OnceError::TimedOut`].
    pub fn wait_deadline(&self, deadline: Instant) -> Result<(), OnceError> {
        self.wait_until(before(deadline))
    }

    /// Looks for what can not be in the words: somebody scribbled over them, or there is a bug. Changes nothing.
    ///
    /// # Errors
    ///
    /// What was found. While others use it, it can be a moment between two of their steps.
    pub fn audit(&self) -> Result<(), Violation> {
        let live = self.handle.live();
        let is_gone = |owner| live.is_none_or(|live| live.is_gone(owner));
        self.handle.words.audit(is_gone).map_err(Violation::new)
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    #[inline]
    fn run(&self, wait: Wait, f: impl FnOnce(&OnceState)) -> Result<(), OnceError> {
        if self.is_completed() { Ok(()) } else { self.run_first(wait, f) }
    }

    #[cold]
    fn run_first(&self, wait: Wait, f: impl FnOnce(&OnceState)) -> Result<(), OnceError> {
        let live = self.handle.live().ok_or(OnceError::NotAttached)?;
        let Some(previous) = self.handle.words.begin(live, wait)? else { return Ok(()) };
        let mut running = Running { once: self, done: false };
        f(&OnceState { previous });
        running.done = true;
        drop(running);
        // Not so in a child that was forked by the closure and has come back from it.
        if self.is_completed() { Ok(()) } else { Err(OnceError::NotAttached) }
    }

    #[inline]
    fn wait_until(&self, wait: Wait) -> Result<(), OnceError> {
        if self.is_completed() {
            return Ok(());
        }
        let live = self.handle.live().ok_or(OnceError::NotAttached)?;
        Ok(self.handle.words.wait(live, wait)?)
    }
}

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Once").field("is_completed", &self.is_completed()).finish_non_exhaustive()
    }
}

handle_serde!(Once);
