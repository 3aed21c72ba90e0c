//! Unusual requests to the kernel: fork, PIDs of one's choice, namespaces, system call filters, ptrace.
#![allow(unsafe_code)]

use std::io;
use std::process::exit;

/// The process id of a forked child.
pub(crate) type Pid = libc::pid_t;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs `body` in a forked copy of this process, which ends with exit code 0, or 101 if `body` panics.
///
/// Nothing of the copy is dropped but what `body` drops, and no handler that runs at exit is called.
pub(crate) fn fork(body: impl FnOnce()) -> Pid {
    // SAFETY: the tests that come here have no other thread than the helper of crossproc-segment, which sleeps and holds no
    // lock, so all that `body` does finds libc in order.
    let pid = unsafe { libc::fork() };
    assert_ne!(pid, -1, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        leave_after(body);
    }
    pid
}

fn leave_after(body: impl FnOnce()) -> ! {
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    // SAFETY: ends the process.
    unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
}

/// As [`fork`], but the copy has the process id `pid`, which must be free.
///
/// # Errors
///
/// `EPERM` without the capability CAP_CHECKPOINT_RESTORE (or root) in the PID namespace, `EEXIST` if the id is taken.
pub(crate) fn fork_as(pid: Pid, body: impl FnOnce()) -> io::Result<()> {
    let ids = [pid];
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = ids.as_ptr().addr() as u64;
    arguments.set_tid_size = 1;
    let (mut robust_list, mut size) = (std::ptr::null_mut::<libc::c_void>(), 0_usize);
    // SAFETY: without CLONE_VM this is a fork (see there). Before and after it the kernel is asked where this thread's list of
    // robust locks is, and told that the copy has it at the same place, as libc's fork does.
    unsafe {
        check(libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_list, &raw mut size))?;
        let child = check(libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)))?;
        if child == 0 {
            libc::syscall(libc::SYS_set_robust_list, robust_list, size);
            leave_after(body);
        }
        assert_eq!(child, libc::c_long::from(pid));
    }
    Ok(())
}

/// How a forked child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exited(i32),
    Killed(i32),
    /// Only of traced children: it stopped, for this signal.
    Stopped(i32),
}

/// Waits until a forked child has ended, or, if it is traced, has stopped.
pub(crate) fn wait(pid: Pid) -> End {
    let mut status = 0;
    // SAFETY: `status` is writable.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } == -1 {
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "waiting for {pid}: {error}");
    }
    if libc::WIFEXITED(status) {
        End::Exited(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        End::Killed(libc::WTERMSIG(status))
    } else {
        End::Stopped(libc::WSTOPSIG(status))
    }
}

/// Sends SIGKILL to a forked child that was not waited for.
pub(crate) fn kill(pid: Pid) {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "killing {pid}: {}", io::Error::last_os_error());
}

/// A forked child that is killed and reaped when this goes, if it has not been before.
pub(crate) struct Forked(Option<Pid>);

impl Forked {
    pub(crate) fn new(body: impl FnOnce()) -> Self {
        Self(Some(fork(body)))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.expect("not ended").unsigned_abs()
    }

    pub(crate) fn end(mut self) -> End {
        wait(self.0.take().expect("not ended"))
    }

    pub(crate) fn kill(mut self) -> End {
        let pid = self.0.take().expect("not ended");
        kill(pid);
        wait(pid)
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            kill(pid);
            wait(pid);
        }
    }
}

/// From here on the system call `number` answers `errno` to the calling thread, its later threads and its children.
pub(crate) fn deny(number: libc::c_long, errno: i32) -> io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let number = u32::try_from(number).expect("system calls have small numbers");
    let mut filter = [
        // The number of the call is the first field of seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: number,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is alive until the end of the call; the other arguments are numbers.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program).into())?;
    }
    Ok(())
}

/// What the call `futex_waitv` of nothing says: EINVAL where there is such a call.
pub(crate) fn probe_futex_waitv() -> Option<i32> {
    // SAFETY: no waiters, so no memory is looked at.
    let result = unsafe { libc::syscall(libc::SYS_futex_waitv, 0, 0, 0, 0, 0) };
    check(result).err().and_then(|error| error.raw_os_error())
}

/// Moves this process, which must have one thread, into a user namespace in which it is root, and its children to come into a
/// PID namespace; the first of them is process 1 there, and has a mount namespace of its own.
pub(crate) fn enter_namespaces() -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe {
        let (uid, gid) = (libc::geteuid(), libc::getegid());
        check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS).into())?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    }
}

/// Mounts the /proc of this PID namespace over the other one, for this mount namespace only.
pub(crate) fn mount_own_proc() -> io::Result<()> {
    // SAFETY: all pointers are texts that end in NUL, or null where that is allowed.
    unsafe {
        let null = std::ptr::null();
        check(libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()).into())?;
        let proc = c"proc".as_ptr();
        check(libc::mount(proc, c"/proc".as_ptr(), proc, 0, null.cast()).into())?;
    }
    Ok(())
}

/// A forked child that stops at each system call: before it, and after it.
pub(crate) struct Traced(Forked);

impl Traced {
    /// Forks; the child is stopped before its first step. An error if ptrace is not allowed.
    pub(crate) fn start(body: impl FnOnce()) -> Result<Self, String> {
        let forked = Forked::new(|| {
            // SAFETY: PTRACE_TRACEME takes no arguments; the rest are plain numbers.
            unsafe {
                if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) == -1 {
                    exit(77);
                }
                libc::raise(libc::SIGSTOP);
            }
            body();
        });
        let pid = forked.0.expect("just forked");
        match wait(pid) {
            End::Stopped(libc::SIGSTOP) => {}
            end => {
                std::mem::forget(forked);
                return Err(format!("PTRACE_TRACEME is denied ({end:?})"));
            }
        }
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        // SAFETY: the child is traced by this thread and stopped.
        if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) } == -1 {
            return Err(format!("PTRACE_SETOPTIONS: {}", io::Error::last_os_error()));
        }
        Ok(Self(forked))
    }

    /// Lets it run until the next stop; its end if there is none.
    pub(crate) fn step(&mut self) -> Option<End> {
        let pid = self.0.0.expect("not ended");
        let mut signal = 0;
        loop {
            // SAFETY: the child is traced by this thread and stopped.
            let failed = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, signal) } == -1;
            assert!(!failed, "PTRACE_SYSCALL: {}", io::Error::last_os_error());
            const AT_A_CALL: i32 = libc::SIGTRAP | 0x80;
            match wait(pid) {
                End::Stopped(AT_A_CALL) => return None,
                End::Stopped(other) => signal = other,
                end => {
                    self.0.0 = None;
                    return Some(end);
                }
            }
        }
    }

    /// Kills it where it stands. Nothing more of it is executed; a call before which it stopped is not made.
    pub(crate) fn kill(self) -> End {
        self.0.kill()
    }
}

/// Locks and unlocks a robust mutex of libc, which announces it to the kernel in the same place as our locks are announced.
pub(crate) fn use_a_robust_mutex_of_libc() {
    // SAFETY: attributes and mutex are plain data that `init` fills in, and they do not move; all calls are from one thread.
    unsafe {
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        let mut mutex: libc::pthread_mutex_t = std::mem::zeroed();
        let done = [
            libc::pthread_mutexattr_init(&raw mut attributes),
            libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST),
            libc::pthread_mutex_init(&raw mut mutex, &raw const attributes),
            libc::pthread_mutex_lock(&raw mut mutex),
            libc::pthread_mutex_unlock(&raw mut mutex),
            libc::pthread_mutex_destroy(&raw mut mutex),
        ];
        assert_eq!(done, [0; 6]);
    }
}
