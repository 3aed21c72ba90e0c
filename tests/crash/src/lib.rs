//! Kills a process after each single instruction of an operation, and looks at what the others find.
//!
//! Read first: [`step`], the engine; then [`scene`], what is tested; then the table in [`operations`]. Each way to test is a
//! module: [`kills`], [`images`], [`double`], [`trap`]. [`toys`] are the bugs that every run must find.
//!
//! What it does not do: it kills between instructions, not inside of a system call, and it runs one victim at a time.
//! It is written for x86-64.
#![deny(unsafe_code)]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

pub mod all_states;
mod arena;
mod cast;
pub mod double;
pub mod errno;
pub mod hostile;
pub mod identity;
pub mod images;
pub mod interleave;
mod kernel;
pub mod kills;
mod linear;
pub mod operations;
pub mod options;
pub mod pass;
mod pipe_cast;
mod queue_cast;
pub mod report;
pub mod scene;
pub mod sleepers;
mod spsc_cast;
pub mod step;
pub mod stop;
pub mod toys;
pub mod trap;
