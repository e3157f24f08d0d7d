//! What more than one driver reads out of an agent's texts: bounds, retry times, kinds of failure.
//! Must not know any CLI's events, and must not resolve a wall clock time: core has no clock.

use serde_json::Value;

use crate::{
    Millis,
    ask::{self, INPUT_BYTES_MAX},
    update::{Todo, TodoState, Update},
};

/// The most that is kept of a tool's input or output in an update.
pub(super) const TOOL_BYTES_MAX: usize = 16 * 1024;
/// The most that is kept of one text, thought or notice.
pub(super) const TEXT_BYTES_MAX: usize = 256 * 1024;
/// What is kept of a list of things to do.
pub(super) const TODO_ITEMS_MAX: usize = 64;
const TODO_BYTES_MAX: usize = 256;
const SESSION_BYTES_MAX: usize = 128;
/// An epoch above this is in milliseconds; as seconds it would be the year 5138.
const EPOCH_SECONDS_MAX: u64 = 100_000_000_000;

/// The text, cut at a character so that it has at most `bytes_max` bytes before the mark.
pub(super) fn bounded(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut cut = bytes_max;
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}\u{2026} [{} bytes cut]", &text[..cut], text.len() - cut)
}

pub(super) fn tool_text(text: &str) -> String {
    bounded(text, TOOL_BYTES_MAX)
}

/// What it asks for: a word in a list, before a question, of a hook.
pub(super) fn asked_tool(text: &str) -> String {
    bounded(text, ask::TOOL_BYTES_MAX)
}

/// What somebody has to read before they answer it.
pub(crate) fn asked_text(text: &str) -> String {
    bounded(text, INPUT_BYTES_MAX)
}

pub(super) fn kept_text(text: &str) -> String {
    bounded(text, TEXT_BYTES_MAX)
}

pub(super) fn notice(text: &str) -> Update {
    Update::Notice {
        text: kept_text(text),
    }
}

/// One of a list of things to do, in the words that CLIs have for its state.
pub(super) fn todo(text: &str, state: &str) -> Todo {
    Todo {
        text: bounded(text, TODO_BYTES_MAX),
        state: match state {
            "completed" => TodoState::Done,
            "in_progress" | "inProgress" => TodoState::Active,
            _ => TodoState::Pending,
        },
    }
}

/// Such a list, each of its entries with a text and a state by these names.
pub(super) fn todos(entries: &Value, text: &str, state: &str) -> Update {
    let entries = entries.as_array().into_iter().flatten();
    let items = entries.take(TODO_ITEMS_MAX);
    let items = items.map(|entry| todo(str_at(entry, text), str_at(entry, state)));
    Update::Todo {
        items: items.collect(),
    }
}

/// A JSON value for a person: a string as it is, nothing for null, anything else compact.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A tool's content: a text, or blocks of which those without a text are named.
pub(super) fn blocks(content: &Value) -> String {
    let Value::Array(blocks) = content else {
        return plain(content);
    };
    let texts: Vec<String> = blocks
        .iter()
        .map(|block| match block["text"].as_str() {
            Some(text) => text.to_owned(),
            None => format!("[{}]", str_at(block, "type")),
        })
        .collect();
    texts.join("\n")
}

/// The string at `key`, or an empty one.
pub(super) fn str_at<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(super) fn u32_at(value: &Value, key: &str) -> Option<u32> {
    value[key].as_u64().and_then(|n| u32::try_from(n).ok())
}

pub(super) fn status_at(value: &Value, key: &str) -> Option<u16> {
    value[key].as_u64().and_then(|n| u16::try_from(n).ok())
}

/// Whether this can be handed back to a CLI as a session to resume: it comes out of the agent's
/// output, and must never be read as an option.
pub(super) fn session_ok(id: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    id.len() <= SESSION_BYTES_MAX
        && id.bytes().all(good)
        && id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

pub(super) fn has_any(lower: &str, marks: &[&str]) -> bool {
    marks.iter().any(|mark| lower.contains(mark))
}

/// "now or later" as a provider words it, where no status code says so.
pub(super) const LIMIT_MARKS: &[&str] = &[
    "429 too many requests",
    "status: 429",
    "status 429",
    "status code 429",
    "(429)",
    "quota exceeded",
    "exceeded your current quota",
    "insufficient_quota",
    "usage limit",
    "session limit",
    "weekly limit",
    "hit your limit",
    "rate limit",
    "rate_limit",
    "usage_limit_reached",
];

/// Statuses of a provider that has no answer now and may have one later.
pub(super) fn is_away(status: u16) -> bool {
    status == 408 || status >= 500
}

/// The same as a CLI or a provider words it.
pub(super) const AWAY_MARKS: &[&str] = &[
    "overloaded",
    "experiencing high demand",
    "stream disconnected",
    "connection error",
    "connection refused",
    "connection reset",
    "could not connect",
    "error sending request",
    "request timed out",
];

/// "who are you" as a CLI or a provider words it.
pub(super) const AUTH_MARKS: &[&str] = &[
    "not logged in",
    "please run /login",
    "invalid api key",
    "incorrect api key",
    "authentication_failed",
    "authentication_error",
    "unauthorized",
    "status: 401",
    "status 401",
    "codex login",
];

const WAIT_MARKS: &[&str] = &[
    "try again in ",
    "retry in ",
    "retrying in ",
    "resets in ",
    "reset in ",
    "retry after ",
    "wait ",
];

/// "try again in 3 hours 20 minutes", "retry after 1.5s", ...
pub(super) fn retry_after_ms(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    WAIT_MARKS.iter().find_map(|mark| {
        lower
            .match_indices(mark)
            .find_map(|(at, _)| duration_ms(&lower[at + mark.len()..]))
    })
}

/// A duration at the start of a lowercase text: numbers with units, until something else comes.
pub(super) fn duration_ms(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum: Option<u64> = None;
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        rest = rest.strip_prefix("and ").unwrap_or(rest);
        let number = prefix(rest, |c| c.is_ascii_digit() || c == '.');
        let after = rest[number.len()..].trim_start_matches(' ');
        let unit = prefix(after, |c| c.is_ascii_alphabetic() || c == '\u{b5}');
        let (Ok(count), Some(ms)) = (number.parse::<f64>(), unit_ms(unit)) else {
            return sum;
        };
        // A float that is too large becomes the largest integer.
        let part = (count * ms).ceil() as u64;
        sum = Some(sum.unwrap_or(0).saturating_add(part));
        rest = &after[unit.len()..];
    }
}

fn prefix(text: &str, keep: impl Fn(char) -> bool) -> &str {
    let end = text.find(|c| !keep(c)).unwrap_or(text.len());
    &text[..end]
}

fn unit_ms(unit: &str) -> Option<f64> {
    match unit {
        "ms" | "millisecond" | "milliseconds" => Some(1.0),
        "s" | "sec" | "secs" | "second" | "seconds" => Some(1_000.0),
        "m" | "min" | "mins" | "minute" | "minutes" => Some(60_000.0),
        "h" | "hr" | "hrs" | "hour" | "hours" => Some(3_600_000.0),
        "d" | "day" | "days" => Some(86_400_000.0),
        "w" | "week" | "weeks" => Some(604_800_000.0),
        _ => None,
    }
}

/// `...|1760000000`, in seconds or milliseconds.
pub(super) fn epoch_in(text: &str) -> Option<Millis> {
    text.match_indices('|').find_map(|(at, _)| {
        let digits = prefix(&text[at + 1..], |c| c.is_ascii_digit());
        matches!(digits.len(), 10 | 13).then(|| digits.parse().ok().map(epoch_ms))?
    })
}

/// Providers give seconds; a few give milliseconds.
pub(super) fn epoch_ms(epoch: u64) -> Millis {
    if epoch < EPOCH_SECONDS_MAX {
        epoch.saturating_mul(1000)
    } else {
        epoch
    }
}

/// The HTTP status that follows the word "status".
pub(super) fn status_in(text: &str) -> Option<u16> {
    text.match_indices("status").find_map(|(at, word)| {
        let rest = &text[at + word.len()..];
        let rest = rest.strip_prefix(" code").unwrap_or(rest);
        let digits = prefix(rest.trim_start_matches([':', ' ']), |c| c.is_ascii_digit());
        (digits.len() == 3).then(|| digits.parse().ok())?
    })
}

/// Questions with their options, as a person is to read them.
pub(super) fn questions(input: &Value) -> String {
    let mut out = String::new();
    for question in input["questions"].as_array().into_iter().flatten() {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(str_at(question, "question"));
        if question["multiSelect"].as_bool() == Some(true) {
            out.push_str(" (any number of)");
        }
        for option in question["options"].as_array().into_iter().flatten() {
            out.push_str("\n- ");
            out.push_str(str_at(option, "label"));
            let description = str_at(option, "description");
            if !description.is_empty() {
                out.push_str(": ");
                out.push_str(description);
            }
        }
    }
    if out.trim().is_empty() {
        out = input.to_string();
    }
    tool_text(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_a_character_and_say_so() {
        assert_eq!(bounded("abc", 3), "abc");
        assert_eq!(bounded("a\u{e9}\u{e9}", 2), "a\u{2026} [4 bytes cut]");
        assert!(tool_text(&"\u{1f600}".repeat(TOOL_BYTES_MAX)).len() < TOOL_BYTES_MAX + 64);
    }

    #[test]
    fn waits_are_read() {
        for (text, ms) in [
            ("Rate limit reached, try again in 1s", Some(1_000)),
            ("Try again in 5 minutes.", Some(300_000)),
            ("try again in 3 hours 20 minutes", Some(12_000_000)),
            ("try again in 3 days 6 hours 57 minutes.", Some(284_220_000)),
            ("Please try again in 1.898s. Visit", Some(1_898)),
            ("try again in 250ms", Some(250)),
            ("retry after 1 minute, and 30 seconds", Some(90_000)),
            ("resets in 2h5m", Some(7_500_000)),
            ("try again in 99999999999999999999999 weeks", Some(u64::MAX)),
            ("try again in a while", None),
            ("try again at 5:30 PM", None),
            ("try again in 5", None),
            ("try again in ", None),
            ("", None),
        ] {
            assert_eq!(retry_after_ms(text), ms, "{text}");
        }
    }

    #[test]
    fn epochs_are_read() {
        for (text, at) in [
            ("usage limit reached|1760000000", Some(1_760_000_000_000)),
            ("a|b|1760000000123.", Some(1_760_000_000_123)),
            ("a|176000000", None),
            ("1760000000", None),
        ] {
            assert_eq!(epoch_in(text), at, "{text}");
        }
    }

    #[test]
    fn statuses_are_read() {
        assert_eq!(status_in("last status: 429 Too Many"), Some(429));
        assert_eq!(status_in("unexpected status 401 Unauthorized"), Some(401));
        assert_eq!(status_in("status code 5000"), None);
        assert_eq!(status_in("status"), None);
    }

    #[test]
    fn a_session_is_never_an_option() {
        assert!(session_ok("01a1fb6c-1568-7273-a96e-69b0bfd5508a"));
        for bad in ["", "--yolo", "-", "a b", "../x", "a\n", "\u{e9}"] {
            assert!(!session_ok(bad), "{bad}");
        }
    }
}
