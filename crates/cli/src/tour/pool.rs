//! A pool: workers that are started once and do what comes, whatever becomes of one of them.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crossproc::{Pool, TaskError};

use super::Program;
use super::children::{LIMIT, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::{Check, list};

pub const PROGRAM: Program = Program { name: "pool", title: "A pool of workers", run };

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    let pool = Pool::builder().processes(4).build()?;
    maps(recorder, &pool)?;
    one_by_one(recorder, &pool)?;
    a_death(recorder, &pool)?;
    callbacks(recorder, &pool)
}

fn square(n: u64) -> u64 {
    n * n
}

fn cube(n: u64) -> u64 {
    n.pow(3)
}

fn nap(milliseconds: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(milliseconds));
    milliseconds
}

fn maps(recorder: &mut Recorder<'_>, pool: &Pool) -> Result<(), Failure> {
    recorder.doing("Four workers map squares over 1 to 10.");
    let expected = "1, 4, 9, 16, 25, 36, 49, 64, 81, 100";
    recorder.check(Check::equal("in order", list(pool.map(square, 1..=10)?), expected));

    recorder.doing("A pool with as many workers as there are CPUs maps cubes over 0 to 9.");
    let expected = "0, 1, 8, 27, 64, 125, 216, 343, 512, 729";
    recorder.check(Check::equal("cubes", list(Pool::new()?.map(cube, 0..10)?), expected));

    recorder.doing("Twenty thousand tasks that do nothing, each sent alone.");
    let began = Instant::now();
    let done = pool.map_chunked(|n: u32| n, 0..20_000, 1)?;
    recorder.took("one task", began.elapsed() / 20_000);
    recorder.check(Check::equal("in order", done.iter().copied().eq(0..20_000), true));
    Ok(())
}

fn one_by_one(recorder: &mut Recorder<'_>, pool: &Pool) -> Result<(), Failure> {
    recorder.doing("imap gives each result as soon as it is there and all before it are.");
    let mut cubes = pool.imap(cube, 1_u64..)?;
    let first = (0..5).map(|_| next(&mut cubes)).collect::<Result<Vec<_>, _>>()?;
    recorder.check(Check::equal("the first five of endlessly many cubes", list(first), "1, 8, 27, 64, 125"));
    drop(cubes);

    let mut naps = pool.imap_unordered(nap, [300, 150, 1])?;
    let came = (0..3).map(|_| next(&mut naps)).collect::<Result<Vec<_>, _>>()?;
    recorder.check(Check::equal("naps of 300, 150 and 1 ms, as they end", list(came), "1, 150, 300"));

    recorder.doing("apply calls a worker and waits, item by item.");
    let squares = (1..=5).map(|n| pool.apply(square, n)).collect::<Result<Vec<_>, _>>()?;
    recorder.check(Check::equal("squares", list(squares), "1, 4, 9, 16, 25"));
    Ok(())
}

fn next<I: Iterator<Item = u64>>(results: &mut crossproc::pool::Imap<I, u64>) -> Result<u64, Failure> {
    let result = results.next_timeout(LIMIT).map_err(|_| too_long("a result"))?;
    Ok(result.ok_or_else(|| Failure::new("a result is missing"))??)
}

fn a_death(recorder: &mut Recorder<'_>, pool: &Pool) -> Result<(), Failure> {
    recorder.doing("One task kills its worker. Nine others were given to the pool with it.");
    let tasks = (0..10).map(|n| {
        let deadly = |n: u64| if n == 5 { std::process::abort() } else { n };
        pool.submit(deadly, n)
    });
    let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
    let outcomes = tasks.iter().map(|task| task.get_timeout(LIMIT).ok_or_else(|| too_long("a task")));
    let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
    let died = outcomes.iter().filter(|outcome| matches!(outcome, Err(TaskError::WorkerDied { .. }))).count();
    let right = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
    recorder.check(Check::equal("tasks that failed with their worker", died, 1));
    recorder.check(Check::equal("the others", list(right), "0, 1, 2, 3, 4, 6, 7, 8, 9"));
    recorder.check(Check::equal("and the pool goes on", pool.apply(square, 9)?, 81));
    Ok(())
}

fn callbacks(recorder: &mut Recorder<'_>, pool: &Pool) -> Result<(), Failure> {
    recorder.doing("Ten tasks with a callback each; then close and join.");
    let (sender, receiver) = channel();
    for n in 1..=10 {
        let sender = sender.clone();
        // Nobody listens any more only if the tour has stopped.
        pool.submit(square, n)?.on_done(move |result| drop(sender.send(result)));
    }
    pool.close();
    if !pool.join_timeout(LIMIT)? {
        return Err(too_long("a closed pool"));
    }
    let mut called = receiver.try_iter().collect::<Result<Vec<_>, _>>()?;
    called.sort_unstable();
    recorder.check(Check::equal("callbacks", list(called), "1, 4, 9, 16, 25, 36, 49, 64, 81, 100"));
    Ok(())
}
