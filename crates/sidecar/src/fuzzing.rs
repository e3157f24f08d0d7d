//! The private parsers, for `tests/programs` to fuzz: bytes in, plain data out.
//! Must not be used by the product, and must not hold logic of its own.

use crate::{masking::Masking, proxy::Asked};

/// The target that a request's head asks to be connected to, as it is written back; and whether it
/// is a request at all.
#[must_use]
pub fn asked(head: &[u8]) -> (Option<String>, bool) {
    match Asked::parse(head) {
        Asked::Connect(target) => (target.ok().map(|target| target.to_string()), true),
        Asked::Other(_) => (None, true),
        Asked::Nonsense => (None, false),
    }
}

/// What is shown of an answer that comes in these pieces.
#[must_use]
pub fn masked(key: &str, pieces: &[&[u8]]) -> Vec<u8> {
    let mut masking = Masking::new(key);
    let mut shown: Vec<u8> = pieces
        .iter()
        .flat_map(|piece| masking.push(piece))
        .collect();
    shown.extend(masking.finish());
    shown
}
