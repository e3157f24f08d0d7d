//! Inputs out of inputs: bytes, pieces, words, and the parts of JSON lines.
//! Must not know what a target does with them.

use serde_json::{Value, json};

use super::Random;

/// Pieces of JSON, numbers at the edges, and texts that parsers trip over.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "false",
    "-1",
    "0",
    "1e300",
    "1e-300",
    "-0.0",
    "0.1",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
    "\\u0000",
    "\\ud800",
    "\\",
    "\n",
    "\r",
    "\r\n",
    "\t",
    "\0",
    " ",
    "/",
    "//",
    "..",
    "-",
    "--",
    "*",
    "|",
    "=",
    "#",
    "\u{feff}",
    "\u{fffd}",
    "\u{1f600}",
    "\u{e9}",
    "e\u{301}",
    "\u{202e}",
];
const BAD_UTF8: &[&[u8]] = &[
    b"\xff",
    b"\xc3",
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"\xc0\x80",
];
const CHANGES_MAX: usize = 5;
const DEPTHS: [usize; 4] = [3, 120, 130, 4000];

#[derive(Debug)]
pub(super) struct Mutator<'a> {
    pub(super) random: &'a mut Random,
    pub(super) corpus: &'a [Vec<u8>],
    pub(super) words: &'static [&'static str],
}

impl Mutator<'_> {
    pub(super) fn mutant(&mut self, bytes_max: usize) -> Vec<u8> {
        let mut input = self.other();
        for _ in 0..=self.random.below(CHANGES_MAX) {
            self.change(&mut input);
        }
        input.truncate(bytes_max);
        input
    }

    fn other(&mut self) -> Vec<u8> {
        let at = self.random.below(self.corpus.len());
        self.corpus.get(at).cloned().unwrap_or_default()
    }

    /// A stretch of the input; short ones are the likely ones.
    fn span(&mut self, len: usize) -> (usize, usize) {
        let from = self.random.below(len + 1);
        let most = if self.random.below(4) == 0 { len } else { 16 };
        (from, (from + self.random.below(most + 1)).min(len))
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.below(input.len() + 1);
        match self.random.below(16) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.below(8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.random.bits().to_le_bytes()[0];
                }
            }
            2 => {
                let (from, to) = self.span(input.len());
                input.drain(from..to);
            }
            3 => {
                let (from, to) = self.span(input.len());
                let piece = input[from..to].to_vec();
                insert(input, at, &piece);
            }
            4 => {
                let other = self.other();
                let (from, to) = self.span(other.len());
                insert(input, at, &other[from..to]);
            }
            5 => {
                let other = self.other();
                let from = self.random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => input.truncate(at),
            7 | 8 => {
                let word = self.word();
                insert(input, at, word.as_bytes());
            }
            9 => {
                let (from, to) = self.span(input.len());
                let word = self.word();
                input.splice(from..to, word.bytes());
            }
            10 => insert(input, at, BAD_UTF8[self.random.below(BAD_UTF8.len())]),
            11 => self.lines(input),
            12 => self.number(input, at),
            13 => {
                let deep = self.word().repeat(self.depth());
                insert(input, at, deep.as_bytes());
            }
            _ => self.json(input),
        }
    }

    /// Mostly a few; sometimes more than any limit or stack should have to take.
    fn depth(&mut self) -> usize {
        DEPTHS[self.random.below(DEPTHS.len())]
    }

    fn word(&mut self) -> &'static str {
        let own = !self.words.is_empty() && self.random.below(2) == 0;
        let list = if own { self.words } else { WORDS };
        self.random.pick(list).unwrap_or_default()
    }

    /// The next number becomes another one of any size.
    fn number(&mut self, input: &mut Vec<u8>, at: usize) {
        let digit = |b: &u8| b.is_ascii_digit();
        let Some(from) = input[at..].iter().position(digit).map(|skip| at + skip) else {
            return;
        };
        let len = input[from..].iter().take_while(|b| digit(b)).count();
        let digits = self.random.bits().to_string();
        let kept = 1 + self.random.below(digits.len());
        let dot = if self.random.below(3) == 0 { "0." } else { "" };
        let number = format!("{dot}{}", &digits[..kept]);
        input.splice(from..from + len, number.bytes());
    }

    /// Lines said twice, swapped or left out: the order of what is said is input too.
    fn lines(&mut self, input: &mut Vec<u8>) {
        let mut lines: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let (a, b) = (
            self.random.below(lines.len()),
            self.random.below(lines.len()),
        );
        match self.random.below(3) {
            0 => lines.swap(a, b),
            1 => {
                let copy = lines[a].clone();
                lines.insert(b, copy);
            }
            _ => {
                lines.remove(a);
            }
        }
        *input = lines.join(&b'\n');
    }

    /// A part of a line of JSON becomes something else, and the line stays JSON.
    fn json(&mut self, input: &mut Vec<u8>) {
        let mut lines: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let at = self.random.below(lines.len());
        let (prefix, body) = match lines[at].strip_prefix(b"< ") {
            Some(body) => (&b"< "[..], body),
            None => (&b""[..], lines[at].as_slice()),
        };
        let Ok(mut value) = serde_json::from_slice::<Value>(body) else {
            return;
        };
        let other = self.odd_value(&value);
        self.graft(&mut value, other);
        lines[at] = [prefix, value.to_string().as_bytes()].concat();
        *input = lines.join(&b'\n');
    }

    fn odd_value(&mut self, whole: &Value) -> Value {
        match self.random.below(14) {
            0 => Value::Null,
            1 => json!(-1),
            2 => json!(u64::MAX),
            3 => json!(1e300),
            4 => json!(f64::from(u32::try_from(self.random.below(1 << 30)).unwrap_or(0)) / 997.0),
            5 => json!(""),
            6 => json!(true),
            7 => json!([]),
            8 => json!({"error": [], "type": {}, "text": 1}),
            9 => whole.clone(),
            10 => json!("\u{1f600}|9999999999 try again in 9e9 days status 429 \u{0}".repeat(3)),
            11 => {
                let depth = DEPTHS[self.random.below(2)];
                (0..depth).fold(Value::Null, |inner, _| json!([inner]))
            }
            12 => json!("x".repeat(self.depth())),
            _ => json!(self.word()),
        }
    }

    /// Walks down to a part, and puts the other there, or takes the part away.
    fn graft(&mut self, value: &mut Value, other: Value) {
        let stop = self.random.below(4) == 0;
        match value {
            Value::Object(map) if !stop && !map.is_empty() => {
                let at = self.random.below(map.len());
                let Some(key) = map.keys().nth(at).cloned() else {
                    return;
                };
                match self.random.below(12) {
                    0 => {
                        map.remove(&key);
                    }
                    1 => {
                        let name = self.word().to_owned();
                        map.insert(name, other);
                    }
                    _ => {
                        if let Some(part) = map.get_mut(&key) {
                            self.graft(part, other);
                        }
                    }
                }
            }
            Value::Array(list) if !stop && !list.is_empty() => {
                let at = self.random.below(list.len());
                if self.random.below(4) == 0 {
                    list.insert(at, other);
                } else {
                    self.graft(&mut list[at], other);
                }
            }
            part => *part = other,
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, piece.iter().copied());
}
