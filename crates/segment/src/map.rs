#![allow(unsafe_code)]
//! The room where memory is mapped and unmapped.
//!
//! ```text
//!  reservation                 base                              base + len
//!  | (alignment) | 64 KiB      | segment ...                     | guard page |
//!    no access     private rw    shared, rw or r                   no access
//! ```
//!
//! Claims, and who keeps them:
//! * `[base, base + len)` is mapped for as long as the [`Mapping`] exists: only `Drop` unmaps, and everything
//!   that points inside holds an `Arc` of it. The numbers are private and never change.
//! * Another process may write any byte at any time. So nothing here makes a reference to the memory;
//!   `place.rs` does, and only to words that are valid whatever they hold.
//! * The private pages in front hold the robust-list nodes of `helper.rs`; the guard page turns a bug that
//!   runs over the end into a fault instead of a scribble on a stranger.
//!
//! A file that is shortened while it is mapped faults on access (SIGBUS). Sealed memory files can not be
//! shortened, which is why they are the default; for named and file segments it is a limit.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use crossproc_atomic::process_stamp;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, mprotect, munmap,
};

use crate::error::{Error, ErrorKind};

/// Size of the private pages in front of a segment's first byte.
pub const PREFIX_BYTES: usize = 64 * 1024;
/// What the layout of a segment counts in, whatever the machine's page size is.
pub(crate) const PAGE: usize = 4096;

/// A range of memory, mapped until this is dropped.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    memory: Memory,
}

/// Who gave us the memory, and what to give back.
enum Memory {
    Mapped {
        reservation: NonNull<u8>,
        reserved: usize,
    },
    Heap {
        allocation: NonNull<u8>,
        layout: Layout,
    },
    /// Somebody else's. Dropped only in the process that adopted: a forked child has a copy of a handle whose
    /// destructor may remove what belongs to its parent.
    Adopted {
        keep: ManuallyDrop<Box<dyn Any + Send + Sync>>,
        stamp: u64,
    },
}

// SAFETY: a Mapping is an address range and the duty to unmap it; neither is tied to a thread. All access to
// the memory goes through `place.rs`, which hands out `Sync` types only.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the struct through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, the base aligned to `align` at least. `len` must have been
    /// checked against the file's size: what lies beyond the end faults on access.
    pub(crate) fn of_file(
        fd: BorrowedFd<'_>,
        len: usize,
        align: usize,
        writable: bool,
    ) -> Result<Arc<Self>, Error> {
        let page = rustix::param::page_size().max(PAGE);
        let align = align.max(page);
        let rounded = len.checked_next_multiple_of(page).filter(|&l| l > 0 && isize::try_from(l).is_ok());
        // Whatever the reservation's address is, an aligned base with the prefix before it and a guard after
        // it fits.
        let reserved = rounded.and_then(|l| l.checked_add(PREFIX_BYTES + align + page));
        let (Some(rounded), Some(reserved)) = (rounded, reserved) else {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("mapping {len} bytes: no address space is that large"),
            ));
        };
        let failed = |errno| match errno {
            Errno::NOMEM => Error::new(
                ErrorKind::NoMemory,
                format!(
                    "mapping {len} bytes: no room in this process's address space (RLIMIT_AS, \
                     vm.max_map_count); ask for less"
                ),
            ),
            _ => Error::os(format_args!("mapping {len} bytes"), errno),
        };
        let private = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(null_mut(), reserved, ProtFlags::empty(), private) }.map_err(failed)?;
        let reservation = NonNull::new(start.cast::<u8>()).ok_or_else(|| failed(Errno::NOMEM))?;
        let skip =
            (reservation.addr().get() + PREFIX_BYTES).next_multiple_of(align) - reservation.addr().get();
        // SAFETY: skip < PREFIX_BYTES + align, so prefix, file and guard lie inside of the reservation.
        let base = unsafe { reservation.add(skip) };
        // From here on `mapping` owns the reservation and unmaps it on every way out.
        let memory = Memory::Mapped { reservation, reserved };
        let mapping = Self { base, len, writable, memory };
        // SAFETY: the prefix is inside of our own reservation, which nobody else has seen.
        let prefix = unsafe {
            let prefix = base.as_ptr().sub(PREFIX_BYTES).cast();
            mprotect(prefix, PREFIX_BYTES, MprotectFlags::READ | MprotectFlags::WRITE)
        };
        prefix.map_err(failed)?;
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // No memory is set aside for windows that nobody may ever need; all else is allocated by who creates the file.
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: MAP_FIXED replaces pages of our own reservation only: [base, base + rounded) is inside of
        // it.
        unsafe { mmap(base.as_ptr().cast(), rounded, access, flags, fd, 0) }.map_err(failed)?;
        // A core dump of gigabytes would delay the news of a death by seconds. Not having it harms nothing.
        let _ = mapping.advise(Advice::LinuxDontDump, len);
        Ok(Arc::new(mapping))
    }

    /// A zeroed buffer of this process's heap, aligned to a page: for Miri, sanitizers and tests of
    /// algorithms.
    ///
    /// # Panics
    ///
    /// If `len` is 0 or no address space is that large.
    #[must_use]
    pub fn heap(len: usize) -> Arc<Self> {
        assert!(len > 0, "a mapping has at least one byte");
        let size = len.checked_add(PREFIX_BYTES).expect("the length fits into the address space");
        let layout = Layout::from_size_align(size, PAGE).expect("the length fits into the address space");
        // SAFETY: the size is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(start) else { handle_alloc_error(layout) };
        // SAFETY: PREFIX_BYTES is inside of the allocation.
        let base = unsafe { allocation.add(PREFIX_BYTES) };
        Arc::new(Self { base, len, writable: true, memory: Memory::Heap { allocation, layout } })
    }

    /// Takes over memory that somebody else mapped, and keeps `keep` until it is no longer used.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidLength`] if the memory is not aligned to 4096 bytes, or empty.
    ///
    /// # Safety
    ///
    /// `[base, base + len)` is readable and writable until `keep` is dropped. Until then this process reaches
    /// it only through this mapping or through atomics, never through a Rust reference to plain data.
    pub unsafe fn adopt(
        base: NonNull<u8>,
        len: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Arc<Self>, Error> {
        if base.addr().get() % PAGE != 0 || len == 0 || isize::try_from(len).is_err() {
            return Err(Error::new(
                ErrorKind::InvalidLength,
                format!(
                    "adopting {len} bytes at {base:p}: the memory must begin at a multiple of {PAGE} and \
                     not be empty"
                ),
            ));
        }
        let memory = Memory::Adopted { keep: ManuallyDrop::new(keep), stamp: process_stamp() };
        Ok(Arc::new(Self { base, len, writable: true, memory }))
    }

    /// The first byte.
    #[inline]
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes from the base to the end.
    #[expect(clippy::len_without_is_empty, reason = "a mapping has at least one byte")]
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// False if writing to the memory would fault.
    #[inline]
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// True if [`PREFIX_BYTES`] private writable bytes stand before the base.
    #[must_use]
    pub fn has_prefix(&self) -> bool {
        !matches!(self.memory, Memory::Adopted { .. })
    }

    fn advise(&self, advice: Advice, len: usize) -> rustix::io::Result<()> {
        // SAFETY: the range is ours, and none of the kinds of advice used here changes what is read from it.
        unsafe { madvise(self.base().cast(), len.min(self.len), advice) }
    }

    /// Makes the kernel map every page of the first `len` bytes now, so that later accesses do not fault. True if it did.
    ///
    /// A page that can not be had (a full tmpfs) is an error here and not a SIGBUS later; kernels before 5.14
    /// can not tell.
    pub(crate) fn populate(&self, len: usize) -> Result<bool, Errno> {
        let advice = if self.writable { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        match self.advise(advice, len) {
            Ok(()) => Ok(true),
            // What an access would have raised SIGBUS for.
            Err(Errno::FAULT | Errno::NOMEM | Errno::HWPOISON) => Err(Errno::NOSPC),
            Err(_) => Ok(false),
        }
    }

    /// Asks for transparent huge pages. True if the kernel takes note.
    pub(crate) fn ask_for_huge_pages(&self) -> bool {
        self.advise(Advice::LinuxHugepage, self.len).is_ok()
    }

    /// Keeps the pages of the first `len` bytes in memory. True if the kernel agreed (RLIMIT_MEMLOCK).
    pub(crate) fn lock_in_memory(&self, len: usize) -> bool {
        // SAFETY: locking does not change what is read.
        unsafe { mlock(self.base().cast(), len.min(self.len)) }.is_ok()
    }

    /// Asks for pages of the NUMA nodes in `nodes` (a bit mask), interleaved or preferred. True if the kernel
    /// agreed.
    pub(crate) fn prefer_nodes(&self, nodes: u64, interleave: bool) -> bool {
        const MPOL_PREFERRED: libc::c_ulong = 1;
        const MPOL_INTERLEAVE: libc::c_ulong = 3;
        let mode = if interleave { MPOL_INTERLEAVE } else { MPOL_PREFERRED };
        // The kernel counts the bits of the mask plus one.
        let bits: libc::c_ulong = u64::BITS as libc::c_ulong + 1;
        // SAFETY: a policy for our own range; the kernel reads one u64 from `nodes`.
        unsafe { libc::syscall(libc::SYS_mbind, self.base(), self.len, mode, &raw const nodes, bits, 0) == 0 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match &mut self.memory {
            // SAFETY: our reservation, and nothing points into it any more: whatever does holds an Arc of
            // this Mapping. In a forked child this removes the child's copy only.
            Memory::Mapped { reservation, reserved } => unsafe {
                let _ = munmap(reservation.as_ptr().cast(), *reserved);
            },
            // SAFETY: allocated in `heap` with this layout.
            Memory::Heap { allocation, layout } => unsafe { dealloc(allocation.as_ptr(), *layout) },
            Memory::Adopted { keep, stamp } => {
                if *stamp == process_stamp() {
                    // SAFETY: dropped here only, once.
                    unsafe { ManuallyDrop::drop(keep) };
                }
            }
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.writable { "rw" } else { "r" };
        write!(f, "Mapping({:p}, {} bytes, {access})", self.base, self.len)
    }
}
