//! The life of a child: from its constructor, or from the copy that it is, to its exit code.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::sync::OnceLock;

use crossproc_segment::PerProcess;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::process::{PidfdFlags, fchdir, getppid, pidfd_open};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use serde::Serialize;

use crate::call::{self, Call, Outcome};
use crate::current::{self, Parent};
use crate::wire::{
    Fault, Incoming, Kind, Message, Outgoing, Panicked, Patience, Reason, Received, Refused, Request, clip,
};
use crate::{copies, entry, linux, manner};

/// The function returned and its result is on the way.
const DONE: i32 = 0;
/// The function was not called, or its result can not be sent (EX_SOFTWARE of sysexits.h).
pub(crate) const FAILED: i32 = 70;
/// The function panicked; the code of a panicking `main`.
const PANICKED: i32 = 101;

/// Runs the function that the parent asks for, in a process that has been executed; returns the exit code.
///
/// `later_constructors` is called when the process looks to them as it will to the function.
pub(crate) fn main(later_constructors: impl FnOnce()) -> i32 {
    match connect() {
        Ok((socket, parent)) => {
            let channel = CHANNEL.get().get_or_init(|| socket);
            send(channel, Kind::Hello, &(), &[], Vec::new());
            answer(channel, parent, set_stdin, later_constructors)
        }
        Err(text) => {
            eprintln!("crossproc: {text}");
            FAILED
        }
    }
}

/// What makes a copy of a process into the child that was asked for.
#[derive(Debug)]
pub(crate) struct Place {
    /// The child's end of the socket.
    pub(crate) socket: OwnedFd,
    pub(crate) parent: u32,
    pub(crate) depth: u32,
    /// Standard input, output and error; /dev/null where there is none.
    pub(crate) streams: [Option<OwnedFd>; 3],
    /// The working directory, if it is another one.
    pub(crate) directory: Option<OwnedFd>,
    /// Changes of the environment; `None` removes.
    pub(crate) environment: Vec<(OsString, Option<OsString>)>,
}

/// Runs the function that the parent asks for, in a copy of the parent or of its fork server; returns the exit
/// code.
pub(crate) fn copied(place: Place) -> i32 {
    let channel = CHANNEL.get().get_or_init(|| place.socket);
    // If it has ended, nobody is interested.
    let Some(parent) = open_parent(place.parent) else { return FAILED };
    current::set_depth(place.depth);
    copies::change_environment(place.environment);
    let settle = || -> Result<(), Errno> {
        set_streams(place.streams)?;
        place.directory.map_or(Ok(()), fchdir)
    };
    let settled = settle();
    let stdin_is_set = |_: Option<OwnedFd>| settled;
    answer(channel, parent, stdin_is_set, || ())
}

/// Gets the request, calls the function, sends the result; returns the exit code.
fn answer(
    channel: &'static OwnedFd,
    parent: Parent,
    set_stdin: impl FnOnce(Option<OwnedFd>) -> Result<(), Errno>,
    later_constructors: impl FnOnce(),
) -> i32 {
    let (request, mut message) = match receive_request(channel) {
        Ok(received) => received,
        Err(code) => return code,
    };
    let stdin = if request.stdin && !message.descriptors.is_empty() {
        Some(message.descriptors.remove(0))
    } else {
        None
    };
    let system = |text| refuse(channel, Refused { reason: Reason::System, text });
    if let Err(errno) = set_stdin(stdin) {
        let error = io::Error::from(errno);
        return system(format!("its standard streams or its directory can not be set up: {error}"));
    }
    // What `ps` and `top` show. The kernel keeps 15 bytes.
    if let Ok(name) = CString::new(clip(&request.name, 15)) {
        let _ = rustix::thread::set_name(&name);
    }
    if let Err(text) = manner::adopt(&request.manner) {
        return system(text);
    }
    let daemon = request.manner.daemon;
    let parent = current::become_child(request.name, daemon, parent);
    if daemon {
        if let Err(text) = manner::end_with(parent) {
            return system(text);
        }
    }
    report_panics();
    later_constructors();

    let callable = match entry::resolve(&request.function) {
        Ok(callable) => callable,
        Err(refused) => return refuse(channel, refused),
    };
    let outcome = callable(Call {
        arguments: &message.body,
        descriptors: message.descriptors,
        started: &mut || send(channel, Kind::Started, &(), &[], Vec::new()),
    });
    match outcome {
        Outcome::Returned { body, descriptors } => {
            send(channel, Kind::Returned, &(), &body, descriptors);
            DONE
        }
        Outcome::Panicked { message, location } => {
            send_panic(channel, &message, location);
            PANICKED
        }
        Outcome::Unsendable(text) => {
            send(channel, Kind::Unsendable, &clip(&text, 8192), &[], Vec::new());
            FAILED
        }
        Outcome::Refused(refused) => refuse(channel, refused),
    }
}

/// The socket to the parent; a static so that the panic hook finds it. A copy of this process has its own.
pub(crate) static CHANNEL: PerProcess<OnceLock<OwnedFd>> = PerProcess::new();

/// Takes the socket off standard input and makes sure that it comes from the parent process: an environment
/// that is passed on by a program in between must not make a child of somebody else.
fn connect() -> Result<(OwnedFd, Parent), String> {
    let hint = "is set, but standard input is not the socket of the process that started this one. It is set by \
                crossproc for its own children; remove it from the environment";
    let stranger = || format!("{} {hint}", crate::hook::MARKER);
    let socket = fcntl_dupfd_cloexec(stdin(), 3).map_err(|_| stranger())?;
    fill_standard_streams().map_err(|errno| format!("/dev/null: {}", io::Error::from(errno)))?;
    let peer = linux::peer_pid(socket.as_fd()).map_err(|_| stranger())?;
    let parent = getppid().filter(|parent| parent.as_raw_pid() == peer).ok_or_else(stranger)?;
    let gone = || "the process that started this one has ended".to_owned();
    let parent = open_parent(parent.as_raw_pid().unsigned_abs()).ok_or_else(gone)?;
    Ok((socket, parent))
}

/// The parent, if it is the process `pid` and has not ended.
fn open_parent(pid: u32) -> Option<Parent> {
    let parent = getppid().filter(|parent| parent.as_raw_pid().unsigned_abs() == pid)?;
    let pidfd = pidfd_open(parent, PidfdFlags::empty()).ok()?;
    // Had it died before pidfd_open, this process would have another parent by now.
    (getppid() == Some(parent)).then_some(Parent { pid, pidfd })
}

/// The request; or, if there is none, the exit code.
fn receive_request(channel: &OwnedFd) -> Result<(Request, Message), i32> {
    let not_understood = || "the request is not understood".to_owned();
    let text = match Incoming::default().receive(channel.as_fd(), Patience::Sleep) {
        Ok(Received::Message(message)) if message.kind == Kind::Request => match message.head() {
            Ok(request) => return Ok((request, message)),
            Err(_) => not_understood(),
        },
        Err(Fault::TooManyFiles) => {
            let text =
                "it may not have as many open files as its arguments bring; raise the limit (`ulimit -n`)";
            return Err(refuse(channel, Refused { reason: Reason::TooManyFiles, text: text.into() }));
        }
        Err(Fault::System(error)) => format!("the request can not be received: {error}"),
        // The parent has ended, or it learns from our Hello that the versions differ.
        Ok(Received::Closed | Received::Nothing) | Err(Fault::Version(_)) => return Err(FAILED),
        Ok(Received::Message(_)) | Err(Fault::Garbled) => not_understood(),
    };
    Err(refuse(channel, Refused { reason: Reason::System, text }))
}

/// Opens /dev/null in the place of standard output and standard error where this process has none, as std
/// does before `main`: what is opened or received later must not become a standard stream.
fn fill_standard_streams() -> Result<(), Errno> {
    while [stdout(), stderr()].iter().any(|stream| fcntl_getfd(stream) == Err(Errno::BADF)) {
        // The kernel takes the lowest number that is free, which is one of them.
        std::mem::forget(open("/dev/null", OFlags::RDWR, Mode::empty())?);
    }
    Ok(())
}

/// Puts the real standard input in the place of the socket, or /dev/null if there is none.
fn set_stdin(input: Option<OwnedFd>) -> Result<(), Errno> {
    dup2_stdin(match input {
        Some(input) => input,
        None => open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
    })
}

/// Puts what was asked for in the place of the streams that a copy has inherited.
fn set_streams([input, output, errors]: [Option<OwnedFd>; 3]) -> Result<(), Errno> {
    let or_null = |descriptor: Option<OwnedFd>| match descriptor {
        Some(descriptor) => Ok(descriptor),
        None => open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()),
    };
    set_stdin(input)?;
    dup2_stdout(or_null(output)?)?;
    dup2_stderr(or_null(errors)?)
}

/// Notes where panics happen. In a program that aborts on panic nothing can be caught, so there the hook
/// itself tells the parent.
fn report_panics() {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let (message, location) = call::note_panic(info);
        previous(info);
        if cfg!(panic = "abort") {
            if let Some(channel) = CHANNEL.get().get() {
                send_panic(channel, &message, location);
            }
        }
    }));
}

fn send_panic(channel: &OwnedFd, message: &str, location: Option<String>) {
    let location = location.map(|location| clip(&location, 4096).to_owned());
    send(channel, Kind::Panicked, &Panicked { location }, message.as_bytes(), Vec::new());
}

fn refuse(channel: &OwnedFd, refused: Refused) -> i32 {
    let refused = Refused { text: clip(&refused.text, 8192).to_owned(), ..refused };
    send(channel, Kind::Refused, &refused, &[], Vec::new());
    FAILED
}

/// Sends a message, or what stopped it. A parent that listens no more is no error: it has ended or lost
/// interest.
fn send(channel: &OwnedFd, kind: Kind, head: &impl Serialize, body: &[u8], descriptors: Vec<OwnedFd>) {
    let sent = Outgoing::new(kind, head, body, descriptors)
        .and_then(|mut outgoing| Ok(outgoing.send(channel.as_fd(), Patience::Sleep)?));
    if let Err(error) = sent {
        let gone = matches!(Errno::from_io_error(&error), Some(Errno::PIPE | Errno::CONNRESET));
        if !gone && kind == Kind::Returned {
            let text = format!("its result can not be sent: {error}");
            send(channel, Kind::Unsendable, &clip(&text, 8192), &[], Vec::new());
        }
    }
}
