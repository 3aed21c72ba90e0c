//! The search, and what all objects rest on: shared words, participants that die, and sleep.
//!
//! A protocol is written as the function that a process would run, with every shared access through [`Cx`].
//! A process is where it is because of what its accesses have returned since its operation began: its *log*.
//! To take one step, the function runs from the top, is told what is in the log, makes one more access, and
//! pauses. So one step is one shared access, and a process can be killed or left alone between any two.
//! [`Cx::again`] and [`Cx::goto`] forget the log: where loops begin, and where nothing read before matters.
//!
//! Memory is sequentially consistent: the orderings are the business of the loom models.
//!
//! # What is taken for granted
//!
//! * Participants: a slot has a generation and a claim. A killed process is proven dead at once and *buried* at
//!   any time later (by who meets it, or by somebody who is not in the model): the generation is bumped, then
//!   `departures`, then the claim cleared. Then a newborn may have the slot.
//! * Sleep among peers: wakes when notified, and when anybody is killed. It does not begin if something was
//!   notified or somebody was buried since [`Cx::listen`], and not before all dead are buried.
//! * Stops: nobody ever has to take a step, and in every state each process is also tried with all others
//!   stopped for good ([`Object::alone`]).

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};

pub const PROCESSES: usize = 4;
pub const SLOTS: usize = 3;
const WORDS: usize = 8;
const LOG: usize = 16;
/// In a log: a call that has returned.
const RETURNED: u16 = 1 << 15;
/// More steps than any operation takes alone.
const ALONE: usize = 80;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Life {
    #[default]
    Unborn,
    Alive,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Process {
    pub life: Life,
    pub slot: u8,
    pub generation: u8,
    /// Which of its operations, and which part of that.
    pub operation: u8,
    pub stage: u8,
    pub asleep: bool,
    listening: bool,
    length: u8,
    log: [u16; LOG],
}

impl Process {
    pub fn is_alive(&self) -> bool {
        self.life == Life::Alive
    }

    /// Forgets what it has read.
    fn turn(&mut self, stage: u8) {
        *self = Self { stage, asleep: false, listening: false, length: 0, log: [0; LOG], ..*self };
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Slot {
    pub generation: u8,
    pub claimed: bool,
    /// How many steps of a slow burial are done.
    burial: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State<G> {
    pub words: [u16; WORDS],
    event: u8,
    departures: u8,
    pub slots: [Slot; SLOTS],
    pub processes: [Process; PROCESSES],
    kills: u8,
    /// What only the checks know.
    pub ghost: G,
}

impl<G> State<G> {
    /// The living in a slot: threads of one process, all of the same generation.
    pub fn living(&self, slot: usize) -> impl Iterator<Item = (usize, &Process)> {
        self.processes.iter().enumerate().filter(move |(_, p)| p.is_alive() && usize::from(p.slot) == slot)
    }

    /// Its participant is dead and not buried.
    fn is_unburied(&self, slot: usize) -> bool {
        self.slots[slot].claimed && self.living(slot).next().is_none()
    }

    fn bury(&mut self, slot: usize) {
        self.slots[slot] = Slot { generation: self.slots[slot].generation + 1, claimed: false, burial: 0 };
        self.departures += 1;
    }
}

/// Why a protocol's function came back before its end.
pub enum Pause {
    /// It has taken its step.
    Stepped,
    /// It cannot take a step now.
    Blocked,
}

pub type Run<T> = Result<T, Pause>;

/// What a process sees of the world, for one step.
pub struct Cx<G> {
    pub s: State<G>,
    /// Which process this is.
    pub me: usize,
    read: usize,
    live: bool,
    /// Which of several possible outcomes of this step, and how many there are.
    choice: usize,
    choices: usize,
    deadlines: bool,
    seen: u32,
    wrong: Option<&'static str>,
    /// What the step was, for traces.
    said: Option<String>,
}

impl<G> Cx<G> {
    pub fn slot(&self) -> usize {
        usize::from(self.s.processes[self.me].slot)
    }

    pub fn generation(&self) -> u8 {
        self.s.processes[self.me].generation
    }

    pub fn stage(&self) -> u8 {
        self.s.processes[self.me].stage
    }

    fn push(&mut self, value: u16) {
        let it = &mut self.s.processes[self.me];
        it.log[usize::from(it.length)] = value;
        it.length += 1;
        self.read = usize::from(it.length);
    }

    /// One step, or what it returned.
    fn access(&mut self, act: impl FnOnce(&mut Self) -> Run<u16>) -> Run<u16> {
        let it = &self.s.processes[self.me];
        if self.read < usize::from(it.length) {
            self.read += 1;
            return Ok(it.log[self.read - 1]);
        }
        if self.live {
            return Err(Pause::Stepped);
        }
        self.live = true;
        let value = act(self)?;
        self.push(value);
        Ok(value)
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(said) = &mut self.said {
            *said = what();
        }
    }

    pub fn load(&mut self, word: usize) -> Run<u16> {
        self.access(|cx| {
            let value = cx.s.words[word];
            cx.say(|| format!("load {word} = {value:#x}"));
            Ok(value)
        })
    }

    pub fn store(&mut self, word: usize, value: u16) -> Run<()> {
        self.access(|cx| {
            cx.say(|| format!("store {word} = {value:#x}"));
            cx.s.words[word] = value;
            Ok(0)
        })
        .map(drop)
    }

    pub fn cas(&mut self, word: usize, from: u16, to: u16) -> Run<bool> {
        self.access(|cx| {
            let done = cx.s.words[word] == from;
            cx.say(|| format!("cas {word} {from:#x} -> {to:#x}: {done}"));
            if done {
                cx.s.words[word] = to;
            }
            Ok(u16::from(done))
        })
        .map(|done| done == 1)
    }

    /// A step that touches nothing shared: a place to be killed in.
    pub fn linger(&mut self) -> Run<()> {
        self.access(|cx| {
            cx.say(|| "lingers".into());
            Ok(0)
        })
        .map(drop)
    }

    /// True once the participant is gone. Two looks, as it is made: the generation; then the claim, burying.
    pub fn is_dead(&mut self, slot: usize, generation: u8) -> Run<bool> {
        let first = self.access(|cx| {
            let passed = cx.s.slots[slot].generation != generation;
            cx.say(|| format!("is generation {generation} of slot {slot} over: {passed}"));
            Ok(u16::from(passed))
        })?;
        if first == 1 {
            return Ok(true);
        }
        let second = self.access(|cx| {
            if cx.s.is_unburied(slot) {
                cx.s.bury(slot);
            }
            let passed = cx.s.slots[slot].generation != generation;
            cx.say(|| format!("is generation {generation} of slot {slot} dead: {passed}"));
            Ok(u16::from(passed))
        })?;
        Ok(second == 1)
    }

    /// Forgets the accesses within once it has returned.
    pub fn call(&mut self, function: impl FnOnce(&mut Self) -> Run<u16>) -> Run<u16> {
        let start = self.read;
        let it = &self.s.processes[self.me];
        if start == usize::from(it.length) {
            self.push(0); // has begun
        } else {
            self.read += 1;
            if it.log[start] & RETURNED != 0 {
                return Ok(it.log[start] & !RETURNED);
            }
        }
        let value = function(self)?;
        let it = &mut self.s.processes[self.me];
        it.log[start..].fill(0);
        it.length = start as u8;
        self.push(value | RETURNED);
        Ok(value)
    }

    /// Starts the stage over.
    pub fn again<T>(&mut self) -> Run<T> {
        self.goto(self.stage())
    }

    pub fn goto<T>(&mut self, stage: u8) -> Run<T> {
        assert!(self.live, "nothing has changed");
        self.s.processes[self.me].turn(stage);
        Err(Pause::Stepped)
    }

    // Sleep. All objects have one event.

    pub fn listen(&mut self) -> Run<u16> {
        self.access(|cx| {
            cx.s.processes[cx.me].listening = true;
            cx.say(|| "listens".into());
            Ok(u16::from(cx.s.event) << 8 | u16::from(cx.s.departures))
        })
    }

    /// Starts the stage over when there may be news; false if the deadline has passed. `departures_too`: see
    /// the top of the file.
    pub fn sleep(&mut self, ticket: u16, departures_too: bool) -> Run<bool> {
        let deadlines = self.deadlines;
        let over = self.access(|cx| {
            cx.choices = 1 + usize::from(deadlines);
            if cx.choice == 1 {
                cx.say(|| "its deadline has passed".into());
                return Ok(1);
            }
            let departed = departures_too && ticket & 0xFF != u16::from(cx.s.departures);
            let mut news = ticket >> 8 != u16::from(cx.s.event) || departed;
            for slot in 0..SLOTS {
                if cx.s.is_unburied(slot) {
                    cx.s.bury(slot);
                    news = true;
                }
            }
            cx.say(|| if news { "does not sleep" } else { "sleeps" }.into());
            let it = &mut cx.s.processes[cx.me];
            it.turn(it.stage);
            it.asleep = !news;
            Err(Pause::Stepped)
        })?;
        Ok(over == 0)
    }

    /// Wakes `count` sleepers, whichever; two steps if anybody listens.
    pub fn notify(&mut self, count: usize) -> Run<()> {
        let listened = self.access(|cx| {
            let listened = cx.s.processes.iter().any(|p| p.is_alive() && (p.listening || p.asleep));
            cx.s.event += u8::from(listened);
            cx.say(|| if listened { "notifies" } else { "has nobody to notify" }.into());
            Ok(u16::from(listened))
        })?;
        if listened == 0 {
            return Ok(());
        }
        self.access(|cx| {
            let asleep: Vec<usize> = (0..PROCESSES).filter(|&p| cx.s.processes[p].asleep).collect();
            let woken = if asleep.len() <= count {
                &asleep[..]
            } else {
                assert!(count == 1, "one or all");
                cx.choices = asleep.len();
                &asleep[cx.choice..][..1]
            };
            cx.say(|| format!("wakes {woken:?}"));
            for &p in woken {
                cx.s.processes[p].asleep = false;
            }
            Ok(0)
        })
        .map(drop)
    }

    // A robust lock: who holds it, or 0. Sleep and recovery are modelled in `protocol.rs`.

    /// False if the deadline has passed.
    pub fn lock(&mut self, word: usize) -> Run<bool> {
        let deadlines = self.deadlines;
        let got = self.access(|cx| {
            let holder = usize::from(cx.s.words[word]);
            let free = holder == 0 || cx.s.processes[holder - 1].life == Life::Dead;
            cx.choices = if free { 1 } else { 1 + usize::from(deadlines) };
            if !free && cx.choice == 0 {
                return Err(Pause::Blocked);
            }
            cx.say(|| if free { "locks" } else { "its deadline has passed" }.into());
            if free {
                cx.s.words[word] = cx.me as u16 + 1;
            }
            Ok(u16::from(free))
        })?;
        Ok(got == 1)
    }

    pub fn unlock(&mut self, word: usize) -> Run<()> {
        self.store(word, 0)
    }

    // For the checks.

    /// Takes note of the access just made, as part of its step.
    pub fn ghost(&mut self, note: impl FnOnce(&mut State<G>, usize) -> Option<&'static str>) {
        if self.live {
            let wrong = note(&mut self.s, self.me);
            self.wrong = self.wrong.or(wrong);
        }
    }

    /// Marks that something was seen to happen.
    pub fn saw(&mut self, outcome: u32) {
        if self.live {
            self.seen |= 1 << outcome;
        }
    }
}

/// One object with its configuration.
pub trait Object {
    type Ghost: Copy + Eq + Hash + Debug;

    fn name(&self) -> &'static str;
    /// What must be seen, and at least how many states.
    fn promises(&self) -> (&'static [u32], usize);
    /// How many processes (threads), in which slot each begins; `None`: born when a slot is free.
    fn slots(&self) -> &'static [Option<u8>];
    /// How many of those in which slots may be killed.
    fn kills(&self) -> (u8, &'static [u8]);
    fn deadlines(&self) -> bool {
        false
    }
    /// Whether burials are three steps; and whether `departures` is bumped too late, by the last of them.
    fn burials(&self) -> (bool, bool) {
        (false, false)
    }
    fn begin(&self, s: &mut State<Self::Ghost>);
    fn ghost(&self) -> Self::Ghost;
    fn operations(&self, process: usize) -> usize;
    /// The protocol.
    fn run(&self, cx: &mut Cx<Self::Ghost>) -> Run<()>;

    fn killed(&self, _: &mut State<Self::Ghost>, _process: usize) {}
    /// What is wrong with a state.
    fn wrong(&self, s: &State<Self::Ghost>) -> Option<&'static str>;
    /// What is wrong with process `p` being asleep or blocked, given that nothing will happen any more.
    fn stranded(&self, s: &State<Self::Ghost>, p: usize) -> Option<&'static str>;
    /// What is wrong with an operation of `p` that could not finish though all others were stopped: it led from
    /// `before` to `after`, asleep or blocked.
    fn alone(
        &self,
        before: &State<Self::Ghost>,
        after: &State<Self::Ghost>,
        p: usize,
    ) -> Option<&'static str>;
    fn show(&self, s: &State<Self::Ghost>) -> String;
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(usize, usize),
    Kill(usize),
    Bury(usize),
    Birth(usize),
}

/// Finds nothing wrong with any of them.
pub fn explore_all<O: Object>(configs: &[O]) {
    let mut failures = String::new();
    for config in configs {
        let report = explore(config);
        println!("{:>9}  {}", report.states, config.name());
        let (shows, at_least) = config.promises();
        if let Some((what, trace)) = report.wrong {
            failures += &format!("\n{}: {what}\n{trace}\n", config.name());
        } else if let Some(missing) = shows.iter().find(|&&outcome| report.seen & 1 << outcome == 0) {
            failures += &format!("\n{} does not show outcome {missing}\n", config.name());
        } else if report.states < at_least {
            failures += &format!("\n{}: the model has shrunk\n", config.name());
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Each bug, what it is, what must be found, in which configuration.
pub type Planted<B> = (B, &'static str, &'static str, &'static str);

/// Finds exactly what is expected of each.
pub fn explore_bugs<B: Copy + Debug, O: Object>(bugs: &[Planted<B>], plant: impl Fn(B, &str) -> O) {
    let mut failures = String::new();
    for &(bug, text, expected, name) in bugs {
        let report = explore(&plant(bug, name));
        let (what, trace) = report.wrong.unwrap_or(("not caught", String::new()));
        println!("{:>9}  {what:50} {text}", report.states);
        if what != expected {
            failures += &format!("\n{bug:?} in {name}: {what}\n{trace}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

struct Report {
    states: usize,
    seen: u32,
    wrong: Option<(&'static str, String)>,
}

fn explore<O: Object>(object: &O) -> Report {
    let mut search = Search {
        object,
        states: Vec::new(),
        came_from: Vec::new(),
        known: HashMap::default(),
        steps: Vec::new(),
        seen: 0,
        wrong: None,
    };
    search.run();
    Report {
        states: search.states.len(),
        seen: search.seen,
        wrong: search.wrong.map(|(what, at, by)| (what, search.trace(at, by))),
    }
}

struct Search<'a, O: Object> {
    object: &'a O,
    states: Vec<State<O::Ghost>>,
    came_from: Vec<(u32, Action)>,
    known: HashMap<u64, u32, BuildHasherDefault<Mix>>,
    /// Steps, backwards: (to, from).
    steps: Vec<(u32, u32)>,
    seen: u32,
    /// Where, and by which step if the step is what is wrong.
    wrong: Option<(&'static str, u32, Option<Action>)>,
}

impl<O: Object> Search<'_, O> {
    fn start(&self) -> State<O::Ghost> {
        let mut s = State {
            words: [0; WORDS],
            event: 0,
            departures: 0,
            slots: [Slot::default(); SLOTS],
            processes: [Process::default(); PROCESSES],
            kills: self.object.kills().0,
            ghost: self.object.ghost(),
        };
        for (p, slot) in self.object.slots().iter().enumerate() {
            if let Some(slot) = *slot {
                s.slots[usize::from(slot)] = Slot { generation: 1, claimed: true, burial: 0 };
                s.processes[p] = Process { life: Life::Alive, slot, generation: 1, ..Process::default() };
            }
        }
        self.object.begin(&mut s);
        s
    }

    fn run(&mut self) {
        let start = self.start();
        self.reach(start, 0, Action::Birth(0));
        let mut settled = Vec::new();
        let mut next = 0;
        while next < self.states.len() && self.wrong.is_none() {
            let s = self.states[next];
            let here = next as u32;
            next += 1;
            let steps = self.steps.len();
            for p in 0..PROCESSES {
                self.step_all(&s, here, p);
            }
            if self.steps.len() == steps {
                let stranded = self.unfinished(&s).find_map(|p| self.object.stranded(&s, p));
                match stranded {
                    Some(what) => self.wrong = Some((what, here, None)),
                    None => settled.push(here),
                }
            }
            self.environment(&s, here);
            if self.wrong.is_none() {
                let alone = self.unfinished(&s).find_map(|p| self.try_alone(&s, p));
                self.wrong = alone.map(|what| (what, here, None));
            }
        }
        if self.wrong.is_none() {
            let stray = first_that_never_settles(self.states.len(), &mut self.steps, settled);
            self.wrong = stray.map(|at| ("never finishes", at, None));
        }
    }

    fn unfinished(&self, s: &State<O::Ghost>) -> impl Iterator<Item = usize> + use<'_, O> {
        let processes = s.processes;
        (0..PROCESSES).filter(move |&p| processes[p].is_alive() && !self.is_finished(&processes[p], p))
    }

    fn is_finished(&self, process: &Process, p: usize) -> bool {
        usize::from(process.operation) >= self.object.operations(p)
    }

    fn step(&self, s: &State<O::Ghost>, me: usize, choice: usize, say: bool) -> (Cx<O::Ghost>, bool) {
        let mut cx = Cx {
            s: *s,
            me,
            read: 0,
            live: false,
            choice,
            choices: 1,
            deadlines: self.object.deadlines(),
            seen: 0,
            wrong: None,
            said: say.then(String::new),
        };
        let moved = match self.object.run(&mut cx) {
            Ok(()) => {
                assert!(cx.live, "an operation takes a step");
                cx.s.processes[me].turn(0);
                cx.s.processes[me].operation += 1;
                true
            }
            Err(Pause::Stepped) => true,
            Err(Pause::Blocked) => false,
        };
        (cx, moved)
    }

    fn step_all(&mut self, s: &State<O::Ghost>, here: u32, p: usize) {
        let it = &s.processes[p];
        if !it.is_alive() || it.asleep || self.is_finished(it, p) {
            return;
        }
        let mut choice = 0;
        loop {
            let (cx, moved) = self.step(s, p, choice, false);
            self.seen |= cx.seen;
            if moved {
                let to = self.reach(cx.s, here, Action::Step(p, choice));
                self.steps.push((to, here));
                if let Some(what) = cx.wrong {
                    self.wrong = Some((what, here, Some(Action::Step(p, choice))));
                }
            }
            choice += 1;
            if choice >= cx.choices {
                return;
            }
        }
    }

    fn environment(&mut self, s: &State<O::Ghost>, here: u32) {
        for slot in 0..SLOTS {
            let (slow, departures_last) = self.object.burials();
            if slow && s.slots[slot].burial > 0 || s.is_unburied(slot) {
                let mut n = *s;
                let it = &mut n.slots[slot];
                match it.burial {
                    _ if !slow => n.bury(slot),
                    0 => (it.generation, it.burial) = (it.generation + 1, 1),
                    1 if departures_last => (it.claimed, it.burial) = (false, 2),
                    1 => (n.departures, it.burial) = (n.departures + 1, 2),
                    _ if departures_last => (n.departures, it.burial) = (n.departures + 1, 0),
                    _ => (it.claimed, it.burial) = (false, 0),
                }
                self.reach(n, here, Action::Bury(slot));
            } else if s.kills > 0 && s.slots[slot].claimed && self.object.kills().1.contains(&(slot as u8)) {
                let mut n = *s;
                n.kills -= 1;
                for p in 0..PROCESSES {
                    if n.processes[p].is_alive() && usize::from(n.processes[p].slot) == slot {
                        self.object.killed(&mut n, p);
                        n.processes[p].turn(0);
                        n.processes[p].life = Life::Dead;
                    }
                    n.processes[p].asleep = false;
                }
                self.reach(n, here, Action::Kill(slot));
            }
        }
        let free = s.slots.iter().position(|slot| slot.generation > 0 && !slot.claimed);
        let unborn = (0..self.object.slots().len()).find(|&p| s.processes[p].life == Life::Unborn);
        if let (Some(slot), Some(p)) = (free, unborn) {
            let mut n = *s;
            n.slots[slot].generation += 1;
            n.slots[slot].claimed = true;
            let (life, generation) = (Life::Alive, n.slots[slot].generation);
            n.processes[p] = Process { life, slot: slot as u8, generation, ..Process::default() };
            self.reach(n, here, Action::Birth(p));
        }
    }

    /// All others are stopped for good; a slice ends the sleep of `p`, who may have looked too early.
    fn try_alone(&self, before: &State<O::Ghost>, p: usize) -> Option<&'static str> {
        let mut s = *before;
        let mut slices = usize::from(s.processes[p].asleep);
        s.processes[p].asleep = false;
        for _ in 0..ALONE {
            let (cx, moved) = self.step(&s, p, 0, false);
            s = cx.s;
            if s.processes[p].operation != before.processes[p].operation {
                return None;
            }
            if !moved || s.processes[p].asleep && slices > 0 {
                return self.object.alone(before, &s, p);
            }
            slices += usize::from(s.processes[p].asleep);
            s.processes[p].asleep = false;
        }
        Some("spins for another process")
    }

    fn reach(&mut self, s: State<O::Ghost>, from: u32, action: Action) -> u32 {
        let mut hasher = Mix::default();
        s.hash(&mut hasher);
        let mut key = hasher.finish();
        while let Some(&at) = self.known.get(&key) {
            if self.states[at as usize] == s {
                return at;
            }
            key = key.wrapping_add(1);
        }
        let at = self.states.len() as u32;
        self.known.insert(key, at);
        if let Some(what) = self.object.wrong(&s).filter(|_| self.wrong.is_none()) {
            self.wrong = Some((what, at, None));
        }
        self.states.push(s);
        self.came_from.push((from, action));
        at
    }

    /// How the state came about, one line per step, and what happens then.
    fn trace(&self, at: u32, then: Option<Action>) -> String {
        let mut lines: Vec<String> = then.map(|action| self.describe(at, action)).into_iter().collect();
        let mut here = at;
        while here != 0 {
            let (before, action) = self.came_from[here as usize];
            let step = self.describe(before, action);
            lines.push(format!("{step:58} {}", self.object.show(&self.states[here as usize])));
            here = before;
        }
        lines.push(format!("{:58} {}", "  start", self.object.show(&self.states[0])));
        lines.reverse();
        lines.join("\n")
    }

    fn describe(&self, from: u32, action: Action) -> String {
        match action {
            Action::Step(p, choice) => {
                let from = &self.states[from as usize];
                let it = &from.processes[p];
                let said = self.step(from, p, choice, true).0.said.unwrap_or_default();
                format!("  process {p}, operation {}.{}: {said}", it.operation, it.stage)
            }
            Action::Kill(slot) => format!("  slot {slot} is killed"),
            Action::Bury(slot) => format!("  slot {slot} is buried"),
            Action::Birth(p) => format!("  process {p} is born"),
        }
    }
}

/// Walks backwards from where all is well.
fn first_that_never_settles(count: usize, into: &mut [(u32, u32)], mut todo: Vec<u32>) -> Option<u32> {
    into.sort_unstable();
    let mut settles = vec![false; count];
    for &s in &todo {
        settles[s as usize] = true;
    }
    while let Some(s) = todo.pop() {
        let first = into.partition_point(|&(to, _)| to < s);
        for &(_, from) in into[first..].iter().take_while(|&&(to, _)| to == s) {
            if !std::mem::replace(&mut settles[from as usize], true) {
                todo.push(from);
            }
        }
    }
    settles.iter().position(|&settles| !settles).map(|at| at as u32)
}

/// Multiplies and rotates: the states are small, many, and nobody's enemy.
#[derive(Default)]
struct Mix(u64);

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
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn write_isize(&mut self, discriminant: isize) {
        self.write_u64(discriminant as u64);
    }
    fn write_usize(&mut self, length: usize) {
        self.write_u64(length as u64);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
}
