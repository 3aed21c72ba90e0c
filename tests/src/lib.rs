//! What tests with real processes share, and the long runs: the [storm] over the lock, the [tempest] over all objects, the
//! storms [over the queue](queue_storm) and [over a pool](pool_storm), the search for [torn] values, and how soon who sleeps
//! is [woken](wake) by a death.
//!
//! Every child is a process of its own, started by `crossproc-process`; threads would share the memory that is to be kept apart
//! here. Children are killed when their test ends, however it ends. No test asserts that something is fast: [`HANG`] is
//! there to turn a hang into a failure, nothing else.
#![forbid(unsafe_code)]

mod board;
mod children;
pub mod linear;
pub mod pool_storm;
pub mod queue_storm;
mod random;
pub mod storm;
pub mod tempest;
mod tickets;
pub mod torn;
pub mod wake;

pub use board::Board;
pub use children::{
    HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, not_run, state_of, tied_to_parent,
    wait_for,
};
pub use random::{Rng, fresh_seed, seconds};
