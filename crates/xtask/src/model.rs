//! The loom models: algorithms with the model's atomics in the place of the machine's.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::place::Place;
use crate::session::Session;

/// Packages with models, in `tests/model.rs`.
pub const PACKAGES: [&str; 3] = ["crossproc-atomic", "crossproc-ring", "crossproc-sync"];

/// How long the models of one configuration may take, with their build.
pub const LIMIT: Duration = Duration::from_secs(600);

/// What stands for a load and a store. Each finds bugs that the other hides: real loads may return stale
/// values but let a model pass after one execution; read-modify-writes explore every interleaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    Plain,
    Rmw,
}

impl Shim {
    pub const ALL: [Self; 2] = [Self::Plain, Self::Rmw];

    pub fn title(self) -> &'static str {
        match self {
            Self::Plain => "models, real loads",
            Self::Rmw => "models, loads as rmw",
        }
    }

    /// Flags for the compiler.
    pub fn flags(self) -> &'static str {
        match self {
            Self::Plain => "--cfg crossproc_model",
            Self::Rmw => "--cfg crossproc_model --cfg crossproc_model_rmw",
        }
    }

    /// Name of the target directory.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Plain => "model",
            Self::Rmw => "model-rmw",
        }
    }
}

/// Makes `command`, a cargo command, build for a model, with a target directory of its own.
pub fn configure(command: &mut Command, shim: Shim, target: PathBuf) -> &mut Command {
    // Bounds from the environment would change what the models explore.
    for variable in
        ["LOOM_MAX_PREEMPTIONS", "LOOM_MAX_BRANCHES", "LOOM_MAX_DURATION", "LOOM_MAX_PERMUTATIONS"]
    {
        command.env_remove(variable);
    }
    command
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", shim.flags())
        .env("CARGO_TARGET_DIR", target)
}

/// The command that runs all models in one configuration.
pub fn tests(place: &Place, shim: Shim) -> Command {
    let mut command = place.cargo();
    command.args(["test", "--release", "--no-fail-fast", "--test", "model"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    configure(&mut command, shim, place.target.join(shim.folder()));
    command
}

/// The explicit-state models in their long forms: they know no memory orderings, but deaths and stops.
fn explicit(place: &Place) -> Command {
    let mut command = place.cargo();
    command.args(["test", "--release", "--no-fail-fast", "--package", "crossproc-ring"]);
    command.args(["--test", "exchange_protocol", "--", "--show-output"]).env("LONG_MODELS", "1");
    command
}

/// `cargo xtask model`
pub fn run(place: &Place, filter: Option<&str>) -> Result<bool, String> {
    let mut session = Session::start(place)?;
    for shim in Shim::ALL {
        let mut command = tests(place, shim);
        command.args(["--", "--show-output"]).args(filter);
        let from = session.tally.models.len();
        session.models(shim.title(), command, LIMIT)?;
        for (name, executions) in &session.tally.models[from..] {
            println!("    {name:<44} {:>12} executions", crate::text::count(*executions));
        }
    }
    if filter.is_none() {
        session.tests("explicit states, long", explicit(place), LIMIT)?;
    }
    session.finish(false)
}
