//! Ends of the process at any place, and what a new one makes of the record.

use std::{fs, os::unix::fs::symlink, time::Duration};

use dispatch_core::native::{Block, Chunk, Line, TurnEnd};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::bed::{Bed, LIMIT, end, is_running, results};
use crate::provider::{Provider, Reply, say};

fn shell(command: &str) -> Value {
    json!({"command": command})
}

/// A turn with everything in it: thinking, texts, calls that look and calls that change something,
/// a message in the middle.
fn script(kind: &str) -> Vec<Reply> {
    vec![
        Reply::Events(say::any(
            kind,
            "I look.",
            &[
                ("a1", "list_files", json!({})),
                ("a2", "read_file", json!({"path": "x"})),
                ("a3", "run_shell", shell("echo a3 >> log")),
            ],
        )),
        Reply::Events(say::any(
            kind,
            "I write.",
            &[
                ("b1", "run_shell", shell("echo b1 >> log")),
                ("b2", "run_shell", shell("echo b2 >> log")),
            ],
        )),
        Reply::Events(say::any(kind, "Done.", &[])),
    ]
}

/// The last steps of the script, for an agent that has the first ones in its record.
fn rest(kind: &str, lines: &[Line]) -> Vec<Reply> {
    let ended = |line: &&Line| matches!(line.chunk, Chunk::StepEnded(_));
    let done = lines.iter().filter(ended).count();
    let mut rest = script(kind);
    rest.drain(..done.min(rest.len() - 1));
    rest
}

fn parse(text: &str) -> Vec<Line> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// After any line of the record, and in the middle of it, the agent is gone. The next one has every
/// closed chunk, runs nothing that had begun, runs all that had not, and ends the turn.
#[tokio::test]
async fn row_1_no_loss_on_crash_at_every_chunk() {
    let mut crashes = 0;
    for kind in ["anthropic", "openai", "compatible"] {
        let provider = Provider::start(script(kind)).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        bed.run(Some("Go.")).await;
        assert_eq!(bed.read("log"), "a3\nb1\nb2\n");
        let record = fs::read_to_string(bed.out(1)).unwrap();
        let whole: Vec<&str> = record.split_inclusive('\n').collect();
        for kept in 1..whole.len() {
            for half in [false, true] {
                crashes += 1;
                let text = whole[..kept].concat();
                let before = parse(&text);
                let provider = Provider::start(rest(kind, &before)).await;
                let mut bed = Bed::new(&[("k", kind, &provider)]);
                let torn = if half {
                    &whole[kept][..whole[kept].len() / 2]
                } else {
                    ""
                };
                let cut = format!("{text}{torn}");
                let out = bed.dir.path().join("earlier");
                fs::write(&out, &cut).unwrap();
                bed.resume = false;
                bed.opening["resume"] = json!([out]);
                let turned = before
                    .iter()
                    .any(|line| matches!(line.chunk, Chunk::Turn { .. }));
                let prompt = if turned { None } else { Some("Go.") };
                let after = bed.run(prompt).await;
                check(kind, kept, &before, &after, &bed);
            }
        }
    }
    println!("{crashes} crashes");
    assert!(crashes > 150);
}

fn check(kind: &str, kept: usize, before: &[Line], after: &[Line], bed: &Bed) {
    let told = format!("{kind} after line {kept}");
    let all: Vec<Line> = before.iter().chain(after).cloned().collect();
    assert_eq!(end(&all), TurnEnd::Done, "{told}");
    let results = results(&all);
    let began: Vec<String> = before
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Running { call } => Some(call.clone()),
            _ => None,
        })
        .collect();
    let ended: Vec<String> = before
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Result { call, .. } => Some(call.clone()),
            _ => None,
        })
        .collect();
    // Only what had not begun was run now, and each once.
    let expected: String = ["a3", "b1", "b2"]
        .iter()
        .filter(|call| !began.contains(&(**call).to_owned()))
        .filter(|call| ran(&all, call))
        .map(|call| format!("{call}\n"))
        .collect();
    assert_eq!(bed.read("log"), expected, "{told}");
    for call in ["a3", "b1", "b2"] {
        let interrupted = results
            .iter()
            .any(|((_, id), output)| id == call && output.contains("was interrupted"));
        let open = began.contains(&call.to_owned()) && !ended.contains(&call.to_owned());
        assert_eq!(interrupted, open, "{told}: {call}");
    }
}

fn ran(lines: &[Line], call: &str) -> bool {
    let mut running = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Running { call } => Some(call.as_str()),
        _ => None,
    });
    running.any(|running| running == call)
}

/// The real thing as far as it goes within a test: the task is dropped while its command runs.
#[tokio::test]
async fn a_command_that_was_running_is_told_as_interrupted() {
    let provider = Provider::start(vec![
        Reply::Events(say::anthropic(
            "",
            &[("a", "run_shell", shell("echo x >> log; sleep 86450"))],
        )),
        Reply::Events(say::anthropic("I see.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "anthropic", &provider)]);
    let mut live = bed.start(Some("Go."));
    live.until(is_running).await;
    let written = async {
        while bed.read("log").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, written).await.expect("it has no effect");
    live.kill();
    let lines = bed.run(None).await;
    assert_eq!(end(&lines), TurnEnd::Done);
    assert_eq!(bed.read("log"), "x\n");
    let told = &provider.asked()[1].text;
    assert!(
        told.contains("this call was interrupted before it ended"),
        "{told}"
    );
}

/// Somebody has answered, and the agent was gone before it began: nobody is asked again, and what was
/// answered holds for what was asked about, and for nothing else.
#[tokio::test]
async fn what_was_answered_before_a_crash_is_not_asked_again() {
    for (allow, moves) in [(true, false), (false, false), (true, true)] {
        let write = json!({"path": "link/a", "content": "x"});
        let provider = Provider::start(vec![
            Reply::Events(say::chat("", &[("a", "write_file", write)])),
            Reply::Events(say::chat("Done.", &[])),
        ])
        .await;
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        bed.opening["rules"] = json!({"layers": [{"otherwise": "ask"}]});
        for name in ["one", "two"] {
            fs::create_dir(bed.work(name)).unwrap();
        }
        symlink("one", bed.work("link")).unwrap();
        let mut live = bed.start(Some("Go."));
        let asked = |chunk: &Chunk| matches!(chunk, Chunk::Asked { .. });
        let Chunk::Asked { id, .. } = live.until(asked).await else {
            unreachable!();
        };
        live.order(&json!({"answer": {"id": id, "allow": allow, "why": "as I said"}}));
        live.close();
        live.end().await;
        fs::remove_dir_all(bed.work("one")).unwrap();
        fs::create_dir(bed.work("one")).unwrap();
        if moves {
            fs::remove_file(bed.work("link")).unwrap();
            symlink("two", bed.work("link")).unwrap();
        }
        let record = fs::read_to_string(bed.out(1)).unwrap();
        let mut kept = String::new();
        for line in record.split_inclusive('\n') {
            kept.push_str(line);
            if line.contains("\"answered\"") {
                break;
            }
        }
        fs::write(bed.out(1), &kept).unwrap();
        let lines = bed.run(None).await;
        let all: Vec<Line> = parse(&kept).into_iter().chain(lines.clone()).collect();
        let told = results(&all).into_values().next().unwrap_or_default();
        let asks = lines.iter().filter(|line| asked(&line.chunk)).count();
        assert_eq!(asks, usize::from(moves), "{told}");
        assert_eq!(
            fs::exists(bed.work("one/a")).unwrap(),
            allow && !moves,
            "{told}"
        );
        assert!(!fs::exists(bed.work("two/a")).unwrap(), "{told}");
        assert_eq!(told.contains("not permitted: as I said"), !allow, "{told}");
    }
}

/// What is said to a task whose last run was ended in the middle is told, wherever that was.
#[tokio::test]
async fn a_new_prompt_after_a_crash_is_told_once() {
    let kind = "anthropic";
    let provider = Provider::start(script(kind)).await;
    let mut bed = Bed::new(&[("k", kind, &provider)]);
    bed.run(Some("Go.")).await;
    let record = fs::read_to_string(bed.out(1)).unwrap();
    let whole: Vec<&str> = record.split_inclusive('\n').collect();
    for kept in 1..=whole.len() {
        let text = whole[..kept].concat();
        let before = parse(&text);
        let mut replies = rest(kind, &before);
        replies.push(Reply::Events(say::any(kind, "As you say.", &[])));
        let provider = Provider::start(replies).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        let out = bed.dir.path().join("earlier");
        fs::write(&out, &text).unwrap();
        bed.resume = false;
        bed.opening["resume"] = json!([out]);
        let after = bed.run(Some("And use UTC.")).await;
        assert_eq!(end(&after), TurnEnd::Done, "after line {kept}");
        let all: Vec<Line> = before.into_iter().chain(after).collect();
        results(&all);
        let last = provider.asked().pop().unwrap().text;
        assert_eq!(
            last.matches("And use UTC.").count(),
            1,
            "after line {kept}: {last}"
        );
    }
}

/// However the turn ends that it was said to, it is in the record, and the next turn knows of it.
#[tokio::test]
async fn a_new_prompt_is_told_also_where_the_turn_ends_at_once() {
    let kind = "anthropic";
    let refused = say::anthropic("I", &[]).replace("end_turn", "refusal");
    let stops = say::anthropic("", &[("a", "run_shell", shell("sleep 86452"))]);
    for (first, until, stop) in [(refused, "step_ended", false), (stops, "step_ended", true)] {
        let provider = Provider::start(vec![Reply::Events(first.clone()), Reply::Hangs]).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        let mut live = bed.start(Some("Go."));
        live.until(|chunk| matches!(chunk, Chunk::StepEnded(_)))
            .await;
        live.order(&json!({"stop": {}}));
        live.close();
        live.end().await;
        let record = fs::read_to_string(bed.out(1)).unwrap();
        let end = record.find(until).unwrap();
        let end = end + record[end..].find('\n').unwrap() + 1;
        fs::write(bed.out(1), &record[..end]).unwrap();
        let mut live = bed.start(Some("And use UTC."));
        if stop {
            live.until(is_running).await;
            live.order(&json!({"stop": {}}));
        }
        live.ended().await;
        live.close();
        live.end().await;
        // A turn of its own, that is told of all that was said.
        let provider = Provider::start(vec![Reply::Events(say::any(kind, "Yes.", &[]))]).await;
        bed.opening["keys"]["k"]["base_url"] = json!(provider.url);
        bed.run(Some("Well?")).await;
        let told = provider.asked().pop().unwrap().text;
        let (_, told) = told.split_once("\"messages\":").unwrap();
        assert_eq!(told.matches("And use UTC.").count(), 1, "{told}");
    }
}

/// What was sent before a restart is sent in the same bytes after it, and after a fail-over to
/// another model of the same key.
#[tokio::test]
async fn row_10_cache_stability() {
    for kind in ["anthropic", "openai", "compatible"] {
        let mut replies = script(kind);
        replies.extend([
            Reply::Events(say::any(kind, "More.", &[("c1", "list_files", json!({}))])),
            Reply::error(503),
            Reply::error(503),
            Reply::error(503),
            Reply::error(503),
            Reply::Events(say::any(kind, "The other.", &[])),
        ]);
        let provider = Provider::start(replies).await;
        let mut bed = Bed::quick(&[("k", kind, &provider)]);
        let second = json!({"key": "k", "model": "model-two", "effort": "low"});
        bed.opening["chain"].as_array_mut().unwrap().push(second);
        bed.run(Some("Go.")).await;
        let lines = bed.run(Some("And then?")).await;
        assert_eq!(end(&lines), TurnEnd::Done, "{kind}");
        let asked: Vec<String> = provider
            .asked()
            .iter()
            .map(|asked| conversation(&asked.text))
            .collect();
        assert_eq!(asked.len(), 9, "{kind}");
        for pair in asked.windows(2) {
            assert!(
                pair[1].starts_with(&pair[0]),
                "{kind}\n{}\n{}",
                pair[0],
                pair[1]
            );
        }
    }
}

/// What the prompt says of the place stays as it was when the conversation began, whatever became of
/// the file it was read from, and whichever of its first lines the record had kept.
#[tokio::test]
async fn row_10_the_prompt_of_a_place_that_changes_stays() {
    for kind in ["anthropic", "openai", "compatible"] {
        let provider = Provider::start(script(kind)).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        fs::write(bed.work("AGENTS.md"), "Use tabs.").unwrap();
        let mut live = bed.start(Some("Go."));
        live.until(|chunk| matches!(chunk, Chunk::Around { .. }))
            .await;
        live.kill();
        fs::write(bed.work("AGENTS.md"), "Use four blanks.").unwrap();
        fs::write(bed.work("CLAUDE.md"), "Be brief.").unwrap();
        bed.run(Some("Go.")).await;
        fs::remove_file(bed.work("AGENTS.md")).unwrap();
        bed.run(Some("And then?")).await;
        let asked = provider.asked();
        assert!(asked.len() >= 4, "{kind}");
        let before: Vec<&str> = asked.iter().map(|asked| begin(&asked.text)).collect();
        assert!(before[0].contains("| Use tabs."), "{kind}: {}", before[0]);
        assert!(before[0].contains("Platform: "), "{kind}: {}", before[0]);
        for other in &before {
            assert_eq!(*other, before[0], "{kind}");
        }
    }
}

/// All of a request before what was said and answered.
fn begin(text: &str) -> &str {
    let (before, _) = text.rsplit_once("Go.").unwrap();
    let list = ["\"messages\":[", "\"input\":["];
    let at = list.iter().find_map(|mark| before.find(mark)).unwrap();
    let system = before[at..].find("\"role\":\"system\"");
    // The Chat format has its system prompt in the list.
    let end = system.map_or(at, |from| {
        at + from + before[at + from..].find("\"}").unwrap()
    });
    &text[..end]
}

/// All of the conversation in a request but for what ends the list, without the marks.
fn conversation(text: &str) -> String {
    let list = ["\"messages\":[", "\"input\":["];
    let begin = list
        .iter()
        .find_map(|mark| text.split_once(mark))
        .unwrap()
        .1;
    let plain = begin.replace(r#","cache_control":{"type":"ephemeral"}"#, "");
    plain.strip_suffix("]}").unwrap().to_owned()
}

#[tokio::test]
async fn a_record_that_is_newer_than_we_is_refused() {
    let provider = Provider::start(vec![Reply::Hangs]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let out = bed.dir.path().join("earlier");
    let good = r#"{"n":1,"step":"0.0","chunk":{"notice":{"text":"x"}}}"#;
    bed.resume = false;
    bed.opening["resume"] = json!([out]);
    fs::write(
        &out,
        format!(
            "{good}\n{}\n",
            r#"{"n":2,"step":"1.0","chunk":{"dance":{}}}"#
        ),
    )
    .unwrap();
    let error = bed.start(Some("Go.")).error().await;
    assert!(error.contains("line 2: unknown variant `dance`"), "{error}");
    // What is no line of ours at all was not said by us.
    let done = Provider::start(vec![Reply::Events(say::chat("Done.", &[]))]).await;
    bed.opening["keys"]["k"]["base_url"] = json!(done.url);
    fs::write(&out, format!("{good}\nthread main panicked\n{good}")).unwrap();
    assert_eq!(end(&bed.run(Some("Go.")).await), TurnEnd::Done);
}

/// Blocks in the record are those the provider sent, byte for byte.
#[tokio::test]
async fn what_the_provider_sent_is_in_the_record_as_it_came() {
    let provider = Provider::start(vec![Reply::Events(say::anthropic("Hi.", &[]))]).await;
    let mut bed = Bed::new(&[("k", "anthropic", &provider)]);
    let lines = bed.run(Some("Go.")).await;
    let raws: Vec<&str> = lines
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Block(block @ (Block::Thinking { .. } | Block::Text { .. })) => {
                Some(block.raw().text())
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        raws,
        [
            r#"{"type":"thinking","thinking":"hm","signature":"s=="}"#,
            r#"{"type":"text","text":"Hi."}"#
        ]
    );
}
