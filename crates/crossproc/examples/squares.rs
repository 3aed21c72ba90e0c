//! As many workers as there are processors compute squares, each its part of one array.
//!
//! `cargo run -p crossproc --example squares`

use crossproc::available_parallelism;
use crossproc::prelude::*;

fn square((numbers, first, step): (RawArray<u64>, usize, usize)) {
    for at in (first..numbers.len()).step_by(step) {
        let n = numbers.get(at).expect("it is no longer than it is");
        numbers.set(at, n * n).expect("nobody else has this part");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<u64> = (1..=20).collect();
    let shared = RawArray::from_slice(&numbers)?;
    let count = available_parallelism().get();
    let mut workers = Vec::new();
    for worker in 0..count {
        workers.push(Process::spawn(square, (shared.clone(), worker, count))?);
    }
    for worker in workers {
        worker.join()?;
    }
    println!("{count} workers: {:?}", shared.to_vec()?);
    assert!(shared.to_vec()?.into_iter().eq((1..=20).map(|n| n * n)));
    Ok(())
}
