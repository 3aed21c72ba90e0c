//! Shared memory, locks and processes for programs that are more than one process: what Python's
//! `multiprocessing` has, for Rust, in memory that the processes have mapped.
//!
//! This page is a short book. Each program on it is run by the project's tests.
//!
//! 1. [Two processes, one number](#two-processes-one-number)
//! 2. [What can be shared](#what-can-be-shared)
//! 3. [Lost updates, and locks](#lost-updates-and-locks)
//! 4. [A process dies with the lock](#a-process-dies-with-the-lock)
//! 5. [Waiting for each other](#waiting-for-each-other)
//! 6. [Types of your own](#types-of-your-own)
//! 7. [Segments and names](#segments-and-names)
//! 8. [Processes](#processes)
//! 9. [Errors](#errors)
//! 10. [What it does not do](#what-it-does-not-do)
//!
//! # Two processes, one number
//!
//! ```
//! use crossproc::prelude::*;
//!
//! fn count((hits, times): (Value<u64>, u32)) {
//!     for _ in 0..times {
//!         hits.fetch_add(1);
//!     }
//! }
//!
//! let hits = Value::new(0_u64)?;
//! let first = Process::spawn(count, (hits.clone(), 1000))?;
//! let second = Process::spawn(count, (hits.clone(), 500))?;
//! first.join()?;
//! second.join()?;
//! assert_eq!(hits.get()?, 1500);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Process::spawn`] starts this same program again, as a new process that calls `count` and nothing else:
//! its `main` does not run, so it works from anywhere, also in tests. `hits` is a *handle* to memory that
//! both processes have mapped. Handles are cheap to clone, `Send` and `Sync`, and may stand anywhere in the
//! arguments or the result of a process. Everything else in the arguments is copied, with serde.
//!
//! # What can be shared
//!
//! | Handle | what is behind it |
//! |---|---|
//! | [`Value<T>`] | one value of any size. Readers never wait and never see half of one; one-word values are atomics |
//! | [`Array<T>`] | a fixed number of elements behind one lock |
//! | [`Mutex<T>`] | data behind a lock, changed in place |
//! | [`Lock`], [`RLock`] | a lock that guards what you say it guards |
//! | [`RwLock<T>`] | data that many read in place, or one changes |
//! | [`Semaphore`], [`BoundedSemaphore`], [`BinarySemaphore`] | permits, which come back when their holder dies |
//! | [`Event`], [`Condvar`], [`Barrier`], [`Once`] | [waiting for each other](#waiting-for-each-other) |
//! | [`Queue<T>`], [`JoinableQueue<T>`] | [messages](#queues) between any number of senders and receivers |
//! | [`ObjectQueue<T>`], [`BytesQueue`] | the same for messages of any size: what serde can carry, or bytes |
//! | [`RawValue<T>`], [`RawArray<T>`] | the same without a lock: relaxed atomics and nothing else |
//! | [`Segment`] | memory with a directory of any number of the above, by name |
//!
//! `T` is [`Plain`] data: integers, floats, arrays, and [your own structs and enums](#types-of-your-own). No
//! `String`, no `Vec`, no references: an address means nothing in another process.
//!
//! # Lost updates, and locks
//!
//! "Read, then write" is two steps, and what another process wrote in between is lost. There are three ways
//! out:
//!
//! ```
//! use crossproc::prelude::*;
//!
//! let balance = Value::new(100_i64)?;
//!
//! // One atomic step.
//! balance.fetch_add(20);
//! balance.update(|b| b - b / 10)?;
//!
//! // Several steps under the value's own lock, with a guard.
//! {
//!     let mut guard = balance.lock()?;
//!     let b = guard.get()?;
//!     guard.set(b * 2);
//! }
//!
//! // Several steps under a lock for everything, as Python has it.
//! let lock = Lock::new()?;
//! lock.acquire()?;
//! balance.set(balance.get()? + 1)?;
//! lock.release()?;
//! assert_eq!(balance.get()?, 217);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The guard of an [`Array`] or a [`Mutex`] gives the data itself, in place:
//!
//! ```
//! use crossproc::prelude::*;
//!
//! let levels = Array::from_slice(&[0.0, 100.0, 200.0])?;
//! for level in levels.lock()?.iter_mut() {
//!     *level += 1.0;
//! }
//! assert_eq!(levels.to_vec()?, [1.0, 101.0, 201.0]);
//! assert_eq!(levels.slice(1..)?, [101.0, 201.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every method that can wait has a `try_` form and forms with a limit: `lock_timeout(Duration)`,
//! `lock_deadline(Instant)`.
//!
//! # A process dies with the lock
//!
//! A process can be killed at any moment, also while it holds a lock. Then the next one gets the lock, at
//! once, with a mark: what it guards may be half-changed. Whoever gets it looks, repairs, and says so; until
//! then the mark stays.
//!
//! ```
//! use crossproc::prelude::*;
//! use std::time::Duration;
//!
//! let accounts = Mutex::new([600_u64, 400])?; // 1000 in all
//! let thief = Process::spawn(
//!     |accounts: Mutex<[u64; 2]>| {
//!         let mut accounts = accounts.lock().unwrap();
//!         accounts[0] -= 100;
//!         std::thread::sleep(Duration::from_secs(60));
//!         accounts[1] += 100;
//!     },
//!     accounts.clone(),
//! )?;
//! while accounts.holder().is_none() {
//!     std::thread::yield_now();
//! }
//! thief.kill()?;
//!
//! match accounts.lock() {
//!     Err(LockError::OwnerDied(mut guard)) => {
//!         guard[0] = 1000 - guard[1];
//!         guard.mark_consistent();
//!     }
//!     other => panic!("{other:?}"),
//! }
//! assert_eq!(*accounts.lock()?, [600, 400]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`with_repair`](Mutex::with_repair) is the short form. Where the mark is not handled, `?` hands on an
//! error that says what happened, and nobody hangs. A *panic* under a guard marks the data too
//! ([`LockError::Poisoned`]).
//!
//! # Waiting for each other
//!
//! ```
//! use crossproc::prelude::*;
//!
//! fn work((start, seats, all_there): (Event, Semaphore, Barrier)) {
//!     start.wait().expect("somebody is left to set it");
//!     let _seat = seats.acquire().expect("a permit"); // two work at a time
//!     drop(_seat);
//!     all_there.wait().expect("nobody died");
//! }
//!
//! let (start, seats, all_there) = (Event::new()?, Semaphore::new(2)?, Barrier::new(3)?);
//! let workers: Vec<_> = (0..3)
//!     .map(|_| Process::spawn(work, (start.clone(), seats.clone(), all_there.clone())))
//!     .collect::<Result<_, _>>()?;
//! drop(all_there); // who has a handle to a barrier is taken for a party
//! start.set()?;
//! for worker in workers {
//!     worker.join()?;
//! }
//! assert_eq!(seats.available(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nobody waits for the dead. Whoever sleeps is woken when any process that is attached to the segment dies, and what
//! the death means depends on what is waited for:
//!
//! | Waiting for | what a death means |
//! |---|---|
//! | [`Lock`], [`RLock`], [`Mutex`], [`RwLock`] | the holder died: the next one has it, and is told `OwnerDied` (readers of an `RwLock` that die change nothing) |
//! | [`Semaphore`] and its kin | the permits of the dead are free again |
//! | [`Barrier`] | a party died: all get [`BrokenBy::PartyDied`], until somebody resets it |
//! | [`Once`] | the initialiser died: the next one initialises |
//! | [`Event`], [`Condvar`], [`Value::wait_while`] | nothing while anybody is left; `PeerDied` when all others are gone |
//!
//! # Queues
//!
//! ```
//! use crossproc::prelude::*;
//!
//! fn work((jobs, results): (Queue<u64>, Queue<u64>)) {
//!     for n in jobs.iter() { // until it is closed and empty
//!         results.send(n * n).expect("somebody receives");
//!     }
//! }
//!
//! let (jobs, results) = (Queue::new(8)?, Queue::new(100)?);
//! let workers = [
//!     Process::spawn(work, (jobs.clone(), results.clone()))?,
//!     Process::spawn(work, (jobs.clone(), results.clone()))?,
//! ];
//! for n in 1..=10 {
//!     jobs.send(n)?;
//! }
//! jobs.close()?;
//! for worker in workers {
//!     worker.join()?;
//! }
//! assert_eq!(results.try_iter().sum::<u64>(), 385);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A process that is killed or stopped at any instruction keeps nobody else from sending and receiving. What it was going to send
//! and had not sent is not there; what it had received with [`recv_ref`](Queue::recv_ref) and not dropped is received once
//! more, by another, who is told ([`Message::deliveries`]). [`loan`](Queue::loan) and `recv_ref` work in place: what a message
//! costs does not depend on its size. A [`JoinableQueue`] waits until all tasks have been done, by whomever.
//!
//! Texts, vectors, maps and whatever else serde can carry go through an [`ObjectQueue`], each as long as it likes:
//!
//! ```
//! use crossproc::prelude::*;
//!
//! let lists = ObjectQueue::new(8)?;
//! lists.send(vec!["a text".to_owned(), "x".repeat(500_000)])?;
//! assert_eq!(lists.recv()?.concat().len(), 500_006);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Types of your own
//!
//! Derive [`Plain`] for a `#[repr(C)]` struct, or for an enum without fields:
//!
//! ```
//! use crossproc::prelude::*;
//!
//! #[derive(Clone, Copy, Debug, PartialEq, Plain)]
//! #[repr(u8)]
//! enum Side {
//!     Buy,
//!     Sell,
//! }
//!
//! #[derive(Clone, Copy, Debug, PartialEq, Plain)]
//! #[plain(checked)] // `side` has bit patterns that are no `Side`: they are looked for at each reading
//! #[repr(C)]
//! struct Order {
//!     id: u64,
//!     price: u32,
//!     side: Side,
//!     tag: [u8; 3],
//! }
//!
//! let first = Order { id: 1, price: 995, side: Side::Sell, tag: *b"abc" };
//! let last = Value::new(first)?;
//! last.update(|order| Order { id: order.id + 1, side: Side::Buy, ..order })?;
//! assert_eq!(last.get()?, Order { id: 2, side: Side::Buy, ..first });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A struct with gaps between its fields does not compile, because what is in a gap would be handed to a
//! stranger:
//!
//! ```compile_fail
//! use crossproc::prelude::*;
//!
//! #[derive(Clone, Copy, Plain)]
//! #[repr(C)]
//! struct Order {
//!     price: u32, // four bytes of nothing would follow
//!     id: u64,
//! }
//! ```
//!
//! A `checked` type can stand in a [`Value`] and an [`Array`], which copy and check. `&mut` into shared
//! memory (a [`Mutex`], the guard of an `Array`) is for types for which every bit pattern is a value. What is
//! [`Plain`] in detail: see there.
//!
//! # Segments and names
//!
//! `Value::new` and its like make a small segment for one object. A [`Segment`] of your own holds many, by
//! name, and can have a name itself, by which any process of the same user finds it, also one that was not
//! started by this one:
//!
//! ```
//! use crossproc::prelude::*;
//!
//! let name = format!("book-{}", std::process::id());
//! let segment = Segment::create(&name, 64 * 1024)?;
//! let hits = segment.value("hits", 0_u64)?;
//! let levels = segment.array("levels", &[0.0; 8])?;
//!
//! // In another program:
//! let hits_there = Segment::open(&name)?.value("hits", 0_u64)?;
//! hits_there.fetch_add(1);
//!
//! assert_eq!(hits.get()?, 1);
//! assert_eq!(levels.len(), 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The type is compared when an object is opened: a program with another idea of it gets an error that names
//! the field, not garbage. The name goes with the last process that uses it (if all were killed: with the
//! next one that comes by); [`Unlink`] has other policies, [`SegmentOptions`] the rest: mode, owner, huge
//! pages, read-only. [`Segment::file`] is for data that outlives its programs.
//!
//! # Processes
//!
//! ```
//! use crossproc::prelude::*;
//! use crossproc::{ExitStatus, JoinError};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Job {
//!     title: String,
//!     numbers: Vec<u64>,
//!     progress: Value<u32>,
//! }
//!
//! fn work(job: Job) -> Option<u64> {
//!     job.numbers.iter().inspect(|_| drop(job.progress.fetch_add(1))).copied().max()
//! }
//!
//! // What it returns comes back, typed.
//! let progress = Value::new(0_u32)?;
//! let job = Job { title: "largest".to_owned(), numbers: vec![3, 1, 4], progress: progress.clone() };
//! assert_eq!(Process::builder().name("largest").spawn(work, job)?.join()?, Some(4));
//! assert_eq!(progress.get()?, 3);
//!
//! // So does a panic, and whatever else ended it.
//! let error = Process::spawn(|n: u32| assert_eq!(n, 1, "not one"), 2)?.join().unwrap_err();
//! assert!(matches!(error, JoinError::Panicked { message, .. } if message.contains("not one")));
//! let sleeper = Process::spawn(|()| std::thread::sleep(std::time::Duration::from_secs(60)), ())?;
//! sleeper.kill()?;
//! assert_eq!(sleeper.wait(), ExitStatus::Signal(9));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Functions are plain functions or closures that capture nothing. [`available_parallelism`] says how many to
//! start; [`process::current`] and [`process::parent`] say who one is.
//!
//! # Errors
//!
//! What a program branches on is a small enum: [`LockError`] (which has the guard inside where there is one),
//! [`AccessError`], [`JoinError`], [`ExitStatus`]. What people read is [`Error`] (memory) and
//! [`ProcessError`] (starting processes): a sentence that says what was being done to which name and what to
//! do about it, and a [`kind`](Error::kind).
//!
//! ```
//! use crossproc::prelude::*;
//! use crossproc::ErrorKind;
//!
//! let error = Segment::open("no-such-name").unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::NotFound);
//! println!("{error}");
//! ```
//!
//! # What it does not do
//!
//! * Linux only (5.10 or later; 64 bit). Processes of one PID namespace.
//! * A peer is trusted to have been given the segment on purpose. It is not trusted to be alive, to be of the
//!   same version or to be correct: what is copied out of shared memory is checked. Guards that give `&mut`
//!   also trust that no peer writes without the lock.
//! * A process that is *stopped* keeps its locks: only the dead lose them. Use the timed forms where that
//!   matters.
//! * Threads: use [`std::thread`] and rayon. The handles work between threads too.
//!
//! # Features
//!
//! None is on by default.
//!
//! * `shared_memory`: `Segment::from_shmem`, for programs whose memory is mapped by the crate of that name.
//!
//! # Where things are
//!
//! This crate has no code of its own: it is the front door of three others, which can also be used alone.
//! Memory is `crossproc-segment` (all of it is in [`segment`]), what lives in it is `crossproc-primitives`,
//! processes are `crossproc-process` (all of it is in [`process`]). [`prelude`] has what most programs need.
//! Longer programs are in the folder `examples`; `crossproc tour`, of the package `crossproc-cli`, runs such
//! programs and says whether what came out is right.
#![forbid(unsafe_code)]

pub mod prelude;

/// Processes: all of `crossproc-process`.
pub mod process {
    #[doc(inline)]
    pub use crossproc_process::*;
}

/// Pools of workers: all of `crossproc-pool`.
pub mod pool {
    #[doc(inline)]
    pub use crossproc_pool::*;
}

/// Memory: what a user of segments needs. Who makes further primitives depends on `crossproc-segment` itself: placing
/// words in memory that others guard is at one's own risk.
pub mod segment {
    #[doc(inline)]
    pub use crossproc_segment::{
        Error, ErrorKind, Granted, Numa, ObjectInfo, ObjectKind, Participant, Segment, SegmentOptions,
        Unlink, handover, plain,
    };
}

#[doc(inline)]
pub use crossproc_primitives::{
    AccessError, Array, ArrayGuard, Barrier, BarrierError, BarrierTurn, BinarySemaphore, BoundedSemaphore,
    BrokenBy, BytesLoan, BytesMessage, BytesQueue, BytesQueueOptions, Condvar, CondvarError, CondvarGuard,
    Event, Guard, JoinError as QueueJoinError, JoinableQueue, Loan, Lock, LockError, LockGuard, Message,
    Miscoded, Mutex, MutexGuard, NotHeld, NotifyError, Number, ObjectMessage, ObjectQueue, Objects, Once,
    OnceError, OnceState, Permit, Queue, QueueOptions, RLock, RLockGuard, RawArray, RawValue, RecvError,
    ReleaseError, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphoreError, SendError,
    SharedObjectQueue, SharedQueue, Task, Unfit, Unusable, Value, ValueGuard, Violation, WaitError,
};

#[cfg(any(feature = "async-io", feature = "tokio"))]
#[doc(inline)]
pub use crossproc_primitives::AsyncConnection;
#[doc(inline)]
pub use crossproc_primitives::{Fd, Readiness, Waitable, wait_any};

#[doc(inline)]
pub use crossproc_primitives::{Call, CallError, Connection, Pipe, PipeOptions, Request, pipe};

/// A queue with one producer and one consumer.
#[doc(inline)]
pub use crossproc_primitives::spsc;

/// Connections between programs that know nothing of each other.
#[doc(inline)]
pub use crossproc_primitives::listener;

#[doc(inline)]
pub use crossproc_pool::{OnWorkerDeath, Pool, PoolError, TaskError};

#[doc(inline)]
pub use crossproc_process::{
    ActiveChild, Error as ProcessError, ErrorKind as ProcessErrorKind, ExitStatus, Fork, ForkServer, Handed,
    JoinError, Process, StartMethod, Stdio, active_children, available_parallelism, register,
};

#[doc(inline)]
pub use crossproc_segment::{Error, ErrorKind, Numa, Segment, SegmentOptions, Unlink};

// The trait and the macro that derives it, under one name as in serde.
#[doc(inline)]
pub use crossproc_derive::Plain;
#[doc(inline)]
pub use crossproc_segment::plain::Plain;

#[doc(hidden)]
pub use crossproc_segment::__private;

/// The program in the README is compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
