//! Two processes run the real code of an object in every order with one preemption, and in many with two.
//!
//! One process is frozen after `a` instructions of its script, the other one runs for `b` instructions or to its end, the first one
//! to its end, the other one to its own. What each call returned, and when it began and ended, is the history of that schedule; each
//! history must be linearizable (`linear.rs`). Who has to wait for the frozen one is let go first: that is no other schedule.
//!
//! Not covered: more preemptions, more processes, and what processors do to stores that are on their way (a stop by ptrace is a
//! barrier); that is what the models with loom are for.

use std::collections::HashSet;
use std::time::Duration;

use crossproc_atomic::Ordering;
use crossproc_primitives::{LockError, ReleaseError, Semaphore, SemaphoreError};
use crossproc_segment::Segment;
use crossproc_tests::{Board, HANG, Rng};

use crate::arena::{Arena, Doing, one_step, run_to_exit, run_to_mark};
use crate::cast::{self, wide};
use crate::linear::{Call, Sequential, is_linearizable};
use crate::options::Options;
use crate::queue_cast::{self as queues, Came, Load, Move, Wide};
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::spsc_cast as spsc;
use crate::step::{Verdict, Victim, marked};

/// The name of this mode.
pub const MODE: &str = "interleave";

/// What can be called, on all objects together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Op {
    Add(u64),
    /// Compares with the first, sets the second.
    Exchange(u64, u64),
    Set(u64),
    Get,
    SetAt(usize, u64),
    GetAt(usize),
    /// Tries to acquire.
    Try,
    /// Gives up what was acquired, if it was.
    Release,
    Push(u64),
    Pop,
    Close,
}

/// Answers that are no numbers of a value.
const NO: u64 = u64::MAX;
const YES: u64 = u64::MAX - 1;
const TORN: u64 = u64::MAX - 2;
const FAILED: u64 = u64::MAX - 3;
const CLOSED: u64 = u64::MAX - 4;

/// Does one thing, and says what came of it.
type Acts = Box<dyn FnMut(Op) -> u64>;

/// What the sequential object knows.
type State = Vec<u64>;

/// An object, and what two processes do with it.
struct Game {
    name: &'static str,
    first: fn() -> State,
    /// What the sequential object answers to the process with this number, and becomes.
    next: fn(&mut State, usize, Op) -> u64,
    /// An operation may be refused without a reason that the sequential object knows.
    may_fail: bool,
    /// Makes a process ready to act.
    ready: fn(&Segment) -> Acts,
    scripts: [&'static [Op]; 2],
    /// What is asked when both are through.
    last: &'static [Op],
}

impl Sequential for Game {
    type State = State;
    type Op = (usize, Op);
    type Seen = u64;

    fn first(&self) -> State {
        (self.first)()
    }

    fn next(&self, state: &State, &(who, op): &(usize, Op), seen: Option<&u64>) -> Option<State> {
        let mut after = state.clone();
        if self.may_fail && seen == Some(&NO) {
            return Some(after);
        }
        let answer = (self.next)(&mut after, who, op);
        seen.is_none_or(|seen| *seen == answer).then_some(after)
    }
}

/// A register: `state[0]`.
fn register(state: &mut State, _: usize, op: Op) -> u64 {
    match op {
        Op::Add(n) => {
            state[0] += n;
            state[0] - n
        }
        Op::Exchange(from, to) if state[0] == from => {
            state[0] = to;
            from
        }
        Op::Exchange(..) | Op::Get => state[0],
        Op::Set(n) => {
            state[0] = n;
            YES
        }
        _ => unreachable!("no operation of a register"),
    }
}

fn array(state: &mut State, _: usize, op: Op) -> u64 {
    match op {
        Op::SetAt(at, n) => {
            state[at] = n;
            YES
        }
        Op::GetAt(at) => state[at],
        _ => unreachable!("no operation of an array"),
    }
}

/// `state[0]`: how many can still be had; `state[1 + who]`: how many that process has.
fn permits(state: &mut State, who: usize, op: Op) -> u64 {
    match op {
        Op::Try if state[0] > 0 => {
            state[0] -= 1;
            state[1 + who] += 1;
            YES
        }
        Op::Release if state[1 + who] > 0 => {
            state[0] += 1;
            state[1 + who] -= 1;
            YES
        }
        Op::Try | Op::Release => NO,
        Op::Get => state[0],
        _ => unreachable!("no operation of a lock"),
    }
}

/// `state[0]`: how many were announced and not taken.
fn signals(state: &mut State, _: usize, op: Op) -> u64 {
    match op {
        Op::Release => {
            state[0] += 1;
            YES
        }
        Op::Try if state[0] > 0 => {
            state[0] -= 1;
            YES
        }
        Op::Try => NO,
        _ => state[0],
    }
}

/// `state[0]`: 1 if it is set, or taken. Anybody may set and release.
fn flag(state: &mut State, _: usize, op: Op) -> u64 {
    let before = state[0];
    match op {
        Op::Set(_) => {
            state[0] = 1;
            YES
        }
        Op::Try => {
            state[0] = 1;
            if before == 0 { YES } else { NO }
        }
        Op::Release => {
            state[0] = 0;
            if before == 1 { YES } else { NO }
        }
        _ => before,
    }
}

/// `state[0]`: the value; `state[1 + who]`: 1 while that process reads, 2 while it writes. Trying may fail for no reason: who is
/// about to give up may be in the way.
fn readers_writer(state: &mut State, who: usize, op: Op) -> u64 {
    let (own, other) = (state[1 + who], state[2 - who]);
    match op {
        Op::Set(n) if own == 0 && other == 0 => {
            (state[0], state[1 + who]) = (n, 2);
            YES
        }
        Op::Try if own == 0 && other < 2 => {
            state[1 + who] = 1;
            state[0]
        }
        Op::Release if own > 0 => {
            state[1 + who] = 0;
            YES
        }
        Op::Get => state[0],
        _ => NO,
    }
}

fn queue(state: &mut State, _: usize, op: Op) -> u64 {
    match op {
        Op::Push(n) => {
            state.push(n);
            YES
        }
        Op::Pop if state.is_empty() => NO,
        Op::Pop => state.remove(0),
        _ => unreachable!("no operation of a queue"),
    }
}

fn queue_move(op: Op) -> Move {
    match op {
        Op::Push(n) => Move::Push(n),
        Op::Pop => Move::Pop,
        _ => Move::Close,
    }
}

fn queue_answer(came: Came) -> u64 {
    match came {
        Came::Value(value) => value,
        Came::Yes => YES,
        Came::No => NO,
        Came::Closed => CLOSED,
        Came::Failed => FAILED,
    }
}

/// `state[0]`: 1 when it is closed; then the messages.
fn queue_of_one(state: &mut State, _: usize, op: Op) -> u64 {
    queue_answer(queues::next(state, 1, queue_move(op)))
}

fn queue_of_two(state: &mut State, _: usize, op: Op) -> u64 {
    queue_answer(queues::next(state, 2, queue_move(op)))
}

/// Never full here.
fn queue_of_eight(state: &mut State, _: usize, op: Op) -> u64 {
    queue_answer(queues::next(state, 8, queue_move(op)))
}

fn on_spsc(segment: &Segment) -> Acts {
    let mut plays = spsc::plays(segment);
    Box::new(move |op| queue_answer(plays(queue_move(op))))
}

fn on_queue<T: Load>(segment: &Segment, capacity: usize, first: Option<u64>) -> Acts {
    let mut plays = queues::plays::<T>(segment, capacity, first);
    Box::new(move |op| queue_answer(plays(queue_move(op))))
}

fn of_wide(got: Result<cast::Wide, crossproc_primitives::AccessError>) -> u64 {
    match got {
        Ok(value) if value == wide(value[0]) => value[0],
        Ok(_) => TORN,
        Err(_) => FAILED,
    }
}

fn yes<E>(done: Result<(), E>) -> u64 {
    if done.is_ok() { YES } else { FAILED }
}

fn on_word(segment: &Segment) -> Acts {
    let word = cast::word(segment);
    Box::new(move |op| match op {
        Op::Add(n) => word.fetch_add(n),
        Op::Exchange(from, to) => word.compare_exchange(from, to).unwrap_or_else(|found| found),
        Op::Set(n) => yes(word.set(n)),
        _ => word.get().unwrap_or(FAILED),
    })
}

fn on_wide(segment: &Segment) -> Acts {
    let value = cast::value(segment);
    Box::new(move |op| match op {
        Op::Add(n) => value.update(|v| wide(v[0] + n)).map_or(FAILED, |v| v[0] - n),
        Op::Set(n) => yes(value.set(wide(n))),
        _ => of_wide(value.get()),
    })
}

fn on_array(segment: &Segment) -> Acts {
    let array = cast::array(segment);
    Box::new(move |op| match op {
        Op::SetAt(at, n) => yes(array.set(at, n)),
        Op::GetAt(at) => array.get(at).unwrap_or(FAILED),
        _ => FAILED,
    })
}

fn on_lock(segment: &Segment) -> Acts {
    let lock = cast::lock(segment);
    let mut held = None;
    Box::new(move |op| match op {
        Op::Try => match lock.try_lock() {
            Ok(guard) => {
                held = Some(guard);
                YES
            }
            Err(LockError::WouldBlock) => NO,
            Err(_) => FAILED,
        },
        _ => held.take().map_or(NO, |_| YES),
    })
}

fn tried<T>(result: Result<T, SemaphoreError>) -> Result<T, u64> {
    result.map_err(|e| if e == SemaphoreError::WouldBlock { NO } else { FAILED })
}

fn on_semaphore(semaphore: &'static Semaphore) -> Acts {
    let mut held = Vec::new();
    Box::new(move |op| match op {
        Op::Try => tried(semaphore.try_acquire()).map_or_else(
            |no| no,
            |permit| {
                held.push(permit);
                YES
            },
        ),
        Op::Release => held.pop().map_or(NO, |_| YES),
        _ => u64::from(semaphore.available()),
    })
}

fn on_signals(segment: &Segment) -> Acts {
    let signals = cast::signals(segment);
    Box::new(move |op| match op {
        Op::Try => tried(signals.try_acquire()).map_or_else(
            |no| no,
            |permit| {
                permit.consume();
                YES
            },
        ),
        Op::Release => yes(signals.release()),
        _ => u64::from(signals.available()),
    })
}

fn on_binary(segment: &Segment) -> Acts {
    let binary = cast::binary(segment);
    Box::new(move |op| match op {
        Op::Try => tried(binary.try_acquire()).map_or_else(|no| no, |()| YES),
        Op::Release => match binary.release() {
            Ok(()) => YES,
            Err(ReleaseError::OverRelease) => NO,
            Err(_) => FAILED,
        },
        _ => u64::from(binary.is_taken()),
    })
}

fn on_event(segment: &Segment) -> Acts {
    let event = cast::event(segment);
    Box::new(move |op| match op {
        Op::Set(_) => yes(event.set()),
        Op::Release => event.clear().map_or(FAILED, |was_set| if was_set { YES } else { NO }),
        _ => u64::from(event.is_set()),
    })
}

fn on_rwlock(segment: &Segment) -> Acts {
    let rwlock = cast::rwlock(segment);
    let (mut reads, mut writes) = (None, None);
    Box::new(move |op| match op {
        Op::Set(n) => match rwlock.try_write() {
            Ok(mut guard) => {
                *guard = wide(n);
                writes = Some(guard);
                YES
            }
            Err(LockError::WouldBlock) => NO,
            Err(_) => FAILED,
        },
        Op::Try => match rwlock.try_read() {
            Ok(guard) => {
                let seen = of_wide(Ok(*guard));
                reads = Some(guard);
                seen
            }
            Err(LockError::WouldBlock) => NO,
            Err(_) => FAILED,
        },
        Op::Get => rwlock.read().map_or(FAILED, |guard| of_wide(Ok(*guard))),
        _ => {
            let had = reads.take().map(drop).or(writes.take().map(drop));
            if had.is_some() { YES } else { NO }
        }
    })
}

/// Planted: a register of two words that are written one after the other.
fn on_two_words(segment: &Segment) -> Acts {
    let words = cast::flawed(segment);
    Box::new(move |op| match op {
        Op::Set(n) => {
            words[0].store(n as u32, Ordering::SeqCst);
            words[1].store(n as u32, Ordering::SeqCst);
            YES
        }
        _ => {
            let (a, b) = (words[0].load(Ordering::SeqCst), words[1].load(Ordering::SeqCst));
            if a == b { u64::from(a) } else { TORN }
        }
    })
}

/// Planted: a queue of four places whose pushes first take a place and then fill it (after D. Vyukov): while one that has taken
/// its place is frozen, nothing that was pushed later can be popped.
fn on_tickets(segment: &Segment) -> Acts {
    let words = cast::flawed(segment);
    let (tail, head, turns, items) = (&words[0], &words[1], &words[2..6], &words[6..10]);
    Box::new(move |op| match op {
        Op::Push(n) => {
            let place = tail.fetch_add(1, Ordering::SeqCst);
            items[place as usize % 4].store(n as u32, Ordering::SeqCst);
            turns[place as usize % 4].store(place + 1, Ordering::SeqCst);
            YES
        }
        _ => {
            let place = head.load(Ordering::SeqCst);
            if turns[place as usize % 4].load(Ordering::SeqCst) != place + 1 {
                return NO;
            }
            let item = items[place as usize % 4].load(Ordering::SeqCst);
            let mine = head.compare_exchange(place, place + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if mine { u64::from(item) } else { NO }
        }
    })
}

const GAMES: &[Game] = &[
    Game {
        name: "Value, one word: fetch_add, get | compare_exchange, set",
        first: || vec![0],
        next: register,
        may_fail: false,
        ready: on_word,
        scripts: [&[Op::Add(1), Op::Get], &[Op::Exchange(1, 7), Op::Set(4)]],
        last: &[Op::Get],
    },
    Game {
        name: "Value, one word: set, get | set, get",
        first: || vec![0],
        next: register,
        may_fail: false,
        ready: on_word,
        scripts: [&[Op::Set(1), Op::Get], &[Op::Set(2), Op::Get]],
        last: &[Op::Get],
    },
    Game {
        name: "Value, wide: set, set | get, get",
        first: || vec![0],
        next: register,
        may_fail: false,
        ready: on_wide,
        scripts: [&[Op::Set(1), Op::Set(2)], &[Op::Get, Op::Get]],
        last: &[Op::Get],
    },
    Game {
        name: "Value, wide: set, get | set, get",
        first: || vec![0],
        next: register,
        may_fail: false,
        ready: on_wide,
        scripts: [&[Op::Set(1), Op::Get], &[Op::Set(2), Op::Get]],
        last: &[Op::Get],
    },
    Game {
        name: "Value, wide: update | update",
        first: || vec![0],
        next: register,
        may_fail: false,
        ready: on_wide,
        scripts: [&[Op::Add(1)], &[Op::Add(2), Op::Get]],
        last: &[Op::Get],
    },
    Game {
        name: "Array: set, get | set, get",
        first: || vec![0; 4],
        next: array,
        may_fail: false,
        ready: on_array,
        scripts: [&[Op::SetAt(0, 1), Op::GetAt(1)], &[Op::SetAt(1, 2), Op::GetAt(0)]],
        last: &[Op::GetAt(0), Op::GetAt(1)],
    },
    Game {
        name: "Lock: try, release | try, release",
        first: || vec![1, 0, 0],
        next: permits,
        may_fail: false,
        ready: on_lock,
        scripts: [&[Op::Try, Op::Release], &[Op::Try, Op::Release]],
        last: &[Op::Try],
    },
    Game {
        name: "Semaphore of one: try, release | try, release",
        first: || vec![1, 0, 0],
        next: permits,
        may_fail: false,
        ready: |s| on_semaphore(cast::semaphore(s)),
        scripts: [&[Op::Try, Op::Release], &[Op::Try, Op::Release]],
        last: &[Op::Get],
    },
    Game {
        name: "Semaphore of two: try, try, get | try, release",
        first: || vec![2, 0, 0],
        next: permits,
        may_fail: false,
        ready: |s| on_semaphore(cast::pair(s)),
        scripts: [&[Op::Try, Op::Try, Op::Get], &[Op::Try, Op::Release]],
        last: &[Op::Get],
    },
    Game {
        name: "Semaphore: announce, get | take, take",
        first: || vec![0],
        next: signals,
        may_fail: false,
        ready: on_signals,
        scripts: [&[Op::Release, Op::Get], &[Op::Try, Op::Try]],
        last: &[Op::Get],
    },
    Game {
        name: "BinarySemaphore: try, release | try, release",
        first: || vec![0],
        next: flag,
        may_fail: false,
        ready: on_binary,
        scripts: [&[Op::Try, Op::Release], &[Op::Try, Op::Release]],
        last: &[Op::Get],
    },
    Game {
        name: "Event: set, get | clear, get",
        first: || vec![0],
        next: flag,
        may_fail: false,
        ready: on_event,
        scripts: [&[Op::Set(1), Op::Get], &[Op::Release, Op::Get]],
        last: &[Op::Get],
    },
    Game {
        name: "RwLock: write, release | read, release",
        first: || vec![0, 0, 0],
        next: readers_writer,
        may_fail: true,
        ready: on_rwlock,
        scripts: [&[Op::Set(1), Op::Release], &[Op::Try, Op::Release]],
        last: &[Op::Get],
    },
    Game {
        name: "RwLock: write, release | write, release",
        first: || vec![0, 0, 0],
        next: readers_writer,
        may_fail: true,
        ready: on_rwlock,
        scripts: [&[Op::Set(1), Op::Release], &[Op::Set(2), Op::Release]],
        last: &[Op::Get],
    },
];

/// Queues, first of one place, then of two; where it matters with one message in it from each player.
const QUEUES: &[Game] = &[
    Game {
        name: "Queue of one: send, recv | send, recv",
        first: || vec![0],
        next: queue_of_one,
        may_fail: false,
        ready: |s| on_queue::<u64>(s, 1, None),
        scripts: [&[Op::Push(1), Op::Pop], &[Op::Push(2), Op::Pop]],
        last: &[Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of one: send, send | recv, recv",
        first: || vec![0],
        next: queue_of_one,
        may_fail: false,
        ready: |s| on_queue::<u64>(s, 1, None),
        scripts: [&[Op::Push(1), Op::Push(2)], &[Op::Pop, Op::Pop]],
        last: &[Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of one: send, send | close, recv",
        first: || vec![0],
        next: queue_of_one,
        may_fail: false,
        ready: |s| on_queue::<u64>(s, 1, None),
        scripts: [&[Op::Push(1), Op::Push(2)], &[Op::Close, Op::Pop]],
        last: &[Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of two: send, send | send, recv",
        first: || vec![0],
        next: queue_of_two,
        may_fail: false,
        ready: |s| on_queue::<u64>(s, 2, None),
        scripts: [&[Op::Push(1), Op::Push(2)], &[Op::Push(3), Op::Pop]],
        last: &[Op::Pop, Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of two, full: recv, recv | recv, send",
        first: || vec![0, 90, 90],
        next: queue_of_two,
        may_fail: false,
        ready: |s| on_queue::<u64>(s, 2, Some(90)),
        scripts: [&[Op::Pop, Op::Pop], &[Op::Pop, Op::Push(4)]],
        last: &[Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of two, full: recv, send | close, send",
        first: || vec![0, 90, 90],
        next: queue_of_two,
        may_fail: false,
        ready: |s| on_queue::<u64>(s, 2, Some(90)),
        scripts: [&[Op::Pop, Op::Push(5)], &[Op::Close, Op::Push(6)]],
        last: &[Op::Pop, Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of one, wide: send, recv | send, recv",
        first: || vec![0],
        next: queue_of_one,
        may_fail: false,
        ready: |s| on_queue::<Wide>(s, 1, None),
        scripts: [&[Op::Push(1), Op::Pop], &[Op::Push(2), Op::Pop]],
        last: &[Op::Pop, Op::Pop],
    },
    Game {
        name: "Queue of two, wide and full: recv, send | recv, send",
        first: || vec![0, 90, 90],
        next: queue_of_two,
        may_fail: false,
        ready: |s| on_queue::<Wide>(s, 2, Some(90)),
        scripts: [&[Op::Pop, Op::Push(5)], &[Op::Pop, Op::Push(6)]],
        last: &[Op::Pop, Op::Pop, Op::Pop],
    },
    Game {
        name: "spsc: push, push | pop, pop",
        first: || vec![0],
        next: queue_of_eight,
        may_fail: false,
        ready: on_spsc,
        scripts: [&[Op::Push(1), Op::Push(2)], &[Op::Pop, Op::Pop]],
        last: &[Op::Pop, Op::Pop],
    },
    Game {
        name: "spsc: push, close | pop, pop",
        first: || vec![0],
        next: queue_of_eight,
        may_fail: false,
        ready: on_spsc,
        scripts: [&[Op::Push(1), Op::Close], &[Op::Pop, Op::Pop]],
        last: &[Op::Pop],
    },
];

/// Planted bugs.
const PLANTED: &[Game] = &[
    Game {
        name: "a register of two words",
        first: || vec![0],
        next: register,
        may_fail: false,
        ready: on_two_words,
        scripts: [&[Op::Set(1)], &[Op::Get]],
        last: &[],
    },
    Game {
        name: "a queue of tickets",
        first: Vec::new,
        next: queue,
        may_fail: false,
        ready: on_tickets,
        scripts: [&[Op::Push(1), Op::Pop], &[Op::Push(2), Op::Pop]],
        last: &[Op::Pop],
    },
];

/// Words on the board for a call: when it began, what it returned, when it ended.
const CALL: usize = 3;
/// Calls per process, and places for three: the last ones are asked by the second process.
const CALLS: usize = 4;
const CLOCK: usize = 3 * CALLS * CALL;

/// Acts, and writes down what came of it.
fn act(arena: &Arena, who: usize, script: &[Op], act: &mut dyn FnMut(Op) -> u64) {
    for (at, &op) in script.iter().enumerate() {
        let call = (who * CALLS + at) * CALL;
        arena.note(call, arena.tick(CLOCK));
        arena.note(call + 1, act(op));
        arena.note(call + 2, arena.tick(CLOCK));
    }
}

type History = Vec<Call<(usize, Op), u64>>;

fn history(game: &Game, arena: &Arena) -> History {
    let scripts = [game.scripts[0], game.scripts[1], game.last];
    let mut calls = Vec::new();
    for (who, script) in scripts.into_iter().enumerate() {
        for (at, &op) in script.iter().enumerate() {
            let [begin, answer, end] = [0, 1, 2].map(|word| arena.noted((who * CALLS + at) * CALL + word));
            if begin != 0 {
                let end = (end != 0).then_some((end, answer));
                // The last questions are asked by the second process.
                calls.push(Call { op: (who.min(1), op), begin, end });
            }
        }
    }
    calls
}

/// One process, at the first instruction of its script.
fn player(game: &Game, arena: &Arena, who: usize) -> Victim {
    Victim::start(|| {
        let segment = arena.segment().attach_again().expect("a free place in the segment");
        drop(cast::rlock(&segment).lock()); // what is done the first time is done
        let mut acts = (game.ready)(&segment);
        marked(|| act(arena, who, game.scripts[who], &mut acts));
        if who == 1 {
            act(arena, 2, game.last, &mut acts);
        }
    })
}

/// How one schedule went.
enum Went {
    Through(History),
    /// The first process came to the end of its script before it was to be frozen.
    Over,
    Stuck,
}

/// How long a process that may have to wait for a frozen one is left alone with it.
const GLANCE: Duration = Duration::from_millis(3);

/// Process `early` runs for `a` instructions, the other one for `b` or to its end, the first to its end, the other one to its own.
fn schedule(board: &Board, game: &Game, early: usize, a: u64, b: Option<u64>) -> Went {
    let arena = Arena::new(board, |_| ());
    let mut players = [player(game, &arena, 0), player(game, &arena, 1)];
    let mut through = [false; 2];
    for _ in 0..a {
        match one_step(&mut players[early]) {
            Doing::Stepped => {}
            Doing::Asleep => break,
            Doing::Over => return Went::Over,
        }
    }
    let late = 1 - early;
    match b {
        None => through[late] = run_to_mark(&mut players[late], GLANCE),
        Some(b) => {
            for _ in 0..b {
                match one_step(&mut players[late]) {
                    Doing::Stepped => {}
                    Doing::Asleep => break,
                    Doing::Over => {
                        through[late] = true;
                        break;
                    }
                }
            }
        }
    }
    // Who waits for the other one is not through after a glance; then the other one has to go on first.
    for round in 0..3 {
        let limit = if round == 2 { HANG } else { GLANCE };
        for who in [early, late] {
            through[who] = through[who] || run_to_mark(&mut players[who], limit);
        }
    }
    if through != [true; 2] || !players.iter_mut().rev().all(|player| run_to_exit(player, HANG)) {
        return Went::Stuck;
    }
    Went::Through(history(game, &arena))
}

/// What was found with one object.
#[derive(Default)]
struct Found {
    schedules: u64,
    histories: HashSet<History>,
    wrong: Vec<(String, Verdict, String)>,
}

impl Found {
    /// False when the place is beyond the end.
    fn play(&mut self, board: &Board, game: &Game, early: usize, a: u64, b: Option<u64>) -> bool {
        let when = || {
            let b = b.map_or("to its end".to_owned(), |b| format!("for {b}"));
            format!("process {early} frozen after {a}, the other one {b}")
        };
        match schedule(board, game, early, a, b) {
            Went::Over => return false,
            Went::Stuck => {
                self.wrong.push((when(), Verdict::Wedged, "somebody does not come to an end".to_owned()));
            }
            Went::Through(calls) => {
                if !self.histories.contains(&calls) && !is_linearizable(game, &calls) {
                    self.wrong.push((when(), Verdict::Corrupt, format!("not linearizable: {calls:?}")));
                }
                self.histories.insert(calls);
            }
        }
        self.schedules += 1;
        true
    }
}

/// How many instructions a script takes that nobody disturbs.
fn length(board: &Board, game: &Game, who: usize) -> u64 {
    let arena = Arena::new(board, |_| ());
    let mut player = player(game, &arena, who);
    while one_step(&mut player) == Doing::Stepped {}
    player.count()
}

/// Every schedule with one preemption (for a quick run a sample), and `samples` of those with two, all of them if they are no more;
/// until `enough` of them are wrong.
fn explore(
    board: &Board,
    game: &Game,
    options: &Options,
    samples: u64,
    rng: &mut Rng,
    enough: usize,
) -> (Found, u64) {
    let mut found = Found::default();
    let lengths = [0, 1].map(|who| length(board, game, who));
    for early in [0, 1] {
        for a in options.places(|| lengths[early]) {
            if found.wrong.len() >= enough || !found.play(board, game, early, a, None) {
                break;
            }
        }
    }
    let one = found.schedules;
    let all = lengths[0] * lengths[1] * 2;
    for n in 0..samples.min(all) {
        if found.wrong.len() >= enough {
            break;
        }
        let n = if samples >= all { n } else { rng.below(all) };
        let early = (n % 2) as usize;
        let (a, b) = (n / 2 % lengths[early], n / 2 / lengths[early]);
        found.play(board, game, early, a, Some(b));
    }
    (found, one)
}

/// Every schedule with one preemption, and a sample of those with two; for a quick run, a sample of both.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    let board = Arena::board();
    let mut rng = Rng::new(options.seed);
    let mut report = Report::new(MODE);
    let samples = if options.quick { 25 } else { 2000 };
    let games = options.share_of(GAMES, |game| game.name).chain(options.share_of(QUEUES, |game| game.name));
    for (_, game) in games {
        let (found, one) = explore(&board, game, options, samples, &mut rng, 4);
        let mut row = row(game.name, &found);
        row.set("one preemption", one);
        row.set("two (sample)", found.schedules - one);
        report.rows.push(row);
    }
    for game in PLANTED {
        let (found, _) = explore(&board, game, &Options::default(), 0, &mut rng, 1);
        report.rows.push(Row { planted: true, must_fail: true, ..row(game.name, &found) });
    }
    report
}

fn row(name: &str, found: &Found) -> Row {
    let mut row = Row::new(format!("interleave: {name}"));
    row.set("histories", found.histories.len() as u64);
    row.found(found.schedules, found.wrong.iter().cloned());
    row
}
