//! What holds when it gets unusual: a dump of core, another PID namespace, thousands of locks, a slot with a new tenant, a clock
//! that somebody sets.
//!
//! No waiter here has an opinion about how long something takes: it is told `TimedOut` at its deadline, and of a death when
//! there is proof of it.

use std::fmt::Debug;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_primitives::{
    AccessError, Array, BinarySemaphore, Guard, Lock, Mutex, Objects, Once, RLock, RwLock, Semaphore, Value,
};
use crossproc_process::{Process, Stdio};
use crossproc_segment::{Error, ErrorKind, PlacedSlice, SLOT_BYTES, Segment, SegmentOptions, Span};
use crossproc_tests::{
    Board, HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, not_run, state_of,
    tied_to_parent, wait_for,
};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getppid, getrlimit, kill_process, setrlimit, waitid,
};
use rustix::time::{ClockId, clock_gettime};

use crate::every_call::at_every_call;
use crate::kernel::{self, Dying, End, Forked, Gate, Traced};
use crate::lock::said;

const HELD: usize = 0;
const GO: usize = 1;
const ASKING: usize = 2;
const TOLD: usize = 3;

/// Longer than the shortest slices of sleep, so that there is reason enough to look for a death.
const A_WHILE: Duration = Duration::from_millis(300);

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// A copy of this process that holds the lock `it` of the segment, as its only lock or within another, and goes on with `then`.
fn holder(board: &Board, segment: &Segment, within: bool, then: impl FnOnce()) -> Forked {
    board.set(HELD, 0);
    let forked = Forked::new(|| {
        tied_to_parent();
        let own = segment.attach_again().unwrap();
        let outer = Lock::new().unwrap();
        if within {
            outer.acquire().unwrap();
        }
        own.lock("it").unwrap().acquire().unwrap();
        board.set(HELD, 1);
        then();
    });
    board.await_at_least(HELD, 1);
    forked
}

/// Locks once and takes the mark away; says what it was told.
fn ask((board, lock): (Board, Lock)) -> String {
    tied_to_parent();
    board.add(ASKING, 1);
    let locked = lock.lock_timeout(HANG);
    let told = said(&locked);
    if let Some(mut guard) = locked.err().and_then(|error| error.into_guard()) {
        guard.mark_consistent();
    }
    told
}

/// A process that waits for the lock.
fn sleeper(board: &Board, lock: &Lock) -> Process<String> {
    board.set(ASKING, 0);
    let process = child(ask, (board.clone(), lock.clone()));
    board.await_at_least(ASKING, 1);
    await_asleep(process.pid());
    process
}

/// Neither who comes now nor who sleeps gets it.
#[track_caller]
fn nobody_gets(lock: &Lock, sleeper: &Process<String>, when: &str) {
    assert_eq!(said(&lock.try_lock()), "WouldBlock", "{when}");
    let deadline = Instant::now() + A_WHILE;
    assert_eq!(said(&lock.lock_deadline(deadline)), "TimedOut", "{when}");
    assert!(Instant::now() >= deadline);
    let other = child(|lock: Lock| said(&lock.lock_timeout(A_WHILE)), lock.clone());
    assert_eq!(join(other), "TimedOut", "{when}");
    assert!(sleeper.is_alive(), "{when}");
}

fn segment_with_a_lock() -> (Segment, Lock) {
    let segment = Segment::anonymous(4096).unwrap();
    let lock = segment.lock("it").unwrap();
    (segment, lock)
}

// ---------------------------------------------------------------------------------------------------------
// A death that takes its time

#[test]
fn a_holder_that_is_dying_is_not_robbed_until_it_can_do_nothing_more() {
    isolated(|()| {
        for within in [false, true] {
            for first_thread_first in [false, true] {
                let what = format!("within another lock: {within}, first thread first: {first_thread_first}");
                let (board, (segment, lock)) = (Board::new(8), segment_with_a_lock());
                let holder = holder(&board, &segment, within, || park());
                let sleeper = sleeper(&board, &lock);
                let mut dying = match Dying::new(holder) {
                    Ok(dying) => dying,
                    Err(reason) => return not_run(&format!("holding back who dies: {reason}")),
                };
                nobody_gets(&lock, &sleeper, &format!("{what}: all threads are on their way out"));
                if first_thread_first {
                    dying.let_the_first_go();
                    if within {
                        // Nothing has said so but the holder's token would: it is the other thread's to give.
                        nobody_gets(&lock, &sleeper, &format!("{what}: the thread with the lock is gone"));
                    } else {
                        wait_for("the kernel to pass the lock on", || !sleeper.is_alive());
                    }
                } else {
                    dying.let_the_others_go();
                    // The token is marked, which wakes, and proves nothing: the thread with the lock is still there.
                    nobody_gets(&lock, &sleeper, &format!("{what}: the other threads are gone"));
                }
                assert_eq!(dying.end(), End::Killed(9));
                assert_eq!(join(sleeper), "OwnerDied", "{what}");
                assert_eq!(said(&lock.try_lock()), "Ok", "{what}");
            }
        }
    });
}

/// Something of each kind that is given back when its holder dies, as whoever comes next finds it.
struct Belongings {
    permit: Semaphore,
    turn: BinarySemaphore,
    read: RwLock<u64>,
    written: RwLock<u64>,
    begun: Once,
}

impl Belongings {
    fn of(segment: &Segment) -> Self {
        Self {
            permit: segment.semaphore("permit", 1).unwrap(),
            turn: segment.binary_semaphore("turn").unwrap(),
            read: segment.rwlock("read", 1).unwrap(),
            written: segment.rwlock("written", 1).unwrap(),
            begun: segment.once("begun").unwrap(),
        }
    }

    /// Takes all of it for as long as the process lives.
    fn hold(&self, then: impl FnOnce()) {
        // The first of its locks: this one is announced to the kernel.
        std::mem::forget(self.written.write().unwrap());
        std::mem::forget(self.read.read().unwrap());
        self.permit.acquire().unwrap().keep();
        self.turn.acquire().unwrap();
        self.begun.call(|_| then()).unwrap();
    }

    /// What becomes of who asks for each, in the order of the fields.
    fn ask(&self, limit: Duration) -> [String; 5] {
        [
            outcome(&self.permit.acquire_timeout(limit)),
            outcome(&self.turn.acquire_timeout(limit)),
            said(&self.read.write_timeout(limit)),
            said(&self.written.read_timeout(limit)),
            outcome(&self.begun.call_timeout(limit, |state| assert!(state.previous_died()))),
        ]
    }
}

fn outcome<T, E: Debug>(result: &Result<T, E>) -> String {
    result.as_ref().err().map_or("Ok".to_owned(), |error| format!("{error:?}"))
}

#[test]
fn a_process_that_is_dying_keeps_what_it_has_until_it_can_do_nothing_more() {
    const NOTHING: [&str; 5] = ["TimedOut"; 5];
    isolated(|()| {
        for first_thread_first in [false, true] {
            let (board, segment) = (Board::new(8), Segment::anonymous(64 * 1024).unwrap());
            let belongings = Belongings::of(&segment);
            let holder = Forked::new(|| {
                tied_to_parent();
                let own = segment.attach_again().unwrap();
                let _party = own.barrier("barrier", 2).unwrap();
                Belongings::of(&own).hold(|| {
                    board.set(HELD, 1);
                    park();
                });
            });
            board.await_at_least(HELD, 1);
            let party = child(
                |(board, segment): (Board, Segment)| {
                    let barrier = segment.barrier("barrier", 2).unwrap();
                    board.set(ASKING, 1);
                    outcome(&barrier.wait_timeout(HANG))
                },
                (board.clone(), segment.clone()),
            );
            board.await_at_least(ASKING, 1);
            await_asleep(party.pid());
            let mut dying = match Dying::new(holder) {
                Ok(dying) => dying,
                Err(reason) => return not_run(&format!("holding back who dies: {reason}")),
            };
            assert_eq!(belongings.ask(LIMIT), NOTHING, "all threads are on their way out");
            if first_thread_first {
                dying.let_the_first_go();
                let mut expected = NOTHING;
                expected[3] = "OwnerDied"; // the kernel knows of this one
                assert_eq!(belongings.ask(LIMIT), expected, "the thread that holds all of it is gone");
            } else {
                dying.let_the_others_go();
                assert_eq!(belongings.ask(LIMIT), NOTHING, "the thread that holds all of it is left");
            }
            assert!(party.is_alive(), "the other party may yet come");
            assert_eq!(dying.end(), End::Killed(9));
            assert_eq!(belongings.ask(HANG), ["Ok", "Ok", "Ok", "OwnerDied", "Ok"]);
            assert_eq!(join(party), "Broken(PartyDied)");
        }
    });
}

/// A directory that is removed at the end, with all that is in it.
struct Directory(PathBuf);

impl Directory {
    /// Of the test that runs in the process `test`.
    fn path(test: u32) -> PathBuf {
        std::env::temp_dir().join(format!("crossproc-holds-{test}"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Why a dump of core would not come to the current directory of who dies.
fn dumps_go_elsewhere() -> Option<String> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let pattern = pattern.trim();
    if pattern.is_empty() || pattern.starts_with(['|', '@']) || pattern.contains('/') {
        return Some(format!("core dumps of this machine go to {pattern:?}"));
    }
    let limit = getrlimit(Resource::Core);
    limit.maximum.is_some_and(|most| most < 1 << 30).then(|| "no core dumps are allowed".to_owned())
}

#[test]
fn a_holder_that_dumps_core_is_not_robbed_until_that_is_done() {
    // Here, because who hangs is killed, and tidies up nothing.
    let directory = Directory(Directory::path(std::process::id()));
    fs::create_dir(&directory.0).unwrap();
    isolated(|()| {
        let directory = Directory::path(getppid().unwrap().as_raw_pid().unsigned_abs());
        if let Some(reason) = dumps_go_elsewhere() {
            return not_run(&format!("a dump of core in progress: {reason}"));
        }
        for within in [false, true] {
            for killed_meanwhile in [false, true] {
                let dumps = directory.join(format!("{within}-{killed_meanwhile}"));
                fs::create_dir(&dumps).unwrap();
                let (board, (segment, lock)) = (Board::new(8), segment_with_a_lock());
                let holder = holder(&board, &segment, within, || {
                    std::env::set_current_dir(&dumps).unwrap();
                    let maximum = getrlimit(Resource::Core).maximum;
                    setrlimit(Resource::Core, Rlimit { current: maximum, maximum }).unwrap();
                    board.set(HELD, 2);
                    board.await_at_least(GO, 1);
                    std::process::abort();
                });
                board.await_at_least(HELD, 2);
                let sleeper = sleeper(&board, &lock);
                // Made here, so that the one who is kept before it has no copy.
                let mut gate = match Gate::at(&dumps) {
                    Ok(gate) => gate,
                    Err(error) => return not_run(&format!("a dump of core in progress: fanotify: {error}")),
                };
                board.set(GO, 1);
                let waiting = gate.await_somebody();
                assert_eq!(waiting.pid.unsigned_abs(), holder.pid());
                let status = fs::read_to_string(format!("/proc/{}/status", holder.pid())).unwrap();
                assert!(status.contains("CoreDumping:\t1"), "{status}");
                nobody_gets(&lock, &sleeper, &format!("within another lock: {within}"));
                if killed_meanwhile {
                    assert_eq!(holder.kill(), End::Killed(9), "which ends the dump");
                } else {
                    waiting.let_in();
                    assert_eq!(holder.end(), End::Killed(6));
                    let dumps =
                        fs::read_dir(&dumps).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
                    assert!(dumps.sum::<u64>() > 0, "it was a dump");
                }
                assert_eq!(join(sleeper), "OwnerDied");
                assert_eq!(said(&lock.try_lock()), "Ok");
            }
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// Another PID namespace

#[track_caller]
fn refused<T: Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongPidNamespace, "{error}");
    let sentence = error.to_string();
    assert!(sentence.contains("made in another PID namespace"), "{sentence}");
    assert!(sentence.contains("run both in one (docker: --pid=container:"), "{sentence}");
}

#[test]
fn who_lives_in_another_pid_namespace_is_refused_and_told_what_to_do() {
    isolated(|()| {
        let name = format!("it-holds-namespace-{}", std::process::id());
        let board = Board::new(8);
        let segment = Segment::create(&name, 4096).unwrap();
        let lock = segment.lock("it").unwrap();
        let guard = lock.lock().unwrap();
        let outside = Forked::new(|| {
            tied_to_parent();
            let allowed = kernel::allow_namespaces();
            let own = segment.attach_again().unwrap().lock("it").unwrap();
            if let Err(error) = allowed.and_then(|()| kernel::separate_children()) {
                return not_run(&format!("a second PID namespace: {error}"));
            }
            let inside = Forked::new(|| {
                tied_to_parent();
                assert_eq!(std::process::id(), 1, "the first process of a new namespace");
                for inherited in [&lock, &own] {
                    assert_eq!(said(&inherited.try_lock()), "NotAttached");
                    assert_eq!(said(&inherited.lock_timeout(A_WHILE)), "NotAttached");
                    assert_eq!(said(&inherited.lock()), "NotAttached");
                }
                let fd = || segment.fd().unwrap().try_clone_to_owned().unwrap();
                refused(segment.attach_again());
                refused(own.segment().attach_again());
                refused(Segment::try_from(fd()));
                refused(SegmentOptions::new().received(fd()));
                refused(Segment::open(&name));
                refused(Segment::open_or_create(&name, 4096));
                refused(SegmentOptions::new().read_only(true).open(&name));
                assert!(Lock::new().unwrap().lock().is_ok(), "among themselves they can");
                board.set(TOLD, 1);
                // Without its first process a PID namespace takes no others.
                board.await_at_least(GO, 1);
            });
            board.await_at_least(TOLD, 1);
            // A function does not start there either: it could not tell who started it.
            let builder = Process::builder().kill_on_drop(true).start_timeout(HANG).stderr(Stdio::null());
            assert!(builder.spawn(|lock: Lock| said(&lock.try_lock()), own.clone()).is_err());
            board.set(GO, 1);
            assert_eq!(inside.end(), End::Exited(0));
            assert_eq!(said(&own.lock_timeout(A_WHILE)), "TimedOut", "who stayed is as good as anybody");
        });
        assert_eq!(outside.end(), End::Exited(0));
        drop(guard);
        assert_eq!(said(&lock.try_lock()), "Ok");
        assert_eq!(segment.living().unwrap(), 1);
    });
}

// ---------------------------------------------------------------------------------------------------------
// A thread that ends while its process lives

/// What a thread's end gives up, and what it does not.
type GivenUp = (Lock, RLock, Value<u64>, Value<[u64; 8]>);
type Kept = (Mutex<u64>, Array<u64>, RwLock<u64>, RwLock<u64>, Semaphore);

/// Takes each of them in a thread that then ends, as its only lock or within another. The guards are leaked.
fn end_with_each((board, given_up, kept, within): (Board, GivenUp, Kept, bool)) {
    tied_to_parent();
    let outer = Lock::new().unwrap();
    let (lock, rlock, small, large) = &given_up;
    let (mutex, array, read, written, permit) = &kept;
    let holders: [&(dyn Fn() + Sync); 9] = [
        &|| std::mem::forget(lock.lock().unwrap()),
        &|| (0..3).for_each(|_| std::mem::forget(rlock.lock().unwrap())),
        &|| std::mem::forget(small.lock().unwrap()),
        &|| std::mem::forget(large.lock().unwrap()),
        &|| **Box::leak(Box::new(mutex.lock().unwrap())) = 7,
        &|| Box::leak(Box::new(array.lock().unwrap()))[0] = 7,
        &|| std::mem::forget(read.read().unwrap()),
        &|| **Box::leak(Box::new(written.write().unwrap())) = 7,
        &|| std::mem::forget(permit.acquire().unwrap()),
    ];
    for hold in holders {
        let run = || {
            let _outer = within.then(|| outer.lock().unwrap());
            hold();
        };
        thread::scope(|scope| scope.spawn(run).join()).unwrap();
    }
    board.set(HELD, 1);
    park();
}

#[test]
fn a_thread_that_ends_gives_up_its_locks_but_not_those_whose_data_may_still_be_used() {
    for within in [false, true] {
        let segment = Segment::anonymous(64 * 1024).unwrap();
        let given_up: GivenUp = (
            segment.lock("lock").unwrap(),
            segment.rlock("rlock").unwrap(),
            segment.value("small", 1).unwrap(),
            segment.value("large", [1; 8]).unwrap(),
        );
        let kept: Kept = (
            segment.mutex("mutex", 1).unwrap(),
            segment.array("array", &[1]).unwrap(),
            segment.rwlock("read", 1).unwrap(),
            segment.rwlock("written", 1).unwrap(),
            segment.semaphore("permit", 1).unwrap(),
        );
        let board = Board::new(8);
        let process = child(end_with_each, (board.clone(), given_up.clone(), kept.clone(), within));
        board.await_at_least(HELD, 1);
        let (lock, rlock, small, large) = &given_up;
        assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied");
        assert_eq!(said(&small.lock_timeout(HANG)), "OwnerDied");
        assert_eq!(said(&large.lock_timeout(HANG)), "OwnerDied");
        let guard = rlock.lock_timeout(HANG).unwrap_err().repair(|_| ()).unwrap();
        drop(guard);
        assert!(!rlock.is_mine(), "it starts again at one");

        // Here somebody may still have a `&mut` to what the lock guards; and a permit belongs to all threads.
        let (mutex, array, read, written, permit) = &kept;
        let ask = |limit| {
            [
                said(&mutex.lock_timeout(limit)),
                said(&array.lock_timeout(limit)),
                said(&read.write_timeout(limit)),
                said(&written.read_timeout(limit)),
                outcome(&permit.acquire_timeout(limit)),
            ]
        };
        assert_eq!(ask(Duration::ZERO), ["TimedOut"; 5]);
        assert_eq!(ask(LIMIT), ["TimedOut"; 5]);
        assert!(process.is_alive());

        let waiter = child(
            |(board, mutex): (Board, Mutex<u64>)| {
                board.set(ASKING, 1);
                said(&mutex.lock_timeout(HANG))
            },
            (board.clone(), mutex.clone()),
        );
        board.await_at_least(ASKING, 1);
        await_asleep(waiter.pid());
        kill_and_reap(&process);
        assert_eq!(join(waiter), "OwnerDied", "until the process ends");
        // Who only read has changed nothing.
        assert_eq!(ask(HANG), ["OwnerDied", "OwnerDied", "Ok", "OwnerDied", "Ok"]);
        assert_eq!(*mutex.with_repair(|_| ()).unwrap(), 7, "what was written is there");
        assert_eq!(*written.with_repair(|_| ()).unwrap(), 7);
    }
}

// ---------------------------------------------------------------------------------------------------------
// Thousands

/// More than the kernel is willing to look after at the death of a thread (2048).
const MANY: usize = 3000;
/// In so many segments, which have short lists of names.
const SPREAD: usize = 60;

fn all_locks(segments: &[Segment]) -> Vec<Lock> {
    (0..MANY).map(|n| segments[n % SPREAD].lock(&format!("{}", n / SPREAD)).unwrap()).collect()
}

#[test]
fn three_thousand_locks_of_one_thread_are_all_passed_on() {
    isolated(|()| {
        for thread_only in [false, true] {
            let board = Board::new(8);
            let segments: Vec<_> =
                (0..SPREAD).map(|_| Segment::anonymous(MANY * 128 / SPREAD).unwrap()).collect();
            let locks = all_locks(&segments);
            let holder = Forked::new(|| {
                tied_to_parent();
                let own: Vec<_> = segments.iter().map(|segment| segment.attach_again().unwrap()).collect();
                let locks = all_locks(&own);
                let hold = || {
                    locks.iter().for_each(|lock| lock.acquire().unwrap());
                    board.set(HELD, 1);
                    board.await_at_least(GO, 1);
                };
                if thread_only {
                    thread::scope(|scope| scope.spawn(hold).join()).unwrap();
                    park();
                }
                hold();
            });
            board.await_at_least(HELD, 1);
            assert!(locks.iter().all(|lock| said(&lock.try_lock()) == "WouldBlock"));
            // The first is announced to the kernel, the others are not; of these, some are in the thread's own short list.
            let sleepers: Vec<_> =
                [0, 1, 16, 17, 2500, MANY - 1].map(|n| sleeper(&board, &locks[n])).into_iter().collect();
            let living = if thread_only {
                board.set(GO, 1);
                Some(holder)
            } else {
                assert_eq!(holder.kill(), End::Killed(9));
                None
            };
            for sleeper in sleepers {
                assert_eq!(join(sleeper), "OwnerDied");
            }
            let mut told = 0;
            for lock in &locks {
                match said(&lock.lock_timeout(HANG)).as_str() {
                    "OwnerDied" => told += 1,
                    other => assert_eq!(other, "Ok"),
                }
            }
            assert_eq!(told, MANY - 6, "all but those that were repaired");
            assert!(living.is_none_or(|process| !"Z-".contains(state_of(process.pid()))));
        }
    });
}

#[test]
fn a_death_is_noticed_in_more_segments_than_the_kernel_tells_of() {
    // The helper's list has 2000 places; whoever waits in a segment beyond looks from time to time.
    const SEGMENTS: usize = 2100;
    // The parent's, their copies in the child, the child's own, and a few.
    const FILES: u64 = 3 * SEGMENTS as u64 + 200;
    isolated(|()| {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current.is_some_and(|now| now < FILES) {
            let raised = Rlimit { current: maximum.or(Some(FILES)), maximum };
            if maximum.is_some_and(|most| most < FILES) || setrlimit(Resource::Nofile, raised).is_err() {
                return not_run(&format!(
                    "{SEGMENTS} segments at once: {maximum:?} files are allowed, not {FILES}"
                ));
            }
        }
        let board = Board::new(8);
        let options = SegmentOptions::new().participants(4).objects(1);
        let made: Vec<_> = (0..SEGMENTS).map(|_| options.anonymous(4096).unwrap()).collect();
        let locks: Vec<_> = made.iter().map(|segment| segment.lock("it").unwrap()).collect();
        let holder = Forked::new(|| {
            tied_to_parent();
            let own: Vec<_> = made.iter().map(|segment| segment.attach_again().unwrap()).collect();
            own.iter().for_each(|segment| segment.lock("it").unwrap().acquire().unwrap());
            board.set(HELD, 1);
            park();
        });
        board.await_at_least(HELD, 1);
        // With a place and without one; the very first is announced.
        let sleepers = [0, 1, 1999, 2000, 2050, SEGMENTS - 1].map(|n| sleeper(&board, &locks[n]));
        assert!(locks.iter().all(|lock| said(&lock.try_lock()) == "WouldBlock"));
        assert_eq!(holder.kill(), End::Killed(9));
        for sleeper in sleepers {
            assert_eq!(join(sleeper), "OwnerDied");
        }
        let told = locks.iter().filter(|lock| said(&lock.lock_timeout(HANG)) == "OwnerDied").count();
        assert_eq!(told, SEGMENTS - 6, "all but those that were repaired");
    });
}

// ---------------------------------------------------------------------------------------------------------
// A slot with a new tenant

/// How a holder leaves its slot to others.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    Reaped,
    /// Dead, with a process id that nobody else can have.
    Zombie,
    /// Another program, with the same process id.
    Exec,
}

impl Left {
    /// Takes the lock in the second of two slots and leaves it so. `None` where the process is gone.
    fn run(self, board: &Board, segment: &Segment) -> Option<Forked> {
        let holder = holder(board, segment, true, || match self {
            Self::Exec => {
                board.await_at_least(GO, 1);
                panic!("{}", Command::new("sleep").arg("1000").exec());
            }
            _ => park(),
        });
        let pid = holder.pid();
        match self {
            Self::Reaped => {
                assert_eq!(holder.kill(), End::Killed(9));
                return None;
            }
            Self::Zombie => {
                send(pid, Signal::KILL);
                // Its state is Z as soon as its first thread is gone.
                waitid(WaitId::Pid(id(pid)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            }
            Self::Exec => {
                board.set(GO, 1);
                let comm = Path::new("/proc").join(pid.to_string()).join("comm");
                wait_for("the other program", || {
                    fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n")
                });
            }
        }
        Some(holder)
    }
}

fn id(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}

fn send(pid: u32, signal: Signal) {
    kill_process(id(pid), signal).unwrap();
}

/// A copy of this process that attaches, does `act` and stays.
fn tenant(board: &Board, segment: &Segment, act: impl FnOnce(&Lock)) -> Forked {
    board.set(TOLD, 0);
    let forked = Forked::new(|| {
        tied_to_parent();
        let own = segment.attach_again().unwrap().lock("it").unwrap();
        act(&own);
        board.set(TOLD, 1);
        park();
    });
    board.await_at_least(TOLD, 1);
    forked
}

fn segment_for_two() -> Segment {
    segment_for_two_and(4096)
}

fn segment_for_two_and(len: usize) -> Segment {
    SegmentOptions::new().participants(2).anonymous(len).unwrap()
}

#[test]
fn who_gets_the_slot_of_a_dead_holder_is_not_taken_for_it() {
    isolated(|()| {
        for left in [Left::Reaped, Left::Zombie, Left::Exec] {
            let board = Board::new(8);
            let segment = segment_for_two();
            let lock = segment.lock("it").unwrap();

            // Asked by another, while somebody new lives in the slot.
            let remains = left.run(&board, &segment);
            let innocent = tenant(&board, &segment, |_| ());
            assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied", "{left:?}");
            assert_eq!(innocent.kill(), End::Killed(9));
            assert_eq!(
                said(&lock.try_lock()),
                "OwnerDied",
                "{left:?}: a second death, of one without a lock"
            );
            drop(lock.with_repair(|| ()).unwrap());
            drop(remains);

            // Asked by the new one itself, which then holds the lock in the very slot.
            let remains = left.run(&board, &segment);
            let heir = tenant(&board, &segment, |lock| {
                assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied");
                std::mem::forget(lock.with_repair(|| ()).unwrap());
            });
            assert_eq!(said(&lock.try_lock()), "WouldBlock", "{left:?}: its holder lives");
            assert_eq!(said(&lock.lock_timeout(A_WHILE)), "TimedOut", "{left:?}");
            assert_eq!(heir.kill(), End::Killed(9));
            assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied", "{left:?}");
            drop(lock.with_repair(|| ()).unwrap());
            drop(remains);
            assert_eq!(segment.living().unwrap(), 1, "{left:?}");
        }
    });
}

#[test]
fn what_the_dead_one_of_a_slot_had_is_not_the_new_ones() {
    isolated(|()| {
        let (board, segment) = (Board::new(8), segment_for_two_and(64 * 1024));
        let (permits, table) =
            (segment.semaphore("permits", 3).unwrap(), segment.rwlock("table", 1_u64).unwrap());
        let take = |permits: &Semaphore, table: &RwLock<u64>, n: u32| {
            (0..n).for_each(|_| permits.acquire_timeout(HANG).unwrap().keep());
            std::mem::forget(table.read_timeout(HANG).unwrap());
        };
        for round in 0..3 {
            let dead = tenant(&board, &segment, |lock| {
                let own = lock.segment();
                take(&own.semaphore("permits", 0).unwrap(), &own.rwlock("table", 0).unwrap(), 2);
            });
            assert_eq!(permits.available(), 1, "round {round}");
            assert_eq!(dead.kill(), End::Killed(9));
            // In the same slot, and the first to look at what the dead one had there.
            let heir = tenant(&board, &segment, |lock| {
                let own = lock.segment();
                take(&own.semaphore("permits", 0).unwrap(), &own.rwlock("table", 0).unwrap(), 1);
            });
            // Two of three are free again, no more and no less; and the reader is the new one.
            let mine = [(); 2].map(|()| permits.acquire_timeout(HANG).unwrap());
            assert_eq!(outcome(&permits.acquire_timeout(LIMIT)), "TimedOut", "round {round}");
            assert_eq!(said(&table.write_timeout(LIMIT)), "TimedOut", "round {round}");
            drop(mine);
            assert_eq!(heir.kill(), End::Killed(9));
            let all = [(); 3].map(|()| permits.acquire_timeout(HANG).unwrap());
            assert_eq!(outcome(&permits.try_acquire()), "WouldBlock", "round {round}");
            drop(all);
            assert_eq!(said(&table.write_timeout(HANG)), "Ok", "round {round}: who died has only read");
            permits.audit().unwrap();
            table.audit().unwrap();
        }
    });
}

#[test]
fn a_sleeper_that_missed_the_change_of_tenants_is_told_of_the_death() {
    isolated(|()| {
        let board = Board::new(8);
        let segment = SegmentOptions::new().participants(3).anonymous(4096).unwrap();
        let lock = segment.lock("it").unwrap();
        let holder = holder(&board, &segment, true, || park());
        let waiter = Forked::new(|| {
            tied_to_parent();
            let own = segment.attach_again().unwrap().lock("it").unwrap();
            board.set(ASKING, 1);
            assert_eq!(said(&own.lock_timeout(HANG)), "OwnerDied");
            drop(own.with_repair(|| ()).unwrap());
        });
        board.await_at_least(ASKING, 1);
        await_asleep(waiter.pid());
        send(waiter.pid(), Signal::STOP);
        await_state(waiter.pid(), 'T');
        assert_eq!(holder.kill(), End::Killed(9));
        // All three slots are taken but that of the dead one: the token that the sleeper slept on is a living one's now.
        let innocent = tenant(&board, &segment, |_| ());
        send(waiter.pid(), Signal::CONT);
        assert_eq!(waiter.end(), End::Exited(0));
        assert_eq!(said(&lock.try_lock()), "Ok");
        drop(innocent);
    });
}

/// A segment for two, one of whom has died with the lock `it`.
fn segment_with_a_dead_one() -> Segment {
    let segment = segment_for_two();
    assert_eq!(holder(&Board::new(8), &segment, true, || park()).kill(), End::Killed(9));
    segment
}

/// The dead one's lock is passed on, and its slot is as good as new, whatever has become of the next one there. With `tenant_first`
/// somebody new has the slot before anybody asks.
#[track_caller]
fn the_other_slot_can_be_used(segment: &Segment, tenant_first: bool, what: &str) {
    let (board, lock) = (Board::new(8), segment.lock("it").unwrap());
    let innocent = tenant_first.then(|| tenant(&board, segment, |_| ()));
    assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied", "{what}");
    drop(lock.with_repair(|| ()).unwrap());
    assert!(innocent.is_none_or(|process| process.kill() == End::Killed(9)));
    // Twice: the second one finds what the first one left by its death.
    for _ in 0..2 {
        let next = holder(&board, segment, true, || park());
        assert_eq!(segment.living().unwrap(), 2, "{what}");
        assert_eq!(said(&lock.try_lock()), "WouldBlock", "{what}");
        assert_eq!(next.kill(), End::Killed(9));
        assert_eq!(said(&lock.try_lock()), "OwnerDied", "{what}");
        drop(lock.with_repair(|| ()).unwrap());
    }
    assert_eq!(segment.living().unwrap(), 1, "{what}: the dead are known as dead");
}

#[test]
fn who_is_killed_at_a_system_call_while_it_attaches_leaves_a_slot_that_can_be_used() {
    isolated(|()| {
        at_every_call(
            "attach to the slot of a dead one, and leave it",
            segment_with_a_dead_one,
            |segment| drop(segment.attach_again().unwrap()),
            |segment, stop| the_other_slot_can_be_used(&segment, stop % 4 < 2, &format!("stop {stop}")),
        );
    });
}

#[test]
fn who_is_killed_after_any_change_that_it_makes_by_coming_or_going_leaves_a_slot_that_can_be_used() {
    /// All that changes when somebody comes or goes: the header, and the second slot of the table, which has the second page.
    struct Watched([PlacedSlice<AtomicU64>; 2]);
    impl Watched {
        fn new(segment: &Segment) -> Self {
            let (header, slot) = ((0, 32), (4096 + SLOT_BYTES, SLOT_BYTES / 8));
            let words = |(offset, count): (usize, usize)| {
                let span = Span { offset: offset as u64, count: count as u64 };
                segment.mapping().place_slice_for_reading(span).unwrap()
            };
            Self([words(header), words(slot)])
        }
        fn now(&self) -> Vec<u64> {
            self.0.iter().flat_map(|words| words.iter().map(|word| word.load(Ordering::Relaxed))).collect()
        }
    }
    isolated(|()| {
        let board = Board::new(8);
        let start = |segment: &Segment| {
            board.set(GO, 0);
            let mut traced = Traced::start(|| {
                // Its helper thread is started here: that takes now more calls, now fewer.
                let _another = Segment::anonymous(4096).unwrap();
                board.set(GO, 1);
                drop(segment.attach_again().unwrap());
            })?;
            while board.get(GO) == 0 {
                assert_eq!(traced.step(), None);
            }
            Ok::<_, String>(traced)
        };
        // Most of the way is the same for all, and changes nothing.
        let segment = segment_with_a_dead_one();
        let mut traced = match start(&segment) {
            Ok(traced) => traced,
            Err(reason) => return not_run(&format!("killing at every change: {reason}")),
        };
        let watched = Watched::new(&segment);
        let (untouched, mut calls) = (watched.now(), 0);
        while traced.step().is_none() && watched.now() == untouched {
            calls += 1;
        }
        drop(traced);
        for (kill_at, tenant_first) in (1..).flat_map(|at| [(at, false), (at, true)]) {
            let segment = segment_with_a_dead_one();
            let mut traced = start(&segment).unwrap();
            assert!((0..calls).all(|_| traced.step().is_none()));
            let watched = Watched::new(&segment);
            let (mut changes, mut now) = (0, watched.now());
            let ended = loop {
                if let Some(end) = traced.one_instruction() {
                    break Some(end);
                }
                let then = std::mem::replace(&mut now, watched.now());
                changes += u64::from(then != now);
                if changes == kill_at {
                    break None;
                }
            };
            if let Some(end) = ended {
                assert_eq!(end, End::Exited(0), "not killed, it succeeds");
                println!("killed after each of {changes} changes, from call {} on", calls / 2);
                assert!(changes >= 16, "claim, generation, token, .. for the dead one, in and out");
                return;
            }
            assert_eq!(traced.kill(), End::Killed(9));
            the_other_slot_can_be_used(&segment, tenant_first, &format!("change {kill_at}"));
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// The clock

/// What waits here with a time limit, and how long.
const LIMIT: Duration = Duration::from_millis(120);

type Timed = (&'static str, fn(&Segment));

/// Every wait that can end by itself, each for something that the parent does not give.
const TIMED: &[Timed] = &[
    ("Lock", |s| timed_out(|| said(&s.lock("lock").unwrap().lock_timeout(LIMIT)))),
    ("Lock until", |s| timed_out(|| said(&s.lock("lock").unwrap().lock_deadline(Instant::now() + LIMIT)))),
    ("RLock", |s| timed_out(|| said(&s.rlock("rlock").unwrap().lock_timeout(LIMIT)))),
    ("Mutex", |s| timed_out(|| said(&s.mutex("mutex", 1_u64).unwrap().lock_timeout(LIMIT)))),
    ("Array", |s| timed_out(|| said(&s.array("array", &[1_u64]).unwrap().lock_timeout(LIMIT)))),
    ("Value", |s| timed_out(|| said(&s.value("value", 1_u64).unwrap().lock_timeout(LIMIT)))),
    ("Semaphore", |s| timed_out(|| outcome(&s.semaphore("semaphore", 0).unwrap().acquire_timeout(LIMIT)))),
    ("BoundedSemaphore", |s| {
        timed_out(|| outcome(&s.bounded_semaphore("bounded", 1).unwrap().acquire_timeout(LIMIT)));
    }),
    ("BinarySemaphore", |s| {
        timed_out(|| outcome(&s.binary_semaphore("binary").unwrap().acquire_timeout(LIMIT)))
    }),
    ("RwLock, to read", |s| timed_out(|| said(&s.rwlock("written", 1_u64).unwrap().read_timeout(LIMIT)))),
    ("RwLock, to write", |s| timed_out(|| said(&s.rwlock("written", 1_u64).unwrap().write_timeout(LIMIT)))),
    ("RwLock, with a reader", |s| timed_out(|| said(&s.rwlock("read", 1_u64).unwrap().write_timeout(LIMIT)))),
    ("Event", |s| timed_out(|| outcome(&s.event("event").unwrap().wait_timeout(LIMIT)))),
    ("Condvar", |s| {
        let (condvar, lock) = (s.condvar("condvar").unwrap(), s.lock("free").unwrap());
        timed_out(|| outcome(&condvar.wait_timeout(lock.lock().unwrap(), LIMIT)));
    }),
    ("Barrier", |s| timed_out(|| outcome(&s.barrier("barrier", 2).unwrap().wait_timeout(LIMIT)))),
    ("Once, to do it", |s| timed_out(|| outcome(&s.once("once").unwrap().call_timeout(LIMIT, |_| ())))),
    ("Once, to see it done", |s| timed_out(|| outcome(&s.once("once").unwrap().wait_timeout(LIMIT)))),
    ("small Value to change", |s| {
        timed_out(|| waited(s.value("small", 1_u64).unwrap().wait_while_timeout(LIMIT, |_| true)));
    }),
    ("large Value to change", |s| {
        timed_out(|| waited(s.value("large", [1_u64; 8]).unwrap().wait_while_timeout(LIMIT, |_| true)));
    }),
];

fn waited<T>(changed: Result<Option<T>, AccessError>) -> String {
    if matches!(changed, Ok(None)) { "TimedOut" } else { "it changed" }.to_owned()
}

fn timed_out(wait: impl FnOnce() -> String) {
    let started = Instant::now();
    let said = wait();
    // Of a barrier this breaks it.
    assert!(said.contains("TimedOut") || said == "Broken(Timeout)", "{said}");
    assert!(started.elapsed() >= LIMIT);
}

/// What the kernel may be asked to sleep with.
#[derive(Default)]
struct Calls {
    /// Which one of [`TIMED`] made each timed sleep on one word, and on several.
    on_one: Vec<usize>,
    on_several: Vec<usize>,
}

impl Calls {
    /// Looks at a call that `traced` is about to make; `which` runs.
    fn look(&mut self, traced: &Traced, number: u64, args: [u64; 6], which: usize, started: Duration) {
        /// `flags` of `struct futex_waitv`: 32 bits wide, and shared.
        const SHARED_U32: u32 = 2;
        let name = TIMED[which].0;
        let memory = File::open(format!("/proc/{}/mem", traced.pid())).unwrap();
        let is_soon = |at: u64| {
            let mut time = [0; 16];
            memory.read_exact_at(&mut time, at).unwrap();
            let part = |at: usize| u64::from_ne_bytes(time[at..at + 8].try_into().unwrap());
            let until = Duration::new(part(0), part(8).try_into().unwrap());
            let now = monotonic();
            assert!(
                started < until && until < now + LIMIT + Duration::from_secs(1),
                "{name}: until {until:?}, and it is {now:?} on the clock that nobody can set"
            );
        };
        match i64::try_from(number).unwrap() {
            libc::SYS_futex => match args[1] as i32 {
                libc::FUTEX_WAKE => {}
                // No flag beside it, neither for the other clock nor for words of one process.
                libc::FUTEX_WAIT_BITSET => {
                    assert_ne!(args[3], 0, "{name}: a sleep without an end");
                    is_soon(args[3]);
                    self.on_one.push(which);
                }
                operation => panic!("{name}: futex operation {operation:#x}"),
            },
            libc::SYS_futex_waitv => {
                assert_eq!(args[2], 0, "{name}");
                assert_eq!(args[4] as i32, libc::CLOCK_MONOTONIC, "{name}");
                assert_ne!(args[3], 0, "{name}: a sleep without an end");
                is_soon(args[3]);
                for waiter in 0..args[1] {
                    let mut flags = [0; 4];
                    memory.read_exact_at(&mut flags, args[0] + 24 * waiter + 16).unwrap();
                    assert_eq!(u32::from_ne_bytes(flags), SHARED_U32, "{name}");
                }
                self.on_several.push(which);
            }
            libc::SYS_clock_gettime | libc::SYS_clock_nanosleep => {
                assert_eq!(args[0] as i32, libc::CLOCK_MONOTONIC, "{name}");
            }
            _ => {}
        }
    }
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec.try_into().unwrap())
}

/// Runs all of [`TIMED`] in a traced process; an error if that is not possible here.
fn trace(with_waitv: bool) -> Result<Calls, String> {
    let segment = Segment::anonymous(256 * 1024).unwrap();
    let lock = segment.lock("lock").unwrap();
    let rlock = segment.rlock("rlock").unwrap();
    let mutex = segment.mutex("mutex", 1_u64).unwrap();
    let array = segment.array("array", &[1_u64]).unwrap();
    let value = segment.value("value", 1_u64).unwrap();
    let written = segment.rwlock("written", 1_u64).unwrap();
    let read = segment.rwlock("read", 1_u64).unwrap();
    let bounded = segment.bounded_semaphore("bounded", 1).unwrap();
    let binary = segment.binary_semaphore("binary").unwrap();
    let once = segment.once("once").unwrap();
    segment.value("small", 1_u64).unwrap();
    segment.value("large", [1_u64; 8]).unwrap();
    let _guards = (
        lock.lock().unwrap(),
        rlock.lock().unwrap(),
        mutex.lock().unwrap(),
        array.lock().unwrap(),
        value.lock().unwrap(),
        written.write().unwrap(),
        read.read().unwrap(),
        bounded.acquire().unwrap(),
    );
    binary.acquire().unwrap();
    segment.semaphore("semaphore", 0).unwrap();
    let mut result = None;
    once.call(|_| result = Some(trace_there(&segment, with_waitv))).unwrap();
    result.expect("it was called")
}

/// What `segment` has is taken.
fn trace_there(segment: &Segment, with_waitv: bool) -> Result<Calls, String> {
    const SETS_THE_CLOCK: [i64; 4] =
        [libc::SYS_clock_settime, libc::SYS_settimeofday, libc::SYS_adjtimex, libc::SYS_clock_adjtime];
    let board = Board::new(8);
    let mut traced = Traced::start(|| {
        let own = segment.attach_again().unwrap();
        if !with_waitv && kernel::deny(libc::SYS_futex_waitv, libc::ENOSYS).is_err() {
            board.set(TOLD, 1);
            return;
        }
        for (n, (_, wait)) in TIMED.iter().enumerate() {
            board.set(GO, 1 + n as u64);
            wait(&own);
        }
        board.set(GO, 0);
    })?;
    let (mut calls, started) = (Calls::default(), monotonic());
    let end = loop {
        if let Some(end) = traced.step() {
            break end;
        }
        let Some((number, args)) = traced.call() else { continue };
        assert!(!SETS_THE_CLOCK.contains(&number.cast_signed()), "somebody sets the clock");
        // Before it has attached it also waits for its own helper thread, in a way of libc's.
        if let Some(which) = board.get(GO).checked_sub(1) {
            calls.look(&traced, number, args, which as usize, started);
        }
    };
    assert_eq!(end, End::Exited(0));
    if board.get(TOLD) == 1 { Err("system call filters are not allowed".into()) } else { Ok(calls) }
}

#[test]
fn every_timed_wait_is_on_the_clock_that_nobody_can_set() {
    isolated(|()| {
        for with_waitv in [true, false] {
            let calls = match trace(with_waitv) {
                Ok(calls) => calls,
                Err(reason) => {
                    not_run(&format!("tracing timed waits (futex_waitv: {with_waitv}): {reason}"));
                    continue;
                }
            };
            let (one, several) = (calls.on_one.len(), calls.on_several.len());
            println!("futex_waitv: {with_waitv}; sleeps on one word {one}, on several {several}");
            for (n, (name, _)) in TIMED.iter().enumerate() {
                let seen = if with_waitv {
                    [&calls.on_one[..], &calls.on_several].concat()
                } else {
                    calls.on_one.clone()
                };
                assert!(seen.contains(&n), "{name}: no timed sleep seen");
            }
            let there = kernel::probe_futex_waitv() == Some(libc::EINVAL);
            assert!(!with_waitv || !there || several > 0, "the holders of the locks have tokens");
        }
    });
}
