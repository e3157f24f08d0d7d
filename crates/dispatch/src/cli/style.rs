//! Colours and clean text for a terminal. Must not put an escape into a pipe, and must not let
//! what an agent wrote move the cursor.

use std::io::IsTerminal;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    Green,
    Red,
    Yellow,
    Dim,
    Bold,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    /// Standard output is a terminal, which takes redrawing.
    pub(crate) tty: bool,
    colour: bool,
}

impl Style {
    pub(crate) fn detect(no_color: Option<&str>, term: Option<&str>) -> Self {
        let tty = std::io::stdout().is_terminal() && term != Some("dumb");
        Self {
            tty,
            colour: tty && no_color.is_none(),
        }
    }

    #[cfg(feature = "tui")]
    pub(crate) fn colours(self) -> bool {
        self.colour
    }

    #[cfg(any(test, feature = "tui"))]
    pub(crate) fn plain() -> Self {
        Self {
            tty: false,
            colour: false,
        }
    }

    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => 32,
            Colour::Red => 31,
            Colour::Yellow => 33,
            Colour::Dim => 2,
            Colour::Bold => 1,
        };
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn state(self, state: &str) -> String {
        let colour = match state {
            "completed" => Colour::Green,
            "failed" | "lost" => Colour::Red,
            "blocked" | "stopped" => Colour::Yellow,
            _ => Colour::Bold,
        };
        self.paint(colour, state)
    }
}

/// Without control characters, line ends included.
pub(crate) fn clean_line(text: &str) -> String {
    clean(text, |c| if c.is_control() { Some(' ') } else { Some(c) })
}

/// Without control characters other than line ends and tabs.
pub(crate) fn clean_text(text: &str) -> String {
    let kept = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    clean(text, |c| Some(c).filter(|c| kept(*c)))
}

/// What turns the order of letters around is shown as what it is: a name or a line of a patch must not
/// look like another one.
fn clean(text: &str, keep: impl Fn(char) -> Option<char>) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{61c}'
            | '\u{200e}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => out.extend(c.escape_default()),
            c => out.extend(keep(c)),
        }
    }
    out
}

/// Cut to a number of characters, with a mark that it was.
pub(crate) fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(chars.saturating_sub(1)).collect();
    out.push('…');
    out
}

/// `42s`, `3m10s`, `2h05m`, `4d`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_cannot_move_the_cursor() {
        assert_eq!(clean_line("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(clean_text("a\x1b]0;x\x07\n\tb\r"), "a]0;x\n\tb");
        assert_eq!(clean_line("a\u{202e}b\u{2069}"), "a\\u{202e}b\\u{2069}");
        assert_eq!(clean_text("a\u{200f}\n\u{200d}b"), "a\\u{200f}\n\u{200d}b");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(Style::plain().state("failed"), "failed");
    }

    #[test]
    fn spans_are_short() {
        let got = [5, 65, 7500, 200_000].map(span);
        assert_eq!(got, ["5s", "1m05s", "2h05m", "2d"]);
    }
}
