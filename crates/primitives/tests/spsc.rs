//! What the two ends of an SPSC queue promise, inside of one process.
#![allow(missing_docs)]

use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::Objects;
use crossproc_primitives::spsc::{Consumer, PopError, Producer, PushError, channel};
use crossproc_segment::handover::{pack, unpack};
use crossproc_segment::plain::Plain;
use crossproc_segment::{ErrorKind, Segment, SegmentOptions};

const SHORT: Duration = Duration::from_millis(30);

/// Fills, empties and wraps a queue of `T` in every mixture, against a list.
fn as_a_list<T: Plain + PartialEq + std::fmt::Debug>(capacity: usize, of: impl Fn(u64) -> T) {
    let (mut producer, mut consumer) = channel::<T>(capacity).expect("a queue");
    assert!(producer.capacity() >= capacity);
    let (mut pushed, mut popped) = (0, 0);
    let mut seed = 1_u64;
    for _ in 0..2000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = (seed >> 33) as usize % (capacity + 3);
        match seed >> 60 {
            0..4 => {
                for _ in 0..n {
                    match producer.try_push(of(pushed)) {
                        Ok(()) => pushed += 1,
                        Err(PushError::Full(value)) => {
                            assert_eq!(value, of(pushed));
                            assert!(producer.is_full() && (pushed - popped) as usize >= producer.capacity());
                            break;
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            4..6 => {
                let values: Vec<T> = (pushed..pushed + n as u64).map(&of).collect();
                let room = producer.capacity().saturating_sub((pushed - popped) as usize);
                let done = producer.push_many(&values).expect("open");
                assert!(done >= n.min(room), "{done} of {n} where {room} fit");
                pushed += done as u64;
            }
            6..8 => {
                let values: Vec<T> = (pushed..pushed + n as u64).map(&of).collect();
                let fits = n <= producer.capacity().saturating_sub((pushed - popped) as usize);
                let done = producer.push_all(&values);
                assert!(!fits || done.is_ok(), "{n} fit");
                pushed += if done.is_ok() { n as u64 } else { 0 };
            }
            8..12 => {
                for _ in 0..n {
                    match consumer.try_pop() {
                        Ok(value) => assert_eq!(value, of(popped)),
                        Err(error) => {
                            assert_eq!((error, pushed), (PopError::Empty, popped));
                            break;
                        }
                    }
                    popped += 1;
                }
            }
            _ => {
                let mut out = vec![of(0); n];
                let done = consumer.pop_many(&mut out).expect("open");
                assert_eq!(done, n.min((pushed - popped) as usize));
                for value in &out[..done] {
                    assert_eq!(*value, of(popped));
                    popped += 1;
                }
            }
        }
        assert_eq!((producer.len() as u64, consumer.len() as u64), (pushed - popped, pushed - popped));
        assert_eq!(producer.is_empty(), pushed == popped);
        assert_eq!(consumer.audit(), Ok(()));
    }
    assert!(popped > producer.capacity() as u64 * 3, "it wrapped: {popped}");
}

#[test]
fn elements_of_every_size_come_out_as_they_went_in() {
    for capacity in [1, 2, 3, 7, 64, 300] {
        as_a_list(capacity, |n| n as u8);
        as_a_list(capacity, |n| n as u16);
        as_a_list(capacity, |n| [n as u8, 1, 2]);
        as_a_list(capacity, |n| n as u32 as f32);
        as_a_list(capacity, |n| n);
        as_a_list(capacity, |n| [n as u8; 63]);
        as_a_list(capacity, |n| [n; 8]);
    }
    as_a_list(40, |n| [n; 512]);
    as_a_list(40, |n| [n as u8; 4096]);
    as_a_list(300, |_| ());
    as_a_list(300, |n| n % 2 == 0);
}

#[test]
fn a_full_queue_refuses_and_an_empty_one_has_nothing() {
    let (mut producer, mut consumer) = channel::<u64>(1).expect("a queue");
    assert_eq!(consumer.try_pop(), Err(PopError::Empty));
    let before = Instant::now();
    assert_eq!(consumer.pop_timeout(SHORT), Err(PopError::Timeout));
    assert_eq!(consumer.pop_deadline(Instant::now() + SHORT), Err(PopError::Timeout));
    assert!(before.elapsed() >= 2 * SHORT);
    while producer.try_push(7).is_ok() {}
    assert_eq!(producer.try_push(8), Err(PushError::Full(8)));
    assert_eq!(producer.push_all(&[8]), Err(PushError::Full(())));
    assert_eq!(producer.push_many(&[8]), Ok(0));
    let before = Instant::now();
    assert_eq!(producer.push_timeout(8, SHORT), Err(PushError::Timeout(8)));
    assert_eq!(producer.push_deadline(8, Instant::now() + SHORT), Err(PushError::Timeout(8)));
    assert!(producer.reserve_timeout(1, SHORT).is_err_and(|error| error == PushError::Timeout(())));
    assert!(before.elapsed() >= 3 * SHORT);
    assert!(producer.try_reserve(1).is_err_and(|error| error == PushError::Full(())));
    assert_eq!(channel::<u64>(0).unwrap_err().kind(), ErrorKind::InvalidLength);
    assert_eq!(channel::<u64>(1 << 41).unwrap_err().kind(), ErrorKind::InvalidLength);
    assert!(channel::<[u8; 4096]>(1 << 40).is_err());
}

#[test]
fn threads_pass_on_what_they_wait_for() {
    for capacity in [1, 2, 64] {
        let (mut producer, mut consumer) = channel::<u64>(capacity).expect("a queue");
        let pushing = thread::spawn(move || {
            for n in 0..3000 {
                if n % 500 == 0 {
                    thread::sleep(Duration::from_millis(2)); // the other one falls asleep
                }
                producer.push(n).expect("somebody pops");
            }
        });
        for n in 0..3000 {
            if n % 700 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(consumer.pop(), Ok(n));
        }
        pushing.join().expect("ends well");
        assert_eq!(consumer.pop(), Err(PopError::PeerDied), "it has left, and nobody else is there");
        consumer.audit().expect("sound");
    }
}

#[test]
fn closing_lets_the_rest_be_popped() {
    let (mut producer, mut consumer) = channel::<u64>(10).expect("a queue");
    producer.push_all(&[1, 2, 3]).expect("room");
    producer.close();
    assert!(producer.is_closed() && consumer.is_closed());
    assert_eq!(producer.push(4), Err(PushError::Closed(4)));
    assert_eq!(producer.push_many(&[4]), Err(PushError::Closed(())));
    assert_eq!(producer.push_all(&[4]), Err(PushError::Closed(())));
    assert_eq!(consumer.pop(), Ok(1));
    assert_eq!(consumer.iter().collect::<Vec<_>>(), [2, 3]);
    let mut out = [0; 2];
    assert_eq!(consumer.try_pop(), Err(PopError::Closed));
    assert_eq!(consumer.pop_timeout(SHORT), Err(PopError::Closed));
    assert_eq!(consumer.pop_many(&mut out), Err(PopError::Closed));
    assert!(consumer.peek().is_err_and(|error| error == PopError::Closed));
}

#[test]
fn closing_wakes_who_waits() {
    let (producer, mut consumer) = channel::<u64>(1).expect("a queue");
    thread::scope(|s| {
        let popping = s.spawn(|| consumer.pop());
        thread::sleep(SHORT);
        producer.close();
        assert_eq!(popping.join().expect("ends well"), Err(PopError::Closed));
    });
    let (mut producer, consumer) = channel::<u64>(1).expect("a queue");
    while producer.try_push(1).is_ok() {}
    thread::scope(|s| {
        let pushing = s.spawn(|| producer.push(2));
        thread::sleep(SHORT);
        consumer.close();
        assert_eq!(pushing.join().expect("ends well"), Err(PushError::Closed(2)));
    });
}

#[test]
fn who_waits_for_one_that_leaves_is_told() {
    let (mut producer, mut consumer) = channel::<u64>(1).expect("a queue");
    thread::scope(|s| {
        let popping = s.spawn(|| (consumer.pop(), consumer.pop()));
        producer.push(1).expect("room");
        thread::sleep(SHORT);
        drop(producer);
        assert_eq!(popping.join().expect("ends well"), (Ok(1), Err(PopError::PeerDied)));
    });
    let (mut producer, consumer) = channel::<u64>(1).expect("a queue");
    drop(consumer);
    while producer.try_push(1).is_ok() {}
    assert_eq!(producer.push(2), Err(PushError::PeerDied(2)));
}

#[test]
fn a_role_belongs_to_one_handle_and_is_given_back() {
    let segment = Segment::anonymous(64 * 1024).expect("a segment");
    let mut producer = segment.producer::<u64>("q", 10).expect("the first");
    let taken = segment.producer::<u64>("q", 10).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::RoleTaken);
    assert!(taken.to_string().contains("this process"), "{taken}");
    let mut consumer = segment.consumer::<u64>("q", 5).expect("the other role");
    assert_eq!(segment.consumer::<u64>("q", 10).unwrap_err().kind(), ErrorKind::RoleTaken);
    assert_eq!((producer.peer(), consumer.peer()), (Some(std::process::id()), Some(std::process::id())));
    for n in 0..3 {
        producer.push(n).expect("room");
    }
    drop(producer);
    assert_eq!(consumer.pop(), Ok(0));
    drop(consumer);
    // Both go on where the others stopped.
    let mut producer = segment.producer::<u64>("q", 10).expect("given back");
    let mut consumer = segment.consumer::<u64>("q", 10).expect("given back");
    assert_eq!((producer.len(), consumer.redelivered()), (2, 0));
    producer.push(3).expect("room");
    assert_eq!([consumer.pop(), consumer.pop(), consumer.pop()], [Ok(1), Ok(2), Ok(3)]);
    assert_eq!(segment.producer::<u64>("q", 1000).unwrap_err().kind(), ErrorKind::TooSmall);
    assert_eq!(segment.consumer::<i64>("q", 10).unwrap_err().kind(), ErrorKind::WrongType);
    assert_eq!(segment.value("q", 0_u64).unwrap_err().kind(), ErrorKind::WrongKind);
}

#[test]
fn a_queue_is_not_for_those_who_only_read() {
    let name = format!("spsc-read-only-{}", std::process::id());
    let segment = Segment::create(&name, 64 * 1024).expect("a segment");
    drop(segment.producer::<u64>("q", 10).expect("a queue"));
    let reading = SegmentOptions::new().read_only(true).open(&name).expect("there");
    assert_eq!(reading.producer::<u64>("q", 10).unwrap_err().kind(), ErrorKind::ReadOnly);
}

fn send(it: &impl serde::Serialize) -> (Vec<u8>, Vec<std::os::fd::OwnedFd>) {
    let (bytes, descriptors) = pack(|| postcard::to_stdvec(it));
    (bytes.expect("it can be sent"), descriptors)
}

#[test]
fn a_handle_that_was_sent_is_the_receivers() {
    let (mut producer, mut consumer) = channel::<u64>(10).expect("a queue");
    producer.push_all(&[1, 2]).expect("room");
    let (bytes, descriptors) = send(&producer);
    let mut theirs: Producer<u64> =
        unpack(descriptors, || postcard::from_bytes(&bytes)).expect("it is received");
    assert_eq!(producer.push(3), Err(PushError::NotAttached(3)));
    assert!(pack(|| postcard::to_stdvec(&producer)).0.is_err(), "it is not there to be sent");
    drop(producer);
    theirs.push(3).expect("the role is its own");

    let (bytes, descriptors) = send(&consumer);
    let mut theirs: Consumer<u64> =
        unpack(descriptors, || postcard::from_bytes(&bytes)).expect("it is received");
    assert_eq!(consumer.pop(), Err(PopError::NotAttached));
    assert_eq!(theirs.iter().take(3).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_handle_that_nobody_received_can_be_used_again() {
    let (mut producer, mut consumer) = channel::<u64>(10).expect("a queue");
    producer.push(1).expect("room");
    let (bytes, descriptors) = send(&producer);
    producer.push(2).expect("it takes the role back");
    let late: Result<Producer<u64>, _> = unpack(descriptors, || postcard::from_bytes(&bytes));
    assert!(late.is_err(), "the role is not to be had");
    assert_eq!((consumer.pop(), consumer.pop()), (Ok(1), Ok(2)));
    // One that is dropped unreceived is given back.
    drop(send(&producer));
    drop(producer);
    assert_eq!(consumer.pop(), Err(PopError::PeerDied));
}

#[test]
fn places_are_written_and_read_in_place() {
    let (mut producer, mut consumer) = channel::<[u32; 4]>(40).expect("a queue");
    let mut place = producer.reserve(2).expect("room");
    assert_eq!(place.len(), 2);
    place[0] = [1; 4];
    place[1] = [2; 4];
    place.commit(2);
    let mut place = producer.reserve(2).expect("room");
    place[0] = [9; 4];
    drop(place); // nothing was pushed
    producer.push([3; 4]).expect("room");
    let peeked = consumer.peek().expect("three");
    assert_eq!(&*peeked, [[1; 4], [2; 4], [3; 4]]);
    peeked.release(1);
    drop(consumer.peek().expect("two")); // nothing was taken
    assert_eq!(consumer.len(), 2);
    assert_eq!(consumer.redelivered(), 0, "shown to this very consumer");
    assert_eq!(consumer.pop(), Ok([2; 4]));
    // Round the ring, some at a time.
    let (mut pushed, mut popped) = (0, 0);
    consumer.pop().expect("the third");
    while popped < 1000 {
        let mut place = producer.reserve(1 + pushed % 7).expect("room");
        let n = place.len();
        place.iter_mut().enumerate().for_each(|(k, element)| *element = [(pushed + k) as u32; 4]);
        place.commit(n);
        pushed += n;
        let peeked = consumer.peek().expect("some");
        let m = peeked.len().min(1 + popped % 5);
        for (k, element) in peeked[..m].iter().enumerate() {
            assert_eq!(*element, [(popped + k) as u32; 4]);
        }
        peeked.release(m);
        popped += m;
        while pushed - popped > 20 {
            assert_eq!(consumer.pop(), Ok([popped as u32; 4]));
            popped += 1;
        }
    }
}

#[test]
fn what_a_predecessor_was_shown_is_counted() {
    let segment = Segment::anonymous(64 * 1024).expect("a segment");
    let mut producer = segment.producer::<u64>("q", 10).expect("a queue");
    producer.push_all(&[1, 2, 3, 4]).expect("room");
    let mut consumer = segment.consumer::<u64>("q", 10).expect("a queue");
    consumer.peek().expect("four").release(1);
    drop(consumer.peek().expect("three"));
    drop(consumer);
    producer.push(5).expect("room");
    let mut consumer = segment.consumer::<u64>("q", 10).expect("given back");
    assert_eq!(consumer.redelivered(), 3);
    assert_eq!(consumer.pop(), Ok(2));
    assert_eq!(consumer.redelivered(), 2);
    assert_eq!((consumer.pop(), consumer.pop()), (Ok(3), Ok(4)));
    assert_eq!(consumer.redelivered(), 0);
    assert_eq!(consumer.pop(), Ok(5));
    assert_eq!(consumer.redelivered(), 0);
}

#[test]
fn bits_that_are_no_value_are_told_and_passed_by() {
    let segment = Segment::anonymous(64 * 1024).expect("a segment");
    let mut producer = segment.producer::<bool>("q", 10).expect("a queue");
    let mut consumer = segment.consumer::<bool>("q", 10).expect("a queue");
    producer.push_all(&[true, true, false]).expect("room");
    // Somebody scribbles over the first one: the only byte of 1 that has another behind it.
    let object = segment.objects().into_iter().find(|info| info.name == "q").expect("it has a name").object;
    let words = segment
        .mapping()
        .place_slice::<crossproc_atomic::AtomicU64>(crossproc_segment::Span {
            offset: object.offset + 640,
            count: (object.bytes - 640) / 8,
        })
        .expect("the blocks");
    let two_in = |word: u64| (0..7).map(|byte| 8 * byte).find(|&bits| word >> bits & 0xffff == 0x0101);
    let (at, bits) = (1..words.len())
        .find_map(|at| Some((at, two_in(words[at].load(crossproc_atomic::Ordering::Relaxed))?)))
        .expect("two that are true");
    words[at].fetch_or(6 << bits, crossproc_atomic::Ordering::Relaxed);
    let error = consumer.pop().unwrap_err();
    assert!(matches!(error, PopError::Invalid(_)), "{error}");
    assert_eq!(
        (consumer.pop(), consumer.pop(), consumer.try_pop()),
        (Ok(true), Ok(false), Err(PopError::Empty))
    );
}
