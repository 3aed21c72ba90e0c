//! The ring of frames: nothing is lost, doubled, torn or slept through, whoever is killed where.

use std::cell::Cell;
use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_atomic::{AtomicU64, Liveness, Ordering, fence};
use crossproc_ring::{
    Chunk, End, Extent, FrameReader, FrameRing, FrameShape, FrameWords, FrameWriter, NoTurn, Presence, Watch,
};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// The smallest: frames of up to three words go at once, parts have up to two.
const RING: u64 = 64;
const PARTICIPANTS: usize = 4;

struct Pipe {
    words: FrameWords,
    data: Vec<AtomicU64>,
    cells: Vec<AtomicU64>,
    shape: FrameShape,
    /// The bytes, by words; loom reports every unordered pair of accesses to one.
    bytes: Vec<UnsafeCell<u64>>,
}

impl Pipe {
    fn new() -> Arc<Self> {
        let shape = FrameShape::new(RING).expect("a shape");
        let words = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Arc::new(Self {
            words: FrameWords::default(),
            data: words(shape.words()),
            cells: words(FrameRing::cells_for(PARTICIPANTS)),
            shape,
            bytes: (0..shape.words()).map(|_| UnsafeCell::new(0)).collect(),
        })
    }

    fn ring(&self) -> FrameRing<'_> {
        FrameRing::new(&self.words, &self.data, &self.cells, self.shape)
    }

    fn places(&self, at: Extent) -> impl Iterator<Item = &UnsafeCell<u64>> {
        at.pieces(self.shape).into_iter().flat_map(|piece| &self.bytes[piece.at / 8..][..piece.len / 8])
    }

    fn write(&self, at: Extent, value: u64) {
        for cell in self.places(at) {
            // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
            cell.with_mut(|cell| unsafe { *cell = value });
        }
    }

    fn read(&self, at: Extent) -> Option<u64> {
        let mut value = None;
        for cell in self.places(at) {
            // SAFETY: as above.
            let word = cell.with(|cell| unsafe { *cell });
            assert!(value.is_none_or(|value| value == word), "torn");
            value = Some(word);
        }
        value
    }

    /// As a sender does: at once up to three words, else in parts. `None`: no room, or not its turn.
    fn try_send(
        &self,
        me: &impl Liveness,
        writer: &mut FrameWriter,
        value: u64,
        words: u64,
        light: bool,
    ) -> Option<()> {
        let ring = self.ring();
        if writer.take_turn(ring, me).is_err() {
            return None;
        }
        let len = words as usize * 8;
        let sent = if len <= self.shape.whole_max() {
            let room = writer.room(ring, len);
            if let Some(room) = room {
                self.write(room, value);
                writer.publish(ring, room, len, 0);
            }
            room.map(|_| ())
        } else if !writer.is_in_frame() && !writer.begin(ring, len as u64, 0) {
            None
        } else {
            loop {
                // In the middle of it the turn stays.
                let part = writer.room_for_part(ring)?;
                self.write(part, value);
                if writer.publish_part(ring, part) {
                    break Some(());
                }
                ring.notify(End::Writer, me, light);
            }
        };
        writer.pass_turn(ring);
        ring.notify(End::Writer, me, light);
        sent
    }

    fn send(&self, me: &impl Liveness, writer: &mut FrameWriter, value: u64, words: u64, light: bool) {
        self.wait(me, End::Writer, || self.try_send(me, writer, value, words, light));
    }

    /// As a receiver does; what it is told of a frame in parts is in `value`.
    fn try_receive(
        &self,
        me: &impl Liveness,
        reader: &mut FrameReader,
        value: &mut Option<u64>,
        light: bool,
    ) -> Option<u64> {
        let ring = self.ring();
        if reader.take_turn(ring, me).is_err() {
            return None;
        }
        let mut received = None;
        while received.is_none() {
            let Some(chunk) = reader.next(ring).expect("nobody scribbles") else { break };
            match chunk {
                Chunk::Whole { at, .. } => received = self.read(at).or(Some(0)),
                Chunk::Begin { .. } | Chunk::Abort => *value = None,
                Chunk::Part { at, last } => {
                    let word = self.read(at);
                    assert!(value.is_none() || *value == word, "mixed");
                    *value = word;
                    received = word.filter(|_| last);
                }
            }
            reader.take(ring, chunk);
            if received.is_none() {
                ring.notify(End::Reader, me, light);
            }
        }
        if !reader.is_in_frame() {
            reader.pass_turn(ring);
            ring.notify(End::Reader, me, light);
        } else if ring.is_turn_of_dead(End::Writer, me) {
            let mut writer = FrameWriter::default();
            if writer.take_turn(ring, me).is_ok() {
                writer.pass_turn(ring);
                ring.notify(End::Writer, me, light);
            }
        }
        received
    }

    fn receive(&self, me: &impl Liveness, reader: &mut FrameReader, light: bool) -> u64 {
        let mut value = None;
        self.wait(me, End::Reader, || self.try_receive(me, reader, &mut value, light))
    }

    /// Until nobody has the other end, and nothing is there.
    fn receive_all(&self, me: &impl Liveness, reader: &mut FrameReader) -> (Vec<u64>, Presence) {
        let (mut all, mut value, mut watch) = (Vec::new(), None, Watch::default());
        loop {
            let found = self.wait(me, End::Reader, || {
                if let Some(value) = self.try_receive(me, reader, &mut value, true) {
                    return Some(Ok(value));
                }
                match self.ring().presence(End::Writer, me, &mut watch) {
                    end @ (Presence::Left | Presence::Died) if !reader.is_in_frame() => {
                        Some(self.try_receive(me, reader, &mut value, true).ok_or(end))
                    }
                    _ => None,
                }
            });
            match found {
                Ok(value) => all.push(value),
                Err(end) => return (all, end),
            }
        }
    }

    /// As the pipe's handles wait, without their spin.
    fn wait<R>(&self, me: &impl Liveness, end: End, mut attempt: impl FnMut() -> Option<R>) -> R {
        let ring = self.ring();
        let is_taken = || ring.turn_of(end).is_some_and(|owner| owner != me.me());
        loop {
            let ticket = ring.event(end).listen_among_peers(me);
            if let Some(done) = attempt() {
                return done;
            }
            let busy = is_taken();
            ring.before_sleeping(end, busy, heavy_fence);
            if let Some(done) = attempt() {
                return done;
            }
            if !busy && is_taken() {
                continue;
            }
            ring.event(end).sleep_among_peers(me, ticket, None);
        }
    }
}

/// As `membarrier(2)`: the caller passes a full fence, too. (The others' light fences are full ones here.)
fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    true
}

/// Runs `f` as thread `tid`, which is a process of its own.
fn beside<R: 'static>(
    kernel: &Arc<Kernel>,
    pipe: &Arc<Pipe>,
    tid: u32,
    f: impl FnOnce(&Process, &Pipe) -> R + 'static,
) -> thread::JoinHandle<R> {
    let (process, pipe) = (Process::new(kernel, tid), Arc::clone(pipe));
    thread::spawn(move || f(&process, &pipe))
}

/// Round the end of the ring, so that the third frame writes over the first; and one in parts that is longer than the ring.
#[test]
fn what_is_sent_is_received_in_order_and_nobody_sleeps_for_ever() {
    for (lengths, light) in [(&[3_u64, 2, 3][..], true), (&[3, 2, 3], false), (&[9, 1], true)] {
        explore(&format!("frames_stream_{lengths:?}_{light}"), 100, 2, move |_| {
            let (kernel, pipe) = (Kernel::new(), Pipe::new());
            let writer = beside(&kernel, &pipe, 1, move |me, pipe| {
                let mut writer = FrameWriter::default();
                for (value, &words) in (1..).zip(lengths) {
                    pipe.send(me, &mut writer, value, words, light);
                }
            });
            let me = Process::new(&kernel, 2);
            let mut reader = FrameReader::default();
            for value in 1..=lengths.len() as u64 {
                assert_eq!(pipe.receive(&me, &mut reader, light), value);
            }
            writer.join().expect("ends well");
            assert!(pipe.ring().is_empty());
            assert_eq!(pipe.ring().audit(), Ok(()));
        });
    }
}

/// The reader may be anywhere on its way to sleep.
#[test]
fn a_frame_wakes_a_sleeping_reader() {
    for light in [true, false] {
        explore(&format!("frames_wake_{light}"), 50, 4, move |_| {
            let (kernel, pipe) = (Kernel::new(), Pipe::new());
            let writer = beside(&kernel, &pipe, 1, move |me, pipe| {
                assert!(pipe.try_send(me, &mut FrameWriter::default(), 7, 1, light).is_some());
            });
            let me = Process::new(&kernel, 2);
            assert_eq!(pipe.receive(&me, &mut FrameReader::default(), light), 7);
            writer.join().expect("ends well");
        });
    }
}

#[test]
fn room_wakes_a_sleeping_writer() {
    explore("frames_wake_writer", 50, 4, |_| {
        let (kernel, pipe) = (Kernel::new(), Pipe::new());
        let me = Process::new(&kernel, 2);
        let mut writer = FrameWriter::default();
        while pipe.try_send(&me, &mut writer, 7, 3, true).is_some() {}
        let reader = beside(&kernel, &pipe, 1, |me, pipe| {
            assert_eq!(pipe.try_receive(me, &mut FrameReader::default(), &mut None, true), Some(7));
        });
        pipe.send(&me, &mut writer, 8, 3, true);
        reader.join().expect("ends well");
    });
}

/// Two writers; one of them waits for nothing but the turn of the other.
#[test]
fn a_turn_given_back_wakes_who_waits_for_it() {
    explore("frames_turn", 50, 3, |_| {
        let (kernel, pipe) = (Kernel::new(), Pipe::new());
        let other = beside(&kernel, &pipe, 1, |me, pipe| {
            pipe.send(me, &mut FrameWriter::default(), 1, 1, true);
        });
        let me = Process::new(&kernel, 2);
        pipe.send(&me, &mut FrameWriter::default(), 2, 1, true);
        other.join().expect("ends well");
        let (mut reader, mut value) = (FrameReader::default(), None);
        let mut take = || pipe.try_receive(&me, &mut reader, &mut value, true);
        let both = [take(), take()];
        assert!(both == [Some(1), Some(2)] || both == [Some(2), Some(1)], "{both:?}");
    });
}

/// What was sent before an end was let go is received before that is told.
#[test]
fn the_end_comes_after_the_last_frame() {
    explore("frames_end", 50, 3, |_| {
        let (kernel, pipe) = (Kernel::new(), Pipe::new());
        let writer = Process::new(&kernel, 1);
        pipe.ring().hold(End::Writer, &writer).expect("few");
        let theirs = Arc::clone(&pipe);
        let thread = thread::spawn(move || {
            assert!(theirs.try_send(&writer, &mut FrameWriter::default(), 7, 2, true).is_some());
            theirs.ring().let_go(End::Writer, &writer);
        });
        let me = Process::new(&kernel, 2);
        assert_eq!(pipe.receive_all(&me, &mut FrameReader::default()), (vec![7], Presence::Left));
        thread.join().expect("ends well");
    });
}

/// An end that passes from a participant to one whose cell was looked at before is not missed.
#[test]
fn an_end_that_passes_on_is_never_gone() {
    explore("frames_passes_on", 10, 3, |_| {
        let (kernel, pipe) = (Kernel::new(), Pipe::new());
        let (first, second) = (Process::new(&kernel, 3), Process::new(&kernel, 1));
        assert!(second.me().slot() < first.me().slot(), "its cell is read before");
        pipe.ring().hold(End::Writer, &first).expect("few");
        let theirs = Arc::clone(&pipe);
        let thread = thread::spawn(move || {
            theirs.ring().hold(End::Writer, &second).expect("few");
            theirs.ring().give_back(End::Writer, first.me());
            (first, second)
        });
        let me = Process::new(&kernel, 2);
        let presence = pipe.ring().presence(End::Writer, &me, &mut Watch::default());
        assert_eq!(presence, Presence::There);
        thread.join().expect("ends well");
    });
}

/// A writer is killed before each of its shared accesses in turn, in a frame that goes at once and in one in parts; another one
/// goes on, and the reader has what was sent to its end.
#[test]
fn a_killed_writer_leaves_the_ring_in_step() {
    let mut ends = BTreeSet::new();
    for words in [2, 4] {
        for accesses in 0..32 {
            ends.extend(explore(&format!("frames_writer_dies_{words}_{accesses}"), 1, 2, move |outcome| {
                let (kernel, pipe) = (Kernel::new(), Pipe::new());
                let victim = beside(&kernel, &pipe, 1, move |me, pipe| {
                    let sent = Cell::new(false);
                    me.run_until_killed(accesses, &[], || {
                        let done = pipe.try_send(me, &mut FrameWriter::default(), 1, words, true);
                        sent.set(done.is_some());
                    });
                    sent.get()
                });
                let me = Process::new(&kernel, 2);
                let (mut reader, mut value) = (FrameReader::default(), None);
                let early = pipe.try_receive(&me, &mut reader, &mut value, true);
                let sent = victim.join().expect("the model thread ends well");
                let heir = Process::new(&kernel, 3);
                let mut writer = FrameWriter::default();
                let mut all: Vec<_> = early.into_iter().collect();
                // If there is no room at first, there is when all is received.
                for _ in 0..2 {
                    let send = !all.contains(&2) && pipe.ring().len() < 56;
                    if send && pipe.try_send(&heir, &mut writer, 2, 1, true).is_none() {
                        return; // it was not killed, and has the turn
                    }
                    while let Some(value) = pipe.try_receive(&me, &mut reader, &mut value, true) {
                        all.push(value);
                    }
                }
                assert!(all == [1, 2] || all == [2] && !sent, "{all:?}, sent: {sent}");
                assert_eq!(pipe.ring().audit(), Ok(()));
                outcome.extend([words, u64::from(sent), all.len() as u64]);
            }));
        }
    }
    for wanted in [vec![2, 0, 1], vec![2, 0, 2], vec![4, 0, 1], vec![4, 0, 2]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}

/// A reader that waits in the middle of a frame learns that its writer was killed.
#[test]
fn a_sleeping_reader_learns_of_the_death() {
    for accesses in [3, 6, 9, 12] {
        explore(&format!("frames_death_wakes_{accesses}"), 10, 2, move |_| {
            let (kernel, pipe) = (Kernel::new(), Pipe::new());
            let victim = Process::new(&kernel, 1);
            pipe.ring().hold(End::Writer, &victim).expect("few");
            let theirs = Arc::clone(&pipe);
            let thread = thread::spawn(move || {
                let sent = Cell::new(false);
                let done = victim.run_until_killed(accesses, &[], || {
                    let done = theirs.try_send(&victim, &mut FrameWriter::default(), 1, 4, true);
                    sent.set(done.is_some());
                });
                if done.is_some() {
                    victim.die(&[]);
                }
                sent.get()
            });
            let me = Process::new(&kernel, 2);
            let (all, end) = pipe.receive_all(&me, &mut FrameReader::default());
            let sent = thread.join().expect("the model thread ends well");
            assert_eq!(end, Presence::Died);
            assert!(all == [1] || all.is_empty() && !sent, "{all:?}, sent: {sent}");
        });
    }
}

/// A reader is killed before each of its shared accesses in turn; the next one has what the first had not taken, in step.
#[test]
fn what_a_killed_reader_had_not_taken_is_received_by_the_next() {
    let mut ends = BTreeSet::new();
    for words in [3, 4] {
        for accesses in 0..24 {
            ends.extend(explore(&format!("frames_reader_dies_{words}_{accesses}"), 1, 2, move |outcome| {
                let (kernel, pipe) = (Kernel::new(), Pipe::new());
                let me = Process::new(&kernel, 2);
                let mut writer = FrameWriter::default();
                assert!(pipe.try_send(&me, &mut writer, 1, words, true).is_some());
                let victim = beside(&kernel, &pipe, 1, move |me, pipe| {
                    let got = Cell::new(None);
                    let all = me.run_until_killed(accesses, &[], || {
                        got.set(pipe.try_receive(me, &mut FrameReader::default(), &mut None, true));
                    });
                    (got.get(), all.is_some())
                });
                // Beside the short one there is room for it from the beginning.
                let beside = words == 3;
                assert!(!beside || pipe.try_send(&me, &mut writer, 2, 1, true).is_some());
                let (first, lived) = victim.join().expect("the model thread ends well");
                let heir = Process::new(&kernel, 3);
                let (mut reader, mut value) = (FrameReader::default(), None);
                let take = |reader: &mut _, value: &mut _| pipe.try_receive(&heir, reader, value, true);
                let mut all: Vec<_> = first.into_iter().collect();
                all.extend(std::iter::from_fn(|| take(&mut reader, &mut value)));
                assert!(beside || pipe.try_send(&me, &mut writer, 2, 1, true).is_some());
                all.extend(std::iter::from_fn(|| take(&mut reader, &mut value)));
                // What it was taking may be gone with it.
                assert!(all == [1, 2] || all == [2] && !lived, "{all:?}");
                assert_eq!(pipe.ring().audit(), Ok(()));
                outcome.extend([words, u64::from(first.is_some()), all.len() as u64]);
            }));
        }
    }
    for wanted in [vec![3, 0, 2], vec![3, 0, 1], vec![3, 1, 2], vec![4, 0, 2], vec![4, 0, 1]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}

/// Of two who come for the turn of a dead one, one gets it.
#[test]
fn a_dead_ones_turn_is_taken_once() {
    explore("frames_turn_of_the_dead", 5, 3, |_| {
        let (kernel, pipe) = (Kernel::new(), Pipe::new());
        let before = Process::new(&kernel, 3);
        FrameWriter::default().take_turn(pipe.ring(), &before).expect("free");
        before.die(&[]);
        let claim = |me: &Process, pipe: &Pipe| FrameWriter::default().take_turn(pipe.ring(), me);
        let other = beside(&kernel, &pipe, 1, claim);
        let me = Process::new(&kernel, 2);
        let (mine, theirs) = (claim(&me, &pipe), other.join().expect("ends well"));
        assert_ne!(mine.is_ok(), theirs.is_ok());
        assert_eq!(mine.err().or(theirs.err()), Some(NoTurn::Taken));
    });
}
