//! What is initialised once, though initialisers die.
//!
//! ```text
//! done  0, then 1 for ever; set under the lock, after the initialisation
//! lock  the robust lock: who has it, initialises
//! ```
//!
//! Checked: nobody returns before an initialisation has run to its end; none begins after one has, nor beside
//! another (one that was killed between its end and `done` has not); nobody is left waiting.

use crate::explore::{Cx, Object, Run, State, explore_all, explore_bugs};

const DONE: usize = 0;
const LOCK: usize = 1;
/// The data: 2 when complete.
const DATA: usize = 2;

// Stages.
const LOOK: u8 = 0;
const LOOK_LOCKED: u8 = 1;
const INITIALISE: u8 = 2;
const UNLOCK: u8 = 3;

bugs! {
    NoLookLocked "does not look at done again under the lock"
        is "initialised again" in "three, two killed"
    DoneEarly "sets done before it initialises"
        is "returns too early" in "three, two killed"
    DoneLate "sets done after unlocking"
        is "initialised by two" in "three, two killed"
    Unlocked "initialises without the lock"
        is "initialised by two" in "three, two killed"
    TakesDeathForDone "takes a lock from the dead for an initialisation"
        is "returns too early" in "three, two killed"
}

#[derive(Clone, Copy)]
struct Once {
    name: &'static str,
    kills: u8,
    deadlines: bool,
    shows: &'static [u32],
    at_least: usize,
    bug: Option<Bug>,
}

const INITIALISED: u32 = 0;
const FOUND: u32 = 1;
const TAKEN_OVER: u32 = 2;
const TIMED_OUT: u32 = 3;

impl Once {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn is_initialising(s: &State<bool>, p: usize) -> bool {
        s.processes[p].is_alive() && s.processes[p].operation == 0 && s.processes[p].stage == INITIALISE
    }

    fn returns(cx: &mut Cx<bool>) -> Run<()> {
        let data = cx.load(DATA)?;
        cx.saw(FOUND);
        cx.ghost(|_, _| (data != 2).then_some("returns too early"));
        Ok(())
    }
}

impl Object for Once {
    /// An initialisation has run to its end, and its process has said so.
    type Ghost = bool;

    fn name(&self) -> &'static str {
        self.name
    }
    fn promises(&self) -> (&'static [u32], usize) {
        (self.shows, self.at_least)
    }
    fn slots(&self) -> &'static [Option<u8>] {
        &[Some(0), Some(1), Some(2)]
    }
    fn kills(&self) -> (u8, &'static [u8]) {
        (self.kills, &[0, 1, 2])
    }
    fn deadlines(&self) -> bool {
        self.deadlines
    }
    fn ghost(&self) -> bool {
        false
    }
    fn begin(&self, _: &mut State<bool>) {}
    fn operations(&self, _: usize) -> usize {
        1
    }

    fn run(&self, cx: &mut Cx<bool>) -> Run<()> {
        match cx.stage() {
            LOOK => {
                if cx.load(DONE)? == 1 {
                    return Self::returns(cx);
                }
                if self.has(Bug::Unlocked) {
                    return cx.goto(INITIALISE);
                }
                let died = usize::from(cx.s.words[LOCK]) != 0;
                if !cx.lock(LOCK)? {
                    cx.saw(TIMED_OUT);
                    return Ok(());
                }
                if died {
                    cx.saw(TAKEN_OVER);
                }
                if died && self.has(Bug::TakesDeathForDone) {
                    return cx.goto(UNLOCK);
                }
                cx.goto(if self.has(Bug::NoLookLocked) { INITIALISE } else { LOOK_LOCKED })
            }
            LOOK_LOCKED => {
                let done = cx.load(DONE)? == 1;
                cx.goto(if done { UNLOCK } else { INITIALISE })
            }
            INITIALISE => {
                cx.ghost(|s, _| s.ghost.then_some("initialised again"));
                if self.has(Bug::DoneEarly) {
                    cx.store(DONE, 1)?;
                }
                cx.store(DATA, 1)?;
                cx.ghost(|s, _| s.ghost.then_some("initialised again"));
                cx.store(DATA, 2)?;
                if self.has(Bug::DoneLate) {
                    cx.unlock(LOCK)?;
                }
                if !self.has(Bug::DoneEarly) {
                    cx.store(DONE, 1)?;
                }
                cx.ghost(|s, _| {
                    s.ghost = true;
                    None
                });
                cx.saw(INITIALISED);
                if self.has(Bug::DoneLate) { Ok(()) } else { cx.goto(UNLOCK) }
            }
            _ => {
                cx.unlock(LOCK)?;
                Self::returns(cx)
            }
        }
    }

    fn wrong(&self, s: &State<bool>) -> Option<&'static str> {
        let initialising = (0..s.processes.len()).filter(|&p| Self::is_initialising(s, p)).count();
        (initialising > 1).then_some("initialised by two")
    }

    fn stranded(&self, _: &State<bool>, _: usize) -> Option<&'static str> {
        Some("left waiting")
    }

    fn alone(&self, _: &State<bool>, after: &State<bool>, _: usize) -> Option<&'static str> {
        let holder = usize::from(after.words[LOCK]);
        let held = holder != 0 && after.processes[holder - 1].is_alive();
        (!held).then_some("left waiting")
    }

    fn show(&self, s: &State<bool>) -> String {
        format!("done {} lock {} data {}", s.words[DONE], s.words[LOCK], s.words[DATA])
    }
}

const CONFIGS: &[Once] = &[
    Once {
        name: "three, two killed",
        kills: 2,
        deadlines: false,
        shows: &[INITIALISED, FOUND, TAKEN_OVER],
        at_least: 1_800,
        bug: None,
    },
    Once {
        name: "deadlines pass, one killed",
        kills: 1,
        deadlines: true,
        shows: &[INITIALISED, FOUND, TAKEN_OVER, TIMED_OUT],
        at_least: 1_400,
        bug: None,
    },
];

#[test]
fn it_is_initialised_once() {
    explore_all(CONFIGS);
}

#[test]
fn every_planted_bug_is_caught() {
    explore_bugs(BUGS, |bug, name| {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        Once { bug: Some(bug), ..*config }
    });
}
