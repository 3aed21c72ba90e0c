#![allow(unsafe_code)]
//! `Array<T>` and `RawArray<T>`: a fixed number of elements. The room of the guard that gives `&mut [T]`.
//!
//! ```text
//!  Array      0  the lock's words
//!            64  the elements, packed
//!  RawArray   0  the elements, packed
//! ```
//!
//! Claim: the elements of an `Array` are touched only while its lock is held. Who keeps it: every method here takes
//! the lock, and the guard is the lock. What a death leaves behind: an array that its holder was changing is
//! half-changed, and says so (`OwnerDied`) to everybody until somebody calls `mark_consistent`.

use std::marker::PhantomData;
use std::ops::{Bound, Deref, DerefMut, Range, RangeBounds};
use std::time::{Duration, Instant};

use bytemuck::{AnyBitPattern, Zeroable};
use crossproc_atomic::AtomicU8;
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Segment};

use crate::access::AccessError;
use crate::cells::Cells;
use crate::handle::{Handle, handle_serde, spec};
use crate::lock::{Guard, Lock, LockError, Panic, Wait, before, marked, within};
use crate::number::Number;

const DATA: u64 = 64;

/// A fixed number of elements behind one robust lock.
///
/// Every method takes the lock once; [`lock`](Self::lock) gives a guard that derefs to `&mut [T]` for more. If a process
/// died while it held the lock, all methods say so until somebody has locked, looked, and called
/// [`mark_consistent`](Guard::mark_consistent).
///
/// ```
/// let a = crossproc_primitives::Array::from_slice(&[1.0_f64, 2.0, 3.0])?;
/// a.set(0, 10.0)?;
/// a.lock()?.iter_mut().for_each(|x| *x += 0.5);
/// assert_eq!(a.to_vec()?, [10.5, 2.5, 3.5]);
/// assert_eq!(a.slice(1..)?, [2.5, 3.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Array<T: Plain> {
    lock: Lock,
    cells: Cells<T>,
}

/// Holds the lock of an [`Array`]; derefs to its elements. Dropping it releases.
#[must_use = "dropping the guard releases the lock"]
pub struct ArrayGuard<'a, T: Plain + AnyBitPattern> {
    array: &'a Array<T>,
    panic: Panic,
    not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives `&[T]` only, and plain data is Sync.
unsafe impl<T: Plain + AnyBitPattern> Sync for ArrayGuard<'_, T> {}

/// Holds the lock for one call of a method here.
struct Held<'a>(&'a Lock, Panic);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.raw_unlock(&self.1);
    }
}

/// What an array of `len` elements is; an error if no segment is that large.
fn array_spec<T: Plain>(kind: ObjectKind, header: u64, len: usize) -> Result<ObjectSpec, Error> {
    if len == 0 || size_of::<T>() == 0 {
        let why = "an array has at least one element, of at least one byte";
        return Err(Error::new(ErrorKind::InvalidLength, why));
    }
    let bytes = (len as u64).checked_mul(size_of::<T>() as u64).and_then(|bytes| bytes.checked_add(header));
    let bytes = bytes.ok_or_else(|| {
        Error::new(
            ErrorKind::TooLarge,
            format!("{len} elements of {} bytes are more than any memory", size_of::<T>()),
        )
    })?;
    Ok(spec::<T>(kind, len as u64, bytes))
}

/// What another process's array must be: any number of elements.
fn any_length<T: Plain>(kind: ObjectKind, header: u64) -> ObjectSpec {
    spec::<T>(kind, 1, header + size_of::<T>() as u64)
}

fn cells<T: Plain, W: crossproc_atomic::Shared>(handle: &Handle<W>, at: u64) -> Result<Cells<T>, Error> {
    // A count that was written over saturates and fails the bounds check.
    let bytes = handle.count().saturating_mul(size_of::<T>() as u64);
    Ok(Cells::new(handle.place_slice::<AtomicU8>(at, bytes)?))
}

/// The indices that `range` names of `len`, if they are there.
fn resolve(range: impl RangeBounds<usize>, len: usize) -> Result<Range<usize>, AccessError> {
    let start = match range.start_bound() {
        Bound::Included(&at) => at,
        Bound::Excluded(&at) => at.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&at) => at.saturating_add(1),
        Bound::Excluded(&at) => at,
        Bound::Unbounded => len,
    };
    if end > len {
        return Err(AccessError::OutOfBounds { index: len.max(start), len });
    }
    if start > end {
        return Err(AccessError::OutOfBounds { index: start, len });
    }
    Ok(start..end)
}

fn check(index: usize, len: usize) -> Result<(), AccessError> {
    if index < len { Ok(()) } else { Err(AccessError::OutOfBounds { index, len }) }
}

impl<T: Plain> Array<T> {
    const KIND: ObjectKind = ObjectKind::new("Array");

    /// `len` zeroes in an anonymous segment of their own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidLength`] for 0; otherwise if the segment can not be made.
    pub fn new(len: usize) -> Result<Self, Error>
    where
        T: Zeroable,
    {
        Self::of(Handle::anonymous(&array_spec::<T>(Self::KIND, DATA, len)?, |_| ())?)
    }

    /// A copy of `elements` in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_slice(elements: &[T]) -> Result<Self, Error> {
        let spec = array_spec::<T>(Self::KIND, DATA, elements.len())?;
        Self::of(Handle::anonymous(&spec, |fresh| Self::fill_fresh(fresh, elements))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, elements: &[T]) -> Result<Self, Error> {
        let spec = array_spec::<T>(Self::KIND, DATA, elements.len())?;
        Self::of(Handle::named(segment, name, &spec, |fresh| Self::fill_fresh(fresh, elements))?)
    }

    fn fill_fresh(fresh: &crate::handle::Fresh<'_>, elements: &[T]) {
        let cells = Cells::new(fresh.place_slice(DATA, size_of_val(elements) as u64));
        elements.iter().enumerate().for_each(|(at, &element)| cells.store(at, element));
    }

    fn of(handle: Handle<crossproc_sync::LockWords>) -> Result<Self, Error> {
        let cells = cells(&handle, DATA)?;
        Ok(Self { lock: Lock { handle }, cells })
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &any_length::<T>(Self::KIND, DATA))?)
    }

    fn handle(&self) -> &Handle<crossproc_sync::LockWords> {
        &self.lock.handle
    }

    /// How many elements there are. Never 0, never changes.
    #[expect(clippy::len_without_is_empty, reason = "an array has at least one element")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// One element.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn get(&self, index: usize) -> Result<T, AccessError> {
        check(index, self.len())?;
        let _held = self.hold()?;
        Ok(self.cells.load(index)?)
    }

    /// Replaces one element.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn set(&self, index: usize, element: T) -> Result<(), AccessError> {
        check(index, self.len())?;
        let _held = self.hold()?;
        self.cells.store(index, element);
        Ok(())
    }

    /// Replaces one element by `f` of it, with the lock held; returns the new one.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn update(&self, index: usize, f: impl FnOnce(T) -> T) -> Result<T, AccessError> {
        check(index, self.len())?;
        let _held = self.hold()?;
        let element = f(self.cells.load(index)?);
        self.cells.store(index, element);
        Ok(element)
    }

    /// A copy of a range, all of it at one moment.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<Vec<T>, AccessError> {
        let range = resolve(range, self.len())?;
        let _held = self.hold()?;
        range.map(|at| Ok(self.cells.load(at)?)).collect()
    }

    /// Replaces the elements from `start` on by `elements`, all at one moment.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn set_slice(&self, start: usize, elements: &[T]) -> Result<(), AccessError> {
        let range = resolve(start..start.saturating_add(elements.len()), self.len())?;
        let _held = self.hold()?;
        range.zip(elements).for_each(|(at, &element)| self.cells.store(at, element));
        Ok(())
    }

    /// Replaces every element.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn fill(&self, element: T) -> Result<(), AccessError> {
        let _held = self.hold()?;
        (0..self.len()).for_each(|at| self.cells.store(at, element));
        Ok(())
    }

    /// A copy of all elements at one moment.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn to_vec(&self) -> Result<Vec<T>, AccessError> {
        self.slice(..)
    }

    /// Iterates over a copy of all elements at one moment: the lock is taken once, not per element.
    ///
    /// # Errors
    ///
    /// See [`AccessError`].
    pub fn iter(&self) -> Result<std::vec::IntoIter<T>, AccessError> {
        Ok(self.to_vec()?.into_iter())
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.lock.segment()
    }

    fn hold(&self) -> Result<Held<'_>, AccessError> {
        let marks = self.lock.raw_lock::<()>(Wait::FOREVER)?;
        let held = Held(&self.lock, Panic::watch());
        if marks.is_clean() { Ok(held) } else { Err(marked(marks, ()).into()) }
    }
}

impl<T: Plain + AnyBitPattern> Array<T> {
    /// Acquires the lock, waiting as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock` or `TimedOut`.
    #[inline]
    pub fn lock(&self) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        self.wait(Wait::FOREVER)
    }

    /// Acquires the lock if it is free or its holder is dead.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `TimedOut`.
    pub fn try_lock(&self) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        self.wait(Wait::Try)
    }

    /// Acquires the lock, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        self.wait(within(timeout))
    }

    /// Acquires the lock, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_deadline(
        &self,
        deadline: Instant,
    ) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        self.wait(before(deadline))
    }

    /// Acquires the lock; if its last holder died or panicked, lets `repair` put the elements right first.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never with a guard inside.
    pub fn with_repair(
        &self,
        repair: impl FnOnce(&mut [T]),
    ) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        self.lock().or_else(|e| e.repair(|guard| repair(guard)))
    }

    fn wait(&self, wait: Wait) -> Result<ArrayGuard<'_, T>, LockError<ArrayGuard<'_, T>>> {
        let marks = self.lock.raw_lock(wait)?;
        self.lock.keep_at_thread_end();
        let guard = ArrayGuard { array: self, panic: Panic::watch(), not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }
}

impl<T: Plain> Clone for Array<T> {
    fn clone(&self) -> Self {
        Self { lock: self.lock.clone(), cells: self.cells.clone() }
    }
}

impl<T: Plain + AnyBitPattern> Guard for ArrayGuard<'_, T> {
    fn mark_consistent(&mut self) {
        self.array.lock.handle.words.mark_consistent();
    }
}

impl<T: Plain + AnyBitPattern> Deref for ArrayGuard<'_, T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: this guard holds the lock.
        unsafe { self.array.cells.slice() }
    }
}

impl<T: Plain + AnyBitPattern> DerefMut for ArrayGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: this guard holds the lock, and `&mut self` is exclusive among its users.
        unsafe { self.array.cells.slice_mut() }
    }
}

impl<T: Plain + AnyBitPattern> Drop for ArrayGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.array.lock.raw_unlock(&self.panic);
    }
}

impl<T: Plain> std::fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, len) = (T::LAYOUT.name, self.len());
        f.debug_struct("Array").field("type", &name).field("len", &len).field("lock", &self.lock).finish()
    }
}

impl<T: Plain + AnyBitPattern> std::fmt::Debug for ArrayGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ArrayGuard").field(self.array).finish()
    }
}

handle_serde!(Array<T: Plain>);

/// A fixed number of elements without a lock: relaxed atomics, and nothing else.
///
/// Elements that fit one atomic (1, 2, 4 or 8 bytes, as large as their alignment) are never torn. Larger ones may be
/// seen half-changed; use [`Array`] where that matters.
///
/// ```
/// let counts = crossproc_primitives::RawArray::<u32>::new(4)?;
/// counts.fetch_add(2, 5)?;
/// assert_eq!(counts.to_vec()?, [0, 0, 5, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RawArray<T: Plain> {
    handle: Handle<AtomicU8>,
    cells: Cells<T>,
}

impl<T: Plain> RawArray<T> {
    const KIND: ObjectKind = ObjectKind::new("RawArray");

    /// `len` zeroes in an anonymous segment of their own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidLength`] for 0; otherwise if the segment can not be made.
    pub fn new(len: usize) -> Result<Self, Error>
    where
        T: Zeroable,
    {
        Self::of(Handle::anonymous(&array_spec::<T>(Self::KIND, 0, len)?, |_| ())?)
    }

    /// A copy of `elements` in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_slice(elements: &[T]) -> Result<Self, Error> {
        let spec = array_spec::<T>(Self::KIND, 0, elements.len())?;
        Self::of(Handle::anonymous(&spec, |fresh| Self::fill_fresh(fresh, elements))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, elements: &[T]) -> Result<Self, Error> {
        let spec = array_spec::<T>(Self::KIND, 0, elements.len())?;
        Self::of(Handle::named(segment, name, &spec, |fresh| Self::fill_fresh(fresh, elements))?)
    }

    fn fill_fresh(fresh: &crate::handle::Fresh<'_>, elements: &[T]) {
        let cells = Cells::new(fresh.place_slice(0, size_of_val(elements) as u64));
        elements.iter().enumerate().for_each(|(at, &element)| cells.store(at, element));
    }

    fn of(handle: Handle<AtomicU8>) -> Result<Self, Error> {
        let cells = cells(&handle, 0)?;
        Ok(Self { handle, cells })
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &any_length::<T>(Self::KIND, 0))?)
    }

    fn handle(&self) -> &Handle<AtomicU8> {
        &self.handle
    }

    /// How many elements there are. Never 0, never changes.
    #[expect(clippy::len_without_is_empty, reason = "an array has at least one element")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// One element.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfBounds`], [`AccessError::Invalid`].
    #[inline]
    pub fn get(&self, index: usize) -> Result<T, AccessError> {
        check(index, self.len())?;
        Ok(self.cells.load(index)?)
    }

    /// Replaces one element.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfBounds`], [`AccessError::NotAttached`].
    #[inline]
    pub fn set(&self, index: usize, element: T) -> Result<(), AccessError> {
        self.require_live()?;
        check(index, self.len())?;
        self.cells.store(index, element);
        Ok(())
    }

    /// A copy of all elements, one after the other.
    ///
    /// # Errors
    ///
    /// [`AccessError::Invalid`].
    pub fn to_vec(&self) -> Result<Vec<T>, AccessError> {
        (0..self.len()).map(|at| self.get(at)).collect()
    }

    /// Reads the elements one after the other, each when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Result<T, AccessError>> + '_ {
        (0..self.len()).map(|at| self.get(at))
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    fn require_live(&self) -> Result<(), AccessError> {
        if self.handle.live().is_some() { Ok(()) } else { Err(AccessError::NotAttached) }
    }
}

impl<T: Number> RawArray<T> {
    /// Adds to one element in one atomic step (integers wrap around); returns what it was.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfBounds`], [`AccessError::NotAttached`].
    pub fn fetch_add(&self, index: usize, n: T) -> Result<T, AccessError> {
        self.require_live()?;
        check(index, self.len())?;
        let mut seen = self.cells.load(index)?;
        loop {
            match self.cells.compare_exchange(index, seen, seen.plus(n)) {
                Ok(()) => return Ok(seen),
                Err(now) => seen = now?,
            }
        }
    }

    /// Replaces one element by `new` if it is `current` (bit for bit). The inner result has what it was: `Ok` if it was
    /// replaced, `Err` if not.
    ///
    /// # Errors
    ///
    /// [`AccessError::OutOfBounds`], [`AccessError::NotAttached`].
    pub fn compare_exchange(&self, index: usize, current: T, new: T) -> Result<Result<T, T>, AccessError> {
        self.require_live()?;
        check(index, self.len())?;
        match self.cells.compare_exchange(index, current, new) {
            Ok(()) => Ok(Ok(current)),
            Err(now) => Ok(Err(now?)),
        }
    }
}

impl<T: Plain> Clone for RawArray<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), cells: self.cells.clone() }
    }
}

impl<T: Plain> std::fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawArray").field("type", &T::LAYOUT.name).field("len", &self.len()).finish()
    }
}

handle_serde!(RawArray<T: Plain>);
