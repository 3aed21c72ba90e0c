//! The storm as a program: `cargo run --release -p crossproc-tests --bin storm -- 60s`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossproc_tests::{fresh_seed, seconds, storm};

/// Kills processes that hold a lock, at random moments, and counts what becomes of it.
#[derive(Debug, Parser)]
struct Options {
    /// How long at least: 60s, 5m
    #[arg(default_value = "0s", value_parser = seconds)]
    time: Duration,
    /// How many have to die while they hold the lock
    #[arg(long, default_value_t = 1000)]
    holding: u64,
    /// In how many rounds an idle waiter is timed
    #[arg(long, default_value_t = 400)]
    idle_rounds: u64,
    /// The seed of all random choices
    #[arg(long)]
    seed: Option<u64>,
    /// One line for programs
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(fresh_seed);
    if !options.json {
        println!("seed {seed}: the same choices again with `--seed {seed}`");
    }
    let report = storm::run(&storm::Config {
        holding: options.holding,
        at_least: options.time,
        idle_rounds: options.idle_rounds,
        seed,
    });
    if options.json {
        println!("{}", report.json());
    } else {
        println!("{report}");
    }
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
