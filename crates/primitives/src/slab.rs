#![allow(unsafe_code)]
//! The room where messages enter and leave the cells of a queue.
//!
//! Claims, and who keeps them:
//! * `bytes` is a placed run of `count` cells, each `stride` bytes and aligned for `T`; a hand's cell is compared with `count`.
//! * While a [`Hand`] is in use, its cell is nobody else's: the ring's promise (`crossproc-ring`, `exchange`). A hand can not be
//!   copied, and whoever reads or writes a cell here borrows the hand.
//! * Not claimed: the *values* against a peer that writes where it should not. What is copied out is checked; what is lent out
//!   has no invalid bits.

use std::marker::PhantomData;

use bytemuck::{AnyBitPattern, CheckedBitPattern};
use crossproc_atomic::AtomicU8;
use crossproc_ring::Hand;
use crossproc_segment::PlacedSlice;
use crossproc_segment::plain::{InvalidBits, Plain};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Cells for messages of type `T`.
pub(crate) struct Slab<T> {
    bytes: PlacedSlice<AtomicU8>,
    count: usize,
    message: PhantomData<fn() -> T>,
}

impl<T: Plain> Slab<T> {
    /// From cell to cell: small messages share cache lines, so that fewer of them travel; others have theirs to themselves.
    pub(crate) const STRIDE: usize = {
        assert!(align_of::<T>() <= LINE, "messages are aligned to 64 bytes at most");
        match size_of::<T>() {
            // At least its alignment, which an empty type can have as well.
            0..=8 => {
                if align_of::<T>() > 8 {
                    align_of::<T>()
                } else {
                    8
                }
            }
            size @ ..=LINE => size.next_power_of_two(),
            size => size.next_multiple_of(LINE),
        }
    };

    /// All of `bytes` as cells.
    pub(crate) fn new(bytes: PlacedSlice<AtomicU8>) -> Self {
        assert!(bytes.as_ptr().cast::<T>().is_aligned(), "objects are aligned to cache lines");
        let count = bytes.len() / Self::STRIDE;
        Self { bytes, count, message: PhantomData }
    }

    #[inline]
    fn at(&self, hand: &Hand) -> *mut T {
        let cell = hand.cell() as usize;
        assert!(cell < self.count, "the ring has as many cells");
        self.address(cell)
    }

    #[inline]
    fn address(&self, cell: usize) -> *mut T {
        self.bytes.as_ptr().cast_mut().cast::<u8>().wrapping_add(cell.wrapping_mul(Self::STRIDE)).cast()
    }

    #[inline]
    pub(crate) fn write(&self, hand: &mut Hand, message: &T) {
        // SAFETY: inside the run, aligned, and this hand's alone.
        unsafe { self.at(hand).write(*message) }
    }

    #[inline]
    pub(crate) fn read(&self, hand: &Hand) -> Result<T, InvalidBits> {
        // SAFETY: as above; any bits are a `T::Bits`, which has the size and alignment of `T`.
        let bits = unsafe { self.at(hand).cast::<T::Bits>().read() };
        if !<T as CheckedBitPattern>::is_valid_bit_pattern(&bits) {
            return Err(InvalidBits::of::<T>());
        }
        // SAFETY: the trait says that these bits are a `T` then.
        Ok(unsafe { std::ptr::from_ref(&bits).cast::<T>().read() })
    }

    /// Tells the CPU that the cell is going to be written. It need not exist.
    #[inline]
    pub(crate) fn expect_write(&self, cell: u32) {
        prefetch::<T, true>(self.address(cell as usize));
    }

    /// Tells the CPU that the cell is going to be read. It need not exist.
    #[inline]
    pub(crate) fn expect_read(&self, cell: u32) {
        prefetch::<T, false>(self.address(cell as usize));
    }
}

impl<T: Plain + AnyBitPattern> Slab<T> {
    #[inline]
    pub(crate) fn get<'a>(&'a self, hand: &'a Hand) -> &'a T {
        // SAFETY: inside the run, aligned, any bits are a `T`; nobody changes it while the hand is borrowed.
        unsafe { &*self.at(hand) }
    }

    #[inline]
    pub(crate) fn get_mut<'a>(&'a self, hand: &'a mut Hand) -> &'a mut T {
        // SAFETY: as above, and the hand is borrowed exclusively; the atomics allow writing through `&self`.
        unsafe { &mut *self.at(hand) }
    }
}

impl<T> Clone for Slab<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), count: self.count, message: PhantomData }
    }
}

/// The first lines of a message; the rest the hardware sees coming.
#[inline]
pub(crate) fn prefetch<T, const WRITE: bool>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..size_of::<T>().div_ceil(LINE).min(8) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let at = at.cast::<i8>().wrapping_add(line * LINE);
        // SAFETY: a hint, which can not fault whatever the address.
        unsafe { if WRITE { _mm_prefetch::<_MM_HINT_ET0>(at) } else { _mm_prefetch::<_MM_HINT_T0>(at) } }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
