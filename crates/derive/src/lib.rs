//! `#[derive(Plain)]`: the proof, made at compile time, that a struct or enum may stand in memory shared by processes.
//!
//! Use it through the package `crossproc`, which exports it under the name of the trait it implements.

#![forbid(unsafe_code)]

mod expand;

use proc_macro::TokenStream;

/// Implements `Plain` for a struct or a fieldless enum, or says why it cannot.
///
/// The type must also be `Clone` and `Copy`. Nothing has to be added to the dependencies of the crate that uses this, and
/// it may `#![forbid(unsafe_code)]`.
///
/// # Structs
/// need `#[repr(C)]` (or `#[repr(transparent)]`; `packed` and `align` may stand beside `C`), fields that are `Plain`
/// themselves, and no padding: a byte that belongs to no field is never initialized, and must not be published.
///
/// ```
/// # use crossproc_derive::Plain;
/// use crossproc_segment::plain::Plain;
///
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order {
///     id: u64,
///     qty: u32,
///     tag: [u8; 4],
/// }
///
/// assert_eq!(
///     Order::LAYOUT.describe(),
///     "Order { id: u64 @0, qty: u32 @8, tag: [u8; 4] @12 } 16 bytes align 8",
/// );
/// ```
///
/// Every bit pattern must be a value of every field (bytemuck's `Pod`, which is also implemented for the struct). Then the
/// struct can be changed in place behind `&mut`, and stand in arrays.
///
/// # Checked structs
/// With `#[plain(checked)]` a field may also be `bool`, `char`, an enum, a `NonZero` integer, another checked struct, or an
/// array of these written out as `[Side; 4]` (not behind a type alias). Whenever such a value is read from shared memory, its
/// bits are checked first; there is no `&mut` into shared memory for it.
///
/// ```
/// # use crossproc_derive::Plain;
/// use crossproc_segment::plain::{from_words, to_words};
///
/// #[derive(Clone, Copy, Debug, PartialEq, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(u8)]
/// enum Side {
///     Buy,
///     Sell,
/// }
///
/// #[derive(Clone, Copy, Debug, PartialEq, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[plain(checked)]
/// #[repr(C)]
/// struct Trade {
///     price: u32,
///     side: Side,
///     legs: [Side; 2],
///     settled: bool,
/// }
///
/// let trade = Trade { price: 7, side: Side::Sell, legs: [Side::Buy; 2], settled: true };
/// let mut words = [0];
/// to_words(&trade, &mut words);
/// assert_eq!(from_words::<Trade>(&words), Ok(trade));
///
/// words[0] = u64::MAX;
/// let refused = from_words::<Trade>(&words).unwrap_err();
/// assert_eq!(refused.to_string(), "the bits in shared memory are no valid `Trade`");
/// ```
///
/// # Enums
/// need variants without fields and a fixed-size integer: `#[repr(u8)]`, `u16`, `u32`, `u64`, `i8`, `i16`, `i32` or `i64`.
/// They are always checked.
///
/// # Options
/// * `#[plain(checked)]`: see above.
/// * `#[plain(crate = path)]`: where to find what the generated code refers to, instead of `::crossproc`. The path must
///   have a module `__private` as `crossproc` has it.
///
/// # What does not compile
/// Each of these is the first example with one thing changed.
///
/// No `#[repr(C)]`: another build of the program could order the fields differently.
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// struct Order { id: u64, qty: u32, tag: [u8; 4] }
/// ```
/// Padding, within and at the end:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { qty: u32, id: u64, tag: [u8; 4] }
/// ```
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { id: u64, qty: u32, tag: [u8; 3] }
/// ```
/// An address, which means nothing in another process:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { id: &'static u64, qty: u32, tag: [u8; 4] }
/// ```
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { id: *const u64, qty: u32, tag: [u8; 4] }
/// ```
/// Something that changes behind `&`:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { id: core::sync::atomic::AtomicU64, qty: u32, tag: [u8; 4] }
/// ```
/// A checked field without `#[plain(checked)]`, and then with it:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { id: u64, qty: u32, tag: [u8; 3], paid: bool }
/// ```
/// ```
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[plain(checked)]
/// #[repr(C)]
/// struct Order { id: u64, qty: u32, tag: [u8; 3], paid: bool }
/// ```
/// Not `Copy`:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order { id: u64, qty: u32, tag: [u8; 4] }
/// ```
/// A generic type, a union:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// struct Order<T> { id: u64, qty: u32, tag: T }
/// ```
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(C)]
/// union Order { id: u64, qty: u64 }
/// ```
/// An enum without an integer type, with one whose size depends on the machine, with fields; and one that is right:
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// enum Side { Buy, Sell }
/// ```
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(usize)]
/// enum Side { Buy, Sell }
/// ```
/// ```compile_fail
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(u8)]
/// enum Side { Buy, Sell(u8) }
/// ```
/// ```
/// # use crossproc_derive::Plain;
/// #[derive(Clone, Copy, Plain)]
/// # #[plain(crate = crossproc_segment)]
/// #[repr(u8)]
/// enum Side { Buy, Sell }
/// ```
#[proc_macro_derive(Plain, attributes(plain))]
pub fn derive_plain(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as syn::DeriveInput);
    expand::plain(&input).unwrap_or_else(|error| error.into_compile_error()).into()
}
