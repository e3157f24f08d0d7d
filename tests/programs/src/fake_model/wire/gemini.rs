//! Gemini generateContent and streamGenerateContent. It must only render.

use crate::fake_model::reply::{Event, Part, Reply, pieces};
use serde_json::{Value, json};

fn document(reply: &Reply, parts: &[Value], finish: Option<&str>) -> Value {
    let usage = &reply.usage;
    let input = usage.input + usage.cache_read + usage.cache_write;
    let mut candidate = json!({"index": 0, "content": {"role": "model", "parts": parts}});
    if let Some(finish) = finish {
        candidate["finishReason"] = json!(finish);
    }
    json!({
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": input,
            "cachedContentTokenCount": usage.cache_read,
            "candidatesTokenCount": usage.output,
            "thoughtsTokenCount": usage.reasoning,
            "totalTokenCount": input + usage.output + usage.reasoning,
        },
        "modelVersion": reply.model,
        "responseId": reply.id("resp", 0),
    })
}

fn part(reply: &Reply, index: usize, part: &Part) -> Value {
    match part {
        Part::Thinking(text) => json!({"text": text, "thought": true}),
        Part::Text(text) => json!({"text": text}),
        Part::Call(call) => json!({
            "functionCall": {"id": reply.id("fc", index), "name": call.name, "args": call.input},
        }),
    }
}

pub(super) fn whole(reply: &Reply) -> Value {
    let parts: Vec<_> = reply
        .parts
        .iter()
        .enumerate()
        .map(|(index, each)| part(reply, index, each))
        .collect();
    document(reply, &parts, Some("STOP"))
}

pub(super) fn events(reply: &Reply) -> Vec<Event> {
    let mut parts = Vec::new();
    for (index, each) in reply.parts.iter().enumerate() {
        match each {
            Part::Thinking(text) => parts.extend(
                pieces(text)
                    .into_iter()
                    .map(|piece| json!({"text": piece, "thought": true})),
            ),
            Part::Text(text) => {
                parts.extend(pieces(text).into_iter().map(|piece| json!({"text": piece})));
            }
            Part::Call(_) => parts.push(part(reply, index, each)),
        }
    }
    let last = parts.len().saturating_sub(1);
    let finish = |index| (index == last).then_some("STOP");
    let documents = parts.into_iter().enumerate();
    documents
        .map(|(index, part)| Event::plain(&document(reply, &[part], finish(index))))
        .collect()
}
