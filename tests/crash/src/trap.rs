//! Real kills without ptrace: the victim sets its own trap flag, counts, and kills itself.
//!
//! For machines where ptrace is denied; the verdicts are those of the mode `kills`. Operations that start threads are left
//! out: a new thread would inherit the flag.

use std::time::Duration;

use crate::options::Options;
use crate::pass::{TOO_LONG, is_enough, judge, row_of};
use crate::report::{Report, Row};
use crate::scene::{After, Operation};
use crate::step::{Point, Step, die_by_trap};

/// The name of this mode.
pub const MODE: &str = "trap";

/// What takes longer sleeps.
const LIMIT: Duration = Duration::from_secs(3);

/// Lets each operation's victim kill itself after each of its instructions.
pub fn run(options: &Options, operations: &[Operation]) -> Report {
    let mut report = Report::new(MODE);
    for operation in operations {
        if operation.starts_threads {
            report.not_run.push(format!("{} by trap flag: it starts a thread", operation.title()));
        } else {
            report.rows.push(one(options, operation));
        }
    }
    report
}

fn one(options: &Options, operation: &Operation) -> Row {
    let mut row = row_of(operation, MODE);
    let mut stage = operation.stage();
    let (_, length) = die_by_trap(|| stage.victim(), Point::Instruction(TOO_LONG), LIMIT);
    row.set("instructions", length);
    // A quick run looks at a few dozen.
    let stride = if options.quick { length / 40 + 1 } else { 1 };
    let everywhere = options.quick || length <= options.longest;
    let mut points = 0_u64..;
    loop {
        let n = points.next().expect("numbers do not end here");
        let point = if everywhere { Point::Instruction(n * stride) } else { Point::Syscall(n) };
        stage.reset();
        let (came, steps) = die_by_trap(|| stage.victim(), point, LIMIT);
        let returned = match came {
            Step::Stepped => false,
            Step::End => true,
            Step::Blocked => {
                row.add("asleep", 1);
                false
            }
            other => panic!("{}: its process ended: {other:?}", operation.title()),
        };
        row.add("kills", 1);
        judge(&mut row, &*stage, After { begun: steps > 0, returned, second: None }, || format!("{point:?}"));
        if came != Step::Stepped || is_enough(&row) {
            break;
        }
    }
    stage.reset();
    row
}
