//! The steps from a name, a path or a descriptor to a segment that this process is attached to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crossproc_atomic::{AtomicU64, Ordering, process_stamp};
use rustix::fs::{Gid, Mode, Stat, fchmod, fchown};

use crate::backing::{self, HUGE_PAGE, Look, proc_path};
use crate::directory::Directory;
use crate::error::{Error, ErrorKind};
use crate::header::{Backing, Facts, Geometry, Header, Machine, Unlink};
use crate::lock::deadline;
use crate::map::{Mapping, PAGE};
use crate::memory;
use crate::names::{BASE, Folder, LockedFolder, check_name};
use crate::options::{Granted, Numa, SegmentOptions};
use crate::participant::{Participants, count_living};
use crate::registry::{self, Key};
use crate::segment::{Core, Link, Segment};

/// A name, and where it stands.
pub(crate) struct Place {
    pub link: Link,
    backing: Backing,
    /// The user whose segment it must be.
    owner: Option<u32>,
    label: String,
}

/// A file that was opened, mapped and found to be a segment, before anybody attaches to it.
struct Found {
    fd: OwnedFd,
    key: Key,
    mapping: Arc<Mapping>,
    facts: Facts,
    /// From before the last boot: its table of participants means nothing.
    clean_boot: bool,
}

impl SegmentOptions {
    pub(crate) fn folder(&self) -> Folder {
        let base = self.directory.as_deref().unwrap_or(Path::new(BASE));
        Folder::of_user(base, self.owner.unwrap_or_else(|| rustix::process::geteuid().as_raw()))
    }

    pub(crate) fn at_name<R>(
        &self,
        name: &str,
        doing: &str,
        act: impl FnOnce(&Place) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let label = format!("segment {name:?}");
        let act = || {
            check_name(name)?;
            let folder = self.folder();
            let owner = Some(self.owner.unwrap_or_else(|| rustix::process::geteuid().as_raw()));
            let link = Link { folder, leaf: name.into() };
            act(&Place { link, backing: Backing::Named, owner, label: label.clone() })
        };
        act().map_err(|e| e.during(format_args!("{doing} {label}")))
    }

    pub(crate) fn at_path<R>(
        &self,
        path: &Path,
        doing: &str,
        act: impl FnOnce(&Place) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let label = format!("segment file {}", path.display());
        let act = || {
            let (folder, leaf) = Folder::of_file(path)?;
            let link = Link { folder, leaf };
            act(&Place { link, backing: Backing::File, owner: self.owner, label: label.clone() })
        };
        act().map_err(|e| e.during(format_args!("{doing} {label}")))
    }

    pub(crate) fn until(&self) -> Instant {
        deadline(self.timeout)
    }

    pub(crate) fn make_anonymous(&self, len: usize) -> Result<Segment, Error> {
        self.check_creation(len)?;
        let core = match if self.huge_pages { self.of_huge_pages(len)? } else { None } {
            Some(core) => core,
            None => {
                let geometry = self.geometry(len, PAGE as u64)?;
                let fd = backing::memory_file()?;
                self.build(fd, geometry, Backing::Anonymous, "an anonymous segment".into())?
            }
        };
        if let Some(fd) = &core.fd {
            backing::seal(fd.as_fd(), self.single_writer)?;
        }
        registry::find_or_make(core.key, || Ok(core)).map(Segment)
    }

    pub(crate) fn join_received(&self, fd: OwnedFd) -> Result<Segment, Error> {
        let found = self.find(fd, None)?;
        if found.clean_boot {
            let sentence = "the file is from before the last boot; open it by its path first";
            return Err(Error::new(ErrorKind::WrongBoot, sentence));
        }
        let link = Link::of(&found);
        self.join(found, "a segment received as a descriptor".into(), link).map(Segment)
    }

    pub(crate) fn remove_at(&self, place: &Place) -> Result<(), Error> {
        let locked = place.link.folder.lock(false, false, self.until()).map_err(|e| self.nobody(place, e))?;
        locked.unlink(&place.link.leaf).map_err(|e| self.nobody(place, e))?;
        locked.remove_if_empty();
        Ok(())
    }

    pub(crate) fn open_at(&self, place: &Place) -> Result<Segment, Error> {
        let locked = place.link.folder.lock(false, false, self.until()).map_err(|e| self.nobody(place, e))?;
        let found = self.find(
            locked.open(&place.link.leaf, !self.read_only).map_err(|e| self.nobody(place, e))?,
            Some(place),
        )?;
        if found.is_dead()? {
            // Not ours to remove if it is another user's; then it is not there all the same.
            let _ = locked.unlink(&place.link.leaf);
            locked.remove_if_empty();
            return Err(Error::new(
                ErrorKind::NotFound,
                "all its users are gone, so its remains were removed; create it first",
            ));
        }
        let link = Some(place.link.clone());
        self.join(found, place.label.clone(), link).map(Segment)
    }

    fn nobody(&self, place: &Place, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound {
            return error;
        }
        let sentence = match place.owner {
            Some(uid) if place.backing == Backing::Named => {
                format!("uid {uid} has none of this name; create it first, or check name and user")
            }
            _ => "there is no such file; create it first, or check the path".into(),
        };
        Error::new(ErrorKind::NotFound, sentence)
    }

    pub(crate) fn create_at(&self, place: &Place, len: usize, or_open: bool) -> Result<Segment, Error> {
        let made = self.try_create_at(place, len, or_open);
        if made.as_ref().is_err_and(|e| !matches!(e.kind(), ErrorKind::Exists | ErrorKind::Busy)) {
            // A directory that was made for it must not stay.
            if let Ok(locked) = place.link.folder.lock(false, false, self.until()) {
                locked.remove_if_empty();
            }
        }
        let segment = made?;
        if segment.capacity() < len || (segment.windows() as u64) < self.windows {
            return Err(Error::new(
                ErrorKind::TooSmall,
                format!(
                    "there is one with room for {} bytes and {} of windows, {len} and {} are asked; use another name",
                    segment.capacity(),
                    segment.windows(),
                    self.windows
                ),
            ));
        }
        Ok(segment)
    }

    /// Builds without holding the lock, since that can take a while; looks under the lock before and after.
    fn try_create_at(&self, place: &Place, len: usize, or_open: bool) -> Result<Segment, Error> {
        self.check_creation(len)?;
        if place.backing == Backing::Named && place.owner != Some(rustix::process::geteuid().as_raw()) {
            return Err(Error::new(
                ErrorKind::Denied,
                "names are created under one's own user id; leave out `owner`",
            ));
        }
        let geometry = self.geometry(len, PAGE as u64)?;
        let Link { folder, leaf } = &place.link;
        let share = self.mode & 0o077 != 0;

        let locked = folder.lock(true, share, self.until())?;
        if let Some(found) = self.occupant(&locked, place)? {
            return self.taken(found, place, or_open).map(Segment);
        }
        let mut unnamed = locked.unnamed(Mode::from_raw_mode(self.mode))?;
        drop(locked);

        if let Some(gid) = self.group {
            fchown(&unnamed.fd, None, Some(Gid::from_raw(gid)))
                .and_then(|()| fchmod(&unnamed.fd, Mode::from_raw_mode(self.mode)))
                .map_err(|errno| Error::os(format_args!("giving it to group {gid}"), errno))?;
        }
        let mut core = self.build(unnamed.fd, geometry, place.backing, place.label.clone())?;

        let locked = folder.lock(true, share, self.until())?;
        loop {
            let Some(fd) = &core.fd else {
                return Err(Error::new(ErrorKind::Os, "a segment of a file without one"));
            };
            if locked.publish(fd.as_fd(), unnamed.temporary.as_mut(), leaf)? {
                core.link = Some(place.link.clone());
                // /proc tells the name of what was opened by name: who is sent this descriptor can find the
                // name through it. Without, such a one could not remove it if it were the last.
                if let Ok(named) = locked.open(leaf, true) {
                    core.fd = Some(named);
                }
                return registry::find_or_make(core.key, || Ok(core)).map(Segment);
            }
            // Each round removes what was there; with the lock nobody of ours puts something new.
            if let Some(found) = self.occupant(&locked, place)? {
                return self.taken(found, place, or_open).map(Segment);
            }
        }
    }

    /// What has the name, if it is alive. What is dead is removed.
    fn occupant(&self, locked: &LockedFolder<'_>, place: &Place) -> Result<Option<Found>, Error> {
        let fd = match locked.open(&place.link.leaf, true) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let found = self.find(fd, Some(place))?;
        if found.is_dead()? {
            locked.unlink(&place.link.leaf)?;
            return Ok(None);
        }
        Ok(Some(found))
    }

    fn taken(&self, found: Found, place: &Place, or_open: bool) -> Result<Arc<Core>, Error> {
        if or_open {
            return self.join(found, place.label.clone(), Some(place.link.clone()));
        }
        Err(Error::new(
            ErrorKind::Exists,
            format!(
                "the name is taken by a segment of pid {} that is in use; open it, or choose another name",
                found.facts.creator
            ),
        ))
    }

    fn check_creation(&self, len: usize) -> Result<(), Error> {
        if len == 0 {
            return Err(Error::new(ErrorKind::InvalidLength, "its length is 0; ask for at least one byte"));
        }
        if self.mode & !0o777 != 0 || self.mode & 0o600 != 0o600 {
            let sentence = format!(
                "mode {:o}: the owner must be allowed to read and write, and 777 is the most",
                self.mode
            );
            return Err(Error::new(ErrorKind::WrongMode, sentence));
        }
        if self.read_only {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "what is created must be written; leave out `read_only`",
            ));
        }
        Ok(())
    }

    fn geometry(&self, len: usize, granule: u64) -> Result<Geometry, Error> {
        Geometry::for_objects(self.participants, self.objects, len as u64, self.windows, granule)
    }

    /// An anonymous segment of the huge pages that were set aside; `None` if there are none left.
    fn of_huge_pages(&self, len: usize) -> Result<Option<Core>, Error> {
        let geometry = self.geometry(len, HUGE_PAGE)?;
        let Some(fd) = backing::memory_file_of_huge_pages()? else { return Ok(None) };
        match self.build(fd, geometry, Backing::Anonymous, "an anonymous segment of huge pages".into()) {
            Err(e) if matches!(e.kind(), ErrorKind::NoMemory | ErrorKind::NoSpace | ErrorKind::Os) => {
                Ok(None)
            }
            built => built.map(Some),
        }
    }

    /// Makes a whole segment of an empty file and attaches to it. Nobody else can have it yet, in this
    /// process neither.
    fn build(&self, fd: OwnedFd, geometry: Geometry, backing: Backing, label: String) -> Result<Core, Error> {
        let file = fd.as_fd();
        // The windows behind that are there when they are needed.
        let there = geometry.windows_at;
        if backing::is_in_memory(file) {
            memory::require(there)?;
        }
        backing::set_length(file, geometry.total)?;
        let look = Look::at(file)?;
        let mapping = Mapping::of_file(file, geometry.total as usize, self.align(&look), true)?;
        // Before the pages are there: nodes and sizes are chosen when they are made.
        let numa = match self.numa {
            Some(Numa::Node(node)) => node < 64 && mapping.prefer_nodes(1 << node, false),
            Some(Numa::Interleave(nodes)) => mapping.prefer_nodes(nodes, true),
            None => false,
        };
        let huge_pages = self.huge_pages && (look.align > PAGE || ask_for_huge_pages(&mapping));
        let granted = Granted { numa, huge_pages, ..Granted::default() };
        if huge_pages {
            // Through the mapping that asked for them: `fallocate` knows nothing of its wish.
            mapping.populate(there as usize).map_err(|errno| Error::os("mapping huge pages", errno))?;
        }
        backing::allocate(file, 0..there)?;
        let default = if backing == Backing::Named { Unlink::LastClose } else { Unlink::Never };
        let facts = Facts {
            geometry,
            backing,
            unlink: if backing == Backing::Anonymous {
                Unlink::Never
            } else {
                self.unlink.unwrap_or(default)
            },
            mode: self.mode,
            creator: std::process::id(),
            machine: Machine::here()?,
            id: random_id()?,
        };
        mapping.place::<Header>(0)?.write(&facts)?;
        let found = Found { key: Key::of(&look.stat, true), fd, mapping, facts, clean_boot: false };
        self.attach(found, label, None, true, granted)
    }

    /// What the base must be aligned to for huge pages of either sort.
    fn align(&self, look: &Look) -> usize {
        if self.huge_pages { look.align.max(HUGE_PAGE as usize) } else { look.align }
    }

    /// Looks at a file, maps it and reads its header. Trusts nothing.
    fn find(&self, fd: OwnedFd, place: Option<&Place>) -> Result<Found, Error> {
        let look = Look::at(fd.as_fd())?;
        let actual = look.stat.st_mode & 0o777;
        match place {
            Some(Place { owner: Some(owner), .. }) if look.stat.st_uid != *owner => {
                let sentence = format!(
                    "it belongs to uid {}, not to uid {owner}; if that is meant, say `SegmentOptions::owner`",
                    look.stat.st_uid
                );
                return Err(Error::new(ErrorKind::WrongOwner, sentence));
            }
            None if !look.sealed && look.is_memory_file()? => {
                let sentence = "the memory file is not sealed, so its sender could cut it under us; \
                                send one that was made by crossproc, or seal it (SHRINK, GROW, SEAL)";
                return Err(Error::new(ErrorKind::NotSealed, sentence));
            }
            _ => {}
        }
        let writable = look.writable && !self.read_only;
        let mapping = Mapping::of_file(fd.as_fd(), look.len as usize, self.align(&look), writable)?;
        let facts = mapping.place_for_reading::<Header>(0)?.read(look.len)?;
        let named = place.is_some_and(|place| place.backing == Backing::Named);
        if named && facts.mode != actual {
            let sentence = format!(
                "its mode is {actual:o}, but its creator gave it {:o}: somebody changed it; \
                 change it back, or remove it and create it again",
                facts.mode
            );
            return Err(Error::new(ErrorKind::WrongMode, sentence));
        }
        let key = Key::of(&look.stat, writable);
        let clean_boot = match facts.check_machine(Machine::here()?) {
            // A name that is left from another boot is left from users that are gone.
            Err(e) if named && e.kind() == ErrorKind::WrongBoot && facts.unlink != Unlink::Never => true,
            checked => checked?,
        };
        Ok(Found { fd, key, mapping, facts, clean_boot })
    }

    /// Attaches, or finds that this process is attached.
    fn join(&self, found: Found, label: String, link: Option<Link>) -> Result<Arc<Core>, Error> {
        registry::find_or_make(found.key, || self.attach(found, label, link, false, Granted::default()))
    }

    fn attach(
        &self,
        found: Found,
        label: String,
        link: Option<Link>,
        creator: bool,
        mut granted: Granted,
    ) -> Result<Core, Error> {
        let Found { fd, key, mapping, mut facts, clean_boot } = found;
        let header = mapping.place_for_reading::<Header>(0)?;
        let mut participants = None;
        if mapping.is_writable() {
            participants = Some(Participants::attach(&mapping, facts.geometry.participants, clean_boot)?);
            if clean_boot {
                facts.machine = Machine::here()?;
                header.move_to(facts.machine);
            }
        }
        if !creator && self.huge_pages {
            granted.huge_pages = ask_for_huge_pages(&mapping);
        }
        let there = facts.geometry.windows_at as usize;
        if self.prefault {
            match mapping.populate(there) {
                Ok(true) => {}
                Ok(false) => touch(&mapping, there)?,
                Err(errno) => return Err(Error::os("mapping its pages", errno)),
            }
            granted.prefault = true;
        }
        granted.lock_in_memory = self.lock_in_memory && mapping.lock_in_memory(there);
        Ok(Core {
            label,
            directory: Directory::new(&mapping, &facts.geometry)?,
            mapping,
            header,
            facts,
            fd: Some(fd),
            participants,
            stamp: process_stamp(),
            key,
            link,
            creator,
            granted,
            timeout: self.timeout,
        })
    }
}

impl Found {
    /// True if nobody uses it and its policy is not to stay.
    fn is_dead(&self) -> Result<bool, Error> {
        if self.facts.unlink == Unlink::Never || registry::has(self.key) {
            return Ok(false);
        }
        Ok(self.clean_boot || count_living(&self.mapping, self.facts.geometry.participants)? == 0)
    }
}

impl Link {
    /// The name of a segment that came as a descriptor, so that its last user removes it, whoever that is.
    fn of(found: &Found) -> Option<Self> {
        if !matches!(found.facts.backing, Backing::Named | Backing::File) {
            return None;
        }
        let path = std::fs::read_link(proc_path(&found.fd)).ok()?;
        let (file, leaf) = Folder::of_file(&path).ok()?;
        let folder = match (found.facts.backing, path.parent()?.parent()) {
            (Backing::Named, Some(base)) => {
                let uid = file.path().file_name()?.to_str()?.strip_prefix("crossproc-")?.parse().ok()?;
                Folder::of_user(base, uid)
            }
            _ => file,
        };
        Some(Self { folder, leaf })
    }
}

impl Key {
    fn of(stat: &Stat, writable: bool) -> Self {
        Self::File { device: stat.st_dev, inode: stat.st_ino, writable }
    }
}

pub(crate) fn random_id() -> Result<[u64; 2], Error> {
    let mut id = [0_u64; 2];
    let bytes: &mut [u8] = bytemuck::must_cast_slice_mut(&mut id);
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::os("asking the kernel for a random number", errno))?;
    Ok(id)
}

fn ask_for_huge_pages(mapping: &Mapping) -> bool {
    mapping.ask_for_huge_pages() && backing::has_transparent_huge_pages()
}

/// For kernels without MADV_POPULATE: an access to each page of the first `len` bytes.
fn touch(mapping: &Arc<Mapping>, len: usize) -> Result<(), Error> {
    for offset in (0..len as u64).step_by(PAGE) {
        mapping.place_for_reading::<AtomicU64>(offset)?.load(Ordering::Relaxed);
    }
    Ok(())
}
