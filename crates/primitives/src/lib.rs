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
mod cells;
mod handle;
mod lock;
mod mutex;
mod number;
mod objects;
mod rlock;
mod value;

pub use access::AccessError;
pub use array::{Array, ArrayGuard, RawArray};
pub use lock::{Guard, Lock, LockError, LockGuard, NotHeld};
pub use mutex::{Mutex, MutexGuard};
pub use number::Number;
pub use objects::Objects;
pub use rlock::{RLock, RLockGuard};
pub use value::{RawValue, Value, ValueGuard};
