//! Two processes add to the same numbers: without a lock updates get lost, with one none does.

use std::thread::yield_now;
use std::time::Instant;

use crossproc::{Array, Lock, RawArray, Value};

use super::Program;
use super::children::{LIMIT, run_two, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::Check;

pub const PROGRAM: Program = Program { name: "updates", title: "Lost updates", run };

const TIMES: u32 = 100;
const ROUNDS: u32 = 50;
const FIRST: [f64; 3] = [0.0, 100.0, 200.0];
const TOTAL: u32 = 200;
const SUMS: [f64; 3] = [200.0, 300.0, 400.0];

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing(
        "Two processes add 1 to a Value 100 times each, and two add 1.0 to each element of an Array of 0.0, \
         100.0 and 200.0. To add is to get, to let others run, and to set. Without a lock (up to 50 rounds \
         until something is lost):",
    );
    let found = until_lost(|| {
        let value = Value::new(0)?;
        run_two(add, (Value::new(0)?, value.clone()))?;
        let total = value.get()?;
        Ok((total != TOTAL).then(|| format!("{total} of {TOTAL}")))
    })?;
    recorder.found("Value", found);
    let found = until_lost(|| {
        let array = RawArray::from_slice(&FIRST)?;
        run_two(add_each, (Value::new(0)?, array.clone()))?;
        let sums = array.to_vec()?;
        Ok((sums != SUMS).then(|| format!("{sums:?} of {SUMS:?}")))
    })?;
    recorder.found("Array", found);

    recorder.doing("With a lock:");
    let (value, lock) = (Value::new(0)?, Lock::new()?);
    run_two(add_by_acquire, (Value::new(0)?, lock, value.clone()))?;
    recorder.check(Check::equal("Value, acquire and release", value.get()?, TOTAL));

    let value = Value::new(0)?;
    run_two(add_by_guard, (Value::new(0)?, value.clone()))?;
    recorder.check(Check::equal("Value, guard", value.get()?, TOTAL));

    let (array, lock) = (RawArray::from_slice(&FIRST)?, Lock::new()?);
    run_two(add_each_by_acquire, (Value::new(0)?, lock, array.clone()))?;
    recorder.check(Check::equal(
        "Array, acquire and release",
        format!("{:?}", array.to_vec()?),
        format!("{SUMS:?}"),
    ));

    let array = Array::from_slice(&FIRST)?;
    run_two(add_each_by_guard, (Value::new(0)?, array.clone()))?;
    recorder.check(Check::equal("Array, guard", format!("{:?}", array.to_vec()?), format!("{SUMS:?}")));
    Ok(())
}

/// Plays rounds until one loses an update, and says what came out. Chance may have it that none does.
fn until_lost(mut round: impl FnMut() -> Result<Option<String>, Failure>) -> Result<String, Failure> {
    for number in 1..=ROUNDS {
        if let Some(lost) = round()? {
            return Ok(format!("{lost}, in round {number}"));
        }
    }
    Ok(format!("nothing was lost in {ROUNDS} rounds, by chance"))
}

/// Comes back when both processes are here.
fn start_together(here: &Value<u32>) -> Result<(), Failure> {
    let since = Instant::now();
    here.fetch_add(1);
    while here.get()? < 2 {
        // The other one may never come: whoever starts both can be killed in between.
        if since.elapsed() > LIMIT {
            return Err(too_long("the start of the other process"));
        }
        yield_now();
    }
    Ok(())
}

fn add((here, value): (Value<u32>, Value<u32>)) -> Result<(), Failure> {
    start_together(&here)?;
    for _ in 0..TIMES {
        let seen = value.get()?;
        yield_now();
        value.set(seen + 1)?;
    }
    Ok(())
}

fn add_each((here, array): (Value<u32>, RawArray<f64>)) -> Result<(), Failure> {
    start_together(&here)?;
    for _ in 0..TIMES {
        add_to_all(&array)?;
    }
    Ok(())
}

fn add_to_all(array: &RawArray<f64>) -> Result<(), Failure> {
    for at in 0..array.len() {
        let seen = array.get(at)?;
        yield_now();
        array.set(at, seen + 1.0)?;
    }
    Ok(())
}

fn add_by_acquire((here, lock, value): (Value<u32>, Lock, Value<u32>)) -> Result<(), Failure> {
    start_together(&here)?;
    for _ in 0..TIMES {
        lock.acquire()?;
        let seen = value.get()?;
        yield_now();
        value.set(seen + 1)?;
        lock.release()?;
    }
    Ok(())
}

fn add_by_guard((here, value): (Value<u32>, Value<u32>)) -> Result<(), Failure> {
    start_together(&here)?;
    for _ in 0..TIMES {
        let mut guard = value.lock()?;
        let seen = guard.get()?;
        yield_now();
        guard.set(seen + 1);
    }
    Ok(())
}

fn add_each_by_acquire((here, lock, array): (Value<u32>, Lock, RawArray<f64>)) -> Result<(), Failure> {
    start_together(&here)?;
    for _ in 0..TIMES {
        lock.acquire()?;
        add_to_all(&array)?;
        lock.release()?;
    }
    Ok(())
}

fn add_each_by_guard((here, array): (Value<u32>, Array<f64>)) -> Result<(), Failure> {
    start_together(&here)?;
    for _ in 0..TIMES {
        for element in array.lock()?.iter_mut() {
            let seen = *element;
            yield_now();
            *element = seen + 1.0;
        }
    }
    Ok(())
}
