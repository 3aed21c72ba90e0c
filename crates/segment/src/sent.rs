//! How a segment goes to another process: as its file descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind};
use crate::handover::{de_error, put, ser_error, take};
use crate::options::SegmentOptions;
use crate::segment::Segment;

impl AsFd for Segment {
    /// # Panics
    ///
    /// For adopted memory, which has no descriptor; see [`Segment::fd`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd().expect("adopted memory has no file descriptor")
    }
}

impl TryFrom<OwnedFd> for Segment {
    type Error = Error;

    /// Attaches to the segment that another process sent; see [`SegmentOptions::received`].
    fn try_from(fd: OwnedFd) -> Result<Self, Error> {
        SegmentOptions::new().received(fd)
    }
}

/// A segment travels beside the bytes, as a descriptor ([`handover`](crate::handover)): this writes its
/// index.
///
/// ```
/// use crossproc_segment::{Segment, handover};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Job {
///     id: u32,
///     memory: Segment,
/// }
///
/// let job = Job { id: 7, memory: Segment::anonymous(4096)? };
/// let (bytes, descriptors) = handover::pack(|| postcard::to_stdvec(&job));
/// // .. the bytes and the descriptors go to another process, which does:
/// let bytes = bytes?;
/// let received: Job = handover::unpack(descriptors, || postcard::from_bytes(&bytes))?;
/// assert_eq!((received.id, received.memory.id()), (7, job.memory.id()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl Serialize for Segment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(fd) = self.fd() else {
            let sentence = "sending a segment in adopted memory: it has no descriptor; adopt the memory \
             in the other process too";
            return Err(ser_error(Error::new(ErrorKind::Unsupported, sentence)));
        };
        put(fd).map_err(ser_error)?.serialize(serializer)
    }
}

/// Attaches to the segment whose descriptor came with the bytes; see [`SegmentOptions::received`].
impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)?;
        let fd = take(index).map_err(de_error)?;
        Self::try_from(fd).map_err(de_error)
    }
}
