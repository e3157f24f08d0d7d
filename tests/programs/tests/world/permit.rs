//! A real agent that asks for permissions, and a person who answers each by way of another engine than
//! the one that heard it. Must not sleep.

use dispatch_core::{
    ask::{AskId, Permissions},
    event::Kind,
    task::{TaskSpec, Terms},
};
use dispatch_engine::{
    engine::{Engine, Secrets, Settings},
    view::TaskView,
};
use serde_json::{Value, json};

use super::{finished, until};

/// A command to allow, one to deny, and nothing but words.
pub fn steps() -> Value {
    json!([
        {"tool": "shell", "command": "echo allowed >> README.md"},
        {"tool": "shell", "command": "echo denied >> README.md"},
        {"text": "Finished.", "repeat": true}
    ])
}

/// Answers all it asks. The run's own engine is the one that comes back.
pub async fn answered(
    mut engine: Engine,
    settings: impl Fn() -> Settings,
    spec: TaskSpec,
) -> (Engine, TaskView) {
    let spec = TaskSpec {
        terms: Terms {
            permissions: Permissions::Ask,
            ..spec.terms
        },
        ..spec
    };
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    for n in 1.. {
        let next = |kind: &Kind| match kind {
            Kind::PermissionAsked { ask, .. } => ask.0 == n,
            kind => matches!(kind, Kind::Finished { .. }),
        };
        let event = until(&engine, run.task, next).await;
        if matches!(event.kind, Kind::Finished { .. }) {
            break;
        }
        engine.shutdown().await.unwrap();
        engine = Engine::open(settings()).await.unwrap();
        let view = engine.task(run.task).await.unwrap();
        let ask = view.task.ask(AskId(n)).unwrap();
        let allow = ask.input.contains("echo allowed");
        engine.permit(run.task, ask.id, allow, None).await.unwrap();
    }
    let view = finished(&engine, run).await;
    (engine, view)
}

/// Each was asked once, and only what was allowed was done.
pub async fn holds(engine: &Engine, view: &TaskView, at: &str) {
    let words: Vec<&str> = view.task.asks.iter().map(|ask| ask.word()).collect();
    assert_eq!(words, ["allowed", "denied"], "{at} {:?}", view.task.asks);
    let diff = engine.diff(view.task.id).await.unwrap();
    assert!(diff.contains("\n+allowed"), "{at} {diff}");
    assert!(!diff.contains("denied"), "{at} {diff}");
}
