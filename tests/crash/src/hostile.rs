//! A peer writes wrong values into the words of an object, between any two instructions of an operation on it.
//!
//! A victim is stepped to some place in its operation; the harness writes into one word of the object, as a peer that runs wild
//! could at that moment; the victim goes on. It must come to an end: an error and a wrong value are both fine. It must not crash,
//! panic, run for ever, or change memory that is not shared (around each mapping are pages that nobody may touch).
//!
//! All operations are tried in forms with a limit: who waits for a lock that is said to be held by a living process waits rightly.
//!
//! The product of places, words and values is too large to be tried; a sample is drawn from it, from the printed seed.

use crossproc_atomic::{AtomicU64, Liveness, Ordering, Platform};
use crossproc_segment::{PlacedSlice, Segment, Span};
use crossproc_tests::{Board, HANG, Rng};

use crate::arena::{Arena, Play, Role, code, run_to_exit_status, steps};
use crate::cast::{self, rehearsed, roles};
use crate::options::Options;
use crate::queue_cast::{self as queues, Wide};
use crate::report::{Report, Row};
use crate::scene::Operation;
use crate::spsc_cast as spsc;
use crate::step::{Ending, Memory, Verdict, why};

/// The name of this mode.
pub const MODE: &str = "hostile";

const CASES: &[(&str, Role)] = &[
    ("Lock: lock_timeout, unlock", roles::lock_timed),
    ("Lock: try_lock, unlock", roles::lock_try),
    ("Lock: acquire_timeout, release", roles::acquire_release),
    ("Lock within another: lock_timeout, unlock", inner_lock),
    ("RLock: twice", roles::rlock_twice),
    ("Mutex: change", roles::mutex_change),
    ("Value, one word: fetch_add", roles::word_add),
    ("Value, one word: set", roles::word_set),
    ("Value, one word: update", roles::word_update),
    ("Value, wide: get", roles::wide_get),
    ("Value, wide: lock_timeout, update", roles::wide_lock_update),
    ("Value, wide: wait_while_timeout", roles::wide_wait),
    ("Array: lock_timeout, change", roles::array_lock_change),
    ("Semaphore: acquire_timeout, release", roles::semaphore_pair),
    ("Semaphore: try_acquire, release", roles::semaphore_try),
    ("Semaphore: release, consume", roles::signal_consume),
    ("BinarySemaphore: acquire_timeout, release", roles::binary_pair),
    ("Event: set, clear", roles::event_set_clear),
    ("Event: set, wait_timeout", roles::event_set_wait),
    ("RwLock: read_timeout", roles::read),
    ("RwLock: write_timeout", roles::write),
    ("RwLock: write_timeout, downgrade", roles::write_downgrade),
    ("Condvar: notify_all", roles::notify_all),
    ("Condvar: wait_timeout", roles::condvar_wait),
    ("Barrier: wait_timeout, reset", roles::barrier_turn),
    ("Once: call_timeout", roles::once_call),
    ("Queue: send, recv", queues::send_receive::<u64>),
    ("Queue: loan, send, recv_ref", queues::loan_receive_ref::<u64>),
    ("Queue: send_many, recv_many", queues::batches::<u64>),
    ("Queue: clone, drop", queues::another_handle::<u64>),
    ("Queue: drop with a message, recv", queues::leak_a_message::<u64>),
    ("Queue: recv, empty, a dead one's lane", queues::receive_in_vain::<u64>),
    ("Queue: close", queues::close_at_any_time::<u64>),
    ("Queue, wide: send, recv", queues::send_receive::<Wide>),
    ("Queue, wide: loan, send, recv_ref", queues::loan_receive_ref::<Wide>),
    ("Queue, wide: send_many, recv_many", queues::batches::<Wide>),
    ("Queue, wide: clone, drop", queues::another_handle::<Wide>),
    ("Queue, wide: drop with a message, recv", queues::leak_a_message::<Wide>),
    ("Queue, wide: recv, empty, a dead one's lane", queues::receive_in_vain::<Wide>),
    ("Queue, wide: close", queues::close_at_any_time::<Wide>),
    ("spsc: push, pop", spsc::push_pop),
    ("spsc: push_all, pop_many", spsc::push_pop_batches),
    ("spsc: reserve, commit, peek, release", spsc::in_place),
    ("spsc: len, peer, audit", spsc::look),
    ("spsc: both roles given back and taken", spsc::claim_both),
];

/// The lock that is scribbled over is the inner one; the outer one is in a segment of its own.
fn inner_lock(segment: &Segment) -> Play {
    let outer = Box::leak(Box::new(crossproc_primitives::Lock::new().expect("memory for a lock")));
    std::mem::forget(outer.lock());
    roles::lock_timed(segment)
}

/// Planted: checks an index, and then reads it again.
fn fetches_twice(segment: &Segment) -> Play {
    let index = &cast::flawed(segment)[0];
    rehearsed(move || {
        let mut private = [0_u8; 8];
        if index.load(Ordering::SeqCst) as usize >= private.len() {
            return code::ERROR;
        }
        for byte in &mut private {
            *byte = std::hint::black_box(2);
        }
        // Without Rust's own check of the index this would be somebody else's memory.
        private[index.load(Ordering::SeqCst) as usize] = 1;
        u64::from(private[0])
    })
}

/// Planted: takes as many as a shared word says.
fn never_ends(segment: &Segment) -> Play {
    let words = cast::flawed(segment);
    rehearsed(move || {
        while words[0].load(Ordering::SeqCst) != words[1].load(Ordering::SeqCst) {
            words[1].fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
        }
        code::OK
    })
}

/// An object to be scribbled over, as it is before.
struct Target {
    arena: Arena,
    /// All words of all objects: where each one is.
    words: Vec<(PlacedSlice<AtomicU64>, usize)>,
    memory: Memory,
    first: Vec<u8>,
    /// Values that mean something to somebody.
    values: Vec<u64>,
}

impl Target {
    fn new(board: &Board, role: Role) -> Self {
        let arena = Arena::new(board, |_| ());
        let segment = arena.segment();
        // A first process makes the objects, and is a dead participant from then on.
        assert_eq!(arena.extra(FIRST, role).end(HANG), Some(Ending::Status(0)), "the first one can use it");
        let words = segment.objects().into_iter().flat_map(|info| {
            let span = Span { offset: info.object.offset, count: info.object.bytes / 8 };
            let words: PlacedSlice<AtomicU64> = segment.mapping().place_slice(span).expect("whole words");
            (0..words.len()).map(move |at| (words.clone(), at))
        });
        let words: Vec<_> = words.collect();
        assert!(!words.is_empty(), "there is something to write over");
        let live = segment.participants().expect("attached");
        let (me, tid) = (live.me().bits(), u64::from(live.tid()));
        let values = vec![
            0,
            1,
            2,
            3,
            0x7f,
            0xff,
            0xffff,
            1 << 20,
            1 << 30,
            1 << 31,
            1 << 32,
            1 << 62,
            1 << 63,
            u64::MAX,
            u64::MAX >> 1,
            u64::from(u32::MAX),
            tid,
            tid | 1 << 31,
            tid | 1 << 30,
            me,
            me | 1 << 62,
            me | 1 << 63,
            me + 1,
        ];
        let memory = Memory::of(segment);
        let first = memory.image();
        Self { arena, words, memory, first, values }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        let (words, at) = &self.words[at];
        &words[*at]
    }

    /// How many instructions the operation has.
    fn length(&self, role: Role) -> u64 {
        self.memory.restore(&self.first);
        self.arena.wipe();
        let mut victim = self.arena.victim(VICTIM, role);
        let mut length = 0;
        while steps(&mut victim, 1) {
            length += 1;
        }
        length
    }

    /// One try. What is wrong, if something is.
    fn attack(&self, role: Role, place: u64, word: usize, value: Value) -> Option<(Verdict, String)> {
        self.memory.restore(&self.first);
        self.arena.wipe();
        let mut victim = self.arena.victim(VICTIM, role);
        steps(&mut victim, place);
        let word = self.word(word);
        let before = word.load(Ordering::SeqCst);
        word.store(value.over(before), Ordering::SeqCst);
        match run_to_exit_status(&mut victim, HANG) {
            Some(Ending::Status(0)) if self.arena.told(VICTIM) == Some(code::OVERRUN) => {
                Some((Verdict::Corrupt, "private memory was changed".to_owned()))
            }
            Some(Ending::Status(0)) => None,
            Some(Ending::Status(_)) => Some((Verdict::Crashed, format!("it panics: {}", why()))),
            Some(Ending::Signal(signal)) => {
                Some((Verdict::Crashed, format!("it is ended by signal {signal}")))
            }
            None => Some((Verdict::Wedged, "it does not come to an end".to_owned())),
        }
    }
}

const VICTIM: usize = 0;
const FIRST: usize = 1;

/// What is written over a word: all of it, or one half.
#[derive(Clone, Copy, Debug)]
enum Value {
    Whole(u64),
    Low(u64),
    High(u64),
}

impl Value {
    fn over(self, before: u64) -> u64 {
        let low = u64::from(u32::MAX);
        match self {
            Self::Whole(value) => value,
            Self::Low(value) => before & !low | value & low,
            Self::High(value) => before & low | value << 32,
        }
    }
}

/// `tries` wrong values at random places.
fn scribble(board: &Board, name: &str, role: Role, tries: u64, rng: &mut Rng) -> Row {
    let target = Target::new(board, role);
    let length = target.length(role);
    let words = target.words.len() as u64;
    let mut row = Row::new(format!("hostile: {name}"));
    let mut bad = Vec::new();
    let mut tried = 0;
    while tried < tries && bad.len() < 4 {
        tried += 1;
        let (place, at) = (rng.below(length + 1), rng.below(words) as usize);
        // A constant, or what another word of the object is just now.
        let (kind, any) = (rng.below(3), rng.below(4));
        let value = if any == 0 {
            target.word(rng.below(words) as usize).load(Ordering::SeqCst)
        } else {
            target.values[rng.below(target.values.len() as u64) as usize]
        };
        let value = [Value::Whole(value), Value::Low(value), Value::High(value)][kind as usize];
        if let Some((verdict, text)) = target.attack(role, place, at, value) {
            bad.push((
                format!("{value:x?} into word {at} of {words} after {place} of {length}"),
                verdict,
                text,
            ));
        }
    }
    row.set("written", tried);
    row.found(tried, bad);
    row
}

/// Writes wrong values, a few for a quick run.
pub fn run(options: &Options, _: &[Operation]) -> Report {
    let board = Arena::board();
    let mut report = Report::new(MODE);
    let tries = if options.quick { 60 } else { 3000 };
    for (at, &(name, role)) in options.share_of(CASES, |case| case.0) {
        let mut rng = Rng::new(options.seed ^ (at as u64) << 32);
        report.rows.push(scribble(&board, name, role, tries, &mut rng));
    }
    let mut rng = Rng::new(options.seed);
    let planted = scribble(&board, "(planted) index fetched twice", fetches_twice, 3000, &mut rng);
    report.rows.push(Row { planted: true, must_fail: true, ..planted });
    let limit = std::time::Duration::from_millis(200);
    report.rows.push(endless(&board, limit));
    report
}

/// The planted loop without an end, with a limit of its own.
fn endless(board: &Board, limit: std::time::Duration) -> Row {
    let target = Target::new(board, never_ends);
    let mut victim = target.arena.victim(VICTIM, never_ends);
    target.word(0).store(u64::from(u32::MAX), Ordering::SeqCst);
    let ended = run_to_exit_status(&mut victim, limit);
    let mut row = Row::new("hostile: (planted) loop bound by a shared word");
    (row.planted, row.must_fail) = (true, true);
    row.found(1, ended.is_none().then(|| ("start".to_owned(), Verdict::Wedged, "no end".to_owned())));
    row
}
