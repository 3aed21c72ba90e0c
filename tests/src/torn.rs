//! The search for torn values: one process writes a large [`Value`] without a pause, two others read it.
//!
//! Every value that is written can be told from all others by any one of its words, so a reader sees if the words of what it read
//! belong together, and if it is older than what it read before.
//!
//! Beside the value stands its *twin*: the same words, written and read by the same processes in the same loops, as plain copies
//! (`RawValue`, which promises nothing more). Reads of the twin must be torn, in every run: if they are not, the readers
//! were never there while the writer wrote. For the same reason reads count for little when they find what they found before,
//! which is most of them while the writer waits for a CPU: so a run goes on until enough of them found something new.

use std::fmt;
use std::time::{Duration, Instant};

use crossproc_primitives::{RawValue, Value};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::children::{HANG, child, join, tied_to_parent};

/// How many 8-byte words a value has.
pub const WORDS: usize = 32;
type Words = [u64; WORDS];

const READERS: usize = 2;
/// Reads of the value for each read of the twin.
const PER_TWIN: u64 = 16;
/// Between two looks at whether to stop.
const BATCH: u64 = 4096;
/// Reads in a row that found nothing new.
const SAME: u32 = 200;
/// So many torn reads of the twin show that readers and writer met.
const TWIN_TORN: u64 = 1000;

// The board.
const STOP: usize = 0;
const WRITES: usize = 8;
const READS: usize = 16;
const TORN_TWINS: usize = 17;
const CHANGED: usize = 18;

/// What came out. Everything in it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Values that were read.
    pub reads: u64,
    /// Of them: with words of more than one value.
    pub torn: u64,
    /// Of them: older than one that the same process had read before.
    pub back: u64,
    /// Of them: not the one read before, so the writer was at work.
    pub changed: u64,
    /// Reads that ended with an error.
    pub errors: u64,
    /// Values that were written.
    pub writes: u64,
    /// Reads of the twin.
    pub twin_reads: u64,
    /// Of them: with words of more than one value.
    pub twin_torn: u64,
    /// How long it took.
    pub took: Duration,
}

#[derive(Clone, Serialize, Deserialize)]
struct Job {
    board: Board,
    value: Value<Words>,
    twin: RawValue<Words>,
    least: Least,
}

/// How long to go on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Least {
    /// Until so many values were read,
    pub reads: u64,
    /// and so many of them were not the one read before,
    pub changed: u64,
    /// but not for longer than this.
    pub limit: Duration,
}

/// The words of value `n`. Each is an odd multiple of `n` plus its place, so each tells `n`.
fn words_of(n: u64) -> Words {
    std::array::from_fn(|at| n.wrapping_mul(2 * at as u64 + 1))
}

/// Which value this is, unless it is two.
fn number_of(words: &Words) -> Option<u64> {
    let n = words[0];
    words.iter().enumerate().all(|(at, &word)| word == n.wrapping_mul(2 * at as u64 + 1)).then_some(n)
}

fn writer(job: Job) {
    tied_to_parent();
    let mut n = 0;
    while job.board.get(STOP) == 0 {
        for _ in 0..64 {
            n += 1;
            job.value.set(words_of(n)).expect("nobody else writes");
            job.twin.set(words_of(n)).expect("it is attached");
        }
        job.board.set(WRITES, n);
    }
}

fn reader(job: Job) -> Report {
    tied_to_parent();
    let mut out = Report::default();
    let (mut newest, mut same) = (0, 0);
    let started = Instant::now();
    let enough = || {
        let count = |at| job.board.get(at);
        count(READS) >= job.least.reads
            && count(CHANGED) >= job.least.changed
            && count(TORN_TWINS) >= TWIN_TORN
    };
    while !enough() && started.elapsed() < job.least.limit {
        let before = out;
        for _ in 0..BATCH {
            out.reads += 1;
            if same == SAME {
                // The writer waits for a CPU.
                std::thread::yield_now();
                same = 0;
            }
            match job.value.get().map(|words| number_of(&words)) {
                Ok(Some(n)) => {
                    out.back += u64::from(n < newest);
                    out.changed += u64::from(n != newest);
                    same = if n == newest { same + 1 } else { 0 };
                    newest = n;
                }
                Ok(None) => out.torn += 1,
                Err(_) => out.errors += 1,
            }
            if out.reads.is_multiple_of(PER_TWIN) {
                out.twin_reads += 1;
                out.twin_torn += u64::from(job.twin.get().is_ok_and(|words| number_of(&words).is_none()));
            }
        }
        job.board.add(READS, BATCH);
        job.board.add(TORN_TWINS, out.twin_torn - before.twin_torn);
        job.board.add(CHANGED, out.changed - before.changed);
    }
    out
}

/// Writes and reads until there is enough.
///
/// # Panics
///
/// If a process can not be started, ends early, or does not come on.
#[must_use]
pub fn run(least: Least) -> Report {
    let job = Job {
        board: Board::new(64),
        value: Value::new(words_of(0)).expect("memory for a value"),
        twin: RawValue::new(words_of(0)).expect("memory for its twin"),
        least,
    };
    let started = Instant::now();
    let writer = child(writer, job.clone());
    job.board.await_at_least(WRITES, 1);
    let mut readers: Vec<_> = (0..READERS).map(|_| child(reader, job.clone())).collect();
    let mut out = Report::default();
    let mut seen = (0, Instant::now());
    while let Some(mut reader) = readers.pop() {
        if reader.is_alive() {
            let now = job.board.get(READS) + job.board.get(WRITES);
            if now != seen.0 {
                seen = (now, Instant::now());
            }
            assert!(seen.1.elapsed() < HANG, "nobody reads or writes any more");
            std::thread::sleep(Duration::from_millis(5));
            readers.insert(0, reader);
            continue;
        }
        match reader.try_join() {
            Ok(Some(one)) => out.add(&one),
            other => panic!("a reader ended: {other:?}"),
        }
    }
    job.board.set(STOP, 1);
    join(writer);
    out.writes = job.board.get(WRITES);
    out.took = started.elapsed();
    out
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.torn += other.torn;
        self.back += other.back;
        self.changed += other.changed;
        self.errors += other.errors;
        self.twin_reads += other.twin_reads;
        self.twin_torn += other.twin_torn;
    }

    /// True if no value was wrong, and the twin was.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.torn == 0 && self.back == 0 && self.errors == 0 && self.changed > 0 && self.twin_torn > 0
    }

    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let Self { reads, torn, back, changed, errors, writes, twin_reads, twin_torn, took } = self;
        format!(
            "{{\"torn\":\"value\",\"right\":{},\"seconds\":{:.1},\"reads\":{reads},\"torn_reads\":{torn},\
             \"went_back\":{back},\"errors\":{errors},\"changed\":{changed},\"writes\":{writes},\
             \"twin_reads\":{twin_reads},\"twin_torn\":{twin_torn}}}",
            self.is_right(),
            took.as_secs_f64(),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reads, torn, back, changed, errors, writes, twin_reads, twin_torn, took } = self;
        let percent = |part: u64, of: u64| 100.0 * part as f64 / of.max(1) as f64;
        writeln!(
            f,
            "Value<[u64; {WORDS}]>, one writer, {READERS} readers, each a process: {:.1} s",
            took.as_secs_f64()
        )?;
        writeln!(
            f,
            "  read      {reads} times, {:.1} % of them another value than before; {writes} written",
            percent(*changed, *reads)
        )?;
        writeln!(f, "  torn      {torn}")?;
        writeln!(f, "  back      {back} older than one read before by the same process")?;
        writeln!(f, "  errors    {errors}")?;
        writeln!(f, "its twin, a plain copy in the same run:")?;
        let verdict = if *twin_torn > 0 { "" } else { " (NOT CAUGHT: the readers never met the writer)" };
        writeln!(
            f,
            "  torn      {twin_torn} of {twin_reads} ({:.2} %){verdict}",
            percent(*twin_torn, *twin_reads)
        )?;
        write!(f, "{}", if self.is_right() { "all right" } else { "NOT RIGHT" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixture_of_two_values_is_told() {
        assert_eq!(number_of(&words_of(7)), Some(7));
        for at in 0..WORDS {
            let mut words = words_of(7);
            words[at] = words_of(8)[at];
            assert_eq!(number_of(&words), None, "word {at}");
        }
    }
}
