//! What can go wrong, in sentences.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::ExitStatus;
use crate::wire::{self, Fault};

/// Why a process could not be started, or an operation on it failed.
///
/// Branch on [`kind`](Self::kind), show the error itself to people: it says what was being done to which
/// process and what to do about it. [`source`](std::error::Error::source) is the error underneath, if there
/// is one.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The process would be the [`MAX_DEPTH`](crate::MAX_DEPTH)th in a chain in which each started the next.
    TooDeep,
    /// The start-up code of this crate has not run in this process, so it would not run in a child either; or
    /// the program has privileges that its caller does not have (set-user-id).
    NotInitialised,
    /// The function is in a shared library, which the executable need not have when it is started again.
    OutsideExecutable,
    /// The name for the process is too long or contains a 0 byte; or an environment variable has a name that is
    /// empty or contains `=` or a 0 byte, or a value that contains a 0 byte.
    InvalidName,
    /// The start method can not do what the builder asks for, such as another executable for a fork; or there is
    /// no such start method here: a fork server needs glibc.
    Unsupported,
    /// This process has several threads, so it is not forked: a copy has one thread only, and what the others
    /// had locked stays locked in it.
    Threads,
    /// The fork server can not serve: its preload function panicked, something in it has started a thread, it
    /// belongs to another process, or it was killed again and again.
    ForkServer,
    /// The executable could not be started, or the directory for it is not there.
    CannotStart,
    /// The process ended before it ran its function: it is another program, or it crashed on the way.
    EndedEarly,
    /// The process did not come to its function in time, and was killed.
    TimedOut,
    /// The process is another build of this program, or another program: only named functions can be run in
    /// it.
    WrongBuild,
    /// The process has another, incompatible version of this crate.
    WrongVersion,
    /// No function has been registered under the name in that program, or more than one.
    NoSuchFunction,
    /// The function registered under the name takes or returns other types.
    WrongTypes,
    /// The arguments could not be serialised or deserialised.
    Arguments,
    /// The result could not be serialised or deserialised.
    Result,
    /// This process is a copy, made by `fork`, of the one that started the process: only that one can signal it
    /// and have its result.
    NotParent,
    /// A limit on open files was reached, here or in the child.
    TooManyFiles,
    /// The kernel refused an operation; the source says why.
    System,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// A failed system call while doing `what`.
    pub(crate) fn system(what: &str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        if is_out_of_files(&error) {
            let message = format!(
                "{what}: no more open files are possible; close some, or raise the limit (`ulimit -n`)"
            );
            Self::with_source(ErrorKind::TooManyFiles, message, error)
        } else {
            Self::with_source(ErrorKind::System, format!("{what}: {error}"), error)
        }
    }

    /// Nothing can be received from a child any more.
    pub(crate) fn from_fault(what: &str, fault: Fault) -> Self {
        match fault {
            Fault::System(error) => Self::system(&format!("{what}: receiving from it"), error),
            Fault::TooManyFiles => Self::system(&format!("{what}: receiving from it"), Errno::MFILE),
            Fault::Garbled => Self::new(
                ErrorKind::WrongVersion,
                format!(
                    "{what}: what it sent is not understood; it is not crossproc that it runs, or a broken one"
                ),
            ),
            Fault::Version(version) => Self::new(
                ErrorKind::WrongVersion,
                format!(
                    "{what}: it has another version of crossproc (its protocol is {version}, ours {}); build both \
                     programs with the same",
                    wire::VERSION,
                ),
            ),
        }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

/// The process, the machine or the user's account for descriptors in flight (ETOOMANYREFS) is full.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::TOOMANYREFS))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Why [`Process::join`](crate::Process::join) has no result.
#[derive(Debug)]
pub enum JoinError {
    /// The function panicked.
    Panicked {
        /// What the panic said.
        message: String,
        /// Where, as `file:line:column`, if the panic hook of the process told.
        location: Option<String>,
    },
    /// The process ended before its function returned: it was killed, it crashed, or it called `exit`.
    Exited(ExitStatus),
    /// The function returned, but what it returned could not be serialised there or deserialised here.
    Decode(Error),
    /// The result could not be received.
    Io(Error),
    /// The result has been taken by an earlier call.
    Taken,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { message, location: Some(location) } => {
                write!(f, "the process panicked at {location}: {message}")
            }
            Self::Panicked { message, location: None } => write!(f, "the process panicked: {message}"),
            Self::Exited(ExitStatus::Signal(signal)) => {
                write!(
                    f,
                    "the process was ended by {} before its function returned",
                    ExitStatus::Signal(*signal)
                )
            }
            Self::Exited(status) => write!(f, "the process ended with {status} before its function returned"),
            Self::Decode(error) | Self::Io(error) => error.fmt(f),
            Self::Taken => f.write_str("the result of the process has been taken by an earlier call of join"),
        }
    }
}

impl std::error::Error for JoinError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Displayed as this error itself, so its own source is the next one.
            Self::Decode(error) | Self::Io(error) => error.source(),
            _ => None,
        }
    }
}
