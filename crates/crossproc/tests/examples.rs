//! The examples as a set. `cargo test` also runs each of them (`test = true`), and each checks its own results.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

#[test]
fn each_example_is_a_test_and_short() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(folder.join("examples")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let declared = format!("[[example]]\nname = \"{name}\"\ntest = true\nharness = false\n");
        assert!(manifest.contains(&declared), "Cargo.toml lacks\n{declared}");
        let text = fs::read_to_string(&path).unwrap();
        // An executor takes some lines.
        let (lines, most) = (text.lines().count(), if name == "executor" { 80 } else { 40 });
        assert!((15..=most).contains(&lines), "{name} has {lines} lines");
        let feature = manifest.contains(&format!("{declared}required-features = [\"{name}\"]"));
        let features = if feature { format!("--features {name} ") } else { String::new() };
        let command = format!("`cargo run -p crossproc {features}--example {name}`");
        assert!(text.contains(&command), "{name} says how to run it");
        count += 1;
    }
    assert_eq!(count, manifest.matches("[[example]]").count());
}
