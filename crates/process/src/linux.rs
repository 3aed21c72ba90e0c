//! Unsafe room: the few calls of libc that have no safe form elsewhere, each behind a safe function.
#![allow(unsafe_code)]

use std::ffi::{OsString, c_int, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::image::{self, Build};

/// True if the kernel started this program with privileges that its caller does not have (set-user-id, file
/// capabilities): then nothing in the environment may direct it.
pub(crate) fn privileged_start() -> bool {
    // SAFETY: getauxval only reads the auxiliary vector; an unknown entry is reported as 0.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Removes a variable from the environment, before `main` and before the first thread of ours; returns what
/// it was.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    // SAFETY: the only caller is our constructor, which runs on the only thread of the process (a library
    // that starts a thread in its own constructor and reads the environment there would race; none is known
    // to, and such a thread would race with any `setenv` of the program's `main` as well).
    unsafe { std::env::remove_var(name) };
    Some(value)
}

/// A broken pipe is an error of `write`, as in a `main` of Rust, and not the end of the process.
pub(crate) fn ignore_sigpipe() {
    // SAFETY: installs no handler, so no code of ours ever runs in a signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// The process that made the socket `socket` is connected to (`SO_PEERCRED`), as this PID namespace sees it:
/// 0 if it does not see it.
///
/// Not rustix's `socket_peercred`: its `Pid` can not be 0.
pub(crate) fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` is writable and `length` is its size; the kernel writes at most that much.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(peer.pid) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal through a pidfd: it reaches that process or nobody, never another one with the same id.
///
/// Not rustix's `pidfd_send_signal`: its `Signal` has no real-time signals in safe code.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: all arguments are plain numbers, apart from the third, for which null is allowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One of the ELF files that make up this process, as the loader has mapped it.
#[derive(Debug)]
pub(crate) struct Object {
    /// What the loader adds to the addresses in the file.
    pub(crate) base: usize,
    /// The addresses of its machine code.
    pub(crate) code: Vec<Range<usize>>,
    /// Which build of which program it is.
    pub(crate) build: Build,
    /// True for the executable itself, false for a shared library.
    pub(crate) is_executable: bool,
    /// The table of its constructors (`DT_INIT_ARRAY`), empty if there is none or it is not known.
    pub(crate) constructors: Range<usize>,
}

impl Object {
    /// True if `address` is in the machine code of this object.
    pub(crate) fn has_code_at(&self, address: usize) -> bool {
        self.code.iter().any(|range| range.contains(&address))
    }
}

/// The object that the address belongs to.
pub(crate) fn object_of(address: usize) -> Option<Object> {
    let mut search = Search { address, seen: 0, found: None };
    // SAFETY: `visit` has the signature that dl_iterate_phdr asks for, and `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.found
}

struct Search {
    address: usize,
    seen: usize,
    found: Option<Object>,
}

/// Called by `dl_iterate_phdr` for each object, the executable first; a result other than 0 ends the search.
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, search: *mut c_void) -> c_int {
    // SAFETY: `search` is the pointer that object_of passed, and nobody else uses it during the call.
    let search = unsafe { &mut *search.cast::<Search>() };
    // SAFETY: the loader passes a valid description for the time of this call.
    let info = unsafe { &*info };
    let is_executable = search.seen == 0;
    search.seen += 1;
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: the loader keeps `dlpi_phnum` program headers there as long as the object is loaded.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = info.dlpi_addr as usize;
    let place = |header: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(header.p_vaddr as usize);
        start..start.wrapping_add(header.p_memsz as usize)
    };
    let loaded = |flag: u32| {
        headers.iter().filter(move |h| h.p_type == libc::PT_LOAD && h.p_flags & flag != 0).map(place)
    };
    if !loaded(libc::PF_R).any(|range| range.contains(&search.address)) {
        return 0;
    }
    // Bytes of a segment that the loader has mapped readable, or nothing.
    let bytes = |range: Range<usize>| -> &[u8] {
        if range.is_empty() || !loaded(libc::PF_R).any(|l| l.start <= range.start && range.end <= l.end) {
            return &[];
        }
        // SAFETY: the range lies within one segment that the loader has mapped readable, and this object is
        // loaded as long as the loader holds its lock, which is until `visit` returns. Only notes, the
        // dynamic section and code are read, which nobody writes after relocation.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(range.start), range.len()) }
    };

    let notes = headers.iter().filter(|h| h.p_type == libc::PT_NOTE);
    let id = notes.filter_map(|h| image::id_in_notes(bytes(place(h)), h.p_align as usize)).next();
    let code: Vec<_> = loaded(libc::PF_X).collect();
    let mut layout = image::Digest::default();
    for h in headers {
        layout.add(u64::from(h.p_type) | u64::from(h.p_flags) << 32);
        layout.add(h.p_vaddr);
        layout.add(h.p_memsz);
    }
    if id.is_none() {
        // A linker that writes no build id: the code itself has to tell the builds apart.
        code.iter().for_each(|range| layout.add_bytes(bytes(range.clone())));
    }
    let dynamic = headers.iter().find(|h| h.p_type == libc::PT_DYNAMIC).map(place).unwrap_or_default();
    search.found = Some(Object {
        base,
        constructors: image::constructors_in_dynamic(bytes(dynamic), base),
        code,
        build: Build { id: id.unwrap_or_default(), layout: layout.value() },
        is_executable,
    });
    1
}
