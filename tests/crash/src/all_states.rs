//! The modes that work with the states of one pass, run together: so the pass, which takes most of the time, is made once.

use crate::options::Options;
use crate::pass::Prepared;
use crate::report::Report;
use crate::scene::Operation;
use crate::{double, images, kills};

/// The modes that can be run together.
pub const MODES: [&str; 3] = [kills::MODE, images::MODE, double::MODE];

/// What the mode of this name would report, for each of `modes`.
pub fn run(options: &Options, operations: &[Operation], modes: &[&str]) -> Vec<Report> {
    let mut reports: Vec<Report> = modes.iter().map(|mode| Report::new(mode)).collect();
    if reports.is_empty() {
        return reports;
    }
    for operation in operations {
        let mut prepared = Prepared::new(options, operation);
        for report in &mut reports {
            match report.mode.as_str() {
                kills::MODE => kills::one(options, operation, &mut prepared, report),
                images::MODE => images::one(operation, &mut prepared, report),
                _ => double::one(options, operation, &mut prepared, report),
            }
        }
    }
    reports
}
