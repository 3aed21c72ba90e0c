//! What a duplex pipe costs between two processes: there and back, and as a stream of messages; and a `Call`.
//!
//! Peers, between the same two processes: a pair of pipes of the kernel, a Unix stream socket, a Unix seqpacket socket (one message each), and
//! ipc-channel (bytes). Messages of a stream have a known length, so the peers need no framing.
//!
//! `CPU` is the time that both processes together were busy for a message.
//!
//! With an argument only what has it in its title: `cargo bench --bench pipe -- "1048576 bytes"`.

use std::fs::File;
use std::hint::spin_loop;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossproc_benches::{Better, Scale, Turns, pin};
use crossproc_primitives::{Call, Connection, PipeOptions};
use crossproc_segment::handover::Handed;
use crossproc_tests::{Board, child, join, tied_to_parent};
use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender, bytes_channel};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// A way for bytes between two processes.
trait Way {
    fn send(&mut self, message: &[u8]);
    /// A message of exactly this length.
    fn recv(&mut self, message: &mut [u8]);
}

type Ours = Connection<(), ()>;

impl Way for Ours {
    fn send(&mut self, message: &[u8]) {
        self.send_bytes(message).unwrap();
    }
    fn recv(&mut self, message: &mut [u8]) {
        assert_eq!(self.recv_bytes_into(message), Ok(message.len()));
    }
}

/// What is received is looked at in place, and what is sent is written in place.
struct InPlace(Ours);

impl Way for InPlace {
    fn send(&mut self, message: &[u8]) {
        if message.len() > self.0.at_once_max() {
            return Way::send(&mut self.0, message);
        }
        let mut place = self.0.reserve(message.len()).unwrap();
        // As little as a sender can do who makes the message there.
        place[0] = message[0];
        place.commit(message.len());
    }
    fn recv(&mut self, message: &mut [u8]) {
        let peeked = self.0.peek().unwrap();
        message[0] = peeked[peeked.len() - 1];
        peeked.release();
    }
}

impl InPlace {
    fn bytes(ours: &Ours) -> Self {
        Self(ours.clone())
    }
}

struct Pipes(File, File);

impl Way for Pipes {
    fn send(&mut self, message: &[u8]) {
        self.0.write_all(message).unwrap();
    }
    fn recv(&mut self, message: &mut [u8]) {
        self.1.read_exact(message).unwrap();
    }
}

impl Way for UnixStream {
    fn send(&mut self, message: &[u8]) {
        self.write_all(message).unwrap();
    }
    fn recv(&mut self, message: &mut [u8]) {
        self.read_exact(message).unwrap();
    }
}

struct Packets(OwnedFd);

impl Way for Packets {
    fn send(&mut self, message: &[u8]) {
        assert_eq!(send(&self.0, message, SendFlags::empty()), Ok(message.len()));
    }
    fn recv(&mut self, message: &mut [u8]) {
        let len = message.len();
        let received = loop {
            match recv(&self.0, &mut *message, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received,
            }
        };
        assert_eq!(received.map(|(_, n)| n), Ok(len));
    }
}

struct IpcChannel(IpcBytesSender, IpcBytesReceiver);

impl Way for IpcChannel {
    fn send(&mut self, message: &[u8]) {
        self.0.send(message).unwrap();
    }
    fn recv(&mut self, message: &mut [u8]) {
        message.copy_from_slice(&self.1.recv().unwrap());
    }
}

// What the child is to do.
const QUIT: u64 = 0;
const ECHO: u64 = 1;
const SINK: u64 = 2;
const SERVE: u64 = 3;
const BARE: u64 = 4;
// The board.
const ORDER: usize = 0;
const WAY: usize = 1;
const COUNT: usize = 2;
const SIZE: usize = 3;
const ROUND: usize = 16;
const CPU: usize = 32;
/// Two words in lines of their own.
const PING: usize = 48;
const PONG: usize = 64;

const NAMES: [&str; 6] =
    ["crossproc", "crossproc, in place", "two pipes", "Unix stream", "Unix seqpacket", "ipc-channel"];

/// What the child gets.
type Ends =
    (Board, Ours, Call<u64, u64>, (Handed<File>, Handed<File>), Handed<UnixStream>, Handed<OwnedFd>, String);

fn child_side((board, ours, call, pipes, stream, packets, server): Ends) {
    tied_to_parent();
    pin(1);
    // The other end of two byte channels, each made by who receives.
    let (sender, receiver) = bytes_channel().unwrap();
    let (back, from) = ipc_channel::ipc::channel().unwrap();
    IpcSender::connect(server).unwrap().send((sender, back)).unwrap();
    let theirs: IpcBytesSender = from.recv().unwrap();
    let in_place = InPlace::bytes(&ours);
    let mut ways: Vec<Box<dyn Way>> = vec![
        Box::new(ours),
        Box::new(in_place),
        Box::new(Pipes(pipes.0.0, pipes.1.0)),
        Box::new(stream.0),
        Box::new(Packets(packets.0)),
        Box::new(IpcChannel(theirs, receiver)),
    ];
    let mut buffer = vec![0; 16 << 20];
    for round in 1.. {
        board.await_at_least(ROUND, round);
        let way = &mut ways[board.get(WAY) as usize];
        let message = &mut buffer[..board.get(SIZE) as usize];
        let order = board.get(ORDER);
        if order == QUIT {
            return;
        }
        let before = cpu();
        for n in 1..=board.get(COUNT) {
            match order {
                SERVE => {
                    let request = call.serve().unwrap();
                    let number = *request;
                    request.reply(number + 1);
                }
                BARE => {
                    while board[PING].load(Ordering::Acquire) != n {
                        spin_loop();
                    }
                    board[PONG].store(n, Ordering::Release);
                }
                _ => way.recv(message),
            }
            if order == ECHO {
                way.send(message);
            }
        }
        if order == SINK {
            way.send(&message[..1]);
        }
        board.set(CPU, (cpu() - before).to_bits());
        board.add(CPU + 1, 1);
    }
}

/// Seconds that this process has used.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

struct Bench {
    board: Board,
    ways: Vec<Box<dyn Way>>,
    buffer: Vec<u8>,
    round: u64,
    cpu: [f64; NAMES.len()],
}

impl Bench {
    /// Nanoseconds there and back of what has nothing to do with the ways.
    fn turn(&mut self, order: u64, count: u64, mut turn: impl FnMut(&Board, u64)) -> f64 {
        for (at, value) in [(ORDER, order), (WAY, 0), (COUNT, count), (SIZE, 1), (PING, 0), (PONG, 0)] {
            self.board.set(at, value);
        }
        self.round += 1;
        self.board.set(ROUND, self.round);
        let started = Instant::now();
        (1..=count).for_each(|n| turn(&self.board, n));
        let elapsed = started.elapsed().as_secs_f64();
        self.board.await_at_least(CPU + 1, self.round);
        elapsed / count as f64 * 1e9
    }

    /// Nanoseconds per message.
    fn run(&mut self, way: usize, order: u64, size: usize, count: u64) -> f64 {
        for (at, value) in [(ORDER, order), (WAY, way as u64), (COUNT, count), (SIZE, size as u64)] {
            self.board.set(at, value);
        }
        self.round += 1;
        let message = &mut self.buffer[..size];
        let (before, started) = (cpu(), Instant::now());
        self.board.set(ROUND, self.round);
        let way_ = &mut self.ways[way];
        for _ in 0..count {
            way_.send(message);
            if order == ECHO {
                way_.recv(message);
            }
        }
        if order == SINK {
            way_.recv(&mut message[..1]);
        }
        let elapsed = started.elapsed().as_secs_f64();
        let own = cpu() - before;
        self.board.await_at_least(CPU + 1, self.round);
        self.cpu[way] = (own + f64::from_bits(self.board.get(CPU))) / count as f64 * 1e9;
        elapsed / count as f64 * 1e9
    }
}

/// A call, against what two lines of memory and two rings need for the same.
fn compare_calls(scale: Scale, asked: Option<&str>, bench: &mut Bench, call: &Call<u64, u64>) {
    let title = "call, there and back, 8 bytes";
    if asked.is_some_and(|asked| !title.contains(asked)) {
        return;
    }
    let count = scale.count(100_000);
    let shared = std::cell::RefCell::new(bench);
    let bare = |board: &Board, n| {
        board[PING].store(n, Ordering::Release);
        while board[PONG].load(Ordering::Acquire) != n {
            spin_loop();
        }
    };
    let turns = Turns::new(title.to_owned(), "ns", Better::Less)
        .subject("Call", || {
            shared.borrow_mut().turn(SERVE, count, |_, n| assert_eq!(call.call(&n), Ok(n + 1)))
        })
        .against("two bare cache lines", "<= 0.6 x", 0.6, || shared.borrow_mut().turn(BARE, count, bare))
        .subject("Connection", || shared.borrow_mut().run(0, ECHO, 8, count));
    turns.run(scale.rounds(15));
}

fn main() {
    let scale = Scale::from_arguments();
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let board = Board::new(80);
    let (ours, their_ours) = PipeOptions::new().capacity(256 << 10).duplex().unwrap();
    let call = Call::<u64, u64>::new().unwrap();
    let (their_in, out) = rustix::pipe::pipe().unwrap();
    let (input, their_out) = rustix::pipe::pipe().unwrap();
    let (stream, their_stream) = UnixStream::pair().unwrap();
    let packets = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (packets, their_packets) = packets.unwrap();
    let (server, name) = IpcOneShotServer::<(IpcBytesSender, IpcSender<IpcBytesSender>)>::new().unwrap();
    let other = child(
        child_side,
        (
            board.clone(),
            their_ours,
            call.clone(),
            (Handed(File::from(their_out)), Handed(File::from(their_in))),
            Handed(their_stream),
            Handed(their_packets),
            name,
        ),
    );
    let (_, (sender, back)) = server.accept().unwrap();
    let (theirs, receiver) = bytes_channel().unwrap();
    back.send(theirs).unwrap();
    pin(0);
    let in_place = InPlace::bytes(&ours);
    let ways: Vec<Box<dyn Way>> = vec![
        Box::new(ours),
        Box::new(in_place),
        Box::new(Pipes(File::from(out), File::from(input))),
        Box::new(stream),
        Box::new(Packets(packets)),
        Box::new(IpcChannel(sender, receiver)),
    ];
    let buffer = vec![1; 16 << 20];
    let mut bench = Bench { board, ways, buffer, round: 0, cpu: [0.0; NAMES.len()] };
    compare_calls(scale, asked.as_deref(), &mut bench, &call);
    for (order, what) in [(ECHO, "there and back"), (SINK, "stream")] {
        for size in [8, 64, 1 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20] {
            let count = scale.count(((32 << 20) / size as u64).clamp(8, 20_000));
            let count = if scale == Scale::Tiny { count.min(3) } else { count };
            let shared = std::cell::RefCell::new(&mut bench);
            let title = format!("{what}, {size} bytes");
            if asked.as_ref().is_some_and(|asked| !title.contains(asked.as_str())) {
                continue;
            }
            let mut turns = Turns::new(title, "ns", Better::Less);
            for (way, name) in NAMES.into_iter().enumerate() {
                // A packet has to fit into the socket's buffer.
                if way == 4 && size > 64 << 10 {
                    continue;
                }
                let shared = &shared;
                let measure = move || shared.borrow_mut().run(way, order, size, count);
                turns = match (way, size) {
                    (0 | 1, _) => turns.subject(name, measure),
                    (_, 64) => turns.against(name, "0.20", 0.20, measure),
                    (_, 1_048_576) => turns.against(name, "0.50", 0.50, measure),
                    _ => turns.subject(name, measure),
                };
            }
            turns.run(scale.rounds(7));
            if scale == Scale::Full {
                let cpu: Vec<_> =
                    NAMES.iter().zip(bench.cpu).map(|(name, ns)| format!("{name} {ns:.0}")).collect();
                println!("  CPU of both, ns (last round): {}", cpu.join(", "));
            }
        }
    }
    bench.board.set(ORDER, QUIT);
    bench.board.set(ROUND, bench.round + 1);
    join(other);
}
