//! Deeds whose answer is lost on its way: what is told of them, and what comes of asking again.

use std::sync::{Arc, OnceLock};

use dispatch_core::{
    config::{self, Layer},
    id::RunId,
};
use dispatch_engine::{
    engine::{Engine, Observer, Sites},
    events::EventStream,
    reader::Reader,
    sites::fake::Fake,
    view::Told,
};
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::{
    client::{Client, ClientError},
    http::{caller::Caller, routes::with_mcp},
    mcp::server::PRODUCT,
    settings::{Env, Settings},
};

const CONFIG: &str = "[gate]\nload_per_core_max = 0\nretries_max = 0\nfail_runs = 0\n\
    [pools.default]\nslots = 1\n[agents.printer]\ndriver = \"plain\"\nprogram = \"sh\"\n\
    pool = \"default\"\nplacement = \"host\"\n[agents.talker]\ndriver = \"claude\"\n\
    program = \"sh\"\npool = \"default\"\nplacement = \"host\"\n";

/// A home with agents in memory, under one engine after another.
struct Stage {
    _home: tempfile::TempDir,
    settings: Settings,
    site: Fake,
}

impl Stage {
    fn new(site: Fake) -> Self {
        let home = tempfile::tempdir().unwrap();
        // The machine's own PATH: the engine refuses an old git, and the newer one may lie anywhere.
        let path = Env::read().text("PATH").unwrap().to_owned();
        let env = Env::of(&[
            ("DISPATCH_HOME", home.path().to_str().unwrap()),
            ("PATH", &path),
        ]);
        let mut settings = Settings::from_env(env, home.path()).unwrap();
        let (source, text) = ("test", CONFIG);
        settings.config = config::load(&[Layer { source, text }]).unwrap().0;
        Self {
            _home: home,
            settings,
            site,
        }
    }

    async fn engine(&self, observer: Observer) -> Engine {
        let mut settings = self.settings.engine();
        settings.observer = observer;
        let local = "local".parse().unwrap();
        let sites = Sites::from([(local, Arc::new(self.site.clone()) as _)]);
        Engine::with_sites(settings, sites).await.unwrap()
    }

    fn client(&self, engine: Engine) -> (Client, watch::Sender<bool>) {
        let (close, closing) = watch::channel(false);
        let routes = with_mcp(Ctx::new(engine, &self.settings, closing), PRODUCT);
        (Client::inside(routes, Caller::Own), close)
    }
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> api::Problem {
    match answer {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

/// Reads up to an event of that kind.
async fn until(events: &mut EventStream, kind: &str) {
    loop {
        match events.next().await.expect("the engine has ended") {
            Told::Event(event) if event.kind.word() == kind => return,
            _ => {}
        }
    }
}

/// The end of the engine is the next thing that it hears after the commit of the task.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_never_said_not_to_have_happened() {
    let stage = Stage::new(Fake::talking());
    let handle: Arc<OnceLock<Engine>> = Arc::default();
    let ending = Arc::clone(&handle);
    let observer = Observer(Some(Arc::new(move |_| {
        if let Some(engine) = ending.get() {
            // It is told, and nobody waits for its answer.
            assert!(engine.shutdown().now_or_never().is_none());
        }
    })));
    let engine = stage.engine(observer).await;
    // What it does when it begins is over then.
    engine.tasks().await.unwrap();
    assert!(handle.set(engine.clone()).is_ok());
    let (client, _close) = stage.client(engine);
    let asked = json!({"task": "x", "no_repo": true, "agent": "printer"});
    let problem = refusal(client.post::<_, Task>("/v1/tasks", &asked).await);
    assert_eq!(problem.code, "done_unseen", "{}", problem.detail);
    assert!(!ClientError::Refused(problem.clone()).nothing_happened());
    let reader = Reader::open(&stage.settings.paths.data).unwrap();
    let made = reader.tasks().unwrap();
    assert_eq!(Some(made[0].task.id.to_string()), problem.task);
    // Of what never began the truth is told, too.
    let problem = refusal(client.post::<_, Task>("/v1/tasks", &asked).await);
    assert_eq!((problem.code.as_str(), problem.task), ("engine_gone", None));
    assert_eq!(reader.tasks().unwrap().len(), 1);
}

/// Whoever waits to hear what becomes of a message that is in the log is not told that it is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_is_said_also_when_the_engine_ends_before_it_is_heard() {
    let stage = Stage::new(Fake::talking());
    let engine = stage.engine(Observer::default()).await;
    let (client, _close) = stage.client(engine.clone());
    let asked = json!({"task": "x", "no_repo": true, "agent": "talker"});
    let task: Task = client.post("/v1/tasks", &asked).await.unwrap();
    let mut events = engine.events(0);
    until(&mut events, "started").await;
    let path = format!("/v1/tasks/{}/say", task.id);
    let saying = tokio::spawn(async move {
        let said = json!({"text": "and more"});
        client.post::<_, api::Spoken>(&path, &said).await
    });
    until(&mut events, "message_taken").await;
    engine.shutdown().await.unwrap();
    let problem = refusal(saying.await.unwrap());
    assert_eq!(problem.code, "done_unseen", "{}", problem.detail);
    assert_eq!(problem.task, Some(task.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_comes_again_is_the_same_stop_and_only_a_kill_kills() {
    let stage = Stage::new(Fake::stubborn());
    let engine = stage.engine(Observer::default()).await;
    let (client, _close) = stage.client(engine.clone());
    let asked = json!({"task": "x", "no_repo": true, "agent": "printer"});
    let task: Task = client.post("/v1/tasks", &asked).await.unwrap();
    let run: RunId = format!("{}-1", task.id).parse().unwrap();
    let mut events = engine.events(0);
    while !matches!(events.next().await, Some(Told::Event(event)) if event.kind.word() == "started")
    {
    }
    let path = format!("/v1/tasks/{}/stop", task.id);
    let stop = async |client: &Client, key: &str, force: &str| {
        let asked = json!({"force": force});
        client.post_once::<_, Task>(&path, &asked, key).await
    };
    stop(&client, "s1", "ask").await.unwrap();
    stage.site.stopped(run, 1).await;
    for key in ["s1", "s2"] {
        assert_eq!(stop(&client, key, "ask").await.unwrap().state, "stopping");
    }
    engine.shutdown().await.unwrap();
    let next = stage.engine(Observer::default()).await;
    let (client, _close) = stage.client(next.clone());
    // It goes on with what the first one was told.
    stage.site.stopped(run, 2).await;
    assert_eq!(stop(&client, "s1", "ask").await.unwrap().state, "stopping");
    assert!(stage.site.stops(run).iter().all(|grace_ms| *grace_ms > 0));
    stop(&client, "s3", "kill").await.unwrap();
    next.idle().await;
    let stops = stage.site.stops(run);
    assert_eq!((stops.len(), stops.last()), (3, Some(&0)), "{stops:?}");
    // It stopped that run, and none that comes after it.
    let retry = format!("/v1/tasks/{}/retry", task.id);
    client.post::<_, Task>(&retry, &json!({})).await.unwrap();
    stop(&client, "s1", "ask").await.unwrap();
    let again: Task = client.get(&format!("/v1/tasks/{}", task.id)).await.unwrap();
    let state = again.state;
    assert!(
        !["stopping", "stopped"].contains(&state.as_str()),
        "{state}"
    );
    next.shutdown().await.unwrap();
}
