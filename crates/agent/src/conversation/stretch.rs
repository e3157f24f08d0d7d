//! How long a conversation is, and where one that is too long is divided: between steps, so that an
//! answer is never without the results of its calls.
//! Must not decide when: `compact` does. What a size is in tokens only a provider knows; here it is
//! estimated where none told it.

use std::sync::Arc;

use dispatch_core::{
    attach::MediaKind,
    native::{Block, Chunk, Handed, Message, StepId},
};

use super::{Conversation, Entry, Said};

/// Of text, code and JSON together; less than there mostly are, so that an estimate is rather too high.
const TOKEN_BYTES: u64 = 3;
/// A picture is some 1,600 tokens to a provider, a page of a document about as much.
const IMAGE_BYTES: usize = 6 << 10;
const PDF_BYTES: usize = 60 << 10;

/// How long the conversation is, so far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    /// As the last answer's provider counted it, the answer included. 0: none did.
    reported_tokens: u64,
    /// Of what came since.
    fresh_bytes: u64,
}

impl Weight {
    pub(super) fn apply(&mut self, chunk: &Chunk) {
        let said = |said: &[Message]| -> usize {
            let each = said.iter().map(|one| said_bytes(&one.text, &one.files));
            each.sum()
        };
        let bytes = match chunk {
            Chunk::Turn { said: words } | Chunk::Said { said: words } => said(words),
            Chunk::Block(block) => block.raw().text().len(),
            Chunk::Result { output, .. } => output.len(),
            Chunk::Usage { tokens, .. } => {
                let asked = tokens.input + tokens.cache_read + tokens.cache_write;
                if asked > 0 {
                    self.reported_tokens = asked + tokens.output;
                    self.fresh_bytes = 0;
                }
                return;
            }
            _ => return,
        };
        self.fresh_bytes += bytes as u64;
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.reported_tokens + self.fresh_bytes / TOKEN_BYTES
    }
}

fn said_bytes(text: &str, files: &[Handed]) -> usize {
    let file = |file: &Handed| match file.shown.map(dispatch_core::attach::Media::kind) {
        Some(MediaKind::Image) => IMAGE_BYTES,
        Some(MediaKind::Pdf) => PDF_BYTES,
        None => 0,
    };
    text.len() + files.iter().map(file).sum::<usize>()
}

fn entry_bytes(entry: &Entry) -> usize {
    let said = |said: &Said| said_bytes(&said.text, &said.files);
    match entry {
        Entry::Said(words) => said(words),
        Entry::Answer { blocks, .. } => {
            let each = blocks.iter().map(Block::raw);
            each.map(|raw| raw.text().len()).sum()
        }
        Entry::Results {
            results,
            said: words,
        } => {
            let each = results.iter().map(|result| result.output.len());
            each.sum::<usize>() + words.as_ref().map_or(0, said)
        }
    }
}

pub(crate) fn bytes_of_tokens(tokens: u64) -> usize {
    usize::try_from(tokens.saturating_mul(TOKEN_BYTES)).unwrap_or(usize::MAX)
}

/// All of a conversation, the step that is not over included.
#[derive(Debug)]
pub(crate) struct Whole {
    entries: Arc<Vec<Entry>>,
    steps: Vec<StepId>,
    /// What a person wants in this turn.
    begun_with: String,
    /// Where that stands.
    begun_at: StepId,
}

impl Conversation {
    pub(crate) fn whole(&self) -> Whole {
        let mut copy = self.clone();
        copy.close();
        Whole {
            entries: copy.entries,
            steps: copy.steps,
            begun_with: copy.begun_with,
            begun_at: StepId {
                turn: self.step.turn,
                step: 0,
            },
        }
    }

    /// All before that step becomes this text.
    pub(super) fn shorten(&mut self, from: StepId, text: &str) {
        if !self.open_is_empty() {
            self.close();
        }
        let at = self.steps.partition_point(|step| *step < from);
        let kept = self.entries[at..].iter().cloned();
        let entries: Vec<Entry> = std::iter::once(Entry::Said(text.into()))
            .chain(kept)
            .collect();
        self.steps.splice(..at, [StepId::default()]);
        self.weight = Weight {
            reported_tokens: 0,
            fresh_bytes: entries.iter().map(entry_bytes).sum::<usize>() as u64,
        };
        self.entries = Arc::new(entries);
    }
}

impl Whole {
    pub(crate) fn bytes(&self) -> usize {
        self.entries.iter().map(entry_bytes).sum()
    }

    /// The first step of the last ones that have so many bytes together. `None`: all before it is a
    /// summary already, or nothing is.
    pub(crate) fn kept_from(&self, bytes: usize) -> Option<StepId> {
        let last = *self.steps.last()?;
        let mut from = StepId {
            step: last.step + 1,
            ..last
        };
        let mut sum = 0;
        for (step, entries) in self.by_step().rev() {
            sum += entries.iter().map(entry_bytes).sum::<usize>();
            if sum > bytes || step == StepId::default() {
                break;
            }
            from = step;
        }
        let first = self.steps.iter().find(|step| **step != StepId::default())?;
        (*first < from).then_some(from)
    }

    /// How much of it lies before that step.
    pub(crate) fn bytes_before(&self, from: StepId) -> usize {
        let at = self.steps.partition_point(|step| *step < from);
        self.entries[..at].iter().map(entry_bytes).sum()
    }

    /// Its steps, each with what belongs together.
    pub(crate) fn by_step(&self) -> impl DoubleEndedIterator<Item = (StepId, &[Entry])> {
        let mut groups = Vec::new();
        let mut at = 0;
        for group in self.steps.chunk_by(|one, other| one == other) {
            groups.push((group[0], &self.entries[at..at + group.len()]));
            at += group.len();
        }
        groups.into_iter()
    }

    /// What a person wants in this turn, where that is before the step.
    pub(crate) fn wanted_before(&self, from: StepId) -> Option<&str> {
        (self.begun_at < from && self.begun_at.turn > 0).then_some(self.begun_with.as_str())
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::native::{Raw, StepEnd, Tokens};
    use serde_json::json;

    use super::*;

    fn id(turn: u32, step: u32) -> StepId {
        StepId { turn, step }
    }

    fn said(text: &str) -> Chunk {
        let said = json!({"turn": {"said": [{"id": 0, "text": text}]}});
        serde_json::from_value(said).unwrap()
    }

    fn call(step: StepId, conversation: &mut Conversation, output: &str) {
        let model = json!({"step": {"model": {"key": "k", "model": "m"}, "wire": "chat"}});
        conversation.apply(step, &serde_json::from_value(model).unwrap());
        conversation.apply(
            step,
            &Chunk::Block(Block::Call {
                id: "c".into(),
                name: "n".into(),
                input: "{}".into(),
                raw: Raw::parse("{}".into()).unwrap(),
            }),
        );
        conversation.apply(step, &Chunk::StepEnded(StepEnd::Calls));
        conversation.apply(
            step,
            &Chunk::Result {
                call: "c".into(),
                output: output.into(),
                failed: false,
            },
        );
    }

    fn compacted(from: StepId, text: &str) -> Chunk {
        Chunk::Compacted {
            from,
            text: text.into(),
            tokens: Tokens::default(),
            cost_usd: None,
            wish: None,
        }
    }

    /// At whatever size it is divided, both sides have whole steps.
    #[test]
    fn a_call_and_its_result_are_on_one_side() {
        let mut conversation = Conversation::default();
        for turn in 1..4 {
            conversation.apply(id(turn, 0), &said("do it"));
            for step in 1..4 {
                call(id(turn, step), &mut conversation, &"x".repeat(100));
            }
        }
        let whole = conversation.whole();
        assert_eq!(whole.by_step().count(), 12);
        let mut places = Vec::new();
        for bytes in 0..2000 {
            let Some(from) = whole.kept_from(bytes) else {
                assert!(bytes >= whole.bytes(), "{bytes}");
                continue;
            };
            let mut short = conversation.clone();
            short.apply(id(3, 3), &compacted(from, "notes"));
            let entries = short.entries();
            assert!(matches!(&entries[0], Entry::Said(said) if said.text == "notes"));
            let calls = |entry: &&Entry| matches!(entry, Entry::Answer { .. });
            let results = |entry: &&Entry| matches!(entry, Entry::Results { .. });
            let count = entries.iter().filter(calls).count();
            assert_eq!(count, entries.iter().filter(results).count(), "{bytes}");
            assert!(!results(&&entries[1.min(entries.len() - 1)]), "{bytes}");
            places.push(from);
        }
        places.dedup();
        assert_eq!(places.len(), 12, "every step is a place: {places:?}");
        assert_eq!(places[0], id(3, 4), "nothing is kept where nothing may be");
    }

    #[test]
    fn a_summary_alone_cannot_be_made_shorter() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.whole().kept_from(0), None);
        conversation.apply(id(1, 0), &said("do it"));
        call(id(1, 1), &mut conversation, "x");
        conversation.apply(id(1, 1), &compacted(id(1, 2), "notes"));
        assert_eq!(conversation.whole().kept_from(0), None);
        assert_eq!(conversation.whole().wanted_before(id(1, 2)), Some("do it"));
        call(id(1, 2), &mut conversation, "y");
        assert_eq!(conversation.whole().kept_from(0), Some(id(1, 3)));
        assert_eq!(conversation.whole().kept_from(1000), None, "all of it fits");
    }

    #[test]
    fn what_a_provider_counted_counts_and_the_rest_is_estimated() {
        let mut weight = Weight::default();
        weight.apply(&said(&"x".repeat(300)));
        assert_eq!(weight.tokens(), 100);
        let tokens = |input, output| Chunk::Usage {
            tokens: Tokens {
                input,
                output,
                ..Tokens::default()
            },
            cost_usd: None,
        };
        weight.apply(&tokens(0, 7));
        assert_eq!(weight.tokens(), 100, "one that counts nothing");
        weight.apply(&tokens(60, 7));
        weight.apply(&said("xxx"));
        assert_eq!(weight.tokens(), 68);
    }
}
