//! What is shown of a file that matches: its first lines that count, with those around them.
//! Must not be longer than it may be.

use std::{io, ops::ControlFlow, path::Path};

use grep_searcher::{Searcher, Sink, SinkContext, SinkContextKind, SinkMatch};

use super::{
    line_kind::Language,
    open::open,
    rank::{Search, searcher},
};

const LINE_CHARS_MAX: usize = 300;

/// The lines, `>` before those that match.
pub(super) fn snippet(
    search: &Search<'_>,
    path: &Path,
    context: usize,
    bytes: usize,
) -> io::Result<String> {
    let mut snippet = Snippet {
        search,
        language: Language::of(path),
        text: String::new(),
        bytes,
        cut: false,
        waiting: Vec::new(),
        after: 0,
        context,
    };
    let read = search.look_through(&mut searcher(context), open(path)?, &mut snippet);
    if read.is_err() && snippet.text.is_empty() {
        read?;
    }
    if snippet.cut {
        snippet.text.push_str("  ...\n");
    }
    Ok(snippet.text)
}

struct Snippet<'a> {
    search: &'a Search<'a>,
    language: Language,
    text: String,
    bytes: usize,
    cut: bool,
    /// Lines before a match that may be shown.
    waiting: Vec<String>,
    /// Lines after one that still are.
    after: usize,
    context: usize,
}

impl Snippet<'_> {
    fn push(&mut self, line: &str) -> ControlFlow<()> {
        if !self.text.is_empty() && self.text.len() + line.len() > self.bytes {
            self.cut = true;
            return ControlFlow::Break(());
        }
        self.text.push_str(line);
        ControlFlow::Continue(())
    }
}

fn line(mark: char, number: Option<u64>, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    let shown: String = text.chars().take(LINE_CHARS_MAX).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    let number = number.unwrap_or_default();
    format!("{mark}{number:>6} {shown}{more}\n")
}

impl Sink for &mut Snippet<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, Self::Error> {
        if self.search.kind(self.language, found.bytes()).is_none() {
            return Ok(true);
        }
        for before in std::mem::take(&mut self.waiting) {
            if self.push(&before).is_break() {
                return Ok(false);
            }
        }
        self.after = self.context;
        let shown = line('>', found.line_number(), found.bytes());
        Ok(self.push(&shown).is_continue())
    }

    fn context(&mut self, _: &Searcher, around: &SinkContext<'_>) -> Result<bool, Self::Error> {
        let shown = line(' ', around.line_number(), around.bytes());
        if *around.kind() == SinkContextKind::After && self.after > 0 {
            self.after -= 1;
            return Ok(self.push(&shown).is_continue());
        }
        self.waiting.push(shown);
        let over = self.waiting.len().saturating_sub(self.context);
        self.waiting.drain(..over);
        Ok(true)
    }

    fn context_break(&mut self, _: &Searcher) -> Result<bool, Self::Error> {
        self.waiting.clear();
        Ok(true)
    }
}
