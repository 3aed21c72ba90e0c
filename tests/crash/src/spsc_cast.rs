//! What processes do with the queue of one producer and one consumer in the modes that have lists of their own: freezing, wrong
//! values, interleavings.

use crossproc_primitives::Objects;
use crossproc_primitives::spsc::{Consumer, PopError, Producer, PushError};
use crossproc_segment::{Error, Segment};

use crate::arena::{Play, code};
use crate::cast::rehearsed;
use crate::queue_cast::{Came, Move};

/// Both words have the same number.
type Element = [u64; 2];

/// Four elements in a block, three blocks.
const CAPACITY: usize = 8;
/// What is in the queue at first, when somebody pops.
const THERE: u64 = 6;

fn producer(segment: &Segment) -> Result<Producer<Element>, Error> {
    segment.producer("spsc", CAPACITY)
}

fn consumer(segment: &Segment) -> Result<Consumer<Element>, Error> {
    segment.consumer("spsc", CAPACITY)
}

fn element(n: u64) -> Element {
    [n; 2]
}

fn of_push<T, E>(result: &Result<T, PushError<E>>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(PushError::Full(_)) => code::WOULD_BLOCK,
        Err(PushError::Timeout(_)) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

fn of_pop<T>(result: &Result<T, PopError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(PopError::Empty) => code::WOULD_BLOCK,
        Err(PopError::Timeout) => code::TIMED_OUT,
        Err(_) => code::ERROR,
    }
}

// ---- Freezing: who pushes is frozen, or who pops; the other one must get on meanwhile ----

/// The producer's role, and what it does again and again; it pushes 0, 1, 2, ..
fn pushing(segment: &Segment, mut push: impl FnMut(&mut Producer<Element>, u64) -> u64 + 'static) -> Play {
    let mut producer = producer(segment).expect("nobody has the role");
    let mut next = 0;
    rehearsed(move || {
        let done = push(&mut producer, next);
        next += 2;
        done
    })
}

pub(crate) fn push_two(segment: &Segment) -> Play {
    pushing(segment, |producer, n| {
        of_push(&producer.try_push(element(n))).max(of_push(&producer.try_push(element(n + 1))))
    })
}

pub(crate) fn push_batch(segment: &Segment) -> Play {
    pushing(segment, |producer, n| of_push(&producer.push_many(&[element(n), element(n + 1)])))
}

pub(crate) fn reserve_commit(segment: &Segment) -> Play {
    pushing(segment, |producer, n| match producer.try_reserve(2) {
        Ok(mut place) => {
            (place[0], place[1]) = (element(n), element(n + 1));
            place.commit(2);
            code::OK
        }
        refused => of_push(&refused),
    })
}

/// Gives the role back, and takes it again.
pub(crate) fn leave_and_push(segment: &Segment) -> Play {
    let segment = segment.clone();
    let mut next = 0;
    rehearsed(move || {
        let Ok(mut producer) = producer(&segment) else { return code::ERROR };
        next += 1;
        of_push(&producer.try_push(element(next - 1)))
    })
}

pub(crate) fn push_and_close(segment: &Segment) -> Play {
    let mut producer = producer(segment).expect("nobody has the role");
    of_push(&producer.try_push(element(0)));
    Box::new(move || {
        let pushed = of_push(&producer.try_push(element(1)));
        producer.close();
        pushed
    })
}

/// Looks a thousand times for an element: they come in order, and that nothing is there is told at once.
pub(crate) fn thousand_pops(segment: &Segment) -> Play {
    let mut consumer = consumer(segment).expect("nobody has the role");
    Box::new(move || {
        let mut next = 0;
        for _ in 0..1000 {
            match consumer.try_pop() {
                Ok(value) if value != element(next) => return code::WRONG,
                Ok(_) => next += 1,
                Err(PopError::Empty | PopError::Closed) => {}
                Err(_) => return code::ERROR,
            }
        }
        // The one that was pushed before any freezing.
        if next == 0 { code::WRONG } else { code::OK }
    })
}

/// The consumer's role, with elements there, and what it does again and again.
fn popping(segment: &Segment, mut pop: impl FnMut(&mut Consumer<Element>) -> u64 + 'static) -> Play {
    fill(segment);
    let mut consumer = consumer(segment).expect("nobody has the role");
    rehearsed(move || pop(&mut consumer))
}

fn fill(segment: &Segment) {
    let mut producer = producer(segment).expect("nobody has the role");
    for n in 0..THERE {
        // There may be others, in a queue that somebody has died with.
        let _ = producer.try_push(element(n));
    }
}

pub(crate) fn pop_two(segment: &Segment) -> Play {
    popping(segment, |consumer| of_pop(&consumer.try_pop()).max(of_pop(&consumer.try_pop())))
}

pub(crate) fn pop_batch(segment: &Segment) -> Play {
    popping(segment, |consumer| of_pop(&consumer.pop_many(&mut [[0; 2]; 2])))
}

pub(crate) fn peek_release(segment: &Segment) -> Play {
    popping(segment, |consumer| match consumer.try_peek() {
        Ok(elements) => {
            let n = elements.len().min(2);
            elements.release(n);
            code::OK
        }
        refused => of_pop(&refused),
    })
}

/// Gives the role back, and takes it again.
pub(crate) fn leave_and_pop(segment: &Segment) -> Play {
    fill(segment);
    let segment = segment.clone();
    rehearsed(move || consumer(&segment).map_or(code::ERROR, |mut consumer| of_pop(&consumer.try_pop())))
}

pub(crate) fn pop_and_close(segment: &Segment) -> Play {
    fill(segment);
    let mut consumer = consumer(segment).expect("nobody has the role");
    of_pop(&consumer.try_pop());
    Box::new(move || {
        let popped = of_pop(&consumer.try_pop());
        consumer.close();
        popped
    })
}

/// Tries a thousand times to push: as long as there is room it comes off, and that there is none is told at once.
pub(crate) fn thousand_pushes(segment: &Segment) -> Play {
    let mut producer = producer(segment).expect("nobody has the role");
    Box::new(move || {
        let mut pushed = 0;
        for n in 0..1000 {
            match producer.try_push(element(n)) {
                Ok(()) => pushed += 1,
                Err(PushError::Full(_) | PushError::Closed(_)) => {}
                Err(_) => return code::ERROR,
            }
        }
        let room = if producer.is_closed() { 0 } else { CAPACITY as u64 - THERE };
        if pushed < room { code::WRONG } else { code::OK }
    })
}

// ---- Wrong values: one process has both roles ----

/// Both roles, and what is done with them. Whatever stands in the words by then, taking them must not panic.
fn both(
    segment: &Segment,
    mut play: impl FnMut(&mut Producer<Element>, &mut Consumer<Element>) -> u64 + 'static,
) -> Play {
    let mut producer = producer(segment).expect("nobody living has the role");
    let mut consumer = consumer(segment).expect("nobody living has the role");
    rehearsed(move || play(&mut producer, &mut consumer))
}

pub(crate) fn push_pop(segment: &Segment) -> Play {
    both(segment, |producer, consumer| {
        // Into the next block, and over it.
        let pushed = (0..5).map(|n| of_push(&producer.try_push(element(n)))).max();
        let popped = (0..5).map(|_| of_pop(&consumer.try_pop())).max();
        pushed.max(popped).unwrap_or(code::ERROR)
    })
}

pub(crate) fn push_pop_batches(segment: &Segment) -> Play {
    both(segment, |producer, consumer| {
        let pushed = producer.push_all(&[element(1); 6]);
        let popped = consumer.pop_many(&mut [[0; 2]; 6]);
        of_push(&pushed).max(of_pop(&popped))
    })
}

pub(crate) fn in_place(segment: &Segment) -> Play {
    both(segment, |producer, consumer| {
        let reserved = producer.try_reserve(3).map(|mut place| {
            let n = place.len();
            place.fill(element(7));
            place.commit(n);
        });
        let peeked = consumer.try_peek().map(|elements| {
            let n = elements.len();
            elements.release(n);
        });
        of_push(&reserved).max(of_pop(&peeked))
    })
}

pub(crate) fn look(segment: &Segment) -> Play {
    both(segment, |producer, consumer| {
        let lengths = (producer.len(), consumer.is_empty(), producer.is_full(), consumer.redelivered());
        std::hint::black_box((lengths, producer.peer(), consumer.is_closed(), consumer.audit().is_ok()));
        code::OK
    })
}

/// Both roles are given back and taken again.
pub(crate) fn claim_both(segment: &Segment) -> Play {
    let segment = segment.clone();
    rehearsed(move || {
        let (producer, consumer) = (producer(&segment), consumer(&segment));
        let pushed = producer.map(|mut producer| of_push(&producer.try_push(element(3))));
        let popped = consumer.map(|mut consumer| of_pop(&consumer.try_pop()));
        pushed.unwrap_or(code::ERROR).max(popped.unwrap_or(code::ERROR))
    })
}

// ---- Interleavings ----

/// The producer for who comes first, the consumer for the other one.
pub(crate) fn plays(segment: &Segment) -> Box<dyn FnMut(Move) -> Came> {
    let mut end = match producer(segment) {
        Ok(mut producer) => {
            producer.try_push(element(0)).expect("there is room");
            let popped = consumer(segment).expect("nobody has the role").try_pop();
            popped.expect("there is an element");
            End::Producer(producer)
        }
        Err(_) => {
            let mut consumer = consumer(segment).expect("nobody has the role any more");
            assert_eq!(consumer.try_pop(), Err(PopError::Empty));
            End::Consumer(consumer)
        }
    };
    Box::new(move |it| match (it, &mut end) {
        (Move::Push(n), End::Producer(producer)) => match producer.try_push(element(n)) {
            Ok(()) => Came::Yes,
            Err(PushError::Full(_)) => Came::No,
            Err(PushError::Closed(_)) => Came::Closed,
            Err(_) => Came::Failed,
        },
        (Move::Pop, End::Consumer(consumer)) => match consumer.try_pop() {
            Ok(value) if value == element(value[0]) => Came::Value(value[0]),
            Err(PopError::Empty) => Came::No,
            Err(PopError::Closed) => Came::Closed,
            _ => Came::Failed,
        },
        (Move::Close, End::Producer(producer)) => {
            producer.close();
            Came::Yes
        }
        (Move::Close, End::Consumer(consumer)) => {
            consumer.close();
            Came::Yes
        }
        _ => Came::Failed,
    })
}

enum End {
    Producer(Producer<Element>),
    Consumer(Consumer<Element>),
}
