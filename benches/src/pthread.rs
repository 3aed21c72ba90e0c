#![allow(unsafe_code)]
//! libc's robust mutex for several processes, in shared words.

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
