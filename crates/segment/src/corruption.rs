//! Foreign bytes are data: whatever a header and a directory hold, reading them ends, in an error or in an
//! object that lies inside of the segment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossproc_atomic::AtomicU32;

use crate::directory::{Directory, ObjectKind, ObjectSpec};
use crate::header::{Backing, Facts, Geometry, Header, Machine, Unlink};
use crate::map::{Mapping, PAGE};
use crate::plain::Plain;

const KIND: ObjectKind = ObjectKind::new("Counter");
const NAMES: [&str; 3] = ["one", "two", "three"];

/// xorshift64*, with the seed on the output so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let seed = std::env::var("CROSSPROC_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or(clock.as_nanos() as u64) | 1;
        println!("CROSSPROC_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn spec(bytes: u64) -> ObjectSpec {
    ObjectSpec { kind: KIND, layout: u64::LAYOUT, count: bytes / 8, bytes, align: 8, windows: bytes }
}

fn facts() -> Facts {
    Facts {
        geometry: Geometry::for_objects(4, 8, 9000, 40_000, PAGE as u64).expect("a possible plan"),
        backing: Backing::Named,
        unlink: Unlink::LastClose,
        mode: 0o600,
        creator: 1,
        machine: Machine { boot: [1, 2], pid_namespace: 3 },
        id: [4, 5],
    }
}

fn fill(memory: &Arc<Mapping>) {
    let facts = facts();
    memory.place::<Header>(0).and_then(|h| h.write(&facts)).expect("empty memory takes a header");
    let directory = Directory::new(memory, &facts.geometry).expect("it fits");
    for (name, bytes) in NAMES.into_iter().zip([8, 1000, 4096]) {
        directory.create(memory, name, &spec(bytes), |_, _| {}).expect("there is room");
    }
}

/// Everything that reads what peers may have written. Whatever it finds must lie inside.
fn use_all(memory: &Arc<Mapping>) -> (bool, usize) {
    let header = memory.place::<Header>(0).expect("inside");
    let _ = header.is_to_be_written();
    let Ok(facts) = header.read(memory.len() as u64) else { return (false, 0) };
    let _ = facts.check_machine(Machine { boot: [1, 2], pid_namespace: 3 });
    let directory =
        Directory::new(memory, &facts.geometry).expect("a header that is accepted fits its memory");
    let mut found = 0;
    let opened = NAMES.into_iter().map(|name| directory.open(name, &spec(8)));
    let numbered = (0..10).map(|index| directory.at(index, &spec(8)));
    let created = [directory.create(memory, "four", &spec(64), |memory, offset| {
        memory.place::<AtomicU64>(offset).expect("a new object lies inside").store(1, Ordering::Relaxed);
    })];
    let listed = directory.list().into_iter().map(|info| info.object);
    for object in opened.chain(numbered).chain(created).flatten().chain(listed) {
        let end = object.offset.checked_add(object.bytes).expect("no overflow");
        assert!(facts.geometry.objects_at <= object.offset && end <= memory.len() as u64, "{object:?}");
        let end = object.windows_at.checked_add(object.windows).expect("no overflow");
        assert!(object.windows == 0 || facts.geometry.windows_at <= object.windows_at, "{object:?}");
        assert!(end <= memory.len() as u64, "{object:?}");
        found += 1;
    }
    assert!(directory.used() <= memory.len() as u64);
    (true, found)
}

#[test]
fn no_corruption_of_header_or_directory_leads_outside() {
    let mut random = Random::new();
    let total = facts().geometry.total;
    let tables = facts().geometry.objects_at;
    let memory = Mapping::heap(total as usize);
    let words: Vec<_> = (0..total / 8).map(|i| memory.place::<AtomicU64>(i * 8).expect("inside")).collect();
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        fill(&memory);
        let word_at = |random: &mut Random| match random.below(3) {
            0 => random.below(32), // the header's fields
            1 => PAGE as u64 / 8 + 32 + random.below(8 * 64) / 64 * 64 + random.below(8), // fields of entries
            _ => random.below(tables / 8),
        };
        for _ in 0..=random.below(4) {
            let at = word_at(&mut random);
            let word = &words[at as usize];
            let old = word.load(Ordering::Relaxed);
            let new = match random.below(8) {
                0 => 0,
                1 => u64::MAX,
                2 => old ^ 1 << random.below(64),
                3 => old.wrapping_add(random.below(3)).wrapping_sub(1),
                4 => total.wrapping_add(random.below(129)).wrapping_sub(64),
                5 => 1 << random.below(64),
                6 => words[word_at(&mut random) as usize].load(Ordering::Relaxed),
                _ => random.next(),
            };
            word.store(new, Ordering::Relaxed);
        }
        let (ok, _) = use_all(&memory);
        *(if ok { &mut accepted } else { &mut refused }) += 1;
    }
    println!("{accepted} headers accepted, {refused} refused");
    assert!(accepted > 0 && refused > 0, "both ways must occur, or nothing was tested");
}

#[test]
fn random_bytes_are_refused() {
    let mut random = Random::new();
    let memory = Mapping::heap(facts().geometry.total as usize);
    for _ in 0..if cfg!(miri) { 3 } else { 300 } {
        for at in 0..memory.len() as u64 / 8 {
            memory.place::<AtomicU64>(at * 8).expect("inside").store(random.next(), Ordering::Relaxed);
        }
        assert_eq!(use_all(&memory), (false, 0));
    }
}

#[test]
fn a_peer_that_scribbles_while_we_look_does_no_more() {
    let total = facts().geometry.total;
    let memory = Mapping::heap(total as usize);
    fill(&memory);
    let seed = Random::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = seed;
            let tables = facts().geometry.objects_at;
            while !stop.load(Ordering::Relaxed) {
                // Mostly the directory: a header that stays broken would end every round early.
                let at = if random.below(8) == 0 { random.below(32) } else { random.below(tables / 8) } * 8;
                let word = memory.place::<AtomicU64>(at).expect("inside");
                let old = word.swap(random.next() >> random.below(64), Ordering::Relaxed);
                std::hint::spin_loop();
                word.store(old, Ordering::Relaxed);
                // Entries that were made during the storm are taken away, so that it never fills up.
                if let Ok(state) = memory.place::<AtomicU32>(PAGE as u64 + 512 + 3 * 512) {
                    state.store(0, Ordering::Relaxed);
                }
            }
        });
        let until = Instant::now() + if cfg!(miri) { Duration::ZERO } else { Duration::from_millis(500) };
        let (mut rounds, mut found) = (0_u64, 0);
        while rounds < 3 || Instant::now() < until {
            found += use_all(&memory).1;
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
        println!("{rounds} rounds, {found} objects found");
    });
}

#[test]
fn what_a_killed_creator_left_is_not_seen() {
    let memory = Mapping::heap(facts().geometry.total as usize);
    fill(&memory);
    let directory = Directory::new(&memory, &facts().geometry).expect("it fits");
    let used = directory.used();
    let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = directory.create(&memory, "four", &spec(512), |memory, offset| {
            let word = memory.place::<AtomicU64>(offset).expect("inside");
            word.store(u64::MAX, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("killed while initializing"));
        });
    }));
    assert!(killed.is_err());
    assert_eq!((directory.list().len(), directory.used()), (3, used));
    let next = directory.create(&memory, "five", &spec(1024), |memory, offset| {
        let words = memory.place_slice::<AtomicU64>(crate::Span { offset, count: 128 }).expect("inside");
        assert!(words.iter().all(|w| w.load(Ordering::Relaxed) == 0), "an object begins as zeros");
    });
    assert_eq!(next.map(|object| object.index).ok(), Some(3), "the entry is used again");
}
