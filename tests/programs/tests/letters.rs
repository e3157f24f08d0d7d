//! Letters between agents with a real engine: durable over its end, handed out once as new, bounded.
//! Must not sleep.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is a failed test"
)]

mod world;

use dispatch_core::letter::{Letter, Written};
use dispatch_engine::{
    engine::{Engine, Secrets},
    view::{Inbox, VerbError},
};
use world::{World, finished};

fn written(writer: &str, reader: &str, text: &str) -> Written {
    Written {
        writer: writer.into(),
        reader: reader.into(),
        subject: "Review".into(),
        text: text.into(),
    }
}

async fn send(engine: &Engine, at: &str, letter: Written) -> Result<Letter, VerbError> {
    engine.send_letter(at.into(), letter).await
}

async fn fetch(engine: &Engine, at: &str, reader: &str, limit: usize) -> Inbox {
    let inbox = engine.fetch_letters(at.into(), reader.into(), limit).await;
    inbox.unwrap()
}

fn texts(letters: &[Letter]) -> Vec<&str> {
    letters.iter().map(|l| l.written.text.as_str()).collect()
}

/// An engine with one ended task, and the name of its workspace.
async fn stage(world: &World) -> (Engine, String) {
    let engine = world.engine().await;
    let mut spec = world.spec(&["write a.txt one"]);
    spec.labels.org = Some("core".into());
    spec.labels.issue = Some(5);
    let run = engine.dispatch(spec, Secrets::new()).await.unwrap();
    finished(&engine, run).await;
    (engine, "core/repo/task-5".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_outlive_the_engine_and_only_what_was_handed_out_is_read() {
    let world = World::new();
    let (engine, at) = stage(&world).await;
    for text in ["one", "two", "three"] {
        let letter = send(&engine, &at, written("codex", "claude", text)).await;
        assert_eq!(letter.unwrap().read_at, None);
    }
    let inbox = fetch(&engine, &at, "claude", 2).await;
    assert_eq!(texts(&inbox.letters), ["one", "two"]);
    assert_eq!((inbox.new, inbox.unread), (2, 1));
    assert!(inbox.letters.iter().all(|letter| letter.read_at.is_some()));
    engine.shutdown().await.unwrap();

    let engine = world.engine().await;
    let inbox = fetch(&engine, &at, "claude", 10).await;
    assert_eq!(texts(&inbox.letters), ["one", "two", "three"]);
    assert_eq!((inbox.new, inbox.unread), (1, 0));
    let again = fetch(&engine, &at, "claude", 10).await;
    assert_eq!((again.letters.len(), again.new), (3, 0));
    let answer = send(&engine, &at, written("claude", "codex", "done")).await;
    assert_eq!(answer.unwrap().id.0, 4);
    let names = ["codex".to_owned(), "claude".to_owned()];
    let said = engine.letters_between(at.clone(), names, 2).await.unwrap();
    assert_eq!(texts(&said), ["three", "done"]);
    assert_eq!(said[1].read_at, None, "to look up is not to read");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_kept_is_refused_and_a_secret_is_masked() {
    let mut world = World::new();
    world.config.limits.letters_max = 2;
    world.config.limits.letter_bytes = 100;
    let (engine, at) = stage(&world).await;
    let refused = |sent: Result<Letter, VerbError>| sent.unwrap_err().to_string();
    let nowhere = send(&engine, "core/repo/task-6", written("a", "b", "x")).await;
    assert!(refused(nowhere).contains("no task has it"));
    let long = send(&engine, &at, written("a", "b", &"x".repeat(101))).await;
    assert!(refused(long).contains("limits.letter_bytes"));
    let nobody = send(&engine, &at, written("a", " ", "x")).await;
    assert!(refused(nobody).contains("the reader's name"));
    let key = format!("the key is ghp_{}", "aB3".repeat(12));
    let kept = send(&engine, &at, written("a", "b", &key)).await.unwrap();
    assert_eq!(kept.written.text, "the key is ***");
    send(&engine, &at, written("a", "b", "y")).await.unwrap();
    let full = send(&engine, &at, written("a", "c", "z")).await;
    assert!(refused(full).contains("lie unread"));
    fetch(&engine, &at, "b", 1).await;
    send(&engine, &at, written("a", "c", "z")).await.unwrap();
    engine.shutdown().await.unwrap();
}
