//! What an operation to be tested consists of: a first state, the victim's part, and what survivors look at.

use std::ops::Range;
use std::time::Duration;

use crossproc_segment::{SLOT_BYTES, Segment, SegmentOptions};

use crate::step::{Bystander, EarlyChecker, Memory, Point, Step, Verdict, die_by_trap, explain};

/// How long a survivor may take.
pub const DEADLINE: Duration = Duration::from_secs(6);
/// What survivors wait for a lock at most; less than [`DEADLINE`], so that they can say what they waited for.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// How far the victim had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// It had executed at least one instruction of the operation.
    pub begun: bool,
    /// The operation had returned.
    pub returned: bool,
    /// In a double crash: whether the first survivor's recovery had returned when it was killed in turn.
    pub second: Option<bool>,
}

impl After {
    fn to_byte(self) -> u8 {
        let second = self.second.map_or(0, |returned| 4 | u8::from(returned) << 3);
        u8::from(self.begun) | u8::from(self.returned) << 1 | second
    }

    fn from_byte(byte: u8) -> Self {
        let second = (byte & 4 != 0).then_some(byte & 8 != 0);
        Self { begun: byte & 1 != 0, returned: byte & 2 != 0, second }
    }
}

/// What a survivor found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// How wrong.
    pub verdict: Verdict,
    /// What it saw.
    pub text: String,
}

/// Nothing, or what is wrong.
pub type Found = Result<(), Bad>;

macro_rules! bad {
    ($($name:ident: $verdict:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        pub fn $name<T>(text: impl Into<String>) -> Result<T, Bad> {
            Err(Bad { verdict: Verdict::$verdict, text: text.into() })
        }
    )*};
}
bad! {
    taken: Taken, "The one message that a dead copying receiver was taking is not there.";
    wedged: Wedged, "The survivor waited in vain.";
    lost: Lost, "What had been done is not there.";
    duplicated: Duplicated, "Something is there twice.";
    corrupt: Corrupt, "No sequence of whole operations leads here.";
}

/// Fails as corrupt, unless `holds`.
///
/// # Errors
///
/// See there.
pub fn expect(holds: bool, text: impl FnOnce() -> String) -> Found {
    if holds { Ok(()) } else { corrupt(text()) }
}

/// One operation in one first state.
pub struct Operation {
    /// As users write it: `Lock::lock`.
    pub name: &'static str,
    /// The first state: `free`.
    pub state: &'static str,
    /// Other functions of the library that it runs through as well.
    pub covers: &'static [&'static str],
    /// It starts threads: those would inherit a trap flag.
    pub starts_threads: bool,
    /// Its victim's memory can be restored, and the survivor's first operation killed in turn.
    pub doubles: bool,
    /// It hardly differs from another one, or takes long: a short run leaves it out.
    pub minor: bool,
    /// For a bug that was put there: in which modes it must be found.
    pub planted: &'static [&'static str],
    stage: Box<dyn Fn() -> Box<dyn Stage>>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation")
            .field("name", &self.name)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Operation {
    /// An operation on whatever `stage` sets up.
    pub fn new<S: Stage + 'static>(
        name: &'static str,
        state: &'static str,
        stage: impl Fn() -> S + 'static,
    ) -> Self {
        let stage = Box::new(move || -> Box<dyn Stage> { Box::new(stage()) });
        Self {
            name,
            state,
            covers: &[],
            starts_threads: false,
            doubles: false,
            minor: false,
            planted: &[],
            stage,
        }
    }

    /// Names other functions that it runs through.
    #[must_use]
    pub fn covers(mut self, names: &'static [&'static str]) -> Self {
        self.covers = names;
        self
    }

    /// Leaves it out of short runs.
    #[must_use]
    pub fn minor(mut self, minor: bool) -> Self {
        self.minor = minor;
        self
    }

    /// Says that it starts threads.
    #[must_use]
    pub fn starts_threads(mut self) -> Self {
        self.starts_threads = true;
        self
    }

    /// Says that it has a bug, which these modes must find.
    #[must_use]
    pub fn planted(mut self, modes: &'static [&'static str]) -> Self {
        self.planted = modes;
        self
    }

    /// Sets up its first state.
    #[must_use]
    pub fn stage(&self) -> Box<dyn Stage> {
        (self.stage)()
    }

    /// `Lock::lock (free)`.
    #[must_use]
    pub fn title(&self) -> String {
        if self.state.is_empty() { self.name.to_owned() } else { format!("{} ({})", self.name, self.state) }
    }
}

/// The processes and the memory of one operation.
pub trait Stage {
    /// The memory that victim and survivors share; `None` if only they know it.
    fn memory(&self) -> Option<Memory>;
    /// Back to the first state, byte for byte. All victims and survivors are dead.
    fn reset(&mut self);
    /// The victim's part, with one [`marked`](crate::step::marked) operation.
    fn victim(&self);
    /// The first survivor's part in a double crash, with one [`marked`](crate::step::marked) operation.
    fn recover(&self);
    /// What a survivor looks at, and does: it uses the object fully.
    ///
    /// # Errors
    ///
    /// What it found wrong.
    fn check(&self, after: After) -> Found;
    /// Who can be there before the victim dies, if anybody can.
    fn seat(&self) -> Option<Seat<'_>> {
        None
    }
    /// As [`check`](Self::check), by one who is there before: it gets ready, and waits to be told how far the victim had come.
    ///
    /// # Errors
    ///
    /// As there.
    fn check_early(&self, wait: &mut dyn FnMut() -> After) -> Found {
        let after = wait();
        self.check(after)
    }
    /// The segment and what is in it, for modes that look into it.
    fn segment(&self) -> Option<&Segment> {
        None
    }
}

/// As [`done`], and a guard in it is never dropped.
pub fn held<T>(it: T) {
    std::mem::forget(it);
}

/// A participant that lives on beside the victim and does nothing, and in whose place a survivor can be put: one that was there
/// before the death, and has to find out about it.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// The memory before that one came. Who comes then gets its slot, and its generation.
    pub before: &'a [u8],
    /// That one's process id.
    pub pid: u32,
}

/// Where the slot of this process, which lives, is in an image of a segment: it begins with the process's life, which is repeated.
#[must_use]
pub fn slot_of(image: &[u8], pid: u32) -> Option<Range<usize>> {
    let word = |at: usize| {
        image.get(at..at + 8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    };
    let starts = (0..image.len()).step_by(8);
    let mut found = starts.filter(|&at| word(at).is_some_and(|life| life >> 40 == u64::from(pid)));
    // A dead one in the image may have had the same number, when many processes come and go beside the harness.
    let born = start_time(pid);
    let is_its = |at: usize| word(at + 40) == word(at) && (born.is_none() || word(at + 24) == born);
    found.find(|&at| is_its(at)).map(|at| at..at + SLOT_BYTES)
}

/// When a process was started, in the kernel's clock ticks.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name, which may have anything in it: the 22nd field.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A survivor that was there before the victim: it has the seat, and waits.
#[derive(Debug)]
pub struct EarlySurvivor {
    checker: EarlyChecker,
    slot: Range<usize>,
    bytes: Vec<u8>,
}

impl EarlySurvivor {
    /// Puts the memory back to before, and lets a survivor come. Victims may come then.
    ///
    /// # Panics
    ///
    /// If it does not get the seat.
    #[must_use]
    pub fn start(stage: &dyn Stage, seat: Seat<'_>, memory: Memory, first: &[u8]) -> Self {
        memory.restore(seat.before);
        let checker = EarlyChecker::start(DEADLINE, |wait| {
            verdict(stage.check_early(&mut || After::from_byte(wait())))
        });
        let image = memory.image();
        let slot = slot_of(&image, checker.pid().unsigned_abs()).expect("the survivor takes part");
        assert_eq!(slot_of(first, seat.pid), Some(slot.clone()), "the survivor has the seat");
        Self { checker, bytes: image[slot.clone()].to_vec(), slot }
    }

    /// An image in which the seat is this one's.
    #[must_use]
    pub fn seated(&self, mut image: Vec<u8>) -> Vec<u8> {
        image[self.slot.clone()].copy_from_slice(&self.bytes);
        image
    }

    /// Lets it look.
    #[must_use]
    pub fn judge(self, after: After) -> Verdict {
        self.checker.judge(after.to_byte())
    }
}

fn verdict(found: Found) -> Verdict {
    match found {
        Ok(()) => Verdict::Ok,
        Err(bad) => {
            explain(&bad.text);
            bad.verdict
        }
    }
}

/// For the end of a victim's part: what came of the operation is of no interest.
pub fn done<T>(_: T) {}

/// Runs the check of a stage as a process of its own.
pub fn survive(stage: &dyn Stage, after: After) -> Verdict {
    crate::step::with_deadline(DEADLINE, || verdict(stage.check(after)))
}

/// What a process does with objects.
pub type Part<S> = Box<dyn Fn(&S)>;
/// What a survivor looks at.
pub type Check<S> = Box<dyn Fn(&S, After) -> Found>;
/// One of several ways to call the same thing: its name, the victim's part, and whether a short run leaves it out.
pub type Call<S> = (&'static str, fn(&S), bool);

/// What happened before all else.
enum Before<S> {
    /// A process did this, and was killed then.
    Done(Part<S>),
    /// A process was killed in the midst of this marked operation: right after the instruction that made the condition true, or
    /// right before it.
    Amid { part: Part<S>, has_happened: fn(&S) -> bool, after: bool },
}

/// Objects in an anonymous segment: what most operations are about.
pub struct OnObjects<S> {
    find: fn(&Segment) -> S,
    objects: u32,
    windows: u64,
    dead: Vec<Before<S>>,
    living: Vec<Part<S>>,
    victim: Part<S>,
    recover: Option<Part<S>>,
    check: Check<S>,
}

impl<S> std::fmt::Debug for OnObjects<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnObjects").finish_non_exhaustive()
    }
}

/// Objects that `find` makes or finds in a segment; each process calls it for itself.
#[must_use]
pub fn on<S: 'static>(find: fn(&Segment) -> S) -> OnObjects<S> {
    OnObjects {
        find,
        objects: 4,
        windows: 0,
        dead: Vec::new(),
        living: Vec::new(),
        victim: Box::new(|_| ()),
        recover: None,
        check: Box::new(|_, _| Ok(())),
    }
}

impl<S: 'static> OnObjects<S> {
    /// The segment has room for so many objects.
    #[must_use]
    pub fn objects(mut self, most: u32) -> Self {
        self.objects = most;
        self
    }

    /// The segment has so many bytes of windows.
    #[must_use]
    pub fn windows(mut self, bytes: u64) -> Self {
        self.windows = bytes;
        self
    }

    /// Before all else, a process does this and is killed.
    #[must_use]
    pub fn dead(mut self, part: impl Fn(&S) + 'static) -> Self {
        self.dead.push(Before::Done(Box::new(part)));
        self
    }

    /// As [`dead`](Self::dead), but it was killed in the midst of the part's marked operation: with the last instruction before
    /// which `has_happened` is false, or just without it.
    #[must_use]
    pub fn dead_amid(
        mut self,
        part: impl Fn(&S) + 'static,
        has_happened: fn(&S) -> bool,
        after: bool,
    ) -> Self {
        self.dead.push(Before::Amid { part: Box::new(part), has_happened, after });
        self
    }

    /// Before the victim starts, another process has done this, and lives on.
    #[must_use]
    pub fn living(mut self, part: impl Fn(&S) + 'static) -> Self {
        self.living.push(Box::new(part));
        self
    }

    /// The victim's part: sets up what it needs, and has one marked operation.
    #[must_use]
    pub fn victim(mut self, part: impl Fn(&S) + 'static) -> Self {
        self.victim = Box::new(part);
        self
    }

    /// The first thing that a survivor does, marked; it is killed in turn.
    #[must_use]
    pub fn recover(mut self, part: impl Fn(&S) + 'static) -> Self {
        self.recover = Some(Box::new(part));
        self
    }

    /// What a survivor looks at.
    #[must_use]
    pub fn check(mut self, check: impl Fn(&S, After) -> Found + 'static) -> Self {
        self.check = Box::new(check);
        self
    }

    /// The finished table entry.
    #[must_use]
    pub fn named(self, name: &'static str, state: &'static str) -> Operation {
        let doubles = self.recover.is_some();
        let parts = std::rc::Rc::new(self);
        let mut operation = Operation::new(name, state, move || ObjectStage::new(std::rc::Rc::clone(&parts)));
        operation.doubles = doubles;
        operation
    }
}

/// Leaves the memory as [`OnObjects::dead_amid`] says.
fn kill_amid<S>(
    segment: &Segment,
    find: fn(&Segment) -> S,
    part: &Part<S>,
    has_happened: fn(&S) -> bool,
    after: bool,
) {
    let memory = Memory::of(segment);
    let first = memory.image();
    // The memory after so many instructions, and whether it has happened. Each is kept, not made again: clocks make an
    // operation a few instructions longer or shorter each time.
    let try_at = |k| {
        memory.restore(&first);
        let victim = || {
            let objects = find(&joined(segment));
            part(&objects);
            std::mem::forget(objects);
        };
        let (came, _) = die_by_trap(victim, Point::Instruction(k), DEADLINE);
        let image = memory.image();
        (came == Step::End || has_happened(&find(segment)), image)
    };
    let mut before = (0, memory.image());
    let mut behind = loop {
        let k = (before.0 * 2).max(1);
        match try_at(k) {
            (true, image) => break (k, image),
            (false, image) => before = (k, image),
        }
    };
    while behind.0 - before.0 > 1 {
        let k = before.0.midpoint(behind.0);
        match try_at(k) {
            (true, image) => behind = (k, image),
            (false, image) => before = (k, image),
        }
    }
    memory.restore(if after { &behind.1 } else { &before.1 });
}

struct ObjectStage<S> {
    parts: std::rc::Rc<OnObjects<S>>,
    segment: Segment,
    before: Vec<u8>,
    first: Vec<u8>,
    seated: Bystander,
    _living: Vec<Bystander>,
}

impl<S> ObjectStage<S> {
    fn new(parts: std::rc::Rc<OnObjects<S>>) -> Self {
        let options = SegmentOptions::new()
            .participants(8)
            .objects(parts.objects)
            .windows(parts.windows)
            .timeout(Duration::from_secs(1));
        let segment = options.anonymous(4096).expect("memory for a segment");
        drop((parts.find)(&segment));
        // Whoever drops its objects has left, and holds nothing any more.
        let join = |part: &Part<S>| {
            Bystander::start(|| {
                let objects = (parts.find)(&joined(&segment));
                part(&objects);
                std::mem::forget(objects);
            })
        };
        for before in &parts.dead {
            match before {
                Before::Done(part) => drop(join(part)),
                Before::Amid { part, has_happened, after } => {
                    kill_amid(&segment, parts.find, part, *has_happened, *after);
                }
            }
        }
        let living = parts.living.iter().map(&join).collect();
        let before = Memory::of(&segment).image();
        let nothing: Part<S> = Box::new(|_| ());
        let seated = join(&nothing);
        let first = Memory::of(&segment).image();
        Self { parts, segment, before, first, seated, _living: living }
    }

    fn objects(&self) -> S {
        (self.parts.find)(&joined(&self.segment))
    }
}

/// In a forked child: the segment, joined.
fn joined(segment: &Segment) -> Segment {
    segment.attach_again().expect("a forked child attaches")
}

impl<S: 'static> Stage for ObjectStage<S> {
    fn memory(&self) -> Option<Memory> {
        Some(Memory::of(&self.segment))
    }
    fn reset(&mut self) {
        Memory::of(&self.segment).restore(&self.first);
    }
    fn victim(&self) {
        (self.parts.victim)(&self.objects());
    }
    fn recover(&self) {
        if let Some(recover) = &self.parts.recover {
            recover(&self.objects());
        }
    }
    fn check(&self, after: After) -> Found {
        (self.parts.check)(&self.objects(), after)
    }
    fn seat(&self) -> Option<Seat<'_>> {
        Some(Seat { before: &self.before, pid: self.seated.pid().unsigned_abs() })
    }
    fn check_early(&self, wait: &mut dyn FnMut() -> After) -> Found {
        let objects = self.objects();
        (self.parts.check)(&objects, wait())
    }
    fn segment(&self) -> Option<&Segment> {
        Some(&self.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_one_with_the_same_number_is_not_taken_for_the_living() {
        let pid = std::process::id();
        let born = start_time(pid).expect("of this process");
        let mut image = vec![0; 4 * SLOT_BYTES];
        for (slot, start) in [(1, born.wrapping_sub(7)), (2, born)] {
            let life = u64::from(pid) << 40 | slot;
            let words = [(0, life), (24, start), (40, life)];
            for (at, value) in words {
                image[slot as usize * SLOT_BYTES + at..][..8].copy_from_slice(&value.to_ne_bytes());
            }
        }
        assert_eq!(slot_of(&image, pid), Some(2 * SLOT_BYTES..3 * SLOT_BYTES));
    }
}
