#![allow(unsafe_code)]
//! A copy of this process that does nothing, and memory for it to copy.

/// Forks, and waits for the copy, which ends at once.
///
/// # Panics
///
/// If this process can not be forked.
pub fn fork_and_wait() {
    // SAFETY: the copy does nothing but end.
    let pid = unsafe { libc::fork() };
    assert_ne!(pid, -1, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: no status is asked for.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
}

/// The start method `Fork`.
#[must_use]
pub fn forking() -> crossproc_process::Fork {
    // SAFETY: the benchmark that uses it has one thread, and its functions need nothing but their arguments.
    unsafe { crossproc_process::Fork::new() }
}
