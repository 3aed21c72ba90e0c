//! Whether the queue is one queue: what real processes saw of it, with the times at which they began and ended, compared with what a
//! first-in-first-out queue of that capacity can show.
//!
//! All values differ, so it need not be searched for an order that explains a history: if there is none, one of these patterns
//! is in it (A. Bouajjani, M. Emmi, C. Enea, J. Hamza, "On reducing linearizability to state reachability", 2015):
//!
//! | pattern | what was seen |
//! |---|---|
//! | nowhere | a value was received that nobody has sent, or before anybody began to send it |
//! | twice | a value was received twice |
//! | lost | a value was sent, and never received, though the queue was drained in the end |
//! | order | `a` was sent before `b` was begun to be sent, and `b` was received before `a` was begun to be received |
//! | empty | it was called empty, and all the time there was some value in it for certain |
//! | crowded | more values were in it for certain than it has room for |
//! | full | it was called full, and at no time in between there can have been so many values in it |
//!
//! A value is in the queue *for certain* from the end of its sending to the beginning of its receiving, and *can* be in it from the
//! beginning of its sending to the end of its receiving. The first five find everything that is wrong with an unbounded queue; the
//! last two are what the capacity adds, and never wrong about a right queue.
//!
//! Times are nanoseconds of the clock that all processes share. Calls that touch at the same nanosecond count as overlapping.

use std::collections::HashMap;
use std::fmt;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use crossproc_atomic::{Linux, Ordering, Platform};
use crossproc_primitives::{Queue, QueueOptions, RecvError, SendError};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::children::{child, join, tied_to_parent};
use crate::random::Rng;
use crate::tickets::Tickets;

/// What is to be recorded.
#[derive(Clone, Debug)]
pub struct Config {
    /// So many operations, in all, at the least.
    pub operations: u64,
    /// Of all random choices.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed that gives the same choices again.
    pub seed: u64,
    /// Each with other numbers of processes, or another capacity.
    pub runs: Vec<Run>,
    /// A queue that hides what was sent behind what is being sent.
    pub planted: Run,
}

/// One recorded history.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Senders, and as many receivers.
    pub pairs: usize,
    /// Of the queue.
    pub capacity: usize,
    /// Values that were sent, and received; how often it was called full, and empty.
    pub counts: [u64; 4],
    /// How many calls began before an earlier one had ended.
    pub overlapping: u64,
    /// What no queue shows.
    pub violation: Option<String>,
    /// How long it took to record, and to check.
    pub took: [Duration; 2],
}

/// Pairs of processes, and the capacities.
const RUNS: [(usize, usize); 6] = [(2, 1), (2, 2), (2, 64), (4, 1), (4, 2), (4, 64)];

// ---- Recording ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sent,
    Received,
    Full,
    Empty,
}

const KINDS: [Kind; 4] = [Kind::Sent, Kind::Received, Kind::Full, Kind::Empty];

#[derive(Clone, Copy, Debug)]
struct Event {
    kind: Kind,
    value: u64,
    begin: u64,
    end: u64,
}

/// Calls of one process: how many, then three words for each.
#[derive(Clone, Serialize, Deserialize)]
struct Log(Board, u64);

impl Log {
    fn new(calls: usize) -> Self {
        Self(Board::new(1 + 3 * calls), calls as u64)
    }

    fn note(&self, count: &mut usize, kind: Kind, value: u64, begin: u64) {
        let words = [kind as u64, value, begin, Linux.now().0];
        for (at, word) in [words[1] << 2 | words[0], words[2], words[3]].into_iter().enumerate() {
            self.0[1 + 3 * *count + at].store(word, Ordering::Relaxed);
        }
        *count += 1;
        self.0[0].store(*count as u64, Ordering::Release);
    }

    fn events(&self) -> impl Iterator<Item = Event> + '_ {
        (0..self.0.get(0) as usize).map(|call| {
            let [first, begin, end] = [0, 1, 2].map(|at| self.0[1 + 3 * call + at].load(Ordering::Relaxed));
            Event { kind: KINDS[first as usize & 3], value: first >> 2, begin, end }
        })
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
enum Under {
    Exchange(Queue<u64>),
    Tickets(Tickets),
}

#[derive(Serialize, Deserialize)]
struct Job {
    start: Board,
    log: Log,
    under: Under,
    processes: u64,
    /// Values of this sender; 0 for a receiver, which goes on until the queue is closed, or 1 is on the board.
    values: u64,
    index: u64,
    seed: u64,
}

const START: usize = 0;
const STOP: usize = 8;
/// So many refusals are recorded for each value, at the most.
const REFUSALS: u64 = 3;

fn work(job: Job) {
    tied_to_parent();
    let mut rng = Rng::new(job.seed);
    job.start.meet(START, job.processes, 1);
    if job.values > 0 { job.send(&mut rng) } else { job.receive(&mut rng) }
}

impl Job {
    fn send(&self, rng: &mut Rng) {
        let mut count = 0;
        for nth in 0..self.values {
            let value = self.index << 32 | nth;
            let note = |count: &mut usize, kind, begin| self.log.note(count, kind, value, begin);
            let mut refused = 0;
            loop {
                let begin = Linux.now().0;
                let waits = refused == REFUSALS || rng.once_in(2);
                let sent = match &self.under {
                    Under::Tickets(tickets) => {
                        if tickets.push(value, rng) {
                            note(&mut count, Kind::Sent, begin);
                            break;
                        }
                        yield_now();
                        continue;
                    }
                    Under::Exchange(queue) if waits && rng.once_in(4) => {
                        let mut loan = queue.loan().expect("a hand");
                        *loan = value;
                        loan.send().map_err(|e| e.map(drop))
                    }
                    Under::Exchange(queue) if waits => queue.send(value).map_err(|e| e.map(drop)),
                    Under::Exchange(queue) => queue.try_send(value).map_err(|e| e.map(drop)),
                };
                match sent {
                    Ok(()) => {
                        note(&mut count, Kind::Sent, begin);
                        break;
                    }
                    Err(SendError::Full(())) => {
                        note(&mut count, Kind::Full, begin);
                        refused += 1;
                    }
                    Err(error) => panic!("sending: {error}"),
                }
            }
        }
    }

    fn receive(&self, rng: &mut Rng) {
        let (mut count, mut refused) = (0, 0);
        let room = self.log.1 as usize;
        loop {
            let begin = Linux.now().0;
            // Most of the room is for values.
            let waits = refused == REFUSALS || count > room * 3 / 4 || rng.once_in(2);
            let received = match &self.under {
                Under::Tickets(tickets) => match tickets.pop() {
                    Ok(Some(value)) => Ok(value),
                    Ok(None) if self.start.get(STOP) != 0 => return,
                    Ok(None) if refused < REFUSALS => Err(RecvError::Empty),
                    _ => {
                        yield_now();
                        continue;
                    }
                },
                Under::Exchange(queue) if waits && rng.once_in(4) => queue.recv_ref().map(|message| *message),
                Under::Exchange(queue) if waits => queue.recv(),
                Under::Exchange(queue) => queue.try_recv(),
            };
            match received {
                Ok(value) => {
                    self.log.note(&mut count, Kind::Received, value, begin);
                    refused = 0;
                }
                Err(RecvError::Empty) => {
                    self.log.note(&mut count, Kind::Empty, 0, begin);
                    refused += 1;
                }
                Err(RecvError::Closed) => return,
                Err(error) => panic!("receiving: {error}"),
            }
        }
    }
}

/// Lets so many pairs of processes send and receive, and checks what they saw.
fn record(pairs: usize, capacity: usize, values: u64, planted: bool, rng: &mut Rng) -> Run {
    let started = Instant::now();
    let under = if planted {
        Under::Tickets(Tickets::new())
    } else {
        Under::Exchange(
            QueueOptions::new(capacity).lanes(3 * pairs + 2).anonymous().expect("memory for a queue"),
        )
    };
    let start = Board::new(16);
    let sent = values * pairs as u64;
    let begin = |index: usize, values: u64, calls: u64| {
        let log = Log::new(calls as usize);
        let job = Job {
            start: start.clone(),
            log: log.clone(),
            under: under.clone(),
            processes: 2 * pairs as u64,
            values,
            index: index as u64,
            seed: rng.clone().bits() ^ index as u64,
        };
        (child(work, job), log)
    };
    let senders: Vec<_> = (0..pairs).map(|at| begin(at, values, values * (1 + REFUSALS))).collect();
    // One receiver may get them all.
    let receivers: Vec<_> = (pairs..2 * pairs).map(|at| begin(at, 0, 4 * sent + 100)).collect();
    rng.bits();
    let mut events = Vec::new();
    for (process, log) in senders {
        join(process);
        events.extend(log.events());
    }
    match &under {
        Under::Exchange(queue) => done(queue.close()),
        Under::Tickets(_) => start.set(STOP, 1),
    }
    for (process, log) in receivers {
        join(process);
        events.extend(log.events());
    }
    let recorded = started.elapsed();
    let mut run = Run { pairs, capacity, ..Run::default() };
    for kind in KINDS {
        run.counts[kind as usize] = events.iter().filter(|event| event.kind == kind).count() as u64;
    }
    run.overlapping = overlapping(&mut events);
    run.violation = violation(&events, if planted { usize::MAX } else { capacity });
    if let Under::Exchange(queue) = &under {
        run.violation = run.violation.or_else(|| queue.audit().err().map(|e| e.to_string()));
    }
    run.took = [recorded, started.elapsed() - recorded];
    run
}

fn done<E: fmt::Display>(closed: Result<bool, E>) {
    closed.unwrap_or_else(|error| panic!("closing: {error}"));
}

fn overlapping(events: &mut [Event]) -> u64 {
    events.sort_unstable_by_key(|event| event.begin);
    let mut last = 0;
    let mut count = 0;
    for event in events {
        count += u64::from(event.begin <= last);
        last = last.max(event.end);
    }
    count
}

// ---- Checking ----

/// The life of a value.
#[derive(Clone, Copy, Debug)]
struct Life {
    sent: (u64, u64),
    /// Never, if it was not.
    received: (u64, u64),
}

const NEVER: (u64, u64) = (u64::MAX, u64::MAX);

/// The first pattern that is in the history.
fn violation(events: &[Event], capacity: usize) -> Option<String> {
    let of = |kind| events.iter().filter(move |event| event.kind == kind);
    let mut lives: HashMap<u64, Life> = of(Kind::Sent)
        .map(|sent| {
            let life = Life { sent: (sent.begin, sent.end), received: NEVER };
            (sent.value, life)
        })
        .collect();
    for received in of(Kind::Received) {
        let Some(life) = lives.get_mut(&received.value) else {
            return Some(format!("nowhere: {received:?}"));
        };
        if life.received != NEVER {
            return Some(format!("twice: {received:?}, {life:?}"));
        }
        life.received = (received.begin, received.end);
        if received.end < life.sent.0 {
            return Some(format!("nowhere: {life:?}"));
        }
    }
    let mut lives: Vec<Life> = lives.into_values().collect();
    if let Some(lost) = lives.iter().find(|life| life.received == NEVER) {
        return Some(format!("lost: {lost:?}"));
    }
    lives.sort_unstable_by_key(|life| life.sent.0);
    order(&lives)
        .or_else(|| empty(&lives, of(Kind::Empty)))
        .or_else(|| crowded(&lives, capacity))
        .or_else(|| full(&lives, of(Kind::Full), capacity))
}

/// `lives` are in the order of their beginnings.
fn order(lives: &[Life]) -> Option<String> {
    let mut by_end: Vec<&Life> = lives.iter().collect();
    by_end.sort_unstable_by_key(|life| life.sent.1);
    let (mut earlier, mut latest) = (by_end.into_iter().peekable(), None::<&Life>);
    for b in lives {
        while let Some(a) = earlier.next_if(|a| a.sent.1 < b.sent.0) {
            latest = latest.filter(|latest| latest.received.0 >= a.received.0).or(Some(a));
        }
        if let Some(a) = latest.filter(|a| b.received.1 < a.received.0) {
            return Some(format!("order: {a:?} and {b:?}"));
        }
    }
    None
}

/// From when to when each value is in the queue for certain.
fn certain(lives: &[Life]) -> Vec<(u64, u64)> {
    let mut certain: Vec<_> =
        lives.iter().map(|life| (life.sent.1, life.received.0)).filter(|(from, to)| from < to).collect();
    certain.sort_unstable();
    certain
}

fn empty<'a>(lives: &[Life], calls: impl Iterator<Item = &'a Event>) -> Option<String> {
    // Times at which there is always something, put together.
    let mut times: Vec<(u64, u64)> = Vec::new();
    for (from, to) in certain(lives) {
        match times.last_mut() {
            Some(last) if from < last.1 => last.1 = last.1.max(to),
            _ => times.push((from, to)),
        }
    }
    for call in calls {
        let at = times.partition_point(|(from, _)| *from < call.begin);
        if let Some((from, to)) = times[..at].last().filter(|(_, to)| call.end < *to) {
            return Some(format!("empty: {call:?}, and there is something from {from} to {to}"));
        }
    }
    None
}

fn crowded(lives: &[Life], capacity: usize) -> Option<String> {
    let times = certain(lives);
    let mut ends: Vec<_> = times.iter().map(|(_, to)| *to).collect();
    ends.sort_unstable();
    let mut gone = 0;
    for (come, (from, _)) in times.iter().enumerate() {
        while ends[gone] <= *from {
            gone += 1;
        }
        if come + 1 - gone > capacity {
            return Some(format!("crowded: {} at {from}", come + 1 - gone));
        }
    }
    None
}

fn full<'a>(lives: &[Life], calls: impl Iterator<Item = &'a Event>, capacity: usize) -> Option<String> {
    // How many can be in it, from each moment at which that changes.
    let mut changes: Vec<(u64, i64)> =
        lives.iter().flat_map(|life| [(life.sent.0, 1), (life.received.1.saturating_add(1), -1)]).collect();
    changes.sort_unstable();
    let (mut now, mut levels) = (0, Vec::with_capacity(changes.len()));
    for (_, change) in &changes {
        now += change;
        levels.push(now);
    }
    // Of each 2^k of them the greatest.
    let mut greatest = vec![levels];
    while greatest.last().is_some_and(|last| last.len() > 1 << (greatest.len() - 1)) {
        let (last, half) = (greatest.last().expect("one at least"), 1 << (greatest.len() - 1));
        let next = (0..last.len() - half).map(|at| last[at].max(last[at + half])).collect();
        greatest.push(next);
    }
    for call in calls {
        // The last change before it counts as well. Of several at one moment those that take away come first: they are certain.
        let from = changes.partition_point(|(at, _)| *at <= call.begin).saturating_sub(1);
        let to = changes.partition_point(|(at, _)| *at <= call.end);
        if from >= to {
            return Some(format!("full: {call:?} before anything was sent"));
        }
        let power = (to - from).ilog2() as usize;
        let level = greatest[power][from].max(greatest[power][to - (1 << power)]);
        if level < capacity as i64 {
            return Some(format!("full: {call:?}, and there can be {level} at the most"));
        }
    }
    None
}

/// Records and checks all.
///
/// # Panics
///
/// If processes can not be started, or hang.
#[must_use]
pub fn run(config: &Config) -> Report {
    let mut rng = Rng::new(config.seed);
    // A value is sent and received.
    let values = config.operations.div_ceil(2 * RUNS.len() as u64);
    let runs = RUNS
        .map(|(pairs, capacity)| record(pairs, capacity, values.div_ceil(pairs as u64), false, &mut rng))
        .into();
    Report { seed: config.seed, runs, planted: record(2, 8, 4_000, true, &mut rng) }
}

impl Run {
    /// All calls that were recorded.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Report {
    /// True if the queue is one, and the planted bug was found.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.runs.iter().all(|run| run.violation.is_none()) && self.planted.violation.is_some()
    }

    /// All calls that were recorded of the queue.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.runs.iter().map(Run::operations).sum()
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, received, full, empty] = self.counts;
        let [recorded, checked] = self.took.map(|took| took.as_secs_f64());
        write!(
            f,
            "{0} senders, {0} receivers, capacity {1}: {2} calls ({sent} sent, {received} received, {full} full, {empty} empty), \
             {3} overlap; {recorded:.1} s, checked in {checked:.1} s: {4}",
            self.pairs,
            self.capacity,
            self.operations(),
            self.overlapping,
            self.violation.as_deref().unwrap_or("a queue"),
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "histories of the queue: seed {}, {} calls", self.seed, self.operations())?;
        self.runs.iter().try_for_each(|run| writeln!(f, "  {run}"))?;
        writeln!(f, "planted bug, a ticket queue: {}", self.planted)?;
        write!(f, "{}", if self.is_right() { "all right" } else { "NOT RIGHT" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, value: u64, begin: u64, end: u64) -> Event {
        Event { kind, value, begin, end }
    }

    fn sent(value: u64, begin: u64, end: u64) -> Event {
        event(Kind::Sent, value, begin, end)
    }

    fn received(value: u64, begin: u64, end: u64) -> Event {
        event(Kind::Received, value, begin, end)
    }

    #[track_caller]
    fn is(pattern: &str, events: &[Event]) {
        let found = violation(events, 2);
        assert!(found.as_ref().is_some_and(|found| found.starts_with(pattern)), "{found:?}");
    }

    #[track_caller]
    fn is_right(events: &[Event]) {
        assert_eq!(violation(events, 2), None);
    }

    #[test]
    fn values_come_from_somewhere_and_once() {
        is_right(&[sent(1, 0, 5), received(1, 3, 6)]);
        is_right(&[sent(1, 5, 9), received(1, 0, 6)]);
        is("nowhere", &[received(1, 3, 6)]);
        is("nowhere", &[sent(1, 7, 9), received(1, 3, 6)]);
        is("twice", &[sent(1, 0, 5), received(1, 3, 6), received(1, 7, 8)]);
        is("lost", &[sent(1, 0, 5), sent(2, 6, 7), received(1, 8, 9)]);
    }

    #[test]
    fn values_come_in_their_order() {
        is_right(&[sent(1, 0, 1), sent(2, 2, 3), received(1, 4, 5), received(2, 6, 7)]);
        is_right(&[sent(1, 0, 3), sent(2, 2, 4), received(2, 5, 6), received(1, 7, 8)]);
        is_right(&[sent(1, 0, 1), sent(2, 2, 3), received(2, 4, 6), received(1, 5, 7)]);
        is("order", &[sent(1, 0, 1), sent(2, 2, 3), received(2, 4, 5), received(1, 6, 7)]);
        // The one that it overtakes is not the one before it.
        is(
            "order",
            &[
                sent(1, 0, 1),
                sent(2, 2, 3),
                received(2, 4, 8),
                sent(3, 4, 5),
                received(3, 6, 7),
                received(1, 9, 10),
            ],
        );
    }

    #[test]
    fn empty_is_said_of_an_empty_queue() {
        let empty = |begin, end| event(Kind::Empty, 0, begin, end);
        is_right(&[sent(1, 2, 5), empty(0, 1), empty(3, 4), empty(4, 6), received(1, 7, 8), empty(8, 9)]);
        is("empty", &[sent(1, 2, 5), empty(6, 7), received(1, 8, 9)]);
        // One after the other, and never nothing.
        let chain = [sent(1, 0, 1), sent(2, 2, 5), received(1, 7, 8), received(2, 20, 21)];
        is("empty", &[&chain[..], &[empty(4, 15)]].concat());
        is_right(&[&chain[..], &[empty(4, 20)]].concat());
        let gap = [sent(1, 0, 1), received(1, 7, 8), sent(2, 2, 7), received(2, 20, 21)];
        is_right(&[&gap[..], &[empty(4, 15)]].concat());
    }

    #[test]
    fn full_is_said_of_a_full_queue_and_it_holds_no_more() {
        let full = |begin, end| event(Kind::Full, 0, begin, end);
        let two = [sent(1, 0, 1), sent(2, 2, 3), received(1, 10, 12), received(2, 14, 15)];
        is_right(&[&two[..], &[full(5, 6), full(11, 13), full(12, 13), full(2, 2)]].concat());
        is("full", &[&two[..], &[full(13, 14)]].concat());
        is("full", &[&two[..], &[full(0, 1)]].concat());
        is("full", &[sent(1, 4, 5), received(1, 6, 7), full(0, 1)]);
        let three = [sent(1, 0, 1), sent(2, 2, 3), sent(3, 4, 5)];
        let then = |first| [received(1, first, 30), received(2, 31, 32), received(3, 33, 34)];
        is_right(&[&three[..], &then(5)].concat());
        is("crowded", &[&three[..], &then(6)].concat());
    }
}
