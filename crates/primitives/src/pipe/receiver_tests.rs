//! What a reader does with whatever a writer has written, and what its waiters see of what it keeps. What processes do to each other
//! is in `tests/it/pipe.rs`.

use std::future::Future;
use std::io::{IoSlice, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Channel, Sender as Tell, channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::sleep;
use std::time::Duration;

use crossproc_ring::{End, FrameWriter};

use super::courier::{LABEL, PARCEL};
use super::{PipeOptions, Receiver, RecvError, Sender};
use crate::readiness::wait_any;

const HANG: Duration = Duration::from_secs(30);
const RING: usize = 4096;

fn pipe() -> (Receiver<()>, Sender<()>) {
    PipeOptions::new().capacity(RING).simplex().unwrap()
}

/// Writes chunks one by one.
struct Scribe<'a> {
    sender: &'a Sender<()>,
    writer: FrameWriter,
}

impl<'a> Scribe<'a> {
    fn new(sender: &'a Sender<()>) -> Self {
        let mut writer = FrameWriter::default();
        writer.take_turn(sender.link.ring(), sender.link.live().unwrap()).unwrap();
        Self { sender, writer }
    }

    fn whole(&mut self, tag: u8, bytes: &[u8]) {
        let ring = self.sender.link.ring();
        let room = self.writer.room(ring, bytes.len()).unwrap();
        self.sender.link.bytes.write(room, &[IoSlice::new(bytes)], 0);
        self.writer.publish(ring, room, bytes.len(), tag);
        self.sender.link.notify();
    }

    fn begin(&mut self, len: usize) -> bool {
        self.writer.begin(self.sender.link.ring(), len as u64, 0)
    }

    fn part(&mut self) {
        let ring = self.sender.link.ring();
        let room = self.writer.room_for_part(ring).unwrap();
        self.writer.publish_part(ring, room);
        self.sender.link.notify();
    }

    /// Of this message, without the first `done` bytes; true if that is the end of it.
    fn part_of(&mut self, message: &[u8], done: &mut usize) -> bool {
        let ring = self.sender.link.ring();
        let room = self.writer.room_for_part(ring).unwrap();
        self.sender.link.bytes.write(room, &[IoSlice::new(message)], *done);
        *done += room.len;
        self.writer.publish_part(ring, room)
    }

    /// All that is still to come.
    fn rest(&mut self) {
        while self.writer.is_in_frame() {
            self.part();
        }
    }

    fn abort(&mut self) {
        self.writer.abort(self.sender.link.ring());
    }
}

impl Drop for Scribe<'_> {
    fn drop(&mut self) {
        self.abort();
        self.writer.pass_turn(self.sender.link.ring());
        self.sender.link.notify();
    }
}

struct Told(Tell<()>);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

fn waker() -> (Waker, Channel<()>) {
    let (told, channel) = channel();
    (Arc::new(Told(told)).into(), channel)
}

fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

fn is_ready(receiver: &Receiver<()>) -> bool {
    !wait_any(&[receiver], Some(Duration::ZERO)).is_empty()
}

#[test]
fn a_parcel_without_its_label_is_no_longer_than_it_is() {
    let (receiver, sender) = pipe();
    for len in 5..LABEL {
        Scribe::new(&sender).whole(PARCEL, &vec![7; len]);
        assert_eq!(receiver.try_recv_bytes_max(4), Err(RecvError::TooLong { bytes: len }));
        assert_eq!(receiver.try_recv_bytes_into(&mut [0; 4]), Err(RecvError::TooLong { bytes: len }));
        assert_eq!(receiver.discard(), Ok(len));
    }
}

/// As if somebody wrote them as fast as they are taken.
fn with_many_beginnings() -> (Receiver<()>, Sender<()>) {
    let (receiver, sender) = pipe();
    let mut scribe = Scribe::new(&sender);
    while scribe.begin(100) {
        scribe.abort();
    }
    drop(scribe);
    (receiver, sender)
}

#[test]
fn parts_without_an_end_end_a_call_that_has_a_deadline() {
    let (receiver, sender) = with_many_beginnings();
    let ring = sender.link.ring();
    let mut before = ring.len();
    let mut has_come_on = |what: &str, is_in_message: bool| {
        let now = ring.len();
        assert!(now > 0 && now < before, "{what}: {now} bytes are left of {before}");
        assert_eq!(ring.turn_of(End::Reader).is_some(), is_in_message, "{what}");
        before = now;
    };
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    has_come_on("try", true); // 65 parts: the last one begins a message
    assert_eq!(receiver.recv_bytes_timeout(Duration::ZERO), Err(RecvError::TimedOut));
    has_come_on("timeout", false);
    while !ring.is_empty() {
        assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    }
    sender.send_bytes(b"whole").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"whole");
}

#[test]
fn parts_without_an_end_leave_other_tasks_their_turn() {
    let (mut receiver, sender) = with_many_beginnings();
    let (waker, told) = waker();
    let mut receiving = receiver.recv_bytes_async();
    let mut polls = 0;
    while !sender.link.ring().is_empty() {
        polls += 1;
        assert!(poll(&mut receiving, &waker).is_pending());
        if !sender.link.ring().is_empty() {
            told.try_recv().expect("it goes on");
        }
    }
    assert!(polls > 1);
    sender.send_bytes(b"whole").unwrap();
    told.recv_timeout(HANG).expect("there is a message");
    while told.try_recv().is_ok() {}
    assert_eq!(poll(&mut receiving, &waker), Poll::Ready(Ok(b"whole".to_vec())));
}

#[test]
fn the_rest_of_a_message_is_seen_by_who_waits_for_this_handle() {
    let (mut receiver, sender) = pipe();
    let readable = receiver.readable().unwrap();
    sender.send_bytes(b"message").unwrap();
    assert_eq!(receiver.read(&mut [0; 4]).unwrap(), 4);
    assert!(sender.link.ring().is_empty());
    assert!(is_ready(&receiver) && readable.arm().unwrap());
    assert!(!is_ready(&receiver.clone()), "it is this one's");
    assert_eq!(&*receiver.peek().unwrap(), b"age");
    assert!(is_ready(&receiver) && readable.is_ready());
    assert_eq!(receiver.read(&mut [0; 4]).unwrap(), 3);
    assert!(!is_ready(&receiver) && !readable.arm().unwrap());

    // One in parts that was too long for a call, and was dropped.
    let mut scribe = Scribe::new(&sender);
    assert!(scribe.begin(3000));
    scribe.part();
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    scribe.rest();
    drop(scribe);
    assert_eq!(receiver.try_recv_bytes_max(10), Err(RecvError::TooLong { bytes: 3000 }));
    assert!(is_ready(&receiver) && readable.is_ready());
    assert_eq!(receiver.discard(), Ok(3000));
    assert!(!is_ready(&receiver) && !readable.is_ready());
}

#[test]
fn while_a_reader_is_in_a_message_only_it_has_something_to_do() {
    let (first, sender) = pipe();
    let mut second = first.clone();
    let readable = [first.readable().unwrap(), second.readable().unwrap()];
    let mut scribe = Scribe::new(&sender);
    assert!(scribe.begin(3000));
    scribe.part();
    assert_eq!(first.try_recv_bytes(), Err(RecvError::Empty));
    assert_eq!([is_ready(&first), is_ready(&second)], [false, false]);
    scribe.part();
    assert_eq!([is_ready(&first), is_ready(&second)], [true, false]);
    assert_eq!(readable.each_ref().map(|it| it.arm().unwrap()), [true, false]);

    let (waker, told) = waker();
    let mut receiving = second.recv_bytes_async();
    assert!(poll(&mut receiving, &waker).is_pending());
    scribe.part();
    // A slice is 50 ms: then the watcher looks by itself.
    sleep(Duration::from_millis(80));
    assert_eq!(told.try_iter().count(), 0, "the turn is another handle's");
    scribe.rest();
    drop(scribe);
    assert_eq!(first.try_recv_bytes().unwrap().len(), 3000);
    sender.send_bytes(b"next").unwrap();
    told.recv_timeout(HANG).expect("it is its turn now");
    assert_eq!(poll(&mut receiving, &waker), Poll::Ready(Ok(b"next".to_vec())));
}

#[test]
fn the_end_is_something_to_do_for_who_can_have_the_turn() {
    let (first, sender) = pipe();
    let second = first.clone();
    let mut scribe = Scribe::new(&sender);
    assert!(scribe.begin(3000));
    scribe.part();
    assert_eq!(first.try_recv_bytes(), Err(RecvError::Empty));
    scribe.rest();
    drop(scribe);
    drop(sender);
    assert_eq!([is_ready(&first), is_ready(&second)], [true, false]);
    assert_eq!(second.try_recv_bytes(), Err(RecvError::Empty));
    assert_eq!(first.try_recv_bytes().unwrap().len(), 3000);
    assert!(is_ready(&second));
    assert_eq!(second.try_recv_bytes(), Err(RecvError::Closed));
}

#[test]
fn while_a_task_is_in_a_message_only_it_has_something_to_do() {
    let (receiver, mut sender) = pipe();
    let other = sender.clone();
    let writable = other.writable().unwrap();
    assert!(writable.is_ready());
    let message = vec![1; 3 * RING];
    let (waker, told) = waker();
    let mut sending = sender.send_bytes_async(&message);
    assert!(poll(&mut sending, &waker).is_pending());
    // What is there now; so there is room.
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    assert!(other.link.ring().is_empty() && !writable.is_ready());
    told.recv_timeout(HANG).expect("there is room for it");
    assert!(poll(&mut sending, &waker).is_pending());
    drop(sending);
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    assert!(writable.is_ready());
}

#[test]
fn what_is_passed_over_is_room_at_once() {
    let (first, sender) = pipe();
    let mut second = first.clone();
    let mut scribe = Scribe::new(&sender);
    assert!(scribe.begin(3000));
    scribe.part();
    assert_eq!(first.try_recv_bytes(), Err(RecvError::Empty));
    drop(first);
    scribe.rest();
    scribe.whole(0, b"next");
    drop(scribe);
    let writers = sender.link.ring().event(End::Writer);
    let ticket = writers.listen();
    let peeked = second.try_peek().unwrap();
    assert!(writers.is_notified(ticket), "the turn is kept, and writers are told");
    assert_eq!(&*peeked, b"next");
}

/// What has come of a message into the buffer of a call that gave up is there for the next call, of whatever kind.
#[test]
fn a_message_that_went_to_a_buffer_is_gone_on_with_elsewhere() {
    type Next = fn(&mut Receiver<()>, usize) -> Vec<u8>;
    let kinds: [Next; 4] = [
        |it, _| it.recv_bytes().unwrap(),
        |it, len| {
            let mut buffer = vec![0; len];
            assert_eq!(it.recv_bytes_into(&mut buffer), Ok(len));
            buffer
        },
        |it, _| it.peek().unwrap().to_vec(),
        |it, len| {
            let mut buffer = vec![0; len];
            it.read_exact(&mut buffer).unwrap();
            buffer
        },
    ];
    for (turn, kind) in (0_u8..).zip(kinds) {
        let (mut receiver, sender) = pipe();
        let len = RING - 500;
        let message: Vec<u8> = (0..len).map(|k| (k / 7) as u8 ^ turn).collect();
        let (mut scribe, mut done) = (Scribe::new(&sender), 0);
        assert!(scribe.begin(len));
        let mut buffer = vec![0; len + 1];
        for _ in 0..2 {
            assert!(!scribe.part_of(&message, &mut done));
            assert_eq!(receiver.try_recv_bytes_into(&mut buffer), Err(RecvError::Empty));
        }
        assert_eq!(receiver.try_recv_bytes_into(&mut [0; 9]), Err(RecvError::Empty), "it has begun");
        while !scribe.part_of(&message, &mut done) {}
        assert!(kind(&mut receiver, len) == message);
    }
    // All of it in one buffer, in two calls; who waits for this handle is told of the turn in between, and of its end.
    let (receiver, sender) = pipe();
    let kept = receiver.local.borrow_mut().kept();
    let message = [7; RING - 500];
    let mut buffer = [0; RING];
    let mut scribe = Scribe::new(&sender);
    for calls in 1..3 {
        let mut done = 0;
        assert!(scribe.begin(message.len()));
        if calls == 2 {
            assert!(!scribe.part_of(&message, &mut done));
            assert_eq!(receiver.try_recv_bytes_into(&mut buffer), Err(RecvError::Empty));
            assert!(kept.has_turn());
        }
        while !scribe.part_of(&message, &mut done) {}
        assert_eq!(receiver.try_recv_bytes_into(&mut buffer), Ok(message.len()));
        assert!(buffer[..message.len()] == message);
        assert!(!kept.has_turn() && !kept.has_message());
    }
    drop(scribe);
    // Nothing is left of one that was given up.
    let (receiver, sender) = pipe();
    let limit = Duration::from_millis(5);
    assert!(sender.send_bytes_timeout(&[1; 100_000], limit).is_err());
    assert_eq!(receiver.try_recv_bytes_into(&mut [0; 100_000]), Err(RecvError::Empty));
    sender.send_bytes(b"next").unwrap();
    let mut buffer = [0; 100];
    assert_eq!(receiver.recv_bytes_into(&mut buffer), Ok(4));
    assert_eq!(&buffer[..5], b"next\0");
}
