//! Values, arrays and locks in memory that processes share.
//!
//! | Type | what it is |
//! |---|---|
//! | [`Value<T>`] | one value: readers never block, writers are never torn, a killed writer leaves the old value |
//! | [`RawValue<T>`] | one value without a lock: plain relaxed atomics |
//! | [`Array<T>`] | a fixed number of elements behind one lock |
//! | [`RawArray<T>`] | a fixed number of elements without a lock |
//! | [`Lock`], [`RLock`] | Python's `Lock` and `RLock`, robust |
//! | [`Mutex<T>`] | a lock with data behind it |
//! | [`RwLock<T>`] | the same for many readers or one writer |
//! | [`Condvar`] | Python's `Condition`: wait with a lock until somebody notifies |
//! | [`Event`] | Python's: a flag to wait for |
//! | [`Barrier`] | Python's: all wait until all have come; broken when a party dies |
//! | [`Semaphore`], [`BoundedSemaphore`] | Python's, with permits that come back when their holder dies |
//! | [`BinarySemaphore`] | a lock without an owner: anybody may release it |
//! | [`Queue<T>`] | messages between any number of senders and receivers, first in, first out |
//! | [`JoinableQueue<T>`] | a queue of tasks: wait until all have been done; those of the dead come back |
//! | [`BytesQueue`] | the same for bytes, each message as long as it likes |
//! | [`ObjectQueue<T>`] | the same for anything that serde can carry |
//! | [`Pipe`], [`Connection`] | Python's: messages of any length between two ends, in one or both directions |
//! | [`Call`] | a request and its reply, for plain data: half the round trip of two queues |
//! | [`Once`] | something that is done in one of all processes |
//! | [`spsc`] | a queue with one producer and one consumer |
//!
//! Each can be made alone, in a small anonymous segment of its own (`Value::new`), or by name in a segment that
//! several objects share (`segment.value("name", ..)`, see [`Objects`]). All of them are handles: cheap to clone,
//! `Send` and `Sync`, and they can be handed to a child process as an argument.
//!
//! *Robust*: when a process is killed while it holds a lock, the next one to lock it gets it at once, marked
//! ([`LockError::OwnerDied`]), with the data still reachable.
//!
//! What it does not do: start processes (`crossproc-process`), or protect against a peer that writes where it
//! should not while a guard is held. Copying accessors validate what they read; guards that give `&mut T` trust
//! that peers keep to the protocol.
//!
//! ```
//! use crossproc_primitives::{Mutex, Value};
//!
//! let hits = Value::new(0_u64)?;
//! hits.fetch_add(1);
//! assert_eq!(hits.get()?, 1);
//!
//! let pair = Mutex::new([1_u32, 2])?;
//! pair.lock()?.swap(0, 1);
//! assert_eq!(*pair.lock()?, [2, 1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod access;
mod array;
mod audit;
mod barrier;
mod block_cells;
mod byte_cells;
mod bytes_queue;
mod call;
mod cells;
mod condvar;
mod event;
mod handle;
mod joinable_queue;
pub mod listener;
mod lock;
mod mutex;
mod number;
mod object_queue;
mod objects;
mod once;
pub mod pipe;
mod queue;
mod readiness;
mod ring_handle;
mod rlock;
mod rwlock;
mod semaphore;
mod shared_handles;
mod shared_queue;
mod slab;
mod spin;
pub mod spsc;
mod transfer;
mod value;

pub use access::AccessError;
pub use array::{Array, ArrayGuard, RawArray};
pub use audit::Violation;
pub use barrier::{Barrier, BarrierError, BarrierTurn};
pub use bytes_queue::{BytesLoan, BytesMessage, BytesQueue, BytesQueueOptions};
pub use call::{Call, CallError, Request};
pub use condvar::{Condvar, CondvarError, CondvarGuard, NotifyError};
pub use crossproc_sync::BrokenBy;
pub use event::{Event, WaitError};
pub use joinable_queue::{JoinError, JoinableQueue, Task};
pub use lock::{Guard, Lock, LockError, LockGuard, NotHeld};
pub use mutex::{Mutex, MutexGuard};
pub use number::Number;
pub use object_queue::{ObjectMessage, ObjectQueue};
pub use objects::Objects;
pub use once::{Once, OnceError, OnceState};
pub use pipe::{Connection, Pipe, PipeOptions};
pub use queue::{Loan, Message, Queue, QueueOptions};
#[cfg(any(feature = "async-io", feature = "tokio"))]
pub use readiness::AsyncConnection;
pub use readiness::{Fd, Readiness, WaitTarget, Waitable, wait_any};
pub use rlock::{RLock, RLockGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use semaphore::{BinarySemaphore, BoundedSemaphore, Permit, ReleaseError, Semaphore, SemaphoreError};
pub use shared_queue::{SharedObjectQueue, SharedQueue};
pub use transfer::{Miscoded, RecvError, SendError, Unfit, Unusable};
pub use value::{RawValue, Value, ValueGuard};
