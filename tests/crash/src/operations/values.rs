//! `Value` and `RawValue`: the old value or the new one.

use std::fmt::Debug;
use std::hint::black_box;
use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::{AccessError, LockError, Objects, RawValue, Value};
use crossproc_segment::Segment;

use crate::scene::{After, Found, Operation, PATIENCE, corrupt, done, expect, lost, on, wedged};
use crate::step::marked;

const SHORT: Duration = Duration::from_millis(5);

/// The first value, what the victim makes of it, and what the first survivor adds in a double crash.
const OLD: u64 = 5;
const NEW: u64 = 6;
const MORE: u64 = 100;

/// A value of several words that belong together.
type Words = [u64; 6];

fn words(n: u64) -> Words {
    std::array::from_fn(|at| n * (2 * at as u64 + 1))
}

fn number(words: Words) -> Option<u64> {
    (words == self::words(words[0])).then_some(words[0])
}

/// `n` is the old value or the new one, whichever it can be, plus what the first survivor added.
fn allowed(n: u64, after: After) -> Found {
    let bases = match (after.begun, after.returned) {
        (false, _) => OLD..=OLD,
        (_, true) => NEW..=NEW,
        _ => OLD..=NEW,
    };
    let added = match after.second {
        None => 0..=0,
        Some(true) => 1..=1,
        Some(false) => 0..=1,
    };
    if added.clone().any(|times| n.checked_sub(times * MORE).is_some_and(|base| bases.contains(&base))) {
        return Ok(());
    }
    match n {
        n if n % MORE == OLD && after.returned => {
            lost(format!("it is {n}: the change that had returned is not there"))
        }
        n if n < MORE && after.second == Some(true) => {
            lost(format!("it is {n}: what the survivor added is not there"))
        }
        n => corrupt(format!("it is {n}")),
    }
}

fn access<T>(what: &str, result: Result<T, AccessError>) -> Result<T, crate::scene::Bad> {
    match result {
        Ok(it) => Ok(it),
        Err(AccessError::TimedOut) => wedged(format!("{what}: timed out")),
        Err(error) => corrupt(format!("{what}: {error}")),
    }
}

/// Set it, update it, lock it.
fn usable<T: crossproc_segment::plain::Plain + PartialEq + Debug>(value: &Value<T>, one: T, two: T) -> Found {
    access("set", value.set(one))?;
    expect(value.get() == Ok(one), || "what was set is not there".to_owned())?;
    access("update", value.update(|_| two))?;
    match value.lock_timeout(PATIENCE) {
        Ok(mut guard) => guard.set(one),
        // A writer of one that is larger than a word died with the lock, which hurts nobody.
        Err(LockError::OwnerDied(mut guard)) => {
            crossproc_primitives::Guard::mark_consistent(&mut guard);
            guard.set(one);
        }
        Err(LockError::TimedOut) => return wedged("the value's lock can not be had"),
        Err(other) => return corrupt(format!("locking: {other:?}")),
    }
    expect(value.get() == Ok(one), || "what was set by a guard is not there".to_owned())?;
    expect(value.try_lock().is_ok(), || "the lock is not free".to_owned())
}

pub fn add(table: &mut Vec<Operation>) {
    one_word(table);
    large(table);
    waiting(table);
    raw(table);
}

fn one_word(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.value("v", OLD).expect("a value");
    let mut push = |name, victim: fn(&Value<u64>)| {
        table.push(
            on(find)
                .victim(victim)
                .recover(|v| {
                    black_box(marked(|| v.fetch_add(MORE)));
                })
                .check(|v, after| {
                    let n = access("get", v.get())?;
                    allowed(n, after)?;
                    usable(v, 1, 2)
                })
                .named(name, "one word"),
        );
    };
    push("Value::set", |v| done(marked(|| v.set(NEW))));
    push("Value::update", |v| done(marked(|| v.update(|n| n + 1))));
    push("Value::fetch_add", |v| done(marked(|| v.fetch_add(1))));
    push("Value::fetch_sub", |v| done(marked(|| v.fetch_sub(u64::MAX))));
    push("Value::swap", |v| done(marked(|| v.swap(NEW))));
    push("Value::compare_exchange", |v| done(marked(|| v.compare_exchange(OLD, NEW))));
    push("ValueGuard::set", |v| {
        let mut guard = v.lock().expect("it is free");
        marked(|| guard.set(NEW));
    });
    push("ValueGuard::update", |v| {
        let mut guard = v.lock().expect("it is free");
        done(marked(|| guard.update(|n| n + 1)));
    });
}

fn large(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.value("v", words(OLD)).expect("a value");
    let check = |v: &Value<Words>, after: After| {
        let found = access("get", v.get())?;
        let Some(n) = number(found) else { return corrupt(format!("torn: {found:?}")) };
        allowed(n, after)?;
        usable(v, words(1), words(2))
    };
    let add_more = |v: &Value<Words>| done(marked(|| v.update(|w| words(w[0] + MORE))));
    let mut push = |name, victim: fn(&Value<Words>)| {
        table.push(on(find).victim(victim).recover(add_more).check(check).named(name, "six words"));
        // Each death moves on to another of its copies.
        let dead = |v: &Value<Words>| forget(v.lock());
        table.push(
            on(find)
                .dead(dead)
                .victim(victim)
                .recover(add_more)
                .check(check)
                .named(name, "six words; its lock's holder is dead")
                .minor(name != "Value::set"),
        );
    };
    push("Value::set", |v| done(marked(|| v.set(words(NEW)))));
    push("Value::update", |v| done(marked(|| v.update(|w| words(w[0] + 1)))));
    push("ValueGuard::set", |v| {
        let mut guard = v.lock().or_else(|e| e.into_guard().ok_or(())).expect("nobody alive has it");
        marked(|| guard.set(words(NEW)));
    });
    push("ValueGuard::update", |v| {
        let mut guard = v.lock().or_else(|e| e.into_guard().ok_or(())).expect("nobody alive has it");
        done(marked(|| guard.update(|w| words(w[0] + 1))));
    });
}

fn waiting(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.value("v", OLD).expect("a value");
    // Waiting changes nothing, but somebody who waited may have died with a place among those to be woken.
    let mut push = |name, state, victim: fn(&Value<u64>)| {
        table.push(
            on(find)
                .victim(victim)
                .recover(|v| done(marked(|| v.wait_while_timeout(SHORT, |_| true))))
                .check(|v, _| {
                    let n = access("get", v.get())?;
                    expect(n == OLD, || format!("it is {n}, and nobody has changed it"))?;
                    let waited = access("wait", v.wait_while_timeout(SHORT, |&n| n == OLD))?;
                    expect(waited.is_none(), || format!("waiting found {waited:?}"))?;
                    usable(v, 1, 2)
                })
                .named(name, state)
                .minor(state == "asleep" || name == "Value::wait_while_deadline"),
        );
    };
    push("Value::wait_while", "nothing to wait for", |v| done(marked(|| v.wait_while(|_| false))));
    push("Value::wait_while", "asleep", |v| done(marked(|| v.wait_while(|_| true))));
    push("Value::wait_while_timeout", "times out", |v| {
        done(marked(|| v.wait_while_timeout(SHORT, |_| true)))
    });
    push("Value::wait_while_deadline", "times out", |v| {
        done(marked(|| v.wait_while_deadline(Instant::now() + SHORT, |_| true)));
    });
}

fn raw(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.raw_value("v", OLD).expect("a value");
    let mut push = |name, victim: fn(&RawValue<u64>)| {
        table.push(
            on(find)
                .victim(victim)
                .recover(|v| {
                    black_box(marked(|| v.fetch_add(MORE)));
                })
                .check(|v, after| {
                    let n = access("get", v.get())?;
                    allowed(n, after)?;
                    access("set", v.set(1))?;
                    expect(v.get() == Ok(1), || "what was set is not there".to_owned())
                })
                .named(name, "one word"),
        );
    };
    push("RawValue::set", |v| done(marked(|| v.set(NEW))));
    push("RawValue::fetch_add", |v| done(marked(|| v.fetch_add(1))));
    push("RawValue::compare_exchange", |v| done(marked(|| v.compare_exchange(OLD, NEW))));

    // Plain copies promise no more than that each word is an old or a new one.
    let find = |segment: &Segment| segment.raw_value("v", words(OLD)).expect("a value");
    table.push(
        on(find)
            .victim(|v| done(marked(|| v.set(words(NEW)))))
            .recover(|v| done(marked(|| v.set(words(NEW)))))
            .check(|v, after| {
                let found = access("get", v.get())?;
                let (old, new) = (words(OLD), words(NEW));
                let each = (0..found.len()).all(|at| [old[at], new[at]].contains(&found[at]));
                expect(each, || format!("{found:?} has words that nobody wrote"))?;
                if (after.returned || after.second == Some(true)) && found != new {
                    return lost(format!("{found:?} after all was written"));
                }
                expect(after.begun || after.second.is_some() || found == old, || format!("{found:?}"))
            })
            .named("RawValue::set", "six words"),
    );
}
