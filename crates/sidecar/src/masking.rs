//! Takes the real key out of what upstream answers, should it ever say it again: byte for byte, so
//! that no length changes, and however it is cut.
//! Must not hold back more than what may still become the key.

/// One stream.
pub(crate) struct Masking {
    key: Vec<u8>,
    held: Vec<u8>,
}

impl Masking {
    pub(crate) fn new(key: &str) -> Self {
        Self {
            key: key.as_bytes().to_vec(),
            held: Vec::new(),
        }
    }

    /// What of the stream can be shown so far.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        mask(&mut self.held, &self.key);
        let keep = self.may_begin();
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end: what was held back did not become the key.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The longest end of what is held that the key begins with.
    fn may_begin(&self) -> usize {
        let most = self.held.len().min(self.key.len().saturating_sub(1));
        let begins = |n: &usize| self.key.starts_with(&self.held[self.held.len() - n..]);
        (1..=most).rev().find(begins).unwrap_or(0)
    }
}

/// Whole: for a header.
pub(crate) fn mask(bytes: &mut [u8], key: &[u8]) -> bool {
    let mut found = false;
    let mut at = 0;
    while !key.is_empty() && at + key.len() <= bytes.len() {
        if bytes[at..].starts_with(key) {
            bytes[at..at + key.len()].fill(b'*');
            at += key.len();
            found = true;
        } else {
            at += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_masked_wherever_it_is_cut_and_nothing_else_changes() {
        let key = "aab-aac";
        let text = "aaab-aac aab-aab-aac aab-aaaab-aac aab";
        let want = text.replace(key, "*******");
        for at in 0..=text.len() {
            for to in at..=text.len() {
                let mut masking = Masking::new(key);
                let mut shown = Vec::new();
                for piece in [&text[..at], &text[at..to], &text[to..]] {
                    shown.extend(masking.push(piece.as_bytes()));
                }
                shown.extend(masking.finish());
                assert_eq!(String::from_utf8(shown).unwrap(), want, "{at} {to}");
            }
        }
    }

    #[test]
    fn an_event_goes_on_at_once() {
        let mut masking = Masking::new("sk-key-0123456789");
        assert_eq!(masking.push(b"data: {}\n\n"), b"data: {}\n\n");
        assert_eq!(masking.push(b"data: s"), b"data: ");
        assert_eq!(masking.push(b"o\n\n"), b"so\n\n");
    }
}
