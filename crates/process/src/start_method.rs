//! The ways to make a process, and a value that stands for one of them.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Builder, Error, Fork, ForkServer, Process};

/// How a process is made. There is no default to be set for the whole program: who starts processes has such
/// a value, or gets [`Spawn`](Self::Spawn).
///
/// | | `Spawn` | `ForkServer` | `Fork` |
/// |---|---|---|---|
/// | the process is | this program, executed again | a copy of a small process | a copy of this process |
/// | what it costs depends on the memory of this process | no | no | yes |
/// | has what this process has computed | no | what `preload` has | yes |
/// | safe in a process with threads | yes | yes | no |
///
/// In everything that comes after the start there is no difference: arguments and handles, results, panics,
/// exit status, signals, [`Builder::daemon`].
///
/// ```
/// use crossproc_process::{ForkServer, StartMethod};
///
/// fn work(context: &StartMethod) -> Result<u64, Box<dyn std::error::Error>> {
///     let double = |n: u64| 2 * n;
///     Ok(context.spawn(double, 1)?.join()? + context.builder().name("second").spawn(double, 2)?.join()?)
/// }
///
/// assert_eq!(work(&StartMethod::Spawn)?, 6);
/// assert_eq!(work(&ForkServer::new().into())?, 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub enum StartMethod {
    /// The program is executed again: the default. About a millisecond, most of it in the loader.
    #[default]
    Spawn,
    /// A copy of a fork server.
    ForkServer(ForkServer),
    /// A copy of this process.
    Fork(Fork),
}

impl StartMethod {
    /// Settings for a process that is made in this way.
    pub fn builder(&self) -> Builder {
        Process::builder().start_method(self.clone())
    }

    /// Starts a process in this way; see [`Process::spawn`].
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind).
    pub fn spawn<A, R>(&self, function: fn(A) -> R, arguments: A) -> Result<Process<R>, Error>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        self.builder().spawn(function, arguments)
    }
}

impl From<ForkServer> for StartMethod {
    fn from(server: ForkServer) -> Self {
        Self::ForkServer(server)
    }
}

impl From<Fork> for StartMethod {
    fn from(fork: Fork) -> Self {
        Self::Fork(fork)
    }
}
