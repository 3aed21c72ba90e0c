//! Who is at the other end of a Unix socket.
//!
//! A room for one call: rustix has it too, but its PIDs can not be 0, which the kernel says of a peer in another PID namespace.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::process::geteuid;

/// A process at the other end of a Unix socket, as it was when it connected (a client) or began to listen (a listener). The kernel
/// vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its id; `None` if it is in a PID namespace that this process can not see. It may have ended since, and another have its number.
    pub pid: Option<u32>,
    /// Its effective user, as this process' user namespace knows it.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl Credentials {
    /// True for processes of this process' user, and for root's.
    #[must_use]
    pub fn is_same_user_or_root(&self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }
}

impl std::fmt::Display for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid} of user {}, group {}", self.uid, self.gid),
            None => write!(f, "a process of another PID namespace, user {}, group {}", self.uid, self.gid),
        }
    }
}

/// Whom to talk to.
#[derive(Clone)]
pub(super) struct Policy(Arc<dyn Fn(&Credentials) -> bool + Send + Sync>);

impl Policy {
    pub(super) fn new(allows: impl Fn(&Credentials) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(allows))
    }

    pub(super) fn allows(&self, peer: &Credentials) -> bool {
        (self.0)(peer)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Credentials::is_same_user_or_root)
    }
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Policy(..)")
    }
}

/// Who is at the other end of a connected Unix socket.
pub(super) fn credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `peer`, which has so many and may hold any numbers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = u32::try_from(peer.pid).ok().filter(|&pid| pid != 0);
    Ok(Credentials { pid, uid: peer.uid, gid: peer.gid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let me = credentials(&one).unwrap();
        assert_eq!((me.pid, me.uid), (Some(std::process::id()), geteuid().as_raw()));
        assert!(Policy::default().allows(&me));
        let stranger = Credentials { uid: me.uid.wrapping_add(7).max(1), ..me };
        assert!(!Policy::default().allows(&stranger));
        assert!(Policy::default().allows(&Credentials { uid: 0, ..me }));
    }

    #[test]
    fn what_is_no_unix_socket_has_no_peer() {
        assert!(credentials(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
