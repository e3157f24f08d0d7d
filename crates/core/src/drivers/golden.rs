//! Golden transcripts: `testdata/KIND/NAME.jsonl` is what a CLI said, `NAME.out` what its driver
//! makes of it. `made-*` are written by hand after documentation, all others are recordings with
//! their longest lists cut. `ctl.*` hold both directions: `<` from the CLI, `>` to it. `ask.*` are of
//! agents whose permissions somebody is asked for; the others' are granted.
//! Must not be a place for wishes: a hand-made transcript goes when a recording can be had.
//!
//! After a change that was meant, take the new texts out of the failing test:
//! `cargo test -p dispatch-core golden | awk '/^=== /{f=$2; next} /^===$/{f=""} f{print > f}'`,
//! run in `crates/core/src/drivers/testdata`; then read the diff.
#![expect(
    clippy::disallowed_methods,
    reason = "the test reads its transcripts; core itself does not"
)]

use std::{collections::VecDeque, fmt::Write as _, fs, path::PathBuf};

use serde_json::{Value, json};

use super::{Ask, Driver, DriverKind, Request, Step};
use crate::{
    ask::Permissions,
    update::{LastWord, Said, Update, Usage},
};

struct Transcript {
    /// `KIND/NAME.jsonl`
    name: String,
    kind: DriverKind,
    path: PathBuf,
    lines: Vec<String>,
}

impl Transcript {
    fn both_ways(&self) -> bool {
        self.name.contains("/ctl.")
    }

    fn opened(&self) -> (Box<dyn Driver>, Option<Vec<u8>>) {
        let permissions = match self.name.contains("/ask.") {
            true => Permissions::Ask,
            false => Permissions::Allow,
        };
        opened_with(self.kind, "x", permissions)
    }

    /// What the CLI said, alone.
    fn heard(&self) -> Vec<&str> {
        let lines = self.lines.iter().map(String::as_str);
        if self.both_ways() {
            lines.filter_map(|line| line.strip_prefix("< ")).collect()
        } else {
            lines.collect()
        }
    }
}

fn transcripts() -> Vec<Transcript> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/drivers/testdata"));
    let mut all = Vec::new();
    let kinds = [
        ("acp", DriverKind::Acp),
        ("claude", DriverKind::Claude),
        ("codex", DriverKind::Codex),
        ("codex_app", DriverKind::CodexApp),
        ("native", DriverKind::Native),
    ];
    for (folder, kind) in kinds {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "jsonl") {
                let file = path.file_name().unwrap().to_str().unwrap();
                all.push(Transcript {
                    name: format!("{folder}/{file}"),
                    kind,
                    lines: fs::read_to_string(&path)
                        .unwrap()
                        .lines()
                        .map(str::to_owned)
                        .collect(),
                    path,
                });
            }
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(all.len() > 20, "the transcripts are gone");
    all
}

fn opened(kind: DriverKind, prompt: &str) -> (Box<dyn Driver>, Option<Vec<u8>>) {
    opened_with(kind, prompt, Permissions::Allow)
}

fn opened_with(
    kind: DriverKind,
    prompt: &str,
    permissions: Permissions,
) -> (Box<dyn Driver>, Option<Vec<u8>>) {
    let mut driver = kind.driver();
    let opening = driver.open(&Ask {
        prompt,
        whole: "whole",
        cwd: "/workspace/repo",
        folders: &[],
        program: "agent",
        args: &[],
        home: "/home",
        resume: None,
        effort: None,
        review: None,
        unfenced: false,
        permissions,
        tools: None,
        model: None,
        profile: None,
        native: None,
    });
    (driver, opening.first)
}

#[test]
fn golden() {
    let mut wrong = String::new();
    for transcript in transcripts() {
        let out = transcript.path.with_extension("out");
        let actual = rendered(&transcript);
        if fs::read_to_string(&out).ok().as_deref() != Some(&actual) {
            let name = transcript.name.replace(".jsonl", ".out");
            write!(wrong, "=== {name}\n{actual}").unwrap();
        }
    }
    assert!(
        wrong.is_empty(),
        "these differ from their .out files\n{wrong}===\n"
    );
}

#[test]
fn a_replay_comes_to_the_same_steps() {
    for transcript in transcripts() {
        let replay = || {
            let (mut driver, _) = transcript.opened();
            let steps: Vec<Vec<Step>> = transcript
                .heard()
                .iter()
                .map(|line| driver.hear(line))
                .collect();
            (steps, driver.close())
        };
        assert_eq!(replay(), replay(), "{}", transcript.name);
    }
}

#[test]
fn what_we_send_is_what_the_recorded_client_sent() {
    for transcript in transcripts().iter().filter(|t| t.both_ways()) {
        let mut driver = None;
        let mut sent = VecDeque::new();
        for line in &transcript.lines {
            let Some(theirs) = line.strip_prefix("> ") else {
                let driver: &mut Box<dyn Driver> = driver.as_mut().unwrap();
                for step in driver.hear(line.strip_prefix("< ").unwrap()) {
                    if let Step::Send(bytes) = step {
                        sent.push_back(bytes);
                    }
                }
                continue;
            };
            let theirs: Value = serde_json::from_str(theirs).unwrap();
            let ours = match theirs["type"].as_str().unwrap_or_default() {
                // What the other client offered and chose is its own; the order of things is not.
                "" if theirs["method"] == "session/cancel" => continue,
                "" => {
                    let ours = sent.pop_front().unwrap_or_else(|| {
                        let (opened, first) = opened(transcript.kind, "x");
                        driver = Some(opened);
                        first.unwrap()
                    });
                    let ours: Value = serde_json::from_slice(&ours).unwrap();
                    let shape = |value: &Value| {
                        let members = ["jsonrpc", "id", "method"].map(|name| value[name].clone());
                        (members, value["params"]["sessionId"].clone())
                    };
                    assert_eq!(shape(&ours), shape(&theirs), "{}", transcript.name);
                    continue;
                }
                "user" => {
                    let text = theirs["message"]["content"][0]["text"].as_str().unwrap();
                    match driver.as_mut() {
                        Some(driver) => driver.say(text).unwrap(),
                        None => {
                            let (opened, first) = opened(transcript.kind, text);
                            driver = Some(opened);
                            first.unwrap()
                        }
                    }
                }
                "control_response" => sent.pop_front().unwrap(),
                // Its own requests, such as an interrupt: we make none.
                "control_request" => continue,
                other => panic!("{}: {other}", transcript.name),
            };
            let ours: Value = serde_json::from_slice(&ours).unwrap();
            assert_eq!(ours, theirs, "{}", transcript.name);
        }
        assert!(sent.is_empty(), "{}: more was sent", transcript.name);
    }
}

#[test]
fn no_line_can_break_a_driver() {
    for kind in [
        DriverKind::Plain,
        DriverKind::Claude,
        DriverKind::Codex,
        DriverKind::Acp,
        DriverKind::CodexApp,
        DriverKind::Coderabbit,
        DriverKind::Native,
    ] {
        let (mut driver, _) = opened(kind, "x");
        for transcript in transcripts() {
            for line in transcript.heard() {
                for end in (0..line.len())
                    .step_by(97)
                    .filter(|end| line.is_char_boundary(*end))
                {
                    driver.hear(&line[..end]);
                    driver.hear(&line[end..]);
                }
                let Ok(value) = serde_json::from_str::<Value>(line) else {
                    continue;
                };
                if kind != transcript.kind {
                    driver.hear(line);
                    continue;
                }
                for other in odd_values() {
                    mutated(&value, &other, &mut |mutant| {
                        driver.hear(&mutant.to_string());
                    });
                }
            }
        }
        driver.hear(&"[".repeat(100_000));
        driver.hear("\u{0}\u{feff}{\"type\":\"result\"}");
        driver.close();
    }
}

fn odd_values() -> [Value; 6] {
    let long = "\u{1f600}|9999999999 try again in 9e9 days ".repeat(3);
    [
        Value::Null,
        json!(-1),
        json!(1e300),
        json!(long),
        json!([{}]),
        json!({"error": []}),
    ]
}

/// The value with each of its parts in turn replaced by another.
fn mutated(value: &Value, other: &Value, hear: &mut dyn FnMut(&Value)) {
    hear(other);
    match value {
        Value::Object(map) => {
            for (key, part) in map {
                mutated(part, other, &mut |mutant| {
                    let mut copy = value.clone();
                    copy[key.as_str()] = mutant.clone();
                    hear(&copy);
                });
            }
        }
        Value::Array(list) => {
            // The first few stand for all.
            for (at, part) in list.iter().enumerate().take(2) {
                mutated(part, other, &mut |mutant| {
                    let mut copy = value.clone();
                    copy[at] = mutant.clone();
                    hear(&copy);
                });
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn rendered(transcript: &Transcript) -> String {
    let mut out = String::new();
    let (mut driver, _) = transcript.opened();
    for (at, line) in transcript.lines.iter().enumerate() {
        let heard = match (transcript.both_ways(), line.strip_prefix("< ")) {
            (false, _) => line,
            (true, Some(heard)) => heard,
            (true, None) => continue,
        };
        for step in driver.hear(heard) {
            writeln!(out, "{:>3} {}", at + 1, step_text(&step)).unwrap();
        }
    }
    let Said {
        last,
        text,
        session,
        usage,
    } = driver.close();
    writeln!(out, "last word: {}", last_text(&last)).unwrap();
    writeln!(out, "text: {text:?}").unwrap();
    writeln!(out, "session: {}", session.as_deref().unwrap_or("-")).unwrap();
    writeln!(
        out,
        "usage: {}",
        usage.as_ref().map_or("-".into(), usage_text)
    )
    .unwrap();
    out
}

fn step_text(step: &Step) -> String {
    match step {
        Step::Said(update) => update_text(update),
        Step::Whole(chunk, update) => format!("{} (the whole of {chunk})", update_text(update)),
        Step::Piece { chunk, voice, text } => {
            format!("piece of {} {chunk}: {text:?}", voice.word())
        }
        Step::Live(text) => format!("live {text:?}"),
        Step::Spent(usage) => format!("spent so far {}", usage_text(usage)),
        Step::Send(bytes) => format!("-> {}", String::from_utf8_lossy(bytes).trim_end()),
        Step::Ask(request) => {
            let [allow, deny] = [&request.allow, &request.deny].map(|answer| {
                let text = String::from_utf8_lossy(answer);
                text.trim_end().to_owned()
            });
            let Request { tool, input, .. } = request;
            format!("asks {tool} {input}\n    to allow {allow}\n    to deny {deny}")
        }
        Step::Withdrawn { id } => format!("withdrawn {id}"),
        Step::CloseInput => "close input".into(),
        Step::Key { key, news } => format!("key {key}: {news:?}"),
        Step::Message { nth, hearing } => format!("message {nth}: {hearing:?}"),
        Step::Done => "done".into(),
    }
}

fn update_text(update: &Update) -> String {
    let word = update.word();
    match update {
        Update::Session { id } => format!("{word} {id}"),
        Update::Text { text } | Update::Thinking { text } | Update::Notice { text } => {
            format!("{word} {text:?}")
        }
        Update::ToolCall { id, name, input } => {
            format!("{word} {id} {name} {}", input.replace('\n', "\\n"))
        }
        Update::ToolResult { id, output, failed } => {
            format!(
                "{word} {id} {} {output:?}",
                if *failed { "failed" } else { "ok" }
            )
        }
        Update::Asked {
            tool,
            input,
            allowed,
        } => {
            format!(
                "{word} {tool} {} {input}",
                if *allowed { "allowed" } else { "denied" }
            )
        }
        Update::Usage(usage) => format!("{word} {}", usage_text(usage)),
        Update::Todo { items } => {
            let items = items
                .iter()
                .map(|item| format!("{:?} {:?}", item.state, item.text));
            format!("{word} {}", items.collect::<Vec<_>>().join(", "))
        }
        Update::Retrying {
            attempt,
            status,
            delay_ms,
            reason,
        } => format!("{word} {attempt} status {status:?} delay {delay_ms:?} {reason:?}"),
        Update::Waiting {
            until,
            attempt,
            reason,
        } => format!("{word} {attempt} until {until} {reason:?}"),
        Update::ModelChanged { from, to, reason } => format!("{word} {from} -> {to} {reason:?}"),
        Update::KeyOut { key, until, reason } => format!("{word} {key} until {until:?} {reason:?}"),
    }
}

fn usage_text(usage: &Usage) -> String {
    let Usage {
        input_tokens,
        output_tokens,
        cache_read_tokens,
        cache_write_tokens,
        cost_usd,
        turns,
    } = usage;
    let n = |n: &Option<u64>| n.map_or("-".into(), |n| n.to_string());
    format!(
        "in {} out {} cache read {} write {} cost {} turns {}",
        n(input_tokens),
        n(output_tokens),
        n(cache_read_tokens),
        n(cache_write_tokens),
        cost_usd.map_or("-".into(), |usd| format!("{usd:.4}")),
        n(&turns.map(u64::from)),
    )
}

fn last_text(last: &LastWord) -> String {
    match last {
        LastWord::NoProtocol => "no protocol".into(),
        LastWord::Done => "done".into(),
        LastWord::Asked { question } => format!("asked {question:?}"),
        LastWord::RateLimited {
            retry_after_ms,
            retry_at,
        } => format!("rate limited, after {retry_after_ms:?} ms, at {retry_at:?}"),
        LastWord::Auth => "auth".into(),
        LastWord::Model => "model".into(),
        LastWord::Unavailable => "unavailable".into(),
        LastWord::Missing { expected } => format!("missing {expected}"),
    }
}
