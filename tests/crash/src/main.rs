//! The harness as a program: `cargo run -p crossproc-crash --bin crash`.
#![forbid(unsafe_code)]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod program;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    program::main()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() -> std::process::ExitCode {
    eprintln!("not supported: single-stepping is written for Linux on x86-64");
    std::process::ExitCode::FAILURE
}
