//! Our own tools, resources and prompts, in both generations of MCP and over every transport.

use rmcp::model::{
    ArgumentInfo, CallToolResponse, CompleteRequestParams, GetPromptRequestParams, Reference,
};
use serde_json::{Value, json};

use super::{
    mcp_client::{Can, Client, STDIO, Told, WAYS, Way, read, token_file},
    world::TestWorld,
};

const OWN: [&str; 8] = [
    "dispatch", "wait", "show", "logs", "say", "answer", "stop", "list",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tools_in_both_generations_over_every_transport() {
    for way in WAYS {
        let world = TestWorld::new();
        let client = Client::connect(&world, way, Can::default()).await;
        for name in OWN {
            let tool = &client.tools()[name];
            assert!(tool.description.is_some() && tool.title.is_some(), "{name}");
            assert!(tool.output_schema.is_some(), "{name}");
            let text = serde_json::to_string(tool).unwrap();
            assert!(!text.contains("$ref"), "{name}: some clients follow none");
        }
        let repo = world.repo();
        let asked = json!({"task": "First\n> say hello\n> write a.txt one", "repo": repo});
        let handle = client.call("dispatch", asked).await;
        let (task, short) = (handle["task"].clone(), handle["short"].clone());
        assert_eq!(handle["open"], true, "{way:?}: it never blocks");
        let waited = client
            .call("wait", json!({"tasks": [short], "timeout_s": 25}))
            .await;
        assert_eq!(waited["done"], true, "{way:?}");
        assert_eq!(waited["tasks"][0]["state"], "completed");
        let shown = client.call("show", json!({"task": task})).await;
        let told = world.show(task.as_str().unwrap());
        for (name, value) in told.as_object().unwrap() {
            assert_eq!(shown[name], *value, "{way:?}: {name}, at every door");
        }
        let logs = client.call("logs", json!({"task": task})).await;
        assert!(logs["text"].as_str().unwrap().contains("hello"), "{logs}");
        assert_eq!(logs["open"], false);
        let rest = json!({"task": task, "from": logs["next"]});
        assert_eq!(client.call("logs", rest).await["text"], "");
        let list = client.call("list", json!({"states": ["completed"]})).await;
        assert_eq!(list["tasks"][0]["task"], task);
        let said = client
            .call("say", json!({"task": task, "text": "> write b.txt two"}))
            .await;
        assert_eq!(said["how"], "queued");
        let waited = client.call("wait", json!({"tasks": [task]})).await;
        assert_eq!(waited["tasks"][0]["runs"], 2);
        refusals(&client, &task).await;
        resources(&client, task.as_str().unwrap()).await;
        let aside = client.close().await;
        assert_eq!(aside, "", "{way:?}: nothing beside the protocol");
    }
}

async fn refusals(client: &Client, task: &Value) {
    for (tool, arguments, words) in [
        ("show", json!({"task": "00000000000000aa"}), "there is none"),
        ("show", json!({"task": "xyz"}), "there is none"),
        ("show", json!({"tsak": "3f"}), "unknown field"),
        ("wait", json!({"tasks": []}), "names none"),
        ("stop", json!({"task": task}), "nothing of it runs or waits"),
        (
            "answer",
            json!({"task": task, "text": "x"}),
            "only a blocked task",
        ),
        ("answer", json!({"task": task}), "either `text`"),
        (
            "answer",
            json!({"task": task, "allow": true}),
            "asks for nothing",
        ),
        ("logs", json!({"task": task, "run": 9}), "find that run"),
        (
            "dispatch",
            json!({"task": "x", "repo": "nowhere/at/all/and\nmore"}),
            "more",
        ),
        (
            "dispatch",
            json!({"task": "x", "no_repo": true, "agent": "nope"}),
            "there are",
        ),
    ] {
        let why = client.refused(tool, arguments).await;
        assert!(
            why.contains(words) && why.starts_with("failed to"),
            "{tool}: {why}"
        );
    }
    let unknown = client.try_call("nope", json!({})).await.unwrap_err();
    assert!(unknown.to_string().contains("there is none"), "{unknown}");
}

async fn resources(client: &Client, task: &str) {
    let listed = client.served.list_all_resources().await.unwrap();
    let uris: Vec<&str> = listed
        .iter()
        .map(|resource| resource.uri.as_str())
        .collect();
    let uri = format!("dispatch://tasks/{task}");
    assert!(
        uris.contains(&"dispatch://tasks") && uris.contains(&uri.as_str()),
        "{uris:?}"
    );
    let templates = client.served.list_all_resource_templates().await.unwrap();
    assert_eq!(templates.len(), 4);
    let all: Value = serde_json::from_str(&read(client, "dispatch://tasks").await).unwrap();
    assert_eq!(all["tasks"][0]["task"], task);
    let one: Value = serde_json::from_str(&read(client, &uri).await).unwrap();
    assert_eq!(one["id"], task);
    let by_prefix = format!("dispatch://tasks/{}", &task[..6]);
    assert_eq!(
        serde_json::from_str::<Value>(&read(client, &by_prefix).await).unwrap(),
        one
    );
    assert!(read(client, &format!("{uri}/log")).await.contains("obeyed") || !one["runs"].is_null());
    assert!(read(client, &format!("{uri}/diff")).await.contains("+one"));
    assert!(
        read(client, &format!("{uri}/prompt"))
            .await
            .contains("> write b.txt two")
    );
    for missing in [
        "dispatch://tasks/00000000000000aa",
        "dispatch://nope",
        "file:///etc/passwd",
    ] {
        let params = rmcp::model::ReadResourceRequestParams::new(missing);
        assert!(
            client.served.read_resource(params).await.is_err(),
            "{missing}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_and_completion() {
    let world = TestWorld::new();
    world.serve();
    let task = world.detach(&["First\n> say x"]);
    for way in WAYS {
        let client = Client::connect(&world, way, Can::default()).await;
        let prompts = client.served.list_all_prompts().await.unwrap();
        assert!(prompts.iter().any(|prompt| prompt.name == "fix_bug"));
        let arguments = json!({"bug": "it hangs"}).as_object().unwrap().clone();
        let params = GetPromptRequestParams::new("fix_bug").with_arguments(arguments);
        let prompt = client.served.get_prompt(params).await.unwrap();
        assert!(
            serde_json::to_string(&prompt.messages)
                .unwrap()
                .contains("it hangs")
        );
        let missing = GetPromptRequestParams::new("fix_bug");
        assert!(client.served.get_prompt(missing).await.is_err());
        for (of, argument, typed, wanted) in [
            (Reference::for_prompt("fix_bug"), "agent", "scr", "scripted"),
            (
                Reference::for_prompt("watch_and_report"),
                "tasks",
                &task[..3],
                task.as_str(),
            ),
            (
                Reference::for_resource("dispatch://tasks/{id}/log"),
                "id",
                "",
                task.as_str(),
            ),
        ] {
            let params = CompleteRequestParams::new(of, ArgumentInfo::new(argument, typed));
            let values = client
                .served
                .complete(params)
                .await
                .unwrap()
                .completion
                .values;
            assert!(
                values.iter().any(|value| value == wanted),
                "{argument}: {values:?}"
            );
        }
        client.close().await;
    }
}

/// While it waits, a client hears what happens, and may think better of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_bounded_tells_and_can_be_called_off() {
    let world = TestWorld::new();
    world.serve();
    for way in [STDIO, WAYS[3]] {
        let id = world.begun(&[]);
        let mut client = Client::connect(&world, way, Can::default()).await;
        let still = client
            .call("wait", json!({"tasks": [id], "timeout_s": 0}))
            .await;
        assert_eq!(still["done"], false);
        assert_eq!(still["tasks"][0]["state"], "running");
        let called_off = client.try_call("wait", json!({"tasks": [id]}));
        drop(tokio::time::timeout(std::time::Duration::from_millis(50), called_off).await);
        let waiting = json!({"tasks": [id], "timeout_s": 25, "mode": "any"});
        let wait = client.served.peer().clone();
        let params = rmcp::model::CallToolRequestParams::new("wait")
            .with_arguments(waiting.as_object().unwrap().clone());
        let waiting = tokio::spawn(async move { wait.call_tool(params).await });
        world.open_gate();
        let told = client
            .told(|told| matches!(told, Told::Progress(_, None, message) if message.contains("completed")))
            .await;
        let Told::Progress(changes, ..) = told else {
            unreachable!()
        };
        assert!(changes >= 1.0);
        let waited = waiting.await.unwrap().unwrap();
        assert_eq!(waited.structured_content.unwrap()["done"], true);
        client.close().await;
    }
}

/// Nobody may do over MCP what the token does not say.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_has_the_rights_of_its_caller() {
    let world = TestWorld::new();
    world.serve();
    let id = world.detach(&["First\n> say x"]);
    let (reader, _) = token_file(&world, "read");
    for modern in [false, true] {
        let way = Way { http: true, modern };
        let client = Client::over(&world.socket(), Some(&reader), way, Can::default()).await;
        let shown = client.call("show", json!({"task": id})).await;
        assert_eq!(shown["id"], id);
        let why = client
            .refused("dispatch", json!({"task": "x", "no_repo": true}))
            .await;
        assert!(why.contains("this needs dispatch"), "{why}");
        let why = client
            .refused("agentic_dispatch_shutdown_now", json!({}))
            .await;
        assert!(why.contains("this needs admin"), "{why}");
        client.close().await;
        let wrong = Client::try_over(&world.socket(), Some("dt_nope"), way, Can::default()).await;
        assert!(wrong.is_err());
    }
}

/// What an agent has inside its fence: a socket, a token in a file, and an engine that may go away.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_in_a_fence_comes_through_an_engines_restart() {
    let world = TestWorld::new();
    world.serve();
    let (_, token) = token_file(&world, "read,dispatch");
    let door = world.home().join("run/agents/engine.sock");
    let fenced = || {
        let mut command = world.command(&["mcp", "--run"]);
        // Nothing of the person's settings is there.
        command
            .env_remove("DISPATCH_HOME")
            .env("HOME", world.path("nothing"))
            .env("DISPATCH_DOOR", &door)
            .env("DISPATCH_TOKEN_FILE", &token);
        command
    };
    let client = Client::spawned(&mut fenced(), STDIO, Can::default()).await;
    let asked = json!({"task": "First\n> write a.txt one", "repo": world.repo()});
    let handle = client.call("dispatch", asked).await;
    world.kill_engine();
    let listing = client.call("list", json!({}));
    let restarting = async { world.serve() };
    let (list, ()) = tokio::join!(listing, restarting);
    assert_eq!(list["tasks"][0]["task"], handle["task"]);
    let waited = client
        .call("wait", json!({"tasks": [handle["task"]]}))
        .await;
    assert_eq!(waited["tasks"][0]["state"], "completed");
    assert_eq!(client.close().await, "");
    // Nowhere is the token but in its file.
    let mut without = fenced();
    let done = without.env_remove("DISPATCH_TOKEN_FILE").output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let told = String::from_utf8(done.stderr).unwrap();
    assert!(told.contains("DISPATCH_TOKEN_FILE is not set"), "{told}");
}

/// Another caller's session is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_belongs_to_whoever_began_it() {
    let world = TestWorld::new();
    world.serve();
    let (one, _) = token_file(&world, "read");
    let (other, _) = token_file(&world, "read,dispatch");
    let initialize = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"}},
    });
    let begun = world.mcp(&one, None, &initialize.to_string());
    assert_eq!(begun.status, 200);
    let session = begun.session.unwrap();
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).to_string();
    assert_eq!(world.mcp(&one, Some(&session), &list).status, 200);
    assert_eq!(world.mcp(&other, Some(&session), &list).status, 404);
    // And there is an end to how many one may have.
    let more = (0..40).map(|_| world.mcp(&other, None, &initialize.to_string()).status);
    let statuses: Vec<u16> = more.collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 32);
    assert!(statuses.ends_with(&[429]));
}

/// Whoever started it may go at any time.
#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_its_client() {
    let world = TestWorld::new();
    let done = world.dispatch_fed("", &["mcp"]).exits(0);
    assert_eq!((done.out.as_str(), done.err.as_str()), ("", ""));
    // It starts an engine as other verbs do, and not before it needs one.
    assert!(world.engine().is_none());
    let client = Client::connect(&world, STDIO, Can::default()).await;
    assert!(world.engine().is_none());
    client.call("list", json!({})).await;
    assert!(world.engine().is_some());
    let CallToolResponse::Complete(_) = client.try_call("list", json!({})).await.unwrap() else {
        panic!("a list is no task");
    };
    client.close().await;
}

/// Whatever comes, the next request is answered.
#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_nothing() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = "y".repeat(1 << 20);
    let nonsense = [
        "not json".to_owned(),
        "[]".into(),
        "{}".into(),
        "null".into(),
        "\u{0}\u{feff}".into(),
        r#"[{"jsonrpc":"2.0","id":2,"method":"ping"}]"#.into(),
        r#"{"jsonrpc":"1.0","id":2,"method":"ping"}"#.into(),
        r#"{"jsonrpc":"2.0","id":2,"method":"nope/nope"}"#.into(),
        r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list","arguments":[]}}"#
            .into(),
        r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":7}}"#.into(),
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}"#.into(),
        r#"{"jsonrpc":"2.0","id":77,"result":{}}"#.into(),
        format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"list","arguments":{deep}}}}}"#
        ),
        format!(r#"{{"jsonrpc":"2.0","id":2,"method":"ping","params":{{"x":"{long}"}}}}"#),
    ];
    let world = TestWorld::new();
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"}},
    });
    let begun = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let last = json!({"jsonrpc": "2.0", "id": 9, "method": "prompts/list"});
    let all = [
        vec![hello.to_string(), begun.to_string()],
        nonsense.to_vec(),
        vec![last.to_string()],
    ];
    let input: String = all
        .concat()
        .iter()
        .map(|line| format!("{line}\n"))
        .collect();
    let done = world.dispatch_fed(&input, &["mcp"]).exits(0);
    let answers: Vec<Value> = done
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let answered = |id: i64| {
        answers
            .iter()
            .any(|answer| answer["id"] == id && answer.get("result").is_some())
    };
    assert!(answered(1) && answered(9), "{answers:#?}");
    assert_eq!(done.err, "");

    world.serve();
    let (token, _) = token_file(&world, "read");
    let session = world.mcp(&token, None, &hello.to_string()).session;
    for line in &nonsense {
        let status = world.mcp(&token, session.as_deref(), line).status;
        assert!((200..500).contains(&status), "{status}: {line:.80}");
        assert!(world.mcp(&token, None, line).status < 500, "{line:.80}");
    }
    let last = world.mcp(&token, session.as_deref(), &last.to_string());
    assert_eq!(last.status, 200);
}
