//! `RwLock`: a dead writer is told, a dead reader is as if it had stopped reading.

use std::hint::black_box;
use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::{Guard, LockError, Objects, RwLock};
use crossproc_segment::Segment;

use crate::scene::{
    After, Bad, Call, Found, Operation, PATIENCE, corrupt, done, duplicated, expect, lost, on, wedged,
};
use crate::step::marked;

const SHORT: Duration = Duration::from_millis(5);

type Data = RwLock<[u64; 2]>;

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

fn find(segment: &Segment) -> Data {
    segment.rwlock("rw", [1_u64, 1]).expect("an RwLock")
}

/// What the next one must be told; `None` if both is right.
type Told = Option<bool>;

/// Taken for writing.
fn taken(after: After) -> Told {
    match (after.second, after.returned, after.begun) {
        (Some(true), ..) | (_, true, _) => Some(true),
        (None, false, false) => Some(false),
        _ => None,
    }
}

/// Written, and given up.
fn released(after: After) -> Told {
    match (after.second, after.returned, after.begun) {
        (Some(true), ..) | (_, _, false) => Some(true),
        (None, true, _) => Some(false),
        _ => None,
    }
}

fn compare(was: bool, should: Told, who: &str) -> Found {
    match should {
        Some(true) if !was => lost(format!("a writer died, and the next {who} was not told")),
        Some(false) if was => corrupt(format!("no writer died, and the next {who} was told so")),
        _ => Ok(()),
    }
}

fn was_told<G>(what: &str, result: Result<G, LockError<G>>) -> Result<(G, bool), Bad> {
    match result {
        Ok(guard) => Ok((guard, false)),
        Err(LockError::OwnerDied(guard)) => Ok((guard, true)),
        Err(LockError::TimedOut) => {
            wedged(format!("nobody who lives has it, and it can not be had for {what}"))
        }
        Err(other) => corrupt(format!("for {what}: {other:?}")),
    }
}

/// Readers and writers are let in and told the same, until a writer says that all is well.
fn usable(lock: &Data, should: Told) -> Found {
    let (reader, told_reader) = was_told("reading", lock.read_timeout(PATIENCE))?;
    compare(told_reader, should, "reader")?;
    drop(reader);
    let (mut writer, told_writer) = was_told("writing", lock.write_timeout(PATIENCE))?;
    compare(told_writer, Some(told_reader), "writer, after a reader")?;
    writer.mark_consistent();
    *writer = [5, 5];
    drop(writer);
    for _ in 0..2 {
        let both = (lock.try_read(), lock.try_read());
        match &both {
            (Ok(one), Ok(other)) => expect(**one == [5, 5] && **other == [5, 5], || format!("{:?}", **one))?,
            other => return corrupt(format!("two readers of what is free: {other:?}")),
        }
        expect(lock.readers() == 2, || format!("{} readers, not 2", lock.readers()))?;
        drop(both);
        let writer = lock.try_write().map(drop);
        expect(writer.is_ok(), || format!("writing what is free: {writer:?}"))?;
    }
    expect(lock.readers() == 0 && lock.writer().is_none(), || format!("{lock:?}"))?;
    lock.audit().or_else(|violation| corrupt(violation.to_string()))
}

/// Somebody living writes.
fn written(lock: &Data) -> Found {
    if let Ok(guard) = lock.try_read() {
        return duplicated(format!("somebody living writes, and it can be read: {:?}", *guard));
    }
    expect(matches!(lock.try_write(), Err(LockError::WouldBlock)), || "it can be written".to_owned())?;
    expect(lock.readers() == 0, || format!("{} readers", lock.readers()))
}

/// Somebody living reads: others can, nobody can write.
fn is_read(lock: &Data) -> Found {
    if let Ok(guard) = lock.try_write() {
        return duplicated(format!("somebody living reads, and it can be written: {:?}", *guard));
    }
    let (reader, told) = was_told("reading", lock.read_timeout(PATIENCE))?;
    drop(reader);
    compare(told, Some(false), "reader")?;
    expect(lock.readers() == 1, || format!("{} readers", lock.readers()))?;
    lock.audit().or_else(|violation| corrupt(violation.to_string()))
}

pub fn add(table: &mut Vec<Operation>) {
    writing(table);
    reading(table);
    changing(table);
}

fn writing(table: &mut Vec<Operation>) {
    let calls: [Call<Data>; 5] = [
        ("RwLock::write", |l| forget(marked(|| l.write())), false),
        ("RwLock::try_write", |l| forget(marked(|| l.try_write())), false),
        ("RwLock::write_timeout", |l| forget(marked(|| l.write_timeout(PATIENCE))), true),
        ("RwLock::write_deadline", |l| forget(marked(|| l.write_deadline(soon()))), true),
        ("RwLock::with_repair", |l| forget(marked(|| l.with_repair(|data| *data = [1, 1]))), true),
    ];
    let recover = |l: &Data| forget(marked(|| l.write_timeout(PATIENCE)));
    for (name, victim, minor) in calls {
        let parts = || on(find).victim(victim).recover(recover);
        table.push(parts().check(|l, after| usable(l, taken(after))).named(name, "free").minor(minor));
        table.push(
            parts()
                .dead(|l| forget(l.write()))
                .check(|l, _| usable(l, Some(true)))
                .named(name, "its writer is dead")
                .minor(minor),
        );
        table.push(
            parts()
                .dead(|l| forget(l.read()))
                .check(|l, after| usable(l, taken(after)))
                .named(name, "its reader is dead")
                .minor(minor),
        );
    }
    for (name, state, victim, sleeps) in [
        ("RwLock::try_write", "read", (|l| done(marked(|| l.try_write().is_ok()))) as fn(&Data), false),
        (
            "RwLock::write_timeout",
            "read: times out",
            |l| done(marked(|| l.write_timeout(SHORT).is_ok())),
            false,
        ),
        ("RwLock::write", "read: asleep", |l| done(marked(|| l.write().is_ok())), true),
    ] {
        let parts = on(find).living(|l| forget(l.read())).victim(victim).check(|l, _| is_read(l));
        table.push(if sleeps { parts } else { parts.recover(victim) }.named(name, state).minor(sleeps));
    }
    table.push(
        on(find)
            .living(|l| forget(l.write()))
            .victim(|l| done(marked(|| l.write_timeout(SHORT).is_ok())))
            .recover(|l| done(marked(|| l.write_timeout(SHORT).is_ok())))
            .check(|l, _| written(l))
            .named("RwLock::write_timeout", "written: times out"),
    );
    table.push(
        on(find)
            .victim(|l| {
                let guard = l.write().expect("it is free");
                marked(|| drop(guard));
            })
            .recover(recover)
            .check(|l, after| usable(l, released(after)))
            .named("RwLockWriteGuard::drop", ""),
    );
    table.push(
        on(find)
            .dead(|l| forget(l.write()))
            .victim(|l| {
                if let Err(LockError::OwnerDied(mut guard)) = l.write() {
                    marked(|| guard.mark_consistent());
                    forget(guard);
                }
            })
            .recover(recover)
            .check(|l, _| usable(l, Some(true)))
            .named("RwLockWriteGuard::mark_consistent", "a writer had died"),
    );
    table.push(
        on(find)
            .victim(|l| {
                let guard = l.write().expect("it is free");
                forget(marked(|| guard.downgrade()));
            })
            .recover(recover)
            .check(|l, after| usable(l, released(after)))
            .named("RwLockWriteGuard::downgrade", ""),
    );
}

fn reading(table: &mut Vec<Operation>) {
    let calls: [Call<Data>; 4] = [
        ("RwLock::read", |l| forget(marked(|| l.read())), false),
        ("RwLock::try_read", |l| forget(marked(|| l.try_read())), false),
        ("RwLock::read_timeout", |l| forget(marked(|| l.read_timeout(PATIENCE))), true),
        ("RwLock::read_deadline", |l| forget(marked(|| l.read_deadline(soon()))), true),
    ];
    let recover = |l: &Data| forget(marked(|| l.read_timeout(PATIENCE)));
    for (name, victim, minor) in calls {
        let parts = || on(find).victim(victim).recover(recover);
        table.push(parts().check(|l, _| usable(l, Some(false))).named(name, "free").minor(minor));
        table.push(
            parts()
                .dead(|l| forget(l.read()))
                .check(|l, _| usable(l, Some(false)))
                .named(name, "its reader is dead")
                .minor(minor),
        );
        table.push(
            parts()
                .dead(|l| forget(l.write()))
                .check(|l, _| usable(l, Some(true)))
                .named(name, "its writer is dead")
                .minor(minor),
        );
    }
    for (name, state, victim, sleeps) in [
        ("RwLock::try_read", "written", (|l| done(marked(|| l.try_read().is_ok()))) as fn(&Data), false),
        (
            "RwLock::read_timeout",
            "written: times out",
            |l| done(marked(|| l.read_timeout(SHORT).is_ok())),
            false,
        ),
        ("RwLock::read", "written: asleep", |l| done(marked(|| l.read().is_ok())), true),
    ] {
        let parts = on(find).living(|l| forget(l.write())).victim(victim).check(|l, _| written(l));
        table.push(if sleeps { parts } else { parts.recover(victim) }.named(name, state).minor(sleeps));
    }
    table.push(
        on(find)
            .living(|l| forget(l.read()))
            .victim(|l| forget(marked(|| l.read())))
            .recover(recover)
            .check(|l, _| is_read(l))
            .named("RwLock::read", "read by another"),
    );
    table.push(
        on(find)
            .victim(|l| {
                let guard = l.read().expect("it is free");
                marked(|| drop(guard));
            })
            .recover(recover)
            .check(|l, _| usable(l, Some(false)))
            .named("RwLockReadGuard::drop", ""),
    );
    table.push(
        on(find)
            .victim(|l| {
                forget(l.read());
                let guard = l.read().expect("no writer waits");
                marked(|| drop(guard));
            })
            .recover(recover)
            .check(|l, _| usable(l, Some(false)))
            .named("RwLockReadGuard::drop", "one of two"),
    );
}

/// The data: two words that are equal whenever no writer is said to have died.
fn changing(table: &mut Vec<Operation>) {
    fn count_up(lock: &Data) {
        match lock.write() {
            Ok(mut pair) => {
                pair[0] += 1;
                black_box(&mut *pair);
                pair[1] += 1;
            }
            Err(error) => forget(error),
        }
    }
    table.push(
        on(find)
            .victim(|l| marked(|| count_up(l)))
            .recover(|l| marked(|| count_up(l)))
            .check(|l, after| {
                let (pair, told) = was_told("reading", l.read_timeout(PATIENCE))?;
                let (least, most) = match after {
                    After { second: Some(again), returned, .. } => (1 + u64::from(returned || again), 3),
                    After { returned: true, .. } => (2, 2),
                    After { begun: false, .. } => (1, 1),
                    _ => (1, 2),
                };
                expect(told || pair[0] == pair[1], || format!("half of a change and nobody died: {pair:?}"))?;
                if !told && pair[0] < least {
                    return lost(format!("{pair:?} after {least} were counted"));
                }
                expect(pair.iter().all(|n| (1..=most).contains(n)), || {
                    format!("{pair:?}, more than {most}")
                })?;
                drop(pair);
                usable(l, Some(told))
            })
            .named("RwLock::write, change, unlock", "free"),
    );
}
