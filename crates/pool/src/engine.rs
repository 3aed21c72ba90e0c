//! The parent's side: who waits, what has been sent, who works. `wire.rs` has the protocol.
//!
//! ```text
//!  submit, map, imap --> waiting --dispatch--> tasks queue --> workers --> replies queue --> collector --> jobs
//!                                    ^                                          |                ^
//!                                    +------------- at each reply --------------+    supervisor: DIED, END
//! ```
//!
//! One lock (`State`), held for short times only and never while code of others runs. The *collector* is the thread that receives
//! replies (here); the *supervisor* is the thread that starts workers and sees them end (`supervisor.rs`). Only so much is
//! sent ahead as keeps the workers busy: the rest can still be cancelled without asking anybody.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use crossproc_primitives::{BytesMessage, BytesQueue, SendError, Unfit};
use crossproc_process::{ExitStatus, Process};

use crate::callbacks::{Callbacks, shielded};
use crate::job::{Afterwards, Job, Outcome, Progress};
use crate::wire::{
    BYE, DAMAGED, DIED, END, Holder, INITIALIZER, READY, RESULTS, ReplyHead, SKIPPED, TaskHead, Ticket,
    UNSENDABLE, Word, Words,
};
use crate::{OnWorkerDeath, PoolError, TaskError};

/// So many tasks are sent ahead, or two for each worker if that is more.
const AHEAD: usize = 512;
/// No further ones are sent ahead when those have so many bytes.
const AHEAD_BYTES: usize = 8 << 20;
/// So many replies are taken up under one lock.
const ROUND: usize = 256;
/// Workers that die before they are ready, with none that becomes ready in between, count up to this;
const UNREADY_DEATHS: u32 = 64;
/// so much each. SIGKILL comes from elsewhere: from a person, or a kernel that has no memory left.
const CRASHED: u32 = 8;
const KILLED: u32 = 1;

/// So many slots a pool of so many workers needs.
pub(crate) fn slots_for(processes: usize) -> usize {
    AHEAD.max(2 * processes)
}

/// Chunks that have not been sent.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) job: Arc<Job>,
    /// The arguments of all chunks.
    pub(crate) arguments: Vec<u8>,
    /// Where each chunk ends, and how many items it has.
    pub(crate) chunks: Vec<(usize, u32)>,
    /// Number of the first chunk in the job; given when it is taken on.
    pub(crate) first: u64,
    /// How many chunks have been sent.
    pub(crate) sent: usize,
}

impl Batch {
    /// Number, arguments and items of the next chunk.
    fn next(&self) -> Option<(u64, &[u8], u32)> {
        let (end, items) = *self.chunks.get(self.sent)?;
        let start = self.sent.checked_sub(1).map_or(0, |before| self.chunks[before].0);
        Some((self.first + self.sent as u64, &self.arguments[start..end], items))
    }
}

/// A task that was sent.
#[derive(Debug)]
struct Sent {
    job: Arc<Job>,
    chunk: u64,
    items: u32,
    bytes: usize,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// What there is will be finished.
    Closed,
    /// Nothing will be finished any more; why.
    Over(PoolError),
}

/// A living worker, or one whose end has not been dealt with.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) number: u32,
    pub(crate) process: Arc<Process<()>>,
    pub(crate) is_ready: bool,
    /// It has said that it ends.
    pub(crate) said_bye: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    phase: Phase,
    /// The workers have been told that nothing more comes.
    is_finished: bool,
    /// All workers and threads have ended.
    has_ended: bool,
    pub(crate) crew: Vec<Worker>,
    tasks: BytesQueue,
    waiting: VecDeque<Batch>,
    /// Messages taken back after a death, which go before all others.
    again: VecDeque<Vec<u8>>,
    slots: Vec<Option<Sent>>,
    generations: Vec<u32>,
    free: Vec<u32>,
    bytes_ahead: usize,
    unready_deaths: u32,
    /// Workers that died without a task, with no result of anybody in between.
    pub(crate) idle_deaths: u32,
    /// READY and BYE of workers, said before whoever started them came to say so.
    early: Vec<ReplyHead>,
    /// Set by the supervisor. An END before that is not from it.
    pub(crate) may_end: bool,
    /// The collector and the supervisor: they can not wait for the pool's end.
    own_threads: Vec<ThreadId>,
    progress: Progress,
    /// For one short message at a time.
    buffer: Vec<u8>,
    afterwards: Afterwards,
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) processes: usize,
    pub(crate) on_death: OnWorkerDeath,
    pub(crate) words: Words,
    state: Mutex<State>,
    ended: Condvar,
    /// An eventfd that wakes the supervisor.
    pub(crate) poke: OwnedFd,
    pub(crate) callbacks: Callbacks,
    /// The process that made it. A forked child has a copy, which must not harm the workers, and whose locks may be locked for ever.
    owner: u32,
}

impl Engine {
    pub(crate) fn new(
        processes: usize,
        on_death: OnWorkerDeath,
        words: Words,
        tasks: BytesQueue,
        poke: OwnedFd,
    ) -> Self {
        let slots = slots_for(processes);
        let state = State {
            phase: Phase::Open,
            is_finished: false,
            has_ended: false,
            crew: Vec::new(),
            tasks,
            waiting: VecDeque::new(),
            again: VecDeque::new(),
            slots: (0..slots).map(|_| None).collect(),
            generations: vec![0; slots],
            free: (0..slots as u32).rev().collect(),
            bytes_ahead: 0,
            unready_deaths: 0,
            idle_deaths: 0,
            early: Vec::new(),
            may_end: false,
            own_threads: Vec::new(),
            progress: Progress::default(),
            buffer: Vec::new(),
            afterwards: Afterwards::default(),
        };
        let (state, ended) = (Mutex::new(state), Condvar::new());
        let (callbacks, owner) = (Callbacks::default(), std::process::id());
        Self { processes, on_death, words, state, ended, poke, callbacks, owner }
    }

    /// False in a copy (`fork`) of the process that made it.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    pub(crate) fn require_open(&self) -> Result<(), PoolError> {
        if self.is_ours() { self.lock().require_open() } else { Err(PoolError::NotParent) }
    }

    /// Called by the collector and the supervisor when they begin.
    pub(crate) fn note_own_thread(&self) {
        self.lock().own_threads.push(thread::current().id());
    }

    /// True if this is one of them: it runs code of others, wakers.
    pub(crate) fn is_own_thread(&self) -> bool {
        self.lock().own_threads.contains(&thread::current().id())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Code of others does not run under it, and ours keeps it in order between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock, then does what had to wait for that.
    fn release(&self, mut state: MutexGuard<'_, State>) {
        let Afterwards { wakers, callbacks } = std::mem::take(&mut state.afterwards);
        drop(state);
        callbacks.into_iter().for_each(|callback| self.callbacks.call(callback));
        for waker in wakers {
            // A runtime's business; ours goes on.
            shielded(|| waker.wake());
        }
    }

    /// Takes chunks of a job on. Does not wait.
    pub(crate) fn submit(&self, mut batch: Batch) -> Result<(), PoolError> {
        let mut state = self.lock();
        state.require_open()?;
        // Only chunks that were taken on are waited for.
        batch.first = batch.job.expect(batch.chunks.iter().map(|(_, items)| *items));
        state.progress.total += batch.chunks.iter().map(|(_, items)| u64::from(*items)).sum::<u64>();
        state.waiting.push_back(batch);
        state.dispatch(self);
        self.release(state);
        Ok(())
    }

    /// Cancels the chunks of a job that have not been begun; returns how many items those have.
    pub(crate) fn cancel(&self, job: &Arc<Job>) -> u64 {
        if !self.is_ours() {
            return 0;
        }
        let mut state = self.lock();
        let state_ref = &mut *state;
        let mut cancelled = Vec::new();
        state_ref.waiting.retain_mut(|batch| {
            let is_it = Arc::ptr_eq(&batch.job, job);
            while let Some((chunk, _, items)) = batch.next().filter(|_| is_it) {
                cancelled.push((chunk, items));
                batch.sent += 1;
            }
            !is_it
        });
        for slot in 0..state_ref.slots.len() {
            let ticket = Ticket { slot: slot as u32, generation: state_ref.generations[slot] };
            // It keeps its slot until its message has come out of the queue.
            let is_it = |sent: &Sent| Arc::ptr_eq(&sent.job, job) && sent.items > 0;
            if let Some(sent) = state_ref.slots[slot].as_mut().filter(|sent| is_it(sent)) {
                if self.words.cancel(ticket) {
                    cancelled.push((sent.chunk, sent.items));
                    sent.items = 0;
                }
            }
        }
        let items = cancelled.iter().map(|(_, items)| u64::from(*items)).sum();
        for (chunk, items) in cancelled {
            state.complete(job, chunk, items, Err(TaskError::Cancelled));
        }
        state.finish_if_done(self);
        self.release(state);
        items
    }

    pub(crate) fn progress(&self) -> Progress {
        if self.is_ours() { self.lock().progress } else { Progress::default() }
    }

    /// Finishes what there is, and takes no more.
    pub(crate) fn close(&self) {
        if !self.is_ours() {
            return;
        }
        let mut state = self.lock();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Closed;
            state.finish_if_done(self);
        }
        self.release(state);
    }

    /// Ends all workers at once; what has no outcome fails for this reason. The first reason counts.
    pub(crate) fn end(&self, why: PoolError) {
        if !self.is_ours() {
            return;
        }
        let mut state = self.lock();
        state.end(self, why);
        self.release(state);
    }

    /// True if no further worker is needed.
    pub(crate) fn needs_nobody(&self) -> bool {
        let state = self.lock();
        state.is_finished || state.is_over()
    }

    pub(crate) fn notify_supervisor(&self) {
        // It can fail only if the counter is full: then it has been notified.
        let _ = rustix::io::write(&self.poke, &1_u64.to_ne_bytes());
    }

    /// Called by the last thread.
    pub(crate) fn say_ended(&self) {
        self.lock().has_ended = true;
        self.ended.notify_all();
    }

    /// Waits until all workers have ended; false if they have not at the deadline.
    pub(crate) fn wait_for_end(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        while !state.has_ended {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return false,
                Some(left) => self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        true
    }

    /// The collector's thread: receives replies until END.
    pub(crate) fn collect(&self, replies: &BytesQueue) {
        self.note_own_thread();
        loop {
            let first = match replies.recv_ref() {
                Ok(first) => first,
                // Something that is not ours wrote into the memory. Nobody is to wait for room in the queue.
                Err(why) => {
                    let _ = replies.close();
                    return self.end(PoolError::Damaged(why.to_string()));
                }
            };
            let mut state = self.lock();
            let mut goes_on = state.take_up(self, first);
            for _ in 1..ROUND {
                // Looked at first: an attempt to receive from an empty queue looks for the dead.
                if !goes_on || replies.is_empty() {
                    break;
                }
                let Ok(next) = replies.try_recv_ref() else { break };
                goes_on = state.take_up(self, next);
            }
            state.dispatch(self);
            state.finish_if_done(self);
            self.release(state);
            if !goes_on {
                return;
            }
        }
    }
}

impl State {
    fn require_open(&self) -> Result<(), PoolError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closed => Err(PoolError::Closed),
            Phase::Over(why) => Err(why.clone()),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    fn sent(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Sends as much as keeps the workers busy.
    fn dispatch(&mut self, engine: &Engine) {
        if self.is_over() {
            return;
        }
        while let Some(message) = self.again.pop_front() {
            match self.tasks.try_send(&message) {
                Ok(()) => {}
                // No memory at this moment: at the next reply, or, if there will be none, an outcome.
                Err(SendError::Full(()) | SendError::Unfit(..)) if self.sent() > self.again.len() + 1 => {
                    self.again.push_front(message);
                    return;
                }
                Err(why) => {
                    if let Some((TaskHead { ticket, .. }, arguments)) = TaskHead::parse(&message) {
                        self.fail_unsent(engine, ticket, arguments.len(), &why);
                    }
                }
            }
        }
        let most = AHEAD.min(self.slots.len());
        loop {
            let sent = self.sent();
            let is_enough = sent >= most || self.bytes_ahead >= AHEAD_BYTES;
            if sent >= self.slots.len() || (is_enough && sent >= 2 * engine.processes) {
                return;
            }
            let Some(mut batch) = self.waiting.pop_front() else { return };
            let Some((chunk, arguments, items)) = batch.next() else { continue };
            let Some(slot) = self.free.pop() else { return };
            let ticket = Ticket { slot, generation: self.generations[slot as usize] };
            engine
                .words
                .set(slot, Word { generation: ticket.generation, attempts: 0, holder: Holder::Queued });
            let head = TaskHead { ticket, function: batch.job.function }.to_bytes();
            let sent = send(&self.tasks, &mut self.buffer, &head, arguments);
            let bytes = arguments.len();
            self.slots[slot as usize] = Some(Sent { job: Arc::clone(&batch.job), chunk, items, bytes });
            self.bytes_ahead += bytes;
            batch.sent += 1;
            if batch.sent < batch.chunks.len() {
                self.waiting.push_front(batch);
            }
            if let Err(why) = sent {
                self.fail_unsent(engine, ticket, bytes, &why);
            }
        }
    }

    /// For a message that can not be sent.
    fn fail_unsent(&mut self, engine: &Engine, ticket: Ticket, bytes: usize, why: &SendError<()>) {
        let Some(sent) = self.free_slot(engine, ticket) else { return };
        let error = match why {
            SendError::Unfit((), Unfit::TooLong { most }) => TaskError::Argument(format!(
                "the arguments of the task have {bytes} bytes: more than {most}; make the pool with a larger `message_max`, or the chunks \
                 smaller"
            )),
            SendError::Unfit((), why) => {
                TaskError::Argument(format!("the arguments of the task can not be sent: {why}"))
            }
            why => TaskError::Pool(PoolError::Damaged(why.to_string())),
        };
        self.complete(&sent.job, sent.chunk, sent.items, Err(error));
    }

    /// Notes the outcome of a chunk. One without items has had its own.
    fn complete(&mut self, job: &Job, chunk: u64, items: u32, results: Result<Vec<u8>, TaskError>) {
        if items > 0 {
            self.progress.done += u64::from(items);
            job.complete(chunk, Outcome { items, results }, &mut self.afterwards);
        }
    }

    /// Ends the generation of a slot, if it is this one.
    fn free_slot(&mut self, engine: &Engine, ticket: Ticket) -> Option<Sent> {
        let Ticket { slot, generation } = ticket;
        let at = slot as usize;
        let sent = self.slots.get_mut(at)?.take_if(|_| self.generations[at] == generation)?;
        let generation = generation.wrapping_add(1);
        self.generations[at] = generation;
        engine.words.set(slot, Word { generation, attempts: 0, holder: Holder::Cancelled });
        self.free.push(slot);
        self.bytes_ahead -= sent.bytes;
        Some(sent)
    }

    /// What somebody has said; false at the end.
    fn take_up(&mut self, engine: &Engine, message: BytesMessage<'_>) -> bool {
        let Some((head, content)) = ReplyHead::parse(&message) else { return true };
        let text = || String::from_utf8_lossy(content).into_owned();
        match head.kind {
            RESULTS | UNSENDABLE | SKIPPED => {
                if let Some(sent) = self.free_slot(engine, head.ticket) {
                    let results = match head.kind {
                        RESULTS => Ok(content.to_vec()),
                        SKIPPED => Err(TaskError::Cancelled),
                        _ => Err(TaskError::Result(text())),
                    };
                    drop(message);
                    self.idle_deaths = 0;
                    self.complete(&sent.job, sent.chunk, sent.items, results);
                }
            }
            READY | BYE => {
                self.unready_deaths = 0;
                match self.crew.iter_mut().find(|worker| worker.number == head.worker) {
                    Some(worker) => worker.note(head.kind),
                    None => self.early.push(head),
                }
            }
            INITIALIZER => self.end(engine, PoolError::Initializer(text())),
            DAMAGED => self.end(engine, PoolError::Damaged(text())),
            DIED => {
                let at = self.crew.iter().position(|worker| worker.number == head.worker);
                let worker = at.map(|at| self.crew.swap_remove(at));
                self.early.retain(|early| early.worker != head.worker);
                self.bury(engine, head.worker, worker);
            }
            END => return !self.may_end,
            _ => {}
        }
        true
    }

    /// Settles what a worker has left that has ended. All that it said has been taken up. `None`: its start failed.
    fn bury(&mut self, engine: &Engine, number: u32, worker: Option<Worker>) {
        let pid = worker.as_ref().map_or(0, |worker| worker.process.pid());
        let status = worker.as_ref().and_then(|worker| worker.process.exit_status());
        let status = status.unwrap_or(ExitStatus::Unknown);
        let mut had_task = false;
        for slot in 0..self.slots.len() as u32 {
            let ticket = Ticket { slot, generation: self.generations[slot as usize] };
            let Some(word) = engine.words.get(slot).filter(|_| self.slots[slot as usize].is_some()) else {
                continue;
            };
            if word.generation != ticket.generation || word.holder != Holder::Worker(number) {
                continue;
            }
            had_task = true;
            if word.attempts > engine.on_death.retries() {
                if let Some(sent) = self.free_slot(engine, ticket) {
                    let error = TaskError::WorkerDied { pid, status, attempts: word.attempts };
                    self.complete(&sent.job, sent.chunk, sent.items, Err(error));
                }
            }
        }
        // Who ends by itself, between two tasks, leaves nothing.
        let said_bye = worker.as_ref().is_some_and(|worker| worker.said_bye);
        let died = had_task || !(said_bye || status.success());
        if died {
            self.take_back(engine);
        }
        // Starts that fail are counted by the supervisor.
        let Some(worker) = worker else { return };
        if engine.on_death == OnWorkerDeath::FailPool && died {
            self.end(engine, PoolError::WorkerDied { pid, status });
        }
        if died && worker.is_ready && !had_task {
            self.idle_deaths += 1;
        }
        if !worker.is_ready {
            self.unready_deaths += if status.signal() == Some(9) { KILLED } else { CRASHED };
            if self.unready_deaths >= UNREADY_DEATHS {
                self.end(engine, PoolError::WorkersDie(status.to_string()));
            }
        }
    }

    /// Takes back all messages that nobody has, and puts those of the dead first.
    fn take_back(&mut self, engine: &Engine) {
        let (mut left_behind, mut others) = (Vec::new(), Vec::new());
        while let Ok(message) = self.tasks.try_recv_ref() {
            let list = if message.is_redelivered() { &mut left_behind } else { &mut others };
            list.push(message.to_vec());
        }
        for message in left_behind.into_iter().chain(others) {
            let Some((TaskHead { ticket, .. }, _)) = TaskHead::parse(&message) else { continue };
            let Some(word) =
                engine.words.get(ticket.slot).filter(|word| word.generation == ticket.generation)
            else {
                continue;
            };
            if word.holder == Holder::Cancelled {
                // It has had its outcome.
                self.free_slot(engine, ticket);
            } else {
                self.again.push_back(message);
            }
        }
    }

    /// Tells the workers that nothing more comes, when that is so.
    fn finish_if_done(&mut self, engine: &Engine) {
        let is_done = matches!(self.phase, Phase::Closed)
            && self.waiting.is_empty()
            && self.again.is_empty()
            && self.sent() == 0;
        if is_done && !self.is_finished {
            self.is_finished = true;
            let _ = self.tasks.close();
            engine.notify_supervisor();
        }
    }

    fn end(&mut self, engine: &Engine, why: PoolError) {
        if self.is_over() {
            return;
        }
        self.phase = Phase::Over(why.clone());
        self.is_finished = true;
        for worker in &self.crew {
            let _ = worker.process.kill();
        }
        let _ = self.tasks.close();
        self.again.clear();
        for slot in 0..self.slots.len() as u32 {
            let ticket = Ticket { slot, generation: self.generations[slot as usize] };
            if let Some(sent) = self.free_slot(engine, ticket) {
                self.complete(&sent.job, sent.chunk, sent.items, Err(why.clone().into()));
            }
        }
        for mut batch in std::mem::take(&mut self.waiting) {
            while let Some((chunk, _, items)) = batch.next() {
                batch.sent += 1;
                self.complete(&batch.job, chunk, items, Err(why.clone().into()));
            }
        }
        engine.notify_supervisor();
    }

    /// A worker was started. False if it comes too late, and is not wanted.
    pub(crate) fn hire(&mut self, number: u32, process: &Arc<Process<()>>) -> bool {
        if self.is_finished {
            return false;
        }
        let process = Arc::clone(process);
        let mut worker = Worker { number, process, is_ready: false, said_bye: false };
        let is_its = |early: &ReplyHead| early.worker == number;
        self.early.iter().filter(|early| is_its(early)).for_each(|early| worker.note(early.kind));
        self.early.retain(|early| !is_its(early));
        self.crew.push(worker);
        true
    }
}

impl Worker {
    /// READY or BYE.
    fn note(&mut self, kind: u32) {
        self.is_ready = true;
        self.said_bye |= kind == BYE;
    }
}

/// Sends a message in two parts. There is room for it: no more are sent than there are slots.
fn send(
    tasks: &BytesQueue,
    buffer: &mut Vec<u8>,
    head: &[u8],
    arguments: &[u8],
) -> Result<(), SendError<()>> {
    let bytes = head.len() + arguments.len();
    if bytes <= tasks.inline() {
        buffer.clear();
        buffer.extend_from_slice(head);
        buffer.extend_from_slice(arguments);
        return tasks.try_send(buffer);
    }
    let mut loan = tasks.loan(bytes)?;
    loan[..head.len()].copy_from_slice(head);
    loan[head.len()..].copy_from_slice(arguments);
    loan.try_send().map_err(|unsent| unsent.map(drop))
}
