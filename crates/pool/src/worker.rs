//! A worker: one process, one task at a time.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use crossproc_primitives::{BytesQueue, RecvError, SendError};
use crossproc_process::Handed;
use crossproc_process::portable::{Portable, Resolved};
use crossproc_segment::handover;
use serde::{Deserialize, Serialize};

use crate::batch::Results;
use crate::wire::{
    BYE, Claim, DAMAGED, INITIALIZER, READY, RESULTS, ReplyHead, SKIPPED, TaskHead, Ticket, UNSENDABLE, Words,
};

/// What a worker is started with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) number: u32,
    pub(crate) tasks: BytesQueue,
    pub(crate) replies: BytesQueue,
    pub(crate) words: crossproc_primitives::RawArray<u64>,
    pub(crate) retries: u32,
    pub(crate) max_tasks: Option<u64>,
    pub(crate) initializer: Option<Initializer>,
}

/// A function that every worker calls first, with its argument.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Initializer {
    pub(crate) function: [u64; 4],
    pub(crate) argument: Vec<u8>,
    pub(crate) descriptors: Vec<Handed<OwnedFd>>,
}

/// A buffer that has become larger is not kept.
const KEPT: usize = 1 << 20;

/// What a worker does until there is nothing more to do, or it has done as many tasks as it may.
pub(crate) fn work(orders: Orders) {
    let Orders { number, tasks, replies, words, retries, max_tasks, initializer } = orders;
    let words = Words(words);
    if let Some(Err(why)) = initializer.map(initialize) {
        let head = ReplyHead::of_worker(INITIALIZER, number);
        reply(&replies, &mut message(head, why.as_bytes()));
        return;
    }
    reply(&replies, &mut message(ReplyHead::of_worker(READY, number), &[]));

    let mut functions = HashMap::new();
    let mut buffer = Vec::new();
    let mut done = 0;
    while max_tasks.is_none_or(|most| done < most) {
        let task = match tasks.recv_ref() {
            Ok(task) => task,
            Err(RecvError::Closed) => break,
            Err(RecvError::PeerDied) => return,
            // It would be the same for the next worker.
            Err(why) => {
                let head = ReplyHead::of_worker(DAMAGED, number);
                return reply(&replies, &mut message(head, why.to_string().as_bytes()));
            }
        };
        let Some((TaskHead { ticket, function }, arguments)) = TaskHead::parse(&task) else { continue };
        match words.claim(ticket, number, retries) {
            Claim::Drop => {}
            Claim::Skip => {
                reply(&replies, &mut message(ReplyHead { kind: SKIPPED, worker: number, ticket }, &[]));
            }
            Claim::Run => {
                buffer.clear();
                buffer.extend_from_slice(&ReplyHead { kind: RESULTS, worker: number, ticket }.to_bytes());
                match resolve(&mut functions, function) {
                    Ok(function) => function.call(arguments, &mut buffer),
                    Err(why) => buffer = unsendable(number, ticket, &why),
                }
                reply(&replies, &mut buffer);
                done += 1;
                buffer.clear();
                buffer.shrink_to(KEPT);
            }
        }
        // Only now the message is given up: the reply has been sent.
        drop(task);
    }
    // The parent need not be able to learn how this process ended (SIGCHLD ignored).
    reply(&replies, &mut message(ReplyHead::of_worker(BYE, number), &[]));
}

fn resolve(known: &mut HashMap<Portable, Resolved>, function: Portable) -> Result<Resolved, String> {
    if let Some(known) = known.get(&function) {
        return Ok(*known);
    }
    let resolved = function.resolve()?;
    known.insert(function, resolved);
    Ok(resolved)
}

fn message(head: ReplyHead, content: &[u8]) -> Vec<u8> {
    [&head.to_bytes(), content].concat()
}

fn unsendable(worker: u32, ticket: Ticket, why: &str) -> Vec<u8> {
    message(ReplyHead { kind: UNSENDABLE, worker, ticket }, why.as_bytes())
}

/// Sends a reply, or why it can not be sent.
fn reply(replies: &BytesQueue, bytes: &mut Vec<u8>) {
    match replies.send(bytes) {
        Ok(()) => {}
        Err(SendError::Unfit((), why)) => {
            if let Some((head, _)) = ReplyHead::parse(bytes) {
                let why = format!(
                    "the results of the task, {} bytes, can not be sent: {why}; a task of a `map` is a chunk of items: smaller chunks \
                     (`map_chunked`) have smaller results",
                    bytes.len()
                );
                *bytes = unsendable(head.worker, head.ticket, &why);
                // Should there be no memory even for this, the parent learns of the death.
                if replies.send(bytes).is_err() {
                    std::process::exit(1);
                }
            }
        }
        // The parent is gone, or has no more use for this.
        Err(_) => std::process::exit(1),
    }
}

fn initialize(initializer: Initializer) -> Result<(), String> {
    let Initializer { function, argument, descriptors } = initializer;
    let function = Portable::from_words(function).resolve()?;
    let mut results = Vec::new();
    let descriptors = descriptors.into_iter().map(|Handed(descriptor)| descriptor).collect();
    handover::unpack(descriptors, || function.call(&argument, &mut results));
    Results(&results).next::<()>().map_err(|failed| failed.to_string())
}
