//! How a process is to be started.

use std::any::type_name;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossproc_segment::handover;
use serde::{Serialize, de::DeserializeOwned};

use crate::call::explain;
use crate::start::{Plan, start};
use crate::stdio::Stdio;
use crate::wire::{Function, Manner};
use crate::{Error, ErrorKind, Process, StartMethod, children, current, entry, named};

/// The settings of a process that is to be started; made by [`Process::builder`].
///
/// ```
/// use crossproc_process::{Process, Stdio};
/// use std::io::Read;
///
/// let mut child = Process::builder()
///     .name("greeter")
///     .env("GREETING", "hello")
///     .stdout(Stdio::piped())
///     .spawn(|who: String| println!("{} {who}", std::env::var("GREETING").unwrap()), "world".to_owned())?;
/// let mut text = String::new();
/// child.take_stdout().unwrap().read_to_string(&mut text)?;
/// child.join()?;
/// assert_eq!(text, "hello world\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder starts nothing until `spawn` is called"]
pub struct Builder {
    name: Option<String>,
    method: StartMethod,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    current_dir: Option<PathBuf>,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    executable: Option<PathBuf>,
    daemon: Option<bool>,
    cpus: Option<Vec<u32>>,
    niceness: Option<i32>,
    start_timeout: Duration,
    kill_on_drop: bool,
    listed: bool,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            name: None,
            method: StartMethod::Spawn,
            arguments: Vec::new(),
            environment: Vec::new(),
            current_dir: None,
            stdin: Stdio::inherit(),
            stdout: Stdio::inherit(),
            stderr: Stdio::inherit(),
            executable: None,
            daemon: None,
            cpus: None,
            niceness: None,
            start_timeout: Duration::from_secs(10),
            kill_on_drop: false,
            listed: true,
        }
    }

    /// The name of the process: in errors, in [`current`](crate::current()), and (its first 15 bytes) in `ps`
    /// and `top`. At most 255 bytes, none of them 0. Without one it is "process-1", "process-2", ..
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How the process is made. Default: [`StartMethod::Spawn`].
    pub fn start_method(mut self, method: impl Into<StartMethod>) -> Self {
        self.method = method.into();
        self
    }

    /// Adds to the command line of the process, as its [`std::env::args`] and `ps` show it; the first element
    /// of that is there already, and nothing else is, unless it is given here. Only with
    /// [`StartMethod::Spawn`]: copies of a process have the command line of their original.
    ///
    /// This is for libraries that look there. What the function needs goes into its arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable. The others are those of this process. A name that is empty or has `=` or a
    /// 0 byte in it, or a value with a 0 byte, is [`ErrorKind::InvalidName`] of the start.
    pub fn env(mut self, variable: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((variable.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, variable: impl AsRef<OsStr>) -> Self {
        self.environment.push((variable.as_ref().to_owned(), None));
        self
    }

    /// The directory in which the process runs. Default: that of this process.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.current_dir = Some(directory.into());
        self
    }

    /// Standard input. Default: that of this process.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Standard output. Default: that of this process.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = stdout.into();
        self
    }

    /// Standard error. Default: that of this process.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = stderr.into();
        self
    }

    /// The program to start. Default: this one, as it is running now (`/proc/self/exe`), even if its file has
    /// been replaced or deleted since.
    ///
    /// Another program, or another build of this one, has to be linked with this crate, and its functions can
    /// be called by name only ([`spawn_named`](Self::spawn_named)). For [`spawn`](Self::spawn) it has to be a
    /// copy of this very build, otherwise it is [`ErrorKind::WrongBuild`]. A path without a slash is looked
    /// for in `PATH`.
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = Some(path.into());
        self
    }

    /// Whether the process ends with this one, however this one ends: a return from `main`, a crash, SIGKILL.
    /// It is then killed (SIGKILL), by a thread of its own, within a moment; if it is stopped (SIGSTOP), when
    /// it goes on. Which thread of this process has started it does not matter. Default: as this process
    /// ([`Current::is_daemon`](crate::Current::is_daemon)), so no.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = Some(daemon);
        self
    }

    /// The processors on which the process may run, by their numbers from 0. Default: those of the calling
    /// thread (with a [`ForkServer`](crate::ForkServer): of the thread that started it).
    pub fn cpu_affinity(mut self, processors: impl IntoIterator<Item = usize>) -> Self {
        let number = |cpu| u32::try_from(cpu).unwrap_or(u32::MAX);
        self.cpus = Some(processors.into_iter().map(number).collect());
        self
    }

    /// How willingly the process leaves the processors to others: from -20 (not at all) to 19. Less than this
    /// process has needs a privilege. Default: as the calling thread (with a
    /// [`ForkServer`](crate::ForkServer): as the thread that started it).
    pub fn niceness(mut self, niceness: i32) -> Self {
        self.niceness = Some(niceness);
        self
    }

    /// How long the process may take until it has its arguments; then it is killed and `spawn` fails with
    /// [`ErrorKind::TimedOut`]. Default: 10 seconds. A [`ForkServer`](crate::ForkServer) that is slow to answer
    /// has up to a second more to say which process it has made.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = limit;
        self
    }

    /// Whether dropping the [`Process`] kills it (and waits until it is gone). Default: no, it goes on by
    /// itself; also if this process may not kill it, because it has changed its user.
    pub fn kill_on_drop(mut self, kill: bool) -> Self {
        self.kill_on_drop = kill;
        self
    }

    /// Not to be found among the children of this process.
    pub(crate) fn unlisted(mut self) -> Self {
        self.listed = false;
        self
    }

    /// Starts a process that calls `function` with `arguments`; see [`Process::spawn`].
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`].
    pub fn spawn<A, R>(self, function: fn(A) -> R, arguments: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let function = entry::describe(function)?;
        self.start(function, arguments)
    }

    /// Starts a process that calls the function that its program has registered as `name`; see
    /// [`Process::named`].
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`].
    pub fn spawn_named<A, R>(self, name: &str, arguments: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let function = Function::Named { name: name.to_owned(), types: named::types::<A, R>().to_owned() };
        self.start(function, arguments)
    }

    fn start<A: Serialize, R>(self, function: Function, arguments: A) -> Result<Process<R>, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(1);
        children::reap_detached();
        let argv0 = match &self.name {
            Some(name) => name.into(),
            None => std::env::args_os().next().unwrap_or_default(),
        };
        let name = self.name.unwrap_or_else(|| format!("process-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        if name.len() > 255 || name.contains('\0') {
            let text = format!(
                "a process was not started: its name has {} bytes; up to 255 are possible, and no 0",
                name.len()
            );
            return Err(Error::new(ErrorKind::InvalidName, text));
        }
        let (encoded, handles) = handover::pack(|| postcard::to_stdvec(&arguments));
        let encoded = encoded.map_err(|error| {
            let text = format!(
                "process `{name}` was not started: its arguments of type `{}` can not be serialised: {}",
                type_name::<A>(),
                explain(&error),
            );
            Error::with_source(ErrorKind::Arguments, text, error)
        })?;
        let daemon = self.daemon.unwrap_or_else(|| current().is_daemon());
        let plan = Plan {
            name: name.clone(),
            method: self.method,
            argv0,
            arguments: self.arguments,
            environment: self.environment,
            current_dir: self.current_dir,
            stdin: self.stdin,
            stdout: self.stdout,
            stderr: self.stderr,
            executable: self.executable,
            manner: Manner { daemon, cpus: self.cpus, niceness: self.niceness },
            start_timeout: self.start_timeout,
        };
        let started = start(plan, function, &encoded, handles)?;
        // Only now: until the child has attached to what the arguments stand for, ours keep it alive.
        drop(arguments);
        Ok(Process::new(name, daemon, self.kill_on_drop, self.listed, started))
    }
}
