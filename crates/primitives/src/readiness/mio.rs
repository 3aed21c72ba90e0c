//! [`Readiness`] as a source of mio's events (feature `mio`).

use std::io;
use std::os::fd::AsRawFd;

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::Readiness;

/// Register it for [`Interest::READABLE`]; then [`arm`](Readiness::arm) it whenever the program has nothing else to do with the queue.
///
/// ```
/// use std::time::Duration;
///
/// use crossproc_primitives::{Queue, RecvError};
/// use mio::{Events, Interest, Poll, Token};
///
/// let queue = Queue::new(4)?;
/// let sender = queue.clone();
/// std::thread::spawn(move || sender.send(7_u32));
///
/// let (mut poll, mut events, mut readable) = (Poll::new()?, Events::with_capacity(8), queue.readable()?);
/// poll.registry().register(&mut readable, Token(0), Interest::READABLE)?;
/// let received = loop {
///     match queue.recv_timeout(Duration::ZERO) {
///         Err(RecvError::TimedOut) if readable.arm()? => {}
///         Err(RecvError::TimedOut) => poll.poll(&mut events, None)?,
///         other => break other?,
///     }
/// };
/// assert_eq!(received, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl Source for Readiness {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.as_raw_fd()).deregister(registry)
    }
}
