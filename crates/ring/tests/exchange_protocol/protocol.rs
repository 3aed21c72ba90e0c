//! Sending, receiving, closing; lanes; sleeping.

use crate::explore::{Cx, Run};
use crate::machine::{Bug, Machine, Op, Op::*, Shown, address, show_word};
use crate::state::*;

pub const TAIL: usize = 0;
pub const HEAD: usize = 1;

// Events.
pub const NOT_EMPTY: usize = 0;
pub const NOT_FULL: usize = 1;
const ALL: usize = usize::MAX;

/// What becomes of the value, if the ring is inline.
#[derive(Clone, Copy)]
enum Value {
    /// Sent, where this other one is.
    Sent(u16, u16),
    /// Received, and loaded before.
    Taken(u16),
}

/// How a slot's word compares with what is needed at a position.
#[derive(PartialEq, Eq)]
enum Found {
    Here,
    /// Not yet: there is no room, or no message.
    Before,
    /// That position is done.
    Passed,
    Damaged,
}

impl Machine<'_> {
    // ---------------------------------------------------------------------------------------------------
    // Words

    pub fn load(&self, cx: &mut Cx, word: usize) -> Run<u16> {
        cx.access(|cx| {
            let value = cx.s.words[word];
            cx.say(|| format!("{} is {}", address(word), show_word(word, value)));
            Ok(value)
        })
    }

    pub fn store(&self, cx: &mut Cx, word: usize, value: u16) -> Run<()> {
        cx.access(|cx| {
            cx.say(|| format!("{} := {}", address(word), show_word(word, value)));
            cx.s.words[word] = value;
            Ok(0)
        })
        .map(drop)
    }

    pub fn cas(&self, cx: &mut Cx, word: usize, from: u16, to: u16) -> Run<bool> {
        cx.access(|cx| {
            let done = cx.s.words[word] == from;
            if done {
                cx.s.words[word] = to;
            }
            let how = if done { "exchanged for" } else { "could not be exchanged for" };
            cx.say(|| format!("{} {how} {}", address(word), show_word(word, to)));
            Ok(u16::from(done))
        })
        .map(|done| done == 1)
    }

    /// A slot's word and its value at once.
    fn cas_both(&self, cx: &mut Cx, index: usize, from: [u16; 2], to: [u16; 2]) -> Run<bool> {
        let (word, value) = (SLOT + index, SLOT_VALUE + index);
        cx.access(|cx| {
            let done = [cx.s.words[word], cx.s.words[value]] == from;
            if done {
                [cx.s.words[word], cx.s.words[value]] = to;
            }
            let how = if done { "exchanged for" } else { "could not be exchanged for" };
            cx.say(|| format!("{} {how} {} with {}", address(word), show_word(word, to[0]), to[1]));
            Ok(u16::from(done))
        })
        .map(|done| done == 1)
    }

    pub fn lane(&self, cx: &Cx) -> usize {
        usize::from(cx.s.processes[cx.me].lane)
    }

    // ---------------------------------------------------------------------------------------------------
    // Positions

    fn split(&self, position: u8) -> (u16, usize) {
        let n = self.config.slots;
        ((usize::from(position) / n) as u16, usize::from(position) % n)
    }

    fn join(&self, lap: u16, index: usize) -> u8 {
        (usize::from(lap % self.config.laps) * self.config.slots + index) as u8
    }

    /// The position that was the first one when so many had been exchanged there.
    pub fn ever(&self, moved: usize) -> u8 {
        let n = self.config.slots;
        self.join(self.config.first_lap + (moved / n) as u16, moved % n)
    }

    fn after(&self, position: u8) -> u8 {
        let (lap, index) = self.split(position);
        if index + 1 == self.config.slots { self.join(lap + 1, 0) } else { self.join(lap, index + 1) }
    }

    /// `a - b` on a circle, less than half of which they are apart.
    fn difference(a: u16, b: u16, circle: u16) -> i32 {
        let (circle, d) = (i32::from(circle), i32::from(a) - i32::from(b));
        (d + circle / 2).rem_euclid(circle) - circle / 2
    }

    fn is_after(&self, a: u8, b: u8) -> bool {
        Self::difference(a.into(), b.into(), self.config.laps * self.config.slots as u16) > 0
    }

    /// `full`: what is needed.
    fn compare(&self, w: Slot, lap: u16, full: bool) -> Found {
        let phase = |lap: u16, full: bool| 2 * lap + u16::from(full);
        match Self::difference(phase(w.lap, w.full), phase(lap, full), 2 * self.config.laps) {
            0 => Found::Here,
            -1 => Found::Before,
            1.. => Found::Passed,
            _ => Found::Damaged,
        }
    }

    /// The slot shows that my position is done: on to the next, or as far as the slot or a hint shows. A hint may
    /// be any position that was the first one once.
    fn catch_up(&self, cx: &mut Cx, side: usize, w: Slot, index: usize) -> Run<()> {
        let next = self.after(cx.s.processes[cx.me].positions[side]);
        let to = match cx.choose(if self.config.jumps { 3 + usize::from(cx.s.moved[side]) } else { 1 }) {
            0 => next,
            1 => {
                let same_lap = w.full && (side == TAIL || self.has(Bug::JumpTooFar));
                let lap = if same_lap { w.lap } else { w.lap + self.config.laps - 1 };
                self.after(self.join(lap, index))
            }
            hint => self.ever(hint - 2),
        };
        let to = if self.is_after(to, next) {
            cx.saw(Shown::Jumped);
            to
        } else {
            next
        };
        cx.s.processes[cx.me].positions[side] = to;
        cx.again()
    }

    /// One position further, which is done; past the last lap, the first one.
    fn pass(&self, cx: &mut Cx, side: usize) {
        let it = &mut cx.s.processes[cx.me];
        let from = it.positions[side];
        it.positions[side] = self.after(from);
        if it.positions[side] < from {
            cx.saw(Shown::LapsWrapped);
        }
    }

    // ---------------------------------------------------------------------------------------------------
    // Exchanges

    /// The step by which a cell changes hands, announced so that it can be recovered.
    fn exchange(&self, cx: &mut Cx, at: Intent, expected: u16, new: u16, value: Value) -> Run<bool> {
        let lane = self.lane(cx);
        let own = VALUE + lane * HANDS + at.hand;
        let stored = match value {
            Value::Taken(value) if self.config.inline => Some(value),
            _ => None,
        };
        let stored_late = self.has(Bug::ValueStoredLate) || self.has(Bug::OrphanValueLate) && at.orphan;
        if let Some(value) = stored.filter(|_| !stored_late && !self.has(Bug::ValueAfterIntent)) {
            self.store(cx, own, value)?;
        }
        let silent = self.has(Bug::NoIntent) || self.has(Bug::TakerWithoutIntent) && at.orphan;
        let late = self.has(Bug::IntentAfter);
        if !silent && !late {
            self.store(cx, INTENT + lane, at.bits())?;
        }
        if let Some(value) = stored.filter(|_| self.has(Bug::ValueAfterIntent)) {
            self.store(cx, own, value)?;
        }
        let won = match value {
            Value::Sent(_, value) if self.has(Bug::SendsValueFirst) => {
                self.store(cx, SLOT_VALUE + at.index, value)?;
                self.cas(cx, at.place(), expected, new)?
            }
            Value::Sent(old, value) if self.config.inline && !self.has(Bug::SendsValueLast) => {
                self.cas_both(cx, at.index, [expected, old], [new, value])?
            }
            _ if at.orphan && self.has(Bug::TakesByStore) => {
                self.store(cx, at.place(), new).map(|()| true)?
            }
            _ => self.cas(cx, at.place(), expected, new)?,
        };
        if at.orphan && !won {
            let there = Hand::of(cx.s.words[at.place()]);
            if there == (Hand { number: there.number, ..Hand::of(expected) }) {
                cx.saw(Shown::StaleOrphanRefused);
            }
        }
        if won {
            cx.note(|cx| {
                cx.s.truth[lane * HANDS + at.hand] = (expected & 15) as u8;
                match value {
                    Value::Taken(_) => cx.s.times[usize::from(expected & 15)] += 1,
                    Value::Sent(_, value) => {
                        cx.check(!cx.s.processes[cx.me].began_closed, "sends after it was closed");
                        cx.s.sent |= 1 << (value - 1);
                        cx.s.moved[TAIL] += 1;
                    }
                }
                if at.orphan {
                    cx.s.truth[at.index] = (new & 15) as u8;
                    cx.s.known &= !(1 << at.index);
                    for it in &mut cx.s.processes {
                        it.overlooked &= !(1 << at.index);
                    }
                }
            });
            if let (Value::Sent(_, value), true) = (value, self.has(Bug::SendsValueLast)) {
                self.store(cx, SLOT_VALUE + at.index, value)?;
            }
            if let (Some(value), true) = (stored, self.has(Bug::ValueStoredLate)) {
                self.store(cx, own, value)?;
            }
            if late {
                self.store(cx, INTENT + lane, at.bits())?;
            }
        } else if !silent && !late && !self.has(Bug::IntentKept) {
            self.store(cx, INTENT + lane, 0)?;
        }
        Ok(won)
    }

    pub fn send(&self, cx: &mut Cx, op: Op, j: usize) -> Run<()> {
        let lane = self.lane(cx);
        let id = cx.me as u8 * 8 + cx.s.processes[cx.me].operation;
        let (lap, index) = self.split(cx.s.processes[cx.me].positions[TAIL]);
        if self.has(Bug::NotifiesFirst) {
            self.notify(cx, NOT_EMPTY, 1)?;
        }
        let old_first = self.config.inline && self.has(Bug::OldValueFirst);
        let mut old = if old_first { self.load(cx, SLOT_VALUE + index)? } else { 0 };
        let w = Slot::of(self.load(cx, SLOT + index)?);
        // Before anything: the message is written.
        let cell = cx.s.hand(lane, j).cell;
        cx.note(|cx| {
            cx.check(
                u16::from(cx.s.truth[lane * HANDS + j]) == cell,
                "writes into a cell that is not its own",
            );
            cx.s.payload[usize::from(cell)] = id;
            cx.s.times[usize::from(cell)] = 0;
        });
        match self.compare(w, lap, false) {
            Found::Passed => return self.catch_up(cx, TAIL, w, index),
            Found::Damaged => return self.damaged(cx),
            _ if w.closed && !self.has(Bug::ClosedIgnored) => {
                cx.check(cx.s.is_closed, "says Closed, and nobody closed it");
                return Ok(());
            }
            Found::Before => {
                let all = (0..self.config.slots).all(|i| cx.s.slot(i).full);
                cx.check(all, "says Full, and there is room");
                return self.sleep_or_end(cx, op);
            }
            Found::Here => {}
        }
        if self.config.inline && !old_first {
            old = self.load(cx, SLOT_VALUE + index)?;
        }
        let new = Slot { full: true, cell, ..w };
        let value = Value::Sent(old, value_of(id));
        let at = Intent { orphan: false, message: false, hand: j, deliveries: 0, index, cell: w.cell };
        if !self.exchange(cx, at, w.bits(), new.bits(), value)? {
            if self.has(Bug::SkipsOnFailure) {
                self.pass(cx, TAIL);
            }
            return cx.again();
        }
        self.store(cx, HAND + lane * HANDS + j, Hand::spare(w.cell).bits())?;
        if !self.has(Bug::SendSilent) && !self.has(Bug::NotifiesFirst) {
            self.notify(cx, NOT_EMPTY, 1)?;
        }
        self.pass(cx, TAIL);
        Ok(())
    }

    pub fn receive(&self, cx: &mut Cx, op: Op, j: usize) -> Run<()> {
        let lane = self.lane(cx);
        let (lap, index) = self.split(cx.s.processes[cx.me].positions[HEAD]);
        let value_first = self.has(Bug::ValueBeforeWord);
        let mut value = if value_first { self.load(cx, SLOT_VALUE + index)? } else { 0 };
        let w = Slot::of(self.load(cx, SLOT + index)?);
        match self.compare(w, lap, true) {
            Found::Passed => return self.catch_up(cx, HEAD, w, index),
            Found::Damaged => return self.damaged(cx),
            Found::Before => return self.nothing(cx, op, w.closed),
            Found::Here => {}
        }
        // The hint for the tail is any that ever was; here, by chance, my position.
        if self.has(Bug::HintAsTruth)
            && cx.choose_live(1 + usize::from(cx.s.moved[TAIL])) == usize::from(cx.s.moved[HEAD])
        {
            return self.nothing(cx, op, w.closed);
        }
        if self.config.inline && !value_first {
            value = self.load(cx, SLOT_VALUE + index)?;
        }
        let cell = cx.s.hand(lane, j).cell;
        let closed = w.closed && !self.has(Bug::ClosedDropped);
        let new = Slot { lap: (lap + 1) % self.config.laps, full: false, closed, cell };
        let at = Intent { orphan: false, message: true, hand: j, deliveries: 0, index, cell: w.cell };
        if !self.exchange(cx, at, w.bits(), new.bits(), Value::Taken(value))? {
            if self.has(Bug::SkipsOnFailure) {
                self.pass(cx, HEAD);
            }
            return cx.again();
        }
        cx.note(|cx| {
            cx.s.moved[HEAD] += 1;
            let id = cx.s.payload[usize::from(w.cell)];
            let (producer, number) = (usize::from(id / 8), id % 8 + 1);
            cx.check(cx.s.last[producer] < number, "is received out of order");
            cx.s.last[producer] = number;
        });
        if self.has(Bug::ValueReread) {
            value = self.load(cx, SLOT_VALUE + index)?;
        }
        self.hold(cx, op, j, Hand::message(w.cell, 1), value, false)?;
        if !self.has(Bug::ReceiveSilent) {
            self.notify(cx, NOT_FULL, 1)?;
        }
        self.pass(cx, HEAD);
        Ok(())
    }

    fn damaged(&self, cx: &mut Cx) -> Run<()> {
        cx.check(false, "takes the ring for damaged");
        Ok(())
    }

    /// There is no message in the ring, and there was no orphan before.
    fn nothing(&self, cx: &mut Cx, op: Op, closed: bool) -> Run<()> {
        let none = (0..self.config.slots).all(|i| !cx.s.slot(i).full);
        cx.check(none, "says Empty, and there is a message");
        cx.check(!closed || cx.s.is_closed, "says Closed, and nobody closed it");
        let it = cx.s.processes[cx.me];
        if closed && (!it.pending || self.has(Bug::ClosedWhilePending)) {
            cx.saw(Shown::SaidClosed);
            let effort = self.config.full_effort || self.is_waiting(op);
            cx.check(!effort || it.undecided == 0, "says Closed, and a dead lane is not decided");
            return Ok(());
        }
        self.sleep_or_end(cx, op)
    }

    /// The message is mine: copied and given up, by one store, or kept, for which the hand has to say so.
    fn hold(&self, cx: &mut Cx, op: Op, j: usize, hand: Hand, value: u16, in_place: bool) -> Run<()> {
        let word = HAND + self.lane(cx) * HANDS + j;
        cx.note(|cx| {
            let id = cx.s.payload[usize::from(hand.cell)];
            cx.check(cx.s.sent >> id & 1 == 1, "receives what nobody sent");
            cx.check(cx.s.consumed >> id & 1 == 0, "receives what was consumed");
            let times = cx.s.times[usize::from(hand.cell)];
            cx.check(hand.deliveries == u16::from(times).min(3), "says wrongly how often it was received");
            cx.check(!self.config.inline || value == value_of(id), "receives another's value");
        });
        if matches!(op, Copy(_) | WaitCopy(_)) {
            if !self.has(Bug::CopyLeftInFlight) {
                self.store(cx, word, Hand::spare(hand.cell).bits())?;
            }
            cx.note(|cx| self.consume(cx, hand.cell));
        } else if !in_place {
            self.store(cx, word, hand.bits())?;
        }
        Ok(())
    }

    fn consume(&self, cx: &mut Cx, cell: u16) {
        let id = cx.s.payload[usize::from(cell)];
        cx.check(cx.s.consumed >> id & 1 == 0, "consumes what was consumed");
        cx.s.consumed |= 1 << id;
        cx.s.times[usize::from(cell)] = 0;
    }

    pub fn release(&self, cx: &mut Cx, j: usize) -> Run<()> {
        let lane = self.lane(cx);
        let cell = cx.s.hand(lane, j).cell;
        let value = cx.s.words[VALUE + lane * HANDS + j];
        let id = cx.s.payload[usize::from(cell)];
        self.store(cx, HAND + lane * HANDS + j, Hand::spare(cell).bits())?;
        cx.check(!self.config.inline || value == value_of(id), "a message has another's value");
        self.consume(cx, cell);
        Ok(())
    }

    /// Takes a message whose receiver is gone, by an exchange like any other.
    pub fn orphans(&self, cx: &mut Cx, op: Op) -> Run<()> {
        let (Recv(j) | Copy(j) | WaitRecv(j) | WaitCopy(j)) = op else { unreachable!() };
        let own = self.lane(cx);
        let mine = Hand::of(cx.private(|s| s.hand(own, j).bits()));
        if mine.kind == Kind::Orphan {
            return self.take_in_place(cx, op, own, j, mine);
        }
        let raised = self.load(cx, ORPHANS)?;
        if raised & 1 == 1 {
            for other in 0..self.config.lanes {
                if self.has(Bug::LooksAtSomeLanes) && other + 1 == self.config.lanes {
                    continue;
                }
                for h in (0..self.config.hands).filter(|&h| other != own || h != j) {
                    let theirs = VALUE + other * HANDS + h;
                    let value_first = self.config.inline && self.has(Bug::OrphanValueFirst);
                    let mut value = if value_first { self.load(cx, theirs)? } else { 0 };
                    let seen = Hand::of(self.load(cx, HAND + other * HANDS + h)?);
                    if seen.kind != Kind::Orphan {
                        continue;
                    }
                    if self.config.inline && !value_first && !self.has(Bug::OrphanValueLate) {
                        value = self.load(cx, theirs)?;
                    }
                    let (index, Hand { deliveries, cell, .. }) = (other * HANDS + h, seen);
                    let at = Intent { orphan: true, message: true, hand: j, deliveries, index, cell };
                    let spare = Hand::spare(mine.cell).bits();
                    if self.exchange(cx, at, seen.bits(), spare, Value::Taken(value))? {
                        cx.note(|cx| {
                            cx.saw(Shown::OrphanTaken);
                            if cx.s.words[CLAIM + other] >> 9 == 1 {
                                cx.saw(Shown::OrphanTakenFromRecovering);
                            }
                        });
                        if self.has(Bug::OrphanValueLate) || self.has(Bug::OrphanValueRead) {
                            value = self.load(cx, theirs)?;
                        }
                        if self.has(Bug::OrphanValueLate) {
                            self.store(cx, VALUE + own * HANDS + j, value)?;
                        }
                        let message = Hand::message(seen.cell, seen.deliveries + 1);
                        self.hold(cx, op, j, message, value, false)?;
                        return self.pass_on(cx);
                    }
                }
            }
            if self.has(Bug::OrphansLoweredLate) {
                self.store(cx, ORPHANS, raised & !1)?;
            } else {
                let lowered = if self.has(Bug::OrphansNotNumbered) { 0 } else { raised & !1 };
                self.cas(cx, ORPHANS, raised, lowered)?;
            }
            cx.note(|cx| cx.saw(Shown::OrphansLowered));
        }
        let overlooked = cx.s.processes[cx.me].overlooked;
        cx.check(overlooked == 0, "overlooks an orphan");
        cx.goto(Stage::Main)
    }

    /// A lane that was taken in spite of its orphans: no cell moves, so no intent is needed.
    fn take_in_place(&self, cx: &mut Cx, op: Op, own: usize, j: usize, mine: Hand) -> Run<()> {
        let index = own * HANDS + j;
        let message = Hand::message(mine.cell, mine.deliveries + 1);
        if !self.cas(cx, HAND + index, mine.bits(), message.bits())? {
            return cx.again(); // somebody else took it: the hand is a spare one now
        }
        cx.note(|cx| {
            cx.saw(Shown::OrphanTakenInPlace);
            cx.s.times[usize::from(mine.cell)] += 1;
            cx.s.known &= !(1 << index);
            for it in &mut cx.s.processes {
                it.overlooked &= !(1 << index);
            }
        });
        let value = cx.private(|s| s.words[VALUE + index]);
        self.hold(cx, op, j, message, value, true)?;
        self.pass_on(cx)
    }

    /// Who was woken for a message in the ring has taken another.
    fn pass_on(&self, cx: &mut Cx) -> Run<()> {
        if self.has(Bug::NotPassedOn) { Ok(()) } else { self.notify(cx, NOT_EMPTY, 1) }
    }

    pub fn close(&self, cx: &mut Cx) -> Run<()> {
        let (lap, index) = self.split(cx.s.processes[cx.me].positions[TAIL]);
        let w = Slot::of(self.load(cx, SLOT + index)?);
        match self.compare(w, lap, false) {
            Found::Passed if !self.has(Bug::ClosedElsewhere) => return self.catch_up(cx, TAIL, w, index),
            Found::Damaged => return self.damaged(cx),
            _ if w.closed => return Ok(()),
            _ => {}
        }
        let closed = Slot { closed: true, ..w }.bits();
        if self.has(Bug::CloseByStore) {
            self.store(cx, SLOT + index, closed)?;
        } else if !self.cas(cx, SLOT + index, w.bits(), closed)? {
            return cx.again();
        }
        cx.note(|cx| cx.s.is_closed = true);
        if !self.has(Bug::CloseSilent) {
            let count = if self.has(Bug::CloseWakesOne) { 1 } else { ALL };
            self.notify(cx, NOT_EMPTY, count)?;
            self.notify(cx, NOT_FULL, count)?;
        }
        Ok(())
    }

    /// Whether there was a moment at which all messages had been received and given up.
    pub fn finished(&self, cx: &mut Cx) -> Run<()> {
        let (lap, index) = self.split(cx.s.processes[cx.me].positions[HEAD]);
        let raised = self.load(cx, ORPHANS)?;
        let w = Slot::of(self.load(cx, SLOT + index)?);
        match self.compare(w, lap, true) {
            Found::Passed => self.catch_up(cx, HEAD, w, index),
            Found::Damaged => self.damaged(cx),
            Found::Before => cx.goto(Stage::AreSpare(false, 0, raised)),
            Found::Here => Ok(()),
        }
    }

    pub fn is_empty_still(&self, cx: &mut Cx, raised: u16) -> Run<()> {
        let (lap, index) = self.split(cx.s.processes[cx.me].positions[HEAD]);
        let w = Slot::of(self.load(cx, SLOT + index)?);
        if self.compare(w, lap, true) == Found::Before && self.load(cx, ORPHANS)? >> 1 == raised >> 1 {
            cx.saw(Shown::SaidFinished);
            let was = cx.s.processes[cx.me].was_finished;
            cx.check(was, "says Finished, and all the time there was a message");
        }
        Ok(())
    }

    // ---------------------------------------------------------------------------------------------------
    // Lanes

    /// `last_resort`: there is none without orphans.
    pub fn attach(&self, cx: &mut Cx, last_resort: bool) -> Run<()> {
        for k in 0..self.config.lanes {
            if self.load(cx, CLAIM + k)? != FREE {
                continue;
            }
            let mut orphan = self.has(Bug::ChecksOrphansFirst) && self.has_orphan(cx, k)?;
            if orphan || !self.cas(cx, CLAIM + k, FREE, live(cx.me))? {
                continue;
            }
            if !self.has(Bug::ChecksOrphansFirst) && !last_resort {
                orphan = self.has_orphan(cx, k)?;
            }
            if orphan {
                self.store(cx, CLAIM + k, FREE)?;
                cx.note(|cx| cx.saw(Shown::PutBackForOrphans));
                continue;
            }
            if last_resort {
                cx.saw(Shown::TakenWithOrphans);
            }
            let it = &mut cx.s.processes[cx.me];
            it.lane = k as u8;
            it.positions = [self.ever(0); 2]; // the oldest hint
            if cx.me == JANITOR {
                for side in [TAIL, HEAD] {
                    let moved = usize::from(cx.s.moved[side]);
                    cx.s.processes[cx.me].positions[side] = self.ever(moved);
                }
            }
            if self.has(Bug::KeepsOrphansForItself) {
                for j in 0..self.config.hands {
                    let cell = cx.s.hand(k, j).cell;
                    cx.s.words[HAND + k * HANDS + j] = Hand::spare(cell).bits();
                }
            }
            return Ok(());
        }
        if last_resort {
            return Ok(()); // NoLane
        }
        cx.goto(Stage::Recover(0))
    }

    fn has_orphan(&self, cx: &mut Cx, lane: usize) -> Run<bool> {
        for j in 0..self.config.hands {
            if Hand::of(self.load(cx, HAND + lane * HANDS + j)?).kind == Kind::Orphan {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn detach(&self, cx: &mut Cx) -> Run<()> {
        let lane = self.lane(cx);
        if self.has(Bug::OrphanBeforeIntent) {
            self.make_orphans(cx, lane)?;
        }
        if !self.has(Bug::IntentNotCleared) {
            self.store(cx, INTENT + lane, 0)?;
        }
        if !self.has(Bug::DropForgets) {
            self.orphan_and_free(cx, lane)?;
        } else {
            self.store(cx, CLAIM + lane, FREE)?;
        }
        if !self.has(Bug::DropSilent) {
            self.wake_all(cx)?;
        }
        cx.s.processes[cx.me].lane = NO_LANE;
        Ok(())
    }

    pub fn leave(&self, cx: &mut Cx) -> Run<()> {
        cx.access(|cx| {
            cx.say(|| "leaves".into());
            cx.s.depart(cx.me, Life::Gone);
            Ok(0)
        })
        .map(drop)
    }

    // ---------------------------------------------------------------------------------------------------
    // Sleep

    /// Two steps if anybody listens.
    pub fn notify(&self, cx: &mut Cx, event: usize, count: usize) -> Run<()> {
        if !self.config.sleeping {
            return Ok(());
        }
        let listened = cx.access(|cx| {
            let listens =
                |it: &Process| it.life == Life::Alive && it.ticket.is_some_and(|t| usize::from(t.0) == event);
            let listened = cx.s.processes.iter().any(listens);
            cx.s.seq[event] += u8::from(listened);
            cx.say(|| format!("notifies {event}, which somebody listens to: {listened}"));
            Ok(u16::from(listened))
        })?;
        if listened == 0 {
            return Ok(());
        }
        cx.access(|cx| {
            let sleeps = |p: &usize| {
                let it = &cx.s.processes[*p];
                it.asleep && it.ticket.is_some_and(|t| usize::from(t.0) == event)
            };
            let mut asleep: Vec<usize> = (0..PROCESSES).filter(sleeps).collect();
            if asleep.len() > count {
                cx.saw(Shown::WokeOne);
                let one = cx.choose(asleep.len());
                asleep = vec![asleep[one]];
            }
            for &p in &asleep {
                cx.s.processes[p].asleep = false;
            }
            cx.say(|| format!("wakes {asleep:?}"));
            Ok(0)
        })
        .map(drop)
    }

    pub fn wake_all(&self, cx: &mut Cx) -> Run<()> {
        self.notify(cx, NOT_EMPTY, ALL)?;
        self.notify(cx, NOT_FULL, ALL)
    }

    fn is_waiting(&self, op: Op) -> bool {
        matches!(op, WaitSend(_) | WaitRecv(_) | WaitCopy(_))
    }

    /// Then: whether all others are gone; a receiver recovers in any case; is no other lane anybody's; orphans; the
    /// ring.
    pub fn listen(&self, cx: &mut Cx, op: Op) -> Run<()> {
        let event = if matches!(op, WaitSend(_)) { NOT_FULL } else { NOT_EMPTY };
        if !self.has(Bug::ListensLate) {
            self.take_ticket(cx, event)?;
        }
        let alone = cx.access(|cx| {
            let alone = cx.s.is_alone(cx.me);
            cx.say(|| format!("is alone: {alone}"));
            Ok(u16::from(alone))
        })?;
        let it = &mut cx.s.processes[cx.me];
        it.alone = alone == 1 && !self.has(Bug::AloneCheckedLast);
        it.pending = false;
        let recovers = !matches!(op, WaitSend(_)) || it.alone;
        if recovers && !self.has(Bug::NeverRecovers) && !self.has(Bug::LooksBeforeRecovery) {
            return cx.goto(Stage::Recover(0));
        }
        self.after_recovery(cx, op)
    }

    fn take_ticket(&self, cx: &mut Cx, event: usize) -> Run<()> {
        cx.access(|cx| {
            let ticket = (event as u8, cx.s.seq[event], cx.s.departures);
            cx.s.processes[cx.me].ticket = Some(ticket);
            cx.say(|| format!("listens to {event}"));
            Ok(0)
        })
        .map(drop)
    }

    pub fn after_recovery(&self, cx: &mut Cx, op: Op) -> Run<()> {
        let it = &cx.s.processes[cx.me];
        match op {
            Recover => Ok(()),
            Attach if self.has(Bug::NoLastResort) => Ok(()),
            Attach => cx.goto(Stage::LastResort),
            _ if it.alone && it.pending => {
                cx.s.processes[cx.me].alone = false;
                self.after_last(cx, op)
            }
            _ if it.alone => cx.goto(Stage::IsLast),
            _ => self.after_last(cx, op),
        }
    }

    pub fn is_last(&self, cx: &mut Cx, op: Op) -> Run<()> {
        let own = self.lane(cx);
        let mut last = true;
        for k in (0..self.config.lanes).filter(|&k| k != own) {
            last &= self.load(cx, CLAIM + k)? == FREE;
        }
        cx.s.processes[cx.me].alone = last;
        self.after_last(cx, op)
    }

    fn after_last(&self, cx: &mut Cx, op: Op) -> Run<()> {
        cx.goto(if matches!(op, WaitSend(_)) { Stage::Main } else { Stage::Orphans })
    }

    /// Nothing could be done.
    fn sleep_or_end(&self, cx: &mut Cx, op: Op) -> Run<()> {
        let it = cx.s.processes[cx.me];
        if !self.is_waiting(op) {
            return Ok(());
        }
        let mut alone = it.alone;
        if self.has(Bug::AloneCheckedLast) {
            self.load(cx, ORPHANS)?;
            alone = cx.s.is_alone(cx.me);
        }
        if alone {
            cx.saw(Shown::SaidPeerDied);
            cx.check(cx.s.is_alone(cx.me), "says PeerDied, and somebody is there");
            let hands = (0..self.config.lanes).flat_map(|k| (0..self.config.hands).map(move |j| (k, j)));
            let message = hands.into_iter().any(|(k, j)| cx.s.hand(k, j).kind == Kind::Orphan);
            let mut unread = cx.s.sent & !cx.s.consumed;
            if matches!(op, WaitSend(_)) {
                unread = 0;
            }
            for j in 0..self.config.hands {
                if cx.s.hand(usize::from(it.lane), j).kind == Kind::Message {
                    unread &= !(1 << cx.s.payload[usize::from(cx.s.hand(usize::from(it.lane), j).cell)]);
                }
            }
            cx.check(
                unread == 0 && (!message || matches!(op, WaitSend(_))),
                "says PeerDied, and there is a message",
            );
            return Ok(());
        }
        if it.timed_out {
            cx.saw(Shown::TimedOut);
            return Ok(());
        }
        cx.goto(Stage::Sleep)
    }

    pub fn sleep(&self, cx: &mut Cx, op: Op) -> Run<()> {
        if self.has(Bug::ListensLate) {
            self.take_ticket(cx, if matches!(op, WaitSend(_)) { NOT_FULL } else { NOT_EMPTY })?;
        }
        let timed = self.config.deadlines.contains(&cx.me);
        cx.access(|cx| {
            if timed && cx.choose(2) == 1 {
                cx.say(|| "its deadline has passed".into());
                cx.s.processes[cx.me].timed_out = true;
                return Ok(0);
            }
            let it = &cx.s.processes[cx.me];
            let Some((event, seq, departures)) = it.ticket else { unreachable!() };
            let left = departures != cx.s.departures && !self.has(Bug::DeparturesIgnored);
            let news = seq != cx.s.seq[usize::from(event)] || left;
            cx.say(|| if news { "does not sleep" } else { "sleeps" }.into());
            let it = &mut cx.s.processes[cx.me];
            it.asleep = !news;
            if !news {
                cx.saw(Shown::Slept);
            }
            Ok(0)
        })?;
        let it = &mut cx.s.processes[cx.me];
        if it.timed_out {
            it.alone = false;
            return if self.has(Bug::NoLastLook) { Ok(()) } else { cx.goto(Stage::Main) };
        }
        cx.goto(Stage::Listen)
    }
}
