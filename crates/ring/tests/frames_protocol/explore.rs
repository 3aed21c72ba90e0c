//! The search: all states that steps and deaths lead to, each visited once.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::protocol::{Bug, State};

/// Who takes part, and what they do.
#[derive(Debug)]
pub struct Config {
    pub name: &'static str,
    /// The lengths of the frames that each writer sends.
    pub writers: &'static [&'static [u8]],
    pub readers: usize,
    /// So many are killed at the most.
    pub kills: u8,
    /// The second writer has its hold from the first, who lets go then.
    pub passed: bool,
    /// Writers who have sent all their frames do not let go.
    pub stay: bool,
    /// Readers have their end and do nothing.
    pub idle: bool,
    /// So many states there are at least, if the model is what it was.
    pub at_least: usize,
}

/// Whose ends nobody passes on.
pub const fn config(
    name: &'static str,
    writers: &'static [&'static [u8]],
    readers: usize,
    kills: u8,
    at_least: usize,
) -> Config {
    Config { name, writers, readers, kills, passed: false, stay: false, idle: false, at_least }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Step(usize),
    Kill(usize),
}

pub struct Report {
    pub states: usize,
    /// States in which nobody can go on.
    pub rests: usize,
    pub wrong: Option<(&'static str, String)>,
}

/// Breadth first, so what goes wrong is told the shortest way.
pub fn explore(config: &Config, bug: Option<Bug>) -> Report {
    let start = State::new(config);
    let mut known: HashMap<u128, (u128, Action)> = HashMap::new();
    let mut done = HashSet::new();
    let mut todo = VecDeque::from([start]);
    known.insert(start_key(), (0, Action::Kill(0)));
    let mut rests = 0;
    let mut first = true;
    while let Some(state) = todo.pop_front() {
        let here = if first { start_key() } else { state.key() };
        first = false;
        if !done.insert(here) {
            continue;
        }
        let mut next = Vec::new();
        let mut moves = false;
        for p in (0..state.processes()).filter(|&p| state.can_step(p)) {
            let mut after = state.clone();
            let wrong = after.step(config, bug, p).err();
            moves = true;
            if let Some(what) = wrong {
                let how = trace(config, bug, &known, here, Some(Action::Step(p)));
                return Report { states: known.len(), rests, wrong: Some((what, how)) };
            }
            next.push((Action::Step(p), after));
        }
        if !moves {
            rests += 1;
            if let Err(what) = state.at_rest(config) {
                let how = trace(config, bug, &known, here, None);
                return Report { states: known.len(), rests, wrong: Some((what, how)) };
            }
        }
        if state.killed() < config.kills {
            for p in (0..state.processes()).filter(|&p| state.can_die(p)) {
                let mut after = state.clone();
                after.kill(p);
                next.push((Action::Kill(p), after));
            }
        }
        for (action, after) in next {
            if let std::collections::hash_map::Entry::Vacant(entry) = known.entry(after.key()) {
                entry.insert((here, action));
                todo.push_back(after);
            }
        }
    }
    Report { states: known.len(), rests, wrong: None }
}

fn start_key() -> u128 {
    u128::MAX
}

fn trace(
    config: &Config,
    bug: Option<Bug>,
    known: &HashMap<u128, (u128, Action)>,
    mut at: u128,
    last: Option<Action>,
) -> String {
    let mut actions: Vec<Action> = last.into_iter().collect();
    while at != start_key() {
        let (before, action) = known[&at];
        actions.push(action);
        at = before;
    }
    actions.reverse();
    let mut state = State::new(config);
    let mut lines = vec![format!("{:40} {}", "start", state.show())];
    for action in actions {
        let line = match action {
            Action::Step(p) => {
                let at = state.place(p);
                let _ = state.step(config, bug, p);
                format!("{p} {at}")
            }
            Action::Kill(p) => {
                state.kill(p);
                format!("{p} is killed")
            }
        };
        lines.push(format!("{line:40} {}", state.show()));
    }
    lines.join("\n")
}
