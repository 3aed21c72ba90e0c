//! `cargo xtask mutants`: a model that can not fail proves nothing, so each memory ordering is weakened in
//! turn, in a copy of the workspace, and the models of its crate must notice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::{Shim, configure};
use crate::output;
use crate::place::Place;
use crate::run::{self, End, Outcome};
use crate::sites::{self, Mutant};
use crate::text::duration;

/// Files whose orderings are mutated, each with the package whose models judge it: those in `tests/model/` in a file of the
/// same name (or of the name of its folder) if there is one, else all.
const FILES: [(&str, &str); 11] = [
    ("crates/atomic/src/event.rs", "crossproc-atomic"),
    ("crates/ring/src/blocks.rs", "crossproc-ring"),
    ("crates/ring/src/exchange/mod.rs", "crossproc-ring"),
    ("crates/ring/src/exchange/recovery.rs", "crossproc-ring"),
    ("crates/ring/src/latest.rs", "crossproc-ring"),
    ("crates/sync/src/barrier.rs", "crossproc-sync"),
    ("crates/sync/src/flag.rs", "crossproc-sync"),
    ("crates/sync/src/lock.rs", "crossproc-sync"),
    ("crates/sync/src/once.rs", "crossproc-sync"),
    ("crates/sync/src/rwlock.rs", "crossproc-sync"),
    ("crates/sync/src/semaphore.rs", "crossproc-sync"),
];

/// A mutant that keeps its models busy for this long counts as noticed (unless the models alone need
/// a quarter of it).
const LIMIT: Duration = Duration::from_secs(300);

const BUILD_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// All files of the list (which is the default)
    #[arg(long, conflicts_with = "changed")]
    all: bool,
    /// Only files that differ from origin/main, or from the commit before, or whose models do
    #[arg(long)]
    changed: bool,
    /// Run those too that the source explains: they must still survive
    #[arg(long)]
    explained: bool,
    /// Print what would be run
    #[arg(long)]
    list: bool,
    /// Only files of the list that end in this
    #[arg(conflicts_with_all = ["all", "changed"])]
    files: Vec<String>,
}

/// Which files.
#[derive(Debug, Clone)]
pub enum Selection {
    All,
    Changed,
    Named(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Killed { by: String },
    KilledByLimit,
    Survived,
    DoesNotBuild(String),
}

/// A mutant in its file.
#[derive(Debug, Clone)]
pub struct Case {
    file: &'static str,
    package: &'static str,
    mutant: Mutant,
}

impl Case {
    fn name(&self) -> String {
        format!("{}:{}:{} {}", self.file, self.mutant.line, self.mutant.column, self.mutant.change)
    }
}

#[derive(Debug, Default)]
pub struct Report {
    /// How the files were chosen, for people.
    chosen: String,
    verdicts: Vec<(Case, Verdict)>,
    explained: Vec<Case>,
    /// Models that fail as they are, which therefore can not judge anything.
    unusable: Vec<String>,
    /// Not run, because the time was up.
    left: usize,
}

impl Report {
    /// How many of those without an explanation got a verdict that fits.
    fn number(&self, fits: impl Fn(&Verdict) -> bool) -> usize {
        self.verdicts
            .iter()
            .filter(|(case, verdict)| case.mutant.explained.is_none() && fits(verdict))
            .count()
    }

    /// What speaks against the models, or against an explanation.
    fn complaints(&self) -> Vec<String> {
        self.verdicts
            .iter()
            .filter_map(|(case, verdict)| {
                let complaint = match (verdict, &case.mutant.explained) {
                    (Verdict::Survived, None) => "survived, and no reason is given",
                    (Verdict::DoesNotBuild(_), _) => "does not build",
                    (Verdict::Killed { .. } | Verdict::KilledByLimit, Some(_)) => {
                        "was killed, though the source says that it can not be noticed"
                    }
                    _ => return None,
                };
                let build = match verdict {
                    Verdict::DoesNotBuild(errors) => format!("\n{errors}"),
                    _ => String::new(),
                };
                Some(format!("{}: {complaint}\n      {}{build}", case.name(), case.mutant.code))
            })
            .collect()
    }

    pub fn ok(&self) -> bool {
        self.complaints().is_empty() && self.unusable.is_empty()
    }

    pub fn short(&self) -> String {
        let killed =
            self.number(|verdict| matches!(verdict, Verdict::Killed { .. } | Verdict::KilledByLimit));
        let run = self.number(|_| true);
        if run + self.left + self.unusable.len() == 0 {
            return "none to run".to_owned();
        }
        let mut text = format!("{killed} of {run} killed");
        if self.left > 0 {
            text.push_str(&format!(", {} left for `cargo xtask mutants`", self.left));
        }
        text
    }

    pub fn summary(&self) -> String {
        let by_limit = self.number(|verdict| *verdict == Verdict::KilledByLimit);
        let by_limit = if by_limit > 0 { format!(" ({by_limit} by the time limit)") } else { String::new() };
        format!("{}{by_limit}, {} explained; {}", self.short(), self.explained.len(), self.chosen)
    }

    /// Everything that a person has to read.
    pub fn details(&self) -> String {
        self.unusable.iter().chain(&self.complaints()).map(|text| format!("  {text}\n")).collect()
    }
}

/// `cargo xtask mutants`
pub fn run(place: &Place, options: &Options) -> Result<bool, String> {
    let selection = match (options.changed, options.files.is_empty()) {
        (true, _) => Selection::Changed,
        (false, true) => Selection::All,
        (false, false) => Selection::Named(options.files.clone()),
    };
    if options.list {
        for case in select(place, &selection)?.1 {
            let note =
                case.mutant.explained.as_ref().map_or(String::new(), |why| format!("\n      because {why}"));
            println!("{}\n      {}{note}", case.name(), case.mutant.code);
        }
        return Ok(true);
    }
    let started = Instant::now();
    let mut work = Work::prepare(place, &selection)?;
    if options.explained {
        work.queue.extend(work.report.explained.iter().cloned());
    }
    let report = work.run(None, |line| println!("{line}"))?;
    for case in &report.explained {
        println!("{:<56} explained: {}", case.name(), case.mutant.explained.as_deref().unwrap_or_default());
    }
    if !report.ok() {
        println!("\nnot as they should be:\n{}", report.details());
    }
    println!("\nmutants: {}, {}", report.summary(), duration(started.elapsed()));
    Ok(report.ok())
}

/// Runs mutants of the selected files, for at most about `budget`.
pub fn check(
    place: &Place,
    selection: Selection,
    budget: Option<Duration>,
    progress: impl Fn(&str) + Sync,
) -> Result<Report, String> {
    Work::prepare(place, &selection)?.run(budget, progress)
}

/// The mutants of the selected files, and how the selection was made.
fn select(place: &Place, selection: &Selection) -> Result<(String, Vec<Case>), String> {
    let (chosen, files): (String, Vec<_>) = match selection {
        Selection::All => ("all files".to_owned(), FILES.to_vec()),
        Selection::Named(names) => {
            for name in names {
                if !FILES.iter().any(|(file, _)| file.ends_with(name.as_str())) {
                    let known: Vec<_> = FILES.iter().map(|(file, _)| *file).collect();
                    return Err(format!("`{name}` is none of {}", known.join(", ")));
                }
            }
            let files =
                FILES.iter().filter(|(file, _)| names.iter().any(|name| file.ends_with(name.as_str())));
            ("named files".to_owned(), files.copied().collect())
        }
        Selection::Changed => match place.changed() {
            None => ("all files (there is no commit to compare with)".to_owned(), FILES.to_vec()),
            Some((changed, base)) => (
                format!("files changed since {base}"),
                FILES.iter().copied().filter(|f| is_changed(f, &changed)).collect(),
            ),
        },
    };
    let mut cases = Vec::new();
    for (file, package) in files {
        let source = fs::read_to_string(place.root.join(file))
            .map_err(|e| format!("{file} is on the list of files to mutate, but can not be read: {e}"))?;
        let mutants = sites::find(&source).map_err(|e| format!("{file}: {e}"))?;
        cases.extend(mutants.into_iter().map(|mutant| Case { file, package, mutant }));
    }
    Ok((chosen, cases))
}

/// A file counts as changed when its models did: a weaker model is how mutants come to survive.
fn is_changed((file, _): &(&str, &str), changed: &BTreeSet<PathBuf>) -> bool {
    let folder = file.split("/src/").next().unwrap_or(file);
    let models = Path::new(folder).join("tests");
    changed.iter().any(|path| path == Path::new(file) || path.starts_with(&models))
}

/// A copy of the workspace in which files are broken on purpose.
#[derive(Debug)]
struct Copy {
    folder: PathBuf,
}

/// What is to be done, and what came out.
#[derive(Debug)]
struct Work<'a> {
    place: &'a Place,
    files: BTreeSet<PathBuf>,
    queue: VecDeque<Case>,
    report: Report,
}

impl<'a> Work<'a> {
    fn prepare(place: &'a Place, selection: &Selection) -> Result<Self, String> {
        let (chosen, cases) = select(place, selection)?;
        let (explained, queue): (Vec<_>, Vec<_>) =
            cases.into_iter().partition(|c| c.mutant.explained.is_some());
        let report = Report { chosen, explained, ..Report::default() };
        Ok(Self { place, files: place.files()?, queue: queue.into(), report })
    }

    fn run(mut self, budget: Option<Duration>, progress: impl Fn(&str) + Sync) -> Result<Report, String> {
        if self.queue.is_empty() {
            return Ok(self.report);
        }
        let started = Instant::now();
        if budget.is_some() {
            self.start_elsewhere();
        }
        let first = self.copy(0)?;
        let limits = self.baseline(&first)?;
        self.queue.retain(|case| limits.contains_key(case.package));
        let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 4);
        let mut copies = vec![first];
        for number in 1..workers.min(self.queue.len()) {
            copies.push(self.copy(number)?);
        }

        let total = self.queue.len();
        let queue = Mutex::new(self.queue);
        let verdicts = Mutex::new(Vec::new());
        // A worker that panics ends the run by itself when the scope ends.
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let done = |case: Case, verdict: Verdict| {
            let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
            progress(&format!("{:<56} {} [{}/{total}]", case.name(), describe(&verdict), verdicts.len() + 1));
            verdicts.push((case, verdict));
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = copies
                .iter()
                .map(|copy| {
                    scope.spawn(|| -> Result<(), String> {
                        while budget.is_none_or(|budget| started.elapsed() < budget) {
                            let Some(case) = next() else { break };
                            let limit = limits.get(case.package).copied().unwrap_or(LIMIT);
                            let verdict = copy.judge(self.place, &case, limit)?;
                            done(case, verdict);
                        }
                        Ok(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
        })?;
        self.report.left = queue.into_inner().unwrap_or_else(PoisonError::into_inner).len();
        self.report.verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.report.verdicts.sort_by_key(|(case, _)| (case.file, case.mutant.line, case.mutant.column));
        Ok(self.report)
    }

    /// Where the time does not suffice for all, each commit starts at another one.
    fn start_elsewhere(&mut self) {
        let head = self.place.git(&["rev-parse", "--verify", "--quiet", "HEAD"]).unwrap_or_default();
        let seed = head.get(..8).and_then(|digits| usize::from_str_radix(digits, 16).ok()).unwrap_or(0);
        let length = self.queue.len();
        self.queue.rotate_left(seed % length);
    }

    /// Brings copy `number` up to date. Files that are the same stay untouched, so that builds are short.
    fn copy(&self, number: usize) -> Result<Copy, String> {
        let copy = Copy { folder: self.place.folder(&format!("mutants/{number}"))? };
        let root = copy.root();
        let trouble = |path: &Path, e| format!("cannot copy to {}: {e}", path.display());
        for file in &self.files {
            let to = root.join(file);
            let from = fs::read(self.place.root.join(file)).map_err(|e| trouble(&to, e))?;
            if fs::read(&to).is_ok_and(|there| there == from) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|e| trouble(&to, e))?;
            }
            fs::write(&to, from).map_err(|e| trouble(&to, e))?;
        }
        copy.remove_others(&self.files)?;
        for shim in Shim::ALL {
            let target = copy.folder.join(shim.folder());
            // Copy 0 takes over what the models built, the others what copy 0 built.
            let seed = match number {
                0 => self.place.target.join(shim.folder()),
                _ => self.place.target.join("mutants/0").join(shim.folder()),
            };
            if !target.exists() && seed.exists() {
                // Without the seed the first build is longer, and nothing else.
                let _ = Command::new("cp").arg("-a").arg(seed).arg(&target).status();
            }
        }
        Ok(copy)
    }

    /// The models must pass on the copy as it is, or every mutant would look noticed. How long a mutant of
    /// each package may take; a package whose models can not judge is not among them.
    fn baseline(&mut self, copy: &Copy) -> Result<BTreeMap<&'static str, Duration>, String> {
        let packages: BTreeSet<_> = self.queue.iter().map(|case| case.package).collect();
        let mut limits = BTreeMap::new();
        for package in packages {
            let mut limit = LIMIT;
            let mut passed = true;
            for shim in Shim::ALL {
                let build = copy.build(self.place, package, shim)?;
                let outcome = if build.ok() {
                    copy.models(self.place, package, None, shim, BUILD_LIMIT)?
                } else {
                    build
                };
                limit = limit.max(outcome.time * 4);
                passed = outcome.ok();
                if !passed {
                    let what = format!("{package}, {}: fails without any mutation", shim.title());
                    self.report.unusable.push(format!("{what}:\n{}", outcome.output));
                    break;
                }
            }
            if passed {
                limits.insert(package, limit);
            }
        }
        Ok(limits)
    }
}

impl Copy {
    fn root(&self) -> PathBuf {
        self.folder.join("work")
    }

    fn remove_others(&self, files: &BTreeSet<PathBuf>) -> Result<(), String> {
        let root = self.root();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let entries =
                fs::read_dir(&folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
            for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.strip_prefix(&root).is_ok_and(|relative| !files.contains(relative)) {
                    fs::remove_file(&path).map_err(|e| format!("cannot remove {}: {e}", path.display()))?;
                }
            }
        }
        Ok(())
    }

    fn command(&self, place: &Place, package: &str, shim: Shim) -> Command {
        let mut command = place.cargo_in(&self.root());
        command.args(["test", "--release", "--package", package, "--test", "model"]);
        // What killed a mutant is of interest, the way there is not.
        command.env("RUST_BACKTRACE", "0");
        configure(&mut command, shim, self.folder.join(shim.folder()));
        command
    }

    fn build(&self, place: &Place, package: &str, shim: Shim) -> Result<Outcome, String> {
        let mut command = self.command(place, package, shim);
        run::run(command.arg("--no-run"), &self.folder.join("build.log"), BUILD_LIMIT, None)
    }

    /// Runs the models of a package (those in one file of it), until the first failure.
    fn models(
        &self,
        place: &Place,
        package: &str,
        file: Option<&str>,
        shim: Shim,
        limit: Duration,
    ) -> Result<Outcome, String> {
        let mut command = self.command(place, package, shim);
        command.arg("--").args(file.map(|file| format!("{file}::")));
        run::run(&mut command, &self.folder.join("models.log"), limit, Some(" ... FAILED"))
    }

    fn judge(&self, place: &Place, case: &Case, limit: Duration) -> Result<Verdict, String> {
        let file = self.root().join(case.file);
        let trouble = |e| format!("cannot change {}: {e}", file.display());
        let source = fs::read_to_string(&file).map_err(trouble)?;
        fs::write(&file, case.mutant.apply(&source)).map_err(trouble)?;
        // crates/sync/src/once.rs has its models in crates/sync/tests/model/once.rs, src/exchange/*.rs in tests/model/exchange.rs.
        let path = case.file.replace("/src/", "/tests/model/");
        let folder = path.rsplit_once('/').map(|(folder, _)| format!("{folder}.rs"));
        let folder = folder.filter(|file| file.contains("/tests/model/"));
        let models = self.root().join(folder.as_ref().unwrap_or(&path));
        let name = models.file_stem().and_then(|name| name.to_str());
        let verdict = self.verdict(place, case.package, name.filter(|_| models.exists()), limit);
        fs::write(&file, source).map_err(trouble)?;
        verdict
    }

    fn verdict(
        &self,
        place: &Place,
        package: &str,
        models: Option<&str>,
        limit: Duration,
    ) -> Result<Verdict, String> {
        for shim in Shim::ALL {
            let build = self.build(place, package, shim)?;
            if !build.ok() {
                return Ok(Verdict::DoesNotBuild(build.output));
            }
            let outcome = self.models(place, package, models, shim, limit)?;
            match outcome.end {
                End::Success => {}
                End::Limit => return Ok(Verdict::KilledByLimit),
                End::Failure | End::Stopped => {
                    let by = output::parse(&outcome.output).failures.into_iter().next();
                    // Sleeping for ever is a panic of loom's, and one in a destructor soon after that.
                    let by = by.or_else(|| panicked(&outcome.output).map(|name| format!("{name} (abort)")));
                    let by = by.unwrap_or_else(|| "a crash".to_owned());
                    return Ok(Verdict::Killed { by: format!("{by}, {}", shim.folder()) });
                }
            }
        }
        Ok(Verdict::Survived)
    }
}

/// The first test that panicked.
fn panicked(output: &str) -> Option<&str> {
    output.lines().find(|line| line.contains(" panicked at "))?.split('\'').nth(1)
}

fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Killed { by } => format!("killed by {by}"),
        Verdict::KilledByLimit => "killed by the time limit".to_owned(),
        Verdict::Survived => "SURVIVED".to_owned(),
        Verdict::DoesNotBuild(_) => "DOES NOT BUILD".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(explained: bool) -> Case {
        let source = if explained {
            "a.load(Acquire); // mutant: equivalent, because of that"
        } else {
            "a.load(Acquire);"
        };
        let mutant = sites::find(source).unwrap().remove(0);
        Case { file: FILES[0].0, package: FILES[0].1, mutant }
    }

    fn report(verdicts: Vec<(Case, Verdict)>) -> Report {
        Report { chosen: "all files".to_owned(), verdicts, ..Report::default() }
    }

    #[test]
    fn an_unexplained_survivor_is_a_failure() {
        let killed = Verdict::Killed { by: "x".to_owned() };
        assert!(report(vec![(case(false), killed.clone()), (case(false), Verdict::KilledByLimit)]).ok());
        assert!(!report(vec![(case(false), Verdict::Survived)]).ok());
        assert!(!report(vec![(case(false), Verdict::DoesNotBuild(String::new()))]).ok());
        assert!(report(vec![(case(true), Verdict::Survived)]).ok());
        assert!(!report(vec![(case(true), killed)]).ok(), "the explanation is wrong");
    }

    #[test]
    fn a_file_is_changed_when_its_models_are() {
        let changed = |path: &str| is_changed(&FILES[0], &BTreeSet::from([PathBuf::from(path)]));
        assert!(changed("crates/atomic/src/event.rs"));
        assert!(changed("crates/atomic/tests/model.rs"));
        assert!(changed("crates/atomic/tests/model/event.rs"));
        assert!(!changed("crates/atomic/src/lib.rs"));
        assert!(!changed("crates/sync/tests/model.rs"));
    }
}
