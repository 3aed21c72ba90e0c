//! The shared words, the participants, and what only the checks know.

pub const PROCESSES: usize = 5;
/// Recovers what is left, alone, when a state is checked. Takes no part otherwise.
pub const JANITOR: usize = PROCESSES - 1;
pub const LANES: usize = 4;
pub const HANDS: usize = 2;
pub const SLOTS: usize = 3;
pub const CELLS: usize = 11;
pub const LOG: usize = 30;
pub const NO_LANE: u8 = 255;

// Addresses of the shared words.
pub const SLOT: usize = 0;
pub const CLAIM: usize = SLOT + SLOTS;
pub const INTENT: usize = CLAIM + LANES;
pub const HAND: usize = INTENT + LANES;
pub const ORPHANS: usize = HAND + LANES * HANDS;
/// What lies beside a slot's word, and beside a hand: the message itself, if the ring is inline.
pub const SLOT_VALUE: usize = ORPHANS + 1;
pub const VALUE: usize = SLOT_VALUE + SLOTS;
pub const WORDS: usize = VALUE + LANES * HANDS;

/// The message `id`, as a value. 0 is none.
pub fn value_of(id: u8) -> u16 {
    u16::from(id) + 1
}

/// A slot's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    pub lap: u16,
    pub full: bool,
    pub closed: bool,
    pub cell: u16,
}

impl Slot {
    pub fn of(bits: u16) -> Self {
        Self { lap: bits >> 5 & 0x3F, full: bits >> 4 & 1 == 1, closed: bits >> 15 == 1, cell: bits & 15 }
    }
    pub fn bits(self) -> u16 {
        u16::from(self.closed) << 15 | self.lap << 5 | u16::from(self.full) << 4 | self.cell
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Spare,
    Message,
    Orphan,
}

/// A hand's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hand {
    /// Of an orphan: the low bits of the number to which `orphans` was raised for it.
    pub number: u16,
    pub deliveries: u16,
    pub kind: Kind,
    pub cell: u16,
}

/// There are so many numbers of orphans.
pub const NUMBERS: u16 = 16;

impl Hand {
    pub fn of(bits: u16) -> Self {
        let kind = [Kind::Spare, Kind::Message, Kind::Orphan][usize::from(bits >> 4 & 3)];
        Self { number: bits >> 8 & (NUMBERS - 1), deliveries: bits >> 6 & 3, kind, cell: bits & 15 }
    }
    pub fn bits(self) -> u16 {
        self.number << 8 | self.deliveries << 6 | (self.kind as u16) << 4 | self.cell
    }
    pub fn spare(cell: u16) -> Self {
        Self { number: 0, deliveries: 0, kind: Kind::Spare, cell }
    }
    pub fn message(cell: u16, deliveries: u16) -> Self {
        Self { number: 0, deliveries: deliveries.min(3), kind: Kind::Message, cell }
    }
}

/// An intent: what is exchanged, by which hand, for which cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intent {
    /// In the hand of a lane, not in a slot.
    pub orphan: bool,
    /// It is to be received.
    pub message: bool,
    pub hand: usize,
    /// How often it had been delivered.
    pub deliveries: u16,
    pub index: usize,
    pub cell: u16,
}

impl Intent {
    /// `None`: there is none.
    pub fn of(bits: u16) -> Option<Self> {
        (bits != 0).then(|| Self {
            orphan: bits >> 14 & 1 == 1,
            message: bits >> 13 & 1 == 1,
            hand: usize::from(bits >> 12 & 1),
            deliveries: bits >> 10 & 3,
            index: usize::from(bits >> 4 & 31),
            cell: bits & 15,
        })
    }
    pub fn bits(self) -> u16 {
        let kind = 1 << 15 | u16::from(self.orphan) << 14 | u16::from(self.message) << 13;
        kind | (self.hand as u16) << 12 | self.deliveries << 10 | (self.index as u16) << 4 | self.cell
    }
    /// The address of what is exchanged.
    pub fn place(self) -> usize {
        if self.orphan { HAND + self.index } else { SLOT + self.index }
    }
}

// A claim: FREE, or who holds it and why.
pub const FREE: u16 = 0;
pub fn live(p: usize) -> u16 {
    1 << 8 | p as u16
}
pub fn recovering(p: usize) -> u16 {
    2 << 8 | p as u16
}
pub fn holder(claim: u16) -> usize {
    usize::from(claim & 0xFF)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Life {
    /// Not in this configuration.
    #[default]
    Absent,
    Alive,
    /// Has left for good.
    Gone,
    Dead,
}

/// Which part of its operation a process is in. What it read in an earlier one is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Stage {
    #[default]
    Main,
    Listen,
    /// Recovers dead lanes, from this one on.
    Recover(u8),
    /// It has the claim of this lane.
    Decide(u8),
    /// It could not, and has given it back.
    PutBack(u8),
    /// It is decided: the word of a hand, if that must change.
    Write(u8, Option<(u8, u16)>),
    Settle(u8),
    IsLast,
    Orphans,
    Sleep,
    /// Attaches to a lane in spite of its orphans.
    LastResort,
    /// Looks at the hands of this lane, for the first or the second time; `orphans` was so then.
    AreSpare(bool, u8, u16),
    /// Looks at the ring once more, and then at `orphans`.
    IsEmptyStill(u16),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Process {
    pub life: Life,
    pub lane: u8,
    pub operation: u8,
    pub stage: Stage,
    /// Where it sends next, where it receives next: lap * n + slot.
    pub positions: [u8; 2],
    /// Nobody else was there when it looked; and then no other lane was anybody's.
    pub alone: bool,
    /// Lanes of the dead may still turn out to have messages.
    pub pending: bool,
    /// What it took a claim from.
    pub taken: u16,
    pub timed_out: bool,
    pub asleep: bool,
    /// Event, its `seq` and the departures when it listened.
    pub ticket: Option<(u8, u8, u8)>,
    pub length: u8,
    pub log: [u16; LOG],
    // Ghosts:
    pub begun: bool,
    pub began_closed: bool,
    /// Orphans that were there when it began, and are.
    pub overlooked: u8,
    /// Lanes of the dead when it began, not recovered since.
    pub undecided: u8,
    /// Since it began, all messages were received and given up, for a moment.
    pub was_finished: bool,
}

impl Process {
    /// Forgets what it has read.
    pub fn turn(&mut self, stage: Stage) {
        self.stage = stage;
        self.log[..usize::from(self.length)].fill(0);
        self.length = 0;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub words: [u16; WORDS],
    pub processes: [Process; PROCESSES],
    pub kills: u8,
    /// How many were killed, or left.
    pub departures: u8,
    /// `seq` of not_empty and not_full.
    pub seq: [u8; 2],
    // Ghosts:
    /// Which message is in which cell.
    pub payload: [u8; CELLS],
    /// How often that has been received.
    pub times: [u8; CELLS],
    /// The cell that a hand truly has.
    pub truth: [u8; LANES * HANDS],
    pub sent: u64,
    pub consumed: u64,
    /// How many were ever exchanged at the tail, and at the head.
    pub moved: [u8; 2],
    pub is_closed: bool,
    /// The last message of each producer that came out of the ring, + 1.
    pub last: [u8; PROCESSES],
    /// Orphans that everybody can know of.
    pub known: u8,
}

impl State {
    pub fn slot(&self, i: usize) -> Slot {
        Slot::of(self.words[SLOT + i])
    }
    pub fn hand(&self, lane: usize, j: usize) -> Hand {
        Hand::of(self.words[HAND + lane * HANDS + j])
    }
    /// A dead process has it.
    pub fn is_claimable(&self, lane: usize) -> bool {
        let claim = self.words[CLAIM + lane];
        claim != FREE && self.processes[holder(claim)].life == Life::Dead
    }
    /// All that was sent has been received and given up.
    pub fn is_finished(&self) -> bool {
        self.sent & !self.consumed == 0
    }
    /// Everybody else was killed or has left, and somebody was there.
    pub fn is_alone(&self, me: usize) -> bool {
        let others = self.processes.iter().enumerate().filter(|&(p, _)| p != me);
        self.departures > 0 && others.into_iter().all(|(_, it)| it.life != Life::Alive)
    }
    /// Somebody left, or was killed: all who sleep wake.
    pub fn depart(&mut self, p: usize, life: Life) {
        self.processes[p] = Process { life, ..Process::default() };
        self.departures += 1;
        for it in &mut self.processes {
            it.asleep = false;
        }
    }
}
