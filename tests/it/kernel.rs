//! Unusual requests to the kernel: fork, PIDs of one's choice, namespaces, system call filters, ptrace, fanotify; and an unusual waker.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::io::{Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::exit;
use std::ptr::null;
use std::task::{RawWaker, RawWakerVTable, Waker};

use crossproc_tests::{HANG, await_state};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
    /// Only of threads that are [held back](Dying): on its way out, with all that it has.
    Leaving,
}

/// Waits until a forked child has ended, or, if it is traced, has stopped. It may be a traced thread as well.
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
    } else if status >> 16 == libc::PTRACE_EVENT_EXIT {
        End::Leaving
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
    unshare_as(0, 0, libc::CLONE_NEWPID | libc::CLONE_NEWNS)
}

/// Gives this process, which must have one thread, the right to [`separate_children`], and leaves it the user it is.
pub(crate) fn allow_namespaces() -> io::Result<()> {
    // SAFETY: no arguments.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    if uid == 0 { Ok(()) } else { unshare_as(uid, gid, 0) }
}

/// Moves the children that this process starts from now on into a PID namespace, of which the first of them is process 1. The
/// process itself stays where it is, and can start no more threads.
pub(crate) fn separate_children() -> io::Result<()> {
    // SAFETY: a plain number.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }.into()).map(drop)
}

/// A user namespace in which we are `uid` and `gid`, and what else is in `flags`.
fn unshare_as(uid: u32, gid: u32, flags: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    let (from_uid, from_gid) = unsafe {
        let ids = (libc::geteuid(), libc::getegid());
        check(libc::unshare(libc::CLONE_NEWUSER | flags).into())?;
        ids
    };
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {from_uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {from_gid} 1"))
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

/// Puts an empty file system in memory, of so many bytes, over `at`, for this process alone, which must have one thread.
pub(crate) fn mount_tmpfs(at: &Path, bytes: u64) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    let size = CString::new(format!("size={bytes}"))?;
    // SAFETY: plain numbers; no arguments.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) == -1 {
            unshare_as(libc::geteuid(), libc::getegid(), libc::CLONE_NEWNS)?;
        }
    }
    // SAFETY: all pointers are texts that end in NUL, or null where that is allowed.
    unsafe {
        let null = std::ptr::null();
        check(libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()).into())?;
        let tmpfs = c"tmpfs".as_ptr();
        check(libc::mount(tmpfs, at.as_ptr(), tmpfs, 0, size.as_ptr().cast()).into())?;
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
        self.go_on(libc::PTRACE_SYSCALL, libc::SIGTRAP | 0x80)
    }

    /// Lets it execute one instruction, which may be a system call; its end if it was the last.
    pub(crate) fn one_instruction(&mut self) -> Option<End> {
        self.go_on(libc::PTRACE_SINGLESTEP, libc::SIGTRAP)
    }

    fn go_on(&mut self, how: u32, stop: i32) -> Option<End> {
        let pid = self.0.0.expect("not ended");
        let mut signal = 0;
        loop {
            // SAFETY: the child is traced by this thread and stopped.
            let failed = unsafe { libc::ptrace(how, pid, 0, signal) } == -1;
            assert!(!failed, "ptrace: {}", io::Error::last_os_error());
            match wait(pid) {
                End::Stopped(at) if at == stop => return None,
                End::Stopped(other) => signal = other,
                end => {
                    self.0.0 = None;
                    return Some(end);
                }
            }
        }
    }

    /// The system call that it is about to make, with its arguments; `None` if it has just come back from one.
    pub(crate) fn call(&self) -> Option<(u64, [u64; 6])> {
        let pid = self.0.0.expect("not ended");
        // SAFETY: the struct is plain numbers, for which zero is valid.
        let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
        // SAFETY: the child is traced by this thread and stopped; the kernel writes no more than the size it is given. Which
        // part of the union it has written is what `op` says.
        unsafe {
            let (size, to) = (size_of_val(&info), &raw mut info);
            let written = check(libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, to));
            written.expect("a kernel that tells the arguments of system calls (Linux 5.3)");
            if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                Some((info.u.entry.nr, info.u.entry.args))
            } else {
                None
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Kills it where it stands. Nothing more of it is executed; a call before which it stopped is not made.
    pub(crate) fn kill(self) -> End {
        self.0.kill()
    }
}

/// A forked child that was killed, whose threads are held back before they let go of anything: their memory, and so the locks that
/// the kernel knows of, their files, their number. To everybody else they look as in the middle of a slow core dump.
pub(crate) struct Dying {
    forked: Forked,
    /// Its threads but the first.
    others: Vec<Pid>,
}

impl Dying {
    /// Kills `forked` so. An error if ptrace is not allowed.
    pub(crate) fn new(forked: Forked) -> Result<Self, String> {
        let pid = forked.0.expect("not ended");
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        let ids = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let others: Vec<Pid> = ids.filter(|&tid| tid != pid).collect();
        for tid in others.iter().copied().chain([pid]) {
            let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXIT;
            // SAFETY: plain numbers; the memory of this process is not concerned.
            if unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, options) } == -1 {
                return Err(format!("PTRACE_SEIZE: {}", io::Error::last_os_error()));
            }
        }
        let dying = Self { forked, others };
        kill(pid);
        for tid in dying.others.iter().copied().chain([pid]) {
            assert_eq!(wait(tid), End::Leaving, "thread {tid} of {pid}");
        }
        Ok(dying)
    }

    /// The first thread goes: it gives up its locks, as far as the kernel knows of them.
    pub(crate) fn let_the_first_go(&self) {
        let pid = self.forked.0.expect("not ended");
        go_on(pid);
        // Its entry stays until the others are gone.
        await_state(pid.unsigned_abs(), 'Z');
    }

    /// All other threads go.
    pub(crate) fn let_the_others_go(&mut self) {
        for tid in std::mem::take(&mut self.others) {
            go_on(tid);
            assert_eq!(wait(tid), End::Killed(libc::SIGKILL));
        }
    }

    /// Whoever is left goes, and the process is reaped.
    pub(crate) fn end(mut self) -> End {
        self.let_the_others_go();
        let pid = self.forked.0.expect("not ended");
        // SAFETY: as in `go_on`; it may have gone before.
        unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0, 0) };
        self.forked.0 = None;
        wait(pid)
    }
}

fn go_on(tid: Pid) {
    // SAFETY: the thread is traced by this one and stopped; no memory is concerned.
    let result = check(unsafe { libc::ptrace(libc::PTRACE_CONT, tid, 0, 0) });
    result.unwrap_or_else(|error| panic!("PTRACE_CONT of {tid}: {error}"));
}

impl Drop for Dying {
    /// A process ends after all its traced threads have been waited for.
    fn drop(&mut self) {
        if let Some(pid) = self.forked.0 {
            kill(pid);
            for &tid in &self.others {
                while wait(tid) == End::Leaving {}
            }
        }
    }
}

/// Keeps everybody from opening a file that lies in a directory, until this goes.
pub(crate) struct Gate(File);

impl Gate {
    /// An error if the kernel does not offer that, or to root only.
    pub(crate) fn at(directory: &Path) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let path = CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: plain numbers; the descriptor is new and nobody else's; the path ends in NUL.
        unsafe {
            let fd = check(libc::fanotify_init(flags, libc::O_RDONLY as u32).into())?;
            let group = OwnedFd::from_raw_fd(fd as i32);
            let mask = libc::FAN_OPEN_PERM | libc::FAN_EVENT_ON_CHILD;
            let mark = libc::FAN_MARK_ADD;
            let marked = libc::fanotify_mark(group.as_raw_fd(), mark, mask, libc::AT_FDCWD, path.as_ptr());
            check(marked.into())?;
            Ok(Self(File::from(group)))
        }
    }

    /// Waits until somebody stands before a file, and keeps him there.
    pub(crate) fn await_somebody(&mut self) -> Waiting<'_> {
        let limit = Timespec { tv_sec: HANG.as_secs().cast_signed(), tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.0.as_fd(), PollFlags::IN)], Some(&limit));
        assert_eq!(ready, Ok(1), "nobody opened a file");
        // One event, as the kernel writes it: the descriptor is ours, the process that asks stands behind it.
        let mut event = [0; size_of::<libc::fanotify_event_metadata>()];
        self.0.read_exact(&mut event).expect("an event");
        let number = |at: usize| i32::from_ne_bytes(event[at..at + 4].try_into().unwrap());
        let fd = number(offset_of!(libc::fanotify_event_metadata, fd));
        // SAFETY: the kernel has just opened it for us.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        Waiting { gate: self, file, pid: number(offset_of!(libc::fanotify_event_metadata, pid)) }
    }
}

/// Somebody who wants to open a file.
pub(crate) struct Waiting<'a> {
    gate: &'a mut Gate,
    file: OwnedFd,
    pub(crate) pid: Pid,
}

impl Waiting<'_> {
    /// Lets him.
    pub(crate) fn let_in(self) {
        let (fd, response) = (self.file.as_raw_fd(), libc::FAN_ALLOW);
        let answer = [fd.to_ne_bytes(), response.to_ne_bytes()].concat();
        self.gate.0.write_all(&answer).expect("an answer");
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

thread_local!(static ON_CLONE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) });

/// A waker that wakes nobody, and calls a function when it is cloned for the first time (by this thread).
pub(crate) fn waker_that_calls(on_clone: impl FnOnce() + 'static) -> Waker {
    static CALLS: RawWakerVTable = RawWakerVTable::new(
        |_| {
            let on_clone = ON_CLONE.take();
            on_clone.into_iter().for_each(|on_clone| on_clone());
            RawWaker::new(null(), &CALLS)
        },
        |_| (),
        |_| (),
        |_| (),
    );
    ON_CLONE.set(Some(Box::new(on_clone)));
    // SAFETY: there is no data, so any thread may do anything with it; a clone is the same as the original.
    unsafe { Waker::new(null(), &CALLS) }
}

/// The start method `Fork`, for tests that run in a process of their own.
pub(crate) fn forking() -> crossproc_process::Fork {
    // SAFETY: the functions of the tests use nothing that their parent owns, and the tests run on the only thread.
    unsafe { crossproc_process::Fork::new() }
}

/// Whom libc takes the calling thread for: the owner that it writes into a mutex.
pub(crate) fn thread_as_libc_sees_it() -> i32 {
    // SAFETY: the mutex is on this stack, initialised before it is used and destroyed after; its second word but one is the
    // owner, in glibc and in musl's kinds that check for errors.
    unsafe {
        let mut kind = std::mem::zeroed::<libc::pthread_mutexattr_t>();
        let mut mutex = std::mem::zeroed::<libc::pthread_mutex_t>();
        assert_eq!(libc::pthread_mutexattr_init(&raw mut kind), 0);
        assert_eq!(libc::pthread_mutexattr_settype(&raw mut kind, libc::PTHREAD_MUTEX_ERRORCHECK), 0);
        assert_eq!(libc::pthread_mutex_init(&raw mut mutex, &raw const kind), 0);
        assert_eq!(libc::pthread_mutex_lock(&raw mut mutex), 0);
        let at = if cfg!(target_env = "musl") { 1 } else { 2 };
        let owner = (&raw const mutex).cast::<i32>().add(at).read();
        assert_eq!(libc::pthread_mutex_unlock(&raw mut mutex), 0);
        libc::pthread_mutex_destroy(&raw mut mutex);
        owner
    }
}

/// Whether the kernel knows a robust list of the calling thread.
pub(crate) fn has_robust_list() -> bool {
    let (mut list, mut size) = (std::ptr::null_mut::<libc::c_void>(), 0_usize);
    // SAFETY: the kernel writes a pointer and a size.
    let asked = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut list, &raw mut size) };
    asked == 0 && !list.is_null()
}

/// Changes the environment of this process, which must have one thread.
pub(crate) fn set_variable(name: &str, value: &str) {
    // SAFETY: nobody else reads or writes it meanwhile.
    unsafe { std::env::set_var(name, value) };
}

/// From here on the signal does nothing but interrupt calls.
pub(crate) fn shrug_off(signal: i32) {
    extern "C" fn shrug(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(signal, shrug as extern "C" fn(i32) as libc::sighandler_t) };
}

/// From here on the signal does what it does to a new process.
pub(crate) fn take_as_usual(signal: i32) {
    // SAFETY: no handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// From here on the signal does not reach the calling thread.
pub(crate) fn block(signal: i32) {
    // SAFETY: the set is made by sigemptyset.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()), 0);
    }
}

/// A new terminal: the end of who sits at it, and the path of the other end.
pub(crate) fn pseudo_terminal() -> (OwnedFd, String) {
    let mut name = [0_u8; 128];
    // SAFETY: the descriptor is new and ours; the name is written into a buffer of the length given, with a NUL at its end.
    unsafe {
        let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert_ne!(master, -1, "posix_openpt: {}", io::Error::last_os_error());
        let terminal = OwnedFd::from_raw_fd(master);
        assert_eq!((libc::grantpt(master), libc::unlockpt(master)), (0, 0));
        assert_eq!(libc::ptsname_r(master, name.as_mut_ptr().cast(), name.len()), 0);
        let name = std::ffi::CStr::from_bytes_until_nul(&name).expect("a NUL").to_str().expect("a path");
        (terminal, name.to_owned())
    }
}

/// When this process ends by `exit`, its exit code will be 77.
pub(crate) fn spoil_the_exit() {
    extern "C" fn spoil() {
        // SAFETY: ends the process.
        unsafe { libc::_exit(77) }
    }
    // SAFETY: the handler is a function of this program, which stays.
    assert_eq!(unsafe { libc::atexit(spoil) }, 0);
}

/// From here on this process, which must have one thread and be root's, is of a user who may do nothing to others.
pub(crate) fn become_nobody() {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::setuid(65534) }, 0);
}
