//! A pool of workers: squares in order, results as they come, a callback, and a task that kills its worker.
//!
//! `cargo run -p crossproc --example pool`

use crossproc::TaskError;
use crossproc::prelude::*;

fn square(n: u64) -> u64 {
    n * n
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder().processes(4).build()?;
    let squares = pool.map(square, 1..=10)?;
    println!("squares: {squares:?}");
    assert_eq!(squares, [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]);

    let sum: u64 = pool.imap_unordered(square, 1..=10)?.collect::<Result<Vec<_>, _>>()?.iter().sum();
    assert_eq!(sum, 385);

    let fatal = pool.submit(|(): ()| -> u64 { std::process::abort() }, ())?;
    let error = fatal.get().expect_err("nobody survives that");
    println!("{error}");
    assert!(matches!(error, TaskError::WorkerDied { .. }));

    let (sender, receiver) = std::sync::mpsc::channel();
    pool.submit(square, 12)?.on_done(move |result| sender.send(result).expect("it is waited for"));
    pool.close();
    pool.join()?;
    assert_eq!(receiver.recv()?, Ok(144));
    Ok(())
}
