//! The tools of the Go dispatcher, by its names: what they take and give, and that the new words beside
//! the old ones are true.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    mcp_client::{Can, Client, STDIO, Told, WAYS},
    world::TestWorld,
};

/// As it writes everything: names of the repository and the workspace, and nothing more.
fn named() -> TestWorld {
    let world = TestWorld::new();
    let path = world.home().join("dispatch.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let repo = world.repo();
    std::fs::write(path, format!("{config}\n[repos.api]\npath = {repo:?}\n")).unwrap();
    world
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_way_of_an_agent_by_the_old_names() {
    let world = named();
    world.serve();
    for (at, way) in WAYS.into_iter().enumerate() {
        let client = Client::connect(&world, way, Can::default()).await;
        let issue = 5 + at;
        let name = format!("core/repo/task-{issue}");
        let made = client
            .call(
                "agentic_dispatch",
                json!({"repo": "api", "issue": issue, "task": "Ask\n> ask Which?\n> answer-into a.txt"}),
            )
            .await;
        assert_eq!(
            (&made["success"], &made["workspace"], &made["agent"]),
            (&json!(true), &json!(name), &json!("scripted")),
            "{way:?}"
        );
        let watched = client
            .call("agentic_watch", json!({"workspaces": [name]}))
            .await;
        assert_eq!(watched["success"], false);
        assert_eq!(watched["failed"][0]["status"], "blocked");
        let log = Path::new(text(&made, "output_file"));
        assert!(log.is_absolute() && log.exists(), "a path, always: {log:?}");
        assert!(Path::new(text(&made, "workspace_dir")).is_dir());
        let status = client
            .call("agentic_status", json!({"workspace": name}))
            .await;
        assert_eq!(status["total"], 1);
        assert_eq!(
            status["blocked"],
            json!([{"name": name, "repo": world.repo(), "agent": "scripted", "question": "Which?"}])
        );
        // A dry run says what it would say, and says it to nobody.
        let dry = json!({"workspace": name, "answer": "this", "dry_run": true});
        let dry = client.call("agentic_resume", dry).await;
        assert!(text(&dry, "prompt").ends_with("this"), "{dry}");
        assert_eq!(dry["state"], "blocked");
        let on = json!({"workspace": name, "answer": "this"});
        let on = client.call("agentic_resume", on).await;
        assert_eq!(
            (&on["success"], &on["workspace"]),
            (&json!(true), &json!(name))
        );
        let second = Path::new(text(&on, "output_file"));
        assert!(second.is_absolute() && second != log, "each run has one");
        let watched = client
            .call("agentic_watch", json!({"workspaces": [name]}))
            .await;
        assert_eq!(watched["success"], true);
        assert_eq!(watched["completed"][0]["workspace"], name);
        let complete = client
            .call(
                "agentic_complete",
                json!({"workspace": made["workspace_dir"]}),
            )
            .await;
        assert_eq!(
            (&complete["success"], &complete["changed"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(complete["workspace"], name);
        // Ended, it goes on for a word more, and for none.
        let more = json!({"workspace": name, "answer": "> write b.txt two"});
        client.call("agentic_resume", more).await;
        client
            .call("agentic_watch", json!({"workspaces": [name]}))
            .await;
        client
            .call("agentic_resume", json!({"workspace": name}))
            .await;
        client
            .call("agentic_watch", json!({"workspaces": [name]}))
            .await;
        let id = text(&made, "task");
        assert_eq!(world.show(id)["runs"].as_array().unwrap().len(), 4);
        client.close().await;
    }
    // Nothing is left running; each end is one event, however often one looked.
    let client = Client::connect(&world, STDIO, Can::default()).await;
    let all = client.call("agentic_status", json!({"limit": 0})).await;
    // The last run was told nothing, so it asks again.
    let blocked = all["blocked"].as_array().unwrap().len();
    assert_eq!((&all["total"], blocked), (&json!(4), 4));
    let two = client.call("agentic_status", json!({"limit": 2})).await;
    assert_eq!(two["total"], 2);
    let none = client
        .call("agentic_status", json!({"status": "failed"}))
        .await;
    assert_eq!(none["total"], 0);
    client.close().await;
}

/// The places and the prompt, and nothing on the disk or in the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_and_a_prep_write_nothing() {
    let world = named();
    world.serve();
    let before = world.events_so_far();
    for way in WAYS {
        let client = Client::connect(&world, way, Can::default()).await;
        let asked = json!({"repo": "api", "task": "Do the thing", "branch": "main", "tag": "v1",
            "org": "acme", "dry_run": true});
        let dry = client.call("agentic_dispatch", asked.clone()).await;
        assert_eq!(dry["workspace"], "acme/repo/main");
        assert_eq!(
            (&dry["state"], &dry["task"]),
            (&json!("planned"), &json!(""))
        );
        assert_eq!((&dry["output_file"], &dry["pid"]), (&json!(""), &json!(0)));
        assert_eq!(dry["ignored"], json!(["tag"]));
        assert!(text(&dry, "prompt").contains("Do the thing"));
        let dir = Path::new(text(&dry, "workspace_dir"));
        assert!(
            dir.is_absolute() && !dir.exists(),
            "where it would be: {dir:?}"
        );

        let mut asked = asked;
        asked.as_object_mut().unwrap().remove("task");
        let prep = client.call("agentic_prep_workspace", asked).await;
        assert_eq!(prep["workspace_dir"], dry["workspace_dir"]);
        assert_eq!(
            (&prep["resumed"], &prep["memories"]),
            (&json!(false), &json!(0))
        );
        assert!(text(&prep, "branch").starts_with("dispatch/"));
        assert_eq!(text(&prep, "prompt_version").len(), 64);
        for (wrong, words) in [
            (json!({"repo": "api"}), "missing field `task`"),
            (json!({"task": "x"}), "missing field `repo`"),
            (json!({"repo": "api", "task": " ", "dry_run": true}), "task"),
            (json!({"repo": "api", "task": "x", "agent": "nope"}), "nope"),
        ] {
            let why = client.refused("agentic_dispatch", wrong).await;
            assert!(why.contains(words), "{words}: {why}");
        }
        for tool in ["agentic_resume", "agentic_complete", "agentic_status"] {
            let why = client
                .refused(tool, json!({"workspace": "core/repo/none"}))
                .await;
            assert!(why.contains("there is none"), "{why}");
        }
        let nobody = json!({"workspaces": ["core/repo/none"]});
        let why = client.refused("agentic_watch", nobody).await;
        assert!(why.contains("none that begins so"), "{why}");
        client.close().await;
    }
    assert_eq!(world.events_so_far(), before);
}

/// Queued is a success that says so; a hard shutdown says what it ended and deletes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_stopped_and_started_and_nothing_is_deleted() {
    let world = named();
    world.serve();
    let running = world.begun(&[]);
    for way in WAYS {
        let client = Client::connect(&world, way, Can::default()).await;
        let frozen = client.call("agentic_dispatch_shutdown", json!({})).await;
        assert_eq!(
            (&frozen["running"], &frozen["queued"]),
            (&json!(1), &json!(0))
        );
        let asked =
            |branch: &str| json!({"repo": "api", "task": "x\n> write x.txt hi", "branch": branch});
        world.git(&["branch", "-f", "one"]);
        world.git(&["branch", "-f", "two"]);
        let one = client.call("agentic_dispatch", asked("one")).await;
        assert_eq!(
            (&one["success"], &one["state"]),
            (&json!(true), &json!("queued"))
        );
        assert!(text(&one, "reason").contains("frozen"), "{one}");
        assert_eq!(one["ahead"], 0);
        assert!(Path::new(text(&one, "output_file")).is_absolute(), "{one}");
        let two = client.call("agentic_dispatch", asked("two")).await;
        assert_eq!(two["ahead"], 1, "{two}");
        let same = client.refused("agentic_dispatch", asked("one")).await;
        assert!(same.contains("`taken`"), "{same}");
        let time = json!({"workspaces": ["core/repo/o", "core/repo/t"], "timeout": 1});
        let watched = client.call("agentic_watch", time).await;
        assert_eq!(watched["success"], false);
        let still = watched["failed"].as_array().unwrap();
        assert_eq!(still.len(), 2, "all that begin so: {watched}");
        assert_eq!(
            (&still[0]["status"], &still[0]["state"]),
            (&json!("timeout"), &json!("queued"))
        );
        let started = client.call("agentic_dispatch_start", json!({})).await;
        assert_eq!(started["success"], true);
        let both = json!({"workspaces": [one["workspace"], two["workspace"]]});
        let watched = client.call("agentic_watch", both).await;
        assert_eq!(watched["success"], true, "{watched}");
        client.close().await;
    }
    let client = Client::connect(&world, STDIO, Can::default()).await;
    client.call("agentic_dispatch_shutdown", json!({})).await;
    let queued = json!({"repo": "api", "task": "x\n> write x.txt hi", "branch": "one"});
    let queued = client.call("agentic_dispatch", queued).await;
    let ended = client
        .call("agentic_dispatch_shutdown_now", json!({}))
        .await;
    assert_eq!(ended["stopped"], 2, "{ended}");
    let both = json!({"tasks": [running, queued["task"]]});
    let waited = client.call("wait", both).await;
    assert_eq!(waited["done"], true);
    for task in waited["tasks"].as_array().unwrap() {
        assert_eq!(task["state"], "stopped");
    }
    client.call("agentic_dispatch_start", json!({})).await;
    client
        .call("agentic_resume", json!({"workspace": queued["workspace"]}))
        .await;
    let watched = client
        .call(
            "agentic_watch",
            json!({"workspaces": [queued["workspace"]]}),
        )
        .await;
    assert_eq!(
        watched["success"], true,
        "what was stopped goes on: {watched}"
    );
    client.close().await;
}

/// Each end is told as it comes, with how many of how many.
#[tokio::test(flavor = "multi_thread")]
async fn watching_tells_of_each_end() {
    let world = TestWorld::new();
    world.serve();
    for way in WAYS {
        let ids = [world.begun(&[]), world.begun(&[])];
        let mut client = Client::connect(&world, way, Can::default()).await;
        let watching = client.served.peer().clone();
        // None are named: all that run or wait.
        let params = rmcp::model::CallToolRequestParams::new("agentic_watch");
        let watching = tokio::spawn(async move { watching.call_tool(params).await });
        for settled in [1.0, 2.0] {
            world.open_gate();
            let told = client.told(|told| matches!(told, Told::Progress(..))).await;
            let Told::Progress(now, all, message) = told else {
                unreachable!()
            };
            assert_eq!((now, all), (settled, Some(2.0)), "{way:?}");
            assert!(message.contains("completed"), "{message}");
        }
        let watched = watching.await.unwrap().unwrap().structured_content.unwrap();
        assert_eq!(watched["success"], true);
        let tasks = watched["completed"].as_array().unwrap();
        let tasks: Vec<&str> = tasks.iter().map(|task| text(task, "task")).collect();
        assert!(ids.iter().all(|id| tasks.contains(&id.as_str())));
        client.close().await;
    }
}

/// Letters are in the log: durable, bounded, and read only when they were handed out.
#[tokio::test(flavor = "multi_thread")]
async fn letters_outlive_the_engine() {
    let world = named();
    world.serve();
    for (at, way) in WAYS.into_iter().enumerate() {
        let client = Client::connect(&world, way, Can::default()).await;
        let made = json!({"repo": "api", "issue": 20 + at, "task": "x\n> write x.txt hi"});
        let made = client.call("agentic_dispatch", made).await;
        let place = made["workspace"].clone();
        for (tool, subject) in [("agent_send", "one"), ("agentic_message_send", "two")] {
            let letter = json!({"workspace": place, "from_agent": "codex", "to_agent": "claude",
                "subject": subject, "content": "  As it is.\n"});
            let sent = client.call(tool, letter).await;
            assert_eq!(sent["success"], true);
            assert_eq!(sent["message"]["content"], "  As it is.\n");
            assert_eq!(sent["message"]["sent_by"], "person");
        }
        let one = json!({"workspace": place, "agent": "claude", "limit": 1});
        let inbox = client.call("agent_inbox", one.clone()).await;
        assert_eq!((&inbox["new"], &inbox["unread"]), (&json!(1), &json!(1)));
        assert_eq!(inbox["messages"][0]["subject"], "one");
        client.close().await;
        world.kill_engine();
        let client = Client::connect(&world, way, Can::default()).await;
        let inbox = client.call("agentic_message_inbox", one).await;
        assert_eq!(
            inbox["messages"][0]["subject"], "two",
            "what was not handed out"
        );
        let both = json!({"workspace": place, "agent": "claude", "with_agent": "codex"});
        for tool in ["agent_conversation", "agentic_message_conversation"] {
            let all = client.call(tool, both.clone()).await;
            assert_eq!((&all["count"], &all["unread"]), (&json!(2), &json!(0)));
        }
        let nowhere = json!({"workspace": "core/repo/none", "from_agent": "a", "to_agent": "b",
            "content": "x"});
        let why = client.refused("agent_send", nowhere).await;
        assert!(why.contains("there is none"), "{why}");
        client.close().await;
    }
}
