//! What processes do with queues in the modes that have lists of their own: freezing, sleepers, interleavings.

use std::mem::forget;

use bytemuck::AnyBitPattern;
use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_primitives::{Queue, QueueOptions, RecvError, SendError};
use crossproc_segment::plain::Plain;
use crossproc_segment::{Segment, Span};

use crate::arena::{Play, code};
use crate::cast::rehearsed;
use crate::kernel;

/// A message that is told by a number: one word, which travels in the ring itself, or several, which lie in a cell.
pub(crate) trait Load: Plain + AnyBitPattern + std::fmt::Debug {
    fn of(number: u64) -> Self;
    fn number(&self) -> u64;
}

impl Load for u64 {
    fn of(number: u64) -> Self {
        number
    }
    fn number(&self) -> u64 {
        *self
    }
}

pub(crate) type Wide = [u64; 4];

impl Load for Wide {
    fn of(number: u64) -> Self {
        [number; 4]
    }
    fn number(&self) -> u64 {
        assert_eq!(*self, Self::of(self[0]), "a torn message");
        self[0]
    }
}

/// A queue for so many messages; each process has a handle of its own, and keeps it to its end.
pub(crate) fn queue<T: Load>(segment: &Segment, capacity: usize) -> &'static Queue<T> {
    let queue = QueueOptions::new(capacity).lanes(8).hands(2).in_segment(segment, "queue");
    Box::leak(Box::new(queue.expect("a queue in a segment with room")))
}

fn of_send<T>(result: &Result<(), SendError<T>>) -> u64 {
    match result {
        Ok(()) => code::OK,
        Err(SendError::Full(_)) => code::WOULD_BLOCK,
        Err(SendError::TimedOut(_)) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

fn of_recv<T>(result: &Result<T, RecvError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(RecvError::Empty) => code::WOULD_BLOCK,
        Err(RecvError::TimedOut) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

/// The worse one.
fn both(one: u64, other: u64) -> u64 {
    one.max(other)
}

// ---- Freezing: what the frozen one does, and a peer that must get on meanwhile ----

/// So many messages the peer sends and receives while the other one is frozen.
const THOUSAND: u64 = 1000;

/// Sends and receives; nothing that the frozen one holds may be in the way. The queue may be full of its messages, or closed.
pub(crate) fn thousand<T: Load>(segment: &Segment, capacity: usize) -> Play {
    let queue = queue::<T>(segment, capacity);
    Box::new(move || {
        for nth in 0..THOUSAND {
            match queue.try_send(T::of(nth)) {
                Ok(()) | Err(SendError::Full(_)) => {}
                Err(SendError::Closed(_)) => return code::OK,
                Err(_) => return code::ERROR,
            }
            // So there is something to be received.
            match queue.try_recv() {
                Ok(_) => {}
                Err(RecvError::Closed | RecvError::Empty) if queue.is_closed() => return code::OK,
                other => return of_recv(&other).max(code::WRONG),
            }
        }
        code::OK
    })
}

pub(crate) fn send_receive<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 1);
    rehearsed(move || both(of_send(&queue.try_send(T::of(1))), of_recv(&queue.try_recv())))
}

pub(crate) fn loan_receive_ref<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    rehearsed(move || {
        let Ok(mut loan) = queue.loan() else { return code::ERROR };
        *loan = T::of(1);
        both(of_send(&loan.try_send()), of_recv(&queue.try_recv_ref()))
    })
}

pub(crate) fn batches<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    rehearsed(move || {
        let sent = queue.send_many(&[1, 2, 3].map(T::of));
        let received = queue.recv_many(&mut Vec::with_capacity(4), 4);
        if sent.is_ok() && received.is_ok() { code::OK } else { code::ERROR }
    })
}

pub(crate) fn another_handle<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    rehearsed(move || {
        let other = queue.clone();
        u64::from(other.lanes() != 8) * code::ERROR
    })
}

/// Drops a handle with a message in its hand.
pub(crate) fn leak_a_message<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    rehearsed(move || {
        let other = queue.clone();
        let sent = of_send(&other.try_send(T::of(1)));
        forget(other.try_recv_ref());
        drop(other);
        both(sent, of_recv(&queue.try_recv()))
    })
}

pub(crate) fn close<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    queue.try_send(T::of(1)).expect("there is room");
    Box::new(move || u64::from(queue.close() != Ok(true)) * code::ERROR)
}

/// Looks for orphans and for lanes of the dead.
pub(crate) fn receive_in_vain<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    Box::new(move || of_recv(&queue.try_recv()))
}

/// Whether or not somebody has before.
pub(crate) fn close_at_any_time<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 2);
    Box::new(move || u64::from(queue.close().is_err()) * code::ERROR)
}

/// Takes back the lane of a dead one, and receives what that had in its hand.
pub(crate) fn recover<T: Load>(segment: &Segment) -> Play {
    let queue = queue::<T>(segment, 1);
    queue.try_send(T::of(1)).expect("there is room");
    let pid = kernel::fork(|| {
        let segment = segment.attach_again().expect("a free place in the segment");
        forget(self::queue::<T>(&segment, 1).try_recv_ref().expect("there is a message"));
    });
    kernel::reap(pid, crossproc_tests::HANG);
    Box::new(move || of_recv(&queue.try_recv()))
}

/// Peers of those above.
pub(crate) fn thousand_in_one<T: Load>(segment: &Segment) -> Play {
    thousand::<T>(segment, 1)
}

pub(crate) fn thousand_in_two<T: Load>(segment: &Segment) -> Play {
    thousand::<T>(segment, 2)
}

// ---- Sleepers ----

/// The only slot of the queue, without using it: a handle that goes wakes all who sleep.
fn slot(segment: &Segment) -> u64 {
    /// Words, claims and records, each a whole number of 128 bytes.
    const SLOTS: u64 = 384 + 128 + 8 * 128;
    let queue = segment.objects().into_iter().find(|object| object.name == "queue").expect("it was made");
    let span = Span { offset: queue.object.offset + SLOTS, count: 1 };
    let slots = segment.mapping().place_slice::<AtomicU64>(span).expect("its slots");
    slots[0].load(Ordering::SeqCst)
}

/// There are 17 cells.
const FULL: u64 = 1 << 5;
const CLOSED: u64 = 1 << 63;

pub(crate) fn has_message(segment: &Segment) -> bool {
    slot(segment) & FULL != 0
}

pub(crate) fn has_room(segment: &Segment) -> bool {
    !has_message(segment)
}

pub(crate) fn is_closed(segment: &Segment) -> bool {
    slot(segment) & CLOSED != 0
}

/// Knows where the slot is.
fn checked(segment: &Segment) -> &'static Queue<u64> {
    let queue = queue::<u64>(segment, 1);
    if queue.is_empty() {
        queue.try_send(1).expect("there is room");
        assert!(has_message(segment), "the slot is where it was thought to be");
        queue.try_recv().expect("there is a message");
    }
    queue
}

pub(crate) fn sends(segment: &Segment) -> Play {
    let queue = checked(segment);
    Box::new(move || of_send(&queue.try_send(1)))
}

/// Unless somebody else has.
pub(crate) fn sends_at_last(segment: &Segment) -> Play {
    let queue = queue::<u64>(segment, 1);
    Box::new(move || u64::from(of_send(&queue.try_send(1)) > code::WOULD_BLOCK) * code::ERROR)
}

/// Sends while it has another message in its hand.
pub(crate) fn sends_with_a_message(segment: &Segment) -> Play {
    let queue = checked(segment);
    queue.try_send(2).expect("there is room");
    forget(queue.try_recv_ref().expect("there is a message"));
    Box::new(move || of_send(&queue.try_send(1)))
}

/// Passes on what it receives.
pub(crate) fn waits_for_a_message(segment: &Segment) -> Play {
    let queue = queue::<u64>(segment, 1);
    Box::new(move || match queue.recv_ref() {
        Ok(message) => {
            // Only then it is done with its own. It may be full already.
            let _ = queue.try_send(1);
            drop(message);
            code::OK
        }
        Err(RecvError::Closed) => code::OK,
        other => of_recv(&other.map(drop)),
    })
}

pub(crate) fn receives(segment: &Segment) -> Play {
    let queue = checked(segment);
    queue.try_send(1).expect("there is room");
    Box::new(move || of_recv(&queue.try_recv()))
}

/// Unless somebody else has.
pub(crate) fn receives_at_last(segment: &Segment) -> Play {
    let queue = queue::<u64>(segment, 1);
    Box::new(move || u64::from(of_recv(&queue.try_recv()) > code::WOULD_BLOCK) * code::ERROR)
}

pub(crate) fn waits_for_room(segment: &Segment) -> Play {
    let queue = queue::<u64>(segment, 1);
    Box::new(move || match queue.send(5) {
        Err(SendError::Closed(_)) => code::OK,
        sent => of_send(&sent),
    })
}

pub(crate) fn closes(segment: &Segment) -> Play {
    let queue = checked(segment);
    Box::new(move || u64::from(queue.close().is_err()) * code::ERROR)
}

/// Unless somebody else has.
pub(crate) fn closes_at_last(segment: &Segment) -> Play {
    let queue = queue::<u64>(segment, 1);
    Box::new(move || u64::from(queue.close().is_err()) * code::ERROR)
}

/// Closes it when it is full.
pub(crate) fn fills_and_closes(segment: &Segment) -> Play {
    let queue = checked(segment);
    queue.try_send(1).expect("there is room");
    Box::new(move || u64::from(queue.close().is_err()) * code::ERROR)
}

// ---- Interleavings ----

/// What can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    Push(u64),
    Pop,
    Close,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Value(u64),
    Yes,
    No,
    Closed,
    Failed,
}

/// A handle with which that can be done, and a message in the queue from each who has one.
pub(crate) fn plays<T: Load>(
    segment: &Segment,
    capacity: usize,
    first: Option<u64>,
) -> Box<dyn FnMut(Move) -> Came> {
    let queue = queue::<T>(segment, capacity);
    if let Some(first) = first {
        queue.try_send(T::of(first)).expect("there is room");
    } else if queue.try_send(T::of(1)).is_ok() {
        queue.try_recv().expect("there is a message");
    }
    Box::new(move |it| match it {
        Move::Push(n) => match queue.try_send(T::of(n)) {
            Ok(()) => Came::Yes,
            Err(SendError::Full(_)) => Came::No,
            Err(SendError::Closed(_)) => Came::Closed,
            Err(_) => Came::Failed,
        },
        Move::Pop => match queue.try_recv() {
            Ok(value) => Came::Value(value.number()),
            Err(RecvError::Empty) => Came::No,
            Err(RecvError::Closed) => Came::Closed,
            Err(_) => Came::Failed,
        },
        Move::Close => match queue.close() {
            Ok(true) => Came::Yes,
            Ok(false) => Came::No,
            Err(_) => Came::Failed,
        },
    })
}

/// A queue of so many that does one thing at a time: `state[0]` is 1 when it is closed, then come the messages.
pub(crate) fn next(state: &mut Vec<u64>, capacity: usize, it: Move) -> Came {
    let closed = state[0] != 0;
    match it {
        Move::Push(_) if closed => Came::Closed,
        Move::Push(_) if state.len() > capacity => Came::No,
        Move::Push(n) => {
            state.push(n);
            Came::Yes
        }
        Move::Pop if state.len() > 1 => Came::Value(state.remove(1)),
        Move::Pop => {
            if closed {
                Came::Closed
            } else {
                Came::No
            }
        }
        Move::Close => {
            state[0] = 1;
            if closed { Came::No } else { Came::Yes }
        }
    }
}
