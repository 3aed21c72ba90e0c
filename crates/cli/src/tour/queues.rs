//! Queues: first in, first out; from process to process; fed by several; and with workers that are killed.

use std::time::{Duration, Instant};

use crossproc::{JoinableQueue, Queue, RawArray};

use super::Program;
use super::children::{Child, LIMIT, finish, start, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::Check;

pub const PROGRAM: Program = Program { name: "queues", title: "Queues, and workers that are killed", run };

const JOBS: u32 = 120;
const KILLS: u32 = 20;
const JOB: Duration = Duration::from_micros(500);
const WORKERS: usize = 3;

type Numbers = Queue<i64>;

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    first_in_first_out(recorder)?;
    cubes(recorder)?;
    until_closed(recorder)?;
    two_feed_one(recorder)?;
    workers_are_killed(recorder)
}

fn first_in_first_out(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    let numbers = Queue::new(3)?;
    (1..=3_i64).try_for_each(|n| numbers.send(n))?;
    recorder.check(Check::equal("1, 2 and 3 are sent; received", numbers.recv()?, 1));
    recorder.check(Check::equal("  left in the queue", numbers.len(), 2));
    Ok(())
}

fn cubes(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("One process sends the cubes of 1 to 10, another adds 1 to each:");
    let (cubes, increased) = (Numbers::new(10)?, Numbers::new(10)?);
    finish(start("cubes", send_cubes, cubes.clone())?)?;
    finish(start("increase", increase, (cubes.clone(), increased.clone()))?)?;
    let mut received = Vec::new();
    while !increased.is_empty() {
        received.push(increased.recv()?);
    }
    let expected: Vec<i64> = (1..=10).map(|n: i64| n.pow(3) + 1).collect();
    recorder.check(Check::equal(
        "received until it was empty",
        format!("{received:?}"),
        format!("{expected:?}"),
    ));
    Ok(())
}

fn send_cubes(cubes: Numbers) -> Result<(), Failure> {
    (1..=10_i64).try_for_each(|n| Ok(cubes.send(n.pow(3))?))
}

fn increase((cubes, increased): (Numbers, Numbers)) -> Result<(), Failure> {
    while let Ok(n) = cubes.try_recv() {
        increased.send(n + 1)?;
    }
    Ok(())
}

fn until_closed(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("A producer and a consumer at the same time; the producer closes the queue at the end:");
    let numbers = Numbers::new(4)?;
    let consumer = start("consumer", add_up, numbers.clone())?;
    let producer = start("producer", produce, numbers.clone())?;
    finish(producer)?;
    recorder.check(Check::equal("sum of what the consumer got", finish(consumer)?, (1..=1000).sum::<i64>()));
    recorder.check(Check::equal("  sending after that", numbers.send(7).is_err(), true));
    Ok(())
}

fn produce(numbers: Numbers) -> Result<(), Failure> {
    (1..=1000).try_for_each(|n| numbers.send_timeout(n, LIMIT))?;
    numbers.close()?;
    Ok(())
}

fn add_up(numbers: Numbers) -> Result<i64, Failure> {
    Ok(numbers.iter().sum())
}

fn two_feed_one(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("Two processes feed one queue, one with squares, one with negative numbers:");
    let numbers = Numbers::new(20)?;
    let squares = start("squares", send_squares, numbers.clone())?;
    let negatives = start("negatives", send_negatives, numbers.clone())?;
    finish(squares)?;
    finish(negatives)?;
    let mut received: Vec<i64> = numbers.try_iter().collect();
    recorder.found("received in this order", format!("{received:?}"));
    received.sort_unstable();
    let mut expected: Vec<i64> = (1..=10).flat_map(|n| [-n, n * n]).collect();
    expected.sort_unstable();
    recorder.check(Check::equal("  all of them", received == expected, true));
    Ok(())
}

fn send_squares(numbers: Numbers) -> Result<(), Failure> {
    (1..=10_i64).try_for_each(|n| Ok(numbers.send(n * n)?))
}

fn send_negatives(numbers: Numbers) -> Result<(), Failure> {
    (1..=10_i64).try_for_each(|n| Ok(numbers.send(-n)?))
}

/// The tasks, and how often each was done and delivered again.
type Jobs = (JoinableQueue<u32>, RawArray<u32>, RawArray<u32>);

fn workers_are_killed(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing(&format!(
        "{WORKERS} workers do {JOBS} jobs of half a millisecond, and {KILLS} times one of them is killed (SIGKILL) and replaced:",
    ));
    let jobs = JoinableQueue::new(16)?;
    let counts: Jobs = (jobs.clone(), RawArray::new(JOBS as usize)?, RawArray::new(JOBS as usize)?);
    let (_, done, again) = &counts;
    let worker = |_| start("worker", work, counts.clone());
    let mut workers = (0..WORKERS).map(worker).collect::<Result<Vec<Child<()>>, _>>()?;
    let began = Instant::now();
    for kill in 0..KILLS {
        let next = worker(0)?;
        let share = JOBS / KILLS;
        (kill * share..(kill + 1) * share).try_for_each(|job| jobs.send_timeout(job, LIMIT))?;
        std::thread::sleep(JOB / 2); // all workers have one now
        let victim = std::mem::replace(&mut workers[kill as usize % WORKERS], next);
        victim.kill()?;
        victim.wait_timeout(LIMIT).ok_or_else(|| too_long("killing a worker"))?;
    }
    jobs.join_timeout(LIMIT)?;
    let took = began.elapsed();
    jobs.close()?;
    workers.into_iter().try_for_each(finish)?;
    let (done, again) = (done.to_vec()?, again.to_vec()?);
    let lost = done.iter().filter(|&&times| times == 0).count();
    recorder.check(Check::equal("jobs lost", lost, 0));
    recorder.found(
        "jobs that came to a second worker",
        again.iter().filter(|&&times| times > 0).count().to_string(),
    );
    recorder.took("until all were done", took);
    Ok(())
}

fn work((jobs, done, again): Jobs) -> Result<(), Failure> {
    while let Ok(job) = jobs.recv() {
        if job.deliveries() > 1 {
            again.fetch_add(*job as usize, 1)?;
        }
        std::thread::sleep(JOB);
        done.fetch_add(*job as usize, 1)?;
        job.done();
    }
    Ok(())
}
