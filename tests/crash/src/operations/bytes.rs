//! `BytesQueue`, `ObjectQueue`, `JoinableQueue`: as `Queue`, with messages that have memory of their own, and tasks that are finished or not.

use std::mem::forget;

use crossproc_primitives::{
    BytesQueue, BytesQueueOptions, JoinError, JoinableQueue, ObjectQueue, QueueOptions, RecvError, SendError,
    Violation,
};
use crossproc_segment::Segment;

use super::queues::{
    Again, Any, Either, Fate, First, Flag, LANES, May, Must, Not, copied, judge, kept, released, sent, soon,
    with_second,
};
use crate::scene::{After, Call, Found, OnObjects, Operation, PATIENCE, done, expect, held, on};
use crate::step::marked;

type Objects = ObjectQueue<Vec<u64>>;
type Tasks = JoinableQueue<u64>;
/// A way to send a message: its name, the message, the victim's part, and whether a short run leaves it out.
type Send<Q> = (&'static str, u64, fn(&Q), bool);
/// A way to do something: its name, and the victim's part.
type Do<Q> = (&'static str, fn(&Q));
/// What becomes of a message.
type Fated = fn(After) -> (Fate, Flag);

/// Messages from this number on are longer than a cell, and get memory of their own.
const LARGE: u64 = 100;
const NEW: u64 = 50;
const NEW_LARGE: u64 = 150;

fn options() -> BytesQueueOptions {
    BytesQueueOptions::new(1).lanes(LANES).hands(2).inline(40).message_max(4096)
}

fn bytes(segment: &Segment) -> BytesQueue {
    options().in_segment(segment, "q").expect("a queue")
}

fn objects(segment: &Segment) -> Objects {
    options().objects_in_segment(segment, "q").expect("a queue")
}

fn tasks(segment: &Segment) -> Tasks {
    QueueOptions::new(2).lanes(LANES).hands(2).joinable_in_segment(segment, "q").expect("a queue")
}

/// A new segment has room for them.
fn onto<S: 'static>(find: fn(&Segment) -> S) -> OnObjects<S> {
    on(find).windows(options().windows().expect("a possible queue"))
}

fn message(number: u64) -> Vec<u8> {
    vec![number as u8; if number < LARGE { 20 } else { 100 }]
}

fn number(message: &[u8]) -> u64 {
    let number = u64::from(*message.first().expect("a message that is not empty"));
    assert_eq!(message, self::message(number), "a torn message");
    number
}

fn object(number: u64) -> Vec<u64> {
    vec![number; if number < LARGE { 5 } else { 70 }]
}

impl Any for BytesQueue {
    fn take(&self) -> Result<(u64, bool), RecvError> {
        self.try_recv_ref().map(|message| (number(&message), message.is_redelivered()))
    }
    fn put(&self, number: u64) -> Result<(), SendError<()>> {
        // Each place, long and short.
        self.send_timeout(&message(number + LARGE), PATIENCE)?;
        let long = self.try_recv().ok().map(|message| self::number(&message));
        assert_eq!(long, Some(number + LARGE), "what was just sent");
        self.send_timeout(&message(number), PATIENCE)
    }
    fn another(&self) -> Self {
        self.clone()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn audited(&self) -> Result<(), Violation> {
        self.audit()
    }
}

impl Any for Objects {
    fn take(&self) -> Result<(u64, bool), RecvError> {
        self.try_recv_ref().map(|message| {
            let number = *message.first().expect("an object that is not empty");
            assert_eq!(*message, object(number), "a torn object");
            (number, message.is_redelivered())
        })
    }
    fn put(&self, number: u64) -> Result<(), SendError<()>> {
        self.send_timeout(object(number), PATIENCE).map_err(|e| e.map(drop))
    }
    fn another(&self) -> Self {
        self.clone()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn audited(&self) -> Result<(), Violation> {
        self.audit()
    }
}

impl Any for Tasks {
    fn take(&self) -> Result<(u64, bool), RecvError> {
        let task = self.try_recv()?;
        let taken = (*task, task.deliveries() > 1);
        assert!(!self.is_finished(), "a task is not done");
        task.done();
        Ok(taken)
    }
    fn put(&self, number: u64) -> Result<(), SendError<()>> {
        self.send_timeout(number, PATIENCE).map_err(|e| e.map(drop))
    }
    fn another(&self) -> Self {
        self.clone()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn audited(&self) -> Result<(), Violation> {
        self.audit()
    }
}

pub fn add(table: &mut Vec<Operation>) {
    of_bytes(table);
    of_objects(table);
    of_tasks(table);
}

fn of_bytes(table: &mut Vec<Operation>) {
    fn loan(q: &BytesQueue, number: u64) -> crossproc_primitives::BytesLoan<'_> {
        let message = message(number);
        let mut loan = q.loan(message.len()).expect("a hand, and memory");
        loan.copy_from_slice(&message);
        loan
    }
    let take_back = |q: &BytesQueue| held(marked(|| q.try_recv_ref()));
    let sends: [Send<BytesQueue>; 8] = [
        ("BytesQueue::send", NEW, |q| done(marked(|| q.send(&message(NEW)))), false),
        ("BytesQueue::send", NEW_LARGE, |q| done(marked(|| q.send(&message(NEW_LARGE)))), false),
        ("BytesQueue::try_send", NEW_LARGE, |q| done(marked(|| q.try_send(&message(NEW_LARGE)))), true),
        (
            "BytesQueue::send_timeout",
            NEW_LARGE,
            |q| done(marked(|| q.send_timeout(&message(NEW_LARGE), PATIENCE))),
            true,
        ),
        ("BytesQueue::send_deadline", NEW, |q| done(marked(|| q.send_deadline(&message(NEW), soon()))), true),
        ("BytesLoan::send", NEW_LARGE, |q| done(marked(|| loan(q, NEW_LARGE).send().is_ok())), false),
        (
            "BytesLoan::truncate",
            NEW,
            |q| {
                let mut loan = loan(q, NEW_LARGE);
                loan[..20].copy_from_slice(&message(NEW));
                done(marked(|| {
                    loan.truncate(20);
                    loan.try_send().is_ok()
                }));
            },
            false,
        ),
        ("BytesLoan::try_send", NEW, |q| done(marked(|| loan(q, NEW).try_send().is_ok())), true),
    ];
    for (name, new, victim, minor) in sends {
        table.push(
            onto(bytes)
                .victim(victim)
                .recover(take_back)
                .check(move |q, after| judge(q, &with_second(vec![(new, sent(after), First)], after), false))
                .named(name, if new < LARGE { "a short message" } else { "a long message" })
                .covers(&["BytesQueue::loan", "BytesLoan::send_timeout", "BytesLoan::send_deadline"])
                .minor(minor),
        );
    }
    table.push(
        onto(bytes)
            .victim(|q| {
                let loan = loan(q, NEW_LARGE);
                marked(|| drop(loan));
            })
            .recover(take_back)
            .check(|q, _| judge(q, &Vec::new(), false))
            .named("BytesLoan::drop", "a long message"),
    );
    let copying: [Call<BytesQueue>; 4] = [
        ("BytesQueue::recv", |q| done(marked(|| q.recv())), false),
        ("BytesQueue::try_recv", |q| done(marked(|| q.try_recv())), true),
        ("BytesQueue::recv_into", |q| done(marked(|| q.recv_into(&mut [0; 4096]))), false),
        ("BytesQueue::try_iter", |q| done(marked(|| q.try_iter().next())), true),
    ];
    let in_place: [Call<BytesQueue>; 2] = [
        ("BytesQueue::recv_ref", |q| held(marked(|| q.recv_ref())), false),
        ("BytesQueue::try_recv_ref", |q| held(marked(|| q.try_recv_ref())), true),
    ];
    for (calls, fate) in [(&copying[..], copied as fn(After) -> _), (&in_place[..], kept)] {
        for &(name, victim, minor) in calls {
            for (state, inside) in [("a short message", 1), ("a long message", LARGE + 1)] {
                table.push(
                    onto(bytes)
                        .dead(move |q| q.try_send(&message(inside)).expect("there is room"))
                        .victim(victim)
                        .recover(take_back)
                        .check(move |q, after| {
                            let (fate, flag) = fate(after);
                            judge(q, &with_second(vec![(inside, fate, flag)], after), false)
                        })
                        .named(name, state)
                        .covers(&BYTES_ALIKE)
                        .minor(minor || inside < LARGE),
                );
            }
            // Its receiver died, with the memory of a long one in its hand.
            table.push(
                onto(bytes)
                    .dead(|q| q.try_send(&message(LARGE + 1)).expect("there is room"))
                    .dead(|q| held(q.try_recv_ref().expect("there is a message")))
                    .victim(victim)
                    .recover(take_back)
                    .check(move |q, after| {
                        let fate = fate(after).0;
                        judge(q, &vec![(LARGE + 1, fate, if fate == Not { First } else { Again })], false)
                    })
                    .named(name, "empty, a dead one has a long message")
                    .minor(minor),
            );
        }
    }
    table.push(
        onto(bytes)
            .dead(|q| q.try_send(&message(LARGE + 1)).expect("there is room"))
            .victim(|q| {
                let message = q.try_recv_ref().expect("there is a message");
                marked(|| drop(message));
            })
            .recover(take_back)
            .check(|q, after| {
                let (fate, flag) = released(after);
                judge(q, &vec![(LARGE + 1, fate, flag)], false)
            })
            .named("BytesMessage::drop", "a long message"),
    );
    let ends: [Do<BytesQueue>; 2] = [
        ("BytesQueue::close", |q| done(marked(|| q.close()))),
        ("BytesQueue::shutdown", |q| done(marked(|| q.shutdown()))),
    ];
    for (name, victim) in ends {
        table.push(
            onto(bytes)
                .dead(|q| q.try_send(&message(LARGE + 1)).expect("there is room"))
                .victim(victim)
                .recover(victim)
                .check(move |q, after| {
                    let begun = after.begun || after.second.is_some();
                    let ended = after.returned || after.second == Some(true);
                    let fate = match (name, begun, ended) {
                        ("BytesQueue::close", ..) | (_, false, _) => (Must, First),
                        (_, _, true) => (Not, First),
                        _ => (May, Either),
                    };
                    expect(!ended || q.is_closed(), || "it was closed, and is not".to_owned())?;
                    judge(q, &vec![(LARGE + 1, fate.0, fate.1)], q.is_closed())
                })
                .named(name, "a long message inside"),
        );
    }
    /// Nobody has looked for a queue in it.
    fn empty(segment: &Segment) -> Segment {
        segment.clone()
    }
    table.push(
        onto(empty)
            .victim(|segment| held(marked(|| bytes(segment))))
            .recover(|segment| held(marked(|| bytes(segment))))
            .check(|segment: &Segment, _| judge(&bytes(segment), &Vec::new(), false))
            .named("BytesQueueOptions::in_segment", "a new one")
            .covers(&["BytesQueueOptions::anonymous"]),
    );
}

/// They differ from those that are tried only in how long they wait, or in where they copy to.
const BYTES_ALIKE: [&str; 8] = [
    "BytesQueue::recv_timeout",
    "BytesQueue::recv_deadline",
    "BytesQueue::recv_into_timeout",
    "BytesQueue::recv_into_deadline",
    "BytesQueue::try_recv_into",
    "BytesQueue::recv_ref_timeout",
    "BytesQueue::recv_ref_deadline",
    "BytesQueue::iter",
];

fn of_objects(table: &mut Vec<Operation>) {
    let take_back = |q: &Objects| held(marked(|| q.try_recv_ref()));
    let sends: [Send<Objects>; 3] = [
        ("ObjectQueue::send", NEW_LARGE, |q| done(marked(|| q.send(object(NEW_LARGE)))), false),
        ("ObjectQueue::send", NEW, |q| done(marked(|| q.send(object(NEW)))), true),
        ("ObjectQueue::try_send", NEW_LARGE, |q| done(marked(|| q.try_send(object(NEW_LARGE)))), true),
    ];
    for (name, new, victim, minor) in sends {
        table.push(
            onto(objects)
                .victim(victim)
                .recover(take_back)
                .check(move |q, after| judge(q, &with_second(vec![(new, sent(after), First)], after), false))
                .named(name, if new < LARGE { "a small one" } else { "a large one" })
                .covers(&OBJECTS_ALIKE)
                .minor(minor),
        );
    }
    let receives: [(Do<Objects>, Fated); 3] = [
        (("ObjectQueue::recv", |q| done(marked(|| q.recv()))), copied),
        (("ObjectQueue::try_recv", |q| done(marked(|| q.try_recv()))), copied),
        (("ObjectQueue::recv_ref", |q| held(marked(|| q.recv_ref()))), kept),
    ];
    for ((name, victim), fate) in receives {
        table.push(
            onto(objects)
                .dead(|q| q.try_send(object(LARGE + 1)).expect("there is room"))
                .victim(victim)
                .recover(take_back)
                .check(move |q, after| {
                    let (fate, flag) = fate(after);
                    judge(q, &with_second(vec![(LARGE + 1, fate, flag)], after), false)
                })
                .named(name, "a large one")
                .minor(name == "ObjectQueue::try_recv"),
        );
    }
    table.push(
        onto(objects)
            .dead(|q| q.try_send(object(LARGE + 1)).expect("there is room"))
            .victim(|q| {
                let message = q.try_recv_ref().expect("there is an object");
                done(marked(|| message.into_inner()));
            })
            .recover(take_back)
            .check(|q, after| {
                let (fate, flag) = released(after);
                judge(q, &vec![(LARGE + 1, fate, flag)], false)
            })
            .named("ObjectMessage::into_inner", "a large one"),
    );
}

/// Short calls of the same queue of bytes.
const OBJECTS_ALIKE: [&str; 25] = [
    "BytesQueueOptions::objects",
    "BytesQueueOptions::objects_in_segment",
    "ObjectQueue::send_timeout",
    "ObjectQueue::send_deadline",
    "ObjectQueue::recv_timeout",
    "ObjectQueue::recv_deadline",
    "ObjectQueue::recv_ref_timeout",
    "ObjectQueue::recv_ref_deadline",
    "ObjectQueue::try_recv_ref",
    "ObjectQueue::iter",
    "ObjectQueue::try_iter",
    "ObjectQueue::close",
    "ObjectQueue::shutdown",
    "SharedObjectQueue::handle",
    "SharedObjectQueue::send",
    "SharedObjectQueue::try_send",
    "SharedObjectQueue::send_timeout",
    "SharedObjectQueue::send_deadline",
    "SharedObjectQueue::recv",
    "SharedObjectQueue::try_recv",
    "SharedObjectQueue::recv_timeout",
    "SharedObjectQueue::recv_deadline",
    "SharedObjectQueue::close",
    "SharedObjectQueue::len",
    "SharedObjectQueue::is_empty",
];

fn of_tasks(table: &mut Vec<Operation>) {
    /// Unfinished as long as there is a task.
    fn finished(q: &Tasks, fates: &super::queues::Fates) -> Found {
        let there = fates.iter().any(|(_, fate, _)| *fate == Must);
        if there {
            expect(!q.is_finished(), || format!("finished, with {fates:?}"))?;
        }
        judge(q, fates, false)?;
        let joined = q.join_timeout(PATIENCE);
        expect(joined == Ok(()), || format!("all tasks are done: {joined:?}"))
    }
    fn send(q: &Tasks) {
        q.try_send(1).expect("there is room");
    }
    let take_back = |q: &Tasks| held(marked(|| q.try_recv()));
    let calls: [Do<Tasks>; 2] = [
        ("JoinableQueue::send", |q| done(marked(|| q.send(NEW)))),
        ("JoinableQueue::try_send", |q| done(marked(|| q.try_send(NEW)))),
    ];
    for (name, victim) in calls {
        table.push(
            on(tasks)
                .victim(victim)
                .recover(take_back)
                .check(|q, after| finished(q, &with_second(vec![(NEW, sent(after), First)], after)))
                .named(name, "")
                .covers(&TASKS_ALIKE)
                .minor(name == "JoinableQueue::try_send"),
        );
    }
    let calls: [Do<Tasks>; 2] = [
        ("JoinableQueue::recv", |q| held(marked(|| q.recv()))),
        ("JoinableQueue::try_recv", |q| held(marked(|| q.try_recv()))),
    ];
    for (name, victim) in calls {
        table.push(
            on(tasks)
                .dead(send)
                .victim(victim)
                .recover(take_back)
                .check(|q, after| {
                    let (fate, flag) = kept(after);
                    finished(q, &with_second(vec![(1, fate, flag)], after))
                })
                .named(name, "one inside")
                .minor(name == "JoinableQueue::try_recv"),
        );
    }
    table.push(
        on(tasks)
            .dead(send)
            .victim(|q| {
                let task = q.try_recv().expect("there is a task");
                marked(|| task.done());
            })
            .recover(take_back)
            .check(|q, after| {
                let (fate, flag) = released(after);
                finished(q, &vec![(1, fate, flag)])
            })
            .named("Task::done", ""),
    );
    // Who waits for the last task takes back what a dead one has.
    table.push(
        on(tasks)
            .dead(send)
            .dead(|q| forget(q.try_recv().expect("there is a task")))
            .living(|_| ())
            .victim(|q| {
                let joined = marked(|| q.join_timeout(std::time::Duration::from_millis(5)));
                assert_eq!(joined, Err(JoinError::TimedOut), "a task is not done");
            })
            .recover(take_back)
            .check(|q, _| finished(q, &vec![(1, Must, Again)]))
            .named("JoinableQueue::join_timeout", "a dead one has a task"),
    );
    table.push(
        on(tasks)
            .dead(|q| {
                send(q);
                q.try_recv().expect("there is a task").done();
            })
            .victim(|q| done(marked(|| q.join())))
            .recover(|q| done(marked(|| q.join())))
            .check(|q, _| finished(q, &Vec::new()))
            .named("JoinableQueue::join", "finished"),
    );
}

/// They call the same with another time limit, or `Queue`.
const TASKS_ALIKE: [&str; 9] = [
    "JoinableQueue::send_timeout",
    "JoinableQueue::send_deadline",
    "JoinableQueue::recv_timeout",
    "JoinableQueue::recv_deadline",
    "JoinableQueue::join_deadline",
    "JoinableQueue::is_finished",
    "JoinableQueue::close",
    "QueueOptions::joinable",
    "QueueOptions::joinable_in_segment",
];
