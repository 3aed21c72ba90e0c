//! loom in the place of the machine: atomics, sleeping and dying, for model tests only.
//!
//! loom's atomics can not live in an mmap, so algorithms are checked here on words in a `Vec` or `Arc`. Two
//! configurations, because loom 0.7 may explore too little when a thread loads what it stored itself:
//! `--cfg crossproc_model` has real loads (stale values are explored), `--cfg crossproc_model_rmw` beside it
//! issues loads as `fetch_add(0)` and stores as `swap` (interleavings are explored). Model tests print and
//! assert their number of executions in both.
//!
//! Sleeping is real here: a missing wake-up is a deadlock, which loom reports. The slices of a sleep that also
//! watches a token never end (the wake-ups alone must do); the short ones on one word end when a holder's window does.

use core::cell::Cell;

use loom::sync::{Arc, Condvar, Mutex};
use std::collections::BTreeSet;

use crate::{Deadline, Liveness, OWNER_DIED, Ordering, Owner, Pending, Platform, TID, WAITERS};

pub use loom::sync::atomic::fence;

/// In the model there is no cheaper full fence.
pub fn fence_after_rmw() {
    fence(Ordering::SeqCst);
}

/// In the model both sides of an asymmetric fence are a full one.
pub fn light_fence() {
    fence(Ordering::SeqCst);
}

/// A spin lets the others run.
pub fn pause() {
    loom::thread::yield_now();
}

/// The panic payload of a thread that was killed by its fuse.
#[derive(Debug)]
pub struct Killed;

loom::thread_local! {
    static FUSE: Cell<u32> = Cell::new(u32::MAX);
}

/// One shared access: kills the thread if its fuse has burnt down.
fn step() {
    FUSE.with(|fuse| match fuse.get() {
        u32::MAX => {}
        0 => {
            fuse.set(u32::MAX);
            std::panic::resume_unwind(Box::new(Killed));
        }
        left => fuse.set(left - 1),
    });
}

macro_rules! atomic {
    ($name:ident, $inner:ident, $int:ty) => {
        /// loom's atomic under the machine's name.
        #[derive(Debug)]
        pub struct $name(loom::sync::atomic::$inner);

        impl Default for $name {
            fn default() -> Self {
                Self::new(0)
            }
        }

        #[allow(missing_docs)]
        impl $name {
            pub fn new(value: $int) -> Self {
                Self(loom::sync::atomic::$inner::new(value))
            }
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $int {
                step();
                if cfg!(crossproc_model_rmw) {
                    let order = match order {
                        Ordering::Relaxed => Ordering::Relaxed,
                        _ => Ordering::Acquire,
                    };
                    self.0.fetch_add(0, order)
                } else {
                    self.0.load(order)
                }
            }
            #[track_caller]
            pub fn store(&self, value: $int, order: Ordering) {
                step();
                if cfg!(crossproc_model_rmw) {
                    self.0.swap(value, order);
                } else {
                    self.0.store(value, order);
                }
            }
            #[track_caller]
            pub fn swap(&self, value: $int, order: Ordering) -> $int {
                step();
                self.0.swap(value, order)
            }
            #[track_caller]
            pub fn compare_exchange(
                &self,
                expected: $int,
                value: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                step();
                self.0.compare_exchange(expected, value, success, failure)
            }
            #[track_caller]
            pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                step();
                self.0.fetch_add(value, order)
            }
            #[track_caller]
            pub fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                step();
                self.0.fetch_and(value, order)
            }
            #[track_caller]
            pub fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                step();
                self.0.fetch_or(value, order)
            }
        }
    };
}
atomic!(AtomicU32, AtomicU32, u32);
atomic!(AtomicU64, AtomicU64, u64);

/// Two words that can be exchanged together: the halves of one. So neither may need more than 32 bits, but for bit 63, which stands
/// at bit 31.
#[derive(Debug, Default)]
pub struct AtomicPair {
    both: AtomicU64,
    /// What the newest state of `both` has in its second half; threads change only where loom has a step.
    second: std::sync::Mutex<u64>,
}

fn packed(first: u64, second: u64) -> u64 {
    let first = (first >> 63) << 31 | first & (u64::MAX >> 1);
    assert!(first >> 32 == 0 && second >> 32 == 0, "a model has small numbers");
    first << 32 | second
}

fn first_of(both: u64) -> u64 {
    (both >> 63) << 63 | (both >> 32) & (u64::from(u32::MAX) >> 1)
}

#[allow(missing_docs)]
impl AtomicPair {
    pub const EXCHANGES: bool = true;

    pub fn expect_exchange(&self) {}

    fn newest_second(&self) -> u64 {
        *self.second.lock().expect("not poisoned")
    }

    #[track_caller]
    pub fn load_first(&self, order: Ordering) -> u64 {
        first_of(self.both.load(order))
    }

    #[track_caller]
    pub fn load_second(&self, order: Ordering) -> u64 {
        self.both.load(order) & u64::from(u32::MAX)
    }

    #[track_caller]
    pub fn store_first(&self, value: u64, order: Ordering) {
        self.both.store(packed(value, self.newest_second()), order);
    }

    #[track_caller]
    pub fn compare_exchange_first(
        &self,
        expected: u64,
        value: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        // Only together with the first does the second change: if this one is not the newest, neither is `expected`.
        let second = self.newest_second();
        self.both
            .compare_exchange(packed(expected, second), packed(value, second), success, failure)
            .map(first_of)
            .map_err(first_of)
    }

    #[track_caller]
    pub fn compare_exchange(&self, expected: [u64; 2], values: [u64; 2]) -> bool {
        let ([first, second], [new_first, new_second]) = (expected, values);
        let done = self
            .both
            .compare_exchange(
                packed(first, second),
                packed(new_first, new_second),
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if done {
            *self.second.lock().expect("not poisoned") = new_second;
        }
        done
    }
}

impl AtomicU32 {
    /// What the kernel sees: never stale, and no step of the calling process.
    fn newest(&self) -> u32 {
        self.0.fetch_add(0, Ordering::AcqRel)
    }
}

/// The kernel of one model run: who sleeps on what, who is dead, and the tokens.
#[derive(Debug)]
pub struct Kernel {
    sleepers: Mutex<Vec<Sleeper>>,
    changed: Condvar,
    dead: Mutex<[bool; 8]>,
    /// Threads between `hold` and `unhold`.
    holding: Mutex<[bool; 8]>,
    tokens: [AtomicU32; 8],
    /// Threads that there are or were.
    members: Mutex<[bool; 8]>,
    comings: AtomicU32,
}

#[derive(Debug)]
struct Sleeper {
    thread: u32,
    words: Vec<usize>,
    woken: bool,
}

impl Kernel {
    fn is_member(&self, tid: u32) -> bool {
        self.members.lock().expect("not poisoned")[tid as usize]
    }

    /// A kernel for threads 1 to 7, each a process of its own.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            sleepers: Mutex::new(Vec::new()),
            changed: Condvar::new(),
            dead: Mutex::new([false; 8]),
            holding: Mutex::new([false; 8]),
            tokens: core::array::from_fn(|tid| AtomicU32::new(tid as u32 | WAITERS)),
            members: Mutex::new([false; 8]),
            comings: AtomicU32::new(0),
        })
    }
}

/// A process with one thread, in the model.
#[derive(Debug)]
pub struct Process {
    kernel: Arc<Kernel>,
    tid: u32,
    pending: Cell<usize>,
}

/// Stands for the second word of those who sleep while a holder is between two steps; their slice is short, so
/// they are woken when such a window ends.
const WINDOW: usize = usize::MAX;

fn address(word: &AtomicU32) -> usize {
    core::ptr::from_ref(word).addr()
}

impl Process {
    /// Thread `tid` (1 to 7), alone in its process.
    #[must_use]
    pub fn new(kernel: &Arc<Kernel>, tid: u32) -> Self {
        kernel.members.lock().expect("not poisoned")[tid as usize] = true;
        Self { kernel: Arc::clone(kernel), tid, pending: Cell::new(0) }
    }

    /// Runs `f` and kills the process before its `accesses`-th shared access; the kernel then does its duty for
    /// `words`, those that could be announced. `Some` if `f` ended before the fuse had burnt down.
    pub fn run_until_killed<R>(
        &self,
        accesses: u32,
        words: &[&AtomicU32],
        f: impl FnOnce() -> R,
    ) -> Option<R> {
        FUSE.with(|fuse| fuse.set(accesses));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        FUSE.with(|fuse| fuse.set(u32::MAX));
        match result {
            Ok(done) => Some(done),
            Err(panic) if panic.is::<Killed>() => {
                self.die(words);
                None
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn set_holding(&self, holding: bool) {
        self.kernel.holding.lock().expect("not poisoned")[self.tid as usize] = holding;
        self.end_windows();
    }

    fn end_windows(&self) {
        let mut sleepers = self.kernel.sleepers.lock().expect("not poisoned");
        for sleeper in sleepers.iter_mut().filter(|s| s.words.contains(&WINDOW)) {
            sleeper.woken = true;
        }
        self.kernel.changed.notify_all();
    }

    /// What the kernel does when this process dies: the announced word first, then the token, then the proof.
    pub fn die(&self, words: &[&AtomicU32]) {
        if let Some(word) = words.iter().find(|word| address(word) == self.pending.get()) {
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                if seen & TID == 0 {
                    self.wake(word, 1);
                    break;
                }
                if seen & TID != self.tid {
                    break;
                }
                let dead = seen & WAITERS | OWNER_DIED;
                match word.compare_exchange(seen, dead, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        if seen & WAITERS != 0 {
                            self.wake(word, 1);
                        }
                        break;
                    }
                    Err(now) => seen = now,
                }
            }
        }
        let token = &self.kernel.tokens[self.tid as usize];
        token.swap(OWNER_DIED | WAITERS, Ordering::AcqRel);
        self.wake(token, 1);
        // Buried with the proof, in one step: who sees the new number must also see the proof. Nobody is woken by that: the
        // token has woken one, who wakes the rest.
        let mut dead = self.kernel.dead.lock().expect("not poisoned");
        self.kernel.comings.0.fetch_add(1, Ordering::AcqRel);
        dead[self.tid as usize] = true;
        drop(dead);
        self.end_windows();
    }
}

impl Platform for Process {
    fn tid(&self) -> u32 {
        self.tid
    }
    fn announce(&self, word: &AtomicU32) -> Pending {
        let now = address(word);
        Pending { before: self.pending.replace(now), now }
    }
    fn retract(&self, pending: Pending) {
        self.pending.set(pending.before);
    }
    fn hold_announced(&self, _: &AtomicU32) {}
    fn hold(&self, _: &AtomicU32) {
        self.set_holding(true);
    }
    fn keep(&self, _: &AtomicU32) {}
    fn unhold(&self, _: &AtomicU32) {
        self.set_holding(false);
    }

    fn wait(&self, word: &AtomicU32, expected: u32, also: &[(&AtomicU32, u32)], until: Option<Deadline>) {
        let mut sleepers = self.kernel.sleepers.lock().expect("not poisoned");
        let window = also.is_empty() && until.is_some();
        if window && self.kernel.holding.lock().expect("not poisoned")[(expected & TID & 7) as usize] {
            drop(sleepers);
            pause(); // the window that the caller saw is over, or will be when the holder has run
            return;
        }
        // The kernel compares under its own lock.
        let changed = |&(word, expected): &(&AtomicU32, u32)| word.newest() != expected;
        if changed(&(word, expected)) || also.iter().any(changed) {
            return;
        }
        let others = also.iter().map(|(word, _)| address(word)).chain(window.then_some(WINDOW));
        let words = others.chain([address(word)]).collect();
        sleepers.push(Sleeper { thread: self.tid, words, woken: false });
        loop {
            let at = sleepers.iter().position(|s| s.thread == self.tid).expect("we sleep");
            if sleepers[at].woken {
                sleepers.remove(at);
                return;
            }
            sleepers = self.kernel.changed.wait(sleepers).expect("not poisoned");
        }
    }

    fn wake(&self, word: &AtomicU32, count: u32) -> u32 {
        let mut sleepers = self.kernel.sleepers.lock().expect("not poisoned");
        let mut woken = 0;
        for sleeper in sleepers.iter_mut().filter(|s| !s.woken && s.words.contains(&address(word))) {
            if woken == count {
                break;
            }
            sleeper.woken = true;
            woken += 1;
        }
        self.kernel.changed.notify_all();
        woken
    }

    fn now(&self) -> Deadline {
        Deadline(0)
    }
    fn thread_exists(&self, tid: u32) -> bool {
        !self.kernel.dead.lock().expect("not poisoned")[tid as usize & 7]
    }
    fn spins(&self) -> u32 {
        0
    }
}

impl Liveness for Process {
    fn me(&self) -> Owner {
        Owner::new(self.tid as u16, 1).expect("generation 1 is an identity")
    }
    fn is_dead(&self, owner: Owner) -> bool {
        self.kernel.dead.lock().expect("not poisoned")[usize::from(owner.slot()) & 7]
    }
    fn token(&self, owner: Owner) -> Option<(&AtomicU32, u32)> {
        let token = &self.kernel.tokens[usize::from(owner.slot()) & 7];
        Some((token, token.load(Ordering::Acquire)))
    }
    fn await_proof(&self, owner: Owner, _: Option<Deadline>) {
        let mut sleepers = self.kernel.sleepers.lock().expect("not poisoned");
        while !self.is_dead(owner) {
            sleepers = self.kernel.changed.wait(sleepers).expect("not poisoned");
        }
    }

    fn comings(&self) -> u32 {
        self.kernel.comings.newest()
    }

    fn wait_among_peers(&self, word: &AtomicU32, expected: u32, comings: u32, _: Option<Deadline>) {
        let mut tokens = vec![(&self.kernel.comings, comings)];
        for tid in (1..8).filter(|&tid| tid != self.tid && self.kernel.is_member(tid)) {
            let owner = Owner::new(tid as u16, 1).expect("generation 1 is an identity");
            let token = &self.kernel.tokens[tid as usize];
            let value = token.newest();
            if self.is_dead(owner) {
                continue; // buried
            }
            if value & OWNER_DIED != 0 {
                self.wake(token, u32::MAX);
                return self.await_proof(owner, None);
            }
            tokens.push((token, value));
        }
        self.wait(word, expected, &tokens, None);
        for (token, alive) in tokens.into_iter().skip(1) {
            if token.newest() != alive {
                self.wake(token, u32::MAX);
            }
        }
    }

    fn is_alone(&self) -> bool {
        let dead = self.kernel.dead.lock().expect("not poisoned");
        let mut others = (1..8).filter(|&tid| tid != self.tid && self.kernel.is_member(tid)).peekable();
        others.peek().is_some() && others.all(|tid| dead[tid as usize])
    }
}

/// Runs the model with at most `bound` preemptions, prints how many executions there were, and returns the outcomes
/// that were seen.
///
/// # Panics
///
/// If there were fewer than `floor`: loom can pass without having explored anything.
pub fn explore(
    name: &str,
    floor: usize,
    bound: usize,
    f: impl Fn(&mut Vec<u64>) + Send + Sync + 'static,
) -> BTreeSet<Vec<u64>> {
    // The machine's own: what is counted is no part of the model.
    let explored = std::sync::Arc::new(std::sync::Mutex::new((0, BTreeSet::new())));
    let noted = std::sync::Arc::clone(&explored);
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.max_branches = 10_000;
    model.check(move || {
        let mut outcome = Vec::new();
        f(&mut outcome);
        let mut noted = noted.lock().expect("not poisoned");
        noted.0 += 1;
        noted.1.insert(outcome);
    });
    let (runs, seen) = explored.lock().expect("not poisoned").clone();
    println!("model {name}: {runs} executions");
    assert!(runs >= floor, "{name} explored {runs} executions, expected at least {floor}");
    seen
}
