//! A run of several steps: one line for each, the full output of those that fail, a summary at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::leftovers::Before;
use crate::output::{self, Parsed, Unit};
use crate::place::Place;
use crate::run::{self, End, Outcome};
use crate::text::{count, duration, many};

/// Names a file to which tests append a line for each case that this machine does not allow.
const NOT_RUN_FILE: &str = "CROSSPROC_NOT_RUN_FILE";

/// What the steps so far amount to.
#[derive(Debug, Default)]
pub struct Tally {
    /// Steps that are one check each (lints, docs, ..).
    pub checks_passed: u64,
    pub checks_failed: u64,
    pub tests_passed: u64,
    pub tests_failed: u64,
    pub ignored: u64,
    pub binaries: u64,
    pub models: Vec<(String, u64)>,
    pub corpora: Vec<(String, u64)>,
    /// Lines for the summary from steps that know more.
    pub notes: Vec<(String, String)>,
    not_run: BTreeMap<String, u64>,
    optional: Vec<String>,
    times: Vec<(String, Duration)>,
    units: Vec<Unit>,
}

#[derive(Debug)]
pub struct Session<'a> {
    place: &'a Place,
    logs: PathBuf,
    before: Before,
    started: Instant,
    pub tally: Tally,
}

impl<'a> Session<'a> {
    pub fn start(place: &'a Place) -> Result<Self, String> {
        let logs = place.folder("xtask")?;
        let file = logs.join("not-run.txt");
        fs::write(&file, "").map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        Ok(Self { place, logs, before: Before::look()?, started: Instant::now(), tally: Tally::default() })
    }

    /// A step that either holds or does not.
    pub fn check(&mut self, name: &str, command: Command, limit: Duration) -> Result<bool, String> {
        let outcome = self.execute(name, command, limit)?;
        self.close(name, outcome.ok(), outcome.time, "", &outcome.output);
        self.tally.add_check(outcome.ok());
        Ok(outcome.ok())
    }

    /// A step that runs tests, and counts by what they print.
    pub fn tests(&mut self, name: &str, command: Command, limit: Duration) -> Result<bool, String> {
        let outcome = self.execute(name, command, limit)?;
        let parsed = output::parse(&outcome.output);
        let note = many(parsed.passed() + parsed.failed(), "test");
        Ok(self.count(name, &outcome, parsed, note))
    }

    /// A step that runs models. One that runs none has failed.
    pub fn models(&mut self, name: &str, command: Command, limit: Duration) -> Result<bool, String> {
        let mut outcome = self.execute(name, command, limit)?;
        let parsed = output::parse(&outcome.output);
        if outcome.ok() && parsed.models.is_empty() {
            outcome.end = End::Failure;
            outcome.output.push_str("\nno model said how many executions it had\n");
        }
        let executions: u64 = parsed.models.iter().map(|(_, n)| n).sum();
        let note =
            format!("{}, {}", many(parsed.models.len() as u64, "model"), many(executions, "execution"));
        Ok(self.count(name, &outcome, parsed, note))
    }

    /// A step that is a program with a report. `read` makes a note of its output; if it can not, the step has failed.
    pub fn program(
        &mut self,
        name: &str,
        command: Command,
        limit: Duration,
        read: impl FnOnce(&str) -> Result<String, String>,
    ) -> Result<bool, String> {
        let mut outcome = self.execute(name, command, limit)?;
        let note = read(&outcome.output).unwrap_or_else(|why| {
            if outcome.ok() {
                outcome.end = End::Failure;
            }
            outcome.output.push_str(&format!("\n{why}\n"));
            String::new()
        });
        self.close(name, outcome.ok(), outcome.time, &note, &outcome.output);
        self.tally.add_check(outcome.ok());
        if !note.is_empty() {
            self.tally.notes.push((name.to_owned(), note));
        }
        Ok(outcome.ok())
    }

    fn count(&mut self, name: &str, outcome: &Outcome, parsed: Parsed, mut note: String) -> bool {
        if !parsed.failures.is_empty() {
            note = format!("{note}; failed: {}", parsed.failures.join(", "));
        }
        self.close(name, outcome.ok(), outcome.time, &note, &outcome.output);
        let tally = &mut self.tally;
        tally.tests_passed += parsed.passed();
        tally.tests_failed += parsed.failed();
        // A binary that aborts, and code that does not build, have no result line.
        tally.checks_failed += u64::from(!outcome.ok() && parsed.failed() == 0);
        tally.ignored += parsed.ignored();
        tally.binaries += parsed.units.iter().filter(|unit| unit.passed + unit.failed > 0).count() as u64;
        tally.models.extend(parsed.models);
        tally.corpora.extend(parsed.corpora);
        tally.units.extend(parsed.units);
        for reason in parsed.not_run {
            *tally.not_run.entry(reason).or_default() += 1;
        }
        outcome.ok()
    }

    /// A step that this program does itself. It returns whether all was well, a note and a full report.
    pub fn inside(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(bool, String, String), String>,
    ) -> Result<bool, String> {
        announce(name);
        let started = Instant::now();
        let (ok, note, report) =
            work().unwrap_or_else(|error| (false, String::new(), format!("error: {error}\n")));
        self.close(name, ok, started.elapsed(), &note, &report);
        self.tally.add_check(ok);
        Ok(ok)
    }

    /// A step that needs something that is not there, and that no one has promised to be there.
    pub fn left_out(&mut self, name: &str, reason: &str) {
        announce(name);
        println!("not run: {reason}");
        self.tally.optional.push(format!("{name}: {reason}"));
    }

    fn execute(&self, name: &str, mut command: Command, limit: Duration) -> Result<Outcome, String> {
        announce(name);
        let log = self.logs.join(format!("{}.log", name.replace([' ', ','], "-")));
        self.before.equip(&mut command);
        command.env(NOT_RUN_FILE, self.logs.join("not-run.txt"));
        run::run(&mut command, &log, limit, None)
    }

    fn close(&mut self, name: &str, ok: bool, time: Duration, note: &str, report: &str) {
        println!("{:<6} {:>12}   {note}", if ok { "ok" } else { "FAILED" }, duration(time));
        if !ok {
            let lines: Vec<_> = report.trim_end().lines().filter(|line| !is_progress(line)).collect();
            println!("\n---- {name}\n{}\n----\n", lines.join("\n"));
        }
        self.tally.times.push((name.to_owned(), time));
    }

    /// Looks for what was left behind, prints the summary, and says whether all was well.
    pub fn finish(mut self, require_all: bool) -> Result<bool, String> {
        let left = self.before.left(self.place);
        if !left.is_empty() {
            println!("\nleft behind:");
            left.iter().for_each(|line| println!("  {line}"));
        }
        self.read_not_run_file()?;
        let tally = &mut self.tally;
        tally.add_check(left.is_empty());
        tally.print(self.started.elapsed());
        let mut failed = tally.checks_failed + tally.tests_failed;
        if require_all {
            failed += tally.not_run.len() as u64;
        }
        // The last line stands alone, for programs and people in a hurry.
        println!("\n{} passed, {failed} failed", tally.checks_passed + tally.tests_passed);
        // Whoever reads our output may have gone; that changes nothing.
        let _ = stdout().flush();
        Ok(failed == 0)
    }

    /// Lines that tests appended to the file and that were not in their output (which libtest may have hidden).
    fn read_not_run_file(&mut self) -> Result<(), String> {
        let file = self.logs.join("not-run.txt");
        let text = fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        let mut counts = BTreeMap::<&str, u64>::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            *counts.entry(line.strip_prefix("not run: ").unwrap_or(line)).or_default() += 1;
        }
        for (reason, times) in counts {
            let entry = self.tally.not_run.entry(reason.to_owned()).or_default();
            *entry = times.max(*entry);
        }
        Ok(())
    }
}

/// Lines by which cargo says how far it is; they are in the log, if anybody misses them.
fn is_progress(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let verb = words.next().unwrap_or_default();
    let about_crate = words.nth(1).is_some_and(|word| word.starts_with('v'));
    about_crate && ["Adding", "Checking", "Compiling", "Documenting", "Downloaded"].contains(&verb)
}

fn announce(name: &str) {
    print!("  {name:<22} ");
    // Whoever reads our output may have gone; that changes nothing.
    let _ = stdout().flush();
}

impl Tally {
    fn add_check(&mut self, ok: bool) {
        if ok {
            self.checks_passed += 1;
        } else {
            self.checks_failed += 1;
        }
    }

    fn print(&self, total: Duration) {
        let line = |what: &str, text: String| println!("{what:<13}{text}");
        println!();
        let tests = self.tests_passed + self.tests_failed;
        if tests > 0 {
            let ignored =
                if self.ignored > 0 { format!(", {} ignored", self.ignored) } else { String::new() };
            line("tests", format!("{} in {}{ignored}", count(tests), many(self.binaries, "binary run")));
        }
        if !self.models.is_empty() {
            let names: BTreeSet<_> = self.models.iter().map(|(name, _)| name).collect();
            let executions = self.models.iter().map(|(_, n)| n).sum();
            line(
                "models",
                format!(
                    "{} ({} runs in two configurations), {}",
                    names.len(),
                    self.models.len(),
                    many(executions, "execution")
                ),
            );
        }
        for (what, text) in &self.notes {
            line(what, text.clone());
        }
        if !self.corpora.is_empty() {
            let inputs = self.corpora.iter().map(|(_, n)| n).sum();
            line("fuzz inputs", format!("{} replayed, {}", count(inputs), corpora(self.corpora.len())));
        }
        let not_run = self.not_run.len() + self.optional.len();
        line("not run", not_run.to_string());
        for (reason, times) in &self.not_run {
            println!(
                "  not run: {reason}{}",
                if *times > 1 { format!(" ({times} times)") } else { String::new() }
            );
        }
        for reason in &self.optional {
            println!("  not run: {reason} (not required)");
        }
        let mut times = self.times.clone();
        times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let slowest: Vec<_> =
            times.iter().take(4).map(|(name, time)| format!("{name} {}", duration(*time))).collect();
        line("slow steps", slowest.join("; "));
        let mut units: Vec<_> = self.units.iter().filter(|unit| unit.seconds >= 0.05).collect();
        units.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        if !units.is_empty() {
            let slowest: Vec<_> =
                units.iter().take(6).map(|unit| format!("{} {:.1} s", unit.name, unit.seconds)).collect();
            line("slow tests", slowest.join("; "));
        }
        line("time", duration(total));
    }
}

fn corpora(number: usize) -> String {
    if number == 1 { "1 corpus".to_owned() } else { format!("{number} corpora") }
}
