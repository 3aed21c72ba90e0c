//! A pool computes what it is asked, and one death takes one task along. The scenarios are those of CPython's tests of `Pool` and of
//! `concurrent.futures` (its deadlock tests), and the ways to be killed or stopped.
//!
//! After each of them the same pool computes a correct `map` ([`is_well`]).

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crossproc_pool::{OnWorkerDeath, Pool, PoolBuilder, PoolError, Progress, Task, TaskError, TimedOut};
use crossproc_primitives::{Array, Event, RawArray, Value};
use crossproc_process::{ExitStatus, ForkServer, StartMethod, current};
use crossproc_tests::{HANG, await_state, child, isolated, kill_and_reap, pool_storm, state_of, wait_for};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn pool_of(processes: usize) -> Pool {
    quiet().processes(processes).build().expect("a pool")
}

/// Panics are part of these tests.
fn quiet() -> PoolBuilder {
    Pool::builder().env("RUST_BACKTRACE", "0")
}

fn square(n: u64) -> u64 {
    n * n
}

/// The pool does what it should, with every worker it ought to have.
#[track_caller]
fn is_well(pool: &Pool) {
    let squares: Vec<u64> = (0..500).map(square).collect();
    assert_eq!(pool.map(square, 0..500).unwrap(), squares);
    wait_for("all workers", || pool.worker_pids().len() == pool.processes());
    assert_eq!(pool.map_chunked(square, 0..500, 1).unwrap(), squares);
}

/// The outcome of a task that must not hang.
#[track_caller]
fn outcome<R: DeserializeOwned>(task: &Task<R>) -> Result<R, TaskError> {
    task.get_timeout(HANG).expect("an outcome")
}

fn send(signal: Signal, pid: u32) {
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    kill_process(pid, signal).expect("a worker can be sent signals");
}

fn pause(milliseconds: u64) {
    sleep(Duration::from_millis(milliseconds));
}

/// A task that is still being done when the test is over.
fn without_end(n: u64) -> u64 {
    pause(3_600_000);
    n
}

// ---- What Python's Pool does ----

#[test]
fn results_are_right_and_in_order() {
    let pool = pool_of(4);
    assert_eq!(pool.apply(square, 7), Ok(49));
    assert_eq!(pool.map(square, 1..=10), Ok(vec![1, 4, 9, 16, 25, 36, 49, 64, 81, 100]));
    assert_eq!(pool.map(|n: u64| n.pow(3), 0..10), Ok(vec![0, 1, 8, 27, 64, 125, 216, 343, 512, 729]));
    assert_eq!(pool.map(square, []), Ok(vec![]));
    let all: Vec<u64> = (0..1000).map(square).collect();
    for chunk_size in [1, 3, 999, 1000, 5000] {
        assert_eq!(pool.map_chunked(square, 0..1000, chunk_size).as_ref(), Ok(&all));
    }
    // Python's starmap.
    assert_eq!(pool.map(|(a, b): (u32, u32)| a.pow(b), [(2, 5), (3, 2), (10, 3)]), Ok(vec![32, 9, 1000]));
    let words = ["to", "be", "or"].map(String::from);
    assert_eq!(pool.map(|s: String| s.chars().rev().collect::<String>(), words).unwrap().concat(), "otebro");
    // Slow ones first.
    assert_eq!(
        pool.map_chunked(
            |n: u64| {
                pause(n);
                n
            },
            [40, 20, 10, 0],
            1
        ),
        Ok(vec![40, 20, 10, 0])
    );
    assert!(pool.imap(square, 0..1000).unwrap().map(Result::unwrap).eq(all.iter().copied()));
    let imap = pool.imap(square, 0..1000).unwrap().chunk_size(7).look_ahead(100);
    assert!(imap.map(Result::unwrap).eq(all.iter().copied()));
    let unordered: BTreeSet<_> =
        pool.imap_unordered(square, 0..1000).unwrap().chunk_size(3).map(Result::unwrap).collect();
    assert_eq!(unordered, all.iter().copied().collect());
    assert_eq!(pool.imap(square, []).unwrap().count(), 0);
    let (done, total) = (pool.progress().done, pool.progress().total);
    assert!(done == total && total >= 5000 + 3000, "{done} of {total}");
}

#[test]
fn an_endless_iterator_is_looked_at_only_so_far_ahead() {
    let pool = pool_of(2);
    let asked = Arc::new(std::sync::Mutex::new(0));
    let asking = Arc::clone(&asked);
    let numbers = (0..).inspect(move |_| *asking.lock().unwrap() += 1);
    let mut squares = pool.imap(square, numbers).unwrap().look_ahead(10);
    for n in 0..50 {
        assert_eq!(squares.next(), Some(Ok(n * n)));
        assert!(*asked.lock().unwrap() <= n + 11, "{} at {n}", asked.lock().unwrap());
    }
    drop(squares);
    let mut any = pool.imap_unordered(square, 0_u64..).unwrap();
    assert!(any.by_ref().take(200).all(|result| result.is_ok()));
    drop(any);
    is_well(&pool);
}

#[test]
fn unordered_results_come_as_soon_as_they_are_there_and_in_time() {
    let pool = pool_of(2);
    let nap = |n: u64| {
        pause(n);
        n
    };
    let mut results = pool.imap_unordered(nap, [2000, 1]).unwrap();
    assert_eq!(results.next(), Some(Ok(1)));
    assert_eq!(results.next_timeout(Duration::from_millis(1)), Err(TimedOut));
    assert_eq!(results.next_timeout(HANG), Ok(Some(Ok(2000))));
    assert_eq!(results.next_timeout(HANG), Ok(None));
    assert_eq!(results.next(), None);
}

#[test]
fn a_task_can_be_waited_for_in_every_way() {
    let pool = pool_of(1);
    let slow = pool
        .submit(
            |n: u32| {
                pause(300);
                n
            },
            5,
        )
        .unwrap();
    assert!(!slow.is_done() && !slow.wait_timeout(Duration::from_millis(1)));
    assert_eq!((slow.try_get(), slow.is_successful()), (None, None));
    assert_eq!(slow.progress(), Progress { done: 0, total: 1 });
    assert_eq!(outcome(&slow), Ok(5));
    assert_eq!((slow.is_successful(), slow.try_get()), (Some(true), Some(Ok(5))));
    let failed = pool.submit(|(): ()| -> () { panic!("no") }, ()).unwrap();
    failed.wait();
    assert_eq!((failed.is_done(), failed.is_successful()), (true, Some(false)));

    // As a future, on an executor of a few lines.
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let context = &mut Context::from_waker(&waker);
    let mut future = std::pin::pin!(async {
        let tasks: Vec<_> = (0..20).map(|n| pool.submit(square, n).unwrap()).collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.unwrap();
        }
        sum + pool.map_async(square, 0..10).unwrap().await.unwrap().iter().sum::<u64>()
    });
    let begun = Instant::now();
    let sum = loop {
        match future.as_mut().poll(context) {
            Poll::Ready(sum) => break sum,
            Poll::Pending => thread::park_timeout(HANG),
        }
        assert!(begun.elapsed() < HANG, "nobody woke the future");
    };
    assert_eq!(sum, 2470 + 285);
}

#[test]
fn what_has_not_been_begun_can_be_cancelled() {
    let (gate, runs) = (Event::new().unwrap(), RawArray::<u32>::new(2000).unwrap());
    let handles = (gate.clone(), runs.clone());
    let pool =
        quiet().processes(1).initializer(|handles| GATE.set(handles).unwrap(), handles).build().unwrap();
    let first = pool.submit(wait_at_gate, 0).unwrap();
    wait_for("the first to begin", || runs.get(0) == Ok(1));
    let tasks: Vec<_> = (1..2000).map(|n| pool.submit(wait_at_gate, n).unwrap()).collect();
    let map = pool.map_async_chunked(wait_at_gate, 0..100, 10).unwrap();
    // Some have been sent ahead, the others have not.
    assert!(tasks.iter().all(Task::cancel));
    assert!(tasks.iter().all(|task| outcome(task) == Err(TaskError::Cancelled) && !task.cancel()));
    assert_eq!(map.cancel(), 100);
    assert_eq!(map.get_each(), vec![Err(TaskError::Cancelled); 100]);
    assert!(!first.cancel(), "it was begun");
    gate.set().unwrap();
    assert_eq!(outcome(&first), Ok(0));
    is_well(&pool);
    assert_eq!(runs.to_vec().unwrap().iter().sum::<u32>(), 1, "what was cancelled is not done all the same");
}

static GATE: OnceLock<(Event, RawArray<u32>)> = OnceLock::new();

fn wait_at_gate(n: u32) -> u32 {
    let (gate, runs) = GATE.get().expect("the initializer has run");
    runs.fetch_add(n as usize, 1).expect("a place");
    gate.wait().expect("somebody opens it");
    n
}

#[test]
fn callbacks_are_called_once_and_a_panic_in_one_harms_nobody() {
    let pool = pool_of(2);
    let (sender, receiver) = channel();
    for n in 0..50_u64 {
        let sender = sender.clone();
        let task = pool.submit(|n: u64| if n.is_multiple_of(5) { panic!("{n}") } else { n }, n).unwrap();
        task.on_done(move |result| {
            assert!(n % 7 != 0, "this one panics");
            sender.send((n, result)).unwrap();
        });
    }
    let map_sender = sender.clone();
    let map = pool.map_async(square, 0..4).unwrap();
    map.on_done(move |all| map_sender.send((1000, all.map(|all| all.iter().sum()))).unwrap());
    // One that is done already.
    let done = pool.submit(square, 3).unwrap();
    done.wait();
    done.on_done(move |nine| sender.send((2000, nine)).unwrap());
    pool.close();
    pool.join().unwrap();
    let mut called: Vec<_> = receiver.try_iter().collect();
    called.sort_by_key(|(n, _)| *n);
    assert_eq!(called.pop(), Some((2000, Ok(9))));
    assert_eq!(called.pop(), Some((1000, Ok(14))));
    let expected: Vec<_> = (0..50).filter(|n| n % 7 != 0).collect();
    assert_eq!(called.iter().map(|(n, _)| *n).collect::<Vec<_>>(), expected);
    for (n, result) in called {
        match result {
            Ok(m) => assert!(m == n && n % 5 != 0),
            Err(error) => {
                assert!(matches!(error, TaskError::Panicked { message, .. } if message == n.to_string()))
            }
        }
    }
}

#[test]
fn an_error_is_that_of_its_item_and_the_rest_is_done() {
    let pool = pool_of(2);
    let done = RawArray::<u64>::new(100).unwrap();
    static DONE: OnceLock<RawArray<u64>> = OnceLock::new();
    let counting =
        quiet().processes(2).initializer(|done| DONE.set(done).unwrap(), done.clone()).build().unwrap();
    let odd_panics = |n: u64| {
        DONE.get().unwrap().fetch_add(n as usize, 1).unwrap();
        assert!(n.is_multiple_of(2), "{n} is odd");
        n
    };
    // Python too raises the first error only when all have been done.
    match counting.map(odd_panics, 0..100) {
        Err(TaskError::Panicked { message, location }) => {
            assert_eq!(message, "1 is odd");
            assert!(location.unwrap().contains("pool.rs:"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(done.to_vec().unwrap(), [1; 100]);
    let each = counting.try_map(odd_panics, 0..100).unwrap();
    assert!(each.iter().enumerate().all(|(n, result)| result.is_ok() == (n % 2 == 0)));
    let oks = counting.imap(odd_panics, 0..100).unwrap().chunk_size(7).filter(Result::is_ok).count();
    assert_eq!(oks, 50);
    is_well(&counting);

    // An iterator that panics harms its own call only.
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.map(square, (0..10).inspect(|n| assert!(*n < 5, "the iterator")))
    }));
    assert!(panics.is_err());
    is_well(&pool);
}

#[test]
fn a_closed_pool_finishes_and_takes_no_more() {
    let pool = pool_of(2);
    assert_eq!(pool.join(), Err(PoolError::StillOpen));
    let tasks = pool
        .map_async_chunked(
            |n: u64| {
                pause(1);
                n
            },
            0..300,
            1,
        )
        .unwrap();
    let mut imap = pool.imap(square, 0_u64..).unwrap();
    assert_eq!(imap.next(), Some(Ok(0)));
    pool.close();
    assert_eq!(pool.submit(square, 1).unwrap_err(), PoolError::Closed);
    assert_eq!(pool.map(square, [1]), Err(TaskError::Pool(PoolError::Closed)));
    assert_eq!(pool.join_timeout(HANG), Ok(true));
    assert_eq!(pool.join(), Ok(()));
    assert_eq!(tasks.get().unwrap().len(), 300);
    assert!(pool.worker_pids().is_empty());
    let rest: Vec<_> = imap.collect();
    let (refused, results) = rest.split_last().unwrap();
    assert_eq!(refused, &Err(TaskError::Pool(PoolError::Closed)));
    assert!(results.iter().enumerate().all(|(n, result)| *result == Ok((n as u64 + 1).pow(2))));

    // With nothing to do.
    let idle = pool_of(1);
    idle.close();
    idle.close();
    assert_eq!(idle.join_timeout(HANG), Ok(true));
}

#[test]
fn a_terminated_pool_ends_at_once_whatever_is_pending() {
    let pool = pool_of(2);
    let pids = pool.worker_pids();
    let sleepers = pool.map_async_chunked(without_end, 0..10_000, 1).unwrap();
    let busy = pool.submit(without_end, 1).unwrap();
    pause(20);
    pool.terminate();
    assert_eq!(outcome(&busy), Err(TaskError::Pool(PoolError::Terminated)));
    assert_eq!(sleepers.get(), Err(TaskError::Pool(PoolError::Terminated)));
    assert_eq!(pool.submit(square, 1).unwrap_err(), PoolError::Terminated);
    assert_eq!(pool.join_timeout(HANG), Ok(true));
    assert!(pids.iter().all(|pid| state_of(*pid) == '-'));
    pool.terminate();

    // So does one that is dropped, and its handles know.
    let pool = pool_of(2);
    let pids = pool.worker_pids();
    let busy = pool.submit(without_end, 1).unwrap();
    drop(pool);
    assert!(pids.iter().all(|pid| state_of(*pid) == '-'));
    assert_eq!(busy.try_get(), Some(Err(TaskError::Pool(PoolError::Terminated))));
}

#[test]
fn workers_are_replaced_after_so_many_tasks() {
    let pool = quiet().processes(2).max_tasks_per_child(3).name("short").build().unwrap();
    let pids = pool.map_chunked(|_: u32| std::process::id(), 0..60, 1).unwrap();
    let different: HashSet<_> = pids.iter().collect();
    assert!(different.len() >= 20, "{} workers for 60 tasks", different.len());
    assert!(different.iter().all(|pid| pids.iter().filter(|p| p == pid).count() <= 3));
    assert!(pool.apply(|()| current().name().to_owned(), ()).unwrap().starts_with("short-"));
    is_well(&pool);
    pool.close();
    assert_eq!(pool.join_timeout(HANG), Ok(true));
}

#[test]
fn handles_reach_workers_by_the_initializer_only() {
    static TOTAL: OnceLock<(Value<u64>, String)> = OnceLock::new();
    let total = Value::new(0_u64).unwrap();
    let argument = (total.clone(), "x".repeat(100_000));
    let pool = quiet()
        .processes(2)
        .initializer(|argument| TOTAL.set(argument).unwrap(), argument)
        .max_tasks_per_child(5)
        .build()
        .unwrap();
    let add = |n: u64| {
        let (total, text) = TOTAL.get().unwrap();
        total.fetch_add(n);
        text.len()
    };
    assert_eq!(pool.map_chunked(add, 1..=40, 1).unwrap(), [100_000; 40]);
    assert_eq!(total.get().unwrap(), 820);
    match pool.apply(|value: Value<u64>| drop(value), total.clone()) {
        Err(TaskError::Argument(text)) => assert!(text.contains("by `initializer`"), "{text}"),
        other => panic!("{other:?}"),
    }
    match pool.apply(|()| Value::new(1_u64).unwrap(), ()) {
        Err(TaskError::Result(text)) => assert!(text.contains("by `initializer`"), "{text}"),
        other => panic!("{:?}", other.map(drop)),
    }
    is_well(&pool);
}

// ---- CPython's deadlock tests ----

/// Where something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    Nowhere,
    EncodeArgument,
    DecodeArgument,
    Call,
    EncodeResult,
    DecodeResult,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    Error,
    Panic,
    Exit,
    Abort,
    Kill,
}

impl Way {
    fn happen(self) -> String {
        match self {
            Self::Error => return "an error".into(),
            Self::Panic => panic!("a panic"),
            Self::Exit => std::process::exit(7),
            Self::Abort => std::process::abort(),
            Self::Kill => send(Signal::KILL, std::process::id()),
        }
        unreachable!("killed")
    }

    fn status(self) -> ExitStatus {
        match self {
            Self::Exit => ExitStatus::Code(7),
            Self::Abort => ExitStatus::Signal(6),
            _ => ExitStatus::Signal(9),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Argument(Trap);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome(Trap);

/// With a body, so that it is not there at once.
type Trap = (Place, Way, String);

fn write<S: Serializer>(trap: &Trap, place: Place, serializer: S) -> Result<S::Ok, S::Error> {
    if trap.0 == place {
        return Err(S::Error::custom(trap.1.happen()));
    }
    trap.serialize(serializer)
}

fn read<'de, D: Deserializer<'de>>(place: Place, deserializer: D) -> Result<Trap, D::Error> {
    let trap = Trap::deserialize(deserializer)?;
    if trap.0 == place { Err(D::Error::custom(trap.1.happen())) } else { Ok(trap) }
}

impl Serialize for Argument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(&self.0, Place::EncodeArgument, serializer)
    }
}

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(Place::DecodeArgument, deserializer).map(Self)
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write(&self.0, Place::EncodeResult, serializer)
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(Place::DecodeResult, deserializer).map(Self)
    }
}

fn fall(Argument(trap): Argument) -> Outcome {
    if trap.0 == Place::Call {
        trap.1.happen();
    }
    Outcome(trap)
}

/// Every failure in every place where it can be, alone and among others, with little data and with much.
#[test]
fn whatever_fails_wherever_fails_alone() {
    let pool = pool_of(3);
    let in_worker = [Place::DecodeArgument, Place::Call, Place::EncodeResult];
    let ways = [Way::Error, Way::Panic, Way::Exit, Way::Abort, Way::Kill];
    let mut cases = Vec::from([(Place::EncodeArgument, Way::Error), (Place::DecodeResult, Way::Error)]);
    cases.push((Place::DecodeResult, Way::Panic));
    cases.extend(in_worker.iter().flat_map(|place| ways.map(|way| (*place, way))));
    for (place, way) in cases {
        for length in [0, 1 << 20] {
            let trap = (place, way, "7".repeat(length));
            let harmless = (Place::Nowhere, way, "8".repeat(length));
            let around: Vec<_> =
                (0..6).map(|_| pool.submit(fall, Argument(harmless.clone())).unwrap()).collect();
            let result = outcome(&pool.submit(fall, Argument(trap.clone())).unwrap());
            let what = format!("{way:?} at {place:?} with {length} bytes");
            match (place, way, &result) {
                // Nothing goes wrong in a call that returns.
                (Place::Call, Way::Error, Ok(Outcome(same))) => assert_eq!(*same, trap),
                (Place::EncodeArgument | Place::DecodeArgument, Way::Error, Err(TaskError::Argument(_))) => {}
                (Place::EncodeResult | Place::DecodeResult, Way::Error, Err(TaskError::Result(_))) => {}
                (Place::DecodeArgument, Way::Panic, Err(TaskError::Argument(text)))
                | (Place::DecodeResult, Way::Panic, Err(TaskError::Result(text))) => {
                    assert!(text.contains("panic: a panic"), "{what}: {text}");
                }
                (Place::Call | Place::EncodeResult, Way::Panic, Err(TaskError::Panicked { message, .. })) => {
                    assert_eq!(message, "a panic", "{what}");
                }
                (
                    _,
                    Way::Exit | Way::Abort | Way::Kill,
                    Err(TaskError::WorkerDied { status, attempts, pid }),
                ) => {
                    assert_eq!((*status, *attempts), (way.status(), 1), "{what}");
                    assert!(*pid > 0);
                }
                _ => panic!("{what}: {:?}", result.map(drop)),
            }
            for task in around {
                assert_eq!(outcome(&task), Ok(Outcome(harmless.clone())), "beside {what}");
            }
        }
        is_well(&pool);
    }
}

#[test]
fn every_item_of_a_chunk_shares_its_workers_death_and_no_other_does() {
    let pool = pool_of(2);
    let traps = (0..40).map(|n| {
        let place = if n == 17 { Place::Call } else { Place::Nowhere };
        Argument((place, Way::Kill, n.to_string()))
    });
    let each = pool.map_async_chunked(fall, traps, 5).unwrap().get_each();
    let died: Vec<_> = (0..40).filter(|n| matches!(each[*n], Err(TaskError::WorkerDied { .. }))).collect();
    assert_eq!(died, [15, 16, 17, 18, 19]);
    assert_eq!(each.iter().filter(|result| result.is_ok()).count(), 35);
    is_well(&pool);
}

#[test]
fn a_pool_can_be_shut_down_after_and_amid_failures() {
    for way in [Way::Error, Way::Panic, Way::Exit, Way::Abort] {
        for place in [Place::DecodeArgument, Place::Call, Place::EncodeResult] {
            let pool = pool_of(2);
            let traps = (0..8).map(|_| Argument((place, way, "1".repeat(100))));
            let pending = pool.map_async_chunked(fall, traps, 1).unwrap();
            pool.close();
            assert_eq!(pool.join_timeout(HANG), Ok(true), "{way:?} at {place:?}");
            let each = pending.get_each();
            assert_eq!(each.len(), 8);
            assert!(each.iter().all(|result| result.is_ok() == ((place, way) == (Place::Call, Way::Error))));
        }
    }
}

#[test]
fn arguments_and_results_are_as_large_as_they_like() {
    let pool = pool_of(2);
    // Texts, which are copied in one piece also by an unoptimised build.
    let shout = |text: String| text.to_ascii_uppercase();
    let large: Vec<String> = ('a'..='f').map(|c| String::from(c).repeat(10 << 20)).collect();
    let shouted = pool.map_chunked(shout, large.clone(), 1).unwrap();
    assert!(shouted.iter().zip(&large).all(|(a, b)| *a == b.to_ascii_uppercase()));
    // More of them than is sent ahead.
    let texts = (0..100).map(|n| "x".repeat(n << 14));
    let sizes = pool.map_chunked(|text: String| text.len(), texts, 1).unwrap();
    assert!(sizes.iter().enumerate().all(|(n, size)| *size == n << 14));

    let small = quiet().processes(1).message_max(1 << 20).build().unwrap();
    match small.apply(|text: String| text.len(), "x".repeat(2 << 20)) {
        Err(TaskError::Argument(text)) => assert!(text.contains("message_max"), "{text}"),
        other => panic!("{other:?}"),
    }
    match small.apply(|len: usize| "x".repeat(len), 2 << 20) {
        Err(TaskError::Result(text)) => assert!(text.contains("message_max"), "{text}"),
        other => panic!("{:?}", other.map(drop)),
    }
    is_well(&small);
}

// ---- Deaths ----

#[test]
fn an_idle_worker_that_is_killed_is_replaced() {
    for processes in [1, 3] {
        let pool = pool_of(processes);
        for _ in 0..5 {
            is_well(&pool);
            let pids = pool.worker_pids();
            send(Signal::KILL, pids[0]);
            assert_eq!(outcome(&pool.submit(square, 9).unwrap()), Ok(81));
            wait_for("it to be gone", || !pool.worker_pids().contains(&pids[0]));
        }
        is_well(&pool);
    }
}

#[test]
fn a_busy_worker_that_is_killed_takes_its_task_along_and_no_other() {
    let pool = pool_of(2);
    let busy = pool.submit(without_end, 1).unwrap();
    // The other worker does all of these, however long the first one takes.
    let others: Vec<_> = (0..2000).map(|n| pool.submit(square, n).unwrap()).collect();
    assert!(others.iter().zip(0..).all(|(task, n)| outcome(task) == Ok(n * n)));
    let idle: HashSet<_> =
        pool.map_chunked(|_: u32| std::process::id(), 0..50, 1).unwrap().into_iter().collect();
    let victim = *pool.worker_pids().iter().find(|pid| !idle.contains(pid)).expect("one is busy");
    let (quick, queued) = (pool.map_async(square, 0..1000).unwrap(), pool.submit(square, 5).unwrap());
    send(Signal::KILL, victim);
    let error = outcome(&busy).unwrap_err();
    assert_eq!(error, TaskError::WorkerDied { pid: victim, status: ExitStatus::Signal(9), attempts: 1 });
    assert!(error.to_string().contains("SIGKILL"));
    assert_eq!(outcome(&queued), Ok(25));
    assert_eq!(quick.get().unwrap().len(), 1000);
    is_well(&pool);
}

#[test]
fn a_death_is_told_while_all_other_workers_are_busy() {
    let pool = pool_of(2);
    let long = pool.submit(without_end, 1).unwrap();
    let fatal: Vec<_> =
        (0..20).map(|_| pool.submit(|()| -> () { std::process::abort() }, ()).unwrap()).collect();
    let after = pool.submit(square, 4).unwrap();
    for task in fatal {
        assert!(matches!(outcome(&task), Err(TaskError::WorkerDied { status: ExitStatus::Signal(6), .. })));
    }
    assert_eq!(outcome(&after), Ok(16));
    assert!(!long.is_done());
}

#[test]
fn all_workers_can_be_killed_at_once() {
    let pool = pool_of(4);
    for _ in 0..5 {
        let busy = pool
            .map_async_chunked(
                |n: u64| {
                    pause(5);
                    n
                },
                0..400,
                1,
            )
            .unwrap();
        pause(20);
        pool.worker_pids().into_iter().for_each(|pid| send(Signal::KILL, pid));
        let each = busy.get_each();
        let failed = each.iter().filter(|result| matches!(result, Err(TaskError::WorkerDied { .. }))).count();
        let right = (0..400).filter(|n| each[*n as usize] == Ok(*n)).count();
        assert!(failed <= 4 && failed + right == 400, "{failed} failed, {right} right");
        is_well(&pool);
    }
}

#[test]
fn a_task_is_tried_exactly_as_often_as_it_may_be() {
    static RUNS: OnceLock<RawArray<u64>> = OnceLock::new();
    let runs = RawArray::<u64>::new(10).unwrap();
    let pool = quiet()
        .processes(2)
        .on_worker_death(OnWorkerDeath::Retry(3))
        .initializer(|runs| RUNS.set(runs).unwrap(), runs.clone())
        .build()
        .unwrap();
    // Task n kills its worker the first n times.
    let fatal = |n: u64| {
        if RUNS.get().unwrap().fetch_add(n as usize, 1).unwrap() < n {
            send(Signal::KILL, std::process::id());
        }
        n
    };
    let tasks: Vec<_> = (0..10).map(|n| pool.submit(fatal, n).unwrap()).collect();
    for (n, task) in tasks.iter().enumerate() {
        match outcome(task) {
            Ok(result) => assert!(n <= 3 && result == n as u64),
            Err(TaskError::WorkerDied { attempts, status, .. }) => {
                assert!(n > 3 && attempts == 4 && status == ExitStatus::Signal(9), "{n}: {attempts}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(runs.to_vec().unwrap(), [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]);
    is_well(&pool);
}

#[test]
fn a_closed_pool_tries_again_what_it_has() {
    static RUNS: OnceLock<RawArray<u32>> = OnceLock::new();
    let runs = RawArray::<u32>::new(20).unwrap();
    let pool = quiet()
        .processes(2)
        .on_worker_death(OnWorkerDeath::Retry(1))
        .initializer(|runs| RUNS.set(runs).unwrap(), runs.clone())
        .build()
        .unwrap();
    let dies_once = |n: usize| {
        if RUNS.get().unwrap().fetch_add(n, 1).unwrap() == 0 {
            send(Signal::KILL, std::process::id());
        }
        n
    };
    let map = pool.map_async_chunked(dies_once, 0..20, 1).unwrap();
    pool.close();
    assert_eq!(pool.join_timeout(HANG), Ok(true));
    assert_eq!(map.get(), Ok((0..20).collect()));
    assert_eq!(runs.to_vec().unwrap(), [2; 20]);
}

#[test]
fn a_task_that_is_tried_again_does_not_wait_behind_all_others() {
    static RUNS: OnceLock<Value<u32>> = OnceLock::new();
    let runs = Value::new(0_u32).unwrap();
    let pool = quiet()
        .processes(2)
        .on_worker_death(OnWorkerDeath::Retry(1))
        .initializer(|runs| RUNS.set(runs).unwrap(), runs.clone())
        .build()
        .unwrap();
    let dies_once = |(): ()| {
        if RUNS.get().unwrap().fetch_add(1) == 0 {
            pause(50);
            std::process::abort();
        }
    };
    let task = pool.submit(dies_once, ()).unwrap();
    let others = pool
        .map_async_chunked(
            |n: u64| {
                pause(1);
                n
            },
            0..4000,
            1,
        )
        .unwrap();
    assert_eq!(outcome(&task), Ok(()));
    let done = others.progress().done;
    assert!(done < 3000, "{done} of 4000 came first");
    assert_eq!(others.get().unwrap().len(), 4000);
}

#[test]
fn a_pool_can_be_told_to_end_with_the_first_worker() {
    for kill_idle in [false, true] {
        let pool = quiet().processes(2).on_worker_death(OnWorkerDeath::FailPool).build().unwrap();
        is_well(&pool);
        let sleeping = pool.submit(without_end, 1).unwrap();
        if kill_idle {
            // One of the two is.
            let busy = pool.worker_pids();
            let idle = pool.apply(|()| std::process::id(), ()).unwrap();
            assert!(busy.contains(&idle));
            send(Signal::KILL, idle);
        } else {
            assert!(matches!(
                outcome(&pool.submit(|()| -> () { std::process::exit(0) }, ()).unwrap()),
                Err(TaskError::WorkerDied { .. } | TaskError::Pool(PoolError::WorkerDied { .. }))
            ));
        }
        assert!(matches!(outcome(&sleeping), Err(TaskError::Pool(PoolError::WorkerDied { .. }))));
        assert!(matches!(pool.submit(square, 1), Err(PoolError::WorkerDied { .. })));
        assert_eq!(pool.join_timeout(HANG), Ok(true));
    }
}

#[test]
fn an_initializer_that_fails_is_an_error_and_no_endless_respawn() {
    let panics = quiet().processes(2).initializer(|n: u32| assert_eq!(n, 2, "not two"), 1).build().unwrap();
    let pending = panics.submit(square, 1);
    let error = pending.map_or_else(Into::into, |task| outcome(&task).unwrap_err());
    assert!(
        matches!(&error, TaskError::Pool(PoolError::Initializer(text)) if text.contains("not two")),
        "{error}"
    );
    wait_for("the pool to know", || panics.submit(square, 1).is_err());
    assert_eq!(panics.join_timeout(HANG), Ok(true));

    let trap = Argument((Place::DecodeArgument, Way::Error, String::new()));
    let unreadable = quiet().processes(1).initializer(|_: Argument| (), trap).build().unwrap();
    wait_for("the pool to know", || matches!(unreadable.submit(square, 1), Err(PoolError::Initializer(_))));

    // One that ends its worker, again and again.
    let exits = quiet().processes(2).initializer(|()| std::process::exit(3), ()).build().unwrap();
    let pending = exits.submit(square, 1);
    let error = pending.map_or_else(Into::into, |task| outcome(&task).unwrap_err());
    assert!(matches!(&error, TaskError::Pool(PoolError::WorkersDie(how)) if how == "exit code 3"), "{error}");
    assert_eq!(exits.join_timeout(HANG), Ok(true));

    assert!(matches!(quiet().processes(0).build(), Err(PoolError::CannotStart(_))));
    assert!(matches!(quiet().processes(101).build(), Err(PoolError::CannotStart(_))));
    match quiet().processes(1).current_dir("/no/such/directory").build() {
        Err(PoolError::CannotStart(text)) => assert!(text.contains("/no/such/directory"), "{text}"),
        other => panic!("{other:?}"),
    }
}

fn spin(n: u32) -> u32 {
    while std::hint::black_box(n) < 10 {}
    n
}

#[test]
fn workers_end_with_their_parent_however_busy_they_are() {
    let pids = Array::<u32>::new(4).unwrap();
    let parent = child(
        |pids: Array<u32>| {
            let pool = pool_of(4);
            // Two are busy.
            let tasks = [0, 1].map(|n| pool.submit(spin, n).unwrap());
            for (place, pid) in pool.worker_pids().into_iter().enumerate() {
                pids.set(place, pid).unwrap();
            }
            tasks.iter().for_each(Task::wait);
        },
        pids.clone(),
    );
    wait_for("the workers", || pids.to_vec().unwrap().iter().all(|pid| *pid > 0));
    pause(50);
    kill_and_reap(&parent);
    for pid in pids.to_vec().unwrap() {
        // Whoever inherits it may reap it later.
        wait_for("a worker to end", || matches!(state_of(pid), '-' | 'Z'));
    }
}

#[test]
fn a_worker_that_is_stopped_holds_up_its_own_task_only() {
    let pool = pool_of(3);
    for _ in 0..3 {
        is_well(&pool);
        let stopped = pool.worker_pids()[0];
        // Anywhere: it may have a task or not.
        let before = pool.map_async_chunked(square, 0..3000, 1).unwrap();
        send(Signal::STOP, stopped);
        await_state(stopped, 'T');
        let tasks: Vec<_> = (0..3000).map(|n| pool.submit(square, n).unwrap()).collect();
        let done = || tasks.iter().filter(|task| task.is_done()).count();
        wait_for("the other workers", || done() >= tasks.len() - 1 && before.progress().done >= 2999);
        pause(1000);
        send(Signal::CONT, stopped);
        assert!(tasks.iter().zip(0..).all(|(task, n)| outcome(task) == Ok(n * n)));
        assert_eq!(before.get().unwrap().len(), 3000);
    }
    // One that is killed while it is stopped.
    let stopped = pool.worker_pids()[0];
    send(Signal::STOP, stopped);
    await_state(stopped, 'T');
    send(Signal::KILL, stopped);
    is_well(&pool);
}

#[test]
fn several_threads_use_one_pool() {
    let pool = pool_of(3);
    thread::scope(|scope| {
        for start in 0..6_u64 {
            let pool = &pool;
            scope.spawn(move || {
                let range = start * 1000..start * 1000 + 300;
                let squares: Vec<_> = range.clone().map(square).collect();
                assert_eq!(pool.map_chunked(square, range.clone(), 1).unwrap(), squares);
                let tasks: Vec<_> = range.clone().map(|n| pool.submit(square, n).unwrap()).collect();
                assert!(tasks.into_iter().map(|task| task.get().unwrap()).eq(squares.iter().copied()));
                assert!(pool.imap(square, range).unwrap().map(Result::unwrap).eq(squares));
            });
        }
    });
}

#[test]
fn sixty_four_workers_all_get_work_short_and_long() {
    let pool = pool_of(64);
    is_well(&pool);
    // With each of them waiting for all others, they must all have one.
    static MET: OnceLock<Value<u32>> = OnceLock::new();
    let met = Value::new(0_u32).unwrap();
    let meeting =
        quiet().processes(64).initializer(|met| MET.set(met).unwrap(), met.clone()).build().unwrap();
    let meet = |(): ()| {
        let met = MET.get().unwrap();
        met.fetch_add(1);
        met.wait_while_timeout(HANG, |met| *met < 64).unwrap().is_some()
    };
    assert_eq!(meeting.map_chunked(meet, [(); 64], 1), Ok(vec![true; 64]));
    is_well(&meeting);
}

// ---- Shutting down, from wherever ----

/// Runs what it is given when it is woken.
struct OnWake(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        let call = self.0.lock().unwrap().take();
        call.into_iter().for_each(|call| call());
    }
}

/// Polls the task, which is not done, once.
fn poll_with(task: &mut Task<u32>, call: impl FnOnce() + Send + 'static) {
    let waker = Waker::from(Arc::new(OnWake(Mutex::new(Some(Box::new(call))))));
    assert!(Pin::new(task).poll(&mut Context::from_waker(&waker)).is_pending());
}

/// A pool with a task that is done when the gate is opened.
fn with_gate() -> (Arc<Pool>, Task<u32>, Event) {
    let (gate, runs) = (Event::new().unwrap(), RawArray::<u32>::new(1).unwrap());
    let handles = (gate.clone(), runs);
    let pool =
        quiet().processes(2).initializer(|handles| GATE.set(handles).unwrap(), handles).build().unwrap();
    let task = pool.submit(wait_at_gate, 0).unwrap();
    (Arc::new(pool), task, gate)
}

#[test]
fn a_callback_takes_nothing_away_from_who_takes_the_outcomes() {
    let pool = pool_of(1);
    let (open, gate) = channel();
    let (sender, receiver) = channel();
    // It holds up the thread of callbacks.
    pool.submit(square, 1).unwrap().on_done(move |_| gate.recv().unwrap());
    let squares: Vec<_> = (0..100).map(square).collect();
    let map = pool.map_async_chunked(square, 0..100, 7).unwrap();
    map.on_done(move |all| sender.send(all).unwrap());
    assert_eq!(map.get_timeout(HANG), Some(Ok(squares.clone())));
    assert_eq!((map.try_get(), map.is_successful()), (Some(Ok(squares.clone())), Some(true)));
    assert!(map.get_each().into_iter().map(Result::unwrap).eq(squares.iter().copied()));
    open.send(()).unwrap();
    assert_eq!(receiver.recv_timeout(HANG).unwrap(), Ok(squares));
}

#[test]
fn a_pool_can_be_shut_down_by_its_own_callbacks_and_wakers() {
    // Join and drop by a callback.
    let (pool, task, gate) = with_gate();
    let pids = pool.worker_pids();
    let (sender, receiver) = channel();
    task.on_done(move |result| {
        pool.close();
        sender.send((result, pool.join())).unwrap();
        drop(pool);
    });
    gate.set().unwrap();
    assert_eq!(receiver.recv_timeout(HANG).unwrap(), (Ok(0), Ok(())));
    assert!(pids.iter().all(|pid| state_of(*pid) == '-'));

    // By a waker, which runs in the thread that would be waited for.
    let (pool, mut task, gate) = with_gate();
    let (sender, receiver) = channel();
    let closing = Arc::clone(&pool);
    poll_with(&mut task, move || {
        closing.close();
        sender.send(closing.join()).unwrap();
    });
    gate.set().unwrap();
    assert_eq!(receiver.recv_timeout(HANG).unwrap(), Err(PoolError::WouldDeadlock));
    assert_eq!(pool.join_timeout(HANG), Ok(true));

    let (pool, mut task, gate) = with_gate();
    let pids = pool.worker_pids();
    let (sender, receiver) = channel();
    poll_with(&mut task, move || {
        drop(pool);
        sender.send(()).unwrap();
    });
    gate.set().unwrap();
    receiver.recv_timeout(HANG).unwrap();
    wait_for("the workers to end", || pids.iter().all(|pid| state_of(*pid) == '-'));
}

#[test]
fn what_outlives_its_pool_has_its_outcome() {
    let (pool, task, _gate) = with_gate();
    let mut imap = pool.imap(square, 0_u64..).unwrap();
    assert_eq!(imap.next(), Some(Ok(0)));
    drop(pool);
    let terminated = TaskError::Pool(PoolError::Terminated);
    assert_eq!(outcome(&task), Err(terminated.clone()));
    assert!(!task.cancel());
    let rest: Vec<_> = imap.take(1000).collect();
    assert!(rest.len() < 1000, "the endless iterator is asked no more");
    assert_eq!(rest.last(), Some(&Err(terminated)));
}

#[test]
fn every_join_waits_for_the_callbacks() {
    let (pool, task, gate) = with_gate();
    let called = Arc::new(AtomicBool::new(false));
    let calling = Arc::clone(&called);
    task.on_done(move |_| {
        pause(500);
        calling.store(true, Ordering::SeqCst);
    });
    gate.set().unwrap();
    pool.close();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                pool.join().unwrap();
                assert!(called.load(Ordering::SeqCst));
            });
        }
    });
}

#[test]
fn a_copy_of_the_parent_has_no_part_in_the_pool() {
    static POOL: Mutex<Option<Pool>> = Mutex::new(None);
    fn harm((): ()) {
        let pool = POOL.lock().unwrap().take().unwrap();
        assert_eq!(pool.submit(square, 1).unwrap_err(), PoolError::NotParent);
        assert_eq!(pool.map(square, 0..9), Err(TaskError::Pool(PoolError::NotParent)));
        assert_eq!(pool.join(), Err(PoolError::NotParent));
        pool.terminate();
        assert_eq!(pool.join_timeout(HANG), Err(PoolError::NotParent));
        assert_eq!((pool.worker_pids(), pool.progress()), (vec![], Progress::default()));
        pool.close();
    }
    isolated(|()| {
        let pool = pool_of(2);
        is_well(&pool);
        let pids = pool.worker_pids();
        *POOL.lock().unwrap() = Some(pool);
        let copy = StartMethod::from(crate::kernel::forking().allow_threads(true)).spawn(harm, ()).unwrap();
        crossproc_tests::join(copy);
        let pool = POOL.lock().unwrap().take().unwrap();
        is_well(&pool);
        assert_eq!(pool.worker_pids(), pids);
    });
}

// ---- Starting ----

#[test]
fn a_pool_of_copies_of_a_fork_server_outlives_the_server() {
    let server = ForkServer::new();
    let pool = quiet().processes(2).start_method(server.clone()).build().unwrap();
    is_well(&pool);
    for _ in 0..3 {
        send(Signal::KILL, server.pid().expect("it has been started"));
        let pids = pool.worker_pids();
        send(Signal::KILL, pids[0]);
        wait_for("it to be gone", || !pool.worker_pids().contains(&pids[0]));
        is_well(&pool);
    }
    pool.close();
    assert_eq!(pool.join_timeout(HANG), Ok(true));

    match quiet().start_method(crate::kernel::forking()).build() {
        Err(PoolError::CannotStart(text)) => assert!(text.contains("`ForkServer`"), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// A start waits for seconds when the server is stopped; meanwhile a death is told, and the pool can be dropped.
#[test]
fn a_start_that_takes_long_holds_up_nothing_else() {
    let server = ForkServer::new();
    let pool = quiet().processes(2).start_method(server.clone()).build().unwrap();
    is_well(&pool);
    let busy = pool.submit(spin, 1).unwrap();
    let idle =
        *pool.map_chunked(|_: u32| std::process::id(), 0..50, 1).unwrap().first().expect("fifty of them");
    let server = server.pid().unwrap();
    send(Signal::STOP, server);
    await_state(server, 'T');
    let other = *pool.worker_pids().iter().find(|pid| **pid != idle).unwrap();
    send(Signal::KILL, idle);
    wait_for("the pool to know", || !pool.worker_pids().contains(&idle));
    pause(200);
    send(Signal::KILL, other);
    assert!(matches!(outcome(&busy), Err(TaskError::WorkerDied { .. })));
    // Who waits for the start until it has failed, finds the server killed.
    assert_eq!(state_of(server), 'T');
    drop(pool);
    assert_eq!(state_of(server), 'T');
    send(Signal::CONT, server);
}

#[test]
fn a_pool_with_a_worker_left_outlives_a_shortage() {
    isolated(|()| {
        let pool = pool_of(2);
        is_well(&pool);
        let before = getrlimit(Resource::Nofile);
        // None but the standard ones.
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
        let victim = pool.worker_pids()[0];
        send(Signal::KILL, victim);
        wait_for("it to be gone", || pool.worker_pids().len() == 1);
        // More than eight attempts fail.
        for _ in 0..30 {
            assert_eq!(pool.apply(square, 3), Ok(9));
            pause(100);
        }
        setrlimit(Resource::Nofile, before).unwrap();
        is_well(&pool);
    });
}

#[test]
fn automatic_chunks_are_not_larger_than_messages_can_be() {
    let pool = quiet().processes(1).message_max(8 << 20).build().unwrap();
    let texts = || (0..40).map(|_| "x".repeat(1 << 20));
    let known = pool.map(|text: String| text.len(), texts().collect::<Vec<_>>());
    assert_eq!(known, Ok(vec![1 << 20; 40]));
    // Nobody knows how many there are.
    let unknown = pool.map(|text: String| text.len(), texts().filter(|text| !text.is_empty()));
    assert_eq!(unknown, Ok(vec![1 << 20; 40]));
    // The results are the user's business; the error says what to do.
    match pool.map(|len: usize| "x".repeat(len), [1 << 20; 40]) {
        Err(TaskError::Result(text)) => assert!(text.contains("map_chunked"), "{text}"),
        other => panic!("{:?}", other.map(drop)),
    }
    assert_eq!(pool.map_chunked(|len: usize| "x".repeat(len), [1 << 20; 40], 1).unwrap().len(), 40);
}

// ---- All of it ----

#[test]
fn pools_leave_nothing_behind() {
    isolated(|()| {
        let count = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().count();
            let children =
                std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()));
            (fds, tasks, children.unwrap_or_default())
        };
        // What is made once for all, and threads that are about to end.
        let settled = || {
            let mut last = count();
            for _ in 0..100 {
                pause(20);
                let now = count();
                if now == last {
                    return now;
                }
                last = now;
            }
            last
        };
        let round = |n: u32| {
            let pool = pool_of(3);
            is_well(&pool);
            send(Signal::KILL, pool.worker_pids()[0]);
            let pending = pool.map_async_chunked(square, 0..1000, 1).unwrap();
            let called = pool.submit(square, 1).unwrap();
            called.on_done(drop);
            match n % 3 {
                0 => drop(pool),
                1 => {
                    pool.close();
                    assert_eq!(pool.join_timeout(HANG), Ok(true));
                }
                _ => {
                    pool.terminate();
                    assert_eq!(pool.join_timeout(HANG), Ok(true));
                }
            }
            drop((pending, called));
        };
        round(0);
        let before = settled();
        (0..9).for_each(round);
        assert_eq!(settled(), before);
    });
}

#[test]
fn a_storm_over_a_pool_breaks_no_promise() {
    let seed = crossproc_tests::fresh_seed();
    let report = pool_storm::run(&pool_storm::Config { tasks: 5000, at_least: Duration::ZERO, seed });
    println!("{report}");
    assert!(report.is_right(), "{report}");
}
