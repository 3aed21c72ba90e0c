//! Promises about processes, kept by real processes.
//!
//! | File | what is promised |
//! |---|---|
//! | `lock.rs` | exclusion, time limits, poison, `RLock`, between processes |
//! | `death.rs` | a dead holder's lock passes on, once, however it died; a living one's never |
//! | `identity.rs` | nobody is taken for a dead holder because he has its number (needs PID namespaces or root) |
//! | `sandbox.rs` | what is not allowed (`futex_waitv`) is made up for |
//! | `fork.rs` | what a forked child may and may not do with what it inherited |
//! | `value.rs`, `array.rs` | values are whole, arrays say when they may not be |
//! | `handles.rs` | every handle travels to a child and back |
//! | `names.rs` | names: made once, gone with the last user, however that ended |
//! | `every_call.rs` | a creator killed at each of its system calls stands in nobody's way |
//! | `long_runs.rs` | the storm and the search for torn values, in small |
//!
//! All that asks the kernel for unusual things is in `kernel.rs`.

mod array;
mod death;
mod every_call;
mod fork;
mod handles;
mod identity;
mod kernel;
mod lock;
mod long_runs;
mod names;
mod sandbox;
mod value;
