//! A queue whose words are overwritten at random while four processes work on it: nothing is promised about messages then, but
//! nobody crashes, hangs or reads out of bounds.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_primitives::{Queue, QueueOptions};
use crossproc_segment::{SegmentOptions, Span};
use crossproc_tests::{Board, Rng, child, fresh_seed, join, tied_to_parent, wait_for};

const STOP: usize = 0;
const DONE: usize = 1;
const WORKERS: u64 = 4;

/// Returns how many operations came to their end.
fn work((queue, board, seed): (Queue<[u64; 4]>, Board, u64)) -> u64 {
    tied_to_parent();
    let mut random = Rng::new(seed);
    let mut done = 0;
    let mut other = queue.clone();
    while board.get(STOP) == 0 {
        let soon = Duration::from_micros(random.below(2000));
        let message = [random.bits(); 4];
        match random.below(12) {
            0 => drop(queue.try_send(message)),
            1 => drop(queue.try_recv()),
            2 => drop(queue.send_timeout(message, soon)),
            3 => drop(queue.recv_timeout(soon)),
            4 => drop(queue.loan().map(|mut loan| {
                *loan = message;
                loan.try_send().is_ok()
            })),
            5 => drop(queue.try_recv_ref().map(|message| (message[0], message.deliveries()))),
            6 => std::mem::forget(other.try_recv_ref()),
            7 => other = queue.clone(),
            8 => drop(other.send_many(&[message; 3])),
            9 => drop(other.recv_many(&mut Vec::new(), 5)),
            10 => drop((queue.len(), queue.is_empty(), queue.is_full(), queue.is_closed())),
            _ => drop(queue.audit()),
        }
        done += 1;
        board.add(DONE, 1);
    }
    done
}

#[test]
fn scribbling_over_a_queue_crashes_and_hangs_nobody() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut random = Rng::new(seed);
    let segment = SegmentOptions::new().objects(1).participants(16).anonymous(64 << 10).unwrap();
    let queue: Queue<[u64; 4]> =
        QueueOptions::new(5).lanes(12).hands(2).in_segment(&segment, "queue").unwrap();
    let object = segment.objects()[0].object;
    let span = Span { offset: object.offset, count: object.bytes / 8 };
    let words = segment.mapping().place_slice::<AtomicU64>(span).unwrap();
    let first: Vec<_> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();

    let board = Board::new(8);
    let workers: Vec<_> =
        (0..WORKERS).map(|_| child(work, (queue.clone(), board.clone(), random.bits()))).collect();
    wait_for("the workers to begin", || board.get(DONE) >= 100);
    let until = Instant::now() + Duration::from_millis(1500);
    let mut written = 0;
    while Instant::now() < until {
        let at = random.below(words.len() as u64) as usize;
        // Small numbers, numbers with single bits changed, and any: each goes wrong at another check.
        let value = match random.below(4) {
            0 => random.below(32),
            1 => words[at].load(Ordering::Relaxed) ^ 1 << random.below(64),
            2 => first[random.below(words.len() as u64) as usize],
            _ => random.bits() >> random.below(64),
        };
        words[at].store(value, Ordering::Relaxed);
        written += 1;
        if random.once_in(400) {
            // A closed or full queue would be a dull one: now and then all is as it was.
            words.iter().zip(&first).for_each(|(word, &first)| word.store(first, Ordering::Relaxed));
            sleep(Duration::from_millis(1));
        }
    }
    // Each makes progress to the end, and comes to it.
    let before = board.get(DONE);
    wait_for("operations on a damaged queue", || board.get(DONE) > before + WORKERS);
    board.set(STOP, 1);
    let done: Vec<_> = workers.into_iter().map(join).collect();
    println!("{written} words overwritten, operations {done:?}");
    assert!(done.iter().all(|&done| done > 0));
}
