//! The engine itself: steps are counted, sleepers are noticed, verdicts are told apart, nobody is left behind.
#![forbid(unsafe_code)]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::hint::black_box;
use std::time::Duration;

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_crash::pass::{foretell, step_through};
use crossproc_crash::step::{
    Bystander, Ending, Memory, Point, Step, Verdict, Victim, die_by_trap, explain, marked, ptrace_allowed,
    why, with_deadline,
};
use crossproc_primitives::Objects;
use crossproc_segment::{PlacedSlice, Segment, Span};
use crossproc_tests::{HANG, not_run};

/// Whether the test can be run here.
fn ptrace(test: &str) -> bool {
    let allowed = ptrace_allowed();
    if !allowed {
        not_run(&format!("{test}: ptrace is denied here"));
    }
    allowed
}

/// Children of the calling thread, reaped or not.
fn children() -> String {
    let tid = fs::read_link("/proc/thread-self").expect("the calling thread");
    let path = format!("/proc/{}/children", tid.display());
    fs::read_to_string(path).expect("children of the calling thread").trim().to_owned()
}

/// Four words that victims and the test share.
fn words() -> (Segment, PlacedSlice<AtomicU64>) {
    let segment = Segment::anonymous(4096).expect("memory for a segment");
    drop(segment.raw_array("words", &[0_u64; 4]).expect("an array"));
    let offset = segment.objects()[0].object.offset;
    let words = segment.mapping().place_slice(Span { offset, count: 4 }).expect("its words");
    (segment, words)
}

fn count_up(word: &AtomicU64) {
    for n in 1..=3 {
        word.store(black_box(n), Ordering::Relaxed);
    }
}

fn steps_to_end(body: impl FnOnce()) -> u64 {
    let mut victim = Victim::start(body);
    while victim.step() == Step::Stepped {}
    victim.count()
}

#[test]
fn steps_are_counted() {
    if !ptrace("steps_are_counted") {
        return;
    }
    let rounds = |n: u64| {
        steps_to_end(move || {
            marked(|| {
                for round in 0..black_box(n) {
                    black_box(round);
                }
            })
        })
    };
    let (few, many) = (rounds(10), rounds(110));
    assert_eq!(few, rounds(10), "the same each time");
    assert!(few > 10 && (many - few) % 100 == 0 && many > few, "{few} and {many}: each round is as long");
    assert_eq!(children(), "");
}

#[test]
fn a_victim_dies_between_two_of_its_instructions() {
    if !ptrace("a_victim_dies_between_two_of_its_instructions") {
        return;
    }
    let (_segment, words) = words();
    let length = steps_to_end(|| marked(|| count_up(&words[0])));
    let mut seen = Vec::new();
    for k in 0..=length {
        words[0].store(0, Ordering::Relaxed);
        let mut victim = Victim::start(|| marked(|| count_up(&words[0])));
        assert_eq!(victim.steps(k), Step::Stepped);
        assert_eq!(victim.count(), k);
        victim.kill();
        seen.push(words[0].load(Ordering::Relaxed));
    }
    assert!(seen.is_sorted(), "{seen:?}");
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3]);
    assert_eq!(children(), "");
}

#[test]
fn a_pass_finds_every_state() {
    if !ptrace("a_pass_finds_every_state") {
        return;
    }
    let (segment, words) = words();
    let memory = Memory::of(&segment);
    let pass = step_through(Some(memory), || marked(|| count_up(&words[0])));
    let states = pass.states.iter().map(|state| {
        memory.restore(&state.image);
        (words[0].load(Ordering::Relaxed), state.returned)
    });
    let states: Vec<_> = states.collect();
    assert_eq!(states, [(0, false), (1, false), (2, false), (3, false), (3, true)]);
    assert!(pass.states.is_sorted_by_key(|state| state.at) && !pass.asleep);
    assert_eq!(children(), "");
}

#[test]
fn what_the_kernel_does_at_a_death_is_foretold() {
    if !ptrace("what_the_kernel_does_at_a_death_is_foretold") {
        return;
    }
    let segment = Segment::anonymous(4096).expect("memory for a segment");
    drop(segment.lock("lock").expect("a lock"));
    let memory = Memory::of(&segment);
    let mut changed = 0;
    for k in [0, 50, 200, 1_000_000] {
        let mut victim = Victim::start(|| {
            let lock = segment.attach_again().and_then(|segment| segment.lock("lock")).expect("a lock");
            std::mem::forget(marked(|| lock.lock()));
        });
        victim.steps(k);
        let before = memory.image();
        let foretold = foretell(memory, &victim);
        victim.kill();
        assert!(memory.is(&foretold), "after {k} instructions");
        changed += u32::from(before != foretold);
    }
    assert_eq!(changed, 4, "the token of a dead one is marked");
}

#[test]
fn a_sleeper_is_noticed_and_can_be_woken() {
    if !ptrace("a_sleeper_is_noticed_and_can_be_woken") {
        return;
    }
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let mut victim = Victim::start(|| {
        marked(|| rustix::io::read(&read, &mut [0_u8; 1])).expect("a byte");
    });
    let mut last = victim.step();
    while last == Step::Stepped {
        last = victim.step();
    }
    assert_eq!(last, Step::Blocked);
    assert_eq!(victim.step(), Step::Blocked, "it sleeps on");
    rustix::io::write(&write, b"x").expect("a reader");
    assert_eq!(victim.wait(HANG), Step::Stepped);
    assert_eq!(victim.run_to_end(HANG), Step::End);
    drop(victim);

    let mut asleep = Victim::start(|| {
        marked(|| rustix::io::read(&read, &mut [0_u8; 1])).expect("a byte");
    });
    while asleep.step() == Step::Stepped {}
    asleep.kill();
    assert_eq!(children(), "");
}

#[test]
fn system_calls_are_seen_and_can_be_made_to_fail() {
    if !ptrace("system_calls_are_seen_and_can_be_made_to_fail") {
        return;
    }
    let (_segment, words) = words();
    let open = || {
        marked(|| {
            let errno = rustix::fs::open("/", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).err();
            words[0].store(errno.map_or(1000, |errno| errno.raw_os_error() as u64), Ordering::Relaxed);
        });
    };
    let pass = step_through(None, open);
    // Unoptimised, the standard library asks in between whether the descriptor is open.
    assert!([2, 3].contains(&pass.syscalls.len()), "open and close: {:?}", pass.syscalls);
    assert_eq!(words[0].load(Ordering::Relaxed), 1000);

    let mut victim = Victim::start(open);
    assert_eq!(victim.steps(pass.syscalls[0]), Step::Stepped);
    assert!(victim.at_syscall());
    assert_eq!(victim.to_syscall(), Step::Syscall(victim.syscall_number()));
    assert_eq!(victim.fail_syscall(24), Step::Stepped);
    assert_eq!(victim.to_syscall(), Step::End, "nothing to close");
    assert_eq!(words[0].load(Ordering::Relaxed), 24);

    let mut victim = Victim::start(open);
    assert_eq!(pass.reach(&mut victim, pass.syscalls[1]), Step::Stepped);
    assert!(victim.at_syscall(), "in strides as by steps");
    assert_eq!((victim.run_to_end(HANG), words[0].load(Ordering::Relaxed)), (Step::End, 1000));
}

#[test]
fn an_operation_that_ends_its_process_is_told() {
    if !ptrace("an_operation_that_ends_its_process_is_told") {
        return;
    }
    let mut victim = Victim::start(|| marked(|| std::process::exit(7)));
    assert_eq!(victim.run_to_end(HANG), Step::Exited(Ending::Status(7)));
    drop(victim);
    let mut victim = Victim::start(|| marked(|| std::process::abort()));
    let mut last = Step::Stepped;
    while last == Step::Stepped {
        last = victim.step();
    }
    assert_eq!(last, Step::Exited(Ending::Signal(6)));
    assert_eq!(children(), "");
}

#[test]
fn verdicts_are_told_apart() {
    let short = Duration::from_millis(50);
    for verdict in Verdict::ALL {
        let found = with_deadline(HANG, || {
            explain(verdict.text());
            verdict
        });
        assert_eq!((found, why().as_str()), (verdict, verdict.text()));
    }
    let hang = with_deadline(short, || {
        loop {
            std::thread::park();
        }
    });
    assert_eq!((hang, why().as_str()), (Verdict::Wedged, ""));
    assert_eq!(with_deadline(HANG, || std::process::abort()), Verdict::Crashed);
    assert_eq!(why(), "killed by signal 6");
    assert_eq!(with_deadline(HANG, || std::process::exit(77)), Verdict::Crashed);
    assert_eq!(children(), "");
}

#[test]
fn without_ptrace_it_is_the_same() {
    let (_segment, words) = words();
    let body = || marked(|| count_up(&words[0]));
    let (end, length) = die_by_trap(body, Point::Instruction(u64::MAX), HANG);
    assert_eq!(end, Step::End);
    if ptrace("a comparison with ptrace") {
        assert_eq!(length, steps_to_end(body), "as many instructions");
    }
    let mut seen = Vec::new();
    for k in 0..=length {
        words[0].store(0, Ordering::Relaxed);
        let (step, steps) = die_by_trap(body, Point::Instruction(k), HANG);
        assert_eq!((step, steps), (Step::Stepped, k));
        seen.push(words[0].load(Ordering::Relaxed));
    }
    assert!(seen.is_sorted(), "{seen:?}");
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3]);

    let two_calls = || {
        marked(|| {
            words[1].store(1, Ordering::Relaxed);
            black_box(rustix::process::getppid());
            words[1].store(2, Ordering::Relaxed);
            black_box(rustix::process::getppid());
            words[1].store(3, Ordering::Relaxed);
        });
    };
    for (n, word) in [(0, 1), (1, 2)] {
        assert_eq!(die_by_trap(two_calls, Point::Syscall(n), HANG).0, Step::Stepped);
        assert_eq!(words[1].load(Ordering::Relaxed), word);
    }
    assert_eq!(die_by_trap(two_calls, Point::Syscall(2), HANG).0, Step::End);
    assert_eq!(words[1].load(Ordering::Relaxed), 3);
    assert_eq!(children(), "");
}

#[test]
fn nobody_is_left_behind() {
    let (_segment, words) = words();
    let bystander = Bystander::start(|| words[0].store(5, Ordering::Relaxed));
    assert_eq!(words[0].load(Ordering::Relaxed), 5);
    assert_ne!(children(), "", "it stays");
    drop(bystander);
    assert_eq!(children(), "");
    if ptrace("victims that are dropped") {
        // Stopped at the marker, while running, and in the middle.
        drop(Victim::start(|| marked(|| ())));
        let mut running = Victim::start(|| marked(|| std::thread::sleep(HANG)));
        running.resume();
        drop(running);
        let mut stepped = Victim::start(|| marked(|| count_up(&words[0])));
        stepped.step();
        drop(stepped);
        assert_eq!(children(), "");
    }
}
