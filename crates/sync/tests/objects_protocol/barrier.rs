//! The barrier that a dead party breaks.
//!
//! ```text
//! word        generation | arrived | broken
//! entry[2]    the last generations that were broken, and reset
//! cell[slot]  generation of the participant | its handles
//! ```
//!
//! Who has a handle is a party. A cell with handles of somebody dead is the evidence of that death: whoever comes or
//! waits and finds some breaks the barrier; so do deadlines and `abort`. It stays broken until a reset, which first
//! strikes off the evidence, then writes down how the generation ended, then begins the next one. A sleeper that comes
//! back late learns there that its own generation was not released.
//!
//! Evidence is struck off only by who has proof of the death and *then* sees the barrier broken: by a reset, and by
//! who registers in the slot of the dead one, after breaking the barrier. So a death before a reset is forgotten by
//! it, and none after it is. What has changed since it was read is no evidence: its owner may have left in good order.
//!
//! Checked: all parties of a generation are told how it ended; nobody is left waiting after a release, a break,
//! or for a dead party; nobody who comes after a death is released over it; no death that a reset has struck off
//! breaks the barrier, and none is struck off that came after the reset.

use crate::explore::{Cx, Object, Run, SLOTS, State, explore_all, explore_bugs};

const WORD: usize = 0;
const CELL: usize = 1;
const ENTRY: usize = CELL + SLOTS;
const ENTRIES: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Word {
    generation: u8,
    arrived: u8,
    broken: bool,
}

impl Word {
    fn of(bits: u16) -> Self {
        Self { generation: (bits & 15) as u8, arrived: (bits >> 4 & 3) as u8, broken: bits >> 6 & 1 == 1 }
    }

    fn bits(self) -> u16 {
        u16::from(self.generation) | u16::from(self.arrived) << 4 | u16::from(self.broken) << 6
    }

    fn next(self) -> Self {
        Self { generation: self.generation + 1, arrived: 0, broken: false }
    }

    /// What is written down when it was broken.
    fn entry(self) -> u16 {
        u16::from(self.generation) + 1
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    generation: u8,
    handles: u8,
}

impl Cell {
    fn of(bits: u16) -> Self {
        Self { generation: (bits & 15) as u8, handles: (bits >> 4) as u8 }
    }

    fn bits(self) -> u16 {
        u16::from(self.generation) | u16::from(self.handles) << 4
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Register,
    Wait,
    Reset,
    Abort,
    Close,
}

/// Stages from here on: has arrived in generation 0, 1, ...
const ARRIVED: u8 = 16;

bugs! {
    NotRemembered "reset does not write down how the generation ended"
        is "told what did not happen" in "three, aborted"
    RemembersLate "reset writes that down when the next generation has begun"
        is "told what did not happen" in "three, aborted"
    NoLook "nobody looks for dead parties"
        is "left waiting" in "two and a third that resets"
    LastDoesNotLook "the last party does not look for dead parties before it releases"
        is "released over a dead party" in "a newborn joins"
    StrikesFirst "reset strikes off the dead before it breaks the barrier"
        is "a death is passed over" in "two and a third that resets"
    StrikesLate "reset does not look at the word between the proof of a death and striking it off"
        is "a death is passed over" in "two resets"
    NeverStrikes "reset leaves the evidence"
        is "breaks for a death that was struck off" in "two and a third that resets"
    RegistersOver "who registers in a dead party's slot does not break the barrier"
        is "a death is passed over" in "a newborn in the slot"
    RegistersBlindly "who registers in a dead party's slot looks at the word after the cell"
        is "breaks for a death that was struck off" in "a newborn in the slot"
    BreaksWhatIs "breaks whatever generation there is, not that in which the dead one was found"
        is "breaks for a death that was struck off" in "two resets"
    TimeoutBreaksWhatIs "a deadline breaks whatever generation there is"
        is "told what did not happen" in "deadlines pass"
    SilentRelease "the last party notifies nobody"
        is "left waiting" in "three, a reset"
    SilentBreak "who breaks notifies nobody"
        is "left waiting" in "deadlines pass"
    NotifiesEarly "the last party notifies before it releases"
        is "left waiting" in "three, a reset"
    KeepsArrived "reset keeps the number of the arrived"
        is "too few" in "three, aborted"
    CloseForgotten "closing leaves the handle in the cell"
        is "breaks for one that was no party" in "one leaves"
    CellNotReread "does not look at the cell again after the proof of death"
        is "breaks for one that was no party" in "one leaves"
}

#[derive(Clone, Copy)]
struct Barrier {
    name: &'static str,
    slots: &'static [Option<u8>],
    operations: &'static [&'static [Operation]],
    parties: u8,
    kills: (u8, &'static [u8]),
    deadlines: bool,
    shows: &'static [u32],
    at_least: usize,
    bug: Option<Bug>,
}

/// Bit sets of processes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
struct Ghost {
    parties: u8,
    /// Died as parties; whose evidence nobody has acted upon, which was struck off, and that before the last reset.
    died: u8,
    evident: u8,
    struck: u8,
    forgotten: u8,
    /// Died as parties since the last reset.
    fresh: u8,
    /// Who has arrived in the present generation.
    arrived: u8,
    /// Whose evidence there was when a process came last.
    seen: [u8; 4],
    /// Which generations were released.
    released: u16,
}

const RELEASED: u32 = 0;
const BROKEN: u32 = 1;
const BROKEN_BY_DEATH: u32 = 2;
const STRUCK: u32 = 3;
const TOLD_LATE: u32 = 4;
const REGISTERED_OVER: u32 = 5;
const TIMED_OUT: u32 = 6;
const STRUCK_LATE: u32 = 7;

impl Barrier {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// The wait of a party is over.
    fn told(&self, cx: &mut Cx<Ghost>, generation: u8, released: bool) {
        cx.saw(if released { RELEASED } else { BROKEN });
        cx.ghost(|s, _| {
            (released != (s.ghost.released >> generation & 1 == 1)).then_some("told what did not happen")
        });
    }

    /// The dead that a cell is evidence of.
    fn victims(s: &State<Ghost>, slot: usize, cell: Cell) -> u8 {
        let is = |p: &usize| {
            let it = &s.processes[*p];
            let is_its = usize::from(it.slot) == slot && it.generation == cell.generation;
            is_its && it.generation > 0 && !it.is_alive() && cell.handles > 0
        };
        (0..s.processes.len()).filter(is).fold(0, |set, p| set | 1 << p)
    }

    /// The cell of a slot, if it is evidence.
    fn look(&self, cx: &mut Cx<Ghost>, slot: usize) -> Run<Option<Cell>> {
        let bits = cx.call(|cx| {
            let cell = Cell::of(cx.load(CELL + slot)?);
            let dead = cell.handles > 0
                && cx.is_dead(slot, cell.generation)?
                // It may have closed its handle before it died, or left.
                && (self.has(Bug::CellNotReread) || cx.load(CELL + slot)? == cell.bits());
            Ok(if dead { cell.bits() } else { 0 })
        })?;
        Ok((bits != 0).then(|| Cell::of(bits)))
    }

    /// Takes note that evidence goes.
    fn strike(cx: &mut Cx<Ghost>, slot: usize, cell: Cell) {
        cx.ghost(|s, _| {
            let victims = Self::victims(s, slot, cell);
            s.ghost.evident &= !victims;
            s.ghost.struck |= victims;
            let broken = Word::of(s.words[WORD]).broken;
            (!broken && victims & s.ghost.fresh != 0).then_some("a death is passed over")
        });
    }

    /// Breaks the barrier and starts over if there is a dead party.
    fn look_at_all(&self, cx: &mut Cx<Ghost>, word: Word) -> Run<()> {
        for slot in 0..SLOTS {
            if let Some(cell) = self.look(cx, slot)? {
                return self.shatter(cx, word, Some((slot, cell)));
            }
        }
        Ok(())
    }

    fn wait(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        if cx.stage() == 0 { self.arrive(cx) } else { self.linger(cx, cx.stage() - ARRIVED) }
    }

    fn arrive(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let word = Word::of(cx.load(WORD)?);
        if word.broken {
            self.told(cx, word.generation, false);
            return Ok(());
        }
        if word.arrived + 1 < self.parties {
            let to = Word { arrived: word.arrived + 1, ..word };
            if !cx.cas(WORD, word.bits(), to.bits())? {
                return cx.again();
            }
            cx.ghost(|s, me| {
                s.ghost.arrived |= 1 << me;
                None
            });
            return cx.goto(ARRIVED + word.generation);
        }
        cx.ghost(|s, me| {
            s.ghost.seen[me] = s.ghost.evident;
            None
        });
        if !self.has(Bug::LastDoesNotLook) && !self.has(Bug::NoLook) {
            self.look_at_all(cx, word)?;
        }
        if self.has(Bug::NotifiesEarly) {
            cx.notify(usize::MAX)?;
        }
        if !cx.cas(WORD, word.bits(), word.next().bits())? {
            return cx.again();
        }
        cx.ghost(|s, me| {
            s.ghost.released |= 1 << word.generation;
            let arrived = (s.ghost.arrived | 1 << me).count_ones();
            s.ghost.arrived = 0;
            let over_the_dead = s.ghost.seen[me] & s.ghost.evident != 0;
            s.ghost.seen[me] = 0;
            if arrived < u32::from(self.parties) {
                Some("too few")
            } else if over_the_dead {
                Some("released over a dead party")
            } else {
                None
            }
        });
        self.told(cx, word.generation, true);
        if self.has(Bug::SilentRelease) || self.has(Bug::NotifiesEarly) {
            return Ok(());
        }
        cx.notify(usize::MAX)
    }

    fn linger(&self, cx: &mut Cx<Ghost>, generation: u8) -> Run<()> {
        let ticket = cx.listen()?;
        let word = Word::of(cx.load(WORD)?);
        if word.generation != generation {
            let entries = [cx.load(ENTRY)?, cx.load(ENTRY + 1)?];
            let mine = u16::from(generation) + 1;
            let forgotten = entries.iter().all(|&entry| entry > mine);
            let broken = entries.contains(&mine) || forgotten;
            if broken {
                cx.saw(TOLD_LATE);
            }
            self.told(cx, generation, !broken);
            return Ok(());
        }
        if word.broken {
            self.told(cx, generation, false);
            return Ok(());
        }
        if !self.has(Bug::NoLook) {
            self.look_at_all(cx, word)?;
        }
        if !cx.sleep(ticket, true)? {
            cx.saw(TIMED_OUT);
            return self.shatter(cx, word, None);
        }
        Ok(())
    }

    /// Breaks the generation, unless it has ended, and starts over; for a dead party, or none.
    fn shatter(&self, cx: &mut Cx<Ghost>, word: Word, dead: Option<(usize, Cell)>) -> Run<()> {
        let from = Word::of(cx.load(WORD)?);
        let any = if dead.is_some() { Bug::BreaksWhatIs } else { Bug::TimeoutBreaksWhatIs };
        if from.broken || from.generation != word.generation && !self.has(any) {
            return cx.again();
        }
        if !cx.cas(WORD, from.bits(), Word { broken: true, ..from }.bits())? {
            return cx.again();
        }
        if let Some((slot, cell)) = dead {
            cx.saw(BROKEN_BY_DEATH);
            cx.ghost(|s, _| {
                let victims = Self::victims(s, slot, cell);
                s.ghost.evident &= !victims;
                if victims & s.ghost.died == 0 {
                    Some("breaks for one that was no party")
                } else if victims & s.ghost.died & !s.ghost.forgotten == 0 {
                    Some("breaks for a death that was struck off")
                } else {
                    None
                }
            });
        }
        if !self.has(Bug::SilentBreak) {
            cx.notify(usize::MAX)?;
        }
        if dead.is_none() && self.has(Bug::TimeoutBreaksWhatIs) {
            self.told(cx, word.generation, false);
            return Ok(());
        }
        cx.again()
    }

    fn abort(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let word = Word::of(cx.load(WORD)?);
        if word.broken {
            return Ok(());
        }
        if !cx.cas(WORD, word.bits(), Word { broken: true, ..word }.bits())? {
            return cx.again();
        }
        if self.has(Bug::SilentBreak) { Ok(()) } else { cx.notify(usize::MAX) }
    }

    fn reset(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let word = Word::of(cx.load(WORD)?);
        if self.has(Bug::StrikesFirst) && cx.stage() == 0 {
            self.strike_off_the_dead(cx, word)?;
            return cx.goto(1);
        }
        if !word.broken {
            if word.arrived == 0 {
                let mut dead = false;
                for slot in 0..SLOTS {
                    dead = dead || self.look(cx, slot)?.is_some();
                }
                if !dead {
                    return Ok(());
                }
            }
            return self.shatter(cx, word, None);
        }
        self.strike_off_the_dead(cx, word)?;
        if !self.has(Bug::NotRemembered) && !self.has(Bug::RemembersLate) {
            self.remember(cx, word)?;
        }
        let arrived = if self.has(Bug::KeepsArrived) { word.arrived } else { 0 };
        if !cx.cas(WORD, word.bits(), Word { arrived, ..word.next() }.bits())? {
            return Ok(()); // somebody else has reset it
        }
        cx.ghost(|s, _| {
            s.ghost.arrived = 0;
            s.ghost.forgotten = s.ghost.struck;
            s.ghost.fresh = 0;
            None
        });
        if self.has(Bug::RemembersLate) {
            self.remember(cx, word)?;
        }
        // Whoever broke it may be stopped.
        cx.notify(usize::MAX)
    }

    fn strike_off_the_dead(&self, cx: &mut Cx<Ghost>, word: Word) -> Run<()> {
        cx.call(|cx| {
            for slot in 0..SLOTS {
                let Some(cell) = self.look(cx, slot)? else { continue };
                // Dead before the reset, not since.
                let blind = self.has(Bug::StrikesLate) || self.has(Bug::StrikesFirst);
                if !blind && cx.load(WORD)? != word.bits() {
                    continue;
                }
                if self.has(Bug::NeverStrikes) {
                    cx.linger()?;
                    cx.ghost(|s, _| {
                        s.ghost.struck |= Self::victims(s, slot, cell);
                        None
                    });
                } else if cx.cas(CELL + slot, cell.bits(), 0)? {
                    cx.saw(STRUCK);
                    if cx.s.words[WORD] != word.bits() {
                        cx.saw(STRUCK_LATE);
                    }
                    Self::strike(cx, slot, cell);
                }
            }
            Ok(0)
        })
        .map(drop)
    }

    /// Writes down that the generation was broken, over the oldest entry.
    fn remember(&self, cx: &mut Cx<Ghost>, word: Word) -> Run<()> {
        cx.call(|cx| {
            let entries = [cx.load(ENTRY)?, cx.load(ENTRY + 1)?];
            let oldest = if entries[1] < entries[0] { 1 } else { 0 };
            let still = self.has(Bug::RemembersLate) || cx.load(WORD)? == word.bits();
            if still && !entries.contains(&word.entry()) {
                cx.cas(ENTRY + oldest, entries[oldest], word.entry())?;
            }
            Ok(0)
        })
        .map(drop)
    }

    fn register(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let me = CELL + cx.slot();
        // First the word: what is evidence after that was not struck off before.
        let mut word = Word::of(cx.load(WORD)?);
        let cell = Cell::of(cx.load(me)?);
        let old = cell.generation != cx.generation();
        let evidence = old && cell.handles > 0;
        if evidence && !self.has(Bug::RegistersOver) {
            if self.has(Bug::RegistersBlindly) {
                word = Word::of(cx.load(WORD)?);
            }
            if !word.broken {
                return self.shatter(cx, word, Some((cx.slot(), cell)));
            }
        }
        let handles = if old { 1 } else { cell.handles + 1 };
        if !cx.cas(me, cell.bits(), Cell { generation: cx.generation(), handles }.bits())? {
            return cx.again();
        }
        cx.ghost(|s, me| {
            s.ghost.parties |= 1 << me;
            None
        });
        if evidence {
            cx.saw(REGISTERED_OVER);
            Self::strike(cx, cx.slot(), cell);
        }
        Ok(())
    }

    fn close(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let me = CELL + cx.slot();
        let cell = Cell::of(cx.load(me)?);
        let handles = cell.handles - u8::from(!self.has(Bug::CloseForgotten));
        if !cx.cas(me, cell.bits(), Cell { handles, ..cell }.bits())? {
            return cx.again();
        }
        cx.ghost(|s, me| {
            s.ghost.parties &= !(1 << me);
            None
        });
        Ok(())
    }

    fn waits_in_vain(s: &State<Ghost>, p: usize) -> Option<&'static str> {
        let word = Word::of(s.words[WORD]);
        let passed = word.generation != s.processes[p].stage - ARRIVED || word.broken;
        (passed || s.ghost.evident != 0).then_some("left waiting")
    }
}

impl Object for Barrier {
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
    fn ghost(&self) -> Ghost {
        Ghost::default()
    }
    fn operations(&self, process: usize) -> usize {
        self.operations[process].len()
    }

    /// Whoever is there at the start has a handle.
    fn begin(&self, s: &mut State<Ghost>) {
        for (p, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = *slot {
                s.words[CELL + usize::from(slot)] = Cell { generation: 1, handles: 1 }.bits();
                s.ghost.parties |= 1 << p;
            }
        }
    }

    fn run(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        match self.operations[cx.me][usize::from(cx.s.processes[cx.me].operation)] {
            Operation::Register => self.register(cx),
            Operation::Wait => self.wait(cx),
            Operation::Reset => self.reset(cx),
            Operation::Abort => self.abort(cx),
            Operation::Close => self.close(cx),
        }
    }

    fn killed(&self, s: &mut State<Ghost>, p: usize) {
        let died = s.ghost.parties & 1 << p;
        s.ghost.died |= died;
        s.ghost.evident |= died;
        s.ghost.fresh |= died;
        s.ghost.parties &= !died;
        s.ghost.seen[p] = 0;
    }

    fn wrong(&self, _: &State<Ghost>) -> Option<&'static str> {
        None
    }

    fn stranded(&self, s: &State<Ghost>, p: usize) -> Option<&'static str> {
        Self::waits_in_vain(s, p)
    }

    fn alone(&self, _: &State<Ghost>, after: &State<Ghost>, p: usize) -> Option<&'static str> {
        Self::waits_in_vain(after, p)
    }

    fn show(&self, s: &State<Ghost>) -> String {
        let Word { generation, arrived, broken } = Word::of(s.words[WORD]);
        let broken = if broken { " BROKEN" } else { "" };
        let mut text = format!("{arrived} in {generation}{broken} {:?} ", &s.words[ENTRY..ENTRY + ENTRIES]);
        for slot in 0..SLOTS {
            let Cell { generation, handles } = Cell::of(s.words[CELL + slot]);
            text += &format!("| {handles} gen {generation} ");
        }
        text
    }
}

use Operation::{Abort, Close, Register, Reset, Wait};

const THREE: &[Option<u8>] = &[Some(0), Some(1), Some(2)];
const ANY: &[u8] = &[0, 1, 2];

const PLAIN: Barrier = Barrier {
    name: "",
    slots: THREE,
    operations: &[],
    parties: 3,
    kills: (0, ANY),
    deadlines: false,
    shows: &[],
    at_least: 0,
    bug: None,
};

const CONFIGS: &[Barrier] = &[
    Barrier {
        name: "three, one killed",
        operations: &[&[Wait, Wait], &[Wait, Wait], &[Wait]],
        kills: (1, ANY),
        shows: &[RELEASED, BROKEN, BROKEN_BY_DEATH],
        at_least: 190_000,
        ..PLAIN
    },
    Barrier {
        name: "three, two killed",
        operations: &[&[Wait], &[Wait], &[Wait]],
        kills: (2, ANY),
        shows: &[RELEASED, BROKEN, BROKEN_BY_DEATH],
        at_least: 66_000,
        ..PLAIN
    },
    Barrier {
        name: "three, a reset",
        operations: &[&[Wait, Wait], &[Wait, Reset, Wait], &[Wait]],
        shows: &[RELEASED, BROKEN, TOLD_LATE],
        at_least: 160_000,
        ..PLAIN
    },
    Barrier {
        name: "three, aborted",
        operations: &[&[Wait], &[Wait, Wait], &[Abort, Reset, Wait]],
        shows: &[BROKEN, TOLD_LATE],
        at_least: 360_000,
        ..PLAIN
    },
    Barrier {
        name: "two and a third that resets",
        operations: &[&[Wait], &[Wait, Wait], &[Reset]],
        parties: 2,
        kills: (1, &[0]),
        shows: &[RELEASED, BROKEN, BROKEN_BY_DEATH, STRUCK, TOLD_LATE],
        at_least: 83_000,
        ..PLAIN
    },
    Barrier {
        name: "two resets",
        operations: &[&[], &[Abort, Reset, Wait], &[Reset, Wait]],
        kills: (1, &[0]),
        shows: &[BROKEN_BY_DEATH, STRUCK, STRUCK_LATE],
        at_least: 61_000,
        ..PLAIN
    },
    Barrier {
        name: "a newborn in the slot",
        slots: &[Some(0), Some(1), None],
        operations: &[&[], &[Wait, Reset, Wait], &[Register, Wait]],
        parties: 2,
        kills: (1, &[0]),
        shows: &[BROKEN_BY_DEATH, STRUCK, REGISTERED_OVER],
        at_least: 2_300,
        ..PLAIN
    },
    Barrier {
        name: "a newborn joins",
        slots: &[Some(0), Some(1), None],
        operations: &[&[Wait], &[Wait], &[Register, Wait]],
        parties: 2,
        kills: (1, &[0]),
        shows: &[RELEASED, BROKEN_BY_DEATH, REGISTERED_OVER],
        at_least: 2_000,
        ..PLAIN
    },
    Barrier {
        name: "deadlines pass",
        operations: &[&[Wait, Wait], &[Wait], &[Wait]],
        deadlines: true,
        shows: &[RELEASED, BROKEN, TIMED_OUT],
        at_least: 74_000,
        ..PLAIN
    },
    Barrier {
        name: "deadlines pass, one killed, a reset",
        operations: &[&[Wait], &[Wait, Wait], &[Reset]],
        parties: 2,
        kills: (1, ANY),
        deadlines: true,
        shows: &[RELEASED, BROKEN, TIMED_OUT, STRUCK],
        at_least: 270_000,
        ..PLAIN
    },
    Barrier {
        name: "one leaves",
        operations: &[&[Wait], &[Wait], &[Close]],
        kills: (1, &[2]),
        shows: &[RELEASED, BROKEN_BY_DEATH],
        parties: 2,
        at_least: 5_300,
        ..PLAIN
    },
];

#[test]
fn all_parties_are_told_the_same_and_no_death_is_passed_over() {
    explore_all(CONFIGS);
}

#[test]
fn every_planted_bug_is_caught() {
    explore_bugs(BUGS, |bug, name| {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        Barrier { bug: Some(bug), ..*config }
    });
}
