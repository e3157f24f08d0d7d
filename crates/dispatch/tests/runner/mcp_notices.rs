//! What a client is told without asking: resources that have changed, ends as log messages, Claude's
//! channel; in the generation that has each, and within bounds.
#![allow(
    deprecated,
    reason = "the older generation is a part of what is tested"
)]

use std::time::Duration;

use rmcp::model::{
    LoggingLevel, ServerNotification, SetLevelRequestParams, SubscribeRequestParams,
    SubscriptionFilter, UnsubscribeRequestParams,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    mcp_client::{Can, Client, PATIENCE, Told, WAYS, token_file},
    world::TestWorld,
};

const CHANNEL: &str = "notifications/claude/channel";

async fn subscribe(client: &Client, uri: &str) {
    let params = SubscribeRequestParams::new(uri);
    client.served.subscribe(params).await.unwrap();
}

/// Who may not hear of anything is told so, and not answered well and then told nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_would_never_be_told_is_refused() {
    let world = TestWorld::new();
    world.serve();
    let (writer, _) = token_file(&world, "dispatch");
    let client = Client::over(&world.socket(), Some(&writer), WAYS[2], Can::default()).await;
    let params = SubscribeRequestParams::new("dispatch://tasks");
    let refused = client.served.subscribe(params).await.unwrap_err();
    assert!(refused.to_string().contains("this needs read"), "{refused}");
    let level = SetLevelRequestParams::new(LoggingLevel::Info);
    assert!(client.served.set_level(level).await.is_err());
    client.close().await;
}

/// 2025-11-25: by a request for each; told until it is taken back, and over the end of an engine.
#[tokio::test(flavor = "multi_thread")]
async fn resources_are_told_of_in_the_older_generation() {
    for way in [WAYS[0], WAYS[2]] {
        let world = TestWorld::new();
        world.serve();
        let id = world.begun(&[]);
        let mut client = Client::connect(&world, way, Can::default()).await;
        let task = format!("dispatch://tasks/{id}");
        let (log, diff) = (format!("{task}/log"), format!("{task}/diff"));
        for uri in ["dispatch://tasks", "status://agents", &task, &log, &diff] {
            subscribe(&client, uri).await;
        }
        world.open_gate();
        let mut wanted = vec!["dispatch://tasks", "status://agents", &task, &log, &diff];
        while !wanted.is_empty() {
            let told = client.told(|told| matches!(told, Told::Updated(_))).await;
            let Told::Updated(uri) = told else {
                unreachable!()
            };
            wanted.retain(|known| *known != uri);
        }
        // A new task changes the list of resources.
        world.detach(&["Second\n> say x"]);
        client.told(|told| *told == Told::Listed).await;
        // What is not ours is refused, and so is more than there is room for.
        let nothing = SubscribeRequestParams::new("dispatch://nope");
        assert!(client.served.subscribe(nothing).await.is_err());
        for n in 5..64 {
            subscribe(&client, &format!("dispatch://tasks/{n:016x}")).await;
        }
        let more = SubscribeRequestParams::new("dispatch://tasks/00000000000000ff");
        let refused = client.served.subscribe(more.clone()).await.unwrap_err();
        assert!(refused.to_string().contains("may have 64"), "{refused}");
        for uri in ["dispatch://tasks", "status://agents"] {
            let params = UnsubscribeRequestParams::new(uri);
            client.served.unsubscribe(params).await.unwrap();
        }
        client.served.subscribe(more).await.unwrap();
        client.close().await;
    }
}

/// The follower of a connection finds the next engine, and misses nothing in between.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_goes_on_with_the_next_engine() {
    let world = TestWorld::new();
    world.serve();
    let id = world.begun(&[]);
    let mut client = Client::connect(&world, WAYS[0], Can::default()).await;
    subscribe(&client, &format!("dispatch://tasks/{id}")).await;
    world.kill_engine();
    world.open_gate();
    world.serve();
    client.told(|told| matches!(told, Told::Updated(_))).await;
    client.close().await;
}

/// 2026-07-28: one request that listens, which says what of it is granted.
#[tokio::test(flavor = "multi_thread")]
async fn resources_are_told_of_in_the_newer_generation() {
    for way in [WAYS[1], WAYS[3]] {
        let world = TestWorld::new();
        world.serve();
        let id = world.begun(&[]);
        let client = Client::connect(&world, way, Can::default()).await;
        let task = format!("dispatch://tasks/{id}");
        let mut filter = SubscriptionFilter::new();
        filter.resources_list_changed = Some(true);
        filter.tools_list_changed = Some(true);
        let many = (0..100).map(|n| format!("dispatch://tasks/{n:016x}"));
        let asked = [task.clone(), "file:///etc/passwd".into()];
        filter.resource_subscriptions = Some(asked.into_iter().chain(many).collect());
        let listening = timeout(PATIENCE, client.served.listen(filter)).await;
        let mut listening = listening.unwrap().unwrap();
        let granted = listening.acknowledged().clone();
        assert_eq!(granted.resources_list_changed, Some(true));
        assert_eq!(granted.tools_list_changed, None, "tools never change");
        let uris = granted.resource_subscriptions.unwrap();
        assert_eq!((uris.len(), uris.contains(&task)), (64, true));
        assert!(!uris.iter().any(|uri| uri.starts_with("file")));
        world.open_gate();
        world.detach(&["Second\n> say x"]);
        let (mut updated, mut listed) = (false, false);
        while !(updated && listed) {
            let told = timeout(PATIENCE, listening.next()).await.unwrap().unwrap();
            match told.unwrap() {
                ServerNotification::ResourceUpdatedNotification(told) => {
                    updated |= told.params.uri == task;
                }
                ServerNotification::ResourceListChangedNotification(_) => listed = true,
                other => panic!("{other:?}"),
            }
        }
        listening.cancel().await.unwrap();
        client.close().await;
    }
}

/// Whoever asks is told from some moment on: until that has come.
async fn listens(client: &mut Client, world: &TestWorld) {
    loop {
        world.dispatch(&["run", "Start\n> nonsense"]).exits(1);
        if timeout(Duration::from_secs(1), client.told.recv())
            .await
            .is_ok()
        {
            return;
        }
    }
}

/// Ends as log messages, for a client that asks for them, from the level on that it asks for.
#[tokio::test(flavor = "multi_thread")]
async fn ends_are_log_messages_in_the_older_generation() {
    for way in [WAYS[0], WAYS[2]] {
        let world = TestWorld::new();
        world.serve();
        let mut client = Client::connect(&world, way, Can::default()).await;
        // Nothing before it is asked for.
        world.dispatch(&["run", "First\n> write a.txt x"]).exits(0);
        let level = SetLevelRequestParams::new(LoggingLevel::Warning);
        client.served.set_level(level).await.unwrap();
        listens(&mut client, &world).await;
        world.dispatch(&["run", "Fine\n> write b.txt x"]).exits(0);
        world.dispatch(&["run", "Asks\n> ask Which?"]).exits(3);
        world.dispatch(&["run", "Bad\n> nonsense"]).exits(1);
        let mut heard = Vec::new();
        while heard.len() < 2 {
            let new = |told: &Told| matches!(told, Told::Logged(data) if data["title"] != "Start");
            let told = client.told(new).await;
            let Told::Logged(data) = told else {
                unreachable!()
            };
            heard.push((data["title"].clone(), data["state"].clone()));
        }
        assert_eq!(
            heard,
            [
                (json!("Asks"), json!("blocked")),
                (json!("Bad"), json!("failed"))
            ]
        );
        client.close().await;
    }
}

fn field<'a>(told: &'a Told, name: &str) -> &'a Value {
    match told {
        Told::Other(method, params) if method == CHANNEL => &params["data"][name],
        _ => &Value::Null,
    }
}

async fn hears(client: &mut Client, world: &TestWorld) {
    let id = world.detach(&["Zones\n> ask Which zone?"]);
    let status = client
        .told(|told| field(told, "task") == &json!(id) && field(told, "event") == "agent.status")
        .await;
    assert_eq!(*field(&status, "agent"), "scripted");
    let complete = client
        .told(|told| field(told, "task") == &json!(id) && field(told, "event") == "agent.complete")
        .await;
    assert_eq!(*field(&complete, "status"), "blocked");
    assert_eq!(*field(&complete, "repo"), json!(world.repo()));
    let workspace = field(&complete, "workspace").as_str().unwrap();
    assert!(workspace.starts_with("core/repo/"), "{workspace}");
    let Told::Other(_, params) = complete else {
        unreachable!()
    };
    let content = params["content"].as_str().unwrap();
    assert!(content.contains("Which zone?"), "{content}");
}

/// Claude's channel: to a client that declares it, and where it was switched on; to no other.
#[tokio::test(flavor = "multi_thread")]
async fn claudes_channel_is_for_those_that_ask() {
    let world = TestWorld::new();
    world.serve();
    let declares = Can {
        channel: true,
        ..Can::default()
    };
    for way in [WAYS[0], WAYS[2]] {
        let mut client = Client::connect(&world, way, declares).await;
        listens(&mut client, &world).await;
        hears(&mut client, &world).await;
        client.close().await;
    }
    let mut command = world.command(&["mcp", "--channel"]);
    let mut client = Client::spawned(&mut command, WAYS[0], Can::default()).await;
    listens(&mut client, &world).await;
    hears(&mut client, &world).await;
    client.close().await;
    // Others are told nothing; they have `list`, `agentic_status` and status://agents.
    for way in WAYS {
        let mut client = Client::connect(&world, way, Can::default()).await;
        world.dispatch(&["run", "Fine\n> write b.txt x"]).exits(0);
        let all = super::mcp_client::read(&client, "status://agents").await;
        let all: Value = serde_json::from_str(&all).unwrap();
        let last = &all[0];
        assert_eq!(
            (&last["status"], &last["agent"]),
            (&json!("completed"), &json!("scripted"))
        );
        assert!(client.told.try_recv().is_err(), "{way:?}");
        client.close().await;
    }
}

/// It says of itself what it can do, the same in both generations.
#[tokio::test(flavor = "multi_thread")]
async fn both_generations_are_told_the_same() {
    let world = TestWorld::new();
    world.serve();
    let mut told = Vec::new();
    for way in WAYS {
        let client = Client::connect(&world, way, Can::default()).await;
        let info = client.served.peer_info().unwrap();
        let can = serde_json::to_value(&info.capabilities).unwrap();
        assert!(can["experimental"].get("claude/channel").is_some());
        assert!(info.instructions.as_ref().unwrap().contains("`wait`"));
        let version = info.server_info.as_ref().unwrap().version.clone();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        told.push((way, can));
        client.close().await;
    }
    assert!(told.windows(2).all(|two| two[0].1 == two[1].1), "{told:#?}");
}
