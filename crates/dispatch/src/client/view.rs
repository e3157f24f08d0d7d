//! What a client makes of a whole stream of frames: docs/events.md, as code. `tests/golden/fold.jsonl`
//! and what comes of it hold both, and whoever does the same in another language.
//! Must not ask for anything, and must come to the same view however the stream was cut, as long as no
//! event is missing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::fold::{RunView, member};
use crate::api::{
    event::{Event, Frame, MessageState, Open, OpenAsk, OpenMessage},
    task::Message,
};

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct View {
    /// The last event that is in it.
    pub(crate) seq: u64,
    pub(crate) tasks: BTreeMap<String, TaskView>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct TaskView {
    pub(crate) title: String,
    pub(crate) agent: String,
    pub(crate) removed: bool,
    pub(crate) runs: BTreeMap<u32, RunView>,
    pub(crate) messages: Vec<Waiting>,
    pub(crate) asks: Vec<Asking>,
}

/// A message that no agent has taken up for sure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Waiting {
    pub(crate) message: u32,
    pub(crate) from: Value,
    pub(crate) text: String,
    pub(crate) state: MessageState,
    pub(crate) run: Option<u32>,
}

impl Waiting {
    /// As an answer of the API tells of it. `None`: nobody will hear it any more.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        let state = match message.state.as_str() {
            "held" => MessageState::Held,
            "waiting" => MessageState::Waiting,
            "on_its_way" => MessageState::OnItsWay,
            "delivered" => MessageState::Delivered,
            _ => return None,
        };
        let from = match message.from.as_str() {
            word @ ("person" | "dispatch") => json!(word),
            task => json!({"task": task}),
        };
        Some(Self {
            message: message.id,
            from,
            text: message.text.clone(),
            state,
            run: message.run,
        })
    }
}

/// A permission that an agent waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Asking {
    pub(crate) ask: u32,
    pub(crate) run: u32,
    pub(crate) tool: String,
    pub(crate) input: String,
    pub(crate) owner: Value,
    pub(crate) until: u64,
}

impl View {
    pub(crate) fn hear(&mut self, frame: &Frame) {
        match frame {
            Frame::Event(event) => self.event(event),
            Frame::Live(live) => self.run(&live.task, live.run).live(live),
            Frame::Open(open) => self.open(open),
            Frame::At(at) => self.seq = self.seq.max(at.seq),
        }
    }

    fn task(&mut self, id: &str) -> &mut TaskView {
        self.tasks.entry(id.to_owned()).or_default()
    }

    fn run(&mut self, task: &str, n: u32) -> &mut RunView {
        self.task(task).runs.entry(n).or_default()
    }

    fn event(&mut self, event: &Event) {
        // Whoever comes back may hear it again.
        if event.seq <= self.seq {
            return;
        }
        self.seq = event.seq;
        let Some(id) = &event.task else {
            return;
        };
        let task = self.task(id);
        match event.run {
            None => task.event(event),
            Some(n) => task.run_event(n, event),
        }
    }

    /// It stands in place of what was heard live.
    fn open(&mut self, open: &Open) {
        self.seq = self.seq.max(open.seq);
        let task = self.task(&open.task);
        let known = std::mem::take(&mut task.messages);
        let message = |now: &OpenMessage| {
            let mut known = known.iter().filter(|known| known.message == now.message);
            Waiting {
                message: now.message,
                from: plain(&now.from),
                // A long one is cut in an open frame.
                text: known.next().map_or(&now.text, |known| &known.text).clone(),
                state: now.state,
                run: now.run,
            }
        };
        task.messages = open.messages.iter().map(message).collect();
        let ask = |now: &OpenAsk| Asking {
            ask: now.ask,
            run: open.run,
            tool: now.tool.clone(),
            input: now.input.clone(),
            owner: plain(&now.owner),
            until: now.until,
        };
        task.asks = open.asks.iter().map(ask).collect();
        task.runs.entry(open.run).or_default().open(open);
    }
}

impl TaskView {
    fn event(&mut self, event: &Event) {
        match event.kind.as_str() {
            "task_created" => {
                let spec = event.body.get("spec");
                let word = |key| Some(spec?.get(key)?.as_str()?.to_owned());
                self.title = word("title").unwrap_or_default();
                self.agent = word("agent").unwrap_or_default();
            }
            "agent_set" => self.agent = event.text("agent").unwrap_or_default().to_owned(),
            "task_removed" => self.removed = true,
            "task_restored" => self.removed = false,
            "message_queued" => {
                let Some(message) = member(event, "message") else {
                    return;
                };
                let from = event.body.get("from").cloned().unwrap_or_default();
                let held = event.body.get("held") == Some(&Value::Bool(true));
                if from == "person" {
                    self.let_go();
                }
                self.messages.push(Waiting {
                    message,
                    from,
                    text: event.text("text").unwrap_or_default().to_owned(),
                    state: if held {
                        MessageState::Held
                    } else {
                        MessageState::Waiting
                    },
                    run: None,
                });
            }
            "message_cancelled" => {
                let gone = member(event, "message");
                self.messages.retain(|known| Some(known.message) != gone);
            }
            _ => {}
        }
    }

    fn run_event(&mut self, n: u32, event: &Event) {
        let run = self.runs.entry(n).or_default();
        run.event(event);
        match event.kind.as_str() {
            // Whoever began to listen in the middle may not know the state.
            "permission_asked" if matches!(&*run.state, "running" | "") && !run.ended => {
                self.asks.extend(asking(n, event));
            }
            "permission_answered" => {
                let answered = member(event, "ask");
                self.asks.retain(|known| Some(known.ask) != answered);
            }
            "message_taken" => self.message(event, MessageState::OnItsWay, Some(n)),
            "message_delivered" => self.message(event, MessageState::Delivered, Some(n)),
            "message_returned" => self.message(event, MessageState::Waiting, None),
            "stop_requested" => self.asks.clear(),
            "agent_ended" => self.asks.clear(),
            "finished" => {
                self.asks.clear();
                // What it has heard is no news any more; the rest waits for the next one.
                let heard = |known: &Waiting| known.state == MessageState::Delivered;
                self.messages
                    .retain(|known| known.run != Some(n) || !heard(known));
                for known in &mut self.messages {
                    if known.run == Some(n) {
                        (known.state, known.run) = (MessageState::Waiting, None);
                    }
                }
            }
            _ => {}
        }
    }

    /// A person has said something.
    fn let_go(&mut self) {
        let held = |known: &&mut Waiting| known.state == MessageState::Held;
        for known in self.messages.iter_mut().filter(held) {
            known.state = MessageState::Waiting;
        }
    }

    /// One that is not known was said before this client began to listen.
    fn message(&mut self, event: &Event, state: MessageState, run: Option<u32>) {
        let wanted = member(event, "message");
        let mut known = self.messages.iter_mut();
        if let Some(known) = known.find(|known| Some(known.message) == wanted) {
            (known.state, known.run) = (state, run);
        }
    }
}

/// As it is in an event.
fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn asking(run: u32, event: &Event) -> Option<Asking> {
    Some(Asking {
        ask: member(event, "ask")?,
        run,
        tool: event.text("tool").unwrap_or_default().to_owned(),
        input: event.text("input").unwrap_or_default().to_owned(),
        owner: event.body.get("owner").cloned().unwrap_or_default(),
        until: member(event, "until").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::json;

    use super::*;

    /// After a change that was meant, take the new text out of the failing test, and read the diff.
    #[test]
    fn golden_frames_come_to_the_golden_views() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fold.jsonl");
        let text = fs::read_to_string(file).unwrap();
        let (mut view, mut now) = (View::default(), String::new());
        for line in text.lines() {
            let parsed: Value = serde_json::from_str(line).unwrap();
            if let Some(word) = parsed["event"].as_str() {
                let data = parsed["data"].to_string();
                if let Some(frame) = Frame::parse(word, &data) {
                    view.hear(&frame.unwrap());
                }
            }
            if parsed.get("view").is_some() {
                now.push_str(&json!({"view": view}).to_string());
            } else {
                now.push_str(line);
            }
            now.push('\n');
        }
        assert!(now == text, "=== golden/fold.jsonl\n{now}===\n");
    }
}
