//! Chores that need a tool beside the stable toolchain, or much time.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::model;
use crate::place::Place;

/// The machine that we are on, as compilers call it.
pub fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Runs a command that shares our terminal.
pub fn succeeds(command: &mut Command) -> Result<bool, String> {
    let status =
        command.status().map_err(|e| format!("cannot start {}: {e}", command.get_program().display()))?;
    Ok(status.success())
}

/// `cargo xtask storm`
pub fn storm(place: &Place, duration: Duration) -> Result<bool, String> {
    soak(place, "storm", &[&seconds(duration)])
}

/// `cargo xtask tempest`
pub fn tempest(place: &Place, duration: Duration) -> Result<bool, String> {
    soak(place, "tempest", &[&seconds(duration), "--kills", "0"])
}

/// `cargo xtask queue-storm`
pub fn queue_storm(place: &Place, duration: Duration) -> Result<bool, String> {
    soak(place, "queue_storm", &[&seconds(duration), "--kills", "0"])
}

/// `cargo xtask pool-storm`
pub fn pool_storm(place: &Place, duration: Duration) -> Result<bool, String> {
    soak(place, "pool_storm", &[&seconds(duration), "--tasks", "100000"])
}

/// `cargo xtask linear`
pub fn linear(place: &Place) -> Result<bool, String> {
    soak(place, "linear", &[])
}

/// `cargo xtask wake`
pub fn wake(place: &Place) -> Result<bool, String> {
    soak(place, "wake", &[])
}

/// `cargo xtask torn`
pub fn torn(place: &Place, duration: Duration) -> Result<bool, String> {
    // Never enough reads, so that the time alone ends it.
    soak(place, "torn", &["--reads", &u64::MAX.to_string(), "--limit", &seconds(duration)])
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// Runs a program of the package `crossproc-tests`, built for speed.
fn soak(place: &Place, program: &str, arguments: &[&str]) -> Result<bool, String> {
    let mut command = place.cargo();
    command
        .args(["run", "--release", "--package", "crossproc-tests", "--bin", program, "--"])
        .args(arguments);
    succeeds(&mut command)
}

/// `cargo xtask miri`
pub fn miri(place: &Place, seeds: u32) -> Result<bool, String> {
    if !answers(Command::new("rustup").args(["run", "nightly", "cargo", "miri", "--version"])) {
        println!("installing Miri");
        let mut install = Command::new("rustup");
        install.args(["component", "add", "--toolchain", "nightly", "miri", "rust-src"]);
        if !succeeds(&mut install)? {
            let remedy = "rustup toolchain install nightly --component miri --component rust-src";
            return Err(format!("Miri is part of the nightly toolchain, and is not there: {remedy}"));
        }
    }
    let run = |arguments: &[&str], packages: &[&str], seeds: u32| {
        let mut command = Command::new("rustup");
        command.current_dir(&place.root).args(["run", "nightly", "cargo", "miri", "test"]).args(arguments);
        for package in packages {
            command.args(["--package", package]);
        }
        command
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("CARGO_TARGET_DIR", place.target.join("miri"))
            .env("MIRIFLAGS", format!("-Zmiri-disable-isolation -Zmiri-many-seeds=0..{}", seeds.max(1)));
        succeeds(&mut command)
    };
    let units = run(&["--lib"], &model::PACKAGES, seeds)?;
    // States that are made by hand: two minutes for each schedule, of which few tests know anything.
    let states = run(&["--test", "exchange"], &["crossproc-ring"], seeds.min(2))?;
    Ok(units && states)
}

#[derive(Debug, clap::Args)]
pub struct Sanitize {
    /// Only data races, in the packages whose algorithms work on heap memory
    #[arg(long, conflicts_with = "address")]
    thread: bool,
    /// Only memory errors
    #[arg(long)]
    address: bool,
}

/// `cargo xtask sanitize`
pub fn sanitize(place: &Place, options: &Sanitize) -> Result<bool, String> {
    let mut ok = true;
    if !options.address {
        println!("ThreadSanitizer: races in the algorithms (one mapping only: it can not see through two)");
        // The standard library comes without the instrumentation, which has to be allowed.
        let flags = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";
        let mut command = sanitized(place, "tsan", flags);
        // So the channel by which the test harness collects its results looks like a race.
        let suppressions = place.folder("tsan")?.join("suppressions");
        fs::write(&suppressions, "race:CompletedTest\n")
            .map_err(|e| format!("cannot write {}: {e}", suppressions.display()))?;
        command.env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
        for package in model::PACKAGES {
            command.args(["--package", package]);
        }
        ok &= succeeds(&mut command)?;
    }
    if !options.thread {
        println!("AddressSanitizer: memory errors in all libraries");
        let mut command = sanitized(place, "asan", "-Zsanitizer=address");
        // Tests ask for more memory than there is, to see the error; and what a forked child does not free
        // belongs to its parent.
        command.env("ASAN_OPTIONS", "allocator_may_return_null=1:detect_leaks=0");
        for package in place.libraries()?.iter().filter(|package| *package != "crossproc-derive") {
            command.args(["--package", package]);
        }
        ok &= succeeds(&mut command)?;
    }
    Ok(ok)
}

/// Tests of libraries with a sanitizer, on the stable toolchain, which is told that it may.
fn sanitized(place: &Place, folder: &str, flags: &str) -> Command {
    let mut command = place.cargo();
    command
        .args(["test", "--no-fail-fast", "--lib", "--tests", "--target", &triple()])
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", place.target.join(folder));
    command
}

fn answers(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
