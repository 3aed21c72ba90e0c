//! The robust readers-writer lock.
//!
//! ```text
//!  words
//!   0  lock     24   the robust lock of the writers, and for a moment of readers that met one (see lock.rs)
//!  24  state    u32  WANTED | WRITING | INCONSISTENT | POISONED; written by the holder of `lock`
//!  28  used     u32  cells from this one on have never been used; grows only, by whoever uses a new one
//!  32  left          event count: where a writer waits for readers to leave
//!  cell, one for each participant slot, on a cache line of its own
//!   0  readers  u64  generation:46 | count:18; read guards of that participant, all its threads together
//! ```
//!
//! A reader counts itself in its own participant's cell and then looks at `state`: that is all, if no writer is there.
//! Otherwise it takes itself out again and queues for `lock` with the writers; with `lock` it counts itself, and
//! gives `lock` back. A writer takes `lock`, announces itself in `state`, and waits until all cells are empty. So a
//! writer that waits keeps new readers out, and is itself held up by those only who were there before it.
//!
//! | `lock` is held by        | `state` has      | new readers       | if the holder dies now                           |
//! |--------------------------|------------------|-------------------|--------------------------------------------------|
//! | nobody                   |                  | come in           |                                                  |
//! | a reader, for a moment   |                  | come in           | `lock` passes on; the cell is void               |
//! | a writer that waits      | WANTED           | queue for `lock`  | `lock` passes on, nobody is told                 |
//! | a writer with the data   | WANTED, WRITING  | queue for `lock`  | `lock` passes on, marked INCONSISTENT            |
//! | nobody; a writer died    | WANTED, perhaps WRITING | queue for `lock` | the first to hold `lock` clears both, and turns WRITING into INCONSISTENT |
//!
//! Who may write what: `state` the holder of `lock` alone, so whoever has `lock` and finds WANTED in `state` knows that its
//! predecessor died. A cell's count is changed by its participant; of one that is gone the count is void: the next
//! participant in the slot starts from nothing, and a writer that waits sets it to 0 (both by compare-and-swap).
//!
//! What a death leaves behind: see the table; of a reader, a count with a generation that has passed. One that was killed
//! between leaving and waking the writer is made up for by its death, which wakes everybody who waits. Whether a death is
//! told depends on WRITING alone (the mark that `lock` itself has for a dead holder also comes from readers and from
//! writers that had not begun, and nobody looks at it); so it is exact.
//!
//! Memory ordering. Others may rely on this: what a writer did is visible to all readers and writers after it, and what a
//! reader read is not overwritten while it reads. From writer to writer and to readers that queued by `lock`; to the other
//! readers by `state`: stored (Release) when a writer ends, or when what is left of one is cleared, and read (Acquire).
//! From reader to writer by the cell: left (Release), found empty (Acquire). Beyond that a reader's count and
//! the look at `state` after it, and a writer's WANTED and its look at the cells after it, each have a full fence in
//! between: one of the two sees the other. `used` is raised before a participant's first count; the counting
//! compare-and-swap (AcqRel) shows it to whoever reads the count, and to other threads that count on top of it.
//!
//! Sources: P.-J. Courtois et al., "Concurrent control with readers and writers", 1971 (writers first); a count for each
//! reader's own cache line: W. C. Hsieh and W. E. Weihl, "Scalable reader-writer locks for parallel systems", 1992.

use crossproc_atomic::{
    AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, WAITERS, fence, fence_after_rmw,
    shared_struct,
};

use crate::lock::{INCONSISTENT, LockFailure, LockWords, Marks, POISONED};
use crate::wait::{Effort, Wait, WaitFailure, wait_for};

/// In `state`: the holder of `lock` is a writer.
const WANTED: u32 = 4;
/// In `state`: it has the data.
const WRITING: u32 = 8;
/// In `state`: what is told to everybody until a writer says that the data is consistent.
const MARKS: u32 = INCONSISTENT | POISONED;

const COUNT_BITS: u32 = u64::BITS - Owner::GENERATION_BITS;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

shared_struct! {
    /// The words of one readers-writer lock; its cells are beside it. All zero: free and consistent.
    pub struct RwLockWords: 40 {
        lock: LockWords,
        state: AtomicU32,
        used: AtomicU32,
        left: EventCount,
    }
}

shared_struct! {
    /// The readers that one participant has at a [`RwLockWords`].
    pub struct ReaderCell: 64 {
        readers: AtomicU64,
        unused: [AtomicU64; 7],
    }
}

impl RwLockWords {
    /// So many read guards a participant can have at once.
    pub const READERS_MAX: u64 = COUNT;

    /// Acquires the lock for reading.
    ///
    /// `cells` has one for each participant slot; so for all methods here.
    ///
    /// # Errors
    ///
    /// [`LockFailure::WouldBlock`] or [`LockFailure::TimedOut`] if a writer holds the lock or waits for it;
    /// [`LockFailure::WouldDeadlock`] if the calling thread has it for writing, or its participant has
    /// [`READERS_MAX`](Self::READERS_MAX) readers.
    ///
    /// # Panics
    ///
    /// If there is no cell for the caller; so for all methods here.
    #[inline]
    pub fn read<L: Liveness>(
        &self,
        cells: &[ReaderCell],
        live: &L,
        wait: Wait,
    ) -> Result<Marks, LockFailure> {
        if self.enter(cells, live) {
            fence_after_rmw();
            let state = self.state.load(Ordering::Acquire);
            if state & WANTED == 0 {
                return Ok(Marks(state & MARKS));
            }
            self.leave(cells, live);
        }
        self.read_behind_writers(cells, live, wait)
    }

    #[cold]
    fn read_behind_writers<L: Liveness>(
        &self,
        cells: &[ReaderCell],
        live: &L,
        wait: Wait,
    ) -> Result<Marks, LockFailure> {
        let state = self.lock(live, wait)?;
        let entered = self.enter(cells, live);
        self.lock.unlock(live);
        if entered { Ok(Marks(state)) } else { Err(LockFailure::WouldDeadlock) }
    }

    /// Ends a [`read`](Self::read), or what a [`downgrade`](Self::downgrade) has left.
    #[inline]
    pub fn leave<L: Liveness>(&self, cells: &[ReaderCell], live: &L) {
        let cell = &cells[usize::from(live.me().slot())];
        let before = cell.readers.fetch_add(u64::MAX, Ordering::Release);
        if before & COUNT == 1 {
            self.left.notify_after_rmw(live);
        }
    }

    /// One reader more in the caller's cell; false if that is full.
    #[inline]
    fn enter<L: Liveness>(&self, cells: &[ReaderCell], live: &L) -> bool {
        let me = live.me();
        let cell = &cells[usize::from(me.slot())].readers;
        let none = me.generation() << COUNT_BITS;
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let before = if seen & !COUNT == none { seen } else { self.first_use(me, none) };
            if before & COUNT == COUNT {
                return false;
            }
            // mutant: equivalent, because loom can not tell: it makes this and the fence behind it one step
            match cell.compare_exchange(seen, before + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// The cell holds what is left of an earlier participant, or nothing: returns what to start from.
    #[cold]
    fn first_use(&self, me: Owner, none: u64) -> u64 {
        let after = u32::from(me.slot()) + 1;
        let mut used = self.used.load(Ordering::Relaxed);
        while used < after {
            match self.used.compare_exchange(used, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => used = now,
            }
        }
        none
    }

    /// Acquires the lock for writing.
    ///
    /// # Errors
    ///
    /// [`LockFailure::WouldBlock`] or [`LockFailure::TimedOut`] if others hold the lock;
    /// [`LockFailure::WouldDeadlock`] if the calling thread has it for writing. (If it has it for reading, it waits for
    /// itself.)
    #[inline]
    pub fn write<L: Liveness>(
        &self,
        cells: &[ReaderCell],
        live: &L,
        wait: Wait,
    ) -> Result<Marks, LockFailure> {
        let marks = self.lock(live, wait)?;
        // Who only tries keeps no readers out for nothing.
        if wait == Wait::Try && !self.is_empty(cells, live, Effort::Full) {
            self.lock.unlock(live);
            return Err(LockFailure::WouldBlock);
        }
        self.state.store(marks | WANTED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !self.is_empty(cells, live, Effort::Light) {
            self.await_readers(cells, live, wait).inspect_err(|_| {
                self.state.store(marks, Ordering::Release); // mutant: equivalent, because the full fence above releases as well
                self.lock.unlock(live);
            })?;
        }
        self.state.store(marks | WANTED | WRITING, Ordering::Relaxed);
        // No change of the data before that: who is killed in the first one is to be reported.
        fence(Ordering::Release); // mutant: equivalent, because it orders a store before the data for who is killed, and the model kills at words only
        Ok(Marks(marks))
    }

    #[cold]
    fn await_readers<L: Liveness>(
        &self,
        cells: &[ReaderCell],
        live: &L,
        wait: Wait,
    ) -> Result<(), LockFailure> {
        let empty = |effort| self.is_empty(cells, live, effort).then_some(());
        wait_for(live, &self.left, wait, empty).map_err(|failure| match failure {
            WaitFailure::WouldBlock => LockFailure::WouldBlock,
            WaitFailure::TimedOut => LockFailure::TimedOut,
        })
    }

    /// Ends a [`write`](Self::write); `panicked`: in the middle of a change. Does nothing if the calling thread
    /// does not have the lock.
    #[inline]
    pub fn unlock<L: Liveness>(&self, live: &L, panicked: bool) {
        if self.is_mine(live) {
            self.end_writing(panicked);
            self.lock.unlock(live);
        }
    }

    /// Turns a [`write`](Self::write) into a [`read`](Self::read), with no other writer in between.
    pub fn downgrade<L: Liveness>(&self, cells: &[ReaderCell], live: &L, panicked: bool) {
        if self.is_mine(live) {
            // All cells are empty, so there is room.
            self.enter(cells, live);
            self.end_writing(panicked);
            self.lock.unlock(live);
        }
    }

    #[inline]
    fn end_writing(&self, panicked: bool) {
        let poison = if panicked { POISONED } else { 0 };
        let marks = self.state.load(Ordering::Relaxed) & MARKS | poison;
        self.state.store(marks, Ordering::Release);
    }

    /// Takes `lock`, and clears from `state` what a dead writer has left there. Returns the marks.
    #[inline]
    fn lock<L: Liveness>(&self, live: &L, wait: Wait) -> Result<u32, LockFailure> {
        match wait {
            Wait::Try => self.lock.try_lock(live)?,
            Wait::Until(until) => self.lock.lock(live, until)?,
        };
        let state = self.state.load(Ordering::Relaxed);
        Ok(if state & WANTED == 0 { state & MARKS } else { self.inherit(state) })
    }

    #[cold]
    fn inherit(&self, state: u32) -> u32 {
        let died = if state & WRITING == 0 { 0 } else { INCONSISTENT };
        let marks = state & MARKS | died;
        self.state.store(marks, Ordering::Release);
        marks
    }

    /// True if nobody reads. With full effort the counts of the dead are found to be void.
    #[inline]
    fn is_empty<L: Liveness>(&self, cells: &[ReaderCell], live: &L, effort: Effort) -> bool {
        let used = self.used.load(Ordering::Relaxed) as usize;
        let mut used = (0..=u16::MAX).zip(&cells[..used.min(cells.len())]);
        used.all(|(slot, ReaderCell { readers, .. })| {
            let seen = readers.load(Ordering::Acquire);
            seen & COUNT == 0
                || effort.is_full()
                    && is_void(|owner| live.is_gone(owner), slot, seen)
                    && readers.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    }

    /// The writer says that the data is consistent (again). Does nothing if the calling thread does not have the lock.
    pub fn mark_consistent<L: Liveness>(&self, live: &L) {
        if self.is_mine(live) {
            self.state.store(WANTED | WRITING, Ordering::Relaxed);
        }
    }

    /// True if the calling thread has the lock for writing.
    #[inline]
    pub fn is_mine<L: Liveness>(&self, live: &L) -> bool {
        // A reader has `lock` within one call only.
        self.lock.is_mine(live)
    }

    /// The thread that had the lock for writing a moment ago, or waited for readers to leave, as the kernel
    /// numbers it; 0 for nobody.
    pub fn writer_tid(&self) -> u32 {
        let tid = self.lock.holder_tid();
        if self.state.load(Ordering::Relaxed) & WANTED == 0 { 0 } else { tid }
    }

    /// How many read guards there were a moment ago; `is_gone` says whose do not count.
    pub fn readers(&self, cells: &[ReaderCell], is_gone: impl Fn(Owner) -> bool) -> u64 {
        let count = |slot, readers| if is_void(&is_gone, slot, readers) { 0 } else { readers & COUNT };
        let cells = (0..=u16::MAX).zip(cells);
        cells.map(|(slot, cell)| count(slot, cell.readers.load(Ordering::Relaxed))).sum()
    }

    /// The marks that the next reader or writer will be told. Exact only for who has the lock.
    pub fn marks(&self) -> Marks {
        Marks(self.state.load(Ordering::Relaxed) & MARKS)
    }

    /// The word of the writers' lock on which waiters sleep, for who notes that it is held, and for tests.
    #[doc(hidden)]
    pub fn futex_word(&self) -> &AtomicU32 {
        self.lock.futex_word()
    }

    /// What is wrong with the words, if anything; exact if nobody uses them meanwhile. Changes nothing.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn audit(&self, cells: &[ReaderCell], is_gone: impl Fn(Owner) -> bool) -> Result<(), &'static str> {
        let state = self.state.load(Ordering::Relaxed);
        if state & !(WANTED | WRITING | MARKS) != 0 {
            return Err("the state has bits that mean nothing");
        }
        if state & (WANTED | WRITING) == WRITING {
            return Err("somebody writes who has not announced it");
        }
        if state & WANTED != 0 && self.lock.futex_word().load(Ordering::Relaxed) & !WAITERS == 0 {
            return Err("a writer is announced, and nobody has the lock or died with it");
        }
        let used = self.used.load(Ordering::Relaxed) as usize;
        if used > cells.len() {
            return Err("more cells are in use than there are");
        }
        if self.readers(&cells[used..], |_| false) != 0 {
            return Err("somebody reads in a cell that is not in use");
        }
        if state & WRITING != 0 && self.readers(cells, is_gone) != 0 {
            return Err("somebody reads while another writes");
        }
        Ok(())
    }
}

/// True if whoever these readers are is gone.
fn is_void(is_gone: impl Fn(Owner) -> bool, slot: u16, readers: u64) -> bool {
    Owner::new(slot, readers >> COUNT_BITS).is_none_or(is_gone)
}
