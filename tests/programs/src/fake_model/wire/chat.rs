//! OpenAI Chat Completions. Thinking goes into `reasoning_content`, as the servers that have it do.
//! It must only render.

use crate::fake_model::reply::{Event, Part, Reply, pieces};
use serde_json::{Map, Value, json};

fn usage(reply: &Reply) -> Value {
    let input = reply.usage.input + reply.usage.cache_read + reply.usage.cache_write;
    json!({
        "prompt_tokens": input,
        "completion_tokens": reply.usage.output,
        "total_tokens": input + reply.usage.output,
        "prompt_tokens_details": {"cached_tokens": reply.usage.cache_read},
        "completion_tokens_details": {"reasoning_tokens": reply.usage.reasoning},
    })
}

fn finish_reason(reply: &Reply) -> &'static str {
    if reply.calls().next().is_some() {
        "tool_calls"
    } else {
        "stop"
    }
}

fn envelope(reply: &Reply, object: &str, choices: &Value) -> Value {
    json!({
        "id": reply.id("chatcmpl", 0),
        "object": object,
        "created": 1_700_000_000,
        "model": reply.model,
        "choices": choices,
    })
}

pub(super) fn whole(reply: &Reply) -> Value {
    let text_of = |wanted: fn(&Part) -> Option<&str>| -> Option<String> {
        let texts: Vec<_> = reply.parts.iter().filter_map(wanted).collect();
        (!texts.is_empty()).then(|| texts.concat())
    };
    let text = text_of(|part| match part {
        Part::Text(text) => Some(text),
        Part::Thinking(_) | Part::Call(_) => None,
    });
    let thinking = text_of(|part| match part {
        Part::Thinking(text) => Some(text),
        Part::Text(_) | Part::Call(_) => None,
    });
    let mut message = Map::new();
    message.insert("role".to_owned(), json!("assistant"));
    message.insert("content".to_owned(), json!(text));
    if let Some(thinking) = thinking {
        message.insert("reasoning_content".to_owned(), json!(thinking));
    }
    let calls: Vec<_> = reply
        .calls()
        .enumerate()
        .map(|(index, call)| {
            json!({
                "id": reply.id("call", index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments()},
            })
        })
        .collect();
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), json!(calls));
    }
    let choice = json!([{"index": 0, "message": message, "finish_reason": finish_reason(reply)}]);
    let mut whole = envelope(reply, "chat.completion", &choice);
    whole["usage"] = usage(reply);
    whole
}

pub(super) fn events(reply: &Reply) -> Vec<Event> {
    let chunk = |choices: Value| envelope(reply, "chat.completion.chunk", &choices);
    let mut events = Vec::new();
    let mut send = |delta: Value, finish: Option<&str>| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        events.push(Event::plain(&chunk(choices)));
    };
    send(json!({"role": "assistant", "content": ""}), None);
    let mut calls = 0;
    for part in &reply.parts {
        match part {
            Part::Thinking(text) => {
                for piece in pieces(text) {
                    send(json!({"reasoning_content": piece}), None);
                }
            }
            Part::Text(text) => {
                for piece in pieces(text) {
                    send(json!({"content": piece}), None);
                }
            }
            Part::Call(call) => {
                let opening = json!({
                    "index": calls,
                    "id": reply.id("call", calls),
                    "type": "function",
                    "function": {"name": call.name, "arguments": ""},
                });
                send(json!({"tool_calls": [opening]}), None);
                for piece in pieces(&call.arguments()) {
                    let more = json!({"index": calls, "function": {"arguments": piece}});
                    send(json!({"tool_calls": [more]}), None);
                }
                calls += 1;
            }
        }
    }
    send(json!({}), Some(finish_reason(reply)));
    let mut last = chunk(json!([]));
    last["usage"] = usage(reply);
    events.push(Event::plain(&last));
    events.push(Event {
        name: None,
        data: "[DONE]".to_owned(),
    });
    events
}
