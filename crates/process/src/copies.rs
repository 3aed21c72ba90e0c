//! Unsafe room: copies of this process, by `fork` and by `clone`, and what a copy does to become a process of
//! its own.
//!
//! A copy has one thread, that of the call. Everything else is there as it was at that instant, also locks
//! that other threads had, and nobody will release those. So either there are no other threads (the fork
//! server, see [`Sibling::new`]), or the user has said that he knows ([`Fork`]).
#![allow(unsafe_code)]

use std::ffi::{OsString, c_int, c_long, c_void};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crossproc_segment::start_quiet_thread;

/// The start method in which the process is a copy of this one, made by `fork`: cheap as long as this process
/// is small, and everything that it has computed is there.
///
/// ```
/// use crossproc_process::{Fork, StartMethod};
///
/// // SAFETY: this process has one thread, and nothing in it minds being copied.
/// let context = StartMethod::Fork(unsafe { Fork::new() }.allow_threads(true));
/// # // (This example runs on a thread of the test harness.)
/// let child = context.spawn(|text: String| text.len(), "four".to_owned())?;
/// assert_eq!(child.join()?, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What is different from the other methods:
///
/// * All memory is there, so what statics hold needs not be computed again. (Arguments travel as always, so
///   handles in them work. Handles in inherited memory do not: they belong to the parent.)
/// * All open descriptors are there too, signal handlers, the signal mask, and the panic hook.
/// * Only the calling thread is there.
/// * When the function has returned, the process ends at once: functions registered with `atexit` are not
///   called, because they are the parent's; only what was printed is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    pub(crate) threads: bool,
}

impl Fork {
    /// Forks, in a process that has one thread; otherwise the start fails with
    /// [`ErrorKind::Threads`](crate::ErrorKind::Threads). (Threads of crossproc itself do not count.)
    ///
    /// # Safety
    ///
    /// The function that is called in the copy, and all code that it calls, has to work there. It must not
    /// rely on threads of the parent, and not believe that what its parent *owns* is its own: a connection
    /// to a server, a file position, a temporary directory that is removed on drop, memory that a device
    /// writes to.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self { threads: false }
    }

    /// Whether to fork also when this process has several threads. Default: no.
    ///
    /// In the copy only the calling thread goes on. A lock that another thread had at that instant stays
    /// locked in the copy for ever, and what it protects may be half changed: in any library, and in std
    /// (standard error, the environment; not standard output, which the fork waits for). A start that hangs for
    /// that reason ends with [`ErrorKind::TimedOut`](crate::ErrorKind::TimedOut), a function that does so hangs.
    #[must_use]
    pub const fn allow_threads(self, allow: bool) -> Self {
        Self { threads: allow }
    }
}

/// How many threads this process has beside the calling one, without those of crossproc: they take part in
/// nothing that a copy uses.
pub(crate) fn other_threads() -> io::Result<usize> {
    const OURS: [&[u8]; 4] =
        [b"crossproc-live\n", b"crossproc-watch\n", b"crossproc-fds\n", b"crossproc-end\n"];
    if threads()? == 1 {
        return Ok(0);
    }
    let own = rustix::thread::gettid().as_raw_pid().to_string();
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        // One whose name can not be read has ended meanwhile.
        let counts = |name: Vec<u8>| !OURS.contains(&name.as_slice());
        if task.file_name() != *own && fs::read(task.path().join("comm")).is_ok_and(counts) {
            count += 1;
        }
    }
    Ok(count)
}

/// All threads of this process: each is a directory, so its `..` is a link to this one, beside the two that
/// every directory has.
pub(crate) fn threads() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/task")?.nlink().saturating_sub(2))
}

/// Runs `child` in a copy of this process; returns the process id of the copy.
///
/// Only for a holder of a [`Fork`], whose contract it is that this does no harm.
pub(crate) fn fork(_: Fork, child: impl FnOnce() -> i32) -> io::Result<i32> {
    flush_c();
    // Across the fork, so that no other thread has it locked, or has printed half of something, in the copy.
    let mut stdout = io::stdout().lock();
    let _ = stdout.flush();
    // SAFETY: the copy runs what the user has called fit to be run there (`Fork::new`), and code of ours that
    // takes no lock which another thread of ours may have had.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(stdout);
            // Below this frame is the parent's code, which must not run twice.
            end(child)
        }
        pid => Ok(pid),
    }
}

/// Empties the buffers of standard output, Rust's and C's, before a copy is made: it would print them as well.
pub(crate) fn flush() {
    let _ = io::stdout().flush();
    flush_c();
}

fn flush_c() {
    // A thread that waits for input in C has its stream locked.
    if threads().is_ok_and(|threads| threads == 1) {
        // SAFETY: null stands for all streams of C.
        unsafe { libc::fflush(null_mut()) };
    }
}

/// Ends the process if it is dropped: in a copy nothing may unwind into the code of its original.
struct End(i32);

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(self.0) }
    }
}

/// [`flush`] at the end of a copy, which a thread that has standard output locked and will not release it does
/// not hold up for ever: then the process ends with `code`.
fn flush_at_the_end(code: i32) {
    /// A thread that goes on releases it within this time.
    const LIMIT: Duration = Duration::from_secs(1);
    // With one thread nobody else has it.
    if threads().is_ok_and(|threads| threads == 1) {
        return flush();
    }
    let (locked, is_locked) = mpsc::channel::<()>();
    let watch = move || {
        if is_locked.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            drop(End(code));
        }
    };
    // Without that thread, for want of memory: it is rare that it is needed.
    let _ = start_quiet_thread("crossproc-flush", 64 << 10, watch);
    let mut stdout = io::stdout().lock();
    drop(locked);
    let _ = stdout.flush();
}

/// Runs `child` and ends the process, without what its original has registered with `atexit`: temporary files
/// may be removed there, for example.
fn end(child: impl FnOnce() -> i32) -> ! {
    let mut end = End(crate::child::FAILED);
    match catch_unwind(AssertUnwindSafe(child)) {
        Ok(code) => end.0 = code,
        // To drop it could panic again.
        Err(panic) => std::mem::forget(panic),
    }
    flush_at_the_end(end.0);
    drop(end);
    unreachable!("the process has ended")
}

/// Whether [`Sibling`] works with this C library.
pub(crate) const CAN_HAVE_SIBLINGS: bool = cfg!(target_env = "gnu");

/// What to say if it does not.
pub(crate) const NO_SIBLINGS: &str = "a fork server needs glibc, with which this program is not built; use the \
                                      start method `Spawn`";

/// What the fork server needs to make processes that are children of *its parent*.
///
/// That is `clone` with `CLONE_PARENT`. So the process that asked waits for them, has their exit status and
/// gets their SIGCHLD as if it had started them itself, whatever becomes of the server. libc has no function
/// for it, so three things that libc's `fork` does in the child are to be done here: its thread id, which
/// libc keeps (the kernel stores it at the address that libc has told it, `CLONE_CHILD_SETTID`); the word that
/// the kernel clears at its end (`CLONE_CHILD_CLEARTID`); and the robust list, which the kernel forgets in a
/// copy. (That the address is that of the thread id is so in glibc. musl has its lock of the list of threads
/// there, so [`CAN_HAVE_SIBLINGS`] is false.) Handlers registered with `pthread_atfork` are not called. Those
/// about locks of other threads are not missed, since there are none; those by which a library notices that it is
/// in a copy are, and the docs of [`ForkServer`](crate::ForkServer) say so.
///
/// The kernel also writes the process id of the copy to the *word* (`CLONE_PARENT_SETTID`), in memory that is
/// shared with the parent, before the copy runs: should the server be killed before it can tell, the parent
/// finds there whom it has to wait for.
#[derive(Debug)]
pub(crate) struct Sibling {
    word: *mut c_int,
    thread_id: *mut c_int,
    robust_list: *mut c_void,
    robust_list_size: usize,
}

/// Bytes in the file of the word.
pub(crate) const WORD: u64 = 4096;

impl Sibling {
    /// `word`: a file of [`WORD`] bytes.
    ///
    /// An error also if the process has more than one thread: the copies would have only one.
    pub(crate) fn new(word: &OwnedFd) -> io::Result<Self> {
        if threads()? != 1 {
            return Err(io::Error::other("it has more than one thread"));
        }
        let mut thread_id = null_mut::<c_int>();
        let (mut robust_list, mut robust_list_size) = (null_mut::<c_void>(), 0_usize);
        // SAFETY: the first call stores a pointer at the address given, the second one a pointer and a size. The
        // third maps a file anew, at an address that the kernel chooses.
        let word = unsafe {
            if libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut thread_id) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_list, &raw mut robust_list_size)
                != 0
            {
                return Err(io::Error::last_os_error());
            }
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(null_mut(), WORD as usize, access, libc::MAP_SHARED, word.as_raw_fd(), 0)
        };
        if word == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let word = word.cast::<c_int>();
        // Now, because the kernel ignores it if it can not write there later, for want of memory.
        // SAFETY: the file is mapped there, and nobody uses it before this process has said that it is ready.
        unsafe { word.write_volatile(0) };
        Ok(Self { word, thread_id, robust_list, robust_list_size })
    }

    /// Calls `child` in a copy of this process that is a child of this process's parent; returns the process id
    /// of the copy. The caller has started no thread since `new`.
    pub(crate) fn fork(&self, child: impl FnOnce() -> i32) -> io::Result<i32> {
        let flags = libc::CLONE_PARENT
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID
            | libc::SIGCHLD;
        let (flags, no_stack, no_tls) = (c_long::from(flags), null_mut::<c_void>(), null_mut::<c_void>());
        // SAFETY: without CLONE_VM the copy has memory of its own, and goes on with a copy of this stack. `word`
        // is mapped for good, and `thread_id` is libc's word for the id of this thread, the only one. No
        // other thread can have locked anything, `malloc` for example.
        let pid = unsafe {
            // The order of the last two differs.
            if cfg!(target_arch = "x86_64") {
                libc::syscall(libc::SYS_clone, flags, no_stack, self.word, self.thread_id, no_tls)
            } else {
                libc::syscall(libc::SYS_clone, flags, no_stack, self.word, no_tls, self.thread_id)
            }
        };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                if !self.robust_list.is_null() {
                    // SAFETY: it was this thread's list before, libc made it and keeps it for the life of the
                    // thread; it is empty, since the fork server has no locks.
                    unsafe {
                        libc::syscall(libc::SYS_set_robust_list, self.robust_list, self.robust_list_size)
                    };
                }
                end(child)
            }
            pid => Ok(pid as i32),
        }
    }
}

/// Closes a descriptor that the process has by inheritance, and whose owner was its parent.
///
/// Only in a copy, and only for what no value that the copy can reach stands for: the statics that held it
/// are new ones in a copy.
pub(crate) fn close_inherited(descriptor: BorrowedFd<'_>) {
    // SAFETY: see above; nobody will use or close this number as the one that it was.
    unsafe { libc::close(descriptor.as_raw_fd()) };
}

/// Makes the environment what it is to be, in a copy.
pub(crate) fn change_environment(changes: impl IntoIterator<Item = (OsString, Option<OsString>)>) {
    for (variable, value) in changes {
        match value {
            // SAFETY: a copy has one thread.
            Some(value) => unsafe { std::env::set_var(variable, value) },
            // SAFETY: as above.
            None => unsafe { std::env::remove_var(variable) },
        }
    }
}

/// The signals that the calling thread does not take for now: bit n - 1 for signal n.
pub(crate) fn blocked_signals() -> u64 {
    change_blocked(libc::SIG_BLOCK, 0)
}

/// Makes these the signals that the calling thread does not take.
pub(crate) fn set_blocked_signals(signals: u64) {
    change_blocked(libc::SIG_SETMASK, signals);
}

/// From here on SIGINT and SIGQUIT wait, which the terminal sends to all processes in the foreground. (A copy
/// has none waiting.)
pub(crate) fn block_interrupts() {
    change_blocked(libc::SIG_BLOCK, 1 << (libc::SIGINT - 1) | 1 << (libc::SIGQUIT - 1));
}

/// Returns what it was before.
fn change_blocked(how: c_int, signals: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: the kernel's sets of signals are 64 bits, which is what the last argument says.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const signals, &raw mut before, 8) };
    before
}
