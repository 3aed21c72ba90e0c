//! Every public operation of the library that changes shared memory is in the table.
#![forbid(unsafe_code)]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crossproc_crash::{operations, toys};

/// Public functions that change nothing in shared memory: they look, or convert what is private.
const LOOK_ONLY: &[&str] = &[
    "Array::len",
    "Barrier::audit",
    "Barrier::is_broken",
    "Barrier::parties",
    "Barrier::waiting",
    "BinarySemaphore::audit",
    "BinarySemaphore::holder",
    "BinarySemaphore::is_taken",
    "BoundedSemaphore::bound",
    "Condvar::audit",
    "CondvarError::into_guard",
    "Event::audit",
    "Event::is_set",
    "Lock::holder",
    "Lock::is_locked",
    "Lock::is_mine",
    "LockError::into_guard",
    "LockError::repair",
    "Mutex::holder",
    "Mutex::is_locked",
    "Once::audit",
    "Once::is_completed",
    "OnceState::previous_died",
    "OnceState::previous_panicked",
    "RLock::is_locked",
    "RLock::is_mine",
    "RawArray::get",
    "RawArray::iter",
    "RawArray::len",
    "RawArray::to_vec",
    "RawValue::get",
    "RwLock::audit",
    "RwLock::readers",
    "RwLock::writer",
    "Semaphore::audit",
    "BoundedSemaphore::audit",
    "Value::get",
    "ValueGuard::get",
    "Consumer::audit",
    "Consumer::capacity",
    "Consumer::is_closed",
    "Consumer::is_empty",
    "Consumer::is_full",
    "Consumer::len",
    "Consumer::peer",
    "Producer::audit",
    "Producer::capacity",
    "Producer::is_closed",
    "Producer::is_empty",
    "Producer::is_full",
    "Producer::len",
    "Producer::peer",
    "Consumer::redelivered",
    "PushError::into_inner",
    "Queue::audit",
    "Queue::capacity",
    "Queue::hands",
    "Queue::is_closed",
    "Queue::is_empty",
    "Queue::is_full",
    "Queue::lanes",
    "Queue::len",
    "Queue::share",
    "QueueOptions::hands",
    "QueueOptions::lanes",
    "SendError::into_inner",
    "SendError::map",
    "Message::deliveries",
    "Message::is_redelivered",
    "BytesQueue::audit",
    "BytesQueue::capacity",
    "BytesQueue::hands",
    "BytesQueue::inline",
    "BytesQueue::is_closed",
    "BytesQueue::is_empty",
    "BytesQueue::is_full",
    "BytesQueue::lanes",
    "BytesQueue::len",
    "BytesQueue::message_max",
    "BytesQueueOptions::hands",
    "BytesQueueOptions::inline",
    "BytesQueueOptions::kept",
    "BytesQueueOptions::lanes",
    "BytesQueueOptions::message_max",
    "BytesQueueOptions::windows",
    "BytesMessage::deliveries",
    "BytesMessage::is_redelivered",
    "JoinableQueue::audit",
    "JoinableQueue::capacity",
    "JoinableQueue::is_closed",
    "JoinableQueue::is_empty",
    "JoinableQueue::is_full",
    "JoinableQueue::len",
    "Task::deliveries",
    "ObjectQueue::audit",
    "ObjectQueue::capacity",
    "ObjectQueue::hands",
    "ObjectQueue::is_closed",
    "ObjectQueue::is_empty",
    "ObjectQueue::is_full",
    "ObjectQueue::lanes",
    "ObjectQueue::len",
    "ObjectQueue::message_max",
    "ObjectQueue::share",
    "ObjectMessage::deliveries",
    "ObjectMessage::is_redelivered",
    "Connection::at_once_max",
    "Connection::audit",
    "Connection::halves",
    "Connection::is_closed",
    "Connection::of",
    "Connection::set_nonblocking",
    "Connection::split",
    "PipeOptions::capacity",
    "PipeOptions::message_max",
    "Receiver::audit",
    "Receiver::is_closed",
    "Receiver::set_nonblocking",
    "Sender::at_once_max",
    "Sender::audit",
    "Sender::capacity",
    "Sender::is_closed",
    "Sender::message_max",
    "Sender::set_nonblocking",
    "Call::audit",
    "Request::is_redelivered",
];

/// Reading the state of permits brings those of the dead back, as the next acquire does: the survivors of all operations on
/// semaphores begin with it.
const IN_EVERY_CHECK: &[&str] =
    &["BoundedSemaphore::available", "BoundedSemaphore::held", "Semaphore::available", "Semaphore::held"];

/// Constructors make an anonymous segment with one object in it: `Segment::anonymous` and `Objects::value`.
const CONSTRUCTORS: [&str; 2] = ["new", "from_slice"];

/// Types whose functions a macro writes, and that macro.
const BY_MACRO: [(&str, &[&str]); 6] = [
    (
        "descriptors",
        &["Queue", "JoinableQueue", "BytesQueue", "ObjectQueue", "SharedQueue", "SharedObjectQueue"],
    ),
    ("sinks", &["Queue", "ObjectQueue", "Producer"]),
    ("streams", &["Queue", "BytesQueue", "ObjectQueue", "Consumer"]),
    ("counting", &["Semaphore", "BoundedSemaphore"]),
    ("both_ends", &["Producer", "Consumer"]),
    ("shared_methods", &["SharedQueue", "SharedObjectQueue"]),
];

/// What a task does to shared memory is what the blocking form does: it makes the same attempts, and announces itself at the same event
/// count in between.
fn is_of_a_task(name: &str, covered: &BTreeSet<&str>) -> bool {
    let function = name.rsplit("::").next().unwrap_or_default();
    let tasks = ["into_async", "into_sink", "into_stream", "readable", "sink", "stream", "writable"];
    name.strip_suffix("_async").is_some_and(|blocking| covered.contains(blocking))
        || tasks.contains(&function)
        || name.starts_with("Readiness::")
}

/// `Type::function` for each `pub fn` in an `impl` block at the left margin, or in one inside of a macro.
fn public_functions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut types, mut macro_types): (Vec<String>, Option<&[&str]>) = (Vec::new(), None);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("macro_rules! ") {
            let name = name.split_whitespace().next().unwrap_or_default();
            macro_types = BY_MACRO.iter().find(|(known, _)| *known == name).map(|(_, types)| *types);
        } else if line == "}" {
            (types, macro_types) = (Vec::new(), None);
        }
        let code = line.trim_start();
        if let Some(rest) = code.strip_prefix("impl") {
            let named = type_of(rest);
            types = match (named.as_str(), macro_types) {
                (name, Some(those)) if name.starts_with('$') => {
                    those.iter().map(|name| (*name).to_owned()).collect()
                }
                _ => vec![named],
            };
        }
        if let Some(rest) = code.strip_prefix("pub fn ") {
            let function = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            found.extend(types.iter().map(|name| format!("{name}::{function}")));
        }
    }
    found
}

/// The type that an `impl` is for, without its parameters: what follows `for`, or the generic parameters.
fn type_of(rest: &str) -> String {
    let mut depth = 0_i32;
    let mut flat = String::new();
    for c in rest.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            c if depth == 0 => flat.push(c),
            _ => {}
        }
    }
    let of = flat.rsplit(" for ").next().unwrap_or_default();
    of.trim().split([' ', '{']).next().unwrap_or_default().to_owned()
}

#[test]
fn every_public_operation_is_in_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/primitives/src");
    let mut functions = BTreeSet::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the library's sources").map(Result::unwrap) {
            if entry.path().is_dir() {
                // Strangers meet over sockets, by system calls: `tests/it/listener.rs` kills at each of those.
                if entry.file_name() != "listener" {
                    folders.push(entry.path());
                }
                continue;
            }
            let text = fs::read_to_string(entry.path()).expect("a source file");
            functions.extend(public_functions(&text));
        }
    }
    assert!(functions.len() > 100, "only {} public functions were found", functions.len());

    let table = operations::all();
    let covered: BTreeSet<&str> = table
        .iter()
        .flat_map(|operation| std::iter::once(operation.name).chain(operation.covers.iter().copied()))
        .collect();
    let is_constructor = |name: &str| CONSTRUCTORS.iter().any(|last| name.ends_with(&format!("::{last}")));
    let others: BTreeSet<&str> = LOOK_ONLY.iter().chain(IN_EVERY_CHECK).copied().collect();
    let missing: Vec<_> = functions
        .iter()
        .filter(|name| !covered.contains(name.as_str()) && !others.contains(name.as_str()))
        .filter(|name| !is_constructor(name) && !name.ends_with("::segment"))
        .filter(|name| !is_of_a_task(name, &covered))
        .collect();
    assert!(
        missing.is_empty(),
        "not in the table of operations, and not known to change nothing: {missing:#?}"
    );

    let gone: Vec<_> = others.iter().filter(|name| !functions.contains(**name)).collect();
    assert!(gone.is_empty(), "there are no such functions any more: {gone:#?}");
    let both: Vec<_> = others.intersection(&covered).collect();
    assert!(both.is_empty(), "in the table, so they change something: {both:#?}");
}

#[test]
fn no_title_is_there_twice() {
    let table = operations::all().into_iter().chain(toys::all());
    let mut titles = BTreeSet::new();
    for operation in table {
        assert!(titles.insert(operation.title()), "{} is there twice", operation.title());
    }
}

#[test]
fn functions_are_found_in_sources() {
    let text = "
impl<T: Plain> Value<T> {
    pub fn set(&self) {}
    pub(crate) fn hidden(&self) {}
}
impl<G: Guard> LockError<G> {
    pub fn repair(self, f: impl FnOnce(&mut G)) -> Result<G, Self> {}
}
impl<'a, T: Plain + AnyBitPattern> RwLockWriteGuard<'a, T> {
    pub fn downgrade(self) {}
}
macro_rules! counting {
    ($name:ident) => {
        impl $name {
            pub fn release(&self) {}
        }
    };
}
impl BoundedSemaphore {
    pub fn bound(&self) {}
}
";
    let found = public_functions(text);
    let should = [
        "Value::set",
        "LockError::repair",
        "RwLockWriteGuard::downgrade",
        "Semaphore::release",
        "BoundedSemaphore::release",
        "BoundedSemaphore::bound",
    ];
    assert_eq!(found, should);
}
