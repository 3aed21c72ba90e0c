//! `cargo xtask fuzz`: libFuzzer with the stable compiler.
//!
//! The coverage instrumentation is a pass of LLVM that stable may be asked for. AddressSanitizer is not
//! stable, so the compiler is told that it may use it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::place::Place;
use crate::tools;

const FLAGS: [&str; 8] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Zsanitizer=address",
];

pub fn run(place: &Place, target: &str, duration: Duration) -> Result<bool, String> {
    let seeds = place.root.join("fuzz/corpus").join(target);
    if target.contains('/') || !seeds.is_dir() {
        return Err(format!("no fuzz target `{target}`; there are: {}", targets(place)?.join(", ")));
    }
    if Command::new("c++").arg("--version").output().is_err() {
        return Err("libFuzzer is built from its C++ source, and there is no `c++` here".to_owned());
    }
    let folder = place.folder("fuzz")?;
    let triple = tools::triple();
    println!("building {target} with coverage and AddressSanitizer");
    let mut build = place.cargo();
    build
        .args([
            "build",
            "--release",
            "--package",
            "crossproc-fuzz",
            "--features",
            "libfuzzer",
            "--bin",
            "libfuzzer",
        ])
        .args(["--target", &triple])
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS.join(" "))
        .env("CARGO_TARGET_DIR", &folder);
    if !tools::succeeds(&mut build)? {
        return Ok(false);
    }

    let found = place.folder(&format!("fuzz/found/{target}"))?;
    let artifacts = place.folder(&format!("fuzz/artifacts/{target}"))?;
    let before = files(&artifacts)?.len();
    let mut fuzzer = Command::new(folder.join(&triple).join("release/libfuzzer"));
    fuzzer
        .current_dir(&place.root)
        .env("CROSSPROC_FUZZ_TARGET", target)
        // The duration is one of whole seconds there, and 0 means for ever.
        .arg(format!("-max_total_time={}", duration.as_secs().max(1)))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-timeout=10", "-rss_limit_mb=2048", "-use_value_profile=1", "-print_final_stats=1"])
        .arg(&found)
        .arg(&seeds);
    let ok = tools::succeeds(&mut fuzzer)?;
    println!("\ninputs that reached something new: {}", found.display());
    if !ok && files(&artifacts)?.len() > before {
        println!(
            "the input that failed is in {}; copy it to {} to have it replayed by",
            artifacts.display(),
            seeds.display()
        );
        println!("every `cargo test` once the bug is gone");
    }
    Ok(ok)
}

/// Each target has a corpus, so the corpora name the targets.
fn targets(place: &Place) -> Result<Vec<String>, String> {
    let mut names = files(&place.root.join("fuzz/corpus"))?;
    names.sort();
    Ok(names)
}

fn files(folder: &std::path::Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}
