//! Programs at the door: tokens from `dispatch token`, an address from `dispatch serve --listen`.
//! Must not ask for anything that needs a task.

use std::{fs, process::Command};

use super::{
    wire::{Door, ask, token},
    world::TestWorld,
};

#[test]
fn a_token_opens_what_it_is_for_until_it_is_revoked() {
    let world = TestWorld::new();
    // Before there is an engine, and while one runs.
    let read = token(&world, &["--scope", "read", "--name", "ci"]);
    let door = Door::open(&world);
    let ci = |line: &str| ask(&door.address, line, &[&read], "");
    let health = ci("GET /v1/health").good().json();
    let data = world.home().join("data");
    assert_eq!(health["data"], data.to_str().unwrap());
    let refused = ci("POST /v1/shutdown");
    assert_eq!(refused.refusal(), (403, "wrong_scope".into()));
    assert!(refused.text().contains("--scope admin"));
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
    assert_eq!(ci("GET /v1/health").refusal(), (401, "bad_token".into()));
    door.close().exits(0);
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
    let door = Door::open(&world);
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
        (&[&read, &read], 400, "bad_head"),
    ] {
        for line in ["GET /v1/health", "GET /nowhere", "PUT /v1/tasks"] {
            let refused = ask(&door.address, line, headers, "").refusal();
            assert_eq!(refused, (status, code.into()), "{line} {headers:?}");
        }
    }
    let with = |line: &str, more: &str| ask(&door.address, line, &[&read, more], "");
    with(
        "GET /v1/health",
        &format!("origin: http://{}", door.address),
    )
    .good();
    with("GET /v1/health", "host: LocalHost:1").good();
    let nowhere = with("GET /nowhere", "x: y").refusal();
    assert_eq!(nowhere, (404, "no_route".into()));
    let put = with("PUT /v1/tasks", "x: y").refusal();
    assert_eq!(put, (405, "no_method".into()));
    // Guessing: the right one is still heard.
    let guess = format!("authorization: Bearer dt_00000000_{}", "0".repeat(40));
    let guess = || ask(&door.address, "GET /v1/health", &[&guess], "");
    for _ in 0..11 {
        assert_eq!(guess().status, 401);
    }
    let locked = guess();
    assert_eq!(locked.refusal(), (429, "too_many_guesses".into()));
    let wait: u64 = locked.headers["retry-after"].parse().unwrap();
    assert!((1..=61).contains(&wait));
    door.get("/v1/health").good();
    door.close().exits(0);
}

/// What the agents' socket lets in is a run's token, and never our own user as such.
#[test]
fn being_ourselves_opens_the_persons_socket_only() {
    let world = TestWorld::new();
    let door = Door::open(&world);
    let (status, _) = world.http("GET", "/v1/health", "").unwrap();
    assert_eq!(status, 200);
    let agents = world.http_at("agents", "engine.sock", "GET", "/v1/health", "");
    let (status, problem) = agents.unwrap();
    assert_eq!((status, &problem["code"]), (401, &"no_token".into()));
    door.close().exits(0);
    assert!(!world.home().join("run/agents/engine.sock").exists());
    assert!(
        fs::metadata(world.home().join("run/agents"))
            .unwrap()
            .is_dir()
    );
}

/// A certificate for this machine, by the system's own program, and a client to try it with.
fn certificate(world: &TestWorld) -> Option<[String; 2]> {
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| world.path(name).display().to_string());
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &key, "-out", &cert])
        .output();
    let curl = Command::new("curl").arg("--version").output();
    match (made, curl) {
        (Ok(made), Ok(_)) if made.status.success() => Some([cert, key]),
        _ => None,
    }
}

#[test]
fn a_certificate_of_ones_own_opens_addresses_that_others_reach() {
    let world = TestWorld::new();
    let Some([cert, key]) = certificate(&world) else {
        eprintln!("SKIPPED: the door over TLS: openssl and curl are needed");
        return;
    };
    let file = world.home().join("dispatch.toml");
    let before = fs::read_to_string(&file).unwrap();
    let tls = |cert: &str, key: &str| {
        let server = format!("[server]\ntls_cert = {cert:?}\ntls_key = {key:?}\n");
        fs::write(&file, format!("{server}{before}")).unwrap();
    };
    // The other way round it is none.
    tls(&key, &cert);
    let listen = ["serve", "--listen", "0.0.0.0:0", "--json"];
    world
        .dispatch(&listen)
        .exits(5)
        .says(&["use the certificate"]);
    tls(&cert, &key);
    let token = token(&world, &["--scope", "read,admin"]);
    let mut serve = world.follow(&listen);
    serve.until("url");
    let told: serde_json::Value = serde_json::from_str(serve.last()).unwrap();
    let url = told["url"].as_str().unwrap();
    let port = url.strip_prefix("https://localhost:").unwrap();
    let curl = |path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--cacert", &cert, "-H", &token])
            .args(more);
        curl.arg(format!("https://127.0.0.1:{port}{path}"))
            .output()
            .unwrap()
    };
    let health = curl("/v1/health", &["-f"]);
    assert!(health.status.success(), "{health:?}");
    assert!(
        String::from_utf8(health.stdout)
            .unwrap()
            .contains("\"version\"")
    );
    let old = curl("/v1/health", &["--tls-max", "1.1"]);
    assert!(!old.status.success(), "{old:?}");
    // What is not TLS gets no answer that could be one.
    let plain = super::wire::send(&format!("127.0.0.1:{port}"), b"GET / HTTP/1.1\r\n\r\n");
    assert!(!plain.starts_with(b"HTTP/"), "{plain:?}");
    assert!(curl("/v1/shutdown", &["-f", "-d", "{}"]).status.success());
    serve.end().exits(0);
}
