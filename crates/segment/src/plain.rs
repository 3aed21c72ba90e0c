//! What may stand in shared memory as a value, and how it is described to a stranger.
//!
//! Another process may have been built from other sources, and it may write anything at any time. So a [`Plain`] type
//! promises two things. Going out, every one of its bytes is initialized (bytemuck's `NoUninit`): no padding is ever
//! published. Coming in, every bit pattern is either a value or an error (bytemuck's `CheckedBitPattern`): foreign bytes
//! never become a `bool` of 7. Both promises are bytemuck's traits, and all conversions here go through bytemuck.
//!
//! Each type also carries a [`Layout`]: its name, size, alignment and fields. A segment stores the fingerprint of the
//! layout and its text beside the object, so that a program with another idea of the type gets an error that names the
//! field ([`difference()`]) and not garbage.
//!
//! A layout is a *description*. Nothing that concerns memory safety rests on it: a wrong one (written by hand, or by a peer)
//! leads to an error or to a wrong value, never to more.
//!
//! # The description, as part of the segment format
//!
//! ```text
//! description = type " " size " bytes align " align
//! type        = name                                                   scalar
//!             | name " {}" | name " { " field { ", " field } " }"      struct, fields in order of declaration
//!             | "[" type "; " count "]"                                array
//!             | name " as " integer " { " variant { ", " variant } " }"  enum, variants in order of declaration
//! field       = name ": " type " @" offset
//! variant     = name " = " ["-"] number
//! ```
//!
//! Numbers are decimal and count bytes. An example:
//!
//! ```text
//! Order { id: u64 @0, side: Side as u8 { Buy = 0, Sell = 1 } @8, tag: [u8; 7] @9 } 16 bytes align 8
//! ```
//!
//! The *fingerprint* is the 64-bit FNV-1a hash of the bytes of this text (Fowler, Noll and Vo; draft-eastlake-fnv), so
//! equal texts have equal fingerprints, and different ones differ up to a collision of the hash. It guards against
//! mistakes, not against forgery: a forged one gains a peer nothing, see above.

mod difference;

use bytemuck::{CheckedBitPattern, NoUninit};
use core::fmt::{self, Write as _};

pub use difference::difference;

/// A type whose values may stand in memory that other processes write: plain bytes going out, checked bytes coming in.
///
/// Derive it (`#[derive(Clone, Copy, Plain)]`) for `#[repr(C)]` structs without padding and for fieldless enums with an
/// explicit `#[repr(u8)]` or another fixed-size integer. Integers, floats, `bool`, `char`, `()`, the `NonZero` integers
/// and arrays of types that accept every bit pattern have it already. An array of a *checked* type (`[bool; 8]`) must be
/// a field of a `#[plain(checked)]` struct, because bytemuck does not check arrays.
///
/// Deliberately without it: references and pointers (an address means nothing in another process), `Option`, tuples,
/// `Duration` and other types of `std` whose layout may change with the compiler.
///
/// The trait is safe to implement by hand: what must hold for memory safety is promised by its two supertraits. A wrong
/// [`LAYOUT`](Plain::LAYOUT) makes wrong error messages and lets programs meet that should not.
///
/// ```
/// use crossproc_segment::plain::{Field, Layout, Plain, from_words, to_words, words_of};
///
/// let mut words = [0; words_of::<bool>()];
/// to_words(&true, &mut words);
/// assert_eq!(from_words::<bool>(&words), Ok(true));
///
/// words[0] = 0x0707_0707_0707_0707;
/// let refused = from_words::<bool>(&words).unwrap_err();
/// assert_eq!(refused.to_string(), "the bits in shared memory are no valid `bool`");
/// assert_eq!(bool::LAYOUT.describe(), "bool 1 bytes align 1");
/// ```
///
/// What would be an address or has no fixed layout does not compile:
///
/// ```compile_fail
/// fn needs_plain<T: crossproc_segment::plain::Plain>() {}
/// needs_plain::<&'static u8>();
/// ```
/// ```compile_fail
/// fn needs_plain<T: crossproc_segment::plain::Plain>() {}
/// needs_plain::<String>();
/// ```
/// ```compile_fail
/// fn needs_plain<T: crossproc_segment::plain::Plain>() {}
/// needs_plain::<std::sync::atomic::AtomicU32>();
/// ```
/// ```compile_fail
/// fn needs_plain<T: crossproc_segment::plain::Plain>() {}
/// needs_plain::<Option<u8>>();
/// ```
/// ```
/// fn needs_plain<T: crossproc_segment::plain::Plain>() {}
/// needs_plain::<u8>();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not plain data: it cannot stand in memory shared by processes",
    label = "`Plain` is not implemented for this type",
    note = "for a struct of your own: `#[derive(Clone, Copy, Plain)] #[repr(C)]`, for an enum without fields: the same with `#[repr(u8)]`",
    note = "an array whose elements are checked (`bool`, `char`, enums) must be a field of a struct with `#[plain(checked)]`",
    note = "pointers, `String`, `Vec` and the like mean nothing in another process; `Option`, tuples and `Duration` have no fixed layout"
)]
pub trait Plain: NoUninit + CheckedBitPattern + Copy + 'static {
    /// What the type looks like in memory.
    const LAYOUT: &'static Layout;
}

/// The type's name, size, alignment and parts: what a segment tells about an object to those who open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// The type's own name without the path of its module; `array` for an array.
    pub name: &'static str,
    /// Bytes of one value.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// What it is made of.
    pub kind: Kind,
}

/// What a type is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// One value without parts.
    Scalar,
    /// Fields, in order of declaration.
    Struct {
        /// The fields.
        fields: &'static [Field],
    },
    /// The same type several times in a row.
    Array {
        /// One element.
        element: &'static Layout,
        /// How many.
        count: usize,
    },
    /// One of several names, each of which is a number.
    Enum {
        /// The integer type that holds the number.
        integer: &'static str,
        /// The names, in order of declaration.
        variants: &'static [Variant],
    },
}

/// A field of a struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// Its name; `0`, `1`, .. in a tuple struct.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Its type.
    pub layout: &'static Layout,
}

/// A variant of an enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variant {
    /// Its name.
    pub name: &'static str,
    /// The number that stands in memory.
    pub value: i128,
}

impl Field {
    /// A field `name` of type `layout`, `offset` bytes into its struct.
    #[must_use]
    pub const fn new(name: &'static str, offset: usize, layout: &'static Layout) -> Self {
        Self { name, offset, layout }
    }
}

impl Variant {
    /// A variant `name` that is stored as `value`.
    #[must_use]
    pub const fn new(name: &'static str, value: i128) -> Self {
        Self { name, value }
    }
}

impl Layout {
    /// A type without parts.
    #[must_use]
    pub const fn scalar<T>(name: &'static str) -> Self {
        Self { name, size: size_of::<T>(), align: align_of::<T>(), kind: Kind::Scalar }
    }

    /// A struct with `fields` in order of declaration.
    #[must_use]
    pub const fn structure<T>(name: &'static str, fields: &'static [Field]) -> Self {
        Self { name, size: size_of::<T>(), align: align_of::<T>(), kind: Kind::Struct { fields } }
    }

    /// `count` times `element`.
    ///
    /// # Panics
    /// Where no such array can exist because its size overflows `usize`.
    #[must_use]
    pub const fn array(element: &'static Layout, count: usize) -> Self {
        let Some(size) = element.size.checked_mul(count) else {
            panic!("the array is larger than the address space");
        };
        Self { name: "array", size, align: element.align, kind: Kind::Array { element, count } }
    }

    /// A fieldless enum stored as the type named `integer`.
    #[must_use]
    pub const fn enumeration<T>(
        name: &'static str,
        integer: &'static str,
        variants: &'static [Variant],
    ) -> Self {
        Self { name, size: size_of::<T>(), align: align_of::<T>(), kind: Kind::Enum { integer, variants } }
    }

    /// The whole description on one line, for people and for [`difference()`]:
    /// `Order { id: u64 @0, qty: u32 @8, tag: [u8; 4] @12 } 16 bytes align 8`.
    #[must_use]
    pub fn describe(&self) -> String {
        self.to_string()
    }

    /// As [`describe`](Self::describe), but at most `limit` bytes: what does not fit is cut, and `…` says so.
    #[must_use]
    pub fn describe_within(&self, limit: usize) -> String {
        let mut text = self.describe();
        if text.len() > limit {
            let mut end = limit.saturating_sub(CUT.len_utf8());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            if end + CUT.len_utf8() <= limit {
                text.push(CUT);
            }
        }
        text
    }

    /// The 64-bit FNV-1a hash of [`describe`](Self::describe): the same in every build and on every machine.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Fnv1a(Fnv1a::OFFSET_BASIS);
        // Writing into the hash cannot fail.
        let _ = write!(hash, "{self}");
        hash.0
    }

    /// The type without its fields, offsets and variants: `u64`, `Order`, `[Order; 3]`.
    fn brief(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Array { element, count } => {
                out.write_str("[")?;
                element.brief(out)?;
                write!(out, "; {count}]")
            }
            _ => out.write_str(self.name),
        }
    }

    fn write_type(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Scalar => out.write_str(self.name),
            Kind::Struct { fields: [] } => write!(out, "{} {{}}", self.name),
            Kind::Struct { fields } => {
                write!(out, "{} {{ ", self.name)?;
                for (index, field) in fields.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(out, "{comma}{}: ", field.name)?;
                    field.layout.write_type(out)?;
                    write!(out, " @{}", field.offset)?;
                }
                out.write_str(" }")
            }
            Kind::Array { element, count } => {
                out.write_str("[")?;
                element.write_type(out)?;
                write!(out, "; {count}]")
            }
            Kind::Enum { integer, variants } => {
                write!(out, "{} as {integer} {{ ", self.name)?;
                for (index, variant) in variants.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(out, "{comma}{} = {}", variant.name, variant.value)?;
                }
                out.write_str(" }")
            }
        }
    }
}

/// Ends a description that did not fit.
const CUT: char = '…';

impl fmt::Display for Layout {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_type(out)?;
        write!(out, " {} bytes align {}", self.size, self.align)
    }
}

struct Fnv1a(u64);

impl Fnv1a {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
}

impl fmt::Write for Fnv1a {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(Self::PRIME);
        }
        Ok(())
    }
}

/// The bytes that were read are no value of the type: another program, or a damaged one, wrote them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InvalidBits {
    layout: &'static Layout,
}

impl InvalidBits {
    /// The error that says so about `T`.
    #[must_use]
    pub const fn of<T: Plain>() -> Self {
        Self { layout: T::LAYOUT }
    }
}

impl fmt::Display for InvalidBits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the bits in shared memory are no valid `")?;
        self.layout.brief(out)?;
        out.write_str("`")
    }
}

impl fmt::Debug for InvalidBits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("InvalidBits(")?;
        self.layout.brief(out)?;
        out.write_str(")")
    }
}

impl core::error::Error for InvalidBits {}

/// Bytes of one word of the functions below.
const WORD: usize = size_of::<u64>();

/// How many 64-bit words one `T` fills, the last one perhaps in part.
#[must_use]
pub const fn words_of<T>() -> usize {
    size_of::<T>().div_ceil(WORD)
}

/// Copies `value` into the first [`words_of::<T>()`](words_of) words, in the machine's byte order; the rest of the last
/// of them becomes zero. Further words stay as they are.
///
/// # Panics
/// If `words` is shorter than that.
#[inline]
pub fn to_words<T: Plain>(value: &T, words: &mut [u64]) {
    let words = &mut words[..words_of::<T>()];
    if let Some(last) = words.last_mut() {
        *last = 0;
    }
    let bytes: &mut [u8] = bytemuck::must_cast_slice_mut(words);
    bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(value));
}

/// The value that the first [`words_of::<T>()`](words_of) words hold.
///
/// # Errors
/// [`InvalidBits`] if they hold none.
///
/// # Panics
/// If `words` is shorter than that.
#[inline]
pub fn from_words<T: Plain>(words: &[u64]) -> Result<T, InvalidBits> {
    let words = &words[..words_of::<T>()];
    let bytes: &[u8] = bytemuck::must_cast_slice(words);
    let bytes = &bytes[..size_of::<T>()];
    // Size and alignment fit by construction, so the pattern is all that can be wrong.
    if align_of::<T>() <= align_of::<u64>() {
        // Checked where it lies: a large T is copied once.
        match bytemuck::checked::try_from_bytes::<T>(bytes) {
            Ok(value) => Ok(*value),
            Err(_) => Err(InvalidBits::of::<T>()),
        }
    } else {
        bytemuck::checked::try_pod_read_unaligned::<T>(bytes).map_err(|_| InvalidBits::of::<T>())
    }
}

/// What `#[derive(Plain)]` asks of the fields of a struct without `#[plain(checked)]`; it exists for its error message.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "not every bit pattern is a value of `{Self}`",
    label = "another process could write bits here that are no value of this type",
    note = "add `#[plain(checked)]` to the struct: its values are then checked whenever they are read"
)]
pub trait AnyBits {}

impl<T: bytemuck::Pod> AnyBits for T {}

/// What `#[derive(Plain)]` replaces the fields of a checked struct by; it exists so that a field of a wrong type is
/// reported as not [`Plain`].
#[doc(hidden)]
pub trait PlainBits {
    /// The bits of a value before they are checked.
    type Bits;
}

impl<T: Plain> PlainBits for T {
    type Bits = <T as CheckedBitPattern>::Bits;
}

/// Implements [`Plain`] for types whose name is all there is to say.
macro_rules! scalars {
    ($($type:ty = $name:literal),* $(,)?) => {
        $(impl Plain for $type {
            const LAYOUT: &'static Layout = &Layout::scalar::<$type>($name);
        })*
    };
}

scalars! {
    u8 = "u8", u16 = "u16", u32 = "u32", u64 = "u64", u128 = "u128", usize = "usize",
    i8 = "i8", i16 = "i16", i32 = "i32", i64 = "i64", i128 = "i128", isize = "isize",
    f32 = "f32", f64 = "f64", bool = "bool", char = "char", () = "()",
    core::num::NonZeroU8 = "NonZeroU8", core::num::NonZeroU16 = "NonZeroU16", core::num::NonZeroU32 = "NonZeroU32",
    core::num::NonZeroU64 = "NonZeroU64", core::num::NonZeroU128 = "NonZeroU128", core::num::NonZeroUsize = "NonZeroUsize",
    core::num::NonZeroI8 = "NonZeroI8", core::num::NonZeroI16 = "NonZeroI16", core::num::NonZeroI32 = "NonZeroI32",
    core::num::NonZeroI64 = "NonZeroI64", core::num::NonZeroI128 = "NonZeroI128", core::num::NonZeroIsize = "NonZeroIsize",
}

impl<T: Plain + bytemuck::Pod, const N: usize> Plain for [T; N] {
    const LAYOUT: &'static Layout = &Layout::array(T::LAYOUT, N);
}

#[cfg(test)]
mod tests;
