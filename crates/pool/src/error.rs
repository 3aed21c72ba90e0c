//! What can go wrong with a pool, and with one of its tasks.

use std::fmt;

use crossproc_process::ExitStatus;

/// Why a pool was not made, takes no tasks, or has given up those it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// A worker could not be started, or no memory be had; says why.
    CannotStart(String),
    /// The initializer of a worker failed; says how. It would fail in the next worker too, so none is started.
    Initializer(String),
    /// Worker after worker died before it could take a task; says how the last one did.
    WorkersDie(String),
    /// A worker died, and the pool was made with [`OnWorkerDeath::FailPool`](crate::OnWorkerDeath::FailPool).
    WorkerDied {
        /// Its process id.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
    },
    /// The function is not part of this program's executable but of a shared library, which a worker need not have.
    Function(String),
    /// The pool was closed: it finishes what it has, and takes no more.
    Closed,
    /// The pool was terminated, or dropped.
    Terminated,
    /// It can be joined only after `close` or `terminate`.
    StillOpen,
    /// The call was made by code that runs in a thread of the pool (a waker), which would wait for itself.
    WouldDeadlock,
    /// This process is a copy (`fork`) of the one that made the pool.
    NotParent,
    /// The memory that the pool shares with its workers is damaged.
    Damaged(String),
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotStart(why) => write!(f, "the pool can not start its workers: {why}"),
            Self::Initializer(why) => write!(f, "the initializer of the pool's workers failed: {why}"),
            Self::WorkersDie(how) => write!(
                f,
                "the workers of the pool die before they take a task, the last one by {how}; look at what the initializer does, and at \
                 constructors of the program"
            ),
            Self::WorkerDied { pid, status } => {
                write!(f, "worker {pid} died ({status}), and the pool is one that ends then; make a new one")
            }
            Self::Function(why) => f.write_str(why),
            Self::Closed => f.write_str("the pool was closed and takes no more tasks; make a new one"),
            Self::Terminated => f.write_str("the pool was terminated"),
            Self::StillOpen => {
                f.write_str("the pool still takes tasks; call `close` or `terminate` before `join`")
            }
            Self::WouldDeadlock => f.write_str(
                "this thread is one of the pool's own, which `join` would wait for; call it from another thread, not from a waker",
            ),
            Self::NotParent => {
                f.write_str("the pool belongs to the process of which this one is a copy (`fork`); make a pool here")
            }
            Self::Damaged(how) => write!(f, "the memory of the pool is damaged: {how}; make a new one"),
        }
    }
}

impl std::error::Error for PoolError {}

/// Why a task has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskError {
    /// The function panicked.
    Panicked {
        /// What the panic said.
        message: String,
        /// Where, as `file:line:column`, if the panic hook of the worker told.
        location: Option<String>,
    },
    /// The worker died while it had the task: it was killed, crashed, or the task called `exit`.
    WorkerDied {
        /// Its process id; the last one's if the task was tried more than once. 0 if it died while it was started.
        pid: u32,
        /// How it ended.
        status: ExitStatus,
        /// How often the task was begun.
        attempts: u32,
    },
    /// It was cancelled before it was begun.
    Cancelled,
    /// The argument can not be serialised here, deserialised in the worker, or is too long; says why.
    Argument(String),
    /// The result can not be serialised in the worker, deserialised here, or is too long; says why.
    Result(String),
    /// The pool did not take the task, or ended before it was done.
    Pool(PoolError),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { message, location: Some(location) } => {
                write!(f, "the task panicked at {location}: {message}")
            }
            Self::Panicked { message, location: None } => write!(f, "the task panicked: {message}"),
            Self::WorkerDied { pid, status, attempts: 1 } => {
                write!(f, "worker {pid}, which had the task, died: {status}")
            }
            Self::WorkerDied { pid, status, attempts } => {
                write!(f, "{attempts} workers died of the task, the last one, {pid}, by {status}")
            }
            Self::Cancelled => f.write_str("the task was cancelled before it was begun"),
            Self::Argument(why) | Self::Result(why) => f.write_str(why),
            Self::Pool(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TaskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

impl From<PoolError> for TaskError {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}
