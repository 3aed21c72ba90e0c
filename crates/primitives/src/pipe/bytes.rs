#![allow(unsafe_code)]
//! The room where the bytes of frames enter and leave shared memory.
//!
//! Claims, and who keeps them:
//! * `words` is a placed run of as many words as the shape says; every extent is compared with its end before it becomes an address.
//! * Bytes are copied to and from plain memory by pointer: no reference to shared memory lives meanwhile, and any bytes are bytes. Others
//!   leave them alone as long as it is the caller's turn; a process that does not keep to that makes bytes wrong, and nothing else.
//! * `slice` and `slice_mut` hand out plain references: only to [`Reserved`] and [`Peeked`], which borrow the one handle whose turn it is,
//!   mutably. That no other process writes there is the trust that they document.

use std::io::IoSlice;
use std::ops::{Deref, DerefMut};

use crossproc_atomic::AtomicU64;
use crossproc_ring::{Extent, FrameShape};
use crossproc_segment::PlacedSlice;

use super::message::{Gathered, Shown};
use super::receiver::Receiver;
use super::sender::Sender;

/// The data of one ring.
pub(super) struct RingBytes {
    words: PlacedSlice<AtomicU64>,
    shape: FrameShape,
}

impl RingBytes {
    pub(super) fn new(words: PlacedSlice<AtomicU64>, shape: FrameShape) -> Self {
        assert_eq!(words.len(), shape.words(), "all of the ring");
        Self { words, shape }
    }

    #[inline]
    pub(super) fn words(&self) -> &PlacedSlice<AtomicU64> {
        &self.words
    }

    /// Where bytes that lie beside each other begin.
    #[inline]
    fn address(&self, at: Extent) -> *mut u8 {
        let end = at.at.checked_add(at.len);
        assert!(end.is_some_and(|end| end <= self.words.len() * 8), "bytes lie in the ring");
        self.words.as_ptr().cast_mut().cast::<u8>().wrapping_add(at.at)
    }

    /// Writes `slices`, one behind the other and without the first `skip` bytes, up to the end of the extent.
    #[inline]
    pub(super) fn write(&self, to: Extent, slices: &[IoSlice<'_>], mut skip: usize) {
        let mut to = to.pieces(self.shape);
        for slice in slices {
            let mut from = slice.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(slice.len());
            for piece in &mut to {
                let n = from.len().min(piece.len);
                let (now, later) = from.split_at(n);
                let address = self.address(Extent { len: n, ..*piece });
                // SAFETY: `n` bytes from there are inside of the placed run, as `address` has compared, and `now` has as many; private
                // memory does not overlap with the mapping's. It is the caller's turn.
                unsafe { now.as_ptr().copy_to_nonoverlapping(address, n) };
                *piece = Extent { at: piece.at + n, len: piece.len - n };
                from = later;
            }
        }
    }

    /// Copies the bytes to the start of `to`.
    ///
    /// # Panics
    ///
    /// If that is too short.
    #[inline]
    pub(super) fn read(&self, from: Extent, to: &mut [u8]) {
        let mut done = 0;
        for piece in from.pieces(self.shape) {
            let to = &mut to[done..done + piece.len];
            // SAFETY: as for `write`, the other way round.
            unsafe { self.address(piece).copy_to_nonoverlapping(to.as_mut_ptr(), piece.len) };
            done += piece.len;
        }
    }

    /// Copies the bytes behind those that `to` has.
    #[inline]
    pub(super) fn append(&self, from: Extent, to: &mut Vec<u8>) {
        to.reserve(from.len);
        for piece in from.pieces(self.shape) {
            let room = to.spare_capacity_mut();
            assert!(room.len() >= piece.len, "as was reserved");
            let address = self.address(piece);
            // SAFETY: as for `read`: so many bytes fit, and are written.
            unsafe {
                address.copy_to_nonoverlapping(room.as_mut_ptr().cast(), piece.len);
                to.set_len(to.len() + piece.len);
            }
        }
    }

    /// Bytes of a frame, in place.
    ///
    /// # Safety
    ///
    /// It is the caller's turn for as long as the reference lives, and nobody has a reference by `slice_mut`.
    #[inline]
    unsafe fn slice(&self, at: Extent) -> &[u8] {
        // SAFETY: inside of the placed run; any bits are bytes; exclusion of writers is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.address(at), at.len) }
    }

    /// Bytes of a frame, in place, for changing.
    ///
    /// # Safety
    ///
    /// As for [`slice`](Self::slice), and no other reference to them lives.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "the turn is what makes it exclusive")]
    unsafe fn slice_mut(&self, at: Extent) -> &mut [u8] {
        // SAFETY: as for `slice`, and exclusive by the caller's promise; the atomics allow writing through `&self`.
        unsafe { std::slice::from_raw_parts_mut(self.address(at), at.len) }
    }
}

/// A place for a message in a pipe: derefs to bytes to be written. Dropping it sends nothing.
///
/// What stands there before is arbitrary. As long as it lives, nobody else sends through this end. Other processes are trusted not to
/// write there, which none does that keeps to the protocol.
#[must_use = "nothing is sent before `commit`"]
pub struct Reserved<'a, T> {
    pub(super) sender: &'a mut Sender<T>,
    pub(super) room: Extent,
}

impl<T> Reserved<'_, T> {
    /// Sends the first `n` bytes of the place as one message. (Nothing in a forked child: there it is a copy of its parent's.)
    ///
    /// # Panics
    ///
    /// If the place has fewer.
    pub fn commit(self, n: usize) {
        assert!(n <= self.room.len, "{n} bytes of a place for {}", self.room.len);
        self.sender.commit(self.room, n);
        // The turn is given back by `Drop`.
    }
}

impl<T> Drop for Reserved<'_, T> {
    fn drop(&mut self) {
        self.sender.give_turn_back();
    }
}

impl<T> Deref for Reserved<'_, T> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the guard has the handle, and that the turn to write; what is not committed is nobody else's.
        unsafe { self.sender.bytes().slice(self.room) }
    }
}

impl<T> DerefMut for Reserved<'_, T> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { self.sender.bytes().slice_mut(self.room) }
    }
}

impl<T> std::fmt::Debug for Reserved<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserved").field("len", &self.room.len).finish_non_exhaustive()
    }
}

/// A message in a pipe: derefs to its bytes. Dropping it leaves it there; [`release`](Self::release) takes it.
///
/// It is looked at in place, unless it came in parts: then it was gathered in memory of this process. As long as it lives, nobody else
/// receives through this end. Other processes are trusted not to write there, which none does that keeps to the protocol.
#[must_use = "the message stays before `release`"]
pub struct Peeked<'a, T> {
    pub(super) receiver: &'a mut Receiver<T>,
    pub(super) shown: Shown,
    pub(super) gathered: Option<Gathered>,
}

impl<T> Peeked<'_, T> {
    /// Takes the message out of the pipe. (Nothing in a forked child: there it is a copy of its parent's.)
    pub fn release(mut self) {
        self.receiver.take_shown(self.shown);
        self.gathered = None;
        // The turn is given back by `Drop`.
    }
}

impl<T> Drop for Peeked<'_, T> {
    fn drop(&mut self) {
        if let Some(gathered) = self.gathered.take() {
            self.receiver.put_gathered_back(gathered);
        }
        self.receiver.give_turn_back();
    }
}

impl<T> Deref for Peeked<'_, T> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match (self.shown, &self.gathered) {
            // SAFETY: the guard has the handle, and that the turn to read: what is not taken is not written.
            (Shown::InPlace { at, .. }, _) => unsafe { self.receiver.bytes().slice(at) },
            (Shown::Gathered, gathered) => gathered.as_ref().map_or(&[], |gathered| gathered.rest()),
        }
    }
}

impl<T> std::fmt::Debug for Peeked<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peeked").field("len", &self.len()).finish_non_exhaustive()
    }
}
