//! What came out, as data. `--json` prints exactly this.

use std::fmt::{Debug, Display};
use std::time::Duration;

use serde::Serialize;

use crate::environment::Environment;

/// All that was done.
#[derive(Debug, Serialize)]
pub struct Report {
    pub program: &'static str,
    pub version: &'static str,
    /// True if all sections are.
    pub ok: bool,
    pub milliseconds: f64,
    pub environment: Environment,
    pub sections: Vec<Section>,
}

/// One of the programs that were run.
#[derive(Debug, Serialize)]
pub struct Section {
    /// For machines; the title may change.
    pub name: &'static str,
    pub title: &'static str,
    /// True if all checks are, and nothing stopped it.
    pub ok: bool,
    pub milliseconds: f64,
    /// What came out.
    pub findings: Vec<Finding>,
    /// Whether it was right.
    pub checks: Vec<Check>,
    pub timings: Vec<Timing>,
    /// The error that ended it early.
    pub stopped: Option<String>,
}

/// Something that came out and can not be wrong.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub what: String,
    pub found: String,
}

/// Something that came out, and what it had to be.
#[derive(Debug, Serialize)]
pub struct Check {
    pub what: String,
    pub expected: String,
    pub got: String,
    pub ok: bool,
}

/// How long something took.
#[derive(Debug, Serialize)]
pub struct Timing {
    pub what: String,
    pub milliseconds: f64,
}

impl Report {
    /// What was wrong, in lines.
    pub fn wrong(&self) -> Vec<String> {
        let in_section = |section: &Section| {
            let title = section.title;
            let failed = section.checks.iter().filter(|check| !check.ok);
            let mut lines: Vec<_> = failed
                .map(|c| format!("{title}: {}: expected {}, got {}", c.what, c.expected, c.got))
                .collect();
            lines.extend(section.stopped.iter().map(|why| format!("{title}: stopped: {why}")));
            lines
        };
        self.sections.iter().flat_map(in_section).collect()
    }
}

impl Section {
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            ok: true,
            milliseconds: 0.0,
            findings: Vec::new(),
            checks: Vec::new(),
            timings: Vec::new(),
            stopped: None,
        }
    }
}

impl Check {
    /// Right if both read the same.
    pub fn equal(what: impl Into<String>, got: impl Display, expected: impl Display) -> Self {
        let (got, expected) = (got.to_string(), expected.to_string());
        Self { what: what.into(), ok: got == expected, expected, got }
    }
}

/// `1.0, 2.0`
pub fn list<T: Debug>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(", ")
}

/// To the microsecond: further digits are noise.
pub fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_what_was_expected_and_what_came() {
        let check = Check::equal("total", 199, 200);
        assert!(!check.ok);
        assert!(Check::equal("sums", list([0.5, 2.0]), "0.5, 2.0").ok);

        let stopped = Some("it is too late".to_owned());
        let section = Section { checks: vec![check], stopped, ..Section::new("sums", "Sums") };
        let report = Report {
            program: "tour",
            version: "1",
            ok: false,
            milliseconds: 0.0,
            environment: Environment::here(),
            sections: vec![section],
        };
        assert_eq!(report.wrong(), ["Sums: total: expected 200, got 199", "Sums: stopped: it is too late"]);
    }
}
