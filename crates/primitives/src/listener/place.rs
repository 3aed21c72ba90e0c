//! Where a listener is found, and the files of those that have a path.
//!
//! | a socket file | means |
//! |---|---|
//! | that can be connected to | a listener lives |
//! | that refuses | its listener is dead, or between `bind` and `listen` |
//!
//! Who makes a file holds a lock (flock) on its directory until it listens, so nobody takes a new one for a dead one's; who is killed meanwhile
//! leaves a file that refuses, and the kernel drops the lock.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, fchmod, flock, lstat, open, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use super::error::BindError;

/// Others in the same directory need less than a millisecond each.
const BUSY: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted; the kernel has its own limit as well (`net.core.somaxconn`).
const BACKLOG: i32 = 1024;

/// Where a listener is found on this machine: a path, or a name that only sockets know.
///
/// A text that begins with `@` is a name ("abstract": without a file, gone with its listener, and open to all users of the network
/// namespace, so it is the [policy](super::ListenerOptions::peers) alone that keeps strangers out). Any other text is a path, of at most 107
/// bytes; whoever may not write to the file can not connect.
///
/// ```
/// use crossproc_primitives::listener::Address;
///
/// assert_eq!(Address::from("@chat").to_string(), "@chat");
/// assert_eq!(Address::from("./@chat").to_string(), "./@chat"); // a path
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Path(PathBuf),
    Name(Vec<u8>),
}

impl Address {
    /// The name of an abstract socket, of at most 107 bytes.
    pub fn name(name: impl AsRef<[u8]>) -> Self {
        Self(Kind::Name(name.as_ref().to_owned()))
    }

    /// The path, if it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Path(path) => Some(path),
            Kind::Name(_) => None,
        }
    }

    pub(super) fn socket_address(&self) -> Result<SocketAddrUnix, Errno> {
        match &self.0 {
            Kind::Path(path) => SocketAddrUnix::new(path.as_path()),
            // Without a name the kernel would choose one.
            Kind::Name(name) if name.is_empty() => Err(Errno::INVAL),
            Kind::Name(name) => SocketAddrUnix::new_abstract_name(name),
        }
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self(Kind::Path(path.to_owned()))
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self(Kind::Path(path))
    }
}

impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        text.strip_prefix('@').map_or_else(|| Path::new(text).into(), Self::name)
    }
}

impl From<&String> for Address {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Kind::Path(path) => path.display().fmt(f),
            Kind::Name(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

/// A socket of this kind; it does not block.
pub(super) fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A socket that listens, and the file that leads to it.
pub(super) fn listen_at(address: &Address) -> Result<(OwnedFd, Option<SocketFile>), BindError> {
    let failed = |doing| move |errno: Errno| BindError::System(doing, errno.into());
    let to = address
        .socket_address()
        .map_err(failed("the address can not be one of a Unix socket (empty, or longer than 107 bytes)"))?;
    let socket = new_socket().map_err(failed("making a socket"))?;
    let Some(path) = address.path() else {
        bind(&socket, &to).map_err(|errno| match errno {
            Errno::ADDRINUSE => BindError::InUse,
            errno => BindError::System("binding the name", errno.into()),
        })?;
        listen(&socket, BACKLOG).map_err(failed("listening"))?;
        return Ok((socket, None));
    };
    // The file is made with the mode of the socket, so there is no moment at which others may connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("setting the mode of the socket"))?;
    let _lock = lock_directory(path)?;
    let mut result = bind(&socket, &to);
    if result == Err(Errno::ADDRINUSE) {
        remove_if_dead(path, &to)?;
        result = bind(&socket, &to);
    }
    result.map_err(|errno| match errno {
        Errno::ADDRINUSE => BindError::InUse,
        errno => BindError::System("making the socket file", errno.into()),
    })?;
    let found = lstat(path).map_err(failed("looking at the socket file"))?;
    let file = SocketFile {
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        device: found.st_dev,
        inode: found.st_ino,
        process: std::process::id(),
    };
    listen(&socket, BACKLOG).map_err(failed("listening"))?;
    Ok((socket, Some(file)))
}

fn lock_directory(path: &Path) -> Result<OwnedFd, BindError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |errno: Errno| BindError::System("opening the directory of the socket file", errno.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(directory, flags, Mode::empty()).map_err(failed)?;
    // Whoever may read the directory could hold it for ever.
    let until = Instant::now() + BUSY;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::AGAIN) if Instant::now() >= until => return Err(BindError::Busy),
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Removes what is in the way if it is the socket file of a dead listener. Under the directory's lock.
fn remove_if_dead(path: &Path, to: &SocketAddrUnix) -> Result<(), BindError> {
    let failed = |doing| move |errno: Errno| BindError::System(doing, errno.into());
    let found = match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(failed("looking at what is at the path"))?,
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(BindError::NotASocket);
    }
    let probe = new_socket().map_err(failed("making a socket"))?;
    match connect(&probe, to) {
        Err(Errno::CONNREFUSED) => {
            unlink(path).map_err(failed("removing the socket file of a dead listener"))
        }
        Err(Errno::NOENT) => Ok(()),
        // A full queue, or a socket of another type: somebody is there.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindError::InUse),
        Err(errno) => Err(failed("seeing whether the socket file has a listener")(errno)),
    }
}

/// The file of a listener; removed with it, if it still is its file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// A forked child does not remove its parent's file.
    process: u32,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The socket still listens, so nobody takes it for dead and puts another one here meanwhile.
        let is_ours = self.process == std::process::id()
            && lstat(&self.path).is_ok_and(|found| (found.st_dev, found.st_ino) == (self.device, self.inode));
        if is_ours {
            let _ = unlink(&self.path);
        }
    }
}

/// Connects a socket; waits while the listener's queue is full.
pub(super) fn call(address: &Address, timeout: Duration) -> Result<OwnedFd, Errno> {
    let to = address.socket_address()?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Zero would be "for ever", and so is what the kernel can not count.
    let patience = timeout.max(Duration::from_millis(1));
    let patience = Some(patience).filter(|patience| patience.as_secs() < 1 << 30);
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, patience)?;
    loop {
        match connect(&socket, &to) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    }
    rustix::io::ioctl_fionbio(socket.as_fd(), true)?;
    Ok(socket)
}

/// The advice for a failure to connect.
pub(super) fn about(address: &Address, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    let advice = match errno {
        Errno::ACCESS => "; its file or directory is not open to this user",
        Errno::NAMETOOLONG => "; an address has at most 107 bytes",
        _ => "",
    };
    io::Error::new(error.kind(), format!("connecting to {address}: {error}{advice}"))
}
