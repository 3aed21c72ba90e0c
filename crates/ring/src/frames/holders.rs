//! Who holds which end of a ring of frames, and whether anybody does.
//!
//! Each participant has a cell for each end:
//!
//! ```text
//!  cell = generation of the participant's slot << 18 | how many holds it has
//! ```
//!
//! A count beside another generation than its slot has now is that of a dead one. A cell changes by compare-and-swap only: by its
//! participant; down by one, by who has received what that one had lent; and to 0, by the last to let go in good order, of cells of the dead.
//!
//! A hold is *lent* when its handle is on its way to another process: the receiver takes a hold of its own and gives the lent one back, so
//! that at every moment one of the two has it. One that is never received stays, until its sender is gone.
//!
//! An end is open while a living participant holds it. `came` counts how often somebody took hold: 0, and nobody is missed yet. Who
//! reads the cells one after another could miss a hold that moves from one to another meanwhile; so it reads `came` before and after.

use crossproc_atomic::{AtomicU32, AtomicU64, Liveness, Ordering, Owner};

use super::{End, FrameRing};

const COUNT_BITS: u32 = 18;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Somebody may change `came` between two readings; not for ever.
const READINGS_MAX: usize = 64;

/// A participant has as many holds as can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyHolds;

/// Whether anybody holds an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nobody has come yet.
    NotYet,
    /// Somebody who lives has it.
    There,
    /// All have let go.
    Left,
    /// All are gone, and the last of them died with it.
    Died,
}

/// Where one who lives was found last: to look there first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch(u16);

impl FrameRing<'_> {
    /// Two words for each participant.
    #[must_use]
    pub const fn cells_for(participants: usize) -> usize {
        2 * participants
    }

    fn cell(&self, end: End, slot: u16) -> Option<&AtomicU64> {
        self.cells.get(usize::from(slot) * 2 + usize::from(end == End::Reader))
    }

    fn came(&self, end: End) -> &AtomicU32 {
        match end {
            End::Writer => &self.words.writers_came,
            End::Reader => &self.words.readers_came,
        }
    }

    /// Takes hold of an end: one more for this participant.
    ///
    /// # Errors
    ///
    /// [`TooManyHolds`].
    pub fn hold(&self, end: End, live: &impl Liveness) -> Result<(), TooManyHolds> {
        let me = live.me();
        let cell = self.cell(end, me.slot()).ok_or(TooManyHolds)?;
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let count = if seen >> COUNT_BITS == me.generation() { seen & COUNT } else { 0 };
            if count == COUNT {
                return Err(TooManyHolds);
            }
            let more = me.generation() << COUNT_BITS | (count + 1);
            match cell.compare_exchange(seen, more, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        // After the cell: who counted before and after finds the same only if it could see the cell.
        self.came(end).fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Gives back what `lender` lent: to be called by who has received it, after [`hold`](Self::hold).
    pub fn give_back(&self, end: End, lender: Owner) {
        self.lower(end, lender);
    }

    /// One hold of `owner` less. True if that was its last one.
    fn lower(&self, end: End, owner: Owner) -> bool {
        let Some(cell) = self.cell(end, owner.slot()) else { return false };
        let mut seen = cell.load(Ordering::Relaxed);
        while seen >> COUNT_BITS == owner.generation() && seen & COUNT > 0 {
            match cell.compare_exchange(seen, seen - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return seen & COUNT == 1,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Lets an end go: one hold less for this participant; the last one of all tells the other side.
    pub fn let_go(&self, end: End, live: &impl Liveness) {
        if !self.lower(end, live.me()) {
            return;
        }
        if self.look_for(end, live, |_| ()) == Presence::Died {
            // That they died is not what the other side needs to know: the last one has left in good order.
            for slot in 0..self.slots() {
                let Some(cell) = self.cell(end, slot) else { break };
                let seen = cell.load(Ordering::Relaxed);
                let owner = Owner::new(slot, seen >> COUNT_BITS);
                if seen & COUNT > 0 && owner.is_some_and(|owner| live.is_gone(owner)) {
                    let _ = cell.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
                }
            }
        }
        self.notify_all(live);
    }

    fn slots(&self) -> u16 {
        u16::try_from(self.cells.len() / 2).unwrap_or(u16::MAX)
    }

    /// Whether anybody holds an end now. Cheap as long as the one found last has it.
    #[inline]
    pub fn presence(&self, end: End, live: &impl Liveness, watch: &mut Watch) -> Presence {
        let last = self.cell(end, watch.0).and_then(|cell| holder(watch.0, cell.load(Ordering::Acquire)));
        if last.is_some_and(|owner| !live.is_gone(owner)) {
            return Presence::There;
        }
        let mut found = 0;
        let presence = self.look_for(end, live, |owner| found = owner.slot());
        watch.0 = found;
        presence
    }

    /// Reads all cells; tells of the first who lives, and of the dead before that.
    #[cold]
    fn look_for(&self, end: End, live: &impl Liveness, mut tell: impl FnMut(Owner)) -> Presence {
        for _ in 0..READINGS_MAX {
            let came = self.came(end).load(Ordering::Acquire);
            let mut died = false;
            for slot in 0..self.slots() {
                let Some(cell) = self.cell(end, slot) else { break };
                let seen = cell.load(Ordering::Acquire);
                let Some(owner) = holder(slot, seen) else { continue };
                tell(owner);
                if !live.is_gone(owner) {
                    return Presence::There;
                }
                died = true;
            }
            if self.came(end).load(Ordering::Acquire) == came {
                return match (died, came) {
                    (true, _) => Presence::Died,
                    (false, 0) => Presence::NotYet,
                    (false, _) => Presence::Left,
                };
            }
        }
        Presence::There // somebody keeps coming
    }

    /// How many holds all participants together say that they have; tells nothing of who lives.
    #[must_use]
    pub fn holds(&self, end: End) -> u64 {
        (0..self.slots())
            .filter_map(|slot| self.cell(end, slot))
            .map(|cell| cell.load(Ordering::Relaxed) & COUNT)
            .sum()
    }
}

/// Who has a hold by this cell.
#[inline]
fn holder(slot: u16, cell: u64) -> Option<Owner> {
    if cell & COUNT == 0 { None } else { Owner::new(slot, cell >> COUNT_BITS) }
}
