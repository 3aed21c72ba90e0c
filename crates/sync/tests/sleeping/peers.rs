//! Sleeping among peers; see `main.rs`.

use Op::*;
use Outcome::*;
use Stranding::*;

use crate::explore::{Act, Model, Report, Stranding, Wrong, expect, expect_caught, explore};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    ReachedTheDying,
    ReachedTheWoken,
    PassedOn,
    WokenKilled,
    FoundMarked,
    WaitedForProof,
    TableHadChanged,
    FlagCleared,
    TakenOver,
    ToldAlone,
    SlotReused,
    Returned,
}

const MOST: usize = 4;
// Futex words, as bits: the event count's, the table's, one token per slot.
const SEQ: u8 = 1;
const CHANGES: u8 = 2;
const fn token(slot: usize) -> u8 {
    4 << slot
}

/// What a process does, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    /// Takes a slot. Who does not begin with this is there from the start.
    Arrive,
    Leave,
    /// Of a binary semaphore that is given up by a death.
    Acquire,
    Release,
    /// For the event, or for the last peer to go.
    Wait,
    Set,
    /// With a lock, for something to be ready; and takes it.
    WaitReady,
    /// With the lock, makes so many things ready and notifies so many; 0: one, and notifies all.
    Notify(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum At {
    // come
    FindSlot,
    SetToken,
    BumpForArrival,
    WakeForArrival,
    // until
    #[default]
    Attempt,
    ReadSeq,
    ReadChanges,
    Announce,
    AttemptAgain,
    List,
    PassOnMarked,
    Prove,
    Bury,
    FreeSlot,
    Sleep,
    Asleep,
    Woken,
    PassOn,
    // condition variable
    Lock,
    Check,
    UnlockToSleep,
    Unlock,
    // notify
    Change,
    LoadWaiters,
    BumpSeq,
    WakeSeq,
    ClearFlag,
    // go
    BumpGeneration,
    ClearToken,
    WakeToken,
    CountOwn,
    FreeOwn,
    CountAgain,
    WakeForLeave,
    Done,
}

/// A word that was read, by what became of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum Seen {
    #[default]
    Not,
    Same,
    Changed,
}

impl Seen {
    fn touch(&mut self) {
        if *self == Seen::Same {
            *self = Seen::Changed;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum Life {
    #[default]
    Alive,
    Stopped,
    Dying,
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Process {
    life: Life,
    /// Dying: its thread has ended; its token was marked.
    ended: bool,
    marked: bool,
    at: At,
    op: u8,
    slot: Option<u8>,
    left: bool,
    /// `changes` has changed since it came.
    others_came_or_went: bool,

    // A sleep:
    seq: Seen,
    changes: Seen,
    tokens: [Seen; MOST],
    /// Somebody listed has no token.
    short: bool,
    /// Whom it listed has changed, or was found marked: a reason to look again.
    told: bool,
    /// A slice ended: asks for a proof of everybody's death.
    asks_all: bool,
    /// The words on whose queues it is.
    queued: u8,
    /// The slot it looks at, and who was found there (+ 1).
    looks: u8,
    found: u8,
    /// `waiters`, as a waker.
    waiters: Seen,
    /// Ghost: somebody died since it began to wait.
    must_return: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Token {
    /// Process + 1, 0: none.
    of: u8,
    marked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    processes: [Process; MOST],
    claims: [u8; MOST],
    tokens: [Token; MOST],
    flag: bool,
    /// Process + 1, 0: none.
    owner: u8,
    set: bool,
    lock: u8,
    ready: u8,
    kills: u8,
    stops: u8,
    misses: u8,
    /// Ghost: so many of those who wait to be notified must still return.
    owed: u8,
    missed: bool,
}

#[derive(Clone, Copy)]
struct Config {
    name: &'static str,
    programs: &'static [&'static [Op]],
    slots: usize,
    /// How many, and which processes.
    kills: (u8, &'static [usize]),
    stops: (u8, &'static [usize]),
    misses: u8,
    /// Killed threads may run on for a while.
    lingering: bool,
    slices: bool,
    /// Process 0 has the semaphore, and is about to release it if it would.
    owned: bool,
    needs_slice: &'static [Stranding],
    shows: &'static [Outcome],
    at_least: usize,
}

const PLAIN: Config = Config {
    name: "",
    programs: &[],
    slots: 3,
    kills: (0, &[]),
    stops: (0, &[]),
    misses: 0,
    lingering: false,
    slices: false,
    owned: false,
    needs_slice: &[],
    shows: &[],
    at_least: 0,
};

bugs! {
    NoSecondAttempt "sleeps without looking again after it announced itself"
        is LostWakeUp in "three use a semaphore, nobody killed"
    AnnouncedLate "looks again, then announces itself"
        is LostWakeUp in "three use a semaphore, nobody killed"
    SeqReadLate "reads seq after it announced itself"
        is LostWakeUp in "three use a semaphore, nobody killed"
    SeqUnchecked "sleeps without comparing seq"
        is LostWakeUp in "three use a semaphore, nobody killed"
    ClearedUncounted "clears the flag though somebody came"
        is LostWakeUp in "three use a semaphore, nobody killed"
    ClearedThoughWoken "clears the flag though it woke somebody, when it wakes one"
        is LostWakeUp in "condition: two wait, one notifies one twice, one killed"
    ClearedBeforeWakingOne "clears the flag before it wakes one"
        is LostWakeUp in "condition: two wait, one notifies one twice, one killed"
    WakesBeforeBump "wakes before it bumps seq"
        is LostWakeUp in "three use a semaphore, nobody killed"
    WakesBeforeChange "notifies before its change"
        is LostWakeUp in "three use a semaphore, nobody killed"
    WakesOneForAll "wakes one where the change lets all go on"
        is LostWakeUp in "event: two wait, two killed"
    NoPassOn "does not wake the others who sleep on a marked token"
        is LostWakeUp in "event: two wait, two killed"
    LooksBeforePassOn "is content when it wakes, and does not wake the others"
        is LostWakeUp in "event: two wait, two killed"
    SleepsBesideMarked "sleeps while a marked token is not yet proven"
        is LostWakeUp in "event: peers leave or are killed"
    TokensUnchecked "sleeps without comparing tokens"
        is LostWakeUp in "event: peers leave or are killed"
    OwnTokenWatched "sleeps on its own token"
        is LostWakeUp in "event: two wait, two killed"
    ChangesIgnored "does not watch changes"
        is LostWakeUp in "event: two wait, two killed"
    ChangesReadLate "reads changes after it looked"
        is LostWakeUp in "event: two wait, two killed"
    ArrivesSilently "comes without bumping changes"
        is LostWakeUp in "event: set by a newcomer, one killed"
    LeavesByToken "clears its token and wakes its sleepers, then leaves"
        is LostWakeUp in "event: peers leave or are killed"
    LeavesSilently "leaves without bumping changes once it has left"
        is LostWakeUp in "event: peers leave or are killed"
    CountedLate "buries by freeing the slot, then bumps changes"
        is LostWakeUp in "event: set by a newcomer, one killed"
    AsksTheSuspectOnly "asks for a proof only when a token is marked, slice or not"
        is NeverFinishes in "semaphore: one stopped, one killed or missed, slices"
    UnlocksBeforeListening "unlocks before it listens"
        is LostWakeUp in "condition: two wait, one notifies one twice, one killed"
    DeathIsNoNotification "waits on for a notification when somebody died"
        is LostWakeUp in "condition: two wait, one notifies one twice, one killed"
}
struct Sleep<'a> {
    config: &'a Config,
    bug: Option<Bug>,
    seen: u32,
}

fn run(config: &Config, bug: Option<Bug>) -> Report {
    let mut s =
        State { kills: config.kills.0, stops: config.stops.0, misses: config.misses, ..State::default() };
    let model = Sleep { config, bug, seen: 0 };
    for p in 0..MOST {
        s.processes[p].at = model.begin(p, 0);
        if p < config.programs.len() && config.programs[p][0] != Op::Arrive {
            s.processes[p].slot = Some(p as u8);
            s.claims[p] = p as u8 + 1;
            s.tokens[p].of = p as u8 + 1;
        }
    }
    s.owner = u8::from(config.owned);
    explore(model, s, config.slices, config.needs_slice)
}

impl Sleep<'_> {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn note(&mut self, outcome: Outcome) {
        self.seen |= 1 << outcome as u32;
    }

    fn op(&self, p: usize, op: u8) -> Option<Op> {
        self.config.programs.get(p)?.get(op as usize).copied()
    }

    fn begin(&self, p: usize, op: u8) -> At {
        match self.op(p, op) {
            Some(Op::Arrive) => At::FindSlot,
            Some(Op::Leave) => At::BumpGeneration,
            Some(Op::Acquire | Op::Wait) => At::Attempt,
            Some(Op::WaitReady) => At::Lock,
            Some(Op::Release | Op::Set) if self.has(Bug::WakesBeforeChange) => At::LoadWaiters,
            Some(Op::Release | Op::Set) => At::Change,
            Some(Op::Notify(_)) => At::Lock,
            None => At::Done,
        }
    }

    /// On to the next operation; what the last one noted is forgotten.
    fn finish(&self, p: usize, me: &mut Process) {
        forget(me);
        me.op += 1;
        me.at = self.begin(p, me.op);
    }

    /// What `Liveness::is_dead` finds: the slot has passed on, or there is reason to ask and a proof.
    fn is_dead(&self, s: &State, p: usize) -> bool {
        let other = &s.processes[p];
        let Some(slot) = other.slot else { return false };
        let (slot, id) = (slot as usize, p as u8 + 1);
        let suspect = s.tokens[slot] != Token { of: id, marked: false };
        other.left || s.claims[slot] != id || suspect && other.life == Life::Dead
    }

    fn is_alone(&self, s: &State, p: usize) -> bool {
        s.processes[p].others_came_or_went
            && s.claims.iter().all(|&c| c == 0 || c == p as u8 + 1 || self.is_dead(s, c as usize - 1))
    }

    fn attempt(&mut self, s: &mut State, p: usize) -> bool {
        match self.op(p, s.processes[p].op) {
            Some(Op::Acquire) => {
                let free = s.owner == 0 || self.is_dead(s, s.owner as usize - 1);
                if free {
                    if s.owner != 0 {
                        self.note(Outcome::TakenOver);
                    }
                    s.owner = p as u8 + 1;
                }
                free
            }
            _ => {
                let alone = self.is_alone(s, p);
                if alone && !s.set {
                    self.note(Outcome::ToldAlone);
                }
                s.set || alone
            }
        }
    }

    /// All states after a wake of at most `count` of those who sleep on `word`, and how many it reached.
    fn wake(&mut self, s: State, word: u8, count: usize) -> Vec<(State, usize)> {
        let sleepers: Vec<usize> = (0..MOST).filter(|&p| s.processes[p].queued & word != 0).collect();
        let mut all = vec![(s, 0)];
        for (i, &p) in sleepers.iter().enumerate() {
            let mut more = Vec::new();
            for (mut n, woke) in all {
                let still = sleepers.len() - i - 1;
                if woke + still >= count.min(sleepers.len()) {
                    more.push((n, woke)); // the kernel picks others
                }
                if woke < count {
                    let me = &mut n.processes[p];
                    if me.life == Life::Dying {
                        self.note(Outcome::ReachedTheDying);
                    }
                    if me.at == At::Woken {
                        self.note(Outcome::ReachedTheWoken);
                    }
                    me.queued &= !word;
                    me.at = At::Woken;
                    more.push((n, woke + 1));
                }
            }
            all = more;
        }
        all
    }

    /// Begins again: looks, or returns from a condition variable's wait if there was any reason.
    fn start_over(&self, n: &mut State, p: usize) {
        let me = &mut n.processes[p];
        if self.op(p, me.op) != Some(Op::WaitReady) {
            let asks_all = me.asks_all;
            forget(me);
            (me.at, me.asks_all) = (At::Attempt, asks_all);
            return;
        }
        let death = (me.told || me.changes == Seen::Changed) && !self.has(Bug::DeathIsNoNotification);
        if me.seq == Seen::Changed || death {
            forget(me);
            me.at = At::Lock;
            me.must_return = false;
            if me.life == Life::Alive {
                n.owed = n.owed.saturating_sub(1);
            }
        } else {
            (me.at, me.looks, me.short, me.tokens) = (At::List, 0, false, [Seen::Not; MOST]);
        }
    }

    fn step(&mut self, s: &State, p: usize, to: &mut Vec<(Act, usize, State)>) {
        use At::*;
        let mine = p as u8 + 1;
        let mut n = *s;
        let was = &s.processes[p];
        let me = &mut n.processes[p];
        let op = self.op(p, me.op);
        let slot = me.looks as usize;
        let mut wakes: Option<(u8, usize)> = None;
        match was.at {
            FindSlot => {
                for i in 0..self.config.slots {
                    let mut n = *s;
                    let me = &mut n.processes[p];
                    me.looks = i as u8;
                    match s.claims[i] {
                        0 => {
                            n.claims[i] = mine;
                            (me.slot, me.at) = (Some(i as u8), SetToken);
                            if s.tokens[i].of != 0 {
                                self.note(Outcome::SlotReused);
                            }
                        }
                        found if s.processes[found as usize - 1].life == Life::Dead => {
                            (me.found, me.at) = (found, Bury);
                        }
                        _ => continue,
                    }
                    to.push((Act::Step, p, n));
                }
                return;
            }
            SetToken => {
                set_token(&mut n, slot, Token { of: mine, marked: false });
                n.processes[p].at = BumpForArrival;
            }
            BumpForArrival => {
                me.at = WakeForArrival;
                if self.has(Bug::ArrivesSilently) {
                    self.finish(p, me);
                } else {
                    self.bump_changes(&mut n);
                }
                n.processes[p].others_came_or_went = false;
            }
            WakeForArrival => {
                self.finish(p, me);
                wakes = Some((CHANGES, MOST));
            }

            Attempt => {
                me.at = if self.has(Bug::SeqReadLate) { ReadChanges } else { ReadSeq };
                if self.attempt(&mut n, p) {
                    self.finish(p, &mut n.processes[p]);
                }
            }
            ReadSeq => {
                me.seq = Seen::Same;
                me.at = match () {
                    () if self.has(Bug::SeqReadLate) => AttemptAgain,
                    () if self.has(Bug::ChangesReadLate) => Announce,
                    () => ReadChanges,
                };
            }
            ReadChanges => {
                me.changes = Seen::Same;
                me.at = match () {
                    () if self.has(Bug::ChangesReadLate) => List,
                    () if self.has(Bug::AnnouncedLate) => AttemptAgain,
                    () => Announce,
                };
            }
            Announce => {
                me.at = match op {
                    Some(Op::WaitReady) if self.has(Bug::UnlocksBeforeListening) => List,
                    Some(Op::WaitReady) => UnlockToSleep,
                    _ if self.has(Bug::SeqReadLate) => ReadSeq,
                    _ if self.has(Bug::NoSecondAttempt) || self.has(Bug::AnnouncedLate) => List,
                    _ => AttemptAgain,
                };
                n.flag = true;
                n.processes.iter_mut().for_each(|o| o.waiters.touch());
            }
            AttemptAgain => {
                me.at = match () {
                    () if self.has(Bug::AnnouncedLate) => Announce,
                    () if self.has(Bug::ChangesReadLate) => ReadChanges,
                    () => List,
                };
                if self.attempt(&mut n, p) {
                    self.finish(p, &mut n.processes[p]);
                }
            }
            List => {
                me.looks += 1;
                if me.looks as usize == self.config.slots {
                    me.at = Sleep;
                }
                let (found, token) = (s.claims[slot], s.tokens[slot]);
                let skip = found == 0 || found == mine && !self.has(Bug::OwnTokenWatched);
                let dead = me.asks_all && !skip && s.processes[found as usize - 1].life == Life::Dead;
                let marked = token.of == found && token.marked && !was.told;
                if !skip && (marked || dead && !self.has(Bug::AsksTheSuspectOnly)) {
                    (me.at, me.looks, me.found) = (PassOnMarked, slot as u8, found);
                    self.note(Outcome::FoundMarked);
                } else if !skip && token.of == found && !token.marked {
                    me.tokens[slot] = Seen::Same;
                } else if !skip && token.of != found {
                    me.short = true;
                }
            }
            PassOnMarked => {
                (me.at, me.told) = (Prove, true);
                wakes = Some((token(slot), MOST));
            }
            Prove => {
                // Not proven: waits for the proof a little, and starts over.
                if s.processes[me.found as usize - 1].life == Life::Dead {
                    me.at = Bury;
                } else if self.has(Bug::SleepsBesideMarked) {
                    (me.at, me.looks) = (List, me.looks + 1);
                    if me.looks as usize == self.config.slots {
                        me.at = Sleep;
                    }
                } else {
                    self.note(Outcome::WaitedForProof);
                    self.start_over(&mut n, p);
                }
            }
            Bury | FreeSlot => {
                let counts = (was.at == Bury) != self.has(Bug::CountedLate);
                if counts {
                    self.bump_changes(&mut n);
                } else if s.claims[slot] == was.found {
                    n.claims[slot] = 0;
                }
                let me = &mut n.processes[p];
                if was.at == Bury {
                    me.at = FreeSlot;
                } else if op == Some(Op::Arrive) {
                    (me.at, me.found) = (FindSlot, 0);
                } else {
                    self.start_over(&mut n, p);
                }
            }
            Sleep => {
                let changes = me.changes == Seen::Changed && !self.has(Bug::ChangesIgnored);
                let tokens = me.tokens.contains(&Seen::Changed) && !self.has(Bug::TokensUnchecked);
                let seq = me.seq == Seen::Changed && !self.has(Bug::SeqUnchecked);
                me.at = if seq || changes || tokens { Woken } else { Asleep };
                me.asks_all = false;
                if changes && !seq && !tokens {
                    self.note(Outcome::TableHadChanged);
                }
                if me.at == Asleep {
                    me.queued = if self.has(Bug::ChangesIgnored) { SEQ } else { SEQ | CHANGES };
                    for (slot, _) in me.tokens.iter().enumerate().filter(|(_, t)| **t != Seen::Not) {
                        me.queued |= token(slot);
                    }
                }
            }
            Woken => {
                (me.queued, me.at) = (0, PassOn);
                if self.has(Bug::LooksBeforePassOn) && op != Some(Op::WaitReady) && self.attempt(&mut n, p) {
                    self.finish(p, &mut n.processes[p]);
                }
            }
            PassOn => {
                let changed = me.tokens.iter().position(|&t| t == Seen::Changed);
                if let Some(slot) = changed.filter(|_| !self.has(Bug::NoPassOn)) {
                    (me.tokens[slot], me.told) = (Seen::Not, true);
                    self.note(Outcome::PassedOn);
                    wakes = Some((token(slot), MOST));
                } else {
                    me.told |= changed.is_some();
                    self.start_over(&mut n, p);
                }
            }

            Lock => {
                // An abstract lock: taken when it is free or its holder is proven dead.
                if s.lock != 0 && s.processes[s.lock as usize - 1].life != Life::Dead {
                    return;
                }
                n.lock = mine;
                me.at = if op == Some(Op::WaitReady) { Check } else { Change };
            }
            Check => {
                me.at = if s.ready > 0 { Unlock } else { ReadSeq };
                n.ready = s.ready.saturating_sub(1);
                if s.ready == 0 && self.has(Bug::UnlocksBeforeListening) {
                    n.lock = 0;
                }
            }
            UnlockToSleep => {
                n.lock = 0;
                me.at = List;
            }
            Unlock => {
                n.lock = 0;
                if op == Some(Op::WaitReady) {
                    self.note(Outcome::Returned);
                }
                self.finish(p, me);
            }

            Change => {
                me.at = LoadWaiters;
                match op {
                    Some(Op::Release) if s.owner == mine => n.owner = 0,
                    Some(Op::Release) => unreachable!("a living owner keeps it"),
                    Some(Op::Notify(count)) => n.ready += count.max(1),
                    _ => n.set = true,
                }
                if self.has(Bug::WakesBeforeChange) {
                    self.finish(p, &mut n.processes[p]);
                }
            }
            LoadWaiters => {
                me.waiters = Seen::Same;
                me.at = match s.flag {
                    true if self.has(Bug::WakesBeforeBump) => WakeSeq,
                    true if self.has(Bug::ClearedBeforeWakingOne) => ClearFlag,
                    true => BumpSeq,
                    false => self.after_notify(op),
                };
                if me.at == Done {
                    self.finish(p, me);
                }
            }
            BumpSeq => {
                me.at = WakeSeq;
                n.processes.iter_mut().for_each(|o| o.seq.touch());
                if let Some(Op::Notify(count)) = op {
                    let waiting = self.notified(&n);
                    n.owed = if count == 0 { waiting } else { waiting.min(s.owed + count) };
                }
                if self.has(Bug::WakesBeforeBump) {
                    let me = &mut n.processes[p];
                    me.at = self.after_notify(op);
                    if me.at == Done {
                        self.finish(p, me);
                    }
                }
            }
            WakeSeq => {
                let count = match op {
                    Some(Op::Notify(count)) if count > 0 => count.into(),
                    _ if self.has(Bug::WakesOneForAll) => 1,
                    _ => MOST,
                };
                for (mut n, woke) in self.wake(n, SEQ, count) {
                    let me = &mut n.processes[p];
                    let clear = (woke == 0 || self.has(Bug::ClearedThoughWoken))
                        && !self.has(Bug::ClearedBeforeWakingOne);
                    me.at = match () {
                        () if self.has(Bug::WakesBeforeBump) => BumpSeq,
                        () if clear => ClearFlag,
                        () => self.after_notify(op),
                    };
                    if me.at == Done {
                        self.finish(p, me);
                    }
                    to.push((Act::Step, p, n));
                }
                return;
            }
            ClearFlag => {
                if s.processes[p].waiters == Seen::Same || self.has(Bug::ClearedUncounted) {
                    n.flag = false;
                    n.processes.iter_mut().for_each(|o| o.waiters.touch());
                    self.note(Outcome::FlagCleared);
                }
                let me = &mut n.processes[p];
                me.at = if self.has(Bug::ClearedBeforeWakingOne) { BumpSeq } else { self.after_notify(op) };
                if me.at == Done {
                    self.finish(p, me);
                }
            }

            BumpGeneration => {
                me.left = true;
                me.at = if self.has(Bug::LeavesByToken) { ClearToken } else { CountOwn };
            }
            ClearToken => {
                let slot = me.slot.expect("has a slot") as usize;
                me.at = WakeToken;
                set_token(&mut n, slot, Token::default());
            }
            WakeToken => {
                me.at = CountOwn;
                wakes = Some((token(me.slot.expect("has a slot") as usize), MOST));
            }
            CountOwn => {
                me.at = FreeOwn;
                self.bump_changes(&mut n);
            }
            FreeOwn => {
                me.at = CountAgain;
                n.claims[me.slot.expect("has a slot") as usize] = 0;
                if self.has(Bug::LeavesByToken) || self.has(Bug::LeavesSilently) {
                    self.finish(p, me);
                }
            }
            CountAgain => {
                me.at = WakeForLeave;
                self.bump_changes(&mut n);
            }
            WakeForLeave => {
                self.finish(p, me);
                wakes = Some((CHANGES, MOST));
            }
            Asleep | Done => return,
        }
        match wakes {
            Some((word, count)) => {
                for (n, _) in self.wake(n, word, count) {
                    to.push((Act::Step, p, n));
                }
            }
            None => to.push((Act::Step, p, n)),
        }
    }

    fn after_notify(&self, op: Option<Op>) -> At {
        match op {
            Some(Op::Notify(_)) => At::Unlock,
            _ if self.has(Bug::WakesBeforeChange) => At::Change,
            _ => At::Done,
        }
    }

    fn fate(&mut self, s: &State, p: usize, to: &mut Vec<(Act, usize, State)>) {
        let me = &s.processes[p];
        let at_stake = me.at != At::Done || me.slot.is_some() && !me.left;
        match me.life {
            Life::Alive | Life::Stopped if s.kills > 0 && at_stake && self.config.kills.1.contains(&p) => {
                let mut n = *s;
                n.kills -= 1;
                if me.at == At::Woken {
                    self.note(Outcome::WokenKilled);
                }
                // One on a queue stays there until its thread has ended.
                n.processes[p].life = Life::Dying;
                n.processes[p].ended = me.queued == 0 && !self.config.lingering;
                n.owed = s.owed.min(self.notified(&n));
                if me.slot.is_some() && !me.left && self.op(p, me.op) != Some(Op::Arrive) {
                    for o in n.processes.iter_mut().filter(|o| o.life == Life::Alive) {
                        o.must_return |= o.changes != Seen::Not;
                    }
                }
                to.push((Act::Kill, p, n));
            }
            Life::Dying => {
                if !me.ended {
                    let mut n = *s;
                    (n.processes[p].ended, n.processes[p].queued) = (true, 0);
                    to.push((Act::Exit, p, n));
                }
                if !me.marked {
                    let mut n = *s;
                    n.processes[p].marked = true;
                    let slot = me.slot.filter(|&slot| s.tokens[slot as usize].of == p as u8 + 1);
                    if s.misses > 0 && slot.is_some() {
                        let mut n = n;
                        (n.misses, n.missed) = (n.misses - 1, true);
                        to.push((Act::MissToken, p, n));
                    }
                    if let Some(slot) = slot {
                        set_token(&mut n, slot.into(), Token { of: p as u8 + 1, marked: true });
                    }
                    for (n, _) in self.wake(n, slot.map_or(0, |slot| token(slot.into())), 1) {
                        to.push((Act::MarkToken, p, n));
                    }
                }
                if me.ended && me.marked {
                    let mut n = *s;
                    let (slot, left, op) = (me.slot, me.left, me.op);
                    let others_came_or_went = false;
                    n.processes[p] = Process {
                        life: Life::Dead,
                        at: At::Done,
                        op,
                        slot,
                        left,
                        others_came_or_went,
                        ..Process::default()
                    };
                    to.push((Act::End, p, n));
                }
            }
            _ => {}
        }
        if me.life == Life::Alive && s.stops > 0 && me.at != At::Done && self.config.stops.1.contains(&p) {
            let mut n = *s;
            n.stops -= 1;
            n.processes[p].life = Life::Stopped;
            n.owed = s.owed.min(self.notified(&n));
            to.push((Act::Stop, p, n));
        }
    }

    fn bump_changes(&self, n: &mut State) {
        let asked = self.config.programs.iter().any(|ops| ops.contains(&Op::Wait));
        for o in &mut n.processes {
            o.changes.touch();
            o.others_came_or_went |= asked && o.slot.is_some();
        }
    }

    /// How many living waiters have been notified, or others in their place.
    fn notified(&self, s: &State) -> u8 {
        let waits = |o: &&Process| o.life == Life::Alive && o.seq == Seen::Changed;
        s.processes.iter().filter(waits).count() as u8
    }

    /// Whether a sleeper should be awake.
    fn has_reason(&self, s: &State, p: usize) -> bool {
        let gone = |q: usize| s.processes[q].left || s.processes[q].life == Life::Dead;
        let me = &s.processes[p];
        match self.op(p, me.op) {
            Some(Op::Acquire) => s.owner == 0 || gone(s.owner as usize - 1),
            Some(Op::Wait) => {
                let mut peers = (0..MOST).filter(|&q| q != p && s.processes[q].slot.is_some()).peekable();
                let has_gone = |q: usize| {
                    gone(q) && (s.processes[q].life == Life::Dead || !s.claims.contains(&(q as u8 + 1)))
                };
                s.set || peers.peek().is_some() && peers.all(has_gone)
            }
            _ => {
                me.must_return
                    || s.owed > 0 && me.seq == Seen::Changed
                    || s.ready > 0 && (s.lock == 0 || gone(s.lock as usize - 1))
            }
        }
    }
}

fn forget(me: &mut Process) {
    (me.seq, me.changes, me.waiters) = (Seen::Not, Seen::Not, Seen::Not);
    (me.tokens, me.short, me.told, me.asks_all) = ([Seen::Not; MOST], false, false, false);
    (me.looks, me.found, me.must_return) = (0, 0, false);
}

fn set_token(n: &mut State, slot: usize, token: Token) {
    n.tokens[slot] = token;
    n.processes.iter_mut().for_each(|o| o.tokens[slot].touch());
}

impl Model for Sleep<'_> {
    type State = State;

    fn moves(&mut self, s: &State, to: &mut Vec<(Act, usize, State)>) -> Option<Wrong> {
        for p in 0..self.config.programs.len() {
            let me = &s.processes[p];
            let runs_on = me.life == Life::Dying && !me.ended && self.config.lingering && me.queued == 0;
            if me.life == Life::Alive && me.at == At::Asleep && (self.config.slices || me.short) {
                let mut n = *s;
                let me = &mut n.processes[p];
                (me.at, me.asks_all) = (At::Woken, true);
                to.push((Act::Slice, p, n));
            } else if me.life == Life::Alive || runs_on {
                self.step(s, p, to);
            }
            self.fate(s, p, to);
        }
        None
    }

    fn check(&self, _: &State) -> Option<Wrong> {
        None
    }

    fn rest(&self, s: &State, quiet: bool) -> Option<Result<(), Option<Stranding>>> {
        if !quiet {
            return None;
        }
        let asleep = |p: &usize| s.processes[*p].life == Life::Alive && s.processes[*p].at == At::Asleep;
        let Some(_) = (0..MOST).find(|p| asleep(p) && self.has_reason(s, *p)) else {
            return Some(Ok(()));
        };
        let stopped = s.processes.iter().find(|o| o.life == Life::Stopped);
        Some(Err(match stopped.map(|o| o.at) {
            _ if s.missed => Some(Stranding::KernelMissed),
            Some(At::LoadWaiters | At::BumpSeq | At::WakeSeq | At::CountAgain | At::WakeForLeave) => {
                Some(Stranding::WakerStopped)
            }
            Some(At::Asleep | At::Woken | At::PassOn | At::PassOnMarked)
                if s.tokens.iter().any(|t| t.marked) =>
            {
                Some(Stranding::PasserStopped)
            }
            Some(_) if s.ready > 0 => Some(Stranding::NotifiedStopped),
            _ => None,
        }))
    }

    fn tell(&self, s: &State, who: Option<usize>) -> String {
        if let Some(p) = who {
            return format!("{:?}", s.processes[p].at);
        }
        let slots = s.claims.iter().zip(&s.tokens).take(self.config.slots);
        let slots = slots.map(|(claim, t)| format!("{claim}/{}{}", t.of, if t.marked { "!" } else { "" }));
        let processes = s.processes[..self.config.programs.len()].iter().enumerate();
        let processes = processes.map(|(p, x)| {
            let stale = |seen, name| if seen == Seen::Changed { name } else { "" };
            let (a, b) = (stale(x.seq, "+seq"), stale(x.changes, "+changes"));
            format!("{}:{:?}.{:?}{a}{b}", p + 1, x.life, x.at)
        });
        let words = format!(
            "flag {} owner {} set {} lock {} ready {} owed {}",
            s.flag as u8, s.owner, s.set as u8, s.lock, s.ready, s.owed
        );
        slots.chain([words]).chain(processes).collect::<Vec<_>>().join(" ")
    }

    fn outcomes(&self) -> u32 {
        self.seen
    }
}

const ANY: &[usize] = &[0, 1, 2, 3];

const CONFIGS: &[Config] = &[
    Config {
        name: "three use a semaphore, nobody killed",
        programs: &[&[Acquire, Release], &[Acquire, Release], &[Acquire, Release]],
        shows: &[FlagCleared],
        at_least: 5000,
        ..PLAIN
    },
    Config {
        name: "three use a semaphore, two killed, threads run on",
        programs: &[&[Release], &[Acquire, Release], &[Acquire, Release]],
        owned: true,
        kills: (2, &[0, 1]),
        lingering: true,
        shows: &[
            ReachedTheDying,
            ReachedTheWoken,
            PassedOn,
            WokenKilled,
            FoundMarked,
            WaitedForProof,
            TableHadChanged,
            TakenOver,
        ],
        at_least: 200_000,
        ..PLAIN
    },
    Config {
        name: "one comes into the slot of the dead owner and releases, two killed",
        programs: &[&[Release], &[Acquire], &[Acquire], &[Arrive, Acquire, Release]],
        owned: true,
        kills: (2, &[0, 3]),
        shows: &[SlotReused],
        at_least: 300_000,
        ..PLAIN
    },
    Config {
        name: "event: set by a newcomer, one killed",
        programs: &[&[Wait], &[Wait], &[Arrive, Set]],
        kills: (1, &[1, 2]),
        shows: &[ToldAlone],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "event: peers leave or are killed",
        programs: &[&[Wait], &[Leave], &[Leave]],
        kills: (2, &[1, 2]),
        shows: &[ToldAlone],
        at_least: 10_000,
        ..PLAIN
    },
    Config {
        name: "event: two wait, two killed",
        programs: &[&[Wait], &[Wait], &[Set]],
        kills: (2, &[1, 2]),
        lingering: true,
        shows: &[],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "condition: two wait, one notifies one twice, one killed",
        programs: &[&[WaitReady], &[WaitReady], &[Notify(1), Notify(1)]],
        kills: (1, ANY),
        shows: &[Returned],
        at_least: 20_000,
        ..PLAIN
    },
    Config {
        name: "condition: two wait, one notifies all, two killed",
        programs: &[&[WaitReady], &[WaitReady], &[Notify(0), Notify(2)]],
        kills: (2, &[1, 2]),
        lingering: true,
        shows: &[Returned],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "condition: three wait, two notify one, nobody killed",
        programs: &[&[WaitReady], &[WaitReady], &[Notify(1)], &[Notify(1)]],
        slots: 4,
        shows: &[Returned],
        at_least: 2000,
        ..PLAIN
    },
    Config {
        name: "semaphore: one stopped, one killed",
        programs: &[&[Release], &[Acquire, Release], &[Acquire, Release]],
        owned: true,
        kills: (1, ANY),
        stops: (1, ANY),
        needs_slice: &[WakerStopped, PasserStopped],
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "semaphore: the kernel misses one, one killed",
        programs: &[&[Release], &[Acquire, Release], &[Acquire, Release]],
        owned: true,
        kills: (1, ANY),
        misses: 1,
        needs_slice: &[KernelMissed],
        at_least: 40_000,
        ..PLAIN
    },
    Config {
        name: "condition: one stopped",
        programs: &[&[WaitReady], &[WaitReady], &[Notify(1)]],
        stops: (1, ANY),
        needs_slice: &[WakerStopped, NotifiedStopped],
        at_least: 1000,
        ..PLAIN
    },
    Config {
        name: "semaphore: one stopped, one killed or missed, slices",
        programs: &[&[Release], &[Acquire, Release], &[Acquire, Release]],
        owned: true,
        kills: (1, &[0, 1]),
        stops: (1, &[0, 1]),
        misses: 1,
        slices: true,
        at_least: 200_000,
        ..PLAIN
    },
    Config {
        name: "condition: one stopped, one killed, slices",
        programs: &[&[WaitReady], &[WaitReady], &[Notify(1)]],
        kills: (1, ANY),
        stops: (1, ANY),
        slices: true,
        at_least: 100_000,
        ..PLAIN
    },
    Config {
        name: "event: leave, one stopped, one killed, slices",
        programs: &[&[Wait], &[Leave], &[Arrive, Leave]],
        kills: (1, &[1, 2]),
        stops: (1, &[1, 2]),
        slices: true,
        ..PLAIN
    },
];
fn missing(config: &Config, seen: u32) -> Vec<Outcome> {
    config.shows.iter().copied().filter(|&o| seen & 1 << o as u32 == 0).collect()
}

fn all(slices: bool) {
    for config in CONFIGS.iter().filter(|config| config.slices == slices) {
        let report = run(config, None);
        expect(config.name, &report, config.needs_slice, &missing(config, report.outcomes), config.at_least);
    }
}

#[test]
fn nobody_sleeps_for_ever_but_the_named_strandings() {
    all(false);
}

#[test]
fn with_slices_everybody_finishes() {
    all(true);
}

#[test]
fn planted_bugs_are_caught() {
    for &(bug, text, expected, name) in BUGS {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        expect_caught(run(config, Some(bug)), text, expected, name);
    }
}
