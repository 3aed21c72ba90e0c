//! The start method `Spawn`: the executable of this process is started again (`posix_spawn`), and asked over
//! a socket to call one function.
//!
//! `posix_spawn` costs the same however large this process is, and it is safe in a process with threads.
//! Nothing may be asked of [`Command`] that makes it fork instead: `pre_exec`, `uid`, `gid`, `groups`. So the
//! socket gets into the child in the only way that is left: as its standard input, which the child puts right
//! again.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::start::{Attempt, Made, Plan};
use crate::{Error, hook};

/// Makes the child; `socket` is its end of the socket.
pub(crate) fn make(attempt: &Attempt, plan: Plan, socket: OwnedFd) -> Result<Made, Error> {
    let mut command = Command::new(plan.executable.unwrap_or_else(|| "/proc/self/exe".into()));
    command.arg0(&plan.argv0).args(plan.arguments);
    command.stdin(socket).stdout(plan.stdout.into_std()).stderr(plan.stderr.into_std());
    if let Some(directory) = plan.current_dir {
        command.current_dir(directory);
    }
    for (variable, value) in plan.environment {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    command.env(hook::MARKER, "1");
    let mut child = command.spawn().map_err(|error| attempt.cannot_start(error))?;
    // Closes our copy of the child's end, so that the socket tells when the child has closed it.
    drop(command);
    // std's `Child` neither kills nor reaps when it is dropped. The pidfd alone stands for the process.
    let pidfd = attempt.pidfd_of(child.id() as i32)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    Ok(Made { pid: child.id(), pidfd, stdin: None, stdout, stderr })
}
