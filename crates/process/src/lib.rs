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
//! By default ([`StartMethod::Spawn`]), [`Process::spawn`] starts the executable of the running program once more. Before `main`, a constructor of
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
//! # Other ways to start
//!
//! [`StartMethod`] has two more: a process can be a copy of a small [fork server](ForkServer), which is several
//! times cheaper, or a copy of this process ([`Fork`]). One chooses for each [`Builder`], or has a value that
//! stands for the method and starts everything through it.
//!
//! # Children and parents
//!
//! A process goes on when its parent ends, unless it is a [daemon](Builder::daemon), and when its
//! [`Process`] is dropped, unless that [kills](Builder::kill_on_drop). [`active_children`], [`current`] and
//! [`parent`] say who there is.
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
//! `builder.rs` and `process.rs` are what users see. `start.rs` is what all start methods share; they are in
//! `spawn.rs`, `fork_server.rs` and `copies.rs`. `wire.rs` has the messages, `hook.rs`, `child.rs`, `manner.rs`
//! and `call.rs` the other side, `entry.rs`, `portable.rs` and `named.rs` the ways to name a function,
//! `children.rs` who has been started. Unsafe code is in `copies.rs`, `hook.rs`, `entry.rs` and `linux.rs` only.
#![deny(unsafe_code)]

mod builder;
mod call;
mod child;
mod children;
mod copies;
mod cpus;
mod current;
mod entry;
mod environment;
mod error;
mod fork_server;
mod hook;
mod image;
mod linux;
mod manner;
mod named;
mod poll;
#[doc(hidden)]
pub mod portable;
mod process;
mod spawn;
mod start;
mod start_method;
mod status;
mod stdio;
mod wire;

pub use builder::Builder;
pub use children::{ActiveChild, active_children};
pub use copies::Fork;
pub use cpus::available_parallelism;
pub use crossproc_segment::handover::Handed;
pub use current::{Current, MAX_DEPTH, Parent, current, parent};
pub use error::{Error, ErrorKind, JoinError};
pub use fork_server::ForkServer;
#[doc(hidden)]
pub use named::register_function;
pub use process::Process;
pub use start_method::StartMethod;
pub use status::ExitStatus;
pub use stdio::Stdio;
