//! Which build of which program an ELF object is: what is read from its bytes.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Two objects with equal `Build`s have the same code at the same addresses.
///
/// The build id alone is not enough: tools that move code around in a finished executable (BOLT, packers)
/// keep it, so the segments' addresses and sizes are compared too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Build {
    /// The linker's build id; empty if it wrote none.
    pub(crate) id: Vec<u8>,
    /// Digest of the program headers, and of the code if there is no build id.
    pub(crate) layout: u64,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "/{:016x}", self.layout)
    }
}

/// A digest that tells builds apart; it protects against accidents, not against forgery.
#[derive(Debug)]
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub(crate) fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(u64::from_le_bytes(word.try_into().expect("a chunk of 8 bytes")));
        }
        words.remainder().iter().for_each(|byte| self.add(u64::from(*byte)));
        self.add(bytes.len() as u64);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }
}

/// The build id in the bytes of a `PT_NOTE` segment, if it is there.
pub(crate) fn id_in_notes(mut notes: &[u8], align: usize) -> Option<Vec<u8>> {
    const BUILD_ID: u32 = 3;
    let align = if align == 8 { 8 } else { 4 };
    while notes.len() >= 12 {
        let field = |at: usize| u32::from_ne_bytes(notes[at..at + 4].try_into().expect("4 bytes"));
        let (name_length, length, kind) = (field(0) as usize, field(4) as usize, field(8));
        let start = 12usize.checked_add(name_length)?.checked_next_multiple_of(align)?;
        let end = start.checked_add(length)?;
        let (name, content) = (notes.get(12..12 + name_length)?, notes.get(start..end)?);
        // Linkers write 8 to 32 bytes, `--build-id=0x...` as many as one likes.
        if kind == BUILD_ID && name == b"GNU\0" && !content.is_empty() {
            return Some(content[..content.len().min(64)].to_vec());
        }
        notes = notes.get(end.checked_next_multiple_of(align)?..)?;
    }
    None
}

/// The addresses of the table of constructors, out of the bytes of the dynamic section.
pub(crate) fn constructors_in_dynamic(dynamic: &[u8], base: usize) -> Range<usize> {
    const WORD: usize = size_of::<usize>();
    const INIT_ARRAY: usize = 25;
    const INIT_ARRAY_SIZE: usize = 27;
    let word = |bytes: &[u8]| usize::from_ne_bytes(bytes.try_into().expect("a word"));
    let value = |tag: usize| {
        let entry = dynamic.chunks_exact(2 * WORD).find(|entry| word(&entry[..WORD]) == tag)?;
        Some(word(&entry[WORD..]))
    };
    match (value(INIT_ARRAY), value(INIT_ARRAY_SIZE)) {
        (Some(start), Some(size)) => {
            let start = base.wrapping_add(start);
            start..start.wrapping_add(size)
        }
        _ => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, content: &[u8], align: usize) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_ne_bytes());
        note.extend((content.len() as u32).to_ne_bytes());
        note.extend(kind.to_ne_bytes());
        note.extend(name);
        note.resize(note.len().next_multiple_of(align), 0);
        note.extend(content);
        note.resize(note.len().next_multiple_of(align), 0);
        note
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        for align in [4, 8] {
            let notes = [note(b"GNU\0", 5, &[1; 17], align), note(b"GNU\0", 3, &[7; 20], align)].concat();
            assert_eq!(id_in_notes(&notes, align), Some(vec![7; 20]));
        }
        assert_eq!(id_in_notes(&note(b"Go\0\0", 3, &[7; 20], 4), 4), None);
    }

    #[test]
    fn broken_notes_are_no_build_id() {
        let good = note(b"GNU\0", 3, &[7; 20], 4);
        for end in 0..good.len() {
            assert_eq!(id_in_notes(&good[..end], 4), None);
        }
        assert_eq!(id_in_notes(&[0xff; 64], 4), None);
        assert_eq!(id_in_notes(&[0; 64], 4), None);
    }

    #[test]
    fn a_digest_depends_on_order_and_length() {
        let digest = |bytes: &[u8]| {
            let mut digest = Digest::default();
            digest.add_bytes(bytes);
            digest.value()
        };
        assert_ne!(digest(b"12345678abcdefgh"), digest(b"abcdefgh12345678"));
        assert_ne!(digest(b""), digest(b"\0"));
        assert_ne!(digest(b"\0"), digest(b"\0\0"));
    }
}
