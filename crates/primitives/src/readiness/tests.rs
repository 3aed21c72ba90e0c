//! The rules of `watcher.rs` by which no wake-up is lost, one by one. What processes do to each other is in `tests/it/readiness.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use crossproc_atomic::{EventCount, Ticket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::{Event, Queue, QueueOptions, RecvError, spsc};

const HANG: Duration = Duration::from_secs(30);

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < HANG, "waited in vain for {what}");
        yield_now();
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(Mutex<usize>);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() += 1;
    }
}

/// A future, and what its waker has been told.
struct Polled<F> {
    future: F,
    woken: Arc<Woken>,
}

impl<F: Future + Unpin> Polled<F> {
    fn new(future: F) -> Self {
        Self { future, woken: Arc::default() }
    }

    /// One that waits.
    #[track_caller]
    fn pending(future: F) -> Self {
        let mut polled = Self::new(future);
        assert!(polled.poll().is_pending());
        polled
    }

    fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.woken));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }

    fn times(&self) -> usize {
        *self.woken.0.lock().unwrap()
    }

    #[track_caller]
    fn await_told(&self) {
        wait_until("a task to be told", || self.times() > 0);
    }
}

#[cfg(any(feature = "futures", feature = "async-io"))]
fn block_on<F: Future>(future: F) -> F::Output {
    let future = std::pin::pin!(future);
    let mut polled = Polled::new(future);
    loop {
        let told = polled.times();
        if let Poll::Ready(done) = polled.poll() {
            return done;
        }
        wait_until("a task to be told", || polled.times() > told);
    }
}

/// Waits until what was told before has been passed on, if it is.
fn settle() {
    sleep(Duration::from_millis(20));
}

fn not_empty(queue: &Queue<u32>) -> EventCountOf {
    EventCountOf(queue.source(RingEnd::NotEmpty))
}

/// The event count of a queue's receivers; as another sleeper sees it.
struct EventCountOf(Arc<Source>);

impl EventCountOf {
    fn listen(&self) -> Ticket {
        self.0.event.listen()
    }

    /// Waits until the watcher is about to sleep there.
    fn await_sleeper(&self) {
        wait_until("the watcher", || watcher::sleeps_at(&self.0.event));
    }

    fn is_notified(&self, ticket: Ticket) -> bool {
        let event: &EventCount = &self.0.event;
        event.is_notified(ticket)
    }
}

#[test]
fn of_several_tasks_one_is_told_of_one_message() {
    let queue = Queue::new(8).unwrap();
    let shared = queue.clone().share();
    let event = not_empty(&queue);
    // A slice ends after 50 ms; then all are told that are not through.
    for _ in 0..50 {
        let mut tasks: Vec<_> = (0..4).map(|_| Polled::pending(shared.recv_async())).collect();
        event.await_sleeper();
        queue.send(1).unwrap();
        wait_until("a task to be told", || tasks.iter().any(|task| task.times() > 0));
        let told: Vec<_> = tasks.iter().map(Polled::times).collect();
        assert_eq!(tasks[0].poll(), Poll::Ready(Ok(1)), "the one that has waited longest");
        assert!(tasks[1..].iter_mut().all(|task| task.poll().is_pending()));
        if told == [1, 0, 0, 0] {
            return;
        }
    }
    panic!("all are told of one message");
}

#[test]
fn rule_2_a_task_that_was_told_and_is_dropped_passes_it_on() {
    let mut queue = Queue::new(8).unwrap();
    let (sender, event) = (queue.clone(), not_empty(&queue));
    let task = Polled::pending(queue.recv_async());
    sender.send(1).unwrap();
    task.await_told();
    settle();
    let ticket = event.listen();
    drop(task);
    assert!(event.is_notified(ticket));
    assert_eq!(queue.recv(), Ok(1), "and it has taken nothing");
}

#[test]
fn a_task_that_was_not_told_passes_nothing_on() {
    let mut queue = Queue::<u32>::new(8).unwrap();
    let event = not_empty(&queue);
    let task = Polled::pending(queue.recv_async());
    event.await_sleeper();
    let ticket = event.listen();
    drop(task);
    settle();
    assert!(!event.is_notified(ticket));
}

#[test]
fn rule_3_a_task_that_leaves_something_passes_it_on() {
    for messages in [1, 2] {
        let mut queue = Queue::new(8).unwrap();
        let (sender, event) = (queue.clone(), not_empty(&queue));
        let mut task = Polled::pending(queue.recv_async());
        assert_eq!(sender.send_many(&[1, 2][..messages]), Ok(messages));
        task.await_told();
        settle();
        let ticket = event.listen();
        assert_eq!(task.poll(), Poll::Ready(Ok(1)));
        assert_eq!(event.is_notified(ticket), messages == 2);
    }
}

/// So one notification for many messages gets to as many tasks.
#[test]
fn a_batch_gets_to_all_tasks_that_wait() {
    let queue = Queue::new(64).unwrap();
    let shared = queue.clone().share();
    let mut tasks: Vec<_> = (0..32).map(|_| Polled::pending(shared.recv_async())).collect();
    queue.send_many(&(0..32).collect::<Vec<u32>>()).unwrap();
    let mut received = Vec::new();
    wait_until("all messages", || {
        tasks.retain_mut(|task| match task.times() {
            0 => true,
            _ => match task.poll() {
                Poll::Ready(value) => {
                    received.push(value.unwrap());
                    false
                }
                Poll::Pending => true,
            },
        });
        tasks.is_empty()
    });
    received.sort_unstable();
    assert_eq!(received, (0..32).collect::<Vec<_>>());
}

/// The watcher still sleeps at the event count of a task that has just gone, and takes a notification away from another sleeper.
#[test]
fn rule_4_what_nobody_here_waits_for_any_more_is_passed_on() {
    for _ in 0..200 {
        let mut queue = Queue::new(8).unwrap();
        let (sender, event) = (queue.clone(), not_empty(&queue));
        let task = Polled::pending(queue.recv_async());
        event.await_sleeper();
        let list = super::watcher::hold();
        // Now the watcher can not look at the list: it is woken by this, and finds that the task is gone.
        sender.send(1).unwrap();
        let ticket = event.listen();
        drop(list);
        drop(task);
        // Passed on by whoever was told: the task, or the watcher.
        wait_until("the notification to be passed on", || event.is_notified(ticket));
    }
}

fn is_readable(fd: &Readiness) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn rule_5_a_descriptor_that_is_told_passes_it_on() {
    let queue = Queue::new(8).unwrap();
    let (readable, event) = (queue.readable().unwrap(), not_empty(&queue));
    assert!(!readable.arm().unwrap() && !is_readable(&readable));
    event.await_sleeper();
    let list = watcher::hold();
    queue.send(1).unwrap();
    let ticket = event.listen();
    drop(list);
    wait_until("the descriptor", || is_readable(&readable));
    wait_until("the notification to be passed on", || event.is_notified(ticket));
    assert_eq!(queue.recv(), Ok(1));
    assert!(is_readable(&readable), "until it is cleared");
    readable.clear();
    assert!(!is_readable(&readable));
}

#[test]
fn a_descriptor_is_told_once_for_each_time_it_is_armed() {
    let queue = Queue::new(8).unwrap();
    let readable = queue.readable().unwrap();
    queue.send(1).unwrap();
    settle();
    assert!(!is_readable(&readable), "it is not armed");
    assert!(readable.arm().unwrap() && is_readable(&readable), "ready already");
    assert!(readable.arm().unwrap(), "still");
    assert_eq!(queue.recv(), Ok(1));
    for round in 0..20 {
        assert!(!readable.arm().unwrap(), "round {round}");
        queue.send(round).unwrap();
        wait_until("the descriptor", || is_readable(&readable));
        assert_eq!(queue.try_recv(), Ok(round));
    }
    readable.clear();
    queue.send(1).unwrap();
    settle();
    assert!(!is_readable(&readable), "it is not armed");
    assert!(readable.is_ready());
}

#[test]
fn a_task_and_a_descriptor_are_both_told() {
    let mut queue = Queue::new(8).unwrap();
    let (sender, readable) = (queue.clone(), queue.readable().unwrap());
    readable.arm().unwrap();
    let mut task = Polled::pending(queue.recv_async());
    sender.send(1).unwrap();
    task.await_told();
    wait_until("the descriptor", || is_readable(&readable));
    assert_eq!(task.poll(), Poll::Ready(Ok(1)));
}

#[test]
fn a_waker_that_panics_does_not_stop_the_others() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("as it should");
        }
    }
    let mut queue = Queue::new(8).unwrap();
    let (sender, other) = (queue.clone(), queue.clone().share());
    let waker = Waker::from(Arc::new(Panics));
    let mut first = queue.recv_async();
    assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker)).is_pending());
    sender.send(1).unwrap();
    // Told in vain; at the latest at the end of the slice the next one is told.
    let mut task = Polled::new(other.recv_async());
    wait_until("the message", || task.poll() == Poll::Ready(Ok(1)));
    drop(first);
    let mut task = Polled::pending(other.recv_async());
    sender.send(2).unwrap();
    task.await_told();
    assert_eq!(task.poll(), Poll::Ready(Ok(2)));
}

/// The last waker that a task's future was polled with is the one that counts.
#[test]
fn the_last_waker_is_woken() {
    let mut queue = Queue::new(8).unwrap();
    let sender = queue.clone();
    let mut task = Polled::pending(queue.recv_async());
    let first = std::mem::take(&mut task.woken);
    assert!(task.poll().is_pending());
    assert_eq!(Arc::strong_count(&first), 1, "the other one is not kept");
    sender.send(1).unwrap();
    task.await_told();
    assert_eq!(*first.0.lock().unwrap(), 0);
}

/// A waker that is dropped may drop another future, which then disarms itself.
#[test]
fn a_waker_may_own_a_future() {
    struct Owner(#[expect(dead_code, reason = "to be dropped")] Mutex<Option<Box<dyn Send>>>);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    let queues: &'static _ =
        Box::leak(Box::new([Queue::<u32>::new(4).unwrap().share(), Queue::new(4).unwrap().share()]));
    let mut inner = Box::new(queues[0].recv_async());
    assert!(Pin::new(&mut inner).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let mut outer = queues[1].recv_async();
    let waker = Waker::from(Arc::new(Owner(Mutex::new(Some(inner)))));
    assert!(Pin::new(&mut outer).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    // Takes the place of the one that owns the other future.
    assert!(Pin::new(&mut outer).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    queues[1].send(1).unwrap();
}

#[test]
fn futures_may_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    let mut queue = Queue::<u32>::new(4).unwrap();
    let (mut producer, mut consumer) = spsc::channel::<u32>(4).unwrap();
    let mut bytes = crate::BytesQueue::new(4).unwrap();
    let mut objects = crate::ObjectQueue::<String>::new(4).unwrap();
    let mut tasks = crate::JoinableQueue::<u32>::new(4).unwrap();
    is_send(&queue.recv_async());
    is_send(&queue.send_async(1));
    is_send(&queue.recv_ref_async());
    is_send(&producer.push_async(1));
    is_send(&consumer.pop_async());
    is_send(&bytes.recv_async());
    is_send(&bytes.send_async(b""));
    is_send(&objects.recv_async());
    is_send(&objects.send_async(String::new()));
    is_send(&tasks.recv_async());
    is_send(&tasks.join_async());
    is_send(&Event::new().unwrap().wait_async());
    is_send(&queue.share().recv_async());
    is_send(&objects.share().recv_async());
}

#[test]
fn several_are_waited_for_at_once() {
    let queues: Vec<_> = (0..3).map(|_| Queue::<u32>::new(1).unwrap()).collect();
    let event = Event::new().unwrap();
    let (mut producer, mut consumer) = spsc::channel::<u64>(1).unwrap();
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let (other_queues, other_event) = (queues.clone(), event.clone());
    let now = Some(Duration::ZERO);
    let elements = consumer.readable().unwrap();
    let all = || -> [&dyn Waitable; 5] { [&queues[0], &queues[1], &queues[2], &event, &elements] };
    let with_fd = |timeout| {
        let fd = Fd::readable(&there);
        let list: Vec<&dyn Waitable> = all().into_iter().chain([&fd as &dyn Waitable]).collect();
        wait_any(&list, timeout)
    };
    assert_eq!(wait_any(&all(), now), []);
    assert_eq!(with_fd(now), []);
    assert_eq!(wait_any(&all(), Some(Duration::from_millis(5))), []);
    assert_eq!(with_fd(Some(Duration::from_millis(5))), []);
    assert_eq!(wait_any(&[], Some(Duration::from_millis(5))), []);
    assert_eq!(wait_any(&[&Fd::writable(&here)], None), [0]);

    // Each alone, from another thread, after the wait has begun.
    for by_fd in [false, true] {
        for place in (0..6).filter(|place| by_fd || *place < 5) {
            std::thread::scope(|s| {
                let (queues, event, producer) = (other_queues.clone(), &other_event, &mut producer);
                let here = &here;
                s.spawn(move || {
                    settle();
                    match place {
                        0..=2 => queues[place].send(1).unwrap(),
                        3 => event.set().unwrap(),
                        4 => producer.push(1).unwrap(),
                        _ => drop(rustix::io::write(here, b"x").unwrap()),
                    }
                });
                let ready = if by_fd { with_fd(Some(HANG)) } else { wait_any(&all(), Some(HANG)) };
                assert_eq!(ready, [place]);
            });
            match place {
                0..=2 => assert_eq!(queues[place].try_recv(), Ok(1)),
                3 => assert_eq!(event.clear(), Ok(true)),
                4 => assert_eq!(consumer.try_pop(), Ok(1)),
                _ => assert_eq!(rustix::io::read(&there, &mut [0; 8]), Ok(1)),
            }
        }
    }
}

#[test]
fn an_end_is_ready() {
    let mut queue = Queue::<u32>::new(1).unwrap();
    let other = queue.clone();
    let readable = queue.readable().unwrap();
    assert!(!readable.arm().unwrap());
    let mut task = Polled::pending(queue.recv_async());
    other.close().unwrap();
    task.await_told();
    wait_until("the descriptor", || is_readable(&readable));
    assert_eq!(task.poll(), Poll::Ready(Err(RecvError::Closed)));
    assert_eq!(wait_any(&[&other], None), [0]);
}

#[test]
fn an_event_that_is_set_and_cleared_before_anybody_looks_is_told() {
    let event = Event::new().unwrap();
    let readable = event.readable().unwrap();
    let mut tasks = [(); 2].map(|()| Polled::pending(event.wait_async()));
    assert!(!readable.arm().unwrap());
    let list = watcher::hold();
    event.set().unwrap();
    assert_eq!(event.clear(), Ok(true));
    drop(list);
    tasks.iter().for_each(Polled::await_told);
    assert!(tasks.iter_mut().all(|task| task.poll() == Poll::Ready(Ok(()))), "all of them");
    assert!(!is_readable(&readable), "but not who waits until it is set");
    event.set().unwrap();
    wait_until("the descriptor", || is_readable(&readable));
}

#[test]
fn a_task_at_a_damaged_queue_is_told() {
    use crossproc_atomic::Ordering::Relaxed;
    let mut queue = Queue::<u32>::new(2).unwrap();
    let other = queue.clone();
    let mut task = Polled::pending(queue.recv_async());
    let (_, (_, _, _, slots)) = other.placed();
    slots.iter().for_each(|slot| slot.store_first(0x1234_5678_9abc_def0, Relaxed));
    let damaged = Err(RecvError::Unusable(crate::Unusable::Damaged));
    assert_eq!(other.recv_timeout(HANG), damaged);
    task.await_told();
    assert_eq!(task.poll(), Poll::Ready(damaged));
}

#[test]
fn what_a_dropped_handle_gave_up_is_told() {
    let mut queue = QueueOptions::new(4).anonymous::<u32>().unwrap();
    let other = queue.clone();
    other.send(1).unwrap();
    std::mem::forget(other.recv_ref().unwrap());
    let mut task = Polled::pending(queue.recv_async());
    drop(other);
    task.await_told();
    assert_eq!(task.poll(), Poll::Ready(Ok(1)));
}

#[cfg(feature = "futures")]
mod streams {
    use futures_util::{SinkExt, StreamExt};

    use super::*;
    use crate::{BytesQueue, ObjectQueue, SendError};

    #[test]
    fn a_sink_feeds_a_stream_through_a_small_queue() {
        let mut queue = Queue::new(2).unwrap();
        let mut sender = queue.clone();
        let sending = std::thread::spawn(move || {
            let numbers = futures_util::stream::iter(0..200_u32).map(Ok);
            block_on(async {
                numbers.forward(sender.sink()).await.unwrap();
                // The sink is closed, the queue not.
                sender.send_async(200).await.unwrap();
                sender.close().unwrap();
            });
        });
        assert_eq!(block_on(queue.stream().take(3).collect::<Vec<_>>()), [0, 1, 2]);
        let mut rest = queue.into_stream();
        assert_eq!(block_on(rest.by_ref().collect::<Vec<_>>()), (3..=200).collect::<Vec<_>>());
        assert_eq!(block_on(rest.next()), None, "again");
        sending.join().unwrap();
    }

    #[test]
    fn all_queues_are_streams_and_sinks() {
        let mut objects = ObjectQueue::<String>::new(2).unwrap();
        let sender = objects.clone();
        block_on(async {
            let mut sink = sender.into_sink();
            sink.send("one".to_owned()).await.unwrap();
            assert_eq!(objects.stream().next().await.as_deref(), Some("one"));
            objects.close().unwrap();
            let refused = sink.send("two".to_owned()).await;
            assert_eq!(refused, Err(SendError::Closed("two".to_owned())), "it comes back");
            assert_eq!(sink.flush().await, Ok(()), "and is not kept");
        });
        let bytes = BytesQueue::new(2).unwrap();
        bytes.send(b"abc").unwrap();
        bytes.close().unwrap();
        assert_eq!(block_on(bytes.into_stream().collect::<Vec<_>>()), [b"abc"]);
        let (mut producer, mut consumer) = spsc::channel::<u16>(100).unwrap();
        block_on(async {
            producer.sink().send_all(&mut futures_util::stream::iter(0..50).map(Ok)).await.unwrap();
            producer.close();
            assert_eq!(consumer.stream().collect::<Vec<_>>().await, (0..50).collect::<Vec<_>>());
        });
    }
}

#[cfg(feature = "mio")]
#[test]
fn mio_is_told_by_a_descriptor() {
    use ::mio::{Events, Interest, Poll, Token};
    let queue = Queue::new(4).unwrap();
    let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(4));
    let mut readable = queue.readable().unwrap();
    poll.registry().register(&mut readable, Token(5), Interest::READABLE).unwrap();
    for n in 0..20 {
        assert!(!readable.arm().unwrap());
        // Its events are edges: each telling is one.
        let sender = queue.clone();
        let sending = std::thread::spawn(move || sender.send(n).unwrap());
        poll.poll(&mut events, Some(HANG)).unwrap();
        assert_eq!(events.iter().map(|event| event.token()).collect::<Vec<_>>(), [Token(5)]);
        sending.join().unwrap();
        assert_eq!(queue.try_recv(), Ok(n));
    }
    poll.registry().deregister(&mut readable).unwrap();
}

#[cfg(feature = "async-io")]
mod connections {
    use std::io::ErrorKind;

    use futures_util::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::PipeOptions;

    /// More than there is room for, in both directions at a time, and in pieces of any size.
    #[test]
    fn bytes_go_both_ways_through_small_rings() {
        const ALL: usize = 300_000;
        let byte = |n: usize, which: usize| (n * 7 + n / 251 + which) as u8;
        let (here, there) = PipeOptions::new().capacity(4096).duplex::<(), ()>().unwrap();
        let side = |connection: crate::Connection<(), ()>, which: usize| {
            let connection = connection.into_async();
            let (mut reading, mut writing) = connection.split();
            block_on(async {
                let write = async {
                    let all: Vec<u8> = (0..ALL).map(|n| byte(n, which)).collect();
                    for piece in all.chunks(1000 + which) {
                        writing.write_all(piece).await.unwrap();
                    }
                    writing.close().await.unwrap();
                    assert_eq!(writing.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
                };
                let read = async {
                    let (mut count, mut buffer) = (0, [0; 777]);
                    loop {
                        match reading.read(&mut buffer).await.unwrap() {
                            0 => return count,
                            n => {
                                let right = (count..).map(|n| byte(n, 1 - which));
                                assert!(buffer[..n].iter().copied().zip(right).all(|(a, b)| a == b));
                                count += n;
                            }
                        }
                    }
                };
                assert_eq!(futures_util::future::join(write, read).await.1, ALL);
            });
        };
        std::thread::scope(|s| {
            s.spawn(|| side(there, 1));
            side(here, 0);
        });
    }
}
