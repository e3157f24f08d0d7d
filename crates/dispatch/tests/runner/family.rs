//! Agents that dispatch agents, with the real command line, engine, fence and tools: the real Claude
//! Code and Codex call our tools from a cage without a network, over an engine's end. The model behind
//! them is a script. `DISPATCH_TEST_AGENTS` names the folder whose `node_modules` hold them
//! (`cargo xtask test` sets it); without it those are not tested here, said aloud.
//! Must not leave this machine, and must not read a login of the person's own.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
    path::PathBuf,
};

use dispatch_core::grant::Tool;
use serde_json::{Value, json};

use super::{
    mcp_clients::{KEY, installed, model, triple},
    schema,
    wire::Answer,
    world::{TestWorld, files},
};

/// It waits in a place that only its own workspace has.
const PATIENT: &str = "[agents.patient]\ndriver = \"plain\"\nprogram = \"sh\"\npool = \"default\"\n\
    args = [\"-c\", \"cat > /dev/null; echo begun; until [ -e go ]; do sleep 0.02; done; \
    echo it went well\"]\n";
const GRANT: &str = "[placements.tight]\nwrap = \"cage\"\nnetwork = \"none\"\n\
    [grants.lead]\ntools = [\"dispatch\", \"wait\", \"show\", \"list\"]\nagents = [\"patient\"]\nplacements = [\"tight\"]\n\
    depth = 1\nchildren_max = 4\nchildren_live_max = 2\n";

/// Which child of a task this is, once there is one.
fn child(world: &TestWorld, lead: &str, n: usize) -> Value {
    let lead = world.show(lead);
    let id = lead["children"][n]["id"].as_str().unwrap();
    world.show(id)
}

/// Its agent runs; then the engine ends as if the machine's memory had run out, and another comes.
fn begun_and_killed(world: &TestWorld, child: &Value) {
    let id = child["id"].as_str().unwrap();
    world.follow(&["logs", "-f", id]).until("begun");
    world.kill_engine();
    world.serve();
}

fn go(child: &Value) {
    let workspace = child["workspace_dir"].as_str().unwrap();
    fs::write(format!("{workspace}/go"), "").unwrap();
}

/// From a lead that was just started to its end. It waits for its first child in a call of a tool, and
/// ends its turn while the second one runs.
fn led(world: &TestWorld, lead: &str, waits: &str) {
    let mut watching = world.follow(&["logs", "-f", lead]);
    watching.until(waits);
    let first = child(world, lead, 0);
    begun_and_killed(world, &first);
    drop(watching);
    go(&first);
    world
        .follow(&["events", "-f", "--json"])
        .until("\"kind\":\"parked\"");
    let parked = world.show(lead);
    assert_eq!(parked["state"], "parked");
    let second = child(world, lead, 1);
    begun_and_killed(world, &second);
    assert_eq!(world.show(lead)["state"], "parked");
    go(&second);
    world.dispatch(&["wait", lead]).exits(0);
}

fn has_led(world: &TestWorld, lead: &str, model: &std::path::Path) {
    let log = fs::read_to_string(model).unwrap();
    assert!(!log.contains("\"kind\":\"error\""), "{log}");
    let lead = world.show(lead);
    assert_eq!(lead["state"], "completed", "{lead:#}");
    let ends: Vec<&Value> = lead["ends"].as_array().unwrap().iter().collect();
    assert_eq!(ends.len(), 2, "{lead:#}");
    // Its engine died over the wait: the end is there before the wait is asked anew, or after it.
    let first = ends[0]["state"].as_str().unwrap();
    assert!(["waited_for", "told"].contains(&first), "{lead:#}");
    assert_eq!(ends[1]["state"], "told");
    assert_eq!(lead["runs"].as_array().unwrap().len(), 2, "{lead:#}");
    assert!(lead["enforced"].as_str().unwrap().contains("network: none"));
    // Each end was heard once, and in the second run's first words.
    let heard: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|record: &Value| record["kind"] == "step")
        .collect();
    let last = heard.last().unwrap()["prompt"].as_str().unwrap();
    assert!(last.contains("it went well"), "{last}");
    // Tokens are gone with their runs, and nothing else had one.
    let id = lead["id"].as_str().unwrap();
    let tokens = [1, 2].map(|n| format!("dr_{id}-{n}_"));
    let has_one = |file: &&PathBuf| {
        let bytes = fs::read(file).unwrap_or_default();
        tokens.iter().any(|token| holds(&bytes, token.as_bytes()))
    };
    let all = files(&world.home().join("data"));
    assert_eq!(all.iter().find(has_one), None);
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn steps(waits: &str) -> Vec<Value> {
    vec![
        json!({"tool": "dispatch", "args": {"task": "First\nWait until you may go.", "agent": "patient"}}),
        json!({"tool": "wait", "args": {"timeout_s": 600}, "text": waits}),
        json!({"tool": "dispatch", "args": {"task": "Second\nWait until you may go.", "agent": "patient"}}),
        json!({"text": "I go on when it has ended."}),
        json!({"text": "Finished.", "repeat": true}),
    ]
}

/// The agent of a task's run, as it would speak to us itself.
pub(super) struct Voice<'a> {
    world: &'a TestWorld,
    token: String,
}

impl<'a> Voice<'a> {
    pub(super) fn of(world: &'a TestWorld, lead: &str, n: u32) -> Self {
        let dir = world.home().join(format!("data/doors/{lead}-{n}"));
        let token = fs::read_to_string(dir.join("token")).unwrap();
        Self { world, token }
    }

    #[track_caller]
    fn asks(&self, path: &str, body: &Value) -> Value {
        self.posts(path, body).good().json()
    }

    #[track_caller]
    pub(super) fn posts(&self, path: &str, body: &Value) -> Answer {
        let socket = self.world.home().join("run/agents");
        let socket = fs::File::open(socket).unwrap();
        let path_of = format!("/proc/self/fd/{}/engine.sock", socket.as_raw_fd());
        let mut stream = UnixStream::connect(path_of).unwrap();
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: dispatch\r\nconnection: close\r\n\
             authorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        Answer::of(&answer)
    }
}

/// A lead that has asked for a task and ended its run; and that task.
fn parked(world: &TestWorld) -> (String, Value) {
    let lead = world.begun(&["--grant", "lead", "--no-checks", "--expects", "either"]);
    let voice = Voice::of(world, &lead, 1);
    let asked = json!({"task": "Wait until you may go.", "placement": "tight", "agent": "patient"});
    let child = voice.asks("/v1/tasks", &asked);
    assert_eq!(child["asked_by"], format!("{lead}-1"));
    let id = child["id"].as_str().unwrap();
    world.follow(&["logs", "-f", id]).until("begun");
    world.open_gate();
    let mut events = world.follow(&["events", "-f", "--json", "--task", &lead]);
    events.until("\"kind\":\"parked\"");
    (lead, world.show(id))
}

/// The person sees all along what it is that the task waits for, and `wait` waits for the real end.
#[test]
fn a_parked_task_is_open_until_it_has_heard_of_its_children() {
    let world = TestWorld::with_config(&format!("{GRANT}{PATIENT}"));
    let (lead, child) = parked(&world);
    let short = child["short"].as_str().unwrap();
    let task = world.show(&lead);
    schema::task(&task);
    assert_eq!(
        (&task["state"], &task["waiting"]["why"]),
        (&json!("parked"), &json!("children"))
    );
    assert_eq!(task["children"][0]["id"], child["id"]);
    let waits = format!("waits for what it asked for: {short} (running)");
    world
        .dispatch(&["show", &lead])
        .exits(0)
        .says(&[&waits, "grant", "child"]);
    world
        .dispatch(&["show", short])
        .exits(0)
        .says(&["asked by", &lead]);
    world
        .dispatch(&["list"])
        .exits(0)
        .says(&["working (2)", "parked"]);
    let waiting = world.follow(&["wait", &lead, "--json"]);
    let second = world.detach(&["--after", &lead, "> write out.txt hi"]);
    assert_eq!(world.show(&second)["waiting"]["why"], "after");
    go(&child);
    // Its second run is the one that hears of it.
    world.open_gate();
    let ended: Value = serde_json::from_str(&waiting.end().exits(0).out).unwrap();
    schema::task(&ended);
    assert_eq!(ended["state"], "completed");
    assert_eq!(ended["runs"][1]["cause"], "ends");
    assert_eq!(ended["ends"][0]["state"], "told");
    assert_eq!(ended["messages"][0]["from"], "dispatch");
    let told = ended["messages"][0]["text"].as_str().unwrap();
    assert!(told.contains("it went well"), "{told}");
    world.dispatch(&["wait", &second]).exits(0);
}

#[test]
fn a_parked_task_ends_with_a_stop_and_when_its_child_is_let_go() {
    let world = TestWorld::with_config(&format!("{GRANT}{PATIENT}"));
    let (lead, child) = parked(&world);
    let id = child["id"].as_str().unwrap();
    let waiting = world.follow(&["wait", &lead, "--json"]);
    let alone = world.dispatch(&["detach", id, "--json"]).exits(0).json();
    assert_eq!(
        (&alone["detached"], &alone["state"]),
        (&json!(true), &json!("running"))
    );
    let ended: Value = serde_json::from_str(&waiting.end().exits(0).out).unwrap();
    assert_eq!(ended["state"], "completed");
    world.dispatch(&["detach", &lead]).exits(2);
    go(&child);
    world.dispatch(&["wait", id]).exits(0);
    let (lead, child) = parked(&world);
    let id = child["id"].as_str().unwrap();
    let stopped = world.dispatch(&["stop", &lead, "--json"]).exits(0).json();
    assert_eq!(stopped["state"], "stopped");
    world.dispatch(&["wait", id]).exits(4);
}

/// Whatever its task started from, an agent has others work beside it, in workspaces of their own that
/// begin where its own did; and none of them waits for what waits for it.
#[test]
fn children_work_beside_each_other_whatever_their_asker_began_at() {
    let world = TestWorld::with_config(&format!("{GRANT}{PATIENT}"));
    let repo = world.repo();
    let config = world.home().join("dispatch.toml");
    let known = fs::read_to_string(&config).unwrap();
    let named = format!("{known}\n[repos.here]\npath = {repo:?}\ndefault_branch = \"side\"\n");
    fs::write(&config, named).unwrap();
    world.git(&["branch", "side"]);
    world.git(&["branch", "other"]);
    world.git(&["update-ref", "refs/pull/7/head", "HEAD"]);
    world.git(&["tag", "v1"]);
    let dir = world.path("folder");
    fs::create_dir(&dir).unwrap();
    let began = world.git(&["rev-parse", "HEAD"]);
    let more = ["--grant", "lead", "--no-checks", "--expects", "either"];
    for from in [
        &[][..],
        &["--branch", "other"],
        &["--repo", "here"],
        &["--pr", "7"],
        &["--tag", "v1"],
        &["--dir", dir.to_str().unwrap()],
        &["--no-repo"],
    ] {
        let lead = world.begun(&[&more[..], from].concat());
        let has_git = !from.contains(&"--dir") && !from.contains(&"--no-repo");
        // Somebody else goes on with it meanwhile.
        fs::write(repo.join("more.txt"), "more\n").unwrap();
        world.commit();
        for name in ["refs/heads/side", "refs/heads/other", "refs/pull/7/head"] {
            world.git(&["update-ref", name, "HEAD"]);
        }
        let voice = Voice::of(&world, &lead, 1);
        let mut asked = json!({"task": "Wait", "placement": "tight", "agent": "patient"});
        let two: Vec<Value> = (0..2).map(|_| voice.asks("/v1/tasks", &asked)).collect();
        let own = world.show(&lead);
        let mut places = vec![own["workspace_dir"].clone()];
        for child in &two {
            let id = child["id"].as_str().unwrap();
            world.follow(&["logs", "-f", id]).until("begun");
            let child = world.show(id);
            assert_eq!(
                (&child["state"], &child["from"]),
                (&json!("running"), &own["from"])
            );
            if has_git {
                assert_eq!(
                    (&child["base"], &own["base"]),
                    (&json!(began), &json!(began))
                );
            }
            assert!(!places.contains(&child["workspace_dir"]), "{places:?}");
            places.push(child["workspace_dir"].clone());
        }
        // It would wait for its asker, which waits for it.
        asked["taken"] = json!("queue");
        let behind = voice.posts("/v1/tasks", &asked);
        if ["--branch", "--pr", "--tag"]
            .iter()
            .any(|word| from.contains(word))
        {
            assert_eq!(behind.refusal(), (403, "not_granted".into()));
            assert!(
                behind.text().contains("leave `taken` out"),
                "{}",
                behind.text()
            );
        } else {
            assert_eq!(behind.refusal(), (409, "nothing_left".into()));
        }
        world.dispatch(&["stop", "--kill", &lead]).exits(0);
        world.dispatch(&["wait", &lead]).exits(4);
        world.git(&["reset", "-q", "--hard", &began]);
        for name in ["refs/heads/side", "refs/heads/other", "refs/pull/7/head"] {
            world.git(&["update-ref", name, &began]);
        }
    }
}

/// A child does not choose its container engine: the daemon of another one may be root. No engine is
/// asked before that is decided, so this needs none.
#[test]
fn a_child_does_not_choose_its_container_engine() {
    let boxed = "[container]\nruntime = \"podman\"\nimage = \"example.invalid/i:1\"\n\
                 [placements.boxed]\nwrap = \"container\"\nnetwork = \"none\"\n";
    let grant = GRANT.replace("[\"tight\"]", "[\"tight\", \"boxed\"]");
    let world = TestWorld::with_config(&format!("{boxed}{grant}{PATIENT}"));
    let lead = world.begun(&["--grant", "lead", "--no-checks", "--expects", "either"]);
    let voice = Voice::of(&world, &lead, 1);
    let asked =
        json!({"task": "Wait", "placement": "boxed", "agent": "patient", "runtime": "docker"});
    let refused = voice.posts("/v1/tasks", &asked);
    assert_eq!(refused.refusal(), (403, "not_granted".into()));
    let told = refused.text();
    assert!(
        told.contains("container engine docker (granted: podman)"),
        "{told}"
    );
    world.dispatch(&["stop", "--kill", &lead]).exits(0);
}

/// What is configured outside of its grant, an agent does not learn from what it is refused.
#[test]
fn a_refusal_tells_an_agent_of_nothing_beyond_its_grant() {
    let world = TestWorld::with_config(&format!(
        "{GRANT}{PATIENT}[grants.secretive]\n\
        tools = [\"show\"]\nchildren_max = 1\nchildren_live_max = 1\n"
    ));
    let lead = world.begun(&["--grant", "lead", "--no-checks", "--expects", "either"]);
    let voice = Voice::of(&world, &lead, 1);
    let asked = |name: &str, value: Value| {
        let mut body = json!({"task": "x", "placement": "tight", "agent": "patient"});
        body[name] = value;
        let refused = voice.posts("/v1/tasks", &body);
        for untold in ["scripted", "gated", "secretive", "python", "container"] {
            let named = body[name].to_string().contains(untold);
            assert!(
                named || !refused.text().contains(untold),
                "{}",
                refused.text()
            );
        }
        refused.refusal()
    };
    // The same whether there is such a thing.
    for (name, there, not) in [
        ("agent", json!("scripted"), json!("nonesuch")),
        ("placement", json!("container"), json!("nonesuch")),
        ("repo", json!("/"), json!("nonesuch")),
    ] {
        let outside = (403, "not_granted".to_owned());
        assert_eq!(
            (asked(name, there), asked(name, not)),
            (outside.clone(), outside)
        );
    }
    for (name, not) in [
        ("grant", json!("nonesuch")),
        ("checks", json!(["nonesuch"])),
    ] {
        assert_eq!(asked(name, not).0, 400, "{name}");
    }
    world.dispatch(&["stop", "--kill", &lead]).exits(0);
}

/// The mailbox knows no families, so an agent has no key to it, whatever its grant.
#[test]
fn letters_are_not_for_the_agents_of_tasks() {
    let tools = Tool::ALL
        .map(|tool| format!("{:?}", tool.word()))
        .join(", ");
    let grant = GRANT.replace("\"dispatch\", \"wait\", \"show\", \"list\"", &tools);
    let world = TestWorld::with_config(&format!("{grant}{PATIENT}"));
    let lead = world.begun(&["--grant", "lead", "--no-checks", "--expects", "either"]);
    let voice = Voice::of(&world, &lead, 1);
    let workspace = world.show(&lead)["workspace_name"].clone();
    for (path, body) in [
        (
            "/v1/letters",
            json!({"writer": "a", "reader": "b", "subject": "s", "text": "t"}),
        ),
        ("/v1/letters/fetch", json!({"reader": "b"})),
        ("/v1/letters/between", json!({"agent": "a", "with": "b"})),
    ] {
        let mut body = body;
        body["workspace"] = workspace.clone();
        let refused = voice.posts(path, &body);
        assert_eq!(
            refused.refusal(),
            (403, "not_for_agents".into()),
            "{}",
            refused.text()
        );
    }
    world.dispatch(&["stop", "--kill", &lead]).exits(0);
}

/// Not a variable: the engine that comes after a crash does not have those of the one before.
fn key_file(world: &TestWorld) -> PathBuf {
    let path = world.path("key");
    let mut file = fs::OpenOptions::new();
    let file = file.write(true).create_new(true).mode(0o600).open(&path);
    file.unwrap().write_all(KEY.as_bytes()).unwrap();
    path
}

fn start(world: &TestWorld, agent: &str) -> String {
    let args = [
        "run",
        "--detach",
        "--json",
        "--no-checks",
        "--expects",
        "either",
        "--agent",
        agent,
        "--placement",
        "tight",
        "--grant",
        "lead",
        "Lead the others",
    ];
    let task = world.dispatch(&args).exits(0).json();
    task["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn claude_code_leads_from_a_cage_without_a_network() {
    let (npm, _) = triple();
    let native = format!("@anthropic-ai/claude-code-linux-{npm}/claude");
    let musl = format!("@anthropic-ai/claude-code-linux-{npm}-musl/claude");
    let Some(claude) = installed(&[&native, &musl]) else {
        return;
    };
    // It looks a tool up before it has it.
    let names = "select:mcp__dispatch__dispatch,mcp__dispatch__wait";
    let look = json!({"tool": "ToolSearch", "args": {"query": names}});
    let script = TestWorld::new();
    let (url, log) = model(&script, &json!([vec![look], steps("")].concat())).await;
    let key = key_file(&script);
    let world = TestWorld::with_config(&format!(
        "{GRANT}{PATIENT}[agents.claude]\nprogram = {claude:?}\npool = \"default\"\n\
         [agents.claude.env]\nANTHROPIC_API_KEY = {{ file = {key:?} }}\n\
         CLAUDE_CODE_MAX_RETRIES = \"1\"\n[agents.claude.broker]\nkey = \"ANTHROPIC_API_KEY\"\n\
         base_url = \"ANTHROPIC_BASE_URL\"\nupstream = \"{url}\"\n"
    ));
    let lead = start(&world, "claude");
    led(&world, &lead, "\"name\":\"mcp__dispatch__wait\"");
    has_led(&world, &lead, &log);
}

#[tokio::test(flavor = "multi_thread")]
async fn codex_leads_from_a_cage_without_a_network() {
    let (npm, arch) = triple();
    let below = format!("@openai/codex-linux-{npm}/vendor/{arch}-unknown-linux-musl/bin/codex");
    let Some(codex) = installed(&[&below]) else {
        return;
    };
    let script = TestWorld::new();
    let (url, log) = model(&script, &json!(steps(""))).await;
    let key = key_file(&script);
    let world = TestWorld::with_config(&format!(
        "{GRANT}{PATIENT}[agents.codex]\nprogram = {codex:?}\npool = \"default\"\n\
         args = [\"-m\", \"any\", \"-c\", \"model_provider=fake\", \"-c\", \
         '''model_providers.fake={{name=\"Fake\",base_url=\"{{broker_url}}/v1\",\
         wire_api=\"responses\",env_key=\"FAKE_KEY\"}}''']\n\
         [agents.codex.env]\nFAKE_KEY = {{ file = {key:?} }}\n\
         [agents.codex.broker]\nkey = \"FAKE_KEY\"\nupstream = \"{url}\"\n"
    ));
    let lead = start(&world, "codex");
    led(&world, &lead, "\"tool\":\"wait\"");
    has_led(&world, &lead, &log);
}

/// The same with our own agent, whose tools are the very same server. A list of its own tools says
/// nothing of those.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_agent_leads_from_a_cage_without_a_network() {
    let script = TestWorld::new();
    let (url, log) = model(&script, &json!(steps(""))).await;
    let key = key_file(&script);
    let world = TestWorld::with_config(&format!(
        "{GRANT}{PATIENT}[keys.main]\nprovider = \"anthropic\"\nbase_url = \"{url}\"\n\
         key = {{ file = {key:?} }}\n[agents.native]\npool = \"default\"\npermissions = \"allow\"\ntools = [\"read_file\"]\n\
         chain = [{{ key = \"main\", model = \"any\" }}]\n"
    ));
    let lead = start(&world, "native");
    // A call, and not the list of what it was told of.
    led(&world, &lead, "\"name\":\"dispatch__wait\",\"input\"");
    has_led(&world, &lead, &log);
}
