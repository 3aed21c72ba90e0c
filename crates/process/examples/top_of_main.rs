//! A program that starts processes in the first line of its `main`.
//!
//! The processes are this same program, but they do not come to `main`: otherwise each of them would start
//! more. Run it with `cargo run --example top_of_main`.

use crossproc_process::{Process, current, parent};

fn primes_below(range: (u32, u32)) -> usize {
    (range.0.max(2)..range.1).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).count()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ranges = [(0, 10_000), (10_000, 15_000), (15_000, 20_000)];
    let processes = ranges.map(|range| Process::spawn(primes_below, range));
    assert!(parent().is_none(), "main runs in the first process only");

    let mut count = 0;
    for process in processes {
        count += process?.join()?;
    }
    println!("{count} primes below 20000, found by three processes of {}", current().pid());
    assert_eq!(count, 2262);
    Ok(())
}
