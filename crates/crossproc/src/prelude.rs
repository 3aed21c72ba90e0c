//! What most programs need: `use crossproc::prelude::*;`
//!
//! The types, and the two traits whose methods are called on them: [`Objects`] (`segment.value("name", ..)`)
//! and [`Guard`] (`guard.mark_consistent()`). Errors are not in it, except the one that carries a guard.

#[doc(no_inline)]
pub use crate::{
    Array, Barrier, BinarySemaphore, BoundedSemaphore, BytesQueue, BytesQueueOptions, Call, Condvar,
    Connection, Event, Guard, JoinableQueue, Lock, LockError, Mutex, ObjectQueue, Objects, Once, Pipe, Plain,
    Pool, Process, Queue, QueueOptions, RLock, RawArray, RawValue, RwLock, Segment, Semaphore, Value,
};
