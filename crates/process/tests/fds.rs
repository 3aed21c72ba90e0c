//! Descriptors are counted here, so this is one test in a program of its own: tests beside it would open
//! some.

use std::fs::{self, File};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use crossproc_process::{ErrorKind, Handed, Process, Stdio};

/// What the open descriptors of this process are, by number.
fn open_descriptors((): ()) -> Vec<String> {
    let mut list = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        // The descriptor of the directory itself is gone by the time it is looked at, or ends with fd.
        if let Ok(target) = fs::read_link(&path) {
            if !target.ends_with("fd") {
                list.push(format!("{:?} {}", path.file_name().unwrap(), target.display()));
            }
        }
    }
    list.sort();
    list
}

fn panic((): ()) {
    panic!("on purpose");
}

fn hang((): ()) {
    loop {
        std::thread::park();
    }
}

#[test]
fn descriptors_neither_leak_nor_stray() {
    // What is opened once and stays: by std, by libtest.
    Process::spawn(open_descriptors, ()).unwrap().join().unwrap();
    let before = open_descriptors(());

    for n in 0..100u64 {
        let child = Process::spawn(|n: u64| n + 1, n).unwrap();
        assert_eq!(child.join().unwrap(), n + 1);
    }
    assert_eq!(open_descriptors(()), before, "after 100 processes");

    for _ in 0..10 {
        let null = Handed(File::open("/dev/null").unwrap());
        let many: Vec<_> = (0..100).map(|_| Handed(null.0.try_clone().unwrap())).collect();
        let child = Process::spawn(
            |(many, bytes): (Vec<Handed<File>>, Vec<u8>)| (many, bytes),
            (many, vec![0; 100_000]),
        );
        drop(child.unwrap().join().unwrap());
        let piped = || Process::builder().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        assert!(piped().spawn(panic, ()).unwrap().join().is_err());
        drop(piped().kill_on_drop(true).spawn(hang, ()).unwrap());
        let error = piped().executable("/bin/true").spawn(hang, ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EndedEarly);
        let error = piped().executable("/no/such/program").spawn(hang, ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CannotStart);
        let error = Process::named::<(), ()>("nobody", ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSuchFunction);
        // Detached: its pidfd is kept until it has ended, and let go at the next start.
        let child = Process::spawn(|()| (), ()).unwrap();
        let ended = child.as_fd().try_clone_to_owned().unwrap();
        child.detach();
        let ended = rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN);
        rustix::event::poll(&mut [ended], None).unwrap();
        Process::spawn(|()| (), ()).unwrap().join().unwrap();
    }
    assert_eq!(open_descriptors(()), before, "after failures, panics, kills and large messages");

    let alone = Process::spawn(open_descriptors, ()).unwrap().join().unwrap();
    let _files: Vec<File> = (0..20).map(|_| File::open("/proc/self/exe").unwrap()).collect();
    let _sockets = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let _pair = UnixStream::pair().unwrap();
    let others: Vec<_> = (0..5).map(|_| Process::spawn(hang, ()).unwrap()).collect();
    let in_company = Process::spawn(open_descriptors, ()).unwrap().join().unwrap();
    others.iter().for_each(|other| other.kill().unwrap());
    // Each has a socket of its own, so the inode number in its name differs.
    let kinds = |list: &[String]| -> Vec<String> {
        list.iter().map(|entry| entry.split(':').next().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds(&in_company), kinds(&alone), "a child has nothing of what its parent opened");
    let own = alone.len() - before.iter().filter(|entry| alone.contains(entry)).count();
    assert_eq!(own, 2, "the socket and the pidfd of its parent: {alone:?}");
}
