//! Programs that know nothing of each other meet; nobody who dies, lies or says nothing keeps the others out.

use std::fs;
use std::io::{Read, Write};
use std::net::{self, TcpStream};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc_primitives::listener::{
    AcceptError, Address, BindError, ConnectError, ConnectOptions, Listener, ListenerOptions, RemoteListener,
    RemoteOptions, connect,
};
use crossproc_primitives::pipe::RecvError;
use crossproc_primitives::{Connection, Event, Value};
use crossproc_process::Process;
use crossproc_tests::{
    HANG, Rng, child, fresh_seed, isolated, join, kill_and_reap, tied_to_parent, wait_for,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::every_call::at_every_call;
use crate::kernel::{End, Forked};
use crate::pipe::block_on;

const SOON: Duration = Duration::from_millis(30);

/// A directory for one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("crossproc-{}-{:x}", std::process::id(), fresh_seed()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> String {
        self.0.join("socket").to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn name() -> String {
    format!("@crossproc-test-{:x}", fresh_seed())
}

fn raw_address(name: &str) -> SocketAddr {
    SocketAddr::from_abstract_name(&name[1..]).unwrap()
}

fn is_readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

/// Sends numbers, and returns the answers and the segment's id.
fn ask((address, count): (String, u32)) -> (Vec<String>, String) {
    tied_to_parent();
    let connection: Connection<u32, String> = connect(&address).unwrap();
    let answers = (0..count).map(|number| {
        connection.send_timeout(&number, HANG).unwrap();
        connection.recv_timeout(HANG).unwrap()
    });
    (answers.collect(), format!("{:?}", connection.segment().id()))
}

/// Answers until the other side leaves.
fn answer(connection: &Connection<String, u32>) {
    loop {
        match connection.recv_timeout(HANG) {
            Ok(number) => connection.send(&number.to_string()).unwrap(),
            Err(RecvError::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn strangers_share_memory() {
    let folder = Folder::new();
    for address in [folder.socket(), name()] {
        let listener = Listener::<String, u32>::bind(&address).unwrap();
        assert_eq!(listener.local_address(), &Address::from(&address));
        let asking: Vec<_> = (0..2).map(|_| child(ask, (address.clone(), 20))).collect();
        let mut segments = Vec::new();
        for _ in 0..2 {
            let (connection, who) = listener.accept_with_credentials(Some(HANG)).unwrap();
            assert!(asking.iter().any(|process| Some(process.pid()) == who.pid), "{who}");
            segments.push(format!("{:?}", connection.segment().id()));
            answer(&connection);
        }
        let mut theirs = Vec::new();
        for process in asking {
            let (answers, segment) = join(process);
            assert_eq!(answers, (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
            theirs.push(segment);
        }
        segments.sort();
        theirs.sort();
        assert_eq!(segments, theirs, "each pair has the same segment");
        assert_ne!(segments[0], segments[1], "and no other pair has");
        assert_eq!(listener.refused(), 0);
    }
}

/// As [`ask`], however often it is sent away: on a busy machine it may be slower than a short deadline allows.
fn ask_again((address, count): (String, u32)) -> Vec<String> {
    tied_to_parent();
    loop {
        match connect::<u32, String>(&address) {
            Ok(connection) => {
                let answers = (0..count).map(|number| {
                    connection.send_timeout(&number, HANG).unwrap();
                    connection.recv_timeout(HANG).unwrap()
                });
                return answers.collect();
            }
            Err(ConnectError::Lost) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn swap_events(address: String) {
    tied_to_parent();
    let connection: Connection<Event, Event> = connect(&address).unwrap();
    let mine = Event::new().unwrap();
    connection.send_timeout(&mine, HANG).unwrap();
    connection.recv_timeout(HANG).unwrap().set().unwrap();
    assert_eq!(mine.wait_timeout(HANG), Ok(()));
}

#[test]
fn handles_go_both_ways() {
    let address = name();
    let listener = Listener::<Event, Event>::bind(&address).unwrap();
    let process = child(swap_events, address);
    let connection = listener.accept_timeout(HANG).unwrap();
    let mine = Event::new().unwrap();
    connection.send_timeout(&mine, HANG).unwrap();
    connection.recv_timeout(HANG).unwrap().set().unwrap();
    assert_eq!(mine.wait_timeout(HANG), Ok(()));
    join(process);
}

#[test]
fn tasks_accept() {
    isolated(|()| {
        let address = name();
        let listener = Listener::<String, u32>::bind(&address).unwrap();
        let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
        assert!(block_on(listener.accept_async(), SOON).is_none(), "nobody comes");
        // What a process opens once.
        drop(Event::new().unwrap());
        let before = fds();
        for _ in 0..50 {
            assert!(block_on(listener.accept_async(), Duration::from_micros(20)).is_none());
        }
        assert_eq!(fds(), before, "a future that is dropped leaves nothing");
        // Two tasks, in threads of their own, and somebody who comes while both wait.
        let accept = || {
            let connection = block_on(listener.accept_async(), HANG).unwrap().unwrap();
            answer(&connection);
        };
        std::thread::scope(|scope| {
            scope.spawn(accept);
            scope.spawn(accept);
            sleep(SOON);
            for process in [0; 2].map(|_| child(ask, (address.clone(), 3))) {
                assert_eq!(join(process).0, ["0", "1", "2"]);
            }
        });
        // A handshake that has begun is gone on with by the next one.
        let asking = child(ask, (address.clone(), 3));
        let accepted = loop {
            if let Some(accepted) = block_on(listener.accept_async(), Duration::from_micros(200)) {
                break accepted.unwrap();
            }
        };
        answer(&accepted);
        assert_eq!(join(asking).0, ["0", "1", "2"]);
        drop(accepted);
        assert_eq!(fds(), before);
        assert_eq!(listener.refused(), 0);
    });
}

#[test]
fn many_connections_leave_nothing_behind() {
    isolated(|()| {
        const ROUNDS: usize = 500;
        let folder = Folder::new();
        let count = |what: &str| fs::read_dir(what).unwrap().count();
        let now = || {
            let files = folder.0.to_str().unwrap();
            (count("/proc/self/fd"), count("/proc/self/map_files"), count(files))
        };
        let listener = Listener::<String, u32>::bind(folder.socket()).unwrap();
        let talk = |n: usize| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let connection: Connection<u32, String> = connect(folder.socket()).unwrap();
                    connection.send(&(n as u32)).unwrap();
                    assert_eq!(connection.recv_timeout(HANG).unwrap(), n.to_string());
                });
                answer(&listener.accept_timeout(HANG).unwrap());
            });
        };
        talk(0);
        let before = now();
        (0..ROUNDS).for_each(talk);
        assert_eq!(now(), before);
        assert_eq!(listener.refused(), 0);
        drop(listener);
        assert_eq!(now().2, 0, "the socket's file is gone");
    });
}

#[test]
fn a_forked_child_does_not_accept() {
    isolated(|()| {
        let address = name();
        let listener = Listener::<String, u32>::bind(&address).unwrap();
        let _waiting = UnixStream::connect_addr(&raw_address(&address)).unwrap();
        let forked =
            Forked::new(|| assert!(matches!(listener.accept_timeout(HANG), Err(AcceptError::System(_)))));
        assert_eq!(forked.end(), End::Exited(0));
        let asking = child(ask, (address, 1));
        answer(&listener.accept_timeout(HANG).unwrap());
        join(asking);
    });
}

// ---- Who may connect ----

fn try_connect((address, key, options): (String, Option<String>, u8)) -> String {
    tied_to_parent();
    let mut connect = ConnectOptions::new().timeout(HANG);
    if let Some(key) = key {
        connect = connect.key(key);
    }
    if options == 1 {
        connect = connect.peers(|_| false);
    }
    let result: Result<Connection<u32, String>, _> = connect.connect(&address);
    match result {
        Ok(connection) => connection.recv_timeout(HANG).unwrap(),
        Err(error) => format!("{error:?}"),
    }
}

/// What becomes of a connector, while the listener accepts; whether it was accepted.
fn outcome(listener: &Listener<String, u32>, connector: &mut Process<String>) -> (String, bool) {
    let (mut accepted, mut result) = (None, None);
    wait_for("the connector", || {
        match listener.accept_timeout(SOON) {
            Ok(connection) => {
                connection.send(&"hello".to_owned()).unwrap();
                accepted = Some(connection);
            }
            Err(AcceptError::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
        result = connector.try_join().unwrap();
        result.is_some()
    });
    (result.expect("it has one"), accepted.is_some())
}

#[test]
fn both_sides_have_the_same_key_or_none() {
    let (a, b) = (Some("a key".to_owned()), Some("a Key".to_owned()));
    let cases = [
        (None, None, "hello"),
        (a.clone(), a.clone(), "hello"),
        (a.clone(), b, "WrongKey"),
        (a.clone(), None, "KeyNeeded"),
        (None, a, "NoKeyThere"),
    ];
    for (here, there, expected) in cases {
        let address = name();
        let mut options = ListenerOptions::new();
        if let Some(key) = here {
            options = options.key(key);
        }
        let listener = options.bind::<String, u32>(&address).unwrap();
        let mut connector = child(try_connect, (address, there, 0));
        let (result, accepted) = outcome(&listener, &mut connector);
        assert_eq!((result.as_str(), accepted), (expected, expected == "hello"));
        assert_eq!(listener.refused(), u64::from(!accepted));
    }
}

/// Reads a message of the other side; returns its body.
fn read_message(stream: &mut UnixStream) -> Vec<u8> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::from(u16::from_le_bytes([head[12], head[13]]))];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn a_listener_has_to_know_the_key_too() {
    // It says that it has one, and proves that with nothing, with what it has just heard, or with what it heard in another conversation.
    let (mut old, mut secret) = (Vec::new(), 0);
    for kind in 0..3 {
        let address = name();
        let other = UnixListener::bind_addr(&raw_address(&address)).unwrap();
        let connector = std::thread::spawn(move || {
            ConnectOptions::new().key("a key").timeout(HANG).connect::<u32, String>(&address).unwrap_err()
        });
        let mut stream = other.accept().unwrap().0;
        let hello = read_message(&mut stream);
        assert_eq!(hello.len(), 33);
        stream.write_all(&[head(1, 1, 33), vec![1; 33]].concat()).unwrap();
        let proof = read_message(&mut stream);
        secret += usize::from(proof.windows(5).any(|window| window == b"a key"));
        let mac = match kind {
            0 => vec![0; 32],
            1 => proof[..32].to_vec(),
            _ => std::mem::take(&mut old),
        };
        old = proof[..32].to_vec();
        stream.write_all(&[head(1, 3, 32), mac].concat()).unwrap();
        let error = connector.join().unwrap();
        assert!(matches!(error, ConnectError::WrongKey), "{kind}: {error}");
    }
    assert_eq!(secret, 0, "the key is never sent");

    // It does without.
    let address = name();
    let other = UnixListener::bind_addr(&raw_address(&address)).unwrap();
    let connector = std::thread::spawn(move || {
        ConnectOptions::new().key("a key").timeout(HANG).connect::<u32, String>(&address).unwrap_err()
    });
    other.accept().unwrap().0.write_all(&[head(1, 1, 33), vec![0; 33]].concat()).unwrap();
    let error = connector.join().unwrap();
    assert!(matches!(error, ConnectError::NoKeyThere), "{error}");
}

#[test]
fn a_connector_has_to_know_the_key() {
    let address = name();
    let listener = ListenerOptions::new().key("a key").bind::<u8, u8>(&address).unwrap();
    let mut stream = UnixStream::connect_addr(&raw_address(&address)).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    // It says that it has one.
    stream.write_all(&[head(1, 1, 33), vec![1; 33]].concat()).unwrap();
    // No MAC, and the two types.
    let proof = [&[0; 32][..], &[2], b"u8", &[2], b"u8"].concat();
    stream.write_all(&[head(1, 2, proof.len() as u16), proof].concat()).unwrap();
    stream.write_all(&head(1, 4, 0)).unwrap();
    wait_for("the refusal", || {
        assert!(matches!(listener.try_accept(), Err(AcceptError::Nobody)));
        listener.refused() == 1
    });
    assert_eq!(read_message(&mut stream).len(), 33);
    assert_eq!(read_message(&mut stream), [5], "it is told why, and gets no segment");
}

#[test]
fn each_side_says_whom_it_talks_to() {
    let address = name();
    let listener = ListenerOptions::new().peers(|_| false).bind::<String, u32>(&address).unwrap();
    let mut connector = child(try_connect, (address, None, 0));
    assert_eq!(outcome(&listener, &mut connector), ("NotAllowed".to_owned(), false));
    assert_eq!(listener.refused(), 1);

    let address = name();
    let listener = Listener::<String, u32>::bind(&address).unwrap();
    let mut connector = child(try_connect, (address, None, 1));
    let (result, accepted) = outcome(&listener, &mut connector);
    assert!(result.starts_with("WrongListener(") && !accepted, "{result}");
    assert!(result.contains(&format!("pid: Some({})", std::process::id())), "{result}");
}

#[test]
fn the_types_are_the_same_the_other_way_round() {
    let address = name();
    let listener = Listener::<(u8, Vec<String>), u64>::bind(&address).unwrap();
    std::thread::scope(|s| {
        let connector = s.spawn(|| connect::<u64, (u8, Vec<u8>)>(&address).unwrap_err());
        while !connector.is_finished() {
            assert!(listener.accept_timeout(SOON).is_err());
        }
        match connector.join().unwrap() {
            ConnectError::WrongTypes { sends, receives } => {
                assert_eq!((sends.as_str(), receives.as_str()), ("(u8, Vec<String>)", "u64"));
            }
            error => panic!("{error}"),
        }
    });
    assert_eq!(listener.refused(), 1);
}

#[test]
fn a_policy_can_use_the_listener() {
    let address = name();
    let cell = Arc::new(OnceLock::<Listener<String, u32>>::new());
    let its = Arc::downgrade(&cell);
    let options = ListenerOptions::new().peers(move |_| {
        let cell = its.upgrade().expect("the listener lives");
        cell.get().expect("it is there").refused() == 0
    });
    // Without end, too.
    let listener = options.handshake_timeout(Duration::MAX).bind(&address).unwrap();
    let listener = cell.get_or_init(|| listener);
    let asking = child(ask, (address, 1));
    answer(&listener.accept_timeout(HANG).unwrap());
    join(asking);
}

// ---- The file ----

fn listen(address: String) {
    tied_to_parent();
    let _listener = Listener::<String, u32>::bind(&address).unwrap();
    sleep(HANG);
}

#[test]
fn a_dead_ones_file_is_replaced_and_a_living_ones_is_not() {
    let folder = Folder::new();
    let address = folder.socket();
    let path = Path::new(&address);
    assert!(matches!(connect::<u32, String>(&address).unwrap_err(), ConnectError::NoListener));
    let started = Instant::now();
    let waiting = ConnectOptions::new().wait_for_listener().timeout(SOON);
    let error = waiting.connect::<u32, String>(&address).unwrap_err();
    assert!(matches!(error, ConnectError::NoListener) && started.elapsed() >= SOON, "{error}");
    let dead = child(listen, address.clone());
    wait_for("the file", || path.exists());
    let error = Listener::<String, u32>::bind(&address).unwrap_err();
    assert!(matches!(error, BindError::InUse), "{error}");
    kill_and_reap(&dead);
    assert!(path.exists(), "nobody was left to remove it");
    assert!(matches!(connect::<u32, String>(&address).unwrap_err(), ConnectError::NoListener));

    let listener = Listener::<String, u32>::bind(&address).unwrap();
    let found = fs::symlink_metadata(path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    let asking = child(ask, (address.clone(), 3));
    answer(&listener.accept_timeout(HANG).unwrap());
    join(asking);
    drop(listener);
    assert!(!path.exists(), "gone with its listener");

    // Somebody else's file at the same path stays.
    let listener = Listener::<String, u32>::bind(&address).unwrap();
    fs::remove_file(path).unwrap();
    let _other = UnixListener::bind(path).unwrap();
    drop(listener);
    assert!(path.exists());
    fs::remove_file(path).unwrap();

    fs::write(path, "text").unwrap();
    let error = Listener::<String, u32>::bind(&address).unwrap_err();
    assert!(matches!(error, BindError::NotASocket), "{error}");
    assert_eq!(fs::read_to_string(path).unwrap(), "text");
    let error = Listener::<String, u32>::bind("x".repeat(200)).unwrap_err();
    assert!(error.to_string().contains("107 bytes"), "{error}");
}

fn race((address, go): (String, Value<u32>)) -> bool {
    tied_to_parent();
    go.fetch_add(1);
    while go.get().unwrap() < 4 {
        std::hint::spin_loop();
    }
    let listener = Listener::<String, u32>::bind(&address);
    go.fetch_add(1);
    // Whoever has it keeps it until all have tried.
    while go.get().unwrap() < 8 {
        sleep(Duration::from_micros(100));
    }
    match listener {
        Ok(listener) => {
            let asking = child(ask, (address, 1));
            answer(&listener.accept_timeout(HANG).unwrap());
            join(asking);
            true
        }
        Err(BindError::InUse) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn of_many_who_replace_a_dead_one_one_has_the_path() {
    let folder = Folder::new();
    for _ in 0..5 {
        // A file that refuses.
        drop(UnixListener::bind(folder.socket()).unwrap());
        let go = Value::new(0).unwrap();
        let racing: Vec<_> = (0..4).map(|_| child(race, (folder.socket(), go.clone()))).collect();
        let winners = racing.into_iter().map(join).filter(|&won| won).count();
        assert_eq!(winners, 1);
        assert!(!Path::new(&folder.socket()).exists());
    }
}

// ---- Those who lie or say nothing ----

/// The head of a message, as it is in all versions.
fn head(version: u16, kind: u8, len: u16) -> Vec<u8> {
    [&b"xprocmet"[..], &version.to_le_bytes(), &[kind, 0], &len.to_le_bytes(), &[0, 0]].concat()
}

#[test]
fn noise_is_refused_and_counted_and_keeps_nobody_out() {
    let address = name();
    let listener = ListenerOptions::new().handshake_timeout(HANG * 10).bind::<String, u32>(&address).unwrap();
    let to = raw_address(&address);
    let raw = || UnixStream::connect_addr(&to).unwrap();
    let hello = [head(1, 1, 33), vec![0; 33]].concat();
    let seed = fresh_seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let random: Vec<u8> = (0..5000).map(|_| rng.below(256) as u8).collect();
    let noise: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &random,
        &[head(1, 1, 33), vec![9; 1]].concat(), // not all of it, and leaves
        &head(1, 1, u16::MAX),                  // too long
        &[head(1, 1, 5), vec![0; 5]].concat(),  // a Hello that is none
        &[head(1, 4, 0)].concat(),              // Ready at once
        &[hello.clone(), head(1, 2, 40), vec![0xff; 40]].concat(), // a Proof that is none
        &[hello.clone(), hello.clone()].concat(), // Hello twice
    ];
    // These say nothing, or stop in the middle, and stay.
    let silent: Vec<_> = [&[][..], &hello[..5], &hello[..20], &hello]
        .into_iter()
        .map(|start| {
            let mut stream = raw();
            stream.write_all(start).unwrap();
            stream
        })
        .collect();
    for bytes in noise {
        let mut stream = raw();
        // The listener may be faster than the noise.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(net::Shutdown::Write);
        let before = listener.refused();
        wait_for("the refusal", || {
            assert!(matches!(listener.try_accept(), Err(AcceptError::Nobody)));
            listener.refused() == before + 1
        });
    }
    let asking = child(ask, (address, 5));
    answer(&listener.accept_timeout(HANG).unwrap());
    join(asking);
    assert_eq!(listener.refused(), noise.len() as u64);
    drop(silent);
    wait_for("the silent ones' end", || {
        assert!(listener.try_accept().is_err());
        listener.refused() == noise.len() as u64 + 4
    });
}

#[test]
fn another_version_is_told_so() {
    let address = name();
    let listener = Listener::<String, u32>::bind(&address).unwrap();
    let to = raw_address(&address);
    let mut stream = UnixStream::connect_addr(&to).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.write_all(&head(7, 1, 100)).unwrap();
    assert!(matches!(listener.accept_timeout(SOON), Err(AcceptError::TimedOut)));
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    assert_eq!((&reply[..8], &reply[8..11]), (&b"xprocmet"[..], &[1, 0, 5][..]), "its version, and Refused");

    // And the other way round.
    let address = name();
    let to = raw_address(&address);
    let other = UnixListener::bind_addr(&to).unwrap();
    let connector = std::thread::spawn(move || connect::<u32, String>(&address).unwrap_err());
    other.accept().unwrap().0.write_all(&head(7, 5, 100)).unwrap();
    assert!(matches!(connector.join().unwrap(), ConnectError::WrongVersion(7)));
}

#[test]
fn the_silent_are_sent_away_after_the_deadline() {
    let address = name();
    let timeout = Duration::from_millis(100);
    let listener = ListenerOptions::new().handshake_timeout(timeout).bind::<String, u32>(&address).unwrap();
    let to = raw_address(&address);
    assert!(!is_readable(&listener, Duration::ZERO));
    let mut silent = UnixStream::connect_addr(&to).unwrap();
    let started = Instant::now();
    // By the descriptor alone: it says when there is something to do, also that the time has passed.
    while listener.refused() == 0 {
        assert!(is_readable(&listener, HANG), "nobody says that the deadline has passed");
        assert!(matches!(listener.try_accept(), Err(AcceptError::Nobody)));
    }
    assert!(started.elapsed() >= timeout);
    assert_eq!(silent.read(&mut [0; 9]).unwrap(), 0, "sent away");
    assert!(!is_readable(&listener, SOON), "and then it has rest");
}

#[test]
fn more_silent_ones_than_there_is_room_for_delay_and_do_not_shut_out() {
    isolated(|()| {
        let address = name();
        let timeout = Duration::from_millis(200);
        let listener =
            ListenerOptions::new().handshake_timeout(timeout).bind::<String, u32>(&address).unwrap();
        let to = raw_address(&address);
        let silent: Vec<_> = (0..300).map(|_| UnixStream::connect_addr(&to).unwrap()).collect();
        let asking = child(ask_again, (address, 2));
        answer(&listener.accept_timeout(HANG).unwrap());
        assert_eq!(join(asking), ["0", "1"]);
        assert!(listener.refused() >= 1, "it came when there was room again");
        drop(silent);
    });
}

#[test]
fn the_silent_make_room_for_those_who_wait() {
    isolated(|()| {
        let address = name();
        let listener =
            ListenerOptions::new().handshake_timeout(HANG * 10).bind::<String, u32>(&address).unwrap();
        let to = raw_address(&address);
        let silent: Vec<_> = (0..300).map(|_| UnixStream::connect_addr(&to).unwrap()).collect();
        let asking = child(ask_again, (address, 2));
        answer(&listener.accept_timeout(HANG).unwrap());
        assert_eq!(join(asking), ["0", "1"]);
        assert!(listener.refused() >= 45, "there are 256 places");
        drop(silent);
    });
}

#[test]
fn those_who_do_not_take_their_pipes_cost_a_few() {
    isolated(|()| {
        let address = name();
        let timeout = Duration::from_millis(300);
        let listener = ListenerOptions::new().handshake_timeout(timeout).bind::<u8, u8>(&address).unwrap();
        let to = raw_address(&address);
        let proof = [&[0; 32][..], &[2], b"u8", &[2], b"u8"].concat();
        let bytes = [head(1, 1, 33), vec![0; 33], head(1, 2, proof.len() as u16), proof].concat();
        let before = descriptors();
        // They say all but that they are ready.
        let silent: Vec<_> = (0..100)
            .map(|_| {
                let mut stream = UnixStream::connect_addr(&to).unwrap();
                stream.write_all(&bytes).unwrap();
                stream
            })
            .collect();
        let mut most = 0;
        wait_for("the deadlines", || {
            assert!(matches!(listener.try_accept(), Err(AcceptError::Nobody)));
            most = most.max(descriptors());
            listener.refused() >= 100
        });
        // A segment and two sockets for each of 8, and the conversations themselves.
        let allowed = before + 2 * silent.len() + 8 * 3 + 10;
        assert!(most <= allowed, "{most} descriptors, {before} before");
        drop(silent);
        wait_for("the descriptors", || listener.try_accept().is_err() && descriptors() <= before + 10);
    });
}

// ---- Deaths ----

fn connect_again_and_again(address: String) {
    tied_to_parent();
    loop {
        let connection: Connection<u32, String> = connect(&address).unwrap();
        let _ = connection.recv_timeout(Duration::from_micros(300));
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn killed_connectors_leave_nothing() {
    isolated(|()| {
        let seed = fresh_seed();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let address = name();
        let listener = Listener::<String, u32>::bind(&address).unwrap();
        // What is made with the first connection stays.
        let asking = child(ask, (address.clone(), 1));
        answer(&listener.accept_timeout(HANG).unwrap());
        join(asking);
        let mut before = None;
        for _ in 0..20 {
            let process = child(connect_again_and_again, address.clone());
            let mut connections = Vec::new();
            connections.push(listener.accept_timeout(HANG).unwrap());
            let until = Instant::now() + Duration::from_micros(rng.below(8000));
            while Instant::now() < until {
                connections.extend(listener.accept_deadline(until));
            }
            kill_and_reap(&process);
            // Those who were ready; the one in the middle is sent away.
            while let Ok(connection) = listener.accept_timeout(SOON / 10) {
                connections.push(connection);
            }
            for connection in connections {
                let end = connection.recv_timeout(HANG).unwrap_err();
                assert!(matches!(end, RecvError::PeerDied | RecvError::Closed), "{end}");
            }
            drop(process);
            assert_eq!(descriptors(), *before.get_or_insert_with(descriptors));
        }
        let asking = child(ask, (address, 3));
        answer(&listener.accept_timeout(HANG).unwrap());
        join(asking);
    });
}

fn accept_one(address: String) {
    tied_to_parent();
    let listener = Listener::<String, u32>::bind(&address).unwrap();
    let _connection = listener.accept().unwrap();
    sleep(HANG);
}

#[test]
fn a_killed_listener_is_an_error_before_and_after() {
    // Before: nobody accepts.
    let address = name();
    let process = child(listen, address.clone());
    let none = ConnectOptions::new().timeout(SOON);
    wait_for("the listener", || {
        !matches!(none.clone().connect::<u32, String>(&address), Err(ConnectError::NoListener))
    });
    let error = none.connect::<u32, String>(&address).unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut), "{error}");
    let waiting = {
        let address = address.clone();
        std::thread::spawn(move || ConnectOptions::new().timeout(HANG).connect::<u32, String>(&address))
    };
    sleep(SOON);
    kill_and_reap(&process);
    let error = waiting.join().unwrap().unwrap_err();
    assert!(matches!(error, ConnectError::Lost | ConnectError::NoListener), "{error}");

    // After.
    let address = name();
    let process = child(accept_one, address.clone());
    let waiting = ConnectOptions::new().wait_for_listener().timeout(HANG);
    let connection = waiting.connect::<u32, String>(&address).unwrap();
    kill_and_reap(&process);
    assert_eq!(connection.recv_timeout(HANG), Err(RecvError::PeerDied));
}

#[test]
fn a_listener_killed_at_any_call_leaves_a_path_that_can_be_had() {
    isolated(|()| {
        let folder = Folder::new();
        let address = folder.socket();
        at_every_call(
            "binding where a dead one was",
            || {
                let _ = fs::remove_file(&address);
                drop(UnixListener::bind(&address).unwrap());
            },
            |()| {
                let listener = Listener::<String, u32>::bind(&address).unwrap();
                assert!(matches!(listener.try_accept(), Err(AcceptError::Nobody)));
            },
            |(), stop| {
                let listener = Listener::<String, u32>::bind(&address);
                drop(listener.unwrap_or_else(|error| panic!("stop {stop}: {error}")));
                assert!(!Path::new(&address).exists(), "stop {stop}");
            },
        );
    });
}

/// Answers each connection in its turn with how many descriptors there are.
fn count_for_all(address: String) {
    tied_to_parent();
    let listener = Listener::<usize, u8>::bind(&address).unwrap();
    for connection in listener.incoming() {
        let connection = connection.unwrap();
        while connection.recv_timeout(HANG).is_ok() && connection.send(&descriptors()).is_ok() {}
    }
}

#[test]
fn a_connector_killed_at_any_call_leaves_nothing() {
    isolated(|()| {
        let address = name();
        let _listener = child(count_for_all, address.clone());
        let count = || {
            let waiting = ConnectOptions::new().wait_for_listener().timeout(HANG);
            let connection = waiting.connect::<u8, usize>(&address).unwrap();
            connection.send(&0).unwrap();
            connection.recv_timeout(HANG).unwrap()
        };
        count();
        let before = count();
        at_every_call(
            "connecting",
            || (),
            |()| assert_ne!(count(), 0),
            // The listener may not have seen the death yet.
            |(), _| wait_for("the descriptors of the dead one's conversation", || count() == before),
        );
    });
}

// ---- TCP ----

fn ask_remote((address, key, count): (net::SocketAddr, String, u32)) -> Result<Vec<String>, String> {
    tied_to_parent();
    let connection =
        RemoteOptions::with_key(key).connect::<u32, String>(address).map_err(|error| format!("{error:?}"))?;
    let ask = |number: u32| {
        connection.send(&number).unwrap();
        connection.recv_timeout(HANG).unwrap()
    };
    Ok((0..count).map(ask).collect())
}

fn listen_remote(options: RemoteOptions) -> RemoteListener<String, u32> {
    options.bind("127.0.0.1:0").unwrap()
}

#[test]
fn strangers_talk_over_tcp() {
    let listener = listen_remote(RemoteOptions::with_key("key"));
    // Somebody who says nothing.
    let _silent = TcpStream::connect(listener.local_address()).unwrap();
    let asking = child(ask_remote, (listener.local_address(), "key".to_owned(), 20));
    let connection = listener.accept_timeout(HANG).unwrap();
    loop {
        match connection.recv_timeout(HANG) {
            Ok(number) => connection.send(&number.to_string()).unwrap(),
            Err(RecvError::Closed) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(join(asking).unwrap(), (0..20).map(|number| number.to_string()).collect::<Vec<_>>());

    let mut asking = child(ask_remote, (listener.local_address(), "kez".to_owned(), 20));
    let mut result = None;
    wait_for("the connector", || {
        assert!(listener.accept_timeout(SOON).is_err());
        result = asking.try_join().unwrap();
        result.is_some()
    });
    assert_eq!(result.unwrap(), Err("WrongKey".to_owned()));
    assert_eq!(listener.refused(), 1);

    // A key was given, and anybody could be there.
    let open = listen_remote(RemoteOptions::without_key());
    let mut asking = child(ask_remote, (open.local_address(), "key".to_owned(), 20));
    let mut result = None;
    wait_for("the connector", || {
        assert!(open.accept_timeout(SOON).is_err());
        result = asking.try_join().unwrap();
        result.is_some()
    });
    assert_eq!(result.unwrap(), Err("NoKeyThere".to_owned()));
}

fn stay_remote(address: net::SocketAddr) {
    tied_to_parent();
    let connection = RemoteOptions::without_key().connect::<u32, String>(address).unwrap();
    connection.send(&1).unwrap();
    sleep(HANG);
}

#[test]
fn a_remote_death_is_the_end() {
    let listener = listen_remote(RemoteOptions::without_key());
    let process = child(stay_remote, listener.local_address());
    let connection = listener.accept_timeout(HANG).unwrap();
    assert_eq!(connection.recv_timeout(HANG), Ok(1));
    assert_eq!(connection.recv_timeout(SOON), Err(RecvError::TimedOut));
    kill_and_reap(&process);
    assert_eq!(connection.recv_timeout(HANG), Err(RecvError::Closed));
}
