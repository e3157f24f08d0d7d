//! A real agent in the middle of a tool command: a message, another engine, and it goes on.
//! Must not sleep: the command waits on a pipe that the test holds.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
};

use dispatch_core::message::{Delivery, Fate, Sender};
use dispatch_engine::{
    engine::{Engine, Secrets, Settings},
    view::{Heard, TaskView},
};
use serde_json::{Value, json};

use super::{finished, patient};
use dispatch_core::task::{Placement, TaskSpec, Wrap};

pub const MESSAGE: &str = "Label them in blue.";
const MORE: &str = "Put the plum first.";

/// A named pipe in a directory of its own, and that directory.
pub fn pipe() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
    (home, path)
}

/// One command that waits, then nothing but words, in as many turns as there are.
pub fn steps(pipe: &Path) -> Value {
    let command = format!("cat {} && echo done >> README.md", pipe.display());
    json!([
        {"tool": "shell", "command": command},
        {"text": "Finished.", "repeat": true}
    ])
}

/// Says something while the tool command runs, to an engine that ends right after and is followed by
/// another one. The run's own engine is that one.
pub async fn spoken_to(
    engine: Engine,
    settings: impl Fn() -> Settings,
    spec: TaskSpec,
    pipe: PathBuf,
) -> (Engine, TaskView) {
    let spec = TaskSpec {
        placement: Placement::of(Wrap::Host),
        ..spec
    };
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    // Open for writing means that the command has it open for reading.
    let open = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(pipe));
    let gate = patient(open).await.unwrap().unwrap();
    let said = engine.say(run.task, MESSAGE.into(), Sender::Person, Secrets::new());
    assert_eq!(patient(said).await.unwrap().how, Heard::Delivered);
    engine.shutdown().await.unwrap();
    let engine = Engine::open(settings()).await.unwrap();
    let said = engine.say(run.task, MORE.into(), Sender::Person, Secrets::new());
    assert_eq!(patient(said).await.unwrap().how, Heard::Delivered);
    drop(gate);
    let view = finished(&engine, run).await;
    assert_eq!(view.task.runs.len(), 1);
    let fates: Vec<Fate> = view.task.messages.iter().map(|m| m.fate).collect();
    assert_eq!(fates, [Fate::Delivered(Delivery::Interrupt); 2]);
    (engine, view)
}

/// The model was shown both, once, and in order.
pub fn shown_once(asked: &[Value]) {
    let last = asked.last().unwrap();
    let text = |key: &str| last[key].as_str().unwrap();
    let all = format!("{}\n{}", text("earlier"), text("prompt"));
    for message in [MESSAGE, MORE] {
        assert_eq!(all.matches(message).count(), 1, "{last:#}");
    }
    assert!(all.find(MESSAGE) < all.find(MORE), "{last:#}");
}
