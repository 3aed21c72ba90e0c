#![allow(unsafe_code)]
//! The kernel's sleep and wake-up with nothing around them: what waiting can not be cheaper than.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::thread::futex;

/// The half of a word that changes first when it is counted up.
fn low(word: &AtomicU64) -> &AtomicU32 {
    let at = usize::from(cfg!(target_endian = "big"));
    // SAFETY: it lies within the word, which may have any value; and the two are not used by turns, but for words that nobody
    // else uses.
    unsafe { &*word.as_ptr().cast::<AtomicU32>().add(at) }
}

/// Sleeps until the word is `wanted`, which is one more than it was.
pub fn await_value(word: &AtomicU64, wanted: u32) {
    while low(word).load(Ordering::Acquire) != wanted {
        // That it has changed, or somebody has sent a signal, is seen by the next look.
        let _ = futex::wait(low(word), futex::Flags::empty(), wanted.wrapping_sub(1), None);
    }
}

/// Writes the word, and wakes who sleeps on it.
pub fn set_and_wake(word: &AtomicU64, value: u32) {
    low(word).store(value, Ordering::Release);
    futex::wake(low(word), futex::Flags::empty(), 1).expect("a futex");
}
