//! Start processes that run functions of this program.
//!
//! ```
//! use crossproc_process::Process;
//!
//! fn sum(numbers: Vec<u64>) -> u64 {
//!     numbers.iter().sum()
//! }
//!
//! let halves = [vec![1, 2, 3], vec![4, 5, 6]].map(|half| Process::spawn(sum, half));
//! let mut total = 0;
//! for half in halves {
//!     total += half?.join()?;
//! }
//! assert_eq!(total, 21);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What happens
//!
//! [`Process::spawn`] starts the executable of the running program once more. Before `main`, a constructor of
//! this crate finds that the process is a child, receives the function and its arguments over a socket, calls
//! it, sends the result back and exits. So there is nothing to put into `main`, and it works in tests,
//! benches, examples and doc tests alike. What follows from it:
//!
//! * **`main` does not run in a child**, nor what it sets up (logging, panic hooks, signal handlers).
//!   Constructors do run.
//! * The function runs on the main thread. A stack overflow there ends the process with SIGSEGV, without the
//!   message that std prints otherwise.
//! * Nothing is inherited but the environment, the standard streams, and descriptors that somebody made
//!   inheritable on purpose. Everything else is handed over in the arguments.
//! * A panic is caught and reaches the parent as [`JoinError::Panicked`] with its message, also in programs
//!   that abort on panic.
//! * A function that starts itself in a process, and so on, ends with [`ErrorKind::TooDeep`] at depth
//!   [`MAX_DEPTH`].
//! * A process that dies, hangs or is another program is an error, in bounded time.
//!
//! # Limits
//!
//! Linux 5.4 or later, 64 bit, with /proc. `/proc/self/exe` has to be the program: not so under valgrind and
//! user-mode qemu, and in a library that another program has loaded (a Python extension); there, register
//! functions by name and give the [`executable`](Builder::executable). Programs with more privileges than
//! their caller (set-user-id) can neither be children nor start any. Function and arguments are never in the
//! environment or on the command line.
//!
//! # Where things are
//!
//! `builder.rs` and `process.rs` are what users see. `spawn.rs` is the start method (there will be others),
//! `wire.rs` the messages, `hook.rs`, `child.rs` and `call.rs` the other side, `entry.rs` and `named.rs` the
//! two ways to name a function. Unsafe code is in `hook.rs`, `entry.rs` and `linux.rs` only.
#![deny(unsafe_code)]

mod builder;
mod call;
mod child;
mod cpus;
mod current;
mod entry;
mod error;
mod hook;
mod image;
mod linux;
mod named;
mod poll;
mod process;
mod spawn;
mod status;
mod stdio;
mod wire;

pub use builder::Builder;
pub use cpus::available_parallelism;
pub use crossproc_segment::handover::Handed;
pub use current::{Current, MAX_DEPTH, Parent, current, parent};
pub use error::{Error, ErrorKind, JoinError};
#[doc(hidden)]
pub use named::register_function;
pub use process::Process;
pub use status::ExitStatus;
pub use stdio::Stdio;
