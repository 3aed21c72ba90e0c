//! How soon sleepers know of a death, and what waiting costs: `cargo run --release -p crossproc-tests --bin wake`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossproc_tests::{fresh_seed, wake};

/// Kills who is waited for, and takes the time until the sleeper knows; then watches idle sleepers.
#[derive(Debug, Parser)]
struct Options {
    /// Deaths of each kind
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// Seconds for which idle sleepers are watched
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// The seed of all random choices
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(fresh_seed);
    println!("seed {seed}: the same choices again with `--seed {seed}`");
    for (waitv, title) in [(true, "with futex_waitv"), (false, "without, in slices")] {
        let rounds = if waitv { options.rounds } else { options.rounds / 4 };
        match wake::kill_to_wake(rounds, waitv, seed) {
            Ok(times) => {
                println!("\n{:<36}{:>9}{:>9}{:>9}{:>8}", title, "median", "p99", "max", "rounds");
                times.iter().for_each(|times| println!("{times}"));
            }
            Err(failure) => {
                println!("FAILED: {failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("(milliseconds from kill to awake)\n\nCPU used while waiting, in percent of one:");
    for (name, share) in wake::cpu_while_waiting(Duration::from_secs(options.idle)) {
        println!("{name:<36}{:>9.4}", 100.0 * share);
    }
    ExitCode::SUCCESS
}
