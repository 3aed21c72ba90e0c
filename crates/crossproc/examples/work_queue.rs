//! Workers are killed at random while they work, and no job is lost.
//!
//! `cargo run -p crossproc --example work_queue`

use std::time::Duration;

use crossproc::prelude::*;

const JOBS: usize = 200;
const KILLS: usize = 20;
const JOB: Duration = Duration::from_micros(500);

/// A worker that is killed has not said `done`, so another one gets its job.
fn work((jobs, done, again): (JoinableQueue<u32>, RawArray<u32>, Value<u32>)) {
    while let Ok(job) = jobs.recv() {
        again.fetch_add(u32::from(job.deliveries() > 1));
        std::thread::sleep(JOB);
        done.fetch_add(*job as usize, 1).unwrap();
        job.done();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (jobs, done, again) = (JoinableQueue::new(16)?, RawArray::<u32>::new(JOBS)?, Value::new(0)?);
    let start = || Process::spawn(work, (jobs.clone(), done.clone(), again.clone()));
    let mut workers = [start()?, start()?, start()?];
    for kill in 0..KILLS {
        let next = start()?;
        (0..JOBS).skip(kill).step_by(KILLS).try_for_each(|job| jobs.send(job as u32))?;
        std::thread::sleep(JOB / 2); // all workers have a job now
        std::mem::replace(&mut workers[kill % 3], next).kill()?;
    }
    jobs.join()?;
    jobs.close()?;
    workers.into_iter().try_for_each(Process::join)?;
    println!("{KILLS} workers were killed; {} of {JOBS} jobs came to a second worker", again.get()?);
    assert!(done.to_vec()?.iter().all(|&times| times >= 1), "a job was lost");
    Ok(())
}
