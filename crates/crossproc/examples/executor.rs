//! An executor of one's own: its tasks wait for queues of other processes, and for a file descriptor in its own `poll`.
//!
//! `cargo run -p crossproc --example executor`

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crossproc::prelude::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The tasks that were woken, by number, and a descriptor that becomes readable then.
struct Woken(Mutex<Vec<usize>>, OwnedFd);

struct WakeTask(usize, Arc<Woken>);

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        self.1.0.lock().unwrap().push(self.0);
        rustix::io::write(&self.1.1, &1_u64.to_ne_bytes()).expect("the counter has room");
    }
}

/// Descriptors that tasks wait for in the next `poll`. All these tasks are woken after it.
type Waiting = RefCell<Vec<(OwnedFd, Waker)>>;

async fn readable(fd: impl AsFd, waiting: &Waiting) {
    poll_fn(|context| {
        let mut now = [PollFd::new(&fd, PollFlags::IN)];
        if poll(&mut now, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1) {
            return Poll::Ready(());
        }
        let fd = fd.as_fd().try_clone_to_owned().expect("a descriptor");
        waiting.borrow_mut().push((fd, context.waker().clone()));
        Poll::Pending
    })
    .await;
}

fn run(mut tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>, waiting: &Waiting) {
    let (mut unfinished, bell) = (tasks.len(), eventfd(0, EventfdFlags::NONBLOCK).expect("a descriptor"));
    let woken = Arc::new(Woken(Mutex::new((0..tasks.len()).collect()), bell));
    while unfinished > 0 {
        for number in std::mem::take(&mut *woken.0.lock().unwrap()) {
            let waker = Waker::from(Arc::new(WakeTask(number, Arc::clone(&woken))));
            if tasks[number].as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                tasks[number] = Box::pin(std::future::pending());
                unfinished -= 1;
            }
        }
        let all = waiting.take();
        let fds = std::iter::once(&woken.1).chain(all.iter().map(|(fd, _)| fd));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        poll(&mut fds, (unfinished == 0).then_some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a poll");
        let _ = rustix::io::read(&woken.1, &mut [0; 8]);
        all.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut numbers, waiting, mut sum) = (Queue::<u64>::new(2)?, Waiting::default(), 0);
    let send = |numbers: Queue<u64>| (1..=100).for_each(|n| numbers.send(n).unwrap());
    let (child, handle) = (Process::spawn(send, numbers.clone())?, numbers.clone());
    let sum_up = async {
        while let Ok(n) = numbers.recv_async().await {
            sum += n;
        }
    };
    let until_it_ends = async {
        readable(&child, &waiting).await;
        handle.close().expect("a queue that is open");
    };
    run(vec![Box::pin(sum_up), Box::pin(until_it_ends)], &waiting);
    println!("the process has ended, and its numbers are {sum} together");
    assert_eq!(sum, 5050);
    Ok(child.join()?)
}
