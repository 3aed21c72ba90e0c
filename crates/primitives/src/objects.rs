//! Objects by name in a segment that several share.

use bytemuck::AnyBitPattern;
use crossproc_segment::plain::Plain;
use crossproc_segment::{Error, Segment};

use crate::{
    Array, Barrier, BinarySemaphore, BoundedSemaphore, BytesQueue, BytesQueueOptions, Call, Condvar, Event,
    JoinableQueue, Lock, Mutex, ObjectQueue, Once, Pipe, PipeOptions, Queue, QueueOptions, RLock, RawArray,
    RawValue, RwLock, Semaphore, Value, spsc,
};

/// Finds an object of a segment by name, or makes it with the given first value.
///
/// Of several processes that do so at once one makes it, and all get the same. Kind and type are compared; the error says
/// what differs. In a segment attached for reading only, objects are only found.
///
/// ```
/// use crossproc_primitives::Objects;
/// use crossproc_segment::Segment;
///
/// let segment = Segment::anonymous(16 * 1024)?;
/// let a = segment.value("temperature", 20.5_f64)?;
/// let b = segment.value("temperature", 0.0_f64)?; // the same one
/// a.set(21.0)?;
/// assert_eq!(b.get()?, 21.0);
///
/// let error = segment.value("temperature", 0_u32).unwrap_err();
/// assert_eq!(error.kind(), crossproc_segment::ErrorKind::WrongType);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Objects {
    /// A [`Lock`].
    ///
    /// # Errors
    ///
    /// Another kind of object has the name, the segment is full, or see [`crossproc_segment::ErrorKind`]; so for all
    /// methods here.
    fn lock(&self, name: &str) -> Result<Lock, Error>;

    /// An [`RLock`].
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    fn rlock(&self, name: &str) -> Result<RLock, Error>;

    /// A [`Semaphore`] with so many permits at first.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock), and [`InvalidLength`](crossproc_segment::ErrorKind::InvalidLength) for more than 2^20 - 1
    /// permits.
    fn semaphore(&self, name: &str, permits: u32) -> Result<Semaphore, Error>;

    /// A [`BoundedSemaphore`] with so many permits; one that is there already keeps its bound.
    ///
    /// # Errors
    ///
    /// As [`semaphore`](Self::semaphore).
    fn bounded_semaphore(&self, name: &str, permits: u32) -> Result<BoundedSemaphore, Error>;

    /// A [`BinarySemaphore`].
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    fn binary_semaphore(&self, name: &str) -> Result<BinarySemaphore, Error>;

    /// An [`Event`], not set at first.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    fn event(&self, name: &str) -> Result<Event, Error>;

    /// A [`Condvar`].
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    fn condvar(&self, name: &str) -> Result<Condvar, Error>;

    /// A [`Barrier`] for so many parties.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock); [`InvalidLength`](crossproc_segment::ErrorKind::InvalidLength) for 0 or more than 65535
    /// parties; [`WrongType`](crossproc_segment::ErrorKind::WrongType) if it is there for another number.
    fn barrier(&self, name: &str, parties: usize) -> Result<Barrier, Error>;

    /// A [`Mutex`].
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock), and [`WrongType`](crossproc_segment::ErrorKind::WrongType).
    fn mutex<T: Plain + AnyBitPattern>(&self, name: &str, first: T) -> Result<Mutex<T>, Error>;

    /// An [`RwLock`].
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex).
    fn rwlock<T: Plain + AnyBitPattern>(&self, name: &str, first: T) -> Result<RwLock<T>, Error>;

    /// A [`Once`].
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock).
    fn once(&self, name: &str) -> Result<Once, Error>;

    /// A [`Queue`] for so many messages, made as [`QueueOptions`](crate::QueueOptions) does by default; one that is there already
    /// keeps its capacity.
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex), and [`QueueOptions::anonymous`](crate::QueueOptions::anonymous).
    fn queue<T: Plain>(&self, name: &str, capacity: usize) -> Result<Queue<T>, Error>;

    /// A [`JoinableQueue`] for so many tasks.
    ///
    /// # Errors
    ///
    /// As [`queue`](Self::queue).
    fn joinable_queue<T: Plain + AnyBitPattern>(
        &self,
        name: &str,
        capacity: usize,
    ) -> Result<JoinableQueue<T>, Error>;

    /// A [`BytesQueue`] for so many messages of up to 1 MiB, made as [`BytesQueueOptions`] does by default; one that is there already
    /// keeps its sizes. The segment must have [windows](crossproc_segment::SegmentOptions::windows) for it.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock), and [`BytesQueueOptions::anonymous`].
    fn bytes_queue(&self, name: &str, capacity: usize) -> Result<BytesQueue, Error>;

    /// An [`ObjectQueue`], in all else as [`bytes_queue`](Self::bytes_queue).
    ///
    /// # Errors
    ///
    /// As there, and [`WrongType`](crossproc_segment::ErrorKind::WrongType).
    fn object_queue<T>(&self, name: &str, capacity: usize) -> Result<ObjectQueue<T>, Error>;

    /// A [`Pipe`] of 64 KiB for each direction, made as [`PipeOptions`](crate::PipeOptions) does by default; one that is there already keeps
    /// its sizes. It takes two objects of the segment.
    ///
    /// # Errors
    ///
    /// As [`lock`](Self::lock), and [`WrongType`](crossproc_segment::ErrorKind::WrongType).
    fn pipe<A, B>(&self, name: &str) -> Result<Pipe<A, B>, Error>;

    /// A [`Call`].
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex).
    fn calls<Q: Plain, R: Plain>(&self, name: &str) -> Result<Call<Q, R>, Error>;

    /// A [`Value`].
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex).
    fn value<T: Plain>(&self, name: &str, first: T) -> Result<Value<T>, Error>;

    /// A [`RawValue`].
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex).
    fn raw_value<T: Plain>(&self, name: &str, first: T) -> Result<RawValue<T>, Error>;

    /// An [`Array`] with the elements `first`, or a longer one that is there already.
    ///
    /// # Errors
    ///
    /// As [`mutex`](Self::mutex), and [`TooSmall`](crossproc_segment::ErrorKind::TooSmall).
    fn array<T: Plain>(&self, name: &str, first: &[T]) -> Result<Array<T>, Error>;

    /// A [`RawArray`] with the elements `first`, or a longer one that is there already.
    ///
    /// # Errors
    ///
    /// As [`array`](Self::array).
    fn raw_array<T: Plain>(&self, name: &str, first: &[T]) -> Result<RawArray<T>, Error>;

    /// The [`Producer`](spsc::Producer) of a queue for at least `capacity` elements, or of a longer one that is there already.
    ///
    /// # Errors
    ///
    /// As [`array`](Self::array); [`InvalidLength`](crossproc_segment::ErrorKind::InvalidLength) for a capacity of 0;
    /// [`RoleTaken`](crossproc_segment::ErrorKind::RoleTaken) while a process that lives has it, which the error names.
    ///
    /// ```
    /// use crossproc_primitives::Objects;
    /// use crossproc_segment::{ErrorKind, Segment};
    ///
    /// let segment = Segment::anonymous(16 * 1024)?;
    /// let mut producer = segment.producer::<u64>("jobs", 100)?;
    /// let mut consumer = segment.consumer::<u64>("jobs", 100)?;
    /// producer.push(7)?;
    /// assert_eq!(consumer.pop()?, 7);
    /// assert_eq!(segment.producer::<u64>("jobs", 100).unwrap_err().kind(), ErrorKind::RoleTaken);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn producer<T: Plain>(&self, name: &str, capacity: usize) -> Result<spsc::Producer<T>, Error>;

    /// The [`Consumer`](spsc::Consumer) of a queue, as [`producer`](Self::producer).
    ///
    /// # Errors
    ///
    /// As there.
    fn consumer<T: Plain>(&self, name: &str, capacity: usize) -> Result<spsc::Consumer<T>, Error>;
}

impl Objects for Segment {
    fn lock(&self, name: &str) -> Result<Lock, Error> {
        Lock::named(self, name)
    }
    fn rlock(&self, name: &str) -> Result<RLock, Error> {
        RLock::named(self, name)
    }
    fn semaphore(&self, name: &str, permits: u32) -> Result<Semaphore, Error> {
        Semaphore::named(self, name, permits)
    }
    fn bounded_semaphore(&self, name: &str, permits: u32) -> Result<BoundedSemaphore, Error> {
        BoundedSemaphore::named(self, name, permits)
    }
    fn binary_semaphore(&self, name: &str) -> Result<BinarySemaphore, Error> {
        BinarySemaphore::named(self, name)
    }
    fn event(&self, name: &str) -> Result<Event, Error> {
        Event::named(self, name)
    }
    fn condvar(&self, name: &str) -> Result<Condvar, Error> {
        Condvar::named(self, name)
    }
    fn barrier(&self, name: &str, parties: usize) -> Result<Barrier, Error> {
        Barrier::named(self, name, parties)
    }
    fn mutex<T: Plain + AnyBitPattern>(&self, name: &str, first: T) -> Result<Mutex<T>, Error> {
        Mutex::named(self, name, first)
    }
    fn rwlock<T: Plain + AnyBitPattern>(&self, name: &str, first: T) -> Result<RwLock<T>, Error> {
        RwLock::named(self, name, first)
    }
    fn once(&self, name: &str) -> Result<Once, Error> {
        Once::named(self, name)
    }
    fn queue<T: Plain>(&self, name: &str, capacity: usize) -> Result<Queue<T>, Error> {
        QueueOptions::new(capacity).in_segment(self, name)
    }
    fn joinable_queue<T: Plain + AnyBitPattern>(
        &self,
        name: &str,
        capacity: usize,
    ) -> Result<JoinableQueue<T>, Error> {
        QueueOptions::new(capacity).joinable_in_segment(self, name)
    }
    fn bytes_queue(&self, name: &str, capacity: usize) -> Result<BytesQueue, Error> {
        BytesQueueOptions::new(capacity).in_segment(self, name)
    }
    fn object_queue<T>(&self, name: &str, capacity: usize) -> Result<ObjectQueue<T>, Error> {
        BytesQueueOptions::new(capacity).objects_in_segment(self, name)
    }
    fn pipe<A, B>(&self, name: &str) -> Result<Pipe<A, B>, Error> {
        PipeOptions::new().in_segment(self, name)
    }
    fn calls<Q: Plain, R: Plain>(&self, name: &str) -> Result<Call<Q, R>, Error> {
        Call::named(self, name)
    }
    fn value<T: Plain>(&self, name: &str, first: T) -> Result<Value<T>, Error> {
        Value::named(self, name, first)
    }
    fn raw_value<T: Plain>(&self, name: &str, first: T) -> Result<RawValue<T>, Error> {
        RawValue::named(self, name, first)
    }
    fn array<T: Plain>(&self, name: &str, first: &[T]) -> Result<Array<T>, Error> {
        Array::named(self, name, first)
    }
    fn raw_array<T: Plain>(&self, name: &str, first: &[T]) -> Result<RawArray<T>, Error> {
        RawArray::named(self, name, first)
    }
    fn producer<T: Plain>(&self, name: &str, capacity: usize) -> Result<spsc::Producer<T>, Error> {
        spsc::Producer::named(self, name, capacity)
    }
    fn consumer<T: Plain>(&self, name: &str, capacity: usize) -> Result<spsc::Consumer<T>, Error> {
        spsc::Consumer::named(self, name, capacity)
    }
}
