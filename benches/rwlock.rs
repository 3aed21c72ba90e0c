//! What a readers-writer lock costs while it is free, and a `Once` that is done.

use std::hint::black_box;
use std::time::Instant;

use crossproc_benches::pthread::ReadersWriterLock;
use crossproc_benches::{Better, Scale, Turns};
use crossproc_primitives::{Once, RwLock};

fn main() {
    let scale = Scale::from_arguments();
    let n = scale.count(20_000);
    let (ours, libc) = (RwLock::new(1_u64).unwrap(), ReadersWriterLock::new());
    let (std, parking_lot) = (std::sync::RwLock::new(1_u64), parking_lot::RwLock::new(1_u64));
    Turns::new("RwLock, uncontended read lock+unlock", "ns", Better::Less)
        .subject("crossproc RwLock", || each(n, || drop(black_box(&ours).read().unwrap())))
        .subject("pthread_rwlock, process-shared", || each(n, || black_box(&libc).read(|| ())))
        .subject("std::sync::RwLock (threads only)", || each(n, || drop(black_box(&std).read().unwrap())))
        .subject("parking_lot::RwLock (threads only)", || each(n, || drop(black_box(&parking_lot).read())))
        .run(scale.rounds(500));
    Turns::new("RwLock, uncontended write lock+unlock", "ns", Better::Less)
        .subject("crossproc RwLock", || each(n, || drop(black_box(&ours).write().unwrap())))
        .subject("pthread_rwlock, process-shared", || each(n, || black_box(&libc).write(|| ())))
        .subject("std::sync::RwLock (threads only)", || each(n, || drop(black_box(&std).write().unwrap())))
        .subject("parking_lot::RwLock (threads only)", || each(n, || drop(black_box(&parking_lot).write())))
        .run(scale.rounds(500));

    let (once, std) = (Once::new().unwrap(), std::sync::Once::new());
    once.call(|_| ()).unwrap();
    std.call_once(|| ());
    Turns::new("Once, done: call", "ns", Better::Less)
        .subject("crossproc Once", || each(n, || black_box(&once).call(|_| ()).unwrap()))
        .subject("std::sync::Once (threads only)", || each(n, || black_box(&std).call_once(|| ())))
        .run(scale.rounds(500));
}

/// Nanoseconds for one of `count` calls.
fn each(count: u64, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    for _ in 0..count {
        call();
    }
    started.elapsed().as_nanos() as f64 / count as f64
}
