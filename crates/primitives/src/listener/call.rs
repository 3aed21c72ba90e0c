//! The connecting side of a conversation.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::door::wait_until;
use super::error::ConnectError;
use super::hello::{Fault, Greeting, Inbox, Kind, MAC, Message, Proof, Reason, Said, Side, Terms, send};

impl From<Errno> for ConnectError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::CONNREFUSED => Self::NoListener,
            Errno::AGAIN | Errno::TIMEDOUT => Self::TimedOut,
            Errno::PIPE | Errno::CONNRESET => Self::Lost,
            errno => Self::System(errno.into()),
        }
    }
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Garbled => Self::NotOurs,
            Fault::Version(version) => Self::WrongVersion(version),
            Fault::Closed => Self::Lost,
            Fault::System(errno) => errno.into(),
        }
    }
}

/// A conversation over a connected socket that does not block.
pub(super) struct Call {
    pub(super) socket: OwnedFd,
    pub(super) until: Option<Instant>,
    pub(super) inbox: Inbox,
}

impl Call {
    /// Up to `Welcome`; the descriptors that came with it.
    pub(super) fn talk(
        &mut self,
        terms: &Terms,
        with_descriptors: bool,
    ) -> Result<Vec<OwnedFd>, ConnectError> {
        let key = terms.key.as_ref();
        let ours = terms.greeting()?;
        self.say(Kind::Hello, &ours)?;
        let theirs = self.hear(Kind::Hello, with_descriptors)?;
        let theirs = Greeting::try_from(theirs).map_err(|_| ConnectError::NotOurs)?;
        if key.is_some() && theirs[0] == 0 {
            return Err(ConnectError::NoKeyThere);
        }
        let said =
            Said { connector: &ours, listener: &theirs, sends: &terms.sends, receives: &terms.receives };
        let mac = said.prove(key, Side::Connector);
        let proof = Proof { mac, sends: terms.sends.clone(), receives: terms.receives.clone() };
        let proof = postcard::to_stdvec(&proof).expect("bytes and texts have a form");
        self.say(Kind::Proof, &proof)?;
        let mac = self.hear(Kind::Welcome, with_descriptors)?;
        let mac = <[u8; MAC]>::try_from(mac).map_err(|_| ConnectError::NotOurs)?;
        if !said.is_proven(key, Side::Listener, &mac) {
            return Err(ConnectError::WrongKey);
        }
        Ok(std::mem::take(&mut self.inbox.descriptors))
    }

    pub(super) fn ready(&self) -> Result<(), ConnectError> {
        self.say(Kind::Ready, &[])
    }

    fn say(&self, kind: Kind, body: &[u8]) -> Result<(), ConnectError> {
        match send(&self.socket, kind, body, &[]) {
            // It has left; what it said last is to be read.
            Err(Errno::PIPE | Errno::CONNRESET) if kind != Kind::Ready => Ok(()),
            other => Ok(other?),
        }
    }

    fn hear(&mut self, kind: Kind, with_descriptors: bool) -> Result<Vec<u8>, ConnectError> {
        loop {
            if let Some(Message { kind: said, body }) =
                self.inbox.receive(self.socket.as_fd(), with_descriptors)?
            {
                return match said {
                    Kind::Refused => Err(why(&body)),
                    said if said == kind => Ok(body),
                    _ => Err(ConnectError::NotOurs),
                };
            }
            if !wait_until(&self.socket, PollFlags::IN, self.until)? {
                return Err(ConnectError::TimedOut);
            }
        }
    }
}

/// What a listener says when it refuses.
fn why(body: &[u8]) -> ConnectError {
    let Some((&reason, text)) = body.split_first() else { return ConnectError::NotOurs };
    let text = String::from_utf8_lossy(text);
    match Reason::from_byte(reason) {
        // It says so by the version of its answer.
        Some(Reason::Version) | None => ConnectError::NotOurs,
        Some(Reason::Peer) => ConnectError::NotAllowed,
        Some(Reason::KeyNeeded) => ConnectError::KeyNeeded,
        Some(Reason::NoKey) => ConnectError::NoKeyThere,
        Some(Reason::WrongKey) => ConnectError::WrongKey,
        Some(Reason::Types) => {
            let (sends, receives) = text.split_once('\n').unwrap_or((&text, ""));
            ConnectError::WrongTypes { sends: sends.to_owned(), receives: receives.to_owned() }
        }
        Some(Reason::Unavailable) => ConnectError::Unavailable(text.into_owned()),
    }
}
