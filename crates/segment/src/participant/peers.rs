//! [`Liveness::wait_among_peers`] in parts, for one who sleeps on words of several segments at once.

use std::time::Duration;

use crossproc_atomic::{AtomicU32, Linux, OWNER_DIED, Ordering, Platform};

use super::{BLIND_SLICE, PROOF_PAUSE_MIN, Participants, Slot, bury_if_dead};
use crate::helper::Helper;
use crate::place::{Placed, PlacedSlice};

/// The others who take part in a segment, as seen at the last [`look`](Self::look), and the words that tell of a change.
///
/// It keeps the segment mapped, but keeps nobody attached to it.
pub struct Peers {
    slots: PlacedSlice<Slot>,
    comings: Placed<AtomicU32>,
    helper: &'static Helper,
    mine: usize,
    /// `comings` before the last look.
    seen: u32,
    tokens: Vec<Token>,
    /// There is somebody without a token.
    is_blind: bool,
    /// How long to sleep until the next look for the proof of a death that the kernel has announced.
    dying: Option<Duration>,
}

/// Whose death the kernel will tell.
struct Token {
    slot: usize,
    alive: u32,
    life: u64,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("watched", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Participants {
    /// Who else is there now.
    #[must_use]
    pub fn peers(&self) -> Peers {
        let mut peers = Peers {
            slots: self.slots.clone(),
            comings: self.comings.clone(),
            helper: self.helper,
            mine: usize::from(self.me.slot()),
            seen: 0,
            tokens: Vec::new(),
            is_blind: false,
            dying: None,
        };
        peers.look();
        peers
    }
}

impl Peers {
    /// Looks who is there, and buries who has died. True if anybody came, left or died since the last look: then whatever may
    /// wait for that is to be looked at again, *after* this.
    pub fn look(&mut self) -> bool {
        let before = self.seen;
        loop {
            self.seen = self.comings.load(Ordering::Acquire);
            if !self.read() {
                return self.seen != before;
            }
        }
    }

    /// True if somebody was buried.
    fn read(&mut self) -> bool {
        self.tokens.clear();
        self.is_blind = false;
        let mut is_dying = false;
        for (index, slot) in self.slots.iter().enumerate() {
            let claim = slot.claim.load(Ordering::Acquire);
            if claim == 0 || index == self.mine {
                continue;
            }
            // What stands there before it is sealed is a predecessor's.
            let is_its_own = slot.sealed.load(Ordering::Acquire) == claim;
            let token = if is_its_own { slot.token.load(Ordering::Acquire) } else { 0 };
            if token & OWNER_DIED != 0 {
                Linux.wake(&slot.token, u32::MAX);
                if bury_if_dead(slot, &self.comings, self.helper) {
                    return true;
                }
                is_dying = true;
            } else if token != 0 {
                self.tokens.push(Token { slot: index, alive: token, life: claim });
            } else {
                self.is_blind = true;
            }
        }
        self.dying = is_dying.then(|| self.dying.map_or(PROOF_PAUSE_MIN, |last| (last * 2).min(BLIND_SLICE)));
        false
    }

    /// The words to sleep on, each with what stood there at the last look. With a token comes the life of its process, which has one
    /// in each segment: to watch one of them is enough to be woken, and to ask [`has_changed`](Self::has_changed) everywhere.
    pub fn words(&self) -> impl Iterator<Item = (Option<u64>, &AtomicU32, u32)> {
        let tokens =
            self.tokens.iter().map(|token| (Some(token.life), &self.slots[token.slot].token, token.alive));
        std::iter::once((None, &*self.comings, self.seen)).chain(tokens)
    }

    /// How long to sleep at the most, whatever is slept on.
    #[must_use]
    pub fn slice(&self) -> Option<Duration> {
        self.dying.or(self.is_blind.then_some(BLIND_SLICE))
    }

    /// After a sleep: true if another [`look`](Self::look) is called for. Passes on what only one sleeper was told.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let mut changed = self.dying.is_some() || self.comings.load(Ordering::Relaxed) != self.seen;
        for Token { slot, alive, .. } in &self.tokens {
            let token = &self.slots[*slot].token;
            if token.load(Ordering::Relaxed) != *alive {
                Linux.wake(token, u32::MAX);
                changed = true;
            }
        }
        changed
    }

    /// Looks for deaths that nobody has told us of: for who has slept long.
    pub fn suspect_all(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            if index != self.mine {
                bury_if_dead(slot, &self.comings, self.helper);
            }
        }
    }
}
