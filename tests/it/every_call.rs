//! A process that makes something in a segment, or just comes and goes, is killed at each of its system calls: before the call, and
//! after it. Whatever it leaves must not stand in the way of the next one.
//!
//! What is not tried this way: death within a system call or between two calls (that is the business of single steps; one such
//! moment is picked out here: while an object is filled), and the calls of the helper thread.

use std::path::PathBuf;
use std::sync::Arc;

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_primitives::Objects;
use crossproc_segment::plain::Plain;
use crossproc_segment::{
    ErrorKind, Mapping, ObjectKind, ObjectSpec, PlacedSlice, Segment, SegmentOptions, Span,
};
use crossproc_tests::{Board, child, isolated, join, kill_and_reap, not_run, tied_to_parent};

use crate::kernel::{End, Traced};

/// Kills a process that runs `act` at its first stop, at its second, .. until it comes to its end; after each death runs `check`.
pub(crate) fn at_every_call<T>(
    what: &str,
    prepare: impl Fn() -> T,
    act: impl Fn(&T),
    check: impl Fn(T, u64),
) {
    let board = Board::new(8);
    for stop in 0..10_000 {
        let case = prepare();
        board.set(0, 0);
        let traced = Traced::start(|| {
            act(&case);
            board.set(0, 1);
        });
        let mut traced = match traced {
            Ok(traced) => traced,
            Err(reason) => return not_run(&format!("killing at every system call: {reason}")),
        };
        if let Some(end) = (0..stop).find_map(|_| traced.step()) {
            assert_eq!((end, board.get(0)), (End::Exited(0), 1), "{what}: not killed, it succeeds");
            check(case, stop);
            println!("{what}: killed {stop} times, before and after each of about {} calls", stop / 2);
            assert!(stop > 40, "{what}: so few stops can not be all");
            return;
        }
        assert_eq!(traced.kill(), End::Killed(9), "{what}: stop {stop}");
        check(case, stop);
    }
    panic!("{what}: no end");
}

/// A name that no other test has.
fn name(what: &str) -> String {
    format!("it-calls-{what}-{}", std::process::id())
}

fn is_listed(name: &str) -> bool {
    SegmentOptions::new().names().unwrap().iter().any(|listed| listed == name)
}

const LEN: usize = 32 * 1024;
const WORDS: [u64; 500] = [7; 500];

/// The object is there as a whole or not at all, can be made, and there is room for another.
fn check_object(segment: &Segment, stop: u64) {
    let objects = segment.objects();
    assert!(objects.len() <= 1, "stop {stop}: {objects:?}");
    if let [object] = &objects[..] {
        assert_eq!(object.name, "object", "stop {stop}");
    }
    let again = segment.value("object", WORDS).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
    assert_eq!(again.get(), Ok(WORDS), "stop {stop}");
    let other = segment.array("another", &[9_u8; 100]).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
    assert_eq!(other.to_vec(), Ok(vec![9; 100]), "stop {stop}");
    let used = again.segment().used();
    assert!(used < 2 * size_of_val(&WORDS) * 4, "stop {stop}: {used} bytes, the dead one's are lost");
    assert_eq!(segment.living().unwrap(), 1, "stop {stop}: the dead one is known as dead");
}

#[test]
fn creating_an_anonymous_segment_with_an_object() {
    isolated(|()| {
        at_every_call(
            "anonymous segment, object",
            || (),
            |()| drop(Segment::anonymous(LEN).unwrap().value("object", WORDS).unwrap()),
            |(), stop| {
                let segment = Segment::anonymous(LEN).unwrap();
                segment.value("object", WORDS).unwrap();
                check_object(&segment, stop);
            },
        );
    });
}

#[test]
fn creating_an_object_in_a_segment_that_others_use() {
    isolated(|()| {
        at_every_call(
            "object in a shared segment",
            || Segment::anonymous(LEN).unwrap(),
            |segment| drop(segment.attach_again().unwrap().value("object", WORDS).unwrap()),
            |segment, stop| check_object(&segment, stop),
        );
    });
}

#[test]
fn creating_a_named_segment_and_leaving_it() {
    isolated(|()| {
        at_every_call(
            "named segment, object, last close",
            || name("create"),
            |name| drop(Segment::create(name, LEN).unwrap().value("object", WORDS).unwrap()),
            |name, stop| {
                if stop % 2 == 0 {
                    let nobody = Segment::open(&name).map(drop).unwrap_err();
                    assert_eq!(nobody.kind(), ErrorKind::NotFound, "stop {stop}: {nobody}");
                    assert!(!is_listed(&name), "stop {stop}");
                }
                let made = if stop % 3 == 0 { Segment::open_or_create } else { Segment::create };
                let segment = made(&name, LEN).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
                assert!(segment.objects().is_empty(), "stop {stop}: nothing of the dead one's");
                segment.value("object", WORDS).unwrap();
                check_object(&segment, stop);
                drop(segment);
                assert!(!is_listed(&name), "stop {stop}");
            },
        );
    });
}

#[test]
fn opening_or_creating_an_object_in_a_named_segment() {
    isolated(|()| {
        let prepare = || {
            let name = name("object");
            (Segment::create(&name, LEN).unwrap(), name)
        };
        at_every_call(
            "open, object, leave",
            prepare,
            |(_, name)| drop(Segment::open(name).unwrap().value("object", WORDS).unwrap()),
            |(segment, name), stop| {
                assert!(is_listed(&name), "stop {stop}: a stranger does not remove it");
                check_object(&segment, stop);
                drop(segment);
                assert!(!is_listed(&name), "stop {stop}: the last one does");
            },
        );
    });
}

#[test]
fn replacing_a_named_segment_whose_users_are_dead() {
    isolated(|()| {
        let prepare = || {
            let name = name("replace");
            // A copy of this process makes it and ends without leaving it.
            let dead = crate::kernel::Forked::new(|| std::mem::forget(Segment::create(&name, LEN).unwrap()));
            assert_eq!(dead.end(), End::Exited(0));
            assert!(is_listed(&name));
            name
        };
        at_every_call(
            "replace a dead segment",
            prepare,
            |name| drop(Segment::create(name, LEN).unwrap()),
            |name, stop| {
                let segment = Segment::create(&name, LEN).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
                segment.value("object", WORDS).unwrap();
                check_object(&segment, stop);
                drop(segment);
                assert!(!is_listed(&name), "stop {stop}");
            },
        );
    });
}

const SPEC: ObjectSpec = ObjectSpec {
    kind: ObjectKind::new("Words"),
    layout: u64::LAYOUT,
    count: 512,
    bytes: 4096,
    align: 64,
    windows: 0,
};

fn words(mapping: &Arc<Mapping>, offset: u64) -> PlacedSlice<AtomicU64> {
    mapping.place_slice(Span { offset, count: SPEC.count }).unwrap()
}

/// Writes into all of a new object, and comes no further.
fn fill_and_park((board, segment): (Board, Segment)) {
    tied_to_parent();
    segment
        .create_object("half", &SPEC, |mapping, offset| {
            words(mapping, offset).iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
            board.set(0, 1);
            loop {
                std::thread::park();
            }
        })
        .unwrap();
}

/// Makes an object; returns what its memory held before, all words together.
fn make((board, segment): (Board, Segment)) -> u64 {
    board.set(1, 1);
    let mut held = 0;
    segment
        .create_object("whole", &SPEC, |mapping, offset| {
            held = words(mapping, offset).iter().fold(0, |all, word| all | word.load(Ordering::Relaxed));
        })
        .unwrap();
    held
}

#[test]
fn a_creator_killed_while_it_fills_an_object_leaves_zeros_and_a_free_place() {
    let name = name("fill");
    for segment in [Segment::anonymous(LEN).unwrap(), Segment::create(&name, LEN).unwrap()] {
        let board = Board::new(8);
        let creator = child(fill_and_park, (board.clone(), segment.clone()));
        board.await_at_least(0, 1);
        assert!(segment.objects().is_empty(), "nobody sees half of it");
        assert_eq!(segment.open_object("half", &SPEC).unwrap_err().kind(), ErrorKind::NotFound);
        let next = child(make, (board.clone(), segment.clone()));
        board.await_at_least(1, 1);
        assert!(next.is_alive(), "one creates at a time");
        kill_and_reap(&creator);
        assert_eq!(join(next), 0, "what the dead one wrote is gone");
        let names: Vec<_> = segment.objects().into_iter().map(|object| object.name).collect();
        assert_eq!(names, ["whole"]);
        assert_eq!(segment.used(), 4096, "in the place of the one that was never made");
    }
}

#[test]
fn creating_a_segment_in_a_file() {
    /// A directory that is removed at the end, with all that is in it.
    struct Directory(PathBuf);
    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    isolated(|()| {
        let directory =
            Directory(std::env::temp_dir().join(format!("crossproc-calls-{}", std::process::id())));
        std::fs::create_dir(&directory.0).unwrap();
        let path = directory.0.join("file");
        at_every_call(
            "file segment, object",
            || {
                let _ = std::fs::remove_file(&path);
            },
            |()| drop(Segment::file(&path, LEN).unwrap().value("object", WORDS).unwrap()),
            |(), stop| {
                let segment = Segment::file(&path, LEN).unwrap_or_else(|e| panic!("stop {stop}: {e}"));
                check_object(&segment, stop);
                drop(segment);
                let left: Vec<_> =
                    std::fs::read_dir(&directory.0).unwrap().map(|e| e.unwrap().file_name()).collect();
                assert_eq!(left, ["file"], "stop {stop}: and nothing else");
            },
        );
    });
}
