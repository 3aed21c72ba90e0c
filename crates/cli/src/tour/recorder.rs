//! Takes down what a program of the tour tells: for the report, and at once for who is watching.

use std::time::Duration;

use crate::failure::Failure;
use crate::report::{Check, Finding, Section, Timing, milliseconds};
use crate::screen::Screen;

/// The section that is being written.
pub struct Recorder<'a> {
    section: Section,
    screen: &'a mut Screen,
}

impl<'a> Recorder<'a> {
    pub fn new(section: Section, screen: &'a mut Screen) -> Self {
        Self { section, screen }
    }

    /// What is being done.
    pub fn doing(&mut self, text: &str) {
        if !(self.section.findings.is_empty() && self.section.checks.is_empty()) {
            self.screen.line("");
        }
        self.screen.paragraph(text);
    }

    /// What came out.
    pub fn found(&mut self, what: impl Into<String>, found: impl Into<String>) {
        let finding = Finding { what: what.into(), found: found.into() };
        self.screen.finding(&finding.what, &finding.found);
        self.section.findings.push(finding);
    }

    /// What came out and had to be so.
    pub fn check(&mut self, check: Check) {
        self.screen.check(&check);
        self.section.ok &= check.ok;
        self.section.checks.push(check);
    }

    /// How long it took.
    pub fn took(&mut self, what: impl Into<String>, time: Duration) {
        let timing = Timing { what: what.into(), milliseconds: milliseconds(time) };
        self.screen.finding(&timing.what, &format!("{:.3} ms", timing.milliseconds));
        self.section.timings.push(timing);
    }

    /// Why it went no further.
    pub fn stopped(&mut self, failure: &Failure) {
        let sentence = failure.to_string();
        self.screen.stopped(&sentence);
        self.section.ok = false;
        self.section.stopped = Some(sentence);
    }

    pub fn into_section(self) -> Section {
        self.section
    }
}
