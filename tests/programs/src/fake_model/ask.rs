//! What a client asks: which wire format, which model, which tools, and whether it is one of the
//! side requests that agents make beside the conversation. It must not answer anything.

use super::tools::{self, Offered};
use serde_json::Value;

const MAX_PROMPT_CHARS: usize = 16_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Anthropic,
    Responses,
    Chat,
    Gemini,
}

impl Protocol {
    pub(super) fn of(path: &str) -> Option<Self> {
        let verb = path.rsplit_once(':').map(|(_, verb)| verb);
        if path.ends_with("/messages") {
            Some(Self::Anthropic)
        } else if path.ends_with("/responses") {
            Some(Self::Responses)
        } else if path.ends_with("/chat/completions") {
            Some(Self::Chat)
        } else if matches!(verb, Some("generateContent" | "streamGenerateContent")) {
            Some(Self::Gemini)
        } else {
            None
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Responses => "responses",
            Self::Chat => "chat",
            Self::Gemini => "gemini",
        }
    }
}

/// A request that no script step answers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Side {
    /// A title for the conversation.
    Title,
    /// What our own agent writes down of a conversation that is too long.
    Notes,
    /// A probe that asks for one token.
    Probe,
    /// A JSON object by this schema.
    Structured(Value),
}

#[derive(Debug)]
pub(super) struct Ask {
    pub(super) protocol: Protocol,
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) tools: Vec<Offered>,
    /// Where the client works, if its prompt says so.
    pub(super) directory: Option<String>,
    /// The newest text that is not the client's own instructions: a prompt or a tool's result.
    pub(super) prompt: String,
    /// All texts of the conversation before it, whoever said them.
    pub(super) earlier: String,
    /// What the client itself says to the model.
    pub(super) system: String,
    pub(super) side: Option<Side>,
}

impl Ask {
    pub(super) fn read(protocol: Protocol, path: &str, query: &str, body: &Value) -> Self {
        let tools = tools::offered(body);
        let (model, stream) = match protocol {
            Protocol::Gemini => {
                let last = path.rsplit('/').next().unwrap_or_default();
                let streams = last.ends_with(":streamGenerateContent");
                let events = query.split('&').any(|pair| pair == "alt=sse");
                (
                    last.split(':').next().unwrap_or_default(),
                    streams && events,
                )
            }
            _ => (
                body.get("model")
                    .and_then(Value::as_str)
                    .unwrap_or("fake-model"),
                body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            ),
        };
        let side = if tools.is_empty() { side(body) } else { None };
        let (prompt, earlier) = conversation(body);
        Self {
            protocol,
            model: model.to_owned(),
            stream,
            directory: directory(body),
            prompt: tail(prompt),
            earlier: tail(earlier),
            system: tail(instructions(body)),
            tools,
            side,
        }
    }
}

/// Only a request without tools can be a side request: an agent that works offers some.
fn side(body: &Value) -> Option<Side> {
    let schema = [
        "/generationConfig/responseJsonSchema",
        "/generationConfig/responseSchema",
        "/text/format/schema",
        "/response_format/json_schema/schema",
        "/output_config/format/schema",
    ]
    .iter()
    .find_map(|place| body.pointer(place));
    if let Some(schema) = schema {
        return Some(Side::Structured(schema.clone()));
    }
    if ["max_tokens", "max_output_tokens", "max_completion_tokens"]
        .iter()
        .any(|key| body.get(*key).and_then(Value::as_u64) == Some(1))
    {
        return Some(Side::Probe);
    }
    let instructions = instructions(body);
    if instructions.contains("You write down what a coding agent must know") {
        return Some(Side::Notes);
    }
    let titled = instructions.to_lowercase().contains("title");
    titled.then_some(Side::Title)
}

fn messages(body: &Value) -> &[Value] {
    ["messages", "input", "contents"]
        .iter()
        .find_map(|key| body.get(*key).and_then(Value::as_array))
        .map_or(&[], Vec::as_slice)
}

/// How Claude Code shows the model what was said in the middle of a turn: under a role of its own
/// instructions.
const SAID_MEANWHILE: &str = "The user sent a new message while you were working";

fn is_instruction(message: &Value) -> bool {
    let role = message.get("role").and_then(Value::as_str);
    let mut said = false;
    visit(message, &mut |_, text| {
        said |= text.starts_with(SAID_MEANWHILE);
    });
    matches!(role, Some("system" | "developer")) && !said
}

fn instructions(body: &Value) -> String {
    let mut found = String::new();
    for key in ["system", "instructions", "systemInstruction"] {
        if let Some(value) = body.get(key) {
            visit(value, &mut |_, text| push_line(&mut found, text));
        }
    }
    for message in messages(body)
        .iter()
        .filter(|message| is_instruction(message))
    {
        visit(message, &mut |_, text| push_line(&mut found, text));
    }
    found
}

/// The newest text, and what was said before it.
fn conversation(body: &Value) -> (String, String) {
    if let Some(text) = body.get("input").and_then(Value::as_str) {
        return (text.to_owned(), String::new());
    }
    let mut said = messages(body)
        .iter()
        .filter(|message| !is_instruction(message));
    let newest = said.next_back();
    (texts(newest), texts(said))
}

fn texts<'a>(messages: impl IntoIterator<Item = &'a Value>) -> String {
    let mut found = String::new();
    for message in messages {
        visit(message, &mut |key, text| {
            if matches!(key, "text" | "content" | "output") {
                push_line(&mut found, text);
            }
        });
    }
    found
}

/// Agents put their own reminders in front, so the end is what matters.
fn tail(text: String) -> String {
    match text.char_indices().rev().nth(MAX_PROMPT_CHARS - 1) {
        Some((start, _)) => text[start..].to_owned(),
        None => text,
    }
}

fn push_line(into: &mut String, text: &str) {
    if !into.is_empty() {
        into.push('\n');
    }
    into.push_str(text);
}

fn directory(body: &Value) -> Option<String> {
    const MARKS: [&str; 4] = [
        "<cwd>",
        "orking directory: ",
        "working in the directory: ",
        "current directory: ",
    ];
    let mut found = None;
    visit(body, &mut |_, text| {
        for mark in MARKS {
            let Some((_, rest)) = text.split_once(mark) else {
                continue;
            };
            let end = rest.find(['\n', '<']).unwrap_or(rest.len());
            let path = rest[..end].trim();
            if found.is_none() && path.starts_with('/') {
                found = Some(path.to_owned());
            }
        }
    });
    found
}

/// Shows each string with the key that it stands under. The depth is bounded by the JSON parser.
fn visit(value: &Value, see: &mut dyn FnMut(&str, &str)) {
    fn under(key: &str, value: &Value, see: &mut dyn FnMut(&str, &str)) {
        match value {
            Value::String(text) => see(key, text),
            Value::Array(items) => items.iter().for_each(|item| under(key, item, see)),
            Value::Object(fields) => fields
                .iter()
                .for_each(|(key, field)| under(key, field, see)),
            _ => {}
        }
    }
    under("", value, see);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(body: &Value) -> Ask {
        Ask::read(Protocol::Responses, "/v1/responses", "", body)
    }

    #[test]
    fn the_directory_and_the_newest_prompt_are_found() {
        let asked = ask(&json!({"model": "m", "stream": true, "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "<cwd>/w/r</cwd> hi"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
            {"role": "developer", "content": "be nice"}]}));
        assert_eq!(asked.directory.as_deref(), Some("/w/r"));
        assert_eq!(asked.prompt, "done");
        assert_eq!(asked.earlier, "<cwd>/w/r</cwd> hi\nI look.");
        assert!(asked.stream);
    }

    #[test]
    fn what_is_said_in_the_middle_of_a_turn_is_no_instruction() {
        let text = format!("{SAID_MEANWHILE}:\nuse UTC");
        let asked = ask(&json!({"model": "m", "messages": [
            {"role": "user", "content": "hi"}, {"role": "system", "content": text}]}));
        assert_eq!((asked.prompt, asked.earlier), (text, "hi".to_owned()));
    }

    #[test]
    fn of_a_long_prompt_the_end_is_kept() {
        let text = format!("{}end", "é".repeat(MAX_PROMPT_CHARS));
        let kept = tail(text);
        assert!(kept.ends_with("éend"));
        assert_eq!(kept.chars().count(), MAX_PROMPT_CHARS);
    }

    #[test]
    fn only_a_request_without_tools_is_a_side_request() {
        let format = json!({"format": {"type": "json_schema", "schema": {"type": "object"}}});
        let tool = json!({"type": "function", "name": "shell"});
        assert!(ask(&json!({"input": "x", "text": format})).side.is_some());
        assert!(
            ask(&json!({"input": "x", "text": format, "tools": [tool]}))
                .side
                .is_none()
        );
        let titled = json!({"instructions": "Write a short Title", "input": "x"});
        assert_eq!(ask(&titled).side, Some(Side::Title));
        assert_eq!(ask(&json!({"input": "a title"})).side, None);
        let notes = "You write down what a coding agent must know to go on.";
        for notes in [
            json!({"instructions": notes, "input": "x"}),
            json!({"system": [{"type": "text", "text": notes}], "messages": []}),
            json!({"messages": [{"role": "system", "content": notes}]}),
        ] {
            assert_eq!(ask(&notes).side, Some(Side::Notes));
        }
    }
}
