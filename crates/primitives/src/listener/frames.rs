//! Messages over a socket.
//!
//! ```text
//! message:  length (8 bytes, little endian), then parts, then END
//! part:     GO, and the next 64 KiB of the message (the last one: what is left; a message of no bytes has one part of none)
//! ```
//!
//! `ABORT` in place of `GO` or `END` takes the message back. So who runs out of time in the middle only has to get rid of the rest of one
//! part: that and an `ABORT` go before the next message, and nobody receives a part of it.
//!
//! Nothing is read beyond the message that is asked for, so that the socket is readable whenever there is more.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossproc_segment::handover;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::door::{Patience, wait_until};
use crate::object_queue::{fault, layout_of};
use crate::pipe::{RecvError, SendError};
use crate::transfer::{Fault, Miscoded};

const PART: usize = 64 << 10;
const GO: u8 = 1;
const ABORT: u8 = 2;
const END: u8 = 3;
/// The length of a message, and the first `GO`.
const HEAD: usize = 9;
/// Parts and taken back messages of one attempt; then it is looked whether its time has passed, also if more comes all the time.
const TURNS: usize = 256;

/// The sending half of a [`RemoteConnection`].
pub struct RemoteSender<A> {
    socket: Arc<OwnedFd>,
    most: usize,
    /// What has to go before anything else: the rest of a message that was taken back.
    rest: RefCell<Vec<u8>>,
    message: PhantomData<fn(A)>,
}

/// The receiving half of a [`RemoteConnection`].
pub struct RemoteReceiver<B> {
    socket: Arc<OwnedFd>,
    most: usize,
    coming: RefCell<Coming>,
    message: PhantomData<fn() -> B>,
}

/// The message that comes, as far as it has come.
struct Coming {
    head: Vec<u8>,
    /// What the head says.
    total: Option<u64>,
    /// Where the part ends that comes now.
    part_end: u64,
    /// The bytes, and what follows the part, if it has come.
    body: Vec<u8>,
    /// Bytes in front of `body` that were thrown away.
    gone: u64,
    /// All of it has come.
    is_whole: bool,
    /// It is not wanted.
    is_unwanted: bool,
}

impl Coming {
    const NONE: Self = Self {
        head: Vec::new(),
        total: None,
        part_end: 0,
        body: Vec::new(),
        gone: 0,
        is_whole: false,
        is_unwanted: false,
    };

    /// Goes to the next part.
    fn next_part(&mut self, total: u64) {
        (self.total, self.part_end) = (Some(total), self.part_end.saturating_add(PART as u64).min(total));
    }
}

impl<A> RemoteSender<A> {
    /// As [`Sender::send_bytes`](crate::pipe::Sender::send_bytes).
    ///
    /// # Errors
    ///
    /// [`Closed`](SendError::Closed) if the other side has left or has died, [`PeerDied`](SendError::PeerDied) if the network has lost it,
    /// [`TooLong`](SendError::TooLong). That nothing is wrong does not say that the message has arrived.
    pub fn send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_within(message, Patience::Until(None))
    }

    /// Sends if the system takes all of it at once.
    ///
    /// # Errors
    ///
    /// [`Full`](SendError::Full), and as [`send_bytes`](Self::send_bytes).
    pub fn try_send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
        self.send_within(message, Patience::None)
    }

    /// Sends, waiting at most `timeout` until the system has taken all of it.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](SendError::TimedOut), and as [`send_bytes`](Self::send_bytes).
    pub fn send_bytes_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_within(message, Patience::within(timeout))
    }

    /// Sends, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn send_bytes_deadline(&self, message: &[u8], deadline: Instant) -> Result<(), SendError> {
        self.send_within(message, Patience::Until(Some(deadline)))
    }

    fn send_within(&self, message: &[u8], patience: Patience) -> Result<(), SendError> {
        if message.len() > self.most {
            return Err(SendError::TooLong { most: self.most });
        }
        let mut rest = self.rest.borrow_mut();
        let (sent, result) = self.write(&rest, patience);
        rest.drain(..sent);
        result?;
        let mut at = 0;
        loop {
            let part = &message[at..message.len().min(at + PART)];
            let mut bytes = Vec::with_capacity(HEAD + part.len() + 1);
            if at == 0 {
                bytes.extend((message.len() as u64).to_le_bytes());
            }
            bytes.push(GO);
            bytes.extend(part);
            let end = bytes.len();
            let is_last = at + part.len() == message.len();
            if is_last {
                bytes.push(END);
            }
            let (sent, result) = match patience {
                // Also if the other side keeps pace.
                Patience::Until(Some(until)) if at > TURNS * PART && Instant::now() >= until => {
                    (0, Err(SendError::TimedOut))
                }
                _ => self.write(&bytes, patience),
            };
            if let Err(error) = result {
                // Of the first part nothing, and there is nothing to take back.
                if at + sent > 0 {
                    if sent > 0 {
                        rest.extend(&bytes[sent..end]);
                    }
                    rest.push(ABORT);
                }
                return Err(error);
            }
            if is_last {
                return Ok(());
            }
            at += part.len();
        }
    }

    /// How many bytes were sent, and why not all.
    fn write(&self, bytes: &[u8], patience: Patience) -> (usize, Result<(), SendError>) {
        let mut sent = 0;
        while sent < bytes.len() {
            let error = match send(&*self.socket, &bytes[sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(more) => {
                    sent += more;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => match patience {
                    Patience::None => SendError::Full,
                    Patience::Until(until) => match wait_until(&*self.socket, PollFlags::OUT, until) {
                        Ok(true) => continue,
                        Ok(false) => SendError::TimedOut,
                        Err(_) => SendError::Closed,
                    },
                },
                Err(Errno::PIPE | Errno::CONNRESET) => SendError::Closed,
                Err(_) => SendError::PeerDied,
            };
            return (sent, Err(error));
        }
        (sent, Ok(()))
    }
}

impl<A: Serialize> RemoteSender<A> {
    /// As [`Sender::send`](crate::pipe::Sender::send). Handles can not be sent: they are [`Unserializable`](SendError::Unserializable).
    ///
    /// # Errors
    ///
    /// As [`send_bytes`](Self::send_bytes).
    pub fn send(&self, message: &A) -> Result<(), SendError> {
        self.send_bytes(&encode(message)?)
    }

    /// As [`try_send_bytes`](Self::try_send_bytes).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send(&self, message: &A) -> Result<(), SendError> {
        self.try_send_bytes(&encode(message)?)
    }

    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_timeout(&self, message: &A, timeout: Duration) -> Result<(), SendError> {
        self.send_bytes_timeout(&encode(message)?, timeout)
    }

    /// As [`send_bytes_deadline`](Self::send_bytes_deadline).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_deadline(&self, message: &A, deadline: Instant) -> Result<(), SendError> {
        self.send_bytes_deadline(&encode(message)?, deadline)
    }
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, SendError> {
    // With a table of its own, so that a handle is none of an outer call's; descriptors can not go along.
    let (bytes, descriptors) = handover::pack(|| postcard::to_stdvec(message));
    let why = match bytes {
        Ok(bytes) if descriptors.is_empty() => return Ok(bytes),
        Ok(_) => Fault::Handle,
        Err(error) => fault(&error),
    };
    Err(SendError::Unserializable(Miscoded { layout: layout_of::<T>(), why }))
}

impl<B> RemoteReceiver<B> {
    /// As [`Receiver::recv_bytes`](crate::pipe::Receiver::recv_bytes).
    ///
    /// # Errors
    ///
    /// [`Closed`](RecvError::Closed) if the other side has left or has died between two messages, [`PeerDied`](RecvError::PeerDied) if that was in
    /// the middle of one or the network has lost it, [`TooLong`](RecvError::TooLong) for a message above the connection's
    /// limit (it stays: [`discard`](Self::discard) it), [`Damaged`](RecvError::Damaged) if what comes is no message.
    pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_within(Patience::Until(None))
    }

    /// The next message, if all of it has come.
    ///
    /// # Errors
    ///
    /// [`Empty`](RecvError::Empty), and as [`recv_bytes`](Self::recv_bytes).
    pub fn try_recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.recv_within(Patience::None)
    }

    /// Waits for the next message at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](RecvError::TimedOut), and as [`recv_bytes`](Self::recv_bytes).
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.recv_within(Patience::within(timeout))
    }

    /// Waits for the next message until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    pub fn recv_bytes_deadline(&self, deadline: Instant) -> Result<Vec<u8>, RecvError> {
        self.recv_within(Patience::Until(Some(deadline)))
    }

    /// Whether a message, or the end, is there; waits for one until it is or the timeout has passed (`None`: for ever).
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes), but for the end.
    pub fn poll(&self, timeout: Option<Duration>) -> Result<bool, RecvError> {
        let patience = timeout.map_or(Patience::Until(None), Patience::within);
        match self.gather(&mut self.coming.borrow_mut(), patience) {
            Err(RecvError::TimedOut) => Ok(false),
            Ok(()) | Err(RecvError::Closed | RecvError::PeerDied | RecvError::TooLong { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Receives the next message, however long it is, and throws it away; returns its length.
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes); never `TooLong`.
    pub fn discard(&self) -> Result<u64, RecvError> {
        let mut coming = self.coming.borrow_mut();
        coming.is_unwanted = true;
        self.gather(&mut coming, Patience::Until(None))?;
        let len = coming.gone + coming.body.len() as u64;
        *coming = Coming::NONE;
        Ok(len)
    }

    fn recv_within(&self, patience: Patience) -> Result<Vec<u8>, RecvError> {
        let mut coming = self.coming.borrow_mut();
        self.gather(&mut coming, patience)?;
        Ok(std::mem::replace(&mut *coming, Coming::NONE).body)
    }

    /// Goes on with the message until all of it has come.
    fn gather(&self, coming: &mut Coming, patience: Patience) -> Result<(), RecvError> {
        let mut turns = 0;
        while !coming.is_whole {
            turns += 1;
            match patience {
                Patience::None if turns > TURNS => return Err(RecvError::Empty),
                Patience::Until(Some(until)) if turns > TURNS && Instant::now() >= until => {
                    return Err(RecvError::TimedOut);
                }
                _ => {}
            }
            let Some(total) = coming.total else {
                let is_fresh = coming.head.is_empty();
                let end = if is_fresh { RecvError::Closed } else { RecvError::PeerDied };
                self.read(&mut coming.head, HEAD, end, patience)?;
                let (len, control) = coming.head.split_at(8);
                match control[0] {
                    GO => {
                        let total = u64::from_le_bytes(len.try_into().expect("it has 8 bytes"));
                        coming.next_part(total);
                    }
                    // Taken back.
                    ABORT => coming.head.clear(),
                    _ => return Err(RecvError::Damaged),
                }
                continue;
            };
            if total > self.most as u64 && !coming.is_unwanted {
                return Err(RecvError::TooLong { bytes: usize::try_from(total).unwrap_or(usize::MAX) });
            }
            // To the end of the part, and what follows it.
            let part_end = coming.part_end;
            let goal = (part_end - coming.gone) as usize + 1;
            self.read(&mut coming.body, goal, RecvError::PeerDied, patience)?;
            match coming.body.pop() {
                Some(GO) if part_end < total => coming.next_part(total),
                Some(END) if part_end == total => coming.is_whole = true,
                Some(ABORT) => *coming = Coming { is_unwanted: coming.is_unwanted, ..Coming::NONE },
                // The stream is out of step for good: what follows is no head.
                _ => {
                    coming.head = vec![0; HEAD];
                    coming.total = None;
                    return Err(RecvError::Damaged);
                }
            }
            if coming.is_unwanted {
                coming.gone += coming.body.len() as u64;
                coming.body.clear();
            }
        }
        Ok(())
    }

    /// Reads until `bytes` has so many. What has come stays there.
    fn read(
        &self,
        bytes: &mut Vec<u8>,
        goal: usize,
        end: RecvError,
        patience: Patience,
    ) -> Result<(), RecvError> {
        while bytes.len() < goal {
            let have = bytes.len();
            bytes.resize(goal, 0);
            let result = recv(&*self.socket, &mut bytes[have..], RecvFlags::DONTWAIT);
            let read = result.as_ref().map_or(0, |(_, read)| *read);
            bytes.truncate(have + read);
            match result.map(|_| read) {
                Ok(0) if have == 0 => return Err(end),
                Ok(0) | Err(Errno::CONNRESET) => return Err(RecvError::PeerDied),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match patience {
                    Patience::None => return Err(RecvError::Empty),
                    Patience::Until(until) => match wait_until(&*self.socket, PollFlags::IN, until) {
                        Ok(true) => {}
                        Ok(false) => return Err(RecvError::TimedOut),
                        Err(_) => return Err(RecvError::PeerDied),
                    },
                },
                Err(_) => return Err(RecvError::PeerDied),
            }
        }
        Ok(())
    }
}

impl<B: DeserializeOwned> RemoteReceiver<B> {
    /// As [`Receiver::recv`](crate::pipe::Receiver::recv).
    ///
    /// # Errors
    ///
    /// As [`recv_bytes`](Self::recv_bytes), and [`Undecodable`](RecvError::Undecodable).
    pub fn recv(&self) -> Result<B, RecvError> {
        self.recv_bytes().and_then(|bytes| decode(&bytes))
    }

    /// As [`try_recv_bytes`](Self::try_recv_bytes).
    ///
    /// # Errors
    ///
    /// As there, and [`Undecodable`](RecvError::Undecodable).
    pub fn try_recv(&self) -> Result<B, RecvError> {
        self.try_recv_bytes().and_then(|bytes| decode(&bytes))
    }

    /// As [`recv_bytes_timeout`](Self::recv_bytes_timeout).
    ///
    /// # Errors
    ///
    /// As there, and [`Undecodable`](RecvError::Undecodable).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<B, RecvError> {
        self.recv_bytes_timeout(timeout).and_then(|bytes| decode(&bytes))
    }

    /// As [`recv_bytes_deadline`](Self::recv_bytes_deadline).
    ///
    /// # Errors
    ///
    /// As there, and [`Undecodable`](RecvError::Undecodable).
    pub fn recv_deadline(&self, deadline: Instant) -> Result<B, RecvError> {
        self.recv_bytes_deadline(deadline).and_then(|bytes| decode(&bytes))
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecvError> {
    // Handles find nothing here.
    let why = match handover::unpack(Vec::new(), || postcard::take_from_bytes(bytes)) {
        Ok((value, [])) => return Ok(value),
        Ok(_) => Fault::BytesLeft,
        Err(error) => fault(&error),
    };
    Err(RecvError::Undecodable(Miscoded { layout: layout_of::<T>(), why }))
}

/// A connection over TCP: sends values of type `A`, receives values of type `B`; see [`RemoteListener`](super::RemoteListener).
///
/// It has the methods of a [`Connection`](crate::Connection) that a socket can have, and its errors. Messages come whole and in order;
/// one whose time has passed is received by nobody, not even in part. What there is not:
///
/// * no messages in place (`reserve`, `peek`): all are copied, several times;
/// * no handles in messages: what they stand for is memory of one machine;
/// * no clones and no handing over to other processes; [`split`](Self::split) is there for two threads;
/// * no certainty about deaths: a process that dies looks like one that has left, and a machine that is gone looks like a silent one until
///   the system's keep-alive has found out (by default after two hours). Use forms with a time limit.
/// * no secrecy: see [`RemoteListener`](super::RemoteListener).
///
/// It is `Send` and not `Sync`.
pub struct RemoteConnection<A, B> {
    sender: RemoteSender<A>,
    receiver: RemoteReceiver<B>,
}

impl<A, B> RemoteConnection<A, B> {
    pub(super) fn new(socket: OwnedFd, most: usize) -> Self {
        let socket = Arc::new(socket);
        let sender = RemoteSender {
            socket: Arc::clone(&socket),
            most,
            rest: RefCell::default(),
            message: PhantomData,
        };
        let receiver =
            RemoteReceiver { socket, most, coming: RefCell::new(Coming::NONE), message: PhantomData };
        Self { sender, receiver }
    }

    /// The two halves, for two threads. The connection ends when both are dropped.
    #[must_use]
    pub fn split(self) -> (RemoteSender<A>, RemoteReceiver<B>) {
        (self.sender, self.receiver)
    }
}

/// Methods of the halves, with their names.
macro_rules! of_the_halves {
    ($([$($bound:tt)*] $half:ident, $of:literal: $(fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*)*) => {$(
        impl<$($bound)*> RemoteConnection<A, B> {$(
            #[doc = concat!("As [`", $of, "::", stringify!($name), "`].")]
            ///
            /// # Errors
            ///
            /// As there.
            pub fn $name(&self $(, $arg: $ty)*) -> $out {
                self.$half.$name($($arg),*)
            }
        )*}
    )*};
}

of_the_halves! {
    [A, B] sender, "RemoteSender":
        fn send_bytes(message: &[u8]) -> Result<(), SendError>;
        fn try_send_bytes(message: &[u8]) -> Result<(), SendError>;
        fn send_bytes_timeout(message: &[u8], timeout: Duration) -> Result<(), SendError>;
        fn send_bytes_deadline(message: &[u8], deadline: Instant) -> Result<(), SendError>;
    [A: Serialize, B] sender, "RemoteSender":
        fn send(message: &A) -> Result<(), SendError>;
        fn try_send(message: &A) -> Result<(), SendError>;
        fn send_timeout(message: &A, timeout: Duration) -> Result<(), SendError>;
        fn send_deadline(message: &A, deadline: Instant) -> Result<(), SendError>;
    [A, B] receiver, "RemoteReceiver":
        fn recv_bytes() -> Result<Vec<u8>, RecvError>;
        fn try_recv_bytes() -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_timeout(timeout: Duration) -> Result<Vec<u8>, RecvError>;
        fn recv_bytes_deadline(deadline: Instant) -> Result<Vec<u8>, RecvError>;
        fn poll(timeout: Option<Duration>) -> Result<bool, RecvError>;
        fn discard() -> Result<u64, RecvError>;
    [A, B: DeserializeOwned] receiver, "RemoteReceiver":
        fn recv() -> Result<B, RecvError>;
        fn try_recv() -> Result<B, RecvError>;
        fn recv_timeout(timeout: Duration) -> Result<B, RecvError>;
        fn recv_deadline(deadline: Instant) -> Result<B, RecvError>;
}

/// The socket: readable when something has come, if only a part of a message. To wait with; who reads or writes it breaks the connection.
impl<A, B> AsFd for RemoteConnection<A, B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// As for [`RemoteConnection`].
impl<B> AsFd for RemoteReceiver<B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<A> std::fmt::Debug for RemoteSender<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteSender").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<B> std::fmt::Debug for RemoteReceiver<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteReceiver").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<A, B> std::fmt::Debug for RemoteConnection<A, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteConnection").field("socket", &self.receiver.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    type Ends = (RemoteConnection<String, u32>, RemoteConnection<u32, String>);

    fn ends(most: usize) -> Ends {
        let (one, other) = UnixStream::pair().unwrap();
        (RemoteConnection::new(one.into(), most), RemoteConnection::new(other.into(), most))
    }

    /// Bytes that depend on where they are and on the message's number.
    fn pattern(nth: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (nth * 31 + at * 7 + (at >> 8)) as u8).collect()
    }

    #[test]
    fn messages_of_all_lengths_arrive() {
        let (one, other) = ends(usize::MAX);
        let lengths = [0, 1, 8, 9, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 5 * PART + 77];
        std::thread::scope(|s| {
            s.spawn(move || {
                for (nth, len) in lengths.into_iter().enumerate() {
                    one.send_bytes(&pattern(nth, len)).unwrap();
                }
            });
            for (nth, len) in lengths.into_iter().enumerate() {
                assert!(other.recv_bytes().unwrap() == pattern(nth, len), "{len} bytes");
            }
            assert_eq!(other.recv_bytes(), Err(RecvError::Closed));
        });
    }

    #[test]
    fn a_message_without_room_is_received_by_nobody() {
        // Lengths for which the socket is full in the head's neighbourhood, within a part, and between parts.
        for len in [100, PART, 3 * PART + 5, 40 * PART] {
            let (one, other) = ends(usize::MAX);
            let mut sent = 0;
            while one.try_send_bytes(&pattern(sent, len)) == Ok(()) {
                sent += 1;
            }
            let timeout = Duration::from_millis(1);
            assert_eq!(one.send_bytes_timeout(&pattern(77, len), timeout), Err(SendError::TimedOut));
            let one = std::thread::spawn(move || {
                one.send_bytes(b"last").unwrap();
            });
            for nth in 0..sent {
                assert!(other.recv_bytes().unwrap() == pattern(nth, len), "{nth} of {len} bytes");
            }
            assert_eq!(other.recv_bytes().unwrap(), b"last");
            assert_eq!(other.recv_bytes(), Err(RecvError::Closed));
            one.join().unwrap();
        }
    }

    #[test]
    fn bytes_one_at_a_time_are_messages_too() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let other = RemoteConnection::<u8, u8>::new(other.into(), 100);
        let bytes = [&3_u64.to_le_bytes()[..], &[GO, 7, 8, 9, END]].concat();
        for byte in &bytes {
            assert_eq!(other.try_recv_bytes(), Err(RecvError::Empty));
            one.write_all(&[*byte]).unwrap();
        }
        assert!(other.poll(Some(Duration::ZERO)).unwrap());
        assert_eq!(other.try_recv_bytes().unwrap(), [7, 8, 9]);
        assert!(!other.poll(Some(Duration::ZERO)).unwrap());
        // Taken back at once, and after a part.
        one.write_all(&[&5_u64.to_le_bytes()[..], &[ABORT]].concat()).unwrap();
        one.write_all(&[&3_u64.to_le_bytes()[..], &[GO, 7, 8, 9, ABORT]].concat()).unwrap();
        one.write_all(&bytes).unwrap();
        assert_eq!(other.try_recv_bytes().unwrap(), [7, 8, 9]);
        one.write_all(&bytes[..11]).unwrap();
        drop(one);
        assert_eq!(other.recv_bytes(), Err(RecvError::PeerDied));
    }

    #[test]
    fn long_messages_stay_until_they_are_discarded() {
        let (one, other) = UnixStream::pair().unwrap();
        let one = RemoteConnection::<u8, u8>::new(one.into(), usize::MAX);
        let other = RemoteConnection::<u8, u8>::new(other.into(), 10);
        let thread = std::thread::spawn(move || {
            one.send_bytes(&pattern(0, 3 * PART)).unwrap();
            one.send_bytes(b"ten bytes.").unwrap();
        });
        for _ in 0..2 {
            assert_eq!(other.recv_bytes(), Err(RecvError::TooLong { bytes: 3 * PART }));
        }
        assert_eq!(other.discard(), Ok(3 * PART as u64));
        assert_eq!(other.recv_bytes().unwrap(), b"ten bytes.");
        assert_eq!(other.send_bytes(&[0; 11]), Err(SendError::TooLong { most: 10 }));
        thread.join().unwrap();
    }

    #[test]
    fn noise_ends_it_for_good() {
        for noise in [&[0xff_u8; 40][..], &[&1_u64.to_le_bytes()[..], &[GO, 5, 77]].concat()] {
            let (mut one, other) = UnixStream::pair().unwrap();
            let other = RemoteConnection::<u8, u8>::new(other.into(), usize::MAX);
            one.write_all(noise).unwrap();
            one.write_all(&[&1_u64.to_le_bytes()[..], &[GO, 5, END]].concat()).unwrap();
            for _ in 0..3 {
                assert_eq!(other.recv_bytes(), Err(RecvError::Damaged));
            }
        }
    }

    #[test]
    fn a_length_that_lies_costs_no_memory() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let other = RemoteConnection::<u8, u8>::new(other.into(), usize::MAX);
        one.write_all(&[&[0xff; 8][..], &[GO, 1, 2, 3]].concat()).unwrap();
        assert_eq!(other.try_recv_bytes(), Err(RecvError::Empty));
        drop(one);
        assert_eq!(other.recv_bytes(), Err(RecvError::PeerDied));
    }

    #[test]
    fn what_comes_without_end_ends_at_the_deadline() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let other = RemoteConnection::<u8, u8>::new(other.into(), 100);
        let noise = [&5_u64.to_le_bytes()[..], &[ABORT]].concat().repeat(3 * TURNS);
        one.write_all(&[&noise[..], &1_u64.to_le_bytes()[..], &[GO, 7, END]].concat()).unwrap();
        assert_eq!(other.try_recv_bytes(), Err(RecvError::Empty));
        assert_eq!(other.recv_bytes_timeout(Duration::ZERO), Err(RecvError::TimedOut));
        assert_eq!(other.recv_bytes().unwrap(), [7]);
    }

    #[test]
    fn values_arrive_and_handles_do_not_leave() {
        let (one, other) = ends(1000);
        one.send(&"text".to_owned()).unwrap();
        assert_eq!(other.recv().unwrap(), "text");
        one.send_bytes(&[200]).unwrap();
        assert!(matches!(other.recv(), Err(RecvError::Undecodable(_))));
        let (one, _other) = UnixStream::pair().unwrap();
        let one = RemoteConnection::<crate::Event, u8>::new(one.into(), 1000);
        let error = one.send(&crate::Event::new().unwrap()).unwrap_err();
        assert!(error.to_string().contains(handover::ONLY_WHILE_HANDED_OVER), "{error}");
    }
}
