//! Five workers that sleep for 1 to 5 tenths of a second: start them, wait for them, see who was first.
//!
//! `cargo run -p crossproc --example workers`

use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc::prelude::*;

/// Returns who it is, and how many had finished before.
fn work((tenths, finished): (u64, Value<u32>)) -> (u32, u32) {
    sleep(Duration::from_millis(100 * tenths));
    (std::process::id(), finished.fetch_add(1))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let finished = Value::new(0)?;
    let mut workers = Vec::new();
    for tenths in [5, 4, 3, 2, 1] {
        workers.push((tenths, Process::spawn(work, (tenths, finished.clone()))?));
    }
    for (tenths, worker) in workers {
        let started = worker.pid();
        let (pid, before) = worker.join()?;
        println!("process {pid} slept {tenths}00 ms and was number {} to finish", before + 1);
        assert_eq!(pid, started);
    }
    println!("all five: {:.1?}", start.elapsed());
    assert_eq!(finished.get()?, 5);
    Ok(())
}
