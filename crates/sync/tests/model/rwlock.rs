//! The readers-writer lock.

use std::cell::Cell;
use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_atomic::{AtomicU32, Deadline, Liveness, Owner, Pending, Platform};
use crossproc_sync::{LockFailure, LockWords, Marks, ReaderCell, RwLockWords, Wait};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// One of several threads of a process: `process` gives it a thread id of its own.
pub(crate) struct ThreadOf<'a> {
    pub(crate) process: &'a Process,
    pub(crate) owner: Owner,
    pub(crate) alone: bool,
}

impl Platform for ThreadOf<'_> {
    fn tid(&self) -> u32 {
        self.process.tid()
    }
    fn announce(&self, word: &AtomicU32) -> Pending {
        self.process.announce(word)
    }
    fn retract(&self, pending: Pending) {
        self.process.retract(pending);
    }
    fn hold_announced(&self, word: &AtomicU32) {
        self.process.hold_announced(word);
    }
    fn hold(&self, word: &AtomicU32) {
        self.process.hold(word);
    }
    fn keep(&self, word: &AtomicU32) {
        self.process.keep(word);
    }
    fn unhold(&self, word: &AtomicU32) {
        self.process.unhold(word);
    }
    fn wait(&self, word: &AtomicU32, expected: u32, also: &[(&AtomicU32, u32)], until: Option<Deadline>) {
        self.process.wait(word, expected, also, until);
    }
    fn wake(&self, word: &AtomicU32, count: u32) -> u32 {
        self.process.wake(word, count)
    }
    fn now(&self) -> Deadline {
        self.process.now()
    }
    fn thread_exists(&self, tid: u32) -> bool {
        self.process.thread_exists(tid)
    }
    fn spins(&self) -> u32 {
        self.process.spins()
    }
}

impl Liveness for ThreadOf<'_> {
    fn me(&self) -> Owner {
        self.owner
    }
    fn is_dead(&self, owner: Owner) -> bool {
        self.process.is_dead(owner)
    }
    fn token(&self, owner: Owner) -> Option<(&AtomicU32, u32)> {
        self.process.token(owner)
    }
    fn await_proof(&self, owner: Owner, until: Option<Deadline>) {
        self.process.await_proof(owner, until);
    }
    fn comings(&self) -> u32 {
        self.process.comings()
    }
    fn wait_among_peers(&self, word: &AtomicU32, expected: u32, comings: u32, until: Option<Deadline>) {
        self.process.wait_among_peers(word, expected, comings, until);
    }
    fn is_alone(&self) -> bool {
        self.alone
    }
}

/// A lock and the data it guards; loom reports every unordered pair of accesses to the data, unless both read.
struct Guarded {
    words: RwLockWords,
    cells: Vec<ReaderCell>,
    data: UnsafeCell<u64>,
}

impl Guarded {
    fn new() -> Arc<Self> {
        let cells = (0..4).map(|_| ReaderCell::default()).collect();
        Arc::new(Self { words: RwLockWords::default(), cells, data: UnsafeCell::new(0) })
    }

    fn add(&self) {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.data.with_mut(|data| unsafe { *data += 1 });
    }

    fn sum(&self) -> u64 {
        // SAFETY: as above, if anybody else writes it.
        self.data.with(|data| unsafe { *data })
    }

    fn read(&self, live: &impl Liveness, wait: Wait) -> Result<Marks, LockFailure> {
        self.words.read(&self.cells, live, wait)
    }

    fn write(&self, live: &impl Liveness, wait: Wait) -> Result<Marks, LockFailure> {
        self.words.write(&self.cells, live, wait)
    }

    fn leave(&self, live: &impl Liveness) {
        self.words.leave(&self.cells, live);
    }

    /// Reads the data once; what was told, and what was there.
    fn look(&self, live: &impl Liveness) -> (Marks, u64) {
        let marks = self.read(live, Wait::FOREVER).expect("no deadline");
        let sum = self.sum();
        self.leave(live);
        (marks, sum)
    }

    /// Adds one, and says that the data is consistent; what was told.
    fn add_one(&self, live: &impl Liveness) -> Marks {
        let marks = self.write(live, Wait::FOREVER).expect("no deadline");
        self.add();
        if !marks.is_clean() {
            self.words.mark_consistent(live);
        }
        self.words.unlock(live, false);
        marks
    }

    fn audit(&self, live: &impl Liveness) {
        assert_eq!(self.words.audit(&self.cells, |owner| live.is_gone(owner)), Ok(()));
    }
}

/// Runs `f` beside the main thread, as a process of its own.
fn beside<R: 'static>(
    kernel: &Arc<Kernel>,
    guarded: &Arc<Guarded>,
    tid: u32,
    f: impl FnOnce(&Process, &Guarded) -> R + 'static,
) -> thread::JoinHandle<R> {
    let (process, guarded) = (Process::new(kernel, tid), Arc::clone(guarded));
    thread::spawn(move || f(&process, &guarded))
}

#[test]
fn a_writer_excludes_all_and_nobody_sleeps_for_ever() {
    explore("rwlock_two", 500, 3, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let other = beside(&kernel, &guarded, 1, |process, guarded| {
            assert!(guarded.add_one(process).is_clean());
            guarded.look(process).1
        });
        let me = Process::new(&kernel, 2);
        let before = guarded.look(&me).1;
        assert!(guarded.add_one(&me).is_clean());
        let after = other.join().expect("ends well");
        assert!(before <= 1 && (1..=2).contains(&after), "{before} {after}");
        assert_eq!(guarded.look(&me).1, 2);
        guarded.audit(&me);
    });
}

#[test]
fn a_writer_waits_for_all_readers_and_all_readers_for_it() {
    let seen = explore("rwlock_three", 500, 2, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let reader = |tid| beside(&kernel, &guarded, tid, |process, guarded| guarded.look(process).1);
        let readers = [reader(1), reader(3)];
        let me = Process::new(&kernel, 2);
        guarded.add_one(&me);
        outcome.extend(readers.map(|reader| reader.join().expect("ends well")));
        guarded.audit(&me);
    });
    assert_eq!(seen.len(), 4, "each reader before and after the writer: {seen:?}");
}

#[test]
fn a_reader_that_had_to_queue_is_counted_before_the_next_writer_comes() {
    let seen = explore("rwlock_queue", 50, 3, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let reader = beside(&kernel, &guarded, 1, |process, guarded| guarded.look(process).1);
        let me = Process::new(&kernel, 2);
        guarded.add_one(&me);
        guarded.add_one(&me);
        outcome.push(reader.join().expect("ends well"));
    });
    assert_eq!(seen.len(), 3, "before, between and after the writers: {seen:?}");
}

#[test]
fn what_a_writer_leaves_reaches_a_reader_that_meets_no_writer() {
    // The reader may read what a second writer, who gave up, has put back into the words.
    let seen = explore("rwlock_given_up", 50, 1, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let writer = beside(&kernel, &guarded, 1, |process, guarded| guarded.add_one(process));
        let reader = beside(&kernel, &guarded, 3, |process, guarded| guarded.look(process).1);
        let me = Process::new(&kernel, 2);
        guarded.read(&me, Wait::FOREVER).expect("no deadline");
        // Its own reading keeps it from writing.
        let failure = guarded.write(&me, Wait::Until(Some(Deadline(0))));
        assert_eq!(failure, Err(LockFailure::TimedOut));
        assert_eq!(guarded.write(&me, Wait::Try), Err(LockFailure::WouldBlock));
        guarded.leave(&me);
        assert!(writer.join().expect("ends well").is_clean());
        outcome.push(reader.join().expect("ends well"));
        guarded.audit(&me);
    });
    assert_eq!(seen.len(), 2, "before and after the writer: {seen:?}");
}

#[test]
fn a_failed_try_changes_nothing() {
    let seen = explore("rwlock_try", 100, 3, |outcome| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let other = beside(&kernel, &guarded, 1, |process, guarded| {
            let read = guarded.read(process, Wait::Try);
            if read.is_ok() {
                guarded.sum();
                guarded.leave(process);
            }
            u64::from(read.is_ok())
        });
        let me = Process::new(&kernel, 2);
        let wrote = guarded.write(&me, Wait::Try);
        if wrote.is_ok() {
            guarded.add();
            assert_eq!(guarded.write(&me, Wait::Try), Err(LockFailure::WouldDeadlock));
            assert_eq!(guarded.read(&me, Wait::FOREVER), Err(LockFailure::WouldDeadlock));
            guarded.words.unlock(&me, false);
        }
        let read = other.join().expect("ends well");
        assert!(guarded.write(&me, Wait::Try).is_ok(), "nobody is left");
        guarded.words.unlock(&me, false);
        guarded.audit(&me);
        outcome.extend([read, u64::from(wrote.is_ok())]);
    });
    for some in [[0, 1], [1, 0], [1, 1]] {
        assert!(seen.contains(&some[..]), "{some:?} was never seen in {seen:?}");
    }
}

#[test]
fn a_writer_that_goes_on_reading_lets_no_writer_in_between() {
    explore("rwlock_downgrade", 100, 3, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let other = beside(&kernel, &guarded, 1, |process, guarded| {
            guarded.add_one(process);
            guarded.add_one(process);
        });
        let me = Process::new(&kernel, 2);
        guarded.write(&me, Wait::FOREVER).expect("no deadline");
        guarded.add();
        let sum = guarded.sum();
        guarded.words.downgrade(&guarded.cells, &me, false);
        assert_eq!(guarded.sum(), sum);
        guarded.leave(&me);
        other.join().expect("ends well");
        assert_eq!(guarded.look(&me).1, 3);
        guarded.audit(&me);
    });
}

#[test]
fn a_panic_is_told_until_a_writer_says_otherwise() {
    explore("rwlock_poison", 50, 3, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let other = beside(&kernel, &guarded, 1, |process, guarded| {
            guarded.write(process, Wait::FOREVER).expect("no deadline");
            guarded.add();
            guarded.words.unlock(process, true);
        });
        let me = Process::new(&kernel, 2);
        let (marks, sum) = guarded.look(&me);
        assert_eq!((marks.poisoned(), marks.owner_died()), (sum == 1, false));
        other.join().expect("ends well");
        assert!(guarded.look(&me).0.poisoned());
        assert!(guarded.add_one(&me).poisoned());
        assert!(guarded.look(&me).0.is_clean());
        guarded.audit(&me);
    });
}

/// Two readers are threads of one process, and so count in one cell.
#[test]
fn threads_of_one_process_are_all_counted() {
    explore("rwlock_threads", 30, 1, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let readers = [1, 3].map(|tid| {
            beside(&kernel, &guarded, tid, |process, guarded| {
                let owner = Owner::new(1, 1).expect("generation 1 is an identity");
                guarded.look(&ThreadOf { process, owner, alone: false });
            })
        });
        let me = Process::new(&kernel, 2);
        guarded.add_one(&me);
        for reader in readers {
            reader.join().expect("ends well");
        }
        guarded.audit(&me);
    });
}

/// A writer is killed before each of its shared accesses in turn; another process reads and writes meanwhile.
#[test]
fn a_writers_death_is_survived_and_reported_exactly() {
    for inner in [false, true] {
        let mut reported = BTreeSet::new();
        let (name, steps) = if inner { ("rwlock_inner_death", 3..18) } else { ("rwlock_death", 0..15) };
        for accesses in steps {
            reported.extend(explore(&format!("{name}_{accesses}"), 10, 2, move |outcome| {
                let (kernel, guarded) = (Kernel::new(), Guarded::new());
                let victim = beside(&kernel, &guarded, 1, move |process, guarded| {
                    let (outer, held) = (LockWords::default(), Cell::new(0));
                    let words = [guarded.words.futex_word(), outer.futex_word()];
                    process.run_until_killed(accesses, &words, || {
                        if inner {
                            outer.lock(process, None).expect("free");
                        }
                        guarded.write(process, Wait::FOREVER).expect("no deadline");
                        held.set(1);
                        guarded.add();
                        held.set(2);
                        guarded.words.unlock(process, false);
                        held.set(3);
                    });
                    held.get()
                });
                let survivor = Process::new(&kernel, 2);
                let told_reader = guarded.look(&survivor).0.owner_died();
                let told_writer = guarded.add_one(&survivor).owner_died();
                assert!(told_writer || !told_reader, "the mark stays until a writer takes it away");
                let held = victim.join().expect("the model thread ends well");
                let told_later = guarded.add_one(&survivor).owner_died();
                assert!(!(told_writer && told_later), "one death was reported twice");
                assert!(guarded.look(&survivor).0.is_clean());
                guarded.audit(&survivor);
                outcome.extend([held, u64::from(told_writer || told_later)]);
            }));
        }
        for (outcome, what) in [
            ([0, 0], "a death before writing is not reported"),
            ([2, 1], "a death while writing is reported"),
            ([2, 0], "a death after the end of writing is not reported"),
            ([3, 0], "a writer that has ended is not reported"),
        ] {
            assert!(reported.contains(&outcome[..]), "{what}: never seen in {reported:?}");
        }
        for outcome in [[0, 1], [3, 1]] {
            assert!(!reported.contains(&outcome[..]), "reported although it did not write: {reported:?}");
        }
    }
}

/// A reader is killed before each of its shared accesses in turn; another process writes meanwhile.
#[test]
fn a_readers_death_holds_up_nobody_and_is_not_reported() {
    let mut seen = BTreeSet::new();
    for accesses in 0..14 {
        seen.extend(explore(&format!("rwlock_reader_death_{accesses}"), 1, 3, move |outcome| {
            let (kernel, guarded) = (Kernel::new(), Guarded::new());
            let victim = beside(&kernel, &guarded, 1, move |process, guarded| {
                let words = [guarded.words.futex_word()];
                let done = process.run_until_killed(accesses, &words, || guarded.look(process).1);
                done.map_or(2, |sum| sum)
            });
            let survivor = Process::new(&kernel, 2);
            assert!(guarded.add_one(&survivor).is_clean());
            outcome.push(victim.join().expect("the model thread ends well"));
            assert!(guarded.add_one(&survivor).is_clean());
            assert_eq!(guarded.look(&survivor).1, 2);
            assert_eq!(guarded.words.readers(&guarded.cells, |owner| survivor.is_gone(owner)), 0);
            guarded.audit(&survivor);
        }));
    }
    assert_eq!(seen.len(), 3, "killed, and having read both: {seen:?}");
}

/// One has died while it wrote; two readers come, and one of them meets no trace of a writer any more.
#[test]
fn all_are_told_until_a_writer_says_otherwise() {
    explore("rwlock_inheritance", 100, 2, |_| {
        let (kernel, guarded) = (Kernel::new(), Guarded::new());
        let victim = beside(&kernel, &guarded, 1, |process, guarded| {
            guarded.write(process, Wait::FOREVER).expect("free");
            guarded.add();
            process.die(&[guarded.words.futex_word()]);
        });
        let reader = beside(&kernel, &guarded, 3, |process, guarded| {
            let (marks, sum) = guarded.look(process);
            assert_eq!(marks.owner_died(), sum == 1);
        });
        let me = Process::new(&kernel, 2);
        let (marks, sum) = guarded.look(&me);
        assert_eq!(marks.owner_died(), sum == 1);
        victim.join().expect("ends well");
        reader.join().expect("ends well");
        assert!(guarded.look(&me).0.owner_died());
        assert!(guarded.add_one(&me).owner_died());
        assert!(guarded.look(&me).0.is_clean());
        guarded.audit(&me);
    });
}
