//! `cargo xtask`: what the project does to itself. Without arguments it lists its commands.
//!
//! Read first: `test.rs` (the steps of `cargo xtask test`), then `mutants.rs`.
#![forbid(unsafe_code)]

mod crash;
mod fuzz;
mod leftovers;
mod model;
mod mutants;
mod output;
mod place;
mod procs;
mod run;
mod session;
mod sites;
mod test;
mod text;
mod tools;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::place::Place;

/// The chores of crossproc.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything that must hold: lints, tests, docs, models, mutations of changed files
    Test(test::Options),
    /// Weaken each memory ordering in turn: some model must fail
    Mutants(mutants::Options),
    /// The loom models, in both shim configurations, and the long forms of the explicit-state models
    Model {
        /// Only models whose name contains this
        filter: Option<String>,
    },
    /// Feed random bytes to a fuzz target for a while
    Fuzz {
        /// One of the targets in fuzz/src/lib.rs
        target: String,
        /// For how long, like 30s or 5m
        #[arg(value_parser = text::parse_duration)]
        duration: Duration,
    },
    /// Kill a process after each single instruction of each operation, and look at what the others find
    Crash(crash::Options),
    /// Kill lock holders at random for a while, and account for every word
    Storm {
        /// For how long, like 30s or 5m
        #[arg(value_parser = text::parse_duration)]
        duration: Duration,
    },
    /// Kill processes that use every object at once, for a while, and look for what is late, wrong or leaked
    Tempest {
        /// For how long, like 30s or 5m
        #[arg(value_parser = text::parse_duration)]
        duration: Duration,
    },
    /// Kill producers and consumers of a queue for a while, and account for every message
    QueueStorm {
        /// For how long, like 30s or 5m
        #[arg(value_parser = text::parse_duration)]
        duration: Duration,
    },
    /// Kill workers of a pool for a while, and account for every task
    PoolStorm {
        /// For how long, like 30s or 5m
        #[arg(value_parser = text::parse_duration)]
        duration: Duration,
    },
    /// Record what processes see of a queue, and compare it with what a queue can show
    Linear,
    /// How soon sleepers of each kind know of a death, and what waiting costs
    Wake,
    /// Look for torn reads of a Value for a while, beside a twin that must tear
    Torn {
        /// For how long, like 30s or 5m
        #[arg(value_parser = text::parse_duration)]
        duration: Duration,
    },
    /// The algorithms on heap memory under Miri (nightly)
    Miri {
        /// How many schedules to try per test
        #[arg(long, default_value_t = 16)]
        seeds: u32,
    },
    /// Tests under ThreadSanitizer and AddressSanitizer
    Sanitize(tools::Sanitize),
}

fn main() -> ExitCode {
    let Some(command) = Cli::parse().command else {
        // Printing help can only fail when nobody reads it.
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    };
    let result = Place::find().and_then(|place| match command {
        Command::Test(options) => test::run(&place, &options),
        Command::Mutants(options) => mutants::run(&place, &options),
        Command::Model { filter } => model::run(&place, filter.as_deref()),
        Command::Fuzz { target, duration } => fuzz::run(&place, &target, duration),
        Command::Crash(options) => crash::run(&place, &options),
        Command::Storm { duration } => tools::storm(&place, duration),
        Command::Tempest { duration } => tools::tempest(&place, duration),
        Command::QueueStorm { duration } => tools::queue_storm(&place, duration),
        Command::PoolStorm { duration } => tools::pool_storm(&place, duration),
        Command::Linear => tools::linear(&place),
        Command::Wake => tools::wake(&place),
        Command::Torn { duration } => tools::torn(&place, duration),
        Command::Miri { seeds } => tools::miri(&place, seeds),
        Command::Sanitize(options) => tools::sanitize(&place, &options),
    });
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
