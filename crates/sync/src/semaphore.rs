//! Semaphores whose permits come back when the process that holds them dies: counting, and binary.
//!
//! # Counting
//!
//! ```text
//!  semaphore
//!   0  word        u64  count:20 | slot:16 | number:26 | kind:2; permits that are free, and the last operation
//!   8  released         event count: who waits for a permit
//!  16  limit       u32  so many may be free at the most; written before anybody can find the semaphore
//!  20  (unused)
//!  cell, one for each participant slot
//!   0  state       u64  held:20 | number:44; permits that this participant holds, operations on this cell so far
//!   8  generation  u64  which participant of the slot it is
//! ```
//!
//! The number of free permits and the number that somebody holds change together, though they stand in two words: *one*
//! compare-and-swap of `word` changes the count and says what is to be done to which cell, as the operation with the next
//! `number` of that cell. Whoever wants to change `word` after that *records* the operation in the cell first (one more
//! compare-and-swap, which only the first one to come can win):
//!
//! | kind      | count                | recorded in the cell | when                                              |
//! |-----------|----------------------|----------------------|---------------------------------------------------|
//! | TAKEN     | - 1                  | held + 1             | acquire                                           |
//! | GIVEN     | + 1 (consume: + 0)   | held - 1, at least 0 | release, of what was acquired or of a new permit  |
//! | EMPTIED   | + held, or more      | held = 0             | release of all; the permits of the dead come back |
//!
//! | word names a cell whose number is | that is                                                      |
//! |-----------------------------------|--------------------------------------------------------------|
//! | one less                          | the operation has happened, and is not recorded yet          |
//! | the same, or greater              | recorded                                                     |
//!
//! Who may write: `word` everybody, by compare-and-swap from what was recorded. `state` everybody, by recording. The operations
//! on a cell are those of the participant it belongs to; of one that is dead or has left, everybody's EMPTIED.
//! `generation` is written by the participant that has the slot, when the cell holds nothing (any more).
//!
//! What a death leaves behind: before the compare-and-swap of `word` nothing has happened; after it everything has, and
//! anybody records it. Permits of the dead stand in a cell that says whose they were: who finds no permit free looks for
//! them, takes them out of the cell and adds them to the count, by the one operation EMPTIED. A process that is stopped
//! anywhere stops nobody.
//!
//! Wake-ups: who adds n permits wakes n sleepers at the most. Of a sleeper that is woken in vain because somebody else was
//! faster nothing is lost: the permit was taken, and giving it back wakes somebody again. One that is killed after it was
//! woken wakes all by its death; one that was woken when its time was up tries once more before it gives up.
//!
//! Memory ordering. Others may rely on this: what happened before a release is visible to who acquires the permit; and for
//! the protocol itself, whoever reads a `word` sees all cells as they were recorded before that. Both by `word` alone: it is
//! changed by read-modify-writes only (Release) and read (Acquire) before anything is derived from it. Cells are
//! Relaxed: a cell that was read too old lets the compare-and-swap fail, of the cell if it is recorded in, of `word` if
//! something was derived from it, since the cell can only have changed after `word` has.
//!
//! What is not excluded: a process that is stopped between its look at `word` and its next step, while others make 2^26
//! operations on one cell (or a multiple, or one less) and stop at the same count with an operation that is not recorded
//! yet, may take that one for its own view of things, and a permit is counted to the wrong side for the life of its holder.
//!
//! # Binary
//!
//! ```text
//!  0  holder    u64  the participant that took it; 0: free
//!  8  released       event count
//! ```
//!
//! `holder` moves by compare-and-swap: from 0, or from a participant that is gone, to who takes it; to 0 by anybody. There is
//! nothing between two steps, so a death leaves nothing but the name of a dead holder.
//!
//! Source for announcing an operation in the word that it changes, to be completed by whoever comes next: M. Herlihy,
//! "Wait-free synchronization", 1991 (helping).

use crossproc_atomic::{AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, shared_struct};

use crate::wait::{Wait, WaitFailure, wait_for};

shared_struct! {
    /// The words of one counting semaphore; its cells are beside it. All zero: none free, none may be.
    pub struct SemaphoreWords: 24 {
        word: AtomicU64,
        released: EventCount,
        limit: AtomicU32,
        unused: AtomicU32,
    }
}

shared_struct! {
    /// What one participant holds of a [`SemaphoreWords`].
    pub struct PermitCell: 16 {
        state: AtomicU64,
        generation: AtomicU64,
    }
}

/// Why no permit was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcquireFailure {
    /// None is free ([`Wait::Try`]).
    WouldBlock,
    /// None was free until the deadline.
    TimedOut,
    /// None is free, the caller holds none, and all other participants are gone.
    PeerDied,
}

impl From<WaitFailure> for AcquireFailure {
    fn from(failure: WaitFailure) -> Self {
        match failure {
            WaitFailure::WouldBlock => Self::WouldBlock,
            WaitFailure::TimedOut => Self::TimedOut,
        }
    }
}

/// More permits would be free than may be; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverRelease;

/// What the last operation does to its cell.
const TAKEN: u64 = 1;
const GIVEN: u64 = 2;
const EMPTIED: u64 = 3;

const COUNT_BITS: u32 = 20;
const NUMBER_BITS: u32 = 26;
const NUMBER: u64 = (1 << NUMBER_BITS) - 1;

/// `word`, read.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    #[inline]
    fn new(count: u32, slot: u16, number: u64, kind: u64) -> Self {
        Self(u64::from(count) << 44 | u64::from(slot) << 28 | (number & NUMBER) << 2 | kind)
    }
    #[inline]
    fn count(self) -> u32 {
        (self.0 >> 44) as u32
    }
    #[inline]
    fn slot(self) -> u16 {
        (self.0 >> 28) as u16
    }
    #[inline]
    fn number(self) -> u64 {
        self.0 >> 2 & NUMBER
    }
    #[inline]
    fn kind(self) -> u64 {
        self.0 & 3
    }
}

/// `state` of a cell, read.
#[derive(Clone, Copy)]
struct State(u64);

impl State {
    #[inline]
    fn held(self) -> u32 {
        (self.0 >> 44) as u32
    }
    /// The number that the next operation on the cell has.
    #[inline]
    fn next(self) -> u64 {
        (self.0 & ((1 << 44) - 1)) + 1
    }
    #[inline]
    fn after(self, kind: u64) -> Self {
        let held = match kind {
            TAKEN => (self.held() + 1).min(SemaphoreWords::MAX),
            GIVEN => self.held().saturating_sub(1),
            EMPTIED => 0,
            _ => self.held(), // scribbled
        };
        Self(u64::from(held) << 44 | self.next() & ((1 << 44) - 1))
    }
}

/// A moment at which nothing was left to be recorded.
#[derive(Clone, Copy)]
struct Seen {
    word: Word,
    /// The caller's cell.
    mine: State,
}

impl SemaphoreWords {
    /// So many permits there can be.
    pub const MAX: u32 = (1 << COUNT_BITS) - 1;

    /// The first permits, and how many may be free at the most. Before anybody else can find the semaphore.
    pub fn init(&self, permits: u32, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
        self.word.store(Word::new(permits.min(limit).min(Self::MAX), 0, 0, 0).0, Ordering::Relaxed);
    }

    /// Acquires a permit: one that is free, or that somebody dead had.
    ///
    /// `cells` has one for each participant slot; so for all methods here.
    ///
    /// # Errors
    ///
    /// See [`AcquireFailure`]. `PeerDied` only when waiting.
    ///
    /// # Panics
    ///
    /// If there is no cell for the caller; so for all methods here.
    #[inline]
    pub fn acquire<L: Liveness>(
        &self,
        cells: &[PermitCell],
        live: &L,
        wait: Wait,
    ) -> Result<(), AcquireFailure> {
        if self.take(cells, live) { Ok(()) } else { self.acquire_contended(cells, live, wait) }
    }

    #[cold]
    fn acquire_contended<L: Liveness>(
        &self,
        cells: &[PermitCell],
        live: &L,
        wait: Wait,
    ) -> Result<(), AcquireFailure> {
        wait_for(live, &self.released, wait, |effort| {
            if !effort.is_full() {
                return self.take(cells, live).then_some(Ok(()));
            }
            if self.take_also_from_the_dead(cells, live) {
                return Some(Ok(()));
            }
            // First that they are gone, then that they have left nothing behind.
            let nobody_left = wait != Wait::Try && self.held(cells, live) == 0 && live.is_alone();
            if nobody_left {
                let took = self.take_also_from_the_dead(cells, live);
                return Some(if took { Ok(()) } else { Err(AcquireFailure::PeerDied) });
            }
            None
        })?
    }

    #[inline]
    fn take<L: Liveness>(&self, cells: &[PermitCell], live: &L) -> bool {
        loop {
            let seen = self.look(cells, live);
            let Some(left) = seen.word.count().checked_sub(1) else { return false };
            if self.change(cells, live, seen, left, TAKEN) {
                return true;
            }
        }
    }

    fn take_also_from_the_dead<L: Liveness>(&self, cells: &[PermitCell], live: &L) -> bool {
        loop {
            if self.take(cells, live) {
                return true;
            }
            if !self.reclaim(cells, live) {
                return false;
            }
        }
    }

    /// Releases `n` permits: those that the caller holds, and beyond that new ones.
    ///
    /// # Errors
    ///
    /// [`OverRelease`] if more would be free than may be. (If other threads of this participant release what it holds
    /// at the same time, some of the `n` may have been released before that is found out.)
    #[inline]
    pub fn release<L: Liveness>(&self, cells: &[PermitCell], live: &L, n: u32) -> Result<(), OverRelease> {
        let mut left = n;
        let mut result = Ok(());
        while left > 0 {
            let seen = self.look(cells, live);
            let free = seen.word.count();
            if left > self.limit().saturating_sub(free) {
                result = Err(OverRelease);
                break;
            }
            // A cell is emptied at one stroke; what holds more than is released gives one at a time.
            let (more, kind) = if left >= seen.mine.held() { (left, EMPTIED) } else { (1, GIVEN) };
            if self.change(cells, live, seen, free + more, kind) {
                left -= more;
            }
        }
        self.released.notify_some_after_rmw(live, n - left);
        result
    }

    /// Gives back a permit that the caller acquired. If so many are free already as may be, it only goes.
    #[inline]
    pub fn give_back<L: Liveness>(&self, cells: &[PermitCell], live: &L) {
        self.part_with_one(cells, live, 1);
        self.released.notify_some_after_rmw(live, 1);
    }

    /// Uses up a permit that the caller acquired: it is nobody's from now on.
    #[inline]
    pub fn consume<L: Liveness>(&self, cells: &[PermitCell], live: &L) {
        self.part_with_one(cells, live, 0);
    }

    #[inline]
    fn part_with_one<L: Liveness>(&self, cells: &[PermitCell], live: &L, more: u32) {
        loop {
            let seen = self.look(cells, live);
            let free = seen.word.count();
            let count = (free + more).min(self.limit().max(free));
            if self.change(cells, live, seen, count, GIVEN) {
                return;
            }
        }
    }

    /// How many are free, those of the dead among them if nobody has found these yet.
    pub fn available<L: Liveness>(&self, cells: &[PermitCell], live: &L) -> u32 {
        while self.reclaim(cells, live) {}
        self.count()
    }

    /// How many are free. Permits of the dead that nobody has found yet are not counted.
    pub fn count(&self) -> u32 {
        Word(self.word.load(Ordering::Relaxed)).count()
    }

    /// How many may be free.
    #[inline]
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed).min(Self::MAX)
    }

    /// How many permits the caller holds.
    pub fn held<L: Liveness>(&self, cells: &[PermitCell], live: &L) -> u32 {
        self.look(cells, live).mine.held()
    }

    /// Finds a moment with everything recorded, and the caller's cell its own.
    #[inline]
    fn look<L: Liveness>(&self, cells: &[PermitCell], live: &L) -> Seen {
        let me = live.me();
        let cell = &cells[usize::from(me.slot())];
        loop {
            let word = Word(self.word.load(Ordering::Acquire));
            record(cells, word);
            let mine = State(cell.state.load(Ordering::Relaxed));
            // After `word`: what another thread of ours has done by then, it did after it had made the cell ours.
            if cell.generation.load(Ordering::Relaxed) == me.generation() {
                return Seen { word, mine };
            }
            self.adopt(cells, live, word, mine);
        }
    }

    /// Makes a cell that the last participant of our slot had our own.
    #[cold]
    fn adopt<L: Liveness>(&self, cells: &[PermitCell], live: &L, word: Word, left_behind: State) {
        let me = live.me();
        if left_behind.held() == 0 {
            cells[usize::from(me.slot())].generation.store(me.generation(), Ordering::Relaxed);
        } else {
            self.empty(cells, live, word, me.slot(), left_behind);
        }
    }

    /// One step from what was seen to `count`, with the caller's cell. False: it is no longer as it was seen.
    #[inline]
    fn change<L: Liveness>(&self, cells: &[PermitCell], live: &L, seen: Seen, count: u32, kind: u64) -> bool {
        let next = Word::new(count, live.me().slot(), seen.mine.next(), kind);
        self.step(cells, seen.word, next)
    }

    #[inline]
    fn step(&self, cells: &[PermitCell], from: Word, to: Word) -> bool {
        let done = self.word.compare_exchange(from.0, to.0, Ordering::Release, Ordering::Relaxed).is_ok();
        if done {
            record(cells, to);
        }
        done
    }

    /// Takes back what somebody dead holds. False if there is nobody; true: look again.
    #[cold]
    fn reclaim<L: Liveness>(&self, cells: &[PermitCell], live: &L) -> bool {
        let word = self.look(cells, live).word;
        for (slot, cell) in (0..=u16::MAX).zip(cells) {
            let state = State(cell.state.load(Ordering::Relaxed));
            if state.held() == 0 {
                continue;
            }
            // Both at least as new as `word`. If either is newer, `word` is no more what it was.
            let holder = Owner::new(slot, cell.generation.load(Ordering::Relaxed));
            if holder.is_some_and(|holder| live.is_gone(holder)) {
                self.empty(cells, live, word, slot, state);
                return true;
            }
        }
        false
    }

    /// Adds what a cell holds to the count, unless `word` has changed.
    fn empty<L: Liveness>(&self, cells: &[PermitCell], live: &L, word: Word, slot: u16, cell: State) {
        let free = word.count();
        let count = (free + cell.held()).min(self.limit().max(free));
        if self.step(cells, word, Word::new(count, slot, cell.next(), EMPTIED)) {
            self.released.notify_after_rmw(live);
        }
    }

    /// What is wrong with the words, if anything; exact if nobody uses them meanwhile. Changes nothing.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn audit(&self, cells: &[PermitCell]) -> Result<(), &'static str> {
        let word = Word(self.word.load(Ordering::Relaxed));
        let last = cells.get(usize::from(word.slot())).map(|cell| State(cell.state.load(Ordering::Relaxed)));
        let unchanged = self.word.load(Ordering::Relaxed) == word.0;
        let pending_or_recorded = |state: State| {
            [state.next(), state.next().wrapping_sub(1)].map(|n| n & NUMBER).contains(&word.number())
        };
        if self.limit.load(Ordering::Relaxed) > Self::MAX {
            return Err("the limit is above the largest number of permits");
        }
        if word.count() > self.limit() {
            return Err("more permits are free than may be");
        }
        let Some(last) = last else {
            return Err("the last operation names a participant slot that there is not");
        };
        if unchanged && !pending_or_recorded(last) {
            return Err("the last operation is neither recorded nor the next of its cell");
        }
        let nobodys = |cell: &PermitCell| {
            State(cell.state.load(Ordering::Relaxed)).held() > 0
                && cell.generation.load(Ordering::Relaxed) == 0
        };
        if cells.iter().any(nobodys) {
            return Err("permits are held by nobody");
        }
        Ok(())
    }
}

/// Does to the cell what `word` says, unless that has been done.
#[inline]
fn record(cells: &[PermitCell], word: Word) {
    let Some(cell) = cells.get(usize::from(word.slot())) else { return };
    let state = State(cell.state.load(Ordering::Relaxed));
    if state.next() & NUMBER == word.number() {
        let after = state.after(word.kind());
        // If this fails, somebody else has recorded it.
        let _ = cell.state.compare_exchange(state.0, after.0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

shared_struct! {
    /// The words of a binary semaphore. All zero: free.
    pub struct BinaryWords: 16 {
        holder: AtomicU64,
        released: EventCount,
    }
}

impl BinaryWords {
    /// Takes the semaphore if it is free, or if who took it is gone.
    ///
    /// # Errors
    ///
    /// [`WaitFailure`].
    #[inline]
    pub fn acquire<L: Liveness>(&self, live: &L, wait: Wait) -> Result<(), WaitFailure> {
        let me = live.me().bits();
        if self.holder.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(());
        }
        self.acquire_contended(live, wait)
    }

    #[cold]
    fn acquire_contended<L: Liveness>(&self, live: &L, wait: Wait) -> Result<(), WaitFailure> {
        wait_for(live, &self.released, wait, |effort| {
            loop {
                let seen = self.holder.load(Ordering::Relaxed);
                if seen != 0 && !(effort.is_full() && is_gone(live, seen)) {
                    return None;
                }
                let me = live.me().bits();
                if self.holder.compare_exchange(seen, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return Some(());
                }
            }
        })
    }

    /// Frees the semaphore, whoever took it. False if it is free already.
    #[inline]
    pub fn release<L: Liveness>(&self, live: &L) -> bool {
        let mut seen = self.holder.load(Ordering::Relaxed);
        while seen != 0 {
            match self.holder.compare_exchange(seen, 0, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => {
                    self.released.notify_some_after_rmw(live, 1);
                    return true;
                }
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Who has taken it and is not gone.
    pub fn holder<L: Liveness>(&self, live: &L) -> Option<Owner> {
        Owner::from_bits(self.holder.load(Ordering::Relaxed)).filter(|&holder| !live.is_gone(holder))
    }

    /// True if it is taken and, as far as `live` is there to say, not by somebody who is gone.
    pub fn is_taken<L: Liveness>(&self, live: Option<&L>) -> bool {
        let bits = self.holder.load(Ordering::Relaxed);
        bits != 0 && !live.is_some_and(|live| is_gone(live, bits))
    }

    /// What is wrong with the words, if anything. Changes nothing.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn audit(&self, slots: usize) -> Result<(), &'static str> {
        let bits = self.holder.load(Ordering::Relaxed);
        let possible = |holder: Owner| usize::from(holder.slot()) < slots;
        if bits == 0 || Owner::from_bits(bits).is_some_and(possible) {
            Ok(())
        } else {
            Err("the semaphore is taken by what is no participant")
        }
    }
}

fn is_gone<L: Liveness>(live: &L, bits: u64) -> bool {
    Owner::from_bits(bits).is_some_and(|holder| live.is_gone(holder))
}
