//! Measuring in turns, and showing ratios.

use std::fmt::Write as _;
use std::time::Duration;

const TINY_ROUNDS: usize = 2;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Enough for figures that mean something.
    Full,
    /// Just enough to see that it works.
    Tiny,
}

impl Scale {
    /// `cargo bench` says `--bench`, `cargo test` does not.
    #[must_use]
    pub fn from_arguments() -> Self {
        if std::env::args().any(|argument| argument == "--bench") { Self::Full } else { Self::Tiny }
    }

    /// `full`, or a little in the tiny form.
    #[must_use]
    pub fn rounds(self, full: usize) -> usize {
        if self == Self::Full { full } else { TINY_ROUNDS }
    }

    /// `full`, or a little in the tiny form.
    #[must_use]
    pub fn count(self, full: u64) -> u64 {
        if self == Self::Full { full } else { full.min(100) }
    }

    /// `full`, or a little in the tiny form.
    #[must_use]
    pub fn time(self, full: Duration) -> Duration {
        if self == Self::Full { full } else { full.min(Duration::from_millis(2)) }
    }
}

/// What is better: less of it or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times.
    Less,
    /// Rates.
    More,
}

type Measure<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// Subjects that are measured in turns; the first is ours.
pub struct Turns<'a> {
    title: String,
    unit: &'static str,
    better: Better,
    subjects: Vec<Subject<'a>>,
}

struct Subject<'a> {
    name: &'static str,
    /// What the ratio has to be, as text and as a bound.
    reach: Option<(&'static str, f64)>,
    measure: Measure<'a>,
}

/// What was measured: for each subject one figure per round.
#[derive(Clone, Debug)]
pub struct Figures(pub Vec<Vec<f64>>);

impl std::fmt::Debug for Turns<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").field("title", &self.title).finish_non_exhaustive()
    }
}

impl<'a> Turns<'a> {
    /// Nothing to measure yet.
    #[must_use]
    pub fn new(title: impl Into<String>, unit: &'static str, better: Better) -> Self {
        Self { title: title.into(), unit, better, subjects: Vec::new() }
    }

    /// Adds a subject: `measure` returns one figure.
    #[must_use]
    pub fn subject(mut self, name: &'static str, measure: impl FnMut() -> f64 + 'a) -> Self {
        self.subjects.push(Subject { name, reach: None, measure: Box::new(measure) });
        self
    }

    /// As [`subject`](Self::subject); the ratio of the first subject to this one has to reach `bound`, which `text` explains.
    #[must_use]
    pub fn against(
        mut self,
        name: &'static str,
        text: &'static str,
        bound: f64,
        measure: impl FnMut() -> f64 + 'a,
    ) -> Self {
        self.subjects.push(Subject { name, reach: Some((text, bound)), measure: Box::new(measure) });
        self
    }

    /// Measures in turns and prints a table.
    ///
    /// # Panics
    ///
    /// If there is nothing to measure.
    pub fn run(mut self, rounds: usize) -> Figures {
        let mut figures = vec![Vec::with_capacity(rounds); self.subjects.len()];
        for round in 0..=rounds {
            for (subject, figures) in self.subjects.iter_mut().zip(&mut figures) {
                let figure = (subject.measure)();
                // The first round warms up.
                if round > 0 {
                    figures.push(figure);
                }
            }
        }
        if rounds <= TINY_ROUNDS {
            println!("\n{}: it works (too short for figures; `cargo bench` has them)", self.title);
        } else {
            println!("{}", self.table(&figures));
        }
        Figures(figures)
    }

    fn table(&self, figures: &[Vec<f64>]) -> String {
        let rounds = figures[0].len();
        let what = if self.better == Better::Less { "ours / theirs" } else { "ours x theirs" };
        let mut text = format!("\n{} (medians of {rounds} rounds in turns)\n", self.title);
        let _ = writeln!(text, "  {:<44} {:>10}  {what:<26} reach", "", self.unit);
        for (at, subject) in self.subjects.iter().enumerate() {
            let own = quantile(&figures[at], 0.5);
            let own = if own < 100.0 { format!("{own:.2}") } else { format!("{own:.0}") };
            let _ = write!(text, "  {:<44} {own:>10}", subject.name);
            if at > 0 {
                // Within a round, so that what slows the machine down for a while is in both.
                let ratios: Vec<_> =
                    figures[0].iter().zip(&figures[at]).map(|(ours, theirs)| ours / theirs).collect();
                let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| quantile(&ratios, q));
                let _ = write!(text, "  {:<26}", format!("{middle:.2} ({low:.2}..{high:.2})"));
                if let Some((reach, bound)) = subject.reach {
                    let reached = match self.better {
                        Better::Less => middle <= bound,
                        Better::More => middle >= bound,
                    };
                    let _ = write!(text, " {reach}: {}", if reached { "reached" } else { "NOT reached" });
                }
            }
            text.push('\n');
        }
        text
    }
}

/// The q-quantile.
pub(crate) fn quantile(figures: &[f64], q: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (q * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

impl Figures {
    /// The q-quantile of the figures of a subject.
    #[must_use]
    pub fn quantile(&self, subject: usize, q: f64) -> f64 {
        quantile(&self.0[subject], q)
    }
}

/// Lets the calling thread run on one CPU only: reader and writer on two that they do not share. Does nothing where there is one.
pub fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
