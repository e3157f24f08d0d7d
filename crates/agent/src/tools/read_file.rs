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
    known::Seen,
    open::open,
    place::{Real, failed},
    schema, spill,
};

/// What is not told whole was not read: a page and its header are.
const LINES_MAX: usize = spill::LINES_MAX - 1;
const HEADER_CHARS: usize = 100;
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
    help: "Reads lines of a text file in the workspace, from offset on as many as there is room \
           for: 499, or 10000 characters. A header says which lines of how many these are; the \
           lines follow as they are, without numbers. Lines longer than 2000 characters are cut; \
           read_file_slice reads the rest of one.",
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
    /// How many lines to read, at most 499.
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
    let wanted = Wanted {
        first,
        lines: input.limit.unwrap_or(LINES_MAX).clamp(1, LINES_MAX),
        chars: spill::CHARS_MAX.saturating_sub(shown.chars().count() + HEADER_CHARS),
    };
    let read = Page::read(path, &wanted).map_err(|error| failed("read", shown, &error))?;
    if read.binary {
        let size = read.bytes;
        return Err(Wrong::new(format!(
            "{shown} is no text: {size} bytes of something else"
        )));
    }
    if read.whole {
        place.known().saw(path, &read.seen(first));
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

/// Which lines, and how many at most.
struct Wanted {
    first: usize,
    lines: usize,
    chars: usize,
}

struct Page {
    lines: Vec<String>,
    chars: usize,
    /// Numbers of lines that are not shown as they are.
    cut: Vec<usize>,
    /// There is no room for another line.
    full: bool,
    total: usize,
    bytes: u64,
    hash: u64,
    binary: bool,
    /// All of it was read.
    whole: bool,
}

impl Page {
    fn read(path: &Path, wanted: &Wanted) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let mut input = BufReader::with_capacity(64 << 10, file);
        let mut hasher = DefaultHasher::new();
        let mut page = Self {
            lines: Vec::new(),
            chars: 0,
            cut: Vec::new(),
            full: false,
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
                page.end_line(&mut line, wanted);
            }
        }
        if line.begun {
            page.end_line(&mut line, wanted);
        }
        page.hash = hasher.finish();
        Ok(page)
    }

    fn end_line(&mut self, line: &mut Line, wanted: &Wanted) {
        self.total += 1;
        let line = std::mem::take(line);
        if self.total < wanted.first || self.full {
            return;
        }
        let (text, is_cut) = line.shown(self.total);
        let chars = self.chars + text.chars().count() + 1;
        self.full = self.lines.len() == wanted.lines || chars > wanted.chars;
        // One line has room in every page.
        if !self.full || self.lines.is_empty() {
            self.chars = chars;
            self.lines.push(text);
            self.cut.extend(is_cut.then_some(self.total));
        }
    }

    /// What the model has seen when it has this page.
    fn seen(&self, first: usize) -> Seen {
        let mut lines = Vec::new();
        let mut next = first;
        for cut in &self.cut {
            lines.push(next..=cut - 1);
            next = cut + 1;
        }
        lines.push(next..=first + self.lines.len() - 1);
        lines.retain(|lines| !lines.is_empty());
        Seen {
            hash: self.hash,
            total: self.total,
            lines,
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

    /// And whether it is cut.
    fn shown(&self, number: usize) -> (String, bool) {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.strip_suffix('\r').unwrap_or(&text);
        let chars = text.chars().count() + self.more;
        match text.char_indices().nth(LINE_CHARS_MAX) {
            None => (text.to_owned(), false),
            Some((at, _)) => {
                let text = format!(
                    "{} [line {number} is cut: it has {chars} characters; read_file_slice reads \
                     the rest]",
                    &text[..at]
                );
                (text, true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tools::testing::Bench;

    #[tokio::test]
    async fn a_page_says_what_of_the_file_it_is() {
        let bench = Bench::new();
        let lines: Vec<String> = (1..=1200).map(|n| format!("line {n}")).collect();
        bench.write("a.txt", lines.join("\n") + "\n");
        let read = |input| bench.told("read_file", input);
        let first = read(json!({"path": "a.txt"})).await;
        assert!(
            first.starts_with("a.txt: lines 1-499 of 1200\nline 1\nline 2\n"),
            "{first}"
        );
        assert!(first.ends_with("line 499"));
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

    /// What is told of it is told whole, so nothing of a page is left out again.
    #[tokio::test]
    async fn a_page_has_room_where_results_have() {
        let bench = Bench::new();
        let lines: Vec<String> = (1..=300)
            .map(|n| format!("{n} {}", "é".repeat(90)))
            .collect();
        bench.write("wide", lines.join("\n"));
        let mut next = 1;
        let mut pages = 0;
        while next <= 300 {
            let told = bench
                .told("read_file", json!({"path": "wide", "offset": next}))
                .await;
            assert_eq!(bench.place.spill.fit("read_file", told.clone()), told);
            let header = told.lines().next().unwrap();
            let shown = told.lines().count() - 1;
            assert_eq!(
                header,
                format!("wide: lines {next}-{} of 300", next + shown - 1)
            );
            next += shown;
            pages += 1;
        }
        assert_eq!(pages, 3);
    }
}
