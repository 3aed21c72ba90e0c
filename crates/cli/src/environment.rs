//! Where a report was made: numbers mean nothing without their machine.

use serde::Serialize;

/// The machine and this build.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Environment {
    /// The kernel's name and release, such as `Linux 6.18.44`.
    pub kernel: String,
    /// Such as `x86_64`.
    pub machine: String,
    /// How many processes can run at the same time.
    pub cpus: usize,
    /// `release` or `debug`.
    pub build: &'static str,
}

impl Environment {
    /// That of the calling process.
    pub fn here() -> Self {
        let uname = rustix::system::uname();
        let [name, release, machine] = [uname.sysname(), uname.release(), uname.machine()]
            .map(|text| text.to_string_lossy().into_owned());
        Self {
            kernel: format!("{name} {release}"),
            machine,
            cpus: crossproc::available_parallelism().get(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}
