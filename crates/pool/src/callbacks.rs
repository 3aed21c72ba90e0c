//! The thread that runs callbacks: nobody else waits for them, and a panic in one harms nobody.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Something to be called once.
pub(crate) struct Callback(pub(crate) Box<dyn FnOnce() + Send>);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback(..)")
    }
}

/// The thread, started when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Callbacks(Mutex<Thread>);

#[derive(Debug, Default)]
struct Thread {
    queue: Option<Sender<Callback>>,
    thread: Option<JoinHandle<()>>,
}

impl Callbacks {
    fn lock(&self) -> MutexGuard<'_, Thread> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called later, after those that have been given before.
    pub(crate) fn call(&self, callback: Callback) {
        let mut thread = self.lock();
        if thread.queue.is_none() {
            let (sender, receiver) = channel::<Callback>();
            let run = move || {
                for Callback(call) in receiver {
                    // The panic hook has said so; the other callbacks are none the worse for it.
                    drop(catch_unwind(AssertUnwindSafe(call)));
                }
            };
            match std::thread::Builder::new().name("pool callbacks".into()).spawn(run) {
                Ok(handle) => *thread = Thread { queue: Some(sender), thread: Some(handle) },
                // No thread can be had: better here than never.
                Err(_) => {
                    drop(thread);
                    drop(catch_unwind(AssertUnwindSafe(callback.0)));
                    return;
                }
            }
        }
        if let Some(queue) = &thread.queue {
            let _ = queue.send(callback);
        }
    }

    /// Lets the callbacks that were given run to their end; `wait`: waits for that, unless this is one of them.
    pub(crate) fn finish(&self, wait: bool) {
        let Thread { queue, thread } = std::mem::take(&mut *self.lock());
        drop(queue);
        if let Some(thread) =
            thread.filter(|thread| wait && thread.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}
