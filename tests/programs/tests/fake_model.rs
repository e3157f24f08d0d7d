//! Starts `fake-model` as tests of the product do and speaks each wire format to it over plain
//! sockets. It must not sleep, and must not use the server's own code to check the server.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, what is not as expected shall panic"
)]

use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    address: String,
    directory: tempfile::TempDir,
}

impl Server {
    /// A server whose script `s` has these steps and whose log comes on its standard output.
    fn start(steps: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("s.json"), steps.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fake-model"))
            .arg("--scripts")
            .arg(directory.path())
            .args(["--log", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let first: Value = serde_json::from_str(&line).unwrap();
        let address = first["url"]
            .as_str()
            .unwrap()
            .strip_prefix("http://")
            .unwrap()
            .to_owned();
        Self {
            child,
            stdin,
            lines,
            address,
            directory,
        }
    }

    fn open(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut connection = TcpStream::connect(&self.address).unwrap();
        connection
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        write!(
            connection,
            "{method} {path} HTTP/1.1\r\nhost: fake\r\nconnection: close\r\n\
             x-api-key: SECRET\r\nauthorization: Bearer SECRET\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        connection
    }

    fn raw(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut bytes = Vec::new();
        self.open(method, path, body)
            .read_to_end(&mut bytes)
            .unwrap();
        Answer::read(&bytes)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw("POST", path, &body.to_string())
    }

    /// The next record of the log; waits for it.
    fn logged(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(!line.contains("SECRET"), "{line}");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
    /// Whether the body came to its proper end.
    whole: bool,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            return Self {
                status: 0,
                head: text,
                body: String::new(),
                whole: false,
            };
        };
        let head = head.to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let (body, whole) = if head.contains("transfer-encoding: chunked") {
            dechunked(rest)
        } else {
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            (rest.to_owned(), rest.len() == length)
        };
        Self {
            status,
            head,
            body,
            whole,
        }
    }

    fn json(&self) -> Value {
        assert!(self.whole, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    /// The data of each event, without the closing `[DONE]`.
    fn events(&self) -> Vec<Value> {
        assert!(self.whole, "{self:?}");
        assert!(
            self.head.contains("content-type: text/event-stream"),
            "{self:?}"
        );
        let data = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    fn types(&self) -> Vec<String> {
        let mut types: Vec<_> = self
            .events()
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect();
        types.dedup();
        types
    }
}

fn dechunked(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        body.push_str(&after[..size.min(after.len())]);
        rest = after.get(size + 2..).unwrap_or("");
    }
    (body, false)
}

fn messages(stream: bool) -> Value {
    json!({
        "model": "claude-x", "max_tokens": 100, "stream": stream,
        "system": [{"type": "text", "text": "env:\n - Primary working directory: /w/repo\n - x"}],
        "messages": [{"role": "user", "content": "please fix it"}],
        "tools": [
            {"name": "Bash", "input_schema": {"type": "object", "required": ["command"],
                "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}}}},
            {"name": "Write", "input_schema": {"type": "object", "properties": {
                "file_path": {"type": "string"}, "content": {"type": "string"}}}}],
    })
}

fn responses(stream: bool) -> Value {
    json!({
        "model": "gpt-x", "stream": stream,
        "input": [{"type": "message", "role": "user",
            "content": [{"type": "input_text", "text": "please fix it"}]}],
        "tools": [
            {"type": "function", "name": "exec_command", "parameters": {"type": "object",
                "required": ["cmd"], "properties": {"cmd": {"type": "string"}}}},
            {"type": "namespace", "name": "mcp__board", "tools": [
                {"type": "function", "name": "done", "parameters": {"type": "object",
                    "required": ["note"], "properties": {"note": {"type": "string"}}}}]},
            {"type": "custom", "name": "apply_patch"},
            {"type": "web_search"}],
    })
}

fn chat(stream: bool) -> Value {
    json!({
        "model": "chat-x", "stream": stream,
        "messages": [{"role": "user", "content": "please fix it"}],
        "tools": [{"type": "function", "function": {"name": "bash", "parameters": {
            "type": "object", "required": ["command", "description"], "properties": {
                "command": {"type": "string"}, "description": {"type": "string"}}}}}],
    })
}

fn gemini() -> Value {
    json!({
        "contents": [{"role": "user", "parts": [{"text": "please fix it"}]}],
        "tools": [{"functionDeclarations": [{"name": "run_shell_command",
            "parametersJsonSchema": {"type": "object", "required": ["command"],
                "properties": {"command": {"type": "string"}}}}]}],
    })
}

/// One tool step with thinking, one text step.
fn two_steps() -> Value {
    json!([
        {"thinking": "hm", "text": "I run it.", "tool": "shell", "command": "make test",
            "usage": {"input": 1000, "output": 50, "cache_read": 300}},
        {"text": "All is done now, and well."}
    ])
}

#[test]
fn anthropic_streams_a_tool_call_and_then_a_text() {
    let mut server = Server::start(&two_steps());
    let first = server.post("/s/s/a/v1/messages?beta=true", &messages(true));
    assert_eq!(
        first.types(),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let events = first.events();
    assert_eq!(events[0]["message"]["model"], "claude-x");
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 1000);
    let input: String = events
        .iter()
        .filter_map(|event| event["delta"]["partial_json"].as_str())
        .collect();
    assert_eq!(input, r#"{"command":"make test"}"#);
    assert!(first.body.starts_with("event: message_start\ndata: "));

    let second = server.post("/s/s/a/v1/messages?beta=true", &messages(true));
    let text: String = second
        .events()
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, "All is done now, and well.");

    let record = server.logged();
    assert_eq!(record["kind"], "step");
    assert_eq!(record["path"], "/s/s/a/v1/messages");
    assert_eq!(
        (&record["script"], &record["run"]),
        (&json!("s"), &json!("a"))
    );
    assert_eq!(record["protocol"], "anthropic");
    assert_eq!(record["model"], "claude-x");
    assert_eq!(record["tools"], json!(["Bash", "Write"]));
    assert_eq!(record["step"], 1);
    assert_eq!(record["served"], "thinking, text, tool Bash");
    assert_eq!(record["prompt"], "please fix it");
    assert_eq!(server.logged()["step"], 2);
}

#[test]
fn anthropic_answers_plainly_and_writes_where_the_client_works() {
    let step = json!([{"blocks": [{"text": "Now."}, {"tool": "write", "path": "a/b", "content": "c"},
        {"tool": "Bash", "args": {"command": "ls", "timeout": 5}}]}]);
    let server = Server::start(&step);
    let whole = server.post("/s/s/v1/messages", &messages(false)).json();
    assert_eq!(whole["stop_reason"], "tool_use");
    assert_eq!(
        whole["content"][1]["input"],
        json!({"file_path": "/w/repo/a/b", "content": "c"})
    );
    assert_eq!(
        whole["content"][2]["input"],
        json!({"command": "ls", "timeout": 5})
    );
    assert_ne!(whole["content"][1]["id"], whole["content"][2]["id"]);
}

#[test]
fn responses_streams_and_answers_plainly() {
    let server = Server::start(&two_steps());
    let first = server.post("/s/s/a/v1/responses", &responses(true));
    let types = first.types();
    assert_eq!(types.first().unwrap(), "response.created");
    assert_eq!(types.last().unwrap(), "response.completed");
    let events = first.events();
    let done: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|event| event["item"]["type"].as_str().unwrap())
        .collect();
    assert_eq!(done, ["reasoning", "message", "function_call"]);
    let completed = &events.last().unwrap()["response"];
    assert_eq!(
        completed["output"][2]["arguments"],
        r#"{"cmd":"make test"}"#
    );
    assert_eq!(completed["usage"]["input_tokens"], 1300);
    assert_eq!(
        completed["usage"]["input_tokens_details"]["cached_tokens"],
        300
    );

    let whole = server.post("/s/s/a/v1/responses", &responses(false)).json();
    assert_eq!(whole["status"], "completed");
    assert_eq!(
        whole["output"][0]["content"][0]["text"],
        "All is done now, and well."
    );
}

#[test]
fn responses_knows_namespaces_and_custom_tools() {
    let steps = json!([{"tool": "board__done", "args": {"note": "n"}},
        {"tool": "apply_patch", "content": "*** Begin Patch"}, {"tool": "absent"}]);
    let mut server = Server::start(&steps);
    let call = server.post("/s/s/v1/responses", &responses(false)).json()["output"][0].clone();
    assert_eq!(
        (&call["name"], &call["namespace"]),
        (&json!("done"), &json!("mcp__board"))
    );
    assert_eq!(call["arguments"], r#"{"note":"n"}"#);
    let patch = server.post("/s/s/v1/responses", &responses(true));
    let item = patch.events().last().unwrap()["response"]["output"][0].clone();
    assert_eq!(
        (&item["type"], &item["input"]),
        (&json!("custom_tool_call"), &json!("*** Begin Patch"))
    );
    let refused = server.post("/s/s/v1/responses", &responses(true));
    assert_eq!(refused.status, 400);
    assert!(refused.head.contains("x-should-retry: false"));
    let said = refused.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        said.contains("offered: exec_command, mcp__board__done, apply_patch"),
        "{said}"
    );
    assert_eq!(server.logged()["kind"], "step");
    assert_eq!(server.logged()["kind"], "step");
    assert_eq!(server.logged()["kind"], "error");
}

#[test]
fn chat_streams_and_answers_plainly() {
    let server = Server::start(&two_steps());
    let first = server.post("/s/s/a/v1/chat/completions", &chat(true));
    assert!(first.body.ends_with("data: [DONE]\n\n"));
    let events = first.events();
    let arguments: String = events
        .iter()
        .filter_map(|event| {
            event
                .pointer("/choices/0/delta/tool_calls/0/function/arguments")?
                .as_str()
        })
        .collect();
    assert_eq!(
        arguments,
        r#"{"command":"make test","description":"scripted"}"#
    );
    let reasons: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["finish_reason"].as_str())
        .collect();
    assert_eq!(reasons, ["tool_calls"]);
    assert_eq!(events.last().unwrap()["usage"]["total_tokens"], 1350);

    let whole = server
        .post("/s/s/a/v1/chat/completions", &chat(false))
        .json();
    assert_eq!(
        whole["choices"][0]["message"]["content"],
        "All is done now, and well."
    );
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
}

#[test]
fn gemini_streams_events_or_an_array_and_answers_plainly() {
    let mut steps = two_steps();
    steps
        .as_array_mut()
        .unwrap()
        .push(json!({"text": "a text in an array, in pieces"}));
    let server = Server::start(&steps);
    let path = |verb: &str| format!("/s/s/a/v1beta/models/gemini-x:{verb}");
    let first = server.post(&path("streamGenerateContent?alt=sse&key=SECRET"), &gemini());
    let last = first.events().last().unwrap().clone();
    let part = &last["candidates"][0]["content"]["parts"][0];
    assert_eq!(
        part["functionCall"]["args"],
        json!({"command": "make test"})
    );
    assert_eq!(last["modelVersion"], "gemini-x");
    let whole = server.post(&path("generateContent"), &gemini()).json();
    let text = &whole["candidates"][0]["content"]["parts"][0]["text"];
    assert_eq!(text, "All is done now, and well.");
    let array = server
        .post(&path("streamGenerateContent"), &gemini())
        .json();
    assert_eq!(array.as_array().unwrap().len(), 2);
}

#[test]
fn side_requests_use_no_step() {
    let mut server = Server::start(&json!([{"text": "the step"}]));
    let router = json!({"contents": [{"role": "user", "parts": [{"text": "which model?"}]}],
        "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": {
            "type": "object", "properties": {"choice": {"enum": ["pro", "flash"]}}}}});
    let whole = server
        .post("/s/s/a/v1beta/models/g:generateContent", &router)
        .json();
    assert_eq!(
        whole["candidates"][0]["content"]["parts"][0]["text"],
        r#"{"choice":"pro"}"#
    );
    let title = json!({"model": "m", "messages": [
        {"role": "system", "content": "You write a short title."},
        {"role": "user", "content": "please fix it"}]});
    let whole = server.post("/s/s/a/v1/chat/completions", &title).json();
    assert_eq!(whole["choices"][0]["message"]["content"], "Scripted title");
    let structured = json!({"model": "m", "input": "x", "text": {"format": {
        "type": "json_schema", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}}});
    let whole = server.post("/s/s/a/v1/responses", &structured).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], r#"{"n":1}"#);
    for served in ["structured", "title", "structured"] {
        let record = server.logged();
        assert_eq!(
            (&record["kind"], &record["served"]),
            (&json!("side"), &json!(served))
        );
    }
    let whole = server.post("/s/s/a/v1/messages", &messages(false)).json();
    assert_eq!(whole["content"][0]["text"], "the step");
}

#[test]
fn each_run_has_its_own_counter_and_a_script_ends() {
    let mut server = Server::start(&json!([{"status": 500, "times": 2}, {"text": "a"}]));
    let statuses = |run: &str| -> Vec<u16> {
        let path = format!("/s/s/{run}/v1/messages");
        (0..4)
            .map(|_| server.post(&path, &messages(false)).status)
            .collect()
    };
    assert_eq!(statuses("a"), [500, 500, 200, 400]);
    assert_eq!(statuses("b"), [500, 500, 200, 400]);
    let steps: Vec<_> = (0..4).map(|_| server.logged()["step"].clone()).collect();
    assert_eq!(steps, [json!(1), json!(1), json!(2), Value::Null]);
}

#[test]
fn failures_look_as_each_provider_makes_them() {
    let limited = json!({"status": 429, "retry_after_s": 7, "message": "slow down",
        "headers": {"x-should-retry": "true"}});
    let server = Server::start(&json!([limited, {"status": 529}, {"status": 401},
        {"status": 429, "error_type": "insufficient_quota"}, {"status": 429}]));
    let first = server.post("/s/s/v1/messages", &messages(true));
    assert_eq!(first.status, 429);
    assert!(first.head.contains("retry-after: 7\r\n"), "{}", first.head);
    assert!(
        first.head.contains("x-should-retry: true"),
        "{}",
        first.head
    );
    let error = first.json();
    assert_eq!(
        error["error"],
        json!({"type": "rate_limit_error", "message": "slow down"})
    );
    let second = server.post("/s/s/v1/messages", &messages(true)).json();
    assert_eq!(second["error"]["type"], "overloaded_error");
    let third = server.post("/s/s/v1/responses", &responses(true)).json();
    assert_eq!(third["error"]["code"], "invalid_api_key");
    let fourth = server.post("/s/s/v1/chat/completions", &chat(true)).json();
    assert_eq!(fourth["error"]["code"], "insufficient_quota");
    let fifth = server
        .post("/s/s/v1beta/models/g:generateContent", &gemini())
        .json();
    assert_eq!(fifth["error"]["status"], "RESOURCE_EXHAUSTED");
}

#[test]
fn answers_are_cut_where_the_script_says() {
    let server = Server::start(&json!([{"cut_after_bytes": 10}, {"cut": "mid_stream"},
        {"cut": "before_answer"}, {"text": "x", "cut_after_bytes": 10}, {"cut_after_bytes": 0}]));
    let first = server.post("/s/s/v1/messages", &messages(true));
    assert_eq!((first.body.as_str(), first.whole), ("event: mes", false));
    let second = server.post("/s/s/v1/responses", &responses(true));
    assert!(second.body.contains("response.created") && !second.whole);
    assert!(!second.body.contains("response.completed"));
    let third = server.post("/s/s/v1/messages", &messages(true));
    assert_eq!((third.status, third.head.as_str()), (0, ""));
    let fourth = server.post("/s/s/v1/messages", &messages(false));
    assert_eq!((fourth.body.len(), fourth.whole), (10, false));
    let fifth = server.post("/s/s/v1/messages", &messages(true));
    assert_eq!(
        (fifth.status, fifth.body.as_str(), fifth.whole),
        (200, "", false)
    );
}

#[test]
fn malformed_answers_are_delivered_whole() {
    let server = Server::start(&json!([{"malformed": true, "repeat": true}]));
    let broken = |answer: &Answer| {
        let data = answer
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| serde_json::from_str::<Value>(data).is_err())
            .count()
    };
    let streamed = server.post("/s/s/v1/messages", &messages(true));
    assert!(streamed.whole);
    assert_eq!(broken(&streamed), 1);
    let plain = server.post("/s/s/v1/responses", &responses(false));
    assert!(plain.whole && serde_json::from_str::<Value>(&plain.body).is_err());
}

#[test]
fn a_hang_and_a_stall_last_until_the_client_leaves() {
    let mut server = Server::start(&json!([{"hang": true}, {"stall": true}, {"text": "a"}]));
    let body = messages(true).to_string();
    let hung = server.open("POST", "/s/s/v1/messages", &body);
    assert_eq!(server.logged()["served"], "hang");
    let mut stalled = server.open("POST", "/s/s/v1/messages", &body);
    assert_eq!(server.logged()["step"], 2);
    let mut part = [0; 15];
    stalled.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"HTTP/1.1 200 OK");
    // Others are served meanwhile.
    assert_eq!(server.post("/s/s/v1/messages", &messages(true)).status, 200);
    assert_eq!(server.logged()["step"], 3);
    drop(hung);
    let record = server.logged();
    assert_eq!(
        (&record["kind"], &record["step"]),
        (&json!("client_gone"), &json!(1))
    );
    drop(stalled);
    let record = server.logged();
    assert_eq!(
        (&record["kind"], &record["step"]),
        (&json!("client_gone"), &json!(2))
    );
}

#[test]
fn a_slow_answer_is_the_same_answer() {
    let server = Server::start(&json!([{"text": "slowly, piece by piece", "slow_ms": 1}]));
    let events = server.post("/s/s/v1/messages", &messages(true)).events();
    let text: String = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, "slowly, piece by piece");
}

#[test]
fn the_plumbing_needs_no_script() {
    let server = Server::start(&json!([{"text": "a"}]));
    assert_eq!(server.raw("HEAD", "/s/s/a/api/hello", "").status, 200);
    let counted = server
        .post("/s/s/a/v1/messages/count_tokens", &messages(false))
        .json();
    assert!(counted["input_tokens"].as_u64().unwrap() > 10);
    let counted = server
        .post("/s/s/a/v1beta/models/g:countTokens", &gemini())
        .json();
    assert!(counted["totalTokens"].as_u64().unwrap() > 10);
    let models = server.raw("GET", "/v1/models", "").json();
    assert_eq!(models["data"][0]["id"], "fake-model");
    let models = server.raw("GET", "/s/s/v1beta/models", "").json();
    assert_eq!(models["models"][0]["name"], "models/fake-model");
    let lost = server.post("/s/s/a/v1/embeddings", &json!({}));
    assert_eq!(lost.status, 404);
    assert!(
        lost.body
            .contains("nothing is served at POST v1/embeddings"),
        "{}",
        lost.body
    );
}

#[test]
fn mistakes_of_a_test_are_told() {
    let server = Server::start(&json!([{"text": "a"}]));
    let said = |path: &str| {
        let answer = server.post(path, &messages(false));
        assert_eq!(answer.status / 100, 4, "{path}");
        answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(said("/v1/messages").contains("no --script FILE was given"));
    assert!(said("/s/absent/a/v1/messages").contains("absent.json"));
    assert!(said("/s/../a/v1/messages").contains("letters, digits"));
    std::fs::write(server.directory.path().join("bad.json"), r#"[{"txt":"a"}]"#).unwrap();
    let said = said("/s/bad/a/v1/messages");
    assert!(
        said.contains("step 1: unknown field `txt`, expected one of"),
        "{said}"
    );
    assert_eq!(server.raw("POST", "/s/s/v1/messages", "{").status, 400);
    assert_eq!(server.raw("POST", "/s/s/v1/messages", "[]").status, 400);
}

fn run(args: &[&Path]) -> std::process::Output {
    let program = Command::new(env!("CARGO_BIN_EXE_fake-model"))
        .args(args)
        .stdin(Stdio::null())
        .output();
    program.unwrap()
}

#[test]
fn a_bad_start_fails_at_once_and_the_end_of_stdin_is_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.json");
    std::fs::write(&file, r#"[{"text":"a","status":500}]"#).unwrap();
    let scripts: [&Path; 2] = ["--scripts".as_ref(), directory.path()];
    let refused = run(&scripts);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("a.json") && said.contains("just one of"),
        "{said}"
    );
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["--nope".as_ref()]).status.code(), Some(2));

    std::fs::write(&file, r#"[{"text":"a"}]"#).unwrap();
    let log = directory.path().join("log");
    let ended = run(&["--script".as_ref(), &file, "--log".as_ref(), &log]);
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stdout.starts_with(b"{\"url\":\"http://127.0.0.1:"));
    assert!(log.exists());
}
