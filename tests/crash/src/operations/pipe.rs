//! `Pipe`: whoever is killed, messages are whole, in order and there once, and both ends work on.
//!
//! The survivor sends a marker through the end that the dead one may have left in the middle of a message, and receives all up to the
//! marker. A long message goes in parts, and fits into the ring: so one process can do all of it alone.

use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::pipe::{Receiver, RecvError, SendError, Sender};
use crossproc_primitives::{Connection, Pipe, PipeOptions};
use crossproc_segment::Segment;
use crossproc_segment::handover::pack;

use super::queues::{Fate, May, Must, Not, Taking, soon};
use crate::scene::{
    After, Found, Operation, PATIENCE, corrupt, done, duplicated, expect, lost, on, taken, wedged,
};
use crate::step::marked;

type P = Pipe<u64, u64>;

const RING: usize = 256;
const SHORT: Duration = Duration::from_millis(5);
/// Bytes of a message that goes at once, and of one that goes in parts.
const WHOLE: usize = 40;
const LONG: usize = 150;
/// What the victim sends; the marker; what the first survivor sends.
const NEW: u8 = 50;
const MARK: u8 = 90;
const MORE: u8 = 60;

fn find(segment: &Segment) -> P {
    PipeOptions::new().capacity(RING).in_segment(segment, "p").expect("a pipe")
}

fn near(pipe: &P) -> Connection<u64, u64> {
    pipe.near().expect("an end")
}

fn sender(pipe: &P) -> Sender<u64> {
    near(pipe).split().0
}

fn receiver(pipe: &P) -> Receiver<u64> {
    pipe.far().expect("an end").split().1
}

fn message(number: u8, len: usize) -> Vec<u8> {
    (0..len).map(|k| if k == 0 { number } else { number ^ k as u8 }).collect()
}

/// Its number, if all of it belongs to that.
fn number(bytes: &[u8]) -> Option<u8> {
    let number = *bytes.first()?;
    (bytes == message(number, bytes.len()) && [8, WHOLE, LONG].contains(&bytes.len())).then_some(number)
}

/// Sends and receives one so long that what follows does not lie in one piece.
fn turn(pipe: &P) {
    let (sender, receiver) = (sender(pipe), receiver(pipe));
    for _ in 0..4 {
        sender.try_send_bytes(&message(1, WHOLE)).expect("there is room");
        receiver.try_recv_bytes().expect("it is there");
    }
}

/// Sends these, of this length.
fn fill(pipe: &P, numbers: std::ops::Range<u8>, len: usize) {
    let sender = sender(pipe);
    for n in numbers {
        sender.send_bytes_timeout(&message(n, len), PATIENCE).expect("there is room");
    }
    forget(sender);
}

fn sent(after: After) -> Fate {
    match (after.begun, after.returned) {
        (false, _) => Not,
        (_, true) => Must,
        _ => May,
    }
}

fn received(after: After) -> Fate {
    match (after.begun, after.returned) {
        (false, _) => Must,
        (_, true) => Not,
        _ => Taking,
    }
}

/// The messages that there can be, in their order.
fn check(pipe: &P, fates: &[(u8, Fate)]) -> Found {
    let (sender, receiver) = (sender(pipe), receiver(pipe));
    let deadline = Instant::now() + PATIENCE;
    // There may be no room for it before something is received.
    let mut marked = false;
    let mut left = fates.iter().peekable();
    let mut missing = None;
    loop {
        if !marked {
            match sender.try_send_bytes(&message(MARK, 8)) {
                Ok(()) => marked = true,
                Err(SendError::Full) if Instant::now() < deadline => {}
                Err(error) => return wedged(format!("sending the marker: {error}")),
            }
        }
        let bytes = match receiver.recv_bytes_timeout(SHORT) {
            Ok(bytes) => bytes,
            Err(RecvError::TimedOut) if Instant::now() < deadline => continue,
            Err(error) => return wedged(format!("receiving: {error}")),
        };
        let Some(number) = number(&bytes) else { return corrupt(format!("torn: {bytes:?}")) };
        if number == MORE {
            continue; // a first survivor's
        }
        if number == MARK {
            break;
        }
        loop {
            match left.next() {
                Some(&(n, Not)) if n == number => return duplicated(format!("{n} is there")),
                Some(&(n, _)) if n == number => break,
                Some(&(n, Must)) => return lost(format!("{number} comes without {n}")),
                Some(&(n, Taking)) => missing = Some(n),
                Some(_) => {}
                None => return duplicated(format!("{number} comes, and was not to")),
            }
        }
    }
    for &(n, fate) in left {
        match fate {
            Must => return lost(format!("{n} does not come")),
            Taking => missing = Some(n),
            May | Not => {}
        }
    }
    // And now it works as ever, round the ring, with all kinds of messages.
    for round in 0..12 {
        for len in [8, WHOLE, LONG] {
            let bytes = message(round, len);
            let done = sender.send_bytes_timeout(&bytes, PATIENCE);
            done.or_else(|error| wedged(format!("sending {len} bytes: {error}")))?;
            let back = receiver.recv_bytes_timeout(PATIENCE);
            expect(back.as_ref() == Ok(&bytes), || format!("{back:?} instead of {round}"))?;
        }
    }
    expect(receiver.try_recv_bytes() == Err(RecvError::Empty), || "something is left".to_owned())?;
    sender.audit().or_else(|violation| corrupt(violation.to_string()))?;
    match missing {
        Some(n) => taken(format!("{n} is not there")),
        None => Ok(()),
    }
}

/// The first that a survivor does, in its turn killed: sends one, and receives nothing.
fn send_more(pipe: &P) {
    let sender = sender(pipe);
    marked(|| done(sender.try_send_bytes(&message(MORE, 8))));
    forget(sender);
}

/// Or looks for a message, which ends one that a dead sender has begun.
fn look(pipe: &P) {
    let receiver = receiver(pipe);
    marked(|| done(receiver.poll(Some(SHORT))));
    forget(receiver);
}

type Send = fn(&mut Sender<u64>);
type Receive = fn(&mut Receiver<u64>);
type Part = fn(&P);

pub fn add(table: &mut Vec<Operation>) {
    sends(table);
    receives(table);
    ends(table);
}

fn sends(table: &mut Vec<Operation>) {
    let whole: [(&str, Send, bool); 10] = [
        ("Sender::try_send_bytes", |s| done(marked(|| s.try_send_bytes(&message(NEW, WHOLE)))), false),
        ("Sender::send_bytes", |s| done(marked(|| s.send_bytes(&message(NEW, WHOLE)))), true),
        (
            "Sender::send_bytes_timeout",
            |s| done(marked(|| s.send_bytes_timeout(&message(NEW, WHOLE), PATIENCE))),
            true,
        ),
        (
            "Sender::send_bytes_deadline",
            |s| done(marked(|| s.send_bytes_deadline(&message(NEW, WHOLE), soon()))),
            true,
        ),
        (
            "Sender::send_vectored",
            |s| {
                let bytes = message(NEW, WHOLE);
                let slices = [std::io::IoSlice::new(&bytes[..9]), std::io::IoSlice::new(&bytes[9..])];
                done(marked(|| s.send_vectored(&slices)));
            },
            true,
        ),
        ("Sender::try_reserve", |s| marked(|| place(s.try_reserve(WHOLE + 9))), false),
        ("Sender::reserve", |s| marked(|| place(s.reserve(WHOLE))), true),
        ("Sender::reserve_timeout", |s| marked(|| place(s.reserve_timeout(WHOLE, PATIENCE))), true),
        ("Sender::reserve_deadline", |s| marked(|| place(s.reserve_deadline(WHOLE, soon()))), true),
        ("Sender::write", |s| done(marked(|| std::io::Write::write(s, &message(NEW, WHOLE)))), true),
    ];
    fn place(place: Result<crossproc_primitives::pipe::Reserved<'_, u64>, SendError>) {
        let mut place = place.expect("there is room");
        place[..WHOLE].copy_from_slice(&message(NEW, WHOLE));
        place.commit(WHOLE);
    }
    for (name, send, minor) in whole {
        for (state, skips) in [("beside others", false), ("round the end", true)] {
            table.push(
                on(find)
                    .dead(move |p| {
                        forget(receiver(p));
                        if skips {
                            turn(p);
                        }
                        fill(p, 10..12, 8);
                    })
                    .living(|p| forget(receiver(p)))
                    .victim(move |p| {
                        let mut sender = sender(p);
                        send(&mut sender);
                        forget(sender);
                    })
                    .recover(send_more)
                    .check(|p, after| check(p, &[(10, Must), (11, Must), (NEW, sent(after))]))
                    .named(name, state)
                    .minor(minor || skips && name != "Sender::try_send_bytes"),
            );
        }
    }
    let typed: [(&str, Send); 4] = [
        ("Sender::try_send", |s| done(marked(|| s.try_send(&7)))),
        ("Sender::send", |s| done(marked(|| s.send(&7)))),
        ("Sender::send_timeout", |s| done(marked(|| s.send_timeout(&7, PATIENCE)))),
        ("Sender::send_deadline", |s| done(marked(|| s.send_deadline(&7, soon())))),
    ];
    for (name, send) in typed {
        table.push(
            on(find)
                .living(|p| forget(receiver(p)))
                .victim(move |p| {
                    let mut sender = sender(p);
                    send(&mut sender);
                    forget(sender);
                })
                .recover(send_more)
                .check(|p, after| {
                    let (receiver, _sender) = (receiver(p), sender(p));
                    let first = receiver.try_recv();
                    let came = first == Ok(7);
                    expect(came || first == Err(RecvError::Empty) || after.second.is_some(), || {
                        format!("{first:?} was received")
                    })?;
                    expect(came || !after.returned, || "7 is not there".to_owned())?;
                    expect(!came || after.begun, || "7 is there".to_owned())?;
                    drop(receiver);
                    check(p, &[])
                })
                .named(name, "a value")
                .minor(name != "Sender::try_send"),
        );
    }
    for (state, recover) in [("in parts", send_more as Part), ("in parts, the reader looks", look)] {
        table.push(
            on(find)
                .dead(|p| fill(p, 10..11, 8))
                .living(|p| forget(receiver(p)))
                .victim(|p| {
                    let sender = sender(p);
                    marked(|| done(sender.send_bytes(&message(NEW, LONG))));
                    forget(sender);
                })
                .recover(recover)
                .check(|p, after| check(p, &[(10, Must), (NEW, sent(after))]))
                .named("Sender::send_bytes", state),
        );
    }
    let in_vain: [(&str, &str, Send); 3] = [
        ("Sender::try_send_bytes", "full", |s| done(marked(|| s.try_send_bytes(&message(NEW, WHOLE))))),
        ("Sender::send_bytes_timeout", "full", |s| {
            done(marked(|| s.send_bytes_timeout(&message(NEW, WHOLE), SHORT)));
        }),
        ("Sender::send_bytes_timeout", "in parts, given up", |s| {
            done(marked(|| s.send_bytes_timeout(&[NEW; 1000], SHORT)));
        }),
    ];
    for (name, state, send) in in_vain {
        let (numbers, len) = if state == "full" { (10..15, WHOLE) } else { (10..12, 8) };
        let there = numbers.clone();
        table.push(
            on(find)
                .dead(move |p| fill(p, numbers.clone(), len))
                .living(|p| forget(receiver(p)))
                .victim(move |p| {
                    let mut sender = sender(p);
                    send(&mut sender);
                    forget(sender);
                })
                .recover(look)
                .check(move |p, _| check(p, &there.clone().map(|n| (n, Must)).collect::<Vec<_>>()))
                .named(name, state)
                .minor(state == "full" && name != "Sender::try_send_bytes"),
        );
    }
    // In the place of one that died in the middle.
    let states =
        [("after one that died in a message", LONG, true), ("after one that died in its turn", WHOLE, false)];
    for (state, len, begun) in states {
        table.push(
            on(find)
                .dead_amid(
                    move |p| {
                        let sender = sender(p);
                        marked(|| done(sender.send_bytes(&message(20, len))));
                        forget(sender);
                    },
                    has_begun,
                    begun,
                )
                .living(|p| forget(receiver(p)))
                .victim(|p| {
                    let sender = sender(p);
                    marked(|| done(sender.try_send_bytes(&message(NEW, WHOLE))));
                    forget(sender);
                })
                .recover(look)
                .check(|p, after| check(p, &[(20, Not), (NEW, sent(after))]))
                .named("Sender::try_send_bytes", state),
        );
    }
}

/// Some of a message is there.
fn has_begun(pipe: &P) -> bool {
    let _sender = sender(pipe); // or there would be an end to be seen
    receiver(pipe).poll(Some(Duration::ZERO)) == Ok(true)
}

fn receives(table: &mut Vec<Operation>) {
    let whole: [(&str, Receive, bool); 12] = [
        ("Receiver::try_recv_bytes", |r| done(marked(|| r.try_recv_bytes())), false),
        ("Receiver::recv_bytes", |r| done(marked(|| r.recv_bytes())), true),
        ("Receiver::recv_bytes_timeout", |r| done(marked(|| r.recv_bytes_timeout(PATIENCE))), true),
        ("Receiver::recv_bytes_deadline", |r| done(marked(|| r.recv_bytes_deadline(soon()))), true),
        ("Receiver::try_recv_bytes_max", |r| done(marked(|| r.try_recv_bytes_max(LONG))), true),
        ("Receiver::recv_bytes_max", |r| done(marked(|| r.recv_bytes_max(LONG))), true),
        (
            "Receiver::recv_bytes_max_timeout",
            |r| done(marked(|| r.recv_bytes_max_timeout(LONG, PATIENCE))),
            true,
        ),
        (
            "Receiver::recv_bytes_max_deadline",
            |r| done(marked(|| r.recv_bytes_max_deadline(LONG, soon()))),
            true,
        ),
        ("Receiver::try_recv_bytes_into", |r| done(marked(|| r.try_recv_bytes_into(&mut [0; LONG]))), false),
        ("Receiver::recv_bytes_into", |r| done(marked(|| r.recv_bytes_into(&mut [0; LONG]))), true),
        (
            "Receiver::recv_bytes_into_timeout",
            |r| done(marked(|| r.recv_bytes_into_timeout(&mut [0; LONG], PATIENCE))),
            true,
        ),
        (
            "Receiver::recv_bytes_into_deadline",
            |r| done(marked(|| r.recv_bytes_into_deadline(&mut [0; LONG], soon()))),
            true,
        ),
    ];
    let others: [(&str, Receive, bool); 10] = [
        ("Receiver::discard", |r| done(marked(|| r.discard())), false),
        ("Receiver::read", |r| done(marked(|| std::io::Read::read(r, &mut [0; LONG]))), true),
        ("Peeked::release", |r| marked(|| r.try_peek().expect("a message").release()), false),
        ("Receiver::try_recv", |r| done(marked(|| r.try_recv())), true),
        ("Receiver::recv", |r| done(marked(|| r.recv())), true),
        ("Receiver::recv_timeout", |r| done(marked(|| r.recv_timeout(PATIENCE))), true),
        ("Receiver::recv_deadline", |r| done(marked(|| r.recv_deadline(soon()))), true),
        ("Receiver::iter", |r| done(marked(|| r.iter().next())), true),
        (
            "Receiver::peek_timeout",
            |r| marked(|| r.peek_timeout(PATIENCE).expect("a message").release()),
            true,
        ),
        (
            "Receiver::peek_deadline",
            |r| marked(|| r.peek_deadline(soon()).expect("a message").release()),
            true,
        ),
    ];
    for (name, receive, minor) in whole.into_iter().chain(others) {
        for (state, len) in [("at once", WHOLE), ("in parts", LONG)] {
            // A value that can not be deserialised is received as well.
            table.push(
                on(find)
                    .dead(move |p| {
                        fill(p, 10..11, len);
                        fill(p, 11..12, 8);
                    })
                    .living(|p| forget(sender(p)))
                    .victim(move |p| {
                        let mut receiver = receiver(p);
                        receive(&mut receiver);
                        forget(receiver);
                    })
                    .recover(look)
                    .check(|p, after| check(p, &[(10, received(after)), (11, Must)]))
                    .named(name, state)
                    .minor(minor),
            );
        }
    }
    let keeping: [(&str, &str, Receive); 6] = [
        ("Receiver::try_peek", "kept", |r| forget(marked(|| r.try_peek()))),
        ("Receiver::peek", "dropped", |r| marked(|| done(r.peek()))),
        ("Receiver::poll", "a message", |r| done(marked(|| r.poll(None)))),
        ("Receiver::try_recv_bytes_max", "too long", |r| done(marked(|| r.try_recv_bytes_max(7)))),
        ("Receiver::recv_bytes_into", "too long", |r| done(marked(|| r.recv_bytes_into(&mut [0; 7])))),
        ("Receiver::poll", "a message, with a limit", |r| done(marked(|| r.poll(Some(SHORT))))),
    ];
    for (name, state, receive) in keeping {
        table.push(
            on(find)
                .dead(|p| fill(p, 10..12, WHOLE))
                .living(|p| forget(sender(p)))
                .victim(move |p| {
                    let mut receiver = receiver(p);
                    receive(&mut receiver);
                    forget(receiver);
                })
                .recover(look)
                .check(|p, _| check(p, &[(10, Must), (11, Must)]))
                .named(name, state),
        );
    }
    let nothing: [(&str, Receive); 3] = [
        ("Receiver::try_recv_bytes", |r| done(marked(|| r.try_recv_bytes()))),
        ("Receiver::recv_bytes_timeout", |r| done(marked(|| r.recv_bytes_timeout(SHORT)))),
        ("Receiver::poll", |r| done(marked(|| r.poll(Some(SHORT))))),
    ];
    for (name, receive) in nothing {
        table.push(
            on(find)
                .living(|p| forget(sender(p)))
                .victim(move |p| {
                    let mut receiver = receiver(p);
                    receive(&mut receiver);
                    forget(receiver);
                })
                .recover(send_more)
                .check(|p, _| check(p, &[]))
                .named(name, "empty"),
        );
    }
    // The reader that ends the message of a dead one.
    table.push(
        on(find)
            .dead_amid(
                |p| {
                    let sender = sender(p);
                    marked(|| done(sender.send_bytes(&message(20, LONG))));
                    forget(sender);
                },
                has_begun,
                true,
            )
            .living(|p| forget(sender(p)))
            .victim(|p| {
                let receiver = receiver(p);
                marked(|| done(receiver.recv_bytes_timeout(SHORT)));
                forget(receiver);
            })
            .recover(send_more)
            .check(|p, _| check(p, &[(20, Not)]))
            .named("Receiver::recv_bytes_timeout", "of one that died in a message"),
    );
}

/// What consists of these operations, and of nothing else.
const ALSO: &[&str] = &[
    "PipeOptions::in_segment",
    "PipeOptions::duplex",
    "PipeOptions::simplex",
    "Pipe::duplex",
    "Pipe::simplex",
    "Connection::iter",
    "Connection::peek",
    "Connection::reserve",
    "Connection::recv_async",
    "Connection::send_async",
];

/// How an end must be told to be gone, when all that had it are dead or have left.
fn ends(table: &mut Vec<Operation>) {
    let parts: [(&str, &str, Part); 9] = [
        ("Pipe::near", "", |p| forget(marked(|| p.near()))),
        ("Pipe::far", "", |p| forget(marked(|| p.far()))),
        ("Sender::close", "", |p| {
            let sender = sender(p);
            marked(|| sender.close());
        }),
        ("Receiver::close", "", |p| {
            let receiver = receiver(p);
            marked(|| receiver.close());
        }),
        ("Connection::close", "", |p| {
            let near = near(p);
            marked(|| near.close());
        }),
        ("Receiver::close", "in the middle of a message", |p| {
            let sender = sender(p);
            let receiver = receiver(p);
            done(sender.send_bytes_timeout(&[1; 1000], SHORT));
            done(receiver.try_recv_bytes());
            marked(|| receiver.close());
            forget(sender);
        }),
        ("Sender::serialize", "", |p| {
            let sender = sender(p);
            marked(|| forget(pack(|| serde_json::to_string(&sender))));
            forget(sender);
        }),
        ("Receiver::serialize", "", |p| {
            let receiver = receiver(p);
            marked(|| forget(pack(|| serde_json::to_string(&receiver))));
            forget(receiver);
        }),
        ("Objects::pipe", "opened", |p| {
            let segment = near(p).segment().clone();
            marked(|| forget(PipeOptions::new().capacity(RING).in_segment::<u64, u64>(&segment, "p")));
        }),
    ];
    for (name, state, part) in parts {
        table.push(
            on(find)
                .victim(part)
                .recover(look)
                .check(|p, _| {
                    check(p, &[])?;
                    // Who is gone, however, holds nothing.
                    let (near, far) = (near(p), p.far().expect("an end"));
                    drop(near);
                    let end = far.recv_bytes_timeout(PATIENCE);
                    let is_told = matches!(end, Err(RecvError::Closed | RecvError::PeerDied));
                    expect(is_told, || format!("the end is told by {end:?}"))
                })
                .named(name, state)
                .covers(ALSO),
        );
    }
}
