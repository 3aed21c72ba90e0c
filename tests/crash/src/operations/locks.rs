//! `Lock`, `RLock`, `Mutex`, and the locks of `Value` and `Array`: a dead holder is told to the next one, exactly if there was one.

use std::hint::black_box;
use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_primitives::{Guard, Lock, LockError, Mutex, Objects, RLock};
use crossproc_segment::Segment;

use crate::scene::{
    After, Found, Operation, PATIENCE, corrupt, done, duplicated, expect, held, lost, on, wedged,
};
use crate::step::marked;

/// Short enough to be waited for often.
const SHORT: Duration = Duration::from_millis(5);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// What whoever takes a lock next must be told; `None` if both is right.
type Told = Option<bool>;

/// A lock that was free is taken.
fn taken(after: After) -> Told {
    match (after.second, after.returned, after.begun) {
        // Whoever had it died with it.
        (Some(true), ..) | (_, true, _) => Some(true),
        (None, false, false) => Some(false),
        _ => None,
    }
}

/// A lock that was held is released.
fn released(after: After) -> Told {
    match (after.second, after.returned, after.begun) {
        (Some(true), ..) | (_, false, false) => Some(true),
        (None, true, _) => Some(false),
        _ => None,
    }
}

/// A lock is taken and released in one operation.
fn taken_and_released(after: After) -> Told {
    match (after.second, after.returned, after.begun) {
        (Some(true), ..) => Some(true),
        (None, true, _) | (None, _, false) => Some(false),
        _ => None,
    }
}

/// Somebody died with it, and nobody has said since that all is well.
fn always(_: After) -> Told {
    Some(true)
}

/// Whether a survivor that locks is told of a death; it takes the mark away and releases.
fn told<G: Guard>(result: Result<G, LockError<G>>) -> Result<bool, crate::scene::Bad> {
    match result {
        Ok(guard) => {
            drop(guard);
            Ok(false)
        }
        Err(LockError::OwnerDied(mut guard)) => {
            guard.mark_consistent();
            Ok(true)
        }
        Err(LockError::TimedOut) => wedged("the lock is held by nobody who lives, and can not be had"),
        Err(other) => corrupt(format!("locking: {other:?}")),
    }
}

fn compare(was_told: bool, should: Told) -> Found {
    match should {
        Some(true) if !was_told => lost("a holder died, and the next one was not told"),
        Some(false) if was_told => corrupt("nobody died with the lock, and the next one was told so"),
        _ => Ok(()),
    }
}

/// What every lock must be good for after a death: lock, be told, unlock; then lock without being told.
macro_rules! usable {
    ($l:expr, $should:expr) => {{
        let l = $l;
        let should: Told = $should;
        told(l.lock_timeout(PATIENCE)).and_then(|was| compare(was, should)).and_then(|()| {
            for _ in 0..2 {
                match l.try_lock() {
                    Ok(guard) => drop(guard),
                    Err(other) => {
                        return corrupt(format!("trying to lock what was just released: {other:?}"));
                    }
                }
            }
            Ok(())
        })
    }};
}

/// All of them lock in the same few lines of code, those of `Lock`.
fn is_minor(name: &str, method: &str) -> bool {
    !["lock", "try_lock"].contains(&method) || name != "Lock" && method != "lock"
}

/// All ways to take a lock of one type, and to release it.
macro_rules! family {
    ($table:ident, $name:literal, $find:expr, $l:ident, [$($method:literal => $call:expr),* $(,)?]) => {
        $(
            $table.push(
                on($find)
                    .victim(|$l| held(marked(|| $call)))
                    .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
                    .check(|l, after| usable!(l, taken(after)))
                    .named(concat!($name, "::", $method), "free")
                    .minor(is_minor($name, $method)),
            );
            $table.push(
                on($find)
                    .dead(|l| forget(l.lock()))
                    .victim(|$l| held(marked(|| $call)))
                    .recover(|l| forget(marked(|| l.try_lock())))
                    .check(|l, after| usable!(l, always(after)))
                    .named(concat!($name, "::", $method), "its holder is dead")
                    .minor($name != "Lock" || is_minor($name, $method)),
            );
        )*
        $table.push(
            on($find)
                .living(|l| forget(l.lock()))
                .victim(|l| done(marked(|| l.try_lock().is_ok())))
                .recover(|l| done(marked(|| l.try_lock().is_ok())))
                .check(|l, _| match l.try_lock() {
                    Err(LockError::WouldBlock) => Ok(()),
                    other => duplicated(format!("its holder lives, and trying to lock says {other:?}")),
                })
                .named(concat!($name, "::try_lock"), "held")
                .minor($name != "Lock"),
        );
        $table.push(
            on($find)
                .living(|l| forget(l.lock()))
                .victim(|l| done(marked(|| l.lock_timeout(SHORT).is_ok())))
                .recover(|l| done(marked(|| l.lock_timeout(SHORT).is_ok())))
                .check(|l, _| match l.lock_timeout(SHORT) {
                    Err(LockError::TimedOut) => Ok(()),
                    other => duplicated(format!("its holder lives, and locking says {other:?}")),
                })
                .named(concat!($name, "::lock_timeout"), "held")
                .minor($name != "Lock"),
        );
        $table.push(
            on($find)
                .living(|l| forget(l.lock()))
                .victim(|l| done(marked(|| l.lock().is_ok())))
                .check(|l, _| match l.lock_timeout(SHORT) {
                    Err(LockError::TimedOut) => Ok(()),
                    other => duplicated(format!("its holder lives, and locking says {other:?}")),
                })
                .named(concat!($name, "::lock"), "held: asleep")
                .minor($name != "Lock"),
        );
        $table.push(
            on($find)
                .victim(|l| {
                    let guard = l.lock();
                    marked(|| drop(guard));
                })
                .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
                .check(|l, after| usable!(l, released(after)))
                .named(concat!($name, "Guard::drop"), "held"),
        );
        $table.push(
            on($find)
                .dead(|l| forget(l.lock()))
                .victim(|l| {
                    if let Err(LockError::OwnerDied(mut guard)) = l.lock() {
                        marked(|| guard.mark_consistent());
                        forget(guard);
                    }
                })
                .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
                .check(|l, after| usable!(l, always(after)))
                .named(concat!($name, "Guard::mark_consistent"), "its holder had died")
                .minor($name != "Lock"),
        );
        $table.push(
            on($find)
                .dead(|l| forget(l.lock()))
                .victim(|l| {
                    let result = l.lock();
                    marked(|| drop(result));
                })
                .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
                .check(|l, after| usable!(l, always(after)))
                .named(concat!($name, "Guard::drop"), "told of a death and not yet consistent")
                .minor($name != "Lock"),
        );
    };
}

pub fn add(table: &mut Vec<Operation>) {
    let find = |segment: &Segment| segment.lock("l").expect("a lock");
    family!(table, "Lock", find, l, [
        "lock" => l.lock(),
        "try_lock" => l.try_lock(),
        "lock_timeout" => l.lock_timeout(PATIENCE),
        "lock_deadline" => l.lock_deadline(soon()),
        "with_repair" => l.with_repair(|| { black_box(0); }),
        "acquire" => l.acquire(),
        "try_acquire" => l.try_acquire(),
        "acquire_timeout" => l.acquire_timeout(PATIENCE),
        "acquire_deadline" => l.acquire_deadline(soon()),
    ]);
    acquired(table, find);
    inner(table);

    let find = |segment: &Segment| segment.rlock("r").expect("an rlock");
    family!(table, "RLock", find, l, [
        "lock" => l.lock(),
        "try_lock" => l.try_lock(),
        "lock_timeout" => l.lock_timeout(PATIENCE),
        "lock_deadline" => l.lock_deadline(soon()),
        "with_repair" => l.with_repair(|| { black_box(0); }),
    ]);
    again(table, find);

    let find = |segment: &Segment| segment.mutex("m", [1_u64, 1]).expect("a mutex");
    family!(table, "Mutex", find, l, [
        "lock" => l.lock(),
        "try_lock" => l.try_lock(),
        "lock_timeout" => l.lock_timeout(PATIENCE),
        "lock_deadline" => l.lock_deadline(soon()),
        "with_repair" => l.with_repair(|pair| pair[0] = 1),
    ]);
    guarded(table, find);

    let find = |segment: &Segment| segment.value("v", [7_u64; 4]).expect("a value");
    family!(table, "Value", find, l, [
        "lock" => l.lock(),
        "try_lock" => l.try_lock(),
        "lock_timeout" => l.lock_timeout(PATIENCE),
        "lock_deadline" => l.lock_deadline(soon()),
    ]);

    let find = |segment: &Segment| segment.array("a", &[1_u32, 2, 3]).expect("an array");
    family!(table, "Array", find, l, [
        "lock" => l.lock(),
        "try_lock" => l.try_lock(),
        "lock_timeout" => l.lock_timeout(PATIENCE),
        "lock_deadline" => l.lock_deadline(soon()),
        "with_repair" => l.with_repair(|elements| elements[0] = 1),
    ]);
}

/// Without guards.
fn acquired(table: &mut Vec<Operation>, find: fn(&Segment) -> Lock) {
    table.push(
        on(find)
            .victim(|l| {
                l.acquire().expect("it is free");
                marked(|| l.release()).expect("it was acquired");
            })
            .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
            .check(|l, after| usable!(l, released(after)))
            .named("Lock::release", "held"),
    );
    table.push(
        on(find)
            .victim(|l| done(marked(|| l.release())))
            .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
            .check(|l, after| {
                usable!(l, if after.second.is_none() { Some(false) } else { after.second.filter(|&r| r) })
            })
            .named("Lock::release", "not held"),
    );
    table.push(
        on(find)
            .dead(|l| forget(l.lock()))
            .victim(|l| {
                assert!(l.acquire() == Err(LockError::<()>::OwnerDied(())), "its holder has died");
                marked(|| l.mark_consistent());
            })
            .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
            .check(|l, after| usable!(l, always(after)))
            .named("Lock::mark_consistent", "its holder had died"),
    );
    table.push(
        on(find)
            .victim(|l| {
                marked(|| {
                    l.acquire().expect("it is free");
                    l.release().expect("it was acquired");
                });
            })
            .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
            .check(|l, after| usable!(l, taken_and_released(after)))
            .named("Lock::acquire and release", "free"),
    );
}

/// Locks that are not the outermost one: not announced while they are held, so that a death must be proven.
fn inner(table: &mut Vec<Operation>) {
    let find =
        |segment: &Segment| (segment.lock("outer").expect("a lock"), segment.lock("inner").expect("a lock"));
    let both = |(outer, inner): &(Lock, Lock), should: Told| {
        usable!(inner, should)?;
        usable!(outer, Some(true))
    };
    let outer_anyhow = |(outer, inner): &(Lock, Lock), should: Told| {
        usable!(inner, should)?;
        usable!(outer, None)
    };
    table.push(
        on(find)
            .victim(|(outer, inner)| {
                forget(outer.lock());
                forget(marked(|| inner.lock()));
            })
            .recover(|(_, inner)| forget(marked(|| inner.lock_timeout(PATIENCE))))
            .check(move |s, after| both(s, taken(after)))
            .named("Lock::lock", "free; the victim holds another"),
    );
    table.push(
        on(find)
            .victim(|(outer, inner)| {
                forget(outer.lock());
                let guard = inner.lock();
                marked(|| drop(guard));
            })
            .recover(|(_, inner)| forget(marked(|| inner.lock_timeout(PATIENCE))))
            .check(move |s, after| both(s, released(after)))
            .named("LockGuard::drop", "held; the victim holds another"),
    );
    table.push(
        on(find)
            .victim(|(outer, inner)| {
                let first = outer.lock();
                forget(inner.lock());
                marked(|| drop(first));
            })
            .recover(|(_, inner)| forget(marked(|| inner.lock_timeout(PATIENCE))))
            .check(move |s, after| outer_anyhow(s, always(after)))
            .named("LockGuard::drop", "the outer one of two, first"),
    );
    for (state, holds_another) in
        [("its holder is dead, and held another", false), ("as before; the victim holds another", true)]
    {
        table.push(
            on(find)
                .dead(|(outer, inner)| {
                    forget(outer.lock());
                    forget(inner.lock());
                })
                .victim(move |(outer, inner)| {
                    if holds_another {
                        forget(outer.lock());
                    }
                    forget(marked(|| inner.lock()));
                })
                .recover(|(_, inner)| forget(marked(|| inner.lock_timeout(PATIENCE))))
                .check(move |s, after| both(s, always(after)))
                .named("Lock::lock", state),
        );
    }
}

/// An RLock that is held already.
fn again(table: &mut Vec<Operation>, find: fn(&Segment) -> RLock) {
    table.push(
        on(find)
            .victim(|l| {
                forget(l.lock());
                forget(marked(|| l.lock()));
            })
            .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
            .check(|l, after| usable!(l, always(after)))
            .named("RLock::lock", "held by itself"),
    );
    table.push(
        on(find)
            .victim(|l| {
                forget(l.lock());
                let second = l.lock();
                marked(|| drop(second));
            })
            .recover(|l| forget(marked(|| l.lock_timeout(PATIENCE))))
            .check(|l, after| usable!(l, always(after)))
            .named("RLockGuard::drop", "held twice"),
    );
}

/// The data behind a mutex: two words that are equal whenever nobody is said to have died.
fn guarded(table: &mut Vec<Operation>, find: fn(&Segment) -> Mutex<[u64; 2]>) {
    fn count_up(mutex: &Mutex<[u64; 2]>) {
        match mutex.lock() {
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
            .victim(|mutex| marked(|| count_up(mutex)))
            .recover(|mutex| marked(|| count_up(mutex)))
            .check(|mutex, after| {
                let (least, most) = match after {
                    After { second: Some(again), returned, .. } => (1 + u64::from(returned && again), 3),
                    After { returned: true, .. } => (2, 2),
                    After { begun: false, .. } => (1, 1),
                    _ => (1, 2),
                };
                match mutex.lock_timeout(PATIENCE) {
                    Ok(pair) => {
                        expect(pair[0] == pair[1], || format!("half of a change and nobody died: {pair:?}"))?;
                        if pair[0] < least {
                            return lost(format!("{pair:?} after {least} were counted"));
                        }
                        expect(pair[0] <= most, || format!("{pair:?}, more than {most}"))?;
                    }
                    Err(LockError::OwnerDied(mut pair)) => {
                        let right = pair.iter().all(|n| (least..=most).contains(n)) && pair[0] >= pair[1];
                        expect(right, || format!("{pair:?} is not between {least} and {most}"))?;
                        *pair = [1, 1];
                        pair.mark_consistent();
                    }
                    Err(LockError::TimedOut) => return wedged("the mutex can not be had"),
                    Err(other) => return corrupt(format!("locking: {other:?}")),
                }
                usable!(mutex, Some(false))
            })
            .named("Mutex::lock, change, unlock", "free"),
    );
}
