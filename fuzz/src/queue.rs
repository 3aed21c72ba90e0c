//! A queue whose words are overwritten while it is used.

use std::hint::black_box;
use std::time::Duration;

use bytemuck::AnyBitPattern;
use crossproc_primitives::{Queue, QueueOptions};
use crossproc_segment::Segment;
use crossproc_segment::plain::Plain;

use crate::{NOWHERE, Scratch, steps};

/// Operations of two handles on a small queue, each after a word of it was overwritten, given as {operation: u8, place: u16, value:
/// u64}, little endian: every one ends, with a value or an error, whatever that is.
pub fn queue_bytes(bytes: &[u8]) {
    thread_local! {
        static WORDS: Scratch = Scratch::new(|segment| drop(open::<u64>(segment)));
        static CELLS: Scratch = Scratch::new(|segment| drop(open::<[u64; 2]>(segment)));
    }
    WORDS.with(|scratch| use_all::<u64>(bytes, scratch, |value| value));
    CELLS.with(|scratch| use_all::<[u64; 2]>(bytes, scratch, |value| [value; 2]));
}

fn open<T: Plain + AnyBitPattern>(segment: &Segment) -> Queue<T> {
    QueueOptions::new(3).lanes(4).hands(2).in_segment(segment, "queue").expect("room")
}

fn use_all<T: Plain + AnyBitPattern>(bytes: &[u8], scratch: &Scratch, message: fn(u64) -> T) {
    use_handles(bytes, scratch, message);
    scratch.put_back();
}

fn use_handles<T: Plain + AnyBitPattern>(bytes: &[u8], scratch: &Scratch, message: fn(u64) -> T) {
    let queue = open::<T>(&scratch.segment);
    let handles = [queue.clone(), queue];
    let (mut loans, mut messages, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let soon = Duration::from_micros(1);
    let mut untouched = true;
    for (op, place, value) in steps(bytes) {
        if place != NOWHERE {
            scratch.overwrite(place, value);
            untouched = false;
        }
        let value = message(value);
        let queue = &handles[usize::from(op & 1)];
        match op >> 1 {
            0 => drop(black_box(queue.try_send(value))),
            1 => drop(black_box(queue.try_recv())),
            2 => loans.extend(queue.loan()),
            3 => drop(loans.pop().map(|loan| loan.try_send().map_err(drop))),
            4 => drop(loans.pop()),
            5 => messages.extend(queue.try_recv_ref()),
            6 => drop(messages.pop()),
            7 => messages.drain(..).for_each(std::mem::forget),
            8 => drop(black_box(queue.send_timeout(value, soon))),
            9 => drop(black_box(queue.recv_timeout(soon))),
            10 => drop(black_box(queue.send_many(&[value; 4]))),
            11 => drop(black_box(queue.recv_many(&mut Vec::new(), 4))),
            12 => others.push(queue.clone()),
            13 => drop(others.pop()),
            14 => drop(black_box(queue.close())),
            _ => {
                black_box((queue.len(), queue.is_empty(), queue.is_full(), queue.is_closed()));
                let audit = queue.audit();
                assert!(!untouched || audit.is_ok(), "{audit:?}");
            }
        }
    }
}
