//! Promises of `Process`, kept by real processes.

use std::fs::{self, File};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_process::{
    Builder, Error, ErrorKind, ExitStatus, ForkServer, Handed, JoinError, MAX_DEPTH, Process, StartMethod,
    Stdio, available_parallelism, current, parent, register,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Long enough that no test fails because the machine is busy.
const LONG: Duration = Duration::from_secs(60);

fn hang((): ()) {
    loop {
        thread::park();
    }
}

fn double(n: u64) -> u64 {
    2 * n
}

/// Past libtest, which would keep it to itself.
fn not_run(reason: &str) {
    std::io::stderr().write_all(format!("not run: {reason}\n").as_bytes()).unwrap();
}

/// For processes that are to panic: their message does not get between those of the tests.
fn quiet() -> Builder {
    Process::builder().stderr(Stdio::null())
}

/// A directory that is removed at the end of the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("crossproc-process-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A copy of the running test program. Made by another process: a file that is open for writing can not
    /// be executed, and any process that another test starts at this moment has a copy of our descriptors for
    /// an instant.
    fn copy_of_this_program(&self) -> PathBuf {
        let copy = self.0.join("program");
        let this = std::env::current_exe().unwrap();
        assert!(Command::new("cp").arg(this).arg(&copy).status().unwrap().success());
        copy
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn await_readable(fd: impl AsFd) {
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
}

// ---- Functions, arguments, results ----

#[test]
fn a_function_returns_its_result() {
    assert_eq!(Process::spawn(double, 21).unwrap().join().unwrap(), 42);
}

#[test]
fn closures_that_capture_nothing_are_functions_too() {
    let child = Process::spawn(|(a, b): (String, u32)| a.repeat(b as usize), ("ab".to_owned(), 3)).unwrap();
    assert_eq!(child.join().unwrap(), "ababab");
}

#[test]
fn functions_may_be_generic_and_chosen_at_run_time() {
    fn size<T>((): ()) -> usize {
        size_of::<T>()
    }
    for (function, expected) in [(size::<u16> as fn(()) -> usize, 2), (size::<u64>, 8)] {
        assert_eq!(Process::spawn(function, ()).unwrap().join().unwrap(), expected);
    }
}

#[test]
fn the_function_runs_in_another_process() {
    let child = Process::spawn(|()| std::process::id(), ()).unwrap();
    let pid = child.pid();
    assert_ne!(pid, std::process::id());
    assert_eq!(child.join().unwrap(), pid);
}

#[test]
fn large_arguments_and_results_arrive_whole() {
    let reverse = |mut bytes: Vec<u8>| {
        bytes.reverse();
        bytes
    };
    for length in [0, 65_530, 65_536, 65_540, 5 << 20] {
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let mut result = Process::spawn(reverse, bytes.clone()).unwrap().join().unwrap();
        result.reverse();
        assert!(result == bytes, "{length} bytes");
    }
}

#[test]
fn three_hundred_descriptors_go_there_and_back() {
    type Counters = Vec<Handed<OwnedFd>>;
    fn read(counter: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        rustix::io::read(counter, &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }
    fn add_one(counters: Counters) -> Counters {
        for counter in &counters {
            let sum = read(&counter.0) + 1;
            rustix::io::write(&counter.0, &sum.to_ne_bytes()).unwrap();
        }
        counters
    }
    let counters = (1..=300).map(|n| Handed(eventfd(n, EventfdFlags::CLOEXEC).unwrap())).collect();
    let counters = Process::spawn(add_one, counters).unwrap().join().unwrap();
    assert_eq!(counters.iter().map(|c| read(&c.0)).collect::<Vec<_>>(), (2..=301).collect::<Vec<_>>());
}

#[test]
fn a_descriptor_without_a_process_to_go_to_is_an_error() {
    let file = Handed(File::open("/dev/null").unwrap());
    assert!(postcard::to_stdvec(&file).is_err());
}

#[test]
fn processes_start_processes() {
    let child = Process::spawn(|n| Process::spawn(double, n + 1).unwrap().join().unwrap() + 1, 4).unwrap();
    assert_eq!(child.join().unwrap(), 11);
}

#[test]
fn many_threads_start_processes_at_once() {
    thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                for n in 0..5 {
                    let n = 100 * thread + n;
                    assert_eq!(Process::spawn(double, n).unwrap().join().unwrap(), 2 * n);
                }
            });
        }
    });
}

#[test]
fn a_process_is_send_and_sync_whatever_it_returns() {
    fn check<T: Send + Sync>() {}
    check::<Process<std::rc::Rc<std::cell::Cell<u8>>>>();
}

// ---- The end of a process ----

#[test]
fn a_panic_arrives_with_message_and_place() {
    let child: Process<()> = quiet().spawn(|n: u32| panic!("no {n}"), 7).unwrap();
    let pid = child.pid();
    let line = line!() - 2;
    match child.join() {
        Err(JoinError::Panicked { message, location: Some(location) }) => {
            assert_eq!(message, "no 7");
            assert!(location.contains(&format!("spawn.rs:{line}:")), "{location}");
        }
        other => panic!("{other:?}"),
    }
    assert!(is_gone(pid));
}

#[test]
fn a_panic_is_told_from_one_that_was_caught_before() {
    let child: Process<()> = quiet()
        .spawn(
            |()| {
                panic::catch_unwind(|| panic!("caught")).unwrap_err();
                panic::resume_unwind(Box::new("resumed"));
            },
            (),
        )
        .unwrap();
    let error = child.join().unwrap_err();
    assert!(
        matches!(&error, JoinError::Panicked { message, location: None } if message == "resumed"),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "the process panicked: resumed");
}

#[test]
fn a_long_panic_message_arrives() {
    let child: Process<()> = quiet().spawn(|()| panic!("{}", "x".repeat(200_000)), ()).unwrap();
    match child.join() {
        Err(JoinError::Panicked { message, .. }) => assert_eq!(message.len(), 200_000),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_exit_code_says_how_it_went() {
    let child = Process::spawn(double, 1).unwrap();
    assert_eq!(child.wait(), ExitStatus::Code(0));
    let child: Process<()> = quiet().spawn(|()| panic!(), ()).unwrap();
    assert_eq!(child.wait(), ExitStatus::Code(101));
    let child: Process<()> = Process::spawn(|()| std::process::exit(3), ()).unwrap();
    assert_eq!(child.wait(), ExitStatus::Code(3));
    assert_eq!(child.exit_status(), Some(ExitStatus::Code(3)));
    let error = child.join().unwrap_err();
    assert!(matches!(error, JoinError::Exited(ExitStatus::Code(3))), "{error:?}");
    assert_eq!(error.to_string(), "the process ended with exit code 3 before its function returned");
}

#[test]
fn a_signal_has_its_name_in_the_error() {
    let mut child = Process::spawn(hang, ()).unwrap();
    assert!(child.is_alive());
    assert!(child.try_join().unwrap().is_none());
    assert!(child.join_timeout(Duration::from_millis(1)).unwrap().is_none());
    assert!(child.join_deadline(Instant::now()).unwrap().is_none());
    assert_eq!(child.exit_status(), None);
    child.kill().unwrap();
    let error = child.join().unwrap_err();
    assert!(matches!(error, JoinError::Exited(ExitStatus::Signal(9))), "{error:?}");
    assert_eq!(error.to_string(), "the process was ended by SIGKILL (signal 9) before its function returned");
}

#[test]
fn signals_reach_the_process_and_nobody_after_its_end() {
    let child = Process::spawn(hang, ()).unwrap();
    child.terminate().unwrap();
    assert_eq!(child.wait(), ExitStatus::Signal(15));
    assert!(!child.is_alive());
    child.kill().unwrap();
    child.terminate().unwrap();

    let child = Process::spawn(hang, ()).unwrap();
    assert_eq!(child.signal(1000).unwrap_err().kind(), ErrorKind::System);
    let real_time = 40;
    child.signal(real_time).unwrap();
    assert_eq!(child.wait(), ExitStatus::Signal(real_time));
}

#[test]
fn a_result_is_given_out_once() {
    let mut child = Process::spawn(double, 4).unwrap();
    assert_eq!(child.join_timeout(LONG).unwrap(), Some(8));
    assert!(matches!(child.try_join(), Err(JoinError::Taken)));
    assert!(matches!(child.join(), Err(JoinError::Taken)));
}

#[test]
fn any_number_of_threads_may_wait() {
    let child = Process::spawn(hang, ()).unwrap();
    thread::scope(|scope| {
        let forever: Vec<_> = (0..4).map(|_| scope.spawn(|| child.wait())).collect();
        let limited: Vec<_> = (0..4).map(|_| scope.spawn(|| child.wait_timeout(LONG).unwrap())).collect();
        child.kill().unwrap();
        for waiter in forever.into_iter().chain(limited) {
            assert_eq!(waiter.join().unwrap(), ExitStatus::Signal(9));
        }
    });
}

#[test]
fn a_status_that_somebody_else_collected_is_unknown_and_not_a_hang() {
    fn steal((): ()) -> (bool, bool) {
        let child = Process::spawn(double, 1).unwrap();
        while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
        let unknown = child.wait() == ExitStatus::Unknown;
        (unknown, child.join().unwrap() == 2)
    }
    assert_eq!(Process::spawn(steal, ()).unwrap().join().unwrap(), (true, true));
}

#[test]
fn dropping_detaches_and_leaves_no_zombie() {
    let child = Process::spawn(hang, ()).unwrap();
    let (pid, pidfd) = (child.pid(), child.as_fd().try_clone_to_owned().unwrap());
    child.detach();
    assert!(!is_gone(pid), "it goes on");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    await_readable(&pidfd);
    drop(Process::spawn(double, 1).unwrap());
    assert!(is_gone(pid), "a zombie would be there");
}

#[test]
fn kill_on_drop_kills_and_reaps() {
    let child = Process::builder().kill_on_drop(true).spawn(hang, ()).unwrap();
    let pid = child.pid();
    drop(child);
    assert!(is_gone(pid));

    let child = Process::builder().kill_on_drop(true).spawn(hang, ()).unwrap();
    let pidfd = child.as_fd().try_clone_to_owned().unwrap();
    child.detach();
    assert!(
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&rustix::event::Timespec::default())) == Ok(0)
    );
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_pidfd_is_readable_at_the_end() {
    let child = Process::spawn(double, 1).unwrap();
    await_readable(&child);
    assert!(!child.is_alive());
    assert_eq!(child.exit_status(), Some(ExitStatus::Code(0)));
}

// ---- Starts that fail ----

fn start_error(result: Result<Process<u64>, Error>) -> Error {
    let error = result.unwrap_err();
    assert!(error.to_string().contains("was not started"), "{error}");
    error
}

#[test]
fn another_program_is_an_error() {
    for (path, code) in [("/bin/true", 0), ("/bin/sleep", 1)] {
        let builder = Process::builder().executable(path).stderr(Stdio::null());
        let error = start_error(builder.spawn_named("double", 1u64));
        assert_eq!(error.kind(), ErrorKind::EndedEarly);
        assert!(error.to_string().contains(&format!("`{path}` ended with exit code {code}")), "{error}");
    }
}

#[test]
fn a_program_that_never_comes_to_us_is_killed() {
    // It reads the request from its standard input and waits for more.
    let builder = Process::builder().executable("/bin/cat").stdout(Stdio::null());
    let error = start_error(builder.start_timeout(Duration::from_millis(200)).spawn_named("double", 1u64));
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("is it a program that is linked with crossproc?"), "{error}");
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = start_error(Process::builder().executable("/no/such/program").spawn(double, 1));
    assert_eq!(error.kind(), ErrorKind::CannotStart);
    assert!(error.to_string().contains("`/no/such/program` can not be executed: No such file"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_name_or_directory_that_can_not_be_is_an_error() {
    for name in ["x".repeat(256), "a\0b".to_owned()] {
        let error = Process::builder().name(name).spawn(double, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName);
    }
    assert_eq!(Process::builder().name("x".repeat(255)).spawn(double, 1).unwrap().join().unwrap(), 2);
    let error = start_error(Process::builder().current_dir("/no/such/directory").spawn(double, 1));
    assert_eq!(error.kind(), ErrorKind::CannotStart);
    assert!(error.to_string().contains("in the directory `/no/such/directory`"), "{error}");
}

#[test]
fn a_copy_of_this_build_is_as_good_as_this_program() {
    let directory = Directory::new();
    let copy = directory.copy_of_this_program();
    let child = Process::builder().executable(&copy).spawn(double, 4).unwrap();
    assert_eq!(child.join().unwrap(), 8);
}

#[test]
fn a_function_is_never_called_in_another_build() {
    fn write_file((path, bytes): (PathBuf, Vec<u8>)) {
        fs::write(path, bytes).unwrap();
    }
    let directory = Directory::new();
    let other = directory.copy_of_this_program();
    let mut bytes = fs::read(&other).unwrap();
    let note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    let at = bytes
        .windows(note.len())
        .position(|bytes| bytes == note)
        .expect("the linker writes build ids of 20 bytes");
    bytes[at + note.len()] ^= 1;
    // In another process, for the reason given at `copy_of_this_program`.
    Process::spawn(write_file, (other.clone(), bytes)).unwrap().join().unwrap();

    let error = start_error(Process::builder().executable(&other).spawn(double, 4));
    assert_eq!(error.kind(), ErrorKind::WrongBuild);
    assert!(error.to_string().contains("by name only"), "{error}");
    let child = Process::builder().executable(&other).spawn_named("double", 4u64).unwrap();
    let result: Result<u64, _> = child.join();
    assert_eq!(result.unwrap(), 8);

    let server = || ForkServer::new().executable(&other);
    let method = StartMethod::from(server());
    let error = start_error(method.spawn(double, 4));
    assert_eq!(error.kind(), ErrorKind::WrongBuild);
    assert!(error.to_string().contains("by name only"), "{error}");
    let child = method.builder().spawn_named::<u64, u64>("double", 4).unwrap();
    assert_eq!(child.join().unwrap(), 8);
    let preloading = StartMethod::from(server().preload(|()| (), ()).unwrap());
    let error = preloading.builder().spawn_named::<u64, u64>("double", 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongBuild);
}

#[test]
fn the_running_program_is_started_though_its_file_was_replaced() {
    fn replace_own_file(path: PathBuf) -> (u64, u64) {
        let old = fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(old, path);
        fs::remove_file(&path).unwrap();
        let deleted = Process::spawn(double, 1).unwrap().join().unwrap();
        fs::write(&path, "#!/bin/false\n").unwrap();
        let replaced = Process::spawn(double, 2).unwrap().join().unwrap();
        (deleted, replaced)
    }
    let directory = Directory::new();
    let copy = fs::canonicalize(directory.copy_of_this_program()).unwrap();
    let child = Process::builder().executable(&copy).spawn(replace_own_file, copy).unwrap();
    assert_eq!(child.join().unwrap(), (2, 4));
}

#[test]
fn a_chain_of_processes_ends_with_an_error() {
    fn chain(link: u32) -> (u32, String) {
        match Process::spawn(chain, link + 1) {
            Ok(next) => next.join().unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::TooDeep);
                (link, error.to_string())
            }
        }
    }
    let (links, error) = chain(0);
    assert_eq!(links, MAX_DEPTH - 1);
    assert!(error.contains(&format!("depth {MAX_DEPTH}")), "{error}");
}

#[test]
fn programs_in_between_do_not_reset_the_depth() {
    fn depth_through_a_shell((): ()) -> String {
        let output =
            Command::new("/bin/sh").args(["-c", "echo $CROSSPROC_CHILD/$CROSSPROC_DEPTH"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
    let expected = format!("/{}\n", current().depth() + 1);
    assert_eq!(Process::spawn(depth_through_a_shell, ()).unwrap().join().unwrap(), expected);
}

/// Can be written down, and not read.
struct Unreadable {
    panics: bool,
}

impl Serialize for Unreadable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.panics.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            panic!("in deserialize");
        }
        Err(serde::de::Error::custom("never"))
    }
}

#[test]
fn arguments_that_do_not_arrive_are_an_error_of_the_start() {
    for (panics, reason) in [(true, "panic: in deserialize"), (false, "can not be deserialised")] {
        let result = quiet().spawn(|_: Unreadable| 0u64, Unreadable { panics });
        let error = start_error(result);
        assert_eq!(error.kind(), ErrorKind::Arguments);
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.to_string().contains("Unreadable"), "{error}");
    }
}

#[test]
fn a_result_that_does_not_arrive_is_an_error_of_join() {
    let child = Process::spawn(|()| Unreadable { panics: false }, ()).unwrap();
    match child.join() {
        Err(JoinError::Decode(error)) => assert_eq!(error.kind(), ErrorKind::Result),
        other => panic!("{:?}", other.err()),
    }
    let child = Process::spawn(|()| Unwritable, ()).unwrap();
    match child.join() {
        Err(JoinError::Decode(error)) => {
            assert!(error.to_string().contains("can not be serialised"), "{error}")
        }
        other => panic!("{:?}", other.err()),
    }
    let error = start_error(Process::spawn(|_: Unwritable| 0u64, Unwritable));
    assert_eq!(error.kind(), ErrorKind::Arguments);
}

struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

impl<'de> Deserialize<'de> for Unwritable {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Ok(Self)
    }
}

// ---- Names ----

register!(double);
register!("number of bytes", |text: String| text.len());
register!("twice", double);
register!("twice", double);

#[test]
fn registered_functions_are_called_by_name() {
    assert_eq!(Process::named::<u64, u64>("double", 5).unwrap().join().unwrap(), 10);
    let child = Process::named::<String, usize>("number of bytes", "four".into()).unwrap();
    assert_eq!(child.join().unwrap(), 4);
}

#[test]
fn a_name_is_checked_in_the_child() {
    let error = start_error(Process::named("triple", 5u64));
    assert_eq!(error.kind(), ErrorKind::NoSuchFunction);
    assert!(error.to_string().contains("registered: double, number of bytes"), "{error}");

    let error = start_error(Process::named("twice", 5u64));
    assert_eq!(error.kind(), ErrorKind::NoSuchFunction);
    assert!(error.to_string().contains("more than one"), "{error}");

    let error = start_error(Process::named("double", 5u32));
    assert_eq!(error.kind(), ErrorKind::WrongTypes);
    assert!(
        error.to_string().contains("is a `fn(u64) -> u64` there, and was called as a `fn(u32) -> u64`"),
        "{error}"
    );
}

// ---- What a child is ----

#[test]
fn a_child_knows_who_it_is() {
    fn who((): ()) -> (String, u32, Option<u32>, String, String) {
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        let command_line = fs::read_to_string("/proc/self/cmdline").unwrap();
        (current().name().to_owned(), current().depth(), current().parent_pid(), comm, command_line)
    }
    let child = Process::builder().name("a worker with a long name").spawn(who, ()).unwrap();
    assert_eq!(child.name(), "a worker with a long name");
    let (name, depth, parent_pid, comm, command_line) = child.join().unwrap();
    assert_eq!(name, "a worker with a long name");
    assert_eq!(depth, current().depth() + 1);
    assert_eq!(parent_pid, Some(std::process::id()));
    assert_eq!(comm, "a worker with a\n");
    assert_eq!(command_line, "a worker with a long name\0");

    let child = Process::spawn(who, ()).unwrap();
    assert!(child.name().starts_with("process-"));
    let argv0 = std::env::args().next().unwrap();
    assert_eq!(child.join().unwrap().4, format!("{argv0}\0"));
    assert_eq!(current().name(), "main");
    assert!(parent().is_none());
}

#[test]
fn a_child_sees_the_end_of_its_parent() {
    fn orphan(mut report: Handed<std::fs::File>) {
        let parent = parent().unwrap();
        let before = parent.is_alive();
        await_readable(parent);
        write!(report.0, "{before} {}", parent.is_alive()).unwrap();
    }
    fn start_and_end(report: Handed<std::fs::File>) {
        Process::spawn(orphan, report).unwrap().detach();
    }
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    Process::spawn(start_and_end, Handed(File::from(write))).unwrap().join().unwrap();
    let mut report = String::new();
    File::from(read).read_to_string(&mut report).unwrap();
    // Whether the parent had ended before the child asked for the first time is luck.
    assert!(report == "true false" || report == "false false", "{report}");
}

#[test]
fn environment_and_directory_are_as_asked_for() {
    fn look((): ()) -> (Option<String>, Option<String>, Option<String>, PathBuf) {
        let variable = |name| std::env::var(name).ok();
        (
            variable("CROSSPROC_TEST"),
            variable("PATH"),
            variable("CROSSPROC_CHILD"),
            std::env::current_dir().unwrap(),
        )
    }
    let builder = Process::builder().env("CROSSPROC_TEST", "1").env_remove("PATH").current_dir("/");
    let seen = builder.spawn(look, ()).unwrap().join().unwrap();
    assert_eq!(seen, (Some("1".to_owned()), None, None, PathBuf::from("/")));
}

#[test]
fn standard_streams_are_as_asked_for() {
    fn shout((): ()) -> usize {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        print!("{}", text.to_uppercase());
        eprint!("{}!", text.len());
        text.len()
    }
    let piped = || Process::builder().stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped().stdin(Stdio::piped()).spawn(shout, ()).unwrap();
    child.take_stdin().unwrap().write_all(b"text").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.take_stdout().unwrap().read_to_string(&mut out).unwrap();
    child.take_stderr().unwrap().read_to_string(&mut err).unwrap();
    assert!(child.take_stdin().is_none() && child.take_stdout().is_none() && child.take_stderr().is_none());
    assert_eq!((child.join().unwrap(), out.as_str(), err.as_str()), (4, "TEXT", "4!"));

    let directory = Directory::new();
    fs::write(directory.0.join("in"), "file").unwrap();
    let output = File::create(directory.0.join("out")).unwrap();
    let input = File::open(directory.0.join("in")).unwrap();
    let builder = Process::builder().stdin(input).stdout(output).stderr(Stdio::null());
    assert_eq!(builder.spawn(shout, ()).unwrap().join().unwrap(), 4);
    assert_eq!(fs::read_to_string(directory.0.join("out")).unwrap(), "FILE");

    assert_eq!(piped().stdin(Stdio::null()).spawn(shout, ()).unwrap().join().unwrap(), 0);
}

#[test]
fn standard_input_is_inherited_though_the_socket_came_that_way() {
    fn inode((): ()) -> u64 {
        rustix::fs::fstat(rustix::stdio::stdin()).unwrap().st_ino
    }
    assert_eq!(Process::spawn(inode, ()).unwrap().join().unwrap(), inode(()));
}

#[test]
fn a_broken_pipe_is_an_error_and_not_a_signal() {
    let write = |pipe: Handed<File>| (&pipe.0).write_all(b"x").unwrap_err().kind() == IoErrorKind::BrokenPipe;
    let (read, write_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    drop(read);
    assert!(Process::spawn(write, Handed(File::from(write_end))).unwrap().join().unwrap());
}

// ---- Strangers ----

#[test]
fn the_marker_alone_makes_no_child_and_runs_no_main() {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .env("CROSSPROC_CHILD", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(70));
    assert!(output.stdout.is_empty(), "libtest would have written something");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("remove it from the environment"), "{error}");
}

#[test]
fn a_program_with_privileges_takes_no_orders_from_its_environment() {
    if !rustix::process::getuid().is_root() {
        return not_run("only root can make a set-user-id program for another user");
    }
    let directory = Directory::new();
    let program = directory.copy_of_this_program();
    fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let nobody = 65534;
    let output = Command::new(&program)
        .uid(nobody)
        .arg("--list")
        .env("CROSSPROC_CHILD", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    if error.contains("remove it from the environment") {
        return not_run("programs in the directory for temporary files can not be set-user-id (nosuid)");
    }
    assert!(output.status.success(), "{error}");
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(list.contains("a_program_with_privileges_takes_no_orders"), "main has run: {list}");
}

#[test]
fn foreign_bytes_are_not_a_request() {
    let garbage: [&[u8]; 4] = [b"x", b"xproc\0\x01\x02", b"xproc\0\xff\x02", &[0xff; 3000]];
    for bytes in garbage {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        send(&ours, bytes, SendFlags::empty()).unwrap();
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program).env("CROSSPROC_CHILD", "1").stdin(theirs).spawn().unwrap();
        let mut hello = [0; 100];
        let (_, length) = recv(&ours, &mut hello[..], RecvFlags::empty()).unwrap();
        assert_eq!(&hello[..6], b"xproc\0", "{length}");
        assert_eq!(child.wait().unwrap().code(), Some(70), "{bytes:?}");
    }
}

// ---- Processors ----

#[test]
fn available_parallelism_respects_the_affinity_mask() {
    fn on_one_processor((): ()) -> (usize, usize) {
        let before = available_parallelism().get();
        let mask = rustix::thread::sched_getaffinity(None).unwrap();
        let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|&cpu| mask.is_set(cpu)).unwrap();
        let mut one = rustix::thread::CpuSet::new();
        one.set(first);
        rustix::thread::sched_setaffinity(None, &one).unwrap();
        (before, available_parallelism().get())
    }
    let (before, after) = Process::spawn(on_one_processor, ()).unwrap().join().unwrap();
    assert_eq!((before, after), (available_parallelism().get(), 1));
}

/// Removes the group at the end; it has to be empty by then.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn available_parallelism_respects_a_cgroup_quota() {
    fn in_group(tasks: PathBuf) -> usize {
        fs::write(tasks, std::process::id().to_string()).unwrap();
        available_parallelism().get()
    }
    if available_parallelism().get() < 2 {
        not_run("one processor is available, so that a quota of one would change nothing");
        return;
    }
    let name = format!("crossproc-test-{}", std::process::id());
    // cgroup v2, and v1 where it is mounted in the usual way.
    let settings: [(&str, &[(&str, &str)]); 2] = [
        ("/sys/fs/cgroup", &[("cpu.max", "100000 100000")]),
        ("/sys/fs/cgroup/cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]),
    ];
    for (root, values) in settings {
        // Not a group if the directory is a plain one.
        let is_group = Path::new(root).join("cgroup.procs").exists();
        let group = Group(Path::new(root).join(&name));
        let set = |(file, value): &(&str, &str)| fs::write(group.0.join(file), value);
        if is_group && fs::create_dir(&group.0).and_then(|()| values.iter().try_for_each(set)).is_ok() {
            let child = Process::spawn(in_group, group.0.join("cgroup.procs")).unwrap();
            assert_eq!(child.join().unwrap(), 1);
            return;
        }
    }
    not_run("no cgroup with a CPU quota can be made here");
}
