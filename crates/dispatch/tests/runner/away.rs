//! Putting tasks away, and getting back what they held.

use std::{fs, path::Path};

use serde_json::json;

use super::{
    schema,
    world::{TestWorld, ended, pid_of},
};

#[test]
fn what_is_removed_can_be_got_back() {
    let world = TestWorld::new();
    let task = world
        .dispatch(&["run", "--json", "x\n> write out.txt hi"])
        .exits(0)
        .json();
    let id = task["id"].as_str().unwrap();
    let workspace = Path::new(task["workspace"].as_str().unwrap());
    assert!(workspace.join("out.txt").is_file());
    // What nobody has committed is kept too.
    fs::write(workspace.join("later.txt"), "by hand\n").unwrap();

    let gone = world.dispatch(&["rm", id, "--json"]).exits(0).json();
    schema::task(&gone);
    assert_eq!(
        (&gone["removed"], &gone["workspace"]),
        (&json!(true), &json!(null))
    );
    assert!(!workspace.exists());
    assert_eq!(
        world.dispatch(&["list", "--json"]).exits(0).json(),
        json!([])
    );
    let all = world.dispatch(&["list", "--all", "--json"]).exits(0).json();
    assert_eq!(all[0]["id"], id);

    let back = world.dispatch(&["undo", id, "--json"]).exits(0).json();
    let keys: Vec<&String> = back.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["workspace"]);
    let workspace = Path::new(back["workspace"].as_str().unwrap());
    let read = |name| fs::read_to_string(workspace.join(name)).unwrap();
    assert_eq!(
        (read("out.txt"), read("later.txt")),
        ("hi\n".into(), "by hand\n".into())
    );
    world.dispatch(&["apply", id]).exits(0).says(&["git -C"]);
}

#[test]
fn removing_a_live_task_stops_it_first() {
    let world = TestWorld::new();
    let id = world.begun(&[]);
    let keeper = pid_of(&world.show(&id)["runs"][0]["pid"]);
    world
        .dispatch(&["rm", &id])
        .exits(0)
        .says(&["dispatch undo"]);
    ended(keeper);
    assert_eq!(world.counted(), 0);
    assert_eq!(world.show(&id)["state"], "stopped");
}

#[test]
fn clean_takes_what_it_is_told() {
    let world = TestWorld::new();
    let done = world.detach(&["x\n> write out.txt hi"]);
    let failed = world.detach(&["y\n> say nothing changes"]);
    let blocked = world.detach(&["z\n> ask Why?"]);
    world.dispatch(&["wait", &done, &failed, &blocked]).exits(1);
    let clean = |args: &[&str]| {
        let args = [&["clean", "--json"][..], args].concat();
        world.dispatch(&args).exits(0).json()
    };
    assert_eq!(
        clean(&["--state", "completed", "--older-than", "7d"]),
        json!([])
    );
    assert_eq!(
        clean(&["--state", "completed", "--older-than", "0"]),
        json!([done])
    );
    let rest = world.dispatch(&["list", "--json"]).exits(0).json();
    assert_eq!(rest.as_array().unwrap().len(), 2);
    let both = [
        "--state",
        "failed",
        "--state",
        "blocked",
        "--older-than",
        "0",
    ];
    assert_eq!(clean(&both).as_array().unwrap().len(), 2);
    world.dispatch(&["clean", "--older-than", "0"]).exits(2);
}
