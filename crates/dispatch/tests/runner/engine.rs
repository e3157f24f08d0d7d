//! Engines come and go: killed, leaving, two at once. Tasks do not notice.

use std::{fs, os::unix::fs::PermissionsExt};

use super::world::TestWorld;

#[test]
fn a_run_outlives_the_engine_it_follows() {
    let world = TestWorld::new();
    let mut run = world.follow(&["run", "--agent", "gated", "Wait for it"]);
    run.until("agent started");
    world.kill_engine();
    world.open_gate();
    run.end().exits(0).says(&["completed"]);
    assert_eq!(world.counted(), 1, "one execution");
    assert_eq!(world.engines(), 2);
}

#[test]
fn an_engine_killed_again_and_again_executes_once() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    for _ in 0..3 {
        world.kill_engine();
        world.dispatch(&["thaw"]).exits(0);
    }
    world.open_gate();
    world.dispatch(&["wait", &id]).exits(0);
    assert_eq!(world.counted(), 1);
    let log = world.dispatch(&["logs", &id]).exits(0).out;
    assert_eq!(log, "begun\nthrough\n");
}

#[test]
fn a_client_that_meets_a_leaving_engine_gets_the_next_one() {
    let world = TestWorld::new();
    let mut ids = Vec::new();
    for n in 0..20 {
        // Told to leave and not waited for: it may be anywhere on its way out, or gone already.
        let told = world.http("POST", "/v1/shutdown", "{}");
        assert!(n > 0 || told.is_none(), "nobody has started one");
        ids.push(world.detach(&["x\n> write out.txt hi"]));
        world.dispatch(&["wait", &ids[n]]).exits(0);
    }
    let tasks = world.dispatch(&["list", "--json"]).exits(0).json();
    assert_eq!(tasks.as_array().unwrap().len(), 20, "none lost, none twice");
    assert!(world.engines() >= 2);
}

#[test]
fn an_idle_engine_leaves_and_the_next_client_starts_another() {
    let world = TestWorld::new();
    let id = world.detach(&["x\n> write out.txt hi"]);
    let first = world.engine().unwrap();
    world.dispatch(&["wait", &id]).exits(0);
    super::world::ended(first);
    assert!(!world.socket().exists(), "it takes its socket along");
    let id = world.detach(&["y\n> write out.txt hi"]);
    world.dispatch(&["wait", &id]).exits(0);
    assert_eq!(world.engines(), 2);
}

#[test]
fn clients_that_come_at_once_start_one_engine() {
    let world = TestWorld::new();
    let runs = [1, 2, 3, 4].map(|n| {
        let text = format!("x\n> write out{n}.txt hi");
        world.follow(&["run", &text])
    });
    for run in runs {
        run.end().exits(0);
    }
    assert_eq!(world.engines(), 1);
}

#[test]
fn here_brings_its_own_engine_and_takes_it_along() {
    let world = TestWorld::new();
    let done = world.dispatch(&["run", "--here", "--json", "x\n> write out.txt hi"]);
    assert_eq!(done.exits(0).json()["state"], "completed");
    assert!(world.engine().is_none() && !world.socket().exists());
    assert!(
        !world.home().join("data/engine.log").exists(),
        "no other process"
    );

    let id = world.begun(&[]);
    let done = world.dispatch(&["run", "--here", "y\n> write out.txt hi"]);
    done.exits(0)
        .says(&["an engine serves this data directory already"]);
    world.open_gate();
    world.dispatch(&["wait", &id]).exits(0);
    assert_eq!(world.engines(), 2);
}

#[test]
fn a_task_of_a_killed_here_is_picked_up() {
    let world = TestWorld::new();
    let mut run = world.follow(&["run", "--here", "--agent", "gated", "Wait for it"]);
    run.until("agent started");
    world.kill_engine();
    assert_eq!(run.end().code, None, "it was the engine itself");
    let tasks = world.dispatch(&["list", "--json"]).exits(0).json();
    world.open_gate();
    world
        .dispatch(&["wait", tasks[0]["id"].as_str().unwrap()])
        .exits(0);
    assert_eq!(world.counted(), 1);
}

#[test]
fn the_socket_is_ours_alone_and_has_one_engine() {
    let world = TestWorld::new();
    world.serve();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(world.socket()), 0o600);
    assert_eq!(mode(world.home().join("run")), 0o700);
    assert_eq!(mode(world.home().join("data")), 0o700);
    world
        .dispatch(&["serve"])
        .exits(5)
        .says(&["an engine runs already"]);
    world.dispatch(&["list"]).exits(0);
    assert_eq!(world.engines(), 1);
}

/// Nobody has to look for an engine that a verb has left behind before a door can be opened.
#[test]
fn who_serves_takes_the_place_of_an_engine_on_demand() {
    let world = TestWorld::new();
    let id = world.begun(&["--no-checks", "--expects", "either"]);
    let mut serve = world.follow(&["serve", "--listen", "127.0.0.1:0", "--json"]);
    serve.until("\"url\":\"http://127.0.0.1:");
    assert_eq!(world.show(&id)["state"], "running");
    assert_eq!(world.engines(), 2);
    world
        .dispatch(&["serve"])
        .exits(5)
        .says(&["an engine runs already"]);
    world.open_gate();
    world.dispatch(&["wait", &id]).exits(0);
    assert_eq!(world.counted(), 1);
}

#[test]
fn a_home_may_be_relative_and_an_engine_in_the_foreground() {
    let world = TestWorld::new();
    let relative = [("DISPATCH_HOME", "../home")];
    let args = ["run", "--json", "x\n> write out.txt hi"];
    let task = world.dispatch_with(&relative, &args).exits(0).json();
    assert_eq!(
        world.show(task["id"].as_str().unwrap())["state"],
        "completed"
    );
    world.shut_down();

    let mut serve = world.follow(&["serve"]);
    serve.until_aside("serves");
    world.dispatch(&["freeze"]).exits(0);
    serve.signal(rustix::process::Signal::INT);
    serve.end().exits(0).says(&["interrupted", "jobs live on"]);
    assert!(!world.socket().exists());
}

#[test]
fn what_is_frozen_waits_and_survives_a_restart() {
    let world = TestWorld::new();
    world.dispatch(&["freeze"]).exits(0);
    let id = world.detach(&["x\n> write out.txt hi"]);
    assert_eq!(world.show(&id)["state"], "queued");
    world.kill_engine();
    assert_eq!(world.show(&id)["state"], "queued");
    assert!(world.engine().is_none(), "to look starts nothing");
    let frozen = world.dispatch(&["freeze", "--json"]).exits(0).json();
    assert_eq!(frozen["frozen"], true);
    assert_eq!(world.show(&id)["state"], "queued");
    world.dispatch(&["thaw"]).exits(0);
    world.dispatch(&["wait", &id]).exits(0);
}

#[test]
fn an_engine_that_leaves_in_the_middle_of_a_verb_is_followed_by_the_next() {
    let world = TestWorld::new();
    for n in 0..20 {
        // The health check, the request or the answer: any of them may meet the end.
        let verb = world.follow(&[["freeze", "thaw"][n % 2]]);
        world.http("POST", "/v1/shutdown", "{}");
        verb.end().exits(0);
    }
    world.dispatch(&["thaw"]).exits(0);
    for n in 0..20 {
        let run = world.follow(&["run", "--title", &n.to_string(), "x\n> write out.txt hi"]);
        world.http("POST", "/v1/shutdown", "{}");
        run.end().exits(0);
    }
    let tasks = world.dispatch(&["list", "--json"]).exits(0).json();
    assert_eq!(tasks.as_array().unwrap().len(), 20, "none lost, none twice");
}
