//! Promises about processes, kept by real processes.
//!
//! | File | what is promised |
//! |---|---|
//! | `lock.rs` | exclusion, time limits, poison, `RLock`, between processes |
//! | `death.rs` | a dead holder's lock passes on, once, however it died; a living one's never |
//! | `participants.rs` | who sleeps is woken by any death; the dead give their slots back |
//! | `identity.rs` | nobody is taken for a dead holder because he has its number (needs PID namespaces or root) |
//! | `holds.rs` | nobody is robbed or forgotten while a death takes its time, in another PID namespace, in thousands of locks, in a slot that somebody new has, or when the clock is set |
//! | `semaphore.rs` | permits of the dead come back, once; a binary semaphore is handed from process to process |
//! | `rwlock.rs` | many read or one writes; the dead hold up nobody, a writer's death is told |
//! | `queue.rs` | messages arrive once and in order; what dead receivers had comes back, flagged |
//! | `queue_damage.rs` | a queue whose words are overwritten at random crashes and hangs nobody |
//! | `object_queue.rs` | messages of any size arrive whole; memory is given back, and so is what does not fit |
//! | `pool.rs` | a pool computes what it is asked; a death takes one task along, whenever and however it comes |
//! | `pipe.rs` | messages of two ends come whole, in order and once, however many write and read; who is gone is told to the others |
//! | `connection.rs` | what Python's `Connection` does, row by row, and our answers |
//! | `call.rs` | each call is answered once, by a server that lives |
//! | `listener.rs` | programs that know nothing of each other meet; nobody who dies, lies or says nothing keeps the others out |
//! | `spsc.rs` | what is pushed is popped once and in order, whoever is killed or replaced |
//! | `readiness.rs` | tasks and descriptors that wait are told, whoever is killed or dropped in between |
//! | `once.rs` | something is done once, whoever dies while doing it |
//! | `sandbox.rs` | what is not allowed (`futex_waitv`) is made up for |
//! | `fork.rs` | what a forked child may and may not do with what it inherited |
//! | `process_start.rs` | a process is and has the same, whichever way it was started; starts that fail |
//! | `process_life.rs` | daemons end with their parent, and nobody with the fork server; nothing is left of thousands |
//! | `value.rs`, `array.rs` | values are whole, arrays say when they may not be |
//! | `event.rs`, `condvar.rs`, `barrier.rs` | nobody sleeps through a wake-up, whoever is killed; all parties pass or none |
//! | `handles.rs` | every handle travels to a child and back |
//! | `names.rs` | names: made once, gone with the last user, however that ended |
//! | `every_call.rs` | a creator killed at each of its system calls stands in nobody's way |
//! | `long_runs.rs` | the storm and the search for torn values, in small |
//!
//! All that asks the kernel for unusual things is in `kernel.rs`.

mod array;
mod barrier;
mod call;
mod condvar;
mod connection;
mod death;
mod event;
mod every_call;
mod fork;
mod handles;
mod holds;
mod identity;
mod kernel;
mod listener;
mod lock;
mod long_runs;
mod names;
mod object_queue;
mod once;
mod participants;
mod pipe;
mod pool;
mod process_life;
mod process_start;
mod queue;
mod queue_damage;
mod readiness;
mod rwlock;
mod sandbox;
mod semaphore;
mod spsc;
mod value;
