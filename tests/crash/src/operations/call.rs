//! `Call`: whoever is killed, calls after it are answered, each with its own answer, and a request is served again by the next.

use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::{Call, Objects};
use crossproc_segment::Segment;

use super::queues::soon;
use crate::scene::{Found, Operation, PATIENCE, corrupt, done, expect, on, wedged};
use crate::step::marked;

type C = Call<[u64; 3], [u64; 2]>;

const SHORT: Duration = Duration::from_millis(5);

fn find(segment: &Segment) -> C {
    segment.calls("c").expect("a call")
}

fn answer(question: [u64; 3]) -> [u64; 2] {
    if question == [question[0]; 3] { [question[0] * 3; 2] } else { [u64::MAX; 2] }
}

/// A caller and a server at a time; `again`: what the server may find at first, left by a dead caller.
fn check(call: &C, again: &[u64]) -> Found {
    let server = call.clone();
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let (mut others, ends) = (Vec::new(), Instant::now() + PATIENCE);
            loop {
                match server.serve_timeout(SHORT) {
                    Ok(request) => {
                        let question = *request;
                        request.reply(answer(question));
                        match question[0] {
                            100 => return others,
                            n if n < 90 => others.push(n),
                            _ => {}
                        }
                    }
                    Err(_) if Instant::now() < ends => {}
                    Err(_) => return others,
                }
            }
        });
        for n in 90..=100 {
            match call.call_timeout(&[n; 3], PATIENCE) {
                Ok(reply) => expect(reply == [n * 3; 2], || format!("{reply:?} for {n}"))?,
                Err(error) => return wedged(format!("calling: {error}")),
            }
        }
        let others = serving.join().unwrap_or_default();
        expect(others.iter().all(|n| again.contains(n)) && others.len() <= 1, || {
            format!("{others:?} was served")
        })
    })?;
    call.audit().or_else(|violation| corrupt(violation.to_string()))
}

/// The first that a survivor does, in its turn killed.
fn ask(call: &C) {
    marked(|| done(call.call_timeout(&[95; 3], SHORT)));
}

fn look(call: &C) {
    marked(|| drop(call.try_serve()));
}

fn is_asked(call: &C) -> bool {
    call.try_serve().is_ok()
}

type Part = fn(&C);

pub fn add(table: &mut Vec<Operation>) {
    let calls: [(&str, &str, Part, bool); 3] = [
        ("Call::call_timeout", "nobody serves", |c| marked(|| done(c.call_timeout(&[7; 3], SHORT))), false),
        (
            "Call::call_deadline",
            "nobody serves",
            |c| {
                marked(|| done(c.call_deadline(&[7; 3], Instant::now() + SHORT)));
            },
            true,
        ),
        ("Call::try_serve", "no request", |c| marked(|| forget(c.try_serve())), false),
    ];
    for (name, state, part, minor) in calls {
        let operation = on(find).victim(part).recover(look).check(|c, _| check(c, &[7, 95]));
        table.push(operation.named(name, state).covers(&["Call::call", "Objects::calls"]).minor(minor));
    }
    let serves: [(&str, &str, Part, bool); 6] = [
        ("Call::try_serve", "a request", |c| marked(|| forget(c.try_serve())), false),
        ("Call::serve", "a request", |c| marked(|| forget(c.serve())), true),
        ("Call::serve_timeout", "a request", |c| marked(|| forget(c.serve_timeout(PATIENCE))), true),
        ("Call::serve_deadline", "a request", |c| marked(|| forget(c.serve_deadline(soon()))), true),
        (
            "Request::reply",
            "",
            |c| {
                let request = c.try_serve().expect("a request");
                let reply = answer(*request);
                marked(|| request.reply(reply));
            },
            false,
        ),
        (
            "Request::drop",
            "",
            |c| {
                let request = c.try_serve().expect("a request");
                marked(|| drop(request));
            },
            false,
        ),
    ];
    for (name, state, part, minor) in serves {
        for (recovers, recover) in [("", look as Part), (", then asked", ask)] {
            let state: &'static str = match (state, recovers) {
                (state, "") => state,
                ("", _) => "then asked",
                _ => "a request, then asked",
            };
            let operation = on(find)
                .dead_amid(|c| marked(|| done(c.call(&[7; 3]))), is_asked, true)
                .victim(part)
                .recover(recover)
                .check(|c, _| check(c, &[7, 95]));
            table.push(operation.named(name, state).minor(minor || !recovers.is_empty()));
        }
    }
}
