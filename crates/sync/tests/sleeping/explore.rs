//! The search: every state that can be reached, and from each of them whether all can end well.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What must never be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    LivingTakenForDead,
    DeathUnseen,
    SlotStolen,
    SameIdentity,
    DepartureUncounted,
    LostWakeUp,
    NeverFinishes,
}

/// What is needed for everybody to go on, but no wake-up brings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stranding {
    /// Stopped between its change and its wake-up.
    WakerStopped,
    /// Woken by the kernel for a death, and stopped before it woke the others.
    PasserStopped,
    /// Woken by a notification, and stopped before it acted on it.
    NotifiedStopped,
    /// The kernel did not mark a token.
    KernelMissed,
}

/// A model's planted bugs: what each does, how and in which configuration it must be caught.
macro_rules! bugs {
    ($($name:ident $text:literal is $wrong:ident in $config:literal)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Bug { $($name),* }
        const BUGS: &[(Bug, &str, Wrong, &str)] = &[$((Bug::$name, $text, Wrong::$wrong, $config)),*];
    };
}

// ---------------------------------------------------------------------------------------------------------
// Search

/// What happens; by itself, sooner or later, up to `End`.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub enum Act {
    Step,
    Slice,
    Exit,
    MarkToken,
    FreeLock,
    End,
    Kill,
    Stop,
    Exec,
    MissToken,
}

pub trait Model {
    type State: Copy + Eq + Hash;
    /// Every state that can follow, and whose act it is. An act that is wrong in itself is the answer.
    fn moves(&mut self, s: &Self::State, to: &mut Vec<(Act, usize, Self::State)>) -> Option<Wrong>;
    fn check(&self, s: &Self::State) -> Option<Wrong>;
    /// `quiet`: nothing happens by itself any more, but slices. What is good, or missing, in a state where
    /// nothing more need happen.
    fn rest(&self, s: &Self::State, quiet: bool) -> Option<Result<(), Option<Stranding>>>;
    fn tell(&self, s: &Self::State, who: Option<usize>) -> String;
    fn outcomes(&self) -> u32;
}

pub struct Report {
    pub states: usize,
    pub outcomes: u32,
    pub strandings: Vec<Stranding>,
    pub wrong: Option<(Wrong, String)>,
}

pub fn explore<M: Model>(mut model: M, start: M::State, slices: bool, needs: &[Stranding]) -> Report {
    let mut states = vec![start];
    let mut came_from = vec![(0u32, Act::Step, 0usize)];
    let mut known: HashMap<M::State, u32, BuildHasherDefault<Mix>> = HashMap::default();
    known.insert(start, 0);
    let mut progress: Vec<(u32, u32)> = Vec::new(); // (to, from)
    let mut settled: Vec<u32> = Vec::new();
    let mut strandings = Vec::new();
    let mut wrong = None;
    let mut moves = Vec::new();
    let mut next = 0;
    'search: while next < states.len() {
        let s = states[next];
        moves.clear();
        if let Some(bad) = model.moves(&s, &mut moves) {
            wrong = Some((bad, next));
            break;
        }
        match model.rest(&s, moves.iter().all(|&(act, ..)| act == Act::Slice || act > Act::End)) {
            Some(Ok(())) => settled.push(next as u32),
            // A slice ends, and everybody must finish from here.
            Some(Err(_)) if slices || moves.iter().any(|&(act, ..)| act == Act::Slice) => {}
            Some(Err(Some(why))) if needs.contains(&why) => {
                if !strandings.contains(&why) {
                    strandings.push(why);
                    if std::env::var_os("TRACE").is_some() {
                        println!("{why:?}\n{}", trace(&model, &states, &came_from, next));
                    }
                }
                settled.push(next as u32);
            }
            Some(Err(_)) => {
                wrong = Some((Wrong::LostWakeUp, next));
                break;
            }
            None => {}
        }
        for &(act, who, n) in &moves {
            let to = *known.entry(n).or_insert_with(|| {
                states.push(n);
                came_from.push((next as u32, act, who));
                states.len() as u32 - 1
            });
            if act <= Act::End {
                progress.push((to, next as u32));
            }
            if let Some(bad) = model.check(&n) {
                wrong = Some((bad, to as usize));
                break 'search;
            }
        }
        next += 1;
    }
    if wrong.is_none() {
        wrong = first_that_never_settles(states.len(), progress, settled).map(|s| (Wrong::NeverFinishes, s));
    }
    strandings.sort_unstable();
    let wrong = wrong.map(|(bad, at)| (bad, trace(&model, &states, &came_from, at)));
    Report { states: states.len(), outcomes: model.outcomes(), strandings, wrong }
}

/// Walks backwards from where all is well.
fn first_that_never_settles(count: usize, mut into: Vec<(u32, u32)>, mut todo: Vec<u32>) -> Option<usize> {
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
    settles.iter().position(|&settles| !settles)
}

/// How the state came about, one line per step.
fn trace<M: Model>(model: &M, states: &[M::State], came_from: &[(u32, Act, usize)], at: usize) -> String {
    let mut lines = Vec::new();
    let mut here = at;
    while here != 0 {
        let (before, act, who) = came_from[here];
        let step = format!("{act:?} of {who}, {}", model.tell(&states[before as usize], Some(who)));
        lines.push(format!("  {step:40} {}", model.tell(&states[here], None)));
        here = before as usize;
    }
    lines.push(format!("  {:40} {}", "start", model.tell(&states[0], None)));
    lines.reverse();
    lines.join("\n")
}

/// What a configuration must show, without anything wrong.
pub fn expect(
    name: &str,
    report: &Report,
    needs: &[Stranding],
    missing: &[impl std::fmt::Debug],
    at_least: usize,
) {
    println!("{:>9}  {name:70} {:?}", report.states, report.strandings);
    if let Some((wrong, trace)) = &report.wrong {
        panic!("{name}: {wrong:?}\n{trace}");
    }
    assert_eq!(report.strandings, needs, "{name}");
    assert!(missing.is_empty(), "{name} does not show {missing:?}");
    assert!(report.states >= at_least, "{name}: the model has shrunk");
}

/// A planted bug must be caught, as what it is.
pub fn expect_caught(report: Report, text: &str, expected: Wrong, name: &str) {
    let Some((wrong, trace)) = report.wrong else {
        panic!("{text}: not caught in {name}, {} states", report.states)
    };
    println!("{:>9}  {:18} {text}", report.states, format!("{wrong:?}"));
    if std::env::var_os("TRACE").is_some() {
        println!("{trace}");
    }
    assert_eq!(wrong, expected, "{text}, in {name}\n{trace}");
}

/// Multiplies and rotates: the states are small, many, and nobody's enemy.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u8(b);
        }
    }
    fn write_u8(&mut self, b: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(b)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn write_isize(&mut self, discriminant: isize) {
        self.write_u8(discriminant as u8);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
