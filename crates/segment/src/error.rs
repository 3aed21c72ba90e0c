//! What can go wrong with a segment: one opaque error that a person can act on.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// A failure to make, open or use a segment or an object in it.
///
/// [`kind`](Error::kind) is for programs. The sentence ([`Display`](fmt::Display)) is for people: what was
/// being done, to which name, what stood in the way and what to do about it.
///
/// ```
/// use crossproc_segment::{ErrorKind, Segment};
///
/// let error = Segment::anonymous(0).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidLength);
/// let sentence = "creating an anonymous segment: its length is 0; ask for at least one byte";
/// assert_eq!(error.to_string(), sentence);
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    sentence: String,
    source: Option<io::Error>,
}

/// What kind of failure an [`Error`] is. More may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name is taken, by a living segment or by another object of the segment.
    Exists,
    /// Nothing has this name, or only the remains of a segment whose users are all gone.
    NotFound,
    /// The name belongs to another user than the one it was looked for under.
    WrongOwner,
    /// The permission bits of a name are not those its creator gave it (or its directory is open to others'
    /// writing).
    WrongMode,
    /// What stands under the name is no segment of ours: random bytes, a directory, a link.
    NotOurs,
    /// A segment of another layout version or byte order.
    WrongVersion,
    /// A segment in memory from before the last boot (a snapshot was restored). Files are exempt.
    WrongBoot,
    /// The object holds another type; the sentence names the field that differs.
    WrongType,
    /// The object is of another kind, such as a Queue where a Lock was asked for.
    WrongKind,
    /// There is such a segment or object, but it is smaller than was asked for.
    TooSmall,
    /// The file is shorter than the segment that was made in it.
    Truncated,
    /// The segment's creator was killed, or is still at work, before it was complete.
    HalfBuilt,
    /// The segment's records contradict each other or lead outside of it: somebody scribbled over them.
    Damaged,
    /// A received memory file is not sealed against truncation.
    NotSealed,
    /// The segment was made in another PID namespace, where other processes have our ids.
    WrongPidNamespace,
    /// The file system, or the segment's area for objects, is full.
    NoSpace,
    /// The machine or the control group has not that much memory.
    NoMemory,
    /// No address space or file could be that large.
    TooLarge,
    /// A length or count that can not be: zero, or beyond what the layout can express.
    InvalidLength,
    /// A name that can not be: empty, longer than 200 bytes, with `/` or NUL in it, or with a leading dot.
    InvalidName,
    /// The process or the machine has too many open files.
    TooManyFiles,
    /// All participant slots of the segment belong to living processes.
    TooManyParticipants,
    /// This process was forked from one that is attached, and has not attached itself.
    NotAttached,
    /// The segment was attached for reading only.
    ReadOnly,
    /// Another process, which lives, has the role: the one producer or the one consumer of a queue.
    RoleTaken,
    /// Somebody else held a lock for longer than the timeout.
    Busy,
    /// The system does not permit it.
    Denied,
    /// Not possible with this segment or on this system.
    Unsupported,
    /// Any other failure of the operating system; see [`source`](std::error::Error::source).
    Os,
}

impl Error {
    /// A failure of this kind, told by `sentence`.
    #[must_use]
    pub fn new(kind: ErrorKind, sentence: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, sentence: sentence.into(), source: None }))
    }

    /// A failure of the operating system while doing what `doing` says ("opening /dev/shm/x").
    pub(crate) fn os(doing: impl fmt::Display, errno: Errno) -> Self {
        Self::io(doing, errno.into())
    }

    /// As [`os`](Self::os), for calls of the standard library.
    pub(crate) fn io(doing: impl fmt::Display, source: io::Error) -> Self {
        let (kind, advice) = classify(&source);
        let sentence = format!("{doing}: {source}{advice}");
        Self(Box::new(Inner { kind, sentence, source: Some(source) }))
    }

    /// The same failure, with what was being done in front: "opening segment "x": ..".
    #[must_use]
    pub fn during(mut self, doing: impl fmt::Display) -> Self {
        self.0.sentence = format!("{doing}: {}", self.0.sentence);
        self
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

/// The kind of a failed system call, and what a person can do about it.
fn classify(source: &io::Error) -> (ErrorKind, &'static str) {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => (
            ErrorKind::TooManyFiles,
            "; close files or raise this process's limit (`ulimit -n`, RLIMIT_NOFILE)",
        ),
        Some(Errno::NFILE) => {
            (ErrorKind::TooManyFiles, "; the whole machine is out of open files (fs.file-max)")
        }
        Some(Errno::NOSPC | Errno::DQUOT) => {
            (ErrorKind::NoSpace, "; make room there, ask for less, or use an anonymous segment")
        }
        Some(Errno::NOMEM) => (ErrorKind::NoMemory, "; ask for less or raise the memory limit"),
        Some(Errno::FBIG | Errno::OVERFLOW) => (
            ErrorKind::TooLarge,
            "; ask for less, or raise this process's limit of the size of files (`ulimit -f`, RLIMIT_FSIZE)",
        ),
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => (ErrorKind::Denied, ""),
        Some(Errno::NOENT) => (ErrorKind::NotFound, ""),
        Some(Errno::EXIST) => (ErrorKind::Exists, ""),
        Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO | Errno::NODEV) => {
            (ErrorKind::NotOurs, "; what stands there is no segment, move it away")
        }
        Some(Errno::NOTSUP | Errno::NOSYS) => (ErrorKind::Unsupported, ""),
        _ => (ErrorKind::Os, ""),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.sentence)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.sentence)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Exists => io::ErrorKind::AlreadyExists,
            ErrorKind::NotFound => io::ErrorKind::NotFound,
            ErrorKind::WrongOwner | ErrorKind::WrongMode | ErrorKind::Denied => {
                io::ErrorKind::PermissionDenied
            }
            ErrorKind::NoMemory => io::ErrorKind::OutOfMemory,
            ErrorKind::Busy => io::ErrorKind::WouldBlock,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::InvalidLength | ErrorKind::InvalidName | ErrorKind::TooLarge => {
                io::ErrorKind::InvalidInput
            }
            ErrorKind::NotOurs | ErrorKind::WrongVersion | ErrorKind::WrongType | ErrorKind::WrongKind => {
                io::ErrorKind::InvalidData
            }
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
