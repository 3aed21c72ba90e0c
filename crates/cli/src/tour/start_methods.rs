//! The three ways to start a process, timed side by side.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crossproc::{ExitStatus, Fork, ForkServer, Process, StartMethod};

use super::Program;
use super::children::{LIMIT, finish, start, too_long};
use super::recorder::Recorder;
use crate::failure::Failure;
use crate::report::Check;

pub const PROGRAM: Program = Program { name: "start_methods", title: "Three ways to start a process", run };

/// Processes of each method.
const EACH: u32 = 20;
/// What the starting process has in use in the second half.
const MEBIBYTES: usize = 128;
const NAMES: [&str; 3] = ["Spawn", "ForkServer", "Fork"];

fn run(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing(&format!(
        "{EACH} processes of each start method: Spawn executes this program again, ForkServer copies a small \
         process that waits for that, Fork copies the process that asks. From the start to the result:"
    ));
    for mebibytes in [0, MEBIBYTES] {
        // In a process of its own: it has one thread and can be forked, and no memory but this.
        let times = finish(start("starts others", time_all, mebibytes)?)?;
        for (name, times) in NAMES.into_iter().zip(&times) {
            let memory = if mebibytes > 0 { format!(", {mebibytes} MiB in use") } else { String::new() };
            recorder.took(format!("{name}{memory}, median"), median(times));
        }
        let right: usize = times.iter().map(Vec::len).sum();
        recorder.check(Check::equal("  processes with the right result", right, 3 * EACH));
    }
    the_server_is_killed(recorder)
}

/// What each start took, of those whose result was right.
fn time_all(mebibytes: usize) -> Result<[Vec<Duration>; 3], Failure> {
    let memory = vec![1_u8; mebibytes << 20];
    // SAFETY: this process has one thread, and the function needs nothing but its argument.
    #[allow(unsafe_code)]
    let fork = unsafe { Fork::new() };
    let server = ForkServer::new();
    // Not at the expense of the first process.
    server.start()?;
    let methods = [StartMethod::Spawn, server.into(), fork.into()];
    let mut times = [const { Vec::new() }; 3];
    // One method after the other: after a fork of much memory, what comes next is slower for a while.
    for (method, times) in methods.iter().zip(&mut times) {
        for n in 0..EACH {
            let began = Instant::now();
            let mut child = method.builder().kill_on_drop(true).spawn(next, n)?;
            if child.join_timeout(LIMIT)? == Some(n + 1) {
                times.push(began.elapsed());
            }
        }
    }
    black_box(memory);
    Ok(times)
}

fn next(n: u32) -> u32 {
    n + 1
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn the_server_is_killed(recorder: &mut Recorder<'_>) -> Result<(), Failure> {
    recorder.doing("The fork server is killed (SIGKILL) while a process that it has made runs:");
    let server = ForkServer::new();
    let method = StartMethod::from(server.clone());
    let running = method.builder().kill_on_drop(true).spawn(|()| std::thread::park(), ())?;
    let killed = server.pid().ok_or_else(|| Failure::new("the fork server does not run"))?;
    let pid = i32::try_from(killed).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or_else(|| Failure::new("the fork server has no process id"))?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        .map_err(|errno| Failure::new(format!("the fork server can not be killed: {errno}")))?;
    let began = Instant::now();
    let mut after: Process<u32> = method.builder().kill_on_drop(true).spawn(next, 1)?;
    let result = after.join_timeout(LIMIT)?.ok_or_else(|| too_long("the next process"))?;
    recorder.check(Check::equal("result of the next process", result, 2));
    recorder.took("  with the start of another server", began.elapsed());
    recorder.check(Check::equal("the process that ran still runs", running.is_alive(), true));
    running.terminate()?;
    let status = running.wait_timeout(LIMIT).ok_or_else(|| too_long("ending it"))?;
    recorder.check(Check::equal("  and its end is told", status, ExitStatus::Signal(15)));
    Ok(())
}
