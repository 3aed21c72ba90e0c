//! `Readiness`: a file descriptor that becomes readable when something else is ready.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossproc_atomic::process_stamp;
use rustix::event::{EventfdFlags, eventfd};

use super::watcher::{self, Key, Listener};
use super::{Source, WaitTarget, Waitable};

/// A file descriptor that becomes readable when a queue is: for `poll`, `epoll`, `io_uring`, and every event loop that knows
/// descriptors.
///
/// It is made by [`readable`](crate::Queue::readable), [`writable`](crate::Queue::writable) and their like, and it is an `eventfd` of this
/// process alone. Nobody writes to it unless it was [armed](Self::arm), and then once: while it is not armed, messages cost no
/// system calls, and there is nothing to be read from it.
///
/// The loop of whoever waits is: do what can be done; [`arm`](Self::arm); wait for the descriptor to become readable, unless `arm` has said
/// that it is ready already; begin again. Armed once, it tells once. A descriptor that is readable says "look": somebody else may have been
/// faster. What it tells of is also the end: the queue was closed, or (see `recv`) nobody is left who could send.
///
/// "Do what can be done" with the `_timeout` forms and [`Duration::ZERO`](std::time::Duration::ZERO), which do not wait either. That
/// all peers have died they tell (`PeerDied`), as all that could wait; most `try_` forms do not: a loop with `try_recv` would find the
/// queue `Empty`, and `arm` say that it is ready, again and again.
///
/// It works with level- and with edge-triggered loops; with tokio as `AsyncFd<Readiness>`, with async-io as `Async<Readiness>`, though a
/// [future](crate::Queue::recv_async) is less work. Do not read from it, and do not use it in a forked child, which would share it
/// with its parent.
///
/// ```
/// use std::time::Duration;
///
/// use crossproc_primitives::{Queue, RecvError};
/// use rustix::event::{PollFd, PollFlags, poll};
///
/// let queue = Queue::new(10)?;
/// let sender = queue.clone();
/// std::thread::spawn(move || (0..3_u32).try_for_each(|n| sender.send(n)));
///
/// let readable = queue.readable()?;
/// let mut received = Vec::new();
/// while received.len() < 3 {
///     match queue.recv_timeout(Duration::ZERO) {
///         Ok(number) => received.push(number),
///         Err(RecvError::TimedOut) if readable.arm()? => {} // it is not empty any more, or nobody is left
///         Err(RecvError::TimedOut) => {
///             poll(&mut [PollFd::new(&readable, PollFlags::IN)], None)?; // here with all else that the program waits for
///         }
///         Err(other) => return Err(other.into()),
///     }
/// }
/// assert_eq!(received, [0, 1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// With `epoll`, by hand:
///
/// ```
/// use std::time::Duration;
///
/// use crossproc_primitives::{Queue, RecvError};
/// use rustix::buffer::spare_capacity;
/// use rustix::event::epoll;
///
/// let queue = Queue::new(10)?;
/// let readable = queue.readable()?;
/// let interests = epoll::create(epoll::CreateFlags::CLOEXEC)?;
/// epoll::add(&interests, &readable, epoll::EventData::new_u64(7), epoll::EventFlags::IN)?;
///
/// let sender = queue.clone();
/// std::thread::spawn(move || sender.send("here".as_bytes()[0]));
///
/// let mut events = Vec::with_capacity(8);
/// let byte = loop {
///     match queue.recv_timeout(Duration::ZERO) {
///         Err(RecvError::TimedOut) if readable.arm()? => {}
///         Err(RecvError::TimedOut) => {
///             epoll::wait(&interests, spare_capacity(&mut events), None)?;
///         }
///         other => break other?,
///     }
/// };
/// assert_eq!(byte, b'h');
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Readiness {
    fd: Arc<OwnedFd>,
    source: Arc<Source>,
    armed: Mutex<Option<Key>>,
    /// A forked child has a copy of what is its parent's.
    stamp: u64,
}

impl Readiness {
    pub(crate) fn new(source: Arc<Source>) -> io::Result<Self> {
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self { fd, source, armed: Mutex::new(None), stamp: process_stamp() })
    }

    /// From now on the descriptor becomes readable when it is ready, once. True if it is ready already; then the descriptor is readable
    /// as well.
    ///
    /// What was told before is forgotten.
    ///
    /// Ready it is as well when all peers have died, for good. Ask with a `_timeout` form and [`Duration::ZERO`](std::time::Duration::ZERO),
    /// which says so: after a `try_` form, which says that there is nothing, the loop would spin.
    ///
    /// # Errors
    ///
    /// If this process can start no further thread (the first one that is needed is started here).
    pub fn arm(&self) -> io::Result<bool> {
        if self.stamp != process_stamp() {
            return Ok(true); // whatever is tried next says so
        }
        let mut armed = self.armed();
        self.forget(&mut armed);
        *armed = Some(watcher::arm(&self.source, Listener::Descriptor(Arc::clone(&self.fd)))?);
        let is_ready = self.source.is_ready();
        if is_ready {
            self.forget(&mut armed);
            rustix::io::write(&*self.fd, &1_u64.to_ne_bytes())?;
        }
        Ok(is_ready)
    }

    /// Nothing is told any more, until it is armed again; and the descriptor is not readable.
    pub fn clear(&self) {
        if self.stamp == process_stamp() {
            self.forget(&mut self.armed());
        }
    }

    /// True if it is ready now, armed or not.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.source.is_ready()
    }

    fn armed(&self) -> MutexGuard<'_, Option<Key>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, armed: &mut Option<Key>) {
        if let Some(key) = armed.take() {
            watcher::disarm(&key);
        }
        drain(&self.fd);
    }
}

/// An eventfd is not readable after this.
pub(super) fn drain(fd: &OwnedFd) {
    // It fails if there is nothing.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

impl Drop for Readiness {
    fn drop(&mut self) {
        let armed = self.armed.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(key), true) = (armed, self.stamp == process_stamp()) {
            watcher::disarm(&key);
        }
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Readiness {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Waitable for Readiness {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget::source(Arc::clone(&self.source))
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness")
            .field("fd", &self.fd)
            .field("armed", &self.armed().is_some())
            .finish_non_exhaustive()
    }
}
