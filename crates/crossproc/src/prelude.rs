//! What most programs need: `use crossproc::prelude::*;`
//!
//! The types, and the two traits whose methods are called on them: [`Objects`] (`segment.value("name", ..)`)
//! and [`Guard`] (`guard.mark_consistent()`). Errors are not in it, except the one that carries a guard.

#[doc(no_inline)]
pub use crate::{
    Array, Barrier, BinarySemaphore, BoundedSemaphore, Condvar, Event, Guard, Lock, LockError, Mutex,
    Objects, Once, Plain, Process, RLock, RawArray, RawValue, RwLock, Segment, Semaphore, Value,
};
