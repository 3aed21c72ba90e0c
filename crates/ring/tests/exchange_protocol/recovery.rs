//! What the dead had in their hands.

use crate::explore::{Cx, Run};
use crate::machine::{Bug, Machine, Op, Shown};
use crate::state::*;

/// One lane's record, as read.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Record {
    hands: [u16; HANDS],
    intent: u16,
}

impl Record {
    fn intent(&self) -> Option<Intent> {
        Intent::of(self.intent)
    }

    /// The hand that is exchanged, if any is.
    fn hand(&self) -> Option<usize> {
        self.intent().map(|it| it.hand)
    }

    /// The cell in it, and the one that it is to be exchanged for.
    fn cells(&self) -> Option<(u16, u16)> {
        self.intent().map(|it| (self.hands[it.hand] & 15, it.cell))
    }
}

impl Machine<'_> {
    pub fn recover(&self, cx: &mut Cx, op: Op, from: usize) -> Run<()> {
        let own = self.lane(cx);
        for k in (from..self.config.lanes).filter(|&k| k != own) {
            // Whose it is, and whether that one is dead: it stays so.
            let claim = self.load(cx, CLAIM + k)?;
            let dead = cx.private(|s| u16::from(s.is_claimable(k)));
            if claim == FREE || dead == 0 && !(self.has(Bug::DeadTakenTwice) && claim >> 9 == 1) {
                let recovering = claim >> 9 == 1;
                cx.note(|cx| cx.s.processes[cx.me].pending |= recovering);
                continue;
            }
            let mine = recovering(cx.me);
            let won = if self.has(Bug::ClaimStored) {
                self.store(cx, CLAIM + k, mine).map(|()| true)?
            } else {
                self.cas(cx, CLAIM + k, claim, mine)?
            };
            if !won {
                cx.note(|cx| cx.s.processes[cx.me].pending = true);
                continue;
            }
            cx.s.processes[cx.me].taken = claim;
            if claim >> 9 == 1 {
                cx.saw(Shown::RecovererReplaced);
            }
            // Nobody else writes the record, but takers of orphans.
            let record = self.record(&cx.s, k);
            if self.is_settled(&record) {
                cx.saw(Shown::Settled);
                return cx.goto(Stage::Write(k as u8, None));
            }
            return cx.goto(Stage::Decide(k as u8));
        }
        self.after_recovery(cx, op)
    }

    /// On to the next lane, if there is one.
    fn recover_next(&self, cx: &mut Cx, op: Op, lane: usize) -> Run<()> {
        let own = self.lane(cx);
        if (lane + 1..self.config.lanes).any(|k| k != own) {
            return cx.goto(Stage::Recover(lane as u8 + 1));
        }
        self.after_recovery(cx, op)
    }

    fn record(&self, s: &State, lane: usize) -> Record {
        let mut hands = [0; HANDS];
        hands.copy_from_slice(&s.words[HAND + lane * HANDS..][..HANDS]);
        Record { hands, intent: s.words[INTENT + lane] }
    }

    fn is_settled(&self, record: &Record) -> bool {
        let Some((mine, wanted)) = record.cells() else { return true };
        if self.has(Bug::SettledByOneHand) {
            return mine == wanted;
        }
        record.hands[..self.config.hands].iter().any(|hand| hand & 15 == wanted)
    }

    /// Whether the exchange of the dead lane came off.
    pub fn decide(&self, cx: &mut Cx, dead: usize) -> Run<()> {
        let record = self.record(&cx.s, dead);
        let (Some(at), Some((mine, wanted))) = (record.intent(), record.cells()) else { unreachable!() };
        let place = self.load(cx, at.place())? & 15;
        let came_off = if self.has(Bug::AlwaysHappened) {
            Some(true)
        } else if self.has(Bug::NeverHappened) {
            Some(false)
        } else if place == wanted {
            cx.note(|cx| cx.saw(Shown::PlaceKept));
            Some(false)
        } else if place == mine {
            cx.note(|cx| cx.saw(Shown::PlaceExchanged));
            Some(true)
        } else {
            self.search(cx, dead, &record)?
        };
        let Some(came_off) = came_off else {
            // Others have made progress meanwhile.
            cx.note(|cx| cx.saw(Shown::NotYetDecidable));
            let taken = holder(cx.s.processes[cx.me].taken);
            self.store(cx, CLAIM + dead, live(taken))?;
            cx.s.processes[cx.me].pending = true;
            return cx.goto(Stage::PutBack(dead as u8));
        };
        let truly = u16::from(cx.s.truth[dead * HANDS + at.hand]) != mine;
        cx.check(came_off == truly, "a wrong verdict on a dead lane");
        let sent = !at.message;
        let hand = if sent != self.has(Bug::SentMessageKept) || !sent && self.has(Bug::ReceivedIsSpare) {
            Hand::spare(wanted)
        } else {
            Hand::message(wanted, at.deliveries + 1)
        };
        if at.orphan && came_off {
            cx.saw(Shown::TakerRecovered);
        }
        cx.goto(Stage::Write(dead as u8, came_off.then_some((at.hand as u8, hand.bits()))))
    }

    /// The claim is anybody's again.
    pub fn put_back(&self, cx: &mut Cx, op: Op, dead: usize) -> Run<()> {
        if self.has(Bug::PutBackSilent) || !self.config.sleeping {
            self.load(cx, CLAIM + dead)?;
        } else {
            self.wake_all(cx)?;
        }
        // Who is here for nothing else tries again at once.
        if op == Op::Recover { cx.goto(Stage::Recover(dead as u8)) } else { self.recover_next(cx, op, dead) }
    }

    /// One of the two cells is found elsewhere: `Some(true)` if that is `mine`.
    fn search(&self, cx: &mut Cx, dead: usize, doubt: &Record) -> Run<Option<bool>> {
        let c = self.config;
        let Some((mine, wanted)) = doubt.cells() else { unreachable!() };
        // The dead one's record stands still. One who lives is read as all others are, and goes on meanwhile.
        let lives = self.op(cx.me, cx.s.processes[cx.me].operation) == Some(Op::Finished);
        let mut found = 0u16;
        let mut readings = [[Record::default(); LANES]; 2];
        for round in 0..2 {
            for lane in (0..c.lanes).filter(|&lane| lane != dead || lives) {
                readings[round][lane] = if round == 1 && self.has(Bug::SingleReading) {
                    readings[0][lane]
                } else {
                    self.read(cx, lane)?
                };
            }
            for i in (0..c.slots).filter(|_| round == 0) {
                found |= 1 << (self.load(cx, SLOT + i)? & 15);
            }
        }
        for j in (0..c.hands).filter(|&j| Some(j) != doubt.hand() && !lives) {
            found |= u16::from(!self.has(Bug::OwnHandsLeftOut)) << (doubt.hands[j] & 15);
        }
        let mut doubtful = Vec::new();
        for lane in (0..c.lanes).filter(|&lane| lane != dead || lives) {
            let record = readings[0][lane];
            if record != readings[1][lane] {
                continue;
            }
            let settled = self.is_settled(&record) || self.has(Bug::HandAsRead);
            for j in 0..c.hands {
                if settled || Some(j) != record.hand() && !self.has(Bug::SettledByOneHand) {
                    found |= 1 << (record.hands[j] & 15);
                }
            }
            if !settled && lane != dead {
                doubtful.extend(record.cells());
            }
        }
        let has = |found: u16, cell: u16| found >> cell & 1 == 1;
        if self.has(Bug::LeavesUnsettledOut) {
            return Ok(Some(has(found, mine)));
        }
        loop {
            let before = doubtful.len();
            doubtful.retain(|&(mine, wanted)| {
                if has(found, mine) == has(found, wanted) {
                    return true;
                }
                found |= 1 << if has(found, mine) { wanted } else { mine };
                false
            });
            if doubtful.len() == before {
                break;
            }
        }
        cx.check(lives || !(has(found, mine) && has(found, wanted)), "both cells are found elsewhere");
        if has(found, mine) == has(found, wanted) {
            return Ok(None);
        }
        cx.note(|cx| cx.saw(Shown::FoundElsewhere));
        Ok(Some(has(found, mine)))
    }

    fn read(&self, cx: &mut Cx, lane: usize) -> Run<Record> {
        let mut record = Record::default();
        for j in 0..self.config.hands {
            record.hands[j] = self.load(cx, HAND + lane * HANDS + j)?;
        }
        record.intent = self.load(cx, INTENT + lane)?;
        Ok(record)
    }

    /// One lane, after the other, twice: no hand has a message, and none is just getting one.
    pub fn are_spare(&self, cx: &mut Cx, again: bool, lane: usize, raised: u16) -> Run<()> {
        // Before the hands, and after them.
        let intent = self.load(cx, INTENT + lane)?;
        let record = self.read(cx, lane)?;
        if record.intent != intent {
            return Ok(()); // in truth it looks at this lane once more
        }
        if record.hands[..self.config.hands].iter().any(|&hand| Hand::of(hand).kind != Kind::Spare) {
            return Ok(());
        }
        // What it sends it does not get.
        let gets = record.intent().filter(|it| it.message && !self.is_settled(&record));
        if let Some(it) = gets.filter(|_| !self.has(Bug::InFlightIsSpare)) {
            let place = self.load(cx, it.place())? & 15;
            let came_off = if place == it.cell {
                Some(false)
            } else if place == record.hands[it.hand] & 15 {
                Some(true)
            } else {
                self.search(cx, lane, &record)?
            };
            if came_off != Some(false) || self.has(Bug::DoubtIsMessage) {
                cx.saw(Shown::SawAnotherInFlight);
                return Ok(());
            }
        }
        cx.goto(match (lane + 1 < self.config.lanes, again || self.has(Bug::LooksAtHandsOnce)) {
            (true, _) => Stage::AreSpare(again, lane as u8 + 1, raised),
            (false, false) => Stage::AreSpare(true, 0, raised),
            (false, true) => Stage::IsEmptyStill(raised),
        })
    }

    pub fn write(&self, cx: &mut Cx, dead: usize, hand: Option<(u8, u16)>) -> Run<()> {
        if let Some((j, word)) = hand {
            self.store(cx, HAND + dead * HANDS + usize::from(j), word)?;
        }
        if self.has(Bug::OrphanBeforeIntent) {
            self.make_orphans(cx, dead)?;
        }
        if self.has(Bug::IntentNotCleared) {
            self.load(cx, INTENT + dead)?;
        } else {
            self.store(cx, INTENT + dead, 0)?;
        }
        cx.goto(Stage::Settle(dead as u8))
    }

    /// The hands are true, and no intent is left.
    pub fn settle(&self, cx: &mut Cx, op: Op, dead: usize) -> Run<()> {
        self.orphan_and_free(cx, dead)?;
        if !self.has(Bug::RecoverySilent) {
            self.wake_all(cx)?;
        }
        self.recover_next(cx, op, dead)
    }

    pub fn orphan_and_free(&self, cx: &mut Cx, lane: usize) -> Run<()> {
        if self.has(Bug::FreedFirst) {
            self.store(cx, CLAIM + lane, FREE)?;
        }
        let any = self.make_orphans(cx, lane)? && !self.has(Bug::NoBump) && !self.has(Bug::BumpFirst);
        if any && !self.has(Bug::BumpAfterFree) {
            self.bump(cx, lane)?;
        }
        if !self.has(Bug::FreedFirst) {
            self.store(cx, CLAIM + lane, FREE)?;
            cx.note(|cx| {
                for it in &mut cx.s.processes {
                    it.undecided &= !(1 << lane);
                }
            });
        }
        if any && self.has(Bug::BumpAfterFree) {
            self.bump(cx, lane)?;
        }
        Ok(())
    }

    pub fn make_orphans(&self, cx: &mut Cx, lane: usize) -> Run<bool> {
        let mut any = false;
        for j in 0..self.config.hands {
            // Only an orphan can change: to a spare, and then it does not matter that orphans is raised.
            let hand = Hand::of(cx.private(|s| s.hand(lane, j).bits()));
            if hand.kind == Kind::Message {
                // From here on it can be taken; who has just looked at the other hands must know.
                let late = self.has(Bug::NoBump) || self.has(Bug::RaisedLate);
                let raised = if late { 0 } else { self.bump(cx, lane)? };
                let number = if self.has(Bug::OrphanUnnumbered) { 0 } else { raised >> 1 & (NUMBERS - 1) };
                self.store(cx, HAND + lane * HANDS + j, Hand { kind: Kind::Orphan, number, ..hand }.bits())?;
            }
            any |= hand.kind == Kind::Message || hand.kind == Kind::Orphan && !self.has(Bug::BumpOnlyNew);
        }
        Ok(any)
    }

    fn bump(&self, cx: &mut Cx, lane: usize) -> Run<u16> {
        cx.access(|cx| {
            let raised = cx.s.words[ORPHANS];
            cx.s.words[ORPHANS] = (raised + 2) | 1;
            for j in 0..self.config.hands {
                cx.s.known |= u8::from(cx.s.hand(lane, j).kind == Kind::Orphan) << (lane * HANDS + j);
            }
            cx.say(|| "raises orphans".into());
            Ok(cx.s.words[ORPHANS])
        })
    }
}
