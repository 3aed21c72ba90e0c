//! Connections as streams of bytes for runtimes (features `tokio` and `async-io`).

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::any::Target;
use super::{Source, Waitable, Watching};
use crate::pipe::{Connection, Receiver, Sender};

/// A [`Connection`] that is read and written by tasks: made by [`Connection::into_async`].
///
/// It is tokio's `AsyncRead` and `AsyncWrite` with the feature `tokio`, and those of `futures-io` (async-std, smol, async-io) with
/// `async-io`. What is read and written is as by [`Read`] and [`Write`] for a connection: bytes, whatever messages they come in. Shutting
/// it down (closing it) drops the sending end: who reads comes to the end of the file.
#[derive(Debug)]
pub struct AsyncConnection<A, B> {
    /// `None`: shut down.
    sender: Option<Sender<A>>,
    receiver: Receiver<B>,
    reading: Watching,
    writing: Watching,
}

impl<A, B> Unpin for AsyncConnection<A, B> {}

impl<A, B> Connection<A, B> {
    /// For tasks of a runtime that read and write bytes. Messages need it not: see [`recv_async`](Self::recv_async).
    ///
    /// ```
    /// # #[cfg(feature = "tokio")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use crossproc_primitives::Pipe;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// # runtime.block_on(async {
    /// let (here, there) = Pipe::duplex::<(), ()>()?;
    /// let (mut here, mut there) = (here.into_async(), there.into_async());
    /// let echo = tokio::spawn(async move {
    ///     let mut text = String::new();
    ///     there.read_to_string(&mut text).await?;
    ///     there.write_all(text.to_uppercase().as_bytes()).await
    /// });
    /// here.write_all(b"hello").await?;
    /// here.shutdown().await?;
    /// let mut answer = String::new();
    /// here.read_to_string(&mut answer).await?;
    /// assert_eq!(answer, "HELLO");
    /// echo.await??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "tokio"))]
    /// # fn main() {}
    /// ```
    #[must_use]
    pub fn into_async(self) -> AsyncConnection<A, B> {
        self.set_nonblocking(true);
        let (sender, receiver) = self.split();
        let (reading, writing) = (Watching::default(), Watching::default());
        AsyncConnection { sender: Some(sender), receiver, reading, writing }
    }
}

/// One attempt; `None` if it would block.
fn attempt<'a, R>(
    source: impl FnOnce() -> &'a Arc<Source>,
    is_full: bool,
    before_waiting: impl FnOnce(),
    now: impl FnOnce() -> io::Result<R>,
) -> Option<io::Result<R>> {
    if is_full {
        if !source().is_ready() {
            return None;
        }
        // Another handle may be faster and leave what there is: it has to know that somebody waits for the turn.
        before_waiting();
    }
    match now() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        done => Some(done),
    }
}

fn source(end: &impl Waitable) -> Arc<Source> {
    match end.target().0 {
        Target::Source(source) => source,
        Target::Fd(..) => unreachable!("a pipe is no descriptor"),
    }
}

impl<A, B> AsyncConnection<A, B> {
    fn read(&mut self, cx: &Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Self { receiver, reading, .. } = self;
        let it = OnceCell::new();
        let its = || it.get_or_init(|| source(receiver));
        reading.poll(
            cx,
            || Arc::clone(its()),
            |effort| attempt(its, effort.is_full(), || receiver.before_waiting(), || (&*receiver).read(buf)),
        )
    }

    fn write(&mut self, cx: &Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { sender, writing, .. } = self;
        let Some(sender) = sender else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let it = OnceCell::new();
        let its = || it.get_or_init(|| source(sender));
        writing.poll(
            cx,
            || Arc::clone(its()),
            |effort| attempt(its, effort.is_full(), || sender.before_waiting(), || (&*sender).write(buf)),
        )
    }

    fn shut_down(&mut self) -> Poll<io::Result<()>> {
        self.writing = Watching::default();
        self.sender = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(feature = "tokio")]
impl<A, B> tokio::io::AsyncRead for AsyncConnection<A, B> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.get_mut().read(cx, buf.initialize_unfilled());
        read.map(|read| read.map(|n| buf.advance(n)))
    }
}

#[cfg(feature = "tokio")]
impl<A, B> tokio::io::AsyncWrite for AsyncConnection<A, B> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // what is written is there at once
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().shut_down()
    }
}

#[cfg(feature = "async-io")]
impl<A, B> futures_io::AsyncRead for AsyncConnection<A, B> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.get_mut().read(cx, buf)
    }
}

#[cfg(feature = "async-io")]
impl<A, B> futures_io::AsyncWrite for AsyncConnection<A, B> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // what is written is there at once
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().shut_down()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PipeOptions;

    #[test]
    fn who_finds_the_turn_taken_is_told_when_it_is_given_back() {
        let (receiver, sender) = PipeOptions::new().simplex::<()>().unwrap();
        let mut other = receiver.clone();
        sender.send_bytes(b"it stays").unwrap();
        let its = source(&receiver);
        let ticket = its.event.listen();
        let mut peeked = None;
        let taken = attempt(
            || &its,
            true,
            || receiver.before_waiting(),
            || {
                peeked = Some(other.try_peek().map_err(io::Error::other)?);
                receiver.set_nonblocking(true);
                (&receiver).read(&mut [0; 8])
            },
        );
        assert!(taken.is_none() && !its.event.is_notified(ticket));
        drop(peeked);
        assert!(its.event.is_notified(ticket));
    }
}
