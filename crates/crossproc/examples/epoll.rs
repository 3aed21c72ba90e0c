//! An `epoll` loop by hand, that waits for a connection and for the end of a process.
//!
//! `cargo run -p crossproc --example epoll`

use std::time::Duration;

use crossproc::pipe::RecvError;
use crossproc::prelude::*;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

const MESSAGE: u64 = 1;
const END: u64 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (near, far) = Pipe::duplex::<(), String>()?;
    let tell = |far: Connection<String, ()>| (1..=3).for_each(|n| far.send(&format!("word {n}")).unwrap());
    let child = Process::spawn(tell, far)?;

    let readable = near.readable()?;
    let interests = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&interests, &readable, EventData::new_u64(MESSAGE), EventFlags::IN)?;
    epoll::add(&interests, &child, EventData::new_u64(END), EventFlags::IN | EventFlags::ONESHOT)?;
    let (mut heard, mut has_ended, mut events) = (Vec::new(), false, Vec::with_capacity(8));
    loop {
        match near.recv_timeout(Duration::ZERO) {
            Ok(word) => heard.push(word),
            Err(RecvError::TimedOut) if readable.arm()? => {} // it came meanwhile
            Err(RecvError::TimedOut) => {
                epoll::wait(&interests, spare_capacity(&mut events), None)?;
                has_ended |= events.drain(..).any(|event| event.data.u64() == END);
            }
            Err(RecvError::Closed | RecvError::PeerDied) => break,
            Err(other) => return Err(other.into()),
        }
    }
    println!("heard {heard:?}; the process had ended by then: {has_ended}");
    assert_eq!(heard, ["word 1", "word 2", "word 3"]);
    Ok(child.join()?)
}
