//! Names: where they stand, and how a segment gets one and loses it.
//!
//! Names of a user stand in one directory, `/dev/shm/crossproc-UID`, which is that user's and closed to
//! others' writing: nobody else can squat a name in it. A segment is built without a name (`O_TMPFILE`) and
//! gets it by one `linkat` when it is complete, so that no one ever opens half of one, and a creator killed
//! before leaves nothing.
//!
//! Publishing, attaching by name, last close and replacing a dead segment each happen under an exclusive
//! `flock` of the directory. The kernel drops it when its holder dies, and each step under it is one system
//! call: whatever the next holder finds is a state that this file explains:
//!
//! ```text
//!  no directory              nobody has a name here
//!  an empty directory        its last user was killed before it removed it; kept by the next
//!  NAME                      a complete segment. If no participant lives and its policy is not `Never`, it is
//!                            dead: removed or replaced by whoever comes first
//!  .crossproc-new-PID-RANDOM being built, on a file system without O_TMPFILE. Its builder holds its `flock`, so
//!                            one that can be locked is a dead builder's, removed by the next who builds here
//! ```
//!
//! The directory goes with its last name. Whoever waited for its lock then finds that the path leads
//! elsewhere, and starts over.
//!
//! File segments use the same steps in the directory of their path, which is neither made nor removed nor
//! examined.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fchmod, fstat, linkat, openat, statat,
    unlinkat,
};
use rustix::io::Errno;

use crate::backing::proc_path;
use crate::error::{Error, ErrorKind};
use crate::lock::FileLock;

/// Where the directories of all users stand.
pub(crate) const BASE: &str = "/dev/shm";
/// What begins with a dot is never a segment's name.
const BUILDING: &str = ".crossproc-new-";
const NAME_MAX: usize = 200;

/// Refuses what can not be a segment's or an object's name.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let wrong = match name.as_bytes() {
        [] => "it is empty",
        bytes if bytes.len() > NAME_MAX => "it is longer than 200 bytes",
        [b'.', ..] => "it begins with a dot",
        bytes if bytes.contains(&b'/') => "it has a `/` in it",
        bytes if bytes.contains(&0) => "it has a NUL byte in it",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::InvalidName, format!("{name:?} can not be a name: {wrong}")))
}

/// A directory in which segments have names.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// The user whose directory of names it is; `None`: any directory, in which a file segment lies.
    owner: Option<u32>,
}

/// A [`Folder`] under its lock, which is held until this is dropped.
#[derive(Debug)]
pub(crate) struct LockedFolder<'a> {
    folder: &'a Folder,
    lock: FileLock,
}

/// A file without a name, or with one that nobody looks for, in which a segment is built.
#[derive(Debug)]
pub(crate) struct Unnamed {
    pub fd: OwnedFd,
    /// Where the file system has no unnamed files.
    pub temporary: Option<Temporary>,
}

/// A name that nobody looks for; removed when this is dropped, unless it was published.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    published: bool,
    /// Held while we build: says that we live.
    _lock: FileLock,
}

impl Folder {
    /// The directory of a user's names under `base`.
    pub(crate) fn of_user(base: &Path, uid: u32) -> Self {
        Self { path: base.join(format!("crossproc-{uid}")), owner: Some(uid) }
    }

    /// The directory and the last part of a file's path.
    pub(crate) fn of_file(path: &Path) -> Result<(Self, OsString), Error> {
        let (Some(parent), Some(leaf)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(
                ErrorKind::InvalidName,
                format!("{} is no path of a file", path.display()),
            ));
        };
        let path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        // A later change of the working directory must not lead the last close astray.
        let path = std::path::absolute(path).map_err(|e| Error::io("reading the working directory", e))?;
        Ok((Self { path, owner: None }, leaf.to_os_string()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the lock. With `create`, a user's directory is made if it is not there, and `share` opens it
    /// for others to look into.
    pub(crate) fn lock(&self, create: bool, share: bool, until: Instant) -> Result<LockedFolder<'_>, Error> {
        let what = self.path.display().to_string();
        loop {
            let fd = match self.open() {
                Err(Errno::NOENT) if create && self.owner.is_some() => {
                    match rustix::fs::mkdir(&self.path, Mode::RWXU) {
                        Err(errno) if errno != Errno::EXIST => {
                            return Err(Error::os(format_args!("making the directory {what}"), errno));
                        }
                        _ => self.not_for_ever(until)?,
                    }
                    continue;
                }
                opened => opened.map_err(|errno| match errno {
                    Errno::NOTDIR | Errno::LOOP => {
                        Error::new(ErrorKind::NotOurs, format!("{what} is no directory; move it away"))
                    }
                    _ => Error::os(format_args!("opening the directory {what}"), errno),
                })?,
            };
            if let Some(owner) = self.owner {
                self.examine(fd.as_fd(), owner, create && share)?;
            }
            let lock = FileLock::take(fd, until, &what)?;
            if self.leads_to(lock.as_fd()) {
                return Ok(LockedFolder { folder: self, lock });
            }
            // Removed while we waited, by its last user.
            self.not_for_ever(until)?;
        }
    }

    fn not_for_ever(&self, until: Instant) -> Result<(), Error> {
        if Instant::now() < until {
            return Ok(());
        }
        let what = self.path.display();
        Err(Error::new(
            ErrorKind::Busy,
            format!("{what} was made and removed again and again; raise the timeout"),
        ))
    }

    fn open(&self) -> rustix::io::Result<OwnedFd> {
        let nofollow = if self.owner.is_some() { OFlags::NOFOLLOW } else { OFlags::empty() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | nofollow;
        rustix::fs::open(&self.path, flags, Mode::empty())
    }

    /// A user's directory of names must be that user's, and only that user may write in it.
    fn examine(&self, fd: BorrowedFd<'_>, owner: u32, share: bool) -> Result<(), Error> {
        let what = self.path.display();
        let stat = fstat(fd).map_err(|errno| Error::os(format_args!("looking at {what}"), errno))?;
        if stat.st_uid != owner {
            return Err(Error::new(
                ErrorKind::WrongOwner,
                format!(
                    "{what} belongs to uid {}, not to uid {owner}: somebody squats it; have it removed",
                    stat.st_uid
                ),
            ));
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        if mode.intersects(Mode::WGRP | Mode::WOTH) {
            return Err(Error::new(
                ErrorKind::WrongMode,
                format!("{what} has mode {:o}, others may write in it; `chmod go-w` it", mode.as_raw_mode()),
            ));
        }
        // Also after a umask that took away more than it should.
        let open = Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        let wanted = mode | Mode::RWXU | if share { open } else { Mode::empty() };
        if wanted != mode && owner == rustix::process::geteuid().as_raw() {
            fchmod(fd, wanted)
                .map_err(|errno| Error::os(format_args!("setting the mode of {what}"), errno))?;
        }
        Ok(())
    }

    fn leads_to(&self, fd: BorrowedFd<'_>) -> bool {
        let (Ok(here), Ok(there)) = (fstat(fd), rustix::fs::stat(&self.path)) else { return false };
        same_inode(&here, &there)
    }
}

impl LockedFolder<'_> {
    /// Opens what has the name. Never waits, whatever it is, and follows no link.
    pub(crate) fn open(&self, leaf: &OsStr, writable: bool) -> Result<OwnedFd, Error> {
        let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        openat(&self.lock, leaf, flags, Mode::empty()).map_err(|errno| {
            Error::os(format_args!("opening {}", self.folder.path.join(leaf).display()), errno)
        })
    }

    /// A file to build a segment in. Dropping it leaves nothing.
    pub(crate) fn unnamed(&self, mode: Mode) -> Result<Unnamed, Error> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let unnamed = match openat(&self.lock, ".", flags, mode) {
            Ok(fd) => Unnamed { fd, temporary: None },
            Err(Errno::NOTSUP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => self.temporary(mode)?,
            Err(errno) => return Err(self.failed("making a file", errno)),
        };
        // The umask has no say in it.
        fchmod(&unnamed.fd, mode).map_err(|errno| self.failed("setting the mode of a file", errno))?;
        Ok(unnamed)
    }

    /// As [`unnamed`](Self::unnamed), for file systems that have no unnamed files.
    fn temporary(&self, mode: Mode) -> Result<Unnamed, Error> {
        self.remove_abandoned();
        let mut random = [0_u8; 8];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let leaf = format!("{BUILDING}{}-{:016x}", std::process::id(), u64::from_ne_bytes(random));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd =
            openat(&self.lock, &leaf, flags, mode).map_err(|errno| self.failed("making a file", errno))?;
        // Locked while we hold the directory's lock: `remove_abandoned` can not come in between.
        let own =
            openat(&self.lock, &leaf, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|errno| self.failed("opening a new file", errno))?;
        let lock = FileLock::try_take(own, "a new file")?;
        let lock = lock.ok_or_else(|| {
            Error::new(ErrorKind::Busy, format!("somebody else locks {leaf}, which we just made"))
        })?;
        let temporary = Temporary { path: self.folder.path.join(leaf), published: false, _lock: lock };
        Ok(Unnamed { fd, temporary: Some(temporary) })
    }

    /// Removes files of builders that were killed.
    fn remove_abandoned(&self) {
        for leaf in self.leaves(|leaf| leaf.starts_with(BUILDING.as_bytes())).unwrap_or_default() {
            let Ok(fd) = self.open(&leaf, false) else { continue };
            if let Ok(Some(_dead)) = FileLock::try_take(fd, "a new file") {
                let _ = unlinkat(&self.lock, &leaf, AtFlags::empty());
            }
        }
    }

    /// Gives the file its name, in one step. `false`: the name is taken.
    pub(crate) fn publish(
        &self,
        fd: BorrowedFd<'_>,
        temporary: Option<&mut Temporary>,
        leaf: &OsStr,
    ) -> Result<bool, Error> {
        let result = match temporary {
            None => linkat(CWD, proc_path(fd), &self.lock, leaf, AtFlags::SYMLINK_FOLLOW),
            Some(temporary) => {
                let from = temporary.path.file_name().unwrap_or_default();
                // Not a plain rename: that would replace a living segment.
                let renamed =
                    rustix::fs::renameat_with(&self.lock, from, &self.lock, leaf, RenameFlags::NOREPLACE);
                temporary.published = renamed.is_ok();
                renamed
            }
        };
        match result {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.failed("giving a file its name", errno)),
        }
    }

    /// True if the name leads to this very file.
    pub(crate) fn leads_to(&self, leaf: &OsStr, file: &Stat) -> bool {
        statat(&self.lock, leaf, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|there| same_inode(&there, file))
    }

    pub(crate) fn unlink(&self, leaf: &OsStr) -> Result<(), Error> {
        unlinkat(&self.lock, leaf, AtFlags::empty()).map_err(|errno| {
            Error::os(format_args!("removing {}", self.folder.path.join(leaf).display()), errno)
        })
    }

    /// The names in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, Error> {
        let leaves = self.leaves(|leaf| !leaf.starts_with(b"."))?;
        let mut names: Vec<_> = leaves.into_iter().filter_map(|leaf| leaf.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    fn leaves(&self, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<OsString>, Error> {
        let failed = |errno| self.failed("listing the names", errno);
        let mut leaves = Vec::new();
        for entry in Dir::read_from(&self.lock).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let leaf = entry.file_name().to_bytes();
            if wanted(leaf) && matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
                leaves.push(OsStr::from_bytes(leaf).to_os_string());
            }
        }
        Ok(leaves)
    }

    /// Removes a user's directory if no name is left in it. A directory that is not empty stays.
    pub(crate) fn remove_if_empty(self) {
        // Under the lock, and `leads_to` held when it was taken: the path still leads to this directory.
        if self.folder.owner.is_some() {
            let _ = rustix::fs::rmdir(&self.folder.path);
        }
    }

    fn failed(&self, doing: &str, errno: Errno) -> Error {
        Error::os(format_args!("{doing} in {}", self.folder.path.display()), errno)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

pub(crate) fn same_inode(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("crossproc-names-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the test");
        path
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn names_that_can_not_be_are_refused() {
        let long = "x".repeat(201);
        for name in ["", ".", "..", ".hidden", "a/b", "/", "nul\0", &long] {
            assert_eq!(check_name(name).unwrap_err().kind(), ErrorKind::InvalidName, "{name:?}");
        }
        for name in ["a", "a.b", "Größe 3", &long[1..]] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn without_unnamed_files_a_temporary_name_does() {
        let base = scratch("temporary");
        let folder = Folder::of_user(&base, rustix::process::geteuid().as_raw());
        let mode = Mode::RUSR | Mode::WUSR;
        let locked = folder.lock(true, false, soon()).expect("a fresh directory");
        let count = || std::fs::read_dir(folder.path()).expect("it is there").count();

        // A builder that lives keeps its file, one that was killed does not.
        let alive = locked.temporary(mode).expect("a file");
        let dead = locked.temporary(mode).expect("a file");
        let dead_temporary = dead.temporary.expect("its name");
        let unlocked = dead_temporary._lock.as_fd().try_clone_to_owned().expect("a descriptor");
        rustix::fs::flock(&unlocked, rustix::fs::FlockOperation::Unlock)
            .expect("as the kernel does at death");
        std::mem::forget(dead_temporary);
        assert_eq!(count(), 2);
        let mut third = locked.temporary(mode).expect("a file");
        assert_eq!(count(), 2, "the dead one's was removed, the living one's was not");
        drop(alive);
        assert_eq!(count(), 1);

        assert!(
            locked.publish(third.fd.as_fd(), third.temporary.as_mut(), OsStr::new("x")).expect("renamed")
        );
        drop(third);
        assert_eq!(locked.names().expect("a list"), ["x"]);
        let mut fourth = locked.temporary(mode).expect("a file");
        let taken = locked.publish(fourth.fd.as_fd(), fourth.temporary.as_mut(), OsStr::new("x"));
        assert!(!taken.expect("an answer"), "a living segment is not replaced");
        drop(fourth);
        assert_eq!(count(), 1);
        locked.unlink(OsStr::new("x")).expect("removed");
        locked.remove_if_empty();
        assert!(!folder.path().exists());
        std::fs::remove_dir(&base).expect("nothing is left");
    }

    #[test]
    fn who_waits_for_a_directory_that_is_removed_starts_over() {
        let base = scratch("removed");
        let folder = Folder::of_user(&base, rustix::process::geteuid().as_raw());
        let first = folder.lock(true, false, soon()).expect("a fresh directory");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let locked = folder.lock(true, false, soon()).expect("a new one");
                assert!(folder.leads_to(locked.lock.as_fd()));
                locked.remove_if_empty();
            });
            std::thread::sleep(Duration::from_millis(50));
            first.remove_if_empty();
            waiter.join().expect("it got one");
        });
        assert_eq!(folder.lock(false, false, soon()).unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::remove_dir(&base).expect("nothing is left");
    }

    #[test]
    fn a_lock_that_is_held_too_long_is_an_error() {
        let base = scratch("busy");
        let folder = Folder::of_user(&base, rustix::process::geteuid().as_raw());
        let held = folder.lock(true, false, soon()).expect("a fresh directory");
        let until = Instant::now() + Duration::from_millis(30);
        assert_eq!(folder.lock(true, false, until).unwrap_err().kind(), ErrorKind::Busy);
        held.remove_if_empty();
        std::fs::remove_dir(&base).expect("nothing is left");
    }
}
