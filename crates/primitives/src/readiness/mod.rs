//! Waiting without blocking a thread: futures, file descriptors, and several things at once.
//!
//! Who changes a queue knows only one kind of sleeper, one at its event count. So that a change also wakes a task or an `epoll`, *this*
//! process has a thread that sleeps at the event counts of all that its tasks wait for ([`watcher`]). To the others it is a sleeper
//! like any other; nothing is sent from process to process, and while nobody waits there is no system call.
//!
//! | file | what it is |
//! |---|---|
//! | `watcher.rs` | the thread, and the rules by which no wake-up is lost |
//! | `fd.rs` | [`Readiness`]: a descriptor that becomes readable |
//! | `any.rs` | [`wait_any`]: several things at once |
//! | `descriptors.rs` | tasks that wait for a descriptor, as a listener's do |
//! | `ring.rs`, `queues.rs`, `spsc.rs`, `event.rs` | when they are ready, and their methods |
//! | `futures.rs`, `mio.rs`, `io.rs` | the features `futures`, `mio`, and `tokio` and `async-io` |
//! | here | what can be waited for ([`Source`]), and how a future waits ([`Watching`]) |
//!
//! To make something awaitable: a function that gives its [`Source`], a function that *attempts* what the blocking form does in its
//! loop, and [`Watching::poll`] between the two.

mod any;
mod descriptors;
mod event;
mod fd;
#[cfg(feature = "futures")]
mod futures;
#[cfg(any(feature = "async-io", feature = "tokio"))]
mod io;
#[cfg(feature = "mio")]
mod mio;
mod queues;
mod ring;
mod spsc;
#[cfg(test)]
mod tests;
mod watcher;

use std::sync::Arc;
use std::task::{Context, Poll};

use crossproc_atomic::{EventCount, Linux, process_stamp};
use crossproc_segment::{Participants, Placed, Segment};
use crossproc_sync::Effort;

pub use any::{Fd, WaitTarget, Waitable, wait_any};
pub(crate) use descriptors::WatchingFd;
pub use fd::Readiness;
#[cfg(any(feature = "async-io", feature = "tokio"))]
pub use io::AsyncConnection;
pub(crate) use ring::RingEnd;
use watcher::{Key, Listener};

/// What can be waited for.
pub(crate) struct Source {
    segment: Segment,
    event: Placed<EventCount>,
    wakes: Wakes,
    is_ready: Box<dyn Fn(&Participants) -> bool + Send + Sync>,
}

/// Whom a notification is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wakes {
    /// One of those who wait, since only one can have what there is.
    One,
    /// All of them.
    All,
}

impl Source {
    /// `event` lies in `segment`. `is_ready` makes a full effort (takes back what the dead have) and says whether an attempt would end
    /// now, in whatever way: it is called after an announcement at `event`, in any thread of this process.
    pub(crate) fn new(
        segment: &Segment,
        event: Placed<EventCount>,
        wakes: Wakes,
        is_ready: impl Fn(&Participants) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { segment: segment.clone(), event, wakes, is_ready: Box::new(is_ready) })
    }

    fn live(&self) -> Option<&Participants> {
        self.segment.participants().ok()
    }

    /// True as well if this process can not use it: then an attempt says so.
    fn is_ready(&self) -> bool {
        self.live().is_none_or(|live| (self.is_ready)(live))
    }

    /// For who was told of a change and leaves something to be taken.
    fn pass_on(&self) {
        if self.wakes == Wakes::One {
            self.event.notify_some(&Linux, 1);
        }
    }
}

/// A message that a future has until it is sent. It is never pinned in place.
struct Still<T>(T);

impl<T> Unpin for Still<T> {}

/// How a future waits; its place in the watcher's list.
#[derive(Default)]
pub(crate) struct Watching(Option<Armed>);

struct Armed {
    source: Arc<Source>,
    key: Key,
    /// A forked child has a copy of what is its parent's.
    stamp: u64,
}

impl Watching {
    /// Polls for what `attempt` tries to have.
    ///
    /// `attempt` is that of [`wait_for`](crossproc_sync::wait_for): with [`Effort::Full`] it does its own recovery, and says as well if
    /// nothing is to be waited for any more. What it returns goes to the caller at once, so a future that is dropped has nothing.
    pub(crate) fn poll<R>(
        &mut self,
        cx: &Context<'_>,
        source: impl FnOnce() -> Arc<Source>,
        mut attempt: impl FnMut(Effort) -> Option<R>,
    ) -> Poll<R> {
        if self.0.as_ref().is_some_and(|armed| armed.stamp != process_stamp()) {
            self.0 = None;
        }
        let is_told = self.0.as_ref().is_some_and(|armed| !watcher::renew(&armed.key, cx.waker()));
        if let Some(done) = attempt(Effort::Light) {
            self.end(is_told);
            return Poll::Ready(done);
        }
        if self.0.is_some() && !is_told {
            return Poll::Pending;
        }
        let source = self.0.take().map_or_else(source, |told| Arc::clone(&told.source));
        match watcher::arm(&source, Listener::Task(cx.waker().clone())) {
            Ok(key) => self.0 = Some(Armed { source, key, stamp: process_stamp() }),
            // No thread to be had: the task asks again and again until there is one (said at `Queue::recv_async`). Nobody else could wake it.
            Err(_) => cx.waker().wake_by_ref(),
        }
        // After the announcement: a change from now on is told.
        match attempt(Effort::Full) {
            Some(done) => {
                self.end(is_told);
                Poll::Ready(done)
            }
            None => Poll::Pending,
        }
    }

    /// What was waited for is there; `was_told` before.
    fn end(&mut self, was_told: bool) {
        let Some(armed) = self.0.take() else { return };
        let is_told = !watcher::disarm(&armed.key);
        // One notification can be for several messages, and one task was told.
        if (was_told || is_told) && armed.source.is_ready() {
            armed.source.pass_on();
        }
    }
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Waiting" } else { "Idle" })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let Some(armed) = self.0.take().filter(|armed| armed.stamp == process_stamp()) else { return };
        if !watcher::disarm(&armed.key) {
            armed.source.pass_on();
        }
    }
}
