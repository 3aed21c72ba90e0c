#![allow(unsafe_code)]
//! The room where elements of an array enter and leave shared memory.
//!
//! Claims, and who keeps them:
//! * `bytes` is a placed, aligned run of `len * size_of::<T>()` bytes; indices are compared with the private `len`.
//! * An element is read and written in *units*: atomics of its alignment (at most 8 bytes). One-unit elements are
//!   never torn; larger ones may be, unless a lock is held. All processes use the same units for the same type, as
//!   its layout is part of the object's fingerprint.
//! * `slice` and `slice_mut` hand out plain references: only for who holds the lock that owns the elements.

use std::marker::PhantomData;

use bytemuck::AnyBitPattern;
use crossproc_atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use crossproc_segment::PlacedSlice;
use crossproc_segment::plain::{InvalidBits, Plain, from_words, to_words, words_of};

/// `len` elements of type `T` in shared memory.
pub(crate) struct Cells<T> {
    bytes: PlacedSlice<AtomicU8>,
    len: usize,
    element: PhantomData<fn() -> T>,
}

impl<T: Plain> Cells<T> {
    /// Bytes per unit.
    const UNIT: usize = if align_of::<T>() < 8 { align_of::<T>() } else { 8 };
    pub(crate) const IS_ONE_UNIT: bool = size_of::<T>() == Self::UNIT;

    /// `bytes` must be aligned for `T` and a whole number of elements.
    pub(crate) fn new(bytes: PlacedSlice<AtomicU8>) -> Self {
        const { assert!(align_of::<T>() <= 64, "elements are aligned to 64 bytes at most") };
        let len = bytes.len().checked_div(size_of::<T>()).unwrap_or(0);
        assert!(
            bytes.as_ptr().cast::<T>().is_aligned() && len * size_of::<T>() == bytes.len(),
            "whole elements"
        );
        Self { bytes, len, element: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Unit `k` of element `at`, as an address.
    fn unit(&self, at: usize, k: usize) -> *mut u8 {
        assert!(at < self.len, "callers have checked the index");
        let offset = at * size_of::<T>() + k * Self::UNIT;
        // From the whole run, not from one of its bytes: a unit may be wider.
        self.bytes.as_ptr().cast_mut().cast::<u8>().wrapping_add(offset)
    }

    pub(crate) fn load(&self, at: usize) -> Result<T, InvalidBits> {
        with_words(words_of::<T>(), |words| {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
            for (k, to) in bytes.chunks_exact_mut(Self::UNIT).take(size_of::<T>() / Self::UNIT).enumerate() {
                let from = self.unit(at, k);
                // SAFETY: `from` is in the placed run (the whole unit is: the element's size is a multiple of its
                // alignment), aligned to the unit, and shared memory is only accessed atomically.
                unsafe {
                    match Self::UNIT {
                        1 => to.copy_from_slice(&[AtomicU8::from_ptr(from).load(Ordering::Relaxed)]),
                        2 => to.copy_from_slice(
                            &AtomicU16::from_ptr(from.cast()).load(Ordering::Relaxed).to_ne_bytes(),
                        ),
                        4 => to.copy_from_slice(
                            &AtomicU32::from_ptr(from.cast()).load(Ordering::Relaxed).to_ne_bytes(),
                        ),
                        _ => to.copy_from_slice(
                            &AtomicU64::from_ptr(from.cast()).load(Ordering::Relaxed).to_ne_bytes(),
                        ),
                    }
                }
            }
            from_words(words)
        })
    }

    pub(crate) fn store(&self, at: usize, value: T) {
        with_words(words_of::<T>(), |words| {
            to_words(&value, words);
            let bytes: &[u8] = bytemuck::cast_slice(words);
            for (k, unit) in bytes.chunks_exact(Self::UNIT).take(size_of::<T>() / Self::UNIT).enumerate() {
                let to = self.unit(at, k);
                let mut word = [0; 8];
                word[..Self::UNIT].copy_from_slice(unit);
                // SAFETY: as in `load`.
                unsafe {
                    match Self::UNIT {
                        1 => AtomicU8::from_ptr(to).store(word[0], Ordering::Relaxed),
                        2 => AtomicU16::from_ptr(to.cast())
                            .store(u16::from_ne_bytes([word[0], word[1]]), Ordering::Relaxed),
                        4 => AtomicU32::from_ptr(to.cast()).store(
                            u32::from_ne_bytes([word[0], word[1], word[2], word[3]]),
                            Ordering::Relaxed,
                        ),
                        _ => {
                            AtomicU64::from_ptr(to.cast()).store(u64::from_ne_bytes(word), Ordering::Relaxed)
                        }
                    }
                }
            }
        });
    }

    /// Replaces a one-unit element by compare-and-swap: `Ok` if it was `current` (bit for bit), else what it was.
    pub(crate) fn compare_exchange(
        &self,
        at: usize,
        current: T,
        new: T,
    ) -> Result<(), Result<T, InvalidBits>> {
        const { assert!(Self::IS_ONE_UNIT, "only elements that fit one atomic can be compared and exchanged") };
        let (mut old, mut next) = ([0_u64], [0_u64]);
        to_words(&current, &mut old);
        to_words(&new, &mut next);
        let place = self.unit(at, 0);
        let (old, next) = (old[0], next[0]);
        // SAFETY: as in `load`. The casts cut off bytes that are zero: the value is UNIT bytes long.
        let found = unsafe {
            match Self::UNIT {
                1 => AtomicU8::from_ptr(place)
                    .compare_exchange(old as u8, next as u8, Ordering::AcqRel, Ordering::Acquire)
                    .map_err(u64::from)
                    .err(),
                2 => AtomicU16::from_ptr(place.cast())
                    .compare_exchange(old as u16, next as u16, Ordering::AcqRel, Ordering::Acquire)
                    .map_err(u64::from)
                    .err(),
                4 => AtomicU32::from_ptr(place.cast())
                    .compare_exchange(old as u32, next as u32, Ordering::AcqRel, Ordering::Acquire)
                    .map_err(u64::from)
                    .err(),
                _ => AtomicU64::from_ptr(place.cast())
                    .compare_exchange(old, next, Ordering::AcqRel, Ordering::Acquire)
                    .err(),
            }
        };
        found.map_or(Ok(()), |bits| Err(from_words(&[bits])))
    }
}

impl<T: Plain + AnyBitPattern> Cells<T> {
    /// The elements, in place.
    ///
    /// # Safety
    ///
    /// The caller holds the lock that owns the elements for as long as the reference lives.
    pub(crate) unsafe fn slice(&self) -> &[T] {
        // SAFETY: aligned, `len` whole elements, any bits are a value; exclusion of writers is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) }
    }

    /// The elements, in place, for changing.
    ///
    /// # Safety
    ///
    /// As for [`slice`](Self::slice), and no other reference to the elements lives.
    #[expect(clippy::mut_from_ref, reason = "the lock is what makes it exclusive")]
    pub(crate) unsafe fn slice_mut(&self) -> &mut [T] {
        // SAFETY: as for `slice`, and exclusive by the caller's promise; the atomics allow writing through `&self`.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr().cast_mut().cast(), self.len) }
    }
}

impl<T> Clone for Cells<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), len: self.len, element: PhantomData }
    }
}

/// Runs `f` on `count` zeroed words: on the stack, unless they are many.
#[inline]
pub(crate) fn with_words<R>(count: usize, f: impl FnOnce(&mut [u64]) -> R) -> R {
    match count {
        0..=1 => f(&mut [0; 1][..count]),
        2..=8 => f(&mut [0; 8][..count]),
        9..=64 => f(&mut [0; 64][..count]),
        _ => f(&mut vec![0; count]),
    }
}
