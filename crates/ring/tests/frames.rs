//! The ring of frames on words of the heap: every size at every place, many handles in turn, deaths in every stage made by hand.
//!
//! Which interleavings are possible is the business of `model/frames.rs` and `frames_protocol`.
#![cfg(not(crossproc_model))]

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64 as Bits;
use std::time::{SystemTime, UNIX_EPOCH};

use crossproc_atomic::{AtomicU64, Liveness, Ordering::Relaxed};
use crossproc_ring::{
    Chunk, DamagedFrames, End, Extent, FrameReader, FrameRing, FrameShape, FrameWords, FrameWriter, NoTurn,
    Presence, Watch,
};

mod member;

use member::Member;

const PARTICIPANTS: usize = 8;

struct Heap {
    shape: FrameShape,
    words: FrameWords,
    data: Vec<AtomicU64>,
    cells: Vec<AtomicU64>,
    /// The bytes themselves; what stands there before is not 0.
    bytes: std::cell::RefCell<Vec<u8>>,
    /// One bit for each participant.
    dead: Bits,
}

impl Heap {
    fn new(bytes: u64) -> Self {
        let shape = FrameShape::new(bytes).expect("a shape");
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Self {
            shape,
            words: FrameWords::default(),
            data: words(shape.words()),
            cells: words(FrameRing::cells_for(PARTICIPANTS)),
            bytes: vec![0xEE; shape.bytes()].into(),
            dead: Bits::new(0),
        }
    }

    fn ring(&self) -> FrameRing<'_> {
        FrameRing::new(&self.words, &self.data, &self.cells, self.shape)
    }

    fn member(&self, number: u16) -> Member<'_> {
        Member { dead: &self.dead, number }
    }

    fn kill(&self, number: u16) {
        self.dead.fetch_or(1 << number, Relaxed);
    }

    /// As the map in the ring's file has them.
    fn all_words(&self) -> &[AtomicU64] {
        // SAFETY: as long, and these are atomics that may have any value.
        unsafe { std::slice::from_raw_parts((&raw const self.words).cast(), size_of::<FrameWords>() / 8) }
    }

    fn write(&self, at: Extent, from: &[u8]) {
        let mut from = from.iter();
        for piece in at.pieces(self.shape) {
            for (to, byte) in
                self.bytes.borrow_mut()[piece.at..piece.at + piece.len].iter_mut().zip(&mut from)
            {
                *to = *byte;
            }
        }
    }

    fn read(&self, at: Extent) -> Vec<u8> {
        let bytes = self.bytes.borrow();
        at.pieces(self.shape)
            .iter()
            .flat_map(|piece| bytes[piece.at..piece.at + piece.len].to_vec())
            .collect()
    }

    /// Sends as much as there is room for of the rest; true when all is sent.
    fn send(&self, me: Member<'_>, writer: &mut FrameWriter, frame: &[u8], done: &mut usize) -> bool {
        let ring = self.ring();
        if writer.take_turn(ring, &me).is_err() {
            return false;
        }
        let sent = if frame.len() <= self.shape.whole_max() {
            let room = writer.room(ring, frame.len());
            if let Some(room) = room {
                self.write(room, frame);
                writer.publish(ring, room, frame.len(), 5);
            }
            room.is_some()
        } else {
            if !writer.is_in_frame() && !writer.begin(ring, frame.len() as u64, 6) {
                writer.pass_turn(ring);
                return false;
            }
            loop {
                let Some(part) = writer.room_for_part(ring) else { return false };
                self.write(part, &frame[*done..]);
                *done += part.len;
                if writer.publish_part(ring, part) {
                    break true;
                }
            }
        };
        writer.pass_turn(ring);
        sent
    }

    /// The next frame, if all of it is there.
    fn receive(&self, me: Member<'_>, reader: &mut FrameReader, so_far: &mut Vec<u8>) -> Option<Vec<u8>> {
        let ring = self.ring();
        reader.take_turn(ring, &me).ok()?;
        while let Some(chunk) = reader.next(ring).expect("nobody scribbles") {
            let whole = match chunk {
                Chunk::Whole { at, tag } => {
                    assert_eq!(tag, 5);
                    Some(self.read(at))
                }
                Chunk::Begin { tag, .. } => {
                    assert_eq!(tag, 6);
                    so_far.clear();
                    None
                }
                Chunk::Part { at, last } => {
                    so_far.extend(self.read(at));
                    last.then(|| std::mem::take(so_far))
                }
                Chunk::Abort => {
                    so_far.clear();
                    None
                }
            };
            reader.take(ring, chunk);
            if let Some(frame) = whole {
                reader.pass_turn(ring);
                return Some(frame);
            }
        }
        if !reader.is_in_frame() {
            reader.pass_turn(ring);
        }
        None
    }
}

struct Random(u64);

impl Random {
    fn seeded(what: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64 % 1_000_000_000;
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
        println!("{what}: SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn frame(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|k| (number as u8).wrapping_mul(31).wrapping_add(k as u8)).collect()
}

#[test]
fn frames_of_every_length_come_whole_at_every_place() {
    for ring in [64, 128, 256] {
        let heap = Heap::new(ring);
        let (me, mut writer, mut reader) = (heap.member(0), FrameWriter::default(), FrameReader::default());
        for number in 0..4000_u64 {
            let sent = frame(number, (number * 7 % (3 * ring)) as usize);
            let (mut done, mut so_far) = (0, Vec::new());
            let mut received = None;
            while !heap.send(me, &mut writer, &sent, &mut done) {
                received = received.or_else(|| heap.receive(me, &mut reader, &mut so_far));
            }
            let received = received.or_else(|| heap.receive(me, &mut reader, &mut so_far));
            assert_eq!(received.as_ref(), Some(&sent), "frame {number} of a ring of {ring}");
            assert!(heap.ring().is_empty());
            assert_eq!(heap.ring().audit(), Ok(()));
        }
    }
}

#[test]
fn a_ring_is_filled_to_its_end() {
    let heap = Heap::new(256);
    let (me, mut writer, mut reader) = (heap.member(0), FrameWriter::default(), FrameReader::default());
    let fills = |writer: &mut FrameWriter| {
        (0..).take_while(|&n| heap.send(me, writer, &frame(n, 24), &mut 0)).count()
    };
    assert_eq!(fills(&mut writer), 8);
    assert_eq!(heap.ring().len(), 256);
    assert!(heap.receive(me, &mut reader, &mut Vec::new()).is_some());
    assert_eq!(fills(&mut writer), 1);
}

#[test]
fn a_look_before_the_turn_tells_what_it_would_find() {
    let mut rng = Random::seeded("looks");
    let heap = Heap::new(256);
    let (me, ring) = (heap.member(0), heap.ring());
    // What a handle knows is from its last turn; the third ones know nothing.
    let mut writers: [_; 3] = std::array::from_fn(|_| FrameWriter::default());
    let mut readers: [_; 3] = std::array::from_fn(|_| FrameReader::default());
    for number in 0..4000 {
        let len = rng.below(200) as usize;
        let is_whole = len <= heap.shape.whole_max();
        let looks = writers
            .each_ref()
            .map(|it| if is_whole { it.may_have_room(ring, len) } else { it.may_begin(ring) });
        let writer = &mut writers[rng.below(2) as usize];
        let has_room = if is_whole {
            heap.send(me, writer, &frame(number, len), &mut 0)
        } else {
            writer.take_turn(ring, &me).expect("nobody has it");
            let can_begin = writer.can_begin(ring);
            writer.pass_turn(ring);
            can_begin
        };
        assert_eq!(looks, [has_room; 3], "{len} bytes");
        assert_eq!(readers.each_ref().map(|it| it.finds_nothing(ring)), [ring.is_empty(); 3]);
        if rng.below(2) == 0 {
            heap.receive(me, &mut readers[rng.below(2) as usize], &mut Vec::new());
            assert_eq!(readers.each_ref().map(|it| it.finds_nothing(ring)), [ring.is_empty(); 3]);
        }
    }
}

/// Several writers and readers in turn, of whom some die at any of the places where a call ends.
#[test]
fn whoever_dies_the_others_stay_in_step() {
    let mut rng = Random::seeded("frames");
    for _ in 0..300 {
        let heap = Heap::new(128);
        let mut expected: VecDeque<Vec<u8>> = VecDeque::new();
        let mut writers: Vec<(u16, FrameWriter, Vec<u8>, usize)> =
            (0..3).map(|n| (n, FrameWriter::default(), Vec::new(), 0)).collect();
        let mut readers: Vec<(u16, FrameReader, Vec<u8>)> =
            (3..6).map(|n| (n, FrameReader::default(), Vec::new())).collect();
        let mut lost = 0;
        for step in 0..200 {
            let who = rng.below(6) as usize;
            if who < 3 && who < writers.len() {
                let (number, writer, message, done) = &mut writers[who];
                if message.is_empty() {
                    *message = frame(step, 1 + rng.below(300) as usize);
                    *done = 0;
                }
                if heap.send(heap.member(*number), writer, message, done) {
                    expected.push_back(std::mem::take(message));
                }
                // In the middle of a message, with its turn, or between two.
                if writers.len() > 1 && rng.below(12) == 0 {
                    heap.kill(writers.remove(who).0);
                }
            } else if who >= 3 && who - 3 < readers.len() {
                let (number, reader, so_far) = &mut readers[who - 3];
                if let Some(received) = heap.receive(heap.member(*number), reader, so_far) {
                    // One that a dead reader had begun to receive is gone.
                    while expected.front().is_some_and(|next| *next != received) && lost > 0 {
                        expected.pop_front();
                        lost -= 1;
                    }
                    assert_eq!(expected.pop_front(), Some(received));
                }
                if readers.len() > 1 && rng.below(12) == 0 {
                    let (number, reader, _) = readers.remove(who - 3);
                    lost += usize::from(reader.is_in_frame());
                    heap.kill(number);
                }
            }
            assert_eq!(heap.ring().audit(), Ok(()));
        }
    }
}

#[test]
fn a_turn_is_taken_from_the_dead_only() {
    let heap = Heap::new(64);
    let (first, second) = (heap.member(0), heap.member(1));
    let (mut one, mut two) = (FrameWriter::default(), FrameWriter::default());
    assert_eq!(one.take_turn(heap.ring(), &first), Ok(()));
    assert_eq!(two.take_turn(heap.ring(), &second), Err(NoTurn::Taken));
    assert!(!heap.ring().is_turn_of_dead(End::Writer, &second));
    heap.kill(0);
    assert!(heap.ring().is_turn_of_dead(End::Writer, &second));
    assert_eq!(two.take_turn(heap.ring(), &second), Ok(()));
    assert_eq!(heap.ring().turn_of(End::Writer), Some(second.me()));
}

#[test]
fn who_holds_an_end_is_known() {
    let heap = Heap::new(64);
    let ring = heap.ring();
    let [a, b, c] = [0, 1, 2].map(|n| heap.member(n));
    let look = || ring.presence(End::Writer, &c, &mut Watch::default());
    assert_eq!(look(), Presence::NotYet);
    ring.hold(End::Writer, &a).unwrap();
    ring.hold(End::Writer, &b).unwrap();
    ring.hold(End::Writer, &b).unwrap();
    assert_eq!((look(), ring.holds(End::Writer), ring.holds(End::Reader)), (Presence::There, 3, 0));
    ring.let_go(End::Writer, &a);
    ring.let_go(End::Writer, &b);
    assert_eq!(look(), Presence::There);
    heap.kill(1);
    assert_eq!(look(), Presence::Died);
    // A lent one that came back; then the last one that leaves does so in good order.
    ring.hold(End::Writer, &a).unwrap();
    ring.hold(End::Writer, &c).unwrap();
    ring.give_back(End::Writer, a.me());
    assert_eq!(look(), Presence::There);
    ring.let_go(End::Writer, &c);
    assert_eq!(look(), Presence::Left);
    // Nobody lets go what it has not.
    ring.let_go(End::Writer, &c);
    ring.give_back(End::Writer, a.me());
    assert_eq!(ring.holds(End::Writer), 0);
}

/// Nobody writes as much, but somebody may say so.
#[test]
fn positions_go_on_behind_the_last_one() {
    // New handles know 0 of each: that is not to look near.
    for before in (72..=200).step_by(8) {
        let heap = Heap::new(64);
        let (me, mut writer, mut reader) = (heap.member(0), FrameWriter::default(), FrameReader::default());
        let (tail, head) = (&heap.all_words()[0], &heap.all_words()[16]);
        tail.store(0_u64.wrapping_sub(before), Relaxed);
        head.store(0_u64.wrapping_sub(before), Relaxed);
        for (number, len) in (0..20).map(|n| (n, [20, 40, 10, 0][n as usize % 4])) {
            let (mut done, mut so_far) = (0, Vec::new());
            let mut received = None;
            while !heap.send(me, &mut writer, &frame(number, len), &mut done) {
                received = received.or_else(|| heap.receive(me, &mut reader, &mut so_far));
            }
            assert_eq!(heap.ring().audit(), Ok(()));
            let received = received.or_else(|| heap.receive(me, &mut reader, &mut so_far));
            assert_eq!(received, Some(frame(number, len)), "{before} before");
        }
    }
}

#[test]
fn a_part_brings_the_end_nearer() {
    let heap = Heap::new(64);
    let (me, mut writer, mut reader) = (heap.member(0), FrameWriter::default(), FrameReader::default());
    let ring = heap.ring();
    writer.take_turn(ring, &me).unwrap();
    assert!(writer.begin(ring, 100, 0));
    assert!(!writer.publish_part(ring, Extent { at: 16, len: 0 }));
    reader.take_turn(ring, &me).unwrap();
    let begin = reader.next(ring).unwrap().unwrap();
    reader.take(ring, begin);
    assert_eq!(reader.next(ring), Err(DamagedFrames));
}

#[test]
fn whatever_stands_in_the_words_is_an_error_at_worst() {
    let mut rng = Random::seeded("scribbled");
    for _ in 0..20_000 {
        let heap = Heap::new(64);
        let me = heap.member(0);
        let (mut writer, mut reader) = (FrameWriter::default(), FrameReader::default());
        heap.send(me, &mut writer, &frame(1, 20), &mut 0);
        let words = heap.all_words();
        for _ in 0..1 + rng.below(4) {
            let value = [0, 1, 8, 64, u64::MAX, 1 << 63, rng.below(1 << 31) * 8, rng.below(256)];
            let value = value[rng.below(8) as usize];
            match rng.below(2) {
                0 => heap.data[rng.below(8) as usize].store(value, Relaxed),
                _ => words[rng.below(words.len() as u64) as usize].store(value, Relaxed),
            }
        }
        let ring = heap.ring();
        let _ = ring.audit();
        for (end, keeps) in
            [(End::Reader, false), (End::Reader, true), (End::Writer, false), (End::Writer, true)]
        {
            let _ = ring.is_ready(end, &me, keeps);
        }
        let _ = ring.len();
        if reader.take_turn(ring, &me).is_ok() {
            for _ in 0..100 {
                match reader.next(ring) {
                    Ok(Some(chunk)) => {
                        if let Chunk::Whole { at, .. } | Chunk::Part { at, .. } = chunk {
                            assert!(at.at < 64 && at.len <= 64, "{at:?} lies in the ring");
                            heap.read(at);
                        }
                        reader.take(ring, chunk);
                    }
                    _ => break,
                }
            }
            reader.pass_turn(ring);
        }
        heap.send(me, &mut writer, &frame(2, 10), &mut 0);
    }
}
