//! Waiting for an [`Event`] without a thread.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::offset_of;
use std::sync::Arc;

use crossproc_atomic::{EventCount, Liveness};
use crossproc_sync::{Effort, EventWords};

use super::{Readiness, Source, WaitTarget, Waitable, Wakes, Watching};
use crate::event::{Event, WaitError};

impl Event {
    /// Waits until the event is set, as [`wait`](Self::wait) does: for tasks of any runtime.
    ///
    /// It counts from the first poll: whoever sets and clears the event after that lets it go. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_async(&self) -> impl Future<Output = Result<(), WaitError>> + Unpin + '_ {
        let mut watching = Watching::default();
        let mut mark = None;
        poll_fn(move |cx| {
            let words = &self.handle().words;
            let mark = *mark.get_or_insert_with(|| words.mark());
            watching.poll(
                cx,
                || self.source(Some(mark)),
                |effort: Effort| {
                    let Some(live) = self.handle().live() else { return Some(Err(WaitError::NotAttached)) };
                    if words.was_set_since(mark) {
                        return Some(Ok(()));
                    }
                    // The last peer may have set it and left since we looked.
                    (effort.is_full() && live.is_alone()).then(|| match words.was_set_since(mark) {
                        true => Ok(()),
                        false => Err(WaitError::PeerDied),
                    })
                },
            )
        })
    }

    /// A descriptor that becomes readable when the event is set, for event loops: see [`Readiness`].
    ///
    /// One that is set and cleared at once may go unseen. It is ready as well once nobody is left who could set the event, which
    /// [`wait_timeout`](Self::wait_timeout) of [`Duration::ZERO`](std::time::Duration::ZERO) says, and [`is_set`](Self::is_set) does not.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn readable(&self) -> io::Result<Readiness> {
        Readiness::new(self.source(None))
    }

    /// Ready as long as it is set, or once it was set after the mark.
    fn source(&self, mark: Option<u64>) -> Arc<Source> {
        let handle = self.handle();
        let at = offset_of!(EventWords, changed) as u64;
        let event = handle.place::<EventCount>(at).expect("it is one of the event's words");
        let words = handle.words.clone();
        Source::new(handle.segment(), event, Wakes::All, move |live| {
            let is_set = || mark.map_or_else(|| words.is_set(), |mark| words.was_set_since(mark));
            is_set() || live.is_alone()
        })
    }
}

impl Waitable for Event {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget::source(self.source(Some(self.handle().words.mark())))
    }
}
