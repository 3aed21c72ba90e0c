//! The tempest as a program: `cargo run --release -p crossproc-tests --bin tempest -- 60s`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossproc_tests::{fresh_seed, seconds, tempest};

/// Kills processes that use all objects at once, at random moments, and looks at what becomes of the others.
#[derive(Debug, Parser)]
struct Options {
    /// How long at least: 60s, 5m
    #[arg(default_value = "0s", value_parser = seconds)]
    time: Duration,
    /// How many have to die
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
    let config = tempest::Config { kills: options.kills, at_least: options.time, seed };
    let report = tempest::run(&config);
    println!("{report}");
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
