//! `Queue`: whoever is killed, each message is received once, in its order, and cells and lanes are all there.
//!
//! What a death may do to a message is said for each operation: it *must* be there, *may* be there, must *not*; one that a copying
//! receiver was *taking* may be gone, which is counted. Whoever died with a message in hand has had it, so it comes once more,
//! and says so; nobody else's does.
//!
//! Lanes in doubt, which single-stepping reaches by the thousand, are also put there before (`dead_amid`): a sender and a receiver
//! that died right before or right after their exchange, with or without others who have gone on since, alone or both.

use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::{Queue, QueueOptions, RecvError, SendError, Unusable};
use crossproc_segment::Segment;

use crate::queue_cast::{Load, Wide};
use crate::scene::{
    After, Call, Found, OnObjects, Operation, PATIENCE, corrupt, done, duplicated, expect, held, lost, on,
    taken, wedged,
};
use crate::step::marked;

const SHORT: Duration = Duration::from_millis(5);
pub(super) const LANES: usize = 6;
/// What the victim sends; what it sends after that; what the first survivor sends.
const NEW: u64 = 50;
const NEXT: u64 = 51;
const MORE: u64 = 100;

pub(super) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn shape(capacity: usize) -> QueueOptions {
    QueueOptions::new(capacity).lanes(LANES).hands(2)
}

fn one<T: Load>(segment: &Segment) -> Queue<T> {
    shape(1).in_segment(segment, "q").expect("a queue")
}

fn two<T: Load>(segment: &Segment) -> Queue<T> {
    shape(2).in_segment(segment, "q").expect("a queue")
}

/// What must become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Must,
    May,
    Not,
    /// A copying receiver was taking it.
    Taking,
}
pub(super) use Fate::{May, Must, Not, Taking};

/// The messages that there can be, in their order, and whether one may be flagged as delivered before.
pub(super) type Fates = Vec<(u64, Fate, Flag)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    First,
    Again,
    Either,
}
pub(super) use Flag::{Again, Either, First};

/// A message that is sent.
pub(super) fn sent(after: After) -> Fate {
    match (after.begun, after.returned) {
        (false, _) => Not,
        (_, true) => Must,
        _ => May,
    }
}

/// A message that is received, copied and forgotten.
pub(super) fn copied(after: After) -> (Fate, Flag) {
    match (after.begun, after.returned) {
        (false, _) => (Must, First),
        (_, true) => (Not, First),
        _ => (Taking, Either),
    }
}

/// A message that is received and kept in hand.
pub(super) fn kept(after: After) -> (Fate, Flag) {
    match (after.begun, after.returned) {
        (false, _) => (Must, First),
        (_, true) => (Must, Again),
        _ => (Must, Either),
    }
}

/// A message in hand that is released.
pub(super) fn released(after: After) -> (Fate, Flag) {
    match (after.begun, after.returned) {
        (false, _) => (Must, Again),
        (_, true) => (Not, First),
        _ => (May, Again),
    }
}

/// What the first survivor sends.
fn more(after: After) -> Fate {
    match after.second {
        None => Not,
        Some(true) => Must,
        Some(false) => May,
    }
}

/// After a first survivor that has received and kept what came first, any message can have been in its hand.
pub(super) fn with_second(mut fates: Fates, after: After) -> Fates {
    if after.second.is_some() {
        for (_, _, flag) in &mut fates {
            *flag = if *flag == Again { Again } else { Either };
        }
    }
    fates
}

/// What all queues have in common. Messages are told by a number.
pub(super) trait Any: Sized {
    /// The next message, if there is one, and whether it comes again. It is received whole and for good.
    fn take(&self) -> Result<(u64, bool), RecvError>;
    fn put(&self, number: u64) -> Result<(), SendError<()>>;
    fn another(&self) -> Self;
    fn room(&self) -> usize;
    fn audited(&self) -> Result<(), crossproc_primitives::Violation>;
}

impl<T: Load> Any for Queue<T> {
    fn take(&self) -> Result<(u64, bool), RecvError> {
        self.try_recv_ref().map(|message| (message.number(), message.is_redelivered()))
    }
    fn put(&self, number: u64) -> Result<(), SendError<()>> {
        self.send_timeout(T::of(number), PATIENCE).map_err(|e| e.map(drop))
    }
    fn another(&self) -> Self {
        self.clone()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn audited(&self) -> Result<(), crossproc_primitives::Violation> {
        self.audit()
    }
}

pub(super) fn judge<Q: Any>(q: &Q, fates: &Fates, closed: bool) -> Found {
    let mut found: Vec<(u64, bool)> = Vec::new();
    let end = loop {
        match q.take() {
            Ok(message) => found.push(message),
            Err(end) => break end,
        }
        if found.len() > 16 {
            return duplicated(format!("more and more: {found:?}"));
        }
    };
    let should = if closed { RecvError::Closed } else { RecvError::Empty };
    let see = || format!("received {found:?} of {fates:?}");
    for (at, (value, again)) in found.iter().enumerate() {
        if found[..at].iter().any(|(other, _)| other == value) {
            return duplicated(see());
        }
        match fates.iter().find(|(known, ..)| known == value) {
            None => return corrupt(see()),
            Some((_, Not, _)) => return duplicated(see()),
            Some((.., First)) if *again => return corrupt(format!("flagged: {}", see())),
            Some((.., Again)) if !*again => return corrupt(format!("not flagged: {}", see())),
            _ => {}
        }
    }
    let is_there = |value: u64| found.iter().any(|(there, _)| *there == value);
    if fates.iter().any(|(value, fate, _)| *fate == Must && !is_there(*value)) {
        return lost(see());
    }
    let place = |value: u64| fates.iter().position(|(known, ..)| *known == value);
    let firsts = found.iter().filter(|(_, again)| !again).map(|(value, _)| place(*value));
    expect(firsts.is_sorted(), || format!("out of order: {}", see()))?;
    expect(end == should, || format!("{end} instead of {should}: {}", see()))?;
    usable(q, closed)?;
    let gone: Vec<_> = fates.iter().filter(|(value, fate, _)| *fate == Taking && !is_there(*value)).collect();
    match gone.len() {
        0 => Ok(()),
        1 => taken(see()),
        _ => lost(see()),
    }
}

fn audited<Q: Any>(q: &Q) -> Found {
    q.audited().or_else(|violation| corrupt(violation.to_string()))
}

/// As many handles as there are lanes that nobody alive has; each sends and receives; filled and emptied, the words are in order.
fn usable<Q: Any>(q: &Q, closed: bool) -> Found {
    let mut handles = Vec::new();
    loop {
        let handle = q.another();
        match handle.take() {
            Err(RecvError::Unusable(Unusable::NoLane)) => break,
            Err(RecvError::Empty | RecvError::Closed) => handles.push(handle),
            other => return corrupt(format!("a new handle of an empty queue receives {other:?}")),
        }
    }
    // Others that live: this one, and one or two that do nothing.
    expect((LANES - 3..LANES).contains(&handles.len()), || {
        format!("{} of {LANES} lanes can be had", handles.len())
    })?;
    audited(q)?;
    if closed {
        let refused = q.put(1);
        return expect(refused == Err(SendError::Closed(())), || format!("it is closed: {refused:?}"));
    }
    for handle in &handles[..3] {
        for nth in 0..q.room() as u64 {
            match handles[nth as usize % handles.len()].put(nth) {
                Ok(()) => {}
                Err(SendError::TimedOut(())) => return wedged("there is room, and nothing can be sent"),
                Err(other) => return corrupt(format!("sending: {other:?}")),
            }
        }
        for nth in 0..q.room() as u64 {
            match handle.take() {
                Ok(received) => {
                    expect(received == (nth, false), || format!("{received:?} instead of {nth}"))?
                }
                Err(other) => return corrupt(format!("receiving: {other:?}")),
            }
        }
        let empty = q.take();
        expect(empty == Err(RecvError::Empty), || format!("receiving from an empty queue: {empty:?}"))?;
    }
    drop(handles);
    audited(q)
}

/// A process that sent this, and is dead.
fn sender<T: Load>(values: &'static [u64]) -> impl Fn(&Queue<T>) {
    move |q| values.iter().for_each(|&value| q.try_send(T::of(value)).expect("there is room"))
}

/// A process that died with the first message in hand.
fn holder<T: Load>(q: &Queue<T>) {
    held(q.try_recv_ref().expect("there is a message"));
}

/// The first survivor of a double crash: takes back what the dead have, if there is nothing else to do.
fn take_back<T: Load>(q: &Queue<T>) {
    held(marked(|| q.try_recv_ref()));
}

fn send_more<T: Load>(q: &Queue<T>) {
    done(marked(|| q.try_send(T::of(MORE))));
}

pub fn add(table: &mut Vec<Operation>) {
    all::<u64>(table);
    let mut wide = Vec::new();
    all::<Wide>(&mut wide);
    for operation in &mut wide {
        let what_differs = ["Queue::send", "Loan::send", "Queue::recv", "Queue::recv_ref", "Message::drop"];
        operation.minor |= !what_differs.contains(&operation.name) && !operation.state.contains("in doubt");
        operation.state = format!("{}; in a cell", operation.state).leak();
    }
    table.append(&mut wide);
}

fn all<T: Load>(table: &mut Vec<Operation>) {
    sending::<T>(table);
    receiving::<T>(table);
    batches::<T>(table);
    closing::<T>(table);
    lanes::<T>(table);
    in_doubt::<T>(table);
}

fn sending<T: Load>(table: &mut Vec<Operation>) {
    let calls: [Call<Queue<T>>; 8] = [
        ("Queue::send", |q| done(marked(|| q.send(T::of(NEW)))), false),
        ("Queue::try_send", |q| done(marked(|| q.try_send(T::of(NEW)))), true),
        ("Queue::send_timeout", |q| done(marked(|| q.send_timeout(T::of(NEW), PATIENCE))), true),
        ("Queue::send_deadline", |q| done(marked(|| q.send_deadline(T::of(NEW), soon()))), true),
        (
            "Loan::send",
            |q| {
                done(marked(|| {
                    let mut loan = q.loan().expect("a hand");
                    *loan = T::of(NEW);
                    loan.send().is_ok()
                }));
            },
            false,
        ),
        ("Loan::try_send", |q| done(marked(|| new_loan(q).try_send().is_ok())), true),
        ("Loan::send_timeout", |q| done(marked(|| new_loan(q).send_timeout(PATIENCE).is_ok())), true),
        ("Loan::send_deadline", |q| done(marked(|| new_loan(q).send_deadline(soon()).is_ok())), true),
    ];
    for (name, victim, minor) in calls {
        table.push(
            on(one::<T>)
                .victim(victim)
                .recover(take_back)
                .check(|q, after| judge(q, &with_second(vec![(NEW, sent(after), First)], after), false))
                .named(name, "empty, capacity 1")
                .covers(&["Queue::loan"])
                .minor(minor),
        );
        table.push(
            on(two::<T>)
                .dead(sender(&[1]))
                .victim(victim)
                .recover(send_more)
                .check(|q, after| {
                    // There is room for only one of the two.
                    let more = if after.returned { Not } else { more_if_room(after) };
                    let sent = if after.second.is_some() && !after.returned {
                        sent_if_room(after)
                    } else {
                        sent(after)
                    };
                    judge(q, &vec![(1, Must, First), (NEW, sent, First), (MORE, more, First)], false)
                })
                .named(name, "one inside, capacity 2")
                .minor(minor),
        );
    }
    let full: [Call<Queue<T>>; 4] = [
        ("Queue::try_send", |q| done(marked(|| q.try_send(T::of(NEW)))), false),
        ("Queue::send_timeout", |q| done(marked(|| q.send_timeout(T::of(NEW), SHORT))), false),
        ("Queue::send", |q| done(marked(|| q.send(T::of(NEW)))), true),
        ("Loan::try_send", |q| done(marked(|| new_loan(q).try_send().is_ok())), true),
    ];
    for (name, victim, minor) in full {
        // Somebody else is there all the time: otherwise a sender would learn that there is nobody.
        let parts = on(one::<T>).living(|q| q.try_send(T::of(1)).expect("there is room")).victim(victim);
        let check = |q: &Queue<T>, after: After| judge(q, &with_second(vec![(1, Must, First)], after), false);
        let parts = if name == "Queue::send" { parts } else { parts.recover(take_back) };
        table.push(parts.check(check).named(name, "full").minor(minor));
    }
    let closed: [Call<Queue<T>>; 2] = [
        ("Queue::send", |q| done(marked(|| q.send(T::of(NEW)))), false),
        ("Loan::send", |q| done(marked(|| new_loan(q).send().is_ok())), true),
    ];
    for (name, victim, minor) in closed {
        table.push(
            on(two::<T>)
                .dead(|q| {
                    q.try_send(T::of(1)).expect("there is room");
                    done(q.close());
                })
                .victim(victim)
                .recover(take_back)
                .check(|q, after| judge(q, &with_second(vec![(1, Must, First)], after), true))
                .named(name, "closed")
                .minor(minor),
        );
    }
    table.push(
        on(one::<T>)
            .victim(|q| {
                let loan = new_loan(q);
                marked(|| drop(loan));
            })
            .recover(take_back)
            .check(|q, _| judge(q, &Vec::new(), false))
            .named("Loan::drop", ""),
    );
}

fn new_loan<T: Load>(q: &Queue<T>) -> crossproc_primitives::Loan<'_, T> {
    let mut loan = q.loan().expect("a hand");
    *loan = T::of(NEW);
    loan
}

/// When both send and there is room for one.
fn more_if_room(after: After) -> Fate {
    if after.begun && after.second.is_some() { May } else { more(after) }
}

fn sent_if_room(after: After) -> Fate {
    sent(after)
}

fn receiving<T: Load>(table: &mut Vec<Operation>) {
    let copying: [Call<Queue<T>>; 4] = [
        ("Queue::recv", |q| done(marked(|| q.recv())), false),
        ("Queue::try_recv", |q| done(marked(|| q.try_recv())), true),
        ("Queue::recv_timeout", |q| done(marked(|| q.recv_timeout(PATIENCE))), true),
        ("Queue::recv_deadline", |q| done(marked(|| q.recv_deadline(soon()))), true),
    ];
    let in_place: [Call<Queue<T>>; 4] = [
        ("Queue::recv_ref", |q| held(marked(|| q.recv_ref())), false),
        ("Queue::try_recv_ref", |q| held(marked(|| q.try_recv_ref())), true),
        ("Queue::recv_ref_timeout", |q| held(marked(|| q.recv_ref_timeout(PATIENCE))), true),
        ("Queue::recv_ref_deadline", |q| held(marked(|| q.recv_ref_deadline(soon()))), true),
    ];
    for (names, fate) in [(copying, copied as fn(After) -> (Fate, Flag)), (in_place, kept)] {
        for (name, victim, minor) in names {
            table.push(
                on(one::<T>)
                    .dead(sender(&[1]))
                    .victim(victim)
                    .recover(take_back)
                    .check(move |q, after| {
                        let (fate, flag) = fate(after);
                        judge(q, &with_second(vec![(1, fate, flag)], after), false)
                    })
                    .named(name, "one inside, capacity 1")
                    .minor(minor),
            );
            table.push(
                on(two::<T>)
                    .dead(sender(&[1, 2]))
                    .victim(victim)
                    .recover(send_more)
                    .check(move |q, after| {
                        let (fate, flag) = fate(after);
                        // There is room if the first one was received.
                        let more = match (after.second, after.begun, after.returned) {
                            (None, ..) | (_, false, _) => Not,
                            (Some(true), _, true) => Must,
                            _ => May,
                        };
                        judge(q, &vec![(1, fate, flag), (2, Must, First), (MORE, more, First)], false)
                    })
                    .named(name, "full, capacity 2")
                    .minor(minor),
            );
            // What a dead one had in its hand; the ring is empty.
            table.push(
                on(one::<T>)
                    .dead(sender(&[1]))
                    .dead(holder)
                    .victim(victim)
                    .recover(take_back)
                    .check(move |q, after| {
                        let fate = fate(after).0;
                        judge(q, &vec![(1, fate, if fate == Not { First } else { Again })], false)
                    })
                    .named(name, "empty, a dead one has a message")
                    .minor(minor),
            );
        }
    }
    // Two dead ones have one each, another one is in the ring, and it is closed.
    table.push(
        on(two::<T>)
            .dead(sender(&[1, 2]))
            .dead(holder)
            .dead(holder)
            .dead(|q| {
                q.try_send(T::of(3)).expect("there is room");
                done(q.close());
            })
            .victim(|q| {
                held(q.try_recv_ref());
                held(marked(|| q.try_recv_ref()));
            })
            .recover(take_back)
            .check(|q, after| {
                judge(
                    q,
                    &with_second(vec![(1, Must, Again), (2, Must, Again), (3, Must, Either)], after),
                    true,
                )
            })
            .named("Queue::try_recv_ref", "closed, two dead ones have a message"),
    );
    let nothing: [Call<Queue<T>>; 4] = [
        ("Queue::try_recv", |q| done(marked(|| q.try_recv())), false),
        ("Queue::recv_timeout", |q| done(marked(|| q.recv_timeout(SHORT))), false),
        ("Queue::recv_ref_timeout", |q| done(marked(|| q.recv_ref_timeout(SHORT).is_ok())), true),
        ("Queue::recv", |q| done(marked(|| q.recv())), true),
    ];
    for (name, victim, minor) in nothing {
        let parts = on(one::<T>)
            .living(|_| ())
            .victim(victim)
            .check(|q, after| judge(q, &vec![(MORE, more(after), First)], false));
        let parts = if name == "Queue::recv" { parts } else { parts.recover(send_more) };
        table.push(parts.named(name, "empty").minor(minor));
    }
    table.push(
        on(two::<T>)
            .dead(sender(&[1]))
            .victim(|q| {
                let message = q.try_recv_ref().expect("there is a message");
                marked(|| drop(message));
            })
            .recover(take_back)
            .check(|q, after| {
                let (fate, flag) = released(after);
                judge(q, &vec![(1, fate, flag)], false)
            })
            .named("Message::drop", ""),
    );
}

fn batches<T: Load>(table: &mut Vec<Operation>) {
    table.push(
        on(two::<T>)
            .victim(|q| done(marked(|| q.send_many(&[NEW, NEXT, 52].map(T::of)))))
            .recover(take_back)
            .check(|q, after| {
                let fates = vec![(NEW, sent(after), First), (NEXT, sent(after), First)];
                judge(q, &with_second(fates, after), false)
            })
            .named("Queue::send_many", "room for two of three"),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1, 2]))
            .victim(|q| done(marked(|| q.recv_many(&mut Vec::with_capacity(4), 4))))
            .recover(take_back)
            .check(|q, after| {
                let (fate, flag) = copied(after);
                // One was received and is in the vector that died; the next one was being taken.
                let first = if fate == Taking { May } else { fate };
                judge(q, &with_second(vec![(1, first, flag), (2, fate, flag)], after), false)
            })
            .named("Queue::recv_many", "two inside"),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1, 2]))
            .victim(|q| done(marked(|| q.try_iter().count())))
            .recover(take_back)
            .check(|q, after| {
                let (fate, flag) = copied(after);
                let first = if fate == Taking { May } else { fate };
                judge(q, &with_second(vec![(1, first, flag), (2, fate, flag)], after), false)
            })
            .named("Queue::try_iter", "two inside")
            .covers(&["Queue::iter"])
            .minor(true),
    );
}

fn closing<T: Load>(table: &mut Vec<Operation>) {
    let states: [(&str, &'static [u64]); 3] = [("empty", &[]), ("one inside", &[1]), ("full", &[1, 2])];
    for (state, inside) in states {
        table.push(
            on(two::<T>)
                .dead(sender(inside))
                .victim(|q| done(marked(|| q.close())))
                .recover(|q| done(marked(|| q.close())))
                .check(move |q, after| {
                    let fates = inside.iter().map(|&value| (value, Must, First)).collect();
                    let closed = q.is_closed();
                    match (
                        after.begun || after.second.is_some(),
                        after.returned || after.second == Some(true),
                    ) {
                        (false, _) if closed => return corrupt("nobody has closed it"),
                        (_, true) if !closed => return lost("it was closed, and is not"),
                        _ => {}
                    }
                    judge(q, &fates, closed)
                })
                .named("Queue::close", state),
        );
    }
    table.push(
        on(two::<T>)
            .dead(|q| done(q.close()))
            .victim(|q| done(marked(|| q.close())))
            .recover(|q| done(marked(|| q.close())))
            .check(|q, _| judge(q, &Vec::new(), true))
            .named("Queue::close", "closed")
            .minor(true),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1, 2]))
            .victim(|q| done(marked(|| q.shutdown())))
            .recover(|q| done(marked(|| q.shutdown())))
            .check(|q, after| {
                let all = after.returned || after.second == Some(true);
                let begun = after.begun || after.second.is_some();
                let fate = if all {
                    Not
                } else if begun {
                    May
                } else {
                    Must
                };
                let flag = if fate == May { Either } else { First };
                if all && !q.is_closed() {
                    return lost("it was closed, and is not");
                }
                judge(q, &vec![(1, fate, flag), (2, fate, flag)], q.is_closed())
            })
            .named("Queue::shutdown", "two inside"),
    );
}

fn lanes<T: Load>(table: &mut Vec<Operation>) {
    /// Only the segment; in it there is a queue.
    fn segment_of<T: Load>(segment: &Segment) -> Segment {
        drop(two::<T>(segment));
        segment.clone()
    }
    let check = |segment: &Segment, _: After| judge(&two::<T>(segment), &vec![(1, Must, First)], false);
    let send = |segment: &Segment| sender(&[1])(&two::<T>(segment));
    table.push(
        on(segment_of::<T>)
            .dead(move |segment| {
                let q = two::<T>(segment);
                sender(&[1])(&q);
                forget(q);
            })
            .victim(|segment| held(marked(|| two::<T>(segment))))
            .recover(|segment| held(marked(|| two::<T>(segment))))
            .check(check)
            .named("Objects::queue", "one that is there")
            .covers(&["QueueOptions::in_segment"]),
    );
    // The lanes of three dead ones are taken back by who finds none free.
    table.push(
        on(segment_of::<T>)
            .dead(move |segment| {
                send(segment);
                (0..LANES).for_each(|_| forget(two::<T>(segment)));
            })
            .victim(|segment| held(marked(|| two::<T>(segment))))
            .recover(|segment| held(marked(|| two::<T>(segment))))
            .check(check)
            .named("Objects::queue", "all lanes are dead ones'"),
    );
    table.push(
        on(|segment| segment.clone())
            .victim(|segment| held(marked(|| two::<T>(segment))))
            .recover(|segment| held(marked(|| two::<T>(segment))))
            .check(|segment: &Segment, _| judge(&two::<T>(segment), &Vec::new(), false))
            .named("Objects::queue", "a new one")
            .covers(&["QueueOptions::anonymous"]),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1]))
            .victim(|q| held(marked(|| q.clone())))
            .recover(|q| held(marked(|| q.clone())))
            .check(|q, _| judge(q, &vec![(1, Must, First)], false))
            .named("Queue::clone", ""),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1]))
            .victim(|q| {
                let other = q.clone();
                marked(|| drop(other));
            })
            .recover(|q| held(marked(|| q.clone())))
            .check(|q, _| judge(q, &vec![(1, Must, First)], false))
            .named("Queue::drop", ""),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1, 2]))
            .victim(|q| {
                let other = q.clone();
                held(other.try_recv_ref());
                marked(|| drop(other));
            })
            .recover(take_back)
            .check(|q, after| judge(q, &with_second(vec![(1, Must, Again), (2, Must, First)], after), false))
            .named("Queue::drop", "a message was leaked"),
    );
    table.push(
        on(two::<T>)
            .dead(sender(&[1]))
            .victim(|q| {
                let shared = q.clone().share();
                done(marked(|| shared.try_send(T::of(NEW))));
                forget(shared);
            })
            .recover(take_back)
            .check(|q, after| {
                let fates = vec![(1, Must, First), (NEW, sent(after), First)];
                judge(q, &with_second(fates, after), false)
            })
            .named("SharedQueue::try_send", "")
            .covers(&SHARED),
    );
}

/// They call what is tried by itself, with a handle that is made first.
const SHARED: [&str; 11] = [
    "SharedQueue::handle",
    "SharedQueue::send",
    "SharedQueue::send_timeout",
    "SharedQueue::send_deadline",
    "SharedQueue::recv",
    "SharedQueue::try_recv",
    "SharedQueue::recv_timeout",
    "SharedQueue::recv_deadline",
    "SharedQueue::close",
    "SharedQueue::len",
    "SharedQueue::is_empty",
];

/// Who takes back a lane must find out whether its exchange came off.
fn in_doubt<T: Load>(table: &mut Vec<Operation>) {
    fn has_sent<T: Load>(q: &Queue<T>) -> bool {
        !q.is_empty()
    }
    fn has_received<T: Load>(q: &Queue<T>) -> bool {
        q.is_empty()
    }
    /// Others go on: nothing in the ring is where it was.
    fn go_on<T: Load>(q: &Queue<T>) {
        for value in 60..65 {
            // Who finds the queue empty would take back what the dead have.
            q.try_send(T::of(value)).expect("there is room");
            q.try_recv().expect("there is a message");
        }
    }
    type Parts<T> = OnObjects<Queue<T>>;
    /// What happened, what becomes of the messages, and the name of that.
    type Doubt<T> = (Parts<T>, fn() -> Fates, &'static str);
    let finish = |parts: Parts<T>, fates: fn() -> Fates, name: &'static str| {
        parts
            .victim(take_back)
            .recover(take_back)
            .check(move |q, after| {
                let mut fates = fates();
                if after.begun {
                    for (_, _, flag) in &mut fates {
                        *flag = if *flag == Again { Again } else { Either };
                    }
                }
                judge(q, &with_second(fates, after), false)
            })
            .named("Queue::try_recv_ref", name)
    };
    let send = |q: &Queue<T>| done(marked(|| q.try_send(T::of(NEW))));
    let receive = |q: &Queue<T>| held(marked(|| q.try_recv_ref()));
    let keep = |q: &Queue<T>| forget(q.try_recv_ref());
    // Only what is at stake is left in the ring. The last sender lives on, so that its lane is not in the way.
    let tries: [Doubt<T>; 10] = [
        (
            on(one::<T>).dead_amid(send, has_sent, true),
            || vec![(NEW, Must, First)],
            "in doubt: has just sent",
        ),
        (on(one::<T>).dead_amid(send, has_sent, false), Vec::new, "in doubt: was about to send"),
        (
            on(one::<T>).dead_amid(send, has_sent, true).dead(keep).dead(go_on),
            || vec![(NEW, Must, Again)],
            "in doubt: has sent, and others went on",
        ),
        (
            on(one::<T>).dead_amid(send, has_sent, false).dead(sender(&[1])).dead(keep).dead(go_on),
            || vec![(1, Must, Again)],
            "in doubt: was about to send, and others went on",
        ),
        (
            on(one::<T>).dead(sender(&[1])).dead_amid(receive, has_received, true),
            || vec![(1, Must, Again)],
            "in doubt: has just received",
        ),
        (
            on(one::<T>).dead(sender(&[1])).dead_amid(receive, has_received, false),
            || vec![(1, Must, First)],
            "in doubt: was about to receive",
        ),
        (
            on(one::<T>)
                .dead(sender(&[1]))
                .dead_amid(receive, has_received, true)
                .dead(sender(&[2]))
                .dead(keep),
            || vec![(1, Must, Again), (2, Must, Again)],
            "in doubt: has received, and others went on",
        ),
        (
            on(one::<T>)
                .dead(sender(&[1]))
                .dead_amid(receive, has_received, false)
                .dead(keep)
                .dead(sender(&[2])),
            || vec![(1, Must, Again), (2, Must, First)],
            "in doubt: was about to receive, and others went on",
        ),
        (
            on(one::<T>).dead_amid(send, has_sent, true).dead_amid(receive, has_received, true),
            || vec![(NEW, Must, Again)],
            "two in doubt: one has sent, the other received that",
        ),
        (
            on(one::<T>)
                .dead_amid(send, has_sent, true)
                .dead_amid(receive, has_received, true)
                .dead(sender(&[2]))
                .dead(keep),
            || vec![(NEW, Must, Again), (2, Must, Again)],
            "two in doubt, and others went on",
        ),
    ];
    for (parts, fates, name) in tries {
        table.push(finish(parts, fates, name));
    }
}
