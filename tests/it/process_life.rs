//! The life of processes of all start methods: what ends them, what does not, and what is left of them.
//!
//! Each test runs in a process of its own with one thread, because it forks.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use crossproc_primitives::Value;
use crossproc_process::{
    ErrorKind, ExitStatus, ForkServer, JoinError, Process, StartMethod, Stdio, active_children, current,
};
use crossproc_tests::{
    Board, HANG, Rng, await_state, child, fresh_seed, isolated, join, kill_and_reap, not_run, state_of,
    wait_for,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::kernel;
use crate::process_start::{double, hang, is_fork, methods};

fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}

/// A process that this one has not started, and that runs.
fn watch(number: u64) -> OwnedFd {
    pidfd_open(pid(number.try_into().unwrap()), PidfdFlags::empty()).expect("a process that runs")
}

fn has_ended_within(pidfd: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

fn kill_by_id(number: u32, signal: Signal) {
    kill_process(pid(number), signal).unwrap();
}

/// Processes whose parent is this one, zombies among them.
fn children_in_proc() -> BTreeSet<u32> {
    let own = std::process::id().to_string();
    let numbers =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |number: &u32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(2)) == Some(&own)
    };
    numbers.filter(is_child).collect()
}

// ---- Daemons ----

/// The words of the board.
const READY: usize = 0;
const END: usize = 1;
const PIDS: usize = 2;

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Way {
    Killed,
    Returns,
    Panics,
    Exits,
    Aborts,
}

/// Starts a daemon with each method, from threads that end, and one process that is none.
fn raise_a_family((board, way): (Board, Way)) {
    let mut methods = methods();
    methods[2] = kernel::forking().allow_threads(true).into();
    let daemons = methods.map(|method| {
        let start = move || method.builder().daemon(true).spawn(hang, ()).unwrap();
        std::thread::spawn(start).join().unwrap()
    });
    let other = Process::builder().spawn(hang, ()).unwrap();
    assert!(daemons.iter().all(Process::is_daemon) && !other.is_daemon());
    for (at, process) in daemons.iter().chain([&other]).enumerate() {
        board.set(PIDS + at, process.pid().into());
    }
    board.set(READY, 1);
    board.await_at_least(END, 1);
    match way {
        Way::Killed => hang(()),
        Way::Returns => {}
        Way::Panics => panic!("on purpose"),
        Way::Exits => std::process::exit(3),
        Way::Aborts => std::process::abort(),
    }
}

#[test]
fn daemons_end_with_their_parent_however_it_ends_and_not_with_the_thread_that_started_them() {
    for way in [Way::Killed, Way::Returns, Way::Panics, Way::Exits, Way::Aborts] {
        let board = Board::new(16);
        let parent = child(raise_a_family, (board.clone(), way));
        board.await_at_least(READY, 1);
        let family: Vec<_> = (PIDS..PIDS + 4).map(|at| watch(board.get(at))).collect();
        let (daemons, other) = family.split_at(3);
        // Long enough for what would follow the end of the threads.
        assert!(!has_ended_within(&daemons[0], Duration::from_millis(30)), "{way:?}");
        assert!(family.iter().all(|member| !has_ended_within(member, Duration::ZERO)), "{way:?}");
        board.set(END, 1);
        if matches!(way, Way::Killed) {
            kill_and_reap(&parent);
        } else {
            parent.wait_timeout(HANG).expect("an end");
        }
        for (daemon, method) in daemons.iter().zip(["Spawn", "ForkServer", "Fork"]) {
            assert!(has_ended_within(daemon, HANG), "{method}: the parent was to end so: {way:?}");
        }
        assert!(!has_ended_within(&other[0], Duration::from_millis(5)), "{way:?}: it is no daemon");
        pidfd_send_signal(&other[0], Signal::KILL).unwrap();
    }
}

#[test]
fn what_a_daemon_starts_is_a_daemon_too() {
    fn nest((board, depth): (Board, u32)) {
        assert!(current().is_daemon());
        board.set(PIDS + depth as usize, std::process::id().into());
        let method = [StartMethod::Spawn, ForkServer::new().into()][depth as usize % 2].clone();
        if depth < 3 {
            let child = method.spawn(nest, (board.clone(), depth + 1)).unwrap();
            assert!(child.is_daemon());
            child.detach();
        } else {
            assert!(
                !Process::builder()
                    .daemon(false)
                    .spawn(|()| current().is_daemon(), ())
                    .unwrap()
                    .join()
                    .unwrap()
            );
            board.set(READY, 1);
        }
        hang(());
    }
    let board = Board::new(16);
    let first = Process::builder().daemon(true).kill_on_drop(true).spawn(nest, (board.clone(), 0)).unwrap();
    board.await_at_least(READY, 1);
    let line: Vec<_> = (PIDS..PIDS + 4).map(|at| watch(board.get(at))).collect();
    kill_and_reap(&first);
    line.iter().for_each(|pidfd| assert!(has_ended_within(pidfd, HANG)));
}

#[test]
fn a_daemon_that_returns_ends_as_others_do() {
    isolated(|()| {
        for method in methods() {
            let child = method.builder().daemon(true).spawn(double, 4).unwrap();
            assert_eq!(child.wait(), ExitStatus::Code(0));
            assert_eq!(join(child), 8, "{method:?}");
        }
    });
}

// ---- The fork server ----

#[test]
fn a_killed_fork_server_is_missed_by_nobody() {
    fn answer(board: Board) -> u64 {
        board.set(READY, 1);
        board.await_at_least(END, 1);
        std::process::exit(9)
    }
    isolated(|()| {
        let server = ForkServer::new();
        let method = StartMethod::from(server.clone());
        assert_eq!(server.pid(), None, "it is started when it is needed");
        let boards = [0; 3].map(|_| Board::new(16));
        let children = boards.each_ref().map(|board| method.spawn(answer, board.clone()).unwrap());
        for board in &boards {
            board.await_at_least(READY, 1);
        }
        let first = server.pid().unwrap();
        kill_by_id(first, Signal::KILL);
        wait_for("the server to end", || server.pid().is_none());

        assert_eq!(join(method.spawn(double, 4).unwrap()), 8, "the next start");
        let second = server.pid().unwrap();
        assert_ne!(first, second);
        assert_eq!(state_of(first), '-', "no zombie");
        // Those that it had made: running, waited for, with their exit status and in the end gone.
        assert!(children.iter().all(Process::is_alive));
        boards.iter().for_each(|board| board.set(END, 1));
        children.iter().for_each(|child| assert_eq!(child.wait_timeout(HANG), Some(ExitStatus::Code(9))));
        assert_eq!(children_in_proc(), BTreeSet::from([second]));

        server.start().unwrap();
        assert_eq!(server.pid(), Some(second), "it runs already");
        drop((method, server));
        assert_eq!(children_in_proc(), BTreeSet::new(), "it ends with the last handle");
    });
}

#[test]
fn fork_servers_killed_at_any_moment_leave_nothing() {
    isolated(|()| {
        let seed = fresh_seed();
        println!("seed {seed}");
        let server = ForkServer::new();
        let method = StartMethod::from(server.clone());
        join(method.spawn(double, 1).unwrap());
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        let (mut started, mut refused, mut kills) = (0, 0, 0_u32);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut random = Rng::new(seed);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Some(Ok(pidfd)) = server.pid().map(|id| pidfd_open(pid(id), PidfdFlags::empty())) {
                        sleep(Duration::from_micros(random.below(600)));
                        kills += u32::from(pidfd_send_signal(&pidfd, Signal::KILL).is_ok());
                    }
                    sleep(Duration::from_micros(random.below(3000)));
                }
            });
            for n in 0..600 {
                match method.spawn(double, n) {
                    Ok(child) => {
                        assert_eq!(join(child), 2 * n, "seed {seed}");
                        started += 1;
                    }
                    Err(error) => {
                        // Two servers in a row, one of them maybe before it was ready.
                        let kinds = [ErrorKind::ForkServer, ErrorKind::EndedEarly];
                        assert!(kinds.contains(&error.kind()), "seed {seed}: {error}");
                        refused += 1;
                    }
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            killer.join().unwrap();
        });
        println!("{started} started, {refused} refused, {kills} kills");
        assert!(started > 300 && kills > 50, "seed {seed}: {started} started, {kills} kills");
        server.start().unwrap();
        assert_eq!(children_in_proc(), BTreeSet::from([server.pid().unwrap()]), "seed {seed}");
        assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before, "seed {seed}");
    });
}

#[test]
fn a_stopped_fork_server_is_replaced_when_time_is_up() {
    isolated(|()| {
        let server = ForkServer::new();
        let method = StartMethod::from(server.clone());
        server.start().unwrap();
        let stopped = server.pid().unwrap();
        kill_by_id(stopped, Signal::STOP);
        await_state(stopped, 'T');
        let error = method.builder().start_timeout(Duration::from_millis(60)).spawn(double, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        assert_eq!(children_in_proc(), BTreeSet::new());
        assert_eq!(join(method.spawn(double, 1).unwrap()), 2);
        assert_ne!(server.pid(), Some(stopped));
    });
}

#[test]
fn a_limit_that_has_passed_does_no_harm_to_a_fork_server() {
    isolated(|()| {
        let server = ForkServer::new();
        let method = StartMethod::from(server.clone());
        server.start().unwrap();
        let pid = server.pid();
        for microseconds in [0, 1, 10, 30, 100, 100, 200, 200, 300, 300, 500, 500] {
            let limit = Duration::from_micros(microseconds);
            match method.builder().start_timeout(limit).spawn(double, 1) {
                Ok(child) => drop(child.wait()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}"),
            }
            assert_eq!(server.pid(), pid, "{limit:?}");
        }
        assert_eq!(children_in_proc(), BTreeSet::from([pid.unwrap()]));
    });
}

#[test]
fn who_waits_for_the_fork_server_of_others_waits_until_his_own_limit() {
    isolated(|()| {
        let server = ForkServer::new();
        let method = StartMethod::from(server.clone());
        server.start().unwrap();
        let stopped = server.pid().unwrap();
        kill_by_id(stopped, Signal::STOP);
        await_state(stopped, 'T');
        let limit = Duration::from_millis(100);
        let start = || method.builder().start_timeout(limit).spawn(double, 1).unwrap_err().kind();
        std::thread::scope(|scope| {
            let patient = scope.spawn(|| method.builder().start_timeout(HANG).spawn(double, 3));
            // Time for it to ask.
            sleep(Duration::from_millis(50));
            for other in [(); 3].map(|()| scope.spawn(start)) {
                assert_eq!(other.join().unwrap(), ErrorKind::TimedOut);
            }
            assert!(!patient.is_finished(), "the others were not to wait for it");
            kill_by_id(stopped, Signal::CONT);
            assert_eq!(join(patient.join().unwrap().unwrap()), 6);
        });
        assert_eq!(server.pid(), Some(stopped), "nobody has replaced it");
    });
}

#[test]
fn a_start_that_fails_has_called_nothing() {
    fn claim(board: Board) {
        board.add(END, 1);
    }
    isolated(|()| {
        let seed = fresh_seed();
        println!("seed {seed}");
        let mut random = Rng::new(seed);
        let server = ForkServer::new();
        let method = StartMethod::from(server.clone());
        let board = Board::new(16);
        let (mut started, mut late) = (0, 0);
        for _ in 0..150 {
            server.start().unwrap();
            let process = watch(server.pid().unwrap().into());
            let pause = Duration::from_micros(random.below(500));
            let limit = Duration::from_millis(5 + random.below(10));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    sleep(pause);
                    let _ = pidfd_send_signal(&process, Signal::STOP);
                });
                match method.builder().start_timeout(limit).spawn(claim, board.clone()) {
                    Ok(child) => {
                        // One that was killed as it began counts as started.
                        child.wait();
                        started += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::TimedOut, "seed {seed}: {error}");
                        late += 1;
                    }
                }
            });
            assert!(board.get(END) <= started, "seed {seed}: {started} started, {late} late");
            let _ = pidfd_send_signal(&process, Signal::CONT);
        }
        println!("{started} started, {late} late");
        assert!(late > 0, "seed {seed}");
    });
}

#[test]
fn a_fork_server_ends_with_its_parent() {
    fn start_and_hang(board: Board) {
        let server = ForkServer::new();
        server.start().unwrap();
        board.set(PIDS, server.pid().unwrap().into());
        // A copy has the parent's end of the socket to the server, which so is not closed when the parent ends.
        let copy = StartMethod::from(kernel::forking().allow_threads(true)).spawn(hang, ()).unwrap();
        board.set(PIDS + 1, copy.pid().into());
        board.set(READY, 1);
        hang(());
    }
    let board = Board::new(16);
    let parent = child(start_and_hang, board.clone());
    board.await_at_least(READY, 1);
    let (server, copy) = (watch(board.get(PIDS)), watch(board.get(PIDS + 1)));
    kill_and_reap(&parent);
    let ended = has_ended_within(&server, HANG);
    pidfd_send_signal(&copy, Signal::KILL).expect("the copy is no daemon");
    assert!(ended);
}

#[test]
fn a_fork_server_ends_with_its_parent_also_while_it_preloads() {
    fn preload((): ()) {
        rustix::thread::set_name(c"preloads").unwrap();
        hang(());
    }
    fn start_and_hang(board: Board) {
        std::thread::spawn(|| ForkServer::new().preload(preload, ()).unwrap().start());
        let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let find = || children_in_proc().into_iter().find(|pid| name(pid) == "preloads\n");
        wait_for("the preload function", || find().is_some());
        board.set(PIDS, find().unwrap().into());
        board.set(READY, 1);
        hang(());
    }
    let board = Board::new(16);
    let parent = child(start_and_hang, board.clone());
    board.await_at_least(READY, 1);
    let server = watch(board.get(PIDS));
    kill_and_reap(&parent);
    assert!(has_ended_within(&server, HANG));
}

#[test]
fn a_fork_server_belongs_to_the_process_that_made_it() {
    static SERVER: std::sync::OnceLock<ForkServer> = std::sync::OnceLock::new();
    isolated(|()| {
        SERVER.get_or_init(ForkServer::new).start().unwrap();
        let own = SERVER.get().unwrap().pid();
        let in_a_copy = |()| {
            let error = StartMethod::from(SERVER.get().unwrap().clone()).spawn(double, 1).unwrap_err();
            (error.kind() == ErrorKind::ForkServer, error.to_string())
        };
        let (right, text) = join(StartMethod::from(kernel::forking()).spawn(in_a_copy, ()).unwrap());
        assert!(right && text.contains("make a new one here"), "{text}");
        assert_eq!(SERVER.get().unwrap().pid(), own, "and it still runs");
    });
}

#[test]
fn what_preload_has_made_is_in_every_process_also_of_the_next_server() {
    static TABLE: std::sync::OnceLock<(u32, Vec<u64>)> = std::sync::OnceLock::new();
    isolated(|()| {
        let fill = |length: u64| drop(TABLE.set((std::process::id(), (0..length).collect())));
        let look = |()| TABLE.get().map(|(pid, table)| (*pid, table.len()));
        let server = ForkServer::new().preload(fill, 1000).unwrap();
        let method = StartMethod::from(server.clone());
        for _ in 0..2 {
            let seen = [(); 2].map(|()| join(method.spawn(look, ()).unwrap()));
            let pid = server.pid().unwrap();
            assert_eq!(seen, [Some((pid, 1000)); 2], "computed once, in the server");
            kill_by_id(pid, Signal::KILL);
            wait_for("the server to end", || server.pid().is_none());
        }
        assert_eq!(look(()), None);
    });
}

#[test]
fn a_fork_server_that_can_not_serve_is_an_error_in_time() {
    isolated(|()| {
        let error = |server: ForkServer, kind: ErrorKind, words: &str| {
            let method = StartMethod::from(server.clone());
            for _ in 0..2 {
                let limit = if kind == ErrorKind::TimedOut { Duration::from_millis(300) } else { HANG };
                let builder = method.builder().start_timeout(limit);
                let error = builder.spawn(double, 1).unwrap_err();
                assert!(error.kind() == kind && error.to_string().contains(words), "{kind:?}: {error:?}");
            }
            assert_eq!(children_in_proc(), BTreeSet::new());
        };
        let new = ForkServer::new;
        let leave_a_thread = |()| drop(std::thread::spawn(|| hang(())));
        // They tell on standard error what happened; not here.
        rustix::stdio::dup2_stderr(fs::File::options().write(true).open("/dev/null").unwrap()).unwrap();
        error(new().preload(|n: u32| panic!("no {n}"), 7).unwrap(), ErrorKind::ForkServer, "no 7");
        error(new().preload(leave_a_thread, ()).unwrap(), ErrorKind::ForkServer, "more than one thread");
        error(new().preload(hang, ()).unwrap(), ErrorKind::TimedOut, "preload");
        error(new().preload(|()| std::process::exit(5), ()).unwrap(), ErrorKind::ForkServer, "exit code 5");
        error(new().executable("/bin/true"), ErrorKind::EndedEarly, "`/bin/true` ended with exit code 0");
        error(new().executable("/bin/cat"), ErrorKind::TimedOut, "`/bin/cat` did not call");
        error(new().executable("/no/such/program"), ErrorKind::CannotStart, "can not be executed");
        let kind = new().preload(|_: Value<u64>| (), Value::new(1).unwrap()).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::Arguments, "handles");
    });
}

// ---- What is left ----

/// With the start method of this number.
fn start_a_thousand(number: usize) {
    let segments = || fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:").count();
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let method = &methods()[number];
    let one = |n: u64| {
        let (sum, value) = (Value::new(n).unwrap(), Value::new(0_u64).unwrap());
        let add = |(sum, value): (Value<u64>, Value<u64>)| value.set(sum.get().unwrap() + 1).unwrap();
        join(method.spawn(add, (sum, value.clone())).unwrap());
        assert_eq!(value.get(), Ok(n + 1));
    };
    one(0);
    let before = (segments(), descriptors(), children_in_proc());
    for batch in 0..20 {
        let children = [(); 50].map(|()| method.spawn(double, batch).unwrap());
        children.into_iter().for_each(|child| assert_eq!(join(child), 2 * batch));
        one(batch);
    }
    assert_eq!((segments(), descriptors(), children_in_proc()), before, "{method:?}");
    assert!(active_children().is_empty());
}

#[test]
fn a_thousand_processes_leave_no_zombie_no_descriptor_and_no_segment() {
    for number in 0..3 {
        // Longer than the limit of a hang, on a busy machine.
        let process =
            Process::builder().kill_on_drop(true).start_timeout(HANG).spawn(start_a_thousand, number);
        let process = process.unwrap();
        assert!(process.wait_timeout(4 * HANG).is_some(), "it hangs");
        process.join().unwrap();
    }
}

#[test]
fn processes_that_are_dropped_are_killed_or_go_on_as_asked_for() {
    isolated(|()| {
        for method in methods() {
            let child = method.builder().kill_on_drop(true).spawn(hang, ()).unwrap();
            let number = child.pid();
            drop(child);
            assert_eq!(state_of(number), '-', "{method:?}");
            let child = method.spawn(hang, ()).unwrap();
            let number = child.pid();
            drop(child);
            assert_eq!(active_children().len(), 1);
            kill_by_id(number, Signal::KILL);
            wait_for("its end", || active_children().is_empty());
            assert_eq!(state_of(number), '-', "{method:?}: it was reaped");
        }
    });
}

#[test]
fn a_copy_of_its_parent_can_do_nothing_to_a_process() {
    static CHILD: Mutex<Option<Process<u64>>> = Mutex::new(None);
    fn answer(board: Board) -> u64 {
        board.await_at_least(END, 1);
        9
    }
    fn in_a_copy(board: Board) -> Vec<String> {
        let child = CHILD.lock().unwrap().take().unwrap();
        let mut seen = Vec::new();
        for refused in [child.kill(), child.terminate(), child.signal(0)] {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotParent);
            seen.push(error.to_string());
        }
        assert!(child.is_alive());
        assert_eq!((child.exit_status(), child.wait_timeout(Duration::from_millis(2))), (None, None));
        board.set(END, 1);
        assert_eq!(child.wait_timeout(HANG), Some(ExitStatus::Unknown), "it has ended, and that is all");
        match child.join() {
            Err(JoinError::Io(error)) if error.kind() == ErrorKind::NotParent => seen.push(error.to_string()),
            other => panic!("{other:?}"),
        }
        seen
    }
    isolated(|()| {
        let board = Board::new(16);
        let child = Process::builder().name("other").kill_on_drop(true).spawn(answer, board.clone()).unwrap();
        *CHILD.lock().unwrap() = Some(child);
        for error in join(StartMethod::from(kernel::forking()).spawn(in_a_copy, board).unwrap()) {
            assert!(error.contains("`other` is a child of process"), "{error}");
        }
        assert_eq!(join(CHILD.lock().unwrap().take().unwrap()), 9, "nothing was taken from its parent");
    });
}

#[test]
fn a_process_that_may_not_be_killed_goes_on_and_holds_up_nobody() {
    if !rustix::process::geteuid().is_root() {
        return not_run("it has to change its user");
    }
    fn drop_it(board: Board) -> u32 {
        let child = Process::builder().kill_on_drop(true).spawn(hang, ()).unwrap();
        let pid = child.pid();
        board.set(PIDS, pid.into());
        kernel::become_nobody();
        assert_eq!(child.kill().unwrap_err().kind(), ErrorKind::System);
        drop(child);
        pid
    }
    let board = Board::new(16);
    let parent = child(drop_it, board.clone());
    let ended = parent.wait_timeout(HANG);
    // Which also lets a parent go that waits for it.
    pidfd_send_signal(watch(board.get(PIDS)), Signal::KILL).expect("it goes on");
    assert_eq!(ended, Some(ExitStatus::Code(0)));
}

// ---- The terminal ----

/// In a session of its own, with this terminal: starts a process with each method, and tells how they ended.
fn on_a_terminal((terminal, board): (String, Board)) -> (Vec<Option<i32>>, bool) {
    rustix::process::setsid().unwrap();
    // The first terminal that is opened becomes the session's.
    let terminal = fs::File::options().read(true).write(true).open(terminal).unwrap();
    let own = |method: &StartMethod| method.builder().stdin(terminal.try_clone().unwrap()).kill_on_drop(true);
    let methods = methods();
    // This process survives what comes from the terminal, and so does a copy, unless it says otherwise.
    kernel::shrug_off(libc::SIGINT);
    let wait = |is_fork: bool| {
        if is_fork {
            kernel::take_as_usual(libc::SIGINT);
        }
        hang(());
    };
    let children = methods.each_ref().map(|method| own(method).spawn(wait, is_fork(method)).unwrap());
    // The copy says so a moment after it was called.
    sleep(Duration::from_millis(20));
    board.set(READY, 1);
    let statuses = children.map(|child| child.wait_timeout(HANG).unwrap());
    // The server was in the foreground too.
    let server = join(own(&methods[1]).spawn(double, 1).unwrap()) == 2;
    (statuses.map(ExitStatus::signal).to_vec(), server)
}

#[test]
fn an_interrupt_from_the_terminal_reaches_all_processes_in_the_foreground() {
    let (master, name) = kernel::pseudo_terminal();
    let board = Board::new(16);
    let leader = child(on_a_terminal, (name, board.clone()));
    board.await_at_least(READY, 1);
    fs::File::from(master.try_clone().unwrap()).write_all(b"\x03").unwrap();
    assert_eq!(join(leader), (vec![Some(libc::SIGINT); 3], true));
}

#[test]
fn a_writer_into_a_pipe_of_a_killed_process_is_told() {
    isolated(|()| {
        for method in methods() {
            let builder = method.builder().stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            let mut child = builder.spawn(hang, ()).unwrap();
            let (mut input, mut output) = (child.take_stdin().unwrap(), child.take_stdout().unwrap());
            kill_and_reap(&child);
            assert_eq!(input.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe, "{method:?}");
            assert_eq!(output.read(&mut [0; 8]).unwrap(), 0, "{method:?}");
        }
    });
}
