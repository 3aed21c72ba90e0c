//! The listening side of all conversations at once: whoever waits in `accept` goes on with each of them as far as it can be gone on with.
//!
//! | state of a guest | waits for | then |
//! |---|---|---|
//! | `Hello` | its `Hello` | compare, answer: `Proof` |
//! | `Proof` | its `Proof` | check MAC and types, make what it shall have, `Welcome`: `Ready` |
//! | `Ready` | its `Ready` | it is accepted |
//!
//! A guest that says something else, leaves, dies or has not come to the end by its deadline is sent away and counted; what was made for it is
//! dropped. Nothing is made before its MAC is right. No call here sleeps but for news of any of the guests, and none of them waits for
//! another one, but:
//!
//! * when [`GUESTS`] are there: the next one, until one of them has left; those who have proven nothing have [`GRACE`] then;
//! * when [`MOST`](Given::MOST) are `Ready`: those in `Proof`, who are not listened to ("parked") until one of the former has left.
//!
//! An epoll has the listening socket, the guests' sockets, and a timer for the first deadline: it is what the listener is as a
//! descriptor, readable when there is something to be done.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossproc_atomic::process_stamp;
use crossproc_segment::{Error, ErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::error::AcceptError;
use super::hello::{Fault, Greeting, Inbox, Kind, MAC, Proof, Reason, Said, Side, Terms, send};
use super::peer::{Credentials, Policy, credentials};

/// Conversations at a time. Who comes when there are so many waits until one has ended.
const GUESTS: usize = 256;
/// What is left of its time to who says nothing while others wait to get in: an honest guest needs two round trips.
const GRACE: Duration = Duration::from_secs(1);
/// Events that are looked at in one turn.
const EVENTS: usize = 32;
/// Turns of one attempt that does not wait.
const TURNS: usize = 64;

const LISTENING: u64 = 0;
const TIMER: u64 = 1;
const FIRST_GUEST: u64 = 2;

/// What a guest is given at the end.
pub(super) trait Given {
    /// At a time, for guests who have not said yet that they have it.
    const MOST: usize;

    /// What goes with `Welcome`.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
}

/// The socket itself is all.
impl Given for () {
    const MOST: usize = GUESTS;

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

pub(super) struct Door<H> {
    listening: OwnedFd,
    epoll: OwnedFd,
    timer: OwnedFd,
    terms: Terms,
    /// On a Unix socket: who may come.
    policy: Option<Policy>,
    timeout: Duration,
    /// Of the process that made it: a forked child has the same epoll, and not the same guests.
    process: u64,
    state: Mutex<State<H>>,
}

struct State<H> {
    guests: BTreeMap<u64, Guest<H>>,
    next: u64,
    refused: u64,
    /// What the timer is set to.
    armed: Option<Instant>,
    /// The listening socket is not in the epoll now.
    is_full: bool,
}

struct Guest<H> {
    socket: OwnedFd,
    credentials: Option<Credentials>,
    since: Instant,
    /// `None` for a time that has no end.
    until: Option<Instant>,
    inbox: Inbox,
    step: Step<H>,
    /// Its socket is not in the epoll now.
    is_parked: bool,
}

impl<H> Guest<H> {
    /// When it is sent away.
    fn end(&self, is_full: bool) -> Option<Instant> {
        if !is_full || self.is_parked || matches!(self.step, Step::Ready(_)) {
            return self.until;
        }
        let soon = self.since + GRACE;
        Some(self.until.map_or(soon, |until| until.min(soon)))
    }
}

enum Step<H> {
    Hello,
    Proof { theirs: Greeting, ours: Greeting },
    Ready(H),
}

/// Somebody who was accepted, and what was made for it.
pub(super) struct Accepted<H> {
    pub(super) socket: OwnedFd,
    pub(super) credentials: Option<Credentials>,
    pub(super) made: H,
}

/// How far a guest is gone on with.
enum Progress {
    Waits,
    /// Until there is room for what it shall have.
    Parks,
    Accepted,
    /// Is sent away, and told why if there is a reason.
    Refused(Option<(Reason, String)>),
    /// The same, for a reason that the listener is told.
    Failed(Error),
}

/// How long to wait for somebody.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    None,
    Until(Option<Instant>),
}

impl Patience {
    pub(super) fn within(timeout: Duration) -> Self {
        Self::Until(Instant::now().checked_add(timeout))
    }
}

/// Waits until one of `flags` holds of a descriptor; false if the time has passed.
pub(super) fn wait_until(fd: impl AsFd, flags: PollFlags, until: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Longer than the kernel can count is for ever.
        let timespec = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&fd, flags)], timespec.as_ref()) {
            Err(Errno::INTR) => {}
            Ok(0) if left == Some(Duration::ZERO) => return Ok(false),
            Ok(0) => {}
            other => return other.map(|_| true),
        }
    }
}

impl<H: Given> Door<H> {
    pub(super) fn new(
        listening: OwnedFd,
        terms: Terms,
        policy: Option<Policy>,
        timeout: Duration,
    ) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        for (fd, data) in [(&listening, LISTENING), (&timer, TIMER)] {
            watch(&epoll, fd, data)?;
        }
        let state =
            State { guests: BTreeMap::new(), next: FIRST_GUEST, refused: 0, armed: None, is_full: false };
        let (process, state) = (process_stamp(), Mutex::new(state));
        Ok(Self { listening, epoll, timer, terms, policy, timeout, process, state })
    }

    /// Goes on with all conversations until one of them ends well. `make` makes what such a guest shall have.
    pub(super) fn accept(
        &self,
        patience: Patience,
        make: impl Fn() -> Result<H, Error>,
    ) -> Result<Accepted<H>, AcceptError> {
        let system = |errno: Errno| AcceptError::System(errno.into());
        if self.process != process_stamp() {
            let text = "the listener was made before this process was forked: only its maker can accept; \
                        make another one here, or hand the connections over";
            return Err(AcceptError::System(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        for turn in 0_usize.. {
            let (accepted, is_idle) = self.turn(&make)?;
            if let Some(accepted) = accepted {
                return Ok(accepted);
            }
            match patience {
                Patience::None if is_idle || turn >= TURNS => return Err(AcceptError::Nobody),
                Patience::None => {}
                // Also when there is news all the time.
                Patience::Until(Some(until)) if !is_idle && Instant::now() >= until => {
                    return Err(AcceptError::TimedOut);
                }
                Patience::Until(until) => {
                    if !wait_until(&self.epoll, PollFlags::IN, until).map_err(system)? {
                        return Err(AcceptError::TimedOut);
                    }
                }
            }
        }
        unreachable!("turns are not counted to their end")
    }

    /// Looks at some of the news. Who was accepted by it, and whether there was none.
    fn turn(&self, make: &impl Fn() -> Result<H, Error>) -> Result<(Option<Accepted<H>>, bool), AcceptError> {
        let system = |errno: Errno| AcceptError::System(errno.into());
        let mut events = Vec::with_capacity(EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(system(errno)),
        }
        let is_idle = events.is_empty();
        let (mut result, mut is_rung) = (Ok(None), false);
        for event in events {
            let data = event.data;
            match data.u64() {
                LISTENING => result = self.let_in().map(|()| None).map_err(system),
                TIMER => is_rung = true,
                id => result = self.go_on(&mut self.state(), id, make),
            }
            // What else is new is so still in the next turn.
            if !matches!(result, Ok(None)) {
                break;
            }
        }
        let tidied = self.tidy(&mut self.state(), is_rung);
        match result? {
            // What could not be done is tried again in the next turn.
            Some(accepted) => Ok((Some(accepted), is_idle)),
            None => tidied.map(|()| (None, is_idle)).map_err(system),
        }
    }

    /// Begins a conversation with the next who wants to connect.
    fn let_in(&self) -> Result<(), Errno> {
        let socket = match accept_with(&self.listening, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            // For want of something that only this process or machine can have more of.
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL)) => {
                return Err(errno);
            }
            // It has left again, or another thread was faster.
            Err(_) => return Ok(()),
        };
        let mut peer = None;
        if let Some(policy) = &self.policy {
            peer = credentials(&socket).ok();
            // The user's: it may take its time, and use the listener.
            if !peer.as_ref().is_some_and(|peer| policy.allows(peer)) {
                refuse(&socket, Reason::Peer, "");
                self.state().refused += 1;
                return Ok(());
            }
        }
        let mut state = self.state();
        let id = state.next;
        watch(&self.epoll, &socket, id)?;
        state.next += 1;
        let since = Instant::now();
        let (until, inbox, step) = (since.checked_add(self.timeout), Inbox::default(), Step::Hello);
        let guest = Guest { socket, credentials: peer, since, until, inbox, step, is_parked: false };
        state.guests.insert(id, guest);
        // Other threads may have let in some more.
        if state.guests.len() >= GUESTS && !state.is_full {
            epoll::delete(&self.epoll, &self.listening)?;
            state.is_full = true;
        }
        Ok(())
    }

    /// The conversation ends, in whatever way.
    fn let_out(&self, state: &mut State<H>, id: u64) -> Option<Guest<H>> {
        let guest = state.guests.remove(&id)?;
        // A forked child may have the socket still, so that closing it would not be enough.
        let _ = epoll::delete(&self.epoll, &guest.socket);
        Some(guest)
    }

    fn go_on(
        &self,
        state: &mut State<H>,
        id: u64,
        make: &impl Fn() -> Result<H, Error>,
    ) -> Result<Option<Accepted<H>>, AcceptError> {
        let has_room = state.has_room();
        let Some(guest) = state.guests.get_mut(&id) else { return Ok(None) };
        let progress = loop {
            match self.hear(guest, has_room, make) {
                Ok(Some(progress)) => break progress,
                Ok(None) => {}
                // It reads nothing, or has left.
                Err(_) => break Progress::Refused(None),
            }
        };
        match progress {
            Progress::Waits => return Ok(None),
            Progress::Parks => {
                guest.is_parked = epoll::delete(&self.epoll, &guest.socket).is_ok();
                return Ok(None);
            }
            _ => {}
        }
        let Some(guest) = self.let_out(state, id) else { return Ok(None) };
        if let (Progress::Accepted, Step::Ready(made)) = (&progress, guest.step) {
            return Ok(Some(Accepted { socket: guest.socket, credentials: guest.credentials, made }));
        }
        state.refused += 1;
        match progress {
            Progress::Failed(error) => {
                refuse(&guest.socket, Reason::Unavailable, &error.to_string());
                // What may be otherwise for the next guest is no reason to end a loop around `accept`.
                let is_passing = matches!(
                    error.kind(),
                    ErrorKind::NoSpace | ErrorKind::NoMemory | ErrorKind::TooManyFiles | ErrorKind::Busy
                );
                if is_passing { Ok(None) } else { Err(AcceptError::Segment(error)) }
            }
            Progress::Refused(Some((reason, text))) => {
                refuse(&guest.socket, reason, &text);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Takes the next message of a guest; `None` if there may be one more.
    fn hear(
        &self,
        guest: &mut Guest<H>,
        has_room: bool,
        make: &impl Fn() -> Result<H, Error>,
    ) -> Result<Option<Progress>, Errno> {
        if !has_room && matches!(guest.step, Step::Proof { .. }) {
            return Ok(Some(Progress::Parks));
        }
        let refused = |reason, text: &str| Ok(Some(Progress::Refused(Some((reason, text.to_owned())))));
        let message = match guest.inbox.receive(guest.socket.as_fd(), false) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Some(Progress::Waits)),
            Err(Fault::Version(_)) => return refused(Reason::Version, ""),
            Err(_) => return Ok(Some(Progress::Refused(None))),
        };
        let key = self.terms.key.as_ref();
        match (&guest.step, message.kind) {
            (Step::Hello, Kind::Hello) => {
                let Ok(theirs) = Greeting::try_from(message.body) else {
                    return Ok(Some(Progress::Refused(None)));
                };
                match (key.is_some(), theirs[0] != 0) {
                    (true, false) => return refused(Reason::KeyNeeded, ""),
                    (false, true) => return refused(Reason::NoKey, ""),
                    _ => {}
                }
                let ours = self.terms.greeting()?;
                send(&guest.socket, Kind::Hello, &ours, &[])?;
                guest.step = Step::Proof { theirs, ours };
            }
            (Step::Proof { theirs, ours }, Kind::Proof) => {
                let Ok(proof) = postcard::from_bytes::<Proof>(&message.body) else {
                    return Ok(Some(Progress::Refused(None)));
                };
                let said = Said {
                    connector: theirs,
                    listener: ours,
                    sends: &proof.sends,
                    receives: &proof.receives,
                };
                if !said.is_proven(key, Side::Connector, &proof.mac) {
                    return refused(Reason::WrongKey, "");
                }
                let Terms { sends, receives, .. } = &self.terms;
                if (&proof.sends, &proof.receives) != (receives, sends) {
                    return refused(Reason::Types, &format!("{sends}\n{receives}"));
                }
                let made = match make() {
                    Ok(made) => made,
                    Err(error) => return Ok(Some(Progress::Failed(error))),
                };
                let mac: [u8; MAC] = said.prove(key, Side::Listener);
                send(&guest.socket, Kind::Welcome, &mac, &made.descriptors())?;
                guest.step = Step::Ready(made);
            }
            (Step::Ready(_), Kind::Ready) => return Ok(Some(Progress::Accepted)),
            _ => return Ok(Some(Progress::Refused(None))),
        }
        Ok(None)
    }

    /// Sends away whose deadline has passed, lets those go on for whom there is room now, and sets the timer to the next deadline.
    fn tidy(&self, state: &mut State<H>, is_rung: bool) -> Result<(), Errno> {
        let (now, is_full) = (Instant::now(), state.is_full);
        let is_late = |guest: &Guest<H>| guest.end(is_full).is_some_and(|end| end <= now);
        let late: Vec<u64> =
            state.guests.iter().filter(|(_, guest)| is_late(guest)).map(|(&id, _)| id).collect();
        for id in late {
            self.let_out(state, id);
            state.refused += 1;
        }
        if state.is_full && state.guests.len() < GUESTS {
            watch(&self.epoll, &self.listening, LISTENING)?;
            state.is_full = false;
        }
        if state.has_room() {
            for (&id, guest) in state.guests.iter_mut().filter(|(_, guest)| guest.is_parked) {
                watch(&self.epoll, &guest.socket, id)?;
                guest.is_parked = false;
            }
        }
        let first = state.guests.values().filter_map(|guest| guest.end(state.is_full)).min();
        if first == state.armed && !is_rung {
            return Ok(());
        }
        // Zero would be "never".
        let left = first.map_or(Duration::ZERO, |until| (until - now).max(Duration::from_nanos(1)));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value },
        )?;
        state.armed = first;
        Ok(())
    }
}

impl<H> State<H> {
    /// For one more to whom something is given.
    fn has_room(&self) -> bool
    where
        H: Given,
    {
        self.guests.values().filter(|guest| matches!(guest.step, Step::Ready(_))).count() < H::MOST
    }
}

impl<H> Door<H> {
    fn state(&self) -> MutexGuard<'_, State<H>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refused(&self) -> u64 {
        self.state().refused
    }
}

impl<H> AsFd for Door<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl<H> std::fmt::Debug for Door<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Door")
            .field("conversations", &state.guests.len())
            .field("refused", &state.refused)
            .finish_non_exhaustive()
    }
}

fn watch(epoll: impl AsFd, fd: impl AsFd, data: u64) -> Result<(), Errno> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)
}

fn refuse(socket: &OwnedFd, reason: Reason, text: &str) {
    let end = (0..=text.len().min(4000)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let body = [&[reason as u8], &text.as_bytes()[..end]].concat();
    // Who does not hear it learns by the end of the connection.
    let _ = send(socket, Kind::Refused, &body, &[]);
}
