//! Types as users write them: what the derive makes of them, and that bits which are no value never become one.

#![forbid(unsafe_code)]

use crossproc_derive::Plain;
use crossproc_segment::plain::{InvalidBits, Plain, difference, from_words, to_words, words_of};
use std::num::NonZeroU16;

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C)]
struct Address {
    zip: u32,
    r#type: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C)]
struct Order {
    id: u64,
    to: Address,
    stops: [Address; 2],
    tag: [u8; 8],
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C)]
struct Point(f32, f32);

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(transparent)]
struct Id(u128);

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C)]
struct Nothing;

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C, packed)]
struct Packed {
    kind: u8,
    id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(C, align(16))]
struct Aligned {
    low: u64,
    high: u64,
}

const FIRST: i8 = -3;

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(i8)]
enum Level {
    Low = FIRST,
    Middle,
    r#High = i8::MAX,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment)]
#[repr(u64)]
enum Wide {
    Zero,
    Most = u64::MAX,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(crate = crossproc_segment, checked)]
#[repr(C)]
struct Reading {
    sign: char,
    port: NonZeroU16,
    level: Level,
    levels: [[Level; 2]; 2],
    on: bool,
    raw: [u8; 4],
    at: Point,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[plain(checked)]
#[plain(crate = crossproc_segment)]
#[repr(C)]
struct Nested(Reading, [Reading; 2]);

#[derive(Clone, Copy, Plain)]
#[plain(crate = crossproc_segment, checked)]
#[repr(C, packed(2))]
struct PackedChecked {
    on: bool,
    levels: [Level; 2],
    more: bool,
    sign: char,
    last: u16,
}

#[derive(Clone, Copy, Plain)]
#[plain(crate = crossproc_segment, checked)]
#[repr(C)]
struct Empty {}

/// Names that generated code might collide with.
mod shadowed {
    #![allow(non_camel_case_types, dead_code, missing_docs)]

    pub struct Layout;
    pub struct Field;
    pub struct Option;
    pub struct bool;
    pub trait Copy {}
    pub mod core {}
    pub const FIELDS: usize = 3;

    #[derive(Clone, ::core::marker::Copy, crossproc_derive::Plain)]
    #[plain(crate = crossproc_segment, checked)]
    #[repr(u8)]
    pub enum u16 {
        u8,
        i128,
    }

    #[derive(Clone, ::core::marker::Copy, crossproc_derive::Plain)]
    #[plain(crate = crossproc_segment, checked)]
    #[repr(C)]
    pub struct Bits {
        bits: u16,
        element: [u16; FIELDS],
    }
}

/// A type that a macro wrote, whose pieces arrive in invisible parentheses.
macro_rules! written_by_macro {
    ($name:ident, $element:ty, $count:expr) => {
        #[derive(Clone, Copy, Debug, PartialEq, Plain)]
        #[plain(crate = crossproc_segment, checked)]
        #[repr(C)]
        struct $name {
            elements: [$element; $count],
        }
    };
}
written_by_macro!(Written, [Level; 2], 1 + 2);

fn round_trip<T: Plain>(value: T) -> Result<T, InvalidBits> {
    let mut words = vec![u64::MAX; words_of::<T>()];
    to_words(&value, &mut words);
    from_words(&words)
}

/// The value that these bytes are, if they are one.
fn read<T: Plain>(bytes: &[u8]) -> Result<T, InvalidBits> {
    assert_eq!(bytes.len(), size_of::<T>());
    let mut words = vec![0; words_of::<T>()];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(padded);
    }
    from_words(&words)
}

fn reading() -> Reading {
    Reading {
        sign: 'ß',
        port: NonZeroU16::MAX,
        level: Level::High,
        levels: [[Level::Low, Level::Middle]; 2],
        on: true,
        raw: [255; 4],
        at: Point(1.5, -0.0),
    }
}

#[test]
fn every_kind_of_type_comes_back_as_it_went() {
    let address = Address { zip: 12345, r#type: *b"home" };
    let order = Order { id: u64::MAX, to: address, stops: [address; 2], tag: [7; 8] };
    assert_eq!(round_trip(order), Ok(order));
    assert_eq!(round_trip([order; 3]), Ok([order; 3]));
    assert_eq!(round_trip(Point(1.0, 2.0)), Ok(Point(1.0, 2.0)));
    assert_eq!(round_trip(Id(u128::MAX - 1)), Ok(Id(u128::MAX - 1)));
    assert_eq!(round_trip(Nothing), Ok(Nothing));
    assert_eq!(round_trip(Packed { kind: 1, id: 2 }), Ok(Packed { kind: 1, id: 2 }));
    assert_eq!(round_trip(Aligned { low: 1, high: 2 }), Ok(Aligned { low: 1, high: 2 }));
    for level in [Level::Low, Level::Middle, Level::High] {
        assert_eq!(round_trip(level), Ok(level));
    }
    assert_eq!(round_trip(Wide::Zero), Ok(Wide::Zero));
    assert_eq!(round_trip(Wide::Most), Ok(Wide::Most));
    assert_eq!(round_trip(reading()), Ok(reading()));
    assert_eq!(round_trip(Nested(reading(), [reading(); 2])), Ok(Nested(reading(), [reading(); 2])));
    let written = Written { elements: [[Level::Low, Level::High]; 3] };
    assert_eq!(round_trip(written), Ok(written));
    assert!(round_trip(Empty {}).is_ok());
}

#[test]
fn the_layout_is_the_one_the_compiler_chose() {
    assert_eq!(
        Order::LAYOUT.describe(),
        "Order { id: u64 @0, to: Address { zip: u32 @0, type: [u8; 4] @4 } @8, \
         stops: [Address { zip: u32 @0, type: [u8; 4] @4 }; 2] @16, tag: [u8; 8] @32 } 40 bytes align 8"
    );
    assert_eq!(Point::LAYOUT.describe(), "Point { 0: f32 @0, 1: f32 @4 } 8 bytes align 4");
    assert_eq!(Id::LAYOUT.describe(), format!("Id {{ 0: u128 @0 }} 16 bytes align {}", align_of::<u128>()));
    assert_eq!(Nothing::LAYOUT.describe(), "Nothing {} 0 bytes align 1");
    assert_eq!(Packed::LAYOUT.describe(), "Packed { kind: u8 @0, id: u64 @1 } 9 bytes align 1");
    assert_eq!(Aligned::LAYOUT.describe(), "Aligned { low: u64 @0, high: u64 @8 } 16 bytes align 16");
    assert_eq!(Level::LAYOUT.describe(), "Level as i8 { Low = -3, Middle = -2, High = 127 } 1 bytes align 1");
    assert_eq!(
        Wide::LAYOUT.describe(),
        format!(
            "Wide as u64 {{ Zero = 0, Most = 18446744073709551615 }} 8 bytes align {}",
            align_of::<u64>()
        )
    );
    assert_eq!(
        Reading::LAYOUT.describe(),
        "Reading { sign: char @0, port: NonZeroU16 @4, level: Level as i8 { Low = -3, Middle = -2, High = 127 } @6, \
         levels: [[Level as i8 { Low = -3, Middle = -2, High = 127 }; 2]; 2] @7, on: bool @11, raw: [u8; 4] @12, \
         at: Point { 0: f32 @0, 1: f32 @4 } @16 } 24 bytes align 4"
    );
    assert_eq!(
        shadowed::Bits::LAYOUT.describe(),
        "Bits { bits: u16 as u8 { u8 = 0, i128 = 1 } @0, element: [u16 as u8 { u8 = 0, i128 = 1 }; 3] @1 } 4 bytes align 1"
    );
}

#[test]
fn of_all_bytes_an_enum_accepts_exactly_its_own() {
    for byte in 0..=255_u8 {
        let expected = match byte as i8 {
            -3 => Some(Level::Low),
            -2 => Some(Level::Middle),
            127 => Some(Level::High),
            _ => None,
        };
        assert_eq!(read::<Level>(&[byte]).ok(), expected);
    }
    assert!(read::<Wide>(&1_u64.to_ne_bytes()).is_err());
}

#[test]
fn a_checked_struct_refuses_a_wrong_byte_in_any_checked_field() {
    let good = {
        let mut words = [0; words_of::<Reading>()];
        to_words(&reading(), &mut words);
        words.map(u64::to_ne_bytes).concat()
    };
    assert_eq!(read::<Reading>(&good), Ok(reading()));
    // (byte, value there, whether the whole is still a value)
    let changes: [(usize, &[u8], bool); 9] = [
        (0, &[0xff; 4], false),    // sign
        (4, &[0, 0], false),       // port
        (6, &[0], false),          // level
        (7, &[0], false),          // levels[0][0]
        (10, &[0], false),         // levels[1][1]
        (11, &[2], false),         // on
        (11, &[0], true),          // on
        (12, &[1, 2, 3, 4], true), // raw
        (16, &[0xff; 8], true),    // at: not a number, but a float
    ];
    for (at, bytes, is_value) in changes {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(read::<Reading>(&changed).is_ok(), is_value, "{bytes:?} at {at}");
        // The same as the last of the elements of an array within another checked struct.
        let nested = [&good[..], &good, &changed].concat();
        assert_eq!(read::<Nested>(&nested).is_ok(), is_value, "{bytes:?} at {at} of the third");
    }
}

#[test]
fn a_packed_checked_struct_is_checked_field_by_field() {
    let good = [1, 127, 127, 0, b'x', 0, 0, 0, 9, 9];
    let good: [u8; 10] =
        if cfg!(target_endian = "little") { good } else { [1, 127, 127, 0, 0, 0, 0, b'x', 9, 9] };
    assert_eq!(read::<PackedChecked>(&good).map(|value| { value.sign }), Ok('x'));
    for (at, byte) in [(0, 2), (1, 0), (2, 0), (3, 2), (4, 0xff), (7, 0xff)] {
        let mut bad = good;
        bad[at] = byte;
        if at < 4 || cfg!(target_endian = "little") && at == 7 {
            assert!(read::<PackedChecked>(&bad).is_err(), "{byte} at {at}");
        }
    }
}

#[test]
fn what_accepts_every_bit_pattern_may_stand_behind_a_mutable_slice() {
    fn any_bits<
        T: crossproc_segment::__private::bytemuck::AnyBitPattern
            + crossproc_segment::__private::bytemuck::NoUninit,
    >() {
    }
    any_bits::<Order>();
    any_bits::<[Order; 4]>();
    any_bits::<Packed>();
    any_bits::<Nothing>();
}

#[test]
fn two_versions_of_a_type_are_told_apart_by_name_of_the_field() {
    mod newer {
        #[derive(Clone, Copy, crossproc_derive::Plain)]
        #[plain(crate = crossproc_segment, checked)]
        #[repr(C)]
        pub struct Reading {
            pub sign: char,
            pub port: u16,
            pub level: super::Level,
            pub on: bool,
        }
    }
    assert_ne!(Reading::LAYOUT.fingerprint(), newer::Reading::LAYOUT.fingerprint());
    assert_eq!(
        difference(&Reading::LAYOUT.describe(), &newer::Reading::LAYOUT.describe()),
        "field `port`: the segment has NonZeroU16 at offset 4, this program expects u16 at offset 4"
    );
}
