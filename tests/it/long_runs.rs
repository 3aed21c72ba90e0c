//! The storms, the search for torn values and the waking of sleepers, in small. In full: the programs `storm`, `tempest`, `torn`
//! `queue_storm` and `wake` of this package.

use std::time::Duration;

use crossproc_tests::{HANG, fresh_seed, isolated, linear, queue_storm, storm, tempest, torn, wake};

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
fn a_tempest_over_all_objects_breaks_no_promise() {
    isolated(|()| {
        let seed = fresh_seed();
        let report = tempest::run(&tempest::Config { kills: 400, at_least: Duration::ZERO, seed });
        println!("{report}");
        assert!(report.is_right(), "{report}");
    });
}

#[test]
fn a_storm_over_a_queue_breaks_no_promise() {
    isolated(|()| {
        let seed = fresh_seed();
        let report = queue_storm::run(&queue_storm::Config { kills: 40, at_least: Duration::ZERO, seed });
        println!("{report}");
        assert!(report.is_right(), "{report}");
    });
}

#[test]
fn what_processes_see_of_a_queue_is_one_queue() {
    let seed = fresh_seed();
    let report = linear::run(&linear::Config { operations: 60_000, seed });
    println!("{report}");
    assert!(report.is_right(), "{report}");
}

/// Every kind of sleeper, with and without `futex_waitv`: that it is woken, and learns the right thing.
#[test]
fn every_sleeper_is_woken_by_a_death() {
    isolated(|()| {
        let seed = fresh_seed();
        println!("seed {seed}");
        for (waitv, rounds) in [(true, 4), (false, 2)] {
            let times = wake::kill_to_wake(rounds, waitv, seed).unwrap_or_else(|failure| panic!("{failure}"));
            assert!(times.len() >= 11 && times.iter().all(|t| t.woken.len() as u64 == rounds));
        }
    });
}

#[test]
fn no_value_is_torn_and_its_plain_twin_is() {
    let report = torn::run(torn::Least { reads: 300_000, changed: 20_000, limit: HANG });
    println!("{report}");
    assert!(report.is_right(), "{report}");
}
