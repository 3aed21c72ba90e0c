//! Who takes part and what each does; what must be true.

use crate::explore::{Cx, Run, alone};
use crate::state::*;

/// What a process does, one after the other. The number is that of the hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Takes a lane. Who does not begin with this (or `Recover`) has one from the start.
    Attach,
    /// Gives the lane back; what the hands still have was leaked.
    Detach,
    Send(usize),
    /// Receives and holds; `Release` gives it up.
    Recv(usize),
    Release(usize),
    /// Receives by copying.
    Copy(usize),
    /// The same, and sleeps as long as the ring is full, or there is no message.
    WaitSend(usize),
    WaitRecv(usize),
    WaitCopy(usize),
    Close,
    /// Asks whether all messages have been received and given up.
    Finished,
    /// Recovers dead lanes, once there is one.
    Recover,
    /// Leaves for good.
    Leave,
}
use Op::*;

#[derive(Clone, Copy)]
pub struct Config {
    pub name: &'static str,
    pub programs: &'static [&'static [Op]],
    pub slots: usize,
    pub lanes: usize,
    pub hands: usize,
    /// Messages travel in the slots, beside cells that are only tokens.
    pub inline: bool,
    /// How many, and which processes.
    pub kills: (u8, &'static [usize]),
    /// Who receives recovers dead lanes before it says that there is no message.
    pub full_effort: bool,
    /// Somebody may sleep: changes are notified.
    pub sleeping: bool,
    /// Whose sleep may end by itself, and who then gives up.
    pub deadlines: &'static [usize],
    /// Who is behind may jump as well as walk.
    pub jumps: bool,
    /// Laps are counted modulo this.
    pub laps: u16,
    /// The one to begin with.
    pub first_lap: u16,
    /// One state in so many is checked thoroughly.
    pub thinning: u64,
    pub limit: usize,
    pub bug: Option<Bug>,
    pub shows: &'static [Shown],
    pub at_least: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    Settled,
    PlaceKept,
    PlaceExchanged,
    FoundElsewhere,
    NotYetDecidable,
    TakerRecovered,
    RecovererReplaced,
    OrphanTaken,
    OrphanTakenFromRecovering,
    OrphanTakenInPlace,
    OrphansLowered,
    PutBackForOrphans,
    TakenWithOrphans,
    Jumped,
    LapsWrapped,
    SaidClosed,
    SaidPeerDied,
    Slept,
    WokeOne,
    TimedOut,
    SaidFinished,
    SawAnotherInFlight,
    StaleOrphanRefused,
}

macro_rules! bugs {
    ($($name:ident $text:literal is $wrong:literal in $config:literal)* ; $($harmless:ident $says:literal)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug { $($name,)* $($harmless,)* }
        /// Each bug, what it is, what must be found, in which configuration.
        pub const BUGS: &[(Bug, &str, &str, &str)] = &[$((Bug::$name, $text, $wrong, $config)),*];
        /// What could be done otherwise without harm.
        pub const HARMLESS: &[(Bug, &str)] = &[$((Bug::$harmless, $says)),*];
    };
}

bugs! {
    NoIntent "does not store an intent"
        is "a hand does not say what it has" in "one sends, one copies, both killed"
    TakerWithoutIntent "takes an orphan without an intent"
        is "a hand does not say what it has" in "all lanes have orphans"
    IntentAfter "stores the intent after the exchange"
        is "a hand does not say what it has" in "sleep: one sends, one receives"
    SingleReading "reads the other lanes once"
        is "both cells are found elsewhere" in "all three send and receive, two killed"
    LeavesUnsettledOut "who finds neither cell, with the unsettled lanes left out, says that it did not come off"
        is "a wrong verdict on a dead lane" in "capacity 1, recoverer killed"
    HandAsRead "takes the hand of every lane as it is written"
        is "does not finish, though everybody else is stopped" in "capacity 1, recoverer killed"
    SettledByOneHand "looks at one hand only for the intent's cell, and only there for cells"
        is "does not finish, though everybody else is stopped" in "two hands, capacity 1, leaked, dropped, inherited"
    OwnHandsLeftOut "does not count the other hands of the dead lane as found"
        is "does not finish, though everybody else is stopped" in "two take an orphan, one of them the lane's new holder"
    AlwaysHappened "an intent always came true"
        is "a wrong verdict on a dead lane" in "one sends, one copies, both killed"
    NeverHappened "an intent never came true"
        is "a wrong verdict on a dead lane" in "one sends, one copies, both killed"
    SentMessageKept "after a send that came off the hand is a message"
        is "a message is there twice" in "one sends, one copies, both killed"
    ReceivedIsSpare "after a receive that came off the hand is a spare"
        is "a message is lost" in "all lanes have orphans"
    BumpOnlyNew "who recovers raises orphans only if it made one itself"
        is "an orphan that nobody will look for" in "leaked, dropped, inherited"
    NoBump "who recovers does not raise orphans"
        is "an orphan that nobody will look for" in "all lanes have orphans"
    BumpFirst "raises orphans before it stores the hand"
        is "an orphan that nobody will look for" in "leaked, dropped, inherited"
    BumpAfterFree "raises orphans after it freed the claim"
        is "an orphan that nobody will look for" in "leaked, dropped, inherited"
    FreedFirst "frees the claim before it stores the hands"
        is "a message is lost" in "a new handle in a lane that takers know"
    OrphanBeforeIntent "makes orphans before it clears the intent"
        is "does not finish, though everybody else is stopped" in "sleep: leaked and dropped"
    IntentNotCleared "frees the claim of a lane with its intent"
        is "does not finish, though everybody else is stopped" in "all lanes have orphans, two hands"
    DropForgets "who gives its lane back leaves messages as they are"
        is "a message is lost" in "leaked, dropped, inherited"
    ClaimStored "takes a claim by a store"
        is "a hand does not say what it has" in "all lanes have orphans, two hands"
    DeadTakenTwice "takes a claim from a living recoverer"
        is "a hand does not say what it has" in "all lanes have orphans, two hands"
    ClosedDropped "a receive drops the CLOSED bit"
        is "sends after it was closed" in "jumps, capacity 1, closed"
    ClosedIgnored "a send exchanges also where CLOSED was set"
        is "sends after it was closed" in "jumps, capacity 1, closed"
    CloseByStore "closes by a store"
        is "a cell is lost or doubled" in "jumps, capacity 1, closed"
    ClosedElsewhere "closes at its own position, wherever the tail is"
        is "sends after it was closed" in "closed while one sends and one receives"
    SkipsOnFailure "passes the position when its exchange fails"
        is "takes the ring for damaged" in "jumps, capacity 1, closed"
    HintAsTruth "there is no message if the hint says so"
        is "says Empty, and there is a message" in "two laps are enough for one pair"
    JumpTooFar "FULL(L) shows a receiver that position L is done"
        is "takes the ring for damaged" in "jumps, capacity 1, closed"
    ChecksOrphansFirst "looks for orphans, then claims the lane"
        is "a message can not be received" in "a new handle in a lane that takers know"
    KeepsOrphansForItself "uses the hands of a new lane though they have orphans"
        is "overlooks an orphan" in "all lanes have orphans, two hands"
    OrphansLoweredLate "lowers orphans though they were raised since it looked"
        is "an orphan that nobody will look for" in "leaked, dropped, inherited"
    OrphansNotNumbered "lowers orphans to 0, from where it is raised to the same again"
        is "an orphan that nobody will look for" in "two take two orphans, made one after the other"
    LooksAtSomeLanes "lowers orphans though it looked at some lanes only"
        is "overlooks an orphan" in "leaked, dropped, inherited"
    TakesByStore "takes an orphan by a store"
        is "says wrongly how often it was received" in "all lanes have orphans, two hands"
    NoLastResort "never takes a lane that has orphans"
        is "a message can not be received" in "a new handle in a lane that takers know"
    ClosedWhilePending "says Closed while somebody recovers a lane"
        is "says Closed, and a dead lane is not decided" in "closed, a receiver killed, two more"
    LooksBeforeRecovery "looks at ring and orphans, then recovers"
        is "sleeps though all others are gone" in "sleep: one sends, one receives"
    RecoverySilent "who recovers does not notify"
        is "sleeps though there is an orphan" in "sleep: somebody else recovers"
    PutBackSilent "who can not decide yet puts the claim back and sleeps, silently"
        is "sleeps though a dead lane is to be recovered" in "sleep: two receive, one of three killed"
    NeverRecovers "who waits does not recover"
        is "sleeps though all others are gone" in "sleep: one sends, one receives"
    AloneCheckedLast "looks whether it is alone after it looked for messages"
        is "says PeerDied, and there is a message" in "sleep: one sends, one receives"
    ListensLate "listens after it looked"
        is "sleeps though there is a message" in "sleep: closed"
    DeparturesIgnored "sleeps though somebody left since it listened"
        is "sleeps though all others are gone" in "sleep: the last one sends, and leaves"
    DropSilent "who gives its lane back does not notify"
        is "sleeps though there is an orphan" in "sleep: leaked and dropped"
    CloseSilent "who closes does not notify"
        is "sleeps though it is closed" in "sleep: two receive, closed"
    CloseWakesOne "who closes wakes one"
        is "sleeps though it is closed" in "sleep: two receive, closed"
    CopyLeftInFlight "who receives by copying returns without a word of its hand"
        is "a consumed message is there still" in "one sends, one copies, both killed"
    ValueStoredLate "stores what it receives after the exchange"
        is "a message has another's value" in "inline: one sends, one copies, both killed"
    SendsValueFirst "sends by storing the value, then exchanging the word alone"
        is "a message has another's value" in "inline: two send, one receives"
    SendsValueLast "sends by exchanging the word alone, then storing the value"
        is "a message has another's value" in "inline: two send, one receives"
    ValueBeforeWord "receives a value loaded before the word"
        is "receives another's value" in "inline: two receive what a third one sends"
    ValueReread "receives the value as it is after the exchange"
        is "receives another's value" in "inline: one sends, one copies, both killed"
    OrphanValueLate "loads and stores an orphan's value after the exchange"
        is "a message has another's value" in "inline: an orphan is taken, its taker killed"
    OrphanValueRead "loads an orphan's value after the exchange, though it has stored it before"
        is "receives another's value" in "inline: a cell is orphaned twice in the same hand"
    OrphanValueFirst "loads an orphan's value before the word"
        is "receives another's value" in "inline: a cell is orphaned twice in the same hand"
    OrphanUnnumbered "orphans have no number"
        is "receives another's value" in "inline: a cell is orphaned twice in the same hand"
    InFlightIsSpare "says Finished while somebody is receiving"
        is "says Finished, and all the time there was a message" in "finished: one copies, one holds, killed"
    DoubtIsMessage "does not say Finished while there is an intent to receive, even if nothing came of it"
        is "does not say Finished, though it is" in "finished: an orphan goes round"
    LooksAtHandsOnce "looks at the hands once before it says Finished"
        is "says Finished, and all the time there was a message" in "finished: an orphan goes round"
    RaisedLate "an orphan is there before orphans is raised"
        is "says Finished, and all the time there was a message" in "finished: an orphan goes from hand to hand"
    SendSilent "who sends does not notify"
        is "sleeps though there is a message" in "sleep: two receive, one of three killed"
    ReceiveSilent "who receives does not notify"
        is "sleeps though there is room" in "sleep: closed"
    NotifiesFirst "notifies, then sends"
        is "sleeps though there is a message" in "sleep: leaked and dropped"
    ;
    IntentKept "does not clear an intent of which nothing came"
    NotPassedOn "who was woken for a message and took an orphan does not wake another"
    ValueAfterIntent "stores what it receives after the intent"
    OldValueFirst "sends with the old value loaded before the word"
    NoLastLook "whose deadline has passed does not look again"
}

pub struct Machine<'a> {
    pub config: &'a Config,
}

impl Machine<'_> {
    pub fn has(&self, bug: Bug) -> bool {
        self.config.bug == Some(bug)
    }

    pub fn op(&self, p: usize, operation: u8) -> Option<Op> {
        if p == JANITOR {
            return [Recover, Attach].into_iter().chain([Copy(0); 12]).nth(operation.into());
        }
        self.config.programs.get(p)?.get(usize::from(operation)).copied()
    }

    pub fn name(&self, p: usize, operation: u8) -> String {
        self.op(p, operation).map_or(String::new(), |op| format!("{op:?}"))
    }

    pub fn start(&self) -> State {
        let c = self.config;
        let mut s = State {
            words: [0; WORDS],
            processes: [Process::default(); PROCESSES],
            kills: c.kills.0,
            departures: 0,
            seq: [0; 2],
            payload: [0; CELLS],
            times: [0; CELLS],
            truth: [0; LANES * HANDS],
            sent: 0,
            consumed: 0,
            moved: [0; 2],
            is_closed: false,
            last: [0; PROCESSES],
            known: 0,
        };
        for i in 0..c.slots {
            let slot = Slot { lap: c.first_lap, full: false, closed: false, cell: i as u16 };
            s.words[SLOT + i] = slot.bits();
        }
        for k in 0..c.lanes {
            for j in 0..c.hands {
                let cell = (c.slots + k * c.hands + j) as u16;
                s.words[HAND + k * HANDS + j] = Hand::spare(cell).bits();
                s.truth[k * HANDS + j] = cell as u8;
            }
        }
        for (p, program) in c.programs.iter().enumerate() {
            s.processes[p].life = Life::Alive;
            s.processes[p].lane = NO_LANE;
            s.processes[p].positions = [self.ever(0); 2];
            if !matches!(program[0], Attach | Recover) {
                s.processes[p].lane = p as u8;
                s.words[CLAIM + p] = live(p);
            }
            self.begin(&mut s, p);
        }
        s
    }

    /// On to the next operation that is possible.
    fn begin(&self, s: &mut State, p: usize) {
        loop {
            let it = s.processes[p];
            let Some(op) = self.op(p, it.operation) else { return };
            let kind = |j: usize| s.hand(usize::from(it.lane), j).kind;
            let possible = match op {
                Attach => it.lane == NO_LANE,
                Recover | Leave => true,
                _ if it.lane == NO_LANE => false,
                Detach | Close | Finished => true,
                Send(j) | WaitSend(j) => kind(j) == Kind::Spare,
                Recv(j) | Copy(j) | WaitRecv(j) | WaitCopy(j) => kind(j) != Kind::Message,
                Release(j) => kind(j) == Kind::Message,
            };
            if possible {
                let stage = match op {
                    Recover => Stage::Recover(0),
                    Recv(_) | Copy(_) if self.config.full_effort => Stage::Recover(0),
                    Recv(_) | Copy(_) => Stage::Orphans,
                    WaitSend(_) | WaitRecv(_) | WaitCopy(_) => Stage::Listen,
                    _ => Stage::Main,
                };
                s.processes[p].turn(stage);
                return;
            }
            s.processes[p].operation += 1;
        }
    }

    pub fn finish(&self, s: &mut State, p: usize) {
        let it = &mut s.processes[p];
        if it.life != Life::Alive {
            return;
        }
        let Process { life, lane, operation, positions, .. } = *it;
        *it = Process { life, lane, operation: operation + 1, positions, ..Process::default() };
        self.begin(s, p);
    }

    pub fn can_run(&self, s: &State, p: usize) -> bool {
        let it = &s.processes[p];
        let awake = !it.asleep || self.config.deadlines.contains(&p);
        it.life == Life::Alive
            && awake
            && match self.op(p, it.operation) {
                None => false,
                Some(Recover) if it.stage == Stage::Recover(0) && it.length == 0 => {
                    (0..self.config.lanes).any(|k| s.is_claimable(k))
                }
                Some(_) => true,
            }
    }

    pub fn can_die(&self, s: &State, p: usize) -> bool {
        let it = &s.processes[p];
        let matters = self.config.sleeping || it.lane != NO_LANE || it.stage != Stage::Main;
        s.kills > 0 && it.life == Life::Alive && matters && self.config.kills.1.contains(&p)
    }

    pub fn kill(&self, s: &State, p: usize) -> State {
        let mut n = *s;
        n.kills -= 1;
        n.depart(p, Life::Dead);
        n
    }

    /// What is true as an operation begins; before its first step.
    fn begins(&self, s: &mut State, p: usize) {
        let (closed, known, mut undecided) = (s.is_closed, s.known, 0);
        for k in 0..self.config.lanes {
            undecided |= u8::from(s.is_claimable(k) || s.words[CLAIM + k] >> 9 == 1) << k;
        }
        let it = &mut s.processes[p];
        if !it.begun {
            it.begun = true;
            (it.began_closed, it.overlooked, it.undecided) = (closed, known, undecided);
            it.was_finished = false;
        }
    }

    /// One step.
    pub fn run(&self, cx: &mut Cx) -> Run<()> {
        self.begins(&mut cx.s, cx.me);
        let it = &mut cx.s.processes[cx.me];
        it.asleep = false; // if so, its time is over
        let op = self.op(cx.me, it.operation).expect("only who has something to do runs");
        match it.stage {
            Stage::Listen => self.listen(cx, op),
            Stage::Recover(k) => self.recover(cx, op, usize::from(k)),
            Stage::Decide(k) => self.decide(cx, usize::from(k)),
            Stage::PutBack(k) => self.put_back(cx, op, usize::from(k)),
            Stage::Write(k, hand) => self.write(cx, usize::from(k), hand),
            Stage::Settle(k) => self.settle(cx, op, usize::from(k)),
            Stage::IsLast => self.is_last(cx, op),
            Stage::Orphans => self.orphans(cx, op),
            Stage::Sleep => self.sleep(cx, op),
            Stage::LastResort => self.attach(cx, true),
            Stage::AreSpare(again, k, raised) => self.are_spare(cx, again, usize::from(k), raised),
            Stage::IsEmptyStill(raised) => self.is_empty_still(cx, raised),
            Stage::Main => match op {
                Attach => self.attach(cx, false),
                Detach => self.detach(cx),
                Send(j) | WaitSend(j) => self.send(cx, op, j),
                Recv(j) | Copy(j) | WaitRecv(j) | WaitCopy(j) => self.receive(cx, op, j),
                Release(j) => self.release(cx, j),
                Close => self.close(cx),
                Finished => self.finished(cx),
                Leave => self.leave(cx),
                Recover => unreachable!(),
            },
        }
    }

    // ---------------------------------------------------------------------------------------------------
    // Checks

    /// `rest`: nothing moves any more.
    pub fn wrong(&self, s: &State, rest: bool, thorough: bool) -> Option<&'static str> {
        let c = self.config;
        let mut cells = 0u16;
        for i in 0..c.slots {
            cells |= 1 << s.slot(i).cell;
        }
        for k in 0..c.lanes {
            for j in 0..c.hands {
                cells |= 1 << s.truth[k * HANDS + j];
            }
        }
        if cells.count_ones() as usize != c.slots + c.lanes * c.hands {
            return Some("a cell is lost or doubled");
        }
        if rest {
            if let Some(what) = (0..c.programs.len()).find_map(|p| self.sleeps_wrongly(s, p)) {
                return Some(what);
            }
        }
        if !rest && !thorough {
            return None;
        }
        for p in 0..c.programs.len() {
            if self.can_run(s, p) {
                if let Some(what) = alone(self, &mut s.clone(), p) {
                    return Some(what);
                }
            }
        }
        // With all others stopped, what is dead can be recovered.
        let mut after = *s;
        after.processes[JANITOR] = Process { life: Life::Alive, lane: NO_LANE, ..Process::default() };
        self.begin(&mut after, JANITOR);
        if self.can_run(&after, JANITOR) {
            if let Some(what) = alone(self, &mut after, JANITOR) {
                return Some(what);
            }
        }
        if let Some(what) = self.wrong_when_recovered(&after) {
            return Some(what);
        }
        // And somebody new can receive what is left.
        if rest && (0..c.lanes).any(|k| after.words[CLAIM + k] == FREE) {
            after.processes[JANITOR] =
                Process { life: Life::Alive, lane: NO_LANE, operation: 1, ..Process::default() };
            self.begin(&mut after, JANITOR);
            while self.can_run(&after, JANITOR) {
                if let Some(what) = alone(self, &mut after, JANITOR) {
                    return Some(what);
                }
            }
            let mut held = 0u64;
            for k in (0..c.lanes).filter(|&k| after.words[CLAIM + k] != FREE) {
                for j in 0..c.hands {
                    held |= 1 << after.payload[usize::from(after.truth[k * HANDS + j])];
                }
            }
            if after.sent & !after.consumed & !held != 0 {
                return Some("a message can not be received");
            }
        }
        None
    }

    /// All dead lanes are recovered, but those that somebody alive is at.
    fn wrong_when_recovered(&self, s: &State) -> Option<&'static str> {
        let c = self.config;
        let (mut there, mut twice, mut in_flight, mut orphans) = (0u64, 0u64, 0u64, false);
        let mut mixed = false;
        let mut count = |cell: u16, value: usize| {
            let id = s.payload[usize::from(cell)];
            mixed |= c.inline && s.words[value] != value_of(id);
            twice |= there & 1 << id;
            there |= 1 << id;
        };
        for i in (0..c.slots).filter(|&i| s.slot(i).full) {
            count(s.slot(i).cell, SLOT_VALUE + i);
        }
        for k in 0..c.lanes {
            let is_free = s.words[CLAIM + k] == FREE;
            if s.is_claimable(k) {
                return Some("a dead lane is not recovered");
            }
            for j in 0..c.hands {
                let (hand, truth) = (s.hand(k, j), u16::from(s.truth[k * HANDS + j]));
                if hand.cell != truth {
                    if is_free {
                        return Some("a hand does not say what it has");
                    }
                    in_flight |= 1 << s.payload[usize::from(truth)];
                } else if hand.kind == Kind::Orphan || hand.kind == Kind::Message && !is_free {
                    orphans |= hand.kind == Kind::Orphan && is_free;
                    count(hand.cell, VALUE + k * HANDS + j);
                }
            }
        }
        if twice != 0 {
            return Some("a message is there twice");
        }
        if there & s.consumed != 0 {
            return Some("a consumed message is there still");
        }
        if s.sent & !s.consumed & !there & !in_flight != 0 {
            return Some("a message is lost");
        }
        if there & !s.sent != 0 {
            return Some("a message is there that nobody sent");
        }
        if mixed {
            return Some("a message has another's value");
        }
        if orphans && s.words[ORPHANS] & 1 == 0 {
            return Some("an orphan that nobody will look for");
        }
        None
    }

    /// Nothing will happen any more, but what it waits for has.
    fn sleeps_wrongly(&self, s: &State, p: usize) -> Option<&'static str> {
        let c = self.config;
        let it = &s.processes[p];
        if !it.asleep {
            return None;
        }
        let others = (0..c.lanes).filter(|&k| k != usize::from(it.lane));
        let is_last =
            s.is_alone(p) && others.clone().all(|k| s.words[CLAIM + k] == FREE || s.is_claimable(k));
        let full = (0..c.slots).filter(|&i| s.slot(i).full).count();
        let sends = matches!(self.op(p, it.operation), Some(WaitSend(_)));
        if is_last {
            Some("sleeps though all others are gone")
        } else if s.is_closed && (sends || full == 0) {
            Some("sleeps though it is closed")
        } else if sends {
            (full < c.slots).then_some("sleeps though there is room")
        } else if full > 0 {
            Some("sleeps though there is a message")
        } else if (0..c.lanes).any(|k| (0..c.hands).any(|j| s.hand(k, j).kind == Kind::Orphan)) {
            Some("sleeps though there is an orphan")
        } else if others.into_iter().any(|k| s.is_claimable(k)) {
            Some("sleeps though a dead lane is to be recovered")
        } else {
            None
        }
    }

    // ---------------------------------------------------------------------------------------------------
    // Traces

    pub fn show(&self, s: &State) -> String {
        let c = self.config;
        let mut text = String::from("|");
        for i in 0..c.slots {
            text += &format!(" {}", show_word(SLOT, s.words[SLOT + i]));
            if c.inline {
                text += &format!("={}", s.words[SLOT_VALUE + i]);
            }
        }
        for k in 0..c.lanes {
            text += &format!(" | {}", show_word(CLAIM, s.words[CLAIM + k]));
            for j in 0..c.hands {
                let truth = u16::from(s.truth[k * HANDS + j]);
                text += &format!(" {}", show_word(HAND, s.words[HAND + k * HANDS + j]));
                if c.inline {
                    text += &format!("={}", s.words[VALUE + k * HANDS + j]);
                }
                if s.hand(k, j).cell != truth {
                    text += &format!("({truth})");
                }
            }
            if s.words[INTENT + k] != 0 {
                text += &format!(" i{:x}", s.words[INTENT + k] & 15);
            }
        }
        if s.words[ORPHANS] & 1 == 1 {
            text += &format!(" | orphans {}", s.words[ORPHANS]);
        }
        text
    }
}

pub fn address(word: usize) -> String {
    match word {
        VALUE.. => format!("value {}.{}", (word - VALUE) / HANDS, (word - VALUE) % HANDS),
        SLOT_VALUE.. => format!("value of slot {}", word - SLOT_VALUE),
        ORPHANS.. => "orphans".into(),
        HAND.. => format!("hand {}.{}", (word - HAND) / HANDS, (word - HAND) % HANDS),
        INTENT.. => format!("intent {}", word - INTENT),
        CLAIM.. => format!("claim {}", word - CLAIM),
        _ => format!("slot {word}"),
    }
}

pub fn show_word(word: usize, value: u16) -> String {
    match word {
        ORPHANS.. => format!("{value}"),
        HAND.. => {
            let hand = Hand::of(value);
            let number = if hand.kind == Kind::Orphan { format!(" #{}", hand.number) } else { String::new() };
            format!("{:?} {} x{}{number}", hand.kind, hand.cell, hand.deliveries)
        }
        INTENT.. => match Intent::of(value) {
            None => "none".into(),
            Some(it) => format!("{}, hand {}, for {}", address(it.place()), it.hand, it.cell),
        },
        CLAIM.. if value == FREE => "FREE".into(),
        CLAIM.. if value >> 8 == 1 => format!("LIVE({})", holder(value)),
        CLAIM.. => format!("RECOVERING({})", holder(value)),
        _ => {
            let w = Slot::of(value);
            let closed = if w.closed { " closed" } else { "" };
            format!("{}{} {}{closed}", if w.full { "F" } else { "E" }, w.lap, w.cell)
        }
    }
}
