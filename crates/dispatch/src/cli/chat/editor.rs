//! What a person types: a text of one or several lines, a place in it, and what was sent before.
//! Must not hold a control character other than a line's end.

use unicode_segmentation::UnicodeSegmentation as _;

use super::line::width;

/// Longer texts are for `dispatch say ID -`.
const BYTES_MAX: usize = 64 << 10;
/// What was sent before and can be had again.
const HISTORY_MAX: usize = 200;
const TAB: &str = "    ";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Editor {
    text: String,
    /// In bytes, always between two letters.
    at: usize,
    history: Vec<String>,
    /// What of the history is shown, and what was typed before it.
    looks: Option<(usize, String)>,
}

/// Where the rows of the text stand, and the cursor in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) rows: Vec<String>,
    pub(super) row: usize,
    pub(super) column: usize,
}

impl Editor {
    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Typed or pasted: line ends stay, other control characters go. What has no room is left out.
    pub(super) fn put(&mut self, text: &str) {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut text = text.replace('\t', TAB);
        text.retain(|c| c == '\n' || !c.is_control());
        let mut room = BYTES_MAX.saturating_sub(self.text.len()).min(text.len());
        while !text.is_char_boundary(room) {
            room -= 1;
        }
        self.text.insert_str(self.at, &text[..room]);
        self.at += room;
        self.settle();
    }

    /// What is put behind a letter may become a part of it.
    fn settle(&mut self) {
        let ends = self.text.grapheme_indices(true);
        let mut ends = ends.map(|(from, letter)| from + letter.len());
        self.at = match self.at {
            0 => 0,
            at => ends.find(|end| *end >= at).unwrap_or(self.text.len()),
        };
    }

    fn before(&self) -> &str {
        &self.text[..self.at]
    }

    fn behind(&self) -> &str {
        &self.text[self.at..]
    }

    fn letter_before(&self) -> usize {
        self.before()
            .graphemes(true)
            .next_back()
            .map_or(0, str::len)
    }

    fn letter_behind(&self) -> usize {
        self.behind().graphemes(true).next().map_or(0, str::len)
    }

    /// The start of the word before the place, with the blanks behind it.
    fn word_before(&self) -> usize {
        let word = self.before().trim_end();
        let start = word.char_indices().rev().find(|(_, c)| c.is_whitespace());
        start.map_or(0, |(from, c)| from + c.len_utf8())
    }

    fn word_behind(&self) -> usize {
        let behind = self.behind();
        let blanks = behind.len() - behind.trim_start().len();
        let word = behind[blanks..].find(char::is_whitespace);
        self.at + word.map_or(behind.len(), |word| blanks + word)
    }

    fn line_start(&self) -> usize {
        self.before().rfind('\n').map_or(0, |end| end + 1)
    }

    fn line_end(&self) -> usize {
        let end = self.behind().find('\n');
        end.map_or(self.text.len(), |end| self.at + end)
    }

    fn cut_from(&mut self, from: usize) {
        self.text.drain(from..self.at);
        self.at = from;
        self.settle();
    }

    pub(super) fn rub_out(&mut self) {
        self.cut_from(self.at - self.letter_before());
    }

    pub(super) fn delete(&mut self) {
        let end = self.at + self.letter_behind();
        self.text.drain(self.at..end);
        self.settle();
    }

    pub(super) fn left(&mut self) {
        self.at -= self.letter_before();
    }

    pub(super) fn right(&mut self) {
        self.at += self.letter_behind();
    }

    pub(super) fn word_left(&mut self) {
        self.at = self.word_before();
    }

    pub(super) fn word_right(&mut self) {
        self.at = self.word_behind();
    }

    pub(super) fn home(&mut self) {
        self.at = self.line_start();
    }

    pub(super) fn end(&mut self) {
        self.at = self.line_end();
    }

    /// Everything before the place in its line goes.
    pub(super) fn cut_line(&mut self) {
        self.cut_from(self.line_start());
    }

    /// Everything behind the place in its line goes.
    pub(super) fn cut_rest(&mut self) {
        let end = self.line_end();
        self.text.drain(self.at..end);
    }

    pub(super) fn cut_word(&mut self) {
        self.cut_from(self.word_before());
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.at = 0;
        self.looks = None;
    }

    /// What was typed, to be sent.
    pub(super) fn take(&mut self) -> String {
        self.looks = None;
        self.at = 0;
        let text = std::mem::take(&mut self.text);
        self.remember(&text);
        text
    }

    pub(super) fn remember(&mut self, text: &str) {
        if text.trim().is_empty() || self.history.last().is_some_and(|last| last == text) {
            return;
        }
        self.history.push(text.to_owned());
        if self.history.len() > HISTORY_MAX {
            self.history.remove(0);
        }
    }

    /// To the line above, or what was sent before.
    pub(super) fn up(&mut self) {
        let start = self.line_start();
        if start > 0 {
            let column = self.text[start..self.at].chars().count();
            self.at = start - 1;
            let above = self.line_start();
            self.move_to(above, column);
            return;
        }
        let newest = self.history.len();
        let now = self.looks.as_ref().map_or(newest, |(now, _)| *now);
        if let Some(next) = now.checked_sub(1) {
            self.look(next);
        }
    }

    /// To the line below, or what was sent after that, or what was being typed.
    pub(super) fn down(&mut self) {
        let end = self.line_end();
        if end < self.text.len() {
            let column = self.text[self.line_start()..self.at].chars().count();
            self.move_to(end + 1, column);
            return;
        }
        match self.looks.take() {
            None => {}
            Some((now, typed)) if now + 1 == self.history.len() => self.show(typed),
            Some((now, typed)) => {
                self.looks = Some((now, typed));
                self.look(now + 1);
            }
        }
    }

    fn look(&mut self, n: usize) {
        let Some(text) = self.history.get(n).cloned() else {
            return;
        };
        let typed = match self.looks.take() {
            Some((_, typed)) => typed,
            None => std::mem::take(&mut self.text),
        };
        self.looks = Some((n, typed));
        self.show(text);
    }

    fn show(&mut self, text: String) {
        self.at = text.len();
        self.text = text;
    }

    fn move_to(&mut self, line: usize, column: usize) {
        let letters = self.text[line..].char_indices();
        let mut letters = letters.take_while(|(_, c)| *c != '\n');
        let end = self.text[line..].find('\n');
        let end = end.map_or(self.text.len(), |end| line + end);
        self.at = letters.nth(column).map_or(end, |(from, _)| line + from);
        self.settle();
    }

    /// Rows of so many columns, behind a lead of its own in the first.
    pub(super) fn layout(&self, lead: &str, columns: usize) -> Layout {
        let indent = width(lead);
        let blank = " ".repeat(indent);
        let mut rows = vec![lead.to_owned()];
        let (mut column, mut place) = (indent, (0, indent));
        for (from, letter) in self.text.grapheme_indices(true) {
            let wide = width(letter);
            let ends = letter == "\n";
            if !ends && column + wide > columns && column > indent {
                rows.push(blank.clone());
                column = indent;
            }
            if from == self.at {
                place = (rows.len() - 1, column);
            }
            if ends {
                rows.push(blank.clone());
                column = indent;
            } else {
                if let Some(row) = rows.last_mut() {
                    row.push_str(letter);
                }
                column += wide;
            }
        }
        if self.at == self.text.len() {
            // Behind a full row the cursor stands in the next one.
            if column >= columns {
                rows.push(blank);
                column = indent;
            }
            place = (rows.len() - 1, column);
        }
        Layout {
            rows,
            row: place.0,
            column: place.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Editor {
        let mut editor = Editor::default();
        editor.put(text);
        editor
    }

    /// With a mark where the cursor is.
    fn shown(editor: &Editor) -> String {
        format!("{}|{}", editor.before(), editor.behind())
    }

    #[test]
    fn letters_go_where_the_place_is() {
        let mut editor = typed("üse TC");
        editor.left();
        editor.left();
        editor.put("U");
        assert_eq!(shown(&editor), "üse U|TC");
        editor.home();
        editor.rub_out();
        editor.delete();
        assert_eq!(shown(&editor), "|se UTC");
        editor.end();
        editor.right();
        editor.delete();
        editor.rub_out();
        assert_eq!(shown(&editor), "se UT|");
    }

    #[test]
    fn a_letter_of_several_signs_is_one() {
        let family = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}";
        let mut editor = typed(&format!("a{family}b"));
        editor.left();
        editor.left();
        assert_eq!(shown(&editor), format!("a|{family}b"));
        editor.delete();
        assert_eq!(shown(&editor), "a|b");
        editor.put("e");
        editor.put("\u{301}");
        editor.rub_out();
        assert_eq!(shown(&editor), "a|b");
    }

    #[test]
    fn words_and_lines_can_be_cut_and_jumped_over() {
        let mut editor = typed("use the  zone  \nof it");
        editor.cut_word();
        assert_eq!(shown(&editor), "use the  zone  \nof |");
        editor.cut_line();
        assert_eq!(shown(&editor), "use the  zone  \n|");
        editor.rub_out();
        editor.word_left();
        assert_eq!(shown(&editor), "use the  |zone  ");
        editor.word_left();
        editor.word_right();
        assert_eq!(shown(&editor), "use the|  zone  ");
        editor.cut_rest();
        editor.cut_word();
        assert_eq!(shown(&editor), "use |");
        editor.clear();
        editor.cut_word();
        editor.word_right();
        assert_eq!(shown(&editor), "|");
    }

    #[test]
    fn what_is_pasted_keeps_its_lines_and_is_no_order_and_not_endless() {
        assert_eq!(typed("a\u{1b}[2J\r\nb\rc\td").text(), "a[2J\nb\nc    d");
        let long = typed(&"ü".repeat(BYTES_MAX));
        assert_eq!(long.text().len(), BYTES_MAX);
    }

    #[test]
    fn up_and_down_go_through_lines_and_then_through_what_was_sent() {
        let mut editor = typed("first");
        assert_eq!(editor.take(), "first");
        editor.put("second\nof two");
        editor.take();
        editor.put("second\nof two");
        // The same again is remembered once.
        editor.take();
        editor.put("now");
        editor.up();
        assert_eq!(shown(&editor), "second\nof two|");
        editor.up();
        assert_eq!(shown(&editor), "second|\nof two");
        editor.up();
        assert_eq!(shown(&editor), "first|");
        editor.up();
        assert_eq!(shown(&editor), "first|");
        editor.down();
        assert_eq!(shown(&editor), "second\nof two|");
        editor.down();
        assert_eq!(shown(&editor), "now|");
        editor.down();
        assert_eq!(shown(&editor), "now|");
    }

    #[test]
    fn a_line_above_has_the_column_or_its_end() {
        let mut editor = typed("ab\nlonger\nx");
        editor.up();
        assert_eq!(shown(&editor), "ab\nl|onger\nx");
        editor.end();
        editor.up();
        assert_eq!(shown(&editor), "ab|\nlonger\nx");
        editor.down();
        assert_eq!(shown(&editor), "ab\nlo|nger\nx");
    }

    #[test]
    fn rows_and_the_cursor() {
        let at = |editor: &Editor, columns| {
            let layout = editor.layout("> ", columns);
            (layout.rows.join("/"), layout.row, layout.column)
        };
        let mut editor = typed("abcdef\n日本");
        assert_eq!(at(&editor, 6), ("> abcd/  ef/  日本/  ".into(), 3, 2));
        assert_eq!(at(&editor, 9), ("> abcdef/  日本".into(), 1, 6));
        editor.left();
        assert_eq!(at(&editor, 6), ("> abcd/  ef/  日本".into(), 2, 4));
        editor.up();
        editor.home();
        assert_eq!(at(&editor, 6), ("> abcd/  ef/  日本".into(), 0, 2));
        assert_eq!(at(&Editor::default(), 6), ("> ".into(), 0, 2));
    }
}
