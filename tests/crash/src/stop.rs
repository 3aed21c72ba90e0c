//! A process is frozen (not killed) after each of its instructions, while a peer goes on.
//!
//! At how many of the N + 1 places the peer finishes is the progress guarantee, measured: for a lock it is less than all, by design,
//! since a frozen holder keeps it. Where the table says *lock-free* it has to be all. Whatever the guarantee, a peer's timed form
//! ends while the other is frozen, and when the frozen one goes on everybody finishes.

use std::time::Duration;

use crossproc_atomic::Ordering;
use crossproc_segment::Segment;
use crossproc_tests::{Board, HANG};

use crate::arena::{Arena, Play, Role, code, run_to_exit, steps};
use crate::cast::{self, rehearsed, roles};
use crate::options::Options;
use crate::pipe_cast as pipe;
use crate::queue_cast::{self as queues, Wide};
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::spsc_cast as spsc;
use crate::step::{Ending, Verdict};

/// The name of this mode.
pub const MODE: &str = "stop";

/// Where, and how, the peer's operation must end while the other one is frozen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Wherever that is, with what was wanted.
    LockFree,
    /// Everywhere, but it may be with a time-out.
    Timed,
    /// It may wait for the other one.
    Waits,
}
use Ends::{LockFree, Timed, Waits};

const CASES: &[(&str, Role, Role, Ends)] = &[
    ("Lock: lock, unlock | lock_timeout", roles::lock_unlock, roles::lock_timed, Timed),
    ("Lock: lock, unlock | try_lock", roles::lock_unlock, roles::lock_try, Timed),
    ("Lock: lock, unlock | acquire_timeout", roles::lock_unlock, roles::acquire_release, Timed),
    ("Lock within another: lock, unlock | lock_timeout", roles::inner_lock_unlock, roles::lock_timed, Timed),
    ("RLock: twice | twice, timed", roles::rlock_twice, roles::rlock_twice, Timed),
    ("Mutex: change | change, timed", roles::mutex_change, roles::mutex_change, Timed),
    ("Value, one word: fetch_add | fetch_add", roles::word_add, roles::word_add, LockFree),
    ("Value, one word: set | update", roles::word_set, roles::word_update, LockFree),
    ("Value, one word: update | set", roles::word_update, roles::word_set, LockFree),
    ("Value, one word: update | get", roles::word_update, roles::word_get, LockFree),
    ("Value, wide: set | get", roles::wide_set, roles::wide_get, LockFree),
    ("Value, wide: get | set", roles::wide_get, roles::wide_set, LockFree),
    ("Value, wide: set | set", roles::wide_set, roles::wide_set, Waits),
    ("Value, wide: lock, update | the same, timed", roles::wide_lock_update, roles::wide_lock_update, Timed),
    ("Value, wide: set | wait_while_timeout", roles::wide_set, roles::wide_wait, LockFree),
    ("Array: set | get", roles::array_set, roles::array_get, Waits),
    ("Array: change | change, timed", roles::array_lock_change, roles::array_lock_change, Timed),
    (
        "Semaphore of one: acquire, release | the same, timed",
        roles::semaphore_pair,
        roles::semaphore_pair,
        Timed,
    ),
    ("Semaphore of one: acquire, release | try_acquire", roles::semaphore_pair, roles::semaphore_try, Timed),
    ("Semaphore of two: acquire, release | the same", roles::one_of_two, roles::one_of_two, LockFree),
    ("Semaphore: release, consume | the same", roles::signal_consume, roles::signal_consume, LockFree),
    ("BinarySemaphore: acquire, release | the same, timed", roles::binary_pair, roles::binary_pair, Timed),
    ("Event: set, clear | set, wait", roles::event_set_clear, roles::event_set_wait, LockFree),
    ("Event: set, clear | set, clear", roles::event_set_clear, roles::event_set_clear, LockFree),
    ("Event: set, clear | wait_timeout", roles::event_set_clear, roles::event_wait, LockFree),
    ("RwLock: read | read", roles::read, roles::read, LockFree),
    ("RwLock: read | write, timed", roles::read, roles::write, Timed),
    ("RwLock: write | read, timed", roles::write, roles::read, Timed),
    ("RwLock: write, downgrade | read, timed", roles::write_downgrade, roles::read, Timed),
    ("Condvar: lock, notify_all | wait_timeout", roles::notify_all, roles::condvar_wait, Timed),
    ("Condvar: wait_timeout | lock, notify_all", roles::condvar_wait, roles::notify_all, Timed),
    ("Barrier: wait_timeout, reset | wait_timeout", roles::barrier_turn, roles::barrier_wait, Timed),
    ("Once: call | call_timeout", roles::once_call, roles::once_call, Timed),
    ("Once, done: call | call", roles::once_again, roles::once_again, LockFree),
    (
        "Queue: send, recv | 1000 of each",
        queues::send_receive::<u64>,
        queues::thousand_in_one::<u64>,
        LockFree,
    ),
    (
        "Queue: loan, send, recv_ref | 1000 of each",
        queues::loan_receive_ref::<u64>,
        queues::thousand_in_two::<u64>,
        LockFree,
    ),
    (
        "Queue: send_many, recv_many | 1000 of each",
        queues::batches::<u64>,
        queues::thousand_in_two::<u64>,
        LockFree,
    ),
    (
        "Queue: clone, drop | 1000 of each",
        queues::another_handle::<u64>,
        queues::thousand_in_two::<u64>,
        LockFree,
    ),
    (
        "Queue: drop with a message | 1000 of each",
        queues::leak_a_message::<u64>,
        queues::thousand_in_two::<u64>,
        LockFree,
    ),
    ("Queue: recovery | 1000 of each", queues::recover::<u64>, queues::thousand_in_one::<u64>, LockFree),
    ("Queue: close | 1000 of each", queues::close::<u64>, queues::thousand_in_two::<u64>, LockFree),
    (
        "Queue, wide: send, recv | 1000 of each",
        queues::send_receive::<Wide>,
        queues::thousand_in_one::<Wide>,
        LockFree,
    ),
    (
        "Queue, wide: loan, send, recv_ref | 1000 of each",
        queues::loan_receive_ref::<Wide>,
        queues::thousand_in_two::<Wide>,
        LockFree,
    ),
    (
        "Queue, wide: send_many, recv_many | 1000 of each",
        queues::batches::<Wide>,
        queues::thousand_in_two::<Wide>,
        LockFree,
    ),
    (
        "Queue, wide: clone, drop | 1000 of each",
        queues::another_handle::<Wide>,
        queues::thousand_in_two::<Wide>,
        LockFree,
    ),
    (
        "Queue, wide: drop with a message | 1000 of each",
        queues::leak_a_message::<Wide>,
        queues::thousand_in_two::<Wide>,
        LockFree,
    ),
    (
        "Queue, wide: recovery | 1000 of each",
        queues::recover::<Wide>,
        queues::thousand_in_one::<Wide>,
        LockFree,
    ),
    ("Queue, wide: close | 1000 of each", queues::close::<Wide>, queues::thousand_in_two::<Wide>, LockFree),
    ("spsc: try_push | 1000 x try_pop", spsc::push_two, spsc::thousand_pops, LockFree),
    ("spsc: push_many | 1000 x try_pop", spsc::push_batch, spsc::thousand_pops, LockFree),
    ("spsc: reserve, commit | 1000 x try_pop", spsc::reserve_commit, spsc::thousand_pops, LockFree),
    ("spsc: producer, push, drop | 1000 x try_pop", spsc::leave_and_push, spsc::thousand_pops, LockFree),
    ("spsc: push, close | 1000 x try_pop", spsc::push_and_close, spsc::thousand_pops, LockFree),
    ("spsc: try_pop | 1000 x try_push", spsc::pop_two, spsc::thousand_pushes, LockFree),
    ("spsc: pop_many | 1000 x try_push", spsc::pop_batch, spsc::thousand_pushes, LockFree),
    ("spsc: peek, release | 1000 x try_push", spsc::peek_release, spsc::thousand_pushes, LockFree),
    ("spsc: consumer, pop, drop | 1000 x try_push", spsc::leave_and_pop, spsc::thousand_pushes, LockFree),
    ("spsc: pop, close | 1000 x try_push", spsc::pop_and_close, spsc::thousand_pushes, LockFree),
    // One side never waits for the other. Within a side it is a turn.
    ("Pipe: try_send | 1000 x try_recv", pipe::send, pipe::thousand_receives, LockFree),
    ("Pipe: reserve, commit | 1000 x try_recv", pipe::reserve_commit, pipe::thousand_receives, LockFree),
    ("Pipe: near, close | 1000 x try_recv", pipe::hold_and_let_go, pipe::thousand_receives, LockFree),
    ("Pipe: the sender closes | 1000 x try_recv", pipe::close_sender, pipe::thousand_receives, LockFree),
    ("Pipe: send, in parts | what was there", pipe::send_in_parts, pipe::receive_before, LockFree),
    ("Pipe: send, in parts | recv_timeout", pipe::send_in_parts, pipe::receive_timed, Timed),
    ("Pipe: try_send | send_timeout", pipe::send, pipe::send_timed, Timed),
    ("Pipe: send, in parts | send_timeout", pipe::send_in_parts, pipe::send_timed, Timed),
    ("Pipe: try_recv | 1000 x try_send", pipe::receive, pipe::thousand_sends, LockFree),
    ("Pipe: peek, release | 1000 x try_send", pipe::peek_release, pipe::thousand_sends, LockFree),
    ("Pipe: recv, in parts | 1000 x try_send", pipe::receive_in_parts, pipe::thousand_sends, LockFree),
    ("Pipe: recv_bytes_into, in parts | 1000 x try_send", pipe::receive_into, pipe::thousand_sends, LockFree),
    ("Pipe: the receiver closes | 1000 x try_send", pipe::close_receiver, pipe::thousand_sends, LockFree),
    ("Pipe: try_recv | recv_timeout", pipe::receive, pipe::receive_timed, Timed),
    ("Pipe: peek, release | recv_timeout", pipe::peek_release, pipe::receive_timed, Timed),
];

/// Said to be lock-free, and is not: a flag that is spun upon.
fn flag(segment: &Segment) -> Play {
    let flag = &cast::flawed(segment)[0];
    rehearsed(move || {
        while flag.swap(1, Ordering::Acquire) != 0 {
            std::thread::yield_now();
        }
        flag.store(0, Ordering::Release);
        code::OK
    })
}

/// What was measured for one case.
#[derive(Debug, Default)]
struct Progress {
    /// Where the victim was frozen: N + 1 places.
    places: u64,
    /// Where the peer did not finish meanwhile, or timed out.
    held: Vec<u64>,
    /// What must not be, with the place.
    wrong: Vec<(u64, String)>,
}

/// How long a peer that waits for the frozen one is left alone with it.
const GLANCE: Duration = Duration::from_millis(15);

const VICTIM: usize = 0;
const PEER: usize = 1;

/// Freezes the victim at every place in turn. `limit` is how long whatever must end has for it.
fn measure(
    board: &Board,
    frozen: Role,
    peer: Role,
    ends: Ends,
    limit: Duration,
    options: &Options,
) -> Progress {
    let mut progress = Progress::default();
    let length = || {
        let arena = Arena::new(board, |_| ());
        let mut victim = arena.victim(VICTIM, frozen);
        steps(&mut victim, u64::MAX);
        victim.count()
    };
    for place in options.places(length) {
        let arena = Arena::new(board, |_| ());
        let mut victim = arena.victim(VICTIM, frozen);
        if !steps(&mut victim, place) {
            break;
        }
        progress.places += 1;
        let other = arena.extra(PEER, peer);
        let told = arena.await_told(PEER, if ends == Waits { GLANCE } else { limit });
        match (told, ends) {
            (Some(code::OK), _) => {}
            (Some(code::TIMED_OUT | code::WOULD_BLOCK), Timed) | (None, Waits) => progress.held.push(place),
            (told, _) => progress.wrong.push((place, format!("the peer's operation: {told:?}"))),
        }
        // The end of the play, and of the process.
        if !run_to_exit(&mut victim, limit) || arena.told(VICTIM).is_none() {
            progress.wrong.push((place, "the victim does not finish when it goes on".to_owned()));
        }
        if told.is_none() && arena.await_told(PEER, limit).is_none() {
            progress
                .wrong
                .push((place, "the peer does not finish when the other one has gone on".to_owned()));
        } else if other.end(limit) != Some(Ending::Status(0)) {
            progress.wrong.push((place, "the peer does not end well".to_owned()));
        }
        if progress.wrong.len() > 3 {
            break; // each may have taken its whole time
        }
    }
    progress
}

/// Freezes each victim at every place, or for a quick run at a sample of them.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    let board = Arena::board();
    let mut report = Report::new(MODE);
    for (_, &(name, frozen, peer, ends)) in options.share_of(CASES, |case| case.0) {
        report.rows.push(row(name, &measure(&board, frozen, peer, ends, HANG, options), ends));
    }
    let planted = measure(&board, flag, flag, LockFree, Duration::from_millis(100), &Options::default());
    let planted = row("(planted) a flag, said to be lock-free", &planted, LockFree);
    report.rows.push(Row { planted: true, must_fail: true, ..planted });
    report
}

fn row(name: &str, progress: &Progress, ends: Ends) -> Row {
    let mut row = Row::new(format!("stop: {name}"));
    row.set("frozen", progress.places);
    row.set("goes on", progress.places - progress.held.len() as u64);
    if ends == LockFree {
        row.set("lock-free", progress.places);
    }
    row.found(
        progress.places,
        progress
            .wrong
            .iter()
            .map(|(place, text)| (format!("frozen after {place}"), Verdict::Wedged, text.clone())),
    );
    row
}
