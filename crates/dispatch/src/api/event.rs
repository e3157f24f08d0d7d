//! What a subscriber is sent: events of the log, and beside them what is in no event yet
//! (docs/events.md). Must not interpret an event: its body goes out as core writes it.

use dispatch_core::{
    ask::Ask,
    event::Event as CoreEvent,
    message::{Fate, Message, Sender},
    update::{Todo, Voice},
};
use dispatch_engine::view;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{shapes, time};

/// By the word that says which of them it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame {
    Event(Box<Event>),
    Live(Live),
    Open(Box<Open>),
    At(At),
}

impl Frame {
    /// The words besides those of the events themselves that `kinds` can name.
    pub(crate) const LIVE: &str = "live";
    pub(crate) const OPEN: &str = "open";

    /// `None`: a frame of a newer server, which is none of ours.
    pub(crate) fn parse(word: &str, data: &str) -> Option<serde_json::Result<Self>> {
        Some(match word {
            "event" => serde_json::from_str(data).map(Self::Event),
            Self::LIVE => serde_json::from_str(data).map(Self::Live),
            Self::OPEN => serde_json::from_str(data).map(Self::Open),
            "at" => serde_json::from_str(data).map(Self::At),
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) at: String,
    pub(crate) task: Option<String>,
    pub(crate) run: Option<u32>,
    pub(crate) kind: String,
    #[serde(flatten)]
    pub(crate) body: Map<String, Value>,
}

/// A piece of what a running agent says. Lossy: its offset shows what is missing before it, and the
/// event `said` with the same chunk has the whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Live {
    pub(crate) task: String,
    pub(crate) run: u32,
    pub(crate) chunk: u32,
    #[schemars(with = "shapes::Voice")]
    pub(crate) voice: Voice,
    /// Bytes of the text before this piece.
    pub(crate) offset: u64,
    pub(crate) text: String,
    /// Always true.
    pub(crate) lossy: bool,
}

/// What is open in a live run, true at `seq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Open {
    pub(crate) seq: u64,
    pub(crate) task: String,
    pub(crate) run: u32,
    pub(crate) text: Option<OpenText>,
    pub(crate) output: Option<OpenText>,
    #[schemars(with = "Vec<shapes::Todo>")]
    pub(crate) todo: Vec<Todo>,
    pub(crate) messages: Vec<OpenMessage>,
    pub(crate) asks: Vec<OpenAsk>,
}

/// The end of a text so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OpenText {
    pub(crate) chunk: u32,
    #[schemars(with = "shapes::Voice")]
    pub(crate) voice: Voice,
    /// Bytes of the text before what is here.
    pub(crate) offset: u64,
    pub(crate) text: String,
}

/// With the names that the event `message_queued` has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OpenMessage {
    pub(crate) message: u32,
    #[schemars(with = "shapes::Sender")]
    pub(crate) from: Sender,
    /// A long one is cut.
    pub(crate) text: String,
    pub(crate) state: MessageState,
    /// That has it.
    pub(crate) run: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MessageState {
    /// Until a person says something.
    Held,
    Waiting,
    OnItsWay,
    /// It comes back when the agent ends without having taken it up.
    Delivered,
}

/// With the names that the event `permission_asked` has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct OpenAsk {
    pub(crate) ask: u32,
    pub(crate) tool: String,
    pub(crate) input: String,
    #[schemars(with = "shapes::Sender")]
    pub(crate) owner: Sender,
    /// In milliseconds since 1970.
    pub(crate) until: u64,
}

/// Everything up to this event has been sent that was asked for: a position to come back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct At {
    pub(crate) seq: u64,
}

impl From<&view::Live> for Live {
    fn from(live: &view::Live) -> Self {
        Self {
            task: live.run.task.to_string(),
            run: live.run.n,
            chunk: live.chunk.0,
            voice: live.voice,
            offset: live.offset,
            text: live.text.clone(),
            lossy: true,
        }
    }
}

impl From<&view::OpenText> for OpenText {
    fn from(open: &view::OpenText) -> Self {
        Self {
            chunk: open.chunk.0,
            voice: open.voice,
            offset: open.offset,
            text: open.text.clone(),
        }
    }
}

impl From<&Message> for OpenMessage {
    fn from(message: &Message) -> Self {
        let state = match (message.fate, message.taken) {
            (Fate::Waiting, None) if message.held => MessageState::Held,
            (Fate::Waiting, None) => MessageState::Waiting,
            (Fate::Waiting, Some(_)) => MessageState::OnItsWay,
            (Fate::Delivered(_) | Fate::Cancelled, _) => MessageState::Delivered,
        };
        Self {
            message: message.id.0,
            from: message.from,
            text: message.text.clone(),
            state,
            run: message.taken.map(|taken| taken.run),
        }
    }
}

impl From<&Ask> for OpenAsk {
    fn from(ask: &Ask) -> Self {
        Self {
            ask: ask.id.0,
            tool: ask.tool.clone(),
            input: ask.input.clone(),
            owner: ask.owner,
            until: ask.until,
        }
    }
}

impl Open {
    pub(crate) fn new(seq: u64, open: &view::Open) -> Self {
        Self {
            seq,
            task: open.run.task.to_string(),
            run: open.run.n,
            text: open.text.as_ref().map(OpenText::from),
            output: open.output.as_ref().map(OpenText::from),
            todo: open.todo.clone(),
            messages: open.messages.iter().map(OpenMessage::from).collect(),
            asks: open.asks.iter().map(OpenAsk::from).collect(),
        }
    }
}

impl From<&CoreEvent> for Event {
    fn from(event: &CoreEvent) -> Self {
        // A kind serialises as its word alone, or as { word: body }.
        let body = match serde_json::to_value(&event.kind) {
            Ok(Value::Object(kind)) => match kind.into_iter().next() {
                Some((_, Value::Object(body))) => body,
                _ => Map::new(),
            },
            _ => Map::new(),
        };
        Self {
            seq: event.seq,
            at: time(event.at),
            task: event.subject.task().map(|task| task.to_string()),
            run: event.subject.run().map(|run| run.n),
            kind: event.kind.word().into(),
            body,
        }
    }
}

/// An event as one line of JSON. `kind` is its kind as the log has it: the word alone, or
/// `{"word":{..}}`, whose members go out as they are.
pub(crate) fn line(event: &CoreEvent, kind: &str) -> String {
    let word = event.kind.word();
    let body = kind
        .strip_prefix("{\"")
        .and_then(|rest| rest.strip_prefix(word)?.strip_prefix("\":{"))
        .and_then(|rest| rest.strip_suffix("}}"));
    let task = event.subject.task();
    let task = task.map_or_else(|| "null".to_owned(), |task| format!("\"{task}\""));
    let run = event.subject.run();
    let run = run.map_or_else(|| "null".to_owned(), |run| run.n.to_string());
    let (seq, at) = (event.seq, time(event.at));
    let comma = if body.is_some_and(|body| !body.is_empty()) {
        ","
    } else {
        ""
    };
    let body = body.unwrap_or_default();
    format!(
        "{{\"seq\":{seq},\"at\":\"{at}\",\"task\":{task},\"run\":{run},\"kind\":\"{word}\"{comma}{body}}}"
    )
}

impl Event {
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.body.get(key)?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::{
        event::{Kind, Subject},
        id::{RunId, TaskId},
    };

    use super::*;

    #[test]
    fn the_schema_of_an_event() {
        let task = TaskId::from_bits(0x3f);
        let line = |subject, kind| {
            let event = CoreEvent {
                seq: 7,
                at: 1_000,
                subject,
                kind,
            };
            let whole = serde_json::to_string(&Event::from(&event)).unwrap();
            let kind = serde_json::to_string(&event.kind).unwrap();
            assert_eq!(super::line(&event, &kind), whole);
            whole
        };
        let started = line(
            Subject::Engine,
            Kind::EngineStarted {
                version: "1".into(),
            },
        );
        assert_eq!(
            started,
            r#"{"seq":7,"at":"1970-01-01T00:00:01.000Z","task":null,"run":null,"kind":"engine_started","version":"1"}"#
        );
        let admitted = line(Subject::Run(RunId { task, n: 2 }), Kind::Admitted);
        assert_eq!(
            admitted,
            r#"{"seq":7,"at":"1970-01-01T00:00:01.000Z","task":"000000000000003f","run":2,"kind":"admitted"}"#
        );
        let back: Event = serde_json::from_str(&started).unwrap();
        assert_eq!(back.text("version"), Some("1"));
        let text = "}} {\"a\":1}\n".to_owned();
        let noted = line(Subject::Task(task), Kind::Noted { text });
        let back: Event = serde_json::from_str(&noted).unwrap();
        assert_eq!(back.text("text"), Some("}} {\"a\":1}\n"));
    }
}
