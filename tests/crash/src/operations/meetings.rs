//! `Event`, `Condvar`, `Barrier`, `Once`: what processes wait for each other with.

use std::mem::forget;
use std::thread;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU32, Ordering};
use crossproc_primitives::{
    Barrier, BarrierError, BrokenBy, Condvar, CondvarError, Event, Guard, LockError, Mutex, Objects, Once,
    OnceError, RawValue, WaitError,
};
use crossproc_segment::Segment;

use crate::scene::{After, Bad, Call, Found, Operation, PATIENCE, corrupt, done, expect, lost, on, wedged};
use crate::step::marked;

const SHORT: Duration = Duration::from_millis(5);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub fn add(table: &mut Vec<Operation>) {
    events(table);
    condvars(table);
    barriers(table);
    onces(table);
}

/// Deadlines and time limits are the same code; falling asleep takes long.
fn is_minor(name: &str, sleeps: bool) -> bool {
    sleeps || name.ends_with("_deadline") || name.contains("_then_") || name == "Condvar::wait_while_timeout"
}

// ---- Event

fn events(table: &mut Vec<Operation>) {
    fn find(segment: &Segment) -> Event {
        segment.event("e").expect("an event")
    }
    /// Set it, be let go; clear it, wait in vain.
    fn usable(e: &Event) -> Found {
        for _ in 0..2 {
            e.set().or_else(|error| corrupt(error.to_string()))?;
            match e.wait_timeout(PATIENCE) {
                Ok(()) => {}
                Err(WaitError::TimedOut) => return wedged("it is set, and lets nobody go"),
                Err(error) => return corrupt(error.to_string()),
            }
            expect(e.clear() == Ok(true), || "it was set".to_owned())?;
            let waited = e.wait_timeout(SHORT);
            expect(waited == Err(WaitError::TimedOut), || {
                format!("waiting for what is not set: {waited:?}")
            })?;
        }
        e.audit().or_else(|violation| corrupt(violation.to_string()))
    }
    /// It becomes `new`; a recovery that has returned has made it so as well.
    fn becomes(e: &Event, after: After, new: bool) -> Found {
        let is_set = e.is_set();
        if (after.returned || after.second == Some(true)) && is_set != new {
            return lost(format!("is_set is {is_set}"));
        }
        expect(after.begun || after.second.is_some() || is_set != new, || format!("is_set is {is_set}"))?;
        usable(e)
    }
    table.push(
        on(find)
            .victim(|e| done(marked(|| e.set())))
            .recover(|e| done(marked(|| e.set())))
            .check(|e, after| becomes(e, after, true))
            .named("Event::set", "not set"),
    );
    table.push(
        on(find)
            .dead(|e| e.set().expect("it is attached"))
            .victim(|e| done(marked(|| e.clear())))
            .recover(|e| done(marked(|| e.clear())))
            .check(|e, after| becomes(e, after, false))
            .named("Event::clear", "set"),
    );
    let mut wait = |name, state, set: bool, sleeps: bool, victim: fn(&Event)| {
        let parts = on(find).victim(victim).check(move |e, _| {
            expect(e.is_set() == set, || format!("is_set is {}", e.is_set()))?;
            usable(e)
        });
        let parts = if set { parts.dead(|e| e.set().expect("it is attached")) } else { parts };
        table.push(
            if sleeps { parts } else { parts.recover(victim) }
                .named(name, state)
                .minor(is_minor(name, sleeps)),
        );
    };
    wait("Event::wait", "set", true, false, |e| done(marked(|| e.wait())));
    wait("Event::wait", "asleep", false, true, |e| done(marked(|| e.wait())));
    wait("Event::wait_timeout", "times out", false, false, |e| done(marked(|| e.wait_timeout(SHORT))));
    wait("Event::wait_deadline", "times out", false, false, |e| {
        done(marked(|| e.wait_deadline(Instant::now() + SHORT)));
    });
}

// ---- Condvar

type Waiting = (Mutex<[u64; 2]>, Condvar);

fn condvars(table: &mut Vec<Operation>) {
    fn find(segment: &Segment) -> Waiting {
        (segment.mutex("m", [0_u64; 2]).expect("a mutex"), segment.condvar("c").expect("a condvar"))
    }
    fn locked(
        mutex: &Mutex<[u64; 2]>,
    ) -> Result<(crossproc_primitives::MutexGuard<'_, [u64; 2]>, bool), Bad> {
        match mutex.lock_timeout(PATIENCE) {
            Ok(guard) => Ok((guard, false)),
            Err(LockError::OwnerDied(mut guard)) => {
                guard.mark_consistent();
                Ok((guard, true))
            }
            Err(LockError::TimedOut) => wedged("the mutex can not be had"),
            Err(other) => corrupt(format!("locking: {other:?}")),
        }
    }
    /// One thread waits for what another one does.
    fn usable((mutex, condvar): &Waiting, should: Option<bool>) -> Found {
        let (guard, told) = locked(mutex)?;
        drop(guard);
        match should {
            Some(true) if !told => return lost("a holder of the mutex died, and the next one was not told"),
            Some(false) if told => {
                return corrupt("nobody died with the mutex, and the next one was told so");
            }
            _ => {}
        }
        let (mut guard, _) = locked(mutex)?;
        let waiter = |guard| condvar.wait_while_timeout(guard, PATIENCE, |data: &mut [u64; 2]| data[0] == 0);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| match mutex.lock() {
                Ok(guard) => waiter(guard).map(drop).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            });
            // Let the other one come first, sometimes.
            match condvar.wait_timeout(guard, SHORT) {
                Ok(again) | Err(CondvarError::TimedOut(Some(again))) => guard = again,
                Err(CondvarError::TimedOut(None)) => (guard, _) = locked(mutex)?,
                Err(other) => return corrupt(format!("waiting: {other:?}")),
            }
            guard[0] = 1;
            condvar.notify_one(&guard).or_else(|error| corrupt(error.to_string()))?;
            condvar.notify_all(&guard).or_else(|error| corrupt(error.to_string()))?;
            drop(guard);
            match waiting.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(text)) => wedged(format!("who waits is not woken: {text}")),
                Err(_) => corrupt("who waits panics"),
            }
        })?;
        condvar.audit().or_else(|violation| corrupt(violation.to_string()))
    }
    let mut notify = |name, victim: fn(&Waiting)| {
        table.push(
            on(find)
                .victim(victim)
                .recover(|(mutex, condvar)| {
                    if let Ok(guard) = mutex.lock().or_else(|e| e.into_guard().ok_or(())) {
                        done(marked(|| condvar.notify_all(&guard)));
                        forget(guard);
                    }
                })
                .check(|s, _| usable(s, Some(true)))
                .named(name, ""),
        );
    };
    notify("Condvar::notify_one", |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        done(marked(|| condvar.notify_one(&guard)));
        forget(guard);
    });
    notify("Condvar::notify_n", |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        done(marked(|| condvar.notify_n(&guard, 2)));
        forget(guard);
    });
    notify("Condvar::notify_all", |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        done(marked(|| condvar.notify_all(&guard)));
        forget(guard);
    });
    /// It has the mutex before, and again when it has waited.
    fn holder(after: After) -> Option<bool> {
        (!after.begun || after.returned).then_some(true)
    }
    fn wait_a_little((mutex, condvar): &Waiting) {
        if let Ok(guard) = mutex.lock().or_else(|e| e.into_guard().ok_or(())) {
            forget(marked(|| condvar.wait_timeout(guard, SHORT)));
        }
    }
    let mut wait = |name, state, sleeps: bool, victim: fn(&Waiting)| {
        let parts = on(find).victim(victim).check(|s, after| usable(s, holder(after)));
        table.push(
            if sleeps { parts } else { parts.recover(wait_a_little) }
                .named(name, state)
                .minor(is_minor(name, sleeps)),
        );
    };
    wait("Condvar::wait_timeout", "times out", false, wait_a_little);
    wait("Condvar::wait_deadline", "times out", false, |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        forget(marked(|| condvar.wait_deadline(guard, Instant::now() + SHORT)));
    });
    wait("Condvar::wait_while", "nothing to wait for", false, |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        forget(marked(|| condvar.wait_while(guard, |_| false)));
    });
    wait("Condvar::wait_while_timeout", "times out", false, |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        forget(marked(|| condvar.wait_while_timeout(guard, SHORT, |_| true)));
    });
    wait("Condvar::wait_while_deadline", "times out", false, |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        forget(marked(|| condvar.wait_while_deadline(guard, Instant::now() + SHORT, |_| true)));
    });
    wait("Condvar::wait", "asleep", true, |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        forget(marked(|| condvar.wait(guard)));
    });
    wait("Condvar::wait_while", "asleep", true, |(mutex, condvar)| {
        let guard = mutex.lock().expect("it is free");
        forget(marked(|| condvar.wait_while(guard, |_| true)));
    });
}

// ---- Barrier

fn barriers(table: &mut Vec<Operation>) {
    fn find(segment: &Segment) -> Barrier {
        segment.barrier("b", 2).expect("a barrier")
    }
    /// Two threads meet, twice.
    fn usable(barrier: &Barrier) -> Found {
        for _ in 0..2 {
            let turns = thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| barrier.wait_timeout(PATIENCE)));
                both.map(|turn| turn.join().expect("waiting does not panic"))
            });
            let lasts = turns.iter().filter(|turn| turn.is_ok_and(|turn| turn.is_last)).count();
            if turns.iter().any(|turn| matches!(turn, Err(BarrierError::Broken(BrokenBy::Timeout)))) {
                return wedged(format!("two come, and are not let through: {turns:?}"));
            }
            expect(turns.iter().all(Result::is_ok) && lasts == 1, || format!("{turns:?}"))?;
        }
        expect(barrier.waiting() == 0 && !barrier.is_broken(), || format!("{barrier:?}"))?;
        barrier.audit().or_else(|violation| corrupt(violation.to_string()))
    }
    /// A party has died: whoever comes is told, until it is reset.
    fn broken(barrier: &Barrier) -> Found {
        let started = Instant::now();
        match barrier.wait_timeout(PATIENCE) {
            // Not the time-out of the victim, which comes at once.
            Err(BarrierError::Broken(BrokenBy::Timeout)) if started.elapsed() >= PATIENCE => {
                return wedged("a party died, and whoever comes waits for it");
            }
            Err(BarrierError::Broken(_)) => {}
            other => return lost(format!("a party died, and nobody was told: {other:?}")),
        }
        barrier.audit().or_else(|violation| corrupt(violation.to_string()))?;
        barrier.reset().map_or_else(|error| corrupt(error.to_string()), |_| Ok(()))?;
        usable(barrier)
    }
    let reset = |b: &Barrier| done(marked(|| b.reset()));
    let mut push = |name, state, sleeps: bool, victim: fn(&Barrier)| {
        let parts = on(find).victim(victim).check(|b, _| broken(b));
        table.push(
            if sleeps { parts } else { parts.recover(reset) }
                .named(name, state)
                .minor(is_minor(name, sleeps)),
        );
    };
    push("Barrier::wait", "asleep", true, |b| done(marked(|| b.wait())));
    push("Barrier::wait_then", "asleep", true, |b| done(marked(|| b.wait_then(|| ()))));
    push("Barrier::try_wait", "others have yet to come", false, |b| done(marked(|| b.try_wait())));
    push("Barrier::wait_timeout", "times out", false, |b| done(marked(|| b.wait_timeout(SHORT))));
    push("Barrier::wait_deadline", "times out", false, |b| {
        done(marked(|| b.wait_deadline(Instant::now() + SHORT)))
    });
    push("Barrier::wait_then_timeout", "times out", false, |b| {
        done(marked(|| b.wait_then_timeout(SHORT, || ())))
    });
    push("Barrier::wait_then_deadline", "times out", false, |b| {
        done(marked(|| b.wait_then_deadline(Instant::now() + SHORT, || ())));
    });
    push("Barrier::abort", "", false, |b| done(marked(|| b.abort())));
    push("Barrier::reset", "", false, |b| done(marked(|| b.reset())));
    let died = |b: &Barrier| done(b.is_broken());
    let parts = || on(find).dead(died).recover(reset).check(|b, _| broken(b));
    table.push(parts().victim(reset).named("Barrier::reset", "a party is dead"));
    table.push(
        parts()
            .victim(|b| done(marked(|| b.wait_timeout(PATIENCE))))
            .named("Barrier::wait_timeout", "a party is dead"),
    );

    // With one party nobody has to be waited for.
    fn alone(segment: &Segment) -> Barrier {
        segment.barrier("b", 1).expect("a barrier")
    }
    for (name, victim) in [
        ("Barrier::wait", (|b| done(marked(|| b.wait()))) as fn(&Barrier)),
        ("Barrier::wait_then", |b| done(marked(|| b.wait_then(|| ())))),
    ] {
        table.push(
            on(alone)
                .victim(victim)
                .recover(reset)
                .check(|b, _| {
                    let turn = b.wait_timeout(PATIENCE);
                    expect(matches!(turn, Err(BarrierError::Broken(_))), || {
                        format!("a party died: {turn:?}")
                    })?;
                    b.reset().map_or_else(|error| corrupt(error.to_string()), |_| Ok(()))?;
                    let turn = b.wait_timeout(PATIENCE);
                    expect(turn.is_ok_and(|turn| turn.is_last), || format!("alone, after a reset: {turn:?}"))
                })
                .named(name, "all are there"),
        );
    }

    // Coming and going of a party.
    fn counted(segment: &Segment, is_party: Option<bool>) -> Found {
        let b = find(segment);
        let turn = b.try_wait();
        match (turn, is_party) {
            (Err(BarrierError::Broken(_)), Some(false)) => corrupt("it is broken by who was no party"),
            (Err(BarrierError::WouldBlock), Some(true)) => lost("a party died, and nobody was told"),
            (Err(BarrierError::Broken(_)), _) => broken(&b),
            (Err(BarrierError::WouldBlock), _) => usable(&b),
            (other, _) => corrupt(format!("one of two came: {other:?}")),
        }
    }
    table.push(
        on(Segment::clone)
            .dead(|segment| drop(find(segment)))
            .victim(|segment| forget(marked(|| find(segment))))
            .recover(|segment| forget(marked(|| find(segment))))
            .check(|segment, after| {
                let party = match (after.second, after.returned, after.begun) {
                    (Some(true), ..) | (_, true, _) => Some(true),
                    (None, _, false) => Some(false),
                    _ => None,
                };
                counted(segment, party)
            })
            .named("Objects::barrier", "one that is there"),
    );
    table.push(
        on(Segment::clone)
            .dead(|segment| drop(find(segment)))
            .victim(|segment| {
                let b = find(segment);
                marked(|| drop(b));
            })
            .recover(|segment| forget(marked(|| find(segment))))
            .check(|segment, after| {
                let party = match (after.second, after.returned, after.begun) {
                    (Some(true), ..) | (_, _, false) => Some(true),
                    (None, true, _) => Some(false),
                    _ => None,
                };
                counted(segment, party)
            })
            .named("Barrier::drop", "its last handle"),
    );
}

// ---- Once

type Doing = (Once, RawValue<u64>);

fn onces(table: &mut Vec<Operation>) {
    fn find(segment: &Segment) -> Doing {
        (segment.once("o").expect("a Once"), segment.raw_value("v", 0_u64).expect("a value"))
    }
    fn fill((_, value): &Doing) {
        value.set(1).expect("it is attached");
        value.set(2).expect("it is attached");
    }
    fn check(s: &Doing, after: After) -> Found {
        let (once, value) = s;
        let completed = once.is_completed();
        let found = value.get().unwrap_or(u64::MAX);
        if !completed && (after.returned || after.second == Some(true)) {
            return lost("it was done, and is not known to be");
        }
        expect(!completed || found == 2, || format!("it is said to be done, and is {found}"))?;
        expect(!completed || after.begun || after.second.is_some(), || "done before it began".to_owned())?;
        usable(s, completed, found > 0)
    }
    /// Do it, if it is not done; then it is done for good.
    fn usable(s: &Doing, completed: bool, begun: bool) -> Found {
        let (once, value) = s;
        let mut told = None;
        match once.call_timeout(PATIENCE, |state| {
            told = Some(state.previous_died());
            fill(s);
        }) {
            Ok(()) => {}
            Err(OnceError::TimedOut) => return wedged("nobody is doing it, and nobody can"),
            Err(error) => return corrupt(error.to_string()),
        }
        match (completed, told) {
            (true, Some(_)) => return crate::scene::duplicated("it is done again"),
            (false, None) => return lost("it is not done"),
            (false, Some(false)) if begun => {
                return lost("who was doing it died, and the next one was not told");
            }
            _ => {}
        }
        expect(value.get() == Ok(2) && once.is_completed(), || format!("{once:?}"))?;
        let again = once.call(|_| done(value.set(9)));
        expect(again == Ok(()) && value.get() == Ok(2), || "it was done again".to_owned())?;
        expect(once.wait_timeout(PATIENCE) == Ok(()), || "who waits is not told".to_owned())?;
        once.audit().or_else(|violation| corrupt(violation.to_string()))
    }
    /// Begins, and does not come to an end.
    fn endless(s: &Doing) {
        let begun: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
        let (once, value) = s.clone();
        thread::spawn(move || {
            once.call(|_| {
                value.set(1).expect("it is attached");
                begun.store(1, Ordering::Release);
                loop {
                    thread::park();
                }
            })
        });
        while begun.load(Ordering::Acquire) == 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }
    let calls: [Call<Doing>; 4] = [
        ("Once::call", |s| done(marked(|| s.0.call(|_| fill(s)))), false),
        ("Once::try_call", |s| done(marked(|| s.0.try_call(|_| fill(s)))), true),
        ("Once::call_timeout", |s| done(marked(|| s.0.call_timeout(PATIENCE, |_| fill(s)))), true),
        ("Once::call_deadline", |s| done(marked(|| s.0.call_deadline(soon(), |_| fill(s)))), true),
    ];
    for (name, victim, minor) in calls {
        let parts = || on(find).victim(victim).recover(|s| done(marked(|| s.0.call(|_| fill(s)))));
        table.push(parts().check(check).named(name, "not done").minor(minor));
        table.push(parts().dead(endless).check(check).named(name, "who was doing it is dead").minor(minor));
    }
    let mut push = |name, state, sleeps: bool, living: bool, victim: fn(&Doing)| {
        let parts = on(find).victim(victim).check(move |s, _| {
            if living {
                let again = s.0.try_call(|_| ());
                return expect(again == Err(OnceError::WouldBlock), || {
                    format!("somebody is doing it: {again:?}")
                });
            }
            usable(s, s.0.is_completed(), false)
        });
        let parts = if living { parts.living(endless) } else { parts };
        table.push(
            if sleeps { parts } else { parts.recover(victim) }
                .named(name, state)
                .minor(is_minor(name, sleeps)),
        );
    };
    push("Once::try_call", "somebody is doing it", false, true, |s| done(marked(|| s.0.try_call(|_| ()))));
    push("Once::call_timeout", "somebody is doing it: times out", false, true, |s| {
        done(marked(|| s.0.call_timeout(SHORT, |_| ())));
    });
    push("Once::call", "somebody is doing it: asleep", true, true, |s| done(marked(|| s.0.call(|_| ()))));
    push("Once::wait", "not done: asleep", true, false, |s| done(marked(|| s.0.wait())));
    push("Once::wait_timeout", "not done: times out", false, false, |s| {
        done(marked(|| s.0.wait_timeout(SHORT)))
    });
    push("Once::wait_deadline", "not done: times out", false, false, |s| {
        done(marked(|| s.0.wait_deadline(Instant::now() + SHORT)));
    });
}
