//! A call: one request and its reply, in the same cache lines.
//!
//! ```text
//!    0  calling   u64  whose turn it is to call: OWNER | 0
//!    8  wanted    u32  somebody waits for that turn
//!  128  serving   u64  whose turn it is to serve
//!  136  wanted    u32  somebody waits for that turn
//!  256  state     u32  FENCES
//!  264  asked          event count: servers that wait
//!  272  answered       event count: callers that wait
//!
//!  the line:
//!    0  phase     u64  number of the call << 2 | FREE, ASKED, TAKEN or ANSWERED
//!    8  the request's words, then the reply's
//! ```
//!
//! | phase | means | becomes, and by whom |
//! |---|---|---|
//! | FREE(n) | there is no call; n was refused, if its caller has not withdrawn it | ASKED(n + 1): whose turn it is to call, after it wrote the request |
//! | ASKED(n) | nobody has begun to serve it | TAKEN(n): whose turn it is to serve, by compare-and-swap; FREE(n): whose turn it is to call, which gives up, likewise |
//! | TAKEN(n) | it is being served | ANSWERED(n): the server, after it wrote the reply; ASKED(n): the server, which gives it back; FREE(n): the server, which refuses it, since its words are no request; FREE(n): whose turn it is to call, if the server has died, in the server's turn |
//! | ANSWERED(n) | the reply is there | ASKED(n + 1), as from FREE |
//!
//! Request and reply have words of their own, so a request whose server has died is there for the next one.
//! A request that is refused is not there for the next server: it would be refused again, for ever.
//! A caller that has given up, or died, leaves a call that is TAKEN to its server: the next caller waits for the end of that.
//!
//! | killed | left | who goes on |
//! |---|---|---|
//! | caller, before ASKED | the turn; words that nobody reads | the next caller takes the turn, and overwrites them |
//! | caller, after that | the turn; the request | a server answers it, or the next caller withdraws it |
//! | server, before it has TAKEN it | the turn to serve | the next server |
//! | server, serving | the turn; TAKEN | the next server takes the request again, and is told so; or the next caller withdraws it |
//! | server, after ANSWERED, or after it refused | the turn; perhaps a caller asleep | its death wakes the caller |
//!
//! Memory ordering. A phase is stored with Release and loaded with Acquire: who sees it sees the words that it speaks of. They are overwritten by
//! who has seen the phase that ends their use. A turn passes by Release and Acquire, or by the proof of a death. Sleeping is
//! as in `frames`: a full fence on both sides, of which the busy side's is a light one where the sleeper can make that full.

use crossproc_atomic::{
    AtomicU32, AtomicU64, EventCount, Liveness, Ordering, Owner, Platform, fence, light_fence, shared_struct,
};

use crate::frames::NoTurn;

const fn apart(words: usize) -> usize {
    if cfg!(crossproc_model) { 0 } else { 16 - words }
}

shared_struct! {
    /// The words of a call beside its line; see the map at the top of the file. All zero: no call.
    pub struct CallWords: 384 {
        calling: AtomicU64,
        call_wanted: AtomicU32,
        unused_0: AtomicU32,
        unused_1: [AtomicU64; apart(2)],
        serving: AtomicU64,
        serve_wanted: AtomicU32,
        unused_2: AtomicU32,
        unused_3: [AtomicU64; apart(2)],
        state: AtomicU32,
        unused_4: AtomicU32,
        asked: EventCount,
        answered: EventCount,
        unused_5: [AtomicU64; apart(3)],
    }
}

/// There is somebody that can not make light fences full ones.
const FENCES: u32 = 1;

const FREE: u64 = 0;
const ASKED: u64 = 1;
const TAKEN: u64 = 2;
const ANSWERED: u64 = 3;
const PHASE: u64 = 3;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// Who asks.
    Caller,
    /// Who answers.
    Server,
}

/// A call's words, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct CallCell<'a> {
    words: &'a CallWords,
    line: &'a [AtomicU64],
    request: usize,
}

/// A call that was asked; for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it is answered, or withdrawn"]
pub struct Asked(u64);

/// How a call has ended; for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The reply is there.
    Answered,
    /// A server could not read the request.
    Refused,
}

/// A call that is being served; for its server.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "it is answered, refused, or given back"]
pub struct Serving {
    number: u64,
    /// Another server has died serving it.
    pub again: bool,
}

impl<'a> CallCell<'a> {
    /// Words of a line for a request and a reply of so many words.
    #[must_use]
    pub const fn line_words(request: usize, reply: usize) -> usize {
        1 + request + reply
    }

    /// Borrows a call: its words, and its line with `request` words for the request, the others for the reply.
    ///
    /// # Panics
    ///
    /// If the line is too short.
    #[inline]
    #[must_use]
    pub fn new(words: &'a CallWords, line: &'a [AtomicU64], request: usize) -> Self {
        assert!(line.len() > request, "a line has room for the request");
        Self { words, line, request }
    }

    #[inline]
    fn phase(&self) -> &'a AtomicU64 {
        &self.line[0]
    }

    /// The request's words.
    #[inline]
    #[must_use]
    pub fn request(&self) -> &'a [AtomicU64] {
        &self.line[1..=self.request]
    }

    /// The reply's words.
    #[inline]
    #[must_use]
    pub fn reply(&self) -> &'a [AtomicU64] {
        &self.line[1 + self.request..]
    }

    /// What a party sleeps on.
    #[must_use]
    pub fn event(&self, party: Party) -> &'a EventCount {
        match party {
            Party::Caller => &self.words.answered,
            Party::Server => &self.words.asked,
        }
    }

    fn turn(&self, party: Party) -> (&'a AtomicU64, &'a AtomicU32) {
        match party {
            Party::Caller => (&self.words.calling, &self.words.call_wanted),
            Party::Server => (&self.words.serving, &self.words.serve_wanted),
        }
    }

    /// Takes a turn that nobody has, or whose owner is proven dead.
    ///
    /// # Errors
    ///
    /// See [`NoTurn`].
    #[inline]
    pub fn take_turn(&self, party: Party, live: &impl Liveness) -> Result<(), NoTurn> {
        let (word, _) = self.turn(party);
        let me = live.me().bits();
        match word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(seen) => {
                let owner = Owner::from_bits(seen).ok_or(NoTurn::Damaged)?;
                if owner == live.me() || !live.is_gone(owner) {
                    return Err(NoTurn::Taken);
                }
                let taken = word.compare_exchange(seen, me, Ordering::Acquire, Ordering::Relaxed);
                taken.map(drop).map_err(|_| NoTurn::Taken)
            }
        }
    }

    /// Gives a turn back. [`notify`](Self::notify) is to follow.
    #[inline]
    pub fn pass_turn(&self, party: Party) {
        self.turn(party).0.store(0, Ordering::Release);
    }

    /// True if whoever has a turn has died.
    #[must_use]
    pub fn is_turn_of_dead(&self, party: Party, live: &impl Liveness) -> bool {
        let seen = self.turn(party).0.load(Ordering::Acquire);
        seen != 0 && Owner::from_bits(seen).is_some_and(|owner| owner != live.me() && live.is_gone(owner))
    }

    /// To be called by who has announced that it may sleep, before its last look.
    pub fn before_sleeping(&self, party: Party, heavy_fence: impl FnOnce() -> bool) {
        self.turn(party).1.store(1, Ordering::Relaxed);
        if !heavy_fence() {
            self.words.state.fetch_or(FENCES, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// To be called by a party after it has changed the phase or given its turn back: wakes who sleeps.
    #[inline(always)]
    pub fn notify(&self, party: Party, platform: &impl Platform, light: bool) {
        if light && self.words.state.load(Ordering::Relaxed) & FENCES == 0 {
            light_fence(); // mutant: remove
        } else {
            fence(Ordering::SeqCst);
        }
        let other = match party {
            Party::Caller => Party::Server,
            Party::Server => Party::Caller,
        };
        self.event(other).notify_after_fence(platform);
        let (_, wanted) = self.turn(party);
        if wanted.load(Ordering::Relaxed) != 0 {
            // Before: who comes now and finds the turn taken says so anew.
            wanted.store(0, Ordering::Relaxed);
            self.event(party).notify_after_store(platform);
        }
    }

    // ---- The caller, in its turn

    /// True if a request can be written: no other call is under way. Withdraws one that a caller before has left behind.
    #[inline]
    pub fn is_free(&self, live: &impl Liveness) -> bool {
        let seen = self.phase().load(Ordering::Acquire);
        matches!(seen & PHASE, FREE | ANSWERED) || self.withdraw(seen, live)
    }

    /// Publishes the request that was written.
    #[inline]
    pub fn ask(&self) -> Asked {
        let number = (self.phase().load(Ordering::Relaxed) >> 2).wrapping_add(1);
        self.phase().store(number << 2 | ASKED, Ordering::Release);
        Asked(number)
    }

    /// How a call that was not withdrawn has ended; `None`: it has not.
    #[inline]
    #[must_use]
    pub fn ended(&self, call: Asked) -> Option<Ended> {
        let seen = self.phase().load(Ordering::Acquire);
        if seen == call.0 << 2 | ANSWERED {
            Some(Ended::Answered)
        } else if seen == call.0 << 2 | FREE {
            Some(Ended::Refused)
        } else {
            None
        }
    }

    /// Takes a request back that nobody has begun to serve, or whose server has died. False if it is being served.
    pub fn give_up(&self, call: Asked, live: &impl Liveness) -> bool {
        let seen = self.phase().load(Ordering::Acquire);
        seen >> 2 == call.0 && self.withdraw(seen, live)
    }

    #[cold]
    fn withdraw(&self, seen: u64, live: &impl Liveness) -> bool {
        let free = |from: u64| {
            let to = from & !PHASE | FREE;
            self.phase().compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        match seen & PHASE {
            ASKED => free(seen),
            TAKEN if self.is_turn_of_dead(Party::Server, live) => {
                // In the server's turn, so that no other one takes it again meanwhile.
                if self.take_turn(Party::Server, live).is_err() {
                    return false;
                }
                let done = free(seen);
                self.pass_turn(Party::Server);
                self.notify(Party::Server, live, false);
                done
            }
            _ => false,
        }
    }

    // ---- The server, in its turn

    /// Takes the request, if there is one.
    #[inline]
    pub fn serve(&self) -> Option<Serving> {
        let seen = self.phase().load(Ordering::Acquire);
        let number = seen >> 2;
        match seen & PHASE {
            ASKED => {
                let taken = seen & !PHASE | TAKEN;
                // mutant: AcqRel -> Relaxed equivalent, because the load before it has acquired the request
                let it = self.phase().compare_exchange(seen, taken, Ordering::AcqRel, Ordering::Relaxed);
                it.is_ok().then_some(Serving { number, again: false })
            }
            // Its server died: or it would still have the turn.
            TAKEN => Some(Serving { number, again: true }),
            _ => None,
        }
    }

    /// True if there is a request, or one that a dead server has left.
    #[inline]
    #[must_use]
    pub fn is_asked(&self) -> bool {
        matches!(self.phase().load(Ordering::Relaxed) & PHASE, ASKED | TAKEN)
    }

    /// Publishes the reply that was written.
    #[inline]
    pub fn answer(&self, call: Serving) {
        self.phase().store(call.number << 2 | ANSWERED, Ordering::Release);
    }

    /// Ends a call whose request can not be read.
    #[cold]
    pub fn refuse(&self, call: Serving) {
        self.phase().store(call.number << 2 | FREE, Ordering::Release);
    }

    /// Leaves the request to the next server.
    pub fn give_back(&self, call: Serving) {
        self.phase().store(call.number << 2 | ASKED, Ordering::Release);
    }

    /// Looks for words that contradict each other. Exact while nobody uses it.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn audit(&self) -> Result<(), &'static str> {
        for party in [Party::Caller, Party::Server] {
            let word = self.turn(party).0.load(Ordering::Relaxed);
            if word != 0 && Owner::from_bits(word).is_none() {
                return Err("a turn is nobody's that could be");
            }
        }
        Ok(())
    }
}
