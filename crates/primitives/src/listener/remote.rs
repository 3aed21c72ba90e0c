//! Meeting over TCP.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_keepalive, set_tcp_nodelay};

use super::PATIENCE;
use super::call::Call;
use super::door::{Door, Patience};
use super::error::{AcceptError, BindError, ConnectError};
use super::frames::RemoteConnection;
use super::hello::{Inbox, Key, Terms};
use super::unix::accepted;

/// Bytes of a message, if nobody says otherwise.
const MESSAGE_MAX: usize = 64 << 20;

/// How to listen and connect over TCP. There is no way around a decision about the key.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    key: Option<Key>,
    timeout: Duration,
    message_max: usize,
}

impl RemoteOptions {
    fn new(key: Option<Key>) -> Self {
        Self { key, timeout: PATIENCE, message_max: MESSAGE_MAX }
    }

    /// Both sides prove to each other that they have this key, without sending it. Messages of up to 64 MiB, 10 seconds for each handshake.
    ///
    /// # Panics
    ///
    /// If it is empty.
    #[must_use]
    pub fn with_key(key: impl Into<Key>) -> Self {
        Self::new(Some(key.into()))
    }

    /// Anybody who can reach the address can connect, and anybody can be at the other end.
    #[must_use]
    pub fn without_key() -> Self {
        Self::new(None)
    }

    /// How long a handshake may take; for a connector, how long to wait for each of the addresses, and then for the handshake.
    ///
    /// A listener has at most 256 handshakes at a time. When there are so many, those who have not said who they are within a second are
    /// sent away for those who wait.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bytes of a message at the most, sent or received. Memory for a message is taken as it comes.
    #[must_use]
    pub fn message_max(mut self, bytes: usize) -> Self {
        self.message_max = bytes;
        self
    }

    /// Listens at an address (`"127.0.0.1:5000"`, or port 0 for any: see [`RemoteListener::local_address`]).
    ///
    /// # Errors
    ///
    /// [`InUse`](BindError::InUse), [`System`](BindError::System).
    pub fn bind<A, B>(self, address: impl ToSocketAddrs) -> Result<RemoteListener<A, B>, BindError> {
        let failed = |doing| move |error| BindError::System(doing, error);
        let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse,
            _ => BindError::System("binding the address", error),
        })?;
        listener.set_nonblocking(true).map_err(failed("making the socket"))?;
        let address = listener.local_addr().map_err(failed("asking for the address"))?;
        let door = Door::new(listener.into(), Terms::new::<A, B>(self.key), None, self.timeout)
            .map_err(|errno| BindError::System("watching the socket", errno.into()))?;
        Ok(RemoteListener { door, address, message_max: self.message_max, values: std::marker::PhantomData })
    }

    /// Connects to a [`RemoteListener`]: sends values of type `A`, receives values of type `B`.
    ///
    /// Names of machines are looked up by the system, which takes its own time.
    ///
    /// # Errors
    ///
    /// See [`ConnectError`].
    pub fn connect<A, B>(self, address: impl ToSocketAddrs) -> Result<RemoteConnection<A, B>, ConnectError> {
        let mut last = None;
        for address in address.to_socket_addrs().map_err(ConnectError::System)? {
            match TcpStream::connect_timeout(&address, self.timeout.max(Duration::from_millis(1))) {
                Ok(stream) => return self.talk(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            None => ConnectError::NoListener,
            Some(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => ConnectError::NoListener,
                io::ErrorKind::TimedOut => ConnectError::TimedOut,
                _ => ConnectError::System(error),
            },
        })
    }

    fn talk<A, B>(self, stream: TcpStream) -> Result<RemoteConnection<A, B>, ConnectError> {
        stream.set_nonblocking(true).map_err(ConnectError::System)?;
        let socket = OwnedFd::from(stream);
        prepare(&socket).map_err(ConnectError::System)?;
        let until = Instant::now().checked_add(self.timeout);
        let mut call = Call { socket, until, inbox: Inbox::default() };
        call.talk(&Terms::new::<A, B>(self.key), false)?;
        call.ready()?;
        Ok(RemoteConnection::new(call.socket, self.message_max))
    }
}

fn prepare(socket: &OwnedFd) -> io::Result<()> {
    set_tcp_nodelay(socket, true)?;
    Ok(set_socket_keepalive(socket, true)?)
}

/// Where programs on different machines meet: [`Listener`](super::Listener) over TCP. Made by [`RemoteOptions::bind`].
///
/// The key says *who* begins a connection. It does not protect what is sent afterwards: who can read or change what goes through the network
/// can do so here. Across networks that are not trusted, send it through a tunnel.
///
/// ```
/// use crossproc_primitives::listener::RemoteOptions;
///
/// let options = RemoteOptions::with_key("what both know");
/// let listener = options.clone().bind::<String, u32>("127.0.0.1:0")?;
/// let address = listener.local_address();
/// let client = std::thread::spawn(move || {
///     let connection = options.connect::<u32, String>(address).expect("somebody listens");
///     connection.send(&12).expect("somebody receives");
///     connection.recv().expect("an answer")
/// });
/// let connection = listener.accept()?;
/// let number = connection.recv()?;
/// connection.send(&format!("{number} squared is {}", number * number))?;
/// assert_eq!(client.join().unwrap(), "12 squared is 144");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RemoteListener<A, B> {
    door: Door<()>,
    address: SocketAddr,
    message_max: usize,
    values: std::marker::PhantomData<fn(A, B)>,
}

impl<A, B> RemoteListener<A, B> {
    /// As [`Listener::accept`](super::Listener::accept).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept(&self) -> Result<RemoteConnection<A, B>, AcceptError> {
        self.accept_within(Patience::Until(None))
    }

    /// As [`Listener::try_accept`](super::Listener::try_accept).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_accept(&self) -> Result<RemoteConnection<A, B>, AcceptError> {
        self.accept_within(Patience::None)
    }

    /// As [`Listener::accept_timeout`](super::Listener::accept_timeout).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept_timeout(&self, timeout: Duration) -> Result<RemoteConnection<A, B>, AcceptError> {
        self.accept_within(Patience::within(timeout))
    }

    /// As [`Listener::accept_deadline`](super::Listener::accept_deadline).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept_deadline(&self, deadline: Instant) -> Result<RemoteConnection<A, B>, AcceptError> {
        self.accept_within(Patience::Until(Some(deadline)))
    }

    /// As [`Listener::accept_async`](super::Listener::accept_async).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn accept_async(
        &self,
    ) -> impl Future<Output = Result<RemoteConnection<A, B>, AcceptError>> + Send + Unpin + '_ {
        accepted(self, || self.try_accept())
    }

    fn accept_within(&self, patience: Patience) -> Result<RemoteConnection<A, B>, AcceptError> {
        let accepted = self.door.accept(patience, || Ok(()))?;
        prepare(&accepted.socket).map_err(AcceptError::System)?;
        Ok(RemoteConnection::new(accepted.socket, self.message_max))
    }

    /// The connections as they come, without end.
    pub fn incoming(&self) -> impl Iterator<Item = Result<RemoteConnection<A, B>, AcceptError>> + '_ {
        std::iter::repeat_with(|| self.accept())
    }

    /// Where it listens; with the port that the system has chosen, if it was to.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// As [`Listener::refused`](super::Listener::refused).
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.door.refused()
    }
}

/// As for [`Listener`](super::Listener).
impl<A, B> AsFd for RemoteListener<A, B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.as_fd()
    }
}
