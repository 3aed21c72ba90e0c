//! What it costs to start a process and to wait for its result, with each start method, beside what the kernel and the loader alone
//! cost: the same program executed, or forked, with nothing to do. With little and with much memory in use.

use std::process::{Command, Stdio};
use std::time::Instant;

use crossproc_benches::forks::{fork_and_wait, forking};
use crossproc_benches::{Better, Scale, Turns};
use crossproc_process::{ForkServer, StartMethod};

/// In the environment of the program when it has nothing to do.
const BARE: &str = "CROSSPROC_BENCH_BARE";

fn main() {
    if std::env::var_os(BARE).is_some() {
        return;
    }
    let scale = Scale::from_arguments();
    let methods = [StartMethod::Spawn, ForkServer::new().into(), forking().into()];
    compare(scale, "little memory", &methods, scale.rounds(400), scale.rounds(400));
    let mebibytes = scale.count(1024) as usize;
    let memory = vec![1_u8; mebibytes << 20];
    compare(
        scale,
        &format!("{} MiB in use", memory.len() >> 20),
        &methods,
        scale.rounds(100),
        scale.rounds(20),
    );
}

fn compare(scale: Scale, memory: &str, methods: &[StartMethod; 3], rounds: usize, forks: usize) {
    let [spawn, server, fork] = methods;
    // So many in one figure that the clock is no matter.
    let count = scale.count(4).min(4);
    let title = |what: &str| format!("{what}, started and joined; {memory}");
    Turns::new(title("Spawn"), "us", Better::Less)
        .subject("crossproc Spawn", || each(count, || start(spawn)))
        .against("posix_spawn of this program, bare", "<= 1.2 x bare", 1.2, || each(count, execute))
        .subject("crossproc ForkServer", || each(count, || start(server)))
        .run(rounds);
    // By itself: after a fork of much memory, whatever comes next in this process is slower for a while.
    Turns::new(title("Fork"), "us", Better::Less)
        .subject("crossproc Fork", || each(count, || start(fork)))
        .against("fork of this process, bare", "<= 1.2 x bare", 1.2, || each(count, fork_and_wait))
        .run(forks);
    if forks == rounds {
        Turns::new(title("ForkServer"), "us", Better::Less)
            .subject("crossproc ForkServer", || each(count, || start(server)))
            .against("fork of this process, bare", "<= 1.2 x bare", 1.2, || each(count, fork_and_wait))
            .run(rounds);
    }
}

fn start(method: &StartMethod) {
    assert_eq!(method.spawn(|n: u32| n + 1, 1).unwrap().join().unwrap(), 2);
}

fn execute() {
    let mut program = Command::new("/proc/self/exe");
    assert!(program.env(BARE, "1").stdout(Stdio::null()).status().unwrap().success());
}

/// Microseconds for one of `count` calls.
fn each(count: u64, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    for _ in 0..count {
        call();
    }
    started.elapsed().as_secs_f64() * 1e6 / count as f64
}
