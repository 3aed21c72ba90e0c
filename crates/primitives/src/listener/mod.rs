//! `Listener` and `connect`: how programs that know nothing of each other come to have a pipe.
//!
//! | file | what it holds |
//! |---|---|
//! | `hello.rs` | what the two sides say, and how they prove that they know a key |
//! | `door.rs` | the listening side: all conversations at once |
//! | `call.rs` | the connecting side |
//! | `unix.rs` | Unix sockets: at the end both have a segment with a pipe, and the socket is closed |
//! | `place.rs` | socket files: made, replaced when their listener is dead, removed |
//! | `remote.rs` | TCP: at the end they go on with the socket (`frames.rs`) |
//! | `peer.rs` | who is at the other end |
//!
//! # What a death leaves
//!
//! | who dies, when | what is left | who sees to it |
//! |---|---|---|
//! | a connector in the conversation | nothing: the kernel closes its socket | the listener, in `accept`, drops what it made |
//! | a connector that was made ready | its hold of an end | the other end: [`PeerDied`](crate::pipe::RecvError::PeerDied), as with all pipes |
//! | the listener in the conversation | nothing | the connector gets [`Lost`](ConnectError::Lost) |
//! | the listener before it heard `Ready` | its hold of an end | the connector has a connection whose other end is dead |
//! | the listener, whenever | its socket file | the next listener at that path replaces it |
//!
//! A hold of an end is never lent for the way: the listener has the connector's end as well until the connector says that it has it.

mod call;
mod door;
mod error;
mod frames;
mod hello;
mod peer;
mod place;
mod remote;
mod unix;

pub use error::{AcceptError, BindError, ConnectError};
pub use frames::{RemoteConnection, RemoteReceiver, RemoteSender};
pub use hello::Key;
pub use peer::Credentials;
pub use place::Address;
pub use remote::{RemoteListener, RemoteOptions};
pub use unix::{ConnectOptions, Incoming, Listener, ListenerOptions, connect};

use std::time::Duration;

/// How long a conversation may take, if nobody says otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
