//! The event count: how everything but the lock sleeps.
//!
//! `seq` is the futex word, `waiters` says whether anybody may be asleep:
//!
//! ```text
//!  seq      bumped by a waker that saw the flag; sleepers wait while it is what they read
//!  waiters  bit 0: a sleeper may be there; bits 1..: count of announcements, so that a waker's
//!           clearing CAS fails when a new sleeper has come since it looked
//! ```
//!
//! Sleeper: `k = seq`; `waiters = (waiters + 2) | 1` in one read-modify-write; re-check the condition;
//! sleep on `seq == k`. Waker (after its change): `o = waiters`; if `o & 1`: `seq += 1`, wake all, and if
//! nobody slept, CAS `waiters` from `o` to `o & !1`.
//!
//! Both words may be written by everybody at any time; neither has an owner. What a death leaves behind:
//! a sleeper killed asleep leaves the flag set, which costs the next waker one useless wake; a waker killed
//! (or stopped) between its change and the wake leaves sleepers asleep, which is why every sleep is cut in
//! slices by its caller, and why callers that can sleep among their peers: a death then wakes them. Nobody repairs
//! anything.
//!
//! Ordering: the sleeper's announcement and the waker's change are each followed by a full fence before the
//! other side's word is read, so one of the two sees the other (store buffering is excluded). For that the accesses could
//! be Relaxed: a sleeper that read a bumped `seq` has the waker's fence before it and its own behind it. But a waker that woke
//! nobody clears the flag, since whoever is counted there has read `seq` before it was bumped and will not sleep: hence
//! counting is a Release, and the look at the count an Acquire.

use crate::{AtomicU32, Deadline, Liveness, Ordering, Platform, fence, fence_after_rmw};

/// Sequence word and waiter flag of whatever can be slept on.
#[repr(C)]
#[derive(Debug, Default)]
pub struct EventCount {
    seq: AtomicU32,
    waiters: AtomicU32,
}

/// What [`EventCount::listen`] saw; to be given to [`EventCount::sleep`].
#[derive(Clone, Copy, Debug)]
#[must_use = "listening alone does not sleep"]
pub struct Ticket {
    seq: u32,
    /// [`Liveness::comings`] before that.
    comings: u32,
}

impl EventCount {
    /// Announces a sleeper. Re-check the condition after this and before [`sleep`](Self::sleep).
    pub fn listen(&self) -> Ticket {
        let seq = self.seq.load(Ordering::Relaxed);
        let mut seen = self.waiters.load(Ordering::Relaxed);
        // One read-modify-write; a CAS loop because no single instruction adds and sets a bit.
        while let Err(now) = self.waiters.compare_exchange(
            seen,
            seen.wrapping_add(2) | 1,
            Ordering::Release, // mutant: equivalent, because loom lets no store overtake an earlier load
            Ordering::Relaxed,
        ) {
            seen = now;
        }
        fence_after_rmw();
        Ticket { seq, comings: 0 }
    }

    /// As [`listen`](Self::listen), before [`sleep_among_peers`](Self::sleep_among_peers): whoever dies from now on
    /// ends that sleep.
    pub fn listen_among_peers(&self, live: &impl Liveness) -> Ticket {
        let comings = live.comings();
        Ticket { comings, ..self.listen() }
    }

    /// Sleeps unless something was notified since the ticket was taken. May return early.
    pub fn sleep(&self, platform: &impl Platform, ticket: Ticket, until: Option<Deadline>) {
        platform.wait(&self.seq, ticket.seq, &[], until);
    }

    /// As [`sleep`](Self::sleep), and wakes when another participant has died since
    /// [`listen_among_peers`](Self::listen_among_peers).
    pub fn sleep_among_peers(&self, live: &impl Liveness, ticket: Ticket, until: Option<Deadline>) {
        live.wait_among_peers(&self.seq, ticket.seq, ticket.comings, until);
    }

    /// The word to sleep on, and what stands there until something is notified: for who sleeps on several at once.
    #[must_use]
    pub fn word(&self, ticket: Ticket) -> (&AtomicU32, u32) {
        (&self.seq, ticket.seq)
    }

    /// True if something was notified since the ticket was taken.
    #[must_use]
    pub fn is_notified(&self, ticket: Ticket) -> bool {
        self.seq.load(Ordering::Relaxed) != ticket.seq
    }

    /// Wakes everybody who listens, after a change made by a plain store.
    #[inline]
    pub fn notify_after_store(&self, platform: &impl Platform) {
        fence(Ordering::SeqCst);
        self.notify(platform, u32::MAX);
    }

    /// Wakes everybody who listens, after a change made by an atomic read-modify-write of this thread.
    #[inline]
    pub fn notify_after_rmw(&self, platform: &impl Platform) {
        fence_after_rmw();
        self.notify(platform, u32::MAX);
    }

    /// Wakes everybody who listens, after a change and a full fence of the caller's own (or
    /// [`light_fence`](crate::light_fence), beside its other side).
    #[inline]
    pub fn notify_after_fence(&self, platform: &impl Platform) {
        self.notify(platform, u32::MAX);
    }

    /// Wakes at most `count` of those who sleep, and everybody who listens and does not sleep yet.
    pub fn notify_some(&self, platform: &impl Platform, count: u32) {
        fence(Ordering::SeqCst);
        self.notify(platform, count);
    }

    /// As [`notify_some`](Self::notify_some), after a change made by an atomic read-modify-write of this thread.
    #[inline]
    pub fn notify_some_after_rmw(&self, platform: &impl Platform, count: u32) {
        fence_after_rmw();
        self.notify(platform, count);
    }

    /// True if somebody may have to be woken for a change made by an atomic read-modify-write of this thread.
    #[inline]
    #[must_use]
    pub fn has_listeners_after_rmw(&self) -> bool {
        fence_after_rmw();
        self.waiters.load(Ordering::Acquire) & 1 != 0 // mutant: equivalent, because loom lets no store overtake an earlier load
    }

    #[inline]
    fn notify(&self, platform: &impl Platform, count: u32) {
        let seen = self.waiters.load(Ordering::Acquire); // mutant: equivalent, because loom lets no store overtake an earlier load
        if seen & 1 != 0 {
            self.wake(platform, seen, count);
        }
    }

    #[cold]
    fn wake(&self, platform: &impl Platform, seen: u32, count: u32) {
        if count == 0 {
            return; // that none was woken would not mean that none sleeps
        }
        self.seq.fetch_add(1, Ordering::Relaxed);
        if platform.wake(&self.seq, count) == 0 {
            // Nobody slept: drop the flag unless a new sleeper has announced itself. Losing the race is fine.
            let _ = self.waiters.compare_exchange(seen, seen & !1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}
