//! Functions that must bear any bytes.
//!
//! A target is a function here, a line in [`TARGETS`], and a folder `corpus/NAME` with at least one input.
//! `cargo test` replays all corpora; `cargo xtask fuzz NAME 5m` looks for new inputs. An input that once
//! failed stays in the corpus under a name that says what it was.
#![forbid(unsafe_code)]

use std::hint::black_box;

use crossproc_atomic::Owner;

/// A named function that must return, and must not panic, whatever the bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of the folder in `corpus`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[Target { name: "owner", run: owner }];

/// An owner word of shared memory, with any bits in it: either no identity, or one that is written back as
/// the same bits.
pub fn owner(bytes: &[u8]) {
    for word in bytes.chunks_exact(8) {
        let bits = word.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        // Hidden from the optimizer, which else proves this function away.
        match Owner::from_bits(black_box(bits)) {
            Some(owner) => {
                assert_eq!(owner.bits(), bits);
                assert_ne!(owner.generation(), 0);
                assert_eq!(Owner::new(owner.slot(), owner.generation()), Some(owner));
            }
            None => assert!(bits >> 63 == 1 || bits >> 16 == 0, "{bits:#x} is an identity"),
        }
    }
}
