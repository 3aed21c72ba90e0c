//! Meeting over a Unix socket.

use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crossproc_segment::{Error, ErrorKind};
use rustix::io::Errno;

use super::PATIENCE;
use super::call::Call;
use super::door::{Accepted, Door, Given, Patience};
use super::error::{AcceptError, BindError, ConnectError};
use super::hello::{Inbox, Key, Terms};
use super::peer::{Credentials, Policy, credentials};
use super::place::{Address, SocketFile, about, call, listen_at};
use crate::PipeOptions;
use crate::pipe::{Connection, attach_far};
use crate::readiness::WatchingFd;

/// So often somebody looks for a listener that is not there yet.
const AGAIN: Duration = Duration::from_millis(10);

/// Pipes at a time that were made for somebody who has not said yet that it has its end.
const PIPES: usize = 8;

/// Both ends; the second one is the connector's.
struct Ends<A, B>(Connection<A, B>, Connection<B, A>);

impl<A, B> Given for Ends<A, B> {
    const MOST: usize = PIPES;

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.1.descriptors()
    }
}

/// How a listener is made.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    key: Option<Key>,
    policy: Policy,
    timeout: Duration,
    pipe: PipeOptions,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ListenerOptions {
    /// For processes of the same user and of root, without a key, with 10 seconds for each handshake.
    #[must_use]
    pub fn new() -> Self {
        Self { key: None, policy: Policy::default(), timeout: PATIENCE, pipe: PipeOptions::new() }
    }

    /// Only who has this key as well may connect, and it can tell that the listener has it. Python's `authkey`. The key is never sent.
    ///
    /// # Panics
    ///
    /// If it is empty.
    #[must_use]
    pub fn key(mut self, key: impl Into<Key>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Who may connect, instead of processes of this user and of root. Of a path, the file's mode (0600) has a say as well.
    ///
    /// The segment that both will have then is open to the other one for reading and writing.
    #[must_use]
    pub fn peers(mut self, allows: impl Fn(&Credentials) -> bool + Send + Sync + 'static) -> Self {
        self.policy = Policy::new(allows);
        self
    }

    /// How long a handshake may take, from the moment at which `accept` first sees it.
    ///
    /// There are at most 256 handshakes at a time. When there are so many, those who have not said who they are within a second are sent
    /// away for those who wait. At most 8 pipes at a time are made for those who have not taken theirs yet; the others wait for theirs.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How the pipes are made.
    #[must_use]
    pub fn pipe(mut self, options: PipeOptions) -> Self {
        self.pipe = options;
        self
    }

    /// As [`Listener::bind`], with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn bind<A, B>(self, address: impl Into<Address>) -> Result<Listener<A, B>, BindError> {
        let address = address.into();
        let (socket, file) = listen_at(&address)?;
        let terms = Terms::new::<A, B>(self.key);
        let door = Door::new(socket, terms, Some(self.policy), self.timeout)
            .map_err(|errno| BindError::System("watching the socket", errno.into()))?;
        Ok(Listener { _file: file, door, pipe: self.pipe, address })
    }
}

/// Where processes that have nothing to do with each other meet: each that [`connect`]s gets a [`Connection`] over shared memory of its own.
/// Python's `Listener`.
///
/// The connections send values of type `A` and receive values of type `B`. The other program has to [`connect`] with the same types, the
/// other way round. What is compared are the types' names without their paths, as for all objects in segments: a hint that catches mistakes, no
/// proof that two programs mean the same by a name.
///
/// Whoever connects is checked before anything is made for it: the kernel says which user it is (this one and root may, if
/// [`peers`](ListenerOptions::peers) does not say otherwise), and a [`key`](ListenerOptions::key) has to be the same on both sides. Who says nothing,
/// says something else, or dies in the middle is sent away and [counted](Self::refused), and keeps nobody else out.
/// All that happens in `accept`, in the thread that calls it: as long as nobody does, those who connect wait.
///
/// Dropping it ends listening and removes the socket file; connections stay. The file of a listener that was killed is replaced by the next one.
///
/// ```
/// use crossproc_primitives::listener::{Listener, connect};
///
/// let address = format!("@crossproc-doc-{}", std::process::id());
/// let listener = Listener::<String, u32>::bind(&address)?;
/// // Usually in another program:
/// let client = std::thread::spawn(move || {
///     let connection = connect::<u32, String>(&address).expect("somebody listens");
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
pub struct Listener<A, B> {
    /// Goes first: see its `drop`.
    _file: Option<SocketFile>,
    door: Door<Ends<A, B>>,
    pipe: PipeOptions,
    address: Address,
}

impl<A, B> Listener<A, B> {
    /// Listens at a path (the file gets the mode 0600) or under an abstract name (`"@name"`).
    ///
    /// # Errors
    ///
    /// [`InUse`](BindError::InUse), [`NotASocket`](BindError::NotASocket), [`Busy`](BindError::Busy), and what the system says.
    pub fn bind(address: impl Into<Address>) -> Result<Self, BindError> {
        ListenerOptions::new().bind(address)
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// [`Segment`](AcceptError::Segment), [`System`](AcceptError::System).
    pub fn accept(&self) -> Result<Connection<A, B>, AcceptError> {
        self.accept_within(Patience::Until(None)).map(|(connection, _)| connection)
    }

    /// The next connection, if one can be had now. What [`AsFd`]'s descriptor is readable for.
    ///
    /// # Errors
    ///
    /// [`Nobody`](AcceptError::Nobody), and as [`accept`](Self::accept).
    pub fn try_accept(&self) -> Result<Connection<A, B>, AcceptError> {
        self.accept_within(Patience::None).map(|(connection, _)| connection)
    }

    /// Waits for the next connection at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](AcceptError::TimedOut), and as [`accept`](Self::accept).
    pub fn accept_timeout(&self, timeout: Duration) -> Result<Connection<A, B>, AcceptError> {
        self.accept_within(Patience::within(timeout)).map(|(connection, _)| connection)
    }

    /// Waits for the next connection until `deadline` at most.
    ///
    /// # Errors
    ///
    /// As [`accept_timeout`](Self::accept_timeout).
    pub fn accept_deadline(&self, deadline: Instant) -> Result<Connection<A, B>, AcceptError> {
        self.accept_within(Patience::Until(Some(deadline))).map(|(connection, _)| connection)
    }

    /// Waits for the next connection: for tasks of any runtime.
    ///
    /// Dropping the future loses nothing: handshakes that have begun are gone on with by the next `accept`, of whatever form. (They are
    /// gone on with only while one waits.)
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    ///
    /// ```
    /// use std::pin::pin;
    /// use std::task::{Context, Poll, Waker};
    ///
    /// use crossproc_primitives::listener::Listener;
    ///
    /// let listener = Listener::<String, u32>::bind(format!("@crossproc-doc-async-{}", std::process::id()))?;
    /// let mut next = pin!(listener.accept_async()); // in a task: `listener.accept_async().await`
    /// assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    /// # use std::future::Future;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn accept_async(
        &self,
    ) -> impl Future<Output = Result<Connection<A, B>, AcceptError>> + Send + Unpin + '_ {
        accepted(self, || self.try_accept())
    }

    /// Waits for the next connection, at most `timeout` if there is one; says as well who it is with.
    ///
    /// # Errors
    ///
    /// As [`accept_timeout`](Self::accept_timeout).
    pub fn accept_with_credentials(
        &self,
        timeout: Option<Duration>,
    ) -> Result<(Connection<A, B>, Credentials), AcceptError> {
        self.accept_within(timeout.map_or(Patience::Until(None), Patience::within))
    }

    fn accept_within(&self, patience: Patience) -> Result<(Connection<A, B>, Credentials), AcceptError> {
        let make = || self.pipe.duplex().map(|(near, far)| Ends(near, far));
        let Accepted { credentials, made: Ends(near, _far), .. } = self.door.accept(patience, make)?;
        let credentials = credentials.ok_or_else(|| AcceptError::System(Errno::NOTCONN.into()))?;
        Ok((near, credentials))
    }

    /// The connections as they come, without end.
    pub fn incoming(&self) -> Incoming<'_, A, B> {
        Incoming(self)
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> &Address {
        &self.address
    }

    /// How many have come and were sent away, for whatever reason: not allowed, wrong key or types, noise, too slow, dead in the middle.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.door.refused()
    }
}

/// Readable when there is something for `accept` to do, if only to go on with a handshake: [`try_accept`](Listener::try_accept) does it.
impl<A, B> AsFd for Listener<A, B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.door.as_fd()
    }
}

/// Of a listener that can be waited for as a descriptor.
pub(super) fn accepted<L: AsFd, C, F: FnMut() -> Result<C, AcceptError> + Unpin>(
    listener: &L,
    mut try_accept: F,
) -> impl Future<Output = Result<C, AcceptError>> + Unpin {
    let mut watching = WatchingFd::default();
    poll_fn(move |cx| {
        watching.poll(cx, listener, || match try_accept() {
            Err(AcceptError::Nobody) => None,
            accepted => Some(accepted),
        })
    })
}

/// The connections of a [`Listener`] as they come; see [`Listener::incoming`].
#[derive(Debug)]
pub struct Incoming<'a, A, B>(&'a Listener<A, B>);

impl<A, B> Iterator for Incoming<'_, A, B> {
    type Item = Result<Connection<A, B>, AcceptError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.accept())
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    key: Option<Key>,
    policy: Policy,
    timeout: Duration,
    is_waiting: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectOptions {
    /// To listeners of the same user and of root, without a key, waiting at most 10 seconds.
    #[must_use]
    pub fn new() -> Self {
        Self { key: None, policy: Policy::default(), timeout: PATIENCE, is_waiting: false }
    }

    /// The key of the listener; see [`ListenerOptions::key`]. A listener without it is an error.
    ///
    /// # Panics
    ///
    /// If it is empty.
    #[must_use]
    pub fn key(mut self, key: impl Into<Key>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Whom to trust as a listener, instead of processes of this user and of root. Anybody can listen under an abstract name.
    #[must_use]
    pub fn peers(mut self, allows: impl Fn(&Credentials) -> bool + Send + Sync + 'static) -> Self {
        self.policy = Policy::new(allows);
        self
    }

    /// How long to wait for the listener at most.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Waits as well for a listener that is not there yet: tries again every 10 ms, until the timeout.
    #[must_use]
    pub fn wait_for_listener(mut self) -> Self {
        self.is_waiting = true;
        self
    }

    /// As [`connect`], with these options.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn connect<A, B>(self, address: impl Into<Address>) -> Result<Connection<A, B>, ConnectError> {
        let address = address.into();
        let until = Instant::now().checked_add(self.timeout);
        let left = || until.map_or(self.timeout, |until| until.saturating_duration_since(Instant::now()));
        let socket = loop {
            match call(&address, left()).map_err(|errno| (ConnectError::from(errno), errno)) {
                Ok(socket) => break socket,
                Err((ConnectError::NoListener, _)) if self.is_waiting && !left().is_zero() => {
                    std::thread::sleep(AGAIN.min(left()));
                }
                Err((ConnectError::System(_), errno)) => {
                    return Err(ConnectError::System(about(&address, errno)));
                }
                Err((error, _)) => return Err(error),
            }
        };
        let listener = credentials(&socket).map_err(ConnectError::System)?;
        if !self.policy.allows(&listener) {
            return Err(ConnectError::WrongListener(listener));
        }
        let terms = Terms::new::<A, B>(self.key);
        let mut call = Call { socket, until, inbox: Inbox::default() };
        let descriptors = call.talk(&terms, true)?;
        let [memory, handles] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| no_descriptors())?;
        let connection = attach_far(memory, handles).map_err(ConnectError::Segment)?;
        call.ready()?;
        Ok(connection)
    }
}

/// The kernel leaves descriptors out for which the process has no room.
fn no_descriptors() -> ConnectError {
    let text =
        "not all descriptors came with the listener's answer; this process may have too many open files";
    ConnectError::Segment(Error::new(ErrorKind::TooManyFiles, text))
}

/// Connects to the [`Listener`] at this address: sends values of type `A`, receives values of type `B`. Python's `Client`.
///
/// Waits until the listener has taken the connection, at most 10 seconds. [`ConnectOptions`] has a key, another time limit, and whom to trust.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect<A, B>(address: impl Into<Address>) -> Result<Connection<A, B>, ConnectError> {
    ConnectOptions::new().connect(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::RemoteListener;

    #[test]
    fn several_threads_accept_from_one_listener() {
        const fn shared<T: Send + Sync>() {}
        const { shared::<Listener<String, u32>>() };
        const { shared::<RemoteListener<String, u32>>() };
        let address = Address::name(format!("crossproc-unit-{}", std::process::id()));
        let listener = Listener::<u32, String>::bind(&address).unwrap();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| listener.accept().unwrap().send(&7).unwrap());
            }
            for _ in 0..2 {
                assert_eq!(connect::<String, u32>(&address).unwrap().recv(), Ok(7));
            }
        });
    }
}
