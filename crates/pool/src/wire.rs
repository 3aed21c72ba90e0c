//! What parent and workers say to each other, and the words by which they agree on whose a task is.
//!
//! One segment has two queues and a word for each *slot*. A task that was sent has a slot, until its outcome has come back.
//!
//! ```text
//! tasks     parent -> any worker    slot u32 | generation u32 | function 4 x u64 | arguments
//! replies   workers -> parent       kind u32 | worker u32 | slot u32 | generation u32 | content
//!           RESULTS      of the task in the slot: `batch.rs`
//!           UNSENDABLE   the results can not be sent; why, a text
//!           SKIPPED      the task had been cancelled
//!           READY        the worker takes tasks from now on
//!           INITIALIZER  failed; how, a text
//!           DAMAGED      the queue of tasks can not be used; how, a text
//!           BYE          the worker ends now, because it is to
//!           DIED, END    from the parent to itself: the worker has ended, all workers have
//! a slot's word          generation u32 | attempts 9 bits | holder 23 bits
//! ```
//!
//! | holder    | the task                               | who may write the word next                                              |
//! |-----------|----------------------------------------|--------------------------------------------------------------------------|
//! | QUEUED    | has been sent, and not begun           | who has the message -> RUNNING (attempts + 1); parent -> CANCELLED       |
//! | CANCELLED | is not to be begun                     | parent: FREE, when it hears SKIPPED or finds the message itself          |
//! | a worker  | is being run by that one (or was, and it is dead) | parent: FREE, when the results come, or (the worker dead) the attempts are used up; who has the message: RUNNING for itself |
//! | CANCELLED, of a new generation | FREE: there is no task | parent: QUEUED, for another task                                          |
//!
//! The message of a task is in one place at a time: the queue, or the hand of one receiver, who gives it up only after its reply
//! was sent. When a receiver dies, the message comes back (`recv_ref` of the queue), to another worker or to the parent. So
//! whoever has a message whose word names somebody else knows that this one is dead.
//!
//! | a worker is killed            | left                             | what happens                                                          |
//! |-------------------------------|----------------------------------|-----------------------------------------------------------------------|
//! | waiting for a task            | nothing                          | replaced                                                              |
//! | before its claim of the task  | QUEUED, the message              | the message comes back; no attempt was made                           |
//! | while it runs the task        | its name, the message            | attempts left: the message is run again; none: the parent says `WorkerDied` |
//! | after it has replied          | its name, the message, the reply | the reply counts; the message is of an older generation then          |
//!
//! A task that has been begun can not be cancelled, also while it waits to be begun anew.
//!
//! The order of the replies decides: the parent sends itself DIED after the worker has ended, so all that it said is in front of that. Then
//! the parent takes back all messages that nobody has, with those of the dead, and sends again what is still to be done: a task that
//! comes back does not wait behind all others, unless its message is found only later (somebody else was about to recover it). DIED is also
//! said of a worker whose start failed: it may have come as far as to claim a task, and there is no process to tell of. A parent that dies takes its workers with it: they are daemons.
//!
//! The words are only compared and exchanged, each by itself; what must be seen with them travels through the queues.

use crossproc_primitives::RawArray;
use crossproc_process::portable::Portable;

pub(crate) const RESULTS: u32 = 1;
pub(crate) const UNSENDABLE: u32 = 2;
pub(crate) const SKIPPED: u32 = 3;
pub(crate) const READY: u32 = 4;
pub(crate) const INITIALIZER: u32 = 5;
pub(crate) const DIED: u32 = 6;
pub(crate) const END: u32 = 7;
pub(crate) const DAMAGED: u32 = 8;
pub(crate) const BYE: u32 = 9;

const HOLDER_BITS: u32 = 23;
const QUEUED: u32 = 0;
const CANCELLED: u32 = (1 << HOLDER_BITS) - 1;
/// Workers have numbers from 1 to this.
pub(crate) const LAST_WORKER: u32 = CANCELLED - 1;

/// Which task of all that have been in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// In front of the arguments of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskHead {
    pub(crate) ticket: Ticket,
    pub(crate) function: Portable,
}

impl TaskHead {
    pub(crate) const SIZE: usize = 40;

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.ticket.slot.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ticket.generation.to_le_bytes());
        for (to, word) in bytes[8..].chunks_exact_mut(8).zip(self.function.words()) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Head and arguments of a message.
    pub(crate) fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let (head, arguments) = message.split_first_chunk::<{ Self::SIZE }>()?;
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let ticket = word(0);
        let ticket = Ticket { slot: ticket as u32, generation: (ticket >> 32) as u32 };
        let function = Portable::from_words([word(8), word(16), word(24), word(32)]);
        Some((Self { ticket, function }, arguments))
    }
}

/// In front of what a worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHead {
    pub(crate) kind: u32,
    pub(crate) worker: u32,
    pub(crate) ticket: Ticket,
}

impl ReplyHead {
    pub(crate) const SIZE: usize = 16;

    /// What is said of no task.
    pub(crate) fn of_worker(kind: u32, worker: u32) -> Self {
        Self { kind, worker, ticket: Ticket { slot: u32::MAX, generation: 0 } }
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.kind, self.worker, self.ticket.slot, self.ticket.generation];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Head and content of a message.
    pub(crate) fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let (head, content) = message.split_first_chunk::<{ Self::SIZE }>()?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let ticket = Ticket { slot: word(8), generation: word(12) };
        Some((Self { kind: word(0), worker: word(4), ticket }, content))
    }
}

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) generation: u32,
    pub(crate) attempts: u32,
    pub(crate) holder: Holder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Queued,
    Cancelled,
    Worker(u32),
}

impl Word {
    fn to_bits(self) -> u64 {
        let holder = match self.holder {
            Holder::Queued => QUEUED,
            Holder::Cancelled => CANCELLED,
            Holder::Worker(number) => number,
        };
        u64::from(self.generation) << 32 | u64::from(self.attempts << HOLDER_BITS | holder)
    }

    fn from_bits(bits: u64) -> Self {
        let holder = match bits as u32 & CANCELLED {
            QUEUED => Holder::Queued,
            CANCELLED => Holder::Cancelled,
            number => Holder::Worker(number),
        };
        Self { generation: (bits >> 32) as u32, attempts: bits as u32 >> HOLDER_BITS, holder }
    }
}

/// What a worker is to do with a task that it has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    Run,
    /// Cancelled: to be answered by SKIPPED.
    Skip,
    /// Nothing: it is done, or the parent has given it up or will.
    Drop,
}

/// The words of the slots, in shared memory.
#[derive(Clone, Debug)]
pub(crate) struct Words(pub(crate) RawArray<u64>);

impl Words {
    /// `None` for a slot that there is not.
    pub(crate) fn get(&self, slot: u32) -> Option<Word> {
        self.0.get(slot as usize).ok().map(Word::from_bits)
    }

    /// Parent: makes the word say so.
    pub(crate) fn set(&self, slot: u32, word: Word) {
        // It can fail only in a forked child, which has no part in the pool.
        let _ = self.0.set(slot as usize, word.to_bits());
    }

    /// True if the word said `now` and says `then`.
    pub(crate) fn exchange(&self, slot: u32, now: Word, then: Word) -> bool {
        matches!(self.0.compare_exchange(slot as usize, now.to_bits(), then.to_bits()), Ok(Ok(_)))
    }

    /// The parent cancels what has not been begun.
    pub(crate) fn cancel(&self, ticket: Ticket) -> bool {
        self.get(ticket.slot).is_some_and(|now| {
            now.generation == ticket.generation
                && now.holder == Holder::Queued
                && self.exchange(ticket.slot, now, Word { holder: Holder::Cancelled, ..now })
        })
    }

    /// A worker, who has the message of this task, wants to run it.
    pub(crate) fn claim(&self, ticket: Ticket, worker: u32, retries: u32) -> Claim {
        // Nobody but the parent can come in between, and it writes a word at most twice: to cancel, and to free.
        for _ in 0..4 {
            let Some(now) = self.get(ticket.slot) else { return Claim::Drop };
            if now.generation != ticket.generation || now.attempts > retries {
                return Claim::Drop;
            }
            if now.holder == Holder::Cancelled {
                return Claim::Skip;
            }
            let mine = Word { attempts: now.attempts + 1, holder: Holder::Worker(worker), ..now };
            if self.exchange(ticket.slot, now, mine) {
                return Claim::Run;
            }
        }
        Claim::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket { slot: 1, generation: 7 };
    const SENT: Word = Word { generation: 7, attempts: 0, holder: Holder::Queued };

    fn words() -> Words {
        let words = Words(RawArray::new(2).unwrap());
        words.set(1, SENT);
        words
    }

    #[test]
    fn words_and_heads_are_read_as_they_are_written() {
        for holder in [Holder::Queued, Holder::Cancelled, Holder::Worker(1), Holder::Worker(LAST_WORKER)] {
            let word = Word { generation: u32::MAX, attempts: 256, holder };
            assert_eq!(Word::from_bits(word.to_bits()), word);
        }
        let function = Portable::from_words([1, 2, 3, u64::MAX]);
        let head = TaskHead { ticket: TICKET, function };
        assert_eq!(TaskHead::parse(&head.to_bytes()), Some((head, [].as_slice())));
        assert_eq!(TaskHead::parse(&head.to_bytes()[1..]), None);
        let head = ReplyHead { kind: SKIPPED, worker: 9, ticket: TICKET };
        assert_eq!(ReplyHead::parse(&head.to_bytes()), Some((head, [].as_slice())));
    }

    #[test]
    fn a_task_is_run_as_often_as_there_are_attempts() {
        let words = words();
        assert_eq!(words.claim(TICKET, 1, 2), Claim::Run);
        assert_eq!(words.claim(TICKET, 2, 2), Claim::Run);
        assert_eq!(words.claim(TICKET, 3, 2), Claim::Run);
        assert_eq!(words.claim(TICKET, 4, 2), Claim::Drop);
        assert_eq!(words.get(1), Some(Word { attempts: 3, holder: Holder::Worker(3), ..SENT }));
        assert!(!words.cancel(TICKET), "it was begun");
    }

    #[test]
    fn a_cancelled_task_is_not_run_and_one_of_another_generation_neither() {
        let words = words();
        assert_eq!(words.claim(Ticket { generation: 6, ..TICKET }, 1, 9), Claim::Drop);
        assert_eq!(words.claim(Ticket { slot: 2, ..TICKET }, 1, 9), Claim::Drop);
        assert!(words.cancel(TICKET));
        assert!(!words.cancel(TICKET));
        assert_eq!(words.claim(TICKET, 1, 9), Claim::Skip);
    }
}
