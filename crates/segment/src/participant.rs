//! Participants: who has attached to a segment, and the proof that one of them has died.
//!
//! One slot of 64 bytes per participant:
//!
//! ```text
//!  0  claim        life id of the process that has the slot; 0: free
//!  8  generation   bumped by each claimant before it appears, and when it leaves
//! 16  token        helper's TID | WAITERS; the kernel makes it OWNER_DIED when the process dies; 0: none
//! 20  pid
//! 24  start_time   of the process, clock ticks since boot
//! 32  pidfd_inode  0: kernel does not number pidfds
//! 40  sealed       equals claim once pid, start_time and pidfd_inode belong to it
//! 48  (unused)
//! ```
//!
//! Who may write what: `claim` moves by compare-and-swap only, from 0 to the writer's own life, or from a *proven
//! dead* life to 0. Everything else is written by the process whose life is in `claim`; `token` also by the kernel
//! when that process dies, `generation` by who buries it.
//!
//! What a death leaves behind: at any instruction after the claim's CAS, a slot whose `claim` names a dead
//! life. Whoever has proof of that death *buries* it: bumps `generation`, so that the dead one's identity is gone
//! for everybody at the price of one load, bumps `comings` in the header, then takes the life out of `claim` (both
//! slot words by compare-and-swap from what was read while the proof stood). Each step may be done twice or by another one: a burial that was cut short is
//! continued by the next who looks. A slot is free only when it is buried, so a living claimant never hides a dead
//! predecessor. A claimant that died before it bumped `generation` had not yet used the slot's identity for anything.
//!
//! Objects need no hook for the moment of a death: whatever they keep for a participant stands in a word that names
//! it, and whoever is held up by such a word asks `is_gone`. All who sleep (`wait_among_peers`) are woken by a
//! death, to ask again: the kernel wakes one sleeper of the token, that one wakes the rest. `comings` closes the gap
//! between a sleeper's last look at its object and its sleep: who is buried in between is no peer any more whose token
//! could be watched. Who attaches bumps it as well, so that sleepers watch the newcomer's token from then on, and who
//! leaves does twice. What needs the end of a slice: a sleeper or waker that is *stopped* before it has passed on what
//! it knows, and a kernel that marks no tokens (then the proof is looked for at the end of each slice).
//!
//! `crates/sync/tests/sleeping` has table and sleep as an explicit-state model, with deaths and stops at every step.
//!
//! Proof of death, for a life L in a slot (section order is the order in which it is tried):
//! 1. L's record lock (see `helper.rs`) is held by L's pid: alive.
//! 2. The lock is free and the kernel has marked the token: exited, or replaced by exec.
//! 3. No process has L's pid, or the one that has it is another (pidfd inode, start time), or its pidfd is
//!    readable: dead.
//!
//! A lock that was lost by accident (somebody closed all descriptors) therefore harms nobody who lives: the token is
//! unmarked and the pidfd says "alive". (When such a process is killed, 2 may hold a moment before its last thread has
//! stopped.)

mod peers;

use std::sync::Arc;
use std::time::Duration;

use crossproc_atomic::{
    AtomicU32, AtomicU64, Deadline, Linux, Liveness, OWNER_DIED, Ordering, Owner, Pending, Platform,
    WATCHED_WORDS, fence, process_stamp, shared_struct,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::header::{ARRIVALS_AT, COMINGS_AT};
use crate::helper::{self, Helper, LifeLock, Token, helper};
use crate::map::Mapping;
use crate::place::{Placed, PlacedSlice, Span};
pub use peers::Peers;

/// Size of a participant slot.
pub const SLOT_BYTES: usize = size_of::<Slot>();
/// Where the token stands in a slot; a multiple of 8, since a robust-list node of that alignment mirrors it.
const TOKEN_OFFSET: usize = std::mem::offset_of!(Slot, token);
const _: () = assert!(TOKEN_OFFSET % 8 == 0);

shared_struct! {
    /// One participant; see the map at the top of the file.
    pub(crate) struct Slot: 64 {
        claim: AtomicU64,
        generation: AtomicU64,
        token: AtomicU32,
        pid: AtomicU32,
        start_time: AtomicU64,
        pidfd_inode: AtomicU64,
        sealed: AtomicU64,
        unused: [AtomicU64; 2],
    }
}

/// This process's seat in one segment, and its view of the others.
///
/// Its [`Liveness`] is what all waiting rests on: see `wait_among_peers` and `is_gone` there.
pub struct Participants {
    slots: PlacedSlice<Slot>,
    comings: Placed<AtomicU32>,
    arrivals: Placed<AtomicU32>,
    me: Owner,
    helper: &'static Helper,
    stamp: u64,
    /// Whether others were there when this process came, and what `arrivals` was then.
    company: bool,
    came_at: u32,
    /// `None` only while being dropped.
    token: Option<Token>,
}

impl std::fmt::Debug for Participants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Participants")
            .field("me", &self.me)
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl Participants {
    /// Takes a slot for this process. With `clean_boot` (nobody from before the last reboot can be alive) every
    /// slot is given up first; the caller must then be alone in the segment.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooManyParticipants`] if all slots belong to living processes.
    pub(crate) fn attach(mapping: &Arc<Mapping>, table: Span, clean_boot: bool) -> Result<Self, Error> {
        let slots = Mapping::place_slice::<Slot>(mapping, table)?;
        let comings = mapping.place::<AtomicU32>(COMINGS_AT)?;
        let arrivals = mapping.place::<AtomicU32>(ARRIVALS_AT)?;
        let helper = helper()?;
        if clean_boot {
            for slot in slots.iter() {
                slot.generation.fetch_add(1, Ordering::AcqRel);
                slot.token.store(0, Ordering::Relaxed);
                slot.claim.store(0, Ordering::Release);
            }
        }
        let identity = helper.identity();
        bury_the_dead(&slots, &comings, helper);
        let index = claim_slot(&slots, &comings, helper)?;
        let slot = &slots[usize::from(index)];
        let me = loop {
            let generation = slot.generation.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
            // Generation 0 (after 2^46 uses) is no identity: the next one is.
            if let Some(me) = Owner::new(index, generation) {
                break me;
            }
        };
        slot.token.store(0, Ordering::Relaxed);
        slot.pid.store(identity.pid, Ordering::Relaxed);
        slot.start_time.store(identity.start_time, Ordering::Relaxed);
        slot.pidfd_inode.store(identity.pidfd_inode, Ordering::Relaxed);
        slot.sealed.store(identity.life, Ordering::Release);
        let offset = usize::try_from(table.offset).unwrap_or(usize::MAX)
            + usize::from(index) * SLOT_BYTES
            + TOKEN_OFFSET;
        let token = helper.link(mapping, offset, &slot.token);
        let came_at = arrivals.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        comings.fetch_add(1, Ordering::AcqRel);
        Linux.wake(&comings, u32::MAX);
        let (stamp, token) = (process_stamp(), Some(token));
        let mut it = Self { slots, comings, arrivals, me, helper, stamp, company: false, came_at, token };
        let company = it.others().any(|slot| slot.claim.load(Ordering::Relaxed) != 0);
        it.company = company;
        Ok(it)
    }

    /// Everybody who is attached and not proven dead, this process included.
    #[must_use]
    pub fn list(&self) -> Vec<Participant> {
        let living = |(index, slot): (usize, &Slot)| {
            let claim = slot.claim.load(Ordering::Acquire);
            let owner = Owner::new(u16::try_from(index).ok()?, slot.generation.load(Ordering::Acquire))?;
            let seen = claim != 0 && !self.bury_if_dead(slot);
            (seen && slot.claim.load(Ordering::Acquire) == claim).then_some(Participant {
                owner,
                pid: (claim >> 40) as u32,
                is_me: owner == self.me,
            })
        };
        self.slots.iter().enumerate().filter_map(living).collect()
    }

    /// How many participants the segment has room for: `Owner::slot` is below this.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The identity of whoever has the slot now, or will have had it last.
    #[must_use]
    pub fn owner_of(&self, slot: u16) -> Option<Owner> {
        Owner::new(slot, self.slots.get(usize::from(slot))?.generation.load(Ordering::Acquire))
    }

    fn bury_if_dead(&self, slot: &Slot) -> bool {
        bury_if_dead(slot, &self.comings, self.helper)
    }

    fn others(&self) -> impl Iterator<Item = &Slot> {
        let mine = usize::from(self.me.slot());
        self.slots.iter().enumerate().filter(move |&(index, _)| index != mine).map(|(_, slot)| slot)
    }

    /// The incarnation of the process that attached; a forked child's [`process_stamp`] differs.
    #[inline]
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// How many participants are not proven dead, this process included.
    #[must_use]
    pub fn living(&self) -> usize {
        self.slots.iter().filter(|slot| is_living(slot, self.helper)).count()
    }

    /// The slot that `owner` had, if it still has it.
    fn slot_of(&self, owner: Owner) -> Option<&Slot> {
        let slot = self.slots.get(usize::from(owner.slot()))?;
        same_generation(slot, owner).then_some(slot)
    }
}

/// A process that is attached to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Participant {
    /// Under which it holds things.
    pub owner: Owner,
    /// Its process id.
    pub pid: u32,
    /// True for the calling process.
    pub is_me: bool,
}

/// How many participants of a segment that is only mapped are not proven dead.
pub(crate) fn count_living(mapping: &Arc<Mapping>, table: Span) -> Result<usize, Error> {
    let slots = Mapping::place_slice_for_reading::<Slot>(mapping, table)?;
    let helper = helper()?;
    Ok(slots.iter().filter(|slot| is_living(slot, helper)).count())
}

fn same_generation(slot: &Slot, owner: Owner) -> bool {
    let mask = (1 << Owner::GENERATION_BITS) - 1;
    slot.generation.load(Ordering::Acquire) & mask == owner.generation()
}

fn is_living(slot: &Slot, helper: &Helper) -> bool {
    let life = slot.claim.load(Ordering::Acquire);
    life != 0 && !is_proven_dead(slot, life, helper)
}

fn claim_slot(slots: &[Slot], comings: &AtomicU32, helper: &Helper) -> Result<u16, Error> {
    let mine = helper.identity().life;
    let take =
        |slot: &Slot| slot.claim.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    // Dead ones were buried when we came; some may have died since.
    let free = || slots.iter().position(|slot| slot.claim.load(Ordering::Relaxed) == 0 && take(slot));
    let found = free().or_else(|| {
        bury_the_dead(slots, comings, helper);
        free()
    });
    found.and_then(|index| u16::try_from(index).ok()).ok_or_else(|| {
        Error::new(
            ErrorKind::TooManyParticipants,
            format!(
                "all {} participant slots of the segment belong to living processes; \
                 create it with `SegmentOptions::participants` set higher",
                slots.len()
            ),
        )
    })
}

fn bury_the_dead(slots: &[Slot], comings: &AtomicU32, helper: &Helper) {
    for slot in slots {
        bury_if_dead(slot, comings, helper);
    }
}

/// Frees the slot of a participant that is proven dead; true if there was one.
fn bury_if_dead(slot: &Slot, comings: &AtomicU32, helper: &Helper) -> bool {
    let life = slot.claim.load(Ordering::Acquire);
    if life == 0 || !is_proven_dead(slot, life, helper) {
        return false;
    }
    // After the proof: the dead one itself bumps it no more. And still its slot: so it is its generation, or a
    // newer one that another burial has given and nobody has used yet.
    let generation = slot.generation.load(Ordering::Acquire);
    if slot.claim.load(Ordering::Acquire) == life {
        let bumped = generation.wrapping_add(1);
        let _ = slot.generation.compare_exchange(generation, bumped, Ordering::AcqRel, Ordering::Relaxed);
        // Before the slot is free: who then finds nobody there to watch must see that somebody was.
        comings.fetch_add(1, Ordering::AcqRel);
        // The generation first: a free slot whose generation still stood would keep the dead one alive.
        let _ = slot.claim.compare_exchange(life, 0, Ordering::AcqRel, Ordering::Relaxed);
        Linux.wake(comings, u32::MAX);
    }
    true
}

/// The proof (see the top of the file) that the process with this life, which `slot.claim` named, is no more.
fn is_proven_dead(slot: &Slot, life: u64, helper: &Helper) -> bool {
    if life == helper.identity().life {
        return false;
    }
    let pid = (life >> 40) as u32;
    let holder = helper.life_lock_holder(life);
    if holder == LifeLock::Held(pid) {
        return false;
    }
    // One generation is one tenure: what was read between two equal ones belongs to the one who sealed it.
    let generation = slot.generation.load(Ordering::Acquire);
    let sealed = slot.sealed.load(Ordering::Acquire) == life;
    let token = slot.token.load(Ordering::Relaxed);
    let (start_time, inode) =
        (slot.start_time.load(Ordering::Relaxed), slot.pidfd_inode.load(Ordering::Relaxed));
    fence(Ordering::Acquire);
    let sealed = sealed && slot.generation.load(Ordering::Relaxed) == generation;
    if sealed && holder == LifeLock::Free && token & OWNER_DIED != 0 {
        return true;
    }
    let started_later =
        || sealed && start_time != 0 && helper::start_time(pid).is_some_and(|now| now != start_time);
    match helper::pidfd(pid) {
        // No such process, or the number is that of another one's thread now.
        Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => true,
        Ok(fd) => {
            let another = match helper::pidfd_inode(&fd) {
                Some(now) if sealed && inode != 0 => now != inode,
                _ => started_later(),
            };
            another || is_readable(&fd, Duration::ZERO)
        }
        // No pidfd to be had (denied, or out of descriptors): what else says it for certain.
        Err(_) => helper::is_gone(pid) || started_later(),
    }
}

fn is_readable(fd: &impl std::os::fd::AsFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

impl Drop for Participants {
    fn drop(&mut self) {
        // A forked child is no participant: the slot is its parent's.
        if self.stamp != process_stamp() {
            return;
        }
        let slot = &self.slots[usize::from(self.me.slot())];
        // The token stays until all is said: should we be killed before, the kernel still tells the others.
        slot.generation.fetch_add(1, Ordering::AcqRel);
        self.comings.fetch_add(1, Ordering::AcqRel);
        slot.sealed.store(0, Ordering::Relaxed);
        slot.claim.store(0, Ordering::Release);
        // Once more: who slept beside a slot that was not free yet looks again.
        self.comings.fetch_add(1, Ordering::AcqRel);
        Linux.wake(&self.comings, u32::MAX);
        // Waiters at a lock slept on the token alone.
        Linux.wake(&slot.token, u32::MAX);
        drop(self.token.take());
    }
}

impl Platform for Participants {
    #[inline]
    fn tid(&self) -> u32 {
        // Whoever reaches a lock through a handle has compared the stamps (`Segment::participants`).
        Linux.tid_in(self.stamp)
    }
    #[inline]
    fn announce(&self, word: &AtomicU32) -> Pending {
        Linux.announce(word)
    }
    #[inline]
    fn retract(&self, pending: Pending) {
        Linux.retract(pending);
    }
    #[inline]
    fn hold_announced(&self, word: &AtomicU32) {
        Linux.hold_announced(word);
    }
    #[inline]
    fn hold(&self, word: &AtomicU32) {
        Linux.hold(word);
    }
    #[inline]
    fn keep(&self, word: &AtomicU32) {
        Linux.keep(word);
    }
    #[inline]
    fn unhold(&self, word: &AtomicU32) {
        Linux.unhold(word);
    }
    fn wait(&self, word: &AtomicU32, expected: u32, also: &[(&AtomicU32, u32)], until: Option<Deadline>) {
        Linux.wait(word, expected, also, until);
    }
    #[inline]
    fn wake(&self, word: &AtomicU32, count: u32) -> u32 {
        Linux.wake(word, count)
    }
    fn now(&self) -> Deadline {
        Linux.now()
    }
    fn thread_exists(&self, tid: u32) -> bool {
        Linux.thread_exists(tid)
    }
    fn spins(&self) -> u32 {
        Linux.spins()
    }
}

/// How long to wait for the proof before looking again at what else could have changed.
const PROOF_SLICE: Duration = Duration::from_millis(2);
/// The first pause between two looks for the proof of a death that the kernel has announced.
const PROOF_PAUSE_MIN: Duration = Duration::from_micros(50);
/// Where not every peer can be watched.
const BLIND_SLICE: Duration = Duration::from_millis(50);

impl Liveness for Participants {
    #[inline]
    fn me(&self) -> Owner {
        self.me
    }

    fn is_dead(&self, owner: Owner) -> bool {
        let Some(slot) = self.slots.get(usize::from(owner.slot())) else {
            return false; // no participant ever had such an identity: scribbled, and no proof of anything
        };
        if !same_generation(slot, owner) {
            return true; // the slot has passed on, which happens after leaving or a proven death only
        }
        self.bury_if_dead(slot);
        !same_generation(slot, owner)
    }

    fn token(&self, owner: Owner) -> Option<(&AtomicU32, u32)> {
        let slot = self.slot_of(owner)?;
        let now = slot.token.load(Ordering::Acquire);
        (now != 0 && same_generation(slot, owner)).then_some((&slot.token, now))
    }

    fn await_proof(&self, owner: Owner, until: Option<Deadline>) {
        let Some(slot) = self.slot_of(owner) else { return };
        let pid = (slot.claim.load(Ordering::Acquire) >> 40) as u32;
        let left = until.map_or(PROOF_SLICE, |u| Duration::from_nanos(u.0.saturating_sub(Linux.now().0)));
        match helper::pidfd(pid) {
            Ok(fd) => {
                is_readable(&fd, left.min(PROOF_SLICE));
            }
            Err(_) => std::thread::sleep(left.min(PROOF_SLICE)),
        }
    }

    #[inline]
    fn comings(&self) -> u32 {
        self.comings.load(Ordering::Acquire)
    }

    fn wait_among_peers(&self, word: &AtomicU32, expected: u32, comings: u32, until: Option<Deadline>) {
        let mut pause = PROOF_PAUSE_MIN;
        loop {
            let mut tokens = [(word, 0); WATCHED_WORDS];
            tokens[0] = (&*self.comings, comings);
            let (mut watched, mut blind, mut dying) = (1, false, false);
            for slot in self.others() {
                let claim = slot.claim.load(Ordering::Acquire);
                if claim == 0 {
                    continue;
                }
                // What stands there before it is sealed is a predecessor's.
                let is_its_own = slot.sealed.load(Ordering::Acquire) == claim;
                let token = if is_its_own { slot.token.load(Ordering::Acquire) } else { 0 };
                if token & OWNER_DIED != 0 {
                    Linux.wake(&slot.token, u32::MAX);
                    if self.bury_if_dead(slot) {
                        return;
                    }
                    dying = true;
                } else if token != 0 && watched < tokens.len() {
                    tokens[watched] = (&slot.token, token);
                    watched += 1;
                } else {
                    blind = true;
                }
            }
            let now = Linux.now();
            let slice = match (dying, blind) {
                // Its memory is gone; the proof follows when it has closed its files.
                (true, _) => Some(pause),
                (false, true) => Some(BLIND_SLICE),
                (false, false) => None,
            };
            let end = slice.map(|slice| now.saturating_add(slice));
            let end = end.map_or(until, |end| Some(until.map_or(end, |until| until.min(end))));
            let tokens = &tokens[..watched];
            Linux.wait(word, expected, tokens, end);
            // The kernel wakes one sleeper of a token: that one wakes the rest.
            for (token, alive) in &tokens[1..] {
                if token.load(Ordering::Relaxed) != *alive {
                    Linux.wake(token, u32::MAX);
                }
            }
            let changed = word.load(Ordering::Relaxed) != expected || self.comings() != comings;
            let after = Linux.now();
            let over = until.is_some_and(|until| after >= until);
            if !changed && (over || after >= now.saturating_add(BLIND_SLICE)) {
                // Nobody has told us anything: perhaps the kernel has missed a death.
                for slot in self.others() {
                    self.bury_if_dead(slot);
                }
            }
            if !dying || over || changed {
                return;
            }
            pause = (pause * 2).min(BLIND_SLICE);
        }
    }

    fn is_alone(&self) -> bool {
        let others_came = self.company || self.arrivals.load(Ordering::Acquire) != self.came_at;
        let comings = self.comings();
        let left = |slot: &Slot| slot.claim.load(Ordering::Acquire) == 0 || self.bury_if_dead(slot);
        // If somebody came or went meanwhile, it was not one moment at which nobody was there.
        others_came && self.others().all(left) && self.comings() == comings
    }
}
