//! Ends of a pipe whose two processes have no way yet to hand each other handles.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossproc_segment::{Error, Segment};

use super::courier::Courier;
use super::{ALONE, Connection, Pipe, PipeOptions};

impl<A, B> Connection<A, B> {
    /// What another process makes the same end of, with [`attach_far`]: the segment, and the socket for handles.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let socket = self.sender().link.courier.as_ref().map(|courier| courier.0.as_fd());
        self.segment().fd().into_iter().chain(socket).collect()
    }
}

/// The second end of a pipe that [`PipeOptions::duplex`] made, from its [descriptors](Connection::descriptors).
pub(crate) fn attach_far<A, B>(memory: OwnedFd, socket: OwnedFd) -> Result<Connection<A, B>, Error> {
    let segment = Segment::try_from(memory)?;
    // Of whatever capacity it is.
    let pipe: Pipe<B, A> = PipeOptions::new().capacity(1).in_segment(&segment, ALONE)?;
    pipe.far_with(Some(Courier(Arc::new(socket))))
}
