//! A process id is no identity: somebody else gets it; and a dead process that nobody has reaped still has it.
//!
//! A process dies with something in its hands (a lock, a permit, a place at a barrier). Then
//!
//! | Part | who has its number |
//! |---|---|
//! | zombie | still itself: it is dead, and not reaped |
//! | process id | an innocent process, which lives on |
//! | thread id | the same, but the number is that of the thread that had the thing, which was not the process's first |
//!
//! and somebody else wants what it had, and gets it, while the innocent one lives.
//!
//! The kernel gives a process the number that is asked for (`clone3` with `set_tid`) to who has the right: root, or the first
//! process of a PID namespace of its own. Where the right is missing, all is done in such a namespace.

use std::io;

use crossproc_segment::Segment;
use crossproc_tests::{Board, HANG};

use crate::arena::{Arena, Role, code, of_lock};
use crate::cast::{self, of_barrier, of_event, of_once, of_semaphore, wide};
use crate::errno::stays;
use crate::kernel;
use crate::options::Options;
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::step::{Ending, Pid, Verdict};

/// The name of this mode.
pub const MODE: &str = "identity";

/// Takes something and returns; it is held by the calling thread, or process, from then on.
type Hold = fn(&Segment);

/// What a process dies with.
struct Case {
    name: &'static str,
    hold: Hold,
    /// Wants it, and is told of nothing worse than a death.
    heir: Role,
}

const CASES: &[Case] = &[
    Case {
        name: "Lock",
        hold: |s| std::mem::forget(cast::lock(s).lock()),
        heir: |s| {
            let lock = cast::lock(s);
            Box::new(move || of_lock(lock.lock_timeout(HANG)))
        },
    },
    Case {
        name: "Lock within another",
        hold: |s| std::mem::forget((cast::rlock(s).lock(), cast::lock(s).lock())),
        heir: |s| {
            let lock = cast::lock(s);
            Box::new(move || of_lock(lock.lock_timeout(HANG)))
        },
    },
    Case {
        name: "RLock",
        hold: |s| std::mem::forget((cast::lock(s).lock(), cast::rlock(s).lock(), cast::rlock(s).lock())),
        heir: |s| {
            let lock = cast::rlock(s);
            Box::new(move || of_lock(lock.lock_timeout(HANG)))
        },
    },
    Case {
        name: "Mutex",
        hold: |s| std::mem::forget((cast::lock(s).lock(), cast::mutex(s).lock())),
        heir: |s| {
            let mutex = cast::mutex(s);
            Box::new(move || of_lock(mutex.lock_timeout(HANG)))
        },
    },
    Case {
        name: "Value, wide: lock",
        hold: |s| std::mem::forget((cast::lock(s).lock(), cast::value(s).lock())),
        heir: |s| {
            let value = cast::value(s);
            Box::new(move || u64::from(value.set(wide(3)).is_err()) * code::ERROR)
        },
    },
    Case {
        name: "RwLock: reader",
        hold: |s| std::mem::forget(cast::rwlock(s).read()),
        heir: |s| {
            let rwlock = cast::rwlock(s);
            Box::new(move || of_lock(rwlock.write_timeout(HANG)))
        },
    },
    Case {
        name: "RwLock: writer",
        hold: |s| std::mem::forget((cast::lock(s).lock(), cast::rwlock(s).write())),
        heir: |s| {
            let rwlock = cast::rwlock(s);
            Box::new(move || of_lock(rwlock.read_timeout(HANG)))
        },
    },
    Case {
        name: "Semaphore: a permit",
        hold: |s| std::mem::forget(cast::semaphore(s).acquire()),
        heir: |s| {
            let semaphore = cast::semaphore(s);
            Box::new(move || of_semaphore(&semaphore.acquire_timeout(HANG)))
        },
    },
    Case {
        name: "BinarySemaphore",
        hold: |s| cast::binary(s).acquire().expect("it is free"),
        heir: |s| {
            let binary = cast::binary(s);
            Box::new(move || of_semaphore(&binary.acquire_timeout(HANG)))
        },
    },
    Case {
        name: "Once: begun",
        hold: |s| {
            // The first lock is announced to the kernel, so nothing tells of the second one.
            let _outer = cast::lock(s).lock();
            let holds = cast::flawed(s);
            let _ = cast::once(s).call(|_| {
                holds[1].store(1, crossproc_atomic::Ordering::SeqCst);
                loop {
                    std::thread::park();
                }
            });
        },
        heir: |s| {
            let once = cast::once(s);
            Box::new(move || of_once(&once.call_timeout(HANG, |_| ())))
        },
    },
    Case {
        name: "Barrier: a party",
        hold: |s| {
            cast::barrier(s);
        },
        heir: |s| {
            let barrier = cast::barrier(s);
            // It breaks, for the death.
            Box::new(move || of_barrier(&barrier.wait_timeout(HANG)))
        },
    },
    Case {
        name: "Event: set by the dead one",
        hold: |s| cast::event(s).set().expect("attached"),
        heir: |s| {
            let event = cast::event(s);
            Box::new(move || of_event(&event.wait_timeout(HANG)))
        },
    },
];

/// Planted: a lock with its owner's process id, which asks whether there is such a process.
const PLANTED: Case = Case {
    name: "(planted) a lock that trusts a process id",
    hold: |s| cast::flawed(s)[0].store(std::process::id(), crossproc_atomic::Ordering::SeqCst),
    heir: |s| {
        use crossproc_atomic::{Linux, Ordering, Platform};
        let word = &cast::flawed(s)[0];
        Box::new(move || {
            while Linux.thread_exists(word.load(Ordering::SeqCst)) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            code::OK
        })
    },
};

/// Who has the number of the dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namesake {
    Zombie,
    Process,
    Thread,
}
use Namesake::{Process, Thread, Zombie};

const HEIR: usize = 1;
/// Words on the board: the number of the thread that holds, and whether it does.
const NUMBER: usize = 0;
const HOLDS: usize = 1;
const INNOCENT: usize = 2;

/// A process that holds the thing in one of its threads, until it is killed.
fn holder(arena: &Arena, case: &Case, namesake: Namesake) -> Pid {
    use crossproc_atomic::{Linux, Platform};
    let begun = || {
        let segment = arena.segment().attach_again().expect("a free place in the segment");
        arena.note(NUMBER, u64::from(Linux.tid()));
        if case.name.starts_with("Once") {
            // It does not return from holding: another thread sees that it does.
            let flag = cast::flawed(&segment);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while flag[1].load(crossproc_atomic::Ordering::SeqCst) == 0 {
                        std::thread::yield_now();
                    }
                    arena.note(HOLDS, 1);
                });
                (case.hold)(&segment);
            });
        } else {
            (case.hold)(&segment);
            arena.note(HOLDS, 1);
        }
        stays()();
    };
    kernel::fork(|| match namesake {
        Thread => std::thread::scope(|scope| {
            scope.spawn(begun);
        }),
        _ => begun(),
    })
}

fn await_note(arena: &Arena, at: usize) {
    crossproc_tests::wait_for("a process to do its part", || arena.noted(at) != 0);
}

/// One death; `Ok` says whether the heir got what it wanted, an error that the kernel does not give numbers away.
fn inherit(
    board: &Board,
    case: &Case,
    namesake: Namesake,
    limit: std::time::Duration,
) -> io::Result<Option<String>> {
    for _ in 0..100 {
        let arena = Arena::new(board, |_| ());
        let dead = holder(&arena, case, namesake);
        await_note(&arena, HOLDS);
        kernel::kill(dead);
        let mut innocent = None;
        if namesake == Zombie {
            crossproc_tests::await_state(dead.cast_unsigned(), 'Z');
        } else {
            kernel::reap(dead, HANG);
            let number = arena.noted(NUMBER) as Pid;
            let forked = kernel::fork_as(number, || {
                arena.note(INNOCENT, 1);
                stays()();
            });
            match forked {
                // Another process of the machine was quicker.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
                forked => forked?,
            }
            innocent = Some(number);
            await_note(&arena, INNOCENT);
        }
        let heir = arena.extra(HEIR, case.heir);
        let told = arena.await_told(HEIR, limit);
        let ended = told.and_then(|_| heir.end(HANG));
        let wrong = match (told, ended) {
            (Some(code::OK | code::OWNER_DIED), Some(Ending::Status(0))) => None,
            (Some(told), ended) => Some(format!("it is told {told} and ends {ended:?}")),
            (None, _) => Some("it waits for ever".to_owned()),
        };
        for process in innocent.into_iter().chain((namesake == Zombie).then_some(dead)) {
            if namesake != Zombie {
                kernel::kill(process);
            }
            kernel::reap(process, HANG);
        }
        return Ok(wrong);
    }
    Err(io::Error::other("other processes are always quicker to take a free process id"))
}

/// All parts of a case, here.
fn here(board: &Board, case: &Case, limit: std::time::Duration) -> io::Result<Row> {
    let mut row = Row::new(format!("identity: {}", case.name));
    let mut bad = Vec::new();
    for namesake in [Zombie, Process, Thread] {
        let wrong = inherit(board, case, namesake, limit)?;
        bad.extend(wrong.map(|text| (format!("{namesake:?}"), Verdict::Wedged, text)));
        row.add("namesakes", 1);
    }
    row.found(3, bad);
    Ok(row)
}

/// All cases, in this process or in namespaces of our own.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    match all(options) {
        Ok(report) => report,
        Err(error) => in_namespaces(options).unwrap_or_else(|there| {
            let mut report = Report::new(MODE);
            report.not_run.push(format!("identity: {error}; in namespaces of our own: {there}"));
            report
        }),
    }
}

fn all(options: &Options) -> io::Result<Report> {
    let board = Arena::board();
    let mut report = Report::new(MODE);
    let limit = std::time::Duration::from_millis(300);
    report.rows.push(Row { planted: true, must_fail: true, ..here(&board, &PLANTED, limit)? });
    for (_, case) in options.share_of(CASES, |case| case.name) {
        report.rows.push(here(&board, case, HANG)?);
    }
    Ok(report)
}

/// Runs all cases as the first process of a PID namespace; the report comes back in a file without a name.
fn in_namespaces(options: &Options) -> io::Result<Report> {
    use std::io::{Read, Seek, Write};
    let memory = rustix::fs::memfd_create("crash-identity", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    // Only a process with one thread can go into a user namespace, and only its children are in the PID namespace.
    let outer = kernel::fork(|| {
        let done = || -> io::Result<()> {
            kernel::enter_namespaces()?;
            let first = kernel::fork(|| {
                let report = kernel::mount_own_proc().and_then(|()| all(options));
                let report = report.unwrap_or_else(|error| {
                    let mut report = Report::new(MODE);
                    report.not_run.push(format!("identity: in namespaces of our own: {error}"));
                    report
                });
                (&file).write_all(&serde_json::to_vec(&report).expect("texts and numbers")).expect("memory");
            });
            kernel::reap(first, HANG * 20);
            Ok(())
        };
        if let Err(error) = done() {
            let mut report = Report::new(MODE);
            report.not_run.push(format!("identity: namespaces of our own: {error}"));
            (&file).write_all(&serde_json::to_vec(&report).expect("texts and numbers")).expect("memory");
        }
    });
    kernel::reap(outer, HANG * 20);
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}
