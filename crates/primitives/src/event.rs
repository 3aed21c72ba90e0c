//! `Event`: Python's event, a flag that processes wait for.

use std::time::{Duration, Instant};

use crossproc_atomic::Linux;
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Segment};
use crossproc_sync::{EventFailure, EventWords};

use crate::audit::Violation;
use crate::handle::{Handle, handle_serde, spec};
use crate::lock::{LockError, Wait, before, within};

/// Why waiting for an [`Event`] ended without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// It was not set until the deadline.
    TimedOut,
    /// All other processes that were attached to the segment are gone: nobody is left to set it.
    PeerDied,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl std::fmt::Display for WaitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TimedOut => "the event was not set until the deadline",
            Self::PeerDied => {
                "all other processes that were attached to the segment are gone: nobody is left to set the event"
            }
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        })
    }
}

impl std::error::Error for WaitError {}

/// A flag that processes set, clear, and wait for.
///
/// A [`set`](Self::set) lets all go who wait at that moment, even if a [`clear`](Self::clear) follows at once: who
/// waits does not have to catch the flag while it is set. What the setter did before is visible to whoever it lets go.
///
/// Setting is one atomic read-modify-write, without a system call when nobody waits; it takes no lock, so a process
/// that is killed anywhere in it, or stopped, keeps nobody from anything (one stopped before it has woken a sleeper: for a
/// second at the most). A killed waiter is no loss to anybody.
///
/// Waiting ends with [`WaitError::PeerDied`] when all other processes that were attached to the segment, at least one
/// since this process came, are gone (were killed, or have left). Waiting *before* the first other process comes is no
/// error. Events that only the threads of one process set should live in a segment that only this process attaches to.
///
/// ```
/// let ready = crossproc_primitives::Event::new()?;
/// std::thread::scope(|s| {
///     s.spawn(|| ready.set());
///     ready.wait()
/// })?;
/// assert!(ready.is_set());
/// ready.clear()?;
/// assert!(!ready.is_set());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Event {
    handle: Handle<EventWords>,
}

impl Event {
    const SPEC: ObjectSpec = spec::<()>(ObjectKind::new("Event"), 1, size_of::<EventWords>() as u64);

    /// An event in an anonymous segment of its own, not set.
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

    pub(crate) fn handle(&self) -> &Handle<EventWords> {
        &self.handle
    }

    /// Sets the event: all who wait for it go on, and so does who comes until it is cleared.
    ///
    /// # Errors
    ///
    /// [`WaitError::NotAttached`].
    #[inline]
    pub fn set(&self) -> Result<(), WaitError> {
        if self.handle.live().is_none() {
            return Err(WaitError::NotAttached);
        }
        self.handle.words.set(&Linux);
        Ok(())
    }

    /// Clears the event: who comes from now on waits. True if it was set.
    ///
    /// # Errors
    ///
    /// [`WaitError::NotAttached`].
    #[inline]
    pub fn clear(&self) -> Result<bool, WaitError> {
        if self.handle.live().is_none() {
            return Err(WaitError::NotAttached);
        }
        Ok(self.handle.words.clear())
    }

    /// True if it is set. A read-only attachment will do.
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.handle.words.is_set()
    }

    /// Waits until the event is set, as long as it takes. Returns at once if it is.
    ///
    /// # Errors
    ///
    /// See [`WaitError`]; never `TimedOut`.
    #[inline]
    pub fn wait(&self) -> Result<(), WaitError> {
        self.wait_until(Wait::FOREVER)
    }

    /// Waits until the event is set, at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`WaitError`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), WaitError> {
        self.wait_until(within(timeout))
    }

    /// Waits until the event is set, until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`WaitError`].
    pub fn wait_deadline(&self, deadline: Instant) -> Result<(), WaitError> {
        self.wait_until(before(deadline))
    }

    fn wait_until(&self, wait: Wait) -> Result<(), WaitError> {
        let live = self.handle.live().ok_or(WaitError::NotAttached)?;
        self.handle.words.wait(live, wait).map_err(|failure| match failure {
            EventFailure::WouldBlock | EventFailure::TimedOut => WaitError::TimedOut,
            EventFailure::PeerDied => WaitError::PeerDied,
        })
    }

    /// Finds what can not be, as the other objects' `audit` does. Any bits are a state of an event, so there is nothing
    /// to find.
    ///
    /// # Errors
    ///
    /// None.
    pub fn audit(&self) -> Result<(), Violation> {
        Ok(())
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event").field("is_set", &self.is_set()).finish_non_exhaustive()
    }
}

handle_serde!(Event);
