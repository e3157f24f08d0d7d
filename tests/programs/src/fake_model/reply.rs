//! An answer before it takes a wire format: its parts with their tool calls made, and helpers that
//! the wire formats share. It must not decide what is answered.

use super::{
    ask::Ask,
    script::{Answer, Block, Usage},
    tools::{self, Call, Kind},
};
use serde_json::Value;

const PIECE_CHARS: usize = 16;
const MAX_PIECES: usize = 64;

#[derive(Debug)]
pub(super) enum Part {
    Thinking(String),
    Text(String),
    Call(Call),
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) parts: Vec<Part>,
    pub(super) usage: Usage,
    pub(super) model: String,
    /// Makes the ids of this reply unlike those of every other.
    pub(super) number: u64,
}

/// One server-sent event.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: Option<&'static str>,
    pub(super) data: String,
}

impl Event {
    pub(super) fn plain(data: &Value) -> Self {
        Self {
            name: None,
            data: data.to_string(),
        }
    }

    pub(super) fn named(name: &'static str, data: &Value) -> Self {
        Self {
            name: Some(name),
            data: data.to_string(),
        }
    }

    pub(super) fn into_text(self) -> String {
        match self.name {
            Some(name) => format!("event: {name}\ndata: {}\n\n", self.data),
            None => format!("data: {}\n\n", self.data),
        }
    }
}

impl Reply {
    pub(super) fn make(answer: &Answer, ask: &Ask, number: u64) -> Result<Self, String> {
        let parts = answer
            .blocks
            .iter()
            .map(|block| match block {
                Block::Thinking(text) => Ok(Part::Thinking(text.clone())),
                Block::Text(text) => Ok(Part::Text(text.clone())),
                Block::Tool(wish) => {
                    tools::call(wish, &ask.tools, ask.directory.as_deref()).map(Part::Call)
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            parts,
            usage: answer.usage,
            model: ask.model.clone(),
            number,
        })
    }

    pub(super) fn plain(text: String, ask: &Ask, number: u64) -> Self {
        Self {
            parts: vec![Part::Text(text)],
            usage: Usage::default(),
            model: ask.model.clone(),
            number,
        }
    }

    pub(super) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.parts.iter().filter_map(|part| match part {
            Part::Call(call) => Some(call),
            Part::Thinking(_) | Part::Text(_) => None,
        })
    }

    /// An id such as `call_7_0`, unique in a run of the server.
    pub(super) fn id(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}_{}_{index}", self.number)
    }

    /// What the log says was served.
    pub(super) fn summary(&self) -> String {
        let words: Vec<_> = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Thinking(_) => "thinking".to_owned(),
                Part::Text(_) => "text".to_owned(),
                Part::Call(call) => format!("tool {}", call.name),
            })
            .collect();
        words.join(", ")
    }
}

impl Call {
    /// The arguments as the string that most wire formats carry.
    pub(super) fn arguments(&self) -> String {
        match (&self.input, self.kind) {
            (Value::String(text), Kind::Custom) => text.clone(),
            (value, _) => value.to_string(),
        }
    }
}

/// Splits a text as a model would stream it. An empty text gives one empty piece.
pub(super) fn pieces(text: &str) -> Vec<&str> {
    let size = PIECE_CHARS.max(text.chars().count().div_ceil(MAX_PIECES));
    let mut pieces = Vec::new();
    let mut rest = text;
    loop {
        let end = rest
            .char_indices()
            .nth(size)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        if after.is_empty() {
            return pieces;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_text() {
        for text in [
            "",
            "a",
            "0123456789abcdef",
            "äöü€ and some more text",
            &"é".repeat(5000),
        ] {
            let split = pieces(text);
            assert_eq!(split.concat(), text);
            assert!(split.len() <= MAX_PIECES);
        }
    }
}
