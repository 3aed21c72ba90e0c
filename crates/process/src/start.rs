//! The part of starting a process that is the same for all start methods: what is refused, the socket, and
//! waiting until the process has come to its function, or has not.
//!
//! How the process is made is in `spawn.rs`, `fork_server.rs` and `copies.rs`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::child::{self, Place};
use crate::current::{DEPTH, MAX_DEPTH, depth};
use crate::error::{Error, ErrorKind};
use crate::stdio::{Connection, Stdio};
use crate::wire::{Fault, Function, Incoming, Kind, Manner, Outgoing, Patience, Received, Refused, Request};
use crate::{ExitStatus, Fork, StartMethod, copies, environment, hook, linux, poll, spawn, status};

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) method: StartMethod,
    /// What `ps` shows as the name of the program.
    pub(crate) argv0: OsString,
    /// The rest of the command line.
    pub(crate) arguments: Vec<OsString>,
    /// Changes of the environment, in order; `None` removes.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) executable: Option<PathBuf>,
    pub(crate) manner: Manner,
    pub(crate) start_timeout: Duration,
}

/// A child that is about to call its function.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) socket: OwnedFd,
    pub(crate) incoming: Incoming,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

/// A child that has been made and has not said anything.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

/// Starts the process and returns when it has its arguments and is about to call the function.
pub(crate) fn start(
    mut plan: Plan,
    function: Function,
    arguments: &[u8],
    handles: Vec<OwnedFd>,
) -> Result<Started, Error> {
    if !hook::has_run() {
        return Err(Error::new(
            ErrorKind::NotInitialised,
            "no process can be started: the start-up code of crossproc (a constructor in `.init_array`) has not \
             acted in this process, so it would not in a child either. The program was linked without it, or it \
             has privileges that its caller does not have (set-user-id, file capabilities): then it takes no \
             orders from its environment",
        ));
    }
    let depth = depth() + 1;
    if depth >= MAX_DEPTH {
        return Err(Error::new(
            ErrorKind::TooDeep,
            format!(
                "process `{}` was not started: it would be at depth {depth} of processes that start each other \
                 ({DEPTH}={}), and {MAX_DEPTH} is refused. Usually that is a function that starts itself \
                 without an end",
                plan.name,
                depth - 1,
            ),
        ));
    }
    plan.environment.push((DEPTH.into(), Some(depth.to_string().into())));
    let attempt = Attempt::new(&plan);
    attempt.check(&plan)?;

    // An executed program gets the socket as its standard input, and the real one by the socket.
    let executed = matches!(plan.method, StartMethod::Spawn);
    let (mut input, mut stdin) = (None, None);
    if executed {
        let connected = connect(std::mem::take(&mut plan.stdin), Stream::Input);
        (input, stdin) = connected.map_err(|error| attempt.streams(error))?;
    }
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .and_then(|(ours, theirs)| Ok((above_streams(ours)?, above_streams(theirs)?)))
        .map_err(|errno| attempt.system("making a socket", errno))?;
    let request = Request {
        name: attempt.name.clone(),
        function,
        stdin: input.is_some(),
        manner: std::mem::take(&mut plan.manner),
    };
    let descriptors = input.into_iter().chain(handles).collect();
    let mut outgoing = Outgoing::new(Kind::Request, &request, arguments, descriptors)
        .map_err(|error| attempt.system("preparing its arguments", error))?;

    let deadline = Instant::now().checked_add(plan.start_timeout);
    let mut incoming = Incoming::default();
    let mut made = match plan.method.clone() {
        StartMethod::Spawn => spawn::make(&attempt, plan, theirs)?,
        StartMethod::ForkServer(server) => server.make(&attempt, plan, theirs, deadline)?,
        StartMethod::Fork(fork) => make_copy(fork, &attempt, plan, &socket, theirs, depth)?,
    };
    if executed {
        made.stdin = stdin.take();
    }
    let Made { pid, pidfd, stdin, stdout, stderr } = made;
    // Only now is the request sent: a child for which this process has no pidfd calls nothing.
    let unstarted = Unstarted(Some(pidfd));
    attempt.until_started(unstarted.pidfd(), socket.as_fd(), &mut outgoing, &mut incoming, deadline)?;
    Ok(Started { pid, pidfd: unstarted.keep(), socket, incoming, stdin, stdout, stderr })
}

/// The start method [`Fork`].
fn make_copy(
    fork: Fork,
    attempt: &Attempt,
    plan: Plan,
    ours: &OwnedFd,
    theirs: OwnedFd,
    depth: u32,
) -> Result<Made, Error> {
    if !fork.threads {
        let threads = copies::other_threads().map_err(|error| attempt.system("counting threads", error))?;
        if threads > 0 {
            return Err(attempt.error(
                ErrorKind::Threads,
                format_args!(
                    "this process has {threads} threads beside the calling one, and in a copy of it nobody would \
                     release the locks that they have. Use another start method, or say `allow_threads(true)` if \
                     you know that it does no harm"
                ),
            ));
        }
    }
    let streams = Streams::connect(attempt, plan.stdin, plan.stdout, plan.stderr)?;
    let directory = plan.current_dir.map(|directory| attempt.open_directory(directory)).transpose()?;
    let Streams { theirs: streams, stdin, stdout, stderr } = streams;
    let place = Place {
        socket: theirs,
        parent: std::process::id(),
        depth,
        streams,
        directory,
        environment: plan.environment,
    };
    // What the copy has to close and what this process keeps.
    let mut own = Some((stdin, stdout, stderr));
    let mut place = Some(place);
    let pid = copies::fork(fork, || {
        copies::close_inherited(ours.as_fd());
        drop(own.take());
        place.take().map_or(child::FAILED, child::copied)
    })
    .map_err(|error| attempt.system("fork", error))?;
    drop(place);
    let (stdin, stdout, stderr) = own.unwrap_or_default();
    let pidfd = attempt.pidfd_of(pid)?;
    Ok(Made { pid: pid.unsigned_abs(), pidfd, stdin, stdout, stderr })
}

/// What is being started, for error messages.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) name: String,
    /// What becomes the process: "`/bin/program`", "the copy of this process".
    what: String,
    directory: Option<String>,
    limit: Duration,
}

impl Attempt {
    fn new(plan: &Plan) -> Self {
        let what = match (&plan.method, &plan.executable) {
            (StartMethod::Spawn, None) => "`/proc/self/exe`".to_owned(),
            (StartMethod::Spawn, Some(path)) => format!("`{}`", path.display()),
            (StartMethod::ForkServer(_), _) => "the copy of the fork server".to_owned(),
            (StartMethod::Fork(_), _) => "the copy of this process".to_owned(),
        };
        let directory = plan.current_dir.as_ref().map(|directory| directory.display().to_string());
        Self { name: plan.name.clone(), what, directory, limit: plan.start_timeout }
    }

    /// What no process can have, and what only an executed program can have.
    fn check(&self, plan: &Plan) -> Result<(), Error> {
        for (variable, value) in &plan.environment {
            if !environment::can_hold(variable, value.as_deref()) {
                return Err(self.error(
                    ErrorKind::InvalidName,
                    format_args!(
                        "its environment can not have the variable {variable:?} as asked for: the name must not be \
                         empty and have neither `=` nor a 0 byte in it, the value no 0 byte"
                    ),
                ));
            }
        }
        let unsupported = |reason: &str| Err(self.error(ErrorKind::Unsupported, reason));
        match plan.method {
            StartMethod::Spawn => Ok(()),
            StartMethod::ForkServer(_) if !copies::CAN_HAVE_SIBLINGS => unsupported(copies::NO_SIBLINGS),
            _ if !plan.arguments.is_empty() => unsupported(
                "a copy has the command line of its original; `args` needs the start method `Spawn`",
            ),
            StartMethod::ForkServer(_) if plan.executable.is_some() => unsupported(
                "a copy of the fork server runs the fork server's program; say `ForkServer::executable` instead",
            ),
            StartMethod::Fork(_) if plan.executable.is_some() => unsupported(
                "a copy of this process runs its program; another one needs the start method `Spawn`",
            ),
            _ => Ok(()),
        }
    }

    /// Sends the request and waits for `Started`. Every way in which that can fail to come ends here.
    ///
    /// An error means that the function was not called. So one who says `Started` in the very instant in which
    /// he is killed for being late counts as started (and killed).
    fn until_started(
        &self,
        pidfd: BorrowedFd<'_>,
        socket: BorrowedFd<'_>,
        outgoing: &mut Outgoing,
        incoming: &mut Incoming,
        mut deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let (mut sent, mut said_hello, mut closed, mut late) = (false, false, false, false);
        loop {
            if !sent {
                sent = match outgoing.send(socket, Patience::Return) {
                    Ok(sent) => sent,
                    // It has closed its end. Why, is found out below.
                    Err(Errno::PIPE | Errno::CONNRESET) => true,
                    Err(errno) => return Err(self.system("sending its arguments", errno)),
                };
            }
            let events = if sent { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let end = (pidfd, PollFlags::IN);
            let waited = if closed {
                poll::ready([end], deadline).map(|[ended]| [ended, false])
            } else {
                poll::ready([end, (socket, events)], deadline)
            };
            let [ended, talks] = waited.map_err(|errno| self.system("waiting for it", errno))?;
            if !ended && !talks {
                if linux::send_signal(pidfd, libc::SIGKILL).is_err() {
                    return Err(self.timed_out(said_hello));
                }
                // What it has said is known when it has ended.
                (late, deadline) = (true, None);
                continue;
            }
            while !closed {
                match incoming.receive(socket, Patience::Return).map_err(|fault| self.fault(fault))? {
                    Received::Nothing => break,
                    Received::Closed => closed = true,
                    Received::Message(message) => match message.kind {
                        Kind::Hello => said_hello = true,
                        Kind::Started => return Ok(()),
                        Kind::Refused => {
                            return Err(self.refused(message.head().map_err(|fault| self.fault(fault))?));
                        }
                        _ => return Err(self.fault(Fault::Garbled)),
                    },
                }
            }
            if ended {
                if late {
                    return Err(self.timed_out(said_hello));
                }
                let status = status::reap(pidfd).unwrap_or(ExitStatus::Unknown);
                return Err(self.ended_early(said_hello, status));
            }
        }
    }

    fn streams(&self, error: io::Error) -> Error {
        self.system("setting up its standard streams", error)
    }

    /// The directory as a descriptor that can be given to a copy.
    pub(crate) fn open_directory(&self, directory: PathBuf) -> Result<OwnedFd, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, directory, flags, Mode::empty()).map_err(|errno| self.cannot_start(errno.into()))
    }

    /// A pidfd of the child `pid`, which nobody has reaped, if it is there at all.
    pub(crate) fn pidfd_of(&self, pid: i32) -> Result<OwnedFd, Error> {
        match open_pidfd(pid) {
            Ok(pidfd) => Ok(pidfd),
            // SIGCHLD is ignored or somebody waits for all children: it has ended and is gone.
            Err(Errno::SRCH | Errno::CHILD) => Err(self.ended_early(false, ExitStatus::Unknown)),
            Err(errno) => {
                kill_and_reap_by_id(pid);
                Err(self.system("opening a pidfd", errno))
            }
        }
    }

    pub(crate) fn error(&self, kind: ErrorKind, reason: impl fmt::Display) -> Error {
        Error::new(kind, format!("process `{}` was not started: {reason}", self.name))
    }

    pub(crate) fn system(&self, step: &str, error: impl Into<io::Error>) -> Error {
        Error::system(&format!("process `{}` was not started: {step}", self.name), error)
    }

    pub(crate) fn fault(&self, fault: Fault) -> Error {
        Error::from_fault(&format!("process `{}` was not started", self.name), fault)
    }

    pub(crate) fn cannot_start(&self, error: io::Error) -> Error {
        let Self { name, what, .. } = self;
        // The system does not say which of the two it did not find.
        let place = self.directory.as_ref().map(|d| format!(" in the directory `{d}`")).unwrap_or_default();
        let text = format!("process `{name}` was not started: {what} can not be executed{place}: {error}");
        Error::with_source(ErrorKind::CannotStart, text, error)
    }

    pub(crate) fn ended_early(&self, said_hello: bool, status: ExitStatus) -> Error {
        let advice = if !self.what.starts_with('`') {
            "it crashed, or was killed"
        } else if said_hello {
            "it crashed, or a constructor of the program ended it"
        } else {
            "is it a program that is linked with crossproc?"
        };
        let what = &self.what;
        let text = format!("{what} ended with {status} before it called the function; {advice}");
        self.error(ErrorKind::EndedEarly, text)
    }

    pub(crate) fn timed_out(&self, said_hello: bool) -> Error {
        let Self { what, limit, .. } = self;
        let advice = if !what.starts_with('`') {
            "its arguments take long to deserialise, it was stopped, or it waits for a lock that was not free when \
             it was copied;"
        } else if said_hello {
            "its arguments take long to deserialise, or a constructor of the program hangs;"
        } else {
            "is it a program that is linked with crossproc?"
        };
        let text = format!(
            "{what} did not call the function within {limit:?} and was killed; {advice} `start_timeout` \
             sets the limit",
        );
        self.error(ErrorKind::TimedOut, text)
    }

    pub(crate) fn refused(&self, refused: Refused) -> Error {
        let kind = refused.reason.kind();
        let advice = match kind {
            ErrorKind::WrongBuild => {
                ". In another build a function can be called by name only: `register!` and `spawn_named`"
            }
            _ => "",
        };
        self.error(kind, format_args!("{}{advice}", refused.text))
    }
}

/// One of the standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Input,
    Output,
    Errors,
}

/// What becomes the stream of the child, nothing for /dev/null; and our end if it is a pipe.
fn connect<P: From<OwnedFd>>(stdio: Stdio, stream: Stream) -> io::Result<(Option<OwnedFd>, Option<P>)> {
    let inherited = match stream {
        Stream::Input => rustix::stdio::stdin(),
        Stream::Output => rustix::stdio::stdout(),
        Stream::Errors => rustix::stdio::stderr(),
    };
    Ok(match stdio.0 {
        Connection::Inherit => match fcntl_dupfd_cloexec(inherited, 3) {
            Ok(descriptor) => (Some(descriptor), None),
            // This process has none.
            Err(Errno::BADF) => (None, None),
            Err(errno) => return Err(errno.into()),
        },
        // What the child opens if it gets nothing.
        Connection::Null => (None, None),
        Connection::Piped => {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            let (theirs, ours) = if stream == Stream::Input { (read, write) } else { (write, read) };
            (Some(above_streams(theirs)?), Some(P::from(above_streams(ours)?)))
        }
        Connection::Descriptor(descriptor) => (Some(above_streams(descriptor)?), None),
    })
}

/// The same file under another number if it has that of a standard stream, because this process has closed
/// that one: a copy puts other files there.
fn above_streams(descriptor: OwnedFd) -> Result<OwnedFd, Errno> {
    if descriptor.as_raw_fd() < 3 { fcntl_dupfd_cloexec(descriptor, 3) } else { Ok(descriptor) }
}

/// The streams of a copy, and our ends.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) theirs: [Option<OwnedFd>; 3],
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
}

impl Streams {
    pub(crate) fn connect(
        attempt: &Attempt,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
    ) -> Result<Self, Error> {
        let connect = || {
            let (input, stdin) = connect(stdin, Stream::Input)?;
            let (output, stdout) = connect(stdout, Stream::Output)?;
            let (errors, stderr) = connect(stderr, Stream::Errors)?;
            Ok(Self { theirs: [input, output, errors], stdin, stdout, stderr })
        };
        connect().map_err(|error| attempt.streams(error))
    }
}

/// A pidfd of the child `pid` of this process, and of no other process that has got the same id since.
pub(crate) fn open_pidfd(pid: i32) -> Result<OwnedFd, Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), look)?;
    Ok(pidfd)
}

/// A child that has not come to its function: if this is dropped, it is killed and reaped.
pub(crate) struct Unstarted(pub(crate) Option<OwnedFd>);

impl Unstarted {
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("only `keep` takes it").as_fd()
    }

    fn keep(mut self) -> OwnedFd {
        self.0.take().expect("only `keep` takes it")
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.0 {
            kill_and_reap(pidfd.as_fd());
        }
    }
}

/// The same where there is no pidfd: the id of a child that nobody has reaped is nobody else's.
fn kill_and_reap_by_id(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        if rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok() {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        }
    }
}

/// SIGKILL, and then no zombie is left. False if this process may not kill it, since it has changed its user:
/// then it goes on.
pub(crate) fn kill_and_reap(pidfd: BorrowedFd<'_>) -> bool {
    if linux::send_signal(pidfd, libc::SIGKILL).is_err_and(|error| error.raw_os_error() != Some(libc::ESRCH))
    {
        return status::reap(pidfd).is_some();
    }
    loop {
        let _ = poll::ready([(pidfd, PollFlags::IN)], None);
        if status::reap(pidfd).is_some() {
            return true;
        }
        status::await_debugger();
    }
}
