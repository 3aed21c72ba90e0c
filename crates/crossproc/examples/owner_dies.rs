//! A process is killed while it holds the lock. The next one gets the lock at once, and is told.
//!
//! `cargo run -p crossproc --example owner_dies`

use std::thread::sleep;
use std::time::{Duration, Instant};

use crossproc::prelude::*;

/// Two accounts with 1000 in all, as long as nobody dies in the middle of this.
fn transfer((accounts, halfway): (Mutex<[u64; 2]>, Value<bool>)) {
    let mut accounts = accounts.lock().unwrap();
    accounts[0] -= 100;
    halfway.set(true).unwrap();
    sleep(Duration::from_secs(60));
    accounts[1] += 100;
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (accounts, halfway) = (Mutex::new([600_u64, 400])?, Value::new(false)?);
    let owner = Process::spawn(transfer, (accounts.clone(), halfway.clone()))?;
    halfway.wait_while(|halfway| !halfway)?;
    println!("process {} holds the lock: {:?}", owner.pid(), accounts.try_lock().unwrap_err());

    let killed = Instant::now();
    owner.kill()?;
    match accounts.lock() {
        Err(LockError::OwnerDied(mut guard)) => {
            println!("the lock is ours after {:.2?}, and {:?} is in it", killed.elapsed(), *guard);
            guard[0] = 1000 - guard[1];
            guard.mark_consistent();
        }
        other => return Err(format!("not OwnerDied but {other:?}").into()),
    }
    println!("repaired: {:?}", *accounts.lock()?);
    assert_eq!(*accounts.lock()?, [600, 400]);
    Ok(())
}
