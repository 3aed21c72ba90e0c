//! The storm and the search for torn values, in small. In full: the programs `storm` and `torn` of this package.

use std::time::Duration;

use crossproc_tests::{HANG, fresh_seed, storm, torn};

#[test]
fn a_storm_of_kills_breaks_no_promise() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let report = storm::run(&storm::Config { holding: 40, at_least: Duration::ZERO, idle_rounds: 10, seed });
    println!("{report}");
    assert!(report.is_right(), "{report}");
    assert_eq!(report.robust.died.holding.max(40), report.robust.died.holding);
    assert!(report.robust.reports >= report.robust.died.holding);
}

#[test]
fn no_value_is_torn_and_its_plain_twin_is() {
    let report = torn::run(torn::Least { reads: 300_000, changed: 20_000, limit: HANG });
    println!("{report}");
    assert!(report.is_right(), "{report}");
}
