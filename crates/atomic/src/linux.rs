#![allow(unsafe_code)]
//! The room where this process meets its kernel: thread identity, the robust list, the fork stamp, futexes.
//!
//! Claims, and who keeps them:
//! * `list_op_pending` of the calling thread's *libc-owned* robust list head is a plain word of this thread's
//!   own memory; only this thread writes it here, the kernel reads it when the thread dies. The list itself is
//!   never touched and `set_robust_list` is never called: libc goes on owning it.
//! * The kernel never follows the pending entry as a pointer to a node; it only adds `futex_offset` and looks
//!   at the 32-bit word there. So a word in a segment is made robust without any link in shared memory.
//! * The fork stamp lives in a page that the kernel wipes in a forked child (`MADV_WIPEONFORK`), so a child
//!   sees 0 and knows that nothing it inherited is its own.

use core::cell::{Cell, RefCell};
use core::ffi::c_long;
use core::num::NonZeroU32;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering, compiler_fence};
use core::time::Duration;

use rustix::fs::Timespec;
use rustix::thread::futex;
use rustix::time::ClockId;

use crate::{AtomicU32, Deadline, OWNER_DIED, Pending, Platform, TID, WAITERS};

/// The calling thread on this Linux machine.
///
/// Sleeps on two words with `futex_waitv` (Linux 5.16); where the call is missing or denied, sleeps that
/// should also watch a second word are cut into slices of 50 ms instead.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

/// Sleeps that can not watch their second word last at most this long.
const BLIND_SLICE: Duration = Duration::from_millis(50);
/// How long to spin before sleeping, in pauses; the best of those tried beside `SPIN_GAP_MAX` of the lock (benches/RESULTS.md).
const SPINS: u32 = 300;
/// Marks the address of a word that is not given up when its thread ends. (Words are aligned to 4.)
const KEPT: usize = 1;
/// Locks held at once by a thread before the list of them goes to the heap.
const HELD_INLINE: usize = 16;

/// The head of a thread's robust list, as the kernel defines it.
#[repr(C)]
struct RobustHead {
    first: *mut RobustHead,
    futex_offset: c_long,
    pending: usize,
}

struct Thread {
    /// Stamp of the process incarnation in which the rest was filled in; 0 before.
    stamp: Cell<u64>,
    tid: Cell<u32>,
    /// Null where there is no robust list (musl before its first robust lock, Miri, emulators).
    head: Cell<*mut RobustHead>,
    /// The word that was announced last while it was held. (libc forgets our announcement when it takes a robust mutex.)
    announced: Cell<usize>,
    /// The last one of these that was said not to be given up.
    kept: Cell<usize>,
    /// Locks that are held and not announced, by address.
    held: Cell<usize>,
    words: [Cell<usize>; HELD_INLINE],
}

thread_local! {
    // No destructor, so that access is one instruction; the destructor is in EXIT.
    static THREAD: Thread = const {
        Thread {
            stamp: Cell::new(0),
            tid: Cell::new(0),
            head: Cell::new(null_mut()),
            announced: Cell::new(0),
            kept: Cell::new(0),
            held: Cell::new(0),
            words: [const { Cell::new(0) }; HELD_INLINE],
        }
    };
    static EXIT: Exit = const { Exit { spilled: RefCell::new(Vec::new()) } };
}

/// Dropped when the thread ends: gives up what it still holds.
struct Exit {
    spilled: RefCell<Vec<usize>>,
}

impl Drop for Exit {
    fn drop(&mut self) {
        let hook = ON_THREAD_EXIT.load(Ordering::Acquire);
        THREAD.with(|t| {
            let held = t.held.replace(0);
            if hook.is_null() || t.stamp.get() != process_stamp() {
                return;
            }
            // SAFETY: only `on_thread_exit` stores here, and it stores a `fn(LockedWord)`.
            let hook = unsafe { core::mem::transmute::<*mut (), fn(LockedWord)>(hook) };
            let inline = t.words.iter().take(held).map(Cell::get);
            let given_up = |address: &usize| *address != 0 && *address & KEPT == 0;
            let inner: Vec<usize> = inline.chain(self.spilled.take()).collect();
            // It may have been released long ago: then the word does not have our id, or is in the list.
            let announced =
                Some(t.announced.get()).filter(|&a| a != t.kept.get() && !inner.contains(&(a | KEPT)));
            for address in inner.into_iter().chain(announced).filter(given_up) {
                hook(LockedWord { address, tid: t.tid.get() });
            }
            // What is left is a lock to be kept, or one whose segment is unmapped by now.
            t.set_pending(0);
        });
    }
}

static ON_THREAD_EXIT: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// A word that a thread still held when it ended.
#[derive(Debug)]
pub struct LockedWord {
    address: usize,
    tid: u32,
}

impl LockedWord {
    /// Where the word was when it was locked.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Does to `word` what the kernel does to the robust words of a dead thread.
    pub fn give_up(&self, word: &AtomicU32) {
        let mut seen = word.load(Ordering::Relaxed);
        while seen & TID == self.tid {
            let dead = seen & WAITERS | OWNER_DIED;
            match word.compare_exchange(seen, dead, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    if seen & WAITERS != 0 {
                        Linux.wake(word, 1);
                    }
                    return;
                }
                Err(now) => seen = now,
            }
        }
    }
}

/// Names the function that is given each word which a thread still holds when it ends. It must make sure
/// that the word is still mapped before it touches it. Later calls replace the function.
pub fn on_thread_exit(hook: fn(LockedWord)) {
    ON_THREAD_EXIT.store(hook as *mut (), Ordering::Release);
}

/// How many locks the calling thread holds beside an announced one.
#[must_use]
pub fn held_locks() -> usize {
    THREAD.with(|t| t.held.get())
}

/// The page whose first word is the stamp of this process incarnation; wiped by the kernel in a forked child.
/// Until there is one, a word that is always 0, so that nobody has to ask whether there is one.
static STAMP_PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new((&raw const NO_STAMP).cast_mut());
static NO_STAMP: AtomicU64 = AtomicU64::new(0);

/// A number for this incarnation of the process: a forked child has another one than its parent.
#[inline]
#[must_use]
pub fn process_stamp() -> u64 {
    let stamp = stamp_word().load(Ordering::Relaxed);
    if stamp != 0 { stamp } else { new_stamp() }
}

/// True if `stamp` is what [`process_stamp`] once returned in this incarnation of the process.
#[inline]
#[must_use]
pub fn is_process_stamp(stamp: u64) -> bool {
    stamp_word().load(Ordering::Relaxed) == stamp
}

#[inline]
fn stamp_word() -> &'static AtomicU64 {
    // SAFETY: a static, or a page that is never unmapped once it has been stored.
    unsafe { &*STAMP_PAGE.load(Ordering::Acquire) }
}

#[cold]
fn new_stamp() -> u64 {
    let mut page = STAMP_PAGE.load(Ordering::Acquire);
    let none = (&raw const NO_STAMP).cast_mut();
    if page == none {
        let fresh = stamp_page();
        match STAMP_PAGE.compare_exchange(none, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => page = fresh,
            // Another thread was first. The page that lost stays mapped: once per process at most.
            Err(first) => page = first,
        }
    }
    // Unique among this process and its ancestors: no two incarnations share both clock and pid.
    let pid = u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs());
    let stamp = Linux.now().0 << 22 | pid & 0x3f_ffff | 1 << 63;
    // SAFETY: as in `stamp_word`.
    match unsafe { &*page }.compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => stamp,
        Err(first) => first,
    }
}

#[cfg(not(miri))]
fn stamp_page() -> *mut AtomicU64 {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
    let (size, rw) = (4096, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new private mapping at an address of the kernel's choice; nothing else can refer to it.
    let page = unsafe { mmap_anonymous(null_mut(), size, rw, MapFlags::PRIVATE) }
        .expect("one page of memory for the fork stamp");
    // SAFETY: the page was mapped above and is zero. Some emulations of Linux do not know the advice; then the handler
    // below does it for libc's fork.
    let _ = unsafe { madvise(page, size, Advice::LinuxWipeOnFork) };
    // SAFETY: the handler only stores to an atomic word and to the forking thread's own list head.
    unsafe { libc::pthread_atfork(None, None, Some(in_forked_child)) };
    page.cast()
}

#[cfg(miri)]
fn stamp_page() -> *mut AtomicU64 {
    Box::leak(Box::new(AtomicU64::new(0)))
}

/// Runs in the child of libc's fork, in the thread that forked. What its parent had announced must not stand: in a new
/// PID namespace the child's thread can have the very id that is in its parent's lock.
#[cfg(not(miri))]
extern "C" fn in_forked_child() {
    THREAD.with(|t| t.set_pending(0));
    stamp_word().store(0, Ordering::Relaxed);
}

impl Thread {
    #[inline]
    fn set_pending(&self, pending: usize) {
        let head = self.head.get();
        if !head.is_null() {
            compiler_fence(Ordering::SeqCst);
            // SAFETY: `head` is this thread's own list head, which libc keeps for the thread's life.
            unsafe { (&raw mut (*head).pending).write_volatile(pending) };
        }
    }

    /// First use in this thread, or first use after a fork.
    #[cold]
    fn introduce(&self, stamp: u64) {
        self.tid.set(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs() & TID);
        self.head.set(robust_head());
        self.held.set(0);
        self.announced.set(0);
        if self.stamp.get() != 0 {
            self.set_pending(0); // forked: what was announced was our parent's
        }
        // Touching EXIT registers its destructor; during the thread's own end it is gone already.
        let _ = EXIT.try_with(|exit| exit.spilled.borrow_mut().clear());
        self.stamp.set(stamp);
    }
}

#[cfg(not(miri))]
fn robust_head() -> *mut RobustHead {
    let mut head: *mut RobustHead = null_mut();
    let mut size = 0_usize;
    // SAFETY: the kernel stores the head's address and size into the two locals; pid 0 is this thread.
    let failed = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut size) };
    if failed != 0 || size != size_of::<RobustHead>() { null_mut() } else { head }
}

#[cfg(miri)]
fn robust_head() -> *mut RobustHead {
    null_mut()
}

/// 0: not tried yet, 1: works, 2: missing or denied.
static WAITV: AtomicU8 = AtomicU8::new(0);

/// Words that `futex_waitv` takes at most.
const WAITV_WORDS: usize = 128;

/// How many words beside its own a sleeper can watch in one call; of more, the first ones are watched and sleeps are
/// cut into slices of 50 ms.
pub const WATCHED_WORDS: usize = WAITV_WORDS - 1;

/// With `false` this process does without `futex_waitv`, as on a kernel that lacks it: for tests and measurements.
pub fn set_futex_waitv(allowed: bool) {
    WAITV.store(if allowed { 0 } else { 2 }, Ordering::Relaxed);
}

static SPINNING: AtomicU8 = AtomicU8::new(1);

/// With `false` nobody in this process looks again and again before it sleeps: for tests that count instructions.
pub fn set_spinning(allowed: bool) {
    SPINNING.store(u8::from(allowed), Ordering::Relaxed);
}

/// What [`set_spinning`] has said; true at first.
#[must_use]
pub fn is_spinning() -> bool {
    SPINNING.load(Ordering::Relaxed) != 0
}

fn timespec(deadline: Deadline) -> Timespec {
    let nanos_per_s = 1_000_000_000;
    Timespec { tv_sec: (deadline.0 / nanos_per_s) as i64, tv_nsec: (deadline.0 % nanos_per_s) as _ }
}

fn waiter((word, expected): (&AtomicU32, u32)) -> futex::Wait {
    let mut w = futex::Wait::new();
    w.val = u64::from(expected);
    w.uaddr = futex::WaitPtr::new(core::ptr::from_ref(word).cast_mut().cast());
    w.flags = futex::WaitFlags::SIZE_U32;
    w
}

/// `Some` if the kernel slept on all words (or saw that it need not); `None` if it has no such call.
fn wait_on_all(words: &[futex::Wait], until: Option<&Timespec>) -> Option<()> {
    match futex::waitv(words, futex::WaitvFlags::empty(), until, ClockId::Monotonic) {
        // A sandbox answers EPERM where it should say ENOSYS.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            WAITV.store(2, Ordering::Relaxed);
            None
        }
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::TIMEDOUT) => {
            WAITV.store(1, Ordering::Relaxed);
            Some(())
        }
        // Out of memory, say: the plain call needs none.
        Err(_) => None,
    }
}

#[cold]
fn wait_on_many(first: futex::Wait, also: &[(&AtomicU32, u32)], until: Option<&Timespec>) -> Option<()> {
    let mut words = [first; WAITV_WORDS];
    for (place, &word) in words[1..].iter_mut().zip(also) {
        *place = waiter(word);
    }
    wait_on_all(&words[..=also.len().min(WATCHED_WORDS)], until)
}

impl Linux {
    /// The calling thread's id, for a caller who has just compared `stamp` with [`process_stamp`].
    #[inline]
    #[must_use]
    pub fn tid_in(self, stamp: u64) -> u32 {
        THREAD.with(|t| {
            if t.stamp.get() != stamp {
                t.introduce(stamp);
            }
            t.tid.get()
        })
    }
}

impl Platform for Linux {
    #[inline]
    fn tid(&self) -> u32 {
        self.tid_in(process_stamp())
    }

    #[inline]
    fn announce(&self, word: &AtomicU32) -> Pending {
        THREAD.with(|t| {
            let head = t.head.get();
            if head.is_null() {
                return Pending { before: 0, now: 0 };
            }
            // SAFETY: `head` is this thread's own list head, which libc keeps for the thread's life. Its fields
            // are read by the kernel only when this thread dies, so plain volatile accesses are enough.
            unsafe {
                let pending = &raw mut (*head).pending;
                let before = pending.read_volatile();
                let offset = (&raw const (*head).futex_offset).read_volatile();
                let now = core::ptr::from_ref(word).addr().wrapping_sub(offset as usize);
                if before != now {
                    pending.write_volatile(now);
                }
                compiler_fence(Ordering::SeqCst);
                Pending { before, now }
            }
        })
    }

    #[inline]
    fn retract(&self, pending: Pending) {
        THREAD.with(|t| t.set_pending(pending.before));
    }

    #[inline]
    fn hold_announced(&self, word: &AtomicU32) {
        THREAD.with(|t| t.announced.set(core::ptr::from_ref(word).addr()));
    }

    #[inline]
    fn hold(&self, word: &AtomicU32) {
        THREAD.with(|t| {
            let (held, address) = (t.held.get(), core::ptr::from_ref(word).addr());
            // First the count: a signal handler that locks here takes the next place.
            t.held.set(held + 1);
            match t.words.get(held) {
                Some(place) => place.set(address),
                None => spill(address),
            }
        });
    }

    #[inline]
    fn keep(&self, word: &AtomicU32) {
        THREAD.with(|t| {
            let (held, address) = (t.held.get(), core::ptr::from_ref(word).addr());
            match t.words.get(held.wrapping_sub(1)) {
                Some(last) if last.get() == address => last.set(address | KEPT),
                // Stays when the lock is released: at this address there never is a lock of another kind.
                _ if t.announced.get() == address => t.kept.set(address),
                _ => keep_spilled(address),
            }
        });
    }

    #[inline]
    fn unhold(&self, word: &AtomicU32) {
        THREAD.with(|t| {
            let (held, address) = (t.held.get(), core::ptr::from_ref(word).addr());
            if held == 0 {
                return;
            }
            if t.words.get(held - 1).is_some_and(|last| last.get() & !KEPT == address) {
                t.held.set(held - 1);
            } else {
                unhold_out_of_order(t, address);
            }
        });
    }

    fn wait(&self, word: &AtomicU32, expected: u32, also: &[(&AtomicU32, u32)], until: Option<Deadline>) {
        let mut until = until;
        let can_watch = WAITV.load(Ordering::Relaxed) != 2;
        if !also.is_empty() && (!can_watch || also.len() > WATCHED_WORDS) {
            let slice = self.now().saturating_add(BLIND_SLICE);
            until = Some(until.map_or(slice, |u| u.min(slice)));
        }
        let mut timeout = until.map(timespec);
        if !also.is_empty() && can_watch {
            let own = waiter((word, expected));
            let slept = match also {
                [other] => wait_on_all(&[own, waiter(*other)], timeout.as_ref()),
                _ => wait_on_many(own, also, timeout.as_ref()),
            };
            if slept.is_some() {
                return;
            }
            let slice = self.now().saturating_add(BLIND_SLICE);
            timeout = Some(timespec(until.map_or(slice, |u| u.min(slice))));
        }
        // The result does not matter: woken, changed, interrupted and timed out all mean "look again".
        let _ = futex::wait_bitset(word, futex::Flags::empty(), expected, timeout.as_ref(), NonZeroU32::MAX);
    }

    #[inline]
    fn wake(&self, word: &AtomicU32, count: u32) -> u32 {
        let count = count.min(i32::MAX.unsigned_abs());
        futex::wake(word, futex::Flags::empty(), count).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX))
    }

    fn now(&self) -> Deadline {
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        Deadline(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    fn thread_exists(&self, tid: u32) -> bool {
        // A thread that has ended but whose leader entry is not reaped yet is a zombie: it runs no more.
        match std::fs::read(format!("/proc/{tid}/stat")) {
            Ok(stat) if proc_is_ours() => {
                let after_name = stat.iter().rposition(|&b| b == b')').map_or(0, |p| p + 2);
                !matches!(stat.get(after_name), Some(b'Z' | b'X'))
            }
            _ => {
                let pid = rustix::process::Pid::from_raw(tid as i32);
                pid.is_some_and(|p| rustix::process::test_kill_process(p) != Err(rustix::io::Errno::SRCH))
            }
        }
    }

    fn spins(&self) -> u32 {
        static CACHED: AtomicU32 = AtomicU32::new(u32::MAX);
        let cached = CACHED.load(Ordering::Relaxed);
        if cached != u32::MAX {
            return cached;
        }
        let one_cpu = std::thread::available_parallelism().is_ok_and(|n| n.get() == 1);
        let spins = if one_cpu { 0 } else { SPINS };
        CACHED.store(spins, Ordering::Relaxed);
        spins
    }
}

/// False if /proc shows another PID namespace than the one we live in (`unshare -p` without a new mount): then its
/// numbers are those of strangers.
#[must_use]
pub fn proc_is_ours() -> bool {
    let me = rustix::process::getpid().as_raw_nonzero().get().to_string();
    std::fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == me.as_str())
}

#[cold]
fn spill(address: usize) {
    let _ = EXIT.try_with(|exit| exit.spilled.borrow_mut().push(address));
}

#[cold]
fn keep_spilled(address: usize) {
    let _ = EXIT.try_with(|exit| {
        if let Some(last) = exit.spilled.borrow_mut().iter_mut().rfind(|a| **a == address) {
            *last |= KEPT;
        }
    });
}

#[cold]
fn unhold_out_of_order(t: &Thread, address: usize) {
    let held = t.held.get();
    let from_spilled = |take: &dyn Fn(&mut Vec<usize>) -> Option<usize>| {
        EXIT.try_with(|exit| take(&mut exit.spilled.borrow_mut())).ok().flatten()
    };
    let found = from_spilled(&|spilled| {
        let at = spilled.iter().rposition(|&a| a & !KEPT == address)?;
        Some(spilled.swap_remove(at))
    });
    if found.is_none() {
        let inline = held.min(HELD_INLINE);
        let Some(at) = t.words.iter().take(inline).position(|w| w.get() & !KEPT == address) else { return };
        // An inline place becomes free: the last spilled address moves into it.
        t.words[at].set(from_spilled(&Vec::pop).unwrap_or_else(|| t.words[inline - 1].get()));
    }
    t.held.set(held - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_locks_survive_any_order_of_release() {
        let words: Vec<AtomicU32> = (0..40).map(|_| AtomicU32::new(0)).collect();
        Linux.tid();
        for w in &words {
            Linux.hold(w);
        }
        for w in words.iter().step_by(2).chain(words.iter().skip(1).step_by(2)) {
            Linux.unhold(w);
        }
        assert_eq!(held_locks(), 0);
        for w in &words {
            Linux.hold(w);
        }
        for w in words.iter().rev() {
            Linux.unhold(w);
        }
        assert_eq!(held_locks(), 0);
    }

    #[test]
    fn a_thread_that_ends_holding_reports_its_words() {
        static SEEN: AtomicU32 = AtomicU32::new(0);
        static WORDS: [AtomicU32; 20] = [const { AtomicU32::new(0) }; 20];
        fn hook(locked: LockedWord) {
            for w in &WORDS {
                if core::ptr::from_ref(w).addr() == locked.address() {
                    locked.give_up(w);
                    SEEN.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        on_thread_exit(hook);
        std::thread::spawn(|| {
            let tid = Linux.tid();
            for w in &WORDS {
                w.store(tid, Ordering::Relaxed);
                Linux.hold(w);
            }
        })
        .join()
        .expect("the thread ends well");
        assert_eq!(SEEN.load(Ordering::Relaxed), 20);
        assert!(WORDS.iter().all(|w| w.load(Ordering::Relaxed) == OWNER_DIED));
    }

    #[test]
    fn a_word_announced_by_a_dying_thread_is_marked_by_the_kernel() {
        static WORD: AtomicU32 = AtomicU32::new(0);
        /// Dropped after this module's own destructor, since it was touched before.
        struct Last;
        impl Drop for Last {
            fn drop(&mut self) {
                let pending = Linux.announce(&WORD);
                assert!(pending.is_outermost() || cfg!(miri));
                WORD.store(Linux.tid() | WAITERS, Ordering::Relaxed);
            }
        }
        thread_local!(static LAST: Last = const { Last });
        std::thread::spawn(|| {
            LAST.with(|_| ());
            Linux.tid();
        })
        .join()
        .expect("the thread ends well");
        // join returns when the kernel clears the thread's id, which it does after the robust list.
        if !cfg!(miri) {
            assert_eq!(WORD.load(Ordering::Relaxed), OWNER_DIED | WAITERS);
        }
    }

    #[test]
    fn a_word_that_is_to_be_kept_is_not_given_up() {
        static WORD: AtomicU32 = AtomicU32::new(0);
        std::thread::spawn(|| {
            WORD.store(Linux.tid(), Ordering::Relaxed);
            let _ = Linux.announce(&WORD);
            Linux.hold_announced(&WORD);
            Linux.keep(&WORD);
            on_thread_exit(|_| ());
        })
        .join()
        .expect("the thread ends well");
        assert_eq!(WORD.load(Ordering::Relaxed) & OWNER_DIED, 0);
    }
}
