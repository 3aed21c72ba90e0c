//! The queue with one producer and one consumer, whose words are overwritten while it is used.

use std::hint::black_box;
use std::time::Duration;

use crossproc_primitives::Objects;
use crossproc_primitives::spsc::{Consumer, Producer};
use crossproc_segment::{Error, Segment};

use crate::{NOWHERE, Scratch, steps};

/// Four elements in a block, three blocks.
const CAPACITY: usize = 8;

type Element = [u64; 2];

/// Operations of both ends of a small queue, each after a word of it was overwritten, given as {operation: u8, place: u16, value:
/// u64}, little endian: every one ends, with a value or an error, whatever that is. As long as nothing was overwritten, elements come
/// once and in order.
pub fn spsc_bytes(bytes: &[u8]) {
    thread_local!(static SCRATCH: Scratch = Scratch::new(|segment| drop((producer(segment), consumer(segment)))));
    SCRATCH.with(|scratch| {
        use_both(bytes, scratch);
        scratch.put_back();
    });
}

fn producer(segment: &Segment) -> Result<Producer<Element>, Error> {
    segment.producer("spsc", CAPACITY)
}

fn consumer(segment: &Segment) -> Result<Consumer<Element>, Error> {
    segment.consumer("spsc", CAPACITY)
}

fn use_both(bytes: &[u8], scratch: &Scratch) {
    let producer = || producer(&scratch.segment).ok();
    let consumer = || consumer(&scratch.segment).ok();
    let (mut input, mut output) = (producer(), consumer());
    let mut queue = Queue { untouched: true, pushed: 0, popped: 0 };
    for (op, place, value) in steps(bytes) {
        if place != NOWHERE {
            scratch.overwrite(place, value);
            queue.untouched = false;
        }
        match op % 32 {
            16 => input = None,
            17 => output = None,
            18 => input = input.take().or_else(producer),
            19 => output = output.take().or_else(consumer),
            op @ 0..8 => drop(input.as_mut().map(|input| queue.push(input, op))),
            op @ 8..16 => drop(output.as_mut().map(|output| queue.pop(output, op))),
            _ => {
                if let (Some(input), Some(output)) = (&input, &output) {
                    black_box((
                        input.len(),
                        input.is_empty(),
                        input.is_full(),
                        input.peer(),
                        input.capacity(),
                    ));
                    black_box((output.len(), output.is_closed(), output.peer(), output.redelivered()));
                    let audit = input.audit().and(output.audit());
                    assert!(!queue.untouched || audit.is_ok(), "{audit:?}");
                }
            }
        }
    }
}

/// What is known of it.
struct Queue {
    untouched: bool,
    pushed: u64,
    popped: u64,
}

const SOON: Duration = Duration::from_micros(1);

impl Queue {
    fn push(&mut self, input: &mut Producer<Element>, op: u8) {
        let next = |n| [self.pushed + n; 2];
        let four = [next(0), next(1), next(2), next(3)];
        self.pushed += match op {
            0..=2 => u64::from(input.try_push(next(0)).is_ok()),
            3 => u64::from(input.push_timeout(next(0), SOON).is_ok()),
            4 => input.push_many(&four).unwrap_or(0) as u64,
            5 => input.push_all(&four).map_or(0, |()| 4),
            6 => input.try_reserve(3).map_or(0, |mut place| {
                let n = place.len();
                place.copy_from_slice(&four[..n]);
                place.commit(n);
                n as u64
            }),
            _ => {
                input.close();
                0
            }
        };
    }

    fn pop(&mut self, output: &mut Consumer<Element>, op: u8) {
        match op {
            8..=10 => drop(output.try_pop().map(|value| self.check(&[value]))),
            11 => drop(output.pop_timeout(SOON).map(|value| self.check(&[value]))),
            12 => {
                let mut four = [[0; 2]; 4];
                let n = output.pop_many(&mut four).unwrap_or(0);
                self.check(&four[..n]);
            }
            13 => drop(output.try_peek().map(|elements| {
                self.check(&elements);
                let n = elements.len();
                elements.release(n);
            })),
            // Shown, and not taken: they come again.
            14 => drop(output.try_peek().map(|elements| black_box(elements.len()))),
            _ => output.close(),
        }
    }

    fn check(&mut self, values: &[Element]) {
        for value in values {
            assert!(!self.untouched || *value == [self.popped; 2], "{value:?}, not {}", self.popped);
            self.popped += 1;
        }
    }
}
