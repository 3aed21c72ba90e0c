//! The storm over a pool as a program: `cargo run --release -p crossproc-tests --bin pool_storm -- 60s`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossproc_tests::{fresh_seed, pool_storm, seconds};

/// Kills workers of a pool at random moments, and accounts for every task.
#[derive(Debug, Parser)]
struct Options {
    /// How long at least: 60s, 5m
    #[arg(default_value = "0s", value_parser = seconds)]
    time: Duration,
    /// How many tasks at least
    #[arg(long, default_value_t = 100_000)]
    tasks: u64,
    /// The seed of all random choices
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(fresh_seed);
    println!("seed {seed}: the same choices again with `--seed {seed}`");
    let config = pool_storm::Config { tasks: options.tasks, at_least: options.time, seed };
    let report = pool_storm::run(&config);
    println!("{report}");
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
