//! Stops: whatever is under way, all of it is over within a second and says so.

use std::time::{Duration, Instant};

use dispatch_core::native::{Chunk, Line, TurnEnd};
use serde_json::{Value, json};

use super::bed::{Bed, deaf, end, results};
use crate::{
    clock::Clock,
    provider::{Provider, Reply, say},
};

fn shell(command: &str) -> Value {
    json!({"command": command})
}

fn runs(mark: &str) -> bool {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(mark))
}

#[tokio::test]
async fn row_4_a_stop_is_prompt_and_complete() {
    // Another run of this test on the same machine has another one.
    let mark = &format!("86440.{}", std::process::id());
    let command = &format!("trap '' TERM; sleep {mark} & sleep {mark}; sleep {mark}");
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"I\"}}]}\n\n";
    let is_step = |chunk: &Chunk| matches!(chunk, Chunk::Step { .. });
    let is_asked = |chunk: &Chunk| matches!(chunk, Chunk::Asked { .. });
    let is_waiting = |chunk: &Chunk| matches!(chunk, Chunk::Waiting { .. });
    let is_running = |chunk: &Chunk| matches!(chunk, Chunk::Running { .. });
    let is_result = |chunk: &Chunk| matches!(chunk, Chunk::Result { .. });
    type Until = fn(&Chunk) -> bool;
    let call = |input: Value| say::chat("", &[("a", "run_shell", input)]);
    let background = json!({"command": command, "background": true});
    let cases: [(&str, Reply, Until, &str); 9] = [
        (
            "a model that does not answer",
            Reply::Hangs,
            is_step,
            "allow",
        ),
        (
            "a model that does not go on",
            Reply::Stalls(begun.into()),
            is_step,
            "allow",
        ),
        (
            "a wait for a provider",
            Reply::error(503),
            is_waiting,
            "allow",
        ),
        (
            "a command",
            Reply::Events(call(shell(command))),
            is_running,
            "allow",
        ),
        (
            "a permission",
            Reply::Events(call(shell("true"))),
            is_asked,
            "ask",
        ),
        (
            "commands by themselves",
            Reply::Events(call(background.clone())),
            is_result,
            "allow",
        ),
        (
            "a tool of a server",
            Reply::Events(say::chat("", &[("a", "deaf__t", json!({}))])),
            is_running,
            "allow",
        ),
        (
            "a tool of a server beside a command",
            Reply::Events(say::chat(
                "",
                &[
                    ("a", "run_shell", background.clone()),
                    ("b", "deaf__t", json!({})),
                ],
            )),
            is_result,
            "allow",
        ),
        (
            "a wait for a command",
            Reply::Events(say::chat(
                "",
                &[
                    (
                        "a",
                        "run_shell",
                        json!({"command": command, "background": true}),
                    ),
                    ("b", "shell_jobs", json!({"action": "wait", "job": "job-1"})),
                ],
            )),
            is_result,
            "allow",
        ),
    ];
    for (name, reply, until, otherwise) in cases {
        let replies = vec![reply, Reply::Hangs];
        let provider = Provider::start(replies).await;
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        bed.opening["rules"] = json!({"layers": [{"otherwise": otherwise}]});
        // Whatever else it does, it has the server to end.
        bed.opening["servers"] = deaf(mark);
        let mut live = bed.start(Some("Go."));
        live.until(until).await;
        provider.until_asked(1).await;
        let asked = Instant::now();
        live.order(&json!({"stop": {}}));
        let lines = live.end().await;
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(1), "{name}: {took:?}");
        assert_eq!(end(&lines), TurnEnd::Stopped, "{name}");
        results(&lines);
        assert!(!runs(mark), "{name}");
    }
}

/// What was not taken up when it was stopped is not in the record, so whoever sent it has it still;
/// and the next run goes on with all that was said.
#[tokio::test]
async fn after_a_stop_the_next_word_begins_a_turn_that_knows_of_it() {
    let provider = Provider::start(vec![
        Reply::Events(say::anthropic(
            "I wait.",
            &[("a", "run_shell", shell("sleep 86441"))],
        )),
        Reply::Events(say::anthropic("Now then.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "anthropic", &provider)]);
    let mut live = bed.start(Some("Go."));
    live.until(|chunk| matches!(chunk, Chunk::Running { .. }))
        .await;
    live.order(&json!({"stop": {}}));
    live.end().await;
    let lines = bed.run(Some("Go on.")).await;
    assert_eq!(end(&lines), TurnEnd::Done);
    let body = provider.asked()[1].json();
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages[1]["content"][1]["text"], "I wait.");
    let result = messages[2]["content"][0]["content"].as_str().unwrap();
    assert!(
        result.contains("was stopped by whoever watches"),
        "{result}"
    );
    assert_eq!(messages[3]["content"][0]["text"], "Go on.");
}

/// A turn that ended before its first question has said nothing, whatever was said before it.
#[tokio::test]
async fn a_turn_without_an_answer_tells_none_of_an_earlier_one() {
    let reply = Reply::Events(say::anthropic("Yesterday's.", &[]));
    let provider = Provider::start(vec![reply]).await;
    let mut bed = Bed::new(&[("k", "anthropic", &provider)]);
    let told = |lines: &[Line]| match lines.last().map(|line| line.chunk.clone()) {
        Some(Chunk::TurnEnded { text, .. }) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&bed.run(Some("Go.")).await), "Yesterday's.");
    bed.opening["keys"]["k"]["auth"] = json!("bearer");
    bed.opening["keys"]["k"]["key"] = json!({"from": "DISPATCH_NO_SUCH_KEY"});
    assert_eq!(told(&bed.run(Some("And now?")).await), "");
}

/// Nobody reads what it says: it must not work on.
#[tokio::test]
async fn row_5_without_a_record_nothing_is_done() {
    let provider = Provider::start(vec![Reply::Events(say::chat(
        "",
        &[("a", "run_shell", shell("echo x >> log"))],
    ))])
    .await;
    let bed = Bed::new(&[("k", "compatible", &provider)]);
    let (input, mut orders) = std::io::pipe().unwrap();
    let (reader, output) = std::io::pipe().unwrap();
    let agent = tokio::spawn(crate::agent::run(Clock::default(), input, output));
    drop(reader);
    let mut opening = bed.opening.clone();
    opening["prompt"] = json!("Go.");
    let line = format!("{}\n", json!({"open": opening}));
    std::io::Write::write_all(&mut orders, line.as_bytes()).unwrap();
    let left = tokio::time::timeout(Duration::from_secs(10), agent)
        .await
        .unwrap();
    let error = left.unwrap().unwrap_err().to_string();
    assert!(error.contains("write the record"), "{error}");
    assert_eq!(bed.read("log"), "");
}
