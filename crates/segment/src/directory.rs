//! The directory of a segment: objects by name.
//!
//! One entry of 512 bytes per object:
//!
//! ```text
//!    0  state        0, then 1 READY: written last
//!    4  lengths      of name (low half) and text (high half) in bytes
//!    8  kind         up to 16 bytes of ASCII: "Lock", "Queue"
//!   24  fingerprint  of the type it holds
//!   32  offset       of its first byte in the segment
//!   40  bytes        that it has
//!   48  count        of elements, or whatever its kind counts
//!   56  align        in bytes
//!   64  name         at most 200 bytes of UTF-8
//!  264  text         description of the type, at most 232 bytes of UTF-8
//!  496  windows_at   offset of its windows in the segment; 0 if it has none
//!  504  windows      bytes that they have; 0 if it has none
//! ```
//!
//! *Windows* are memory at the end of the segment whose pages are there only while the object wants them
//! ([`Segment::allocate_window`](crate::Segment::allocate_window)). They are handed out in the same way as the bytes of objects.
//!
//! Who may write what: all of an entry is written by who creates the object, under the lock for creating
//! objects of this segment, while `state` is 0. Entries that are READY never change.
//!
//! What a death leaves behind: a creator killed before READY leaves an entry whose `state` is 0. Nobody reads
//! the rest of such an entry, and the next creator uses it. Which memory is free follows from the READY
//! entries alone: it begins where the last of their objects (or windows) ends. What the dead creator had already written
//! there is zeroed first (`touched` in the header says how far it can have come), so that every object begins
//! as zeros.
//!
//! Ordering: READY is stored with Release after everything of the entry and of the object; readers load it
//! with Acquire.
//!
//! Who believes what: each reader copies an entry into private memory and checks the copy. An entry that can
//! not be (outside of the area for objects, a name that is no text) is an error for who needs it and is left
//! out by who lists.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crossproc_atomic::{AtomicU32, AtomicU64, Ordering, shared_struct};

use crate::error::{Error, ErrorKind};
use crate::header::{Geometry, Header};
use crate::map::{Mapping, PAGE};
use crate::names::check_name;
use crate::place::{Placed, PlacedSlice, Span};
use crate::plain::{Layout, difference};

shared_struct! {
    /// One object; see the map at the top of the file.
    pub(crate) struct Entry: 512 {
        state: AtomicU32,
        lengths: AtomicU32,
        kind: [AtomicU64; 2],
        fingerprint: AtomicU64,
        offset: AtomicU64,
        bytes: AtomicU64,
        count: AtomicU64,
        align: AtomicU64,
        name: [AtomicU64; 25],
        text: [AtomicU64; 29],
        windows_at: AtomicU64,
        windows: AtomicU64,
    }
}

pub(crate) const ENTRY_BYTES: usize = size_of::<Entry>();
const READY: u32 = 1;
const NAME_BYTES: usize = 200;
const TEXT_BYTES: usize = 232;
/// Objects never share a pair of cache lines: what one writes does not slow the other down.
const OBJECT_ALIGN: u64 = 128;

/// What sort of thing an object is: "Lock", "Queue". Two programs mean the same kind if they use the same
/// word.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectKind([u8; 16]);

/// What an object is made with, or expected to be when it is opened.
#[derive(Clone, Copy, Debug)]
pub struct ObjectSpec {
    /// What sort of thing it is.
    pub kind: ObjectKind,
    /// The type of the values in it.
    pub layout: &'static Layout,
    /// How many values, or whatever the kind counts. When opening: at least so many.
    pub count: u64,
    /// How many bytes it takes. When opening: at least so many.
    pub bytes: u64,
    /// Alignment in bytes: a power of two up to 4096. Objects are aligned to 128 at least.
    pub align: u64,
    /// How many bytes of windows it has: address space without pages until
    /// [`Segment::allocate_window`](crate::Segment::allocate_window). When opening: at least so many. Rounded up to a
    /// multiple of 4096.
    pub windows: u64,
}

/// Where an object lies: a private, checked copy of what the directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Number of its entry; with it another process that has the segment finds the object.
    pub index: u32,
    /// Bytes from the start of the segment.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// How many values its creator asked for. It has not been compared to `bytes`, a peer can have written
    /// both.
    pub count: u64,
    /// Where its windows begin, in bytes from the start of the segment.
    pub windows_at: u64,
    /// How many bytes its windows have.
    pub windows: u64,
}

/// An object in a list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// What sort of thing it is.
    pub kind: ObjectKind,
    /// The type of the values in it, as its creator described it; cut if it was long.
    pub type_text: String,
    /// Where it lies.
    pub object: Object,
}

/// The directory of one mapped segment.
#[derive(Debug)]
pub(crate) struct Directory {
    entries: PlacedSlice<Entry>,
    header: Placed<Header>,
    objects: Range<u64>,
    windows: Range<u64>,
}

/// A private copy of an entry, checked.
struct Record {
    kind: ObjectKind,
    fingerprint: u64,
    object: Object,
    name: Vec<u8>,
    text: String,
}

impl ObjectKind {
    /// A kind, by one word of ASCII.
    ///
    /// # Panics
    ///
    /// If the word is empty, longer than 16 bytes, or not ASCII letters and digits.
    #[must_use]
    pub const fn new(word: &str) -> Self {
        let bytes = word.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= 16, "a kind is a word of 1 to 16 bytes");
        let mut kind = [0; 16];
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at].is_ascii_alphanumeric(), "a kind is made of ASCII letters and digits");
            kind[at] = bytes[at];
            at += 1;
        }
        Self(kind)
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A peer may have written anything here.
        self.0.iter().take_while(|&&b| b != 0).try_for_each(|b| write!(f, "{}", b.escape_ascii()))
    }
}

impl fmt::Debug for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectKind({self})")
    }
}

impl ObjectSpec {
    fn align(&self) -> Result<u64, Error> {
        if self.bytes == 0 || !self.align.is_power_of_two() || self.align > PAGE as u64 {
            return Err(Error::new(
                ErrorKind::InvalidLength,
                format!(
                    "{} bytes aligned to {}: an object has at least one byte and an alignment of 1, 2, 4, \
                     .. {PAGE}",
                    self.bytes, self.align
                ),
            ));
        }
        Ok(self.align.max(OBJECT_ALIGN))
    }
}

impl Directory {
    pub(crate) fn new(mapping: &Arc<Mapping>, geometry: &Geometry) -> Result<Self, Error> {
        Ok(Self {
            entries: mapping.place_slice_for_reading(geometry.directory)?,
            header: mapping.place_for_reading(0)?,
            objects: geometry.objects(),
            windows: geometry.windows(),
        })
    }

    /// Opens by name.
    pub(crate) fn open(&self, name: &str, spec: &ObjectSpec) -> Result<Object, Error> {
        check_name(name)?;
        match self.find(name)? {
            Some(record) => record.expect(spec),
            None => Err(Error::new(ErrorKind::NotFound, "the segment has no object of this name")),
        }
    }

    /// Opens by number, as a handle from another process names it.
    pub(crate) fn at(&self, index: u32, spec: &ObjectSpec) -> Result<Object, Error> {
        match self.read(index)? {
            Some(record) => record.expect(spec),
            None => Err(Error::new(ErrorKind::NotFound, format!("the segment has no object number {index}"))),
        }
    }

    /// Makes an object. The caller has the lock for creating objects.
    pub(crate) fn create(
        &self,
        mapping: &Arc<Mapping>,
        name: &str,
        spec: &ObjectSpec,
        init: impl FnOnce(&Arc<Mapping>, u64),
    ) -> Result<Object, Error> {
        check_name(name)?;
        let align = spec.align()?;
        if self.find(name)?.is_some() {
            return Err(Error::new(
                ErrorKind::Exists,
                "the segment has an object of this name; open it, or use another name",
            ));
        }
        let mut free = None;
        let (mut used_to, mut windows_used_to) = (self.objects.start, self.windows.start);
        for index in 0..self.len() {
            match self.read(index)? {
                Some(record) => {
                    let Object { offset, bytes, windows_at, windows, .. } = record.object;
                    used_to = used_to.max(offset + bytes);
                    windows_used_to = windows_used_to.max(windows_at + windows);
                }
                None if free.is_none() => free = Some(index),
                None => {}
            }
        }
        let Some(index) = free else {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "all {} entries of its directory are used; raise `SegmentOptions::objects`",
                    self.len()
                ),
            ));
        };
        let offset = used_to.next_multiple_of(align);
        let end = offset.checked_add(spec.bytes).filter(|&end| end <= self.objects.end).ok_or_else(|| {
            Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the segment has {} bytes for objects, {} used, {} asked; create it larger",
                    self.objects.end - self.objects.start,
                    used_to - self.objects.start,
                    spec.bytes
                ),
            )
        })?;
        let windows = spec
            .windows
            .checked_next_multiple_of(PAGE as u64)
            .filter(|&bytes| bytes <= self.windows.end - windows_used_to)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NoSpace,
                    format!(
                        "the segment has {} bytes of windows, {} used, {} asked; raise `SegmentOptions::windows`",
                        self.windows.end - self.windows.start,
                        windows_used_to - self.windows.start,
                        spec.windows
                    ),
                )
            })?;
        let windows_at = if windows == 0 { 0 } else { windows_used_to };
        self.clear(mapping, offset, end)?;
        init(mapping, offset);
        let object = Object { index, offset, bytes: spec.bytes, count: spec.count, windows_at, windows };
        self.write(name, spec, align, object);
        Ok(object)
    }

    /// Zeroes what a creator that was killed may have left between `offset` and `end`, and records that we
    /// begin there.
    fn clear(&self, mapping: &Arc<Mapping>, offset: u64, end: u64) -> Result<(), Error> {
        let touched = self.header.touched.load(Ordering::Relaxed);
        let dirty = touched.min(end).saturating_sub(offset);
        if dirty > 0 {
            // `offset` is a multiple of 128 and the end of the area one of 4096: whole words stay inside.
            let words = mapping.place_slice::<AtomicU64>(Span { offset, count: dirty.div_ceil(8) })?;
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        if touched < end {
            self.header.touched.store(end, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, name: &str, spec: &ObjectSpec, align: u64, object: Object) {
        let entry = &self.entries[object.index as usize];
        let text = spec.layout.describe_within(TEXT_BYTES);
        entry.lengths.store(name.len() as u32 | (text.len() as u32) << 16, Ordering::Relaxed);
        store_bytes(&entry.kind, &spec.kind.0);
        entry.fingerprint.store(spec.layout.fingerprint(), Ordering::Relaxed);
        entry.offset.store(object.offset, Ordering::Relaxed);
        entry.bytes.store(object.bytes, Ordering::Relaxed);
        entry.count.store(object.count, Ordering::Relaxed);
        entry.align.store(align, Ordering::Relaxed);
        entry.windows_at.store(object.windows_at, Ordering::Relaxed);
        entry.windows.store(object.windows, Ordering::Relaxed);
        store_bytes(&entry.name, name.as_bytes());
        store_bytes(&entry.text, text.as_bytes());
        // Pairs with the Acquire in `read`.
        entry.state.store(READY, Ordering::Release);
    }

    /// All objects whose entries are sound.
    pub(crate) fn list(&self) -> Vec<ObjectInfo> {
        let records = (0..self.len()).filter_map(|index| self.read(index).ok().flatten());
        let info = |record: Record| ObjectInfo {
            name: String::from_utf8_lossy(&record.name).into_owned(),
            kind: record.kind,
            type_text: record.text,
            object: record.object,
        };
        records.map(info).collect()
    }

    /// Bytes that the objects take, gaps included.
    pub(crate) fn used(&self) -> u64 {
        let ends = self.list().into_iter().map(|info| info.object.offset + info.object.bytes);
        ends.max().map_or(0, |end| end - self.objects.start)
    }

    fn len(&self) -> u32 {
        // At most `header::MAX_OBJECTS`.
        self.entries.len() as u32
    }

    fn find(&self, name: &str) -> Result<Option<Record>, Error> {
        let mut damage = None;
        for index in 0..self.len() {
            match self.read(index) {
                Ok(Some(record)) if record.name == name.as_bytes() => return Ok(Some(record)),
                Ok(_) => {}
                Err(e) => damage = Some(e),
            }
        }
        // The damaged entry may be the one.
        damage.map_or(Ok(None), Err)
    }

    /// Copies and checks an entry; `None` if no object stands there.
    fn read(&self, index: u32) -> Result<Option<Record>, Error> {
        let Some(entry) = self.entries.get(index as usize) else { return Ok(None) };
        match entry.state.load(Ordering::Acquire) {
            0 => return Ok(None),
            READY => {}
            _ => return Err(damaged(index, "its state is none that there is")),
        }
        let lengths = entry.lengths.load(Ordering::Relaxed);
        let (name_len, text_len) = ((lengths & 0xffff) as usize, (lengths >> 16) as usize);
        if name_len > NAME_BYTES || text_len > TEXT_BYTES {
            return Err(damaged(index, "its texts are longer than an entry"));
        }
        let (offset, bytes) = (entry.offset.load(Ordering::Relaxed), entry.bytes.load(Ordering::Relaxed));
        let align = entry.align.load(Ordering::Relaxed);
        let inside = offset
            .checked_add(bytes)
            .is_some_and(|end| self.objects.start <= offset && end <= self.objects.end);
        if !inside || bytes == 0 || !align.is_power_of_two() || align > PAGE as u64 || offset % align != 0 {
            return Err(damaged(index, "its object does not lie where objects can"));
        }
        let (windows_at, windows) =
            (entry.windows_at.load(Ordering::Relaxed), entry.windows.load(Ordering::Relaxed));
        let inside = windows_at
            .checked_add(windows)
            .is_some_and(|end| self.windows.start <= windows_at && end <= self.windows.end);
        let none = windows_at == 0 && windows == 0;
        if !none && (!inside || windows_at % PAGE as u64 != 0 || windows % PAGE as u64 != 0) {
            return Err(damaged(index, "its windows do not lie where windows can"));
        }
        let mut kind = [0; 16];
        kind.copy_from_slice(&load_bytes(&entry.kind, 16));
        Ok(Some(Record {
            kind: ObjectKind(kind),
            fingerprint: entry.fingerprint.load(Ordering::Relaxed),
            object: Object {
                index,
                offset,
                bytes,
                count: entry.count.load(Ordering::Relaxed),
                windows_at,
                windows,
            },
            name: load_bytes(&entry.name, name_len),
            text: String::from_utf8_lossy(&load_bytes(&entry.text, text_len)).into_owned(),
        }))
    }
}

impl Record {
    /// The object, if it is what is wanted.
    fn expect(&self, spec: &ObjectSpec) -> Result<Object, Error> {
        if self.kind != spec.kind {
            return Err(Error::new(
                ErrorKind::WrongKind,
                format!("it is a {}, not a {}", self.kind, spec.kind),
            ));
        }
        if self.fingerprint != spec.layout.fingerprint() {
            let differs = difference(&self.text, &spec.layout.describe_within(TEXT_BYTES));
            return Err(Error::new(ErrorKind::WrongType, format!("it holds another type: {differs}")));
        }
        if self.object.count < spec.count || self.object.bytes < spec.bytes {
            return Err(Error::new(
                ErrorKind::TooSmall,
                format!(
                    "it was created for {} ({} bytes), {} ({} bytes) are asked",
                    self.object.count, self.object.bytes, spec.count, spec.bytes
                ),
            ));
        }
        if self.object.windows < spec.windows {
            return Err(Error::new(
                ErrorKind::TooSmall,
                format!(
                    "it was created with {} bytes of windows, {} are asked",
                    self.object.windows, spec.windows
                ),
            ));
        }
        Ok(self.object)
    }
}

fn damaged(index: u32, what: &str) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!(
            "entry {index} of the segment's directory was written over ({what}); create the segment again"
        ),
    )
}

fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut value = [0; 8];
        value[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
    }
}

fn load_bytes(words: &[AtomicU64], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        words[..len.div_ceil(8)].iter().flat_map(|w| w.load(Ordering::Relaxed).to_ne_bytes()).collect();
    bytes.truncate(len);
    bytes
}
