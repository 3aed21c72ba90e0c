//! What is said before a connection is one.
//!
//! | from | message | body |
//! |---|---|---|
//! | connector | `Hello` | whether it has a key, 32 random bytes |
//! | listener | `Hello` | the same, its own |
//! | connector | `Proof` | its MAC; the names of the types that it sends and receives |
//! | listener | `Welcome` | its MAC; beside it the segment's descriptor and that of the socket for handles (Unix sockets) |
//! | connector | `Ready` | nothing: it has its end |
//! | listener | `Refused` | why, instead of any of its messages; the last one |
//!
//! A message is 16 bytes (magic, version, kind, length of the body) and the body, at most [`BODY`] bytes. The first ten bytes stay as they are
//! in all versions, so that different versions can tell each other so.
//!
//! The MACs are HMAC-SHA-256 with the key, over a text that differs for the two sides, both `Hello`s and the names: so each side proves
//! that it has the key *now* (the other's random bytes are in it), for this very conversation, in this role. Nobody sees the key. Without a key the
//! MACs are zero and mean nothing.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hmac::{Hmac, KeyInit, Mac};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::object_queue::layout_of;

/// Raised whenever messages or their meaning change.
pub(super) const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"xprocmet";
const HEAD: usize = 16;
/// Bytes of a body at the most.
const BODY: usize = 4096;
/// Bytes of a type's name at the most; the end of a longer one is replaced by a digest.
const NAME: usize = 1900;
/// Descriptors beside a message at the most.
pub(super) const DESCRIPTORS: usize = 2;

pub(super) const MAC: usize = 32;
/// Whether there is a key, and random bytes.
pub(super) type Greeting = [u8; 33];

/// A secret that both sides know; see [`ListenerOptions::key`](super::ListenerOptions::key).
#[derive(Clone)]
pub struct Key(Vec<u8>);

impl Key {
    /// Best are 32 random bytes: who sees an attempt to connect can try out passwords on it at leisure.
    ///
    /// # Panics
    ///
    /// If it is empty.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        assert!(!bytes.is_empty(), "a key is not empty; to have none, set none");
        Self(bytes)
    }
}

impl<B: Into<Vec<u8>>> From<B> for Key {
    /// As [`Key::new`].
    fn from(bytes: B) -> Self {
        Self::new(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Proof = 2,
    Welcome = 3,
    Ready = 4,
    Refused = 5,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Hello, Self::Proof, Self::Welcome, Self::Ready, Self::Refused];
}

/// Why a listener does not want a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    Version = 1,
    Peer = 2,
    KeyNeeded = 3,
    NoKey = 4,
    WrongKey = 5,
    Types = 6,
    Unavailable = 7,
}

impl Reason {
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        use Reason::*;
        [Version, Peer, KeyNeeded, NoKey, WrongKey, Types, Unavailable].into_iter().find(|&r| r as u8 == byte)
    }
}

/// What the connector says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Proof {
    pub(super) mac: [u8; MAC],
    pub(super) sends: String,
    pub(super) receives: String,
}

/// What a side has to say.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) key: Option<Key>,
    pub(super) sends: String,
    pub(super) receives: String,
}

impl Terms {
    /// Of a side that sends values of type `A` and receives values of type `B`.
    pub(super) fn new<A, B>(key: Option<Key>) -> Self {
        Self { key, sends: name_of::<A>(), receives: name_of::<B>() }
    }

    pub(super) fn greeting(&self) -> Result<Greeting, Errno> {
        let mut greeting = [0; 33];
        let random = &mut greeting[1..];
        if getrandom(&mut *random, GetRandomFlags::empty())? != random.len() {
            return Err(Errno::IO);
        }
        greeting[0] = u8::from(self.key.is_some());
        Ok(greeting)
    }
}

/// Which side says it.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Connector,
    Listener,
}

/// All that was said.
pub(super) struct Said<'a> {
    pub(super) connector: &'a Greeting,
    pub(super) listener: &'a Greeting,
    /// What the connector sends and receives.
    pub(super) sends: &'a str,
    pub(super) receives: &'a str,
}

impl Said<'_> {
    fn mac(&self, key: &Key, side: Side) -> Hmac<Sha256> {
        let label: &[u8] = match side {
            Side::Connector => b"crossproc 1 connector",
            Side::Listener => b"crossproc 1 listener",
        };
        let parts = [label, self.connector, self.listener, self.sends.as_bytes(), self.receives.as_bytes()];
        let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("a key of this MAC has any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// The MAC of a side; zero without a key.
    pub(super) fn prove(&self, key: Option<&Key>, side: Side) -> [u8; MAC] {
        key.map_or([0; MAC], |key| self.mac(key, side).finalize().into_bytes().into())
    }

    /// Whether it is the MAC of a side; in a time that does not tell how much of it is right. True without a key.
    pub(super) fn is_proven(&self, key: Option<&Key>, side: Side, mac: &[u8; MAC]) -> bool {
        key.is_none_or(|key| self.mac(key, side).verify_slice(mac).is_ok())
    }
}

fn name_of<T>() -> String {
    clip(layout_of::<T>().name)
}

/// Names of different types stay different.
fn clip(name: &str) -> String {
    if name.len() <= NAME {
        return name.to_owned();
    }
    let end = (0..=NAME - 20).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    let digest = Sha256::digest(name.as_bytes());
    let digest = digest.iter().take(8).fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
    format!("{}..{digest:016x}", &name[..end])
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
}

/// Why nothing can be received any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Garbled,
    Version(u16),
    /// The other side has left.
    Closed,
    System(Errno),
}

/// A message of which not all has come. Reads nothing behind it.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// The last descriptors that came.
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Inbox {
    /// The next message, when all of it has come; `None` if the socket has nothing more. Descriptors are taken only if they are wanted.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        with_descriptors: bool,
    ) -> Result<Option<Message>, Fault> {
        loop {
            let needed = self.needed()?;
            let have = self.bytes.len();
            if have == needed {
                let body = self.bytes.split_off(HEAD);
                let kind = Kind::ALL.into_iter().find(|&kind| kind as u8 == self.bytes[10]);
                self.bytes.clear();
                return Ok(Some(Message { kind: kind.ok_or(Fault::Garbled)?, body }));
            }
            self.bytes.resize(needed, 0);
            let result = if with_descriptors {
                recv_with_descriptors(socket, &mut self.bytes[have..], &mut self.descriptors)
            } else {
                // Descriptors that come along are closed by the kernel.
                recv(socket, &mut self.bytes[have..], RecvFlags::DONTWAIT).map(|(_, read)| read)
            };
            self.bytes.truncate(have + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) | Err(Errno::CONNRESET) => return Err(Fault::Closed),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(Fault::System(errno)),
            }
        }
    }

    /// Bytes of the message as far as is known; noise is found out at its first byte.
    fn needed(&self) -> Result<usize, Fault> {
        let known = self.bytes.len().min(MAGIC.len());
        if self.bytes[..known] != MAGIC[..known] {
            return Err(Fault::Garbled);
        }
        if let Some(&[low, high]) = self.bytes.get(8..10) {
            let version = u16::from_le_bytes([low, high]);
            if version != VERSION {
                return Err(Fault::Version(version));
            }
        }
        match self.bytes.get(12..14) {
            Some(&[low, high]) if self.bytes.len() >= HEAD => {
                let body = usize::from(u16::from_le_bytes([low, high]));
                if body > BODY { Err(Fault::Garbled) } else { Ok(HEAD + body) }
            }
            _ => Ok(HEAD),
        }
    }
}

fn recv_with_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            *descriptors = came.collect();
        }
    }
    Ok(received.bytes)
}

/// Sends a message, with descriptors beside it. Never waits: nothing else is in the way of so few bytes, unless the other side reads
/// nothing at all.
pub(super) fn send(
    socket: impl AsFd,
    kind: Kind,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let message = encode(kind, body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "the space is for so many");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(&socket, &[IoSlice::new(&message)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Ok(sent) if sent < message.len() => return Err(Errno::AGAIN),
            other => return other.map(drop),
        }
    }
}

fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    assert!(body.len() <= BODY, "all our messages are short");
    let mut message = MAGIC.to_vec();
    message.extend(VERSION.to_le_bytes());
    message.extend([kind as u8, 0]);
    message.extend((body.len() as u16).to_le_bytes());
    message.extend([0, 0]);
    message.extend(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn received(bytes: &[u8]) -> Result<Option<Message>, Fault> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        Inbox::default().receive(theirs.as_fd(), false)
    }

    #[test]
    fn messages_arrive_in_whatever_pieces_they_come() {
        let message = [encode(Kind::Proof, b"body"), encode(Kind::Ready, b"")].concat();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut inbox, mut found) = (Inbox::default(), Vec::new());
        for byte in message {
            ours.write_all(&[byte]).unwrap();
            found.extend(inbox.receive(theirs.as_fd(), false).unwrap());
        }
        let found: Vec<_> = found.into_iter().map(|message| (message.kind, message.body)).collect();
        assert_eq!(found, [(Kind::Proof, b"body".to_vec()), (Kind::Ready, Vec::new())]);
    }

    #[test]
    fn what_stands_behind_a_message_stays_in_the_socket() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[encode(Kind::Ready, b""), b"rest".to_vec()].concat()).unwrap();
        assert_eq!(Inbox::default().receive(theirs.as_fd(), false).unwrap().unwrap().kind, Kind::Ready);
        let mut rest = [0; 9];
        assert_eq!(std::io::Read::read(&mut &theirs, &mut rest).unwrap(), 4);
    }

    #[test]
    fn noise_is_found_out_at_its_first_byte() {
        assert_eq!(received(b"G").unwrap_err(), Fault::Garbled);
        assert_eq!(received(&[0; 16]).unwrap_err(), Fault::Garbled);
        let mut other = encode(Kind::Hello, b"");
        other[8] = 9;
        assert_eq!(received(&other[..10]).unwrap_err(), Fault::Version(9));
        let mut long = encode(Kind::Hello, b"");
        long[12..14].copy_from_slice(&(BODY as u16 + 1).to_le_bytes());
        assert_eq!(received(&long).unwrap_err(), Fault::Garbled);
        let mut unknown = encode(Kind::Hello, b"");
        unknown[10] = 77;
        assert_eq!(received(&unknown).unwrap_err(), Fault::Garbled);
        assert!(received(&encode(Kind::Hello, b"all")[..18]).unwrap().is_none());
    }

    #[test]
    fn a_mac_is_good_for_one_key_one_side_and_one_conversation() {
        let (key, other) = (Key::new("secret"), Key::new("Secret"));
        let (one, two) = ([1; 33], [2; 33]);
        let said = Said { connector: &one, listener: &two, sends: "u8", receives: "u16" };
        let mac = said.prove(Some(&key), Side::Connector);
        assert!(said.is_proven(Some(&key), Side::Connector, &mac));
        assert!(!said.is_proven(Some(&other), Side::Connector, &mac));
        assert!(!said.is_proven(Some(&key), Side::Listener, &mac), "sent back, it proves nothing");
        for changed in [
            Said { connector: &two, ..said },
            Said { listener: &one, ..said },
            Said { sends: "u", receives: "8u16", ..said },
        ] {
            assert!(!changed.is_proven(Some(&key), Side::Connector, &mac));
        }
        for bit in 0..256 {
            let mut wrong = mac;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!said.is_proven(Some(&key), Side::Connector, &wrong), "bit {bit}");
        }
    }

    #[test]
    fn the_mac_is_the_one_of_rfc_4231() {
        // Test case 2.
        let mut mac = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        mac.update(b"what do ya want for nothing?");
        let start: [u8; 4] = mac.finalize().into_bytes()[..4].try_into().unwrap();
        assert_eq!(start, [0x5b, 0xdc, 0xc1, 0x46]);
    }

    #[test]
    fn long_names_are_cut_and_stay_different() {
        let name = "a".repeat(5000);
        assert_eq!(clip("u8"), "u8");
        assert!(clip(&name).len() <= NAME);
        assert_ne!(clip(&name), clip(&(name.clone() + "b")));
    }

    #[test]
    fn greetings_differ_and_tell_of_a_key() {
        let (with, without) = (Terms::new::<u8, u8>(Some("k".into())), Terms::new::<u8, u8>(None));
        assert_eq!((with.greeting().unwrap()[0], without.greeting().unwrap()[0]), (1, 0));
        assert_ne!(with.greeting().unwrap(), with.greeting().unwrap());
    }
}
