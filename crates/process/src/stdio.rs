//! Standard streams of a child.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process;

/// What a standard stream of a child is connected to; see [`Builder::stdin`](crate::Builder::stdin).
///
/// The counterpart of [`std::process::Stdio`], which does not give out the descriptor it holds; the standard
/// input has to be passed through a socket.
#[derive(Debug, Default)]
pub struct Stdio(pub(crate) Connection);

#[derive(Debug, Default)]
pub(crate) enum Connection {
    #[default]
    Inherit,
    Null,
    Piped,
    Descriptor(OwnedFd),
}

impl Stdio {
    /// The same as in this process. The default.
    #[must_use]
    pub fn inherit() -> Self {
        Self(Connection::Inherit)
    }

    /// Reads nothing, throws away what is written (`/dev/null`).
    #[must_use]
    pub fn null() -> Self {
        Self(Connection::Null)
    }

    /// A new pipe; this process gets the other end from [`Process::take_stdin`](crate::Process::take_stdin),
    /// [`take_stdout`](crate::Process::take_stdout) or [`take_stderr`](crate::Process::take_stderr).
    #[must_use]
    pub fn piped() -> Self {
        Self(Connection::Piped)
    }

    /// For the two streams that `Command` passes on.
    pub(crate) fn into_std(self) -> process::Stdio {
        match self.0 {
            Connection::Inherit => process::Stdio::inherit(),
            Connection::Null => process::Stdio::null(),
            Connection::Piped => process::Stdio::piped(),
            Connection::Descriptor(descriptor) => descriptor.into(),
        }
    }
}

impl From<OwnedFd> for Stdio {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Connection::Descriptor(descriptor))
    }
}

impl From<File> for Stdio {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}
