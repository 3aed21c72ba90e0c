//! The event: a flag that is set and cleared, and that can be waited for.
//!
//! ```text
//!  0  flag     u64  number of sets << 1 | 1 while it is set
//!  8  changed  event count: who waits for it to be set
//! ```
//!
//! Who may write what: everybody both words, at any time, `flag` by one read-modify-write. Setting adds one to the
//! number and sets the bit; clearing takes the bit away. A waiter remembers the number that it found, and is through
//! when the bit is set *or the number is another one*: so a set that is followed at once by a clear lets all those go
//! who waited, however late they look.
//!
//! What a death leaves behind: every value of the flag is a state of the event, so nothing needs repair. Who is killed
//! between setting and waking has woken all by its death (`wait.rs`), and they find the flag set.
//!
//! Memory ordering. Who returns from waiting has seen all that the setter did before: setting is a Release, and what
//! lets a waiter go is an Acquire of that very write or of one behind it (all writes are read-modify-writes, so a clear
//! in between passes the setter's Release on). Who clears has seen all that earlier setters did (Acquire): "clear,
//! look for work, wait" loses nothing.

use crossproc_atomic::{AtomicU64, EventCount, Liveness, Ordering, Platform, shared_struct};

use crate::wait::{Wait, WaitFailure, wait_for};

const SET: u64 = 1;
/// One more set, in the number above the bit.
const ONE_SET: u64 = 2;

shared_struct! {
    /// The words of one event. All zero: never set.
    pub struct EventWords: 16 {
        flag: AtomicU64,
        /// Who waits for it to be set sleeps here.
        pub changed: EventCount,
    }
}

/// Why waiting for an event ended without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFailure {
    /// It was not set ([`Wait::Try`]).
    WouldBlock,
    /// It was not set until the deadline.
    TimedOut,
    /// All other participants are gone: nobody is left to set it.
    PeerDied,
}

impl EventWords {
    /// Sets the event and wakes all who wait for it.
    #[inline]
    pub fn set(&self, platform: &impl Platform) {
        let mut seen = self.flag.load(Ordering::Relaxed);
        loop {
            // Also if it is set already: who waits for it is to see what *this* setter did.
            let set = seen.wrapping_add(ONE_SET) | SET;
            match self.flag.compare_exchange(seen, set, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        self.changed.notify_after_rmw(platform);
    }

    /// Clears the event; true if it was set.
    #[inline]
    pub fn clear(&self) -> bool {
        self.flag.fetch_and(!SET, Ordering::Acquire) & SET != 0
    }

    /// True if it is set.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Acquire) & SET != 0
    }

    /// What [`was_set_since`](Self::was_set_since) is to be given.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.flag.load(Ordering::Acquire)
    }

    /// True if it is set, or was since the mark.
    #[must_use]
    pub fn was_set_since(&self, mark: u64) -> bool {
        let seen = self.flag.load(Ordering::Acquire);
        // Setting changes the number, clearing changes it not.
        seen & SET != 0 || seen & !SET != mark & !SET
    }

    /// Waits until the event is set, or was set since the call began.
    ///
    /// # Errors
    ///
    /// See [`EventFailure`].
    #[inline]
    pub fn wait<L: Liveness>(&self, live: &L, wait: Wait) -> Result<(), EventFailure> {
        let first = self.mark();
        if first & SET != 0 { Ok(()) } else { self.wait_slowly(live, wait, first) }
    }

    #[cold]
    fn wait_slowly<L: Liveness>(&self, live: &L, wait: Wait, first: u64) -> Result<(), EventFailure> {
        let was_set = || self.was_set_since(first);
        let waited = wait_for(live, &self.changed, wait, |effort| {
            if was_set() {
                return Some(Ok(()));
            }
            if effort.is_full() && live.is_alone() {
                // The last peer may have set it and left since we looked.
                return Some(if was_set() { Ok(()) } else { Err(EventFailure::PeerDied) });
            }
            None
        });
        match waited {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock) => Err(EventFailure::WouldBlock),
            Err(WaitFailure::TimedOut) => Err(EventFailure::TimedOut),
        }
    }
}
