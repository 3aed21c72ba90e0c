//! How meeting can fail.

use std::io;

use crossproc_segment::Error;

use super::hello::VERSION;
use super::peer::Credentials;

/// Why there is no listener at an address.
#[derive(Debug)]
pub enum BindError {
    /// A listener that lives has the address.
    InUse,
    /// Something else than a socket has this path. It is left alone.
    NotASocket,
    /// Others were at work in the directory of the path for 5 seconds.
    Busy,
    /// The system does not do it; what it was to do, and what it says.
    System(&'static str, io::Error),
}

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse => {
                f.write_str("a living listener has this address: choose another one, or end that program")
            }
            Self::NotASocket => f.write_str(
                "there is a file at this path that is no socket: choose another path, or remove the file",
            ),
            Self::Busy => f.write_str(
                "somebody holds a lock on the directory of this path: try again, or choose another directory",
            ),
            Self::System(doing, error) => write!(f, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System(_, error) => Some(error),
            _ => None,
        }
    }
}

/// Why nobody was accepted. The listener goes on in any case.
#[derive(Debug)]
pub enum AcceptError {
    /// Nobody is there now (`try_` form).
    Nobody,
    /// Nobody came until the deadline.
    TimedOut,
    /// The pipe can not be made; who wanted to connect was told. Want of memory or of descriptors is not an error here: who wanted to
    /// connect is told and [counted](super::Listener::refused).
    Segment(Error),
    /// The system does not do it: this process has too many files open, say. Also in a forked child: only the process that made the
    /// listener can accept.
    System(io::Error),
}

impl std::fmt::Display for AcceptError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody wants to connect now; try again, or wait with `accept`"),
            Self::TimedOut => f.write_str("nobody connected until the deadline"),
            Self::Segment(error) => write!(f, "somebody was turned away, as no pipe can be made: {error}"),
            Self::System(error) => write!(f, "connections can not be accepted: {error}"),
        }
    }
}

impl std::error::Error for AcceptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Segment(error) => Some(error),
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Nobody listens at the address.
    NoListener,
    /// The listener did not answer in time: it is busy, stopped, or nobody calls `accept`.
    TimedOut,
    /// Who listens there is somebody this program does not want to talk to.
    WrongListener(Credentials),
    /// The listener does not talk to this process' user.
    NotAllowed,
    /// The listener wants a key, and none was given.
    KeyNeeded,
    /// A key was given, and the listener has none: it can not prove who it is.
    NoKeyThere,
    /// The keys differ.
    WrongKey,
    /// The programs send and receive different types; these are the listener's.
    WrongTypes {
        /// What it sends.
        sends: String,
        /// What it receives.
        receives: String,
    },
    /// The listener's version of this protocol is another one.
    WrongVersion(u16),
    /// What listens there does not speak this protocol.
    NotOurs,
    /// The listener ended the conversation: it died, was dropped, or its handshake deadline has passed.
    Lost,
    /// The listener can not do it now; it says why.
    Unavailable(String),
    /// The listener's segment can not be used here.
    Segment(Error),
    /// The system does not do it.
    System(io::Error),
}

impl std::fmt::Display for ConnectError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoListener => f.write_str("nobody listens at this address: start the listener first"),
            Self::TimedOut => f.write_str(
                "the listener did not answer in time: see whether it calls `accept`, or allow more time",
            ),
            Self::WrongListener(who) => write!(
                f,
                "who listens there is {who}, whom this program does not trust: choose another address, or allow it with `peers`"
            ),
            Self::NotAllowed => f.write_str(
                "the listener does not talk to this user: run as its user, or allow this one there with `peers`",
            ),
            Self::KeyNeeded => f.write_str("the listener wants a key: give the same one here"),
            Self::NoKeyThere => {
                f.write_str("the listener has no key, so it can not be told from others: give it the key")
            }
            Self::WrongKey => f.write_str("the listener has another key: give the same one to both"),
            Self::WrongTypes { sends, receives } => write!(
                f,
                "the listener sends `{sends}` and receives `{receives}`: connect with the same types, the other way round"
            ),
            Self::WrongVersion(theirs) => write!(
                f,
                "the listener speaks version {theirs} of this protocol, this program version {VERSION}: build both with the same crossproc"
            ),
            Self::NotOurs => f.write_str("what listens there is no crossproc listener: check the address"),
            Self::Lost => f.write_str(
                "the listener ended the conversation: it is gone, or this process was slower than it allows",
            ),
            Self::Unavailable(why) => write!(f, "the listener can not take a connection now: {why}"),
            Self::Segment(error) => write!(f, "the listener's segment can not be used here: {error}"),
            Self::System(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Segment(error) => Some(error),
            Self::System(error) => Some(error),
            _ => None,
        }
    }
}
