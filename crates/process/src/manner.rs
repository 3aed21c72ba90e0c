//! How a child runs: what it does to itself before it calls its function.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use crossproc_segment::start_quiet_thread;
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, getpid, kill_process, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::current::Parent;
use crate::wire::Manner;
use crate::{copies, poll};

/// Does what was asked for, apart from `daemon`; an error says what can not be done.
pub(crate) fn adopt(manner: &Manner) -> Result<(), String> {
    if let Some(cpus) = &manner.cpus {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            let cpu = usize::try_from(cpu).unwrap_or(usize::MAX);
            if cpu >= CpuSet::MAX_CPU {
                return Err(format!(
                    "it can not run on processor {cpu}: there are at most {}",
                    CpuSet::MAX_CPU
                ));
            }
            set.set(cpu);
        }
        sched_setaffinity(None, &set).map_err(|errno| {
            let error = io::Error::from(errno);
            format!("it can not run on the processors {cpus:?}: {error}; name one that there is and that it may use")
        })?;
    }
    if let Some(niceness) = manner.niceness {
        setpriority_process(None, niceness).map_err(|errno| {
            let error = io::Error::from(errno);
            format!(
                "it can not have niceness {niceness}: {error}; less than it has by itself needs a privilege \
                 (CAP_SYS_NICE, or `ulimit -e`)"
            )
        })?;
    }
    Ok(())
}

/// From here on this process ends when its parent has ended, however that came about.
///
/// A thread waits for the parent's pidfd. The kernel's own means, `PR_SET_PDEATHSIG`, would end this process
/// already when the *thread* ends that has started it.
pub(crate) fn end_with(parent: &'static Parent) -> Result<(), String> {
    end_with_until(parent, None)
}

/// As [`end_with`], during `f`. When it returns there is no such thread any more.
pub(crate) fn ending_with<R>(parent: &'static Parent, f: impl FnOnce() -> R) -> Result<R, String> {
    let (end, ends) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| io::Error::from(errno).to_string())?;
    let before = copies::threads().unwrap_or(1);
    end_with_until(parent, Some(end))?;
    let result = f();
    drop(ends);
    // It takes the kernel a moment to forget it. Should `f` have started another one, we wait in vain.
    for _ in 0..200 {
        if copies::threads().is_ok_and(|threads| threads <= before) {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    Ok(result)
}

/// Until the other end of `until` is closed.
fn end_with_until(parent: &'static Parent, until: Option<OwnedFd>) -> Result<(), String> {
    let watch = move || {
        loop {
            let end = until.as_ref().map_or(parent.as_fd(), AsFd::as_fd);
            match poll::ready([(parent.as_fd(), PollFlags::IN), (end, PollFlags::IN)], None) {
                Ok([true, _]) => {
                    let _ = kill_process(getpid(), Signal::KILL);
                    // Init of a PID namespace can not be killed so.
                    std::process::abort();
                }
                Ok([false, true]) => return,
                // No memory for a moment.
                _ => sleep(Duration::from_millis(10)),
            }
        }
    };
    start_quiet_thread("crossproc-end", 64 << 10, watch)
        .map_err(|error| format!("the thread that is to end it with its parent can not be started: {error}"))
}
