//! A queue whose words are overwritten while it is used.

use std::hint::black_box;
use std::time::Duration;

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_primitives::{Queue, QueueOptions};
use crossproc_segment::Span;

/// Longer inputs say nothing new.
const STEPS_MAX: usize = 200;
/// No overwriting in this step.
const NOWHERE: u16 = u16::MAX;

/// Operations of two handles on a small queue, each after a word of it was overwritten, given as {operation: u8, place: u16, value:
/// u64}, little endian: every one ends, with a value or an error, whatever that is.
pub fn queue_bytes(bytes: &[u8]) {
    let segment = super::options().anonymous(8192).expect("memory for a segment");
    let options = QueueOptions::new(3).lanes(4).hands(2);
    let queue: Queue<u64> = options.in_segment(&segment, "queue").expect("room");
    let object = segment.objects().into_iter().next().expect("the queue").object;
    let span = Span { offset: object.offset, count: object.bytes / 8 };
    let words = segment.mapping().place_slice::<AtomicU64>(span).expect("it lies inside");

    let handles = [queue.clone(), queue];
    let (mut loans, mut messages, mut others) = (Vec::new(), Vec::new(), Vec::new());
    let soon = Duration::from_micros(1);
    let mut untouched = true;
    for step in bytes.chunks_exact(11).take(STEPS_MAX) {
        let place = u16::from_le_bytes([step[1], step[2]]);
        let value = step[3..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if place != NOWHERE {
            words[usize::from(place) % words.len()].store(value, Ordering::Relaxed);
            untouched = false;
        }
        let queue = &handles[usize::from(step[0] & 1)];
        match step[0] >> 1 {
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
