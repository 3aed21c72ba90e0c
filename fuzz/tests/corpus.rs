//! Every input of every corpus, through its target. What libFuzzer found once is found by `cargo test` for ever.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crossproc_fuzz::{TARGETS, Target};

/// An input that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(10);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Fails with the name of the input, also when the target does not return.
fn replay(target: Target, file: &Path) {
    let bytes = fs::read(file).unwrap();
    let (sender, done) = channel();
    let thread = thread::spawn(move || {
        (target.run)(&bytes);
        // The receiver is gone only if it has failed already.
        let _ = sender.send(());
    });
    match done.recv_timeout(LIMIT) {
        Ok(()) => thread.join().unwrap(),
        Err(RecvTimeoutError::Timeout) => panic!("{} takes longer than {LIMIT:?}", file.display()),
        Err(RecvTimeoutError::Disconnected) => {
            panic!("{} made the target `{}` panic", file.display(), target.name)
        }
    }
}

#[test]
fn every_input_is_borne() {
    for target in TARGETS {
        let files = entries(&corpus().join(target.name));
        assert!(!files.is_empty(), "the corpus of `{}` is empty", target.name);
        files.iter().for_each(|file| replay(*target, file));
        println!("corpus {}: {} inputs", target.name, files.len());
    }
}

#[test]
fn every_corpus_has_a_target() {
    for folder in entries(&corpus()) {
        let name = folder.file_name().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "no target for {}", folder.display());
    }
}
