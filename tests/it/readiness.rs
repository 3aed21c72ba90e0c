//! A task or a descriptor that waits for other processes gets what they send, and learns of their deaths, whoever is killed or
//! dropped in between; and while none waits, nobody pays.
//!
//! The rules by which wake-ups are passed on are tested one by one in `crates/primitives/src/readiness/tests.rs`.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{
    BytesQueue, Event, Fd, JoinError, JoinableQueue, ObjectQueue, Objects, Queue, QueueOptions, RecvError,
    SendError, WaitError, Waitable, spsc, wait_any,
};
use crossproc_process::Process;
use crossproc_segment::{ErrorKind, Segment};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, child, fresh_seed, isolated, join, kill_and_reap, not_run,
    tied_to_parent, wait_for,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::kernel::{self, End, Forked, Traced};

const READY: usize = 0;
const GO: usize = 1;

// ---- Tasks

/// Wakes the thread that it was made in.
struct Unpark(thread::Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// Runs a future that is pending at first; then calls `while_pending`, once.
#[track_caller]
fn run<F: Future>(future: F, while_pending: impl FnOnce()) -> F::Output {
    drive(future, |first| {
        assert!(first.is_none(), "there is nothing yet");
        while_pending();
    })
}

/// Runs a future: polls it once, and again whenever it is told, not otherwise.
#[track_caller]
fn drive<F: Future>(future: F, after_first: impl FnOnce(Option<&F::Output>)) -> F::Output {
    let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&unpark));
    let (mut future, mut context, started) = (pin!(future), Context::from_waker(&waker), Instant::now());
    let mut polled = future.as_mut().poll(&mut context);
    after_first(if let Poll::Ready(done) = &polled { Some(done) } else { None });
    loop {
        if let Poll::Ready(done) = polled {
            return done;
        }
        while !unpark.1.swap(false, Ordering::SeqCst) {
            assert!(started.elapsed() < HANG, "the task is never told");
            thread::park_timeout(Duration::from_millis(100));
        }
        polled = future.as_mut().poll(&mut context);
    }
}

/// Polls once, and is not told.
fn once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Says which of many futures was told.
struct Which(usize, mpsc::Sender<usize>);

impl Wake for Which {
    fn wake(self: Arc<Self>) {
        let _ = self.1.send(self.0);
    }
}

/// Runs many futures in one thread, each polled only when it was told; calls `while_pending` when all are.
#[track_caller]
fn run_all<F: Future + Unpin>(futures: Vec<F>, while_pending: impl FnOnce()) -> Vec<F::Output> {
    let (tell, told) = mpsc::channel();
    let wakers: Vec<Waker> =
        (0..futures.len()).map(|n| Waker::from(Arc::new(Which(n, tell.clone())))).collect();
    let mut futures: Vec<Option<F>> = futures.into_iter().map(Some).collect();
    let mut results: BTreeMap<usize, F::Output> = BTreeMap::new();
    let mut poll = |n: usize, results: &mut BTreeMap<usize, F::Output>| {
        let Some(future) = &mut futures[n] else { return };
        if let Poll::Ready(done) = Pin::new(future).poll(&mut Context::from_waker(&wakers[n])) {
            results.insert(n, done);
            futures[n] = None;
        }
    };
    (0..wakers.len()).for_each(|n| poll(n, &mut results));
    assert!(results.is_empty(), "there is nothing yet");
    while_pending();
    while results.len() < wakers.len() {
        let n = told.recv_timeout(HANG).unwrap_or_else(|_| panic!("only {} were told", results.len()));
        poll(n, &mut results);
    }
    results.into_values().collect()
}

/// Waits until the board says so, and as long as it takes the others to fall asleep.
fn await_go(board: &Board) {
    tied_to_parent();
    board.await_at_least(GO, 1);
    thread::sleep(Duration::from_millis(5));
}

#[test]
fn a_message_from_another_process_completes_a_future() {
    type Ends = (
        Board,
        Queue<u64>,
        Queue<[u64; 40]>,
        BytesQueue,
        ObjectQueue<Vec<String>>,
        JoinableQueue<u32>,
        spsc::Producer<u64>,
        Event,
        Queue<u8>,
    );
    fn send((board, small, large, bytes, objects, tasks, mut producer, event, shared): Ends) {
        await_go(&board);
        small.send(1).unwrap();
        board.await_at_least(GO, 2);
        large.send([2; 40]).unwrap();
        board.await_at_least(GO, 3);
        bytes.send(&[3; 100_000]).unwrap();
        board.await_at_least(GO, 4);
        objects.send(vec!["4".to_owned()]).unwrap();
        board.await_at_least(GO, 5);
        tasks.send(5).unwrap();
        board.await_at_least(GO, 6);
        producer.push(6).unwrap();
        board.await_at_least(GO, 7);
        event.set().unwrap();
        event.clear().unwrap();
        board.await_at_least(GO, 8);
        shared.send(8).unwrap();
        board.await_at_least(GO, 9);
    }
    let board = Board::new(2);
    let go = || {
        board.add(GO, 1);
    };
    let (mut small, mut large) = (Queue::new(4).unwrap(), Queue::new(4).unwrap());
    let (mut bytes, mut objects) = (BytesQueue::new(4).unwrap(), ObjectQueue::new(4).unwrap());
    let (mut tasks, event) = (JoinableQueue::new(4).unwrap(), Event::new().unwrap());
    let (producer, mut consumer) = spsc::channel(4).unwrap();
    let shared = Queue::new(4).unwrap();
    let ends = (
        board.clone(),
        small.clone(),
        large.clone(),
        bytes.clone(),
        objects.clone(),
        tasks.clone(),
        producer,
        event.clone(),
        shared.clone(),
    );
    let sender = child(send, ends);
    let shared = shared.share();
    assert_eq!(run(small.recv_async(), go), Ok(1));
    assert_eq!(run(large.recv_ref_async(), go).map(|message| *message), Ok([2; 40]));
    assert_eq!(run(bytes.recv_async(), go).unwrap(), [3; 100_000]);
    assert_eq!(run(objects.recv_async(), go).unwrap(), ["4"]);
    run(tasks.recv_async(), go).unwrap().done();
    assert_eq!(run(consumer.pop_async(), go), Ok(6));
    assert_eq!(run(event.wait_async(), go), Ok(()), "though it was cleared at once");
    assert_eq!(run(shared.recv_async(), go), Ok(8));
    go();
    join(sender);
    assert_eq!((small.audit(), large.audit(), bytes.audit()), (Ok(()), Ok(()), Ok(())));
}

#[test]
fn room_made_by_another_process_completes_a_future() {
    type Ends =
        (Board, Queue<u64>, BytesQueue, ObjectQueue<String>, JoinableQueue<u32>, spsc::Consumer<[u8; 400]>);
    fn receive((board, small, bytes, objects, tasks, mut consumer): Ends) {
        await_go(&board);
        assert_eq!(small.recv(), Ok(1));
        board.await_at_least(GO, 2);
        assert_eq!(bytes.recv().unwrap(), [1]);
        board.await_at_least(GO, 3);
        assert_eq!(objects.recv().unwrap(), "1");
        board.await_at_least(GO, 4);
        tasks.recv().unwrap().done();
        board.await_at_least(GO, 5);
        while board.get(GO) < 6 {
            let _ = consumer.try_pop();
        }
        tasks.recv().unwrap().done();
    }
    let board = Board::new(2);
    let go = || {
        board.add(GO, 1);
    };
    let mut small = Queue::new(1).unwrap();
    let (mut bytes, mut objects) = (BytesQueue::new(1).unwrap(), ObjectQueue::new(1).unwrap());
    let mut tasks = JoinableQueue::new(1).unwrap();
    let (mut producer, consumer) = spsc::channel::<[u8; 400]>(1).unwrap();
    let ends = (board.clone(), small.clone(), bytes.clone(), objects.clone(), tasks.clone(), consumer);
    small.send(1).unwrap();
    bytes.send(&[1]).unwrap();
    objects.send("1".to_owned()).unwrap();
    tasks.send(1).unwrap();
    while producer.try_push([7; 400]).is_ok() {}
    let receiver = child(receive, ends);
    assert_eq!(run(small.send_async(2), go), Ok(()));
    assert_eq!(run(bytes.send_async(&[2; 300_000]), go), Ok(()));
    assert_eq!(run(objects.send_async("2".repeat(1000)), go), Ok(()));
    assert_eq!(run(tasks.send_async(2), go), Ok(()));
    assert_eq!(run(producer.push_async([8; 400]), go), Ok(()));
    assert_eq!(small.recv(), Ok(2));
    assert_eq!(bytes.recv().unwrap(), [2; 300_000]);
    assert_eq!(objects.recv().unwrap(), "2".repeat(1000));
    assert_eq!(run(tasks.join_async(), go), Ok(()));
    join(receiver);
}

#[test]
fn a_thousand_queues_are_waited_for_at_once() {
    isolated(|()| {
        // Each takes a descriptor.
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
        if limit.maximum.is_some_and(|most| most < 1200) {
            return not_run("so many descriptors are not allowed");
        }
        let make = || QueueOptions::new(1).lanes(4).hands(1).anonymous::<u64>().unwrap();
        let mut queues: Vec<Queue<u64>> = (0..1000).map(|_| make()).collect();
        let (board, others) = (Board::new(2), queues.clone());
        let sender = child(
            |(board, queues): (Board, Vec<Queue<u64>>)| {
                await_go(&board);
                queues.iter().zip(0..).for_each(|(queue, n)| queue.send(n).unwrap());
                board.await_at_least(GO, 2);
                queues[777].send(7).unwrap();
                board.await_at_least(GO, 3);
            },
            (board.clone(), others.clone()),
        );
        drop(others);
        let futures = queues.iter_mut().map(Queue::recv_async).collect();
        let received = run_all(futures, || board.set(GO, 1));
        assert!(received.iter().zip(0..).all(|(value, n)| *value == Ok(n)));

        let list: Vec<&dyn Waitable> = queues.iter().map(|queue| queue as &dyn Waitable).collect();
        assert_eq!(wait_any(&list, Some(Duration::ZERO)), []);
        board.set(GO, 2);
        assert_eq!(wait_any(&list, Some(HANG)), [777]);
        board.set(GO, 3);
        join(sender);
        // All are alone now.
        let mut ready = 0;
        wait_for("all ends to be known", || {
            ready = wait_any(&list, Some(HANG)).len();
            ready == 1000
        });
    });
}

#[test]
fn a_thousand_tasks_wait_at_one_queue() {
    let queue = Queue::new(64).unwrap();
    let board = Board::new(2);
    let sender = child(
        |(board, queue): (Board, Queue<u64>)| {
            await_go(&board);
            (0..600).for_each(|n| queue.send(n).unwrap());
            (600..1000).collect::<Vec<_>>().chunks(40).for_each(|some| {
                let mut sent = 0;
                while sent < some.len() {
                    sent += queue.send_many(&some[sent..]).unwrap();
                }
            });
        },
        (board.clone(), queue.clone()),
    );
    let shared = queue.clone().share();
    let mut received: Vec<u64> =
        run_all((0..1000).map(|_| shared.recv_async()).collect(), || board.set(GO, 1))
            .into_iter()
            .map(Result::unwrap)
            .collect();
    join(sender);
    received.sort_unstable();
    assert_eq!(received, (0..1000).collect::<Vec<_>>());
    assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
}

/// A runtime may clone a waker under a lock of its own, under which it drops tasks elsewhere; here it drops one while it clones.
#[test]
fn a_waker_that_is_cloned_may_drop_another_future() {
    isolated(|()| {
        let queues: &'static [_; 2] =
            Box::leak(Box::new([0; 2].map(|_| Queue::<u32>::new(4).unwrap().share())));
        let mut other = queues[0].recv_async();
        assert!(once(&mut other).is_pending());
        let mut future = queues[1].recv_async();
        assert!(once(&mut future).is_pending());
        let is_dropped = Arc::new(AtomicBool::new(false));
        let waker = kernel::waker_that_calls({
            let is_dropped = Arc::clone(&is_dropped);
            move || {
                drop(other);
                is_dropped.store(true, Ordering::SeqCst);
            }
        });
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(is_dropped.load(Ordering::SeqCst));
        queues[1].send(1).unwrap();
    });
}

// ---- Deaths

#[test]
fn a_task_learns_that_nobody_is_left() {
    type Ends = (Board, Queue<u64>, Queue<u64>, BytesQueue, JoinableQueue<u32>, Event);
    fn stay((board, _, _, _, tasks, _): Ends) {
        tied_to_parent();
        let _task = tasks.recv().unwrap();
        board.add(READY, 1);
        loop {
            thread::park();
        }
    }
    for killed in [true, false] {
        let board = Board::new(2);
        let (mut empty, mut full, mut bytes) =
            (Queue::new(1).unwrap(), Queue::new(1).unwrap(), BytesQueue::new(1).unwrap());
        let (mut tasks, event) = (JoinableQueue::new(1).unwrap(), Event::new().unwrap());
        let readable = empty.readable().unwrap();
        full.send(1).unwrap();
        tasks.send(1).unwrap();
        let ends = (board.clone(), empty.clone(), full.clone(), bytes.clone(), tasks.clone(), event.clone());
        let peer = child(stay, ends);
        board.await_at_least(READY, 1);
        assert!(!readable.arm().unwrap());
        let end = || if killed { kill_and_reap(&peer) } else { peer.terminate().unwrap() };
        assert_eq!(run(empty.recv_async(), end), Err(RecvError::PeerDied));
        assert_eq!(drive(full.send_async(2), |_| ()), Err(SendError::PeerDied(2)));
        assert_eq!(drive(bytes.recv_async(), |_| ()).err(), Some(RecvError::PeerDied));
        assert_eq!(drive(event.wait_async(), |_| ()), Err(WaitError::PeerDied));
        assert_eq!(drive(tasks.join_async(), |_| ()), Err(JoinError::PeerDied));
        assert_eq!(drive(tasks.recv_async(), |_| ()).unwrap().deliveries(), 2, "its task has come back");
        wait_for("the descriptor", || is_readable(&readable));
        assert_eq!(wait_any(&[&empty, &event], None), [0, 1]);
        // What a loop that asks without waiting is told: or it would spin.
        assert!(readable.arm().unwrap() && full.writable().unwrap().arm().unwrap());
        assert_eq!(empty.recv_timeout(Duration::ZERO), Err(RecvError::PeerDied));
        assert_eq!(bytes.recv_timeout(Duration::ZERO), Err(RecvError::PeerDied));
        assert_eq!(full.send_timeout(2, Duration::ZERO), Err(SendError::PeerDied(2)));
        assert_eq!(event.wait_timeout(Duration::ZERO), Err(WaitError::PeerDied));
        // Nothing to be waited for is an end at once, without a death to wake it.
        assert_eq!(drive(empty.recv_async(), |first| assert!(first.is_some())), Err(RecvError::PeerDied));
    }
}

/// Each kind by itself: the death is what wakes it.
#[test]
fn a_death_wakes_each_kind() {
    fn stay<T>((board, _ends): (Board, T)) {
        tied_to_parent();
        board.add(READY, 1);
        loop {
            thread::park();
        }
    }
    let board = Board::new(2);
    let go = |peer: &Process<()>| {
        // It may come after the first poll: then that is no reason to end.
        thread::sleep(Duration::from_millis(2));
        kill_and_reap(peer);
    };
    let there = |n| {
        board.await_at_least(READY, n);
    };

    let mut full = Queue::new(1).unwrap();
    full.send(1).unwrap();
    let peer = child(stay, (board.clone(), full.clone()));
    there(1);
    assert_eq!(run(full.send_async(2), || go(&peer)), Err(SendError::PeerDied(2)));

    let (producer, mut consumer) = spsc::channel::<u64>(1).unwrap();
    let peer = child(stay, (board.clone(), producer));
    there(2);
    assert_eq!(run(consumer.pop_async(), || go(&peer)), Err(spsc::PopError::PeerDied));
    assert_eq!(consumer.pop_timeout(Duration::ZERO), Err(spsc::PopError::PeerDied));

    let (mut producer, consumer) = spsc::channel::<u64>(1).unwrap();
    while producer.try_push(1).is_ok() {}
    let peer = child(stay, (board.clone(), consumer));
    there(3);
    assert_eq!(run(producer.push_async(2), || go(&peer)), Err(spsc::PushError::PeerDied(2)));
    assert_eq!(producer.push_timeout(2, Duration::ZERO), Err(spsc::PushError::PeerDied(2)));

    let event = Event::new().unwrap();
    let peer = child(stay, (board.clone(), event.clone()));
    there(4);
    assert_eq!(run(event.wait_async(), || go(&peer)), Err(WaitError::PeerDied));

    let mut objects = ObjectQueue::<String>::new(1).unwrap();
    let peer = child(stay, (board.clone(), objects.clone()));
    there(5);
    assert_eq!(run(objects.recv_async(), || go(&peer)), Err(RecvError::PeerDied));

    let (a, b) = (Queue::<u8>::new(1).unwrap(), Event::new().unwrap());
    let peer = child(stay, (board.clone(), (a.clone(), b.clone())));
    there(6);
    let (pidfd, timer) = (Fd::readable(&peer), Event::new().unwrap());
    assert_eq!(wait_any(&[&a, &timer, &b, &pidfd], Some(Duration::from_millis(1))), []);
    thread::scope(|s| {
        s.spawn(|| go(&peer));
        let ready = wait_any(&[&a, &timer, &b, &pidfd], Some(HANG));
        assert!(!ready.is_empty() && !ready.contains(&1), "{ready:?}");
    });
    wait_for("all of them", || wait_any(&[&a, &timer, &b, &pidfd], None) == [0, 2, 3]);
}

/// Not at the end of a slice, which is a second long by then.
#[test]
fn a_death_is_told_at_once() {
    fn stay((board, _queue): (Board, Queue<u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        loop {
            thread::park();
        }
    }
    // Alone: other tests would wake the watcher.
    isolated(|()| {
        let board = Board::new(2);
        let mut queues: Vec<_> = (0..5).map(|_| Queue::new(1).unwrap()).collect();
        let peers: Vec<_> = queues.iter().map(|queue| child(stay, (board.clone(), queue.clone()))).collect();
        board.await_at_least(READY, 5);
        let mut futures: Vec<_> = queues.iter_mut().map(Queue::recv_async).collect();
        assert!(futures.iter_mut().all(|future| once(future).is_pending()));
        // Slices end after 50, 150, 350, 750, 1550 and 2550 ms.
        thread::sleep(Duration::from_millis(1700));
        let mut late = 0;
        for (future, peer) in futures.into_iter().zip(peers) {
            kill_and_reap(&peer);
            let started = Instant::now();
            assert_eq!(drive(future, |_| ()), Err(RecvError::PeerDied));
            late += usize::from(started.elapsed() > Duration::from_millis(200));
        }
        assert!(late <= 2, "{late} of 5 deaths were found at the end of a slice only");
    });
}

/// A task that a dead worker had comes back to one that waits as a future.
#[test]
fn what_the_dead_had_completes_a_future() {
    fn take((board, tasks): (Board, JoinableQueue<u32>)) {
        tied_to_parent();
        let _task = tasks.recv().unwrap();
        board.add(READY, 1);
        loop {
            thread::park();
        }
    }
    let (board, mut tasks) = (Board::new(2), JoinableQueue::new(2).unwrap());
    let others = [(); 2].map(|()| child(take, (board.clone(), tasks.clone())));
    let sender = tasks.clone();
    sender.send(7).unwrap();
    sender.send(8).unwrap();
    board.await_at_least(READY, 2);
    let task = run(tasks.recv_async(), || kill_and_reap(&others[0])).unwrap();
    assert_eq!(task.deliveries(), 2);
    task.done();
    kill_and_reap(&others[1]);
    drive(tasks.recv_async(), |_| ()).unwrap().done();
    assert_eq!(drive(tasks.join_async(), |_| ()), Ok(()));
}

/// A sender that is killed right before it would have woken the receiver.
#[test]
fn a_message_whose_sender_was_killed_before_the_wake_up_completes_a_future() {
    isolated(|()| {
        for stopped in [false, true] {
            let segment = Segment::anonymous(64 * 1024).unwrap();
            let mut queue = segment.queue::<[u64; 4]>("it", 4).unwrap();
            let mut traced = None;
            let received = run(queue.recv_async(), || {
                let sender = Traced::start(|| {
                    let queue = segment.attach_again().unwrap().queue::<[u64; 4]>("it", 4).unwrap();
                    queue.send([7; 4]).unwrap();
                });
                let mut sender = match sender {
                    Ok(sender) => sender,
                    Err(reason) => {
                        not_run(&format!("killing before a wake-up: {reason}"));
                        segment.queue::<[u64; 4]>("it", 4).unwrap().send([7; 4]).unwrap();
                        return;
                    }
                };
                let other = segment.queue::<[u64; 4]>("it", 4).unwrap();
                while other.is_empty() {
                    assert_eq!(sender.step(), None, "it sends before it ends");
                }
                // Published. It stands before its next system call, which is the wake-up.
                let (number, arguments) = sender.call().expect("before a call");
                assert_eq!((number, arguments[1] & 0x7f), (libc::SYS_futex as u64, libc::FUTEX_WAKE as u64));
                if stopped {
                    traced = Some(sender);
                } else {
                    assert_eq!(sender.kill(), End::Killed(9));
                }
            });
            assert_eq!(received, Ok([7; 4]), "sender stopped: {stopped}");
        }
    });
}

// ---- Dropping

/// Futures are dropped at any time. Every message gets to somebody, and no later than if there had been no future: a wake-up that is
/// lost costs a slice.
#[test]
fn dropped_futures_hold_up_nobody() {
    const MESSAGES: u64 = 600;
    /// Less than a slice.
    const LATE: Duration = Duration::from_millis(30);
    /// Receives as any process does, asleep, one message each time it is told to.
    fn receive((board, queue): (Board, Queue<u64>)) -> u64 {
        tied_to_parent();
        for nth in 1.. {
            board.await_at_least(GO, nth);
            match queue.recv_timeout(HANG) {
                Ok(_) => {
                    board.add(READY, 1);
                }
                Err(RecvError::Closed) => return nth - 1,
                Err(error) => panic!("{error}"),
            }
        }
        unreachable!("it is closed at some time")
    }
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let (board, mut queue) = (Board::new(2), Queue::new(4).unwrap());
    let sender = queue.clone();
    let receiver = child(receive, (board.clone(), queue.clone()));
    // Late ones without a future, and with one: the machine may be busy with other things.
    let (mut here, mut late) = (0, [0; 2]);
    for nth in 0..MESSAGES {
        // Who sleeps first is woken first: both orders.
        let receiver_sleeps = || {
            board.set(GO, board.get(READY) + 1);
            await_asleep(receiver.pid());
        };
        let (with_future, receiver_first) = (nth % 2 == 1, rng.once_in(2));
        if receiver_first {
            receiver_sleeps();
        }
        let mut future = with_future.then(|| queue.recv_async());
        assert!(future.as_mut().is_none_or(|future| once(future).is_pending()));
        thread::sleep(Duration::from_micros(rng.below(400)));
        if !receiver_first {
            receiver_sleeps();
        }
        sender.send(nth).unwrap();
        let sent = Instant::now();
        (0..rng.below(3000)).for_each(|_| std::hint::spin_loop());
        if rng.once_in(2) {
            thread::sleep(Duration::from_micros(rng.below(200)));
        }
        let is_here = rng.once_in(4) && future.as_mut().is_some_and(|future| once(future).is_ready());
        here += u64::from(is_here);
        drop(future);
        wait_for("the message to get to somebody", || here + board.get(READY) == nth + 1);
        late[usize::from(with_future)] += u64::from(sent.elapsed() > LATE);
    }
    sender.close().unwrap();
    board.set(GO, u64::MAX);
    assert_eq!(here + join(receiver), MESSAGES);
    println!("{here} were received here; late without a future, and with one: {late:?}");
    assert!(late[1] <= 2 * late[0] + MESSAGES / 20, "late without a future, and with one: {late:?}");
}

#[test]
fn nothing_is_left_behind() {
    isolated(|()| {
        let count = |what: &str| read_dir(format!("/proc/self/{what}")).unwrap().count();
        let mappings = || read_to_string("/proc/self/maps").unwrap().matches("memfd").count();
        // The watcher starts, and whatever else is made once.
        let warm_up = Queue::<u64>::new(1).unwrap();
        assert!(!warm_up.readable().unwrap().arm().unwrap());
        let before = (count("fd"), count("task"), mappings());
        for round in 0..50 {
            let mut queue = Queue::<u64>::new(1).unwrap();
            let (readable, writable) = (queue.readable().unwrap(), queue.writable().unwrap());
            assert!(!readable.arm().unwrap() && writable.arm().unwrap());
            let mut other = queue.clone();
            let mut one = queue.recv_async();
            assert!(once(&mut one).is_pending());
            match round % 3 {
                0 => drop(one),
                1 => {
                    other.send(1).unwrap();
                    drop(one);
                }
                _ => {
                    other.send(1).unwrap();
                    assert_eq!(drive(one, |_| ()), Ok(1));
                }
            }
            // A descriptor keeps the queue: in any order.
            if round % 2 == 0 {
                drop((queue, readable));
                let _ = other.try_recv();
                let mut again = other.recv_async();
                assert!(once(&mut again).is_pending());
            }
        }
        let now = || (count("fd"), count("task"), mappings());
        wait_for("everything to be given back", || now() == before);
    });
}

/// Who is not armed any more does not keep the process attached, not even for a moment.
#[test]
fn a_segment_is_left_at_once() {
    let name = format!("it-readiness-{}", std::process::id());
    for _ in 0..30 {
        let segment = Segment::create(&name, 64 * 1024).unwrap();
        let (mut queue, event) = (segment.queue::<u64>("queue", 4).unwrap(), segment.event("event").unwrap());
        let (readable, is_set) = (queue.readable().unwrap(), event.readable().unwrap());
        assert!(!readable.arm().unwrap() && !is_set.arm().unwrap());
        let mut future = queue.recv_async();
        assert!(once(&mut future).is_pending());
        event.set().unwrap();
        drop(future);
        drop((readable, is_set, segment, queue, event));
        assert_eq!(Segment::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_forked_child_neither_takes_nor_disarms() {
    isolated(|()| {
        let segment = Segment::anonymous(64 * 1024).unwrap();
        let mut queues = [(); 2].map(|()| segment.queue::<u64>("it", 4).unwrap());
        let (sender, readable) = (queues[0].clone(), queues[0].readable().unwrap());
        assert!(!readable.arm().unwrap());
        let [one, two] = &mut queues;
        let futures = Mutex::new([one, two].map(|queue| Some(queue.recv_async())));
        for future in futures.lock().unwrap().iter_mut().flatten() {
            assert!(once(future).is_pending());
        }
        let forked = Forked::new(|| {
            // Its own are told by a watcher of its own; they stand in the same places, in the same order, as its parent's.
            let own = segment.attach_again().unwrap();
            let [mut one, mut two, sender] = [(); 3].map(|()| own.queue::<u64>("it", 4).unwrap());
            let armed = one.readable().unwrap();
            assert!(!armed.arm().unwrap());
            let mut received = run_all(vec![one.recv_async(), two.recv_async()], || {
                let mut futures = futures.lock().unwrap();
                let end = once(futures[0].as_mut().unwrap());
                assert!(matches!(end, Poll::Ready(Err(RecvError::Unusable(_)))), "{end:?}");
                *futures = [None, None];
                assert!(readable.arm().unwrap(), "an operation would say why it is none");
                readable.clear();
                drop(readable);
                sender.send_many(&[3, 4]).unwrap();
                wait_for("the descriptor", || is_readable(&armed));
            });
            received.sort_unstable_by_key(|value| value.unwrap());
            assert_eq!(received, [Ok(3), Ok(4)]);
        });
        assert_eq!(forked.end(), End::Exited(0));
        let futures = futures.into_inner().unwrap().map(Option::unwrap);
        let mut received = run_all(Vec::from(futures), || {
            sender.send_many(&[1, 2]).unwrap();
        });
        received.sort_unstable_by_key(|value| value.unwrap());
        assert_eq!(received, [Ok(1), Ok(2)]);
    });
}

// ---- What it costs, and what may be missing

#[test]
fn while_nobody_waits_a_message_takes_no_system_call() {
    isolated(|()| {
        let traced = Traced::start(|| {
            let mut queue = Queue::new(4).unwrap();
            let mut other = queue.clone();
            let readable = queue.readable().unwrap();
            assert!(!readable.arm().unwrap());
            let mut waiting = queue.recv_async();
            assert!(once(&mut waiting).is_pending());
            drop(waiting);
            readable.clear();
            // The first one finds that a sleeper has been there, and clears the mark.
            other.send(0).unwrap();
            assert_eq!(queue.recv(), Ok(0));
            let _ = rustix::process::getppid();
            for n in 0..100 {
                other.try_send(n).unwrap();
                assert_eq!(once(&mut queue.recv_async()), Poll::Ready(Ok(n)));
                let mut sending = other.send_async(n);
                assert!(once(&mut sending).is_ready());
                drop(sending);
                assert_eq!(queue.try_recv(), Ok(n));
            }
            let _ = rustix::process::getppid();
        });
        let mut traced = match traced {
            Ok(traced) => traced,
            Err(reason) => return not_run(&format!("counting system calls: {reason}")),
        };
        let (mut marks, mut between) = (0, Vec::new());
        let end = loop {
            if let Some(end) = traced.step() {
                break end;
            }
            if let Some((number, _)) = traced.call() {
                if number == libc::SYS_getppid as u64 {
                    marks += 1;
                } else if marks == 1 {
                    between.push(number);
                }
            }
        };
        assert_eq!((end, marks), (End::Exited(0), 2));
        assert_eq!(between, [], "system calls in 200 messages");
    });
}

#[test]
fn a_kernel_without_futex_waitv_is_made_up_for() {
    fn wait((board, mut queue, others): (Board, Queue<u64>, Vec<Queue<u64>>)) -> bool {
        tied_to_parent();
        if kernel::deny(libc::SYS_futex_waitv, libc::ENOSYS).is_err() {
            board.set(READY, 1);
            return false;
        }
        assert_eq!(kernel::probe_futex_waitv(), Some(libc::ENOSYS), "the filter works");
        assert_eq!(run(queue.recv_async(), || board.set(READY, 1)), Ok(1));
        let list: Vec<&dyn Waitable> = others.iter().map(|queue| queue as &dyn Waitable).collect();
        board.set(READY, 2);
        assert_eq!(wait_any(&list, Some(HANG)), [2]);
        board.set(READY, 3);
        assert_eq!(drive(queue.recv_async(), |_| ()), Err(RecvError::PeerDied));
        true
    }
    fn send((board, queue, other): (Board, Queue<u64>, Queue<u64>)) {
        tied_to_parent();
        board.await_at_least(READY, 1);
        queue.send(1).unwrap();
        board.await_at_least(READY, 2);
        other.send(2).unwrap();
        board.await_at_least(READY, 3);
    }
    let (board, queue) = (Board::new(2), Queue::new(1).unwrap());
    let others: Vec<Queue<u64>> = (0..4).map(|_| Queue::new(1).unwrap()).collect();
    let waiting = child(wait, (board.clone(), queue.clone(), others.clone()));
    let sending = child(send, (board, queue.clone(), others[2].clone()));
    drop(queue);
    // This process is not in the queue any more: so the waiting one is alone when the sender has gone.
    if !join(waiting) {
        return not_run("system call filters (seccomp) are not allowed");
    }
    join(sending);
}

// ---- Storms

/// Arming, disarming and telling race each other, in threads and processes; each message is received once.
#[test]
fn a_storm_of_tasks_and_descriptors() {
    const SENDERS: u64 = 2;
    const EACH: u64 = 3000;
    fn send((queue, sender, seed): (Queue<u64>, u64, u64)) {
        tied_to_parent();
        let mut rng = Rng::new(seed ^ sender);
        for nth in 0..EACH {
            queue.send(sender << 32 | nth).unwrap();
            if rng.once_in(50) {
                thread::sleep(Duration::from_micros(rng.below(300)));
            }
        }
    }
    /// As a blocking receiver in a process of its own.
    fn receive((queue, limit): (Queue<u64>, usize)) -> Vec<u64> {
        tied_to_parent();
        queue.iter().take(limit).collect()
    }
    let seed = fresh_seed();
    println!("seed {seed}");
    let queue = Queue::new(8).unwrap();
    let senders: Vec<_> = (0..SENDERS).map(|n| child(send, (queue.clone(), n, seed))).collect();
    let receiver = child(receive, (queue.clone(), 500));
    let count = AtomicUsize::new(500);
    let all = (SENDERS * EACH) as usize;
    let mut received = thread::scope(|s| {
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (mut queue, count) = (queue.clone(), &count);
                s.spawn(move || {
                    let (mut rng, mut mine) = (Rng::new(seed + n), Vec::new());
                    let readable = queue.readable().unwrap();
                    while count.load(Ordering::SeqCst) < all {
                        let value = match rng.below(3) {
                            // By a descriptor.
                            0 => {
                                if !readable.arm().unwrap() {
                                    let limit = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                                    poll(&mut [PollFd::new(&readable, PollFlags::IN)], Some(&limit)).unwrap();
                                }
                                queue.try_recv().ok()
                            }
                            // By a future that is polled a few times at most.
                            1 => {
                                let mut future = queue.recv_async();
                                (0..rng.below(4)).find_map(|_| {
                                    thread::yield_now();
                                    let polled = once(&mut future);
                                    if let Poll::Ready(value) = polled { value.ok() } else { None }
                                })
                            }
                            // By one that waits until it is told, or the queue is closed.
                            _ => drive(queue.recv_async(), |_| ()).ok(),
                        };
                        if let Some(value) = value {
                            mine.push(value);
                            if count.fetch_add(1, Ordering::SeqCst) + 1 == all {
                                queue.close().unwrap();
                            }
                        }
                    }
                    for sender in 0..SENDERS {
                        let theirs = mine.iter().filter(|value| **value >> 32 == sender);
                        assert!(theirs.is_sorted(), "out of order");
                    }
                    mine
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    senders.into_iter().for_each(join);
    received.extend(join(receiver));
    received.sort_unstable();
    let should: Vec<u64> = (0..SENDERS).flat_map(|n| (0..EACH).map(move |nth| n << 32 | nth)).collect();
    assert_eq!(received.len(), should.len());
    assert_eq!(received, should, "each once");
    assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
}

/// One end sleeps as a task, the other as a process, and both all the time.
#[test]
fn a_flood_through_a_small_spsc_queue() {
    const COUNT: u64 = 20_000;
    fn push(mut producer: spsc::Producer<u64>) {
        tied_to_parent();
        (0..COUNT).for_each(|n| producer.push(n).unwrap());
    }
    fn pop(mut consumer: spsc::Consumer<u64>) -> bool {
        tied_to_parent();
        (0..COUNT).all(|n| consumer.pop() == Ok(n))
    }
    let (producer, mut consumer) = spsc::channel(8).unwrap();
    let pushing = child(push, producer);
    for n in 0..COUNT {
        assert_eq!(drive(consumer.pop_async(), |_| ()), Ok(n));
    }
    join(pushing);
    let (mut producer, consumer) = spsc::channel(8).unwrap();
    let popping = child(pop, consumer);
    for n in 0..COUNT {
        assert_eq!(drive(producer.push_async(n), |_| ()), Ok(()));
    }
    assert!(join(popping));
}

fn is_readable(fd: &impl std::os::fd::AsFd) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}
