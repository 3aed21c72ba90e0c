//! What a run is asked for.

use std::iter::StepBy;
use std::ops::RangeFrom;

/// Options that all modes know.
#[derive(Clone, Debug)]
pub struct Options {
    /// A short run: real kills in the middle of states only, fewer double crashes.
    pub quick: bool,
    /// Operations longer than this are killed at system calls and where states change, not at every instruction.
    pub longest: u64,
    /// Steps of real kills, and of double crashes, per operation of a quick run.
    pub steps: u64,
    /// For modes with a list of cases of their own: those whose name contains this; all.
    pub only: String,
    /// Of these, each N-th from the I-th: `(I, N)`.
    pub share: (usize, usize),
    /// From which random samples are drawn.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { quick: false, longest: 1500, steps: 2000, only: "all".to_owned(), share: (0, 1), seed: 1 }
    }
}

/// About so many places of each operation are tried by a quick run.
const SAMPLE: u64 = 32;

/// Whether what is called `name` is among what was asked for.
pub fn is_asked(only: &str, name: &str) -> bool {
    let (only, name) = (only.to_lowercase(), name.to_lowercase());
    // The ends of an spsc queue do not have the word in their names.
    let is_end = |name: &str| name.starts_with("producer::") || name.starts_with("consumer::");
    only == "all" || name.contains(&only) || only == "queue" && is_end(&name)
}

impl Options {
    /// The part of a mode's own cases that this process is to try, with their numbers.
    pub fn share_of<'a, C>(
        &self,
        cases: &'a [C],
        name: fn(&C) -> &str,
    ) -> impl Iterator<Item = (usize, &'a C)> {
        let asked = cases.iter().filter(move |case| is_asked(&self.only, name(case)));
        asked.enumerate().filter(move |(at, _)| at % self.share.1 == self.share.0)
    }

    /// After how many instructions an operation is interrupted, which has `length` of them: 0, 1, .., and for a quick run some of
    /// these, equally far apart, of which the seed chooses the first. There is no last one: clocks make an operation longer or
    /// shorter each time.
    pub fn places(&self, length: impl FnOnce() -> u64) -> StepBy<RangeFrom<u64>> {
        let stride = if self.quick { (length() + 1).div_ceil(SAMPLE) } else { 1 };
        (self.seed % stride..).step_by(stride as usize)
    }
}
