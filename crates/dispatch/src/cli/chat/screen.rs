//! The terminal of a chat: finished lines go into its scroll-back once, and only the rows below them
//! are drawn again. It is given back on every way out: an end, an error, a panic.
//! Must not decide what is shown.

use std::{
    io::{self, Write as _},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use crossterm::{
    event::{DisableBracketedPaste, EnableBracketedPaste},
    execute,
    terminal::{disable_raw_mode, enable_raw_mode, size},
};

use super::{
    editor::Editor,
    line::{Line, Row},
    machine::Below,
};
use crate::cli::style::{Colour, Style};

/// Of a terminal that does not say how large it is.
const COLUMNS_DEFAULT: u16 = 80;
const ROWS_DEFAULT: u16 = 24;
/// With less the count of rows cannot be kept.
const COLUMNS_MIN: usize = 10;
/// Begin and end of what is to appear at once, and the cursor out of sight meanwhile.
const BEGIN: &str = "\x1b[?2026h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?2026l";

/// Whether there is something to give back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What is drawn below the finished lines: rows, and where the cursor is in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Drawn {
    rows: Vec<Row>,
    row: usize,
    column: usize,
}

impl Drawn {
    /// Rows from the first one down to the cursor, on a terminal that has broken them anew.
    fn above(&self, columns: usize) -> usize {
        let taken = |row: &Row| row.columns.div_ceil(columns).max(1);
        let rows: usize = self.rows.iter().take(self.row).map(taken).sum();
        rows + self.column / columns
    }
}

pub(super) struct Screen {
    style: Style,
    columns: usize,
    height: usize,
    drawn: Drawn,
}

impl Screen {
    pub(super) fn enter(style: Style) -> io::Result<Self> {
        give_back_on_panic();
        TAKEN.store(true, Ordering::SeqCst);
        if let Err(error) = take() {
            give_back()?;
            return Err(error);
        }
        let mut screen = Self {
            style,
            columns: 0,
            height: 0,
            drawn: Drawn::default(),
        };
        let (columns, rows) = size().unwrap_or((COLUMNS_DEFAULT, ROWS_DEFAULT));
        screen.resize(columns, rows);
        Ok(screen)
    }

    pub(super) fn resize(&mut self, columns: u16, rows: u16) {
        let or = |value: u16, default| if value == 0 { default } else { value };
        self.columns = usize::from(or(columns, COLUMNS_DEFAULT)).max(COLUMNS_MIN);
        self.height = usize::from(or(rows, ROWS_DEFAULT));
    }

    /// Finished lines above, and what is below them anew.
    pub(super) fn draw(
        &mut self,
        finished: &[Line],
        below: &Below,
        hint: Option<&str>,
        editor: &Editor,
    ) -> io::Result<()> {
        let next = compose(below, hint, editor, self.columns, self.height, self.style);
        if finished.is_empty() && next == self.drawn {
            return Ok(());
        }
        let mut out = String::from(BEGIN);
        self.erase(&mut out);
        // One column stays free: a full row would put the cursor where each terminal likes.
        for row in finished
            .iter()
            .flat_map(|line| line.rows(self.columns - 1, self.style))
        {
            out.push_str(&row.text);
            out.push_str("\r\n");
        }
        let rows: Vec<&str> = next.rows.iter().map(|row| row.text.as_str()).collect();
        out.push_str(&rows.join("\r\n"));
        up(&mut out, next.rows.len().saturating_sub(next.row + 1));
        out.push('\r');
        right(&mut out, next.column);
        out.push_str(END);
        self.drawn = next;
        write(&out)
    }

    fn erase(&mut self, out: &mut String) {
        let drawn = std::mem::take(&mut self.drawn);
        if !drawn.rows.is_empty() {
            up(out, drawn.above(self.columns));
            out.push_str("\r\x1b[J");
        }
    }

    /// All of the terminal is ours again, whatever another program has written on it.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.drawn = Drawn::default();
        write("\x1b[2J\x1b[H")
    }

    /// The terminal is somebody else's for a while: what is printed stays, and nothing is below it.
    pub(super) fn let_go(&mut self) -> io::Result<()> {
        let mut out = String::new();
        self.erase(&mut out);
        write(&out)?;
        give_back()
    }

    /// It is ours again. What another program has written stays above what is drawn next.
    pub(super) fn take_again(&mut self) -> io::Result<()> {
        self.drawn = Drawn::default();
        TAKEN.store(true, Ordering::SeqCst);
        take()?;
        let (columns, rows) = size().unwrap_or((COLUMNS_DEFAULT, ROWS_DEFAULT));
        self.resize(columns, rows);
        Ok(())
    }

    /// The last lines, with nothing below them.
    pub(super) fn leave(mut self, finished: &[Line]) -> io::Result<()> {
        let mut out = String::new();
        self.erase(&mut out);
        for row in finished
            .iter()
            .flat_map(|line| line.rows(self.columns - 1, self.style))
        {
            out.push_str(&row.text);
            out.push_str("\r\n");
        }
        write(&out)?;
        give_back()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone away takes nothing back.
        drop(give_back());
    }
}

/// What is said now comes first and has the room that the rest leaves it.
fn compose(
    below: &Below,
    hint: Option<&str>,
    editor: &Editor,
    columns: usize,
    height: usize,
    style: Style,
) -> Drawn {
    let columns = columns - 1;
    let layout = editor.layout(&below.lead, columns);
    // Of a long text the rows around the cursor.
    let shown = (height / 2).max(1);
    let from = (layout.row + 1).saturating_sub(shown);
    let typed = layout.rows.iter().skip(from).take(shown);
    let typed: Vec<Row> = typed
        .map(|text| Row {
            text: text.clone(),
            columns: super::line::width(text),
        })
        .collect();
    let rows_of = |lines: &[Line]| -> Vec<Row> {
        let rows = lines.iter().flat_map(|line| line.rows(columns, style));
        rows.collect()
    };
    let mut rows = rows_of(&below.open);
    if !rows.is_empty() {
        rows.extend(rows_of(&[Line::empty()]));
    }
    rows.extend(rows_of(&below.rest));
    if let Some(hint) = hint {
        let hint = Line::new("", hint, Some(Colour::Yellow)).folded();
        rows.extend(hint.rows(columns, style));
    }
    let room = height.saturating_sub(typed.len() + 1);
    let too_many = rows.len().saturating_sub(room);
    rows.drain(..too_many);
    let row = rows.len() + layout.row - from;
    rows.extend(typed);
    Drawn {
        rows,
        row,
        column: layout.column,
    }
}

fn up(out: &mut String, rows: usize) {
    if rows > 0 {
        out.push_str(&format!("\x1b[{rows}A"));
    }
}

fn right(out: &mut String, columns: usize) {
    if columns > 0 {
        out.push_str(&format!("\x1b[{columns}C"));
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnableBracketedPaste)
}

fn give_back() -> io::Result<()> {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return Ok(());
    }
    // Both, whatever one of them says.
    let shown = execute!(io::stdout(), DisableBracketedPaste, crossterm::cursor::Show);
    disable_raw_mode().and(shown)
}

/// Before the panic is worded.
fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |bug| {
            drop(give_back());
            tell(bug);
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(open: &str, rest: &[&str]) -> Below {
        Below {
            open: Line::all("", open, None),
            rest: rest.iter().map(|text| Line::new("", text, None)).collect(),
            lead: "> ".to_owned(),
        }
    }

    fn drawn(
        below: &Below,
        typed: &str,
        columns: usize,
        height: usize,
    ) -> (Vec<String>, usize, usize) {
        let mut editor = Editor::default();
        editor.put(typed);
        let drawn = compose(below, None, &editor, columns, height, Style::plain());
        assert!(drawn.rows.len() < height.max(3), "{drawn:?}");
        let rows = drawn.rows.into_iter().map(|row| row.text).collect();
        (rows, drawn.row, drawn.column)
    }

    #[test]
    fn what_is_said_stands_above_the_prompt_and_the_cursor_in_it() {
        let below = below("I am saying it", &["running"]);
        let (rows, row, column) = drawn(&below, "and", 80, 24);
        assert_eq!(rows, ["I am saying it", "", "running", "> and"]);
        assert_eq!((row, column), (3, 5));
    }

    #[test]
    fn a_small_terminal_shows_the_end() {
        let long = "one two three four five six seven eight nine ten";
        let (rows, row, _) = drawn(&below(long, &["running"]), "", 11, 5);
        assert_eq!(rows, ["ten", "", "running", "> "]);
        assert_eq!(row, 3);
        let (rows, row, _) = drawn(&below(long, &["running"]), "a\nb\nc\nd", 11, 4);
        assert_eq!(rows, ["running", "  c", "  d"]);
        assert_eq!(row, 2);
    }

    #[test]
    fn a_narrower_terminal_has_broken_the_rows() {
        let row = |columns| Row {
            text: String::new(),
            columns,
        };
        let drawn = Drawn {
            rows: vec![row(79), row(0), row(30)],
            row: 2,
            column: 30,
        };
        assert_eq!(drawn.above(80), 2);
        assert_eq!(drawn.above(40), 3);
        assert_eq!(drawn.above(20), 6);
    }
}
