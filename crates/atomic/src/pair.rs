#![allow(unsafe_code)]
//! The room of the one instruction that Rust has no type for: a compare-and-swap of two words at once.
//!
//! Claims:
//! * `cmpxchg16b` on 16 bytes that are aligned to 16 is one atomic step, and a full barrier. Which CPUs have it is for the caller to ask:
//!   all x86-64 ones made since 2006.
//! * The two words are otherwise reached as the atomics that they are. Rust's memory model does not say what an access of 16 bytes and one
//!   of 8 do to each other; the CPU does (Intel SDM 3A 9.1.2.2, AMD APM 2 7.3.2: a locked operation is atomic to every other access).

use core::sync::atomic::{AtomicU64, Ordering};

/// Two words side by side, that can be exchanged together.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub struct AtomicPair {
    first: AtomicU64,
    second: AtomicU64,
}

#[allow(missing_docs)]
impl AtomicPair {
    /// True if this machine's architecture has [`compare_exchange`](Self::compare_exchange). Miri has not.
    pub const EXCHANGES: bool = cfg!(all(target_arch = "x86_64", not(miri)));

    #[inline]
    pub fn load_first(&self, order: Ordering) -> u64 {
        self.first.load(order)
    }

    #[inline]
    pub fn load_second(&self, order: Ordering) -> u64 {
        self.second.load(order)
    }

    #[inline]
    pub fn store_first(&self, value: u64, order: Ordering) {
        self.first.store(value, order);
    }

    #[inline]
    pub fn compare_exchange_first(
        &self,
        expected: u64,
        value: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.first.compare_exchange(expected, value, success, failure)
    }

    /// Tells the CPU that this is going to be exchanged.
    #[inline]
    pub fn expect_exchange(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use core::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            // SAFETY: a hint, which can not fault.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(core::ptr::from_ref(self).cast()) }
        }
    }

    /// Both words at once; acquires and releases. Where [`EXCHANGES`](Self::EXCHANGES) is false it never comes off.
    #[inline]
    pub fn compare_exchange(&self, expected: [u64; 2], values: [u64; 2]) -> bool {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let done: u64;
            // SAFETY: `self` is aligned to 16 bytes and lives meanwhile. `rbx`, which LLVM keeps for itself, is restored; the operands are
            // in registers of their own, so that none of them is `rbx`. Memory and flags count as changed.
            unsafe {
                core::arch::asm!(
                    "xchg rbx, rsi",
                    "lock cmpxchg16b [rdi]",
                    "mov rbx, rsi",
                    "sete cl",
                    in("rdi") self,
                    inout("rsi") values[0] => _,
                    inout("rcx") values[1] => done,
                    inout("rax") expected[0] => _,
                    inout("rdx") expected[1] => _,
                    options(nostack),
                );
            }
            done as u8 != 0
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            let _ = (expected, values);
            false
        }
    }
}
