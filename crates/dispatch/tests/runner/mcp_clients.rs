//! The clients that people have: the Inspector of MCP on its command line, Claude Code and Codex, with
//! our server configured as docs/mcp.md says. The model behind the agents is a script.
//! `DISPATCH_TEST_AGENTS` names the folder whose `node_modules` hold them (`cargo xtask test` sets it);
//! without it nothing is tested here, said aloud.
//! Must not leave this machine, and must not read a login of the person's own.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Once},
    time::Duration,
};

use dispatch_test_programs::fake_model::{Log, Server};
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command, time::timeout};

use super::{wire::Door, world::TestWorld};

const FOLDER: &str = "DISPATCH_TEST_AGENTS";
const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const KEY: &str = "sk-not-a-real-key-0123456789";

/// The first of these that is there. `None`: skipped.
pub(crate) fn installed(below: &[&str]) -> Option<PathBuf> {
    static SKIPPED: Once = Once::new();
    let Some(folder) = std::env::var_os(FOLDER) else {
        // Past the test harness, which would keep it to itself.
        SKIPPED.call_once(|| {
            let mut out = std::io::stderr().lock();
            let why = format!("{FOLDER} is not set; `cargo xtask test` installs them");
            writeln!(out, "SKIPPED: MCP with the clients that people have: {why}").unwrap();
        });
        return None;
    };
    let modules = Path::new(&folder).join("node_modules");
    let found = below
        .iter()
        .map(|path| modules.join(path))
        .find(|path| path.exists());
    let found = found.unwrap_or_else(|| panic!("none of {below:?} is in {}", modules.display()));
    Some(found.canonicalize().unwrap())
}

fn program(world: &TestWorld, program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", world.path("person"))
        .current_dir(world.repo())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> (Option<i32>, String, String) {
    let ended = timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

/// The Inspector's command line, by one of the ways to our server.
struct Inspector<'a> {
    world: &'a TestWorld,
    node: PathBuf,
    script: PathBuf,
    /// The address and the token; else it starts `dispatch mcp`.
    door: Option<(String, String)>,
    era: &'static str,
}

impl Inspector<'_> {
    async fn ask(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = program(self.world, &self.node);
        command.arg(&self.script).arg("--cli");
        match &self.door {
            Some((url, token)) => {
                command.args(["--server-url", url, "--transport", "http"]);
                command.args(["--header", &format!("Authorization: Bearer {token}")]);
            }
            None => {
                let home = self.world.home();
                command.args(["-e", &format!("DISPATCH_HOME={}", home.display())]);
                command.args([env!("CARGO_BIN_EXE_dispatch"), "mcp"]);
            }
        }
        command.args(["--protocol-era", self.era]).args(args);
        output(command).await
    }

    async fn gets(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.ask(args).await;
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inspector_finds_everything_and_nothing_to_complain_of() {
    let Some(node) = installed(&["node/bin/node"]) else {
        return;
    };
    let script = "@modelcontextprotocol/inspector/clients/launcher/build/index.js";
    let script = installed(&[script]).unwrap();
    for over_http in [false, true] {
        let world = TestWorld::new();
        let door = over_http.then(|| Door::open(&world));
        for era in ["legacy", "modern"] {
            let inspector = Inspector {
                world: &world,
                node: node.clone(),
                script: script.clone(),
                door: door.as_ref().map(|door| {
                    let token = door.token.rsplit(' ').next().unwrap().to_owned();
                    (format!("http://{}/mcp", door.address), token)
                }),
                era,
            };
            looked_through(&inspector).await;
        }
    }
}

async fn looked_through(inspector: &Inspector<'_>) {
    // Schemas that some client or model would stumble over are an error to it.
    let (code, out, err) = inspector.ask(&["--method", "tools/list", "--strict"]).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    let tools: Value = serde_json::from_str(&out).unwrap();
    let tools = tools["tools"].as_array().unwrap();
    assert!(tools.iter().any(|tool| tool["name"] == "agentic_dispatch"));
    let call = |tool: &str, arguments: Value| {
        let args = [
            "--method",
            "tools/call",
            "--tool-name",
            tool,
            "--tool-args-json",
        ];
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        [args, vec![arguments.to_string()]].concat()
    };
    let text = "First\n> write a.txt one";
    let repo = inspector.world.repo();
    let made = call("dispatch", json!({"task": text, "repo": repo}));
    let made: Vec<&str> = made.iter().map(String::as_str).collect();
    let made = inspector.gets(&made).await;
    let id = made["structuredContent"]["task"].as_str().unwrap();
    let waited = call("wait", json!({"tasks": [id]}));
    let waited: Vec<&str> = waited.iter().map(String::as_str).collect();
    let waited = inspector.gets(&waited).await;
    assert_eq!(
        waited["structuredContent"]["tasks"][0]["state"],
        "completed"
    );
    let prompt = [
        "--method",
        "prompts/get",
        "--prompt-name",
        "fix_bug",
        "--prompt-args",
        "bug=it",
    ];
    let prompt = inspector.gets(&prompt).await;
    assert!(prompt["messages"].to_string().contains("it"));
    let listed = inspector.gets(&["--method", "resources/list"]).await;
    assert!(
        listed
            .to_string()
            .contains(&format!("dispatch://tasks/{id}"))
    );
    let uri = format!("dispatch://tasks/{id}/diff");
    let diff = inspector
        .gets(&["--method", "resources/read", "--uri", &uri])
        .await;
    assert!(
        diff["contents"][0]["text"]
            .as_str()
            .unwrap()
            .contains("+one")
    );
}

/// A scripted model in this process, and where its log is.
pub(crate) async fn model(world: &TestWorld, steps: &Value) -> (String, PathBuf) {
    let (script, log) = (world.path("script.json"), world.path("model.log"));
    std::fs::write(&script, steps.to_string()).unwrap();
    let server = Server::new(Some(&script), None, Log::open(Some(&log)).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(Arc::new(server).serve(listener));
    (url, log)
}

fn steps(world: &TestWorld) -> Vec<Value> {
    let task = "First\n> write a.txt one";
    vec![
        json!({"tool": "agentic_dispatch",
            "args": {"repo": world.repo(), "task": task, "issue": 5}}),
        json!({"tool": "wait", "args": {"tasks": ["core/repo/task-5"]}}),
        json!({"text": "Finished.", "repeat": true}),
    ]
}

/// It did what it was told, by our tools, and saw what came of it.
fn has_been_through(world: &TestWorld, log: &Path, told: &str) {
    let log = std::fs::read_to_string(log).unwrap();
    let asked: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|record: &Value| record["kind"] == "step")
        .collect();
    let last = asked.last().unwrap()["prompt"].as_str().unwrap();
    assert!(
        last.contains("\"done\":true") && last.contains("completed"),
        "{last}; {told}"
    );
    assert!(!log.contains("\"kind\":\"error\""), "{log}");
    let tasks = world.dispatch(&["list", "--json"]).exits(0).json();
    assert_eq!(tasks.as_array().map(Vec::len), Some(1), "{tasks}");
    assert_eq!(tasks[0]["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_dispatches_and_waits() {
    let (npm, _) = triple();
    let native = format!("@anthropic-ai/claude-code-linux-{npm}/claude");
    let musl = format!("@anthropic-ai/claude-code-linux-{npm}-musl/claude");
    let Some(claude) = installed(&[&native, &musl]) else {
        return;
    };
    for over_http in [false, true] {
        let world = TestWorld::new();
        let door = over_http.then(|| Door::open(&world));
        let server = match &door {
            Some(door) => json!({
                "type": "http", "url": format!("http://{}/mcp", door.address),
                "headers": {"Authorization": door.token.split_once(": ").unwrap().1},
            }),
            None => json!({
                "type": "stdio", "command": env!("CARGO_BIN_EXE_dispatch"), "args": ["mcp"],
                "env": {"DISPATCH_HOME": world.home()},
            }),
        };
        // It looks a tool up before it has it.
        let names = "select:mcp__dispatch__agentic_dispatch,mcp__dispatch__wait";
        let look = json!({"tool": "ToolSearch", "args": {"query": names}});
        let steps = [vec![look], steps(&world)].concat();
        let (url, log) = model(&world, &json!(steps)).await;
        let config = json!({"mcpServers": {"dispatch": server}});
        let mut command = program(&world, &claude);
        command
            .env("ANTHROPIC_BASE_URL", url)
            .env("ANTHROPIC_API_KEY", KEY)
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .env("CLAUDE_CODE_MAX_RETRIES", "1")
            .args(["-p", "Do it", "--strict-mcp-config"])
            .arg(format!("--mcp-config={config}"))
            .arg("--allowedTools=mcp__dispatch")
            .args(["--output-format", "stream-json", "--verbose"]);
        let (code, out, err) = output(command).await;
        assert_eq!(code, Some(0), "{out}{err}");
        has_been_through(&world, &log, &out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn codex_dispatches_and_waits() {
    let (npm, arch) = triple();
    let below = format!("@openai/codex-linux-{npm}/vendor/{arch}-unknown-linux-musl/bin/codex");
    let Some(codex) = installed(&[&below]) else {
        return;
    };
    for over_http in [false, true] {
        let world = TestWorld::new();
        let door = over_http.then(|| Door::open(&world));
        let server = match &door {
            Some(door) => format!(
                "{{url=\"http://{}/mcp\",bearer_token_env_var=\"DISPATCH_TOKEN\",\
                 default_tools_approval_mode=\"approve\"}}",
                door.address
            ),
            None => format!(
                "{{command={:?},args=[\"mcp\"],env={{DISPATCH_HOME={:?}}},\
                 default_tools_approval_mode=\"approve\"}}",
                env!("CARGO_BIN_EXE_dispatch"),
                world.home()
            ),
        };
        let (url, log) = model(&world, &json!(steps(&world))).await;
        let provider = format!(
            "model_providers.fake={{name=\"Fake\",base_url=\"{url}/v1\",wire_api=\"responses\",\
             env_key=\"FAKE_KEY\",request_max_retries=0,stream_max_retries=0}}"
        );
        let mut command = program(&world, &codex);
        if let Some(door) = &door {
            let token = door.token.rsplit(' ').next().unwrap();
            command.env("DISPATCH_TOKEN", token);
        }
        command
            .env("FAKE_KEY", KEY)
            .args(["exec", "--json", "-m", "any", "-c", "model_provider=fake"])
            .args(["-c", &provider])
            .args(["-c", &format!("mcp_servers.dispatch={server}"), "Do it"]);
        let (code, out, err) = output(command).await;
        assert_eq!(code, Some(0), "{out}{err}");
        has_been_through(&world, &log, &out);
    }
}

pub(crate) fn triple() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("arm64", "aarch64"),
        _ => ("x64", "x86_64"),
    }
}
