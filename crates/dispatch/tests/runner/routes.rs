//! Routes that only look: what they say is what the command line says.
//! Must not look into the engine: a program sees what is tested here.

use serde_json::{Value, json};

use super::{
    wire::{Answer, Door},
    world::TestWorld,
};

fn ids(page: &Answer) -> Vec<String> {
    let page = page.json();
    let tasks = page.as_array().unwrap().iter();
    tasks
        .map(|task| task["id"].as_str().unwrap().to_owned())
        .collect()
}

fn seq(answer: &Answer) -> u64 {
    answer.headers["dispatch-seq"].parse().unwrap()
}

#[test]
fn a_program_sees_what_a_person_sees() {
    let world = TestWorld::new();
    let door = Door::open(&world);
    let repo = world.repo();
    let made: Vec<String> = (0..3)
        .map(|n| {
            let body = json!({"task": format!("Write {n}\n> write out.txt hi"), "repo": repo});
            let made = door.post("/v1/tasks", &body).good();
            assert_eq!(made.status, 202);
            assert_eq!(seq(&made), made.json()["seq"].as_u64().unwrap());
            made.json()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let ids_of_all = [
        &["wait"][..],
        &made.iter().map(String::as_str).collect::<Vec<_>>(),
    ]
    .concat();
    world.dispatch(&ids_of_all).exits(0);

    // Pages, and what is asked of them.
    let first = door.get("/v1/tasks?limit=2").good();
    assert_eq!(ids(&first), made[..2]);
    assert_eq!(first.headers["dispatch-next"], made[1]);
    let rest = door.get(&format!("/v1/tasks?after={}", made[1])).good();
    assert_eq!(ids(&rest), made[2..]);
    assert!(!rest.headers.contains_key("dispatch-next"));
    let done = door.get("/v1/tasks?state=completed,failed&limit=3").good();
    assert_eq!(ids(&done).len(), 3);
    assert_eq!(ids(&door.get("/v1/tasks?state=queued")), [""; 0]);
    let one = door
        .get(&format!("/v1/tasks?prefix={}", &made[0][..9]))
        .good();
    assert_eq!(ids(&one), made[..1]);
    let of_repo = door
        .get(&format!("/v1/tasks?repo={}", repo.display()))
        .good();
    assert_eq!(ids(&of_repo).len(), 3);
    assert_eq!(ids(&door.get("/v1/tasks?repo=/else")).len(), 0);
    for (query, code) in [
        ("limit=0", "bad_input"),
        ("limit=1001", "bad_input"),
        ("limit=x", "bad_query"),
        ("state=asleep", "bad_input"),
        ("after=3f", "bad_input"),
        ("order=best", "bad_query"),
        ("sort=newest", "bad_query"),
    ] {
        let refused = door.get(&format!("/v1/tasks?{query}")).refusal();
        assert_eq!(refused, (400, code.into()), "{query}");
    }

    for path in [
        "/v1/pools?x=1",
        "/v1/agents?verbose",
        "/v1/openapi.json?v=2",
    ] {
        let refused = door.get(path).refusal();
        assert_eq!(refused, (400, "bad_query".into()), "{path}");
    }
    let body = json!({"frozen": false});
    let refused = door.post("/v1/freeze?pool=default", &body).refusal();
    assert_eq!(refused, (400, "bad_query".into()));

    // The position is the log's own.
    let events = world.dispatch(&["events", "--json"]).exits(0).out;
    let last: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    for path in [
        "/v1/tasks",
        "/v1/pools",
        "/v1/usage",
        "/v1/health",
        "/v1/agents",
    ] {
        assert_eq!(
            seq(&door.get(path)),
            last["seq"].as_u64().unwrap(),
            "{path}"
        );
    }

    // The same as the command line prints.
    for (path, args) in [
        ("/v1/usage", &["usage", "--json"][..]),
        ("/v1/agents", &["agents", "--json"]),
        ("/v1/tasks", &["list", "--all", "--json"]),
    ] {
        let printed = world.dispatch(args).exits(0).json();
        assert_eq!(door.get(path).good().json(), printed, "{path}");
    }
    let pools = door.get("/v1/pools").good().json();
    let pool = pools["pools"].as_array().unwrap().iter();
    let default = pool.clone().find(|pool| pool["name"] == "default").unwrap();
    assert_eq!(
        (&default["held"], &default["waiting"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(
        (&default["starts"], &default["paused"]),
        (&json!(3), &Value::Null)
    );
    let config = door.get("/v1/config").good().json();
    let agent = config.as_array().unwrap().iter();
    let agent = agent
        .clone()
        .find(|row| row["key"] == "task.agent")
        .unwrap();
    assert_eq!(agent["value"], "\"scripted\"");
    let gate = config.as_array().unwrap().iter();
    let gate = gate
        .clone()
        .find(|row| row["key"] == "agents.gated.env.GATE")
        .unwrap();
    assert_eq!(gate["value"], "\"***\"");
    let metrics = door.get("/v1/metrics").good();
    assert!(metrics.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    for line in [
        "dispatch_tasks{state=\"completed\"} 3",
        "dispatch_pool_starts{pool=\"default\"} 3",
        "dispatch_http_requests_total{method=\"POST\",path=\"/v1/tasks\",status=\"2xx\"} 3",
    ] {
        assert!(
            metrics.text().lines().any(|have| have == line),
            "{line}\n{}",
            metrics.text()
        );
    }
    door.close().exits(0);
}

#[test]
fn what_a_job_wrote_is_read_in_pieces() {
    let world = TestWorld::new();
    let door = Door::open(&world);
    let id = world.detach(&["Write it down\n> write out.txt hi\n> say It is written."]);
    world.dispatch(&["wait", &id]).exits(0);
    let whole = world.dispatch(&["logs", &id]).exits(0).out;
    let (mut read, mut from) = (Vec::new(), 0);
    loop {
        let piece = door
            .get(&format!("/v1/tasks/{id}/runs/1/log?from={from}&limit=7"))
            .good();
        assert!(piece.body.len() <= 7);
        read.extend_from_slice(&piece.body);
        from = piece.headers["dispatch-next"].parse().unwrap();
        assert_eq!(from, read.len() as u64);
        if piece.headers["dispatch-end"] == "true" {
            break;
        }
    }
    assert_eq!(String::from_utf8(read).unwrap(), whole);
    assert!(!whole.is_empty());
    let beyond = door.get(&format!("/v1/tasks/{id}/runs/1/log?from=99999999"));
    assert_eq!((beyond.good().body.len(), whole.is_empty()), (0, false));
    door.get(&format!("/v1/tasks/{id}/runs/1/log?err=true"))
        .good();
    let prompt = door.get(&format!("/v1/tasks/{id}/prompt")).good();
    let printed = world.dispatch(&["show", &id, "--prompt"]).exits(0).out;
    assert_eq!(prompt.text().trim_end(), printed.trim_end());
    for (path, code) in [
        ("runs/2/log", "no_such_run"),
        ("runs/x/log", "no_such_run"),
        ("runs/1/log?check=../../x", "unknown_check"),
        ("runs/1/log?limit=99999999", "bad_query"),
        ("prompt?run=9", "no_such_run"),
    ] {
        let refused = door.get(&format!("/v1/tasks/{id}/{path}")).refusal();
        assert_eq!(refused.1, code, "{path}");
    }
    door.close().exits(0);
}
