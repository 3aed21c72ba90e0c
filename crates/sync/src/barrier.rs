//! The barrier: nobody goes on until a given number has come.
//!
//! ```text
//!  0  word     u64      generation:45 | arrived:16 | state:3
//!  8  changed  event count: who waits for the generation to end
//! 16  broken   4 x u64  the last generations that ended broken, as `word` with nobody arrived; 0: none yet
//! 48  parties  u32      how many must come; written by the creator, before anybody else sees the object
//! 52  (unused)
//!     cells    u64 for each participant slot, elsewhere: generation of the participant:46 | DIED:1 | its handles:17
//! ```
//!
//! | state       | what it says                              | what may follow, each by one compare-and-swap               |
//! |-------------|-------------------------------------------|-------------------------------------------------------------|
//! | OPEN        | `arrived` have come, and wait             | one more arrives; the last one: next generation, or RUNNING |
//! | RUNNING     | all have come; the last one runs an action | its runner: next generation                                |
//! | (both)      |                                           | anybody: broken, for one of the reasons                     |
//! | broken: why | whoever comes or waits is told so         | `reset`: next generation, OPEN                              |
//!
//! A generation ends once, and all that waited in it learn the same: a waiter that finds a later generation was let
//! through, unless its own stands in `broken`. There whoever resets writes it *before* the next generation begins, over
//! the oldest entry. (A waiter that was stopped while four later ones broke and were reset can not know, and is
//! told that it was broken by a reset.)
//!
//! *Parties.* Whoever has a handle is taken for a party, since a process that is killed before it ever arrives must not
//! be waited for. A process counts its handles in its own cell, which nobody else writes while it lives. A cell that
//! counts handles of somebody who is dead is the *evidence* of that death (the cell is read again after the proof: who has
//! dropped its handles and left is no party). Whoever arrives or waits and finds evidence breaks the generation that it
//! read *before* it looked; so does the last one before it lets the others go. A process that gets the slot of a dead party
//! takes the cell over and leaves the mark DIED in it, which is evidence as well.
//!
//! Evidence is struck off by a reset alone, and that only by who has first proof of the death and *then* sees the barrier
//! broken: so a death before a reset is counted by it, and a death after it breaks the barrier again.
//!
//! What each death leaves behind, beside the evidence:
//!
//! | Where it was                         | What it leaves                 | What the others are told                      |
//! |--------------------------------------|--------------------------------|-----------------------------------------------|
//! | anywhere before the last one arrives | `arrived` with or without it   | broken, all                                   |
//! | the last one, before its CAS         | as above                       | broken, all                                   |
//! | the last one, after it, not woken yet | the next generation           | they are through: its death wakes them        |
//! | running the action                   | RUNNING                        | broken, all                                   |
//! | woken, or let through and not woken  | the next generation            | they are through; the next generation breaks  |
//! | breaking, after its CAS              | broken                         | broken: its death wakes them                  |
//! | resetting                            | broken; some evidence struck   | broken, until somebody resets it              |
//!
//! Memory ordering. Whoever is let through has seen all that every party did before it arrived: each arrival is a
//! Release, all writes of `word` are read-modify-writes and so pass on the Releases before them, and whoever goes on has
//! read the next generation with Acquire; the last one has so read the word that it replaced (no value comes twice).
//! The runner of an action has seen the same when it begins, and what it did is released by the write that ends it. A
//! reset releases the entry in `broken` and the struck cells. Who is told that the barrier is broken may rely on nothing.
//!
//! Source: J. M. Mellor-Crummey, M. L. Scott, "Algorithms for Scalable Synchronization on Shared-Memory Multiprocessors"
//! (1991), the central barrier that reverses its sense; with a generation in the place of the sense, for late waiters.

use core::num::NonZeroU16;

use crossproc_atomic::{AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, shared_struct};

use crate::wait::{Wait, WaitFailure, wait_for};

/// Why a barrier is broken. It stays broken until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenBy {
    /// A process that had a handle of the barrier has died.
    PartyDied,
    /// One of those who waited had reached its deadline.
    Timeout,
    /// Somebody called `abort`.
    Abort,
    /// Somebody called `reset` while others waited.
    Reset,
    /// The action of the last one to come panicked, or a party let go of its last handle while it panicked.
    Panic,
}

/// Why a waiter was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierFailure {
    /// The barrier is broken, or was while it waited.
    Broken(BrokenBy),
    /// Others have yet to come ([`Wait::Try`]).
    WouldBlock,
    /// There was no place until the deadline: as many as there are parties were there, and had yet to go on.
    TimedOut,
}

/// How a party was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// In which place it came, from 0.
    pub index: u16,
    /// True for the one that came last.
    pub is_last: bool,
}

/// A participant can have no more handles of one barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyHandles;

const OPEN: u64 = 0;
const RUNNING: u64 = 1;
const STATE_BITS: u32 = 3;
const STATE: u64 = (1 << STATE_BITS) - 1;
const ARRIVED_BITS: u32 = 16;
const GENERATION_SHIFT: u32 = STATE_BITS + ARRIVED_BITS;
/// How many broken generations are remembered.
const REMEMBERED: usize = 4;

impl BrokenBy {
    const fn code(self) -> u64 {
        match self {
            Self::PartyDied => 2,
            Self::Timeout => 3,
            Self::Abort => 4,
            Self::Reset => 5,
            Self::Panic => 6,
        }
    }

    /// `None` for [`OPEN`] and [`RUNNING`].
    fn of_code(code: u64) -> Option<Self> {
        match code & STATE {
            OPEN | RUNNING => None,
            2 => Some(Self::PartyDied),
            3 => Some(Self::Timeout),
            5 => Some(Self::Reset),
            6 => Some(Self::Panic),
            // 7 is nobody's: scribbled.
            _ => Some(Self::Abort),
        }
    }
}

/// What the word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State(u64);

impl State {
    fn new(generation: u64, arrived: u16, state: u64) -> Self {
        Self(generation << GENERATION_SHIFT | u64::from(arrived) << STATE_BITS | state)
    }

    fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }

    fn arrived(self) -> u16 {
        (self.0 >> STATE_BITS) as u16
    }

    fn is_running(self) -> bool {
        self.0 & STATE == RUNNING
    }

    fn broken(self) -> Option<BrokenBy> {
        BrokenBy::of_code(self.0)
    }

    /// The next generation, which nobody has come to.
    fn next(self) -> Self {
        Self::new(self.generation() + 1, 0, OPEN)
    }

    fn with(self, arrived: u16, state: u64) -> Self {
        Self::new(self.generation(), arrived, state)
    }

    /// Of an entry: it can be what an earlier reset has left, or one that is under way.
    fn is_of_the_past(self, now: Self) -> bool {
        self.broken().is_some() && self.generation() <= now.generation()
    }
}

shared_struct! {
    /// The words of one barrier; all zero but `parties`: nobody has come.
    pub struct BarrierWords: 56 {
        word: AtomicU64,
        changed: EventCount,
        broken: [AtomicU64; REMEMBERED],
        parties: AtomicU32,
        unused: AtomicU32,
    }
}

/// A barrier as one participant sees it: the shared words and cells, how many parties it has, and who is alive.
#[derive(Debug)]
pub struct Barrier<'a, L> {
    /// The words.
    pub words: &'a BarrierWords,
    /// One for each participant slot.
    pub cells: &'a [AtomicU64],
    /// How many must come.
    pub parties: NonZeroU16,
    /// Who is alive.
    pub live: &'a L,
}

impl BarrierWords {
    /// To be called by the creator, before anybody else sees the words.
    pub fn set_parties(&self, parties: NonZeroU16) {
        self.parties.store(parties.get().into(), Ordering::Relaxed);
    }

    /// How many must come; `None` if that is no possible number, because somebody scribbled.
    pub fn parties(&self) -> Option<NonZeroU16> {
        NonZeroU16::new(u16::try_from(self.parties.load(Ordering::Relaxed)).ok()?)
    }

    /// How many wait.
    pub fn waiting(&self) -> u16 {
        let now = self.load();
        if now.broken().is_some() { 0 } else { now.arrived() }
    }

    /// Why it is broken, if it is.
    pub fn broken(&self) -> Option<BrokenBy> {
        self.load().broken()
    }

    /// True if no sequence of operations leads to what the words say.
    pub fn is_damaged(&self, parties: NonZeroU16) -> bool {
        let entries = self.entries();
        let now = self.load(); // after the entries: none of them is of a later generation
        let fits = match (now.broken(), now.is_running()) {
            (Some(_), _) => now.arrived() <= parties.get(),
            (None, true) => now.arrived() == parties.get(),
            (None, false) => now.arrived() < parties.get(),
        };
        let past = |entry: &State| entry.0 == 0 || entry.is_of_the_past(now);
        !(fits && self.parties() == Some(parties) && entries.iter().all(past))
    }

    fn load(&self) -> State {
        State(self.word.load(Ordering::Acquire))
    }

    fn change(&self, from: State, to: State) -> bool {
        self.word.compare_exchange(from.0, to.0, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    fn entries(&self) -> [State; REMEMBERED] {
        // Acquire: what is read after them is at least as new.
        self.broken.each_ref().map(|entry| State(entry.load(Ordering::Acquire))) // mutant: equivalent, because loom executes loads in program order
    }

    /// How a generation ended; `None` if it has not.
    fn end_of(&self, generation: u64) -> Option<Result<(), BrokenBy>> {
        let now = self.load();
        if now.generation() == generation {
            return now.broken().map(Err);
        }
        let entries = self.entries();
        let mut known = entries.iter().filter(|entry| entry.generation() == generation);
        if let Some(why) = known.find_map(|entry| entry.broken()) {
            return Some(Err(why));
        }
        let forgotten =
            entries.iter().all(|entry| entry.broken().is_some() && entry.generation() > generation);
        Some(if forgotten { Err(BrokenBy::Reset) } else { Ok(()) })
    }
}

impl<L: Liveness> Barrier<'_, L> {
    // -----------------------------------------------------------------------------------------------------
    // Parties

    /// This process has one more handle: with the first it is a party.
    ///
    /// # Errors
    ///
    /// [`TooManyHandles`].
    pub fn register(&self) -> Result<(), TooManyHandles> {
        let me = self.live.me();
        let cell = self.cells.get(usize::from(me.slot())).ok_or(TooManyHandles)?;
        loop {
            let seen = cell.load(Ordering::Relaxed);
            let (owner, handles) = party(me.slot(), seen);
            let now = match (owner == Some(me), handles) {
                (true, HANDLES) => return Err(TooManyHandles),
                (true, _) => seen + 1,
                (false, 0) => first_handle(me) | seen & DIED,
                // That we have the slot proves the death of the party that had it.
                (false, _) => first_handle(me) | DIED,
            };
            if swap(cell, seen, now) {
                return Ok(());
            }
        }
    }

    /// This process has one handle less.
    pub fn deregister(&self) {
        let me = self.live.me();
        let Some(cell) = self.cells.get(usize::from(me.slot())) else { return };
        loop {
            let seen = cell.load(Ordering::Relaxed);
            let (owner, handles) = party(me.slot(), seen);
            if owner != Some(me) || handles == 0 || swap(cell, seen, seen - 1) {
                return;
            }
        }
    }

    fn is_a_party_dead(&self) -> bool {
        (0..).zip(self.cells).any(|(slot, cell)| self.evidence(slot, cell).is_some())
    }

    /// What the cell says, if it is evidence of a death.
    fn evidence(&self, slot: u16, cell: &AtomicU64) -> Option<u64> {
        loop {
            let seen = cell.load(Ordering::Acquire); // mutant: equivalent, because loom executes loads in program order
            if seen & DIED != 0 {
                return Some(seen);
            }
            let (owner, handles) = party(slot, seen);
            let other = owner.filter(|&owner| handles != 0 && owner != self.live.me());
            if !other.is_some_and(|owner| self.live.is_gone(owner)) {
                return None;
            }
            // It may have dropped its handles before it left; or somebody has its slot, and has marked the cell.
            if cell.load(Ordering::Relaxed) == seen {
                return Some(seen);
            }
        }
    }

    // -----------------------------------------------------------------------------------------------------
    // Waiting

    /// Waits until all parties have come; the last one calls `action`, if there is one, before anybody goes on.
    ///
    /// With [`Wait::Try`] only the last one arrives.
    ///
    /// # Errors
    ///
    /// See [`BarrierFailure`]. Whoever has a place and reaches its deadline breaks the barrier.
    pub fn wait<A: FnOnce()>(&self, wait: Wait, action: Option<A>) -> Result<Passed, BarrierFailure> {
        let wants = (wait == Wait::Try, action.is_some());
        let arrived = wait_for(self.live, &self.words.changed, wait, |_| self.arrive(wants.0, wants.1));
        let at = match arrived {
            Ok(at) => at.map_err(BarrierFailure::Broken)?,
            Err(WaitFailure::WouldBlock) => return Err(BarrierFailure::WouldBlock),
            // Who had no place breaks nothing.
            Err(WaitFailure::TimedOut) => return Err(BarrierFailure::TimedOut),
        };
        let (generation, index) = (at.generation(), at.arrived());
        let is_last = index + 1 == self.parties.get();
        let ended = match (is_last, action) {
            (false, _) => self.wait_for_the_last(generation, wait),
            (true, None) => Ok(()),
            (true, Some(action)) => self.run(at, action),
        };
        ended.map(|()| Passed { index, is_last }).map_err(BarrierFailure::Broken)
    }

    /// Takes the next place, and ends the generation if it is the last one: what the word said before. `None` if there
    /// is no place for us now.
    fn arrive(&self, only_last: bool, runs_action: bool) -> Option<Result<State, BrokenBy>> {
        let last = self.parties.get() - 1;
        loop {
            let now = self.words.load();
            if let Some(why) = now.broken() {
                return Some(Err(why));
            }
            if self.is_a_party_dead() {
                let _ = self.break_generation(now.generation(), BrokenBy::PartyDied);
                continue;
            }
            if now.is_running() || (only_last && now.arrived() < last) {
                return None;
            }
            let index = now.arrived().min(last); // more can be scribbled only
            let to = match (index == last, runs_action) {
                (false, _) => now.with(index + 1, OPEN),
                (true, true) => now.with(index + 1, RUNNING),
                (true, false) => now.next(),
            };
            if self.words.change(now, to) {
                if to == now.next() {
                    self.words.changed.notify_after_rmw(self.live);
                }
                return Some(Ok(now.with(index, OPEN)));
            }
        }
    }

    fn wait_for_the_last(&self, generation: u64, wait: Wait) -> Result<(), BrokenBy> {
        let ended = wait_for(self.live, &self.words.changed, wait, |effort| {
            let end = self.words.end_of(generation);
            if end.is_none() && effort.is_full() && self.is_a_party_dead() {
                return Some(self.break_generation(generation, BrokenBy::PartyDied));
            }
            end
        });
        ended.unwrap_or_else(|_| self.break_generation(generation, BrokenBy::Timeout))
    }

    /// Runs the action of the last one. `at`: as it arrived.
    fn run(&self, at: State, action: impl FnOnce()) -> Result<(), BrokenBy> {
        let breaks = BreaksOnPanic { barrier: self, generation: at.generation() };
        action();
        core::mem::forget(breaks);
        let running = at.with(self.parties.get(), RUNNING);
        if self.words.change(running, running.next()) {
            self.words.changed.notify_after_rmw(self.live);
            return Ok(());
        }
        // Somebody has broken it meanwhile.
        self.break_generation(at.generation(), BrokenBy::Abort)
    }

    // -----------------------------------------------------------------------------------------------------
    // Breaking and mending

    /// Breaks the barrier, unless it is broken. Whoever waits is told `why`.
    pub fn abort(&self, why: BrokenBy) {
        // Not broken only if that generation has ended meanwhile.
        while self.break_generation(self.words.load().generation(), why).is_ok() {}
    }

    /// Breaks this generation, unless it has ended; returns how it ended.
    fn break_generation(&self, generation: u64, why: BrokenBy) -> Result<(), BrokenBy> {
        loop {
            let now = self.words.load();
            if let Some(end) = self.words.end_of(generation) {
                return end;
            }
            if now.generation() == generation && self.words.change(now, now.with(now.arrived(), why.code())) {
                self.words.changed.notify_after_rmw(self.live);
                return Err(why);
            }
        }
    }

    /// Makes a broken barrier as good as new; those who wait at one that is not broken are told that it was reset.
    /// Returns how many dead parties were struck off (several in one slot count as one).
    pub fn reset(&self) -> usize {
        let mut struck = 0;
        loop {
            let now = self.words.load();
            if now.broken().is_some() {
                struck += self.strike_off_the_dead(now);
                self.remember(now);
                // If somebody else was first, then since we came.
                if self.words.change(now, now.next()) {
                    self.words.changed.notify_after_rmw(self.live);
                }
                return struck;
            }
            if now.arrived() == 0 && !self.is_a_party_dead() {
                return struck;
            }
            let _ = self.break_generation(now.generation(), BrokenBy::Reset);
        }
    }

    fn strike_off_the_dead(&self, broken: State) -> usize {
        let mut struck = 0;
        for (slot, cell) in (0..).zip(self.cells) {
            // In this order; see the top of the file. Whoever else changes the cell strikes it off, or adds to the evidence.
            while let Some(seen) = self.evidence(slot, cell) {
                let (owner, _) = party(slot, seen);
                let lives = owner.is_some_and(|owner| owner == self.live.me() || !self.live.is_gone(owner));
                let cleared = if lives { seen & !DIED } else { 0 };
                if self.words.load() != broken {
                    return struck;
                }
                struck += usize::from(swap(cell, seen, cleared));
            }
        }
        struck
    }

    /// Writes down how this generation ended, before there is another one.
    fn remember(&self, broken: State) {
        let entry = broken.with(0, broken.0 & STATE);
        let entries = self.words.entries();
        let oldest = (0..REMEMBERED).min_by_key(|&at| entries[at].0).unwrap_or(0);
        // Nobody who is late overwrites a newer entry: no entry comes twice. (Nor is one written twice: until it is
        // written, all who write it find the same oldest one.)
        if !entries.contains(&entry) && self.words.load() == broken {
            swap(&self.words.broken[oldest], entries[oldest].0, entry.0);
        }
    }
}

/// Breaks the barrier should the action panic.
struct BreaksOnPanic<'a, L: Liveness> {
    barrier: &'a Barrier<'a, L>,
    generation: u64,
}

impl<L: Liveness> Drop for BreaksOnPanic<'_, L> {
    fn drop(&mut self) {
        let _ = self.barrier.break_generation(self.generation, BrokenBy::Panic);
    }
}

const CELL_BITS: u32 = 64 - Owner::GENERATION_BITS;
/// In a cell: a party that had the slot before has died.
const DIED: u64 = 1 << (CELL_BITS - 1);
const HANDLES: u64 = DIED - 1;

/// Whose handles a cell counts, and how many.
fn party(slot: u16, cell: u64) -> (Option<Owner>, u64) {
    (Owner::new(slot, cell >> CELL_BITS), cell & HANDLES)
}

fn first_handle(me: Owner) -> u64 {
    me.generation() << CELL_BITS | 1
}

fn swap(word: &AtomicU64, from: u64, to: u64) -> bool {
    word.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}
