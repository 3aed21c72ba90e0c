//! `Barrier`: Python's barrier, which the death of a party breaks.
//!
//! ```text
//!   0  the barrier's words (crossproc-sync, barrier.rs)
//!  64  one cell for each participant of the segment: how many handles it has
//! ```

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossproc_atomic::AtomicU64;
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Participants, PlacedSlice, Segment};
use crossproc_sync::{BarrierFailure, BarrierWords, BrokenBy};

use crate::audit::Violation;
use crate::handle::{Fresh, Handle, SLOTS_ALONE, handle_serde, spec_with_cells};
use crate::lock::{LockError, Wait, before, within};

const CELLS: u64 = 64;

/// Why a party was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierError {
    /// The barrier is broken, or was broken while this party waited. It stays so until [`Barrier::reset`].
    Broken(BrokenBy),
    /// Others have yet to come ([`Barrier::try_wait`]).
    WouldBlock,
    /// More came than there are parties, and for this one there was no place in a turn until its deadline.
    TimedOut,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl std::fmt::Display for BarrierError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Broken(BrokenBy::PartyDied) => {
                "the barrier is broken, because a party died; `reset` it, then replace who is gone"
            }
            Self::Broken(BrokenBy::Timeout) => {
                "the barrier is broken, because a party's time was up before all had come; `reset` it"
            }
            Self::Broken(BrokenBy::Abort) => "the barrier is broken by `abort`; `reset` it",
            Self::Broken(BrokenBy::Reset) => "the barrier was reset while parties waited; wait again",
            Self::Broken(BrokenBy::Panic) => {
                "the barrier is broken, because a party, or the action of the last one, panicked; `reset` it"
            }
            Self::WouldBlock => "others have yet to come to the barrier",
            Self::TimedOut => "all places of this turn of the barrier were taken until the deadline",
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        })
    }
}

impl std::error::Error for BarrierError {}

impl From<BarrierFailure> for BarrierError {
    fn from(failure: BarrierFailure) -> Self {
        match failure {
            BarrierFailure::Broken(why) => Self::Broken(why),
            BarrierFailure::WouldBlock => Self::WouldBlock,
            BarrierFailure::TimedOut => Self::TimedOut,
        }
    }
}

/// How a party passed a [`Barrier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierTurn {
    /// In which place it came: 0 for the first one, one less than the number of parties for the last one.
    pub index: usize,
    /// True for the one that came last, and no other.
    pub is_last: bool,
}

/// Where a fixed number of parties wait until all have come.
///
/// It can be used again at once: who is let through and comes back begins the next turn, even if others have yet to
/// wake up. More threads than there are parties may come; each turn takes as many as are needed.
///
/// # A broken barrier
///
/// A barrier breaks when a party dies, when the deadline of one passes (so for all), by [`abort`](Self::abort), and by a
/// panic in the action of [`wait_then`](Self::wait_then). Then all who wait, and all who come, get
/// [`BarrierError::Broken`] with the reason, until somebody calls [`reset`](Self::reset).
///
/// Whoever has a handle is taken for a party. So also the death of a process that has yet to come breaks the barrier; and so
/// does the death, or the end without dropping the handle, of one that only made the barrier and handed it on:
/// drop the handle where it is not used. Clones count as one, and so do all handles of a process: only its death
/// counts. A process that drops its last handle is a party no more, which breaks nothing (unless it drops it in a panic:
/// that breaks the barrier). A handle that is on its way to a child counts once the child has it.
///
/// Those who had all come are through, whatever happens to one of them afterwards; then the next turn is broken. (An
/// action belongs to the turn: until it has ended, a death or a `reset` still breaks it for all, and after a `reset` the next
/// turn may begin while it runs. It must not wait at the same barrier. And somebody who was let through, but is stopped
/// while four more turns break, is told [`BrokenBy::Reset`].)
///
/// ```
/// let barrier = crossproc_primitives::Barrier::new(3)?;
/// let lasts = std::thread::scope(|s| {
///     let turns = [(); 3].map(|()| s.spawn(|| barrier.wait()));
///     turns.into_iter().map(|t| t.join().unwrap()).filter(|t| t.unwrap().is_last).count()
/// });
/// assert_eq!(lasts, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Barrier {
    seat: Arc<Seat>,
}

/// One registration of this process, for as long as there is a clone.
struct Seat {
    handle: Handle<BarrierWords>,
    cells: PlacedSlice<AtomicU64>,
    parties: NonZeroU16,
    is_registered: bool,
}

impl Seat {
    fn with<'a>(&'a self, live: &'a Participants) -> crossproc_sync::Barrier<'a, Participants> {
        crossproc_sync::Barrier { words: &self.handle.words, cells: &self.cells, parties: self.parties, live }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // A forked child's copy counts for nothing.
        if let (Some(live), true) = (self.handle.live(), self.is_registered) {
            // A party that panics comes no more, and nobody will be told by its death.
            if std::thread::panicking() {
                self.with(live).abort(BrokenBy::Panic);
            }
            self.with(live).deregister();
        }
    }
}

impl Barrier {
    /// A barrier for so many parties, in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidLength`] for 0 or more than 65535 parties; or if the segment can not be made (out of memory or
    /// descriptors).
    pub fn new(parties: usize) -> Result<Self, Error> {
        let parties = checked(parties)?;
        Self::of(Handle::anonymous(&Self::spec(SLOTS_ALONE), |fresh| Self::first(fresh, parties))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, parties: usize) -> Result<Self, Error> {
        let (parties, spec) = (checked(parties)?, Self::spec(segment.participant_slots()));
        let it = Self::of(Handle::named(segment, name, &spec, |fresh| Self::first(fresh, parties))?)?;
        if it.seat.parties == parties {
            return Ok(it);
        }
        let sentence = format!("the barrier {name:?} is for {} parties, not {parties}", it.seat.parties);
        Err(Error::new(ErrorKind::WrongType, sentence))
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        let spec = Self::spec(segment.participant_slots());
        Self::of(Handle::attach(segment, index, &spec)?)
    }

    fn spec(slots: usize) -> ObjectSpec {
        spec_with_cells::<AtomicU64>(ObjectKind::new("Barrier"), CELLS, slots)
    }

    fn first(fresh: &Fresh<'_>, parties: NonZeroU16) {
        fresh.place::<BarrierWords>(0).set_parties(parties);
    }

    fn of(handle: Handle<BarrierWords>) -> Result<Self, Error> {
        let cells = handle.cells(CELLS)?;
        let Some(parties) = handle.words.parties() else {
            return Err(Error::new(ErrorKind::Damaged, "a barrier's number of parties is from 1 to 65535"));
        };
        let mut seat = Seat { handle, cells, parties, is_registered: false };
        // Who may only read can look.
        if let Some(live) = seat.handle.live() {
            seat.with(live).register().map_err(|_| {
                Error::new(
                    ErrorKind::InvalidLength,
                    "this process has too many handles of the barrier: clone one",
                )
            })?;
            seat.is_registered = true;
        }
        Ok(Self { seat: Arc::new(seat) })
    }

    fn handle(&self) -> &Handle<BarrierWords> {
        &self.seat.handle
    }

    /// Waits until all parties have come, as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`]; never `WouldBlock`.
    pub fn wait(&self) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(Wait::FOREVER, NO_ACTION)
    }

    /// Passes if this is the last party that was missing; otherwise it does not count as having come.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`].
    pub fn try_wait(&self) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(Wait::Try, NO_ACTION)
    }

    /// Waits until all parties have come, at most `timeout`. Should they not, the barrier is broken for all.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`]; never `WouldBlock`.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(within(timeout), NO_ACTION)
    }

    /// Waits until all parties have come, until `deadline` at most. Should they not, the barrier is broken for all.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`]; never `WouldBlock`.
    pub fn wait_deadline(&self, deadline: Instant) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(before(deadline), NO_ACTION)
    }

    /// As [`wait`](Self::wait), and calls `action` before anybody goes on, if this is the party that comes last.
    ///
    /// What the action does is visible to all who pass. Its panic, or its process' death, breaks the barrier. All parties
    /// should bring an action, since any of them may be the last.
    ///
    /// # Errors
    ///
    /// See [`BarrierError`]; never `WouldBlock`. `Broken`, also if the action has run, if the barrier was broken meanwhile.
    ///
    /// ```
    /// let barrier = crossproc_primitives::Barrier::new(1)?;
    /// let mut rounds = 0;
    /// barrier.wait_then(|| rounds += 1)?;
    /// assert_eq!(rounds, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_then(&self, action: impl FnOnce()) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(Wait::FOREVER, Some(action))
    }

    /// As [`wait_then`](Self::wait_then) and [`wait_timeout`](Self::wait_timeout). The time of the action counts for
    /// those who wait for it, and not for the one that runs it.
    ///
    /// # Errors
    ///
    /// As [`wait_then`](Self::wait_then).
    pub fn wait_then_timeout(
        &self,
        timeout: Duration,
        action: impl FnOnce(),
    ) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(within(timeout), Some(action))
    }

    /// As [`wait_then_timeout`](Self::wait_then_timeout), until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`wait_then`](Self::wait_then).
    pub fn wait_then_deadline(
        &self,
        deadline: Instant,
        action: impl FnOnce(),
    ) -> Result<BarrierTurn, BarrierError> {
        self.wait_until(before(deadline), Some(action))
    }

    /// Breaks the barrier: all who wait and all who come are told, until it is reset.
    ///
    /// # Errors
    ///
    /// [`BarrierError::NotAttached`].
    pub fn abort(&self) -> Result<(), BarrierError> {
        self.seat.with(self.live()?).abort(BrokenBy::Abort);
        Ok(())
    }

    /// Makes a broken barrier as good as new. Those who wait at one that is not broken get [`BrokenBy::Reset`].
    ///
    /// Returns how many dead parties (processes with a handle) were struck off; some that had the same slot of the
    /// segment one after the other count as one. A party that dies from now on breaks the barrier again. So first reset,
    /// then look who is gone and start others in their place: nobody is missed.
    ///
    /// # Errors
    ///
    /// [`BarrierError::NotAttached`].
    pub fn reset(&self) -> Result<usize, BarrierError> {
        Ok(self.seat.with(self.live()?).reset())
    }

    /// How many parties have to come.
    #[must_use]
    pub fn parties(&self) -> usize {
        usize::from(self.seat.parties.get())
    }

    /// How many waited a moment ago.
    #[must_use]
    pub fn waiting(&self) -> usize {
        usize::from(self.handle().words.waiting())
    }

    /// True if the barrier was broken a moment ago.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.handle().words.broken().is_some()
    }

    /// Finds what can not be.
    ///
    /// # Errors
    ///
    /// If the words contradict each other, or the number of parties is another one than when this handle was made.
    pub fn audit(&self) -> Result<(), Violation> {
        if self.handle().words.is_damaged(self.seat.parties) {
            return Err(Violation::new(format!(
                "no barrier of {} parties looks so: {self:?}",
                self.parties()
            )));
        }
        Ok(())
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle().segment()
    }

    fn live(&self) -> Result<&Participants, BarrierError> {
        self.handle().live().ok_or(BarrierError::NotAttached)
    }

    fn wait_until(&self, wait: Wait, action: Option<impl FnOnce()>) -> Result<BarrierTurn, BarrierError> {
        let passed = self.seat.with(self.live()?).wait(wait, action)?;
        Ok(BarrierTurn { index: passed.index.into(), is_last: passed.is_last })
    }
}

const NO_ACTION: Option<fn()> = None;

fn checked(parties: usize) -> Result<NonZeroU16, Error> {
    u16::try_from(parties).ok().and_then(NonZeroU16::new).ok_or_else(|| {
        let sentence = format!("a barrier is for 1 to 65535 parties, not {parties}");
        Error::new(ErrorKind::InvalidLength, sentence)
    })
}

impl std::fmt::Debug for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("waiting", &self.waiting())
            .field("broken", &self.handle().words.broken())
            .finish_non_exhaustive()
    }
}

handle_serde!(Barrier);
