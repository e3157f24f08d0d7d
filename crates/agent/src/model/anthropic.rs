//! Anthropic Messages. Blocks go back with every byte that came, signed and redacted thinking and
//! what nobody here knows included; two kinds of marks tell the provider what to keep in its cache.
//! Must not send what the API refuses: a block of text without text.

use dispatch_core::{
    attach::{Media, MediaKind},
    native::{Block, Raw, StepEnd, Tokens},
};
use serde_json::{Value, json};

use super::{
    Decode, Heard, ModelError, Question, ToolSpec,
    body::Segment,
    entry::{Entry, Origin, Said, ToolResult},
    fields::Fields,
    head,
    ids::CallIds,
    media::Part,
    sse::Event,
};

/// Where no table says how long an answer may be, as the API insists on a number.
const OUTPUT_TOKENS: u32 = 32_000;
/// Blocks of one answer.
const BLOCKS_MAX: usize = 4096;

pub(super) fn frame(question: &Question<'_>) -> Result<(String, &'static str), serde_json::Error> {
    let endpoint = question.endpoint;
    let fields = json!({
        "model": endpoint.model.as_str(),
        "max_tokens": endpoint.row.max_output_tokens.unwrap_or(OUTPUT_TOKENS),
        "stream": true,
        "system": [{
            "type": "text",
            "text": question.system,
            "cache_control": {"type": "ephemeral"},
        }],
    });
    let open = head(fields, question, tool)?;
    Ok((format!("{open},\"messages\":["), "]}"))
}

fn tool(tool: &ToolSpec) -> Value {
    json!({"name": tool.name, "description": tool.help, "input_schema": tool.schema})
}

pub(super) fn segment(
    origin: &Origin,
    entry: &Entry,
    parts: &[Part],
) -> Result<Option<Segment>, serde_json::Error> {
    match entry {
        Entry::Said(told) => user(&said(told, parts)?).map(Some),
        Entry::Results {
            results,
            said: more,
        } => {
            let mut blocks = Vec::with_capacity(results.len() + 1);
            for result in results {
                blocks.push(result_block(result)?);
            }
            if let Some(told) = more {
                blocks.extend(said(told, parts)?);
            }
            user(&blocks).map(Some)
        }
        Entry::Answer {
            origin: own,
            blocks,
            ..
        } => {
            let mut raws = Vec::with_capacity(blocks.len());
            for block in blocks {
                raws.extend(answer_block(own == origin, block)?);
            }
            let content = raws.join(",");
            Ok((!raws.is_empty()).then(|| {
                Segment::plain(format!(r#"{{"role":"assistant","content":[{content}]}}"#))
            }))
        }
    }
}

fn user(blocks: &[String]) -> Result<Segment, serde_json::Error> {
    let bytes = format!(r#"{{"role":"user","content":[{}]}}"#, blocks.join(","));
    // Into the last block, before the braces that close it, the list and the message.
    let mark = bytes.len() - "}]}".len();
    Ok(Segment {
        bytes: bytes.into(),
        mark: Some(mark),
    })
}

/// What came with it before the words that are about it, which a mark can be put into.
fn said(told: &Said, parts: &[Part]) -> Result<Vec<String>, serde_json::Error> {
    let mut blocks = Vec::with_capacity(parts.len() + 1);
    for part in parts {
        blocks.push(match part {
            Part::Words(text) => text_block(text)?,
            Part::File { media, data, .. } => file_block(*media, data),
        });
    }
    let text = match told.text.trim() {
        "" => "(nothing)",
        _ => &told.text,
    };
    blocks.push(text_block(text)?);
    Ok(blocks)
}

fn text_block(text: &str) -> Result<String, serde_json::Error> {
    serde_json::to_string(&json!({"type": "text", "text": text}))
}

/// Nothing in it needs to be escaped.
fn file_block(media: Media, data: &str) -> String {
    let kind = match media.kind() {
        MediaKind::Image => "image",
        MediaKind::Pdf => "document",
    };
    let media = media.word();
    format!(
        r#"{{"type":"{kind}","source":{{"type":"base64","media_type":"{media}","data":"{data}"}}}}"#
    )
}

fn result_block(result: &ToolResult) -> Result<String, serde_json::Error> {
    let mut block = json!({
        "type": "tool_result",
        "tool_use_id": result.call,
        "content": result.output,
    });
    if result.failed {
        block["is_error"] = json!(true);
    }
    serde_json::to_string(&block)
}

fn answer_block(own: bool, block: &Block) -> Result<Option<String>, serde_json::Error> {
    let shown = match block {
        // The API refuses these, and there is nothing in them.
        Block::Text { text, .. } if text.trim().is_empty() => return Ok(None),
        _ if own => return Ok(Some(block.raw().text().to_owned())),
        Block::Text { text, .. } => json!({"type": "text", "text": text}),
        Block::Call {
            id, name, input, ..
        } => {
            json!({"type": "tool_use", "id": id, "name": name, "input": input_object(input)})
        }
        Block::Thinking { .. } | Block::Other { .. } => return Ok(None),
    };
    serde_json::to_string(&shown).map(Some)
}

/// The API takes objects only. What a model wrote instead is kept as a text in one.
fn input_object(input: &str) -> Value {
    match serde_json::from_str(input) {
        Ok(Value::Object(members)) => Value::Object(members),
        _ if input.trim().is_empty() => json!({}),
        _ => json!({"unreadable": input}),
    }
}

/// A block that is being put together.
#[derive(Debug)]
struct Open {
    index: u64,
    fields: Fields,
    /// Members that are texts and grow: written into the fields when all of them is there.
    grown: Vec<(String, String)>,
    /// The pieces of `input`, which are no JSON before they are all there.
    input: String,
}

#[derive(Debug)]
pub(super) struct Decoder {
    ids: CallIds,
    open: Vec<Open>,
    blocks: usize,
    tokens: Tokens,
    end: Option<StepEnd>,
}

impl Decode for Decoder {
    fn hear(&mut self, event: &Event) -> Result<Vec<Heard>, ModelError> {
        let data: Value = serde_json::from_str(&event.data)?;
        match data["type"].as_str().unwrap_or_default() {
            "message_start" => {
                self.count(&data["message"]["usage"]);
                Ok(Vec::new())
            }
            "content_block_start" => self.start(&event.data, &data),
            "content_block_delta" => self.delta(&data),
            "content_block_stop" => self.stop(&data),
            "message_delta" => {
                self.count(&data["usage"]);
                self.end = data["delta"]["stop_reason"].as_str().map(end);
                Ok(Vec::new())
            }
            "error" => Err(ModelError::of_event(&data["error"])),
            // `ping`, `message_stop`, and what may come one day.
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

fn end(reason: &str) -> StepEnd {
    match reason {
        // The provider paused a tool of its own: it goes on when it is asked again.
        "tool_use" | "pause_turn" => StepEnd::Calls,
        "max_tokens" | "model_context_window_exceeded" => StepEnd::Full,
        "refusal" => StepEnd::Refused,
        _ => StepEnd::Done,
    }
}

impl Decoder {
    pub(super) fn new(ids: CallIds) -> Self {
        Self {
            ids,
            open: Vec::new(),
            blocks: 0,
            tokens: Tokens::default(),
            end: None,
        }
    }

    fn start(&mut self, text: &str, data: &Value) -> Result<Vec<Heard>, ModelError> {
        #[derive(serde::Deserialize)]
        struct Start {
            content_block: Fields,
        }
        self.blocks += 1;
        if self.blocks > BLOCKS_MAX {
            return Err(ModelError::protocol(format!(
                "more than {BLOCKS_MAX} blocks"
            )));
        }
        let Start { content_block } = serde_json::from_str(text)?;
        self.open.push(Open {
            index: data["index"].as_u64().unwrap_or_default(),
            fields: content_block,
            grown: Vec::new(),
            input: String::new(),
        });
        Ok(Vec::new())
    }

    fn delta(&mut self, data: &Value) -> Result<Vec<Heard>, ModelError> {
        let index = data["index"].as_u64().unwrap_or_default();
        let Some(open) = self.open.iter_mut().find(|open| open.index == index) else {
            return Err(ModelError::protocol("a piece of a block that is not open"));
        };
        let delta = &data["delta"];
        let text = |name: &str| delta[name].as_str().unwrap_or_default();
        match text("type") {
            "text_delta" => {
                open.grow("text", text("text"));
                Ok(vec![Heard::Text(text("text").to_owned())])
            }
            "thinking_delta" => {
                open.grow("thinking", text("thinking"));
                Ok(vec![Heard::Thinking(text("thinking").to_owned())])
            }
            "signature_delta" => {
                open.fields.set_text("signature", text("signature"))?;
                Ok(Vec::new())
            }
            "input_json_delta" => {
                open.input.push_str(text("partial_json"));
                Ok(Vec::new())
            }
            "citations_delta" => {
                let known = open.fields.get("citations").unwrap_or("null");
                let mut all: Vec<Value> =
                    serde_json::from_str::<Option<_>>(known)?.unwrap_or_default();
                all.push(delta["citation"].clone());
                open.fields
                    .set("citations", &serde_json::to_string(&all)?)?;
                Ok(Vec::new())
            }
            _ => open.grow_unknown(delta).map(|()| Vec::new()),
        }
    }

    fn stop(&mut self, data: &Value) -> Result<Vec<Heard>, ModelError> {
        let index = data["index"].as_u64().unwrap_or_default();
        let Some(at) = self.open.iter().position(|open| open.index == index) else {
            return Err(ModelError::protocol("the end of a block that is not open"));
        };
        let open = self.open.remove(at);
        Ok(vec![Heard::Closed(block(open, &mut self.ids)?)])
    }

    /// What is told twice is a sum so far, and what is left out is as it was.
    fn count(&mut self, usage: &Value) {
        let tokens = &mut self.tokens;
        for (name, to) in [
            ("input_tokens", &mut tokens.input),
            ("cache_read_input_tokens", &mut tokens.cache_read),
            ("cache_creation_input_tokens", &mut tokens.cache_write),
            ("output_tokens", &mut tokens.output),
        ] {
            if let Some(count) = usage[name].as_u64() {
                *to = count;
            }
        }
    }
}

impl Open {
    fn grow(&mut self, name: &str, more: &str) {
        match self.grown.iter_mut().find(|(known, _)| known == name) {
            Some((_, text)) => text.push_str(more),
            None => {
                let begun = self.fields.text(name).unwrap_or_default();
                self.grown.push((name.to_owned(), begun + more));
            }
        }
    }

    /// A kind of piece that is newer than we: texts grow, everything else is as it was said last.
    fn grow_unknown(&mut self, delta: &Value) -> Result<(), ModelError> {
        for (name, value) in delta.as_object().into_iter().flatten() {
            match value {
                _ if name == "type" => {}
                Value::String(more) => self.grow(name, more),
                other => self.fields.set(name, &serde_json::to_string(other)?)?,
            }
        }
        Ok(())
    }
}

fn block(mut open: Open, ids: &mut CallIds) -> Result<Block, ModelError> {
    for (name, text) in std::mem::take(&mut open.grown) {
        open.fields.set_text(&name, &text)?;
    }
    let kind = open.fields.text("type").unwrap_or_default();
    let mut input = std::mem::take(&mut open.input);
    if open.fields.get("input").is_some() {
        if input.is_empty() {
            input = open.fields.get("input").unwrap_or("{}").to_owned();
        } else if serde_json::from_str::<Fields>(&input).is_ok() {
            open.fields.set("input", &input)?;
        } else {
            let instead = serde_json::to_string(&input_object(&input))?;
            open.fields.set("input", &instead)?;
        }
    }
    if kind == "tool_use" {
        let came = open.fields.text("id").unwrap_or_default();
        let id = ids.name(&came);
        if id != came {
            open.fields.set_text("id", &id)?;
        }
    }
    let raw: Raw = open.fields.raw()?;
    let text = |name: &str| open.fields.text(name).unwrap_or_default();
    Ok(match kind.as_str() {
        "text" => Block::Text {
            text: text("text"),
            raw,
        },
        "thinking" => Block::Thinking {
            text: text("thinking"),
            raw,
        },
        "tool_use" => Block::Call {
            id: text("id"),
            name: text("name"),
            input,
            raw,
        },
        _ => Block::Other { raw },
    })
}
