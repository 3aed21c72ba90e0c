//! The participant table; see `main.rs`.

use Outcome::*;
use Role::*;

use crate::explore::{Act, Model, Report, Stranding, Wrong, expect, expect_caught, explore};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    BuriedByTwo,
    CameTooLateToBury,
    ReplacedWasBuried,
    DiedClaiming,
    DiedBurying,
    DiedLeaving,
    OldMarkSeen,
    FoundDead,
    FoundAlive,
}

const SLOTS: usize = 2;
const MOST: usize = 4;

/// In the order in which the kernel does it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Hash, Default, Debug)]
enum Life {
    #[default]
    Alive,
    /// For ever, as far as the others can tell.
    Stopped,
    /// Its threads run on for a while.
    Dying,
    /// As before, and its token is marked.
    Marked,
    /// No thread of it will run again, its record lock is free. If it was replaced by exec, it stays so.
    Gone,
    /// The pidfd is readable.
    Dead,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
enum At {
    #[default]
    Look,
    // prove
    AskLock,
    ReadFirst,
    ReadSealed,
    ReadToken,
    NothingMoved,
    AskPidfd,
    // bury
    ReadGeneration,
    ClaimStillDead,
    Bump,
    Count,
    Free,
    // come
    Claim,
    TakeGeneration,
    ClearToken,
    Seal,
    SetToken,
    Attached,
    // go
    BumpOwn,
    CountOwn,
    Unseal,
    FreeOwn,
    // dead?
    SameGeneration,
    ReadClaim,
    StillTheSame,
    Rest,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Slot {
    /// Process + 1, as for `sealed` and `token`; 0: none.
    claim: u8,
    generation: u8,
    sealed: u8,
    token: u8,
}
const MARKED: u8 = 0x80;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Process {
    life: Life,
    replaced: bool,
    lost_lock: bool,
    at: At,
    laps: u8,
    /// Its identity, kept after it has left; generation 0: has none yet.
    slot: u8,
    me: u8,
    left: bool,
    /// The slot it looks at, and what it saw there.
    looks: u8,
    found: u8,
    generation: u8,
    before: u8,
    sealed: bool,
    marked: bool,
    /// Ghost: whom it asks about was gone when it began to ask.
    was_gone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    slots: [Slot; SLOTS],
    processes: [Process; MOST],
    kills: u8,
    stops: u8,
    execs: u8,
    /// Ghosts, bits of processes: has taken a slot; has been counted as departed since.
    claimed: u8,
    counted: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Takes a slot, burying who is dead, and keeps it.
    Stays,
    /// Takes a slot and leaves, so many times.
    Leaves(u8),
    /// Looks into slots, so many times, and buries who is dead.
    Buries(u8),
    /// Asks whether this process is dead, so many times.
    Asks(usize, u8),
}

struct Config {
    name: &'static str,
    roles: &'static [Role],
    /// This many have taken their slots at the start.
    attached: usize,
    /// What the environment may do.
    kills: u8,
    stops: u8,
    execs: u8,
    /// Process 0 has lost its record lock.
    lost_lock: bool,
    slots: usize,
    shows: &'static [Outcome],
    at_least: usize,
}

bugs! {
    TokenIsProof "takes a marked token for a proof"
        is LivingTakenForDead in "three want two slots, two killed, one stopped"
    SealIgnored "believes the token of a slot that is not sealed"
        is LivingTakenForDead in "one that lost its record lock comes and goes"
    SealedBeforeTokenCleared "seals its slot before it clears the old token"
        is LivingTakenForDead in "one that lost its record lock comes and goes"
    TokenUnconfirmed "does not ask whether sealed and token were of one participant"
        is LivingTakenForDead in "one that lost its record lock comes and goes"
    TokenConfirmedByClaim "asks that of claim, which names the same life again after it came back"
        is LivingTakenForDead in "one that lost its record lock comes and goes"
    GenerationReadEarly "buries with a generation read before the proof"
        is DeathUnseen in "three want two slots, two killed, one stopped"
    ClaimNotReadAgain "buries without reading the claim again after the generation"
        is LivingTakenForDead in "two are killed, one comes, one buries"
    BumpByAdd "buries by adding to the generation"
        is LivingTakenForDead in "two are killed, one comes, one buries"
    FreedBeforeBump "buries by freeing the claim first"
        is DeathUnseen in "three want two slots, two killed, one stopped"
    FreedByStore "buries by storing 0 to the claim"
        is SlotStolen in "two are killed, one comes, one buries"
    NeverBumped "buries without bumping the generation"
        is DeathUnseen in "three want two slots, two killed, one stopped"
    CountedLate "counts the dead after freeing the slot"
        is DepartureUncounted in "three want two slots, two killed, one stopped"
    ClaimantKeepsGeneration "claims without bumping the generation"
        is LivingTakenForDead in "three want two slots, two killed, one stopped"
    LeaverKeepsGeneration "leaves without bumping the generation"
        is DeathUnseen in "come and go, one killed, one asks"
    LeaverFreesFirst "frees its slot, then bumps the generation"
        is SlotStolen in "come and go, one killed, one asks"
    LeaverCountsLate "counts itself after freeing its slot"
        is DepartureUncounted in "come and go, one killed, one asks"
    LeavesUncounted "leaves without counting itself"
        is DepartureUncounted in "come and go, one killed, one asks"
    AsksClaimOnly "asks whether one is dead without comparing generations"
        is DeathUnseen in "one is asked about, another takes its slot"
    DeadKeepSlots "does not bury whom it finds dead"
        is NeverFinishes in "three want two slots, two killed, one stopped"
}
struct Table<'a> {
    config: &'a Config,
    bug: Option<Bug>,
    seen: u32,
    wrong: Option<Wrong>,
}

fn run(config: &Config, bug: Option<Bug>) -> Report {
    let mut s = State { kills: config.kills, stops: config.stops, execs: config.execs, ..State::default() };
    for p in &mut s.processes[config.roles.len()..] {
        (p.at, p.life) = (At::Rest, Life::Dead);
    }
    s.processes[0].lost_lock = config.lost_lock;
    for slot in &mut s.slots {
        slot.generation = 1;
    }
    for (p, role) in config.roles.iter().enumerate() {
        let me = &mut s.processes[p];
        (me.at, me.laps) = match *role {
            Role::Stays => (At::Look, 1),
            Role::Leaves(laps) | Role::Buries(laps) => (At::Look, laps),
            Role::Asks(_, laps) => (At::SameGeneration, laps),
        };
        if p < config.attached {
            (me.at, me.slot, me.me) = (At::Attached, p as u8, 1);
            let mine = p as u8 + 1;
            s.slots[p] = Slot { claim: mine, generation: 1, sealed: mine, token: mine };
            s.claimed |= 1 << p;
        }
    }
    explore(Table { config, bug, seen: 0, wrong: None }, s, false, &[])
}

impl Table<'_> {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn note(&mut self, outcome: Outcome) {
        self.seen |= 1 << outcome as u32;
    }

    /// After the proof, or the lack of it.
    fn proven(&self, role: Role, me: &mut Process, dead: bool) {
        me.at = match (role, dead) {
            (Role::Asks(..), _) => At::StillTheSame,
            (_, false) => At::Look,
            (_, true) if self.has(Bug::GenerationReadEarly) => At::ClaimStillDead,
            (_, true) => At::ReadGeneration,
        };
        if !dead {
            me.found = 0;
            if matches!(role, Role::Buries(_)) {
                done(me, At::Look);
            }
        }
    }

    /// The answer to "is it dead?".
    fn answer(&mut self, s: &State, me: &mut Process, asked: usize, dead: bool) {
        let other = &s.processes[asked];
        let is_it = other.slot == me.looks && other.me == me.generation;
        let lives = is_it && !other.left && other.life < Life::Gone;
        match dead {
            true if lives => self.wrong = Some(Wrong::LivingTakenForDead),
            false if me.was_gone => self.wrong = Some(Wrong::DeathUnseen),
            true => self.note(Outcome::FoundDead),
            false => self.note(Outcome::FoundAlive),
        }
        done(me, At::SameGeneration);
    }

    fn step(&mut self, s: &State, p: usize, to: &mut Vec<(Act, usize, State)>) {
        use At::*;
        let role = self.config.roles[p];
        let mine = p as u8 + 1;
        let mut n = *s;
        let mut me = s.processes[p];
        let at = if matches!(me.at, ClearToken | Seal | SetToken | BumpOwn | CountOwn | Unseal | FreeOwn) {
            me.slot
        } else {
            me.looks
        };
        let was = s.slots[at as usize];
        let slot = &mut n.slots[at as usize];
        let found = (me.found as usize).checked_sub(1).map(|q| &s.processes[q]);
        match me.at {
            Look => {
                for (i, slot) in s.slots[..self.config.slots].iter().enumerate() {
                    let mut n = *s;
                    let me = &mut n.processes[p];
                    (me.looks, me.found) = (i as u8, slot.claim);
                    match (role, slot.claim) {
                        (Role::Buries(_), 0) => done(me, Look),
                        (_, 0) => me.at = Claim,
                        (_, claim) if claim == mine || self.has(Bug::DeadKeepSlots) => {}
                        _ if self.has(Bug::GenerationReadEarly) => me.at = ReadGeneration,
                        _ => me.at = AskLock,
                    }
                    to.push((Act::Step, p, n));
                }
                return;
            }

            AskLock => {
                let holder = found.expect("a life was found");
                let held = holder.life < Life::Gone && !holder.lost_lock && !self.has(Bug::TokenIsProof);
                me.at = ReadFirst;
                if held {
                    self.proven(role, &mut me, false);
                }
            }
            ReadFirst => {
                (me.before, me.at) = (was.generation, ReadSealed);
            }
            ReadSealed => {
                me.sealed = was.sealed == me.found || self.has(Bug::SealIgnored);
                me.at = ReadToken;
            }
            ReadToken => {
                me.marked = was.token & MARKED != 0;
                me.at = NothingMoved;
                if me.marked && !me.sealed {
                    self.note(Outcome::OldMarkSeen);
                }
            }
            NothingMoved => {
                let still = match self.bug {
                    Some(Bug::TokenUnconfirmed) => true,
                    Some(Bug::TokenConfirmedByClaim) => was.claim == me.found,
                    _ => was.generation == me.before,
                };
                me.at = AskPidfd;
                if me.sealed && me.marked && still {
                    self.proven(role, &mut me, true);
                }
            }
            AskPidfd => {
                let dead = found.expect("a life was found").life == Life::Dead;
                self.proven(role, &mut me, dead);
            }

            ReadGeneration => {
                me.generation = was.generation;
                me.at = if self.has(Bug::GenerationReadEarly) { AskLock } else { ClaimStillDead };
            }
            ClaimStillDead => {
                let still = was.claim == me.found || self.has(Bug::ClaimNotReadAgain);
                me.at = match still {
                    false => Look,
                    true if self.has(Bug::FreedBeforeBump) || self.has(Bug::NeverBumped) => Free,
                    true => Bump,
                };
                if !still {
                    self.note(Outcome::CameTooLateToBury);
                }
            }
            Bump => {
                if was.generation == me.generation || self.has(Bug::BumpByAdd) {
                    slot.generation += 1;
                } else {
                    self.note(Outcome::BuriedByTwo);
                }
                me.at = match () {
                    () if self.has(Bug::FreedBeforeBump) => Look,
                    () if self.has(Bug::CountedLate) => Free,
                    () => Count,
                };
            }
            Count => {
                n.counted |= 1 << (me.found - 1);
                me.at = if self.has(Bug::CountedLate) { Look } else { Free };
            }
            Free => {
                if was.claim == me.found || self.has(Bug::FreedByStore) {
                    slot.claim = 0;
                    if found.is_some_and(|f| f.life == Life::Gone && f.replaced) {
                        self.note(Outcome::ReplacedWasBuried);
                    }
                }
                me.at = Look;
                if self.has(Bug::FreedBeforeBump) {
                    me.at = Bump;
                } else if self.has(Bug::CountedLate) {
                    me.at = Count;
                }
            }

            Claim => {
                me.at = Look;
                if was.claim == 0 {
                    slot.claim = mine;
                    n.claimed |= 1 << p;
                    n.counted &= !(1 << p);
                    (me.at, me.slot, me.me, me.left) = (TakeGeneration, at, 0, false);
                }
            }
            TakeGeneration => {
                slot.generation += u8::from(!self.has(Bug::ClaimantKeepsGeneration));
                me.me = slot.generation;
                me.at = if self.has(Bug::SealedBeforeTokenCleared) { Seal } else { ClearToken };
                if s.processes.iter().any(|o| o.me == me.me && o.slot == me.slot) {
                    self.wrong = Some(Wrong::SameIdentity);
                }
            }
            ClearToken => {
                slot.token = 0;
                me.at = if self.has(Bug::SealedBeforeTokenCleared) { SetToken } else { Seal };
            }
            Seal => {
                slot.sealed = mine;
                me.at = if self.has(Bug::SealedBeforeTokenCleared) { ClearToken } else { SetToken };
            }
            SetToken => {
                slot.token = mine;
                me.at = Attached;
            }
            Attached => {
                me.at = match role {
                    Role::Leaves(_) if self.has(Bug::LeaverKeepsGeneration) => CountOwn,
                    Role::Leaves(_) if self.has(Bug::LeaverFreesFirst) => FreeOwn,
                    Role::Leaves(_) => BumpOwn,
                    _ => Rest,
                }
            }

            BumpOwn => {
                slot.generation += 1;
                me.left = true;
                me.at = if self.has(Bug::LeaverCountsLate) { Unseal } else { CountOwn };
                if self.has(Bug::LeavesUncounted) {
                    me.at = Unseal;
                } else if self.has(Bug::LeaverFreesFirst) {
                    done(&mut me, Look);
                }
            }
            CountOwn => {
                n.counted |= 1 << p;
                me.at = Unseal;
                if self.has(Bug::LeaverCountsLate) {
                    done(&mut me, Look);
                }
            }
            Unseal => {
                slot.sealed = 0;
                me.at = FreeOwn;
            }
            FreeOwn => {
                slot.claim = 0;
                if self.has(Bug::LeaverFreesFirst) {
                    n.counted |= 1 << p;
                    me.at = BumpOwn;
                } else if self.has(Bug::LeaverCountsLate) {
                    me.at = CountOwn;
                } else {
                    me.left = true;
                    done(&mut me, Look);
                }
            }

            SameGeneration => {
                let Role::Asks(asked, _) = role else { unreachable!("asks") };
                let other = &s.processes[asked];
                if other.me == 0 {
                    return;
                }
                (me.looks, me.generation) = (other.slot, other.me);
                me.was_gone = other.left || other.life == Life::Dead;
                me.at = ReadClaim;
                if s.slots[other.slot as usize].generation != other.me && !self.has(Bug::AsksClaimOnly) {
                    self.answer(s, &mut me, asked, true);
                }
            }
            ReadClaim => {
                me.found = was.claim;
                me.at = if me.found == 0 { StillTheSame } else { AskLock };
            }
            StillTheSame => {
                let Role::Asks(asked, _) = role else { unreachable!("asks") };
                let proven = me.found != 0 && was.claim == me.found;
                let same = was.generation == me.generation || self.has(Bug::AsksClaimOnly);
                self.answer(s, &mut me, asked, proven || !same);
            }
            Rest => return,
        }
        tidy(&mut me);
        n.processes[p] = me;
        to.push((Act::Step, p, n));
    }

    /// What may happen to a process.
    fn fate(&mut self, s: &State, p: usize, to: &mut Vec<(Act, usize, State)>) {
        let me = s.processes[p];
        let mut push = |act, change: &dyn Fn(&mut State)| {
            let mut n = *s;
            change(&mut n);
            to.push((act, p, n));
        };
        match me.life {
            Life::Alive | Life::Stopped => {
                let at_stake = me.at != At::Rest || me.me != 0;
                if s.kills > 0 && at_stake {
                    push(Act::Kill, &|n| (n.kills, n.processes[p].life) = (s.kills - 1, Life::Dying));
                }
                if s.execs > 0 && at_stake && me.life == Life::Alive {
                    push(Act::Exec, &|n| {
                        (n.execs, n.processes[p].life) = (s.execs - 1, Life::Dying);
                        n.processes[p].replaced = true;
                    });
                }
                if s.stops > 0 && me.at != At::Rest && me.life == Life::Alive {
                    push(Act::Stop, &|n| (n.stops, n.processes[p].life) = (s.stops - 1, Life::Stopped));
                }
            }
            Life::Dying => push(Act::MarkToken, &|n| {
                // (Its threads end with it if the record lock can not tell.)
                n.processes[p].life = if me.lost_lock { Life::Gone } else { Life::Marked };
                for slot in &mut n.slots {
                    if slot.token == p as u8 + 1 {
                        slot.token |= MARKED;
                    }
                }
            }),
            Life::Marked => {
                push(Act::FreeLock, &|n| n.processes[p].life = Life::Gone);
                match me.at {
                    At::TakeGeneration => self.note(Outcome::DiedClaiming),
                    At::Count | At::Free => self.note(Outcome::DiedBurying),
                    At::CountOwn | At::Unseal | At::FreeOwn => self.note(Outcome::DiedLeaving),
                    _ => {}
                }
            }
            // What it was replaced by ends some day, or not.
            Life::Gone => push(if me.replaced { Act::Kill } else { Act::End }, &|n| {
                n.processes[p].life = Life::Dead;
            }),
            Life::Dead => {}
        }
    }
}

fn done(me: &mut Process, again: At) {
    me.laps -= 1;
    me.at = if me.laps == 0 { At::Rest } else { again };
}

/// Forgets what no later step reads, so that equal futures are equal states.
fn tidy(me: &mut Process) {
    if matches!(me.at, At::Look | At::Rest | At::Attached | At::SameGeneration) {
        (me.looks, me.found, me.generation, me.was_gone) = (0, 0, 0, false);
    }
    if !matches!(me.at, At::ReadSealed | At::ReadToken | At::NothingMoved) {
        (me.before, me.sealed, me.marked) = (0, false, false);
    }
}

impl Model for Table<'_> {
    type State = State;

    fn moves(&mut self, s: &State, to: &mut Vec<(Act, usize, State)>) -> Option<Wrong> {
        for p in 0..self.config.roles.len() {
            let me = s.processes[p];
            if matches!(me.life, Life::Alive | Life::Dying | Life::Marked) {
                self.step(s, p, to);
            }
            self.fate(s, p, to);
        }
        self.wrong
    }

    fn check(&self, s: &State) -> Option<Wrong> {
        for (p, me) in s.processes.iter().enumerate() {
            let there = s.claimed >> p & 1 != 0 && !me.left && me.life < Life::Gone;
            let slot = &s.slots[me.slot as usize];
            let mine = slot.claim == p as u8 + 1;
            if there && !mine {
                return Some(Wrong::SlotStolen);
            }
            if there && me.me != 0 && slot.generation != me.me {
                return Some(Wrong::LivingTakenForDead);
            }
            let is_gone = me.life >= Life::Gone || me.left;
            if me.me != 0 && is_gone && slot.generation == me.me && (me.left || !mine) {
                return Some(Wrong::DeathUnseen);
            }
            if s.claimed & !s.counted & 1 << p != 0 && !mine && is_gone {
                return Some(Wrong::DepartureUncounted);
            }
        }
        None
    }

    fn rest(&self, s: &State, _: bool) -> Option<Result<(), Option<Stranding>>> {
        // One that exec replaced before it had its token is proven dead only when its pid ends.
        let taken = |slot: &Slot| {
            slot.claim != 0 && {
                let owner = &s.processes[slot.claim as usize - 1];
                owner.life <= Life::Stopped
                    || owner.life == Life::Gone && !(slot.sealed == slot.claim && slot.token & MARKED != 0)
            }
        };
        let settled = s.processes.iter().zip(self.config.roles).all(|(me, role)| match me.life {
            Life::Dying | Life::Marked => false,
            Life::Gone => me.replaced,
            Life::Stopped | Life::Dead => true,
            Life::Alive => match me.at {
                At::Rest => true,
                At::Look => {
                    !matches!(role, Role::Buries(_)) && s.slots[..self.config.slots].iter().all(taken)
                }
                At::SameGeneration => matches!(role, Role::Asks(of, _) if s.processes[*of].me == 0),
                _ => false,
            },
        });
        settled.then_some(Ok(()))
    }

    fn tell(&self, s: &State, who: Option<usize>) -> String {
        if let Some(p) = who {
            return format!("{:?} in {}", s.processes[p].at, s.processes[p].looks);
        }
        let slots = s.slots.iter().map(|x| {
            let mark = if x.token & MARKED != 0 { "!" } else { "" };
            format!(
                "[claim {} gen {} sealed {} token {}{mark}]",
                x.claim,
                x.generation,
                x.sealed,
                x.token & 7
            )
        });
        let processes = s.processes[..self.config.roles.len()]
            .iter()
            .enumerate()
            .map(|(p, x)| format!("{}:{:?}.{:?}", p + 1, x.life, x.at));
        slots.chain(processes).collect::<Vec<_>>().join(" ")
    }

    fn outcomes(&self) -> u32 {
        self.seen
    }
}

const CONFIGS: &[Config] = &[
    Config {
        name: "three want two slots, two killed, one stopped",
        roles: &[Stays, Stays, Stays],
        attached: 1,
        kills: 2,
        stops: 1,
        execs: 0,
        lost_lock: false,
        slots: 2,
        shows: &[DiedClaiming, DiedBurying],
        at_least: 100_000,
    },
    Config {
        name: "two are killed, one comes, one buries",
        roles: &[Stays, Stays, Stays, Buries(1)],
        attached: 2,
        kills: 2,
        stops: 0,
        execs: 0,
        lost_lock: false,
        slots: 2,
        shows: &[BuriedByTwo, CameTooLateToBury],
        at_least: 100_000,
    },
    Config {
        name: "one is asked about, another takes its slot",
        roles: &[Stays, Stays, Asks(0, 1)],
        attached: 1,
        kills: 2,
        stops: 0,
        execs: 0,
        lost_lock: false,
        slots: 2,
        shows: &[FoundDead, FoundAlive],
        at_least: 20_000,
    },
    Config {
        name: "come and go, one killed, one asks",
        roles: &[Leaves(2), Leaves(1), Asks(0, 1)],
        attached: 1,
        kills: 1,
        stops: 0,
        execs: 0,
        lost_lock: false,
        slots: 2,
        shows: &[DiedLeaving, FoundDead],
        at_least: 100_000,
    },
    Config {
        name: "exec, one killed",
        roles: &[Leaves(1), Stays, Asks(0, 1)],
        attached: 1,
        kills: 1,
        stops: 0,
        execs: 1,
        lost_lock: false,
        slots: 2,
        shows: &[ReplacedWasBuried, OldMarkSeen],
        at_least: 100_000,
    },
    Config {
        name: "one that lost its record lock comes and goes",
        roles: &[Leaves(2), Stays, Buries(1)],
        attached: 1,
        kills: 1,
        stops: 0,
        execs: 0,
        lost_lock: true,
        slots: 1,
        shows: &[OldMarkSeen],
        at_least: 80_000,
    },
];
fn missing(config: &Config, seen: u32) -> Vec<Outcome> {
    config.shows.iter().copied().filter(|&o| seen & 1 << o as u32 == 0).collect()
}

#[test]
fn the_living_keep_their_slots_and_the_dead_do_not() {
    for config in CONFIGS {
        let report = run(config, None);
        expect(config.name, &report, &[], &missing(config, report.outcomes), config.at_least);
    }
}

#[test]
fn planted_bugs_are_caught() {
    for &(bug, text, expected, name) in BUGS {
        let config = CONFIGS.iter().find(|config| config.name == name).expect("the configuration exists");
        expect_caught(run(config, Some(bug)), text, expected, name);
    }
}
