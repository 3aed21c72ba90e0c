//! The one error of reading and writing values and elements, and of locking with `?`.

use crossproc_ring::Unsteady;
use crossproc_segment::plain::InvalidBits;

use crate::lock::LockError;

/// Why a value or an element was not read or written, or a lock not taken. Nothing was changed, and nothing is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessError {
    /// There is no such element.
    OutOfBounds {
        /// The first index asked for that is not there.
        index: usize,
        /// How many elements there are.
        len: usize,
    },
    /// A process died while it held the lock. Lock explicitly, look at the data, and call `mark_consistent`.
    OwnerDied,
    /// A holder of the lock panicked. Lock explicitly, look at the data, and call `mark_consistent`.
    Poisoned,
    /// Somebody else holds the lock (`try_` forms).
    WouldBlock,
    /// Somebody else held the lock until the deadline.
    TimedOut,
    /// The calling thread holds the lock itself: use the guard.
    WouldDeadlock,
    /// All other processes that were attached to the segment are gone: nobody is left to change the value.
    PeerDied,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
    /// The bits in shared memory are no value of the type.
    Invalid(InvalidBits),
    /// The value changed faster than it could be read, or its words are corrupt.
    Unsteady,
}

impl std::fmt::Display for AccessError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfBounds { index, len } => write!(f, "there is no element {index}: the array has {len}"),
            Self::OwnerDied => f.write_str(LockError::<()>::OwnerDied(()).text()),
            Self::Poisoned => f.write_str(LockError::<()>::Poisoned(()).text()),
            Self::WouldBlock => f.write_str(LockError::<()>::WouldBlock.text()),
            Self::TimedOut => f.write_str(LockError::<()>::TimedOut.text()),
            Self::WouldDeadlock => f.write_str(LockError::<()>::WouldDeadlock.text()),
            Self::PeerDied => f.write_str(
                "all other processes that were attached to the segment are gone: nobody is left to change the value",
            ),
            Self::NotAttached => f.write_str(LockError::<()>::NotAttached.text()),
            Self::Invalid(invalid) => invalid.fmt(f),
            Self::Unsteady => Unsteady.fmt(f),
        }
    }
}

impl std::error::Error for AccessError {}

impl From<InvalidBits> for AccessError {
    fn from(invalid: InvalidBits) -> Self {
        Self::Invalid(invalid)
    }
}

impl From<Unsteady> for AccessError {
    fn from(_: Unsteady) -> Self {
        Self::Unsteady
    }
}

impl<G> From<LockError<G>> for AccessError {
    fn from(error: LockError<G>) -> Self {
        match error {
            LockError::OwnerDied(_) => Self::OwnerDied,
            LockError::Poisoned(_) => Self::Poisoned,
            LockError::WouldDeadlock => Self::WouldDeadlock,
            LockError::WouldBlock => Self::WouldBlock,
            LockError::TimedOut => Self::TimedOut,
            LockError::NotAttached => Self::NotAttached,
        }
    }
}
