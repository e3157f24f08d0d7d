//! Programs at the door: tokens from `dispatch token`, an address from `dispatch serve --listen`.
//! Must not speak HTTP through a library: what goes over the wire is written here.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use rustix::process::Signal;
use serde_json::Value;

use super::world::{Followed, TestWorld};

/// One request with these headers; status and body.
#[track_caller]
pub(crate) fn ask(address: &str, line: &str, headers: &[&str]) -> (u16, Value) {
    let (status, body) = raw(address, line, headers);
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

#[track_caller]
fn raw(address: &str, line: &str, headers: &[&str]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut request = format!("{line} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|header| header.starts_with("host:")) {
        request.push_str(&format!("host: {address}\r\n"));
    }
    headers
        .iter()
        .for_each(|header| request.push_str(&format!("{header}\r\n")));
    stream
        .write_all(format!("{request}\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// An engine in the foreground that listens, and its address.
pub(crate) fn listening(world: &TestWorld) -> (Followed, String) {
    let mut serve = world.follow(&["serve", "--listen", "127.0.0.1:0", "--json"]);
    serve.until("url");
    let told: Value = serde_json::from_str(serve.last()).unwrap();
    let url = told["url"].as_str().unwrap();
    (serve, url.strip_prefix("http://").unwrap().to_owned())
}

#[track_caller]
fn token(world: &TestWorld, args: &[&str]) -> String {
    let all = [&["token", "new", "--json"][..], args].concat();
    let made = world.dispatch(&all).exits(0).json();
    format!("authorization: Bearer {}", made["token"].as_str().unwrap())
}

#[test]
fn a_token_opens_what_it_is_for_until_it_is_revoked() {
    let world = TestWorld::new();
    // Before there is an engine, and while one runs.
    let read = token(&world, &["--scope", "read", "--name", "ci"]);
    let (serve, address) = listening(&world);
    let all = token(&world, &["--scope", "read,dispatch,answer,admin"]);
    let (status, health) = ask(&address, "GET /v1/health", &[&read]);
    assert_eq!(
        (status, &health["data"]),
        (200, &world.home().join("data").to_str().unwrap().into())
    );
    let (status, problem) = ask(&address, "POST /v1/shutdown", &[&read]);
    assert_eq!((status, &problem["code"]), (403, &"wrong_scope".into()));
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("--scope admin")
    );
    let listed = world.dispatch(&["token", "list", "--json"]).exits(0);
    let rows = listed.json();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["scopes"][0]),
        (&"ci".into(), &"read".into())
    );
    assert!(!listed.out.contains(&read[22..]));
    world
        .dispatch(&["token", "revoke", "ci"])
        .exits(0)
        .says(&["ci is revoked"]);
    let (status, problem) = ask(&address, "GET /v1/health", &[&read]);
    assert_eq!((status, &problem["code"]), (401, &"bad_token".into()));
    assert_eq!(ask(&address, "POST /v1/shutdown", &[&all]).0, 200);
    serve.end().exits(0);
}

#[test]
fn no_door_on_the_network_is_open_without_a_word() {
    let world = TestWorld::new();
    world
        .dispatch(&["serve", "--listen", "0.0.0.0:0"])
        .exits(2)
        .says(&[
            "tokens would cross the network in the clear",
            "--insecure-plain-http",
        ]);
    world
        .dispatch(&["token", "new", "--scope", "write"])
        .exits(2)
        .says(&["there are read"]);
    world.dispatch(&["token", "revoke", "x"]).exits(2);
    let read = token(&world, &["--scope", "read"]);
    let (serve, address) = listening(&world);
    for (headers, status, code) in [
        (&[][..], 401, "no_token"),
        (&["authorization: Basic eDp5"], 401, "no_token"),
        (&[&*read, "host: evil.example"], 403, "foreign_host"),
        (
            &[&read, "origin: https://evil.example"],
            403,
            "foreign_origin",
        ),
        (&[&read, "origin: null"], 403, "foreign_origin"),
        (
            &[&read, "host: localhost", "host: localhost"],
            400,
            "bad_head",
        ),
        (&[&read, &read], 400, "bad_head"),
    ] {
        for path in ["GET /v1/health", "GET /nowhere", "PUT /v1/tasks"] {
            let (got, problem) = ask(&address, path, headers);
            assert_eq!(
                (got, &problem["code"]),
                (status, &code.into()),
                "{path} {headers:?}"
            );
        }
    }
    let own = format!("origin: http://{address}");
    assert_eq!(ask(&address, "GET /v1/health", &[&read, &own]).0, 200);
    assert_eq!(
        ask(&address, "GET /nowhere", &[&read]).1["code"],
        "no_route"
    );
    assert_eq!(
        ask(&address, "PUT /v1/tasks", &[&read]).1["code"],
        "no_method"
    );
    // Guessing: the right one is still heard.
    let guess = format!("authorization: Bearer dt_00000000_{}", "0".repeat(40));
    for _ in 0..11 {
        assert_eq!(ask(&address, "GET /v1/health", &[&guess]).0, 401);
    }
    assert_eq!(ask(&address, "GET /v1/health", &[&guess]).0, 429);
    assert_eq!(ask(&address, "GET /v1/health", &[&read]).0, 200);
    serve.signal(Signal::TERM);
    serve.end().exits(0);
}

/// What the agents' socket lets in is a run's token, and never our own user as such.
#[test]
fn being_ourselves_opens_the_persons_socket_only() {
    let world = TestWorld::new();
    let (serve, _) = listening(&world);
    let (status, _) = world.http("GET", "/v1/health", "").unwrap();
    assert_eq!(status, 200);
    let agents = world.http_at("agents", "engine.sock", "GET", "/v1/health", "");
    let (status, problem) = agents.unwrap();
    assert_eq!((status, &problem["code"]), (401, &"no_token".into()));
    serve.signal(Signal::TERM);
    serve.end().exits(0);
    assert!(!world.home().join("run/agents/engine.sock").exists());
    assert!(
        fs::metadata(world.home().join("run/agents"))
            .unwrap()
            .is_dir()
    );
}
