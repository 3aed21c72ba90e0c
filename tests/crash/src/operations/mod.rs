//! All operations of the library that change shared memory, each in the states that make a difference.
//!
//! An operation is one entry: how its objects are found, what happened before, what the victim does between the markers, what
//! the first survivor does in a double crash, and what a survivor must find. `tests/table.rs` compares the names with
//! the public functions of the library.

mod arrays;
mod bytes;
mod call;
mod handover;
mod locks;
mod meetings;
mod pipe;
mod queues;
mod rwlocks;
mod segments;
mod semaphores;
mod spsc;
mod values;

use crate::scene::Operation;

/// The whole table, without the planted bugs.
#[must_use]
pub fn all() -> Vec<Operation> {
    let mut table = Vec::new();
    locks::add(&mut table);
    values::add(&mut table);
    arrays::add(&mut table);
    semaphores::add(&mut table);
    rwlocks::add(&mut table);
    meetings::add(&mut table);
    queues::add(&mut table);
    bytes::add(&mut table);
    spsc::add(&mut table);
    pipe::add(&mut table);
    handover::add(&mut table);
    call::add(&mut table);
    segments::add(&mut table);
    table
}
