//! How a segment is to be made or attached to. The steps are in `attach.rs`.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::header::Unlink;
use crate::segment::Segment;

/// How a segment is made or attached to.
///
/// ```
/// use crossproc_segment::{SegmentOptions, Unlink};
///
/// let name = format!("doc-options-{}", std::process::id());
/// let segment = SegmentOptions::new().participants(16).objects(4).prefault(true).create(&name, 1 << 20)?;
/// assert_eq!(segment.unlink_policy(), Unlink::LastClose);
/// assert!(segment.granted().prefault);
///
/// let reader = SegmentOptions::new().read_only(true).open(&name)?;
/// assert!(reader.is_read_only());
/// # Ok::<(), crossproc_segment::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SegmentOptions {
    pub(crate) mode: u32,
    pub(crate) group: Option<u32>,
    pub(crate) owner: Option<u32>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) unlink: Option<Unlink>,
    pub(crate) participants: u32,
    pub(crate) objects: u32,
    pub(crate) windows: u64,
    pub(crate) read_only: bool,
    pub(crate) single_writer: bool,
    pub(crate) prefault: bool,
    pub(crate) huge_pages: bool,
    pub(crate) lock_in_memory: bool,
    pub(crate) numa: Option<Numa>,
    pub(crate) timeout: Duration,
}

/// Near which memory controller pages should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Numa {
    /// On this node, as long as it has room.
    Node(u8),
    /// Page by page on the nodes whose bits are set.
    Interleave(u64),
}

/// Which wishes the system granted. What was not wished for is `false`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Granted {
    /// All pages were mapped before the segment was handed out.
    pub prefault: bool,
    /// The memory is of huge pages, or the kernel will consider them for it.
    pub huge_pages: bool,
    /// The pages stay in memory.
    pub lock_in_memory: bool,
    /// The kernel took the hint about nodes.
    pub numa: bool,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self {
            mode: 0o600,
            group: None,
            owner: None,
            directory: None,
            unlink: None,
            participants: 128,
            objects: 64,
            windows: 0,
            read_only: false,
            single_writer: false,
            prefault: false,
            huge_pages: false,
            lock_in_memory: false,
            numa: None,
            timeout: Duration::from_secs(10),
        }
    }
}

impl SegmentOptions {
    /// What [`Segment`]'s own functions use: private, 128 participants, 64 objects, no wishes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Permission bits of a name or file, 0600 unless set. With bits for group or others, the user's
    /// directory of names is opened for looking into as well (mode 0755).
    ///
    /// The umask has no say in it. Who opens a name finds these bits or gets
    /// [`WrongMode`](ErrorKind::WrongMode): somebody changed them since. (Files are exempt: copying one may
    /// change them.)
    #[must_use]
    pub fn mode(mut self, bits: u32) -> Self {
        self.mode = bits;
        self
    }

    /// The group that a name or file belongs to.
    #[must_use]
    pub fn group(mut self, gid: u32) -> Self {
        self.group = Some(gid);
        self
    }

    /// Opens names of another user. Only what really belongs to that user is opened. Creating under another
    /// user's name is an error, and who may not write in that user's directory can not remove a name either: if
    /// such a one is the last to leave, that user's next create or open does it.
    #[must_use]
    pub fn owner(mut self, uid: u32) -> Self {
        self.owner = Some(uid);
        self
    }

    /// Where the users' directories of names are, instead of /dev/shm. On a disk the names still do not
    /// outlive a reboot.
    #[must_use]
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// When the name goes away: with the last one who leaves unless set, never for files.
    #[must_use]
    pub fn unlink_policy(mut self, policy: Unlink) -> Self {
        self.unlink = Some(policy);
        self
    }

    /// How many processes can be attached at once: 1 to 65535 (64 bytes each). The first 900 or so are
    /// noticed soonest when they die.
    #[must_use]
    pub fn participants(mut self, most: u32) -> Self {
        self.participants = most;
        self
    }

    /// How many objects the segment can hold: 1 to 65536 (512 bytes each).
    #[must_use]
    pub fn objects(mut self, most: u32) -> Self {
        self.objects = most;
        self
    }

    /// So many bytes of *windows* behind the objects, rounded up to pages: address space (of each process that attaches) and length
    /// of the file, but no memory and no blocks, until an object allocates a part of it. Queues for messages of any size need
    /// them; 0 unless set. RLIMIT_AS and RLIMIT_FSIZE count them. (A process that has asked for all its memory to be there, by
    /// `mlockall(MCL_FUTURE)`, gets these pages too.)
    #[must_use]
    pub fn windows(mut self, bytes: u64) -> Self {
        self.windows = bytes;
        self
    }

    /// Attaches for reading only: the memory is mapped so, and this process is no participant. Whatever would
    /// write is an error of kind [`ReadOnly`](ErrorKind::ReadOnly). It does not keep a name from going away
    /// with its last participant.
    #[must_use]
    pub fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Anonymous segments: the kernel refuses further writers (`F_SEAL_FUTURE_WRITE`). The creator, and
    /// children that it forks, go on writing; who gets the descriptor can only read.
    #[must_use]
    pub fn single_writer(mut self, yes: bool) -> Self {
        self.single_writer = yes;
        self
    }

    /// Maps all pages before the segment is handed out, so that no first access is slow.
    #[must_use]
    pub fn prefault(mut self, yes: bool) -> Self {
        self.prefault = yes;
        self
    }

    /// Tries to use huge pages: for anonymous segments those that the administrator set aside
    /// (`vm.nr_hugepages`), else transparent ones where the system allows them for shared memory. A wish:
    /// [`Segment::granted`] tells what came of it.
    #[must_use]
    pub fn huge_pages(mut self, wish: bool) -> Self {
        self.huge_pages = wish;
        self
    }

    /// Tries to keep the pages in memory (`mlock`; RLIMIT_MEMLOCK is 8 MiB on many systems). A wish.
    #[must_use]
    pub fn lock_in_memory(mut self, wish: bool) -> Self {
        self.lock_in_memory = wish;
        self
    }

    /// Tries to get memory of these NUMA nodes, when creating. A wish: machines with one node have no choice.
    #[must_use]
    pub fn numa(mut self, wish: Numa) -> Self {
        self.numa = Some(wish);
        self
    }

    /// How long to wait for others who are creating, opening or leaving at the same moment: 10 s unless set.
    /// Later this is an error of kind [`Busy`](ErrorKind::Busy). (Dropping the last handle of a named segment
    /// waits no longer either; then the name is left for the next who comes.)
    #[must_use]
    pub fn timeout(mut self, longest: Duration) -> Self {
        self.timeout = longest;
        self
    }

    /// As [`Segment::anonymous`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn anonymous(&self, len: usize) -> Result<Segment, Error> {
        self.make_anonymous(len).map_err(|e| e.during("creating an anonymous segment"))
    }

    /// As [`Segment::create`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn create(&self, name: &str, len: usize) -> Result<Segment, Error> {
        self.at_name(name, "creating", |place| self.create_at(place, len, false))
    }

    /// As [`Segment::open`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open(&self, name: &str) -> Result<Segment, Error> {
        self.at_name(name, "opening", |place| self.open_at(place))
    }

    /// As [`Segment::open_or_create`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_or_create(&self, name: &str, len: usize) -> Result<Segment, Error> {
        self.at_name(name, "opening or creating", |place| self.create_at(place, len, true))
    }

    /// A new segment in a file; see [`Segment::file`].
    ///
    /// # Errors
    ///
    /// As [`Segment::create`].
    pub fn create_file(&self, path: impl AsRef<Path>, len: usize) -> Result<Segment, Error> {
        self.at_path(path.as_ref(), "creating", |place| self.create_at(place, len, false))
    }

    /// As [`Segment::open_file`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<Segment, Error> {
        self.at_path(path.as_ref(), "opening", |place| self.open_at(place))
    }

    /// As [`Segment::file`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn file(&self, path: impl AsRef<Path>, len: usize) -> Result<Segment, Error> {
        self.at_path(path.as_ref(), "opening or creating", |place| self.create_at(place, len, true))
    }

    /// Attaches to the segment behind a descriptor that another process sent; for reading only if the
    /// descriptor is, or if the segment is sealed against further writers. If this process has the segment
    /// already, that one is returned.
    ///
    /// # Errors
    ///
    /// [`NotSealed`](ErrorKind::NotSealed) for a memory file that its sender could cut, and those of
    /// [`Segment::open`].
    pub fn received(&self, fd: OwnedFd) -> Result<Segment, Error> {
        self.join_received(fd).map_err(|e| e.during("attaching to a segment received as a descriptor"))
    }

    /// As [`Segment::unlink`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.at_name(name, "removing", |place| self.remove_at(place))
    }

    /// The names there are, sorted; those of segments whose users were all killed included.
    ///
    /// # Errors
    ///
    /// [`WrongOwner`](ErrorKind::WrongOwner), [`WrongMode`](ErrorKind::WrongMode),
    /// [`Denied`](ErrorKind::Denied).
    ///
    /// ```
    /// use crossproc_segment::{Segment, SegmentOptions};
    ///
    /// let name = format!("doc-names-{}", std::process::id());
    /// let _segment = Segment::create(&name, 4096)?;
    /// assert!(SegmentOptions::new().names()?.contains(&name));
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub fn names(&self) -> Result<Vec<String>, Error> {
        match self.folder().lock(false, false, self.until()) {
            Ok(locked) => locked.names(),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e.during("listing the names of segments")),
        }
    }
}
