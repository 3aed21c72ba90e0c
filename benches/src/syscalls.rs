#![allow(unsafe_code)]
//! Counting the system calls of other processes: exactly, and without a cost for who makes none.

use std::fs;
use std::io;

/// Children that stop, and go on, at each of their system calls. Threads that they start later are not seen.
#[derive(Debug)]
pub struct Tracer {
    threads: Vec<i32>,
}

/// A pid of any child; and of any kind, also a thread.
const ANY: i32 = -1;

/// What `ptrace` says. It takes addresses as numbers here.
fn ptrace(request: u32, thread: i32, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: none of the requests that are made with this function read or write memory of ours.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The next stop of this thread, or of any: whose, and its status.
fn next_stop(thread: i32) -> (i32, i32) {
    let mut status = 0;
    // SAFETY: the status is ours.
    let thread = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    (thread, status)
}

/// The number of the system call that a thread is about to enter.
fn entered(thread: i32) -> Option<u64> {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes no more than `size` bytes there. All bytes are zero where it writes none, and any value
    // of them is one of the type.
    let info = unsafe {
        if libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr()) <= 0 {
            return None;
        }
        info.assume_init()
    };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that this part of the union was written.
    Some(unsafe { info.u.entry.nr })
}

impl Tracer {
    /// Stops all threads of these children at their next system call; an error if that is not allowed here.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn attach(children: &[u32]) -> io::Result<Self> {
        let mut tracer = Self { threads: Vec::new() };
        for child in children {
            for thread in fs::read_dir(format!("/proc/{child}/task"))? {
                let name = thread?.file_name();
                let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                ptrace(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_TRACESYSGOOD as usize)?;
                tracer.threads.push(thread);
                ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
                next_stop(thread);
                ptrace(libc::PTRACE_SYSCALL, thread, 0, 0)?;
            }
        }
        Ok(tracer)
    }

    /// Lets them run, and tells of each system call that one of them enters, by its number, until `done`. That is asked after
    /// each system call only.
    pub fn watch(&mut self, mut enters: impl FnMut(u64), mut done: impl FnMut() -> bool) {
        while !done() && !self.threads.is_empty() {
            let (thread, status) = next_stop(ANY);
            if !libc::WIFSTOPPED(status) {
                self.threads.retain(|&one| one != thread);
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            let is_event = status >> 16 != 0;
            let is_call = signal == libc::SIGTRAP | 0x80;
            if is_call {
                entered(thread).into_iter().for_each(&mut enters);
            }
            let pass_on = if is_call || is_event { 0 } else { signal as usize };
            // It may have been killed meanwhile.
            let _ = ptrace(libc::PTRACE_SYSCALL, thread, 0, pass_on);
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        for &thread in &self.threads {
            // Only who is stopped can be let go. Who is gone needs neither.
            if ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0).is_ok() && libc::WIFSTOPPED(next_stop(thread).1) {
                let _ = ptrace(libc::PTRACE_DETACH, thread, 0, 0);
            }
        }
    }
}
