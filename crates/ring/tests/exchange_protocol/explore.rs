//! The search, and what the protocol rests on: shared words, participants that die, and sleep.
//!
//! The protocol is written as the functions that a process would run, with every shared access through [`Cx`]. A
//! process is where it is because of what its accesses have returned since its stage began: its *log*. To take one
//! step, the function runs from the top, is told what is in the log, makes one more access, and pauses. So one step
//! is one shared access, and a process can be killed, or left alone for ever, between any two. [`Cx::goto`] and
//! [`Cx::again`] forget the log, where nothing read before matters.
//!
//! The states visited are remembered by 64 bits of hash; two of ten million share them with a probability of 3e-6.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::machine::{Config, Machine, Op, Shown};
use crate::state::{LOG, PROCESSES, Stage, State};

/// More steps than any operation takes alone.
const ALONE: usize = 400;

/// Why a function came back before its end: it has taken its step.
pub struct Stepped;

pub type Run<T> = Result<T, Stepped>;

/// What a process sees of the world, for one step.
pub struct Cx {
    pub s: State,
    /// Which process this is.
    pub me: usize,
    read: usize,
    live: bool,
    /// Which of several possible outcomes of this step, and how many there are.
    choice: usize,
    choices: usize,
    pub seen: u64,
    wrong: Option<&'static str>,
    /// What the step was, for traces.
    said: Option<String>,
}

impl Cx {
    /// One step, or what it returned.
    pub fn access(&mut self, act: impl FnOnce(&mut Self) -> Run<u16>) -> Run<u16> {
        let it = &self.s.processes[self.me];
        if self.read < usize::from(it.length) {
            self.read += 1;
            return Ok(it.log[self.read - 1]);
        }
        if self.live {
            return Err(Stepped);
        }
        self.live = true;
        let value = act(self)?;
        let it = &mut self.s.processes[self.me];
        assert!(usize::from(it.length) < LOG, "a longer log is needed");
        it.log[usize::from(it.length)] = value;
        it.length += 1;
        self.read = usize::from(it.length);
        Ok(value)
    }

    /// Words that nobody else writes: no step of its own, but what was seen stays.
    pub fn private(&mut self, look: impl FnOnce(&State) -> u16) -> u16 {
        let it = &self.s.processes[self.me];
        if self.read < usize::from(it.length) {
            self.read += 1;
            return it.log[self.read - 1];
        }
        let value = look(&self.s);
        let it = &mut self.s.processes[self.me];
        assert!(usize::from(it.length) < LOG, "a longer log is needed");
        it.log[usize::from(it.length)] = value;
        it.length += 1;
        self.read = usize::from(it.length);
        value
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(said) = &mut self.said {
            *said += &what();
        }
    }

    /// One of so many outcomes of the access being made.
    pub fn choose(&mut self, choices: usize) -> usize {
        self.choices = self.choices.max(choices);
        self.choice
    }

    /// Takes note of the access just made, as part of its step.
    pub fn note(&mut self, note: impl FnOnce(&mut Self)) {
        if self.live {
            note(self);
        }
    }

    /// As part of the step just made.
    pub fn choose_live(&mut self, choices: usize) -> usize {
        if self.live { self.choose(choices) } else { usize::MAX }
    }

    /// Marks that something was seen to happen.
    pub fn saw(&mut self, what: Shown) {
        if self.live {
            self.seen |= 1 << what as u32;
        }
    }

    /// As part of the step just made.
    pub fn check(&mut self, right: bool, otherwise: &'static str) {
        if self.live && !right {
            self.wrong = self.wrong.or(Some(otherwise));
        }
    }

    /// Starts the stage over.
    pub fn again<T>(&mut self) -> Run<T> {
        self.goto(self.s.processes[self.me].stage)
    }

    pub fn goto<T>(&mut self, stage: Stage) -> Run<T> {
        if self.live {
            self.s.processes[self.me].turn(stage);
        } else {
            // It went another way than before, with the same log.
            self.wrong = Some("two write the record of one lane");
        }
        Err(Stepped)
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(u8, u8),
    Kill(u8),
}

pub struct Report {
    pub states: usize,
    pub seen: u64,
    pub rests: usize,
    pub wrong: Option<(&'static str, String)>,
}

/// Depth first. `shortest`: if something is wrong, again, breadth first, for the shortest way there.
pub fn explore(config: &Config, shortest: bool) -> Report {
    let machine = Machine { config };
    let report = search(&machine, false);
    if shortest && report.wrong.is_some() { search(&machine, true) } else { report }
}

fn search(machine: &Machine, breadth_first: bool) -> Report {
    let mut known: HashMap<u64, (u64, Action), BuildHasherDefault<Same>> = HashMap::default();
    let start = machine.start();
    let mut todo = VecDeque::new();
    known.insert(key(&start), (0, Action::Kill(255)));
    todo.push_back(start);
    let mut report = Report { states: 0, seen: 0, rests: 0, wrong: None };
    let mut wrong: Option<(&'static str, State, Option<Action>)> = None;
    let mut next: Vec<(Action, State)> = Vec::new();
    while let Some(s) = if breadth_first { todo.pop_front() } else { todo.pop_back() } {
        if wrong.is_some() || known.len() > machine.config.limit {
            break;
        }
        let here = key(&s);
        next.clear();
        let mut moves = false;
        for p in 0..PROCESSES {
            if !machine.can_run(&s, p) {
                continue;
            }
            let mut choice = 0;
            loop {
                let cx = step(machine, &s, p, choice, false);
                let action = Action::Step(p as u8, choice as u8);
                report.seen |= cx.seen;
                moves |= !s.processes[p].asleep;
                next.push((action, cx.s));
                if let Some(what) = cx.wrong {
                    wrong = Some((what, s, Some(action)));
                }
                choice += 1;
                if choice >= cx.choices {
                    break;
                }
            }
        }
        for p in (0..PROCESSES).filter(|&p| machine.can_die(&s, p)) {
            next.push((Action::Kill(p as u8), machine.kill(&s, p)));
        }
        if wrong.is_none() {
            let found = machine.wrong(&s, !moves, here % machine.config.thinning == 0);
            report.rests += usize::from(!moves);
            wrong = found.map(|what| (what, s, None));
        }
        for (action, n) in next.drain(..) {
            if let std::collections::hash_map::Entry::Vacant(entry) = known.entry(key(&n)) {
                entry.insert((here, action));
                todo.push_back(n);
            }
        }
    }
    report.states = known.len();
    report.wrong = wrong.map(|(what, s, then)| {
        let mut actions: Vec<Action> = then.into_iter().collect();
        let mut at = key(&s);
        while let Some(&(before, action)) = known.get(&at).filter(|(before, _)| *before != 0) {
            actions.push(action);
            at = before;
        }
        actions.reverse();
        (what, trace(machine, &actions))
    });
    report
}

/// One step of `me`.
fn step(machine: &Machine, s: &State, me: usize, choice: usize, say: bool) -> Cx {
    let said = say.then(String::new);
    let mut cx = Cx { s: *s, me, read: 0, live: false, choice, choices: 1, seen: 0, wrong: None, said };
    if machine.run(&mut cx).is_ok() {
        if !cx.live {
            cx.wrong = Some("two write the record of one lane");
        }
        machine.finish(&mut cx.s, me);
    }
    if cx.s.is_finished() {
        for p in 0..PROCESSES {
            let it = &mut cx.s.processes[p];
            it.was_finished |= it.begun && machine.op(p, it.operation) == Some(Op::Finished);
        }
    }
    cx
}

/// Runs `me` alone, everybody else being stopped for good, until it is done with its operation. What goes wrong.
pub fn alone(machine: &Machine, s: &mut State, me: usize) -> Option<&'static str> {
    let operation = s.processes[me].operation;
    let asks = machine.op(me, operation) == Some(Op::Finished) && !s.processes[me].begun;
    let mut must_say = asks && s.is_finished();
    for _ in 0..ALONE {
        let it = &s.processes[me];
        if it.operation != operation || it.asleep || !machine.can_run(s, me) {
            return must_say.then_some("does not say Finished, though it is");
        }
        let cx = step(machine, s, me, 0, false);
        if cx.wrong.is_some() {
            return cx.wrong;
        }
        must_say &= cx.seen >> Shown::SaidFinished as u32 & 1 == 0;
        *s = cx.s;
    }
    Some("does not finish, though everybody else is stopped")
}

/// How it came about, one line per step.
fn trace(machine: &Machine, actions: &[Action]) -> String {
    let mut s = machine.start();
    let mut lines = vec![format!("{:70} {}", "start", machine.show(&s))];
    for &action in actions {
        let line = match action {
            Action::Step(p, choice) => {
                let cx = step(machine, &s, p.into(), choice.into(), true);
                let it = s.processes[usize::from(p)];
                s = cx.s;
                let operation = machine.name(p.into(), it.operation);
                format!("{p} {operation} {:?}: {}", it.stage, cx.said.unwrap_or_default())
            }
            Action::Kill(p) => {
                s = machine.kill(&s, p.into());
                format!("{p} is killed")
            }
        };
        lines.push(format!("{line:70} {}", machine.show(&s)));
    }
    lines.join("\n")
}

fn key(s: &State) -> u64 {
    let mut hasher = Mix::default();
    s.hash(&mut hasher);
    hasher.finish().max(1)
}

/// Of what is a hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {
        unreachable!();
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Multiplies to 128 bits and folds.
struct Mix(u64);

impl Default for Mix {
    fn default() -> Self {
        Self(0x243F_6A88_85A3_08D3)
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, b: u8) {
        self.write_u64(u64::from(b));
    }
    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x1319_8A2E_0370_7344) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
    }
    fn write_isize(&mut self, discriminant: isize) {
        self.write_u64(discriminant as u64);
    }
    fn write_usize(&mut self, length: usize) {
        self.write_u64(length as u64);
    }
    fn finish(&self) -> u64 {
        (u128::from(self.0) * 0xD6E8_FEB8_6659_FD93) as u64 ^ self.0 >> 31
    }
}
