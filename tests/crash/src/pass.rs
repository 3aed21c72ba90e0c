//! One pass through an operation, and the distinct states it goes through.

use std::time::Instant;

use crate::options::Options;
use crate::report::{Report, Row};
use crate::scene::{After, EarlySurvivor, Operation, Stage, survive};
use crate::step::{Memory, Robust, RobustHead, Step, Verdict, Victim, why};

/// An operation that has not ended by then is stepped no further.
pub const TOO_LONG: u64 = 2_000_000;

/// A state of the shared memory as a death at this point leaves it: with what the kernel does to robust words.
#[derive(Clone, Debug)]
pub struct State {
    /// After so many instructions it appeared.
    pub at: u64,
    /// The operation had returned.
    pub returned: bool,
    /// The memory.
    pub image: Vec<u8>,
}

/// What a pass saw.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// How many instructions the operation took; to where it fell asleep, if it did.
    pub instructions: u64,
    /// Before which instructions it stood when it was about to make a system call.
    pub syscalls: Vec<u64>,
    /// The states, if there is memory to look at. If the operation returned, the last one is after that.
    pub states: Vec<State>,
    /// It ended asleep in a system call.
    pub asleep: bool,
}

/// Looks at a victim that stands still.
struct Eye {
    memory: Memory,
    heads: Vec<RobustHead>,
    last: Vec<u8>,
    robust: Vec<Robust>,
}

impl Eye {
    fn new(memory: Memory) -> Self {
        Self { memory, heads: Vec::new(), last: Vec::new(), robust: Vec::new() }
    }

    /// The memory as the victim's death would leave it, if that can differ from the last look.
    fn look(&mut self, victim: &Victim) -> Option<Vec<u8>> {
        if self.heads.is_empty() {
            self.heads = victim.robust_heads();
        }
        let mut robust = victim.robust_words(&self.heads);
        if self.memory.is(&self.last) && robust == self.robust {
            return None;
        }
        // It may have started a thread since.
        self.heads = victim.robust_heads();
        robust = victim.robust_words(&self.heads);
        self.last = self.memory.image();
        let mut image = self.last.clone();
        self.memory.bury(&mut image, victim, &robust);
        self.robust = robust;
        Some(image)
    }
}

/// The shared memory as the death of `victim` would leave it now.
pub fn foretell(memory: Memory, victim: &Victim) -> Vec<u8> {
    Eye::new(memory).look(victim).unwrap_or_else(|| memory.image())
}

/// Steps a victim through `part` to the end. It dies there.
pub fn step_through(memory: Option<Memory>, part: impl FnOnce()) -> Pass {
    step_through_from(memory, part, |_| ())
}

/// As [`step_through`]; `before` is called when the victim stands at its first marker.
pub fn step_through_from(memory: Option<Memory>, part: impl FnOnce(), before: impl FnOnce(&Victim)) -> Pass {
    let mut victim = Victim::start(part);
    before(&victim);
    let mut pass = Pass::default();
    let mut eye = memory.map(Eye::new);
    let mut note = |pass: &mut Pass, victim: &Victim, returned: bool| {
        let Some(eye) = &mut eye else { return };
        let seen = eye.look(victim);
        let changed = seen.filter(|image| pass.states.last().is_none_or(|last| last.image != *image));
        let at = pass.instructions;
        match (changed, pass.states.last()) {
            (Some(image), _) => pass.states.push(State { at, returned, image }),
            // The same memory, but more is asked of it.
            (None, Some(last)) if returned => {
                let image = last.image.clone();
                pass.states.push(State { at, returned, image });
            }
            _ => {}
        }
    };
    note(&mut pass, &victim, false);
    loop {
        if victim.at_syscall() {
            pass.syscalls.push(pass.instructions);
        }
        match victim.step() {
            Step::Stepped => {
                pass.instructions += 1;
                note(&mut pass, &victim, false);
            }
            Step::End => {
                note(&mut pass, &victim, true);
                break;
            }
            Step::Blocked => {
                pass.asleep = true;
                break;
            }
            other => panic!("the operation ended its process: {other:?} {}", why()),
        }
        assert!(pass.instructions < TOO_LONG, "longer than {TOO_LONG} instructions");
    }
    victim.kill();
    pass
}

/// Runs a victim through `part` from system call to system call. It dies at the end. Positions of instructions are not known.
pub fn run_through(part: impl FnOnce()) -> Pass {
    let mut victim = Victim::start(part);
    let mut pass = Pass::default();
    loop {
        match victim.to_syscall() {
            Step::Syscall(_) => pass.syscalls.push(0),
            Step::End => break,
            Step::Blocked => {
                pass.asleep = true;
                break;
            }
            other => panic!("the operation ended its process: {other:?} {}", why()),
        }
    }
    victim.kill();
    pass
}

impl Pass {
    /// Lets a victim run until it has executed `k` instructions: in strides from system call to system call, as far as they
    /// were where they are now. [`Step::Stepped`] if it came there.
    pub fn reach(&self, victim: &mut Victim, k: u64) -> Step {
        let calls = self.syscalls.iter().take_while(|&&at| at < k).count();
        let come = self.run(victim, calls, true);
        let at = self.syscalls[..calls].last().map_or(0, |at| at + 1);
        if come == Step::Stepped { victim.steps(k - at) } else { come }
    }

    /// Lets a victim run through its first `calls` system calls; then, unless `behind`, to the one after them.
    pub fn run(&self, victim: &mut Victim, calls: usize, behind: bool) -> Step {
        for _ in 0..calls {
            match victim.to_syscall() {
                Step::Syscall(_) => {}
                other => return other,
            }
            match victim.through_syscall() {
                Step::Stepped => {}
                other => return other,
            }
        }
        if behind {
            return Step::Stepped;
        }
        match victim.to_syscall() {
            Step::Syscall(_) => Step::Stepped,
            other => other,
        }
    }

    /// In the middle of each state, the latest first: `steps` in all at the most. (Clocks make operations a few instructions
    /// longer or shorter each time.)
    pub fn middles(&self, steps: u64) -> Vec<u64> {
        let ends = self.states.iter().skip(1).map(|state| state.at).chain([self.instructions]);
        let mut middles: Vec<u64> =
            self.states.iter().zip(ends).map(|(state, end)| state.at.midpoint(end)).collect();
        middles.push(0);
        middles.sort_unstable();
        middles.dedup();
        let mut left = steps;
        middles.retain(|&at| {
            let fits = at <= left;
            left -= if fits { at } else { 0 };
            fits
        });
        middles
    }

    /// Where real kills are worth most: around each change of state and each system call, and at the ends.
    pub fn corners(&self) -> Vec<u64> {
        let states = self.states.iter().flat_map(|state| [state.at.saturating_sub(1), state.at]);
        let calls = self.syscalls.iter().flat_map(|&at| [at, at + 1]);
        let mut corners: Vec<u64> =
            states.chain(calls).chain([0, self.instructions, self.instructions + 1]).collect();
        corners.sort_unstable();
        corners.dedup();
        corners
    }
}

/// An operation's first state, and what a pass from there saw.
pub struct Prepared {
    /// In its first state only after a reset.
    pub stage: Box<dyn Stage>,
    /// The memory in its first state; empty if it is not known.
    pub first: Vec<u8>,
    /// One pass.
    pub pass: Pass,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("pass", &self.pass).finish_non_exhaustive()
    }
}

impl Prepared {
    /// Sets it up, and makes the pass.
    #[must_use]
    pub fn new(options: &Options, operation: &Operation) -> Self {
        let stage = operation.stage();
        let first = stage.memory().map(|memory| memory.image()).unwrap_or_default();
        let pass = if options.quick && stage.memory().is_none() {
            run_through(|| stage.victim())
        } else {
            step_through(stage.memory(), || stage.victim())
        };
        Self { stage, first, pass }
    }
}

/// The report of a mode, to which each operation in turn adds something.
pub fn each(mode: &str, operations: &[Operation], mut one: impl FnMut(&Operation, &mut Report)) -> Report {
    let mut report = Report::new(mode);
    operations.iter().for_each(|operation| one(operation, &mut report));
    report
}

/// A row for an operation.
pub fn row_of(operation: &Operation, mode: &str) -> Row {
    let mut row = Row::new(operation.title());
    row.planted = !operation.planted.is_empty();
    row.must_fail = operation.planted.contains(&mode);
    row
}

/// Lets a survivor check, and notes what it found.
pub fn judge(row: &mut Row, stage: &dyn Stage, after: After, at: impl FnOnce() -> String) -> Verdict {
    let started = Instant::now();
    let verdict = survive(stage, after);
    row.took(started.elapsed());
    row.judge(at, verdict, why);
    verdict
}

/// As [`judge`], by a survivor that was there before.
pub fn judge_early(row: &mut Row, survivor: EarlySurvivor, after: After, at: impl FnOnce() -> String) {
    let started = Instant::now();
    let verdict = survivor.judge(after);
    row.took(started.elapsed());
    row.judge(|| format!("{}, survivor there before", at()), verdict, why);
}

/// So many bad findings are enough; of a planted bug, less.
pub fn is_enough(row: &Row) -> bool {
    row.bad_count() >= if row.planted { 3 } else { 20 }
}
