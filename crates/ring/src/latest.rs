//! The latest value: one writer at a time, any number of readers that only read.
//!
//! A few copies, used in turn; `latest` names the newest complete one:
//!
//! ```text
//!  word 0                    latest   sequence of the copy << 2 | index of the copy
//!  16 + i * stride           sequence of copy i: odd while it is being written
//!  16 + i * stride + 1 ..    its n words of data
//! ```
//!
//! `stride` is 1 + n rounded up to 16 words (128 bytes), so that the copy that is being written shares no pair of cache
//! lines with the one that is being read.
//!
//! Who may write: only the holder of the value's lock, all words; readers write nothing, so a read-only mapping
//! will do. What a death leaves behind: a writer killed anywhere before it stores `latest` leaves the old value
//! readable and one copy half-written with an odd sequence (or complete and unnamed); the next writer starts
//! from the same `latest` and overwrites that very copy. Nobody repairs anything.
//!
//! A reader takes a copy only if the copy's sequence equals the one in `latest`, before *and* after it read the
//! words. Without the first comparison values could go back in time: a reader that saw an old `latest` would
//! take a newer value from the reused copy, and the old one on its next read.
//!
//! Memory ordering. The writer's odd mark is stored before the data (release fence between them): a reader that
//! saw any word of a newer write synchronises with that fence through its own acquire fence and must see the odd
//! mark (or something later) when it checks again. `latest` is a Release store read with Acquire: a reader that
//! sees it sees the data and the even mark stored before it.
//!
//! Sources: the sequence lock as in H. Boehm, "Can seqlocks get along with programming language memory models?"
//! (MSPC 2012), with several copies so that readers are not starved by one writer.

use crossproc_atomic::{AtomicU64, Ordering, fence, pause};

/// How often a reader tries again before it reports that the value does not hold still. Each failed try means
/// that all other copies were rewritten while it read one.
const TRIES_MAX: u32 = 100_000;

/// Words in a pair of cache lines.
const LINES: usize = 16;

const SEQUENCE_MAX: u64 = u64::MAX >> 2;

/// The words of one value, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Latest<'a> {
    latest: &'a AtomicU64,
    copies: &'a [AtomicU64],
    /// Words of data in a copy.
    words: usize,
    /// From copy to copy.
    stride: usize,
}

/// The copies kept changing while they were read, or are corrupt: there is no value to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsteady;

impl core::fmt::Display for Unsteady {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(
            "the value changed faster than it could be read, or its words in shared memory are corrupt",
        )
    }
}

impl core::error::Error for Unsteady {}

impl<'a> Latest<'a> {
    /// How many words `copies` copies of `words` words of data need.
    #[must_use]
    pub const fn words_needed(copies: usize, words: usize) -> usize {
        LINES + copies * Self::stride(words)
    }

    const fn stride(words: usize) -> usize {
        (1 + words).next_multiple_of(LINES)
    }

    /// Borrows a value of `words` data words; all words zero is the value zero.
    ///
    /// # Panics
    ///
    /// If the words are not 2 to 4 whole copies.
    #[inline]
    #[must_use]
    pub fn new(all: &'a [AtomicU64], words: usize) -> Self {
        let stride = Self::stride(words);
        let (latest, copies) = all.split_at_checked(LINES).expect("a value has words");
        let latest = &latest[0];
        assert!(matches!(copies.len() / stride, 2..=4) && copies.len() % stride == 0, "2 to 4 whole copies");
        Self { latest, copies, words, stride }
    }

    /// Copies the newest value into `out`.
    ///
    /// # Errors
    ///
    /// [`Unsteady`] after a bounded number of tries.
    ///
    /// # Panics
    ///
    /// If `out` has another length than the value.
    #[inline]
    pub fn get(&self, out: &mut [u64]) -> Result<(), Unsteady> {
        assert_eq!(out.len(), self.words, "the value's length");
        for _ in 0..TRIES_MAX {
            if self.try_get(out) {
                return Ok(());
            }
            pause();
        }
        Err(Unsteady)
    }

    /// One try: false if the copy is not (or no longer) the one that `latest` named.
    #[inline]
    fn try_get(&self, out: &mut [u64]) -> bool {
        let named = self.latest.load(Ordering::Acquire);
        let Some((sequence, data)) = self.copy(named) else { return false };
        if sequence.load(Ordering::Relaxed) != named >> 2 {
            return false;
        }
        for (to, from) in out.iter_mut().zip(data) {
            *to = from.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        sequence.load(Ordering::Relaxed) == named >> 2
    }

    /// Makes `value` the newest one. The caller holds the value's lock.
    ///
    /// # Panics
    ///
    /// If `value` has another length than the value.
    #[inline]
    pub fn set(&self, value: &[u64]) {
        assert_eq!(value.len(), self.words, "the value's length");
        let named = self.latest.load(Ordering::Relaxed);
        // Foreign bytes may name any copy: taken modulo the number of copies, which is private.
        let next = ((named & 3) as usize + 1) % (self.copies.len() / self.stride);
        let Some((sequence, data)) = self.copy(next as u64) else { return };
        // `latest` has room for 62 bits of it; a scribbled sequence must not stay larger than that.
        let odd = (sequence.load(Ordering::Relaxed) | 1) & SEQUENCE_MAX;
        sequence.store(odd, Ordering::Relaxed);
        fence(Ordering::Release);
        for (to, from) in data.iter().zip(value) {
            to.store(*from, Ordering::Relaxed);
        }
        let even = (odd + 1) & SEQUENCE_MAX;
        sequence.store(even, Ordering::Relaxed);
        self.latest.store(even << 2 | next as u64, Ordering::Release);
    }

    /// Sequence and data of the copy that `named` names, if there is such a copy.
    #[inline]
    fn copy(&self, named: u64) -> Option<(&AtomicU64, &[AtomicU64])> {
        let start = (named & 3) as usize * self.stride;
        self.copies.get(start..start + 1 + self.words)?.split_first()
    }
}
