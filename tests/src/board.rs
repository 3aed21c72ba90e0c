//! Words on which the processes of a test tell each other what they do.

use std::ops::Index;

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_segment::plain::Plain;
use crossproc_segment::{ObjectKind, ObjectSpec, PlacedSlice, Segment, SegmentOptions, Span};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::children::wait_for;

/// Shared words, all zero at first: bare atomics in a segment of their own, so that what is tested does not keep its own record.
///
/// A store is visible to whoever looks after its process has died, in program order (`SeqCst`).
#[derive(Clone, Debug)]
pub struct Board {
    segment: Segment,
    words: PlacedSlice<AtomicU64>,
}

const KIND: ObjectKind = ObjectKind::new("Board");

fn spec(count: u64) -> ObjectSpec {
    ObjectSpec { kind: KIND, layout: u64::LAYOUT, count, bytes: 8 * count, align: 64, windows: 0 }
}

impl Board {
    /// A board with so many words.
    ///
    /// # Panics
    ///
    /// If there is no memory for it.
    #[must_use]
    pub fn new(words: usize) -> Self {
        let count = words as u64;
        let segment = SegmentOptions::new().objects(1).anonymous(8 * words).expect("memory for a board");
        segment.create_object("board", &spec(count), |_, _| ()).expect("room for the board");
        Self::open(segment)
    }

    fn open(segment: Segment) -> Self {
        let object = segment.open_object("board", &spec(1)).expect("a board");
        let span = Span { offset: object.offset, count: object.count };
        let words = segment.mapping().place_slice(span).expect("a board in its place");
        Self { segment, words }
    }

    /// Writes a word.
    pub fn set(&self, at: usize, value: u64) {
        self.words[at].store(value, Ordering::SeqCst);
    }

    /// Reads a word.
    #[must_use]
    pub fn get(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::SeqCst)
    }

    /// Adds to a word; returns what it was.
    pub fn add(&self, at: usize, n: u64) -> u64 {
        self.words[at].fetch_add(n, Ordering::SeqCst)
    }

    /// Replaces a word; returns what it was.
    pub fn swap(&self, at: usize, value: u64) -> u64 {
        self.words[at].swap(value, Ordering::SeqCst)
    }

    /// Waits until the word is at least `least`; returns it.
    ///
    /// # Panics
    ///
    /// If that takes longer than [`HANG`](crate::HANG).
    #[track_caller]
    pub fn await_at_least(&self, at: usize, least: u64) -> u64 {
        wait_for(&format!("word {at} to become {least}"), || self.get(at) >= least);
        self.get(at)
    }

    /// Waits until `parties` processes have come here `round` times (1, 2, ..); nobody sleeps, so all go on at the same moment.
    ///
    /// # Panics
    ///
    /// As [`await_at_least`](Self::await_at_least).
    #[track_caller]
    pub fn meet(&self, at: usize, parties: u64, round: u64) {
        self.add(at, 1);
        let started = std::time::Instant::now();
        for tries in 0_u32.. {
            if self.get(at) >= parties * round {
                return;
            }
            if tries % 256 == 255 {
                std::thread::yield_now();
                assert!(started.elapsed() < crate::HANG, "the others did not come to round {round}");
            }
            std::hint::spin_loop();
        }
    }

    /// All words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// The segment it lies in.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        &self.segment
    }
}

impl Index<usize> for Board {
    type Output = AtomicU64;

    fn index(&self, at: usize) -> &AtomicU64 {
        &self.words[at]
    }
}

impl Serialize for Board {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.segment.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Board {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Segment::deserialize(deserializer).map(Self::open)
    }
}
