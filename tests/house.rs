//! The house checks itself: floors, rooms with `unsafe`, dependencies, words that must not be left behind.
//!
//! A test that fails here names the file and the rule. The lists are meant to be edited, by somebody who can
//! say why: a new room is a new thing to audit, a new dependency a new thing to trust.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Which crate lives on which floor. A crate depends on lower floors only, never on a sibling.
const FLOORS: &[(&str, u32)] = &[
    ("crossproc-atomic", 0),
    ("crossproc-ring", 1),
    ("crossproc-segment", 1),
    ("crossproc-sync", 1),
    ("crossproc-primitives", 2),
    ("crossproc-process", 3),
    ("crossproc-manager", 4),
    ("crossproc-pool", 4),
    ("crossproc", 5),
    ("crossproc-cli", 6),
];

/// Beside the floors: `derive` may be used from every floor, `xtask` from none, and neither uses any.
const BESIDE: &[&str] = &["crossproc-derive", "crossproc-xtask"];

/// What libraries may need at run time. Programs, tests and benches take what they like.
/// `hmac` and `sha2`: nobody should write his own authentication of peers.
const RUN_TIME: &[&str] = &["bytemuck", "hmac", "inventory", "libc", "postcard", "rustix", "serde", "sha2"];

/// What a procedural macro may need.
const MACRO_TIME: &[&str] = &["proc-macro2", "quote", "syn"];

/// Every file of a library that allows itself `unsafe`. `git grep 'allow(unsafe_code)'` prints the same.
const ROOMS: &[&str] = &[
    "crates/atomic/src/linux.rs",
    "crates/atomic/src/pair.rs",
    "crates/atomic/src/share.rs",
    "crates/primitives/src/array.rs",
    "crates/primitives/src/block_cells.rs",
    "crates/primitives/src/byte_cells.rs",
    "crates/primitives/src/cells.rs",
    "crates/primitives/src/listener/peer.rs",
    "crates/primitives/src/mutex.rs",
    "crates/primitives/src/pipe/bytes.rs",
    "crates/primitives/src/rwlock.rs",
    "crates/primitives/src/slab.rs",
    "crates/process/src/copies.rs",
    "crates/process/src/entry.rs",
    "crates/process/src/hook.rs",
    "crates/process/src/linux.rs",
    "crates/segment/src/adopt.rs",
    "crates/segment/src/helper.rs",
    "crates/segment/src/map.rs",
    "crates/segment/src/per_process.rs",
    "crates/segment/src/place.rs",
];

/// Files of libraries that name the machine's atomics or `UnsafeCell`. All others take their words from
/// `crossproc-atomic`, or loom could not take their place.
const ATOMICS: &[&str] = &[
    // The words themselves.
    "crates/atomic/src/lib.rs",
    "crates/atomic/src/linux.rs",
    "crates/atomic/src/machine.rs",
    "crates/atomic/src/pair.rs",
    // Payload between words.
    "crates/segment/src/place.rs",
    // Words of one process alone, never in a segment.
    "crates/process/src/builder.rs",
    "crates/process/src/current.rs",
    "crates/process/src/hook.rs",
    "crates/segment/src/helper.rs",
    "crates/segment/src/per_process.rs",
    // A test.
    "crates/segment/src/corruption.rs",
];

const ARCHITECTURE_LINES: usize = 180;

/// Longer files are reported, not refused.
const LONG: usize = 400;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Paths below `folder`, relative to the root, that end in `end`.
fn files(folder: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                if entry.file_name() != "target" {
                    folders.push(path);
                }
            } else if path.to_str().unwrap().ends_with(end) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// All Rust files, with their text.
fn rust() -> BTreeMap<String, String> {
    let paths = ["crates", "tests", "benches", "fuzz"].map(|folder| files(folder, ".rs")).concat();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

/// Rust files of the libraries, without their tests and examples.
fn libraries() -> BTreeMap<String, String> {
    let program = |path: &str| path.starts_with("crates/xtask/") || path.starts_with("crates/cli/");
    rust()
        .into_iter()
        .filter(|(p, _)| p.starts_with("crates/") && p.contains("/src/") && !program(p))
        .collect()
}

/// The text without comments that run to the end of a line.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// Lines that contain `needle` with no letter, digit or underscore at either end of it.
fn lines_with(text: &str, needle: &str) -> Vec<usize> {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let edge = |c: Option<char>, text: Option<char>| joins(c) && joins(text);
    let holds = |line: &str| {
        line.match_indices(needle).any(|(at, _)| {
            let (before, after) = (line[..at].chars().last(), line[at + needle.len()..].chars().next());
            !edge(needle.chars().next(), before) && !edge(needle.chars().last(), after)
        })
    };
    text.lines().enumerate().filter(|(_, line)| holds(line)).map(|(i, _)| i + 1).collect()
}

/// Fails with one line for each finding.
fn none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<_> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n  {}\n", findings.join("\n  "));
}

fn parse(path: &str) -> Table {
    fs::read_to_string(root().join(path)).unwrap().parse().unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// One dependency in a manifest.
#[derive(Debug)]
struct Dependency {
    name: String,
    /// `dependencies`, `dev-dependencies` or `build-dependencies`.
    table: String,
    /// The `cfg(..)` it stands under.
    target: Option<String>,
    optional: bool,
}

fn dependencies(manifest: &Table) -> Vec<Dependency> {
    let mut found = Vec::new();
    let mut collect = |tables: &Table, target: Option<&str>| {
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (key, value) in tables.get(table).and_then(Value::as_table).into_iter().flatten() {
                found.push(Dependency {
                    name: value.get("package").and_then(Value::as_str).unwrap_or(key).to_owned(),
                    table: table.to_owned(),
                    target: target.map(str::to_owned),
                    optional: value.get("optional").and_then(Value::as_bool).unwrap_or(false),
                });
            }
        }
    };
    collect(manifest, None);
    for (target, tables) in manifest.get("target").and_then(Value::as_table).into_iter().flatten() {
        collect(tables.as_table().unwrap(), Some(target));
    }
    found
}

/// Name and dependencies of every package in `crates/`.
fn crates() -> BTreeMap<String, Vec<Dependency>> {
    let manifests = files("crates", "/Cargo.toml");
    manifests
        .iter()
        .map(|path| {
            let manifest = parse(path);
            (manifest["package"]["name"].as_str().unwrap().to_owned(), dependencies(&manifest))
        })
        .collect()
}

fn floor(name: &str) -> Option<u32> {
    FLOORS.iter().find(|(krate, _)| *krate == name).map(|(_, floor)| *floor)
}

#[test]
fn every_crate_has_its_floor_and_its_folder() {
    let crates = crates();
    none(
        crates
            .keys()
            .filter(|name| floor(name).is_none() && !BESIDE.contains(&name.as_str()))
            .map(|name| format!("{name} has no floor")),
    );
    for path in files("crates", "/Cargo.toml") {
        let name = parse(&path)["package"]["name"].as_str().unwrap().to_owned();
        let folder = name.strip_prefix("crossproc-").unwrap_or(&name);
        assert_eq!(
            path,
            format!("crates/{folder}/Cargo.toml"),
            "a folder is named like its crate, without the prefix"
        );
    }
}

#[test]
fn dependencies_lead_downward() {
    let mut findings = Vec::new();
    for (name, dependencies) in crates() {
        for on in dependencies.iter().filter(|on| on.name.starts_with("crossproc")) {
            let down = match (floor(&name), floor(&on.name)) {
                (Some(own), Some(other)) => other < own,
                (Some(_), None) => on.name == "crossproc-derive",
                // The macro's tests need the trait that it derives; nothing else beside the floors needs any.
                (None, _) => name == "crossproc-derive" && on.table == "dev-dependencies",
            };
            if !down {
                findings.push(format!("{name} depends on {}, which is not below it ({})", on.name, on.table));
            }
        }
    }
    none(findings);
}

#[test]
fn libraries_need_little_at_run_time() {
    let mut findings = Vec::new();
    for (name, dependencies) in crates() {
        if matches!(name.as_str(), "crossproc-xtask" | "crossproc-cli") {
            continue;
        }
        for on in dependencies.iter().filter(|on| on.table != "dev-dependencies") {
            let allowed = match on.name.as_str() {
                "loom" => name == "crossproc-atomic" && on.target.as_deref() == Some("cfg(crossproc_model)"),
                "shared_memory" => name == "crossproc-segment" && on.optional,
                "futures-core" | "futures-io" | "futures-sink" | "mio" | "tokio" => {
                    name == "crossproc-primitives" && on.optional
                }
                other if name == "crossproc-derive" => MACRO_TIME.contains(&other),
                other => other.starts_with("crossproc-") || RUN_TIME.contains(&other),
            };
            if !allowed {
                findings.push(format!("{name} depends on {}", on.name));
            }
        }
    }
    none(findings);
}

#[test]
fn nobody_depends_on_what_was_measured_broken() {
    let mut findings = Vec::new();
    let manifests =
        [files("crates", "/Cargo.toml"), files("tests", "/Cargo.toml"), files("fuzz", "/Cargo.toml")];
    for path in manifests.concat() {
        let adapter = path == "crates/segment/Cargo.toml" || path == "tests/Cargo.toml";
        for on in dependencies(&parse(&path)) {
            if ["bincode", "raw_sync"].contains(&on.name.as_str()) || (on.name == "shared_memory" && !adapter)
            {
                findings.push(format!("{path}: {}", on.name));
            }
        }
    }
    none(findings);
}

#[test]
fn everything_comes_from_the_registry() {
    let lock = parse("Cargo.lock");
    let packages = lock["package"].as_array().unwrap();
    let sources = packages.iter().filter_map(|package| Some((package, package.get("source")?.as_str()?)));
    none(
        sources
            .filter(|(_, source)| *source != "registry+https://github.com/rust-lang/crates.io-index")
            .map(|(package, source)| format!("{:?} comes from {source}", package["name"])),
    );
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    let libraries = libraries();
    let doors = ["allow(unsafe_code", "expect(unsafe_code", "warn(unsafe_code"];
    let open: BTreeSet<_> = libraries
        .iter()
        .filter(|(_, text)| doors.iter().any(|door| code(text).contains(door)))
        .map(|(path, _)| path.as_str())
        .collect();
    let rooms: BTreeSet<_> = ROOMS.iter().copied().collect();
    none(open.difference(&rooms).map(|path| format!("{path} allows unsafe code and is not on the list")));
    none(rooms.difference(&open).map(|path| format!("{path} is on the list and does not allow unsafe code")));

    // Without the lint at the root of the crate there would be no door at all.
    for (path, text) in libraries.iter().filter(|(path, _)| path.ends_with("/src/lib.rs")) {
        let folder = path.trim_end_matches("lib.rs");
        let lint = if rooms.iter().any(|room| room.starts_with(folder)) { "deny" } else { "forbid" };
        let attribute = format!("#![{lint}(unsafe_code)]");
        assert!(text.lines().any(|line| line.trim() == attribute), "{path} lacks `{attribute}`");
    }
}

#[test]
fn atomics_come_from_one_crate() {
    let needles = ["core::sync::atomic", "std::sync::atomic", "UnsafeCell"];
    let libraries = libraries();
    let named: BTreeSet<_> = libraries
        .iter()
        .filter(|(_, text)| needles.iter().any(|needle| !lines_with(&code(text), needle).is_empty()))
        .map(|(path, _)| path.as_str())
        .collect();
    let allowed: BTreeSet<_> = ATOMICS.iter().copied().collect();
    none(
        named
            .difference(&allowed)
            .map(|path| format!("{path} names the machine's atomics and is not on the list")),
    );
    none(
        allowed.difference(&named).map(|path| format!("{path} is on the list and names none of the atomics")),
    );
}

#[test]
fn only_the_lowest_floor_knows_the_model_checker() {
    let others = libraries().into_iter().filter(|(path, _)| !path.starts_with("crates/atomic/"));
    none(
        others
            .filter(|(_, text)| !lines_with(&code(text), "loom").is_empty())
            .map(|(path, _)| format!("{path} names loom")),
    );
}

#[test]
fn no_futex_is_private_to_a_process() {
    // Built from parts, so that this file has none of them.
    let needles =
        [concat!("FUTEX_", "PRIVATE_FLAG"), concat!("FUTEX_", "PRIVATE"), concat!("Flags::", "PRIVATE")];
    none(rust().iter().flat_map(|(path, text)| {
        let text = code(text);
        let lines: BTreeSet<_> = needles.iter().flat_map(|needle| lines_with(&text, needle)).collect();
        lines
            .into_iter()
            .map(move |line| format!("{path}:{line}: a waker in another process would not be heard"))
    }));
}

#[test]
fn nothing_is_left_undone() {
    // Built from parts, so that this file has none of them.
    let needles = [
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
        concat!("db", "g!"),
        concat!("#[", "ignore"),
        concat!(", ", "ignore)]"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    none(rust().iter().flat_map(|(path, text)| {
        needles.iter().flat_map(move |needle| {
            lines_with(text, needle).into_iter().map(move |line| format!("{path}:{line}: {needle}"))
        })
    }));
}

#[test]
fn nothing_is_read_from_outside() {
    let outside = concat!("../", "shared");
    let paths =
        [files("crates", ".toml"), files("tests", ".toml"), files("benches", ".toml"), files(".ci", "")];
    none(
        rust()
            .into_iter()
            .chain(
                paths
                    .concat()
                    .into_iter()
                    .map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())),
            )
            .filter(|(_, text)| text.contains(outside))
            .map(|(path, _)| format!("{path} names {outside}")),
    );
}

#[test]
fn the_architecture_stays_short() {
    if let Ok(text) = fs::read_to_string(root().join("ARCHITECTURE.md")) {
        let lines = text.lines().count();
        assert!(
            lines <= ARCHITECTURE_LINES,
            "ARCHITECTURE.md has {lines} lines, more than {ARCHITECTURE_LINES}"
        );
    }
}

#[test]
fn long_files_are_reported() {
    for (path, text) in rust() {
        let lines = text.lines().count();
        if lines > LONG {
            println!("long file: {path} has {lines} lines");
        }
    }
}

#[test]
fn needles_are_found_as_words() {
    assert_eq!(lines_with("a\nFlags::P\nMapFlags::P\nFlags::Px", "Flags::P"), [2]);
    assert_eq!(lines_with("x-XYZXYZ\nXYZ\n(XYZ)", "XYZ"), [2, 3]);
    assert_eq!(lines_with("#[cfg(a)]", "#[cfg"), [1]);
    assert_eq!(code("a // b\nc"), "a \nc");
}
