//! OpenAI Responses. Nothing is stored there: each request holds the whole conversation, and what a
//! model thought comes back encrypted and goes back as it came.
//! Must not send an item the API would look up in a store: thinking without its content.

use dispatch_core::{
    attach::MediaKind,
    native::{Block, Raw, StepEnd, Tokens},
};
use serde_json::{Value, json, value::RawValue};

use super::{
    Decode, Heard, ModelError, Question, ToolSpec,
    body::Segment,
    entry::{Entry, Origin, Said},
    fields::Fields,
    head,
    ids::CallIds,
    media::Part,
    sse::Event,
};

pub(super) fn frame(question: &Question<'_>) -> Result<(String, &'static str), serde_json::Error> {
    let endpoint = question.endpoint;
    let mut fields = json!({
        "model": endpoint.model.as_str(),
        "stream": true,
        "store": false,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": question.session,
        "instructions": question.system,
    });
    if let Some(tokens) = endpoint.row.max_output_tokens {
        fields["max_output_tokens"] = json!(tokens);
    }
    let open = head(fields, question, tool)?;
    Ok((format!("{open},\"input\":["), "]}"))
}

fn tool(tool: &ToolSpec) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.help,
        "parameters": tool.schema,
        "strict": false,
    })
}

pub(super) fn segment(
    origin: &Origin,
    entry: &Entry,
    parts: &[Part],
) -> Result<Option<Segment>, serde_json::Error> {
    let mut items = Vec::new();
    match entry {
        Entry::Said(told) => items.push(said(told, parts)?),
        Entry::Results {
            results,
            said: more,
        } => {
            for result in results {
                items.push(serde_json::to_string(&json!({
                    "type": "function_call_output",
                    "call_id": result.call,
                    "output": result.output,
                }))?);
            }
            if let Some(told) = more {
                items.push(said(told, parts)?);
            }
        }
        Entry::Answer {
            origin: own,
            blocks,
            cut,
        } => {
            let blocks = if *cut {
                without_loose_end(blocks)
            } else {
                blocks
            };
            for block in blocks {
                items.extend(item(own == origin, block)?);
            }
        }
    }
    Ok((!items.is_empty()).then(|| Segment::plain(items.join(","))))
}

fn said(told: &Said, parts: &[Part]) -> Result<String, serde_json::Error> {
    let words = |text: &str| json!({"type": "input_text", "text": text});
    let part = |part: &Part| match part {
        Part::Words(text) => words(text),
        Part::File { media, name, data } => {
            let url = format!("data:{};base64,{data}", media.word());
            match media.kind() {
                MediaKind::Image => json!({"type": "input_image", "image_url": url}),
                MediaKind::Pdf => json!({"type": "input_file", "filename": name, "file_data": url}),
            }
        }
    };
    let mut content: Vec<Value> = parts.iter().map(part).collect();
    content.push(words(&told.text));
    serde_json::to_string(&json!({"type": "message", "role": "user", "content": content}))
}

/// The API refuses thinking that nothing follows, and an answer that broke off may end in some.
fn without_loose_end(blocks: &[Block]) -> &[Block] {
    let thinking = |block: &Block| matches!(block, Block::Thinking { .. } | Block::Other { .. });
    let kept = blocks.iter().rposition(|block| !thinking(block));
    &blocks[..kept.map_or(0, |at| at + 1)]
}

fn item(own: bool, block: &Block) -> Result<Option<String>, serde_json::Error> {
    let shown = match block {
        Block::Thinking { raw, .. } if own => return Ok(whole_thought(raw)),
        _ if own => return Ok(Some(block.raw().text().to_owned())),
        Block::Text { text, .. } if text.is_empty() => return Ok(None),
        Block::Text { text, .. } => json!({
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": text}],
        }),
        Block::Call {
            id, name, input, ..
        } => {
            json!({"type": "function_call", "call_id": id, "name": name, "arguments": input})
        }
        Block::Thinking { .. } | Block::Other { .. } => return Ok(None),
    };
    serde_json::to_string(&shown).map(Some)
}

fn whole_thought(raw: &Raw) -> Option<String> {
    let fields = Fields::parse(raw.text()).ok()?;
    let has = |name: &str| !matches!(fields.get(name), None | Some("null" | "[]" | "\"\""));
    (has("encrypted_content") || has("content")).then(|| raw.text().to_owned())
}

#[derive(Debug)]
pub(super) struct Decoder {
    ids: CallIds,
    calls: bool,
    tokens: Tokens,
    end: Option<StepEnd>,
}

#[derive(serde::Deserialize)]
struct Done<'a> {
    #[serde(borrow)]
    item: &'a RawValue,
}

impl Decode for Decoder {
    fn hear(&mut self, event: &Event) -> Result<Vec<Heard>, ModelError> {
        #[derive(serde::Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: String,
        }
        if event.data == "[DONE]" {
            return Ok(Vec::new());
        }
        let Kind { kind } = serde_json::from_str(&event.data)?;
        match kind.as_str() {
            "response.output_text.delta" | "response.refusal.delta" => {
                Ok(vec![Heard::Text(delta(event)?)])
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                Ok(vec![Heard::Thinking(delta(event)?)])
            }
            "response.output_item.done" => {
                let done: Done<'_> = serde_json::from_str(&event.data)?;
                let block = block(done.item.get(), &mut self.ids)?;
                self.calls |= matches!(block, Block::Call { .. });
                Ok(vec![Heard::Closed(block)])
            }
            "response.completed" | "response.incomplete" => {
                let data: Value = serde_json::from_str(&event.data)?;
                self.ended(&data["response"]);
                Ok(Vec::new())
            }
            "response.failed" => {
                let data: Value = serde_json::from_str(&event.data)?;
                Err(ModelError::of_event(&data["response"]["error"]))
            }
            "error" => {
                let data: Value = serde_json::from_str(&event.data)?;
                // In one object, or beside the type.
                let error = data.get("error").filter(|error| error.is_object());
                Err(ModelError::of_event(error.unwrap_or(&data)))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn finish(&mut self) -> Result<Vec<Heard>, ModelError> {
        let Some(end) = self.end.take() else {
            return Err(ModelError::cut());
        };
        Ok(vec![Heard::Tokens(self.tokens), Heard::Ended(end)])
    }
}

fn delta(event: &Event) -> Result<String, ModelError> {
    #[derive(serde::Deserialize)]
    struct Delta {
        delta: String,
    }
    let Delta { delta } = serde_json::from_str(&event.data)?;
    Ok(delta)
}

impl Decoder {
    pub(super) fn new(ids: CallIds) -> Self {
        Self {
            ids,
            calls: false,
            tokens: Tokens::default(),
            end: None,
        }
    }

    fn ended(&mut self, response: &Value) {
        let usage = &response["usage"];
        let count = |place: &str| usage.pointer(place).and_then(Value::as_u64).unwrap_or(0);
        let cached = count("/input_tokens_details/cached_tokens");
        // Here the count of the input takes in what a cache had.
        self.tokens = Tokens {
            input: count("/input_tokens").saturating_sub(cached),
            cache_read: cached,
            cache_write: 0,
            output: count("/output_tokens"),
            reasoning: count("/output_tokens_details/reasoning_tokens"),
        };
        let why = response["incomplete_details"]["reason"].as_str();
        self.end = Some(match (response["status"].as_str(), why) {
            (Some("incomplete"), Some("content_filter")) => StepEnd::Refused,
            (Some("incomplete"), _) => StepEnd::Full,
            _ if self.calls => StepEnd::Calls,
            _ => StepEnd::Done,
        });
    }
}

fn block(text: &str, ids: &mut CallIds) -> Result<Block, ModelError> {
    let item: Value = serde_json::from_str(text)?;
    if item["type"] == "function_call" {
        return call(text, ids);
    }
    let raw = Raw::parse(text.to_owned())?;
    Ok(match item["type"].as_str().unwrap_or_default() {
        "message" => Block::Text {
            text: joined(&item["content"], &["text", "refusal"], ""),
            raw,
        },
        "reasoning" => {
            let summary = joined(&item["summary"], &["text"], "\n\n");
            let text = match summary.is_empty() {
                true => joined(&item["content"], &["text"], "\n\n"),
                false => summary,
            };
            Block::Thinking { text, raw }
        }
        _ => Block::Other { raw },
    })
}

fn call(text: &str, ids: &mut CallIds) -> Result<Block, ModelError> {
    let mut fields = Fields::parse(text)?;
    let came = fields.text("call_id").unwrap_or_default();
    let id = ids.name(&came);
    let raw = if id == came {
        Raw::parse(text.to_owned())?
    } else {
        fields.set_text("call_id", &id)?;
        fields.raw()?
    };
    Ok(Block::Call {
        id,
        name: fields.text("name").unwrap_or_default(),
        input: fields.text("arguments").unwrap_or_default(),
        raw,
    })
}

fn joined(list: &Value, names: &[&str], between: &str) -> String {
    let parts = list.as_array().into_iter().flatten();
    let texts = parts.filter_map(|part| names.iter().find_map(|name| part[*name].as_str()));
    texts.collect::<Vec<_>>().join(between)
}
