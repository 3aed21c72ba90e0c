//! What it costs to start a process and wait for its result, with each start method, beside what the kernel
//! and the loader alone cost: the same executable, started and waited for by std, with a `main` that returns
//! at once.
//!
//! `cargo run --release -p crossproc-process --example start_cost [MiB of memory that the parent has in use]`

use std::process::Command;
use std::time::{Duration, Instant};

use crossproc_process::{Fork, ForkServer, StartMethod};

fn bare() {
    assert!(Command::new("/proc/self/exe").env("BARE", "1").status().unwrap().success());
}

fn start(method: &StartMethod) {
    assert_eq!(method.spawn(|n: u32| n + 1, 1).unwrap().join().unwrap(), 2);
}

fn time(start: impl FnOnce()) -> Duration {
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
    // SAFETY: this process has one thread, and the function needs nothing but its argument.
    let fork = unsafe { Fork::new() };
    let methods = [StartMethod::Spawn, ForkServer::new().into(), fork.into()];
    // One after the other in turn, so that all see the same machine.
    let mut times = [const { Vec::new() }; 4];
    for round in 0..550 {
        let taken = [
            time(bare),
            time(|| start(&methods[0])),
            time(|| start(&methods[1])),
            time(|| start(&methods[2])),
        ];
        if round >= 50 {
            times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
        }
    }
    let medians = times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    println!("medians, with {} MiB in use:", memory.len() >> 20);
    for (name, median) in ["bare posix_spawn", "Spawn", "ForkServer", "Fork"].into_iter().zip(medians) {
        println!("{name:18} {median:>12.1?}  {:.2}", median.as_secs_f64() / medians[0].as_secs_f64());
    }
}
