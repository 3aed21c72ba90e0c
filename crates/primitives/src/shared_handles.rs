//! Handles of one queue for several threads of a process: each is used by one thread at a time.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// As many handles as threads use the queue at one time, made when they are first needed.
pub(crate) struct SharedHandles<Q> {
    /// Locked for as long as a thread uses the handle, if need be while it waits. Nobody waits for these locks.
    kept: Box<[Place<Q>]>,
    /// For new ones; locked for a moment.
    origin: Mutex<Q>,
}

/// On cache lines of its own.
#[repr(align(128))]
struct Place<Q>(Mutex<Option<Q>>);

/// So many handles are kept at the most.
const KEPT_MAX: usize = 64;

impl<Q: Clone> SharedHandles<Q> {
    pub(crate) fn new(origin: Q, lanes: usize) -> Self {
        let kept = (0..lanes.min(KEPT_MAX)).map(|_| Place(Mutex::new(None))).collect();
        Self { kept, origin: Mutex::new(origin) }
    }

    /// One more.
    pub(crate) fn another(&self) -> Q {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `f` with a handle that no other thread uses meanwhile.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&Q) -> R) -> R {
        let first = thread_number();
        let places =
            || (0..self.kept.len()).filter_map(|at| self.kept[(first + at) % self.kept.len()].try_lock());
        // A new one takes a lane, so first those that are there.
        if let Some(place) = places().find(|place| place.is_some()) {
            if let Some(handle) = &*place {
                return f(handle);
            }
        }
        match places().next() {
            Some(mut place) => f(place.get_or_insert_with(|| self.another())),
            None => f(&self.another()),
        }
    }
}

impl<Q> Place<Q> {
    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Q>>> {
        match self.0.try_lock() {
            Ok(place) => Some(place),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A small number that differs between threads that run at the same time, mostly.
fn thread_number() -> usize {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    thread_local!(static NUMBER: usize = BuildHasherDefault::<DefaultHasher>::default().hash_one(std::thread::current().id()) as usize);
    NUMBER.with(|number| *number)
}
