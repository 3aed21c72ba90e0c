//! What a semaphore costs while permits are free.

use std::hint::black_box;
use std::time::Instant;

use crossproc_benches::pthread::PosixSemaphore;
use crossproc_benches::{Better, Scale, Turns};
use crossproc_primitives::{BinarySemaphore, BoundedSemaphore, Semaphore};

fn main() {
    let scale = Scale::from_arguments();
    let n = scale.count(20_000);
    let (semaphore, bounded) = (Semaphore::new(4).unwrap(), BoundedSemaphore::new(4).unwrap());
    let (binary, posix) = (BinarySemaphore::new().unwrap(), PosixSemaphore::new(4));
    Turns::new("Semaphore, uncontended acquire+release", "ns", Better::Less)
        .subject("crossproc Semaphore", || each(n, || drop(black_box(&semaphore).acquire().unwrap())))
        .subject("sem_wait+sem_post, process-shared", || {
            each(n, || {
                black_box(&posix).wait();
                posix.post();
            })
        })
        .subject("crossproc BoundedSemaphore, kept and released", || {
            each(n, || {
                black_box(&bounded).acquire().unwrap().keep();
                bounded.release().unwrap();
            })
        })
        .subject("crossproc BinarySemaphore", || {
            each(n, || {
                black_box(&binary).acquire().unwrap();
                binary.release().unwrap();
            })
        })
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
