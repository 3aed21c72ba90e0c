//! Memory shared by processes: mapped, named, validated.
//!
//! A [`Segment`] is memory that several processes have mapped, with a table of who takes part in it
//! ([`Participants`]) and a directory of named objects. It knows no algorithm: what an object's bytes mean is
//! the business of the crates above.
//!
//! ```text
//!  page 0    header: what this is, whose, how large, where the parts lie     header.rs
//!            participants: who is attached, and the proof that one died      participant.rs, helper.rs
//!            directory: objects by name                                      directory.rs
//!            objects
//!            windows: pages of objects that come and go                     windows.rs
//! ```
//!
//! Everything in a segment can have been written by anybody: another version of this crate, another program,
//! a process that runs wild. So nothing that is read from it is believed. Numbers are copied into private
//! memory once, checked there, and become addresses in one place (`place.rs`).
//!
//! Read first: [`Segment`], then `header.rs`, `names.rs` and `directory.rs`, whose first lines have the maps.
//!
//! What it does not do: it can not stop a process that may write to a *named* or *file* segment from
//! truncating it under us (anonymous segments are sealed), it frees no single object (a segment is what is
//! freed), and it does not connect processes of different PID namespaces.
#![deny(unsafe_code)]

mod adopt;
mod attach;
mod backing;
#[cfg(test)]
mod corruption;
mod directory;
mod error;
pub mod handover;
mod header;
mod helper;
mod lock;
mod map;
mod memory;
mod names;
mod options;
mod participant;
mod per_process;
mod place;
pub mod plain;
mod registry;
mod segment;
mod sent;
mod windows;

pub use directory::{Object, ObjectInfo, ObjectKind, ObjectSpec};
pub use error::{Error, ErrorKind};
pub use header::Unlink;
pub use helper::start_quiet_thread;
pub use map::{Mapping, PREFIX_BYTES};
pub use options::{Granted, Numa, SegmentOptions};
pub use participant::{Participant, Participants, Peers, SLOT_BYTES};
pub use per_process::PerProcess;
pub use place::{Payload, Placed, PlacedSlice, Span};
pub use segment::Segment;

/// What the code that `#[derive(Plain)]` makes refers to.
#[doc(hidden)]
pub mod __private {
    pub use crate::plain::{AnyBits, Field, Layout, Plain, PlainBits, Variant};
    pub use bytemuck;
}
