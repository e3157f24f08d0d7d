//! Bytes as lower-case hexadecimal digits, and back.
//! Must not take what it would not write itself: two spellings of one key would be two keys.

#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    let digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
    digits.collect()
}

#[must_use]
pub fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 2 * BYTES || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_and_nothing_else() {
        assert_eq!(hex(&[]), "");
        assert_eq!(hex(&[0, 0x0f, 0xa0, 0xff]), "000fa0ff");
        assert_eq!(from_hex("000fa0ff"), Some([0, 0x0f, 0xa0, 0xff]));
        for odd in [
            "000fa0f",
            "000FA0FF",
            "000fa0fg",
            "+0+f+a+f",
            "000fa0ff00",
            "",
        ] {
            assert_eq!(from_hex::<4>(odd), None, "{odd}");
        }
    }
}
