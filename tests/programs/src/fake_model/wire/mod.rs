//! The wire formats: how a reply or a failure looks in each. They must only render; what is
//! answered was decided before.

mod anthropic;
mod chat;
mod gemini;
mod responses;

use super::{
    ask::Protocol,
    reply::{Event, Reply},
    script::Failure,
};
use serde_json::{Value, json};

/// The reply as one JSON document.
pub(super) fn whole(protocol: Protocol, reply: &Reply) -> Value {
    match protocol {
        Protocol::Anthropic => anthropic::whole(reply),
        Protocol::Responses => responses::whole(reply),
        Protocol::Chat => chat::whole(reply),
        Protocol::Gemini => gemini::whole(reply),
    }
}

/// The reply as a stream of events.
pub(super) fn events(protocol: Protocol, reply: &Reply) -> Vec<Event> {
    match protocol {
        Protocol::Anthropic => anthropic::events(reply),
        Protocol::Responses => responses::events(reply),
        Protocol::Chat => chat::events(reply),
        Protocol::Gemini => gemini::events(reply),
    }
}

/// The body of an error answer.
pub(super) fn failure(protocol: Protocol, failure: &Failure) -> Value {
    let Failure {
        status, message, ..
    } = failure;
    let given = failure.error_type.as_deref();
    match protocol {
        Protocol::Anthropic => {
            let kind = given.unwrap_or(match status {
                401 => "authentication_error",
                403 => "permission_error",
                404 => "not_found_error",
                413 => "request_too_large",
                429 => "rate_limit_error",
                529 => "overloaded_error",
                400..=499 => "invalid_request_error",
                _ => "api_error",
            });
            json!({"type": "error", "error": {"type": kind, "message": message}})
        }
        Protocol::Responses | Protocol::Chat => {
            let kind = given.unwrap_or(match status {
                401 => "invalid_api_key",
                429 => "rate_limit_exceeded",
                400..=499 => "invalid_request_error",
                _ => "server_error",
            });
            json!({"error": {"type": kind, "code": kind, "message": message, "param": null}})
        }
        Protocol::Gemini => {
            let kind = given.unwrap_or(match status {
                401 => "UNAUTHENTICATED",
                403 => "PERMISSION_DENIED",
                404 => "NOT_FOUND",
                429 => "RESOURCE_EXHAUSTED",
                503 | 529 => "UNAVAILABLE",
                400..=499 => "INVALID_ARGUMENT",
                _ => "INTERNAL",
            });
            json!({"error": {"code": status, "status": kind, "message": message}})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_model::{
        reply::Part,
        script::Usage,
        tools::{Call, Kind},
    };

    fn reply() -> Reply {
        Reply {
            parts: vec![
                Part::Thinking("I should look at the files first.".to_owned()),
                Part::Text("Let me look at what is there.".to_owned()),
                Part::Call(Call {
                    name: "exec_command".to_owned(),
                    namespace: None,
                    kind: Kind::Function,
                    input: json!({"cmd": "ls -la some/long/path"}),
                }),
            ],
            usage: Usage {
                input: 5,
                output: 7,
                cache_read: 11,
                cache_write: 13,
                reasoning: 2,
            },
            model: "m".to_owned(),
            number: 1,
        }
    }

    /// The strings under `key` of those events whose type is `kind`, joined.
    fn joined(events: &[Value], kind: &str, place: &str) -> String {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind
            .filter_map(|event| event.pointer(place)?.as_str())
            .collect()
    }

    fn parsed(protocol: Protocol) -> Vec<Value> {
        let events = events(protocol, &reply());
        events
            .iter()
            .filter_map(|event| serde_json::from_str(&event.data).ok())
            .collect()
    }

    #[test]
    fn anthropic_deltas_add_up_to_the_whole() {
        let (events, whole) = (
            parsed(Protocol::Anthropic),
            whole(Protocol::Anthropic, &reply()),
        );
        let delta = "content_block_delta";
        assert_eq!(
            joined(&events, delta, "/delta/thinking"),
            whole["content"][0]["thinking"]
        );
        assert_eq!(
            joined(&events, delta, "/delta/text"),
            whole["content"][1]["text"]
        );
        let input: Value =
            serde_json::from_str(&joined(&events, delta, "/delta/partial_json")).unwrap();
        assert_eq!(input, whole["content"][2]["input"]);
        assert_eq!(whole["stop_reason"], "tool_use");
        assert_eq!(whole["usage"]["cache_read_input_tokens"], 11);
    }

    #[test]
    fn responses_deltas_add_up_to_the_whole() {
        let (events, whole) = (
            parsed(Protocol::Responses),
            whole(Protocol::Responses, &reply()),
        );
        let output = &whole["output"];
        assert_eq!(
            joined(&events, "response.reasoning_summary_text.delta", "/delta"),
            output[0]["summary"][0]["text"]
        );
        assert_eq!(
            joined(&events, "response.output_text.delta", "/delta"),
            output[1]["content"][0]["text"]
        );
        assert_eq!(
            joined(&events, "response.function_call_arguments.delta", "/delta"),
            output[2]["arguments"]
        );
        assert_eq!(events.last().unwrap()["response"]["output"], *output);
        assert_eq!(whole["usage"]["input_tokens"], 29);
    }

    #[test]
    fn chat_deltas_add_up_to_the_whole() {
        let (events, whole) = (parsed(Protocol::Chat), whole(Protocol::Chat, &reply()));
        let message = &whole["choices"][0]["message"];
        let all = |place: &str| -> String {
            events
                .iter()
                .filter_map(|event| event.pointer(place)?.as_str())
                .collect()
        };
        assert_eq!(
            all("/choices/0/delta/reasoning_content"),
            message["reasoning_content"]
        );
        assert_eq!(all("/choices/0/delta/content"), message["content"]);
        assert_eq!(
            all("/choices/0/delta/tool_calls/0/function/arguments"),
            message["tool_calls"][0]["function"]["arguments"]
        );
    }

    #[test]
    fn gemini_parts_add_up_to_the_whole() {
        let (events, whole) = (parsed(Protocol::Gemini), whole(Protocol::Gemini, &reply()));
        let parts = &whole["candidates"][0]["content"]["parts"];
        let texts = |thought: bool| -> String {
            let streamed = events
                .iter()
                .map(|event| &event["candidates"][0]["content"]["parts"][0]);
            let wanted = streamed.filter(|part| (part["thought"] == true) == thought);
            wanted.filter_map(|part| part["text"].as_str()).collect()
        };
        assert_eq!(texts(true), parts[0]["text"]);
        assert_eq!(texts(false), parts[1]["text"]);
        let last = &events.last().unwrap()["candidates"][0];
        assert_eq!(last["content"]["parts"][0], parts[2]);
        assert_eq!(last["finishReason"], "STOP");
    }
}
