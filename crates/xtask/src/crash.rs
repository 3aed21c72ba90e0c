//! `cargo xtask crash`: the package `crossproc-crash`, unoptimised and optimised; and its short form among the steps of
//! `cargo xtask test`.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::place::Place;
use crate::session::Session;
use crate::text::{count, many};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Operations whose name contains this
    #[arg(long, default_value = "all")]
    op: String,
    /// Which modes, separated by commas; `cargo run -p crossproc-crash -- --help` has them
    #[arg(long, default_value = "all")]
    mode: String,
    /// Half a minute for the usual modes
    #[arg(long)]
    quick: bool,
    /// Unoptimised only
    #[arg(long, conflicts_with = "release")]
    debug: bool,
    /// Optimised only
    #[arg(long)]
    release: bool,
}

/// What the short form runs: what can be checked from one pass through each operation.
const SHORT: &str = "kills,images,double";

/// What is counted, in the order in which people want to know it.
const FIGURES: [&str; 6] = ["operations", "states", "kills", "images", "pairs", "taken"];
const BAD: [&str; 5] = ["wedged", "lost", "duplicated", "corrupt", "crashed"];

type Totals = BTreeMap<String, u64>;

/// `cargo xtask crash`
pub fn run(place: &Place, options: &Options) -> Result<bool, String> {
    let profiles: &[&str] = match (options.debug, options.release) {
        (true, _) => &["debug"],
        (_, true) => &["release"],
        _ => &["debug", "release"],
    };
    let (mut sum, mut all_right) = (Totals::new(), true);
    for profile in profiles {
        println!("{profile}");
        let mut command = command(place, *profile == "release");
        command.args(["--op", &options.op, "--mode", &options.mode, "--json"]);
        command.args(options.quick.then_some("--quick"));
        let output = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| format!("cannot start cargo: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines().filter(|line| !line.starts_with('{')) {
            println!("{line}");
        }
        // Whoever reads our output may have gone; that changes nothing.
        let _ = stdout().flush();
        all_right &= output.status.success();
        match totals(&text) {
            Some(totals) => add(&mut sum, totals),
            None => all_right = false,
        }
    }
    println!("\n{}: {}", profiles.join(" and "), summary(&sum));
    Ok(all_right)
}

/// The short form, as a step of a run of tests.
pub fn step(place: &Place, session: &mut Session<'_>, limit: Duration) -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        session.left_out("crash", "single-stepping is written for x86-64");
        return Ok(());
    }
    let mut command = command(place, false);
    command.args(["--mode", SHORT, "--quick", "--json"]);
    session.program("crash", command, limit, |output| {
        totals(output).map(|totals| summary(&totals)).ok_or_else(|| "there is no line with totals".to_owned())
    })?;
    Ok(())
}

fn command(place: &Place, release: bool) -> Command {
    let mut command = place.cargo();
    command.args(["run", "--quiet", "--package", "crossproc-crash", "--bin", "crash"]);
    command.args(release.then_some("--release")).arg("--");
    command
}

/// The totals in the last line of JSON: names and numbers, nothing nested.
fn totals(output: &str) -> Option<Totals> {
    let line = output.lines().rev().find(|line| line.starts_with("{\"schema\":"))?;
    let (_, rest) = line.split_once("\"totals\":{")?;
    let (totals, _) = rest.split_once('}')?;
    let pair = |pair: &str| {
        let (name, number) = pair.split_once(':')?;
        Some((name.trim_matches('"').to_owned(), number.parse().ok()?))
    };
    totals.split(',').map(pair).collect()
}

fn add(sum: &mut Totals, totals: Totals) {
    for (name, number) in totals {
        // The same operations, and the same planted bugs, each time.
        let own = sum.entry(name.clone()).or_default();
        *own =
            if ["operations", "planted"].contains(&name.as_str()) { number.max(*own) } else { *own + number };
    }
}

fn summary(totals: &Totals) -> String {
    let get = |name: &str| totals.get(name).copied().unwrap_or(0);
    let figures: Vec<_> = FIGURES.iter().map(|name| format!("{} {name}", count(get(name)))).collect();
    let bad: Vec<_> =
        BAD.iter().filter(|name| get(name) > 0).map(|name| format!("{} {name}", get(name))).collect();
    let bad = if bad.is_empty() { "nothing bad".to_owned() } else { format!("BAD: {}", bad.join(", ")) };
    format!("{}; {bad}; {} found", figures.join(", "), many(get("planted"), "planted bug"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "operation  kills\n\
        {\"schema\":1,\"crash\":\"kills\",\"totals\":{\"kills\":1200,\"lost\":0,\"ok\":7,\"operations\":2,\"planted\":4},\"rows\":[]}\n\
        all right\n";

    #[test]
    fn totals_are_read_and_summed() {
        let mut sum = Totals::new();
        for _ in 0..2 {
            add(&mut sum, totals(OUTPUT).unwrap());
        }
        assert_eq!((sum["kills"], sum["operations"], sum["planted"], sum["ok"]), (2400, 2, 4, 14));
        assert_eq!(
            summary(&sum),
            "2 operations, 0 states, 2,400 kills, 0 images, 0 pairs, 0 taken; nothing bad; 4 planted bugs found"
        );
        sum.insert("wedged".to_owned(), 3);
        assert!(summary(&sum).contains("BAD: 3 wedged"));
        assert_eq!(totals("no JSON"), None);
    }
}
