//! The task object of docs/cli.md: exactly these keys, of exactly these types.
//! Must not be filled from what the program prints: it is the other side of a contract.

use serde_json::Value;

const TASK: [(&str, &str); 56] = [
    ("id", "string"),
    ("short", "string"),
    ("title", "string"),
    ("task", "string"),
    ("repo", "string"),
    ("branch", "string"),
    ("base", "string?"),
    ("agent", "string"),
    ("model", "string?"),
    ("pool", "string"),
    ("priority", "string"),
    ("after", "strings"),
    ("budget", "object?"),
    ("placement", "string"),
    ("image", "string?"),
    ("runtime", "string?"),
    ("enforced", "string?"),
    ("allow", "strings?"),
    ("state", "string"),
    ("reason", "string?"),
    ("waiting", "object?"),
    ("question", "string?"),
    ("from", "string"),
    ("workspace", "string?"),
    ("workspace_dir", "string"),
    ("workspace_name", "string"),
    ("behind", "string?"),
    ("org", "string?"),
    ("issue", "number?"),
    ("pr", "number?"),
    ("tag", "string?"),
    ("parent", "string?"),
    ("created_at", "time"),
    ("seq", "number"),
    ("runs", "array"),
    ("verified", "string"),
    ("changed", "bool"),
    ("checks_touched", "strings"),
    ("diffstat", "object?"),
    ("notes", "strings"),
    ("carried", "array"),
    ("messages", "array"),
    ("permissions", "string"),
    ("grant", "object?"),
    ("asked_by", "string?"),
    ("detached", "bool"),
    ("summoned", "object?"),
    ("until", "time?"),
    ("children", "array"),
    ("ends", "array"),
    ("asks", "array"),
    ("attachments", "array"),
    ("next_run", "object?"),
    ("limits", "object"),
    ("guide", "object"),
    ("removed", "bool"),
];
const RUN: [(&str, &str); 15] = [
    ("n", "number"),
    ("cause", "string"),
    ("state", "string"),
    ("exit", "object?"),
    ("pid", "number?"),
    ("log", "string?"),
    ("started_at", "time?"),
    ("ended_at", "time?"),
    ("session", "string?"),
    ("usage", "object?"),
    ("checks", "array"),
    ("prompt", "object?"),
    ("review", "object?"),
    ("chain", "number"),
    ("parked", "bool"),
];
const MESSAGE: [(&str, &str); 8] = [
    ("id", "number"),
    ("from", "string"),
    ("text", "string"),
    ("at", "time"),
    ("state", "string"),
    ("delivery", "string?"),
    ("run", "number?"),
    ("chain", "number"),
];
const ASK: [(&str, &str); 10] = [
    ("id", "number"),
    ("run", "number"),
    ("tool", "string"),
    ("input", "string"),
    ("owner", "string"),
    ("at", "time"),
    ("until", "time"),
    ("state", "string"),
    ("by", "string?"),
    ("why", "string?"),
];
const ATTACHMENT: [(&str, &str); 5] = [
    ("name", "string"),
    ("bytes", "number"),
    ("sha256", "string"),
    ("path", "string"),
    ("message", "number?"),
];
const CHILD: [(&str, &str); 5] = [
    ("id", "string"),
    ("short", "string"),
    ("state", "string"),
    ("detached", "bool"),
    ("done", "bool"),
];
const END: [(&str, &str); 4] = [
    ("task", "string"),
    ("run", "number"),
    ("state", "string"),
    ("message", "number?"),
];
const NEXT_RUN: [(&str, &str); 2] = [("model", "string?"), ("effort", "string?")];
const WAITING: [(&str, &str); 4] = [
    ("why", "string"),
    ("text", "string"),
    ("until", "time?"),
    ("place", "number?"),
];
const CHECK: [(&str, &str); 3] = [("name", "string"), ("state", "string"), ("exit", "object?")];
const DIFFSTAT: [(&str, &str); 3] = [
    ("files", "number"),
    ("insertions", "number"),
    ("deletions", "number"),
];

/// `2026-11-21T03:42:13.480Z`: always as long, so that times sort as text.
pub(crate) fn is_time(text: &str) -> bool {
    text.len() == 24 && text.ends_with('Z') && text.as_bytes()[19] == b'.'
}

fn fits(value: &Value, kind: &str) -> bool {
    if let Some(kind) = kind.strip_suffix('?') {
        return value.is_null() || fits(value, kind);
    }
    match kind {
        "string" => value.is_string(),
        "number" => value.is_u64(),
        "bool" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "time" => value.as_str().is_some_and(is_time),
        "strings" => {
            let items = value.as_array();
            items.is_some_and(|items| items.iter().all(Value::is_string))
        }
        _ => false,
    }
}

#[track_caller]
fn object(value: &Value, fields: &[(&str, &str)]) {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut wanted: Vec<&str> = fields.iter().map(|(key, _)| *key).collect();
    keys.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(keys, wanted, "{value:#}");
    for (key, kind) in fields {
        assert!(fits(&value[key], kind), "{key} is no {kind}: {value:#}");
    }
}

#[track_caller]
fn exit(value: &Value) {
    if let Some(exit) = value.as_object() {
        let (how, number) = exit.iter().next().unwrap();
        assert_eq!(exit.len(), 1, "{value}");
        assert!(how == "code" || how == "signal", "{value}");
        assert!(number.is_i64(), "{value}");
    }
}

#[track_caller]
fn word(value: &Value, words: &[&str]) {
    assert!(words.contains(&value.as_str().unwrap()), "{value}");
}

#[track_caller]
pub(crate) fn task(value: &Value) {
    const STATES: [&str; 11] = [
        "queued",
        "preparing",
        "running",
        "stopping",
        "checking",
        "parked",
        "completed",
        "blocked",
        "failed",
        "stopped",
        "lost",
    ];
    object(value, &TASK);
    word(&value["state"], &STATES);
    word(&value["verified"], &["yes", "no", "not_verified"]);
    word(&value["priority"], &["low", "normal", "high", "urgent"]);
    if !value["waiting"].is_null() {
        object(&value["waiting"], &WAITING);
    }
    if !value["diffstat"].is_null() {
        object(&value["diffstat"], &DIFFSTAT);
    }
    for message in value["messages"].as_array().unwrap() {
        object(message, &MESSAGE);
        const STATES: [&str; 5] = ["waiting", "held", "on_its_way", "delivered", "cancelled"];
        word(&message["state"], &STATES);
    }
    word(&value["permissions"], &["allow", "ask", "deny"]);
    for ask in value["asks"].as_array().unwrap() {
        object(ask, &ASK);
        word(&ask["state"], &["waiting", "allowed", "denied", "closed"]);
    }
    for child in value["children"].as_array().unwrap() {
        object(child, &CHILD);
        word(&child["state"], &STATES);
    }
    for end in value["ends"].as_array().unwrap() {
        object(end, &END);
        word(&end["state"], &["owed", "told", "waited_for", "detached"]);
    }
    for attachment in value["attachments"].as_array().unwrap() {
        object(attachment, &ATTACHMENT);
    }
    if !value["next_run"].is_null() {
        object(&value["next_run"], &NEXT_RUN);
    }
    for run in value["runs"].as_array().unwrap() {
        object(run, &RUN);
        word(&run["state"], &STATES);
        word(
            &run["cause"],
            &["dispatched", "answer", "retry", "said", "resumed", "ends"],
        );
        exit(&run["exit"]);
        for check in run["checks"].as_array().unwrap() {
            object(check, &CHECK);
            word(&check["state"], &["running", "passed", "failed", "not_run"]);
            exit(&check["exit"]);
        }
    }
}

/// Every field, for whoever compares with the document.
pub(crate) fn fields() -> impl Iterator<Item = &'static str> {
    let all = TASK
        .iter()
        .chain(&RUN)
        .chain(&CHECK)
        .chain(&MESSAGE)
        .chain(&ASK)
        .chain(&CHILD)
        .chain(&END)
        .chain(&ATTACHMENT)
        .chain(&NEXT_RUN)
        .chain(&WAITING)
        .chain(&DIFFSTAT);
    all.map(|(key, _)| *key)
}
