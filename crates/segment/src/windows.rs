//! Windows: the part of a segment whose pages come and go.
//!
//! It lies behind the objects, as a hole in the file that is mapped like all the rest. An object that wants memory for a while
//! allocates pages of its own windows, uses them, and gives them back. Reading or writing where no page was allocated makes the
//! kernel find one, and if it can not, that is a SIGBUS: so first allocate, then touch.
//!
//! What a death leaves behind: pages. Whose they are is in the object's words, and it is the object that gives them back.

use std::ops::Range;
use std::os::fd::AsFd;

use crate::backing;
use crate::error::{Error, ErrorKind};
use crate::memory;
use crate::segment::Segment;

impl Segment {
    /// Makes the pages of a range of windows be there; both numbers in bytes from the start of the segment. What is there already
    /// keeps its content, the rest is zero. (On a file system that can not allocate, all of it is zero.)
    ///
    /// # Errors
    ///
    /// [`NoSpace`](ErrorKind::NoSpace) if the file system or a quota is full, [`NoMemory`](ErrorKind::NoMemory) if the machine or
    /// the control group has not that much, [`Unsupported`](ErrorKind::Unsupported) for memory that is no file,
    /// [`InvalidLength`](ErrorKind::InvalidLength) for what is no part of the windows, [`NotAttached`](ErrorKind::NotAttached),
    /// [`ReadOnly`](ErrorKind::ReadOnly). Some of the pages may be there then; release them.
    ///
    /// ```
    /// use crossproc_segment::SegmentOptions;
    ///
    /// let segment = SegmentOptions::new().windows(1 << 40).anonymous(4096)?; // a tebibyte, and no memory
    /// let at = segment.mapping().len() as u64 - (1 << 40);
    /// segment.allocate_window(at, 4096)?;
    /// segment.release_window(at, 4096)?;
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub fn allocate_window(&self, offset: u64, len: u64) -> Result<(), Error> {
        let allocate = || {
            let (fd, range) = self.window(offset, len)?;
            if backing::is_in_memory(fd.as_fd()) {
                memory::require(len)?;
            }
            backing::allocate(fd.as_fd(), range)
        };
        allocate().map_err(|e| e.during(format_args!("allocating a window in {}", self.0.label)))
    }

    /// Gives the pages of a range of windows back. Only whole pages are; what was in the range is zero afterwards.
    ///
    /// # Errors
    ///
    /// As [`allocate_window`](Self::allocate_window), and [`Denied`](ErrorKind::Denied) in a segment that has a
    /// [`single_writer`](crate::SegmentOptions::single_writer). The pages stay then.
    pub fn release_window(&self, offset: u64, len: u64) -> Result<(), Error> {
        let release = || {
            let (fd, range) = self.window(offset, len)?;
            backing::punch_out(fd.as_fd(), range)
        };
        release().map_err(|e| e.during(format_args!("releasing a window in {}", self.0.label)))
    }

    /// The file, and the range if it is one of windows.
    fn window(&self, offset: u64, len: u64) -> Result<(impl AsFd, Range<u64>), Error> {
        self.check_attached()?;
        let fd = self.fd().ok_or_else(no_windows)?;
        let windows = self.0.facts.geometry.windows();
        let end = offset.checked_add(len).filter(|&end| end <= windows.end);
        let (Some(end), true) = (end, offset >= windows.start && len > 0) else {
            return Err(Error::new(
                ErrorKind::InvalidLength,
                format!("{len} bytes at {offset} are no part of the windows, which are at {windows:?}"),
            ));
        };
        Ok((fd, offset..end))
    }
}

/// There is nothing that pages could be had from.
pub(crate) fn no_windows() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "adopted memory has no windows: it is no file that pages could be taken from and given back to; use another segment",
    )
}
