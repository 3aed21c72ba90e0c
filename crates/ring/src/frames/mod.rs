//! A ring of bytes that carries frames: one direction of a pipe, for any number of writers and readers.
//!
//! Positions count the bytes that were ever written; position p lies at p modulo the size of the ring, a power of two. What is written are
//! *chunks*: a header word, and bytes behind it up to the next multiple of 8. The header is `length << 8 | tag << 4 | kind`:
//!
//! ```text
//!  WHOLE  a frame; its bytes lie beside each other
//!  SKIP   nothing: the rest of the ring, where a frame would not have lain in one piece
//!  BEGIN  a frame of this length follows in parts; no bytes
//!  PART   some of its bytes, perhaps round the end of the ring
//!  LAST   the last of them
//!  ABORT  no more of it comes: its writer has died or given up; no bytes
//! ```
//!
//! A frame that takes at most half of the ring is WHOLE; longer ones come in parts, so they may be longer than the ring.
//!
//! ```text
//!    0  tail      u64  position behind the last chunk
//!  128  head      u64  position of the first chunk that is not taken
//!  256  writing   u64  whose turn it is to write: OWNER | 0
//!  264  pending   u64  0 | p + 1: a frame in parts begins at p | p + 2: and what ends it stands at p
//!  272  wanted    u32  somebody waits for that turn
//!  384  reading   u64  whose turn it is to read
//!  392  wanted    u32  somebody waits for that turn
//!  512  state     u32  FENCES
//!  516  came      u32  how often somebody took hold of the writers' end
//!  520  came      u32  the same of the readers'
//!  528  readable       event count: readers that wait
//!  536  writable       event count: writers that wait
//!       data
//!       cells     u64  two for each participant: who holds which end (`holders.rs`)
//! ```
//!
//! | word | who may write it |
//! |---|---|
//! | `writing`, `reading` | everybody, by compare-and-swap from 0 or from an owner *proven dead*; its owner: 0 |
//! | `tail`, `pending`, data from `tail` on | whose turn it is to write |
//! | `head` | whose turn it is to read |
//! | `wanted`, `state`, event counts | everybody |
//!
//! A turn belongs to a handle of a participant, and not to a thread as a lock does: a frame that comes in parts may have to wait in the
//! middle, for a reader whose deadline passed and who comes back for the rest, or in a future that another thread goes on with. In
//! between it is nobody else's.
//!
//! Write: take the turn; write header and bytes; store `tail`; give the turn back. So a chunk is there or it is not, and what other
//! writers write stands behind it. Read: take the turn; copy the bytes; store `head`; give the turn back.
//! Chunks say what they are, so a reader knows from the first one whether it is in step: PART, LAST and ABORT where no frame has
//! begun are the rest of one whose reader is gone, and are passed over.
//!
//! Of the ring a word stays free while a frame in parts is under way: that it ends can always be written.
//!
//! What a death leaves behind, and who repairs:
//!
//! | killed | left | who goes on |
//! |---|---|---|
//! | writer, before it stored `tail` | the turn; bytes that nobody sees | the next writer takes the turn, and overwrites them |
//! | writer, after that | the turn; perhaps a reader asleep | its death wakes the reader |
//! | writer, in a frame in parts | the turn; `pending` = p + 1, `tail` behind p | the next writer, or the reader that has come so far, writes ABORT |
//! | writer, before BEGIN was there | the turn; `pending` = p + 1, `tail` = p | the same: clears `pending` |
//! | writer, as it ended such a frame | the turn; `pending` = p + 2; `tail` = p: not ended, behind p: ended | the same: writes ABORT at p, or clears `pending` |
//! | who does that in its place | the same as what it found, or done | the next: it is told by the same words |
//! | reader, before it stored `head` | the turn; the frame | the next reader gets it: the first time it was given to nobody |
//! | reader, after that | the turn; its copy is gone with it | the next reader goes on behind it |
//! | reader, in a frame in parts | the turn; the rest of the frame | the next reader passes over it: that frame is lost, no other |
//! | either, waiting | nothing | nobody need |
//! | with a hold of an end | its cell says so | who looks for the other side: [`Presence::Died`] |
//!
//! So a writer that is killed loses the frame that it was writing, and a reader at most the one that it was reading.
//! A *stopped* writer or reader in its turn holds up its own side, and the other one when that has nothing left to do.
//!
//! Memory ordering. (1) `tail` is stored with Release and loaded with Acquire: who sees it sees the bytes before it. (2) So is `head`: bytes
//! are overwritten only after they were read. (3) A turn passes by Release and Acquire, or by the proof of a death: hence the
//! owner's own words are Relaxed. (4) Sleeping: who stores `tail`, `head` or a turn passes a full fence before it looks whether
//! anybody sleeps, and who sleeps passes one between its announcement and its last look. That would cost more than the rest, so a process
//! that has registered for it passes a light fence, and the sleeper makes it a full one ([`FrameRing::before_sleeping`]); a sleeper that can not do
//! that sets FENCES.
//!
//! Whatever stands in shared memory: positions are compared with the size of the ring, and lengths with positions, before they are used.

mod holders;

pub use holders::{Presence, TooManyHolds, Watch};

use crossproc_atomic::{
    AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, Platform, fence, light_fence, shared_struct,
};

/// Words that keep apart what the two sides write: pairs of cache lines. (In the model there are no lines.)
const fn apart(words: usize) -> usize {
    if cfg!(crossproc_model) { 0 } else { 16 - words }
}

shared_struct! {
    /// The words of one ring beside its data and its cells; see the map at the top of the file. All zero: empty, nobody has come.
    pub struct FrameWords: 640 {
        tail: AtomicU64,
        unused_0: [AtomicU64; apart(1)],
        head: AtomicU64,
        unused_1: [AtomicU64; apart(1)],
        writing: AtomicU64,
        pending: AtomicU64,
        write_wanted: AtomicU32,
        unused_2: AtomicU32,
        unused_3: [AtomicU64; apart(3)],
        reading: AtomicU64,
        read_wanted: AtomicU32,
        unused_4: AtomicU32,
        unused_5: [AtomicU64; apart(2)],
        state: AtomicU32,
        writers_came: AtomicU32,
        readers_came: AtomicU32,
        unused_6: AtomicU32,
        /// What readers sleep on.
        pub readable: EventCount,
        /// What writers sleep on.
        pub writable: EventCount,
        unused_7: [AtomicU64; apart(4)],
    }
}

/// There is somebody that can not make light fences full ones.
const FENCES: u32 = 1;

const WHOLE: u64 = 1;
const SKIP: u64 = 2;
const BEGIN: u64 = 3;
const PART: u64 = 4;
const LAST: u64 = 5;
const ABORT: u64 = 6;

/// In `pending`, beside a position.
const BEGUN: u64 = 1;
const ENDING: u64 = 2;
const STAGE: u64 = 3;

/// Bytes of a header.
const HEADER: u64 = 8;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Who writes frames.
    Writer,
    /// Who reads them.
    Reader,
}

impl End {
    /// Who waits for it, or is waited for by it.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Writer => Self::Reader,
            Self::Reader => Self::Writer,
        }
    }
}

/// Why a turn was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// Somebody else, who is not proven dead, has it.
    Taken,
    /// The words contradict each other: somebody scribbled over them.
    Damaged,
}

/// The words contradict each other: somebody scribbled over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedFrames;

/// How large a ring is. Both sides compute it from what was asked for; nothing of it is read from shared memory later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameShape {
    bytes: u64,
}

impl FrameShape {
    /// A ring of at least so many bytes; `None` for more than 2^40.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = bytes.max(64).checked_next_power_of_two()?;
        (bytes <= 1 << 40 && usize::try_from(bytes).is_ok()).then_some(Self { bytes })
    }

    /// Bytes of the ring.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Words of the ring.
    #[must_use]
    pub fn words(&self) -> usize {
        self.bytes() / 8
    }

    /// Longer frames go in parts.
    #[inline]
    #[must_use]
    pub fn whole_max(&self) -> usize {
        (self.bytes / 2 - HEADER) as usize
    }

    /// So much of a frame is written at a time, so that the reader has something to do meanwhile.
    fn part_max(&self) -> u64 {
        self.bytes / 4
    }

    #[inline]
    fn offset(&self, position: u64) -> u64 {
        position & (self.bytes - 1)
    }
}

/// Bytes of a ring. They may go on at its start, see [`Extent::pieces`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where they begin among all bytes of the ring.
    pub at: usize,
    /// How many.
    pub len: usize,
}

impl Extent {
    /// What of it lies before the end of the ring, and what at its start.
    #[inline]
    #[must_use]
    pub fn pieces(self, shape: FrameShape) -> [Self; 2] {
        let first = self.len.min(shape.bytes() - self.at);
        [Self { len: first, ..self }, Self { at: 0, len: self.len - first }]
    }
}

/// What a reader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// A frame, in one piece.
    Whole {
        /// Its bytes.
        at: Extent,
        /// What its writer said of it.
        tag: u8,
    },
    /// A frame begins that comes in parts.
    Begin {
        /// How long it is.
        len: u64,
        /// What its writer said of it.
        tag: u8,
    },
    /// Some of the frame that has begun.
    Part {
        /// Its bytes.
        at: Extent,
        /// Nothing of that frame comes behind it.
        last: bool,
    },
    /// The frame that has begun does not come to its end.
    Abort,
}

/// A ring's words, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct FrameRing<'a> {
    words: &'a FrameWords,
    data: &'a [AtomicU64],
    cells: &'a [AtomicU64],
    shape: FrameShape,
}

/// Bytes to the next header.
#[inline]
const fn padded(len: u64) -> u64 {
    (len + 7) & !7
}

impl<'a> FrameRing<'a> {
    /// Borrows a ring: its words, its data, and two cells for each participant. If the data is too short for the shape, its
    /// methods panic.
    #[inline]
    #[must_use]
    pub fn new(
        words: &'a FrameWords,
        data: &'a [AtomicU64],
        cells: &'a [AtomicU64],
        shape: FrameShape,
    ) -> Self {
        Self { words, data, cells, shape }
    }

    /// How large it is.
    #[inline]
    #[must_use]
    pub fn shape(&self) -> FrameShape {
        self.shape
    }

    /// What readers or writers sleep on who find nothing, no room, or that it is not their turn.
    #[inline]
    #[must_use]
    pub fn event(&self, end: End) -> &'a EventCount {
        match end {
            End::Writer => &self.words.writable,
            End::Reader => &self.words.readable,
        }
    }

    fn turn(&self, end: End) -> (&'a AtomicU64, &'a AtomicU32) {
        match end {
            End::Writer => (&self.words.writing, &self.words.write_wanted),
            End::Reader => (&self.words.reading, &self.words.read_wanted),
        }
    }

    #[inline]
    fn header(&self, position: u64) -> &'a AtomicU64 {
        &self.data[(self.shape.offset(position) / 8) as usize]
    }

    // ---- Turns

    /// True if the turn was that of a dead one.
    #[inline]
    fn take_turn(&self, end: End, live: &impl Liveness) -> Result<bool, NoTurn> {
        let (word, _) = self.turn(end);
        match word.compare_exchange(0, live.me().bits(), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(false),
            Err(seen) => self.take_over(end, seen, live),
        }
    }

    #[cold]
    fn take_over(&self, end: End, seen: u64, live: &impl Liveness) -> Result<bool, NoTurn> {
        let owner = Owner::from_bits(seen).ok_or(NoTurn::Damaged)?;
        if owner == live.me() || !live.is_gone(owner) {
            return Err(NoTurn::Taken);
        }
        let (word, _) = self.turn(end);
        // What the dead one did comes before its proof. Should another one have been faster: it lives.
        match word.compare_exchange(seen, live.me().bits(), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(true),
            Err(_) => Err(NoTurn::Taken),
        }
    }

    #[inline]
    fn pass_turn(&self, end: End) {
        self.turn(end).0.store(0, Ordering::Release);
    }

    /// True if whose turn it is has died. By a look at words alone while it lives.
    #[must_use]
    pub fn is_turn_of_dead(&self, end: End, live: &impl Liveness) -> bool {
        let seen = self.turn(end).0.load(Ordering::Acquire);
        seen != 0 && Owner::from_bits(seen).is_some_and(|owner| owner != live.me() && live.is_gone(owner))
    }

    /// True if nobody has the turn, or a dead one.
    #[must_use]
    pub fn is_turn_free(&self, end: End, live: &impl Liveness) -> bool {
        self.turn(end).0.load(Ordering::Acquire) == 0 || self.is_turn_of_dead(end, live)
    }

    /// Who has the turn, and was not found dead yet.
    #[must_use]
    pub fn turn_of(&self, end: End) -> Option<Owner> {
        Owner::from_bits(self.turn(end).0.load(Ordering::Relaxed))
    }

    // ---- Sleeping

    /// To be called by who has announced that it may sleep, before its last look. `turn`: what it waits for is that somebody gives the turn
    /// back. `heavy_fence`: passes a full fence and makes light fences of others full ones, or says that it can not.
    pub fn before_sleeping(&self, end: End, turn: bool, heavy_fence: impl FnOnce() -> bool) {
        if turn {
            self.turn(end).1.store(1, Ordering::Relaxed);
        }
        if !heavy_fence() {
            self.words.state.fetch_or(FENCES, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// To be called by one end after it has given its turn back, or stored a position: wakes who sleeps and can go on now.
    /// `light`: this process has registered for heavy fences.
    #[inline(always)]
    pub fn notify(&self, end: End, platform: &impl Platform, light: bool) {
        if light && self.words.state.load(Ordering::Relaxed) & FENCES == 0 {
            light_fence(); // mutant: remove
        } else {
            fence(Ordering::SeqCst);
        }
        self.event(end.other()).notify_after_fence(platform);
        if self.turn(end).1.load(Ordering::Relaxed) != 0 {
            self.notify_own(end, platform);
        }
    }

    #[cold]
    fn notify_own(&self, end: End, platform: &impl Platform) {
        // Before: who comes now and finds the turn taken says so anew.
        self.turn(end).1.store(0, Ordering::Relaxed);
        self.event(end).notify_after_store(platform);
    }

    /// Wakes everybody, after a change of who is there.
    pub fn notify_all(&self, platform: &impl Platform) {
        self.words.readable.notify_after_store(platform);
        self.words.writable.notify_after_store(platform);
    }

    // ---- Looking

    /// True if a handle of an end has something to do: for a reader, if there is a chunk; for a writer, if there is room for any frame that
    /// goes at once, or for a part if it has begun one. And if it is its turn, or can be. Changes nothing.
    ///
    /// `keeps`: the handle is in the middle of a frame. A turn says only whose process has it, which may have other handles.
    pub fn is_ready(&self, end: End, live: &impl Liveness, keeps: bool) -> bool {
        let mine = keeps && self.turn(end).0.load(Ordering::Acquire) == live.me().bits();
        if !mine && !self.is_turn_free(end, live) {
            return false;
        }
        let tail = self.words.tail.load(Ordering::Acquire);
        let used = tail.wrapping_sub(self.words.head.load(Ordering::Acquire));
        // In the middle of a frame whose writer has died a reader has something to do as well.
        let abandoned = || mine && self.is_turn_of_dead(End::Writer, live);
        match end {
            End::Reader => used > 0 || abandoned(),
            End::Writer => {
                let most = self.shape.whole_max() as u64;
                let at = self.shape.offset(tail.wrapping_add(HEADER));
                let skip = if at + most > self.shape.bytes { self.shape.bytes - at + HEADER } else { 0 };
                let part = 2 * HEADER + padded(self.shape.part_max() / 4);
                let needed = if mine { part } else { skip + HEADER + most };
                used > self.shape.bytes || self.shape.bytes - used >= needed
            }
        }
    }

    /// How many bytes were in the ring a moment ago, headers and all.
    #[must_use]
    pub fn len(&self) -> usize {
        let head = self.words.head.load(Ordering::Relaxed);
        let len = self.words.tail.load(Ordering::Relaxed).wrapping_sub(head);
        // The two were read at different moments.
        if len > 1 << 60 { 0 } else { len.min(self.shape.bytes) as usize }
    }

    /// True if there was nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks for words that contradict each other. Exact while nobody uses the ring.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), &'static str> {
        let holds = |is_so: bool, text| if is_so { Ok(()) } else { Err(text) };
        for end in [End::Writer, End::Reader] {
            let word = self.turn(end).0.load(Ordering::Relaxed);
            holds(word == 0 || Owner::from_bits(word).is_some(), "a turn is nobody's that could be")?;
        }
        let mut at = self.words.head.load(Ordering::Relaxed);
        let tail = self.words.tail.load(Ordering::Relaxed);
        holds(at % 8 == 0 && tail % 8 == 0, "a position lies in the middle of a word")?;
        holds(tail.wrapping_sub(at) <= self.shape.bytes, "there is more in the ring than it has room for")?;
        while at != tail {
            let chunk = RawChunk::at(*self, at, tail);
            at = at.wrapping_add(chunk.ok_or("a header contradicts the positions")?.bytes);
        }
        let pending = self.words.pending.load(Ordering::Relaxed);
        holds(pending & STAGE != STAGE && pending & 4 == 0, "what is under way is nothing that could be")
    }
}

/// A chunk as its header says, compared with the positions.
struct RawChunk {
    kind: u64,
    tag: u8,
    /// Of a frame's bytes.
    len: u64,
    /// Where those begin.
    at: u64,
    /// To the next header.
    bytes: u64,
}

impl RawChunk {
    /// The chunk at a position before `tail`.
    #[inline]
    fn at(ring: FrameRing<'_>, position: u64, tail: u64) -> Option<Self> {
        let header = ring.header(position).load(Ordering::Relaxed);
        let (kind, tag, len) = (header & 15, (header >> 4 & 15) as u8, header >> 8);
        let there = tail.wrapping_sub(position) - HEADER;
        let at = ring.shape.offset(position.wrapping_add(HEADER));
        let behind = match kind {
            BEGIN | ABORT => 0,
            WHOLE | SKIP | PART | LAST => padded(len),
            _ => return None,
        };
        let fits = behind <= there && (matches!(kind, PART | LAST) || at + behind <= ring.shape.bytes);
        fits.then_some(Self { kind, tag, len, at, bytes: HEADER + behind })
    }

    fn extent(&self) -> Extent {
        Extent { at: self.at as usize, len: self.len as usize }
    }
}

/// What one handle of the writers' end knows; to be used with one ring.
#[derive(Debug, Default)]
pub struct FrameWriter {
    has_turn: bool,
    tail: u64,
    /// `head` when it was last looked at: it may be further by now.
    head: u64,
    /// Bytes that are still to come of a frame in parts.
    left: Option<u64>,
}

impl FrameWriter {
    /// True from [`take_turn`](Self::take_turn) to [`pass_turn`](Self::pass_turn).
    #[inline]
    #[must_use]
    pub fn has_turn(&self) -> bool {
        self.has_turn
    }

    /// True if a frame has begun that is not at its end.
    #[must_use]
    pub fn is_in_frame(&self) -> bool {
        self.left.is_some()
    }

    /// In its turn: where the next chunk comes. Positions grow, so no frame after it begins there.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.tail
    }

    /// Takes the turn to write, if nobody who lives has it; if a dead one had it, ends its frame.
    ///
    /// # Errors
    ///
    /// See [`NoTurn`].
    #[inline]
    pub fn take_turn(&mut self, ring: FrameRing<'_>, live: &impl Liveness) -> Result<(), NoTurn> {
        if self.has_turn {
            return Ok(());
        }
        let was_dead = ring.take_turn(End::Writer, live)?;
        self.has_turn = true;
        self.tail = ring.words.tail.load(Ordering::Relaxed);
        let known = if was_dead { self.recover(ring) } else { true };
        // What this handle knows of `head` may be from long ago.
        if !known || self.tail % 8 != 0 || (self.free(ring).is_none() && !self.look(ring)) {
            self.pass_turn(ring);
            return Err(NoTurn::Damaged);
        }
        Ok(())
    }

    /// Gives the turn back. [`FrameRing::notify`] is to follow.
    ///
    /// # Panics
    ///
    /// In the middle of a frame.
    #[inline]
    pub fn pass_turn(&mut self, ring: FrameRing<'_>) {
        assert!(self.left.is_none(), "a frame that has begun comes to an end");
        self.has_turn = false;
        ring.pass_turn(End::Writer);
    }

    /// Ends the frame that a dead one left behind, if it did. False if the words can not be.
    #[cold]
    fn recover(&mut self, ring: FrameRing<'_>) -> bool {
        let pending = ring.words.pending.load(Ordering::Relaxed);
        let (at, stage) = (pending & !STAGE, pending & STAGE);
        let is_there = self.tail != at;
        let unfinished = match stage {
            0 => false,
            BEGUN => is_there,
            ENDING => !is_there,
            _ => return false,
        };
        if unfinished {
            self.end(ring, ABORT, 0);
        } else {
            ring.words.pending.store(0, Ordering::Relaxed);
        }
        true
    }

    /// Bytes that are free as far as is known; `None` if what is known is too old.
    #[inline]
    fn free(&self, ring: FrameRing<'_>) -> Option<u64> {
        ring.shape.bytes.checked_sub(self.tail.wrapping_sub(self.head))
    }

    /// Reads how far the readers are. False, and nothing changes, if that can not be.
    fn look(&mut self, ring: FrameRing<'_>) -> bool {
        let head = ring.words.head.load(Ordering::Acquire);
        let can_be = head % 8 == 0 && self.tail.wrapping_sub(head) <= ring.shape.bytes;
        if can_be {
            self.head = head;
        }
        can_be
    }

    /// True if so many bytes are free.
    #[inline]
    fn has_room(&mut self, ring: FrameRing<'_>, bytes: u64) -> bool {
        let enough = |it: &Self| it.free(ring).is_some_and(|free| free >= bytes);
        enough(self) || self.look(ring) && enough(self)
    }

    /// Where a frame of `len` bytes can be written now, in one piece; `None` if there is no room. To be followed by
    /// [`publish`](Self::publish), or by nothing.
    ///
    /// # Panics
    ///
    /// If it is not this one's turn, or `len` is above [`FrameShape::whole_max`].
    #[inline]
    pub fn room(&mut self, ring: FrameRing<'_>, len: usize) -> Option<Extent> {
        assert!(self.has_turn && self.left.is_none() && len <= ring.shape.whole_max(), "as documented");
        let skip = self.skip(ring, len as u64);
        let needed = skip + HEADER + padded(len as u64);
        let at = ring.shape.offset(self.tail.wrapping_add(skip + HEADER)) as usize;
        self.has_room(ring, needed).then_some(Extent { at, len })
    }

    /// Bytes up to where the header of such a frame stands: the rest of the ring, if it would not lie in one piece.
    #[inline]
    fn skip(&self, ring: FrameRing<'_>, len: u64) -> u64 {
        let at = ring.shape.offset(self.tail.wrapping_add(HEADER));
        if at + padded(len) > ring.shape.bytes { ring.shape.bytes - at + HEADER } else { 0 }
    }

    /// Publishes the frame that was written where [`room`](Self::room) said, or the first `len` bytes of it.
    ///
    /// # Panics
    ///
    /// If it is longer than that.
    #[inline]
    pub fn publish(&mut self, ring: FrameRing<'_>, room: Extent, len: usize, tag: u8) {
        assert!(self.has_turn && self.left.is_none() && len <= room.len, "as documented");
        let skip = self.skip(ring, room.len as u64);
        let needed = skip + HEADER + padded(room.len as u64);
        assert!(self.free(ring).is_some_and(|free| free >= needed), "there was room for it");
        if skip > 0 {
            self.write(ring, self.tail, SKIP, 0, skip - HEADER);
        }
        let len = len as u64;
        self.write(ring, self.tail.wrapping_add(skip), WHOLE, tag, len);
        self.advance(ring, skip + HEADER + padded(len));
    }

    #[inline]
    fn write(&self, ring: FrameRing<'_>, position: u64, kind: u64, tag: u8, len: u64) {
        let header = len << 8 | u64::from(tag & 15) << 4 | kind;
        ring.header(position).store(header, Ordering::Relaxed);
    }

    #[inline]
    fn advance(&mut self, ring: FrameRing<'_>, bytes: u64) {
        // A position that was scribbled over may be any.
        self.tail = self.tail.wrapping_add(bytes);
        ring.words.tail.store(self.tail, Ordering::Release);
    }

    /// True if there may be room for a frame of `len` bytes: before taking the turn, which others would have to wait for. Exact for who
    /// has passed a full fence, but for what other writers do.
    #[inline]
    #[must_use]
    pub fn may_have_room(&self, ring: FrameRing<'_>, len: usize) -> bool {
        let tail = ring.words.tail.load(Ordering::Relaxed);
        let now = Self { tail, ..*self };
        let needed = now.skip(ring, len as u64) + HEADER + padded(len as u64);
        now.may_be_free(ring, needed)
    }

    /// As [`may_have_room`](Self::may_have_room), for [`begin`](Self::begin).
    #[must_use]
    pub fn may_begin(&self, ring: FrameRing<'_>) -> bool {
        Self { tail: ring.words.tail.load(Ordering::Relaxed), ..*self }.may_be_free(ring, 2 * HEADER)
    }

    #[inline]
    fn may_be_free(mut self, ring: FrameRing<'_>, bytes: u64) -> bool {
        // What can not be is found out by who takes the turn.
        self.tail % 8 != 0 || self.has_room(ring, bytes) || self.free(ring).is_none()
    }

    /// In its turn: true if a frame that goes in parts can be begun; then it can be until this one has written something.
    pub fn can_begin(&mut self, ring: FrameRing<'_>) -> bool {
        // One word more, for its end.
        self.has_room(ring, 2 * HEADER)
    }

    /// Begins a frame of `len` bytes that goes in parts, if there is room for that.
    ///
    /// # Panics
    ///
    /// If it is not this one's turn.
    pub fn begin(&mut self, ring: FrameRing<'_>, len: u64, tag: u8) -> bool {
        assert!(self.has_turn && self.left.is_none(), "as documented");
        if !self.can_begin(ring) {
            return false;
        }
        ring.words.pending.store(self.tail | BEGUN, Ordering::Relaxed);
        self.write(ring, self.tail, BEGIN, tag, len);
        self.advance(ring, HEADER);
        self.left = Some(len);
        true
    }

    /// Where the next part of the frame that has begun can be written; `None` if there is no room. To be followed by
    /// [`publish_part`](Self::publish_part), or by nothing.
    pub fn room_for_part(&mut self, ring: FrameRing<'_>) -> Option<Extent> {
        let wanted = self.left?.min(ring.shape.part_max());
        // Small parts are not worth their headers: better wait for room.
        let least = wanted.min(ring.shape.part_max() / 4);
        if !self.has_room(ring, 2 * HEADER + padded(least)) {
            return None;
        }
        let len = wanted.min(self.free(ring)? - 2 * HEADER);
        Some(Extent { at: ring.shape.offset(self.tail.wrapping_add(HEADER)) as usize, len: len as usize })
    }

    /// Publishes the part that was written where [`room_for_part`](Self::room_for_part) said. True if that was the last one.
    ///
    /// # Panics
    ///
    /// If there is no such room.
    pub fn publish_part(&mut self, ring: FrameRing<'_>, part: Extent) -> bool {
        let len = part.len as u64;
        let left = self.left.and_then(|left| left.checked_sub(len)).expect("a part of the frame");
        let needed = 2 * HEADER + padded(len);
        assert!(self.free(ring).is_some_and(|free| free >= needed), "there was room for it");
        if left == 0 {
            self.end(ring, LAST, len);
        } else {
            self.write(ring, self.tail, PART, 0, len);
            self.advance(ring, HEADER + padded(len));
            self.left = Some(left);
        }
        left == 0
    }

    /// Gives up the frame that has begun, if one has: no reader gets it.
    pub fn abort(&mut self, ring: FrameRing<'_>) {
        if self.left.is_some() {
            self.end(ring, ABORT, 0);
        }
    }

    /// Writes the last chunk of a frame in parts. Whoever finds `pending` so can tell whether it was written.
    fn end(&mut self, ring: FrameRing<'_>, kind: u64, len: u64) {
        ring.words.pending.store(self.tail | ENDING, Ordering::Relaxed);
        self.write(ring, self.tail, kind, 0, len);
        self.advance(ring, HEADER + padded(len));
        self.left = None;
        ring.words.pending.store(0, Ordering::Relaxed);
    }
}

/// What one handle of the readers' end knows; to be used with one ring.
#[derive(Debug, Default)]
pub struct FrameReader {
    has_turn: bool,
    head: u64,
    /// `tail` when it was last looked at: it may be further by now.
    tail: u64,
    /// Bytes that are still to come of a frame that has begun.
    left: Option<u64>,
    /// Bytes of the chunk that [`next`](Self::next) has told of.
    shown: u64,
    /// Bytes that it has passed over before.
    passed: u64,
}

impl FrameReader {
    /// True from [`take_turn`](Self::take_turn) to [`pass_turn`](Self::pass_turn).
    #[inline]
    #[must_use]
    pub fn has_turn(&self) -> bool {
        self.has_turn
    }

    /// True if a frame has begun that is not at its end. Who gives the turn back then loses the rest.
    #[inline]
    #[must_use]
    pub fn is_in_frame(&self) -> bool {
        self.left.is_some()
    }

    /// Takes the turn to read, if nobody who lives has it.
    ///
    /// # Errors
    ///
    /// See [`NoTurn`].
    #[inline]
    pub fn take_turn(&mut self, ring: FrameRing<'_>, live: &impl Liveness) -> Result<(), NoTurn> {
        if self.has_turn {
            return Ok(());
        }
        ring.take_turn(End::Reader, live)?;
        self.has_turn = true;
        self.head = ring.words.head.load(Ordering::Relaxed);
        self.shown = 0;
        if self.head % 8 != 0 {
            self.pass_turn(ring);
            return Err(NoTurn::Damaged);
        }
        Ok(())
    }

    /// Gives the turn back. [`FrameRing::notify`] is to follow.
    #[inline]
    pub fn pass_turn(&mut self, ring: FrameRing<'_>) {
        self.has_turn = false;
        self.left = None;
        ring.pass_turn(End::Reader);
    }

    /// True if there is no chunk: before taking the turn, which others would have to wait for.
    #[inline]
    #[must_use]
    pub fn finds_nothing(&self, ring: FrameRing<'_>) -> bool {
        let head = ring.words.head.load(Ordering::Relaxed);
        // `tail` grows: what this handle knows of it may be enough.
        let known = self.tail.wrapping_sub(head);
        let is_known = known > 0 && known <= ring.shape.bytes;
        // Positions that can not be are found out by who takes the turn.
        !is_known && head % 8 == 0 && ring.words.tail.load(Ordering::Relaxed) == head
    }

    /// In its turn: where the chunk stands that comes next.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.head
    }

    /// True if [`next`](Self::next) has passed over something: [`FrameRing::notify`] is to follow. If it has found nothing, there may be
    /// more behind that.
    #[inline]
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.passed > 0
    }

    /// The next chunk, if there is one. [`take`](Self::take) takes it; before that it stays.
    ///
    /// # Errors
    ///
    /// [`DamagedFrames`].
    ///
    /// # Panics
    ///
    /// If it is not this one's turn.
    #[inline]
    pub fn next(&mut self, ring: FrameRing<'_>) -> Result<Option<Chunk>, DamagedFrames> {
        assert!(self.has_turn, "as documented");
        self.passed = 0;
        while self.is_there(ring)? {
            let chunk = RawChunk::at(ring, self.head, self.tail).ok_or(DamagedFrames)?;
            self.shown = chunk.bytes;
            // None is empty but the last one: parts without an end would be a frame that never comes.
            let part = |left: u64| match chunk.kind {
                PART => (1..=left).contains(&chunk.len),
                _ => chunk.len == left,
            };
            return Ok(Some(match (chunk.kind, self.left) {
                (WHOLE, None) => Chunk::Whole { at: chunk.extent(), tag: chunk.tag },
                (BEGIN, None) => Chunk::Begin { len: chunk.len, tag: chunk.tag },
                (PART | LAST, Some(left)) if part(left) => {
                    Chunk::Part { at: chunk.extent(), last: chunk.kind == LAST }
                }
                (ABORT, Some(_)) => Chunk::Abort,
                // Nothing; or the rest of a frame whose reader is gone.
                (SKIP | PART | LAST | ABORT, None) => {
                    self.passed += self.shown;
                    self.advance(ring);
                    if self.passed < ring.shape.bytes {
                        continue;
                    }
                    // Somebody writes such things as fast as they are passed over.
                    return Ok(None);
                }
                _ => return Err(DamagedFrames),
            }));
        }
        Ok(None)
    }

    /// True if there is a chunk at `head`.
    #[inline]
    fn is_there(&mut self, ring: FrameRing<'_>) -> Result<bool, DamagedFrames> {
        let bytes = |it: &Self| it.tail.wrapping_sub(it.head);
        // What this handle knows of `tail` may be used up, or from long ago.
        if bytes(self) == 0 || bytes(self) > ring.shape.bytes {
            self.tail = ring.words.tail.load(Ordering::Acquire);
            if bytes(self) > ring.shape.bytes || self.tail % 8 != 0 {
                self.tail = self.head;
                return Err(DamagedFrames);
            }
        }
        Ok(bytes(self) > 0)
    }

    /// Takes the chunk that [`next`](Self::next) has told of.
    ///
    /// # Panics
    ///
    /// If it has not.
    #[inline]
    pub fn take(&mut self, ring: FrameRing<'_>, chunk: Chunk) {
        assert!(self.has_turn && self.shown > 0, "as documented");
        match chunk {
            Chunk::Whole { .. } => {}
            Chunk::Begin { len, .. } => self.left = Some(len),
            Chunk::Part { at, last } => {
                self.left = self.left.map(|left| left - at.len as u64).filter(|_| !last);
            }
            Chunk::Abort => self.left = None,
        }
        self.advance(ring);
    }

    #[inline]
    fn advance(&mut self, ring: FrameRing<'_>) {
        self.head = self.head.wrapping_add(self.shown);
        self.shown = 0;
        ring.words.head.store(self.head, Ordering::Release);
    }
}
