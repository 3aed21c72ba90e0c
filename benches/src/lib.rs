//! What the benchmarks share: measuring in turns, counting system calls, and what libc and the kernel have to be compared with.
//!
//! Run them with `cargo bench -p crossproc-benches`; `cargo test -p crossproc-benches --benches` runs each in a form so small
//! that its figures mean nothing. `RESULTS.md` has dated results with their machine.
//!
//! Neither criterion nor divan can do what is needed here: measure subjects in turns (A B A B ..), so that a
//! machine that slows down slows all of them down, and drive several processes that work at the same time.
#![deny(unsafe_code)]

pub mod forks;
pub mod futex;
pub mod pthread;
pub mod syscalls;
mod turns;
pub mod vyukov;

pub use turns::{Better, Figures, Scale, Turns, pin};
