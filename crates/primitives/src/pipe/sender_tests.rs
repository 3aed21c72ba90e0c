//! What a sender leaves: on the socket, with its end, and in its turn. What processes do to each other is in `tests/it/pipe.rs`.

use std::future::Future;
use std::io::Read;
use std::mem::forget;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use crossproc_segment::Segment;
use crossproc_segment::handover::Handed;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::courier::{Courier, Parcel};
use super::link::Loans;
use super::{Pipe, PipeOptions, Receiver, RecvError, SendError, Sender};

const HANG: Duration = Duration::from_secs(30);

type Message = (Vec<u8>, Handed<OwnedFd>);

fn message(len: usize) -> (Message, UnixStream) {
    let (sent, kept) = UnixStream::pair().unwrap();
    kept.set_read_timeout(Some(HANG)).unwrap();
    ((vec![7; len], Handed(sent.into())), kept)
}

/// True if all descriptors of the other end are closed.
fn is_over(mut kept: UnixStream) -> bool {
    kept.read(&mut [0]).unwrap() == 0
}

fn courier<T>(sender: &Sender<T>) -> Courier {
    sender.link.courier.clone().unwrap()
}

/// True if there are packets on the socket.
fn has_packets<T>(receiver: &Receiver<T>) -> bool {
    let socket = receiver.link.courier.as_ref().unwrap();
    recv(&*socket.0, &mut [0; 64], RecvFlags::DONTWAIT | RecvFlags::PEEK).is_ok()
}

#[test]
fn handles_wait_for_room_with_their_message() {
    let (receiver, sender) = PipeOptions::new().capacity(1024).simplex::<Message>().unwrap();
    while sender.try_send_bytes(&[]).is_ok() {}
    for len in [10, 2000] {
        let (message, _kept) = message(len);
        assert_eq!(sender.send_timeout(&message, Duration::from_millis(5)), Err(SendError::TimedOut));
        assert!(!has_packets(&receiver), "nothing was sent of a message of {len} bytes");
    }
    while receiver.try_recv_bytes().is_ok() {}
    let (message, kept) = message(2000);
    thread::scope(|s| {
        let sending = sender.clone();
        let message = &message;
        s.spawn(move || sending.send_timeout(message, HANG).unwrap());
        assert_eq!(receiver.recv_timeout(HANG).unwrap().0, message.0);
    });
    drop(message);
    assert!(is_over(kept));
}

#[test]
fn a_socket_full_of_packets_without_a_message_is_cleaned() {
    let (receiver, sender) = Pipe::simplex::<Message>().unwrap();
    for len in [10, 100_000] {
        let (_, kept) = message(0);
        let lost = Parcel::new(vec![kept.into()], Loans::default(), sender.link.live().unwrap()).unwrap();
        // As one leaves it who is killed before its message is there, many times.
        while courier(&sender).send(&lost, 0).is_ok() {}
        let (message, kept) = message(len);
        thread::scope(|s| {
            let sending = sender.clone();
            let message = &message;
            s.spawn(move || sending.send_timeout(message, HANG).unwrap());
            assert_eq!(receiver.recv_timeout(HANG).unwrap().0, message.0);
        });
        drop(message);
        assert!(is_over(kept));
    }
    assert_eq!(receiver.try_recv().map(drop), Err(RecvError::Empty));
    assert!(!has_packets(&receiver));
}

#[test]
fn an_unread_packet_of_the_receiver_does_not_hide_those_of_a_sender_that_left() {
    let (a, b) = Pipe::duplex::<Message, Message>().unwrap();
    let ((there, _), (back, kept)) = (message(1), message(2));
    b.send(&there).unwrap();
    a.send(&back).unwrap();
    drop((a, back));
    assert_eq!(b.recv().unwrap().0, [7; 2]);
    assert!(is_over(kept));
    assert_eq!(b.recv().map(drop), Err(RecvError::Closed));
}

#[test]
fn packets_that_nobody_sends_are_passed_over() {
    let (receiver, sender) = Pipe::simplex::<Message>().unwrap();
    for bytes in [&[1][..], &[1; 23], &[0xff; 100], &[]] {
        send(&*courier(&sender).0, bytes, SendFlags::empty()).unwrap();
        let (message, _kept) = message(3);
        sender.send(&message).unwrap();
        assert_eq!(receiver.recv().unwrap().0, message.0, "behind {} bytes", bytes.len());
    }
}

#[test]
fn a_leaked_place_ends_with_the_next_use_of_its_sender() {
    let (receiver, mut sender) = Pipe::simplex::<u8>().unwrap();
    let other = sender.clone();
    forget(sender.reserve(10).unwrap());
    assert_eq!(other.try_send(&1), Err(SendError::Full), "it is the other one's turn");
    sender.try_send(&2).unwrap();
    other.try_send(&3).unwrap();
    forget(sender.reserve(10).unwrap());
    drop(sender.reserve(10).unwrap());
    other.try_send(&4).unwrap();
    forget(sender.reserve(10).unwrap());
    drop(sender);
    other.try_send(&5).unwrap();
    drop(other);
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [2, 3, 4, 5]);
}

#[test]
fn a_leaked_future_ends_with_the_next_use_of_its_sender() {
    let (receiver, mut sender) = PipeOptions::new().capacity(1024).simplex::<()>().unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let long = vec![1; 5000];
    let begin = |sender: &mut Sender<()>, cx: &mut Context<'_>| {
        let mut future = Box::pin(sender.send_bytes_async(&long));
        assert!(future.as_mut().poll(cx).is_pending());
        forget(future);
    };
    begin(&mut sender, &mut cx);
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    sender.try_send_bytes(b"next").unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), b"next");
    // A future behind a leaked one begins anew.
    begin(&mut sender, &mut cx);
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty));
    assert_eq!(Box::pin(sender.send_bytes_async(b"short")).as_mut().poll(&mut cx), Poll::Ready(Ok(())));
    assert_eq!(receiver.recv_bytes().unwrap(), b"short");
    begin(&mut sender, &mut cx);
    drop(sender);
    assert_eq!(receiver.recv_bytes(), Err(RecvError::Closed));
}

#[test]
fn an_end_that_was_not_sent_is_not_lent() {
    type Mail = (Vec<u8>, Sender<u8>);
    let (mail, post) = PipeOptions::new().capacity(1024).simplex::<Mail>().unwrap();
    let (receiver, sender) = Pipe::simplex::<u8>().unwrap();
    while post.try_send_bytes(&[0; 100]).is_ok() {}
    let short = (Vec::new(), sender.clone());
    assert_eq!(post.try_send(&short), Err(SendError::Full));
    let long = (vec![0; 2000], sender);
    assert_eq!(post.try_send(&long), Err(SendError::NotAtOnce { most: 504 }));
    assert_eq!(post.send_timeout(&long, Duration::from_millis(5)), Err(SendError::TimedOut));
    let segment = Segment::anonymous(256 * 1024).unwrap();
    let named: Pipe<Mail, u8> = crate::Objects::pipe(&segment, "p").unwrap();
    assert_eq!(named.near().unwrap().send(&long), Err(SendError::NoHandles));
    drop((short, long));
    assert_eq!(receiver.try_recv(), Err(RecvError::Closed));

    // One that was sent is.
    let (receiver, sender) = Pipe::simplex::<u8>().unwrap();
    while mail.try_recv_bytes().is_ok() {}
    post.send(&(Vec::new(), sender)).unwrap();
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    drop(mail.recv().unwrap());
    assert_eq!(receiver.try_recv(), Err(RecvError::Closed));
}

#[test]
fn what_is_discarded_takes_its_handles_along() {
    let (mut receiver, sender) = PipeOptions::new().capacity(1024).simplex::<Message>().unwrap();
    let (message, kept) = message(3000);
    thread::scope(|s| {
        let message = &message;
        s.spawn(move || sender.send_timeout(message, HANG).unwrap());
        drop(receiver.peek().unwrap());
    });
    drop(message);
    assert!(receiver.discard().is_ok_and(|bytes| bytes > 3000));
    assert!(is_over(kept));
}

#[test]
fn a_parcel_has_at_most_64_packets() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|limit| limit < 18_000) {
        println!("this process can not have too many open files for a parcel");
        return;
    }
    let (receiver, sender) = Pipe::simplex::<()>().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let many = (0..=64 * 253).map(|_| file.as_fd().try_clone_to_owned().unwrap()).collect();
    let parcel = Parcel::new(many, Loans::default(), sender.link.live().unwrap()).unwrap();
    assert!(courier(&sender).send(&parcel, 0).is_err());
    assert!(!has_packets(&receiver));
}
