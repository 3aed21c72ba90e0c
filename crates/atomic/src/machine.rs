//! The machine's atomics, under the names that the model exports too.

pub use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, fence};

/// Tells the CPU that this is a spin loop.
#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

/// A `fence(SeqCst)` directly after an atomic read-modify-write of the same thread.
///
/// On x86-64 every read-modify-write is a full barrier already, so only the compiler is told; an
/// `mfence` there costs more than the operation it follows.
#[inline]
pub fn fence_after_rmw() {
    #[cfg(target_arch = "x86_64")]
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    #[cfg(not(target_arch = "x86_64"))]
    fence(core::sync::atomic::Ordering::SeqCst);
}

/// The cheap side of an asymmetric fence: tells the compiler alone. It is a full fence only beside `heavy_fence` of whoever is to
/// be seen, and only in a process that has registered for that.
#[inline]
pub fn light_fence() {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}
