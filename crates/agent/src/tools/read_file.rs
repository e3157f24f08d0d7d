//! `read_file`: a page of a text file, read as it streams, however large the file is.
//! Must not show bytes that are no text, and must not hold more than the page.

use std::{
    hash::{DefaultHasher, Hasher},
    io::{self, BufRead, BufReader},
    path::Path,
};

use dispatch_core::rules::Group;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Place, Planned, Run, Tool, Wrong, blocking,
    open::open,
    place::{Real, failed},
    schema,
};

const LINES_USUAL: usize = 500;
const LINES_MAX: usize = 5_000;
const LINE_CHARS_MAX: usize = 2_000;
/// Of one line that is kept while it is read; the rest of it is only counted.
const LINE_BYTES_MAX: usize = 4 * LINE_CHARS_MAX;
/// What of a file is read to count its lines.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Looked through for what no text has.
const HEAD_BYTES: usize = 8 << 10;

pub(super) const TOOL: Tool = Tool {
    name: "read_file",
    line: "read a page of a text file",
    help: "Reads lines of a text file in the workspace. Without offset and limit: the first 500 \
           lines. A header says which lines of how many these are; the lines follow as they are, \
           without numbers. Lines longer than 2000 characters are cut; read_file_slice reads the \
           rest of one.",
    group: Group::Read,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The file, relative to the workspace or absolute.
    path: String,
    /// The first line to read, counted from 1.
    #[serde(default)]
    #[schemars(range(min = 1))]
    offset: Option<usize>,
    /// How many lines to read, at most 5000.
    #[serde(default)]
    #[schemars(range(min = 1))]
    limit: Option<usize>,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let file = given.place.readable(&input.path)?;
    Ok(Planned::new(vec![file.subject()], async move |run: Run| {
        blocking(move || page(&run.place, &file, &input)).await
    }))
}

fn page(place: &Place, file: &Real, input: &Input) -> Result<String, Wrong> {
    let (path, shown) = (file.path(), file.shown());
    let first = input.offset.unwrap_or(1).max(1);
    let limit = input.limit.unwrap_or(LINES_USUAL).clamp(1, LINES_MAX);
    let read = Page::read(path, first, limit).map_err(|error| failed("read", shown, &error))?;
    if read.binary {
        let size = read.bytes;
        return Err(Wrong::new(format!(
            "{shown} is no text: {size} bytes of something else"
        )));
    }
    if read.whole {
        place.knows(path, read.hash);
    }
    if read.bytes == 0 {
        return Ok(format!("{shown} is empty"));
    }
    let total = read.total;
    let more = if read.whole { "" } else { " or more" };
    if first > total {
        return Err(Wrong::new(format!(
            "{shown} has {total}{more} lines; there is no line {first}"
        )));
    }
    let last = first + read.lines.len() - 1;
    let header = format!("{shown}: lines {first}-{last} of {total}{more}\n");
    Ok(header + &read.lines.join("\n"))
}

struct Page {
    lines: Vec<String>,
    total: usize,
    bytes: u64,
    hash: u64,
    binary: bool,
    /// All of it was read.
    whole: bool,
}

impl Page {
    fn read(path: &Path, first: usize, limit: usize) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let mut input = BufReader::with_capacity(64 << 10, file);
        let mut hasher = DefaultHasher::new();
        let mut page = Self {
            lines: Vec::new(),
            total: 0,
            bytes: 0,
            hash: 0,
            binary: false,
            whole: true,
        };
        let mut line = Line::default();
        loop {
            let buffer = input.fill_buf()?;
            if buffer.is_empty() {
                break;
            }
            if page.bytes < HEAD_BYTES as u64 && buffer.contains(&0) {
                page.binary = true;
                page.bytes = size;
                return Ok(page);
            }
            if page.bytes >= FILE_BYTES_MAX {
                page.whole = false;
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |at| at + 1);
            hasher.write(&buffer[..taken]);
            line.push(&buffer[..end.unwrap_or(buffer.len())]);
            input.consume(taken);
            page.bytes += taken as u64;
            if end.is_some() {
                page.end_line(&mut line, first, limit);
            }
        }
        if line.begun {
            page.end_line(&mut line, first, limit);
        }
        page.hash = hasher.finish();
        Ok(page)
    }

    fn end_line(&mut self, line: &mut Line, first: usize, limit: usize) {
        self.total += 1;
        let line = std::mem::take(line);
        if self.total >= first && self.lines.len() < limit {
            self.lines.push(line.shown(self.total));
        }
    }
}

#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    /// Characters that are not kept.
    more: usize,
    begun: bool,
}

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        self.begun = true;
        let room = LINE_BYTES_MAX
            .saturating_sub(self.bytes.len())
            .min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        // Every character has one byte that is no continuation of another.
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        self.more += bytes[room..].iter().filter(begins).count();
    }

    fn shown(&self, number: usize) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.strip_suffix('\r').unwrap_or(&text);
        let chars = text.chars().count() + self.more;
        match text.char_indices().nth(LINE_CHARS_MAX) {
            None => text.to_owned(),
            Some((at, _)) => format!(
                "{} [line {number} is cut: it has {chars} characters; read_file_slice reads the \
                 rest]",
                &text[..at]
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tools::{place::hash, testing::Bench};

    #[tokio::test]
    async fn a_page_says_what_of_the_file_it_is() {
        let bench = Bench::new();
        let lines: Vec<String> = (1..=1200).map(|n| format!("line {n}")).collect();
        bench.write("a.txt", lines.join("\n") + "\n");
        let read = |input| bench.told("read_file", input);
        let first = read(json!({"path": "a.txt"})).await;
        assert!(
            first.starts_with("a.txt: lines 1-500 of 1200\nline 1\nline 2\n"),
            "{first}"
        );
        assert!(first.ends_with("line 500"));
        let last = read(json!({"path": "a.txt", "offset": 1199, "limit": 50})).await;
        assert_eq!(last, "a.txt: lines 1199-1200 of 1200\nline 1199\nline 1200");
        let wrong = bench
            .wrong("read_file", json!({"path": "a.txt", "offset": 1201}))
            .await;
        assert_eq!(wrong, "error: a.txt has 1200 lines; there is no line 1201");
        bench.write("empty", "");
        assert_eq!(read(json!({"path": "empty"})).await, "empty is empty");
        bench.write("crlf", "a\r\nb");
        assert_eq!(
            read(json!({"path": "crlf"})).await,
            "crlf: lines 1-2 of 2\na\nb"
        );
    }

    #[tokio::test]
    async fn what_is_no_text_or_not_there_is_told() {
        let bench = Bench::new();
        bench.write("b", [0x7f, b'E', b'L', b'F', 0, 1]);
        bench.write("latin", [b'a', 0xe9, b'\n']);
        let wrong = |path| bench.wrong("read_file", json!({"path": path}));
        assert_eq!(
            wrong("b").await,
            "error: b is no text: 6 bytes of something else"
        );
        assert_eq!(wrong("x").await, "error: read x: it is not there");
        assert_eq!(wrong(".").await, "error: read .: it is a directory");
        assert!(wrong("../x").await.contains("outside the workspace"));
        let latin = bench.told("read_file", json!({"path": "latin"})).await;
        assert!(latin.contains('\u{fffd}'), "{latin}");
        let bad = bench.wrong("read_file", json!({"file": "b"})).await;
        assert!(bad.contains("unknown field `file`"), "{bad}");
    }

    #[tokio::test]
    async fn a_long_line_is_cut_and_counted() {
        let bench = Bench::new();
        bench.write("long", format!("{}\nshort", "é".repeat(50_000)));
        let told = bench.told("read_file", json!({"path": "long"})).await;
        assert!(
            told.contains("[line 1 is cut: it has 50000 characters;"),
            "{told}"
        );
        assert!(told.ends_with("\nshort") && told.chars().count() < 2_200);
    }

    #[tokio::test]
    async fn what_was_read_is_known() {
        let bench = Bench::new();
        let content = "é\n".repeat(100_000);
        bench.write("a", &content);
        bench
            .told("read_file", json!({"path": "a", "limit": 1}))
            .await;
        let known = bench.place.known(&bench.path("a"));
        assert_eq!(known, Some(hash(content.as_bytes())));
    }
}
