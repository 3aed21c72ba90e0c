//! Lock-free exchange of data between processes, on borrowed words.
//!
//! Today: [`Latest`], the newest value of one writer for any number of readers that never block. The SPSC and
//! MPMC rings come next. Nothing here knows where its words live, maps memory or makes a system call.
//!
//! Read first: `latest.rs`.
#![no_std]
#![forbid(unsafe_code)]

mod latest;

pub use latest::{Latest, Unsteady};
