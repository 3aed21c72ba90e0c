#![allow(unsafe_code)]
//! The room where memory that somebody else mapped becomes a segment.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use crossproc_atomic::process_stamp;

use crate::attach::random_id;
use crate::directory::Directory;
use crate::error::Error;
use crate::header::{Backing, Facts, Geometry, Header, Machine, Unlink};
use crate::map::{Mapping, PAGE};
use crate::options::{Granted, SegmentOptions};
use crate::participant::Participants;
use crate::registry::{self, Key};
use crate::segment::{Core, Segment};
use crate::windows::no_windows;

impl Segment {
    /// Makes a segment of memory that is shared by other means, or attaches to the one in it.
    ///
    /// All-zero memory becomes a segment with the tables of [`SegmentOptions::new`]; several processes may
    /// adopt the same memory at the same moment. `keep` is dropped when this process no longer uses the
    /// memory. A forked child never drops its copy: in many libraries that would take the memory away from
    /// its parent.
    ///
    /// The segment has no descriptor, so it can not be sent to another process, which has to adopt the memory
    /// itself.
    ///
    /// # Errors
    ///
    /// [`InvalidLength`](crate::ErrorKind::InvalidLength) if the memory does not begin at a multiple of 4096 or is
    /// too small for the tables, [`NotOurs`](crate::ErrorKind::NotOurs) if something else is in it, and those of
    /// [`Segment::open`].
    ///
    /// # Safety
    ///
    /// `[base, base + len)` is mapped readable and writable until `keep` is dropped, and this process reaches
    /// it through this segment only, or through atomics.
    ///
    /// ```
    /// use crossproc_segment::{Mapping, Segment};
    ///
    /// let memory = Mapping::heap(1 << 16); // in real life: the memory of a host runtime
    /// let base = std::ptr::NonNull::new(memory.base()).expect("mapped");
    /// let len = memory.len();
    /// // SAFETY: the memory lives as long as `memory`, which the segment keeps; nobody else uses it.
    /// let segment = unsafe { Segment::adopt(base, len, Box::new(memory)) }?;
    /// assert!(segment.capacity() > 0 && segment.fd().is_none());
    /// # Ok::<(), crossproc_segment::Error>(())
    /// ```
    pub unsafe fn adopt(
        base: NonNull<u8>,
        len: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, Error> {
        // SAFETY: handed on to the caller.
        unsafe { SegmentOptions::new().adopt(base, len, keep) }
    }

    /// Makes a segment of a `shared_memory` mapping, or attaches to the one in it; see
    /// [`adopt`](Segment::adopt).
    ///
    /// For code that is built on that crate and wants robust primitives in the memory it already shares.
    ///
    /// # Errors
    ///
    /// As [`adopt`](Segment::adopt), and [`NoSpace`](crate::ErrorKind::NoSpace) if /dev/shm is too full for the
    /// mapping, which that crate does not notice.
    ///
    /// ```
    /// use crossproc_segment::Segment;
    ///
    /// let shmem = shared_memory::ShmemConf::new().size(1 << 20).create()?;
    /// let segment = Segment::from_shmem(shmem)?;
    /// assert!(segment.capacity() > 900_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "shared_memory")]
    pub fn from_shmem(shmem: shared_memory::Shmem) -> Result<Self, Error> {
        /// What keeps the mapping.
        struct Keep(#[expect(dead_code, reason = "held for its destructor")] shared_memory::Shmem);
        // SAFETY: a Shmem is a mapping, a descriptor and two strings. It is not Send only because it stores a
        // pointer; its destructor (munmap, shm_unlink, close) may run on any thread.
        unsafe impl Send for Keep {}
        // SAFETY: nothing reads it through a shared reference.
        unsafe impl Sync for Keep {}

        let len = shmem.len();
        let Some(base) = NonNull::new(shmem.as_ptr()) else {
            return Err(Error::new(crate::ErrorKind::InvalidLength, "adopting a Shmem: it has no memory"));
        };
        // SAFETY: a Shmem's memory is mapped readable and writable until it is dropped. It is moved into
        // `keep`, and what it hands out to reach the memory (pointers, slices) can be used in `unsafe` code
        // only.
        unsafe { Self::adopt(base, len, Box::new(Keep(shmem))) }
    }
}

impl SegmentOptions {
    /// As [`Segment::adopt`], with other tables ([`participants`](Self::participants),
    /// [`objects`](Self::objects)).
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Safety
    ///
    /// As there.
    pub unsafe fn adopt(
        &self,
        base: NonNull<u8>,
        len: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Segment, Error> {
        let adopt = || {
            let len = len / PAGE * PAGE;
            if self.windows > 0 {
                return Err(no_windows());
            }
            // SAFETY: handed on to the caller.
            let mapping = unsafe { Mapping::adopt(base, len, keep) }?;
            let key = Key::Memory(mapping.base().addr());
            registry::find_or_make(key, || {
                let header = mapping.place::<Header>(0)?;
                if header.is_to_be_written() {
                    // Its maker may not have looked whether the pages can be had. Where the kernel can not
                    // tell, they may fault.
                    let room = "making the adopted memory be there";
                    mapping.populate(mapping.len()).map_err(|errno| Error::os(room, errno))?;
                    header.write(&Facts {
                        geometry: Geometry::with_total(self.participants, self.objects, len as u64, 0)?,
                        backing: Backing::Adopted,
                        unlink: Unlink::Never,
                        mode: 0,
                        creator: std::process::id(),
                        machine: Machine::here()?,
                        id: random_id()?,
                    })?;
                }
                let facts = header.read(len as u64)?;
                facts.check_machine(Machine::here()?)?;
                Ok(Core {
                    label: "adopted memory".into(),
                    directory: Directory::new(&mapping, &facts.geometry)?,
                    participants: Some(Participants::attach(&mapping, facts.geometry.participants, false)?),
                    // A clone: if this fails, `keep`'s destructor runs outside of the registry's lock.
                    mapping: Arc::clone(&mapping),
                    header,
                    facts,
                    fd: None,
                    stamp: process_stamp(),
                    key,
                    link: None,
                    creator: false,
                    granted: Granted::default(),
                    timeout: self.timeout,
                })
            })
        };
        adopt().map(Segment).map_err(|e: Error| e.during(format_args!("adopting {len} bytes of memory")))
    }
}
