//! What a watcher sees of a run's texts while they are said.

use std::collections::BTreeMap;

use dispatch_core::{
    event::Kind,
    id::RunId,
    update::{ChunkId, Update, Voice},
};
use dispatch_engine::{engine::Engine, view::Told};

use super::patient;

/// Texts that came in pieces, and their wholes.
#[derive(Debug, Default)]
pub struct Pieces {
    pub told: BTreeMap<ChunkId, (Voice, String, usize)>,
    pub whole: BTreeMap<ChunkId, Update>,
}

/// Of a run, to its end, from its start. Each piece must join the one before.
pub async fn watch(engine: &Engine, run: RunId) -> Pieces {
    let mut stream = engine.watch(0, Some([run.task].into()));
    let mut pieces = Pieces::default();
    loop {
        match patient(stream.next()).await.unwrap() {
            Told::Live(live) if live.voice != Voice::Output => {
                let new = || (live.voice, String::new(), 0);
                let (voice, text, count) = pieces.told.entry(live.chunk).or_insert_with(new);
                assert_eq!((live.voice, live.offset), (*voice, text.len() as u64));
                text.push_str(&live.text);
                *count += 1;
            }
            // It had begun before we listened.
            Told::Open { open, .. } => {
                if let Some(open) = &open.text {
                    assert_eq!(open.offset, 0);
                    let known = (open.voice, open.text.clone(), 1);
                    pieces.told.insert(open.chunk, known);
                }
            }
            Told::Event(event) => match &event.kind {
                Kind::Said {
                    update,
                    chunk: Some(chunk),
                    ..
                } => {
                    pieces.whole.insert(*chunk, update.clone());
                }
                Kind::Finished { .. } => return pieces,
                _ => {}
            },
            _ => {}
        }
    }
}

impl Pieces {
    /// Each text that was told piece by piece is the one that its event has, whatever the CLI does to
    /// blanks at its ends.
    pub fn hold(&self, said: &str) {
        for (chunk, (voice, text, _)) in &self.told {
            let whole = match (voice, self.whole.get(chunk)) {
                (Voice::Thinking, Some(Update::Thinking { text })) => text,
                (Voice::Text, Some(Update::Text { text })) => text,
                other => panic!("{chunk}: {other:?} in {self:#?}"),
            };
            assert_eq!(text.trim(), whole.trim(), "{self:#?}");
        }
        // The adapter of Codex says its warnings in front.
        let mut told = self.told.values();
        let told = told.any(|(_, text, _)| text.trim().ends_with(said));
        assert!(told, "{said} is not in {self:#?}");
    }
}
