//! A ring of blocks between one producer and one consumer.
//!
//! A *block* is a tag and n elements behind it; the first elements share the tag's cache line. Blocks are numbered 0, 1, 2, ..; block
//! number k lies in place k modulo the number of places. A *cursor* is a place in that sequence, one word:
//!
//! ```text
//!  cursor = (number of the block + 1) << 8 | elements of it, 0 ..= n <= 255
//! ```
//!
//! The tag of a block is the cursor behind its last element; a place that was never used has 0, one that was used a lap ago the
//! tag of that lap, full. So the consumer knows from one word, in the line that it needs anyway, how much of its block is there.
//!
//! ```text
//!    0  producer   u64  who has the role (below)
//!    8  consumer   u64
//!  128  state      u32  CLOSED_BY_PRODUCER | CLOSED_BY_CONSUMER | FENCES
//!  136  not_empty       event count: a consumer that waits
//!  256  taken      u64  cursor: the consumer has taken all before it; 0: none yet
//!  264  seen       u64  cursor: elements before it were shown in place
//!  384  finished   u64  so many blocks are given back to the producer
//!  392  not_full        event count: a producer that waits
//!  512  reached    u64  number of the block that the producer fills
//!       tags       u64  one for each place, with the elements behind it
//! ```
//!
//! | word | who may write it |
//! |---|---|
//! | `producer`, `consumer` | everybody, by compare-and-swap as below |
//! | `state` | everybody sets bits; none is ever cleared |
//! | tags, elements, `reached` | who has the producer's role |
//! | `taken`, `seen`, `finished` | who has the consumer's role |
//! | event counts | everybody |
//!
//! Role word: 0 never had | OWNER has it | OFFERED + OWNER: has sent it away, and nobody has it | LEFT: was given back. It becomes
//! OWNER from 0, LEFT, an owner (or an offerer) *proven dead*, and from OFFERED for whom it was sent to; OFFERED and LEFT by its owner.
//!
//! Push: write the element, then the tag, one higher. A full block is left behind if the next place is free: its block of the last lap
//! must be among the `finished` ones. Pop: copy the element, then store `taken`. The consumer re-reads the tag of its block when it has
//! used up what it knew; it writes `finished` every eighth of the ring, or when it finds nothing. Both cursors are private,
//! and nobody reads `taken`, `seen` and `reached` but successors (and who asks how many elements there are).
//!
//! What a death leaves behind, and who repairs:
//!
//! | killed | left | the next in the role |
//! |---|---|---|
//! | producer, before it stored the tag | elements that nobody sees | finds the tag's count, and overwrites them |
//! | producer, after that | the element is there; perhaps a consumer asleep | its death wakes the consumer |
//! | producer, between `reached` and the first tag of a block | a tag of the last lap | takes the block for empty, which it is |
//! | consumer, before it stored `taken` | the element | takes it again: the first time it was given to nobody |
//! | consumer, after that | its copy is gone with it | goes on behind it |
//! | consumer, while it looks at elements in place | `seen` beyond `taken` | gets them again, and knows how many ([`BlockConsumer::redelivered`]) |
//! | consumer, before it stored `finished` | blocks that are not given back | stores a later one |
//! | either, in taking the role | its name | takes it over |
//!
//! So a successor needs no more than `reached` and a tag, or `taken` and `finished`; nothing is done for it by others. A *stopped*
//! producer or consumer holds up the other one when that one has nothing left to do.
//!
//! How much fits: the consumer keeps at most `lag` finished blocks to itself, so a push finds no room only if at least
//! (places - lag) * n elements are in the ring: that is its capacity. Up to places * n may be.
//!
//! Memory ordering. (1) A tag is stored with Release and loaded with Acquire: who sees the count sees the elements. (2) So is
//! `finished`: the producer overwrites an element only after the consumer's reading of it. (3) So is `state`: a consumer that sees that the
//! queue was closed sees all that was pushed before, when it looks once more. (4) A role passes on by Release and Acquire, or by the
//! proof of a death: hence `taken`, `seen` and `reached` are Relaxed. (5) Sleeping: who publishes passes a full fence between its store and
//! its look at the event count; who sleeps, one between its announcement and its look at the ring. At each push that would cost more
//! than all the rest, so a producer whose process has registered for it passes a light fence, and the consumer makes it a
//! full one before it sleeps ([`BlockRing::before_sleeping`]). A consumer that can not do that sets FENCES.
//! (Should the producer miss this bit at first, the consumer sleeps until the end of its slice, once.)
//!
//! Whatever stands in shared memory, places and counts are compared with private ones before they are used.
//!
//! Sources: the flag beside the data is FastForward's (J. Giacomoni et al., PPoPP 2008), batches of them B-Queue's (J. Wang et al.,
//! IJPP 2013).

use crossproc_atomic::{
    AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, Platform, fence, light_fence, pause,
    shared_struct,
};

/// Words that keep apart what the two sides write: pairs of cache lines. (In the model there are no lines.)
const fn apart(words: usize) -> usize {
    if cfg!(crossproc_model) { 0 } else { 16 - words }
}

shared_struct! {
    /// The words of one ring beside its blocks; see the map at the top of the file. All zero: empty, nobody has a role.
    pub struct BlockWords: 640 {
        producer: AtomicU64,
        consumer: AtomicU64,
        unused_0: [AtomicU64; apart(2)],
        state: AtomicU32,
        unused_1: AtomicU32,
        /// A consumer that waits sleeps here.
        pub not_empty: EventCount,
        unused_2: [AtomicU64; apart(2)],
        taken: AtomicU64,
        seen: AtomicU64,
        unused_3: [AtomicU64; apart(2)],
        finished: AtomicU64,
        /// A producer that waits sleeps here.
        pub not_full: EventCount,
        unused_4: [AtomicU64; apart(2)],
        reached: AtomicU64,
        unused_5: [AtomicU64; apart(1)],
    }
}

const CLOSED_BY_PRODUCER: u32 = 1;
const CLOSED_BY_CONSUMER: u32 = 2;
const CLOSED: u32 = CLOSED_BY_PRODUCER | CLOSED_BY_CONSUMER;
/// There is a consumer that can not make light fences full ones.
const FENCES: u32 = 4;

const OFFERED: u64 = 1 << 62;
const LEFT: u64 = 1 << 63;

/// Pauses during which a consumer that follows too closely does not look, at the most; in a small ring fewer, so that the producer does
/// not run out of room meanwhile. And what that must bring. (benches/RESULTS.md)
const HELD_BACK: u64 = if cfg!(crossproc_model) { 0 } else { 48 };
const PAYS: u64 = 4;
/// After so many looks it tries whether that pays.
const LOOKS: u32 = 256;

/// Somebody else may change a role word between two looks at it; not for ever.
const TRIES_MAX: usize = 16;

/// The cursor before the first element of a block.
#[inline]
const fn start_of(number: u64) -> u64 {
    number.wrapping_add(1) << 8
}

/// The block that a cursor is in.
#[inline]
const fn number_of(cursor: u64) -> u64 {
    (cursor >> 8).wrapping_sub(1)
}

/// Elements of its block before a cursor.
#[inline]
const fn index_of(cursor: u64) -> u64 {
    cursor & 0xff
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Pushes.
    Producer,
    /// Pops.
    Consumer,
}

impl Role {
    /// Who waits for it, or is waited for by it.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Producer => Self::Consumer,
            Self::Consumer => Self::Producer,
        }
    }
}

/// Somebody has the role, and is not proven dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleTaken {
    /// Who; `None` if the word is no identity: somebody scribbled over it.
    pub by: Option<Owner>,
}

/// The words contradict each other: somebody scribbled over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedBlocks;

/// How a ring is laid out. Both sides compute it from what was asked for; nothing of it is read from shared memory later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    places: u64,
    per_block: u64,
    stride: usize,
    lag: u64,
}

impl BlockShape {
    /// A ring for `capacity` elements in blocks of at most `per_block_max` elements, tags `stride` words apart. `None` if that can
    /// not be: nothing of it may be 0, a block has at most 255 elements, and there are at most 2^40 of all.
    #[must_use]
    pub fn new(capacity: u64, per_block_max: u64, stride: usize) -> Option<Self> {
        if capacity == 0 || capacity > 1 << 40 || !(1..=255).contains(&per_block_max) || stride == 0 {
            return None;
        }
        // Of a small ring in large blocks the consumer would hardly ever give one back.
        let per_block = per_block_max.min(capacity.div_ceil(2));
        let needed = capacity.div_ceil(per_block);
        let lag = (needed / 8).max(1);
        let places = needed + lag;
        usize::try_from(places).ok()?.checked_mul(stride)?;
        Some(Self { places, per_block, stride, lag })
    }

    /// How many blocks there are.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places as usize
    }

    /// How many elements a block has.
    #[must_use]
    pub fn per_block(&self) -> usize {
        self.per_block as usize
    }

    /// So many elements fit for certain.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        (self.places - self.lag) * self.per_block
    }

    /// So many elements are in the ring at the most.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.places * self.per_block
    }

    /// Where the tag of this block is among the words.
    fn tag_of(&self, number: u64) -> usize {
        (number % self.places) as usize * self.stride
    }

    #[inline]
    fn tag_after(&self, at: usize) -> usize {
        let next = at + self.stride;
        if next == self.places() * self.stride { 0 } else { next }
    }

    /// The tag that a place has before block `number` gets its first element.
    fn tag_before(&self, number: u64) -> u64 {
        number.checked_sub(self.places).map_or(0, |last_lap| start_of(last_lap) + self.per_block)
    }
}

/// Elements beside each other in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the tag of their block is, among the words of all blocks.
    pub block: usize,
    /// Which element of it is the first.
    pub index: usize,
    /// How many; `index + len` is at most [`BlockShape::per_block`].
    pub len: usize,
}

/// A ring's words, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct BlockRing<'a> {
    words: &'a BlockWords,
    tags: &'a [AtomicU64],
    shape: BlockShape,
}

/// The producer's side; to be used with one ring, by who has the role.
#[derive(Debug)]
pub struct BlockProducer {
    block: usize,
    /// What the tag is, or will have been, before the next element.
    tag: u64,
    /// The tag when the block is full.
    full: u64,
    /// Blocks before this number may be filled.
    limit: u64,
}

/// The consumer's side; to be used with one ring, by who has the role.
#[derive(Debug)]
pub struct BlockConsumer {
    block: usize,
    cursor: u64,
    /// Elements before this are there.
    known: u64,
    /// What `finished` is.
    finished: u64,
    /// Elements before this were shown to a predecessor.
    seen_before: u64,
    /// Looks that found something since the last one that waited for a moment, and after how many it waits again.
    looks: u32,
    patience: u32,
}

impl<'a> BlockRing<'a> {
    /// Borrows a ring: its words, and its blocks as words, the tag first in each. If the blocks are too few for the shape, its methods
    /// panic.
    #[inline]
    #[must_use]
    pub fn new(words: &'a BlockWords, blocks: &'a [AtomicU64], shape: BlockShape) -> Self {
        Self { words, tags: blocks, shape }
    }

    /// How it is laid out.
    #[inline]
    #[must_use]
    pub fn shape(&self) -> &BlockShape {
        &self.shape
    }

    /// What a consumer that finds nothing sleeps on.
    #[inline]
    #[must_use]
    pub fn not_empty(&self) -> &'a EventCount {
        &self.words.not_empty
    }

    /// What a producer that finds no room sleeps on.
    #[inline]
    #[must_use]
    pub fn not_full(&self) -> &'a EventCount {
        &self.words.not_full
    }

    // ---- Roles

    fn role(&self, role: Role) -> &'a AtomicU64 {
        match role {
            Role::Producer => &self.words.producer,
            Role::Consumer => &self.words.consumer,
        }
    }

    /// Takes a role: one that nobody has, or that somebody had who is proven dead; also one that was sent away, if the caller is
    /// whom it was `sent` to.
    ///
    /// # Errors
    ///
    /// [`RoleTaken`].
    pub fn claim(&self, role: Role, live: &impl Liveness, sent: bool) -> Result<(), RoleTaken> {
        let word = self.role(role);
        let mut seen = word.load(Ordering::Relaxed);
        for _ in 0..TRIES_MAX {
            let owner = Owner::from_bits(seen & !OFFERED);
            let is_free = match owner {
                _ if seen == 0 || seen == LEFT => true,
                Some(_) if sent && seen & OFFERED != 0 => true,
                Some(owner) => live.is_dead(owner),
                None => false,
            };
            if !is_free {
                return Err(RoleTaken { by: owner });
            }
            // mutant: AcqRel -> Acquire equivalent, because nobody acquires from a claim: what is passed on is released in parting
            match word.compare_exchange(seen, live.me().bits(), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
        Err(RoleTaken { by: Owner::from_bits(seen & !OFFERED) })
    }

    /// Lets whoever it is sent to have the role. False if the caller does not have it.
    pub fn offer(&self, role: Role, live: &impl Liveness) -> bool {
        let me = live.me().bits();
        self.role(role).compare_exchange(me, me | OFFERED, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Takes an offered role back, if nobody has taken it yet.
    pub fn take_back(&self, role: Role, live: &impl Liveness) -> bool {
        let me = live.me().bits();
        self.role(role).compare_exchange(me | OFFERED, me, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Gives a role back, offered or not: the next to claim it has it. Does nothing if the caller has it no more.
    pub fn give_back(&self, role: Role, live: &impl Liveness) {
        let me = live.me().bits();
        let leave =
            |from| self.role(role).compare_exchange(from, LEFT, Ordering::Release, Ordering::Relaxed).is_ok();
        if leave(me) || leave(me | OFFERED) {
            self.wake(role.other(), live);
        }
    }

    /// Who has a role, or has sent it away, and was not found dead yet.
    #[must_use]
    pub fn holder(&self, role: Role) -> Option<Owner> {
        Owner::from_bits(self.role(role).load(Ordering::Relaxed) & !OFFERED)
    }

    /// True if the one who has this role is gone, and nobody can come in its place: all others are gone. One who gave it back is
    /// enough if `nobody_else` is there.
    pub fn is_abandoned(&self, role: Role, live: &impl Liveness, nobody_else: impl FnOnce() -> bool) -> bool {
        // Who finds that the other one has left, finds all that it left behind.
        let seen = self.role(role).load(Ordering::Acquire);
        if seen == LEFT {
            return live.is_alone() || nobody_else();
        }
        Owner::from_bits(seen & !OFFERED).is_some_and(|owner| live.is_gone(owner)) && live.is_alone()
    }

    // ---- Closing, sleeping

    /// Closes the queue for good: nothing more is pushed, and what is there can be popped.
    pub fn close(&self, role: Role, platform: &impl Platform) {
        let by = match role {
            Role::Producer => CLOSED_BY_PRODUCER,
            Role::Consumer => CLOSED_BY_CONSUMER,
        };
        self.words.state.fetch_or(by, Ordering::Release);
        self.wake(Role::Producer, platform);
        self.wake(Role::Consumer, platform);
    }

    /// True if either side has closed it. What was pushed before is to be found by a look at the ring after this.
    #[inline]
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.words.state.load(Ordering::Acquire) & CLOSED != 0
    }

    /// After a read-modify-write.
    fn wake(&self, role: Role, platform: &impl Platform) {
        match role {
            Role::Producer => self.words.not_full.notify_after_rmw(platform),
            Role::Consumer => self.words.not_empty.notify_after_rmw(platform),
        }
    }

    /// To be called by a consumer that has announced that it may sleep, before its last look. `heavy_fence`: makes light fences full
    /// ones, or says that it can not.
    pub fn before_sleeping(&self, heavy_fence: impl FnOnce() -> bool) {
        if !heavy_fence() {
            self.words.state.fetch_or(FENCES, Ordering::Relaxed);
        }
    }

    /// To be called after commits: wakes the consumer if it sleeps. `light`: this process has registered for heavy fences.
    #[inline(always)]
    pub fn committed(&self, platform: &impl Platform, light: bool) {
        if light && self.words.state.load(Ordering::Relaxed) & FENCES == 0 {
            light_fence(); // mutant: remove
        } else {
            fence(Ordering::SeqCst);
        }
        self.words.not_empty.notify_after_fence(platform);
    }

    // ---- Looking

    /// How many elements were there a moment ago.
    #[must_use]
    pub fn len(&self) -> u64 {
        let reached = self.words.reached.load(Ordering::Relaxed);
        let tag = self.tags[self.shape.tag_of(reached)].load(Ordering::Relaxed);
        let there = match tag.wrapping_sub(start_of(reached)) {
            count if count <= self.shape.per_block => count,
            _ => 0,
        };
        let taken = self.words.taken.load(Ordering::Relaxed).max(start_of(0));
        let ahead = reached.wrapping_sub(number_of(taken)).wrapping_mul(self.shape.per_block);
        let len = ahead.wrapping_add(there).wrapping_sub(index_of(taken));
        // The two sides were read at different moments.
        if len > 1 << 60 { 0 } else { len.min(self.shape.elements()) }
    }

    /// True if there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if there was no room for another element a moment ago.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let finished = self.words.finished.load(Ordering::Relaxed);
        let reached = self.words.reached.load(Ordering::Relaxed);
        let tag = self.tags[self.shape.tag_of(reached)].load(Ordering::Relaxed);
        let is_last = reached.wrapping_add(1).wrapping_sub(finished) >= self.shape.places;
        is_last && tag == start_of(reached) + self.shape.per_block
    }

    /// Looks for words that contradict each other. Exact while nobody uses the ring.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), &'static str> {
        let holds = |is_so: bool, text| if is_so { Ok(()) } else { Err(text) };
        for role in [Role::Producer, Role::Consumer] {
            let word = self.role(role).load(Ordering::Relaxed);
            let is_known = word == 0 || word == LEFT || Owner::from_bits(word & !OFFERED).is_some();
            holds(is_known, "a role belongs to nobody that could be")?;
        }
        let shape = &self.shape;
        let reached = self.words.reached.load(Ordering::Relaxed);
        let finished = self.words.finished.load(Ordering::Relaxed);
        let filled = reached.wrapping_add(1).wrapping_sub(finished);
        holds(filled <= shape.places, "the producer is in a block that was not given back")?;
        let taken = self.words.taken.load(Ordering::Relaxed).max(start_of(0));
        let (number, index) = (number_of(taken), index_of(taken));
        holds(index <= shape.per_block, "the consumer has taken more than a block has")?;
        holds(
            finished <= number.saturating_add(1),
            "blocks are given back that the consumer has not used up",
        )?;
        for number in (0..filled).map(|n| finished.wrapping_add(n)) {
            let tag = self.tags[shape.tag_of(number)].load(Ordering::Relaxed);
            let full = start_of(number) + shape.per_block;
            if number == reached {
                let is_its_own = (start_of(number)..=full).contains(&tag) || tag == shape.tag_before(number);
                holds(is_its_own, "the tag of the last block is that of another one")?;
                let last = tag.max(start_of(number));
                holds(
                    taken <= last || taken == start_of(reached.wrapping_add(1)),
                    "more was taken than was pushed",
                )?;
            } else {
                holds(tag == full, "a block that the producer has left is not full")?;
            }
        }
        Ok(())
    }

    // ---- The two sides

    /// The producer's side where the last producer left it. For who has just claimed the role.
    ///
    /// # Errors
    ///
    /// [`DamagedBlocks`].
    pub fn producer(&self) -> Result<BlockProducer, DamagedBlocks> {
        let shape = &self.shape;
        let number = self.words.reached.load(Ordering::Relaxed);
        let block = shape.tag_of(number);
        let (start, full) = (start_of(number), start_of(number) + shape.per_block);
        // mutant: Acquire -> Relaxed equivalent, because the role was acquired, or its last holder's death proven
        let tag = match self.tags[block].load(Ordering::Acquire) {
            tag if (start..=full).contains(&tag) => tag,
            tag if tag == shape.tag_before(number) => start,
            _ => return Err(DamagedBlocks),
        };
        let mut producer = BlockProducer { block, tag, full, limit: 0 };
        producer.look(*self).then_some(producer).ok_or(DamagedBlocks)
    }

    /// The consumer's side where the last consumer left it. For who has just claimed the role.
    ///
    /// # Errors
    ///
    /// [`DamagedBlocks`].
    pub fn consumer(&self) -> Result<BlockConsumer, DamagedBlocks> {
        let shape = &self.shape;
        let mut cursor = self.words.taken.load(Ordering::Relaxed).max(start_of(0));
        if index_of(cursor) > shape.per_block {
            return Err(DamagedBlocks);
        }
        if index_of(cursor) == shape.per_block {
            cursor = start_of(number_of(cursor).wrapping_add(1));
        }
        let number = number_of(cursor);
        let finished = self.words.finished.load(Ordering::Relaxed);
        if number.wrapping_sub(finished) > shape.places {
            return Err(DamagedBlocks);
        }
        // A look at elements in place does not reach beyond a block.
        let seen = self.words.seen.load(Ordering::Relaxed);
        let was_seen = number_of(seen) == number && index_of(seen) <= shape.per_block && seen > cursor;
        let seen_before = if was_seen { seen } else { cursor };
        Ok(BlockConsumer {
            block: shape.tag_of(number),
            cursor,
            known: cursor,
            finished,
            seen_before,
            patience: LOOKS,
            looks: 0,
        })
    }
}

impl BlockProducer {
    /// Where the next elements go; `None` if there is no room. Write them, then [`commit`](Self::commit).
    #[inline(always)]
    pub fn room(&mut self, ring: BlockRing<'_>) -> Option<Run> {
        if self.tag == self.full && !self.enter_next(ring) {
            return None;
        }
        let len = (self.full - self.tag) as usize;
        Some(Run { block: self.block, index: index_of(self.tag) as usize, len })
    }

    /// Publishes the next `n` elements of the run. [`BlockRing::committed`] is to follow, for several commits once.
    ///
    /// # Panics
    ///
    /// If there is not that much room in the block.
    #[inline(always)]
    pub fn commit(&mut self, ring: BlockRing<'_>, n: usize) {
        let tag = self.tag + n as u64;
        assert!(tag <= self.full, "no more is committed than there was room for");
        if n > 0 {
            self.tag = tag;
            ring.tags[self.block].store(tag, Ordering::Release);
        }
    }

    /// How many elements fit now, at least up to `wanted` exactly.
    pub fn room_for(&mut self, ring: BlockRing<'_>, wanted: u64) -> u64 {
        if self.free(ring) < wanted {
            self.look(ring);
        }
        self.free(ring)
    }

    fn free(&self, ring: BlockRing<'_>) -> u64 {
        let blocks = self.limit.wrapping_sub(number_of(self.tag).wrapping_add(1));
        (self.full - self.tag) + blocks * ring.shape.per_block
    }

    /// Leaves a full block, if the next place is free.
    #[inline(never)]
    fn enter_next(&mut self, ring: BlockRing<'_>) -> bool {
        let number = number_of(self.full).wrapping_add(1);
        if number == self.limit {
            self.look(ring);
            if number == self.limit {
                return false;
            }
        }
        self.block = ring.shape.tag_after(self.block);
        self.tag = start_of(number);
        self.full = self.tag + ring.shape.per_block;
        // Before the first tag of the block: a successor looks at no block behind this one.
        ring.words.reached.store(number, Ordering::Relaxed);
        true
    }

    /// Reads how many blocks were given back. False, and nothing changes, if that can not be.
    fn look(&mut self, ring: BlockRing<'_>) -> bool {
        let finished = ring.words.finished.load(Ordering::Acquire);
        let filled = number_of(self.full).wrapping_add(1).wrapping_sub(finished);
        let can_be = filled <= ring.shape.places;
        if can_be {
            self.limit = finished.wrapping_add(ring.shape.places);
        }
        can_be
    }
}

impl BlockConsumer {
    /// Where the next elements are; `None` if there are none. Read them, then [`take`](Self::take).
    #[inline(always)]
    pub fn ready(&mut self, ring: BlockRing<'_>, platform: &impl Platform) -> Option<Run> {
        if self.cursor == self.known && !self.look(ring, platform) {
            return None;
        }
        let len = (self.known - self.cursor) as usize;
        Some(Run { block: self.block, index: index_of(self.cursor) as usize, len })
    }

    /// Takes the next `n` elements of the run.
    ///
    /// # Panics
    ///
    /// If there are not that many in the block.
    #[inline(always)]
    pub fn take(&mut self, ring: BlockRing<'_>, n: usize) {
        self.cursor += n as u64;
        assert!(self.cursor <= self.known, "no more is taken than there is");
        ring.words.taken.store(self.cursor, Ordering::Relaxed);
    }

    /// Notes that the next `n` elements are being looked at in place: should this process die before it takes them, a successor knows.
    pub fn show(&mut self, ring: BlockRing<'_>, n: usize) {
        ring.words.seen.store((self.cursor + n as u64).min(self.known), Ordering::Relaxed);
    }

    /// How many of the next elements were shown to a predecessor, which did not take them.
    #[inline]
    #[must_use]
    pub fn redelivered(&self) -> usize {
        self.seen_before.saturating_sub(self.cursor) as usize
    }

    /// Where the next element is, or will be.
    #[inline]
    #[must_use]
    pub fn next(&self) -> Run {
        Run { block: self.block, index: index_of(self.cursor) as usize, len: 0 }
    }

    /// Looks for more than is known.
    ///
    /// A consumer that follows on the producer's heels takes the line from it at each element, and both go at the pace of that. So
    /// it waits for a moment before it looks at a block of which it has seen a part: now and then, to see what that brings, and
    /// always while it brings several elements.
    #[inline(always)]
    fn look(&mut self, ring: BlockRing<'_>, platform: &impl Platform) -> bool {
        let mut held_back = false;
        if index_of(self.cursor) == ring.shape.per_block {
            self.enter_next(ring, platform);
        } else if self.looks >= self.patience {
            (0..HELD_BACK).take_while(|&n| n < ring.shape.elements() / 8).for_each(|_| pause());
            held_back = true;
            self.looks = 0;
        }
        let before = index_of(self.cursor);
        let tag = ring.tags[self.block].load(Ordering::Acquire);
        let count = tag.wrapping_sub(self.cursor & !0xff);
        // A tag of the last lap is far away.
        let found = count <= ring.shape.per_block && count > before;
        if found {
            self.known = tag;
            self.looks += 1;
        } else {
            self.give_back(ring, platform, 1);
        }
        if held_back {
            let pays = found && (count - before >= PAYS || count == ring.shape.per_block);
            self.patience = if pays { 1 } else { LOOKS };
        }
        found
    }

    #[inline(never)]
    fn enter_next(&mut self, ring: BlockRing<'_>, platform: &impl Platform) {
        self.cursor = start_of(number_of(self.cursor).wrapping_add(1));
        self.known = self.cursor;
        self.block = ring.shape.tag_after(self.block);
        self.give_back(ring, platform, ring.shape.lag);
    }

    /// Gives finished blocks back, if there are at least so many.
    #[inline(always)]
    fn give_back(&mut self, ring: BlockRing<'_>, platform: &impl Platform, least: u64) {
        let finished = number_of(self.cursor);
        if finished.wrapping_sub(self.finished) >= least {
            self.finished = finished;
            ring.words.finished.store(finished, Ordering::Release);
            ring.words.not_full.notify_after_store(platform);
        }
    }
}
