//! What a client makes of the frames about one run: its state, the texts that are open, the list of
//! things to do. docs/events.md says it in words; `view` has the same for everything.
//! Must not ask for anything. What is lossy only changes what is open.

use dispatch_core::update::{Todo, Voice};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::api::event::{Event, Live, Open, OpenText};

/// What is held of a text that is open, and of the lines that are kept nowhere else. The front goes
/// first.
const TEXT_BYTES_MAX: usize = 256 << 10;
const OUTPUT_BYTES_MAX: usize = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct RunView {
    /// As `dispatch list` says it; empty while nothing is known.
    pub(crate) state: String,
    /// Its agent has ended.
    pub(crate) ended: bool,
    /// Texts up to this number are closed.
    pub(crate) closed: u32,
    pub(crate) text: Option<OpenText>,
    pub(crate) output: Option<OpenText>,
    pub(crate) todo: Vec<Todo>,
}

impl RunView {
    pub(crate) fn event(&mut self, event: &Event) {
        let word = match event.kind.as_str() {
            "run_queued" => "queued",
            "admitted" => "preparing",
            "started" => "running",
            "stop_requested" => "stopping",
            "checks_started" => "checking",
            "finished" => outcome(event),
            "said" => return self.said(event),
            "agent_ended" => return self.end(),
            _ => return,
        };
        self.state = word.to_owned();
        if event.kind == "finished" {
            self.end();
        }
    }

    fn end(&mut self) {
        self.ended = true;
        (self.text, self.output) = (None, None);
    }

    fn said(&mut self, event: &Event) {
        if let Some(chunk) = member::<u32>(event, "chunk") {
            self.closed = self.closed.max(chunk);
            self.text.take_if(|text| text.chunk <= chunk);
        }
        let items = event.body.get("update").and_then(|update| {
            let items = update.get("todo")?.get("items")?;
            Vec::<Todo>::deserialize(items).ok()
        });
        if let Some(items) = items {
            self.todo = items;
        }
    }

    pub(crate) fn open(&mut self, open: &Open) {
        self.text.clone_from(&open.text);
        self.output.clone_from(&open.output);
        self.todo.clone_from(&open.todo);
    }

    /// What is being said now, for one line: the last of it that is not empty.
    #[cfg(feature = "tui")]
    pub(crate) fn last_line(&self) -> Option<&str> {
        let open = self.text.as_ref().or(self.output.as_ref())?;
        let mut lines = open.text.lines().rev();
        lines.find(|line| !line.trim().is_empty())
    }

    pub(crate) fn live(&mut self, live: &Live) {
        if self.ended {
            return;
        }
        if live.voice == Voice::Output {
            add(&mut self.output, live, OUTPUT_BYTES_MAX);
        } else if live.chunk > self.closed
            && self
                .text
                .as_ref()
                .is_none_or(|open| open.chunk <= live.chunk)
        {
            add(&mut self.text, live, TEXT_BYTES_MAX);
        }
    }
}

/// A piece joins what is there where its offset says, and what is there already is not taken twice.
/// Behind a hole, or of another text, it begins anew.
fn add(text: &mut Option<OpenText>, live: &Live, bytes_max: usize) {
    if let Some(open) = text
        && open.chunk == live.chunk
    {
        let end = open.offset + open.text.len() as u64;
        let known = end.checked_sub(live.offset);
        let known = known.and_then(|known| usize::try_from(known).ok());
        if let Some(known) = known {
            // Nothing of it is new.
            if known >= live.text.len() {
                return;
            }
            if let Some(new) = live.text.get(known..) {
                open.text.push_str(new);
                shorten(open, bytes_max);
                return;
            }
        }
    }
    let mut open = OpenText {
        chunk: live.chunk,
        voice: live.voice,
        offset: live.offset,
        text: live.text.clone(),
    };
    shorten(&mut open, bytes_max);
    *text = Some(open);
}

fn shorten(open: &mut OpenText, bytes_max: usize) {
    let mut cut = open.text.len().saturating_sub(bytes_max);
    while !open.text.is_char_boundary(cut) {
        cut += 1;
    }
    open.text.drain(..cut);
    open.offset += cut as u64;
}

pub(super) fn member<T: DeserializeOwned>(event: &Event, key: &str) -> Option<T> {
    T::deserialize(event.body.get(key)?).ok()
}

/// A word, or an object with a word for its only key.
fn outcome(event: &Event) -> &str {
    match event.body.get("outcome") {
        Some(Value::String(word)) => word,
        Some(Value::Object(one)) => one.keys().next().map_or("", String::as_str),
        _ => "",
    }
}
