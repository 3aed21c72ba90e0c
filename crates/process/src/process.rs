//! A process that runs a function: what its parent holds.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossproc_segment::handover;
use rustix::event::PollFlags;
use serde::{Serialize, de::DeserializeOwned};

use crate::call::explain;
use crate::children::{self, Child};
use crate::start::{Started, kill_and_reap};
use crate::wire::{Fault, Incoming, Kind, Message, Panicked, Patience, Received};
use crate::{Builder, Error, ErrorKind, ExitStatus, JoinError, poll, status};

/// A process that was started to call one function, which returns an `R`.
///
/// Dropping it lets the process go on by itself, like dropping a [`JoinHandle`](std::thread::JoinHandle) does
/// (see [`detach`](Self::detach)); [`Builder::kill_on_drop`] ends it instead.
///
/// As a descriptor ([`AsFd`]) it is a pidfd: `poll` finds it readable when the process has ended.
///
/// In a copy of the process that started it ([`Fork`](crate::Fork), `fork`) it does no more than look: a wait
/// ends when the process has ended, with [`ExitStatus::Unknown`]; a signal and the result are
/// [`ErrorKind::NotParent`]; and dropping it does nothing.
pub struct Process<R> {
    child: Arc<Child>,
    /// Its number in the list of children, if it is there.
    listed: Option<u64>,
    kill_on_drop: bool,
    socket: OwnedFd,
    state: Mutex<State>,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    result: PhantomData<fn() -> R>,
}

/// Whoever waits, joins or asks moves this on.
struct State {
    incoming: Incoming,
    /// True when nothing more will come out of the socket.
    closed: bool,
    last_word: LastWord,
    /// Set by the one who reaps.
    status: Option<ExitStatus>,
}

/// What the process has said about its function.
enum LastWord {
    Nothing,
    /// `Returned`, `Panicked` or `Unsendable`.
    Message(Message),
    Fault(Fault),
    Taken,
}

/// Functions that start a process. (The `()` stands for nothing: each returns a `Process` of its function's
/// type.)
impl Process<()> {
    /// Starts a process that calls `function` with `arguments`.
    ///
    /// The process runs this same program, but not its `main`: nothing of this process's memory is there,
    /// only `arguments` and what the function makes itself. Returns when the process has deserialised them
    /// and is about to call.
    ///
    /// `function` is a plain function or a closure that captures nothing (also nothing of size zero: such a
    /// value may stand for something that is true in this process only). Several arguments are a tuple.
    /// Arguments and result are what serde and postcard can serialise, and handles: primitives, segments, and
    /// any descriptor as [`Handed`](crate::Handed).
    ///
    /// ```
    /// use crossproc_process::Process;
    ///
    /// fn add((a, b): (u32, u32)) -> u32 {
    ///     a + b
    /// }
    ///
    /// let sum = Process::spawn(add, (2, 3))?;
    /// let length = Process::spawn(|text: String| text.len(), "four".to_owned())?;
    /// assert_eq!((sum.join()?, length.join()?), (5, 4));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A closure that captures something does not compile, since what it captured is not in the other
    /// process:
    ///
    /// ```compile_fail,E0308
    /// let factor = 3;
    /// crossproc_process::Process::spawn(move |n: u32| n * factor, 2);
    /// ```
    ///
    /// ```compile_fail,E0308
    /// struct Initialised; // A proof of something that was done in this process.
    /// let proof = Initialised;
    /// crossproc_process::Process::spawn(move |n: u32| (&proof, n).1, 2);
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]: among others when the process ends or hangs before it comes to the function.
    pub fn spawn<A, R>(function: fn(A) -> R, arguments: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Self::builder().spawn(function, arguments)
    }

    /// Starts a process that calls the function registered as `name` with [`register!`](crate::register).
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]; [`NoSuchFunction`](ErrorKind::NoSuchFunction) and
    /// [`WrongTypes`](ErrorKind::WrongTypes) tell of the name.
    pub fn named<A, R>(name: &str, arguments: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        Self::builder().spawn_named(name, arguments)
    }

    /// Settings for a process: name, environment, standard streams, ..
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl<R> Process<R> {
    pub(crate) fn new(
        name: String,
        daemon: bool,
        kill_on_drop: bool,
        listed: bool,
        started: Started,
    ) -> Self {
        let Started { pid, pidfd, socket, incoming, stdin, stdout, stderr } = started;
        let child = Arc::new(Child { pid, name, daemon, pidfd, owner: std::process::id() });
        Self {
            listed: listed.then(|| children::enter(&child)),
            child,
            kill_on_drop,
            socket,
            state: Mutex::new(State { incoming, closed: false, last_word: LastWord::Nothing, status: None }),
            stdin,
            stdout,
            stderr,
            result: PhantomData,
        }
    }

    /// The process id. After the process has ended and been waited for, the id may belong to another.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// The name given with [`Builder::name`], or the one made up in its place.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.child.name
    }

    /// Whether it ends with this process; see [`Builder::daemon`].
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.child.daemon
    }

    /// False once the process has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.child.is_alive()
    }

    /// How the process ended; `None` while it runs.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.step().0
    }

    /// Waits until the process has ended. Any number of threads may wait at once.
    ///
    /// ```
    /// use crossproc_process::{ExitStatus, Process};
    ///
    /// let child: Process<()> = Process::spawn(|()| std::process::exit(3), ())?;
    /// assert_eq!(child.wait(), ExitStatus::Code(3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait(&self) -> ExitStatus {
        self.wait_until(None).expect("without a deadline the wait ends with the process")
    }

    /// Waits until the process has ended, at most for `limit`; `None` if it still runs then.
    #[must_use]
    pub fn wait_timeout(&self, limit: Duration) -> Option<ExitStatus> {
        // A limit beyond the end of the clock is no limit.
        self.wait_until(Instant::now().checked_add(limit))
    }

    /// Waits until the process has ended, at most until `deadline`; `None` if it still runs then.
    #[must_use]
    pub fn wait_deadline(&self, deadline: Instant) -> Option<ExitStatus> {
        self.wait_until(Some(deadline))
    }

    /// Asks the process to end (SIGTERM). It is no error if it has ended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::System`] if this process may not send it signals (it has changed its user),
    /// [`ErrorKind::NotParent`] in a copy of the process that started it.
    pub fn terminate(&self) -> Result<(), Error> {
        self.signal(libc::SIGTERM)
    }

    /// Ends the process (SIGKILL). It is no error if it has ended.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Sends a signal, by its number. It reaches this process or nobody, never another that got the same id.
    /// It is no error if the process has ended.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate), and if there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.child.signal(signal)
    }

    /// Lets the process go on by itself. Its result is lost. When it ends it leaves no zombie for long: the
    /// next start or drop of a process in this program removes it.
    pub fn detach(mut self) {
        self.kill_on_drop = false;
    }

    /// The writing end of its standard input, after [`Builder::stdin`]`(Stdio::piped())`; once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// The reading end of its standard output, after [`Builder::stdout`]`(Stdio::piped())`; once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// The reading end of its standard error, after [`Builder::stderr`]`(Stdio::piped())`; once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }

    /// Takes up what has happened: messages, the end. Returns the status, and whether messages may still
    /// come.
    fn step(&self) -> (Option<ExitStatus>, bool) {
        if !self.child.is_ours() {
            // Also the state may be locked here for ever.
            return (poll::has_ended(self.as_fd()).then_some(ExitStatus::Unknown), false);
        }
        let mut state = self.lock();
        if state.status.is_none() {
            // In this order: when it has ended, all it said is in the socket.
            let ended = poll::has_ended(self.as_fd());
            state.receive(self.socket.as_fd());
            if ended {
                state.closed = true;
                state.status = status::reap(self.as_fd());
                if state.status.is_some() {
                    self.reaped();
                }
            }
        }
        (state.status, !state.closed)
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        loop {
            let (status, talks) = self.step();
            if status.is_some() {
                return status;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return None;
            }
            let pidfd = (self.as_fd(), PollFlags::IN);
            // The socket is emptied meanwhile: a process that waits for room in it would never end.
            let ended = if talks {
                poll::ready([pidfd, (self.socket.as_fd(), PollFlags::IN)], deadline).map(|[ended, _]| ended)
            } else {
                poll::ready([pidfd], deadline).map(|[ended]| ended)
            };
            if ended.is_err() || (ended == Ok(true) && self.step().0.is_none()) {
                // No memory for poll, or a debugger.
                status::await_debugger();
            }
        }
    }

    /// It is nobody's child any more.
    fn reaped(&self) {
        self.listed.into_iter().for_each(children::leave);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in this file panics while it holds the lock, and if it did, the state would be in order.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Receives what is there, without sleeping.
    fn receive(&mut self, socket: BorrowedFd<'_>) {
        while !self.closed {
            match self.incoming.receive(socket, Patience::Return) {
                Ok(Received::Message(message)) => self.last_word = LastWord::Message(message),
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => self.closed = true,
                Err(fault) => {
                    self.closed = true;
                    self.last_word = LastWord::Fault(fault);
                }
            }
        }
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Waits until the process has ended; returns what its function returned.
    ///
    /// ```
    /// use crossproc_process::{JoinError, Process};
    ///
    /// let child = Process::spawn(|n: u32| if n > 2 { panic!("{n} is too much") } else { n }, 3)?;
    /// match child.join() {
    ///     Err(JoinError::Panicked { message, .. }) => assert_eq!(message, "3 is too much"),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`JoinError`] says why there is no result: a panic with its message, a signal, ..
    pub fn join(self) -> Result<R, JoinError> {
        self.wait();
        self.outcome()
    }

    /// The result if the process has ended, `None` if it still runs.
    ///
    /// # Errors
    ///
    /// As [`join`](Self::join). The result is given out once; after that it is [`JoinError::Taken`].
    pub fn try_join(&mut self) -> Result<Option<R>, JoinError> {
        self.exit_status().map(|_| self.outcome()).transpose()
    }

    /// Waits until the process has ended, at most for `limit`; `None` if it still runs then.
    ///
    /// # Errors
    ///
    /// As [`try_join`](Self::try_join).
    pub fn join_timeout(&mut self, limit: Duration) -> Result<Option<R>, JoinError> {
        self.wait_timeout(limit).map(|_| self.outcome()).transpose()
    }

    /// Waits until the process has ended, at most until `deadline`; `None` if it still runs then.
    ///
    /// # Errors
    ///
    /// As [`try_join`](Self::try_join).
    pub fn join_deadline(&mut self, deadline: Instant) -> Result<Option<R>, JoinError> {
        self.wait_deadline(deadline).map(|_| self.outcome()).transpose()
    }

    /// What the process said about its function before it ended.
    fn outcome(&self) -> Result<R, JoinError> {
        if !self.child.is_ours() {
            return Err(JoinError::Io(self.child.not_ours()));
        }
        let mut state = self.lock();
        let status = state.status.expect("called after the end");
        let last_word = std::mem::replace(&mut state.last_word, LastWord::Taken);
        drop(state);
        let name = &self.child.name;
        let receiving =
            |fault| JoinError::Io(Error::from_fault(&format!("the result of process `{name}`"), fault));
        let message = match last_word {
            LastWord::Message(message) => message,
            LastWord::Nothing => return Err(JoinError::Exited(status)),
            LastWord::Fault(fault) => return Err(receiving(fault)),
            LastWord::Taken => return Err(JoinError::Taken),
        };
        match message.kind {
            Kind::Returned => {
                let Message { body, descriptors, .. } = message;
                handover::unpack(descriptors, || postcard::from_bytes(&body)).map_err(|error| {
                    let text = format!(
                        "the result of process `{name}`, of type `{}`, can not be deserialised: {}",
                        type_name::<R>(),
                        explain(&error),
                    );
                    JoinError::Decode(Error::with_source(ErrorKind::Result, text, error))
                })
            }
            Kind::Panicked => {
                let Panicked { location } = message.head().map_err(receiving)?;
                Err(JoinError::Panicked {
                    message: String::from_utf8_lossy(&message.body).into_owned(),
                    location,
                })
            }
            Kind::Unsendable => {
                let text: String = message.head().map_err(receiving)?;
                Err(JoinError::Decode(Error::new(ErrorKind::Result, format!("process `{name}`: {text}"))))
            }
            _ => Err(receiving(Fault::Garbled)),
        }
    }
}

impl<R> AsFd for Process<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }
}

impl<R> fmt::Debug for Process<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("pid", &self.child.pid)
            .field("name", &self.child.name)
            .finish_non_exhaustive()
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.status.is_some() || !self.child.is_ours() {
            return;
        }
        match self.listed {
            _ if self.kill_on_drop && kill_and_reap(self.as_fd()) => self.reaped(),
            Some(number) => children::detach(number),
            None => {}
        }
        children::reap_detached();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Handed, child};
    use rustix::net::sockopt::set_socket_send_buffer_size;
    use std::fs::File;

    type Files = Vec<Handed<File>>;

    /// Returns more than the socket holds at once, because it makes its buffer as small as it can be.
    fn return_a_lot((): ()) -> Files {
        set_socket_send_buffer_size(child::CHANNEL.get().get().unwrap(), 1).unwrap();
        // Not regular files, so they take a place each.
        (0..400).map(|_| Handed(File::open("/dev/null").unwrap())).collect()
    }

    #[test]
    fn waiting_takes_the_result_out_of_the_way() {
        let child = Process::spawn(return_a_lot, ()).unwrap();
        assert_eq!(child.wait(), ExitStatus::Code(0));
        assert_eq!(child.join().unwrap().len(), 400);
    }

    #[test]
    fn a_result_that_nobody_takes_holds_up_nobody_when_the_process_is_detached() {
        let child = Process::spawn(return_a_lot, ()).unwrap();
        let pidfd = child.as_fd().try_clone_to_owned().unwrap();
        child.detach();
        poll::ready([(pidfd.as_fd(), PollFlags::IN)], None).unwrap();
    }
}
