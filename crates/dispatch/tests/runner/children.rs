//! Our own agent summons others: definitions of a person and of a repository, what a child has of its
//! caller, and who hears of its end. The real binary, its fence and its door; the models are scripts.
//! Must not test who may do what at the door; `core::family` has tests of that.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde_json::{Value, json};

use super::{
    family::Voice,
    native::{KEY, Model, configure, ended, results},
    world::TestWorld,
};

const KEEPER: &str = "name = \"The keeper\"\ndescription = \"stands alone\"\n\
    [[models]]\nkey_id = \"next\"\nmodel_id = \"m2\"\n";
const EXPLORER: &str = "---\ndescription: looks for things\nis_subagent: true\n\
    models: [next/m2]\n---\nYou look and never touch.\n";

/// A world whose native agent asks these scripts, the first one by itself.
struct Stage {
    world: TestWorld,
    model: Model,
}

impl Stage {
    async fn new(scripts: &[(&str, Value)], more: &str) -> Self {
        let world = TestWorld::new();
        let model = Model::new(&world, scripts).await;
        // Not a variable: the engine that comes after a crash has none of those.
        let file = world.path("key");
        let mut key = OpenOptions::new();
        let key = key.write(true).create_new(true).mode(0o600).open(&file);
        key.unwrap().write_all(KEY.as_bytes()).unwrap();
        let table = |(name, _): &(&str, Value)| {
            let from = format!("{{ from = \"{}_KEY\" }}", name.to_uppercase());
            model
                .key(name)
                .replace(&from, &format!("{{ file = {file:?} }}"))
        };
        let later = [("later", Value::Null)];
        let keys: String = scripts.iter().chain(&later).map(table).collect();
        let entry = |(n, (name, _)): (usize, &(&str, Value))| {
            format!("{{ key = \"{name}\", model = \"m{}\" }}", n + 1)
        };
        let chain: Vec<String> = scripts.iter().enumerate().map(entry).collect();
        let chain = format!("chain = [{}]\n", chain.join(", "));
        let agent = match more.strip_prefix("[agents.native]\n") {
            Some(rest) => format!("[agents.native]\n{chain}{rest}"),
            None => format!("[agents.native]\n{chain}{more}"),
        };
        configure(&world, &format!("{keys}{agent}"));
        Self { world, model }
    }

    /// Summoning needs no asking.
    async fn freely(scripts: &[(&str, Value)]) -> Self {
        Self::freely_with(scripts, "").await
    }

    async fn freely_with(scripts: &[(&str, Value)], more: &str) -> Self {
        let groups = "[agents.native.groups]\nsummon = \"allow\"\nuser_agent = \"allow\"\n\
                      send_to_tab = \"allow\"\nread_tab = \"allow\"\n";
        Self::new(scripts, &format!("{more}{groups}")).await
    }

    /// What the key `later` answers, which is known only now.
    fn later(&self, steps: &Value) {
        write(
            &self.world.path("scripts"),
            "later.json",
            &steps.to_string(),
        );
    }

    /// From here on by that key.
    fn say(&self, task: &str, text: &str) {
        self.say_as(task, text, &["--model", "later/m"]);
    }

    fn say_as(&self, task: &str, text: &str, more: &[&str]) {
        let all = [&["say", task, text][..], more].concat();
        self.world.dispatch(&all).exits(0);
    }

    fn until(&self, task: &str, word: &str) {
        let args = ["events", "-f", "--json", "--task", task];
        self.world.follow(&args).until(word);
    }

    /// A child whose agent works until it may go.
    fn child_begun(&self, of: &str, n: usize) -> Value {
        let made = format!("\"parent\":\"{of}\"");
        self.world.follow(&["events", "-f", "--json"]).until(&made);
        let id = self.child(of, n)["id"].clone();
        let id = id.as_str().unwrap();
        self.world.follow(&["logs", "-f", id]).until("begun");
        self.world.show(id)
    }

    fn define(&self, file: &str, text: &str) {
        write(&self.world.home().join("agents"), file, text);
    }

    fn begun(&self, more: &[&str]) -> String {
        let args = [
            "run",
            "--agent",
            "native",
            "--detach",
            "--json",
            "--no-checks",
            "--expects",
            "either",
        ];
        let all = [&args[..], more, &["Lead the others"]].concat();
        let task = self.world.dispatch(&all).exits(0).json();
        task["id"].as_str().unwrap().to_owned()
    }

    /// What a script was asked, from its first request on.
    fn asked(&self, script: &str) -> Vec<Value> {
        let all = self.model.asked().into_iter();
        all.filter(|step| step["script"] == script).collect()
    }

    fn child(&self, of: &str, n: usize) -> Value {
        let id = self.world.show(of)["children"][n]["id"].clone();
        self.world.show(id.as_str().unwrap())
    }
}

fn write(folder: &Path, file: &str, text: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(file), text).unwrap();
}

/// Said to a model.
#[track_caller]
fn holds(text: &Value, part: &str) {
    let text = text.as_str().unwrap();
    assert!(text.contains(part), "{part}: {text}");
}

fn go(child: &Value) {
    let workspace = child["workspace_dir"].as_str().unwrap();
    fs::write(format!("{workspace}/go"), "").unwrap();
}

fn summon(args: &Value) -> Value {
    json!({"tool": "summon", "args": args})
}

fn says(text: &str) -> Value {
    json!({"text": text, "repeat": true})
}

/// Of an agent that works until somebody lets it end.
fn gated(text: &str) -> Value {
    let waits = "echo be''gun; until [ -e go ]; do sleep 0.02; done";
    json!([{"tool": "shell", "command": waits}, says(text)])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_waited_for_answers_in_the_call() {
    let lead = json!([
        summon(&json!({"task": "Find the tests", "agent": "explorer"})),
        says("It is done."),
    ]);
    let found = json!([says("They are in tests/.")]);
    let stage = Stage::freely(&[("main", lead), ("next", found)]).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    let told = stage.asked("main");
    assert_eq!(told.len(), 2, "{told:?}");
    holds(&told[0]["system"], "- explorer: looks for things");
    holds(&told[1]["prompt"], "They are in tests/.");
    let childs = stage.asked("next");
    assert_eq!(childs.len(), 1);
    holds(&childs[0]["system"], "You look and never touch.");
    holds(&childs[0]["prompt"], "Find the tests");
    let child = stage.child(&id, 0);
    assert_eq!(child["state"], "completed", "{child:#}");
    let chain = json!([{"key": "next", "model": "m2", "effort": null}]);
    assert_eq!(child["chain"], chain);
    assert_eq!(task["ends"][0]["state"], "waited_for", "{task:#}");
    assert_eq!(task["runs"].as_array().unwrap().len(), 1);
    assert!(results(&stage.world, &id).contains("agent_id: "));
}

/// As they were when it was summoned; one that is not there is an error that lists those that are.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_taught_the_skills_that_its_definition_names() {
    let lead = json!([
        summon(&json!({"task": "Look", "agent": "lost"})),
        summon(&json!({"task": "Look", "agent": "taught"})),
        says("It is done."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", json!([says("Looked.")]))]).await;
    let skill =
        |name: &str| format!("---\nis_subagent: true\nmodels: [next/m2]\nskills: [{name}]\n---\n");
    stage.define("lost.md", &skill("nothing"));
    stage.define("taught.md", &(skill("rust") + "Look.\n"));
    write(
        &stage.world.home().join("skills"),
        "rust.md",
        "Never unwrap.\n",
    );
    let id = stage.begun(&[]);
    assert_eq!(ended(&stage.world, &id)["state"], "completed");
    let told = stage.asked("main");
    holds(
        &told[1]["prompt"],
        "its skill nothing is not there; there are rust",
    );
    let system = &told.last().unwrap()["system"];
    assert!(
        !system.as_str().unwrap().contains("Never unwrap."),
        "{system}"
    );
    let child = stage.child(&id, 0);
    assert_eq!(child["state"], "completed", "{child:#}");
    let its = stage.asked("next").remove(0);
    holds(&its["system"], "# Skill rust");
    holds(&its["system"], "Never unwrap.");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_the_background_is_retrieved_by_its_first_digits() {
    let lead = json!([
        summon(&json!({"task": "Find it", "agent": "explorer", "background": true})),
        says("I go on when it has ended."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", gated("Found it."))]).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    stage.until(&id, "\"kind\":\"parked\"");
    let child = stage.child_begun(&id, 0);
    let handle = &child["id"].as_str().unwrap()[..6];
    stage.later(&json!([
        {"tool": "retrieve", "args": {"agent_id": &handle[..3]}},
        {"tool": "retrieve", "args": {"agent_id": &id}},
        {"tool": "read_tab", "args": {"tab_id": handle}},
        {"tool": "send_to_tab", "args": {"tab_id": handle, "message": "Hurry."}},
        {"tool": "retrieve", "args": {"agent_id": handle}},
        says("I have it."),
    ]));
    stage.say(&id, "Retrieve it");
    stage.until(&id, "said to ");
    go(&child);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    let results = results(&stage.world, &id);
    for part in ["is no handle", "is yourself", "is running.", "Found it."] {
        assert!(results.contains(part), "{part}: {results}");
    }
    // It may have ended just before it was waited for: then it was told, and is told again.
    let state = task["ends"][0]["state"].as_str().unwrap();
    assert!(["waited_for", "told"].contains(&state), "{task:#}");
    let heard = stage.asked("next").pop().unwrap();
    assert!(heard.to_string().contains("Hurry."), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_top_level_agent_goes_on_without_its_caller_and_is_nobodys_to_retrieve() {
    let lead = json!([
        summon(&json!({"task": "Stand alone", "agent": "keeper", "top_level": true})),
        {"tool": "shell", "command": "echo wai''ting; sleep 600"},
        says("Never said."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", gated("I am alone."))]).await;
    stage.define("keeper.toml", KEEPER);
    let id = stage.begun(&[]);
    stage.world.follow(&["logs", "-f", &id]).until("waiting");
    let child = stage.child_begun(&id, 0);
    assert_eq!(child["detached"], true);
    assert!(results(&stage.world, &id).contains("cannot be retrieved"));
    stage.world.dispatch(&["stop", &id]).exits(0);
    assert_eq!(ended(&stage.world, &id)["state"], "stopped");
    let own = child["id"].as_str().unwrap();
    assert_eq!(stage.world.show(own)["state"], "running");
    let handle = &own[..8];
    stage.later(&json!([
        {"tool": "retrieve", "args": {"agent_id": handle}},
        {"tool": "read_tab", "args": {"tab_id": handle}},
        says("So be it."),
    ]));
    stage.say(&id, "Retrieve it");
    assert_eq!(ended(&stage.world, &id)["state"], "completed");
    let results = results(&stage.world, &id);
    for part in ["stands for itself, and nobody retrieves it", "is running."] {
        assert!(results.contains(part), "{part}: {results}");
    }
    go(&child);
    assert_eq!(ended(&stage.world, own)["state"], "completed");
    assert_eq!(stage.world.show(&id)["ends"][0]["state"], "detached");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persons_word_lets_go_of_the_wait_and_the_end_is_told_once() {
    let lead = json!([
        summon(&json!({"task": "Find it", "agent": "explorer"})),
        {"text": "I heard."},
        says("It has ended."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", gated("Found it."))]).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    stage.until(&id, "\"name\":\"summon\"");
    let child = stage.child_begun(&id, 0);
    let say = ["say", &id, "leave it and listen"];
    stage.world.dispatch(&say).exits(0);
    stage.until(&id, "\"kind\":\"parked\"");
    let heard = stage.asked("main").pop().unwrap();
    let text = heard.to_string();
    for part in ["goes on by itself", "leave it and listen"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    go(&child);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    assert_eq!(task["ends"].as_array().unwrap().len(), 1);
    assert_eq!(task["ends"][0]["state"], "told", "{task:#}");
    let last = stage.asked("main").pop().unwrap();
    holds(&last["prompt"], "Found it.");
    assert!(!last["earlier"].to_string().contains("Found it."), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_those_it_waits_for() {
    let lead = json!([
        summon(&json!({"task": "Find it", "agent": "explorer"})),
        says("Never said."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", gated("Never found."))]).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    stage.until(&id, "\"name\":\"summon\"");
    let child = stage.child_begun(&id, 0);
    let asked = std::time::Instant::now();
    stage.world.dispatch(&["stop", &id]).exits(0);
    assert_eq!(ended(&stage.world, &id)["state"], "stopped");
    let took = asked.elapsed();
    // Commands of ours and a busy machine are in it; the agent's own grace of 10 s must not be.
    assert!(took.as_secs() < 8, "{took:?}");
    let child = ended(&stage.world, child["id"].as_str().unwrap());
    assert_eq!(child["state"], "stopped", "{child:#}");
    assert_eq!(stage.asked("main").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_killed_meanwhile_loses_no_end_and_makes_no_second_child() {
    let lead = json!([
        summon(&json!({"task": "Find it", "agent": "explorer"})),
        says("It is done."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", gated("Found it."))]).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    stage.until(&id, "\"name\":\"summon\"");
    let child = stage.child_begun(&id, 0);
    stage.world.kill_engine();
    stage.world.serve();
    go(&child);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    assert_eq!(task["children"].as_array().unwrap().len(), 1);
    assert_eq!(task["runs"].as_array().unwrap().len(), 1);
    let told = stage.asked("main");
    assert_eq!(told.len(), 2);
    holds(&told[1]["prompt"], "Found it.");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_summoned_is_refused_with_what_can() {
    let lead = json!([
        summon(&json!({"task": "x", "agent": "nobody"})),
        summon(&json!({"task": "x", "agent": "keeper"})),
        summon(&json!({"task": "x", "agent": "explorer", "top_level": true})),
        summon(&json!({"task": "x", "agent": "broken"})),
        summon(&json!({"task": "x", "agent": "explorer", "working_directory": "../.."})),
        summon(&json!({"task": "x", "agent": "explorer", "working_directory": "/etc"})),
        summon(&json!({"task": "x", "agent": "explorer", "tools": ["fly"]})),
        summon(&json!({"task": "x", "agent": "explorer", "working_directory": "out"})),
        says("I cannot."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", json!([says("Never.")]))]).await;
    stage.define("explorer.md", EXPLORER);
    stage.define("keeper.toml", KEEPER);
    stage.define("broken.md", "---\nname: x\nno colon\n---\n");
    // A link of the repository's is in every checkout of it.
    std::os::unix::fs::symlink("/etc", stage.world.repo().join("out")).unwrap();
    stage.world.commit();
    let id = stage.begun(&[]);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    let results = results(&stage.world, &id);
    for part in [
        "there is no such definition; there are explorer, keeper",
        "set top_level to true. Without top_level there are explorer",
        "leave top_level out. With top_level there are keeper",
        "line 3: it is no `key: value`",
        "it is not a directory below your own",
        "use tool \\\"fly\\\": it is not known",
        "work in out of the repository: it is no directory there",
    ] {
        assert!(results.contains(part), "{part}: {results}");
    }
    // The last one was made, and did not start.
    assert_eq!(task["children"].as_array().unwrap().len(), 1, "{task:#}");
    assert!(stage.asked("next").is_empty());
    let events = stage
        .world
        .dispatch(&["events", "--task", &id])
        .exits(0)
        .out;
    assert!(
        events.contains("broken.md of the person: line 3"),
        "{events}"
    );
}

/// A rule names files of the checkout, and they have the same names for whoever works in a part of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_no_way_out_from_under_a_rule() {
    let lead = json!([
        summon(&json!({"task": "Look", "agent": "explorer", "working_directory": "secrets"})),
        says("It is done."),
    ]);
    let read = |path| json!({"tool": "read_file", "args": {"path": path}});
    let next = json!([
        read("prod.key"),
        read("notes"),
        {"tool": "search_code", "args": {"query": "hidden|open"}},
        says("Seen."),
    ]);
    let more = "[agents.native]\nrules = [{ group = \"read\", pattern = \"secrets/*.key\", \
                action = \"deny\" }]\n";
    let stage = Stage::freely_with(&[("main", lead), ("next", next)], more).await;
    stage.define("explorer.md", EXPLORER);
    let secrets = stage.world.repo().join("secrets");
    write(&secrets, "prod.key", "hidden");
    write(&secrets, "notes", "open");
    stage.world.commit();
    let id = stage.begun(&[]);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    let child = stage.child(&id, 0);
    assert_eq!(child["state"], "completed", "{child:#}");
    let told = results(&stage.world, child["id"].as_str().unwrap());
    assert!(!told.contains("hidden"), "{told}");
    assert!(told.contains("1 files are left out"), "{told}");
    // As the model writes it, which is how it asks again.
    assert!(told.contains("\"notes (text"), "{told}");
}

/// What an agent does with the directory it works in is its own affair, and so is the next run's.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_moved_ends_nobody() {
    let lead = json!([
        summon(&json!({"task": "Move", "agent": "explorer", "working_directory": "sub"})),
        says("It is done."),
    ]);
    let moves = "git mv ../sub ../other && echo be''gun; until [ -e ../go ]; do sleep 0.02; done";
    let next = json!([{"tool": "shell", "command": moves}, says("Moved it.")]);
    let stage = Stage::freely(&[("main", lead), ("next", next)]).await;
    stage.later(&json!([{"tool": "shell", "command": "echo at; pwd"}, says("Looked.")]));
    stage.define("explorer.md", EXPLORER);
    let world = &stage.world;
    write(&world.repo().join("sub"), "file", "x");
    world.commit();
    let id = stage.begun(&[]);
    stage.until(&id, "\"name\":\"summon\"");
    let child = stage.child_begun(&id, 0);
    let child_id = child["id"].as_str().unwrap();
    world.kill_engine();
    world.serve();
    go(&child);
    assert_eq!(ended(world, &id)["state"], "completed");
    let child = world.show(child_id);
    assert_eq!(child["state"], "completed", "{child:#}");
    stage.say(child_id, "Look again");
    let child = ended(world, child_id);
    assert_eq!(child["state"], "completed", "{child:#}");
    assert_eq!(child["runs"].as_array().unwrap().len(), 2);
    // The line ends there: a backslash of the JSON, and no slash.
    let root = format!("{}\\", child["workspace_dir"].as_str().unwrap());
    let told = results(world, child_id);
    assert!(told.contains(&root), "{told}");
    let events = world.dispatch(&["events", "--task", child_id]).exits(0).out;
    assert!(
        events.contains("work in sub of the repository: it is no directory there"),
        "{events}"
    );
}

/// By default each of them is asked about, and the door knows it: whatever a model runs in the fence
/// has the same token.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_allowed_is_not_summoned_by_whatever_way() {
    let asks = summon(&json!({"task": "Find it", "agent": "explorer"}));
    let lead = json!([asks, asks, says("As you say.")]);
    let scripts = [("main", lead), ("next", json!([says("Found it.")]))];
    let groups = "[agents.native.groups]\nsend_to_tab = \"allow\"\n";
    let stage = Stage::new(&scripts, groups).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    let mut events = stage.world.follow(&["events", "-f", "--task", &id]);
    events.until("asks 1 for summon");
    assert_eq!(
        stage.world.show(&id)["asks"][0]["input"],
        "agent explorer\nFind it"
    );
    let by_hand = json!({"task": "Find it", "summon": {"agent": "explorer"}});
    let plain = json!({"task": "Find it"});
    for body in [&by_hand, &plain] {
        let refused = Voice::of(&stage.world, &id, 1).posts("/v1/tasks", body);
        assert_eq!(
            refused.refusal(),
            (403, "not_granted".into()),
            "{}",
            refused.text()
        );
    }
    stage.world.dispatch(&["allow", &id]).exits(0);
    events.until("asks 2 for summon");
    // The one that was allowed was made, and no other one.
    let again = Voice::of(&stage.world, &id, 1).posts("/v1/tasks", &by_hand);
    assert_eq!(
        again.refusal(),
        (403, "not_granted".into()),
        "{}",
        again.text()
    );
    // It stays as somebody allowed it, and is said to only as a tool may.
    let child = stage.child(&id, 0)["id"].clone();
    let path = |verb: &str| format!("/v1/tasks/{}/{verb}", child.as_str().unwrap());
    let dearer = json!([{"key": "main", "model": "dearest"}]);
    for (verb, body) in [
        ("say", json!({"text": "Go on", "chain": dearer})),
        ("say", json!({"text": "Go on", "effort": "high"})),
        ("detach", json!({})),
    ] {
        let refused = Voice::of(&stage.world, &id, 1).posts(&path(verb), &body);
        assert_eq!(
            refused.refusal(),
            (403, "not_granted".into()),
            "{}",
            refused.text()
        );
    }
    stage
        .world
        .dispatch(&["deny", &id, "--why", "one is enough"])
        .exits(0);
    let task = ended(&stage.world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    assert_eq!(task["children"].as_array().unwrap().len(), 1);
    holds(
        &stage.asked("main").pop().unwrap()["prompt"],
        "one is enough",
    );
    // What nobody has a definition for is not offered at all, and with `none` nothing is.
    let without = stage.begun(&["--grant", "none"]);
    ended(&stage.world, &without);
    let offered = stage.asked("main").pop().unwrap()["tools"].to_string();
    assert!(!offered.contains("summon"), "{offered}");
    assert_eq!(stage.world.show(&without)["grant"], Value::Null);
}

/// A child has no more than its caller of tools, directories and keys, also after a restart with
/// settings that say more; and a child summons in its turn.
#[tokio::test(flavor = "multi_thread")]
async fn row_8_a_child_has_no_more_than_its_caller() {
    let lead = json!([
        summon(&json!({"task": "Use another key", "agent": "stranger"})),
        summon(&json!({"task": "Go between", "agent": "middle", "working_directory": "sub"})),
        says("It is done."),
    ]);
    let middle = json!([
        summon(&json!({"task": "Look up", "agent": "explorer", "working_directory": ".."})),
        summon(&json!({"task": "Look", "agent": "explorer", "tools": ["shell", "edit"]})),
        {"tool": "shell", "command": "echo at; pwd"},
        says("Both looked."),
    ]);
    let leaf = json!([{"tool": "shell", "command": "pwd"}, says("Seen.")]);
    let more = "[agents.native]\ntools = [\"read_file\", \"run_shell\", \"summon\"]\n";
    let scripts = [("main", lead), ("next", middle), ("leaf", leaf)];
    let stage = Stage::freely_with(&scripts, more).await;
    let world = &stage.world;
    let own = world.repo().join(".dispatch/agents");
    write(
        &own,
        "middle.md",
        "---\nis_subagent: true\nmodels: [next/m2, leaf/m3]\n\
        tools: [read, edit, bash, web_fetch, summon]\n---\nI am the repository's.\n",
    );
    write(
        &own,
        "stranger.md",
        "---\nis_subagent: true\nmodels: [main/m9]\n---\n",
    );
    write(
        &own,
        "explorer.md",
        "---\nis_subagent: true\nmodels: [leaf/m3]\n---\n",
    );
    write(&world.repo().join("sub"), "file", "x");
    world.commit();
    let id = stage.begun(&[]);
    let task = ended(world, &id);
    assert_eq!(task["state"], "completed", "{task:#}");
    let refused = results(world, &id);
    assert!(
        refused.contains("a repository chooses no other"),
        "{refused}"
    );
    let tools = |script: &str| stage.asked(script).pop().unwrap()["tools"].clone();
    let shared = [
        "read_file",
        "read_file_slice",
        "run_shell",
        "shell_jobs",
        "todo",
    ];
    let summons = json!([&shared[..], &["summon", "retrieve"]].concat());
    assert_eq!((tools("main"), tools("next")), (summons.clone(), summons));
    assert_eq!(tools("leaf"), json!(["run_shell", "shell_jobs", "todo"]));
    holds(
        &stage.asked("next")[0]["system"],
        "| I am the repository's.",
    );
    let middle = stage.child(&id, 0);
    let middle_id = middle["id"].as_str().unwrap();
    assert!(results(world, middle_id).contains("not a directory below your own"));
    let below = stage.child(middle_id, 0);
    assert_eq!(below["asked_by"], json!(format!("{middle_id}-1")));
    assert_eq!(below["chain"][0]["key"], "leaf");
    let below_id = below["id"].as_str().unwrap();
    let there = format!("{}/sub", below["workspace_dir"].as_str().unwrap());
    assert!(results(world, below_id).contains(&there), "{there}");
    // Another engine, whose settings say more, and a definition that does.
    world.shut_down();
    let config = world.home().join("dispatch.toml");
    let text = fs::read_to_string(&config).unwrap();
    let wider = text.replace("tools = [\"read_file\", \"run_shell\", \"summon\"]\n", "");
    assert_ne!(text, wider);
    fs::write(&config, wider).unwrap();
    stage.say_as(below_id, "Look again", &[]);
    assert_eq!(ended(world, below_id)["state"], "completed");
    assert_eq!(tools("leaf"), json!(["run_shell", "shell_jobs", "todo"]));
    stage.say_as(&id, "And you?", &[]);
    ended(world, &id);
    let own = tools("main").to_string();
    assert!(
        !own.contains("edit_file") && own.contains("summon"),
        "{own}"
    );
}

/// What one task is changed to, by a person or by a file, is nothing to the others.
#[tokio::test(flavor = "multi_thread")]
async fn row_15_what_one_task_is_changed_to_leaves_the_others_alone() {
    let lead = json!([
        summon(&json!({"task": "First", "agent": "explorer"})),
        summon(&json!({"task": "Second", "agent": "explorer"})),
        says("Both are there."),
    ]);
    let stage = Stage::freely(&[("main", lead), ("next", json!([says("Here.")]))]).await;
    stage.define("explorer.md", EXPLORER);
    let id = stage.begun(&[]);
    let lead = ended(&stage.world, &id);
    let [one, two] = [0, 1].map(|n| stage.child(&id, n)["id"].as_str().unwrap().to_owned());
    let tools = || stage.asked("next").pop().unwrap()["tools"].clone();
    let before = tools();
    // The definition, for whoever is summoned from now on; and the model of one of them.
    stage.define(
        "explorer.md",
        &EXPLORER.replace("---\nYou look", "tools: [read]\n---\nI watch"),
    );
    stage.later(&json!([says("Another model.")]));
    stage.say(&one, "Say it again");
    ended(&stage.world, &one);
    stage.say_as(&two, "You too", &[]);
    ended(&stage.world, &two);
    let (one, two) = (stage.world.show(&one), stage.world.show(&two));
    assert_eq!(
        (&one["chain"][0]["key"], &two["chain"][0]["key"]),
        (&json!("later"), &json!("next"))
    );
    assert_eq!(stage.world.show(&id)["chain"], lead["chain"]);
    let last = stage.asked("next").pop().unwrap();
    holds(&last["prompt"], "You too");
    holds(&last["system"], "You look and never touch.");
    assert_eq!(last["tools"], before);
    let changed = stage.asked("later").pop().unwrap();
    assert_eq!(changed["tools"], before);
}
