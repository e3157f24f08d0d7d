//! Texts that an agent says piece by piece: which of them a piece belongs to, and which of them the
//! whole closes, by numbers that a replay comes to again.
//! Must not keep a text: what is open is the engine's to show.

use super::{Step, text::bounded};
use crate::update::{ChunkId, Update, Voice};

/// Of an agent's own name for a text.
const KEY_BYTES_MAX: usize = 256;

#[derive(Debug)]
struct Open {
    key: String,
    voice: Voice,
    chunk: ChunkId,
}

/// One text is open at a time. An agent that begins another leaves the one before without an end.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    count: u32,
    open: Option<Open>,
}

impl Pieces {
    /// More of the text that the agent calls `key`.
    pub(super) fn more(&mut self, key: &str, voice: Voice, text: &str) -> Vec<Step> {
        if text.is_empty() {
            return Vec::new();
        }
        let key = bounded(key, KEY_BYTES_MAX);
        let known = self.open.as_ref();
        let known = known.filter(|open| open.key == key && open.voice == voice);
        let chunk = match known.map(|open| open.chunk) {
            Some(chunk) => chunk,
            None => self.begin(key, voice),
        };
        let text = text.to_owned();
        vec![Step::Piece { chunk, voice, text }]
    }

    fn begin(&mut self, key: String, voice: Voice) -> ChunkId {
        self.count = self.count.saturating_add(1);
        let chunk = ChunkId(self.count);
        self.open = Some(Open { key, voice, chunk });
        chunk
    }

    /// The whole of a text, whether or not it came in pieces before.
    pub(super) fn whole(&mut self, key: &str, update: Update) -> Step {
        let voice = match update {
            Update::Thinking { .. } => Voice::Thinking,
            _ => Voice::Text,
        };
        let key = bounded(key, KEY_BYTES_MAX);
        let same = |open: &mut Open| open.key == key && open.voice == voice;
        match self.open.take_if(same) {
            Some(Open { chunk, .. }) => Step::Whole(chunk, update),
            None => Step::Said(update),
        }
    }

    /// What comes next is another text, whatever the agent calls it.
    pub(super) fn cut(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Update {
        Update::Text { text: text.into() }
    }

    fn chunks(steps: &[Step]) -> Vec<u32> {
        let chunk = |step: &Step| match step {
            Step::Piece { chunk, .. } | Step::Whole(chunk, _) => Some(chunk.0),
            _ => None,
        };
        steps.iter().filter_map(chunk).collect()
    }

    #[test]
    fn the_whole_closes_the_text_that_it_is_of() {
        let mut pieces = Pieces::default();
        let mut steps = pieces.more("a", Voice::Text, "x");
        steps.extend(pieces.more("a", Voice::Text, "y"));
        steps.extend(pieces.more("a", Voice::Text, ""));
        steps.push(pieces.whole("a", text("xy")));
        steps.push(pieces.whole("a", text("again")));
        steps.extend(pieces.more("a", Voice::Thinking, "z"));
        steps.extend(pieces.more("b", Voice::Text, "left"));
        steps.push(pieces.whole("a", text("of another")));
        pieces.cut();
        steps.extend(pieces.more("b", Voice::Text, "anew"));
        steps.push(pieces.whole("b", text("anew")));
        assert_eq!(chunks(&steps), [1, 1, 1, 2, 3, 4, 4]);
        let said = |step: &&Step| matches!(step, Step::Said(_));
        assert_eq!(steps.iter().filter(said).count(), 2);
    }
}
