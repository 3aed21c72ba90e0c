//! What stops a part of the tour, as a sentence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A sentence for people. It can be the result of a process: errors themselves can not travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure(String);

impl Failure {
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! sentences {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        }
    )*};
}

sentences!(
    crossproc::AccessError,
    crossproc::BarrierError,
    crossproc::Error,
    crossproc::JoinError,
    crossproc::NotHeld,
    crossproc::PoolError,
    crossproc::ProcessError,
    crossproc::QueueJoinError,
    crossproc::RecvError,
    crossproc::SemaphoreError,
    crossproc::TaskError,
    crossproc::Unusable,
    crossproc::WaitError,
    crossproc::pipe::RecvError,
    crossproc::pipe::SendError,
    std::io::Error
);

impl<G> From<crossproc::LockError<G>> for Failure {
    fn from(error: crossproc::LockError<G>) -> Self {
        Self(error.to_string())
    }
}

impl<T> From<crossproc::SendError<T>> for Failure {
    fn from(error: crossproc::SendError<T>) -> Self {
        Self(error.to_string())
    }
}
