//! One event of the log as one JSON line, and the live lines beside it.
//! Must not interpret an event: its body goes out as core writes it.

use dispatch_core::event::Event as CoreEvent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::time;

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

/// A line of a running agent; lossy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Live {
    pub(crate) task: String,
    pub(crate) run: u32,
    pub(crate) text: String,
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
            serde_json::to_string(&Event::from(&event)).unwrap()
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
    }
}
