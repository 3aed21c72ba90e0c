//! The search for torn values as a program: `cargo run --release -p crossproc-tests --bin torn`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use crossproc_tests::{seconds, torn};

/// Reads a value in two processes while a third one writes it, and looks whether what was read was ever written.
#[derive(Debug, Parser)]
struct Options {
    /// How many reads; a tenth of them have to find another value than the read before
    #[arg(long, default_value_t = 100_000_000)]
    reads: u64,
    /// The end, whatever was read until then
    #[arg(long, default_value = "10m", value_parser = seconds)]
    limit: Duration,
    /// One line for programs
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let report =
        torn::run(torn::Least { reads: options.reads, changed: options.reads / 10, limit: options.limit });
    if options.json {
        println!("{}", report.json());
    } else {
        println!("{report}");
    }
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
