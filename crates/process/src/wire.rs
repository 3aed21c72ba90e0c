//! The messages between a process and its child, over one `SOCK_SEQPACKET` socket.
//!
//! | from   | kind         | head                | body                          | descriptors            |
//! |--------|--------------|---------------------|-------------------------------|------------------------|
//! | child  | `Hello`      |                     |                               |                        |
//! | parent | `Request`    | [`Request`]         | the arguments                 | stdin, if any; handles |
//! | child  | `Started`    |                     |                               |                        |
//! | child  | `Refused`    | [`Refused`]         |                               |                        |
//! | child  | `Returned`   |                     | the result                    | handles                |
//! | child  | `Panicked`   | [`Panicked`]        | the message                   |                        |
//! | child  | `Unsendable` | `String`: why       |                               |                        |
//!
//! Between a process and its fork server, over another socket:
//!
//! | from    | kind        | head                | body                          | descriptors            |
//! |---------|-------------|---------------------|-------------------------------|------------------------|
//! | server  | `Ready`     |                     |                               |                        |
//! | process | `Fork`      | [`Copy`]            | the environment               | socket, directory, streams |
//! | server  | `Forked`    | `u32`: the pid      |                               |                        |
//! | server  | `NotForked` | `i32`: the errno    |                               |                        |
//!
//! Who was executed says hello; a copy is known to be of the same version.
//!
//! A message is one packet: 8 bytes [`PREFIX`] and kind, then the [`Envelope`], the head and the body. A
//! large body travels in a memfd, whose descriptor then comes first. Descriptors that do not fit in the first
//! packet follow in packets of kind `More` (the kernel's limit is 253 for each).
//!
//! The prefix and the kinds stay as they are in all versions, so that two programs with different versions of
//! this crate can tell each other so.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::ErrorKind;
use crate::image::Build;

/// Raised whenever heads, the envelope or their encoding change.
pub(crate) const VERSION: u8 = 2;
/// The first six bytes of every packet; the version and the kind follow.
const PREFIX: [u8; 6] = *b"xproc\0";
const PREFIX_LENGTH: usize = 8;

/// Bodies above this size travel in a memfd.
const INLINE: usize = 64 << 10;
/// Heads are cut to fit (see [`clip`]), so no packet is larger than this.
const PACKET: usize = INLINE + (16 << 10);
/// Descriptors in one packet.
const CHUNK: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Request = 2,
    Started = 3,
    Refused = 4,
    Returned = 5,
    Panicked = 6,
    Unsendable = 7,
    More = 8,
    Ready = 9,
    Fork = 10,
    Forked = 11,
    NotForked = 12,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Hello,
        Self::Request,
        Self::Started,
        Self::Refused,
        Self::Returned,
        Self::Panicked,
        Self::Unsendable,
        Self::More,
        Self::Ready,
        Self::Fork,
        Self::Forked,
        Self::NotForked,
    ];
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    head: u32,
    /// Length of the body if it is in a memfd.
    memfd: Option<u64>,
    /// How many descriptors belong to the message, in this packet and those that follow.
    descriptors: u32,
}

/// "Call this function."
#[derive(Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) function: Function,
    /// True if the first descriptor is to be the standard input.
    pub(crate) stdin: bool,
    pub(crate) manner: Manner,
}

/// How the process is to run: what it does to itself before all else.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manner {
    /// Ends with its parent.
    pub(crate) daemon: bool,
    /// The processors it may run on; none: as it is.
    pub(crate) cpus: Option<Vec<u32>>,
    pub(crate) niceness: Option<i32>,
}

/// "Make a copy of yourself."
#[derive(Serialize, Deserialize)]
pub(crate) struct Copy {
    /// Which of the standard streams have a descriptor in the message; the others are /dev/null.
    pub(crate) streams: [bool; 3],
    pub(crate) blocked_signals: u64,
}

/// A function of the program that the child runs.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Function {
    /// By its place in the machine code: only for the very same build.
    Code {
        build: Build,
        /// Address of the trampoline for its types, from the base of the executable.
        trampoline: u64,
        /// Address of the function, from the base of the executable.
        function: u64,
        /// Digest of the types.
        types: u64,
    },
    /// By the name that it was registered under.
    Named { name: String, types: String },
}

/// "I will not."
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Reason {
    WrongBuild,
    NoSuchFunction,
    WrongTypes,
    Arguments,
    TooManyFiles,
    System,
    ForkServer,
}

impl Reason {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::WrongBuild => ErrorKind::WrongBuild,
            Self::NoSuchFunction => ErrorKind::NoSuchFunction,
            Self::WrongTypes => ErrorKind::WrongTypes,
            Self::Arguments => ErrorKind::Arguments,
            Self::TooManyFiles => ErrorKind::TooManyFiles,
            Self::System => ErrorKind::System,
            Self::ForkServer => ErrorKind::ForkServer,
        }
    }
}

/// "The function panicked."
#[derive(Serialize, Deserialize)]
pub(crate) struct Panicked {
    pub(crate) location: Option<String>,
}

/// A message, complete.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Message {
    pub(crate) fn head<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        postcard::from_bytes(&self.head).map_err(|_| Fault::Garbled)
    }
}

/// The longest prefix of `text` of at most `limit` bytes, so that heads fit into a packet.
pub(crate) fn clip(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// Why nothing can be received any more.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The other side has another version of this protocol.
    Version(u8),
    /// What arrived is not in this protocol.
    Garbled,
    /// Descriptors were lost because this process may not have more.
    TooManyFiles,
    /// The socket or the memfd failed.
    System(io::Error),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::from(io::Error::from(errno))
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        if crate::error::is_out_of_files(&error) { Self::TooManyFiles } else { Self::System(error) }
    }
}

/// Whether a call may sleep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    Sleep,
    Return,
}

/// A message on its way out: packets that have not been sent yet.
#[derive(Debug)]
pub(crate) struct Outgoing(VecDeque<(Vec<u8>, Vec<OwnedFd>)>);

impl Outgoing {
    pub(crate) fn new(
        kind: Kind,
        head: &impl Serialize,
        body: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let encode_error = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let head = postcard::to_stdvec(head).map_err(encode_error)?;
        if head.len() > PACKET - INLINE - 64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name is too long"));
        }
        let memfd = if body.len() > INLINE {
            descriptors.insert(0, memfd_with(body)?);
            Some(body.len() as u64)
        } else {
            None
        };
        let count = u32::try_from(descriptors.len()).map_err(|_| Errno::MFILE)?;
        let envelope = Envelope { head: head.len() as u32, memfd, descriptors: count };

        let mut packet = prefix(kind);
        packet.extend(postcard::to_stdvec(&envelope).map_err(encode_error)?);
        packet.extend(head);
        if memfd.is_none() {
            packet.extend(body);
        }
        let mut descriptors = descriptors.into_iter();
        let mut packets = VecDeque::from([(packet, descriptors.by_ref().take(CHUNK).collect())]);
        while descriptors.len() > 0 {
            packets.push_back((prefix(Kind::More), descriptors.by_ref().take(CHUNK).collect()));
        }
        Ok(Self(packets))
    }

    /// Sends what has not been sent; false if the socket is full and the call may not sleep.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, patience: Patience) -> Result<bool, Errno> {
        let flags = SendFlags::NOSIGNAL
            | if patience == Patience::Return { SendFlags::DONTWAIT } else { SendFlags::empty() };
        while let Some((packet, descriptors)) = self.0.front() {
            let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                assert!(
                    control.push(SendAncillaryMessage::ScmRights(&descriptors)),
                    "the space is for CHUNK"
                );
            }
            match sendmsg(socket, &[IoSlice::new(packet)], &mut control, flags) {
                Ok(_) => drop(self.0.pop_front()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}

fn prefix(kind: Kind) -> Vec<u8> {
    let mut packet = PREFIX.to_vec();
    packet.extend([VERSION, kind as u8]);
    packet
}

/// A file in memory.
pub(crate) fn memfd(name: &str) -> Result<OwnedFd, Errno> {
    // Not executable where the kernel knows the flag (6.3), because it may insist on it (vm.memfd_noexec).
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, MemfdFlags::CLOEXEC),
        other => other,
    }
}

fn memfd_with(body: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd("crossproc-message")?);
    file.write_all(body)?;
    Ok(file.into())
}

/// What [`Incoming::receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    /// Nothing more for now (only when the call may not sleep).
    Nothing,
    /// The other side has closed its end: nothing will follow.
    Closed,
}

/// The receiving end: puts messages together again.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// A message whose descriptors have not all arrived.
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    message: Message,
    memfd: Option<u64>,
    descriptors: usize,
}

impl Incoming {
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, patience: Patience) -> Result<Received, Fault> {
        loop {
            let (packet, descriptors) = match receive_packet(socket, patience) {
                Ok(received) => received,
                Err(Fault::System(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Received::Nothing);
                }
                // The other side died with messages of ours unread.
                Err(Fault::System(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Received::Closed);
                }
                Err(fault) => return Err(fault),
            };
            if packet.is_empty() {
                return Ok(Received::Closed);
            }
            let partial = match (parse(&packet)?, self.partial.take()) {
                (None, Some(partial)) => self.partial.insert(partial),
                (Some(partial), None) => self.partial.insert(partial),
                _ => return Err(Fault::Garbled),
            };
            partial.message.descriptors.extend(descriptors);
            if partial.message.descriptors.len() >= partial.descriptors {
                let partial = self.partial.take().expect("it was put there above");
                return Ok(Received::Message(partial.complete()?));
            }
        }
    }
}

impl Partial {
    fn complete(mut self) -> Result<Message, Fault> {
        if self.message.descriptors.len() != self.descriptors {
            return Err(Fault::Garbled);
        }
        if let Some(length) = self.memfd {
            if self.message.descriptors.is_empty() {
                return Err(Fault::Garbled);
            }
            let file = File::from(self.message.descriptors.remove(0));
            let length = usize::try_from(length).map_err(|_| Fault::Garbled)?;
            // The length is what the sender claims: believed only as far as there is memory and content.
            let body = &mut self.message.body;
            body.try_reserve_exact(length).map_err(|_| Fault::from(io::Error::from(Errno::NOMEM)))?;
            // The descriptor shares its offset with the sender's, which stands at the end.
            std::io::Seek::rewind(&mut &file)?;
            file.take(length as u64).read_to_end(body)?;
            if body.len() != length {
                return Err(Fault::Garbled);
            }
        }
        Ok(self.message)
    }
}

/// Receives one packet; an empty one is the end.
fn receive_packet(socket: BorrowedFd<'_>, patience: Patience) -> Result<(Vec<u8>, Vec<OwnedFd>), Fault> {
    let flags = RecvFlags::CMSG_CLOEXEC
        | if patience == Patience::Return { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    // Not a buffer for the largest packet there is: in a copy of a process, each page that is touched is copied.
    let length = loop {
        match recv(socket, &mut [0; 1][..], flags | RecvFlags::PEEK | RecvFlags::TRUNC) {
            Err(Errno::INTR) => {}
            other => break other?.1,
        }
    };
    let mut packet = vec![0; length.clamp(1, PACKET)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Fault::TooManyFiles);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Fault::Garbled);
    }
    packet.truncate(received.bytes);
    Ok((packet, descriptors))
}

/// The message that a packet begins; `None` for one that only brings more descriptors.
fn parse(packet: &[u8]) -> Result<Option<Partial>, Fault> {
    let (prefix, rest) = packet.split_at_checked(PREFIX_LENGTH).ok_or(Fault::Garbled)?;
    if prefix[..6] != PREFIX {
        return Err(Fault::Garbled);
    }
    if prefix[6] != VERSION {
        return Err(Fault::Version(prefix[6]));
    }
    let kind = Kind::ALL.into_iter().find(|&kind| kind as u8 == prefix[7]).ok_or(Fault::Garbled)?;
    if kind == Kind::More {
        return Ok(None);
    }
    let (envelope, rest): (Envelope, _) = postcard::take_from_bytes(rest).map_err(|_| Fault::Garbled)?;
    let (head, body) = rest.split_at_checked(envelope.head as usize).ok_or(Fault::Garbled)?;
    Ok(Some(Partial {
        message: Message { kind, head: head.to_vec(), body: body.to_vec(), descriptors: Vec::new() },
        memfd: envelope.memfd,
        descriptors: envelope.descriptors as usize,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, send, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn round_trip(body: &[u8], descriptors: usize) -> Message {
        let (ours, theirs) = pair();
        let descriptors = (0..descriptors).map(|_| null()).collect();
        let mut outgoing = Outgoing::new(Kind::Returned, &"head", body, descriptors).unwrap();
        let mut incoming = Incoming::default();
        loop {
            let sent = outgoing.send(ours.as_fd(), Patience::Return).unwrap();
            match incoming.receive(theirs.as_fd(), Patience::Return).unwrap() {
                Received::Message(message) => return message,
                Received::Nothing => assert!(!sent, "everything was sent and nothing arrived"),
                Received::Closed => panic!("closed"),
            }
        }
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        for length in [0, 1, INLINE, INLINE + 1, 3 << 20] {
            for descriptors in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 300] {
                let body: Vec<u8> = (0..length).map(|i| i as u8).collect();
                let message = round_trip(&body, descriptors);
                assert_eq!(message.kind, Kind::Returned);
                assert_eq!(message.head::<String>().unwrap(), "head");
                assert!(message.body == body, "{length} bytes");
                assert_eq!(message.descriptors.len(), descriptors);
            }
        }
    }

    #[test]
    fn foreign_bytes_are_a_fault_and_not_a_message() {
        let good = Outgoing::new(Kind::Hello, &(), b"body", Vec::new()).unwrap();
        let good = good.0[0].0.clone();
        let mut packets: Vec<Vec<u8>> = (1..PREFIX_LENGTH + 3).map(|end| good[..end].to_vec()).collect();
        packets.push(vec![0; PACKET + 1]);
        packets.push(vec![0xff; 100]);
        let mut unknown_kind = good.clone();
        unknown_kind[7] = 99;
        packets.push(unknown_kind);
        packets.push(prefix(Kind::More));
        // A memfd of 16 EiB that is not there.
        let mut packet = prefix(Kind::Returned);
        let envelope = Envelope { head: 0, memfd: Some(u64::MAX), descriptors: 0 };
        packet.extend(postcard::to_stdvec(&envelope).unwrap());
        packets.push(packet);
        for packet in packets {
            let (ours, theirs) = pair();
            send(&ours, &packet, SendFlags::empty()).unwrap();
            let received = Incoming::default().receive(theirs.as_fd(), Patience::Return);
            assert!(matches!(received, Err(Fault::Garbled)), "{packet:?}: {received:?}");
        }
    }

    #[test]
    fn another_version_is_told_apart_from_noise() {
        let (ours, theirs) = pair();
        let mut packet = prefix(Kind::Hello);
        packet[6] = VERSION + 1;
        send(&ours, &packet, SendFlags::empty()).unwrap();
        let received = Incoming::default().receive(theirs.as_fd(), Patience::Return);
        assert!(matches!(received, Err(Fault::Version(version)) if version == VERSION + 1));
    }

    #[test]
    fn a_body_larger_than_memory_is_a_fault() {
        let (ours, theirs) = pair();
        let mut packet = prefix(Kind::Returned);
        let envelope = Envelope { head: 0, memfd: Some(1 << 62), descriptors: 1 };
        packet.extend(postcard::to_stdvec(&envelope).unwrap());
        let mut outgoing = Outgoing(VecDeque::from([(packet, vec![null()])]));
        outgoing.send(ours.as_fd(), Patience::Return).unwrap();
        let received = Incoming::default().receive(theirs.as_fd(), Patience::Return);
        assert!(matches!(received, Err(Fault::System(_))), "{received:?}");
    }

    #[test]
    fn lost_descriptors_are_a_fault_and_not_a_shorter_table() {
        // In a process of its own, because the limit is one of the whole process.
        fn receive_too_many((): ()) -> bool {
            let (ours, theirs) = pair();
            let descriptors = (0..20).map(|_| null()).collect();
            let mut outgoing = Outgoing::new(Kind::Returned, &(), b"", descriptors).unwrap();
            outgoing.send(ours.as_fd(), Patience::Return).unwrap();
            drop(outgoing);
            let next = null();
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let current = Some(std::os::fd::AsRawFd::as_raw_fd(&next) as u64 + 10);
            let lower = rustix::process::Rlimit { current, ..limit };
            rustix::process::setrlimit(rustix::process::Resource::Nofile, lower).unwrap();
            let received = Incoming::default().receive(theirs.as_fd(), Patience::Return);
            matches!(received, Err(Fault::TooManyFiles))
        }
        assert!(crate::Process::spawn(receive_too_many, ()).unwrap().join().unwrap());
    }

    #[test]
    fn clip_cuts_between_characters() {
        assert_eq!(clip("aéb", 2), "a");
        assert_eq!(clip("aéb", 3), "aé");
        assert_eq!(clip("aéb", 9), "aéb");
        assert_eq!(clip("", 0), "");
    }
}
