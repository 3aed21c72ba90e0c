//! What tests with real processes share, and the two long runs: the [storm] and the search for [torn] values.
//!
//! Every child is a process of its own, started by `crossproc-process`; threads would share the memory that is to be kept apart
//! here. Children are killed when their test ends, however it ends. No test asserts that something is fast: [`HANG`] is
//! there to turn a hang into a failure, nothing else.
#![forbid(unsafe_code)]

mod board;
mod children;
mod random;
pub mod storm;
pub mod torn;

pub use board::Board;
pub use children::{
    HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, not_run, state_of, tied_to_parent,
    wait_for,
};
pub use random::{Rng, fresh_seed, seconds};
