//! An agent of a live run, with every right that a grant can give, asks each route of the API for what
//! belongs to a task of another family.
//! Must not list the routes by hand: the description that is served does.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
};

use serde_json::{Value, json};

use super::{
    wire::{Answer, Door, ask},
    world::TestWorld,
};

/// It stands in the text of a task that is nobody's child, and nowhere else.
const SECRET: &str = "The vault opens at nine";
const GRANT: &str = "[grants.all]\ntools = [\"dispatch\", \"wait\", \"show\", \"logs\", \"say\", \
    \"answer\", \"stop\", \"list\"]\nagents = [\"gated\"]\ndepth = 2\nchildren_max = 4\n\
    children_live_max = 2\n";

/// What a request needs to be understood at all, so that it is its sender that is refused.
fn body(path: &str, other: &str) -> Value {
    match path {
        "/v1/tasks" => json!({"task": "Go on behind it", "after": [other]}),
        "/v1/wait" => json!({"tasks": [other], "timeout_s": 1}),
        "/v1/plan" => json!({"task": "x"}),
        "/v1/tasks/{id}/answer" => json!({"text": "At ten"}),
        "/v1/tasks/{id}/say" => json!({"text": "Do something else"}),
        "/v1/tasks/{id}/asks/{ask}" => json!({"allow": true}),
        _ => json!({}),
    }
}

struct Agent<'a> {
    door: &'a Door,
    token: String,
}

impl Agent<'_> {
    fn asks(&self, verb: &str, path: &str, body: &Value) -> Answer {
        let body = if verb == "POST" {
            body.to_string()
        } else {
            String::new()
        };
        let line = format!("{verb} {path}");
        ask(&self.door.address, &line, &[&self.token], &body)
    }

    /// What it hears until it is told where the log is.
    fn hears(&self, query: &str) -> Vec<String> {
        let address = &self.door.address;
        let mut stream = TcpStream::connect(address).unwrap();
        let head = format!(
            "GET /v1/events?{query} HTTP/1.1\r\nhost: {address}\r\n{}\r\n\r\n",
            self.token
        );
        stream.write_all(head.as_bytes()).unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let mut heard: Vec<String> = Vec::new();
        for line in lines {
            let last = line == "event: at" || line.starts_with("HTTP/1.1 4");
            heard.push(line);
            if last {
                break;
            }
        }
        heard
    }
}

#[test]
fn an_agent_meets_nobody_elses_tasks_on_any_route() {
    let world = TestWorld::with_config(GRANT);
    let door = Door::open(&world);
    let other = world.detach(&["--agent", "gated", SECRET]);
    world.follow(&["logs", "-f", &other]).until("begun");
    let own = world.begun(&["--grant", "all", "--no-checks"]);
    let token = world.home().join(format!("data/doors/{own}-1/token"));
    let agent = Agent {
        token: format!(
            "authorization: Bearer {}",
            fs::read_to_string(token).unwrap()
        ),
        door: &door,
    };
    let seen = agent.asks("GET", &format!("/v1/tasks/{own}"), &Value::Null);
    assert_eq!(seen.good().json()["id"], own.as_str());
    let mut before = world.show(&other);

    let described = door.get("/v1/openapi.json").good().json();
    let mut walked = 0;
    for (path, verbs) in described["paths"].as_object().unwrap() {
        for verb in verbs.as_object().unwrap().keys() {
            if path.starts_with("/v1/events") || path == "/mcp" {
                continue;
            }
            let at = path.replace("{id}", &other).replace("{n}", "1");
            let at = at.replace("{message}", "1").replace("{ask}", "1");
            let verb = verb.to_ascii_uppercase();
            let answer = agent.asks(&verb, &at, &body(path, &other));
            let text = answer.text();
            let told = format!("{verb} {path}: {} {text}", answer.status);
            assert!(!text.contains(SECRET), "{told}");
            let about_itself = [("GET", "/v1/tasks"), ("GET", "/v1/door")];
            let fits = if about_itself.contains(&(&*verb, &**path)) {
                answer.status == 200 && !text.contains(&other)
            } else {
                matches!(answer.status, 403 | 404)
            };
            assert!(fits, "{told}");
            walked += 1;
        }
    }
    assert!(walked > 35, "{walked} routes");

    for query in ["after=0".to_owned(), format!("after=0&task={other}")] {
        let heard = agent.hears(&query);
        let whole = heard.join("\n");
        assert!(
            !whole.contains(&other) && !whole.contains(SECRET),
            "{whole}"
        );
    }

    // It is as it was, and nothing new waits behind it.
    let mut after = world.show(&other);
    for task in [&mut before, &mut after] {
        task["seq"] = Value::Null;
    }
    assert_eq!(before, after);
    let all = world.dispatch(&["list", "--json"]).exits(0).json();
    assert_eq!(all.as_array().map(Vec::len), Some(2), "{all}");
}
