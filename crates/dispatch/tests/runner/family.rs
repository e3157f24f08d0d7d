//! Agents that dispatch agents, with the real command line, engine, fence and tools: the real Claude
//! Code and Codex call our tools from a cage without a network, over an engine's end. The model behind
//! them is a script. `DISPATCH_TEST_AGENTS` names the folder whose `node_modules` hold them
//! (`cargo xtask test` sets it); without it those are not tested here, said aloud.
//! Must not leave this machine, and must not read a login of the person's own.

use std::fs;

use serde_json::{Value, json};

use super::{
    mcp_clients::{KEY, installed, model, triple},
    world::{TestWorld, files},
};

/// It waits in a place that only its own workspace has.
const PATIENT: &str = "[agents.patient]\ndriver = \"plain\"\nprogram = \"sh\"\npool = \"default\"\n\
    args = [\"-c\", \"cat > /dev/null; echo begun; until [ -e go ]; do sleep 0.02; done; \
    echo it went well\"]\n";
const GRANT: &str = "[placements.tight]\nwrap = \"cage\"\nnetwork = \"none\"\n\
    [grants.lead]\ntools = [\"dispatch\", \"wait\", \"show\", \"list\"]\nagents = [\"patient\"]\n\
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
fn led(world: &TestWorld, lead: &str) {
    let mut watching = world.follow(&["logs", "-f", lead]);
    watching.until("wait");
    let first = child(world, lead, 0);
    begun_and_killed(world, &first);
    drop(watching);
    go(&first);
    world
        .follow(&["events", "--json"])
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
    assert_eq!(ends[0]["state"], "waited_for");
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
    let with_tokens = files(&world.home().join("data"));
    let tokens: Vec<_> = with_tokens
        .iter()
        .filter(|file| fs::read(file).is_ok_and(|bytes| holds(&bytes, b"dr_")))
        .collect();
    assert_eq!(tokens, Vec::<&std::path::PathBuf>::new());
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn steps(waits: &str) -> Vec<Value> {
    vec![
        json!({"tool": "dispatch", "args": {"task": "First\nWait until you may go."}}),
        json!({"tool": "wait", "args": {"timeout_s": 600}, "text": waits}),
        json!({"tool": "dispatch", "args": {"task": "Second\nWait until you may go."}}),
        json!({"text": "I go on when it has ended."}),
        json!({"text": "Finished.", "repeat": true}),
    ]
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
    let task = world
        .dispatch_with(&[("TEST_KEY", KEY)], &args)
        .exits(0)
        .json();
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
    let world = TestWorld::with_config(&format!(
        "{GRANT}{PATIENT}[agents.claude]\nprogram = {claude:?}\npool = \"default\"\n\
         [agents.claude.env]\nANTHROPIC_API_KEY = {{ from = \"TEST_KEY\" }}\n\
         CLAUDE_CODE_MAX_RETRIES = \"1\"\n[agents.claude.broker]\nkey = \"ANTHROPIC_API_KEY\"\n\
         base_url = \"ANTHROPIC_BASE_URL\"\nupstream = \"{url}\"\n"
    ));
    let lead = start(&world, "claude");
    led(&world, &lead);
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
    let world = TestWorld::with_config(&format!(
        "{GRANT}{PATIENT}[agents.codex]\nprogram = {codex:?}\npool = \"default\"\n\
         args = [\"-m\", \"any\", \"-c\", \"model_provider=fake\", \"-c\", \
         '''model_providers.fake={{name=\"Fake\",base_url=\"{{broker_url}}/v1\",\
         wire_api=\"responses\",env_key=\"FAKE_KEY\"}}''']\n\
         [agents.codex.env]\nFAKE_KEY = {{ from = \"TEST_KEY\" }}\n\
         [agents.codex.broker]\nkey = \"FAKE_KEY\"\nupstream = \"{url}\"\n"
    ));
    let lead = start(&world, "codex");
    led(&world, &lead);
    has_led(&world, &lead, &log);
}
