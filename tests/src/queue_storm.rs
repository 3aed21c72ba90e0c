//! The queue storm: producers and consumers of one queue, killed at random moments and replaced at once.
//!
//! Every message is told by its producer's place and a number. It is that one word (which travels in the queue's slots), or in every
//! other set of rounds fifteen words, all the same: a torn one is seen.
//! Workers write down in shared memory what they are about to do, so that whoever finds one dead knows what it may have done:
//!
//! | word | whose | what |
//! |---|---|---|
//! | tried, sent | producer | messages before `tried` may be in the queue, those before `sent` are |
//! | phase | consumer | set while it receives: it may have a message of which nobody knows |
//! | holds | consumer | the messages that it has received and not yet released (with `recv_ref`) |
//! | ledger | all | for each message: how often it was received for the first time, how often again, and the highest count of deliveries |
//!
//! The storm goes in rounds, each with a new queue. At the end of a round nobody is killed any more; the producers stop, the queue is
//! closed and drained, and the ledger is compared with the deaths:
//! * with `recv`: nothing was received twice, and no more is missing than consumers died while they received;
//! * with `recv_ref`: nothing is missing; what was received again says so, and its holder had died, as often as it says;
//! * what a consumer received for the first time came in the order of its producer (with `recv`, which can not tell: but for
//!   as many as consumers died);
//! * all words are in order, and a handle can be had for each lane.
//!
//! In between, after each kill, somebody must receive something, also while others are stopped.
//!
//! The same storm over a *ticket queue* (D. Vyukov's bounded queue, in shared words) must get stuck in every run: there a message is
//! copied between two steps, and whoever is killed or stopped there stands in everybody's way.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use crossproc_primitives::{Queue, QueueOptions, RecvError, SendError, Unusable};
use crossproc_process::{ExitStatus, Process};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::children::{HANG, child, tied_to_parent};
use crate::random::Rng;
use crate::tickets::{Tickets, pause_at_times};

/// How long a storm is to be, and from which seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Each of both ways to receive ends when so many have been killed,
    pub kills: u64,
    /// and not before half of this time.
    pub at_least: Duration,
    /// Of all random choices.
    pub seed: u64,
}

/// What came out of a storm. Everything in it was counted.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed that gives the same choices again.
    pub seed: u64,
    /// With `recv`.
    pub copying: Outcome,
    /// With `recv_ref`.
    pub in_place: Outcome,
    /// Over the planted bug.
    pub tickets: Outcome,
}

/// What one storm did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Producers and consumers that were killed.
    pub killed: [u64; 2],
    /// Of all: killed while they were stopped.
    pub stopped: u64,
    /// Of all: killed two or three at a time.
    pub together: u64,
    /// Consumers that were killed while they received.
    pub receiving: u64,
    /// Producers that were killed while they sent, or right beside it.
    pub sending: u64,
    /// Consumers that were killed with messages in hand.
    pub holding: u64,
    /// Messages that were sent for certain, and those of which nobody knows.
    pub sent: u64,
    /// Messages that may have been sent by who died then.
    pub doubtful: u64,
    /// Messages that were received, each counted once.
    pub received: u64,
    /// Messages that were received again, and said so.
    pub again: u64,
    /// Messages that were sent, and never received.
    pub missing: u64,
    /// Messages that came after later ones of their producer and did not say that they come again.
    pub late: u64,
    /// Queues.
    pub rounds: u64,
    /// What is wrong.
    pub failure: Option<String>,
    /// How long it took.
    pub took: Duration,
}

const PRODUCERS: usize = 3;
const CONSUMERS: usize = 3;
const WORKERS: usize = PRODUCERS + CONSUMERS;
/// Messages of one producer in one round, at the most.
const LEDGER: usize = 1 << 17;
/// Kills in one round.
const ROUND: u64 = 400;
const CAPACITIES: [usize; 4] = [1, 2, 8, 64];
const LANES: usize = 24;

/// The message of this producer with this number; never 0.
fn message(producer: usize, number: u64) -> u64 {
    (producer as u64 + 1) << 32 | number
}

// The board: cache lines apart.
const STOP: usize = 0;
const WRONG: usize = 8;
const WORKER: usize = 16;
const STRIDE: usize = 16;
const TRIED: usize = 0;
const SENT: usize = 8;
const PHASE: usize = 0;
const HOLDS: usize = 1;
const RECEIVED: usize = 8;
const LATE: usize = 9;
const WORDS: usize = WORKER + WORKERS * STRIDE;

const HANDS: usize = 2;

// What is wrong, as a number.
const TORN: u64 = 1;
const UNKNOWN: u64 = 2;
const TOO_MANY: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Copying,
    InPlace,
    Tickets,
}

#[derive(Clone, Serialize, Deserialize)]
struct Job<const N: usize> {
    board: Board,
    /// Four bytes for each message, two messages in a word.
    ledger: Board,
    queue: Queue<[u64; N]>,
    tickets: Tickets,
    kind: Kind,
    index: usize,
    seed: u64,
}

/// What the ledger says of one message: received for the first time, again, and the highest count of deliveries.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    first: u64,
    again: u64,
    deliveries: u64,
}

fn entry(ledger: &Board, message: u64) -> Entry {
    let word = ledger.get(place(message));
    Entry { first: word & 0xff, again: word >> 8 & 0xff, deliveries: word >> 16 & 0xff }
}

fn place(message: u64) -> usize {
    ((message >> 32) as usize - 1) * LEDGER + message as u32 as usize
}

/// Something between nothing and a part of a time slice.
fn pass_time(turns: u64) {
    for _ in 0..turns {
        std::hint::spin_loop();
    }
}

fn work<const N: usize>(mut job: Job<N>) {
    tied_to_parent();
    let mut rng = Rng::new(job.seed);
    if job.index < PRODUCERS { job.produce(&mut rng) } else { job.consume(&mut rng) }
}

impl<const N: usize> Job<N> {
    fn own(&self, word: usize) -> usize {
        WORKER + self.index * STRIDE + word
    }

    fn stopped(&self) -> bool {
        self.board.get(STOP) != 0
    }

    fn wrong(&self, what: u64, message: u64) {
        self.board.set(WRONG + 1, message);
        self.board.set(WRONG, what);
    }

    /// Another handle instead of this one: a lane is claimed, and one given back.
    fn change_handle(&mut self, rng: &mut Rng) {
        if self.kind != Kind::Tickets && rng.once_in(64) {
            self.queue = self.queue.clone();
        }
    }

    fn produce(&mut self, rng: &mut Rng) {
        while !self.stopped() {
            self.change_handle(rng);
            let next = self.board.get(self.own(SENT));
            if next + 4 > LEDGER as u64 {
                sleep(Duration::from_millis(1));
                continue;
            }
            let batch = if rng.once_in(8) { 1 + rng.below(3) } else { 1 };
            let values: Vec<[u64; N]> =
                (next..next + batch).map(|number| [message(self.index, number); N]).collect();
            self.board.set(self.own(TRIED), next + batch);
            let sent = self.send(rng, &values);
            // What was not sent is tried again with the same number.
            self.board.set(self.own(SENT), next + sent);
            self.board.set(self.own(TRIED), next + sent);
            pass_time(rng.below(100));
        }
    }

    /// How many were sent, of those at the front.
    fn send(&self, rng: &mut Rng, values: &[[u64; N]]) -> u64 {
        let queue = &self.queue;
        if self.kind == Kind::Tickets {
            return u64::from(self.tickets.push(values[0][0], rng));
        }
        if values.len() > 1 {
            return queue.send_many(values).expect("an open queue") as u64;
        }
        let sent = match rng.below(6) {
            0 => queue.try_send(values[0]).map_err(|e| e.map(drop)),
            1 => {
                queue.send_timeout(values[0], Duration::from_micros(rng.below(300))).map_err(|e| e.map(drop))
            }
            2 => {
                let mut loan = queue.loan().expect("a hand");
                *loan = values[0];
                pause_at_times(rng);
                loan.send().map_err(|e| e.map(drop))
            }
            _ => queue.send(values[0]).map_err(|e| e.map(drop)),
        };
        match sent {
            Ok(()) => 1,
            Err(SendError::Full(()) | SendError::TimedOut(())) => 0,
            Err(error) => panic!("sending: {error}"),
        }
    }

    fn consume(&mut self, rng: &mut Rng) {
        let mut last = [0; PRODUCERS];
        loop {
            self.change_handle(rng);
            let more = match self.kind {
                Kind::Copying => self.copy_one(rng, &mut last),
                Kind::InPlace => self.receive_some(rng, &mut last),
                Kind::Tickets => {
                    self.board.set(self.own(PHASE), 1);
                    match self.tickets.pop() {
                        Ok(Some(value)) => self.record(&[value; N], 0, &mut last),
                        _ => yield_now(),
                    }
                    self.board.set(self.own(PHASE), 0);
                    !self.stopped()
                }
            };
            if !more {
                return;
            }
            pass_time(rng.below(100));
        }
    }

    /// False when the queue is closed and empty.
    fn copy_one(&self, rng: &mut Rng, last: &mut [u64; PRODUCERS]) -> bool {
        self.board.set(self.own(PHASE), 1);
        let received = match rng.below(6) {
            0 => self.queue.try_recv(),
            1 => self.queue.recv_timeout(Duration::from_micros(rng.below(300))),
            _ => self.queue.recv(),
        };
        let more = match received {
            Ok(value) => {
                self.record(&value, 0, last);
                true
            }
            Err(RecvError::Empty | RecvError::TimedOut) => true,
            Err(RecvError::Closed) => false,
            Err(error) => panic!("receiving: {error}"),
        };
        self.board.set(self.own(PHASE), 0);
        more
    }

    /// One message, or two at a time, in place.
    fn receive_some(&self, rng: &mut Rng, last: &mut [u64; PRODUCERS]) -> bool {
        let mut held = Vec::new();
        let mut more = true;
        for hand in 0..1 + usize::from(rng.once_in(4)) {
            self.board.set(self.own(PHASE), 1);
            let received = match rng.below(6) {
                _ if hand > 0 => self.queue.try_recv_ref(),
                0 => self.queue.try_recv_ref(),
                1 => self.queue.recv_ref_timeout(Duration::from_micros(rng.below(300))),
                _ => self.queue.recv_ref(),
            };
            match received {
                Ok(message) => {
                    self.board.set(self.own(HOLDS + hand), message[0]);
                    self.board.set(self.own(PHASE), 0);
                    self.record(&message, message.deliveries(), last);
                    held.push((hand, message));
                }
                Err(RecvError::Empty | RecvError::TimedOut) => {}
                Err(RecvError::Closed) => more = false,
                Err(error) => panic!("receiving: {error}"),
            }
            self.board.set(self.own(PHASE), 0);
        }
        pass_time(rng.below(100));
        if rng.once_in(2) {
            held.reverse();
        }
        for (hand, message) in held {
            drop(message);
            self.board.set(self.own(HOLDS + hand), 0);
        }
        more
    }

    /// `deliveries` is 0 if that is not told.
    fn record(&self, value: &[u64; N], deliveries: u8, last: &mut [u64; PRODUCERS]) {
        let it = value[0];
        if value.iter().any(|word| *word != it) {
            return self.wrong(TORN, it);
        }
        let (producer, number) = ((it >> 32) as usize, it & 0xffff_ffff);
        if !(1..=PRODUCERS).contains(&producer) || number >= LEDGER as u64 {
            return self.wrong(UNKNOWN, it);
        }
        if number >= self.board.get(WORKER + (producer - 1) * STRIDE + TRIED) && self.kind != Kind::Tickets {
            // Written before it was sent.
            return self.wrong(UNKNOWN, it);
        }
        let first = deliveries <= 1;
        let word = &self.ledger[place(it)];
        let mut seen = word.load(crossproc_atomic::Ordering::SeqCst);
        loop {
            let (count, highest) = (if first { 1 } else { 1 << 8 }, u64::from(deliveries).max(seen >> 16));
            let now = ((seen & 0xffff) + count) | (highest << 16);
            match word.compare_exchange(
                seen,
                now,
                crossproc_atomic::Ordering::SeqCst,
                crossproc_atomic::Ordering::SeqCst,
            ) {
                Ok(_) => break,
                Err(other) => seen = other,
            }
        }
        if first && seen & 0xff != 0 {
            self.wrong(TOO_MANY, it);
        }
        if first {
            if it < last[producer - 1] {
                self.board.add(self.own(LATE), 1);
            } else {
                last[producer - 1] = it;
            }
        }
        self.board.add(self.own(RECEIVED), 1);
    }
}

// ---- The storm ----

/// Runs a whole storm.
///
/// # Panics
///
/// If processes can not be started or killed.
#[must_use]
pub fn run(config: &Config) -> Report {
    let storm = |kind, kills, at_least, patience| {
        Storm { kind, rng: Rng::new(config.seed), patience, out: Outcome::default() }.run(kills, at_least)
    };
    Report {
        seed: config.seed,
        copying: storm(Kind::Copying, config.kills, config.at_least / 2, HANG),
        in_place: storm(Kind::InPlace, config.kills, config.at_least / 2, HANG),
        // It gets stuck soon. If it does not, this storm finds nothing.
        tickets: storm(Kind::Tickets, ROUND, Duration::ZERO, Duration::from_secs(1)),
    }
}

struct Storm {
    kind: Kind,
    rng: Rng,
    /// So long nobody may receive anything.
    patience: Duration,
    out: Outcome,
}

/// One queue and its workers.
struct Round<const N: usize> {
    board: Board,
    ledger: Board,
    queue: Queue<[u64; N]>,
    tickets: Tickets,
    workers: Vec<Process<()>>,
    /// What those who were killed had in hand, and how often that happened.
    holders: HashMap<u64, u64>,
    /// Messages that may have been sent.
    doubtful: HashSet<u64>,
    /// Consumers that were killed while they received.
    receiving: u64,
}

impl Storm {
    fn run(mut self, kills: u64, at_least: Duration) -> Outcome {
        let started = Instant::now();
        while self.out.failure.is_none()
            && (self.out.killed.iter().sum::<u64>() < kills || started.elapsed() < at_least)
        {
            let left = kills.saturating_sub(self.out.killed.iter().sum()).max(1);
            let kills = left.min(ROUND);
            // Every capacity with either kind.
            let inline = (self.out.rounds / CAPACITIES.len() as u64).is_multiple_of(2);
            self.out.failure = if inline { self.round::<1>(kills) } else { self.round::<15>(kills) }.err();
        }
        self.out.took = started.elapsed();
        self.out
    }

    fn round<const N: usize>(&mut self, kills: u64) -> Result<(), String> {
        let capacity = CAPACITIES[self.out.rounds as usize % CAPACITIES.len()];
        self.out.rounds += 1;
        let options = QueueOptions::new(capacity).lanes(LANES).hands(HANDS);
        let mut round = Round {
            board: Board::new(WORDS),
            ledger: Board::new(PRODUCERS * LEDGER),
            queue: options.anonymous::<[u64; N]>().map_err(|e| e.to_string())?,
            tickets: Tickets::new(),
            workers: Vec::new(),
            holders: HashMap::new(),
            doubtful: HashSet::new(),
            receiving: 0,
        };
        for index in 0..WORKERS {
            let worker = self.start(&round, index);
            round.workers.push(worker);
        }
        let before: u64 = self.out.killed.iter().sum();
        while self.out.killed.iter().sum::<u64>() < before + kills {
            self.kill_some(&mut round)?;
            // A full ledger ends the round early.
            if (0..PRODUCERS).all(|p| round.word(p, SENT) + 4 > LEDGER as u64) {
                break;
            }
        }
        self.end(round)
    }

    fn start<const N: usize>(&mut self, round: &Round<N>, index: usize) -> Process<()> {
        let (board, ledger, queue) = (round.board.clone(), round.ledger.clone(), round.queue.clone());
        let tickets = round.tickets.clone();
        child(work::<N>, Job { board, ledger, queue, tickets, kind: self.kind, index, seed: self.rng.bits() })
    }

    /// Kills up to three; the others must go on before that, and after it.
    fn kill_some<const N: usize>(&mut self, round: &mut Round<N>) -> Result<(), String> {
        let mut victims = vec![self.rng.below(WORKERS as u64) as usize];
        while victims.len() < 3 && self.rng.once_in(4) {
            let another = self.rng.below(WORKERS as u64) as usize;
            if !victims.contains(&another) {
                victims.push(another);
            }
        }
        // Somebody is left on each side.
        for side in [0..PRODUCERS, PRODUCERS..WORKERS] {
            if side.clone().all(|worker| victims.contains(&worker)) {
                victims.pop();
            }
        }
        if victims.len() > 1 {
            self.out.together += victims.len() as u64;
        }
        sleep(Duration::from_micros(self.rng.below(600)));
        if self.rng.once_in(4) {
            for &victim in &victims {
                round.workers[victim].signal(19).map_err(|e| e.to_string())?; // SIGSTOP
            }
            self.out.stopped += victims.len() as u64;
            self.await_progress(round, 20, "while others are stopped")?;
        }
        for &victim in &victims {
            round.workers[victim].kill().map_err(|e| e.to_string())?;
        }
        for &victim in &victims {
            match round.workers[victim].wait_timeout(HANG) {
                Some(ExitStatus::Signal(9)) => {}
                Some(other) => {
                    return Err(format!("a worker ended by itself: {other}, {}", round.last_words(victim)));
                }
                None => return Err("a killed process did not end".to_owned()),
            }
            self.account(round, victim);
            round.workers[victim] = self.start(round, victim);
        }
        self.await_progress(round, 1, "after a death")
    }

    fn account<const N: usize>(&mut self, round: &mut Round<N>, victim: usize) {
        if victim < PRODUCERS {
            self.out.killed[0] += 1;
            let (sent, tried) = (round.word(victim, SENT), round.word(victim, TRIED));
            self.out.sending += u64::from(tried > sent);
            round.doubtful.extend((sent..tried).map(|number| message(victim, number)));
            // The next one begins behind them.
            round.set_word(victim, SENT, tried.max(sent));
            return;
        }
        self.out.killed[1] += 1;
        let receiving = round.word(victim, PHASE);
        round.receiving += receiving;
        self.out.receiving += receiving;
        round.set_word(victim, PHASE, 0);
        let mut held = Vec::new();
        for hand in 0..HANDS {
            held.push(round.word(victim, HOLDS + hand));
            round.set_word(victim, HOLDS + hand, 0);
        }
        held.retain(|&message| message != 0);
        self.out.holding += u64::from(!held.is_empty());
        for message in held {
            *round.holders.entry(message).or_default() += 1;
        }
    }

    /// Waits until so many messages were received.
    fn await_progress<const N: usize>(
        &self,
        round: &mut Round<N>,
        messages: u64,
        when: &str,
    ) -> Result<(), String> {
        let started = Instant::now();
        let before = round.received();
        loop {
            round.anything_wrong()?;
            let full = (0..PRODUCERS).any(|p| round.word(p, SENT) + 4 > LEDGER as u64);
            if full || round.received() >= before + messages {
                return Ok(());
            }
            if started.elapsed() > self.patience {
                let queue = (self.kind != Kind::Tickets).then(|| format!(": {:?}", round.queue));
                return Err(format!("stuck {when}{}", queue.unwrap_or_default()));
            }
            if let Some(ended) = (0..WORKERS).find(|&at| round.workers[at].exit_status().is_some()) {
                return Err(format!("a worker ended by itself: {}", round.last_words(ended)));
            }
            sleep(Duration::from_micros(20));
        }
    }

    /// Stops all, and compares.
    fn end<const N: usize>(&mut self, mut round: Round<N>) -> Result<(), String> {
        round.board.set(STOP, 1);
        round.await_ends(0..PRODUCERS)?;
        if self.kind == Kind::Tickets {
            return round.await_ends(PRODUCERS..WORKERS);
        }
        round.queue.close().map_err(|e| e.to_string())?;
        round.await_ends(PRODUCERS..WORKERS)?;
        round.anything_wrong()?;
        let end = round.queue.try_recv();
        if end != Err(RecvError::Closed) {
            return Err(format!("the queue was closed and drained, and receiving says {end:?}"));
        }
        round.queue.audit().map_err(|e| e.to_string())?;
        let mut handles = vec![round.queue.clone()];
        while handles.last().is_some_and(|q| q.try_recv() != Err(RecvError::Unusable(Unusable::NoLane)))
            && handles.len() <= LANES
        {
            handles.push(round.queue.clone());
        }
        if handles.len() != LANES {
            return Err(format!("{} of {LANES} lanes can be had", handles.len()));
        }
        drop(handles);
        round.queue.audit().map_err(|e| e.to_string())?;
        self.compare(&round)
    }

    fn compare<const N: usize>(&mut self, round: &Round<N>) -> Result<(), String> {
        let (mut missing, mut unexplained) = (Vec::new(), 0);
        for producer in 0..PRODUCERS {
            for number in 0..round.word(producer, SENT) {
                let it = message(producer, number);
                let Entry { first, again, deliveries } = entry(&round.ledger, it);
                let deaths = round.holders.get(&it).copied().unwrap_or(0);
                let doubtful = round.doubtful.contains(&it);
                self.out.sent += u64::from(!doubtful);
                self.out.doubtful += u64::from(doubtful);
                self.out.received += u64::from(first + again > 0);
                self.out.again += again;
                if first > 1 {
                    return Err(format!("{it:#x} was received {first} times for the first time"));
                }
                if first + again == 0 && !doubtful {
                    missing.push(it);
                }
                if again > 0 {
                    // Who died in the moment of receiving it has not said so.
                    unexplained += (deliveries - 1).saturating_sub(deaths);
                    if again > deliveries - 1 {
                        return Err(format!(
                            "{it:#x} came again {again} times, the last time as number {deliveries}"
                        ));
                    }
                }
            }
        }
        self.out.missing += missing.len() as u64;
        let late: u64 = (PRODUCERS..WORKERS).map(|worker| round.word(worker, LATE)).sum();
        self.out.late += late;
        let allowed = if self.kind == Kind::Copying { round.receiving } else { 0 };
        if missing.len() as u64 > allowed {
            return Err(format!(
                "{} are missing, {allowed} died while they received: {missing:x?}",
                missing.len()
            ));
        }
        if late > allowed {
            return Err(format!("{late} came out of order, {allowed} died while they received"));
        }
        if unexplained > round.receiving {
            return Err(format!(
                "{unexplained} came again whose receiver had not died, {} died while they received",
                round.receiving
            ));
        }
        Ok(())
    }
}

impl<const N: usize> Round<N> {
    fn word(&self, worker: usize, word: usize) -> u64 {
        self.board.get(WORKER + worker * STRIDE + word)
    }

    fn set_word(&self, worker: usize, word: usize, value: u64) {
        self.board.set(WORKER + worker * STRIDE + word, value);
    }

    fn received(&self) -> u64 {
        (PRODUCERS..WORKERS).map(|worker| self.word(worker, RECEIVED)).sum()
    }

    fn anything_wrong(&self) -> Result<(), String> {
        let it = self.board.get(WRONG + 1);
        match self.board.get(WRONG) {
            0 => Ok(()),
            TORN => Err(format!("{it:#x} was torn")),
            UNKNOWN => Err(format!("{it:#x} was received, and nobody has sent it")),
            _ => Err(format!("{it:#x} was received twice for the first time")),
        }
    }

    fn await_ends(&mut self, workers: std::ops::Range<usize>) -> Result<(), String> {
        for index in workers {
            match self.workers[index].wait_timeout(HANG) {
                Some(ExitStatus::Code(0)) => {}
                Some(other) => {
                    return Err(format!("a worker ended with {other}: {}", self.last_words(index)));
                }
                None => return Err(format!("a worker does not end: {:?}", self.queue)),
            }
        }
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> String {
        match self.workers[index].try_join() {
            Err(error) => error.to_string(),
            Ok(_) => "no word".to_owned(),
        }
    }
}

// ---- What people read ----

impl Outcome {
    /// True if nothing was wrong.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.failure.is_none()
    }
}

impl Report {
    /// True if the queue kept its promises and the planted bug was found.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.copying.is_right() && self.in_place.is_right() && !self.tickets.is_right()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "storm over the queue: seed {}", self.seed)?;
        for (name, out) in [("recv", &self.copying), ("recv_ref", &self.in_place)] {
            let Outcome { killed: [producers, consumers], stopped, together, receiving, .. } = out;
            writeln!(
                f,
                "  {name}: {:.1} s, {} queues, {} killed: {producers} producers ({} of them sending), {consumers} consumers \
                 ({receiving} receiving, {} with a message in hand); {stopped} stopped first, {together} together",
                out.took.as_secs_f64(),
                out.rounds,
                producers + consumers,
                out.sending,
                out.holding,
            )?;
            writeln!(
                f,
                "    messages: {} sent and {} perhaps, {} received, {} again, {} missing, {} late",
                out.sent, out.doubtful, out.received, out.again, out.missing, out.late
            )?;
            if let Some(failure) = &out.failure {
                writeln!(f, "    FAILED {failure}")?;
            }
        }
        let tickets = &self.tickets;
        let verdict = tickets.failure.as_deref().unwrap_or("NOT CAUGHT");
        writeln!(
            f,
            "planted bug, a ticket queue in the same storm: after {} kills, {:.1} s: {verdict}",
            tickets.killed.iter().sum::<u64>(),
            tickets.took.as_secs_f64()
        )?;
        write!(f, "{}", if self.is_right() { "all right" } else { "NOT RIGHT" })
    }
}
