//! Tasks that wait for a descriptor of ours, where no runtime is known that could: one thread of this process sleeps in an epoll of them.
//!
//! A task is in the list, and its descriptor (a duplicate, so that it is there once for each task) in the epoll, until it is told or
//! gives up. What runs of others' code (a waker that is cloned, woken or dropped) runs without the lock.
//!
//! Fork: the child has a list of its own (`PerProcess`). The epoll is shared with it, but a child has no numbers in it, and takes none out.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crossproc_atomic::process_stamp;
use crossproc_segment::{PerProcess, start_quiet_thread};
use rustix::event::epoll;
use rustix::io::fcntl_dupfd_cloexec;

/// Wakers run on it.
const STACK: usize = 512 << 10;
/// News that are looked at in one turn.
const EVENTS: usize = 32;

static LIST: PerProcess<Mutex<List>> = PerProcess::new();

#[derive(Default)]
struct List {
    epoll: Option<Arc<OwnedFd>>,
    waiting: BTreeMap<u64, (OwnedFd, Waker)>,
    numbers: u64,
}

fn list() -> MutexGuard<'static, List> {
    LIST.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl List {
    fn epoll(&mut self) -> io::Result<Arc<OwnedFd>> {
        if let Some(epoll) = &self.epoll {
            return Ok(Arc::clone(epoll));
        }
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let its = Arc::clone(&epoll);
        start_quiet_thread("crossproc-fds", STACK, move || watch(&its))?;
        Ok(Arc::clone(self.epoll.insert(epoll)))
    }

    /// `None`: it was told.
    fn take(&mut self, number: u64) -> Option<Waker> {
        let (fd, waker) = self.waiting.remove(&number)?;
        if let Some(epoll) = &self.epoll {
            let _ = epoll::delete(epoll, &fd);
        }
        Some(waker)
    }
}

fn watch(epoll: &OwnedFd) {
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        // It fails by a signal at the most.
        let _ = epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None);
        for event in &events {
            let data = event.data;
            let waker = list().take(data.u64());
            // A waker that panics must not take the thread away from the others.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.map(Waker::wake)));
        }
    }
}

fn arm(fd: BorrowedFd<'_>, waker: Waker) -> io::Result<u64> {
    let fd = fcntl_dupfd_cloexec(fd, 3)?;
    let mut list = list();
    let epoll = list.epoll()?;
    list.numbers += 1;
    let number = list.numbers;
    epoll::add(&epoll, &fd, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
    list.waiting.insert(number, (fd, waker));
    Ok(number)
}

/// How a future waits for a descriptor.
#[derive(Default)]
pub(crate) struct WatchingFd(Option<Armed>);

struct Armed {
    number: u64,
    /// A forked child has a copy of what is its parent's.
    stamp: u64,
}

impl WatchingFd {
    /// Polls for what `attempt` tries to have, which can be had only when `fd` is readable. What it returns goes to the caller at once, so
    /// a future that is dropped has nothing.
    pub(crate) fn poll<R>(
        &mut self,
        cx: &Context<'_>,
        fd: &impl AsFd,
        attempt: impl FnOnce() -> Option<R>,
    ) -> Poll<R> {
        self.disarm();
        if let Some(done) = attempt() {
            return Poll::Ready(done);
        }
        // What is new since then makes the descriptor readable.
        match arm(fd.as_fd(), cx.waker().clone()) {
            Ok(number) => self.0 = Some(Armed { number, stamp: process_stamp() }),
            // No thread or descriptor to be had: the task asks again and again. Nobody else could wake it.
            Err(_) => cx.waker().wake_by_ref(),
        }
        Poll::Pending
    }

    fn disarm(&mut self) {
        let armed = self.0.take().filter(|armed| armed.stamp == process_stamp());
        let waker = armed.and_then(|armed| list().take(armed.number));
        // Without the lock: it can drop a task.
        drop(waker);
    }
}

impl Drop for WatchingFd {
    fn drop(&mut self) {
        self.disarm();
    }
}
