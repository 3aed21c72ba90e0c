//! The protocol of the robust lock as an explicit-state model: every interleaving of its single shared
//! accesses, with deaths, stops, reused thread ids and a kernel that may fail to do its part.
//!
//! # The protocol
//!
//! A lock is four words: `word` (thread id, DIED and WAITERS, in the kernel's robust-futex format), `owner`
//! (which participant), `state` (data inconsistent), and `depth`, which only its holder ever touches.
//! Each thread has one private word that the kernel reads when it dies, the *announcement* (the robust
//! list's `list_op_pending`).
//!
//! ```text
//! word          owner            meaning
//! 0, WAITERS    any              free
//! DIED          any              its holder died: free to take; a report is owed if owner names somebody
//! T             Nobody           T has just taken it, or is about to give it back: T is announced
//! T             Held(P)          held by thread T of participant P
//! T             Recovering(S)    the participant of T is proven dead; S is about to replace T in the word
//! T             Suspecting(S)    as Nobody; S has reason to believe that T is gone, and has yet to prove it
//! T, DIED       any              T took over from a dead holder and has not yet put its name in owner
//! ```
//!
//! `Recovering` and `Suspecting` are tickets: one recoverer at a time, so that none of them can act on an
//! old proof after another one has recovered the lock and a newborn thread has taken it under the old id.
//! They are two because they promise different things: `Recovering` replaces only the name of a participant
//! that is proven dead, so the thread in a word without DIED is dead as well. `Suspecting` replaces an empty
//! owner, which a living thread leaves behind for a moment whenever it takes or releases the lock.
//!
//! # The model
//!
//! One [`State`] is all shared memory, every thread with its next step ([`At`]), every process with its
//! [`Life`], and what the checks must remember. One step is one shared access, or one thing that the kernel
//! does. Memory is sequentially consistent here: the orderings are the business of the loom models.
//!
//! A process is killed at any point. Its threads may run on until each of them has left, which is when the
//! kernel acts on its announcement; the token of the process is marked before or after that; only at the end
//! is the process proven dead. Which sleeper a wake reaches is left open, and a sleeper that was reached may
//! be killed or stopped before it runs.
//!
//! # What is checked
//!
//! * Nobody loses a lock while its thread lives, and no two threads hold it.
//! * `OwnerDied` is told to the next owner exactly when the last one died with its name in `owner`, and
//!   again until an owner marks the data consistent.
//! * From every state everybody can still finish, without help from a deadline or from further deaths.
//!   Where that needs the slice (sleeps are cut, and everything is looked at again), the configuration
//!   names the reasons, the [`Stranding`]s; it must show exactly these, and with slices everybody finishes.
//! * Every planted [`Bug`] is caught. (Three changes are none, the model says: marking the data inconsistent
//!   after DIED is cleared, since the name in `owner` keeps the report owed; replacing a dead thread without
//!   DIED, since the ticket is still in `owner`; and leaving WAITERS set, which only costs system calls.)
//!
//! A thread id that is reused twice while a suspecting recoverer stands between its last proof and its
//! compare-and-swap is beyond this model, and beyond the protocol.
//!
//! `TRACE=1` prints how each stranding comes about.
#![cfg(not(crossproc_model))]
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

type Process = u8;
const MOST: usize = 4;

// ---------------------------------------------------------------------------------------------------------
// State

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Word {
    tid: u8,
    died: bool,
    waiters: bool,
}

const FREE: Word = Word { tid: 0, died: false, waiters: false };
const FREE_WITH_WAITERS: Word = Word { waiters: true, ..FREE };

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum Owner {
    #[default]
    Nobody,
    Held(Process),
    Recovering(Process),
    Suspecting(Process),
}

impl Owner {
    fn process(self) -> Option<Process> {
        match self {
            Self::Nobody => None,
            Self::Held(p) | Self::Recovering(p) | Self::Suspecting(p) => Some(p),
        }
    }

    /// Whoever finds the lock DIED with this owner is told so.
    fn is_owed_a_report(self) -> bool {
        matches!(self, Self::Held(_) | Self::Recovering(_))
    }
}

/// The next step of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum At {
    /// Its thread id still belongs to somebody else.
    Unborn,
    /// Has ended, or was killed and the kernel is done with it.
    Gone,

    #[default]
    Outside,
    TakeFree,
    Look,
    Take,
    AskToBeWoken,
    ReadOwner,
    ProveParticipantDead,
    ProveThreadGone,
    Sleep,
    Asleep,
    Awake,
    PassOn,

    LookAgain,
    TakeTicket,
    LookUnderTicket,
    ProveThreadGoneAgain,
    Replace,
    ReturnTicket,

    SeeWhoDied,
    MarkInconsistent,
    WriteOwner,
    ClearDied,
    Return,

    Inside,

    Unlock,
    ClearOwner,
    Release,
    ReleaseContended,
    WakeOne,
    ForgetWaiters,
    /// Only as a planted bug.
    ClearOwnerLate,
    Leave,
}

impl At {
    /// From the step after the word became ours to the step that gives it away.
    fn holds(self) -> bool {
        use At::*;
        matches!(
            self,
            SeeWhoDied
                | MarkInconsistent
                | WriteOwner
                | ClearDied
                | Return
                | Inside
                | Unlock
                | ClearOwner
                | Release
                | ReleaseContended
        )
    }

    /// Holds, and `owner` says so.
    fn is_named(self) -> bool {
        matches!(self, At::ClearDied | At::Return | At::Inside | At::Unlock | At::ClearOwner)
    }

    fn has_ticket(self) -> bool {
        matches!(self, At::LookUnderTicket | At::ProveThreadGoneAgain | At::Replace | At::ReturnTicket)
    }

    fn is_over(self) -> bool {
        matches!(self, At::Unborn | At::Gone)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Thread {
    at: At,
    laps: u8,
    announced: bool,
    /// Has been asleep since it last came for the lock.
    slept: bool,
    /// `word` and `owner` as it last saw them.
    word: Word,
    owner: Owner,
    /// Whose token it sleeps on, beside the word.
    watches: Option<Process>,
    /// Was told `OwnerDied` and has not marked the data consistent.
    told: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Life {
    #[default]
    Alive,
    /// For ever, as far as the others can tell.
    Stopped,
    Dying,
    /// Dying, and its token says so.
    Suspected,
    /// Proven: no thread of it will ever run again.
    Dead,
    /// Proven, but the kernel never marked its token.
    DeadUnmarked,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    word: Word,
    owner: Owner,
    inconsistent: bool,
    threads: [Thread; MOST],
    lives: [Life; MOST],
    /// What the environment may still do.
    kills: u8,
    stops: u8,
    misses: u8,
    /// Ghosts, for the checks: the next owner must be told; the kernel has failed to mark a lock or a token.
    report_owed: bool,
    missed: bool,
}

// ---------------------------------------------------------------------------------------------------------
// Configurations

#[derive(Clone, Copy)]
struct Role {
    process: Process,
    tid: u8,
    laps: u8,
    /// Is born when the first thread with its id has gone.
    newborn: bool,
}

const fn thread(process: Process, tid: u8, laps: u8) -> Role {
    Role { process, tid, laps, newborn: false }
}

const fn newborn(process: Process, tid: u8, laps: u8) -> Role {
    Role { process, tid, laps, newborn: true }
}

/// How long a thread stays announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Announced {
    /// While it acquires and while it releases: what an inner lock has, when several are held.
    InWindows,
    /// From the first step of `lock` to the last of `unlock`: the outermost lock of a thread.
    Throughout,
}

/// What is needed for everybody to go on, but no wake-up brings: the sleeper ...
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Stranding {
    /// ... looked while `owner` named nobody, so that it watches no token.
    WatchesNobody,
    /// ... watches the token of an owner that has since handed the lock on.
    WatchesFormerOwner,
    /// ... watches the right token, but the one sleeper that the kernel woke died before it passed that on.
    PassingOnDied,
    /// ... is owed a wake-up by a process that was stopped while it had it.
    WakeUpStopped,
    /// ... is owed a wake-up by one that was killed while it had it, and the kernel does not make up for it.
    WakeUpDied,
    /// ... waits for a mark that the kernel did not make.
    KernelMissed,
}

#[derive(Clone, Copy)]
struct Config {
    name: &'static str,
    roles: &'static [Role],
    /// How many of which processes may be killed, and stopped; how often the kernel fails to act on a death.
    kills: (u8, &'static [Process]),
    stops: (u8, &'static [Process]),
    misses: u8,
    /// Threads of a killed process may run on for a while.
    lingering: bool,
    slices: bool,
    /// Any thread that is about to sleep may find its deadline passed.
    deadlines: bool,
    /// An owner that was told may leave without marking the data consistent.
    careless: bool,
    announced: Announced,
    /// Before Linux 6.2 the kernel passed on a lost wake-up only if the whole word was 0.
    old_kernel: bool,
    /// Changes the start, where everybody is outside.
    begins: fn(&mut State),
    needs_slice: &'static [Stranding],
    shows: &'static [Outcome],
    at_least: usize,
}

const PLAIN: Config = Config {
    name: "",
    roles: &[],
    kills: (0, &[]),
    stops: (0, &[]),
    misses: 0,
    lingering: false,
    slices: false,
    deadlines: false,
    careless: false,
    announced: Announced::InWindows,
    old_kernel: false,
    begins: |_| (),
    needs_slice: &[],
    shows: &[],
    at_least: 0,
};

macro_rules! outcomes {
    ($($name:ident $text:literal)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Outcome { $($name),* }
        const OUTCOMES: &[(Outcome, &str)] = &[$((Outcome::$name, $text)),*];
    };
}

outcomes! {
    Slept "a thread slept"
    MarkedByKernel "the kernel marked a lock DIED"
    PassedOnByKernel "the kernel passed on a wake-up of the dead"
    Told "an owner was told OwnerDied"
    NotTold "a lock was taken from the dead with no report owed"
    Recovered "a lock was taken over on a proof"
    Suspected "a lock was taken over because its thread was gone"
    DiedWithTicket "a recoverer died with its ticket"
    TicketReplaced "the ticket of a dead recoverer was replaced"
    TicketReturned "a ticket was returned"
    DiedTakingOver "a thread died between taking a dead lock and naming itself"
    WokenKilled "a woken sleeper was killed"
    Waited "a suspected owner was not yet proven dead"
    RanOn "a thread of a dying process released the lock"
    NewbornFoundItself "a newborn found its own thread id in the word"
    NewbornInside "a newborn got the lock"
    GaveUp "a deadline passed"
    Forgot "a release found nobody asleep and cleared WAITERS"
    ToldAgain "an owner was told of data that its predecessor left inconsistent"
}

// ---------------------------------------------------------------------------------------------------------
// Planted bugs

macro_rules! bugs {
    ($($name:ident $text:literal is $wrong:ident in $config:literal)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Bug { $($name),* }
        const BUGS: &[(Bug, &str, Wrong, &str)] = &[$((Bug::$name, $text, Wrong::$wrong, $config)),*];
    };
}

bugs! {
    AcquireUnannounced "not announced while acquiring"
        is LostWakeUp in "two processes, both killed, threads run on"
    ReleaseUnannounced "not announced while releasing"
        is LostWakeUp in "two processes, both killed, threads run on"
    SleepUnannounced "announcement withdrawn for the sleep"
        is LostWakeUp in "announced throughout, two killed"
    OwnerClearedLate "owner cleared after the word"
        is NothingToReport in "three processes, two killed, slices"
    ReleaseToZero "contended release stores 0 instead of WAITERS"
        is LostWakeUp in "announced throughout, two killed"
    SleeperForgets "acquires without WAITERS after sleeping"
        is LostWakeUp in "a late clearing of WAITERS, deadlines pass"
    ForgetByStore "WAITERS cleared by a store after a wake that reached nobody"
        is Robbed in "three processes, nobody killed"
    WakeBeforeRelease "wakes before it releases"
        is LostWakeUp in "three processes, nobody killed"
    SleepUnchecked "sleeps without comparing the word"
        is LostWakeUp in "three processes, nobody killed"
    TokenUnchecked "sleeps without comparing the token"
        is LostWakeUp in "the holder is killed"
    TokenUnwatched "does not watch the owner's token"
        is LostWakeUp in "the holder is killed"
    OwnTokenWatched "watches the token of its own process"
        is LostWakeUp in "two threads of a killed process run on"
    NoPassOn "does not wake the others that watch a marked token"
        is LostWakeUp in "the holder is killed, deadlines pass"
    GivesUpUnasked "gives up without having set WAITERS, though it was woken"
        is LostWakeUp in "a late clearing of WAITERS, deadlines pass"
    GivesUpAwake "looks at its deadline when it wakes, not when it would sleep"
        is LostWakeUp in "the holder is killed, deadlines pass"
    TokenIsProof "takes a marked token for a proof of death"
        is Robbed in "two processes, both killed, threads run on"
    TokenIsAsked "asks for a proof of death only when the token is marked"
        is NeverFinishes in "the kernel misses two, two killed"
    LookAgainEarly "looks at the word again before the proof, and once more under its ticket"
        is Robbed in "a newborn takes the lock of one that was seen alive"
    NoLookAgain "does not look at the word again between proof and ticket"
        is Robbed in "an owner is killed while another looks"
    NoTicket "takes over without a ticket"
        is Robbed in "a newborn has the id of the dead holder"
    TicketOverTheLiving "suspects when the word has changed, whatever owner says"
        is Robbed in "a recoverer suspects in vain and is killed"
    TicketKept "does not return a ticket it cannot use"
        is NeverFinishes in "three processes, two killed, slices"
    TicketForEver "does not replace the ticket of a dead recoverer"
        is NeverFinishes in "three processes, two killed, slices"
    OneKindOfTicket "the ticket for an empty owner is Recovering too"
        is Robbed in "a recoverer suspects in vain and is killed"
    NoLookUnderTicket "suspects, and does not look at the word again under its ticket"
        is Robbed in "a newborn has an id the kernel missed"
    NoSecondProof "suspects, and does not prove again that the thread is gone"
        is Robbed in "a newborn has an id the kernel missed"
    OwnIdIsAlive "takes its own thread id in the word for a living thread"
        is NeverFinishes in "a newborn has an id the kernel missed"
    DiedDropped "takes a DIED word without keeping DIED until owner is written"
        is Robbed in "three processes, one killed"
    ClearByStore "clears DIED by a store"
        is LostWakeUp in "announced throughout, two killed"
    NeverMarked "does not mark the data inconsistent"
        is DeathUnreported in "the told do not repair, two killed"
    EveryDeathReported "reports deaths that left no name in owner"
        is NothingToReport in "three processes, one killed"
}

/// What must never be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wrong {
    Robbed,
    TwoInside,
    DeathUnreported,
    NothingToReport,
    LostWakeUp,
    NeverFinishes,
}

// ---------------------------------------------------------------------------------------------------------
// Steps

#[derive(Clone, Copy)]
enum Action {
    Step(usize),
    Deadline(usize),
    Slice(usize),
    Kill(Process),
    Stop(Process),
    Exit(usize),
    ExitMissed(usize),
    MarkToken(Process),
    TokenMissed(Process),
    Prove(Process),
    Birth(usize),
}

impl Action {
    /// Happens by itself, sooner or later.
    fn is_progress(self) -> bool {
        matches!(self, Self::Step(_) | Self::Slice(_) | Self::Exit(_) | Self::MarkToken(_) | Self::Prove(_))
    }
}

struct Model<'a> {
    config: &'a Config,
    bug: Option<Bug>,
    moves: Vec<(Action, State)>,
    seen: u32,
    wrong: Option<Wrong>,
}

impl Model<'_> {
    fn start(&self) -> State {
        let mut s = State {
            kills: self.config.kills.0,
            stops: self.config.stops.0,
            misses: self.config.misses,
            ..State::default()
        };
        for t in &mut s.threads {
            t.at = At::Gone;
        }
        for (t, role) in s.threads.iter_mut().zip(self.config.roles) {
            *t = Thread {
                at: if role.newborn { At::Unborn } else { At::Outside },
                laps: role.laps,
                ..Thread::default()
            };
        }
        (self.config.begins)(&mut s);
        s
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn note(&mut self, outcome: Outcome) {
        self.seen |= 1 << outcome as u32;
    }

    fn process(&self, t: usize) -> Process {
        self.config.roles[t].process
    }

    fn tid(&self, t: usize) -> u8 {
        self.config.roles[t].tid
    }

    fn threads(&self) -> std::ops::Range<usize> {
        0..self.config.roles.len()
    }

    fn proven_dead(&self, s: &State, p: Process) -> bool {
        let life = s.lives[p as usize];
        match life {
            Life::Dead => true,
            Life::DeadUnmarked => !self.has(Bug::TokenIsAsked),
            Life::Suspected => self.has(Bug::TokenIsProof),
            _ => false,
        }
    }

    fn token_is_marked(s: &State, p: Process) -> bool {
        matches!(s.lives[p as usize], Life::Suspected | Life::Dead)
    }

    /// Whether the id in the word belongs to a thread other than `t`. (If it is the id of `t`, which does
    /// not hold the lock, then the one that took it is gone.)
    fn another_thread_has(&self, s: &State, tid: u8, t: usize) -> bool {
        (self.has(Bug::OwnIdIsAlive) || self.tid(t) != tid)
            && self.threads().any(|o| self.tid(o) == tid && !s.threads[o].at.is_over())
    }

    /// Every state that can follow.
    fn explore(&mut self, s: &State) {
        self.moves.clear();
        for t in self.threads() {
            let (p, at) = (self.process(t), s.threads[t].at);
            match (s.lives[p as usize], at) {
                (_, At::Gone) | (Life::Stopped | Life::Dead | Life::DeadUnmarked, _) => {}
                (Life::Alive, At::Unborn) => {
                    let predecessor = self
                        .threads()
                        .find(|&o| self.tid(o) == self.tid(t))
                        .expect("a newborn has a predecessor");
                    if s.threads[predecessor].at == At::Gone {
                        let mut n = *s;
                        n.threads[t].at = At::Outside;
                        self.moves.push((Action::Birth(t), n));
                    }
                }
                (Life::Alive, At::Asleep) => {
                    if self.config.slices {
                        let mut n = *s;
                        n.threads[t].at = At::Awake;
                        self.moves.push((Action::Slice(t), n));
                    }
                }
                (Life::Alive, _) => self.step(s, t),
                (Life::Dying | Life::Suspected, _) => {
                    if self.config.lingering && !matches!(at, At::Asleep | At::Awake | At::Unborn) {
                        self.step(s, t);
                    }
                    self.exit(s, t, Action::Exit(t));
                }
            }
        }
        for p in 0..MOST as Process {
            self.fate(s, p);
        }
    }

    /// What may happen to a process: killed, stopped, its token marked, proven dead.
    fn fate(&mut self, s: &State, p: Process) {
        let i = p as usize;
        let at_stake = self.threads().any(|t| self.process(t) == p && !s.threads[t].at.is_over());
        match s.lives[i] {
            Life::Alive | Life::Stopped if at_stake && s.kills > 0 && self.config.kills.1.contains(&p) => {
                let mut n = *s;
                n.kills -= 1;
                n.lives[i] = Life::Dying;
                match self.threads().find(|&t| self.process(t) == p && !s.threads[t].at.is_over()) {
                    Some(t) if !self.config.lingering => self.exit(&n, t, Action::Kill(p)),
                    _ => self.moves.push((Action::Kill(p), n)),
                }
            }
            Life::Dying => {
                let mut n = *s;
                n.lives[i] = Life::Suspected;
                self.wake_one(Action::MarkToken(p), n, |t| t.watches == Some(p), |n, _| *n);
                if s.misses > 0 && !at_stake {
                    let mut n = *s;
                    n.misses -= 1;
                    n.missed = true;
                    n.lives[i] = Life::DeadUnmarked;
                    self.moves.push((Action::TokenMissed(p), n));
                }
            }
            Life::Suspected if !at_stake => {
                let mut n = *s;
                n.lives[i] = Life::Dead;
                self.moves.push((Action::Prove(p), n));
            }
            _ => {}
        }
        if s.lives[i] == Life::Alive && at_stake && s.stops > 0 && self.config.stops.1.contains(&p) {
            let mut n = *s;
            n.stops -= 1;
            n.lives[i] = Life::Stopped;
            self.moves.push((Action::Stop(p), n));
        }
    }

    /// The kernel wakes any one sleeper that fits; `then` is told whether there was one.
    fn wake_one(
        &mut self,
        action: Action,
        s: State,
        fits: impl Fn(&Thread) -> bool,
        then: impl Fn(&mut State, bool) -> State,
    ) {
        let mut nobody = true;
        for t in self.threads() {
            if s.threads[t].at == At::Asleep && fits(&s.threads[t]) {
                nobody = false;
                let mut n = s;
                n.threads[t].at = At::Awake;
                let n = then(&mut n, true);
                self.moves.push((action, n));
            }
        }
        if nobody {
            let mut n = s;
            let n = then(&mut n, false);
            self.moves.push((action, n));
        }
    }

    /// A killed thread ends, and the kernel acts on its announcement.
    fn exit(&mut self, s: &State, t: usize, action: Action) {
        let me = s.threads[t];
        let mut n = *s;
        n.threads[t] = Thread { at: At::Gone, ..Thread::default() };
        n.report_owed |= me.at.is_named();
        if me.at == At::Awake {
            self.note(Outcome::WokenKilled);
        }
        if me.at.has_ticket() && s.owner.process() == Some(self.process(t)) {
            self.note(Outcome::DiedWithTicket);
        }
        if s.word.tid == self.tid(t) && s.word.died && me.at.holds() {
            self.note(Outcome::DiedTakingOver);
        }
        if me.announced && s.misses > 0 {
            let mut n = n;
            n.misses -= 1;
            n.missed = true;
            self.moves.push((Action::ExitMissed(t), n));
        }
        if me.announced && s.word.tid == self.tid(t) {
            self.note(Outcome::MarkedByKernel);
            n.word = Word { tid: 0, died: true, waiters: s.word.waiters };
            if s.word.waiters {
                return self.wake_one(action, n, |_| true, |n, _| *n);
            }
        } else if me.announced && if self.config.old_kernel { s.word == FREE } else { s.word.tid == 0 } {
            self.note(Outcome::PassedOnByKernel);
            return self.wake_one(action, n, |_| true, |n, _| *n);
        }
        self.moves.push((action, n));
    }

    /// One shared access of thread `t`.
    fn step(&mut self, s: &State, t: usize) {
        use At::*;
        let (p, tid) = (self.process(t), self.tid(t));
        let mut n = *s;
        let me = &mut n.threads[t];
        // Whether only the absence of the thread proves anything.
        let suspects = me.word.died || !me.owner.is_owed_a_report();
        match me.at {
            // lock
            Outside => {
                me.announced = !self.has(Bug::AcquireUnannounced);
                me.at = TakeFree;
            }
            TakeFree => {
                me.at = if s.word == FREE { WriteOwner } else { Look };
                if s.word == FREE {
                    n.word.tid = tid;
                }
            }
            Look => {
                me.word = s.word;
                me.at = match s.word {
                    Word { tid: 0, .. } => Take,
                    Word { waiters: false, .. } => AskToBeWoken,
                    _ => ReadOwner,
                };
                if s.word.tid == tid {
                    self.note(Outcome::NewbornFoundItself);
                }
            }
            Take if s.word == me.word => {
                let keep_died = s.word.died && !self.has(Bug::DiedDropped);
                let waiters = s.word.waiters || me.slept && !self.has(Bug::SleeperForgets);
                n.word = Word { tid, died: keep_died, waiters };
                me.word = n.word;
                me.at = if s.word.died { SeeWhoDied } else { WriteOwner };
            }
            AskToBeWoken if s.word == me.word => {
                if self.config.deadlines && me.slept && self.has(Bug::GivesUpUnasked) {
                    let mut n = n;
                    n.threads[t].at = Leave;
                    self.moves.push((Action::Deadline(t), n));
                }
                let me = &mut n.threads[t];
                n.word.waiters = true;
                me.word = n.word;
                me.at = ReadOwner;
            }
            ReadOwner => {
                me.owner = s.owner;
                me.at = if self.has(Bug::LookAgainEarly) { LookAgain } else { ProveParticipantDead };
            }
            ProveParticipantDead => {
                me.watches = me.owner.process();
                me.at = match me.watches {
                    Some(of) if !self.proven_dead(s, of) => {
                        if self.has(Bug::TicketOverTheLiving) && s.word != me.word {
                            ProveThreadGone
                        } else {
                            Sleep
                        }
                    }
                    Some(_) if self.has(Bug::TicketForEver) && !matches!(me.owner, Owner::Held(_)) => Sleep,
                    _ if suspects => ProveThreadGone,
                    _ if self.has(Bug::NoLookAgain) || self.has(Bug::LookAgainEarly) => TakeTicket,
                    _ => LookAgain,
                };
                if me.at == Sleep && me.watches.is_some_and(|of| Self::token_is_marked(s, of)) {
                    self.note(Outcome::Waited);
                }
                // Its own token would wake it only to die, in the place of somebody who could act.
                if me.watches == Some(p) && !self.has(Bug::OwnTokenWatched) || self.has(Bug::TokenUnwatched) {
                    n.threads[t].watches = None;
                }
            }
            ProveThreadGone => {
                me.watches = None;
                me.at = if self.another_thread_has(s, me.word.tid, t) { Sleep } else { TakeTicket };
            }
            Sleep => {
                if self.config.deadlines {
                    let mut n = n;
                    n.threads[t].at = Leave;
                    self.moves.push((Action::Deadline(t), n));
                    self.note(Outcome::GaveUp);
                }
                let me = &mut n.threads[t];
                let marked = me.watches.is_some_and(|of| Self::token_is_marked(s, of))
                    && !self.has(Bug::TokenUnchecked);
                if (s.word == me.word || self.has(Bug::SleepUnchecked)) && !marked {
                    me.at = Asleep;
                    me.slept = true;
                    me.announced &= !self.has(Bug::SleepUnannounced);
                    self.note(Outcome::Slept);
                } else {
                    me.at = Awake;
                }
            }
            Awake => {
                if self.config.deadlines && self.has(Bug::GivesUpAwake) {
                    let mut n = n;
                    n.threads[t].at = Leave;
                    self.moves.push((Action::Deadline(t), n));
                }
                let me = &mut n.threads[t];
                me.announced = !self.has(Bug::AcquireUnannounced);
                let marked = me.watches.is_some_and(|of| Self::token_is_marked(s, of));
                me.at = if marked && !self.has(Bug::NoPassOn) { PassOn } else { Look };
            }
            PassOn => {
                let watched = me.watches;
                me.at = Look;
                for t in n.threads.iter_mut().filter(|t| t.at == Asleep && t.watches == watched) {
                    t.at = Awake;
                }
            }

            // take over from a dead holder
            LookAgain => {
                me.at = match s.word == me.word {
                    false => Look,
                    true if self.has(Bug::LookAgainEarly) => ProveParticipantDead,
                    true => TakeTicket,
                }
            }
            TakeTicket if s.owner == me.owner || self.has(Bug::NoTicket) => {
                me.at = if suspects || self.has(Bug::LookAgainEarly) { LookUnderTicket } else { Replace };
                if suspects && self.has(Bug::NoLookUnderTicket) {
                    me.at = ProveThreadGoneAgain;
                }
                if !self.has(Bug::NoTicket) {
                    n.owner = self.ticket(p, me.owner);
                    if matches!(s.owner, Owner::Recovering(_) | Owner::Suspecting(_)) {
                        self.note(Outcome::TicketReplaced);
                    }
                }
            }
            LookUnderTicket => {
                me.at = match s.word == me.word {
                    false => ReturnTicket,
                    true if !suspects || self.has(Bug::NoSecondProof) => Replace,
                    true => ProveThreadGoneAgain,
                }
            }
            ProveThreadGoneAgain => {
                me.at = if self.another_thread_has(s, me.word.tid, t) { ReturnTicket } else { Replace }
            }
            Replace if s.word == me.word => {
                n.word = Word { tid, died: true, waiters: true };
                me.word = n.word;
                me.at = SeeWhoDied;
                self.note(if suspects { Outcome::Suspected } else { Outcome::Recovered });
            }
            Replace => me.at = ReturnTicket,
            ReturnTicket => {
                let before = me.owner;
                me.at = Look;
                if s.owner == self.ticket(p, before) && !self.has(Bug::TicketKept) && !self.has(Bug::NoTicket)
                {
                    n.owner = before;
                    self.note(Outcome::TicketReturned);
                }
            }

            // a compare-and-swap failed
            Take | AskToBeWoken | TakeTicket => me.at = Look,

            // the word is ours
            SeeWhoDied => {
                let owed = s.owner.is_owed_a_report() || self.has(Bug::EveryDeathReported);
                me.at = if owed { MarkInconsistent } else { WriteOwner };
                me.told = owed;
                if !owed {
                    self.note(Outcome::NotTold);
                }
            }
            MarkInconsistent => {
                n.inconsistent = !self.has(Bug::NeverMarked);
                me.at = WriteOwner;
            }
            WriteOwner => {
                n.owner = Owner::Held(p);
                me.at = if me.word.died { ClearDied } else { Return };
            }
            ClearDied => {
                n.word.died = false;
                if self.has(Bug::ClearByStore) {
                    n.word.waiters = me.word.waiters;
                }
                me.at = Return;
            }
            Return => {
                if s.inconsistent && !me.told {
                    self.note(Outcome::ToldAgain);
                }
                let told = me.told || s.inconsistent;
                let announced = self.config.announced == Announced::Throughout;
                *me = Thread { at: Inside, laps: me.laps, announced, told, ..Thread::default() };
                n.report_owed = told;
                self.returned(t, told, s.report_owed);
            }

            // critical section
            Inside => {
                if me.told && self.config.careless {
                    let mut n = n;
                    n.threads[t].told = false;
                    n.threads[t].at = Unlock;
                    self.moves.push((Action::Step(t), n));
                }
                let me = &mut n.threads[t];
                if me.told {
                    me.told = false;
                    n.inconsistent = false;
                    n.report_owed = false;
                } else {
                    me.at = Unlock;
                }
            }

            // unlock
            Unlock => {
                me.announced = !self.has(Bug::ReleaseUnannounced);
                me.at = if self.has(Bug::OwnerClearedLate) { Release } else { ClearOwner };
            }
            ClearOwner | ClearOwnerLate => {
                n.owner = Owner::Nobody;
                me.at = if me.at == ClearOwner { Release } else { Leave };
            }
            Release => {
                let uncontended = s.word == Word { tid, ..FREE };
                me.at = match uncontended {
                    true if self.has(Bug::OwnerClearedLate) => ClearOwnerLate,
                    true => Leave,
                    false if self.has(Bug::WakeBeforeRelease) => WakeOne,
                    false => ReleaseContended,
                };
                if uncontended {
                    n.word = FREE;
                }
            }
            ReleaseContended => {
                n.word = if self.has(Bug::ReleaseToZero) { FREE } else { FREE_WITH_WAITERS };
                me.at = if self.has(Bug::WakeBeforeRelease) { ForgetWaiters } else { WakeOne };
                if s.lives[p as usize] != Life::Alive {
                    self.note(Outcome::RanOn);
                }
            }
            WakeOne => {
                let (early, late) = (self.has(Bug::WakeBeforeRelease), self.has(Bug::OwnerClearedLate));
                return self.wake_one(
                    Action::Step(t),
                    n,
                    |_| true,
                    |n, woke| {
                        n.threads[t].at = match woke {
                            _ if early => ReleaseContended,
                            _ if late => ClearOwnerLate,
                            true => Leave,
                            false => ForgetWaiters,
                        };
                        *n
                    },
                );
            }
            ForgetWaiters => {
                me.at = Leave;
                if s.word == FREE_WITH_WAITERS || self.has(Bug::ForgetByStore) {
                    n.word = FREE;
                    self.note(Outcome::Forgot);
                }
            }
            Leave => {
                let laps = me.laps - 1;
                *me = Thread { at: if laps == 0 { Gone } else { Outside }, laps, ..Thread::default() };
            }
            Unborn | Gone | Asleep => unreachable!("takes no steps"),
        }
        self.moves.push((Action::Step(t), n));
    }

    fn ticket(&self, p: Process, over: Owner) -> Owner {
        if over.is_owed_a_report() || self.has(Bug::OneKindOfTicket) {
            Owner::Recovering(p)
        } else {
            Owner::Suspecting(p)
        }
    }

    /// `lock` returns to thread `t`.
    fn returned(&mut self, t: usize, told: bool, owed: bool) {
        match (told, owed) {
            (false, true) => self.wrong = Some(Wrong::DeathUnreported),
            (true, false) => self.wrong = Some(Wrong::NothingToReport),
            (true, true) => self.note(Outcome::Told),
            (false, false) => {}
        }
        if self.config.roles[t].newborn {
            self.note(Outcome::NewbornInside);
        }
    }

    // -----------------------------------------------------------------------------------------------------
    // Checks

    fn check(&self, s: &State) -> Option<Wrong> {
        let holders = || self.threads().filter(|&t| s.threads[t].at.holds());
        if holders().any(|t| s.word.tid != self.tid(t)) {
            Some(Wrong::Robbed)
        } else if holders().count() > 1 {
            Some(Wrong::TwoInside)
        } else {
            None
        }
    }

    /// Nothing happens by itself any more, except slices.
    fn is_at_rest(&self, s: &State) -> bool {
        let lives_on = |p: Process| matches!(s.lives[p as usize], Life::Alive);
        s.lives.iter().all(|life| !matches!(life, Life::Dying | Life::Suspected))
            && self.threads().all(|t| {
                s.threads[t].at.is_over() || s.threads[t].at == At::Asleep || !lives_on(self.process(t))
            })
    }

    /// At rest, why somebody sleeps who should not.
    fn stranding(&self, s: &State) -> Result<(), Option<Stranding>> {
        let stopped = |t: usize| s.lives[self.process(t) as usize] == Life::Stopped;
        let Some(sleeper) = self.threads().find(|&t| s.threads[t].at == At::Asleep && !stopped(t)) else {
            return Ok(());
        };
        if self.threads().any(|t| stopped(t) && (s.threads[t].at.holds() || s.threads[t].at.has_ticket())) {
            return Ok(()); // as with any lock
        }
        let watches = s.threads[sleeper].watches;
        let somebody_is_stopped = self.threads().any(stopped);
        Err(match (s.word.tid, s.owner.process()) {
            _ if s.missed => Some(Stranding::KernelMissed),
            (0, _) if somebody_is_stopped => Some(Stranding::WakeUpStopped),
            (0, _) if s.lives.contains(&Life::Dead) => Some(Stranding::WakeUpDied),
            (0, _) | (_, None) => None,
            (_, Some(_)) if watches.is_none() => Some(Stranding::WatchesNobody),
            (_, Some(owner)) if watches != Some(owner) => Some(Stranding::WatchesFormerOwner),
            (_, Some(_)) if somebody_is_stopped => Some(Stranding::WakeUpStopped),
            (_, Some(_)) if s.lives.iter().filter(|&&life| life == Life::Dead).count() > 1 => {
                Some(Stranding::PassingOnDied)
            }
            _ => None,
        })
    }
}

// ---------------------------------------------------------------------------------------------------------
// Search

/// Multiplies and rotates: the states are small, many, and nobody's enemy.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u8(b);
        }
    }
    fn write_u8(&mut self, b: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(b)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn write_isize(&mut self, discriminant: isize) {
        self.write_u8(discriminant as u8);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

struct Report {
    states: usize,
    outcomes: u32,
    strandings: Vec<Stranding>,
    wrong: Option<(Wrong, String)>,
}

fn explore(config: &Config, bug: Option<Bug>) -> Report {
    let mut model = Model { config, bug, moves: Vec::new(), seen: 0, wrong: None };
    let mut states = vec![model.start()];
    let mut came_from = vec![(0u32, Action::Birth(0))];
    let mut known: HashMap<State, u32, BuildHasherDefault<Mix>> = HashMap::default();
    known.insert(states[0], 0);
    let mut progress: Vec<(u32, u32)> = Vec::new(); // (to, from)
    let mut settled: Vec<u32> = Vec::new();
    let mut strandings = Vec::new();
    let mut wrong = None;

    let mut next = 0;
    'search: while next < states.len() {
        let s = states[next];
        let here = next as u32;
        if model.is_at_rest(&s) {
            match model.stranding(&s) {
                Ok(()) => settled.push(here),
                Err(_) if config.slices => {} // a slice ends, and everybody must finish from here
                Err(Some(why)) if config.needs_slice.contains(&why) => {
                    if !strandings.contains(&why) {
                        strandings.push(why);
                        if std::env::var_os("TRACE").is_some() {
                            println!(
                                "{}: {why:?}\n{}",
                                config.name,
                                trace(config, &states, &came_from, next)
                            );
                        }
                    }
                    settled.push(here);
                }
                Err(_) => {
                    wrong = Some((Wrong::LostWakeUp, next));
                    break 'search;
                }
            }
        }
        model.explore(&s);
        for (action, n) in std::mem::take(&mut model.moves) {
            let to = *known.entry(n).or_insert_with(|| {
                states.push(n);
                came_from.push((here, action));
                states.len() as u32 - 1
            });
            if action.is_progress() {
                progress.push((to, here));
            }
            let is_new = to as usize == states.len() - 1;
            if let Some(bad) = model.check(&n).filter(|_| is_new) {
                wrong = Some((bad, to as usize));
                break 'search;
            }
        }
        if let Some(bad) = model.wrong {
            wrong = Some((bad, next));
            break;
        }
        next += 1;
    }
    if wrong.is_none() {
        wrong = first_that_never_settles(states.len(), progress, settled).map(|s| (Wrong::NeverFinishes, s));
    }
    strandings.sort_unstable();
    Report {
        states: states.len(),
        outcomes: model.seen,
        strandings,
        wrong: wrong.map(|(bad, at)| (bad, trace(config, &states, &came_from, at))),
    }
}

/// Walks backwards from where all is well.
fn first_that_never_settles(count: usize, mut into: Vec<(u32, u32)>, mut todo: Vec<u32>) -> Option<usize> {
    into.sort_unstable();
    let mut settles = vec![false; count];
    for &s in &todo {
        settles[s as usize] = true;
    }
    while let Some(s) = todo.pop() {
        let first = into.partition_point(|&(to, _)| to < s);
        for &(_, from) in into[first..].iter().take_while(|&&(to, _)| to == s) {
            if !std::mem::replace(&mut settles[from as usize], true) {
                todo.push(from);
            }
        }
    }
    settles.iter().position(|&settles| !settles)
}

/// How the state came about, one line per step.
fn trace(config: &Config, states: &[State], came_from: &[(u32, Action)], at: usize) -> String {
    let mut lines = Vec::new();
    let mut here = at;
    loop {
        let s = &states[here];
        let (before, action) = came_from[here];
        let then = |t: usize| {
            format!("process {}, {:?}", config.roles[t].process, states[before as usize].threads[t].at)
        };
        let step = match action {
            _ if here == 0 => "start".to_string(),
            Action::Step(t) => then(t),
            Action::Deadline(t) => format!("deadline of {}", then(t)),
            Action::Slice(t) => format!("slice of {}", then(t)),
            Action::Kill(p) => format!("process {p} is killed"),
            Action::Stop(p) => format!("process {p} is stopped"),
            Action::Exit(t) => format!("killed: {}", then(t)),
            Action::ExitMissed(t) => format!("killed, the kernel misses it: {}", then(t)),
            Action::MarkToken(p) => format!("token of process {p} is marked"),
            Action::TokenMissed(p) => format!("token of process {p} is not marked"),
            Action::Prove(p) => format!("process {p} is proven dead"),
            Action::Birth(t) => format!("birth: {}", then(t)),
        };
        let ats: Vec<String> = (0..config.roles.len()).map(|t| format!("{:?}", s.threads[t].at)).collect();
        let Word { tid, died, waiters } = s.word;
        lines.push(format!(
            "  {step:50} word {tid}{}{} {:?}{}   {}",
            if died { "|DIED" } else { "" },
            if waiters { "|WAITERS" } else { "" },
            s.owner,
            if s.inconsistent { " INCONSISTENT" } else { "" },
            ats.join(" ")
        ));
        if here == 0 {
            break;
        }
        here = before as usize;
    }
    lines.reverse();
    lines.join("\n")
}

// ---------------------------------------------------------------------------------------------------------
// The runs

const TWO: &[Role] = &[thread(0, 1, 2), thread(1, 2, 2)];
const THREE: &[Role] = &[thread(0, 1, 1), thread(1, 2, 1), thread(2, 3, 1)];
const THREE_AND_AGAIN: &[Role] = &[thread(0, 1, 2), thread(1, 2, 1), thread(2, 3, 1)];
const FOUR: &[Role] = &[thread(0, 1, 1), thread(1, 2, 1), thread(2, 3, 1), thread(3, 4, 1)];
const FOUR_AND_AGAIN: &[Role] = &[thread(0, 1, 2), thread(1, 2, 1), thread(2, 3, 1), thread(3, 4, 1)];
const TWO_IN_ONE: &[Role] = &[thread(0, 1, 1), thread(0, 2, 1), thread(1, 3, 1)];
const ONE_AND_NEWBORN: &[Role] = &[thread(0, 1, 1), thread(1, 2, 1), newborn(2, 1, 1)];
const WITH_NEWBORN: &[Role] = &[thread(0, 1, 1), thread(1, 2, 1), thread(2, 3, 1), newborn(1, 1, 1)];
const ANY: &[Process] = &[0, 1, 2];

/// Thread 0 is in its critical section.
fn holding(s: &mut State) {
    (s.word.tid, s.owner, s.threads[0].at) = (1, Owner::Held(0), At::Inside);
}

fn holding_and_announced(s: &mut State) {
    holding(s);
    s.threads[0].announced = true;
}

/// Thread 0 has just taken the lock.
fn taking(s: &mut State) {
    (s.word.tid, s.threads[0].at, s.threads[0].announced) = (1, At::WriteOwner, true);
}

/// Process 0 died with the lock.
fn holder_is_dead(s: &mut State) {
    (s.word, s.owner) = (Word { tid: 1, waiters: true, died: false }, Owner::Held(0));
    (s.threads[0].at, s.lives[0], s.report_owed) = (At::Gone, Life::Dead, true);
}

/// Process 0 died before it wrote `owner`, and the kernel did not act on that.
fn taker_was_missed(s: &mut State) {
    holder_is_dead(s);
    (s.owner, s.report_owed, s.missed) = (Owner::Nobody, false, true);
}

/// Thread 0 has taken the lock and is about to return when thread 1 looks at the word.
fn seen_alive(s: &mut State) {
    (s.word.tid, s.word.waiters, s.owner) = (1, true, Owner::Held(0));
    (s.threads[0].at, s.threads[0].announced) = (At::Return, true);
    let looker = &mut s.threads[1];
    (looker.at, looker.announced, looker.word) = (At::ReadOwner, true, s.word);
}

/// Thread 0 has released the lock, woken nobody, and is about to clear WAITERS.
fn about_to_forget(s: &mut State) {
    (s.word, s.threads[0].at, s.threads[0].announced) = (FREE_WITH_WAITERS, At::ForgetWaiters, true);
}

/// As before, but meanwhile thread 1 has taken the lock, and two have fallen asleep.
fn about_to_forget_sleepers(s: &mut State) {
    about_to_forget(s);
    (s.word.tid, s.owner, s.threads[1].at) = (2, Owner::Held(1), At::Inside);
    for sleeper in &mut s.threads[2..] {
        (sleeper.at, sleeper.announced, sleeper.slept) = (At::Asleep, true, true);
        (sleeper.word, sleeper.owner, sleeper.watches) = (s.word, s.owner, Some(1));
    }
}

/// Thread 0 had the lock when thread 1 looked at the word; since then it has released it, and comes back.
fn having_looked(s: &mut State) {
    let looker = &mut s.threads[1];
    (looker.at, looker.announced) = (At::ReadOwner, true);
    looker.word = Word { tid: 1, waiters: true, died: false };
}

/// Thread 0 was about to release the lock when thread 1 looked; since then it has done so and ended.
fn suspecting_in_vain(s: &mut State) {
    s.threads[0].at = At::Gone;
    let recoverer = &mut s.threads[1];
    (recoverer.at, recoverer.announced) = (At::ReadOwner, true);
    recoverer.word = Word { tid: 1, waiters: true, died: false };
}

use Outcome::*;
use Stranding::*;

const CONFIGS: &[Config] = &[
    Config {
        name: "three processes, nobody killed",
        roles: THREE,
        shows: &[Slept, Forgot],
        at_least: 30_000,
        ..PLAIN
    },
    Config {
        name: "two processes, both killed, threads run on",
        roles: TWO,
        kills: (2, ANY),
        lingering: true,
        needs_slice: &[WatchesNobody],
        shows: &[MarkedByKernel, PassedOnByKernel, Told, NotTold, Recovered, RanOn, Waited],
        at_least: 50_000,
        ..PLAIN
    },
    Config {
        name: "three processes, one killed",
        roles: THREE,
        kills: (1, ANY),
        needs_slice: &[WatchesNobody, WatchesFormerOwner],
        shows: &[MarkedByKernel, PassedOnByKernel, WokenKilled, Recovered, DiedWithTicket, TicketReturned],
        at_least: 150_000,
        ..PLAIN
    },
    Config {
        name: "three processes, two killed",
        roles: THREE,
        kills: (2, ANY),
        needs_slice: &[WatchesNobody, WatchesFormerOwner, PassingOnDied],
        shows: &[DiedTakingOver, DiedWithTicket, TicketReplaced],
        at_least: 250_000,
        ..PLAIN
    },
    Config {
        name: "three processes, two killed, slices",
        roles: THREE,
        kills: (2, ANY),
        slices: true,
        shows: &[DiedTakingOver, DiedWithTicket, TicketReplaced],
        at_least: 400_000,
        ..PLAIN
    },
    Config {
        name: "the holder is killed",
        roles: THREE,
        kills: (1, &[0]),
        begins: holding,
        shows: &[Recovered, Told],
        at_least: 20_000,
        ..PLAIN
    },
    Config {
        name: "the holder is killed, deadlines pass",
        roles: THREE,
        kills: (1, &[0]),
        deadlines: true,
        begins: holding,
        shows: &[Recovered, GaveUp],
        at_least: 20_000,
        ..PLAIN
    },
    Config {
        name: "the told do not repair, two killed",
        roles: THREE,
        kills: (2, ANY),
        careless: true,
        slices: true,
        begins: holding,
        shows: &[ToldAgain],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "announced throughout, two killed",
        roles: THREE,
        kills: (2, ANY),
        announced: Announced::Throughout,
        shows: &[MarkedByKernel, PassedOnByKernel, DiedTakingOver, WokenKilled],
        at_least: 200_000,
        ..PLAIN
    },
    Config {
        name: "announced throughout, one stopped, one killed",
        roles: THREE,
        kills: (1, ANY),
        stops: (1, ANY),
        announced: Announced::Throughout,
        begins: holding_and_announced,
        needs_slice: &[WakeUpStopped],
        shows: &[MarkedByKernel],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "announced throughout, before Linux 6.2",
        roles: THREE,
        kills: (1, ANY),
        announced: Announced::Throughout,
        old_kernel: true,
        begins: holding_and_announced,
        needs_slice: &[WakeUpDied],
        shows: &[WokenKilled],
        at_least: 30_000,
        ..PLAIN
    },
    Config {
        name: "one stopped, one killed, slices",
        roles: THREE,
        kills: (1, ANY),
        stops: (1, ANY),
        slices: true,
        begins: holding,
        shows: &[Recovered, DiedWithTicket, TicketReplaced],
        at_least: 300_000,
        ..PLAIN
    },
    Config {
        name: "two threads of a killed process run on",
        roles: TWO_IN_ONE,
        kills: (1, &[0]),
        lingering: true,
        needs_slice: &[WatchesNobody],
        shows: &[RanOn, Waited, Recovered],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "the kernel misses two, two killed",
        roles: THREE,
        kills: (2, ANY),
        misses: 2,
        slices: true,
        begins: taking,
        shows: &[Suspected, DiedWithTicket, TicketReplaced],
        at_least: 300_000,
        ..PLAIN
    },
    Config {
        name: "a newborn has the id of the dead holder",
        roles: WITH_NEWBORN,
        kills: (1, &[1]),
        slices: true,
        begins: holder_is_dead,
        shows: &[NewbornFoundItself, NewbornInside, Recovered, TicketReturned, MarkedByKernel],
        at_least: 600_000,
        ..PLAIN
    },
    Config {
        name: "a newborn has an id the kernel missed",
        roles: WITH_NEWBORN,
        kills: (1, &[2]),
        slices: true,
        begins: taker_was_missed,
        shows: &[NewbornFoundItself, NewbornInside, Suspected, TicketReturned],
        at_least: 800_000,
        ..PLAIN
    },
    Config {
        name: "a newborn takes the lock of one that was seen alive",
        roles: ONE_AND_NEWBORN,
        kills: (1, &[0]),
        slices: true,
        begins: seen_alive,
        shows: &[NewbornInside, MarkedByKernel],
        at_least: 15_000,
        ..PLAIN
    },
    Config {
        name: "a recoverer suspects in vain and is killed",
        roles: FOUR,
        kills: (1, &[1]),
        slices: true,
        begins: suspecting_in_vain,
        shows: &[DiedWithTicket],
        at_least: 150_000,
        ..PLAIN
    },
    Config {
        name: "a late clearing of WAITERS, deadlines pass",
        roles: FOUR_AND_AGAIN,
        deadlines: true,
        begins: about_to_forget_sleepers,
        shows: &[Forgot],
        at_least: 15_000,
        ..PLAIN
    },
    Config {
        name: "announced throughout, a late clearing, one killed",
        roles: THREE_AND_AGAIN,
        kills: (1, ANY),
        announced: Announced::Throughout,
        begins: about_to_forget,
        needs_slice: &[WakeUpDied],
        shows: &[Forgot],
        at_least: 150_000,
        ..PLAIN
    },
    Config {
        name: "announced throughout, the kernel misses one",
        roles: THREE,
        kills: (1, ANY),
        misses: 1,
        announced: Announced::Throughout,
        begins: holding_and_announced,
        needs_slice: &[KernelMissed],
        at_least: 90_000,
        ..PLAIN
    },
    Config {
        name: "an owner is killed while another looks",
        roles: THREE,
        kills: (1, &[2]),
        slices: true,
        begins: having_looked,
        shows: &[Recovered],
        at_least: 150_000,
        ..PLAIN
    },
];

/// Runs the configurations with or without slices; all outcomes that they showed.
fn explore_all(slices: bool) -> u32 {
    println!("{:>9}  {:50} needs the slice when a sleeper", "states", "configuration");
    let mut outcomes = 0;
    for config in CONFIGS.iter().filter(|config| config.slices == slices) {
        let report = explore(config, None);
        println!("{:>9}  {:50} {:?}", report.states, config.name, report.strandings);
        if let Some((wrong, trace)) = report.wrong {
            panic!("{}: {wrong:?}\n{trace}", config.name);
        }
        assert_eq!(report.strandings, config.needs_slice, "{}", config.name);
        assert!(report.states >= config.at_least, "{}: the model has shrunk", config.name);
        for &outcome in config.shows {
            assert!(report.outcomes & 1 << outcome as u32 != 0, "{} does not show {outcome:?}", config.name);
        }
        outcomes |= report.outcomes;
    }
    outcomes
}

#[test]
fn wake_ups_reach_everybody_but_the_named_strandings() {
    let outcomes = explore_all(false);
    for (outcome, text) in OUTCOMES {
        // Newborns and misses are explored with slices.
        let elsewhere = [NewbornFoundItself, NewbornInside, Suspected, ToldAgain].contains(outcome);
        assert!(elsewhere || outcomes & 1 << *outcome as u32 != 0, "never seen: {text}");
    }
}

#[test]
fn with_slices_everybody_finishes() {
    explore_all(true);
}

#[test]
fn every_planted_bug_is_caught() {
    println!("{:>9}  {:16} planted bug", "states", "caught as");
    for &(bug, text, expected, name) in BUGS {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        let report = explore(config, Some(bug));
        let (wrong, trace) = report
            .wrong
            .unwrap_or_else(|| panic!("{bug:?} is not caught in {name}: {} states", report.states));
        println!("{:>9}  {:16} {text}", report.states, format!("{wrong:?}"));
        assert_eq!(wrong, expected, "{bug:?} in {name}\n{trace}");
    }
}
