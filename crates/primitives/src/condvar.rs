//! `Condvar`: Python's `Condition`, without a lock of its own.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_atomic::{Deadline, Linux};
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Participants, Segment};
use crossproc_sync::{CondvarWords, Woken};

use crate::audit::Violation;
use crate::handle::{Handle, handle_serde, spec};
use crate::lock::{Guard, Lock, LockError, LockGuard, Wait, before, within};
use crate::mutex::MutexGuard;
use crate::rlock::RLockGuard;

/// Why waiting ended otherwise than by a notification.
///
/// Where a guard is inside, the lock is held again. `?` into `Box<dyn Error>` works, and lets go of it.
pub enum CondvarError<G> {
    /// The deadline has come. With the guard, if the lock could be had again at once; `None` if somebody else held it, so
    /// that nothing is held now. (POSIX would wait on for the lock. Here no wait lasts past its deadline.)
    TimedOut(Option<G>),
    /// All other processes that were attached to the segment are gone: nobody is left to notify.
    PeerDied(G),
    /// A process died while it held the lock: what it guards may be half-changed.
    OwnerDied(G),
    /// A holder of the lock panicked: what it guards may be half-changed.
    Poisoned(G),
    /// The condition variable is used with another lock.
    WrongLock(G),
    /// The process was forked and has not attached to the segment, or it attached for reading only. The guard was no
    /// guard either.
    NotAttached,
}

const WRONG_LOCK: &str =
    "the condition variable is used with another lock: with the one that was brought first";

impl<G> CondvarError<G> {
    fn text(&self) -> &'static str {
        match self {
            Self::TimedOut(Some(_)) => "nobody notified the condition variable until the deadline",
            Self::TimedOut(None) => {
                "the deadline has come, and the lock is held by somebody else: this thread does not hold it"
            }
            Self::PeerDied(_) => {
                "all other processes that were attached to the segment are gone: nobody is left to notify"
            }
            Self::OwnerDied(_) => LockError::<()>::OwnerDied(()).text(),
            Self::Poisoned(_) => LockError::<()>::Poisoned(()).text(),
            Self::WrongLock(_) => WRONG_LOCK,
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        }
    }

    /// The guard, if the lock is held.
    pub fn into_guard(self) -> Option<G> {
        match self {
            Self::TimedOut(guard) => guard,
            Self::PeerDied(guard)
            | Self::OwnerDied(guard)
            | Self::Poisoned(guard)
            | Self::WrongLock(guard) => Some(guard),
            Self::NotAttached => None,
        }
    }
}

impl<G> std::fmt::Debug for CondvarError<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TimedOut(Some(_)) => "TimedOut(Some(..))",
            Self::TimedOut(None) => "TimedOut(None)",
            Self::PeerDied(_) => "PeerDied(..)",
            Self::OwnerDied(_) => "OwnerDied(..)",
            Self::Poisoned(_) => "Poisoned(..)",
            Self::WrongLock(_) => "WrongLock(..)",
            Self::NotAttached => "NotAttached",
        })
    }
}

impl<G> std::fmt::Display for CondvarError<G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// As for [`LockError`]: with a guard inside, it could not be boxed itself.
impl<G> From<CondvarError<G>> for Box<dyn std::error::Error> {
    fn from(error: CondvarError<G>) -> Self {
        error.text().into()
    }
}

/// As for `Box<dyn Error>`.
impl<G> From<CondvarError<G>> for Box<dyn std::error::Error + Send + Sync> {
    fn from(error: CondvarError<G>) -> Self {
        error.text().into()
    }
}

/// Why nobody was notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyError {
    /// The condition variable is used with another lock.
    WrongLock,
    /// The process was forked and has not attached to the segment, or it attached for reading only.
    NotAttached,
}

impl std::fmt::Display for NotifyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::WrongLock => WRONG_LOCK,
            Self::NotAttached => LockError::<()>::NotAttached.text(),
        })
    }
}

impl std::error::Error for NotifyError {}

/// A guard that a [`Condvar`] can let go of while it waits: of a [`Lock`], an [`RLock`](crate::RLock) or a
/// [`Mutex`](crate::Mutex).
pub trait CondvarGuard: Guard + sealed::Held {
    /// What it guards: `T` of a `Mutex<T>`, nothing for the others.
    type Data;

    #[doc(hidden)]
    fn with_data<R>(&mut self, f: impl FnOnce(&mut Self::Data) -> R) -> R;
}

mod sealed {
    use crate::lock::Lock;

    /// Only this file can make one. Who merely has a bound `G: CondvarGuard` can name the methods below, but not call them.
    #[derive(Clone, Copy, Debug)]
    pub struct Token(());

    impl Token {
        pub(super) const fn new() -> Self {
            Self(())
        }
    }

    /// A guard, and how to do without it for a while: between `release` and `resume` the lock is not held. Dropping the
    /// guard then would do nothing, as the words say that the thread holds nothing.
    pub trait Held {
        fn lock(&self, token: Token) -> &Lock;

        /// Releases the lock, however often it is locked; returns how often it was locked again.
        fn release(&self, token: Token) -> u32 {
            let lock = self.lock(token);
            let depth = if lock.is_mine() { lock.handle.words.depth() } else { 0 };
            if let Some(live) = lock.handle.live() {
                lock.handle.words.unlock(live);
            }
            depth
        }

        /// The lock's words are held again.
        fn resume(&self, depth: u32, token: Token);
    }
}

const TOKEN: sealed::Token = sealed::Token::new();

impl sealed::Held for LockGuard<'_> {
    fn lock(&self, _: sealed::Token) -> &Lock {
        self.lock
    }
    fn resume(&self, _: u32, _: sealed::Token) {}
}

impl CondvarGuard for LockGuard<'_> {
    type Data = ();

    fn with_data<R>(&mut self, f: impl FnOnce(&mut ()) -> R) -> R {
        f(&mut ())
    }
}

impl sealed::Held for RLockGuard<'_> {
    fn lock(&self, _: sealed::Token) -> &Lock {
        &self.rlock.lock
    }
    fn resume(&self, depth: u32, _: sealed::Token) {
        self.rlock.lock.handle.words.set_depth(depth);
    }
}

impl CondvarGuard for RLockGuard<'_> {
    type Data = ();

    fn with_data<R>(&mut self, f: impl FnOnce(&mut ()) -> R) -> R {
        f(&mut ())
    }
}

impl<T: Plain + AnyBitPattern> sealed::Held for MutexGuard<'_, T> {
    fn lock(&self, _: sealed::Token) -> &Lock {
        &self.mutex.lock
    }
    fn resume(&self, _: u32, _: sealed::Token) {
        self.mutex.lock.keep_at_thread_end();
    }
}

impl<T: Plain + AnyBitPattern> CondvarGuard for MutexGuard<'_, T> {
    type Data = T;

    fn with_data<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> R {
        f(self)
    }
}

/// Where processes that hold a lock wait until another one says that something has changed.
///
/// Waiting takes a guard, releases its lock while it sleeps, and gives the guard back. The lock is a [`Lock`], an
/// [`RLock`](crate::RLock) (released as often as it is locked, and locked again as often) or a
/// [`Mutex`](crate::Mutex): the one that is brought first, and from then on no other one.
///
/// A waiter may be woken for no reason, and is whenever another process attaches to the segment, leaves it or dies. So
/// wait in a loop, or with [`wait_while`](Self::wait_while), which does.
///
/// Notifying never waits for anybody: waiters that were killed, or are stopped, hold up neither the notifier nor the
/// others. A process that is killed is no loss either: the others look again, whatever it was about to do. If it held
/// the lock, they are told [`OwnerDied`](CondvarError::OwnerDied).
///
/// ```
/// use crossproc_primitives::{Condvar, Mutex};
///
/// let (jobs, changed) = (Mutex::new(0_u32)?, Condvar::new()?);
/// std::thread::scope(|s| -> Result<(), Box<dyn std::error::Error>> {
///     s.spawn(|| {
///         let mut jobs = jobs.lock().unwrap();
///         *jobs += 1;
///         changed.notify_one(&jobs).unwrap();
///     });
///     let mut jobs = changed.wait_while(jobs.lock()?, |jobs| *jobs == 0)?;
///     *jobs -= 1;
///     Ok(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Who notifies shows that it holds the lock. Without, it does not compile:
///
/// ```compile_fail,E0061
/// let changed = crossproc_primitives::Condvar::new().unwrap();
/// changed.notify_one();
/// ```
///
/// Nor does it with something else than a guard:
///
/// ```compile_fail,E0277
/// let (changed, lock) = (crossproc_primitives::Condvar::new().unwrap(), crossproc_primitives::Lock::new().unwrap());
/// changed.notify_one(&lock);
/// ```
///
/// What it does with a guard while it waits, nobody else can do (there is no way to make the token that it needs):
///
/// ```compile_fail
/// fn let_go(guard: &impl crossproc_primitives::CondvarGuard) {
///     guard.release();
/// }
/// ```
#[derive(Clone)]
pub struct Condvar {
    handle: Handle<CondvarWords>,
}

impl Condvar {
    const SPEC: ObjectSpec = spec::<()>(ObjectKind::new("Condvar"), 1, size_of::<CondvarWords>() as u64);

    /// A condition variable in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new() -> Result<Self, Error> {
        Ok(Self { handle: Handle::anonymous(&Self::SPEC, |_| ())? })
    }

    pub(crate) fn named(segment: &Segment, name: &str) -> Result<Self, Error> {
        Ok(Self { handle: Handle::named(segment, name, &Self::SPEC, |_| ())? })
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Ok(Self { handle: Handle::attach(segment, index, &Self::SPEC)? })
    }

    fn handle(&self) -> &Handle<CondvarWords> {
        &self.handle
    }

    /// Releases the lock, sleeps until somebody notifies, and locks again.
    ///
    /// # Errors
    ///
    /// See [`CondvarError`]; never `TimedOut`. The mark of a dead or panicked holder of the lock comes with every locking,
    /// so with the end of every wait, until it is taken away. `PeerDied` is about those who were attached to the segment
    /// of the *condition variable* since this process came; waiting before the first one came is no error.
    pub fn wait<G: CondvarGuard>(&self, guard: G) -> Result<G, CondvarError<G>> {
        self.wait_until(guard, Wait::FOREVER)
    }

    /// As [`wait`](Self::wait), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`CondvarError`]. After `TimedOut(None)` the lock is *not* held; further guards of an `RLock` that was locked
    /// several times are void then, and to be dropped before it is locked again.
    pub fn wait_timeout<G: CondvarGuard>(&self, guard: G, timeout: Duration) -> Result<G, CondvarError<G>> {
        self.wait_until(guard, within(timeout))
    }

    /// As [`wait`](Self::wait), until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`wait_timeout`](Self::wait_timeout).
    pub fn wait_deadline<G: CondvarGuard>(&self, guard: G, deadline: Instant) -> Result<G, CondvarError<G>> {
        self.wait_until(guard, before(deadline))
    }

    /// Waits as long as `condition` holds of what is guarded; returns at once if it does not.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait). `PeerDied` comes only if the condition still holds.
    pub fn wait_while<G: CondvarGuard>(
        &self,
        guard: G,
        condition: impl FnMut(&mut G::Data) -> bool,
    ) -> Result<G, CondvarError<G>> {
        self.wait_while_until(guard, Wait::FOREVER, condition)
    }

    /// As [`wait_while`](Self::wait_while), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`wait_timeout`](Self::wait_timeout). `TimedOut(Some(guard))` comes only if the condition still holds.
    pub fn wait_while_timeout<G: CondvarGuard>(
        &self,
        guard: G,
        timeout: Duration,
        condition: impl FnMut(&mut G::Data) -> bool,
    ) -> Result<G, CondvarError<G>> {
        self.wait_while_until(guard, within(timeout), condition)
    }

    /// As [`wait_while`](Self::wait_while), until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`wait_while_timeout`](Self::wait_while_timeout).
    pub fn wait_while_deadline<G: CondvarGuard>(
        &self,
        guard: G,
        deadline: Instant,
        condition: impl FnMut(&mut G::Data) -> bool,
    ) -> Result<G, CondvarError<G>> {
        self.wait_while_until(guard, before(deadline), condition)
    }

    /// Wakes one waiter, if there is any.
    ///
    /// # Errors
    ///
    /// See [`NotifyError`].
    pub fn notify_one(&self, guard: &impl CondvarGuard) -> Result<(), NotifyError> {
        self.notify_n(guard, 1)
    }

    /// Wakes `n` waiters, or all if there are less.
    ///
    /// # Errors
    ///
    /// See [`NotifyError`].
    pub fn notify_n(&self, guard: &impl CondvarGuard, n: usize) -> Result<(), NotifyError> {
        if self.handle.live().is_none() {
            return Err(NotifyError::NotAttached);
        }
        if !self.handle.words.is_used_with(identity(guard.lock(TOKEN))) {
            return Err(NotifyError::WrongLock);
        }
        self.handle.words.notify(&Linux, u32::try_from(n).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Wakes all waiters.
    ///
    /// # Errors
    ///
    /// See [`NotifyError`].
    pub fn notify_all(&self, guard: &impl CondvarGuard) -> Result<(), NotifyError> {
        self.notify_n(guard, usize::MAX)
    }

    fn wait_while_until<G: CondvarGuard>(
        &self,
        mut guard: G,
        wait: Wait,
        mut condition: impl FnMut(&mut G::Data) -> bool,
    ) -> Result<G, CondvarError<G>> {
        if self.live_for(&guard).is_none() {
            return Err(CondvarError::NotAttached);
        }
        if !self.handle.words.is_used_with(identity(guard.lock(TOKEN))) {
            return Err(CondvarError::WrongLock(guard));
        }
        while guard.with_data(&mut condition) {
            guard = match self.wait_until(guard, wait) {
                Ok(guard) => guard,
                // What was waited for may have come without a notification.
                Err(CondvarError::TimedOut(Some(mut guard))) => {
                    let holds = guard.with_data(&mut condition);
                    return if holds { Err(CondvarError::TimedOut(Some(guard))) } else { Ok(guard) };
                }
                Err(CondvarError::PeerDied(mut guard)) => {
                    let holds = guard.with_data(&mut condition);
                    return if holds { Err(CondvarError::PeerDied(guard)) } else { Ok(guard) };
                }
                Err(error) => return Err(error),
            };
        }
        Ok(guard)
    }

    fn wait_until<G: CondvarGuard>(&self, guard: G, wait: Wait) -> Result<G, CondvarError<G>> {
        let words = &self.handle.words;
        let Some(live) = self.live_for(&guard) else { return Err(CondvarError::NotAttached) };
        if !words.is_used_with(identity(guard.lock(TOKEN))) {
            return Err(CondvarError::WrongLock(guard));
        }
        let waiter = words.announce(live);
        let depth = guard.release(TOKEN);
        let woken = words.sleep(live, waiter, deadline(wait));
        let again = if woken == Woken::TimedOut { Wait::Try } else { wait };
        let Ok(marks) = guard.lock(TOKEN).raw_lock::<()>(again) else {
            // The deadline has come (or somebody scribbled over the lock). Another one may have use for the wake-up.
            std::mem::forget(guard);
            words.give_up(&Linux, waiter);
            return Err(CondvarError::TimedOut(None));
        };
        guard.resume(depth, TOKEN);
        if marks.owner_died() {
            return Err(CondvarError::OwnerDied(guard));
        }
        if marks.poisoned() {
            return Err(CondvarError::Poisoned(guard));
        }
        match woken {
            Woken::TimedOut if !words.is_notified(waiter) => Err(CondvarError::TimedOut(Some(guard))),
            Woken::PeerDied if !words.is_notified(waiter) => Err(CondvarError::PeerDied(guard)),
            _ => Ok(guard),
        }
    }

    /// This process, if it takes part both in the condition variable's segment and in the lock's.
    fn live_for(&self, guard: &impl CondvarGuard) -> Option<&Participants> {
        guard.lock(TOKEN).handle.live().and(self.handle.live())
    }

    /// Finds what can not be, as the other objects' `audit` does. Any bits are a state of a condition variable, so there
    /// is nothing to find.
    ///
    /// # Errors
    ///
    /// None.
    pub fn audit(&self) -> Result<(), Violation> {
        Ok(())
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }
}

fn deadline(wait: Wait) -> Option<Deadline> {
    match wait {
        Wait::Try => Some(Deadline(0)),
        Wait::Until(until) => until,
    }
}

/// The same for all handles of a lock in all processes, and another one for every other lock: segments have random ids.
fn identity(lock: &Lock) -> NonZeroU64 {
    let (id, index) = (lock.segment().id(), u64::from(lock.handle.index()));
    let mixed = (id as u64 ^ (id >> 64) as u64).wrapping_add(index);
    NonZeroU64::new(mixed).unwrap_or(NonZeroU64::MAX)
}

impl std::fmt::Debug for Condvar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}

handle_serde!(Condvar);
