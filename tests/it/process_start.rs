//! The three start methods: what a process is and has, whichever way it was made; and starts that fail.
//!
//! Each test runs in a process of its own with one thread, because it forks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crossproc_primitives::{Lock, Value};
use crossproc_process::{
    ErrorKind, ExitStatus, ForkServer, JoinError, Process, StartMethod, Stdio, active_children, current,
    parent,
};
use crossproc_tests::{HANG, isolated, join, kill_and_reap};
use serde::{Deserialize, Deserializer, Serialize};

use crate::kernel;
use crate::lock::said;

pub(crate) fn methods() -> [StartMethod; 3] {
    [StartMethod::Spawn, ForkServer::new().into(), kernel::forking().into()]
}

pub(crate) fn is_fork(method: &StartMethod) -> bool {
    matches!(method, StartMethod::Fork(_))
}

pub(crate) fn hang((): ()) {
    loop {
        std::thread::park();
    }
}

pub(crate) fn double(n: u64) -> u64 {
    2 * n
}

// ---- What comes back ----

#[test]
fn results_panics_and_ends_are_the_same_with_every_method() {
    isolated(|()| {
        for method in methods() {
            let quiet = || method.builder().stderr(Stdio::null()).kill_on_drop(true);
            assert_eq!(join(method.spawn(double, 21).unwrap()), 42, "{method:?}");
            let large: Vec<u8> = (0..3_000_000).map(|i| i as u8).collect();
            assert!(join(method.spawn(|bytes: Vec<u8>| bytes, large.clone()).unwrap()) == large);

            let panicking: Process<()> = quiet().spawn(|n: u32| panic!("no {n}"), 7).unwrap();
            match panicking.join() {
                Err(JoinError::Panicked { message, location: Some(location) }) => {
                    assert_eq!(message, "no 7");
                    assert!(location.contains("process_start.rs:"), "{location}");
                }
                other => panic!("{method:?}: {other:?}"),
            }
            let exiting: Process<()> = method.spawn(|()| std::process::exit(3), ()).unwrap();
            assert_eq!(exiting.wait(), ExitStatus::Code(3));
            assert_eq!(method.spawn(double, 1).unwrap().wait(), ExitStatus::Code(0));
            let aborting: Process<()> = quiet().spawn(|()| std::process::abort(), ()).unwrap();
            assert_eq!(aborting.wait(), ExitStatus::Signal(6));
            let mut hanging = quiet().spawn(hang, ()).unwrap();
            assert!(hanging.is_alive() && hanging.try_join().unwrap().is_none());
            assert!(hanging.join_timeout(Duration::from_millis(1)).unwrap().is_none());
            hanging.terminate().unwrap();
            assert_eq!(hanging.wait(), ExitStatus::Signal(15), "{method:?}");
            let error = hanging.join().unwrap_err();
            assert!(matches!(error, JoinError::Exited(ExitStatus::Signal(15))), "{error}");
        }
    });
}

#[test]
fn any_number_of_threads_wait_for_a_process_of_any_method() {
    isolated(|()| {
        for method in methods() {
            let child = method.builder().kill_on_drop(true).spawn(hang, ()).unwrap();
            std::thread::scope(|scope| {
                let waiters = [(); 6]
                    .map(|()| scope.spawn(|| (child.wait_timeout(HANG), child.wait(), child.exit_status())));
                child.kill().unwrap();
                let killed = ExitStatus::Signal(9);
                for waiter in waiters {
                    assert_eq!(waiter.join().unwrap(), (Some(killed), killed, Some(killed)));
                }
            });
        }
    });
}

// ---- What a process is ----

#[test]
fn a_process_is_a_child_of_who_started_it_and_knows_it() {
    type Seen = (u32, Option<u32>, u32, String, u32, bool, String, String);
    fn look((): ()) -> Seen {
        let me = current();
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        let depth = std::env::var("CROSSPROC_DEPTH").unwrap();
        let up = rustix::process::getppid().unwrap().as_raw_pid().unsigned_abs();
        (up, me.parent_pid(), me.pid(), me.name().to_owned(), me.depth(), me.is_daemon(), comm, depth)
    }
    isolated(|()| {
        let own = std::process::id();
        for method in methods() {
            let child = method.builder().name("a long name it has").spawn(look, ()).unwrap();
            let pid = child.pid();
            let depth = current().depth() + 1;
            let expected: Seen = (
                own,
                Some(own),
                pid,
                "a long name it has".into(),
                depth,
                false,
                "a long name it \n".into(),
                depth.to_string(),
            );
            assert_eq!(join(child), expected, "{method:?}");
        }
        // And so their children.
        for method in methods().into_iter().filter(|method| !matches!(method, StartMethod::ForkServer(_))) {
            let nested = method.spawn(
                |fork: bool| {
                    let method = if fork { kernel::forking().into() } else { StartMethod::Spawn };
                    let server = StartMethod::from(ForkServer::new());
                    [method, server].map(|method| {
                        let child =
                            method.spawn(|()| (current().depth(), parent().unwrap().pid()), ()).unwrap();
                        join(child) == (current().depth() + 1, std::process::id())
                    })
                },
                is_fork(&method),
            );
            assert_eq!(join(nested.unwrap()), [true, true]);
        }
    });
}

#[test]
fn libc_and_the_kernel_know_the_thread_of_a_copy() {
    fn look((): ()) -> (bool, bool, i32) {
        let right = kernel::thread_as_libc_sees_it() == rustix::thread::gettid().as_raw_pid();
        // A thread of its own starts, works and can be joined.
        let sum = std::thread::spawn(|| (1..=4).sum()).join().unwrap();
        (right, kernel::has_robust_list(), sum)
    }
    isolated(|()| {
        for method in methods() {
            assert_eq!(join(method.spawn(look, ()).unwrap()), (true, true, 10), "{method:?}");
        }
    });
}

#[test]
fn handles_in_the_arguments_work_with_every_method_and_a_killed_holder_is_noticed() {
    fn take_and_hang((lock, value): (Lock, Value<u64>)) {
        std::mem::forget(lock.lock().unwrap());
        value.fetch_add(1);
        hang(());
    }
    isolated(|()| {
        for method in methods() {
            let (lock, value) = (Lock::new().unwrap(), Value::new(0_u64).unwrap());
            let builder = method.builder().kill_on_drop(true);
            let holder = builder.spawn(take_and_hang, (lock.clone(), value.clone())).unwrap();
            assert_eq!(value.wait_while_timeout(HANG, |&n| n == 0), Ok(Some(1)));
            assert_eq!(said(&lock.try_lock()), "WouldBlock");
            kill_and_reap(&holder);
            assert_eq!(said(&lock.lock_timeout(HANG)), "OwnerDied", "{method:?}");
        }
    });
}

#[test]
fn environment_directory_and_streams_are_those_of_who_asks_or_as_asked_for() {
    fn look((): ()) -> (BTreeMap<String, String>, PathBuf) {
        (std::env::vars().collect(), std::env::current_dir().unwrap())
    }
    fn shout((): ()) -> usize {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).unwrap();
        print!("{}", text.to_uppercase());
        eprint!("{}!", text.len());
        text.len()
    }
    isolated(|()| {
        let methods = methods();
        for (round, method) in methods.iter().chain(&methods).enumerate() {
            // Changed since the fork server was started.
            kernel::set_variable("CROSSPROC_ROUND", &round.to_string());
            let directory = ["/", "/proc"][round / 3];
            std::env::set_current_dir(directory).unwrap();
            let (mut expected, _) = look(());
            expected.insert("CROSSPROC_DEPTH".into(), (current().depth() + 1).to_string());
            assert_eq!(
                join(method.spawn(look, ()).unwrap()),
                (expected.clone(), directory.into()),
                "{method:?}"
            );

            let builder = method.builder().env("CROSSPROC_ROUND", "a=b").env("X", "").env_remove("PATH");
            expected.insert("CROSSPROC_ROUND".into(), "a=b".into());
            expected.insert("X".into(), String::new());
            expected.remove("PATH");
            let seen = join(builder.current_dir("../dev").spawn(look, ()).unwrap());
            assert_eq!(seen.0, expected);
            assert_eq!(seen.1, PathBuf::from("/dev"), "{method:?}: relative to the directory of who asks");

            let piped = || method.builder().stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = piped().stdin(Stdio::piped()).spawn(shout, ()).unwrap();
            child.take_stdin().unwrap().write_all(b"text").unwrap();
            let (mut out, mut err) = (String::new(), String::new());
            child.take_stdout().unwrap().read_to_string(&mut out).unwrap();
            child.take_stderr().unwrap().read_to_string(&mut err).unwrap();
            assert_eq!((join(child), out.as_str(), err.as_str()), (4, "TEXT", "4!"), "{method:?}");

            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let child = method.builder().stdin(Stdio::null()).stdout(write).stderr(Stdio::null());
            assert_eq!(join(child.spawn(|n: u64| print!("{n}"), 5).unwrap()), ());
            let mut text = String::new();
            File::from(read).read_to_string(&mut text).unwrap();
            assert_eq!(text, "5", "{method:?}: and nobody has the other end any more");

            let nothing = method.builder().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            assert_eq!(join(nothing.spawn(shout, ()).unwrap()), 0);
            let inode = |()| rustix::fs::fstat(rustix::stdio::stdin()).unwrap().st_ino;
            assert_eq!(join(method.spawn(inode, ()).unwrap()), inode(()), "{method:?}: inherited");
        }
    });
}

/// What the open descriptors of this process are, by number.
fn open_descriptors((): ()) -> BTreeMap<i32, String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let mut list = BTreeMap::new();
    for path in entries {
        // The descriptor of the directory itself is gone, or ends with fd.
        if let Ok(target) = fs::read_link(&path).map(|target| target.display().to_string())
            && !target.ends_with("fd")
        {
            let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            list.insert(number, target.split(':').next().unwrap().to_owned());
        }
    }
    list
}

fn is_inheritable(number: &i32) -> bool {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default().trim();
    i32::from_str_radix(flags, 8).is_ok_and(|flags| flags & libc::O_CLOEXEC == 0)
}

#[test]
fn no_descriptor_of_the_parent_gets_into_a_child() {
    isolated(|()| {
        let methods = methods();
        // Not in the first process that the server makes only.
        let _: Vec<_> = methods.iter().map(|method| join(method.spawn(double, 1).unwrap())).collect();
        let _files: Vec<File> = (0..20).map(|_| File::open("/proc/self/exe").unwrap()).collect();
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let _value = Value::new(1_u64).unwrap();
        let others = [&methods, &methods].map(|methods| {
            let start = |method: &StartMethod| {
                method.builder().stdin(Stdio::piped()).kill_on_drop(true).spawn(hang, ())
            };
            methods.each_ref().map(|method| start(method).unwrap())
        });
        for method in &methods {
            let own = open_descriptors(());
            let inheritable: Vec<_> = own.keys().filter(|number| is_inheritable(number)).collect();
            let seen = join(method.builder().stdin(Stdio::null()).spawn(open_descriptors, ()).unwrap());
            let beyond: Vec<_> = seen.iter().filter(|(number, _)| **number > 2).collect();
            if is_fork(method) {
                // A copy has them all, and its own socket and pidfd beside. Nothing else of what the start has opened.
                assert_eq!(
                    beyond.len(),
                    own.keys().filter(|number| **number > 2).count() + 2,
                    "{seen:?}\n{own:?}"
                );
            } else {
                // What this process was given as inheritable by whoever runs the tests goes on to its children.
                let ours = beyond.iter().filter(|(number, _)| !inheritable.contains(number));
                let mut kinds: Vec<_> = ours.map(|(_, target)| target.as_str()).collect();
                kinds.sort_unstable();
                assert_eq!(
                    kinds,
                    ["anon_inode", "socket"],
                    "{method:?}: the pidfd of its parent and the socket: {seen:?}"
                );
            }
            assert_eq!(own, open_descriptors(()), "{method:?}: none is left here");
        }
        drop(others);
    });
}

#[test]
fn processors_and_niceness_are_as_asked_for() {
    fn look((): ()) -> (Vec<usize>, i32, usize) {
        let mask = rustix::thread::sched_getaffinity(None).unwrap();
        let niceness = rustix::process::getpriority_process(None).unwrap();
        let cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect();
        (cpus, niceness, crossproc_process::available_parallelism().get())
    }
    isolated(|()| {
        let (all, niceness, _) = look(());
        for method in methods() {
            let builder = method.builder().cpu_affinity([all[0]]).niceness(niceness + 3);
            assert_eq!(join(builder.spawn(look, ()).unwrap()), (vec![all[0]], niceness + 3, 1), "{method:?}");
            assert_eq!(join(method.spawn(look, ()).unwrap()).0, all);
            for processor in [1023, 5000, usize::MAX] {
                let error = method.builder().cpu_affinity([processor]).spawn(double, 1).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::System);
                assert!(error.to_string().contains("can not run on"), "{error}");
            }
            assert!(method.builder().cpu_affinity([]).spawn(double, 1).is_err());
        }
        assert_eq!(niceness, look(()).1);
    });
}

#[test]
fn a_command_line_is_for_executed_programs() {
    isolated(|()| {
        let arguments = |()| std::env::args().skip(1).collect::<Vec<_>>();
        for method in methods() {
            let child = method.builder().args(["one", "two three"]).args(["4"]).spawn(arguments, ());
            if matches!(method, StartMethod::Spawn) {
                assert_eq!(join(child.unwrap()), ["one", "two three", "4"]);
                continue;
            }
            for error in [
                child.unwrap_err(),
                method.builder().executable("/bin/true").spawn(arguments, ()).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(error.to_string().contains("was not started"), "{error}");
            }
        }
    });
}

/// The masks of signals of this process: blocked, ignored, caught.
fn signals((): ()) -> Vec<String> {
    masks(&fs::read_to_string("/proc/self/status").unwrap())
}

fn masks(status: &str) -> Vec<String> {
    let lines = status.lines().filter(|line| ["SigBlk", "SigIgn"].contains(&&line[..6.min(line.len())]));
    lines.map(str::to_owned).collect()
}

#[test]
fn signals_are_as_in_a_child_of_std() {
    isolated(|()| {
        let methods = methods();
        join(methods[1].spawn(double, 1).unwrap());
        // Inherited by whoever is executed: blocked and ignored ones are, handlers are not.
        kernel::block(libc::SIGUSR1);
        kernel::shrug_off(libc::SIGUSR2);
        let output = Command::new("/bin/cat").arg("/proc/self/status").output().unwrap();
        let mut expected = masks(std::str::from_utf8(&output.stdout).unwrap());
        // The runtime of a Rust program ignores SIGPIPE.
        let ignored = u64::from_str_radix(expected[1].split('\t').nth(1).unwrap(), 16).unwrap();
        expected[1] = format!("SigIgn:\t{:016x}", ignored | 1 << (libc::SIGPIPE - 1));
        assert!(expected[0].ends_with("0000000000000200"), "{expected:?}");
        for method in methods {
            let seen = join(method.spawn(signals, ()).unwrap());
            if is_fork(&method) {
                assert_eq!(seen, signals(()), "a copy");
            } else {
                assert_eq!(seen, expected, "{method:?}");
            }
        }
    });
}

// ---- Starts that fail ----

/// Misbehaves when it is deserialised: in the child, before its function.
#[derive(Serialize)]
struct Trap {
    hangs: bool,
}

impl<'de> Deserialize<'de> for Trap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if bool::deserialize(deserializer)? {
            hang(());
        }
        std::process::exit(7)
    }
}

#[test]
fn a_process_that_ends_or_hangs_before_its_function_is_an_error() {
    isolated(|()| {
        for method in methods() {
            let error = method.spawn(|_: Trap| (), Trap { hangs: false }).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::EndedEarly, "{method:?}");
            assert!(error.to_string().contains("ended with exit code 7 before"), "{error}");
            // Until the server is there, so that the limit is for the process alone.
            join(method.spawn(double, 1).unwrap());
            let builder = method.builder().start_timeout(Duration::from_millis(50));
            let error = builder.spawn(|_: Trap| (), Trap { hangs: true }).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{method:?}");
            assert!(error.to_string().contains("start_timeout"), "{error}");
            assert!(active_children().is_empty());
            assert_eq!(join(method.spawn(double, 1).unwrap()), 2);
            let error = method.builder().current_dir("/no/such/directory").spawn(double, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CannotStart, "{error}");
            let error = method.builder().spawn_named::<u64, u64>("nobody", 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSuchFunction, "{error}");
        }
    });
}

#[test]
fn a_process_with_threads_is_not_forked_unless_that_is_allowed() {
    isolated(|()| {
        // Its helper thread is ours.
        let value = Value::new(1_u64).unwrap();
        let method = StartMethod::from(kernel::forking());
        let get = |value: Value<u64>| value.get().unwrap();
        assert_eq!(join(method.spawn(get, value.clone()).unwrap()), 1);
        std::thread::scope(|scope| {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || ended.recv());
            let error = method.spawn(double, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Threads);
            assert!(error.to_string().contains("has 1 threads beside"), "{error}");
            let allowed = StartMethod::from(kernel::forking().allow_threads(true));
            assert_eq!(join(allowed.spawn(get, value.clone()).unwrap()), 1);
            drop(end);
        });
    });
}

#[test]
fn an_environment_that_can_not_be_is_the_same_error_with_every_method() {
    isolated(|()| {
        let odd = [("", "x"), ("=", "x"), ("A=B", "x"), ("A\0B", "x"), ("A", "x\0y")];
        for (name, value) in odd {
            let set = methods().map(|method| method.builder().name("odd").env(name, value));
            let remove = methods().map(|method| method.builder().name("odd").env_remove(name));
            let all = set.into_iter().chain(remove.into_iter().filter(|_| name != "A"));
            let errors: Vec<_> = all.map(|builder| builder.spawn(double, 1).unwrap_err()).collect();
            for error in &errors {
                assert_eq!(error.kind(), ErrorKind::InvalidName, "{error}");
                assert_eq!(error.to_string(), errors[0].to_string());
            }
        }
        assert!(active_children().is_empty());
    });
}

#[test]
fn a_copy_of_a_process_that_prints_comes_to_its_end() {
    isolated(|()| {
        let null = || File::options().write(true).open("/dev/null").unwrap();
        rustix::stdio::dup2_stdout(null()).unwrap();
        let method = StartMethod::from(kernel::forking().allow_threads(true));
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        println!("text");
                    }
                });
            }
            let ended: Vec<_> = (0..50)
                .map_while(|_| {
                    let child = method.builder().kill_on_drop(true).spawn(double, 1).unwrap();
                    child.wait_timeout(HANG)
                })
                .collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(ended, [ExitStatus::Code(0); 50]);
        });
    });
}

#[test]
fn a_copy_ends_though_a_thread_of_it_keeps_standard_output_locked() {
    fn keep_it(with_thread: bool) {
        print!("text");
        let (locked, is_locked) = std::sync::mpsc::channel();
        if with_thread {
            std::thread::spawn(move || {
                let _locked = std::io::stdout().lock();
                locked.send(()).unwrap();
                hang(());
            });
            is_locked.recv().unwrap();
        } else {
            std::thread::spawn(move || hang(()));
        }
    }
    isolated(|()| {
        for method in &methods()[1..] {
            for keeps in [true, false] {
                let builder = method.builder().stdout(Stdio::piped()).kill_on_drop(true);
                let mut child = builder.spawn(keep_it, keeps).unwrap();
                assert_eq!(child.wait_timeout(HANG), Some(ExitStatus::Code(0)), "{method:?} {keeps}");
                let mut text = String::new();
                child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
                assert_eq!(text, if keeps { "" } else { "text" }, "{method:?}");
            }
        }
    });
}

/// Panics when it is dropped, as often as its number says.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Bomb(self.0 - 1));
        }
    }
}

#[test]
fn no_panic_gets_a_copy_into_the_code_of_its_original() {
    isolated(|()| {
        rustix::stdio::dup2_stderr(File::options().write(true).open("/dev/null").unwrap()).unwrap();
        let own = std::process::id();
        for method in &methods()[1..] {
            for number in 0..4 {
                let child: Result<Process<()>, _> =
                    method.spawn(|number: u32| std::panic::panic_any(Bomb(number)), number);
                if std::process::id() != own {
                    // Would be killed as a child that hangs, and tell nobody.
                    std::process::exit(99);
                }
                let status = child.unwrap().wait();
                assert!(matches!(status.code(), Some(70 | 101)), "{method:?} {number}: {status}");
            }
        }
    });
}

#[test]
fn a_fork_has_what_its_parent_has_computed_and_prints_nothing_twice() {
    static COMPUTED: std::sync::OnceLock<Vec<u64>> = std::sync::OnceLock::new();
    isolated(|()| {
        let mut printing = Process::builder()
            .stdout(Stdio::piped())
            .spawn(
                |()| {
                    print!("once,");
                    COMPUTED.set((0..1000).collect()).unwrap();
                    let sum = |()| {
                        print!("fork,");
                        COMPUTED.get().unwrap().iter().sum::<u64>()
                    };
                    let sum = join(StartMethod::from(kernel::forking()).spawn(sum, ()).unwrap());
                    print!("{sum}");
                },
                (),
            )
            .unwrap();
        let mut text = String::new();
        printing.take_stdout().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "once,fork,499500");
        join(printing);
    });
}

#[test]
fn what_is_to_happen_at_the_exit_of_the_original_does_not_happen_at_that_of_a_copy() {
    isolated(|()| {
        kernel::spoil_the_exit();
        let server = ForkServer::new().preload(|()| kernel::spoil_the_exit(), ()).unwrap();
        for method in [StartMethod::from(server), kernel::forking().into()] {
            let child = method.spawn(double, 2).unwrap();
            assert_eq!(child.wait(), ExitStatus::Code(0), "{method:?}");
            assert_eq!(join(child), 4);
        }
    });
}

#[test]
fn a_process_of_any_method_is_seen_among_the_children_until_it_has_ended() {
    isolated(|()| {
        for method in methods() {
            assert!(active_children().is_empty(), "not even the server is there");
            let start = |name: &str| method.builder().name(name).kill_on_drop(true).spawn(hang, ()).unwrap();
            let (one, two) = (start("one"), start("two"));
            let seen: Vec<_> =
                active_children().iter().map(|child| (child.pid(), child.name().to_owned())).collect();
            assert_eq!(seen, [(one.pid(), "one".to_owned()), (two.pid(), "two".to_owned())]);
            one.kill().unwrap();
            rustix::event::poll(&mut [rustix::event::PollFd::new(&one, rustix::event::PollFlags::IN)], None)
                .unwrap();
            assert_eq!(active_children().len(), 1, "nobody has asked for its status yet");
            let pidfd = two.as_fd().try_clone_to_owned().unwrap();
            two.detach();
            let two = active_children().pop().unwrap();
            assert_eq!(two.name(), "two");
            two.terminate().unwrap();
            rustix::event::poll(
                &mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)],
                None,
            )
            .unwrap();
            assert!(active_children().is_empty() && !two.is_alive());
            // Neither a copy nor a grandchild has its parent's children.
            let _one = start("one");
            let children = method.spawn(|()| active_children().len(), ()).unwrap();
            assert_eq!(join(children), 0);
        }
    });
}
