//! Messages of any size arrive whole and in order, whoever dies with one; memory is given back; what does not fit is given back as well.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU64, Ordering};
use crossproc_primitives::{
    BytesQueue, BytesQueueOptions, ObjectQueue, Objects, Queue, RecvError, SendError, Unfit, Unusable,
};
use crossproc_process::Process;
use crossproc_segment::{ErrorKind, PlacedSlice, Segment, SegmentOptions, Span};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, child, fresh_seed, isolated, join, kill_and_reap, not_run, tied_to_parent,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::every_call::at_every_call;
use crate::kernel::{self, End, Forked};

const READY: usize = 0;
const GO: usize = 1;
const SOON: Duration = Duration::from_millis(30);
const MIB: usize = 1 << 20;
/// What a spare cell may keep of its window.
const KEPT: u64 = 64 << 10;

/// Bytes that depend on the message's number and on where they are.
fn pattern(nth: u64, len: usize) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut rng = Rng::new(nth);
    let block: Vec<u8> = (0..BLOCK / 8).flat_map(|_| rng.bits().to_le_bytes()).collect();
    let mut bytes = block.repeat(len.div_ceil(BLOCK));
    for (at, block) in bytes.chunks_mut(BLOCK).enumerate() {
        block[8..16].copy_from_slice(&at.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What the queue's segment takes, in bytes.
fn taken(segment: &Segment) -> u64 {
    rustix::fs::fstat(segment.fd().unwrap()).unwrap().st_blocks as u64 * 512
}

/// Nothing is wrong with the words, and the queue works.
#[track_caller]
fn sound(queue: &BytesQueue) {
    assert_eq!(queue.audit(), Ok(()));
    for len in [3, queue.message_max()] {
        queue.send_timeout(&pattern(1, len), HANG).unwrap();
        assert_eq!(queue.recv_timeout(HANG).unwrap(), pattern(1, len));
    }
    assert_eq!(queue.audit(), Ok(()));
}

fn hold<T>(_kept: T) -> ! {
    loop {
        std::thread::park();
    }
}

// ---- Order and wholeness ----

const SIZES: [usize; 16] =
    [0, 1, 7, 239, 240, 241, 4095, 4096, 4097, 65_535, 65_536, 65_537, 70_000, MIB, MIB + 1, 8 * MIB];

/// Receives in all ways; returns the numbers of the messages that were wrong.
fn receive_in_order((queue, sizes): (BytesQueue, Vec<usize>)) -> Vec<usize> {
    tied_to_parent();
    let mut buffer = vec![0; 8 * MIB];
    let mut is_right = |nth: usize, len: usize| {
        let should = pattern(nth as u64, len);
        match nth % 4 {
            0 => queue.recv_timeout(HANG).unwrap() == should,
            1 => {
                let message = queue.recv_ref_timeout(HANG).unwrap();
                (&*message, message.deliveries()) == (&*should, 1)
            }
            2 => {
                let got = queue.recv_into_timeout(&mut buffer, HANG).unwrap();
                buffer[..got] == should
            }
            _ => queue.recv_deadline(Instant::now() + HANG).unwrap() == should,
        }
    };
    (0..sizes.len()).filter(|&nth| !is_right(nth, sizes[nth])).collect()
}

#[test]
fn messages_of_all_sizes_arrive_whole_and_in_order() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for (capacity, inline) in [(1, 240), (3, 0), (4, 5000)] {
        let mut sizes = SIZES.to_vec();
        sizes.extend((0..40).map(|_| {
            let most = 1 << rng.below(18);
            rng.below(most + 1) as usize
        }));
        let queue = BytesQueueOptions::new(capacity)
            .inline(inline)
            .message_max(8 * MIB)
            .lanes(4)
            .anonymous()
            .unwrap();
        let before = taken(queue.segment());
        let receiver = child(receive_in_order, (queue.clone(), sizes.clone()));
        for (nth, &len) in sizes.iter().enumerate() {
            let message = pattern(nth as u64, len);
            match nth % 3 {
                0 => queue.send(&message).unwrap(),
                1 => queue.send_timeout(&message, HANG).unwrap(),
                _ => {
                    let mut loan = queue.loan(len + 10.min(8 * MIB - len)).unwrap();
                    loan[..len].copy_from_slice(&message);
                    loan.truncate(len);
                    loan.send_timeout(HANG).unwrap();
                }
            }
        }
        assert_eq!(join(receiver), Vec::<usize>::new(), "capacity {capacity}, inline {inline}");
        assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
        let cells = (capacity + queue.lanes() * queue.hands()) as u64;
        assert!(taken(queue.segment()) <= before + cells * KEPT);
    }
}

/// What travels between all: who sent it, as its which, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Parcel {
    sender: u64,
    nth: u64,
    label: String,
    content: Vec<u8>,
}

impl Parcel {
    fn new(sender: u64, nth: u64) -> Self {
        let most = [10, 300, 5000, 150_000][(nth % 4) as usize];
        let len = Rng::new(sender << 32 | nth).below(most) as usize;
        Self { sender, nth, label: format!("{nth} of {sender}"), content: pattern(nth, len) }
    }
}

#[test]
fn objects_of_many_senders_arrive_once_and_in_their_order() {
    fn send((queue, sender): (ObjectQueue<Parcel>, u64)) {
        tied_to_parent();
        (0..EACH).for_each(|nth| queue.send(Parcel::new(sender, nth)).unwrap());
    }
    fn receive(queue: ObjectQueue<Parcel>) -> Vec<(u64, u64)> {
        tied_to_parent();
        let check = |parcel: Parcel| {
            assert_eq!(parcel, Parcel::new(parcel.sender, parcel.nth));
            (parcel.sender, parcel.nth)
        };
        queue.iter().map(check).collect()
    }
    const EACH: u64 = 300;
    let queue = ObjectQueue::new(5).unwrap();
    let receivers: Vec<_> = (0..2).map(|_| child(receive, queue.clone())).collect();
    let senders: Vec<_> = (0..2).map(|sender| child(send, (queue.clone(), sender))).collect();
    senders.into_iter().for_each(join);
    queue.close().unwrap();
    let received: Vec<Vec<(u64, u64)>> = receivers.into_iter().map(join).collect();
    for parcels in &received {
        for sender in 0..2 {
            assert!(parcels.iter().filter(|parcel| parcel.0 == sender).is_sorted());
        }
    }
    let mut all = received.concat();
    all.sort_unstable();
    let should: Vec<_> = (0..2).flat_map(|sender| (0..EACH).map(move |nth| (sender, nth))).collect();
    assert_eq!(all, should);
    assert_eq!(queue.audit(), Ok(()));
}

#[test]
fn a_sleeping_receiver_is_woken_and_a_full_queue_waits() {
    fn receive((board, queue): (Board, ObjectQueue<String>)) -> (String, String) {
        tied_to_parent();
        board.add(READY, 1);
        let first = queue.recv().unwrap();
        board.await_at_least(GO, 1);
        (first, queue.recv_timeout(HANG).unwrap())
    }
    let (board, queue) = (Board::new(4), ObjectQueue::new(1).unwrap());
    let receiver = child(receive, (board.clone(), queue.clone()));
    board.await_at_least(READY, 1);
    await_asleep(receiver.pid());
    queue.send("one".to_owned()).unwrap();
    queue.send("two".to_owned()).unwrap();
    let long = "x".repeat(300_000);
    assert_eq!(queue.try_send(long.clone()), Err(SendError::Full(long.clone())));
    assert_eq!(queue.send_timeout(long.clone(), SOON), Err(SendError::TimedOut(long)));
    board.add(GO, 1);
    assert_eq!(join(receiver), ("one".to_owned(), "two".to_owned()));
    assert_eq!(queue.try_recv(), Err(RecvError::Empty));
    assert_eq!(queue.recv(), Err(RecvError::PeerDied));
    assert_eq!(queue.audit(), Ok(()));
    let alone = ObjectQueue::<String>::new(1).unwrap();
    assert_eq!(alone.recv_timeout(SOON), Err(RecvError::TimedOut));
    assert_eq!(alone.recv_deadline(Instant::now() + SOON), Err(RecvError::TimedOut));
}

#[test]
fn a_closed_queue_is_drained_and_gives_values_back() {
    let queue = ObjectQueue::new(3).unwrap();
    queue.send(vec![1_u8; 100_000]).unwrap();
    queue.send(vec![2]).unwrap();
    assert_eq!((queue.close(), queue.close()), (Ok(true), Ok(false)));
    for len in [1, 100_000] {
        assert_eq!(queue.send(vec![3; len]), Err(SendError::Closed(vec![3; len])));
        assert_eq!(queue.try_send(vec![3; len]), Err(SendError::Closed(vec![3; len])));
    }
    assert_eq!(queue.iter().map(|message| message.len()).collect::<Vec<_>>(), [100_000, 1]);
    assert_eq!(queue.recv(), Err(RecvError::Closed));
    assert!(queue.is_closed() && queue.is_empty() && !queue.is_full());

    let queue = BytesQueue::new(3).unwrap();
    let before = taken(queue.segment());
    (0..3).for_each(|_| queue.send(&[1; 500_000]).unwrap());
    assert!(queue.is_full());
    assert_eq!(queue.try_send(&[1; 500_000]), Err(SendError::Full(())));
    assert_eq!(queue.shutdown(), Ok(3));
    assert_eq!((queue.recv(), queue.audit()), (Err(RecvError::Closed), Ok(())));
    assert!(taken(queue.segment()) <= before + 4 * KEPT);
}

#[test]
fn one_handle_is_shared_by_threads() {
    let queue = BytesQueueOptions::new(4).lanes(8).objects::<Parcel>().unwrap().share();
    let received = std::thread::scope(|s| {
        let receivers: Vec<_> =
            (0..2).map(|_| s.spawn(|| (0..100).map(|_| queue.recv().unwrap()).collect::<Vec<_>>())).collect();
        for sender in 0..2 {
            let queue = &queue;
            s.spawn(move || {
                (0..100).for_each(|nth| queue.send_timeout(Parcel::new(sender, nth), HANG).unwrap())
            });
        }
        receivers.into_iter().flat_map(|receiver| receiver.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(received.len(), 200);
    assert!(received.iter().all(|parcel| *parcel == Parcel::new(parcel.sender, parcel.nth)));
    assert_eq!((queue.len(), queue.close()), (0, Ok(true)));

    // One after the other they need one handle beside the first.
    let queue = BytesQueueOptions::new(4).lanes(2).objects().unwrap().share();
    for nth in 0..20_u64 {
        std::thread::scope(|s| s.spawn(|| queue.send(nth).unwrap()).join().unwrap());
        assert_eq!(queue.recv(), Ok(nth));
    }
}

// ---- Memory ----

#[test]
fn memory_is_taken_by_long_messages_and_given_back() {
    let queue = BytesQueueOptions::new(8).lanes(2).message_max(2 * MIB).anonymous().unwrap();
    let segment = queue.segment().clone();
    let before = taken(&segment);
    assert!(segment.windows() >= 12 * 2 * MIB && before < 4 * MIB as u64);
    (0..100).for_each(|_| {
        queue.send(&[1; 240]).unwrap();
        assert_eq!(queue.recv().unwrap(), [1; 240]);
    });
    assert_eq!(taken(&segment), before, "short messages need no more than there is");

    (0..8).for_each(|nth| queue.send(&pattern(nth, 2 * MIB)).unwrap());
    let full = taken(&segment);
    assert!(full >= before + 16 * MIB as u64);
    assert_eq!(queue.try_send(&[2; MIB]), Err(SendError::Full(())));
    assert_eq!(queue.send_timeout(&[2; MIB], SOON), Err(SendError::TimedOut(())));
    assert!(taken(&segment) <= full + KEPT, "what was not sent is given back");
    for nth in 0..8 {
        let message = queue.recv_ref().unwrap();
        assert_eq!(*message, pattern(nth, 2 * MIB));
        let there = taken(&segment);
        drop(message);
        assert!(taken(&segment) + 2 * MIB as u64 <= there + KEPT);
    }
    let empty = taken(&segment);
    assert!(empty <= before + 12 * KEPT, "{before} before, {empty} after");

    let keeping = BytesQueueOptions::new(1).lanes(1).hands(1).message_max(MIB).kept(MIB).anonymous().unwrap();
    (0..2).for_each(|_| {
        keeping.send(&[1; MIB]).unwrap();
        assert!(keeping.recv().unwrap() == [1; MIB]);
    });
    assert!(taken(keeping.segment()) >= MIB as u64, "who is to keep all keeps all");
    sound(&keeping);

    let loan = queue.loan(2 * MIB).unwrap();
    assert!(taken(&segment) > empty);
    drop(loan);
    assert_eq!(taken(&segment), empty, "as with a loan that is not sent");
    sound(&queue);
}

/// Runs `case` on a file system of `bytes` bytes, which only it can see.
fn on_a_small_file_system(what: &str, case: impl FnOnce(&Path)) {
    const DENIED: i32 = 77;
    let base = std::env::temp_dir().join(format!("crossproc-it-small-{}", std::process::id()));
    std::fs::create_dir(&base).unwrap();
    let forked = Forked::new(|| {
        if kernel::mount_tmpfs(&base, 4 * MIB as u64).is_err() {
            std::process::exit(DENIED);
        }
        case(&base);
    });
    let end = forked.end();
    std::fs::remove_dir(&base).unwrap();
    match end {
        End::Exited(0) => {}
        End::Exited(DENIED) => not_run(&format!("{what}: nothing can be mounted here")),
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_full_file_system_gives_the_value_back_and_the_queue_works_on() {
    isolated(|()| {
        on_a_small_file_system("a full file system", |base| {
            let options = BytesQueueOptions::new(20).lanes(2).message_max(8 * MIB);
            let segment = SegmentOptions::new().directory(base).windows(options.windows().unwrap());
            let segment = segment.participants(4).objects(2).create("small", 256 << 10).unwrap();
            let queue = options.objects_in_segment::<Vec<u8>>(&segment, "queue").unwrap();
            let other = queue.clone();
            for round in 0..3 {
                let mut sent = 0;
                let unsent = loop {
                    match queue.try_send(pattern(sent, MIB - 10)) {
                        Ok(()) => sent += 1,
                        Err(unsent) => break unsent,
                    }
                };
                assert!(sent >= 2, "round {round}: {sent} of three fitted");
                assert!(unsent.to_string().contains("is full; receive messages"), "{unsent}");
                let no_space = Unfit::NoMemory(ErrorKind::NoSpace);
                assert_eq!(unsent, SendError::Unfit(pattern(sent, MIB - 10), no_space), "round {round}");
                let unsent = queue.send_timeout(vec![1; 7 * MIB], HANG);
                assert_eq!(unsent, Err(SendError::Unfit(vec![1; 7 * MIB], no_space)));
                // Short ones need nothing.
                queue.send(vec![9; 200]).unwrap();
                assert_eq!(queue.audit(), Ok(()));
                for nth in 0..sent {
                    assert_eq!(other.recv(), Ok(pattern(nth, MIB - 10)));
                }
                assert_eq!(other.recv(), Ok(vec![9; 200]));
                assert!(queue.is_empty());
            }
            // What is too much for the file system was not begun: nothing is missing.
            queue.send(pattern(1, 2 * MIB)).unwrap();
            assert_eq!(other.recv(), Ok(pattern(1, 2 * MIB)));
            assert_eq!(queue.audit(), Ok(()));

            // Somebody else takes the rest. No cell has any pages yet, and none says so after it was refused some.
            let bytes = BytesQueueOptions::new(1).lanes(1).hands(1).message_max(8 * MIB);
            let segment = SegmentOptions::new().directory(base).windows(bytes.windows().unwrap());
            let segment = segment.participants(4).objects(2).create("smaller", 4096 * 4).unwrap();
            let bytes = bytes.in_segment(&segment, "bytes").unwrap();
            let stuff = |yes: bool| match yes {
                true => assert!(std::fs::write(base.join("stuffing"), vec![1; 4 * MIB]).is_err()),
                false => std::fs::remove_file(base.join("stuffing")).unwrap(),
            };
            let no_space = SendError::Unfit((), Unfit::NoMemory(ErrorKind::NoSpace));
            stuff(true);
            for len in [MIB, KEPT as usize, 4096, MIB] {
                assert_eq!(bytes.send(&pattern(1, len)), Err(no_space), "{len}");
                bytes.send(b"short").unwrap();
                assert_eq!(bytes.recv().unwrap(), b"short");
                assert_eq!(bytes.audit(), Ok(()));
            }
            stuff(false);
            // What cells keep is there, whatever others take.
            let keep = |nth| {
                bytes.send(&pattern(nth, KEPT as usize)).unwrap();
                assert_eq!(bytes.recv().unwrap(), pattern(nth, KEPT as usize));
            };
            (0..2).for_each(keep);
            stuff(true);
            assert_eq!(bytes.loan(MIB).err(), Some(no_space));
            (0..4).for_each(keep);
            stuff(false);
            bytes.send(&pattern(7, MIB)).unwrap();
            assert_eq!(bytes.recv().unwrap(), pattern(7, MIB));
            assert_eq!(bytes.audit(), Ok(()));
        });
    });
}

#[test]
fn a_segment_has_windows_for_a_queue_or_says_so() {
    let options = BytesQueueOptions::new(4).lanes(2).message_max(MIB);
    let windows = options.windows().unwrap();
    assert_eq!(windows, (4 + 2 * 2) * MIB as u64);
    let small = Segment::anonymous(64 << 10).unwrap();
    let error = options.in_segment(&small, "queue").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("raise `SegmentOptions::windows`"), "{error}");
    assert_eq!(small.bytes_queue("queue", 4).unwrap_err().kind(), ErrorKind::NoSpace);
    // One that needs none.
    let short = options.message_max(100).in_segment(&small, "short").unwrap();
    assert_eq!(short.message_max(), short.inline());
    assert_eq!(short.send(&[0; 241]), Err(SendError::Unfit((), Unfit::TooLong { most: 240 })));
    short.send(&[5; 240]).unwrap();
    assert_eq!(short.recv().unwrap(), [5; 240]);

    let segment = SegmentOptions::new().windows(2 * windows).anonymous(64 << 10).unwrap();
    let one = options.in_segment(&segment, "one").unwrap();
    let two = options.objects_in_segment::<String>(&segment, "two").unwrap();
    assert_eq!(options.in_segment(&segment, "three").unwrap_err().kind(), ErrorKind::NoSpace);
    one.send(&[1; MIB]).unwrap();
    two.send("2".repeat(MIB - 10)).unwrap();
    // Found by name, it keeps its sizes.
    let again = BytesQueueOptions::new(1000).lanes(1).in_segment(&segment, "one").unwrap();
    assert_eq!((again.capacity(), again.lanes(), again.message_max()), (4, 2, MIB));
    assert_eq!(again.recv().unwrap(), [1; MIB]);
    assert_eq!(segment.object_queue::<String>("two", 9).unwrap().recv().unwrap(), "2".repeat(MIB - 10));

    for options in [options.inline(usize::MAX), options.message_max(usize::MAX), options.hands(0)] {
        assert_eq!(options.anonymous().unwrap_err().kind(), ErrorKind::InvalidLength);
    }
    let error = BytesQueueOptions::new(1 << 21).message_max(4 << 40).anonymous().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
}

// ---- Deaths ----

#[test]
fn a_sender_killed_while_it_writes_a_long_message_leaves_nothing() {
    fn write((board, queue): (Board, BytesQueue)) {
        tied_to_parent();
        let mut loans = [queue.loan(MIB).unwrap(), queue.loan(300_000).unwrap()];
        loans.iter_mut().for_each(|loan| loan.fill(1));
        board.add(READY, 1);
        hold(loans);
    }
    let (board, queue) = (Board::new(4), BytesQueueOptions::new(2).lanes(3).anonymous().unwrap());
    let before = taken(queue.segment());
    for round in 1..=3 {
        let sender = child(write, (board.clone(), queue.clone()));
        board.await_at_least(READY, round);
        kill_and_reap(&sender);
        assert!(taken(queue.segment()) >= before + MIB as u64, "its pages are still there");
        assert_eq!(queue.try_recv(), Err(RecvError::Empty));
        // Whoever has the lane next gives them back: one of these two.
        let heirs = [queue.clone(), queue.clone()];
        assert!(taken(queue.segment()) <= before + 8 * KEPT, "round {round}");
        for heir in &heirs {
            heir.send(b"works").unwrap();
            assert_eq!(queue.recv().unwrap(), b"works");
            sound(heir);
        }
    }
}

#[test]
fn a_message_whose_receiver_is_killed_comes_back_whole() {
    fn receive((board, queue): (Board, BytesQueue)) {
        tied_to_parent();
        let message = queue.recv_ref().unwrap();
        assert_eq!(*message, pattern(5, message.len()));
        board.add(READY, 1);
        hold(message);
    }
    let board = Board::new(4);
    let queue = BytesQueueOptions::new(2).message_max(8 * MIB).lanes(8).anonymous().unwrap();
    let before = taken(queue.segment());
    let mut died = 0;
    for len in [0, 100, 300_000, 8 * MIB] {
        queue.send(&pattern(5, len)).unwrap();
        for _ in 0..2 {
            let receiver = child(receive, (board.clone(), queue.clone()));
            died += 1;
            board.await_at_least(READY, died);
            kill_and_reap(&receiver);
        }
        let message = queue.recv_ref_timeout(HANG).unwrap();
        assert_eq!((message.deliveries(), message.is_redelivered()), (3, true));
        assert!(*message == pattern(5, len), "{len} bytes");
        drop(message);
        assert_eq!(queue.try_recv(), Err(RecvError::Empty));
        sound(&queue);
    }
    let cells = 2 + 8 * 2;
    assert!(taken(queue.segment()) <= before + cells * KEPT);
}

/// Where a child that makes a value of a message says so, and stays.
static STOP_AT: OnceLock<Board> = OnceLock::new();

#[derive(Debug, PartialEq, Serialize)]
struct Slow(Vec<u8>);

impl<'de> Deserialize<'de> for Slow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Vec::deserialize(deserializer)?;
        if let Some(board) = STOP_AT.get() {
            board.add(READY, 1);
            hold(&value);
        }
        Ok(Self(value))
    }
}

#[test]
fn a_receiver_killed_while_it_makes_a_value_loses_nothing() {
    fn receive((board, queue): (Board, ObjectQueue<Slow>)) {
        tied_to_parent();
        STOP_AT.set(board).unwrap();
        let _ = queue.recv();
    }
    let (board, queue) = (Board::new(4), ObjectQueue::new(2).unwrap());
    for (round, len) in [(1, 10), (2, 700_000)] {
        queue.send(Slow(pattern(3, len))).unwrap();
        let receiver = child(receive, (board.clone(), queue.clone()));
        board.await_at_least(READY, round);
        assert_eq!(queue.try_recv(), Err(RecvError::Empty), "it has the message");
        kill_and_reap(&receiver);
        let message = queue.recv_ref_timeout(HANG).unwrap();
        assert_eq!((message.deliveries(), &*message), (2, &Slow(pattern(3, len))));
        drop(message);
        assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
    }
}

#[test]
fn a_message_that_does_not_fit_its_buffer_is_kept() {
    let queue = BytesQueueOptions::new(4).lanes(2).hands(1).anonymous().unwrap();
    for len in [100, 300_000] {
        queue.send(&pattern(1, len)).unwrap();
        queue.send(b"next").unwrap();
        let mut buffer = vec![0; len];
        assert_eq!(queue.recv_into(&mut buffer[..len - 1]), Err(RecvError::BufferTooShort { bytes: len }));
        assert_eq!(queue.recv_into(&mut []), Err(RecvError::BufferTooShort { bytes: len }));
        assert_eq!(queue.recv_into(&mut buffer), Ok(len));
        assert_eq!(buffer, pattern(1, len));
        assert_eq!(queue.recv_into(&mut buffer), Ok(4));

        // If its handle goes, another one gets it.
        let other = queue.clone();
        other.send(&pattern(2, len)).unwrap();
        assert_eq!(other.try_recv_into(&mut []), Err(RecvError::BufferTooShort { bytes: len }));
        assert_eq!(queue.try_recv(), Err(RecvError::Empty));
        drop(other);
        let message = queue.recv_ref_timeout(HANG).unwrap();
        assert_eq!((message.deliveries(), &*message), (2, &*pattern(2, len)));
    }
    assert_eq!(queue.audit(), Ok(()));
}

#[test]
fn a_forked_child_does_nothing_to_what_its_parent_holds() {
    isolated(|()| {
        let queue = BytesQueueOptions::new(4).lanes(2).anonymous().unwrap();
        queue.send(&pattern(1, 500_000)).unwrap();
        let mut message = Some(queue.recv_ref().unwrap());
        let mut loan = Some(queue.loan(MIB).unwrap());
        let there = taken(queue.segment());
        let forked = Forked::new(|| {
            drop(message.take());
            drop(loan.take());
            assert_eq!(queue.try_recv(), Err(RecvError::Unusable(Unusable::NotAttached)));
            assert_eq!(queue.send(&[1; 300_000]), Err(SendError::Unusable((), Unusable::NotAttached)));
        });
        assert_eq!(forked.end(), End::Exited(0));
        assert_eq!(taken(queue.segment()), there);
        assert!(message.as_deref() == Some(&pattern(1, 500_000)[..]));
        let mut loan = loan.unwrap();
        loan.fill(8);
        loan.send().unwrap();
        // As if its holder had died: the message is still one.
        let other = queue.clone();
        std::mem::forget(message);
        drop(queue);
        assert_eq!(other.recv().unwrap(), [8; MIB]);
        assert_eq!(other.recv_timeout(HANG).unwrap(), pattern(1, 500_000));
        sound(&other);
    });
}

/// Where the one that is killed at each of its system calls has been.
const STEP: usize = 3;

#[test]
fn who_is_killed_at_any_system_call_loses_no_message_and_no_memory() {
    // More than all cells may keep.
    const LEN: usize = 700_000;
    const OPTIONS: fn() -> BytesQueueOptions = || BytesQueueOptions::new(2).lanes(3).message_max(2 * MIB);
    fn make() -> (Board, BytesQueue, u64) {
        let segment =
            SegmentOptions::new().windows(OPTIONS().windows().unwrap()).anonymous(64 << 10).unwrap();
        let queue = OPTIONS().in_segment(&segment, "queue").unwrap();
        let before = taken(&segment);
        queue.send(&pattern(1, LEN)).unwrap();
        (Board::new(4), queue, before)
    }
    fn act((board, queue, _): &(Board, BytesQueue, u64)) {
        let segment = queue.segment().attach_again().unwrap();
        let queue = OPTIONS().in_segment(&segment, "queue").unwrap();
        let first = queue.recv_ref().unwrap();
        assert!(*first == pattern(1, LEN));
        board.set(STEP, 1);
        drop(first);
        board.set(STEP, 2);
        queue.send(&pattern(2, LEN)).unwrap();
        board.set(STEP, 3);
        drop(queue.loan(2 * LEN).unwrap());
        let second = queue.recv_ref().unwrap();
        board.set(STEP, 4);
        drop(second);
        board.set(STEP, 5);
    }
    fn check((board, queue, before): (Board, BytesQueue, u64), stop: u64) {
        let step = board.get(STEP);
        // What the cells say of their pages holds at every moment.
        let words = cell_words(queue.segment(), 8, 256);
        let pages = words.iter().skip(1).step_by(32).map(|word| word.load(Ordering::Relaxed));
        let (certain, may) =
            pages.fold((0, 0), |(certain, may), word| (certain + (word as u32), may + (word >> 32)));
        let there = taken(queue.segment()) - before;
        assert!(
            u64::from(certain) * 4096 <= there && there <= may * 4096,
            "stop {stop}: {certain}, {there}, {may}"
        );
        let messages: Vec<Vec<u8>> = queue.try_iter().collect();
        let left: Vec<u64> =
            messages.iter().map(|message| if *message == pattern(1, LEN) { 1 } else { 2 }).collect();
        assert!(
            messages.iter().zip(&left).all(|(message, &nth)| *message == pattern(nth, LEN)),
            "stop {stop}"
        );
        let possible: &[&[u64]] = match step {
            0 => &[&[1]],
            1 => &[&[1], &[]],
            2 => &[&[], &[2]],
            3 => &[&[2]],
            4 => &[&[2], &[]],
            _ => &[&[]],
        };
        assert!(possible.contains(&&left[..]), "stop {stop}, after step {step}: {left:?}");
        let heirs = [queue.clone(), queue.clone()];
        let now = taken(queue.segment());
        assert!(now <= before + 8 * KEPT, "stop {stop}, after step {step}: {before} before, {now} now");
        assert_eq!(queue.audit(), Ok(()), "stop {stop}");
        for heir in heirs {
            heir.send(&pattern(3, LEN)).unwrap();
            assert!(queue.recv().unwrap() == pattern(3, LEN));
        }
    }
    isolated(|()| at_every_call("long messages", make, act, check));
}

// ---- What is no message ----

mod theirs {
    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Job(pub(super) Vec<u8>);
}

mod ours {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    pub(super) struct Job(pub(super) String, pub(super) Option<bool>);
}

#[test]
fn a_queue_of_another_type_is_refused_and_so_is_a_message() {
    let segment = SegmentOptions::new().windows(1 << 30).anonymous(1 << 20).unwrap();
    let words = segment.object_queue::<Vec<String>>("words", 2).unwrap();
    let error = segment.object_queue::<Vec<u32>>("words", 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongType);
    let text = error.to_string();
    assert!(text.contains("Vec<String>") && text.contains("Vec<u32>"), "names both: {text}");
    assert_eq!(segment.bytes_queue("words", 2).unwrap_err().kind(), ErrorKind::WrongKind);
    assert_eq!(segment.queue::<u8>("words", 2).unwrap_err().kind(), ErrorKind::WrongKind);
    drop(words);

    // Of the same name: the message is refused, and the next is not.
    let sending = segment.object_queue::<theirs::Job>("jobs", 4).unwrap();
    let receiving = segment.object_queue::<ours::Job>("jobs", 4).unwrap();
    let right = segment.object_queue::<theirs::Job>("jobs", 4).unwrap();
    for (job, why) in [(&[][..], "end too soon"), (&[0xff], "UTF-8"), (&[], "end too soon")] {
        sending.send(theirs::Job(job.to_vec())).map_err(|e| e.map(drop)).unwrap();
        let error = receiving.recv().unwrap_err();
        assert!(matches!(error, RecvError::Undecodable(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("`Job`") && text.contains(why), "{text}");
    }
    sending.send(theirs::Job(vec![7])).map_err(|e| e.map(drop)).unwrap();
    assert_eq!(right.recv().map(|job| job.0), Ok(vec![7]));
    receiving.send(ours::Job("a".repeat(100), None)).unwrap();
    assert!(right.recv().is_err_and(|e| e.to_string().contains("bytes are left over")));
    receiving.send(ours::Job("b".repeat(400_000), Some(true))).unwrap();
    assert_eq!(receiving.recv(), Ok(ours::Job("b".repeat(400_000), Some(true))));
    assert_eq!((receiving.len(), receiving.audit()), (0, Ok(())));
}

#[test]
fn what_can_not_travel_is_given_back() {
    // Handles travel with processes, not in memory.
    let (queues, traveller) = (ObjectQueue::new(2).unwrap(), Queue::<u32>::new(1).unwrap());
    let unsent = queues.send(BTreeMap::from([(7_u8, traveller)])).unwrap_err();
    assert!(matches!(unsent, SendError::Unfit(_, Unfit::Unserializable(_))), "{unsent:?}");
    let text = unsent.to_string();
    assert!(text.contains("handles can only be serialised while they are handed to a process"), "{text}");
    assert!(text.contains("BTreeMap<u8, Queue<u32>>"), "{text}");
    let traveller = unsent.into_inner().remove(&7).unwrap();
    traveller.send(1).unwrap();
    assert_eq!((traveller.recv(), queues.is_empty(), queues.audit()), (Ok(1), true, Ok(())));

    /// Refuses in the second of the two passes, or becomes longer in it.
    #[derive(Deserialize)]
    struct Fickle(#[serde(skip)] std::cell::Cell<u32>, u8);
    impl Serialize for Fickle {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let pass = self.0.replace(self.0.get() + 1);
            match (self.1, pass) {
                (0, 1) => Err(serde::ser::Error::custom("not twice")),
                (1, 1) => "much longer than before".serialize(serializer),
                (2, 1) => "".serialize(serializer),
                _ => "short".serialize(serializer),
            }
        }
    }
    let queue = BytesQueueOptions::new(2).inline(0).objects::<Fickle>().unwrap();
    let before = taken(queue.segment());
    for (how, text) in [(0, "refused"), (1, "became longer")] {
        let unsent = queue.send(Fickle(0.into(), how)).map_err(|e| e.to_string());
        assert!(unsent.is_err_and(|said| said.contains(text) && said.contains("`Fickle`")), "{how}");
    }
    assert!(queue.is_empty() && taken(queue.segment()) <= before + 2 * KEPT);
    queue.send(Fickle(0.into(), 2)).map_err(|e| e.map(drop)).unwrap();
    assert_eq!((queue.len(), queue.audit()), (1, Ok(())));

    let queue = BytesQueueOptions::new(2).message_max(5000).objects::<Vec<u8>>().unwrap();
    assert_eq!(queue.message_max(), 8192);
    let unsent = queue.send(vec![1; 8191]).unwrap_err();
    assert_eq!(unsent, SendError::Unfit(vec![1; 8191], Unfit::TooLong { most: 8192 }));
    assert!(unsent.to_string().contains("longer than 8192 bytes"), "{unsent}");
    queue.send(vec![1; 8190]).unwrap();
    assert_eq!(queue.recv().map(|message| message.len()), Ok(8190));
}

/// All words of the queue's cells, found as the format says: they are the end of the object.
fn cell_words(segment: &Segment, cells: usize, stride: usize) -> PlacedSlice<AtomicU64> {
    let object = segment.objects().first().unwrap().object;
    let bytes = (cells * stride) as u64;
    let span = Span { offset: object.offset + object.bytes - bytes, count: bytes / 8 };
    segment.mapping().place_slice(span).unwrap()
}

#[test]
fn hostile_lengths_lead_nowhere() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    const STRIDE: usize = 256;
    let options = BytesQueueOptions::new(2).lanes(2).hands(2).message_max(64 << 10);
    let (mut refused, mut received) = (0, 0);
    for round in 0..400 {
        let queue = options.anonymous().unwrap();
        let words = cell_words(queue.segment(), 2 + 2 * 2, STRIDE);
        queue.send(&pattern(1, if rng.once_in(2) { 100 } else { 50_000 })).unwrap();
        for cell in 0..6 {
            let hostile = |rng: &mut Rng| match rng.below(8) {
                0 => u64::MAX,
                1 => 1 << rng.below(64),
                2 => rng.below(500) << 1,
                3 => rng.below(80_000) << 1 | 1,
                4 => (64 << 10) << 1 | 1,
                5 => rng.below(20) | rng.below(20) << 32,
                6 => 0,
                _ => rng.bits(),
            };
            words[cell * STRIDE / 8].store(hostile(&mut rng), Ordering::Relaxed);
            words[cell * STRIDE / 8 + 1].store(hostile(&mut rng), Ordering::Relaxed);
        }
        let _ = queue.audit();
        match queue.try_recv_ref() {
            Ok(message) => {
                assert!(message.len() <= 64 << 10, "round {round}");
                let _ = message.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                received += 1;
            }
            Err(why) => {
                assert_eq!(why, RecvError::Unusable(Unusable::Damaged), "round {round}");
                refused += 1;
            }
        }
        // A cell that was received or sent says what is true again.
        for len in [0, 240, 241, 64 << 10, 1] {
            queue.send_timeout(&pattern(2, len), HANG).unwrap();
            assert_eq!(queue.recv_timeout(HANG).unwrap(), pattern(2, len), "round {round}");
        }
    }
    assert!(refused > 20 && received > 20, "{refused} refused, {received} received: both must occur");
}

#[test]
fn hostile_sizes_are_refused() {
    let segment = SegmentOptions::new().windows(1 << 30).anonymous(1 << 20).unwrap();
    let options = BytesQueueOptions::new(2).lanes(2).message_max(64 << 10);
    let queue = options.in_segment(&segment, "queue").unwrap();
    let object = segment.objects()[0].object;
    let words =
        segment.mapping().place_slice::<AtomicU64>(Span { offset: object.offset, count: 64 }).unwrap();
    // Stride, window and what is kept, at 384, 392 and 400.
    for (word, right) in [(48, 256), (49, 64 << 10), (50, 64 << 10)] {
        assert_eq!(words[word].load(Ordering::Relaxed), right);
        for wrong in [1, right + 1, right + 64, right * 2, 1 << 40, 1 << 63, u64::MAX, 4096 * 1000] {
            words[word].store(wrong, Ordering::Relaxed);
            let error = options.in_segment(&segment, "queue").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged, "word {word} = {wrong}: {error}");
        }
        words[word].store(right, Ordering::Relaxed);
    }
    // Who has it open does not look again.
    sound(&queue);
}

// ---- All at once ----

const PARCELS: u64 = 1500;

const AGAIN: u64 = 1 << 32;
const SENT: u64 = 1 << 48;

/// A word for each parcel: how often it was worked on, how often it came again, and whether its sender knows that it was sent.
fn work((board, queue): (Board, ObjectQueue<Parcel>)) {
    tied_to_parent();
    while let Ok(parcel) = queue.recv_ref() {
        assert_eq!(*parcel, Parcel::new(parcel.sender, parcel.nth));
        let again = if parcel.is_redelivered() { AGAIN } else { 0 };
        board.add(8 + parcel.nth as usize, 1 + again);
        if parcel.nth % 8 == 0 {
            std::thread::yield_now();
        }
    }
}

/// Sends what has not been sent: the number of the next is on the board.
fn provide((board, queue): (Board, ObjectQueue<Parcel>)) {
    tied_to_parent();
    loop {
        let nth = board.add(GO, 1);
        if nth >= PARCELS || queue.send(Parcel::new(1, nth)).is_err() {
            return;
        }
        board.add(8 + nth as usize, SENT);
    }
}

#[test]
fn workers_and_senders_are_killed_and_nothing_is_lost() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let board = Board::new(8 + PARCELS as usize);
    let queue = BytesQueueOptions::new(6).lanes(12).objects::<Parcel>().unwrap();
    let before = taken(queue.segment());
    let start = |which: usize| -> Process<()> {
        let role = if which < 2 { provide } else { work };
        child(role, (board.clone(), queue.clone()))
    };
    let mut all: Vec<Process<()>> = (0..4).map(start).collect();
    let (mut killed, mut killed_senders) = (0_u64, 0_u64);
    let started = Instant::now();
    while board.get(GO) < PARCELS {
        assert!(started.elapsed() < HANG, "{} of {PARCELS} are sent", board.get(GO));
        std::thread::sleep(Duration::from_millis(rng.below(30)));
        let which = rng.below(4) as usize;
        if all[which].kill().is_ok() {
            let ended = all[which].wait_timeout(HANG);
            assert!(ended.is_some());
            killed += 1;
            killed_senders += u64::from(which < 2);
        }
        all[which] = start(which);
    }
    // The senders end by themselves; then the workers, when all has been done.
    for sender in all.drain(..2) {
        join(sender);
    }
    queue.close().unwrap();
    all.into_iter().for_each(join);
    let words: Vec<u64> = (0..PARCELS as usize).map(|nth| board.get(8 + nth)).collect();
    let (mut lost, mut all_again) = (Vec::new(), 0);
    for (nth, word) in words.iter().enumerate() {
        let (times, again) = (word % AGAIN, word % SENT / AGAIN);
        if times == 0 && *word >= SENT {
            lost.push(nth);
        }
        assert!(times <= 1 + again, "parcel {nth} was worked on {times} times, {again} of them marked");
        all_again += again;
    }
    println!("{killed} killed, {killed_senders} of them senders; {all_again} came again");
    assert_eq!(lost, [], "sent, and nobody worked on them");
    let unsent = words.iter().filter(|&&word| word < SENT).count() as u64;
    assert!(unsent <= killed_senders);
    assert!(all_again <= killed - killed_senders);
    assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
    // All lanes are somebody's once more.
    let heirs: Vec<_> = (0..11).map(|_| queue.clone()).collect();
    assert!(taken(queue.segment()) <= before + (6 + 12 * 2) * KEPT);
    drop(heirs);
}
