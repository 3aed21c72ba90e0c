//! `Semaphore`, `BoundedSemaphore`, `BinarySemaphore`: permits come back, none is lost, none is there twice.

use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::{
    BinarySemaphore, BoundedSemaphore, Objects, ReleaseError, Semaphore, SemaphoreError,
};
use crossproc_segment::Segment;

use crate::scene::{
    After, Bad, Call, Found, Operation, PATIENCE, corrupt, done, duplicated, expect, lost, on,
};
use crate::step::marked;

const SHORT: Duration = Duration::from_millis(5);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// How many permits there must be, at least and at most.
type Range = (u32, u32);

/// An operation that turns `old` into `new` permits, and a recovery that changes nothing.
fn between(old: u32, new: u32) -> impl Fn(After) -> Range + Copy {
    move |after| match (after.begun, after.returned) {
        (false, _) => (old, old),
        (_, true) => (new, new),
        _ => (old.min(new), old.max(new)),
    }
}

fn compare(found: u32, (least, most): Range) -> Found {
    if found < least {
        return lost(format!("{found} permits are left of {least}"));
    }
    if found > most { duplicated(format!("{found} permits, more than {most}")) } else { Ok(()) }
}

/// Takes all there are, gives them back, and looks at the words.
macro_rules! usable {
    ($s:expr, $range:expr) => {{
        let (s, range): (_, Range) = ($s, $range);
        compare(s.available(), range)?;
        let mut taken = Vec::new();
        while let Ok(permit) = s.try_acquire() {
            taken.push(permit);
            compare(taken.len() as u32, (0, range.1))?;
        }
        compare(taken.len() as u32, range)?;
        let all = taken.len() as u32;
        expect(s.held() == all && s.available() == 0, || {
            format!("{} held and {} free of {all}", s.held(), s.available())
        })?;
        drop(taken);
        expect(s.held() == 0 && s.available() == all, || {
            format!("{} held and {} free of {all}", s.held(), s.available())
        })?;
        let again = s.acquire_timeout(PATIENCE).map(drop);
        expect(again.is_ok() || all == 0, || format!("acquiring: {again:?}"))?;
        s.audit().or_else(|violation| corrupt(violation.to_string()))
    }};
}

/// Both counting semaphores, with two permits.
macro_rules! family {
    ($table:ident, $name:literal, $find:expr, [$($method:literal => $s:ident, $call:expr, $minor:literal);* $(;)?]) => {
        let find = $find;
        let taken = between(2, 2);
        $(
            for (state, empty) in [("free", false), ("a dead one has all", true)] {
                let parts = on(find)
                    .victim(|$s| forget(marked(|| $call)))
                    .recover(|s| forget(marked(|| s.acquire_timeout(PATIENCE))))
                    .check(move |s, after| usable!(s, taken(after)));
                let parts = if empty {
                    parts.dead(|s| s.acquire().and_then(|p| s.acquire().map(|q| forget((p, q)))).expect("two permits"))
                } else {
                    parts
                };
                $table.push(parts.named(concat!($name, "::", $method), state).minor($minor));
            }
        )*
        for (state, how) in [("none free", 0), ("none free: times out", 1), ("none free: asleep", 2)] {
            let name = [concat!($name, "::try_acquire"), concat!($name, "::acquire_timeout"), concat!($name, "::acquire")];
            let attempt = move |s: &_| take(s, how);
            let parts = on(find)
                .living(|s| s.acquire().and_then(|p| s.acquire().map(|q| forget((p, q)))).expect("two permits"))
                .victim(move |s| marked(|| attempt(s)))
                .check(|s, _| {
                    let result = s.try_acquire().map(drop);
                    expect(result == Err(SemaphoreError::WouldBlock), || format!("all are taken: {result:?}"))?;
                    compare(s.available(), (0, 0))?;
                    s.audit().or_else(|violation| corrupt(violation.to_string()))
                });
            // Nobody can be killed in turn who sleeps for ever.
            let parts = if how == 2 { parts } else { parts.recover(move |s| marked(|| attempt(s))) };
            $table.push(parts.named(name[how], state).minor(how == 2 || $name == "BoundedSemaphore"));
        }
        $table.push(
            on(find)
                .victim(|s| {
                    let permit = s.acquire().expect("it is free");
                    marked(|| drop(permit));
                })
                .recover(|s| forget(marked(|| s.acquire_timeout(PATIENCE))))
                .check(move |s, after| usable!(s, taken(after)))
                .named("Permit::drop", $name)
                .minor($name == "BoundedSemaphore"),
        );
        $table.push(
            on(find)
                .victim(|s| {
                    s.acquire().expect("it is free").keep();
                    done(marked(|| s.release()));
                })
                .recover(|s| forget(marked(|| s.acquire_timeout(PATIENCE))))
                .check(move |s, after| usable!(s, taken(after)))
                .named(concat!($name, "::release"), "held")
                .covers(&["Permit::keep"]),
        );
        $table.push(
            on(find)
                .victim(|s| {
                    let permit = s.acquire().expect("it is free");
                    marked(|| permit.consume());
                })
                .recover(|s| forget(marked(|| s.acquire_timeout(PATIENCE))))
                .check(move |s, after| usable!(s, between(2, 1)(after)))
                .named("Permit::consume", $name)
                .minor($name == "BoundedSemaphore"),
        );
        $table.push(
            on(find)
                .victim(|s| {
                    s.acquire().expect("it is free").consume();
                    done(marked(|| s.release()));
                })
                .recover(|s| forget(marked(|| s.acquire_timeout(PATIENCE))))
                .check(move |s, after| usable!(s, between(1, 2)(after)))
                .named(concat!($name, "::release"), "not held"),
        );
        $table.push(
            on(find)
                .victim(|s| {
                    s.acquire().expect("it is free").consume();
                    s.acquire().expect("it is free").keep();
                    done(marked(|| s.release_many(2)));
                })
                .recover(|s| forget(marked(|| s.acquire_timeout(PATIENCE))))
                .check(move |s, after| usable!(s, between(1, 2)(after)))
                .named(concat!($name, "::release_many"), "one of two held"),
        );
    };
}

/// Waits in one of three ways for a permit that does not come.
trait Take {
    fn take(&self, how: usize);
}

macro_rules! takes {
    ($($name:ident),*) => {$(
        impl Take for $name {
            fn take(&self, how: usize) {
                done(match how {
                    0 => self.try_acquire().is_ok(),
                    1 => self.acquire_timeout(SHORT).is_ok(),
                    _ => self.acquire().is_ok(),
                });
            }
        }
    )*};
}
takes!(Semaphore, BoundedSemaphore, BinarySemaphore);

fn take(semaphore: &impl Take, how: usize) {
    semaphore.take(how);
}

pub fn add(table: &mut Vec<Operation>) {
    family!(table, "Semaphore", |segment: &Segment| segment.semaphore("s", 2).expect("a semaphore"), [
        "acquire" => s, s.acquire(), false;
        "try_acquire" => s, s.try_acquire(), false;
        "acquire_timeout" => s, s.acquire_timeout(PATIENCE), true;
        "acquire_deadline" => s, s.acquire_deadline(soon()), true;
    ]);
    family!(table, "BoundedSemaphore", |segment: &Segment| segment.bounded_semaphore("s", 2).expect("a semaphore"), [
        "acquire" => s, s.acquire(), true;
        "try_acquire" => s, s.try_acquire(), true;
        "acquire_timeout" => s, s.acquire_timeout(PATIENCE), true;
        "acquire_deadline" => s, s.acquire_deadline(soon()), true;
    ]);
    table.push(
        on(|segment: &Segment| segment.bounded_semaphore("s", 2).expect("a semaphore"))
            .victim(|s| done(marked(|| s.release())))
            .recover(|s| done(marked(|| s.release())))
            .check(|s, _| {
                let result = s.release();
                expect(result == Err(ReleaseError::OverRelease), || format!("all are free: {result:?}"))?;
                usable!(s, (2, 2))
            })
            .named("BoundedSemaphore::release", "all free"),
    );
    binary(table);
}

fn binary(table: &mut Vec<Operation>) {
    fn free(s: &BinarySemaphore) -> Found {
        expect(!s.is_taken(), || "it is taken by nobody who lives".to_owned())?;
        for _ in 0..2 {
            s.try_acquire().or_else(|error| lost(format!("it is free, and can not be taken: {error}")))?;
            expect(s.is_taken() && s.holder() == Some(std::process::id()), || {
                format!("taken by {:?}", s.holder())
            })?;
            s.release().or_else(|error| corrupt(format!("releasing: {error}")))?;
        }
        let over = s.release();
        expect(over == Err(ReleaseError::OverRelease), || format!("releasing what is free: {over:?}"))?;
        s.audit().or_else(|violation| corrupt(violation.to_string()))
    }
    fn taken(s: &BinarySemaphore) -> Found {
        let result = s.try_acquire();
        if result.is_ok() {
            return duplicated("somebody living has taken it, and it is taken again");
        }
        expect(s.holder().is_some_and(|pid| pid != std::process::id()), || {
            format!("taken by {:?}", s.holder())
        })?;
        s.audit().or_else(|violation| corrupt(violation.to_string()))
    }
    fn released(s: &BinarySemaphore, after: After) -> Result<(), Bad> {
        match (after.begun, after.returned, s.is_taken()) {
            (false, _, _) | (_, false, true) => taken(s),
            (_, true, true) => lost("it was released, and is taken"),
            (_, _, false) => free(s),
        }
    }
    let find = |segment: &Segment| segment.binary_semaphore("b").expect("a semaphore");
    let calls: [Call<BinarySemaphore>; 4] = [
        ("BinarySemaphore::acquire", |s| done(marked(|| s.acquire())), false),
        ("BinarySemaphore::try_acquire", |s| done(marked(|| s.try_acquire())), false),
        ("BinarySemaphore::acquire_timeout", |s| done(marked(|| s.acquire_timeout(PATIENCE))), true),
        ("BinarySemaphore::acquire_deadline", |s| done(marked(|| s.acquire_deadline(soon()))), true),
    ];
    for (name, victim, minor) in calls {
        let recover = |s: &BinarySemaphore| done(marked(|| s.acquire_timeout(PATIENCE)));
        table.push(
            on(find).victim(victim).recover(recover).check(|s, _| free(s)).named(name, "free").minor(minor),
        );
        table.push(
            on(find)
                .dead(|s| s.acquire().expect("it is free"))
                .victim(victim)
                .recover(recover)
                .check(|s, _| free(s))
                .named(name, "a dead one has it")
                .minor(minor),
        );
    }
    let waits = [
        ("BinarySemaphore::try_acquire", "taken"),
        ("BinarySemaphore::acquire_timeout", "taken: times out"),
        ("BinarySemaphore::acquire", "taken: asleep"),
    ];
    for (how, (name, state)) in waits.into_iter().enumerate() {
        let parts = on(find)
            .living(|s| s.acquire().expect("it is free"))
            .victim(move |s| marked(|| take(s, how)))
            .check(|s, _| taken(s));
        let parts = if how == 2 { parts } else { parts.recover(move |s| marked(|| take(s, how))) };
        table.push(parts.named(name, state).minor(how == 2));
    }
    table.push(
        on(find)
            .victim(|s| {
                s.acquire().expect("it is free");
                done(marked(|| s.release()));
            })
            .recover(|s| done(marked(|| s.acquire_timeout(PATIENCE))))
            .check(|s, _| free(s))
            .named("BinarySemaphore::release", "taken by itself"),
    );
    table.push(
        on(find)
            .living(|s| s.acquire().expect("it is free"))
            .victim(|s| done(marked(|| s.release())))
            .recover(|s| done(marked(|| s.try_acquire())))
            .check(released)
            .named("BinarySemaphore::release", "taken by another"),
    );
    table.push(
        on(find)
            .victim(|s| done(marked(|| s.release())))
            .recover(|s| done(marked(|| s.release())))
            .check(|s, _| free(s))
            .named("BinarySemaphore::release", "free"),
    );
}
