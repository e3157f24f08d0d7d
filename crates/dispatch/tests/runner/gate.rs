//! The gate from a person's side: who waits says why, dependencies, freezes, retries, what was spent,
//! and the older configuration.

use std::{fs, os::unix::fs::PermissionsExt};

use super::{schema, world::TestWorld};

const ONE_SLOT: &str = "[gate]\nload_per_core_max = 0\n[pools.default]\nslots = 1\n";

#[test]
fn a_task_that_waits_says_why_and_its_place_everywhere() {
    let world = TestWorld::with_config(ONE_SLOT);
    let first = world.begun(&[]);
    let second = world.detach(&["x\n> write out.txt hi"]);
    let text = world.dispatch(&["run", "--detach", "y\n> write out.txt hi"]);
    text.exits(0)
        .says(&[" queued y", "pool default: 1 of 1 busy; place 2"]);

    let task = world.show(&second);
    schema::task(&task);
    assert_eq!(task["state"], "queued");
    assert_eq!(task["reason"], "pool default: 1 of 1 busy");
    assert_eq!(task["waiting"]["why"], "busy");
    assert_eq!(task["waiting"]["place"], 1);
    assert_eq!(task["workspace"], serde_json::Value::Null);
    world
        .dispatch(&["show", &second])
        .exits(0)
        .says(&["pool default: 1 of 1 busy; place 1"]);
    let list = world.dispatch(&["list"]).exits(0);
    let at = |word: &str| list.out.find(word).unwrap();
    assert!(at("working (1)") < at("waiting (2)"), "{}", list.out);
    assert!(list.out.contains("(pool default: 1 of 1 busy; place 2)"));
    let events = world.dispatch(&["events", "--task", &second]).exits(0);
    events.says(&["waits: pool default: 1 of 1 busy"]);

    world.open_gate();
    world.dispatch(&["wait", &first, &second]).exits(0);
    world.dispatch(&["list"]).exits(0).says(&["done ("]);
}

#[test]
fn a_task_waits_for_another_and_both_can_be_tried_again() {
    let world = TestWorld::new();
    let first = world.begun(&[]);
    let after = [
        "--after",
        &first[..6],
        "--priority",
        "high",
        "x\n> write out.txt hi",
    ];
    let second = world.detach(&after);
    let task = world.show(&second);
    assert_eq!(task["after"][0], first[..]);
    assert_eq!(
        (&task["waiting"]["why"], &task["priority"]),
        (&"after".into(), &"high".into())
    );
    world.dispatch(&["stop", &first]).exits(0);
    world
        .dispatch(&["wait", &second])
        .exits(1)
        .says(&["had to complete before this one"]);
    let refused = world.dispatch(&["retry", &second]).exits(2);
    refused.says(&["dispatch retry"]);
    let list = world.dispatch(&["list"]).exits(0);
    list.says(&["needs you (1)", "done (1)"]);

    world
        .dispatch(&["retry", &first])
        .exits(0)
        .says(&["(run 2)"]);
    world
        .dispatch(&["retry", &second])
        .exits(0)
        .says(&["after "]);
    world.open_gate();
    world.dispatch(&["wait", &first, &second]).exits(0);
    let again = world.dispatch(&["retry", &first]).exits(2);
    again.says(&["it needs no other run"]);
}

#[test]
fn a_part_is_frozen_and_the_log_alone_says_so_too() {
    let world = TestWorld::new();
    let frozen = world.dispatch(&["freeze", "--pool", "default", "--json"]);
    assert_eq!(frozen.exits(0).json()["pool"], "default");
    world.dispatch(&["freeze", "--pool", "nope"]).exits(2);
    let id = world.detach(&["x\n> write out.txt hi"]);
    assert_eq!(world.show(&id)["reason"], "pool default: frozen by you");
    world.shut_down();
    let list = world.dispatch(&["list"]).exits(0);
    list.says(&["pool default: frozen by you"]);
    assert!(world.engine().is_none(), "nobody was started for it");
    world.dispatch(&["freeze", "--repo", "."]).exits(0);
    world.dispatch(&["thaw", "--pool", "default"]).exits(0);
    assert_eq!(world.show(&id)["reason"], "repository frozen by you");
    let thawed = world.dispatch(&["thaw", "--repo", "."]).exits(0);
    thawed.says(&[": thawed"]);
    world.dispatch(&["wait", &id]).exits(0);
}

/// One that speaks as codex does, and whose provider is away the first time.
const AWAY_ONCE: &str = r#"#!/bin/sh
echo "$@" > "$PLACE/argv"
if [ -e "$PLACE/tried" ]; then
  echo hi > made
  echo '{"type":"turn.completed","usage":{"input_tokens":7,"output_tokens":3}}'
else
  : > "$PLACE/tried"
  echo '{"type":"turn.failed","error":{"message":"unexpected status 503"}}'
fi
"#;

#[test]
fn run_follows_what_is_tried_again_and_usage_knows_what_it_told() {
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("away.sh");
    fs::write(&program, AWAY_ONCE).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let world = TestWorld::with_config(&format!(
        "[gate]\nretry_s = 0\nload_per_core_max = 0\n[agents.away]\ndriver = \"codex\"\n\
         program = {program:?}\npool = \"default\"\nplacement = \"host\"\nmodel = \"small\"\n\
         env = {{ PLACE = {:?} }}\n",
        place.path()
    ));
    world
        .dispatch(&["usage"])
        .exits(0)
        .says(&["nothing has run yet"]);
    let run = [
        "run", "--agent", "away", "--model", "large", "--json", "Do it",
    ];
    let task = world.dispatch(&run).exits(0).json();
    assert_eq!(task["state"], "completed");
    assert_eq!(
        (&task["model"], &task["pool"]),
        (&"large".into(), &"default".into())
    );
    assert_eq!(task["runs"][1]["cause"], "retry");
    let argv = fs::read_to_string(place.path().join("argv")).unwrap();
    assert!(argv.contains("--model large"), "{argv}");

    let usage = world.dispatch(&["usage", "--json"]).exits(0).json();
    let pool = &usage["pools"][0];
    assert_eq!(
        (&pool["name"], &pool["runs"]),
        (&"default".into(), &2.into())
    );
    assert_eq!(
        (&pool["untold"], &pool["input_tokens"]),
        (&1.into(), &7.into())
    );
    let tasks = world.dispatch(&["usage"]).exits(0);
    tasks.says(&["days", "pools", "(1 told nothing)"]);
}

#[test]
fn the_older_configuration_is_printed_or_added_and_never_overwrites() {
    let world = TestWorld::new();
    let file = world.path("agents.yaml");
    fs::write(
        &file,
        "concurrency:\n  claude: 2\n  clotho: {total: 3, devstral: 1}\nrates:\n  clotho: {min_delay: 5}\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let config = world.home().join("dispatch.toml");
    let before = fs::read_to_string(&config).unwrap();
    let printed = world.dispatch(&["config", "import", file]).exits(0);
    let printed = printed.says(&[
        "[pools.anthropic]",
        "min_delay_s = 5",
        "no agent is in pool clotho",
    ]);
    assert!(
        toml::from_str::<toml::Table>(&printed.out).is_ok(),
        "notes are asides"
    );
    assert_eq!(fs::read_to_string(&config).unwrap(), before);

    world
        .dispatch(&["config", "import", file, "--write"])
        .exits(0);
    let after = fs::read_to_string(&config).unwrap();
    assert!(after.starts_with(&before), "what was written by hand stays");
    let shown = world.dispatch(&["config", "show"]).exits(0);
    shown.says(&[
        "pools.anthropic.slots = 2",
        "pools.clotho.slots.devstral = 1",
    ]);
    let again = world
        .dispatch(&["config", "import", file, "--write"])
        .exits(2);
    again.says(&["[pools.anthropic]", "by hand"]);
    fs::write(file, "concurrency: [").unwrap();
    world.dispatch(&["config", "import", file]).exits(2);
}
