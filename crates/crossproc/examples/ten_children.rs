//! Ten children that are there at once: each waits until all ten have come.
//!
//! `cargo run -p crossproc --example ten_children`

use crossproc::prelude::*;

fn child((number, here): (u32, Value<u32>)) -> String {
    here.fetch_add(1);
    let all = here.wait_while(|here| *here < 10).expect("the memory is there as long as we hold it");
    format!("child {number} is process {} and met {} others", std::process::id(), all - 1)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = Value::new(0_u32)?;
    let mut children = Vec::new();
    for number in 0..10 {
        children.push(Process::spawn(child, (number, here.clone()))?);
    }
    for child in children {
        println!("{}", child.join()?);
    }
    assert_eq!(here.get()?, 10);
    Ok(())
}
