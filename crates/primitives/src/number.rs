//! Numbers that fit one atomic word, and what can be done to them in one step.

use crossproc_segment::plain::Plain;

mod sealed {
    pub trait Sealed {}
}

/// An integer or float of at most 8 bytes. Implemented for all of them; can not be implemented elsewhere.
pub trait Number: Plain + sealed::Sealed {
    /// True for integers as wide as the word: their sum is the word's sum.
    const WRAPS_AT_64_BITS: bool;

    /// `self + other`; integers wrap around.
    #[must_use]
    fn plus(self, other: Self) -> Self;

    /// `self - other`; integers wrap around.
    #[must_use]
    fn minus(self, other: Self) -> Self;
}

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl sealed::Sealed for $int {}
        impl Number for $int {
            const WRAPS_AT_64_BITS: bool = size_of::<$int>() == 8;
            #[inline]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}
integers!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize);

macro_rules! floats {
    ($($float:ty)*) => {$(
        impl sealed::Sealed for $float {}
        impl Number for $float {
            const WRAPS_AT_64_BITS: bool = false;
            #[inline]
            fn plus(self, other: Self) -> Self {
                self + other
            }
            #[inline]
            fn minus(self, other: Self) -> Self {
                self - other
            }
        }
    )*};
}
floats!(f32 f64);
