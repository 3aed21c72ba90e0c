//! The binary semaphore, which anybody may release.
//!
//! ```text
//! owner  0 = free, otherwise slot and generation of the participant that took it
//! ```
//!
//! One compare-and-swap takes it, from 0 or from a participant that is gone; one gives it back, whoever makes it.
//! The generation keeps a newborn from being taken for the dead owner whose slot it has.
//!
//! Checked: never taken twice without a release between; taken from the dead only; nobody sleeps while it is free
//! or a dead one's.

use crate::explore::{Cx, Object, Run, State, explore_all, explore_bugs};

const OWNER: usize = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Acquire,
    Release,
}

bugs! {
    NeverFromTheDead "waits for a dead owner"
        is "left waiting" in "three, two killed"
    SlotOnly "names its owner by the slot alone"
        is "left waiting" in "a newborn in the slot of the owner"
    TakesByStore "takes from the dead by a store"
        is "taken twice" in "three, two killed"
    FreesByStore "releases by a store, without looking"
        is "more releases than there were" in "released by another"
    NotifiesEarly "notifies before it releases"
        is "left waiting" in "released by another"
    DeparturesUnchecked "sleeps though somebody was buried since it listened"
        is "left waiting" in "three, two killed"
}

#[derive(Clone, Copy)]
struct Binary {
    name: &'static str,
    slots: &'static [Option<u8>],
    operations: &'static [&'static [Operation]],
    kills: (u8, &'static [u8]),
    deadlines: bool,
    shows: &'static [u32],
    at_least: usize,
    bug: Option<Bug>,
}

const TAKEN: u32 = 0;
const TAKEN_FROM_THE_DEAD: u32 = 1;
const OVER_RELEASED: u32 = 2;
const TIMED_OUT: u32 = 3;

impl Binary {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn name_of(&self, slot: usize, generation: u8) -> u16 {
        let generation = if self.has(Bug::SlotOnly) { 0 } else { generation };
        1 + slot as u16 + (u16::from(generation) << 2)
    }

    fn acquire(&self, cx: &mut Cx<Option<usize>>) -> Run<()> {
        let ticket = cx.listen()?;
        let owner = cx.load(OWNER)?;
        let mine = self.name_of(cx.slot(), cx.generation());
        if owner != 0 {
            let slot = usize::from((owner - 1) & 3);
            let generation =
                if self.has(Bug::SlotOnly) { cx.s.slots[slot].generation } else { ((owner - 1) >> 2) as u8 };
            let dead = !self.has(Bug::NeverFromTheDead) && cx.is_dead(slot, generation)?;
            if !dead {
                if !cx.sleep(ticket, !self.has(Bug::DeparturesUnchecked))? {
                    cx.saw(TIMED_OUT);
                    // What would follow has nothing to release.
                    cx.s.processes[cx.me].operation = 10;
                }
                return Ok(());
            }
            if self.has(Bug::TakesByStore) {
                cx.store(OWNER, mine)?;
            } else if !cx.cas(OWNER, owner, mine)? {
                return cx.again();
            }
            cx.saw(TAKEN_FROM_THE_DEAD);
        } else if !cx.cas(OWNER, 0, mine)? {
            return cx.again();
        }
        cx.saw(TAKEN);
        cx.ghost(|s, me| {
            let held_by_living = s.ghost.is_some_and(|holder| s.processes[holder].is_alive());
            s.ghost = Some(me);
            held_by_living.then_some("taken twice")
        });
        Ok(())
    }

    fn release(&self, cx: &mut Cx<Option<usize>>) -> Run<()> {
        if self.has(Bug::NotifiesEarly) && cx.stage() == 0 {
            cx.notify(1)?;
            return cx.goto(1);
        }
        if self.has(Bug::FreesByStore) {
            cx.store(OWNER, 0)?;
        } else {
            let owner = cx.load(OWNER)?;
            if owner == 0 {
                cx.saw(OVER_RELEASED);
                return Ok(());
            }
            if !cx.cas(OWNER, owner, 0)? {
                return cx.again();
            }
        }
        cx.ghost(|s, _| match s.ghost.take() {
            Some(_) => None,
            None => Some("more releases than there were"),
        });
        if self.has(Bug::NotifiesEarly) { Ok(()) } else { cx.notify(1) }
    }

    fn available(s: &State<Option<usize>>) -> Option<&'static str> {
        let held = s.words[OWNER] != 0 && s.ghost.is_some_and(|holder| s.processes[holder].is_alive());
        (!held).then_some("left waiting")
    }
}

impl Object for Binary {
    /// Who took it last, unless it was released since.
    type Ghost = Option<usize>;

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
    fn ghost(&self) -> Option<usize> {
        None
    }
    fn begin(&self, _: &mut State<Option<usize>>) {}
    fn operations(&self, process: usize) -> usize {
        self.operations[process].len()
    }

    fn run(&self, cx: &mut Cx<Option<usize>>) -> Run<()> {
        match self.operations[cx.me][usize::from(cx.s.processes[cx.me].operation)] {
            Operation::Acquire => self.acquire(cx),
            Operation::Release => self.release(cx),
        }
    }

    fn wrong(&self, _: &State<Option<usize>>) -> Option<&'static str> {
        None
    }

    fn stranded(&self, s: &State<Option<usize>>, _: usize) -> Option<&'static str> {
        Self::available(s)
    }

    fn alone(
        &self,
        _: &State<Option<usize>>,
        after: &State<Option<usize>>,
        _: usize,
    ) -> Option<&'static str> {
        Self::available(after)
    }

    fn show(&self, s: &State<Option<usize>>) -> String {
        format!("owner {:#x}, held by {:?}", s.words[OWNER], s.ghost)
    }
}

use Operation::{Acquire, Release};

const TAKE: &[Operation] = &[Acquire, Release];
const TAKE_TWICE: &[Operation] = &[Acquire, Release, Acquire, Release];
const ANY: &[u8] = &[0, 1, 2];

const PLAIN: Binary = Binary {
    name: "",
    slots: &[Some(0), Some(1), Some(2)],
    operations: &[TAKE_TWICE, TAKE_TWICE, TAKE],
    kills: (0, ANY),
    deadlines: false,
    shows: &[TAKEN],
    at_least: 0,
    bug: None,
};

const CONFIGS: &[Binary] = &[
    Binary {
        name: "three, two killed",
        kills: (2, ANY),
        shows: &[TAKEN_FROM_THE_DEAD],
        at_least: 130_000,
        ..PLAIN
    },
    Binary {
        name: "a newborn in the slot of the owner",
        slots: &[Some(0), Some(1), None],
        operations: &[TAKE, TAKE_TWICE, TAKE],
        kills: (1, &[0]),
        shows: &[TAKEN_FROM_THE_DEAD],
        at_least: 3_100,
        ..PLAIN
    },
    Binary {
        name: "released by another",
        operations: &[&[Acquire, Acquire], &[Release, Release, Release], TAKE],
        kills: (1, &[0]),
        shows: &[OVER_RELEASED, TAKEN_FROM_THE_DEAD],
        at_least: 6_900,
        ..PLAIN
    },
    Binary {
        name: "deadlines pass, one killed",
        kills: (1, ANY),
        deadlines: true,
        shows: &[TIMED_OUT],
        at_least: 100_000,
        ..PLAIN
    },
];

#[test]
fn it_is_taken_once_and_from_the_dead() {
    explore_all(CONFIGS);
}

#[test]
fn every_planted_bug_is_caught() {
    explore_bugs(BUGS, |bug, name| {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        Binary { bug: Some(bug), ..*config }
    });
}
