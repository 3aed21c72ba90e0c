//! A planted bug: D. Vyukov's bounded queue in shared words. Whoever sends or receives first takes a place, then copies the message,
//! and then says that it is done: who is killed or stopped in between stands in everybody's way, and hides what was sent later.

use std::thread::yield_now;

use crossproc_atomic::Ordering;
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::random::Rng;

/// The queue: next places to send to and to receive from, then for each slot whose turn it is, and the message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tickets(Board);

const TAIL: usize = 0;
const HEAD: usize = 8;
const SLOTS: usize = 16;
const SLOT: usize = 16;
const CAPACITY: usize = 8;

impl Tickets {
    pub(crate) fn new() -> Self {
        let board = Board::new(SLOTS + CAPACITY * SLOT);
        (0..CAPACITY).for_each(|slot| board.set(SLOTS + slot * SLOT, slot as u64));
        Self(board)
    }

    fn take(&self, word: usize, place: u64) -> bool {
        self.0[word].compare_exchange(place, place + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    fn slot(place: u64) -> usize {
        SLOTS + place as usize % CAPACITY * SLOT
    }

    /// True if it was sent. `rng` says whether a time slice ends in its midst.
    pub(crate) fn push(&self, value: u64, rng: &mut Rng) -> bool {
        let place = self.0.get(TAIL);
        let slot = Self::slot(place);
        if self.0.get(slot) != place || !self.take(TAIL, place) {
            return false;
        }
        pause_at_times(rng);
        (1..SLOT).for_each(|word| self.0.set(slot + word, value));
        self.0.set(slot, place + 1);
        true
    }

    /// A message; `Err` if somebody else was faster.
    pub(crate) fn pop(&self) -> Result<Option<u64>, ()> {
        let place = self.0.get(HEAD);
        let slot = Self::slot(place);
        let turn = self.0.get(slot);
        if turn == place {
            return Ok(None);
        }
        if turn != place + 1 || !self.take(HEAD, place) {
            return Err(());
        }
        let value = self.0.get(slot + 1);
        self.0.set(slot, place + CAPACITY as u64);
        Ok(Some(value))
    }
}

/// The end of a time slice, at times: it can come in the midst of a message.
pub(crate) fn pause_at_times(rng: &mut Rng) {
    if rng.once_in(4) {
        yield_now();
    }
}
