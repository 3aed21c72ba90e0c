//! `Semaphore`, `BoundedSemaphore` and `BinarySemaphore`: permits that come back when the process that has them dies.
//!
//! ```text
//!  Semaphore, BoundedSemaphore   0  the semaphore's words
//!                               64  one cell for each participant slot of the segment
//!  BinarySemaphore               0  the semaphore's words
//! ```
//!
//! The protocol is in `crossproc-sync`, semaphore.rs.

use std::time::{Duration, Instant};

use crossproc_atomic::Owner;
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Participants, PlacedSlice, Segment};
use crossproc_sync::{AcquireFailure, BinaryWords, PermitCell, SemaphoreWords, WaitFailure};

use crate::audit::Violation;
use crate::handle::{Fresh, Handle, SLOTS_ALONE, handle_serde, spec, spec_with_cells};
use crate::lock::{LockError, Wait, before, within};

const CELLS: u64 = 64;
const MAX: u32 = SemaphoreWords::MAX;

/// Why a semaphore was not acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SemaphoreError {
    /// No permit is free (`try_` forms).
    WouldBlock,
    /// No permit was free until the deadline.
    TimedOut,
    /// No permit is free, this process holds none, and all other processes that were attached to the segment are gone:
    /// nobody is left to release one. (Other threads of this process do not count.)
    PeerDied,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl std::fmt::Display for SemaphoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "no permit of the semaphore is free",
            Self::TimedOut => "no permit of the semaphore was free until the deadline",
            Self::PeerDied => {
                "no permit of the semaphore is free, and nobody is left to release one: all other processes that were \
                 attached to the segment are gone"
            }
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        })
    }
}

impl std::error::Error for SemaphoreError {}

impl From<AcquireFailure> for SemaphoreError {
    fn from(failure: AcquireFailure) -> Self {
        match failure {
            AcquireFailure::WouldBlock => Self::WouldBlock,
            AcquireFailure::TimedOut => Self::TimedOut,
            AcquireFailure::PeerDied => Self::PeerDied,
        }
    }
}

impl From<WaitFailure> for SemaphoreError {
    fn from(failure: WaitFailure) -> Self {
        AcquireFailure::from(failure).into()
    }
}

/// Why a semaphore was not released. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseError {
    /// More permits would be free than may be: it was released more often than it was acquired.
    OverRelease,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl std::fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OverRelease => {
                "the semaphore was released more often than it was acquired: as many permits are free as may be"
            }
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        })
    }
}

impl std::error::Error for ReleaseError {}

/// What both counting semaphores are.
#[derive(Clone)]
struct Counting {
    handle: Handle<SemaphoreWords>,
    cells: PlacedSlice<PermitCell>,
}

impl Counting {
    /// `limit`: what may be free; `None`: as many as there are at first.
    fn anonymous(kind: ObjectKind, permits: u32, limit: Option<u32>) -> Result<Self, Error> {
        check(permits)?;
        let spec = spec_with_cells::<PermitCell>(kind, CELLS, SLOTS_ALONE);
        Self::of(Handle::anonymous(&spec, |fresh| Self::first(fresh, permits, limit))?)
    }

    fn named(
        segment: &Segment,
        name: &str,
        kind: ObjectKind,
        permits: u32,
        limit: Option<u32>,
    ) -> Result<Self, Error> {
        check(permits)?;
        let spec = spec_with_cells::<PermitCell>(kind, CELLS, segment.participant_slots());
        Self::of(Handle::named(segment, name, &spec, |fresh| Self::first(fresh, permits, limit))?)
    }

    fn attach(segment: Segment, index: u32, kind: ObjectKind) -> Result<Self, Error> {
        let spec = spec_with_cells::<PermitCell>(kind, CELLS, segment.participant_slots());
        Self::of(Handle::attach(segment, index, &spec)?)
    }

    fn first(fresh: &Fresh<'_>, permits: u32, limit: Option<u32>) {
        fresh.place::<SemaphoreWords>(0).init(permits, limit.unwrap_or(permits));
    }

    fn of(handle: Handle<SemaphoreWords>) -> Result<Self, Error> {
        let cells = handle.cells(CELLS)?;
        Ok(Self { handle, cells })
    }

    #[inline]
    fn live(&self) -> Option<&Participants> {
        self.handle.live()
    }

    #[inline]
    fn acquire(&self, wait: Wait) -> Result<Permit<'_>, SemaphoreError> {
        let Some(live) = self.live() else { return Err(SemaphoreError::NotAttached) };
        self.handle.words.acquire(&self.cells, live, wait)?;
        Ok(Permit { semaphore: self })
    }

    #[inline]
    fn release(&self, n: u32) -> Result<(), ReleaseError> {
        let Some(live) = self.live() else { return Err(ReleaseError::NotAttached) };
        self.handle.words.release(&self.cells, live, n).map_err(|_| ReleaseError::OverRelease)
    }

    fn available(&self) -> u32 {
        let words = &self.handle.words;
        self.live().map_or_else(|| words.count(), |live| words.available(&self.cells, live))
    }

    fn held(&self) -> u32 {
        self.live().map_or(0, |live| self.handle.words.held(&self.cells, live))
    }

    fn debug(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = &self.handle.words;
        f.debug_struct(name)
            .field("available", &words.count())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

fn check(permits: u32) -> Result<(), Error> {
    if permits <= MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidLength,
        format!("a semaphore has at most {MAX} permits (2^20 - 1); {permits} were asked for"),
    ))
}

/// A permit of a [`Semaphore`] or [`BoundedSemaphore`]; dropping it gives it back.
///
/// It is counted to the process, not to the thread: it may be dropped in another thread than the one that acquired it, and if
/// the process dies, however it dies, the permit comes back. One that is leaked (`std::mem::forget`) is kept, as by
/// [`keep`](Self::keep). In a forked child the copy of a permit does nothing.
#[must_use = "dropping the permit gives it back"]
pub struct Permit<'a> {
    semaphore: &'a Counting,
}

impl Permit<'_> {
    /// Keeps the permit without a guard, as Python's `acquire` does. It comes back by `release()`, or when this process dies or
    /// lets go of its last handle to the segment.
    ///
    /// ```
    /// let semaphore = crossproc_primitives::Semaphore::new(2)?;
    /// semaphore.acquire()?.keep();
    /// assert_eq!((semaphore.available(), semaphore.held()), (1, 1));
    /// semaphore.release()?;
    /// assert_eq!((semaphore.available(), semaphore.held()), (2, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Uses the permit up: it does not come back, neither by this nor by the death of the process. So a consumer takes what a
    /// producer announces by `release()`.
    ///
    /// ```
    /// let filled = crossproc_primitives::Semaphore::new(0)?;
    /// filled.release()?; // a producer, in any process
    /// filled.acquire()?.consume(); // a consumer
    /// assert_eq!((filled.available(), filled.held()), (0, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn consume(self) {
        let semaphore = self.semaphore;
        std::mem::forget(self);
        if let Some(live) = semaphore.live() {
            semaphore.handle.words.consume(&semaphore.cells, live);
        }
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(live) = self.semaphore.live() {
            self.semaphore.handle.words.give_back(&self.semaphore.cells, live);
        }
    }
}

impl std::fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.semaphore.debug("Permit", f)
    }
}

/// A counting semaphore between processes: Python's `Semaphore`, whose permits come back when the process that holds them
/// dies.
///
/// [`acquire`](Self::acquire) takes a permit or waits for one; the [`Permit`] gives it back when it is dropped. Two other uses,
/// without that guard:
/// [`Permit::keep`] and [`release`](Self::release) are Python's `acquire` and `release`; [`Permit::consume`] is for a
/// semaphore that counts things, which one process adds by `release()` and another takes for good.
///
/// A permit is counted to the process that acquired it until it gives it back, and to nobody if it was released by somebody
/// who held none, as to signal something. If a process dies (or lets go of its last handle to the segment), the permits that
/// it holds are free again, at once for whoever waits, and nobody is told: use a [`Lock`](crate::Lock) or a
/// [`Mutex`](crate::Mutex) around data that a death may leave half-changed.
///
/// Waiting ends with [`SemaphoreError::PeerDied`] when no permit is free, this process holds none, and all other processes that
/// were attached to the segment, at least one since this process came, are gone. A semaphore that only the threads of one
/// process release should live in a segment that only this process attaches to.
///
/// At most 1 048 575 (2^20 - 1) permits. Uncontended, an acquire costs two atomic read-modify-writes and no system call, a
/// release as much. It takes no lock: a process that is stopped or killed anywhere in it keeps nobody else from acquiring and
/// releasing (if it is stopped before it has woken a sleeper, that one sleeps on for a second at the most).
/// It is unfair: who comes by may be faster than one that was woken.
///
/// ```
/// use crossproc_primitives::{Semaphore, SemaphoreError};
///
/// let seats = Semaphore::new(2)?;
/// let (one, _two) = (seats.acquire()?, seats.acquire()?);
/// assert_eq!(seats.try_acquire().err(), Some(SemaphoreError::WouldBlock));
/// drop(one);
/// assert_eq!(seats.available(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A permit does not outlive its semaphore, and is used once:
///
/// ```compile_fail
/// let permit = crossproc_primitives::Semaphore::new(1).unwrap().acquire().unwrap();
/// drop(permit);
/// ```
///
/// ```compile_fail
/// let seats = crossproc_primitives::Semaphore::new(1).unwrap();
/// let permit = seats.acquire().unwrap();
/// permit.consume();
/// permit.keep();
/// ```
#[derive(Clone)]
pub struct Semaphore {
    counting: Counting,
}

/// A [`Semaphore`] that never has more free permits than at first: Python's `BoundedSemaphore`.
///
/// One [`release`](Self::release) too many is [`ReleaseError::OverRelease`] and changes nothing.
///
/// ```
/// use crossproc_primitives::{BoundedSemaphore, ReleaseError};
///
/// let connections = BoundedSemaphore::new(1)?;
/// connections.acquire()?.keep();
/// connections.release()?;
/// assert_eq!(connections.release(), Err(ReleaseError::OverRelease));
/// assert_eq!(connections.available(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct BoundedSemaphore {
    counting: Counting,
}

/// What both can do. (Constructors differ in the limit.)
macro_rules! counting {
    ($name:ident, $limit:expr) => {
        impl $name {
            const KIND: ObjectKind = ObjectKind::new(stringify!($name));

            /// A semaphore with so many permits, in an anonymous segment of its own.
            ///
            /// # Errors
            ///
            /// [`InvalidLength`](ErrorKind::InvalidLength) for more than 1 048 575 permits, or if the segment can not be made
            /// (out of memory or descriptors).
            pub fn new(permits: u32) -> Result<Self, Error> {
                Ok(Self { counting: Counting::anonymous(Self::KIND, permits, $limit)? })
            }

            pub(crate) fn named(segment: &Segment, name: &str, permits: u32) -> Result<Self, Error> {
                Ok(Self { counting: Counting::named(segment, name, Self::KIND, permits, $limit)? })
            }

            fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
                Ok(Self { counting: Counting::attach(segment, index, Self::KIND)? })
            }

            fn handle(&self) -> &Handle<SemaphoreWords> {
                &self.counting.handle
            }

            /// Acquires a permit, waiting as long as it takes.
            ///
            /// # Errors
            ///
            /// See [`SemaphoreError`]; never `WouldBlock` or `TimedOut`.
            #[inline]
            pub fn acquire(&self) -> Result<Permit<'_>, SemaphoreError> {
                self.counting.acquire(Wait::FOREVER)
            }

            /// Acquires a permit if one is free, or if somebody who died had one.
            ///
            /// # Errors
            ///
            /// [`SemaphoreError::WouldBlock`] or [`SemaphoreError::NotAttached`].
            #[inline]
            pub fn try_acquire(&self) -> Result<Permit<'_>, SemaphoreError> {
                self.counting.acquire(Wait::Try)
            }

            /// Acquires a permit, waiting at most `timeout`.
            ///
            /// # Errors
            ///
            /// See [`SemaphoreError`]; never `WouldBlock`.
            pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit<'_>, SemaphoreError> {
                self.counting.acquire(within(timeout))
            }

            /// Acquires a permit, waiting until `deadline` at most.
            ///
            /// # Errors
            ///
            /// See [`SemaphoreError`]; never `WouldBlock`.
            pub fn acquire_deadline(&self, deadline: Instant) -> Result<Permit<'_>, SemaphoreError> {
                self.counting.acquire(before(deadline))
            }

            /// Gives back one of the permits that this process holds; if it holds none, adds one.
            ///
            /// # Errors
            ///
            /// [`ReleaseError`]; nothing was changed.
            #[inline]
            pub fn release(&self) -> Result<(), ReleaseError> {
                self.counting.release(1)
            }

            /// Releases `n` permits, or none: those that this process holds, and beyond that new ones.
            ///
            /// # Errors
            ///
            /// [`ReleaseError`]; nothing was changed (unless other threads of this process over-release it at the same time:
            /// then each may have released a part).
            pub fn release_many(&self, n: u32) -> Result<(), ReleaseError> {
                self.counting.release(n)
            }

            /// How many permits were free a moment ago.
            ///
            /// Permits of the dead count; where the segment is attached for reading only, not before somebody has found them.
            #[must_use]
            pub fn available(&self) -> u32 {
                self.counting.available()
            }

            /// How many permits this process held a moment ago, in all its threads.
            #[must_use]
            pub fn held(&self) -> u32 {
                self.counting.held()
            }

            /// The segment in which it lives.
            #[must_use]
            pub fn segment(&self) -> &Segment {
                self.handle().segment()
            }

            /// Looks for words in shared memory that contradict each other. Changes nothing; exact while nobody uses it.
            ///
            /// # Errors
            ///
            /// What is wrong.
            pub fn audit(&self) -> Result<(), Violation> {
                self.handle().words.audit(&self.counting.cells).map_err(Violation::new)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.counting.debug(stringify!($name), f)
            }
        }

        handle_serde!($name);
    };
}

counting!(Semaphore, Some(MAX));
counting!(BoundedSemaphore, None);

impl BoundedSemaphore {
    /// How many permits may be free.
    #[must_use]
    pub fn bound(&self) -> u32 {
        self.handle().words.limit()
    }
}

/// A lock without an owner: taken by one, released by anybody. Python's `Lock`, as a drop-in.
///
/// [`Lock`](crate::Lock) is for what one thread takes and gives back: it tells the next holder of a death, notices when a
/// thread locks twice, and has a guard. This one is for handing a turn to another thread or process: who waits in
/// [`acquire`](Self::acquire) goes on when somebody, anybody, calls [`release`](Self::release).
///
/// If the process that took it dies (or lets go of its last handle to the segment), it is free again, and nobody is told.
/// Uncontended, acquire and release are one atomic read-modify-write each, without a system call.
///
/// ```
/// use crossproc_primitives::{BinarySemaphore, ReleaseError, SemaphoreError};
///
/// let turn = BinarySemaphore::new()?;
/// turn.acquire()?;
/// assert_eq!(turn.try_acquire(), Err(SemaphoreError::WouldBlock));
/// assert_eq!(turn.holder(), Some(std::process::id()));
/// std::thread::scope(|s| s.spawn(|| turn.release()).join().unwrap())?;
/// assert_eq!(turn.release(), Err(ReleaseError::OverRelease));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct BinarySemaphore {
    handle: Handle<BinaryWords>,
}

impl BinarySemaphore {
    const SPEC: ObjectSpec =
        spec::<()>(ObjectKind::new("BinarySemaphore"), 1, size_of::<BinaryWords>() as u64);

    /// A semaphore in an anonymous segment of its own, free.
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

    fn handle(&self) -> &Handle<BinaryWords> {
        &self.handle
    }

    /// Takes the semaphore, waiting as long as it takes. Who has it and takes it again waits for somebody else's release.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::NotAttached`].
    #[inline]
    pub fn acquire(&self) -> Result<(), SemaphoreError> {
        self.wait(Wait::FOREVER)
    }

    /// Takes the semaphore if it is free, or if who took it is dead.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::WouldBlock`] or [`SemaphoreError::NotAttached`].
    #[inline]
    pub fn try_acquire(&self) -> Result<(), SemaphoreError> {
        self.wait(Wait::Try)
    }

    /// Takes the semaphore, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::TimedOut`] or [`SemaphoreError::NotAttached`].
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<(), SemaphoreError> {
        self.wait(within(timeout))
    }

    /// Takes the semaphore, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::TimedOut`] or [`SemaphoreError::NotAttached`].
    pub fn acquire_deadline(&self, deadline: Instant) -> Result<(), SemaphoreError> {
        self.wait(before(deadline))
    }

    #[inline]
    fn wait(&self, wait: Wait) -> Result<(), SemaphoreError> {
        let Some(live) = self.handle.live() else { return Err(SemaphoreError::NotAttached) };
        Ok(self.handle.words.acquire(live, wait)?)
    }

    /// Frees the semaphore, whoever took it.
    ///
    /// # Errors
    ///
    /// [`ReleaseError::OverRelease`] if it is free.
    #[inline]
    pub fn release(&self) -> Result<(), ReleaseError> {
        let Some(live) = self.handle.live() else { return Err(ReleaseError::NotAttached) };
        if self.handle.words.release(live) { Ok(()) } else { Err(ReleaseError::OverRelease) }
    }

    /// True if it was taken a moment ago, by a process that lives.
    ///
    /// Where the segment is attached for reading only, also if that one is dead and nobody has taken it since.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.handle.words.is_taken(self.handle.live())
    }

    /// The id of the process that took it a moment ago and lives; `None` if it is free, or if this process is not attached.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        let live = self.handle.live()?;
        let holder: Owner = self.handle.words.holder(live)?;
        live.list()
            .into_iter()
            .find(|participant| participant.owner == holder)
            .map(|participant| participant.pid)
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    /// Looks for words in shared memory that can not be. Changes nothing.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.handle.words.audit(self.segment().participant_slots()).map_err(Violation::new)
    }
}

impl std::fmt::Debug for BinarySemaphore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BinarySemaphore").field("holder", &self.holder()).finish_non_exhaustive()
    }
}

handle_serde!(BinarySemaphore);
