//! The protocol, one shared access after another.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use crate::explore::Config;

/// What can be changed for the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    TailBeforeBytes,
    HeadBeforeBytes,
    NoSkip,
    NoTurnToWrite,
    NoTurnToRead,
    TurnGivenBackInFrame,
    NoAbort,
    PendingAfterBegin,
    PendingClearedEarly,
    EndingNotNoted,
    NoRoomKept,
    ReaderDoesNotAbort,
    RestNotPassedOver,
    NoWakeUp,
    NoWakeUpForRoom,
    NotWanted,
    WantedClearedLate,
    NoLastLook,
    CameNotRead,
    DeadKeepTurns,
}

/// Words of the ring; of a frame that goes whole at the most; of a part.
const RING: u8 = 8;
const WHOLE_MAX: u8 = 3;
const PART_MAX: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Whole,
    Skip,
    Begin,
    Part,
    Last,
    Abort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Word {
    Header(Kind, u8),
    /// Which frame's, and which of its words.
    Byte(u8, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pending {
    Nothing,
    Begun(u8),
    Ending(u8),
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    // An end that was lent.
    Hold,
    Came,
    GiveBack,
    // Writers; also a reader that ends the frame of a dead one.
    Take,
    Pending,
    NoteAbort,
    Abort,
    AbortTail,
    Clear,
    Tail,
    Room,
    NoteBegin,
    Begin,
    BeginTail,
    NoteBeginLate,
    Skip,
    Bytes,
    NoteEnd,
    Header,
    StoreTail,
    BytesLate,
    ClearEnd,
    // Readers.
    ReadTake,
    ReadHead,
    ReadTail,
    DeadWriter,
    CountBefore,
    Cell(u8),
    CountAfter,
    LastLook,
    Chunk,
    Copy,
    StoreHead,
    CopyLate,
    // Both.
    Pass,
    NotifyOther,
    LookWanted,
    ClearWanted,
    NotifyOwn,
    ClearWantedLate,
    Announce,
    Want,
    Sleep,
    LetGo,
    NotifyAll,
    Done,
}

/// Why a turn is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    Next,
    Wait,
    End,
    /// A reader that had the writers' turn.
    Read,
    /// The turn is not given back: a reader goes on.
    Over,
    /// Only with a bug: the frame goes on.
    GoOn,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    at: At,
    then: Then,
    /// Which of its frames.
    frame: u8,
    position: u8,
    other: u8,
    /// The chunk at work: its kind and length, and how many of its words are done.
    kind: Kind,
    len: u8,
    done: u8,
    /// Words of a frame in parts that are done, and its length; 0: in none.
    so_far: u8,
    total: u8,
    /// Which frame the bytes are of that a reader reads.
    of: u8,
    /// It has announced that it may sleep; what it waits for is a turn.
    announced: bool,
    busy: bool,
    came: u8,
}

#[derive(Clone, Debug, Hash)]
pub struct State {
    ring: [Word; RING as usize],
    tail: u8,
    head: u8,
    write_turn: u8,
    read_turn: u8,
    pending: Pending,
    wanted: [bool; 2],
    /// Who has announced that it may sleep, and was not notified since: writers, readers.
    listening: [u8; 2],
    /// Holds of each process of its end.
    cells: Vec<u8>,
    came: u8,
    dead: u8,
    processes: Vec<Process>,
    writers: u8,
    sent: u32,
    received: u32,
}

type Step = Result<(), &'static str>;

impl State {
    pub fn new(config: &Config) -> Self {
        let process = |at| Process {
            at,
            then: Then::Next,
            frame: 0,
            position: 0,
            other: 0,
            kind: Kind::Whole,
            len: 0,
            done: 0,
            so_far: 0,
            total: 0,
            of: 0,
            announced: false,
            busy: false,
            came: 0,
        };
        let writers = config.writers.len();
        let mut processes = vec![process(At::Take); writers];
        let mut cells = vec![1; writers + config.readers];
        if config.passed {
            processes[1].at = At::Hold;
            (cells[0], cells[1]) = (2, 0);
        }
        processes.extend(vec![process(if config.idle { At::Done } else { At::ReadTake }); config.readers]);
        Self {
            ring: [Word::Header(Kind::Skip, 99); RING as usize],
            tail: 0,
            head: 0,
            write_turn: 0,
            read_turn: 0,
            pending: Pending::Nothing,
            wanted: [false; 2],
            listening: [0; 2],
            cells,
            came: 1,
            dead: 0,
            processes,
            writers: writers as u8,
            sent: 0,
            received: 0,
        }
    }

    pub fn key(&self) -> u128 {
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (salt, self).hash(&mut hasher);
            hasher.finish()
        };
        u128::from(half(1)) << 64 | u128::from(half(2))
    }

    pub fn show(&self) -> String {
        format!(
            "tail {} head {} turns {} {} {:?} wanted {:?} listening {:?} dead {:b} sent {:b} received {:b} cells {:?}",
            self.tail,
            self.head,
            self.write_turn,
            self.read_turn,
            self.pending,
            self.wanted,
            self.listening,
            self.dead,
            self.sent,
            self.received,
            self.cells,
        )
    }

    pub fn place(&self, p: usize) -> String {
        format!("{:?}", self.processes[p].at)
    }

    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    pub fn killed(&self) -> u8 {
        self.dead.count_ones() as u8
    }

    fn is_dead(&self, p: usize) -> bool {
        self.dead >> p & 1 != 0
    }

    fn is_writer(&self, p: usize) -> bool {
        p < usize::from(self.writers)
    }

    pub fn can_die(&self, p: usize) -> bool {
        !self.is_dead(p) && self.processes[p].at != At::Done
    }

    pub fn can_step(&self, p: usize) -> bool {
        let end = usize::from(!self.is_writer(p));
        let asleep = self.processes[p].at == At::Sleep && self.listening[end] >> p & 1 != 0;
        self.can_die(p) && !asleep
    }

    /// Whoever sleeps is woken by a death.
    pub fn kill(&mut self, p: usize) {
        self.dead |= 1 << p;
        self.listening = [0; 2];
        let it = &mut self.processes[p];
        // What it knew dies with it.
        *it = Process { at: At::Done, ..it.clone() };
        (it.position, it.other, it.so_far, it.total, it.of, it.came, it.done) = (0, 0, 0, 0, 0, 0, 0);
        (it.then, it.announced, it.busy) = (Then::Next, false, false);
    }

    pub fn at_rest(&self, config: &Config) -> Step {
        let readers = usize::from(self.writers)..self.processes();
        // Who waits for the next frame of somebody who has no more, but is still there.
        let somebody_stays = (0..usize::from(self.writers)).any(|p| !self.is_dead(p) && self.cells[p] > 0);
        let may_sleep = |p: usize| {
            let in_frame = self.processes[p].total > 0;
            !self.is_writer(p) && somebody_stays && self.head == self.tail && !in_frame
        };
        if (0..self.processes()).any(|p| self.can_die(p) && !may_sleep(p)) {
            return Err("asleep for ever");
        }
        let killed = readers.clone().filter(|&p| self.is_dead(p)).count();
        let missing = (self.sent & !self.received).count_ones() as usize;
        // Who died with an end that was on its way took that along.
        let lost_end = config.passed && self.is_dead(0);
        if missing > killed && killed < readers.len() && !lost_end && !config.idle {
            return Err("sent, and not received");
        }
        Ok(())
    }

    fn frame_bit(p: usize, frame: u8) -> u8 {
        p as u8 * 4 + frame
    }

    fn write(&mut self, position: u8, word: Word) -> Step {
        if position - self.head >= RING {
            return Err("written over what was not read");
        }
        self.ring[usize::from(position % RING)] = word;
        Ok(())
    }

    /// A frame's words up to here would not lie in one piece.
    fn skip(bug: Option<Bug>, tail: u8, len: u8) -> u8 {
        let at = (tail + 1) % RING;
        if at + len > RING && bug != Some(Bug::NoSkip) { RING - at + 1 } else { 0 }
    }

    fn receive(&mut self, frame: u8) -> Step {
        if self.received >> frame & 1 != 0 {
            return Err("received twice");
        }
        let later = (frame + 1..(frame / 4 + 1) * 4).any(|frame| self.received >> frame & 1 != 0);
        if later {
            return Err("out of order");
        }
        self.received |= 1 << frame;
        Ok(())
    }

    /// One shared access of `p`, and what follows from it without another.
    pub fn step(&mut self, config: &Config, bug: Option<Bug>, p: usize) -> Step {
        let has = |wanted: Bug| bug == Some(wanted);
        let mut it = self.processes[p].clone();
        let writer = self.is_writer(p);
        let end = usize::from(!writer);
        let me = p as u8 + 1;
        let lengths = if writer { config.writers[p] } else { &[] };
        let mut step = || -> Step {
            it.at = match it.at {
                At::Hold => {
                    self.cells[p] += 1;
                    At::Came
                }
                At::Came => {
                    self.came += 1;
                    At::GiveBack
                }
                At::GiveBack => {
                    self.cells[0] -= 1;
                    At::Take
                }

                // ---- Writing
                At::Take if usize::from(it.frame) == lengths.len() && config.stay => At::Done,
                At::Take if usize::from(it.frame) == lengths.len() => {
                    self.cells[p] -= 1;
                    At::NotifyAll
                }
                At::Take if has(Bug::NoTurnToWrite) => At::Tail,
                At::Take => match self.write_turn {
                    0 => {
                        self.write_turn = me;
                        At::Tail
                    }
                    owner if self.is_dead(usize::from(owner) - 1) && !has(Bug::DeadKeepTurns) => {
                        self.write_turn = me;
                        At::Pending
                    }
                    _ => {
                        it.busy = true;
                        if it.announced { At::Sleep } else { At::Announce }
                    }
                },
                At::Pending => {
                    it.position = self.tail;
                    let unfinished = match self.pending {
                        Pending::Nothing => false,
                        Pending::Begun(at) => at != self.tail,
                        Pending::Ending(at) => at == self.tail,
                    };
                    if unfinished && !has(Bug::NoAbort) { At::NoteAbort } else { At::Clear }
                }
                At::NoteAbort => {
                    if !has(Bug::EndingNotNoted) {
                        self.pending = Pending::Ending(it.position);
                    }
                    At::Abort
                }
                At::Abort => {
                    self.write(it.position, Word::Header(Kind::Abort, 0))?;
                    At::AbortTail
                }
                At::AbortTail => {
                    self.tail = it.position + 1;
                    At::Clear
                }
                At::Clear => {
                    self.pending = Pending::Nothing;
                    (it.so_far, it.total) = if writer { (0, 0) } else { (it.so_far, it.total) };
                    if it.then == Then::End || !writer { At::Pass } else { At::Tail }
                }
                At::Tail => {
                    it.position = self.tail;
                    At::Room
                }
                At::Room => {
                    let free = RING - (it.position - self.head);
                    let len = lengths[usize::from(it.frame)];
                    let kept = u8::from(!has(Bug::NoRoomKept));
                    let whole = len <= WHOLE_MAX;
                    let skip = Self::skip(bug, it.position, len);
                    let readers = usize::from(self.writers)..self.processes.len();
                    let nobody =
                        it.announced && readers.clone().all(|r| self.is_dead(r) || self.cells[r] == 0);
                    it.done = 0;
                    if nobody {
                        it.then = Then::End;
                        if it.total > 0 { At::NoteAbort } else { At::Pass }
                    } else if whole && free >= skip + 1 + len {
                        (it.kind, it.len) = (Kind::Whole, len);
                        match (skip > 0, has(Bug::TailBeforeBytes)) {
                            (true, _) => At::Skip,
                            (false, true) => At::Header,
                            (false, false) if len == 0 => At::Header,
                            (false, false) => At::Bytes,
                        }
                    } else if !whole && it.total == 0 && free > kept {
                        it.len = len;
                        if has(Bug::PendingAfterBegin) { At::Begin } else { At::NoteBegin }
                    } else if it.total > 0 && free > 1 + kept {
                        let left = it.total - it.so_far;
                        it.len = left.min(PART_MAX).min(free - 1 - kept);
                        it.kind = if it.len == left { Kind::Last } else { Kind::Part };
                        At::Bytes
                    } else if it.total > 0 {
                        if it.announced { At::Sleep } else { At::Announce }
                    } else {
                        it.then = Then::Wait;
                        At::Pass
                    }
                }
                At::NoteBegin => {
                    self.pending = Pending::Begun(it.position);
                    At::Begin
                }
                At::Begin => {
                    self.write(it.position, Word::Header(Kind::Begin, it.len))?;
                    At::BeginTail
                }
                At::BeginTail => {
                    it.position += 1;
                    self.tail = it.position;
                    (it.so_far, it.total) = (0, it.len);
                    self.stop_waiting(&mut it, p, end);
                    if has(Bug::PendingAfterBegin) { At::NoteBeginLate } else { At::NotifyOther }
                }
                At::NoteBeginLate => {
                    self.pending = Pending::Begun(it.position - 1);
                    At::NotifyOther
                }
                At::Skip => {
                    let len = RING - (it.position + 1) % RING;
                    self.write(it.position, Word::Header(Kind::Skip, len))?;
                    it.position += 1 + len;
                    if it.len > 0 && !has(Bug::TailBeforeBytes) { At::Bytes } else { At::Header }
                }
                At::Bytes => {
                    let frame = Self::frame_bit(p, it.frame);
                    self.write(it.position + 1 + it.done, Word::Byte(frame, it.so_far + it.done))?;
                    it.done += 1;
                    match it.done < it.len {
                        true => At::Bytes,
                        false if it.kind == Kind::Last && !has(Bug::EndingNotNoted) => At::NoteEnd,
                        false => At::Header,
                    }
                }
                At::NoteEnd => {
                    self.pending = Pending::Ending(it.position);
                    if has(Bug::PendingClearedEarly) {
                        self.pending = Pending::Nothing;
                    }
                    At::Header
                }
                At::Header => {
                    self.write(it.position, Word::Header(it.kind, it.len))?;
                    At::StoreTail
                }
                At::StoreTail => {
                    it.position += 1 + it.len;
                    self.tail = it.position;
                    self.stop_waiting(&mut it, p, end);
                    if it.total > 0 {
                        it.so_far += it.len;
                    }
                    match it.kind {
                        Kind::Part if has(Bug::TurnGivenBackInFrame) => {
                            it.then = Then::GoOn;
                            At::Pass
                        }
                        Kind::Part => At::NotifyOther,
                        _ => {
                            self.sent |= 1 << Self::frame_bit(p, it.frame);
                            it.then = Then::Next;
                            match it.kind {
                                Kind::Last => At::ClearEnd,
                                _ if has(Bug::TailBeforeBytes) && it.len > 0 => At::BytesLate,
                                _ => At::Pass,
                            }
                        }
                    }
                }
                At::BytesLate => {
                    let frame = Self::frame_bit(p, it.frame);
                    let position = it.position - it.len + it.done;
                    self.ring[usize::from(position % RING)] = Word::Byte(frame, it.done);
                    it.done += 1;
                    if it.done < it.len { At::BytesLate } else { At::Pass }
                }
                At::ClearEnd => {
                    self.pending = Pending::Nothing;
                    (it.so_far, it.total) = (0, 0);
                    At::Pass
                }

                // ---- Reading
                At::ReadTake if has(Bug::NoTurnToRead) => At::ReadHead,
                At::ReadTake => match self.read_turn {
                    owner if owner == 0 || self.is_dead(usize::from(owner) - 1) => {
                        self.read_turn = me;
                        At::ReadHead
                    }
                    _ => {
                        it.busy = true;
                        if it.announced { At::Sleep } else { At::Announce }
                    }
                },
                At::ReadHead => {
                    it.position = self.head;
                    At::ReadTail
                }
                At::ReadTail => {
                    if self.tail != it.position {
                        At::Chunk
                    } else if it.total > 0 {
                        At::DeadWriter
                    } else {
                        At::CountBefore
                    }
                }
                At::DeadWriter => {
                    let owner = usize::from(self.write_turn);
                    if owner > 0 && self.is_dead(owner - 1) && !has(Bug::ReaderDoesNotAbort) {
                        self.write_turn = me;
                        it.other = it.position;
                        it.then = Then::Read;
                        At::Pending
                    } else if it.announced {
                        At::Sleep
                    } else {
                        At::Announce
                    }
                }
                At::CountBefore => {
                    it.came = self.came;
                    At::Cell(self.writers - 1)
                }
                At::Cell(slot) => {
                    let holds = self.cells[usize::from(slot)] > 0 && !self.is_dead(usize::from(slot));
                    match slot {
                        _ if holds => {
                            it.then = Then::Wait;
                            At::Pass
                        }
                        0 => At::CountAfter,
                        _ => At::Cell(slot - 1),
                    }
                }
                At::CountAfter if self.came != it.came && !has(Bug::CameNotRead) => At::CountBefore,
                At::CountAfter => At::LastLook,
                At::LastLook => {
                    if self.tail != it.position && !has(Bug::NoLastLook) {
                        At::Chunk
                    } else {
                        it.then = Then::End;
                        At::Pass
                    }
                }
                At::Chunk => {
                    let Word::Header(kind, len) = self.ring[usize::from(it.position % RING)] else {
                        return Err("out of step");
                    };
                    (it.kind, it.len, it.done) = (kind, len, 0);
                    let within = it.total > 0;
                    match kind {
                        Kind::Whole | Kind::Begin if within => {
                            return Err("a frame in the middle of another");
                        }
                        Kind::Part | Kind::Last if !within && has(Bug::RestNotPassedOver) => {
                            return Err("out of step");
                        }
                        Kind::Whole if (it.position + 1) % RING + len > RING => {
                            return Err("not in one piece");
                        }
                        Kind::Whole if len > 0 && !has(Bug::HeadBeforeBytes) => At::Copy,
                        Kind::Part | Kind::Last if within => At::Copy,
                        _ => At::StoreHead,
                    }
                }
                At::Copy | At::CopyLate => {
                    let start = if it.at == At::Copy { it.position } else { it.position - 1 - it.len };
                    let word = self.ring[usize::from((start + 1 + it.done) % RING)];
                    let Word::Byte(frame, index) = word else {
                        return Err("bytes of something else");
                    };
                    if it.so_far + it.done == 0 {
                        it.of = frame;
                    }
                    if frame != it.of || index != it.so_far + it.done {
                        return Err("bytes of something else");
                    }
                    it.done += 1;
                    match it.at {
                        at if it.done < it.len => at,
                        At::Copy => At::StoreHead,
                        _ => {
                            self.receive(it.of)?;
                            At::Pass
                        }
                    }
                }
                At::StoreHead => {
                    let bytes = if it.kind == Kind::Begin { 0 } else { it.len };
                    it.position += 1 + bytes;
                    self.head = it.position;
                    self.stop_waiting(&mut it, p, end);
                    it.then = Then::Next;
                    match (it.kind, it.total > 0) {
                        (Kind::Whole, _) if it.len == 0 => {
                            // Nothing says whose it is: the next that has no words.
                            let empty = |frame: &u8| {
                                let lengths = config.writers.get(usize::from(frame / 4));
                                lengths.and_then(|l| l.get(usize::from(frame % 4))) == Some(&0)
                                    && self.received >> frame & 1 == 0
                            };
                            let frame = (0..self.writers * 4).find(empty).ok_or("received twice")?;
                            self.receive(frame)?;
                            At::Pass
                        }
                        (Kind::Whole, _) if has(Bug::HeadBeforeBytes) => At::CopyLate,
                        (Kind::Whole, _) => {
                            self.receive(it.of)?;
                            At::Pass
                        }
                        (Kind::Begin, _) => {
                            it.then = Then::Over;
                            (it.so_far, it.total) = (0, it.len);
                            At::NotifyOther
                        }
                        (Kind::Last, true) => {
                            if it.so_far + it.len != it.total {
                                return Err("a part is missing");
                            }
                            self.receive(it.of)?;
                            (it.so_far, it.total) = (0, 0);
                            At::Pass
                        }
                        (Kind::Abort, true) => {
                            it.then = Then::Over;
                            (it.so_far, it.total) = (0, 0);
                            At::NotifyOther
                        }
                        (Kind::Part, true) => {
                            it.then = Then::Over;
                            it.so_far += it.len;
                            At::NotifyOther
                        }
                        // Passed over.
                        _ => {
                            it.then = Then::Over;
                            At::NotifyOther
                        }
                    }
                }

                // ---- Giving back, sleeping
                At::Pass => {
                    if writer || it.then == Then::Read {
                        self.write_turn = if self.write_turn == me { 0 } else { self.write_turn };
                    } else {
                        self.read_turn = if self.read_turn == me { 0 } else { self.read_turn };
                    }
                    At::NotifyOther
                }
                At::NotifyOther => {
                    // A reader that has ended a frame tells itself: it looks again.
                    let other = if it.then == Then::Read { 1 } else { 1 - end };
                    let silent = if other == 1 { Bug::NoWakeUp } else { Bug::NoWakeUpForRoom };
                    if !has(silent) {
                        self.listening[other] = 0;
                    }
                    At::LookWanted
                }
                At::LookWanted => {
                    let own = if it.then == Then::Read { 0 } else { end };
                    match self.wanted[own] {
                        true if has(Bug::WantedClearedLate) => At::NotifyOwn,
                        true => At::ClearWanted,
                        false => it.next(writer),
                    }
                }
                At::ClearWanted => {
                    self.wanted[if it.then == Then::Read { 0 } else { end }] = false;
                    At::NotifyOwn
                }
                At::NotifyOwn => {
                    self.listening[if it.then == Then::Read { 0 } else { end }] = 0;
                    if has(Bug::WantedClearedLate) { At::ClearWantedLate } else { it.next(writer) }
                }
                At::ClearWantedLate => {
                    self.wanted[if it.then == Then::Read { 0 } else { end }] = false;
                    it.next(writer)
                }
                At::Announce => {
                    self.listening[end] |= 1 << p;
                    it.announced = true;
                    if it.busy { At::Want } else { it.again(writer) }
                }
                At::Want => {
                    self.wanted[end] = !has(Bug::NotWanted);
                    it.busy = false;
                    it.again(writer)
                }
                At::Sleep => {
                    (it.announced, it.busy) = (false, false);
                    it.again(writer)
                }
                At::LetGo => {
                    self.cells[p] -= 1;
                    At::NotifyAll
                }
                At::NotifyAll => {
                    self.listening = [0; 2];
                    At::Done
                }
                At::Done => unreachable!("it makes no step"),
            };
            Ok(())
        };
        let result = step();
        self.processes[p] = it;
        result
    }

    /// What was waited for is there.
    fn stop_waiting(&mut self, it: &mut Process, p: usize, end: usize) {
        self.listening[end] &= !(1 << p);
        (it.announced, it.busy) = (false, false);
    }
}

impl Process {
    /// What is not used any more, so that states that differ in nothing else are the same.
    fn forget(&mut self, at: At) -> At {
        (self.len, self.done, self.other, self.came) = (0, 0, 0, 0);
        self.kind = Kind::Whole;
        if self.total == 0 {
            (self.so_far, self.of) = (0, 0);
        }
        if matches!(at, At::Take | At::ReadTake | At::LetGo | At::Sleep | At::Announce) && self.total == 0 {
            self.position = 0;
        }
        at
    }

    /// After the turn was given back, or in the middle of a frame.
    fn next(&mut self, writer: bool) -> At {
        let at = self.after(writer);
        self.forget(at)
    }

    fn after(&mut self, writer: bool) -> At {
        let then = std::mem::replace(&mut self.then, Then::Next);
        match then {
            Then::Read => {
                self.position = self.other;
                At::ReadTail
            }
            Then::GoOn => At::Take,
            Then::Wait if self.announced => At::Sleep,
            Then::Wait => At::Announce,
            Then::End => At::LetGo,
            Then::Next if writer && self.total > 0 => At::Room,
            Then::Next if writer => {
                self.frame += 1;
                At::Take
            }
            Then::Over => At::ReadTail,
            Then::Next => At::ReadTake,
        }
    }

    fn again(&mut self, writer: bool) -> At {
        let at = match (writer, self.total > 0) {
            (true, true) => At::Room,
            (true, false) => At::Take,
            (false, true) => At::ReadTail,
            (false, false) => At::ReadTake,
        };
        self.forget(at)
    }
}
