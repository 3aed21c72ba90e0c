//! What becomes of a lock whose holder dies, or only seems to.
//!
//! In each case two processes wait, or come later: one of them is told `OwnerDied`, once, and the other nothing.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crossproc_primitives::{Guard, Lock, LockError, RLock};
use crossproc_process::{ExitStatus, Process};
use crossproc_tests::{
    Board, HANG, await_asleep, await_state, child, join, kill_and_reap, state_of, tied_to_parent, wait_for,
};
use serde::{Deserialize, Serialize};

use crate::kernel;
use crate::lock::said;

const HELD: usize = 0;
const GO: usize = 1;
const WAITERS: usize = 2;
const INSIDE: usize = 3;

/// What a holder does with itself when it is told to go.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum End {
    /// Waits to be killed.
    Park,
    Abort,
    Exit,
    /// Becomes another program, which keeps its process id.
    Exec,
    /// The thread that holds the lock ends; the process goes on. The guard is forgotten.
    ThreadForgets,
    /// The same, without a guard.
    ThreadAcquires,
    /// The same, by a panic that leaves the guard behind.
    ThreadPanics,
}

/// How the lock is held: who tells the next one of the death depends on it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Held {
    /// As the only lock of its thread: the kernel knows of it.
    Alone,
    /// Within another lock: the kernel knows of that one only.
    Within,
    /// Alone, but libc has put something else in the place where the kernel looks.
    Unknown,
}

const WAYS: [Held; 3] = [Held::Alone, Held::Within, Held::Unknown];

impl Held {
    /// Holds the lock for the rest of the thread's life.
    fn hold(self, lock: &Lock, with_guard: bool) {
        if matches!(self, Held::Within) {
            Lock::new().unwrap().acquire().unwrap();
        }
        if with_guard {
            std::mem::forget(lock.lock().unwrap());
        } else {
            lock.acquire().unwrap();
        }
        if matches!(self, Held::Unknown) {
            kernel::use_a_robust_mutex_of_libc();
        }
    }
}

fn hold_and_end((board, lock, end, held): (Board, Lock, End, Held)) {
    tied_to_parent();
    let hold = || {
        held.hold(&lock, !matches!(end, End::ThreadAcquires));
        board.set(INSIDE, 1);
        board.set(HELD, 1);
        board.await_at_least(GO, 1);
    };
    match end {
        End::Park => {
            hold();
            park();
        }
        End::Abort => {
            hold();
            std::process::abort();
        }
        End::Exit => {
            hold();
            std::process::exit(0);
        }
        End::Exec => {
            hold();
            panic!("{}", Command::new("sleep").arg("1000").exec());
        }
        End::ThreadForgets | End::ThreadAcquires | End::ThreadPanics => {
            let ended = thread::scope(|scope| {
                let run = || {
                    hold();
                    assert!(!matches!(end, End::ThreadPanics), "on purpose");
                };
                scope.spawn(run).join()
            });
            assert_eq!(ended.is_err(), matches!(end, End::ThreadPanics));
            park();
        }
    }
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Locks once; says what it was told, and takes the mark away.
fn lock_once((board, lock, within): (Board, Lock, bool)) -> String {
    tied_to_parent();
    let outer = Lock::new().unwrap();
    let _outer = within.then(|| outer.lock().unwrap());
    board.add(WAITERS, 1);
    let locked = lock.lock_timeout(HANG);
    let told = said(&locked);
    let before = board.swap(INSIDE, 2);
    match locked {
        Err(LockError::OwnerDied(mut guard)) => {
            assert_eq!(before, 1, "the dead one was inside");
            guard.mark_consistent();
            board.set(INSIDE, 0);
        }
        Ok(_guard) => {
            assert_eq!(before, 0, "nobody else is inside");
            board.set(INSIDE, 0);
        }
        Err(_) => {}
    }
    told
}

/// Processes that lock once, every other one within another lock.
fn waiters(board: &Board, lock: &Lock, count: u64) -> Vec<Process<String>> {
    let before = board.get(WAITERS);
    let waiters = (0..count).map(|n| child(lock_once, (board.clone(), lock.clone(), n % 2 == 1))).collect();
    board.await_at_least(WAITERS, before + count);
    waiters
}

fn sleepers(board: &Board, lock: &Lock, count: u64) -> Vec<Process<String>> {
    let waiters = waiters(board, lock, count);
    waiters.iter().for_each(|waiter| await_asleep(waiter.pid()));
    waiters
}

struct Case {
    board: Board,
    lock: Lock,
    holder: Process<()>,
    what: String,
}

impl Case {
    fn new(end: End, held: Held) -> Self {
        let (board, lock) = (Board::new(8), Lock::new().unwrap());
        let holder = child(hold_and_end, (board.clone(), lock.clone(), end, held));
        board.await_at_least(HELD, 1);
        Self { board, lock, holder, what: format!("{end:?}, held {held:?}") }
    }

    fn waiters(&self, count: u64) -> Vec<Process<String>> {
        waiters(&self.board, &self.lock, count)
    }

    fn sleepers(&self, count: u64) -> Vec<Process<String>> {
        sleepers(&self.board, &self.lock, count)
    }

    fn go(&self) {
        self.board.set(GO, 1);
    }

    /// One was told, the others not, and the lock is as good as new.
    #[track_caller]
    fn exactly_one_is_told(&self, waiters: Vec<Process<String>>) {
        let count = waiters.len();
        let mut told: Vec<_> = waiters.into_iter().map(join).collect();
        told.sort();
        let mut expected = vec!["Ok"; count];
        expected[count - 1] = "OwnerDied";
        assert_eq!(told, expected, "{}", self.what);
        assert_eq!(said(&self.lock.try_lock()), "Ok", "{}", self.what);
    }
}

#[test]
fn a_holder_that_is_killed_passes_the_lock_on_to_a_sleeper() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        let waiters = case.sleepers(2);
        kill_and_reap(&case.holder);
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn a_holder_that_was_killed_before_anybody_waited_passes_the_lock_on() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        kill_and_reap(&case.holder);
        let waiters = case.waiters(2);
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn try_lock_takes_over_from_a_process_that_was_reaped_at_its_first_try() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        kill_and_reap(&case.holder);
        assert_eq!(said(&case.lock.try_lock()), "OwnerDied");
    }
}

#[test]
fn a_holder_that_aborts_passes_the_lock_on() {
    for held in WAYS {
        let case = Case::new(End::Abort, held);
        let waiters = case.sleepers(2);
        case.go();
        case.exactly_one_is_told(waiters);
        assert_eq!(case.holder.wait(), ExitStatus::Signal(6));
    }
}

#[test]
fn a_holder_that_exits_passes_the_lock_on() {
    for held in WAYS {
        let case = Case::new(End::Exit, held);
        let waiters = case.sleepers(2);
        case.go();
        case.exactly_one_is_told(waiters);
        assert_eq!(case.holder.wait(), ExitStatus::Code(0));
    }
}

#[test]
fn a_holder_that_became_another_program_passes_the_lock_on() {
    for held in WAYS {
        let case = Case::new(End::Exec, held);
        let waiters = case.sleepers(2);
        case.go();
        case.exactly_one_is_told(waiters);
        assert!(case.holder.is_alive(), "its process id lives on");
        let name = std::fs::read_to_string(format!("/proc/{}/comm", case.holder.pid())).unwrap();
        assert_eq!(name, "sleep\n");
    }
}

#[test]
fn a_holder_that_became_another_program_before_anybody_waited_passes_the_lock_on() {
    for held in WAYS {
        let case = Case::new(End::Exec, held);
        case.go();
        wait_for("the other program", || {
            std::fs::read_to_string(format!("/proc/{}/comm", case.holder.pid()))
                .is_ok_and(|name| name == "sleep\n")
        });
        let waiters = case.waiters(2);
        case.exactly_one_is_told(waiters);
        assert!(case.holder.is_alive());
    }
}

#[test]
fn a_thread_that_ends_with_the_lock_passes_it_on_while_its_process_lives() {
    for end in [End::ThreadForgets, End::ThreadAcquires, End::ThreadPanics] {
        for (sleeping, held) in
            [(true, Held::Alone), (false, Held::Within), (true, Held::Within), (false, Held::Unknown)]
        {
            let case = Case::new(end, held);
            let waiters = if sleeping {
                let waiters = case.sleepers(2);
                case.go();
                waiters
            } else {
                case.go();
                case.waiters(2)
            };
            case.exactly_one_is_told(waiters);
            assert!(case.holder.is_alive(), "{end:?}");
        }
    }
}

#[test]
fn a_holder_that_is_dead_but_not_reaped_passes_the_lock_on() {
    for held in WAYS {
        for sleeping in [true, false] {
            let case = Case::new(End::Park, held);
            let mut waiters = if sleeping { case.sleepers(2) } else { Vec::new() };
            case.holder.kill().unwrap();
            await_state(case.holder.pid(), 'Z');
            if !sleeping {
                waiters = case.waiters(2);
            }
            case.exactly_one_is_told(waiters);
            assert_eq!(state_of(case.holder.pid()), 'Z', "nobody had to reap it");
        }
    }
}

#[test]
fn a_stopped_holder_is_not_robbed() {
    for held in WAYS {
        let case = Case::new(End::Exit, held);
        let sleeper = case.sleepers(1);
        stop(&case.holder);
        // Longer than several slices of sleep, so that there was reason enough to look for its death.
        assert_eq!(said(&case.lock.lock_timeout(Duration::from_millis(400))), "TimedOut");
        assert_eq!(said(&case.lock.try_lock()), "WouldBlock");
        let other =
            child(|lock: Lock| said(&lock.lock_timeout(Duration::from_millis(200))), case.lock.clone());
        assert_eq!(join(other), "TimedOut");
        assert!(sleeper[0].is_alive());

        // Dead it is another matter.
        kill_and_reap(&case.holder);
        case.exactly_one_is_told(sleeper);
    }
}

#[test]
fn a_stopped_holder_that_goes_on_still_has_the_lock() {
    fn hold((board, lock): (Board, Lock)) -> bool {
        let guard = lock.lock().unwrap();
        board.set(HELD, 1);
        board.await_at_least(GO, 1);
        let still = lock.is_mine() && board.swap(INSIDE, 0) == 0;
        drop(guard);
        still
    }
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let holder = child(hold, (board.clone(), lock.clone()));
    board.await_at_least(HELD, 1);
    let waiter = sleepers(&board, &lock, 1).remove(0);
    stop(&holder);
    assert_eq!(said(&lock.lock_timeout(Duration::from_millis(200))), "TimedOut");
    holder.signal(18).unwrap(); // SIGCONT
    board.set(GO, 1);
    assert!(join(holder));
    assert_eq!(join(waiter), "Ok");
}

#[test]
fn the_mark_stays_until_it_is_taken_away() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        kill_and_reap(&case.holder);
        let look = |lock: Lock| said(&lock.lock());
        for _ in 0..3 {
            assert_eq!(join(child(look, case.lock.clone())), "OwnerDied");
        }
        drop(case.lock.with_repair(|| ()).unwrap());
        assert_eq!(join(child(look, case.lock.clone())), "Ok");
    }
}

#[test]
fn an_owner_that_dies_before_it_has_repaired_passes_the_mark_on() {
    fn die_repairing((board, lock): (Board, Lock)) {
        tied_to_parent();
        let told = lock.lock();
        assert_eq!(said(&told), "OwnerDied");
        board.set(HELD, 2);
        park();
    }
    for held in WAYS {
        let case = Case::new(End::Park, held);
        kill_and_reap(&case.holder);
        for _ in 0..3 {
            case.board.set(HELD, 0);
            let repairer = child(die_repairing, (case.board.clone(), case.lock.clone()));
            case.board.await_at_least(HELD, 2);
            assert_eq!(said(&case.lock.try_lock()), "WouldBlock");
            kill_and_reap(&repairer);
        }
        let waiters = case.waiters(2);
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn an_owner_that_dies_after_it_has_repaired_is_a_death_of_its_own() {
    fn repair_and_die((board, lock): (Board, Lock)) {
        tied_to_parent();
        let guard = lock.with_repair(|| ()).unwrap();
        board.set(HELD, 2);
        std::mem::forget(guard);
        park();
    }
    for held in WAYS {
        let case = Case::new(End::Park, held);
        kill_and_reap(&case.holder);
        let repairer = child(repair_and_die, (case.board.clone(), case.lock.clone()));
        case.board.await_at_least(HELD, 2);
        let waiters = case.sleepers(2);
        kill_and_reap(&repairer);
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn a_sleeper_that_is_killed_takes_nothing_with_it() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        let mut waiters = case.sleepers(4);
        kill_and_reap(&waiters.remove(2));
        kill_and_reap(&waiters.remove(0));
        kill_and_reap(&case.holder);
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn a_sleeper_that_is_killed_beside_a_living_holder_takes_nothing_with_it() {
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let guard = lock.lock().unwrap();
    let mut waiters = sleepers(&board, &lock, 4);
    kill_and_reap(&waiters.remove(0));
    kill_and_reap(&waiters.remove(0));
    drop(guard);
    assert!(waiters.into_iter().map(join).all(|told| told == "Ok"));
}

fn stop<R>(process: &Process<R>) {
    process.signal(19).unwrap(); // SIGSTOP
    await_state(process.pid(), 'T');
}

#[test]
fn holder_and_sleepers_killed_together_leave_a_lock_that_works() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        let waiters = case.sleepers(3);
        // Stopped first, so that none of them can do anything about the death before its own.
        waiters.iter().for_each(stop);
        kill_and_reap(&case.holder);
        waiters.iter().for_each(kill_and_reap);
        let waiters = case.waiters(2);
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn a_sleeper_that_is_stopped_keeps_nobody_from_being_told() {
    for held in WAYS {
        let case = Case::new(End::Park, held);
        let waiters = case.sleepers(4);
        // Whoever of these the kernel wakes does nothing about it.
        waiters[..3].iter().for_each(stop);
        kill_and_reap(&case.holder);
        wait_for("the one that can to have been told", || !waiters[3].is_alive());
        waiters[..3].iter().for_each(|waiter| waiter.signal(18).unwrap()); // SIGCONT
        case.exactly_one_is_told(waiters);
    }
}

#[test]
fn a_sleeper_that_is_stopped_keeps_nobody_from_the_free_lock() {
    let (board, lock) = (Board::new(8), Lock::new().unwrap());
    let guard = lock.lock().unwrap();
    let waiters = sleepers(&board, &lock, 3);
    waiters[..2].iter().for_each(stop);
    drop(guard);
    wait_for("the one that can to have had the lock", || !waiters[2].is_alive());
    kill_and_reap(&waiters[0]);
    waiters[1].signal(18).unwrap(); // SIGCONT
    assert!(waiters.into_iter().skip(1).map(join).all(|told| told == "Ok"));
}

#[test]
fn an_rlock_whose_holder_died_three_deep_starts_again_at_one() {
    fn dive((board, lock): (Board, RLock)) {
        tied_to_parent();
        let _guards = [lock.lock().unwrap(), lock.lock().unwrap(), lock.lock().unwrap()];
        board.set(HELD, 1);
        park();
    }
    fn wait((board, lock): (Board, RLock)) -> Vec<String> {
        board.set(WAITERS, 1);
        let mut told = Vec::new();
        let locked = lock.lock_timeout(HANG);
        told.push(said(&locked));
        let outer = locked.unwrap_err().into_guard().unwrap();
        let inner = lock.lock();
        told.push(said(&inner));
        drop(inner.unwrap_err().repair(|_| ()));
        told.push(said(&lock.lock()));
        told.push(format!("{}", lock.is_mine()));
        drop(outer);
        told.push(format!("{}", lock.is_mine()));
        told
    }
    let (board, lock) = (Board::new(8), RLock::new().unwrap());
    let holder = child(dive, (board.clone(), lock.clone()));
    board.await_at_least(HELD, 1);
    assert_eq!(said(&lock.try_lock()), "WouldBlock");
    let waiter = child(wait, (board.clone(), lock.clone()));
    board.await_at_least(WAITERS, 1);
    await_asleep(waiter.pid());
    kill_and_reap(&holder);
    assert_eq!(join(waiter), ["OwnerDied", "OwnerDied", "Ok", "true", "false"]);
    assert_eq!(said(&lock.try_lock()), "Ok");
}

#[test]
fn a_holder_of_many_locks_passes_them_all_on() {
    fn hold_many((board, locks): (Board, Vec<Lock>)) {
        tied_to_parent();
        let _guards: Vec<_> = locks.iter().map(|lock| lock.lock().unwrap()).collect();
        board.set(HELD, 1);
        park();
    }
    let board = Board::new(8);
    let segment = crossproc_segment::Segment::anonymous(64 * 1024).unwrap();
    let locks: Vec<_> = (0..40)
        .map(|n| crossproc_primitives::Objects::lock(&segment, &format!("lock {n}")).unwrap())
        .collect();
    let holder = child(hold_many, (board.clone(), locks.clone()));
    board.await_at_least(HELD, 1);
    kill_and_reap(&holder);
    for lock in &locks {
        assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied");
    }
}
