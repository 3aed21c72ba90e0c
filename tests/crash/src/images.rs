//! Images: one pass, and each distinct state of the memory put back when its victim is really dead.

use crate::options::Options;
use crate::pass::{Prepared, is_enough, judge, judge_early, row_of};
use crate::report::Report;
use crate::scene::{After, EarlySurvivor, Operation};

/// The name of this mode.
pub const MODE: &str = "images";

/// Checks every distinct state that each operation goes through.
pub fn run(options: &Options, operations: &[Operation]) -> Report {
    crate::pass::each(MODE, operations, |operation, report| {
        one(operation, &mut Prepared::new(options, operation), report);
    })
}

/// Adds the row of one operation, if the harness knows its memory.
pub(crate) fn one(operation: &Operation, prepared: &mut Prepared, report: &mut Report) {
    let Prepared { stage, first, pass } = prepared;
    let Some(memory) = stage.memory() else { return };
    let mut row = row_of(operation, MODE);
    row.set("instructions", pass.instructions);
    row.set("states", pass.states.len() as u64);
    for state in &pass.states {
        memory.restore(&state.image);
        let after = After { begun: state.at > 0, returned: state.returned, second: None };
        judge(&mut row, &**stage, after, || format!("state after {}", state.at));
        row.add("images", 1);
        // And once more by one who was there before, and has to find out about the death.
        if let Some(seat) = stage.seat() {
            let survivor = EarlySurvivor::start(&**stage, seat, memory, first);
            memory.restore(&survivor.seated(state.image.clone()));
            judge_early(&mut row, survivor, after, || format!("state after {}", state.at));
        }
        if is_enough(&row) {
            break;
        }
    }
    report.rows.push(row);
}
