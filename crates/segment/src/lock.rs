//! Locks that a death releases: of the kernel for whatever has a descriptor, of proof for adopted memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Liveness, Ordering, Owner};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::participant::Participants;

/// An exclusive `flock` on an open file description of its own.
///
/// The kernel drops it when the last descriptor of that description is closed, however its holder ended. It
/// is unlocked explicitly, so that a child forked meanwhile, which has a descriptor too, does not prolong it.
#[derive(Debug)]
pub(crate) struct FileLock(OwnedFd);

impl FileLock {
    /// Locks, or gives up at `until`. `fd` must be freshly opened: locks of one open file description do not
    /// exclude.
    pub(crate) fn take(fd: OwnedFd, until: Instant, what: &str) -> Result<Self, Error> {
        poll_until(until, || Self::try_lock(&fd, what))?.ok_or_else(|| busy(what))?;
        Ok(Self(fd))
    }

    /// Locks if nobody else has it.
    pub(crate) fn try_take(fd: OwnedFd, what: &str) -> Result<Option<Self>, Error> {
        Ok(Self::try_lock(&fd, what)?.map(|()| Self(fd)))
    }

    fn try_lock(fd: &OwnedFd, what: &str) -> Result<Option<()>, Error> {
        match flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(())),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(errno) => Err(Error::os(format_args!("locking {what}"), errno)),
        }
    }
}

impl AsFd for FileLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Can not fail on a descriptor that was locked; closing it releases as well.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// A word that holds the identity of whoever has the lock. A dead holder is succeeded by a compare-and-swap.
///
/// For memory without a descriptor. Threads of one process exclude each other too: the identity is the
/// process's, and who finds it there waits.
pub(crate) struct ClaimLock<'a> {
    word: &'a AtomicU64,
    me: u64,
}

impl<'a> ClaimLock<'a> {
    pub(crate) fn take(
        word: &'a AtomicU64,
        who: &Participants,
        until: Instant,
        what: &str,
    ) -> Result<Self, Error> {
        let me = who.me().bits();
        let attempt = || {
            let seen = word.load(Ordering::Relaxed);
            let free = match Owner::from_bits(seen) {
                Some(holder) => who.is_dead(holder),
                None => true, // 0, or scribbled: nobody's
            };
            // Acquire pairs with the Release in `drop`: what the last holder wrote is seen.
            let taken = free && word.compare_exchange(seen, me, Ordering::Acquire, Ordering::Relaxed).is_ok();
            Ok(taken.then_some(()))
        };
        poll_until(until, attempt)?.ok_or_else(|| busy(what))?;
        Ok(Self { word, me })
    }
}

impl Drop for ClaimLock<'_> {
    fn drop(&mut self) {
        let _ = self.word.compare_exchange(self.me, 0, Ordering::Release, Ordering::Relaxed);
    }
}

/// The moment when a wait of this length is over.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(1 << 32);
    Instant::now() + timeout.min(FOR_EVER)
}

/// Tries at least once, then with growing pauses. A queue in the kernel (`flock` that waits) could not be
/// given a deadline.
fn poll_until<T>(
    until: Instant,
    mut attempt: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    let mut pause = Duration::from_micros(20);
    loop {
        if let Some(got) = attempt()? {
            return Ok(Some(got));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        sleep(pause.min(left));
        pause = (pause + pause / 4).min(Duration::from_millis(2));
    }
}

fn busy(what: &str) -> Error {
    Error::new(
        ErrorKind::Busy,
        format!(
            "somebody held the lock of {what} for longer than the timeout; see who it is (`lslocks`), or \
             raise \
             `SegmentOptions::timeout`"
        ),
    )
}
