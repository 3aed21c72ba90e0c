//! The ring of frames as an explicit-state model: every interleaving of single shared accesses of several writers and readers, with
//! deaths between any two, deaths of those who put right what others left, and sleep.
//!
//! # The protocol
//!
//! ```text
//! turn     CAS: 0 -> me, or one who is dead -> me; taken by somebody who lives: wanted := 1, sleep, again
//! write    turn; (was a dead one's: pending = BEGUN(p) and tail != p, or ENDING(p) and tail = p: end by ABORT; else pending := 0)
//!          tail; head: room? chunk; tail := behind it; turn := 0; notify readers; wanted? := 0, notify writers
//!          in parts: pending := BEGUN(tail); BEGIN; then PART, PART, ..: the turn stays; end by LAST
//! end by   pending := ENDING(tail); chunk; tail := behind it; pending := 0
//! read     turn; head; tail: none? in a frame: its writer dead? end by ABORT in its turn; else keep the turn and sleep
//!                                  else turn := 0; nobody holds the other end? look once more, then the end; sleep
//!          chunk, its bytes; head := behind it; (the frame goes on: the next chunk); turn := 0; notify writers; ..
//! hold     cell := 1; came + 1; (was lent:) the lender's cell := 0          let go: cell := 0; notify all
//! presence came; all cells, one after another; came the same? (else again); none lives: nobody is there
//! ```
//!
//! # What is modelled
//!
//! | modelled | taken for granted, or left out |
//! |---|---|
//! | each load, store, CAS of all words; headers and bytes word by word | weak memory (loom models) |
//! | deaths anywhere, also of who ends a dead one's frame, and of sleepers | what a death is, and its proof: known at once, for ever |
//! | whole frames, parts, round the end of the ring, longer than the ring | the sizes of parts: as large as there is room, up to a quarter |
//! | an end that passes from one process to another | several holds of one participant: a sum |
//! | sleep, that any death ends, and *wanted* | how event counts are made (`crossproc-atomic`), slices, deadlines |
//! | readers that end because nobody writes any more, and writers because nobody reads | `reserve` and `peek`: a turn, held longer |
//!
//! Checked at each step: the bytes of a frame are its own and in order; nothing that was not sent to its end is received; nothing is received
//! twice; frames of one writer in their order. When nobody can go on: nobody who lives is asleep; what was sent was received, but
//! for at most one frame for each reader that was killed, unless no reader is left.
//!
//! `TRACE=1` prints how each planted bug comes about, `LONG_MODELS=1` adds the configurations that take minutes.
#![cfg(not(crossproc_model))]
#![forbid(unsafe_code)]

mod explore;
mod protocol;

use explore::{Config, config, explore};
use protocol::Bug;

/// Frames of so many words; up to three go whole in a ring of eight, of two parts of up to two words each.
const SHORT: &[Config] = &[
    config("one to one", &[&[1, 3, 2, 0]], 1, 0, 1_000),
    config("longer than the ring", &[&[9, 1]], 1, 1, 5_000),
    config("two writers, parts", &[&[5], &[1]], 1, 1, 50_000),
    config("two writers, both killed", &[&[4], &[1]], 1, 2, 50_000),
    config("two writers, whole", &[&[3, 2], &[3]], 1, 1, 50_000),
    config("two readers, parts", &[&[5, 1]], 2, 1, 50_000),
    config("two readers, whole", &[&[3, 2]], 2, 1, 50_000),
    Config { passed: true, ..config("the end passes on", &[&[1], &[1]], 1, 1, 5_000) },
    Config { stay: true, ..config("one to one, stays", &[&[3, 3, 1]], 1, 0, 1_000) },
    Config { idle: true, stay: true, ..config("nobody reads", &[&[1], &[1], &[1]], 1, 0, 1_000) },
    Config { stay: true, ..config("two readers, stays", &[&[1, 5]], 2, 0, 10_000) },
];

/// Those that take minutes.
const LONG: &[Config] = &[
    config("two writers, much", &[&[5], &[1, 4]], 1, 2, 1_000_000),
    config("two writers, round the ring", &[&[3, 2], &[3, 1]], 1, 2, 1_000_000),
    config("two readers, both killed", &[&[5, 1, 3]], 2, 2, 300_000),
    config("two of each", &[&[4], &[2]], 2, 1, 300_000),
    config("three writers", &[&[4], &[4], &[1]], 1, 2, 300_000),
];

/// What is changed, and what must come of it, in which configuration.
const BUGS: &[(Bug, &str, &str)] = &[
    (Bug::TailBeforeBytes, "one to one", "bytes of something else"),
    (Bug::HeadBeforeBytes, "two writers, whole", "bytes of something else"),
    (Bug::NoSkip, "one to one", "not in one piece"),
    (Bug::NoTurnToWrite, "two writers, whole", "bytes of something else"),
    (Bug::NoTurnToRead, "two readers, whole", "received twice"),
    (Bug::TurnGivenBackInFrame, "two writers, parts", "a frame in the middle of another"),
    (Bug::NoAbort, "two writers, parts", "a frame in the middle of another"),
    (Bug::PendingAfterBegin, "two writers, parts", "a frame in the middle of another"),
    (Bug::PendingClearedEarly, "two writers, parts", "a frame in the middle of another"),
    (Bug::EndingNotNoted, "three writers", "written over what was not read"),
    (Bug::NoRoomKept, "two writers, parts", "written over what was not read"),
    (Bug::ReaderDoesNotAbort, "longer than the ring", "asleep for ever"),
    (Bug::RestNotPassedOver, "two readers, parts", "out of step"),
    (Bug::NoWakeUp, "one to one, stays", "asleep for ever"),
    (Bug::NoWakeUpForRoom, "one to one, stays", "asleep for ever"),
    (Bug::NotWanted, "nobody reads", "asleep for ever"),
    (Bug::WantedClearedLate, "nobody reads", "asleep for ever"),
    (Bug::NoLastLook, "one to one", "sent, and not received"),
    (Bug::CameNotRead, "the end passes on", "sent, and not received"),
    (Bug::DeadKeepTurns, "two writers, whole", "asleep for ever"),
];

#[test]
fn nothing_is_wrong() {
    let mut failures = String::new();
    let long = if std::env::var_os("LONG_MODELS").is_some() { LONG } else { &[] };
    for config in SHORT.iter().chain(long) {
        let report = explore(config, None);
        println!("{:>9} states, {:>6} at rest  {}", report.states, report.rests, config.name);
        if let Some((what, trace)) = report.wrong {
            failures += &format!("\n{}: {what}\n{trace}\n", config.name);
        } else if report.states < config.at_least {
            failures += &format!("\n{}: the model has shrunk\n", config.name);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn planted_bugs_are_found() {
    let mut failures = String::new();
    for &(bug, name, expected) in BUGS {
        let config =
            SHORT.iter().chain(LONG).find(|config| config.name == name).expect("a configuration's name");
        let report = explore(config, Some(bug));
        let (what, trace) = report.wrong.unwrap_or(("not found", String::new()));
        println!("{:>9}  {what:40} {bug:?}", report.states);
        if std::env::var_os("TRACE").is_some() {
            println!("{trace}");
        }
        if what != expected {
            failures += &format!("\n{bug:?} in {name}: {what}, not {expected}\n{trace}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
