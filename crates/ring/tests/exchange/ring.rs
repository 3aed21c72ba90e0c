// The tests themselves, for one kind of ring: `INLINE` or not.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use crossproc_atomic::{AtomicPair, AtomicU64, Ordering::Relaxed, Owner};
use super::member::Member;
use crossproc_ring::{Exchange, ExchangeWords, Hand, Lane, NoLane, Recovery, Refusal, Shape};

const CAPACITIES: [u64; 5] = [1, 2, 3, 5, if cfg!(miri) { 9 } else { 64 }];

// Words of the head, as the file's table has them.
const TAIL: usize = 0;
const HEAD: usize = 16;
const ORPHANS: usize = 32;
const LANES_USED: usize = 35;
const HEAD_WORDS: usize = 48;
// Words of a record.
const INTENT: usize = 0;
const HANDS: usize = 1;

const CLOSED: u64 = 1 << 63;
const VALID: u64 = 1 << 63;
const LIVE: u64 = 1 << 62;
const RECOVERING: u64 = 2 << 62;
const MESSAGE: u64 = 1 << 32 | 1 << 48;
const ORPHAN: u64 = 2 << 32 | 1 << 48;
const KIND: u64 = 3 << 32;
/// Which orphan it is.
const NUMBER: u64 = 0x3fff << 34;

struct Heap {
    shape: Shape,
    head: Vec<AtomicU64>,
    claims: Vec<AtomicU64>,
    records: Vec<AtomicU64>,
    slots: Vec<AtomicPair>,
    cells: Vec<AtomicU64>,
    /// One bit for each participant.
    dead: AtomicU64,
}

impl Heap {
    fn new(capacity: u64, lanes: u64, hands: u64) -> Self {
        let shape = Shape::new(capacity, lanes, hands).expect("a shape");
        let shape = if INLINE { shape.inline() } else { shape };
        let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let heap = Self {
            shape,
            head: words(HEAD_WORDS),
            claims: words(shape.lanes()),
            records: words(shape.record_words()),
            slots: (0..shape.capacity()).map(|_| AtomicPair::default()).collect(),
            cells: words(shape.cells()),
            dead: AtomicU64::new(0),
        };
        heap.ring().init();
        heap
    }

    /// An empty ring that has come to this position.
    fn at(capacity: u64, lanes: u64, hands: u64, lap: u64, index: u64) -> Self {
        let heap = Self::new(capacity, lanes, hands);
        for slot in 0..capacity {
            heap.set_slot(slot as usize, lap.wrapping_add(u64::from(slot < index)), false, slot);
        }
        for hint in [TAIL, HEAD] {
            heap.head[hint].store(heap.word(lap, false, 0), Relaxed);
        }
        heap
    }

    fn ring(&self) -> Exchange<'_> {
        assert_eq!(size_of::<ExchangeWords>(), HEAD_WORDS * 8);
        // SAFETY: as long, aligned to 8 bytes as all its words are, and these are atomics that may have any value.
        let words = unsafe { &*self.head.as_ptr().cast::<ExchangeWords>() };
        Exchange::new(&self.shape, words, &self.claims, &self.records, &self.slots)
    }

    fn cell_bits(&self) -> u32 {
        (u64::BITS - (self.shape.cells() as u64 - 1).leading_zeros()).max(1)
    }

    fn last_lap(&self) -> u64 {
        u64::MAX >> (2 + self.cell_bits())
    }

    fn word(&self, lap: u64, full: bool, cell: u64) -> u64 {
        (lap & self.last_lap()) << (self.cell_bits() + 1) | u64::from(full) << self.cell_bits() | cell
    }

    fn slot(&self, slot: usize) -> u64 {
        self.slots[slot].load_first(Relaxed)
    }

    fn write_slot(&self, slot: usize, word: u64) {
        self.slots[slot].store_first(word, Relaxed);
    }

    fn set_slot(&self, slot: usize, lap: u64, full: bool, cell: u64) {
        self.write_slot(slot, self.word(lap, full, cell));
    }

    fn write(&self, hand: &mut Hand, message: u64) {
        if INLINE {
            hand.value = message;
        } else {
            self.cells[hand.cell() as usize].store(message, Relaxed);
        }
    }

    fn record(&self, lane: usize) -> &[AtomicU64] {
        let stride = self.shape.record_words() / self.shape.lanes();
        &self.records[lane * stride..][..stride]
    }

    fn member(&self, number: u16) -> Member<'_> {
        Member { dead: &self.dead, number }
    }

    fn handle(&self, number: u16) -> Handle<'_> {
        let live = self.member(number);
        let lane = self.ring().claim(&live).expect("a lane is free");
        Handle { heap: self, live, lane }
    }

    fn kill(&self, number: u16) {
        self.dead.fetch_or(1 << number, Relaxed);
    }

    fn audit(&self) {
        assert_eq!(self.ring().audit(), Ok(()));
    }

    fn cell_of(&self, word: u64) -> u64 {
        word & ((1 << self.cell_bits()) - 1)
    }
}

struct Handle<'a> {
    heap: &'a Heap,
    live: Member<'a>,
    lane: Lane,
}

impl<'a> Handle<'a> {
    fn ring(&self) -> Exchange<'a> {
        self.heap.ring()
    }

    fn hand(&self) -> Option<Hand> {
        self.ring().take_hand(&self.lane)
    }

    fn send(&self, value: u64) -> Result<(), Refusal> {
        let mut hand = self.hand().expect("a hand is free");
        self.heap.write(&mut hand, value);
        let sent = self.ring().send(&self.lane, &mut hand, |_| ());
        self.ring().put_back(&self.lane, hand);
        sent
    }

    fn receive(&self) -> Result<(Hand, u8), Refusal> {
        let mut hand = self.hand().expect("a hand is free");
        match self.ring().receive(&self.lane, &mut hand, |_| ()) {
            Ok(deliveries) => Ok((hand, deliveries)),
            Err(refusal) => {
                self.ring().put_back(&self.lane, hand);
                Err(refusal)
            }
        }
    }

    fn orphan(&self) -> Option<(Hand, u8)> {
        let mut hand = self.hand()?;
        match self.ring().receive_orphan(&self.lane, &mut hand) {
            Some(deliveries) => Some((hand, deliveries)),
            None => {
                self.ring().put_back(&self.lane, hand);
                None
            }
        }
    }

    fn read(&self, hand: &Hand) -> u64 {
        if INLINE { hand.value } else { self.heap.cells[hand.cell() as usize].load(Relaxed) }
    }

    fn recv(&self) -> Result<u64, Refusal> {
        self.receive().map(|(hand, _)| {
            let value = self.read(&hand);
            self.ring().release(&self.lane, hand);
            value
        })
    }

    fn len(&self) -> usize {
        self.ring().len(&self.lane)
    }
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn seeded(what: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64 % 1_000_000_000;
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
        println!("{what}: SEED={seed}");
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }
}

/// Where the ring has come to before: at its beginning, one on, and about to wrap.
fn starts(capacity: u64) -> Vec<Heap> {
    let last = Heap::new(capacity, 3, 2).last_lap();
    let laps = [0, 1, last - 1, last];
    let indices = [0, capacity / 2, capacity - 1];
    let at = |lap: u64| indices.map(|index| Heap::at(capacity, 3, 2, lap, index));
    laps.into_iter().flat_map(at).collect()
}

#[test]
fn verdicts_are_exact_at_every_fill_level() {
    for capacity in CAPACITIES {
        for heap in starts(capacity) {
            let [sender, receiver] = [1, 2].map(|number| heap.handle(number));
            for fill in 0..=capacity {
                for handle in [&sender, &receiver] {
                    assert_eq!(handle.len() as u64, fill);
                    assert_eq!(handle.ring().is_empty(&handle.lane), fill == 0);
                    assert_eq!(handle.ring().is_full(&handle.lane), fill == capacity);
                    assert!(!handle.ring().is_closed(&handle.lane));
                }
                heap.audit();
                assert_eq!(
                    sender.send(fill),
                    if fill < capacity { Ok(()) } else { Err(Refusal::WouldBlock) }
                );
            }
            for value in 0..capacity {
                assert_eq!(receiver.recv(), Ok(value), "in order");
                assert_eq!(sender.len() as u64, capacity - value - 1);
                heap.audit();
            }
            assert_eq!(receiver.recv(), Err(Refusal::WouldBlock));
            assert!(receiver.ring().is_finished(&receiver.lane));
        }
    }
}

#[test]
fn a_ring_goes_round_past_its_last_lap() {
    for capacity in CAPACITIES {
        let last = Heap::new(capacity, 3, 2).last_lap();
        let heap = Heap::at(capacity, 3, 2, last - 1, capacity - 1);
        let [first, second] = [1, 2].map(|number| heap.handle(number));
        let mut random = Random::seeded("past the last lap");
        let mut queue = VecDeque::new();
        for value in 0..capacity * 8 + 40 {
            let handle = if random.below(2) == 0 { &first } else { &second };
            if random.below(3) > 0 {
                let sent = handle.send(value);
                assert_eq!(sent.is_ok(), (queue.len() as u64) < capacity);
                sent.is_ok().then(|| queue.push_back(value));
            } else {
                assert_eq!(handle.recv().ok(), queue.pop_front());
            }
            heap.audit();
        }
        let lap = heap.slot(0) >> (heap.cell_bits() + 1);
        assert!(lap < last - 1, "it has wrapped: {lap}");
    }
}

/// A lane that has slept for hundreds of positions, with hints that are right, old, or gone.
#[test]
fn who_is_far_behind_catches_up() {
    for capacity in CAPACITIES {
        for hints in [true, false] {
            let heap = Heap::new(capacity, 3, 2);
            let [late, busy] = [1, 2].map(|number| heap.handle(number));
            let rounds = if cfg!(miri) { capacity + 20 } else { 40 * capacity };
            for value in 0..rounds {
                assert_eq!(busy.send(value), Ok(()));
                assert_eq!(busy.recv(), Ok(value));
                if !hints {
                    heap.head[TAIL].store(0, Relaxed);
                    heap.head[HEAD].store(0, Relaxed);
                }
            }
            assert_eq!(late.recv(), Err(Refusal::WouldBlock));
            assert_eq!(late.send(7), Ok(()));
            assert_eq!(heap.handle(3).recv(), Ok(7), "a lane that begins where the hints are");
            heap.audit();
        }
    }
}

/// Hints that are far ahead, or no positions at all: whoever follows one finds that nothing is there.
#[test]
fn a_hint_that_is_wrong_misleads_nobody() {
    for capacity in [1, 2, 5, 64] {
        let heap = Heap::at(capacity, 4, 1, 1000, 0);
        let lap = |lap: u64| lap << (heap.cell_bits() + 1);
        for wrong in [lap(1002), lap(5000), lap(heap.last_lap() / 4), u64::MAX >> 2, u64::MAX] {
            for hint in [TAIL, HEAD] {
                heap.head[hint].store(wrong, Relaxed);
            }
            let handle = heap.handle(1);
            assert_eq!(handle.send(7), Ok(()), "hint {wrong:#x}");
            for hint in [TAIL, HEAD] {
                heap.head[hint].store(wrong, Relaxed);
            }
            assert_eq!(handle.recv(), Ok(7), "hint {wrong:#x}");
            assert_eq!(handle.recv(), Err(Refusal::WouldBlock));
            heap.audit();
            handle.ring().leave(&handle.live, handle.lane);
        }
    }
}

#[test]
fn a_closed_ring_can_be_emptied() {
    for capacity in CAPACITIES {
        for fill in 0..=capacity {
            for heap in starts(capacity) {
                let [first, second] = [1, 2].map(|number| heap.handle(number));
                (0..fill).for_each(|value| assert_eq!(first.send(value), Ok(())));
                assert_eq!(second.ring().close(&second.live, &second.lane), Ok(true));
                assert_eq!(first.ring().close(&first.live, &first.lane), Ok(false));
                heap.audit();
                for value in 0..fill {
                    assert_eq!(first.send(9), Err(Refusal::Closed));
                    assert_eq!(second.recv(), Ok(value));
                }
                for handle in [&first, &second] {
                    assert!(handle.ring().is_closed(&handle.lane));
                    assert_eq!(handle.send(9), Err(Refusal::Closed));
                    assert_eq!(handle.recv(), Err(Refusal::Closed));
                }
                assert_eq!(heap.handle(3).recv(), Err(Refusal::Closed));
                heap.audit();
            }
            if cfg!(miri) && fill > 2 {
                break;
            }
        }
    }
}

#[test]
fn hands_are_held_across_other_operations() {
    let heap = Heap::new(4, 2, 3);
    let handle = heap.handle(1);
    let mut loan = handle.hand().expect("the first");
    heap.write(&mut loan, 10);
    assert_eq!(handle.send(11), Ok(()));
    assert_eq!(handle.send(12), Ok(()));
    let (held, deliveries) = handle.receive().expect("there are two");
    assert_eq!((handle.read(&held), deliveries), (11, 1));
    // With the last hand.
    assert_eq!(handle.send(13), Ok(()));
    let (other, _) = handle.receive().expect("there are two");
    assert_eq!(handle.lane.hands_in_use(), 3);
    assert_eq!(handle.hand(), None);
    assert_eq!(handle.ring().send(&handle.lane, &mut loan, |_| ()), Ok(()));
    handle.ring().put_back(&handle.lane, loan);
    assert_eq!((handle.read(&held), handle.read(&other)), (11, 12), "nobody has touched them");
    assert!(!handle.ring().is_finished(&handle.lane));
    handle.ring().release(&handle.lane, held);
    assert_eq!((handle.recv(), handle.recv()), (Ok(13), Ok(10)));
    handle.ring().release(&handle.lane, other);
    assert!(handle.ring().is_finished(&handle.lane));
    heap.audit();
}

#[test]
fn lanes_are_claimed_left_and_inherited() {
    let heap = Heap::new(1, 2, 1);
    let [first, second] = [1, 2].map(|number| heap.handle(number));
    let third = heap.member(3);
    assert_eq!(heap.ring().claim(&third).map(|_| ()), Err(NoLane));
    assert_eq!((heap.ring().lanes_claimed(), first.ring().is_last(&first.lane)), (2, false));
    assert_eq!(second.send(5), Ok(()));
    let (number, live) = (second.lane.number(), second.live);
    heap.ring().leave(&live, second.lane);
    assert!(first.ring().is_last(&first.lane));
    let heir = heap.handle(3);
    assert_eq!(heir.lane.number(), number);
    assert_eq!(heir.recv(), Ok(5));
    heap.kill(3);
    assert_eq!(heap.handle(4).lane.number(), number, "recovered by who needs one");
    heap.audit();
}

/// A message in a hand of one who leaves, or dies, comes back, and says how often it was delivered.
#[test]
fn orphans_are_delivered_and_counted() {
    let heap = Heap::new(2, 3, 2);
    let me = heap.handle(1);
    assert_eq!((me.send(7), me.send(8)), (Ok(()), Ok(())));
    for delivery in 2..6_u16 {
        let victim = heap.handle(delivery);
        let (hand, deliveries) = victim.orphan().or_else(|| victim.receive().ok()).expect("there is one");
        assert_eq!((victim.read(&hand), u16::from(deliveries)), (7, delivery - 1));
        if delivery % 2 == 0 {
            heap.kill(delivery);
            assert_eq!(me.ring().recover(&me.live), Recovery { lanes: 1, is_pending: false });
        } else {
            heap.ring().leave(&victim.live, victim.lane);
        }
        assert!(!me.ring().is_finished(&me.lane));
        heap.audit();
    }
    // From the ring first, if nobody asks for orphans; these come now and then.
    assert_eq!(me.recv(), Ok(8));
    let (hand, deliveries) = me.orphan().expect("it is not lost");
    assert_eq!((me.read(&hand), deliveries), (7, 5));
    assert!(me.orphan().is_none());
    me.ring().release(&me.lane, hand);
    assert!(me.ring().is_finished(&me.lane));
    heap.audit();
}

/// While the ring never runs empty, an orphan is received all the same.
#[test]
fn an_orphan_does_not_wait_for_an_empty_ring() {
    let heap = Heap::new(2, 3, 1);
    let [me, victim] = [1, 2].map(|number| heap.handle(number));
    assert_eq!((me.send(7), me.send(8)), (Ok(()), Ok(())));
    assert_eq!(victim.receive().map(|(_, deliveries)| deliveries), Ok(1));
    heap.kill(2);
    me.ring().recover(&me.live);
    let mut deliveries = Vec::new();
    for value in 0..200 {
        let _ = me.send(value);
        let (hand, count) = me.receive().expect("there is always one");
        me.ring().release(&me.lane, hand);
        deliveries.push(count);
    }
    assert_eq!(deliveries.iter().filter(|&&count| count == 2).count(), 1);
}

/// All lanes have an orphan in their only hand: who comes gets one of these lanes, and receives what is in it.
#[test]
fn orphans_in_all_lanes_are_received_in_place() {
    let heap = Heap::new(2, 2, 1);
    let first = heap.handle(1);
    assert_eq!((first.send(7), first.send(8)), (Ok(()), Ok(())));
    let second = heap.handle(2);
    assert!(first.receive().is_ok() && second.receive().is_ok());
    heap.kill(1);
    heap.kill(2);
    let me = heap.handle(3);
    assert_eq!(me.hand(), None);
    let (hand, deliveries) = me.ring().receive_in_place(&me.lane).expect("it is an orphan's lane");
    assert_eq!((me.read(&hand), deliveries), (7, 2));
    heap.audit();
    assert!(me.ring().receive_in_place(&me.lane).is_none());
    me.ring().release(&me.lane, hand);
    let (hand, deliveries) = me.orphan().expect("the other one");
    assert_eq!((me.read(&hand), deliveries), (8, 2));
    heap.audit();
}

// ---- Lanes of the dead, word for word ----

/// A ring of 2 slots at lap 4, with lanes of two hands: lane 0 is ours, 1 is to be that of a dead one, 2 that of others.
///
/// Cells 0 and 1 are in the slots, 2 and 3 in our hands, 4 and 5 in those of the dead one, 6 and 7 in the third lane.
struct Dead {
    heap: Heap,
    full: [bool; 2],
}

const DEAD: u16 = 9;
const OTHER: u16 = 8;

impl Dead {
    /// Slot 0 is full or empty.
    fn new(full: bool) -> Self {
        let heap = Heap::at(2, 3, 2, 4, 0);
        if full {
            heap.set_slot(0, 4, true, 0);
        }
        heap.head[LANES_USED].store(3, Relaxed);
        heap.claims[1].store(LIVE | Owner::new(DEAD, 1).unwrap().bits(), Relaxed);
        heap.claims[2].store(LIVE | Owner::new(OTHER, 1).unwrap().bits(), Relaxed);
        heap.kill(DEAD);
        Self { heap, full: [full, false] }
    }

    /// What lane `lane` intends with its hand 1 at slot 0.
    fn intend(&self, lane: usize, word: u64) {
        let full = word >> self.heap.cell_bits() & 1;
        let intent = VALID | full << 61 | 1 << 55 | self.heap.cell_of(word);
        self.heap.record(lane)[INTENT].store(intent, Relaxed);
    }

    fn hand(&self, lane: usize, hand: usize) -> &AtomicU64 {
        &self.heap.record(lane)[HANDS + hand]
    }

    /// The word that slot 0 has at first.
    fn first(&self) -> u64 {
        self.heap.word(4, self.full[0], 0)
    }

    /// The one that it has once `cell` was exchanged for that.
    fn next(&self, cell: u64) -> u64 {
        if self.full[0] { self.heap.word(5, false, cell) } else { self.heap.word(4, true, cell) }
    }

    /// Recovers; returns what hand 1 of the dead lane has then.
    fn recovered(&self) -> u64 {
        let me = self.heap.handle(1);
        assert_eq!(me.ring().recover(&me.live), Recovery { lanes: 1, is_pending: false });
        self.heap.audit();
        assert_eq!(self.heap.claims[1].load(Relaxed), 0, "the lane is free");
        assert_eq!(self.heap.record(1)[INTENT].load(Relaxed), 0);
        self.hand(1, 1).load(Relaxed) & !NUMBER
    }
}

#[test]
fn an_exchange_that_did_not_come_off() {
    for full in [false, true] {
        let dead = Dead::new(full);
        dead.intend(1, dead.first());
        assert_eq!(dead.recovered(), 5);
        // Nor if the slot was closed.
        let dead = Dead::new(full);
        dead.intend(1, dead.first());
        dead.heap.write_slot(0, dead.heap.slot(0) | CLOSED);
        assert_eq!(dead.recovered(), 5);
    }
}

#[test]
fn an_exchange_that_came_off() {
    for full in [false, true] {
        for closed in [0, CLOSED] {
            let dead = Dead::new(full);
            dead.intend(1, dead.first());
            dead.heap.write_slot(0, dead.next(5) | closed);
            assert_eq!(dead.recovered(), if full { ORPHAN } else { 0 });
        }
    }
}

/// The hand was stored: the intent says nothing any more, whatever is in the slot.
#[test]
fn an_exchange_that_is_settled() {
    for full in [false, true] {
        for slot_since in [5, 6] {
            let dead = Dead::new(full);
            dead.intend(1, dead.first());
            dead.hand(1, 1).store(if full { MESSAGE } else { 0 }, Relaxed);
            dead.heap.write_slot(0, dead.next(slot_since));
            if slot_since == 6 {
                dead.hand(2, 0).store(5, Relaxed);
            }
            assert_eq!(dead.recovered(), if full { ORPHAN } else { 0 });
        }
    }
}

/// Others have gone on at the slot: cell 6 lies there now, and the one of the two that is not the dead one's in the third lane.
#[test]
fn an_exchange_is_decided_by_where_the_cells_are() {
    for full in [false, true] {
        for (came_off, theirs) in [(true, 5), (false, 0)] {
            let dead = Dead::new(full);
            dead.intend(1, dead.first());
            dead.heap.write_slot(0, dead.next(6));
            dead.hand(2, 0).store(theirs, Relaxed);
            let wanted = if full { ORPHAN } else { 0 };
            assert_eq!(dead.recovered(), if came_off { wanted } else { 5 });
        }
    }
}

/// The third lane lives and is stopped in the middle of an exchange itself: which cell it has follows from what is in the slots.
#[test]
fn an_exchange_is_decided_by_another_one() {
    for full in [false, true] {
        for (came_off, cell) in [(true, 5), (false, 0)] {
            let dead = Dead::new(full);
            dead.intend(1, dead.first());
            // It exchanged its cell 7 for `cell`, which had been there, and has not said so; 7 lies in the slot.
            dead.intend(2, dead.heap.word(5, full, cell));
            dead.heap.write_slot(0, dead.next(7));
            let me = dead.heap.handle(1);
            assert_eq!(me.ring().recover(&me.live), Recovery { lanes: 1, is_pending: false });
            let wanted = if full { ORPHAN } else { 0 };
            assert_eq!(dead.hand(1, 1).load(Relaxed), if came_off { wanted } else { 5 });
            assert_eq!(dead.hand(2, 1).load(Relaxed), 7, "a record is its holder's");
        }
    }
}

/// The dead one was taking an orphan out of hand 0 of the third lane, which is free.
#[test]
fn an_orphan_was_being_taken() {
    // In the place it was taken from: the orphan, its cell, or (in a lane that went on since) the cell of a slot.
    for (there, came_off) in [(6 | ORPHAN, false), (5, true), (0, true)] {
        let dead = Dead::new(false);
        dead.heap.claims[2].store(0, Relaxed);
        dead.heap.head[ORPHANS].store(3, Relaxed);
        let intent = VALID | 1 << 62 | 1 << 61 | 1 << 55 | 1 << 44 | (2 << 6) << 22 | 6;
        dead.heap.record(1)[INTENT].store(intent, Relaxed);
        dead.hand(2, 0).store(there, Relaxed);
        if there == 0 {
            dead.heap.set_slot(0, 4, false, 5);
        }
        let hand = dead.recovered();
        assert_eq!(hand, if came_off { 2 << 48 | 2 << 32 | 6 } else { 5 });
    }
}

#[test]
fn a_recovery_that_was_cut_short_is_begun_again() {
    // Before anything; after the hand's store; after the intent; with one of the two orphans made.
    for step in 0..4 {
        let dead = Dead::new(true);
        dead.heap.claims[1].store(RECOVERING | Owner::new(DEAD, 1).unwrap().bits(), Relaxed);
        dead.hand(1, 0).store(4 | MESSAGE, Relaxed);
        dead.intend(1, dead.first());
        dead.heap.write_slot(0, dead.next(5));
        if step > 0 {
            dead.hand(1, 1).store(MESSAGE, Relaxed);
        }
        if step > 1 {
            dead.heap.record(1)[INTENT].store(0, Relaxed);
        }
        if step > 2 {
            dead.hand(1, 0).store(4 | ORPHAN, Relaxed);
        }
        assert_eq!(dead.recovered(), ORPHAN);
        assert_eq!(dead.hand(1, 0).load(Relaxed), 4 | ORPHAN);
        assert_eq!(dead.heap.head[ORPHANS].load(Relaxed) & 1, 1, "they will be looked for");
    }
}

#[test]
fn the_living_are_left_alone() {
    let dead = Dead::new(false);
    let me = dead.heap.handle(1);
    for state in [LIVE, RECOVERING] {
        let claim = state | Owner::new(OTHER, 1).unwrap().bits();
        dead.heap.claims[1].store(claim, Relaxed);
        dead.intend(1, dead.first());
        let pending = state == RECOVERING;
        assert_eq!(me.ring().recover(&me.live), Recovery { lanes: 0, is_pending: pending });
        assert_eq!(dead.heap.claims[1].load(Relaxed), claim);
        assert_ne!(dead.heap.record(1)[INTENT].load(Relaxed), 0);
    }
}

// ---- All of it at random ----

/// What a handle has, as the model sees it.
#[derive(Default)]
struct Held {
    messages: Vec<(Hand, u64, u8)>,
    loans: Vec<Hand>,
}

/// Any operation in any order, by up to three handles of two hands, compared with a queue.
#[test]
fn it_is_a_queue() {
    let mut random = Random::seeded("a queue");
    for round in 0..if cfg!(miri) { 4 } else { 300 } {
        let capacity = CAPACITIES[(round % 4) as usize];
        let last = Heap::new(capacity, 3, 2).last_lap();
        let heap = Heap::at(capacity, 3, 2, last.wrapping_sub(random.below(3)), random.below(capacity));
        let mut handles: Vec<(Handle<'_>, Held)> = vec![(heap.handle(0), Held::default())];
        let mut queue = VecDeque::new();
        let mut orphans: Vec<(u64, u8)> = Vec::new();
        let mut next_member = 1;
        for value in 0..if cfg!(miri) { 60 } else { 200 } {
            let chosen = random.below(handles.len() as u64) as usize;
            let (handle, held) = &mut handles[chosen];
            match random.below(12) {
                0..=3 => {
                    let loan = held.loans.pop().or_else(|| handle.hand());
                    let Some(mut hand) = loan else { continue };
                    heap.write(&mut hand, value);
                    let sent = handle.ring().send(&handle.lane, &mut hand, |_| ());
                    handle.ring().put_back(&handle.lane, hand);
                    assert_eq!(sent.is_ok(), (queue.len() as u64) < capacity, "{sent:?}");
                    sent.is_ok().then(|| queue.push_back(value));
                }
                4..=6 => {
                    let Some(mut hand) = handle.hand() else { continue };
                    match handle.ring().receive(&handle.lane, &mut hand, |_| ()) {
                        Ok(deliveries) => {
                            let value = handle.read(&hand);
                            if deliveries == 1 {
                                assert_eq!(Some(value), queue.pop_front());
                            } else {
                                let at = orphans.iter().position(|&orphan| orphan == (value, deliveries - 1));
                                orphans.remove(at.expect("an orphan that there is"));
                            }
                            held.messages.push((hand, value, deliveries));
                        }
                        Err(refusal) => {
                            assert_eq!((refusal, queue.len()), (Refusal::WouldBlock, 0));
                            handle.ring().put_back(&handle.lane, hand);
                        }
                    }
                }
                7 => {
                    let in_place = handle.ring().receive_in_place(&handle.lane);
                    let taken = in_place.or_else(|| handle.orphan());
                    if let Some((hand, deliveries)) = taken {
                        let value = handle.read(&hand);
                        let at = orphans.iter().position(|&orphan| orphan == (value, deliveries - 1));
                        orphans.remove(at.expect("an orphan that there is"));
                        held.messages.push((hand, value, deliveries));
                    }
                }
                8 | 9 if !held.messages.is_empty() => {
                    let at = random.below(held.messages.len() as u64) as usize;
                    let (hand, value, _) = held.messages.swap_remove(at);
                    assert_eq!(handle.read(&hand), value, "nobody has touched it");
                    handle.ring().release(&handle.lane, hand);
                }
                8..=10 => {
                    if let Some(hand) = held.loans.pop() {
                        handle.ring().put_back(&handle.lane, hand);
                    } else {
                        held.loans.extend(handle.hand());
                    }
                }
                // One leaves, dies, or comes.
                _ => {
                    if handles.len() == 3 || handles.len() > 1 && random.below(2) == 0 {
                        let (handle, held) = handles.swap_remove(chosen);
                        orphans
                            .extend(held.messages.iter().map(|&(_, value, deliveries)| (value, deliveries)));
                        if random.below(2) == 0 {
                            heap.kill(handle.live.number);
                            let live = handles[0].0.live;
                            assert_eq!(heap.ring().recover(&live), Recovery { lanes: 1, is_pending: false });
                        } else {
                            heap.ring().leave(&handle.live, handle.lane);
                        }
                    } else if next_member < 64 {
                        handles.push((heap.handle(next_member), Held::default()));
                        next_member += 1;
                    }
                }
            }
            heap.audit();
            let (handle, _) = &handles[0];
            assert_eq!(handle.len(), queue.len());
            let done = queue.is_empty() && orphans.is_empty();
            let held = handles.iter().any(|(_, held)| !held.messages.is_empty());
            assert_eq!(handle.ring().is_finished(&handle.lane), done && !held);
        }
    }
}

/// Four threads: nothing is lost or doubled, and what one sent is received in its order.
#[test]
fn threads_lose_nothing() {
    let count = if cfg!(miri) { 30 } else { 20_000 };
    for capacity in CAPACITIES {
        let heap = Heap::new(capacity, 4, 1);
        let all: Vec<Vec<u64>> = std::thread::scope(|scope| {
            for sender in 0..2_u64 {
                let heap = &heap;
                scope.spawn(move || {
                    let handle = heap.handle(sender as u16);
                    for number in 0..count {
                        while handle.send(number << 1 | sender).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let receivers = [2, 3].map(|number| {
                let heap = &heap;
                scope.spawn(move || {
                    let handle = heap.handle(number);
                    let mut received = Vec::new();
                    while received.len() < count as usize {
                        match handle.recv() {
                            Ok(value) => received.push(value),
                            Err(_) => std::thread::yield_now(),
                        }
                    }
                    received
                })
            });
            receivers.into_iter().map(|receiver| receiver.join().expect("ends well")).collect()
        });
        for received in &all {
            for sender in 0..2 {
                let mine: Vec<_> = received.iter().filter(|&&value| value & 1 == sender).collect();
                assert!(mine.windows(2).all(|pair| pair[0] < pair[1]), "in order");
            }
        }
        let mut all = all.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..2 * count));
        heap.audit();
    }
}

// ---- Audit ----

#[test]
fn an_audit_finds_each_kind_of_damage() {
    let scribbled = |scribble: &dyn Fn(&Dead)| {
        let dead = Dead::new(true);
        dead.heap.audit();
        scribble(&dead);
        dead.heap.ring().audit().expect_err("it is damaged")
    };
    let found = [
        scribbled(&|dead| dead.heap.set_slot(1, 4, false, 7)),
        scribbled(&|dead| dead.hand(1, 0).store(5, Relaxed)),
        scribbled(&|dead| dead.hand(1, 0).store(1 << 20, Relaxed)),
        scribbled(&|dead| dead.heap.claims[1].store(LIVE, Relaxed)),
        scribbled(&|dead| {
            dead.heap.claims[1].store(0, Relaxed);
            dead.hand(1, 0).store(4 | MESSAGE, Relaxed);
        }),
        scribbled(&|dead| {
            dead.heap.claims[1].store(0, Relaxed);
            dead.intend(1, dead.first());
        }),
        scribbled(&|dead| dead.hand(1, 0).store(4 | ORPHAN, Relaxed)),
        scribbled(&|dead| dead.heap.set_slot(1, 6, false, 1)),
        scribbled(&|dead| dead.heap.set_slot(1, 2, false, 1)),
        scribbled(&|dead| {
            dead.heap.write_slot(0, dead.heap.slot(0) | CLOSED);
            dead.heap.write_slot(1, dead.heap.slot(1) | CLOSED);
        }),
    ];
    let kinds: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(kinds.len(), 8, "each is called by its name: {found:#?}");
    assert_eq!(KIND & ORPHAN, 2 << 32);
}

/// A lane that was scribbled over is recovered, one way or the other, and nothing is read outside.
#[test]
fn a_scribbled_record_is_borne() {
    let mut random = Random::seeded("scribbled records");
    for _ in 0..if cfg!(miri) { 20 } else { 2000 } {
        let dead = Dead::new(random.below(2) == 0);
        for _ in 0..1 + random.below(4) {
            let shift = random.below(64);
            dead.heap.record(1)[random.below(4) as usize].store(random.bits() >> shift, Relaxed);
        }
        let me = dead.heap.handle(1);
        let recovery = me.ring().recover(&me.live);
        assert!(recovery.lanes == 1 || recovery.is_pending);
        for value in 0..4 {
            let _ = (me.send(value), me.recv());
        }
        if let Some((hand, _)) = me.orphan() {
            assert!((hand.cell() as usize) < dead.heap.shape.cells());
            assert_eq!(dead.heap.cell_of(u64::from(hand.cell())), u64::from(hand.cell()));
        }
    }
}
