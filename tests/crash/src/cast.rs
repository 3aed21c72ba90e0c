//! The objects that several modes use, and what they have in common.
//!
//! All handles are leaked: they belong to processes that end without dropping anything.

use std::time::Duration;

use crossproc_atomic::AtomicU32;
use crossproc_primitives::{
    Array, Barrier, BarrierError, BinarySemaphore, BrokenBy, Condvar, CondvarError, Event, Lock, LockError,
    Mutex, Objects, Once, OnceError, RLock, RwLock, Semaphore, SemaphoreError, Value, WaitError,
};
use crossproc_segment::plain::Plain;
use crossproc_segment::{ObjectKind, ObjectSpec, PlacedSlice, Segment, Span};

use crate::arena::{Play, code, of_access, of_lock};

/// How long a peer waits in a timed form, when somebody else is frozen.
pub(crate) const PATIENCE: Duration = Duration::from_millis(10);

/// A value of several words, all equal: a torn one is seen.
pub(crate) type Wide = [u64; 4];

/// A wide value.
pub(crate) const fn wide(n: u64) -> Wide {
    [n; 4]
}

pub(crate) fn lock(segment: &Segment) -> &'static Lock {
    leak(segment.lock("lock"))
}

pub(crate) fn rlock(segment: &Segment) -> &'static RLock {
    leak(segment.rlock("rlock"))
}

pub(crate) fn mutex(segment: &Segment) -> &'static Mutex<Wide> {
    leak(segment.mutex("mutex", wide(0)))
}

/// A value of one word.
pub(crate) fn word(segment: &Segment) -> &'static Value<u64> {
    leak(segment.value("word", 0))
}

/// A value of several words.
pub(crate) fn value(segment: &Segment) -> &'static Value<Wide> {
    leak(segment.value("value", wide(0)))
}

pub(crate) fn array(segment: &Segment) -> &'static Array<u64> {
    leak(segment.array("array", &[0; 4]))
}

/// A semaphore of one permit.
pub(crate) fn semaphore(segment: &Segment) -> &'static Semaphore {
    leak(segment.semaphore("semaphore", 1))
}

/// A semaphore of two permits.
pub(crate) fn pair(segment: &Segment) -> &'static Semaphore {
    leak(segment.semaphore("pair", 2))
}

/// A semaphore without permits, on which things are announced.
pub(crate) fn signals(segment: &Segment) -> &'static Semaphore {
    leak(segment.semaphore("signals", 0))
}

pub(crate) fn binary(segment: &Segment) -> &'static BinarySemaphore {
    leak(segment.binary_semaphore("binary"))
}

pub(crate) fn event(segment: &Segment) -> &'static Event {
    leak(segment.event("event"))
}

pub(crate) fn condvar(segment: &Segment) -> &'static Condvar {
    leak(segment.condvar("condvar"))
}

/// A barrier for two.
pub(crate) fn barrier(segment: &Segment) -> &'static Barrier {
    leak(segment.barrier("barrier", 2))
}

pub(crate) fn rwlock(segment: &Segment) -> &'static RwLock<Wide> {
    leak(segment.rwlock("rwlock", wide(0)))
}

pub(crate) fn once(segment: &Segment) -> &'static Once {
    leak(segment.once("once"))
}

pub(crate) fn of_semaphore<T>(result: &Result<T, SemaphoreError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(SemaphoreError::TimedOut) => code::TIMED_OUT,
        Err(SemaphoreError::WouldBlock) => code::WOULD_BLOCK,
        Err(_) => code::ERROR,
    }
}

pub(crate) fn of_event<T>(result: &Result<T, WaitError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(WaitError::TimedOut) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

pub(crate) fn of_barrier<T>(result: &Result<T, BarrierError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(BarrierError::Broken(BrokenBy::PartyDied)) => code::OWNER_DIED,
        Err(BarrierError::Broken(_)) => code::TIMED_OUT,
        Err(BarrierError::WouldBlock) => code::WOULD_BLOCK,
        Err(_) => code::ERROR,
    }
}

pub(crate) fn of_once<T>(result: &Result<T, OnceError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(OnceError::TimedOut) => code::TIMED_OUT,
        Err(OnceError::WouldBlock) => code::WOULD_BLOCK,
        Err(_) => code::ERROR,
    }
}

pub(crate) fn of_condvar<G>(result: &Result<G, CondvarError<G>>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(CondvarError::TimedOut(_)) => code::TIMED_OUT,
        Err(CondvarError::OwnerDied(_) | CondvarError::Poisoned(_)) => code::OWNER_DIED,
        Err(_) => code::ERROR,
    }
}

fn leak<T>(object: Result<T, crossproc_segment::Error>) -> &'static T {
    Box::leak(Box::new(object.expect("an object in a segment with room")))
}

/// A wait that is to end at its deadline, or a try that is to be refused, has done so.
pub(crate) fn in_vain(told: u64) -> u64 {
    if matches!(told, code::TIMED_OUT | code::WOULD_BLOCK) { code::OK } else { told }
}

/// The words of a planted bug.
pub(crate) fn flawed(segment: &Segment) -> &'static [AtomicU32] {
    Box::leak(Box::new(flawed_words(segment)))
}

pub(crate) fn flawed_words(segment: &Segment) -> PlacedSlice<AtomicU32> {
    const COUNT: u64 = 32;
    let spec = ObjectSpec {
        kind: ObjectKind::new("Flawed"),
        layout: u32::LAYOUT,
        count: COUNT,
        bytes: 4 * COUNT,
        align: 64,
        windows: 0,
    };
    let object = segment.open_or_create_object("flawed", &spec, |_, _| ()).expect("room for planted bugs");
    let span = Span { offset: object.offset, count: COUNT };
    segment.mapping().place_slice(span).expect("words in their place")
}

/// A play that is run once before, so that nothing in it is done for the first time.
pub(crate) fn rehearsed(mut play: impl FnMut() -> u64 + 'static) -> Play {
    play();
    Box::new(play)
}

/// Roles: see `stage.rs`. Those that are stepped are rehearsed.
pub(crate) mod roles {
    use super::*;

    pub(crate) fn lock_unlock(segment: &Segment) -> Play {
        let lock = lock(segment);
        rehearsed(move || of_lock(lock.lock()))
    }

    /// As the inner one of two locks: the kernel is told of the outer one only.
    pub(crate) fn inner_lock_unlock(segment: &Segment) -> Play {
        std::mem::forget(rlock(segment).lock());
        lock_unlock(segment)
    }

    pub(crate) fn lock_timed(segment: &Segment) -> Play {
        let lock = lock(segment);
        rehearsed(move || of_lock(lock.lock_timeout(PATIENCE)))
    }

    pub(crate) fn lock_try(segment: &Segment) -> Play {
        let lock = lock(segment);
        rehearsed(move || of_lock(lock.try_lock()))
    }

    /// The form without a guard.
    pub(crate) fn acquire_release(segment: &Segment) -> Play {
        let lock = lock(segment);
        rehearsed(move || match lock.acquire_timeout(PATIENCE) {
            Ok(()) | Err(LockError::OwnerDied(()) | LockError::Poisoned(())) => {
                if lock.release().is_ok() {
                    code::OK
                } else {
                    code::ERROR
                }
            }
            Err(LockError::TimedOut) => code::TIMED_OUT,
            Err(_) => code::ERROR,
        })
    }

    pub(crate) fn rlock_twice(segment: &Segment) -> Play {
        let lock = rlock(segment);
        rehearsed(move || {
            let _outer = lock.lock_timeout(PATIENCE);
            of_lock(lock.lock_timeout(PATIENCE))
        })
    }

    pub(crate) fn mutex_change(segment: &Segment) -> Play {
        let mutex = mutex(segment);
        rehearsed(move || match mutex.lock_timeout(PATIENCE) {
            Ok(mut data) => {
                *data = wide(data[0].wrapping_add(1));
                code::OK
            }
            other => of_lock(other),
        })
    }

    pub(crate) fn word_add(segment: &Segment) -> Play {
        let word = word(segment);
        rehearsed(move || {
            word.fetch_add(1);
            code::OK
        })
    }

    pub(crate) fn word_set(segment: &Segment) -> Play {
        let word = word(segment);
        rehearsed(move || of_access(&word.set(1)))
    }

    pub(crate) fn word_update(segment: &Segment) -> Play {
        let word = word(segment);
        rehearsed(move || of_access(&word.update(|n| n.wrapping_add(1))))
    }

    pub(crate) fn word_get(segment: &Segment) -> Play {
        let word = word(segment);
        rehearsed(move || of_access(&word.get()))
    }

    pub(crate) fn wide_set(segment: &Segment) -> Play {
        let value = value(segment);
        rehearsed(move || of_access(&value.set(wide(1))))
    }

    pub(crate) fn wide_get(segment: &Segment) -> Play {
        let value = value(segment);
        rehearsed(move || match value.get() {
            Ok([a, b, c, d]) if [b, c, d] != [a; 3] => code::WRONG,
            got => of_access(&got),
        })
    }

    /// The timed lock of a wide value, and a change under it.
    pub(crate) fn wide_lock_update(segment: &Segment) -> Play {
        let value = value(segment);
        rehearsed(move || match value.lock_timeout(PATIENCE) {
            Ok(mut guard) => of_access(&guard.update(|v| wide(v[0].wrapping_add(1)))),
            other => of_lock(other),
        })
    }

    /// Waits in vain.
    pub(crate) fn wide_wait(segment: &Segment) -> Play {
        let value = value(segment);
        rehearsed(move || match value.wait_while_timeout(Duration::from_millis(2), |v| *v != wide(9)) {
            Ok(_) => code::OK,
            Err(_) => code::ERROR,
        })
    }

    pub(crate) fn array_set(segment: &Segment) -> Play {
        let array = array(segment);
        rehearsed(move || of_access(&array.set(1, 7)))
    }

    pub(crate) fn array_get(segment: &Segment) -> Play {
        let array = array(segment);
        rehearsed(move || of_access(&array.get(1)))
    }

    /// The timed lock of an array, and a change under it.
    pub(crate) fn array_lock_change(segment: &Segment) -> Play {
        let array = array(segment);
        rehearsed(move || match array.lock_timeout(PATIENCE) {
            Ok(mut guard) => {
                guard[2] = guard[1];
                code::OK
            }
            other => of_lock(other),
        })
    }

    pub(crate) fn semaphore_pair(segment: &Segment) -> Play {
        let semaphore = semaphore(segment);
        rehearsed(move || of_semaphore(&semaphore.acquire_timeout(PATIENCE)))
    }

    pub(crate) fn semaphore_try(segment: &Segment) -> Play {
        let semaphore = semaphore(segment);
        rehearsed(move || of_semaphore(&semaphore.try_acquire()))
    }

    /// One of two permits.
    pub(crate) fn one_of_two(segment: &Segment) -> Play {
        let pair = pair(segment);
        rehearsed(move || of_semaphore(&pair.try_acquire()))
    }

    /// A permit that nobody gives back, after one that nobody had.
    pub(crate) fn signal_consume(segment: &Segment) -> Play {
        let signals = signals(segment);
        rehearsed(move || match (signals.release(), signals.acquire_timeout(PATIENCE)) {
            (Ok(()), Ok(permit)) => {
                permit.consume();
                code::OK
            }
            (Ok(()), other) => of_semaphore(&other),
            (Err(_), _) => code::ERROR,
        })
    }

    pub(crate) fn binary_pair(segment: &Segment) -> Play {
        let binary = binary(segment);
        rehearsed(move || match binary.acquire_timeout(PATIENCE) {
            Ok(()) => u64::from(binary.release().is_err()) * code::ERROR,
            other => of_semaphore(&other),
        })
    }

    pub(crate) fn event_set_clear(segment: &Segment) -> Play {
        let event = event(segment);
        rehearsed(move || of_event(&event.set()).max(of_event(&event.clear())))
    }

    pub(crate) fn event_set_wait(segment: &Segment) -> Play {
        let event = event(segment);
        rehearsed(move || of_event(&event.set()).max(of_event(&event.wait_timeout(PATIENCE))))
    }

    /// Waits in vain, most likely.
    pub(crate) fn event_wait(segment: &Segment) -> Play {
        let event = event(segment);
        rehearsed(move || in_vain(of_event(&event.wait_timeout(Duration::from_millis(2)))))
    }

    pub(crate) fn read(segment: &Segment) -> Play {
        let rwlock = rwlock(segment);
        rehearsed(move || match rwlock.read_timeout(PATIENCE) {
            Ok(data) if *data != wide(data[0]) => code::WRONG,
            other => of_lock(other),
        })
    }

    pub(crate) fn write(segment: &Segment) -> Play {
        let rwlock = rwlock(segment);
        rehearsed(move || match rwlock.write_timeout(PATIENCE) {
            Ok(mut data) => {
                *data = wide(data[0].wrapping_add(1));
                code::OK
            }
            other => of_lock(other),
        })
    }

    pub(crate) fn write_downgrade(segment: &Segment) -> Play {
        let rwlock = rwlock(segment);
        rehearsed(move || match rwlock.write_timeout(PATIENCE) {
            Ok(data) => {
                drop(data.downgrade());
                code::OK
            }
            other => of_lock(other),
        })
    }

    pub(crate) fn notify_all(segment: &Segment) -> Play {
        let (mutex, condvar) = (mutex(segment), condvar(segment));
        rehearsed(move || match mutex.lock_timeout(PATIENCE) {
            Ok(guard) => u64::from(condvar.notify_all(&guard).is_err()) * code::ERROR,
            other => of_lock(other),
        })
    }

    pub(crate) fn condvar_wait(segment: &Segment) -> Play {
        let (mutex, condvar) = (mutex(segment), condvar(segment));
        rehearsed(move || match mutex.lock_timeout(PATIENCE) {
            Ok(guard) => in_vain(of_condvar(&condvar.wait_timeout(guard, Duration::from_millis(2)))),
            other => of_lock(other),
        })
    }

    /// Comes to the barrier; if the other one does not, all is put back.
    pub(crate) fn barrier_turn(segment: &Segment) -> Play {
        let barrier = barrier(segment);
        rehearsed(move || {
            let told = of_barrier(&barrier.wait_timeout(Duration::from_millis(2)));
            let _ = barrier.reset();
            told
        })
    }

    /// Comes to the barrier, where the other one may be. Not rehearsed: that would let the other one through.
    pub(crate) fn barrier_wait(segment: &Segment) -> Play {
        let barrier = barrier(segment);
        Box::new(move || of_barrier(&barrier.wait_timeout(PATIENCE)))
    }

    /// Not rehearsed: there is no second time.
    pub(crate) fn once_call(segment: &Segment) -> Play {
        let once = once(segment);
        Box::new(move || of_once(&once.call_timeout(PATIENCE, |_| ())))
    }

    pub(crate) fn once_again(segment: &Segment) -> Play {
        let once = once(segment);
        rehearsed(move || of_once(&once.call_timeout(PATIENCE, |_| ())))
    }
}
