use super::*;
use core::num::{NonZeroI64, NonZeroU8};
use std::time::{SystemTime, UNIX_EPOCH};

/// Random numbers, good enough for tests (xorshift64*). The seed is printed, so that a failure can be repeated with `CROSSPROC_SEED`.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = match std::env::var("CROSSPROC_SEED") {
            Ok(seed) => seed.parse().expect("CROSSPROC_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64),
        };
        println!("CROSSPROC_SEED={seed}");
        Self(seed | 1)
    }

    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

static SIDE: Layout =
    Layout::enumeration::<u8>("Side", "u8", &[Variant::new("Buy", 0), Variant::new("Sell", 1)]);
static ADDRESS: Layout = Layout::structure::<[u32; 2]>(
    "Address",
    &[Field::new("zip", 0, u32::LAYOUT), Field::new("no", 4, u32::LAYOUT)],
);
static ADDRESSES: Layout = Layout::array(&ADDRESS, 3);
static ORDER: Layout = Layout::structure::<[u64; 6]>(
    "Order",
    &[
        Field::new("id", 0, u64::LAYOUT),
        Field::new("to", 8, &ADDRESS),
        Field::new("stops", 16, &ADDRESSES),
        Field::new("side", 40, &SIDE),
        Field::new("tag", 41, <[u8; 7]>::LAYOUT),
    ],
);
static NOTHING: Layout = Layout::structure::<()>("Nothing", &[]);

const ORDER_TEXT: &str = "Order { id: u64 @0, to: Address { zip: u32 @0, no: u32 @4 } @8, \
    stops: [Address { zip: u32 @0, no: u32 @4 }; 3] @16, side: Side as u8 { Buy = 0, Sell = 1 } @40, tag: [u8; 7] @41 } \
    48 bytes align 8";

/// Each a stranger to all others.
const TEXTS: [&str; 12] = [
    ORDER_TEXT,
    "Order { id: u64 @0, qty: u32 @8, tag: u32 @12 } 16 bytes align 8",
    "Order { id: u64 @0, qty: u64 @8 } 16 bytes align 8",
    "Order {} 0 bytes align 1",
    "Order { id: Order { id: Order { id: u64 @0 } @0 } @0 } 8 bytes align 8",
    "Order as i64 { A = -9223372036854775808, B = 0, C = 7 } 8 bytes align 8",
    "[[[Order { id: [u64; 2] @0 }; 2]; 3]; 4] 384 bytes align 8",
    "u64 8 bytes align 8",
    "u64 8 bytes align 4",
    "() 0 bytes align 1",
    "Bestellung { größe: f64 @0 } 8 bytes align 8",
    "Order { 0: u64 @0, 1: u32 @8, 2: u32 @12 } 16 bytes align 8",
];

fn round_trip<T: Plain>(value: T) -> Result<T, InvalidBits> {
    let mut words = vec![u64::MAX; words_of::<T>() + 1];
    to_words(&value, &mut words);
    assert_eq!(words.pop(), Some(u64::MAX), "a word behind the value was written");
    from_words(&words)
}

#[test]
fn every_value_comes_back_as_it_went() {
    let mut random = Random::new();
    for _ in 0..if cfg!(miri) { 10 } else { 1000 } {
        let word = random.word();
        let wide = u128::from(word) << 64 | u128::from(random.word());
        assert_eq!(round_trip(word), Ok(word));
        assert_eq!(round_trip(word as i8), Ok(word as i8));
        assert_eq!(round_trip(wide), Ok(wide));
        assert_eq!(round_trip([wide as i128; 3]), Ok([wide as i128; 3]));
        assert_eq!(round_trip(f64::from_bits(word)).map(f64::to_bits), Ok(word));
        assert_eq!(round_trip(word & 1 == 0), Ok(word & 1 == 0));
        assert_eq!(round_trip([word as u16; 13]), Ok([word as u16; 13]));
        assert_eq!(round_trip([[word as u8; 3]; 5]), Ok([[word as u8; 3]; 5]));
        let character = char::from_u32(word as u32 % 0x11_0000).unwrap_or('ß');
        assert_eq!(round_trip(character), Ok(character));
    }
    assert_eq!(round_trip(()), Ok(()));
    assert_eq!(round_trip([0_u64; 0]), Ok([]));
    assert_eq!(round_trip(NonZeroI64::MIN), Ok(NonZeroI64::MIN));
}

#[test]
fn the_rest_of_the_last_word_is_zero() {
    let mut words = [u64::MAX; 3];
    to_words(&[0xee_u8; 9], &mut words);
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    assert_eq!(bytes[..9], [0xee; 9]);
    assert_eq!(bytes[9..16], [0; 7]);
    assert_eq!(bytes[16..], [0xff; 8]);
}

#[test]
fn words_of_rounds_up_and_counts_nothing_as_nothing() {
    assert_eq!([words_of::<()>(), words_of::<u8>(), words_of::<u64>(), words_of::<[u8; 9]>()], [0, 1, 1, 2]);
}

#[test]
#[should_panic(expected = "out of range")]
fn too_few_words_are_the_callers_mistake() {
    to_words(&[0_u64; 2], &mut [0]);
}

#[test]
fn bits_that_are_no_value_are_an_error() {
    for byte in 0..=255_u8 {
        let word = [u64::from_ne_bytes([byte; 8])];
        assert_eq!(from_words::<bool>(&word).is_ok(), byte <= 1);
        assert_eq!(from_words::<NonZeroU8>(&word).is_ok(), byte != 0);
    }
    for (bits, valid) in
        [(0xd7ff, true), (0xd800, false), (0xdfff, false), (0x10_ffff, true), (0x11_0000, false)]
    {
        let mut word = [0];
        to_words(&(bits as u32), &mut word);
        assert_eq!(from_words::<char>(&word).is_ok(), valid, "{bits:x}");
    }
    assert_eq!(
        from_words::<core::num::NonZeroU128>(&[0, 0]),
        Err(InvalidBits::of::<core::num::NonZeroU128>())
    );
}

#[test]
fn the_error_names_the_type() {
    assert_eq!(InvalidBits::of::<bool>().to_string(), "the bits in shared memory are no valid `bool`");
    assert_eq!(
        InvalidBits::of::<[[u8; 2]; 3]>().to_string(),
        "the bits in shared memory are no valid `[[u8; 2]; 3]`"
    );
    assert_eq!(format!("{:?}", InvalidBits::of::<char>()), "InvalidBits(char)");
}

#[test]
fn a_value_of_64_kib_fits_a_small_stack() {
    type Large = [u64; 8192];
    let thread = std::thread::Builder::new().stack_size(512 * 1024).spawn(|| {
        let mut words = vec![0; words_of::<Large>()];
        to_words::<Large>(&[7; 8192], &mut words);
        from_words::<Large>(&words).is_ok_and(|value| value.iter().all(|&word| word == 7))
    });
    assert!(thread.expect("a thread starts").join().expect("the stack was large enough"));
}

#[test]
fn a_description_names_fields_offsets_size_and_alignment() {
    assert_eq!(ORDER.describe(), ORDER_TEXT);
    assert_eq!(NOTHING.describe(), "Nothing {} 0 bytes align 1");
    assert_eq!(<[[u16; 3]; 2]>::LAYOUT.describe(), "[[u16; 3]; 2] 12 bytes align 2");
    assert_eq!(<()>::LAYOUT.describe(), "() 0 bytes align 1");
    assert_eq!(NonZeroU8::LAYOUT.describe(), "NonZeroU8 1 bytes align 1");
}

#[test]
fn the_fingerprint_is_fnv_1a_of_the_description_and_never_changes() {
    // The published vectors of the hash.
    for (text, hash) in
        [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
    {
        let mut fnv = Fnv1a(Fnv1a::OFFSET_BASIS);
        assert!(fnv.write_str(text).is_ok());
        assert_eq!(fnv.0, hash, "{text}");
    }
    // Segments hold these: another value here is another segment format.
    assert_eq!(u64::LAYOUT.fingerprint(), 0xa150_2ded_cf5f_931c);
    assert_eq!(ORDER.fingerprint(), 0x945c_4a8e_6a97_690a);
}

#[test]
fn different_types_have_different_fingerprints() {
    let layouts = [
        u8::LAYOUT,
        i8::LAYOUT,
        bool::LAYOUT,
        u32::LAYOUT,
        char::LAYOUT,
        f32::LAYOUT,
        u64::LAYOUT,
        usize::LAYOUT,
        <[u8; 4]>::LAYOUT,
        <[u8; 5]>::LAYOUT,
        <[[u8; 2]; 2]>::LAYOUT,
        &SIDE,
        &ADDRESS,
        &ADDRESSES,
        &ORDER,
        &NOTHING,
    ];
    let mut fingerprints = layouts.map(Layout::fingerprint).to_vec();
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), layouts.len());
}

#[test]
fn a_description_that_does_not_fit_ends_in_a_mark() {
    static NAME: Layout = Layout::structure::<u64>("Größe", &[Field::new("ä", 0, u64::LAYOUT)]);
    let whole = NAME.describe();
    assert_eq!(NAME.describe_within(whole.len()), whole);
    for limit in 0..whole.len() {
        let cut = NAME.describe_within(limit);
        assert!(cut.len() <= limit, "{cut}");
        match cut.strip_suffix('…') {
            Some(start) => assert!(whole.starts_with(start) && start.len() + 3 <= limit),
            None => assert!(cut.is_empty() && limit < 3),
        }
    }
}

#[test]
fn the_first_difference_is_named() {
    let size = " 16 bytes align 8";
    let cases = [
        (
            "Order { id: u64 @0, qty: u32 @8, tag: u32 @12 }",
            "Order { id: u64 @0, qty: u64 @8 }",
            "field `qty`: the segment has u32 at offset 8, this program expects u64 at offset 8",
        ),
        (
            "Order { id: u64 @0 }",
            "Order { id: u64 @0, qty: u64 @8 }",
            "field `qty`: the segment has no such field, this program expects u64 at offset 8",
        ),
        (
            "Order { id: u64 @0, b: u32 @8 }",
            "Order { id: u64 @0, a: u32 @8, b: u32 @12 }",
            "field `a`: the segment has no such field, this program expects u32 at offset 8",
        ),
        (
            "Order { id: u64 @0, qty: [u8; 8] @8 }",
            "Order { id: u64 @0 }",
            "field `qty`: the segment has [u8; 8] at offset 8, this program has no such field",
        ),
        (
            "Order { a: u32 @0, b: u32 @4 }",
            "Order { b: u32 @0 }",
            "field `a`: the segment has u32 at offset 0, this program has no such field",
        ),
        (
            "Order { b: u32 @0, a: u32 @4 }",
            "Order { a: u32 @0, b: u32 @4 }",
            "field `a`: the segment has u32 at offset 4, this program expects u32 at offset 0",
        ),
        (
            "Order { qty: u32 @0 }",
            "Order { amount: u64 @0 }",
            "field `amount`: in its place the segment has `qty`, u32 at offset 0; this program expects u64 at offset 0",
        ),
        (
            "Order { a: u32 @0 }",
            "Invoice { a: u32 @0 }",
            "the segment has struct `Order`, this program expects struct `Invoice`",
        ),
        ("u32", "f32", "the segment has u32, this program expects f32"),
        ("u32", "u32 { a: u8 @0 }", "the segment has u32, this program expects struct `u32`"),
        ("[u32; 4]", "[u32; 5]", "the segment has [u32; 4], this program expects [u32; 5]"),
        (
            "Order { grid: [[P { x: f32 @0 }; 2]; 2] @0 }",
            "Order { grid: [[P { x: f32 @0 }; 3]; 2] @0 }",
            "field `grid`: the segment has [[P; 2]; 2] at offset 0, this program expects [[P; 3]; 2] at offset 0",
        ),
        (
            "Order { grid: [[P { x: f32 @0 }; 2]; 2] @0 }",
            "Order { grid: [[P { x: f64 @0 }; 2]; 2] @0 }",
            "field `grid[][].x`: the segment has f32 at offset 0 of `P`, this program expects f64 at offset 0 of `P`",
        ),
        (
            "Order { to: Address { zip: u32 @0, no: u32 @4 } @0 }",
            "Order { to: Address { zip: u32 @0, no: i32 @4 } @0 }",
            "field `to.no`: the segment has u32 at offset 4 of `Address`, this program expects i32 at offset 4 of `Address`",
        ),
        (
            "Order { to: Address { zip: u32 @0 } @0 }",
            "Order { to: u32 @0 }",
            "field `to`: the segment has struct `Address` at offset 0, this program expects u32 at offset 0",
        ),
        (
            "Side as u8 { Buy = 0 }",
            "Side as u16 { Buy = 0 }",
            "the segment stores `Side` as u8, this program as u16",
        ),
        (
            "Side as i8 { Buy = -1, Sell = 1 }",
            "Side as i8 { Buy = 0, Sell = 1 }",
            "variant `Buy` of `Side`: the segment has -1, this program expects 0",
        ),
        (
            "Side as u8 { Buy = 0 }",
            "Side as u8 { Buy = 0, Sell = 1 }",
            "variant `Sell` of `Side`: the segment has no such variant, this program expects 1",
        ),
        (
            "A { side: Side as u8 { Buy = 0, Sell = 1 } @0 }",
            "A { side: Side as u8 { Buy = 0 } @0 }",
            "field `side`: variant `Sell` of `Side`: the segment has 1, this program has no such variant",
        ),
        (
            "A {}",
            "A { a: u8 @0 }",
            "field `a`: the segment has no such field, this program expects u8 at offset 0",
        ),
    ];
    for (stored, ours, expected) in cases {
        assert_eq!(difference(&format!("{stored}{size}"), &format!("{ours}{size}")), expected);
    }
}

#[test]
fn a_difference_of_size_or_alignment_alone_is_named() {
    let ours = "A { a: usize @0 } 8 bytes align 8";
    assert_eq!(
        difference("A { a: usize @0 } 4 bytes align 4", ours),
        "`A` has 4 bytes in the segment and 8 in this program"
    );
    assert_eq!(
        difference("A { a: usize @0 } 8 bytes align 4", ours),
        "`A` is aligned to 4 bytes in the segment and to 8 in this program"
    );
}

#[test]
fn a_text_that_cannot_be_read_is_shown_without_control_characters() {
    assert_eq!(
        difference("\u{1b}[2Jwhat\n is \u{202e}this", "u8 1 bytes align 1"),
        "the descriptions cannot be compared field by field: the segment says `\\u{1b}[2Jwhat\\n is \\u{202e}this`, \
         this program expects `u8 1 bytes align 1`"
    );
    assert_eq!(
        difference("", "u8 1 bytes align 1"),
        "the segment does not describe its type, this program expects `u8 1 bytes align 1`"
    );
    assert!(difference("u8 1 bytes align 1", "u8 1 bytes align 1").starts_with("there is none"));
}

fn says_cut(answer: &str) -> bool {
    answer.starts_with("the segment's description of its type is cut after ")
        || answer.starts_with("the segment does not describe its type")
}

#[test]
fn a_cut_copy_of_our_own_text_never_names_a_difference() {
    for text in TEXTS {
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            for mark in ["", "…"] {
                let answer = difference(&format!("{}{mark}", &text[..end]), text);
                assert!(says_cut(&answer), "{}{mark}: {answer}", &text[..end]);
            }
        }
    }
}

#[test]
fn a_cut_text_names_the_same_part_or_the_cut() {
    let part = |answer: &str| answer.split("the segment").next().map(str::to_owned);
    for stored in TEXTS {
        for ours in TEXTS.into_iter().filter(|&ours| ours != stored) {
            let full = difference(stored, ours);
            for end in (0..stored.len()).filter(|&end| stored.is_char_boundary(end)) {
                let cut = difference(&format!("{}…", &stored[..end]), ours);
                // Whether a field is missing or has another name can only be told at the end of the list.
                let undecided = cut.contains("in its place the segment has");
                assert!(
                    part(&cut) == part(&full) || undecided || says_cut(&cut),
                    "{}…: {cut}\nin full: {full}",
                    &stored[..end]
                );
            }
        }
    }
}

#[test]
fn foreign_texts_never_cause_a_panic_or_a_long_answer() {
    let mut random = Random::new();
    let pieces = [
        " ",
        "{",
        "}",
        "[",
        "]",
        "; ",
        ", ",
        ": ",
        " @",
        " = ",
        " as ",
        " {}",
        " { ",
        " }",
        "-",
        "0",
        "18446744073709551616",
        " bytes align ",
        "…",
        "u8",
        "Order",
        "ß",
        "\u{1b}",
        "\u{202e}",
        "\0",
        "\u{10ffff}",
        "qty: u32 @8",
        "`",
        "'",
        "\\",
    ];
    for round in 0..if cfg!(miri) { 50 } else { 20_000 } {
        let ours = random.pick(&TEXTS);
        let mut stored = random.pick(&TEXTS).to_owned();
        for _ in 0..random.below(8) {
            let place = (0..=random.below(stored.len() + 1).min(stored.len()))
                .rev()
                .find(|&at| stored.is_char_boundary(at))
                .unwrap_or(0);
            match random.below(4) {
                0 => stored.truncate(place),
                1 => stored.insert_str(place, random.pick(&pieces)),
                2 if place < stored.len() => drop(stored.remove(place)),
                _ => {
                    let tail = stored[place..].to_owned();
                    stored.push_str(&tail);
                }
            }
        }
        if round % 10 == 0 {
            let bytes: Vec<u8> = (0..random.below(300)).map(|_| random.word() as u8).collect();
            stored = String::from_utf8_lossy(&bytes).into_owned();
        }
        for answer in [difference(&stored, ours), difference(ours, &stored), difference(&stored, &stored)] {
            assert!(!answer.is_empty() && answer.len() < 4096, "{} bytes for {stored:?}", answer.len());
            assert!(!answer.contains(char::is_control), "{answer:?} for {stored:?}");
        }
    }
}

#[test]
fn made_up_depth_and_length_cost_nothing() {
    let ours = "u8 1 bytes align 1";
    let nested = "A { a: ".repeat(100_000);
    let long = format!("A {{ {} }} 8 bytes align 8", vec!["a: u8 @0"; 1_000_000].join(", "));
    for stored in [
        "[".repeat(1_000_000),
        nested,
        long,
        "x".repeat(5_000_000),
        "9".repeat(1_000_000),
        "ß".repeat(100_001),
    ] {
        let thread = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            (
                difference(&stored, ours).len(),
                difference(ours, &stored).len(),
                difference(&stored, &format!("{stored}x")).len(),
            )
        });
        let (one, two, three) = thread.expect("a thread starts").join().expect("no panic");
        assert!(one < 4096 && two < 4096 && three < 4096);
    }
}
