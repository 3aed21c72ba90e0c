//! `crossproc tour`: small programs of several processes, run here and now, and whether what came out is
//! right.
//!
//! Each file in `tour/` is one of them: a [`Program`] with a function that tells a [`Recorder`] what it does.
//! To add one, write the file and put it into [`PROGRAMS`].

mod children;
mod nobody_waits;
mod owner_dies;
mod pipes;
mod pool;
mod queues;
mod recorder;
mod start_methods;
mod updates;
mod workers;

use std::time::Instant;

use crate::environment::Environment;
use crate::failure::Failure;
use crate::report::{Report, Section, milliseconds};
use crate::screen::Screen;
use recorder::Recorder;

/// One part of the tour.
struct Program {
    name: &'static str,
    title: &'static str,
    run: fn(&mut Recorder<'_>) -> Result<(), Failure>,
}

/// In the order of the tour.
const PROGRAMS: &[Program] = &[
    workers::PROGRAM,
    updates::PROGRAM,
    owner_dies::PROGRAM,
    nobody_waits::PROGRAM,
    queues::PROGRAM,
    pipes::PROGRAM,
    pool::PROGRAM,
    start_methods::PROGRAM,
];

/// The tour, for people. True if everything was right.
pub fn show(screen: &mut Screen) -> bool {
    let report = run(PROGRAMS, screen);
    let checks = report.sections.iter().flat_map(|section| &section.checks);
    let right = checks.filter(|check| check.ok).count();
    let seconds = report.milliseconds / 1e3;
    let wrong = report.wrong();
    if wrong.is_empty() {
        screen.verdict(true, &format!("All {right} results were right. It took {seconds:.1} s."));
    } else {
        screen.verdict(false, &format!("WRONG: {} (and {right} results were right)", wrong.len()));
        wrong.iter().for_each(|line| screen.line(&format!("  {line}")));
    }
    report.ok
}

/// The tour, for machines. True if everything was right.
pub fn print_json(screen: &mut Screen) -> bool {
    let report = run(PROGRAMS, &mut Screen::dark());
    match serde_json::to_string_pretty(&report) {
        Ok(text) => screen.line(&text),
        Err(error) => {
            eprintln!("crossproc: the report can not be written as JSON: {error}");
            return false;
        }
    }
    report.ok
}

fn run(programs: &[Program], screen: &mut Screen) -> Report {
    let start = Instant::now();
    let environment = Environment::here();
    let Environment { kernel, machine, cpus, build } = &environment;
    screen.heading("A tour of crossproc: programs of several processes, run on this machine");
    screen.aside(&format!("{kernel} {machine}, {cpus} CPUs, {build} build of version {VERSION}"));
    screen.line("");
    let mut sections = Vec::new();
    for program in programs {
        screen.heading(&format!("{}. {}", sections.len() + 1, program.title));
        sections.push(run_one(program, screen));
        screen.line("");
    }
    Report {
        program: "crossproc tour",
        version: VERSION,
        ok: sections.iter().all(|section| section.ok),
        milliseconds: milliseconds(start.elapsed()),
        environment,
        sections,
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn run_one(program: &Program, screen: &mut Screen) -> Section {
    let start = Instant::now();
    let mut recorder = Recorder::new(Section::new(program.name, program.title), screen);
    if let Err(failure) = (program.run)(&mut recorder) {
        recorder.stopped(&failure);
    }
    let mut section = recorder.into_section();
    section.milliseconds = milliseconds(start.elapsed());
    section
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Check;

    #[test]
    fn one_wrong_result_or_one_error_is_enough_to_be_wrong() {
        let right = |recorder: &mut Recorder<'_>| {
            recorder.check(Check::equal("sum", 4, 2 + 2));
            Ok(())
        };
        let wrong = |recorder: &mut Recorder<'_>| {
            recorder.check(Check::equal("sum", 5, 2 + 2));
            Ok(())
        };
        let stopped = |_: &mut Recorder<'_>| Err(Failure::new("it rains"));
        let program = |run| Program { name: "test", title: "Test", run };
        let report = |programs: &[Program]| run(programs, &mut Screen::dark());

        assert!(report(&[program(right)]).ok);
        let wrong = report(&[program(right), program(wrong), program(stopped)]);
        assert!(!wrong.ok);
        assert_eq!(wrong.wrong(), ["Test: sum: expected 4, got 5", "Test: stopped: it rains"]);
    }
}
