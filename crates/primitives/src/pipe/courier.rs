//! Handles in messages: what makes them valid in another process are file descriptors, and those go by a Unix socket beside the pipe.
//!
//! ```text
//!  a message with handles       a packet on the socket, with up to 253 descriptors
//!    0  owner    u64  participant      0  owner    u64
//!    8  number   u64  of its parcels   8  number   u64
//!   16  position << 16 | packets      16  position << 16 | which of the packets: 0, 1, ..
//!   24  the serialised value
//! ```
//!
//! A sender, in its turn and when there is room for the message, sends the packets first, then the message; a receiver, in its turn, receives the
//! packets before it takes the message. Owner and number are never used twice, and positions in the ring grow: so of a packet that does
//! not belong to the message at hand it is known whether it belongs to a later one, and stays, or to none:
//!
//! A sender that finds the socket full, or sees a parcel refused in the middle, writes a frame that is no message ([`CLEAN`]): with no message in
//! the ring that has a parcel nobody else would drop such packets. A parcel of several packets is sent when the socket is nearly empty, so that it goes
//! whole.
//!
//! | killed | left | who puts it right |
//! |---|---|---|
//! | sender, before the message is there | packets without a message | the next receiver of a parcel, or of CLEAN: drops them |
//! | receiver, with some of the packets | a message whose packets are gone | the next receiver: it is told ([`RecvError::HandlesLost`](super::RecvError::HandlesLost)) |

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossproc_atomic::{AtomicU64, Liveness, Ordering};
use crossproc_segment::{Error, ErrorKind, Participants};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Resource, getrlimit};

use super::link::Loans;

/// In the tag of a frame: there is a parcel.
pub(super) const PARCEL: u8 = 1;
/// The frame is no message: a label alone, so that the receiver drops packets without a message.
pub(super) const CLEAN: u8 = 2;
/// Bytes in front of the value.
pub(super) const LABEL: usize = 24;
/// Descriptors of a packet: the kernel's limit.
const CHUNK: usize = 253;
/// Packets of a parcel at the most. They have to fit into a socket that is a quarter full.
const PACKETS_MAX: usize = 64;
/// So many packets are looked at for one parcel: more than the socket of one that keeps to the protocol has room for.
const LOOKS_MAX: usize = 2048;
/// Bits for the number of a packet.
const SHIFT: u32 = 16;

/// One end of the socket beside a pipe.
#[derive(Clone)]
pub(super) struct Courier(pub(super) Arc<OwnedFd>);

/// Descriptors to be sent.
pub(super) struct Parcel {
    owner: u64,
    number: u64,
    /// Where in the ring the writer was when it sent it.
    position: Cell<u64>,
    descriptors: Vec<OwnedFd>,
    loans: RefCell<Loans>,
}

/// Why a parcel was not sent.
pub(super) enum Refused {
    /// The socket is full, or as many descriptors of this user are on their way as the kernel allows.
    Now,
    /// There are more than go at a time.
    TooMany,
    /// The kernel lets one of them be sent to nobody.
    Never,
    /// Nobody has the other end.
    Closed,
}

impl Parcel {
    /// `None` if there is nothing in it.
    pub(super) fn new(descriptors: Vec<OwnedFd>, mut loans: Loans, live: &Participants) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if descriptors.is_empty() {
            // No handle goes without one.
            loans.lend();
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (position, loans) = (Cell::new(0), RefCell::new(loans));
        Some(Self { owner: live.me().bits(), number, position, descriptors, loans })
    }

    /// Its message is in the pipe.
    pub(super) fn is_sent(&self) {
        self.loans.borrow_mut().lend();
    }

    /// For a frame that makes the receiver drop packets without a message. It is no parcel's, so that what is ahead stays.
    pub(super) fn clean_label(&self) -> [u8; LABEL] {
        to_bytes([0, 0, self.position.get() << SHIFT])
    }

    /// After it was sent.
    pub(super) fn label(&self) -> [u8; LABEL] {
        self.words(self.descriptors.len().div_ceil(CHUNK))
    }

    fn words(&self, packets: usize) -> [u8; LABEL] {
        to_bytes([self.owner, self.number, self.position.get() << SHIFT | packets as u64])
    }
}

impl Courier {
    pub(super) fn pair() -> Result<(Self, Self), Error> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (a, b) = pair.map_err(|errno| {
            let kind = match errno {
                Errno::MFILE | Errno::NFILE => ErrorKind::TooManyFiles,
                Errno::NOMEM => ErrorKind::NoMemory,
                _ => ErrorKind::Os,
            };
            Error::new(kind, format!("making the socket of a pipe: {errno}"))
        })?;
        Ok((Self(Arc::new(a)), Self(Arc::new(b))))
    }

    /// Never waits. A parcel that is refused can be sent again; what was sent of it before belongs to no message.
    pub(super) fn send(&self, parcel: &Parcel, position: u64) -> Result<(), Refused> {
        parcel.position.set(position);
        let packets = parcel.descriptors.len().div_ceil(CHUNK);
        if packets > PACKETS_MAX {
            return Err(Refused::TooMany);
        }
        if packets > 1 && !self.is_nearly_empty() {
            return Err(Refused::Now);
        }
        for (which, chunk) in parcel.descriptors.chunks(CHUNK).enumerate() {
            let label = parcel.words(which);
            let chunk: Vec<BorrowedFd<'_>> = chunk.iter().map(OwnedFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&chunk)), "the space is for so many");
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            loop {
                match sendmsg(&*self.0, &[IoSlice::new(&label)], &mut control, flags) {
                    Ok(_) => break,
                    Err(Errno::INTR) => {}
                    Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Refused::Closed),
                    // Receivers make room, unless this parcel alone is too much.
                    Err(Errno::TOOMANYREFS) if fits_in_flight(packets) => return Err(Refused::Now),
                    Err(Errno::TOOMANYREFS) => return Err(Refused::TooMany),
                    // It will never take all of them at once.
                    Err(Errno::AGAIN) if which > 0 => return Err(Refused::TooMany),
                    Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Err(Refused::Now),
                    Err(_) => return Err(Refused::Never),
                }
            }
        }
        Ok(())
    }

    /// True if at least three quarters of the socket's room are free, or nobody has the other end.
    fn is_nearly_empty(&self) -> bool {
        let mut socket = [PollFd::new(&*self.0, PollFlags::OUT)];
        poll(&mut socket, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Drops what belongs to no message, up to the one of which a sender has said this.
    pub(super) fn clean(&self, label: [u8; LABEL]) {
        let _ = self.receive_some(label, 1);
    }

    /// The descriptors that belong to this label; `None` if they are gone. Drops what belongs to no message.
    pub(super) fn receive(&self, label: [u8; LABEL]) -> Option<Vec<OwnedFd>> {
        let [_, _, last] = from_bytes(label);
        self.receive_some(label, last & ((1 << SHIFT) - 1))
    }

    fn receive_some(&self, label: [u8; LABEL], packets: u64) -> Option<Vec<OwnedFd>> {
        let [owner, number, last] = from_bytes(label);
        let mut descriptors = Vec::new();
        let mut next = 0;
        let mut looks = 0..LOOKS_MAX;
        while next < packets {
            looks.next()?;
            let mut packet = [0; LABEL];
            // Without its descriptors.
            match recv(&*self.0, &mut packet, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
                Ok((_, LABEL)) => {
                    let [from, its, which] = from_bytes(packet);
                    let ahead = (which >> SHIFT).wrapping_sub(last >> SHIFT) << SHIFT;
                    if (from, its) != (owner, number) && (1..1 << 63).contains(&ahead) {
                        return None; // a later message's
                    }
                }
                Ok(_) => {} // a packet that nobody sends who keeps to the protocol, or the end: the looks are counted
                // The second one: the other end was closed with something unread. It is said once, before what is there.
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(_) => return None,
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = match recvmsg(&*self.0, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Ok(received) => received,
                Err(_) => return None,
            };
            let came = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let came: Vec<OwnedFd> = came.flatten().collect();
            let [from, its, which] = from_bytes(packet);
            if received.bytes != LABEL || (from, its) != (owner, number) {
                continue;
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return None; // this process has no descriptor left
            }
            let which = which & ((1 << SHIFT) - 1);
            if which == 0 {
                // Sent again, after the socket was full.
                descriptors.clear();
                next = 0;
            }
            if which == next {
                descriptors.extend(came);
                next += 1;
            }
        }
        Some(descriptors)
    }
}

/// True if the kernel takes so many packets one after the other while nothing else of this user is on its way: it refuses one when there
/// are more descriptors than a process may have open.
fn fits_in_flight(packets: usize) -> bool {
    let most = getrlimit(Resource::Nofile).current;
    most.is_none_or(|most| ((packets - 1) * CHUNK) as u64 <= most)
}

fn to_bytes(words: [u64; 3]) -> [u8; LABEL] {
    let mut bytes = [0; LABEL];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn from_bytes(bytes: [u8; LABEL]) -> [u64; 3] {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    [word(0), word(8), word(16)]
}
