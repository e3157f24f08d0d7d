//! What went wrong, with a kind, decided once from what the provider said in its own fields: the
//! status, the type or code of the error, and only where a provider has no code for it, its words.
//! Must not decide what to do about it.

use std::fmt;

use dispatch_core::{Millis, native::Fault, sidecar::RENEWED_HEADER};
use hyper::{HeaderMap, StatusCode};
use serde_json::Value;

use super::{limits, sse::SseError};

/// Of what a provider says for people.
const MESSAGE_CHARS_MAX: usize = 2000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelError {
    pub(crate) fault: Fault,
    pub(crate) status: Option<u16>,
    /// What the provider or the system said.
    pub(crate) message: String,
    pub(crate) retry_at: Option<Millis>,
    /// A part of the answer had come. Asking again would be a second answer.
    pub(crate) begun: bool,
    /// Whoever holds the key has another one now.
    pub(crate) renewed: bool,
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            Fault::RateLimited => "the limit of requests is reached",
            Fault::Exhausted => "nothing is left on the account",
            Fault::Overloaded => "the provider is overloaded",
            Fault::Auth => "the key is refused",
            Fault::BadRequest => "the request is refused",
            Fault::ContextTooLong => "the conversation is too long for the model",
            Fault::Network => "the provider cannot be reached",
            Fault::Timeout => "the provider said nothing for too long",
            Fault::Protocol => "the answer is not what its format promises",
            Fault::Key => "the key cannot be had",
            Fault::Refused => "the provider would not answer",
        };
        write!(f, "ask the model: {what}")?;
        if let Some(status) = self.status {
            write!(f, " (status {status})")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ModelError {}

impl ModelError {
    pub(crate) fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self {
            fault,
            status: None,
            message: short(&message.into()),
            retry_at: None,
            begun: false,
            renewed: false,
        }
    }

    pub(super) fn protocol(message: impl Into<String>) -> Self {
        Self::new(Fault::Protocol, message)
    }

    /// The stream ended before its answer did.
    pub(super) fn cut() -> Self {
        Self::new(Fault::Network, "the answer broke off")
    }

    /// An answer that is an error, with as much of its body as was read.
    pub(super) fn of_answer(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        now: Millis,
    ) -> Self {
        let said = Said::of_body(body);
        let fault = said.fault().unwrap_or_else(|| of_status(status));
        let mut error = Self::new(fault, said.message);
        if error.message.is_empty() && status.is_redirection() {
            error.message = "it sends us elsewhere, where no key of ours goes; set base_url".into();
        }
        error.status = Some(status.as_u16());
        error.retry_at = limits::retry_at(headers, now);
        error.renewed = headers.contains_key(RENEWED_HEADER);
        error
    }

    /// An error in the middle of a stream: `{"type"|"code": .., "message": ..}`.
    pub(super) fn of_event(error: &Value) -> Self {
        let said = Said::of_value(error);
        // Some servers put the status into the code.
        let status = error["code"]
            .as_u64()
            .and_then(|code| u16::try_from(code).ok());
        let status = status.and_then(|code| StatusCode::from_u16(code).ok());
        let fault = said
            .fault()
            .or(status.map(of_status))
            .unwrap_or(Fault::Overloaded);
        Self::new(fault, said.message)
    }
}

impl From<SseError> for ModelError {
    fn from(error: SseError) -> Self {
        Self::protocol(error.to_string())
    }
}

impl From<serde_json::Error> for ModelError {
    fn from(error: serde_json::Error) -> Self {
        Self::protocol(error.to_string())
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

fn of_status(status: StatusCode) -> Fault {
    match status.as_u16() {
        401 | 403 => Fault::Auth,
        402 => Fault::Exhausted,
        408 | 504 => Fault::Timeout,
        413 => Fault::ContextTooLong,
        429 => Fault::RateLimited,
        425 | 500..=599 => Fault::Overloaded,
        _ => Fault::BadRequest,
    }
}

/// What a provider says of an error.
struct Said {
    /// Types and codes, whichever there are.
    kinds: Vec<String>,
    message: String,
}

/// Types and codes of all providers, as far as they say more than the status, or stand where there
/// is none. The first of the table that was said is taken.
const KINDS: [(&str, Fault); 21] = [
    ("insufficient_quota", Fault::Exhausted),
    ("billing_error", Fault::Exhausted),
    ("billing_hard_limit_reached", Fault::Exhausted),
    ("insufficient_balance", Fault::Exhausted),
    ("context_length_exceeded", Fault::ContextTooLong),
    ("string_above_max_length", Fault::ContextTooLong),
    ("request_too_large", Fault::ContextTooLong),
    ("content_policy_violation", Fault::Refused),
    ("content_filter", Fault::Refused),
    ("authentication_error", Fault::Auth),
    ("invalid_api_key", Fault::Auth),
    ("permission_error", Fault::Auth),
    ("rate_limit_error", Fault::RateLimited),
    ("rate_limit_exceeded", Fault::RateLimited),
    ("overloaded_error", Fault::Overloaded),
    ("server_is_overloaded", Fault::Overloaded),
    ("api_error", Fault::Overloaded),
    ("server_error", Fault::Overloaded),
    ("timeout_error", Fault::Timeout),
    ("not_found_error", Fault::BadRequest),
    ("model_not_found", Fault::BadRequest),
];

/// Anthropic and many compatible servers have no code for this one.
const TOO_LONG: [&str; 5] = [
    "prompt is too long",
    "exceed context limit",
    "maximum context length",
    "context window",
    "exceeds the available context size",
];

impl Said {
    fn of_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => {
                // Some servers wrap it into a list, some answer with the error itself.
                let value = value.get(0).cloned().unwrap_or(value);
                Self::of_value(value.get("error").unwrap_or(&value))
            }
            Err(_) => Self {
                kinds: Vec::new(),
                message: String::from_utf8_lossy(body).trim().to_owned(),
            },
        }
    }

    fn of_value(error: &Value) -> Self {
        if let Value::String(message) = error {
            return Self {
                kinds: Vec::new(),
                message: message.clone(),
            };
        }
        let text = |name: &str| error.get(name).and_then(Value::as_str);
        let names = ["code", "type", "status"];
        Self {
            kinds: names
                .into_iter()
                .filter_map(text)
                .map(str::to_owned)
                .collect(),
            message: ["message", "detail"]
                .into_iter()
                .find_map(text)
                .unwrap_or_default()
                .to_owned(),
        }
    }

    fn fault(&self) -> Option<Fault> {
        let message = self.message.to_lowercase();
        if TOO_LONG.iter().any(|words| message.contains(words)) {
            return Some(Fault::ContextTooLong);
        }
        let mut table = KINDS.iter();
        let found = table.find(|(kind, _)| self.kinds.iter().any(|said| said == kind));
        found.map(|(_, fault)| *fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, body: &str) -> Fault {
        let status = StatusCode::from_u16(status).unwrap();
        ModelError::of_answer(status, &HeaderMap::new(), body.as_bytes(), 0).fault
    }

    /// The table of the acceptance list: status by provider, to what it is.
    #[test]
    fn row_6_errors_have_a_kind() {
        use Fault::{
            Auth, BadRequest, ContextTooLong, Exhausted, Overloaded, RateLimited, Timeout,
        };
        let anthropic = |kind: &str, message: &str| {
            format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}"}}}}"#)
        };
        let openai = |code: &str, message: &str| {
            format!(r#"{{"error":{{"type":"x","code":"{code}","message":"{message}"}}}}"#)
        };
        for (status, body, expected) in [
            (401, anthropic("authentication_error", "no"), Auth),
            (403, anthropic("permission_error", "no"), Auth),
            (400, anthropic("invalid_request_error", "no"), BadRequest),
            (
                400,
                anthropic("invalid_request_error", "prompt is too long: 9 > 8"),
                ContextTooLong,
            ),
            (413, anthropic("request_too_large", ""), ContextTooLong),
            (429, anthropic("rate_limit_error", "exhausted"), RateLimited),
            (500, anthropic("api_error", "no"), Overloaded),
            (529, anthropic("overloaded_error", "no"), Overloaded),
            (401, openai("invalid_api_key", "no"), Auth),
            (404, openai("model_not_found", "no"), BadRequest),
            (429, openai("rate_limit_exceeded", "no"), RateLimited),
            (429, openai("insufficient_quota", "no"), Exhausted),
            (400, openai("context_length_exceeded", "no"), ContextTooLong),
            (503, openai("server_is_overloaded", "no"), Overloaded),
            (402, "Payment required".into(), Exhausted),
            (404, "<html>not found</html>".into(), BadRequest),
            (502, "<html>bad gateway</html>".into(), Overloaded),
            (504, String::new(), Timeout),
            (408, String::new(), Timeout),
            (
                429,
                r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"no"}}]"#.into(),
                RateLimited,
            ),
            (
                400,
                r#"{"error":"this model's maximum context length is 8"}"#.into(),
                ContextTooLong,
            ),
            (307, String::new(), BadRequest),
        ] {
            assert_eq!(fault(status, &body), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_word_in_a_message_is_no_kind() {
        let body = r#"{"error":{"type":"invalid_request_error","message":"rate limit exhausted"}}"#;
        assert_eq!(fault(400, body), Fault::BadRequest);
    }

    #[test]
    fn what_a_person_is_told() {
        let body = format!(r#"{{"error":{{"message":"{}"}}}}"#, "é".repeat(5000));
        let status = StatusCode::BAD_REQUEST;
        let error = ModelError::of_answer(status, &HeaderMap::new(), body.as_bytes(), 0);
        assert_eq!(error.message.chars().count(), MESSAGE_CHARS_MAX + 3);
        let said = ModelError::new(Fault::Auth, "no such key").to_string();
        assert_eq!(said, "ask the model: the key is refused: no such key");
    }
}
