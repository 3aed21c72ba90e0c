//! `Value<T>` and `RawValue<T>`: one value for all processes.
//!
//! ```text
//!  Value      0  the lock's words
//!            64  event count: who waits for a change
//!            72  T of at most 8 bytes: the value in one word
//!           128  larger T: `latest` and 2 to 4 copies (see `crossproc-ring`, latest.rs)
//!  RawValue   0  the value's words
//! ```
//!
//! Who may write: one word: everybody, by atomic read-modify-writes. Larger: `latest` and the copies only by the
//! lock's holder. What a death leaves behind: see `lock.rs` and `latest.rs` of the lower crates; a value is always
//! the old one or the new one.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, EventCount, Linux, Liveness, Ordering};
use crossproc_ring::Latest;
use crossproc_segment::plain::{Plain, from_words, to_words, words_of};
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Participants, Placed, PlacedSlice, Segment};
use crossproc_sync::{LockWords, wait_for};

use crate::access::AccessError;
use crate::cells::with_words;
use crate::handle::{Fresh, Handle, handle_serde, spec};
use crate::lock::{Guard, Lock, LockError, Panic, Wait, before, marked, within};
use crate::number::Number;

const EVENT: u64 = 64;

/// A value that processes share.
///
/// Reading never blocks and never sees a half-written value, whatever its size; a read-only attachment will do.
/// Writing replaces the whole value: a writer that is killed midway leaves the old one.
///
/// Values of at most 8 bytes are one atomic word: `set`, `update` and the arithmetic of [`Number`]s are single
/// atomic steps that take no lock. Larger ones are written under the value's own robust lock, taken once per call.
///
/// `get` followed by `set` is two steps, and what others did in between is lost. Use [`update`](Self::update),
/// [`fetch_add`](Self::fetch_add), or hold [`lock`](Self::lock) around both.
///
/// ```
/// let v = crossproc_primitives::Value::new([1.0_f64, 2.0, 3.0])?;
/// v.update(|[a, b, c]| [c, b, a])?;
/// assert_eq!(v.get()?, [3.0, 2.0, 1.0]);
///
/// let n = crossproc_primitives::Value::new(40_i32)?;
/// assert_eq!(n.fetch_add(2), 40);
/// assert_eq!(n.get()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Value<T: Plain> {
    lock: Lock,
    changed: Placed<EventCount>,
    words: PlacedSlice<AtomicU64>,
    value: PhantomData<fn(T) -> T>,
}

/// Holds the lock of a [`Value`]; dropping it releases.
///
/// There is no `&mut T` to the inside: readers do not take the lock, so a value changes as a whole, by
/// [`set`](Self::set) or [`update`](Self::update).
#[must_use = "dropping the guard releases the lock"]
pub struct ValueGuard<'a, T: Plain> {
    value: &'a Value<T>,
    panic: Panic,
    not_send: PhantomData<*const ()>,
}

const fn is_one_word<T>() -> bool {
    size_of::<T>() <= 8
}

const fn data<T>() -> u64 {
    if is_one_word::<T>() { 72 } else { 128 }
}

const fn copies_of<T>() -> usize {
    if size_of::<T>() <= 4096 { 4 } else { 2 }
}

const fn data_words<T>() -> usize {
    if is_one_word::<T>() { 1 } else { Latest::words_needed(copies_of::<T>(), words_of::<T>()) }
}

fn word_of<T: Plain>(value: &T) -> u64 {
    let mut word = [0];
    to_words(value, &mut word);
    word[0]
}

fn of_word<T: Plain>(word: u64) -> Result<T, AccessError> {
    Ok(from_words(&[word])?)
}

/// For types that are valid whatever their bits are.
fn number<T: Number>(word: u64) -> T {
    from_words(&[word]).unwrap_or_else(|_| unreachable!("every bit pattern is a number"))
}

/// Replaces the word by `f` of it; returns the word before.
fn update_word<T: Plain>(word: &AtomicU64, mut f: impl FnMut(T) -> T) -> Result<(T, T), AccessError> {
    let mut seen = word.load(Ordering::Acquire);
    loop {
        let before = of_word(seen)?;
        let after = f(before);
        match word.compare_exchange(seen, word_of(&after), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok((before, after)),
            Err(now) => seen = now,
        }
    }
}

fn replace_number<T: Number>(word: &AtomicU64, f: impl Fn(T) -> T) -> T {
    let mut seen = word.load(Ordering::Acquire);
    loop {
        let before = number(seen);
        match word.compare_exchange(seen, word_of(&f(before)), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return before,
            Err(now) => seen = now,
        }
    }
}

fn compare_exchange_number<T: Number>(word: &AtomicU64, current: T, new: T) -> Result<T, T> {
    let (wanted, new) = (word_of(&current), word_of(&new));
    let mut expected = wanted;
    loop {
        match word.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(found) => return Ok(number(found)),
            // Bits above the number are no part of it; only a peer that scribbles sets them.
            Err(found) if found != expected && word_of(&number::<T>(found)) == wanted => expected = found,
            Err(found) => return Err(number(found)),
        }
    }
}

impl<T: Plain> Value<T> {
    const SPEC: ObjectSpec =
        spec::<T>(ObjectKind::new("Value"), 1, data::<T>() + 8 * data_words::<T>() as u64);

    /// A value in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new(value: T) -> Result<Self, Error> {
        Self::of(Handle::anonymous(&Self::SPEC, |fresh| Self::first(fresh, &value))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, value: T) -> Result<Self, Error> {
        Self::of(Handle::named(segment, name, &Self::SPEC, |fresh| Self::first(fresh, &value))?)
    }

    fn first(fresh: &Fresh<'_>, value: &T) {
        Self::write(&fresh.place_slice(data::<T>(), data_words::<T>() as u64), value);
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &Self::SPEC)?)
    }

    fn of(handle: Handle<LockWords>) -> Result<Self, Error> {
        let changed = handle.place(EVENT)?;
        let words = handle.place_slice(data::<T>(), data_words::<T>() as u64)?;
        Ok(Self { lock: Lock { handle }, changed, words, value: PhantomData })
    }

    fn handle(&self) -> &Handle<LockWords> {
        &self.lock.handle
    }

    /// The value now.
    ///
    /// # Errors
    ///
    /// [`AccessError::Invalid`] if the bits in shared memory are no `T`, [`AccessError::Unsteady`] if writers kept
    /// overtaking the reader. Neither happens with integers and floats of one word.
    #[inline]
    pub fn get(&self) -> Result<T, AccessError> {
        if is_one_word::<T>() {
            return of_word(self.words[0].load(Ordering::Acquire));
        }
        with_words(words_of::<T>(), |words| {
            Latest::new(&self.words, words_of::<T>()).get(words)?;
            Ok(from_words(words)?)
        })
    }

    /// Replaces the value.
    ///
    /// A lock held by somebody else delays this only if `T` is larger than 8 bytes. The mark of a dead or panicked
    /// holder of the lock does not matter here, and stays.
    ///
    /// # Errors
    ///
    /// [`AccessError::NotAttached`]; [`AccessError::WouldDeadlock`] if `T` is larger than 8 bytes and the calling
    /// thread holds the value's lock (use the guard).
    #[inline]
    pub fn set(&self, value: T) -> Result<(), AccessError> {
        if is_one_word::<T>() {
            self.require_live()?;
            self.words[0].swap(word_of(&value), Ordering::AcqRel);
            self.changed.notify_after_rmw(&Linux);
            return Ok(());
        }
        let mut guard = self.any_guard()?;
        guard.set(value);
        Ok(())
    }

    /// Replaces the value by `f` of it, in one step: nothing that others do is lost. Returns the new value.
    ///
    /// For `T` of at most 8 bytes `f` may be called several times, and its last result counts.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get) and [`set`](Self::set).
    #[inline]
    pub fn update(&self, f: impl FnMut(T) -> T) -> Result<T, AccessError> {
        self.require_live()?;
        if is_one_word::<T>() {
            let (_, after) = update_word(&self.words[0], f)?;
            self.changed.notify_after_rmw(&Linux);
            return Ok(after);
        }
        self.any_guard()?.update(f)
    }

    /// Acquires the value's lock, waiting as long as it takes.
    ///
    /// It keeps out other holders, and writers of values larger than 8 bytes. It does not keep out readers.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock` or `TimedOut`.
    #[inline]
    pub fn lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        self.wait(Wait::FOREVER)
    }

    /// Acquires the value's lock if it is free or its holder is dead.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `TimedOut`.
    pub fn try_lock(&self) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        self.wait(Wait::Try)
    }

    /// Acquires the value's lock, waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_timeout(&self, timeout: Duration) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        self.wait(within(timeout))
    }

    /// Acquires the value's lock, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`LockError`]; never `WouldBlock`.
    pub fn lock_deadline(
        &self,
        deadline: Instant,
    ) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        self.wait(before(deadline))
    }

    /// Sleeps while `condition` holds of the value; returns the first value of which it does not.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get), and [`PeerDied`](AccessError::PeerDied) when all other processes that were attached
    /// are gone. (Other threads of this process do not count: who waits for one of them calls again.)
    pub fn wait_while(&self, condition: impl FnMut(&T) -> bool) -> Result<T, AccessError> {
        let value = self.wait_until(Wait::FOREVER, condition)?;
        Ok(value.unwrap_or_else(|| unreachable!("without a deadline there is no time-out")))
    }

    /// As [`wait_while`](Self::wait_while), for at most `timeout`; `None` if the condition still held then.
    ///
    /// # Errors
    ///
    /// As [`wait_while`](Self::wait_while).
    pub fn wait_while_timeout(
        &self,
        timeout: Duration,
        condition: impl FnMut(&T) -> bool,
    ) -> Result<Option<T>, AccessError> {
        self.wait_until(within(timeout), condition)
    }

    /// As [`wait_while`](Self::wait_while), until `deadline` at most; `None` if the condition still held then.
    ///
    /// # Errors
    ///
    /// As [`wait_while`](Self::wait_while).
    pub fn wait_while_deadline(
        &self,
        deadline: Instant,
        condition: impl FnMut(&T) -> bool,
    ) -> Result<Option<T>, AccessError> {
        self.wait_while_timeout(deadline.saturating_duration_since(Instant::now()), condition)
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.lock.segment()
    }

    fn wait_until(
        &self,
        wait: Wait,
        mut condition: impl FnMut(&T) -> bool,
    ) -> Result<Option<T>, AccessError> {
        let value = self.get()?;
        if !condition(&value) {
            return Ok(Some(value));
        }
        let live = self.require_live()?; // announcing a sleeper writes
        let changed = wait_for(live, &self.changed, wait, |effort| match self.get() {
            // Nobody is left: then what they have left behind is looked at once more.
            Ok(value) if condition(&value) => (effort.is_full() && live.is_alone()).then(|| {
                let last = self.get()?;
                if condition(&last) { Err(AccessError::PeerDied) } else { Ok(last) }
            }),
            value => Some(value),
        });
        changed.ok().transpose()
    }

    fn wait(&self, wait: Wait) -> Result<ValueGuard<'_, T>, LockError<ValueGuard<'_, T>>> {
        let marks = self.lock.raw_lock(wait)?;
        let guard = ValueGuard { value: self, panic: Panic::watch(), not_send: PhantomData };
        if marks.is_clean() { Ok(guard) } else { Err(marked(marks, guard)) }
    }

    /// A guard whatever the marks are: a value is whole even if a holder died.
    fn any_guard(&self) -> Result<ValueGuard<'_, T>, AccessError> {
        match self.wait(Wait::FOREVER) {
            Ok(guard) | Err(LockError::OwnerDied(guard) | LockError::Poisoned(guard)) => Ok(guard),
            Err(failure) => Err(failure.into()),
        }
    }

    fn require_live(&self) -> Result<&Participants, AccessError> {
        self.lock.handle.live().ok_or(AccessError::NotAttached)
    }

    /// Larger values: the caller holds the lock, or is alone.
    #[inline]
    fn write(data: &[AtomicU64], value: &T) {
        if is_one_word::<T>() {
            data[0].swap(word_of(value), Ordering::AcqRel);
            return;
        }
        with_words(words_of::<T>(), |words| {
            to_words(value, words);
            Latest::new(data, words_of::<T>()).set(words);
        });
    }
}

impl<T: Number> Value<T> {
    fn live_or_panic(&self) {
        assert!(self.lock.handle.live().is_some(), "{}", AccessError::NotAttached);
    }

    /// Adds in one atomic step (integers wrap around); returns the value before.
    ///
    /// # Panics
    ///
    /// If the process was forked and has not attached, or attached for reading only.
    #[inline]
    pub fn fetch_add(&self, n: T) -> T {
        self.live_or_panic();
        let before = if T::WRAPS_AT_64_BITS {
            number(self.words[0].fetch_add(word_of(&n), Ordering::AcqRel))
        } else {
            replace_number(&self.words[0], |value: T| value.plus(n))
        };
        self.changed.notify_after_rmw(&Linux);
        before
    }

    /// Subtracts in one atomic step (integers wrap around); returns the value before.
    ///
    /// # Panics
    ///
    /// As [`fetch_add`](Self::fetch_add).
    #[inline]
    pub fn fetch_sub(&self, n: T) -> T {
        self.live_or_panic();
        let before = replace_number(&self.words[0], |value: T| value.minus(n));
        self.changed.notify_after_rmw(&Linux);
        before
    }

    /// Replaces the value in one atomic step; returns the value before.
    ///
    /// # Panics
    ///
    /// As [`fetch_add`](Self::fetch_add).
    pub fn swap(&self, value: T) -> T {
        self.live_or_panic();
        let before = number(self.words[0].swap(word_of(&value), Ordering::AcqRel));
        self.changed.notify_after_rmw(&Linux);
        before
    }

    /// Replaces the value by `new` if it is `current` (bit for bit).
    ///
    /// # Errors
    ///
    /// What the value is, if it is not `current`.
    ///
    /// # Panics
    ///
    /// As [`fetch_add`](Self::fetch_add).
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        self.live_or_panic();
        let result = compare_exchange_number(&self.words[0], current, new);
        self.changed.notify_after_rmw(&Linux);
        result
    }
}

impl<T: Plain> Clone for Value<T> {
    fn clone(&self) -> Self {
        Self {
            lock: self.lock.clone(),
            changed: self.changed.clone(),
            words: self.words.clone(),
            value: PhantomData,
        }
    }
}

impl<T: Plain> ValueGuard<'_, T> {
    /// The value now. While the guard lives only its holder changes values larger than 8 bytes.
    ///
    /// # Errors
    ///
    /// As [`Value::get`].
    pub fn get(&self) -> Result<T, AccessError> {
        self.value.get()
    }

    /// Replaces the value.
    pub fn set(&mut self, value: T) {
        Value::write(&self.value.words, &value);
        self.notify();
    }

    /// Replaces the value by `f` of it. For `T` of at most 8 bytes this is a compare-and-swap, so that what others do
    /// without the lock is not lost, and `f` may be called several times.
    ///
    /// # Errors
    ///
    /// As [`Value::get`].
    pub fn update(&mut self, mut f: impl FnMut(T) -> T) -> Result<T, AccessError> {
        if is_one_word::<T>() {
            let (_, after) = update_word(&self.value.words[0], f)?;
            self.notify();
            return Ok(after);
        }
        let after = f(self.get()?);
        self.set(after);
        Ok(after)
    }

    fn notify(&self) {
        if is_one_word::<T>() {
            self.value.changed.notify_after_rmw(&Linux);
        } else {
            self.value.changed.notify_after_store(&Linux);
        }
    }
}

impl<T: Plain> Guard for ValueGuard<'_, T> {
    fn mark_consistent(&mut self) {
        self.value.lock.handle.words.mark_consistent();
    }
}

impl<T: Plain> Drop for ValueGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.value.lock.raw_unlock(&self.panic);
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Value").field("value", &self.get()).field("lock", &self.lock).finish()
    }
}

impl<T: Plain> std::fmt::Debug for ValueGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValueGuard").field("type", &T::LAYOUT.name).finish_non_exhaustive()
    }
}

handle_serde!(Value<T: Plain>);

/// A value without a lock: relaxed atomic words, and nothing else.
///
/// At most 8 bytes are read and written in one step. Larger values are copied word by word, and a reader beside a
/// writer may see parts of both: use [`Value`] where that matters.
///
/// ```
/// let v = crossproc_primitives::RawValue::new(7_u16)?;
/// v.set(8)?;
/// assert_eq!(v.fetch_add(1), 8);
/// assert_eq!(v.get()?, 9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RawValue<T: Plain> {
    handle: Handle<AtomicU64>,
    words: PlacedSlice<AtomicU64>,
    value: PhantomData<fn(T) -> T>,
}

const fn raw_words<T>() -> usize {
    if words_of::<T>() == 0 { 1 } else { words_of::<T>() }
}

impl<T: Plain> RawValue<T> {
    const SPEC: ObjectSpec = spec::<T>(ObjectKind::new("RawValue"), 1, 8 * raw_words::<T>() as u64);

    /// A value in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new(value: T) -> Result<Self, Error> {
        Self::of(Handle::anonymous(&Self::SPEC, |fresh| Self::first(fresh, &value))?)
    }

    pub(crate) fn named(segment: &Segment, name: &str, value: T) -> Result<Self, Error> {
        Self::of(Handle::named(segment, name, &Self::SPEC, |fresh| Self::first(fresh, &value))?)
    }

    fn first(fresh: &Fresh<'_>, value: &T) {
        Self::write(&fresh.place_slice(0, raw_words::<T>() as u64), value);
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &Self::SPEC)?)
    }

    fn of(handle: Handle<AtomicU64>) -> Result<Self, Error> {
        let words = handle.place_slice(0, raw_words::<T>() as u64)?;
        Ok(Self { handle, words, value: PhantomData })
    }

    fn handle(&self) -> &Handle<AtomicU64> {
        &self.handle
    }

    /// The value now.
    ///
    /// # Errors
    ///
    /// [`AccessError::Invalid`] if the bits are no `T`.
    #[inline]
    pub fn get(&self) -> Result<T, AccessError> {
        with_words(raw_words::<T>(), |out| {
            for (to, from) in out.iter_mut().zip(self.words.iter()) {
                *to = from.load(Ordering::Relaxed);
            }
            Ok(from_words(out)?)
        })
    }

    /// Replaces the value, word by word.
    ///
    /// # Errors
    ///
    /// [`AccessError::NotAttached`].
    #[inline]
    pub fn set(&self, value: T) -> Result<(), AccessError> {
        if self.handle.live().is_none() {
            return Err(AccessError::NotAttached);
        }
        Self::write(&self.words, &value);
        Ok(())
    }

    fn write(words: &[AtomicU64], value: &T) {
        with_words(raw_words::<T>(), |from| {
            to_words(value, from);
            for (to, from) in words.iter().zip(from) {
                to.store(*from, Ordering::Relaxed);
            }
        });
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }
}

impl<T: Number> RawValue<T> {
    /// Adds in one atomic step (integers wrap around); returns the value before.
    ///
    /// # Panics
    ///
    /// If the process was forked and has not attached, or attached for reading only.
    pub fn fetch_add(&self, n: T) -> T {
        assert!(self.handle.live().is_some(), "{}", AccessError::NotAttached);
        replace_number(&self.words[0], |value: T| value.plus(n))
    }

    /// Replaces the value by `new` if it is `current` (bit for bit).
    ///
    /// # Errors
    ///
    /// What the value is, if it is not `current`.
    ///
    /// # Panics
    ///
    /// As [`fetch_add`](Self::fetch_add).
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        assert!(self.handle.live().is_some(), "{}", AccessError::NotAttached);
        compare_exchange_number(&self.words[0], current, new)
    }
}

impl<T: Plain> Clone for RawValue<T> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), words: self.words.clone(), value: PhantomData }
    }
}

impl<T: Plain + std::fmt::Debug> std::fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RawValue").field(&self.get()).finish()
    }
}

handle_serde!(RawValue<T: Plain>);
