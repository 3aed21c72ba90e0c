//! A connection inside tokio's `select!`, and a queue for tasks on all threads of the runtime.
//!
//! `cargo run -p crossproc --features tokio --example tokio`

use std::time::Duration;

use crossproc::prelude::*;

/// Says something every millisecond, until it is told to stop.
fn talk((texts, stop): (Connection<String, ()>, Event)) {
    for n in 0.. {
        if stop.wait_timeout(Duration::from_millis(1)).is_ok()
            || texts.try_send(&format!("text {n}")).is_err()
        {
            return;
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ((mut texts, far), stop) = (Pipe::duplex::<(), String>()?, Event::new()?);
    let child = Process::spawn(talk, (far, stop.clone()))?;
    let (mut ticks, mut seen) = (tokio::time::interval(Duration::from_millis(5)), Vec::new());
    while seen.len() < 10 {
        tokio::select! {
            text = texts.recv_async() => seen.push(text?), // a branch that is dropped loses no text
            _ = ticks.tick() => println!("{} texts so far", seen.len()),
        }
    }
    stop.set()?;
    assert!(seen.iter().zip(0..).all(|(text, n)| *text == format!("text {n}")));
    // A handle for each task. One handle for many: `Queue::share`.
    let numbers = Queue::<u64>::new(2)?;
    let mut sender = numbers.clone();
    tokio::spawn(async move { sender.send_async(7).await });
    let square = |mut numbers: Queue<u64>| async move { numbers.recv_async().await.map(|n| n * n) };
    assert_eq!(tokio::spawn(square(numbers)).await??, 49);
    Ok(child.join()?)
}
