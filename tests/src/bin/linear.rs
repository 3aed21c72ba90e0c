//! The histories of the queue as a program: `cargo run --release -p crossproc-tests --bin linear`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use crossproc_tests::{fresh_seed, linear};

/// Records what processes see of a queue, and compares it with what a queue can show.
#[derive(Debug, Parser)]
struct Options {
    /// How many calls at least
    #[arg(long, default_value_t = 1_200_000)]
    operations: u64,
    /// The seed of all random choices
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(fresh_seed);
    println!("seed {seed}: the same choices again with `--seed {seed}`");
    let report = linear::run(&linear::Config { operations: options.operations, seed });
    println!("{report}");
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
