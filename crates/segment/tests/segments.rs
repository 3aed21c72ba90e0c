//! What one process can show: each way in which making and opening can fail, policies, seals, objects,
//! adopted memory. Each test works in a directory of names of its own.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossproc_segment::plain::{Field, Layout, Plain};
use crossproc_segment::{
    ErrorKind, Mapping, Numa, Object, ObjectKind, ObjectSpec, Segment, SegmentOptions, Span, Unlink,
};
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags, fcntl_add_seals, flock, ftruncate, memfd_create};

const COUNTER: ObjectKind = ObjectKind::new("Counter");

/// A directory in which users' directories of names are, removed at the end, which fails if a name was left.
struct Base(PathBuf);

impl Base {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("crossproc-segments-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    fn options(&self) -> SegmentOptions {
        SegmentOptions::new().directory(&self.0).timeout(Duration::from_secs(5))
    }

    /// The directory of this user's names.
    fn names(&self) -> PathBuf {
        self.0.join(format!("crossproc-{}", rustix::process::geteuid().as_raw()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.names().join(name)
    }

    /// A segment that nobody has attached to, whose policy is to stay.
    fn leave(&self, name: &str) -> PathBuf {
        self.options().unlink_policy(Unlink::Never).create(name, 4096).expect("a segment");
        self.path(name)
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir(&self.0).expect("no name and no directory of names is left");
        }
    }
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the segment's file");
    file.write_all_at(bytes, offset).expect("written");
}

fn counter(count: u64) -> ObjectSpec {
    ObjectSpec { kind: COUNTER, layout: u64::LAYOUT, count, bytes: count * 8, align: 8, windows: 0 }
}

fn word(segment: &Segment, object: Object) -> u64 {
    let word = segment.mapping().place_for_reading::<AtomicU64>(object.offset).expect("inside");
    word.load(Ordering::Relaxed)
}

fn kind<T: std::fmt::Debug>(result: Result<T, crossproc_segment::Error>) -> ErrorKind {
    let error = result.expect_err("it can not work");
    assert!(error.to_string().contains(": "), "says what was done and what stood in the way: {error}");
    error.kind()
}

#[test]
fn a_name_is_taken_found_and_gone() {
    let base = Base::new("taken");
    let options = base.options();
    assert_eq!(kind(options.open("x")), ErrorKind::NotFound);
    let first = options.create("x", 5000).expect("a free name");
    assert_eq!(first.capacity(), 8192);
    assert_eq!(kind(options.create("x", 1)), ErrorKind::Exists);
    assert_eq!(options.open("x").expect("it is there").id(), first.id());
    assert_eq!(options.open_or_create("x", 8192).expect("it is there").id(), first.id());
    assert_eq!(kind(options.open_or_create("x", 8193)), ErrorKind::TooSmall);
    assert_eq!(options.names().expect("a list"), ["x"]);
    drop(first);
    assert_eq!(kind(options.open("x")), ErrorKind::NotFound);
    assert!(!base.names().exists(), "the directory goes with its last name");
    assert!(options.names().expect("a list").is_empty());
    for name in ["", ".x", "a/b", "a\0b", &"n".repeat(201)] {
        assert_eq!(kind(options.create(name, 1)), ErrorKind::InvalidName);
        assert_eq!(kind(options.open(name)), ErrorKind::InvalidName);
    }
    options.create(&"n".repeat(200), 1).expect("200 bytes are a name");
}

#[test]
fn lengths_are_sane_before_pages_are_touched() {
    let base = Base::new("lengths");
    let options = base.options();
    for (len, expected) in [
        (0, ErrorKind::InvalidLength),
        (usize::MAX, ErrorKind::TooLarge),
        (usize::MAX - 4095, ErrorKind::TooLarge),
        (isize::MAX as usize, ErrorKind::TooLarge),
        (1 << 52, ErrorKind::NoMemory),
    ] {
        assert_eq!(kind(options.anonymous(len)), expected, "{len}");
    }
    let in_memory = SegmentOptions::new();
    let name = format!("lengths-{}", std::process::id());
    assert_eq!(kind(in_memory.create(&name, usize::MAX)), ErrorKind::TooLarge);
    assert_eq!(kind(in_memory.create(&name, 1 << 52)), ErrorKind::NoMemory);
    assert_eq!(kind(in_memory.open_or_create(&name, 0)), ErrorKind::InvalidLength);
    // A file on a disk is limited by the disk.
    let error = options.create_file(base.0.join("f"), 1 << 43).expect_err("no disk is that large");
    assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::NoMemory), "{error}");
    for (participants, objects) in [(0, 1), (65_536, 1), (1, 0), (1, 65_537)] {
        let wrong = options.clone().participants(participants).objects(objects);
        assert_eq!(kind(wrong.anonymous(1)), ErrorKind::InvalidLength);
    }
    assert_eq!(kind(options.clone().mode(0o400).create("x", 1)), ErrorKind::WrongMode);
    assert_eq!(kind(options.clone().mode(0o1600).create("x", 1)), ErrorKind::WrongMode);
    assert_eq!(kind(options.clone().read_only(true).create("x", 1)), ErrorKind::ReadOnly);
    assert_eq!(kind(options.clone().owner(4_000_000).create("x", 1)), ErrorKind::Denied);
}

#[test]
fn what_is_not_ours_is_refused() {
    let base = Base::new("not-ours");
    let options = base.options();
    let keep = options.create("keep", 1).expect("a segment, so that the directory is there");
    let refused_by_all = |name: &str, expected: ErrorKind| {
        assert_eq!(kind(options.open(name)), expected, "{name}");
        assert_eq!(kind(options.clone().read_only(true).open(name)), expected, "{name}");
        assert_eq!(kind(options.create(name, 1)), expected, "{name}");
        assert_eq!(kind(options.open_or_create(name, 1)), expected, "{name}");
    };
    let random: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(base.path("random"), &random).expect("written");
    refused_by_all("random", ErrorKind::NotOurs);
    std::fs::write(base.path("short"), b"hello").expect("written");
    refused_by_all("short", ErrorKind::NotOurs);
    std::fs::write(base.path("empty"), b"").expect("written");
    refused_by_all("empty", ErrorKind::Truncated);
    std::fs::write(base.path("zeros"), vec![0; 20_000]).expect("written");
    refused_by_all("zeros", ErrorKind::HalfBuilt);
    std::os::unix::fs::symlink(base.path("keep"), base.path("link")).expect("a link");
    refused_by_all("link", ErrorKind::NotOurs);
    std::fs::create_dir(base.path("directory")).expect("a directory");
    assert_eq!(kind(options.open("directory")), ErrorKind::NotOurs);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        base.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .expect("a fifo");
    refused_by_all("fifo", ErrorKind::NotOurs);

    for name in ["random", "short", "empty", "zeros", "link", "fifo"] {
        options.remove(name).expect("anything can be removed");
    }
    std::fs::remove_dir(base.path("directory")).expect("removed");
    drop(keep);
    for fd in
        [OwnedFd::from(File::open("/dev/null").expect("opened")), rustix::pipe::pipe().expect("a pipe").0]
    {
        assert_eq!(kind(Segment::try_from(fd)), ErrorKind::NotOurs);
    }
}

#[test]
fn each_wrong_byte_of_a_header_is_an_error_of_its_kind() {
    let base = Base::new("header");
    let options = base.options();
    // Offsets are part of the format: see the map in header.rs.
    let cases: [(u64, &[u8], ErrorKind); 10] = [
        (0, b"CROSSPRC", ErrorKind::NotOurs),
        (8, &2_u32.to_ne_bytes(), ErrorKind::WrongVersion),
        (12, &0x0403_0201_u32.to_ne_bytes(), ErrorKind::WrongVersion),
        (16, &u64::MAX.to_ne_bytes(), ErrorKind::Damaged),
        (24, &u64::MAX.to_ne_bytes(), ErrorKind::Truncated),
        (48, &[0xff; 8], ErrorKind::Damaged),
        (64, &0o666_u32.to_ne_bytes(), ErrorKind::WrongMode),
        (72, &[1; 16], ErrorKind::WrongBoot),
        (88, &[1; 8], ErrorKind::WrongPidNamespace),
        (112, &[0; 4], ErrorKind::HalfBuilt),
    ];
    for (offset, bytes, expected) in cases {
        let path = base.leave("x");
        write_at(&path, offset, bytes);
        assert_eq!(kind(options.open("x")), expected, "offset {offset}");
        assert_eq!(kind(options.clone().read_only(true).open("x")), expected, "offset {offset}");
        assert_eq!(kind(options.open_or_create("x", 1)), expected, "offset {offset}");
        options.remove("x").expect("removed");
    }
}

#[test]
fn a_file_that_was_cut_is_refused() {
    let base = Base::new("cut");
    let path = base.leave("x");
    let whole = std::fs::metadata(&path).expect("it is there").len();
    for len in [whole - 1, whole - 4096, 4096, 4095, 8, 0] {
        OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(len)).expect("cut");
        assert_eq!(kind(base.options().open("x")), ErrorKind::Truncated, "{len} of {whole}");
    }
    base.options().remove("x").expect("removed");
    let path = base.leave("x");
    OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(whole + 4096)).expect("grown");
    assert_eq!(kind(base.options().open("x")), ErrorKind::Damaged);
    base.options().remove("x").expect("removed");
}

#[test]
fn a_changed_mode_is_noticed() {
    let base = Base::new("mode");
    let options = base.options();
    let path = base.leave("x");
    for bits in [0o666, 0o640, 0o700] {
        std::fs::set_permissions(&path, Permissions::from_mode(bits)).expect("chmod");
        assert_eq!(kind(options.open("x")), ErrorKind::WrongMode);
    }
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    drop(options.open("x").expect("as it was made"));
    let bits = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(bits(&base.names()), 0o700);
    for wide in [0o777, 0o720, 0o702] {
        std::fs::set_permissions(base.names(), Permissions::from_mode(wide)).expect("chmod");
        assert_eq!(kind(options.open("x")), ErrorKind::WrongMode);
    }
    std::fs::set_permissions(base.names(), Permissions::from_mode(0o700)).expect("chmod");
    // The umask has no say, and sharing opens the directory.
    let shared = options.clone().mode(0o664).create("shared", 1).expect("a segment");
    assert_eq!((bits(&base.path("shared")), bits(&base.names())), (0o664, 0o755));
    drop(shared);
    options.remove("x").expect("removed");
}

#[test]
fn policies_of_names() {
    let base = Base::new("policies");
    let options = base.options();
    for (policy, stays) in [(Unlink::LastClose, false), (Unlink::OwnerDrop, false), (Unlink::Never, true)] {
        let segment = options.clone().unlink_policy(policy).create("x", 1).expect("a segment");
        let (clone, again) = (segment.clone(), options.open("x").expect("it is there"));
        assert_eq!(again.unlink_policy(), policy);
        drop(segment);
        drop(again);
        assert!(base.path("x").exists(), "a handle is left");
        drop(clone);
        assert_eq!(base.path("x").exists(), stays, "{policy:?}");
    }
    options.open("x").expect("a name that stays can be opened when nobody has it");
    options.remove("x").expect("removed");
    assert_eq!(kind(options.remove("x")), ErrorKind::NotFound);
}

#[test]
fn a_name_that_leads_to_another_segment_is_left_alone() {
    let base = Base::new("another");
    let first = base.options().create("x", 1).expect("a segment");
    base.options().remove("x").expect("removed");
    let second = base.options().create("x", 1).expect("the name is free");
    assert_ne!(first.id(), second.id());
    drop(first);
    assert_eq!(base.options().open("x").expect("still there").id(), second.id());
}

#[test]
fn a_segment_is_mapped_and_joined_once() {
    let base = Base::new("once");
    let first = base.options().create("x", 1).expect("a segment");
    let opened: Vec<Segment> = std::thread::scope(|scope| {
        let open = || base.options().open("x").expect("it is there");
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect()
    });
    let sent = Segment::try_from(first.as_fd().try_clone_to_owned().expect("a copy")).expect("ours");
    for again in opened.iter().chain([&sent]) {
        assert!(Arc::ptr_eq(again.mapping(), first.mapping()));
    }
    assert_eq!(first.living().expect("counted"), 1);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let options = base.options();
            std::thread::spawn(move || {
                for _ in 0..100 {
                    drop(options.open_or_create("y", 1).expect("there or made"));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("no panic"));
}

#[test]
fn seals_hold_and_are_demanded() {
    let segment = Segment::anonymous(10_000).expect("memory");
    let fd = segment.as_fd();
    let len = rustix::fs::fstat(fd).expect("a file").st_size as u64;
    for other in [0, len - 4096, len + 4096] {
        assert_eq!(ftruncate(fd, other), Err(rustix::io::Errno::PERM), "the length is sealed");
    }
    assert_eq!(fcntl_add_seals(fd, SealFlags::WRITE), Err(rustix::io::Errno::PERM), "the seals are sealed");

    let copy = |seals: SealFlags| {
        let copy =
            memfd_create("copy", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).expect("a memory file");
        let mut bytes = vec![0; len as usize];
        rustix::io::pread(fd, &mut bytes[..], 0).expect("read");
        rustix::io::pwrite(&copy, &bytes, 0).expect("written");
        fcntl_add_seals(&copy, seals).expect("sealed");
        copy
    };
    assert_eq!(kind(Segment::try_from(copy(SealFlags::empty()))), ErrorKind::NotSealed);
    assert_eq!(kind(Segment::try_from(copy(SealFlags::GROW | SealFlags::SHRINK))), ErrorKind::NotSealed);
    let sealed = copy(SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL);
    assert_eq!(Segment::try_from(sealed).expect("sealed").id(), segment.id());
    let unsealable = memfd_create("plain", MemfdFlags::CLOEXEC).expect("a memory file");
    ftruncate(&unsealable, 1 << 16).expect("grown");
    assert_eq!(kind(Segment::try_from(unsealable)), ErrorKind::NotSealed);
    let random = memfd_create("random", MemfdFlags::ALLOW_SEALING).expect("a memory file");
    rustix::io::pwrite(&random, &[7; 8192], 0).expect("written");
    fcntl_add_seals(&random, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).expect("sealed");
    assert_eq!(kind(Segment::try_from(random)), ErrorKind::NotOurs);
}

#[test]
fn readers_read_and_nothing_else() {
    let base = Base::new("readers");
    let writer = base.options().create("x", 4096).expect("a segment");
    let object = writer.create_object("n", &counter(1), |_, _| {}).expect("room");
    let reader = base.options().read_only(true).prefault(true).open("x").expect("it is there");
    assert!(reader.is_read_only() && !reader.mapping().is_writable() && reader.granted().prefault);
    writer.mapping().place::<AtomicU64>(object.offset).expect("inside").store(9, Ordering::Relaxed);
    let seen = reader.open_object("n", &counter(1)).expect("readers find objects");
    assert_eq!((seen, word(&reader, seen)), (object, 9));
    assert_eq!(kind(reader.create_object("m", &counter(1), |_, _| {})), ErrorKind::ReadOnly);
    assert_eq!(reader.check_attached().unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(reader.mapping().place::<AtomicU64>(object.offset).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(reader.living().expect("counted"), 1, "the writer");
    drop(writer);
    assert!(!base.path("x").exists(), "a reader does not keep a name");
    assert_eq!((word(&reader, seen), reader.living().expect("counted")), (9, 0), "but it has the memory");

    let only_writer = SegmentOptions::new().single_writer(true).anonymous(4096).expect("memory");
    let object = only_writer.create_object("n", &counter(1), |_, _| {}).expect("the creator goes on writing");
    let received = Segment::try_from(only_writer.as_fd().try_clone_to_owned().expect("a copy"));
    let received = received.expect("it can be read");
    assert!(received.is_read_only());
    only_writer.mapping().place::<AtomicU64>(object.offset).expect("inside").store(4, Ordering::Relaxed);
    assert_eq!(word(&received, received.open_object("n", &counter(1)).expect("found")), 4);
}

#[test]
fn objects_by_name() {
    let segment = SegmentOptions::new().objects(4).anonymous(4096).expect("memory");
    let object = segment.create_object("hits", &counter(2), |_, _| {}).expect("room");
    assert_eq!((object.index, object.bytes, object.count, object.offset % 128), (0, 16, 2, 0));
    assert_eq!(kind(segment.create_object("hits", &counter(2), |_, _| {})), ErrorKind::Exists);
    assert_eq!(segment.open_object("hits", &counter(1)).expect("large enough"), object);
    assert_eq!(segment.object_at(0, &counter(1)).expect("large enough"), object);
    assert_eq!(kind(segment.open_object("hits", &counter(3))), ErrorKind::TooSmall);
    assert_eq!(kind(segment.open_object("misses", &counter(1))), ErrorKind::NotFound);
    assert_eq!(kind(segment.object_at(1, &counter(1))), ErrorKind::NotFound);
    assert_eq!(kind(segment.object_at(u32::MAX, &counter(1))), ErrorKind::NotFound);

    let other_kind = ObjectSpec { kind: ObjectKind::new("Lock"), ..counter(1) };
    let error = segment.open_object("hits", &other_kind).expect_err("another kind");
    assert_eq!(error.kind(), ErrorKind::WrongKind);
    assert!(error.to_string().ends_with("it is a Counter, not a Lock"), "{error}");

    static FIELDS: [Field; 2] = [Field::new("id", 0, u64::LAYOUT), Field::new("qty", 8, u32::LAYOUT)];
    static WIDER: [Field; 2] = [Field::new("id", 0, u64::LAYOUT), Field::new("qty", 8, u64::LAYOUT)];
    static ORDER: Layout = Layout::structure::<[u64; 2]>("Order", &FIELDS);
    static WIDE_ORDER: Layout = Layout::structure::<[u64; 2]>("Order", &WIDER);
    segment.create_object("order", &ObjectSpec { layout: &ORDER, ..counter(2) }, |_, _| {}).expect("room");
    let error = segment.open_object("order", &ObjectSpec { layout: &WIDE_ORDER, ..counter(2) });
    let error = error.expect_err("another type");
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert!(error.to_string().contains("qty"), "names the field: {error}");

    let error = segment.create_object("large", &counter(500), |_, _| {}).expect_err("no room");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let figures = "the segment has 4096 bytes for objects, 144 used, 4000 asked";
    assert!(error.to_string().contains(figures), "{error}");
    for (bytes, align) in [(0, 8), (8, 0), (8, 3), (8, 8192)] {
        let spec = ObjectSpec { bytes, align, ..counter(1) };
        assert_eq!(kind(segment.create_object("odd", &spec, |_, _| {})), ErrorKind::InvalidLength);
    }
    assert_eq!(kind(segment.create_object("", &counter(1), |_, _| {})), ErrorKind::InvalidName);
    let paged = ObjectSpec { bytes: u64::MAX, align: 4096, ..counter(1) };
    assert_eq!(kind(segment.create_object("paged", &paged, |_, _| {})), ErrorKind::NoSpace);
    segment.create_object("three", &counter(1), |_, _| {}).expect("room");
    segment.create_object("four", &counter(1), |_, _| {}).expect("room");
    assert_eq!(kind(segment.create_object("five", &counter(1), |_, _| {})), ErrorKind::NoSpace);
    let listed: Vec<_> =
        segment.objects().into_iter().map(|info| (info.name, info.kind.to_string())).collect();
    let expected = ["hits", "order", "three", "four"].map(|name| (name.to_owned(), "Counter".to_owned()));
    assert_eq!(listed, expected);
    assert_eq!(segment.used(), 3 * 128 + 8);
}

#[test]
fn of_many_who_make_an_object_at_once_one_does() {
    let base = Base::new("at-once");
    let (made, shared) = (AtomicUsize::new(0), base.options().create("x", 1 << 16).expect("a segment"));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for i in 0..40 {
                    let object =
                        shared.open_or_create_object(&format!("n{i}"), &counter(1), |mapping, offset| {
                            made.fetch_add(1, Ordering::Relaxed);
                            mapping
                                .place::<AtomicU64>(offset)
                                .expect("inside")
                                .store(i + 1, Ordering::Relaxed);
                        });
                    assert_eq!(word(&shared, object.expect("there or made")), i + 1);
                }
            });
        }
    });
    assert_eq!((made.into_inner(), shared.objects().len()), (40, 40));
}

#[test]
fn who_holds_a_lock_too_long_is_an_error() {
    let base = Base::new("busy");
    let options = base.options().timeout(Duration::from_millis(50));
    let segment = options.create("x", 4096).expect("a segment");
    let directory = File::open(base.names()).expect("opened");
    flock(&directory, FlockOperation::LockExclusive).expect("locked");
    assert_eq!(kind(options.open("x")), ErrorKind::Busy);
    assert_eq!(kind(options.create("y", 1)), ErrorKind::Busy);
    drop(directory);
    let file = File::open(base.path("x")).expect("opened");
    flock(&file, FlockOperation::LockExclusive).expect("locked");
    assert_eq!(kind(segment.create_object("n", &counter(1), |_, _| {})), ErrorKind::Busy);
    drop(file);
    segment.create_object("n", &counter(1), |_, _| {}).expect("free again");
}

#[test]
fn files_stay_and_outlive_a_boot() {
    let base = Base::new("files");
    let (options, path) = (SegmentOptions::new().participants(2), base.0.join("data"));
    assert_eq!(kind(options.open_file(&path)), ErrorKind::NotFound);
    assert_eq!(kind(options.open_file(base.0.join("no/such/directory"))), ErrorKind::NotFound);
    let segment = options.file(&path, 4096).expect("a file");
    assert_eq!(kind(options.create_file(&path, 4096)), ErrorKind::Exists);
    let object = segment.create_object("n", &counter(1), |_, _| {}).expect("room");
    segment.mapping().place::<AtomicU64>(object.offset).expect("inside").store(5, Ordering::Relaxed);
    let id = segment.id();
    drop(segment);

    // Both slots taken by processes of another boot, whose ids other processes have now.
    let me = u64::from(std::process::id());
    for slot in [4096, 4096 + 64] {
        write_at(&path, slot, &(me << 40 | 77).to_ne_bytes());
        write_at(&path, slot + 20, &std::process::id().to_ne_bytes());
        write_at(&path, slot + 40, &(me << 40 | 77).to_ne_bytes());
    }
    assert_eq!(kind(options.open_file(&path)), ErrorKind::TooManyParticipants);
    write_at(&path, 72, &[9; 16]);
    let received = File::options().read(true).write(true).open(&path).expect("opened");
    assert_eq!(kind(Segment::try_from(OwnedFd::from(received))), ErrorKind::WrongBoot);
    let segment = options.file(&path, 4096).expect("the first after the boot clears the table");
    assert_eq!((segment.id(), segment.living().expect("counted")), (id, 1));
    assert_eq!(word(&segment, segment.open_object("n", &counter(1)).expect("found")), 5);
    drop(segment);
    options.open_file(&path).expect("nothing is left to clear");
    std::fs::remove_file(path).expect("removed");

    // A name is for one boot, wherever it stands.
    let left = base.leave("x");
    write_at(&left, 60, &1_u32.to_ne_bytes()); // LastClose
    write_at(&left, 72, &[9; 16]);
    drop(base.options().open_or_create("x", 1).expect("what another boot left is replaced"));
}

#[test]
fn a_damaged_directory_is_an_error_and_no_more() {
    let base = Base::new("damaged");
    let segment = base.options().create("x", 8192).expect("a segment");
    let object = segment.create_object("n", &counter(1), |_, _| {}).expect("room");
    let entry = 4096 + 128 * 64;
    write_at(&base.path("x"), entry + 32, &u64::MAX.to_ne_bytes());
    assert_eq!(kind(segment.open_object("n", &counter(1))), ErrorKind::Damaged);
    assert_eq!(kind(segment.object_at(0, &counter(1))), ErrorKind::Damaged);
    assert_eq!(kind(segment.create_object("m", &counter(1), |_, _| {})), ErrorKind::Damaged);
    assert!(segment.objects().is_empty());
    write_at(&base.path("x"), entry + 32, &object.offset.to_ne_bytes());
    segment.open_object("n", &counter(1)).expect("as it was");
}

#[test]
fn wishes_are_granted_or_not_but_never_in_the_way() {
    let wishes = SegmentOptions::new().huge_pages(true).lock_in_memory(true).prefault(true);
    for numa in [Numa::Node(0), Numa::Node(255), Numa::Interleave(1), Numa::Interleave(u64::MAX)] {
        let segment = wishes.clone().numa(numa).anonymous(3 << 20).expect("wishes are no conditions");
        println!("{numa:?}: {:?}", segment.granted());
        assert!(segment.granted().prefault);
        let object = segment.create_object("n", &counter(1), |_, _| {}).expect("room");
        assert_eq!(word(&segment, object), 0);
        let sent = Segment::try_from(segment.as_fd().try_clone_to_owned().expect("a copy")).expect("ours");
        assert_eq!(sent.id(), segment.id());
    }
    assert!(!SegmentOptions::new().numa(Numa::Node(255)).anonymous(1).expect("memory").granted().numa);
    assert_eq!(Segment::anonymous(1).expect("memory").granted(), crossproc_segment::Granted::default());
}

#[test]
fn memory_of_others_becomes_a_segment() {
    /// Says when it is dropped.
    struct Keep(Arc<AtomicUsize>, #[expect(dead_code, reason = "keeps the memory")] Arc<Mapping>);
    impl Drop for Keep {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let memory = Mapping::heap(1 << 18);
    let adopt = |offset: usize, len: usize| {
        let base = std::ptr::NonNull::new(memory.base().wrapping_add(offset)).expect("mapped");
        let keep = Box::new(Keep(Arc::clone(&dropped), Arc::clone(&memory)));
        // SAFETY: inside of the heap mapping, which `keep` keeps; only segments and atomics reach it.
        unsafe { Segment::adopt(base, len, keep) }
    };
    assert_eq!(kind(adopt(8, 1 << 16)), ErrorKind::InvalidLength);
    assert_eq!(kind(adopt(0, 4096)), ErrorKind::InvalidLength);
    assert_eq!(kind(adopt(0, 0)), ErrorKind::InvalidLength);
    assert_eq!(dropped.swap(0, Ordering::Relaxed), 3, "what could not be adopted is given back");

    let segment = adopt(0, 1 << 16).expect("zeroed memory");
    assert!(segment.fd().is_none());
    let object = segment.create_object("n", &counter(1), |_, _| {}).expect("room");
    let again = adopt(0, 1 << 16).expect("attaches");
    assert_eq!(again.id(), segment.id());
    assert_eq!(again.open_object("n", &counter(1)).expect("found"), object);
    let (sent, _) = crossproc_segment::handover::pack(|| postcard::to_stdvec(&segment));
    assert!(sent.is_err(), "it has no descriptor");
    dropped.store(0, Ordering::Relaxed);
    drop((segment, again));
    assert_eq!(dropped.load(Ordering::Relaxed), 1, "the one that is left");
    let segment = adopt(0, 1 << 16).expect("attaches to what is there");
    assert_eq!(segment.objects().len(), 1);

    let random = memory.place_slice::<AtomicU64>(Span { offset: 1 << 17, count: 4096 }).expect("inside");
    random.iter().for_each(|w| w.store(0x1234_5678, Ordering::Relaxed));
    assert_eq!(kind(adopt(1 << 17, 1 << 16)), ErrorKind::NotOurs);
    assert!(random.iter().all(|w| w.load(Ordering::Relaxed) == 0x1234_5678), "and nothing was written");
}

#[test]
fn a_claim_on_adopted_memory_that_nobody_holds_is_taken_over() {
    let memory = Mapping::heap(1 << 16);
    let base = std::ptr::NonNull::new(memory.base()).expect("mapped");
    let claim = memory.place::<AtomicU64>(120).expect("inside");
    // SAFETY: the heap mapping, which is kept; only segments and atomics reach it.
    let segment = unsafe { Segment::adopt(base, 1 << 16, Box::new(Arc::clone(&memory))) }.expect("adopted");
    // Slot 3, generation 9: nobody was ever that, so whoever wrote it is not there any more.
    claim.store(9 << 16 | 3, Ordering::Relaxed);
    segment.create_object("n", &counter(1), |_, _| {}).expect("the claim is void");
    claim.store(u64::MAX, Ordering::Relaxed);
    segment.create_object("m", &counter(1), |_, _| {}).expect("scribbled claims are void");
    assert_eq!(claim.load(Ordering::Relaxed), 0);
}

#[cfg(feature = "shared_memory")]
#[test]
fn a_shmem_becomes_a_segment() {
    use shared_memory::ShmemConf;
    let ours = ShmemConf::new().size(1 << 18).create().expect("a mapping");
    let name = ours.get_os_id().to_owned();
    let theirs = ShmemConf::new().os_id(&name).open().expect("the same memory at another address");
    let first = Segment::from_shmem(ours).expect("zeroed memory");
    let second = Segment::from_shmem(theirs).expect("attaches");
    assert_eq!(first.id(), second.id());
    let object = first.create_object("n", &counter(1), |_, _| {}).expect("room");
    first.mapping().place::<AtomicU64>(object.offset).expect("inside").store(3, Ordering::Relaxed);
    assert_eq!(word(&second, second.open_object("n", &counter(1)).expect("found")), 3);
    assert_eq!(first.living().expect("counted"), 2, "two mappings, two places in the table");
    drop(first);
    assert!(
        !Path::new("/dev/shm").join(name.trim_start_matches('/')).exists(),
        "its owner removes it as ever"
    );
    assert_eq!(second.objects().len(), 1);
}

/// What the file of a segment takes, in bytes.
fn taken(segment: &Segment) -> u64 {
    rustix::fs::fstat(segment.fd().expect("a file")).expect("looked at").st_blocks as u64 * 512
}

fn with_windows(bytes: u64) -> ObjectSpec {
    ObjectSpec { windows: bytes, ..counter(1) }
}

#[test]
fn windows_take_memory_only_while_it_is_allocated() {
    const TEBIBYTE: u64 = 1 << 40;
    let base = Base::new("windows");
    let options = base.options().windows(TEBIBYTE + 1);
    let in_shm = SegmentOptions::new().windows(TEBIBYTE + 1);
    let name = format!("windows-{}", std::process::id());
    let segments = [
        options.anonymous(4096).expect("memory"),
        options.clone().prefault(true).huge_pages(true).anonymous(4096).expect("memory"),
        in_shm.create(&name, 4096).expect("a name"),
        in_shm.clone().prefault(true).lock_in_memory(true).open_or_create(&name, 4096).expect("a name"),
    ];
    for segment in segments {
        assert_eq!(segment.capacity() % 4096, 0);
        assert!(segment.windows() as u64 > TEBIBYTE && segment.windows() as u64 <= TEBIBYTE + (2 << 20));
        let before = taken(&segment);
        assert!(before < 64 << 20, "{before} bytes are there");

        let [one, two] = [("one", 1 << 30), ("two", 5000)].map(|(name, bytes)| {
            segment.open_or_create_object(name, &with_windows(bytes), |_, _| {}).expect("room")
        });
        let none = segment.open_or_create_object("none", &counter(1), |_, _| {}).expect("room");
        assert_eq!((none.windows_at, none.windows), (0, 0));
        assert_eq!((one.windows, two.windows), (1 << 30, 8192));
        assert_eq!(two.windows_at, one.windows_at + (1 << 30), "side by side");
        assert_eq!(segment.open_object("one", &counter(1)).expect("found"), one);
        assert_eq!(kind(segment.open_object("one", &with_windows((1 << 30) + 1))), ErrorKind::TooSmall);
        let error = segment.create_object("three", &with_windows(TEBIBYTE), |_, _| {}).expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("raise `SegmentOptions::windows`"), "{error}");
        assert_eq!(
            kind(segment.create_object("three", &with_windows(u64::MAX), |_, _| {})),
            ErrorKind::NoSpace
        );

        let at = one.windows_at + (1 << 21);
        segment.allocate_window(at, 3 << 20).expect("memory");
        let span = Span { offset: at, count: (3 << 20) / 8 };
        let words = segment.mapping().place_slice::<AtomicU64>(span).expect("inside");
        assert!(words.iter().all(|word| word.swap(7, Ordering::Relaxed) == 0));
        segment.allocate_window(at, 3 << 20).expect("once more changes nothing");
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 7));
        assert!(taken(&segment) >= before + (3 << 20));
        segment.release_window(at, 3 << 20).expect("given back");
        assert!(taken(&segment) < before + (1 << 20), "{} before, {} now", before, taken(&segment));

        let (start, end) = (segment.mapping().len() - segment.windows(), segment.mapping().len() as u64);
        let outside =
            [(0, 4096), (start as u64 - 1, 2), (end - 4096, 4097), (end, 1), (at, 0), (u64::MAX, 2)];
        for (offset, len) in outside {
            assert_eq!(
                kind(segment.allocate_window(offset, len)),
                ErrorKind::InvalidLength,
                "{offset} {len}"
            );
            assert_eq!(kind(segment.release_window(offset, len)), ErrorKind::InvalidLength, "{offset} {len}");
        }
    }
}

#[test]
fn windows_of_files_and_of_those_who_may_not_write() {
    let base = Base::new("windows-of");
    let path = base.0.join("f");
    let file = base.options().windows(1 << 30).file(&path, 4096).expect("a file");
    let before = taken(&file);
    assert!(before < 1 << 24, "{before} bytes are there");
    assert_eq!(kind(base.options().windows(1 << 31).file(&path, 4096)), ErrorKind::TooSmall);
    let at = file.create_object("one", &with_windows(1 << 20), |_, _| {}).expect("room").windows_at;
    file.allocate_window(at, 1 << 20).expect("room on the disk");
    assert!(taken(&file) >= before + (1 << 20));
    match file.release_window(at, 1 << 20) {
        Ok(()) => assert!(taken(&file) < before + (1 << 20)),
        Err(e) => assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}"),
    }
    let reader = base.options().read_only(true).open_file(&path).expect("it is there");
    assert_eq!(kind(reader.allocate_window(at, 4096)), ErrorKind::ReadOnly);
    assert_eq!(reader.open_object("one", &with_windows(1 << 20)).expect("found").windows_at, at);
    drop((file, reader));
    OpenOptions::new().write(true).open(&path).expect("the file").set_len(1 << 29).expect("cut");
    assert_eq!(kind(base.options().open_file(&path)), ErrorKind::Truncated);
    std::fs::remove_file(&path).expect("it is there");

    let single = SegmentOptions::new().windows(1 << 20).single_writer(true).anonymous(4096).expect("memory");
    let at = single.create_object("one", &with_windows(1 << 20), |_, _| {}).expect("room").windows_at;
    single.allocate_window(at, 8192).expect("the creator goes on writing");
    assert_eq!(
        kind(single.release_window(at, 8192)),
        ErrorKind::Denied,
        "the kernel does not punch sealed files"
    );

    let memory = Mapping::heap(1 << 17);
    let (base, len) = (std::ptr::NonNull::new(memory.base()).expect("mapped"), memory.len());
    // SAFETY: the segment keeps the memory, which nobody else uses.
    let adopted = unsafe { Segment::adopt(base, len, Box::new(Arc::clone(&memory))) }.expect("large enough");
    assert_eq!(adopted.windows(), 0);
    assert_eq!(kind(adopted.allocate_window(0, 4096)), ErrorKind::Unsupported);
    assert_eq!(kind(adopted.release_window(0, 4096)), ErrorKind::Unsupported);
    assert_eq!(kind(adopted.create_object("one", &with_windows(1), |_, _| {})), ErrorKind::NoSpace);
    let options = SegmentOptions::new().windows(4096);
    // SAFETY: as above.
    let refused = unsafe { options.adopt(base, len, Box::new(Arc::clone(&memory))) };
    assert_eq!(kind(refused), ErrorKind::Unsupported);
}
