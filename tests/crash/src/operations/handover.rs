//! Handles in messages of a pipe: whoever is killed, none stays open that nobody has, and none comes with another message.
//!
//! They travel by a socket, which is no memory that could be put back: these operations are killed for real only, each in a pipe of its
//! own. Whether a descriptor is open anywhere, in a process or on its way, is told by a lock on its file (`flock`), which lasts as long as that.

use std::cell::RefCell;
use std::fs::File;
use std::mem::forget;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use crossproc_primitives::PipeOptions;
use crossproc_primitives::pipe::{Receiver, RecvError, Sender};
use crossproc_segment::handover::{Handed, pack, unpack};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FlockOperation, MemfdFlags, flock, fstat, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;

use crate::scene::{
    After, Found, Operation, PATIENCE, Stage, corrupt, done, duplicated, expect, lost, taken, wedged,
};
use crate::step::{Memory, marked};

/// Its number, its handles, and bytes that make it long.
type Mail = (u8, Vec<Handed<OwnedFd>>, Vec<u8>);
type Ends = (Receiver<Mail>, Sender<Mail>);

const RING: usize = 2048;
/// A message with so many bytes more goes in parts.
const LONG: usize = 1200;
/// More than a packet takes.
const MANY: usize = 256;
/// What the victim sends, or receives; what comes behind that; the marker.
const NEW: u8 = 50;
const NEXT: u8 = 51;
const MARK: u8 = 90;

/// Files of which it can be told whether a descriptor is open: the first and the last one of a message.
struct Witnesses([OwnedFd; 2]);

impl Witnesses {
    fn new() -> Self {
        Self([0, 1].map(|_| memfd_create("witness", MemfdFlags::CLOEXEC).expect("a file")))
    }

    /// Another open file, so that a lock is of its own.
    fn open(file: &OwnedFd) -> OwnedFd {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::options().read(true).write(true).open(path).expect("it is there").into()
    }

    /// Opens them and locks them; between them are descriptors of no interest, so that there are `count`.
    fn handles(&self, count: usize) -> Vec<Handed<OwnedFd>> {
        let [first, last] = [0, 1].map(|at| {
            let file = Self::open(&self.0[at]);
            flock(&file, FlockOperation::NonBlockingLockExclusive).expect("nobody has it open");
            Handed(file)
        });
        let between = (2..count).map(|_| Handed(any()));
        [first].into_iter().chain(between).chain([last]).collect()
    }

    fn are_closed(&self) -> bool {
        let is_closed = |file| flock(Self::open(file), FlockOperation::NonBlockingLockExclusive).is_ok();
        self.0.iter().all(is_closed)
    }

    fn are_these(&self, handles: &[Handed<OwnedFd>], count: usize) -> bool {
        let inode = |fd: &OwnedFd| fstat(fd).map(|stat| stat.st_ino).ok();
        let ends = [handles.first(), handles.last()];
        let same = |(one, file): (&Option<&Handed<OwnedFd>>, &OwnedFd)| {
            one.is_some_and(|Handed(one)| inode(one) == inode(file))
        };
        handles.len() == count && ends.iter().zip(&self.0).all(same)
    }
}

/// A descriptor.
fn any() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("a descriptor")
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A pipe, as the harness has it and hands it to the processes that it forks.
struct Post {
    ends: Ends,
    text: String,
    handed: Vec<OwnedFd>,
}

impl Post {
    fn new() -> Self {
        let ends = PipeOptions::new().capacity(RING).simplex().expect("a pipe");
        let pack_them = || pack(|| serde_json::to_string(&ends).expect("they can be sent"));
        // Each process that opens them gives one back.
        (0..8).for_each(|_| drop(pack_them()));
        let (text, handed) = pack_them();
        Self { ends, text, handed }
    }

    /// In a forked child: handles of its own.
    fn open(&self) -> Ends {
        let again = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd.as_fd(), 3).expect("a descriptor");
        let handed = self.handed.iter().map(again).collect();
        unpack(handed, || serde_json::from_str(&self.text).expect("they can be received"))
    }
}

/// What there is of a message, and what the victim does.
#[derive(Clone, Copy)]
struct Parts {
    /// How many handles it has.
    count: usize,
    /// How many bytes more.
    bytes: usize,
    victim: Victim,
}

#[derive(Clone, Copy)]
enum Victim {
    Sends(fn(&Sender<Mail>, &Mail)),
    Receives(fn(&mut Receiver<Mail>)),
}

struct Handover {
    parts: Parts,
    witnesses: Witnesses,
    post: RefCell<Rc<Post>>,
}

impl Handover {
    fn new(parts: Parts) -> Self {
        let stage = Self { parts, witnesses: Witnesses::new(), post: RefCell::new(Rc::new(Post::new())) };
        stage.prepare();
        stage
    }

    fn mail(&self, number: u8) -> Mail {
        (number, self.witnesses.handles(self.parts.count), vec![number; self.parts.bytes])
    }

    /// What is there at first.
    fn prepare(&self) {
        if matches!(self.parts.victim, Victim::Receives(_)) {
            let sender = &self.post.borrow().ends.1;
            sender.send_timeout(&self.mail(NEW), PATIENCE).expect("there is room");
            sender.send_timeout(&(NEXT, vec![Handed(any())], vec![]), PATIENCE).expect("there is room");
        }
    }

    /// Receives all up to the marker.
    fn look(&self, after: After, (receiver, sender): &Ends) -> Found {
        let receives = matches!(self.parts.victim, Victim::Receives(_));
        let mark = (MARK, vec![Handed(any())], vec![]);
        sender
            .send_timeout(&mark, PATIENCE)
            .or_else(|error| wedged(format!("sending the marker: {error}")))?;
        let (mut came, mut gone) = (Vec::new(), 0);
        loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok((MARK, handles, _)) => {
                    expect(handles.len() == 1, || format!("{} handles of the marker", handles.len()))?;
                    break;
                }
                Ok((number, handles, bytes)) => {
                    let whole = match number {
                        NEW => {
                            self.witnesses.are_these(&handles, self.parts.count)
                                && bytes == vec![NEW; self.parts.bytes]
                        }
                        NEXT => handles.len() == 1 && bytes.is_empty(),
                        _ => false,
                    };
                    expect(whole, || format!("{number} with {} handles", handles.len()))?;
                    came.push(number);
                }
                Err(RecvError::HandlesLost) => gone += 1,
                Err(error) => return wedged(format!("receiving: {error}")),
            }
        }
        let first = came.first() == Some(&NEW);
        if came.iter().filter(|&&number| number == NEW).count() > usize::from(first) {
            return corrupt(format!("{came:?}"));
        }
        let rest = &came[usize::from(first)..];
        expect(rest == [NEXT].get(..usize::from(receives)).unwrap_or_default(), || format!("{came:?} came"))?;
        match (receives, first) {
            (false, _) if gone > 0 => lost("the handles of a message that nobody received"),
            (false, true) if !after.begun => duplicated("it came, and was not sent"),
            (false, false) if after.returned => lost("it was sent, and does not come"),
            (false, _) => Ok(()),
            (true, true) if after.returned => duplicated("it was received, and comes again"),
            (true, true) if gone > 0 => lost("the handles of another message"),
            (true, true) => Ok(()),
            (true, false) if !after.begun => lost("nobody received it, and it does not come"),
            // Of the message that the dead one was receiving.
            (true, false) if gone > usize::from(!after.returned) => {
                lost(format!("handles of {gone} messages"))
            }
            (true, false) if after.returned => Ok(()),
            (true, false) => taken("the message that it was receiving"),
        }
    }
}

impl Stage for Handover {
    fn memory(&self) -> Option<Memory> {
        None
    }
    fn reset(&mut self) {
        *self.post.borrow_mut() = Rc::new(Post::new());
        self.prepare();
    }
    fn victim(&self) {
        let (mut receiver, sender) = self.post.borrow().open();
        match self.parts.victim {
            Victim::Sends(send) => {
                let mail = self.mail(NEW);
                send(&sender, &mail);
                forget(mail);
            }
            Victim::Receives(receive) => receive(&mut receiver),
        }
        forget((receiver, sender));
    }
    fn recover(&self) {}
    fn check(&self, after: After) -> Found {
        let post = Rc::clone(&self.post.borrow());
        // What a process opens once is open from now on.
        drop(post.open());
        let before = descriptors();
        let ends = post.open();
        let found = self.look(after, &ends);
        // With both ends of the socket open: it is not that which closes them.
        let closed = self.witnesses.are_closed();
        drop(ends);
        let now = descriptors();
        match found {
            Err(bad) if bad.verdict != crate::step::Verdict::Taken => return Err(bad),
            _ => {}
        }
        expect(closed, || "a descriptor stays open that nobody has".to_owned())?;
        expect(now == before, || format!("{now} descriptors, and {before} before"))?;
        found
    }
}

pub fn add(table: &mut Vec<Operation>) {
    let send: Victim = Victim::Sends(|sender, mail| done(marked(|| sender.send(mail))));
    let try_send: Victim = Victim::Sends(|sender, mail| done(marked(|| sender.try_send(mail))));
    let recv = Victim::Receives(|receiver| forget(marked(|| receiver.recv())));
    let cases: [(&str, &str, usize, usize, Victim); 10] = [
        ("Sender::try_send", "a handle", 2, 0, try_send),
        ("Sender::send", "a handle, in parts", 2, LONG, send),
        ("Sender::send", "more handles than go in a packet", MANY, 0, send),
        ("Receiver::recv", "a handle", 2, 0, recv),
        ("Receiver::recv", "a handle, in parts", 2, LONG, recv),
        ("Receiver::recv", "more handles than go in a packet", MANY, 0, recv),
        (
            "Receiver::recv_bytes",
            "a handle",
            2,
            0,
            Victim::Receives(|receiver| done(marked(|| receiver.recv_bytes()))),
        ),
        (
            "Receiver::recv_bytes_into",
            "a handle, in parts",
            2,
            LONG,
            Victim::Receives(|receiver| done(marked(|| receiver.recv_bytes_into(&mut [0; RING])))),
        ),
        (
            "Receiver::discard",
            "a handle, in parts",
            2,
            LONG,
            Victim::Receives(|receiver| done(marked(|| receiver.discard()))),
        ),
        (
            "Peeked::release",
            "a handle",
            2,
            0,
            Victim::Receives(|receiver| marked(|| receiver.peek().expect("a message").release())),
        ),
    ];
    for (name, state, count, bytes, victim) in cases {
        let parts = Parts { count, bytes, victim };
        let minor = count == MANY || name.contains("bytes");
        table.push(Operation::new(name, state, move || Handover::new(parts)).minor(minor));
    }
}
