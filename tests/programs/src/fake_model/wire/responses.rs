//! OpenAI Responses. It must only render.

use crate::fake_model::{
    reply::{Event, Part, Reply, pieces},
    tools::Kind,
};
use serde_json::{Value, json};

fn item(reply: &Reply, index: usize, part: &Part) -> Value {
    match part {
        Part::Thinking(text) => json!({
            "type": "reasoning",
            "id": reply.id("rs", index),
            "summary": [{"type": "summary_text", "text": text}],
        }),
        Part::Text(text) => json!({
            "type": "message",
            "id": reply.id("msg", index),
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }),
        Part::Call(call) => {
            let call_id = reply.id("call", index);
            let mut item = match call.kind {
                Kind::Function => json!({
                    "type": "function_call",
                    "id": reply.id("fc", index),
                    "call_id": call_id,
                    "name": call.name,
                    "arguments": call.arguments(),
                    "status": "completed",
                }),
                Kind::Custom => json!({
                    "type": "custom_tool_call",
                    "id": reply.id("ctc", index),
                    "call_id": call_id,
                    "name": call.name,
                    "input": call.input,
                    "status": "completed",
                }),
                Kind::LocalShell => json!({
                    "type": "local_shell_call",
                    "id": reply.id("lsc", index),
                    "call_id": call_id,
                    "action": {"type": "exec", "command": call.input["command"], "env": {}},
                    "status": "completed",
                }),
            };
            if let Some(namespace) = &call.namespace {
                item["namespace"] = json!(namespace);
            }
            item
        }
    }
}

fn response(reply: &Reply, status: &str, output: &[Value], usage: &Value) -> Value {
    json!({
        "id": reply.id("resp", 0),
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "model": reply.model,
        "output": output,
        "usage": usage,
    })
}

fn items(reply: &Reply) -> Vec<Value> {
    let parts = reply.parts.iter().enumerate();
    parts
        .map(|(index, part)| item(reply, index, part))
        .collect()
}

pub(super) fn whole(reply: &Reply) -> Value {
    // Unlike Anthropic's, this count of the input takes in the cached part.
    let input = reply.usage.input + reply.usage.cache_read + reply.usage.cache_write;
    let usage = json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": reply.usage.cache_read},
        "output_tokens": reply.usage.output,
        "output_tokens_details": {"reasoning_tokens": reply.usage.reasoning},
        "total_tokens": input + reply.usage.output,
    });
    response(reply, "completed", &items(reply), &usage)
}

pub(super) fn events(reply: &Reply) -> Vec<Event> {
    let mut events = Vec::new();
    let mut send = |name: &'static str, mut data: Value| {
        data["type"] = json!(name);
        data["sequence_number"] = json!(events.len());
        events.push(Event::named(name, &data));
    };
    let opening = response(reply, "in_progress", &[], &Value::Null);
    send("response.created", json!({"response": opening}));
    send("response.in_progress", json!({"response": opening}));
    for (index, item) in items(reply).into_iter().enumerate() {
        let (id, at) = (&item["id"], index);
        let mut empty = item.clone();
        for (key, nothing) in [
            ("status", json!("in_progress")),
            ("arguments", json!("")),
            ("input", json!("")),
            ("content", json!([])),
            ("summary", json!([])),
        ] {
            if let Some(field) = empty.get_mut(key) {
                *field = nothing;
            }
        }
        send(
            "response.output_item.added",
            json!({"output_index": at, "item": empty}),
        );
        match &reply.parts[index] {
            Part::Thinking(text) => {
                let place = |key: &str, value: Value| json!({"item_id": id, "output_index": at, "summary_index": 0, key: value});
                let part = |text: &str| json!({"type": "summary_text", "text": text});
                send(
                    "response.reasoning_summary_part.added",
                    place("part", part("")),
                );
                for piece in pieces(text) {
                    send(
                        "response.reasoning_summary_text.delta",
                        place("delta", json!(piece)),
                    );
                }
                send(
                    "response.reasoning_summary_text.done",
                    place("text", json!(text)),
                );
                send(
                    "response.reasoning_summary_part.done",
                    place("part", part(text)),
                );
            }
            Part::Text(text) => {
                let place = |key: &str, value: Value| json!({"item_id": id, "output_index": at, "content_index": 0, key: value});
                let part =
                    |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
                send("response.content_part.added", place("part", part("")));
                for piece in pieces(text) {
                    send("response.output_text.delta", place("delta", json!(piece)));
                }
                send("response.output_text.done", place("text", json!(text)));
                send("response.content_part.done", place("part", part(text)));
            }
            Part::Call(call) => {
                let place =
                    |key: &str, value: &str| json!({"item_id": id, "output_index": at, key: value});
                let arguments = call.arguments();
                let (delta, done, key) = match call.kind {
                    Kind::Function => (
                        "response.function_call_arguments.delta",
                        "response.function_call_arguments.done",
                        "arguments",
                    ),
                    Kind::Custom => (
                        "response.custom_tool_call_input.delta",
                        "response.custom_tool_call_input.done",
                        "input",
                    ),
                    Kind::LocalShell => ("", "", ""),
                };
                if !key.is_empty() {
                    for piece in pieces(&arguments) {
                        send(delta, place("delta", piece));
                    }
                    send(done, place(key, &arguments));
                }
            }
        }
        send(
            "response.output_item.done",
            json!({"output_index": at, "item": item}),
        );
    }
    send("response.completed", json!({"response": whole(reply)}));
    events
}
