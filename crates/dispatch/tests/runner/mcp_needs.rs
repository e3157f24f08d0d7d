//! What a task needs from somebody, over MCP: asked of the person before the client, told to the model,
//! and as a task of MCP; each in the generation that has it.

use rmcp::model::{
    CallToolResponse, CancelTaskParams, GetTaskParams, TaskPayload, TaskStatus, UpdateTaskParams,
};
use serde_json::{Value, json};

use super::{
    asks::{asking, installed, world as asking_world},
    mcp_client::{Can, Client, HOLDS, STDIO, Told, WAYS, token_file},
    world::TestWorld,
};

const ENTERS: Can = Can {
    enter: true,
    tasks: false,
    channel: false,
};
const TASKS: Can = Can {
    enter: false,
    tasks: true,
    channel: false,
};
const ASKS: &str = "Zones\n> ask Which zone?\n> answer-into zone.txt\n> write done.txt yes";

fn asked(world: &TestWorld) -> Value {
    json!({"task": ASKS, "repo": world.repo()})
}

async fn waited(client: &Client, task: &Value) -> Value {
    client.call("wait", json!({"tasks": [task]})).await["tasks"][0].take()
}

/// Whoever sits before the client is asked, and the task goes on within the same wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_asked_in_each_generation() {
    for way in WAYS {
        let world = TestWorld::new();
        let mut client = Client::connect(&world, way, ENTERS).await;
        client.will_enter(&[json!({"answer": "north"})]);
        let handle = client.call("dispatch", asked(&world)).await;
        let ended = waited(&client, &handle["task"]).await;
        assert_eq!(ended["state"], "completed", "{way:?}");
        assert_eq!(ended["runs"], 2);
        let told = client.told(|told| matches!(told, Told::Asked(_))).await;
        let Told::Asked(message) = told else {
            unreachable!()
        };
        assert!(message.contains("Which zone?"), "{message}");
        assert!(message.contains("(Zones)"), "whose question: {message}");
        let prompt = format!("dispatch://tasks/{}/diff", handle["task"].as_str().unwrap());
        assert!(
            super::mcp_client::read(&client, &prompt)
                .await
                .contains("north")
        );
        client.close().await;
    }
}

/// Declining answers nothing, and the model may still do it. One whose client cannot ask is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_enters_stays_open_for_the_model() {
    let world = TestWorld::new();
    world.serve();
    for way in WAYS {
        for (can, ask_person) in [(ENTERS, true), (ENTERS, false), (Can::default(), true)] {
            let mut client = Client::connect(&world, way, can).await;
            let handle = client.call("dispatch", asked(&world)).await;
            let task = &handle["task"];
            let wait = json!({"tasks": [task], "ask_person": ask_person});
            let waited = client.call("wait", wait).await;
            assert_eq!(waited["done"], true);
            assert_eq!(waited["tasks"][0]["state"], "blocked");
            assert_eq!(waited["tasks"][0]["question"], "Which zone?");
            let was_asked = std::iter::from_fn(|| client.told.try_recv().ok())
                .any(|told| matches!(told, Told::Asked(_)));
            assert_eq!(was_asked, can.enter && ask_person, "{way:?}");
            let on = client
                .call("answer", json!({"task": task, "text": "south"}))
                .await;
            assert_eq!(on["open"], true);
            let ended = self::waited(&client, task).await;
            assert_eq!(ended["state"], "completed");
            client.close().await;
        }
    }
}

/// While a form is open, an answer from elsewhere is heard: the form goes, and the wait is no error.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_is_withdrawn_when_somebody_else_has_answered() {
    for way in [WAYS[0], WAYS[2]] {
        let world = TestWorld::new();
        world.serve();
        let mut client = Client::connect(&world, way, ENTERS).await;
        client.will_enter(&[json!(HOLDS)]);
        let handle = client.call("dispatch", asked(&world)).await;
        let id = handle["task"].as_str().unwrap();
        let (ended, ()) = tokio::join!(waited(&client, &handle["task"]), async {
            client.held.notified().await;
            let answer = || world.dispatch(&["answer", id, "west"]).exits(0);
            tokio::task::block_in_place(answer);
        });
        assert_eq!(ended["state"], "completed", "{way:?}");
        client.told(|told| *told == Told::Withdrawn).await;
        client.close().await;
    }
}

/// What an agent asks permission for is asked of the person as well, each ask by itself.
#[tokio::test(flavor = "multi_thread")]
async fn permissions_are_asked_of_a_person_and_of_the_model() {
    for way in [WAYS[0], WAYS[3]] {
        let world = asking_world("");
        installed(&world);
        world.serve();
        let id = asking(&world, &[]);
        let client = Client::connect(&world, way, ENTERS).await;
        client.will_enter(&[
            json!({"allow": false, "why": "not that"}),
            json!({"allow": true}),
        ]);
        let ended = waited(&client, &json!(id)).await;
        assert_eq!(ended["state"], "completed", "{way:?}");
        let asks = world.show(&id)["asks"].clone();
        assert_eq!(asks[0]["state"], "allowed");
        assert_eq!(
            (&asks[1]["state"], &asks[1]["why"]),
            (&json!("denied"), &json!("not that"))
        );

        let model = Client::connect(&world, way, Can::default()).await;
        let id = asking(&world, &[]);
        let waited = waited(&model, &json!(id)).await;
        assert_eq!(waited["open"], true, "it goes on as soon as it may");
        assert_eq!(waited["asks"][0]["tool"], "Bash");
        let several = json!({"task": id, "allow": true});
        let why = model.refused("answer", several).await;
        assert!(
            why.contains("several wait, name one as `ask`: [1, 2]"),
            "{why}"
        );
        for ask in [1, 2] {
            let one = json!({"task": id, "allow": true, "ask": ask});
            model.call("answer", one).await;
        }
        let ended = self::waited(&model, &json!(id)).await;
        assert_eq!(ended["state"], "completed");
        model.close().await;
        client.close().await;
    }
}

async fn state_of(client: &Client, id: &str) -> (TaskStatus, TaskPayload) {
    let found = client.served.get_task(GetTaskParams::new(id)).await;
    let task = found.unwrap().task;
    assert_eq!(task.task.task_id, id);
    (task.task.status, task.payload)
}

async fn until(client: &Client, id: &str, status: TaskStatus) -> TaskPayload {
    let deadline = tokio::time::Instant::now() + super::mcp_client::PATIENCE;
    loop {
        let (now, payload) = state_of(client, id).await;
        if now == status {
            return payload;
        }
        assert!(tokio::time::Instant::now() < deadline, "{now:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn created(client: &Client, arguments: Value) -> String {
    let made = client.try_call("dispatch", arguments).await.unwrap();
    let CallToolResponse::Task(made) = made else {
        panic!("no task: {made:?}");
    };
    assert!(matches!(made.task.status, TaskStatus::Working));
    made.task.task_id
}

/// A dispatch as a task of MCP: ours, so it outlives client, server and engine.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispatch_is_a_task_of_mcp_that_outlives_everything() {
    for way in [WAYS[1], WAYS[3]] {
        let world = TestWorld::new();
        let client = Client::connect(&world, way, TASKS).await;
        let id = created(&client, asked(&world)).await;
        let payload = until(&client, &id, TaskStatus::InputRequired).await;
        let TaskPayload::InputRequired { input_requests } = payload else {
            panic!("{payload:?}");
        };
        let key = format!("{id}.question.1");
        let request = serde_json::to_value(&input_requests[&key]).unwrap();
        assert!(request.to_string().contains("Which zone?"), "{request}");
        client.close().await;
        world.kill_engine();
        let client = Client::connect(&world, way, TASKS).await;
        let payload = until(&client, &id, TaskStatus::InputRequired).await;
        let TaskPayload::InputRequired { input_requests } = payload else {
            panic!("{payload:?}");
        };
        assert!(input_requests.contains_key(&key), "the same name after it");
        // What does not fit is said and changes nothing; what is not ours is left alone.
        let entered =
            |key: &str, value: Value| UpdateTaskParams::new(&id, [(key.to_owned(), value)].into());
        let wrong = json!({"action": "accept", "content": {"answr": "east"}});
        let refused = client.served.update_task(entered(&key, wrong)).await;
        assert!(refused.unwrap_err().to_string().contains("answer"));
        let right = json!({"action": "accept", "content": {"answer": "east"}});
        for (key, value) in [
            ("nothing", right.clone()),
            (key.as_str(), json!({"action": "decline"})),
        ] {
            client
                .served
                .update_task(entered(key, value))
                .await
                .unwrap();
            assert_eq!(state_of(&client, &id).await.0, TaskStatus::InputRequired);
        }
        client
            .served
            .update_task(entered(&key, right.clone()))
            .await
            .unwrap();
        let payload = until(&client, &id, TaskStatus::Completed).await;
        let TaskPayload::Completed { result } = payload else {
            panic!("{payload:?}");
        };
        assert_eq!(result["structuredContent"]["state"], "completed");
        assert_eq!(result["structuredContent"]["task"], json!(id));
        // Late: it was answered, so this answers nothing.
        client
            .served
            .update_task(entered(&key, right))
            .await
            .unwrap();
        assert_eq!(world.show(&id)["runs"].as_array().unwrap().len(), 2);
        let gone = client
            .served
            .get_task(GetTaskParams::new("00000000000000aa"))
            .await;
        assert!(gone.is_err());
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_mcp_fails_and_is_called_off_as_ours_does() {
    let world = TestWorld::new();
    world.serve();
    for way in [WAYS[1], WAYS[3]] {
        let client = Client::connect(&world, way, TASKS).await;
        let fails = json!({"task": "x\n> exit 3", "repo": world.repo()});
        let id = created(&client, fails).await;
        let TaskPayload::Failed { error } = until(&client, &id, TaskStatus::Failed).await else {
            panic!("no failure");
        };
        assert!(
            error["message"].as_str().unwrap().contains("failed"),
            "{error:?}"
        );
        assert_eq!(error["data"]["state"], "failed");

        let gated = json!({"task": "Wait", "repo": world.repo(), "agent": "gated"});
        let id = created(&client, gated).await;
        client
            .served
            .cancel_task(CancelTaskParams::new(&id))
            .await
            .unwrap();
        until(&client, &id, TaskStatus::Cancelled).await;
        // Again, and nothing is left to do.
        client
            .served
            .cancel_task(CancelTaskParams::new(&id))
            .await
            .unwrap();
        assert_eq!(world.show(&id)["state"], "stopped");

        // A client that knows them may have the handle all the same.
        let plain = json!({"task": "y\n> say hi", "no_repo": true, "handle": true});
        let handle = client.call("dispatch", plain).await;
        assert_eq!(handle["open"], true);
        client.close().await;
    }
}

/// Clients of both generations declare them always, and in the older one take no task for an answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_older_generation_has_no_such_tasks() {
    let world = TestWorld::new();
    world.serve();
    for way in [WAYS[0], WAYS[2]] {
        let client = Client::connect(&world, way, TASKS).await;
        let plain = json!({"task": "z\n> say hi", "no_repo": true});
        assert_eq!(client.call("dispatch", plain).await["open"], true);
        client.close().await;
    }
}

/// Tasks of MCP are under the same rights as everything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_looks_at_tasks_of_mcp_and_ends_none() {
    let world = TestWorld::new();
    world.serve();
    let id = world.begun(&[]);
    let (reader, _) = token_file(&world, "read");
    let client = Client::over(&world.socket(), Some(&reader), WAYS[3], TASKS).await;
    assert_eq!(state_of(&client, &id).await.0, TaskStatus::Working);
    let refused = client.served.cancel_task(CancelTaskParams::new(&id)).await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("this needs dispatch")
    );
    assert_eq!(world.show(&id)["state"], "running");
    world.open_gate();
    let on_stdio = Client::connect(&world, STDIO, Can::default()).await;
    assert_eq!(waited(&on_stdio, &json!(id)).await["state"], "completed");
    on_stdio.close().await;
    client.close().await;
}
