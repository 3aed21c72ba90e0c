//! A message that was found: in the ring, or gathered from its parts.

use std::os::fd::OwnedFd;

use crossproc_ring::{Chunk, Extent};

use super::bytes::RingBytes;

/// The memory of a message in parts is kept for the next one up to this size: new memory would cost more than the copy.
const GATHERED_KEPT: usize = 1 << 20;

/// The handles of a message.
#[derive(Default)]
pub(super) enum Came {
    #[default]
    Nothing,
    Handles(Vec<OwnedFd>),
    Lost,
}

/// A message, or a part of one, that is no longer in the ring.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) bytes: Vec<u8>,
    /// So many of them were read.
    pub(super) read: usize,
    /// All of it has come.
    pub(super) is_whole: bool,
    /// Its label is in front of it.
    pub(super) has_parcel: bool,
    /// So many bytes of it are not here, but in the buffer of the call that goes on ([`Take::buffer`]).
    pub(super) direct: Option<usize>,
    pub(super) came: Came,
}

/// A message that was found.
pub(super) enum Message<'a> {
    InPlace(&'a RingBytes, Extent),
    Gathered(&'a mut Gathered),
    /// It is in [`Take::buffer`], and so long.
    Direct(usize),
}

impl Message<'_> {
    pub(super) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::InPlace(bytes, at) => {
                let mut message = Vec::new();
                bytes.append(at, &mut message);
                message
            }
            Self::Gathered(gathered) if gathered.read == 0 => std::mem::take(&mut gathered.bytes),
            Self::Gathered(gathered) => gathered.rest().to_vec(),
            Self::Direct(_) => Vec::new(), // of who has a buffer
        }
    }
}

impl Gathered {
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    pub(super) fn clear(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        *self = Self::default();
        self.reuse(bytes);
    }

    /// Memory for the next message, unless that has begun.
    pub(super) fn reuse(&mut self, mut bytes: Vec<u8>) {
        if self.bytes.capacity() == 0 && bytes.capacity() <= GATHERED_KEPT {
            bytes.clear();
            self.bytes = bytes;
        }
    }

    /// The call ends before the message does, and takes its buffer along.
    pub(super) fn keep(&mut self, buffer: &[u8]) {
        if let Some(done) = self.direct.take() {
            self.bytes.extend_from_slice(&buffer[..done]);
        }
    }
}

/// Where a message is that is looked at in place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shown {
    InPlace { at: Extent, chunk: Chunk },
    Gathered,
}

/// What to do with the message that is found.
pub(super) enum Taken<R> {
    /// It is taken.
    Yes(R),
    /// It stays, and so does the turn.
    No(R),
}

/// What an attempt has brought.
pub(super) enum Found<R> {
    Message(R),
    Progress,
}

/// Who receives a message: a function that says what is done with it, or a buffer.
pub(super) trait Take<R> {
    fn take(&mut self, message: Message<'_>, shown: Option<Shown>) -> Taken<R>;

    /// Where the parts of a message can go at once, if it is no longer.
    fn buffer(&mut self) -> Option<&mut [u8]> {
        None
    }
}

impl<R, F: FnMut(Message<'_>, Option<Shown>) -> Taken<R>> Take<R> for F {
    #[inline]
    fn take(&mut self, message: Message<'_>, shown: Option<Shown>) -> Taken<R> {
        self(message, shown)
    }
}

/// To the start of a buffer; returns how long the message is.
pub(super) struct Fill<'a>(pub(super) &'a mut [u8]);

impl Take<usize> for Fill<'_> {
    #[inline]
    fn take(&mut self, message: Message<'_>, _: Option<Shown>) -> Taken<usize> {
        Taken::Yes(match message {
            Message::InPlace(bytes, at) => {
                bytes.read(at, self.0);
                at.len
            }
            Message::Gathered(gathered) => {
                let rest = gathered.rest();
                self.0[..rest.len()].copy_from_slice(rest);
                rest.len()
            }
            Message::Direct(len) => len,
        })
    }

    fn buffer(&mut self) -> Option<&mut [u8]> {
        Some(self.0)
    }
}
