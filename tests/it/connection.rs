//! What Python's `multiprocessing.Connection` does, row by row, and what ours does.
//!
//! | Python | ours | test |
//! |---|---|---|
//! | `Pipe()`: both ends send and receive | `Pipe::duplex`, with a type for each way | [`a_duplex_pipe_goes_both_ways_and_a_simplex_one_only_one`] |
//! | `Pipe(duplex=False)`: (reader, writer); `readable`, `writable`; the wrong direction is an `OSError` | `Pipe::simplex`: a `Receiver` and a `Sender`, which have no other methods | the same; does not compile: `Pipe` |
//! | `send`, `recv` | the same; what is sent has a type, and is checked | [`an_echo_returns_values_bytes_and_sixteen_mebibytes`] |
//! | an object that can not be pickled: raises, and nothing is sent | `SendError::Unserializable`, likewise | [`what_can_not_be_a_value_costs_one_message`] |
//! | bytes that are no pickle: `recv` raises, the connection works on | `RecvError::Undecodable`, likewise | the same |
//! | `send_bytes(buffer, offset, size)`; a bad offset or size is a `ValueError` | `send_bytes(&buffer[offset..][..size])`: a slice out of range panics before | [`parts_of_buffers_are_slices`] |
//! | `recv_bytes()`, `recv_bytes_into(buffer, offset)` | `recv_bytes_into(&mut buffer[offset..])`; the rest of the buffer stays | the same |
//! | a message is a length and bytes, of any length: 4 bytes, or 12 above 2 GiB | 8 bytes | [`lengths_of_all_sizes_come_as_they_were_sent`], [`a_message_may_have_more_than_four_gibibytes`] |
//! | `poll()` returns at once, `poll(timeout)`, `poll(None)` waits for ever, a negative timeout is 0 | `poll(Some(Duration::ZERO))`, `poll(Some(timeout))`, `poll(None)`; a `Duration` is not negative | [`poll_waits_as_long_as_it_is_told_and_takes_nothing`], [`poll_wakes_for_a_message_and_for_the_end`] |
//! | `poll` takes no part of a message, and does not join two | the same | the same |
//! | `poll` at the end: `True` | the same | the same |
//! | `recv` at the end: `EOFError` | `RecvError::Closed` after all that was sent; `PeerDied` if the last of the others was killed | [`who_closes_is_missed_after_all_it_sent`], [`who_is_killed_is_missed_after_all_it_sent`] |
//! | `send` to who has closed: `BrokenPipeError` | `SendError::Closed`, `PeerDied`; as `io::Error` `BrokenPipe` | the same, [`as_errors_of_io_they_have_the_kinds_of_sockets`] |
//! | the end is told when all copies are closed, in all processes | the same | [`the_last_of_several_senders_decides_how_it_ended`] |
//! | use after `close`: `OSError` | `close` takes the handle: does not compile | `Pipe` |
//! | `with`: closed at the end of the block | `Drop` | [`an_end_is_closed_with_its_scope`] |
//! | `closed` | `is_closed` says it of the *other* end: one's own is there | [`who_closes_is_missed_after_all_it_sent`] |
//! | `recv_bytes(maxlength)` of a longer message: `OSError`, and the connection can not be read any more | `recv_bytes_max`: `RecvError::TooLong`; the message stays, to be received or discarded | [`an_over_long_message_leaves_the_connection_usable`] |
//! | `recv_bytes_into` a short buffer: `BufferTooShort`, with the message | `RecvError::TooLong`, with its length; it stays | the same |
//! | `fileno()`: what others can wait for | `readable()`, `writable()`: descriptors | [`both_ends_have_descriptors_to_wait_for`] |
//! | `wait(objects, timeout)`: connections, sockets, sentinels; all that are ready | `wait_any`; also queues and events | [`connections_sockets_and_processes_are_waited_for_at_once`] |
//! | `wait` of nothing; a negative timeout is 0 | the same | the same |
//! | a signal ends no wait | the same | [`signals_end_no_wait`] |
//! | a connection is given to a process as it starts | the same, and sent through any connection later | `pipe.rs`: `any_handle_goes_to_a_process_that_runs` |
//! | two that write at the same time mix their messages (documented) | they do not | `pipe.rs`: `messages_of_two_writers_and_two_readers_are_never_mixed` |
//! | killed in the middle of a message: the others wait for its rest for ever | the message is given up | `pipe.rs`: `a_storm_of_kills_tears_and_doubles_nothing` |
//! | `Listener`, `Client`: a Unix path, an abstract name | `Listener`, `connect` | `listener.rs`: `strangers_share_memory`, `many_connections_leave_nothing_behind` |
//! | .. a TCP address | `RemoteOptions::bind` and `connect` | `listener.rs`: `strangers_talk_over_tcp` |
//! | .. an unknown family: `ValueError` | a type for each | |
//! | .. `authkey`: challenge and response by HMAC; `AuthenticationError` | HMAC-SHA-256, both ways and with both names in it | `listener.rs`: `both_sides_have_the_same_key_or_none`, `a_listener_has_to_know_the_key_too` |
//! | .. `accept` raises if a client has the wrong key or sends noise | `accept` goes on with the next; they are counted | `listener.rs`: `noise_is_refused_and_counted_and_keeps_nobody_out` |
//! | .. `last_accepted` | `accept_with_credentials` | `listener.rs`: `each_side_says_whom_it_talks_to` |
//! | .. `accept` after `close`: `OSError` | `close` is `Drop`: does not compile | |

use std::io::{ErrorKind as IoErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crossproc_primitives::pipe::{Receiver, RecvError, SendError, Sender};
use crossproc_primitives::{Connection, Event, Fd, Pipe, PipeOptions, Queue, wait_any};
use crossproc_tests::{Board, HANG, await_asleep, await_state, child, join, kill_and_reap, tied_to_parent};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::pipe::{filler, for_ever, signal};

const READY: usize = 0;
const RING: usize = 4096;

// ---- Both ways, and all lengths

#[test]
fn a_duplex_pipe_goes_both_ways_and_a_simplex_one_only_one() {
    let (here, there) = Pipe::duplex::<u8, String>().unwrap();
    here.send(&1).unwrap();
    there.send(&"one".to_owned()).unwrap();
    assert_eq!((there.recv(), here.recv()), (Ok(1), Ok("one".to_owned())));
    // Each in its own direction: what one has sent does not come back.
    here.send(&2).unwrap();
    assert_eq!(here.try_recv(), Err(RecvError::Empty));

    // The reader comes first.
    let (receiver, sender): (Receiver<u8>, Sender<u8>) = Pipe::simplex().unwrap();
    sender.send(&3).unwrap();
    assert_eq!(receiver.recv(), Ok(3));
}

#[test]
fn lengths_of_all_sizes_come_as_they_were_sent() {
    for capacity in [RING, 64 << 10] {
        let (receiver, sender) = PipeOptions::new().capacity(capacity).simplex::<()>().unwrap();
        // Around each border: words, half a ring, a ring, what Python writes separately.
        let borders =
            [0, 8, 64, capacity / 4, capacity / 2 - 8, capacity / 2, capacity, 16 << 10, 3 * capacity];
        let lengths: Vec<usize> =
            borders.iter().flat_map(|&at| (at.saturating_sub(9)..at + 10).step_by(3)).collect();
        std::thread::scope(|scope| {
            let lengths = &lengths;
            scope.spawn(move || {
                for &len in lengths {
                    let bytes: Vec<u8> = (0..len).map(|k| filler(2, len as u64, k)).collect();
                    sender.send_bytes_timeout(&bytes, HANG).unwrap();
                }
            });
            for &len in lengths {
                let bytes = receiver.recv_bytes_timeout(HANG).unwrap();
                assert_eq!(bytes.len(), len);
                assert!(bytes.iter().enumerate().all(|(k, &byte)| byte == filler(2, len as u64, k)), "{len}");
            }
        });
        assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Closed));
    }
}

#[test]
fn a_message_may_have_more_than_four_gibibytes() {
    let (receiver, sender) = Pipe::simplex::<()>().unwrap();
    let slices = [IoSlice::new(&[7; 1 << 20]); 5 << 10];
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || sender.send_vectored(&slices));
        let too_long = Err(RecvError::TooLong { bytes: 5 << 30 });
        assert_eq!(receiver.recv_bytes_max_timeout(100, HANG), too_long);
        // All of it would take long. Nobody wants the rest.
        drop(receiver);
        assert_eq!(sending.join().unwrap(), Err(SendError::Closed));
    });
}

#[test]
fn parts_of_buffers_are_slices() {
    let (here, there) = PipeOptions::new().capacity(RING).duplex::<(), ()>().unwrap();
    let text = b"0123456789";
    here.send_bytes(&text[3..]).unwrap();
    here.send_bytes(&text[3..][..4]).unwrap();
    here.send_bytes(&text[10..]).unwrap();
    assert_eq!(there.recv_bytes().unwrap(), b"3456789");
    let mut buffer = [b'.'; 8];
    assert_eq!(there.recv_bytes_into(&mut buffer[2..]), Ok(4));
    assert_eq!(&buffer, b"..3456..");
    assert_eq!(there.recv_bytes_into(&mut buffer[8..]), Ok(0), "no bytes fit into none");
    // In parts as well: beside the message the buffer stays.
    let long: Vec<u8> = (0..3 * RING).map(|k| filler(3, 3, k)).collect();
    std::thread::scope(|scope| {
        let rest = &long[5..];
        scope.spawn(move || here.send_bytes_timeout(rest, HANG).unwrap());
        let mut buffer = vec![9; 4 * RING];
        assert_eq!(there.recv_bytes_into_timeout(&mut buffer[7..], HANG), Ok(long.len() - 5));
        assert!(buffer[7..][..long.len() - 5] == long[5..]);
        assert!(buffer[..7].iter().chain(&buffer[long.len() + 2..]).all(|&byte| byte == 9));
    });
}

#[test]
fn what_can_not_be_a_value_costs_one_message() {
    /// A value whose serialisation fails for 0.
    struct Picky(u8);
    impl serde::Serialize for Picky {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 == 0 {
                return Err(serde::ser::Error::custom("not this one"));
            }
            serializer.serialize_u8(self.0)
        }
    }
    let (receiver, sender) = Pipe::simplex::<Picky>().unwrap();
    assert!(matches!(sender.send(&Picky(0)), Err(SendError::Unserializable(_))));
    assert_eq!(receiver.try_recv_bytes(), Err(RecvError::Empty), "nothing was sent");
    sender.send(&Picky(5)).unwrap();
    assert_eq!(receiver.recv_bytes().unwrap(), [5], "a value is its bytes");

    let (receiver, sender) = Pipe::simplex::<(bool, String)>().unwrap();
    for bytes in [&b""[..], b"\x07", b"\x01\x02\xff\xff", b"\x01\x01a, and more"] {
        sender.send_bytes(bytes).unwrap();
    }
    sender.send(&(true, "whole".to_owned())).unwrap();
    for _ in 0..4 {
        assert!(matches!(receiver.recv(), Err(RecvError::Undecodable(_))));
    }
    assert_eq!(receiver.recv(), Ok((true, "whole".to_owned())));
}

// ---- Echo, poll, and the ends

#[test]
fn an_echo_returns_values_bytes_and_sixteen_mebibytes() {
    fn echo(there: Connection<(u32, String), (u32, String)>) {
        tied_to_parent();
        while let Ok(message) = there.recv_bytes() {
            there.send_bytes(&message).unwrap();
        }
    }
    let (here, there) = Pipe::duplex::<(u32, String), (u32, String)>().unwrap();
    let other = child(echo, there);
    here.send(&(7, "seven".to_owned())).unwrap();
    assert_eq!(here.recv_timeout(HANG).unwrap(), (7, "seven".to_owned()));
    for len in [0, 1, 7, 8, 9, 4096, 32 * 1024 - 8, 32 * 1024 - 7, 64 * 1024, 1 << 20, 16 << 20] {
        let sent: Vec<u8> = (0..len).map(|k| filler(1, len as u64, k)).collect();
        here.send_bytes_timeout(&sent, HANG).unwrap();
        let mut received = vec![0; len + 5];
        assert_eq!(here.recv_bytes_into_timeout(&mut received, HANG), Ok(len));
        assert!(received[..len] == sent, "{len} bytes come back");
    }
    here.audit().unwrap();
    here.close();
    join(other);
}

#[test]
fn poll_waits_as_long_as_it_is_told_and_takes_nothing() {
    let (receiver, sender) = Pipe::simplex::<String>().unwrap();
    assert_eq!(receiver.poll(Some(Duration::ZERO)), Ok(false));
    let (started, limit) = (Instant::now(), Duration::from_millis(60));
    assert_eq!(receiver.poll(Some(limit)), Ok(false));
    assert!(started.elapsed() >= limit);
    // A message without bytes is one.
    sender.send_bytes(b"").unwrap();
    assert_eq!(receiver.poll(Some(Duration::ZERO)), Ok(true));
    assert_eq!(receiver.recv_bytes().unwrap(), b"");
    assert_eq!(receiver.poll(Some(Duration::ZERO)), Ok(false));
    // Looking takes no part of a message, and does not join two.
    for text in ["first", "", "a longer second one"] {
        sender.send(&text.to_owned()).unwrap();
    }
    for text in ["first", "", "a longer second one"] {
        for _ in 0..3 {
            assert_eq!(receiver.poll(None), Ok(true));
        }
        assert_eq!(receiver.recv().unwrap(), text);
    }
    assert_eq!(receiver.poll(Some(Duration::ZERO)), Ok(false));
    drop(sender);
    assert_eq!(receiver.poll(Some(Duration::ZERO)), Ok(true), "at the end as well");
    assert_eq!(receiver.recv(), Err(RecvError::Closed));
}

#[test]
fn poll_wakes_for_a_message_and_for_the_end() {
    fn poll((board, receiver): (Board, Receiver<u64>)) -> Vec<(bool, Result<u64, RecvErrorName>)> {
        tied_to_parent();
        board.add(READY, 1);
        (0..2)
            .map(|_| (receiver.poll(None).unwrap(), receiver.try_recv().map_err(|e| format!("{e:?}"))))
            .collect()
    }
    type RecvErrorName = String;
    let board = Board::new(4);
    let (receiver, sender) = Pipe::simplex::<u64>().unwrap();
    let other = child(poll, (board.clone(), receiver));
    board.await_at_least(READY, 1);
    await_asleep(other.pid());
    sender.send(&5).unwrap();
    await_asleep(other.pid());
    drop(sender);
    assert_eq!(join(other), [(true, Ok(5)), (true, Err("Closed".to_owned()))]);
}

#[test]
fn an_over_long_message_leaves_the_connection_usable() {
    for capacity in [RING, 1 << 20] {
        let (receiver, sender) = PipeOptions::new().capacity(capacity).simplex::<()>().unwrap();
        std::thread::scope(|scope| {
            // In a small ring it comes in parts, while it is refused.
            scope.spawn(move || {
                sender.send_bytes(&[1; 10_000]).unwrap();
                sender.send_bytes(b"next").unwrap();
                sender.send_bytes(&[2; 10_000]).unwrap();
                sender.send_bytes(b"last").unwrap();
            });
            let too_long = Err(RecvError::TooLong { bytes: 10_000 });
            assert_eq!(receiver.recv_bytes_max_timeout(9999, HANG), too_long);
            let mut short = [9; 100];
            assert_eq!(
                receiver.recv_bytes_into_timeout(&mut short, HANG),
                Err(RecvError::TooLong { bytes: 10_000 })
            );
            assert_eq!(short, [9; 100], "nothing was written");
            // It stays, for who asks for more.
            assert_eq!(receiver.recv_bytes_max_timeout(10_000, HANG).unwrap(), [1; 10_000]);
            assert_eq!(receiver.recv_bytes_max_timeout(4, HANG).unwrap(), b"next");
            assert_eq!(receiver.recv_bytes_max_timeout(4, HANG), Err(RecvError::TooLong { bytes: 10_000 }));
            assert_eq!(receiver.discard(), Ok(10_000));
            assert_eq!(receiver.recv_bytes_max_timeout(4, HANG).unwrap(), b"last");
            assert_eq!(receiver.recv_bytes_timeout(HANG), Err(RecvError::Closed));
            assert_eq!(receiver.discard(), Err(RecvError::Closed));
        });
    }
}

#[test]
fn who_closes_is_missed_after_all_it_sent() {
    fn send(sender: Sender<u32>) {
        tied_to_parent();
        (0..5).for_each(|n| sender.send(&n).unwrap());
    }
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    join(child(send, sender));
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(receiver.recv(), Err(RecvError::Closed));
    assert_eq!(receiver.try_recv(), Err(RecvError::Closed));
    assert!(receiver.is_closed());

    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let clone = receiver.clone();
    drop(receiver);
    sender.send(&1).unwrap();
    assert!(!sender.is_closed());
    clone.close();
    assert_eq!(sender.send(&2), Err(SendError::Closed), "though there is room");
    assert!(sender.is_closed());
}

#[test]
fn who_is_killed_is_missed_after_all_it_sent() {
    fn send((board, sender): (Board, Sender<u32>)) {
        tied_to_parent();
        (0..5).for_each(|n| sender.send(&n).unwrap());
        board.add(READY, 1);
        for_ever()
    }
    fn hold((board, _receiver): (Board, Receiver<u32>)) {
        tied_to_parent();
        board.add(READY, 1);
        for_ever()
    }
    let board = Board::new(4);
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let other = child(send, (board.clone(), sender));
    board.await_at_least(READY, 1);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(move || {
            let all: Vec<_> = receiver.iter().collect();
            (all, receiver.recv())
        });
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&other);
        assert_eq!(receiving.join().unwrap(), (vec![0, 1, 2, 3, 4], Err(RecvError::PeerDied)));
    });

    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let other = child(hold, (board.clone(), receiver));
    board.await_at_least(READY, 2);
    sender.send(&1).unwrap();
    kill_and_reap(&other);
    assert_eq!(sender.send(&2), Err(SendError::PeerDied), "though there is room");

    // One who waits for room.
    let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<u32>().unwrap();
    let other = child(hold, (board.clone(), receiver));
    board.await_at_least(READY, 3);
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let many = sender.send_bytes(&[0; 100_000]);
            (many, sender.send_bytes(b"x"))
        });
        std::thread::sleep(Duration::from_millis(20));
        kill_and_reap(&other);
        assert_eq!(sending.join().unwrap(), (Err(SendError::PeerDied), Err(SendError::PeerDied)));
    });
}

#[test]
fn the_last_of_several_senders_decides_how_it_ended() {
    fn hold((board, _sender): (Board, Sender<u32>)) {
        tied_to_parent();
        board.add(READY, 1);
        for_ever()
    }
    let board = Board::new(4);
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let first = child(hold, (board.clone(), sender.clone()));
    let second = child(hold, (board.clone(), sender.clone()));
    board.await_at_least(READY, 2);
    kill_and_reap(&first);
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty));
    drop(sender);
    assert_eq!(receiver.try_recv(), Err(RecvError::Empty), "one is left");
    kill_and_reap(&second);
    assert_eq!(receiver.recv_timeout(HANG), Err(RecvError::PeerDied));

    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let first = child(hold, (board.clone(), sender.clone()));
    board.await_at_least(READY, 3);
    kill_and_reap(&first);
    drop(sender);
    assert_eq!(receiver.recv_timeout(HANG), Err(RecvError::Closed), "this one left in good order");
}

#[test]
fn signals_end_no_wait() {
    fn recv((board, receiver): (Board, Receiver<u32>)) -> u32 {
        tied_to_parent();
        board.add(READY, 1);
        receiver.recv().unwrap()
    }
    let board = Board::new(4);
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let other = child(recv, (board.clone(), receiver));
    board.await_at_least(READY, 1);
    for _ in 0..3 {
        await_asleep(other.pid());
        // Both interrupt a system call that is under way.
        signal(other.pid(), Signal::STOP);
        await_state(other.pid(), 'T');
        signal(other.pid(), Signal::CONT);
    }
    await_asleep(other.pid());
    sender.send(&3).unwrap();
    assert_eq!(join(other), 3);
}

#[test]
fn an_end_is_closed_with_its_scope() {
    fn wait_for_the_end((board, receiver): (Board, Receiver<u32>)) -> Vec<u32> {
        tied_to_parent();
        board.add(READY, 1);
        receiver.iter().collect()
    }
    let board = Board::new(4);
    let other = {
        let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
        let other = child(wait_for_the_end, (board.clone(), receiver));
        board.await_at_least(READY, 1);
        sender.send(&1).unwrap();
        other
    };
    assert_eq!(join(other), [1]);
    // Also if its owner panics.
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let unwound = std::thread::spawn(move || {
        sender.send(&2).unwrap();
        std::panic::resume_unwind(Box::new(()));
    })
    .join();
    assert!(unwound.is_err());
    assert_eq!((receiver.recv(), receiver.recv()), (Ok(2), Err(RecvError::Closed)));
}

#[test]
fn as_errors_of_io_they_have_the_kinds_of_sockets() {
    let kind = |error: std::io::Error| error.kind();
    let (mut here, there) = PipeOptions::new().capacity(RING).duplex::<(), ()>().unwrap();
    assert_eq!(kind(RecvError::Empty.into()), IoErrorKind::WouldBlock);
    assert_eq!(kind(RecvError::TimedOut.into()), IoErrorKind::TimedOut);
    assert_eq!(kind(SendError::Full.into()), IoErrorKind::WouldBlock);
    there.close();
    assert_eq!(kind(here.send_bytes(b"x").unwrap_err().into()), IoErrorKind::BrokenPipe);
    assert_eq!(here.write(b"x").map_err(kind), Err(IoErrorKind::BrokenPipe));
    assert_eq!(kind(here.recv_bytes().unwrap_err().into()), IoErrorKind::UnexpectedEof);
    assert_eq!(here.read(&mut [0]).map_err(kind), Ok(0), "the end of a stream");
}

// ---- Waiting for several

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn both_ends_have_descriptors_to_wait_for() {
    let (receiver, sender) = PipeOptions::new().capacity(RING).simplex::<Vec<u8>>().unwrap();
    let (readable, writable) = (receiver.readable().unwrap(), sender.writable().unwrap());
    assert!(!readable.arm().unwrap(), "nothing is there");
    assert!(!is_readable(&readable));
    assert!(writable.arm().unwrap(), "there is room");
    sender.send(&vec![1; 1000]).unwrap();
    // The kernel's poll, without us.
    let mut fds = [PollFd::new(&readable, PollFlags::IN)];
    let hang = Timespec { tv_sec: HANG.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&hang)), Ok(1));
    receiver.recv().unwrap();
    assert!(!readable.arm().unwrap());
    assert!(!is_readable(&readable));
    while sender.try_send(&vec![2; 1000]).is_ok() {}
    assert!(!writable.arm().unwrap(), "it is full");
    assert!(!is_readable(&writable));
    while receiver.try_recv().is_ok() {}
    let mut fds = [PollFd::new(&writable, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&hang)), Ok(1), "there is room again");
    // The end of the other side is something to be told as well.
    assert!(!readable.arm().unwrap());
    drop((writable, sender));
    let mut fds = [PollFd::new(&readable, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&hang)), Ok(1));
    assert_eq!(receiver.try_recv(), Err(RecvError::Closed));
}

#[test]
fn connections_sockets_and_processes_are_waited_for_at_once() {
    fn wait(event: Event) {
        tied_to_parent();
        event.wait().unwrap();
    }
    let (here, there) = Pipe::duplex::<u32, u32>().unwrap();
    let (receiver, sender) = Pipe::simplex::<u32>().unwrap();
    let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (queue, event, go) = (Queue::<u32>::new(1).unwrap(), Event::new().unwrap(), Event::new().unwrap());
    let other = child(wait, go.clone());
    let (readable, ends) = (Fd::readable(&socket), Fd::readable(&other));
    let ready = |timeout| wait_any(&[&here, &receiver, &readable, &ends, &queue, &event], timeout);
    let now = Some(Duration::ZERO);
    assert_eq!(ready(now), []);
    assert_eq!(ready(Some(Duration::from_millis(5))), []);
    assert_eq!(wait_any(&[], now), []);
    // One after the other becomes ready, while it is waited for, and stays so.
    let mut so_far = Vec::new();
    let mut then = |place: usize, do_it: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(5));
                do_it();
            });
            let ends = Instant::now() + HANG;
            so_far.push(place);
            so_far.sort_unstable();
            while ready(Some(HANG)) != so_far {
                assert!(Instant::now() < ends, "{place} does not become ready");
            }
        });
    };
    then(2, &|| (&peer).write_all(b"x").unwrap());
    then(3, &|| go.set().unwrap());
    let (there, sender) = (std::sync::Mutex::new(there), std::sync::Mutex::new(Some(sender)));
    then(0, &|| there.lock().unwrap().send(&1).unwrap());
    then(1, &|| drop(sender.lock().unwrap().take()));
    let sending = std::sync::Mutex::new(queue.clone());
    then(4, &|| sending.lock().unwrap().send(1).unwrap());
    then(5, &|| event.set().unwrap());
    // Nothing was taken.
    assert_eq!((here.try_recv(), receiver.try_recv()), (Ok(1), Err(RecvError::Closed)));
    join(other);
}
