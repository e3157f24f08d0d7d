//! What our own agent's tools reach from inside its fence, with the real binary: as far as the task's
//! network goes, with the secrets that are theirs.
//! Must not be about what a tool answers; `crates/agent` has tests of that.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    native::{KEY, Model, configure, ended, results},
    world::TestWorld,
};

const SEARCH_KEY: &str = "search-secret-0123456789abcdef";
const TOKEN: &str = "files-token-0123456789abcdef";

/// A server of MCP in the repository, as small as one can be.
const SERVER: &str = r#"
say() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$1" "$2"; }
while read -r line; do
  id=$(printf %s "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case $line in
    *'"initialize"'*) say "$id" '{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"sh","version":"1"}}' ;;
    *'"tools/list"'*) say "$id" '{"tools":[{"name":"look","description":"Looks.","inputSchema":{"type":"object"}}]}' ;;
    *'"tools/call"'*)
      own=no; [ "$TOKEN" = "$(cat token.txt)" ] && own=yes
      others=$(env | grep -c -e SEARCH -e DISPATCH_WEB -e DISPATCH_MCP -e DISPATCH_KEY)
      say "$id" '{"content":[{"type":"text","text":"its token: '$own', others: '$others'"}]}' ;;
  esac
done
"#;

/// A site that answers every request alike, and keeps their heads.
async fn site(body: &'static str, kind: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else {
                    break;
                };
                head.push(byte);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            kept.lock().unwrap().push(head);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
                 connection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    (address, heads)
}

fn run(world: &TestWorld, placement: &str) -> Value {
    let keys = [
        ("MAIN_KEY", KEY),
        ("SEARCH_KEY", SEARCH_KEY),
        ("FILES_TOKEN", TOKEN),
    ];
    let args = [
        "run",
        "--agent",
        "native",
        "--model",
        "m",
        "--placement",
        placement,
        "--expects",
        "either",
        "--no-checks",
        "--detach",
        "--json",
        "Look around",
    ];
    let task = world.dispatch_with(&keys, &args).exits(0).json();
    ended(world, task["id"].as_str().unwrap())
}

const GROUPS: &str = "[agents.native.groups]\nweb_search = \"allow\"\nweb_fetch = \"allow\"\n\
                      mcp = \"allow\"\nkey_usage = \"allow\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn tools_reach_outside_from_the_cage_with_the_secrets_that_are_theirs() {
    let world = TestWorld::new();
    fs::write(world.repo().join("server.sh"), SERVER).unwrap();
    fs::write(world.repo().join("token.txt"), TOKEN).unwrap();
    world.commit();
    let (page, _) = site("<h1>A page</h1>", "text/html").await;
    let found = r#"{"results":[{"title":"Found","url":"https://a.example/"}]}"#;
    let (engine, asked) = site(found, "application/json").await;
    let look = "env | grep -e SEARCH -e TOKEN | cut -d= -f1 | sed 's/^/leaked /'; echo looked";
    let steps = json!([
        {"tool": "web_fetch", "args": {"url": format!("http://{page}/")}},
        {"tool": "web_fetch", "args": {"url": format!("http://{engine}/")}},
        {"tool": "web_search", "args": {"query": "it"}},
        {"tool": "files__look", "args": {}},
        {"tool": "shell", "command": look},
        {"text": "Seen.", "repeat": true},
    ]);
    let model = Model::new(&world, &[("main", steps)]).await;
    let tables = format!(
        "[web]\nprivate = [\"{page}\"]\n[web.search]\nshape = \"searxng\"\n\
         url = \"http://{engine}\"\nkey = {{ from = \"SEARCH_KEY\" }}\n\
         [mcp.files]\ncommand = [\"sh\", \"server.sh\"]\nenv = {{ TOKEN = {{ from = \"FILES_TOKEN\" }} }}\n"
    );
    configure(&world, &format!("{}{GROUPS}{tables}", model.key("main")));
    let task = run(&world, "cage");
    assert_eq!(task["state"], "completed", "{task}");
    let told = results(&world, task["id"].as_str().unwrap());
    for part in [
        "# A page",
        "may not be reached",
        "https://a.example/",
        "its token: yes, others: 0",
        "looked",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("leaked"), "{told}");
    assert!(
        !told.contains(SEARCH_KEY) && !told.contains(TOKEN),
        "{told}"
    );
    let asked = asked.lock().unwrap().join("\n");
    assert!(asked.contains("GET /search?q=it&format=json"), "{asked}");
    let bearer = format!("authorization: Bearer {SEARCH_KEY}");
    assert!(asked.contains(&bearer), "{asked}");
    let offered = &model.asked()[0]["tools"];
    assert!(offered.to_string().contains("files__look"), "{offered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_of_the_task_is_as_far_as_tools_reach() {
    let world = TestWorld::new();
    let (page, visits) = site("<h1>A page</h1>", "text/html").await;
    let fetch = |url: String| json!({"tool": "web_fetch", "args": {"url": url}});
    let turn = [
        fetch("https://elsewhere.invalid/".into()),
        fetch(format!("http://{page}/")),
        json!({"text": "Seen."}),
    ];
    // One for each task.
    let steps = json!([turn.clone(), turn].concat());
    let model = Model::new(&world, &[("main", steps)]).await;
    let placements = "[placements.closed]\nwrap = \"cage\"\nnetwork = \"none\"\n\
                      [placements.listed]\nwrap = \"cage\"\nnetwork = { allow = [\"a.invalid\"] }\n";
    let private = format!("[web]\nprivate = [\"{page}\"]\n");
    let all = format!("{}{GROUPS}{placements}{private}", model.key("main"));
    configure(&world, &all);
    let closed = run(&world, "closed");
    assert_eq!(closed["state"], "completed", "{closed}");
    let told = results(&world, closed["id"].as_str().unwrap());
    assert_eq!(
        told.matches("this task has no network").count(),
        2,
        "{told}"
    );
    let listed = run(&world, "listed");
    assert_eq!(listed["state"], "completed", "{listed}");
    let told = results(&world, listed["id"].as_str().unwrap());
    // The proxy of the fence decides, and its loopback is its own.
    assert!(
        told.contains("it would not connect to elsewhere.invalid:443"),
        "{told}"
    );
    assert!(told.contains("connect to 127.0.0.1"), "{told}");
    assert!(visits.lock().unwrap().is_empty());
}
