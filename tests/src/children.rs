//! Starting, watching and ending the processes of a test.

use std::fs;
use std::io::Write;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc_process::{ExitStatus, Process, Stdio};
use serde::{Serialize, de::DeserializeOwned};

/// What takes longer than this hangs. Long enough for a machine that is busy with other things.
pub const HANG: Duration = Duration::from_secs(30);

/// Starts a process that calls `f`; it is killed at the latest when the handle goes.
///
/// What it prints on standard error is thrown away: a panic reaches the test through [`join`].
///
/// # Panics
///
/// If it can not be started.
#[track_caller]
pub fn child<A, R>(f: fn(A) -> R, arguments: A) -> Process<R>
where
    A: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let builder = Process::builder().kill_on_drop(true).start_timeout(HANG).stderr(Stdio::null());
    builder.spawn(f, arguments).expect("a process")
}

/// Waits for the result of a child.
///
/// # Panics
///
/// If the child panicked or was killed, or if it hangs.
#[track_caller]
pub fn join<R: DeserializeOwned>(mut process: Process<R>) -> R {
    match process.join_timeout(HANG) {
        Ok(Some(result)) => result,
        Ok(None) => panic!("{} hangs: state {}", process.name(), state_of(process.pid())),
        Err(error) => panic!("{}: {error}", process.name()),
    }
}

/// Runs `body` in a process of its own, because it forks, counts what a process has, or changes what all its threads share.
///
/// # Panics
///
/// If `body` does.
#[track_caller]
pub fn isolated(body: fn(())) {
    let process = Process::builder().kill_on_drop(true).start_timeout(HANG).spawn(body, ());
    join(process.expect("a process"));
}

/// Kills a child and waits until it is gone.
///
/// # Panics
///
/// If it ended in another way before.
#[track_caller]
pub fn kill_and_reap<R>(process: &Process<R>) {
    process.kill().expect("a child can be killed");
    assert_eq!(
        process.wait_timeout(HANG),
        Some(ExitStatus::Signal(9)),
        "{} was to be killed",
        process.name()
    );
}

/// To be called first by functions that run long: the kernel kills the process when the thread that started it ends.
///
/// A test that is killed itself can not kill its children.
pub fn tied_to_parent() {
    let set = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    set.expect("a process may choose its death signal");
    if crossproc_process::parent().is_some_and(|parent| !parent.is_alive()) {
        std::process::exit(1);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// If that takes longer than [`HANG`].
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < HANG, "waited in vain for {what}");
        sleep(Duration::from_micros(50));
    }
}

/// The state of a process' first thread as the kernel's letter: R, S (asleep), T (stopped), Z (zombie), .. or `-` if it is gone.
#[must_use]
pub fn state_of(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').and_then(|name_end| stat[name_end..].chars().nth(2)).unwrap_or('-')
}

/// Waits until the process is in this state.
///
/// # Panics
///
/// If that takes longer than [`HANG`].
#[track_caller]
pub fn await_state(pid: u32, state: char) {
    wait_for(&format!("process {pid} to be in state {state}"), || state_of(pid) == state);
}

/// Waits until the process sleeps in a futex call: for who has just announced that it is about to wait for a lock.
///
/// # Panics
///
/// If that takes longer than [`HANG`].
#[track_caller]
pub fn await_asleep(pid: u32) {
    // futex, and futex_waitv; /proc does not tell without ptrace permission, then any sleep has to do.
    let waits = |line: &str| {
        let number = line.split(' ').next().unwrap_or_default();
        ["202", "98", "449"].contains(&number) || line.is_empty()
    };
    wait_for(&format!("process {pid} to fall asleep"), || {
        state_of(pid) == 'S'
            && waits(fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default().trim())
    });
}

/// Tells that a case can not be tried on this machine: on standard output, and in the file that the test run collects.
///
/// # Panics
///
/// If that file is named but can not be written.
pub fn not_run(reason: &str) {
    println!("not run: {reason}");
    if let Some(path) = std::env::var_os("CROSSPROC_NOT_RUN_FILE") {
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        // One write, so that lines of processes that run at once do not mix.
        file.and_then(|mut file| file.write_all(format!("not run: {reason}\n").as_bytes()))
            .expect("the file for cases that were not run");
    }
}
