#![allow(unsafe_code)]
//! The room of the marker trait for words that processes share.
//!
//! Claim: a type that is [`Shared`] may be reached by reference in memory that other processes write
//! at any moment. That core atomics work through two mappings of one page rests on their being
//! address-free, which C++ recommends for lock-free atomics and every supported CPU provides.

use crate::{AtomicPair, AtomicU32, AtomicU64, EventCount};

/// A type that may live in memory shared between processes.
///
/// # Safety
///
/// The type is `repr(C)` (or an atomic, or an array of such), has no padding that matters, holds no
/// pointer, is changed only through atomics, is valid for *every* bit pattern, and all-zero bytes are
/// its valid first state.
pub unsafe trait Shared: Sync + 'static {}

// SAFETY: an atomic integer: no pointer, every bit pattern valid, changed only atomically.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}
// SAFETY: as above; arrays of small elements are shared bytewise.
#[cfg(not(crossproc_model))]
unsafe impl Shared for crate::AtomicU8 {}
// SAFETY: repr(C), two atomics of one size, so no padding.
unsafe impl Shared for AtomicPair {}
// SAFETY: an array has no bytes but its elements', and each of those is Shared.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

// SAFETY: repr(C), two atomics of one size, so no padding; zero is "nobody sleeps".
unsafe impl Shared for EventCount {}
const _: () = assert!(cfg!(crossproc_model) || size_of::<EventCount>() == 8);
const _: () = assert!(cfg!(crossproc_model) || size_of::<AtomicPair>() == 16);

/// Declares a `repr(C)` struct of words that may live in a segment, and checks its size.
///
/// ```
/// crossproc_atomic::shared_struct! {
///     /// Two words.
///     pub struct Pair: 8 {
///         /// First.
///         pub a: crossproc_atomic::AtomicU32,
///         /// Second.
///         pub b: crossproc_atomic::AtomicU32,
///     }
/// }
/// assert_eq!(size_of::<Pair>(), 8);
/// ```
///
/// A field that is not [`Shared`] does not compile:
///
/// ```compile_fail
/// crossproc_atomic::shared_struct! {
///     /// A pointer has no meaning in another process.
///     pub struct Bad: 8 {
///         /// Refused.
///         pub p: &'static u8,
///     }
/// }
/// ```
#[macro_export]
macro_rules! shared_struct {
    ($(#[$meta:meta])* $vis:vis struct $name:ident : $size:literal {
        $($(#[$fmeta:meta])* $fvis:vis $field:ident : $ty:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Default)]
        $vis struct $name { $($(#[$fmeta])* $fvis $field: $ty),* }

        const _: () = {
            const fn is_shared<T: $crate::Shared>() {}
            $( is_shared::<$ty>(); )*
            // loom's atomics are handles of another size; only the machine's layout is an ABI.
            assert!(cfg!(crossproc_model) || core::mem::size_of::<$name>() == $size);
            assert!(cfg!(crossproc_model) || 0 $( + core::mem::size_of::<$ty>() )* == $size, "padding");
        };

        // SAFETY: repr(C), every field is Shared (checked above), no padding (checked above).
        unsafe impl $crate::Shared for $name {}
    };
}
