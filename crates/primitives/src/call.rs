//! `Call`: a request and its reply, at the price of one cache line.
//!
//! ```text
//!    0  the call's words
//!  384  its line: the phase, the request, the reply
//! ```
//!
//! The protocol is in `crossproc-ring`, call.rs.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Linux, Liveness as _, Ordering, heavy_fence, register_light_fences};
use crossproc_ring::{Asked, CallCell, CallWords, Ended, NoTurn, Party, Serving};
use crossproc_segment::plain::{InvalidBits, Plain, from_words, to_words, words_of};
use crossproc_segment::{Error, ObjectKind, ObjectSpec, Participants, PlacedSlice, Segment};
use crossproc_sync::{Effort, WaitFailure, wait_for};

use crate::audit::Violation;
use crate::handle::{Handle, spec_of};
use crate::lock::{Wait, before, within};
use crate::object_queue::layout_of;
use crate::spin::Spin;

const LINE: u64 = size_of::<CallWords>() as u64;

/// Why a call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no request ([`Call::try_serve`]).
    Empty,
    /// There was no reply, or no request, until the deadline. A request that nobody had begun to serve was taken back.
    TimedOut,
    /// All other processes are gone.
    PeerDied,
    /// The process was forked and has not attached to the segment, or attached for reading only.
    NotAttached,
    /// What came is no value of the type: another program, or a damaged one, sent it. Of a request that is none, server and caller are
    /// told, and it is served no more.
    Invalid(InvalidBits),
    /// The words in shared memory contradict each other.
    Damaged,
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("there is no request; try again, or wait with `serve`"),
            Self::TimedOut => f.write_str("the call was not served until the deadline"),
            Self::PeerDied => f.write_str("all other processes that used the call are gone"),
            Self::NotAttached => f.write_str(
                "this process is not attached to the call's segment for writing; a forked child has to attach it again",
            ),
            Self::Invalid(why) => why.fmt(f),
            Self::Damaged => f.write_str("the call's words in shared memory contradict each other; make a new one"),
        }
    }
}

impl std::error::Error for CallError {}

/// Calls from process to process: one party sends a request of type `Q` and waits for the reply of type `R`, another one serves.
///
/// There is one call at a time; who calls meanwhile waits for its turn. Request and reply share cache lines, so for small data a
/// call takes about half as long as a message there and one back. For data that is not [`Plain`], or many calls at a time, take a
/// [`Pipe`](crate::Pipe) or queues.
///
/// Any handle can call and serve. If the server is killed while it serves, the next one gets the request
/// again ([`Request::is_redelivered`]); if the caller is killed, its reply goes nowhere. A caller whose deadline passes while it is being
/// served leaves the reply to nobody, and the next call begins when the server is done.
///
/// It is `Send` and not `Sync`: give each thread a clone. A thread that serves does not call through the same handle meanwhile.
///
/// ```
/// use crossproc_primitives::Call;
///
/// let square = Call::<u32, u64>::new()?;
/// let server = square.clone();
/// std::thread::scope(|s| {
///     s.spawn(move || {
///         let request = server.serve().expect("somebody calls");
///         let n = u64::from(*request);
///         request.reply(n * n);
///     });
///     assert_eq!(square.call(&12)?, 144);
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Call<Q, R> {
    handle: Handle<CallWords>,
    line: PlacedSlice<AtomicU64>,
    /// This process has registered for heavy fences.
    light: bool,
    spin: Spin,
    values: PhantomData<fn(Q, R)>,
}

/// A request that is being served; [`reply`](Self::reply) answers it, dropping it leaves it to the next server.
///
/// It is also the turn to serve. Forgotten ([`mem::forget`](std::mem::forget)) it keeps that, and no call is served, until this process
/// ends or has dropped all it has of the segment.
#[must_use = "dropped, it is served by the next"]
pub struct Request<'a, Q: Plain, R: Plain> {
    call: &'a Call<Q, R>,
    value: Q,
    serving: Option<Serving>,
}

impl<Q: Plain, R: Plain> Call<Q, R> {
    fn spec() -> ObjectSpec {
        let line = CallCell::line_words(words_of::<Q>(), words_of::<R>()) as u64;
        spec_of(ObjectKind::new("Call"), layout_of::<(Q, R)>(), 1, LINE + (line * 8).next_multiple_of(64))
    }

    /// In an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// If the segment can not be made (out of memory or descriptors).
    pub fn new() -> Result<Self, Error> {
        Self::of(Handle::anonymous(&Self::spec(), |_| ())?)
    }

    pub(crate) fn named(segment: &Segment, name: &str) -> Result<Self, Error> {
        Self::of(Handle::named(segment, name, &Self::spec(), |_| ())?)
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Self::of(Handle::attach(segment, index, &Self::spec())?)
    }

    fn of(handle: Handle<CallWords>) -> Result<Self, Error> {
        let words = CallCell::line_words(words_of::<Q>(), words_of::<R>()) as u64;
        let line = handle.place_slice(LINE, words)?;
        Ok(Self { handle, line, light: register_light_fences(), spin: Spin::new(), values: PhantomData })
    }

    #[inline]
    fn cell(&self) -> CallCell<'_> {
        CallCell::new(&self.handle.words, &self.line, words_of::<Q>())
    }

    // ---- Calling

    /// Sends a request and waits for the reply as long as it takes.
    ///
    /// A request that nobody serves yet, or whose server was killed, waits for the next server. That there will be none is known only
    /// ([`PeerDied`](CallError::PeerDied)) once no other process at all is attached to the segment. If some may stay when the last server
    /// is gone, such as a supervisor or other callers, use [`call_timeout`](Self::call_timeout).
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `Empty` or `TimedOut`.
    #[inline]
    pub fn call(&self, request: &Q) -> Result<R, CallError> {
        self.call_within(request, Wait::FOREVER)
    }

    /// Sends a request and waits for the reply at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `Empty`.
    pub fn call_timeout(&self, request: &Q, timeout: Duration) -> Result<R, CallError> {
        self.call_within(request, within(timeout))
    }

    /// Sends a request and waits for the reply until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `Empty`.
    pub fn call_deadline(&self, request: &Q, deadline: Instant) -> Result<R, CallError> {
        self.call_within(request, before(deadline))
    }

    #[inline]
    fn call_within(&self, request: &Q, wait: Wait) -> Result<R, CallError> {
        let live = self.handle.live().ok_or(CallError::NotAttached)?;
        let cell = self.cell();
        self.wait(live, Party::Caller, wait, |_| match cell.take_turn(Party::Caller, live) {
            Ok(()) => Some(Ok(())),
            Err(NoTurn::Damaged) => Some(Err(CallError::Damaged)),
            Err(NoTurn::Taken) => None,
        })?;
        let reply = self.call_in_turn(live, request, wait);
        cell.pass_turn(Party::Caller);
        cell.notify(Party::Caller, &Linux, self.light);
        reply
    }

    #[inline]
    fn call_in_turn(&self, live: &Participants, request: &Q, wait: Wait) -> Result<R, CallError> {
        let cell = self.cell();
        self.wait(live, Party::Caller, wait, |_| cell.is_free(live).then_some(Ok(())))?;
        write(request, cell.request());
        let asked = cell.ask();
        cell.notify(Party::Caller, &Linux, self.light);
        let ended = self.wait(live, Party::Caller, wait, |effort| {
            let ended = || cell.ended(asked).map(Ok);
            ended().or_else(|| {
                let alone = effort.is_full() && live.is_alone();
                alone.then(|| ended().unwrap_or(Err(CallError::PeerDied)))
            })
        });
        match ended {
            Ok(ended) => self.reply(ended),
            Err(error) => self.give_up(live, asked, error),
        }
    }

    #[cold]
    fn give_up(&self, live: &Participants, asked: Asked, error: CallError) -> Result<R, CallError> {
        let cell = self.cell();
        if cell.give_up(asked, live) {
            return Err(error);
        }
        // At the last moment?
        cell.ended(asked).map_or(Err(error), |ended| self.reply(ended))
    }

    #[inline]
    fn reply(&self, ended: Ended) -> Result<R, CallError> {
        match ended {
            Ended::Answered => read(self.cell().reply()),
            Ended::Refused => Err(CallError::Invalid(InvalidBits::of::<Q>())),
        }
    }

    // ---- Serving

    /// Waits for a request as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `Empty` or `TimedOut`.
    #[inline]
    pub fn serve(&self) -> Result<Request<'_, Q, R>, CallError> {
        self.serve_within(Wait::FOREVER)
    }

    /// Takes a request if there is one.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `TimedOut`.
    pub fn try_serve(&self) -> Result<Request<'_, Q, R>, CallError> {
        self.serve_within(Wait::Try)
    }

    /// Waits for a request at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `Empty`.
    pub fn serve_timeout(&self, timeout: Duration) -> Result<Request<'_, Q, R>, CallError> {
        self.serve_within(within(timeout))
    }

    /// Waits for a request until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; never `Empty`.
    pub fn serve_deadline(&self, deadline: Instant) -> Result<Request<'_, Q, R>, CallError> {
        self.serve_within(before(deadline))
    }

    #[inline]
    fn serve_within(&self, wait: Wait) -> Result<Request<'_, Q, R>, CallError> {
        let live = self.handle.live().ok_or(CallError::NotAttached)?;
        let serving = self.wait(live, Party::Server, wait, |effort| {
            self.take(live).or_else(|| {
                let alone = effort.is_full() && live.is_alone();
                alone.then(|| self.take(live).unwrap_or(Err(CallError::PeerDied)))
            })
        })?;
        match read(self.cell().request()) {
            Ok(value) => Ok(Request { call: self, value, serving: Some(serving) }),
            Err(error) => {
                // Given back it would be the next server's, and so on, and nothing else would be served.
                self.end(|cell| cell.refuse(serving));
                Err(error)
            }
        }
    }

    #[inline]
    fn take(&self, live: &Participants) -> Option<Result<Serving, CallError>> {
        let cell = self.cell();
        if !cell.is_asked() {
            return None;
        }
        match cell.take_turn(Party::Server, live) {
            Ok(()) => {}
            Err(NoTurn::Damaged) => return Some(Err(CallError::Damaged)),
            Err(NoTurn::Taken) => return None,
        }
        let serving = cell.serve();
        if serving.is_none() {
            cell.pass_turn(Party::Server);
            cell.notify(Party::Server, &Linux, self.light);
        }
        serving.map(Ok)
    }

    #[inline]
    fn end(&self, end: impl FnOnce(CallCell<'_>)) {
        let cell = self.cell();
        end(cell);
        cell.pass_turn(Party::Server);
        cell.notify(Party::Server, &Linux, self.light);
    }

    /// Calls `attempt` until it returns something: again and again at first, then asleep in between.
    #[inline]
    fn wait<T>(
        &self,
        live: &Participants,
        party: Party,
        wait: Wait,
        mut attempt: impl FnMut(Effort) -> Option<Result<T, CallError>>,
    ) -> Result<T, CallError> {
        if let Some(done) = attempt(Effort::Light) {
            return done;
        }
        self.wait_longer(live, party, wait, attempt)
    }

    #[cold]
    #[inline(never)]
    fn wait_longer<T>(
        &self,
        live: &Participants,
        party: Party,
        wait: Wait,
        mut attempt: impl FnMut(Effort) -> Option<Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let mut found = None;
        if wait != Wait::Try {
            self.spin.spin(|| {
                found = attempt(Effort::Light);
                found.is_some()
            });
        }
        if let Some(found) = found {
            return found;
        }
        let cell = self.cell();
        let asleep = Instant::now();
        let found = wait_for(live, cell.event(party), wait, |effort| {
            if wait != Wait::Try && effort.is_full() {
                cell.before_sleeping(party, heavy_fence);
            }
            attempt(effort)
        });
        self.spin.slept(asleep.elapsed());
        match found {
            Ok(done) => done,
            Err(WaitFailure::WouldBlock) => Err(CallError::Empty),
            Err(WaitFailure::TimedOut) => Err(CallError::TimedOut),
        }
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.handle.segment()
    }

    /// Looks for words in shared memory that contradict each other. Changes nothing; exact while nobody uses it.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.cell().audit().map_err(Violation::new)
    }
}

#[inline]
fn write<T: Plain>(value: &T, words: &[AtomicU64]) {
    with_words(words.len(), |copy| {
        to_words(value, copy);
        for (word, copy) in words.iter().zip(copy) {
            word.store(*copy, Ordering::Relaxed);
        }
    });
}

#[inline]
fn read<T: Plain>(words: &[AtomicU64]) -> Result<T, CallError> {
    with_words(words_of::<T>(), |copy| {
        for (copy, word) in copy.iter_mut().zip(words) {
            *copy = word.load(Ordering::Relaxed);
        }
        from_words(copy).map_err(CallError::Invalid)
    })
}

/// Private words for a copy: on the stack, if they are few.
#[inline]
fn with_words<T>(count: usize, f: impl FnOnce(&mut [u64]) -> T) -> T {
    if count <= 32 { f(&mut [0; 32][..count]) } else { f(&mut vec![0; count]) }
}

impl<Q: Plain, R: Plain> Request<'_, Q, R> {
    /// Answers the request. (Nothing in a forked child: there it is a copy of its parent's.)
    #[inline]
    pub fn reply(mut self, reply: R) {
        if let (Some(serving), Some(_)) = (self.serving.take(), self.call.handle.live()) {
            write(&reply, self.call.cell().reply());
            self.call.end(|cell| cell.answer(serving));
        }
    }

    /// True if another server has died serving it: it may have been served in part.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| serving.again)
    }
}

impl<Q: Plain, R: Plain> std::ops::Deref for Request<'_, Q, R> {
    type Target = Q;

    fn deref(&self) -> &Q {
        &self.value
    }
}

impl<Q: Plain, R: Plain> Drop for Request<'_, Q, R> {
    fn drop(&mut self) {
        if let (Some(serving), Some(_)) = (self.serving.take(), self.call.handle.live()) {
            self.call.end(|cell| cell.give_back(serving));
        }
    }
}

impl<Q: Plain, R: Plain> std::fmt::Debug for Request<'_, Q, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("is_redelivered", &self.is_redelivered()).finish_non_exhaustive()
    }
}

impl<Q, R> Clone for Call<Q, R> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            line: self.line.clone(),
            light: self.light,
            spin: Spin::new(),
            values: PhantomData,
        }
    }
}

impl<Q, R> std::fmt::Debug for Call<Q, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").finish_non_exhaustive()
    }
}

impl<Q: Plain, R: Plain> serde::Serialize for Call<Q, R> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde::Serialize::serialize(&(self.handle.segment(), self.handle.index()), serializer)
    }
}

impl<'de, Q: Plain, R: Plain> serde::Deserialize<'de> for Call<Q, R> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (segment, index) = serde::Deserialize::deserialize(deserializer)?;
        Self::attach(segment, index).map_err(crossproc_segment::handover::de_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANG: Duration = Duration::from_secs(30);

    fn await_request(call: &Call<bool, u8>) {
        let started = Instant::now();
        while !call.cell().is_asked() {
            assert!(started.elapsed() < HANG, "nobody calls");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_request_that_is_none_is_refused_once_and_the_next_is_served() {
        let call = Call::<bool, u8>::new().unwrap();
        let server = call.clone();
        std::thread::scope(|scope| {
            let calling =
                scope.spawn(move || [call.call_timeout(&true, HANG), call.call_timeout(&true, HANG)]);
            let invalid = CallError::Invalid(InvalidBits::of::<bool>());
            await_request(&server);
            server.cell().request()[0].store(2, Ordering::Relaxed);
            assert_eq!(server.try_serve().unwrap_err(), invalid);
            server.serve_timeout(HANG).unwrap().reply(7);
            assert_eq!(calling.join().unwrap(), [Err(invalid), Ok(7)]);
            assert_eq!(server.try_serve().unwrap_err(), CallError::Empty);
        });
    }

    #[test]
    fn a_call_that_was_withdrawn_was_not_refused() {
        let call = Call::<bool, u8>::new().unwrap();
        assert_eq!(call.call_timeout(&true, Duration::ZERO), Err(CallError::TimedOut));
    }
}
