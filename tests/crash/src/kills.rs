//! Real kills: a victim for each instruction, dead by SIGKILL right after it.
//!
//! Where the harness knows the memory, it foretells for each kill what the kernel will leave behind, and compares: that is what the
//! modes that put memory back rest on.

use crate::options::Options;
use crate::pass::{Prepared, foretell, is_enough, judge, judge_early, row_of};
use crate::report::{Report, Row};
use crate::scene::{After, DEADLINE, EarlySurvivor, Operation, done};
use crate::step::{Step, Victim, why};

/// The name of this mode.
pub const MODE: &str = "kills";

/// Kills each operation's victim after each of its instructions.
pub fn run(options: &Options, operations: &[Operation]) -> Report {
    crate::pass::each(MODE, operations, |operation, report| {
        one(options, operation, &mut Prepared::new(options, operation), report);
    })
}

/// Where a victim dies.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// After so many instructions.
    Instruction(u64),
    /// Behind so many system calls, and before the next one.
    Syscall(usize),
    /// After the operation has returned.
    End,
}

fn points(options: &Options, prepared: &Prepared) -> Vec<Point> {
    let pass = &prepared.pass;
    let end = (!pass.asleep).then_some(Point::End);
    if pass.instructions == 0 {
        // Nothing is known but its system calls.
        return (0..pass.syscalls.len()).map(Point::Syscall).chain(end).collect();
    }
    let instructions = if options.quick {
        pass.middles(options.steps)
    } else if pass.instructions <= options.longest {
        (0..=pass.instructions).collect()
    } else {
        pass.corners()
    };
    // A sleeper is killed in its last instruction.
    let asleep = pass.asleep.then_some(Point::Instruction(pass.instructions + 1));
    instructions.into_iter().map(Point::Instruction).chain(asleep).chain(end).collect()
}

/// Adds the row of one operation.
pub(crate) fn one(options: &Options, operation: &Operation, prepared: &mut Prepared, report: &mut Report) {
    let mut row = row_of(operation, MODE);
    if prepared.pass.instructions > 0 {
        row.set("instructions", prepared.pass.instructions);
    }
    let mut wrong = 0;
    for point in points(options, prepared) {
        wrong += u64::from(!kill(operation, prepared, point, &mut row));
        if is_enough(&row) {
            break;
        }
    }
    if wrong > 0 {
        let title = operation.title();
        report
            .faults
            .push(format!("{title}: {wrong} times the kernel left other bytes behind than were foretold"));
    }
    report.rows.push(row);
}

/// False if the memory is not as foretold.
fn kill(operation: &Operation, prepared: &mut Prepared, point: Point, row: &mut Row) -> bool {
    let Prepared { stage, first, pass } = prepared;
    stage.reset();
    // Survivors that come later are tried by the other modes.
    let survivor = stage
        .memory()
        .zip(stage.seat())
        .map(|(memory, seat)| EarlySurvivor::start(&**stage, seat, memory, first));
    let mut victim = Victim::start(|| stage.victim());
    let came = match point {
        Point::Instruction(k) => pass.reach(&mut victim, k),
        Point::Syscall(n) => pass.run(&mut victim, n, false),
        Point::End => victim.run_to_end(DEADLINE),
    };
    let returned = match came {
        Step::Stepped => false,
        Step::End => true,
        Step::Blocked => {
            row.add("asleep", 1);
            false
        }
        other => panic!("{}: its process ended: {other:?} {}", operation.title(), why()),
    };
    // A sleeper that was stopped nowhere can not be looked into.
    let memory = stage.memory().filter(|_| came != Step::Blocked);
    let foretold = memory.map(|memory| foretell(memory, &victim));
    victim.kill();
    row.add("kills", 1);
    let right = memory.zip(foretold).is_none_or(|(memory, image)| memory.is(&image));
    let begun = !matches!(point, Point::Instruction(0));
    let after = After { begun, returned, second: None };
    match survivor {
        Some(survivor) => judge_early(row, survivor, after, || format!("{point:?}")),
        None => done(judge(row, &**stage, after, || format!("{point:?}"))),
    }
    right
}
