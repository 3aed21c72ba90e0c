//! Double crashes: for each state that a victim leaves, the first survivor is stepped through its recovery, and each state that
//! *its* death leaves is checked by a third process.

use crate::options::Options;
use crate::pass::{Prepared, is_enough, judge, row_of, step_through, step_through_from};
use crate::report::Report;
use crate::scene::{After, Operation, slot_of};
use crate::step::{Memory, Victim};

/// The name of this mode.
pub const MODE: &str = "double";

/// Checks all pairs of states of each operation that names a recovery.
pub fn run(options: &Options, operations: &[Operation]) -> Report {
    crate::pass::each(MODE, operations, |operation, report| {
        if operation.doubles {
            one(options, operation, &mut Prepared::new(options, operation), report);
        }
    })
}

/// Adds the row of one operation, if it names a recovery.
pub(crate) fn one(options: &Options, operation: &Operation, prepared: &mut Prepared, report: &mut Report) {
    let Prepared { stage, pass: first, .. } = prepared;
    let Some(memory) = stage.memory().filter(|_| operation.doubles) else { return };
    let mut row = row_of(operation, MODE);
    let mut steps = 0;
    // The latest first: most has happened there.
    for state in first.states.iter().rev() {
        if is_enough(&row) || options.quick && steps > options.steps {
            row.add("left out", u64::from(!row.planted));
            continue;
        }
        let second = match stage.seat() {
            // One who was there before: it finds out about the death while it is stepped.
            Some(seat) => {
                memory.restore(seat.before);
                let restore = |victim: &Victim| memory.restore(&seated(memory, victim, &state.image));
                step_through_from(Some(memory), || stage.recover(), restore)
            }
            None => {
                memory.restore(&state.image);
                step_through(Some(memory), || stage.recover())
            }
        };
        steps += second.instructions;
        for next in &second.states {
            memory.restore(&next.image);
            let after = After { begun: state.at > 0, returned: state.returned, second: Some(next.returned) };
            judge(&mut row, &**stage, after, || {
                format!("state after {}, its recovery killed after {}", state.at, next.at)
            });
            row.add("pairs", 1);
        }
    }
    report.rows.push(row);
}

/// `image` with the slot of `victim`, who takes part already, as it is now.
fn seated(memory: Memory, victim: &Victim, image: &[u8]) -> Vec<u8> {
    let (now, mut image) = (memory.image(), image.to_vec());
    let slot = slot_of(&now, victim.pid().unsigned_abs()).expect("it takes part");
    image[slot.clone()].copy_from_slice(&now[slot]);
    image
}
