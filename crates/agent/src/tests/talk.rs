//! What is said to an agent: messages during a turn and between turns, permissions, and that there is
//! never more than one turn.

use dispatch_core::native::{Chunk, Line, TurnEnd};
use serde_json::{Value, json};

use super::bed::{Bed, deaf, end, is_running, results, texts};
use crate::{
    provider::{Provider, Reply, say},
    random::Random,
};

fn shell(command: &str) -> Value {
    json!({"command": command})
}

fn said(lines: &[Line]) -> Vec<(bool, Vec<u64>)> {
    let said = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Turn { said } => Some((true, said.iter().map(|message| message.id).collect())),
        Chunk::Said { said } => Some((false, said.iter().map(|message| message.id).collect())),
        _ => None,
    });
    said.collect()
}

#[tokio::test]
async fn a_message_is_told_at_the_next_tool_boundary_and_a_command_makes_room_for_it() {
    let provider = Provider::start(vec![
        Reply::Events(say::anthropic(
            "",
            &[("a", "run_shell", shell("echo begun; sleep 86430"))],
        )),
        Reply::Events(say::anthropic("I stop.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "anthropic", &provider)]);
    let mut live = bed.start(Some("Go."));
    live.until(is_running).await;
    live.say(7, "Use UTC.");
    live.say(8, "And be quick.");
    assert_eq!(live.ended().await, TurnEnd::Done);
    live.close();
    let lines = live.end().await;
    let first = said(&lines);
    assert_eq!(first[0], (true, vec![0]));
    // Both, or one after the other: whatever was there when the command made room.
    let told: Vec<u64> = first[1..].iter().flat_map(|(_, ids)| ids.clone()).collect();
    assert_eq!(told, [7, 8]);
    let output = results(&lines).into_values().next().unwrap();
    assert!(output.contains("goes on by itself as job-1"), "{output}");
    let body = provider.asked()[1].json();
    let content = &body["messages"][2]["content"];
    assert_eq!(content[0]["type"], "tool_result");
    assert!(
        content[1]["text"].as_str().unwrap().starts_with("Use UTC."),
        "{content}"
    );
}

#[tokio::test]
async fn a_message_that_comes_too_late_begins_the_next_turn() {
    let provider = Provider::start(vec![
        Reply::Events(say::chat("One.", &[])),
        Reply::Events(say::chat("Two.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let mut live = bed.start(Some("Go."));
    live.ended().await;
    live.say(1, "More.");
    live.ended().await;
    live.close();
    let lines = live.end().await;
    assert_eq!(said(&lines), [(true, vec![0]), (true, vec![1])]);
    assert_eq!(texts(&lines), ["One.", "Two."]);
    let steps: Vec<String> = lines.iter().map(|line| line.step.to_string()).collect();
    assert!(
        steps.contains(&"1.1".into()) && steps.contains(&"2.1".into()),
        "{steps:?}"
    );
    assert!(provider.asked()[1].text.contains("One."));
}

#[tokio::test]
async fn a_message_can_be_taken_back_before_it_is_told() {
    let provider = Provider::start(vec![
        Reply::Events(say::chat("", &[("a", "todo", json!({"todos": []}))])),
        Reply::Events(say::chat("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let mut live = bed.start(None);
    live.until(|chunk| matches!(chunk, Chunk::Hello { .. }))
        .await;
    live.order(&json!({"say": {"id": 1, "text": "a"}}));
    live.order(&json!({"unsay": {"id": 1}}));
    live.order(&json!({"say": {"id": 2, "text": "b"}}));
    live.close();
    let lines = live.end().await;
    let told: Vec<u64> = said(&lines).into_iter().flat_map(|(_, ids)| ids).collect();
    let unsaid = lines
        .iter()
        .any(|line| line.chunk == Chunk::Unsaid { id: 1 });
    // It was taken back in time, or it was not; never both.
    assert_eq!(unsaid, !told.contains(&1), "{lines:#?}");
    assert!(told.contains(&2));
}

/// Whatever it does meanwhile: whoever asks for it back is told at once.
#[tokio::test]
async fn a_message_can_be_taken_back_in_the_middle_of_an_answer() {
    let provider = Provider::start(vec![Reply::Stalls(String::new())]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let mut live = bed.start(Some("Go."));
    provider.until_asked(1).await;
    live.say(1, "More.");
    live.order(&json!({"unsay": {"id": 1}}));
    live.until(|chunk| matches!(chunk, Chunk::Unsaid { id: 1 }))
        .await;
    live.order(&json!({"stop": {}}));
    let lines = live.end().await;
    assert_eq!(said(&lines), [(true, vec![0])]);
    let numbers: Vec<u64> = lines.iter().map(|line| line.n).collect();
    assert_eq!(numbers, (1..=lines.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_permission_is_asked_answered_and_remembered() {
    let call = |id| Reply::Events(say::chat("", &[(id, "run_shell", shell("echo x >> log"))]));
    let done = Reply::Events(say::chat("Done.", &[]));
    let provider = Provider::start(vec![
        call("a"),
        call("b"),
        call("c"),
        done.clone(),
        call("d"),
        done,
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["rules"] = json!({"layers": [{"otherwise": "ask"}]});
    let mut live = bed.start(Some("Go."));
    let asked = |chunk: &Chunk| matches!(chunk, Chunk::Asked { .. });
    let Chunk::Asked {
        id, subject, tool, ..
    } = live.until(asked).await
    else {
        unreachable!();
    };
    assert_eq!(
        (subject.as_str(), tool.as_str()),
        ("echo x >> log", "run_shell")
    );
    assert_eq!(bed.read("log"), "");
    live.order(&json!({"answer": {"id": id, "allow": false, "why": "not now"}}));
    let Chunk::Asked { id, .. } = live.until(asked).await else {
        unreachable!();
    };
    live.order(&json!({"answer": {"id": id, "allow": true, "always": true}}));
    live.close();
    let lines = live.end().await;
    assert_eq!(end(&lines), TurnEnd::Done);
    let results = results(&lines);
    assert!(results[&("1.1".into(), "a".into())].contains("not permitted: not now"));
    assert_eq!(bed.read("log"), "x\nx\n");
    // It is remembered by the next run of the task, too.
    let lines = bed.run(Some("Again.")).await;
    assert!(!lines.iter().any(|line| asked(&line.chunk)));
    assert_eq!(bed.read("log"), "x\nx\nx\n");
}

/// A patch of two files is asked about once, and its answer holds for each of them from then on, in
/// another process too.
#[tokio::test]
async fn always_is_for_each_of_several_files() {
    let patch = |name: &str| {
        let patch = format!(
            "*** Begin Patch\n*** Add File: a{name}\n+x\n*** Add File: b{name}\n+x\n\
             *** Delete File: a{name}\n*** End Patch"
        );
        Reply::Events(say::chat(
            "",
            &[("a", "apply_patch", json!({"patch": patch}))],
        ))
    };
    let write = json!({"path": "b1", "content": "y"});
    let provider = Provider::start(vec![
        patch("1"),
        Reply::Events(say::chat("Done.", &[])),
        Reply::Events(say::chat("", &[("a", "read_file", json!({"path": "b1"}))])),
        Reply::Events(say::chat("", &[("a", "write_file", write)])),
        patch("2"),
        Reply::Events(say::chat("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["rules"] = json!({"layers": [{"otherwise": "allow", "rules": [
        {"group": "edit", "pattern": "*", "action": "ask"}]}]});
    let asked = |chunk: &Chunk| matches!(chunk, Chunk::Asked { .. });
    let mut live = bed.start(Some("Go."));
    let Chunk::Asked { id, subject, .. } = live.until(asked).await else {
        unreachable!();
    };
    assert_eq!(subject, "a1 b1");
    live.order(&json!({"answer": {"id": id, "allow": true, "always": true}}));
    live.close();
    live.end().await;
    let lines = bed.run(Some("Again.")).await;
    // The file it knows is not asked about; two that it does not know are, and nobody is there.
    assert_eq!(bed.read("b1"), "y");
    assert_eq!(bed.read("b2"), "");
    let asks = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Asked { subject, .. } => Some(subject.as_str()),
        _ => None,
    });
    assert_eq!(asks.collect::<Vec<_>>(), ["a2 b2"]);
}

/// A person who is asked and says something else is told to the model, and not after ten minutes.
#[tokio::test]
async fn a_word_does_not_wait_for_a_permission() {
    let provider = Provider::start(vec![
        Reply::Events(say::chat(
            "",
            &[
                ("a", "run_shell", shell("echo x >> log")),
                ("b", "run_shell", shell("true")),
            ],
        )),
        Reply::Events(say::chat("As you say.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["limits"]["ask_wait_ms"] = json!(600_000);
    bed.opening["rules"] = json!({"layers": [{"otherwise": "ask"}]});
    let mut live = bed.start(Some("Go."));
    let asked = |chunk: &Chunk| matches!(chunk, Chunk::Asked { .. });
    let Chunk::Asked { id, .. } = live.until(asked).await else {
        unreachable!();
    };
    live.say(7, "Do something else.");
    assert_eq!(live.ended().await, TurnEnd::Done);
    live.close();
    let lines = live.end().await;
    let answered = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Answered { id, allowed, .. } => Some((*id, *allowed)),
        _ => None,
    });
    // The second one is not even asked: the word comes first.
    assert_eq!(answered.collect::<Vec<_>>(), [(id, false)]);
    assert_eq!(lines.iter().filter(|line| asked(&line.chunk)).count(), 1);
    let results = results(&lines);
    assert!(
        results
            .values()
            .all(|told| told.contains("somebody has said something"))
    );
    assert!(provider.asked()[1].text.contains("Do something else."));
    assert_eq!(bed.read("log"), "");
}

#[tokio::test]
async fn a_word_does_not_wait_for_a_server() {
    let provider = Provider::start(vec![
        Reply::Events(say::chat("", &[("a", "deaf__t", json!({}))])),
        Reply::Events(say::chat("As you say.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["servers"] = deaf("86431");
    let mut live = bed.start(Some("Go."));
    live.until(is_running).await;
    live.say(7, "Do something else.");
    assert_eq!(live.ended().await, TurnEnd::Done);
    live.close();
    let told = results(&live.end().await).into_values().next().unwrap();
    assert!(
        told.contains("somebody has said something, so this call was interrupted"),
        "{told}"
    );
    assert!(provider.asked()[1].text.contains("Do something else."));
}

#[tokio::test]
async fn a_permission_is_no_longer_waited_for_than_the_turn_may_take() {
    let provider = Provider::start(vec![Reply::Events(say::chat(
        "",
        &[("a", "run_shell", shell("true"))],
    ))])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["limits"]["ask_wait_ms"] = json!(600_000);
    bed.opening["limits"]["wall_clock_ms"] = json!(300);
    bed.opening["rules"] = json!({"layers": [{"otherwise": "ask"}]});
    let mut live = bed.start(Some("Go."));
    let name = "wall_clock".to_owned();
    assert_eq!(live.ended().await, TurnEnd::Limit { name });
    live.close();
    results(&live.end().await);
}

#[tokio::test]
async fn nobody_who_answers_is_a_denial_and_a_rule_needs_nobody() {
    for closed in [true, false] {
        let provider = Provider::start(vec![
            Reply::Events(say::chat(
                "",
                &[
                    ("a", "run_shell", shell("true")),
                    ("b", "write_file", json!({"path": ".git/x", "content": ""})),
                    ("c", "list_files", json!({})),
                ],
            )),
            Reply::Events(say::chat("Done.", &[])),
        ])
        .await;
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        bed.opening["limits"]["ask_wait_ms"] = json!(100);
        bed.opening["rules"] = json!({"layers": [{"otherwise": "ask", "rules": [
            {"group": "edit", "pattern": ".git/*", "action": "deny"},
            {"group": "read", "pattern": "*", "action": "allow"},
        ]}]});
        let mut live = bed.start(Some("Go."));
        if closed {
            live.close();
        }
        live.ended().await;
        live.close();
        let results = results(&live.end().await);
        let why = if closed {
            "nobody is there to ask"
        } else {
            "nobody answered in time"
        };
        let step = |id: &str| &results[&("1.1".to_owned(), id.to_owned())];
        assert!(step("a").contains(why), "{results:?}");
        assert!(
            step("b").contains("a rule for edit denies it"),
            "{results:?}"
        );
        assert!(step("c").contains("nothing in"), "{results:?}");
    }
}

/// Messages, stops and ends of input at random times: turns never overlap, every message is told at
/// most once and in its order, and every call has one result.
#[tokio::test]
async fn row_3_at_most_one_turn() {
    let mut random = Random::new(17);
    let replies: Vec<Reply> = (0..40)
        .map(|n| {
            let (text, command) = (format!("t{n}"), format!("sleep 0.0{}", n % 4));
            let call = [
                ("a", "run_shell", shell(&command)),
                ("b", "list_files", json!({})),
            ];
            let calls = if n % 3 == 0 {
                &call[..0]
            } else {
                &call[..1 + n % 2]
            };
            Reply::Events(say::chat(&text, calls))
        })
        .collect();
    let (mut turns, mut told_all, mut stopped) = (0, 0, 0);
    for round in 0..40 {
        let provider = Provider::start(replies[random.below(30)..].to_vec()).await;
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        let mut live = bed.start(Some("Go."));
        let messages = random.below(6) as u64;
        for id in 1..=messages {
            live.some(random.below(6)).await;
            live.say(id, &format!("m{id}"));
        }
        if random.below(3) == 0 {
            live.some(random.below(15)).await;
            live.order(&json!({"stop": {}}));
        }
        live.close();
        let lines = live.end().await;
        results(&lines);
        let mut open = false;
        let mut told = Vec::new();
        for line in &lines {
            match &line.chunk {
                Chunk::Turn { said } => {
                    assert!(!open, "a turn in a turn, round {round}");
                    open = true;
                    turns += 1;
                    told.extend(said.iter().map(|message| message.id));
                }
                Chunk::Said { said } => {
                    assert!(open);
                    told.extend(said.iter().map(|message| message.id));
                }
                Chunk::TurnEnded { end, .. } => {
                    assert!(open);
                    open = false;
                    stopped += usize::from(*end == TurnEnd::Stopped);
                }
                _ => {}
            }
        }
        assert!(!open, "round {round}");
        let expected: Vec<u64> = (0..told.len() as u64).collect();
        assert_eq!(told, expected, "round {round}");
        told_all += told.len();
    }
    println!("40 agents, {turns} turns, {told_all} messages told, {stopped} turns stopped");
    assert!(turns > 40 && stopped > 3);
}
