//! Verbs that only look: they start no engine, and say what is known without one.

use super::{
    schema,
    world::{TestWorld, ended, pid_of},
};

#[test]
fn looking_at_an_empty_home_makes_nothing() {
    let world = TestWorld::new();
    world.dispatch(&["list"]).exits(0).says(&["no tasks"]);
    assert_eq!(world.dispatch(&["list", "--json"]).exits(0).out, "[]\n");
    assert_eq!(world.dispatch(&["events", "--json"]).exits(0).out, "");
    world.dispatch(&["show", "3f"]).exits(2);
    world.dispatch(&["logs", "3f"]).exits(2);
    world.dispatch(&["wait", "3f"]).exits(2);
    world.dispatch(&["agents"]).exits(0).says(&["scripted"]);
    assert!(!world.home().join("data").exists());
}

#[test]
fn a_job_that_ended_without_an_engine_is_not_yet_judged() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    let task = world.show(&id);
    schema::task(&task);
    let keeper = pid_of(&task["runs"][0]["pid"]);
    world.kill_engine();
    let task = world.show(&id);
    assert_eq!(task["state"], "running");
    assert_eq!(
        pid_of(&task["runs"][0]["pid"]),
        keeper,
        "jobs belong to keepers"
    );
    world.open_gate();
    ended(keeper);

    let task = world.show(&id);
    schema::task(&task);
    assert_eq!(task["reason"], "ended, not yet judged");
    assert!(task["runs"][0]["pid"].is_null());
    world
        .dispatch(&["show", &id])
        .exits(0)
        .says(&["ended, not yet judged"]);
    world
        .dispatch(&["list"])
        .exits(0)
        .says(&["ended, not yet judged"]);
    assert_eq!(
        world.dispatch(&["logs", &id]).exits(0).out,
        "begun\nthrough\n"
    );
    assert_eq!(
        world.dispatch(&["logs", &id, "-f"]).exits(0).out,
        "begun\nthrough\n"
    );
    let events = world
        .dispatch(&["events", "--task", &id, "--json"])
        .exits(0)
        .out;
    assert!(!events.contains("agent_ended"), "{events}");
    assert!(world.engine().is_none(), "none of them started an engine");
    assert_eq!(world.engines(), 1);

    world.dispatch(&["wait", &id]).exits(0);
    assert_eq!(world.counted(), 1);
    assert_eq!(world.engines(), 2);
}

#[test]
fn logs_of_every_kind() {
    let world = TestWorld::new();
    let orders = "x\n> say first\n> ask Why?\n> say second\n> write out.txt hi";
    let task = world.dispatch(&["run", "--json", orders]).exits(3).json();
    let id = task["id"].as_str().unwrap();
    world
        .dispatch(&["answer", id, "Because", "--follow"])
        .exits(0);
    let log = |args: &[&str]| world.dispatch(&[&["logs", id][..], args].concat());
    assert_eq!(log(&[]).exits(0).out, "first\nsecond\n");
    assert_eq!(
        log(&["--run", "1"]).exits(0).out,
        "first\nI have a question.\n"
    );
    assert_eq!(log(&["--err"]).exits(0).out, "");
    log(&["--run", "9"]).exits(2);
    log(&["--check", "none"]).exits(2);
    world.dispatch(&["freeze"]).exits(0);
    let waiting = world.detach(&["y"]);
    world
        .dispatch(&["logs", &waiting])
        .exits(2)
        .says(&["not started"]);
}
