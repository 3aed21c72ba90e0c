//! Functions that another process of the same build calls as often as it likes: what a pool of workers needs.
//!
//! Not for users of this crate: they have [`Process::spawn`](crate::Process::spawn).

use crate::entry::{self, Passage};
use crate::error::Error;

pub use crate::call::{Panic, catch, explain};
use serde::{Serialize, de::DeserializeOwned};

/// How functions are called there, for all types of arguments and results.
pub trait Way {
    /// Reads arguments, calls `function`, and writes what came of it behind what is in `results`.
    fn call<A, R>(function: fn(A) -> R, arguments: &[u8], results: &mut Vec<u8>)
    where
        A: DeserializeOwned,
        R: Serialize;
}

/// Names a function of this program, and a way to call it, to processes of the same build.
///
/// Plain data, which may travel through memory that others write: what is in it is called only if the seal fits, which the words of
/// another build, or damaged ones, do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Portable {
    /// From the base of the executable.
    pub(crate) passage: u64,
    /// From the base of the executable.
    pub(crate) function: u64,
    /// Digest of the way and of the types.
    pub(crate) types: u64,
    /// Digest of all this and of the build.
    pub(crate) seal: u64,
}

impl Portable {
    /// # Errors
    ///
    /// [`OutsideExecutable`](crate::ErrorKind::OutsideExecutable).
    pub fn new<W, A, R>(function: fn(A) -> R) -> Result<Self, Error>
    where
        W: Way,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        entry::describe_portable::<W, A, R>(function)
    }

    /// What has to travel.
    #[must_use]
    pub fn words(self) -> [u64; 4] {
        [self.passage, self.function, self.types, self.seal]
    }

    /// What has travelled.
    #[must_use]
    pub fn from_words([passage, function, types, seal]: [u64; 4]) -> Self {
        Self { passage, function, types, seal }
    }

    /// The function in this process.
    ///
    /// # Errors
    ///
    /// Why it is not here: this is another build, or the words are damaged.
    pub fn resolve(self) -> Result<Resolved, String> {
        entry::resolve_portable(self).map(Resolved)
    }
}

/// A function that was named by another process.
#[derive(Clone, Copy)]
pub struct Resolved(Passage);

impl Resolved {
    /// Calls it in its way.
    pub fn call(&self, arguments: &[u8], results: &mut Vec<u8>) {
        self.0.call(arguments, results);
    }
}

impl std::fmt::Debug for Resolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolved").finish_non_exhaustive()
    }
}
