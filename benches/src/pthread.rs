#![allow(unsafe_code)]
//! libc's robust mutex, its readers-writer lock and its semaphore for several processes, in shared words.

use std::io;
use std::marker::PhantomData;

use crossproc_tests::Board;
use serde::{Deserialize, Serialize};

/// A `pthread_mutex_t` with `PTHREAD_PROCESS_SHARED` and `PTHREAD_MUTEX_ROBUST`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RobustMutex(Board);

const WORDS: usize = 16;
const _: () = assert!(size_of::<libc::pthread_mutex_t>() <= 8 * WORDS);

/// Holds the mutex.
#[must_use = "dropping the guard releases the mutex"]
#[derive(Debug)]
pub struct Guard<'a> {
    mutex: &'a RobustMutex,
    /// Only the thread that locked may unlock.
    not_send: PhantomData<*const ()>,
}

fn check(result: i32) {
    assert_eq!(result, 0, "{}", io::Error::from_raw_os_error(result));
}

impl RobustMutex {
    /// A free mutex.
    ///
    /// # Panics
    ///
    /// If libc has no such thing.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it allocates a segment")]
    pub fn new() -> Self {
        let mutex = Self(Board::new(WORDS));
        // SAFETY: the attributes are plain data that `init` fills in; the words are zero, large enough, aligned to 64, and
        // nobody else has them yet. They stay mapped at one address in each process as long as a handle lives.
        unsafe {
            let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
            check(libc::pthread_mutexattr_init(&raw mut attributes));
            check(libc::pthread_mutexattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED));
            check(libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST));
            check(libc::pthread_mutex_init(mutex.raw(), &raw const attributes));
            check(libc::pthread_mutexattr_destroy(&raw mut attributes));
        }
        mutex
    }

    fn raw(&self) -> *mut libc::pthread_mutex_t {
        self.0[0].as_ptr().cast()
    }

    /// Waits for the mutex.
    ///
    /// # Panics
    ///
    /// If a holder died, which no benchmark does.
    #[inline]
    pub fn lock(&self) -> Guard<'_> {
        // SAFETY: `new` initialised it.
        check(unsafe { libc::pthread_mutex_lock(self.raw()) });
        Guard { mutex: self, not_send: PhantomData }
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `lock` locked it, in this thread, since a guard is not `Send`.
        check(unsafe { libc::pthread_mutex_unlock(self.mutex.raw()) });
    }
}

/// A `sem_t` that processes share. Its permits do not come back when a process dies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PosixSemaphore(Board);

const _: () = assert!(size_of::<libc::sem_t>() <= 8 * WORDS);

impl PosixSemaphore {
    /// A semaphore with so many permits.
    ///
    /// # Panics
    ///
    /// If libc has no such thing.
    #[must_use]
    pub fn new(permits: u32) -> Self {
        let semaphore = Self(Board::new(WORDS));
        // SAFETY: as for the mutex: zero words, large enough, aligned, nobody else's yet, at one address while a handle lives.
        let result = unsafe { libc::sem_init(semaphore.raw(), 1, permits) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        semaphore
    }

    fn raw(&self) -> *mut libc::sem_t {
        self.0[0].as_ptr().cast()
    }

    /// Takes a permit.
    ///
    /// # Panics
    ///
    /// If a signal interrupts it, which no benchmark sends.
    #[inline]
    pub fn wait(&self) {
        // SAFETY: `new` initialised it.
        let result = unsafe { libc::sem_wait(self.raw()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Gives a permit back.
    ///
    /// # Panics
    ///
    /// If there are too many.
    #[inline]
    pub fn post(&self) {
        // SAFETY: `new` initialised it.
        let result = unsafe { libc::sem_post(self.raw()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// A `pthread_rwlock_t` with `PTHREAD_PROCESS_SHARED`. When a process dies with it, it stays locked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadersWriterLock(Board);

const _: () = assert!(size_of::<libc::pthread_rwlock_t>() <= 8 * WORDS);

impl ReadersWriterLock {
    /// A free lock.
    ///
    /// # Panics
    ///
    /// If libc has no such thing.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it allocates a segment")]
    pub fn new() -> Self {
        let lock = Self(Board::new(WORDS));
        // SAFETY: as for the mutex: zero words, large enough, aligned, nobody else's yet, at one address while a handle lives.
        unsafe {
            let mut attributes: libc::pthread_rwlockattr_t = std::mem::zeroed();
            check(libc::pthread_rwlockattr_init(&raw mut attributes));
            check(libc::pthread_rwlockattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED));
            check(libc::pthread_rwlock_init(lock.raw(), &raw const attributes));
            check(libc::pthread_rwlockattr_destroy(&raw mut attributes));
        }
        lock
    }

    fn raw(&self) -> *mut libc::pthread_rwlock_t {
        self.0[0].as_ptr().cast()
    }

    /// Calls `f` with the lock held for reading.
    ///
    /// # Panics
    ///
    /// If libc says that something is wrong.
    #[inline]
    pub fn read<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `new` initialised it.
        check(unsafe { libc::pthread_rwlock_rdlock(self.raw()) });
        let result = f();
        // SAFETY: this thread has just locked it.
        check(unsafe { libc::pthread_rwlock_unlock(self.raw()) });
        result
    }

    /// Calls `f` with the lock held for writing.
    ///
    /// # Panics
    ///
    /// As [`read`](Self::read).
    #[inline]
    pub fn write<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: `new` initialised it.
        check(unsafe { libc::pthread_rwlock_wrlock(self.raw()) });
        let result = f();
        // SAFETY: this thread has just locked it.
        check(unsafe { libc::pthread_rwlock_unlock(self.raw()) });
        result
    }
}
