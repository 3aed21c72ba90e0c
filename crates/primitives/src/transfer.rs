//! How sending and receiving can fail; the same for all queues.

use crossproc_segment::ErrorKind;
use crossproc_segment::plain::{InvalidBits, Layout};

/// Why this process can not use a queue at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// This process is not attached to the segment (a forked child, say), or for reading only.
    NotAttached,
    /// There are as many handles as the queue has lanes for.
    NoLane,
    /// All hands of this handle hold loans or messages.
    NoHand,
    /// The words in shared memory contradict each other.
    Damaged,
}

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAttached => {
                "this process is not attached to the queue's segment for writing; a forked child has to attach it again"
            }
            Self::NoLane => {
                "there are as many handles as the queue has lanes; drop one, or make the queue with more lanes"
            }
            Self::NoHand => {
                "this handle holds as many loans and received messages as it may; drop one, or make the queue with more hands"
            }
            Self::Damaged => "the queue's words in shared memory contradict each other; make a new queue",
        })
    }
}

impl std::error::Error for Unusable {}

/// Why a message can not be sent through a queue for messages of any size, though others can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is longer than a message can be.
    TooLong {
        /// Bytes of a message at the most.
        most: usize,
    },
    /// There is no memory for it: [`NoSpace`](ErrorKind::NoSpace) if the file system or a quota is full,
    /// [`NoMemory`](ErrorKind::NoMemory) if the machine or the control group is.
    NoMemory(ErrorKind),
    /// It can not be serialised.
    Unserializable(Miscoded),
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong { most } => write!(
                f,
                "the message is longer than {most} bytes, the most that this queue takes; make the queue with a larger `message_max`"
            ),
            Self::NoMemory(ErrorKind::NoSpace) => f.write_str(
                "there is no room for the message: the file system of the queue's segment, or a quota there, is full; \
                 receive messages, make room there, or use an anonymous segment",
            ),
            Self::NoMemory(ErrorKind::NoMemory) => f.write_str(
                "there is no memory for the message: the machine's, or that of the control group, is used up; \
                 receive messages, send shorter ones, or raise the limit",
            ),
            Self::NoMemory(kind) => write!(f, "no memory could be had for the message ({kind:?})"),
            Self::Unserializable(why) => write!(f, "the message can not be serialised: {why}"),
        }
    }
}

impl std::error::Error for Unfit {}

/// What stands between a value and its serialised form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Miscoded {
    pub(crate) layout: &'static Layout,
    pub(crate) why: Fault,
}

/// The errors of postcard that can come, and our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    EndsTooSoon,
    BytesLeft,
    BadNumber,
    BadBool,
    BadChar,
    BadText,
    BadOption,
    BadVariant,
    Refused,
    LengthUnknown,
    Changed,
    Handle,
    NotPassedOn,
    NotSupported,
}

impl Fault {
    fn text(self) -> &'static str {
        match self {
            Self::EndsTooSoon => "the bytes end too soon",
            Self::BytesLeft => "bytes are left over",
            Self::BadNumber => "a number does not end, or is too large",
            Self::BadBool => "a bool is neither 0 nor 1",
            Self::BadChar => "a char is none",
            Self::BadText => "a text is not UTF-8",
            Self::BadOption => "an Option is neither 0 nor 1",
            Self::BadVariant => "an enum has no such variant",
            Self::Refused => "the type's own (de)serialisation refused",
            Self::LengthUnknown => "the length of a sequence is not known before its end",
            Self::Changed => "it became longer while it was serialised",
            Self::Handle => crossproc_segment::handover::ONLY_WHILE_HANDED_OVER,
            Self::NotPassedOn => "the kernel lets one of its file descriptors be sent to nobody",
            Self::NotSupported => "postcard has no form for it (of types that describe themselves)",
        }
    }
}

impl std::fmt::Display for Miscoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`: {}", self.layout.name, self.why.text())
    }
}

impl std::fmt::Debug for Miscoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Miscoded({}, {:?})", self.layout.name, self.why)
    }
}

/// Why a value was not sent; it is in here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendError<T> {
    /// The queue is full.
    Full(T),
    /// It was full until the deadline.
    TimedOut(T),
    /// It was closed.
    Closed(T),
    /// It is full, and nobody is left who could receive.
    PeerDied(T),
    /// This process can not use the queue.
    Unusable(T, Unusable),
    /// This message can not be sent; others can. Only queues for messages of any size.
    Unfit(T, Unfit),
}

impl<T> SendError<T> {
    /// The value that was not sent.
    #[must_use]
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value)
            | Self::TimedOut(value)
            | Self::Closed(value)
            | Self::PeerDied(value)
            | Self::Unusable(value, _)
            | Self::Unfit(value, _) => value,
        }
    }

    /// The same error about something else.
    #[must_use]
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> SendError<U> {
        match self {
            Self::Full(value) => SendError::Full(f(value)),
            Self::TimedOut(value) => SendError::TimedOut(f(value)),
            Self::Closed(value) => SendError::Closed(f(value)),
            Self::PeerDied(value) => SendError::PeerDied(f(value)),
            Self::Unusable(value, why) => SendError::Unusable(f(value), why),
            Self::Unfit(value, why) => SendError::Unfit(f(value), why),
        }
    }
}

impl<T> std::fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(_) => f.write_str("the queue is full"),
            Self::TimedOut(_) => f.write_str("the queue was full until the deadline"),
            Self::Closed(_) => f.write_str("the queue is closed"),
            Self::PeerDied(_) => {
                f.write_str("the queue is full, and all other processes that used it are gone")
            }
            Self::Unusable(_, why) => why.fmt(f),
            Self::Unfit(_, why) => why.fmt(f),
        }
    }
}

impl<T> std::fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::TimedOut(_) => "TimedOut(..)",
            Self::Closed(_) => "Closed(..)",
            Self::PeerDied(_) => "PeerDied(..)",
            Self::Unusable(_, why) => return write!(f, "Unusable(.., {why:?})"),
            Self::Unfit(_, why) => return write!(f, "Unfit(.., {why:?})"),
        })
    }
}

impl<T> std::error::Error for SendError<T> {}

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// The queue is empty.
    Empty,
    /// It was empty until the deadline.
    TimedOut,
    /// It was closed, and nothing is left in it. Should another receiver die with a message in its hand, that comes back all the
    /// same: who has to be sure waits until the others have ended, and receives once more.
    Closed,
    /// It is empty, and nobody is left who could send.
    PeerDied,
    /// A message was received, and is lost: its bytes are no value of the type. Another program, or a damaged one, sent it.
    Invalid(InvalidBits),
    /// A message was received, and is lost: it can not be deserialised. Another program, or a damaged one, sent it. Only
    /// [`ObjectQueue`](crate::ObjectQueue).
    Undecodable(Miscoded),
    /// The next message is longer than the buffer. This handle keeps it, for its next receive. Only
    /// [`BytesQueue::recv_into`](crate::BytesQueue::recv_into).
    BufferTooShort {
        /// How long it is.
        bytes: usize,
    },
    /// This process can not use the queue.
    Unusable(Unusable),
}

impl std::fmt::Display for RecvError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("the queue is empty"),
            Self::TimedOut => f.write_str("the queue was empty until the deadline"),
            Self::Closed => f.write_str("the queue is closed and empty"),
            Self::PeerDied => {
                f.write_str("the queue is empty, and all other processes that used it are gone")
            }
            Self::Invalid(why) => why.fmt(f),
            Self::Undecodable(why) => write!(f, "a message can not be deserialised, and is lost: {why}"),
            Self::BufferTooShort { bytes } => {
                write!(f, "the message has {bytes} bytes, more than the buffer; receive it with a longer one")
            }
            Self::Unusable(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for RecvError {}
