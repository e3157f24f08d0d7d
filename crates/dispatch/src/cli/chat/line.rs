//! A line of a chat: what it says, in which colours, and in how many rows of a terminal.
//! Must not let what an agent wrote be anything but letters.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::UnicodeWidthStr as _;

use crate::cli::style::{Colour, Style, clean_line, clean_text, cut};

/// Of a line that is to be one line, where nothing wraps it.
const CHARS_MAX: usize = 160;
/// Columns of a tab.
const TAB: &str = "    ";

/// Columns of a terminal that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) text: String,
    pub(super) colour: Option<Colour>,
}

/// What becomes of a line that is longer than the terminal is wide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Long {
    #[default]
    Wrap,
    Cut,
}

/// What stands before it, and its parts. The rows after the first are indented as far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    lead: &'static str,
    parts: Vec<Part>,
    long: Long,
}

impl Line {
    /// One line of any text.
    pub(super) fn new(lead: &'static str, text: &str, colour: Option<Colour>) -> Self {
        Self {
            lead,
            ..Self::default()
        }
        .and(text, colour)
    }

    pub(super) fn empty() -> Self {
        Self::default()
    }

    #[must_use]
    pub(super) fn and(mut self, text: &str, colour: Option<Colour>) -> Self {
        let text = clean_line(&text.replace('\t', TAB));
        self.parts.push(Part { text, colour });
        self
    }

    /// Longer than the terminal is wide, it ends there.
    #[must_use]
    pub(super) fn folded(mut self) -> Self {
        self.long = Long::Cut;
        self
    }

    /// Every line of a text; the first one has the lead.
    pub(super) fn all(lead: &'static str, text: &str, colour: Option<Colour>) -> Vec<Self> {
        let blank = if lead.is_empty() { "" } else { "  " };
        let text = clean_text(text);
        let leads = std::iter::once(lead).chain(std::iter::repeat(blank));
        let lines = text.lines().zip(leads);
        lines
            .map(|(line, lead)| Self::new(lead, line.trim_end(), colour))
            .collect()
    }

    pub(super) fn is_blank(&self) -> bool {
        self.parts.iter().all(|part| part.text.trim().is_empty())
    }

    /// Without colours, as it is in a pipe.
    pub(super) fn plain(&self) -> String {
        let parts = self.parts.iter().map(|part| part.text.as_str());
        let text: String = std::iter::once(self.lead).chain(parts).collect();
        match self.long {
            Long::Wrap => text,
            Long::Cut => cut(&text, CHARS_MAX),
        }
    }

    /// As rows of a terminal, each with the columns that it takes.
    pub(super) fn rows(&self, columns: usize, style: Style) -> Vec<Row> {
        let indent = width(self.lead);
        let columns = columns.saturating_sub(indent).max(1);
        let cells: Vec<Cell> = self.parts.iter().flat_map(Cell::of).collect();
        let lead_colour = self.parts.first().and_then(|part| part.colour);
        let mut rows = wrapped(&cells, columns);
        let is_cut = self.long == Long::Cut && rows.len() > 1;
        if is_cut {
            let fitting = fitting(&cells, columns - 1);
            rows.truncate(1);
            rows.iter_mut().for_each(|row| row.end = fitting);
        }
        let blank = " ".repeat(indent);
        let row = |(n, range): (usize, &Range<usize>)| {
            let lead = if n == 0 { self.lead } else { &blank };
            let mut text = match lead.trim() {
                "" => lead.to_owned(),
                _ => style.paint_in(lead_colour, lead),
            };
            text.push_str(&painted(&cells[range.clone()], style));
            let mut columns: usize = cells[range.clone()].iter().map(|cell| cell.width).sum();
            if is_cut {
                text.push('…');
                columns += 1;
            }
            Row {
                text,
                columns: columns + indent,
            }
        };
        rows.iter().enumerate().map(row).collect()
    }
}

impl Style {
    fn paint_in(self, colour: Option<Colour>, text: &str) -> String {
        match colour {
            Some(colour) if !text.is_empty() => self.paint(colour, text),
            Some(_) | None => text.to_owned(),
        }
    }
}

/// A row as it is written to a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) text: String,
    pub(super) columns: usize,
}

/// A letter as a person counts them.
#[derive(Clone, Copy, Debug)]
struct Cell<'a> {
    text: &'a str,
    width: usize,
    colour: Option<Colour>,
}

impl<'a> Cell<'a> {
    fn of(part: &'a Part) -> impl Iterator<Item = Self> {
        let colour = part.colour;
        part.text.graphemes(true).map(move |text| Self {
            text,
            width: width(text),
            colour,
        })
    }

    fn is_blank(&self) -> bool {
        self.text == " "
    }
}

fn painted(cells: &[Cell<'_>], style: Style) -> String {
    let same = |a: &Cell<'_>, b: &Cell<'_>| a.colour == b.colour;
    let runs = cells.chunk_by(same).map(|run| {
        let text: String = run.iter().map(|cell| cell.text).collect();
        style.paint_in(run.first().and_then(|cell| cell.colour), &text)
    });
    runs.collect()
}

/// How many of the cells have room.
fn fitting(cells: &[Cell<'_>], columns: usize) -> usize {
    let mut used = 0;
    let fits = |cell: &&Cell<'_>| {
        used += cell.width;
        used <= columns
    };
    cells.iter().take_while(fits).count()
}

/// Rows end between words where they can; the blank they end at is in none of them.
fn wrapped(cells: &[Cell<'_>], columns: usize) -> Vec<Range<usize>> {
    let mut rows = Vec::new();
    let mut from = 0;
    loop {
        let rest = &cells[from..];
        let room = fitting(rest, columns);
        if room == rest.len() {
            rows.push(from..cells.len());
            return rows;
        }
        let indent = rest.iter().take_while(|cell| cell.is_blank()).count();
        let blank = (indent + 1..=room).rev().find(|n| rest[*n].is_blank());
        let (end, next) = match blank {
            Some(blank) => (blank, blank + 1),
            // A letter that is wider than the terminal stands alone.
            None => (room.max(1), room.max(1)),
        };
        rows.push(from..from + end);
        from += next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(line: &Line, columns: usize) -> Vec<String> {
        let rows = line.rows(columns, Style::plain());
        assert!(
            rows.iter().all(|row| row.columns == width(&row.text)),
            "{rows:?}"
        );
        assert!(rows.iter().all(|row| row.columns <= columns), "{rows:?}");
        rows.into_iter().map(|row| row.text).collect()
    }

    #[test]
    fn rows_end_between_words_and_hang_below_the_first() {
        let line = Line::new("> ", "the quick brown fox", None);
        assert_eq!(rows(&line, 12), ["> the quick", "  brown fox"]);
        assert_eq!(rows(&line, 21), ["> the quick brown fox"]);
        let code = Line::new("", "        let unbreakable_name", None);
        assert_eq!(
            rows(&code, 12),
            ["        let ", "unbreakable_", "name"].map(str::trim_end)
        );
        assert_eq!(rows(&Line::empty(), 12), [""]);
        assert_eq!(rows(&Line::new("", "a b", None), 1), ["a", "b"]);
    }

    #[test]
    fn wide_letters_take_two_columns_and_stay_whole() {
        let line = Line::new("", "日本語のテスト", None);
        assert_eq!(rows(&line, 5), ["日本", "語の", "テス", "ト"]);
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}";
        let line = Line::new("", &format!("ab{family}cd"), None);
        assert_eq!(rows(&line, 4), [format!("ab{family}"), "cd".into()]);
    }

    #[test]
    fn what_is_to_be_one_line_is_cut() {
        let line = Line::new("→ ", "Bash", None).and(" cargo test --all", Some(Colour::Dim));
        assert_eq!(rows(&line.clone().folded(), 12), ["→ Bash carg…"]);
        assert_eq!(
            rows(&line.clone().folded(), 40),
            ["→ Bash cargo test --all"]
        );
        assert_eq!(line.plain(), "→ Bash cargo test --all");
        let long = Line::new("", &"x".repeat(500), None).folded();
        assert_eq!(long.plain().chars().count(), CHARS_MAX);
    }

    #[test]
    fn an_agent_moves_no_cursor_and_sets_no_title() {
        let text = "a\u{1b}]0;x\u{7}\u{1b}[2J\n\tb\r\u{202e}c";
        let lines = Line::all("> ", text, None);
        let plain: Vec<String> = lines.iter().map(Line::plain).collect();
        assert_eq!(plain, ["> a]0;x[2J", "      b\\u{202e}c"]);
    }
}
