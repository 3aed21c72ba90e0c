//! Functions that must bear any bytes.
//!
//! A target is a function here, a line in [`TARGETS`], and a folder `corpus/NAME` with at least one input.
//! `cargo test` replays all corpora; `cargo xtask fuzz NAME 5m` looks for new inputs. An input that once
//! failed stays in the corpus under a name that says what it was.
#![forbid(unsafe_code)]

mod pipe;
mod queue;
mod spsc;

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::time::Duration;

use crossproc_atomic::{AtomicU64, Ordering, Owner};
use crossproc_primitives::{Array, Lock, Mutex, Objects, RLock, RawArray, Value};
use crossproc_segment::plain::{Plain, difference};
use crossproc_segment::{ErrorKind, ObjectKind, ObjectSpec, PlacedSlice, Segment, SegmentOptions, Span};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{pread, write};

pub use pipe::pipe_bytes;
pub use queue::queue_bytes;
pub use spsc::spsc_bytes;

/// A named function that must return, and must not panic, whatever the bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of the folder in `corpus`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "owner", run: owner },
    Target { name: "objects", run: objects },
    Target { name: "pipe_bytes", run: pipe_bytes },
    Target { name: "plain_difference", run: plain_difference },
    Target { name: "queue_bytes", run: queue_bytes },
    Target { name: "segment_bytes", run: segment_bytes },
    Target { name: "spsc_bytes", run: spsc_bytes },
];

/// An owner word of shared memory, with any bits in it: either no identity, or one that is written back as
/// the same bits.
pub fn owner(bytes: &[u8]) {
    for word in bytes.chunks_exact(8) {
        let bits = word.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        // Hidden from the optimizer, which else proves this function away.
        match Owner::from_bits(black_box(bits)) {
            Some(owner) => {
                assert_eq!(owner.bits(), bits);
                assert_ne!(owner.generation(), 0);
                assert_eq!(Owner::new(owner.slot(), owner.generation()), Some(owner));
            }
            None => {
                let reserved = bits >> (16 + Owner::GENERATION_BITS);
                assert!(reserved != 0 || bits >> 16 == 0, "{bits:#x} is an identity");
            }
        }
    }
}

/// Two descriptions of a type, separated by a zero byte (or one, compared with a real one): there is always a
/// sentence about their difference, short and fit for a terminal.
pub fn plain_difference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let ours = <[[u32; 4]; 2]>::LAYOUT.describe();
    let (stored, ours) = text.split_once('\0').unwrap_or((&text, &ours));
    let sentence = difference(stored, ours);
    assert!(!sentence.is_empty() && sentence.len() < 8192, "{} bytes", sentence.len());
    assert!(!sentence.contains(char::is_control), "{sentence:?}");
}

/// A segment with two objects in which words were overwritten, given as {place: u16, value: u64}, little
/// endian; the place is counted in units of 8 bytes. It is refused, or what is found in it lies inside of it.
pub fn segment_bytes(bytes: &[u8]) {
    let mut image = IMAGE.clone();
    for edit in bytes.chunks_exact(10) {
        let words = image.len() / 8;
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % words * 8;
        image[at..at + 8].copy_from_slice(&edit[2..]);
    }
    let untouched = image == *IMAGE;
    match options().received(memory(&image)) {
        Ok(segment) => visit(&segment, image.len() as u64, untouched),
        Err(error) => assert!(!untouched, "{error}"),
    }
}

const SPEC: ObjectSpec = ObjectSpec {
    kind: ObjectKind::new("Counter"),
    layout: u64::LAYOUT,
    count: 1,
    bytes: 8,
    align: 8,
    windows: 0,
};

/// What a segment looks like whose creator has died.
static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let segment = options().anonymous(4096).expect("memory for a segment");
    for name in ["one", "two"] {
        segment.create_object(name, &SPEC, |_, _| {}).expect("room for an object");
    }
    let fd = segment.fd().expect("an anonymous segment has a descriptor");
    let mut image = vec![0; rustix::fs::fstat(fd).expect("its length").st_size as usize];
    let read = pread(fd, &mut image, 0).expect("its bytes");
    assert_eq!(read, image.len());
    image
});

fn options() -> SegmentOptions {
    SegmentOptions::new().participants(4).objects(4).timeout(Duration::from_millis(1))
}

/// A memory file that holds these bytes, sealed as ours are.
fn memory(bytes: &[u8]) -> OwnedFd {
    let fd = memfd_create("crossproc-fuzz", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("memory");
    assert_eq!(write(&fd, bytes).expect("memory"), bytes.len());
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .expect("fresh memory takes seals");
    fd
}

/// Everything that a user of a segment can ask it. Each object must lie inside.
fn visit(segment: &Segment, len: u64, untouched: bool) {
    let named = ["one", "two", "three"].map(|name| segment.open_object(name, &SPEC));
    let numbered = [0, 1, 2, 3, u32::MAX].map(|index| segment.object_at(index, &SPEC));
    let made = segment.create_object("four", &SPEC, |memory, offset| {
        memory.place::<crossproc_atomic::AtomicU64>(offset).expect("a new object lies inside");
    });
    if untouched {
        assert!(named[0].is_ok() && named[1].is_ok() && numbered[0].is_ok() && made.is_ok());
        assert!(matches!(&named[2], Err(error) if error.kind() == ErrorKind::NotFound));
    }
    let listed = segment.objects().into_iter().map(|info| info.object);
    for object in named.into_iter().chain(numbered).chain([made]).flatten().chain(listed) {
        let end = object.offset.checked_add(object.bytes).expect("no overflow");
        assert!(object.offset > 0 && end <= len, "{object:?} in {len} bytes");
        segment.mapping().place::<crossproc_atomic::AtomicU64>(object.offset).expect("it lies inside");
    }
    black_box((segment.used(), segment.capacity(), segment.living().ok(), segment.creator_pid()));
}

/// A segment with one object, whose words are overwritten behind its handles' backs and then put back: to make a new segment for each
/// input would take most of the time.
struct Scratch {
    segment: Segment,
    words: PlacedSlice<AtomicU64>,
    first: Vec<u64>,
}

impl Scratch {
    fn new(make: impl FnOnce(&Segment)) -> Self {
        let segment = options().anonymous(8192).expect("memory for a segment");
        make(&segment);
        let object = segment.objects().into_iter().next().expect("it was made").object;
        let span = Span { offset: object.offset, count: object.bytes / 8 };
        let words = segment.mapping().place_slice::<AtomicU64>(span).expect("it lies inside");
        let first = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        Self { segment, words, first }
    }

    fn overwrite(&self, place: u16, value: u64) {
        self.words[usize::from(place) % self.words.len()].store(value, Ordering::Relaxed);
    }

    /// Nobody has a handle any more.
    fn put_back(&self) {
        self.words.iter().zip(&self.first).for_each(|(word, &first)| word.store(first, Ordering::Relaxed));
    }
}

/// {operation: u8, place: u16, value: u64}, little endian, one after the other. Longer inputs say nothing new.
fn steps(bytes: &[u8]) -> impl Iterator<Item = (u8, u16, u64)> {
    const STEPS_MAX: usize = 64;
    bytes.chunks_exact(11).take(STEPS_MAX).map(|step| {
        let value = step[3..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        (step[0], u16::from_le_bytes([step[1], step[2]]), value)
    })
}

/// As a place: no overwriting in this step.
const NOWHERE: u16 = u16::MAX;

/// One object of each type, all words of them, and what these were at first.
struct World {
    lock: Lock,
    rlock: RLock,
    mutex: Mutex<[u32; 4]>,
    small: Value<u16>,
    flag: Value<bool>,
    large: Value<[u64; 4]>,
    array: Array<u8>,
    letters: RawArray<char>,
    words: PlacedSlice<AtomicU64>,
    first: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let segment = options().objects(8).anonymous(8192).expect("memory for a segment");
        let (lock, rlock) = (segment.lock("lock").expect("room"), segment.rlock("rlock").expect("room"));
        let mutex = segment.mutex("mutex", [1; 4]).expect("room");
        let small = segment.value("small", 2).expect("room");
        let flag = segment.value("flag", true).expect("room");
        let large = segment.value("large", [3; 4]).expect("room");
        let array = segment.array("array", &[4; 40]).expect("room");
        let letters = segment.raw_array("letters", &['x'; 9]).expect("room");
        let objects: Vec<_> = segment.objects().into_iter().map(|info| info.object).collect();
        let offset = objects.iter().map(|o| o.offset).min().expect("objects");
        let end = objects.iter().map(|o| o.offset + o.bytes).max().expect("objects");
        let span = Span { offset, count: (end - offset) / 8 };
        let words = segment.mapping().place_slice::<AtomicU64>(span).expect("it lies inside");
        let first = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        Self { lock, rlock, mutex, small, flag, large, array, letters, words, first }
    }

    /// Every operation that does not wait for ever. What comes out does not matter, that it comes does.
    fn use_all(&self) {
        drop(black_box(self.lock.try_lock()));
        drop(black_box(self.lock.lock_timeout(Duration::from_micros(1))));
        if let Ok(outer) = self.rlock.try_lock() {
            drop(black_box(self.rlock.try_lock()));
            drop(outer);
        }
        if let Ok(mut guard) = self.mutex.try_lock().or_else(|e| e.repair(|g| g.fill(0))) {
            guard[0] = guard[0].wrapping_add(guard[3]);
        }
        black_box((self.small.get().ok(), self.small.update(|x| x ^ 1).ok(), self.small.fetch_add(7)));
        black_box((self.small.compare_exchange(2, 3).ok(), self.flag.get().ok(), self.flag.set(false).ok()));
        black_box(self.flag.wait_while_timeout(Duration::from_micros(1), |on| *on).ok());
        black_box(self.large.get().ok());
        if let Ok(mut guard) = self.large.try_lock() {
            guard.set([9; 4]);
            assert_eq!(guard.get(), Ok([9; 4]), "a value that was just written, with nobody else there");
        }
        if let Ok(mut guard) = self.array.try_lock() {
            guard[39] = guard[0];
        }
        black_box((self.letters.get(8).ok(), self.letters.set(0, 'y').ok(), self.letters.to_vec().ok()));
        black_box(format!("{:?} {:?} {:?} {:?}", self.lock, self.mutex, self.large, self.flag));
    }
}

/// Words of live objects overwritten behind their handles' backs, given as {place: u16, value: u64}, little endian:
/// every operation ends, with a value or an error.
pub fn objects(bytes: &[u8]) {
    thread_local!(static WORLD: World = World::new());
    WORLD.with(|world| {
        for edit in bytes.chunks_exact(10) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % world.words.len();
            let value = edit[2..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            world.words[at].store(value, Ordering::Relaxed);
        }
        world.use_all();
        world.words.iter().zip(&world.first).for_each(|(word, &first)| word.store(first, Ordering::Relaxed));
    });
}
