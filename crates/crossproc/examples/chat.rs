//! Two programs that know nothing of each other chat: `cargo run -p crossproc --example chat` starts both.
//! Or start them in two terminals, with `-- --listen @chat` and `-- --connect @chat`, and type.

use std::error::Error;
use std::io::{Write, stdin};
use std::process::{Child, Command, Stdio};

use crossproc::{Connection, listener::ConnectOptions, listener::Listener};

/// Sends what is typed and prints what comes, until neither side has anything more to say.
fn chat(connection: Connection<String, String>) -> Result<(), Box<dyn Error>> {
    let (sender, receiver) = connection.split();
    let hear = std::thread::spawn(move || receiver.iter().for_each(|line| println!("> {line}")));
    stdin().lines().try_for_each(|line| Ok::<_, Box<dyn Error>>(sender.send(&line?)?))?;
    drop(sender);
    hear.join().map_err(|_| "what came could not be printed".into())
}

fn start(role: &str, address: &str, says: &str) -> Result<Child, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child = command.args([role, address]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no pipe")?.write_all(says.as_bytes())?;
    Ok(child)
}

fn main() -> Result<(), Box<dyn Error>> {
    match &std::env::args().collect::<Vec<_>>()[..] {
        [_, role, address] if role == "--listen" => return chat(Listener::bind(address)?.accept()?),
        [_, role, address] if role == "--connect" => {
            return chat(ConnectOptions::new().wait_for_listener().connect(address)?);
        }
        _ => {}
    }
    let address = format!("@crossproc-chat-{}", std::process::id());
    let one = start("--listen", &address, "who is there?\n")?;
    let other = start("--connect", &address, "me\n")?;
    assert_eq!(String::from_utf8(one.wait_with_output()?.stdout)?, "> me\n");
    assert_eq!(String::from_utf8(other.wait_with_output()?.stdout)?, "> who is there?\n");
    Ok(())
}
