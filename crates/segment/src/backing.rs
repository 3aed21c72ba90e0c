//! The file behind a segment: made, really there, sealed, and looked at before it is mapped.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FallocateFlags, FileType, MemfdFlags, OFlags, SealFlags, Stat, fallocate, fcntl_add_seals,
    fcntl_get_seals, fcntl_getfl, fstat, fstatfs, fstatvfs, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, ErrorKind};
use crate::header::too_short;
use crate::map::PAGE;

/// Nobody can change the length, nor these seals.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;
const HUGETLBFS: u64 = 0x9584_58f6;
/// What a memory file of huge pages counts in.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// A new memory file, sealable, closed on exec.
pub(crate) fn memory_file() -> Result<OwnedFd, Error> {
    make_memory_file(MemfdFlags::empty()).map_err(|errno| Error::os("making a memory file", errno))
}

/// A new memory file of huge pages; `None` if the kernel has no such thing.
pub(crate) fn memory_file_of_huge_pages() -> Result<Option<OwnedFd>, Error> {
    match make_memory_file(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
        Err(errno @ (Errno::MFILE | Errno::NFILE)) => Err(Error::os("making a memory file", errno)),
        made => Ok(made.ok()),
    }
}

fn make_memory_file(more: MemfdFlags) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | more;
    // NOEXEC_SEAL (6.3): the file can never be made executable. Older kernels do not know the flag.
    match memfd_create("crossproc", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("crossproc", flags),
        made => made,
    }
}

/// True if the administrator lets shared memory that asks for them have transparent huge pages.
pub(crate) fn has_transparent_huge_pages() -> bool {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    setting.is_ok_and(|text| !text.contains("[never]") && !text.contains("[deny]"))
}

/// Gives a new, empty file its length; no page is touched yet.
pub(crate) fn set_length(fd: BorrowedFd<'_>, len: u64) -> Result<(), Error> {
    // Beyond this limit the kernel sends a signal that ends the process.
    let is_possible = getrlimit(Resource::Fsize).current.is_none_or(|most| len <= most);
    let made = if is_possible { ftruncate(fd, len) } else { Err(Errno::FBIG) };
    made.map_err(|errno| Error::os(format_args!("making room for {len} bytes"), errno))
}

/// Makes every page of a new file be there, so that a full file system is an error now and not a SIGBUS
/// later.
pub(crate) fn allocate(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<(), Error> {
    let len = range.end - range.start;
    // Not by trying: that would fill the file system for a moment, for all who use it.
    if free_bytes(fd).is_some_and(|free| free < len) {
        return Err(no_room(fd, len, Errno::NOSPC));
    }
    let mut done = range.start;
    // In pieces, so that a signal (which undoes the piece) can not undo everything again and again.
    let mut piece = 64 << 20;
    while done < range.end {
        let bytes = piece.min(range.end - done);
        match fallocate(fd, FallocateFlags::empty(), done, bytes) {
            Ok(()) => done += bytes,
            Err(Errno::INTR) => piece = (piece / 2).max(HUGE_PAGE),
            Err(Errno::NOTSUP | Errno::NOSYS) => return write_zeros(fd, done..range.end),
            Err(errno) => return Err(no_room(fd, len, errno)),
        }
    }
    Ok(())
}

/// For file systems without `fallocate`.
fn write_zeros(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<(), Error> {
    let len = range.end - range.start;
    let mut done = range.start;
    let zeros = vec![0_u8; 1 << 20];
    while done < range.end {
        let piece = &zeros[..zeros.len().min(usize::try_from(range.end - done).unwrap_or(usize::MAX))];
        match rustix::io::pwrite(fd, piece, done) {
            Ok(0) => return Err(no_room(fd, len, Errno::NOSPC)),
            Ok(written) => done += written as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(no_room(fd, len, errno)),
        }
    }
    Ok(())
}

/// Gives pages back: what was in them is zero afterwards, if anybody looks.
pub(crate) fn punch_out(fd: BorrowedFd<'_>, range: Range<u64>) -> Result<(), Error> {
    let len = range.end - range.start;
    loop {
        match fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, range.start, len) {
            Err(Errno::INTR) => {}
            done => return done.map_err(|errno| Error::os(format_args!("giving {len} bytes back"), errno)),
        }
    }
}

/// What the file system has left; `None` if it has no size of its own, as that of memory files.
fn free_bytes(fd: BorrowedFd<'_>) -> Option<u64> {
    let fs = fstatvfs(fd).ok().filter(|fs| fs.f_blocks > 0)?;
    Some(fs.f_bavail.saturating_mul(fs.f_frsize))
}

fn no_room(fd: BorrowedFd<'_>, len: u64, errno: Errno) -> Error {
    match free_bytes(fd) {
        Some(free) => {
            Error::os(format_args!("making room for {len} bytes (the file system has {free} left)"), errno)
        }
        None => Error::os(format_args!("making room for {len} bytes"), errno),
    }
}

/// Seals the length; with `future_write` also against new writers, who then can attach for reading only.
pub(crate) fn seal(fd: BorrowedFd<'_>, future_write: bool) -> Result<(), Error> {
    let more = if future_write { SealFlags::FUTURE_WRITE } else { SealFlags::empty() };
    fcntl_add_seals(fd, SEALS | more).map_err(|errno| Error::os("sealing the memory file", errno))
}

/// What the kernel says about a file that may be a segment.
#[derive(Debug)]
pub(crate) struct Look {
    pub stat: Stat,
    pub len: u64,
    /// The page size of the file system if it is larger than the machine's.
    pub align: usize,
    /// Open for writing, and not sealed against new writers.
    pub writable: bool,
    /// Nobody can cut it.
    pub sealed: bool,
}

impl Look {
    /// Looks before anything is mapped. A file that can not be a segment is an error.
    pub(crate) fn at(fd: BorrowedFd<'_>) -> Result<Self, Error> {
        let failed = |errno| Error::os("looking at the file", errno);
        let stat = fstat(fd).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(
                ErrorKind::NotOurs,
                "this is no file but something else; move it away or use another name",
            ));
        }
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        if len < PAGE as u64 {
            let mut start = [0; 8];
            let got = rustix::io::pread(fd, &mut start, 0).unwrap_or(0);
            return Err(too_short(&start[..got], len));
        }
        let seals = fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
        let access = fcntl_getfl(fd).map_err(failed)? & OFlags::RWMODE;
        let filesystem = fstatfs(fd).map_err(failed)?;
        let huge = filesystem.f_type as u64 == HUGETLBFS;
        Ok(Self {
            stat,
            len,
            align: if huge { usize::try_from(filesystem.f_bsize).unwrap_or(PAGE) } else { PAGE },
            writable: access == OFlags::RDWR && !seals.intersects(SealFlags::FUTURE_WRITE | SealFlags::WRITE),
            sealed: seals.contains(SEALS),
        })
    }

    /// True if it is a memory file, of whatever page size.
    pub(crate) fn is_memory_file(&self) -> Result<bool, Error> {
        // All of them live on one file system that is mounted nowhere (one more for each huge page size).
        let probe = fstat(memory_file()?).map_err(|errno| Error::os("looking at a memory file", errno))?;
        Ok(self.align > PAGE || probe.st_dev == self.stat.st_dev)
    }
}

/// True if the file's pages are memory: then they count against the machine's.
pub(crate) fn is_in_memory(fd: BorrowedFd<'_>) -> bool {
    fstatfs(fd).is_ok_and(|fs| [TMPFS, RAMFS].contains(&(fs.f_type as u64)))
}

/// A second open file description of the same file, for a lock of its own.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(proc_path(fd), flags, rustix::fs::Mode::empty())
        .map_err(|errno| Error::os("opening the segment once more through /proc/self/fd", errno))
}

/// Where /proc shows an open file.
pub(crate) fn proc_path(fd: impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}
