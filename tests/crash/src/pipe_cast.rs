//! What processes do with a pipe in the mode that freezes them.

use crossproc_primitives::pipe::{Receiver, RecvError, SendError, Sender};
use crossproc_primitives::{Pipe, PipeOptions};
use crossproc_segment::Segment;

use crate::arena::{Play, code};
use crate::cast::{PATIENCE, rehearsed};

const RING: usize = 512;
/// Bytes of a message that goes at once, and of one that goes in parts.
const SHORT: usize = 8;
const LONG: usize = 300;
/// What is in the pipe at first, when somebody receives.
const THERE: u8 = 6;
/// A frozen sender has sent so many before: one in its rehearsal.
const BEFORE: u8 = 3;

fn pipe(segment: &Segment) -> Pipe<(), ()> {
    PipeOptions::new().capacity(RING).in_segment(segment, "pipe").expect("a pipe")
}

// One end at a time: an end that somebody has had is missed.
fn sender(segment: &Segment) -> Sender<()> {
    pipe(segment).near().expect("an end").split().0
}

fn receiver(segment: &Segment) -> Receiver<()> {
    pipe(segment).far().expect("an end").split().1
}

fn message(number: u8, len: usize) -> Vec<u8> {
    (0..len).map(|k| number ^ k as u8).collect()
}

fn of_send(result: Result<(), SendError>) -> u64 {
    match result {
        Ok(()) => code::OK,
        Err(SendError::Full) => code::WOULD_BLOCK,
        Err(SendError::TimedOut) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

fn of_recv<R>(result: Result<R, RecvError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(RecvError::Empty) => code::WOULD_BLOCK,
        Err(RecvError::TimedOut) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

// ---- Who sends is frozen

/// Sends 0, 1, 2, ..; the first ones before it is frozen.
fn sending(segment: &Segment, mut send: impl FnMut(&mut Sender<()>, u8) -> u64 + 'static) -> Play {
    let mut sender = sender(segment);
    let mut next = 0;
    while next < BEFORE - 1 {
        sender.try_send_bytes(&message(next, SHORT)).expect("there is room");
        next += 1;
    }
    rehearsed(move || {
        let done = send(&mut sender, next);
        next += 1;
        done
    })
}

pub(crate) fn send(segment: &Segment) -> Play {
    sending(segment, |sender, n| of_send(sender.try_send_bytes(&message(n, SHORT))))
}

pub(crate) fn reserve_commit(segment: &Segment) -> Play {
    sending(segment, |sender, n| match sender.try_reserve(SHORT) {
        Ok(mut place) => {
            place.copy_from_slice(&message(n, SHORT));
            place.commit(SHORT);
            code::OK
        }
        Err(error) => of_send(Err(error)),
    })
}

/// The rehearsal is a short one.
pub(crate) fn send_in_parts(segment: &Segment) -> Play {
    sending(segment, |sender, n| {
        let len = if n < BEFORE { SHORT } else { LONG };
        of_send(sender.send_bytes(&message(n, len)))
    })
}

/// Another hold of the end is taken, and let go.
pub(crate) fn hold_and_let_go(segment: &Segment) -> Play {
    let segment = segment.clone();
    sending(&segment.clone(), move |sender, n| {
        // The rehearsal sends the last one.
        let sent = if n < BEFORE { of_send(sender.try_send_bytes(&message(n, SHORT))) } else { code::OK };
        drop(self::sender(&segment));
        sent
    })
}

pub(crate) fn close_sender(segment: &Segment) -> Play {
    let sender = sender(segment);
    (0..BEFORE).for_each(|n| sender.try_send_bytes(&message(n, SHORT)).expect("there is room"));
    Box::new(move || {
        sender.close();
        code::OK
    })
}

/// Looks a thousand times for a message: they come in order, and that nothing is there is told at once.
pub(crate) fn thousand_receives(segment: &Segment) -> Play {
    let receiver = receiver(segment);
    Box::new(move || {
        let mut next = 0;
        for _ in 0..1000 {
            match receiver.try_recv_bytes() {
                Ok(bytes) if bytes != message(next, SHORT) => return code::WRONG,
                Ok(_) => next += 1,
                Err(RecvError::Empty | RecvError::Closed) => {}
                Err(_) => return code::ERROR,
            }
        }
        // What was sent before any freezing.
        if next < BEFORE { code::WRONG } else { code::OK }
    })
}

/// The same, of who does not look after what came before the frozen one's long message.
pub(crate) fn receive_before(segment: &Segment) -> Play {
    let receiver = receiver(segment);
    Box::new(move || (0..BEFORE).map(|_| of_recv(receiver.try_recv_bytes())).max().unwrap_or(code::ERROR))
}

/// And of the long one.
pub(crate) fn receive_timed(segment: &Segment) -> Play {
    let receiver = receiver(segment);
    Box::new(move || {
        let before = (0..BEFORE).map(|_| of_recv(receiver.try_recv_bytes())).max().unwrap_or(code::ERROR);
        before.max(of_recv(receiver.recv_bytes_timeout(PATIENCE)))
    })
}

pub(crate) fn send_timed(segment: &Segment) -> Play {
    let sender = sender(segment);
    Box::new(move || of_send(sender.send_bytes_timeout(&message(90, SHORT), PATIENCE)))
}

// ---- Who receives is frozen

/// With messages of this length there.
fn receiving(
    segment: &Segment,
    len: usize,
    mut receive: impl FnMut(&mut Receiver<()>) -> u64 + 'static,
) -> Play {
    let (sender, mut receiver) = (sender(segment), receiver(segment));
    // The rehearsal takes the first.
    sender.try_send_bytes(&message(0, SHORT)).expect("there is room");
    let there = if len == SHORT { THERE } else { 1 };
    let mut play = move || receive(&mut receiver);
    assert_eq!(play(), code::OK);
    for n in 1..=there {
        sender.send_bytes(&message(n, len)).expect("there is room");
    }
    std::mem::forget(sender);
    Box::new(play)
}

pub(crate) fn receive(segment: &Segment) -> Play {
    receiving(segment, SHORT, |receiver| of_recv(receiver.try_recv_bytes()))
}

pub(crate) fn receive_in_parts(segment: &Segment) -> Play {
    receiving(segment, LONG, |receiver| of_recv(receiver.recv_bytes()))
}

pub(crate) fn receive_into(segment: &Segment) -> Play {
    receiving(segment, LONG, |receiver| of_recv(receiver.recv_bytes_into(&mut [0; LONG])))
}

pub(crate) fn peek_release(segment: &Segment) -> Play {
    receiving(segment, SHORT, |receiver| match receiver.try_peek() {
        Ok(message) => {
            message.release();
            code::OK
        }
        Err(error) => of_recv::<()>(Err(error)),
    })
}

pub(crate) fn close_receiver(segment: &Segment) -> Play {
    let (sender, receiver) = (sender(segment), receiver(segment));
    (0..THERE).for_each(|n| sender.try_send_bytes(&message(n, SHORT)).expect("there is room"));
    std::mem::forget(sender);
    Box::new(move || {
        receiver.close();
        code::OK
    })
}

/// Tries a thousand times to send: as long as there is room it comes off, and that there is none is told at once.
pub(crate) fn thousand_sends(segment: &Segment) -> Play {
    let sender = sender(segment);
    Box::new(move || {
        let (mut sent, mut closed) = (0, false);
        for n in 0..1000_u64 {
            match sender.try_send_bytes(&n.to_le_bytes()) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => {}
                Err(SendError::Closed) => closed = true,
                Err(_) => return code::ERROR,
            }
        }
        // Six short ones are there, or a long one; each of these takes 16 bytes.
        let room = (RING - LONG - 64) / 16;
        if sent < room && !closed { code::WRONG } else { code::OK }
    })
}
