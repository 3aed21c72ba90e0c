//! The program `crossproc`. Without arguments it lists its commands.
//!
//! Read first: `tour.rs`, which has the list of what the tour shows; each part of it is one file in `tour/`.
//! What they find goes through `report.rs` (the data) to `screen.rs` (people) or, as JSON, to machines.
// But for one line: whoever chooses to fork has to say so (`tour/start_methods.rs`).
#![deny(unsafe_code)]

mod environment;
mod failure;
mod report;
mod screen;
mod tour;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::screen::Screen;

/// Shared memory, locks and processes, shown on this machine.
#[derive(Debug, Parser)]
#[command(name = "crossproc", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run small programs of several processes and check what comes out
    #[command(after_help = "Exit status: 0 if every result was right, 1 if not.")]
    Tour {
        /// Print one JSON document instead of text
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let mut screen = Screen::stdout();
    let ok = match command {
        Some(Command::Tour { json: false }) => tour::show(&mut screen),
        Some(Command::Tour { json: true }) => tour::print_json(&mut screen),
        None => {
            screen.line(&Cli::command().render_help().to_string());
            true
        }
    };
    match screen.finish() {
        Ok(()) if ok => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("crossproc: writing to the standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
