//! How sending and receiving through a pipe can fail.

use std::io;

use crate::transfer::Miscoded;

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no room now, or another writer is at work for more than a moment (`try_` forms): in a long message, or stopped. Or as many
    /// handles are on their way as the kernel allows.
    Full,
    /// It was not sent until the deadline. Nobody receives a part of it.
    TimedOut,
    /// All handles of the receiving end were dropped.
    Closed,
    /// The processes that had the receiving end have died.
    PeerDied,
    /// The message is longer than a message of this pipe can be.
    TooLong {
        /// Bytes of a message at the most.
        most: usize,
    },
    /// So long a message goes in parts, with waiting between them: not by a `try_` form, and not through `reserve`.
    NotAtOnce {
        /// Bytes of a message that goes at once, at the most.
        most: usize,
    },
    /// The message can not be serialised.
    Unserializable(Miscoded),
    /// There are handles in the message, and this pipe can carry none: it was made by name in a segment.
    NoHandles,
    /// There are more handles in the message than one takes: more than 16192, or more than the kernel lets be on their way at a time, which
    /// is about the limit of open files. (If only those on their way already are in its way, sending waits, or is `Full`.)
    TooManyHandles,
    /// The process was forked and has not attached to the segment.
    NotAttached,
    /// The pipe's words in shared memory contradict each other.
    Damaged,
}

impl std::fmt::Display for SendError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => {
                f.write_str("the pipe has no room for the message now; try again, or wait with `send`")
            }
            Self::TimedOut => f.write_str("the pipe had no room for the message until the deadline"),
            Self::Closed => {
                f.write_str("the receiving end of the pipe was closed: nothing can be sent any more")
            }
            Self::PeerDied => f.write_str("the process with the receiving end of the pipe has died"),
            Self::TooLong { most } => write!(
                f,
                "the message is longer than {most} bytes, the most that this pipe takes; make it with a larger `message_max`"
            ),
            Self::NotAtOnce { most } => write!(
                f,
                "a message of more than {most} bytes goes in parts, and that takes waiting: use `send` or a form with a time limit, \
                 or make the pipe with a larger `capacity`"
            ),
            Self::Unserializable(why) => write!(f, "the message can not be serialised: {why}"),
            Self::NoHandles => f.write_str(
                "this pipe can carry no handles, as it was made by name in a segment: send them through one made by `Pipe::duplex` or \
                 `Pipe::simplex`",
            ),
            Self::TooManyHandles => f.write_str(
                "there are more file descriptors in the message than the kernel lets be on their way between processes: send fewer at a time, \
                 or raise the limit of open files (`ulimit -n`)",
            ),
            Self::NotAttached => f.write_str(NOT_ATTACHED),
            Self::Damaged => f.write_str(DAMAGED),
        }
    }
}

impl std::error::Error for SendError {}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        let kind = match error {
            SendError::Full => io::ErrorKind::WouldBlock,
            SendError::TimedOut => io::ErrorKind::TimedOut,
            SendError::Closed | SendError::PeerDied => io::ErrorKind::BrokenPipe,
            SendError::TooLong { .. }
            | SendError::NotAtOnce { .. }
            | SendError::Unserializable(_)
            | SendError::NoHandles => io::ErrorKind::InvalidInput,
            SendError::TooManyHandles => io::ErrorKind::Other,
            SendError::NotAttached => io::ErrorKind::NotConnected,
            SendError::Damaged => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// There is no message, not all of one, or another reader is at work for more than a moment (`try_` forms): in a long message, or
    /// stopped.
    Empty,
    /// There was none until the deadline. What has come of one stays with this handle, and its next receive goes on with it.
    TimedOut,
    /// All handles of the sending end were dropped, and everything sent was received.
    Closed,
    /// The processes that had the sending end have died, and everything sent was received; what the dead had not sent to its end is gone.
    PeerDied,
    /// The next message is longer than the limit or the buffer. It stays: receive it with a larger one, or `discard` it. (It may be one in parts
    /// that its sender gives up before its end: then the larger one gets what comes after it.)
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// A message was received, and is lost: it can not be deserialised. Another program, or a damaged one, sent it.
    Undecodable(Miscoded),
    /// A message was received, and is lost: its handles are gone. The process that received it before died, or this one has no file
    /// descriptors left.
    HandlesLost,
    /// The process was forked and has not attached to the segment.
    NotAttached,
    /// The pipe's words in shared memory contradict each other.
    Damaged,
}

impl std::fmt::Display for RecvError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("the pipe has no whole message now; try again, or wait with `recv`"),
            Self::TimedOut => f.write_str("the pipe had no whole message until the deadline"),
            Self::Closed => {
                f.write_str("the sending end of the pipe was closed, and everything sent was received")
            }
            Self::PeerDied => f.write_str(
                "the process with the sending end of the pipe has died, and everything sent was received",
            ),
            Self::TooLong { bytes } => write!(
                f,
                "the message has {bytes} bytes, more than was asked for; it stays: receive it with a larger limit or buffer, or `discard` it"
            ),
            Self::Undecodable(why) => write!(f, "a message can not be deserialised, and is lost: {why}"),
            Self::HandlesLost => f.write_str(
                "the handles in a message are lost, and so is the message: the process that received it before died, or this one has \
                 too many open files (raise `ulimit -n`)",
            ),
            Self::NotAttached => f.write_str(NOT_ATTACHED),
            Self::Damaged => f.write_str(DAMAGED),
        }
    }
}

impl std::error::Error for RecvError {}

impl From<RecvError> for io::Error {
    fn from(error: RecvError) -> Self {
        let kind = match error {
            RecvError::Empty => io::ErrorKind::WouldBlock,
            RecvError::TimedOut => io::ErrorKind::TimedOut,
            RecvError::Closed => io::ErrorKind::UnexpectedEof,
            RecvError::PeerDied => io::ErrorKind::ConnectionReset,
            RecvError::TooLong { .. }
            | RecvError::Undecodable(_)
            | RecvError::HandlesLost
            | RecvError::Damaged => io::ErrorKind::InvalidData,
            RecvError::NotAttached => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

const NOT_ATTACHED: &str = "this process is not attached to the pipe's segment for writing; a forked child has to be sent the handle, or attach again";
const DAMAGED: &str =
    "the pipe's words in shared memory contradict each other: somebody wrote over them; make a new pipe";
