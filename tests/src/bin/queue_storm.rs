//! The storm over the queue as a program: `cargo run --release -p crossproc-tests --bin queue_storm -- 60s`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossproc_tests::{fresh_seed, queue_storm, seconds};

/// Kills producers and consumers of a queue at random moments, and accounts for every message.
#[derive(Debug, Parser)]
struct Options {
    /// How long at least: 60s, 5m
    #[arg(default_value = "0s", value_parser = seconds)]
    time: Duration,
    /// How many have to die, with each way to receive
    #[arg(long, default_value_t = 10_000)]
    kills: u64,
    /// The seed of all random choices
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(fresh_seed);
    println!("seed {seed}: the same choices again with `--seed {seed}`");
    let config = queue_storm::Config { kills: options.kills, at_least: options.time, seed };
    let report = queue_storm::run(&config);
    println!("{report}");
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
