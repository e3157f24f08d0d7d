//! `read_file_slice`: a part of one line, for lines that no page shows whole.
//! Must not hold more than the part, however long the line is.

use std::{
    io::{self, BufRead, BufReader},
    path::Path,
};

use dispatch_core::rules::Group;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Given, Planned, Tool, Wrong, blocking,
    open::open,
    place::{Real, failed},
    schema,
};

const CHARS_USUAL: usize = 5_000;
/// More would only be spilled again.
const CHARS_MAX: usize = 9_000;

pub(super) const TOOL: Tool = Tool {
    name: "read_file_slice",
    line: "read a part of one long line of a file",
    help: "Reads a part of one line of a text file, by characters: for lines that read_file cuts. A \
           header says how much of the line is left after it.",
    group: Group::Read,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Input {
    /// The file, relative to the workspace or absolute.
    path: String,
    /// The line, counted from 1.
    #[schemars(range(min = 1))]
    line: usize,
    /// The first character, counted from 0.
    #[serde(default)]
    char_offset: usize,
    /// How many characters, at most 9000.
    #[serde(default)]
    #[schemars(range(min = 1))]
    char_length: Option<usize>,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let file = given.place.readable(&input.path)?;
    Ok(Planned::new(vec![file.subject()], async move |_| {
        blocking(move || slice(&file, &input)).await
    }))
}

fn slice(file: &Real, input: &Input) -> Result<String, Wrong> {
    let (path, shown) = (file.path(), file.shown());
    let length = input.char_length.unwrap_or(CHARS_USUAL).clamp(1, CHARS_MAX);
    let line = input.line.max(1);
    let found = find(path, line, input.char_offset, length)
        .map_err(|error| failed("read", shown, &error))?;
    let (begin, chars) = match found {
        Found::NoLine { lines } => {
            let text = format!("{shown} has {lines} lines; there is no line {line}");
            return Err(Wrong::new(text));
        }
        Found::Part { chars, .. } if input.char_offset >= chars && chars > 0 => {
            let offset = input.char_offset;
            let text = format!("line {line} has {chars} characters; there is none at {offset}");
            return Err(Wrong::new(text));
        }
        Found::Part { text, chars } => (text, chars),
    };
    let end = input.char_offset + begin.chars().count();
    let left = chars - end;
    let offset = input.char_offset;
    Ok(format!(
        "{shown}: line {line}, characters {offset}-{end} of {chars}; {left} are left\n{begin}"
    ))
}

enum Found {
    NoLine { lines: usize },
    Part { text: String, chars: usize },
}

fn find(path: &Path, line: usize, offset: usize, length: usize) -> io::Result<Found> {
    let mut input = BufReader::with_capacity(64 << 10, open(path)?);
    let mut lines = 0;
    let mut fresh = true;
    while lines + 1 < line {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            let lines = if fresh { lines } else { lines + 1 };
            return Ok(Found::NoLine { lines });
        }
        match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                lines += 1;
                fresh = true;
                input.consume(at + 1);
            }
            None => {
                fresh = false;
                let all = buffer.len();
                input.consume(all);
            }
        }
    }
    let mut kept = Vec::new();
    let mut chars = 0;
    let mut any = false;
    loop {
        let buffer = input.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        any |= !buffer.is_empty();
        for byte in part {
            // Not the continuation of a character: a new one.
            if byte & 0xc0 != 0x80 {
                chars += 1;
            }
            if chars > offset && chars <= offset + length {
                kept.push(*byte);
            }
        }
        let over = end.is_some() || buffer.is_empty();
        let taken = end.map_or(buffer.len(), |at| at + 1);
        input.consume(taken);
        if over {
            break;
        }
    }
    if !any {
        return Ok(Found::NoLine { lines });
    }
    let text = String::from_utf8_lossy(&kept).into_owned();
    Ok(Found::Part { text, chars })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::tools::testing::Bench;

    #[tokio::test]
    async fn a_part_of_a_line_by_characters() {
        let bench = Bench::new();
        let long: String = ('a'..='z')
            .chain(['é', '€'])
            .collect::<String>()
            .repeat(5_000);
        bench.write("a", format!("one\n{long}\n\nlast"));
        let read = |line, offset, length| {
            bench.run(
                "read_file_slice",
                json!({"path": "a", "line": line, "charOffset": offset, "charLength": length}),
            )
        };
        let told = read(2, 25, 4).await.unwrap();
        assert_eq!(
            told,
            "a: line 2, characters 25-29 of 140000; 139971 are left\nzé€a"
        );
        let told = read(4, 1, 100).await.unwrap();
        assert_eq!(told, "a: line 4, characters 1-4 of 4; 0 are left\nast");
        assert!(
            read(3, 0, 5)
                .await
                .unwrap()
                .starts_with("a: line 3, characters 0-0 of 0;")
        );
        let wrong = read(5, 0, 1).await.unwrap_err();
        assert_eq!(wrong, "error: a has 4 lines; there is no line 5");
        let wrong = read(1, 3, 1).await.unwrap_err();
        assert_eq!(wrong, "error: line 1 has 3 characters; there is none at 3");
        let usual = bench
            .told("read_file_slice", json!({"path": "a", "line": 2}))
            .await;
        assert!(usual.contains("characters 0-5000 of 140000"));
    }
}
