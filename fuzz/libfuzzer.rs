//! libFuzzer's main loop around the target named by `CROSSPROC_FUZZ_TARGET`.
#![no_main]

use std::sync::LazyLock;

use crossproc_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("CROSSPROC_FUZZ_TARGET").unwrap_or_default();
    *TARGETS.iter().find(|target| target.name == name).expect("CROSSPROC_FUZZ_TARGET names a target")
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
