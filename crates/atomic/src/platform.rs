//! What the algorithms ask of the world: who am I, sleep, wake, who has died.
//!
//! Two traits, so that loom models, heap-backed tests and foreign runtimes can answer in the place of
//! Linux: [`Platform`] is the calling thread and its kernel, [`Liveness`] adds the participants.

use core::num::NonZeroU64;
use core::time::Duration;

use crate::{AtomicU32, OWNER_DIED};

/// A moment on CLOCK_MONOTONIC, in nanoseconds. All processes of one machine read the same clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub u64);

impl Deadline {
    /// `self + duration`, or the last representable moment.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The identity under which a participant holds things: `slot:16 | generation:46`, never zero.
///
/// A slot of the participant table is reused, a generation of a slot never is, so an `Owner` left in
/// shared memory can not be mistaken for a later process in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(NonZeroU64);

impl Owner {
    /// Generations are counted modulo 2^46 (the two topmost bits of the packed word are for the algorithms).
    pub const GENERATION_BITS: u32 = 46;

    /// Packs slot and generation; `None` for generation 0, which no participant ever has.
    #[must_use]
    pub fn new(slot: u16, generation: u64) -> Option<Self> {
        let generation = generation & ((1 << Self::GENERATION_BITS) - 1);
        if generation == 0 {
            return None;
        }
        NonZeroU64::new(u64::from(slot) | generation << 16).map(Self)
    }

    /// The value as it stands in a shared word.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0.get()
    }

    /// Reads an identity out of a shared word; `None` if the bits are no identity.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        if bits >> 62 != 0 {
            return None;
        }
        Self::new(bits as u16, bits >> 16)
    }

    /// Index in the participant table.
    #[must_use]
    pub fn slot(self) -> u16 {
        self.0.get() as u16
    }

    /// Generation of that slot.
    #[must_use]
    pub fn generation(self) -> u64 {
        self.0.get() >> 16
    }
}

/// What was announced before [`Platform::announce`], and what is now; for [`Platform::retract`].
#[derive(Clone, Copy, Debug)]
#[must_use = "the announcement stands until it is retracted"]
pub struct Pending {
    /// What `list_op_pending` held before; 0 for nothing.
    pub before: usize,
    /// What it holds now; 0 where nothing can be announced.
    pub now: usize,
}

impl Pending {
    /// True if this is announced, and nothing else of this thread was before.
    #[inline]
    #[must_use]
    pub fn is_outermost(self) -> bool {
        self.before == 0 && self.now != 0
    }
}

/// The calling thread and its kernel.
pub trait Platform {
    /// The kernel's id of the calling thread, in the format of a robust word: not zero, at most [`crate::TID`].
    fn tid(&self) -> u32;

    /// From here to [`retract`](Self::retract) the kernel treats `word` as being acquired or released by
    /// this thread: should the thread die, a `word` with its TID becomes [`crate::OWNER_DIED`] and one
    /// sleeper is woken; a `word` whose TID field is 0 has one sleeper woken.
    fn announce(&self, word: &AtomicU32) -> Pending;

    /// Ends the announcement. What was announced before is put back, so that announcements nest.
    fn retract(&self, pending: Pending);

    /// Notes that this thread holds `word`, which stays announced. Nothing needs to be noted when it is released.
    fn hold_announced(&self, word: &AtomicU32);

    /// Notes that this thread holds `word` and does not announce it, so that it is given up should the thread end
    /// without releasing it.
    fn hold(&self, word: &AtomicU32);

    /// The word that was locked last is not given up when the thread ends: references to what it guards may live on.
    fn keep(&self, word: &AtomicU32);

    /// Ends [`hold`](Self::hold). Words may be released in any order.
    fn unhold(&self, word: &AtomicU32);

    /// Sleeps until woken, until `word != expected`, until one of the words of `also` has another value than
    /// the one beside it, or until the deadline. May return at any time without a reason: callers re-check what
    /// they wait for.
    fn wait(&self, word: &AtomicU32, expected: u32, also: &[(&AtomicU32, u32)], until: Option<Deadline>);

    /// Wakes at most `count` sleepers of `word` in any process; returns how many.
    fn wake(&self, word: &AtomicU32, count: u32) -> u32;

    /// The time.
    fn now(&self) -> Deadline;

    /// False only if it is certain that no thread has this id now.
    fn thread_exists(&self, tid: u32) -> bool;

    /// How many pauses to spin before sleeping (0 on a machine with one CPU).
    fn spins(&self) -> u32;
}

/// Who takes part, and who has died.
///
/// "Dead" is always *proven*: the kernel has said that the process is gone, or has replaced its memory by
/// exec. A participant that is stopped, slow or dumping core is not dead.
pub trait Liveness: Platform {
    /// The participant that the calling process is.
    fn me(&self) -> Owner;

    /// True only if `owner` is proven dead or has left in good order.
    fn is_dead(&self, owner: Owner) -> bool;

    /// A word that the kernel changes, waking one sleeper, when `owner` dies; with the value it has while
    /// `owner` lives. `None` if there is none: then sleeps are cut in short slices.
    fn token(&self, owner: Owner) -> Option<(&AtomicU32, u32)>;

    /// Called by a waiter whose owner is suspected (its token was marked) but not yet proven dead: sleeps
    /// until the proof is likely to be there, or until the deadline.
    fn await_proof(&self, owner: Owner, until: Option<Deadline>);

    /// A number that changes when somebody has come, left, or died and been found dead.
    fn comings(&self) -> u32;

    /// Sleeps as [`wait`](Platform::wait) does, and no longer than until any other participant has died: then whoever
    /// sleeps here is woken, and finds that one dead by [`is_gone`](Self::is_gone). `comings` is what
    /// [`comings`](Self::comings) was *before* the caller's last look at what it waits for.
    ///
    /// So a sleeper need not know for whom it waits: a holder, a party, or somebody who was killed between a change
    /// and the wake-up that should have followed. Callers look again at all they wait for.
    fn wait_among_peers(&self, word: &AtomicU32, expected: u32, comings: u32, until: Option<Deadline>);

    /// True if there were other participants since this one came, and none is left.
    fn is_alone(&self) -> bool;

    /// As [`is_dead`](Self::is_dead), and cheap for who lives: the proof is only looked for if the token says so
    /// or if there is none.
    fn is_gone(&self, owner: Owner) -> bool {
        let suspect = self.token(owner).is_none_or(|(_, value)| value & OWNER_DIED != 0);
        suspect && self.is_dead(owner)
    }
}
