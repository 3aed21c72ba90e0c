//! A pipe whose words are overwritten while it is used.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::Read;
use std::time::Duration;

use crossproc_primitives::pipe::{Receiver, RecvError, Sender};
use crossproc_primitives::{Pipe, PipeOptions};
use crossproc_segment::Segment;

use crate::{NOWHERE, Scratch, steps};

const RING: usize = 256;
/// Longer messages go in parts.
const AT_ONCE: usize = 120;
const SOON: Duration = Duration::from_micros(1);
const LENGTHS: [usize; 4] = [8, 40, 120, 150];

/// Operations of both ends of a small pipe, each after a word of it was overwritten, given as {operation: u8, place: u16, value:
/// u64}, little endian: every one ends, with a message or an error, whatever that is. As long as nothing was overwritten, messages come
/// once, whole and in order.
pub fn pipe_bytes(bytes: &[u8]) {
    thread_local!(static SCRATCH: Scratch = Scratch::new(|segment| drop(pipe(segment))));
    SCRATCH.with(|scratch| {
        use_both(bytes, scratch);
        scratch.put_back();
    });
}

/// Its first direction is the object that is overwritten.
fn pipe(segment: &Segment) -> Option<Pipe<u64, u64>> {
    PipeOptions::new().capacity(RING).message_max(4096).in_segment(segment, "pipe").ok()
}

fn use_both(bytes: &[u8], scratch: &Scratch) {
    let sender = || Some(pipe(&scratch.segment)?.near().ok()?.split().0);
    let receiver = || Some(pipe(&scratch.segment)?.far().ok()?.split().1);
    let (mut input, mut output) = (sender(), receiver());
    let mut under_way =
        UnderWay { untouched: true, number: 0, messages: VecDeque::new(), gathered: false, given_up: false };
    for (op, place, value) in steps(bytes) {
        if place != NOWHERE {
            scratch.overwrite(place, value);
            under_way.untouched = false;
        }
        match op % 32 {
            16 => input = None,
            17 => {
                output = None;
                under_way.forget_gathered();
            }
            18 => input = input.take().or_else(sender),
            19 => output = output.take().or_else(receiver),
            op @ 0..8 => drop(input.as_mut().map(|input| under_way.send(input, op))),
            op @ 8..16 => drop(output.as_mut().map(|output| under_way.receive(output, op))),
            _ => {
                if let (Some(input), Some(output)) = (&input, &output) {
                    black_box((
                        input.is_closed(),
                        output.is_closed(),
                        output.poll(Some(SOON)).is_ok(),
                        input.capacity(),
                    ));
                    let audit = input.audit();
                    assert!(!under_way.untouched || audit.is_ok(), "{audit:?}");
                }
            }
        }
    }
}

/// What is known of it.
struct UnderWay {
    untouched: bool,
    number: u8,
    /// What was sent and not received.
    messages: VecDeque<Vec<u8>>,
    /// The receiver has the first of them in memory of its own: it was shown, and had come in parts.
    gathered: bool,
    /// A message in parts was given up: its beginning may be there still, and looks like that of another one.
    given_up: bool,
}

impl UnderWay {
    fn send(&mut self, input: &mut Sender<u64>, op: u8) {
        self.number = self.number.wrapping_add(1);
        let len = LENGTHS[usize::from(op % 4)];
        let message: Vec<u8> = (0..len).map(|k| self.number ^ k as u8).collect();
        let sent = match op {
            0..=2 => input.try_send_bytes(&message).is_ok(),
            4..=6 => input
                .try_reserve(len + 3)
                .map(|mut place| {
                    place[..len].copy_from_slice(&message);
                    place.commit(len);
                })
                .is_ok(),
            _ => input.send_bytes_timeout(&message, SOON).is_ok(),
        };
        if sent {
            self.messages.push_back(message);
        } else {
            self.given_up |= len > AT_ONCE;
        }
    }

    fn receive(&mut self, output: &mut Receiver<u64>, op: u8) {
        let mut buffer = [0; 256];
        match op {
            8 => self.came(&output.try_recv_bytes()),
            9 => self.came(&output.recv_bytes_max_timeout(50, SOON)),
            10 => self.came(&output.try_recv_bytes_into(&mut buffer[..10]).map(|n| &buffer[..n])),
            11 => {
                let peeked = output.try_peek();
                self.came(&peeked.as_deref().map_err(|&error| error));
                let _ = peeked.map(|message| message.release());
            }
            // Shown, and not taken: it comes again.
            12 => self.gathered |= output.try_peek().is_ok_and(|message| message.len() > AT_ONCE),
            13 => {
                let dropped = output.discard();
                // Of which of the two?
                self.untouched &= !(self.given_up && dropped == Ok(LENGTHS[3]));
                let it = self.pop();
                assert!(!self.untouched || dropped.ok() == it.map(|it| it.len()));
            }
            14 => {
                output.set_nonblocking(true);
                let read = output.read(&mut buffer);
                self.came(&read.map(|n| &buffer[..n]).map_err(|_| RecvError::Empty));
            }
            // Not of a number, in most cases.
            _ => {
                let _ = output.try_recv();
                self.pop();
            }
        }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        self.gathered = false;
        self.messages.pop_front()
    }

    /// Its receiver is gone, and takes it along.
    fn forget_gathered(&mut self) {
        if self.gathered {
            self.pop();
        }
    }

    /// What a receive has brought.
    fn came<B: AsRef<[u8]>>(&mut self, received: &Result<B, RecvError>) {
        if let Err(RecvError::TooLong { bytes }) = received {
            let given_up = self.given_up && *bytes == LENGTHS[3];
            let is_so = given_up || self.messages.front().is_some_and(|it| it.len() == *bytes);
            assert!(!self.untouched || is_so, "no message of {bytes} bytes");
            return; // it stays
        }
        let received = received.as_ref().ok().map(AsRef::as_ref);
        // The end of a stream.
        let received = received.filter(|received| !received.is_empty());
        let expected = self.pop();
        assert!(!self.untouched || received == expected.as_deref(), "{received:?} instead of {expected:?}");
    }
}
