#![allow(unsafe_code)]
//! The room where elements of a ring of blocks enter and leave shared memory.
//!
//! Claims, and who keeps them:
//! * `blocks` is a placed, aligned run of whole blocks; every address is compared with its end before it is used.
//! * An element is copied in *units*: atomics of the largest power of two, up to 8, that divides its size. Elements of a block are packed
//!   against its end, and blocks are multiples of 64 bytes, so every unit and every element is aligned. All processes use the same
//!   units for the same type, as its layout is part of the object's fingerprint.
//! * `slice` and `slice_mut` hand out plain references: only to [`Reserved`] and [`Peeked`], which borrow the one handle that has the role
//!   to which these elements belong, mutably. That no other process writes there is the trust that they document.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use bytemuck::AnyBitPattern;
use crossproc_atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crossproc_ring::Run;
use crossproc_segment::PlacedSlice;
use crossproc_segment::plain::{InvalidBits, Plain};

use crate::spsc::{Consumer, Producer};

const LINE: usize = 64;

/// Blocks of elements of type `T`, each behind its tag.
pub(crate) struct BlockCells<T> {
    blocks: PlacedSlice<AtomicU64>,
    element: PhantomData<fn() -> T>,
}

impl<T: Plain> BlockCells<T> {
    const SIZE: usize = size_of::<T>();
    /// Bytes per unit.
    const UNIT: usize = match Self::SIZE {
        0 => 1,
        size if size.trailing_zeros() < 3 => 1 << size.trailing_zeros(),
        _ => 8,
    };
    /// Bytes that a block has for elements: chosen by measurement (benches/RESULTS.md).
    const ROOM: usize = match Self::SIZE {
        0..=32 => 504,
        33..=256 => 1984,
        _ => 2048,
    };
    /// Elements in a block, at the most.
    pub(crate) const PER_BLOCK: usize = match Self::ROOM / if Self::SIZE == 0 { 1 } else { Self::SIZE } {
        0 => 1,
        n if n > 255 => 255,
        n => n,
    };
    /// Bytes of a block, with its tag.
    pub(crate) const BLOCK: usize = (8 + Self::PER_BLOCK * Self::SIZE).next_multiple_of(LINE);
    /// From the start of a block to its first element.
    const FIRST: usize = Self::BLOCK - Self::PER_BLOCK * Self::SIZE;

    pub(crate) fn new(blocks: PlacedSlice<AtomicU64>) -> Self {
        const { assert!(align_of::<T>() <= LINE, "elements are aligned to 64 bytes at most") };
        assert!(blocks.as_ptr().addr() % LINE == 0, "blocks are aligned");
        Self { blocks, element: PhantomData }
    }

    /// The blocks as words, the tag first in each.
    #[inline]
    pub(crate) fn words(&self) -> &PlacedSlice<AtomicU64> {
        &self.blocks
    }

    /// Where `count` elements of the block begin whose tag is the word `block`.
    #[inline(always)]
    fn address(&self, block: usize, index: usize, count: usize) -> *mut u8 {
        let start = block * 8 + Self::FIRST + index * Self::SIZE;
        assert!(start + count * Self::SIZE <= self.blocks.len() * 8, "elements lie in a block");
        // From the whole run, not from one of its words: a reference to elements is wider.
        self.blocks.as_ptr().cast_mut().cast::<u8>().wrapping_add(start)
    }

    #[inline(always)]
    pub(crate) fn write(&self, block: usize, index: usize, value: &T) {
        let to = self.address(block, index, 1);
        let bytes = bytemuck::bytes_of(value);
        for (k, unit) in bytes.chunks_exact(Self::UNIT).enumerate() {
            let to = to.wrapping_add(k * Self::UNIT);
            let mut word = [0; 8];
            word[..Self::UNIT].copy_from_slice(unit);
            // SAFETY: `address` compared the whole element with the placed run, units are aligned (see the top of the file),
            // and shared memory is only accessed atomically.
            unsafe {
                match Self::UNIT {
                    1 => AtomicU8::from_ptr(to).store(word[0], Ordering::Relaxed),
                    2 => AtomicU16::from_ptr(to.cast())
                        .store(u16::from_ne_bytes([word[0], word[1]]), Ordering::Relaxed),
                    4 => AtomicU32::from_ptr(to.cast())
                        .store(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]), Ordering::Relaxed),
                    _ => AtomicU64::from_ptr(to.cast()).store(u64::from_ne_bytes(word), Ordering::Relaxed),
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn read(&self, block: usize, index: usize) -> Result<T, InvalidBits> {
        let from = self.address(block, index, 1);
        let mut bits = MaybeUninit::<T::Bits>::uninit();
        const { assert!(size_of::<T::Bits>() == size_of::<T>(), "the same bytes, unchecked") };
        let to = bits.as_mut_ptr().cast::<u8>();
        for at in (0..Self::SIZE).step_by(Self::UNIT) {
            let (from, to) = (from.wrapping_add(at), to.wrapping_add(at));
            // SAFETY: for `from` as in `write`; `to` is inside of `bits`, which is as large as the element.
            unsafe {
                match Self::UNIT {
                    1 => to.write(AtomicU8::from_ptr(from).load(Ordering::Relaxed)),
                    2 => to
                        .cast::<u16>()
                        .write_unaligned(AtomicU16::from_ptr(from.cast()).load(Ordering::Relaxed)),
                    4 => to
                        .cast::<u32>()
                        .write_unaligned(AtomicU32::from_ptr(from.cast()).load(Ordering::Relaxed)),
                    _ => to
                        .cast::<u64>()
                        .write_unaligned(AtomicU64::from_ptr(from.cast()).load(Ordering::Relaxed)),
                }
            }
        }
        // SAFETY: all its bytes were written, and any bits are a value of `Bits`.
        let bits = unsafe { bits.assume_init() };
        if !T::is_valid_bit_pattern(&bits) {
            return Err(InvalidBits::of::<T>());
        }
        // SAFETY: `Bits` is `T` before its bits are checked; they have been.
        Ok(unsafe { std::mem::transmute_copy::<T::Bits, T>(&bits) })
    }

    /// Lets the line of an element come that will be needed soon. Changes nothing.
    #[inline]
    pub(crate) fn touch(&self, at: Run) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch may be given any address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let start = at.block * 8 + Self::FIRST + at.index * Self::SIZE;
            _mm_prefetch(self.blocks.as_ptr().cast::<i8>().wrapping_add(start), _MM_HINT_T0);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}

impl<T: Plain + AnyBitPattern> BlockCells<T> {
    /// Elements of a block, in place.
    ///
    /// # Safety
    ///
    /// The caller has the role to which the elements belong for as long as the reference lives.
    #[inline]
    unsafe fn slice(&self, run: Run) -> &[T] {
        let at = self.address(run.block, run.index, run.len);
        // SAFETY: inside of the placed run, aligned (see the top of the file), any bits are a value; exclusion of writers is the
        // caller's promise.
        unsafe { std::slice::from_raw_parts(at.cast(), run.len) }
    }

    /// Elements of a block, in place, for changing.
    ///
    /// # Safety
    ///
    /// As for [`slice`](Self::slice), and no other reference to the elements lives.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "the role is what makes it exclusive")]
    unsafe fn slice_mut(&self, run: Run) -> &mut [T] {
        let at = self.address(run.block, run.index, run.len);
        // SAFETY: as for `slice`, and exclusive by the caller's promise; the atomics allow writing through `&self`.
        unsafe { std::slice::from_raw_parts_mut(at.cast(), run.len) }
    }
}

/// A place for elements in a queue: derefs to a slice to be written. Dropping it pushes nothing.
///
/// What stands there before is what older elements left behind. Other processes are trusted not to write there, which none
/// does that keeps to the protocol.
#[must_use = "nothing is pushed before `commit`"]
pub struct Reserved<'a, T: Plain + AnyBitPattern> {
    pub(crate) producer: &'a mut Producer<T>,
    pub(crate) run: Run,
}

impl<T: Plain + AnyBitPattern> Reserved<'_, T> {
    /// Pushes the first `n` elements of the place. (Nothing in a forked child: there it is a copy of its parent's.)
    ///
    /// # Panics
    ///
    /// If the place has fewer.
    #[inline]
    pub fn commit(self, n: usize) {
        assert!(n <= self.run.len, "{n} elements of a place for {}", self.run.len);
        if self.producer.is_ours() {
            self.producer.commit(n);
        }
    }
}

impl<T: Plain + AnyBitPattern> Deref for Reserved<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the guard has the producer, and it the role; what is not committed is the producer's. `run` is its room.
        unsafe { self.producer.cells().slice(self.run) }
    }
}

impl<T: Plain + AnyBitPattern> DerefMut for Reserved<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the guard is borrowed mutably.
        unsafe { self.producer.cells().slice_mut(self.run) }
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for Reserved<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reserved").field("len", &self.run.len).finish_non_exhaustive()
    }
}

/// Elements in a queue, in place: derefs to a slice. Dropping it leaves them there.
///
/// Other processes are trusted not to write there, which none does that keeps to the protocol.
#[must_use = "nothing is taken before `release`"]
pub struct Peeked<'a, T: Plain + AnyBitPattern> {
    pub(crate) consumer: &'a mut Consumer<T>,
    pub(crate) run: Run,
}

impl<T: Plain + AnyBitPattern> Peeked<'_, T> {
    /// Takes the first `n` of the elements out of the queue. (Nothing in a forked child: there it is a copy of its parent's.)
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[inline]
    pub fn release(self, n: usize) {
        assert!(n <= self.run.len, "{n} elements of {}", self.run.len);
        if self.consumer.is_ours() {
            self.consumer.take(n);
        }
    }
}

impl<T: Plain + AnyBitPattern> Deref for Peeked<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the guard has the consumer, and it the role; what is not given back is not written. `run` is what is known to be there.
        unsafe { self.consumer.cells().slice(self.run) }
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for Peeked<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peeked").field("len", &self.run.len).finish_non_exhaustive()
    }
}
