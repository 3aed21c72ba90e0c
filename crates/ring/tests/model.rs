//! Every interleaving and every allowed reordering of a writer and its readers, by loom.
//!
//! Run by `cargo xtask model` in two configurations; see `crossproc_atomic::model`.
#![cfg(crossproc_model)]
#![allow(missing_docs)]

#[path = "model/blocks.rs"]
mod blocks;
#[path = "model/call.rs"]
mod call;
#[path = "model/exchange.rs"]
mod exchange;
#[path = "model/frames.rs"]
mod frames;

use crossproc_atomic::AtomicU64;
use crossproc_atomic::model::explore;
use crossproc_ring::Latest;
use loom::sync::Arc;
use loom::thread;

const WORDS: usize = 2;

fn words(copies: usize) -> Arc<Vec<AtomicU64>> {
    Arc::new((0..Latest::words_needed(copies, WORDS)).map(|_| AtomicU64::new(0)).collect())
}

fn read(all: &[AtomicU64]) -> u64 {
    let mut out = [0; WORDS];
    Latest::new(all, WORDS).get(&mut out).expect("the writer ends");
    assert_eq!(out[0], out[1], "a torn read");
    out[0]
}

/// As many writes as there are copies and one more, so that a copy is used again while it may be read.
#[test]
fn a_reader_sees_whole_values_that_never_go_back() {
    for copies in [2, 3] {
        let seen = explore(&format!("latest_{copies}_copies"), 100, 3, move |outcome| {
            let all = words(copies);
            let writer = {
                let all = Arc::clone(&all);
                thread::spawn(move || {
                    for v in 1..=3 {
                        Latest::new(&all, WORDS).set(&[v, v]);
                    }
                })
            };
            let first = read(&all);
            let second = read(&all);
            assert!(first <= second, "went back from {first} to {second}");
            writer.join().expect("the writer ends well");
            outcome.extend([first, second]);
        });
        for wanted in [vec![0, 0], vec![0, 3], vec![3, 3]] {
            assert!(seen.contains(&wanted), "outcome {wanted:?} was never explored: {seen:?}");
        }
    }
}

/// What the writer did before it set the value is visible to whoever reads the value.
#[test]
fn a_value_publishes_what_came_before_it() {
    explore("latest_publishes", 5, 4, |_| {
        let (all, other) = (words(2), Arc::new(AtomicU64::new(0)));
        let writer = {
            let (all, other) = (Arc::clone(&all), Arc::clone(&other));
            thread::spawn(move || {
                other.store(7, crossproc_atomic::Ordering::Relaxed);
                Latest::new(&all, WORDS).set(&[1, 1]);
            })
        };
        // Waiting, not trying once: loom explores a lone try hardly at all.
        while read(&all) == 0 {
            thread::yield_now();
        }
        assert_eq!(other.load(crossproc_atomic::Ordering::Relaxed), 7);
        writer.join().expect("the writer ends well");
    });
}
