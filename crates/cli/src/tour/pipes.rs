//! Pipes: from process to process, there and back, and with writers that are killed in the middle of what they say.

use std::time::{Duration, Instant};

use crossproc::pipe::{Receiver, RecvError, Sender};
use crossproc::{Connection, Handed, Pipe, Queue};

use super::Program;
use super::children::{LIMIT, finish, start, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::Check;

pub const PROGRAM: Program = Program { name: "pipes", title: "Pipes, and writers that are killed", run };

/// Much more than a pipe has room for.
const LONG: usize = 1 << 20;
const KILLS: u32 = 10;
/// Readers and writers of one pipe at a time.
const EACH: u64 = 300;

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    from_child_to_child(recorder)?;
    there_and_back(recorder)?;
    two_writers_two_readers(recorder)?;
    handles(recorder)?;
    writers_are_killed(recorder)
}

fn from_child_to_child(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("One child sends a string, another one receives it:");
    let (receiver, sender) = Pipe::simplex::<String>()?;
    let reader = start("reader", read_one, receiver)?;
    finish(start("writer", write_one, sender)?)?;
    recorder.check(Check::equal("received", finish(reader)?, "hello from another process".to_owned()));
    Ok(())
}

fn write_one(sender: Sender<String>) -> Result<(), Failure> {
    Ok(sender.send(&"hello from another process".to_owned())?)
}

fn read_one(receiver: Receiver<String>) -> Result<String, Failure> {
    Ok(receiver.recv_timeout(LIMIT)?)
}

fn there_and_back(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("A child computes cubes at the other end of a duplex pipe:");
    let (here, there) = Pipe::duplex::<u32, u64>()?;
    let child = start("cubes", cube, there)?;
    here.send(&19)?;
    recorder.check(Check::equal("the cube of 19", here.recv_timeout(LIMIT)?, 6859));
    drop(here);
    recorder.check(Check::equal("  calls before this end was closed", finish(child)?, 1));
    Ok(())
}

fn cube(there: Connection<u64, u32>) -> Result<u32, Failure> {
    let mut calls = 0;
    for n in there.iter() {
        there.send(&u64::from(n).pow(3))?;
        calls += 1;
    }
    Ok(calls)
}

fn two_writers_two_readers(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("Two processes write long messages into one end, two read from the other:");
    let (receiver, sender) = Pipe::simplex::<()>()?;
    let writers = [b'a', b'b'].map(|letter| start("writer", write_letters, (letter, sender.clone())));
    let readers = [0; 2].map(|_| start("reader", read_letters, receiver.clone()));
    drop((receiver, sender));
    writers.into_iter().try_for_each(|writer| finish(writer?))?;
    let mut whole = 0;
    for reader in readers {
        whole += finish(reader?)?;
    }
    recorder.check(Check::equal("messages received whole", whole, 2 * EACH));
    Ok(())
}

fn write_letters((letter, sender): (u8, Sender<()>)) -> Result<(), Failure> {
    (0..EACH).try_for_each(|n| Ok(sender.send_bytes_timeout(&vec![letter; 40_000 + n as usize], LIMIT)?))
}

/// How many were of one letter each.
fn read_letters(receiver: Receiver<()>) -> Result<u64, Failure> {
    let mut whole = 0;
    loop {
        match receiver.recv_bytes_timeout(LIMIT) {
            Ok(bytes) => whole += u64::from(bytes.iter().all(|&byte| byte == bytes[0])),
            Err(RecvError::Closed) => return Ok(whole),
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is sent to a process that runs.
type Gifts = (Queue<u32>, Handed<std::os::fd::OwnedFd>);

fn handles(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("A queue and an open file are sent to a process that runs:");
    let (here, there) = Pipe::duplex::<Gifts, u64>()?;
    let child = start("receiver", use_gifts, there)?;
    let (queue, file) = (Queue::new(4)?, std::fs::File::open("/proc/self/stat")?);
    here.send(&(queue.clone(), Handed(file.into())))?;
    recorder.check(Check::equal("it sends through the queue", queue.recv_timeout(LIMIT)?, 77));
    recorder.check(Check::equal("  and reads from the file", here.recv_timeout(LIMIT)? > 0, true));
    finish(child)
}

fn use_gifts(there: Connection<u64, Gifts>) -> Result<(), Failure> {
    let (queue, file) = there.recv_timeout(LIMIT)?;
    queue.send(77)?;
    let bytes = std::io::read_to_string(std::fs::File::from(file.0))?.len();
    Ok(there.send(&(bytes as u64))?)
}

fn writers_are_killed(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing(&format!(
        "{KILLS} times a process is killed (SIGKILL) in the middle of a message of 1 MiB, and another one writes on:"
    ));
    let (receiver, sender) = Pipe::simplex::<()>()?;
    let (mut right, mut longest) = (0, Duration::ZERO);
    for _ in 0..KILLS {
        let victim = start("victim", write_for_ever, sender.clone())?;
        // Some of its message is there; there is no room for all.
        if !receiver.poll(Some(LIMIT))? {
            return Err(too_long("the first part of a message"));
        }
        victim.kill()?;
        victim.wait_timeout(LIMIT).ok_or_else(|| too_long("killing a writer"))?;
        let began = Instant::now();
        let heir = start("heir", write_next, sender.clone())?;
        let next = receiver.recv_bytes_timeout(LIMIT)?;
        longest = longest.max(began.elapsed());
        right += u32::from(next == b"next");
        finish(heir)?;
    }
    recorder.check(Check::equal("messages that came next, whole", right, KILLS));
    recorder.took("from the start of the next writer to its message, at the longest", longest);
    Ok(())
}

fn write_for_ever(sender: Sender<()>) -> Result<(), Failure> {
    Ok(sender.send_bytes(&vec![1; LONG])?)
}

fn write_next(sender: Sender<()>) -> Result<(), Failure> {
    Ok(sender.send_bytes_timeout(b"next", LIMIT)?)
}
