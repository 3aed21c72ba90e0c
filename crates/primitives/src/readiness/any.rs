//! `wait_any`: several things at once, by one thread.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use crossproc_atomic::{AtomicU32, Deadline, Linux, Platform, Ticket};
use crossproc_segment::Peers;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::watcher::{self, Key, Listener, WORDS_MAX};
use super::{Source, fd};

const SLICE_MIN: Duration = Duration::from_millis(50);
const SLICE_MAX: Duration = Duration::from_secs(1);

/// What [`wait_any`] can wait for.
pub trait Waitable {
    #[doc(hidden)]
    fn target(&self) -> WaitTarget<'_>;
}

#[doc(hidden)]
pub struct WaitTarget<'a>(pub(super) Target<'a>);

pub(super) enum Target<'a> {
    Source(Arc<Source>),
    Fd(BorrowedFd<'a>, PollFlags),
}

impl<'a> WaitTarget<'a> {
    pub(crate) fn source(source: Arc<Source>) -> Self {
        Self(Target::Source(source))
    }
}

impl std::fmt::Debug for WaitTarget<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WaitTarget")
    }
}

/// A file descriptor for [`wait_any`]: a socket, a pipe, a child process (which becomes readable when it ends).
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// use crossproc_primitives::{Event, Fd, wait_any};
///
/// let stop = Event::new()?;
/// let (mut here, there) = UnixStream::pair()?;
/// here.write_all(b"hello")?;
/// assert_eq!(wait_any(&[&stop, &Fd::readable(&there)], None), [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Fd<'a> {
    fd: BorrowedFd<'a>,
    flags: PollFlags,
}

impl<'a> Fd<'a> {
    /// Waits until something can be read, or will never be.
    pub fn readable(fd: &'a impl AsFd) -> Self {
        Self { fd: fd.as_fd(), flags: PollFlags::IN }
    }

    /// Waits until something can be written, or will never be.
    pub fn writable(fd: &'a impl AsFd) -> Self {
        Self { fd: fd.as_fd(), flags: PollFlags::OUT }
    }
}

impl Waitable for Fd<'_> {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget(Target::Fd(self.fd, self.flags))
    }
}

/// Waits until one of several things at least is ready, at most `timeout`; says which are, by their place in the list. None: the time is
/// over.
///
/// A queue is ready if a receive would not have to wait: there is a message, or it is closed, or nobody is left who could send. (So is the
/// consumer of an [`spsc`](crate::spsc) queue; a producer is if there is room.) An [`Event`](crate::Event) is while it is set, and once
/// nobody is left who could set it. Anything that has a descriptor can be waited for as an [`Fd`]. What this process can not use (any
/// more) is ready: trying it says why.
///
/// Nothing is taken. Another thread or process may be faster: take without waiting, and wait again. Do it with the `_timeout` forms and
/// [`Duration::ZERO`]. What is ready may be the death of all peers, and stay so for good; these forms say so (`PeerDied`), and most `try_`
/// forms do not: a loop with them would spin.
///
/// As many things as the kernel can watch at once (127 words: one for each of them, one for each of their segments, one for each other
/// process) are waited for by one system call, `futex_waitv`. More of them, or descriptors among them, take some calls for each.
///
/// ```
/// use std::time::Duration;
///
/// use crossproc_primitives::{Event, Queue, wait_any};
///
/// let (orders, prices, stop) = (Queue::<u32>::new(4)?, Queue::<f64>::new(4)?, Event::new()?);
/// assert_eq!(wait_any(&[&orders, &prices, &stop], Some(Duration::ZERO)), []);
/// prices.send(1.5)?;
/// stop.set()?;
/// assert_eq!(wait_any(&[&orders, &prices, &stop], None), [1, 2]);
/// assert_eq!(prices.recv_timeout(Duration::ZERO), Ok(1.5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn wait_any(list: &[&dyn Waitable], timeout: Option<Duration>) -> Vec<usize> {
    let until = timeout.map(|timeout| Linux.now().saturating_add(timeout));
    let (mut sources, mut fds) = (Vec::new(), Vec::new());
    for (place, waitable) in list.iter().enumerate() {
        match waitable.target().0 {
            Target::Source(source) => sources.push((place, source)),
            Target::Fd(fd, flags) => fds.push((place, fd, flags)),
        }
    }
    let segments = peers_of(&sources);
    let words = sources.len() + watcher::words_of(&segments).len();
    let mut ready = if fds.is_empty() && words <= WORDS_MAX {
        by_words(&sources, segments, until)
    } else {
        by_descriptors(&sources, &fds, until)
    };
    ready.sort_unstable();
    ready
}

fn places_of_ready(sources: &[(usize, Arc<Source>)]) -> Vec<usize> {
    sources.iter().filter(|(_, source)| source.is_ready()).map(|(place, _)| *place).collect()
}

/// Who else is there, by the address of the segment's memory.
fn peers_of(sources: &[(usize, Arc<Source>)]) -> BTreeMap<usize, Peers> {
    let mut segments = BTreeMap::new();
    for (_, source) in sources {
        if let Some(live) = source.live() {
            let key = source.event.mapping().base().addr();
            segments.entry(key).or_insert_with(|| live.peers());
        }
    }
    segments
}

fn by_words(
    sources: &[(usize, Arc<Source>)],
    mut segments: BTreeMap<usize, Peers>,
    until: Option<Deadline>,
) -> Vec<usize> {
    // Nobody wakes who sleeps on this.
    let nothing = AtomicU32::new(0);
    let mut was_notified = vec![false; sources.len()];
    let mut slice = SLICE_MIN;
    loop {
        let tickets: Vec<Ticket> = sources.iter().map(|(_, source)| source.event.listen()).collect();
        let ready = places_of_ready(sources);
        if !ready.is_empty() {
            for ((place, source), was_notified) in sources.iter().zip(was_notified) {
                // We take nothing: another one may have to be woken.
                if was_notified && ready.contains(place) {
                    source.pass_on();
                }
            }
            return ready;
        }
        let now = Linux.now();
        if until.is_some_and(|until| now >= until) {
            return ready;
        }
        let end = now.saturating_add(slice);
        let words =
            sources.iter().zip(&tickets).map(|((_, source), ticket)| source.event.word(*ticket)).collect();
        let end = until.map_or(end, |until| until.min(end));
        watcher::sleep(&nothing, 0, words, &segments, Some(end));
        let mut is_told = false;
        for (((_, source), ticket), was_notified) in sources.iter().zip(tickets).zip(&mut was_notified) {
            let is_notified = source.event.is_notified(ticket);
            *was_notified |= is_notified;
            is_told |= is_notified;
        }
        for peers in segments.values_mut() {
            is_told |= peers.has_changed() && peers.look();
        }
        if is_told {
            slice = SLICE_MIN;
        } else if Linux.now() >= end {
            slice = (slice * 2).min(SLICE_MAX);
            for peers in segments.values_mut() {
                peers.suspect_all();
                peers.look();
            }
        }
    }
}

/// Disarms what is left when it goes.
struct Keys(Vec<Option<Key>>);

impl Drop for Keys {
    fn drop(&mut self) {
        for key in self.0.iter().flatten() {
            watcher::disarm(key);
        }
    }
}

fn by_descriptors(
    sources: &[(usize, Arc<Source>)],
    fds: &[(usize, BorrowedFd<'_>, PollFlags)],
    until: Option<Deadline>,
) -> Vec<usize> {
    let mut keys = Keys(vec![None; sources.len()]);
    // Without a descriptor to be had, or a thread, it is looked now and then.
    let told = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    if let Ok(told) = &told {
        polled.push(PollFd::new(&**told, PollFlags::IN));
    }
    // First everything is looked at: perhaps nothing need be armed.
    let mut is_first = true;
    loop {
        let mut is_blind = told.is_err();
        if let (Ok(told), false) = (&told, is_first) {
            fd::drain(told);
            for ((_, source), key) in sources.iter().zip(&mut keys.0) {
                if !key.as_ref().is_some_and(watcher::is_armed) {
                    *key = watcher::arm(source, Listener::Descriptor(Arc::clone(told))).ok();
                    is_blind |= key.is_none();
                }
            }
        }
        let mut ready = places_of_ready(sources);
        let now = Linux.now();
        let mut left = until.map(|until| Duration::from_nanos(until.0.saturating_sub(now.0)));
        let is_over = left == Some(Duration::ZERO);
        if is_first || !ready.is_empty() {
            left = Some(Duration::ZERO);
        } else if is_blind {
            left = Some(left.map_or(SLICE_MIN, |left| left.min(SLICE_MIN)));
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        // Interrupted, or out of memory: looked at again.
        if poll(&mut polled, left.as_ref()).is_ok() {
            let readable = fds.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty());
            ready.extend(readable.map(|((place, ..), _)| *place));
        }
        if !ready.is_empty() || is_over {
            return ready;
        }
        is_first = false;
    }
}
