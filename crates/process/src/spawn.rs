//! The start method `Spawn`: the executable of this process is started again (`posix_spawn`), and asked over
//! a socket to call one function.
//!
//! `posix_spawn` costs the same however large this process is, and it is safe in a process with threads.
//! Nothing may be asked of [`Command`] that makes it fork instead: `pre_exec`, `uid`, `gid`, `groups`. So the
//! socket gets into the child in the only way that is left: as its standard input, which the child puts right
//! again.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::current::{DEPTH, MAX_DEPTH, depth};
use crate::error::{Error, ErrorKind};
use crate::stdio::{Connection, Stdio};
use crate::wire::{Fault, Function, Incoming, Kind, Outgoing, Patience, Received, Refused, Request};
use crate::{ExitStatus, hook, linux, poll, status};

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    /// What `ps` shows as the name of the program.
    pub(crate) argv0: OsString,
    /// Changes of the environment, in order; `None` removes.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
    pub(crate) current_dir: Option<PathBuf>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) executable: Option<PathBuf>,
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

/// Starts the process and returns when it has its arguments and is about to call the function.
pub(crate) fn start(
    plan: Plan,
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
    let executable = plan.executable.unwrap_or_else(|| "/proc/self/exe".into());
    let attempt = Attempt {
        name: plan.name,
        executable: executable.display().to_string(),
        directory: plan.current_dir.as_ref().map(|directory| directory.display().to_string()),
        limit: plan.start_timeout,
    };

    // Before the socket: where there is no standard input, that would take its number.
    let (input, stdin) =
        connect_stdin(plan.stdin).map_err(|error| attempt.system("setting up its standard input", error))?;
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| attempt.system("making a socket", errno))?;
    let request = Request { name: attempt.name.clone(), function, stdin: input.is_some() };
    let descriptors = input.into_iter().chain(handles).collect();
    let mut outgoing = Outgoing::new(Kind::Request, &request, arguments, descriptors)
        .map_err(|error| attempt.system("preparing its arguments", error))?;

    let mut command = Command::new(executable);
    command.arg0(&plan.argv0).stdin(theirs).stdout(plan.stdout.into_std()).stderr(plan.stderr.into_std());
    if let Some(directory) = plan.current_dir {
        command.current_dir(directory);
    }
    for (variable, value) in plan.environment {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    command.env(hook::MARKER, "1").env(DEPTH, depth.to_string());
    let deadline = Instant::now().checked_add(plan.start_timeout);
    let mut child = command.spawn().map_err(|error| attempt.cannot_start(error))?;
    // Closes our copy of the child's end, so that the socket tells when the child has closed it.
    drop(command);

    let pid = child.id();
    let pidfd = match open_pidfd(pid) {
        Ok(pidfd) => pidfd,
        // SIGCHLD is ignored or somebody waits for all children: it has ended and is gone.
        Err(Errno::SRCH | Errno::CHILD) => return Err(attempt.ended_early(false, ExitStatus::Unknown)),
        Err(errno) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(attempt.system("opening a pidfd", errno));
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // std's `Child` neither kills nor reaps when it is dropped. From here the pidfd alone stands for the
    // process.
    drop(child);

    let unstarted = Unstarted(Some(pidfd));
    let mut incoming = Incoming::default();
    attempt.until_started(unstarted.pidfd(), socket.as_fd(), &mut outgoing, &mut incoming, deadline)?;
    Ok(Started { pid, pidfd: unstarted.keep(), socket, incoming, stdin, stdout, stderr })
}

/// What is being started, for error messages.
struct Attempt {
    name: String,
    executable: String,
    directory: Option<String>,
    limit: Duration,
}

impl Attempt {
    /// Sends the request and waits for `Started`. Every way in which that can fail to come ends here.
    fn until_started(
        &self,
        pidfd: BorrowedFd<'_>,
        socket: BorrowedFd<'_>,
        outgoing: &mut Outgoing,
        incoming: &mut Incoming,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let (mut sent, mut said_hello, mut closed) = (false, false, false);
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
                return Err(self.timed_out(said_hello));
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
                let status = status::reap(pidfd).unwrap_or(ExitStatus::Unknown);
                return Err(self.ended_early(said_hello, status));
            }
        }
    }

    fn error(&self, kind: ErrorKind, reason: impl fmt::Display) -> Error {
        Error::new(kind, format!("process `{}` was not started: {reason}", self.name))
    }

    fn system(&self, step: &str, error: impl Into<io::Error>) -> Error {
        Error::system(&format!("process `{}` was not started: {step}", self.name), error)
    }

    fn fault(&self, fault: Fault) -> Error {
        Error::from_fault(&format!("process `{}` was not started", self.name), fault)
    }

    fn cannot_start(&self, error: io::Error) -> Error {
        let Self { name, executable, .. } = self;
        // The system does not say which of the two it did not find.
        let place = self.directory.as_ref().map(|d| format!(" in the directory `{d}`")).unwrap_or_default();
        let text =
            format!("process `{name}` was not started: `{executable}` can not be executed{place}: {error}");
        Error::with_source(ErrorKind::CannotStart, text, error)
    }

    fn ended_early(&self, said_hello: bool, status: ExitStatus) -> Error {
        let advice = if said_hello {
            "it crashed, or a constructor of the program ended it"
        } else {
            "is it a program that is linked with crossproc?"
        };
        let executable = &self.executable;
        let text = format!("`{executable}` ended with {status} before it called the function; {advice}");
        self.error(ErrorKind::EndedEarly, text)
    }

    fn timed_out(&self, said_hello: bool) -> Error {
        let Self { executable, limit, .. } = self;
        let advice = if said_hello {
            "its arguments take long to deserialise, or a constructor of the program hangs;"
        } else {
            "is it a program that is linked with crossproc?"
        };
        let text = format!(
            "`{executable}` did not call the function within {limit:?} and was killed; {advice} `start_timeout` \
             sets the limit",
        );
        self.error(ErrorKind::TimedOut, text)
    }

    fn refused(&self, refused: Refused) -> Error {
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

/// The descriptor that becomes the child's standard input, and our end if it is a pipe.
fn connect_stdin(stdin: Stdio) -> io::Result<(Option<OwnedFd>, Option<ChildStdin>)> {
    Ok(match stdin.0 {
        Connection::Inherit => match fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
            Ok(descriptor) => (Some(descriptor), None),
            // This process has none.
            Err(Errno::BADF) => (None, None),
            Err(errno) => return Err(errno.into()),
        },
        // What the child opens if it gets nothing.
        Connection::Null => (None, None),
        Connection::Piped => {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            (Some(read), Some(ChildStdin::from(write)))
        }
        Connection::Descriptor(descriptor) => (Some(descriptor), None),
    })
}

/// A pidfd of the child `pid` of this process, and of no other process that has got the same id since.
fn open_pidfd(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), look)?;
    Ok(pidfd)
}

/// A child that has not come to its function: if this is dropped, it is killed and reaped.
struct Unstarted(Option<OwnedFd>);

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

/// SIGKILL, and then no zombie is left.
pub(crate) fn kill_and_reap(pidfd: BorrowedFd<'_>) {
    // Fails only if it has ended.
    let _ = linux::send_signal(pidfd, libc::SIGKILL);
    loop {
        let _ = poll::ready([(pidfd, PollFlags::IN)], None);
        if status::reap(pidfd).is_some() {
            return;
        }
        status::await_debugger();
    }
}
