//! Both directions of a duplex pipe, as one handle.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::time::{Duration, Instant};

use crossproc_segment::Segment;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bytes::{Peeked, Reserved};
use super::error::{RecvError, SendError};
use super::link::Link;
use super::receiver::Receiver;
use super::sender::Sender;
use crate::audit::Violation;

/// One end of a duplex pipe: sends values of type `A`, receives values of type `B`. Python's `Connection`.
///
/// It is a [`Sender`] and a [`Receiver`], which [`split`](Self::split) makes two handles of. Everything that is said of those is true here:
/// messages come whole and in order, clones share the end, the other side learns when the last handle of this end is dropped or
/// its last process dies.
///
/// Bytes and values go through the same pipe; who receives has to know which comes next.
///
/// It is `Send` and not `Sync`: give each thread a clone, or one half.
///
/// ```
/// use crossproc_primitives::Pipe;
///
/// let (here, there) = Pipe::duplex::<u32, String>()?;
/// std::thread::scope(|s| {
///     s.spawn(move || {
///         let number = there.recv().expect("a number comes");
///         there.send(&format!("{} squared is {}", number, number * number)).expect("somebody listens");
///     });
///     here.send(&12)?;
///     assert_eq!(here.recv()?, "12 squared is 144");
///     assert!(here.recv().is_err(), "the other end was dropped");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// After `close` it can not be used:
///
/// ```compile_fail
/// let (here, _there) = crossproc_primitives::Pipe::duplex::<u8, u8>().unwrap();
/// here.close();
/// here.send(&1);
/// ```
pub struct Connection<A, B> {
    sender: Sender<A>,
    receiver: Receiver<B>,
}

/// Methods of the halves, with their names.
macro_rules! of_the_halves {
    ($half:ident, $of:literal: $($(#[$meta:meta])* fn $name:ident(&self $(, $arg:ident: $ty:ty)*) -> $out:ty;)*) => {$(
        #[doc = concat!("As [`", $of, "::", stringify!($name), "`].")]
        ///
        /// # Errors
        ///
        /// As there.
        $(#[$meta])*
        #[inline]
        pub fn $name(&self $(, $arg: $ty)*) -> $out {
            self.$half.$name($($arg),*)
        }
    )*};
}

impl<A, B> Connection<A, B> {
    /// The two halves as one handle; of whatever pipes they are.
    #[must_use]
    pub fn of(sender: Sender<A>, receiver: Receiver<B>) -> Self {
        Self { sender, receiver }
    }

    /// The two halves, for two threads, say.
    #[must_use]
    pub fn split(self) -> (Sender<A>, Receiver<B>) {
        (self.sender, self.receiver)
    }

    /// The two halves, to use both at a time: a message that is looked at in place, and its answer.
    pub fn halves(&mut self) -> (&mut Sender<A>, &mut Receiver<B>) {
        (&mut self.sender, &mut self.receiver)
    }

    pub(super) fn sender(&self) -> &Sender<A> {
        &self.sender
    }

    pub(super) fn receiver(&self) -> &Receiver<B> {
        &self.receiver
    }

    of_the_halves! { sender, "Sender":
        fn send_bytes(&self, message: &[u8]) -> Result<(), SendError>;
        fn try_send_bytes(&self, message: &[u8]) -> Result<(), SendError>;
        fn send_bytes_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), SendError>;
        fn send_bytes_deadline(&self, message: &[u8], deadline: Instant) -> Result<(), SendError>;
        fn send_vectored(&self, slices: &[IoSlice<'_>]) -> Result<(), SendError>;
    }

    of_the_halves! { receiver, "Receiver":
        fn recv_bytes(&self) -> Result<Vec<u8>, RecvError>;
        fn try_recv_bytes(&self) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_deadline(&self, deadline: Instant) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_max(&self, max: usize) -> Result<Vec<u8>, RecvError>;
        fn try_recv_bytes_max(&self, max: usize) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_max_timeout(&self, max: usize, timeout: Duration) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_max_deadline(&self, max: usize, deadline: Instant) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError>;
        fn try_recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError>;
        fn recv_bytes_into_timeout(&self, buffer: &mut [u8], timeout: Duration) -> Result<usize, RecvError>;
        fn recv_bytes_into_deadline(&self, buffer: &mut [u8], deadline: Instant) -> Result<usize, RecvError>;
        fn discard(&self) -> Result<usize, RecvError>;
        fn poll(&self, timeout: Option<Duration>) -> Result<bool, RecvError>;
    }

    /// As [`Sender::reserve`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn reserve(&mut self, n: usize) -> Result<Reserved<'_, A>, SendError> {
        self.sender.reserve(n)
    }

    /// As [`Receiver::peek`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn peek(&mut self) -> Result<Peeked<'_, B>, RecvError> {
        self.receiver.peek()
    }

    /// As [`Sender::at_once_max`].
    #[must_use]
    pub fn at_once_max(&self) -> usize {
        self.sender.at_once_max()
    }

    /// Whether [`Read`] and [`Write`] give up with `WouldBlock` where they would have to wait. Of this handle only; `send` and `recv` have
    /// `try_` forms.
    pub fn set_nonblocking(&self, nonblocking: bool) {
        self.sender.set_nonblocking(nonblocking);
        self.receiver.set_nonblocking(nonblocking);
    }

    /// Drops this handle. The end is closed if it was the last one.
    pub fn close(self) {}

    /// True if nobody has the other end: there may be messages to receive, and no more will come.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed() && self.receiver.is_closed()
    }

    /// The segment in which the pipe lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.sender.segment()
    }

    /// As [`Sender::audit`], of both directions.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.sender.audit().and_then(|()| self.receiver.audit())
    }
}

impl<A: Serialize, B> Connection<A, B> {
    of_the_halves! { sender, "Sender":
        fn send(&self, message: &A) -> Result<(), SendError>;
        fn try_send(&self, message: &A) -> Result<(), SendError>;
        fn send_timeout(&self, message: &A, timeout: Duration) -> Result<(), SendError>;
        fn send_deadline(&self, message: &A, deadline: Instant) -> Result<(), SendError>;
    }
}

impl<A, B: DeserializeOwned> Connection<A, B> {
    of_the_halves! { receiver, "Receiver":
        fn recv(&self) -> Result<B, RecvError>;
        fn try_recv(&self) -> Result<B, RecvError>;
        fn recv_timeout(&self, timeout: Duration) -> Result<B, RecvError>;
        fn recv_deadline(&self, deadline: Instant) -> Result<B, RecvError>;
    }

    /// As [`Receiver::iter`].
    pub fn iter(&self) -> impl Iterator<Item = B> + '_ {
        self.receiver.iter()
    }
}

/// The receiver of a connection, whose courier travels with the sender.
struct Bare<'a>(&'a Link);

impl Serialize for Bare<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_with(None, serializer)
    }
}

impl<A, B> Serialize for Connection<A, B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (sender, receiver) = (&self.sender, &self.receiver);
        if sender.link.has_courier_of(&receiver.link) {
            (true, sender, Bare(&receiver.link)).serialize(serializer)
        } else {
            (false, sender, receiver).serialize(serializer)
        }
    }
}

impl<'de, A, B> Deserialize<'de> for Connection<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (is_shared, sender, mut receiver): (bool, Sender<A>, Receiver<B>) =
            Deserialize::deserialize(deserializer)?;
        if is_shared {
            receiver.share_courier(&sender.link);
        }
        Ok(Self { sender, receiver })
    }
}

impl<A, B> Clone for Connection<A, B> {
    /// Another handle of the same end.
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), receiver: self.receiver.clone() }
    }
}

/// As for `&Receiver`.
impl<A, B> Read for &Connection<A, B> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.receiver).read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.receiver).read_vectored(bufs)
    }
}

/// As for `&Receiver`.
impl<A, B> Read for Connection<A, B> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&self.receiver).read(buf)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&self.receiver).read_vectored(bufs)
    }
}

/// As for `&Sender`.
impl<A, B> Write for &Connection<A, B> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&self.sender).write(buf)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.sender).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As for `&Sender`.
impl<A, B> Write for Connection<A, B> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&self.sender).write(buf)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.sender).write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<A, B> std::fmt::Debug for Connection<A, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("sender", &self.sender).field("receiver", &self.receiver).finish()
    }
}
