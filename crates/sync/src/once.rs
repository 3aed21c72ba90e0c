//! Something that is done once, in one of all processes.
//!
//! ```text
//!  0  lock    24   the robust lock under which it is done (see lock.rs)
//! 24  state   u32  0 | COMPLETED | PANICKED; written by the holder of `lock`
//! 28  (unused)
//! 32  runner  u64  participant that is doing it; written by the holder of `lock`
//! 40  ended        event count: who waits for it to be done, without doing it
//! ```
//!
//! | state     | runner       | that is                                         | if the holder of `lock` dies now   |
//! |-----------|--------------|-------------------------------------------------|------------------------------------|
//! | 0         | 0            | not begun                                       | `lock` passes on                   |
//! | PANICKED  | 0            | the last one who did it panicked                | the same                           |
//! | any other | P, has `lock`| P is doing it                                   | the next holder begins anew        |
//! | any other | P            | P died while it did it                          | the next holder begins anew        |
//! | COMPLETED | any          | done; stays so                                  | nothing: nobody needs `lock`       |
//!
//! A death is known by `runner` alone: whoever has `lock` and finds a name there that it did not write has it from the dead.
//! (The mark of `lock` itself also comes from those who died before they began or after they had ended.)
//!
//! Memory ordering. Others may rely on this: what was done is visible to whoever finds that it is done: COMPLETED is stored
//! (Release) and read (Acquire). `runner` is cleared (Release) after that, so whoever finds it cleared (Acquire) finds that, too,
//! and does not take what is done for given up. What a dead runner did is visible to the next one, as with any robust lock.

use crossproc_atomic::{AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, fence, shared_struct};

use crate::lock::{LockFailure, LockWords};
use crate::wait::{Wait, WaitFailure, wait_for};

const COMPLETED: u32 = 1;
const PANICKED: u32 = 2;

shared_struct! {
    /// The words of something to be done once. All zero: not done.
    pub struct OnceWords: 48 {
        lock: LockWords,
        state: AtomicU32,
        unused: AtomicU32,
        runner: AtomicU64,
        ended: EventCount,
    }
}

/// What became of the attempt before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Previous {
    /// There was none.
    None,
    /// Its process died.
    Died,
    /// It panicked.
    Panicked,
}

/// Why it was not waited for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnceFailure {
    /// It is not done ([`Wait::Try`]).
    WouldBlock,
    /// It was not done until the deadline.
    TimedOut,
    /// The calling thread is doing it.
    WouldDeadlock,
    /// All other participants are gone, and nobody is doing it.
    PeerDied,
}

impl From<WaitFailure> for OnceFailure {
    fn from(failure: WaitFailure) -> Self {
        match failure {
            WaitFailure::WouldBlock => Self::WouldBlock,
            WaitFailure::TimedOut => Self::TimedOut,
        }
    }
}

impl OnceWords {
    /// True if it is done.
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.state.load(Ordering::Acquire) == COMPLETED
    }

    /// `None` if it is done, after waiting for whoever is doing it. Otherwise it is up to the caller, who has to
    /// [`complete`](Self::complete) it or [`give_up`](Self::give_up).
    ///
    /// # Errors
    ///
    /// [`LockFailure::WouldBlock`] or [`LockFailure::TimedOut`] if somebody else is doing it;
    /// [`LockFailure::WouldDeadlock`] if the calling thread is.
    #[inline]
    pub fn begin<L: Liveness>(&self, live: &L, wait: Wait) -> Result<Option<Previous>, LockFailure> {
        if self.is_completed() { Ok(None) } else { self.begin_under_lock(live, wait) }
    }

    #[cold]
    fn begin_under_lock<L: Liveness>(&self, live: &L, wait: Wait) -> Result<Option<Previous>, LockFailure> {
        let locked = match wait {
            Wait::Try => self.lock.try_lock(live),
            Wait::Until(until) => self.lock.lock(live, until),
        };
        if let Err(failure) = locked {
            // Whoever has it may have done it, and be stopped before it has released the lock.
            return if self.is_completed() { Ok(None) } else { Err(failure) };
        }
        let state = self.state.load(Ordering::Relaxed);
        if state == COMPLETED {
            self.lock.unlock(live);
            return Ok(None);
        }
        let died = self.runner.load(Ordering::Relaxed) != 0;
        self.runner.store(live.me().bits(), Ordering::Relaxed);
        // Nothing is done before that: who is killed in the middle of it is to be reported.
        fence(Ordering::Release); // mutant: equivalent, because it orders a store before what is done for who is killed, and the model kills at words only
        Ok(Some(match (died, state) {
            (true, _) => Previous::Died,
            (false, PANICKED) => Previous::Panicked,
            (false, _) => Previous::None,
        }))
    }

    /// It is done. Does nothing if the calling thread has not [begun](Self::begin) it.
    pub fn complete<L: Liveness>(&self, live: &L) {
        self.end(live, COMPLETED);
    }

    /// It is not done, since whoever was doing it panicked. Does nothing if the calling thread has not
    /// [begun](Self::begin) it.
    pub fn give_up<L: Liveness>(&self, live: &L) {
        self.end(live, PANICKED);
    }

    fn end<L: Liveness>(&self, live: &L, state: u32) {
        if self.lock.is_mine(live) {
            self.state.store(state, Ordering::Release);
            self.runner.store(0, Ordering::Release);
            self.lock.unlock(live);
            self.ended.notify_after_store(live);
        }
    }

    /// Waits until it is done, by whomever.
    ///
    /// # Errors
    ///
    /// See [`OnceFailure`].
    #[inline]
    pub fn wait<L: Liveness>(&self, live: &L, wait: Wait) -> Result<(), OnceFailure> {
        if self.is_completed() { Ok(()) } else { self.wait_for_others(live, wait) }
    }

    #[cold]
    fn wait_for_others<L: Liveness>(&self, live: &L, wait: Wait) -> Result<(), OnceFailure> {
        if self.lock.is_mine(live) {
            return Err(OnceFailure::WouldDeadlock);
        }
        wait_for(live, &self.ended, wait, |effort| {
            if self.is_completed() {
                return Some(Ok(()));
            }
            let nobody_left =
                effort.is_full() && live.is_alone() && !self.is_running(|runner| live.is_gone(runner));
            // Who has gone or ended may have done it just before.
            nobody_left.then(|| if self.is_completed() { Ok(()) } else { Err(OnceFailure::PeerDied) })
        })?
    }

    /// True if somebody of whom `is_gone` does not hold was doing it a moment ago.
    pub fn is_running(&self, is_gone: impl Fn(Owner) -> bool) -> bool {
        let runner = Owner::from_bits(self.runner.load(Ordering::Acquire));
        runner.is_some_and(|runner| !self.is_completed() && !is_gone(runner))
    }

    /// The word of the lock on which waiters sleep, for tests.
    #[doc(hidden)]
    pub fn futex_word(&self) -> &AtomicU32 {
        self.lock.futex_word()
    }

    /// What is wrong with the words, if anything; exact if nobody uses them meanwhile. Changes nothing.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn audit(&self, is_gone: impl Fn(Owner) -> bool) -> Result<(), &'static str> {
        if self.state.load(Ordering::Relaxed) > PANICKED {
            return Err("the state has bits that mean nothing");
        }
        let runner = self.runner.load(Ordering::Relaxed);
        if runner != 0 && Owner::from_bits(runner).is_none() {
            return Err("what is no participant is doing it");
        }
        if self.is_running(is_gone) && !self.lock.is_locked() {
            return Err("somebody is doing it without the lock");
        }
        Ok(())
    }
}
