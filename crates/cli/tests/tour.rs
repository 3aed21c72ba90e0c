//! `crossproc tour`, as people and machines run it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

/// Parts of the tour depend on time: one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn crossproc(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossproc"));
    command.args(arguments).env_remove("NO_COLOR").env("TERM", "xterm");
    command
}

fn text(output: &Output) -> (&str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).expect("UTF-8");
    (text(&output.stdout), text(&output.stderr))
}

/// Names of ours in /dev/shm.
fn names() -> BTreeSet<PathBuf> {
    let entries =
        |folder: &Path| fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let folders = entries(Path::new("/dev/shm")).filter(|path| path.to_string_lossy().contains("crossproc"));
    folders.flat_map(|folder| entries(&folder).collect::<Vec<_>>()).collect()
}

/// Processes that have this in their environment.
fn processes_with(variable: &str) -> Vec<String> {
    let environment = |path: PathBuf| fs::read(path.join("environ")).unwrap_or_default();
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let has = |path: &PathBuf| environment(path.clone()).split(|&b| b == 0).any(|v| v == variable.as_bytes());
    processes.filter(has).map(|path| path.display().to_string()).collect()
}

#[test]
fn the_tour_is_right_in_plain_text_and_leaves_nothing_behind() {
    let _alone = alone();
    let (before, start) = (names(), Instant::now());
    let mark = format!("{}", std::process::id());
    let output = crossproc(&["tour"]).env("CROSSPROC_TOUR_TEST", &mark).output().unwrap();
    let (stdout, stderr) = text(&output);
    assert!(output.status.success() && stderr.is_empty(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(stdout.is_ascii() && !stdout.contains('\x1b'), "{stdout}");
    for part in ["\n1. ", "\n2. ", "\n3. ", "  ok     ", "\nAll ", " results were right."] {
        assert!(stdout.contains(part), "{part:?} is not in\n{stdout}");
    }

    assert_eq!(processes_with(&format!("CROSSPROC_TOUR_TEST={mark}")), [""; 0]);
    // What others make at the same time does not stay.
    while names().difference(&before).next().is_some() {
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", names().difference(&before));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn machines_get_one_document_with_all_checks() {
    let _alone = alone();
    let output = crossproc(&["tour", "--json"]).output().unwrap();
    let (stdout, stderr) = text(&output);
    assert!(output.status.success() && stderr.is_empty(), "{}\n{stdout}\n{stderr}", output.status);
    let report: Value = serde_json::from_str(stdout).unwrap();
    assert_eq!(report["ok"], true);
    assert!(report["environment"]["cpus"].as_u64().unwrap() > 0);
    assert!(report["environment"]["kernel"].as_str().unwrap().starts_with("Linux "));

    let sections = report["sections"].as_array().unwrap();
    let names: Vec<_> = sections.iter().map(|section| section["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        ["workers", "updates", "owner_dies", "nobody_waits", "queues", "pipes", "pool", "start_methods"]
    );
    for section in sections {
        assert!(section["ok"] == true && section["stopped"].is_null(), "{section}");
        let checks = section["checks"].as_array().unwrap();
        assert!(!checks.is_empty() && checks.iter().all(|check| check["ok"] == true), "{section}");
    }
    let timings = sections[2]["timings"].as_array().unwrap();
    let times: Vec<_> = timings.iter().map(|timing| timing["milliseconds"].as_f64().unwrap()).collect();
    assert!(times.len() == 2 && 0.0 < times[0] && times[0] <= times[1], "median and longest: {times:?}");
}

#[test]
fn a_reader_who_goes_away_is_no_reason_to_fail() {
    let _alone = alone();
    let mut tour = crossproc(&["tour"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(tour.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("A tour of crossproc"), "{line}");
    let output = tour.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{:?}", text(&output));
}

#[test]
fn a_full_disk_is_an_error_in_words() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = crossproc(&[]).stdout(full).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(
        text(&output).1,
        "crossproc: writing to the standard output: No space left on device (os error 28)\n"
    );
}

/// What a terminal gets to see.
fn in_a_terminal(command: &mut Command) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal =
        open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut child = command.stdout(terminal).spawn().unwrap();
    // The command holds the terminal, which has to be closed for the end to be seen.
    *command = Command::new("true");
    let mut shown = Vec::new();
    // The end is an error (EIO).
    let _ = File::from(master).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap()
}

#[test]
fn a_terminal_gets_colours_unless_it_wants_none() {
    let _alone = alone();
    let shown = in_a_terminal(&mut crossproc(&["tour"]));
    assert!(shown.contains("\x1b[1m1. Workers\x1b[0m") && shown.contains("\x1b[32m✓"), "{shown}");
    for (variable, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let shown = in_a_terminal(crossproc(&["tour"]).env(variable, value));
        assert!(shown.is_ascii() && !shown.contains('\x1b') && shown.contains("  ok     "), "{shown}");
    }
}

#[test]
fn without_arguments_it_lists_its_commands() {
    let output = crossproc(&[]).output().unwrap();
    assert!(output.status.success());
    assert!(text(&output).0.contains("\n  tour  "), "{}", text(&output).0);
    let output = crossproc(&["no-such-command"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
