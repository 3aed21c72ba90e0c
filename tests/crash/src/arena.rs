//! What the modes beside the killing have in common: a fresh segment for each try, and the processes that play on it.
//!
//! A *role* is a function that makes a process ready (it opens objects, takes locks, touches what is touched the first time) and
//! returns the *play*: the operation of interest, whose result is a number (see [`code`]).

use std::time::{Duration, Instant};

use crossproc_primitives::{AccessError, LockError};
use crossproc_segment::{Segment, SegmentOptions};
use crossproc_tests::Board;

use crate::kernel;
use crate::step::{Ending, Step, Victim, marked};

/// What a process is made ready for.
pub(crate) type Role = fn(&Segment) -> Play;
/// The operation.
pub(crate) type Play = Box<dyn FnOnce() -> u64>;

/// What an operation returned, as a number.
pub(crate) mod code {
    /// As it should.
    pub(crate) const OK: u64 = 0;
    /// The lock was acquired from a dead one.
    pub(crate) const OWNER_DIED: u64 = 1;
    /// The deadline passed.
    pub(crate) const TIMED_OUT: u64 = 2;
    /// It could not be had at once.
    pub(crate) const WOULD_BLOCK: u64 = 3;
    /// Any other error.
    pub(crate) const ERROR: u64 = 4;
    /// A wrong value, of an object that was scribbled over.
    pub(crate) const WRONG: u64 = 5;
    /// Private memory was changed.
    pub(crate) const OVERRUN: u64 = 6;
}

/// The number for what a lock said. A guard is dropped: the lock is released.
pub(crate) fn of_lock<G>(result: Result<G, LockError<G>>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(LockError::OwnerDied(_) | LockError::Poisoned(_)) => code::OWNER_DIED,
        Err(LockError::TimedOut) => code::TIMED_OUT,
        Err(LockError::WouldBlock) => code::WOULD_BLOCK,
        Err(_) => code::ERROR,
    }
}

/// The number for what an accessor said.
pub(crate) fn of_access<T>(result: &Result<T, AccessError>) -> u64 {
    match result {
        Ok(_) => code::OK,
        Err(AccessError::OwnerDied) => code::OWNER_DIED,
        Err(_) => code::ERROR,
    }
}

/// Processes per arena.
const PLACES: usize = 8;
/// Words on the board for what else processes tell.
const NOTES: usize = 64;
/// Words per place on the board: the result and one, when the play began and when it ended, in nanoseconds; 1 once it is ready, and
/// 2 once it may play.
const TOLD: usize = 0;
const BEGAN: usize = 1;
const ENDED: usize = 2;
const READY: usize = 3;
const WORDS: usize = 4;

/// A segment with the objects of one try, and a board on which the processes tell what they did.
#[derive(Debug)]
pub(crate) struct Arena {
    segment: Segment,
    board: Board,
}

/// A clock that all processes share.
pub(crate) fn nanos() -> u64 {
    use crossproc_atomic::{Linux, Platform};
    Linux.now().0
}

impl Arena {
    /// A new segment, in which `make` makes the objects.
    pub(crate) fn new(board: &Board, make: fn(&Segment)) -> Self {
        let segment =
            SegmentOptions::new().participants(8).anonymous(16 * 1024).expect("memory for a segment");
        make(&segment);
        let arena = Self { segment, board: board.clone() };
        arena.wipe();
        arena
    }

    /// Forgets what processes told.
    pub(crate) fn wipe(&self) {
        (0..PLACES * WORDS + NOTES).for_each(|word| self.board.set(word, 0));
    }

    /// A board for [`new`](Self::new); one will do for all arenas that come one after the other.
    pub(crate) fn board() -> Board {
        Board::new(PLACES * WORDS + NOTES)
    }

    /// The segment, as the harness has it.
    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    fn ready(&self, place: usize, role: impl FnOnce(&Segment) -> Play) -> Play {
        let play = role(&self.segment.attach_again().expect("a free place in the segment"));
        self.board.set(place * WORDS + READY, 1);
        play
    }

    fn play(&self, place: usize, play: Play) {
        let at = place * WORDS;
        self.board.set(at + BEGAN, nanos());
        let told = play();
        self.board.set(at + ENDED, nanos());
        self.board.set(at + TOLD, told + 1);
    }

    /// A process that is stepped, at the first instruction of its play.
    pub(crate) fn victim(&self, place: usize, role: impl FnOnce(&Segment) -> Play) -> Victim {
        Victim::start(|| {
            let play = self.ready(place, role);
            let told = marked(play);
            self.board.set(place * WORDS + ENDED, nanos());
            self.board.set(place * WORDS + TOLD, told + 1);
        })
    }

    /// A process that plays its role without being stepped.
    pub(crate) fn extra(&self, place: usize, role: Role) -> Extra {
        let pid = kernel::fork(|| {
            let play = self.ready(place, role);
            self.play(place, play);
        });
        Extra { pid: Some(pid) }
    }

    /// As [`extra`](Self::extra), but it is only made ready; returns when it is. It plays once it [may](Self::go_on).
    pub(crate) fn ready_extra(&self, place: usize, role: Role) -> Extra {
        let pid = kernel::fork(|| {
            let play = self.ready(place, role);
            self.board.await_at_least(place * WORDS + READY, 2);
            self.play(place, play);
        });
        self.board.await_at_least(place * WORDS + READY, 1);
        Extra { pid: Some(pid) }
    }

    /// Lets the process in this place play.
    pub(crate) fn go_on(&self, place: usize) {
        self.board.set(place * WORDS + READY, 2);
    }

    /// Waits until the process in this place is ready and sleeps in its play.
    pub(crate) fn await_asleep(&self, place: usize, extra: &Extra) {
        self.board.await_at_least(place * WORDS + READY, 1);
        self.board.await_at_least(place * WORDS + BEGAN, 1);
        crossproc_tests::await_asleep(extra.pid());
    }

    /// Waits until the process in this place is ready and plays.
    pub(crate) fn await_play(&self, place: usize) {
        self.board.await_at_least(place * WORDS + BEGAN, 1);
    }

    /// What the play in this place returned, if it did.
    pub(crate) fn told(&self, place: usize) -> Option<u64> {
        self.board.get(place * WORDS + TOLD).checked_sub(1)
    }

    /// Waits until the play in this place has returned, for `limit` at most.
    pub(crate) fn await_told(&self, place: usize, limit: Duration) -> Option<u64> {
        let started = Instant::now();
        loop {
            let told = self.told(place);
            if told.is_some() || started.elapsed() > limit {
                return told;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// A word that processes leave for the harness.
    pub(crate) fn note(&self, at: usize, value: u64) {
        self.board.set(PLACES * WORDS + at, value);
    }

    /// What was left there.
    pub(crate) fn noted(&self, at: usize) -> u64 {
        self.board.get(PLACES * WORDS + at)
    }

    /// Counts on a word that processes share: 1, 2, ..
    pub(crate) fn tick(&self, at: usize) -> u64 {
        self.board.add(PLACES * WORDS + at, 1) + 1
    }

    /// When the play in this place returned, by [`nanos`].
    pub(crate) fn ended(&self, place: usize) -> u64 {
        self.board.get(place * WORDS + ENDED)
    }
}

/// A process beside the victim. Killed when this goes.
#[derive(Debug)]
pub(crate) struct Extra {
    pid: Option<i32>,
}

impl Extra {
    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.expect("not ended").cast_unsigned()
    }

    /// Waits for its end; `None` if it did not end in time, and was killed.
    pub(crate) fn end(mut self, limit: Duration) -> Option<Ending> {
        kernel::reap(self.pid.take().expect("not ended"), limit)
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            kernel::kill(pid);
            kernel::reap(pid, crossproc_tests::HANG);
        }
    }
}

/// What a victim does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It has executed one more instruction.
    Stepped,
    /// It sleeps in the kernel, within an instruction.
    Asleep,
    /// Its play is over.
    Over,
}

/// A victim that is not through with an instruction after this may be asleep.
const SOON: Duration = Duration::from_millis(1);

/// One more instruction.
pub(crate) fn one_step(victim: &mut Victim) -> Doing {
    match victim.step_within(SOON) {
        Step::Stepped | Step::Syscall(_) => Doing::Stepped,
        Step::End | Step::Exited(_) => Doing::Over,
        Step::Blocked => Doing::Asleep,
    }
}

/// `n` more instructions, however long they sleep; false if the play is over before.
pub(crate) fn steps(victim: &mut Victim, n: u64) -> bool {
    let mut left = n;
    while left > 0 {
        match one_step(victim) {
            Doing::Stepped => left -= 1,
            Doing::Asleep => {}
            Doing::Over => return false,
        }
    }
    true
}

/// Lets it run until it sleeps; false if its play is over before. When it wakes it stands behind the system call in which it slept.
pub(crate) fn fall_asleep(victim: &mut Victim) -> bool {
    loop {
        // The rest of a system call, or a whole one; the first time any instruction.
        match one_step(victim) {
            Doing::Stepped => {}
            Doing::Asleep => return true,
            Doing::Over => return false,
        }
        if matches!(victim.to_syscall(), Step::End | Step::Exited(_)) {
            return false;
        }
    }
}

/// Lets it run to the end of its play; false if that takes longer than `limit` (and it goes on).
pub(crate) fn run_to_mark(victim: &mut Victim, limit: Duration) -> bool {
    loop {
        match victim.run_at_most(limit) {
            Step::End | Step::Exited(_) => return true,
            Step::Blocked => return false,
            Step::Stepped | Step::Syscall(_) => {}
        }
    }
}

/// Lets it run until it is no more; false if that takes longer than `limit`, or it does not end well.
pub(crate) fn run_to_exit(victim: &mut Victim, limit: Duration) -> bool {
    run_to_exit_status(victim, limit) == Some(Ending::Status(0))
}

/// Lets it run until it is no more; `None` if that takes longer than `limit`.
pub(crate) fn run_to_exit_status(victim: &mut Victim, limit: Duration) -> Option<Ending> {
    loop {
        match victim.run_at_most(limit) {
            Step::Exited(ending) => return Some(ending),
            Step::Blocked => return None,
            Step::End | Step::Stepped | Step::Syscall(_) => {}
        }
    }
}
