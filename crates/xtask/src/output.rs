//! What cargo, libtest and our own tests print, as numbers.
//!
//! Lines of our own, printed by tests:
//!
//! ```text
//! model NAME: N executions
//! corpus NAME: N inputs
//! not run: REASON
//! ```

use std::collections::BTreeSet;

/// One test binary, or the doc tests of one crate.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Unit {
    pub name: String,
    /// False for a program that is a test by its exit status alone, and for a binary that crashed.
    has_result: bool,
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    pub seconds: f64,
}

#[derive(Debug, Default, PartialEq)]
pub struct Parsed {
    pub units: Vec<Unit>,
    pub models: Vec<(String, u64)>,
    pub corpora: Vec<(String, u64)>,
    pub not_run: Vec<String>,
    /// Names of failed tests.
    pub failures: Vec<String>,
}

impl Parsed {
    pub fn passed(&self) -> u64 {
        self.units.iter().map(|unit| unit.passed).sum()
    }

    pub fn failed(&self) -> u64 {
        self.units.iter().map(|unit| unit.failed).sum()
    }

    pub fn ignored(&self) -> u64 {
        self.units.iter().map(|unit| unit.ignored).sum()
    }
}

pub fn parse(output: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let mut failed_targets = BTreeSet::new();
    for line in output.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("Running ") {
            if let Some(name) = binary(rest) {
                parsed.units.push(Unit { name, ..Unit::default() });
            }
        } else if let Some(krate) = line.strip_prefix("Doc-tests ") {
            parsed.units.push(Unit { name: format!("{krate} (doc)"), ..Unit::default() });
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            // The doc tests of one crate come in several runs, each with a result of its own.
            if parsed.units.is_empty() {
                parsed.units.push(Unit { name: "tests".to_owned(), ..Unit::default() });
            }
            if let Some(unit) = parsed.units.last_mut() {
                add_result(unit, rest);
            }
        } else if let Some(model) = counted(line, "model ", "executions") {
            parsed.models.push(model);
        } else if let Some(corpus) = counted(line, "corpus ", "inputs") {
            parsed.corpora.push(corpus);
        } else if let Some(reason) = line.strip_prefix("not run: ") {
            parsed.not_run.push(reason.to_owned());
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            parsed.failures.push(name.to_owned());
        } else if let Some(arguments) = line.strip_prefix("`-p ").and_then(|rest| rest.strip_suffix('`')) {
            // Cargo's list of failed targets, as arguments to run each again: package and target are named.
            failed_targets.extend(arguments.split(' ').map(|word| word.replace('-', "_")));
        }
    }
    for unit in parsed.units.iter_mut().filter(|unit| !unit.has_result) {
        let name = unit.name.split(" (").next().unwrap_or(&unit.name);
        if failed_targets.contains(&name.replace('-', "_")) {
            unit.failed += 1;
            parsed.failures.push(unit.name.clone());
        } else {
            unit.passed += 1;
        }
    }
    parsed
}

/// `tests/house.rs (target/debug/deps/house-0123456789abcdef)` is `house`.
fn binary(rest: &str) -> Option<String> {
    let (source, path) = rest.strip_suffix(')')?.rsplit_once(" (")?;
    let file = path.rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _hash)| name);
    Some(if source.starts_with("unittests examples/") {
        format!("{name} (example)")
    } else if source.starts_with("unittests ") {
        format!("{name} (unit)")
    } else {
        name.to_owned()
    })
}

/// `ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.12s`
fn add_result(unit: &mut Unit, rest: &str) {
    unit.has_result = true;
    let counts = rest.split_once(". ").map_or(rest, |(_, counts)| counts);
    for part in counts.split(';').map(str::trim) {
        if let Some(seconds) = part.strip_prefix("finished in ").and_then(|s| s.strip_suffix('s')) {
            unit.seconds += seconds.parse().unwrap_or(0.0);
        } else if let Some((number, what)) = part.split_once(' ') {
            let number = number.parse::<u64>().unwrap_or(0);
            match what {
                "passed" => unit.passed += number,
                "failed" => unit.failed += number,
                "ignored" => unit.ignored += number,
                _ => {}
            }
        }
    }
}

/// `model NAME: N executions`; underscores and commas in the number are allowed.
fn counted(line: &str, prefix: &str, unit: &str) -> Option<(String, u64)> {
    let (name, rest) = line.strip_prefix(prefix)?.split_once(": ")?;
    let (number, noun) = rest.split_once(' ')?;
    let number = number.replace([',', '_'], "").parse().ok()?;
    (noun.strip_suffix('s').unwrap_or(noun) == unit.trim_end_matches('s')).then(|| (name.to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
   Compiling crossproc-atomic v0.1.0 (/x/crates/atomic)
    Finished `test` profile [unoptimized] target(s) in 1.23s
     Running unittests src/lib.rs (target/debug/deps/crossproc_atomic-00a7d33c1a1f2e4b)

running 2 tests
test event::flag ... ok
test event::tear ... FAILED

successes:

---- event::flag stdout ----
model event_count: 12,345 executions
corpus owner: 7 inputs
not run: no user namespaces here

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.25s

     Running tests/house.rs (target/debug/deps/house-00a7d33c1a1f2e4b)
test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s

   Doc-tests crossproc_atomic
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.20s
";

    #[test]
    fn results_belong_to_the_binary_above_them() {
        let parsed = parse(OUTPUT);
        let names: Vec<_> = parsed.units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(names, ["crossproc_atomic (unit)", "house", "crossproc_atomic (doc)"]);
        assert_eq!((parsed.passed(), parsed.failed(), parsed.ignored()), (12, 1, 1));
        assert!((parsed.units[1].seconds - 1.5).abs() < 1e-9);
        assert!((parsed.units[2].seconds - 0.3).abs() < 1e-9);
        assert_eq!(parsed.failures, ["event::tear"]);
    }

    #[test]
    fn a_program_without_a_result_line_counts_by_its_exit_status() {
        let running = "
     Running unittests examples/tour.rs (target/debug/examples/tour-00a7d33c1a1f2e4b)
hello
     Running tests/it/main.rs (target/debug/deps/it-00a7d33c1a1f2e4b)
     Running unittests src/lib.rs (target/debug/deps/crossproc_atomic-00a7d33c1a1f2e4b)
test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
";
        assert_eq!((parse(running).passed(), parse(running).failed()), (11, 0));
        let parsed =
            parse(&format!("{running}error: 1 target failed:\n    `-p crossproc-tests --test it`\n"));
        assert_eq!((parsed.passed(), parsed.failed()), (10, 1));
        assert_eq!(parsed.failures, ["it"]);
    }

    #[test]
    fn our_own_lines_are_counted() {
        let parsed = parse(OUTPUT);
        assert_eq!(parsed.models, [("event_count".to_owned(), 12_345)]);
        assert_eq!(parsed.corpora, [("owner".to_owned(), 7)]);
        assert_eq!(parsed.not_run, ["no user namespaces here"]);
        assert_eq!(parse("corpus one: 1 input").corpora, [("one".to_owned(), 1)]);
    }

    #[test]
    fn other_lines_are_not() {
        assert_eq!(
            parse("model checking is hard: yes\nRunning away\nmodel x: many executions"),
            Parsed::default()
        );
    }
}
