//! What it costs to start a process and wait for its result, beside what the kernel and the loader alone
//! cost: the same executable, started and waited for by std, with a `main` that returns at once.
//!
//! `cargo run --release -p crossproc-process --example start_cost [MiB of memory that the parent has in use]`

use std::process::Command;
use std::time::{Duration, Instant};

use crossproc_process::Process;

fn bare() {
    assert!(Command::new("/proc/self/exe").env("BARE", "1").status().unwrap().success());
}

fn spawn() {
    assert_eq!(Process::spawn(|n: u32| n + 1, 1).unwrap().join().unwrap(), 2);
}

fn time(start: fn()) -> Duration {
    let before = Instant::now();
    start();
    before.elapsed()
}

fn main() {
    if std::env::var_os("BARE").is_some() {
        return;
    }
    let mebibytes: usize = std::env::args().nth(1).map_or(0, |n| n.parse().expect("a number of MiB"));
    let memory = vec![1_u8; mebibytes << 20];
    // One after the other in turn, so that both see the same machine.
    let mut times: Vec<_> = (0..500).map(|_| (time(bare), time(spawn))).collect();
    times.drain(..50);
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (bare, spawn) = (
        median(times.iter().map(|(bare, _)| *bare).collect()),
        median(times.iter().map(|(_, spawn)| *spawn).collect()),
    );
    println!(
        "median of {} with {} MiB in use: bare {bare:?}, Process::spawn and join {spawn:?}, ratio {:.2}",
        times.len(),
        memory.len() >> 20,
        spawn.as_secs_f64() / bare.as_secs_f64(),
    );
}
