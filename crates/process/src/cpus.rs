//! How many processes can run at once.

use std::num::NonZeroUsize;

/// How many processes of this program can run at the same time: the number to start for work that keeps the
/// processors busy.
///
/// This is what [`std::thread::available_parallelism`] finds on Linux: the processors in the affinity mask of
/// the calling thread (`taskset`, cpusets), or fewer if a CPU quota of a cgroup allows less (`docker --cpus`;
/// rounded down, at least 1; cgroup v2, and v1 where it is mounted in the usual way). Weights and shares are
/// not limits and do not count. 1 if nothing can be found out.
///
/// ```
/// assert!(crossproc_process::available_parallelism().get() >= 1);
/// ```
#[must_use]
pub fn available_parallelism() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
