//! The call: each gets its own answer, once, and nobody sleeps for ever, whoever is killed where.

use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_atomic::{AtomicU64, Liveness, Ordering, fence};
use crossproc_ring::{Asked, CallCell, CallWords, Ended, Party, Serving};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

struct Desk {
    words: CallWords,
    line: Vec<AtomicU64>,
    /// The request, and the reply; loom reports every unordered pair of accesses to one.
    data: [UnsafeCell<u64>; 2],
}

/// What is answered to a request.
fn answer(request: u64) -> u64 {
    request * 10
}

impl Desk {
    fn new() -> Arc<Self> {
        let line = (0..CallCell::line_words(1, 1)).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { words: CallWords::default(), line, data: [UnsafeCell::new(0), UnsafeCell::new(0)] })
    }

    fn cell(&self) -> CallCell<'_> {
        CallCell::new(&self.words, &self.line, 1)
    }

    fn write(&self, which: usize, value: u64) {
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.data[which].with_mut(|cell| unsafe { *cell = value });
    }

    fn read(&self, which: usize) -> u64 {
        // SAFETY: as above.
        self.data[which].with(|cell| unsafe { *cell })
    }

    /// As the handles wait, without their spin.
    fn wait<R>(&self, me: &impl Liveness, party: Party, mut attempt: impl FnMut() -> Option<R>) -> R {
        let event = self.cell().event(party);
        loop {
            let ticket = event.listen_among_peers(me);
            self.cell().before_sleeping(party, heavy_fence);
            if let Some(done) = attempt() {
                return done;
            }
            event.sleep_among_peers(me, ticket, None);
        }
    }

    // ---- The caller

    /// In its turn, and nothing else is under way.
    fn ask(&self, me: &impl Liveness, request: u64, light: bool) -> Asked {
        self.write(0, request);
        let asked = self.cell().ask();
        self.cell().notify(Party::Caller, me, light);
        asked
    }

    fn begin(&self, me: &impl Liveness, request: u64, light: bool) -> Asked {
        self.wait(me, Party::Caller, || self.cell().take_turn(Party::Caller, me).ok());
        self.wait(me, Party::Caller, || self.cell().is_free(me).then_some(()));
        self.ask(me, request, light)
    }

    fn end(&self, me: &impl Liveness, light: bool) {
        self.cell().pass_turn(Party::Caller);
        self.cell().notify(Party::Caller, me, light);
    }

    /// `None`: the request was refused.
    fn call(&self, me: &impl Liveness, request: u64, light: bool) -> Option<u64> {
        let asked = self.begin(me, request, light);
        let ended = self.wait(me, Party::Caller, || self.cell().ended(asked));
        let reply = (ended == Ended::Answered).then(|| self.read(1));
        self.end(me, light);
        reply
    }

    // ---- The server

    fn take(&self, me: &impl Liveness, light: bool) -> Option<Serving> {
        let cell = self.cell();
        if !cell.is_asked() || cell.take_turn(Party::Server, me).is_err() {
            return None;
        }
        let serving = cell.serve();
        if serving.is_none() {
            self.leave(me, light);
        }
        serving
    }

    fn leave(&self, me: &impl Liveness, light: bool) {
        self.cell().pass_turn(Party::Server);
        self.cell().notify(Party::Server, me, light);
    }

    fn answer(&self, me: &impl Liveness, serving: Serving, light: bool) -> u64 {
        let request = self.read(0);
        self.write(1, answer(request));
        self.cell().answer(serving);
        self.leave(me, light);
        request
    }

    fn serve(&self, me: &impl Liveness, light: bool) -> u64 {
        let serving = self.wait(me, Party::Server, || self.take(me, light));
        self.answer(me, serving, light)
    }

    fn try_serve(&self, me: &impl Liveness) -> Option<u64> {
        self.take(me, true).map(|serving| self.answer(me, serving, true))
    }
}

/// As `membarrier(2)`: the caller passes a full fence, too. (The others' light fences are full ones here.)
fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    true
}

/// Runs `f` as thread `tid`, which is a process of its own.
fn beside<R: 'static>(
    kernel: &Arc<Kernel>,
    desk: &Arc<Desk>,
    tid: u32,
    f: impl FnOnce(&Process, &Desk) -> R + 'static,
) -> thread::JoinHandle<R> {
    let (process, desk) = (Process::new(kernel, tid), Arc::clone(desk));
    thread::spawn(move || f(&process, &desk))
}

#[test]
fn each_call_gets_its_own_reply_and_nobody_sleeps_for_ever() {
    for light in [true, false] {
        explore(&format!("call_{light}"), 100, 2, move |_| {
            let (kernel, desk) = (Kernel::new(), Desk::new());
            let server =
                beside(&kernel, &desk, 1, move |me, desk| [desk.serve(me, light), desk.serve(me, light)]);
            let me = Process::new(&kernel, 2);
            for request in [3, 4] {
                assert_eq!(desk.call(&me, request, light), Some(answer(request)));
            }
            assert_eq!(server.join().expect("ends well"), [3, 4]);
            assert_eq!(desk.cell().audit(), Ok(()));
        });
    }
}

/// One of the callers waits for the turn of the other.
#[test]
fn two_callers_get_each_its_own_reply() {
    explore("call_two_callers", 100, 1, |_| {
        let (kernel, desk) = (Kernel::new(), Desk::new());
        let server = beside(&kernel, &desk, 1, |me, desk| [desk.serve(me, true), desk.serve(me, true)]);
        let other = beside(&kernel, &desk, 3, |me, desk| desk.call(me, 3, true));
        let me = Process::new(&kernel, 2);
        assert_eq!(desk.call(&me, 4, true), Some(answer(4)));
        assert_eq!(other.join().expect("ends well"), Some(answer(3)));
        let mut served = server.join().expect("ends well");
        served.sort_unstable();
        assert_eq!(served, [3, 4]);
    });
}

#[test]
fn of_two_servers_one_serves_a_call() {
    explore("call_two_servers", 100, 1, |_| {
        let (kernel, desk) = (Kernel::new(), Desk::new());
        let servers = [1, 3].map(|tid| beside(&kernel, &desk, tid, |me, desk| desk.serve(me, true)));
        let me = Process::new(&kernel, 2);
        for request in [3, 4] {
            assert_eq!(desk.call(&me, request, true), Some(answer(request)));
        }
        let mut served = servers.map(|server| server.join().expect("ends well"));
        served.sort_unstable();
        assert_eq!(served, [3, 4]);
    });
}

/// A caller gives up while a server comes: it is served or withdrawn, and the next call is answered.
#[test]
fn a_call_that_is_given_up_was_served_or_never_begun() {
    let ends = explore("call_given_up", 20, 2, |outcome| {
        let (kernel, desk) = (Kernel::new(), Desk::new());
        let server = beside(&kernel, &desk, 1, |me, desk| desk.try_serve(me));
        let me = Process::new(&kernel, 2);
        let asked = desk.begin(&me, 3, true);
        let withdrawn = desk.cell().give_up(asked, &me);
        if !withdrawn && desk.cell().ended(asked).is_some() {
            assert_eq!(desk.read(1), answer(3));
        }
        desk.end(&me, true);
        let served = server.join().expect("ends well");
        assert_ne!(withdrawn, served == Some(3));
        // The next one is not answered with what was meant for this one.
        let server = beside(&kernel, &desk, 1, |me, desk| desk.serve(me, true));
        assert_eq!(desk.call(&me, 4, true), Some(answer(4)));
        assert_eq!(server.join().expect("ends well"), 4);
        outcome.push(u64::from(withdrawn));
    });
    assert_eq!(ends.len(), 2, "both ends were explored: {ends:?}");
}

/// What can not be read is refused, and its caller is told.
#[test]
fn a_refused_call_ends() {
    explore("call_refused", 10, 2, |_| {
        let (kernel, desk) = (Kernel::new(), Desk::new());
        let server = beside(&kernel, &desk, 1, |me, desk| {
            let serving = desk.wait(me, Party::Server, || desk.take(me, true));
            desk.cell().refuse(serving);
            desk.leave(me, true);
            // And one that is given back is there for the next.
            let serving = desk.wait(me, Party::Server, || desk.take(me, true));
            desk.cell().give_back(serving);
            desk.leave(me, true);
            desk.serve(me, true)
        });
        let me = Process::new(&kernel, 2);
        assert_eq!(desk.call(&me, 3, true), None);
        assert_eq!(desk.call(&me, 4, true), Some(answer(4)));
        assert_eq!(server.join().expect("ends well"), 4);
    });
}

/// A server is killed before each of its shared accesses in turn; the next one serves, and the caller, which may be asleep, has its reply.
#[test]
fn a_killed_servers_call_is_served_by_the_next() {
    let mut ends = BTreeSet::new();
    for accesses in 0..30 {
        ends.extend(explore(&format!("call_server_dies_{accesses}"), 1, 2, move |outcome| {
            let (kernel, desk) = (Kernel::new(), Desk::new());
            // Who sleeps has to know of all.
            let (victim, heir) = (Process::new(&kernel, 1), Process::new(&kernel, 2));
            let caller =
                beside(&kernel, &desk, 3, |me, desk| [desk.call(me, 3, true), desk.call(me, 4, true)]);
            victim.run_until_killed(accesses, &[], || desk.serve(&victim, true));
            let mut served = 0;
            // It goes on until both are answered.
            while served != 4 {
                let serving = desk.wait(&heir, Party::Server, || desk.take(&heir, true));
                outcome.push(u64::from(serving.again));
                served = desk.answer(&heir, serving, true);
            }
            assert_eq!(caller.join().expect("ends well"), [Some(answer(3)), Some(answer(4))]);
            assert_eq!(desk.cell().audit(), Ok(()));
        }));
    }
    // It had answered the first, had not begun, was in the middle.
    for wanted in [vec![0], vec![0, 0], vec![1, 0]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}

/// A caller is killed before each of its shared accesses in turn; the next caller has its own reply, whatever the server was doing.
#[test]
fn after_a_killed_caller_the_next_gets_its_own_reply() {
    let mut ends = BTreeSet::new();
    for accesses in 0..14 {
        ends.extend(explore(&format!("call_caller_dies_{accesses}"), 1, 2, move |outcome| {
            let (kernel, desk) = (Kernel::new(), Desk::new());
            let (victim, me) = (Process::new(&kernel, 1), Process::new(&kernel, 2));
            let server = beside(&kernel, &desk, 3, |me, desk| {
                let mut served = 0;
                while desk.serve(me, true) != 4 {
                    served += 1;
                }
                served
            });
            let lived = victim.run_until_killed(accesses, &[], || {
                if desk.cell().take_turn(Party::Caller, &victim).is_ok() && desk.cell().is_free(&victim) {
                    let asked = desk.ask(&victim, 3, true);
                    let _ = desk.cell().give_up(asked, &victim);
                    desk.end(&victim, true);
                }
            });
            assert_eq!(desk.call(&me, 4, true), Some(answer(4)));
            outcome.extend([u64::from(lived.is_some()), server.join().expect("ends well")]);
            assert_eq!(desk.cell().audit(), Ok(()));
        }));
    }
    for wanted in [vec![0, 0], vec![0, 1], vec![1, 0], vec![1, 1]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}

/// The caller that withdraws the request of a dead server, and a server that takes it again: one of them has it.
#[test]
fn a_dead_servers_call_is_withdrawn_or_served() {
    let ends = explore("call_withdrawn_or_served", 10, 3, |outcome| {
        let (kernel, desk) = (Kernel::new(), Desk::new());
        let (me, dead) = (Process::new(&kernel, 2), Process::new(&kernel, 1));
        let asked = desk.begin(&me, 3, true);
        assert!(desk.take(&dead, true).is_some());
        dead.die(&[]);
        let heir = beside(&kernel, &desk, 3, |me, desk| desk.try_serve(me));
        let withdrawn = desk.cell().give_up(asked, &me);
        let served = heir.join().expect("ends well");
        assert!(!(withdrawn && served.is_some()), "both");
        if served.is_some() {
            assert_eq!(desk.cell().ended(asked), Some(Ended::Answered));
        }
        outcome.extend([u64::from(withdrawn), u64::from(served.is_some())]);
    });
    for wanted in [vec![0, 1], vec![1, 0]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}
