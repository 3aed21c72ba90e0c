//! The exchange ring as an explicit-state model: every interleaving of single shared accesses, with deaths between any two,
//! deaths of those who recover, and with everybody else stopped.
//!
//! # The protocol
//!
//! ```text
//! exchange   intent := what, by which hand j, for which cell; CAS there: word -> with my cell in it
//!            came off:  hand j := {the cell that was there}       (the intent stays: its cell is in a hand)
//!            did not:   intent := none; look again
//! send       with a hand that is SPARE, at the tail: EMPTY(l) -> FULL(l);     hand := SPARE
//! receive    with a hand that is SPARE, at the head: FULL(l) -> EMPTY(l + 1); hand := MESSAGE; given up: hand := SPARE
//!            by copying: never MESSAGE; the exchange is under way until hand := SPARE
//! orphan     with a hand that is SPARE, a hand that is ORPHAN -> SPARE;       and on as above
//!            (a hand of its own that is ORPHAN, if no other is left: CAS ORPHAN -> MESSAGE, no cell moves)
//! inline     cells are tokens; beside each slot's word, and each hand, is a value
//!            send:    word, then value are loaded; intent; CAS of both
//!            receive: word, then value are loaded (orphan: likewise); value of hand j := that; intent; CAS of the word alone
//! close      CAS: the word at the tail gets the bit CLOSED, which receives keep
//! recover    CAS claim: of a dead one -> RECOVERING(me). Doubt if there is an intent whose cell is in none of the hands:
//!              there is the intent's cell at what it is about: did not come off; the hand's: it did; else:
//!              read all lanes, all slots, all lanes; who reads the same twice: all its hands are *found*, but one in doubt;
//!              of who is in doubt itself, and has one of its two cells found, the other one is found;
//!              the hand's cell found: came off; the intent's: did not; neither: claim := LIVE(dead one), notify all, again
//!            hand := by that; intent := none; each MESSAGE: raise orphans, := ORPHAN; any ORPHAN: raise orphans;
//!            claim := FREE; notify all
//!            (an ORPHAN has the number to which orphans was raised for it, so that one that came there since is another)
//! give back  intent := none; and on as above
//! attach     CAS claim FREE -> LIVE(me); has an ORPHAN: := FREE, another; none without: recover; any
//! lower      n = orphans, raised; looks at all hands, and none is an ORPHAN; CAS orphans: n -> n, not raised
//! finished   n = orphans; ring empty; twice: all hands are SPARE, and no intent brings a message, or has; ring empty still,
//!            the head where it was; orphans: still n
//! wait       listen; am I alone?; (receiver, or alone) recover all; alone, and no other claim?; (receiver) orphans;
//!            ring; alone: PeerDied; closed, and nobody is recovering: Closed; sleep unless notified, or somebody left
//! ```
//!
//! # What is modelled
//!
//! | modelled                                                            | taken for granted, or left out                            |
//! |---------------------------------------------------------------------|-----------------------------------------------------------|
//! | each load, store, CAS of all words                                  | weak memory (loom models); the cells' bytes               |
//! | deaths anywhere, also of who recovers and of who sleeps             | what a death is, and its proof: known at once, for ever   |
//! | everybody else stopped, in (a part of) all states                   | a living recoverer that is stopped: its lane waits for it |
//! | up to four participants, three slots, two hands, four lanes         | threads of one process; a death before the claim is seen  |
//! | messages and loans held across other operations, leaked, dropped    | `loan`: a hand not used; batches: sends in a row          |
//! | positions behind, walking, jumping by slot or by any hint that ever was | when hints are written: at any time, to any such value  |
//! | orphans' numbers, modulo 16                                         | a taker stopped while all numbers are used up             |
//! | laps modulo a small number, most often from the last one on         | being half of all laps behind; see below                  |
//! | event counts as `notify one` / `notify all`, sleep that ends when somebody leaves | how they are made: `crossproc-sync`'s models, loom |
//! | deadlines: a sleep may end by itself, for those who have one        | slices: nobody needs them here                            |
//!
//! Checked at each step: nobody writes into a cell that is not its own; every verdict on a dead lane; Empty, Full and Closed
//! are true at the moment of the look that says so; PeerDied is true, and nothing is left; messages of one sender are received
//! from the ring in their order, none twice after it was given up, each with its own value and with how often it was received;
//! no orphan is overlooked that was there before; nothing is sent that began after the close; Finished was true for a moment. In
//! each state: each cell is in one place. At rest, and in a part of all states, with all others stopped: whoever is at work
//! finishes, and says Finished if that is true; all dead lanes can be recovered; then each message that was sent and not
//! consumed is in one place from where it can be received, with its value; all lanes are FREE or of the living. At rest:
//! somebody new attaches and receives all that; and nobody sleeps who has something to do.
//!
//! It also shows what does no harm (`HARMLESS`): recovery compares cells, and a cell is in one place, so intents of which nothing came
//! may stay (who looks for messages in hands wants them cleared); all are notified of orphans; and a notification does not
//! count those who only listen.
//!
//! Laps are modulo: nobody may be half of them behind, and, not modelled, nobody stopped before its CAS until the same word
//! comes back all laps later. Recovery does not look at laps.
//!
//! Why readings that are not atomic do: a hand that is read the same twice either had that cell at a time between, or its
//! lane stood still meanwhile; and what anybody has had after a death is not the dead one's.
//!
//! `TRACE=1` prints how each planted bug comes about, `LONG_MODELS=1` adds the configurations that take minutes.
#![cfg(not(crossproc_model))]
#![forbid(unsafe_code)]

mod configs;
mod explore;
mod machine;
mod protocol;
mod recovery;
mod state;

use configs::{EXCLUDED, LONG, SHORT};
use explore::explore;
use machine::{BUGS, Config, HARMLESS};

#[test]
fn nothing_is_wrong() {
    let long = if std::env::var_os("LONG_MODELS").is_some() { LONG } else { &[] };
    let mut failures = String::new();
    for config in SHORT.iter().chain(long) {
        let report = explore(config, true);
        println!("{:>9} states, {:>5} at rest  {}", report.states, report.rests, config.name);
        let missing: Vec<_> =
            config.shows.iter().filter(|&&what| report.seen >> what as u32 & 1 == 0).collect();
        if let Some((what, trace)) = report.wrong {
            failures += &format!("\n{}: {what}\n{trace}\n", config.name);
        } else if !missing.is_empty() {
            failures += &format!("\n{} does not show {missing:?}\n", config.name);
        } else if report.states < config.at_least {
            failures += &format!("\n{}: the model has shrunk\n", config.name);
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn planted_bugs_are_found() {
    let trace = std::env::var_os("TRACE").is_some();
    let mut failures = String::new();
    for &(bug, text, expected, name) in BUGS {
        let config =
            SHORT.iter().chain(LONG).find(|config| config.name == name).expect("a configuration's name");
        let report = explore(&Config { bug: Some(bug), ..*config }, trace);
        let (what, how) = report.wrong.unwrap_or(("not found", String::new()));
        println!("{:>9}  {what:50} {text}", report.states);
        if trace {
            println!("{how}");
        } else if what != expected {
            failures += &format!("\n{bug:?} in {name}: {what}, not {expected}\n{how}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn who_is_half_of_all_laps_behind_is_lost() {
    let report = explore(&EXCLUDED, false);
    assert_eq!(report.wrong.map(|(what, _)| what), Some("takes the ring for damaged"));
    let report = explore(&Config { laps: EXCLUDED.laps + 1, ..EXCLUDED }, true);
    assert!(report.wrong.is_none(), "{}", report.wrong.unwrap().1);
}

#[test]
fn some_things_do_no_harm() {
    let mut failures = String::new();
    for &(variant, text) in HARMLESS {
        let configs = SHORT.iter().filter(|config| (10_000..50_000).contains(&config.at_least));
        let mut states = 0;
        for config in configs {
            let report = explore(&Config { bug: Some(variant), ..*config }, true);
            states += report.states;
            if let Some((what, trace)) = report.wrong {
                failures += &format!("\n{variant:?} in {}: {what}\n{trace}\n", config.name);
            }
        }
        println!("{states:>9}  {text}");
    }
    assert!(failures.is_empty(), "{failures}");
}
