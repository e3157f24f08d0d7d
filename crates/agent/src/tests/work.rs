//! Turns without trouble: tools run, results go back, limits hold.

use std::{collections::BTreeSet, fs};

use dispatch_core::native::{Chunk, TurnEnd};
use serde_json::{Value, json};

use super::bed::{Bed, end, results, texts};
use crate::provider::{Provider, Reply, say};

const PROVIDERS: [&str; 3] = ["anthropic", "openai", "compatible"];

fn shell(command: &str) -> Value {
    json!({"command": command})
}

#[tokio::test]
async fn a_task_is_done_with_every_wire_format() {
    for kind in PROVIDERS {
        let provider = Provider::start(vec![
            Reply::Events(say::any(
                kind,
                "I look.",
                &[
                    ("c1", "list_files", json!({})),
                    ("c2", "run_shell", shell("echo hi > a.txt; cat a.txt")),
                ],
            )),
            Reply::Events(say::any(
                kind,
                "I write.",
                &[(
                    "c3",
                    "edit_file",
                    json!({"path": "a.txt", "edits": [{"old": "hi", "new": "ho"}]}),
                )],
            )),
            Reply::Events(say::any(kind, "Done.", &[])),
        ])
        .await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        let lines = bed.run(Some("Write a file.")).await;
        assert_eq!(end(&lines), TurnEnd::Done, "{kind}");
        assert_eq!(texts(&lines), ["I look.", "I write.", "Done."]);
        assert_eq!(bed.read("a.txt"), "ho\n");
        let results = results(&lines);
        assert_eq!(results.len(), 3);
        assert!(results[&("1.1".into(), "c2".into())].contains(r#""stdout":"hi\n""#));
        let asked = provider.asked();
        assert_eq!(asked.len(), 3);
        for (index, parts) in [
            &["Write a file."][..],
            &["I look.", "hi"],
            &["I write.", "wrote a.txt"],
        ]
        .iter()
        .enumerate()
        {
            for part in *parts {
                assert!(
                    asked[index].text.contains(part),
                    "{kind} {index}: {}",
                    asked[index].text
                );
            }
        }
        let Some(Chunk::TurnEnded { text, .. }) = lines.last().map(|line| &line.chunk) else {
            panic!("{lines:#?}");
        };
        assert_eq!(text, "Done.");
    }
}

/// Many calls in one step, some that only look and some that do not, some with the same name as
/// another or with none, one that nobody knows: one result each, told in the order of the calls.
async fn exactly_one_result_per_call(kind: &str) {
    let mut calls: Vec<(String, &str, Value)> = Vec::new();
    for n in 0..120 {
        let (name, input) = match n % 4 {
            0 => ("read_file", json!({"path": format!("f{}", n % 3)})),
            1 => ("run_shell", shell(&format!("echo {n} >> log"))),
            2 => ("list_files", json!({})),
            _ => ("fly", json!({})),
        };
        // Some servers give the same id twice, and some give none.
        let id = match n % 10 {
            8 | 9 => String::new(),
            _ => format!("id{}", n - n % 2),
        };
        calls.push((id, name, input));
    }
    let calls: Vec<(&str, &str, Value)> = calls
        .iter()
        .map(|(id, name, input)| (id.as_str(), *name, input.clone()))
        .collect();
    let provider = Provider::start(vec![
        Reply::Events(say::any(kind, "", &calls)),
        Reply::Events(say::any(kind, "Done.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", kind, &provider)]);
    for n in 0..3 {
        fs::write(bed.work(&format!("f{n}")), format!("content {n}")).unwrap();
    }
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(end(&lines), TurnEnd::Done);
    assert_eq!(results(&lines).len(), 120);
    let order: Vec<String> = (0..120)
        .filter(|n| n % 4 == 1)
        .map(|n| format!("{n}\n"))
        .collect();
    assert_eq!(bed.read("log"), order.concat());
    let (asked, told) = pairs(kind, &provider.asked()[1].json());
    let ids: Vec<&String> = told.iter().map(|(id, _)| id).collect();
    assert_eq!(ids, asked.iter().collect::<Vec<_>>());
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), 120);
    assert!(
        asked.contains(&"id0".to_owned()),
        "a good name stays: {asked:?}"
    );
    let unknown = &told[3].1;
    assert!(
        unknown.starts_with("error: there is no tool \"fly\"; there are read_file,"),
        "{unknown}"
    );
}

/// What a request says was called, and each result with the id it is for.
fn pairs(kind: &str, body: &Value) -> (Vec<String>, Vec<(String, String)>) {
    let of = |list: &Value, kind: &str, id: &str| -> Vec<Value> {
        let items = list.as_array().unwrap().iter();
        let known = items.filter(|item| item["type"] == kind && item[id].is_string());
        known.cloned().collect()
    };
    let text = |item: &Value, name: &str| item[name].as_str().unwrap().to_owned();
    let (calls, results, id, result, output) = match kind {
        "anthropic" => (
            of(&body["messages"][1]["content"], "tool_use", "id"),
            of(
                &body["messages"][2]["content"],
                "tool_result",
                "tool_use_id",
            ),
            "id",
            "tool_use_id",
            "content",
        ),
        "openai" => (
            of(&body["input"], "function_call", "call_id"),
            of(&body["input"], "function_call_output", "call_id"),
            "call_id",
            "call_id",
            "output",
        ),
        _ => (
            of(&body["messages"][2]["tool_calls"], "function", "id"),
            body["messages"].as_array().unwrap()[3..].to_vec(),
            "id",
            "tool_call_id",
            "content",
        ),
    };
    let asked = calls.iter().map(|call| text(call, id)).collect();
    let told = results
        .iter()
        .map(|item| (text(item, result), text(item, output)));
    (asked, told.collect())
}

#[tokio::test]
async fn row_13_exactly_one_result_per_call_over_chat() {
    exactly_one_result_per_call("compatible").await;
}

#[tokio::test]
async fn row_13_exactly_one_result_per_call_over_anthropic() {
    exactly_one_result_per_call("anthropic").await;
}

#[tokio::test]
async fn row_13_exactly_one_result_per_call_over_responses() {
    exactly_one_result_per_call("openai").await;
}

/// Gateways that speak Anthropic's format say that the turn is over where they mean calls.
#[tokio::test]
async fn calls_of_an_answer_that_says_it_is_done_are_run() {
    let answer = say::anthropic("", &[("a", "run_shell", shell("echo x >> log"))]);
    assert!(answer.contains(":\"tool_use\"},\"usage"), "{answer}");
    let provider = Provider::start(vec![
        Reply::Events(answer.replace(":\"tool_use\"},\"usage", ":\"end_turn\"},\"usage")),
        Reply::Events(say::anthropic("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "anthropic", &provider)]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(
        (end(&lines), bed.read("log")),
        (TurnEnd::Done, "x\n".into())
    );
    assert_eq!(texts(&lines), ["Done."]);
    assert!(!results(&lines)[&("1.1".into(), "a".into())].contains("was not run"));
}

/// Those that only look do not wait for each other.
#[tokio::test]
async fn calls_that_only_look_run_beside_each_other() {
    let provider = Provider::start(vec![
        Reply::Events(say::chat(
            "",
            &[
                ("a", "read_file", json!({"path": "pipe"})),
                ("b", "search_code", json!({"query": "x"})),
                ("c", "run_shell", shell("true")),
            ],
        )),
        Reply::Events(say::chat("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let lines = bed.run(Some("Go.")).await;
    let order: Vec<String> = lines
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Running { call } => Some(format!("run {call}")),
            Chunk::Result { call, .. } => Some(format!("end {call}")),
            _ => None,
        })
        .collect();
    assert_eq!(order[..2], ["run a", "run b"]);
    assert_eq!(order[4..], ["run c", "end c"]);
}

#[tokio::test]
async fn limits_end_a_turn_by_their_names() {
    let call = say::chat("", &[("a", "run_shell", shell("echo x >> log"))]);
    let sleeps = say::chat("", &[("a", "run_shell", shell("sleep 86420"))]);
    for (name, limits, reply) in [
        ("steps", json!({"steps_max": 3}), &call),
        ("tokens", json!({"tokens_max": 100}), &call),
        ("wall_clock", json!({"wall_clock_ms": 300}), &sleeps),
    ] {
        let provider = Provider::start(vec![Reply::Events(reply.clone())]).await;
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        for (key, value) in limits.as_object().unwrap() {
            bed.opening["limits"][key] = value.clone();
        }
        let lines = bed.run(Some("Go.")).await;
        results(&lines);
        assert_eq!(end(&lines), TurnEnd::Limit { name: name.into() });
        assert!(provider.asked().len() <= 4, "{name}");
    }
}

#[tokio::test]
async fn what_a_turn_costs_is_known_and_limited() {
    let reply = Reply::Events(say::chat("", &[("a", "list_files", json!({}))]));
    let provider = Provider::start(vec![reply]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["limits"]["cost_usd_max"] = json!(0.0001);
    let error = bed.start(Some("Go.")).error().await;
    assert!(
        error.contains("model-k of key k") && error.contains("no price"),
        "{error}"
    );
    bed.opening["keys"]["k"]["models"] =
        json!([{"match": "model-*", "price": {"input": 1.0, "output": 2.0}}]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(
        end(&lines),
        TurnEnd::Limit {
            name: "cost".into()
        }
    );
    let costs: Vec<f64> = lines
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Usage { cost_usd, .. } => *cost_usd,
            _ => None,
        })
        .collect();
    assert_eq!(costs, [0.000_055, 0.000_055]);
}

#[tokio::test]
async fn an_answer_that_is_too_long_goes_on_a_few_times() {
    let long = "data: {\"choices\":[{\"delta\":{\"content\":\"and \"}}]}\n\n\
                data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
    let reply = Reply::Events(long.to_owned());
    let done = Reply::Events(say::chat("so on.", &[]));
    let provider = Provider::start(vec![reply.clone(), done]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(
        (end(&lines), texts(&lines)),
        (TurnEnd::Done, vec!["and ".into(), "so on.".into()])
    );
    assert!(provider.asked()[1].text.contains("as long as it may be"));
    let provider = Provider::start(vec![reply]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let lines = bed.run(Some("Go.")).await;
    assert_eq!(
        end(&lines),
        TurnEnd::Limit {
            name: "answer".into()
        }
    );
    assert_eq!(provider.asked().len(), 4);
}

#[tokio::test]
async fn a_result_that_is_too_long_is_spilled_and_can_be_read() {
    let provider = Provider::start(vec![
        Reply::Events(say::chat("", &[("a", "list_files", json!({}))])),
        Reply::Events(say::chat("Done.", &[])),
    ])
    .await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    for n in 0..600 {
        fs::write(bed.work(&format!("file-{n:03}")), "").unwrap();
    }
    let lines = bed.run(Some("Go.")).await;
    let told = results(&lines).into_values().next().unwrap();
    assert!(
        told.len() < 4000 && told.contains("list_files gave 5399 characters in 600 lines"),
        "{told}"
    );
    let path = told
        .split("is in ")
        .nth(1)
        .unwrap()
        .split(';')
        .next()
        .unwrap();
    assert!(
        path.starts_with(bed.dir.path().join("spill").to_str().unwrap()),
        "{path}"
    );
}

#[tokio::test]
async fn what_is_shown_meanwhile_comes_before_what_is_closed() {
    let text = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n\
                data: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n\
                data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let provider = Provider::start(vec![Reply::Events(text.into())]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["live"] = json!(true);
    let lines = bed.run(Some("Go.")).await;
    let shown: Vec<String> = lines
        .iter()
        .filter_map(|line| match &line.chunk {
            Chunk::Live(live) => Some(serde_json::to_string(live).unwrap()),
            Chunk::Block(_) => Some("closed".into()),
            _ => None,
        })
        .collect();
    assert_eq!(shown.last().unwrap(), "closed");
    assert!(
        shown.concat().contains("Hel") && shown.concat().contains("lo"),
        "{shown:?}"
    );
}

#[tokio::test]
async fn a_mistake_in_the_settings_is_told_at_once() {
    let provider = Provider::start(vec![Reply::Hangs]).await;
    for (place, value, part) in [
        (
            "/chain/0/key",
            json!("other"),
            "use key other: it is not configured; there are k",
        ),
        ("/tools", json!(["fly"]), "use tool fly: it is not known"),
        ("/version", json!(9), "the lines have version 9"),
        ("/cwd", json!("/no/such/place"), "use /no/such/place"),
        (
            "/resume",
            json!(["/no/such/file"]),
            "earlier run's record /no/such/file",
        ),
        (
            "/keys/k/base_url",
            json!("ftp://x"),
            "must begin with https://",
        ),
    ] {
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        bed.resume = false;
        bed.opening["tools"] = Value::Null;
        bed.opening["resume"] = json!([]);
        *bed.opening.pointer_mut(place).unwrap() = value;
        let error = bed.start(Some("Go.")).error().await;
        assert!(error.contains(part), "{error}");
    }
    assert!(provider.asked().is_empty());
}
