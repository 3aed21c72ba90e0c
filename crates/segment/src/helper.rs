#![allow(unsafe_code)]
//! The room of the helper thread: the one small thread per process whose death the kernel reports to peers.
//!
//! Each segment that this process takes part in has a *token* word in the process's participant slot: the
//! helper's TID with WAITERS set. All tokens hang on the helper's robust list, so the kernel marks them and
//! wakes a waiter on each when the helper dies, which it does only when the process exits or execs.
//!
//! Claims, and who keeps them:
//! * The list belongs to a thread that we started, so `set_robust_list` evicts nobody.
//! * The kernel finds a token at `node + futex_offset`. Every normal mapping has [`PREFIX_BYTES`] private
//!   pages right before it, and `futex_offset` is that distance: the nodes are *private* memory. A peer that
//!   scribbles over the segment can not forge a link.
//! * List and nodes are changed under `list`'s mutex, each change is one pointer store that leaves a walkable
//!   list, and the kernel walks it only when the process dies.
//! * A node stays linked while its mapping exists: [`Token`] holds the mapping.

use std::ffi::c_long;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use crossproc_atomic::{AtomicU32, LockedWord, TID, WAITERS, on_thread_exit, process_stamp};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, ErrorKind};
use crate::map::{Mapping, PREFIX_BYTES};

/// More robust entries than the kernel walks (2048) would silently not be marked; the rest are watched in slices.
const TOKENS_MAX: usize = 2000;
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// What identifies this process, for as long as it neither exits nor execs.
#[derive(Debug)]
pub(crate) struct Identity {
    /// `pid << 40 | random`: never zero, never used twice. The byte of that offset on the inode of our PID
    /// namespace is locked by us until we exit or exec.
    pub life: u64,
    pub pid: u32,
    /// In clock ticks since boot; 0 if unknown.
    pub start_time: u64,
    /// Inode of our pidfd where the kernel numbers them (6.9), else 0.
    pub pidfd_inode: u64,
    pub pid_namespace: u64,
}

/// Who holds a life lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LifeLock {
    /// The process with this number; 0 for one outside of our PID namespace.
    Held(u32),
    Free,
    /// The kernel would not say.
    Unknown,
}

/// This process's helper. Started by the first attach; a forked child starts its own.
pub(crate) struct Helper {
    stamp: u64,
    started: OnceLock<Started>,
    list: Mutex<List>,
}

struct Started {
    tid: u32,
    identity: Identity,
    /// The PID namespace's inode, on which the life lock is held. Nobody else has reason to open it.
    namespace: OwnedFd,
}

/// The kernel's view of a robust list: a ring of pointers that starts and ends at the head.
#[repr(C)]
struct Head {
    first: *mut Node,
    futex_offset: c_long,
    pending: *mut Node,
}

#[repr(C)]
struct Node {
    next: *mut Node,
}

struct List {
    head: NonNull<Head>,
    linked: usize,
    /// All mappings in which this process takes part: base address, length.
    mappings: Vec<(usize, Weak<Mapping>)>,
}

// SAFETY: the head is leaked memory of this process; it is only changed under the mutex around `List`.
unsafe impl Send for List {}

static CURRENT: AtomicPtr<Helper> = AtomicPtr::new(null_mut());

/// The helper of this incarnation of the process, started if need be.
///
/// # Errors
///
/// If no thread can be started or the identity of the process can not be read.
pub(crate) fn helper() -> Result<&'static Helper, Error> {
    let helper = current();
    if helper.started.get().is_none() {
        let list = helper.list();
        if helper.started.get().is_none() {
            let started = start(helper.stamp, &list)?;
            let _ = helper.started.set(started);
            on_thread_exit(give_up);
        }
    }
    Ok(helper)
}

fn current() -> &'static Helper {
    let stamp = process_stamp();
    loop {
        let seen = CURRENT.load(Ordering::Acquire);
        // SAFETY: helpers are leaked, never freed.
        match unsafe { seen.as_ref() } {
            Some(helper) if helper.stamp == stamp => return helper,
            _ => {}
        }
        // None yet, or our parent's: its mutex may have been locked when we were forked, so it is left alone.
        let head = Box::leak(Box::new(Head {
            first: null_mut(),
            futex_offset: PREFIX_BYTES as c_long,
            pending: null_mut(),
        }));
        let head = NonNull::from(head);
        // SAFETY: just made; an empty list points at its head.
        unsafe { (*head.as_ptr()).first = head.as_ptr().cast() };
        let list = Mutex::new(List { head, linked: 0, mappings: Vec::new() });
        let fresh = Box::into_raw(Box::new(Helper { stamp, started: OnceLock::new(), list }));
        if CURRENT.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: never published; made by Box::into_raw above.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
}

impl Helper {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self) -> &Started {
        self.started.get().expect("helper() hands out started helpers only")
    }

    /// Who we are.
    pub(crate) fn identity(&self) -> &Identity {
        &self.started().identity
    }

    /// Asks the kernel who holds the life lock `life`.
    pub(crate) fn life_lock_holder(&self, life: u64) -> LifeLock {
        let mut lock = life_lock(life, libc::F_WRLCK);
        // SAFETY: F_GETLK reads and writes the flock struct it is given.
        let failed =
            unsafe { libc::fcntl(self.started().namespace.as_raw_fd(), libc::F_GETLK, &raw mut lock) };
        if failed != 0 {
            LifeLock::Unknown
        } else if lock.l_type == libc::F_UNLCK as libc::c_short {
            LifeLock::Free
        } else {
            LifeLock::Held(lock.l_pid as u32)
        }
    }

    /// Notes that this process takes part in `mapping`, and links the token at `offset` to the helper's life.
    pub(crate) fn link(&'static self, mapping: &Arc<Mapping>, offset: usize, token: &AtomicU32) -> Token {
        let mut list = self.list();
        list.mappings.push((mapping.base().addr(), Arc::downgrade(mapping)));
        let linkable = mapping.has_prefix() && offset + size_of::<Node>() <= PREFIX_BYTES;
        let node = if linkable && list.linked < TOKENS_MAX && !cfg!(miri) {
            let node = mapping.base().wrapping_add(offset).wrapping_sub(PREFIX_BYTES).cast::<Node>();
            // SAFETY: the PREFIX_BYTES before the base are private, writable and zero, and `offset` (8-aligned,
            // one per slot) picks a place in them that no other node has. The head is leaked. First the node's
            // own link, then the head's: at each moment the ring can be walked.
            unsafe {
                (&raw mut (*node).next).write_volatile(list.head.as_ref().first);
                (&raw mut (*list.head.as_ptr()).first).write_volatile(node);
            }
            list.linked += 1;
            // From here the kernel marks the word. Published last: before, peers see "no token".
            token.store(self.started().tid | WAITERS, crossproc_atomic::Ordering::Release);
            node
        } else {
            null_mut()
        };
        Token { helper: self, node, mapping: Arc::clone(mapping) }
    }
}

/// A linked token; dropping it unlinks.
pub(crate) struct Token {
    helper: &'static Helper,
    node: *mut Node,
    mapping: Arc<Mapping>,
}

// SAFETY: the node is only touched under the helper's mutex.
unsafe impl Send for Token {}
// SAFETY: as above; `Token` has no methods that touch it through a shared reference.
unsafe impl Sync for Token {}

impl Drop for Token {
    fn drop(&mut self) {
        if self.helper.stamp != process_stamp() {
            return; // forked: the list, and the thread it belongs to, are our parent's
        }
        let mut list = self.helper.list();
        let base = self.mapping.base().addr();
        list.mappings.retain(|(b, _)| *b != base);
        if self.node.is_null() {
            return;
        }
        let mut at = list.head.as_ptr().cast::<Node>();
        // SAFETY: every node in the ring is in private memory of a mapping that its own `Token` keeps, and we
        // hold the mutex. `Head` begins with its first pointer, so it can be walked as a node.
        unsafe {
            while (*at).next != list.head.as_ptr().cast() {
                if (*at).next == self.node {
                    (&raw mut (*at).next).write_volatile((*self.node).next);
                    list.linked -= 1;
                    return;
                }
                at = (*at).next;
            }
        }
    }
}

/// A thread ended with a lock held: marks the word as the kernel would, if it is still mapped.
fn give_up(locked: LockedWord) {
    let helper = current();
    let address = locked.address();
    let mapping = helper.list().mappings.iter().find_map(|(base, mapping)| {
        let mapping = mapping.upgrade()?;
        (*base..*base + mapping.len()).contains(&address).then_some(mapping)
    });
    if let Some(mapping) = mapping {
        if let Ok(word) = mapping.place::<AtomicU32>((address - mapping.base().addr()) as u64) {
            locked.give_up(&word);
        }
    }
}

fn life_lock(life: u64, kind: libc::c_int) -> libc::flock {
    // SAFETY: flock is plain data for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = life as libc::off_t;
    lock.l_len = 1;
    lock
}

fn start(stamp: u64, list: &List) -> Result<Started, Error> {
    let namespace = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::os("reading this process's PID namespace in /proc", e))?;
    let identity = Identity::read(stamp, &namespace)?;
    let lock = life_lock(identity.life, libc::F_RDLCK);
    // SAFETY: F_SETLK reads the flock struct. Where the lock can not be had, an exec is noticed by nobody until
    // the process ends; everything else rests on the pidfd.
    unsafe { libc::fcntl(namespace.as_raw_fd(), libc::F_SETLK, &raw const lock) };
    let tid = start_thread(list.head)?;
    Ok(Started { tid, identity, namespace })
}

/// Address of the helper's list head, on its way to the helper.
struct HeadAddress(NonNull<Head>);
// SAFETY: the head is leaked; the helper thread only names it to the kernel.
unsafe impl Send for HeadAddress {}

fn start_thread(head: NonNull<Head>) -> Result<u32, Error> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let head = HeadAddress(head);
    let run = move || {
        let head = head;
        // SAFETY: the head is a valid robust list head that is never freed, and this thread is ours: libc's list
        // for it is empty and stays so, since it never takes a lock of libc's.
        unsafe { libc::syscall(libc::SYS_set_robust_list, head.0.as_ptr(), size_of::<Head>()) };
        let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs() & TID);
        loop {
            std::thread::park();
        }
    };
    let thread = start_quiet_thread("crossproc-live", 64 * 1024, run);
    thread.map_err(|e| Error::io("starting the helper thread that tells peers when this process dies", e))?;
    told.recv().map_err(|_| Error::new(ErrorKind::Os, "the helper thread ended before it said its id"))
}

/// Starts a thread that takes no signals, so no handler runs on its small stack, and that nobody waits for: it ends with the process.
///
/// # Errors
///
/// If there can be no further thread.
pub fn start_quiet_thread(
    name: &str,
    stack: usize,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned()).stack_size(stack);
    with_signals_blocked(|| builder.spawn(run)).map(drop)
}

/// Threads started inside take no signals.
fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: both sets are plain data filled in by the calls; the old mask is put back on this same thread.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, null_mut());
        result
    }
}

impl Identity {
    fn read(stamp: u64, namespace: &OwnedFd) -> Result<Self, Error> {
        let pid = rustix::process::getpid();
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let stat =
            rustix::fs::fstat(namespace).map_err(|e| Error::os("reading this process's PID namespace", e))?;
        let mut random = [0_u8; 8];
        let got = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let random = if got == Ok(8) { u64::from_ne_bytes(random) } else { stamp };
        Ok(Self {
            life: u64::from(number & 0x3f_ffff) << 40 | random & 0xff_ffff_ffff,
            pid: number,
            start_time: start_time(number).unwrap_or(0),
            pidfd_inode: pidfd(number).ok().as_ref().and_then(pidfd_inode).unwrap_or(0),
            pid_namespace: stat.st_ino,
        })
    }
}

/// Opens a pidfd.
pub(crate) fn pidfd(pid: u32) -> rustix::io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid as i32).ok_or(rustix::io::Errno::SRCH)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
}

/// The number that no other process of this boot has; `None` on kernels whose pidfds share one inode.
pub(crate) fn pidfd_inode(fd: &OwnedFd) -> Option<u64> {
    let filesystem = rustix::fs::fstatfs(fd).ok()?;
    if filesystem.f_type as u64 != PIDFS_MAGIC {
        return None;
    }
    Some(rustix::fs::fstat(fd).ok()?.st_ino)
}

/// True only if no process has this number.
pub(crate) fn is_gone(pid: u32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid as i32);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// When a process started, in clock ticks since boot: field 22 of /proc/PID/stat, the 20th after the name.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    if !crossproc_atomic::proc_is_ours() {
        return None;
    }
    stat.get(stat.rfind(')')? + 2..)?.split(' ').nth(19)?.parse().ok()
}
