//! Masks secret values in a stream of bytes, however it is cut into pieces.
//! Must not hold back more than a secret's length, and must not change anything else.

/// Shorter values would mask ordinary words.
const SECRET_BYTES_MIN: usize = 6;
const MASK: &[u8] = b"***";

#[derive(Debug, Default)]
pub(super) struct Redactor {
    secrets: Vec<Vec<u8>>,
    held: Vec<u8>,
}

impl Redactor {
    pub(super) fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut secrets: Vec<Vec<u8>> = values
            .filter(|value| value.len() >= SECRET_BYTES_MIN)
            .map(|value| value.as_bytes().to_vec())
            .collect();
        // The longest first, so that a secret that starts with another one is masked whole.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self {
            secrets,
            held: Vec::new(),
        }
    }

    /// What of `bytes` and of what was held back can be shown now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.secrets.is_empty() {
            return bytes.to_vec();
        }
        self.held.extend_from_slice(bytes);
        self.mask(false)
    }

    /// The rest, at the end of the stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.mask(true)
    }

    fn mask(&mut self, last: bool) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let mut shown = Vec::with_capacity(held.len());
        let mut at = 0;
        while at < held.len() {
            let rest = &held[at..];
            // Before a shorter one is masked: what follows may make a longer one of it, whose end
            // would then be to be seen.
            let begins = |secret: &Vec<u8>| secret.len() > rest.len() && secret.starts_with(rest);
            if !last && self.secrets.iter().any(begins) {
                self.held = rest.to_vec();
                break;
            } else if let Some(secret) = self.secrets.iter().find(|secret| rest.starts_with(secret))
            {
                shown.extend_from_slice(MASK);
                at += secret.len();
            } else {
                shown.push(held[at]);
                at += 1;
            }
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the cuts, the secret never shows and the rest is untouched.
    #[test]
    fn secrets_are_masked_across_every_cut() {
        let text = b"a sk-secret-1 b sk-secret sk-secret-1";
        for size in 1..=text.len() {
            let mut redactor = Redactor::new(["sk-secret-1", "short"].into_iter());
            let mut shown = Vec::new();
            for piece in text.chunks(size) {
                shown.extend(redactor.push(piece));
            }
            shown.extend(redactor.finish());
            assert_eq!(shown, b"a *** b sk-secret ***", "pieces of {size}");
        }
    }

    /// Found by the fuzz target `masked`: the end of the longer one was shown.
    #[test]
    fn a_secret_that_starts_with_another_is_masked_whole_across_every_cut() {
        let text = b"sk-secret-1-long sk-secret-1-lo sk-secret-1";
        for size in 1..=text.len() {
            let mut redactor = Redactor::new(["sk-secret-1", "sk-secret-1-long"].into_iter());
            let mut shown = Vec::new();
            for piece in text.chunks(size) {
                shown.extend(redactor.push(piece));
            }
            shown.extend(redactor.finish());
            assert_eq!(shown, b"*** ***-lo ***", "pieces of {size}");
        }
    }

    #[test]
    fn short_values_are_not_secrets() {
        let mut redactor = Redactor::new(["yes"].into_iter());
        assert_eq!(redactor.push(b"yes yes"), b"yes yes");
    }
}
