//! Anthropic Messages. It must only render.

use crate::fake_model::{
    reply::{Event, Part, Reply, pieces},
    script::Usage,
};
use serde_json::{Value, json};

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": usage.cache_write,
    })
}

fn stop_reason(reply: &Reply) -> &'static str {
    if reply.calls().next().is_some() {
        "tool_use"
    } else {
        "end_turn"
    }
}

fn message(reply: &Reply, content: &[Value], stop_reason: Option<&str>, usage: &Value) -> Value {
    json!({
        "id": reply.id("msg", 0),
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": usage,
    })
}

fn block(reply: &Reply, index: usize, part: &Part) -> Value {
    match part {
        Part::Thinking(text) => {
            json!({"type": "thinking", "thinking": text, "signature": reply.id("sig", index)})
        }
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Call(call) => json!({
            "type": "tool_use",
            "id": reply.id("toolu", index),
            "name": call.name,
            "input": call.input,
        }),
    }
}

pub(super) fn whole(reply: &Reply) -> Value {
    let parts = reply.parts.iter().enumerate();
    let content: Vec<_> = parts
        .map(|(index, part)| block(reply, index, part))
        .collect();
    message(
        reply,
        &content,
        Some(stop_reason(reply)),
        &usage(&reply.usage),
    )
}

pub(super) fn events(reply: &Reply) -> Vec<Event> {
    let mut events = Vec::new();
    let mut send = |name: &'static str, mut data: Value| {
        data["type"] = json!(name);
        events.push(Event::named(name, &data));
    };
    let opening = usage(&Usage {
        output: 1,
        ..reply.usage
    });
    send(
        "message_start",
        json!({"message": message(reply, &[], None, &opening)}),
    );
    for (index, part) in reply.parts.iter().enumerate() {
        let mut empty = block(reply, index, part);
        for (key, nothing) in [
            ("thinking", json!("")),
            ("signature", json!("")),
            ("text", json!("")),
            ("input", json!({})),
        ] {
            if let Some(field) = empty.get_mut(key) {
                *field = nothing;
            }
        }
        send(
            "content_block_start",
            json!({"index": index, "content_block": empty}),
        );
        let (text, kind, key) = match part {
            Part::Thinking(text) => (text.clone(), "thinking_delta", "thinking"),
            Part::Text(text) => (text.clone(), "text_delta", "text"),
            Part::Call(call) => (call.arguments(), "input_json_delta", "partial_json"),
        };
        for piece in pieces(&text) {
            let delta = json!({"type": kind, key: piece});
            send(
                "content_block_delta",
                json!({"index": index, "delta": delta}),
            );
        }
        if matches!(part, Part::Thinking(_)) {
            let delta = json!({"type": "signature_delta", "signature": reply.id("sig", index)});
            send(
                "content_block_delta",
                json!({"index": index, "delta": delta}),
            );
        }
        send("content_block_stop", json!({"index": index}));
    }
    send(
        "message_delta",
        json!({
            "delta": {"stop_reason": stop_reason(reply), "stop_sequence": null},
            "usage": usage(&reply.usage),
        }),
    );
    send("message_stop", json!({}));
    events
}
