//! Our own agent from a person's command to a branch: `dispatch run --agent native` with the real
//! binary, and a scripted model in this process behind a door that notes what comes through it.
//! Must not be about what the agent does by itself; `crates/agent` has tests of that.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use dispatch_test_programs::fake_model::{Log, Server};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
};

use super::world::TestWorld;

const KEY: &str = "sk-ant-api03-the-real-key-0123456789abcdef";

/// Whom an agent asks: scripts by name, and the heads of all requests.
struct Model {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    log: PathBuf,
}

impl Model {
    /// Each script is a provider of its own, at its name.
    async fn new(world: &TestWorld, scripts: &[(&str, Value)]) -> Self {
        let (dir, log) = (world.path("scripts"), world.path("model.log"));
        fs::create_dir_all(&dir).unwrap();
        for (name, steps) in scripts {
            fs::write(dir.join(format!("{name}.json")), steps.to_string()).unwrap();
        }
        let server = Server::new(None, Some(dir.clone()), Log::open(Some(&log)).unwrap()).unwrap();
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = inner.local_addr().unwrap();
        tokio::spawn(Arc::new(server).serve(inner));
        let heads = Arc::default();
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", door.local_addr().unwrap());
        tokio::spawn(note(door, address, Arc::clone(&heads)));
        Self { url, heads, log }
    }

    /// A key's table, which asks this script.
    fn key(&self, name: &str) -> String {
        format!(
            "[keys.{name}]\nprovider = \"anthropic\"\nbase_url = \"{}/s/{name}\"\n\
             key = {{ from = \"{}_KEY\" }}\n",
            self.url,
            name.to_uppercase()
        )
    }

    fn seen(&self) -> String {
        self.heads.lock().unwrap().join("\n")
    }

    /// What the model was asked, request by request.
    fn asked(&self) -> Vec<Value> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let records = log.lines().map(|line| serde_json::from_str(line).unwrap());
        records
            .filter(|record: &Value| record["kind"] == "step")
            .collect()
    }
}

/// Hands every connection on, and keeps the head of what comes first.
async fn note(door: TcpListener, to: std::net::SocketAddr, heads: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut client, _)) = door.accept().await {
        let heads = Arc::clone(&heads);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = client.read_u8().await else {
                    return;
                };
                head.push(byte);
            }
            let text = String::from_utf8_lossy(&head).into_owned();
            heads.lock().unwrap().push(text);
            let Ok(mut server) = TcpStream::connect(to).await else {
                return;
            };
            if server.write_all(&head).await.is_err() {
                return;
            }
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let back = async {
                copy(&mut from_server, &mut to_client).await.ok();
                to_client.shutdown().await.ok();
            };
            // One side may end before the other, as connections do.
            tokio::join!(back, async {
                copy(&mut from_client, &mut to_server).await.ok();
            });
        });
    }
}

fn configure(world: &TestWorld, text: &str) {
    let path = world.home().join("dispatch.toml");
    let before = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{text}\n{before}")).unwrap();
}

fn broken(world: &TestWorld) {
    fs::write(world.repo().join("greet.sh"), "echo helo\n").unwrap();
    fs::write(
        world.repo().join("check.sh"),
        "test \"$(sh greet.sh)\" = hello\n",
    )
    .unwrap();
    world.commit();
}

const CHECK: &str = "[checks.greet]\nrank = 1\nmarkers = [{ file = \"greet.sh\" }]\n\
                     steps = [{ name = \"test\", argv = [\"sh\", \"check.sh\"] }]\n";

fn mends() -> Value {
    let edits = json!([{"old": "helo", "new": "hello"}]);
    json!([
        {"text": "I look first.", "tool": "shell", "command": "cat greet.sh"},
        {"tool": "edit_file", "args": {"path": "greet.sh", "edits": edits}},
        {"text": "The greeting is mended.", "repeat": true},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fix_passes_its_check_in_the_cage_and_the_key_stays_outside() {
    let world = TestWorld::new();
    broken(&world);
    let model = Model::new(&world, &[("main", mends())]).await;
    configure(&world, &format!("{}{CHECK}", model.key("main")));
    let done = world.dispatch_with(
        &[("MAIN_KEY", KEY)],
        &[
            "run",
            "--agent",
            "native",
            "--model",
            "main/claude-x",
            "--json",
            "Mend the greeting",
        ],
    );
    let task = done.exits(0).json();
    assert_eq!(task["state"], "completed", "{task}");
    assert_eq!(task["verified"], "yes", "{task}");
    assert_eq!(
        task["chain"],
        json!([{"key": "main", "model": "claude-x", "effort": null}])
    );
    assert!(
        model.seen().contains(&format!("x-api-key: {KEY}")),
        "{}",
        model.seen()
    );
    let prompt = model.asked()[0]["earlier"].to_string() + &model.asked()[0]["prompt"].to_string();
    assert!(prompt.contains("Mend the greeting"), "{prompt}");
}
