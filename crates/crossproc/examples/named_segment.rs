//! Two processes that share nothing but a name: each opens the segment and finds the same objects in it.
//!
//! `cargo run -p crossproc --example named_segment`

use crossproc::prelude::*;
use crossproc::{Error, ErrorKind};

/// What either of them needs to know.
fn open(name: &str) -> Result<(Value<u64>, Array<f32>), Error> {
    let segment = Segment::open_or_create(name, 64 * 1024)?;
    Ok((segment.value("visits", 0)?, segment.array("levels", &[0.0; 4])?))
}

fn visit(name: String) {
    let (visits, levels) = open(&name).unwrap();
    visits.fetch_add(1);
    levels.set(2, 0.5).unwrap();
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = format!("visits-{}", std::process::id());
    let (visits, levels) = open(&name)?;
    Process::spawn(visit, name.clone())?.join()?;
    println!("{name}: {} visit, levels {:?}", visits.get()?, levels.to_vec()?);
    assert_eq!((visits.get()?, levels.get(2)?), (1, 0.5));

    // Another idea of what is there is an error, with a reason.
    println!("{}", visits.segment().value("visits", 0_u32).unwrap_err());

    // The name goes with the last handle.
    drop((visits, levels));
    assert_eq!(Segment::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
    Ok(())
}
