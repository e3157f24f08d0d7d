//! Talking to a task: `say`, `unsay`, `resume`, and `stop --all`.

use serde_json::{Value, json};

use super::{schema, world::TestWorld};

#[test]
fn an_ended_task_hears_more_and_goes_on() {
    let world = TestWorld::new();
    let task = world.dispatch(&["run", "--json", "First\n> write a.txt one"]);
    let id = task.exits(0).json()["id"].as_str().unwrap().to_owned();
    let said = world.dispatch_fed(
        "> write b.txt two\n",
        &["say", &id, "--follow", "--json", "-"],
    );
    let task = said.exits(0).json();
    schema::task(&task);
    assert_eq!(task["runs"][1]["cause"], "said");
    let message = &task["messages"][0];
    assert_eq!(
        (&message["state"], &message["delivery"], &message["run"]),
        (&json!("delivered"), &json!("continuation"), &json!(2))
    );
    let diff = world.dispatch(&["diff", &id]).exits(0).out;
    assert!(diff.contains("+one") && diff.contains("+two"), "{diff}");
    world
        .dispatch(&["show", &id])
        .exits(0)
        .says(&["said 1", "(continuation, run 2) > write b.txt two"]);
    world
        .dispatch(&["unsay", &id, "1"])
        .exits(2)
        .says(&["message 1 is delivered already"]);
    let path = format!("/v1/tasks/{id}/messages/1");
    let (status, problem) = world.http("DELETE", &path, "").unwrap();
    assert_eq!((status, &problem["code"]), (409, &json!("nothing_to_do")));
    world.dispatch(&["unsay", &id, "0"]).exits(2);
    world.dispatch(&["say", &id, " "]).exits(2);
    world.dispatch(&["rm", &id]).exits(0);
    world
        .dispatch(&["say", &id, "more"])
        .exits(2)
        .says(&["dispatch undo"]);
}

#[test]
fn a_message_for_the_next_run_is_told_as_such_and_can_be_taken_back() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    let said = world
        .dispatch(&["say", &id, "and by colour", "--json"])
        .exits(0)
        .json();
    assert_eq!(
        (&said["message"], &said["how"]),
        (&json!(1), &json!("queued"))
    );
    schema::task(&said["task"]);
    world
        .dispatch(&["say", &id, "or by size"])
        .exits(0)
        .says(&["message 2: comes with the next run, after run 1"]);
    let task = world
        .dispatch(&["unsay", &id, "1", "--json"])
        .exits(0)
        .json();
    schema::task(&task);
    assert_eq!(task["messages"][0]["state"], "cancelled");
    world
        .dispatch(&["unsay", &id, "2"])
        .exits(0)
        .says(&["message 2: taken back"]);
    let path = format!("/v1/tasks/{id}/say");
    let (status, _) = world
        .http("POST", &path, r#"{"text": "x", "form": 1}"#)
        .unwrap();
    assert_eq!(status, 400);
    world.open_gate();
    let task = world.dispatch(&["wait", &id, "--json"]).exits(0).json();
    assert_eq!(task["runs"].as_array().unwrap().len(), 1);
    assert_eq!(world.counted(), 1);
}

#[test]
fn a_task_is_resumed_however_it_ended() {
    let world = TestWorld::new();
    let task = world.dispatch(&["run", "--json", "First\n> write a.txt one"]);
    let id = task.exits(0).json()["id"].as_str().unwrap().to_owned();
    let task = world
        .dispatch(&["resume", &id, "--follow", "--json"])
        .exits(0)
        .json();
    schema::task(&task);
    assert_eq!(task["runs"][1]["cause"], "resumed");
    world
        .dispatch(&["resume", &id, "--agent", "nobody"])
        .exits(2)
        .says(&["nobody", "there are"]);
}

#[test]
fn all_are_stopped_at_once() {
    let world = TestWorld::new();
    let ids: Vec<String> = (0..2).map(|_| world.begun(&[])).collect();
    let stopped = world.dispatch(&["stop", "--all", "--json"]).exits(0).json();
    let mut got: Vec<&str> = Vec::new();
    for task in stopped.as_array().unwrap() {
        schema::task(task);
        assert_eq!(task["state"], "stopped");
        got.push(task["id"].as_str().unwrap());
    }
    got.sort_unstable();
    let mut ids: Vec<Value> = ids.iter().map(|id| world.show(id)["id"].clone()).collect();
    ids.sort_unstable_by_key(ToString::to_string);
    assert_eq!(json!(got), json!(ids));
    assert_eq!(
        world.dispatch(&["stop", "--all", "--json"]).exits(0).json(),
        json!([])
    );
    world.dispatch(&["stop"]).exits(2);
    assert_eq!(world.counted(), 0);
}
