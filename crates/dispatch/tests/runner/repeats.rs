//! Requests that come again with their `Idempotency-Key`: done once, whatever happened in between.
//! Must not look into the engine: a program that lost its answer sees what is tested here.

use std::thread;

use serde_json::{Value, json};

use super::{
    wire::{Answer, Door, ask},
    world::TestWorld,
};

#[track_caller]
fn post(door: &Door, path: &str, key: &str, body: &Value) -> Answer {
    let key = format!("idempotency-key: {key}");
    let line = format!("POST {path}");
    ask(
        &door.address,
        &line,
        &[&door.token, &key],
        &body.to_string(),
    )
}

fn tasks(door: &Door) -> usize {
    door.get("/v1/tasks")
        .good()
        .json()
        .as_array()
        .unwrap()
        .len()
}

fn new_task(world: &TestWorld) -> Value {
    json!({"task": "Wait\n> write out.txt hi", "repo": world.repo()})
}

#[test]
fn a_request_is_done_once_however_often_it_comes() {
    let world = TestWorld::new();
    let door = Door::open(&world);
    door.post("/v1/freeze", &json!({"frozen": true})).good();
    let body = new_task(&world);
    let first = post(&door, "/v1/tasks", "k1", &body).good();
    let again = post(&door, "/v1/tasks", "k1", &body).good();
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert!(!first.headers.contains_key("idempotent-replayed"));
    assert_eq!(tasks(&door), 1);
    // Another request with it, and another caller's.
    let mut other = body.clone();
    other["title"] = "Another".into();
    let refused = post(&door, "/v1/tasks", "k1", &other).refusal();
    assert_eq!(refused, (422, "key_used".into()));
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let refused = post(&door, &format!("/v1/tasks/{id}/stop"), "k1", &json!({}));
    assert_eq!(refused.refusal(), (422, "key_used".into()));
    let mine = super::wire::token(&world, &["--scope", "dispatch"]);
    let key = "idempotency-key: k1";
    let line = "POST /v1/tasks";
    ask(&door.address, line, &[&mine, key], &body.to_string()).good();
    assert_eq!(tasks(&door), 2);
    // A refusal has done nothing, and is no answer for ever.
    let bad = json!({"task": "x", "repo": world.repo(), "agent": "nobody"});
    for _ in 0..2 {
        let refused = post(&door, "/v1/tasks", "k2", &bad).refusal();
        assert_eq!(refused, (400, "unknown_agent".into()));
    }
    post(&door, "/v1/tasks", "k2", &body).good();
    assert_eq!(tasks(&door), 3);
    for bad in ["", "a b", &"x".repeat(256)] {
        let refused = post(&door, "/v1/tasks", bad, &body).refusal();
        assert_eq!(refused, (400, "bad_head".into()), "{bad:?}");
    }
    // Many at once are one.
    let (address, token, text) = (&door.address, &door.token, body.to_string());
    let one = || {
        let headers = [token.as_str(), "idempotency-key: k3"];
        ask(address, "POST /v1/tasks", &headers, &text)
    };
    let answers: Vec<Answer> = thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for answer in &answers {
        let good = answer.status == 202 || answer.refusal() == (409, "key_in_use".into());
        assert!(good, "{}", answer.text());
    }
    assert_eq!(tasks(&door), 4);
    door.close().exits(0);
}

#[test]
fn an_engine_that_was_killed_has_done_what_the_next_one_is_asked_again() {
    let world = TestWorld::new();
    let door = Door::open(&world);
    door.post("/v1/freeze", &json!({"frozen": true})).good();
    let body = new_task(&world);
    let first = post(&door, "/v1/tasks", "k1", &body).good().json();
    let id = first["id"].as_str().unwrap();
    let (say, said) = (format!("/v1/tasks/{id}/say"), json!({"text": "and more"}));
    let message = post(&door, &say, "k2", &said).good().json();
    let door = door.killed(&world);
    let again = post(&door, "/v1/tasks", "k1", &body).good();
    assert_eq!((again.status, &again.json()["id"]), (202, &first["id"]));
    let heard = post(&door, &say, "k2", &said).good().json();
    assert_eq!(heard["message"], message["message"]);
    assert_eq!(heard["task"]["messages"].as_array().unwrap().len(), 1);
    let mut other = body;
    other["title"] = "Another".into();
    let refused = post(&door, "/v1/tasks", "k1", &other).refusal();
    assert_eq!(refused, (422, "key_used".into()));
    assert_eq!(tasks(&door), 1);
    door.close().exits(0);
}
