//! `codex exec --json`: one turn, the prompt on standard input, events on standard output.
//! Must not take an `error` event for an end: it reconnects after most of them, and says
//! `turn.failed` when it does not. It gives no error codes, only prose.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Ask, Driver, Opening, Step, TOOLS_NAME, Tail, Tools,
    text::{
        AUTH_MARKS, AWAY_MARKS, LIMIT_MARKS, TODO_ITEMS_MAX, blocks, duration_ms, epoch_in,
        has_any, is_away, kept_text, notice, plain, retry_after_ms, session_ok, status_in, str_at,
        todo, tool_text,
    },
};
use crate::{
    job::Stdin,
    task::Effort,
    update::{LastWord, Said, Todo, Update, Usage},
};

/// How many items are remembered as begun; beyond it a call may be told twice.
const OPEN_ITEMS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Codex {
    session: Option<String>,
    text: String,
    /// The last `error` event that was no reconnection.
    error: String,
    tail: Tail,
    usage: Option<Usage>,
    /// Items that began and have not ended.
    begun: BTreeSet<String>,
    /// Its list of things to do, as last told.
    todo: Vec<Todo>,
    last: Option<LastWord>,
}

impl Driver for Codex {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        let mut argv: Vec<String> = [ask.program, "exec", "--json", "--skip-git-repo-check"]
            .map(str::to_owned)
            .to_vec();
        if ask.unfenced {
            // Its own sandbox would leave an empty .git in the shared /tmp; TMPDIR is the task's own.
            let own = "sandbox_workspace_write.exclude_slash_tmp=true";
            argv.extend(["-s", "workspace-write", "-c", own].map(str::to_owned));
        } else {
            argv.push("--dangerously-bypass-approvals-and-sandbox".into());
        }
        if let Some(profile) = ask.profile {
            argv.extend(["--profile".to_owned(), profile.to_owned()]);
        }
        if let Some(model) = ask.model {
            argv.extend(["--model".to_owned(), model.to_owned()]);
        }
        argv.extend(ask.tools.map(tools).into_iter().flatten());
        argv.extend(ask.args.iter().cloned());
        // Behind the table's own options: of two, the last one counts.
        argv.extend(ask.effort.map(effort).into_iter().flatten());
        if let Some(session) = ask.resume.filter(|id| session_ok(id)) {
            argv.extend(["resume".to_owned(), session.to_owned()]);
        }
        argv.push("-".into());
        Opening {
            argv,
            env: vec![("CODEX_HOME".into(), format!("{}/.codex", ask.home))],
            // It reads to the end of file before it begins.
            stdin: Stdin::Bytes(ask.prompt.as_bytes().to_vec()),
            first: None,
        }
    }

    fn hear(&mut self, line: &str) -> Vec<Step> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        let event = match serde_json::from_str::<Value>(line) {
            Ok(event) if event.is_object() => event,
            Ok(_) | Err(_) => {
                self.tail.push_line(line);
                return vec![Step::Live(line.to_owned())];
            }
        };
        match str_at(&event, "type") {
            "thread.started" => self.session(str_at(&event, "thread_id")),
            "turn.started" => {
                self.last = None;
                Vec::new()
            }
            "item.started" => self.item(&event["item"], Stage::Begun),
            "item.updated" => self.item(&event["item"], Stage::Changed),
            "item.completed" => self.item(&event["item"], Stage::Ended),
            "error" => self.error(str_at(&event, "message")),
            "turn.completed" => self.completed(&event["usage"]),
            "turn.failed" => self.failed(str_at(&event["error"], "message")),
            _ => Vec::new(),
        }
    }

    fn say(&mut self, _text: &str) -> Option<Vec<u8>> {
        None
    }

    fn close(&mut self) -> Said {
        let last = self.last.take().unwrap_or(LastWord::Missing {
            expected: "turn.completed or turn.failed",
        });
        let end_is_an_error = last != LastWord::Done && !self.error.is_empty();
        let text = if end_is_an_error {
            std::mem::take(&mut self.error)
        } else if self.text.is_empty() {
            self.tail.text()
        } else {
            std::mem::take(&mut self.text)
        };
        Said {
            last,
            text,
            session: self.session.take(),
            usage: self.usage.take(),
        }
    }
}

pub(super) fn effort(effort: Effort) -> [String; 2] {
    let setting = format!("model_reasoning_effort=\"{}\"", effort.word());
    ["-c".to_owned(), setting]
}

/// Longer than the longest wait of ours, after which it would take our server for dead.
const TOOL_TIMEOUT_S: u32 = 7200;

/// Our tools as options. It gives such programs hardly anything of its own environment.
pub(super) fn tools(tools: Tools<'_>) -> Vec<String> {
    // What JSON escapes in a string, TOML reads the same way.
    let text = |text: &str| Value::from(text).to_string();
    let args: Vec<String> = tools.args().iter().map(|arg| text(arg)).collect();
    let env = tools.env.iter();
    let env: Vec<String> = env
        .map(|(name, value)| format!("{name}={}", text(value)))
        .collect();
    [
        format!("command={}", text(tools.program())),
        format!("args=[{}]", args.join(",")),
        format!("env={{{}}}", env.join(",")),
        format!("tool_timeout_sec={TOOL_TIMEOUT_S}"),
        "default_tools_approval_mode=\"approve\"".to_owned(),
    ]
    .into_iter()
    .flat_map(|setting| {
        [
            "-c".to_owned(),
            format!("mcp_servers.{TOOLS_NAME}.{setting}"),
        ]
    })
    .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    Changed,
    Ended,
}

impl Codex {
    fn session(&mut self, id: &str) -> Vec<Step> {
        if !session_ok(id) || self.session.as_deref() == Some(id) {
            return Vec::new();
        }
        self.session = Some(id.to_owned());
        vec![Step::Said(Update::Session { id: id.to_owned() })]
    }

    fn item(&mut self, item: &Value, stage: Stage) -> Vec<Step> {
        let text = str_at(item, "text");
        match (str_at(item, "type"), stage) {
            ("agent_message", Stage::Ended) => {
                self.text = kept_text(text);
                let text = self.text.clone();
                vec![Step::Said(Update::Text { text })]
            }
            ("reasoning", Stage::Ended) if !text.is_empty() => {
                let text = kept_text(text);
                vec![Step::Said(Update::Thinking { text })]
            }
            // A warning, such as for a model it does not know.
            ("error", Stage::Ended) => vec![Step::Said(notice(str_at(item, "message")))],
            ("todo_list", _) => self.todo(item),
            ("command_execution", _) => self.tool(item, stage, "shell", str_at(item, "command")),
            ("file_change", _) => self.tool(item, stage, "file_change", &changes(item)),
            ("web_search", _) => self.tool(item, stage, "web_search", str_at(item, "query")),
            ("mcp_tool_call", _) => {
                let name = format!("{}.{}", str_at(item, "server"), str_at(item, "tool"));
                self.tool(item, stage, &name, &plain(&item["arguments"]))
            }
            ("collab_tool_call", _) => {
                let name = format!("collab.{}", str_at(item, "tool"));
                self.tool(item, stage, &name, str_at(item, "prompt"))
            }
            _ => Vec::new(),
        }
    }

    /// Some items begin and end, some only end; both are a call and its result.
    fn tool(&mut self, item: &Value, stage: Stage, name: &str, input: &str) -> Vec<Step> {
        let id = str_at(item, "id");
        let mut steps = Vec::new();
        if stage != Stage::Changed && !self.begun.contains(id) {
            if self.begun.len() < OPEN_ITEMS_MAX {
                self.begun.insert(id.to_owned());
            }
            steps.push(Step::Said(Update::ToolCall {
                id: id.to_owned(),
                name: tool_text(name),
                input: tool_text(input),
            }));
        }
        if stage == Stage::Ended {
            self.begun.remove(id);
            let status = str_at(item, "status");
            let exit = item["exit_code"].as_i64();
            steps.push(Step::Said(Update::ToolResult {
                id: id.to_owned(),
                output: tool_text(&output(item)),
                failed: exit.is_some_and(|code| code != 0)
                    || matches!(status, "failed" | "declined")
                    || !item["error"].is_null(),
            }));
        }
        steps
    }

    fn todo(&mut self, item: &Value) -> Vec<Step> {
        let entries = item["items"].as_array().into_iter().flatten();
        let items = entries.take(TODO_ITEMS_MAX).map(|entry| {
            let done = entry["completed"].as_bool() == Some(true);
            todo(str_at(entry, "text"), if done { "completed" } else { "" })
        });
        let items: Vec<Todo> = items.collect();
        if items == self.todo {
            return Vec::new();
        }
        self.todo.clone_from(&items);
        vec![Step::Said(Update::Todo { items })]
    }

    fn error(&mut self, message: &str) -> Vec<Step> {
        if let Some(retrying) = retrying(message) {
            return vec![Step::Said(retrying)];
        }
        self.error = kept_text(&unwrapped(message));
        vec![Step::Said(notice(&self.error))]
    }

    fn completed(&mut self, usage: &Value) -> Vec<Step> {
        self.last = Some(LastWord::Done);
        let usage = Usage {
            input_tokens: usage["input_tokens"].as_u64(),
            output_tokens: usage["output_tokens"].as_u64(),
            cache_read_tokens: usage["cached_input_tokens"].as_u64(),
            cache_write_tokens: usage["cache_write_input_tokens"].as_u64(),
            cost_usd: None,
            turns: None,
        };
        self.usage = Some(usage.clone());
        vec![Step::Said(Update::Usage(usage)), Step::Done]
    }

    fn failed(&mut self, message: &str) -> Vec<Step> {
        if !message.is_empty() {
            self.error = kept_text(&unwrapped(message));
        }
        self.last = Some(failure(message));
        vec![Step::Done]
    }
}

fn failure(message: &str) -> LastWord {
    let lower = message.to_ascii_lowercase();
    let limited = || LastWord::RateLimited {
        retry_after_ms: retry_after_ms(message),
        retry_at: epoch_in(message),
    };
    match status_in(&lower) {
        Some(429) => limited(),
        Some(401) => LastWord::Auth,
        Some(status) if is_away(status) => LastWord::Unavailable,
        Some(_) => LastWord::Model,
        None if has_any(&lower, LIMIT_MARKS) => limited(),
        None if has_any(&lower, AUTH_MARKS) => LastWord::Auth,
        None if has_any(&lower, AWAY_MARKS) => LastWord::Unavailable,
        None => LastWord::Model,
    }
}

/// `Reconnecting... 2/5 (why)`, or in older versions `why; retrying 2/5 in 200ms…`.
fn retrying(message: &str) -> Option<Update> {
    let (reason, rest) = match message.strip_prefix("Reconnecting") {
        Some(rest) => (None, rest.trim_start_matches(['.', '\u{2026}', ' '])),
        None => {
            let (reason, rest) = message.split_once("; retrying ")?;
            (Some(reason), rest)
        }
    };
    let (attempt, rest) = rest.split_once('/')?;
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.trim_start();
    let reason = reason.unwrap_or_else(|| {
        let inner = rest.strip_prefix('(').unwrap_or(rest);
        inner.strip_suffix(')').unwrap_or(inner)
    });
    Some(Update::Retrying {
        attempt: attempt.trim().parse().ok()?,
        status: status_in(reason),
        delay_ms: rest.strip_prefix("in ").and_then(duration_ms),
        reason: kept_text(reason),
    })
}

/// The provider's answer is handed on as it came; a person wants the message in it.
fn unwrapped(message: &str) -> String {
    serde_json::from_str::<Value>(message)
        .ok()
        .and_then(|value| value["error"]["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| message.to_owned())
}

fn changes(item: &Value) -> String {
    let lines: Vec<String> = item["changes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|change| format!("{} {}", plain(&change["kind"]), str_at(change, "path")))
        .collect();
    lines.join("\n")
}

fn output(item: &Value) -> String {
    let error = &item["error"];
    if !error.is_null() {
        return match error["message"].as_str() {
            Some(message) => message.to_owned(),
            None => plain(error),
        };
    }
    if let Some(text) = item["aggregated_output"].as_str() {
        return text.to_owned();
    }
    blocks(&item["result"]["content"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Permissions;

    fn argv(resume: Option<&str>, unfenced: bool, effort: Option<Effort>) -> String {
        let args = ["-m".to_owned(), "gpt".to_owned()];
        let ask = Ask {
            prompt: "--help",
            whole: "whole",
            cwd: "/workspace/repo",
            folders: &[],
            program: "codex",
            args: &args,
            home: "/h",
            resume,
            effort,
            review: None,
            unfenced,
            permissions: Permissions::Allow,
            tools: None,
            model: None,
            profile: None,
            native: None,
        };
        let opening = Codex::default().open(&ask);
        assert_eq!(opening.stdin, Stdin::Bytes(b"--help".to_vec()));
        assert_eq!(opening.first, None);
        assert_eq!(opening.env, [("CODEX_HOME".into(), "/h/.codex".into())]);
        opening.argv.join(" ")
    }

    #[test]
    fn it_fences_itself_only_where_we_do_not() {
        assert_eq!(
            argv(None, true, None),
            "codex exec --json --skip-git-repo-check -s workspace-write -c \
             sandbox_workspace_write.exclude_slash_tmp=true -m gpt -"
        );
        assert_eq!(
            argv(Some("01a1-2"), false, None),
            "codex exec --json --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox \
             -m gpt resume 01a1-2 -"
        );
        assert!(!argv(Some("--last"), false, None).contains("resume"));
        let high = argv(Some("01a1-2"), false, Some(Effort::High));
        let end = "-m gpt -c model_reasoning_effort=\"high\" resume 01a1-2 -";
        assert!(high.ends_with(end), "{high}");
    }

    #[test]
    fn failures_are_typed() {
        let limited = |retry_after_ms| LastWord::RateLimited {
            retry_after_ms,
            retry_at: None,
        };
        for (message, want) in [
            (
                "exceeded retry limit, last status: 429 Too Many Requests",
                limited(None),
            ),
            (
                "Quota exceeded. Check your plan and billing details.",
                limited(None),
            ),
            (
                "You've hit your usage limit. Upgrade to Pro or try again in 3 hours 20 minutes.",
                limited(Some(12_000_000)),
            ),
            // The clock is the agent's and its zone unknown: nothing can be said.
            (
                "You've hit your usage limit. Try again at 5:30 PM.",
                limited(None),
            ),
            (
                "Rate limit reached for gpt-x. Please try again in 1.2s.",
                limited(Some(1_200)),
            ),
            (
                "unexpected status 401 Unauthorized: Missing bearer",
                LastWord::Auth,
            ),
            ("Not logged in. Run codex login", LastWord::Auth),
            (
                "unexpected status 500: rate limit of the disk",
                LastWord::Unavailable,
            ),
            (
                "stream disconnected before completion: error sending request",
                LastWord::Unavailable,
            ),
            ("prompt is too long: 42900 tokens", LastWord::Model),
            ("", LastWord::Model),
        ] {
            assert_eq!(failure(message), want, "{message}");
        }
    }

    #[test]
    fn retries_are_told_apart_from_ends() {
        let told = |message| {
            let Some(Update::Retrying {
                attempt,
                status,
                delay_ms,
                reason,
            }) = retrying(message)
            else {
                return None;
            };
            Some((attempt, status, delay_ms, reason))
        };
        assert_eq!(
            told("Reconnecting... 2/5 (last status: 429 Too Many Requests)"),
            Some((
                2,
                Some(429),
                None,
                "last status: 429 Too Many Requests".into()
            ))
        );
        assert_eq!(
            told("Reconnecting\u{2026} 1/5"),
            Some((1, None, None, String::new()))
        );
        assert_eq!(
            told("stream error: reset; retrying 3/5 in 202ms\u{2026}"),
            Some((3, None, Some(202), "stream error: reset".into()))
        );
        assert_eq!(told("Reconnecting failed"), None);
    }

    #[test]
    fn an_error_alone_is_no_end() {
        let mut codex = Codex::default();
        codex.hear(r#"{"type":"error","message":"Quota exceeded"}"#);
        let said = codex.close();
        assert!(matches!(said.last, LastWord::Missing { .. }));
        assert_eq!(said.text, "Quota exceeded");
    }

    #[test]
    fn it_cannot_be_spoken_to() {
        assert_eq!(Codex::default().say("stop"), None);
    }
}
