//! The asymmetric fence: one side pays a system call, so that the other side need not pay for a fence.
//!
//! Who stores something and then looks whether anybody sleeps needs a fence between the two, at each store. With
//! `membarrier(2)` the sleeper makes every running thread of every *registered* process pass a full fence instead, after it has
//! announced itself and before it looks again: then [`light_fence`](crate::light_fence), which is none for the CPU, will do in
//! these processes.
//!
//! Source: "MEMBARRIER_CMD_GLOBAL_EXPEDITED" in membarrier(2), which is made for data shared between processes (Linux 4.16).

use rustix::thread::{MembarrierCommand, membarrier};

/// Registers this process, so that [`heavy_fence`] of any process reaches its threads. False where the system has no such call.
///
/// The first time in a process that has several threads takes milliseconds (the kernel waits for all CPUs), later ones less
/// than a microsecond. A forked child has to register for itself.
#[must_use]
pub fn register_light_fences() -> bool {
    membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
}

/// Every running thread of every registered process passes a full fence before this returns. False where the system has no such
/// call: then nothing has happened.
#[must_use]
pub fn heavy_fence() -> bool {
    membarrier(MembarrierCommand::GlobalExpedited).is_ok()
}
