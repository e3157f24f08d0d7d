//! Claude Code in stream-json, both ways: one process, message after message, its permission
//! prompts answered over standard input.
//! Must not take an exit code for an end (it exits 0 when interrupted), nor `subtype:"success"`
//! for a success (API errors carry it too): only a `result` without an error is one.

use serde_json::{Map, Value, json};

use super::{
    Ask, Driver, Opening, Request, Step, TOOLS_NAME, Tail, Tools,
    pieces::Pieces,
    text::{
        AUTH_MARKS, AWAY_MARKS, LIMIT_MARKS, asked_text, asked_tool, blocks, epoch_in, epoch_ms,
        has_any, is_away, kept_text, notice, plain, questions, retry_after_ms, session_ok,
        status_at, str_at, tool_text, u32_at,
    },
    todos::Todos,
};
use crate::{
    Millis,
    ask::Permissions,
    job::Stdin,
    update::{LastWord, Said, Update, Usage, Voice},
};

/// Its own count is 10, with waits of up to 40 s: the run would sit on its slot for minutes while
/// the pool does not know that the provider said "not now". An agent's table may say otherwise.
const RETRIES_MAX: &str = "3";
/// How many denied calls are remembered, so that none is told twice.
const DENIED_MAX: usize = 256;
/// How many questions of one turn are remembered.
const QUESTIONS_MAX: usize = 16;

const NOBODY_THERE: &str = "No one can answer while you run; the question has been passed on. \
    Stop here: end your turn now, without assuming an answer. You will be resumed with the answer.";

const DENIED: &str = "Nothing that needs a permission is allowed in this task. Do what can be done \
    without it; where nothing can, end your turn and say what you need.";

const ASK_TOOL: &str = "AskUserQuestion";

#[derive(Debug, Default)]
pub(super) struct Claude {
    permissions: Permissions,
    session: Option<String>,
    /// What it said last itself; its sub-agents do not count.
    text: String,
    /// Lines that are not of the protocol, for when nothing else was said.
    tail: Tail,
    usage: Option<Usage>,
    /// The messages of this turn so far, and the one that is being said.
    spent: Usage,
    message: Option<(String, Usage)>,
    pieces: Pieces,
    todos: Todos,
    questions: Vec<String>,
    denied: Vec<String>,
    /// When a rejected rate limit window opens again.
    resets_at: Option<Millis>,
    /// The wait before its own last attempt after a 429, in this turn.
    backoff_ms: Option<u64>,
    /// The kind of error its last message was, in the CLI's words; empty for none.
    error: String,
    /// Of the last `result`, the text it carries aside.
    last: Option<LastWord>,
    /// Messages given to it, the prompt first; those that it has said back; its turns that ended. A
    /// message that came too late for a turn begins another one.
    given: u32,
    taken: u32,
    turns: u32,
    /// Its input is closed.
    left: bool,
}

impl Driver for Claude {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        let mut argv: Vec<String> = [
            ask.program,
            "-p",
            "--input-format",
            "stream-json",
            "--output-format",
            "stream-json",
            "--verbose",
            // What it says while it says it; the whole comes as before.
            "--include-partial-messages",
            "--permission-prompt-tool",
            "stdio",
            // It then says each message back when it takes it into its conversation.
            "--replay-user-messages",
            // Said aloud, so that no settings file in a repository can choose another. `manual`
            // is its newer name, which older versions do not know.
            "--permission-mode",
            "default",
            // A repository's own settings could run commands (hooks, `apiKeyHelper`), send the key
            // elsewhere (`env.ANTHROPIC_BASE_URL`) or give permissions; its `.mcp.json` starts
            // programs. An agent's table can say otherwise: the last one counts.
            "--setting-sources",
            "user",
            "--strict-mcp-config",
            // Without the project's settings its CLAUDE.md is not read either, and that one is
            // only words: this way it is.
            "--add-dir",
            ".",
        ]
        .map(str::to_owned)
        .to_vec();
        // It would ask before it reads there; what belongs to the option ends with the next one.
        argv.extend(ask.folders.iter().cloned());
        // With `=`, because both take as many words as follow.
        if let Some(tools) = ask.tools {
            argv.push(format!("--mcp-config={}", servers(tools)));
            argv.push(format!("--allowedTools=mcp__{TOOLS_NAME}"));
        }
        if let Some(session) = ask.resume.filter(|id| session_ok(id)) {
            argv.extend(["--resume".to_owned(), session.to_owned()]);
        }
        if let Some(model) = ask.model {
            argv.extend(["--model".to_owned(), model.to_owned()]);
        }
        argv.extend(ask.args.iter().cloned());
        self.given = 1;
        self.permissions = ask.permissions;
        // Behind the table's own options: of two, the last one counts.
        if let Some(effort) = ask.effort {
            argv.extend(["--effort", effort.word()].map(str::to_owned));
        }
        Opening {
            argv,
            env: vec![
                ("CLAUDE_CONFIG_DIR".into(), format!("{}/.claude", ask.home)),
                ("CLAUDE_CODE_MAX_RETRIES".into(), RETRIES_MAX.into()),
                (
                    "CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD".into(),
                    "1".into(),
                ),
                ("DISABLE_AUTOUPDATER".into(), "1".into()),
            ],
            stdin: Stdin::Open,
            first: Some(user_message(ask.prompt)),
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
            "system" => self.system(&event),
            "assistant" => self.assistant(&event),
            "user" if event["isReplay"] == true => {
                let blocks = event["message"]["content"].as_array().map_or(1, Vec::len);
                let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
                self.taken = self.taken.saturating_add(blocks);
                Vec::new()
            }
            "user" => self.tool_results(&event),
            "stream_event" => self.piece(&event),
            "control_request" => self.control(&event),
            "control_cancel_request" => vec![Step::Withdrawn {
                id: event["request_id"].to_string(),
            }],
            "rate_limit_event" => self.rate_limit(&event["rate_limit_info"]),
            "result" => self.result(&event),
            _ => Vec::new(),
        }
    }

    fn listens(&self) -> bool {
        self.given > 0 && !self.left
    }

    fn say(&mut self, text: &str) -> Option<Vec<u8>> {
        self.given = self.given.saturating_add(1);
        // What begins with a slash is a command of the CLI's, not a message.
        let command = text.trim_start().starts_with('/');
        Some(if command {
            user_message(&format!("You are told: {text}"))
        } else {
            user_message(text)
        })
    }

    fn unheard(&self) -> usize {
        let heard = self.taken.max(self.turns);
        self.given.saturating_sub(heard) as usize
    }

    fn permit(&self, request: &Request, allow: bool, why: &str) -> Vec<u8> {
        if allow {
            return request.allow.clone();
        }
        let id = serde_json::from_str(&request.id).unwrap_or_default();
        line(&permission(
            &id,
            &json!({"behavior": "deny", "message": why}),
        ))
    }

    fn close(&mut self) -> Said {
        let last = match self.last.take() {
            None => LastWord::Missing {
                expected: "a result event",
            },
            // It asked and then ended its turn, well or not: a person has to answer first.
            Some(_) if !self.questions.is_empty() => LastWord::Asked {
                question: self.questions.join("\n\n"),
            },
            Some(last) => last,
        };
        let text = if self.text.is_empty() {
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

/// Our tools in the form of its own files of such servers.
fn servers(tools: Tools<'_>) -> Value {
    let env: Map<String, Value> = tools
        .env
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let server = json!({
        "type": "stdio",
        "command": tools.program(),
        "args": tools.args(),
        "env": env,
    });
    json!({"mcpServers": {TOOLS_NAME: server}})
}

impl Claude {
    fn system(&mut self, event: &Value) -> Vec<Step> {
        match str_at(event, "subtype") {
            "init" => self.init(event),
            "api_retry" => {
                let status = status_at(event, "error_status");
                let delay_ms = event["retry_delay_ms"].as_f64().map(|ms| ms as u64);
                if status == Some(429) {
                    self.backoff_ms = delay_ms;
                }
                vec![Step::Said(Update::Retrying {
                    attempt: u32_at(event, "attempt").unwrap_or_default(),
                    status,
                    delay_ms,
                    reason: kept_text(str_at(event, "error")),
                })]
            }
            "permission_denied" => self.denied(
                str_at(event, "tool_name"),
                str_at(event, "tool_use_id"),
                str_at(event, "message"),
            ),
            "informational" if str_at(event, "level") == "warning" => {
                vec![Step::Said(notice(str_at(event, "content")))]
            }
            _ => Vec::new(),
        }
    }

    /// Comes with every message it takes, not only with the first.
    fn init(&mut self, event: &Value) -> Vec<Step> {
        if self.last.take().is_some() {
            self.questions.clear();
            self.backoff_ms = None;
            self.error.clear();
        }
        let id = str_at(event, "session_id");
        if !session_ok(id) || self.session.as_deref() == Some(id) {
            return Vec::new();
        }
        self.session = Some(id.to_owned());
        vec![Step::Said(Update::Session { id: id.to_owned() })]
    }

    fn assistant(&mut self, event: &Value) -> Vec<Step> {
        let ours = event["parent_tool_use_id"].is_null();
        let synthetic = event["error"].is_string();
        if ours {
            self.error = str_at(event, "error").to_owned();
        }
        let mut steps = Vec::new();
        for block in event["message"]["content"].as_array().into_iter().flatten() {
            let text = str_at(block, "text");
            match str_at(block, "type") {
                "text" if text.is_empty() => {}
                "text" if synthetic => steps.push(Step::Said(notice(text))),
                "text" if ours => {
                    self.text = kept_text(text);
                    let text = self.text.clone();
                    steps.push(self.pieces.whole("", Update::Text { text }));
                }
                "text" => steps.push(Step::Live(kept_text(text))),
                "thinking" if ours && !str_at(block, "thinking").is_empty() => {
                    let text = kept_text(str_at(block, "thinking"));
                    steps.push(self.pieces.whole("", Update::Thinking { text }));
                }
                "tool_use" | "server_tool_use" | "mcp_tool_use" => {
                    let (id, name) = (str_at(block, "id"), str_at(block, "name"));
                    steps.push(Step::Said(Update::ToolCall {
                        id: id.to_owned(),
                        name: name.to_owned(),
                        input: tool_text(&plain(&block["input"])),
                    }));
                    let todos = ours.then(|| self.todos.called(name, id, &block["input"]));
                    steps.extend(todos.flatten().map(Step::Said));
                }
                _ => {}
            }
        }
        steps.extend(self.spent_so_far(&event["message"]));
        steps
    }

    /// The model's own events, of which only the pieces of texts are for the eye. Its sub-agents'
    /// would run into its own.
    fn piece(&mut self, event: &Value) -> Vec<Step> {
        if !event["parent_tool_use_id"].is_null() {
            return Vec::new();
        }
        let (event, delta) = (&event["event"], &event["event"]["delta"]);
        match (str_at(event, "type"), str_at(delta, "type")) {
            // One that broke off begins again with another.
            ("message_start" | "content_block_start", _) => {
                self.pieces.cut();
                Vec::new()
            }
            ("content_block_delta", "text_delta") => {
                self.pieces.more("", Voice::Text, str_at(delta, "text"))
            }
            ("content_block_delta", "thinking_delta") => {
                let text = str_at(delta, "thinking");
                self.pieces.more("", Voice::Thinking, text)
            }
            _ => Vec::new(),
        }
    }

    fn tool_results(&mut self, event: &Value) -> Vec<Step> {
        let blocks_of = event["message"]["content"].as_array();
        let mut steps = Vec::new();
        for block in blocks_of.into_iter().flatten() {
            if str_at(block, "type") != "tool_result" {
                continue;
            }
            let (id, output) = (str_at(block, "tool_use_id"), blocks(&block["content"]));
            let todos = self.todos.answered(id, &output);
            steps.push(Step::Said(Update::ToolResult {
                id: id.to_owned(),
                output: tool_text(&output),
                failed: block["is_error"].as_bool() == Some(true),
            }));
            steps.extend(todos.map(Step::Said));
        }
        steps
    }

    /// Each message of the model brings its own tokens, with every block of it that is told.
    fn spent_so_far(&mut self, message: &Value) -> Option<Step> {
        let (id, told) = (str_at(message, "id"), &message["usage"]);
        if id.is_empty() || !told.is_object() {
            return None;
        }
        let now = tokens_of(told);
        match &mut self.message {
            Some((known, usage)) if known == id => {
                if *usage == now {
                    return None;
                }
                *usage = now.clone();
            }
            before => {
                if let Some((_, usage)) = before.replace((id.to_owned(), now.clone())) {
                    self.spent = sum_of(&self.spent, &usage);
                }
            }
        }
        Some(Step::Spent(sum_of(&self.spent, &now)))
    }

    fn control(&mut self, event: &Value) -> Vec<Step> {
        let request = &event["request"];
        let id = &event["request_id"];
        let subtype = str_at(request, "subtype");
        if subtype != "can_use_tool" {
            // Not answered at all it would wait for ever.
            let error = format!("this client does not answer {subtype:?} requests");
            let reply = json!({"subtype": "error", "request_id": id, "error": error});
            return vec![
                Step::Said(notice(&format!("a request was refused: {subtype}"))),
                send(&control_response(&reply)),
            ];
        }
        let tool = str_at(request, "tool_name");
        let input = &request["input"];
        let question = tool == ASK_TOOL;
        if question && self.questions.len() < QUESTIONS_MAX {
            self.questions.push(questions(input));
        }
        let allow = json!({"behavior": "allow", "updatedInput": input});
        let deny = |why: &str| json!({"behavior": "deny", "message": why});
        if self.permissions != Permissions::Allow || question {
            // It tells every denial again with its result; ours are known.
            self.remember_denied(str_at(request, "tool_use_id"));
        }
        let answer = match self.permissions {
            _ if question => deny(NOBODY_THERE),
            Permissions::Allow => allow,
            Permissions::Deny => deny(DENIED),
            Permissions::Ask => {
                return vec![Step::Ask(Request {
                    id: id.to_string(),
                    tool: asked_tool(tool),
                    input: asked_text(&plain(input)),
                    allow: line(&permission(id, &allow)),
                    deny: line(&permission(id, &deny(DENIED))),
                })];
            }
        };
        vec![
            Step::Said(Update::Asked {
                tool: asked_tool(tool),
                input: tool_text(&plain(input)),
                allowed: self.permissions == Permissions::Allow && !question,
            }),
            send(&permission(id, &answer)),
        ]
    }

    fn rate_limit(&mut self, info: &Value) -> Vec<Step> {
        let status = str_at(info, "status");
        let resets_at = info["resetsAt"].as_u64().map(epoch_ms);
        self.resets_at = resets_at.filter(|_| status == "rejected");
        if matches!(status, "" | "allowed") {
            return Vec::new();
        }
        let window = str_at(info, "rateLimitType");
        let mut text = format!("rate limit: {status}");
        if !window.is_empty() {
            text = format!("{text} ({window})");
        }
        if let Some(at) = resets_at {
            text = format!("{text}, resets at {}", at / 1000);
        }
        vec![Step::Said(notice(&text))]
    }

    fn result(&mut self, event: &Value) -> Vec<Step> {
        let mut steps = Vec::new();
        for denial in event["permission_denials"].as_array().into_iter().flatten() {
            steps.extend(self.denied(
                str_at(denial, "tool_name"),
                str_at(denial, "tool_use_id"),
                "",
            ));
        }
        let said = result_text(event);
        if let Some(text) = &said {
            self.text = kept_text(text);
        }
        let usage = self.add_usage(event);
        steps.push(Step::Said(Update::Usage(usage)));
        self.last = Some(self.last_word(event, &said.unwrap_or_default()));
        // Messages it has taken and not begun, or has yet to take: it goes on by itself, and says so
        // again. Its input stays open, since it still asks for permissions there.
        self.turns = self.turns.saturating_add(1);
        let queued = event["queued_turn_count"].as_u64().unwrap_or(0) > 0;
        let has_all = self.taken.max(self.turns) >= self.given;
        if has_all && !queued {
            self.left = true;
            steps.push(Step::Done);
        }
        steps
    }

    fn last_word(&self, event: &Value, said: &str) -> LastWord {
        let failed =
            event["is_error"].as_bool() != Some(false) || str_at(event, "subtype") != "success";
        // A hard limit ends the turn as if it were completed.
        let blocked = str_at(event, "terminal_reason") == "blocking_limit";
        if !failed && !blocked {
            return LastWord::Done;
        }
        let lower = said.to_ascii_lowercase();
        if blocked {
            return self.limited(said);
        }
        match status_at(event, "api_error_status") {
            Some(429) => self.limited(said),
            Some(401 | 403) => LastWord::Auth,
            Some(status) if is_away(status) => LastWord::Unavailable,
            Some(_) => LastWord::Model,
            None if self.error == "rate_limit" => self.limited(said),
            None if self.error == "authentication_failed" => LastWord::Auth,
            None if has_any(&lower, AUTH_MARKS) => LastWord::Auth,
            None if has_any(&lower, LIMIT_MARKS) => self.limited(said),
            None if has_any(&lower, AWAY_MARKS) => LastWord::Unavailable,
            None => LastWord::Model,
        }
    }

    /// The text is the provider's, the window the plan's, the backoff only the CLI's own guess.
    fn limited(&self, said: &str) -> LastWord {
        let retry_at = self.resets_at.or_else(|| epoch_in(said));
        let guess = self.backoff_ms.filter(|_| retry_at.is_none());
        LastWord::RateLimited {
            retry_after_ms: retry_after_ms(said).or(guess),
            retry_at,
        }
    }

    fn denied(&mut self, tool: &str, id: &str, message: &str) -> Vec<Step> {
        if self.denied.iter().any(|known| known == id) {
            return Vec::new();
        }
        self.remember_denied(id);
        let mut text = format!("permission denied: {tool}");
        if !message.is_empty() {
            text = format!("{text}: {message}");
        }
        vec![Step::Said(notice(&text))]
    }

    fn remember_denied(&mut self, id: &str) {
        if self.denied.len() < DENIED_MAX {
            self.denied.push(id.to_owned());
        }
    }

    /// Over all results so far. `modelUsage` and the cost are sums of the process already, sub-agents
    /// included; `usage` and `num_turns` are of one turn.
    fn add_usage(&mut self, event: &Value) -> Usage {
        let before = self.usage.clone().unwrap_or_default();
        let turn = &event["usage"];
        let models: Vec<&Value> = event["modelUsage"]
            .as_object()
            .into_iter()
            .flat_map(|models| models.values())
            .collect();
        let tokens = |so_far: Option<u64>, of_turn: &str, of_model: &str| {
            if models.is_empty() {
                add(so_far, turn[of_turn].as_u64())
            } else {
                models
                    .iter()
                    .map(|model| model[of_model].as_u64())
                    .fold(None, add)
            }
        };
        let turns = add(before.turns.map(u64::from), event["num_turns"].as_u64());
        let usage = Usage {
            input_tokens: tokens(before.input_tokens, "input_tokens", "inputTokens"),
            output_tokens: tokens(before.output_tokens, "output_tokens", "outputTokens"),
            cache_read_tokens: tokens(
                before.cache_read_tokens,
                "cache_read_input_tokens",
                "cacheReadInputTokens",
            ),
            cache_write_tokens: tokens(
                before.cache_write_tokens,
                "cache_creation_input_tokens",
                "cacheCreationInputTokens",
            ),
            cost_usd: event["total_cost_usd"].as_f64().or(before.cost_usd),
            turns: turns.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
        };
        self.usage = Some(usage.clone());
        usage
    }
}

fn tokens_of(usage: &Value) -> Usage {
    Usage {
        input_tokens: usage["input_tokens"].as_u64(),
        output_tokens: usage["output_tokens"].as_u64(),
        cache_read_tokens: usage["cache_read_input_tokens"].as_u64(),
        cache_write_tokens: usage["cache_creation_input_tokens"].as_u64(),
        ..Usage::default()
    }
}

fn sum_of(a: &Usage, b: &Usage) -> Usage {
    Usage {
        input_tokens: add(a.input_tokens, b.input_tokens),
        output_tokens: add(a.output_tokens, b.output_tokens),
        cache_read_tokens: add(a.cache_read_tokens, b.cache_read_tokens),
        cache_write_tokens: add(a.cache_write_tokens, b.cache_write_tokens),
        ..Usage::default()
    }
}

fn add(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (one, None) | (None, one) => one,
    }
}

/// Its own words for the end; errors that are no API errors come in a list instead.
fn result_text(event: &Value) -> Option<String> {
    let result = str_at(event, "result");
    if !result.is_empty() {
        return Some(result.to_owned());
    }
    let errors: Vec<&str> = event["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !errors.is_empty() {
        return Some(errors.join("\n"));
    }
    let subtype = str_at(event, "subtype");
    subtype.starts_with("error").then(|| subtype.to_owned())
}

/// What its tools said. Everything else in a `user` event is our own words, or a sub-agent's prompt.
fn user_message(text: &str) -> Vec<u8> {
    let content = json!([{"type": "text", "text": text}]);
    line(&json!({"type": "user", "message": {"role": "user", "content": content}}))
}

fn permission(id: &Value, answer: &Value) -> Value {
    control_response(&json!({"subtype": "success", "request_id": id, "response": answer}))
}

fn control_response(reply: &Value) -> Value {
    json!({"type": "control_response", "response": reply})
}

fn send(value: &Value) -> Step {
    Step::Send(line(value))
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(args: &'a [String], resume: Option<&'a str>) -> Ask<'a> {
        Ask {
            prompt: "-p; $(x)\n\"q\"",
            whole: "whole",
            cwd: "/workspace/repo",
            folders: &[],
            program: "claude",
            args,
            home: "/h",
            resume,
            effort: None,
            review: None,
            unfenced: false,
            permissions: Permissions::Allow,
            tools: None,
            model: None,
            profile: None,
            native: None,
        }
    }

    #[test]
    fn effort_is_said_behind_the_tables_own() {
        let args = ["--effort", "low"].map(str::to_owned);
        let asked = Ask {
            effort: Some(crate::task::Effort::Max),
            ..ask(&args, None)
        };
        let argv = Claude::default().open(&asked).argv;
        assert!(argv.ends_with(&["--effort", "low", "--effort", "max"].map(str::to_owned)));
    }

    fn last_of(lines: &[&str]) -> (LastWord, String) {
        let mut claude = Claude::default();
        for line in lines {
            claude.hear(line);
        }
        let said = claude.close();
        (said.last, said.text)
    }

    #[test]
    fn it_is_opened_for_talking_and_the_prompt_is_only_in_its_input() {
        let args = ["--model".to_owned(), "opus".to_owned()];
        let opening = Claude::default().open(&ask(&args, Some("abc-1")));
        assert_eq!(
            opening.argv.join(" "),
            "claude -p --input-format stream-json --output-format stream-json --verbose \
             --include-partial-messages --permission-prompt-tool stdio --replay-user-messages --permission-mode default --setting-sources user \
             --strict-mcp-config --add-dir . --resume abc-1 --model opus"
        );
        assert_eq!(opening.stdin, Stdin::Open);
        let first: Value = serde_json::from_slice(&opening.first.unwrap()).unwrap();
        assert_eq!(first["message"]["content"][0]["text"], "-p; $(x)\n\"q\"");
        assert!(
            opening
                .env
                .contains(&("CLAUDE_CONFIG_DIR".into(), "/h/.claude".into()))
        );
    }

    #[test]
    fn folders_beside_the_workspace_are_told_with_it() {
        let asked = Ask {
            folders: &["/d/a".to_owned(), "/d/b".to_owned()],
            ..ask(&[], Some("abc-1"))
        };
        let argv = Claude::default().open(&asked).argv.join(" ");
        let ends = " --add-dir . /d/a /d/b --resume abc-1";
        assert!(argv.ends_with(ends), "{argv}");
    }

    #[test]
    fn a_session_that_is_no_name_is_not_resumed() {
        let opening = Claude::default().open(&ask(&[], Some("--dangerously-skip-permissions")));
        assert!(!opening.argv.iter().any(|arg| arg.starts_with("--resume")));
        let init = r#"{"type":"system","subtype":"init","session_id":"--evil"}"#;
        assert_eq!(Claude::default().hear(init), []);
    }

    #[test]
    fn what_is_said_to_it_is_one_user_message_line() {
        let bytes = Claude::default().say("go\non \u{e9}").unwrap();
        assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(bytes.last(), Some(&b'\n'));
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(message["type"], "user");
        assert_eq!(message["message"]["content"][0]["text"], "go\non \u{e9}");
    }

    #[test]
    fn it_stays_until_it_has_taken_every_message() {
        let said_back = |texts: &[&str]| {
            let blocks: Vec<Value> = texts
                .iter()
                .map(|t| json!({"type": "text", "text": t}))
                .collect();
            json!({"type": "user", "isReplay": true, "message": {"content": blocks}}).to_string()
        };
        let result = r#"{"type":"result","subtype":"success","is_error":false,"result":"ok"}"#;
        let mut claude = Claude::default();
        assert!(!claude.listens());
        claude.open(&ask(&[], None));
        claude.hear(&said_back(&["go"]));
        // One that comes in the middle of a turn is taken there.
        claude.say("more").unwrap();
        claude.hear(&said_back(&["more"]));
        // Two that come too late are taken together, by a turn of their own.
        claude.say("late").unwrap();
        claude.say("later").unwrap();
        assert!(!claude.hear(result).contains(&Step::Done));
        assert!(claude.listens());
        assert_eq!(claude.unheard(), 2);
        claude.hear(&said_back(&["late", "later"]));
        assert!(claude.hear(result).contains(&Step::Done));
        assert!(!claude.listens());
        assert_eq!(claude.unheard(), 0);
    }

    #[test]
    fn a_message_is_never_a_command_of_the_cli() {
        let bytes = Claude::default().say(" /exit").unwrap();
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        let text = message["message"]["content"][0]["text"].as_str().unwrap();
        assert_eq!(text, "You are told:  /exit");
    }

    #[test]
    fn failures_are_typed() {
        let limited = |retry_after_ms, retry_at| LastWord::RateLimited {
            retry_after_ms,
            retry_at,
        };
        for (fields, want) in [
            (r#""is_error":false,"result":"ok""#, LastWord::Done),
            (r#""result":"is_error is missing""#, LastWord::Model),
            (r#""is_error":true,"result":"odd""#, LastWord::Model),
            (
                r#""is_error":true,"result":"Not logged in · Please run /login""#,
                LastWord::Auth,
            ),
            (r#""is_error":true,"api_error_status":403"#, LastWord::Auth),
            (r#""is_error":true,"api_error_status":401"#, LastWord::Auth),
            (
                r#""is_error":true,"api_error_status":500,"result":"try again in 5s, rate limit""#,
                LastWord::Unavailable,
            ),
            (
                r#""is_error":true,"api_error_status":400,"result":"too long""#,
                LastWord::Model,
            ),
            (
                r#""is_error":true,"result":"Connection error.""#,
                LastWord::Unavailable,
            ),
            (
                r#""is_error":true,"api_error_status":429,"result":"try again in 5 minutes""#,
                limited(Some(300_000), None),
            ),
            (
                r#""is_error":true,"result":"Claude AI usage limit reached|1760000000""#,
                limited(None, Some(1_760_000_000_000)),
            ),
            (
                r#""is_error":true,"result":"You've hit your session limit · resets 7pm""#,
                limited(None, None),
            ),
            (
                r#""is_error":false,"terminal_reason":"blocking_limit""#,
                limited(None, None),
            ),
        ] {
            let line = format!(r#"{{"type":"result","subtype":"success",{fields}}}"#);
            assert_eq!(last_of(&[&line]).0, want, "{line}");
        }
        for subtype in ["error_max_turns", "error_during_execution", "new_and_odd"] {
            let line = format!(r#"{{"type":"result","subtype":"{subtype}","is_error":false}}"#);
            assert_eq!(last_of(&[&line]).0, LastWord::Model, "{line}");
        }
    }

    #[test]
    fn its_own_backoff_is_the_last_resort() {
        let retry =
            r#"{"type":"system","subtype":"api_retry","retry_delay_ms":2500,"error_status":429}"#;
        let limit = r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1760000000}}"#;
        let again = r#"{"type":"rate_limit_event","rate_limit_info":{"status":"allowed"}}"#;
        let end = r#"{"type":"result","subtype":"success","is_error":true,"api_error_status":429}"#;
        let limited = |retry_after_ms, retry_at| LastWord::RateLimited {
            retry_after_ms,
            retry_at,
        };
        let at = Some(1_760_000_000_000);
        assert_eq!(last_of(&[retry, end]).0, limited(Some(2500), None));
        assert_eq!(last_of(&[retry, limit, end]).0, limited(None, at));
        assert_eq!(last_of(&[limit, again, end]).0, limited(None, None));
    }

    #[test]
    fn without_a_result_the_end_is_missing_and_the_noise_is_its_text() {
        let (last, text) = last_of(&["Error: no such thing", "", "42"]);
        assert!(matches!(last, LastWord::Missing { .. }));
        assert_eq!(text, "Error: no such thing\n42");
    }

    #[test]
    fn a_question_is_forgotten_when_its_answer_is_taken() {
        let question = r#"{"type":"control_request","request_id":"1","request":{"subtype":"can_use_tool","tool_name":"AskUserQuestion","input":{"questions":[{"question":"Which?"}]}}}"#;
        let init = r#"{"type":"system","subtype":"init","session_id":"s"}"#;
        let end = r#"{"type":"result","subtype":"success","is_error":false,"result":"fine"}"#;
        let asked = LastWord::Asked {
            question: "Which?".into(),
        };
        assert_eq!(last_of(&[init, question, end]).0, asked);
        assert_eq!(last_of(&[init, question, end, init, end]).0, LastWord::Done);
        // A new turn that does not end is not the end of the one before.
        let (last, _) = last_of(&[init, end, init]);
        assert!(matches!(last, LastWord::Missing { .. }));
    }

    #[test]
    fn a_permission_is_granted_denied_or_asked_for() {
        let line = r#"{"type":"control_request","request_id":"r-1","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"make"},"tool_use_id":"t-1"}}"#;
        let opened = |permissions| {
            let mut claude = Claude::default();
            claude.open(&Ask {
                permissions,
                tools: None,
                ..ask(&[], None)
            });
            claude
        };
        let answer = |bytes: &[u8]| {
            let value: Value = serde_json::from_slice(bytes).unwrap();
            assert_eq!(value["response"]["request_id"], "r-1");
            value["response"]["response"].clone()
        };
        for (permissions, word) in [(Permissions::Allow, "allow"), (Permissions::Deny, "deny")] {
            let steps = opened(permissions).hear(line);
            let [Step::Said(Update::Asked { allowed, .. }), Step::Send(bytes)] = &steps[..] else {
                panic!("{steps:?}");
            };
            assert_eq!(answer(bytes)["behavior"], word);
            assert_eq!(*allowed, permissions == Permissions::Allow);
        }
        let mut claude = opened(Permissions::Ask);
        let steps = claude.hear(line);
        let [Step::Ask(request)] = &steps[..] else {
            panic!("{steps:?}");
        };
        assert_eq!(
            (&request.tool[..], &request.input[..]),
            ("Bash", r#"{"command":"make"}"#)
        );
        let allow = answer(&claude.permit(request, true, "x"));
        assert_eq!(
            allow,
            json!({"behavior": "allow", "updatedInput": {"command": "make"}})
        );
        let deny = answer(&claude.permit(request, false, "why not"));
        assert_eq!(deny, json!({"behavior": "deny", "message": "why not"}));
        let taken_back = r#"{"type":"control_cancel_request","request_id":"r-1"}"#;
        let id = request.id.clone();
        assert_eq!(claude.hear(taken_back), [Step::Withdrawn { id }]);
        // What was denied by somebody is not told a second time.
        let end = r#"{"type":"result","subtype":"success","is_error":false,"result":"ok","permission_denials":[{"tool_name":"Bash","tool_use_id":"t-1"}]}"#;
        let told = |step: &Step| matches!(step, Step::Said(Update::Notice { .. }));
        assert!(!claude.hear(end).iter().any(told));
        // A question is none of these: it blocks the task, as it always did.
        let question = line.replace("Bash", ASK_TOOL);
        let steps = opened(Permissions::Ask).hear(&question);
        assert!(
            matches!(&steps[..], [Step::Said(_), Step::Send(_)]),
            "{steps:?}"
        );
    }

    #[test]
    fn it_goes_on_while_messages_are_queued() {
        let end = r#"{"type":"result","subtype":"success","is_error":false,"queued_turn_count":1}"#;
        assert!(!Claude::default().hear(end).contains(&Step::Done));
    }
}
