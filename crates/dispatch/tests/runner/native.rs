//! Our own agent from a person's command to a branch: `dispatch run --agent native` with the real
//! binary, and a scripted model in this process behind a door that notes what comes through it.
//! Must not be about what the agent does by itself; `crates/agent` has tests of that.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use dispatch_core::{Millis, config::Config};
use dispatch_test_programs::fake_model::{Log, Server};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use rustix::process::{Pid, Signal, kill_process};

use super::world::{TestWorld, children, pid_of};

pub(super) const KEY: &str = "sk-ant-api03-the-real-key-0123456789abcdef";

/// Whom an agent asks: scripts by name, and what came through the door.
pub(super) struct Model {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    came: Arc<Notify>,
    log: PathBuf,
}

impl Model {
    /// Each script is a provider of its own, at its name.
    pub(super) async fn new(world: &TestWorld, scripts: &[(&str, Value)]) -> Self {
        let (dir, log) = (world.path("scripts"), world.path("model.log"));
        fs::create_dir_all(&dir).unwrap();
        for (name, steps) in scripts {
            fs::write(dir.join(format!("{name}.json")), steps.to_string()).unwrap();
        }
        let server = Server::new(None, Some(dir.clone()), Log::open(Some(&log)).unwrap()).unwrap();
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = inner.local_addr().unwrap();
        tokio::spawn(Arc::new(server).serve(inner));
        let heads = Arc::default();
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", door.local_addr().unwrap());
        let came = Arc::default();
        tokio::spawn(note(door, address, Arc::clone(&heads), Arc::clone(&came)));
        Self {
            url,
            heads,
            came,
            log,
        }
    }

    /// A key's table, which asks this script.
    pub(super) fn key(&self, name: &str) -> String {
        format!(
            "[keys.{name}]\nprovider = \"anthropic\"\nbase_url = \"{}/s/{name}\"\n\
             key = {{ from = \"{}_KEY\" }}\n",
            self.url,
            name.to_uppercase()
        )
    }

    /// Until something with these words was asked.
    async fn until_asked(&self, words: &str) {
        loop {
            let came = self.came.notified();
            if self.seen().contains(words) {
                return;
            }
            came.await;
        }
    }

    fn seen(&self) -> String {
        self.heads.lock().unwrap().join("\n")
    }

    /// What the model was asked, request by request.
    pub(super) fn asked(&self) -> Vec<Value> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let records = log.lines().map(|line| serde_json::from_str(line).unwrap());
        records
            .filter(|record: &Value| record["kind"] == "step")
            .collect()
    }
}

/// Hands every connection on, and keeps what is asked there.
async fn note(
    door: TcpListener,
    to: std::net::SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    came: Arc<Notify>,
) {
    while let Ok((mut client, _)) = door.accept().await {
        let (heads, came) = (Arc::clone(&heads), Arc::clone(&came));
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = client.read_u8().await else {
                    return;
                };
                head.push(byte);
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            heads.lock().unwrap().push(text);
            let Ok(mut server) = TcpStream::connect(to).await else {
                return;
            };
            if server.write_all(&head).await.is_err() {
                return;
            }
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let back = async {
                copy(&mut from_server, &mut to_client).await.ok();
                to_client.shutdown().await.ok();
            };
            // What follows on the same connection is kept as well.
            let on = async {
                let mut bytes = vec![0; 64 << 10];
                while let Ok(n @ 1..) = from_client.read(&mut bytes).await {
                    let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                    heads.lock().unwrap().push(text);
                    came.notify_one();
                    if to_server.write_all(&bytes[..n]).await.is_err() {
                        return;
                    }
                }
            };
            // One side may end before the other, as connections do.
            tokio::join!(back, on);
        });
    }
}

pub(super) fn configure(world: &TestWorld, text: &str) {
    let path = world.home().join("dispatch.toml");
    let before = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{text}\n{before}")).unwrap();
}

fn broken(world: &TestWorld) {
    fs::write(world.repo().join("greet.sh"), "echo helo\n").unwrap();
    fs::write(
        world.repo().join("check.sh"),
        "test \"$(sh greet.sh)\" = hello\n",
    )
    .unwrap();
    world.commit();
}

const CHECK: &str = "[checks.greet]\nrank = 1\nmarkers = [{ file = \"greet.sh\" }]\n\
                     steps = [{ name = \"test\", argv = [\"sh\", \"check.sh\"] }]\n";

fn mends() -> Value {
    let edits = json!([{"old": "helo", "new": "hello"}]);
    json!([
        {"text": "I look first.", "tool": "shell", "command": "cat greet.sh"},
        {"tool": "edit_file", "args": {"path": "greet.sh", "edits": edits}},
        {"text": "The greeting is mended.", "repeat": true},
    ])
}

/// A task that goes on in the background, by a key that is there.
fn begun(world: &TestWorld, args: &[&str]) -> String {
    let all = [
        &[
            "run",
            "--agent",
            "native",
            "--detach",
            "--json",
            "--no-checks",
        ][..],
        args,
    ];
    let keys = ["MAIN_KEY", "NEXT_KEY"].map(|name| (name, KEY));
    let task = world.dispatch_with(&keys, &all.concat()).exits(0).json();
    task["id"].as_str().unwrap().to_owned()
}

/// Its task as it ended.
pub(super) fn ended(world: &TestWorld, id: &str) -> Value {
    world.dispatch(&["wait", id]);
    world.show(id)
}

pub(super) fn results(world: &TestWorld, id: &str) -> String {
    let events = world
        .dispatch(&["events", "--json", "--task", id])
        .exits(0)
        .out;
    let lines = events.lines().filter(|line| line.contains("tool_result"));
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fix_passes_its_check_in_the_cage() {
    let world = TestWorld::new();
    broken(&world);
    let model = Model::new(&world, &[("main", mends())]).await;
    configure(&world, &format!("{}{CHECK}", model.key("main")));
    let done = world.dispatch_with(
        &[("MAIN_KEY", KEY)],
        &[
            "run",
            "--agent",
            "native",
            "--model",
            "main/claude-x",
            "--effort",
            "high",
            "--json",
            "Mend the greeting",
        ],
    );
    let task = done.exits(0).json();
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(task["verified"], "yes", "{task}");
    let chain = json!([{"key": "main", "model": "claude-x", "effort": null}]);
    assert_eq!(task["chain"], chain);
    let asked = model.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked[0].to_string().contains("Mend the greeting"),
        "{asked:?}"
    );
    assert_eq!(asked[0]["effort"], "high", "{}", asked[0]);
    let usage = &task["runs"][0]["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["turns"]),
        (&json!(300), &json!(3))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_goes_to_its_provider_and_is_nowhere_in_the_cage() {
    let world = TestWorld::new();
    let look = "cat /proc/[0-9]*/environ | tr '\\0' '\\n' > $TMPDIR/all; \
                grep -q DISPATCH_KEY_main=dispatch-placeholder $TMPDIR/all && echo a placeholder; \
                grep -q the-real-key $TMPDIR/all || echo and no key";
    let steps = json!([{"tool": "shell", "command": look}, {"text": "Seen.", "repeat": true}]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let id = begun(
        &world,
        &["--model", "m", "--expects", "either", "Look around"],
    );
    assert_eq!(ended(&world, &id)["state"], "completed");
    let seen = results(&world, &id);
    assert!(
        seen.contains("a placeholder") && seen.contains("and no key"),
        "{seen}"
    );
    assert!(
        model.seen().contains(&format!("x-api-key: {KEY}")),
        "{}",
        model.seen()
    );
    let shown = world.dispatch(&["config", "show"]).exits(0).out;
    assert!(
        shown.contains("MAIN_KEY") && !shown.contains("the-real-key"),
        "{shown}"
    );
}

/// What a model runs is of the same user and sees the same `/proc`.
#[tokio::test(flavor = "multi_thread")]
async fn no_command_speaks_for_the_agent_or_for_whoever_answers_it() {
    let world = TestWorld::new();
    let forge = "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || for fd in 0 1; do \
                 (echo forged > $p/fd/$fd) 2>> $TMPDIR/refused; done; done; \
                 grep -c denied $TMPDIR/refused; echo tried";
    let steps = json!([{"tool": "shell", "command": forge}, {"text": "Seen.", "repeat": true}]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let args = ["--model", "m", "--expects", "either", "Speak for it"];
    let id = begun(&world, &args);
    assert_eq!(ended(&world, &id)["state"], "completed");
    let seen = results(&world, &id);
    assert!(seen.contains("tried"), "{seen}");
    let record = world.dispatch(&["logs", &id]).exits(0).out;
    for line in record.lines() {
        assert!(line.starts_with("{\"n\":"), "{line}");
    }
    assert!(!record.contains("no order"), "{record}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_is_answered_once_or_for_the_whole_task() {
    let world = TestWorld::new();
    let shell = |command: &str| json!({"tool": "shell", "command": command});
    let steps = json!([
        shell("echo one >> one.txt"),
        shell("echo one >> one.txt"),
        shell("echo two > two.txt"),
        {"text": "Done as far as I may.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    let ask = "[agents.native.groups]\nshell = \"ask\"\n";
    configure(&world, &format!("{}{ask}", model.key("main")));
    let id = begun(&world, &["--model", "m", "Write both"]);
    let mut events = world.follow(&["events", "-f", "--task", &id]);
    events.until("asks 1 for run_shell");
    let ask = &world.show(&id)["asks"][0];
    assert_eq!(ask["input"], "echo one >> one.txt");
    world.dispatch(&["allow", &id, "--always"]).exits(0);
    // The same again is not asked for.
    events.until("asks 2 for run_shell");
    assert_eq!(world.show(&id)["asks"][1]["input"], "echo two > two.txt");
    world
        .dispatch(&["deny", &id, "--why", "one is enough"])
        .exits(0);
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    let diff = world.dispatch(&["diff", &id]).exits(0).out;
    assert!(
        diff.contains("one.txt") && !diff.contains("two.txt"),
        "{diff}"
    );
    assert_eq!(diff.matches("+one").count(), 2, "{diff}");
    let last = model.asked().pop().unwrap();
    assert!(
        last["prompt"].to_string().contains("one is enough"),
        "{last}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_for_and_what_does_not_is_asked_of_the_next() {
    let world = TestWorld::new();
    let limited = json!([{"status": 429, "retry_after_s": 3600, "repeat": true}]);
    let away = json!([
        {"status": 529, "message": "Overloaded", "times": 2},
        {"tool": "write", "path": "a.txt", "content": "one"},
        {"text": "Written.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", limited), ("next", away)]).await;
    let chain = "[native]\nretry_ms = 1\n[agents.native]\nchain = [{ key = \"main\", model = \"m1\" }, \
                 { key = \"next\", model = \"m2\" }]\n";
    configure(
        &world,
        &format!("{}{}{chain}", model.key("main"), model.key("next")),
    );
    let id = begun(&world, &["Write one"]);
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    let told = world.dispatch(&["events", "--task", &id]).exits(0).out;
    for word in [
        "key main is out until",
        "model changed from m1 of key main to m2 of key next",
        "waiting until",
        "Overloaded",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    world
        .dispatch(&["show", &id])
        .exits(0)
        .says(&["model changed from m1 of key main"]);
    // One run: what was done stays done.
    assert_eq!(task["runs"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_in_the_middle_is_heard_at_the_next_step() {
    let world = TestWorld::new();
    let steps = json!([
        {"tool": "shell", "command": "echo be''gun; sleep 600"},
        {"tool": "write", "path": "a.txt", "content": "heard"},
        {"text": "As you say.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let id = begun(&world, &["--model", "m", "Wait for it"]);
    world.follow(&["logs", "-f", &id]).until("begun");
    let say = ["say", &id, "write that you heard"];
    world
        .dispatch_with(&[("MAIN_KEY", KEY)], &say)
        .exits(0)
        .says(&["on its way"]);
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(task["runs"].as_array().unwrap().len(), 1);
    let second = &model.asked()[1];
    assert!(
        second["prompt"]
            .to_string()
            .contains("write that you heard"),
        "{second}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_can_be_had_back_until_the_model_has_it() {
    let world = TestWorld::new();
    let steps = json!([{"hang": true}, {"text": "As you say.", "repeat": true}]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let id = begun(
        &world,
        &["--model", "m", "--expects", "either", "Wait for it"],
    );
    model.until_asked("Wait for it").await;
    let say = |text: &str| {
        let say = ["say", &id, text];
        world.dispatch_with(&[("MAIN_KEY", KEY)], &say).exits(0)
    };
    say("a word too many").says(&["message 1: on its way"]);
    say("a good word").says(&["message 2: on its way"]);
    let states = || {
        let task = world.show(&id);
        let messages = task["messages"].as_array().unwrap().clone();
        messages
            .iter()
            .map(|message| message["state"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(states(), ["on_its_way", "on_its_way"]);
    let unsay = |n: &str| world.dispatch(&["unsay", &id, n]);
    unsay("1").exits(0).says(&["message 1: taken back"]);
    assert_eq!(states(), ["cancelled", "on_its_way"]);
    unsay("1")
        .exits(2)
        .says(&["message 1 is cancelled already"]);

    // What it had not heard when it was stopped is for the next run, and then it is heard.
    world.dispatch(&["stop", &id]).exits(0);
    ended(&world, &id);
    assert_eq!(states(), ["cancelled", "waiting"]);
    say("go on");
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(states(), ["cancelled", "delivered", "delivered"]);
    unsay("2")
        .exits(2)
        .says(&["message 2 is delivered already"]);
    let seen = model.seen();
    assert!(
        seen.contains("a good word") && !seen.contains("a word too many"),
        "{seen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_takes_away_and_never_gives() {
    let world = TestWorld::new();
    let steps = json!([
        {"tool": "write", "path": "kept.lock", "content": "changed"},
        {"tool": "shell", "command": "echo one > a.txt"},
        {"text": "Done as far as I may.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    let deny = "[agents.native.groups]\nshell = \"deny\"\n";
    configure(&world, &format!("{}{deny}", model.key("main")));
    let rules = "[task]\nrules = [{ group = \"edit\", pattern = \"*.lock\", action = \"deny\" }, \
                 { group = \"shell\", pattern = \"*\", action = \"allow\" }]\n";
    fs::write(world.repo().join("dispatch.toml"), rules).unwrap();
    world.commit();
    let id = begun(&world, &["--model", "m", "--expects", "report", "Try both"]);
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    let seen = results(&world, &id);
    for word in ["a rule for edit denies it", "a rule for shell denies it"] {
        assert!(seen.contains(word), "{word}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_comes_with_a_request_and_another_with_what_is_said_later() {
    let world = TestWorld::new();
    let says = |text: &str| json!([{"text": text, "repeat": true}]);
    let scripts = [
        ("main", says("I am the first.")),
        ("next", says("I am the other.")),
    ];
    let model = Model::new(&world, &scripts).await;
    configure(
        &world,
        &format!("{}{}", model.key("main"), model.key("next")),
    );
    world.serve();
    let secrets = json!({"MAIN_KEY": KEY, "NEXT_KEY": KEY});
    let asked = |key: &str| {
        json!({
            "task": "Say who you are", "repo": world.repo(), "agent": "native",
            "expects": "report", "checks": "none", "secrets": secrets,
            "chain": [{"key": key, "model": "m", "effort": "none"}],
        })
    };
    let (status, problem) = world
        .http("POST", "/v1/tasks", &asked("gone").to_string())
        .unwrap();
    assert_eq!(status, 400, "{problem}");
    assert!(
        problem.to_string().contains("there are main, next"),
        "{problem}"
    );
    let (status, task) = world
        .http("POST", "/v1/tasks", &asked("main").to_string())
        .unwrap();
    assert_eq!(status, 202, "{task}");
    let id = task["id"].as_str().unwrap().to_owned();
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    let said = json!({
        "text": "And now?", "secrets": secrets,
        "chain": [{"key": "next", "model": "m2"}],
    });
    let path = format!("/v1/tasks/{id}/say");
    let (status, told) = world.http("POST", &path, &said.to_string()).unwrap();
    assert_eq!(status, 200, "{told}");
    let task = ended(&world, &id);
    assert_eq!(task["chain"][0]["key"], "next", "{task}");
    let last = model.asked().pop().unwrap();
    assert_eq!(last["script"], "next", "{last}");
    // Another model, and the same conversation.
    assert!(
        last["earlier"].to_string().contains("I am the first."),
        "{last}"
    );
}

/// Processes below a keeper, nearest first.
fn below(pid: Pid) -> Vec<Pid> {
    let mut found = children(pid);
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        found.extend(children(pid));
        at += 1;
    }
    found
}

/// The agent of a run, whatever stands around it.
fn agent(world: &TestWorld, id: &str) -> Pid {
    let runs = &world.show(id)["runs"];
    let keeper = pid_of(&runs.as_array().unwrap().last().unwrap()["pid"]);
    let is_agent = |pid: &Pid| {
        let raw = pid.as_raw_pid();
        let argv = fs::read(format!("/proc/{raw}/cmdline")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{raw}/comm")).unwrap_or_default();
        argv.ends_with(b"\0agent\0") && !name.starts_with("bwrap")
    };
    below(keeper).into_iter().rfind(is_agent).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_all_of_it_within_a_second() {
    let world = TestWorld::new();
    let steps = json!([
        {"tool": "shell", "command": "sleep 600 & echo be''gun; sleep 600"},
        {"text": "Never said.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let id = begun(&world, &["--model", "m", "Wait for it"]);
    world.follow(&["logs", "-f", &id]).until("begun");
    let all = below(agent(&world, &id));
    assert!(all.len() >= 2, "{all:?}");
    let asked = std::time::Instant::now();
    world.dispatch(&["stop", &id]).exits(0);
    let task = ended(&world, &id);
    let took = asked.elapsed();
    assert_eq!(task["state"], "stopped", "{task}");
    for pid in all {
        super::world::ended(pid);
    }
    // Two commands of ours and a busy machine are in it; its own grace of 10 s must not be.
    assert!(took.as_secs() < 8, "{took:?}");
    assert_eq!(model.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_goes_on_where_it_was() {
    let world = TestWorld::new();
    let steps = json!([
        {"text": "I begin with this.", "tool": "write", "path": "a.txt", "content": "one"},
        {"tool": "shell", "command": "echo be''gun; sleep 600"},
        {"text": "I have gone on.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let id = begun(&world, &["--model", "m", "Do it in two parts"]);
    world.follow(&["logs", "-f", &id]).until("begun");
    kill_process(agent(&world, &id), Signal::KILL).unwrap();
    let task = ended(&world, &id);
    assert_eq!(task["state"], "failed", "{task}");
    let again = ["retry", &id, "--follow"];
    world.dispatch_with(&[("MAIN_KEY", KEY)], &again).exits(0);
    let task = world.show(&id);
    assert_eq!(task["state"], "completed", "{task}");
    let (first, second) = (&task["runs"][0]["session"], &task["runs"][1]["session"]);
    assert!(first.is_string() && first == second, "{task}");
    let last = model.asked().pop().unwrap();
    for word in [
        "Do it in two parts",
        "I begin with this.",
        "this call was interrupted",
    ] {
        assert!(last.to_string().contains(word), "{word}: {last}");
    }
    assert_eq!(model.asked().len(), 3);
}

/// Also not one that is led by the same engine, asks with the same key and works on the same repository.
#[tokio::test(flavor = "multi_thread")]
async fn row_14_an_agent_that_dies_takes_no_other_along() {
    let world = TestWorld::new();
    let dies = json!([{"tool": "shell", "command": "echo be''gun; sleep 600"}]);
    let lives = json!([
        {"tool": "shell", "command": "echo be''gun; until [ -e go ]; do sleep 0.02; done"},
        {"tool": "write", "path": "a.txt", "content": "one"},
        {"text": "Done.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", dies), ("next", lives)]).await;
    configure(&world, &(model.key("main") + &model.key("next")));
    let [dead, alive] = ["main/m", "next/m"].map(|model| {
        let id = begun(&world, &["--model", model, "Wait for it"]);
        world.follow(&["logs", "-f", &id]).until("begun");
        id
    });
    kill_process(agent(&world, &dead), Signal::KILL).unwrap();
    assert_eq!(ended(&world, &dead)["state"], "failed");
    let workspace = world.show(&alive)["workspace"].clone();
    fs::write(PathBuf::from(workspace.as_str().unwrap()).join("go"), "").unwrap();
    let task = ended(&world, &alive);
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(
        (task["runs"].as_array().unwrap().len(), world.engines()),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_was_killed_is_followed_by_one_that_goes_on() {
    let world = TestWorld::new();
    let steps = json!([
        {"tool": "shell", "command": "echo be''gun; until [ -e go ]; do sleep 0.02; done"},
        {"tool": "write", "path": "a.txt", "content": "one"},
        {"text": "Done.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    configure(&world, &model.key("main"));
    let id = begun(&world, &["--model", "m", "Go on whatever happens"]);
    world.follow(&["logs", "-f", &id]).until("begun");
    world.kill_engine();
    let workspace = world.show(&id)["workspace"].clone();
    fs::write(PathBuf::from(workspace.as_str().unwrap()).join("go"), "").unwrap();
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(
        (task["runs"].as_array().unwrap().len(), world.engines()),
        (1, 2)
    );
    assert_eq!(model.asked().len(), 3);
    let events = world
        .dispatch(&["events", "--json", "--task", &id])
        .exits(0)
        .out;
    assert_eq!(
        events.matches("\"name\":\"write_file\"").count(),
        1,
        "{events}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_before_anything_starts() {
    let world = TestWorld::new();
    let refused = json!([{"status": 401, "message": "invalid x-api-key", "repeat": true}]);
    let model = Model::new(&world, &[("main", refused)]).await;
    let run = |args: &[&str]| {
        let all = [
            &["run", "--agent", "native", "--no-checks"][..],
            args,
            &["Do it"],
        ];
        world.dispatch_with(&[("MAIN_KEY", KEY)], &all.concat())
    };
    run(&["--model", "m"])
        .exits(2)
        .says(&["no key is configured", "[keys.NAME]"]);
    configure(&world, &model.key("main"));
    run(&[])
        .exits(2)
        .says(&["no model is asked for", "--model KEY/MODEL"]);
    run(&["--model", "other/m"])
        .exits(2)
        .says(&["there is no key other; there are main"]);
    world
        .dispatch(&["run", "--agent", "native", "--model", "m", "Do it"])
        .exits(2)
        .says(&["MAIN_KEY", "not set"]);
    assert!(world.engine().is_none(), "nothing was started");
    run(&["--model", "m"])
        .exits(1)
        .says(&["the key is refused", "invalid x-api-key"]);
    // One key, one try, and once more because it may have been renewed.
    assert!(model.asked().len() <= 2, "{:?}", model.asked());
}

/// From a person's flag to what the model sees, and again in the run of the next message.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_is_attached_is_shown_to_the_model() {
    let world = TestWorld::new();
    let says = json!([{"text": "I see it.", "repeat": true}]);
    let model = Model::new(&world, &[("main", says)]).await;
    configure(&world, &model.key("main"));
    let file = |name: &str, bytes: &[u8]| {
        let path = world.path(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let png = file("shot.dat", b"\x89PNG\r\n\x1a\n and its lines");
    let pdf = file("spec.pdf", b"%PDF-1.7 and its pages");
    let text = file("notes.txt", b"only words");
    let args = ["--expects", "report", "--model", "main/m", "--attach", &png];
    let id = begun(&world, &[&args[..], &["--attach", &text, "Look"]].concat());
    ended(&world, &id);
    let said = world.dispatch_with(
        &[("MAIN_KEY", KEY)],
        &["say", &id, "--attach", &pdf, "And at this"],
    );
    said.exits(0);
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    let asked = model.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let hashes: Vec<&str> = task["attachments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["sha256"].as_str().unwrap())
        .collect();
    let seen = |asked: &Value| -> Vec<(String, String)> {
        let media = asked["media"].as_array().unwrap().iter();
        let word = |part: &Value, name: &str| part[name].as_str().unwrap().to_owned();
        media
            .map(|part| (word(part, "type"), word(part, "sha256")))
            .collect()
    };
    let shot = ("image/png".to_owned(), hashes[0].to_owned());
    let spec = ("application/pdf".to_owned(), hashes[2].to_owned());
    assert_eq!(seen(&asked[0]), std::slice::from_ref(&shot));
    assert_eq!(seen(&asked[1]), [shot, spec]);
    let told = asked[0]["prompt"].as_str().unwrap();
    assert!(told.contains("notes.txt (unsupported-type)"), "{told}");
}

/// The agent has a placeholder only, so whoever holds the key reads it again where it comes from.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_renewed_is_taken_up_behind_the_fence() {
    const NEWER: &str = "sk-ant-api03-the-newer-key-0123456789abcdef";
    let world = TestWorld::new();
    let refused = json!({"status": 401, "message": "invalid x-api-key"});
    let mut refused_for_good = refused.clone();
    refused_for_good["repeat"] = json!(true);
    let renewed = json!([refused, {"text": "Done.", "repeat": true}]);
    let scripts = [("main", renewed), ("next", json!([refused_for_good]))];
    let model = Model::new(&world, &scripts).await;
    let (asked, keys) = (world.path("asked"), world.path("keys"));
    fs::write(&keys, format!("{KEY}\n{NEWER}\n")).unwrap();
    // Each time it is asked it says the next key, and then the last one again.
    let program = format!(
        "echo >> {0}; n=$(wc -l < {0}); [ $n -gt 2 ] && n=2; sed -n ${{n}}p {1}",
        asked.display(),
        keys.display()
    );
    let from = |key: &str| format!("key = {{ from = \"{}_KEY\" }}", key.to_uppercase());
    let command = format!("key = {{ command = [\"sh\", \"-c\", '''{program}'''] }}");
    let tables = ["main", "next"].map(|key| model.key(key).replace(&from(key), &command));
    configure(&world, &tables.concat());
    let run = |key: &str| {
        fs::write(&asked, "").unwrap();
        let model = format!("{key}/m");
        let args = ["--model", &model, "--expects", "either", "Do it"];
        let id = begun(&world, &args);
        let task = ended(&world, &id);
        (task, fs::read_to_string(&asked).unwrap().lines().count())
    };
    let (task, times) = run("main");
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(times, 2);
    let seen = model.seen();
    let at = |key| seen.find(&format!("x-api-key: {key}"));
    assert!(at(KEY).is_some() && at(KEY) < at(NEWER), "{seen}");

    // Another that is refused as well is one request more, and no third look.
    let before = model.asked().len();
    let (task, times) = run("next");
    assert_eq!(task["state"], "failed", "{task}");
    assert_eq!((model.asked().len() - before, times), (2, 2));
    let shown = world.dispatch(&["events", "--json"]).exits(0).out;
    assert!(!shown.contains("-key-0123456789"), "{shown}");
}

/// One task hears that a key is used up, and the next one knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_used_up_is_skipped_by_other_tasks_and_waited_for_where_there_is_no_other() {
    let world = TestWorld::new();
    let used_up = json!([{"status": 429, "message": "used up", "error_type": "billing_error",
        "retry_after_s": 2_592_000, "repeat": true}]);
    let left = json!({"anthropic-ratelimit-tokens-limit": "100",
        "anthropic-ratelimit-tokens-remaining": "7"});
    let works = json!([{"text": "Done.", "headers": left, "repeat": true}]);
    let model = Model::new(&world, &[("main", used_up), ("next", works)]).await;
    let chain = "[agents.native]\nchain = [{ key = \"main\", model = \"m\" }, \
                 { key = \"next\", model = \"m\" }]\n";
    let tables = format!("{}{}{chain}", model.key("main"), model.key("next"));
    configure(&world, &tables);
    let asked = || {
        let asked = model.asked();
        let scripts = asked.iter().map(|asked| asked["script"].as_str().unwrap());
        scripts.map(str::to_owned).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let id = begun(&world, &["--expects", "either", "Do it"]);
        let task = ended(&world, &id);
        assert_eq!(task["state"], "completed", "{task}");
    }
    assert_eq!(asked(), ["main", "next", "next"]);
    // Its provider said a month, and no word of one is kept for longer than may be.
    let events = world.dispatch(&["events", "--json"]).exits(0).out;
    let events = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let until: Vec<Millis> = events
        .filter(|event| event["kind"] == "key_heard")
        .filter_map(|event| event["news"]["out"]["until"].as_u64())
        .collect();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let latest =
        Millis::try_from(since.as_millis()).unwrap() + Config::defaults().gate.pause_max_s * 1000;
    assert!(matches!(until[..], [until] if until <= latest), "{until:?}");
    world.dispatch(&["usage"]).exits(0).says(&[
        "main         out until",
        "next         in use",
        "tokens: 7 of 100 left (cached",
    ]);
    let usage = world.dispatch(&["usage", "--json"]).exits(0).json();
    assert_eq!(usage["keys"][0]["name"], "main");
    assert!(usage["keys"][1]["told_at"].is_string(), "{usage}");

    // Whoever has nothing else waits, where a person sees for what, and holds up nobody.
    let args = ["--model", "main/m", "--expects", "either", "Wait for it"];
    let id = begun(&world, &args);
    let waiting = world.show(&id)["waiting"].clone();
    assert_eq!(waiting["why"], "keys", "{waiting}");
    let text = waiting["text"].as_str().unwrap();
    assert!(text.contains("no key can be asked: main until"), "{text}");
    let other = begun(&world, &["--expects", "either", "Do it"]);
    assert_eq!(ended(&world, &other)["state"], "completed");
    world.dispatch(&["stop", &id]).exits(0);
    assert_eq!(asked(), ["main", "next", "next", "next"]);
}

/// A person's word, through the public door, to what the model is asked in the next run.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_compacted_before_its_next_turn_when_a_person_says_so() {
    let world = TestWorld::new();
    let count = "for n in $(seq 1 900); do echo line $n; done";
    let says = json!([
        {"tool": "shell", "command": count},
        {"text": "I counted."},
        {"text": "As you say.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", says)]).await;
    configure(&world, &model.key("main"));
    let id = begun(
        &world,
        &["--expects", "report", "--model", "main/m", "Count"],
    );
    ended(&world, &id);
    let compact = world.dispatch(&["compact", &id]).exits(0);
    compact.says(&["before its next turn its conversation becomes shorter"]);
    assert_eq!(model.asked().len(), 2, "nothing is asked for it alone");
    let said = world.dispatch_with(&[("MAIN_KEY", KEY)], &["say", &id, "Go on"]);
    said.exits(0);
    let task = ended(&world, &id);
    assert_eq!(task["state"], "completed", "{task}");
    let asked = model.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    let earlier = asked[2]["earlier"].as_str().unwrap();
    assert!(earlier.contains("| Scripted notes."), "{earlier}");
    assert!(!earlier.contains("line 899"), "{earlier}");
    let told = world.dispatch(&["events", "--json", "--task", &id]);
    told.exits(0).says(&["the conversation was compacted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_keeps_its_conversation_by_itself_is_not_told_to_compact_it() {
    let world = TestWorld::new();
    let done = world.dispatch(&["run", "--json", "--no-checks", "say hello"]);
    let id = done.json()["id"].as_str().unwrap().to_owned();
    let refused = world.dispatch(&["compact", &id]).exits(2);
    refused.says(&["keeps its conversation by itself"]);
}
