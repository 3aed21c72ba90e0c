//! What a task costs in a pool of two workers, when it does nothing: a `map` with chunks of one item and with the pool's own, and one call
//! after the other.
//!
//! Peers: `multiprocessing.Pool` of Python (if there is a `python3`), and procspawn's `Pool`, which has no `map`: there each task is a call.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use crossproc_benches::{Better, Scale, Turns};
use crossproc_pool::Pool;

const WORKERS: usize = 2;

/// Measures what it is told, line by line.
const PYTHON: &str = r"
import sys, time
from multiprocessing import Pool

def nothing(n):
    return n

if __name__ == '__main__':
    with Pool(2) as pool:
        pool.map(nothing, range(100))
        for line in sys.stdin:
            what, count = line.split()
            count = int(count)
            begun = time.perf_counter()
            if what == 'single':
                pool.map(nothing, range(count), chunksize=1)
            elif what == 'chunks':
                pool.map(nothing, range(count))
            else:
                for n in range(count):
                    pool.apply(nothing, (n,))
            print((time.perf_counter() - begun) / count * 1e6, flush=True)
";

struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start() -> Option<Self> {
        let script = std::env::temp_dir().join(format!("crossproc-pool-{}.py", std::process::id()));
        std::fs::write(&script, PYTHON).ok()?;
        let child =
            Command::new("python3").arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok();
        let mut python = child.and_then(|mut child| {
            let (input, output) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
            Some(Self { child, input, output })
        });
        // It has read the script when it answers.
        if let Some(python) = &mut python {
            python.measure("apply", 1);
        }
        let _ = std::fs::remove_file(script);
        python
    }

    /// Microseconds for each task.
    fn measure(&mut self, what: &str, count: u64) -> f64 {
        writeln!(self.input, "{what} {count}").expect("python reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("python answers");
        line.trim().parse().expect("python prints a number")
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nothing(n: u32) -> u32 {
    n
}

/// Microseconds for each of `count` tasks.
fn each(count: u64, run: impl FnOnce(u32)) -> f64 {
    let begun = Instant::now();
    run(count as u32);
    begun.elapsed().as_secs_f64() * 1e6 / count as f64
}

fn main() {
    procspawn::init();
    let scale = Scale::from_arguments();
    let pool = Pool::builder().processes(WORKERS).build().expect("a pool");
    let peer = procspawn::Pool::new(WORKERS).expect("a pool of procspawn");
    let mut python = Python::start();
    if python.is_none() {
        println!("no python3 here: not compared with it");
    }
    let calls_of_peer = |count: u32| {
        let calls: Vec<_> = (0..count).map(|n| peer.spawn(n, nothing)).collect();
        for call in calls {
            call.join().expect("a result");
        }
    };

    let single = scale.count(100_000);
    let mut turns = Turns::new("map of a no-op, chunks of 1, 2 workers", "us a task", Better::Less)
        .subject("crossproc", || {
            each(single, |count| {
                assert_eq!(pool.map_chunked(nothing, 0..count, 1).unwrap().len(), single as usize)
            })
        })
        .against("procspawn, one call for each", "<= 0.1", 0.1, || each(scale.count(2_000), calls_of_peer));
    if let Some(python) = &mut python {
        turns = turns.against("Python", "<= 0.1", 0.1, || python.measure("single", scale.count(20_000)));
    }
    turns.run(scale.rounds(11));

    let many = scale.count(2_000_000);
    let mut turns =
        Turns::new("map of a no-op, chunks as the pool likes, 2 workers", "us a task", Better::Less)
            .subject("crossproc", || {
                each(many, |count| assert_eq!(pool.map(nothing, 0..count).unwrap().len(), many as usize))
            });
    if let Some(python) = &mut python {
        turns = turns.against("Python", "<= 0.1", 0.1, || python.measure("chunks", scale.count(500_000)));
    }
    turns.run(scale.rounds(11));

    let calls = scale.count(5_000);
    let mut turns = Turns::new("one call after the other", "us a call", Better::Less)
        .subject("crossproc", || {
            each(calls, |count| {
                for n in 0..count {
                    assert_eq!(pool.apply(nothing, n), Ok(n));
                }
            })
        })
        .subject("procspawn", || {
            each(scale.count(1_000), |count| {
                for n in 0..count {
                    assert_eq!(peer.spawn(n, nothing).join().expect("a result"), n);
                }
            })
        });
    if let Some(python) = &mut python {
        turns = turns.subject("Python", || python.measure("apply", scale.count(2_000)));
    }
    turns.run(scale.rounds(11));
}
