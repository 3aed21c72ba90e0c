//! The children of this process.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossproc_segment::PerProcess;

use crate::{Error, ErrorKind, linux, poll, status};

/// A child of this process, as long as somebody knows it: its [`Process`](crate::Process), the list below, or
/// an [`ActiveChild`].
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) daemon: bool,
    pub(crate) pidfd: OwnedFd,
    /// The process that started it. A copy of that one (`fork`) must neither receive from it, reap nor signal it.
    pub(crate) owner: u32,
}

impl Child {
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// False in a copy of its parent.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    /// What a copy of its parent is told.
    pub(crate) fn not_ours(&self) -> Error {
        let (Self { name, owner, .. }, own) = (self, std::process::id());
        Error::new(
            ErrorKind::NotParent,
            format!(
                "process `{name}` is a child of process {owner}, of which this one ({own}) is a copy: only {owner} \
                 can signal it and have its result"
            ),
        )
    }

    pub(crate) fn is_alive(&self) -> bool {
        !poll::has_ended(self.pidfd())
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<(), Error> {
        if !self.is_ours() {
            return Err(self.not_ours());
        }
        match linux::send_signal(self.pidfd(), signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::system(&format!("sending signal {signal} to process `{}`", self.name), error))
            }
            _ => Ok(()),
        }
    }
}

/// Children that have not been reaped, by a number that counts up, and whether they are detached: then it is
/// the list that reaps them.
#[derive(Debug, Default)]
struct List {
    next: u64,
    children: BTreeMap<u64, (Arc<Child>, bool)>,
}

/// A copy of this process has no children.
static LIST: PerProcess<Mutex<List>> = PerProcess::new();

fn list() -> MutexGuard<'static, List> {
    LIST.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts a child on the list; returns its number.
pub(crate) fn enter(child: &Arc<Child>) -> u64 {
    let mut list = list();
    let number = list.next;
    list.next += 1;
    list.children.insert(number, (Arc::clone(child), false));
    number
}

/// To be called when the child has been reaped.
pub(crate) fn leave(number: u64) {
    list().children.remove(&number);
}

/// To be called when nobody will wait for the child.
pub(crate) fn detach(number: u64) {
    if let Some((_, detached)) = list().children.get_mut(&number) {
        *detached = true;
    }
}

/// Reaps detached children that have ended: a zombie is there until somebody collects its status.
pub(crate) fn reap_detached() {
    list().children.retain(|_, (child, detached)| !*detached || status::reap(child.pidfd()).is_none());
}

/// The processes that this process has started with this crate and that have not ended, the oldest first;
/// also those whose [`Process`](crate::Process) has been dropped. (Fork servers are not among them.)
///
/// ```
/// use crossproc_process::{Process, active_children};
///
/// let child = Process::builder().name("sleeper").spawn(|()| std::thread::park(), ())?;
/// assert!(active_children().iter().any(|child| child.name() == "sleeper"));
/// active_children().iter().try_for_each(|child| child.kill())?;
/// child.wait();
/// assert!(active_children().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn active_children() -> Vec<ActiveChild> {
    reap_detached();
    let all: Vec<_> = list().children.values().map(|(child, _)| ActiveChild(Arc::clone(child))).collect();
    all.into_iter().filter(ActiveChild::is_alive).collect()
}

/// A process that this process has started; see [`active_children`].
///
/// As a descriptor ([`AsFd`]) it is a pidfd: `poll` finds it readable when the process has ended.
#[derive(Clone)]
pub struct ActiveChild(Arc<Child>);

impl ActiveChild {
    /// Its process id. After its end the id may belong to another process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// The name given with [`Builder::name`](crate::Builder::name), or the one made up in its place.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it ends with this process; see [`Builder::daemon`](crate::Builder::daemon).
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.daemon
    }

    /// False once the process has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    /// Asks the process to end (SIGTERM). It is no error if it has ended.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::System`] if this process may not send it signals (it has changed its user),
    /// [`ErrorKind::NotParent`] in a copy of the process that started it.
    pub fn terminate(&self) -> Result<(), Error> {
        self.0.signal(libc::SIGTERM)
    }

    /// Ends the process (SIGKILL). It is no error if it has ended.
    ///
    /// # Errors
    ///
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> Result<(), Error> {
        self.0.signal(libc::SIGKILL)
    }
}

impl AsFd for ActiveChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.pidfd()
    }
}

impl fmt::Debug for ActiveChild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Child { pid, name, daemon, .. } = &*self.0;
        let mut all = f.debug_struct("ActiveChild");
        all.field("pid", pid).field("name", name).field("daemon", daemon).finish_non_exhaustive()
    }
}
