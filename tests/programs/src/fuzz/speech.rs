//! What an agent says: its bytes cut to lines, its lines heard by a driver, its secrets masked.
//! Must not hold a bound that the product does not promise.

use std::{collections::BTreeSet, fs, path::Path};

use dispatch_core::{
    ask::{INPUT_BYTES_MAX, Permissions},
    drivers::{Ask, Driver, DriverKind, Step},
    update::{LastWord, Said, Update},
};
use dispatch_engine::fuzzing;

use super::{Shape, Target, holds, pieces, shape_of};

const DRIVER: &str = "the same steps for every cutting and every replay; per line a bounded number \
    of steps and bytes, one end, answers of one JSON line, updates that the log reads back as they \
    were; close always has a last word";

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "plain",
        property: DRIVER,
        seeds: || transcripts(&["claude", "codex"]),
        words: &[],
        check: |bytes| driver(DriverKind::Plain, bytes),
    },
    Target {
        name: "claude",
        property: DRIVER,
        seeds: || transcripts(&["claude"]),
        words: CLAUDE_WORDS,
        check: |bytes| driver(DriverKind::Claude, bytes),
    },
    Target {
        name: "codex",
        property: DRIVER,
        seeds: || transcripts(&["codex"]),
        words: CODEX_WORDS,
        check: |bytes| driver(DriverKind::Codex, bytes),
    },
    Target {
        name: "acp",
        property: DRIVER,
        seeds: || transcripts(&["acp"]),
        words: ACP_WORDS,
        check: |bytes| driver(DriverKind::Acp, bytes),
    },
    Target {
        name: "native",
        property: DRIVER,
        seeds: || transcripts(&["native"]),
        words: &["chunk", "turn_ended", "said", "asked", "windows", "live"],
        check: |bytes| driver(DriverKind::Native, bytes),
    },
    Target {
        name: "lines",
        property: "the same lines for every cutting, as a plain reading of the whole makes them; no \
            offset lost",
        seeds: || {
            [
                "one\n\u{e9} two\r\n\nlong long long long long long\nend",
                "\r\r\n\r",
                "\n\n",
            ]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
        },
        words: &["\n", "\r\n", "\r", "0123456789abcdef"],
        check: lines,
    },
    Target {
        name: "orders",
        property: "a keeper reads the same orders for every cutting, one answer a line at most, and \
            what is said is never obeyed",
        seeds: || {
            [
                "watch\nsay 1 6\nclose\nclose\nstop 10 \"by_person\"\n",
                "say 2 11\nstop 0 \"x\"\nstop 0 {\"idle\":{\"limit_ms\":5}}\nsay 1\n",
                "say 3 0\nsay -1 2\nok\nfly\nsay 4 99999999999\n",
            ]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
        },
        words: &[
            "watch\n",
            "close\n",
            "say ",
            "say 9 7\nclose\n\n",
            "stop 0 \"by_person\"\n",
            "\n",
            " ",
        ],
        check: orders,
    },
    Target {
        name: "masked",
        property: "no secret is to be seen, the rest is untouched, whatever the cutting",
        seeds: || {
            [
                "a sk-secret-1 b sk-secret-1-long sk-sk-secret-1",
                "aaaaaaaaaaaaaaa",
                "ababac-ababab",
            ]
            .map(|text| text.as_bytes().to_vec())
            .to_vec()
        },
        words: SECRETS,
        check: masked,
    },
];

const ACP_WORDS: &[&str] = &[
    "jsonrpc",
    "2.0",
    "id",
    "1",
    "2",
    "3",
    "result",
    "error",
    "code",
    "-32000",
    "method",
    "session/update",
    "session/request_permission",
    "fs/read_text_file",
    "sessionUpdate",
    "agent_message_chunk",
    "agent_thought_chunk",
    "tool_call",
    "tool_call_update",
    "toolCallId",
    "status",
    "completed",
    "plan",
    "entries",
    "usage_update",
    "options",
    "allow_once",
    "reject_once",
    "$/cancel_request",
    "stopReason",
    "end_turn",
];

const CLAUDE_WORDS: &[&str] = &[
    "system",
    "init",
    "api_retry",
    "permission_denied",
    "informational",
    "warning",
    "assistant",
    "user",
    "control_request",
    "can_use_tool",
    "control_cancel_request",
    "rate_limit_event",
    "rejected",
    "result",
    "success",
    "error_during_execution",
    "blocking_limit",
    "tool_use",
    "tool_result",
    "text",
    "thinking",
    "AskUserQuestion",
    "questions",
    "options",
    "label",
    "modelUsage",
    "total_cost_usd",
    "num_turns",
    "queued_turn_count",
    "permission_denials",
    "session_id",
    "resetsAt",
    "retry_delay_ms",
    "authentication_failed",
    "rate_limit",
    "Usage limit reached|1760000000",
    "retry after 1.5s",
    "{\"type\":\"result\",\"is_error\":false,\"subtype\":\"success\",\"total_cost_usd\":0.1234567890123456789}\n",
];
const CODEX_WORDS: &[&str] = &[
    "thread.started",
    "turn.started",
    "item.started",
    "item.updated",
    "item.completed",
    "error",
    "turn.completed",
    "turn.failed",
    "agent_message",
    "reasoning",
    "todo_list",
    "command_execution",
    "file_change",
    "web_search",
    "mcp_tool_call",
    "collab_tool_call",
    "exit_code",
    "declined",
    "Reconnecting... 2/5 (last status: 429)",
    "; retrying 3/5 in 202ms",
    "try again in 9e9 weeks",
    "wait 1.1.1 s",
    "status: 429",
    "status 4290",
    "status code ",
    "{\\\"error\\\":{\\\"message\\\":\\\"m\\\"}}",
];

/// The lines of one hearing; the engine's own default is far larger than what we try.
const LINE_BYTES_MAX: usize = 4096;
/// What one line may become, beside what is bounded by itself: escapes upon escapes.
const GROWTH_MAX: usize = 64;
const GROWTH_BYTES: usize = 8 * 1024;
/// A kept text or sixteen questions, with their marks.
const CLOSE_BYTES_MAX: usize = 16 * 17 * 1024 + 16 * 1024;

const SEED_LINE_BYTES_MAX: usize = 2048;
const SEED_BYTES_MAX: usize = 6 * 1024;

/// The golden transcripts: what the CLI said, without the longest lines.
fn transcripts(folders: &[&str]) -> Vec<Vec<u8>> {
    let root = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../crates/core/src/drivers/testdata"
    ));
    let mut seeds = Vec::new();
    for folder in folders {
        let mut files: Vec<_> = fs::read_dir(root.join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "jsonl"))
            .collect();
        // A folder's order is not the same everywhere, and the seed must say it all.
        files.sort();
        for text in files
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
        {
            let mut seed = String::new();
            for line in text.lines().filter(|line| !line.starts_with("> ")) {
                let line = line.strip_prefix("< ").unwrap_or(line);
                if line.len() <= SEED_LINE_BYTES_MAX && seed.len() + line.len() < SEED_BYTES_MAX {
                    seed.push_str(line);
                    seed.push('\n');
                }
            }
            seeds.push(seed.into_bytes());
        }
    }
    seeds
}

fn opened(kind: DriverKind, permissions: Permissions) -> Box<dyn Driver> {
    let mut driver = kind.driver();
    driver.open(&Ask {
        prompt: "x",
        whole: "whole",
        cwd: "/w",
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
    driver
}

fn driver(kind: DriverKind, bytes: &[u8]) -> Result<Shape, String> {
    let whole = fuzzing::lines(LINE_BYTES_MAX, &[bytes]);
    let cut = fuzzing::lines(LINE_BYTES_MAX, &pieces(bytes, 97));
    holds(whole == cut, || "the cutting changes the lines".into())?;
    // All of them in turns, and the same for the same bytes.
    let permissions = Permissions::ALL[bytes.len() % Permissions::ALL.len()];
    let (steps, said, answer) = heard(kind, permissions, &whole);
    let again = heard(kind, permissions, &cut);
    holds(
        (&steps, &said, &answer) == (&again.0, &again.1, &again.2),
        || "a replay comes to other steps".into(),
    )?;
    for ((line, ..), steps) in whole.iter().zip(&steps) {
        line_holds(line, steps).map_err(|what| format!("{what}, for line {line:?}"))?;
    }
    let asked = match &said.last {
        LastWord::Asked { question } => question.len(),
        _ => 0,
    };
    holds(said.text.len().max(asked) <= CLOSE_BYTES_MAX, || {
        "the last word is not bounded".into()
    })?;
    if let Some(session) = &said.session {
        session_holds(session)?;
    }
    if let Some(answer) = answer {
        one_line_of_json(&answer)?;
    }
    let words: Vec<&str> = steps.iter().flatten().map(word).collect();
    let pairs: BTreeSet<&[&str]> = words.windows(2).collect();
    Ok(shape_of((
        pairs,
        words.first(),
        std::mem::discriminant(&said.last),
        said.session.is_some(),
        said.text.is_empty(),
        said.usage.is_some(),
    )))
}

fn heard(
    kind: DriverKind,
    permissions: Permissions,
    lines: &[(String, u64, bool)],
) -> (Vec<Vec<Step>>, Said, Option<Vec<u8>>) {
    let mut driver = opened(kind, permissions);
    let steps = lines.iter().map(|(line, ..)| driver.hear(line)).collect();
    let answer = driver.say(lines.last().map_or("", |(line, ..)| line));
    (steps, driver.close(), answer)
}

fn line_holds(line: &str, steps: &[Step]) -> Result<(), String> {
    holds(steps.len() <= 2 + line.len(), || {
        format!("{} steps", steps.len())
    })?;
    let ends = steps.iter().filter(|step| **step == Step::Done).count();
    holds(ends <= 1, || "more than one end".into())?;
    let mut weight = 0;
    for step in steps {
        match step {
            Step::Said(update) | Step::Whole(_, update) => {
                let json = serde_json::to_vec(update).map_err(|e| format!("write: {e}"))?;
                weight += json.len();
                let back: Update =
                    serde_json::from_slice(&json).map_err(|e| format!("read back: {e}"))?;
                holds(back == *update, || {
                    format!("the log reads {back:?} where {update:?} was said")
                })?;
                if let Update::Session { id } = update {
                    session_holds(id)?;
                }
            }
            Step::Live(text) | Step::Piece { text, .. } => weight += text.len(),
            Step::Send(bytes) => {
                weight += bytes.len();
                one_line_of_json(bytes)?;
            }
            Step::Ask(request) => {
                weight += request.allow.len() + request.deny.len();
                weight += request.tool.len() + request.id.len();
                holds(request.input.len() <= INPUT_BYTES_MAX + 64, || {
                    format!("{} bytes to read", request.input.len())
                })?;
                one_line_of_json(&request.allow)?;
                one_line_of_json(&request.deny)?;
            }
            Step::Withdrawn { id } => weight += id.len(),
            Step::Key { key, news } => {
                let news = serde_json::to_vec(news).map_err(|e| format!("write: {e}"))?;
                weight += key.as_str().len() + news.len();
            }
            Step::Message { nth, .. } => holds(*nth > 0, || "a message without a number".into())?,
            Step::Spent(_) | Step::CloseInput | Step::Done => {}
        }
    }
    holds(weight <= GROWTH_MAX * line.len() + GROWTH_BYTES, || {
        format!("{} bytes became {weight}", line.len())
    })
}

/// It goes back to the CLI in an argv.
fn session_holds(id: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = !id.is_empty() && id.len() <= 128 && !id.starts_with(['-', '.', '_']);
    holds(fits && id.chars().all(good), || {
        format!("{id:?} is a session")
    })
}

fn one_line_of_json(bytes: &[u8]) -> Result<(), String> {
    let body = bytes
        .strip_suffix(b"\n")
        .ok_or("an answer without an end")?;
    holds(!body.contains(&b'\n'), || "an answer of two lines".into())?;
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("an answer that is no JSON: {error}")),
    }
}

fn word(step: &Step) -> &'static str {
    match step {
        Step::Said(update) | Step::Whole(_, update) => update.word(),
        Step::Live(_) => "live",
        Step::Piece { .. } => "piece",
        Step::Spent(_) => "spent",
        Step::Send(_) => "send",
        Step::Ask(_) => "ask",
        Step::Withdrawn { .. } => "withdrawn",
        Step::Key { .. } => "key",
        Step::Message { .. } => "message",
        Step::CloseInput => "close",
        Step::Done => "done",
    }
}

fn lines(bytes: &[u8]) -> Result<Shape, String> {
    let mut shape = Vec::new();
    for most in [1, 7, 16, 4096] {
        let whole = fuzzing::lines(most, &[bytes]);
        for sizes in [1, 3, 64] {
            let cut = fuzzing::lines(most, &pieces(bytes, sizes));
            holds(whole == cut, || {
                format!("pieces of {sizes}, lines of {most}")
            })?;
        }
        let plain = plain_lines(bytes, most);
        holds(whole == plain, || {
            format!("lines of {most}: {whole:?} where a plain reading has {plain:?}")
        })?;
        shape.push((whole.len().min(8), whole.iter().any(|line| line.2)));
    }
    Ok(shape_of((
        shape,
        bytes.ends_with(b"\n"),
        std::str::from_utf8(bytes).is_ok(),
    )))
}

fn plain_lines(bytes: &[u8], most: usize) -> Vec<(String, u64, bool)> {
    let mut end = 0;
    let mut lines = Vec::new();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        end += line.len() as u64;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let kept = String::from_utf8_lossy(&text[..text.len().min(most)]).into_owned();
        let kept = kept.trim_end_matches('\r').to_owned();
        lines.push((kept, end, text.len() > most));
    }
    lines
}

/// One starts with another, one holds another, and one repeats itself.
const SECRETS: &[&str] = &[
    "sk-secret-1",
    "sk-secret-1-long",
    "x-sk-secret-1",
    "aaaaaa",
    "ababac",
];

fn masked(bytes: &[u8]) -> Result<Shape, String> {
    let whole = fuzzing::masked(SECRETS, &[bytes]);
    for sizes in [1, 2, 5, 64] {
        let cut = fuzzing::masked(SECRETS, &pieces(bytes, sizes));
        holds(cut == whole, || {
            let (cut, whole) = (
                String::from_utf8_lossy(&cut),
                String::from_utf8_lossy(&whole),
            );
            format!("in pieces {cut:?} is to be seen, as a whole {whole:?}")
        })?;
    }
    let mut masks = 0;
    for secret in SECRETS {
        let seen = |text: &[u8]| text.windows(secret.len()).any(|w| w == secret.as_bytes());
        holds(!seen(&whole), || format!("{secret} is to be seen"))?;
        masks += usize::from(seen(bytes));
    }
    holds(masks > 0 || whole == bytes, || "nothing was secret".into())?;
    Ok(shape_of((
        masks,
        whole.len() < bytes.len(),
        bytes.len().min(32) / 8,
    )))
}

/// The bodies are told from the orders by a reading of our own.
fn orders(bytes: &[u8]) -> Result<Shape, String> {
    let (whole, cut) = fuzzing::orders(&[bytes]);
    let cuttings = [pieces(bytes, 1), pieces(bytes, 40)];
    for cutting in &cuttings {
        let again = fuzzing::orders(cutting);
        holds(again == (whole.clone(), cut), || {
            format!("{again:?} in pieces, {whole:?} at once")
        })?;
    }
    let mut rest = bytes;
    let mut read = 0;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        if let Some((_, length)) = line.strip_prefix("say ").and_then(|l| l.split_once(' ')) {
            match length.parse::<usize>() {
                Ok(length) if length <= rest.len() => rest = &rest[length..],
                _ => break,
            }
        }
        read += 1;
    }
    holds(read == whole.len(), || {
        format!("{read} orders are there, {} were read", whole.len())
    })?;
    let kinds: Vec<String> = whole
        .iter()
        .map(|order| {
            order
                .chars()
                .take_while(char::is_ascii_alphabetic)
                .collect()
        })
        .collect();
    Ok(shape_of((kinds, cut)))
}
