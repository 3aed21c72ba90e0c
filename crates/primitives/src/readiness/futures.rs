//! Queues as `Stream`s and `Sink`s (feature `futures`).

use std::borrow::BorrowMut;
use std::pin::Pin;
use std::task::{Context, Poll};

use crossproc_segment::plain::Plain;
use crossproc_sync::Effort;
use futures_core::{FusedStream, Stream};
use futures_sink::Sink;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{RingEnd, Still, Watching, spsc::source};
use crate::bytes_queue::BytesQueue;
use crate::object_queue::ObjectQueue;
use crate::queue::Queue;
use crate::spsc::{Consumer, Producer, PushError};
use crate::transfer::SendError;

/// Receives messages until there will be none; made by the `stream` methods of queues.
struct Received<F> {
    poll: F,
    has_ended: bool,
}

impl<F> Received<F> {
    fn new(poll: F) -> Self {
        Self { poll, has_ended: false }
    }
}

impl<T, F: FnMut(&mut Context<'_>) -> Poll<Option<T>> + Unpin> Stream for Received<F> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let polled = (self.poll)(cx);
        self.has_ended = matches!(polled, Poll::Ready(None));
        polled
    }
}

impl<T, F: FnMut(&mut Context<'_>) -> Poll<Option<T>> + Unpin> FusedStream for Received<F> {
    fn is_terminated(&self) -> bool {
        self.has_ended
    }
}

/// Sends messages, one at a time; made by the `sink` methods of queues.
struct Sent<T, F> {
    /// Accepted, and not sent yet.
    item: Still<Option<T>>,
    send: F,
}

impl<T, F> Sent<T, F> {
    fn new(send: F) -> Self {
        Self { item: Still(None), send }
    }
}

impl<T, E, F> Sink<T> for Sent<T, F>
where
    F: FnMut(&mut Context<'_>, &mut Option<T>) -> Poll<Result<(), E>> + Unpin,
{
    type Error = E;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.poll_flush(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, item: T) -> Result<(), E> {
        assert!(self.item.0.is_none(), "`poll_ready` comes before `start_send`");
        self.item.0 = Some(item);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        let Self { item: Still(item), send } = &mut *self;
        if item.is_none() { Poll::Ready(Ok(())) } else { send(cx, item) }
    }

    /// The queue stays open: it is not this sender's alone.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.poll_flush(cx)
    }
}

fn stream<Q, T>(
    mut queue: impl BorrowMut<Q> + Unpin,
    mut poll: impl FnMut(&mut Q, &mut Watching, &mut Context<'_>) -> Poll<Option<T>> + Unpin,
) -> impl FusedStream<Item = T> + Unpin {
    let mut watching = Watching::default();
    Received::new(move |cx: &mut Context<'_>| poll(queue.borrow_mut(), &mut watching, cx))
}

/// `attempt` says `None` if it would have to wait.
fn sink<Q, T, E>(
    mut queue: impl BorrowMut<Q> + Unpin,
    mut poll: impl FnMut(&mut Q, &mut Watching, &mut Context<'_>, &mut Option<T>) -> Poll<Result<(), E>> + Unpin,
) -> impl Sink<T, Error = E> + Unpin {
    let mut watching = Watching::default();
    Sent::new(move |cx: &mut Context<'_>, item: &mut Option<T>| {
        poll(queue.borrow_mut(), &mut watching, cx, item)
    })
}

/// The methods of a type that receives.
macro_rules! streams {
    ([$($generics:tt)*] $type:ty, $item:ty, $poll:expr) => {
        impl<$($generics)*> $type {
            /// The messages as a `Stream`, until the queue is closed and empty (or can not be used any more). Dropping it loses nothing.
            pub fn stream(&mut self) -> impl FusedStream<Item = $item> + Unpin + '_ {
                stream::<Self, $item>(self, $poll)
            }

            /// As [`stream`](Self::stream), with the handle in it.
            pub fn into_stream(self) -> impl FusedStream<Item = $item> + Unpin {
                stream::<Self, $item>(self, $poll)
            }
        }
    };
}

/// The methods of a type that sends.
macro_rules! sinks {
    ([$($generics:tt)*] $type:ty, $error:ty, $poll:expr) => {
        impl<$($generics)*> $type {
            /// A `Sink` that sends. It keeps one message until there is room: flush it before it is dropped. Closing it leaves the queue
            /// open.
            ///
            /// An error gives the message back; the sink can be used again.
            pub fn sink(&mut self) -> impl Sink<T, Error = $error> + Unpin + '_ {
                sink::<Self, T, $error>(self, $poll)
            }

            /// As [`sink`](Self::sink), with the handle in it.
            pub fn into_sink(self) -> impl Sink<T, Error = $error> + Unpin {
                sink::<Self, T, $error>(self, $poll)
            }
        }
    };
}

const KEPT: &str = "a sink sends what it has";

streams!([T: Plain] Queue<T>, T, |queue, watching, cx| {
    watching
        .poll(cx, || queue.source(RingEnd::NotEmpty), |effort| queue.recv_now(effort))
        .map(Result::ok)
});

streams!([] BytesQueue, Vec<u8>, |queue, watching, cx| {
    let received = watching.poll(cx, || queue.source(RingEnd::NotEmpty), |effort| queue.recv_now(effort));
    received.map(|received| Some(queue.message(received.ok()?).ok()?.to_vec()))
});

streams!([T: DeserializeOwned] ObjectQueue<T>, T, |queue, watching, cx| {
    let bytes = &queue.bytes;
    let received = watching.poll(cx, || bytes.source(RingEnd::NotEmpty), |effort| bytes.recv_now(effort));
    received.map(|received| Some(queue.decoded(bytes.message(received.ok()?).ok()?).ok()?.into_inner()))
});

streams!([T: Plain] Consumer<T>, T, |consumer, watching, cx| {
    let Self { side, ring, .. } = consumer;
    watching.poll(cx, || source(side), |effort| Self::pop_now(side, ring, effort)).map(Result::ok)
});

sinks!([T: Plain] Queue<T>, SendError<T>, |queue, watching, cx, item| {
    let value = item.as_ref().copied().expect(KEPT);
    let attempt = |effort| Some(queue.send_now(&value, effort)?.map_err(|unsent| unsent.with(value)));
    let sent = watching.poll(cx, || queue.source(RingEnd::NotFull), attempt);
    sent.map(|sent| {
        *item = None;
        sent
    })
});

sinks!([T: Serialize] ObjectQueue<T>, SendError<T>, |queue, watching, cx, item| {
    let value = item.as_ref().expect(KEPT);
    let attempt = |effort: Effort| queue.send_now(value, effort);
    let sent = watching.poll(cx, || queue.bytes.source(RingEnd::NotFull), attempt);
    sent.map(|sent| {
        let value = item.take().expect(KEPT);
        sent.map_err(|unsent| unsent.map(|()| value))
    })
});

sinks!([T: Plain] Producer<T>, PushError<T>, |producer, watching, cx, item| {
    let Self { side, ring, light, .. } = producer;
    let value = item.as_ref().copied().expect(KEPT);
    let attempt = |effort| Self::push_now(side, ring, *light, value, effort);
    let pushed = watching.poll(cx, || source(side), attempt);
    pushed.map(|pushed| {
        *item = None;
        pushed
    })
});
