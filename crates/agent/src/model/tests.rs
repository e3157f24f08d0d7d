//! The client against a server: what goes out, what comes of every way to fail, and that what was
//! sent once is sent in the same bytes for ever.

use std::time::Duration;

use dispatch_core::{
    models::{Endpoint, KeyTable},
    native::{Block, Fault, StepEnd},
    secret::Secret,
    task::Effort,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Client, Entry, Heard, ModelError, Origin, Question, Timers, ToolResult, ToolSpec};
use crate::{
    net::{Connector, Proxy},
    provider::{Provider, Reply, say},
};

const PROVIDERS: [&str; 3] = ["anthropic", "openai", "compatible"];

fn connector(proxy: Proxy) -> Connector {
    Connector::new(proxy, Duration::from_secs(20))
}

fn client() -> Client {
    Client::new(connector(Proxy::default()), Timers::default())
}

fn tools() -> Vec<ToolSpec> {
    vec![ToolSpec {
        name: "read_file".into(),
        help: "Reads.".into(),
        schema: json!({"type": "object", "properties": {"path": {"type": "string"}}}),
    }]
}

async fn ask(
    client: &mut Client,
    endpoint: &Endpoint,
    entries: &[Entry],
) -> Result<(Vec<Block>, StepEnd), ModelError> {
    let tools = tools();
    let question = Question {
        endpoint,
        effort: Some(Effort::Off),
        system: "You work.",
        tools: &tools,
        session: "s1",
    };
    let key = Secret::from("sk-test");
    let mut answer = client
        .ask(&question, entries, Some(&key), "c".into())
        .await?;
    let mut blocks = Vec::new();
    let mut end = None;
    while let Some(heard) = answer.next().await? {
        match heard {
            Heard::Closed(block) => blocks.push(block),
            Heard::Ended(how) => end = Some(how),
            Heard::Text(_) | Heard::Thinking(_) | Heard::Tokens(_) => {}
        }
    }
    Ok((blocks, end.unwrap()))
}

fn said(text: &str) -> Entry {
    Entry::Said(text.into())
}

/// A conversation of several steps; each request is compared with the one before it.
#[tokio::test]
async fn earlier_steps_are_the_same_bytes_in_every_later_request() {
    for name in PROVIDERS {
        let replies = (0..6).map(|n| {
            let id = format!("call_{n}");
            let input = json!({"path": format!("f{n}"), "n": 1.5});
            Reply::Events(say::any(
                name,
                &format!("step {n}"),
                &[(&id, "read_file", input)],
            ))
        });
        let provider = Provider::start(replies.collect()).await;
        let endpoint = provider.endpoint(name);
        let mut entries = vec![said("Do it.")];
        let mut client = client();
        for step in 0..6 {
            let (blocks, end) = ask(&mut client, &endpoint, &entries).await.unwrap();
            assert_eq!(end, StepEnd::Calls);
            let results = blocks.iter().filter_map(|block| match block {
                Block::Call { id, .. } => Some(ToolResult {
                    call: id.clone(),
                    output: format!("result {step}"),
                    failed: step == 2,
                }),
                _ => None,
            });
            let results = results.collect();
            entries.push(Entry::Answer {
                origin: Origin::of(&endpoint),
                blocks,
                cut: false,
            });
            let more = (step == 3).then(|| "Be quick.".into());
            entries.push(Entry::Results {
                results,
                said: more,
            });
            if step == 4 {
                // A new process has read the conversation back and writes it anew.
                client = self::client();
            }
        }
        let asked = provider.asked();
        assert_eq!(asked.len(), 6);
        for pair in asked.windows(2) {
            let (earlier, later) = (unmarked(&pair[0].text), unmarked(&pair[1].text));
            let kept = earlier.strip_suffix("]}").unwrap();
            assert!(later.starts_with(kept), "{name}\n{earlier}\n{later}");
        }
    }
}

/// The marks are no part of what a cache is found by; everything else is.
fn unmarked(text: &str) -> String {
    let (head, messages) = text.split_once("\"messages\":[").unwrap_or((text, ""));
    let mark = r#","cache_control":{"type":"ephemeral"}"#;
    format!("{head}{}", messages.replace(mark, ""))
}

#[tokio::test]
async fn the_cache_is_told_where_this_request_and_the_last_one_end() {
    let text = say::anthropic("", &[("t", "read_file", json!({}))]);
    let provider = Provider::start(vec![Reply::Events(text)]).await;
    let endpoint = provider.endpoint("anthropic");
    let mut entries = vec![said("Do it.")];
    let mut client = client();
    for _ in 0..3 {
        let (blocks, _) = ask(&mut client, &endpoint, &entries).await.unwrap();
        entries.push(Entry::Answer {
            origin: Origin::of(&endpoint),
            blocks,
            cut: false,
        });
        let result = ToolResult {
            call: "t".into(),
            output: "x".into(),
            failed: false,
        };
        entries.push(Entry::Results {
            results: vec![result],
            said: None,
        });
    }
    let marked: Vec<Vec<usize>> = provider
        .asked()
        .iter()
        .map(|asked| {
            let body = asked.json();
            assert!(body["system"][0]["cache_control"].is_object());
            let messages = body["messages"].as_array().unwrap().clone();
            let marked = messages.iter().enumerate().filter(|(_, message)| {
                let last = message["content"].as_array().unwrap().last().unwrap();
                last["cache_control"].is_object()
            });
            marked.map(|(index, _)| index).collect()
        })
        .collect();
    assert_eq!(marked, [vec![0], vec![0, 2], vec![2, 4]]);
}

#[tokio::test]
async fn another_provider_hears_it_in_its_own_words() {
    for from in PROVIDERS {
        for to in PROVIDERS {
            let call = say::any(
                from,
                "I read.",
                &[("id1", "read_file", json!({"path": "a"}))],
            );
            let first = Provider::start(vec![Reply::Events(call)]).await;
            let endpoint = first.endpoint(from);
            let mut client = client();
            let mut entries = vec![said("Do it.")];
            let (blocks, _) = ask(&mut client, &endpoint, &entries).await.unwrap();
            entries.push(Entry::Answer {
                origin: Origin::of(&endpoint),
                blocks,
                cut: false,
            });
            let result = ToolResult {
                call: "id1".into(),
                output: "content".into(),
                failed: false,
            };
            entries.push(Entry::Results {
                results: vec![result],
                said: None,
            });
            let second = Provider::start(vec![Reply::Events(say::any(to, "Done.", &[]))]).await;
            let mut endpoint = second.endpoint(to);
            endpoint.key = "other".parse().unwrap();
            let (_, end) = ask(&mut client, &endpoint, &entries).await.unwrap();
            assert_eq!(end, StepEnd::Done);
            let text = &second.asked()[0].text;
            for part in ["Do it.", "I read.", "id1", "read_file", "content"] {
                assert!(text.contains(part), "{from} {to}: {text}");
            }
            for secret in ["s==", "gAA=", "reasoning_content"] {
                assert!(!text.contains(secret), "{from} {to}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn headers_carry_the_key_where_the_provider_looks_for_it() {
    for (name, auth, header) in [
        ("anthropic", "x_api_key", ("x-api-key", "sk-test")),
        ("openai", "bearer", ("authorization", "Bearer sk-test")),
    ] {
        let provider = Provider::start(vec![Reply::Events(say::any(name, "ok", &[]))]).await;
        let mut table = provider.table(name);
        table["auth"] = json!(auth);
        table["key"] = json!({"from": "K"});
        table["headers"] = json!({"x-team": "a"});
        let table: KeyTable = serde_json::from_value(table).unwrap();
        let endpoint = table.endpoint(&"k".parse().unwrap(), &"m".parse().unwrap());
        ask(&mut client(), &endpoint.unwrap(), &[said("hi")])
            .await
            .unwrap();
        let asked = &provider.asked()[0];
        assert_eq!(asked.header(header.0), Some(header.1));
        assert_eq!(asked.header("x-team"), Some("a"));
        assert_eq!(asked.header("accept-encoding"), Some("identity"));
        assert_eq!(asked.json()["model"], "m");
    }
}

#[tokio::test]
async fn one_connection_serves_all_steps() {
    let reply = Reply::Events(say::chat("ok", &[]));
    let provider = Provider::start(vec![reply.clone(), Reply::error(500), reply]).await;
    let endpoint = provider.endpoint("compatible");
    let mut client = client();
    for good in [true, false, true, true] {
        let answer = ask(&mut client, &endpoint, &[said("hi")]).await;
        assert_eq!(answer.is_ok(), good);
    }
    let connections: Vec<usize> = provider
        .asked()
        .iter()
        .map(|asked| asked.connection)
        .collect();
    // An error's connection is not used again: its body may not have been read to its end.
    assert_eq!(connections, [0, 0, 1, 1]);
}

#[tokio::test]
async fn every_failure_has_its_kind_and_says_whether_something_came() {
    let begun = "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":\
                 {\"type\":\"text\",\"text\":\"\"}}\n\ndata: {\"type\":\"content_block_delta\",\
                 \"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"I\"}}\n\n";
    let limited = Reply::Error {
        status: 429,
        headers: vec![("retry-after", "30".into())],
        body: "{}".into(),
    };
    let packed = Reply::Error {
        status: 200,
        headers: vec![("content-encoding", "gzip".into())],
        body: String::new(),
    };
    for (reply, fault, after_content) in [
        (limited, Fault::RateLimited, false),
        (Reply::error(529), Fault::Overloaded, false),
        (Reply::error(401), Fault::Auth, false),
        (Reply::error(400), Fault::BadRequest, false),
        (Reply::error(302), Fault::BadRequest, false),
        (Reply::Breaks(String::new()), Fault::Network, false),
        (Reply::Breaks(begun.into()), Fault::Network, true),
        (Reply::Events(begun.into()), Fault::Network, true),
        (Reply::Events("data: {\n\n".into()), Fault::Protocol, false),
        (packed, Fault::Protocol, false),
    ] {
        let told = format!("{reply:?}");
        let provider = Provider::start(vec![reply]).await;
        let endpoint = provider.endpoint("anthropic");
        let error = ask(&mut client(), &endpoint, &[said("hi")])
            .await
            .unwrap_err();
        assert_eq!(
            (error.fault, error.begun),
            (fault, after_content),
            "{told}: {error}"
        );
        assert_eq!(
            error.retry_at.is_some(),
            fault == Fault::RateLimited,
            "{told}"
        );
    }
    // Nobody listens there any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let table = json!({"provider": "anthropic", "base_url": url, "auth": "none"});
    let table: KeyTable = serde_json::from_value(table).unwrap();
    let endpoint = table
        .endpoint(&"k".parse().unwrap(), &"m".parse().unwrap())
        .unwrap();
    let error = ask(&mut client(), &endpoint, &[said("hi")])
        .await
        .unwrap_err();
    assert_eq!(error.fault, Fault::Network, "{error}");
}

#[tokio::test]
async fn silence_ends_before_and_in_the_middle_of_an_answer() {
    let begun = "data: {\"choices\":[{\"delta\":{\"content\":\"I\"}}]}\n\n".to_owned();
    for (reply, after_content) in [
        (Reply::Hangs, false),
        (Reply::Stalls(String::new()), false),
        (Reply::Stalls(begun), true),
    ] {
        let provider = Provider::start(vec![reply]).await;
        let short = Duration::from_millis(50);
        let timers = Timers {
            head: short,
            silence: short,
        };
        let mut client = Client::new(connector(Proxy::default()), timers);
        let endpoint = provider.endpoint("compatible");
        let error = ask(&mut client, &endpoint, &[said("hi")])
            .await
            .unwrap_err();
        assert_eq!((error.fault, error.begun), (Fault::Timeout, after_content));
    }
}

#[tokio::test]
async fn limits_are_told_on_success() {
    let provider = Provider::start(vec![Reply::Events(say::anthropic("ok", &[]))]).await;
    let endpoint = provider.endpoint("anthropic");
    let question = Question {
        endpoint: &endpoint,
        effort: None,
        system: "x",
        tools: &[],
        session: "s",
    };
    let mut client = client();
    let answer = client
        .ask(&question, &[said("hi")], None, "c".into())
        .await
        .unwrap();
    assert_eq!(answer.windows[0].remaining, Some(7));
}

/// What every request consists of, so that a change of it is seen.
#[tokio::test]
async fn requests_as_they_are() {
    let mut shown = Vec::new();
    for name in PROVIDERS {
        let provider = Provider::start(vec![Reply::Events(say::any(name, "ok", &[]))]).await;
        let endpoint = provider.endpoint(name);
        ask(&mut client(), &endpoint, &[said("hi \u{e9}")])
            .await
            .unwrap();
        let asked = provider.asked().remove(0);
        let line = asked.head.lines().next().unwrap().to_owned();
        shown.push(line);
        shown.push(asked.text);
    }
    let expected = [
        "POST /v1/messages HTTP/1.1",
        r#"{"model":"m","max_tokens":32000,"stream":true,"system":[{"type":"text","text":"You work.","cache_control":{"type":"ephemeral"}}],"tools":[{"name":"read_file","description":"Reads.","input_schema":{"type":"object","properties":{"path":{"type":"string"}}}}],"thinking":{"type":"disabled"},"messages":[{"role":"user","content":[{"type":"text","text":"hi é","cache_control":{"type":"ephemeral"}}]}]}"#,
        "POST /responses HTTP/1.1",
        r#"{"model":"m","stream":true,"store":false,"include":["reasoning.encrypted_content"],"prompt_cache_key":"s1","instructions":"You work.","tools":[{"type":"function","name":"read_file","description":"Reads.","parameters":{"type":"object","properties":{"path":{"type":"string"}}},"strict":false}],"reasoning":{"effort":"none"},"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi é"}]}]}"#,
        "POST /chat/completions HTTP/1.1",
        r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"tools":[{"type":"function","function":{"name":"read_file","description":"Reads.","parameters":{"type":"object","properties":{"path":{"type":"string"}}}}}],"messages":[{"role":"system","content":"You work."},{"role":"user","content":"hi é"}]}"#,
    ];
    assert_eq!(shown, expected);
}

/// Hands everything on to wherever it was asked to connect to.
async fn proxy(listener: TcpListener, status: &'static str) -> Vec<String> {
    let mut heads = Vec::new();
    let (mut inner, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        inner.read_buf(&mut head).await.unwrap();
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    heads.push(head);
    let answer = format!("HTTP/1.1 {status}\r\n\r\n");
    inner.write_all(answer.as_bytes()).await.unwrap();
    if status.starts_with("200") {
        let mut outer = TcpStream::connect(&target).await.unwrap();
        match tokio::io::copy_bidirectional(&mut inner, &mut outer).await {
            Ok(_) | Err(_) => {}
        }
    }
    heads
}

#[tokio::test]
async fn a_proxy_is_asked_to_connect_and_may_refuse() {
    for (status, good) in [("200 OK", true), ("403 Forbidden", false)] {
        let provider = Provider::start(vec![Reply::Events(say::chat("ok", &[]))]).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(proxy(listener, status));
        let way = Proxy::from(|name| (name == "HTTP_PROXY").then(|| address.clone()));
        let mut client = Client::new(connector(way), Timers::default());
        let endpoint = provider.endpoint("compatible");
        let answer = ask(&mut client, &endpoint, &[said("hi")]).await;
        assert_eq!(answer.is_ok(), good, "{answer:?}");
        if let Err(error) = answer {
            assert!(error.to_string().contains("403"), "{error}");
        }
        drop(client);
        let heads = served.await.unwrap();
        let host = provider.url.trim_start_matches("http://");
        assert!(
            heads[0].starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")),
            "{heads:?}"
        );
    }
}

/// What a value of a key's table does to a request.
#[tokio::test]
async fn a_row_for_a_model_changes_its_requests() {
    let provider = Provider::start(vec![Reply::Events(say::anthropic("ok", &[]))]).await;
    let mut table = provider.table("compatible");
    table["models"] = json!([{
        "match": "mini*", "wire": "anthropic", "path": "/messages", "max_output_tokens": 100,
        "effort": {"none": {}}, "body": {"temperature": 0.2},
    }]);
    let table: KeyTable = serde_json::from_value(table).unwrap();
    let endpoint = table.endpoint(&"k".parse().unwrap(), &"mini-1".parse().unwrap());
    ask(&mut client(), &endpoint.unwrap(), &[said("hi")])
        .await
        .unwrap();
    let asked = provider.asked().remove(0);
    assert!(asked.head.starts_with("POST /messages "), "{}", asked.head);
    let body = asked.json();
    assert_eq!(
        (&body["max_tokens"], &body["temperature"]),
        (&json!(100), &json!(0.2))
    );
    assert_eq!(body["thinking"], Value::Null);
}
