#![allow(unsafe_code)]
//! The room where messages enter and leave the cells of a queue.
//!
//! Claims, and who keeps them:
//! * A message of at most 8 bytes is in its [`Hand`] (`value`), which is as large and as aligned. Any other is in a cell:
//! * `bytes` is a placed run of `count` cells, each `stride` bytes and aligned for `T`; a hand's cell is compared with `count`.
//! * While a [`Hand`] is in use, its cell is nobody else's: the ring's promise (`crossproc-ring`, `exchange`). A hand can not be
//!   copied, and whoever reads or writes a cell here borrows the hand.
//! * Not claimed: the *values* against a peer that writes where it should not. What is copied out is checked; what is lent out
//!   has no invalid bits.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use bytemuck::{AnyBitPattern, CheckedBitPattern};
use crossproc_atomic::{AtomicPair, AtomicU8};
use crossproc_ring::Hand;
use crossproc_segment::plain::{InvalidBits, Plain};
use crossproc_segment::{Error, ErrorKind, PlacedSlice};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Cells for messages of type `T`.
pub(crate) struct Slab<T> {
    bytes: PlacedSlice<AtomicU8>,
    count: usize,
    message: PhantomData<fn() -> T>,
}

impl<T: Plain> Slab<T> {
    /// Whether messages travel in the slots of the ring.
    pub(crate) const INLINE: bool = AtomicPair::EXCHANGES && size_of::<T>() <= 8 && align_of::<T>() <= 8;

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

    /// Messages that travel in the slots need an instruction that the first x86-64 CPUs had not.
    pub(crate) fn check_cpu() -> Result<(), Error> {
        #[cfg(target_arch = "x86_64")]
        if Self::INLINE && !std::arch::is_x86_feature_detected!("cmpxchg16b") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "a queue of messages of at most 8 bytes: this CPU has no cmpxchg16b; use a larger message type".to_owned(),
            ));
        }
        Ok(())
    }

    /// All of `bytes` as cells.
    pub(crate) fn new(bytes: PlacedSlice<AtomicU8>) -> Self {
        assert!(bytes.as_ptr().cast::<T>().is_aligned(), "objects are aligned to cache lines");
        let count = bytes.len() / Self::STRIDE;
        Self { bytes, count, message: PhantomData }
    }

    #[inline]
    fn at(&self, hand: &Hand) -> *const T {
        if Self::INLINE {
            return (&raw const hand.value).cast();
        }
        let cell = hand.cell() as usize;
        assert!(cell < self.count, "the ring has as many cells");
        self.address(cell)
    }

    #[inline]
    fn at_mut(&self, hand: &mut Hand) -> *mut T {
        if Self::INLINE {
            return (&raw mut hand.value).cast();
        }
        self.at(hand).cast_mut()
    }

    #[inline]
    fn address(&self, cell: usize) -> *mut T {
        self.bytes.as_ptr().cast_mut().cast::<u8>().wrapping_add(cell.wrapping_mul(Self::STRIDE)).cast()
    }

    #[inline]
    pub(crate) fn write(&self, hand: &mut Hand, message: &T) {
        // SAFETY: inside the value or the run, aligned, and this hand's alone.
        unsafe { self.at_mut(hand).write(*message) }
    }

    #[inline]
    pub(crate) fn read(&self, hand: &Hand) -> Result<T, InvalidBits> {
        let mut copy = Copy::new();
        self.copy(hand, &mut copy);
        copy.checked()
    }

    /// The first half of [`read`](Self::read); the hand is not needed for the other one.
    #[inline]
    pub(crate) fn copy(&self, hand: &Hand, to: &mut Copy<T>) {
        // SAFETY: as above; a `T::Bits` has the size and alignment of `T`.
        unsafe { to.bits.as_mut_ptr().copy_from_nonoverlapping(self.at(hand).cast(), 1) }
        to.is_there = true;
    }

    /// Tells the CPU that the cell is going to be written. It need not exist.
    #[inline]
    pub(crate) fn expect_write(&self, cell: u32) {
        if !Self::INLINE {
            prefetch::<T, true>(self.address(cell as usize));
        }
    }

    /// Tells the CPU that the cell is going to be read. It need not exist.
    #[inline]
    pub(crate) fn expect_read(&self, cell: u32) {
        if !Self::INLINE {
            prefetch::<T, false>(self.address(cell as usize));
        }
    }
}

/// Room for what is in a cell. It is checked after the cell has been given back: while it is copied others may write over it.
pub(crate) struct Copy<T: Plain> {
    bits: MaybeUninit<T::Bits>,
    is_there: bool,
}

impl<T: Plain> Copy<T> {
    #[inline]
    pub(crate) fn new() -> Self {
        Self { bits: MaybeUninit::uninit(), is_there: false }
    }

    #[inline]
    pub(crate) fn checked(self) -> Result<T, InvalidBits> {
        assert!(self.is_there, "copied before");
        // SAFETY: copied; any bits are a `T::Bits`.
        if !<T as CheckedBitPattern>::is_valid_bit_pattern(unsafe { self.bits.assume_init_ref() }) {
            return Err(InvalidBits::of::<T>());
        }
        // SAFETY: the trait says that these bits are a `T` then.
        Ok(unsafe { self.bits.as_ptr().cast::<T>().read() })
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
        unsafe { &mut *self.at_mut(hand) }
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
