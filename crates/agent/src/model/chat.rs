//! OpenAI Chat Completions, as the many servers have it that are compatible with it. An answer is one
//! message that grows; it is kept in pieces which put together are that message again, members
//! included that only this server knows (`reasoning_content`, signatures of thoughts).
//! Must not depend on more than the common part: no end mark, no count, no ids of calls.

use std::collections::BTreeMap;

use dispatch_core::{
    attach::MediaKind,
    native::{Block, Raw, StepEnd, Tokens},
};
use serde_json::{Map, Value, json};

use super::{
    Decode, Heard, ModelError, Question, ToolSpec,
    body::Segment,
    entry::{Entry, Origin, Said},
    head,
    ids::CallIds,
    media::Part,
    sse::Event,
};

/// Calls of one answer.
const CALLS_MAX: usize = 1024;
/// Names under which servers stream what a model thinks.
const THINKING: [&str; 2] = ["reasoning_content", "reasoning"];
/// Members whose pieces are joined; of all others the last one is taken.
const GROWING: [&str; 8] = [
    "content",
    "reasoning_content",
    "reasoning",
    "refusal",
    "arguments",
    "text",
    "summary",
    "input",
];

pub(super) fn frame(question: &Question<'_>) -> Result<(String, &'static str), serde_json::Error> {
    let endpoint = question.endpoint;
    let mut fields = json!({
        "model": endpoint.model.as_str(),
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if let Some(tokens) = endpoint.row.max_output_tokens {
        fields["max_tokens"] = json!(tokens);
    }
    let open = head(fields, question, tool)?;
    let system = serde_json::to_string(&json!({"role": "system", "content": question.system}))?;
    Ok((format!("{open},\"messages\":[{system}"), "]}"))
}

fn tool(tool: &ToolSpec) -> Value {
    json!({"type": "function", "function": {
        "name": tool.name, "description": tool.help, "parameters": tool.schema,
    }})
}

pub(super) fn segment(
    origin: &Origin,
    entry: &Entry,
    parts: &[Part],
) -> Result<Option<Segment>, serde_json::Error> {
    let mut messages = Vec::new();
    match entry {
        Entry::Said(told) => messages.push(said(told, parts)),
        Entry::Results {
            results,
            said: more,
        } => {
            messages.extend(results.iter().map(|result| {
                json!({"role": "tool", "tool_call_id": result.call, "content": result.output})
            }));
            messages.extend(more.iter().map(|told| said(told, parts)));
        }
        Entry::Answer {
            origin: own,
            blocks,
            ..
        } => messages.extend(answer(own == origin, blocks)?),
    }
    let texts: Result<Vec<String>, _> = messages.iter().map(serde_json::to_string).collect();
    let texts = texts?;
    Ok((!texts.is_empty()).then(|| Segment::plain(texts.join(","))))
}

/// A text alone is no list: some servers know nothing else.
fn said(told: &Said, parts: &[Part]) -> Value {
    if parts.is_empty() {
        return json!({"role": "user", "content": told.text});
    }
    let words = |text: &str| json!({"type": "text", "text": text});
    let part = |part: &Part| match part {
        Part::Words(text) => words(text),
        Part::File { media, name, data } => {
            let url = format!("data:{};base64,{data}", media.word());
            match media.kind() {
                MediaKind::Image => json!({"type": "image_url", "image_url": {"url": url}}),
                MediaKind::Pdf => {
                    json!({"type": "file", "file": {"filename": name, "file_data": url}})
                }
            }
        }
    };
    let mut content: Vec<Value> = parts.iter().map(part).collect();
    content.push(words(&told.text));
    json!({"role": "user", "content": content})
}

fn answer(own: bool, blocks: &[Block]) -> Result<Option<Value>, serde_json::Error> {
    let mut message = Map::new();
    for block in blocks {
        let piece = match block {
            _ if own => serde_json::from_str(block.raw().text())?,
            Block::Text { text, .. } => json!({"content": text}),
            Block::Call {
                id, name, input, ..
            } => piece_of_call(id, name, input),
            Block::Thinking { .. } | Block::Other { .. } => continue,
        };
        merge(&mut message, piece);
    }
    if message.is_empty() {
        return Ok(None);
    }
    let mut whole = Map::new();
    whole.insert("role".into(), json!("assistant"));
    if !message.contains_key("content") {
        // Null is for calls; a message with neither is refused by many.
        let calls = message.contains_key("tool_calls");
        let content = if calls { Value::Null } else { json!("") };
        whole.insert("content".into(), content);
    }
    whole.extend(message);
    Ok(Some(Value::Object(whole)))
}

fn piece_of_call(id: &str, name: &str, input: &str) -> Value {
    let input = if input.trim().is_empty() { "{}" } else { input };
    json!({"tool_calls": [{
        "id": id, "type": "function", "function": {"name": name, "arguments": input},
    }]})
}

/// Pieces of one object into one: texts that grow are joined, lists are, objects are merged.
fn merge(into: &mut Map<String, Value>, piece: Value) {
    let Value::Object(members) = piece else {
        return;
    };
    for (name, value) in members {
        match (into.get_mut(&name), value) {
            (_, Value::Null) => {}
            (Some(Value::String(text)), Value::String(more)) if GROWING.contains(&&*name) => {
                text.push_str(&more);
            }
            (Some(Value::Array(items)), Value::Array(more)) => merge_lists(items, more),
            (Some(Value::Object(inner)), more @ Value::Object(_)) => merge(inner, more),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}

/// An item with the index of one that is there is a piece of it.
fn merge_lists(items: &mut Vec<Value>, more: Vec<Value>) {
    for item in more {
        let index = item.get("index").cloned();
        let same = items
            .iter_mut()
            .find(|known| index.is_some() && known.get("index") == index.as_ref());
        match same {
            Some(Value::Object(known)) => merge(known, item),
            _ => items.push(item),
        }
    }
}

/// What of the message is growing now. Something else begins: this is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growing {
    Thinking(&'static str),
    Text,
}

#[derive(Debug)]
pub(super) struct Decoder {
    ids: CallIds,
    growing: Option<Growing>,
    text: String,
    calls: BTreeMap<u64, Map<String, Value>>,
    /// What only this server knows.
    rest: Map<String, Value>,
    tokens: Tokens,
    end: Option<StepEnd>,
}

impl Decoder {
    pub(super) fn new(ids: CallIds) -> Self {
        Self {
            ids,
            growing: None,
            text: String::new(),
            calls: BTreeMap::new(),
            rest: Map::new(),
            tokens: Tokens::default(),
            end: None,
        }
    }

    fn grow(&mut self, what: Growing, more: &str) -> Result<Vec<Heard>, ModelError> {
        if more.is_empty() {
            return Ok(Vec::new());
        }
        let mut heard = Vec::new();
        if self.growing != Some(what) {
            heard.extend(self.close()?);
            self.growing = Some(what);
        }
        self.text.push_str(more);
        heard.push(match what {
            Growing::Thinking(_) => Heard::Thinking(more.to_owned()),
            Growing::Text => Heard::Text(more.to_owned()),
        });
        Ok(heard)
    }

    fn close(&mut self) -> Result<Option<Heard>, ModelError> {
        let text = std::mem::take(&mut self.text);
        let Some(what) = self.growing.take() else {
            return Ok(None);
        };
        let block = match what {
            Growing::Thinking(name) => Block::Thinking {
                raw: raw(&json!({name: text}))?,
                text,
            },
            Growing::Text => Block::Text {
                raw: raw(&json!({"content": text}))?,
                text,
            },
        };
        Ok(Some(Heard::Closed(block)))
    }

    fn piece(&mut self, delta: Value) -> Result<Vec<Heard>, ModelError> {
        let Value::Object(members) = delta else {
            return Ok(Vec::new());
        };
        let mut heard = Vec::new();
        for (name, value) in members {
            let thinking = THINKING.iter().find(|known| **known == name);
            match (thinking, name.as_str(), value) {
                (_, "role", _) | (_, _, Value::Null) => {}
                (Some(name), _, Value::String(more)) => {
                    heard.extend(self.grow(Growing::Thinking(name), &more)?);
                }
                (_, "content", Value::String(more)) => {
                    heard.extend(self.grow(Growing::Text, &more)?);
                }
                (_, "tool_calls", Value::Array(pieces)) => {
                    heard.extend(self.close()?);
                    self.call_pieces(pieces)?;
                }
                (_, _, value) => merge(&mut self.rest, json!({name: value})),
            }
        }
        Ok(heard)
    }

    fn call_pieces(&mut self, pieces: Vec<Value>) -> Result<(), ModelError> {
        for mut piece in pieces {
            // A server that tells no index tells each call whole.
            let index = match piece["index"].as_u64() {
                Some(index) => index,
                None => self.calls.len() as u64,
            };
            if let Value::Object(members) = &mut piece {
                members.remove("index");
            }
            if self.calls.len() >= CALLS_MAX && !self.calls.contains_key(&index) {
                return Err(ModelError::protocol(format!("more than {CALLS_MAX} calls")));
            }
            merge(self.calls.entry(index).or_default(), piece);
        }
        Ok(())
    }

    fn closed_calls(&mut self) -> Result<Vec<Heard>, ModelError> {
        let mut heard = Vec::new();
        for mut call in std::mem::take(&mut self.calls).into_values() {
            let came = call.get("id").and_then(Value::as_str).unwrap_or_default();
            let id = self.ids.name(came);
            if id != came {
                call.insert("id".into(), json!(id));
            }
            call.entry("type").or_insert_with(|| json!("function"));
            let function = call.get("function").cloned().unwrap_or_default();
            let input = match &function["arguments"] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                // Some servers send the object itself.
                other => other.to_string(),
            };
            let name = function["name"].as_str().unwrap_or_default().to_owned();
            let raw = raw(&json!({"tool_calls": [call]}))?;
            heard.push(Heard::Closed(Block::Call {
                id,
                name,
                input,
                raw,
            }));
        }
        Ok(heard)
    }

    fn count(&mut self, usage: &Value) {
        let count = |places: &[&str]| {
            let mut found = places
                .iter()
                .filter_map(|place| usage.pointer(place)?.as_u64());
            found.next().unwrap_or(0)
        };
        if !usage.is_object() {
            return;
        }
        let cached = count(&[
            "/prompt_tokens_details/cached_tokens",
            "/prompt_cache_hit_tokens",
        ]);
        let written = count(&["/prompt_tokens_details/cache_write_tokens"]);
        let all = count(&["/prompt_tokens"]);
        self.tokens = Tokens {
            input: all.saturating_sub(cached + written),
            cache_read: cached,
            cache_write: written,
            output: count(&["/completion_tokens"]),
            reasoning: count(&["/completion_tokens_details/reasoning_tokens"]),
        };
    }
}

impl Decode for Decoder {
    fn hear(&mut self, event: &Event) -> Result<Vec<Heard>, ModelError> {
        if event.data.trim() == "[DONE]" {
            return Ok(Vec::new());
        }
        let mut data: Value = serde_json::from_str(&event.data)?;
        if let Some(error) = data.get("error").filter(|error| !error.is_null()) {
            return Err(ModelError::of_event(error));
        }
        self.count(&data["usage"]);
        // The last event of many streams has a count and no choice.
        let Some(choice) = data.pointer_mut("/choices/0") else {
            return Ok(Vec::new());
        };
        let delta = choice.get_mut("delta").map(Value::take).unwrap_or_default();
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.end = Some(match reason {
                "length" => StepEnd::Full,
                "content_filter" => StepEnd::Refused,
                _ => StepEnd::Done,
            });
        }
        self.piece(delta)
    }

    fn finish(&mut self) -> Result<Vec<Heard>, ModelError> {
        let Some(mut end) = self.end.take() else {
            return Err(ModelError::cut());
        };
        let mut heard: Vec<Heard> = self.close()?.into_iter().collect();
        let calls = self.closed_calls()?;
        // Some servers say `stop` where they mean `tool_calls`.
        if end == StepEnd::Done && !calls.is_empty() {
            end = StepEnd::Calls;
        }
        heard.extend(calls);
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            let raw = raw(&Value::Object(rest))?;
            heard.push(Heard::Closed(Block::Other { raw }));
        }
        heard.extend([Heard::Tokens(self.tokens), Heard::Ended(end)]);
        Ok(heard)
    }
}

fn raw(value: &Value) -> Result<Raw, ModelError> {
    Ok(Raw::parse(serde_json::to_string(value)?)?)
}
