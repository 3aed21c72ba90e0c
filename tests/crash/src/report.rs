//! What came out of a run: counted, printed, and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::step::Verdict;

/// Changes when the meaning of a field does.
pub const SCHEMA: u32 = 1;

/// At most so many bad findings of one row are kept with their texts.
const BAD_KEPT: usize = 20;
/// And so many printed.
const BAD_SHOWN: usize = 4;

/// What one mode found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Which mode it was; several, joined by `+`, after [`joined`](Self::joined).
    pub mode: String,
    /// One for each operation.
    pub rows: Vec<Row>,
    /// Anything else that is wrong: of the harness itself, say.
    pub faults: Vec<String>,
    /// What was left out, and why.
    pub not_run: Vec<String>,
}

/// What was found about one operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    /// `Lock::lock (free)`.
    pub operation: String,
    /// A bug that was put there; it counts in no total.
    pub planted: bool,
    /// A planted bug that this mode has to find.
    pub must_fail: bool,
    /// Figures by name, like `kills`. Their order in a table is that of `COLUMNS`.
    pub figures: BTreeMap<String, u64>,
    /// How often each verdict was found.
    pub verdicts: BTreeMap<String, u64>,
    /// The first bad ones.
    pub bad: Vec<Finding>,
    /// The longest that a survivor took.
    pub slowest_ms: u64,
}

/// One bad finding.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Where the victim was: `kill 17`.
    pub at: String,
    /// The verdict's name.
    pub verdict: String,
    /// What the survivor saw.
    pub text: String,
}

/// Figures in the order of their columns; others follow by name. The first two describe the operation and are not summed
/// over modes.
const COLUMNS: [&str; 6] = ["instructions", "states", "kills", "asleep", "images", "pairs"];
const NOT_SUMMED: [&str; 2] = ["instructions", "states"];

impl Row {
    /// A row without findings.
    #[must_use]
    pub fn new(operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), ..Self::default() }
    }

    /// Sets a figure.
    pub fn set(&mut self, figure: &str, number: u64) {
        self.figures.insert(figure.to_owned(), number);
    }

    /// Adds to a figure.
    pub fn add(&mut self, figure: &str, number: u64) {
        *self.figures.entry(figure.to_owned()).or_default() += number;
    }

    /// A figure; 0 if there is none.
    #[must_use]
    pub fn get(&self, figure: &str) -> u64 {
        self.figures.get(figure).copied().unwrap_or(0)
    }

    /// Notes a verdict; `text` is asked only if it is a bad one.
    pub fn judge(&mut self, at: impl FnOnce() -> String, verdict: Verdict, text: impl FnOnce() -> String) {
        *self.verdicts.entry(verdict.name().to_owned()).or_default() += 1;
        if verdict.is_bad() && self.bad.len() < BAD_KEPT {
            self.bad.push(Finding { at: at(), verdict: verdict.name().to_owned(), text: text() });
        }
    }

    /// Notes the bad ones among `tried` findings.
    pub fn found(&mut self, tried: u64, bad: impl IntoIterator<Item = (String, Verdict, String)>) {
        let mut good = tried;
        for (at, verdict, text) in bad {
            self.judge(|| at, verdict, || text);
            good = good.saturating_sub(1);
        }
        *self.verdicts.entry(Verdict::Ok.name().to_owned()).or_default() += good;
    }

    /// Notes how long a survivor took.
    pub fn took(&mut self, time: Duration) {
        self.slowest_ms = self.slowest_ms.max(time.as_millis() as u64);
    }

    /// How many verdicts were bad.
    #[must_use]
    pub fn bad_count(&self) -> u64 {
        let bad = Verdict::ALL.into_iter().filter(|verdict| verdict.is_bad());
        bad.filter_map(|verdict| self.verdicts.get(verdict.name())).sum()
    }

    /// True if it is as it should be: no bad verdict, or (for a planted bug that must be found) at least one.
    #[must_use]
    pub fn is_right(&self) -> bool {
        if self.planted { !self.must_fail || self.bad_count() > 0 } else { self.bad_count() == 0 }
    }
}

impl Report {
    /// The report of one mode, without rows yet.
    #[must_use]
    pub fn new(mode: &str) -> Self {
        Self { mode: mode.to_owned(), ..Self::default() }
    }

    /// True if all rows are right and nothing else is wrong.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.faults.is_empty() && self.rows.iter().all(Row::is_right)
    }

    /// Notes the planted bugs that this mode should have found and did not: once joined with others it would not show.
    pub fn check_planted(&mut self) {
        let missed = self.rows.iter().filter(|row| row.planted && !row.is_right());
        self.faults
            .extend(missed.map(|row| format!("{}: not found by the mode {}", row.operation, self.mode)));
    }

    /// This one and what another mode, or another process, found.
    #[must_use]
    pub fn joined(mut self, other: Self) -> Self {
        for mode in other.mode.split('+') {
            if !self.mode.split('+').any(|own| own == mode) {
                self.mode = format!("{}+{mode}", self.mode);
            }
        }
        let own = self.not_run.clone();
        for row in other.rows {
            match self.rows.iter_mut().find(|own| own.operation == row.operation) {
                Some(own) => own.join(row),
                None => self.rows.push(row),
            }
        }
        self.faults.extend(other.faults);
        self.not_run.extend(other.not_run.into_iter().filter(|reason| !own.contains(reason)));
        self
    }

    /// The sum of a figure over all operations that are not planted bugs.
    #[must_use]
    pub fn sum(&self, figure: &str) -> u64 {
        self.rows.iter().filter(|row| !row.planted).map(|row| row.get(figure)).sum()
    }

    /// How many verdicts of this kind there are; planted bugs aside.
    #[must_use]
    pub fn verdicts(&self, verdict: Verdict) -> u64 {
        let rows = self.rows.iter().filter(|row| !row.planted);
        rows.filter_map(|row| row.verdicts.get(verdict.name())).sum()
    }

    /// One line of JSON.
    ///
    /// # Panics
    ///
    /// Never: it consists of texts and numbers.
    #[must_use]
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            schema: u32,
            crash: &'a str,
            profile: &'a str,
            right: bool,
            totals: BTreeMap<&'a str, u64>,
            #[serde(flatten)]
            report: &'a Report,
        }
        let mut totals: BTreeMap<&str, u64> =
            self.columns().iter().map(|name| (*name, self.sum(name))).collect();
        totals.insert("operations", self.rows.iter().filter(|row| !row.planted).count() as u64);
        totals.insert(
            "planted",
            self.rows.iter().filter(|row| row.planted && row.bad_count() > 0).count() as u64,
        );
        totals.extend(Verdict::ALL.map(|verdict| (verdict.name(), self.verdicts(verdict))));
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let whole = Whole {
            schema: SCHEMA,
            crash: &self.mode,
            profile,
            right: self.is_right(),
            totals,
            report: self,
        };
        serde_json::to_string(&whole).expect("texts and numbers")
    }

    fn columns(&self) -> Vec<&str> {
        let mut names: Vec<&str> = COLUMNS
            .into_iter()
            .filter(|name| self.rows.iter().any(|row| row.figures.contains_key(*name)))
            .collect();
        for name in self.rows.iter().flat_map(|row| row.figures.keys()) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// The table, the findings and the totals.
    #[must_use]
    pub fn table(&self) -> String {
        let columns = self.columns();
        let width = self.rows.iter().map(|row| row.operation.len()).max().unwrap_or(0).max(9);
        let mut out = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| writeln!(out, "{text}").expect("a string takes all");
        let cell = |text: &str| format!(" {text:>12}");
        let head: String = columns.iter().map(|name| cell(name)).collect();
        line(format_args!("{:<width$}{head} {:>7}  verdicts", "operation", "ms"));
        let verdicts = |of: &dyn Fn(Verdict) -> u64| {
            let all = Verdict::ALL.into_iter().map(|verdict| (verdict, of(verdict)));
            all.filter(|(_, n)| *n > 0)
                .map(|(v, n)| format!("{} {n}", v.name()))
                .collect::<Vec<_>>()
                .join(", ")
        };
        for row in &self.rows {
            let cells: String = columns
                .iter()
                .map(|name| cell(&row.figures.get(*name).map(u64::to_string).unwrap_or_default()))
                .collect();
            let found = verdicts(&|verdict| row.verdicts.get(verdict.name()).copied().unwrap_or(0));
            let note = match (row.planted, row.is_right()) {
                (true, true) if row.bad_count() > 0 => "  (planted: found)",
                (true, true) => "  (planted, for other modes)",
                (true, false) => "  (planted: NOT FOUND)",
                (false, true) => "",
                (false, false) => "  BAD",
            };
            line(format_args!("{:<width$}{cells} {:>7}  {found}{note}", row.operation, row.slowest_ms));
        }
        let sums: String = columns.iter().map(|name| cell(&self.sum(name).to_string())).collect();
        line(format_args!(
            "{:<width$}{sums} {:>7}  {}",
            "total",
            "",
            verdicts(&|verdict| self.verdicts(verdict))
        ));
        for row in self.rows.iter().filter(|row| !row.planted) {
            for Finding { at, verdict, text } in row.bad.iter().take(BAD_SHOWN) {
                line(format_args!("BAD {}, {at}: {verdict}: {text}", row.operation));
            }
            let more = row.bad_count().saturating_sub(BAD_SHOWN as u64);
            if more > 0 {
                line(format_args!("BAD {}: {more} more", row.operation));
            }
        }
        for fault in &self.faults {
            line(format_args!("FAULT {fault}"));
        }
        for reason in &self.not_run {
            line(format_args!("not run: {reason}"));
        }
        out
    }
}

impl Row {
    fn join(&mut self, other: Self) {
        for (name, number) in other.figures {
            let own = self.figures.entry(name.clone()).or_default();
            *own = if NOT_SUMMED.contains(&name.as_str()) { number.max(*own) } else { *own + number };
        }
        for (name, number) in other.verdicts {
            *self.verdicts.entry(name).or_default() += number;
        }
        self.must_fail |= other.must_fail;
        self.bad.extend(other.bad);
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}
