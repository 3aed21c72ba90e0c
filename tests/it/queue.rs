//! Messages arrive in order, once, and whole; what the dead had comes back; who waits in vain is told why.

use std::mem::forget;
use std::time::{Duration, Instant};

use crossproc_atomic::{AtomicU8, Ordering};
use crossproc_derive::Plain;
use crossproc_primitives::{Objects, Queue, QueueOptions, RecvError, SendError, Unusable};
use crossproc_process::Process;
use crossproc_segment::plain::Plain;
use crossproc_segment::{ErrorKind, PlacedSlice, Segment, Span};
use crossproc_tests::{
    Board, HANG, Rng, await_asleep, await_state, child, fresh_seed, isolated, join, kill_and_reap,
    tied_to_parent, wait_for,
};

use crate::kernel::{End, Forked};

const READY: usize = 0;
const GO: usize = 1;
const SENT: usize = 2;
const WRONG: usize = 3;

const SOON: Duration = Duration::from_millis(30);

/// Who sent it, as its which.
fn value(sender: u64, nth: u64) -> u64 {
    sender << 32 | nth
}

/// Nothing is wrong with the words, and the queue works.
#[track_caller]
fn sound(queue: &Queue<u64>) {
    assert_eq!(queue.audit(), Ok(()));
    if !queue.is_closed() {
        queue.send_timeout(7, HANG).unwrap();
        assert_eq!(queue.recv_timeout(HANG), Ok(7));
        assert_eq!(queue.audit(), Ok(()));
    }
}

// ---- Order and wholeness ----

fn send_all((queue, sender, count): (Queue<u64>, u64, u64)) {
    tied_to_parent();
    for nth in 0..count {
        match nth % 4 {
            0 => queue.send(value(sender, nth)).unwrap(),
            1 => queue.send_timeout(value(sender, nth), HANG).unwrap(),
            2 => {
                let mut loan = queue.loan().unwrap();
                *loan = value(sender, nth);
                loan.send().unwrap();
            }
            _ => queue.send_deadline(value(sender, nth), Instant::now() + HANG).unwrap(),
        }
    }
}

/// The values in the order in which they came, until the queue is closed.
fn receive_all(queue: Queue<u64>) -> Vec<u64> {
    tied_to_parent();
    let mut values = Vec::new();
    loop {
        let received = match values.len() % 3 {
            0 => queue.recv_timeout(HANG),
            1 => queue.recv_ref_timeout(HANG).map(|message| *message),
            _ => queue.recv(),
        };
        match received {
            Ok(value) => values.push(value),
            Err(RecvError::Closed) => return values,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn messages_arrive_once_and_in_the_order_of_their_senders() {
    const EACH: u64 = 3000;
    for capacity in [1, 2, 3, 64] {
        let queue = Queue::new(capacity).unwrap();
        let receivers: Vec<_> = (0..2).map(|_| child(receive_all, queue.clone())).collect();
        let senders: Vec<_> = (0..2).map(|sender| child(send_all, (queue.clone(), sender, EACH))).collect();
        senders.into_iter().for_each(join);
        queue.close().unwrap();
        let received: Vec<Vec<u64>> = receivers.into_iter().map(join).collect();
        for values in &received {
            for sender in 0..2 {
                let theirs: Vec<_> = values.iter().filter(|value| **value >> 32 == sender).collect();
                assert!(theirs.is_sorted(), "capacity {capacity}: out of order");
            }
        }
        let mut all = received.concat();
        all.sort_unstable();
        let should: Vec<_> = (0..2).flat_map(|sender| (0..EACH).map(move |nth| value(sender, nth))).collect();
        assert_eq!(all.len(), should.len(), "capacity {capacity}");
        assert_eq!(all, should, "capacity {capacity}: each once");
        assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
    }
}

#[test]
fn one_receiver_sees_the_order_of_the_queue() {
    // With a single sender and a single receiver the order is complete.
    for capacity in [1, 2, 3, 64] {
        let queue = Queue::new(capacity).unwrap();
        let receiver = child(receive_all, queue.clone());
        send_all((queue.clone(), 1, 5000));
        queue.close().unwrap();
        assert_eq!(join(receiver), (0..5000).map(|nth| value(1, nth)).collect::<Vec<_>>());
        assert_eq!(queue.audit(), Ok(()));
    }
}

/// Bytes that all depend on the message's number.
fn pattern<const N: usize>(nth: usize) -> [u8; N] {
    std::array::from_fn(|at| (nth.wrapping_mul(31) + at.wrapping_mul(7)) as u8)
}

fn is_whole<const N: usize>() {
    fn receive<const N: usize>((queue, count): (Queue<[u8; N]>, usize)) -> usize {
        tied_to_parent();
        let mut wrong = 0;
        for nth in 0..count {
            let same = match nth % 2 {
                0 => queue.recv_timeout(HANG).unwrap() == pattern::<N>(nth),
                _ => *queue.recv_ref_timeout(HANG).unwrap() == pattern::<N>(nth),
            };
            wrong += usize::from(!same);
        }
        wrong
    }
    let queue = Queue::<[u8; N]>::new(4).unwrap();
    let receiver = child(receive::<N>, (queue.clone(), 400));
    for nth in 0..400 {
        if nth % 2 == 0 {
            queue.send_timeout(pattern(nth), HANG).unwrap();
        } else {
            let mut loan = queue.loan().unwrap();
            *loan = pattern(nth);
            loan.send_timeout(HANG).unwrap();
        }
    }
    assert_eq!(join(receiver), 0, "{N} bytes");
    assert_eq!(queue.audit(), Ok(()));
}

#[test]
fn values_of_all_sizes_arrive_whole() {
    is_whole::<1>();
    is_whole::<3>();
    is_whole::<8>();
    is_whole::<63>();
    is_whole::<64>();
    is_whole::<65>();
    is_whole::<1000>();
    is_whole::<4096>();
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[plain(checked)]
#[repr(C)]
struct Job {
    letter: char,
    side: Side,
    sides: [Side; 2],
    urgent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(u8)]
enum Side {
    Buy,
    Sell,
}

/// Changes a byte behind `mark`, wherever in the segment that is.
fn scribble<T: Plain>(queue: &Queue<T>, mark: [u8; 4], behind: usize, byte: u8) {
    let object = queue.segment().objects()[0].object;
    let span = Span { offset: object.offset, count: object.bytes };
    let bytes: PlacedSlice<AtomicU8> = queue.segment().mapping().place_slice(span).unwrap();
    let mut found = 0;
    for at in 0..bytes.len() - 4 - behind {
        if (0..4).all(|n| bytes[at + n].load(Ordering::SeqCst) == mark[n]) {
            bytes[at + 4 + behind].store(byte, Ordering::SeqCst);
            found += 1;
        }
    }
    assert!(found > 0, "the message is in the segment");
}

#[test]
fn what_is_no_value_of_the_type_is_not_received() {
    let jobs = Queue::<Job>::new(2).unwrap();
    let job = Job { letter: 'ß', side: Side::Sell, sides: [Side::Sell, Side::Buy], urgent: true };
    jobs.send(job).unwrap();
    assert_eq!(jobs.recv(), Ok(job));
    let receiver = child(|jobs: Queue<Job>| jobs.recv_timeout(HANG).unwrap().letter, jobs.clone());
    jobs.send(job).unwrap();
    assert_eq!(join(receiver), 'ß');

    for (behind, byte) in [(0, 2), (2, 9), (3, 2)] {
        jobs.send(job).unwrap();
        scribble(&jobs, u32::from('ß').to_ne_bytes(), behind, byte);
        assert!(matches!(jobs.recv(), Err(RecvError::Invalid(_))));
        // That message is gone, the queue is not.
        assert_eq!(jobs.try_recv(), Err(RecvError::Empty));
        jobs.send(job).unwrap();
        assert_eq!(jobs.recv(), Ok(job));
    }
    assert_eq!((jobs.len(), jobs.audit()), (0, Ok(())));

    let flags = Queue::<bool>::new(3).unwrap();
    for flag in [true, false, true] {
        flags.send(flag).unwrap();
    }
    assert_eq!(flags.try_iter().collect::<Vec<_>>(), [true, false, true]);
}

// ---- Full, empty, time limits ----

#[test]
fn a_full_queue_gives_the_value_back() {
    for capacity in [1, 2, 3, 64] {
        let queue = Queue::new(capacity).unwrap();
        assert!(queue.is_empty() && !queue.is_full());
        for nth in 0..capacity as u64 {
            assert_eq!(queue.len(), nth as usize);
            assert!(!queue.is_full());
            queue.try_send(nth).unwrap();
            assert!(!queue.is_empty());
        }
        assert!(queue.is_full());
        assert_eq!((queue.len(), queue.capacity()), (capacity, capacity));
        assert_eq!(queue.try_send(99), Err(SendError::Full(99)));
        let mut loan = queue.loan().unwrap();
        *loan = 77;
        let Err(SendError::Full(loan)) = loan.try_send() else { panic!("it is full") };
        assert_eq!(*loan, 77, "the loan is as it was");
        let before = Instant::now();
        let Err(SendError::TimedOut(loan)) = loan.send_timeout(SOON) else { panic!("it is full") };
        assert!(before.elapsed() >= SOON);
        assert_eq!(*loan, 77);
        let deadline = Instant::now() + SOON;
        assert_eq!(queue.send_deadline(98, deadline), Err(SendError::TimedOut(98)));
        assert!(Instant::now() >= deadline);
        assert_eq!(queue.send_many(&[1, 2]), Ok(0));
        assert_eq!(queue.try_recv(), Ok(0));
        loan.try_send().unwrap();
        assert_eq!(queue.iter().take(capacity).collect::<Vec<_>>(), {
            let mut should: Vec<u64> = (1..capacity as u64).collect();
            should.push(77);
            should
        });
        assert_eq!(queue.try_recv(), Err(RecvError::Empty));
        assert_eq!(queue.try_recv_ref().err(), Some(RecvError::Empty));
        let before = Instant::now();
        assert_eq!(queue.recv_timeout(SOON), Err(RecvError::TimedOut));
        assert!(before.elapsed() >= SOON);
        assert_eq!(queue.recv_ref_deadline(Instant::now() + SOON).err(), Some(RecvError::TimedOut));
        sound(&queue);
    }
}

#[test]
fn batches_take_as_many_as_there_are_and_fit() {
    let queue = Queue::new(5).unwrap();
    assert_eq!(queue.send_many(&[1, 2, 3]), Ok(3));
    assert_eq!(queue.send_many(&[4, 5, 6, 7]), Ok(2));
    let mut values = vec![0];
    assert_eq!(queue.recv_many(&mut values, 2), Ok(2));
    assert_eq!(queue.recv_many(&mut values, 0), Ok(0));
    assert_eq!(queue.recv_many(&mut values, 100), Ok(3));
    assert_eq!(values, [0, 1, 2, 3, 4, 5]);
    assert_eq!(queue.recv_many(&mut values, 1), Err(RecvError::Empty));
    assert_eq!(queue.send_many(&[]), Ok(0));
    sound(&queue);
    queue.send_many(&[8]).unwrap();
    queue.close().unwrap();
    assert_eq!(queue.send_many(&[9]), Err(SendError::Closed(())));
    assert_eq!(queue.recv_many(&mut values, 9), Ok(1));
    assert_eq!(queue.recv_many(&mut values, 9), Err(RecvError::Closed));
    assert_eq!(values.len(), 7);
}

/// A batch wakes as many receivers as it has messages.
#[test]
fn a_batch_wakes_all_whom_it_serves() {
    fn one((board, queue): (Board, Queue<u64>)) -> u64 {
        tied_to_parent();
        board.add(READY, 1);
        queue.recv().unwrap()
    }
    let (board, queue) = (Board::new(8), Queue::new(8).unwrap());
    let receivers: Vec<_> = (0..3).map(|_| child(one, (board.clone(), queue.clone()))).collect();
    board.await_at_least(READY, 3);
    receivers.iter().for_each(|receiver| await_asleep(receiver.pid()));
    queue.send_many(&[1, 2, 3]).unwrap();
    let mut received: Vec<u64> = receivers.into_iter().map(join).collect();
    received.sort_unstable();
    assert_eq!(received, [1, 2, 3]);
    sound(&queue);
}

// ---- Hands and lanes ----

#[test]
fn a_handle_holds_as_many_loans_and_messages_as_it_has_hands() {
    let queue = QueueOptions::new(4).hands(3).lanes(2).anonymous::<u64>().unwrap();
    assert_eq!((queue.hands(), queue.lanes(), queue.capacity()), (3, 2, 4));
    queue.send_many(&[1, 2, 3, 4]).unwrap();
    let first = queue.recv_ref().unwrap();
    let second = queue.recv_ref().unwrap();
    let mut loan = queue.loan().unwrap();
    *loan = 9;
    assert_eq!((*first, *second, first.deliveries(), second.is_redelivered()), (1, 2, 1, false));
    let no_hand = Unusable::NoHand;
    assert_eq!(queue.try_recv(), Err(RecvError::Unusable(no_hand)));
    assert_eq!(queue.try_recv_ref().err(), Some(RecvError::Unusable(no_hand)));
    assert_eq!(queue.try_send(5), Err(SendError::Unusable(5, no_hand)));
    assert_eq!(queue.loan().err(), Some(no_hand));
    assert_eq!(queue.send_many(&[5]), Err(SendError::Unusable((), no_hand)));
    // Another handle has hands of its own.
    let other = queue.clone();
    assert_eq!(other.recv(), Ok(3));
    drop(first);
    assert_eq!(queue.recv(), Ok(4));
    loan.send().unwrap();
    assert_eq!(*second, 2, "as it was, whatever the others did");
    drop(second);
    assert_eq!(queue.recv(), Ok(9));
    sound(&queue);
}

#[test]
fn a_handle_without_a_lane_waits_for_nobody_and_gets_one_later() {
    let queue = QueueOptions::new(4).lanes(2).anonymous::<u64>().unwrap();
    let second = queue.clone();
    let third = queue.clone();
    let no_lane = Unusable::NoLane;
    assert_eq!(third.send(1), Err(SendError::Unusable(1, no_lane)));
    assert_eq!(third.recv(), Err(RecvError::Unusable(no_lane)));
    // It can look.
    assert_eq!((third.len(), third.is_empty(), third.is_full()), (0, true, false));
    queue.send_many(&[1, 2, 3, 4]).unwrap();
    assert_eq!((third.len(), third.is_empty(), third.is_full(), third.is_closed()), (4, false, true, false));
    assert_eq!(queue.try_iter().count(), 4);
    let elsewhere =
        |queue: Queue<u64>| matches!(queue.try_send(2), Err(SendError::Unusable(2, Unusable::NoLane)));
    assert!(join(child(elsewhere, third.clone())), "nor does another process");
    drop(second);
    third.send(3).unwrap();
    assert_eq!(queue.recv(), Ok(3));
    sound(&queue);
    // And close.
    let fourth = queue.clone();
    assert_eq!(fourth.try_recv(), Err(RecvError::Unusable(no_lane)));
    assert_eq!(
        (fourth.close(), queue.close(), third.try_recv()),
        (Ok(true), Ok(false), Err(RecvError::Closed))
    );
}

fn hold_lane((board, queue): (Board, Queue<u64>)) {
    tied_to_parent();
    queue.send_timeout(1, HANG).unwrap();
    assert_eq!(queue.recv_timeout(HANG), Ok(1));
    board.add(READY, 1);
    loop {
        std::thread::park();
    }
}

#[test]
fn lanes_of_the_dead_are_inherited() {
    // One for this process, one for what travels, one for the child.
    let queue = QueueOptions::new(2).lanes(3).anonymous().unwrap();
    let board = Board::new(8);
    for round in 1..=20 {
        let holder = child(hold_lane, (board.clone(), queue.clone()));
        board.await_at_least(READY, round);
        kill_and_reap(&holder);
    }
    let others: Vec<_> = (0..2).map(|_| queue.clone()).collect();
    others.iter().for_each(sound);
    assert_eq!(queue.clone().try_send(1), Err(SendError::Unusable(1, Unusable::NoLane)));
}

#[test]
fn handles_of_one_queue_are_used_by_threads() {
    const EACH: u64 = 2000;
    fn check(sums: [u64; 3]) {
        assert_eq!(sums.iter().sum::<u64>(), 3 * EACH * (EACH - 1) / 2);
    }
    fn in_process(queue: Queue<u64>) {
        let sums = std::thread::scope(|s| {
            let senders: Vec<_> = (0..3)
                .map(|_| {
                    let queue = queue.clone();
                    s.spawn(move || (0..EACH).for_each(|nth| queue.send_timeout(nth, HANG).unwrap()))
                })
                .collect();
            let receivers = [0; 3].map(|_| {
                let queue = queue.clone();
                s.spawn(move || queue.iter().sum::<u64>())
            });
            senders.into_iter().for_each(|sender| sender.join().unwrap());
            queue.close().unwrap();
            receivers.map(|receiver| receiver.join().unwrap())
        });
        check(sums);
    }
    let queue = Queue::new(3).unwrap();
    in_process(queue.clone());
    assert_eq!(queue.audit(), Ok(()));
    let queue = Queue::new(3).unwrap();
    join(child(in_process, queue.clone()));
    assert_eq!((queue.is_closed(), queue.audit()), (true, Ok(())));
}

#[test]
fn one_handle_is_shared_by_threads() {
    const EACH: u64 = 2000;
    let queue = QueueOptions::new(3).lanes(8).anonymous().unwrap();
    let shared = queue.clone().share();
    let sums: Vec<u64> = std::thread::scope(|s| {
        let senders: Vec<_> = (0..3)
            .map(|_| s.spawn(|| (0..EACH).for_each(|nth| shared.send_timeout(nth, HANG).unwrap())))
            .collect();
        let receivers = [0; 3].map(|_| s.spawn(|| std::iter::from_fn(|| shared.recv().ok()).sum::<u64>()));
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        shared.close().unwrap();
        receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect()
    });
    assert_eq!(sums.iter().sum::<u64>(), 3 * EACH * (EACH - 1) / 2);
    assert!(shared.is_empty());
    drop(shared);
    assert_eq!(queue.audit(), Ok(()));
    // Its lanes are free again.
    let others: Vec<_> = (0..7).map(|_| queue.clone()).collect();
    assert!(others.iter().all(|other| other.try_recv() == Err(RecvError::Closed)));
}

// ---- Names and journeys ----

#[test]
fn a_queue_travels_with_its_messages() {
    let queue = Queue::new(8).unwrap();
    queue.send_many(&[1, 2, 3]).unwrap();
    let back = join(child(
        |queue: Queue<u64>| {
            assert_eq!(queue.recv(), Ok(1));
            queue.send(4).unwrap();
            queue
        },
        queue,
    ));
    assert_eq!(back.try_iter().collect::<Vec<_>>(), [2, 3, 4]);
    sound(&back);
}

#[test]
fn a_queue_is_found_by_its_name_and_keeps_its_shape() {
    let name = format!("it-queue-{}", std::process::id());
    let segment = Segment::create(&name, 64 * 1024).unwrap();
    let queue = QueueOptions::new(5).lanes(6).hands(3).in_segment::<u64>(&segment, "orders").unwrap();
    queue.send(11).unwrap();
    let other = |name: String| {
        let segment = Segment::open(&name).unwrap();
        let queue = QueueOptions::new(900).lanes(2).hands(1).in_segment::<u64>(&segment, "orders").unwrap();
        assert_eq!(queue.recv(), Ok(11));
        queue.send(12).unwrap();
        (queue.capacity(), queue.lanes(), queue.hands())
    };
    assert_eq!(join(child(other, name)), (5, 6, 3));
    assert_eq!(queue.recv(), Ok(12));
    assert_eq!(segment.queue::<u64>("orders", 1).unwrap().capacity(), 5);
    assert!(segment.queue::<i64>("orders", 5).is_err(), "of another type");
    assert!(segment.queue::<[u64; 2]>("orders", 5).is_err());
    sound(&queue);
}

/// Two who make it at once, each of another shape, have one queue.
#[test]
fn who_comes_second_gets_the_first_ones_shape() {
    fn race((board, segment, me, rounds): (Board, Segment, u64, u64)) -> Vec<usize> {
        tied_to_parent();
        (1..=rounds)
            .map(|round| {
                board.meet(GO, 2, round);
                let queue = segment.queue::<u64>(&format!("q{round}"), 1 + 6 * me as usize).unwrap();
                queue.send_timeout(me, HANG).unwrap();
                board.meet(READY, 2, round);
                queue.capacity()
            })
            .collect()
    }
    const ROUNDS: u64 = 60;
    let board = Board::new(16);
    let segment =
        crossproc_segment::SegmentOptions::new().objects(64).anonymous(ROUNDS as usize * 12 * 1024).unwrap();
    let drain = |segment: &Segment| {
        (1..=ROUNDS)
            .map(|round| segment.queue::<u64>(&format!("q{round}"), 1).unwrap().try_iter().count())
            .sum()
    };
    let other = child(race, (board.clone(), segment.clone(), 1, ROUNDS));
    let mine = std::thread::spawn({
        let segment = segment.clone();
        move || {
            // There may be room for one message only, and both send one.
            for round in 1..=ROUNDS {
                let name = format!("q{round}");
                wait_for("the queue to be made", || segment.objects().iter().any(|o| o.name == name));
                segment.queue::<u64>(&name, 1).unwrap().recv_timeout(HANG).unwrap();
            }
        }
    });
    let first = race((board, segment.clone(), 0, ROUNDS));
    assert_eq!(join(other), first, "one queue for both");
    mine.join().unwrap();
    assert!(first.iter().all(|&capacity| capacity == 1 || capacity == 7));
    let left: usize = drain(&segment);
    assert_eq!(left as u64, ROUNDS);
}

#[test]
fn impossible_shapes_are_refused() {
    for options in [
        QueueOptions::new(0),
        QueueOptions::new(1).lanes(0),
        QueueOptions::new(1).hands(0),
        QueueOptions::new(1).hands(65),
        QueueOptions::new(1).lanes(65_537),
        QueueOptions::new(usize::MAX),
        QueueOptions::new(1 << 22),
    ] {
        assert_eq!(options.anonymous::<u8>().unwrap_err().kind(), ErrorKind::InvalidLength, "{options:?}");
    }
    let smallest = QueueOptions::new(1).lanes(1).hands(1).anonymous::<u8>().unwrap();
    smallest.send(1).unwrap();
    assert_eq!(smallest.recv(), Ok(1));
}

#[test]
fn a_forked_child_does_not_take_part() {
    isolated(|()| {
        let queue = Queue::new(4).unwrap();
        queue.send_many(&[1_u64, 2]).unwrap();
        let message = queue.recv_ref().unwrap();
        let mut inherited = Some(queue.clone());
        let forked = Forked::new(|| {
            let not_attached = Unusable::NotAttached;
            let queue = inherited.take().unwrap();
            assert_eq!(queue.send(9), Err(SendError::Unusable(9, not_attached)));
            assert_eq!(queue.recv(), Err(RecvError::Unusable(not_attached)));
            assert_eq!(queue.close(), Err(not_attached));
            assert_eq!(queue.loan().err(), Some(not_attached));
            assert_eq!(queue.len(), 0);
            drop(queue);
            let attached = message.deliveries();
            assert_eq!(attached, 1);
        });
        assert_eq!(forked.end(), End::Exited(0));
        // What it dropped was not its own.
        assert_eq!(*message, 1);
        drop(message);
        assert_eq!(inherited.unwrap().recv(), Ok(2));
        sound(&queue);
    });
}

#[test]
fn a_forked_child_drops_an_inherited_message_in_vain() {
    isolated(|()| {
        let queue = Queue::new(4).unwrap();
        queue.send(1_u64).unwrap();
        let mut message = Some(queue.recv_ref().unwrap());
        let forked = Forked::new(|| drop(message.take()));
        assert_eq!(forked.end(), End::Exited(0));
        queue.send(2).unwrap();
        assert_eq!(queue.recv(), Ok(2));
        assert_eq!(message.as_deref(), Some(&1));
        assert_eq!(queue.audit(), Ok(()));
        drop(message);
        sound(&queue);
    });
}

// ---- Closing ----

#[test]
fn who_waits_is_told_that_the_queue_is_closed() {
    fn send((board, queue): (Board, Queue<u64>)) -> bool {
        tied_to_parent();
        board.add(READY, 1);
        queue.send(9) == Err(SendError::Closed(9))
    }
    fn receive((board, queue): (Board, Queue<u64>)) -> Vec<u64> {
        tied_to_parent();
        board.add(READY, 1);
        queue.iter().collect()
    }
    let (board, full, empty) = (Board::new(8), Queue::new(1).unwrap(), Queue::new(1).unwrap());
    full.send(1).unwrap();
    let senders: Vec<_> = (0..2).map(|_| child(send, (board.clone(), full.clone()))).collect();
    let receivers: Vec<_> = (0..2).map(|_| child(receive, (board.clone(), empty.clone()))).collect();
    board.await_at_least(READY, 4);
    senders.iter().for_each(|p| await_asleep(p.pid()));
    receivers.iter().for_each(|p| await_asleep(p.pid()));
    assert_eq!((full.close(), empty.close()), (Ok(true), Ok(true)));
    assert!(senders.into_iter().all(join), "the value came back");
    assert!(receivers.into_iter().all(|receiver| join(receiver).is_empty()));
    assert_eq!((full.close(), empty.close()), (Ok(false), Ok(false)));
    assert!(full.is_closed() && empty.is_closed());
    assert_eq!(full.try_send(3), Err(SendError::Closed(3)));
    assert_eq!(full.send_timeout(3, HANG), Err(SendError::Closed(3)));
    let loan = full.loan().unwrap();
    assert!(matches!(loan.send(), Err(SendError::Closed(_))));
    // What was in it before is received.
    assert_eq!(
        (full.recv(), full.recv(), full.try_recv()),
        (Ok(1), Err(RecvError::Closed), Err(RecvError::Closed))
    );
    assert_eq!((full.audit(), empty.audit()), (Ok(()), Ok(())));
}

#[test]
fn a_closed_queue_is_drained_whatever_is_in_it() {
    for capacity in [1, 2, 3, 64] {
        for inside in 0..=capacity as u64 {
            let queue = Queue::new(capacity).unwrap();
            // Anywhere in the ring.
            for nth in 0..inside % 5 {
                queue.send(nth).unwrap();
                queue.recv().unwrap();
            }
            (0..inside).for_each(|nth| queue.send(nth).unwrap());
            assert!(!queue.is_closed());
            assert_eq!(queue.close(), Ok(true));
            assert_eq!(queue.try_send(5), Err(SendError::Closed(5)));
            assert_eq!((queue.len(), queue.close()), (inside as usize, Ok(false)));
            assert_eq!(queue.iter().collect::<Vec<_>>(), (0..inside).collect::<Vec<_>>());
            assert_eq!((queue.try_recv(), queue.audit()), (Err(RecvError::Closed), Ok(())));
        }
    }
}

#[test]
fn shutdown_throws_away_what_is_left() {
    fn send((board, queue): (Board, Queue<u64>)) -> bool {
        tied_to_parent();
        board.add(READY, 1);
        matches!(queue.send(9), Err(SendError::Closed(9)))
    }
    let (board, queue) = (Board::new(8), Queue::new(3).unwrap());
    queue.send_many(&[1, 2, 3]).unwrap();
    let sender = child(send, (board.clone(), queue.clone()));
    board.await_at_least(READY, 1);
    await_asleep(sender.pid());
    assert_eq!(queue.shutdown(), Ok(3));
    assert!(join(sender));
    assert_eq!((queue.shutdown(), queue.recv()), (Ok(0), Err(RecvError::Closed)));
    assert_eq!(queue.audit(), Ok(()));
}

/// However the closing falls among sends and receives: what was sent is received, what was not is given back.
#[test]
fn nothing_is_lost_in_the_moment_of_closing() {
    fn send((board, queue, round): (Board, Queue<u64>, u64)) -> u64 {
        tied_to_parent();
        board.meet(GO, 3, round);
        for nth in 0.. {
            match queue.send(nth) {
                Ok(()) => {}
                Err(SendError::Closed(back)) if back == nth => return nth,
                Err(error) => panic!("{error}"),
            }
        }
        unreachable!("it is closed at some time")
    }
    fn receive((board, queue, round): (Board, Queue<u64>, u64)) -> u64 {
        tied_to_parent();
        board.meet(GO, 3, round);
        queue.iter().zip(0..).map(|(value, should)| assert_eq!(value, should)).count() as u64
    }
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let board = Board::new(8);
    for round in 1..=25 {
        let queue = Queue::new([1, 2, 3, 64][round as usize % 4]).unwrap();
        let sender = child(send, (board.clone(), queue.clone(), round));
        let receiver = child(receive, (board.clone(), queue.clone(), round));
        board.meet(GO, 3, round);
        std::thread::sleep(Duration::from_micros(rng.below(400)));
        assert_eq!(queue.close(), Ok(true));
        let (sent, received) = (join(sender), join(receiver));
        assert_eq!(sent, received, "round {round}");
        assert_eq!((queue.len(), queue.audit()), (0, Ok(())));
    }
}

// ---- Deaths ----

#[test]
fn who_waits_learns_that_nobody_is_left() {
    fn stay((board, _queue): (Board, Queue<u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let board = Board::new(8);
    for killed in [true, false] {
        let (full, empty) = (Queue::new(1).unwrap(), Queue::new(1).unwrap());
        full.send(1).unwrap();
        let before = board.get(READY);
        let peers = [&full, &empty].map(|queue| child(stay, (board.clone(), queue.clone())));
        board.await_at_least(READY, before + 2);
        // Somebody who lives might still come and receive.
        assert_eq!(full.send_timeout(2, SOON), Err(SendError::TimedOut(2)));
        assert_eq!(empty.recv_timeout(SOON), Err(RecvError::TimedOut));
        let (sent, received) = std::thread::scope(|s| {
            let send = s.spawn(move || (full.send(2), full));
            let receive = s.spawn(move || (empty.recv(), empty));
            std::thread::sleep(SOON);
            for peer in peers {
                if killed {
                    kill_and_reap(&peer);
                } else {
                    peer.terminate().unwrap();
                }
            }
            (send.join().unwrap(), receive.join().unwrap())
        });
        assert_eq!((sent.0, received.0), (Err(SendError::PeerDied(2)), Err(RecvError::PeerDied)));
        let (full, empty) = (sent.1, received.1);
        // What can be done without others is done.
        assert_eq!(full.recv(), Ok(1));
        sound(&full);
        sound(&empty);
    }
}

/// The last thing that a process did before it died is not overlooked.
#[test]
fn what_the_last_one_sent_is_received_before_it_is_missed() {
    fn send((board, queue): (Board, Queue<u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        board.await_at_least(GO, board.get(READY));
        queue.send(5).unwrap();
        board.add(SENT, 1);
    }
    let (board, queue) = (Board::new(8), Queue::new(1).unwrap());
    for round in 1..=15 {
        let sender = child(send, (board.clone(), queue.clone()));
        board.await_at_least(READY, round);
        let received = std::thread::scope(|s| {
            let receive = s.spawn({
                let queue = queue.clone();
                move || {
                    let first = queue.recv();
                    (first, queue)
                }
            });
            board.set(GO, round);
            receive.join().unwrap().0
        });
        assert_eq!(received, Ok(5), "round {round}");
        join(sender);
        assert_eq!(queue.len(), 0);
    }
    sound(&queue);
}

/// Has a message in its hand, and stays.
fn take_and_stay((board, queue): (Board, Queue<u64>)) {
    tied_to_parent();
    let message = queue.recv_ref_timeout(HANG).unwrap();
    board.set(SENT, value(u64::from(message.deliveries()), *message));
    board.add(READY, 1);
    loop {
        std::thread::park();
    }
}

#[test]
fn deliveries_are_counted_from_death_to_death() {
    let (board, queue) = (Board::new(8), Queue::new(1).unwrap());
    queue.send(7).unwrap();
    for round in 1..=6 {
        let holder = child(take_and_stay, (board.clone(), queue.clone()));
        board.await_at_least(READY, round);
        assert_eq!(board.get(SENT), value(round, 7), "round {round}");
        assert_eq!(queue.try_recv(), Err(RecvError::Empty), "its holder lives");
        kill_and_reap(&holder);
    }
    let message = queue.recv_ref_timeout(HANG).unwrap();
    assert_eq!((*message, message.deliveries(), message.is_redelivered()), (7, 7, true));
    drop(message);
    assert_eq!(queue.try_recv(), Err(RecvError::Empty));
    sound(&queue);
}

#[test]
fn a_sleeping_receiver_gets_what_the_dead_one_had() {
    fn receive((board, queue): (Board, Queue<u64>)) -> (u64, u8) {
        tied_to_parent();
        board.add(GO, 1);
        let message = queue.recv_ref().unwrap();
        (*message, message.deliveries())
    }
    let (board, queue) = (Board::new(8), Queue::new(2).unwrap());
    queue.send(8).unwrap();
    let holder = child(take_and_stay, (board.clone(), queue.clone()));
    board.await_at_least(READY, 1);
    let receivers: Vec<_> = (0..2).map(|_| child(receive, (board.clone(), queue.clone()))).collect();
    board.await_at_least(GO, 2);
    receivers.iter().for_each(|receiver| await_asleep(receiver.pid()));
    kill_and_reap(&holder);
    queue.send(9).unwrap();
    let mut received: Vec<_> = receivers.into_iter().map(join).collect();
    received.sort_unstable();
    assert_eq!(received, [(8, 2), (9, 1)]);
    sound(&queue);
}

#[test]
fn a_closed_queue_still_gives_what_a_dead_one_had() {
    let (board, queue) = (Board::new(8), Queue::new(2).unwrap());
    queue.send_many(&[1, 2]).unwrap();
    let holder = child(take_and_stay, (board.clone(), queue.clone()));
    board.await_at_least(READY, 1);
    queue.close().unwrap();
    assert_eq!(queue.recv(), Ok(2));
    kill_and_reap(&holder);
    let mut left: Vec<_> = queue.iter().collect();
    left.sort_unstable();
    assert_eq!(left, [1]);
    assert_eq!((queue.try_recv(), queue.audit()), (Err(RecvError::Closed), Ok(())));
}

#[test]
fn a_leaked_message_comes_back_when_its_handle_is_dropped() {
    let queue = Queue::new(4).unwrap();
    queue.send_many(&[1_u64, 2, 3]).unwrap();
    let other = queue.clone();
    forget(other.recv_ref().unwrap());
    forget(other.recv_ref().unwrap());
    assert_eq!(queue.recv(), Ok(3));
    assert_eq!(queue.try_recv(), Err(RecvError::Empty), "their handle is there");
    let waiter = std::thread::spawn({
        let queue = queue.clone();
        move || queue.recv_timeout(HANG)
    });
    std::thread::sleep(SOON);
    drop(other);
    let mut back = vec![waiter.join().unwrap().unwrap()];
    let message = queue.recv_ref_timeout(HANG).unwrap();
    assert_eq!(message.deliveries(), 2);
    back.push(*message);
    drop(message);
    back.sort_unstable();
    assert_eq!(back, [1, 2]);
    sound(&queue);
}

#[test]
fn an_unsent_loan_of_a_dead_one_is_nothing() {
    fn loan((board, queue): (Board, Queue<u64>)) {
        tied_to_parent();
        let mut loan = queue.loan().unwrap();
        *loan = 666;
        board.add(READY, 1);
        loop {
            std::thread::park();
        }
    }
    let queue = QueueOptions::new(2).lanes(3).hands(1).anonymous().unwrap();
    let board = Board::new(8);
    for round in 1..=10 {
        let holder = child(loan, (board.clone(), queue.clone()));
        board.await_at_least(READY, round);
        kill_and_reap(&holder);
        assert_eq!(queue.try_recv(), Err(RecvError::Empty));
        sound(&queue);
    }
}

/// With just as many lanes as there are users: a death with a message in hand takes none of them away.
#[test]
fn a_dead_ones_lane_is_inherited_with_the_message_in_it() {
    fn open(segment: &Segment, hands: usize) -> Queue<u64> {
        QueueOptions::new(4).lanes(2).hands(hands).in_segment(segment, "jobs").unwrap()
    }
    for hands in [1, 2] {
        let (board, segment) = (Board::new(8), Segment::anonymous(32 * 1024).unwrap());
        let queue = open(&segment, hands);
        queue.send(1).unwrap();
        let take = |(board, segment, hands): (Board, Segment, usize)| {
            take_and_stay((board, open(&segment, hands)));
        };
        let holder = child(take, (board.clone(), segment.clone(), hands));
        board.await_at_least(READY, 1);
        kill_and_reap(&holder);
        queue.send(2).unwrap();
        let next = queue.clone();
        let mut received =
            [next.recv_timeout(HANG), next.recv_timeout(HANG)].map(|r| r.map_err(|e| e.to_string()));
        received.sort_unstable();
        assert_eq!(received, [Ok(1), Ok(2)], "{hands} hands");
        drop(next);
        sound(&queue);
    }
}

#[test]
fn stopped_processes_hold_up_nobody() {
    fn work((board, queue): (Board, Queue<u64>)) {
        tied_to_parent();
        board.add(READY, 1);
        loop {
            let _ = queue.try_send(1);
            let _ = queue.try_recv();
        }
    }
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for capacity in [1, 2, 64] {
        let (board, queue) = (Board::new(8), Queue::new(capacity).unwrap());
        let worker: Process<()> = child(work, (board.clone(), queue.clone()));
        board.await_at_least(READY, 1);
        for _ in 0..8 {
            std::thread::sleep(Duration::from_micros(rng.below(500)));
            worker.signal(19).unwrap(); // SIGSTOP
            await_state(worker.pid(), 'T');
            for nth in 0..1000 {
                // There is room, or it is full; so there is something to be received.
                let sent = queue.try_send(nth);
                assert!(matches!(sent, Ok(()) | Err(SendError::Full(_))), "{sent:?}");
                assert!(queue.try_recv().is_ok());
            }
            worker.signal(18).unwrap(); // SIGCONT
        }
        kill_and_reap(&worker);
        while queue.try_recv().is_ok() {}
        sound(&queue);
        assert_eq!(board.get(WRONG), 0);
    }
}
