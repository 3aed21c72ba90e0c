//! Two processes add to one value and to an array 100 times each, with a lock: nothing gets lost.
//!
//! `cargo run -p crossproc --example locked_updates`; without a lock: `lost_updates`.

use std::thread::yield_now;

use crossproc::prelude::*;

fn add((here, lock, value, array): (Value<u32>, Lock, Value<u32>, Array<f64>)) {
    here.fetch_add(1);
    while here.get().unwrap() < 2 {
        yield_now(); // until both are here
    }
    for _ in 0..100 {
        // By acquire and release: the lock guards what everybody agrees that it guards.
        lock.acquire().unwrap();
        let seen = value.get().unwrap();
        yield_now();
        value.set(seen + 1).unwrap();
        lock.release().unwrap();

        // By a guard: without it nobody comes to the elements, and nobody forgets to release.
        let mut elements = array.lock().unwrap();
        for element in elements.iter_mut() {
            *element += 1.0;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (lock, value) = (Lock::new()?, Value::new(0)?);
    let array = Array::from_slice(&[0.0, 100.0, 200.0])?;
    let shared = (Value::new(0)?, lock, value.clone(), array.clone());
    let adders = [Process::spawn(add, shared.clone())?, Process::spawn(add, shared)?];
    adders.into_iter().try_for_each(Process::join)?;
    println!("{} of 200, {:?} of [200.0, 300.0, 400.0]", value.get()?, array.to_vec()?);
    assert_eq!(value.get()?, 200);
    assert_eq!(array.to_vec()?, [200.0, 300.0, 400.0]);
    Ok(())
}
