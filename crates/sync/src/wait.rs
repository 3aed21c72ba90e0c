//! Waiting: the one loop in which everything but the lock sleeps.
//!
//! What is waited for is a function that tries to have it. It is called again whenever something may have changed: after
//! a notification, after the death of any other participant, and at the end of each slice. It does its own recovery from
//! deaths: whatever a dead participant still has by the shared words, the function takes back when it meets it
//! ([`Liveness::is_gone`]). So nobody needs to be told who died, and a recovery that is cut short by another death is
//! begun anew by the next who waits.
//!
//! Slices (50 ms to 1 s) are for what no notification and no death tells: a waker that is *stopped* between its change
//! and its wake-up, a sleeper that is stopped before it has passed a death on.

use core::time::Duration;

use crossproc_atomic::{Deadline, EventCount, Liveness, pause};

pub(crate) const SLICE_MIN: Duration = Duration::from_millis(50);
pub(crate) const SLICE_MAX: Duration = Duration::from_secs(1);
/// Pauses between two tries, at the most.
const SPIN_GAP_MAX: u32 = 16;

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Try,
    /// Until then, or for ever.
    Until(Option<Deadline>),
}

impl Wait {
    /// As long as it takes.
    pub const FOREVER: Self = Self::Until(None);
}

/// Why waiting ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFailure {
    /// It could not be had at once ([`Wait::Try`]).
    WouldBlock,
    /// It could not be had until the deadline.
    TimedOut,
}

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// While spinning: look at the words alone.
    Light,
    /// Before sleeping or giving up: also take back what the dead have.
    Full,
}

impl Effort {
    /// True for [`Full`](Self::Full).
    #[must_use]
    pub fn is_full(self) -> bool {
        self == Self::Full
    }
}

/// Calls `attempt` until it returns something, sleeping on `event` between two tries.
///
/// # Errors
///
/// [`WaitFailure::WouldBlock`] or [`WaitFailure::TimedOut`]; `attempt` has made a full effort before.
pub fn wait_for<L: Liveness, R>(
    live: &L,
    event: &EventCount,
    wait: Wait,
    mut attempt: impl FnMut(Effort) -> Option<R>,
) -> Result<R, WaitFailure> {
    let Wait::Until(until) = wait else {
        return attempt(Effort::Full).ok_or(WaitFailure::WouldBlock);
    };
    let (mut spins, mut gap) = (live.spins(), 1);
    while spins > 0 {
        if let Some(done) = attempt(Effort::Light) {
            return Ok(done);
        }
        (0..gap).for_each(|_| pause());
        spins = spins.saturating_sub(gap);
        gap = (gap * 2).min(SPIN_GAP_MAX);
    }
    let mut slice = SLICE_MIN;
    loop {
        let ticket = event.listen_among_peers(live);
        // After the announcement: a change from now on is notified, a death from now on ends the sleep.
        if let Some(done) = attempt(Effort::Full) {
            return Ok(done);
        }
        let now = live.now();
        if until.is_some_and(|until| now >= until) {
            return Err(WaitFailure::TimedOut);
        }
        event.sleep_among_peers(live, ticket, Some(earlier(until, now.saturating_add(slice))));
        if !event.is_notified(ticket) {
            slice = (slice * 2).min(SLICE_MAX);
        }
    }
}

pub(crate) fn earlier(until: Option<Deadline>, slice: Deadline) -> Deadline {
    until.map_or(slice, |until| until.min(slice))
}
