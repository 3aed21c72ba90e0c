//! The exchange ring: a bounded queue for any number of senders and receivers, in which nothing is ever "in progress".
//!
//! Ownership of a *cell* (room for one message) moves by one compare-and-swap. Each of the `n` slots of the ring always names
//! a cell, and each *lane* (one for each handle) always has the cells in its hands. A sender writes its message into a cell
//! of its own and exchanges that for the empty cell in the slot at the tail; a receiver exchanges a spare cell for the full
//! one in the slot at the head. Whoever is killed or stopped before that step has done nothing, and after it everything.
//!
//! ```text
//!  ExchangeWords
//!     0  tail, 128  head       hints: positions that somebody has passed; they may only be behind
//!   256  orphans               number << 1 | 1 while there may be orphans; the number changes with each
//!   264  not_empty, 272  not_full  event counts: receivers and senders that sleep
//!   280  lanes_used            lanes from this one on have never been claimed
//!   288  lanes, 292  hands     how many; written before anybody can find the queue
//!   296  finished              event count: who waits for the last message to be released
//!  claims, one word for each lane
//!        0 FREE | owner | 1 << 62: LIVE | owner | 2 << 62: RECOVERING
//!  records, one for each lane, whole pairs of cache lines
//!     0  intent                what is exchanged with what, see `Intent`; 0: nothing
//!     8  hands                 deliveries << 48 | orphan's number << 34 | kind << 32 | cell
//!        values                of the messages in the hands, if the ring is *inline*
//!  slots, two words each
//!     0  word                  closed: 1 (bit 63) | lap | full: 1 | cell
//!     8  value                 the message, if the ring is inline
//!  cells are the caller's: here they are numbers below n + lanes * hands
//! ```
//!
//! In an *inline* ring messages are one word and travel in the slots, beside the cells, which are tokens only: whose cell lies in a slot
//! shows who made the exchange. A slot's value changes only together with its word, when a message is sent.
//!
//! A *position* is lap and slot. A slot whose word has lap `l` is EMPTY (waits for the message of lap l) or FULL (has it); the
//! receiver makes it EMPTY of lap l + 1. A position is passed only when its slot shows that it is done, so none is skipped:
//! messages are received in the order of the slots, and *empty* and *full* are decided by reading one slot.
//!
//! | word        | who writes it                                                                                 |
//! |-------------|-----------------------------------------------------------------------------------------------|
//! | slot        | everybody, by an exchange; who closes, by setting bit 63 at the tail position                  |
//! | claim       | FREE -> LIVE its new holder; LIVE or RECOVERING of a dead one -> RECOVERING whoever proves that; -> FREE the holder |
//! | record      | the holder of the claim; but a hand that is an ORPHAN: any receiver, by an exchange            |
//! | tail, head  | everybody, at any time                                                                         |
//! | orphans     | raised by who has made an orphan, before it frees the claim; lowered by who has looked at all hands since |
//! | lanes_used  | raised before a lane is claimed                                                                |
//!
//! An exchange by hand `j`: store the intent; compare-and-swap the slot; store hand `j`. If it does not come off, the intent is
//! cleared before the operation returns or sleeps. If it does, it stays: its cell is now in a hand of the lane, which is how
//! everybody can tell.
//!
//! What a death leaves behind, and who repairs it (`recovery.rs`; whoever finds nothing to do, before it sleeps or says so):
//!
//! | killed                                     | left                                   | repair                                 |
//! |--------------------------------------------|----------------------------------------|----------------------------------------|
//! | before the exchange                        | its hands; an intent that is not true  | decided by where the cells are         |
//! | after the exchange, before the hand's store | an intent that came true               | decided by where the cells are         |
//! | with messages in its hands                 | hands MESSAGE                          | become ORPHAN: taken by an exchange    |
//! | with a message half written                | a hand SPARE                           | none: it is a spare cell               |
//! | after an exchange, before the wake-up      | a sleeper that was not told            | the death wakes all sleepers           |
//! | recovering a lane                          | RECOVERING                             | begun again by the next                |
//!
//! So a message is *redelivered* if its receiver died with it in a hand. How often it has been delivered goes with it.
//!
//! Memory ordering. Others may rely on this: what happened before a send is visible to who receives that message. A cell's
//! bytes are written before the exchange that gives it away (Release) and read after the one that takes it (Acquire), in
//! both directions. The stores to a record are Release and its readers Acquire, so that recovery sees them in their order; the
//! exchange itself keeps the intent before it and the hand behind it. The event counts' fences follow the exchange.
//!
//! What is not excluded: laps are counted modulo 2^(62 - bits of a cell's number), which is 2^40 with four million cells
//! and 2^53 with five hundred. A process that is stopped between its look at a slot and its exchange, while others go exactly so many
//! times round the ring and the same cell comes to lie there, would exchange it out of turn. So would one that is stopped between its
//! look at an orphan and its exchange, while a multiple of 8192 others are orphaned and the same cell comes to lie there as one.
//!
//! Sources: slots that carry their lap, D. Vyukov's bounded queue (1024cores.net); announcing an operation for others to
//! complete, M. Herlihy, "Wait-free synchronization", 1991. Exchanging cells instead of taking tickets is our own.

mod recovery;

use core::cell::Cell;

use crossproc_atomic::{
    AtomicPair, AtomicU32, AtomicU64, EventCount, Liveness, Ordering, pause, shared_struct,
};

pub use recovery::Recovery;

shared_struct! {
    /// The words of one ring that are not slots, claims or records. All zero, but for `lanes` and `hands`.
    pub struct ExchangeWords: 384 {
        tail: AtomicU64,
        apart_a: [AtomicU64; 15],
        head: AtomicU64,
        apart_b: [AtomicU64; 15],
        orphans: AtomicU64,
        /// Receivers sleep here.
        pub not_empty: EventCount,
        /// Senders sleep here.
        pub not_full: EventCount,
        lanes_used: AtomicU64,
        lanes: AtomicU32,
        hands: AtomicU32,
        /// Who waits until all messages have been received and released sleeps here.
        pub finished: EventCount,
        apart_c: [AtomicU64; 10],
    }
}

const CLOSED: u64 = 1 << 63;

const FREE: u64 = 0;
const STATE: u64 = 3 << 62;
const LIVE: u64 = 1 << 62;
const RECOVERING: u64 = 2 << 62;

/// Kinds of a hand.
const SPARE: u64 = 0;
const MESSAGE: u64 = 1;
const ORPHAN: u64 = 2;

/// Words of a record before the hands.
const INTENT: usize = 0;
const HANDS: usize = 1;
/// Words in a pair of cache lines.
const LINES: usize = 16;

/// So many positions are walked one by one before the hint is asked.
const WALK: u32 = 8;
/// More positions than this and a lap are not walked at once, unless the words are corrupt.
const WALK_MAX: u32 = 1 << 16;
/// A hint is written by each so-manieth operation.
const HINT_EVERY: u64 = 16;
/// An orphan is looked for by each so-manieth receive, if there are any.
const ORPHAN_EVERY: u32 = 64;
/// More steps than this in one operation mean that the words are corrupt.
const STEPS_MAX: u32 = 1 << 22;

/// How large a ring is. Private to each process, so that nobody can change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    capacity: usize,
    lanes: usize,
    hands: usize,
    cells: usize,
    cell_bits: u32,
    /// The bit of a slot's word that says that it is full: the one above the number of its cell.
    full: u64,
    /// From record to record, in words.
    record_stride: usize,
    /// Messages are one word each, and travel in the slots.
    inline: bool,
}

impl Shape {
    /// So many cells there can be.
    pub const CELLS_MAX: u64 = 1 << 22;
    /// So many hands a lane can have.
    pub const HANDS_MAX: usize = 64;
    /// So many lanes there can be.
    pub const LANES_MAX: usize = 1 << 16;

    /// A ring of so many slots; `None` if any of them is 0 or too large.
    #[must_use]
    pub fn new(capacity: u64, lanes: u64, hands: u64) -> Option<Self> {
        let cells = capacity.checked_add(lanes.checked_mul(hands)?)?;
        let possible = capacity > 0
            && (1..=Self::LANES_MAX as u64).contains(&lanes)
            && (1..=Self::HANDS_MAX as u64).contains(&hands)
            && cells <= Self::CELLS_MAX;
        possible.then(|| Self {
            capacity: capacity as usize,
            lanes: lanes as usize,
            hands: hands as usize,
            cells: cells as usize,
            cell_bits: bits(cells - 1).max(1),
            full: 1 << bits(cells - 1).max(1),
            record_stride: (HANDS + hands as usize).next_multiple_of(LINES),
            inline: false,
        })
    }

    /// The same for messages of one word each, which need no room in cells. [`AtomicPair::EXCHANGES`] has to be true.
    #[must_use]
    pub fn inline(self) -> Self {
        let record_stride = (HANDS + 2 * self.hands).next_multiple_of(LINES);
        Self { record_stride, inline: true, ..self }
    }

    /// Slots: messages that the ring holds at the most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Lanes: handles that there can be at one time.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Cells that a lane always has.
    #[must_use]
    pub fn hands(&self) -> usize {
        self.hands
    }

    /// Cells.
    #[must_use]
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// Words of all records.
    #[must_use]
    pub fn record_words(&self) -> usize {
        self.lanes * self.record_stride
    }

    fn lap_mask(&self) -> u64 {
        u64::MAX >> (2 + self.cell_bits)
    }

    #[inline]
    fn cell_mask(&self) -> u64 {
        self.full - 1
    }

    /// The word of a slot.
    fn word(&self, lap: u64, full: bool, cell: u32) -> u64 {
        (lap & self.lap_mask()) << (self.cell_bits + 1) | u64::from(full) << self.cell_bits | u64::from(cell)
    }

    fn lap_of(&self, word: u64) -> u64 {
        (word & !CLOSED) >> (self.cell_bits + 1)
    }

    #[inline]
    fn is_full(&self, word: u64) -> bool {
        word & self.full != 0
    }

    #[inline]
    fn cell_of(&self, word: u64) -> u32 {
        (word & self.cell_mask()) as u32
    }

    /// The lap of a position, which stands where it does in a slot's word; the rest of it is the slot's number.
    fn lap(&self, position: u64) -> u64 {
        position >> (self.cell_bits + 1)
    }

    #[inline]
    fn index(&self, position: u64) -> usize {
        (position & self.cell_mask()) as usize
    }

    fn position(&self, lap: u64, index: usize) -> u64 {
        self.word(lap, false, 0) | index as u64
    }

    #[inline]
    fn after(&self, position: u64) -> u64 {
        let index = self.index(position) + 1;
        if index == self.capacity { self.next_lap(position) & !self.cell_mask() } else { position + 1 }
    }

    #[inline]
    fn next_lap(&self, position: u64) -> u64 {
        position.wrapping_add(2 * self.full) & !CLOSED
    }

    /// `a - b` in laps, where both are less than half of all laps apart.
    fn laps_between(&self, a: u64, b: u64) -> i64 {
        let unused = 2 + self.cell_bits;
        (a.wrapping_sub(b) << unused) as i64 >> unused
    }

    /// True if position `a` comes after `b`.
    fn is_after(&self, a: u64, b: u64) -> bool {
        let laps = self.laps_between(self.lap(a), self.lap(b));
        laps > 0 || laps == 0 && self.index(a) > self.index(b)
    }

    /// `a - b` in positions, 0 at the least and the capacity at the most.
    fn distance(&self, a: u64, b: u64) -> usize {
        let laps = self.laps_between(self.lap(a), self.lap(b)).clamp(-1, 2);
        let slots = laps * self.capacity as i64 + self.index(a) as i64 - self.index(b) as i64;
        slots.clamp(0, self.capacity as i64) as usize
    }
}

fn bits(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

/// Why there was no exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Sending: all slots are full. Receiving: there is no message.
    WouldBlock,
    /// Sending: nothing can be sent any more. Receiving: and nothing is left.
    Closed,
    /// The words contradict each other: somebody wrote over them.
    Damaged,
}

/// All lanes have a handle that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLane;

/// One of the hands of a lane, in use: from [`Exchange::take_hand`] to [`Exchange::release`] or [`put_back`](Exchange::put_back) it is the
/// caller's alone, and so are the bytes of its cell.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a hand that is not put back stays in use"]
pub struct Hand {
    number: u32,
    cell: u32,
    /// The message to be sent, or that was received, if the ring's shape is [`inline`](Shape::inline).
    pub value: u64,
}

impl Hand {
    /// The cell that is in it.
    #[inline]
    #[must_use]
    pub fn cell(&self) -> u32 {
        self.cell
    }
}

/// Where one side of a handle is, and how it fares.
#[derive(Debug, Default)]
struct Side {
    position: Cell<u64>,
    /// Exchanges so far, and how many there were when it last had nothing to do, and when one was last lost.
    done: Cell<u64>,
    idle_at: Cell<u64>,
    lost_at: Cell<u64>,
    /// After a lost exchange 2^level pauses.
    level: Cell<u32>,
    /// Waits a little when it has nothing to do, since that has paid.
    lingers: Cell<bool>,
    trials: Cell<u32>,
}

/// Slots in a cache line: the next line is asked for in time.
const AHEAD: usize = 4;
/// When nothing is to be done, so many pauses now and then: a burst costs fewer transfers of cache lines than single messages.
const LINGER: u32 = 16;
/// One trial in so many.
const LINGER_TRIAL: u32 = 64;
/// Lingering goes on while so many messages come of it.
const LINGER_PAYS: u64 = 4;
const LEVEL_MAX: u32 = 9;

impl Side {
    /// An exchange was lost: stays away for a while, longer each time, shorter the more went well since.
    #[cold]
    fn lost(&self) {
        let done = self.done.get();
        let well = (done.wrapping_sub(self.lost_at.get()) >> 6).min(u64::from(LEVEL_MAX)) as u32;
        self.lost_at.set(done);
        self.level.set((self.level.get() + 1).saturating_sub(well).min(LEVEL_MAX));
        rest(1 << self.level.get());
    }

    /// There was nothing to do.
    #[cold]
    fn idle(&self) {
        let done = self.done.get().wrapping_sub(self.idle_at.get());
        self.idle_at.set(self.done.get());
        if done == 0 {
            return;
        }
        if self.lingers.get() {
            if done < LINGER_PAYS {
                self.lingers.set(false);
                return;
            }
        } else {
            self.trials.set(self.trials.get().wrapping_add(1));
            if self.trials.get() % LINGER_TRIAL != 0 {
                return;
            }
            self.lingers.set(true);
        }
        rest(LINGER);
    }
}

fn rest(pauses: u32) {
    let pauses = if cfg!(crossproc_model) { 1 } else { pauses };
    (0..pauses).for_each(|_| pause());
}

/// A claimed lane: what one handle needs besides the shared words. One thread at a time uses it.
#[derive(Debug)]
pub struct Lane {
    number: usize,
    /// Where its record begins.
    record: usize,
    tail: Side,
    head: Side,
    /// Hands in use, as bits, and the one that is ready for the next operation.
    busy: Cell<u64>,
    ready: Cell<u64>,
    receives: Cell<u32>,
}

/// In `ready`: none.
const NO_HAND: u64 = u64::MAX;

impl Lane {
    /// Which of the lanes it is.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// Hands that hold a loan or a message.
    #[must_use]
    pub fn hands_in_use(&self) -> usize {
        self.busy.get().count_ones() as usize - usize::from(self.ready.get() != NO_HAND)
    }
}

/// What is at a position, for one who wants to exchange there.
enum At {
    /// The word that makes the exchange possible.
    Ready(u64),
    /// The position is done; at least up to there.
    Passed(u64),
    Refused(Refusal),
}

/// Which side of the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Tail,
    Head,
}

/// An exchange, as it is announced: `hand` for `cell`, which lies in a slot, or with an orphan. Of what can be exchanged only cells are
/// compared, so it names no lap.
///
/// ```text
/// 1 (bit 63) | of an orphan: 1 | of a message: 1 | hand: 6 | unused: 3 | deliveries: 8 | slot, or lane: 16 and hand: 6 | cell: 22
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Intent(u64);

impl Intent {
    const VALID: u64 = 1 << 63;
    const ORPHAN: u64 = 1 << 62;
    const MESSAGE: u64 = 1 << 61;
    const PLACE: u64 = (1 << 22) - 1;

    #[inline]
    fn of_slot(index: usize, message: bool, mine: &Hand, cell: u32) -> Self {
        let kind = if message { Self::VALID | Self::MESSAGE } else { Self::VALID };
        Self(kind | u64::from(mine.number) << 55 | (index as u64) << 22 | u64::from(cell))
    }

    fn of_orphan(lane: usize, hand: usize, deliveries: u8, mine: &Hand, cell: u32) -> Self {
        let Self(as_slot) = Self::of_slot(lane << 6 | hand, true, mine, cell);
        Self(as_slot | Self::ORPHAN | u64::from(deliveries) << 44)
    }

    fn exists(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// The one that is to be given away.
    fn hand(self) -> usize {
        (self.0 >> 55) as usize & 0x3f
    }

    fn cell(self) -> u32 {
        (self.0 & Self::PLACE) as u32
    }

    fn is_message(self) -> bool {
        self.0 & Self::MESSAGE != 0
    }

    /// How often a message had been delivered before.
    fn deliveries(self) -> u8 {
        (self.0 >> 44) as u8
    }

    fn place(self) -> usize {
        (self.0 >> 22 & Self::PLACE) as usize
    }

    /// The number of the slot.
    fn slot(self) -> Option<usize> {
        (self.0 & Self::ORPHAN == 0).then(|| self.place())
    }

    /// The lane and the hand of the orphan.
    fn orphan(self) -> (usize, usize) {
        (self.place() >> 6, self.place() & 0x3f)
    }
}

const _: () =
    assert!(Shape::CELLS_MAX == Intent::PLACE + 1 && Shape::LANES_MAX << 6 == Intent::PLACE as usize + 1);

/// The record of the caller's lane, from there on.
#[derive(Clone, Copy)]
struct Own<'a> {
    intent: &'a AtomicU64,
    hands: &'a [AtomicU64],
}

impl Own<'_> {
    /// Where the value of a message is while it is in a hand, for others to find.
    #[inline]
    fn value(&self, hands: usize, hand: &Hand) -> &AtomicU64 {
        &self.hands[hands + hand.number as usize]
    }

    /// Says what the hand has now.
    #[inline]
    fn set_down(self, hand: &Hand, kind: u64, deliveries: u8) {
        self.hands[hand.number as usize].store(hand_word(hand.cell, kind, deliveries), Ordering::Release);
    }
}

/// A ring, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    shape: &'a Shape,
    words: &'a ExchangeWords,
    claims: &'a [AtomicU64],
    records: &'a [AtomicU64],
    slots: &'a [AtomicPair],
}

impl<'a> Exchange<'a> {
    /// Borrows a ring: so many claims, records and slots as `shape` says. (With fewer, methods panic.)
    #[inline]
    #[must_use]
    pub fn new(
        shape: &'a Shape,
        words: &'a ExchangeWords,
        claims: &'a [AtomicU64],
        records: &'a [AtomicU64],
        slots: &'a [AtomicPair],
    ) -> Self {
        debug_assert_eq!(claims.len(), shape.lanes, "a claim for each lane");
        debug_assert_eq!(records.len(), shape.record_words(), "a record for each lane");
        debug_assert_eq!(slots.len(), shape.capacity, "the capacity");
        Self { shape, words, claims, records, slots }
    }

    /// Writes the first cells, into zeroed words that nobody else can find yet.
    pub fn init(&self) {
        let Shape { capacity, lanes, hands, .. } = *self.shape;
        for index in 0..capacity {
            self.slots[index].store_first(index as u64, Ordering::Relaxed);
        }
        for lane in 0..lanes {
            for hand in 0..hands {
                let cell = capacity + lane * hands + hand;
                self.hand(lane, hand).store(cell as u64, Ordering::Relaxed);
            }
        }
        self.words.lanes.store(lanes as u32, Ordering::Relaxed);
        self.words.hands.store(hands as u32, Ordering::Relaxed);
    }

    /// How large the ring is.
    #[must_use]
    pub fn shape(&self) -> Shape {
        *self.shape
    }

    #[inline]
    fn slot(&self, index: usize) -> &'a AtomicPair {
        &self.slots[index]
    }

    #[inline]
    fn record(&self, lane: usize) -> &'a [AtomicU64] {
        let stride = self.shape.record_stride;
        &self.records[lane * stride..][..stride]
    }

    #[inline]
    fn own(&self, lane: &Lane) -> Own<'a> {
        match self.records[lane.record..].split_first() {
            Some((intent, hands)) => Own { intent, hands },
            None => unreachable!("a record is longer"),
        }
    }

    fn hand(&self, lane: usize, hand: usize) -> &'a AtomicU64 {
        &self.record(lane)[HANDS + hand]
    }

    fn value(&self, lane: usize, hand: usize) -> &'a AtomicU64 {
        &self.record(lane)[HANDS + self.shape.hands + hand]
    }

    /// Claims a lane. One with orphans only if there is no other: its holder has fewer hands until somebody has taken them.
    ///
    /// # Errors
    ///
    /// [`NoLane`] if none is free and none of a dead process could be recovered.
    pub fn claim<L: Liveness>(&self, live: &L) -> Result<Lane, NoLane> {
        self.claim_free(live, false)
            .or_else(|NoLane| {
                self.recover(live);
                self.claim_free(live, false)
            })
            .or_else(|NoLane| self.claim_free(live, true))
    }

    fn claim_free<L: Liveness>(&self, live: &L, with_orphans: bool) -> Result<Lane, NoLane> {
        let mine = live.me().bits() | LIVE;
        for (number, claim) in self.claims.iter().enumerate() {
            if claim.load(Ordering::Relaxed) != FREE {
                continue;
            }
            self.raise_lanes_used(number as u64 + 1);
            if claim.compare_exchange(FREE, mine, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            // Only now: it may have been in use in the meantime.
            if !with_orphans && self.has_orphans(number) {
                claim.store(FREE, Ordering::Release);
                continue;
            }
            return Ok(self.lane(number, number * self.shape.record_stride));
        }
        Err(NoLane)
    }

    /// For who only looks, or closes: no lane, but the positions of one.
    #[must_use]
    pub fn onlooker(&self) -> Lane {
        self.lane(usize::MAX, 0)
    }

    fn lane(&self, number: usize, record: usize) -> Lane {
        let lane = Lane {
            number,
            record,
            tail: Side::default(),
            head: Side::default(),
            busy: Cell::new(0),
            ready: Cell::new(NO_HAND),
            receives: Cell::new(0),
        };
        lane.tail.position.set(self.start(End::Tail));
        lane.head.position.set(self.start(End::Head));
        lane
    }

    fn raise_lanes_used(&self, to: u64) {
        let mut seen = self.words.lanes_used.load(Ordering::Relaxed);
        while seen < to {
            match self.words.lanes_used.compare_exchange(seen, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn lanes_used(&self) -> usize {
        (self.words.lanes_used.load(Ordering::Relaxed) as usize).min(self.shape.lanes)
    }

    /// Gives a lane back. Messages that are still in its hands become orphans.
    pub fn leave<L: Liveness>(&self, live: &L, lane: Lane) {
        if self.claims[lane.number].load(Ordering::Relaxed) == live.me().bits() | LIVE {
            self.settle_and_free(lane.number);
            // For the orphans, and for who waits until the last peer has gone.
            self.wake_all_after_store(live);
        }
    }

    /// A hand that is free, for a loan, a message to be sent, or one to be received. `None`: all are in use (some perhaps by orphans,
    /// see [`receive_in_place`](Self::receive_in_place)), or the words are corrupt.
    #[inline]
    pub fn take_hand(&self, lane: &Lane) -> Option<Hand> {
        match lane.ready_hand() {
            Some(hand) => {
                lane.ready.set(NO_HAND);
                Some(hand)
            }
            None => self.take_spare_hand(lane),
        }
    }

    /// The message in the hand has been read: its cell is a spare one, and the hand is free again.
    #[inline]
    pub fn release(&self, lane: &Lane, hand: Hand) {
        self.own(lane).set_down(&hand, SPARE, 0);
        self.put_back(lane, hand);
    }

    /// A hand that has no message is free again.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "it must not be used any more")]
    pub fn put_back(&self, lane: &Lane, hand: Hand) {
        if lane.ready.get() == NO_HAND {
            lane.make_ready(&hand);
        } else {
            lane.busy.set(lane.busy.get() & !(1 << hand.number));
        }
    }

    /// Sends what is in the hand's cell, or its value; the hand has another cell then.
    ///
    /// `near` is told which one, before it is needed.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]; the hand is as it was.
    #[inline]
    pub fn send(&self, lane: &Lane, hand: &mut Hand, near: impl Fn(u32)) -> Result<(), Refusal> {
        let own = self.own(lane);
        if !self.exchange_here(lane, own, hand, End::Tail, &near) {
            self.exchange_at_end(lane, hand, End::Tail, &near)?;
        }
        own.set_down(hand, SPARE, 0);
        Ok(())
    }

    /// Takes a hand that is ready, lets `write` put a message into it, sends that and puts the hand back; if all of this can be done at
    /// once, at the position where the lane expects it. False means nothing.
    #[inline]
    pub fn send_at_once(&self, lane: &Lane, write: impl FnOnce(&mut Hand), near: impl Fn(u32)) -> bool {
        let Some(mut hand) = lane.ready_hand() else { return false };
        write(&mut hand);
        let own = self.own(lane);
        let sent = self.exchange_here(lane, own, &mut hand, End::Tail, near);
        if sent {
            own.set_down(&hand, SPARE, 0);
            lane.make_ready(&hand);
        }
        sent
    }

    /// Receives into the hand, in exchange for the cell that it has; returns how often the message was delivered, with this time.
    ///
    /// `near` is told which cell is going to be received, before that is certain: it can be any number.
    ///
    /// # Errors
    ///
    /// See [`Refusal`]; the hand is as it was.
    #[inline]
    pub fn receive(&self, lane: &Lane, hand: &mut Hand, near: impl Fn(u32)) -> Result<u8, Refusal> {
        let own = self.own(lane);
        if !self.has_orphans_left() && self.exchange_here(lane, own, hand, End::Head, &near) {
            own.set_down(hand, MESSAGE, 1);
            return Ok(1);
        }
        self.receive_slowly(lane, hand, near)
    }

    #[cold]
    #[inline(never)]
    fn receive_slowly(self, lane: &Lane, hand: &mut Hand, near: impl Fn(u32)) -> Result<u8, Refusal> {
        if self.has_orphans_left() {
            lane.receives.set(lane.receives.get().wrapping_add(1));
            if lane.receives.get() % ORPHAN_EVERY == 0 {
                if let Some(deliveries) = self.receive_orphan(lane, hand) {
                    return Ok(deliveries);
                }
            }
        }
        self.exchange_at_end(lane, hand, End::Head, near)?;
        self.own(lane).set_down(hand, MESSAGE, 1);
        Ok(1)
    }

    /// Receives into a hand that is ready, lets `read` copy the message and releases the hand; if all of this can be done at once, at the
    /// position where the lane expects it, and there are no orphans. `None` means nothing.
    ///
    /// The hand is never said to have a message: until it is spare the exchange counts as under way. So `read` must not unwind.
    #[inline]
    pub fn receive_at_once(&self, lane: &Lane, read: impl FnOnce(&Hand), near: impl Fn(u32)) -> bool {
        let Some(mut hand) = lane.ready_hand() else { return false };
        let own = self.own(lane);
        let received = !self.has_orphans_left() && self.exchange_here(lane, own, &mut hand, End::Head, near);
        if received {
            read(&hand);
            own.set_down(&hand, SPARE, 0);
            lane.make_ready(&hand);
        }
        received
    }

    #[inline]
    fn has_orphans_left(&self) -> bool {
        self.words.orphans.load(Ordering::Relaxed) & 1 != 0
    }

    /// An exchange at the position where the lane expects it. False means nothing.
    #[inline]
    fn exchange_here(
        &self,
        lane: &Lane,
        own: Own<'_>,
        hand: &mut Hand,
        end: End,
        near: impl Fn(u32),
    ) -> bool {
        let position = lane.side(end).position.get();
        let next = self.shape.after(position);
        let slot = self.slot(self.shape.index(position));
        let word = slot.load_first(Ordering::Acquire);
        // Of this lap, and not closed; empty or full.
        let wanted = if end == End::Tail { position } else { position ^ self.shape.full };
        (word ^ wanted) < self.shape.full
            && self.exchange(lane, own, hand, slot, position, next, word, end, near)
    }

    /// The step by which a cell changes hands: at `position`, in whose slot `word` was seen, and with `next` behind it.
    #[inline]
    #[expect(clippy::too_many_arguments, reason = "all of them stay in registers")]
    fn exchange(
        &self,
        lane: &Lane,
        own: Own<'_>,
        hand: &mut Hand,
        slot: &AtomicPair,
        position: u64,
        next: u64,
        word: u64,
        end: End,
        near: impl Fn(u32),
    ) -> bool {
        let shape = self.shape;
        let cell = shape.cell_of(word);
        // Checked before it can get into a hand.
        if cell as usize >= shape.cells {
            return false;
        }
        let mut value = hand.value;
        let ours = match end {
            End::Tail => position & !shape.cell_mask() | shape.full,
            End::Head => {
                near(cell);
                shape.next_lap(position) & !shape.cell_mask() | word & CLOSED
            }
        };
        if shape.inline && end == End::Head {
            // It changes with the word only: if that is the same at the exchange, this is its message.
            value = slot.load_second(Ordering::Relaxed);
            // Read only behind the word that makes an orphan of it.
            own.value(shape.hands, hand).store(value, Ordering::Relaxed);
        }
        let intent = Intent::of_slot(shape.index(position), end == End::Head, hand, cell);
        own.intent.store(intent.0, Ordering::Release);
        let ours = ours | u64::from(hand.cell);
        let done = if shape.inline && end == End::Tail {
            slot.compare_exchange([word, slot.load_second(Ordering::Relaxed)], [ours, value])
        } else {
            // Whoever saw the word has acquired what came before it, and no other word is the same.
            slot.compare_exchange_first(word, ours, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        if !done {
            own.intent.store(0, Ordering::Release);
            return false;
        }
        (hand.cell, hand.value) = (cell, value);
        if end == End::Tail {
            near(cell);
        }
        if let Some(ahead) = self.slots.get(shape.index(position) + AHEAD) {
            ahead.expect_exchange();
        }
        let side = lane.side(end);
        side.position.set(next);
        side.done.set(side.done.get().wrapping_add(1));
        if position % HINT_EVERY == 0 {
            self.hint_word(end).store(position, Ordering::Relaxed);
        }
        true
    }

    /// Walks to the end of the ring and makes an exchange there.
    #[cold]
    #[inline(never)]
    fn exchange_at_end(
        self,
        lane: &Lane,
        hand: &mut Hand,
        end: End,
        near: impl Fn(u32),
    ) -> Result<(), Refusal> {
        let (own, side) = (self.own(lane), lane.side(end));
        for _ in 0..STEPS_MAX {
            let (position, at) = self.find(side.position.get(), end);
            side.position.set(position);
            match at {
                At::Ready(word) if self.shape.cell_of(word) as usize >= self.shape.cells => {
                    return Err(Refusal::Damaged);
                }
                At::Ready(word) => {
                    let (slot, next) = (self.slot(self.shape.index(position)), self.shape.after(position));
                    if self.exchange(lane, own, hand, slot, position, next, word, end, &near) {
                        return Ok(());
                    }
                    side.lost();
                }
                At::Refused(Refusal::WouldBlock) => {
                    side.idle();
                    return Err(Refusal::WouldBlock);
                }
                At::Refused(refusal) => return Err(refusal),
                At::Passed(_) => return Err(Refusal::Damaged), // for ever ahead
            }
        }
        Err(Refusal::Damaged)
    }

    /// From `position` on, the first one that is not passed, and what is there.
    fn find(&self, mut position: u64, end: End) -> (u64, At) {
        // Where the walk went before the last jump: a hint can be wrong in a corrupt segment.
        let mut before_jump = None;
        for walked in 1..=self.shape.capacity as u32 + WALK_MAX {
            match self.look(position, end) {
                At::Passed(next) => position = next,
                At::Refused(Refusal::Damaged) => match before_jump.take() {
                    Some(before) => position = before,
                    None => return (position, At::Refused(Refusal::Damaged)),
                },
                at => return (position, at),
            }
            if walked % WALK == 0 && walked < WALK_MAX {
                let hint = self.hint(end);
                if self.shape.is_after(hint, position) {
                    before_jump = Some(position);
                    position = hint;
                }
            }
        }
        (position, At::Passed(position))
    }

    fn hint_word(&self, end: End) -> &'a AtomicU64 {
        match end {
            End::Tail => &self.words.tail,
            End::Head => &self.words.head,
        }
    }

    fn hint(&self, end: End) -> u64 {
        let hint = self.hint_word(end).load(Ordering::Relaxed);
        let index = self.shape.index(hint);
        self.shape.position(self.shape.lap(hint), if index < self.shape.capacity { index } else { 0 })
    }

    /// Where a new lane begins: at the hint, or where the first slot proves to be, should the hint be corrupt.
    fn start(&self, end: End) -> u64 {
        let hint = self.hint(end);
        if !matches!(self.look(hint, end), At::Refused(Refusal::Damaged)) {
            return hint;
        }
        let lap = self.shape.lap_of(self.slot(0).load_first(Ordering::Relaxed));
        self.shape.after(self.shape.position(lap.wrapping_sub(1), 0))
    }

    /// What the slot at `position` says.
    #[inline]
    fn look(&self, position: u64, end: End) -> At {
        let shape = self.shape;
        let (lap, index) = (shape.lap(position), shape.index(position));
        let word = self.slot(index).load_first(Ordering::Acquire);
        let (full, closed) = (shape.is_full(word), word & CLOSED != 0);
        let blocked = At::Refused(if closed { Refusal::Closed } else { Refusal::WouldBlock });
        match (shape.laps_between(shape.lap_of(word), lap), full, end) {
            (0, false, End::Tail) if !closed => At::Ready(word),
            (0, true, End::Head) => At::Ready(word),
            // The tail has come round to a message that is still there, or the head to the tail.
            (0, false, _) | (-1, true, End::Tail) => blocked,
            // FULL(L) has been sent at lap L, EMPTY(L) received at lap L - 1.
            (0.., true, End::Tail) => At::Passed(shape.after(shape.position(shape.lap_of(word), index))),
            (1.., _, _) => At::Passed(shape.after(shape.position(shape.lap_of(word).wrapping_sub(1), index))),
            _ => At::Refused(Refusal::Damaged),
        }
    }

    /// Closes the ring: nothing is sent from now on; what is in it can be received. True if it was open.
    ///
    /// # Errors
    ///
    /// [`Refusal::Damaged`].
    pub fn close<L: Liveness>(&self, live: &L, lane: &Lane) -> Result<bool, Refusal> {
        for _ in 0..STEPS_MAX {
            let (position, at) = self.find(lane.tail.position.get(), End::Tail);
            lane.tail.position.set(position);
            let slot = self.slot(self.shape.index(position));
            let word = match at {
                At::Ready(word) => word,
                // Full: the mark goes onto the message of the last lap.
                At::Refused(Refusal::WouldBlock) => {
                    let word = slot.load_first(Ordering::Relaxed);
                    let last = self.shape.lap(position).wrapping_sub(1) & self.shape.lap_mask();
                    if word >> self.shape.cell_bits != last << 1 | 1 {
                        continue; // no more
                    }
                    word
                }
                At::Refused(Refusal::Closed) => {
                    // Who closed it may have been killed or stopped before it woke them.
                    self.wake_all_after_store(live);
                    return Ok(false);
                }
                At::Refused(Refusal::Damaged) | At::Passed(_) => return Err(Refusal::Damaged),
            };
            if slot.compare_exchange_first(word, word | CLOSED, Ordering::Release, Ordering::Relaxed).is_ok()
            {
                self.wake_all_after_store(live);
                return Ok(true);
            }
        }
        Err(Refusal::Damaged)
    }

    /// True if nothing can be sent any more.
    pub fn is_closed(&self, lane: &Lane) -> bool {
        matches!(self.find_end(lane, End::Tail), At::Refused(Refusal::Closed))
    }

    fn find_end(&self, lane: &Lane, end: End) -> At {
        let side = lane.side(end);
        let (position, at) = self.find(side.position.get(), end);
        side.position.set(position);
        at
    }

    /// How many messages were in the ring a moment ago: exact if it holds still.
    pub fn len(&self, lane: &Lane) -> usize {
        self.find_end(lane, End::Head);
        self.find_end(lane, End::Tail);
        self.shape.distance(lane.tail.position.get(), lane.head.position.get())
    }

    /// True if the ring has no message.
    pub fn is_empty(&self, lane: &Lane) -> bool {
        !matches!(self.find_end(lane, End::Head), At::Ready(_))
    }

    /// True if all slots have a message.
    pub fn is_full(&self, lane: &Lane) -> bool {
        self.find_end(lane, End::Tail);
        let position = lane.tail.position.get();
        let word = self.slot(self.shape.index(position)).load_first(Ordering::Relaxed);
        self.shape.is_full(word)
            && self.shape.laps_between(self.shape.lap_of(word), self.shape.lap(position)) == -1
    }

    /// True if no other handle lives, as far as the claims tell.
    pub fn is_last(&self, lane: &Lane) -> bool {
        let used = &self.claims[..self.lanes_used()];
        used.iter()
            .enumerate()
            .all(|(number, claim)| number == lane.number || claim.load(Ordering::Acquire) == FREE)
    }

    /// True if there was a moment at which the ring was empty and nobody had a message in a hand.
    pub fn is_finished(&self, lane: &Lane) -> bool {
        let orphans = self.words.orphans.load(Ordering::Acquire);
        let is_empty = || !matches!(self.find_end(lane, End::Head), At::Ready(_));
        if !is_empty() {
            return false;
        }
        let head = lane.head.position.get();
        // Nothing is received meanwhile, since nothing is there. Only an orphan can go from a hand that is yet to be looked at to
        // one that has been: hence twice. It can not do so a second time without having been orphaned again, which is seen before it is
        // seen gone.
        self.hands_are_spare()
            && self.hands_are_spare()
            && is_empty()
            && lane.head.position.get() == head
            && self.words.orphans.load(Ordering::Relaxed) >> 1 == orphans >> 1
    }

    /// How many lanes have a handle.
    pub fn lanes_claimed(&self) -> usize {
        self.claims.iter().filter(|claim| claim.load(Ordering::Relaxed) != FREE).count()
    }
}

impl Lane {
    /// The hand that was put back last, if it is still free.
    #[inline]
    fn ready_hand(&self) -> Option<Hand> {
        let ready = self.ready.get();
        (ready != NO_HAND).then_some(Hand { number: (ready >> 32) as u32, cell: ready as u32, value: 0 })
    }

    #[inline]
    fn make_ready(&self, hand: &Hand) {
        self.ready.set(u64::from(hand.number) << 32 | u64::from(hand.cell));
    }

    #[inline]
    fn side(&self, end: End) -> &Side {
        match end {
            End::Tail => &self.tail,
            End::Head => &self.head,
        }
    }
}

/// `lanes` and `hands`, as the creator wrote them.
impl ExchangeWords {
    /// How many lanes and hands the creator asked for; to be checked by [`Shape::new`] and against the size of the object.
    #[must_use]
    pub fn lanes_and_hands(&self) -> (u64, u64) {
        (u64::from(self.lanes.load(Ordering::Relaxed)), u64::from(self.hands.load(Ordering::Relaxed)))
    }
}

#[inline]
fn hand_word(cell: u32, kind: u64, deliveries: u8) -> u64 {
    u64::from(deliveries) << 48 | kind << 32 | u64::from(cell)
}

#[inline]
fn kind_of(hand: u64) -> u64 {
    hand >> 32 & 3
}

#[inline]
fn deliveries_of(hand: u64) -> u8 {
    (hand >> 48) as u8
}
