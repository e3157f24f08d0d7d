//! Providers that fail: what is tried again, what is left, and that nothing that was done is done
//! again or forgotten.

use dispatch_core::{
    models::Choice,
    native::{Chunk, Fault, Line, TurnEnd},
};
use serde_json::{Value, json};

use super::bed::{Bed, end, is_running, results, texts};
use crate::provider::{Asked, Provider, Reply, say};

fn shell(command: &str) -> Value {
    json!({"command": command})
}

fn hops(lines: &[Line]) -> Vec<(String, String)> {
    let name = |choice: &Choice| choice.key.to_string();
    let hops = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::ModelChanged { from, to, .. } => Some((name(from), name(to))),
        _ => None,
    });
    hops.collect()
}

/// The step that fails is asked elsewhere; the steps before it, their effects and what somebody said
/// in between stay.
#[tokio::test]
async fn row_2_no_duplicate_side_effects_on_failover() {
    for (from, to) in [
        ("anthropic", "openai"),
        ("openai", "compatible"),
        ("compatible", "anthropic"),
    ] {
        let first = Provider::start(vec![
            Reply::Events(say::any(
                from,
                "One.",
                &[("a", "run_shell", shell("echo a >> log"))],
            )),
            Reply::Events(say::any(
                from,
                "Two.",
                &[("b", "run_shell", shell("echo b >> log; sleep 0.3"))],
            )),
            Reply::error(429),
        ])
        .await;
        let second = Provider::start(vec![
            Reply::Events(say::any(
                to,
                "Three.",
                &[("c", "run_shell", shell("echo c >> log"))],
            )),
            Reply::Events(say::any(to, "Done.", &[])),
        ])
        .await;
        let mut bed = Bed::quick(&[("one", from, &first), ("two", to, &second)]);
        let mut live = bed.start(Some("Go."));
        live.until(is_running).await;
        live.until(is_running).await;
        live.say(5, "Mind the gap.");
        live.close();
        let lines = live.end().await;
        assert_eq!(end(&lines), TurnEnd::Done, "{from}");
        assert_eq!(bed.read("log"), "a\nb\nc\n");
        assert_eq!(texts(&lines), ["One.", "Two.", "Three.", "Done."]);
        assert_eq!(hops(&lines), [("one".into(), "two".into())]);
        assert_eq!(results(&lines).len(), 3);
        // Asked four times here: a try and three more.
        assert_eq!(first.asked().len(), 6, "{from}");
        let told = &second.asked()[0].text;
        for part in ["Go.", "One.", "Two.", "Mind the gap."] {
            assert!(told.contains(part), "{from}: {told}");
        }
    }
}

#[tokio::test]
async fn what_passes_is_waited_for_where_everybody_can_see_it() {
    let provider = Provider::start(vec![
        Reply::error(529),
        Reply::error(500),
        Reply::Breaks(String::new()),
        Reply::Events(say::chat("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::quick(&[("k", "compatible", &provider)]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(end(&lines), TurnEnd::Done);
    let mut kinds: Vec<(u32, Fault)> = lines
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Waiting { attempt, fault, .. } => Some((*attempt, *fault)),
            _ => None,
        })
        .collect();
    kinds.dedup();
    assert_eq!(
        kinds,
        [
            (1, Fault::Overloaded),
            (2, Fault::Overloaded),
            (3, Fault::Network)
        ]
    );
    assert_eq!(hops(&lines), []);
    // The same question each time.
    let asked = provider.asked();
    assert!(asked.iter().all(|each| each.text == asked[0].text));
}

#[tokio::test]
async fn what_does_not_pass_ends_the_turn_with_its_kind() {
    for (status, fault) in [
        (400, Fault::BadRequest),
        (404, Fault::BadRequest),
        (413, Fault::ContextTooLong),
        (401, Fault::Auth),
    ] {
        let provider = Provider::start(vec![Reply::error(status)]).await;
        let mut bed = Bed::quick(&[("k", "compatible", &provider)]);
        let lines = bed.run(Some("Go.")).await;
        match end(&lines) {
            TurnEnd::Failed {
                fault: found,
                message,
                ..
            } => {
                assert_eq!(found, fault);
                assert!(
                    message.contains(&status.to_string()) && message.contains("as told"),
                    "{message}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(provider.asked().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn waits_have_a_limit() {
    let provider = Provider::start(vec![Reply::error(503)]).await;
    let mut bed = Bed::quick(&[("k", "compatible", &provider)]);
    bed.opening["limits"]["wait_ms_max"] = json!(1_500);
    let lines = bed.run(Some("Go.")).await;
    assert!(matches!(
        end(&lines),
        TurnEnd::Failed {
            fault: Fault::Overloaded,
            ..
        }
    ));
    assert_eq!(provider.asked().len(), 2);
}

/// An answer that breaks off keeps what was closed, runs none of its calls, and goes on.
#[tokio::test]
async fn an_answer_that_breaks_off_goes_on_from_what_was_closed() {
    for kind in ["anthropic", "openai", "compatible"] {
        let whole = say::any(
            kind,
            "I begin.",
            &[("a", "run_shell", shell("echo x >> log"))],
        );
        // Everything but what ends it.
        let events: Vec<&str> = whole.split_inclusive("\n\n").collect();
        let left_out = match kind {
            "openai" => 1,
            "anthropic" => 2,
            _ => 3,
        };
        let part = events[..events.len() - left_out].concat();
        let provider = Provider::start(vec![
            Reply::Breaks(part),
            Reply::Events(say::any(kind, "I go on.", &[])),
        ])
        .await;
        let mut bed = Bed::quick(&[("k", kind, &provider)]);
        let lines = bed.run(Some("Go.")).await;
        assert_eq!(end(&lines), TurnEnd::Done, "{kind}");
        assert_eq!(bed.read("log"), "", "{kind}");
        results(&lines);
        let told = &provider.asked()[1].text;
        if kind == "compatible" {
            // There the text is closed by what follows it, and the calls by the end.
            assert_eq!(texts(&lines), ["I begin.", "I go on."], "{kind}");
            assert!(told.contains("Your answer broke off here"), "{told}");
        } else {
            assert!(
                told.contains("I begin.") && told.contains("this call was not run"),
                "{told}"
            );
        }
    }
}

/// A key that is used up is left alone until its time, also by the next run, and is back after it.
#[tokio::test]
async fn row_7_key_recovery() {
    let quota = Reply::Error {
        status: 429,
        headers: vec![("retry-after", "3600".into())],
        body: r#"{"error":{"code":"insufficient_quota","message":"no"}}"#.into(),
    };
    let first = Provider::start(vec![quota, Reply::Events(say::chat("One is back.", &[]))]).await;
    let second = Provider::start(vec![Reply::Events(say::chat("Two.", &[]))]).await;
    let mut bed = Bed::quick(&[
        ("one", "compatible", &first),
        ("two", "compatible", &second),
    ]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(
        (texts(&lines), hops(&lines).len()),
        (vec!["Two.".to_owned()], 1)
    );
    let until = lines.iter().find_map(|line| match &line.chunk {
        Chunk::KeyOut { key, until, .. } if key.as_str() == "one" => *until,
        _ => None,
    });
    assert!(until.unwrap() > crate::model::now() + 3_000_000);
    // The next run begins with the second, and does not ask the first.
    let lines = bed.run(Some("More.")).await;
    assert_eq!(
        (texts(&lines), hops(&lines).len()),
        (vec!["Two.".to_owned()], 0)
    );
    assert_eq!(first.asked().len(), 1);
    bed.clock.jump(3_600_000);
    let lines = bed.run(Some("And more.")).await;
    assert_eq!(texts(&lines), ["One is back."]);
    assert!(
        lines
            .iter()
            .any(|line| matches!(&line.chunk, Chunk::KeyBack { key } if key.as_str() == "one"))
    );
}

/// A key that was renewed where it comes from is read again, once, and nothing else is changed.
#[tokio::test]
async fn a_key_that_was_renewed_is_taken_up() {
    let provider = Provider::start(vec![
        Reply::error(401),
        Reply::Events(say::chat("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::quick(&[("k", "compatible", &provider)]);
    let file = bed.dir.path().join("key");
    let script = format!("cat {0}; echo sk-new > {0}", file.display());
    std::fs::write(&file, "sk-old\n").unwrap();
    bed.opening["keys"]["k"]["auth"] = json!("bearer");
    bed.opening["keys"]["k"]["key"] = json!({"command": ["sh", "-c", script]});
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(end(&lines), TurnEnd::Done);
    let keys: Vec<String> = provider
        .asked()
        .iter()
        .map(|asked: &Asked| asked.header("authorization").unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["Bearer sk-old", "Bearer sk-new"]);
    assert!(
        !lines
            .iter()
            .any(|line| matches!(line.chunk, Chunk::KeyOut { .. }))
    );
}

#[tokio::test]
async fn a_key_that_cannot_be_had_is_an_error_and_no_other_is_taken() {
    let first = Provider::start(vec![Reply::Hangs]).await;
    let second = Provider::start(vec![Reply::Events(say::chat("Two.", &[]))]).await;
    let mut bed = Bed::quick(&[
        ("one", "compatible", &first),
        ("two", "compatible", &second),
    ]);
    bed.opening["keys"]["one"]["auth"] = json!("bearer");
    bed.opening["keys"]["one"]["key"] = json!({"from": "DISPATCH_NO_SUCH_KEY"});
    let lines = bed.run(Some("Go.")).await;
    match end(&lines) {
        TurnEnd::Failed { fault, message, .. } => {
            assert_eq!(fault, Fault::Key);
            assert!(
                message.contains("DISPATCH_NO_SUCH_KEY is not set; set it"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(first.asked().is_empty() && second.asked().is_empty());
}

/// A provider whose answers break off again and again is left in the end.
#[tokio::test]
async fn a_provider_that_always_breaks_off_is_left() {
    let begun = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
                 data: {\"choices\":[{\"delta\":{\"content\":\"I\"}}]}\n\n";
    let first = Provider::start(vec![Reply::Breaks(begun.into())]).await;
    let second = Provider::start(vec![Reply::Events(say::chat("Done.", &[]))]).await;
    let mut bed = Bed::quick(&[
        ("one", "compatible", &first),
        ("two", "compatible", &second),
    ]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!((end(&lines), first.asked().len()), (TurnEnd::Done, 4));
    assert_eq!(hops(&lines).len(), 1);
}

/// How long the first wait of an agent in this session is.
async fn first_wait_ms(session: &str) -> u64 {
    let done = Reply::Events(say::chat("Done.", &[]));
    let provider = Provider::start(vec![Reply::error(503), done]).await;
    let mut bed = Bed::quick(&[("k", "compatible", &provider)]);
    bed.opening["session"] = json!(session);
    bed.opening["limits"]["retry_ms"] = json!(1_000_000);
    bed.opening["limits"]["wait_ms_max"] = json!(0);
    let begun = bed.clock.now();
    let lines = bed.run(Some("Go.")).await;
    let waits = lines.iter().find_map(|line| match &line.chunk {
        Chunk::Waiting { at, .. } => Some(*at),
        _ => None,
    });
    waits.unwrap() - begun
}

/// Agents of one machine, that all have the same number for their process in their own namespace.
#[tokio::test]
async fn agents_that_fail_together_do_not_come_back_together() {
    let mut waits = Vec::new();
    for session in ["a", "b", "c", "d"] {
        waits.push(first_wait_ms(session).await);
    }
    // Far more than what the test itself takes.
    waits.sort_unstable();
    assert!(
        waits.windows(2).all(|pair| pair[1] - pair[0] > 20_000),
        "{waits:?}"
    );
    assert!(
        waits
            .iter()
            .all(|wait| (1_000_000..1_280_000).contains(wait)),
        "{waits:?}"
    );
}
