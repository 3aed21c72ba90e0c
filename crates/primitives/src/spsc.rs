//! A queue with one producer and one consumer, at the speed of a cache line.
//!
//! ```text
//!    0  the ring's words
//!  640  its blocks
//! ```
//!
//! The protocol is in `crossproc-ring`, blocks.rs. Each end is a *role* that one handle in one process has: see [`Producer`] and
//! [`Consumer`].

use std::cell::Cell;
use std::time::{Duration, Instant};

use bytemuck::AnyBitPattern;
use crossproc_atomic::{
    AtomicU64, Linux, heavy_fence, is_process_stamp, process_stamp, register_light_fences,
};
use crossproc_ring::{BlockConsumer, BlockProducer, BlockRing, BlockShape, BlockWords, Role, RoleTaken, Run};
use crossproc_segment::handover::{de_error, ser_error};
use crossproc_segment::plain::{InvalidBits, Plain};
use crossproc_segment::{Error, ErrorKind, ObjectKind, ObjectSpec, Participants, Segment};
use crossproc_sync::{Effort, WaitFailure, wait_for};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::audit::Violation;
use crate::block_cells::BlockCells;
pub use crate::block_cells::{Peeked, Reserved};
use crate::handle::{Handle, spec};
use crate::lock::{Wait, before, within};
use crate::spin::Spin;

const KIND: ObjectKind = ObjectKind::new("Spsc");
const BLOCKS: u64 = size_of::<BlockWords>() as u64;

/// Why something was not pushed; with what was to be pushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PushError<T> {
    /// There is no room (`try_` forms, and batches).
    Full(T),
    /// There was no room until the deadline.
    Timeout(T),
    /// The queue was closed, by the consumer or by a producer.
    Closed(T),
    /// There is no room, the consumer has died or left, and no other process is there that could take its role.
    PeerDied(T),
    /// The process was forked and has not attached to the segment, or this handle was sent to another process.
    NotAttached(T),
}

impl<T> PushError<T> {
    /// What was to be pushed.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value)
            | Self::Timeout(value)
            | Self::Closed(value)
            | Self::PeerDied(value)
            | Self::NotAttached(value) => value,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Full(_) => "Full",
            Self::Timeout(_) => "Timeout",
            Self::Closed(_) => "Closed",
            Self::PeerDied(_) => "PeerDied",
            Self::NotAttached(_) => "NotAttached",
        }
    }
}

impl<T> std::fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}(..)", self.name())
    }
}

impl<T> std::fmt::Display for PushError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "the queue is full",
            Self::Timeout(_) => "the queue was full until the deadline",
            Self::Closed(_) => "the queue is closed: nothing can be pushed any more",
            Self::PeerDied(_) => {
                "the queue is full, its consumer has died or left, and no other process is there to take its place"
            }
            Self::NotAttached(_) => NOT_ATTACHED,
        })
    }
}

impl<T> std::error::Error for PushError<T> {}

const NOT_ATTACHED: &str = "this process does not have this end of the queue: it was forked and has not attached to the segment, or the handle \
                            was sent to another process; use the handle there";

/// Why nothing was popped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopError {
    /// There is nothing (`try_` forms).
    Empty,
    /// There was nothing until the deadline.
    Timeout,
    /// The queue is closed, and everything in it was popped.
    Closed,
    /// There is nothing, the producer has died or left, and no other process is there that could take its role.
    PeerDied,
    /// The process was forked and has not attached to the segment, or this handle was sent to another process.
    NotAttached,
    /// The bits in shared memory are no value of the type. That element is gone; the next one comes next.
    Invalid(InvalidBits),
}

impl std::fmt::Display for PopError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("the queue is empty"),
            Self::Timeout => f.write_str("the queue was empty until the deadline"),
            Self::Closed => f.write_str("the queue is closed, and everything in it was popped"),
            Self::PeerDied => f.write_str(
                "the queue is empty, its producer has died or left, and no other process is there to take its place",
            ),
            Self::NotAttached => f.write_str(NOT_ATTACHED),
            Self::Invalid(invalid) => invalid.fmt(f),
        }
    }
}

impl std::error::Error for PopError {}

/// Why there is no room, or nothing there.
#[derive(Clone, Copy)]
enum Refusal {
    Now,
    Timeout,
    Closed,
    PeerDied,
    NotAttached,
}

impl From<WaitFailure> for Refusal {
    fn from(failure: WaitFailure) -> Self {
        match failure {
            WaitFailure::WouldBlock => Self::Now,
            WaitFailure::TimedOut => Self::Timeout,
        }
    }
}

impl Refusal {
    fn of_push<T>(self, value: T) -> PushError<T> {
        match self {
            Self::Now => PushError::Full(value),
            Self::Timeout => PushError::Timeout(value),
            Self::Closed => PushError::Closed(value),
            Self::PeerDied => PushError::PeerDied(value),
            Self::NotAttached => PushError::NotAttached(value),
        }
    }

    fn of_pop(self) -> PopError {
        match self {
            Self::Now => PopError::Empty,
            Self::Timeout => PopError::Timeout,
            Self::Closed => PopError::Closed,
            Self::PeerDied => PopError::PeerDied,
            Self::NotAttached => PopError::NotAttached,
        }
    }
}

/// What both ends are: the queue, and a role in it.
pub(crate) struct Side<T: Plain> {
    pub(crate) handle: Handle<BlockWords>,
    pub(crate) cells: BlockCells<T>,
    pub(crate) shape: BlockShape,
    pub(crate) role: Role,
    /// That of this process while this handle has the role; 0 once it was sent away.
    stamp: Cell<u64>,
}

impl<T: Plain> Side<T> {
    fn shape(capacity: u64) -> Result<BlockShape, Error> {
        let shape = BlockShape::new(capacity, BlockCells::<T>::PER_BLOCK as u64, BlockCells::<T>::BLOCK / 8);
        shape.ok_or_else(|| {
            let text = format!("a queue for {capacity} elements: there can be 1 to 2^40");
            Error::new(ErrorKind::InvalidLength, text)
        })
    }

    fn spec(capacity: usize) -> Result<ObjectSpec, Error> {
        let shape = Self::shape(capacity as u64)?;
        let blocks = (shape.places() as u64).checked_mul(BlockCells::<T>::BLOCK as u64);
        let bytes = blocks.and_then(|blocks| blocks.checked_add(BLOCKS)).ok_or_else(|| {
            let size = size_of::<T>();
            let text = format!("{capacity} elements of {size} bytes are more than any memory");
            Error::new(ErrorKind::TooLarge, text)
        })?;
        Ok(spec::<T>(KIND, capacity as u64, bytes))
    }

    /// Claims a role; `sent` to us by its last holder.
    fn claim(handle: Handle<BlockWords>, role: Role, sent: bool) -> Result<Self, Error> {
        // What the directory says is compared with the object's length; a count that was written over fails.
        let shape = Self::shape(handle.count()).map_err(|error| damaged(&error.to_string()))?;
        let words = (shape.places() as u64).saturating_mul(BlockCells::<T>::BLOCK as u64 / 8);
        let cells = BlockCells::new(handle.place_slice::<AtomicU64>(BLOCKS, words)?);
        let live = handle.segment().participants()?;
        let ring = BlockRing::new(&handle.words, cells.words(), shape);
        ring.claim(role, live, sent).map_err(|taken| role_taken(role, taken, live))?;
        Ok(Self { handle, cells, shape, role, stamp: Cell::new(process_stamp()) })
    }

    #[inline]
    fn ring(&self) -> BlockRing<'_> {
        BlockRing::new(&self.handle.words, self.cells.words(), self.shape)
    }

    /// True if this handle has the role in this process.
    #[inline]
    fn is_ours(&self) -> bool {
        self.stamp.get() != 0 && is_process_stamp(self.stamp.get())
    }

    /// This process's place in the segment, if this handle has the role.
    fn live(&self) -> Result<&Participants, Refusal> {
        self.handle.live().filter(|_| self.is_ours()).ok_or(Refusal::NotAttached)
    }

    /// As [`live`](Self::live), or takes a role back that was sent away and that nobody has taken. If so, another handle may have
    /// been at work with it in the meantime: what this one knows of the ring is not to be used.
    fn take_back(&self) -> Result<&Participants, Refusal> {
        let live = self.handle.live().ok_or(Refusal::NotAttached)?;
        let has = self.is_ours() || self.stamp.get() == 0 && self.ring().take_back(self.role, live);
        if has { Ok(live) } else { Err(Refusal::NotAttached) }
    }

    /// Sends the role away with the serialised handle.
    fn send<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = (self.handle.segment(), self.handle.index()).serialize(serializer)?;
        let live = self.take_back().map_err(|_| ser_error(NOT_ATTACHED))?;
        if !self.ring().offer(self.role, live) {
            return Err(ser_error("the role is not this process's any more: somebody wrote over its word"));
        }
        self.stamp.set(0);
        Ok(bytes)
    }

    fn receive<'de, D: Deserializer<'de>>(deserializer: D, role: Role) -> Result<Self, D::Error> {
        let (segment, index): (Segment, u32) = Deserialize::deserialize(deserializer)?;
        let any = spec::<T>(KIND, 1, BLOCKS);
        Handle::attach(segment, index, &any)
            .and_then(|handle| Self::claim(handle, role, true))
            .map_err(de_error)
    }

    fn peer(&self) -> Option<u32> {
        let live = self.handle.live()?;
        let owner = self.ring().holder(self.role.other())?;
        live.list()
            .into_iter()
            .find(|participant| participant.owner == owner)
            .map(|participant| participant.pid)
    }

    fn close(&self) {
        if let Ok(live) = self.take_back() {
            self.ring().close(self.role, &Linux);
            if !self.is_ours() {
                self.ring().offer(self.role, live);
            }
        }
    }

    fn debug(&self, name: &str, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(name)
            .field("len", &self.ring().len())
            .field("capacity", &self.shape.capacity())
            .field("closed", &self.ring().is_closed())
            .finish_non_exhaustive()
    }
}

impl<T: Plain> Drop for Side<T> {
    fn drop(&mut self) {
        // A handle that was sent away gives back what nobody has taken.
        if let Ok(live) = self.take_back() {
            self.ring().give_back(self.role, live);
        }
    }
}

fn damaged(text: &str) -> Error {
    Error::new(ErrorKind::Damaged, text)
}

#[cold]
fn role_taken(role: Role, taken: RoleTaken, live: &Participants) -> Error {
    let end = match role {
        Role::Producer => "producer",
        Role::Consumer => "consumer",
    };
    let Some(owner) = taken.by else {
        return damaged(&format!("the word that names the {end} was written over"));
    };
    let who = match live.list().into_iter().find(|participant| participant.owner == owner) {
        Some(participant) if participant.is_me => "this process".to_owned(),
        Some(participant) => format!("process {}", participant.pid),
        None => "a process that has just left".to_owned(),
    };
    Error::new(
        ErrorKind::RoleTaken,
        format!(
            "the queue has a {end}: {who}; there can be one at a time, and the next after it has dropped its handle or died"
        ),
    )
}

/// A queue in an anonymous segment of its own, for at least `capacity` elements: both ends.
///
/// Hand one of them to another process as an argument, or to another thread.
///
/// The first producer of a process that has several threads takes some milliseconds to make (`membarrier(2)` is registered for).
///
/// # Errors
///
/// [`InvalidLength`](ErrorKind::InvalidLength) for a capacity of 0 or above 2^40, or if the segment can not be made (out of memory
/// or descriptors).
///
/// ```
/// use crossproc_primitives::spsc::{self, PopError};
///
/// let (mut producer, mut consumer) = spsc::channel::<u64>(1024)?;
/// std::thread::scope(|s| {
///     s.spawn(move || {
///         for n in 0..10_000 {
///             producer.push(n).expect("the consumer is there");
///         }
///         producer.close();
///     });
///     assert!((0..10_000).all(|n| consumer.pop() == Ok(n)));
///     assert_eq!(consumer.pop(), Err(PopError::Closed));
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn channel<T: Plain>(capacity: usize) -> Result<(Producer<T>, Consumer<T>), Error> {
    let light = register_light_fences();
    let handle = Handle::anonymous(&Side::<T>::spec(capacity)?, |_| ())?;
    let consumer = Consumer::of(Side::claim(handle.clone(), Role::Consumer, false)?)?;
    Ok((Producer::of(Side::claim(handle, Role::Producer, false)?, light)?, consumer))
}

/// The end of a queue at which elements are pushed.
///
/// A queue has one producer at a time: a handle, in one process. It is made by [`channel`], or by name in a segment
/// ([`Objects::producer`](crate::Objects::producer)). Who comes second gets [`RoleTaken`](ErrorKind::RoleTaken). The role passes on
///
/// * when the handle is dropped: to the next who asks for it by name;
/// * when the process dies, however it dies: in the same way, and the next one goes on behind the last element whose push had
///   come to its end. Nothing is lost, doubled or half-written;
/// * when the handle is handed to a child process: to that one. Then the handle here is of no more use
///   ([`NotAttached`](PushError::NotAttached)). As long as nobody has received it, its next use takes the role back.
///
/// A push is a copy of the element and one store into the same cache line; no atomic read-modify-write, no fence, and no system call unless
/// the consumer sleeps. It waits when the queue is full: first looking at it again and again (up to tens of microseconds),
/// then asleep. [`PushError::PeerDied`] ends the wait when the consumer has died (or has left) and no other process
/// is attached that could take its role. A consumer that is *stopped* is waited for; use the timed forms where that matters.
///
/// Elements are [`Plain`] data of any size, aligned to at most 64 bytes.
///
/// ```
/// use crossproc_primitives::spsc::{self, PushError};
///
/// let (mut producer, mut consumer) = spsc::channel::<[f32; 2]>(100)?;
/// assert!(producer.capacity() >= 100);
/// producer.push([1.0, 2.0])?;
/// assert_eq!(producer.push_many(&[[3.0, 4.0], [5.0, 6.0]])?, 2);
/// assert_eq!(producer.len(), 3);
///
/// consumer.close(); // no more, please
/// let refused = producer.push([7.0, 8.0]).unwrap_err();
/// assert_eq!(refused, PushError::Closed([7.0, 8.0]));
/// assert_eq!(consumer.pop()?, [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// There is one of it, so it can not be cloned, and pushing needs `&mut`:
///
/// ```compile_fail
/// let (producer, _consumer) = crossproc_primitives::spsc::channel::<u64>(8).unwrap();
/// let another = producer.clone();
/// ```
pub struct Producer<T: Plain> {
    pub(crate) side: Side<T>,
    pub(crate) ring: BlockProducer,
    /// This process has registered for heavy fences.
    pub(crate) light: bool,
    spin: Spin,
}

/// The end of a queue at which elements are popped.
///
/// A queue has one consumer at a time; the role passes on as that of the [`Producer`]. The next consumer goes on
/// where the last one stopped: of elements that were popped, none comes again; if a consumer is killed *while* it pops one, either that one comes
/// again or its copy has died with the process. Elements that were looked at in place ([`peek`](Self::peek)) and not released come
/// again, and [`redelivered`](Self::redelivered) tells how many: so nothing is lost, whenever the consumer is killed.
///
/// A pop is a copy of the element and one store into a cache line that only consumers write. It waits when the queue is empty:
/// first looking at it again and again (up to tens of microseconds), then asleep. [`PopError::PeerDied`] ends the wait when
/// everything was popped, the producer has died (or has left) and no other process is attached that could take its role.
///
/// ```
/// use crossproc_primitives::spsc;
///
/// let (mut producer, mut consumer) = spsc::channel::<u16>(8)?;
/// producer.push_all(&[1, 2, 3, 4])?;
/// drop(producer);
/// assert_eq!(consumer.pop()?, 1);
/// assert_eq!(consumer.iter().collect::<Vec<_>>(), [2, 3, 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Consumer<T: Plain> {
    pub(crate) side: Side<T>,
    pub(crate) ring: BlockConsumer,
    spin: Spin,
}

/// What both ends can tell.
macro_rules! both_ends {
    ($name:ident) => {
        impl<T: Plain> $name<T> {
            /// Closes the queue for good: from now on nothing is pushed, and everything that was can be popped. Both sides are woken.
            ///
            /// What is pushed at the same moment as a *consumer* closes may remain in the queue.
            pub fn close(&self) {
                self.side.close();
            }

            /// True if either side has closed it.
            #[must_use]
            pub fn is_closed(&self) -> bool {
                self.side.ring().is_closed()
            }

            /// How many elements fit for certain: at least what was asked for.
            ///
            /// Memory comes in blocks, which the consumer gives back some at a time, so there may be room for a few more.
            #[must_use]
            pub fn capacity(&self) -> usize {
                self.side.shape.capacity() as usize
            }

            /// How many elements were in the queue a moment ago.
            #[must_use]
            pub fn len(&self) -> usize {
                self.side.ring().len() as usize
            }

            /// True if there was none a moment ago.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.side.ring().is_empty()
            }

            /// True if there was no room for another one a moment ago.
            #[must_use]
            pub fn is_full(&self) -> bool {
                self.side.ring().is_full()
            }

            /// The id of the process that had the other end a moment ago, and lives.
            #[must_use]
            pub fn peer(&self) -> Option<u32> {
                self.side.peer()
            }

            /// The segment in which the queue lives.
            #[must_use]
            pub fn segment(&self) -> &Segment {
                self.side.handle.segment()
            }

            /// Looks for words in shared memory that contradict each other. Changes nothing; exact while nobody uses the queue.
            ///
            /// # Errors
            ///
            /// What is wrong.
            pub fn audit(&self) -> Result<(), Violation> {
                self.side.ring().audit().map_err(Violation::new)
            }
        }

        impl<T: Plain> std::fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.side.debug(stringify!($name), f)
            }
        }

        impl<T: Plain> Serialize for $name<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.side.send(serializer)
            }
        }
    };
}

both_ends!(Producer);
both_ends!(Consumer);

impl<'de, T: Plain> Deserialize<'de> for Producer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As long as the process has one thread this takes no time.
        let light = register_light_fences();
        Self::of(Side::receive(deserializer, Role::Producer)?, light).map_err(de_error)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Consumer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(Side::receive(deserializer, Role::Consumer)?).map_err(de_error)
    }
}

const SCRIBBLED: &str = "the words of the queue contradict each other: somebody wrote over them";

impl<T: Plain> Producer<T> {
    fn of(side: Side<T>, light: bool) -> Result<Self, Error> {
        let ring = side.ring().producer().map_err(|_| damaged(SCRIBBLED))?;
        Ok(Self { side, ring, light, spin: Spin::new() })
    }

    pub(crate) fn named(segment: &Segment, name: &str, capacity: usize) -> Result<Self, Error> {
        let handle = Handle::named(segment, name, &Side::<T>::spec(capacity)?, |_| ())?;
        Self::of(Side::claim(handle, Role::Producer, false)?, register_light_fences())
    }

    /// Pushes an element if there is room.
    ///
    /// # Errors
    ///
    /// [`Full`](PushError::Full), [`Closed`](PushError::Closed), [`NotAttached`](PushError::NotAttached).
    #[inline]
    pub fn try_push(&mut self, value: T) -> Result<(), PushError<T>> {
        self.push_until(value, Wait::Try)
    }

    /// Pushes an element, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Closed`](PushError::Closed), [`PeerDied`](PushError::PeerDied), [`NotAttached`](PushError::NotAttached).
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), PushError<T>> {
        self.push_until(value, Wait::FOREVER)
    }

    /// Pushes an element, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`PushError`]; never `Full`.
    pub fn push_timeout(&mut self, value: T, timeout: Duration) -> Result<(), PushError<T>> {
        self.push_until(value, within(timeout))
    }

    /// Pushes an element, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`PushError`]; never `Full`.
    pub fn push_deadline(&mut self, value: T, deadline: Instant) -> Result<(), PushError<T>> {
        self.push_until(value, before(deadline))
    }

    #[inline(always)]
    fn push_until(&mut self, value: T, wait: Wait) -> Result<(), PushError<T>> {
        // Each store of this waits for the line that the consumer reads, and all later ones behind it: so there should be few, and none
        // of them to the stack.
        if self.side.is_ours() && !self.side.ring().is_closed() {
            if let Some(run) = self.ring.room(self.side.ring()) {
                self.side.cells.write(run.block, run.index, &value);
                self.commit(1);
                return Ok(());
            }
        }
        self.push_later(value, wait)
    }

    #[cold]
    #[inline(never)]
    fn push_later(&mut self, value: T, wait: Wait) -> Result<(), PushError<T>> {
        match self.wait_for_room(wait) {
            Ok(run) => {
                self.side.cells.write(run.block, run.index, &value);
                self.commit(1);
                Ok(())
            }
            Err(refusal) => Err(refusal.of_push(value)),
        }
    }

    #[inline]
    pub(crate) fn cells(&self) -> &BlockCells<T> {
        &self.side.cells
    }

    /// True if what this handle knows is still so: not in a forked child, which has only a copy of it.
    pub(crate) fn is_ours(&self) -> bool {
        self.side.is_ours()
    }

    #[inline(always)]
    pub(crate) fn commit(&mut self, n: usize) {
        let ring = self.side.ring();
        self.ring.commit(ring, n);
        ring.committed(&Linux, self.light);
    }

    /// Room for one element at least.
    #[inline]
    fn room(&mut self, wait: Wait) -> Result<Run, Refusal> {
        if self.side.is_ours() {
            let ring = self.side.ring();
            if !ring.is_closed() {
                if let Some(run) = self.ring.room(ring) {
                    return Ok(run);
                }
            }
        }
        self.wait_for_room(wait)
    }

    /// Has the role, perhaps again.
    fn regain(&mut self) -> Result<(), Refusal> {
        Self::regain_at(&self.side, &mut self.ring)
    }

    fn regain_at(side: &Side<T>, ring: &mut BlockProducer) -> Result<(), Refusal> {
        if !side.is_ours() {
            side.take_back()?;
            *ring = side.ring().producer().map_err(|_| Refusal::NotAttached)?;
            side.stamp.set(process_stamp());
        }
        Ok(())
    }

    /// `None` if it would have to wait.
    fn attempt(
        side: &Side<T>,
        producer: &mut BlockProducer,
        live: &Participants,
        effort: Effort,
    ) -> Option<Result<Run, Refusal>> {
        let ring = side.ring();
        let mut look = || match ring.is_closed() {
            true => Some(Err(Refusal::Closed)),
            false => producer.room(ring).map(Ok),
        };
        look().or_else(|| {
            let is_over = effort.is_full() && ring.is_abandoned(Role::Consumer, live, || live.living() <= 1);
            // What the dead one gave back last is room, too.
            is_over.then(|| look().unwrap_or(Err(Refusal::PeerDied)))
        })
    }

    /// One attempt to push, of a future: `None` if it would have to wait.
    pub(crate) fn push_now(
        side: &Side<T>,
        producer: &mut BlockProducer,
        light: bool,
        value: T,
        effort: Effort,
    ) -> Option<Result<(), PushError<T>>> {
        let found = Self::regain_at(side, producer)
            .and_then(|()| side.live())
            .map_or_else(|refusal| Some(Err(refusal)), |live| Self::attempt(side, producer, live, effort))?;
        Some(match found {
            Ok(run) => {
                side.cells.write(run.block, run.index, &value);
                producer.commit(side.ring(), 1);
                side.ring().committed(&Linux, light);
                Ok(())
            }
            Err(refusal) => Err(refusal.of_push(value)),
        })
    }

    #[cold]
    #[inline(never)]
    fn wait_for_room(&mut self, wait: Wait) -> Result<Run, Refusal> {
        self.regain()?;
        let Self { side, ring: producer, spin, .. } = self;
        let ring = side.ring();
        let mut look = || match ring.is_closed() {
            true => Some(Err(Refusal::Closed)),
            false => producer.room(ring).map(Ok),
        };
        if let Some(found) = look() {
            return found;
        }
        if wait == Wait::Try {
            return Err(Refusal::Now);
        }
        if spin.spin(|| look().is_some()) {
            return look().unwrap_or(Err(Refusal::Now));
        }
        let live = side.live()?;
        let asleep = Instant::now();
        let found =
            wait_for(live, ring.not_full(), wait, |effort| Self::attempt(side, producer, live, effort));
        spin.slept(asleep.elapsed());
        found?
    }

    /// Pushes as many of the elements as there is room for, the first ones; returns how many.
    ///
    /// They become visible block by block, and the consumer is woken once: for small elements that is faster than pushing each.
    ///
    /// # Errors
    ///
    /// [`Closed`](PushError::Closed), [`NotAttached`](PushError::NotAttached).
    #[inline]
    pub fn push_many(&mut self, values: &[T]) -> Result<usize, PushError<()>> {
        let mut done = 0;
        while done < values.len() {
            let run = match self.room(Wait::Try) {
                Ok(run) => run,
                Err(Refusal::Now) => break,
                Err(refusal) if done == 0 => return Err(refusal.of_push(())),
                Err(_) => break,
            };
            let n = run.len.min(values.len() - done);
            for (k, value) in values[done..done + n].iter().enumerate() {
                self.side.cells.write(run.block, run.index + k, value);
            }
            self.ring.commit(self.side.ring(), n);
            done += n;
        }
        if done > 0 {
            self.side.ring().committed(&Linux, self.light);
        }
        Ok(done)
    }

    /// Pushes all of the elements if there is room for all, else none.
    ///
    /// (If this process is killed in the middle of it, the first ones may be in the queue.)
    ///
    /// # Errors
    ///
    /// [`Full`](PushError::Full), [`Closed`](PushError::Closed), [`NotAttached`](PushError::NotAttached); nothing was pushed. More
    /// than the [`capacity`](Self::capacity) may never fit.
    pub fn push_all(&mut self, values: &[T]) -> Result<(), PushError<()>> {
        self.regain().map_err(|refusal| refusal.of_push(()))?;
        let wanted = values.len() as u64;
        let ring = self.side.ring();
        if !ring.is_closed() && self.ring.room_for(ring, wanted) < wanted {
            return Err(PushError::Full(()));
        }
        match self.push_many(values) {
            // Closed meanwhile: what was pushed before is there.
            Ok(n) if n < values.len() => Err(PushError::Closed(())),
            pushed => pushed.map(drop),
        }
    }

    /// Closes nothing, waits for nothing: a place for up to `n` elements to be written into, if there is room for one.
    ///
    /// # Errors
    ///
    /// As [`try_push`](Self::try_push).
    pub fn try_reserve(&mut self, n: usize) -> Result<Reserved<'_, T>, PushError<()>>
    where
        T: AnyBitPattern,
    {
        self.reserve_until(n, Wait::Try)
    }

    /// A place for up to `n` elements to be written into, waiting for room as long as it takes.
    ///
    /// The place is contiguous, so it may be for fewer than `n`: a block holds a few hundred bytes (at least one element). What was written is
    /// pushed by [`Reserved::commit`].
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push).
    ///
    /// ```
    /// let (mut producer, mut consumer) = crossproc_primitives::spsc::channel::<u64>(100)?;
    /// let mut place = producer.reserve(3)?;
    /// place[0] = 10;
    /// place[1] = 20;
    /// place.commit(2); // the third is not pushed
    /// assert_eq!((consumer.pop()?, consumer.pop()?, consumer.len()), (10, 20, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(&mut self, n: usize) -> Result<Reserved<'_, T>, PushError<()>>
    where
        T: AnyBitPattern,
    {
        self.reserve_until(n, Wait::FOREVER)
    }

    /// As [`reserve`](Self::reserve), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`push_timeout`](Self::push_timeout).
    pub fn reserve_timeout(&mut self, n: usize, timeout: Duration) -> Result<Reserved<'_, T>, PushError<()>>
    where
        T: AnyBitPattern,
    {
        self.reserve_until(n, within(timeout))
    }

    /// As [`reserve`](Self::reserve), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`push_deadline`](Self::push_deadline).
    pub fn reserve_deadline(&mut self, n: usize, deadline: Instant) -> Result<Reserved<'_, T>, PushError<()>>
    where
        T: AnyBitPattern,
    {
        self.reserve_until(n, before(deadline))
    }

    #[inline]
    fn reserve_until(&mut self, n: usize, wait: Wait) -> Result<Reserved<'_, T>, PushError<()>>
    where
        T: AnyBitPattern,
    {
        let mut run = self.room(wait).map_err(|refusal| refusal.of_push(()))?;
        run.len = run.len.min(n);
        Ok(Reserved { producer: self, run })
    }
}

impl<T: Plain> Consumer<T> {
    fn of(side: Side<T>) -> Result<Self, Error> {
        let ring = side.ring().consumer().map_err(|_| damaged(SCRIBBLED))?;
        Ok(Self { side, ring, spin: Spin::new() })
    }

    pub(crate) fn named(segment: &Segment, name: &str, capacity: usize) -> Result<Self, Error> {
        let handle = Handle::named(segment, name, &Side::<T>::spec(capacity)?, |_| ())?;
        Self::of(Side::claim(handle, Role::Consumer, false)?)
    }

    /// Pops an element if there is one.
    ///
    /// # Errors
    ///
    /// [`Empty`](PopError::Empty), [`Closed`](PopError::Closed), [`NotAttached`](PopError::NotAttached),
    /// [`Invalid`](PopError::Invalid).
    #[inline]
    pub fn try_pop(&mut self) -> Result<T, PopError> {
        self.pop_until(Wait::Try)
    }

    /// Pops an element, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Closed`](PopError::Closed), [`PeerDied`](PopError::PeerDied), [`NotAttached`](PopError::NotAttached),
    /// [`Invalid`](PopError::Invalid).
    #[inline]
    pub fn pop(&mut self) -> Result<T, PopError> {
        self.pop_until(Wait::FOREVER)
    }

    /// Pops an element, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`PopError`]; never `Empty`.
    pub fn pop_timeout(&mut self, timeout: Duration) -> Result<T, PopError> {
        self.pop_until(within(timeout))
    }

    /// Pops an element, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`PopError`]; never `Empty`.
    pub fn pop_deadline(&mut self, deadline: Instant) -> Result<T, PopError> {
        self.pop_until(before(deadline))
    }

    #[inline(always)]
    fn pop_until(&mut self, wait: Wait) -> Result<T, PopError> {
        if self.side.is_ours() {
            if let Some(run) = self.ring.ready(self.side.ring(), &Linux) {
                let value = self.side.cells.read(run.block, run.index);
                self.ring.take(self.side.ring(), 1);
                return value.map_err(PopError::Invalid);
            }
        }
        self.pop_later(wait)
    }

    #[cold]
    #[inline(never)]
    fn pop_later(&mut self, wait: Wait) -> Result<T, PopError> {
        let run = self.wait_for_elements(wait).map_err(Refusal::of_pop)?;
        let value = self.side.cells.read(run.block, run.index);
        self.ring.take(self.side.ring(), 1);
        value.map_err(PopError::Invalid)
    }

    #[inline]
    pub(crate) fn cells(&self) -> &BlockCells<T> {
        &self.side.cells
    }

    #[inline]
    pub(crate) fn take(&mut self, n: usize) {
        self.ring.take(self.side.ring(), n);
    }

    /// One element at least.
    #[inline]
    fn ready(&mut self, wait: Wait) -> Result<Run, Refusal> {
        if self.side.is_ours() {
            if let Some(run) = self.ring.ready(self.side.ring(), &Linux) {
                return Ok(run);
            }
        }
        self.wait_for_elements(wait)
    }

    /// Has the role, perhaps again.
    fn regain(&mut self) -> Result<(), Refusal> {
        Self::regain_at(&self.side, &mut self.ring)
    }

    fn regain_at(side: &Side<T>, ring: &mut BlockConsumer) -> Result<(), Refusal> {
        if !side.is_ours() {
            side.take_back()?;
            *ring = side.ring().consumer().map_err(|_| Refusal::NotAttached)?;
            side.stamp.set(process_stamp());
        }
        Ok(())
    }

    /// `None` if it would have to wait.
    fn attempt(
        side: &Side<T>,
        consumer: &mut BlockConsumer,
        live: &Participants,
        effort: Effort,
    ) -> Option<Result<Run, Refusal>> {
        let ring = side.ring();
        // Whatever says that nothing comes any more: what came before that is to be found by one more look.
        let mut look = || consumer.ready(ring, &Linux).map(Ok);
        look().or_else(|| {
            if effort.is_full() {
                ring.before_sleeping(heavy_fence);
            }
            let is_over = || ring.is_abandoned(Role::Producer, live, || live.living() <= 1);
            match ring.is_closed() {
                true => Some(look().unwrap_or(Err(Refusal::Closed))),
                false if effort.is_full() && is_over() => Some(look().unwrap_or(Err(Refusal::PeerDied))),
                false => look(),
            }
        })
    }

    /// One attempt to pop, of a future: `None` if it would have to wait.
    pub(crate) fn pop_now(
        side: &Side<T>,
        consumer: &mut BlockConsumer,
        effort: Effort,
    ) -> Option<Result<T, PopError>> {
        let found = Self::regain_at(side, consumer)
            .and_then(|()| side.live())
            .map_or_else(|refusal| Some(Err(refusal)), |live| Self::attempt(side, consumer, live, effort))?;
        Some(found.map_err(Refusal::of_pop).and_then(|run| {
            let value = side.cells.read(run.block, run.index);
            consumer.take(side.ring(), 1);
            value.map_err(PopError::Invalid)
        }))
    }

    /// True if what this handle knows is still so: not in a forked child, which has only a copy of it.
    pub(crate) fn is_ours(&self) -> bool {
        self.side.is_ours()
    }

    #[cold]
    #[inline(never)]
    fn wait_for_elements(&mut self, wait: Wait) -> Result<Run, Refusal> {
        self.regain()?;
        let Self { side, ring: consumer, spin } = self;
        let ring = side.ring();
        let mut spun = || {
            let found = consumer.ready(ring, &Linux).is_some();
            if !found {
                side.cells.touch(consumer.next());
            }
            found
        };
        if wait == Wait::Try {
            spun();
        } else {
            spin.spin(&mut spun);
        }
        if let Some(run) = consumer.ready(ring, &Linux) {
            return Ok(run);
        }
        if wait == Wait::Try {
            return match ring.is_closed() {
                // What came before that is to be found by one more look.
                true => consumer.ready(ring, &Linux).ok_or(Refusal::Closed),
                false => Err(Refusal::Now),
            };
        }
        let live = side.live()?;
        let asleep = Instant::now();
        let found =
            wait_for(live, ring.not_empty(), wait, |effort| Self::attempt(side, consumer, live, effort));
        spin.slept(asleep.elapsed());
        found?
    }

    /// Pops as many elements as there are, up to the length of `out`; returns how many.
    ///
    /// # Errors
    ///
    /// [`Closed`](PopError::Closed) if the queue is closed and everything was popped; [`NotAttached`](PopError::NotAttached);
    /// [`Invalid`](PopError::Invalid) if the *first* one is no value: before a later one it stops.
    ///
    /// ```
    /// let (mut producer, mut consumer) = crossproc_primitives::spsc::channel::<u8>(100)?;
    /// producer.push_all(b"abc")?;
    /// let mut out = [0; 8];
    /// assert_eq!(consumer.pop_many(&mut out)?, 3);
    /// assert_eq!(consumer.pop_many(&mut out)?, 0);
    /// assert_eq!(&out[..3], b"abc");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pop_many(&mut self, out: &mut [T]) -> Result<usize, PopError> {
        let mut done = 0;
        while done < out.len() {
            let run = match self.ready(Wait::Try) {
                Ok(run) => run,
                Err(Refusal::Now) => break,
                Err(refusal) if done == 0 => return Err(refusal.of_pop()),
                Err(_) => break,
            };
            let wanted = run.len.min(out.len() - done);
            let mut n = 0;
            while n < wanted {
                match self.side.cells.read(run.block, run.index + n) {
                    Ok(value) => out[done + n] = value,
                    Err(invalid) if done + n == 0 => {
                        self.ring.take(self.side.ring(), 1);
                        return Err(PopError::Invalid(invalid));
                    }
                    Err(_) => break,
                }
                n += 1;
            }
            self.ring.take(self.side.ring(), n);
            done += n;
            if n < wanted {
                break;
            }
        }
        Ok(done)
    }

    /// How many of the elements that come next a *former* consumer had looked at in place ([`peek`](Self::peek)) and not released
    /// when it died or dropped its handle.
    #[must_use]
    pub fn redelivered(&self) -> usize {
        self.ring.redelivered()
    }

    /// The elements that come next, in place, if there are any.
    ///
    /// # Errors
    ///
    /// As [`try_pop`](Self::try_pop).
    pub fn try_peek(&mut self) -> Result<Peeked<'_, T>, PopError>
    where
        T: AnyBitPattern,
    {
        self.peek_until(Wait::Try)
    }

    /// The elements that come next, in place, at least one, waiting for it as long as it takes.
    ///
    /// They are contiguous, so there may be more in the queue: a block holds a few hundred bytes (at least one element). They stay in
    /// the queue until [`Peeked::release`]: should this process be killed before, the next consumer gets them.
    ///
    /// # Errors
    ///
    /// As [`pop`](Self::pop).
    ///
    /// ```
    /// let (mut producer, mut consumer) = crossproc_primitives::spsc::channel::<u64>(100)?;
    /// producer.push_all(&[1, 2, 3])?;
    /// let three = consumer.peek()?;
    /// assert_eq!(three.iter().sum::<u64>(), 6);
    /// three.release(2);
    /// assert_eq!(consumer.pop()?, 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn peek(&mut self) -> Result<Peeked<'_, T>, PopError>
    where
        T: AnyBitPattern,
    {
        self.peek_until(Wait::FOREVER)
    }

    /// As [`peek`](Self::peek), waiting at most `timeout`.
    ///
    /// # Errors
    ///
    /// As [`pop_timeout`](Self::pop_timeout).
    pub fn peek_timeout(&mut self, timeout: Duration) -> Result<Peeked<'_, T>, PopError>
    where
        T: AnyBitPattern,
    {
        self.peek_until(within(timeout))
    }

    /// As [`peek`](Self::peek), waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`pop_deadline`](Self::pop_deadline).
    pub fn peek_deadline(&mut self, deadline: Instant) -> Result<Peeked<'_, T>, PopError>
    where
        T: AnyBitPattern,
    {
        self.peek_until(before(deadline))
    }

    #[inline]
    fn peek_until(&mut self, wait: Wait) -> Result<Peeked<'_, T>, PopError>
    where
        T: AnyBitPattern,
    {
        let run = self.ready(wait).map_err(Refusal::of_pop)?;
        self.ring.show(self.side.ring(), run.len);
        Ok(Peeked { consumer: self, run })
    }

    /// Pops elements until the queue is closed or its producer is gone for good, waiting for each.
    ///
    /// ```
    /// let (mut producer, mut consumer) = crossproc_primitives::spsc::channel::<u64>(100)?;
    /// producer.push_all(&[1, 2, 3])?;
    /// producer.close();
    /// assert_eq!(consumer.iter().sum::<u64>(), 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn iter(&mut self) -> Iter<'_, T>
    where
        T: AnyBitPattern,
    {
        Iter { consumer: self }
    }
}

impl<'a, T: Plain + AnyBitPattern> IntoIterator for &'a mut Consumer<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

/// Pops elements, waiting for each; see [`Consumer::iter`].
#[derive(Debug)]
pub struct Iter<'a, T: Plain + AnyBitPattern> {
    consumer: &'a mut Consumer<T>,
}

impl<T: Plain + AnyBitPattern> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.consumer.pop().ok()
    }
}
