//! The engine without workers: what replies do, whoever sends them.

use std::sync::Arc;

use crossproc_primitives::{BytesQueue, RawArray};
use crossproc_process::ExitStatus;
use crossproc_process::portable::Portable;
use rustix::event::{EventfdFlags, eventfd};

use crate::engine::{Batch, Engine, slots_for};
use crate::job::{Job, Order};
use crate::wire::{Claim, DIED, END, READY, RESULTS, ReplyHead, SKIPPED, Ticket, UNSENDABLE, Words};
use crate::{OnWorkerDeath, PoolError, TaskError};

struct Bench {
    engine: Engine,
    replies: BytesQueue,
}

impl Bench {
    fn new() -> Self {
        let words = Words(RawArray::new(slots_for(1)).unwrap());
        let poke = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let tasks = BytesQueue::new(slots_for(1)).unwrap();
        let engine = Engine::new(1, OnWorkerDeath::FailTask, words, tasks, poke);
        Self { engine, replies: BytesQueue::new(1000).unwrap() }
    }

    fn submit(&self) -> Arc<Job> {
        let job = Arc::new(Job::new(Portable::from_words([0; 4]), Order::AsSubmitted));
        let batch =
            Batch { job: Arc::clone(&job), arguments: vec![0; 4], chunks: vec![(4, 1)], first: 0, sent: 0 };
        self.engine.submit(batch).unwrap();
        job
    }

    fn reply(&self, kind: u32, generation: u32, content: &[u8]) {
        let head = ReplyHead { kind, worker: 1, ticket: Ticket { slot: 0, generation } };
        self.take_up(&[&head.to_bytes(), content].concat());
    }

    fn take_up(&self, message: &[u8]) {
        self.replies.send(message).unwrap();
        self.replies.send(&ReplyHead::of_worker(END, 0).to_bytes()).unwrap();
        self.engine.lock().may_end = true;
        self.engine.collect(&self.replies);
    }
}

fn results(job: &Job) -> Vec<Vec<u8>> {
    job.outcomes().iter().map(|outcome| outcome.results.clone().unwrap()).collect()
}

/// Who is killed after its reply leaves the task to another, who may reply once more when the slot has another task.
#[test]
fn a_late_reply_is_not_taken_for_that_of_the_next_task() {
    let bench = Bench::new();
    let first = bench.submit();
    bench.reply(RESULTS, 0, b"first");
    assert_eq!(results(&first), [b"first"]);
    let second = bench.submit();
    for kind in [RESULTS, UNSENDABLE, SKIPPED] {
        bench.reply(kind, 0, b"late");
        assert!(!second.is_done());
    }
    bench.reply(RESULTS, 1, b"second");
    assert_eq!(results(&second), [b"second"]);
    assert_eq!((bench.engine.progress().done, bench.engine.progress().total), (2, 2));
}

/// A worker whose start fails may have claimed a task before that; its number is that of nobody.
#[test]
fn what_a_worker_has_claimed_that_never_was_there_is_settled() {
    let bench = Bench::new();
    let job = bench.submit();
    let ticket = Ticket { slot: 0, generation: 0 };
    bench.take_up(&ReplyHead::of_worker(READY, 5).to_bytes());
    assert_eq!(bench.engine.words.claim(ticket, 5, 0), Claim::Run);
    bench.take_up(&ReplyHead::of_worker(DIED, 4).to_bytes());
    assert!(!job.is_done());
    bench.take_up(&ReplyHead::of_worker(DIED, 5).to_bytes());
    assert!(job.is_done());
    assert_eq!(
        job.only_outcome().unwrap().results,
        Err(TaskError::WorkerDied { pid: 0, status: ExitStatus::Unknown, attempts: 1 })
    );
}

/// The memory may be damaged: END is the parent's own word.
#[test]
fn an_end_that_the_parent_did_not_say_is_none() {
    let bench = Bench::new();
    let job = bench.submit();
    let end = ReplyHead::of_worker(END, 0).to_bytes();
    let head = ReplyHead { kind: RESULTS, worker: 1, ticket: Ticket { slot: 0, generation: 0 } };
    bench.replies.send(&end).unwrap();
    bench.replies.send(&[&head.to_bytes()[..], b"result"].concat()).unwrap();
    bench.replies.close().unwrap();
    bench.engine.collect(&bench.replies);
    assert_eq!(results(&job), [b"result"]);
}

#[test]
fn no_bytes_in_the_place_of_a_reply_do_more_than_end_the_pool() {
    for kind in 0..12_u32 {
        for length in [0, 3, 4, 8, 12, 15, 16, 17, 60] {
            let bench = Bench::new();
            let job = bench.submit();
            let mut message = vec![0xff; length];
            message.iter_mut().zip(kind.to_le_bytes()).for_each(|(to, byte)| *to = byte);
            bench.take_up(&message);
            bench.engine.end(PoolError::Terminated);
            assert!(job.is_done());
        }
    }
}
