//! End to end: the real binary in a world of its own, from a person's command to a branch.
//! Must not sleep, must not need a network, and must leave no process behind.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    reason = "what a test's world lacks ends the test, and the place is what one wants to know"
)]

#[path = "runner/asks.rs"]
mod asks;
#[path = "runner/attach.rs"]
mod attach;
#[path = "runner/away.rs"]
mod away;
#[path = "runner/bases.rs"]
mod bases;
#[path = "runner/chat.rs"]
mod chat;
#[path = "runner/children.rs"]
mod children;
#[path = "runner/docs.rs"]
mod docs;
#[path = "runner/engine.rs"]
mod engine;
#[path = "runner/events.rs"]
mod events;
#[path = "runner/family.rs"]
mod family;
#[path = "runner/gate.rs"]
mod gate;
#[path = "runner/hostile.rs"]
mod hostile;
#[path = "runner/ids.rs"]
mod ids;
#[path = "runner/login.rs"]
mod login;
#[path = "runner/mcp.rs"]
mod mcp;
#[path = "runner/mcp_client.rs"]
mod mcp_client;
#[path = "runner/mcp_clients.rs"]
mod mcp_clients;
#[path = "runner/mcp_go.rs"]
mod mcp_go;
#[path = "runner/mcp_needs.rs"]
mod mcp_needs;
#[path = "runner/mcp_notices.rs"]
mod mcp_notices;
#[path = "runner/native.rs"]
mod native;
#[path = "runner/notify.rs"]
mod notify;
#[path = "runner/output.rs"]
mod output;
#[path = "runner/outside.rs"]
mod outside;
#[path = "runner/placement.rs"]
mod placement;
#[path = "runner/prompts.rs"]
mod prompts;
#[path = "runner/reading.rs"]
mod reading;
#[path = "runner/repeats.rs"]
mod repeats;
#[path = "runner/routes.rs"]
mod routes;
#[path = "runner/run.rs"]
mod run;
#[path = "runner/say.rs"]
mod say;
#[path = "runner/schema.rs"]
mod schema;
#[path = "runner/seat.rs"]
mod seat;
#[path = "runner/secrets.rs"]
mod secrets;
#[path = "runner/strangers.rs"]
mod strangers;
#[path = "runner/tokens.rs"]
mod tokens;
#[path = "runner/top.rs"]
mod top;
#[path = "runner/usage.rs"]
mod usage;
#[path = "runner/wire.rs"]
mod wire;
#[path = "runner/world.rs"]
mod world;

/// A file that nobody names is not compiled, and its tests pass for ever.
#[test]
fn no_file_is_forgotten() {
    let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let named = std::fs::read_to_string(tests.join("runner.rs")).unwrap();
    for entry in std::fs::read_dir(tests.join("runner")).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(named.contains(&format!("\"runner/{file}\"")), "{file}");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{file} says what it is");
    }
}
