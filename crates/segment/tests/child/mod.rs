//! Child processes by `fork`, and what is done to them. The process that calls [`fork`] has no threads that
//! hold locks.

use std::io::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::null_mut;

/// A child process; killed and awaited when dropped.
pub struct Child(libc::pid_t);

/// Runs `work` in a child, which then ends: with status 0, or 101 after a panic.
pub fn fork(work: impl FnOnce()) -> Child {
    let _ = std::io::stdout().flush();
    // SAFETY: the child runs `work` and exits; what it inherits from other threads' locks it leaves alone
    // (see above).
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: concerns this process only. Whatever hangs in it, or kills its parent: it does not stay.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::alarm(60);
            }
            let ended = catch_unwind(AssertUnwindSafe(work));
            let _ = std::io::stdout().flush();
            // SAFETY: ends the process without running the parent's destructors.
            unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
        }
        pid => Child(pid),
    }
}

impl Child {
    /// The status it exited with, or the signal that killed it.
    pub fn wait(self) -> Result<i32, i32> {
        let status = self.status();
        std::mem::forget(self);
        if libc::WIFEXITED(status) { Ok(libc::WEXITSTATUS(status)) } else { Err(libc::WTERMSIG(status)) }
    }

    pub fn kill(&self) {
        // SAFETY: our own child, not yet awaited: nobody else has its pid.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }

    fn status(&self) -> i32 {
        let mut status = 0;
        // SAFETY: our own child; the status goes into a local.
        while unsafe { libc::waitpid(self.0, &raw mut status, 0) } == -1 {}
        status
    }

    /// Lets a child that called [`be_traced`] run to its `stops`-th entry to or return from a system call,
    /// and kills it there. True if it ended, well, before that.
    pub fn kill_at_stop(self, stops: usize) -> bool {
        let mut status = self.status();
        assert!(libc::WIFSTOPPED(status), "it stops itself first");
        for _ in 0..=stops {
            // SAFETY: our own child, stopped.
            unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.0, 0, 0) };
            status = self.status();
            if libc::WIFEXITED(status) {
                assert_eq!(libc::WEXITSTATUS(status), 0, "undisturbed, it does its work");
                std::mem::forget(self);
                return true;
            }
            assert!(libc::WIFSTOPPED(status), "{status:#x}");
        }
        self.kill();
        assert!(libc::WIFSIGNALED(self.status()));
        std::mem::forget(self);
        false
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.status();
    }
}

/// In a child: stops until the parent traces it.
pub fn be_traced() {
    // SAFETY: concerns this process only; it stops, and the parent goes on with it.
    unsafe {
        libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        libc::raise(libc::SIGSTOP);
    }
}

pub fn limit_files(most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    let mut old = limit;
    // SAFETY: reads and writes the two structs.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut old);
        let limit = libc::rlimit { rlim_max: old.rlim_max, ..limit };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

pub fn become_user(uid: u32) {
    // SAFETY: in a child with one thread that matters.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(uid, uid, uid), 0);
        assert_eq!(libc::setresuid(uid, uid, uid), 0);
    }
}

/// New namespaces for this child (`CLONE_NEWPID`: for its children), as root or as the root of a user namespace.
pub fn unshare(flags: libc::c_int) -> bool {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: concerns this process only.
    if unsafe { libc::unshare(flags) } == 0 {
        return true;
    }
    // SAFETY: as above.
    let shared = unsafe { libc::unshare(flags | libc::CLONE_NEWUSER) } == 0;
    // In it we are nobody until we say who we are.
    let says = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text).is_ok();
    shared
        && says("setgroups", "deny".into())
        && says("uid_map", format!("{uid} {uid} 1"))
        && says("gid_map", format!("{gid} {gid} 1"))
}

/// Mounts a tmpfs, for this process's namespace only.
pub fn mount_tmpfs(at: &Path, options: &str) -> bool {
    let text = |s: &[u8]| std::ffi::CString::new(s).expect("no NUL");
    let (none, root, tmpfs) = (text(b"none"), text(b"/"), text(b"tmpfs"));
    let (at, options) = (text(at.as_os_str().as_bytes()), text(options.as_bytes()));
    // SAFETY: strings end in NUL; the first call keeps the second from being seen outside of this namespace.
    unsafe {
        libc::mount(
            none.as_ptr(),
            root.as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ) == 0
            && libc::mount(none.as_ptr(), at.as_ptr(), tmpfs.as_ptr(), 0, options.as_ptr().cast()) == 0
    }
}

/// Shared memory that stays mapped, at the same address in children.
pub fn map_shared(fd: BorrowedFd<'_>, len: usize) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

/// Says that something could not be tested here, and why.
pub fn not_run(reason: &str) {
    println!("not run: {reason}");
    if let Some(path) = std::env::var_os("CROSSPROC_NOT_RUN_FILE") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "not run: {reason}"));
    }
}
