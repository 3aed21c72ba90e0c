//! The start method `ForkServer`: a small process of its own that makes copies of itself on request.
//!
//! ```text
//!  this process ── posix_spawn ──> fork server          (once; `preload` is called in it)
//!       │  ── Fork: socket, directory, streams, environment ──>  │
//!       │                                            clone(CLONE_PARENT) ──> copy
//!       │  <── Forked: its pid ─────────────────────────────────  │            │
//!       │  ── Request (`wire.rs`) ─────────────────────────────────────────────>  calls the function
//! ```
//!
//! The copy is a child of *this* process, a sibling of the server (`copies.rs`). So what comes after the
//! start is the same as with the other methods, and does not depend on the server.
//!
//! # Deaths
//!
//! | dies | when | what is left | who puts it right |
//! |---|---|---|---|
//! | server | waiting | nothing | the next start makes a new one |
//! | server | with a request, before `clone` | nothing: the word is 0 | the start makes a new one and asks again, once |
//! | server | after `clone`, before `Forked` | a child that its parent has not been told of; its id in the word | the start takes it from there |
//! | server | is not dead, but stopped or hangs | the same | the start kills it when time is up |
//! | this process | ever | the server | sees the end of the socket or of its parent, and ends |
//!
//! The word is cleared by this process before it asks, and written by the kernel. Requests come one at a time
//! (by [`Turn`]s), so the word is about the last one. A copy calls nothing before its parent has a pidfd of it,
//! because only then its own `Request` is sent: a copy that is given up has called nothing.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::ftruncate;
use rustix::io::{Errno, pread, pwrite};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::call::{Call, Outcome, explain};
use crate::child::{self, Place};
use crate::copies::{self, Sibling};
use crate::current::{self, parent};
use crate::start::{Attempt, Made, Plan, Streams, Unstarted, open_pidfd};
use crate::wire::{self, Copy, Function, Incoming, Kind, Outgoing, Patience, Reason, Received, Refused};
use crate::{
    Error, ErrorKind, Handed, Process, StartMethod, Stdio, entry, environment, manner, poll, status,
};

/// The start method in which the process is a copy of a small process, the *fork server*: several times
/// cheaper than starting a program, however large this process is and whatever threads it has.
///
/// This is a handle; clones of it stand for the same server. The server is started when it is first needed, or
/// by [`start`](Self::start), again when it has died (which the processes that it has made do not notice), and
/// ends with the last handle or with this process.
///
/// ```
/// use crossproc_process::{ForkServer, StartMethod};
/// use std::sync::OnceLock;
///
/// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
///
/// // Computed once, in the server. All processes have it.
/// let server = ForkServer::new().preload(|n| drop(WORDS.set(vec!["x".repeat(n)])), 3)?;
/// let context = StartMethod::from(server);
/// let child = context.spawn(|()| WORDS.get().map(|words| words[0].clone()), ())?;
/// assert_eq!(child.join()?.as_deref(), Some("xxx"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Environment, directory and standard streams of a process are those of the process that asks, or what the
/// [`Builder`](crate::Builder) says; blocked signals are those of the calling thread. What else a process inherits (limits, umask, user, niceness, processors,
/// process group) is as it was when the server started, and so are descriptors that are inheritable. Its
/// command line is that of the server. Functions registered with `atexit` are not called at its end, because
/// they are the server's, and those registered with `pthread_atfork` are not called at its start. All copies
/// have the same addresses: address space randomisation hides less than with [`StartMethod::Spawn`].
///
/// A random generator that was seeded in the server ([`preload`](Self::preload)) gives *the same numbers in all
/// copies*, also one that seeds itself again after a `fork`, because it learns of that by `pthread_atfork`
/// (`thread_rng` of rand 0.8). Seed in the processes, from the system.
///
/// It needs glibc: with another C library each start is [`ErrorKind::Unsupported`].
#[derive(Clone)]
pub struct ForkServer(Arc<Inner>);

struct Inner {
    settings: Settings,
    /// The process whose children the copies would be.
    owner: u32,
    /// True while somebody has a [`Turn`].
    taken: Mutex<bool>,
    /// Woken when it becomes false.
    released: Condvar,
    /// Only for who has a turn; and for a look.
    running: Mutex<Option<Running>>,
}

/// The right to use the server, which one at a time has. (Who waits for it has a deadline, and a [`Mutex`] knows
/// none.)
struct Turn<'a>(&'a Inner);

impl Inner {
    /// `None` if the deadline has passed.
    fn turn(&self, deadline: Option<Instant>) -> Option<Turn<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return None;
            }
            if !*taken {
                *taken = true;
                return Some(Turn(self));
            }
            taken = match left {
                None => self.released.wait(taken).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.released.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        // All: the one that is woken may find that its time is up.
        self.0.released.notify_all();
    }
}

#[derive(Clone, Default)]
struct Settings {
    executable: Option<PathBuf>,
    preload: Option<Preload>,
}

/// A function and its arguments.
#[derive(Clone, Serialize, Deserialize)]
struct Preload(Function, Vec<u8>);

/// Without another limit, a server is ready within this time.
const GRACE: Duration = Duration::from_secs(10);

/// A server that has been asked and is not stopped answers within this time, also on a busy machine.
const ANSWER: Duration = Duration::from_secs(1);

/// A server that has said that it is ready.
struct Running {
    /// Killed when this is dropped.
    process: Process<Result<(), Refused>>,
    socket: OwnedFd,
    incoming: Incoming,
    word: OwnedFd,
}

impl Default for ForkServer {
    fn default() -> Self {
        Self::new()
    }
}

impl ForkServer {
    /// A server for this program, which is not started yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        Self(Arc::new(Inner {
            settings,
            owner: std::process::id(),
            taken: Mutex::new(false),
            released: Condvar::new(),
            running: Mutex::new(None),
        }))
    }

    /// A server (another one than `self`) that calls `function` once when it has started, and that all
    /// processes are copied from after that: for what they all need and what takes long to compute.
    ///
    /// Threads are not copied, so the function must leave none behind; that includes handles to segments. Nor
    /// must it seed random generators that the processes use: they would all draw the same numbers. When
    /// the server has to be started again, it calls the function again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Arguments`] if the arguments can not be serialised or contain handles, and
    /// [`ErrorKind::OutsideExecutable`]. That the function has panicked or left a thread behind is an error of
    /// the start: [`ErrorKind::ForkServer`].
    pub fn preload<A>(self, function: fn(A), arguments: A) -> Result<Self, Error>
    where
        A: Serialize + DeserializeOwned,
    {
        let encoded = postcard::to_stdvec(&arguments).map_err(|error| {
            let text = format!(
                "the arguments of a preload function can not be serialised: {}. (Handles can not be among them)",
                explain(&error)
            );
            Error::with_source(ErrorKind::Arguments, text, error)
        })?;
        let preload = Some(Preload(entry::describe(function)?, encoded));
        Ok(Self::with(Settings { preload, ..self.0.settings.clone() }))
    }

    /// A server (another one than `self`) that is another program, or another build of this one; see
    /// [`Builder::executable`](crate::Builder::executable).
    #[must_use]
    pub fn executable(self, path: impl Into<PathBuf>) -> Self {
        Self::with(Settings { executable: Some(path.into()), ..self.0.settings.clone() })
    }

    /// Starts the server now if it does not run, so that the first process need not wait for it.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]; [`TimedOut`](ErrorKind::TimedOut) after 10 seconds.
    pub fn start(&self) -> Result<(), Error> {
        self.check_owner()?;
        if !copies::CAN_HAVE_SIBLINGS {
            return Err(Error::new(ErrorKind::Unsupported, copies::NO_SIBLINGS));
        }
        let deadline = Instant::now().checked_add(GRACE);
        let Some(_turn) = self.0.turn(deadline) else {
            let text = "the fork server was not started in time: other starts have kept it busy; try again";
            return Err(Error::new(ErrorKind::TimedOut, text));
        };
        let mut running = self.0.running();
        if running.as_ref().is_none_or(|running| !running.process.is_alive()) {
            *running = Some(self.0.settings.start(deadline)?);
        }
        Ok(())
    }

    /// The process id of the server; `None` if it does not run. Waits for a start that is under way.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let running = self.0.running();
        running.as_ref().filter(|running| running.process.is_alive()).map(|running| running.process.pid())
    }

    fn check_owner(&self) -> Result<(), Error> {
        if self.0.owner == std::process::id() {
            return Ok(());
        }
        let text = format!(
            "the fork server belongs to process {}, of which this one ({}) is a copy: make a new one here",
            self.0.owner,
            std::process::id()
        );
        Err(Error::new(ErrorKind::ForkServer, text))
    }

    /// Makes the child; `socket` is its end of the socket.
    pub(crate) fn make(
        &self,
        attempt: &Attempt,
        plan: Plan,
        socket: OwnedFd,
        deadline: Option<Instant>,
    ) -> Result<Made, Error> {
        self.check_owner()?;
        let system = |errno: Errno| attempt.system("asking the fork server", errno);
        let environment = environment::with(plan.environment);
        let Streams { theirs, stdin, stdout, stderr } =
            Streams::connect(attempt, plan.stdin, plan.stdout, plan.stderr)?;
        let head = Copy {
            streams: theirs.each_ref().map(Option::is_some),
            blocked_signals: copies::blocked_signals(),
        };
        let directory = attempt.open_directory(plan.current_dir.unwrap_or_else(|| ".".into()))?;
        let descriptors: Vec<_> =
            [socket, directory].into_iter().chain(theirs.into_iter().flatten()).collect();

        let busy = || {
            let text = "its turn at the fork server did not come in time; other starts are before it, or they are \
                        too many for the limit, which `start_timeout` sets";
            attempt.error(ErrorKind::TimedOut, text)
        };
        let _turn = self.0.turn(deadline).ok_or_else(busy)?;
        let mut running = self.0.running();
        let mut deaths = 0;
        loop {
            let server = match running.take() {
                Some(server) => running.insert(server),
                None => running.insert(self.0.settings.start(deadline)?),
            };
            let copies: Result<_, _> = descriptors.iter().map(OwnedFd::try_clone).collect();
            let copies = copies.map_err(|error| attempt.system("asking the fork server", error))?;
            let outgoing = Outgoing::new(Kind::Fork, &head, &environment, copies);
            let outgoing = outgoing.map_err(|error| attempt.system("asking the fork server", error))?;
            let answer = server.ask(outgoing, deadline).map_err(|errno| {
                // Whatever it was about to do, nobody would know.
                end_with_what_it_made(&mut running);
                system(errno)
            })?;
            match answer {
                Answer::Forked(pid) => {
                    let pidfd = attempt.pidfd_of(pid)?;
                    return Ok(Made { pid: pid.unsigned_abs(), pidfd, stdin, stdout, stderr });
                }
                Answer::NotForked(errno) => {
                    return Err(attempt.system("the fork server can not fork", errno));
                }
                // In time it would answer, when nobody expects it: so it ends, too.
                Answer::Nothing | Answer::Died => {
                    let late = matches!(answer, Answer::Nothing);
                    if let Some(pid) = end(&mut running) {
                        let pidfd = attempt.pidfd_of(pid)?;
                        return Ok(Made { pid: pid.unsigned_abs(), pidfd, stdin, stdout, stderr });
                    }
                    if late {
                        return Err(attempt.timed_out(false));
                    }
                    deaths += 1;
                    if deaths == 2 {
                        let reason =
                            "the fork server died, and so did the next one, when it was asked to fork";
                        return Err(attempt.error(ErrorKind::ForkServer, reason));
                    }
                }
            }
        }
    }
}

/// Kills the server, if it is not dead; returns the id of the copy that it has made and not told of.
fn end(running: &mut Option<Running>) -> Option<i32> {
    let Running { process, word, .. } = running.take()?;
    // Reaps it: from here on nobody writes the word.
    drop(process);
    let mut id = [0; 4];
    let length = pread(&word, &mut id, 0).unwrap_or(0);
    Some(i32::from_ne_bytes(id)).filter(|&id| length == 4 && id != 0)
}

/// Kills the server, and the copy that it has made and not told of.
fn end_with_what_it_made(running: &mut Option<Running>) {
    if let Some(Ok(pidfd)) = end(running).map(open_pidfd) {
        drop(Unstarted(Some(pidfd)));
    }
}

/// What came of a request.
enum Answer {
    Forked(i32),
    NotForked(Errno),
    /// The deadline has passed, and the server is stopped or has had [`ANSWER`] as well.
    Nothing,
    Died,
}

impl Running {
    fn ask(&mut self, mut outgoing: Outgoing, deadline: Option<Instant>) -> Result<Answer, Errno> {
        pwrite(&self.word, &[0; 4], 0)?;
        let last = deadline.map(|deadline| deadline.max(Instant::now() + ANSWER));
        let mut deadline = deadline;
        let mut sent = false;
        loop {
            if !sent {
                sent = match outgoing.send(self.socket.as_fd(), Patience::Return) {
                    Ok(sent) => sent,
                    Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Answer::Died),
                    Err(errno) => return Err(errno),
                };
            }
            let events = if sent { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let waited = [(self.process.as_fd(), PollFlags::IN), (self.socket.as_fd(), events)];
            let [ended, talks] = poll::ready(waited, deadline)?;
            if !ended && !talks {
                // It is the start that is late, maybe; a server that works is not killed for that.
                if deadline == last || status::is_stopped(self.process.as_fd()) {
                    return Ok(Answer::Nothing);
                }
                deadline = last;
                continue;
            }
            match self.incoming.receive(self.socket.as_fd(), Patience::Return) {
                Ok(Received::Message(message)) => match (message.kind, message.head::<i32>()) {
                    (Kind::Forked, Ok(pid)) => return Ok(Answer::Forked(pid)),
                    (Kind::NotForked, Ok(errno)) => {
                        return Ok(Answer::NotForked(Errno::from_raw_os_error(errno)));
                    }
                    _ => return Err(Errno::PROTO),
                },
                Ok(Received::Nothing) if ended => return Ok(Answer::Died),
                Ok(Received::Nothing) => {}
                Ok(Received::Closed) => return Ok(Answer::Died),
                Err(_) => return Err(Errno::PROTO),
            }
        }
    }
}

/// What the server gets as its arguments.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    socket: Handed<OwnedFd>,
    word: Handed<OwnedFd>,
    preload: Option<Preload>,
}

impl Settings {
    /// Starts a server and waits until it is ready.
    fn start(&self, deadline: Option<Instant>) -> Result<Running, Error> {
        let system = |errno: Errno| Error::system("the fork server was not started", errno);
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(system)?;
        let word = wire::memfd("crossproc-fork").map_err(system)?;
        ftruncate(&word, copies::WORD).map_err(system)?;
        let setup = Setup {
            socket: Handed(theirs),
            word: Handed(
                word.try_clone().map_err(|error| Error::system("the fork server was not started", error))?,
            ),
            preload: self.preload.clone(),
        };
        let mut builder = Process::builder().name(NAME).stdin(Stdio::null()).start_method(StartMethod::Spawn);
        if let Some(executable) = &self.executable {
            builder = builder.executable(executable);
        }
        if let Some(deadline) = deadline {
            builder = builder.start_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let mut process = builder.daemon(false).kill_on_drop(true).unlisted().spawn_named(NAME, setup)?;
        let mut incoming = Incoming::default();
        let waited = [(process.as_fd(), PollFlags::IN), (socket.as_fd(), PollFlags::IN)];
        let [_, talks] = poll::ready(waited, deadline).map_err(system)?;
        if talks {
            if let Ok(Received::Message(message)) = incoming.receive(socket.as_fd(), Patience::Return) {
                if message.kind == Kind::Ready {
                    return Ok(Running { process, socket, incoming, word });
                }
            }
        }
        // It has closed its socket and tells why, it has ended, or it is late.
        drop(socket);
        let limit = deadline.unwrap_or_else(|| Instant::now() + GRACE);
        let (kind, reason) = match process.join_deadline(limit) {
            Ok(Some(Err(Refused { reason, text }))) => (reason.kind(), text),
            Ok(Some(Ok(()))) => (ErrorKind::ForkServer, "it ended".to_owned()),
            Ok(None) => {
                let text = "its preload function did not return in time; `start_timeout` sets the limit, or call \
                            `ForkServer::start` before";
                (ErrorKind::TimedOut, text.to_owned())
            }
            Err(error) => (ErrorKind::ForkServer, error.to_string()),
        };
        Err(Error::new(kind, format!("the fork server was not started: {reason}")))
    }
}

/// What the function of the server is called by: it is there in every program with this crate.
pub(crate) const NAME: &str = "crossproc fork server";

/// The function of the server.
pub(crate) fn serve(setup: Setup) -> Result<(), Refused> {
    let Setup { socket: Handed(socket), word: Handed(word), preload } = setup;
    let refused = |text: String| Refused { reason: Reason::ForkServer, text };
    let Some(parent) = parent() else { return Ok(()) };
    if let Some(Preload(function, arguments)) = preload {
        let callable = entry::resolve(&function)?;
        let call = Call { arguments: &arguments, descriptors: Vec::new(), started: &mut || () };
        match manner::ending_with(parent, || callable(call)).map_err(refused)? {
            Outcome::Returned { .. } => {}
            Outcome::Refused(refused) => return Err(refused),
            Outcome::Panicked { message, location } => {
                let place = location.map(|location| format!(" at {location}")).unwrap_or_default();
                return Err(refused(format!("its preload function panicked{place}: {message}")));
            }
            Outcome::Unsendable(text) => return Err(refused(text)),
        }
    }
    copies::flush();
    // Ctrl-C is for the copies. What comes here meanwhile is lost on nobody.
    copies::block_interrupts();
    let sibling = Sibling::new(&word).map_err(|error| {
        refused(format!(
            "it can not make copies of itself: {error}. Its preload function, and constructors of the program, \
             must leave no thread behind (a handle to a segment has one); and the kernel has to be built with \
             CONFIG_CHECKPOINT_RESTORE"
        ))
    })?;
    drop(word);
    let own = child::CHANNEL.get().get();
    let depth = current::depth();
    // What every copy would have to find out.
    let own_environment = environment::with(Vec::new());
    let _ = entry::home();
    let mut incoming = Incoming::default();
    let mut say = Outgoing::new(Kind::Ready, &(), &[], Vec::new());
    loop {
        let said = say.and_then(|mut say| Ok(say.send(socket.as_fd(), Patience::Sleep)?));
        let waited = [(socket.as_fd(), PollFlags::IN), (parent.as_fd(), PollFlags::IN)];
        let Ok([true, false]) = poll::ready(waited, None) else { return Ok(()) };
        let Ok(Received::Message(message)) = incoming.receive(socket.as_fd(), Patience::Sleep) else {
            return Ok(());
        };
        let (Ok(_), Kind::Fork, Ok(copy)) = (said, message.kind, message.head::<Copy>()) else {
            return Ok(());
        };
        let mut descriptors = message.descriptors.into_iter();
        let (Some(theirs), Some(directory)) = (descriptors.next(), descriptors.next()) else { return Ok(()) };
        let streams = copy.streams.map(|given| if given { descriptors.next() } else { None });
        let asked_for = message.body;
        let mut place = Some((theirs, directory, streams));
        let forked = sibling.fork(|| {
            for inherited in [Some(socket.as_fd()), own.map(AsFd::as_fd), Some(parent.as_fd())] {
                inherited.into_iter().for_each(copies::close_inherited);
            }
            copies::set_blocked_signals(copy.blocked_signals);
            place.take().map_or(child::FAILED, |(socket, directory, streams)| {
                child::copied(Place {
                    socket,
                    parent: parent.pid(),
                    depth,
                    streams,
                    directory: Some(directory),
                    // Usually nothing has changed.
                    environment: if asked_for == own_environment {
                        Vec::new()
                    } else {
                        environment::changes_to(&asked_for)
                    },
                })
            })
        });
        say = match forked {
            Ok(pid) => Outgoing::new(Kind::Forked, &pid, &[], Vec::new()),
            Err(error) => Outgoing::new(Kind::NotForked, &error.raw_os_error().unwrap_or(0), &[], Vec::new()),
        };
    }
}

impl fmt::Debug for ForkServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkServer").field("pid", &self.pid()).finish_non_exhaustive()
    }
}
