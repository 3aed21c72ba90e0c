//! The queue with one producer and one consumer: what was pushed is popped once and in order, and both roles pass on.
//!
//! Every victim takes the roles that it needs for itself, first; every survivor takes both.

use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::Objects;
use crossproc_primitives::spsc::{Consumer, Peeked, PopError, Producer, PushError, Reserved};
use crossproc_segment::handover::pack;
use crossproc_segment::{ErrorKind, Segment};

use crate::scene::{After, Found, Operation, PATIENCE, corrupt, done, duplicated, expect, lost, on, wedged};
use crate::step::marked;

type Element = [u64; 2];

/// Four elements in a block, three blocks.
const CAPACITY: usize = 8;
const PLACES: u64 = 12;
const SHORT: Duration = Duration::from_millis(5);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// The segment, with the queue in it. Whoever looks for it takes no role.
fn find(segment: &Segment) -> Segment {
    if !segment.objects().iter().any(|info| info.name == "q") {
        done((segment.producer::<Element>("q", CAPACITY), segment.consumer::<Element>("q", CAPACITY)));
    }
    segment.clone()
}

fn producer(segment: &Segment) -> Producer<Element> {
    segment.producer("q", CAPACITY).expect("nobody has the role")
}

fn consumer(segment: &Segment) -> Consumer<Element> {
    segment.consumer("q", CAPACITY).expect("nobody has the role")
}

/// Pushes the elements `from..to`.
fn fill(segment: &Segment, from: u64, to: u64) -> Producer<Element> {
    let mut producer = producer(segment);
    for n in from..to {
        producer.try_push([n; 2]).expect("there is room");
    }
    producer
}

/// Both roles, with `to` elements pushed and `taken` of them popped.
fn filled(segment: &Segment, to: u64, taken: u64) -> (Producer<Element>, Consumer<Element>) {
    let (producer, mut consumer) = (fill(segment, 0, to), consumer(segment));
    for n in 0..taken {
        assert_eq!(consumer.try_pop(), Ok([n; 2]));
    }
    (producer, consumer)
}

/// Both roles, from whoever has died with them.
fn inherit(segment: &Segment) -> Result<(Producer<Element>, Consumer<Element>), crate::scene::Bad> {
    let started = Instant::now();
    loop {
        match (segment.producer("q", CAPACITY), segment.consumer("q", CAPACITY)) {
            (Ok(producer), Ok(consumer)) => return Ok((producer, consumer)),
            (Err(error), _) | (_, Err(error)) if error.kind() != ErrorKind::RoleTaken => {
                return corrupt(format!("taking a role: {error}"));
            }
            _ if started.elapsed() > PATIENCE => return wedged("a dead one's role can not be had"),
            _ => std::thread::yield_now(),
        }
    }
}

/// How the queue must be: the numbers in it, from the first to behind the last, each of them one of two.
struct Should {
    first: [u64; 2],
    end: [u64; 2],
    /// So many elements were shown in place and not taken.
    shown: Option<usize>,
    closed: [bool; 2],
}

impl Should {
    /// An operation that turns the one into the other, and a recovery that changes nothing.
    fn between(after: After, first: [u64; 2], end: [u64; 2]) -> Self {
        let choose = |[old, new]: [u64; 2]| match (after.begun, after.returned) {
            (false, _) => [old, old],
            (_, true) => [new, new],
            _ => [old.min(new), old.max(new)],
        };
        Self { first: choose(first), end: choose(end), shown: None, closed: [false; 2] }
    }
}

fn check(segment: &Segment, should: &Should) -> Found {
    let (mut producer, mut consumer) = inherit(segment)?;
    producer.audit().or_else(|violation| corrupt(violation.to_string()))?;
    let again = consumer.redelivered();
    if let Some(shown) = should.shown {
        expect(again == shown, || format!("{again} elements were shown, it should be {shown}"))?;
    }
    let closed = consumer.is_closed();
    expect(should.closed.contains(&closed), || format!("closed: {closed}"))?;
    let mut next = None;
    let mut end = should.first[0];
    loop {
        match consumer.try_pop() {
            Ok(value) => {
                expect(value[0] == value[1], || format!("torn: {value:?}"))?;
                if next.is_none() {
                    let n = value[0];
                    if n < should.first[0] {
                        return duplicated(format!("{n} comes again"));
                    }
                    if n > should.first[1] {
                        return lost(format!("the first is {n}, not {}", should.first[1]));
                    }
                }
                expect(next.is_none_or(|next| next == value[0]), || format!("{value:?} behind {next:?}"))?;
                end = value[0] + 1;
                next = Some(end);
            }
            Err(PopError::Empty) if !closed => break,
            Err(PopError::Closed) if closed => break,
            Err(error) => return corrupt(format!("popping: {error}")),
        }
    }
    if end < should.end[0] {
        return lost(format!("{end} is the end, it should be {}", should.end[0]));
    }
    if end > should.end[1] {
        return duplicated(format!("{end} is the end, it should be {}", should.end[1]));
    }
    // And now it works as ever, round the ring.
    for n in 0..3 * PLACES {
        let pushed = producer.push_timeout([n; 2], PATIENCE);
        if closed {
            return expect(pushed.is_err_and(|e| matches!(e, PushError::Closed(_))), || "closed".to_owned());
        }
        pushed.or_else(|error| wedged(format!("pushing: {error}")))?;
        let value = consumer.pop_timeout(PATIENCE);
        expect(value == Ok([n; 2]), || format!("{value:?} instead of {n}"))?;
    }
    let room = (0..).take_while(|&n| producer.try_push([n; 2]).is_ok()).count();
    expect(room >= CAPACITY, || format!("it has room for {room}"))?;
    consumer.audit().or_else(|violation| corrupt(violation.to_string()))
}

/// The first that a survivor does, in its turn killed: takes both roles.
fn take_over(segment: &Segment) {
    marked(|| {
        forget((segment.producer::<Element>("q", CAPACITY), segment.consumer::<Element>("q", CAPACITY)))
    });
}

type Push = fn(&mut Producer<Element>);
type Pop = fn(&mut Consumer<Element>);

pub fn add(table: &mut Vec<Operation>) {
    pushes(table);
    pops(table);
    in_place(table);
    roles(table);
}

fn pushes(table: &mut Vec<Operation>) {
    // How many there are before decides where the next goes: beside others, into the next block, or nowhere.
    let one: [(&str, Push, bool); 4] = [
        ("Producer::try_push", |p| done(marked(|| p.try_push([p_next(); 2]))), false),
        ("Producer::push", |p| done(marked(|| p.push([p_next(); 2]))), false),
        ("Producer::push_timeout", |p| done(marked(|| p.push_timeout([p_next(); 2], PATIENCE))), true),
        ("Producer::push_deadline", |p| done(marked(|| p.push_deadline([p_next(); 2], soon()))), true),
    ];
    for (name, push, minor) in one {
        for (state, there) in [("in a block", 2), ("into the next block", 4)] {
            table.push(
                on(find)
                    .victim(move |s| {
                        let mut producer = fill(s, 0, there);
                        NEXT.set(there);
                        push(&mut producer);
                        forget(producer);
                    })
                    .recover(take_over)
                    .check(move |s, after| check(s, &Should::between(after, [0, 0], [there, there + 1])))
                    .named(name, state)
                    .minor(minor),
            );
        }
    }
    let many: [(&str, &str, Push); 5] = [
        ("Producer::push_many", "over two blocks", |p| {
            done(marked(|| p.push_many(&[[2; 2], [3; 2], [4; 2], [5; 2]])));
        }),
        ("Producer::push_all", "over two blocks", |p| {
            done(marked(|| p.push_all(&[[2; 2], [3; 2], [4; 2], [5; 2]])));
        }),
        ("Producer::push_many", "none", |p| done(marked(|| p.push_many(&[])))),
        ("Producer::push_all", "too many", |p| done(marked(|| p.push_all(&[[2; 2]; 2 * PLACES as usize])))),
        ("Producer::try_reserve", "not committed", |p| {
            done(marked(|| p.try_reserve(2).map(|mut place| place[0] = [9; 2])));
        }),
    ];
    for (name, state, push) in many {
        let end = if state == "over two blocks" { 6 } else { 2 };
        table.push(
            on(find)
                .victim(move |s| {
                    let mut producer = fill(s, 0, 2);
                    push(&mut producer);
                    forget(producer);
                })
                .recover(take_over)
                .check(move |s, after| check(s, &Should::between(after, [0, 0], [2, end])))
                .named(name, state),
        );
    }
    let full: [(&str, Push); 2] = [
        ("Producer::try_push", |p| done(marked(|| p.try_push([9; 2])))),
        ("Producer::push_timeout", |p| done(marked(|| p.push_timeout([9; 2], SHORT)))),
    ];
    for (name, push) in full {
        table.push(
            on(find)
                .victim(move |s| {
                    let mut producer = fill(s, 0, PLACES);
                    push(&mut producer);
                    forget(producer);
                })
                .recover(take_over)
                .check(|s, after| check(s, &Should::between(after, [0, 0], [PLACES, PLACES])))
                .named(name, "full"),
        );
    }
}

std::thread_local! {
    /// The number that the victim pushes next.
    static NEXT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn p_next() -> u64 {
    NEXT.get()
}

fn pops(table: &mut Vec<Operation>) {
    let one: [(&str, Pop, bool); 5] = [
        ("Consumer::try_pop", |c| done(marked(|| c.try_pop())), false),
        ("Consumer::pop", |c| done(marked(|| c.pop())), false),
        ("Consumer::pop_timeout", |c| done(marked(|| c.pop_timeout(PATIENCE))), true),
        ("Consumer::pop_deadline", |c| done(marked(|| c.pop_deadline(soon()))), true),
        ("Consumer::iter", |c| done(marked(|| c.iter().next())), true),
    ];
    for (name, pop, minor) in one {
        // The first of a block gives the one before back.
        for (state, taken) in [("in a block", 2), ("gives a block back", 4)] {
            table.push(
                on(find)
                    .victim(move |s| {
                        let (producer, mut consumer) = filled(s, 6, taken);
                        pop(&mut consumer);
                        forget((producer, consumer));
                    })
                    .recover(take_over)
                    .check(move |s, after| {
                        let should = Should::between(after, [taken, taken + 1], [6, 6]);
                        check(s, &Should { shown: Some(0), ..should })
                    })
                    .named(name, state)
                    .minor(minor),
            );
        }
    }
    let empty: [(&str, Pop); 2] = [
        ("Consumer::try_pop", |c| done(marked(|| c.try_pop()))),
        ("Consumer::pop_timeout", |c| done(marked(|| c.pop_timeout(SHORT)))),
    ];
    for (name, pop) in empty {
        table.push(
            on(find)
                .victim(move |s| {
                    let (producer, mut consumer) = filled(s, 4, 4);
                    pop(&mut consumer);
                    forget((producer, consumer));
                })
                .recover(take_over)
                .check(|s, after| check(s, &Should::between(after, [4, 4], [4, 4])))
                .named(name, "empty"),
        );
    }
    table.push(
        on(find)
            .victim(|s| {
                let (producer, mut consumer) = filled(s, 7, 2);
                let mut out = [[0; 2]; 4];
                done(marked(|| consumer.pop_many(&mut out)));
                forget((producer, consumer));
            })
            .recover(take_over)
            .check(|s, after| check(s, &Should::between(after, [2, 6], [7, 7])))
            .named("Consumer::pop_many", "over two blocks"),
    );
}

fn in_place(table: &mut Vec<Operation>) {
    let reserve: [(&str, Push, bool); 4] = [
        ("Producer::try_reserve", |p| write(|| p.try_reserve(2)), false),
        ("Producer::reserve", |p| write(|| p.reserve(2)), true),
        ("Producer::reserve_timeout", |p| write(|| p.reserve_timeout(2, PATIENCE)), true),
        ("Producer::reserve_deadline", |p| write(|| p.reserve_deadline(2, soon())), true),
    ];
    /// Both in one marked step.
    fn write<'a>(place: impl FnOnce() -> Result<Reserved<'a, Element>, PushError<()>>) {
        marked(|| {
            let mut place = place().expect("there is room");
            place[0] = [2; 2];
            place[1] = [3; 2];
            place.commit(2);
        });
    }
    for (name, reserve, minor) in reserve {
        table.push(
            on(find)
                .victim(move |s| {
                    let mut producer = fill(s, 0, 2);
                    reserve(&mut producer);
                    forget(producer);
                })
                .recover(take_over)
                .check(|s, after| {
                    let should = Should::between(after, [0, 0], [2, 4]);
                    check(s, &should)
                })
                .named(name, "committed")
                .covers(&["Reserved::commit"])
                .minor(minor),
        );
    }
    let peek: [(&str, Pop, bool); 4] = [
        ("Consumer::try_peek", |c| show(|| c.try_peek()), false),
        ("Consumer::peek", |c| show(|| c.peek()), true),
        ("Consumer::peek_timeout", |c| show(|| c.peek_timeout(PATIENCE)), true),
        ("Consumer::peek_deadline", |c| show(|| c.peek_deadline(soon())), true),
    ];
    fn show<'a>(peeked: impl FnOnce() -> Result<Peeked<'a, Element>, PopError>) {
        let _kept = marked(peeked).expect("there is something");
    }
    for (name, peek, minor) in peek {
        table.push(
            on(find)
                .victim(move |s| {
                    let (producer, mut consumer) = filled(s, 4, 1);
                    peek(&mut consumer);
                    forget((producer, consumer));
                })
                .recover(take_over)
                .check(|s, after| {
                    let shown = match (after.begun, after.returned) {
                        (false, _) => Some(0),
                        (_, true) => Some(3),
                        _ => None,
                    };
                    check(s, &Should { shown, ..Should::between(after, [1, 1], [4, 4]) })
                })
                .named(name, "three elements")
                .minor(minor),
        );
    }
    table.push(
        on(find)
            .victim(|s| {
                let (producer, mut consumer) = filled(s, 4, 1);
                let peeked = consumer.peek().expect("three elements");
                marked(|| peeked.release(2));
                forget((producer, consumer));
            })
            .recover(take_over)
            .check(|s, after| {
                let shown = match (after.begun, after.returned) {
                    (false, _) => Some(3),
                    (_, true) => Some(1),
                    _ => None,
                };
                check(s, &Should { shown, ..Should::between(after, [1, 3], [4, 4]) })
            })
            .named("Peeked::release", "two of three"),
    );
}

/// An operation, with its name.
type Named = (&'static str, fn(&Segment));

fn roles(table: &mut Vec<Operation>) {
    let claims: [Named; 2] = [
        ("Objects::producer", |s| forget(marked(|| s.producer::<Element>("q", CAPACITY)))),
        ("Objects::consumer", |s| forget(marked(|| s.consumer::<Element>("q", CAPACITY)))),
    ];
    for (name, claim) in claims {
        for (state, dead) in [("free", false), ("a dead one has it", true)] {
            let parts = on(find)
                .dead(move |s| {
                    let (producer, mut consumer) = filled(s, 6, 2);
                    let _peeked = consumer.try_peek().expect("two of a block");
                    if dead {
                        forget((producer, consumer));
                    }
                })
                .victim(claim)
                .recover(take_over)
                .check(|s, after| {
                    check(s, &Should { shown: Some(2), ..Should::between(after, [2, 2], [6, 6]) })
                });
            table.push(parts.named(name, state));
        }
    }
    let both: [Named; 4] = [
        ("Producer::drop", |s| {
            let (producer, consumer) = filled(s, 6, 2);
            marked(|| drop(producer));
            forget(consumer);
        }),
        ("Consumer::drop", |s| {
            let (producer, consumer) = filled(s, 6, 2);
            marked(|| drop(consumer));
            forget(producer);
        }),
        ("Producer::serialize", |s| {
            let (producer, consumer) = filled(s, 6, 2);
            marked(|| forget(pack(|| serde_json::to_string(&producer))));
            forget((producer, consumer));
        }),
        ("Consumer::serialize", |s| {
            let (producer, consumer) = filled(s, 6, 2);
            marked(|| forget(pack(|| serde_json::to_string(&consumer))));
            forget((producer, consumer));
        }),
    ];
    for (name, victim) in both {
        table.push(
            on(find)
                .victim(victim)
                .recover(take_over)
                .check(|s, after| check(s, &Should::between(after, [2, 2], [6, 6])))
                .named(name, ""),
        );
    }
    let closes: [Named; 2] = [
        ("Producer::close", |s| {
            let (producer, consumer) = filled(s, 6, 2);
            marked(|| producer.close());
            forget((producer, consumer));
        }),
        ("Consumer::close", |s| {
            let (producer, consumer) = filled(s, 6, 2);
            marked(|| consumer.close());
            forget((producer, consumer));
        }),
    ];
    for (name, victim) in closes {
        table.push(
            on(find)
                .victim(victim)
                .recover(take_over)
                .check(|s, after| {
                    let closed = match (after.begun, after.returned) {
                        (false, _) => [false; 2],
                        (_, true) => [true; 2],
                        _ => [false, true],
                    };
                    check(s, &Should { closed, ..Should::between(after, [2, 2], [6, 6]) })
                })
                .named(name, "open"),
        );
    }
}
