//! Condition variables between processes: no wake-up is lost, whoever is killed or stopped, and notifying waits for nobody.

use std::time::Duration;

use crossproc_primitives::{Condvar, CondvarError, Guard, Lock, Mutex, NotifyError, Objects, RLock};
use crossproc_process::Process;
use crossproc_segment::Segment;
use crossproc_tests::{
    Board, HANG, await_asleep, await_state, child, isolated, join, kill_and_reap, tied_to_parent,
};
use rustix::process::Signal;

use crate::event::signal;
use crate::kernel::{End, Forked};
use crate::lock::said as locked;

const READY: usize = 0;
const GO: usize = 1;

pub(crate) fn said<G>(result: &Result<G, CondvarError<G>>) -> String {
    match result {
        Ok(_) => "Ok".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

type Both = (Board, Mutex<u64>, Condvar);

/// Waits until the number is not 0.
fn wait((board, number, changed): Both) -> String {
    tied_to_parent();
    let guard = number.lock().unwrap();
    board.add(READY, 1);
    // Without a deadline, at which it would look as well.
    said(&changed.wait_while(guard, |n| *n == 0))
}

fn sleeper((board, number, changed): &Both) -> Process<String> {
    let before = board.get(READY);
    let process = child(wait, (board.clone(), number.clone(), changed.clone()));
    board.await_at_least(READY, before + 1);
    await_asleep(process.pid());
    process
}

fn all() -> Both {
    (Board::new(8), Mutex::new(0_u64).unwrap(), Condvar::new().unwrap())
}

#[test]
fn producers_and_consumers_lose_nothing() {
    // A queue of one place, with the sum of what was taken.
    type Shop = (Mutex<[u64; 3]>, Condvar);
    fn produce((shop, changed, items): (Mutex<[u64; 3]>, Condvar, u64)) {
        tied_to_parent();
        for item in 1..=items {
            let guard = shop.lock().unwrap();
            let mut guard = changed.wait_while_timeout(guard, HANG, |[item, ..]| *item != 0).unwrap();
            guard[0] = item;
            changed.notify_all(&guard).unwrap();
        }
    }
    fn consume((shop, changed): Shop) -> u64 {
        tied_to_parent();
        let mut taken = 0;
        loop {
            let guard = shop.lock().unwrap();
            let wait = |[item, _, over]: &mut [u64; 3]| *item == 0 && *over == 0;
            let mut guard = changed.wait_while_timeout(guard, HANG, wait).unwrap();
            if guard[0] == 0 {
                return taken;
            }
            taken += 1;
            guard[1] += guard[0];
            guard[0] = 0;
            changed.notify_all(&guard).unwrap();
        }
    }
    let (shop, changed) = (Mutex::new([0_u64; 3]).unwrap(), Condvar::new().unwrap());
    let consumers = [0; 2].map(|_| child(consume, (shop.clone(), changed.clone())));
    let producers = [0; 2].map(|_| child(produce, (shop.clone(), changed.clone(), 2000)));
    producers.into_iter().for_each(join);
    let guard = shop.lock().unwrap();
    let mut guard = changed.wait_while_timeout(guard, HANG, |[item, ..]| *item != 0).unwrap();
    guard[2] = 1;
    changed.notify_all(&guard).unwrap();
    drop(guard);
    assert_eq!(consumers.into_iter().map(join).sum::<u64>(), 4000);
    assert_eq!(shop.lock().unwrap()[1], 2 * 2000 * 2001 / 2);
}

#[test]
fn a_wake_up_that_a_killed_waiter_swallowed_is_not_lost() {
    // One wake-up for two sleepers. Whoever got it: one of them is stopped, so that it can not pass it on, and killed.
    for which in [0, 1] {
        let all = all();
        let mut sleepers = vec![sleeper(&all), sleeper(&all)];
        let victim = sleepers.remove(which);
        signal(&victim, Signal::STOP);
        await_state(victim.pid(), 'T');
        let (_, number, changed) = &all;
        let mut guard = number.lock().unwrap();
        *guard = 1;
        changed.notify_one(&guard).unwrap();
        drop(guard);
        kill_and_reap(&victim);
        assert_eq!(join(sleepers.remove(0)), "Ok");
    }
}

#[test]
fn a_stopped_waiter_holds_up_neither_who_notifies_nor_who_waits() {
    let all = all();
    let (stopped, other) = (sleeper(&all), sleeper(&all));
    signal(&stopped, Signal::STOP);
    await_state(stopped.pid(), 'T');
    let (_, number, changed) = &all;
    let mut guard = number.lock().unwrap();
    *guard = 1;
    // As often as there could be waiters: none is asked whether it has woken up.
    for _ in 0..3 {
        changed.notify_one(&guard).unwrap();
    }
    drop(guard);
    assert_eq!(join(other), "Ok");
    signal(&stopped, Signal::CONT);
    assert_eq!(join(stopped), "Ok");
}

#[test]
fn waiters_that_were_killed_asleep_are_not_waited_for() {
    let all = all();
    let sleepers: Vec<_> = (0..4).map(|_| sleeper(&all)).collect();
    sleepers[..3].iter().for_each(kill_and_reap);
    let (_, number, changed) = &all;
    let mut guard = number.lock_timeout(HANG).unwrap();
    *guard = 1;
    changed.notify_all(&guard).unwrap();
    drop(guard);
    assert_eq!(join(sleepers.into_iter().next_back().unwrap()), "Ok");
}

#[test]
fn who_changes_it_and_dies_before_it_notifies_is_found_out() {
    fn change_and_die((_, number, changed): Both) {
        tied_to_parent();
        let mut guard = number.lock_timeout(HANG).unwrap();
        *guard = 1;
        let _ = changed;
        std::process::abort();
    }
    let all = all();
    let sleepers = [sleeper(&all), sleeper(&all)];
    let changer = child(change_and_die, all.clone());
    let _ = changer.wait_timeout(HANG);
    // Both look, one after the other, and both are told: nobody has said that it is consistent.
    assert_eq!(sleepers.map(join), ["OwnerDied(..)", "OwnerDied(..)"]);
    let mut guard = all.1.lock().unwrap_err().into_guard().unwrap();
    guard.mark_consistent();
    assert_eq!(*guard, 1);
}

#[test]
fn who_is_left_alone_is_told() {
    fn stay((board, _, _): Both) {
        tied_to_parent();
        board.add(READY, 1);
        board.await_at_least(GO, 1);
    }
    isolated(|()| {
        for killed in [true, false] {
            let all = all();
            let (board, number, changed) = &all;
            let soon = Duration::from_millis(80);
            let alone = changed.wait_while_timeout(number.lock().unwrap(), soon, |_| true);
            assert_eq!(said(&alone), "TimedOut(Some(..))", "before the first one comes");
            drop(alone);
            let peer = child(stay, all.clone());
            board.await_at_least(READY, 1);
            let waiter = {
                let (number, changed) = (number.clone(), changed.clone());
                std::thread::spawn(move || {
                    let told = changed.wait_while_timeout(number.lock().unwrap(), HANG, |_| true);
                    (said(&told), number.is_locked())
                })
            };
            if killed {
                kill_and_reap(&peer);
            } else {
                board.set(GO, 1);
                join(peer);
            }
            assert_eq!(waiter.join().unwrap(), ("PeerDied(..)".to_owned(), true), "killed: {killed}");
            assert_eq!(locked(&number.try_lock()), "Ok");
            let over = changed.wait_while(number.lock().unwrap(), |n| *n != 0);
            assert_eq!(said(&over), "Ok", "what has come has come");
        }
    });
}

#[test]
fn no_wait_lasts_past_its_deadline_when_another_process_has_the_lock() {
    fn hold((board, number, _): Both) {
        tied_to_parent();
        let _guard = number.lock_timeout(HANG).unwrap();
        board.set(GO, 1);
        board.await_at_least(GO, 2);
    }
    let all = all();
    let (board, number, changed) = &all;
    let guard = number.lock().unwrap();
    let holder = child(hold, all.clone());
    await_asleep(holder.pid());
    let told = changed.wait_timeout(guard, Duration::from_millis(100));
    // It came to the lock while we waited, and keeps it.
    assert_eq!(said(&told), "TimedOut(None)");
    assert_eq!(board.get(GO), 1);
    assert_eq!(locked(&number.try_lock()), "WouldBlock");
    board.set(GO, 2);
    join(holder);
}

#[test]
fn an_rlock_is_released_altogether_and_locked_as_deep_again() {
    fn deep((board, lock, changed): (Board, RLock, Condvar)) {
        tied_to_parent();
        let guards = [0; 3].map(|_| lock.lock().unwrap());
        let inner = lock.lock().unwrap();
        board.set(READY, 1);
        let inner = changed.wait_while_timeout(inner, HANG, |()| board.get(GO) == 0).unwrap();
        drop(guards);
        board.set(READY, 2);
        board.await_at_least(GO, 2);
        drop(inner);
        assert!(!lock.is_mine());
    }
    let (board, lock, changed) = (Board::new(8), RLock::new().unwrap(), Condvar::new().unwrap());
    let waiter = child(deep, (board.clone(), lock.clone(), changed.clone()));
    board.await_at_least(READY, 1);
    let guard = lock.lock_timeout(HANG).unwrap();
    board.set(GO, 1);
    changed.notify_one(&guard).unwrap();
    drop(guard);
    board.await_at_least(READY, 2);
    assert_eq!(locked(&lock.try_lock()), "WouldBlock", "once is left");
    board.set(GO, 2);
    join(waiter);
    assert_eq!(locked(&lock.try_lock()), "Ok");
}

#[test]
fn all_processes_use_it_with_one_lock() {
    fn try_all((right, wrong, changed): (Lock, Lock, Condvar)) -> [String; 3] {
        let soon = Duration::from_millis(5);
        let refused = changed.notify_all(&wrong.lock().unwrap());
        let wrong = said(&changed.wait_timeout(wrong.lock().unwrap(), soon));
        [format!("{refused:?}"), wrong, said(&changed.wait_timeout(right.lock().unwrap(), soon))]
    }
    let (right, wrong, changed) = (Lock::new().unwrap(), Lock::new().unwrap(), Condvar::new().unwrap());
    changed.notify_one(&right.lock().unwrap()).unwrap();
    let told = join(child(try_all, (right.clone(), wrong.clone(), changed.clone())));
    assert_eq!(told, ["Err(WrongLock)", "WrongLock(..)", "TimedOut(Some(..))"]);
}

#[test]
fn a_guard_that_a_forked_child_inherited_is_none() {
    isolated(|()| {
        let segment = Segment::anonymous(4096).unwrap();
        let (lock, changed) = (segment.lock("lock").unwrap(), segment.condvar("changed").unwrap());
        let mut guard = Some(lock.lock().unwrap());
        changed.notify_one(guard.as_ref().unwrap()).unwrap();
        let forked = Forked::new(|| {
            assert_eq!(changed.notify_one(guard.as_ref().unwrap()), Err(NotifyError::NotAttached));
            assert_eq!(said(&changed.wait(guard.take().unwrap())), "NotAttached");
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert!(lock.is_mine());
        // As one that has attached it takes part.
        let forked = Forked::new(|| {
            let own = segment.attach_again().unwrap();
            let (lock, changed) = (own.lock("lock").unwrap(), own.condvar("changed").unwrap());
            let guard = lock.lock_timeout(HANG).unwrap();
            changed.notify_all(&guard).unwrap();
        });
        let guard = changed.wait_timeout(guard.take().unwrap(), HANG).unwrap();
        drop(guard);
        assert_eq!(forked.end(), End::Exited(0));
    });
}
