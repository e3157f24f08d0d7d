//! One line that a person types. Must not hold a control character.

/// Longer answers are for `dispatch answer ID -`.
const CHARS_MAX: usize = 4000;

/// A text and a place in it, both in characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Editor {
    chars: Vec<char>,
    at: usize,
}

impl Editor {
    pub(super) fn text(&self) -> String {
        self.chars.iter().collect()
    }

    /// What is before the place, and what is behind it.
    pub(super) fn halves(&self) -> (String, String) {
        let (before, behind) = self.chars.split_at(self.at);
        (before.iter().collect(), behind.iter().collect())
    }

    pub(super) fn put(&mut self, c: char) {
        if !c.is_control() && self.chars.len() < CHARS_MAX {
            self.chars.insert(self.at, c);
            self.at += 1;
        }
    }

    pub(super) fn rub_out(&mut self) {
        if self.at > 0 {
            self.at -= 1;
            self.chars.remove(self.at);
        }
    }

    pub(super) fn delete(&mut self) {
        if self.at < self.chars.len() {
            self.chars.remove(self.at);
        }
    }

    pub(super) fn left(&mut self) {
        self.at = self.at.saturating_sub(1);
    }

    pub(super) fn right(&mut self) {
        self.at = (self.at + 1).min(self.chars.len());
    }

    pub(super) fn home(&mut self) {
        self.at = 0;
    }

    pub(super) fn end(&mut self) {
        self.at = self.chars.len();
    }

    /// Everything before the place goes.
    pub(super) fn cut_line(&mut self) {
        self.chars.drain(..self.at);
        self.at = 0;
    }

    /// The word before the place goes, with the blanks behind it.
    pub(super) fn cut_word(&mut self) {
        let blank = |c: &char| c.is_whitespace();
        let before = &self.chars[..self.at];
        let blanks = before.iter().rev().take_while(|c| blank(c)).count();
        let rest = &before[..before.len() - blanks];
        let word = rest.iter().rev().take_while(|c| !blank(c)).count();
        let from = rest.len() - word;
        self.chars.drain(from..self.at);
        self.at = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Editor {
        let mut editor = Editor::default();
        text.chars().for_each(|c| editor.put(c));
        editor
    }

    #[test]
    fn letters_go_where_the_place_is() {
        let mut editor = typed("üse TC");
        editor.left();
        editor.left();
        editor.put('U');
        assert_eq!(editor.halves(), ("üse U".into(), "TC".into()));
        editor.home();
        editor.rub_out();
        editor.delete();
        assert_eq!(editor.text(), "se UTC");
        editor.end();
        editor.right();
        editor.delete();
        editor.rub_out();
        assert_eq!(editor.text(), "se UT");
    }

    #[test]
    fn words_and_lines_can_be_cut() {
        let mut editor = typed("use the  zone  ");
        editor.cut_word();
        assert_eq!(editor.text(), "use the  ");
        editor.cut_word();
        assert_eq!(editor.text(), "use ");
        editor.left();
        editor.cut_line();
        assert_eq!(editor.halves(), (String::new(), " ".into()));
        editor.cut_word();
        assert_eq!(editor.text(), " ");
    }

    #[test]
    fn what_is_pasted_cannot_be_an_order_or_endless() {
        assert_eq!(typed("a\u{1b}[2J\nb").text(), "a[2Jb");
        assert_eq!(typed(&"x".repeat(CHARS_MAX + 5)).text().len(), CHARS_MAX);
    }
}
