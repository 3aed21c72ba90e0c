//! The threads that sleep for this process's tasks and descriptors.
//!
//! ```text
//!  groups    one for each event count that anybody waits at: whom to tell, the ticket, when to look anyhow
//!  threads   each sleeps, in one futex_waitv, on its control word, the event counts of its groups, and on the comings and the
//!            tokens of their segments' participants
//! ```
//!
//! To wait is to be *armed*: an entry in the group of an event count. Whoever arms looks once more afterwards, as every sleeper does.
//! An entry is gone when it has been *told*, or disarmed. A thread that wakes, by a notification, by a death or at the end of a slice
//! (50 ms to 1 s, as in `wait.rs` of `crossproc-sync`), announces itself anew, looks whether what the entries wait for is ready, and
//! tells them. With nothing armed it sleeps on its control word alone.
//!
//! A notification that is meant for one wakes this process, or another one that would have taken the message. So that none is
//! lost, whatever is dropped in between:
//!
//! 1. of the tasks in a group, a notification tells one (all, if it was for all; a death or the end of a slice: all that are ready);
//! 2. a task that was told and is dropped before it looked passes the notification on;
//! 3. a task that was told, took something and leaves something passes it on;
//! 4. a notification that finds nobody here who could be told is passed on;
//! 5. descriptors that are told take nothing: it is passed on, unless a task was told as well.
//!
//! To pass on is to notify once more, for one. Who is passed a notification and finds nothing has looked in vain once.
//!
//! What a thread sleeps on stays mapped while it sleeps; but only who is armed keeps the process attached to a segment. A look at an
//! object happens under the lock, so after `disarm` has returned nobody else looks, and nobody else keeps it attached. The price: while
//! a look takes long, because there is much to recover from, or because a large ring was written over and is walked to the end, tasks
//! of this process that wait for other things wait for that look before they can be armed or disarmed.
//!
//! What runs of others' code (a waker that is cloned, woken or dropped) runs without the lock: it may take locks of its own, under
//! which others arm and disarm.
//!
//! Fork: the child has no such thread, and a list of its own (`PerProcess`). Exit: nobody waits for the threads.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::{swap, take};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use crossproc_atomic::{
    AtomicU32, Deadline, EventCount, Linux, Ordering, Platform, Ticket, WATCHED_WORDS, fence,
};
use crossproc_segment::{Peers, PerProcess, Placed, start_quiet_thread};

use super::{Source, Wakes};

const SLICE_MIN: Duration = Duration::from_millis(50);
const SLICE_MAX: Duration = Duration::from_secs(1);
/// Groups that a thread has at the most: each takes a word, its segment another one, and there are the tokens of the peers.
const GROUPS_MAX: usize = 40;
/// Wakers run on it.
const STACK: usize = 512 << 10;

/// Whom to tell.
pub(super) enum Listener {
    Task(Waker),
    /// An eventfd.
    Descriptor(Arc<OwnedFd>),
}

/// An entry in the list, or one that was there.
#[derive(Clone, Copy)]
pub(super) struct Key {
    /// The address of the event count.
    group: usize,
    entry: u64,
}

static LIST: PerProcess<Mutex<List>> = PerProcess::new();

#[derive(Default)]
struct List {
    /// By the address of the event count.
    groups: BTreeMap<usize, Group>,
    threads: Vec<Watcher>,
    /// Groups and entries there have been.
    numbers: u64,
}

struct Watcher {
    /// Changed when the thread is to look at the list.
    control: Arc<AtomicU32>,
    groups: usize,
}

struct Group {
    number: u64,
    thread: usize,
    event: Placed<EventCount>,
    wakes: Wakes,
    ticket: Ticket,
    /// Oldest first.
    entries: Vec<Entry>,
    slice: Duration,
    /// `None`: the thread has not looked yet.
    due: Option<Deadline>,
}

struct Entry {
    number: u64,
    source: Arc<Source>,
    listener: Listener,
}

fn list() -> MutexGuard<'static, List> {
    LIST.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody looks while this is held.
#[cfg(test)]
pub(super) fn hold() -> impl Drop {
    list()
}

/// True if a thread has looked there, and sleeps there next.
#[cfg(test)]
pub(super) fn sleeps_at(event: &EventCount) -> bool {
    list().groups.get(&address(event)).is_some_and(|group| group.due.is_some())
}

fn address(event: &EventCount) -> usize {
    std::ptr::from_ref(event).addr()
}

/// From now on a change at the source's event count is told to the listener, once. What changed before is not: look after this.
///
/// # Errors
///
/// If there is no thread to sleep, and none can be started.
pub(super) fn arm(source: &Arc<Source>, listener: Listener) -> io::Result<Key> {
    let at = address(&source.event);
    // Before the lock: if there is no thread, it is dropped after it, and a waker with it.
    let mut entry = Entry { number: 0, source: Arc::clone(source), listener };
    let mut list = list();
    list.numbers += 1;
    let number = list.numbers;
    entry.number = number;
    if let Some(group) = list.groups.get_mut(&at) {
        group.entries.push(entry);
    } else {
        let thread = list.thread()?;
        let ticket = source.event.listen();
        let group = Group {
            number,
            thread,
            event: source.event.clone(),
            wakes: source.wakes,
            ticket,
            entries: vec![entry],
            slice: SLICE_MIN,
            due: None,
        };
        list.groups.insert(at, group);
        list.threads[thread].groups += 1;
        let control = list.threads[thread].alarm();
        drop(list);
        Linux.wake(&control, 1);
    }
    // Behind an announcement that another thread may have made.
    fence(Ordering::SeqCst);
    Ok(Key { group: at, entry: number })
}

/// Says whom to wake instead. False: the last one was told.
pub(super) fn renew(key: &Key, waker: &Waker) -> bool {
    match list().waker(key).map(|old| old.will_wake(waker)) {
        Some(false) => {}
        Some(true) => return true,
        None => return false,
    }
    let mut new = waker.clone();
    let is_there = list().waker(key).map(|old| swap(old, &mut new)).is_some();
    // The old one: that can drop a task, and with it futures that are armed.
    drop(new);
    is_there
}

/// False: it was told.
pub(super) fn is_armed(key: &Key) -> bool {
    let list = list();
    let group = list.groups.get(&key.group);
    group.is_some_and(|group| group.entries.iter().any(|entry| entry.number == key.entry))
}

/// The listener is told nothing from now on. False: it was told.
pub(super) fn disarm(key: &Key) -> bool {
    let mut list = list();
    let Some(group) = list.groups.get_mut(&key.group) else { return false };
    let Some(at) = group.entries.iter().position(|entry| entry.number == key.entry) else { return false };
    let entry = group.entries.remove(at);
    let control = if group.entries.is_empty() { list.forget(key.group) } else { None };
    drop(list);
    drop(entry);
    if let Some(control) = control {
        Linux.wake(&control, 1);
    }
    true
}

impl Watcher {
    /// The word at which the thread is to be woken then.
    fn alarm(&self) -> Arc<AtomicU32> {
        self.control.fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.control)
    }
}

impl List {
    /// The waker of a task that is armed.
    fn waker(&mut self, key: &Key) -> Option<&mut Waker> {
        let entries = &mut self.groups.get_mut(&key.group)?.entries;
        match &mut entries.iter_mut().find(|entry| entry.number == key.entry)?.listener {
            Listener::Task(waker) => Some(waker),
            Listener::Descriptor(_) => None,
        }
    }

    /// A thread that can take another group.
    fn thread(&mut self) -> io::Result<usize> {
        if let Some(found) = self.threads.iter().position(|thread| thread.groups < GROUPS_MAX) {
            return Ok(found);
        }
        let (number, control) = (self.threads.len(), Arc::new(AtomicU32::new(0)));
        let its = Arc::clone(&control);
        start_quiet_thread("crossproc-watch", STACK, move || watch(number, &its))?;
        self.threads.push(Watcher { control, groups: 0 });
        Ok(number)
    }

    /// Takes away a group in which nobody is left. Its thread still sleeps there: it is to be woken.
    fn forget(&mut self, at: usize) -> Option<Arc<AtomicU32>> {
        let group = self.groups.remove(&at)?;
        let thread = &mut self.threads[group.thread];
        thread.groups -= 1;
        Some(thread.alarm())
    }
}

/// What a thread has slept at.
struct Slept {
    at: usize,
    group: u64,
    event: Placed<EventCount>,
    ticket: Ticket,
}

fn watch(thread: usize, control: &AtomicU32) {
    let mut slept: Vec<Slept> = Vec::new();
    // By the address of the segment's memory.
    let mut segments: BTreeMap<usize, Peers> = BTreeMap::new();
    loop {
        let seen = control.load(Ordering::Acquire);
        let mut wakers = Vec::new();
        let until = list().round(thread, &mut slept, &mut segments, &mut wakers);
        for waker in wakers {
            // A waker that panics must not take the thread away from the others.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
        let words = slept.iter().map(|slept| slept.event.word(slept.ticket)).collect();
        sleep(control, seen, words, &segments, until);
    }
}

/// How many words [`sleep`] can watch beside its first one; what is more is looked at every 50 ms.
pub(super) const WORDS_MAX: usize = WATCHED_WORDS;

/// Sleeps on a word, on others, and on whatever tells of changes among peers.
pub(super) fn sleep<'a>(
    word: &AtomicU32,
    seen: u32,
    mut words: Vec<(&'a AtomicU32, u32)>,
    segments: &'a BTreeMap<usize, Peers>,
    until: Option<Deadline>,
) {
    words.extend(words_of(segments));
    let slice = segments.values().filter_map(Peers::slice).min();
    let slice = slice.map(|slice| Linux.now().saturating_add(slice));
    let until = until.map_or(slice, |until| Some(slice.map_or(until, |slice| slice.min(until))));
    Linux.wait(word, seen, &words, until);
}

/// The words of peers; those that are least needed come last.
pub(super) fn words_of(segments: &BTreeMap<usize, Peers>) -> Vec<(&AtomicU32, u32)> {
    let (mut words, mut tokens, mut lives) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (life, word, seen) in segments.values().flat_map(Peers::words) {
        match life {
            None => words.push((word, seen)),
            // One token of each process is enough.
            Some(life) if lives.insert(life) => tokens.push((word, seen)),
            Some(_) => {}
        }
    }
    words.append(&mut tokens);
    words
}

impl List {
    /// What a thread does each time it wakes. Says what it is to sleep at, and until when.
    fn round(
        &mut self,
        thread: usize,
        slept: &mut Vec<Slept>,
        segments: &mut BTreeMap<usize, Peers>,
        wakers: &mut Vec<Waker>,
    ) -> Option<Deadline> {
        let is_here = |group: &Group| group.thread == thread;
        for slept in slept.drain(..) {
            let is_gone = self.groups.get(&slept.at).is_none_or(|group| group.number != slept.group);
            // Rule 4. (Perhaps nobody was woken for it; that can not be told.)
            if is_gone && slept.event.is_notified(slept.ticket) {
                slept.event.notify_some(&Linux, 1);
            }
        }
        // Who is there is looked at before the objects: whoever dies after that, changes a word that is slept on.
        let now = Linux.now();
        let mut changed = BTreeSet::new();
        let mut kept: BTreeMap<usize, Peers> = BTreeMap::new();
        for group in self.groups.values().filter(|group| is_here(group)) {
            let Some(live) = group.entries.first().and_then(|entry| entry.source.live()) else { continue };
            let key = group.event.mapping().base().addr();
            let peers = kept.entry(key).or_insert_with(|| match segments.remove(&key) {
                Some(mut peers) => {
                    if peers.has_changed() && peers.look() {
                        changed.insert(key);
                    }
                    peers
                }
                None => live.peers(),
            });
            if group.due.is_some_and(|due| now >= due) {
                // Nobody has told us anything: perhaps the kernel has missed a death.
                peers.suspect_all();
                if peers.look() {
                    changed.insert(key);
                }
            }
        }
        *segments = kept;

        let mut empty = Vec::new();
        for (at, group) in self.groups.iter_mut().filter(|(_, group)| is_here(group)) {
            let is_notified = group.event.is_notified(group.ticket);
            let is_changed = changed.contains(&group.event.mapping().base().addr());
            let is_due = group.due.is_none_or(|due| now >= due);
            if is_notified {
                group.ticket = group.event.listen();
                group.slice = SLICE_MIN;
            } else if is_due && group.due.is_some() {
                group.slice = (group.slice * 2).min(SLICE_MAX);
            }
            if is_notified || is_due {
                group.due = Some(now.saturating_add(group.slice));
            }
            if is_notified || is_changed || is_due {
                group.tell(is_changed || is_due && !is_notified, wakers);
            }
            if group.entries.is_empty() {
                empty.push(*at);
            } else {
                let (group, event, ticket) = (group.number, group.event.clone(), group.ticket);
                slept.push(Slept { at: *at, group, event, ticket });
            }
        }
        for at in empty {
            self.forget(at);
        }
        slept.iter().filter_map(|slept| self.groups.get(&slept.at)?.due).min()
    }
}

impl Group {
    /// Tells those whose source is ready: all of them, or as many as one notification is for.
    fn tell(&mut self, all: bool, wakers: &mut Vec<Waker>) {
        let (mut told_task, mut told_descriptor) = (false, false);
        let for_one = self.wakes == Wakes::One;
        // What only one can have is ready for all or for none.
        let mut seen = None;
        for entry in take(&mut self.entries) {
            let is_one_too_many = for_one && told_task && !all && matches!(entry.listener, Listener::Task(_));
            let is_ready = !is_one_too_many && seen.unwrap_or_else(|| entry.source.is_ready());
            seen = for_one.then_some(seen.unwrap_or(is_ready));
            match entry.listener {
                _ if !is_ready => self.entries.push(entry),
                Listener::Task(waker) => {
                    told_task = true;
                    wakers.push(waker);
                }
                Listener::Descriptor(fd) => {
                    told_descriptor = true;
                    // It fails only if it is full of tellings.
                    let _ = rustix::io::write(&*fd, &1_u64.to_ne_bytes());
                }
            }
        }
        if for_one && told_descriptor && !told_task {
            self.event.notify_some(&Linux, 1);
        }
    }
}
