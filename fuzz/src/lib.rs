//! Functions that must bear any bytes.
//!
//! A target is a function here, a line in [`TARGETS`], and a folder `corpus/NAME` with at least one input.
//! `cargo test` replays all corpora; `cargo xtask fuzz NAME 5m` looks for new inputs. An input that once
//! failed stays in the corpus under a name that says what it was.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::time::Duration;

use crossproc_atomic::Owner;
use crossproc_segment::plain::{Plain, difference};
use crossproc_segment::{ErrorKind, ObjectKind, ObjectSpec, Segment, SegmentOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{pread, write};

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
    Target { name: "plain_difference", run: plain_difference },
    Target { name: "segment_bytes", run: segment_bytes },
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

const SPEC: ObjectSpec =
    ObjectSpec { kind: ObjectKind::new("Counter"), layout: u64::LAYOUT, count: 1, bytes: 8, align: 8 };

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
