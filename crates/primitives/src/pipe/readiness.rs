//! Waiting for a pipe without a thread: futures, descriptors, and [`wait_any`](crate::wait_any).

use std::cell::OnceCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::mem::offset_of;
use std::sync::Arc;
use std::task::{Context, Poll};

use crossproc_atomic::{EventCount, heavy_fence};
use crossproc_ring::{End, FrameRing, FrameWords, Presence, Watch};
use crossproc_sync::Effort;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::courier::Parcel;
use super::error::{RecvError, SendError};
use super::link::Link;
use super::message::{Came, Found, Message, Taken};
use super::pace::Pace;
use super::receiver::{Kept, Receiver, decode};
use super::sender::{Outgoing, Sender, Turn};
use crate::readiness::{Readiness, Source, WaitTarget, Waitable, Wakes, Watching};

/// When there is something to do for a handle. It has no hold of the end: what only waits keeps nothing open.
fn source(link: &Link, kept: Arc<Kept>) -> Arc<Source> {
    let end = link.end;
    let at = match end {
        End::Writer => offset_of!(FrameWords, writable),
        End::Reader => offset_of!(FrameWords, readable),
    };
    let event = link.handle.place::<EventCount>(at as u64).expect("it is one of the ring's words");
    let (words, cells) = (link.handle.words.clone(), link.cells.clone());
    let (data, shape) = (link.bytes.words().clone(), link.shape);
    Source::new(link.segment(), event, Wakes::All, move |live| {
        let ring = FrameRing::new(&words, &data, &cells, shape);
        if kept.has_message() || ring.is_ready(end, live, kept.has_turn()) {
            return true;
        }
        // It may be a turn that is waited for.
        ring.before_sleeping(end, true, heavy_fence);
        let other = ring.presence(end.other(), live, &mut Watch::default());
        // A reader looks for the end in its turn, and between two messages.
        let can_end = || end == End::Writer || !kept.has_turn() && ring.is_turn_free(end, live);
        ring.is_ready(end, live, kept.has_turn())
            || matches!(other, Presence::Left | Presence::Died) && can_end()
    })
}

/// Before the last look of who is going to wait.
fn before_waiting(link: &Link) {
    link.ring().before_sleeping(link.end, true, heavy_fence);
}

/// A message that a task is sending. Dropped in the middle of it, it is given up, and no receiver gets any of it.
struct Sending<'a, T> {
    sender: &'a mut Sender<T>,
    watching: Watching,
    done: usize,
    /// Whether the turn is kept between two polls.
    kept: OnceCell<Arc<Kept>>,
}

impl<T> Sending<'_, T> {
    fn new(sender: &mut Sender<T>) -> Sending<'_, T> {
        // A future before this one may have been leaked.
        sender.give_up();
        Sending { sender, watching: Watching::default(), done: 0, kept: OnceCell::new() }
    }

    fn poll(
        &mut self,
        cx: &Context<'_>,
        message: &[u8],
        parcel: Option<&Parcel>,
    ) -> Poll<Result<(), SendError>> {
        let Self { sender, watching, done, kept } = self;
        let slices = [IoSlice::new(message)];
        let message = Outgoing::new(&slices, parcel);
        let source = || source(&sender.link, Arc::clone(kept.get_or_init(Arc::default)));
        let mut goes_on = false;
        let polled = watching.poll(cx, source, |effort| {
            let Some(kept) = kept.get() else { return sender.send_now(&message, done, effort, &mut goes_on) };
            // It may begin a message now: then who looks from now on looks for room for a part.
            kept.keep_turn(true);
            let sent = sender.send_now(&message, done, effort, &mut goes_on);
            kept.keep_turn(sender.local.borrow().writer.is_in_frame());
            sent
        });
        again_if(goes_on, cx, polled)
    }
}

/// A task that could go on for ever lets the others have their turn.
fn again_if<R>(goes_on: bool, cx: &Context<'_>, polled: Poll<R>) -> Poll<R> {
    if goes_on && polled.is_pending() {
        cx.waker().wake_by_ref();
    }
    polled
}

impl<T> Drop for Sending<'_, T> {
    fn drop(&mut self) {
        self.sender.give_up();
    }
}

impl<T> Sender<T> {
    /// Sends as much as there is room for, or some of it: then it `goes_on`.
    fn send_now(
        &self,
        message: &Outgoing<'_>,
        done: &mut usize,
        effort: Effort,
        goes_on: &mut bool,
    ) -> Option<Result<(), SendError>> {
        *goes_on = false;
        let Some(live) = self.link.live() else { return Some(Err(SendError::NotAttached)) };
        if message.len() > self.message_max() {
            return Some(Err(SendError::TooLong { most: self.message_max() }));
        }
        if effort.is_full() {
            before_waiting(&self.link);
        }
        let local = &mut *self.local.borrow_mut();
        if message.len() <= self.at_once_max() {
            return self.attempt(live, local, message, &mut false);
        }
        let mut pace = Pace::default();
        loop {
            match self.send_part(live, local, message, done, &mut false)? {
                Ok(Turn::Progress) if pace.is_enough(local.writer.position(), self.link.shape) => {
                    *goes_on = true;
                    return None;
                }
                Ok(Turn::Progress) => {}
                Ok(Turn::Sent) => return Some(Ok(())),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Sends bytes as one message, as [`send_bytes`](Self::send_bytes) does: for tasks of any runtime.
    ///
    /// If the future is dropped before it is ready, nothing was sent: no receiver gets a part of it.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_bytes_async<'a>(
        &'a mut self,
        message: &'a [u8],
    ) -> impl Future<Output = Result<(), SendError>> + Unpin + 'a {
        let mut sending = Sending::new(self);
        poll_fn(move |cx| sending.poll(cx, message, None))
    }

    /// A descriptor that becomes readable when there is room for a message that goes at once, for event loops: see [`Readiness`].
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn writable(&self) -> io::Result<Readiness> {
        Readiness::new(self.source())
    }

    /// Of a sender that is sending nothing: it keeps no turn.
    fn source(&self) -> Arc<Source> {
        source(&self.link, Arc::default())
    }

    /// Before the last look of who is going to wait.
    #[cfg(any(feature = "async-io", feature = "tokio"))]
    pub(crate) fn before_waiting(&self) {
        before_waiting(&self.link);
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a value, as [`send`](Self::send) does: for tasks of any runtime. It is serialised at once.
    ///
    /// If the future is dropped before it is ready, nothing was sent.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_async(&mut self, message: &T) -> impl Future<Output = Result<(), SendError>> + Unpin + '_ {
        let message = self.encode(message, Vec::new());
        let mut sending = Sending::new(self);
        poll_fn(move |cx| match &message {
            Ok((message, parcel)) => sending.poll(cx, message, parcel.as_ref()),
            Err(error) => Poll::Ready(Err(*error)),
        })
    }
}

impl<T> Receiver<T> {
    /// Takes the next message, or some parts of it: then it `goes_on`.
    fn recv_now(&self, effort: Effort, goes_on: &mut bool) -> Option<Result<(Vec<u8>, Came), RecvError>> {
        *goes_on = false;
        let Some(live) = self.link.live() else { return Some(Err(RecvError::NotAttached)) };
        if effort.is_full() {
            before_waiting(&self.link);
        }
        let local = &mut *self.local.borrow_mut();
        let mut pace = Pace::default();
        loop {
            let mut take = |message: Message<'_>, _| Taken::Yes(message.into_vec());
            match self.attempt(live, local, usize::MAX, &mut take, effort, &mut false)? {
                Ok(Found::Progress) if pace.is_enough(local.position(), self.link.shape) => {
                    self.leave_off(local);
                    *goes_on = true;
                    return None;
                }
                Ok(Found::Progress) => {}
                Ok(Found::Message(message)) => return Some(Ok((message, std::mem::take(&mut local.came)))),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn poll_now(
        &self,
        cx: &Context<'_>,
        watching: &mut Watching,
    ) -> Poll<Result<(Vec<u8>, Came), RecvError>> {
        let mut goes_on = false;
        let polled = watching.poll(cx, || self.source(), |effort| self.recv_now(effort, &mut goes_on));
        again_if(goes_on, cx, polled)
    }

    fn source(&self) -> Arc<Source> {
        source(&self.link, self.local.borrow_mut().kept())
    }

    /// Before the last look of who is going to wait.
    #[cfg(any(feature = "async-io", feature = "tokio"))]
    pub(crate) fn before_waiting(&self) {
        before_waiting(&self.link);
    }

    /// Receives the next message, as [`recv_bytes`](Self::recv_bytes) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing: what has come of a message stays with this handle.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_bytes_async(&mut self) -> impl Future<Output = Result<Vec<u8>, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            let received = self.poll_now(cx, &mut watching);
            received.map(|received| received.map(|(bytes, _)| bytes))
        })
    }

    /// A descriptor that becomes readable when there is something to receive, or the end, for event loops: see [`Readiness`].
    ///
    /// It is for this handle: while another one has its turn, in the middle of a message or with a guard, there is nothing to receive; and
    /// what this one has left of a message is something.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn readable(&self) -> io::Result<Readiness> {
        Readiness::new(self.source())
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a value, as [`recv`](Self::recv) does: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing, as of [`recv_bytes_async`](Self::recv_bytes_async).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// ```
    /// # use std::{future::Future, pin::pin, sync::Arc, task::{Context, Poll, Wake}, thread};
    /// # struct Unpark(thread::Thread);
    /// # impl Wake for Unpark { fn wake(self: Arc<Self>) { self.0.unpark() } }
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     let (mut future, waker) = (pin!(future), Arc::new(Unpark(thread::current())).into());
    /// #     loop {
    /// #         if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) { return done }
    /// #         thread::park();
    /// #     }
    /// # }
    /// let (mut receiver, sender) = crossproc_primitives::Pipe::simplex::<String>()?;
    /// thread::spawn(move || sender.send(&"later".to_owned()));
    /// assert_eq!(block_on(receiver.recv_async())?, "later");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn recv_async(&mut self) -> impl Future<Output = Result<T, RecvError>> + Unpin + '_ {
        let mut watching = Watching::default();
        poll_fn(move |cx| {
            let received = self.poll_now(cx, &mut watching);
            received.map(|received| received.and_then(|(bytes, came)| decode(&bytes, came)))
        })
    }
}

impl<A, B> Connection<A, B> {
    /// As [`Receiver::readable`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn readable(&self) -> io::Result<Readiness> {
        self.receiver().readable()
    }

    /// As [`Sender::writable`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn writable(&self) -> io::Result<Readiness> {
        self.sender().writable()
    }

    /// As [`Receiver::recv_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_async(&mut self) -> impl Future<Output = Result<B, RecvError>> + Unpin + '_
    where
        B: DeserializeOwned,
    {
        self.halves().1.recv_async()
    }

    /// As [`Sender::send_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_async(&mut self, message: &A) -> impl Future<Output = Result<(), SendError>> + Unpin + '_
    where
        A: Serialize,
    {
        self.halves().0.send_async(message)
    }
}

/// Waits until there is something to receive, or the end.
impl<T> Waitable for Receiver<T> {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget::source(self.source())
    }
}

/// Waits until there is room for a message that goes at once, or nobody who could receive it.
impl<T> Waitable for Sender<T> {
    fn target(&self) -> WaitTarget<'_> {
        WaitTarget::source(self.source())
    }
}

/// Waits until there is something to receive, or the end.
impl<A, B> Waitable for Connection<A, B> {
    fn target(&self) -> WaitTarget<'_> {
        self.receiver().target()
    }
}
