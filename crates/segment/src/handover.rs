//! File descriptors that travel beside serialised bytes.
//!
//! A handle (a segment, a queue, a file) can not be written down as bytes: what makes it valid in another
//! process is a file descriptor, and those are passed by the kernel (`SCM_RIGHTS`). So a handle serialises as
//! an *index* into a table of descriptors, and the one who sends the bytes sends the table beside them. The
//! table belongs to the calling thread for the time of one call:
//!
//! * [`pack`] runs a serialiser; `Serialize` impls call [`put`]; the table comes out with the result.
//! * [`unpack`] takes a table and runs a deserialiser; `Deserialize` impls call [`take`].
//!
//! Outside of such a call [`put`] and [`take`] fail, so a handle that somebody tries to write to a file is an
//! error there and not a number without a meaning.
//!
//! Serde's errors can not be relied on to keep a text (postcard's do not), so [`put`] and [`take`] note
//! theirs for the one who called [`pack`] or [`unpack`]: see [`last_error`]. A handle that can fail for other
//! reasons notes them with [`ser_error`] and [`de_error`].
//!
//! Calls nest like a stack: an inner `pack` (a handle whose serialisation packs something of its own) has a
//! table of its own, and the outer table is in place again when it ends, by a return or by a panic. The
//! tables of `pack` and `unpack` are independent of each other.
//!
//! ```
//! use crossproc_segment::handover::{Handed, pack, unpack};
//! use std::fs::File;
//!
//! let file = Handed(File::open("/proc/self/stat")?);
//! // The "serialiser" of this example is `to_string`; the bytes are just the index.
//! let (index, descriptors) = pack(|| crossproc_segment::handover::put(&file.0));
//! assert_eq!((index?, descriptors.len()), (0, 1));
//!
//! let again = unpack(descriptors, || crossproc_segment::handover::take(0))?;
//! let _file = File::from(again);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, fcntl_getfl, fstat};
use rustix::io::fcntl_dupfd_cloexec;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

thread_local! {
    /// The tables being filled by this thread, the innermost last.
    static OUTBOXES: RefCell<Vec<Outbox>> = const { RefCell::new(Vec::new()) };
    /// The tables being read by this thread, the innermost last.
    static INBOXES: RefCell<Vec<Vec<OwnedFd>>> = const { RefCell::new(Vec::new()) };
    /// See [`last_error`].
    static LAST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// One table being filled.
#[derive(Default)]
struct Outbox {
    descriptors: Vec<OwnedFd>,
    /// What is known to be the same thing, for each descriptor; `None` means "like nothing else".
    identities: Vec<Option<Identity>>,
}

/// Two descriptors with equal identities can stand for each other at the receiver: the same file, opened for
/// the same access.
///
/// Only regular files (a memfd is one) have an identity. Other descriptors must not be merged by inode: all
/// eventfds, timerfds and epolls of a machine share one, and both ends of a pipe do.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    access: u32,
}

/// Runs `f` with an empty table of descriptors; returns what `f` returned and the table it filled.
///
/// The table holds duplicates (close-on-exec), so what `f` handed over may be closed afterwards.
pub fn pack<R>(f: impl FnOnce() -> R) -> (R, Vec<OwnedFd>) {
    let scope = Scope::enter(&OUTBOXES, Outbox::default());
    let result = f();
    (result, scope.leave().descriptors)
}

/// Runs `f` with `descriptors` as the table; closes the table at the end.
pub fn unpack<R>(descriptors: Vec<OwnedFd>, f: impl FnOnce() -> R) -> R {
    let scope = Scope::enter(&INBOXES, descriptors);
    let result = f();
    drop(scope.leave());
    result
}

/// Puts a duplicate of `descriptor` into the table of the innermost [`pack`]; returns its index.
///
/// The same regular file (or memfd), opened for the same access, takes one place however often it is put.
///
/// # Errors
///
/// [`HandoverError`] outside of [`pack`], and when the process has no descriptor left.
pub fn put(descriptor: impl AsFd) -> Result<u32, HandoverError> {
    let descriptor = descriptor.as_fd();
    let index = OUTBOXES.with_borrow_mut(|outboxes| {
        let outbox = outboxes.last_mut().ok_or(HandoverError(Cause::NoScope))?;
        let stat = fstat(descriptor)?;
        let identity = if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            let access = fcntl_getfl(descriptor)?.bits();
            Some(Identity { device: stat.st_dev, inode: stat.st_ino, access })
        } else {
            None
        };
        if identity.is_some() {
            if let Some(known) = outbox.identities.iter().position(|known| *known == identity) {
                return Ok(known as u32);
            }
        }
        let index = u32::try_from(outbox.descriptors.len()).map_err(|_| rustix::io::Errno::MFILE)?;
        outbox.descriptors.push(fcntl_dupfd_cloexec(descriptor, 3)?);
        outbox.identities.push(identity);
        Ok(index)
    });
    index.inspect_err(note)
}

/// Returns a duplicate of the descriptor at `index` in the table of the innermost [`unpack`]. The same index
/// may be taken more than once.
///
/// # Errors
///
/// [`HandoverError`] outside of [`unpack`], for an index that the table does not have, and when the process
/// has no descriptor left.
pub fn take(index: u32) -> Result<OwnedFd, HandoverError> {
    let descriptor = INBOXES.with_borrow(|inboxes| {
        let inbox = inboxes.last().ok_or(HandoverError(Cause::NoScope))?;
        let descriptor = inbox
            .get(index as usize)
            .ok_or(HandoverError(Cause::NoSuchIndex { index, count: inbox.len() }))?;
        Ok(fcntl_dupfd_cloexec(descriptor, 3)?)
    });
    descriptor.inspect_err(note)
}

/// Serde's error for a handle that can not be serialised; its text is kept for [`last_error`].
pub fn ser_error<E: serde::ser::Error>(error: impl fmt::Display) -> E {
    note(&error);
    E::custom(error)
}

/// Serde's error for a handle that can not be deserialised; its text is kept for [`last_error`].
pub fn de_error<E: serde::de::Error>(error: impl fmt::Display) -> E {
    note(&error);
    E::custom(error)
}

/// Takes the text of the last failure in the last [`pack`] or [`unpack`] of this thread.
pub fn last_error() -> Option<String> {
    LAST_ERROR.take()
}

fn note(error: &impl fmt::Display) {
    LAST_ERROR.set(Some(error.to_string()));
}

/// An entry on one of the two stacks, taken off again when this is dropped.
struct Scope<T: 'static> {
    stack: &'static std::thread::LocalKey<RefCell<Vec<T>>>,
}

impl<T> Scope<T> {
    fn enter(stack: &'static std::thread::LocalKey<RefCell<Vec<T>>>, entry: T) -> Self {
        LAST_ERROR.set(None);
        stack.with_borrow_mut(|stack| stack.push(entry));
        Self { stack }
    }

    fn leave(self) -> T {
        let entry = self.stack.with_borrow_mut(Vec::pop);
        std::mem::forget(self);
        entry.expect("every scope takes off exactly the entry that it put on")
    }
}

impl<T> Drop for Scope<T> {
    fn drop(&mut self) {
        // Only a panic inside of the call comes here. The entry is dropped after the borrow has ended.
        let entry = self.stack.with_borrow_mut(Vec::pop);
        drop(entry);
    }
}

/// A descriptor that can be an argument or a result: serialises by [`put`], deserialises by [`take`].
///
/// `T` is anything that is a descriptor: `OwnedFd`, `File`, `TcpStream`, `UnixDatagram`, `ChildStdin`. The
/// receiver has to know what it gets: the kernel does not check that what arrives as a `TcpStream` is one,
/// its calls then fail.
#[derive(Debug)]
pub struct Handed<T>(pub T);

impl<T: AsFd> Serialize for Handed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        put(&self.0).map_err(ser_error)?.serialize(serializer)
    }
}

impl<'de, T: From<OwnedFd>> Deserialize<'de> for Handed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        take(index).map(|fd| Self(T::from(fd))).map_err(de_error)
    }
}

/// What is said of a handle that is serialised outside of [`pack`].
pub const ONLY_WHILE_HANDED_OVER: &str = "handles can only be serialised while they are handed to a process: pass them as arguments or \
                                          results, do not store them";

/// Why a handle could not be handed over.
#[derive(Debug)]
pub struct HandoverError(Cause);

#[derive(Debug)]
enum Cause {
    NoScope,
    NoSuchIndex { index: u32, count: usize },
    System(io::Error),
}

impl HandoverError {
    /// True if the handle was serialised or deserialised outside of [`pack`] and [`unpack`].
    #[must_use]
    pub fn is_no_scope(&self) -> bool {
        matches!(self.0, Cause::NoScope)
    }
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::NoScope => f.write_str(ONLY_WHILE_HANDED_OVER),
            Cause::NoSuchIndex { index, count } => write!(
                f,
                "the handle names file descriptor {index} of a message that carries {count}: the bytes do not \
                 belong to these descriptors",
            ),
            Cause::System(_) => f.write_str("the file descriptor of the handle can not be duplicated"),
        }
    }
}

impl std::error::Error for HandoverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Cause::System(error) => Some(error),
            _ => None,
        }
    }
}

impl From<rustix::io::Errno> for HandoverError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(Cause::System(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::fs::File;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn file() -> File {
        File::open("/proc/self/exe").unwrap()
    }

    fn inode(fd: impl AsFd) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    #[test]
    fn outside_of_a_call_a_handle_is_an_error_that_says_so() {
        let error = put(file()).unwrap_err();
        assert!(error.is_no_scope());
        assert!(
            error.to_string().contains("handles can only be serialised while they are handed to a process")
        );
        assert!(take(0).unwrap_err().is_no_scope());
    }

    #[test]
    fn what_is_packed_is_what_is_unpacked() {
        let file = file();
        let (index, table) = pack(|| put(&file).unwrap());
        let taken = unpack(table, || take(index).unwrap());
        assert_eq!(inode(&file), inode(taken));
    }

    #[test]
    fn one_file_takes_one_place_and_may_be_taken_twice() {
        let (first, second) = (file(), file());
        let (indices, table) = pack(|| [put(&first).unwrap(), put(&second).unwrap()]);
        assert_eq!((indices, table.len()), ([0, 0], 1));
        unpack(table, || {
            take(0).unwrap();
            take(0).unwrap();
        });
    }

    #[test]
    fn different_access_to_one_file_is_not_merged() {
        let memfd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memfd));
        let read_only = File::open(path).unwrap();
        let (_, table) = pack(|| (put(&memfd).unwrap(), put(&read_only).unwrap()));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn event_descriptors_share_an_inode_and_are_not_merged() {
        let [a, b] = [0, 7].map(|count| eventfd(count, EventfdFlags::CLOEXEC).unwrap());
        assert_eq!(inode(&a), inode(&b), "if they differ, this test shows nothing");
        let (_, table) = pack(|| (put(&a).unwrap(), put(&b).unwrap()));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn an_index_out_of_nowhere_is_an_error() {
        let error = unpack(vec![file().into()], || take(1).unwrap_err());
        assert!(error.to_string().contains("file descriptor 1 of a message that carries 1"), "{error}");
        assert_eq!(last_error(), Some(error.to_string()));
        pack(|| ());
        assert_eq!(last_error(), None);
    }

    #[test]
    fn calls_nest() {
        let (a, b) = (file(), rustix::fs::memfd_create("b", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let ((), outer) = pack(|| {
            put(&a).unwrap();
            let (index, inner) = pack(|| put(&b).unwrap());
            assert_eq!((index, inner.len()), (0, 1));
            assert_eq!(put(&b).unwrap(), 1);
        });
        assert_eq!(outer.len(), 2);
        unpack(outer, || {
            unpack(Vec::new(), || assert!(take(0).is_err()));
            assert_eq!(inode(take(1).unwrap()), inode(&b));
        });
    }

    #[test]
    fn a_panic_ends_the_call_that_it_left() {
        let ((), outer) = pack(|| {
            put(file()).unwrap();
            let panic = catch_unwind(AssertUnwindSafe(|| pack(|| panic!("in the serialiser"))));
            assert!(panic.is_err());
            assert_eq!(put(file()).unwrap(), 0, "the outer table is in place again");
        });
        assert_eq!(outer.len(), 1);
        assert!(catch_unwind(|| unpack(Vec::new(), || panic!("in the deserialiser"))).is_err());
        assert!(put(file()).unwrap_err().is_no_scope());
        assert!(take(0).unwrap_err().is_no_scope());
    }
}
