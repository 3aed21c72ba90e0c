//! What the dead had in their hands: deciding whether their last exchange came off, and handing on their messages.
//!
//! Only who has moved the claim of a lane from a *proven dead* holder to itself, by compare-and-swap, may write its record;
//! should it die as well, the next does the same. The holder being dead, the lane's record holds still, and so does what it
//! owns: either hand `j` has the cell that is written there, or the intent came true and it has the intent's cell. The other
//! one of the two is somebody else's.
//!
//! 1. The intent's cell is in one of the lane's hands, or there is no intent: the record is true as it is.
//! 2. What the intent points at has the intent's cell: the exchange did not come off. It has the hand's: it did.
//! 3. It has been exchanged since: then one of the two cells can be *found* elsewhere: in a slot, in the hand of an orphan, or in a
//!    hand of a lane whose record is true. Of lanes that are themselves in the middle of an exchange (stopped, or dead and not
//!    recovered) it is concluded in turn which of their two cells is theirs, from what was found so far. Lanes at work change
//!    while they are read; of these only what two readings, before and after the slots, agree on is used. If that does not
//!    decide, others have made progress meanwhile, and it is tried again.
//!
//! Only cells are compared: a cell is in one place at a time, so this holds whatever lap it is.

extern crate alloc;
use alloc::vec::Vec;

use crossproc_atomic::{Liveness, Ordering, Owner};

use super::{
    At, End, Exchange, FREE, HANDS, Hand, INTENT, Intent, LIVE, Lane, MESSAGE, ORPHAN, RECOVERING, Refusal,
    SPARE, STATE, deliveries_of, hand_word, kind_of,
};

/// In the word of an orphan: which one it is, lest one that is looked at and another that comes there later be the same.
const ORPHAN_NUMBER_AT: u32 = 34;
const ORPHAN_NUMBERS: u64 = 0x3fff;
/// So often an undecided exchange is looked at again, before that is left to the next who comes. (In the model, each look is as good.)
const ROUNDS: u32 = if cfg!(crossproc_model) { 2 } else { 64 };

/// What [`Exchange::recover`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Lanes that were recovered and are free now.
    pub lanes: usize,
    /// True if there are lanes of the dead that somebody else is recovering, or that can not be decided yet: they may
    /// still turn out to have messages.
    pub is_pending: bool,
}

/// One lane's record, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    intent: Intent,
    hands: Vec<u64>,
}

impl Record {
    /// The cell that is to be given away.
    fn mine(&self) -> u32 {
        self.hands.get(self.intent.hand()).map_or(u32::MAX, |&word| word as u32)
    }

    fn is_settled(&self) -> bool {
        let wanted = self.intent.cell();
        !self.intent.exists() || self.hands.iter().any(|&hand| hand as u32 == wanted)
    }

    /// The hand's word after the exchange.
    fn after_exchange(&self) -> u64 {
        let wanted = self.intent.cell();
        if self.intent.is_message() {
            hand_word(wanted, MESSAGE, self.intent.deliveries().saturating_add(1))
        } else {
            hand_word(wanted, SPARE, 0)
        }
    }
}

/// Cells, as a set.
struct Cells(Vec<u64>);

impl Cells {
    fn insert(&mut self, cell: u32) {
        if let Some(bits) = self.0.get_mut(cell as usize / 64) {
            *bits |= 1 << (cell % 64);
        }
    }

    fn has(&self, cell: u32) -> bool {
        self.0.get(cell as usize / 64).is_some_and(|bits| bits >> (cell % 64) & 1 != 0)
    }
}

impl Exchange<'_> {
    /// Takes back the lanes of the dead. Their messages are orphans then, and sleeping receivers are woken.
    #[inline]
    pub fn recover<L: Liveness>(&self, live: &L) -> Recovery {
        let mut result = Recovery::default();
        let me = live.me();
        for number in 0..self.lanes_used() {
            let claim = self.claims[number].load(Ordering::Acquire);
            let Some(holder) = Owner::from_bits(claim & !STATE) else { continue };
            if holder == me || !live.is_gone(holder) {
                result.is_pending |= claim & STATE == RECOVERING;
            } else if self.recover_lane(live, number, claim, holder) {
                result.lanes += 1;
            } else {
                result.is_pending = true;
            }
        }
        result
    }

    /// True if the lane is free now.
    #[cold]
    fn recover_lane<L: Liveness>(&self, live: &L, number: usize, claim: u64, holder: Owner) -> bool {
        let mine = live.me().bits() | RECOVERING;
        let entry = &self.claims[number];
        // mutant: equivalent, because the proof of the death passes on what the dead did, and freeing the lane what is done here
        if entry.compare_exchange(claim, mine, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false; // somebody else's
        }
        let dead = self.read(number);
        if !dead.is_settled() {
            let Some(came_off) = (0..ROUNDS).find_map(|_| self.came_off(number, &dead)) else {
                // mutant: equivalent, because nothing was written that it could pass on
                entry.store(holder.bits() | LIVE, Ordering::Release);
                self.wake_all_after_store(live); // who left it to us
                return false;
            };
            let hand = dead.intent.hand();
            if came_off && hand < self.shape.hands {
                // Until the intent is gone, others only compare its cell.
                self.hand(number, hand).store(dead.after_exchange(), Ordering::Relaxed);
            }
        }
        self.settle_and_free(number);
        // Also without orphans: who waits for the last peer to go looks again.
        self.wake_all_after_store(live);
        true
    }

    pub(super) fn wake_all_after_store<L: Liveness>(&self, live: &L) {
        self.words.not_empty.notify_after_store(live);
        self.words.not_full.notify_after_store(live);
        self.words.finished.notify_after_store(live);
    }

    /// The hands are true: forgets the intent, makes orphans of the messages, frees the lane.
    #[cold]
    pub(super) fn settle_and_free(&self, number: usize) {
        self.record(number)[INTENT].store(0, Ordering::Release);
        let mut has_orphan = false;
        for hand in 0..self.shape.hands {
            let hand = self.hand(number, hand);
            let word = hand.load(Ordering::Relaxed);
            if kind_of(word) == MESSAGE {
                // From here on it can be taken: who looks at one hand after the other has to know (`is_finished`).
                let number = self.raise_orphans() & ORPHAN_NUMBERS;
                let orphan = hand_word(word as u32, ORPHAN, deliveries_of(word)) | number << ORPHAN_NUMBER_AT;
                hand.store(orphan, Ordering::Release);
            }
            has_orphan |= kind_of(word) != SPARE;
        }
        if has_orphan {
            self.raise_orphans();
        }
        self.claims[number].store(FREE, Ordering::Release);
    }

    /// Returns a number that the next one does not get.
    fn raise_orphans(&self) -> u64 {
        let mut seen = self.words.orphans.load(Ordering::Relaxed);
        while let Err(now) = self.words.orphans.compare_exchange(
            seen,
            seen.wrapping_add(2) | 1,
            Ordering::Release,
            Ordering::Relaxed,
        ) {
            seen = now;
        }
        seen >> 1
    }

    /// Receives a message whose last receiver died, as [`receive`](Self::receive) does; `None` if there is none.
    #[cold]
    pub fn receive_orphan(&self, lane: &Lane, hand: &mut Hand) -> Option<u8> {
        let raised = self.words.orphans.load(Ordering::Acquire);
        if raised & 1 == 0 {
            return None;
        }
        for other in 0..self.lanes_used() {
            for number in 0..self.shape.hands {
                let word = self.hand(other, number).load(Ordering::Acquire);
                if kind_of(word) == ORPHAN && self.take_orphan(lane, hand, other, number, word) {
                    return Some(deliveries_of(word).saturating_add(1));
                }
            }
        }
        // None is left, unless there are new ones since.
        let _ =
            self.words.orphans.compare_exchange(raised, raised & !1, Ordering::Relaxed, Ordering::Relaxed);
        None
    }

    /// Why a receive would not get a message from the ring now; `None` if it would. Takes nothing.
    #[must_use]
    pub fn receive_refusal(&self, lane: &Lane) -> Option<Refusal> {
        self.refusal(lane, End::Head)
    }

    /// Why a send would not succeed now; `None` if it would. Sends nothing.
    #[must_use]
    pub fn send_refusal(&self, lane: &Lane) -> Option<Refusal> {
        self.refusal(lane, End::Tail)
    }

    fn refusal(&self, lane: &Lane, end: End) -> Option<Refusal> {
        if let At::Refused(why) = self.find_end(lane, end) { Some(why) } else { None }
    }

    /// True if there is a message whose last receiver died. After [`recover`](Self::recover).
    #[must_use]
    pub fn has_orphan(&self) -> bool {
        self.words.orphans.load(Ordering::Relaxed) & 1 != 0
            && (0..self.lanes_used()).any(|lane| self.has_orphans(lane))
    }

    pub(super) fn has_orphans(&self, lane: usize) -> bool {
        (0..self.shape.hands).any(|hand| kind_of(self.hand(lane, hand).load(Ordering::Relaxed)) == ORPHAN)
    }

    /// As [`take_hand`](Self::take_hand), looking at each hand: the lane may have been claimed with orphans.
    #[cold]
    #[inline(never)]
    pub(super) fn take_spare_hand(self, lane: &Lane) -> Option<Hand> {
        let free = (0..self.shape.hands).filter(|hand| lane.busy.get() >> hand & 1 == 0);
        let spare = |hand: usize| {
            let word = self.hand(lane.number, hand).load(Ordering::Acquire);
            let spare = Hand { number: hand as u32, cell: word as u32, value: 0 };
            (word < self.shape.cells as u64).then_some(spare)
        };
        let hand = free.into_iter().find_map(spare)?;
        lane.busy.set(lane.busy.get() | 1 << hand.number);
        Some(hand)
    }

    /// Receives an orphan that is in one of the lane's own hands, where it is: for a lane that has no other hand left.
    #[cold]
    pub fn receive_in_place(&self, lane: &Lane) -> Option<(Hand, u8)> {
        (0..self.shape.hands).filter(|hand| lane.busy.get() >> hand & 1 == 0).find_map(|number| {
            let word = self.hand(lane.number, number).load(Ordering::Relaxed);
            let (cell, deliveries) = (word as u32, deliveries_of(word).saturating_add(1));
            // No cell moves, and all that was done with it was done before the lane was claimed. Should this process die, it is an orphan
            // again.
            let taken = kind_of(word) == ORPHAN
                && (cell as usize) < self.shape.cells
                && self
                    .hand(lane.number, number)
                    .compare_exchange(
                        word,
                        hand_word(cell, MESSAGE, deliveries),
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    )
                    .is_ok();
            taken.then(|| {
                lane.busy.set(lane.busy.get() | 1 << number);
                let value = if self.shape.inline {
                    self.value(lane.number, number).load(Ordering::Relaxed)
                } else {
                    0
                };
                (Hand { number: number as u32, cell, value }, deliveries)
            })
        })
    }

    fn take_orphan(&self, lane: &Lane, mine: &mut Hand, other: usize, number: usize, word: u64) -> bool {
        let cell = word as u32;
        if cell as usize >= self.shape.cells {
            return false;
        }
        let deliveries = deliveries_of(word);
        let own = self.own(lane);
        if self.shape.inline {
            // It was written before the orphan's word. Until the orphan is taken it stands there, and if another should come there
            // meanwhile, that has another number.
            mine.value = self.value(other, number).load(Ordering::Relaxed);
            own.value(self.shape.hands, mine).store(mine.value, Ordering::Relaxed);
        }
        let intent = Intent::of_orphan(other, number, deliveries, mine, cell);
        own.intent.store(intent.0, Ordering::Release);
        let ours = hand_word(mine.cell, SPARE, 0);
        let theirs = self.hand(other, number);
        // Who saw the word has acquired what came before it.
        if theirs.compare_exchange(word, ours, Ordering::Release, Ordering::Relaxed).is_err() {
            own.intent.store(0, Ordering::Release);
            return false;
        }
        mine.cell = cell;
        own.set_down(mine, MESSAGE, deliveries.saturating_add(1));
        true
    }

    fn read(&self, lane: usize) -> Record {
        let record = self.record(lane);
        let hands = record[HANDS..][..self.shape.hands].iter();
        Record {
            hands: hands.map(|hand| hand.load(Ordering::Acquire)).collect(),
            intent: Intent(record[INTENT].load(Ordering::Acquire)),
        }
    }

    /// Whether the exchange of a dead lane came off; `None` if that can not be told yet.
    fn came_off(&self, number: usize, dead: &Record) -> Option<bool> {
        let shape = self.shape;
        // Whoever intended this had acquired what came before it there; and neither of its two cells comes there after it.
        let there = match dead.intent.slot() {
            Some(slot) => {
                (slot < shape.capacity).then(|| shape.cell_of(self.slot(slot).load_first(Ordering::Relaxed)))
            }
            None => {
                let (lane, hand) = dead.intent.orphan();
                (lane < shape.lanes && hand < shape.hands)
                    .then(|| self.hand(lane, hand).load(Ordering::Relaxed) as u32)
            }
        };
        match there {
            Some(cell) if cell == dead.intent.cell() => Some(false),
            Some(cell) if cell == dead.mine() => Some(true),
            Some(_) => self.search(number, dead),
            None => Some(false), // the record was scribbled over
        }
    }

    /// The cells of all slots, and the records of all lanes: of lanes at work only those that held still meanwhile.
    ///
    /// Who sees a cell in a slot, or what a lane intends, sees afterwards what that lane had in its hands before.
    fn survey(&self) -> (Vec<u32>, Vec<Option<Record>>) {
        let shape = self.shape;
        let first: Vec<Record> = (0..self.lanes_used()).map(|lane| self.read(lane)).collect();
        let slots = (0..shape.capacity)
            .map(|index| shape.cell_of(self.slot(index).load_first(Ordering::Acquire)))
            .collect();
        let is_still = |(lane, before): (usize, Record)| (self.read(lane) == before).then_some(before);
        (slots, first.into_iter().enumerate().map(is_still).collect())
    }

    /// For models: the cells of all slots, and intent and hands of the lane, if it held still.
    #[cfg(crossproc_model)]
    #[doc(hidden)]
    pub fn surveyed(&self, lane: usize) -> (Vec<u32>, Option<(u64, Vec<u64>)>) {
        let (slots, mut lanes) = self.survey();
        (slots, lanes.swap_remove(lane).map(|record| (record.intent.0, record.hands)))
    }

    /// Looks for either of the two cells elsewhere.
    fn search(&self, number: usize, dead: &Record) -> Option<bool> {
        let mut found = Cells(alloc::vec![0; self.shape.cells().div_ceil(64)]);
        let (slots, lanes) = self.survey();
        slots.into_iter().for_each(|cell| found.insert(cell));
        let mut doubtful = Vec::new();
        for (lane, record) in lanes.into_iter().enumerate() {
            let Some(record) = record else { continue };
            let settled = record.is_settled();
            for (hand, &word) in record.hands.iter().enumerate() {
                if settled || hand != record.intent.hand() {
                    found.insert(word as u32);
                }
            }
            if !settled && lane != number {
                doubtful.push(record);
            }
        }
        let (mine, wanted) = (dead.mine(), dead.intent.cell());
        loop {
            if found.has(mine) != found.has(wanted) {
                return Some(found.has(mine));
            }
            let before = doubtful.len();
            doubtful.retain(|other| {
                let (theirs, wanted) = (other.mine(), other.intent.cell());
                if found.has(theirs) == found.has(wanted) {
                    return true;
                }
                found.insert(if found.has(theirs) { wanted } else { theirs });
                false
            });
            if doubtful.len() == before {
                return None;
            }
        }
    }

    /// True if no hand has a message, and none is just getting one.
    pub(super) fn hands_are_spare(&self) -> bool {
        (0..self.lanes_used()).all(|lane| {
            // An exchange that is under way ends soon, unless its process is stopped.
            (0..ROUNDS).find_map(|_| {
                // Before the hands: if it is an older one, its cell is in a hand by now; if it is the same afterwards, it is that of
                // the hands. Read only after them, it could be gone although it came true in between.
                let intent = Intent(self.record(lane)[INTENT].load(Ordering::Acquire));
                let record = self.read(lane);
                if record.hands.iter().any(|&hand| kind_of(hand) != SPARE) {
                    return Some(false);
                }
                // What it sends it does not get.
                let may_get_one = intent.is_message()
                    && !record.is_settled()
                    && self.came_off(lane, &record) != Some(false);
                (record.intent == intent && !may_get_one).then_some(true)
            }) == Some(true)
        })
    }

    /// What is wrong with the words, if anything; exact if nobody uses the ring meanwhile. Changes nothing.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn audit(&self) -> Result<(), &'static str> {
        let shape = self.shape;
        let mut seen = Cells(alloc::vec![0; shape.cells().div_ceil(64)]);
        let mut once = |cell: u32| {
            if cell as usize >= shape.cells() {
                return Err("a cell has a number that there is not");
            }
            if seen.has(cell) {
                return Err("a cell is in two places");
            }
            seen.insert(cell);
            Ok(())
        };
        for index in 0..shape.capacity {
            once(shape.cell_of(self.slot(index).load_first(Ordering::Relaxed)))?;
        }
        let mut has_orphan = false;
        for lane in 0..shape.lanes {
            let claim = self.claims[lane].load(Ordering::Relaxed);
            let record = self.read(lane);
            if claim != FREE && Owner::from_bits(claim & !STATE).is_none() {
                return Err("a lane is claimed by what is no participant");
            }
            for (hand, &word) in record.hands.iter().enumerate() {
                let in_flight = !record.is_settled() && hand == record.intent.hand();
                if !in_flight {
                    once(word as u32)?;
                }
                has_orphan |= kind_of(word) == ORPHAN;
                if claim == FREE && kind_of(word) == MESSAGE {
                    return Err("a message is in a hand of a lane that nobody has");
                }
            }
            if claim == FREE && record.intent.exists() {
                return Err("a lane that nobody has intends something");
            }
        }
        if has_orphan && self.words.orphans.load(Ordering::Relaxed) & 1 == 0 {
            return Err("there is an orphan that nobody will look for");
        }
        self.audit_laps()
    }

    /// The slots are those of one queue: from some slot on they are one lap behind, and the full ones lie together.
    fn audit_laps(&self) -> Result<(), &'static str> {
        let shape = self.shape;
        let words: Vec<u64> =
            (0..shape.capacity).map(|index| self.slot(index).load_first(Ordering::Relaxed)).collect();
        // EMPTY(L) is 2L, FULL(L) is 2L + 1: each step round the ring adds one or two in all.
        let phase = |word: u64| shape.lap_of(word).wrapping_mul(2) + u64::from(shape.is_full(word));
        let first = phase(words[0]);
        let phases = words.iter().map(|&word| first.wrapping_sub(phase(word)) & (shape.lap_mask() << 1 | 1));
        let mut last = 0;
        for behind in phases {
            if behind < last || behind > 2 {
                return Err("the slots' laps do not follow one another");
            }
            last = behind;
        }
        if words.iter().filter(|&&word| word & super::CLOSED != 0).count() > 1 {
            return Err("the ring was closed in two places");
        }
        Ok(())
    }
}
