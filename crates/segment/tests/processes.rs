//! What needs several processes, namespaces or limits. No test harness and no threads of our own here, so
//! that `fork` is safe; every scenario runs in a child process and ends within a minute or is a failure (see
//! `child::fork`).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossproc_segment::plain::Plain;
use crossproc_segment::{
    ErrorKind, Object, ObjectKind, ObjectSpec, PlacedSlice, Segment, SegmentOptions, Span, Unlink,
};

mod child;
use child::{Child, fork, not_run};

const SCENARIOS: &[(&str, fn())] = &[
    ("two_processes_create_one_name_at_once", two_processes_create_one_name_at_once),
    ("names_that_come_and_go_are_never_an_error", names_that_come_and_go_are_never_an_error),
    ("the_last_of_several_processes_removes_the_name", the_last_of_several_processes_removes_the_name),
    ("what_killed_users_left_is_replaced", what_killed_users_left_is_replaced),
    ("a_forked_child_takes_no_part_until_it_attaches", a_forked_child_takes_no_part_until_it_attaches),
    ("a_fork_while_others_hold_our_locks_is_harmless", a_fork_while_others_hold_our_locks_is_harmless),
    (
        "a_segment_that_was_sent_is_closed_by_its_last_user",
        a_segment_that_was_sent_is_closed_by_its_last_user,
    ),
    ("a_creator_killed_at_any_system_call_blocks_nobody", a_creator_killed_at_any_system_call_blocks_nobody),
    ("an_adopter_killed_while_it_creates_is_succeeded", an_adopter_killed_while_it_creates_is_succeeded),
    ("too_many_files_is_an_error_and_leaks_none", too_many_files_is_an_error_and_leaks_none),
    ("too_many_participants_is_an_error", too_many_participants_is_an_error),
    ("another_user_is_kept_out", another_user_is_kept_out),
    ("another_pid_namespace_is_refused", another_pid_namespace_is_refused),
    ("a_full_file_system_is_an_error", a_full_file_system_is_an_error),
];

/// Runs the scenarios whose names contain the first argument that is no option, and reports as cargo's
/// harness does.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted =
        |name: &str| arguments.iter().filter(|a| !a.starts_with('-')).all(|a| name.contains(a.as_str()));
    let chosen: Vec<_> = SCENARIOS.iter().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let mut failed = 0;
    for (name, scenario) in &chosen {
        let verdict = fork(scenario).wait();
        println!(
            "test {name} ... {}",
            if verdict == Ok(0) { "ok".into() } else { format!("FAILED ({verdict:?})") }
        );
        failed += usize::from(verdict != Ok(0));
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, filtered) = (chosen.len() - failed, SCENARIOS.len() - chosen.len());
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out\n"
    );
    ExitCode::from(u8::from(failed > 0))
}

/// A directory in which users' directories of names are; removing it fails if a name was left.
struct Base(PathBuf);

impl Base {
    fn new(scenario: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("crossproc-processes-{}-{scenario}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the scenario");
        Self(path)
    }

    fn options(&self) -> SegmentOptions {
        SegmentOptions::new().directory(&self.0).timeout(Duration::from_secs(5))
    }

    fn names(&self) -> PathBuf {
        self.0.join(format!("crossproc-{}", rustix::process::geteuid().as_raw()))
    }

    fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).expect("it is there").next().is_none()
    }

    fn end(self) {
        std::fs::remove_dir(&self.0).expect("no name and no directory of names is left");
    }
}

/// Words that a scenario's processes share, made before they are forked.
struct Board(PlacedSlice<AtomicU64>);

impl Board {
    fn new() -> Self {
        let segment = Segment::anonymous(4096).expect("memory");
        let object = segment.create_object("board", &words(64), |_, _| {}).expect("room");
        // The words keep the memory; nobody needs to take part in the segment.
        Self(segment.mapping().place_slice(Span { offset: object.offset, count: 64 }).expect("inside"))
    }

    fn add(&self, word: usize) -> u64 {
        self.0[word].fetch_add(1, Ordering::SeqCst) + 1
    }

    fn get(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::SeqCst)
    }

    /// Waits until `word` has at least this value.
    fn await_at_least(&self, word: usize, value: u64) {
        let mut looks = 0_u32;
        while self.get(word) < value {
            looks += 1;
            match looks {
                ..200 => std::hint::spin_loop(),
                200..5000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// Waits until `all` processes have come here for the `round`th time (counted from 1).
    fn meet(&self, word: usize, all: u64, round: u64) {
        self.add(word);
        self.await_at_least(word, all * round);
    }
}

fn words(count: u64) -> ObjectSpec {
    ObjectSpec {
        kind: ObjectKind::new("Words"),
        layout: u64::LAYOUT,
        count,
        bytes: count * 8,
        align: 8,
        windows: 0,
    }
}

fn first_word(segment: &Segment, object: Object) -> u64 {
    segment.mapping().place_for_reading::<AtomicU64>(object.offset).expect("inside").load(Ordering::Relaxed)
}

fn kind<T: std::fmt::Debug>(result: Result<T, crossproc_segment::Error>) -> ErrorKind {
    result.expect_err("it can not work").kind()
}

fn killed(child: Child) {
    child.kill();
    assert_eq!(child.wait(), Err(libc::SIGKILL));
}

fn ended_well(child: Child) {
    assert_eq!(child.wait(), Ok(0), "the child found what it should");
}

/// 1000 rounds; in odd ones both `create`, in even ones both `open_or_create`. Beside it the same race by the
/// means that everybody uses first (look whether it is there, then create), which must be seen to lose.
fn two_processes_create_one_name_at_once() {
    const ROUNDS: u64 = 1000;
    const START: usize = 0;
    const DONE: usize = 1;
    const CREATED: usize = 2;
    const NAIVE_START: usize = 3;
    const NAIVE_CREATED: usize = 4;
    let (base, board) = (Base::new("race"), Board::new());
    let naive = base.0.join("naive");
    let race = || {
        let options = base.options().participants(4).objects(1);
        for round in 1..=ROUNDS {
            board.meet(NAIVE_START, 2, round);
            if !naive.exists() {
                std::thread::sleep(Duration::from_micros(20)); // what building the segment takes at least
                std::fs::File::create(&naive).expect("created");
                board.add(NAIVE_CREATED);
            }
            board.meet(START, 2, round);
            let _ = std::fs::remove_file(&naive);
            let segment = if round % 2 == 1 {
                match options.create("x", 4096) {
                    Ok(segment) => {
                        board.add(CREATED);
                        segment
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Exists, "{e}");
                        options.open("x").expect("the winner's, complete")
                    }
                }
            } else {
                let segment = options.open_or_create("x", 4096).expect("one or the other");
                if segment.creator_pid() == std::process::id() {
                    board.add(CREATED);
                }
                segment
            };
            assert_eq!(segment.capacity(), 4096);
            let object = segment.open_or_create_object("n", &words(1), |mapping, offset| {
                let word = mapping.place::<AtomicU64>(offset).expect("inside");
                word.store(round, Ordering::Relaxed);
            });
            assert_eq!(first_word(&segment, object.expect("there or made")), round);
            board.meet(DONE, 2, round);
            assert_eq!(board.get(CREATED), round, "exactly one creates");
        }
    };
    let children = [fork(race), fork(race)];
    children.into_iter().for_each(ended_well);
    let (ours, naive) = (board.get(CREATED), board.get(NAIVE_CREATED));
    println!("{ROUNDS} rounds: {ours} creations, {naive} by looking first");
    assert_eq!(ours, ROUNDS);
    assert!(naive > ROUNDS, "the race was never there");
    base.end();
}

/// Without meeting each other: segments, and the directory with the last of them, appear and vanish under
/// everybody's hands.
fn names_that_come_and_go_are_never_an_error() {
    let base = Base::new("storm");
    let children = [0, 1, 2].map(|who| {
        fork(|| {
            let options = base.options().participants(8).objects(1);
            for round in 0..400 {
                let name = ["x", "y"][(round + who) % 2];
                let segment = options.open_or_create(name, 4096).expect("there or made");
                assert!(segment.living().expect("counted") >= 1);
                drop(segment);
                match options.create(name, 4096).and_then(|_| options.open(name)) {
                    Ok(_) => {}
                    Err(e) => assert!(matches!(e.kind(), ErrorKind::Exists | ErrorKind::NotFound), "{e}"),
                }
            }
        })
    });
    children.into_iter().for_each(ended_well);
    base.end();
}

fn the_last_of_several_processes_removes_the_name() {
    let (base, board) = (Base::new("last"), Board::new());
    let first = base.options().create("x", 4096).expect("a segment");
    let user = fork(|| {
        let segment = base.options().open("x").expect("it is there");
        board.add(0);
        board.await_at_least(1, 1);
        drop(segment);
    });
    board.await_at_least(0, 1);
    assert_eq!(first.living().expect("counted"), 2);
    drop(first);
    assert_eq!(base.options().names().expect("a list"), ["x"], "somebody still has it");
    board.add(1);
    ended_well(user);
    assert!(base.is_empty());

    // The creator's drop takes the name away from under those who are attached, and they go on.
    let owned = base.options().unlink_policy(Unlink::OwnerDrop).create("x", 4096).expect("a segment");
    let object = owned.create_object("n", &words(1), |_, _| {}).expect("room");
    let user = fork(|| {
        let segment = base.options().open("x").expect("it is there");
        board.add(2);
        board.await_at_least(3, 1);
        assert_eq!(kind(base.options().open("x")), ErrorKind::NotFound);
        assert_eq!(segment.open_object("n", &words(1)).expect("still there"), object);
    });
    board.await_at_least(2, 1);
    drop(owned);
    assert!(base.is_empty());
    board.add(3);
    ended_well(user);
    base.end();
}

fn what_killed_users_left_is_replaced() {
    let base = Base::new("killed");
    let board = Board::new();
    let leave = |policy: Unlink| {
        let before = board.get(0);
        let creator = fork(|| {
            let segment = base.options().unlink_policy(policy).create("x", 4096).expect("a segment");
            segment.create_object("n", &words(1), |_, _| {}).expect("room");
            board.add(0);
            std::thread::sleep(Duration::from_secs(60));
        });
        let user = fork(|| {
            board.await_at_least(0, before + 1);
            let _segment = base.options().open("x").expect("it is there");
            board.add(0);
            std::thread::sleep(Duration::from_secs(60));
        });
        board.await_at_least(0, before + 2);
        (creator, user)
    };
    for policy in [Unlink::LastClose, Unlink::OwnerDrop] {
        for replace in [false, true] {
            let (creator, user) = leave(policy);
            assert_eq!(kind(base.options().create("x", 1)), ErrorKind::Exists);
            killed(creator);
            assert_eq!(base.options().names().expect("a list"), ["x"]);
            let joined = base.options().open("x").expect("one user lives");
            assert_eq!(joined.living().expect("counted"), 2);
            if replace {
                killed(user);
                drop(joined);
                drop(base.options().create("x", 4096).expect("replaces what is dead"));
            } else {
                // Not the last close: a killed user was the last.
                let keep = joined.mapping().clone();
                drop(joined);
                killed(user);
                drop(keep);
                assert_eq!(kind(base.options().open("x")), ErrorKind::NotFound);
            }
            assert!(base.is_empty(), "{policy:?}");
        }
    }
    let (creator, user) = leave(Unlink::LastClose);
    killed(creator);
    killed(user);
    let fresh = base.options().open_or_create("x", 4096).expect("replaces what is dead");
    assert!(fresh.objects().is_empty());
    drop(fresh);
    let (creator, user) = leave(Unlink::LastClose);
    killed(creator);
    killed(user);
    assert_eq!(kind(base.options().read_only(true).open("x")), ErrorKind::NotFound);
    assert!(base.is_empty());

    let (creator, user) = leave(Unlink::Never);
    killed(creator);
    killed(user);
    let stayed = base.options().open("x").expect("its policy is to stay");
    assert_eq!((stayed.objects().len(), stayed.living().expect("counted")), (1, 1));
    base.options().remove("x").expect("removed");
    base.end();
}

fn a_forked_child_takes_no_part_until_it_attaches() {
    let base = Base::new("fork");
    let segment = base.options().create("x", 4096).expect("a segment");
    let anonymous = Segment::anonymous(4096).expect("memory");
    let board = Board::new();
    let detached = fork(|| {
        for handle in [&segment, &anonymous] {
            assert_eq!(handle.check_attached().unwrap_err().kind(), ErrorKind::NotAttached);
            assert_eq!(kind(handle.create_object("n", &words(1), |_, _| {})), ErrorKind::NotAttached);
        }
        drop(segment.clone());
    });
    ended_well(detached);
    // A child that drops all it has inherited, as one that returns from `main` does, the creator's handle
    // too.
    let owned = base.options().unlink_policy(Unlink::OwnerDrop).create("owned", 4096).expect("a segment");
    let inherited = std::cell::Cell::new(Some((segment, owned)));
    ended_well(fork(|| drop(inherited.take())));
    let (segment, owned) = inherited.take().expect("the parent's are its own");
    assert_eq!(base.options().names().expect("a list"), ["owned", "x"]);
    drop(owned);
    assert_eq!((segment.living().expect("counted"), base.options().names().expect("a list").len()), (1, 1));

    let attached = fork(|| {
        for handle in [&segment, &anonymous] {
            let mine = handle.attach_again().expect("room");
            mine.check_attached().expect("attached");
            assert!(std::sync::Arc::ptr_eq(mine.mapping(), handle.mapping()), "the memory it inherited");
            assert_eq!(handle.attach_again().expect("the same").id(), mine.id());
            assert_eq!(mine.living().expect("counted"), 2);
            mine.create_object("n", &words(1), |_, _| {}).expect("room");
            assert_eq!(handle.check_attached().unwrap_err().kind(), ErrorKind::NotAttached, "the old handle");
            board.add(0);
            board.await_at_least(1, board.get(0));
        }
        let again = base.options().open("x").expect("opening does as well");
        assert_eq!(again.living().expect("counted"), 2);
    });
    for (turn, handle) in [&segment, &anonymous].into_iter().enumerate() {
        board.await_at_least(0, turn as u64 + 1);
        assert_eq!(handle.living().expect("counted"), 2);
        board.add(1);
    }
    ended_well(attached);
    assert_eq!((segment.living().expect("counted"), anonymous.living().expect("counted")), (1, 1));
    assert_eq!(segment.objects().len(), 1);

    // The parent leaves first: the child is the last and removes the name.
    let last = fork(|| {
        let mine = segment.attach_again().expect("room");
        board.add(2);
        board.await_at_least(3, 1);
        drop(mine);
        assert!(base.is_empty());
    });
    board.await_at_least(2, 1);
    drop(segment);
    assert!(!base.is_empty());
    board.add(3);
    ended_well(last);
    base.end();
}

fn a_fork_while_others_hold_our_locks_is_harmless() {
    let base = Base::new("fork-storm");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let until = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for name in ["x", "y"] {
            let (base, stop) = (&base, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    drop(base.options().objects(1).open_or_create(name, 4096).expect("there or made"));
                    drop(SegmentOptions::new().objects(1).anonymous(4096).expect("memory"));
                }
            });
        }
        let mut forks = 0;
        while Instant::now() < until {
            // Only calls that are allowed after a fork of a process with threads, as far as libc's own locks
            // go; ours must not be in the way.
            let child = fork(|| {
                let segment = Segment::anonymous(4096).expect("memory");
                segment.check_attached().expect("attached");
            });
            ended_well(child);
            forks += 1;
        }
        println!("{forks} forks");
        stop.store(true, Ordering::Relaxed);
    });
    base.end();
}

fn a_segment_that_was_sent_is_closed_by_its_last_user() {
    let (base, board) = (Base::new("sent"), Board::new());
    let segment = base.options().create("x", 4096).expect("a segment");
    let descriptor = segment.as_fd().try_clone_to_owned().expect("a copy");
    let receiver = fork(|| {
        // As if by SCM_RIGHTS: a number for the same open file.
        let received = Segment::try_from(descriptor.try_clone().expect("a copy")).expect("attached");
        assert_eq!(received.living().expect("counted"), 2);
        board.add(0);
        board.await_at_least(1, 1);
        drop(received);
        assert!(base.is_empty(), "it was the last, and knew the name");
    });
    board.await_at_least(0, 1);
    drop(segment);
    assert!(!base.is_empty());
    board.add(1);
    ended_well(receiver);
    base.end();
}

/// A child makes a segment and an object in it and leaves again; it is killed at its n-th system call, for
/// every n.
fn a_creator_killed_at_any_system_call_blocks_nobody() {
    let base = Base::new("ptrace");
    let file = base.0.join("file");
    // Our own helper threads must run already: what a fork costs is not what is tested here.
    drop(Segment::anonymous(1).expect("memory"));
    let mut work: [Box<dyn Fn()>; 2] = [
        Box::new(|| {
            let segment = base.options().participants(4).objects(2).create("x", 4096).expect("a free name");
            segment.create_object("n", &words(4), |_, _| {}).expect("room");
        }),
        Box::new(|| {
            let segment = SegmentOptions::new().participants(4).objects(2).file(&file, 4096).expect("a file");
            segment.open_or_create_object("n", &words(4), |_, _| {}).expect("room");
        }),
    ];
    for (which, work) in work.iter_mut().enumerate() {
        let mut stops = 0;
        loop {
            let child = fork(|| {
                child::be_traced();
                work();
            });
            let finished = child.kill_at_stop(stops);
            let again = || {
                let options = base.options().participants(4).objects(2).timeout(Duration::from_secs(2));
                let segment = match which {
                    0 => options.open_or_create("x", 4096),
                    _ => options.file(&file, 4096),
                };
                let segment = segment.unwrap_or_else(|e| panic!("killed at stop {stops}: {e}"));
                let object = segment.open_or_create_object("n", &words(4), |_, _| {});
                let object = object.unwrap_or_else(|e| panic!("killed at stop {stops}: {e}"));
                assert_eq!((segment.living().expect("counted"), object.count), (1, 4));
                drop(segment);
                if which == 1 {
                    std::fs::remove_file(&file).expect("it stays");
                }
                let left: Vec<_> = std::fs::read_dir(&base.0).expect("it is there").flatten().collect();
                assert!(left.is_empty(), "killed at stop {stops}: {left:?}");
            };
            if !finished || which == 1 {
                again();
            }
            if finished {
                break;
            }
            stops += 1;
        }
        println!("killed at each of {stops} stops");
        assert!(stops > 40, "that many system calls there are: was it traced at all?");
    }
    drop(work);
    base.end();
}

/// The claim of a dead creator is taken over when its death is proven, and never before.
fn an_adopter_killed_while_it_creates_is_succeeded() {
    let memory = rustix::fs::memfd_create("host", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    rustix::fs::ftruncate(&memory, 1 << 17).expect("grown");
    let host = child::map_shared(memory.as_fd(), 1 << 17);
    let adopt = || {
        let base = std::ptr::NonNull::new(host).expect("mapped");
        let options = SegmentOptions::new().timeout(Duration::from_millis(200));
        // SAFETY: mapped above and never unmapped; only segments and atomics reach it.
        unsafe { options.adopt(base, 1 << 17, Box::new(())) }.expect("adopted")
    };
    let board = Board::new();
    let creator = fork(|| {
        let segment = adopt();
        let made = segment.create_object("n", &words(8), |mapping, offset| {
            mapping.place::<AtomicU64>(offset).expect("inside").store(u64::MAX, Ordering::Relaxed);
            board.add(0);
            std::thread::sleep(Duration::from_secs(60));
        });
        made.expect("it is killed before this");
    });
    board.await_at_least(0, 1);
    let segment = adopt();
    assert_eq!(segment.living().expect("counted"), 2);
    assert_eq!(
        kind(segment.create_object("m", &words(1), |_, _| {})),
        ErrorKind::Busy,
        "a living creator is waited for"
    );
    killed(creator);
    let object = segment.create_object("m", &words(1), |_, _| {}).expect("a dead one is not");
    assert_eq!(
        (object.index, first_word(&segment, object)),
        (0, 0),
        "its entry is used again, its memory is zero"
    );

    // Several processes adopt zeroed memory at once: all get the same segment.
    let before = board.get(1);
    let adopters = [0, 1, 2].map(|_| {
        fork(|| {
            board.meet(1, 3, 1);
            let segment = adopt();
            segment.open_or_create_object("k", &words(1), |_, _| _ = board.add(2)).expect("there or made");
            assert_eq!(segment.objects().len(), 2);
        })
    });
    adopters.into_iter().for_each(ended_well);
    assert_eq!((before, board.get(2)), (0, 1));
}

fn too_many_files_is_an_error_and_leaks_none() {
    type Way = fn(&Base) -> Result<Segment, crossproc_segment::Error>;
    let base = Base::new("files");
    // The helper thread and its descriptors are there once and for all.
    drop(Segment::anonymous(1).expect("memory"));
    let open_files = || std::fs::read_dir("/proc/self/fd").expect("it is there").count();
    let before = open_files();
    let lowest_free = std::fs::File::open("/dev/null").expect("opened").as_raw_fd() as u64;
    let mut refused = 0;
    // Each way in, with room for 0, 1, 2, .. more descriptors.
    for more in 0..12 {
        let ways: [Way; 4] = [
            |_| Segment::anonymous(4096),
            |base| base.options().create("x", 4096),
            |base| base.options().open_or_create("x", 4096),
            |base| SegmentOptions::new().unlink_policy(Unlink::LastClose).file(base.0.join("f"), 4096),
        ];
        for way in ways {
            child::limit_files(lowest_free + more);
            let made = way(&base);
            let object =
                made.as_ref().map(|s| s.create_object("n", &words(1), |_, _| {}).map_err(|e| e.kind()));
            child::limit_files(1024);
            match object {
                Ok(Ok(_)) => {}
                Ok(Err(kind)) => {
                    assert_eq!(kind, ErrorKind::TooManyFiles);
                    refused += 1;
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::TooManyFiles, "{e}");
                    refused += 1;
                }
            }
            drop(made);
            assert_eq!(open_files(), before, "with room for {more}");
            // With no descriptor left the last close can not remove the name. It is the next who does.
            let _ = base.options().open("x");
            let _ = std::fs::remove_file(base.0.join("f"));
        }
    }
    println!("{refused} refusals");
    assert!((4..40).contains(&refused), "{refused}");
    assert!(base.is_empty());
    base.end();
}

fn too_many_participants_is_an_error() {
    let (segment, board) =
        (SegmentOptions::new().participants(2).anonymous(4096).expect("memory"), Board::new());
    let second = fork(|| {
        let _mine = segment.attach_again().expect("room for two");
        board.add(0);
        std::thread::sleep(Duration::from_secs(60));
    });
    board.await_at_least(0, 1);
    let third = fork(|| assert_eq!(kind(segment.attach_again()), ErrorKind::TooManyParticipants));
    ended_well(third);
    killed(second);
    ended_well(fork(|| drop(segment.attach_again().expect("a dead one's place is free"))));
}

fn another_user_is_kept_out() {
    const OTHER: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return not_run("a second user id: this test must be run by root");
    }
    let base = Base::new("users");
    std::fs::set_permissions(&base.0, std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .expect("like /dev/shm");
    let as_other = |act: &dyn Fn(&SegmentOptions)| {
        ended_well(fork(|| {
            child::become_user(OTHER);
            act(&base.options().owner(0));
        }));
    };
    let private = base.options().create("private", 4096).expect("a segment");
    as_other(&|of_root| {
        assert_eq!(kind(base.options().open("private")), ErrorKind::NotFound, "names are per user");
        assert_eq!(kind(of_root.open("private")), ErrorKind::Denied);
        assert_eq!(kind(of_root.clone().read_only(true).open("private")), ErrorKind::Denied);
    });
    let shared = base.options().mode(0o644).create("shared", 4096).expect("a segment");
    let open = base.options().mode(0o666).create("open", 4096).expect("a segment");
    let object = open.create_object("n", &words(1), |_, _| {}).expect("room");
    as_other(&|of_root| {
        assert_eq!(
            kind(of_root.open("private")),
            ErrorKind::Denied,
            "also where the directory can be looked into"
        );
        assert_eq!(kind(of_root.open("shared")), ErrorKind::Denied);
        let reader = of_root.clone().read_only(true).open("shared").expect("anybody may read it");
        assert_eq!(reader.id(), shared.id());
        let writer = of_root.open("open").expect("anybody may write it");
        assert_eq!(writer.open_object("n", &words(1)).expect("found"), object);
        assert_eq!(writer.living().expect("counted"), 2);
        assert_eq!(kind(of_root.create("mine", 1)), ErrorKind::Denied);
        assert_eq!(kind(of_root.remove("open")), ErrorKind::Denied);
    });
    drop((private, shared, open));

    // A stranger takes the name of our directory, or puts a file of its own into it.
    let child = fork(|| {
        child::become_user(OTHER);
        std::fs::create_dir(base.0.join("crossproc-0")).expect("the place is free");
    });
    ended_well(child);
    assert_eq!(kind(base.options().create("x", 1)), ErrorKind::WrongOwner);
    assert_eq!(kind(base.options().open("x")), ErrorKind::WrongOwner);
    std::fs::remove_dir(base.names()).expect("root may");
    base.options().unlink_policy(Unlink::Never).create("x", 1).expect("a segment");
    std::os::unix::fs::chown(base.names().join("x"), Some(OTHER), None).expect("root may");
    assert_eq!(kind(base.options().open("x")), ErrorKind::WrongOwner);
    base.options().remove("x").expect("removed");
    base.end();
}

fn another_pid_namespace_is_refused() {
    let (base, board) = (Base::new("pid-namespace"), Board::new());
    let segment = base.options().create("x", 4096).expect("a segment");
    let descriptor: OwnedFd = segment.as_fd().try_clone_to_owned().expect("a copy");
    let outer = fork(|| {
        if !child::unshare(libc::CLONE_NEWPID) {
            board.add(0);
            return;
        }
        ended_well(fork(|| {
            assert_eq!(std::process::id(), 1, "the first process of a new namespace");
            assert_eq!(kind(base.options().open("x")), ErrorKind::WrongPidNamespace);
            assert_eq!(kind(segment.attach_again()), ErrorKind::WrongPidNamespace);
            assert_eq!(kind(base.options().open_or_create("x", 1)), ErrorKind::WrongPidNamespace);
            assert_eq!(
                kind(Segment::try_from(descriptor.try_clone().expect("a copy"))),
                ErrorKind::WrongPidNamespace
            );
            assert!(base.options().create("y", 1).is_ok(), "among themselves they can");
        }));
    });
    ended_well(outer);
    if board.get(0) > 0 {
        not_run("a second PID namespace: neither root nor user namespaces here");
    }
    drop(segment);
    base.end();
}

fn a_full_file_system_is_an_error() {
    let (base, board) = (Base::new("full"), Board::new());
    let child = fork(|| {
        if !child::unshare(libc::CLONE_NEWNS) || !child::mount_tmpfs(&base.0, "size=1m") {
            board.add(0);
            return;
        }
        // Where the kernel's memory check would not already refuse: each of these fits the machine, none the
        // mount.
        let options = base.options().participants(4).objects(4);
        for len in [1 << 20, 2 << 20, 64 << 20] {
            let error = options.create("x", len).expect_err("larger than the file system");
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            assert_eq!(kind(options.open_or_create("x", len)), ErrorKind::NoSpace);
            assert_eq!(kind(options.file(base.0.join("f"), len)), ErrorKind::NoSpace);
            assert!(base.is_empty(), "nothing is left of it");
        }
        let fits = options.create("x", 512 << 10).expect("half of it");
        touch_all(&fits);
        let error = options.create("y", 768 << 10).expect_err("what is left is not enough");
        assert!(error.to_string().contains("left"), "{error}");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        touch_all(&fits);
        drop(fits);
        windows_on_a_full_file_system(&options);
        adopt_on_full_shm(&base.0);
    });
    ended_well(child);
    if board.get(0) > 0 {
        not_run("a full tmpfs: neither root nor user namespaces here, so nothing can be mounted");
    }
    base.end();
}

/// The file system has 1 MiB; the windows may be larger, but not what is allocated of them.
fn windows_on_a_full_file_system(options: &SegmentOptions) {
    let segment = options.clone().windows(1 << 30).create("w", 4096).expect("windows take no room");
    let spec = ObjectSpec { windows: 1 << 30, ..words(8) };
    let at = segment.create_object("windows", &spec, |_, _| {}).expect("all of them").windows_at;
    let touch = |len: u64| {
        let span = Span { offset: at, count: len / 8 };
        let words = segment.mapping().place_slice::<AtomicU64>(span).expect("inside");
        words.iter().step_by(512).for_each(|word| _ = word.fetch_add(1, Ordering::Relaxed));
    };
    segment.allocate_window(at, 512 << 10).expect("half of what there is");
    touch(512 << 10);
    for len in [768 << 10, 2 << 20, 1 << 29] {
        let error = segment.allocate_window(at + (512 << 10), len).expect_err("more than there is");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(error.to_string().contains("the file system has"), "{error}");
    }
    touch(512 << 10);
    segment.release_window(at, 512 << 10).expect("given back");
    segment.allocate_window(at, 768 << 10).expect("now there is room");
    touch(768 << 10);
}

/// Writes to every page: a missing one would be a SIGBUS.
fn touch_all(segment: &Segment) {
    let mapping = segment.mapping();
    for offset in (segment.mapping().len() as u64 - 4096..mapping.len() as u64).step_by(512) {
        mapping.place::<AtomicU64>(offset).expect("inside").fetch_add(1, Ordering::Relaxed);
    }
    let spec = words(segment.capacity() as u64 / 8);
    let all = segment.open_or_create_object("all", &spec, |_, _| {}).expect("all there is");
    let words =
        mapping.place_slice::<AtomicU64>(Span { offset: all.offset, count: all.count }).expect("inside");
    words.iter().step_by(512).for_each(|word| _ = word.fetch_add(1, Ordering::Relaxed));
}

#[cfg(feature = "shared_memory")]
fn adopt_on_full_shm(_base: &Path) {
    assert!(child::mount_tmpfs(Path::new("/dev/shm"), "size=1m"), "it worked a moment ago");
    let larger = shared_memory::ShmemConf::new().size(4 << 20).create().expect("that crate does not notice");
    assert_eq!(kind(Segment::from_shmem(larger)), ErrorKind::NoSpace);
    let fits = shared_memory::ShmemConf::new().size(512 << 10).create().expect("a mapping");
    touch_all(&Segment::from_shmem(fits).expect("it fits"));
}

#[cfg(not(feature = "shared_memory"))]
fn adopt_on_full_shm(_base: &Path) {}
