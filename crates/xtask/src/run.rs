//! Runs one command: output to a log, within a time limit, and nobody left when it is over.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{procs, text};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Success,
    Failure,
    /// It was killed because the time limit had passed.
    Limit,
    /// It was killed because its output had already said enough.
    Stopped,
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    pub time: Duration,
    /// Both streams, in the order in which they were written.
    pub output: String,
}

impl Outcome {
    pub fn ok(&self) -> bool {
        self.end == End::Success
    }
}

/// Runs `command` with both streams in `log`. It is killed when `limit` has passed, or as soon as its output
/// contains `stop`.
pub fn run(
    command: &mut Command,
    log: &Path,
    limit: Duration,
    stop: Option<&str>,
) -> Result<Outcome, String> {
    let trouble = |e| format!("cannot write {}: {e}", log.display());
    let stdout = File::create(log).map_err(trouble)?;
    // One open file description, so that the streams do not overwrite each other.
    let stderr = stdout.try_clone().map_err(trouble)?;
    let mut reader = File::open(log).map_err(trouble)?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(|e| format!("cannot start {}: {e}", command.get_program().display()))?;
    let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
    let mut seen = Vec::new();
    let mut pause = Duration::from_millis(1);
    let end = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break if status.success() { End::Success } else { End::Failure };
        }
        if started.elapsed() > limit {
            break End::Limit;
        }
        if let Some(stop) = stop {
            // What was read before may end in the middle of the needle.
            let from = seen.len().saturating_sub(stop.len());
            reader.read_to_end(&mut seen).map_err(trouble)?;
            if seen[from..].windows(stop.len()).any(|window| window == stop.as_bytes()) {
                break End::Stopped;
            }
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(30));
    };
    if matches!(end, End::Limit | End::Stopped) {
        procs::kill_tree(pid);
        // It was killed, so waiting ends; how it ended is known already.
        let _ = child.wait();
    }
    let time = started.elapsed();
    let mut output = String::from_utf8_lossy(&fs::read(log).map_err(trouble)?).into_owned();
    if end == End::Limit {
        output.push_str(&format!("\nkilled: it took longer than {}\n", text::duration(limit)));
    }
    Ok(Outcome { end, time, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration, stop: Option<&str>) -> Outcome {
        let log = std::env::temp_dir().join(format!("xtask-run-{}-{:p}", std::process::id(), script));
        let outcome = run(Command::new("sh").args(["-c", script]), &log, limit, stop).unwrap();
        fs::remove_file(log).unwrap();
        outcome
    }

    const LONG: Duration = Duration::from_secs(50);

    #[test]
    fn both_streams_are_kept_in_order() {
        let outcome = shell("echo one; echo two >&2; echo three; exit 3", LONG, None);
        assert_eq!((outcome.end, outcome.output.as_str()), (End::Failure, "one\ntwo\nthree\n"));
        assert!(shell("true", LONG, None).ok());
    }

    #[test]
    fn a_command_that_does_not_end_is_killed() {
        let outcome = shell("echo started; sleep 60", Duration::from_millis(200), None);
        assert_eq!(outcome.end, End::Limit);
        assert!(outcome.output.starts_with("started\n\nkilled: "));
    }

    #[test]
    fn a_command_that_has_said_enough_is_stopped() {
        let outcome = shell("echo enough; sleep 60", LONG, Some("enough"));
        assert_eq!(outcome.end, End::Stopped);
        assert!(outcome.time < LONG);
    }
}
