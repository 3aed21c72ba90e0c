//! The semaphore whose permits come back from the dead, without a lock.
//!
//! ```text
//! word              count | slot | kind | number    permits to be had; the last operation: whose cell it is about,
//!                                                   what it does to that cell, which one on that cell it is
//! state[slot]       held | number                   permits that the participant has; operations *recorded* in it
//! generation[slot]                                  which participant of the slot
//! ```
//!
//! Every change of the count is one compare-and-swap of `word`. Who wants to make the next one *records* the last
//! one first, whoever made it: so at most one operation is unrecorded, and a death or stop between an operation
//! and its record leaves nothing to wait for. The permits of a participant that is gone come back by an operation
//! like any other (`Emptied`), made by whoever finds none left.
//!
//! Who comes to a slot makes the cell its own (*adopts* it) before its first operation, having taken out what its
//! predecessor had. Nobody else writes `generation`: a recorder has no way to know whose operation it records.
//!
//! Checked in every state: the count and what everybody holds make the total; cell and unrecorded operation say
//! who holds what. At rest: nobody sleeps while there is a permit, or one of a dead process. Alone: with all
//! others stopped, everybody finishes, or sleeps because the living have all permits.

use crate::explore::{Cx, Object, Run, SLOTS, State, explore_all, explore_bugs};

const WORD: usize = 0;
const CELL: usize = 1;
const GENERATION: usize = CELL + SLOTS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Nothing,
    Taken,
    /// Given back, or used up.
    Given,
    /// All that the cell held.
    Emptied,
}

const KINDS: [Kind; 4] = [Kind::Nothing, Kind::Taken, Kind::Given, Kind::Emptied];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Word {
    count: u16,
    slot: usize,
    kind: Kind,
    number: u16,
}

impl Word {
    fn of(bits: u16) -> Self {
        Self {
            count: bits & 7,
            slot: usize::from(bits >> 3 & 3),
            kind: KINDS[usize::from(bits >> 5 & 3)],
            number: bits >> 7,
        }
    }

    fn bits(self) -> u16 {
        self.count | (self.slot as u16) << 3 | (self.kind as u16) << 5 | self.number << 7
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    held: u16,
    number: u16,
}

impl Cell {
    fn of(bits: u16) -> Self {
        Self { held: bits & 7, number: bits >> 3 }
    }

    fn bits(self) -> u16 {
        self.held | self.number << 3
    }

    fn after(self, kind: Kind) -> Self {
        let held = match kind {
            Kind::Nothing => self.held,
            Kind::Taken => self.held + 1,
            Kind::Given => self.held.saturating_sub(1),
            Kind::Emptied => 0,
        };
        Self { held, number: self.number + 1 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Acquire,
    /// Of a permit that was acquired.
    GiveBack,
    /// Of a permit that was acquired, or of a new one.
    Release,
    Consume,
}

bugs! {
    RecordsTwice "records without comparing the numbers"
        is "cells and word do not say who holds what" in "three, one killed"
    NotRecorded "does not record the last operation before its own"
        is "cells and word do not say who holds what" in "three, one killed"
    CellFirst "writes its cell before the word"
        is "cells and word do not say who holds what" in "three, one killed"
    OneByOne "takes out one permit of a dead participant, as if that had given it back"
        is "taken out by halves" in "the dead one had two"
    NumberKept "an operation has the number of the one before"
        is "cells and word do not say who holds what" in "three, one killed"
    ClearsFirst "clears the cell of a dead participant, then adds to the count"
        is "cells and word do not say who holds what" in "three, one killed"
    TakesOverCell "adopts without taking out what its predecessor had"
        is "a newborn inherits" in "a newborn in the slot"
    AdoptsUnrecorded "adopts without recording its predecessor's last operation"
        is "a newborn inherits" in "a newborn in the slot"
    GenerationOfTheSlot "takes a cell for that of whoever has the slot now"
        is "a newborn inherits" in "a newborn in the slot"
    NeverReclaims "leaves the permits of the dead"
        is "sleeps though a dead process has permits" in "three, one killed"
    LooksBeforeRecording "looks for dead holders without recording the last operation"
        is "sleeps though a dead process has permits" in "three, one killed"
    GivesUpOnChange "takes a failed reclaim for nobody dead"
        is "sleeps though a dead process has permits" in "consumed beside a dead holder"
    SilentReclaim "does not notify after taking out two and acquiring one"
        is "sleeps though there is a permit" in "the dead one had two, a newborn reclaims"
    NotifiesEarly "notifies before it gives back"
        is "sleeps though there is a permit" in "three, nobody killed"
    ListensLate "listens after its last look"
        is "sleeps though there is a permit" in "three, nobody killed"
    DeparturesUnchecked "sleeps though somebody was buried since it listened"
        is "sleeps though a dead process has permits" in "three, one killed"
    DeparturesLast "a burial clears the claim before it bumps departures"
        is "sleeps though a dead process has permits" in "two, both killed, slow burials"
    Unbounded "takes out more than may be free"
        is "more than the bound" in "a dead holder and an over-release"
    GivesBackUnbounded "gives back over the bound"
        is "more than the bound" in "a dead holder and an over-release"
}

#[derive(Clone, Copy)]
struct Semaphore {
    name: &'static str,
    slots: &'static [Option<u8>],
    operations: &'static [&'static [Operation]],
    kills: (u8, &'static [u8]),
    deadlines: bool,
    slow_burials: bool,
    total: u16,
    bound: u16,
    /// How many permits process 0 begins with.
    held: u16,
    number_bits: u32,
    shows: &'static [u32],
    at_least: usize,
    bug: Option<Bug>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Ghost {
    total: u16,
    held: [u16; 4],
}

// What is seen.
const SLEPT: u32 = 0;
const RECLAIMED: u32 = 1;
const RECORDED_FOR_ANOTHER: u32 = 2;
const ADOPTED: u32 = 3;
const RECLAIMED_OWN_SLOT: u32 = 4;
const TIMED_OUT: u32 = 5;
const CLAMPED: u32 = 6;

impl Semaphore {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The number of the next operation on a cell, as a word has it.
    fn next(&self, cell: Cell) -> u16 {
        (cell.number + u16::from(!self.has(Bug::NumberKept))) & ((1 << self.number_bits) - 1)
    }

    fn is_unrecorded(&self, word: Word, cell: Cell) -> bool {
        word.kind != Kind::Nothing && (self.next(cell) == word.number || self.has(Bug::RecordsTwice))
    }

    fn record(&self, cx: &mut Cx<Ghost>, word: Word) -> Run<()> {
        cx.call(|cx| {
            let cell = Cell::of(cx.load(CELL + word.slot)?);
            if self.is_unrecorded(word, cell) {
                // If this fails, somebody else has recorded it.
                let done = cx.cas(CELL + word.slot, cell.bits(), cell.after(word.kind).bits())?;
                if done && word.slot != cx.slot() {
                    cx.saw(RECORDED_FOR_ANOTHER);
                }
            }
            Ok(0)
        })
        .map(drop)
    }

    /// A moment with everything recorded, and the cell its own: word and cell.
    fn look(&self, cx: &mut Cx<Ghost>) -> Run<(Word, Cell)> {
        let word = Word::of(cx.load(WORD)?);
        let unrecorded = if word.count == 0 { Bug::LooksBeforeRecording } else { Bug::NotRecorded };
        let own = word.slot == cx.slot() && self.has(Bug::AdoptsUnrecorded);
        if !self.has(unrecorded) && !own {
            self.record(cx, word)?;
        }
        let me = cx.slot();
        let bits = cx.call(|cx| {
            let cell = Cell::of(cx.load(CELL + me)?);
            let generation = cx.load(GENERATION + me)?;
            if generation == u16::from(cx.generation()) || self.has(Bug::GenerationOfTheSlot) {
                return Ok(cell.bits());
            }
            if cell.held == 0 || self.has(Bug::TakesOverCell) {
                cx.store(GENERATION + me, u16::from(cx.generation()))?;
                cx.saw(ADOPTED);
                return cx.again();
            }
            cx.saw(RECLAIMED_OWN_SLOT);
            self.empty(cx, word, me, cell, generation)?;
            cx.again()
        })?;
        Ok((word, Cell::of(bits)))
    }

    /// One operation on the own cell; starts over if the word has changed.
    fn change(&self, cx: &mut Cx<Ghost>, from: Word, cell: Cell, count: u16, kind: Kind) -> Run<()> {
        let to = Word { count, slot: cx.slot(), kind, number: self.next(cell) };
        if self.has(Bug::CellFirst) && !cx.cas(CELL + to.slot, cell.bits(), cell.after(kind).bits())? {
            return cx.again();
        }
        if !cx.cas(WORD, from.bits(), to.bits())? {
            return cx.again();
        }
        cx.ghost(|s, me| {
            let held = &mut s.ghost.held[me];
            *held = if kind == Kind::Taken { *held + 1 } else { held.saturating_sub(1) };
            if kind != Kind::Taken {
                s.ghost.total = count + s.ghost.held.iter().sum::<u16>();
            }
            None
        });
        self.record(cx, to)
    }

    /// Adds what a dead participant holds to the count.
    fn empty(&self, cx: &mut Cx<Ghost>, from: Word, slot: usize, cell: Cell, generation: u16) -> Run<()> {
        let cleared = Cell { held: 0, ..cell }.bits();
        if self.has(Bug::ClearsFirst) && !cx.cas(CELL + slot, cell.bits(), cleared)? {
            return cx.again();
        }
        let (back, kind) =
            if self.has(Bug::OneByOne) { (1, Kind::Given) } else { (cell.held, Kind::Emptied) };
        let bound = if self.has(Bug::Unbounded) { 7 } else { self.bound };
        let count = bound.min(from.count + back);
        let to = Word { count, slot, kind, number: self.next(cell) };
        if !cx.cas(WORD, from.bits(), to.bits())? {
            return if self.has(Bug::GivesUpOnChange) { Ok(()) } else { cx.again() };
        }
        cx.saw(RECLAIMED);
        if count < from.count + back {
            cx.saw(CLAMPED);
        }
        cx.ghost(|s, _| {
            let mut lost = from.count + back - count;
            let mut robbed = false;
            for p in 0..s.processes.len() {
                let it = &s.processes[p];
                if usize::from(it.slot) == slot && u16::from(it.generation) == generation {
                    robbed |= it.is_alive() && s.ghost.held[p] > 0;
                    lost += s.ghost.held[p].saturating_sub(back);
                    s.ghost.held[p] = 0;
                }
            }
            s.ghost.total -= lost;
            if robbed {
                Some("a living process is robbed")
            } else {
                (back < cell.held).then_some("taken out by halves")
            }
        });
        self.record(cx, to)?;
        if !self.has(Bug::SilentReclaim) {
            cx.notify(usize::MAX)?;
        }
        cx.again()
    }

    fn reclaim(&self, cx: &mut Cx<Ghost>, word: Word) -> Run<()> {
        if self.has(Bug::NeverReclaims) {
            return Ok(());
        }
        for slot in 0..SLOTS {
            let dead = cx.call(|cx| {
                let cell = Cell::of(cx.load(CELL + slot)?);
                if cell.held == 0 {
                    return Ok(0);
                }
                let mut generation = cx.load(GENERATION + slot)? as u8;
                if self.has(Bug::GenerationOfTheSlot) {
                    generation = cx.s.slots[slot].generation;
                }
                let own = slot == cx.slot() && generation == cx.generation();
                let dead = !own && cx.is_dead(slot, generation)?;
                Ok(if dead { cell.bits() | u16::from(generation) << 11 } else { 0 })
            })?;
            if dead != 0 {
                self.empty(cx, word, slot, Cell::of(dead & 0x7FF), dead >> 11)?;
            }
        }
        Ok(())
    }

    fn acquire(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let mut ticket = if self.has(Bug::ListensLate) { 0 } else { cx.listen()? };
        let (word, cell) = self.look(cx)?;
        if word.count > 0 {
            return self.change(cx, word, cell, word.count - 1, Kind::Taken);
        }
        self.reclaim(cx, word)?;
        if self.has(Bug::ListensLate) {
            ticket = cx.listen()?;
        }
        cx.saw(SLEPT);
        if !cx.sleep(ticket, !self.has(Bug::DeparturesUnchecked))? {
            cx.saw(TIMED_OUT);
            // What would follow has nothing to work with.
            cx.ghost(|s, me| {
                s.processes[me].operation = 10;
                None
            });
        }
        Ok(())
    }

    /// `back`: how many come back to the count.
    fn part_with_one(&self, cx: &mut Cx<Ghost>, back: u16) -> Run<()> {
        if self.has(Bug::NotifiesEarly) && cx.stage() == 0 {
            cx.notify(1)?;
            return cx.goto(1);
        }
        let (word, cell) = self.look(cx)?;
        // A release of new permits may have filled the count while this one was out.
        let bound = if self.has(Bug::GivesBackUnbounded) { 7 } else { self.bound };
        self.change(cx, word, cell, bound.min(word.count + back), Kind::Given)?;
        if back > 0 && !self.has(Bug::NotifiesEarly) { cx.notify(1) } else { Ok(()) }
    }

    fn release(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let (word, cell) = self.look(cx)?;
        if word.count == self.bound {
            return Ok(());
        }
        let kind = if cell.held > 1 { Kind::Given } else { Kind::Emptied };
        self.change(cx, word, cell, word.count + 1, kind)?;
        cx.notify(1)
    }

    /// What a slot holds, the unrecorded operation included.
    fn held_by_slot(&self, s: &State<Ghost>, slot: usize) -> u16 {
        let (word, cell) = (Word::of(s.words[WORD]), Cell::of(s.words[CELL + slot]));
        let next = (cell.number + 1) & ((1 << self.number_bits) - 1);
        let unrecorded = word.slot == slot && word.kind != Kind::Nothing && next == word.number;
        if unrecorded { cell.after(word.kind).held } else { cell.held }
    }

    fn available(s: &State<Ghost>) -> Option<&'static str> {
        let dead = |p: usize| !s.processes[p].is_alive() && s.ghost.held[p] > 0;
        if Word::of(s.words[WORD]).count > 0 {
            Some("sleeps though there is a permit")
        } else if (0..s.processes.len()).any(dead) {
            Some("sleeps though a dead process has permits")
        } else {
            None
        }
    }
}

impl Object for Semaphore {
    type Ghost = Ghost;

    fn name(&self) -> &'static str {
        self.name
    }
    fn promises(&self) -> (&'static [u32], usize) {
        (self.shows, self.at_least)
    }
    fn slots(&self) -> &'static [Option<u8>] {
        self.slots
    }
    fn kills(&self) -> (u8, &'static [u8]) {
        self.kills
    }
    fn deadlines(&self) -> bool {
        self.deadlines
    }
    fn burials(&self) -> (bool, bool) {
        (self.slow_burials, self.has(Bug::DeparturesLast))
    }
    fn ghost(&self) -> Ghost {
        Ghost { total: self.total, held: [self.held, 0, 0, 0] }
    }
    fn operations(&self, process: usize) -> usize {
        self.operations[process].len()
    }

    fn begin(&self, s: &mut State<Ghost>) {
        s.words[WORD] =
            Word { count: self.total - self.held, slot: 0, kind: Kind::Nothing, number: 0 }.bits();
        s.words[CELL] = Cell { held: self.held, number: 0 }.bits();
        s.words[GENERATION] = u16::from(self.held > 0);
    }

    fn run(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        match self.operations[cx.me][usize::from(cx.s.processes[cx.me].operation)] {
            Operation::Acquire => self.acquire(cx),
            Operation::GiveBack => self.part_with_one(cx, 1),
            Operation::Consume => self.part_with_one(cx, 0),
            Operation::Release => self.release(cx),
        }
    }

    fn wrong(&self, s: &State<Ghost>) -> Option<&'static str> {
        let word = Word::of(s.words[WORD]);
        if word.count > self.bound {
            return Some("more than the bound");
        }
        if word.count + s.ghost.held.iter().sum::<u16>() != s.ghost.total {
            return Some("the permits do not add up");
        }
        for slot in 0..SLOTS {
            let held = self.held_by_slot(s, slot);
            let of_slot = |p: &usize| usize::from(s.processes[*p].slot) == slot;
            let truth: u16 = (0..s.processes.len()).filter(of_slot).map(|p| s.ghost.held[p]).sum();
            let living: u16 = s.living(slot).map(|(p, _)| s.ghost.held[p]).sum();
            let whose = s.words[GENERATION + slot];
            let is_theirs = s.living(slot).any(|(_, it)| u16::from(it.generation) == whose)
                || self.has(Bug::GenerationOfTheSlot);
            if is_theirs && held > living && held == truth {
                return Some("a newborn inherits");
            }
            if held != truth {
                return Some("cells and word do not say who holds what");
            }
            if !is_theirs && living > 0 {
                return Some("a living process has permits in the name of a dead one");
            }
        }
        None
    }

    fn stranded(&self, s: &State<Ghost>, p: usize) -> Option<&'static str> {
        assert!(s.processes[p].asleep, "nothing else blocks");
        Self::available(s)
    }

    fn alone(&self, _: &State<Ghost>, after: &State<Ghost>, _: usize) -> Option<&'static str> {
        Self::available(after)
    }

    fn show(&self, s: &State<Ghost>) -> String {
        let Word { count, slot, kind, number } = Word::of(s.words[WORD]);
        let mut text = format!("{count} free, {kind:?} {number} of {slot} ");
        for slot in 0..SLOTS {
            let Cell { held, number } = Cell::of(s.words[CELL + slot]);
            text += &format!("| {held} no {number} gen {} ", s.words[GENERATION + slot]);
        }
        text + &format!("  {:?}", s.ghost.held)
    }
}

use Operation::{Acquire, Consume, GiveBack, Release};

const TAKE: &[Operation] = &[Acquire, GiveBack];
const KEEP: &[Operation] = &[Acquire];
const TAKE_TWICE: &[Operation] = &[Acquire, GiveBack, Acquire, GiveBack];
const TWO: &[Option<u8>] = &[Some(0), Some(1)];
const THREE: &[Option<u8>] = &[Some(0), Some(1), Some(2)];
const ANY: &[u8] = &[0, 1, 2];

const PLAIN: Semaphore = Semaphore {
    name: "",
    slots: THREE,
    operations: &[TAKE, TAKE, TAKE],
    kills: (0, ANY),
    deadlines: false,
    slow_burials: false,
    total: 1,
    bound: 7,
    held: 0,
    number_bits: 8,
    shows: &[],
    at_least: 0,
    bug: None,
};

const CONFIGS: &[Semaphore] = &[
    Semaphore {
        name: "three, nobody killed",
        shows: &[SLEPT, RECORDED_FOR_ANOTHER, ADOPTED],
        at_least: 74_000,
        ..PLAIN
    },
    Semaphore { name: "three, one killed", kills: (1, ANY), shows: &[RECLAIMED], at_least: 280_000, ..PLAIN },
    Semaphore {
        name: "two, both killed, two rounds",
        slots: TWO,
        operations: &[TAKE_TWICE, TAKE_TWICE],
        kills: (2, ANY),
        shows: &[RECLAIMED],
        at_least: 23_000,
        ..PLAIN
    },
    Semaphore {
        name: "two, both killed, slow burials",
        slots: TWO,
        kills: (2, ANY),
        slow_burials: true,
        shows: &[RECLAIMED],
        at_least: 6_500,
        ..PLAIN
    },
    Semaphore {
        name: "newborns, slow burials",
        slots: &[Some(0), Some(1), None],
        operations: &[KEEP, TAKE, TAKE],
        kills: (2, &[0]),
        slow_burials: true,
        total: 2,
        shows: &[RECLAIMED, RECLAIMED_OWN_SLOT],
        at_least: 28_000,
        ..PLAIN
    },
    Semaphore {
        name: "three, two permits, two killed",
        operations: &[TAKE, KEEP, TAKE],
        kills: (2, ANY),
        total: 2,
        shows: &[RECLAIMED],
        at_least: 320_000,
        ..PLAIN
    },
    Semaphore {
        name: "a newborn in the slot",
        slots: &[Some(0), Some(1), None],
        operations: &[KEEP, TAKE, TAKE],
        kills: (1, &[0]),
        total: 2,
        shows: &[RECLAIMED, RECLAIMED_OWN_SLOT],
        at_least: 12_000,
        ..PLAIN
    },
    Semaphore {
        name: "newborns upon newborns",
        slots: &[Some(0), Some(1), None, None],
        operations: &[KEEP, TAKE, KEEP, KEEP],
        kills: (2, &[0]),
        total: 2,
        shows: &[RECLAIMED, RECLAIMED_OWN_SLOT],
        at_least: 59_000,
        ..PLAIN
    },
    Semaphore {
        name: "the dead one had two",
        operations: &[&[GiveBack], TAKE, TAKE],
        kills: (1, &[0]),
        total: 2,
        held: 2,
        shows: &[RECLAIMED],
        at_least: 60_000,
        ..PLAIN
    },
    Semaphore {
        name: "the dead one had two, a newborn reclaims",
        slots: &[Some(0), Some(1), Some(2), None],
        operations: &[&[], KEEP, KEEP, KEEP],
        kills: (1, &[0]),
        total: 2,
        held: 2,
        shows: &[RECLAIMED],
        at_least: 210_000,
        ..PLAIN
    },
    Semaphore {
        name: "two threads of one process",
        slots: &[Some(0), Some(0), Some(1)],
        kills: (1, &[0]),
        shows: &[RECLAIMED],
        at_least: 61_000,
        ..PLAIN
    },
    Semaphore {
        name: "deadlines pass, one killed",
        operations: &[TAKE, TAKE, KEEP],
        kills: (1, ANY),
        deadlines: true,
        shows: &[TIMED_OUT],
        at_least: 180_000,
        ..PLAIN
    },
    Semaphore {
        name: "consumed and released",
        operations: &[&[Acquire, Consume, Release], TAKE, &[Release]],
        kills: (1, ANY),
        shows: &[RECLAIMED],
        at_least: 280_000,
        ..PLAIN
    },
    Semaphore {
        name: "consumed beside a dead holder",
        operations: &[KEEP, &[Acquire, Consume], KEEP],
        kills: (1, &[0]),
        total: 2,
        shows: &[RECLAIMED],
        at_least: 34_000,
        ..PLAIN
    },
    Semaphore {
        name: "a dead holder and an over-release",
        operations: &[&[Acquire, Acquire, GiveBack], &[Release, Release], KEEP],
        kills: (1, &[0]),
        bound: 1,
        shows: &[RECLAIMED, CLAMPED],
        at_least: 130_000,
        ..PLAIN
    },
];

/// The limit: a process stands between its look at the word and the record while the numbers of a cell go round exactly once.
const STOPPED_THROUGH_A_WRAP: Semaphore = Semaphore {
    name: "stopped through a wrap",
    slots: TWO,
    operations: &[TAKE_TWICE, TAKE],
    number_bits: 2,
    total: 2,
    ..PLAIN
};

#[test]
fn permits_are_never_lost_nor_doubled() {
    explore_all(CONFIGS);
}

#[test]
fn every_planted_bug_is_caught() {
    explore_bugs(BUGS, |bug, name| {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        Semaphore { bug: Some(bug), ..*config }
    });
}

#[test]
fn numbers_must_not_go_round_while_a_process_is_about_to_record() {
    let limit = ((), "(none: the limit)", "cells and word do not say who holds what", "");
    explore_bugs(&[limit], |_, _| STOPPED_THROUGH_A_WRAP);
}
