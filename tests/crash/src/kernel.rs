#![allow(unsafe_code)]
//! The room for what single steps do not need: processes beside the victims, process ids of one's choice, namespaces.

use std::io;
use std::time::{Duration, Instant};

use crate::step::{Ending, Pid};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// How the child ended; `None` if it did not within `limit`.
fn wait_until(pid: Pid, limit: Duration) -> Option<Ending> {
    let started = Instant::now();
    for turn in 0_u32.. {
        let mut status = 0;
        // SAFETY: `status` is writable.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
            0 if started.elapsed() > limit => return None,
            0 if turn < 200 => std::thread::yield_now(),
            0 => std::thread::sleep(Duration::from_micros(50)),
            -1 => panic!("waiting for {pid}: {}", io::Error::last_os_error()),
            _ if libc::WIFEXITED(status) => return Some(Ending::Status(libc::WEXITSTATUS(status))),
            _ if libc::WIFSIGNALED(status) => return Some(Ending::Signal(libc::WTERMSIG(status))),
            _ => {}
        }
    }
    unreachable!("the loop has no end")
}

/// Runs `body` in a forked copy of this process, which ends with exit code 0, or 101 if `body` panics.
///
/// Nothing of the copy is dropped but what `body` drops, and no handler that runs at exit is called.
pub(crate) fn fork(body: impl FnOnce()) -> Pid {
    // SAFETY: this program has no other thread than the helper of crossproc-segment, which sleeps and holds no lock, so all that
    // `body` does finds libc in order.
    let pid = unsafe { libc::fork() };
    assert_ne!(pid, -1, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        leave_after(body);
    }
    pid
}

fn leave_after(body: impl FnOnce()) -> ! {
    // SAFETY: asks for a signal when the thread that forked ends, so that nobody outlives a killed harness.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    // SAFETY: ends the process.
    unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
}

/// As [`fork`], but the copy has the process id `pid`, which must be free.
///
/// # Errors
///
/// `EPERM` without the right (root, or CAP_CHECKPOINT_RESTORE in the PID namespace), `EEXIST` if the id is taken.
pub(crate) fn fork_as(pid: Pid, body: impl FnOnce()) -> io::Result<()> {
    let wanted = [pid];
    // SAFETY: plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = wanted.as_ptr().addr() as u64;
    arguments.set_tid_size = wanted.len() as u64;
    let (mut robust_list, mut size) = (std::ptr::null_mut::<libc::c_void>(), 0_usize);
    // SAFETY: without CLONE_VM this is a fork, see there. The copy's robust list is registered as libc's fork does it: at the
    // place where this thread has its own.
    unsafe {
        check(libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_list, &raw mut size))?;
        if check(libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)))? == 0 {
            libc::syscall(libc::SYS_set_robust_list, robust_list, size);
            leave_after(body);
        }
    }
    Ok(())
}

/// Sends SIGKILL to a child that is not reaped. It stays a zombie until [`reap`].
///
/// # Panics
///
/// If there is no such child.
pub(crate) fn kill(pid: Pid) {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "killing {pid}: {}", io::Error::last_os_error());
}

/// Waits at most `limit` for a child to end; one that does not is killed and reaped.
pub(crate) fn reap(pid: Pid, limit: Duration) -> Option<Ending> {
    let ended = wait_until(pid, limit);
    if ended.is_none() {
        kill(pid);
        wait_until(pid, crossproc_tests::HANG);
    }
    ended
}

/// Moves this process, which must have one thread, into a user namespace in which it is root, and its children to come into a
/// PID namespace; the first of them is process 1 there, and has a mount namespace of its own.
///
/// # Errors
///
/// If the machine does not allow it.
pub(crate) fn enter_namespaces() -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe {
        let (user, group) = (libc::geteuid(), libc::getegid());
        check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS).into())?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))
    }
}

/// Mounts the /proc of this PID namespace over the other one, for this mount namespace only.
///
/// # Errors
///
/// If the machine does not allow it.
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
