//! Processes of the tour: none outlives it, and none is waited for longer than [`LIMIT`].

use std::time::Duration;

use crossproc::Process;
use serde::{Serialize, de::DeserializeOwned};

use crate::failure::Failure;

/// Whatever takes longer hangs.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A process that returns an `R`, or a sentence that says why it could not.
pub type Child<R> = Process<Result<R, Failure>>;

/// Starts a process that is killed when its handle is dropped.
pub fn start<A, R>(
    name: &str,
    function: fn(A) -> Result<R, Failure>,
    arguments: A,
) -> Result<Child<R>, Failure>
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    Ok(Process::builder().name(name).kill_on_drop(true).spawn(function, arguments)?)
}

/// What the process returned.
pub fn finish<R: DeserializeOwned>(mut child: Child<R>) -> Result<R, Failure> {
    match child.join_timeout(LIMIT)? {
        Some(result) => result,
        None => Err(too_long(&format!("process `{}`", child.name()))),
    }
}

/// Starts the same function in two processes and waits for both.
pub fn run_two<A>(function: fn(A) -> Result<(), Failure>, arguments: A) -> Result<(), Failure>
where
    A: Serialize + DeserializeOwned + Clone,
{
    let first = start("first", function, arguments.clone())?;
    let second = start("second", function, arguments)?;
    finish(first)?;
    finish(second)
}

/// The failure of something that hangs.
pub fn too_long(what: &str) -> Failure {
    Failure::new(format!("{what} takes longer than {} s", LIMIT.as_secs()))
}
