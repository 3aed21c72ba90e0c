//! Start processes, wait for them, get their results.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc::{Process, RawArray, Value, available_parallelism};

use super::Program;
use super::children::{LIMIT, finish, start, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::{Check, list};

pub const PROGRAM: Program = Program { name: "workers", title: "Workers", run };

/// What the tutorials call a second.
const SECOND: Duration = Duration::from_millis(100);

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    five_workers(recorder)?;
    ten_children(recorder)?;
    squares(recorder)
}

fn five_workers(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("Five workers sleep for 1 to 5 tenths of a second, all at the same time.");
    let (go, finished) = (Value::new(false)?, Value::new(0)?);
    let mut workers = Vec::new();
    for tenths in [5, 4, 3, 2, 1] {
        workers.push(start(&format!("sleeps {tenths}"), work, (tenths, go.clone(), finished.clone()))?);
    }
    let began = Instant::now();
    go.set(true)?;
    let mut pids: Vec<_> = workers.iter().map(Process::pid).collect();
    let mut results = workers.into_iter().map(finish).collect::<Result<Vec<_>, _>>()?;
    let took = began.elapsed();

    results.sort_by_key(|worker| worker.place);
    for worker in &results {
        recorder.found(format!("process {}", worker.pid), format!("slept {}00 ms", worker.tenths));
    }
    let order = list(results.iter().map(|worker| worker.tenths));
    recorder.check(Check::equal("order in which they finished", order, "1, 2, 3, 4, 5"));
    let mut ran: Vec<_> = results.iter().map(|worker| worker.pid).collect();
    pids.sort_unstable();
    ran.sort_unstable();
    ran.dedup();
    recorder.check(Check::equal("in processes of their own", list(ran), list(pids)));
    recorder.took("all five together", took);
    Ok(())
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Finished {
    tenths: u32,
    pid: u32,
    /// How many had finished before.
    place: u32,
}

fn work((tenths, go, finished): (u32, Value<bool>, Value<u32>)) -> Result<Finished, Failure> {
    go.wait_while_timeout(LIMIT, |go| !go)?.ok_or_else(|| too_long("the start"))?;
    sleep(SECOND * tenths);
    Ok(Finished { tenths, pid: std::process::id(), place: finished.fetch_add(1) })
}

fn ten_children(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("Ten children at once: each waits until all have come.");
    let here = Value::new(0)?;
    let began = Instant::now();
    let children: Vec<_> = (0..10)
        .map(|number| start(&format!("child {number}"), meet, here.clone()))
        .collect::<Result<_, _>>()?;
    recorder.took("time to start one of them", began.elapsed() / 10);
    let met = children.into_iter().map(finish).collect::<Result<Vec<_>, _>>()?;
    recorder.check(Check::equal("how many each child met", list(met), list([9; 10])));
    Ok(())
}

fn meet(here: Value<u32>) -> Result<u32, Failure> {
    here.fetch_add(1);
    let all = here.wait_while_timeout(LIMIT, |here| *here < 10)?;
    Ok(all.ok_or_else(|| too_long("waiting for ten children"))? - 1)
}

fn squares(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    let count = available_parallelism().get();
    recorder.doing(&format!("As many workers as there are CPUs compute squares: {count}."));
    let numbers: Vec<u64> = (1..=count.max(10) as u64).collect();
    let shared = RawArray::from_slice(&numbers)?;
    let workers: Vec<_> = (0..count)
        .map(|worker| start("squares", square, (shared.clone(), worker, count)))
        .collect::<Result<_, _>>()?;
    workers.into_iter().try_for_each(finish)?;
    let expected = numbers.iter().map(|n| n * n);
    recorder.check(Check::equal("squares", list(shared.to_vec()?), list(expected)));
    Ok(())
}

fn square((numbers, first, step): (RawArray<u64>, usize, usize)) -> Result<(), Failure> {
    for at in (first..numbers.len()).step_by(step) {
        let n = numbers.get(at)?;
        numbers.set(at, n * n)?;
    }
    Ok(())
}
