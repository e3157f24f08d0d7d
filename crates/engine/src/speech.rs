//! What a run's agent says before it is whole: masked across the seams of its pieces, counted in
//! bytes, gathered for whoever looks. A replay counts the same bytes again.
//! Must not be waited for; nothing may depend on it.

use std::sync::Arc;

use dispatch_core::{
    id::RunId,
    redact::Redactor,
    update::{ChunkId, Update, Voice},
};

use crate::{tail::Tail, view::Live};

/// One text as it is shown.
#[derive(Debug)]
struct Shown {
    chunk: ChunkId,
    voice: Voice,
    masks: Redactor,
    /// Bytes of it that have been told.
    bytes: u64,
    /// What comes next, not told yet.
    text: String,
}

#[derive(Debug)]
pub(crate) struct Speech {
    run: RunId,
    tail: Arc<Tail>,
    masks: Redactor,
    output: Shown,
    text: Option<Shown>,
}

impl Shown {
    fn new(chunk: ChunkId, voice: Voice, masks: &Redactor) -> Self {
        Self {
            chunk,
            voice,
            masks: masks.clone(),
            bytes: 0,
            text: String::new(),
        }
    }

    fn push(&mut self, text: &str) {
        // A mask may begin and end inside of a letter's bytes; what is shown of it then is not it.
        let shown = self.masks.push(text.as_bytes());
        self.text.push_str(&String::from_utf8_lossy(&shown));
    }

    fn tell(&mut self, run: RunId, tail: &Tail) {
        if self.text.is_empty() {
            return;
        }
        let text = std::mem::take(&mut self.text);
        let offset = self.bytes;
        self.bytes += text.len() as u64;
        tail.tell_live(Live {
            run,
            chunk: self.chunk,
            voice: self.voice,
            offset,
            text,
        });
    }
}

impl Speech {
    /// `masks` is at its beginning.
    pub(crate) fn new(run: RunId, tail: Arc<Tail>, masks: Redactor) -> Self {
        Self {
            run,
            tail,
            output: Shown::new(ChunkId::OUTPUT, Voice::Output, &masks),
            masks,
            text: None,
        }
    }

    /// A line that is only for the eye.
    pub(crate) fn line(&mut self, line: &str) {
        self.output.push(line);
        self.output.push("\n");
    }

    pub(crate) fn piece(&mut self, chunk: ChunkId, voice: Voice, text: &str) {
        if self.text.as_ref().is_none_or(|open| open.chunk != chunk) {
            self.flush();
            self.text = Some(Shown::new(chunk, voice, &self.masks));
        }
        if let Some(open) = &mut self.text {
            open.push(text);
        }
    }

    /// Tells what has come together: once for what came at once.
    pub(crate) fn flush(&mut self) {
        self.output.tell(self.run, &self.tail);
        if let Some(open) = &mut self.text {
            open.tell(self.run, &self.tail);
        }
    }

    /// An update that is in the log already.
    pub(crate) fn known(&mut self, chunk: Option<ChunkId>, update: &Update) {
        self.flush();
        self.tail.known(self.run, chunk, update);
    }

    /// All that was there when we began to listen has been heard.
    pub(crate) fn caught_up(&mut self) {
        self.flush();
        self.tail.show(self.run);
    }
}
