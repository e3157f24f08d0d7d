//! Values taken from a person's environment: asked for, handed on, and written nowhere.

use std::fs;

use serde_json::json;

use super::world::{TestWorld, files};

const SECRET: &str = "sesame-4b1e7c";
const AGENT: &str = "[agents.keyed]\ndriver = \"plain\"\nprogram = \"sh\"\n\
    args = [\"-c\", \"cat > /dev/null; echo my key is $KEY; test \\\"$KEY\\\" && echo yes > out.txt\"]\n\
    pool = \"default\"\nplacement = \"host\"\nenv = { KEY = { from = \"E2E_KEY\" } }\n";

fn world() -> TestWorld {
    TestWorld::with_config(AGENT)
}

#[test]
fn a_missing_secret_is_named() {
    let world = world();
    let done = world.dispatch(&["run", "--agent", "keyed", "x"]).exits(2);
    done.says(&["E2E_KEY", "hint: ", "optional = true"]);
    assert!(!world.home().join("data").exists());
}

#[test]
fn a_given_secret_is_in_no_file() {
    let world = world();
    let args = ["run", "--agent", "keyed", "--json", "x"];
    let done = world.dispatch_with(&[("E2E_KEY", SECRET)], &args).exits(0);
    assert_eq!(done.json()["state"], "completed");
    let pid = world.engine().unwrap().as_raw_pid();
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environ).contains(SECRET));
    world.shut_down();
    let found = files(&world.home());
    assert!(found.len() > 10, "{found:?}");
    for file in found {
        let bytes = fs::read(&file).unwrap();
        let held = String::from_utf8_lossy(&bytes).contains(SECRET);
        assert!(!held, "{} holds it", file.display());
    }
    assert!(!format!("{done:?}").contains(SECRET), "{done:?}");
}

#[test]
fn after_a_restart_a_queued_run_asks_and_any_verb_gives() {
    let world = world();
    world.dispatch(&["freeze"]).exits(0);
    let args = ["run", "--agent", "keyed", "--detach", "--json", "x"];
    let task = world
        .dispatch_with(&[("E2E_KEY", SECRET)], &args)
        .exits(0)
        .json();
    let id = task["id"].as_str().unwrap();
    world.kill_engine();
    world.dispatch(&["thaw"]).exits(0);
    let task = world.show(id);
    assert_eq!(task["state"], "queued");
    assert_eq!(task["reason"], "needs E2E_KEY from you");
    assert_eq!(
        world.http("GET", "/v1/needs", ""),
        Some((200, json!(["E2E_KEY"])))
    );
    // What it does not ask for is not given, and an empty value is none.
    world
        .dispatch_with(&[("E2E_KEY", ""), ("OTHER", "x")], &["thaw"])
        .exits(0);
    assert_eq!(world.show(id)["state"], "queued");
    world
        .dispatch_with(&[("E2E_KEY", SECRET)], &["wait", id])
        .exits(0);
    assert_eq!(world.http("GET", "/v1/needs", ""), Some((200, json!([]))));
}
