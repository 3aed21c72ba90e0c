//! Waiting for descriptors until a deadline.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until one of the descriptors is ready or the deadline has passed (`None`: for ever); returns which
/// are ready. Hang-up and error count as ready: the next read tells.
pub(crate) fn ready<const N: usize>(
    descriptors: [(BorrowedFd<'_>, PollFlags); N],
    deadline: Option<Instant>,
) -> Result<[bool; N], Errno> {
    let mut polled = descriptors.map(|(fd, events)| PollFd::from_borrowed_fd(fd, events));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(std::array::from_fn(|i| !polled[i].revents().is_empty())),
        }
    }
}

/// True if the process behind `pidfd` has ended.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    // On an error (no memory) it counts as running; the next call will tell.
    ready([(pidfd, PollFlags::IN)], Some(Instant::now())).is_ok_and(|[ended]| ended)
}
