//! Every interleaving and every allowed reordering of sleepers and wakers at an event count, by loom.
//!
//! Run by `cargo xtask model` in two configurations; see `crossproc_atomic::model`. Sleeps are real: a wake-up that is
//! lost is a deadlock, which loom reports.
#![cfg(crossproc_model)]
#![allow(missing_docs)]

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_atomic::{AtomicU32, EventCount, Ordering};
use loom::sync::Arc;
use loom::thread;

/// Something to wait for, and data that it publishes.
#[derive(Default)]
struct Door {
    open: AtomicU32,
    behind: AtomicU32,
    changed: EventCount,
}

impl Door {
    fn wait(&self, process: &Process, opened: u32) {
        while self.open.load(Ordering::Acquire) < opened {
            let ticket = self.changed.listen();
            if self.open.load(Ordering::Acquire) < opened {
                self.changed.sleep(process, ticket, None);
            }
        }
        assert!(self.behind.load(Ordering::Relaxed) >= opened, "what came before the change is visible");
    }

    fn open_by_store(&self, process: &Process, opened: u32) {
        self.behind.store(opened, Ordering::Relaxed);
        self.open.store(opened, Ordering::Release);
        self.changed.notify_after_store(process);
    }

    fn open_by_rmw(&self, process: &Process, opened: u32) {
        self.behind.store(opened, Ordering::Relaxed);
        self.open.swap(opened, Ordering::AcqRel);
        self.changed.notify_after_rmw(process);
    }
}

fn check(name: &str, floor: usize, bound: usize, rounds: u32, sleepers: u32, open: fn(&Door, &Process, u32)) {
    explore(name, floor, bound, move |_| {
        let (kernel, door) = (Kernel::new(), Arc::new(Door::default()));
        let sleeping: Vec<_> = (2..2 + sleepers)
            .map(|tid| {
                let (kernel, door) = (Arc::clone(&kernel), Arc::clone(&door));
                thread::spawn(move || {
                    let process = Process::new(&kernel, tid);
                    (1..=rounds).for_each(|round| door.wait(&process, round));
                })
            })
            .collect();
        let me = Process::new(&kernel, 1);
        (1..=rounds).for_each(|round| open(&door, &me, round));
        for sleeper in sleeping {
            sleeper.join().expect("ends well");
        }
    });
}

#[test]
fn a_sleeper_is_woken_by_a_plain_store() {
    check("event_store", 20, 4, 1, 1, Door::open_by_store);
}

#[test]
fn a_sleeper_is_woken_by_a_read_modify_write() {
    check("event_rmw", 20, 4, 1, 1, Door::open_by_rmw);
}

/// The flag that the first wake-up clears must not hide the sleeper of the second.
#[test]
fn a_sleeper_that_comes_again_is_woken_again() {
    check("event_twice", 150, 3, 2, 1, Door::open_by_store);
}

#[test]
fn all_sleepers_are_woken() {
    check("event_two_sleepers", 150, 2, 1, 2, Door::open_by_rmw);
}
