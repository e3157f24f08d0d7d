//! Bytes to lines with a bound: an agent's output for its driver.
//! Must not lose count: each line knows the offset behind it, also when it was cut.

/// A line and the offset of the byte behind it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) end: u64,
    /// It was longer than the bound; the rest is in the job's output only.
    pub(crate) cut: bool,
}

#[derive(Debug)]
pub(crate) struct Lines {
    held: Vec<u8>,
    at: u64,
    bytes_max: usize,
    cut: bool,
}

impl Lines {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            held: Vec::new(),
            at: 0,
            bytes_max,
            cut: false,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.at += piece.len() as u64;
            let (text, whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = self.bytes_max.saturating_sub(self.held.len());
            self.cut |= text.len() > room;
            self.held.extend_from_slice(&text[..text.len().min(room)]);
            if whole {
                lines.extend(self.take());
            }
        }
        lines
    }

    /// What the output ended with, without a line end.
    pub(crate) fn finish(&mut self) -> Option<Line> {
        if self.held.is_empty() {
            None
        } else {
            self.take()
        }
    }

    fn take(&mut self) -> Option<Line> {
        let bytes = std::mem::take(&mut self.held);
        let cut = std::mem::take(&mut self.cut);
        let text = String::from_utf8_lossy(&bytes)
            .trim_end_matches('\r')
            .to_owned();
        Some(Line {
            text,
            end: self.at,
            cut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_whatever_the_pieces() {
        let text = b"one\n\xff two\r\n\nlong long long\nend";
        for size in 1..text.len() {
            let mut lines = Lines::new(8);
            let mut got: Vec<(String, u64, bool)> = Vec::new();
            for piece in text.chunks(size) {
                got.extend(
                    lines
                        .push(piece)
                        .into_iter()
                        .map(|l| (l.text, l.end, l.cut)),
                );
            }
            got.extend(lines.finish().map(|l| (l.text, l.end, l.cut)));
            let want = [
                ("one", 4, false),
                ("\u{fffd} two", 11, false),
                ("", 12, false),
                ("long lon", 27, true),
                ("end", 30, false),
            ];
            let want: Vec<_> = want
                .into_iter()
                .map(|(t, e, c)| (t.to_owned(), e, c))
                .collect();
            assert_eq!(got, want, "pieces of {size}");
        }
    }
}
