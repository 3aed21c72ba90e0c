//! The first page of a segment: what it is, whose it is, and where its parts lie.
//!
//! ```text
//!    0  magic            "crossprc"; the first field to be written
//!    8  version          of this layout
//!   12  byte_order       0x01020304 as the creator's machine writes it
//!   16  plan             participant slots (low half) and directory entries (high half)
//!   24  total            length of the whole segment in bytes, windows included
//!   32  participants_at  always 4096
//!   40  directory_at     behind the participants, at a multiple of 512
//!   48  objects_at       behind the directory, at a multiple of 4096; objects fill the rest, up to the windows
//!   56  backing          1 memory file, 2 name under /dev/shm, 3 file, 4 adopted memory
//!   60  unlink           0 never, 1 last close, 2 owner drop
//!   64  mode             permission bits that the creator gave the name
//!   68  creator          its pid, for people
//!   72  boot             id of the boot in which participants live (two words)
//!   88  pid_namespace    inode of the PID namespace in which participants live
//!   96  id               random (two words)
//!  112  state            0, then 1 READY: written last, after it everything above stands
//!  116  (unused)
//!  120  claim            adopted memory only: the participant that is creating an object, or 0
//!  128  touched          end of the highest range that the creation of an object has begun on
//!  136  comings          bumped when a participant has come, left, or is buried: who sleeps among peers looks again
//!  140  arrivals         bumped when a participant has come
//!  144  windows          bytes at the end of the segment whose pages are there only while they are needed; a multiple of 4096
//! ```
//!
//! Who may write what: everything up to `state`, and `windows`, is written by the creator before the segment has a
//! name or its descriptor has left the process. After READY only `boot` and `pid_namespace` of a file change, by the
//! first who attaches after a reboot, under the lock of its directory; `touched` and `claim` change under the
//! lock for creating objects (`directory.rs`), and `comings` and `arrivals` at any time
//! (`participant.rs`). Several processes may adopt one memory at once, so the
//! creator's writes are "set it if it is 0": adopters who want the same write the same, and who wants
//! something else is told.
//!
//! Who believes what: nobody. [`Header::read`] loads each field once into private memory and checks it there;
//! the offsets must be exactly those that follow from `plan` and `total`, `total` must be the length that
//! the kernel reports, and the windows must leave room for the tables.

use std::mem::offset_of;
use std::ops::Range;

use crossproc_atomic::{AtomicU32, AtomicU64, Ordering, shared_struct};

use crate::directory::ENTRY_BYTES;
use crate::error::{Error, ErrorKind};
use crate::helper::helper;
use crate::map::PAGE;
use crate::participant::SLOT_BYTES;
use crate::place::Span;

shared_struct! {
    /// The first bytes of a segment; see the map at the top of the file.
    pub(crate) struct Header: 256 {
        magic: AtomicU64,
        version: AtomicU32,
        byte_order: AtomicU32,
        plan: AtomicU64,
        total: AtomicU64,
        participants_at: AtomicU64,
        directory_at: AtomicU64,
        objects_at: AtomicU64,
        backing: AtomicU32,
        unlink: AtomicU32,
        mode: AtomicU32,
        creator: AtomicU32,
        boot: [AtomicU64; 2],
        pid_namespace: AtomicU64,
        id: [AtomicU64; 2],
        state: AtomicU32,
        unused_word: AtomicU32,
        pub(crate) claim: AtomicU64,
        pub(crate) touched: AtomicU64,
        comings: AtomicU32,
        arrivals: AtomicU32,
        windows: AtomicU64,
        unused: [AtomicU64; 13],
    }
}

const _: () = assert!(offset_of!(Header, boot) == 72 && offset_of!(Header, state) == 112);
const _: () = assert!(offset_of!(Header, claim) == 120 && offset_of!(Header, touched) == 128);
const _: () = assert!(offset_of!(Header, windows) == 144);

/// Where these words stand in every segment.
pub(crate) const COMINGS_AT: u64 = offset_of!(Header, comings) as u64;
pub(crate) const ARRIVALS_AT: u64 = offset_of!(Header, arrivals) as u64;

/// As bytes in memory, so that it reads the same in either byte order.
pub(crate) const MAGIC: u64 = u64::from_ne_bytes(*b"crossprc");
const VERSION: u32 = 1;
const BYTE_ORDER: u32 = 0x0102_0304;
const READY: u32 = 1;
/// What a slot number of 16 bits can name.
pub(crate) const MAX_PARTICIPANTS: u32 = 65_535;
pub(crate) const MAX_OBJECTS: u32 = 65_536;

/// When the name of a segment goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unlink {
    /// Never by itself; [`Segment::unlink`](crate::Segment::unlink) removes it. The default of files.
    Never,
    /// With the last process that detaches. If all were killed the name is left, but the next create or open
    /// takes it for what it is and removes it. The default of names.
    LastClose,
    /// When the creator drops its last handle; whoever is attached goes on. Of a killed creator's segment the
    /// name goes as with [`LastClose`](Unlink::LastClose).
    OwnerDrop,
}

/// What kind of memory a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Anonymous,
    Named,
    File,
    Adopted,
}

/// Where the parts of a segment are: follows from four numbers, computed in one place, kept privately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub participants: Span,
    pub directory: Span,
    /// Start of the area for objects, which ends where the windows begin.
    pub objects_at: u64,
    /// Start of the windows, which end with the segment.
    pub windows_at: u64,
    pub total: u64,
}

/// A private copy of what a header says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub geometry: Geometry,
    pub backing: Backing,
    pub unlink: Unlink,
    pub mode: u32,
    pub creator: u32,
    pub machine: Machine,
    pub id: [u64; 2],
}

/// Where process ids mean something: one boot of one kernel, one PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub boot: [u64; 2],
    pub pid_namespace: u64,
}

impl Geometry {
    /// A segment with so many slots and entries, room for `bytes` of objects and `windows`, both parts multiples of
    /// `granule`.
    pub(crate) fn for_objects(
        participants: u32,
        objects: u32,
        bytes: u64,
        windows: u64,
        granule: u64,
    ) -> Result<Self, Error> {
        let minimal = Self::with_total(participants, objects, u64::MAX / PAGE as u64 * PAGE as u64, 0)?;
        let windows_at =
            minimal.objects_at.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(granule));
        let total = windows_at
            .zip(windows.checked_next_multiple_of(granule))
            .and_then(|(at, windows)| at.checked_add(windows));
        // A file's length is signed, and so is the largest distance between two bytes that a process can
        // reach.
        let total =
            total.filter(|&t| i64::try_from(t).is_ok() && isize::try_from(t).is_ok()).ok_or_else(|| {
                Error::new(
                    ErrorKind::TooLarge,
                    format!("{bytes} bytes and {windows} of windows are more than a file or an address space can hold"),
                )
            })?;
        Ok(Self { windows_at: windows_at.unwrap_or(total), total, ..minimal })
    }

    /// A segment of `total` bytes, of which `windows` are that, with so many slots and entries.
    pub(crate) fn with_total(
        participants: u32,
        objects: u32,
        total: u64,
        windows: u64,
    ) -> Result<Self, Error> {
        if participants == 0 || participants > MAX_PARTICIPANTS || objects == 0 || objects > MAX_OBJECTS {
            return Err(Error::new(
                ErrorKind::InvalidLength,
                format!(
                    "{participants} participants and {objects} objects: \
                     there must be 1 to {MAX_PARTICIPANTS} and 1 to {MAX_OBJECTS}"
                ),
            ));
        }
        // At most 64 MiB in all: none of this can overflow.
        let participants = Span { offset: PAGE as u64, count: u64::from(participants) };
        let directory_at = (participants.offset + participants.count * SLOT_BYTES as u64)
            .next_multiple_of(ENTRY_BYTES as u64);
        let directory = Span { offset: directory_at, count: u64::from(objects) };
        let objects_at = (directory_at + directory.count * ENTRY_BYTES as u64).next_multiple_of(PAGE as u64);
        let windows_at = total.checked_sub(windows).filter(|&at| at >= objects_at && at % PAGE as u64 == 0);
        let Some(windows_at) = windows_at.filter(|_| total % PAGE as u64 == 0) else {
            return Err(Error::new(
                ErrorKind::InvalidLength,
                format!(
                    "{total} bytes with {windows} of windows: the segment's own tables take {objects_at}, and both \
                     lengths count in {PAGE}"
                ),
            ));
        };
        Ok(Self { participants, directory, objects_at, windows_at, total })
    }

    /// The area in which objects lie.
    pub(crate) fn objects(&self) -> Range<u64> {
        self.objects_at..self.windows_at
    }

    /// Where the windows of objects lie.
    pub(crate) fn windows(&self) -> Range<u64> {
        self.windows_at..self.total
    }

    fn plan(&self) -> u64 {
        self.participants.count | self.directory.count << 32
    }
}

impl Header {
    /// Writes `facts` into memory that was all zero, READY last. Where another adopter of the same memory was
    /// faster, checks that it wanted the same.
    pub(crate) fn write(&self, facts: &Facts) -> Result<(), Error> {
        let g = &facts.geometry;
        let words = [
            (&self.magic, MAGIC),
            (&self.plan, g.plan()),
            (&self.total, g.total),
            (&self.participants_at, g.participants.offset),
            (&self.directory_at, g.directory.offset),
            (&self.objects_at, g.objects_at),
            (&self.boot[0], facts.machine.boot[0]),
            (&self.boot[1], facts.machine.boot[1]),
            (&self.pid_namespace, facts.machine.pid_namespace),
            (&self.windows, g.total - g.windows_at),
        ];
        let halves = [
            (&self.version, VERSION),
            (&self.byte_order, BYTE_ORDER),
            (&self.backing, facts.backing.code()),
            (&self.unlink, facts.unlink.code()),
            (&self.mode, facts.mode),
        ];
        let set = |(word, value): (&AtomicU64, u64)| {
            word.compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|now| now == value, |_| true)
        };
        let set_half = |(word, value): (&AtomicU32, u32)| {
            word.compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|now| now == value, |_| true)
        };
        if !words.into_iter().all(set) || !halves.into_iter().all(set_half) {
            return Err(Error::new(
                ErrorKind::HalfBuilt,
                "its first page is neither empty nor what we would write; \
                 if nobody is creating it right now with other options, zero the memory",
            ));
        }
        // Which adopter's number stands here makes no difference to anybody.
        let _ = self.creator.compare_exchange(0, facts.creator, Ordering::Relaxed, Ordering::Relaxed);
        for (word, value) in self.id.iter().zip(facts.id) {
            let _ = word.compare_exchange(0, value, Ordering::Relaxed, Ordering::Relaxed);
        }
        // Pairs with the Acquire in `read`.
        self.state.store(READY, Ordering::Release);
        Ok(())
    }

    /// What the header says, if it says something possible about a segment of `len` bytes.
    pub(crate) fn read(&self, len: u64) -> Result<Facts, Error> {
        let ready = self.state.load(Ordering::Acquire) == READY;
        let magic = self.magic.load(Ordering::Relaxed);
        if magic == 0 && !ready {
            return Err(half_built("its first page is still empty"));
        }
        if magic != MAGIC {
            return Err(not_ours("it does not begin as one of ours does"));
        }
        if !ready {
            return Err(half_built("its first page is not complete"));
        }
        let (version, byte_order) =
            (self.version.load(Ordering::Relaxed), self.byte_order.load(Ordering::Relaxed));
        if byte_order == BYTE_ORDER.swap_bytes() {
            return Err(Error::new(
                ErrorKind::WrongVersion,
                "it was made on a machine of the other byte order; recreate it on this one",
            ));
        }
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::WrongVersion,
                format!(
                    "its layout is version {version}, ours is {VERSION}; use one version of crossproc on \
                     both sides"
                ),
            ));
        }
        let (plan, total) = (self.plan.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        if total > len {
            return Err(truncated(total, len));
        }
        let windows = self.windows.load(Ordering::Relaxed);
        let geometry = Geometry::with_total(plan as u32, (plan >> 32) as u32, total, windows)
            .map_err(|e| damaged(&format!("its first page says {e}")))?;
        let parts = [
            self.participants_at.load(Ordering::Relaxed),
            self.directory_at.load(Ordering::Relaxed),
            self.objects_at.load(Ordering::Relaxed),
        ];
        let computed = [geometry.participants.offset, geometry.directory.offset, geometry.objects_at];
        if total != len || parts != computed || byte_order != BYTE_ORDER {
            return Err(damaged("its length and the places of its parts do not fit together"));
        }
        let backing = Backing::from_code(self.backing.load(Ordering::Relaxed));
        let unlink = Unlink::from_code(self.unlink.load(Ordering::Relaxed));
        let (Some(backing), Some(unlink)) = (backing, unlink) else {
            return Err(damaged("its first page names no kind of segment that there is"));
        };
        let load =
            |words: &[AtomicU64; 2]| [words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)];
        Ok(Facts {
            geometry,
            backing,
            unlink,
            mode: self.mode.load(Ordering::Relaxed),
            creator: self.creator.load(Ordering::Relaxed),
            machine: Machine {
                boot: load(&self.boot),
                pid_namespace: self.pid_namespace.load(Ordering::Relaxed),
            },
            id: load(&self.id),
        })
    }

    /// True if nobody has written anything yet, or somebody has begun to write a header.
    pub(crate) fn is_to_be_written(&self) -> bool {
        let words = [&self.plan, &self.total, &self.participants_at, &self.directory_at, &self.objects_at];
        let words = words.into_iter().chain([&self.windows]);
        let blank = || words.chain(&self.boot).chain(&self.id).all(|w| w.load(Ordering::Relaxed) == 0);
        match (self.state.load(Ordering::Relaxed), self.magic.load(Ordering::Relaxed)) {
            (0, 0) => blank(),
            (0, magic) => magic == MAGIC,
            _ => false,
        }
    }

    /// Records that participants now live on `machine`. For a file, after its table of participants was
    /// cleared.
    pub(crate) fn move_to(&self, machine: Machine) {
        // The boot id last: it is what says "cleared". Whoever is killed before leaves the clearing to the
        // next.
        self.pid_namespace.store(machine.pid_namespace, Ordering::Relaxed);
        self.boot[0].store(machine.boot[0], Ordering::Release);
        self.boot[1].store(machine.boot[1], Ordering::Release);
    }
}

impl Facts {
    /// Refuses a segment whose process ids mean nothing here. `true`: a file from before the last boot,
    /// nobody of its participants can be alive.
    pub(crate) fn check_machine(&self, here: Machine) -> Result<bool, Error> {
        if self.machine.boot != here.boot {
            if self.backing == Backing::File {
                return Ok(true);
            }
            return Err(Error::new(
                ErrorKind::WrongBoot,
                "it is from another boot of the machine (a snapshot?), so its users can not be told from \
                 others; recreate it",
            ));
        }
        if self.machine.pid_namespace != here.pid_namespace {
            return Err(Error::new(
                ErrorKind::WrongPidNamespace,
                "it was made in another PID namespace, where process ids mean other processes; \
                 run both in one (docker: --pid=container:NAME), or remove its name if it is a leftover",
            ));
        }
        Ok(false)
    }
}

impl Machine {
    /// The one we run on.
    pub(crate) fn here() -> Result<Self, Error> {
        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let text = std::fs::read_to_string(BOOT_ID)
            .map_err(|e| Error::io("reading the id of this boot in /proc", e))?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let half = |range| digits.get(range).and_then(|d: &str| u64::from_str_radix(d, 16).ok());
        let (Some(high), Some(low)) = (half(0..16), half(16..32)) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{BOOT_ID} does not hold an id but {text:?}"),
            ));
        };
        Ok(Self { boot: [high, low], pid_namespace: helper()?.identity().pid_namespace })
    }
}

impl Backing {
    fn code(self) -> u32 {
        match self {
            Self::Anonymous => 1,
            Self::Named => 2,
            Self::File => 3,
            Self::Adopted => 4,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Anonymous, Self::Named, Self::File, Self::Adopted].into_iter().find(|b| b.code() == code)
    }
}

impl Unlink {
    fn code(self) -> u32 {
        match self {
            Self::Never => 0,
            Self::LastClose => 1,
            Self::OwnerDrop => 2,
        }
    }

    fn from_code(code: u32) -> Option<Self> {
        [Self::Never, Self::LastClose, Self::OwnerDrop].into_iter().find(|u| u.code() == code)
    }
}

fn half_built(what: &str) -> Error {
    let advice = "its creator was killed or is still at work; if it is gone, remove the name and create \
     the segment again";
    Error::new(ErrorKind::HalfBuilt, format!("{what}: {advice}"))
}

fn not_ours(what: &str) -> Error {
    Error::new(
        ErrorKind::NotOurs,
        format!("this is no crossproc segment ({what}); move it away or use another name"),
    )
}

fn damaged(what: &str) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!("{what}: somebody wrote over them; remove the segment and create it again"),
    )
}

fn truncated(total: u64, len: u64) -> Error {
    Error::new(
        ErrorKind::Truncated,
        format!(
            "it was made with {total} bytes but has {len}: somebody cut it; remove it and create it again"
        ),
    )
}

/// What a file is that is too short to hold a header: `start` is what it begins with.
pub(crate) fn too_short(start: &[u8], len: u64) -> Error {
    if len == 0 {
        return Error::new(
            ErrorKind::Truncated,
            "the file is empty: somebody cut it, or made it with another program; remove it and create it \
             again",
        );
    }
    if start.starts_with(&MAGIC.to_ne_bytes()) {
        return truncated(PAGE as u64, len);
    }
    not_ours("it is shorter than a header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Mapping;

    fn facts(bytes: u64) -> Facts {
        Facts {
            geometry: Geometry::for_objects(4, 8, bytes, 3 * PAGE as u64, PAGE as u64)
                .expect("a possible plan"),
            backing: Backing::Adopted,
            unlink: Unlink::Never,
            mode: 0o600,
            creator: 77,
            machine: Machine { boot: [1, 2], pid_namespace: 3 },
            id: [4, 5],
        }
    }

    fn written() -> (std::sync::Arc<Mapping>, Facts) {
        let facts = facts(10_000);
        let memory = Mapping::heap(facts.geometry.total as usize);
        memory.place::<Header>(0).and_then(|h| h.write(&facts)).expect("zeroed memory takes a header");
        (memory, facts)
    }

    #[test]
    fn what_was_written_is_read() {
        let (memory, facts) = written();
        let header = memory.place::<Header>(0).expect("inside");
        assert_eq!(header.read(facts.geometry.total).expect("valid"), facts);
        header.write(&facts).expect("a second adopter who wants the same");
        let other = Facts { mode: 0o640, ..facts };
        assert_eq!(header.write(&other).unwrap_err().kind(), ErrorKind::HalfBuilt);
    }

    #[test]
    fn each_wrong_field_is_an_error_of_its_kind() {
        type Spoil = fn(&Header);
        let cases: [(Spoil, ErrorKind); 18] = [
            (|h| h.magic.store(7, Ordering::Relaxed), ErrorKind::NotOurs),
            (|h| h.state.store(0, Ordering::Relaxed), ErrorKind::HalfBuilt),
            (|h| h.version.store(2, Ordering::Relaxed), ErrorKind::WrongVersion),
            (|h| h.byte_order.store(0x0403_0201, Ordering::Relaxed), ErrorKind::WrongVersion),
            (|h| h.byte_order.store(9, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.plan.store(0, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.plan.store(u64::MAX, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.total.store(u64::MAX, Ordering::Relaxed), ErrorKind::Truncated),
            (|h| h.total.store(4096, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.participants_at.store(0, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.directory_at.store(u64::MAX, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.objects_at.store(4096, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.backing.store(0, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.unlink.store(3, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.windows.store(4095, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.windows.store(u64::MAX, Ordering::Relaxed), ErrorKind::Damaged),
            (|h| h.windows.store(h.total.load(Ordering::Relaxed), Ordering::Relaxed), ErrorKind::Damaged),
            (
                |h| h.windows.store(h.total.load(Ordering::Relaxed) + 4096, Ordering::Relaxed),
                ErrorKind::Damaged,
            ),
        ];
        for (index, (spoil, kind)) in cases.into_iter().enumerate() {
            let (memory, facts) = written();
            let header = memory.place::<Header>(0).expect("inside");
            spoil(&header);
            let error = header.read(facts.geometry.total).unwrap_err();
            assert_eq!(error.kind(), kind, "case {index}: {error}");
        }
    }

    #[test]
    fn lengths_that_can_not_be_are_errors() {
        let page = PAGE as u64;
        for bytes in [u64::MAX, u64::MAX - 4096, i64::MAX as u64] {
            assert_eq!(Geometry::for_objects(1, 1, bytes, 0, page).unwrap_err().kind(), ErrorKind::TooLarge);
            assert_eq!(Geometry::for_objects(1, 1, 1, bytes, page).unwrap_err().kind(), ErrorKind::TooLarge);
        }
        let half = i64::MAX as u64 / 2 + 1;
        assert_eq!(Geometry::for_objects(1, 1, half, half, page).unwrap_err().kind(), ErrorKind::TooLarge);
        for (slots, entries) in [(0, 1), (1, 0), (65_536, 1), (1, 65_537), (u32::MAX, u32::MAX)] {
            assert_eq!(
                Geometry::for_objects(slots, entries, 1, 0, page).unwrap_err().kind(),
                ErrorKind::InvalidLength
            );
        }
        let largest =
            Geometry::for_objects(MAX_PARTICIPANTS, MAX_OBJECTS, 1, 0, page).expect("the largest tables");
        assert!(largest.total < 64 << 20);
    }

    #[test]
    fn another_boot_or_namespace_is_refused_except_a_files_boot() {
        let here = Machine { boot: [1, 2], pid_namespace: 3 };
        let (later, elsewhere) = (Machine { boot: [1, 9], ..here }, Machine { pid_namespace: 4, ..here });
        let memory = facts(1);
        let file = Facts { backing: Backing::File, ..memory };
        assert!(!memory.check_machine(here).expect("the same"));
        assert_eq!(memory.check_machine(later).unwrap_err().kind(), ErrorKind::WrongBoot);
        assert_eq!(memory.check_machine(elsewhere).unwrap_err().kind(), ErrorKind::WrongPidNamespace);
        assert_eq!(file.check_machine(elsewhere).unwrap_err().kind(), ErrorKind::WrongPidNamespace);
        assert!(file.check_machine(later).expect("files outlive a boot"));
    }
}
