//! The reader-writer lock: a robust lock for writers, a cell for the readers of each participant.
//!
//! ```text
//! lock        the robust lock: writers, and for a moment readers that met one
//! state       WANTED | WRITING | INCONSISTENT; written by whoever holds `lock`
//! cell[slot]  generation | how many threads of this participant read
//! ```
//!
//! A reader counts itself in its cell, then looks at the state: no WANTED means that every later writer will find
//! the count. Otherwise it takes its count back, notifies (a writer may have seen it), and counts itself under the
//! lock. A writer takes the lock, announces itself (WANTED) and drains: waits until every cell is 0 or its
//! participant dead. A dead writer leaves WANTED and perhaps WRITING; whoever has the lock next, clears the one and
//! turns the other into INCONSISTENT.
//!
//! Checked: a writer is alone; `OwnerDied` is told exactly from when a writer was killed that could have written
//! until a writer has marked the data consistent; nobody is left waiting. With others stopped for good, whoever
//! waits waits for one of those.

use crate::explore::{Cx, Object, Run, SLOTS, State, explore_all, explore_bugs};

const LOCK: usize = 0;
const STATE: usize = 1;
const CELL: usize = 2;

const WANTED: u16 = 1;
const WRITING: u16 = 2;
const INCONSISTENT: u16 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cell {
    count: u16,
    generation: u8,
}

impl Cell {
    fn of(bits: u16) -> Self {
        Self { count: bits & 7, generation: (bits >> 3) as u8 }
    }

    fn bits(self) -> u16 {
        self.count | u16::from(self.generation) << 3
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Read,
    Write,
    /// Writes and, if it was told, marks the data consistent.
    Repair,
}

// Stages of a reader ...
const COUNT: u8 = 0;
const BACK_OFF: u8 = 1;
const READ: u8 = 2;
const QUEUE: u8 = 3;
const COUNT_LOCKED: u8 = 4;
const LEAVE: u8 = 5;
// ... and of a writer.
const TAKE: u8 = 0;
const DRAIN: u8 = 1;
const MARK: u8 = 2;
const WRITE: u8 = 3;
const CLEAN: u8 = 4;
const UNLOCK: u8 = 5;
const ANNOUNCE: u8 = 6;
const GIVE_UP: u8 = 7;

bugs! {
    LooksFirst "a reader looks at the lock before it counts itself (or without a fence)"
        is "a reader with a writer" in "a reader, a writer, a repairer"
    NeverLooks "a reader does not look at the lock"
        is "a reader with a writer" in "a reader, a writer, a repairer"
    CountsUnlocked "a reader that found a writer counts itself after unlocking"
        is "a reader with a writer" in "a reader, a writer, a repairer"
    BacksOffSilently "a reader does not notify after backing off"
        is "left waiting" in "a reader, a writer, a repairer"
    NotifiesEarly "a reader notifies before it takes its count back"
        is "left waiting" in "a reader, a writer, a repairer"
    ListensLate "a writer listens after its look at the cells"
        is "left waiting" in "a reader, a writer, a repairer"
    WaitsForTheDead "a writer waits for dead readers"
        is "left waiting" in "a reader, a writer, a repairer"
    DrainsByGeneration "a writer takes every count for a dead one's"
        is "the count is lost" in "a reader, a writer, a repairer"
    ClearsByStore "a writer clears a dead one's cell by a store"
        is "the count is lost" in "a newborn reader in the slot"
    KeepsGeneration "a reader counts itself in the name of its predecessor"
        is "the count is lost" in "a newborn reader in the slot"
    CountsThePredecessor "a reader counts itself beside its predecessor"
        is "left waiting" in "a newborn reader in the slot"
    MarksEarly "a writer sets WRITING before the drain is complete"
        is "told of a death that tore nothing" in "a reader, a writer, a repairer"
    MarksNever "a writer does not set WRITING"
        is "not told" in "a reader, a writer, a repairer"
    DropsDied "who has the lock after a dead writer does not turn WRITING into INCONSISTENT"
        is "not told" in "two writers and a reader"
    CleansUnlocked "a writer clears WANTED and WRITING after unlocking"
        is "WANTED is left behind" in "two writers and a reader"
    LeavesWriting "a writer does not clear WRITING"
        is "WANTED is left behind" in "a reader, a writer, a repairer"
    NeverInherits "who has the lock after a dead writer leaves the state as it is"
        is "WANTED is left behind" in "a reader, a writer, a repairer"
    NeverAnnounces "a writer does not set WANTED before it drains"
        is "a reader with a writer" in "a reader, a writer, a repairer"
    TimeoutKeepsWanted "a writer that gives up in the drain leaves WANTED"
        is "WANTED is left behind" in "deadlines pass, one killed"
    TimeoutKeepsLock "a writer that gives up in the drain keeps the lock"
        is "kept after giving up" in "deadlines pass, one killed"
    TimeoutKeepsCount "a reader that gives up has its count still"
        is "kept after giving up" in "deadlines pass, one killed"
}

#[derive(Clone, Copy)]
struct RwLock {
    name: &'static str,
    slots: &'static [Option<u8>],
    operations: &'static [&'static [Operation]],
    kills: (u8, &'static [u8]),
    deadlines: bool,
    shows: &'static [u32],
    at_least: usize,
    bug: Option<Bug>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Ghost {
    /// A writer was killed that could have written, and nobody has repaired it.
    torn: bool,
    /// How often each thread is in its cell.
    counted: [u8; 4],
}

const READ_FAST: u32 = 0;
const READ_QUEUED: u32 = 1;
const BACKED_OFF: u32 = 2;
const DRAINED_DEAD: u32 = 3;
const TOLD_READER: u32 = 4;
const TOLD_WRITER: u32 = 5;
const REPAIRED: u32 = 6;
const TIMED_OUT: u32 = 7;
const WAITED: u32 = 8;

impl RwLock {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn told(told: bool, torn: bool) -> Option<&'static str> {
        match (told, torn) {
            (true, false) => Some("told of a death that tore nothing"),
            (false, true) => Some("not told"),
            _ => None,
        }
    }

    fn count(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let me = CELL + cx.slot();
        let cell = Cell::of(cx.load(me)?);
        let generation = cx.generation();
        let old = cell.generation != generation;
        let void = old && !self.has(Bug::CountsThePredecessor) && !self.has(Bug::KeepsGeneration);
        let generation = if self.has(Bug::KeepsGeneration) { cell.generation } else { generation };
        let to = Cell { count: if void { 1 } else { cell.count + 1 }, generation };
        if !cx.cas(me, cell.bits(), to.bits())? {
            return cx.again();
        }
        cx.ghost(|s, me| {
            s.ghost.counted[me] += 1;
            None
        });
        Ok(())
    }

    fn uncount(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let me = CELL + cx.slot();
        let cell = Cell::of(cx.load(me)?);
        let generation = cx.generation();
        cx.ghost(|_, _| (cell.count == 0).then_some("the count is lost"));
        if cell.count == 0 {
            return Ok(()); // wrong already
        }
        let to = Cell { count: cell.count - 1, generation };
        if !cx.cas(me, cell.bits(), to.bits())? {
            return cx.again();
        }
        cx.ghost(|s, me| {
            s.ghost.counted[me] -= 1;
            None
        });
        Ok(())
    }

    fn come_in(&self, cx: &mut Cx<Ghost>, state: u16) -> Run<()> {
        let told = state & INCONSISTENT != 0;
        if told {
            cx.saw(TOLD_READER);
        }
        cx.ghost(|s, _| Self::told(told, s.ghost.torn));
        cx.goto(READ)
    }

    /// Having taken the lock: clears what a dead writer has left in the state.
    fn inherit(&self, cx: &mut Cx<Ghost>) -> Run<u16> {
        cx.call(|cx| {
            let state = cx.load(STATE)?;
            if state & (WANTED | WRITING) == 0 || self.has(Bug::NeverInherits) {
                return Ok(state);
            }
            let died = if state & WRITING == 0 || self.has(Bug::DropsDied) { 0 } else { INCONSISTENT };
            let marks = state & INCONSISTENT | died;
            cx.store(STATE, marks)?;
            Ok(marks)
        })
    }

    fn read(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        match cx.stage() {
            COUNT => {
                let seen_early = if self.has(Bug::LooksFirst) { Some(cx.load(STATE)?) } else { None };
                self.count(cx)?;
                let state = match seen_early {
                    Some(state) => state,
                    None if self.has(Bug::NeverLooks) => cx.load(STATE)? & !WANTED,
                    None => cx.load(STATE)?,
                };
                if state & WANTED == 0 {
                    cx.saw(READ_FAST);
                    return self.come_in(cx, state);
                }
                cx.saw(BACKED_OFF);
                cx.goto(BACK_OFF)
            }
            BACK_OFF => {
                self.uncount(cx)?;
                if !self.has(Bug::BacksOffSilently) {
                    cx.notify(1)?;
                }
                cx.goto(QUEUE)
            }
            QUEUE => {
                if !cx.lock(LOCK)? {
                    cx.saw(TIMED_OUT);
                    if self.has(Bug::TimeoutKeepsCount) {
                        return self.count(cx);
                    }
                    return Ok(());
                }
                cx.goto(COUNT_LOCKED)
            }
            COUNT_LOCKED => {
                let state = self.inherit(cx)?;
                if self.has(Bug::CountsUnlocked) {
                    cx.unlock(LOCK)?;
                    self.count(cx)?;
                } else {
                    self.count(cx)?;
                    cx.unlock(LOCK)?;
                }
                cx.saw(READ_QUEUED);
                self.come_in(cx, state)
            }
            READ => {
                cx.linger()?;
                cx.goto(LEAVE)
            }
            _ => {
                if self.has(Bug::NotifiesEarly) {
                    cx.notify(1)?;
                    return self.uncount(cx);
                }
                self.uncount(cx)?;
                cx.notify(1)
            }
        }
    }

    fn drain(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        let mut ticket = if self.has(Bug::ListensLate) { 0 } else { cx.listen()? };
        for slot in 0..SLOTS {
            let busy = cx.call(|cx| {
                let cell = Cell::of(cx.load(CELL + slot)?);
                if cell.count == 0 {
                    return Ok(0);
                }
                let dead = self.has(Bug::DrainsByGeneration)
                    || !self.has(Bug::WaitsForTheDead) && cx.is_dead(slot, cell.generation)?;
                if !dead {
                    return Ok(1);
                }
                if self.has(Bug::ClearsByStore) {
                    cx.store(CELL + slot, 0)?;
                } else if !cx.cas(CELL + slot, cell.bits(), 0)? {
                    return cx.again();
                }
                cx.saw(DRAINED_DEAD);
                Ok(0)
            })?;
            if busy == 1 {
                if self.has(Bug::ListensLate) {
                    ticket = cx.listen()?;
                }
                cx.saw(WAITED);
                if !cx.sleep(ticket, true)? {
                    cx.saw(TIMED_OUT);
                    if self.has(Bug::TimeoutKeepsLock) {
                        return Ok(());
                    }
                    return cx.goto(GIVE_UP);
                }
            }
        }
        cx.goto(MARK)
    }

    fn write(&self, cx: &mut Cx<Ghost>, repairs: bool) -> Run<()> {
        let writing = if self.has(Bug::MarksNever) { WANTED } else { WANTED | WRITING };
        match cx.stage() {
            TAKE => {
                if !cx.lock(LOCK)? {
                    cx.saw(TIMED_OUT);
                    return Ok(());
                }
                cx.goto(ANNOUNCE)
            }
            ANNOUNCE => {
                let marks = self.inherit(cx)?;
                let early = if self.has(Bug::MarksEarly) { WRITING } else { 0 };
                if self.has(Bug::NeverAnnounces) {
                    cx.linger()?;
                } else {
                    cx.store(STATE, marks | WANTED | early)?;
                }
                cx.goto(DRAIN)
            }
            DRAIN => self.drain(cx),
            MARK => {
                let state = cx.load(STATE)?;
                let torn = state & INCONSISTENT != 0;
                cx.store(STATE, writing | state & INCONSISTENT)?;
                cx.ghost(|s, _| Self::told(torn, s.ghost.torn));
                cx.goto(WRITE)
            }
            WRITE => {
                let state = cx.load(STATE)?;
                if state & INCONSISTENT != 0 {
                    cx.saw(TOLD_WRITER);
                }
                if state & INCONSISTENT != 0 && repairs {
                    cx.saw(REPAIRED);
                    cx.store(STATE, writing)?;
                    cx.ghost(|s, _| {
                        s.ghost.torn = false;
                        None
                    });
                }
                cx.goto(CLEAN)
            }
            CLEAN => {
                let clean = |cx: &mut Cx<Ghost>| {
                    let state = cx.load(STATE)?;
                    cx.store(STATE, state & INCONSISTENT)
                };
                if self.has(Bug::CleansUnlocked) {
                    cx.unlock(LOCK)?;
                    return clean(cx);
                }
                if self.has(Bug::LeavesWriting) {
                    cx.linger()?;
                } else {
                    clean(cx)?;
                }
                cx.goto(UNLOCK)
            }
            GIVE_UP => {
                let state = cx.load(STATE)?;
                if !self.has(Bug::TimeoutKeepsWanted) {
                    cx.store(STATE, state & INCONSISTENT)?;
                }
                cx.goto(UNLOCK)
            }
            _ => cx.unlock(LOCK),
        }
    }

    fn operation(&self, p: usize, at: u8) -> Option<Operation> {
        self.operations[p].get(usize::from(at)).copied()
    }

    fn is_at(&self, s: &State<Ghost>, p: usize, writer: bool, stage: u8) -> bool {
        let it = &s.processes[p];
        let writes = self.operations.get(p).and_then(|_| self.operation(p, it.operation));
        it.is_alive() && it.stage == stage && writes.is_some_and(|op| (op != Operation::Read) == writer)
    }
}

impl Object for RwLock {
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
        Ghost { torn: false, counted: [0; 4] }
    }
    fn operations(&self, process: usize) -> usize {
        self.operations[process].len()
    }
    fn begin(&self, _: &mut State<Ghost>) {}

    fn run(&self, cx: &mut Cx<Ghost>) -> Run<()> {
        match self.operation(cx.me, cx.s.processes[cx.me].operation) {
            Some(Operation::Read) => self.read(cx),
            Some(Operation::Write) => self.write(cx, false),
            Some(Operation::Repair) => self.write(cx, true),
            None => unreachable!("has finished"),
        }
    }

    fn killed(&self, s: &mut State<Ghost>, p: usize) {
        // Between the two stores of WRITING: the last steps of MARK and of CLEAN.
        s.ghost.torn |= self.is_at(s, p, true, WRITE) || self.is_at(s, p, true, CLEAN);
        s.ghost.counted[p] = 0;
    }

    fn wrong(&self, s: &State<Ghost>) -> Option<&'static str> {
        let count =
            |writer, stage| (0..s.processes.len()).filter(|&p| self.is_at(s, p, writer, stage)).count();
        let (readers, writers) = (count(false, READ), count(true, WRITE));
        let keeps = |p: usize| usize::from(s.words[LOCK]) == p + 1 || s.ghost.counted[p] > 0;
        let done = |p: usize| {
            s.processes[p].is_alive() && self.operation(p, s.processes[p].operation).is_none() && keeps(p)
        };
        let wanted = s.words[STATE] & WANTED != 0 && s.words[LOCK] == 0;
        if (0..self.operations.len()).any(done) {
            Some("kept after giving up")
        } else if wanted {
            Some("WANTED is left behind")
        } else if writers > 1 {
            Some("two writers")
        } else if writers == 1 && readers > 0 {
            Some("a reader with a writer")
        } else {
            None
        }
    }

    fn stranded(&self, _: &State<Ghost>, _: usize) -> Option<&'static str> {
        Some("left waiting")
    }

    fn alone(&self, _: &State<Ghost>, after: &State<Ghost>, me: usize) -> Option<&'static str> {
        let others = |p: &usize| *p != me && after.processes[*p].is_alive();
        let held = (0..after.processes.len())
            .filter(others)
            .any(|p| usize::from(after.words[LOCK]) == p + 1 || after.ghost.counted[p] > 0);
        (!held).then_some("left waiting")
    }

    fn show(&self, s: &State<Ghost>) -> String {
        let mut text = format!("lock {} state {} ", s.words[LOCK], s.words[STATE]);
        for slot in 0..SLOTS {
            let cell = Cell::of(s.words[CELL + slot]);
            text += &format!("| {} gen {} ", cell.count, cell.generation);
        }
        if s.ghost.torn { text + " torn" } else { text }
    }
}

use Operation::{Read, Repair, Write};

const THREE: &[Option<u8>] = &[Some(0), Some(1), Some(2)];
const ANY: &[u8] = &[0, 1, 2];

const PLAIN: RwLock = RwLock {
    name: "",
    slots: THREE,
    operations: &[],
    kills: (0, ANY),
    deadlines: false,
    shows: &[],
    at_least: 0,
    bug: None,
};

const CONFIGS: &[RwLock] = &[
    RwLock {
        name: "a reader, a writer, a repairer",
        operations: &[&[Read, Read], &[Write], &[Repair]],
        kills: (1, ANY),
        shows: &[
            READ_FAST,
            READ_QUEUED,
            BACKED_OFF,
            DRAINED_DEAD,
            TOLD_READER,
            TOLD_WRITER,
            REPAIRED,
            WAITED,
        ],
        at_least: 20_000,
        ..PLAIN
    },
    RwLock {
        name: "two readers and a writer",
        operations: &[&[Read], &[Read], &[Write, Write]],
        kills: (2, ANY),
        shows: &[DRAINED_DEAD, WAITED],
        at_least: 67_000,
        ..PLAIN
    },
    RwLock {
        name: "two writers and a reader",
        operations: &[&[Write, Write], &[Write, Repair], &[Read]],
        kills: (2, ANY),
        shows: &[TOLD_WRITER, REPAIRED, WAITED],
        at_least: 48_000,
        ..PLAIN
    },
    RwLock {
        name: "two threads of one process read",
        slots: &[Some(0), Some(0), Some(1)],
        operations: &[&[Read], &[Read, Read], &[Write]],
        kills: (1, ANY),
        shows: &[DRAINED_DEAD, WAITED],
        at_least: 43_000,
        ..PLAIN
    },
    RwLock {
        name: "a newborn reader in the slot",
        slots: &[Some(0), Some(1), None],
        operations: &[&[Read], &[Write, Write], &[Read, Read]],
        kills: (1, &[0]),
        shows: &[DRAINED_DEAD],
        at_least: 6_500,
        ..PLAIN
    },
    RwLock {
        name: "a newborn writer in the slot",
        slots: &[Some(0), Some(1), None],
        operations: &[&[Write, Read], &[Read, Read], &[Repair]],
        kills: (2, &[0, 1]),
        shows: &[DRAINED_DEAD, REPAIRED],
        at_least: 28_000,
        ..PLAIN
    },
    RwLock {
        name: "deadlines pass, one killed",
        operations: &[&[Read, Read], &[Write], &[Write]],
        kills: (1, ANY),
        deadlines: true,
        shows: &[TIMED_OUT],
        at_least: 22_000,
        ..PLAIN
    },
];

#[test]
fn a_writer_is_alone_and_its_death_is_told() {
    explore_all(CONFIGS);
}

#[test]
fn every_planted_bug_is_caught() {
    explore_bugs(BUGS, |bug, name| {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        RwLock { bug: Some(bug), ..*config }
    });
}
