//! `cargo xtask test`: everything that must hold before a change goes in.

use std::process::Command;
use std::time::Duration;

use crate::crash;
use crate::model::{self, Shim};
use crate::mutants::{self, Selection};
use crate::place::Place;
use crate::session::Session;

/// No step takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(900);

/// How long mutations may take here; `cargo xtask mutants` has all the time it needs.
const MUTANTS: Duration = Duration::from_secs(210);

/// The oldest compiler that the libraries promise to build with.
const OLDEST: &str = "1.85";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Cases that this machine does not allow are failures
    #[arg(long)]
    require_all: bool,
    /// Only formatting, lints, tests and doc tests
    #[arg(long)]
    quick: bool,
}

/// Features of the libraries that are off by default. (libFuzzer's loop needs C++ and is built by `fuzz` alone.)
const FEATURES: &str =
    "crossproc/async-io,crossproc/futures,crossproc/mio,crossproc/shared_memory,crossproc/tokio";

pub fn run(place: &Place, options: &Options) -> Result<bool, String> {
    println!("{}", head(place));
    let mut session = Session::start(place)?;

    let mut command = place.cargo();
    command.args(["fmt", "--all", "--check", "--", "--color", "never"]);
    session.check("formatting", command, LIMIT)?;

    let mut command = place.cargo();
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        FEATURES,
        "--",
        "--deny",
        "warnings",
    ]);
    session.check("lints", command, LIMIT)?;

    let mut command = place.cargo();
    command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--examples", "--tests"]);
    command.args(["--features", FEATURES, "--", "--show-output"]);
    session.tests("tests", command, LIMIT)?;

    let mut command = place.cargo();
    command.args(["test", "--workspace", "--no-fail-fast", "--doc", "--features", FEATURES]);
    command.args(["--", "--show-output"]);
    session.tests("doc tests", command, LIMIT)?;

    if !options.quick {
        rest(place, &mut session)?;
    }
    session.finish(options.require_all)
}

fn rest(place: &Place, session: &mut Session<'_>) -> Result<(), String> {
    let mut command = place.cargo();
    command
        .args(["doc", "--workspace", "--no-deps", "--lib", "--features", FEATURES])
        .env("RUSTDOCFLAGS", "--deny warnings");
    session.check("docs", command, LIMIT)?;

    let mut command = place.cargo();
    command.args(["check", "--no-default-features", "--lib"]);
    for package in model::PACKAGES {
        command.args(["--package", package]);
    }
    session.check("without std", command, LIMIT)?;

    let mut command = place.cargo();
    command.args(["clippy", "--lib", "--test", "model"]);
    for package in model::PACKAGES {
        command.args(["--package", package]);
    }
    command.args(["--", "--deny", "warnings"]);
    model::configure(&mut command, Shim::Plain, place.target.join(Shim::Plain.folder()));
    session.check("lints of models", command, LIMIT)?;

    for shim in Shim::ALL {
        let mut command = model::tests(place, shim);
        command.args(["--", "--show-output"]);
        session.models(shim.title(), command, model::LIMIT)?;
    }

    crash::step(place, session, LIMIT)?;

    let mut note = None;
    session.inside("mutants", || {
        let report = mutants::check(place, Selection::Changed, Some(MUTANTS), |_| {})?;
        note = Some(report.summary());
        Ok((report.ok(), report.short(), report.details()))
    })?;
    session.tally.notes.extend(note.map(|text| ("mutants".to_owned(), text)));

    let name = format!("builds with {OLDEST}");
    match oldest() {
        Some(toolchain) => {
            let mut command = Command::new("rustup");
            command.current_dir(&place.root).args(["run", &toolchain, "cargo", "check", "--lib"]);
            command.env("CARGO_TERM_COLOR", "never").env("CARGO_TARGET_DIR", place.target.join("oldest"));
            for package in place.libraries()? {
                command.args(["--package", &package]);
            }
            session.check(&name, command, LIMIT)?;
        }
        None => session.left_out(
            &name,
            &format!("the toolchain is not installed (rustup toolchain install {OLDEST} --profile minimal)"),
        ),
    }
    Ok(())
}

/// The full name of the installed toolchain of the oldest version.
fn oldest() -> Option<String> {
    let output = Command::new("rustup").args(["toolchain", "list", "--quiet"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(str::trim).find(|name| name.starts_with(OLDEST)).map(str::to_owned)
}

/// Numbers belong to a commit and a machine.
fn head(place: &Place) -> String {
    let first_line = |command: &mut Command| {
        let output = command.output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
    };
    let compiler =
        first_line(Command::new("rustc").arg("--version")).unwrap_or_else(|| "no rustc".to_owned());
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let compiler = compiler.split(" (").next().unwrap_or_default();
    format!("{}, {compiler}, Linux {}, {cpus} CPUs\n", place.commit(), kernel.trim())
}
