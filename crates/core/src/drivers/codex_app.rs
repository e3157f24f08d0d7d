//! `codex app-server`: Codex as a server on its standard input and output, JSON-RPC without the
//! version member, one message a line. Unlike `codex exec` it can be spoken to in the middle of a
//! turn, asks before it does what its sandbox forbids, and tells the kind of an error by name.
//! Must not take an `error` that it will retry for an end; only `turn/completed` is one.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::{
    Ask, Driver, Opening, Request, Step, Tail, codex,
    pieces::Pieces,
    text::{
        AUTH_MARKS, AWAY_MARKS, LIMIT_MARKS, asked_text, asked_tool, bounded, epoch_in, epoch_ms,
        has_any, is_away, kept_text, notice, plain, questions, retry_after_ms, session_ok,
        status_in, str_at, todos, tool_text,
    },
};
use crate::{
    Millis,
    ask::Permissions,
    job::Stdin,
    update::{LastWord, Said, Update, Usage, Voice},
};

const METHOD_NOT_FOUND: i64 = -32601;
/// How many messages may wait for the end of a turn.
const WAITING_MAX: usize = 256;
const FULL: u64 = 100;
/// How many changes of files are remembered until they end; of more the oldest is forgotten.
const CHANGES_MAX: usize = 256;
const ITEM_ID_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Initialize,
    Start,
    Resume,
    Turn,
}

#[derive(Debug, Default)]
pub(super) struct CodexApp {
    cwd: String,
    prompt: String,
    whole: String,
    resume: Option<String>,
    unfenced: bool,
    permissions: Permissions,
    model: Option<String>,
    next_id: u64,
    asked: Option<(u64, Asked)>,
    /// Messages on their way into the turn; refused, they begin the next one.
    steered: BTreeMap<u64, String>,
    waiting: Vec<String>,
    /// What it is about to change, by its item, the oldest first: a request names the item only.
    changing: VecDeque<(String, String)>,
    thread: Option<String>,
    turn: Option<String>,
    text: String,
    pieces: Pieces,
    error: String,
    /// A question it asked with its own tool: nobody is there to answer.
    question: String,
    tail: Tail,
    usage: Option<Usage>,
    /// When the window that is used up opens again.
    resets_at: Option<Millis>,
    last: Option<LastWord>,
}

impl Driver for CodexApp {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        self.cwd = ask.cwd.to_owned();
        self.prompt = ask.prompt.to_owned();
        self.whole = ask.whole.to_owned();
        self.resume = ask.resume.filter(|id| session_ok(id)).map(str::to_owned);
        self.unfenced = ask.unfenced;
        self.permissions = ask.permissions;
        self.model = ask.model.map(str::to_owned);
        let argv = [ask.program, "app-server"].map(str::to_owned);
        let effort = ask.effort.map(codex::effort).into_iter().flatten();
        let hello = json!({
            "clientInfo": {"name": "dispatch", "title": "Dispatch", "version": env!("CARGO_PKG_VERSION")},
        });
        Opening {
            argv: argv
                .into_iter()
                .chain(ask.tools.map(codex::tools).into_iter().flatten())
                .chain(ask.args.iter().cloned())
                .chain(effort)
                .collect(),
            env: vec![("CODEX_HOME".into(), format!("{}/.codex", ask.home))],
            stdin: Stdin::Open,
            first: Some(self.request(Asked::Initialize, "initialize", &hello)),
        }
    }

    fn hear(&mut self, line: &str) -> Vec<Step> {
        if line.trim().is_empty() {
            return Vec::new();
        }
        let message = match serde_json::from_str::<Value>(line) {
            Ok(message) if message.is_object() => message,
            Ok(_) | Err(_) => {
                self.tail.push_line(line);
                return vec![Step::Live(line.to_owned())];
            }
        };
        match message["method"].as_str() {
            Some(method) if message.get("id").is_some() => self.requested(method, &message),
            Some(method) => self.notified(method, &message["params"]),
            None => self.answered(&message),
        }
    }

    fn listens(&self) -> bool {
        self.turn.is_some()
    }

    fn say(&mut self, text: &str) -> Option<Vec<u8>> {
        let turn = self.turn.clone()?;
        self.next_id += 1;
        self.steered.insert(self.next_id, text.to_owned());
        let params = json!({
            "threadId": self.thread, "expectedTurnId": turn, "input": input(text),
        });
        Some(line(
            &json!({"id": self.next_id, "method": "turn/steer", "params": params}),
        ))
    }

    fn unheard(&self) -> usize {
        self.steered.len() + self.waiting.len()
    }

    fn close(&mut self) -> Said {
        let last = match self.last.take() {
            _ if !self.question.is_empty() => LastWord::Asked {
                question: std::mem::take(&mut self.question),
            },
            Some(last) => last,
            None => LastWord::Missing {
                expected: "turn/completed",
            },
        };
        let failed = last != LastWord::Done && !self.error.is_empty();
        let text = if failed {
            std::mem::take(&mut self.error)
        } else if self.text.is_empty() {
            self.tail.text()
        } else {
            std::mem::take(&mut self.text)
        };
        Said {
            last,
            text,
            session: self.thread.take(),
            usage: self.usage.take(),
        }
    }
}

impl CodexApp {
    fn request(&mut self, what: Asked, method: &str, params: &Value) -> Vec<u8> {
        self.next_id += 1;
        self.asked = Some((self.next_id, what));
        line(&json!({"id": self.next_id, "method": method, "params": params}))
    }

    fn answered(&mut self, message: &Value) -> Vec<Step> {
        let Some(id) = message["id"].as_u64() else {
            return Vec::new();
        };
        let error = &message["error"];
        if let Some(text) = self.steered.remove(&id) {
            // The turn had ended before it came: it is said in the next one.
            if !error.is_null() && self.waiting.len() < WAITING_MAX {
                self.waiting.push(text);
                return self.next_turn();
            }
            return Vec::new();
        }
        let Some((_, what)) = self.asked.filter(|(asked, _)| *asked == id) else {
            return Vec::new();
        };
        self.asked = None;
        if error.is_null() {
            return self.granted(what, &message["result"]);
        }
        let text = str_at(error, "message");
        if what == Asked::Resume {
            let mut steps = vec![Step::Said(notice(&format!(
                "its earlier session could not be resumed: {text}"
            )))];
            self.prompt = self.whole.clone();
            steps.push(self.open_thread(None));
            return steps;
        }
        self.fail(failure(text, &Value::Null, self.resets_at), text)
    }

    fn granted(&mut self, what: Asked, result: &Value) -> Vec<Step> {
        match what {
            Asked::Initialize => {
                let resume = self.resume.take();
                vec![
                    Step::Send(line(&json!({"method": "initialized"}))),
                    self.open_thread(resume),
                ]
            }
            Asked::Start | Asked::Resume => {
                let id = str_at(&result["thread"], "id").to_owned();
                let mut steps = Vec::new();
                if session_ok(&id) {
                    steps.push(Step::Said(Update::Session { id: id.clone() }));
                }
                self.thread = Some(id);
                let prompt = std::mem::take(&mut self.prompt);
                steps.push(self.begin(&prompt));
                steps
            }
            Asked::Turn => {
                let id = str_at(&result["turn"], "id");
                if !id.is_empty() && self.last.is_none() {
                    self.turn = Some(id.to_owned());
                }
                Vec::new()
            }
        }
    }

    fn open_thread(&mut self, resume: Option<String>) -> Step {
        let sandbox = if self.unfenced {
            "workspace-write"
        } else {
            "danger-full-access"
        };
        let policy = match (self.permissions, self.unfenced) {
            // Where our fence is there is nothing that it needs to ask for.
            (Permissions::Allow, false) => "never",
            (Permissions::Allow, true) => "on-request",
            // Every command, in practice: it knows few that it trusts.
            (Permissions::Ask | Permissions::Deny, _) => "untrusted",
        };
        let mut params = json!({
            "cwd": self.cwd, "approvalPolicy": policy, "sandbox": sandbox, "model": self.model,
        });
        Step::Send(match resume {
            Some(thread) => {
                params["threadId"] = json!(thread);
                self.request(Asked::Resume, "thread/resume", &params)
            }
            None => self.request(Asked::Start, "thread/start", &params),
        })
    }

    fn begin(&mut self, text: &str) -> Step {
        self.last = None;
        let params = json!({"threadId": self.thread, "input": input(text)});
        Step::Send(self.request(Asked::Turn, "turn/start", &params))
    }

    /// What was said too late for a turn begins one, when none is under way.
    fn next_turn(&mut self) -> Vec<Step> {
        let idle = self.turn.is_none() && self.asked.is_none() && self.steered.is_empty();
        if !idle || self.waiting.is_empty() {
            return Vec::new();
        }
        let text = std::mem::take(&mut self.waiting).join("\n\n");
        vec![self.begin(&text)]
    }

    fn notified(&mut self, method: &str, params: &Value) -> Vec<Step> {
        match method {
            "turn/started" => {
                self.turn = Some(str_at(&params["turn"], "id").to_owned());
                Vec::new()
            }
            "turn/completed" => self.completed(&params["turn"]),
            "item/started" => self.item(&params["item"], false),
            "item/completed" => self.item(&params["item"], true),
            "item/agentMessage/delta" => self.piece(params, Voice::Text),
            "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta" => {
                self.piece(params, Voice::Thinking)
            }
            "turn/plan/updated" => vec![Step::Said(todos(&params["plan"], "step", "status"))],
            "thread/tokenUsage/updated" => {
                let total = &params["tokenUsage"]["total"];
                let usage = Usage {
                    input_tokens: total["inputTokens"].as_u64(),
                    output_tokens: total["outputTokens"].as_u64(),
                    cache_read_tokens: total["cachedInputTokens"].as_u64(),
                    cache_write_tokens: total["cacheWriteInputTokens"].as_u64(),
                    cost_usd: None,
                    turns: None,
                };
                self.usage = Some(usage.clone());
                vec![Step::Spent(usage)]
            }
            "account/rateLimits/updated" => {
                let windows = ["primary", "secondary"].map(|name| &params["rateLimits"][name]);
                let used_up = windows
                    .into_iter()
                    .filter(|window| window["usedPercent"].as_u64().is_some_and(|n| n >= FULL));
                let opens = used_up.filter_map(|window| window["resetsAt"].as_u64());
                self.resets_at = opens.max().map(epoch_ms);
                Vec::new()
            }
            "error" => self.error(params),
            "serverRequest/resolved" => vec![Step::Withdrawn {
                id: params["requestId"].to_string(),
            }],
            "warning" | "configWarning" | "guardianWarning" | "deprecationNotice" => {
                let said = ["message", "summary", "details"].map(|name| str_at(params, name));
                let text = said.into_iter().find(|text| !text.is_empty());
                text.map(|text| Step::Said(notice(text)))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn error(&mut self, params: &Value) -> Vec<Step> {
        let error = &params["error"];
        let text = str_at(error, "message");
        if params["willRetry"].as_bool() == Some(true) {
            let reason = match str_at(error, "additionalDetails") {
                "" => text,
                details => details,
            };
            return vec![Step::Said(Update::Retrying {
                attempt: attempt(text),
                status: status(error).or_else(|| status_in(&reason.to_ascii_lowercase())),
                delay_ms: None,
                reason: kept_text(reason),
            })];
        }
        self.error = kept_text(text);
        vec![Step::Said(notice(text))]
    }

    fn completed(&mut self, turn: &Value) -> Vec<Step> {
        self.turn = None;
        let mut steps = Vec::new();
        if let Some(usage) = &self.usage {
            steps.push(Step::Said(Update::Usage(usage.clone())));
        }
        let error = &turn["error"];
        match str_at(turn, "status") {
            "completed" => self.last = Some(LastWord::Done),
            status => {
                let text = str_at(error, "message");
                if text.is_empty() && self.error.is_empty() {
                    self.error = format!("its turn ended as {status:?}");
                } else if !text.is_empty() {
                    self.error = kept_text(text);
                }
                self.last = Some(failure(&self.error, error, self.resets_at));
            }
        }
        let next = if self.last == Some(LastWord::Done) {
            self.next_turn()
        } else {
            Vec::new()
        };
        // A message that is still on its way is answered yet, and may begin another turn.
        if next.is_empty() && self.steered.is_empty() {
            steps.push(Step::Done);
        }
        steps.extend(next);
        steps
    }

    fn fail(&mut self, last: LastWord, text: &str) -> Vec<Step> {
        self.error = kept_text(text);
        self.last = Some(last);
        vec![Step::Said(notice(text)), Step::Done]
    }

    fn piece(&mut self, params: &Value, voice: Voice) -> Vec<Step> {
        let (item, text) = (str_at(params, "itemId"), str_at(params, "delta"));
        self.pieces.more(item, voice, text)
    }

    fn item(&mut self, item: &Value, ended: bool) -> Vec<Step> {
        let text = str_at(item, "text");
        match str_at(item, "type") {
            "agentMessage" if ended && !text.is_empty() => {
                self.text = kept_text(text);
                let text = self.text.clone();
                vec![self.pieces.whole(str_at(item, "id"), Update::Text { text })]
            }
            "reasoning" if ended => {
                let parts = [&item["summary"], &item["content"]];
                let texts = parts
                    .into_iter()
                    .flat_map(|part| part.as_array().into_iter().flatten());
                let text = texts
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join("\n");
                let text = kept_text(text.trim());
                if text.is_empty() {
                    return Vec::new();
                }
                vec![
                    self.pieces
                        .whole(str_at(item, "id"), Update::Thinking { text }),
                ]
            }
            "plan" if ended => vec![Step::Said(notice(text))],
            "commandExecution" => tool(item, ended, "shell", str_at(item, "command")),
            "fileChange" => {
                let id = bounded(str_at(item, "id"), ITEM_ID_BYTES_MAX);
                let changes = changes(item);
                self.changing.retain(|(known, _)| *known != id);
                if !ended {
                    if self.changing.len() >= CHANGES_MAX {
                        self.changing.pop_front();
                    }
                    let about = asked_text(&changes);
                    self.changing.push_back((id, about));
                }
                tool(item, ended, "file_change", &changes)
            }
            "webSearch" => tool(item, ended, "web_search", str_at(item, "query")),
            "mcpToolCall" => {
                let name = format!("{}.{}", str_at(item, "server"), str_at(item, "tool"));
                tool(item, ended, &name, &plain(&item["arguments"]))
            }
            _ => Vec::new(),
        }
    }

    /// What it asks of us. Every request gets an answer: without one it would wait for ever.
    fn requested(&mut self, method: &str, message: &Value) -> Vec<Step> {
        let (id, params) = (&message["id"], &message["params"]);
        let reply = |result: Value| Step::Send(line(&json!({"id": id, "result": result})));
        let asked = |tool: &str, input: &Value, allowed| {
            Step::Said(Update::Asked {
                tool: tool.to_owned(),
                input: tool_text(&plain(input)),
                allowed,
            })
        };
        match method {
            "item/commandExecution/requestApproval" | "item/fileChange/requestApproval" => {
                let item = bounded(str_at(params, "itemId"), ITEM_ID_BYTES_MAX);
                let mut known = self.changing.iter().filter(|(known, _)| *known == item);
                let item = known.next().map_or(Value::Null, |(_, what)| json!(what));
                // Nobody is to answer blindly: at the least it is the request itself.
                let told = [&params["command"], &item, &params["reason"], params];
                let what = told.into_iter().find(|what| !what.is_null());
                let what = what.unwrap_or(&Value::Null);
                let tool = match method {
                    "item/fileChange/requestApproval" => "file_change",
                    _ => "shell",
                };
                let decide = |word: &str| line(&json!({"id": id, "result": {"decision": word}}));
                self.permission(id, tool, what, (decide("accept"), decide("decline")))
            }
            // More than its sandbox gives, until the end of the turn.
            "item/permissions/requestApproval" => {
                let what = &params["permissions"];
                let granted = |what: &Value| {
                    let result = json!({"permissions": what, "scope": "turn"});
                    line(&json!({"id": id, "result": result}))
                };
                let answers = (granted(what), granted(&json!({})));
                self.permission(id, "permissions", what, answers)
            }
            "item/tool/requestUserInput" => {
                if !self.question.is_empty() {
                    self.question.push_str("\n\n");
                }
                self.question.push_str(&questions(params));
                vec![
                    asked("request_user_input", &params["questions"], false),
                    reply(json!({"answers": {}})),
                ]
            }
            "mcpServer/elicitation/request" => vec![
                asked("elicitation", &params["message"], false),
                reply(json!({"action": "decline"})),
            ],
            _ => {
                let text = format!("this client does not answer {method}");
                let error = json!({"code": METHOD_NOT_FOUND, "message": text});
                vec![
                    Step::Said(notice(&format!("a request was refused: {method}"))),
                    Step::Send(line(&json!({"id": id, "error": error}))),
                ]
            }
        }
    }

    /// Allowed, denied, or asked of somebody. Its own sandbox is the only fence there is on the host, so
    /// it stays closed there unless somebody says otherwise.
    fn permission(
        &self,
        id: &Value,
        tool: &str,
        what: &Value,
        (allow, deny): (Vec<u8>, Vec<u8>),
    ) -> Vec<Step> {
        let allowed = match self.permissions {
            Permissions::Allow => !self.unfenced,
            Permissions::Deny => false,
            Permissions::Ask => {
                return vec![Step::Ask(Request {
                    id: id.to_string(),
                    tool: asked_tool(tool),
                    input: asked_text(&plain(what)),
                    allow,
                    deny,
                })];
            }
        };
        let update = Update::Asked {
            tool: asked_tool(tool),
            input: tool_text(&plain(what)),
            allowed,
        };
        let answer = if allowed { allow } else { deny };
        vec![Step::Said(update), Step::Send(answer)]
    }
}

fn tool(item: &Value, ended: bool, name: &str, input: &str) -> Vec<Step> {
    let id = str_at(item, "id").to_owned();
    if !ended {
        return vec![Step::Said(Update::ToolCall {
            id,
            name: tool_text(name),
            input: tool_text(input),
        })];
    }
    let output = match &item["aggregatedOutput"] {
        Value::Null => plain(&item["result"]),
        output => plain(output),
    };
    let exit = item["exitCode"].as_i64();
    vec![Step::Said(Update::ToolResult {
        id,
        output: tool_text(&output),
        failed: exit.is_some_and(|code| code != 0)
            || matches!(str_at(item, "status"), "failed" | "declined")
            || !item["error"].is_null(),
    })]
}

fn changes(item: &Value) -> String {
    let all = item["changes"].as_array().into_iter().flatten();
    let lines = all.map(|change| {
        let kind = match &change["kind"]["type"] {
            Value::Null => plain(&change["kind"]),
            kind => plain(kind),
        };
        format!("{kind} {}", str_at(change, "path"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `Reconnecting... 2/5`: it counts aloud.
fn attempt(text: &str) -> u32 {
    let before = text.split_once('/').map_or("", |(before, _)| before);
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// The HTTP status inside of whatever kind of failure has one.
fn status(error: &Value) -> Option<u16> {
    let kinds = error["codexErrorInfo"].as_object()?;
    let code = kinds
        .values()
        .find_map(|kind| kind["httpStatusCode"].as_u64());
    code.and_then(|code| u16::try_from(code).ok())
}

fn failure(text: &str, error: &Value, resets_at: Option<Millis>) -> LastWord {
    let limited = || LastWord::RateLimited {
        retry_after_ms: retry_after_ms(text),
        retry_at: epoch_in(text).or(resets_at),
    };
    match error["codexErrorInfo"].as_str() {
        Some("usageLimitExceeded" | "rateLimitExceeded") => return limited(),
        Some("unauthorized") => return LastWord::Auth,
        Some("internalServerError" | "serverOverloaded") => return LastWord::Unavailable,
        _ => {}
    }
    let lower = text.to_ascii_lowercase();
    match status(error).or_else(|| status_in(&lower)) {
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

fn input(text: &str) -> Value {
    json!([{"type": "text", "text": text}])
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(resume: Option<&str>, unfenced: bool) -> CodexApp {
        permitted(resume, unfenced, Permissions::Allow)
    }

    fn permitted(resume: Option<&str>, unfenced: bool, permissions: Permissions) -> CodexApp {
        let mut app = CodexApp::default();
        let opening = app.open(&Ask {
            prompt: "short",
            whole: "the whole",
            program: "codex",
            args: &["-c".to_owned(), "model=x".to_owned()],
            home: "/h",
            cwd: "/w",
            folders: &[],
            resume,
            effort: None,
            review: None,
            model: None,
            profile: None,
            native: None,
            unfenced,
            permissions,
            tools: None,
        });
        assert_eq!(opening.argv, ["codex", "app-server", "-c", "model=x"]);
        app
    }

    fn sent(app: &mut CodexApp, message: &Value) -> Vec<Value> {
        let steps = app.hear(&message.to_string());
        let bytes = steps.iter().filter_map(|step| match step {
            Step::Send(bytes) => Some(serde_json::from_slice(bytes).unwrap()),
            _ => None,
        });
        bytes.collect()
    }

    /// Up to the middle of the first turn.
    fn in_turn(resume: Option<&str>, unfenced: bool) -> CodexApp {
        let mut app = opened(resume, unfenced);
        sent(&mut app, &json!({"id": 1, "result": {}}));
        sent(
            &mut app,
            &json!({"id": 2, "result": {"thread": {"id": "t-1"}}}),
        );
        sent(
            &mut app,
            &json!({"id": 3, "result": {"turn": {"id": "u-1"}}}),
        );
        app
    }

    fn ended(status: &str, error: &Value) -> Value {
        let turn = json!({"id": "u-1", "status": status, "error": error, "items": []});
        json!({"method": "turn/completed", "params": {"threadId": "t-1", "turn": turn}})
    }

    #[test]
    fn it_is_as_free_as_our_fence_allows() {
        for (unfenced, sandbox, policy) in [
            (false, "danger-full-access", "never"),
            (true, "workspace-write", "on-request"),
        ] {
            let mut app = opened(None, unfenced);
            let out = sent(&mut app, &json!({"id": 1, "result": {}}));
            assert_eq!(out[0]["method"], "initialized");
            assert_eq!(out[1]["method"], "thread/start");
            assert_eq!(out[1]["params"]["sandbox"], sandbox);
            assert_eq!(out[1]["params"]["approvalPolicy"], policy);
            let mut app = in_turn(None, unfenced);
            let ask = json!({"id": 9, "method": "item/commandExecution/requestApproval",
                "params": {"command": "curl x"}});
            let word = if unfenced { "decline" } else { "accept" };
            assert_eq!(sent(&mut app, &ask)[0]["result"]["decision"], word);
        }
    }

    #[test]
    fn a_permission_is_denied_or_asked_for_and_names_what_it_is_about() {
        let change = json!({"method": "item/started", "params": {"item": {"type": "fileChange",
            "id": "i-1", "changes": [{"kind": {"type": "update"}, "path": "a.rs"}]}}});
        let file = json!({"id": 9, "method": "item/fileChange/requestApproval",
            "params": {"itemId": "i-1", "reason": null}});
        let command = json!({"id": "x", "method": "item/commandExecution/requestApproval",
            "params": {"itemId": "i-2", "command": "make"}});
        for unfenced in [false, true] {
            let mut app = permitted(None, unfenced, Permissions::Deny);
            let out = sent(&mut app, &json!({"id": 1, "result": {}}));
            assert_eq!(out[1]["params"]["approvalPolicy"], "untrusted");
            assert_eq!(sent(&mut app, &command)[0]["result"]["decision"], "decline");
            let mut app = permitted(None, unfenced, Permissions::Ask);
            let out = sent(&mut app, &json!({"id": 1, "result": {}}));
            assert_eq!(out[1]["params"]["approvalPolicy"], "untrusted");
            app.hear(&change.to_string());
            for (line, id, tool, input) in [
                (&file, json!(9), "file_change", "update a.rs"),
                (&command, json!("x"), "shell", "make"),
            ] {
                let steps = app.hear(&line.to_string());
                let [Step::Ask(asked)] = &steps[..] else {
                    panic!("{steps:?}");
                };
                assert_eq!((&asked.tool[..], &asked.input[..]), (tool, input));
                for (allow, word) in [(true, "accept"), (false, "decline")] {
                    let reply: Value =
                        serde_json::from_slice(&app.permit(asked, allow, "")).unwrap();
                    assert_eq!(reply, json!({"id": id, "result": {"decision": word}}));
                }
            }
            let wanted = json!({"network": {"enabled": true}});
            let more = json!({"id": 3, "method": "item/permissions/requestApproval",
                "params": {"itemId": "i-3", "reason": "to fetch", "permissions": wanted}});
            let steps = app.hear(&more.to_string());
            let [Step::Ask(asked)] = &steps[..] else {
                panic!("{steps:?}");
            };
            assert_eq!(asked.input, wanted.to_string());
            for (allow, granted) in [(true, wanted), (false, json!({}))] {
                let reply: Value = serde_json::from_slice(&app.permit(asked, allow, "")).unwrap();
                let result = json!({"permissions": granted, "scope": "turn"});
                assert_eq!(reply, json!({"id": 3, "result": result}));
            }
            let mut strict = permitted(None, unfenced, Permissions::Deny);
            let denied = json!({"permissions": {}, "scope": "turn"});
            assert_eq!(sent(&mut strict, &more)[0]["result"], denied);
            // Of what it told too long ago the request itself is shown.
            for n in 0..=CHANGES_MAX {
                let mut other = change.clone();
                other["params"]["item"]["id"] = json!(format!("other-{n}"));
                app.hear(&other.to_string());
            }
            assert_eq!(app.changing.len(), CHANGES_MAX);
            let steps = app.hear(&file.to_string());
            let shown =
                |step: &Step| matches!(step, Step::Ask(asked) if asked.input.contains("i-1"));
            assert!(steps.iter().any(shown), "{steps:?}");
            let over = json!({"method": "serverRequest/resolved",
                "params": {"threadId": "t-1", "requestId": 9}});
            assert_eq!(
                app.hear(&over.to_string()),
                [Step::Withdrawn { id: "9".into() }]
            );
        }
    }

    #[test]
    fn a_thread_it_forgot_is_begun_anew_with_everything() {
        let mut app = opened(Some("t-0"), false);
        let out = sent(&mut app, &json!({"id": 1, "result": {}}));
        assert_eq!(out[1]["method"], "thread/resume");
        assert_eq!(out[1]["params"]["threadId"], "t-0");
        let gone = json!({"id": 2, "error": {"code": -32600, "message": "no rollout found"}});
        assert_eq!(sent(&mut app, &gone)[0]["method"], "thread/start");
        let out = sent(
            &mut app,
            &json!({"id": 3, "result": {"thread": {"id": "t-1"}}}),
        );
        assert_eq!(out[0]["params"]["input"][0]["text"], "the whole");
    }

    #[test]
    fn a_message_goes_into_the_turn_or_begins_the_next() {
        let mut app = in_turn(None, false);
        let steer: Value = serde_json::from_slice(&app.say("and UTC").unwrap()).unwrap();
        assert_eq!(steer["method"], "turn/steer");
        assert_eq!(steer["params"]["expectedTurnId"], "u-1");
        let taken = json!({"id": steer["id"], "result": {"turnId": "u-1"}});
        assert_eq!(app.hear(&taken.to_string()), []);
        let done = ended("completed", &Value::Null);
        assert!(app.hear(&done.to_string()).contains(&Step::Done));

        // Too late: refused before or after the end, it is said once, in a turn of its own.
        for refused_first in [true, false] {
            let mut app = in_turn(None, false);
            let steer: Value = serde_json::from_slice(&app.say("late").unwrap()).unwrap();
            let refused = json!({"id": steer["id"], "error": {"code": -32600, "message": "no"}});
            let (first, second) = if refused_first {
                (&refused, &done)
            } else {
                (&done, &refused)
            };
            let steps = app.hear(&first.to_string());
            assert!(!steps.contains(&Step::Done), "{steps:?}");
            let out = sent(&mut app, second);
            assert_eq!(out.len(), 1);
            assert_eq!(out[0]["method"], "turn/start");
            assert_eq!(out[0]["params"]["input"][0]["text"], "late");
        }
        assert_eq!(opened(None, false).say("too early"), None);
    }

    #[test]
    fn failures_are_typed() {
        let limited = |ms, at| LastWord::RateLimited {
            retry_after_ms: ms,
            retry_at: at,
        };
        let window = json!({"method": "account/rateLimits/updated", "params": {"rateLimits": {
            "primary": {"usedPercent": 100, "resetsAt": 1_760_000_000},
            "secondary": {"usedPercent": 40, "resetsAt": 1_770_000_000}}}});
        for (info, message, want) in [
            (
                json!("usageLimitExceeded"),
                "Usage limit",
                limited(None, Some(1_760_000_000_000)),
            ),
            (
                json!("rateLimitExceeded"),
                "try again in 2s",
                limited(Some(2000), Some(1_760_000_000_000)),
            ),
            (json!("unauthorized"), "no", LastWord::Auth),
            (json!("internalServerError"), "no", LastWord::Unavailable),
            (
                json!({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}),
                "no",
                limited(None, Some(1_760_000_000_000)),
            ),
            (
                json!({"httpConnectionFailed": {"httpStatusCode": 401}}),
                "no",
                LastWord::Auth,
            ),
            (Value::Null, "odd", LastWord::Model),
        ] {
            let mut app = in_turn(None, false);
            app.hear(&window.to_string());
            let error = json!({"message": message, "codexErrorInfo": info});
            app.hear(&ended("failed", &error).to_string());
            let said = app.close();
            assert_eq!((said.last, said.text.as_str()), (want, message), "{info}");
        }
        let mut app = in_turn(None, false);
        assert!(matches!(app.close().last, LastWord::Missing { .. }));
    }

    #[test]
    fn a_question_of_its_own_blocks() {
        let mut app = in_turn(None, false);
        let ask = json!({"id": 7, "method": "item/tool/requestUserInput",
            "params": {"questions": [{"id": "q", "header": "h", "question": "Which?"}]}});
        assert_eq!(sent(&mut app, &ask)[0]["result"]["answers"], json!({}));
        app.hear(&ended("completed", &Value::Null).to_string());
        let question = "Which?".into();
        assert_eq!(app.close().last, LastWord::Asked { question });
    }
}
