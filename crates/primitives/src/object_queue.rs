//! `ObjectQueue<T>`: messages that are anything serde can carry, in the cells and windows of a [`BytesQueue`], as postcard has them.
//!
//! Nothing is shared but bytes: what a message means is decided by the `T` of sender and receiver. The queue remembers the name of the
//! type, without paths, to tell those who open it with another one. That is a help against mistakes; a message that does not
//! fit its receiver's type is an error for that message.

use std::any::type_name;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossproc_ring::ExchangeWords;
use crossproc_segment::plain::Layout;
use crossproc_segment::{Error, ObjectKind, Segment, handover};
use crossproc_sync::Effort;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::audit::Violation;
use crate::bytes_queue::{BytesLoan, BytesMessage, BytesQueue, BytesQueueOptions};
use crate::handle::{Handle, handle_serde};
use crate::lock::{Wait, before, within};
use crate::shared_queue::SharedObjectQueue;
use crate::transfer::{Fault, Miscoded, RecvError, SendError, Unfit, Unusable};

const KIND: ObjectKind = ObjectKind::new("ObjectQueue");

/// A buffer that grew larger than this is not kept.
pub(crate) const BUFFER_KEPT: usize = 64 << 10;

impl BytesQueueOptions {
    /// An [`ObjectQueue`] in an anonymous segment of its own.
    ///
    /// # Errors
    ///
    /// As [`anonymous`](Self::anonymous).
    pub fn objects<T>(self) -> Result<ObjectQueue<T>, Error> {
        Ok(ObjectQueue::of(self.anonymous_of(KIND, layout_of::<T>())?))
    }

    /// The [`ObjectQueue`] of this name, made if there is none.
    ///
    /// # Errors
    ///
    /// As [`in_segment`](Self::in_segment).
    pub fn objects_in_segment<T>(self, segment: &Segment, name: &str) -> Result<ObjectQueue<T>, Error> {
        Ok(ObjectQueue::of(self.named_of(KIND, layout_of::<T>(), segment, name)?))
    }
}

/// A queue for anything that serde can carry, between any number of sending and receiving processes and threads: Python's `Queue`.
///
/// Texts, vectors, maps, enums, and structs of these (`#[derive(Serialize, Deserialize)]`). A message is serialised straight into the
/// queue's memory, in the form of postcard. In everything else it is a [`BytesQueue`]: first in, first out, of any size up to
/// [`message_max`](BytesQueueOptions::message_max), and a message whose receiver is killed before it has made a value of it is
/// received again. With [`recv_ref`](Self::recv_ref) it is, until the guard is dropped.
///
/// Both sides must mean the same type. Its name is compared when the queue is opened (`Vec<Job>`, without the modules' paths).
///
/// What can not be sent: handles of this crate, such as another queue (they are handed over when a process is started;
/// [`Unfit::Unserializable`]), and types whose form only the bytes themselves tell (serde's `untagged` and `flatten`; receiving
/// them is [`RecvError::Undecodable`]).
///
/// ```
/// use std::collections::BTreeMap;
///
/// use crossproc_primitives::ObjectQueue;
///
/// let words = ObjectQueue::<BTreeMap<String, u32>>::new(10)?;
/// words.send(BTreeMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)]))?;
/// assert_eq!(words.recv()?["two"], 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ObjectQueue<T> {
    pub(crate) bytes: BytesQueue,
    /// Messages are copied here before they are deserialised. In place, another process could change them between a check and the use of
    /// what was checked: a text that is UTF-8 first and then is not.
    buffer: RefCell<Vec<u8>>,
    object: PhantomData<fn(T) -> T>,
}

impl<T> ObjectQueue<T> {
    /// A queue for so many messages of up to 1 MiB, in an anonymous segment of its own; see [`BytesQueueOptions::objects`].
    ///
    /// # Errors
    ///
    /// As [`BytesQueueOptions::anonymous`].
    pub fn new(capacity: usize) -> Result<Self, Error> {
        BytesQueueOptions::new(capacity).objects()
    }

    fn attach(segment: Segment, index: u32) -> Result<Self, Error> {
        Ok(Self::of(BytesQueue::attach_of(KIND, layout_of::<T>(), segment, index)?))
    }

    fn of(bytes: BytesQueue) -> Self {
        Self { bytes, buffer: RefCell::default(), object: PhantomData }
    }

    fn handle(&self) -> &Handle<ExchangeWords> {
        self.bytes.handle()
    }

    /// A handle to be cloned, which has no lane itself.
    pub(crate) fn without_lane(self) -> Self {
        Self { bytes: self.bytes.without_lane(), ..self }
    }

    /// For several threads of this process. To hand it to another process, hand over a [`handle`](SharedObjectQueue::handle).
    #[must_use]
    pub fn share(self) -> SharedObjectQueue<T> {
        SharedObjectQueue::new(self)
    }

    /// As [`BytesQueue::close`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn close(&self) -> Result<bool, Unusable> {
        self.bytes.close()
    }

    /// As [`BytesQueue::shutdown`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn shutdown(&self) -> Result<usize, Unusable> {
        self.bytes.shutdown()
    }

    /// As [`BytesQueue::len`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if the queue had no message a moment ago.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True if the queue was full a moment ago.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.bytes.is_full()
    }

    /// True if it was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.bytes.is_closed()
    }

    /// How many messages it has room for. Never changes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// How many handles there can be at one time.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.bytes.lanes()
    }

    /// How many received messages a handle can hold at one time.
    #[must_use]
    pub fn hands(&self) -> usize {
        self.bytes.hands()
    }

    /// Bytes of a serialised message at the most.
    #[must_use]
    pub fn message_max(&self) -> usize {
        self.bytes.message_max()
    }

    /// The segment in which it lives.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        self.bytes.segment()
    }

    /// As [`BytesQueue::audit`].
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), Violation> {
        self.bytes.audit()
    }
}

impl<T: Serialize> ObjectQueue<T> {
    /// Sends a value, waiting for room as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full` or `TimedOut`. The value is in it.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_within(value, Wait::FOREVER)
    }

    /// Sends a value if there is room.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `TimedOut` or `PeerDied`.
    pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        self.send_within(value, Wait::Try)
    }

    /// Sends a value, waiting for room at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`.
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendError<T>> {
        self.send_within(value, within(timeout))
    }

    /// Sends a value, waiting for room until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`SendError`]; never `Full`.
    pub fn send_deadline(&self, value: T, deadline: Instant) -> Result<(), SendError<T>> {
        self.send_within(value, before(deadline))
    }

    fn send_within(&self, value: T, wait: Wait) -> Result<(), SendError<T>> {
        self.send_ref_within(&value, wait).map_err(|unsent| unsent.map(|()| value))
    }

    fn send_ref_within(&self, value: &T, wait: Wait) -> Result<(), SendError<()>> {
        let mut loan = self.bytes.loan_within(size_of_serialized(value)?, wait)?;
        write(value, &mut loan)?;
        loan.send_within(wait).map_err(|unsent| unsent.map(drop))
    }

    /// One attempt to send, of a future: `None` if it would have to wait.
    pub(crate) fn send_now(&self, value: &T, effort: Effort) -> Option<Result<(), SendError<()>>> {
        match size_of_serialized(value) {
            Ok(len) => self.bytes.send_now(len, effort, |loan| write(value, loan)),
            Err(why) => Some(Err(why)),
        }
    }
}

impl<T: DeserializeOwned> ObjectQueue<T> {
    /// Receives the next message, waiting for one as long as it takes.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    pub fn recv(&self) -> Result<T, RecvError> {
        self.recv_within(Wait::FOREVER)
    }

    /// Receives the next message if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `PeerDied`.
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.recv_within(Wait::Try)
    }

    /// Receives the next message, waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvError> {
        self.recv_within(within(timeout))
    }

    /// Receives the next message, waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvError> {
        self.recv_within(before(deadline))
    }

    fn recv_within(&self, wait: Wait) -> Result<T, RecvError> {
        Ok(self.recv_ref_within(wait)?.into_inner())
    }

    /// Receives the next message and keeps it in the queue's memory, waiting for one as long as it takes. It counts as received when
    /// the guard is dropped.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty` or `TimedOut`.
    pub fn recv_ref(&self) -> Result<ObjectMessage<'_, T>, RecvError> {
        self.recv_ref_within(Wait::FOREVER)
    }

    /// As [`recv_ref`](Self::recv_ref), if there is one.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `TimedOut` or `PeerDied`.
    pub fn try_recv_ref(&self) -> Result<ObjectMessage<'_, T>, RecvError> {
        self.recv_ref_within(Wait::Try)
    }

    /// As [`recv_ref`](Self::recv_ref), waiting for one at most `timeout`.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_ref_timeout(&self, timeout: Duration) -> Result<ObjectMessage<'_, T>, RecvError> {
        self.recv_ref_within(within(timeout))
    }

    /// As [`recv_ref`](Self::recv_ref), waiting for one until `deadline` at most.
    ///
    /// # Errors
    ///
    /// See [`RecvError`]; never `Empty`.
    pub fn recv_ref_deadline(&self, deadline: Instant) -> Result<ObjectMessage<'_, T>, RecvError> {
        self.recv_ref_within(before(deadline))
    }

    fn recv_ref_within(&self, wait: Wait) -> Result<ObjectMessage<'_, T>, RecvError> {
        self.decoded(self.bytes.recv_ref_within(wait)?)
    }

    pub(crate) fn decoded<'a>(
        &'a self,
        message: BytesMessage<'a>,
    ) -> Result<ObjectMessage<'a, T>, RecvError> {
        // Taken out, as the type's own code may use this queue.
        let mut buffer = self.buffer.take();
        buffer.clear();
        buffer.extend_from_slice(&message);
        let value = decode(&buffer).map_err(|why| Miscoded { layout: layout_of::<T>(), why });
        if buffer.capacity() <= BUFFER_KEPT {
            self.buffer.replace(buffer);
        }
        // The message is given up only here: should this process be killed before, it is received again.
        Ok(ObjectMessage { value: value.map_err(RecvError::Undecodable)?, message })
    }

    /// Receives messages until the queue is closed and empty (or can not be used any more), waiting for each.
    ///
    /// It ends with a message that can not be deserialised as well.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.recv().ok())
    }

    /// Receives the messages that are there.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }
}

impl<T> Clone for ObjectQueue<T> {
    /// Another handle, with a lane of its own.
    fn clone(&self) -> Self {
        Self::of(self.bytes.clone())
    }
}

impl<T> std::fmt::Debug for ObjectQueue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectQueue")
            .field("type", &layout_of::<T>().name)
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

handle_serde!(ObjectQueue<T>);

/// A message of an [`ObjectQueue`], as a value; derefs to it. It counts as received when this is dropped.
///
/// If the process dies before that, somebody else receives the message once more.
#[must_use = "dropping it drops the message"]
pub struct ObjectMessage<'a, T> {
    value: T,
    message: BytesMessage<'a>,
}

impl<T> ObjectMessage<'_, T> {
    /// The value. The message has been received now.
    pub fn into_inner(self) -> T {
        self.value
    }

    /// How often the message was delivered, with this time: more than 1 if a receiver died that had it. 255 is "or more".
    ///
    /// So a message that kills whoever works on it can be given up.
    #[must_use]
    pub fn deliveries(&self) -> u8 {
        self.message.deliveries()
    }

    /// True if a receiver that had the message died.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.message.is_redelivered()
    }
}

impl<T> Deref for ObjectMessage<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for ObjectMessage<'_, T> {
    /// The value is this process's own: changing it changes nothing of the message.
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for ObjectMessage<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectMessage")
            .field("value", &self.value)
            .field("deliveries", &self.deliveries())
            .finish()
    }
}

fn unserializable<T>(error: &postcard::Error) -> SendError<()> {
    let why = if handover::last_error().is_some() { Fault::Handle } else { fault(error) };
    SendError::Unfit((), Unfit::Unserializable(Miscoded { layout: layout_of::<T>(), why }))
}

fn size_of_serialized<T: Serialize>(value: &T) -> Result<usize, SendError<()>> {
    // What an earlier failure of this thread left.
    let _ = handover::last_error();
    postcard::experimental::serialized_size(value).map_err(|error| unserializable::<T>(&error))
}

fn write<T: Serialize>(value: &T, loan: &mut BytesLoan<'_>) -> Result<(), SendError<()>> {
    let written = postcard::to_slice(value, loan).map_err(|error| unserializable::<T>(&error))?.len();
    loan.truncate(written);
    Ok(())
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Fault::BytesLeft),
        Err(error) => Err(fault(&error)),
    }
}

pub(crate) fn fault(error: &postcard::Error) -> Fault {
    match error {
        postcard::Error::DeserializeUnexpectedEnd => Fault::EndsTooSoon,
        postcard::Error::DeserializeBadVarint => Fault::BadNumber,
        postcard::Error::DeserializeBadBool => Fault::BadBool,
        postcard::Error::DeserializeBadChar => Fault::BadChar,
        postcard::Error::DeserializeBadUtf8 => Fault::BadText,
        postcard::Error::DeserializeBadOption => Fault::BadOption,
        postcard::Error::DeserializeBadEnum => Fault::BadVariant,
        postcard::Error::SerializeSeqLengthUnknown => Fault::LengthUnknown,
        postcard::Error::SerializeBufferFull => Fault::Changed,
        postcard::Error::WontImplement | postcard::Error::NotYetImplemented => Fault::NotSupported,
        _ => Fault::Refused,
    }
}

/// What the directory says of messages of type `T`: the type's name. One for each type, kept for good.
pub(crate) fn layout_of<T>() -> &'static Layout {
    static LAYOUTS: Mutex<BTreeMap<&str, &Layout>> = Mutex::new(BTreeMap::new());
    let mut layouts = LAYOUTS.lock().unwrap_or_else(PoisonError::into_inner);
    layouts.entry(type_name::<T>()).or_insert_with_key(|name| {
        let name = Box::leak(without_paths(name).into_boxed_str());
        // The size in memory is nobody's business.
        Box::leak(Box::new(Layout::scalar::<()>(name)))
    })
}

/// `Vec<(u32, String)>` for `alloc::vec::Vec<(u32, alloc::string::String)>`.
fn without_paths(name: &str) -> String {
    let mut short = String::new();
    let mut word = String::new();
    for letter in name.chars() {
        match letter {
            ':' => word.clear(),
            letter if letter.is_alphanumeric() || letter == '_' => word.push(letter),
            letter => {
                short.push_str(&word);
                short.push(letter);
                word.clear();
            }
        }
    }
    short + &word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_named_without_paths() {
        assert_eq!(layout_of::<Vec<(u32, String)>>().name, "Vec<(u32, String)>");
        assert_eq!(layout_of::<[Option<super::Fault>; 3]>().name, "[Option<Fault>; 3]");
        assert_eq!(layout_of::<&'static str>().name, "&str");
        assert!(std::ptr::eq(layout_of::<u8>(), layout_of::<u8>()));
        assert_ne!(layout_of::<u8>().fingerprint(), layout_of::<u16>().fingerprint());
    }
}
