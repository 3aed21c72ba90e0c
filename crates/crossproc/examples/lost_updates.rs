//! Two processes add to one value and to an array 100 times each, without a lock: additions get lost.
//!
//! `cargo run -p crossproc --example lost_updates`; the remedy is in `locked_updates`.

use std::thread::yield_now;

use crossproc::prelude::*;

fn add((here, value, array): (Value<u32>, Value<u32>, RawArray<f64>)) {
    here.fetch_add(1);
    while here.get().unwrap() < 2 {
        yield_now(); // until both are here
    }
    for _ in 0..100 {
        let seen = value.get().unwrap();
        yield_now(); // what the other one adds now is overwritten below
        value.set(seen + 1).unwrap();
        for at in 0..array.len() {
            let seen = array.get(at).unwrap();
            yield_now();
            array.set(at, seen + 1.0).unwrap();
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for round in 1..=50 {
        let (here, value) = (Value::new(0)?, Value::new(0)?);
        let array = RawArray::from_slice(&[0.0, 100.0, 200.0])?;
        let shared = (here, value.clone(), array.clone());
        let adders = [Process::spawn(add, shared.clone())?, Process::spawn(add, shared)?];
        adders.into_iter().try_for_each(Process::join)?;
        println!("round {round}: {} of 200, {:?} of [200.0, 300.0, 400.0]", value.get()?, array.to_vec()?);
        if value.get()? != 200 && array.to_vec()? != [200.0, 300.0, 400.0] {
            return Ok(());
        }
    }
    println!("nothing was lost in 50 rounds, by chance");
    Ok(())
}
