//! What an event does, as the threads of one process see it.
#![allow(missing_docs)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossproc_primitives::{Event, Objects, WaitError};
use crossproc_segment::{ErrorKind, Segment};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const HANG: Duration = Duration::from_secs(30);

#[test]
fn it_is_set_until_it_is_cleared() -> Outcome {
    let event = Event::new()?;
    assert!(!event.is_set());
    assert!(!event.clear()?, "it was not set");
    event.set()?;
    event.set()?;
    assert!(event.is_set());
    event.wait()?;
    event.wait_timeout(Duration::ZERO)?;
    event.wait_deadline(Instant::now())?;
    assert!(event.clear()?);
    assert!(!event.is_set());
    event.audit()?;
    Ok(())
}

#[test]
fn who_waits_in_vain_waits_as_long_as_asked() -> Outcome {
    let event = Event::new()?;
    for limit in [0, 1, 30, 120].map(Duration::from_millis) {
        let started = Instant::now();
        assert_eq!(event.wait_timeout(limit), Err(WaitError::TimedOut));
        assert!(started.elapsed() >= limit, "gave up early");
        let deadline = Instant::now() + limit;
        assert_eq!(event.wait_deadline(deadline), Err(WaitError::TimedOut));
        assert!(Instant::now() >= deadline, "gave up early");
    }
    event.set()?;
    event.clear()?;
    assert_eq!(event.wait_timeout(Duration::ZERO), Err(WaitError::TimedOut), "that set was before");
    Ok(())
}

#[test]
fn a_pulse_lets_all_go_who_waited() -> Outcome {
    const WAITERS: u32 = 4;
    let event = Event::new()?;
    for _ in 0..200 {
        let (asking, through) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|s| {
            for _ in 0..WAITERS {
                s.spawn(|| {
                    asking.fetch_add(1, Ordering::SeqCst);
                    event.wait_timeout(HANG).expect("it is pulsed until all are through");
                    through.fetch_add(1, Ordering::SeqCst);
                });
            }
            while asking.load(Ordering::SeqCst) < WAITERS {
                thread::yield_now();
            }
            // Somebody may have said that he waits and not begun: so it is pulsed more than once.
            while through.load(Ordering::SeqCst) < WAITERS {
                event.set().unwrap();
                event.clear().unwrap();
            }
        });
        assert!(!event.is_set());
    }
    Ok(())
}

#[test]
fn objects_of_one_name_are_one() -> Outcome {
    let segment = Segment::anonymous(4096)?;
    let (a, b) = (segment.event("ready")?, segment.event("ready")?);
    a.set()?;
    assert!(b.is_set());
    assert_eq!(segment.lock("ready").unwrap_err().kind(), ErrorKind::WrongKind);
    assert!(format!("{a:?}").contains("is_set: true"));
    Ok(())
}

#[test]
fn errors_say_what_to_do() {
    assert!(WaitError::NotAttached.to_string().contains("attach again"));
    assert!(WaitError::PeerDied.to_string().contains("gone"));
    assert!(WaitError::TimedOut.to_string().contains("deadline"));
}
