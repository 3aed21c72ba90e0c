//! `Pipe`: messages in order between two ends, each of which any number of processes may have.
//!
//! A duplex pipe has two *directions*, a simplex one has one. Each direction is an object of its own: a ring of bytes that carries frames
//! (`crossproc-ring`, frames/mod.rs: how frames are written and read, and what a death leaves), and cells that say who has which
//! end (frames/holders.rs).
//!
//! | file | what it holds |
//! |---|---|
//! | `link.rs` | one direction as a handle has it: where it is, holding, waiting, handing over |
//! | `sender.rs`, `receiver.rs` | the two ends of a direction |
//! | `message.rs` | a message that was found: in the ring, or gathered from its parts |
//! | `connection.rs` | one end of a duplex pipe: a sender and a receiver |
//! | `pace.rs` | deadlines of calls that the other end keeps pace with |
//! | `readiness.rs` | futures, descriptors, `wait_any` |
//! | `courier.rs` | handles in messages: descriptors on a socket beside the pipe |
//! | `meet.rs` | ends of a pipe for processes that meet (`listener`) |
//! | `bytes.rs` | the room where bytes enter and leave shared memory |

mod bytes;
mod connection;
mod courier;
mod error;
mod link;
mod meet;
mod message;
mod pace;
mod readiness;
mod receiver;
#[cfg(test)]
mod receiver_tests;
mod sender;
#[cfg(test)]
mod sender_tests;

use std::marker::PhantomData;
use std::sync::Arc;

use crossproc_ring::{End, FrameWords};
#[cfg(doc)]
use crossproc_segment::ErrorKind;
use crossproc_segment::{Error, Segment, SegmentOptions};

use crate::handle::{Handle, SLOTS_ALONE};
use crate::object_queue::layout_of;
use courier::Courier;
use link::{Link, MESSAGE_MAX};

pub use bytes::{Peeked, Reserved};
pub use connection::Connection;
pub use error::{RecvError, SendError};
pub(crate) use meet::attach_far;
pub use receiver::Receiver;
pub use sender::Sender;

/// Bytes that a direction has room for, if nobody says otherwise: as many as a pipe of the kernel.
const CAPACITY: usize = 64 << 10;

/// How a pipe is made.
///
/// ```
/// use crossproc_primitives::PipeOptions;
///
/// let (here, there) = PipeOptions::new().capacity(1 << 20).message_max(10 << 20).duplex::<Vec<u8>, u64>()?;
/// here.send_bytes(&vec![0; 500_000])?; // at once: it is less than half of the capacity
/// assert_eq!(there.recv_bytes()?.len(), 500_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PipeOptions {
    capacity: usize,
    message_max: usize,
}

impl Default for PipeOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl PipeOptions {
    /// 64 KiB for each direction, messages of any length.
    #[must_use]
    pub fn new() -> Self {
        Self { capacity: CAPACITY, message_max: MESSAGE_MAX }
    }

    /// How many bytes each direction has room for; up to the next power of two. Messages of up to half of that go at once, and longer
    /// ones in parts.
    #[must_use]
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Bytes of a message at the most: sending a longer one is an error.
    #[must_use]
    pub fn message_max(mut self, bytes: usize) -> Self {
        self.message_max = bytes.min(MESSAGE_MAX);
        self
    }

    /// A duplex pipe in an anonymous segment of its own: both ends. The first one sends values of type `A` and receives
    /// values of type `B`, the second one the other way round.
    ///
    /// # Errors
    ///
    /// [`InvalidLength`](ErrorKind::InvalidLength) for a capacity of 0 or above 2^40, or if the segment can not be made (out of memory or
    /// descriptors).
    #[expect(clippy::type_complexity, reason = "both ends")]
    pub fn duplex<A, B>(self) -> Result<(Connection<A, B>, Connection<B, A>), Error> {
        let pipe = self.in_segment(&self.segment(2)?, ALONE)?;
        let (here, there) = Courier::pair()?;
        Ok((pipe.near_with(Some(here))?, pipe.far_with(Some(there))?))
    }

    /// A pipe with one direction in an anonymous segment of its own: both ends.
    ///
    /// # Errors
    ///
    /// As [`duplex`](Self::duplex).
    pub fn simplex<T>(self) -> Result<(Receiver<T>, Sender<T>), Error> {
        let direction = self.direction::<T>(&self.segment(1)?, ALONE)?;
        let (here, there) = Courier::pair()?;
        Ok((receiver(&direction, Some(here))?, sender(&direction, Some(there))?))
    }

    /// The duplex pipe of this name in a segment, made if there is none.
    ///
    /// # Errors
    ///
    /// As [`Objects::pipe`](crate::Objects::pipe).
    pub fn in_segment<A, B>(self, segment: &Segment, name: &str) -> Result<Pipe<A, B>, Error> {
        let there = self.direction::<A>(segment, name)?;
        let back = self.direction::<B>(segment, &format!("{name}{BACK}"))?;
        Ok(Pipe { there, back, values: PhantomData })
    }

    fn segment(self, directions: usize) -> Result<Segment, Error> {
        let bytes = Link::segment_bytes(&[self.capacity; 2][..directions], SLOTS_ALONE)?;
        SegmentOptions::new().objects(directions as u32).participants(SLOTS_ALONE as u32).anonymous(bytes)
    }

    fn direction<T>(self, segment: &Segment, name: &str) -> Result<Handle<FrameWords>, Error> {
        Link::direction(segment, name, layout_of::<T>(), self.capacity, self.message_max)
    }
}

/// The name of a pipe in a segment of its own.
const ALONE: &str = "it";
/// What the name of the second direction of a pipe ends with.
const BACK: &str = " (back)";

fn sender<T>(direction: &Handle<FrameWords>, courier: Option<Courier>) -> Result<Sender<T>, Error> {
    Ok(Sender::of(Arc::new(Link::hold(direction.clone(), End::Writer, courier)?)))
}

fn receiver<T>(direction: &Handle<FrameWords>, courier: Option<Courier>) -> Result<Receiver<T>, Error> {
    Ok(Receiver::of(Arc::new(Link::hold(direction.clone(), End::Reader, courier)?)))
}

/// Pipes: Python's `Pipe`.
///
/// [`Pipe::duplex`] and [`Pipe::simplex`] make both ends of one, to be handed to other processes. A value of this type is a pipe in a
/// segment, by name ([`Objects::pipe`](crate::Objects::pipe)); it is no end itself, and has both.
///
/// ```
/// use crossproc_primitives::Pipe;
///
/// let (receiver, sender) = Pipe::simplex::<(u32, String)>()?;
/// sender.send(&(1, "one".to_owned()))?;
/// drop(sender);
/// assert_eq!(receiver.recv()?, (1, "one".to_owned()));
/// assert_eq!(receiver.recv(), Err(crossproc_primitives::pipe::RecvError::Closed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// An end of a simplex pipe has nothing of the other direction:
///
/// ```compile_fail,E0599
/// let (receiver, _sender) = crossproc_primitives::Pipe::simplex::<u8>().unwrap();
/// receiver.send(&1);
/// ```
///
/// and what is closed can not be used:
///
/// ```compile_fail,E0382
/// let (receiver, _sender) = crossproc_primitives::Pipe::simplex::<u8>().unwrap();
/// receiver.close();
/// receiver.try_recv();
/// ```
pub struct Pipe<A, B> {
    there: Handle<FrameWords>,
    back: Handle<FrameWords>,
    values: PhantomData<fn(A, B)>,
}

impl Pipe<(), ()> {
    /// A duplex pipe of 64 KiB for each direction: both ends; see [`PipeOptions::duplex`].
    ///
    /// # Errors
    ///
    /// As there.
    #[expect(clippy::type_complexity, reason = "both ends")]
    pub fn duplex<A, B>() -> Result<(Connection<A, B>, Connection<B, A>), Error> {
        PipeOptions::new().duplex()
    }

    /// A pipe of 64 KiB with one direction: both ends; see [`PipeOptions::simplex`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn simplex<T>() -> Result<(Receiver<T>, Sender<T>), Error> {
        PipeOptions::new().simplex()
    }
}

impl<A, B> Pipe<A, B> {
    /// A handle of the first end: sends values of type `A`, receives values of type `B`.
    ///
    /// As long as nobody has had the other end, nobody is missed there: sending waits for room, and receiving for a message.
    ///
    /// # Errors
    ///
    /// [`NotAttached`](ErrorKind::NotAttached) in a forked child, [`ReadOnly`](ErrorKind::ReadOnly),
    /// [`Damaged`](ErrorKind::Damaged).
    pub fn near(&self) -> Result<Connection<A, B>, Error> {
        self.near_with(None)
    }

    fn near_with(&self, courier: Option<Courier>) -> Result<Connection<A, B>, Error> {
        Ok(Connection::of(sender(&self.there, courier.clone())?, receiver(&self.back, courier)?))
    }

    /// A handle of the second end: sends values of type `B`, receives values of type `A`.
    ///
    /// # Errors
    ///
    /// As [`near`](Self::near).
    pub fn far(&self) -> Result<Connection<B, A>, Error> {
        self.far_with(None)
    }

    fn far_with(&self, courier: Option<Courier>) -> Result<Connection<B, A>, Error> {
        Ok(Connection::of(sender(&self.back, courier.clone())?, receiver(&self.there, courier)?))
    }
}

impl<A, B> Clone for Pipe<A, B> {
    fn clone(&self) -> Self {
        Self { there: self.there.clone(), back: self.back.clone(), values: PhantomData }
    }
}

impl<A, B> std::fmt::Debug for Pipe<A, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe").finish_non_exhaustive()
    }
}
