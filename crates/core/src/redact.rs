//! Masks secrets in bytes and texts, however they are cut: registered values and common token shapes.
//! Must not hold back more than what may still become a secret, and must not change anything else.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use crate::event::Kind;

const MASK: &[u8] = b"***";
/// Shorter values would mask ordinary words.
const VALUE_BYTES_MIN: usize = 6;
/// The same for one line of a value that has several.
const LINE_BYTES_MIN: usize = 8;
/// The longest first part of a web token: what is held back until its second part begins.
const JWT_HEADER_BYTES_MAX: usize = 1024;
/// Each of the first two parts of a web token; shorter ones are words with dots.
const JWT_PART_BYTES_MIN: usize = 10;
/// No token and no key is longer: what goes on after it is shown again.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// What is held back for a shape at most: the first part of a web token and the start of its second.
/// A registered value holds back less than its own length.
pub const SHAPE_HELD_BYTES_MAX: usize = JWT_HEADER_BYTES_MAX + 4 + JWT_PART_BYTES_MIN;
/// One bit for each pair of bytes.
const PAIR_WORDS: usize = (1 << 16) / 64;

/// A kind of token: one of its starts, then at least so many bytes of its alphabet.
struct Shape {
    starts: &'static [&'static [u8]],
    /// Of the bytes that decide that it is one.
    alphabet: fn(u8) -> bool,
    bytes_min: usize,
    /// What else is masked: of which alphabet and how many bytes after the start.
    rest: fn(u8) -> bool,
    bytes_max: usize,
    /// Only where no word goes on: `disk-` ends like a key begins.
    alone: bool,
}

impl Shape {
    const fn token(
        starts: &'static [&'static [u8]],
        alphabet: fn(u8) -> bool,
        bytes_min: usize,
    ) -> Self {
        Self {
            starts,
            alphabet,
            bytes_min,
            rest: alphabet,
            bytes_max: TOKEN_BYTES_MAX,
            alone: false,
        }
    }

    const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Of one length only.
    const fn exact(mut self) -> Self {
        self.bytes_max = self.bytes_min;
        self
    }

    const fn and_then(mut self, rest: fn(u8) -> bool) -> Self {
        self.rest = rest;
        self
    }
}

fn alnum(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn word_or_dash(byte: u8) -> bool {
    word(byte) || byte == b'-'
}

fn upper(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

/// Hexadecimal, in parts.
fn handle(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'_' | b'-')
}

/// A key block as it is and as JSON writes it, its headers and its indentation included; no quote.
fn armour(byte: u8) -> bool {
    word(byte) || b"+/=\n\r\t \\:,.-".contains(&byte)
}

const SHAPES: &[Shape] = &[
    Shape::token(
        &[
            b"sk-ant-",
            b"sk-proj-",
            b"sk-svcacct-",
            b"sk-admin-",
            b"sk-or-v1-",
        ],
        word_or_dash,
        20,
    )
    .alone(),
    Shape::token(&[b"sk-"], alnum, 24)
        .and_then(word_or_dash)
        .alone(),
    Shape::token(&[b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"], word, 36),
    Shape::token(&[b"github_pat_"], word, 22),
    Shape::token(&[b"glpat-"], word_or_dash, 20),
    Shape::token(&[b"AKIA", b"ASIA"], upper, 16).exact().alone(),
    Shape::token(
        &[b"xoxa-", b"xoxb-", b"xoxp-", b"xoxr-", b"xoxs-"],
        word_or_dash,
        20,
    ),
    Shape::token(&[b"AIza"], word_or_dash, 35).exact().alone(),
    Shape::token(&[b"npm_"], alnum, 36),
    // Ours: a program's, and a run's for its agent.
    Shape::token(&[b"dt_"], handle, 49).exact().alone(),
    Shape::token(&[b"dr_"], handle, 83).alone(),
    Shape::token(KEY_STARTS, armour, 32),
];

/// All of them begin with the same eleven bytes.
const KEY_STARTS: &[&[u8]] = &[
    b"-----BEGIN PRIVATE KEY-----",
    b"-----BEGIN RSA PRIVATE KEY-----",
    b"-----BEGIN EC PRIVATE KEY-----",
    b"-----BEGIN DSA PRIVATE KEY-----",
    b"-----BEGIN OPENSSH PRIVATE KEY-----",
    b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
    b"-----BEGIN PGP PRIVATE KEY BLOCK-----",
];
const DASHES: u8 = 5;

const JWT_START: &[u8] = b"eyJ";
const JWT_SECOND: &[u8] = b".eyJ";

/// What the bytes at one place are.
enum Seen {
    Nothing,
    /// More bytes decide.
    Perhaps,
    /// So many bytes are a value.
    Value(usize),
    /// A token whose start has so many bytes; the rest of it is swallowed.
    Token(usize, Swallow),
}

/// Whether bytes begin with a token, whose start has so many of them.
enum Shaped {
    No,
    Perhaps,
    Yes(usize, Swallow),
}

/// The rest of a token that is masked already.
#[derive(Clone)]
struct Swallow {
    alphabet: fn(u8) -> bool,
    left: usize,
    dots: u8,
    /// The backslashes taken last: in front of a quote they are not the key's but JSON's.
    slashes: usize,
    key: Option<KeyEnd>,
}

/// A key block ends behind its second row of dashes: the ones around `END`.
#[derive(Clone, Default)]
struct KeyEnd {
    dashes: u8,
    rows: u8,
}

impl KeyEnd {
    fn is_behind(&mut self, byte: u8) -> bool {
        if byte != b'-' {
            self.dashes = 0;
            return false;
        }
        self.dashes += 1;
        if self.dashes == DASHES {
            self.dashes = 0;
            self.rows += 1;
        }
        self.rows == 2
    }
}

impl Swallow {
    /// How many of `bytes` belong to it, and whether it may go on behind them.
    fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (n, byte) in bytes.iter().enumerate() {
            if self.left == 0 {
                return (n, false);
            }
            if *byte == b'.' && self.dots > 0 {
                self.dots -= 1;
            } else if !(self.alphabet)(*byte) {
                return (n, false);
            }
            self.left -= 1;
            self.slashes = if *byte == b'\\' { self.slashes + 1 } else { 0 };
            if self.key.as_mut().is_some_and(|key| key.is_behind(*byte)) {
                return (n + 1, false);
            }
        }
        (bytes.len(), true)
    }
}

/// What is masked. Made once, shared by streams.
struct Patterns {
    /// By their first two bytes, the longest first: a long key has many lines.
    values: BTreeMap<[u8; 2], Vec<Vec<u8>>>,
    /// First bytes, and pairs of first bytes, that anything masked begins with.
    firsts: [bool; 256],
    pairs: Vec<u64>,
}

impl Patterns {
    fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut all: Vec<Vec<u8>> = values.flat_map(forms).collect();
        all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        let mut patterns = Self {
            values: BTreeMap::new(),
            firsts: [false; 256],
            pairs: vec![0; PAIR_WORDS],
        };
        for shape in SHAPES {
            shape.starts.iter().for_each(|start| patterns.begin(start));
        }
        patterns.begin(JWT_START);
        for value in all {
            patterns.begin(&value);
            if let [first, second, ..] = value[..] {
                let same = patterns.values.entry([first, second]);
                same.or_default().push(value);
            }
        }
        patterns
    }

    fn begin(&mut self, with: &[u8]) {
        if let [first, second, ..] = with {
            self.firsts[usize::from(*first)] = true;
            let pair = pair(*first, *second);
            self.pairs[pair / 64] |= 1 << (pair % 64);
        }
    }

    /// The next place where something masked may begin; the end when there is none.
    fn next(&self, bytes: &[u8], mut at: usize) -> usize {
        while at + 1 < bytes.len() {
            let pair = pair(bytes[at], bytes[at + 1]);
            if self.pairs[pair / 64] & (1 << (pair % 64)) != 0 {
                return at;
            }
            at += 1;
        }
        match bytes.get(at) {
            Some(last) if self.firsts[usize::from(*last)] => at,
            _ => bytes.len(),
        }
    }

    /// `dead`: up to where no web token can begin, so that a long run of its letters is read once.
    /// At the `last` bytes what may become something is nothing.
    fn look(&self, bytes: &[u8], at: usize, before: [u8; 2], dead: &mut usize, last: bool) -> Seen {
        let rest = &bytes[at..];
        let (mut perhaps, mut whole, mut found) = (false, 0, None);
        let least = [rest[0], rest.get(1).copied().unwrap_or(u8::MIN)];
        let most = [rest[0], rest.get(1).copied().unwrap_or(u8::MAX)];
        for value in self.values.range(least..=most).flat_map(|(_, same)| same) {
            if rest.len() < value.len() {
                perhaps |= value.starts_with(rest);
            } else if whole == 0 && rest.starts_with(value) {
                whole = value.len();
            }
        }
        let alone = stands_alone(before);
        for shape in SHAPES {
            if shape.starts[0][0] != rest[0] || (shape.alone && !alone) {
                continue;
            }
            match token(shape, rest) {
                Shaped::No => {}
                Shaped::Perhaps => perhaps = true,
                Shaped::Yes(start, swallow) => found = Some((start, swallow)),
            }
        }
        if alone && at >= *dead {
            match web_token(rest) {
                Ok(Shaped::No) => {}
                Ok(Shaped::Perhaps) => perhaps = true,
                Ok(Shaped::Yes(start, swallow)) => found = Some((start, swallow)),
                Err(read) => *dead = at + read,
            }
        }
        if perhaps && !last {
            return Seen::Perhaps;
        }
        if let Some((start, swallow)) = found
            && start + swallow.clone().take(&rest[start..]).0 >= whole
        {
            return Seen::Token(start, swallow);
        }
        if whole > 0 {
            return Seen::Value(whole);
        }
        Seen::Nothing
    }
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

/// Whether a token may begin behind these two bytes. The letter of a JSON escape (`\n`) and the end
/// of a terminal's colour (`[32m`) are no part of a word.
fn stands_alone([first, second]: [u8; 2]) -> bool {
    !alnum(second)
        || (first == b'\\' && b"nrtbf".contains(&second))
        || (second == b'm' && (first.is_ascii_digit() || first == b'['))
}

fn token(shape: &Shape, rest: &[u8]) -> Shaped {
    // In a long row of dashes only the last ones can begin a key.
    if rest[0] == b'-' && rest.get(usize::from(DASHES)) == Some(&b'-') {
        return Shaped::No;
    }
    let mut perhaps = false;
    for start in shape.starts {
        if rest.len() < start.len() {
            perhaps |= start.starts_with(rest);
            continue;
        }
        let Some(body) = rest.strip_prefix(*start) else {
            continue;
        };
        let read = body.iter().take(shape.bytes_min);
        let good = read.take_while(|byte| (shape.alphabet)(**byte)).count();
        if good == shape.bytes_min {
            let swallow = Swallow {
                alphabet: shape.rest,
                left: shape.bytes_max,
                dots: 0,
                slashes: 0,
                key: (start[0] == b'-').then(KeyEnd::default),
            };
            return Shaped::Yes(start.len(), swallow);
        }
        perhaps |= good == body.len();
    }
    if perhaps { Shaped::Perhaps } else { Shaped::No }
}

/// `eyJ….eyJ….…`: two JSON objects and a signature.
///
/// # Errors
/// It is none, and so many bytes were read to know it.
fn web_token(rest: &[u8]) -> Result<Shaped, usize> {
    if rest.len() < JWT_START.len() && JWT_START.starts_with(rest) {
        return Ok(Shaped::Perhaps);
    }
    if !rest.starts_with(JWT_START) {
        return Err(0);
    }
    let run = |from: usize, max: usize| {
        let letters = rest[from..].iter().take(max);
        letters.take_while(|byte| word_or_dash(**byte)).count()
    };
    let header = run(0, JWT_HEADER_BYTES_MAX);
    let second = &rest[header..];
    if header == JWT_HEADER_BYTES_MAX {
        return Err(header);
    }
    if second.len() < JWT_SECOND.len() {
        if JWT_SECOND.starts_with(second) {
            return Ok(Shaped::Perhaps);
        }
        return Err(header);
    }
    if header < JWT_PART_BYTES_MIN || !second.starts_with(JWT_SECOND) {
        return Err(header);
    }
    let body = run(header + 1, JWT_PART_BYTES_MIN);
    if body == JWT_PART_BYTES_MIN {
        let swallow = Swallow {
            alphabet: word_or_dash,
            left: TOKEN_BYTES_MAX,
            dots: 2,
            slashes: 0,
            key: None,
        };
        return Ok(Shaped::Yes(0, swallow));
    }
    if header + 1 + body == rest.len() {
        return Ok(Shaped::Perhaps);
    }
    Err(header)
}

/// How a value may be written: as it is, line by line, and inside of JSON, also twice.
fn forms(value: &str) -> Vec<Vec<u8>> {
    let mut plain = vec![value, value.trim()];
    if value.trim().contains('\n') {
        let lines = value.lines().map(str::trim);
        plain.extend(lines.filter(|line| line.len() >= LINE_BYTES_MIN));
    }
    let mut all = Vec::new();
    plain.dedup();
    for text in plain {
        all.push(text.to_owned());
        if text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"\\/".contains(&byte))
        {
            // However it is written, it is the same.
            continue;
        }
        let once = escaped(text);
        all.extend(once.iter().flat_map(|text| escaped(text)));
        all.extend(once);
    }
    all.retain(|form| form.len() >= VALUE_BYTES_MIN);
    all.into_iter().map(String::into_bytes).collect()
}

/// As writers of JSON write it: some want ASCII only, some escape slashes.
fn escaped(text: &str) -> [String; 4] {
    let plain = json(text);
    let narrow = ascii(&plain);
    let slashed = |text: &str| text.replace('/', "\\/");
    [slashed(&plain), slashed(&narrow), plain, narrow]
}

/// Without the quotes around it.
fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_ascii() {
            out.push(letter);
        } else {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// One stream, or whole texts.
#[derive(Clone)]
pub struct Redactor {
    patterns: Arc<Patterns>,
    held: Vec<u8>,
    /// The two bytes before what is held.
    before: [u8; 2],
    swallow: Option<Swallow>,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor")
            .field(
                "values",
                &self.patterns.values.values().map(Vec::len).sum::<usize>(),
            )
            .finish_non_exhaustive()
    }
}

impl Default for Redactor {
    fn default() -> Self {
        Self::shapes()
    }
}

impl Redactor {
    /// Masks these values and all shapes. Very short values are left out: they are words.
    pub fn new<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        Self::with(Arc::new(Patterns::new(values)))
    }

    /// Masks what looks like a token, whoever's it is.
    #[must_use]
    pub fn shapes() -> Self {
        static SHAPES_ONLY: OnceLock<Arc<Patterns>> = OnceLock::new();
        let patterns = SHAPES_ONLY.get_or_init(|| Arc::new(Patterns::new(std::iter::empty())));
        Self::with(Arc::clone(patterns))
    }

    fn with(patterns: Arc<Patterns>) -> Self {
        Self {
            patterns,
            held: Vec::new(),
            before: *b"\n\n",
            swallow: None,
        }
    }

    /// What of `bytes` and of what was held back can be shown now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.held.is_empty() {
            return self.mask(bytes, false);
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        self.mask(&held, false)
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.mask(&held, true)
    }

    /// A whole text; the stream is not touched.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        if self.patterns.next(text.as_bytes(), 0) == text.len() {
            return text.to_owned();
        }
        let shown = Self::with(Arc::clone(&self.patterns)).mask(text.as_bytes(), true);
        // Values are texts and shapes are ASCII, so what is left is a text again.
        String::from_utf8(shown)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    fn mask(&mut self, bytes: &[u8], last: bool) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        let (mut at, mut dead) = (0, 0);
        loop {
            if let Some(swallow) = &mut self.swallow {
                let (taken, open) = swallow.take(&bytes[at..]);
                at += taken;
                if open {
                    break;
                }
                shown.resize(shown.len() + swallow.slashes, b'\\');
                self.swallow = None;
            }
            let next = self.patterns.next(bytes, at);
            shown.extend_from_slice(&bytes[at..next]);
            at = next;
            if at == bytes.len() {
                break;
            }
            let before = self.before_in(bytes, at);
            match self.patterns.look(bytes, at, before, &mut dead, last) {
                Seen::Perhaps => break,
                Seen::Nothing => {
                    shown.push(bytes[at]);
                    at += 1;
                }
                Seen::Value(length) => {
                    shown.extend_from_slice(MASK);
                    at += length;
                }
                Seen::Token(start, swallow) => {
                    shown.extend_from_slice(MASK);
                    at += start;
                    self.swallow = Some(swallow);
                }
            }
        }
        self.before = self.before_in(bytes, at);
        self.held = bytes[at..].to_vec();
        shown
    }

    fn before_in(&self, bytes: &[u8], at: usize) -> [u8; 2] {
        match at {
            0 => self.before,
            1 => [self.before[1], bytes[0]],
            _ => [bytes[at - 2], bytes[at - 1]],
        }
    }
}

/// Members of events whose texts are words or names of ours: a mask in one would break what it leads
/// to. What could put a secret into one is refused or masked before.
const NAMES: [&str; 64] = [
    "after",
    "agent",
    "agents",
    "asked_by",
    "base",
    "base_branch",
    "behind",
    "branch",
    "by",
    "cause",
    "check",
    "checks",
    "child",
    "commit",
    "delivery",
    "driver",
    "effort",
    "expects",
    "failed",
    "from",
    "head",
    "id",
    "image",
    "key",
    "named",
    "model",
    "network",
    "outcome",
    "owner",
    "parent",
    "path",
    "permissions",
    "persona",
    "plan",
    "placements",
    "pool",
    "priority",
    "profile",
    "refname",
    "request",
    "repo",
    "repos",
    "review_base",
    "runtime",
    "session",
    "scope",
    "sha256",
    "severity",
    "short",
    "site",
    "sites",
    "slug",
    "state",
    "stopped",
    "taken",
    "template",
    "verdict",
    "task",
    "verified",
    "version",
    "why",
    "workspace",
    "wrap",
    "exit",
];
/// Those among them whose lists are names too; what else is a list holds texts.
const NAME_LISTS: [&str; 11] = [
    "after",
    "agents",
    "allow",
    "checks",
    "children",
    "mcp",
    "named",
    "placements",
    "repos",
    "sites",
    "tools",
];

impl Redactor {
    /// Everything that a person or an agent worded in an event.
    ///
    /// # Errors
    /// When it cannot be written as JSON; then it could not be stored either.
    pub fn event(&self, kind: Kind) -> Result<Kind, serde_json::Error> {
        let text = serde_json::to_string(&kind)?;
        if self.redact(&text) == text {
            return Ok(kind);
        }
        let mut value = serde_json::from_str(&text)?;
        self.value(&mut value);
        serde_json::from_value(value)
    }

    fn value(&self, value: &mut serde_json::Value) {
        use serde_json::Value;
        match value {
            Value::String(text) => *text = self.redact(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.value(value)),
            Value::Object(members) => {
                for (name, value) in members {
                    let names = match value {
                        Value::String(_) => NAMES.contains(&name.as_str()),
                        Value::Array(_) => NAME_LISTS.contains(&name.as_str()),
                        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
                    };
                    if !names {
                        self.value(value);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ask::{AskId, By},
        event::Verified,
        outcome::{Failure, Outcome, Stop},
        update::Update,
    };

    const JWT: &str =
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P";
    const KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\nQyNTUxOQAAACD=\n-----END OPENSSH PRIVATE KEY-----";

    /// One of each, made up here so that no scanner of repositories takes them for real.
    fn tokens() -> Vec<String> {
        let x = |n| "aB3".repeat(20)[..n].to_owned();
        let mut all: Vec<String> = [
            ("sk-ant-api03-", 30),
            ("sk-proj-", 20),
            ("sk-", 48),
            ("ghp_", 36),
            ("gho_", 36),
            ("ghu_", 36),
            ("ghs_", 36),
            ("ghr_", 36),
            ("github_pat_", 50),
            ("glpat-", 20),
            ("xoxb-", 24),
            ("AIza", 35),
            ("npm_", 36),
        ]
        .map(|(start, n)| format!("{start}{}", x(n)))
        .to_vec();
        all.extend([
            format!("AKIA{}", "A7".repeat(8)),
            format!("ASIA{}", "Z2".repeat(8)),
            format!("dt_0a1b2c3d_{}", "e4".repeat(20)),
            format!("dr_000000000000003f-12_{}", "5f".repeat(32)),
        ]);
        all.extend([JWT.to_owned(), KEY.to_owned(), KEY.replace('\n', "\\n")]);
        all
    }

    fn in_pieces(redactor: &Redactor, pieces: &[&[u8]]) -> String {
        let mut stream = redactor.clone();
        let mut shown = Vec::new();
        for piece in pieces {
            shown.extend(stream.push(piece));
            assert!(stream.held.len() <= SHAPE_HELD_BYTES_MAX.max(piece.len()));
        }
        shown.extend(stream.finish());
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Whole, cut in two at every place, and in pieces of every size.
    #[track_caller]
    fn shows(redactor: &Redactor, text: &str, expected: &str) {
        assert_eq!(redactor.redact(text), expected);
        let bytes = text.as_bytes();
        for cut in 0..=bytes.len() {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(in_pieces(redactor, &[a, b]), expected, "cut at {cut}");
        }
        for size in 1..bytes.len().min(70) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            assert_eq!(in_pieces(redactor, &pieces), expected, "pieces of {size}");
        }
    }

    #[test]
    fn values_are_masked_across_every_cut() {
        let redactor = Redactor::new(["sk-secret-1", "short"].into_iter());
        let text = "a sk-secret-1 b sk-secret sk-secret-1";
        shows(&redactor, text, "a *** b sk-secret ***");
    }

    /// A value that starts with another one is masked whole, wherever it is cut.
    #[test]
    fn the_longest_value_wins() {
        let redactor = Redactor::new(["sesame", "sesame-open", "open-door"].into_iter());
        shows(&redactor, "sesame-open sesame sesame-o", "*** *** ***-o");
    }

    #[test]
    fn short_values_are_not_secrets() {
        shows(
            &Redactor::new(["yes", "\n"].into_iter()),
            "yes yes",
            "yes yes",
        );
    }

    #[test]
    fn values_are_masked_as_json_writes_them() {
        let value = "p\"a/ss\\wörd\t";
        let redactor = Redactor::new([value].into_iter());
        let once = json(value);
        for form in [
            value.to_owned(),
            once.clone(),
            json(&once),
            once.replace('/', "\\/"),
            ascii(&once),
            json(&ascii(&once)),
            ascii(&once).replace('/', "\\/"),
        ] {
            shows(
                &redactor,
                &format!("{{\"a\":\"{form}\"}}"),
                "{\"a\":\"***\"}",
            );
        }
    }

    #[test]
    fn lines_of_a_value_are_masked_alone() {
        let redactor = Redactor::new(["first-line-1\n  second-line-2\nx\n"].into_iter());
        let text = "first-line-1\\n  second-line-2 and second-line-2, x\n";
        shows(&redactor, text, "***\\n  *** and ***, x\n");
    }

    #[test]
    fn tokens_are_masked_across_every_cut() {
        let redactor = Redactor::shapes();
        for token in tokens() {
            for (before, after) in [
                ("", ""),
                ("key=", " and more"),
                ("{\"t\":\"", "\",\"u\":1}"),
                ("\"line\\n", "\""),
                ("\u{1b}[32m", "\u{1b}[0m"),
            ] {
                let text = format!("{before}{token}{after}");
                shows(&redactor, &text, &format!("{before}***{after}"));
            }
        }
    }

    #[test]
    fn near_misses_are_untouched() {
        let long = "a".repeat(3000);
        let dashes = "-".repeat(200);
        let jwt_like = format!("eyJ{long}.eyJ{long}");
        for text in [
            "disk-usage-of-the-whole-machine-in-bytes",
            "task-ant-0123456789012345678901234567890",
            "sk-learn-is-a-library-for-machine-learning",
            "sk-ant-short sk-proj-x sk-",
            "ghp_short github_pat_x glpat-x npm_config_fund npm_",
            "width_ dt_count dt_0a1b2c3d_0a1b add_ dr_x dr_000000000000003f-1",
            "AKIA lower AKIAabcdefghijklmnop MAKIAAAAAAAAAAAAAAAAAA",
            "xoxb-1 AIzaShort eyJ eyJhbGciOi.eyJ eyJhbGciOiJIUzI1NiJ9.not-json-12345",
            "\"-----BEGIN PRIVATE KEY-----\" begins a key, \"-----BEGIN CERTIFICATE-----\" none",
            "e s g x n A - -- ---",
            &dashes,
            &jwt_like,
        ] {
            let redactor = Redactor::shapes();
            assert_eq!(redactor.redact(text), text);
            for size in [1, 2, 3, 7, 64, 1000] {
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
                assert_eq!(in_pieces(&redactor, &pieces), text, "pieces of {size}");
            }
        }
    }

    /// What only began like a secret is shown at the end of the stream, and not before.
    #[test]
    fn a_tail_that_became_nothing_is_shown_at_the_end() {
        let mut redactor = Redactor::new(["sesame-4b1e7c"].into_iter());
        assert_eq!(redactor.push(b"open sesame-4b"), b"open ");
        assert_eq!(redactor.finish(), b"sesame-4b");
        assert_eq!(redactor.push(b"a ghp_aaaa"), b"a ");
        assert_eq!(redactor.finish(), b"ghp_aaaa");
        assert_eq!(redactor.finish(), b"");
    }

    /// A key that is cut short inside of JSON leaves JSON behind.
    #[test]
    fn a_key_without_an_end_does_not_take_the_quote_with_it() {
        let cut = &KEY[..KEY.len() - 40];
        let line = serde_json::json!({ "a": format!("say \"{cut}\" now"), "b": 1 }).to_string();
        let expected = "{\"a\":\"say \\\"***\\\" now\",\"b\":1}";
        shows(&Redactor::shapes(), &line, expected);
    }

    /// A key that is never closed does not hide all that follows.
    #[test]
    fn what_is_swallowed_is_bounded() {
        let text = format!(
            "{}\n{}",
            KEY_STARTS[0].escape_ascii(),
            "a".repeat(3 * TOKEN_BYTES_MAX)
        );
        let shown = Redactor::shapes().redact(&text);
        assert_eq!(shown.len(), 3 + 1 + 2 * TOKEN_BYTES_MAX);
    }

    #[test]
    fn a_value_that_is_longer_than_its_token_is_masked_whole() {
        let token = format!("ghp_{}", "a".repeat(36));
        let value = format!("{token}:@host.example");
        let redactor = Redactor::new([value.as_str()].into_iter());
        shows(&redactor, &format!("<{value}> <{token}>"), "<***> <***>");
    }

    #[test]
    fn events_lose_what_was_worded_and_keep_what_names() {
        let redactor = Redactor::new(["sesame-4b1e7c", "a\"b\nc-d-e"].into_iter());
        let said = |text: &str| Kind::Said {
            update: Update::ToolCall {
                id: "1".into(),
                name: "sh".into(),
                input: text.into(),
            },
            out_offset: 7,
            chunk: None,
        };
        let quoted = serde_json::json!({"key": "a\"b\nc-d-e"}).to_string();
        let masked = redactor.event(said(&quoted)).unwrap();
        assert_eq!(masked, said("{\"key\":\"***\"}"));
        let finished = |said: &str| Kind::Finished {
            outcome: Outcome::Failed(Failure::Exit {
                code: 1,
                said: said.into(),
            }),
            verified: Verified::No,
        };
        let token = format!("use ghp_{}", "a1".repeat(18));
        assert_eq!(
            redactor.event(finished(&token)).unwrap(),
            finished("use ***")
        );
        let denied = |reason: &str| Kind::PermissionAnswered {
            ask: AskId(1),
            allow: false,
            by: By::Person,
            reason: Some(reason.into()),
            always: false,
        };
        assert_eq!(redactor.event(denied(&token)).unwrap(), denied("use ***"));
        // Nothing in it: it is the same one.
        assert_eq!(redactor.event(finished("no")).unwrap(), finished("no"));
        let ready = Kind::WorkspaceReady {
            path: "/data/sesame-4b1e7c".into(),
            base: "0".into(),
            base_branch: None,
            how: "for sesame-4b1e7c".into(),
        };
        let Kind::WorkspaceReady { path, how, .. } = redactor.event(ready).unwrap() else {
            panic!("another kind");
        };
        assert_eq!(
            (path.to_str(), how.as_str()),
            (Some("/data/sesame-4b1e7c"), "for ***")
        );
    }

    /// A secret that is one of our own words breaks no event.
    #[test]
    fn our_own_words_survive() {
        let words = [
            "completed",
            "stopped",
            "by_person",
            "finished",
            "failed",
            "nothing_said",
            "passed",
            "running",
            "claude",
            "dispatched",
            "detect",
            "change",
            "either",
            "report",
            "not_verified",
            "lingered",
            "shutdown",
            "budget",
            "check_finished",
            "rust.test",
            "outcome",
            "reason",
        ];
        let redactor = Redactor::new(words.into_iter());
        let report = crate::job::ExitReport {
            exit: crate::job::Exit::Code(0),
            stopped: Some(Stop::Shutdown),
            started_at: 1,
            ended_at: 2,
            out_bytes: 3,
            err_bytes: 4,
            leftovers: 0,
            problems: Vec::new(),
        };
        let finished = |outcome| Kind::Finished {
            outcome,
            verified: Verified::NotVerified,
        };
        for kind in [
            Kind::RunQueued {
                cause: crate::run::RunCause::Dispatched,
            },
            Kind::Started {
                site: "finished".parse().unwrap(),
                driver: crate::drivers::DriverKind::Claude,
                enforced: String::new(),
            },
            Kind::StopRequested {
                why: Stop::ByPerson,
            },
            Kind::AgentEnded {
                report,
                usage: None,
            },
            Kind::ChecksStarted {
                checks: vec!["rust.test".parse().unwrap()],
            },
            Kind::CheckFinished {
                check: "rust.test".parse().unwrap(),
                state: crate::event::CheckState::Passed,
                exit: None,
                note: String::new(),
            },
            finished(Outcome::Stopped(Stop::Lingered)),
            finished(Outcome::Failed(Failure::NothingSaid)),
            finished(Outcome::Lost),
            Kind::ChildEnded {
                child: crate::id::TaskId::from_bits(1),
                state: "completed".into(),
                child_run: 1,
                reason: String::new(),
            },
        ] {
            assert_eq!(redactor.event(kind.clone()).unwrap(), kind);
        }
        let failed = finished(Outcome::Failed(Failure::Checks {
            failed: vec!["rust.test (completed)".into()],
        }));
        let masked = format!("{:?}", redactor.event(failed).unwrap());
        assert!(masked.contains("*** (***)"), "{masked}");
    }

    #[test]
    fn debug_shows_no_value() {
        let mut redactor = Redactor::new(["hunter2-hunter2"].into_iter());
        redactor.push(b"hunter2");
        assert!(!format!("{redactor:?}").contains("hunter2"));
    }
}
