#![allow(unsafe_code)]
//! The room where an offset becomes a reference.
//!
//! Claims, and who keeps them:
//! * An offset is a number that anybody could have written. It is checked once, here, against the private
//!   length of the mapping and the alignment of the type; then it is an address, and never looked at again.
//! * The address stays good: [`Placed`] holds an `Arc` of the mapping.
//! * What is placed is [`Shared`]: valid for whatever bytes are there, and changed only through atomics.
//! * [`Payload`] is the one exception to the last: plain data owned through a lock. It hands out a bare
//!   pointer, in an `unsafe` function, to who holds the lock.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use crossproc_atomic::Shared;

use crate::error::{Error, ErrorKind};
use crate::map::Mapping;
use crate::plain::Plain;

/// `count` things that begin `offset` bytes after the start of a segment. A claim, not a proof: whoever uses
/// it checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Bytes from the first byte of the segment.
    pub offset: u64,
    /// How many things.
    pub count: u64,
}

/// A `T` in a mapped segment: checked once, then as cheap as a reference.
pub struct Placed<T: Shared> {
    at: NonNull<T>,
    mapping: Arc<Mapping>,
}

/// Several `T` in a mapped segment; derefs to a slice.
pub struct PlacedSlice<T: Shared> {
    at: NonNull<T>,
    count: usize,
    mapping: Arc<Mapping>,
}

impl Mapping {
    /// The `T` that begins `offset` bytes after the base.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] if it does not lie inside of the mapping or is misaligned,
    /// [`ErrorKind::ReadOnly`] if the mapping can not be written.
    ///
    /// ```
    /// use crossproc_atomic::{AtomicU64, Ordering};
    /// use crossproc_segment::Mapping;
    ///
    /// let memory = Mapping::heap(4096);
    /// let word = memory.place::<AtomicU64>(64)?;
    /// word.store(7, Ordering::Relaxed);
    ///
    /// let seven = memory.place_slice::<AtomicU64>(crossproc_segment::Span { offset: 0, count: 512 })?;
    /// assert_eq!(seven[8].load(Ordering::Relaxed), 7);
    /// assert!(memory.place::<AtomicU64>(4092).is_err());
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub fn place<T: Shared>(self: &Arc<Self>, offset: u64) -> Result<Placed<T>, Error> {
        self.require_writable()?;
        self.place_for_reading(offset)
    }

    /// As [`place`](Self::place), also for a mapping that can only be read: there, a store through it faults
    /// (SIGSEGV).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] if it does not lie inside of the mapping or is misaligned.
    pub fn place_for_reading<T: Shared>(self: &Arc<Self>, offset: u64) -> Result<Placed<T>, Error> {
        let at = self.resolve::<T>(Span { offset, count: 1 })?.0;
        Ok(Placed { at, mapping: Arc::clone(self) })
    }

    /// The `span.count` elements that begin at `span.offset`.
    ///
    /// # Errors
    ///
    /// As [`place`](Self::place).
    pub fn place_slice<T: Shared>(self: &Arc<Self>, span: Span) -> Result<PlacedSlice<T>, Error> {
        self.require_writable()?;
        self.place_slice_for_reading(span)
    }

    /// As [`place_slice`](Self::place_slice), also for a mapping that can only be read: there, a store
    /// through it faults.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Damaged`] if it does not lie inside of the mapping or is misaligned.
    pub fn place_slice_for_reading<T: Shared>(self: &Arc<Self>, span: Span) -> Result<PlacedSlice<T>, Error> {
        let (at, count) = self.resolve::<T>(span)?;
        Ok(PlacedSlice { at, count, mapping: Arc::clone(self) })
    }

    fn require_writable(&self) -> Result<(), Error> {
        if self.is_writable() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ReadOnly,
            "the segment is attached for reading only; attach it without `read_only`",
        ))
    }

    /// The check: all of `span` inside, no overflow on the way, aligned.
    fn resolve<T: Shared>(&self, span: Span) -> Result<(NonNull<T>, usize), Error> {
        let Span { offset, count } = span;
        let placed = (|| {
            let (offset, count) = (usize::try_from(offset).ok()?, usize::try_from(count).ok()?);
            let end = count.checked_mul(size_of::<T>())?.checked_add(offset)?;
            if end > self.len() {
                return None;
            }
            // SAFETY: offset <= end <= len, so the result points into the mapping or one past its end.
            let at = unsafe { NonNull::new_unchecked(self.base().add(offset)) }.cast::<T>();
            at.is_aligned().then_some((at, count))
        })();
        placed.ok_or_else(|| {
            Error::new(
                ErrorKind::Damaged,
                format!(
                    "{count} x {} bytes (aligned to {}) at offset {offset} do not fit into a segment of \
                     {} bytes",
                    size_of::<T>(),
                    align_of::<T>(),
                    self.len()
                ),
            )
        })
    }
}

impl<T: Shared> Placed<T> {
    /// The memory that it lies in.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl<T: Shared> PlacedSlice<T> {
    /// The memory that it lies in.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl<T: Shared> Deref for Placed<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `resolve` checked bounds and alignment, `mapping` keeps the memory, and a Shared type is
        // valid for any bytes and changed by atomics only.
        unsafe { self.at.as_ref() }
    }
}

impl<T: Shared> Deref for PlacedSlice<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: as for `Placed`; `resolve` checked all `count` elements, and no mapping is larger than
        // isize::MAX.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl<T: Shared> Clone for Placed<T> {
    fn clone(&self) -> Self {
        Self { at: self.at, mapping: Arc::clone(&self.mapping) }
    }
}

impl<T: Shared> Clone for PlacedSlice<T> {
    fn clone(&self) -> Self {
        Self { at: self.at, count: self.count, mapping: Arc::clone(&self.mapping) }
    }
}

// SAFETY: it gives `&T` and nothing else, and Shared types are Sync; the mapping is Send and Sync.
unsafe impl<T: Shared> Send for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Placed<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Send for PlacedSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for PlacedSlice<T> {}

impl<T: Shared> fmt::Debug for Placed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Placed<{}>({:p})", std::any::type_name::<T>(), self.at)
    }
}

impl<T: Shared> fmt::Debug for PlacedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlacedSlice<{}>({:p}, {})", std::any::type_name::<T>(), self.at, self.count)
    }
}

/// Plain data in a segment that belongs to whoever holds a lock beside it.
///
/// Only types for which every bit pattern is a value can be reached in place; others are copied out and
/// checked.
#[repr(transparent)]
pub struct Payload<T>(UnsafeCell<T>);

// SAFETY: through a shared reference it gives a bare pointer only, and its users promise exclusion (see
// `get`).
unsafe impl<T: Plain + AnyBitPattern> Sync for Payload<T> {}
// SAFETY: repr(transparent) over plain data: no pointer, no padding (NoUninit), valid for every bit pattern,
// zero included (AnyBitPattern). It is not changed by atomics, but by the one who holds its lock, which is
// what `get` asks for.
unsafe impl<T: Plain + AnyBitPattern> Shared for Payload<T> {}

impl<T: Plain + AnyBitPattern> Payload<T> {
    /// Where the data is.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.0.get()
    }

    /// The data, for reading.
    ///
    /// # Safety
    ///
    /// The caller holds the lock that this data belongs to, for as long as the reference lives, and nobody
    /// reaches the data without the lock. (A *process* that breaks this rule can make our reads race; that is
    /// the trust that in-place guards document.)
    #[inline]
    #[must_use]
    pub unsafe fn get(&self) -> &T {
        // SAFETY: exclusion of writers is the caller's promise; any bits are a value.
        unsafe { &*self.0.get() }
    }

    /// The data, for changing.
    ///
    /// # Safety
    ///
    /// As for [`get`](Self::get), and no other reference to the data lives.
    #[expect(clippy::mut_from_ref, reason = "the lock is what makes it exclusive")]
    #[inline]
    #[must_use]
    pub unsafe fn get_mut(&self) -> &mut T {
        // SAFETY: exclusion is the caller's promise; any bits are a value.
        unsafe { &mut *self.0.get() }
    }
}

impl<T> fmt::Debug for Payload<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Payload(..)")
    }
}

#[cfg(test)]
mod tests {
    use crossproc_atomic::{AtomicU32, AtomicU64, Ordering};

    use super::*;

    #[test]
    fn nothing_is_placed_outside_or_askew() {
        let memory = Mapping::heap(4096);
        assert!(memory.place::<AtomicU64>(4088).is_ok());
        for offset in [4089, 4096, 4092, u64::MAX, u64::MAX - 7, 1, 4] {
            assert_eq!(memory.place::<AtomicU64>(offset).unwrap_err().kind(), ErrorKind::Damaged, "{offset}");
        }
        for (offset, count) in [(0, 513), (8, 512), (0, u64::MAX), (0, 1 << 61), (4096, 1), (!7, 2)] {
            let refused = memory.place_slice::<AtomicU64>(Span { offset, count }).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Damaged, "{offset} {count}");
        }
        assert_eq!(
            memory.place_slice::<AtomicU64>(Span { offset: 4096, count: 0 }).map(|s| s.len()).ok(),
            Some(0)
        );
        assert_eq!(
            memory.place_slice::<AtomicU64>(Span { offset: 0, count: 512 }).map(|s| s.len()).ok(),
            Some(512)
        );
    }

    #[test]
    fn what_is_placed_keeps_the_memory() {
        let memory = Mapping::heap(4096);
        let word = memory.place::<AtomicU32>(128).expect("inside");
        drop(memory);
        word.store(5, Ordering::Relaxed);
        assert_eq!(word.clone().load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_payload_is_plain_memory() {
        let memory = Mapping::heap(4096);
        let data = memory.place::<Payload<[u64; 4]>>(64).expect("inside");
        // SAFETY: the memory is this test's own.
        unsafe { data.get_mut()[3] = 9 };
        let word = memory.place::<AtomicU64>(64 + 24).expect("inside");
        assert_eq!(word.load(Ordering::Relaxed), 9);
    }
}
