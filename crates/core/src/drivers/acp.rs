//! Any agent that speaks the Agent Client Protocol, version 1: JSON-RPC 2.0, one message a line, on
//! its standard input and output (<https://agentclientprotocol.com>).
//! Must not offer files or terminals of ours: what an agent does to files it does itself, inside the
//! fence. Must not fail on what it does not know: methods, members and kinds come and go.
//!
//! One conversation: `initialize`, then `session/new` (or the earlier session, where the agent can),
//! then `session/prompt`; the answer to that one is its last word.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::{
    Ask, Driver, Opening, Request, Step, TOOLS_NAME, Tail, Tools,
    pieces::Pieces,
    text::{
        AUTH_MARKS, AWAY_MARKS, LIMIT_MARKS, TEXT_BYTES_MAX, asked_text, asked_tool, blocks,
        bounded, epoch_in, has_any, is_away, kept_text, notice, plain, retry_after_ms, session_ok,
        status_in, str_at, todos, tool_text,
    },
};
use crate::{
    ask::Permissions,
    job::Stdin,
    update::{LastWord, Said, Update, Usage, Voice},
};

const PROTOCOL_VERSION: u64 = 1;
const METHOD_NOT_FOUND: i64 = -32601;
/// "Authentication required", as the protocol numbers it.
const AUTH_REQUIRED: i64 = -32000;
/// How many tool calls are remembered until they end; of more the oldest is forgotten.
const CALLS_MAX: usize = 256;
/// Of the id of one; a longer one is told apart by its start and its length.
const CALL_ID_BYTES_MAX: usize = 256;
/// Ways to log in that need nobody: the key is in the agent's environment.
const KEY_METHODS: [&str; 6] = [
    "gemini-api-key",
    "api-key",
    "openai-api-key",
    "codex-api-key",
    "anthropic-api-key",
    "apikey",
];
/// The adapters of Codex begin in its own sandbox, which cannot be made inside of ours; where ours
/// is not, theirs must be.
const READ_ONLY_MODE: &str = "read-only";
const OPEN_MODES: [&str; 2] = ["agent-full-access", "full-access"];
const FENCED_MODES: [&str; 2] = ["workspace-write", "auto"];

/// Folders that Gemini's own tools may enter, beside the one it works in, as `PATH` lists them. It is
/// meant for editors that have several open.
const GEMINI_FOLDERS: &str = "GEMINI_CLI_IDE_WORKSPACE_PATH";

/// What was asked of it and is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Initialize,
    /// The session of an earlier run.
    Resume,
    New,
    Authenticate,
    Model,
    Mode,
    Prompt,
}

#[derive(Debug, Default)]
pub(super) struct Acp {
    cwd: String,
    folders: Vec<String>,
    prompt: String,
    /// What to say when it does not remember the session.
    whole: String,
    resume: Option<String>,
    unfenced: bool,
    permissions: Permissions,
    /// Our tools, as `session/new` names servers.
    servers: Vec<Value>,
    model: Option<String>,
    next_id: u64,
    asked: Option<(u64, Asked)>,
    /// What `initialize` told of itself.
    agent: Value,
    /// It has been asked to log in once; twice would be for ever.
    authenticated: bool,
    session: Option<String>,
    mode: Option<&'static str>,
    /// A message or thought that is still coming.
    open: Option<Chunk>,
    pieces: Pieces,
    /// By id, the oldest first.
    calls: VecDeque<(String, Call)>,
    text: String,
    tail: Tail,
    usage: Usage,
    last: Option<LastWord>,
}

#[derive(Debug)]
struct Chunk {
    thought: bool,
    message: String,
    text: String,
}

/// A tool call whose arguments may come later than its name.
#[derive(Debug, Default)]
struct Call {
    name: String,
    input: String,
    output: String,
    told: bool,
}

fn server(tools: Tools<'_>) -> Value {
    let env = tools.env.iter();
    let env: Vec<Value> = env
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    let (command, args) = (tools.program(), tools.args());
    json!({"name": TOOLS_NAME, "command": command, "args": args, "env": env})
}

impl Driver for Acp {
    fn open(&mut self, ask: &Ask<'_>) -> Opening {
        self.cwd = ask.cwd.to_owned();
        self.folders = ask.folders.to_vec();
        self.servers = ask.tools.map(server).into_iter().collect();
        self.prompt = ask.prompt.to_owned();
        self.whole = ask.whole.to_owned();
        self.resume = ask.resume.filter(|id| session_ok(id)).map(str::to_owned);
        self.unfenced = ask.unfenced;
        self.permissions = ask.permissions;
        self.model = ask.model.map(str::to_owned);
        let argv = std::iter::once(ask.program.to_owned());
        let hello = json!({
            "protocolVersion": PROTOCOL_VERSION,
            "clientCapabilities": {
                "fs": {"readTextFile": false, "writeTextFile": false},
                "terminal": false,
            },
            "clientInfo": {"name": "dispatch", "version": env!("CARGO_PKG_VERSION")},
        });
        Opening {
            argv: argv.chain(ask.args.iter().cloned()).collect(),
            env: self.environment(),
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
            Some("session/update") => self.update(&message["params"]),
            Some("$/cancel_request") => vec![Step::Withdrawn {
                id: message["params"]["requestId"].to_string(),
            }],
            Some(_) => Vec::new(),
            None => self.answered(&message),
        }
    }

    fn say(&mut self, _text: &str) -> Option<Vec<u8>> {
        // A second prompt during a turn is an extension that few have.
        None
    }

    fn close(&mut self) -> Said {
        self.flush();
        let expected = match self.asked {
            None | Some((_, Asked::Initialize)) => "an answer to initialize",
            Some((
                _,
                Asked::Resume | Asked::New | Asked::Authenticate | Asked::Model | Asked::Mode,
            )) => "an answer to session/new",
            Some((_, Asked::Prompt)) => "an answer to session/prompt",
        };
        let text = if self.text.is_empty() {
            self.tail.text()
        } else {
            std::mem::take(&mut self.text)
        };
        Said {
            last: self.last.take().unwrap_or(LastWord::Missing { expected }),
            text,
            session: self.session.take(),
            usage: (self.usage != Usage::default()).then(|| std::mem::take(&mut self.usage)),
        }
    }
}

impl Acp {
    /// For opencode, which asks for nothing unless it is told to, and for Gemini, whose tools know no
    /// other folders; each is nothing to others. Of opencode's rules the last one that fits counts.
    fn environment(&self) -> Vec<(String, String)> {
        let mut env = Vec::new();
        if self.permissions != Permissions::Allow {
            let mut elsewhere = json!({"*": "ask"});
            for folder in &self.folders {
                elsewhere[format!("{folder}/*")] = json!("allow");
            }
            let rules = json!({"edit": "ask", "bash": "ask", "webfetch": "ask",
                "external_directory": elsewhere});
            env.push(("OPENCODE_PERMISSION".into(), rules.to_string()));
        }
        if !self.folders.is_empty() {
            env.push((GEMINI_FOLDERS.into(), self.folders.join(":")));
        }
        env
    }

    fn request(&mut self, what: Asked, method: &str, params: &Value) -> Vec<u8> {
        self.next_id += 1;
        self.asked = Some((self.next_id, what));
        line(&json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params}))
    }

    fn ask(&mut self, what: Asked, method: &str, params: &Value) -> Vec<Step> {
        vec![Step::Send(self.request(what, method, params))]
    }

    /// The answer to the one request that is open.
    fn answered(&mut self, message: &Value) -> Vec<Step> {
        let Some((id, what)) = self.asked else {
            return Vec::new();
        };
        if message["id"].as_u64() != Some(id) {
            return Vec::new();
        }
        let error = &message["error"];
        if !error.is_null() {
            return self.refused(what, error);
        }
        let result = &message["result"];
        match what {
            Asked::Initialize => {
                self.agent = result.clone();
                let mut steps = Vec::new();
                let version = &result["protocolVersion"];
                if version.as_u64() != Some(PROTOCOL_VERSION) {
                    let text = format!("it speaks version {} of the protocol", plain(version));
                    steps.push(Step::Said(notice(&text)));
                }
                steps.extend(self.open_session());
                steps
            }
            Asked::Authenticate => self.new_session(),
            Asked::New | Asked::Resume => self.opened(what, result),
            Asked::Model => self.set_mode(),
            Asked::Mode => self.start(),
            Asked::Prompt => self.over(result),
        }
    }

    fn refused(&mut self, what: Asked, error: &Value) -> Vec<Step> {
        let message = reason(error);
        match what {
            Asked::Resume => {
                // It has no such session any more: it is told everything again.
                let text = format!("its earlier session could not be resumed: {message}");
                let mut steps = vec![Step::Said(notice(&text))];
                self.session = None;
                self.prompt = self.whole.clone();
                steps.extend(self.new_session());
                steps
            }
            Asked::New if error["code"].as_i64() == Some(AUTH_REQUIRED) && !self.authenticated => {
                self.authenticated = true;
                match self.key_method() {
                    Some(id) => {
                        let params = json!({"methodId": id});
                        self.ask(Asked::Authenticate, "authenticate", &params)
                    }
                    None => self.fail(LastWord::Auth, &message),
                }
            }
            Asked::Mode => {
                let text = format!("its mode could not be set: {message}");
                let mut steps = vec![Step::Said(notice(&text))];
                steps.extend(self.start());
                steps
            }
            Asked::Authenticate => self.fail(LastWord::Auth, &message),
            // Another model than the one asked for would be a quiet lie.
            Asked::Model => self.fail(LastWord::Model, &message),
            Asked::Initialize | Asked::New | Asked::Prompt => {
                self.fail(last_word(error, &message), &message)
            }
        }
    }

    fn fail(&mut self, last: LastWord, message: &str) -> Vec<Step> {
        let mut steps = self.flush();
        self.text = kept_text(message);
        self.last = Some(last);
        steps.push(Step::Said(notice(message)));
        steps.push(Step::Done);
        steps
    }

    fn key_method(&self) -> Option<String> {
        let methods = self.agent["authMethods"].as_array()?;
        let ids = methods.iter().map(|method| str_at(method, "id"));
        let known = ids.filter(|id| KEY_METHODS.contains(id));
        known.map(str::to_owned).next()
    }

    fn open_session(&mut self) -> Vec<Step> {
        let can = &self.agent["agentCapabilities"];
        // `load` says the whole conversation again, `resume` does not.
        let method = if can["sessionCapabilities"]["resume"].is_object() {
            Some("session/resume")
        } else if can["loadSession"].as_bool() == Some(true) {
            Some("session/load")
        } else {
            None
        };
        match (self.resume.clone(), method) {
            (Some(session), Some(method)) => {
                let mut params = self.session_params();
                params["sessionId"] = json!(session);
                self.session = Some(session);
                self.ask(Asked::Resume, method, &params)
            }
            (Some(_), None) => {
                let text = "it cannot resume a session: it is told everything again";
                let mut steps = vec![Step::Said(notice(text))];
                self.prompt = self.whole.clone();
                steps.extend(self.new_session());
                steps
            }
            (None, _) => self.new_session(),
        }
    }

    fn new_session(&mut self) -> Vec<Step> {
        let params = self.session_params();
        self.ask(Asked::New, "session/new", &params)
    }

    /// `_meta` is for the adapter of Claude Code, and nothing to others: a repository's settings
    /// could run commands, send the key elsewhere or give permissions (its CLAUDE.md is read as
    /// that of an additional directory), and a guess at the next prompt would cost a request.
    fn session_params(&self) -> Value {
        let mut options = json!({
            "settingSources": ["user"],
            "strictMcpConfig": true,
            "additionalDirectories": [self.cwd],
            "promptSuggestions": false,
        });
        if !self.servers.is_empty() {
            options["allowedTools"] = json!([format!("mcp__{TOOLS_NAME}")]);
        }
        let meta = json!({"claudeCode": {"options": options}});
        let mut params = json!({"cwd": self.cwd, "mcpServers": self.servers, "_meta": meta});
        let can = &self.agent["agentCapabilities"]["sessionCapabilities"];
        if can["additionalDirectories"].is_object() && !self.folders.is_empty() {
            params["additionalDirectories"] = json!(self.folders);
        }
        params
    }

    fn opened(&mut self, what: Asked, result: &Value) -> Vec<Step> {
        if what == Asked::New {
            let id = str_at(result, "sessionId");
            if id.is_empty() {
                return self.fail(LastWord::Model, "it opened a session without a name");
            }
            self.session = Some(id.to_owned());
        }
        // What it said while it loaded was said in an earlier run.
        self.open = None;
        self.pieces.cut();
        self.calls.clear();
        let id = self.session.clone().unwrap_or_default();
        let mut steps = Vec::new();
        if session_ok(&id) {
            steps.push(Step::Said(Update::Session { id }));
        }
        self.mode = self.mode(&result["modes"]);
        match self.model.take() {
            Some(model) => steps.extend(self.set_model(result, &model)),
            None => steps.extend(self.set_mode()),
        }
        steps
    }

    /// Two ways are in use; an agent that has neither is told its model by its own arguments.
    fn set_model(&mut self, result: &Value, model: &str) -> Vec<Step> {
        let id = self.session.clone();
        let options = result["configOptions"].as_array();
        if result["models"].is_object() {
            let params = json!({"sessionId": id, "modelId": model});
            self.ask(Asked::Model, "session/set_model", &params)
        } else if options.is_some_and(|all| all.iter().any(|one| str_at(one, "id") == "model")) {
            let params = json!({"sessionId": id, "configId": "model", "value": model});
            self.ask(Asked::Model, "session/set_config_option", &params)
        } else {
            let text = format!("it cannot be asked for the model {model}: put it into its args");
            self.fail(LastWord::Model, &text)
        }
    }

    fn set_mode(&mut self) -> Vec<Step> {
        let Some(mode) = self.mode.take() else {
            return self.start();
        };
        let params = json!({"sessionId": self.session, "modeId": mode});
        self.ask(Asked::Mode, "session/set_mode", &params)
    }

    fn mode(&self, modes: &Value) -> Option<&'static str> {
        let listed = modes["availableModes"].as_array()?;
        let has = |id: &str| listed.iter().any(|mode| str_at(mode, "id") == id);
        if !has(READ_ONLY_MODE) {
            return None;
        }
        let wanted = match (self.unfenced, self.permissions) {
            (true, _) => FENCED_MODES,
            (false, Permissions::Allow) => OPEN_MODES,
            // One that may do everything asks for nothing, and the others begin with a sandbox that
            // cannot be made here: what it is configured to do is what it does.
            (false, Permissions::Ask | Permissions::Deny) => return None,
        };
        wanted.into_iter().find(|id| has(id))
    }

    fn start(&mut self) -> Vec<Step> {
        let text = std::mem::take(&mut self.prompt);
        let prompt = json!([{"type": "text", "text": text}]);
        let params = json!({"sessionId": self.session, "prompt": prompt});
        self.ask(Asked::Prompt, "session/prompt", &params)
    }

    fn over(&mut self, result: &Value) -> Vec<Step> {
        let mut steps = self.flush();
        let used = &result["usage"];
        // Gemini has it aside only.
        let aside = &result["_meta"]["quota"]["token_count"];
        let tokens = |name: &str, other: &str| used[name].as_u64().or(aside[other].as_u64());
        self.usage = Usage {
            input_tokens: tokens("inputTokens", "input_tokens"),
            output_tokens: tokens("outputTokens", "output_tokens"),
            cache_read_tokens: used["cachedReadTokens"].as_u64(),
            cache_write_tokens: used["cachedWriteTokens"].as_u64(),
            ..std::mem::take(&mut self.usage)
        };
        if self.usage != Usage::default() {
            steps.push(Step::Said(Update::Usage(self.usage.clone())));
        }
        let why = str_at(result, "stopReason");
        self.last = Some(match why {
            "end_turn" => LastWord::Done,
            // Whoever wanted it to end knows; nobody else did.
            _ => {
                let text = match why {
                    "cancelled" => "its turn was cancelled".to_owned(),
                    "refusal" => "the model refused to go on".to_owned(),
                    "max_tokens" => "the model came to its limit of tokens".to_owned(),
                    "max_turn_requests" => "it came to its limit of requests".to_owned(),
                    other => format!("its turn ended with {other:?}"),
                };
                steps.push(Step::Said(notice(&text)));
                if self.text.is_empty() {
                    self.text = text;
                }
                LastWord::Model
            }
        });
        steps.push(Step::Done);
        steps
    }

    /// Something it asks of us: a permission, or what we did not offer.
    fn requested(&mut self, method: &str, message: &Value) -> Vec<Step> {
        let id = &message["id"];
        if method != "session/request_permission" {
            let text = format!("{method} is not offered here: use your own tools");
            let error = json!({"code": METHOD_NOT_FOUND, "message": text});
            return vec![
                Step::Said(notice(&format!("a request was refused: {method}"))),
                Step::Send(line(&json!({"jsonrpc": "2.0", "id": id, "error": error}))),
            ];
        }
        let call = &message["params"]["toolCall"];
        let options = message["params"]["options"].as_array();
        let of_kind = |kind: &str| {
            let mut options = options.into_iter().flatten();
            options.find(|option| str_at(option, "kind") == kind)
        };
        let once = of_kind("allow_once");
        let allow = once.or_else(|| of_kind("allow_always"));
        let deny = of_kind("reject_once").or_else(|| of_kind("reject_always"));
        let answer = |option: Option<&Value>| {
            let outcome = match option {
                Some(option) => json!({"outcome": "selected", "optionId": option["optionId"]}),
                None => json!({"outcome": "cancelled"}),
            };
            let result = json!({"outcome": outcome});
            line(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
        };
        let mut steps = self.flush();
        // One that it calls over already is forgotten when it is told.
        let before = self.known(call);
        steps.extend(self.tool(call, true));
        let known = self.known(call).or(before);
        let (name, input) = known.unwrap_or_else(|| (tool_name(call).to_owned(), String::new()));
        let mut tool = asked_tool(&name);
        // Nobody is to answer without seeing what: what was told before, or the request itself.
        let input = match input.is_empty() {
            true => tool_text(&input_of(call)),
            false => input,
        };
        if self.permissions == Permissions::Ask && allow.is_some() {
            if once.is_none() {
                // It offers no less, and whoever answers must know.
                tool.push_str(" (from now on)");
            }
            steps.push(Step::Ask(Request {
                id: id.to_string(),
                tool,
                input: asked_text(&input),
                allow: answer(allow),
                deny: answer(deny),
            }));
            return steps;
        }
        let allowed = self.permissions == Permissions::Allow && allow.is_some();
        steps.push(Step::Said(Update::Asked {
            tool,
            input,
            allowed,
        }));
        let chosen = match self.permissions {
            Permissions::Allow => allow,
            Permissions::Ask | Permissions::Deny => deny,
        };
        steps.push(Step::Send(answer(chosen)));
        steps
    }

    fn update(&mut self, params: &Value) -> Vec<Step> {
        // Until the prompt is there, it only repeats what an earlier run has recorded.
        if !matches!(self.asked, Some((_, Asked::Prompt))) {
            return Vec::new();
        }
        let update = &params["update"];
        match str_at(update, "sessionUpdate") {
            "agent_message_chunk" => self.chunk(update, false),
            "agent_thought_chunk" => self.chunk(update, true),
            "tool_call" | "tool_call_update" => {
                let mut steps = self.flush();
                steps.extend(self.tool(update, false));
                steps
            }
            "plan" => self.plan(update),
            "usage_update" => {
                if let Some(usd) = dollars(&update["cost"]) {
                    self.usage.cost_usd = Some(usd);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn chunk(&mut self, update: &Value, thought: bool) -> Vec<Step> {
        let text = match str_at(&update["content"], "type") {
            "text" => str_at(&update["content"], "text").to_owned(),
            other => format!("[{other}]"),
        };
        let message = str_at(update, "messageId");
        let same = self
            .open
            .as_ref()
            .is_some_and(|open| open.thought == thought && open.message == message);
        let mut steps = if same { Vec::new() } else { self.flush() };
        if text.is_empty() {
            return steps;
        }
        let voice = if thought {
            Voice::Thinking
        } else {
            Voice::Text
        };
        steps.extend(self.pieces.more(message, voice, &text));
        let open = self.open.get_or_insert_with(|| Chunk {
            thought,
            message: message.to_owned(),
            text: String::new(),
        });
        // The cut is made when it is told; what is far beyond need not be held.
        if open.text.len() <= TEXT_BYTES_MAX {
            open.text.push_str(&bounded(&text, TEXT_BYTES_MAX));
        }
        steps
    }

    /// What came in pieces, as one.
    fn flush(&mut self) -> Vec<Step> {
        let Some(open) = self.open.take() else {
            return Vec::new();
        };
        let text = kept_text(open.text.trim());
        if text.is_empty() {
            self.pieces.cut();
            return Vec::new();
        }
        let update = if open.thought {
            Update::Thinking { text }
        } else {
            self.text.clone_from(&text);
            Update::Text { text }
        };
        vec![self.pieces.whole(&open.message, update)]
    }

    /// The name and the input of this call, as far as they were told.
    fn known(&self, update: &Value) -> Option<(String, String)> {
        let id = call_id(update);
        let (_, call) = self.calls.iter().find(|(known, _)| *known == id)?;
        Some((call.name.clone(), call.input.clone()))
    }

    /// `tell`: what it is about to do is as good as begun.
    fn tool(&mut self, update: &Value, tell: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        let id = call_id(update);
        let at = self.calls.iter().position(|(known, _)| *known == id);
        let at = at.unwrap_or_else(|| {
            if self.calls.len() >= CALLS_MAX {
                self.calls.pop_front();
            }
            self.calls.push_back((id.clone(), Call::default()));
            self.calls.len() - 1
        });
        let Some((_, call)) = self.calls.get_mut(at) else {
            return steps;
        };
        let name = tool_name(update);
        if call.name.is_empty() || update["name"].is_string() {
            call.name = tool_text(name);
        }
        if has_input(update) || call.input.is_empty() {
            call.input = tool_text(&input_of(update));
        }
        let output = output(update);
        if !output.is_empty() {
            call.output = tool_text(&output);
        }
        let status = str_at(update, "status");
        let over = matches!(status, "completed" | "failed");
        if !call.told && (tell || over || status == "in_progress") {
            call.told = true;
            steps.push(Step::Said(Update::ToolCall {
                id: id.clone(),
                name: call.name.clone(),
                input: call.input.clone(),
            }));
        }
        if over {
            steps.push(Step::Said(Update::ToolResult {
                id,
                output: std::mem::take(&mut call.output),
                failed: status == "failed",
            }));
            self.calls.remove(at);
        }
        steps
    }

    fn plan(&mut self, update: &Value) -> Vec<Step> {
        let mut steps = self.flush();
        let todos = todos(&update["entries"], "content", "status");
        steps.push(Step::Said(todos));
        steps
    }
}

fn call_id(update: &Value) -> String {
    bounded(str_at(update, "toolCallId"), CALL_ID_BYTES_MAX)
}

fn has_input(call: &Value) -> bool {
    let input = &call["rawInput"];
    !input.is_null() && *input != json!({})
}

/// What is called with, or else what the agent calls it.
fn input_of(call: &Value) -> String {
    if has_input(call) {
        plain(&call["rawInput"])
    } else {
        str_at(call, "title").to_owned()
    }
}

/// The name of the tool where the agent tells it, else its kind: the title is the command itself.
fn tool_name(call: &Value) -> &str {
    let aside = &call["_meta"]["claudeCode"]["toolName"];
    let names = [&call["name"], aside, &call["kind"], &call["title"]];
    let mut known = names.into_iter().filter_map(Value::as_str);
    known.find(|name| !name.is_empty()).unwrap_or("tool")
}

fn output(update: &Value) -> String {
    let raw = &update["rawOutput"];
    let text = raw["output"].as_str().or(raw.as_str());
    if let Some(text) = text {
        return text.to_owned();
    }
    let parts = update["content"].as_array().into_iter().flatten();
    let texts = parts.map(|part| match str_at(part, "type") {
        "content" => blocks(&json!([part["content"]])),
        "diff" => format!("[diff of {}]", str_at(part, "path")),
        other => format!("[{other}]"),
    });
    texts.collect::<Vec<_>>().join("\n")
}

fn dollars(cost: &Value) -> Option<f64> {
    let usd = str_at(cost, "currency").eq_ignore_ascii_case("usd");
    cost["amount"].as_f64().filter(|_| usd)
}

fn reason(error: &Value) -> String {
    let message = str_at(error, "message");
    let details = [
        &error["data"]["details"],
        &error["data"]["message"],
        &error["data"],
    ];
    let detail = details.into_iter().find_map(Value::as_str);
    match detail.filter(|detail| !message.contains(detail)) {
        Some(detail) => format!("{message}: {detail}"),
        None if message.is_empty() => plain(error),
        None => message.to_owned(),
    }
}

fn last_word(error: &Value, message: &str) -> LastWord {
    let lower = format!("{message} {}", plain(&error["data"])).to_ascii_lowercase();
    let kind = str_at(&error["data"], "errorKind");
    let code = error["code"].as_i64();
    if kind == "rate_limit" || code == Some(429) || has_any(&lower, LIMIT_MARKS) {
        return LastWord::RateLimited {
            retry_after_ms: retry_after_ms(message),
            retry_at: epoch_in(message),
        };
    }
    let away = code
        .and_then(|code| u16::try_from(code).ok())
        .or(status_in(&lower));
    if away.is_some_and(is_away) || has_any(&lower, AWAY_MARKS) {
        return LastWord::Unavailable;
    }
    let auth = matches!(code, Some(AUTH_REQUIRED | 401 | 403));
    if auth || kind == "authentication_failed" || has_any(&lower, AUTH_MARKS) {
        return LastWord::Auth;
    }
    LastWord::Model
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const HELLO: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1,"agentCapabilities":{"loadSession":true},"authMethods":[{"id":"oauth"},{"id":"api-key"}]}}"#;

    fn opened(resume: Option<&str>, unfenced: bool) -> Acp {
        permitted(resume, unfenced, Permissions::Allow)
    }

    fn permitted(resume: Option<&str>, unfenced: bool, permissions: Permissions) -> Acp {
        let mut acp = Acp::default();
        let opening = acp.open(&Ask {
            prompt: "short",
            whole: "the whole",
            program: "agent",
            args: &["--acp".to_owned()],
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
        assert_eq!(opening.argv, ["agent", "--acp"]);
        assert_eq!(opening.stdin, Stdin::Open);
        acp
    }

    /// What is sent in answer to a line.
    fn sent(acp: &mut Acp, line: &str) -> Vec<Value> {
        let steps = acp.hear(line);
        let bytes = steps.iter().filter_map(|step| match step {
            Step::Send(bytes) => Some(serde_json::from_slice(bytes).unwrap()),
            _ => None,
        });
        bytes.collect()
    }

    fn one(acp: &mut Acp, line: &str) -> Value {
        let mut all = sent(acp, line);
        assert_eq!(all.len(), 1, "{line}");
        all.remove(0)
    }

    #[test]
    fn no_file_and_no_terminal_is_offered_and_none_is_served() {
        let mut acp = opened(None, false);
        for method in ["fs/read_text_file", "fs/write_text_file", "terminal/create"] {
            let line = json!({"jsonrpc": "2.0", "id": "a", "method": method, "params": {}});
            let reply = one(&mut acp, &line.to_string());
            assert_eq!(reply["error"]["code"], METHOD_NOT_FOUND);
            assert_eq!(reply["id"], "a");
        }
    }

    #[test]
    fn a_session_it_remembers_gets_the_short_prompt_and_repeats_nothing() {
        let mut acp = opened(Some("s-1"), false);
        let load = one(&mut acp, HELLO);
        assert_eq!(load["method"], "session/load");
        assert_eq!(load["params"]["sessionId"], "s-1");
        let old = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s-1","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"old"}}}}"#;
        assert_eq!(acp.hear(old), []);
        let prompt = one(&mut acp, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#);
        assert_eq!(prompt["params"]["prompt"][0]["text"], "short");
    }

    #[test]
    fn a_session_it_forgot_is_begun_anew_with_everything() {
        let mut acp = opened(Some("s-1"), false);
        sent(&mut acp, HELLO);
        let gone =
            r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32602,"message":"no such session"}}"#;
        assert_eq!(one(&mut acp, gone)["method"], "session/new");
        let prompt = one(
            &mut acp,
            r#"{"jsonrpc":"2.0","id":3,"result":{"sessionId":"n"}}"#,
        );
        assert_eq!(prompt["params"]["prompt"][0]["text"], "the whole");
        assert_eq!(prompt["params"]["sessionId"], "n");
    }

    #[test]
    fn it_is_logged_in_with_a_key_once() {
        let auth = r#"{"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"Authentication required"}}"#;
        let mut acp = opened(None, false);
        sent(&mut acp, HELLO);
        let login = one(&mut acp, auth);
        assert_eq!(
            (&login["method"], &login["params"]["methodId"]),
            (&json!("authenticate"), &json!("api-key"))
        );
        assert_eq!(
            one(&mut acp, r#"{"jsonrpc":"2.0","id":3,"result":null}"#)["method"],
            "session/new"
        );
        let again = auth.replace("\"id\":2", "\"id\":4");
        assert!(acp.hear(&again).contains(&Step::Done));
        assert_eq!(acp.close().last, LastWord::Auth);
    }

    #[test]
    fn an_adapter_that_begins_read_only_is_opened_only_inside_our_fence() {
        let modes = r#"{"jsonrpc":"2.0","id":2,"result":{"sessionId":"s","modes":{"availableModes":[{"id":"read-only"},{"id":"auto"},{"id":"full-access"}]}}}"#;
        for (unfenced, mode) in [(false, "full-access"), (true, "auto")] {
            let mut acp = opened(None, unfenced);
            sent(&mut acp, HELLO);
            let set = one(&mut acp, modes);
            assert_eq!(set["params"]["modeId"], mode);
            let refused = r#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"no"}}"#;
            assert_eq!(one(&mut acp, refused)["method"], "session/prompt");
        }
    }

    #[test]
    fn a_permission_is_granted_denied_or_asked_for() {
        let request = |options: &Value| {
            let call = json!({"toolCallId": "c-1", "kind": "execute", "title": "make",
                "rawInput": {"command": "make"}});
            let params = json!({"sessionId": "s", "toolCall": call, "options": options});
            json!({"jsonrpc": "2.0", "id": 7, "method": "session/request_permission",
                "params": params})
            .to_string()
        };
        let option = |id: &str, kind: &str| json!({"optionId": id, "name": id, "kind": kind});
        let all = json!([
            option("always", "allow_always"),
            option("once", "allow_once"),
            option("never", "reject_always"),
            option("no", "reject_once"),
        ]);
        let chosen = |reply: &Value| {
            assert_eq!(reply["id"], 7);
            let outcome = &reply["result"]["outcome"];
            outcome["optionId"]
                .as_str()
                .unwrap_or("cancelled")
                .to_owned()
        };
        let none = json!([]);
        for (permissions, options, want) in [
            (Permissions::Allow, &all, "once"),
            (Permissions::Allow, &none, "cancelled"),
            (Permissions::Deny, &all, "no"),
            (Permissions::Deny, &none, "cancelled"),
            // There is nothing that anybody could allow.
            (Permissions::Ask, &none, "cancelled"),
        ] {
            let mut acp = permitted(None, false, permissions);
            assert_eq!(chosen(&one(&mut acp, &request(options))), want);
        }
        let mut acp = permitted(None, false, Permissions::Ask);
        let steps = acp.hear(&request(&all));
        let Some(Step::Ask(asked)) = steps.last() else {
            panic!("{steps:?}");
        };
        assert_eq!(
            (&asked.tool[..], &asked.input[..]),
            ("execute", r#"{"command":"make"}"#)
        );
        for (allow, want) in [(true, "once"), (false, "no")] {
            let reply = serde_json::from_slice(&acp.permit(asked, allow, "")).unwrap();
            assert_eq!(chosen(&reply), want);
        }
        let taken_back =
            r#"{"jsonrpc":"2.0","method":"$/cancel_request","params":{"requestId":7}}"#;
        assert_eq!(acp.hear(taken_back), [Step::Withdrawn { id: "7".into() }]);
        // Nobody answers blindly: whatever the request is about, it shows.
        let asks_for = |acp: &mut Acp, call: Value| {
            let params = json!({"sessionId": "s", "toolCall": call, "options": all});
            let line = json!({"jsonrpc": "2.0", "id": 7, "method": "session/request_permission",
                "params": params});
            match acp.hear(&line.to_string()).pop() {
                Some(Step::Ask(asked)) => (asked.tool, asked.input),
                other => panic!("{other:?}"),
            }
        };
        let mut acp = permitted(None, false, Permissions::Ask);
        let many = |n: usize| json!({"toolCallId": format!("open-{n}"), "title": n.to_string()});
        for n in 0..=CALLS_MAX {
            assert_eq!(asks_for(&mut acp, many(n)), (n.to_string(), n.to_string()));
        }
        assert_eq!(acp.calls.len(), CALLS_MAX);
        let id = "x".repeat(CALL_ID_BYTES_MAX + 1);
        let raw = json!({"toolCallId": id, "kind": "edit", "rawInput": {"path": "a"}});
        let edit = || ("edit".to_owned(), r#"{"path":"a"}"#.to_owned());
        assert_eq!(asks_for(&mut acp, raw), edit());
        // Later it only says which one, or that it is over.
        assert_eq!(asks_for(&mut acp, json!({"toolCallId": id})), edit());
        let over = json!({"toolCallId": id, "status": "completed"});
        assert_eq!(asks_for(&mut acp, over), edit());
        let over = json!({"toolCallId": id, "status": "failed", "title": "rm -r a"});
        let asked = asks_for(&mut acp, over);
        assert_eq!(asked, ("rm -r a".to_owned(), "rm -r a".to_owned()));
        let (tool, _) = asks_for(&mut acp, json!({"name": "n".repeat(9_000)}));
        assert!(tool.len() < 250, "{}", tool.len());
        // More than this once is said to be more.
        let steps = acp.hear(&request(&json!([option("always", "allow_always")])));
        let more =
            |step: &Step| matches!(step, Step::Ask(asked) if asked.tool.ends_with("(from now on)"));
        assert!(steps.iter().any(more), "{steps:?}");
    }

    /// An adapter that may do everything would ask for nothing.
    #[test]
    fn whoever_is_to_ask_is_not_opened_wide() {
        let modes = r#"{"jsonrpc":"2.0","id":2,"result":{"sessionId":"s","modes":{"availableModes":[{"id":"read-only"},{"id":"auto"},{"id":"full-access"}]}}}"#;
        for permissions in [Permissions::Ask, Permissions::Deny] {
            let mut acp = permitted(None, false, permissions);
            sent(&mut acp, HELLO);
            assert_eq!(one(&mut acp, modes)["method"], "session/prompt");
            let mut acp = permitted(None, true, permissions);
            sent(&mut acp, HELLO);
            assert_eq!(one(&mut acp, modes)["params"]["modeId"], "auto");
            let variables = Acp {
                permissions,
                ..Acp::default()
            };
            assert_eq!(variables.environment()[0].0, "OPENCODE_PERMISSION");
            assert_eq!(variables.environment().len(), 1);
        }
        assert_eq!(Acp::default().environment(), []);
    }

    /// What it is told to read it need not ask for, in the words that each of them has for it.
    #[test]
    fn folders_beside_the_workspace_are_told() {
        let folders = ["/d/a".to_owned(), "/d/b".to_owned()];
        for permissions in Permissions::ALL {
            let mut acp = Acp {
                permissions,
                folders: folders.to_vec(),
                ..Acp::default()
            };
            let env: BTreeMap<String, String> = acp.environment().into_iter().collect();
            assert_eq!(env[GEMINI_FOLDERS], "/d/a:/d/b");
            let rules = env.get("OPENCODE_PERMISSION");
            assert_eq!(rules.is_none(), permissions == Permissions::Allow);
            let elsewhere = r#""external_directory":{"*":"ask","/d/a/*":"allow","/d/b/*":"allow"}"#;
            assert!(
                rules.is_none_or(|rules| rules.contains(elsewhere)),
                "{rules:?}"
            );
            let told = |acp: &Acp| acp.session_params()["additionalDirectories"].clone();
            assert_eq!(told(&acp), Value::Null);
            acp.agent = json!({"agentCapabilities":
                {"sessionCapabilities": {"additionalDirectories": {}}}});
            assert_eq!(told(&acp), json!(folders));
            acp.folders.clear();
            assert_eq!(told(&acp), Value::Null);
        }
    }

    #[test]
    fn ends_are_typed() {
        let limited = |ms| LastWord::RateLimited {
            retry_after_ms: ms,
            retry_at: None,
        };
        for (end, want) in [
            (r#""result":{"stopReason":"end_turn"}"#, LastWord::Done),
            (r#""result":{"stopReason":"refusal"}"#, LastWord::Model),
            (r#""result":{"stopReason":"cancelled"}"#, LastWord::Model),
            (r#""result":{}"#, LastWord::Model),
            (
                r#""error":{"code":-32603,"message":"Internal error","data":{"errorKind":"rate_limit"}}"#,
                limited(None),
            ),
            (
                r#""error":{"code":-32603,"message":"429 Too Many Requests, retry after 3s"}"#,
                limited(Some(3000)),
            ),
            (r#""error":{"code":429,"message":"no"}"#, limited(None)),
            (
                r#""error":{"code":-32000,"message":"log in"}"#,
                LastWord::Auth,
            ),
            (
                r#""error":{"code":-32603,"message":"Internal error","data":{"details":"Invalid API key"}}"#,
                LastWord::Auth,
            ),
            (
                r#""error":{"code":-32603,"message":"boom"}"#,
                LastWord::Model,
            ),
        ] {
            let mut acp = opened(None, false);
            sent(&mut acp, HELLO);
            sent(
                &mut acp,
                r#"{"jsonrpc":"2.0","id":2,"result":{"sessionId":"s"}}"#,
            );
            let line = format!(r#"{{"jsonrpc":"2.0","id":3,{end}}}"#);
            assert!(acp.hear(&line).contains(&Step::Done), "{line}");
            assert_eq!(acp.close().last, want, "{line}");
        }
        let mut silent = opened(None, false);
        silent.hear("Error: something else");
        let said = silent.close();
        assert!(matches!(said.last, LastWord::Missing { .. }));
        assert_eq!(said.text, "Error: something else");
    }
}
