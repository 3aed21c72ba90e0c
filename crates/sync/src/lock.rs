//! The robust lock.
//!
//! ```text
//!  0  word   u32  TID | OWNER_DIED | WAITERS, the kernel's robust-futex format
//!  4  state  u32  INCONSISTENT | POISONED; written by the holder only
//!  8  owner  u64  participant that holds the lock; RECOVERING | participant: taking over; 0: see below
//! 16  depth  u32  how often the holder has locked it again (RLock); written by the holder only
//! 20  (unused)
//! ```
//!
//! What the pair (word, owner) says; WAITERS may be set in every row:
//!
//! | word        | owner        | state                                            | if the thread T dies now      |
//! |-------------|--------------|--------------------------------------------------|-------------------------------|
//! | 0           | any          | free                                             |                               |
//! | OWNER_DIED  | any          | free; a death is to be reported if `owner` names somebody |                      |
//! | T           | 0            | T has just taken it, or is about to release it   | the kernel marks it           |
//! | T           | P            | held by thread T of participant P                | the kernel, or a waiter       |
//! | T           | RECOVERING S | P is proven dead, S is about to replace T        | (T is dead)                   |
//! | T           | SUSPECTING S | as 0; S believes that T is gone and has yet to prove it | as 0                   |
//! | T+OWNER_DIED| any          | T took it from the dead, `owner` is stale        | the kernel marks it           |
//!
//! A thread is *announced* (see [`announce`](crossproc_atomic::Platform::announce)) from its first look at the word
//! until it has released it again, if it holds no other lock; an inner lock is announced while it is acquired and
//! while it is released. When an announced thread dies, the kernel turns its TID into OWNER_DIED and wakes one
//! sleeper, or, if it died after it swallowed a wake-up, wakes another one. In the middle of an inner lock nothing
//! is announced: there `owner` says whom to prove dead, and waiters also sleep on that participant's token.
//!
//! Who may write what: `word` moves from 0 or OWNER_DIED to T by T's compare-and-swap; WAITERS may be set by
//! anybody while T holds; T releases it; the kernel replaces it for a dead T that announced. `owner` is written by T
//! while it has the word. Beyond that it changes by compare-and-swap only, as a *ticket*: one recoverer at a time may
//! take the word from a dead T, so that none of them can act on an old proof after another one has recovered the lock
//! and a newborn thread has taken it under the old id. The two tickets promise different things: RECOVERING stands
//! only for a participant that was proven dead, so T is dead as well; SUSPECTING stands for an empty `owner`, which a
//! living T leaves for a moment whenever it takes or releases the lock, and so it proves nothing.
//!
//! Deaths are reported exactly: the next owner is told if and only if the dead thread's participant (or who was
//! recovering from it) stood in `owner`, that is, if it had the lock and had not begun to release it.
//!
//! A release under contention leaves WAITERS in the word: whoever takes the lock next then wakes somebody when
//! he releases it, so a woken waiter that is killed strands nobody. When nobody was woken the bit goes.
//!
//! What wake-ups alone can not do, and a slice (sleeps end after 50 ms to 1 s and everything is looked at again)
//! must: a waker or a woken one that is *stopped* in between; a kernel that misses an announcement; a sleeper at an
//! inner lock that slept on the token of an owner who has handed the lock on to one that died.
//!
//! `tests/protocol.rs` has this protocol as an explicit-state model: every interleaving, with deaths at every step,
//! stops, reused thread ids and a failing kernel; and some thirty changes to it that must each be caught.
//!
//! Memory ordering. The only thing others may rely on is that what a holder did is visible to the next holder:
//! the release of `word` (Release) pairs with the acquiring compare-and-swap (Acquire). For a dead holder the
//! kernel stands between: its proof, or its mark, comes after all that the dead thread did, and whoever has seen
//! the proof has seen all that. Tickets need one thing more: who has read T in the word (Acquire) must not succeed
//! in replacing an `owner` that is older than that. So T stores `owner` before it clears OWNER_DIED (Release), and 0
//! before it releases the word (Release). For the rest `owner` may be read stale: the compare-and-swap then fails.
//! (loom executes stores in modification order and so can not see that this is needed.)
//!
//! Sources: Linux `Documentation/locking/robust-futex-ABI.rst` and `kernel/futex/core.c` (what the kernel does
//! at a thread's death); U. Drepper, "Futexes are tricky" (the three-state mutex).

use core::time::Duration;

use crossproc_atomic::{
    AtomicU32, AtomicU64, Deadline, Liveness, OWNER_DIED, Ordering, Owner, Pending, TID, WAITERS, pause,
    shared_struct,
};

use crate::wait::{SLICE_MAX, SLICE_MIN, earlier};

/// In `owner`: that participant is taking the lock over from one that is proven dead.
const RECOVERING: u64 = 1 << 63;
/// In `owner`: that participant is finding out whether the thread in the word is gone.
const SUSPECTING: u64 = 1 << 62;
/// In `state`: a holder died, and nobody has said since that the data is consistent.
pub(crate) const INCONSISTENT: u32 = 1;
/// In `state`: a holder panicked, and nobody has said since that the data is consistent.
pub(crate) const POISONED: u32 = 2;

/// Pauses between two looks at the word, at the most.
const SPIN_GAP_MAX: u32 = 16;
/// A holder between two instructions of its own: look again soon.
const SLICE_WINDOW: Duration = Duration::from_millis(1);

shared_struct! {
    /// The words of one lock. All zero: free and consistent.
    pub struct LockWords: 24 {
        word: AtomicU32,
        state: AtomicU32,
        owner: AtomicU64,
        depth: AtomicU32,
        unused: AtomicU32,
    }
}

/// What the last holders left behind, told to each new one until [`LockWords::mark_consistent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks(pub(crate) u32);

impl Marks {
    /// Nothing is known to be wrong.
    #[inline]
    #[must_use]
    pub fn is_clean(self) -> bool {
        self.0 == 0
    }

    /// A holder died while it held the lock.
    #[must_use]
    pub fn owner_died(self) -> bool {
        self.0 & INCONSISTENT != 0
    }

    /// A holder panicked while it held the lock.
    #[must_use]
    pub fn poisoned(self) -> bool {
        self.0 & POISONED != 0
    }
}

/// Why a lock was not acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockFailure {
    /// Somebody else holds it (`try_lock`).
    WouldBlock,
    /// Somebody else held it until the deadline.
    TimedOut,
    /// The calling thread holds it already.
    WouldDeadlock,
}

impl LockWords {
    /// Acquires the lock, waiting until the deadline (or for ever).
    ///
    /// # Errors
    ///
    /// [`LockFailure::TimedOut`] at the deadline; [`LockFailure::WouldDeadlock`] if the calling thread has it.
    #[inline]
    pub fn lock<L: Liveness>(&self, live: &L, until: Option<Deadline>) -> Result<Marks, LockFailure> {
        let tid = live.tid();
        let pending = live.announce(&self.word);
        if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(self.own(live, pending));
        }
        self.lock_contended(live, tid, pending, Some(until))
    }

    /// Acquires the lock if it is free, or if its holder is proven dead.
    ///
    /// # Errors
    ///
    /// [`LockFailure::WouldBlock`] or [`LockFailure::WouldDeadlock`].
    #[inline]
    pub fn try_lock<L: Liveness>(&self, live: &L) -> Result<Marks, LockFailure> {
        let tid = live.tid();
        let pending = live.announce(&self.word);
        if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(self.own(live, pending));
        }
        self.lock_contended(live, tid, pending, None)
    }

    /// Releases the lock. Does nothing if the calling thread does not have it.
    #[inline(always)]
    pub fn unlock<L: Liveness>(&self, live: &L) {
        let tid = live.tid();
        let held = self.word.load(Ordering::Relaxed);
        if held & TID != tid {
            return; // the copy of a guard in a forked child, or a peer that scribbles
        }
        let pending = live.announce(&self.word);
        self.owner.store(0, Ordering::Relaxed);
        let alone =
            held == tid && self.word.compare_exchange(tid, 0, Ordering::Release, Ordering::Relaxed).is_ok();
        if !alone {
            self.unlock_contended(live, tid);
        }
        // Announced as the outermost one is, or as an inner one just now?
        if pending.now != 0 && pending.before == pending.now {
            live.retract(Pending { before: 0, now: pending.now });
        } else {
            self.leave_inner(live, pending);
        }
    }

    #[cold]
    fn leave_inner<L: Liveness>(&self, live: &L, pending: Pending) {
        live.retract(pending);
        live.unhold(&self.word);
    }

    /// The word has our TID and no OWNER_DIED.
    #[inline]
    fn own<L: Liveness>(&self, live: &L, pending: Pending) -> Marks {
        self.owner.store(live.me().bits(), Ordering::Relaxed);
        self.settle(live, pending)
    }

    /// The word has our TID and OWNER_DIED: if somebody died *with* it, mark the data before we put our name over his.
    fn own_from_the_dead<L: Liveness>(&self, live: &L, pending: Pending) -> Marks {
        if names_a_holder(self.owner.load(Ordering::Relaxed)) {
            self.state.store(self.state.load(Ordering::Relaxed) | INCONSISTENT, Ordering::Relaxed);
        }
        self.depth.store(0, Ordering::Relaxed);
        self.owner.store(live.me().bits(), Ordering::Relaxed);
        self.word.fetch_and(!OWNER_DIED, Ordering::Release); // mutant: equivalent, because loom can not tell: it executes stores in modification order
        self.settle(live, pending)
    }

    /// The lock is ours and says so.
    #[inline]
    fn settle<L: Liveness>(&self, live: &L, pending: Pending) -> Marks {
        // The outermost lock stays announced: should we die with it, the kernel itself tells the next one.
        if pending.is_outermost() {
            live.hold_announced(&self.word);
        } else {
            self.settle_inner(live, pending);
        }
        Marks(self.state.load(Ordering::Relaxed))
    }

    #[cold]
    fn settle_inner<L: Liveness>(&self, live: &L, pending: Pending) {
        live.hold(&self.word);
        live.retract(pending);
    }

    /// `wait`: `None` to try only, else until when.
    #[cold]
    fn lock_contended<L: Liveness>(
        &self,
        live: &L,
        tid: u32,
        pending: Pending,
        wait: Option<Option<Deadline>>,
    ) -> Result<Marks, LockFailure> {
        let mut slept = 0;
        let (mut spins, mut gap) = (if wait.is_some() { live.spins() } else { 0 }, 1);
        let mut slice = SLICE_MIN;
        let give_up = |why: LockFailure| {
            live.retract(pending);
            Err(why)
        };
        loop {
            let mut seen = self.word.load(Ordering::Acquire); // mutant: equivalent, because loom can not tell: it executes stores in modification order
            if seen & TID == 0 {
                // Who slept keeps WAITERS in the word: others may still be asleep.
                let taken = seen & (WAITERS | OWNER_DIED) | tid | slept;
                if self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    let dead = seen & OWNER_DIED != 0;
                    return Ok(if dead {
                        self.own_from_the_dead(live, pending)
                    } else {
                        self.own(live, pending)
                    });
                }
                continue;
            }
            if seen & TID == tid && (self.is_mine(live) || self.may_be_below(live, seen, pending)) {
                return give_up(LockFailure::WouldDeadlock);
            }
            if spins > 0 {
                // Looking takes the line from the holder: look ever less often.
                for _ in 0..gap {
                    pause();
                }
                spins = spins.saturating_sub(gap);
                gap = (gap * 2).min(SPIN_GAP_MAX);
                continue;
            }
            // From here on nobody may release the word without waking somebody.
            if wait.is_some() && seen & WAITERS == 0 {
                let asked = seen | WAITERS;
                if self.word.compare_exchange(seen, asked, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                    continue;
                }
                seen = asked;
            }
            let bits = self.owner.load(Ordering::Relaxed);
            let holder = named(bits);
            // Our own token would wake us only to die, in the place of somebody who could act.
            let token = holder.filter(|&owner| owner != live.me()).and_then(|owner| live.token(owner));
            let dying = token.is_some_and(|(_, value)| value & OWNER_DIED != 0);
            if let (true, Some((word, _))) = (dying, token) {
                live.wake(word, u32::MAX); // the kernel woke one sleeper: that one wakes the rest
            }
            let ask = dying
                || slept != 0
                || wait.is_none()
                || seen & TID == tid
                || (token.is_none() && holder.is_some());
            let dead = ask && holder.is_some_and(|owner| live.is_dead(owner));
            if ask && (dead || holder.is_none()) && self.take_over(live, tid, seen, bits) {
                return Ok(self.own_from_the_dead(live, pending));
            }
            // Only here, with WAITERS set and the token passed on, does giving up strand nobody.
            let Some(until) = wait else { return give_up(LockFailure::WouldBlock) };
            let now = live.now();
            if until.is_some_and(|until| now >= until) {
                return give_up(LockFailure::TimedOut);
            }
            slept = WAITERS;
            match holder {
                Some(owner) if dying && !dead => live.await_proof(owner, until),
                Some(_) if !dead => {
                    live.wait(
                        &self.word,
                        seen,
                        token.as_slice(),
                        Some(earlier(until, now.saturating_add(slice))),
                    );
                    if token.is_some() {
                        slice = (slice * 2).min(SLICE_MAX);
                    }
                }
                // The holder is between two steps: soon `owner` will have its name.
                _ => {
                    let soon = earlier(until, now.saturating_add(SLICE_WINDOW));
                    live.wait(&self.word, seen, &[], Some(soon));
                }
            }
            if let Some((word, alive)) = token {
                if word.load(Ordering::Relaxed) != alive {
                    live.wake(word, u32::MAX);
                }
            }
        }
    }

    /// The word has our TID, but not our name. If nothing else of this thread is announced, a dead namesake left it.
    /// Otherwise it may be an interrupted frame of this very thread, unless somebody else's name says that it is not.
    fn may_be_below<L: Liveness>(&self, live: &L, seen: u32, pending: Pending) -> bool {
        let bits = self.owner.load(Ordering::Relaxed);
        let another_has_it = seen & OWNER_DIED == 0 && names_a_holder(bits) && named(bits) != Some(live.me());
        !pending.is_outermost() && !another_has_it
    }

    #[cold]
    fn unlock_contended<L: Liveness>(&self, live: &L, tid: u32) {
        // WAITERS can not go while we hold. If the word is anything else, it was scribbled over: not ours to change.
        let held = tid | WAITERS;
        if self.word.compare_exchange(held, WAITERS, Ordering::Release, Ordering::Relaxed).is_ok()
            && live.wake(&self.word, 1) == 0
        {
            // Nobody slept. If somebody has come meanwhile the bit stays, which costs one useless wake.
            let _ = self.word.compare_exchange(WAITERS, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Takes the word from a thread that is proven to be no more. On success the word has our TID and OWNER_DIED.
    ///
    /// `seen` and `bits` are word and owner as they were read, in this order. If `bits` names a participant, it is
    /// proven dead.
    fn take_over<L: Liveness>(&self, live: &L, tid: u32, seen: u32, bits: u64) -> bool {
        let unchanged = |word: u32| (word ^ seen) & !WAITERS == 0;
        let thread_gone = || seen & TID == tid || !live.thread_exists(seen & TID);
        // A dead holder's name proves its thread dead, but only in a word that has not changed since.
        let recovers = seen & OWNER_DIED == 0 && names_a_holder(bits);
        let again = self.word.load(Ordering::Acquire); // mutant: equivalent, because loom can not tell: it executes stores in modification order
        if !(if recovers { unchanged(again) } else { thread_gone() }) {
            return false;
        }
        let ticket = live.me().bits() | if names_a_holder(bits) { RECOVERING } else { SUSPECTING };
        if self.owner.compare_exchange(bits, ticket, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        // Relaxed: read-modify-writes see the newest value, and the proof has put us after all that the dead one did.
        // With the ticket nobody else takes over. A suspicion is proven once more under it: the id may have gone to
        // a newborn which got the lock in an orderly way.
        let mut word = self.word.load(Ordering::Relaxed);
        if recovers || (unchanged(word) && thread_gone()) {
            while unchanged(word) {
                let taken = tid | OWNER_DIED | WAITERS;
                match self.word.compare_exchange(word, taken, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return true,
                    Err(now) => word = now,
                }
            }
        }
        let _ = self.owner.compare_exchange(ticket, bits, Ordering::Relaxed, Ordering::Relaxed);
        false
    }

    /// True if the calling thread holds the lock.
    pub fn is_mine<L: Liveness>(&self, live: &L) -> bool {
        let seen = self.word.load(Ordering::Relaxed);
        seen & TID == live.tid()
            && seen & OWNER_DIED == 0
            && self.owner.load(Ordering::Relaxed) == live.me().bits()
    }

    /// True if somebody held the lock a moment ago.
    pub fn is_locked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & TID != 0
    }

    /// The thread that held the lock a moment ago, as the kernel numbers it; 0 for nobody.
    pub fn holder_tid(&self) -> u32 {
        self.word.load(Ordering::Relaxed) & TID
    }

    /// The word on which waiters sleep, for tests and tools that play the kernel's part.
    #[doc(hidden)]
    pub fn futex_word(&self) -> &AtomicU32 {
        &self.word
    }

    /// The marks that the next holder will be told. Exact only for the holder.
    pub fn marks(&self) -> Marks {
        Marks(self.state.load(Ordering::Relaxed) & (INCONSISTENT | POISONED))
    }

    /// The holder says that the data is consistent (again).
    pub fn mark_consistent(&self) {
        self.state.store(0, Ordering::Relaxed);
    }

    /// The holder says that it panicked.
    pub fn mark_poisoned(&self) {
        self.state.store(self.state.load(Ordering::Relaxed) | POISONED, Ordering::Relaxed);
    }

    /// How often the holder has locked it again.
    pub fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// The holder sets how often it has locked it again.
    pub fn set_depth(&self, depth: u32) {
        self.depth.store(depth, Ordering::Relaxed);
    }
}

/// The participant that `owner` names, in whatever role.
fn named(bits: u64) -> Option<Owner> {
    Owner::from_bits(bits & !(RECOVERING | SUSPECTING))
}

/// True if somebody had the lock (or was recovering it from one who had) and not merely reached for it.
fn names_a_holder(bits: u64) -> bool {
    bits & SUSPECTING == 0 && named(bits).is_some()
}
