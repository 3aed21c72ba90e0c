//! The handle: one segment that this process has mapped and takes part in.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossproc_atomic::{is_process_stamp, process_stamp};
use rustix::fs::fstat;

use crate::backing::reopen;
use crate::directory::{Directory, Object, ObjectInfo, ObjectSpec};
use crate::error::{Error, ErrorKind};
use crate::header::{Facts, Header, Machine, Unlink};
use crate::lock::{ClaimLock, FileLock, deadline};
use crate::map::Mapping;
use crate::names::Folder;
use crate::options::{Granted, SegmentOptions};
use crate::participant::{self, Participant, Participants};
use crate::place::Placed;
use crate::registry::{self, Key};

/// Memory that processes share, with a directory of named objects in it.
///
/// A `Segment` is a handle: clones are cheap, mean the same segment, and may be used by all threads. A
/// process maps and joins a segment once, however often it opens it. When its last handle is dropped (objects
/// placed in the segment hold one) the process leaves the segment.
///
/// Which kind to take:
///
/// * [`anonymous`](Segment::anonymous): no name, sealed against truncation, gone with its last user however
///   that one ended. Another process gets it as a file descriptor, or as an argument of a spawned function.
/// * [`create`](Segment::create), [`open`](Segment::open), [`open_or_create`](Segment::open_or_create): found
///   by name by any process of the same user.
/// * [`file`](Segment::file): at a path, and there until somebody removes it.
///
/// ```
/// use crossproc_segment::Segment;
///
/// let segment = Segment::anonymous(64 * 1024)?;
/// assert!(segment.capacity() >= 64 * 1024);
/// assert!(segment.objects().is_empty());
///
/// // The same memory through its descriptor, as another process would get it.
/// let again = Segment::try_from(segment.fd().expect("it is a file").try_clone_to_owned()?)?;
/// assert_eq!(again.id(), segment.id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Fork
///
/// A forked child has a copy of the handle but takes no part in the segment: all that needs a participant is
/// an error of kind [`NotAttached`](ErrorKind::NotAttached), and dropping the handle does nothing to anybody
/// else. The child joins with [`attach_again`](Segment::attach_again), or by opening the segment anew.
///
/// # Truncation
///
/// Nobody can cut an anonymous segment. Of a named or file segment every process that may write to it can,
/// and whoever touches the lost part gets SIGBUS: give names to those only whom you trust that far.
#[derive(Clone)]
pub struct Segment(pub(crate) Arc<Core>);

/// What all handles of one segment in one process share.
pub(crate) struct Core {
    /// `segment "inbox"`, for sentences.
    pub label: String,
    pub mapping: Arc<Mapping>,
    pub header: Placed<Header>,
    pub directory: Directory,
    /// What the header said when we attached.
    pub facts: Facts,
    /// `None`: adopted memory.
    pub fd: Option<OwnedFd>,
    /// `None`: attached for reading only, or leaving right now.
    pub participants: Option<Participants>,
    /// The incarnation of the process that all this belongs to.
    pub stamp: u64,
    pub key: Key,
    /// Where the name is, if it has one.
    pub link: Option<Link>,
    /// True for the handle that made the segment.
    pub creator: bool,
    pub granted: Granted,
    pub timeout: Duration,
}

/// The name of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub folder: Folder,
    pub leaf: OsString,
}

impl Segment {
    /// A segment without a name and with room for `len` bytes of objects (whole pages, its own tables come on
    /// top), in memory that is there from the start.
    ///
    /// # Errors
    ///
    /// [`InvalidLength`](ErrorKind::InvalidLength) for 0, [`TooLarge`](ErrorKind::TooLarge) for what no file
    /// can hold, [`NoMemory`](ErrorKind::NoMemory) for more than the machine or the control group has,
    /// [`TooManyFiles`](ErrorKind::TooManyFiles).
    ///
    /// ```
    /// use crossproc_segment::{ErrorKind, Segment};
    ///
    /// assert_eq!(Segment::anonymous(usize::MAX).unwrap_err().kind(), ErrorKind::TooLarge);
    /// assert_eq!(Segment::anonymous(1 << 50).unwrap_err().kind(), ErrorKind::NoMemory);
    /// ```
    pub fn anonymous(len: usize) -> Result<Self, Error> {
        SegmentOptions::new().anonymous(len)
    }

    /// A new segment with a name, which other processes of this user can open until the last one has left it.
    ///
    /// Nobody ever sees half of it. The remains of a segment of this name whose users were all killed are
    /// replaced.
    ///
    /// # Errors
    ///
    /// [`Exists`](ErrorKind::Exists) if a living segment has the name,
    /// [`InvalidName`](ErrorKind::InvalidName), [`NoSpace`](ErrorKind::NoSpace) if /dev/shm is full, and
    /// those of [`anonymous`](Segment::anonymous).
    ///
    /// ```
    /// use crossproc_segment::{ErrorKind, Segment};
    ///
    /// let name = format!("doc-create-{}", std::process::id());
    /// let segment = Segment::create(&name, 4096)?;
    /// assert_eq!(Segment::create(&name, 4096).unwrap_err().kind(), ErrorKind::Exists);
    /// assert_eq!(Segment::open(&name)?.id(), segment.id());
    /// drop(segment);
    /// assert_eq!(Segment::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub fn create(name: &str, len: usize) -> Result<Self, Error> {
        SegmentOptions::new().create(name, len)
    }

    /// Attaches to the segment of this name.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound), and one kind for each way in which what has the name can be
    /// unusable: see [`ErrorKind`].
    pub fn open(name: &str) -> Result<Self, Error> {
        SegmentOptions::new().open(name)
    }

    /// Attaches to the segment of this name, or creates it. Of several processes that do so at once one
    /// creates.
    ///
    /// # Errors
    ///
    /// [`TooSmall`](ErrorKind::TooSmall) if there is one with less room than `len`, and those of
    /// [`create`](Segment::create) and [`open`](Segment::open).
    pub fn open_or_create(name: &str, len: usize) -> Result<Self, Error> {
        SegmentOptions::new().open_or_create(name, len)
    }

    /// Attaches to the segment in the file at `path`, or creates it there. It stays when all have left it,
    /// also over a reboot (on a file system that does), until the file is removed.
    ///
    /// For the moment of attaching and creating, the directory of the path is locked (`flock`).
    ///
    /// # Errors
    ///
    /// As [`open_or_create`](Segment::open_or_create).
    ///
    /// ```
    /// use crossproc_segment::Segment;
    ///
    /// let path = std::env::temp_dir().join(format!("doc-file-{}", std::process::id()));
    /// let id = Segment::file(&path, 4096)?.id();
    /// assert_eq!(Segment::file(&path, 4096)?.id(), id);
    /// std::fs::remove_file(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn file(path: impl AsRef<Path>, len: usize) -> Result<Self, Error> {
        SegmentOptions::new().file(path, len)
    }

    /// Attaches to the segment in the file at `path`.
    ///
    /// # Errors
    ///
    /// As [`open`](Segment::open).
    pub fn open_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        SegmentOptions::new().open_file(path)
    }

    /// Removes a name. Processes that are attached go on with the segment, nobody can open it any more.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound), [`Denied`](ErrorKind::Denied), [`Busy`](ErrorKind::Busy).
    pub fn unlink(name: &str) -> Result<(), Error> {
        SegmentOptions::new().remove(name)
    }

    /// How many bytes objects can take in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let objects = self.0.facts.geometry.objects();
        // No longer than the mapping.
        (objects.end - objects.start) as usize
    }

    /// How many bytes objects take now, alignment included.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.directory.used() as usize
    }

    /// How many bytes of windows objects can have in all; see [`SegmentOptions::windows`](SegmentOptions::windows).
    #[must_use]
    pub fn windows(&self) -> usize {
        let windows = self.0.facts.geometry.windows();
        // No longer than the mapping.
        (windows.end - windows.start) as usize
    }

    /// A random number by which this segment can be told from all others.
    #[must_use]
    pub fn id(&self) -> u128 {
        let [high, low] = self.0.facts.id;
        u128::from(high) << 64 | u128::from(low)
    }

    /// When its name goes away.
    #[must_use]
    pub fn unlink_policy(&self) -> Unlink {
        self.0.facts.unlink
    }

    /// The pid of the process that created it; 0 if nobody knows.
    #[must_use]
    pub fn creator_pid(&self) -> u32 {
        self.0.facts.creator
    }

    /// True if it was attached for reading only: then nothing can be created or changed in it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !self.0.mapping.is_writable()
    }

    /// Which of the wishes in [`SegmentOptions`] the system granted when this process attached.
    #[must_use]
    pub fn granted(&self) -> Granted {
        self.0.granted
    }

    /// Its file descriptor, with which another process attaches (`Segment::try_from`); `None` for adopted
    /// memory.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd.as_ref().map(AsFd::as_fd)
    }

    /// The memory.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.0.mapping
    }

    /// This process's place among those that are attached, for whatever needs to know who is alive.
    ///
    /// # Errors
    ///
    /// [`NotAttached`](ErrorKind::NotAttached) in a forked child, [`ReadOnly`](ErrorKind::ReadOnly).
    #[inline]
    pub fn participants(&self) -> Result<&Participants, Error> {
        match &self.0.participants {
            Some(participants) if is_process_stamp(self.0.stamp) => Ok(participants),
            _ => Err(self.0.no_participant()),
        }
    }

    /// An error unless this process may use what is in the segment.
    ///
    /// # Errors
    ///
    /// [`NotAttached`](ErrorKind::NotAttached) in a forked child, [`ReadOnly`](ErrorKind::ReadOnly).
    #[inline]
    pub fn check_attached(&self) -> Result<(), Error> {
        self.participants().map(drop)
    }

    /// How many processes are attached and not proven dead. Those that attached for reading only are not
    /// counted.
    ///
    /// # Errors
    ///
    /// If this process can not find out who lives, see [`ErrorKind::Os`].
    pub fn living(&self) -> Result<usize, Error> {
        participant::count_living(&self.0.mapping, self.0.facts.geometry.participants)
    }

    /// Who is attached and not proven dead, this process included; see [`living`](Self::living).
    ///
    /// # Errors
    ///
    /// [`NotAttached`](ErrorKind::NotAttached) in a forked child, [`ReadOnly`](ErrorKind::ReadOnly).
    ///
    /// ```
    /// let segment = crossproc_segment::Segment::anonymous(4096)?;
    /// let attached = segment.attached()?;
    /// assert!(attached.len() == 1 && attached[0].is_me && attached[0].pid == std::process::id());
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub fn attached(&self) -> Result<Vec<Participant>, Error> {
        self.participants().map(Participants::list)
    }

    /// How many processes can be attached at once; see
    /// [`SegmentOptions::participants`](SegmentOptions::participants).
    #[must_use]
    pub fn participant_slots(&self) -> usize {
        // At most 65535.
        self.0.facts.geometry.participants.count as usize
    }

    /// In a forked child: attaches the child, with the memory it has inherited. Elsewhere: another handle.
    ///
    /// # Errors
    ///
    /// [`TooManyParticipants`](ErrorKind::TooManyParticipants), [`Busy`](ErrorKind::Busy), and
    /// [`WrongPidNamespace`](ErrorKind::WrongPidNamespace) if the child was forked into another one.
    pub fn attach_again(&self) -> Result<Self, Error> {
        let core = &self.0;
        if core.stamp == process_stamp() {
            return Ok(self.clone());
        }
        let attach = || {
            // While we attach, nobody who leaves must take the segment for abandoned.
            let until = deadline(core.timeout);
            let _locked = match core.link.as_ref().map(|link| link.folder.lock(false, false, until)) {
                // The directory is gone, and with it the name: nobody can take it away any more.
                Some(Err(e)) if e.kind() == ErrorKind::NotFound => None,
                locked => locked.transpose()?,
            };
            core.facts.check_machine(Machine::here()?)?;
            registry::find_or_make(core.key, || {
                let writable = core.mapping.is_writable();
                let table = core.facts.geometry.participants;
                let participants =
                    writable.then(|| Participants::attach(&core.mapping, table, false)).transpose()?;
                let fd = core.fd.as_ref().map(OwnedFd::try_clone).transpose();
                Ok(Core {
                    label: core.label.clone(),
                    mapping: Arc::clone(&core.mapping),
                    header: core.header.clone(),
                    directory: Directory::new(&core.mapping, &core.facts.geometry)?,
                    facts: core.facts,
                    fd: fd.map_err(|e| Error::io("copying its descriptor", e))?,
                    participants,
                    stamp: process_stamp(),
                    key: core.key,
                    link: core.link.clone(),
                    creator: false,
                    granted: core.granted,
                    timeout: core.timeout,
                })
            })
        };
        attach()
            .map(Self)
            .map_err(|e: Error| e.during(format_args!("attaching to {} after a fork", core.label)))
    }

    /// Makes an object. Its memory is zero, then `init` gives it its first state (the offset of its first
    /// byte is told), then it can be found. If this process is killed before that, nothing is left of it.
    ///
    /// # Errors
    ///
    /// [`Exists`](ErrorKind::Exists), [`NoSpace`](ErrorKind::NoSpace),
    /// [`InvalidName`](ErrorKind::InvalidName), [`ReadOnly`](ErrorKind::ReadOnly),
    /// [`NotAttached`](ErrorKind::NotAttached), [`Busy`](ErrorKind::Busy).
    ///
    /// ```
    /// use crossproc_atomic::{AtomicU64, Ordering};
    /// use crossproc_segment::plain::Plain;
    /// use crossproc_segment::{ObjectKind, ObjectSpec, Segment};
    ///
    /// let segment = Segment::anonymous(4096)?;
    /// let kind = ObjectKind::new("Counter");
    /// let spec = ObjectSpec { kind, layout: u64::LAYOUT, count: 1, bytes: 8, align: 8, windows: 0 };
    /// let object = segment.create_object("hits", &spec, |mapping, offset| {
    ///     mapping.place::<AtomicU64>(offset).expect("it was made for this").store(41, Ordering::Relaxed);
    /// })?;
    /// let hits = segment.mapping().place::<AtomicU64>(object.offset)?;
    /// assert_eq!(hits.fetch_add(1, Ordering::Relaxed), 41);
    /// assert_eq!(segment.open_object("hits", &spec)?, object);
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub fn create_object(
        &self,
        name: &str,
        spec: &ObjectSpec,
        init: impl FnOnce(&Arc<Mapping>, u64),
    ) -> Result<Object, Error> {
        self.creating(name, || self.0.directory.create(&self.0.mapping, name, spec, init))
    }

    /// Finds an object. `spec` says what it must be, and how large at least.
    ///
    /// # Errors
    ///
    /// [`NotFound`](ErrorKind::NotFound), [`WrongKind`](ErrorKind::WrongKind),
    /// [`WrongType`](ErrorKind::WrongType), [`TooSmall`](ErrorKind::TooSmall),
    /// [`Damaged`](ErrorKind::Damaged).
    pub fn open_object(&self, name: &str, spec: &ObjectSpec) -> Result<Object, Error> {
        self.0.directory.open(name, spec).map_err(|e| self.about("opening", spec, name, e))
    }

    /// Finds an object or makes it. Of several processes that do so at once one makes it, the others wait for
    /// that one.
    ///
    /// # Errors
    ///
    /// Those of [`open_object`](Segment::open_object) and [`create_object`](Segment::create_object).
    pub fn open_or_create_object(
        &self,
        name: &str,
        spec: &ObjectSpec,
        init: impl FnOnce(&Arc<Mapping>, u64),
    ) -> Result<Object, Error> {
        let opened = self.open_object(name, spec);
        if !matches!(&opened, Err(e) if e.kind() == ErrorKind::NotFound) {
            return opened;
        }
        self.creating(name, || match self.0.directory.open(name, spec) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.0.directory.create(&self.0.mapping, name, spec, init)
            }
            opened => opened,
        })
    }

    /// Finds an object by the number that another process's handle to it named.
    ///
    /// # Errors
    ///
    /// As [`open_object`](Segment::open_object).
    pub fn object_at(&self, index: u32, spec: &ObjectSpec) -> Result<Object, Error> {
        self.0.directory.at(index, spec).map_err(|e| self.about("opening", spec, &format!("#{index}"), e))
    }

    /// The objects that are in it. Entries that were scribbled over are left out.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectInfo> {
        self.0.directory.list()
    }

    /// Runs `make` under the lock for creating objects.
    fn creating(&self, name: &str, make: impl FnOnce() -> Result<Object, Error>) -> Result<Object, Error> {
        let create = || {
            let participants = self.participants()?;
            let until = deadline(self.0.timeout);
            let (_file, _claim);
            match &self.0.fd {
                Some(fd) => _file = FileLock::take(reopen(fd.as_fd())?, until, &self.0.label)?,
                None => _claim = ClaimLock::take(&self.0.header.claim, participants, until, &self.0.label)?,
            }
            make()
        };
        create().map_err(|e| e.during(format_args!("creating {name:?} in {}", self.0.label)))
    }

    fn about(&self, doing: &str, spec: &ObjectSpec, name: &str, error: Error) -> Error {
        error.during(format_args!("{doing} the {} {name:?} in {}", spec.kind, self.0.label))
    }
}

impl Core {
    #[cold]
    fn no_participant(&self) -> Error {
        if self.stamp != process_stamp() {
            return Error::new(
                ErrorKind::NotAttached,
                format!(
                    "using {}: this process was forked from one that is attached to it, and has not \
                     attached itself; \
                     call `Segment::attach_again`, or open it again",
                    self.label
                ),
            );
        }
        Error::new(
            ErrorKind::ReadOnly,
            format!(
                "using {}: it is attached for reading only; attach it without `read_only` to change it",
                self.label
            ),
        )
    }

    /// Leaves, and removes the name if the policy says so and it still leads to our file.
    fn leave(&mut self) -> Result<(), Error> {
        let Some(participants) = self.participants.take() else { return Ok(()) };
        let close = match self.facts.unlink {
            Unlink::LastClose => true,
            Unlink::OwnerDrop => self.creator,
            Unlink::Never => false,
        };
        let (Some(link), Some(fd), true) = (&self.link, &self.fd, close) else { return Ok(()) };
        // Whoever attaches by name has this lock: nobody comes while we look whether anybody is left.
        let locked = link.folder.lock(false, false, deadline(self.timeout))?;
        drop(participants);
        let table = self.facts.geometry.participants;
        if self.facts.unlink == Unlink::LastClose && participant::count_living(&self.mapping, table)? > 0 {
            return Ok(());
        }
        let file = fstat(fd).map_err(|errno| Error::os("looking at the segment", errno))?;
        if locked.leads_to(&link.leaf, &file) {
            locked.unlink(&link.leaf)?;
            locked.remove_if_empty();
        }
        Ok(())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // A forked child drops a copy: the place in the table, the name and the registry are its parent's.
        if self.stamp != process_stamp() {
            return;
        }
        // What can fail here leaves a name without participants, which the next create or open takes for what
        // it is.
        let _ = self.leave();
        registry::forget(self.key, self);
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment")
            .field("label", &self.0.label)
            .field("capacity", &self.capacity())
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}
