//! The ring of blocks: nothing is lost, doubled, torn or slept through, whoever is killed where.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crossproc_atomic::model::{Kernel, Process, explore};
use crossproc_atomic::{AtomicU64, EventCount, Liveness};
use crossproc_ring::{BlockConsumer, BlockProducer, BlockRing, BlockShape, BlockWords, Role, RoleTaken};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

struct Queue {
    words: BlockWords,
    tags: Vec<AtomicU64>,
    shape: BlockShape,
    /// The elements; loom reports every unordered pair of accesses to one.
    cells: Vec<UnsafeCell<u64>>,
}

/// What became of a wait.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Abandoned,
}

impl Queue {
    fn new(capacity: u64, per_block: u64) -> Arc<Self> {
        let shape = BlockShape::new(capacity, per_block, 1).expect("a shape");
        Arc::new(Self {
            words: BlockWords::default(),
            tags: (0..shape.places()).map(|_| AtomicU64::new(0)).collect(),
            shape,
            cells: (0..shape.elements()).map(|_| UnsafeCell::new(0)).collect(),
        })
    }

    fn ring(&self) -> BlockRing<'_> {
        BlockRing::new(&self.words, &self.tags, self.shape)
    }

    fn producer(&self, me: &impl Liveness) -> BlockProducer {
        assert_eq!(self.ring().claim(Role::Producer, me, false), Ok(()));
        self.ring().producer().expect("nobody scribbles")
    }

    fn consumer(&self, me: &impl Liveness) -> BlockConsumer {
        assert_eq!(self.ring().claim(Role::Consumer, me, false), Ok(()));
        self.ring().consumer().expect("nobody scribbles")
    }

    fn write(&self, producer: &mut BlockProducer, value: u64) -> bool {
        let Some(run) = producer.room(self.ring()) else { return false };
        // SAFETY: the pointer is to the cell's own data; loom reports it if anybody else is at it.
        self.cells[run.block * self.shape.per_block() + run.index].with_mut(|cell| unsafe { *cell = value });
        producer.commit(self.ring(), 1);
        true
    }

    fn try_push(&self, me: &impl Liveness, producer: &mut BlockProducer, value: u64, light: bool) -> bool {
        let pushed = self.write(producer, value);
        if pushed {
            self.ring().committed(me, light);
        }
        pushed
    }

    fn try_pop(&self, me: &impl Liveness, consumer: &mut BlockConsumer) -> Option<u64> {
        let run = consumer.ready(self.ring(), me)?;
        // SAFETY: as above.
        let value = self.cells[run.block * self.shape.per_block() + run.index].with(|cell| unsafe { *cell });
        consumer.take(self.ring(), 1);
        Some(value)
    }

    fn push(&self, me: &impl Liveness, producer: &mut BlockProducer, value: u64, light: bool) {
        wait_for(me, self.ring().not_full(), || self.try_push(me, producer, value, light).then_some(()));
    }

    fn pop(&self, me: &impl Liveness, consumer: &mut BlockConsumer) -> u64 {
        wait_for(me, self.ring().not_empty(), || {
            self.ring().before_sleeping(|| true);
            self.try_pop(me, consumer)
        })
    }

    /// As users do: until the queue is closed or left, and nothing is there.
    fn pop_or_end(&self, me: &impl Liveness, consumer: &mut BlockConsumer) -> Result<u64, End> {
        wait_for(me, self.ring().not_empty(), || {
            self.ring().before_sleeping(|| true);
            if let Some(value) = self.try_pop(me, consumer) {
                return Some(Ok(value));
            }
            let end = if self.ring().is_closed() {
                End::Closed
            } else if self.ring().is_abandoned(Role::Producer, me, || true) {
                End::Abandoned
            } else {
                return None;
            };
            Some(self.try_pop(me, consumer).ok_or(end))
        })
    }
}

/// As `crossproc_sync::wait_for`, without its spin.
fn wait_for<R>(me: &impl Liveness, event: &EventCount, mut attempt: impl FnMut() -> Option<R>) -> R {
    loop {
        let ticket = event.listen_among_peers(me);
        if let Some(done) = attempt() {
            return done;
        }
        event.sleep_among_peers(me, ticket, None);
    }
}

/// Runs `f` as thread `tid`, which is a process of its own.
fn beside<R: 'static>(
    kernel: &Arc<Kernel>,
    queue: &Arc<Queue>,
    tid: u32,
    f: impl FnOnce(&Process, &Queue) -> R + 'static,
) -> thread::JoinHandle<R> {
    let (process, queue) = (Process::new(kernel, tid), Arc::clone(queue));
    thread::spawn(move || f(&process, &queue))
}

/// One element per block and two places, so that the third push writes over the first; then two per block.
#[test]
fn what_is_pushed_is_popped_in_order_and_nobody_sleeps_for_ever() {
    for (capacity, per_block, count, light) in [(1, 1, 4, true), (1, 1, 4, false), (3, 2, 5, true)] {
        let name = format!("blocks_stream_{capacity}_{per_block}_{light}");
        explore(&name, 1000, 2, move |_| {
            let (kernel, queue) = (Kernel::new(), Queue::new(capacity, per_block));
            let producer = beside(&kernel, &queue, 1, move |me, queue| {
                let mut producer = queue.producer(me);
                (0..count).for_each(|value| queue.push(me, &mut producer, value, light));
            });
            let me = Process::new(&kernel, 2);
            let mut consumer = queue.consumer(&me);
            for value in 0..count {
                assert_eq!(queue.pop(&me, &mut consumer), value);
            }
            producer.join().expect("ends well");
            assert_eq!(queue.try_pop(&me, &mut consumer), None);
            assert_eq!(queue.ring().audit(), Ok(()));
        });
    }
}

/// One element, and the consumer may be anywhere on its way to sleep.
#[test]
fn a_push_wakes_a_sleeping_consumer() {
    for light in [true, false] {
        explore(&format!("blocks_wake_{light}"), 70, 4, move |_| {
            let (kernel, queue) = (Kernel::new(), Queue::new(1, 1));
            let producer = beside(&kernel, &queue, 1, move |me, queue| {
                let mut producer = queue.producer(me);
                assert!(queue.try_push(me, &mut producer, 7, light));
            });
            let me = Process::new(&kernel, 2);
            let mut consumer = queue.consumer(&me);
            assert_eq!(queue.pop(&me, &mut consumer), 7);
            producer.join().expect("ends well");
        });
    }
}

/// The ring is full; taking the first two gives one block back, which wakes the producer.
#[test]
fn a_block_given_back_wakes_a_sleeping_producer() {
    explore("blocks_wake_producer", 500, 4, |_| {
        let (kernel, queue) = (Kernel::new(), Queue::new(1, 1));
        let me = Process::new(&kernel, 2);
        let mut producer = queue.producer(&me);
        while queue.try_push(&me, &mut producer, 7, true) {}
        assert!(queue.ring().is_full() && queue.ring().len() == queue.shape.elements());
        let consumer = beside(&kernel, &queue, 1, |me, queue| {
            let mut consumer = queue.consumer(me);
            while queue.try_pop(me, &mut consumer).is_some() {}
        });
        queue.push(&me, &mut producer, 8, true);
        consumer.join().expect("ends well");
    });
}

/// What was pushed before the queue was closed or left is popped before that is told.
#[test]
fn the_end_comes_after_the_last_element() {
    for leaves in [false, true] {
        let seen = explore(&format!("blocks_end_{leaves}"), 50, 3, move |outcome| {
            let (kernel, queue) = (Kernel::new(), Queue::new(1, 1));
            let producer = beside(&kernel, &queue, 1, move |me, queue| {
                let mut producer = queue.producer(me);
                // Without the fence and the wake-up that follow a push: those are not what the end relies on.
                assert!(queue.write(&mut producer, 7));
                if leaves {
                    queue.ring().give_back(Role::Producer, me);
                } else {
                    queue.ring().close(Role::Producer, me);
                }
            });
            let me = Process::new(&kernel, 2);
            let mut consumer = queue.consumer(&me);
            assert_eq!(queue.pop_or_end(&me, &mut consumer), Ok(7));
            let end = if leaves { End::Abandoned } else { End::Closed };
            assert_eq!(queue.pop_or_end(&me, &mut consumer), Err(end));
            producer.join().expect("ends well");
            outcome.push(u64::from(queue.ring().is_closed()));
        });
        assert_eq!(seen, BTreeSet::from([vec![u64::from(!leaves)]]));
    }
}

/// Of two who come for a role that nobody has, or whose holder is dead, one gets it.
#[test]
fn a_role_is_taken_once() {
    for dead in [false, true] {
        explore(&format!("blocks_role_{dead}"), 5, 3, move |_| {
            let (kernel, queue) = (Kernel::new(), Queue::new(1, 1));
            let before = Process::new(&kernel, 3);
            if dead {
                queue.ring().claim(Role::Producer, &before, false).expect("free");
                before.die(&[]);
            }
            let claim = |me: &Process, queue: &Queue| queue.ring().claim(Role::Producer, me, false);
            let other = beside(&kernel, &queue, 1, claim);
            let me = Process::new(&kernel, 2);
            let (mine, theirs) = (claim(&me, &queue), other.join().expect("ends well"));
            assert_ne!(mine.is_ok(), theirs.is_ok());
            let holder = queue.ring().holder(Role::Producer).expect("somebody has it");
            assert_eq!(mine.is_ok(), holder == me.me());
            assert_eq!(mine.err().or(theirs.err()), Some(RoleTaken { by: Some(holder) }));
        });
    }
}

/// Both roles are passed on in the middle of a block, by giving them back or by sending them.
#[test]
fn a_role_that_was_passed_on_continues_where_it_stopped() {
    for sent in [false, true] {
        explore(&format!("blocks_passed_{sent}"), 10, 3, move |_| {
            let (kernel, queue) = (Kernel::new(), Queue::new(4, 2));
            let first = Process::new(&kernel, 1);
            let (mut producer, mut consumer) = (queue.producer(&first), queue.consumer(&first));
            let theirs = Arc::clone(&queue);
            let first = thread::spawn(move || {
                let (me, queue) = (&first, theirs);
                assert!((0..3).all(|value| queue.try_push(me, &mut producer, value, true)));
                assert_eq!(queue.try_pop(me, &mut consumer), Some(0));
                // First that of the consumer: parting with a role is a fence, which must not do the next one's work.
                for role in [Role::Consumer, Role::Producer] {
                    if sent {
                        assert!(queue.ring().offer(role, me));
                    } else {
                        queue.ring().give_back(role, me);
                    }
                }
            });
            let me = Process::new(&kernel, 2);
            let ring = queue.ring();
            for role in [Role::Consumer, Role::Producer] {
                while ring.claim(role, &me, sent).is_err() {
                    thread::yield_now();
                }
            }
            let (mut producer, mut consumer) =
                (ring.producer().expect("sound"), ring.consumer().expect("sound"));
            assert!(queue.try_push(&me, &mut producer, 3, true));
            let rest: Vec<_> = std::iter::from_fn(|| queue.try_pop(&me, &mut consumer)).collect();
            assert_eq!(rest, [1, 2, 3]);
            first.join().expect("ends well");
            assert_eq!(ring.audit(), Ok(()));
        });
    }
}

#[test]
fn an_offer_is_taken_by_one_side_only() {
    let seen = explore("blocks_offer", 5, 3, |outcome| {
        let (kernel, queue) = (Kernel::new(), Queue::new(1, 1));
        let me = Process::new(&kernel, 2);
        queue.ring().claim(Role::Consumer, &me, false).expect("free");
        assert!(queue.ring().offer(Role::Consumer, &me));
        assert!(!queue.ring().offer(Role::Consumer, &me), "it has it no more");
        let other = beside(&kernel, &queue, 1, |me, queue| {
            assert!(queue.ring().claim(Role::Consumer, me, false).is_err(), "it was sent to somebody");
            queue.ring().claim(Role::Consumer, me, true).is_ok()
        });
        let mine = queue.ring().take_back(Role::Consumer, &me);
        let theirs = other.join().expect("ends well");
        assert_ne!(mine, theirs);
        outcome.push(u64::from(mine));
    });
    assert_eq!(seen.len(), 2, "both may win: {seen:?}");
}

/// A producer is killed before each of its shared accesses in turn, while the consumer works; another one goes on.
#[test]
fn a_killed_producer_loses_nothing_and_doubles_nothing() {
    let mut ends = BTreeSet::new();
    // Two pushes into one block, one into the next, and the role: as many accesses as that has, and one more.
    for accesses in 0..14 {
        ends.extend(explore(&format!("blocks_producer_dies_{accesses}"), 1, 3, move |outcome| {
            let (kernel, queue) = (Kernel::new(), Queue::new(3, 2));
            let victim = beside(&kernel, &queue, 1, move |me, queue| {
                let pushed = Cell::new(0);
                me.run_until_killed(accesses, &[], || {
                    let mut producer = queue.producer(me);
                    for value in 0..3 {
                        assert!(queue.try_push(me, &mut producer, value, true));
                        pushed.set(value + 1);
                    }
                });
                pushed.get()
            });
            let me = Process::new(&kernel, 2);
            let mut consumer = queue.consumer(&me);
            let early = queue.try_pop(&me, &mut consumer);
            assert!(early.is_none_or(|value| value == 0));
            let pushed = victim.join().expect("the model thread ends well");
            let heir = Process::new(&kernel, 3);
            if queue.ring().claim(Role::Producer, &heir, false).is_err() {
                return; // it was not killed: it ended before
            }
            let mut producer = queue.ring().producer().expect("sound");
            assert_eq!(queue.ring().audit(), Ok(()));
            let there = u64::from(early.is_some()) + queue.ring().len();
            assert!((pushed..=pushed + 1).contains(&there), "{there} are there, {pushed} were pushed");
            for value in there..4 {
                assert!(queue.try_push(&heir, &mut producer, value, true));
            }
            for value in u64::from(early.is_some())..4 {
                assert_eq!(queue.try_pop(&me, &mut consumer), Some(value));
            }
            assert_eq!(queue.try_pop(&me, &mut consumer), None);
            outcome.extend([pushed, there]);
        }));
    }
    for wanted in [vec![0, 0], vec![0, 1], vec![1, 1], vec![1, 2], vec![2, 2], vec![2, 3]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}

/// A consumer that sleeps finds out that the last producer was killed, and has all that it pushed.
#[test]
fn a_sleeping_consumer_learns_of_the_death() {
    for accesses in [1, 3, 5, 6] {
        explore(&format!("blocks_death_wakes_{accesses}"), 100, 2, move |_| {
            let (kernel, queue) = (Kernel::new(), Queue::new(1, 1));
            let me = Process::new(&kernel, 2);
            let mut consumer = queue.consumer(&me);
            let victim = Process::new(&kernel, 1);
            let mut producer = queue.producer(&victim);
            let other = Arc::clone(&queue);
            let thread = thread::spawn(move || {
                let pushed = Cell::new(0);
                let done = victim.run_until_killed(accesses, &[], || {
                    for value in 0..2 {
                        assert!(other.try_push(&victim, &mut producer, value, true));
                        pushed.set(value + 1);
                    }
                });
                if done.is_some() {
                    victim.die(&[]);
                }
                pushed.get()
            });
            let mut popped = 0;
            while let Ok(value) = queue.pop_or_end(&me, &mut consumer) {
                assert_eq!(value, popped);
                popped += 1;
            }
            let pushed = thread.join().expect("the model thread ends well");
            assert!((pushed..=pushed + 1).contains(&popped), "{popped} of {pushed}");
        });
    }
}

/// A consumer is killed before each of its shared accesses in turn; another one goes on. The producer works meanwhile.
#[test]
fn what_a_killed_consumer_had_not_taken_is_taken_by_the_next() {
    let mut ends = BTreeSet::new();
    for accesses in 0..16 {
        ends.extend(explore(&format!("blocks_consumer_dies_{accesses}"), 1, 2, move |outcome| {
            let (kernel, queue) = (Kernel::new(), Queue::new(3, 2));
            let me = Process::new(&kernel, 2);
            let mut producer = queue.producer(&me);
            assert!((0..3).all(|value| queue.try_push(&me, &mut producer, value, true)));
            let victim = beside(&kernel, &queue, 1, move |me, queue| {
                let got = RefCell::new(Vec::new());
                me.run_until_killed(accesses, &[], || {
                    let mut consumer = queue.consumer(me);
                    for _ in 0..3 {
                        got.borrow_mut().extend(queue.try_pop(me, &mut consumer));
                    }
                });
                got.into_inner()
            });
            assert!(queue.try_push(&me, &mut producer, 3, true), "there was room for it before");
            let mut got = victim.join().expect("the model thread ends well");
            let heir = Process::new(&kernel, 3);
            if queue.ring().claim(Role::Consumer, &heir, false).is_err() {
                return; // it was not killed
            }
            let mut consumer = queue.ring().consumer().expect("sound");
            assert_eq!(consumer.redelivered(), 0, "nothing was shown in place");
            let first = got.len() as u64;
            got.extend(std::iter::from_fn(|| queue.try_pop(&heir, &mut consumer)));
            assert_eq!(got, [0, 1, 2, 3], "from {first} on by the heir");
            // All is given back: the ring can be filled again.
            for value in 0..queue.shape.capacity() {
                assert!(queue.try_push(&me, &mut producer, value, true));
            }
            assert_eq!(queue.ring().audit(), Ok(()));
            outcome.push(first);
        }));
    }
    for wanted in [vec![0], vec![1], vec![2]] {
        assert!(ends.contains(&wanted), "{wanted:?} was never explored: {ends:?}");
    }
}

/// Elements that were shown in place and not taken come again, and the successor knows how many.
#[test]
fn what_was_shown_and_not_taken_comes_again() {
    let mut ends = BTreeSet::new();
    for accesses in 0..12 {
        ends.extend(explore(&format!("blocks_shown_{accesses}"), 1, 2, move |outcome| {
            let (kernel, queue) = (Kernel::new(), Queue::new(8, 4));
            let me = Process::new(&kernel, 2);
            let mut producer = queue.producer(&me);
            assert!((0..3).all(|value| queue.try_push(&me, &mut producer, value, true)));
            let victim = beside(&kernel, &queue, 1, move |me, queue| {
                let shown = Cell::new((0, 0));
                me.run_until_killed(accesses, &[], || {
                    let mut consumer = queue.consumer(me);
                    let run = consumer.ready(queue.ring(), me).expect("three are there");
                    consumer.show(queue.ring(), run.len);
                    shown.set((run.len, 0));
                    consumer.take(queue.ring(), 2);
                    shown.set((run.len, 2));
                    loop {
                        queue.ring().before_sleeping(|| false);
                    }
                });
                shown.get()
            });
            let (shown, taken) = victim.join().expect("the model thread ends well");
            let consumer = queue.consumer(&me);
            outcome.extend([shown as u64, taken, consumer.redelivered() as u64, queue.ring().len()]);
        }));
    }
    for [shown, taken, again, left] in ends.iter().map(|end| <[u64; 4]>::try_from(&end[..]).expect("four")) {
        assert_eq!(left, if again == 1 { 1 } else { 3 }, "{ends:?}");
        assert!(shown == 0 || again > 0, "what was shown is known: {ends:?}");
        assert!(taken == 0 || again == 1, "what was taken does not come again: {ends:?}");
    }
    assert!(ends.contains(&vec![3, 0, 3, 3]) && ends.contains(&vec![3, 2, 1, 1]), "{ends:?}");
}
