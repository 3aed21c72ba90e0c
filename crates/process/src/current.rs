//! Who this process is, and who started it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crossproc_segment::PerProcess;

use crate::poll;

/// How many processes may start each other in a chain, the first one counted. The first has depth 0, and a
/// process that would have depth `MAX_DEPTH` is not started.
///
/// Depth is counted in the environment (`CROSSPROC_DEPTH`), so it is passed on by programs in between that
/// know nothing of this crate. The limit ends the chain of a function that starts itself.
pub const MAX_DEPTH: u32 = 8;

/// In the environment of all descendants.
pub(crate) const DEPTH: &str = "CROSSPROC_DEPTH";

static OWN_DEPTH: AtomicU32 = AtomicU32::new(0);
/// Neither is inherited by a copy of this process.
static CURRENT: PerProcess<OnceLock<Current>> = PerProcess::new();
static PARENT: PerProcess<OnceLock<Parent>> = PerProcess::new();

/// What the calling process is; see [`current`].
#[derive(Debug)]
pub struct Current {
    name: String,
    daemon: bool,
}

/// The calling process: its name and depth.
///
/// ```
/// use crossproc_process::{Process, current};
///
/// let who = |()| (current().name().to_owned(), current().depth());
/// assert_eq!(who(()).0, "main");
/// let child = Process::builder().name("worker").spawn(who, ())?;
/// let (name, depth) = child.join()?;
/// assert_eq!((name.as_str(), depth), ("worker", current().depth() + 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn current() -> &'static Current {
    CURRENT.get().get_or_init(|| Current { name: "main".to_owned(), daemon: false })
}

impl Current {
    /// The name that [`Builder::name`](crate::Builder::name) gave it, "main" if it was not started by this
    /// crate.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many processes of this crate are above it in the chain of who started whom.
    #[must_use]
    pub fn depth(&self) -> u32 {
        depth()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether it ends with the process that started it ([`Builder::daemon`](crate::Builder::daemon)).
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.daemon
    }

    /// The process id of the process that started it with this crate.
    #[must_use]
    pub fn parent_pid(&self) -> Option<u32> {
        parent().map(Parent::pid)
    }
}

/// The process that started the calling one with this crate; `None` in a process that was started otherwise.
///
/// ```
/// use crossproc_process::{Process, parent};
///
/// let child = Process::spawn(|()| parent().map(|p| (p.pid(), p.is_alive())), ())?;
/// assert_eq!(child.join()?, Some((std::process::id(), true)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn parent() -> Option<&'static Parent> {
    PARENT.get().get()
}

/// The process that started this one.
///
/// As a descriptor ([`AsFd`]) it is a pidfd: `poll` finds it readable when the parent has ended.
#[derive(Debug)]
pub struct Parent {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

impl Parent {
    /// Its process id. After it has ended the id may belong to another process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// False once it has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !poll::has_ended(self.pidfd.as_fd())
    }
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Called once in a child, before its function.
pub(crate) fn become_child(name: String, daemon: bool, parent: Parent) -> &'static Parent {
    // Fails only if a constructor of the program has asked before, and has been told "main".
    let _ = CURRENT.get().set(Current { name, daemon });
    PARENT.get().get_or_init(|| parent)
}

/// Called by the constructor in every process: later changes of the environment do not count.
pub(crate) fn read_depth() {
    let depth = std::env::var(DEPTH).ok().and_then(|depth| depth.parse().ok());
    OWN_DEPTH.store(depth.unwrap_or(0), Ordering::Relaxed);
}

/// Called in a copy of another process: it is deeper than that one.
pub(crate) fn set_depth(depth: u32) {
    OWN_DEPTH.store(depth, Ordering::Relaxed);
}

pub(crate) fn depth() -> u32 {
    OWN_DEPTH.load(Ordering::Relaxed)
}
