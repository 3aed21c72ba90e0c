//! The condition variable: sleep until somebody who holds the lock says that something has changed.
//!
//! ```text
//!  0  lock      u64  identity of the lock it is used with; 0: not used yet
//!  8  notified  event count: who waits
//! ```
//!
//! Who may write what: `lock` moves from 0 to the identity of the first lock that is brought, once, by
//! compare-and-swap. `notified` is the event count's own, see `event.rs`.
//!
//! A waiter that holds the lock 1. announces itself in `notified`, 2. releases the lock, 3. sleeps until `notified` was
//! bumped since 1, 4. takes the lock again. A notifier holds the lock, so every change comes before 1 (and the waiter
//! has looked at it) or after 2, and then the notifier finds the waiter announced: no wake-up falls in between.
//!
//! Notifying bumps the number and has the kernel wake so many sleepers. Nobody answers, so there is nobody to wait for.
//! Whoever is awake between two slices of sleep, or not yet asleep, goes on too when it finds the number changed, since
//! it may be the one that was meant: wake-ups without a reason are allowed, lost ones are not.
//!
//! What a death leaves behind. A waiter killed asleep: nothing. One that was killed when it had just been woken has
//! swallowed the wake-up, and a notifier that was killed may have changed what is waited for and woken nobody: so *every*
//! death of a participant wakes every waiter (`Liveness::comings` has changed since 1), which look and wait again. A
//! waiter that swallowed a wake-up and is stopped: the others find the number changed at the end of their slice. One
//! that swallowed it and gives up, as it can not have the lock before its deadline: passes it on, before it returns.
//!
//! Memory ordering: all Relaxed here. What is waited for is guarded by the lock, which orders it.

use core::num::NonZeroU64;

use crossproc_atomic::{
    AtomicU64, Deadline, EventCount, Liveness, Ordering, Platform, Ticket, shared_struct,
};

use crate::wait::{Wait, wait_for};

shared_struct! {
    /// The words of one condition variable. All zero: not used yet.
    pub struct CondvarWords: 16 {
        lock: AtomicU64,
        notified: EventCount,
    }
}

/// An announced waiter.
#[derive(Clone, Copy, Debug)]
#[must_use = "who is announced has yet to release the lock and to sleep"]
pub struct Waiter {
    ticket: Ticket,
    comings: u32,
}

/// Why a waiter goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// It was notified; or somebody came or died, which may have been the one to notify it.
    Notified,
    /// It was not notified until the deadline.
    TimedOut,
    /// All other participants are gone.
    PeerDied,
}

impl CondvarWords {
    /// True if it is used with this lock, from now on if with none so far.
    pub fn is_used_with(&self, lock: NonZeroU64) -> bool {
        match self.lock.compare_exchange(0, lock.get(), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(now) => now == lock.get(),
        }
    }

    /// Announces the caller, who holds the lock.
    pub fn announce(&self, live: &impl Liveness) -> Waiter {
        let comings = live.comings();
        Waiter { ticket: self.notified.listen(), comings }
    }

    /// Sleeps until it is notified. To be called after the lock was released.
    pub fn sleep(&self, live: &impl Liveness, waiter: Waiter, until: Option<Deadline>) -> Woken {
        let slept = wait_for(live, &self.notified, Wait::Until(until), |effort| {
            if self.is_notified(waiter) {
                return Some(Woken::Notified);
            }
            if effort.is_full() && live.is_alone() {
                // The last peer may have notified us and left since we looked.
                return Some(if self.is_notified(waiter) { Woken::Notified } else { Woken::PeerDied });
            }
            (effort.is_full() && live.comings() != waiter.comings).then_some(Woken::Notified)
        });
        slept.unwrap_or(Woken::TimedOut)
    }

    /// True if somebody has notified anybody since this waiter announced itself.
    pub fn is_notified(&self, waiter: Waiter) -> bool {
        self.notified.is_notified(waiter.ticket)
    }

    /// To be called by a waiter that was to go on and does not, since it can not have the lock.
    pub fn give_up(&self, platform: &impl Platform, waiter: Waiter) {
        if self.is_notified(waiter) {
            self.notify(platform, 1);
        }
    }

    /// Wakes `count` waiters, or more. The caller holds the lock.
    pub fn notify(&self, platform: &impl Platform, count: u32) {
        if count != 0 {
            self.notified.notify_some(platform, count);
        }
    }
}
