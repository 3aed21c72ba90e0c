//! The thread that runs callbacks: nobody else waits for them, and a panic in one harms nobody.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Something to be called once.
pub(crate) struct Callback(pub(crate) Box<dyn FnOnce() + Send>);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback(..)")
    }
}

/// Runs the code of others. The panic hook has said what a panic says; nobody else is the worse for it.
pub(crate) fn shielded(call: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
        // Its `Drop` might panic in turn.
        std::mem::forget(payload);
    }
}

/// The thread, started when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Callbacks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// All that were given have been called.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: Option<Sender<Callback>>,
    thread: Option<JoinHandle<()>>,
    /// Callbacks that were given and have not returned.
    unfinished: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Callbacks {
    /// To be called later, after those that have been given before.
    pub(crate) fn call(&self, callback: Callback) {
        let mut state = self.0.lock();
        if state.queue.is_none() {
            let (sender, receiver) = channel::<Callback>();
            let shared = Arc::clone(&self.0);
            let run = move || {
                for Callback(call) in receiver {
                    shielded(call);
                    let mut state = shared.lock();
                    state.unfinished -= 1;
                    if state.unfinished == 0 {
                        shared.idle.notify_all();
                    }
                }
            };
            match thread::Builder::new().name("pool callbacks".into()).spawn(run) {
                Ok(handle) => (state.queue, state.thread) = (Some(sender), Some(handle)),
                // No thread can be had: better here than never.
                Err(_) => {
                    drop(state);
                    return shielded(callback.0);
                }
            }
        }
        state.unfinished += 1;
        if let Some(queue) = &state.queue {
            let _ = queue.send(callback);
        }
    }

    /// Lets the callbacks that were given run to their end; `wait`: waits for that, unless this is one of them.
    pub(crate) fn finish(&self, wait: bool) {
        let mut state = self.0.lock();
        let is_one = state.thread.as_ref().is_some_and(|own| own.thread().id() == thread::current().id());
        if wait && is_one {
            return;
        }
        while wait && state.unfinished > 0 {
            state = self.0.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let (queue, thread) = (state.queue.take(), state.thread.take());
        drop(state);
        drop(queue);
        if let Some(thread) = thread.filter(|_| wait) {
            let _ = thread.join();
        }
    }
}
