//! Each system call of an operation fails once, with each error that it may fail with.
//!
//! The operation must come to an end, with a typed error or in good order: no crash, no panic, no hang. Then it is done once more
//! without a failure, which must succeed: so nothing is left in the way. And after that the process must have no more descriptors,
//! mappings, threads, names and places in the segment than a process in which nothing failed: so nothing has leaked.
//!
//! Only calls of the first thread are made to fail, one in each run. Calls that can not fail are left alone, and so are `close` and
//! `munmap`, which do what they are for even when they report an error.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crossproc_primitives::{Lock, LockError, Objects};
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::{Board, HANG};

use crate::arena::{Arena, Extra, Play, code, of_lock, run_to_exit_status};
use crate::cast;
use crate::options::Options;
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::step::{Ending, Step, Verdict, Victim, marked, why};

/// The name of this mode.
pub const MODE: &str = "errno";

const ERRORS: &[(&str, i32)] = &[
    ("ENOMEM", libc::ENOMEM),
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOSPC", libc::ENOSPC),
    ("EINTR", libc::EINTR),
    ("EAGAIN", libc::EAGAIN),
    ("EPERM", libc::EPERM),
    ("EACCES", libc::EACCES),
    ("ENOSYS", libc::ENOSYS),
];

/// Calls that do not fail, or whose failure changes nothing.
const SPARED: &[i64] = &[
    libc::SYS_brk, // the allocator's, which then uses mmap
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_munmap,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_yield,
];

/// Something that can be done again and again, and leaves nothing.
type Repeated = Box<dyn FnMut() -> u64>;

/// An operation whose calls fail.
struct Case {
    name: &'static str,
    /// What there is before: other processes, and their objects.
    before: fn(&Arena) -> Vec<Extra>,
    /// Done in the victim, which has not attached to anything. It gets the harness's copy of the segment.
    ready: fn(&Segment) -> Repeated,
}

fn alone(_: &Arena) -> Vec<Extra> {
    Vec::new()
}

/// In the victim: attaches, and does the thing once, so that nothing happens for the first time.
fn attached(segment: &Segment, ready: fn(&Segment) -> Repeated) -> Repeated {
    ready(&segment.attach_again().expect("a free place in the segment"))
}

fn of<T, E>(result: Result<T, E>) -> u64 {
    if result.is_ok() { code::OK } else { code::ERROR }
}

/// The name of the segment of this run of the harness; victims are its children. Not to be made up within the operation: it asks
/// for the parent, and where that call fails it is another name, which nobody removes.
fn name() -> String {
    format!("crash-errno-{}", std::os::unix::process::parent_id())
}

fn path() -> PathBuf {
    std::env::temp_dir().join(name())
}

const LEN: usize = 16 * 1024;

/// Another process holds the lock until it is killed.
fn held(arena: &Arena) -> Vec<Extra> {
    let holder = arena.extra(OTHER, |s| {
        std::mem::forget(cast::lock(s).lock());
        stays()
    });
    arena.await_play(OTHER);
    vec![holder]
}

/// A process died with the lock.
fn dead(arena: &Arena) -> Vec<Extra> {
    drop(held(arena));
    Vec::new()
}

/// A process died with the lock, and held another one of which the kernel knew.
fn dead_within(arena: &Arena) -> Vec<Extra> {
    let holder = arena.extra(OTHER, |s| {
        std::mem::forget((cast::rlock(s).lock(), cast::lock(s).lock()));
        stays()
    });
    arena.await_play(OTHER);
    drop(holder);
    Vec::new()
}

/// The play of a process that does no more.
pub(crate) fn stays() -> Play {
    Box::new(|| {
        loop {
            std::thread::park();
        }
    })
}

const CASES: &[Case] = &[
    Case {
        name: "Lock: lock_timeout, held by another",
        before: held,
        ready: |s| {
            attached(s, |s| {
                let lock = cast::lock(s);
                Box::new(move || cast::in_vain(of_lock(lock.lock_timeout(Duration::from_millis(2)))))
            })
        },
    },
    Case {
        name: "Lock: try_lock, held by another",
        before: held,
        ready: |s| {
            attached(s, |s| {
                let lock = cast::lock(s);
                Box::new(move || cast::in_vain(of_lock(lock.try_lock())))
            })
        },
    },
    Case { name: "Lock: lock_timeout, its holder died", before: dead, ready: lock_of_dead },
    Case { name: "Lock: lock_timeout, its holder died with two", before: dead_within, ready: lock_of_dead },
    Case {
        name: "Value: wait_while_timeout",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let word = cast::word(s);
                Box::new(move || of(word.wait_while_timeout(Duration::from_millis(2), |n| *n == 0)))
            })
        },
    },
    Case {
        name: "Semaphore: acquire_timeout in vain",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let signals = cast::signals(s);
                Box::new(move || {
                    cast::in_vain(cast::of_semaphore(&signals.acquire_timeout(Duration::from_millis(2))))
                })
            })
        },
    },
    Case {
        name: "Event: wait_timeout in vain",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let event = cast::event(s);
                Box::new(move || cast::in_vain(cast::of_event(&event.wait_timeout(Duration::from_millis(2)))))
            })
        },
    },
    Case {
        name: "Condvar: wait_timeout in vain",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let (mutex, condvar) = (cast::mutex(s), cast::condvar(s));
                Box::new(move || match mutex.lock() {
                    Ok(guard) => cast::in_vain(cast::of_condvar(
                        &condvar.wait_timeout(guard, Duration::from_millis(2)),
                    )),
                    other => of_lock(other),
                })
            })
        },
    },
    Case {
        name: "RwLock: write_timeout, read",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let rwlock = cast::rwlock(s);
                Box::new(move || of_lock(rwlock.write_timeout(HANG)).max(of_lock(rwlock.read_timeout(HANG))))
            })
        },
    },
    Case {
        name: "Once: call_timeout",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let once = cast::once(s);
                Box::new(move || cast::of_once(&once.call_timeout(HANG, |_| ())))
            })
        },
    },
    Case {
        name: "Barrier: wait_timeout in vain, reset",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let barrier = cast::barrier(s);
                Box::new(move || {
                    let told = cast::of_barrier(&barrier.wait_timeout(Duration::from_millis(2)));
                    cast::in_vain(told).max(of(barrier.reset()))
                })
            })
        },
    },
    Case {
        name: "Segment::anonymous, drop (first in its process)",
        before: alone,
        ready: |_| Box::new(|| of(Segment::anonymous(LEN))),
    },
    Case {
        name: "Lock::new, lock, drop (first in its process)",
        before: alone,
        ready: |_| {
            Box::new(|| match Lock::new() {
                Ok(lock) => of_lock(lock.lock()),
                Err(_) => code::ERROR,
            })
        },
    },
    Case {
        name: "Segment::create, drop",
        before: alone,
        ready: |_| {
            let name = name();
            Box::new(move || of(Segment::create(&name, LEN)))
        },
    },
    Case {
        name: "Segment::open_or_create, object, drop",
        before: alone,
        ready: |_| {
            let name = name();
            Box::new(move || of(Segment::open_or_create(&name, LEN).and_then(|s| s.lock("lock"))))
        },
    },
    Case {
        name: "Segment::file, drop",
        before: alone,
        ready: |_| {
            let path = path();
            Box::new(move || {
                let told = of(Segment::file(&path, LEN));
                let _ = std::fs::remove_file(&path);
                told
            })
        },
    },
    Case {
        name: "attach_again, drop (first in its process)",
        before: alone,
        ready: |s| {
            let inherited = s.clone();
            Box::new(move || of(inherited.attach_again()))
        },
    },
    Case {
        name: "attach by descriptor, drop",
        before: alone,
        ready: |s| {
            let fd = s.fd().expect("a file").try_clone_to_owned().expect("a descriptor");
            Box::new(move || of(fd.as_fd().try_clone_to_owned().map(Segment::try_from)))
        },
    },
    Case {
        name: "objects: made, found",
        before: alone,
        ready: |s| {
            attached(s, |s| {
                let (segment, n) = (s.clone(), Rc::new(Cell::new(0)));
                Box::new(move || {
                    n.set(n.get() + 1);
                    of(segment.value("new", [7_u64; 20])).max(of(segment.array("newer", &[1_u8; 9])))
                })
            })
        },
    },
    Case {
        name: "names, remove",
        before: alone,
        ready: |_| {
            let name = name();
            Box::new(move || {
                let listed = of(SegmentOptions::new().names());
                let removed = Segment::unlink(&name);
                let missing = removed.is_err_and(|e| e.kind() == crossproc_segment::ErrorKind::NotFound);
                listed.max(if missing { code::OK } else { code::ERROR })
            })
        },
    },
];

/// The first time it is told of the death, and says that all is consistent; so are later ones.
fn lock_of_dead(segment: &Segment) -> Repeated {
    attached(segment, |s| {
        let lock = cast::lock(s);
        Box::new(move || match lock.lock_timeout(Duration::from_secs(1)) {
            Ok(guard) | Err(LockError::OwnerDied(guard)) => {
                drop(guard);
                code::OK
            }
            other => of_lock(other),
        })
    })
}

const OTHER: usize = 1;

/// What a process has: descriptors, mappings of segments, threads, names, and participants of the harness's segment.
fn possessions(segment: &Segment) -> [u64; KINDS] {
    let lines = |path: &str, needle: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter(|line| line.contains(needle)).count() as u64
    };
    let entries = |path: &str| std::fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
    let names = SegmentOptions::new().names().unwrap_or_default();
    [
        entries("/proc/self/fd"),
        lines("/proc/self/maps", "memfd:")
            + lines("/proc/self/maps", "/dev/shm")
            + lines("/proc/self/maps", &name()),
        entries("/proc/self/task"),
        names.iter().filter(|listed| **listed == name()).count() as u64 + u64::from(path().exists()),
        segment.living().unwrap_or(0) as u64,
    ]
}

const KINDS: usize = 5;
const KIND: [&str; KINDS] = ["descriptors", "mappings", "threads", "names", "participants"];
/// Words on the board: what both operations returned, and the possessions at the end.
const FIRST: usize = 0;
const SECOND: usize = 1;
const OWNED: usize = 2;

/// One run. `fails`: which call, counted from 0, and how; what came of it.
fn attempt(board: &Board, case: &Case, fails: Option<(u64, i32)>) -> Attempt {
    let arena = Arena::new(board, |_| ());
    let others = (case.before)(&arena);
    let mut victim = Victim::start(|| {
        let mut operation = (case.ready)(arena.segment());
        let told = marked(&mut operation);
        arena.note(FIRST, told + 1);
        arena.note(SECOND, operation() + 1);
        drop(operation);
        for (at, number) in possessions(arena.segment()).into_iter().enumerate() {
            arena.note(OWNED + at, number);
        }
    });
    let mut attempt = Attempt::default();
    while let Some(number) = to_call(&mut victim) {
        if fails.is_some_and(|(call, _)| call == attempt.calls) {
            attempt.failed = Some(number);
            if !SPARED.contains(&number) {
                victim.fail_syscall(fails.map_or(0, |(_, errno)| errno));
            }
            break;
        }
        attempt.calls += 1;
    }
    attempt.ended = run_to_exit_status(&mut victim, HANG);
    attempt.told = [FIRST, SECOND].map(|at| arena.noted(at).checked_sub(1));
    attempt.owned = std::array::from_fn(|at| arena.noted(OWNED + at));
    drop(others);
    // Whatever it left would be in the way of the next run.
    if attempt.ended != Some(Ending::Status(0)) {
        let _ = Segment::unlink(&format!("crash-errno-{}", std::process::id()));
    }
    attempt
}

/// Runs to the next system call; `None` at the end of the operation.
fn to_call(victim: &mut Victim) -> Option<i64> {
    loop {
        match victim.to_syscall() {
            Step::Syscall(number) => return Some(number),
            Step::Blocked | Step::Stepped => {}
            Step::End | Step::Exited(_) => return None,
        }
    }
}

/// What came of one run.
#[derive(Debug, Default)]
struct Attempt {
    /// Calls before the one that failed, or all of them.
    calls: u64,
    failed: Option<i64>,
    ended: Option<Ending>,
    told: [Option<u64>; 2],
    owned: [u64; KINDS],
}

impl Attempt {
    /// What is wrong, against a run in which nothing failed.
    fn wrong(&self, good: &Self) -> Option<(Verdict, String)> {
        match self.ended {
            None => {
                return Some((Verdict::Wedged, format!("it does not come to an end; told {:?}", self.told)));
            }
            Some(Ending::Status(0)) => {}
            Some(Ending::Status(_)) => return Some((Verdict::Crashed, format!("it panics: {}", why()))),
            Some(Ending::Signal(signal)) => {
                return Some((Verdict::Crashed, format!("it is ended by signal {signal}")));
            }
        }
        if self.told[1] != Some(code::OK) {
            let told = format!("the first time {:?}, once more {:?}", self.told[0], self.told[1]);
            return Some((Verdict::Wedged, format!("it does not work any more: {told}")));
        }
        let more = (0..KINDS).filter(|&at| self.owned[at] > good.owned[at]);
        let leaks: Vec<_> =
            more.map(|at| format!("{} {} instead of {}", self.owned[at], KIND[at], good.owned[at])).collect();
        (!leaks.is_empty()).then(|| (Verdict::Duplicated, format!("it leaks: {}", leaks.join(", "))))
    }
}

/// Lets every `stride`-th call fail (or the next one that can), with every error.
fn fail_all(board: &Board, case: &Case, stride: u64) -> Row {
    let mut row = Row::new(format!("errno: {}", case.name));
    let good = attempt(board, case, None);
    let mut bad = Vec::new();
    if let Some((verdict, text)) = good.wrong(&good) {
        bad.push(("no failure".to_owned(), verdict, text));
    }
    let mut tried = 1;
    let mut call = 0;
    'calls: while bad.len() < 6 {
        for (name, errno) in ERRORS {
            let attempt = attempt(board, case, Some((call, *errno)));
            let Some(number) = attempt.failed else { break 'calls };
            if SPARED.contains(&number) {
                call += 1; // the next one instead
                continue 'calls;
            }
            tried += 1;
            if let Some((verdict, text)) = attempt.wrong(&good) {
                bad.push((format!("call {call} (number {number}): {name}"), verdict, text));
            }
        }
        call += stride;
    }
    row.set("calls", good.calls);
    row.set("failures", tried - 1);
    row.found(tried, bad);
    row
}

/// Planted: an operation that opens two files and forgets the first one if the second one can not be opened.
const LEAKS: Case = Case {
    name: "(planted) a descriptor that is forgotten",
    before: alone,
    ready: |_| {
        Box::new(|| {
            let Ok(first) = std::fs::File::open("/dev/null") else { return code::ERROR };
            let second = std::fs::File::open("/dev/zero");
            if second.is_err() {
                std::mem::forget(first);
            }
            of(second)
        })
    },
};

/// Every call, or for a quick run every seventh.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    let board = Arena::board();
    let mut report = Report::new(MODE);
    let stride = if options.quick { 7 } else { 1 };
    for (_, case) in options.share_of(CASES, |case| case.name) {
        report.rows.push(fail_all(&board, case, stride));
    }
    report.rows.push(Row { planted: true, must_fail: true, ..fail_all(&board, &LEAKS, 1) });
    report
}
