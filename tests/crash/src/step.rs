#![allow(unsafe_code)]
//! The room of the engine: a forked child that is run one machine instruction at a time, and a check with a deadline.
//!
//! ```text
//!  parent                          victim (a fork of the parent)
//!  Victim::start ----------------> body: set up, then marked(op):
//!    stopped at the first int3 <--   int3
//!  step, step, step ------------->   op
//!    Step::End at the second   <--   int3
//!  kill: SIGKILL, and reaped
//! ```
//!
//! Claims, and who keeps them:
//! * Only the thread that made a [`Victim`] steps it (`!Send`): the kernel takes requests from the tracing thread alone.
//! * A victim that is stopped by ptrace executes nothing more when SIGKILL comes. So it dies between two instructions.
//! * Only the victim's first thread is traced; threads that it starts run freely, and die with it.
//! * Victims and checkers have the same addresses as the parent: they are forks and do not exec.
//! * A victim never outlives its parent: `PTRACE_O_EXITKILL`, and the death signal for the moments before.
//!
//! Where ptrace is denied, [`die_by_trap`] does without: the victim sets its own trap flag at the first marker, counts
//! in its SIGTRAP handler, and kills itself there.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{c_int, c_long, c_void};
use std::marker::PhantomData;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The number of a process, as the kernel has it.
pub type Pid = libc::pid_t;

/// A step that takes longer than this has fallen asleep in the kernel.
pub const ASLEEP: Duration = Duration::from_millis(300);

/// What came of letting a victim run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It executed one instruction (a system call is one).
    Stepped,
    /// It has reached the second marker: the operation has returned.
    End,
    /// It sleeps in a system call. It can be killed there, or waited for again.
    Blocked,
    /// It is about to make the system call of this number ([`Victim::to_syscall`]).
    Syscall(i64),
    /// It is no more, and was reaped.
    Exited(Ending),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// What a check found. The greater, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// All is as promised.
    Ok,
    /// As promised: the one message that a dead copying receiver was taking is gone.
    Taken,
    /// The survivor did not come to an end in time.
    Wedged,
    /// What an operation that had returned did is not there.
    Lost,
    /// Something is there twice.
    Duplicated,
    /// A state that no sequence of whole operations leads to.
    Corrupt,
    /// The survivor crashed or panicked.
    Crashed,
}

impl Verdict {
    /// All of them, best first.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Taken, Self::Wedged, Self::Lost, Self::Duplicated, Self::Corrupt, Self::Crashed];

    /// True if it breaks a promise.
    #[must_use]
    pub fn is_bad(self) -> bool {
        self > Self::Taken
    }

    /// What it means.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Ok => "as promised",
            Self::Taken => "as promised: what a dead copying receiver was taking is gone",
            Self::Wedged => "the survivor did not come to an end in time",
            Self::Lost => "the effect of an operation that had returned is not there",
            Self::Duplicated => "something is there twice",
            Self::Corrupt => "a state that no sequence of whole operations leads to",
            Self::Crashed => "the survivor crashed or panicked",
        }
    }

    /// In lower case, for tables and programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Taken => "taken",
            Self::Wedged => "wedged",
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Corrupt => "corrupt",
            Self::Crashed => "crashed",
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[inline(always)]
fn marker() {
    // SAFETY: a breakpoint; who runs it is traced or has a handler for SIGTRAP.
    unsafe { std::arch::asm!("int3") }
}

/// The operation to be stepped through, between the two markers.
#[inline(never)]
pub fn marked<R>(op: impl FnOnce() -> R) -> R {
    marker();
    let result = std::hint::black_box(op());
    marker();
    result
}

// ---- what a forked child tells its parent

const REASON: usize = 1024;

/// Memory that a thread shares with the processes it forks.
#[repr(C)]
struct Page {
    steps: AtomicU64,
    syscalls: AtomicU64,
    ended: AtomicU64,
    len: AtomicU64,
    reason: [AtomicU64; REASON / 8],
}

thread_local! {
    // Forked children find their parent's: it is the forking thread's own.
    static PAGE: &'static Page = {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: new memory at an address of the kernel's choice.
        let page = unsafe { libc::mmap(null_mut(), size_of::<Page>(), rw, flags, -1, 0) };
        assert!(page != libc::MAP_FAILED, "a page of shared memory");
        // SAFETY: zeroed, large enough, aligned to a page, never unmapped.
        unsafe { &*page.cast::<Page>() }
    };
}

/// Says why a check comes to its verdict; the parent reads it with [`why`].
pub fn explain(text: &str) {
    PAGE.with(|page| {
        let bytes = &text.as_bytes()[..text.len().min(REASON)];
        for (word, bytes) in page.reason.iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        page.len.store(bytes.len() as u64, Ordering::Release);
    });
}

/// What the last checker of this thread [explained](explain); empty if it did not.
#[must_use]
pub fn why() -> String {
    PAGE.with(|page| {
        let bytes = page.reason.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let len = page.len.load(Ordering::Acquire).min(REASON as u64) as usize;
        String::from_utf8_lossy(&bytes.take(len).collect::<Vec<_>>()).into_owned()
    })
}

/// Forks. The child runs `body` and leaves with its result; it never returns, whatever `body` does.
fn fork(body: impl FnOnce() -> u8) -> Pid {
    PAGE.with(|page| {
        page.len.store(0, Ordering::Relaxed);
        page.steps.store(0, Ordering::Relaxed);
        page.syscalls.store(0, Ordering::Relaxed);
        page.ended.store(0, Ordering::Relaxed);
    });
    // SAFETY: libc's fork runs its handlers; the child touches what it inherited as any forked child of this program may.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid != 0 {
        return pid;
    }
    // SAFETY: asks for a signal when the parent dies.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        explain(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic"));
        PANICKED
    });
    // SAFETY: ends the process without running what belongs to the parent.
    unsafe { libc::_exit(i32::from(status)) }
}

const PANICKED: u8 = 101;
const DENIED: u8 = 102;

/// Waits until the process changes its state; `None` if it does not in time.
fn await_change(pid: Pid, limit: Duration) -> Option<c_int> {
    let started = Instant::now();
    // Asleep, and not yielding: who was woken comes before others that have work for this CPU.
    let mut pause = Duration::from_micros(5);
    loop {
        let status = change(pid, libc::WNOHANG);
        if status.is_some() {
            return status;
        }
        if started.elapsed() > limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_micros(500));
    }
}

/// `None` only with `WNOHANG`, if nothing has changed.
fn change(pid: Pid, flags: c_int) -> Option<c_int> {
    loop {
        let mut status = 0;
        // SAFETY: stores the status into a local.
        let got = unsafe { libc::waitpid(pid, &raw mut status, flags | libc::__WALL) };
        let error = std::io::Error::last_os_error();
        if got < 0 && error.kind() == std::io::ErrorKind::Interrupted {
            continue;
        }
        assert!(got >= 0, "waiting for {pid}: {error}");
        return (got == pid).then_some(status);
    }
}

fn ending(status: c_int) -> Option<Ending> {
    if libc::WIFEXITED(status) {
        Some(Ending::Status(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        Some(Ending::Signal(libc::WTERMSIG(status)))
    } else {
        None
    }
}

/// Whether the first thread of a process sleeps in the kernel.
fn is_asleep(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|name_end| stat[name_end..].starts_with(") S"))
}

/// Kills a child and waits until it is gone.
fn kill_and_reap(pid: Pid) -> Ending {
    // SAFETY: a child of ours that was not reaped, so the number is still its own.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    loop {
        if let Some(ending) = change(pid, 0).and_then(ending) {
            return ending;
        }
    }
}

thread_local! {
    static PINNED: Cell<bool> = const { Cell::new(false) };
}

/// Ties this thread, and what it forks, to one CPU: stepping is four times as fast there. Done by the first victim or checker,
/// to whatever CPU the thread is on then, unless it was done before.
pub fn pin() {
    if !PINNED.get() {
        // SAFETY: asks for a number.
        let here = unsafe { libc::sched_getcpu() };
        pin_to(|cpu, _, _| i32::try_from(cpu) == Ok(here));
    }
}

/// As [`pin`], to the n-th of the CPUs that this thread may use, counted round: for several processes, which share them then.
pub fn pin_to_nth(n: usize) {
    pin_to(|_, at, of| at == n % of);
}

/// `is_it` is told a CPU, its place among those that this thread may use, and how many these are.
fn pin_to(is_it: impl Fn(usize, usize, usize) -> bool) {
    PINNED.set(true);
    // SAFETY: the sets are plain data that the calls read and write. If it can not be had, all is merely slower.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed);
        let cpus: Vec<usize> =
            (0..8 * size_of_val(&allowed)).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)).collect();
        let chosen = cpus.iter().enumerate().find(|&(at, &cpu)| is_it(cpu, at, cpus.len()));
        if let Some((_, &cpu)) = chosen {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
        }
    }
}

// ---- checks

/// Runs `check` in a forked child, which dies of SIGALRM when `limit` has passed.
///
/// A check that panics is [`Verdict::Crashed`], with the panic's text for [`why`].
pub fn with_deadline(limit: Duration, check: impl FnOnce() -> Verdict) -> Verdict {
    pin();
    let checker = fork(|| {
        alarm(limit);
        check() as u8
    });
    verdict_of(checker, limit)
}

fn verdict_of(checker: Pid, limit: Duration) -> Verdict {
    // The alarm ends it; this is for a child that blocks it.
    let Some(status) = await_change(checker, limit + Duration::from_secs(10)) else {
        kill_and_reap(checker);
        return Verdict::Wedged;
    };
    match ending(status) {
        Some(Ending::Status(code)) => {
            Verdict::ALL.into_iter().find(|&verdict| verdict as i32 == code).unwrap_or(Verdict::Crashed)
        }
        Some(Ending::Signal(libc::SIGALRM)) => Verdict::Wedged,
        Some(Ending::Signal(signal)) => {
            PAGE.with(|page| page.len.store(0, Ordering::Relaxed));
            explain(&format!("killed by signal {signal}"));
            Verdict::Crashed
        }
        None => unreachable!("nobody stops a checker"),
    }
}

/// A checker that is there before the victim dies: it gets ready, and waits to be told.
#[derive(Debug)]
pub struct EarlyChecker {
    pid: Pid,
    tell: OwnedFd,
    limit: Duration,
    judged: bool,
}

impl EarlyChecker {
    /// Forks; the child runs `check`, which gets ready and then calls the function it is given. That one returns when the parent
    /// calls [`judge`](Self::judge), with the byte from there; from then on there is the deadline. Returns when the child waits.
    ///
    /// # Panics
    ///
    /// If the child ends or hangs before.
    #[must_use]
    pub fn start(limit: Duration, check: impl FnOnce(&mut dyn FnMut() -> u8) -> Verdict) -> Self {
        pin();
        let (hear, tell) = rustix::pipe::pipe().expect("a pipe");
        let pid = fork(|| {
            let mut wait = || {
                PAGE.with(|page| page.ended.store(AT_POINT, Ordering::Release));
                let mut message = [0];
                while rustix::io::read(&hear, &mut message) != Ok(1) {}
                alarm(limit);
                message[0]
            };
            check(&mut wait) as u8
        });
        await_ready(pid, "an early checker");
        Self { pid, tell, limit, judged: false }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets it check.
    #[must_use]
    pub fn judge(mut self, message: u8) -> Verdict {
        PAGE.with(|page| page.len.store(0, Ordering::Relaxed));
        rustix::io::write(&self.tell, &[message]).expect("a checker that waits");
        self.judged = true;
        verdict_of(self.pid, self.limit)
    }
}

impl Drop for EarlyChecker {
    fn drop(&mut self) {
        if !self.judged {
            kill_and_reap(self.pid);
        }
    }
}

/// SIGALRM ends the calling process when `limit` has passed.
fn alarm(limit: Duration) {
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let value = libc::timeval {
        tv_sec: limit.as_secs() as libc::time_t,
        tv_usec: libc::suseconds_t::from(limit.subsec_micros() as i32),
    };
    let timer = libc::itimerval { it_interval: none, it_value: value };
    // SAFETY: plain data that the calls read; the signal gets its default action, which is to end the process.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, null_mut());
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, null_mut());
    }
}

// ---- ptrace

fn ptrace(request: libc::c_uint, pid: Pid, address: usize, data: usize) -> std::io::Result<c_long> {
    // SAFETY: requests used here read or write the tracee, or what `data` points at, which callers keep alive.
    let result = unsafe { libc::ptrace(request, pid, address as *mut c_void, data as *mut c_void) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether this process may trace its children.
#[must_use]
pub fn ptrace_allowed() -> bool {
    let pid = fork(|| match ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
        Ok(_) => 0,
        Err(_) => DENIED,
    });
    let status = await_change(pid, Duration::from_secs(30)).expect("a child that only leaves");
    ending(status) == Some(Ending::Status(0))
}

/// A word of a register of the tracee.
macro_rules! register {
    ($name:ident) => {
        offset_of!(libc::user, regs) + offset_of!(libc::user_regs_struct, $name)
    };
}

/// A forked child under ptrace, stopped inside its [`marked`] operation.
#[derive(Debug)]
pub struct Victim {
    pid: Pid,
    steps: u64,
    /// It was let go and has not stopped again.
    running: bool,
    /// It is stopped at the entry of a system call.
    in_syscall: bool,
    /// A signal that is to be delivered when it goes on.
    signal: c_int,
    /// The last request by which it was let go.
    request: libc::c_uint,
    reaped: bool,
    /// Its next instruction, once it was asked for.
    next: Cell<Option<Code>>,
    /// ptrace belongs to a thread.
    not_send: PhantomData<*const ()>,
}

/// What matters of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Plain,
    Syscall,
    /// `int3`
    Marker,
}

thread_local! {
    // Victims are forks of one process: they have the same code at the same addresses.
    static CODE: RefCell<HashMap<u64, Code>> = RefCell::new(HashMap::new());
}

impl Victim {
    /// Forks; the child runs `body`, which sets up what it needs and then calls [`marked`]. Returns when the child stands
    /// at the first marker.
    ///
    /// # Panics
    ///
    /// If the child ends or hangs before its first marker, or if ptrace is denied.
    #[must_use]
    pub fn start(body: impl FnOnce()) -> Self {
        pin();
        let pid = fork(|| {
            if ptrace(libc::PTRACE_TRACEME, 0, 0, 0).is_err() {
                return DENIED;
            }
            // SAFETY: stops this process, until its parent lets it go.
            unsafe { libc::raise(libc::SIGSTOP) };
            body();
            0
        });
        let mut it = Self {
            pid,
            steps: 0,
            running: true,
            in_syscall: false,
            signal: 0,
            request: libc::PTRACE_CONT,
            reaped: false,
            next: Cell::new(None),
            not_send: PhantomData,
        };
        let long = Duration::from_secs(30);
        match await_change(pid, long) {
            Some(status) if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGSTOP => {}
            Some(status) => {
                it.reaped = ending(status).is_some();
                panic!("ptrace is denied, or the victim ended: {:?}", ending(status));
            }
            None => panic!("the victim does not stop"),
        }
        it.running = false;
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options as usize).expect("options of a stopped child");
        match it.go(libc::PTRACE_CONT, long) {
            Step::End => {}
            other => panic!("the victim did not come to its first marker: {other:?} {}", why()),
        }
        it
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How many instructions it was stepped since the first marker.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.steps
    }

    /// Lets it execute one instruction. After [`Step::Blocked`]: waits once more for the one under way.
    pub fn step(&mut self) -> Step {
        let plain = !self.running && !self.in_syscall && self.next() == Code::Plain;
        self.let_go(libc::PTRACE_SINGLESTEP);
        let step = if plain { self.wait_for_plain() } else { self.wait(ASLEEP) };
        if step == Step::Stepped {
            self.steps += 1;
        }
        step
    }

    /// Waits for an instruction under way that is neither a system call nor a marker. It can not sleep, so there is no limit.
    fn wait_for_plain(&mut self) -> Step {
        let status = change(self.pid, 0);
        if status.is_some_and(|status| libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP) {
            self.running = false;
            return Step::Stepped;
        }
        self.changed(status.expect("it was waited for")).unwrap_or_else(|| self.wait(ASLEEP))
    }

    /// Lets it execute `n` instructions; less, if something else comes in between.
    pub fn steps(&mut self, n: u64) -> Step {
        for _ in 0..n {
            let step = self.step();
            if step != Step::Stepped {
                return step;
            }
        }
        Step::Stepped
    }

    /// Lets it run freely; see [`wait`](Self::wait).
    pub fn resume(&mut self) {
        self.let_go(libc::PTRACE_CONT);
    }

    /// Lets it run freely to the second marker, for `limit` at most.
    pub fn run_to_end(&mut self, limit: Duration) -> Step {
        self.go(libc::PTRACE_CONT, limit)
    }

    /// Waits until a victim that was let go stops or ends; [`Step::Blocked`] if it does neither in time.
    pub fn wait(&mut self, limit: Duration) -> Step {
        loop {
            if self.reaped {
                return Step::Exited(Ending::Signal(libc::SIGKILL));
            }
            let Some(status) = await_change(self.pid, limit) else {
                if is_asleep(self.pid) {
                    return Step::Blocked;
                }
                continue; // it waits for a CPU
            };
            if let Some(step) = self.changed(status) {
                return step;
            }
        }
    }

    /// What a change of its state means; `None` if it has gone on.
    fn changed(&mut self, status: c_int) -> Option<Step> {
        if let Some(ending) = ending(status) {
            self.reaped = true;
            return Some(Step::Exited(ending));
        }
        self.running = false;
        let signal = libc::WSTOPSIG(status);
        if signal == libc::SIGTRAP | 0x80 {
            self.in_syscall = !self.in_syscall;
            return Some(if self.in_syscall { Step::Syscall(self.syscall_number()) } else { Step::Stepped });
        }
        self.in_syscall = false;
        if signal == libc::SIGTRAP {
            return Some(if self.signal_code() == libc::SI_KERNEL { Step::End } else { Step::Stepped });
        }
        // Its own business: it gets the signal and goes on.
        self.signal = signal;
        self.let_go(self.request);
        None
    }

    fn let_go(&mut self, request: libc::c_uint) {
        if !self.running && !self.reaped {
            let signal = std::mem::take(&mut self.signal);
            ptrace(request, self.pid, 0, signal as usize).expect("a stopped child goes on");
            self.running = true;
            self.request = request;
            self.next.set(None);
        }
    }

    fn go(&mut self, request: libc::c_uint, limit: Duration) -> Step {
        self.let_go(request);
        self.wait(limit)
    }

    fn signal_code(&self) -> c_int {
        // SAFETY: plain data for which zero is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        ptrace(libc::PTRACE_GETSIGINFO, self.pid, 0, (&raw mut info).addr())
            .expect("the signal of a stopped child");
        info.si_code
    }

    /// Lets it run until it is about to make its next system call ([`Step::Syscall`]).
    pub fn to_syscall(&mut self) -> Step {
        match self.go(libc::PTRACE_SYSCALL, ASLEEP) {
            // The return from the one at whose entry it stood.
            Step::Stepped => self.go(libc::PTRACE_SYSCALL, ASLEEP),
            step => step,
        }
    }

    /// After [`Step::Syscall`]: lets the call happen, and stops right behind it ([`Step::Stepped`]).
    pub fn through_syscall(&mut self) -> Step {
        assert!(self.in_syscall || self.running, "it stands before no system call");
        self.go(libc::PTRACE_SYSCALL, ASLEEP)
    }

    /// After [`Step::Syscall`]: the call does not happen, and the victim is told this error. Stops right behind it.
    pub fn fail_syscall(&mut self, errno: i32) -> Step {
        assert!(self.in_syscall, "it stands before no system call");
        // No call has this number. The kernel says so, and the answer is overwritten.
        self.set_register(register!(orig_rax), u64::MAX);
        let step = self.go(libc::PTRACE_SYSCALL, ASLEEP);
        if step == Step::Stepped {
            self.set_register(register!(rax), i64::from(-errno) as u64);
        }
        step
    }

    /// True if its next instruction is a system call.
    #[must_use]
    pub fn at_syscall(&self) -> bool {
        !self.running && !self.reaped && self.next() == Code::Syscall
    }

    fn next(&self) -> Code {
        if let Some(code) = self.next.get() {
            return code;
        }
        let at = self.instruction();
        let code = CODE.with_borrow_mut(|codes| {
            *codes.entry(at).or_insert_with(|| match self.word(at) {
                Some(code) if code & 0xffff == 0x050f => Code::Syscall,
                Some(code) if code & 0xff == 0xcc => Code::Marker,
                _ => Code::Plain,
            })
        });
        self.next.set(Some(code));
        code
    }

    /// The number of the system call that it is about to make, or has just made.
    #[must_use]
    pub fn syscall_number(&self) -> i64 {
        let at = if self.in_syscall { register!(orig_rax) } else { register!(rax) };
        self.register(at) as i64
    }

    /// The address of its next instruction.
    #[must_use]
    pub fn instruction(&self) -> u64 {
        self.register(register!(rip))
    }

    fn register(&self, at: usize) -> u64 {
        self.peek(libc::PTRACE_PEEKUSER, at).expect("a register of a stopped child")
    }

    fn set_register(&self, at: usize, value: u64) {
        ptrace(libc::PTRACE_POKEUSER, self.pid, at, value as usize).expect("a register of a stopped child");
    }

    /// The word at `address` in its memory.
    #[must_use]
    pub fn word(&self, address: u64) -> Option<u64> {
        self.peek(libc::PTRACE_PEEKDATA, address as usize).ok()
    }

    fn peek(&self, request: libc::c_uint, address: usize) -> std::io::Result<u64> {
        // A word of -1 looks like an error, so libc sets errno to 0 before.
        match ptrace(request, self.pid, address, 0) {
            Ok(word) => Ok(word as u64),
            Err(error) if error.raw_os_error() == Some(0) => Ok(u64::MAX),
            Err(error) => Err(error),
        }
    }

    /// Kills it and reaps it.
    ///
    /// # Panics
    ///
    /// If it ended in another way before.
    pub fn kill(mut self) {
        assert!(!self.reaped, "it was dead already");
        self.reaped = true;
        let ending = kill_and_reap(self.pid);
        assert_eq!(ending, Ending::Signal(libc::SIGKILL), "victim {} was to be killed", self.pid);
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if !self.reaped {
            kill_and_reap(self.pid);
        }
    }
}

/// Waits until the child that was forked last says that it is ready.
fn await_ready(pid: Pid, what: &str) {
    let started = Instant::now();
    while PAGE.with(|page| page.ended.load(Ordering::Acquire)) != AT_POINT {
        let ended = await_change(pid, Duration::ZERO).and_then(ending);
        assert!(ended.is_none(), "{what} ended: {ended:?} {}", why());
        if started.elapsed() > Duration::from_secs(30) {
            kill_and_reap(pid);
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// A forked child that has done something, and now does nothing until it is killed. Dropping it kills it.
#[derive(Debug)]
pub struct Bystander {
    pid: Pid,
}

impl Bystander {
    /// Forks; the child runs `body` and stays. Returns when `body` has returned.
    ///
    /// # Panics
    ///
    /// If `body` does, or hangs.
    #[must_use]
    pub fn start(body: impl FnOnce()) -> Self {
        let pid = fork(|| {
            body();
            PAGE.with(|page| page.ended.store(AT_POINT, Ordering::Release));
            loop {
                // SAFETY: sleeps until a signal comes.
                unsafe { libc::pause() };
            }
        });
        await_ready(pid, "a bystander");
        Self { pid }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        kill_and_reap(self.pid);
    }
}

// ---- the kernel's part in a death

/// A word that the kernel will look at when the thread with this id dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Robust {
    /// The thread.
    pub tid: u32,
    /// Where the word is, for the victim.
    pub address: u64,
}

/// Where the kernel finds what a thread holds when it dies.
#[derive(Clone, Copy, Debug)]
pub struct RobustHead {
    tid: u32,
    address: u64,
}

/// Longer lists are not walked: nothing here has so many.
const ROBUST_MAX: usize = 4096;

impl Victim {
    /// The robust lists of all its threads.
    #[must_use]
    pub fn robust_heads(&self) -> Vec<RobustHead> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("threads of a child");
        let tids = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        tids.filter_map(|tid: u32| {
            let (mut address, mut size) = (0_u64, 0_usize);
            // SAFETY: the kernel stores address and size into the two locals.
            let failed =
                unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut address, &raw mut size) };
            (failed == 0 && address != 0).then_some(RobustHead { tid, address })
        })
        .collect()
    }

    /// What the kernel would look at, in its order, if the victim died now.
    #[must_use]
    pub fn robust_words(&self, heads: &[RobustHead]) -> Vec<Robust> {
        let mut words = Vec::new();
        let mut values = vec![[0_u64; 3]; heads.len()];
        if !self.read_heads(heads, &mut values) {
            return words;
        }
        for (head, &[first, offset, pending]) in heads.iter().zip(&values) {
            let mut add = |node: u64| {
                // The lowest bit says "priority inheritance".
                words.push(Robust { tid: head.tid, address: (node & !1).wrapping_add(offset) });
            };
            let mut node = first & !1;
            for _ in 0..ROBUST_MAX {
                if node == head.address {
                    break;
                }
                if node != pending & !1 {
                    add(node);
                }
                let Some(next) = self.word(node) else { break };
                node = next & !1;
            }
            if pending != 0 {
                add(pending);
            }
        }
        words
    }
}

impl Victim {
    /// Reads all heads at once: first node, offset, pending node.
    fn read_heads(&self, heads: &[RobustHead], values: &mut [[u64; 3]]) -> bool {
        let bytes = size_of::<[u64; 3]>();
        let own: Vec<libc::iovec> = values
            .iter_mut()
            .map(|value| libc::iovec { iov_base: value.as_mut_ptr().cast(), iov_len: bytes })
            .collect();
        let theirs: Vec<libc::iovec> = heads
            .iter()
            .map(|head| libc::iovec { iov_base: head.address as *mut c_void, iov_len: bytes })
            .collect();
        let count = heads.len() as libc::c_ulong;
        // SAFETY: the kernel writes into `values`, which is as long as `heads`, and nowhere else.
        let read =
            unsafe { libc::process_vm_readv(self.pid, own.as_ptr(), count, theirs.as_ptr(), count, 0) };
        usize::try_from(read) == Ok(bytes * heads.len())
    }
}

/// A range of this process's memory that it shares with victims, as plain bytes: to be looked at while they stand still.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    base: *mut u8,
    len: usize,
}

impl Memory {
    /// The memory of a segment.
    #[must_use]
    pub fn of(segment: &crossproc_segment::Segment) -> Self {
        let mapping = segment.mapping();
        Self { base: mapping.base(), len: mapping.len() }
    }

    /// Where a process has this memory mapped, from its beginning.
    fn places_in(&self, pid: Pid) -> Vec<u64> {
        let file_at = |base: u64, line: &str| {
            // address-range permissions offset device inode path
            let fields: Vec<&str> = line.split_whitespace().collect();
            let start = u64::from_str_radix(fields.first()?.split('-').next()?, 16).ok()?;
            (start == base).then(|| (fields[2].to_owned(), fields[3].to_owned(), fields[4].to_owned()))
        };
        let own = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let Some(file) = own.lines().find_map(|line| file_at(self.base.addr() as u64, line)) else {
            return vec![self.base.addr() as u64];
        };
        let theirs = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let start = |line: &str| {
            let start = u64::from_str_radix(line.split('-').next()?, 16).ok()?;
            (file_at(start, line)? == file).then_some(start)
        };
        theirs.lines().filter_map(start).collect()
    }

    /// A copy of all of it.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0_u8; self.len];
        // SAFETY: mapped for as long as its segment is, which callers keep; who shares it stands still.
        unsafe { std::ptr::copy_nonoverlapping(self.base, image.as_mut_ptr(), self.len) };
        image
    }

    /// Whether it is byte for byte like this.
    #[must_use]
    pub fn is(&self, image: &[u8]) -> bool {
        // SAFETY: as in `image`, and both are `len` bytes long.
        image.len() == self.len
            && unsafe { libc::memcmp(self.base.cast(), image.as_ptr().cast(), self.len) } == 0
    }

    /// Writes all of it.
    ///
    /// # Panics
    ///
    /// If `image` is not as long.
    pub fn restore(&self, image: &[u8]) {
        assert_eq!(image.len(), self.len, "an image of this memory");
        // SAFETY: as in `image`.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), self.base, self.len) };
    }

    /// Does to `image`, a copy of this memory, what the kernel does to the robust words of a victim's dead threads.
    pub fn bury(&self, image: &mut [u8], victim: &Victim, words: &[Robust]) {
        // A victim that has opened the segment for itself has it elsewhere.
        let places = self.places_in(victim.pid());
        let offset = |robust: &Robust| {
            let at = places.iter().map(|place| robust.address.wrapping_sub(*place) as usize);
            at.into_iter().find(|at| at.checked_add(4).is_some_and(|end| end <= self.len))
        };
        for robust in words {
            let Some(at) = offset(robust) else { continue };
            let Some(bytes) = image.get_mut(at..at + 4) else { continue };
            let word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if word & libc::FUTEX_TID_MASK == robust.tid {
                let dead = word & libc::FUTEX_WAITERS | libc::FUTEX_OWNER_DIED;
                bytes.copy_from_slice(&dead.to_ne_bytes());
            }
        }
    }
}

// ---- without ptrace

/// Where a victim that traps itself is to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// After this many instructions.
    Instruction(u64),
    /// Right before the system call of this number, counted from 0.
    Syscall(u64),
}

const TRAP_FLAG: i64 = 0x100;

static DIE_AT_STEP: AtomicU64 = AtomicU64::new(u64::MAX);
static DIE_AT_SYSCALL: AtomicU64 = AtomicU64::new(u64::MAX);
static IS_STEPPING: AtomicU64 = AtomicU64::new(0);

/// Forks; the child runs `body` up to its first marker, then instruction by instruction, and kills itself at `point`, or at the
/// second marker if that comes first. One that sleeps for `limit` is killed there.
///
/// Returns what the child came to ([`Step::Stepped`]: it died at the point) and how many instructions it had executed.
///
/// Threads that the operation starts would inherit the trap flag: such operations can not be run this way.
pub fn die_by_trap(body: impl FnOnce(), point: Point, limit: Duration) -> (Step, u64) {
    pin();
    let pid = fork(|| {
        let (step, syscall) = match point {
            Point::Instruction(k) => (k, u64::MAX),
            Point::Syscall(n) => (u64::MAX, n),
        };
        DIE_AT_STEP.store(step, Ordering::Relaxed);
        DIE_AT_SYSCALL.store(syscall, Ordering::Relaxed);
        // SAFETY: the handler touches atomics and its own context only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_trap;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGTRAP, &raw const action, null_mut());
        }
        PAGE.with(|_| ()); // made before the first trap
        body();
        0
    });
    let status = await_change(pid, limit);
    let ending = match status {
        Some(status) => ending(status).expect("nobody stops it"),
        None => kill_and_reap(pid),
    };
    let (ended, steps) =
        PAGE.with(|page| (page.ended.load(Ordering::Relaxed), page.steps.load(Ordering::Relaxed)));
    let step = match (status, ending, ended) {
        (None, ..) => Step::Blocked,
        (_, Ending::Signal(libc::SIGKILL), AT_END) => Step::End,
        (_, Ending::Signal(libc::SIGKILL), AT_POINT) => Step::Stepped,
        (_, ending, _) => Step::Exited(ending),
    };
    (step, steps)
}

const AT_POINT: u64 = 1;
const AT_END: u64 = 2;

unsafe extern "C" fn on_trap(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let page = PAGE.with(|page| *page);
    let die = |why| {
        page.ended.store(why, Ordering::Relaxed);
        // SAFETY: no instruction of ours is executed after this one.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    };
    // SAFETY: the kernel hands a handler with SA_SIGINFO the signal's facts and the context it interrupts.
    let (code, registers) =
        unsafe { ((*info).si_code, &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs) };
    if code == libc::SI_KERNEL {
        if IS_STEPPING.swap(1, Ordering::Relaxed) == 1 {
            die(AT_END);
        }
        registers[libc::REG_EFL as usize] |= TRAP_FLAG;
    } else {
        page.steps.fetch_add(1, Ordering::Relaxed);
    }
    let next = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the instruction that is executed next, byte by byte: it may be the last one of its page.
    let at_syscall = unsafe { next.read() == 0x0f && next.add(1).read() == 0x05 };
    let due = page.steps.load(Ordering::Relaxed) >= DIE_AT_STEP.load(Ordering::Relaxed)
        || at_syscall
            && page.syscalls.fetch_add(1, Ordering::Relaxed) == DIE_AT_SYSCALL.load(Ordering::Relaxed);
    if due {
        die(AT_POINT);
    }
}

// ---- for those who watch sleepers, and who may never end (arena.rs)

impl Victim {
    /// As [`step`](Self::step), but [`Step::Blocked`] after `limit`: for sleeps that end by themselves before [`ASLEEP`].
    pub fn step_within(&mut self, limit: Duration) -> Step {
        let plain = !self.running && !self.in_syscall && self.next() == Code::Plain;
        self.let_go(libc::PTRACE_SINGLESTEP);
        let step = if plain { self.wait_for_plain() } else { self.wait(limit) };
        if step == Step::Stepped {
            self.steps += 1;
        }
        step
    }

    /// As [`run_to_end`](Self::run_to_end), but [`Step::Blocked`] after `limit` also if it does not sleep.
    pub fn run_at_most(&mut self, limit: Duration) -> Step {
        self.let_go(libc::PTRACE_CONT);
        loop {
            if self.reaped {
                return Step::Exited(Ending::Signal(libc::SIGKILL));
            }
            let Some(status) = await_change(self.pid, limit) else { return Step::Blocked };
            if let Some(step) = self.changed(status) {
                return step;
            }
        }
    }
}
