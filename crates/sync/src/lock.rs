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
//! What the pair (word, owner) says; W is the WAITERS bit, which may be set in every row:
//!
//! | word        | owner         | state                                            | if thread T dies now          |
//! |-------------|---------------|--------------------------------------------------|-------------------------------|
//! | 0           | 0             | free                                             |                               |
//! | OWNER_DIED  | any           | the holder died; free to take, to be reported    |                               |
//! | T           | 0             | T is about to write `owner`, or about to release | kernel marks it (announced)   |
//! | T+DIED      | any           | T took it from a dead holder, `owner` is stale   | kernel marks it (announced)   |
//! | T           | P             | held by thread T of participant P                | a waiter takes over, on proof |
//! | T           | RECOVERING+S  | P is proven dead and S is taking over            | (T is dead) another replaces S|
//!
//! *Announced* means that T's `list_op_pending` points at the word (see [`announce`](crossproc_atomic::Platform::announce)): T announces
//! before its first write and until `owner` is written, and again around the release. In between nothing
//! needs to be announced, because `owner` says whom to prove dead. A waiter stays announced from its first
//! look until it has the lock or gives up: if it is killed after it swallowed a wake-up, the kernel wakes
//! the next one.
//!
//! Who may write what: `word` moves from 0 or OWNER_DIED to T by T's compare-and-swap; WAITERS may be set by
//! anybody while T holds; T releases it; the kernel replaces it for a dead T that announced. `owner` is written
//! by T (from the moment it has the word) and, once P is *proven* dead, moved by compare-and-swap from P to
//! RECOVERING+S, which is S's sole right to take the word from the dead T: without that ticket a stopped waiter
//! could wake up late and take the lock from a newcomer that happens to have the dead one's TID.
//!
//! A release under contention leaves WAITERS in the word: whoever takes the lock next then wakes somebody when
//! he releases it, so a woken waiter that is killed strands nobody. When nobody was woken the bit goes.
//!
//! Memory ordering. The only thing others may rely on is that what a holder did is visible to the next holder:
//! the release of `word` (Release) pairs with the acquiring compare-and-swap (Acquire). For a dead holder the
//! kernel stands between: its proof, or its mark, comes after all that the dead thread did. `owner` is read
//! after `word` (Acquire): one that reads T without OWNER_DIED sees either the 0 that the last release stored
//! before it (Release), or the identity stored before OWNER_DIED was cleared (Release), or a later value.
//!
//! Sources: Linux `Documentation/locking/robust-futex-ABI.rst` and `kernel/futex/core.c` (what the kernel does
//! at a thread's death); U. Drepper, "Futexes are tricky" (the three-state mutex).

use core::time::Duration;

use crossproc_atomic::{
    AtomicU32, AtomicU64, Deadline, Liveness, OWNER_DIED, Ordering, Owner, Pending, TID, WAITERS, pause,
    shared_struct,
};

/// In `owner`: that participant is taking the lock over from a dead one.
const RECOVERING: u64 = 1 << 63;
/// In `state`: a holder died, and nobody has said since that the data is consistent.
const INCONSISTENT: u32 = 1;
/// In `state`: a holder panicked, and nobody has said since that the data is consistent.
const POISONED: u32 = 2;

/// Sleeps are cut into slices, because whoever should wake us may have been stopped or killed before it did.
const SLICE_MIN: Duration = Duration::from_millis(50);
const SLICE_MAX: Duration = Duration::from_secs(1);
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
pub struct Marks(u32);

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

/// What `owner` says of a word whose TID is not 0.
#[derive(Clone, Copy, Debug)]
enum Holder {
    /// The thread is between two steps; nobody can be named. The bits are what `owner` held.
    Window(u64),
    /// Held (or being taken over) by this participant. The bits are what `owner` held.
    Known(Owner, u64),
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
        let before = live.announce(&self.word);
        if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(self.own(live, before));
        }
        self.lock_contended(live, tid, before, Some(until))
    }

    /// Acquires the lock if it is free, or if its holder is proven dead.
    ///
    /// # Errors
    ///
    /// [`LockFailure::WouldBlock`] or [`LockFailure::WouldDeadlock`].
    #[inline]
    pub fn try_lock<L: Liveness>(&self, live: &L) -> Result<Marks, LockFailure> {
        let tid = live.tid();
        let before = live.announce(&self.word);
        if self.word.compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(self.own(live, before));
        }
        self.lock_contended(live, tid, before, None)
    }

    /// Releases the lock. The calling thread must hold it; otherwise nothing is promised but memory safety.
    #[inline]
    pub fn unlock<L: Liveness>(&self, live: &L) {
        let before = live.announce(&self.word);
        self.owner.store(0, Ordering::Relaxed);
        let held = self.word.load(Ordering::Relaxed);
        let alone = held & WAITERS == 0;
        if !alone || self.word.compare_exchange(held, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.unlock_contended(live);
        }
        live.retract(before);
        live.unhold(&self.word);
    }

    /// The word has our TID and no OWNER_DIED: write `owner` and end the announcement.
    #[inline]
    fn own<L: Liveness>(&self, live: &L, before: Pending) -> Marks {
        self.owner.store(live.me().bits(), Ordering::Relaxed);
        live.retract(before);
        live.hold(&self.word);
        Marks(self.state.load(Ordering::Relaxed))
    }

    /// The word has our TID and OWNER_DIED: mark the data before anybody could take us for a clean holder.
    fn own_from_the_dead<L: Liveness>(&self, live: &L, before: Pending) -> Marks {
        let marked = self.state.load(Ordering::Relaxed) | INCONSISTENT;
        self.state.store(marked, Ordering::Relaxed);
        self.depth.store(0, Ordering::Relaxed);
        self.owner.store(live.me().bits(), Ordering::Relaxed);
        self.word.fetch_and(!OWNER_DIED, Ordering::Release);
        live.retract(before);
        live.hold(&self.word);
        Marks(marked)
    }

    /// `wait`: `None` to try only, else until when.
    #[cold]
    fn lock_contended<L: Liveness>(
        &self,
        live: &L,
        tid: u32,
        before: Pending,
        wait: Option<Option<Deadline>>,
    ) -> Result<Marks, LockFailure> {
        let mut slept = 0;
        let mut spins = if wait.is_some() { live.spins() } else { 0 };
        let mut slice = SLICE_MIN;
        let give_up = |before: Pending, why: LockFailure| {
            live.retract(before);
            Err(why)
        };
        loop {
            let seen = self.word.load(Ordering::Acquire);
            if seen & TID == 0 {
                // Who slept keeps WAITERS in the word: others may still be asleep.
                let taken = seen & (WAITERS | OWNER_DIED) | tid | slept;
                if self.word.compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    let dead = seen & OWNER_DIED != 0;
                    return Ok(if dead { self.own_from_the_dead(live, before) } else { self.own(live, before) });
                }
                continue;
            }
            let holder = self.holder(seen);
            if seen & TID == tid && self.is_this_thread(live, &before, holder) {
                return give_up(before, LockFailure::WouldDeadlock);
            }
            if spins > 0 {
                spins -= 1;
                pause();
                continue;
            }
            let (token, suspected) = watch(live, holder, wait.is_none() || slept != 0);
            if (suspected || seen & TID == tid) && self.take_over(live, tid, seen, holder) {
                return Ok(self.own_from_the_dead(live, before));
            }
            let Some(until) = wait else { return give_up(before, LockFailure::WouldBlock) };
            let now = live.now();
            if until.is_some_and(|until| now >= until) {
                return give_up(before, LockFailure::TimedOut);
            }
            if seen & WAITERS == 0
                && self.word.compare_exchange(seen, seen | WAITERS, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            slept = WAITERS;
            match holder {
                // Its process is dying: nobody will wake us through the word.
                Holder::Known(owner, _) if suspected && token.is_some() => live.await_proof(owner, until),
                Holder::Known(..) => {
                    live.wait(&self.word, seen | WAITERS, token, Some(earlier(until, now.saturating_add(slice))));
                    if token.is_some() {
                        slice = (slice * 2).min(SLICE_MAX);
                    }
                }
                Holder::Window(_) => {
                    let soon = now.saturating_add(SLICE_WINDOW);
                    live.wait(&self.word, seen | WAITERS, None, Some(earlier(until, soon)));
                }
            }
            // The kernel wakes one waiter per token: the woken one wakes the rest.
            if let Some((word, alive)) = token {
                if word.load(Ordering::Relaxed) != alive {
                    live.wake(word, u32::MAX);
                }
            }
        }
    }

    #[cold]
    fn unlock_contended<L: Liveness>(&self, live: &L) {
        self.word.swap(WAITERS, Ordering::Release);
        if live.wake(&self.word, 1) == 0 {
            // Nobody slept. If somebody has come meanwhile the bit stays, which costs one useless wake.
            let _ = self.word.compare_exchange(WAITERS, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn holder(&self, seen: u32) -> Holder {
        let bits = self.owner.load(Ordering::Acquire);
        match Owner::from_bits(bits & !RECOVERING) {
            // `owner` belongs to `seen` only if the word is still the same and is not OWNER_DIED.
            Some(owner)
                if seen & OWNER_DIED == 0
                    && (self.word.load(Ordering::Acquire) ^ seen) & !WAITERS == 0 =>
            {
                Holder::Known(owner, bits)
            }
            _ => Holder::Window(bits),
        }
    }

    /// The word has our TID: is it really ours, or a dead namesake's?
    fn is_this_thread<L: Liveness>(&self, live: &L, before: &Pending, holder: Holder) -> bool {
        let mine = matches!(holder, Holder::Known(owner, bits) if owner == live.me() && bits & RECOVERING == 0);
        mine || live.interrupted(before, &self.word)
    }

    /// Takes the word from a thread that is proven to be no more. On success the word has our TID and OWNER_DIED.
    fn take_over<L: Liveness>(&self, live: &L, tid: u32, seen: u32, holder: Holder) -> bool {
        let gone = |holder| match holder {
            Holder::Known(owner, _) => live.is_dead(owner),
            Holder::Window(_) => seen & TID == tid || !live.thread_exists(seen & TID),
        };
        let (Holder::Known(_, bits) | Holder::Window(bits)) = holder;
        if !gone(holder) {
            return false;
        }
        let ticket = live.me().bits() | RECOVERING;
        if self.owner.compare_exchange(bits, ticket, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // With the ticket nobody else takes over. What is left is a newcomer with the dead thread's id that got
        // the lock in an orderly way before: it shows in the word, or, in the window, in that the thread lives.
        let mut word = self.word.load(Ordering::Acquire);
        while (word ^ seen) & !WAITERS == 0 && gone(holder) {
            let taken = tid | OWNER_DIED | WAITERS;
            match self.word.compare_exchange(word, taken, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        let _ = self.owner.compare_exchange(ticket, bits, Ordering::Release, Ordering::Relaxed);
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

/// The token to watch while waiting for `holder`, and whether there is reason to ask for proof of its death.
fn watch<L: Liveness>(live: &L, holder: Holder, waited: bool) -> (Option<(&AtomicU32, u32)>, bool) {
    // A window lasts a few instructions: no reason to ask before it has outlasted a sleep.
    let Holder::Known(owner, _) = holder else { return (None, waited) };
    match live.token(owner) {
        Some((word, value)) => (Some((word, value)), value & OWNER_DIED != 0),
        // No token to watch: ask each time.
        None => (None, true),
    }
}

fn earlier(until: Option<Deadline>, slice: Deadline) -> Deadline {
    until.map_or(slice, |until| until.min(slice))
}
