//! What is handed over with a prompt: what a model is shown of it, and what is told in words.

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dispatch_core::{
    hex,
    native::{Chunk, Line, TurnEnd},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::bed::{Bed, end};
use crate::provider::{Provider, Reply, say};

const PROVIDERS: [&str; 3] = ["anthropic", "openai", "compatible"];
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and what else is in it";
const PDF: &[u8] = b"%PDF-1.7 and its pages";

fn handed(bed: &Bed, files: &[(&str, &[u8])]) -> Value {
    let one = |(name, bytes): &(&str, &[u8])| {
        let path: PathBuf = bed.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        json!({"path": path, "bytes": bytes.len(), "sha256": hex::hex(&Sha256::digest(bytes))})
    };
    files.iter().map(one).collect()
}

fn done(kind: &str) -> Reply {
    Reply::Events(say::any(kind, "Done.", &[]))
}

/// The contents of the first message of a person.
fn content(body: &Value) -> &Vec<Value> {
    let list = body.get("messages").or_else(|| body.get("input")).unwrap();
    let mut list = list.as_array().unwrap().iter();
    let user = list.find(|message| message["role"] == "user").unwrap();
    user["content"].as_array().unwrap()
}

fn notices(lines: &[Line]) -> String {
    let texts = lines.iter().filter_map(|line| match &line.chunk {
        Chunk::Notice { text } => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_picture_and_a_document_are_shown_in_every_format() {
    let (png, pdf) = (STANDARD.encode(PNG), STANDARD.encode(PDF));
    for kind in PROVIDERS {
        let provider = Provider::start(vec![done(kind)]).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        // Its name is not what it is.
        bed.opening["files"] = handed(&bed, &[("shot.txt", PNG), ("spec", PDF)]);
        let lines = bed.run(Some("Look at these.")).await;
        assert_eq!(end(&lines), TurnEnd::Done, "{kind}");
        let body = provider.asked()[0].json();
        let parts = content(&body);
        let image = format!("data:image/png;base64,{png}");
        let file = format!("data:application/pdf;base64,{pdf}");
        let expected = match kind {
            "anthropic" => [
                json!({"type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": png}}),
                json!({"type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": pdf}}),
            ],
            "openai" => [
                json!({"type": "input_image", "image_url": image}),
                json!({"type": "input_file", "filename": "spec", "file_data": file}),
            ],
            _ => [
                json!({"type": "image_url", "image_url": {"url": image}}),
                json!({"type": "file", "file": {"filename": "spec", "file_data": file}}),
            ],
        };
        assert_eq!(
            [&parts[1], &parts[3]],
            [&expected[0], &expected[1]],
            "{kind}"
        );
        let said = |at: usize| parts[at]["text"].as_str().unwrap();
        assert!(said(0).starts_with("[Attached: /") && said(0).ends_with("/shot.txt]"));
        assert_eq!((said(4), parts.len()), ("Look at these.", 5), "{kind}");
        assert_eq!(notices(&lines), "");
        let record = fs::read_to_string(bed.out(1)).unwrap();
        assert!(!record.contains(&png) && !record.contains(&pdf), "{record}");
    }
}

/// They stay in every later request, in the same bytes, also of a later run; and none is told twice.
#[tokio::test]
async fn row_10_what_was_shown_stays_where_it_was() {
    for kind in PROVIDERS {
        let call = Reply::Events(say::any(kind, "", &[("c", "list_files", json!({}))]));
        let provider = Provider::start(vec![call, done(kind)]).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        let first = handed(&bed, &[("a.png", PNG)]);
        bed.opening["files"] = first.clone();
        bed.run(Some("Look.")).await;
        let mut both = first;
        let second = handed(&bed, &[("b.pdf", PDF)]);
        both.as_array_mut().unwrap().push(second[0].clone());
        bed.opening["files"] = both;
        bed.run(Some("And at this.")).await;
        let asked: Vec<Value> = provider.asked().iter().map(|asked| asked.json()).collect();
        assert_eq!(asked.len(), 3, "{kind}");
        for body in &asked {
            let unmarked = |body: &Value| {
                let mut parts = content(body).clone();
                for part in &mut parts {
                    part.as_object_mut().unwrap().remove("cache_control");
                }
                parts
            };
            assert_eq!(unmarked(body), unmarked(&asked[0]), "{kind}");
        }
        let last = asked[2].to_string();
        assert_eq!(last.matches(&STANDARD.encode(PNG)).count(), 1, "{kind}");
        assert_eq!(last.matches(&STANDARD.encode(PDF)).count(), 1, "{kind}");
    }
}

#[tokio::test]
async fn one_that_is_gone_or_another_now_is_told_in_words() {
    for kind in PROVIDERS {
        let provider = Provider::start(vec![done(kind)]).await;
        let mut bed = Bed::new(&[("k", kind, &provider)]);
        bed.opening["files"] = handed(&bed, &[("a.png", PNG), ("b.png", PNG)]);
        bed.run(Some("Look.")).await;
        fs::remove_file(bed.dir.path().join("a.png")).unwrap();
        fs::write(bed.dir.path().join("b.png"), b"\x89PNG\r\n\x1a\n other").unwrap();
        let lines = bed.run(Some("And now?")).await;
        assert_eq!(end(&lines), TurnEnd::Done, "{kind}");
        let body = provider.asked()[1].json();
        let parts = content(&body);
        let said = |at: usize| parts[at]["text"].as_str().unwrap();
        assert!(said(0).contains("a.png (image/png); it cannot be shown any more: "));
        assert!(said(1).contains("it is not what it was when it was attached"));
        assert_eq!((said(2), parts.len()), ("Look.", 3), "{kind}");
    }
}

#[tokio::test]
async fn what_cannot_be_shown_is_named_with_its_reason_and_stays_a_file() {
    let provider = Provider::start(vec![done("compatible")]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let large = [PNG, &vec![0; 5 << 20]].concat();
    bed.opening["files"] = handed(
        &bed,
        &[
            ("notes.png", b"only text"),
            ("large.png", &large),
            ("none.pdf", b""),
            ("a.png", PNG),
        ],
    );
    let mut lines = bed.run(Some("Look.")).await;
    let told = notices(&lines);
    let text = provider.asked()[0].json().to_string();
    for part in [
        "notes.png (unsupported-type)",
        "large.png (image-too-large: ",
        "none.pdf (empty)",
    ] {
        assert!(told.contains(part) && text.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("a.png (") && text.contains(&STANDARD.encode(PNG)));
    lines = bed.run(Some("Again.")).await;
    assert_eq!(notices(&lines), "", "it was told before");
}

/// A refusal that may be about what was shown says how not to show it.
#[tokio::test]
async fn a_refused_request_that_shows_files_names_the_way_out() {
    let provider = Provider::start(vec![Reply::error(400), done("compatible")]).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.opening["files"] = handed(&bed, &[("a.png", PNG)]);
    let lines = bed.run(Some("Look.")).await;
    let TurnEnd::Failed { message, .. } = end(&lines) else {
        panic!("{lines:#?}");
    };
    assert!(
        message.contains("`media = []` in its row of keys.k.models"),
        "{message}"
    );
    bed.opening["keys"]["k"]["models"] = json!([{"match": "*", "media": []}]);
    assert_eq!(end(&bed.run(Some("And now?")).await), TurnEnd::Done);
    let text = &provider.asked()[1].text;
    assert!(
        text.contains("a.png (image/png); you cannot be shown it"),
        "{text}"
    );
}

/// A table says what a model takes, and a model that takes less hears of the rest by its path.
#[tokio::test]
async fn a_model_without_eyes_is_told_where_the_file_is() {
    let other = Provider::start(vec![done("compatible")]).await;
    let provider = Provider::start(vec![Reply::error(401)]).await;
    let mut bed = Bed::quick(&[("a", "anthropic", &provider), ("b", "compatible", &other)]);
    bed.opening["keys"]["b"]["models"] = json!([{"match": "*", "media": ["pdf"]}]);
    bed.opening["files"] = handed(&bed, &[("a.png", PNG), ("b.pdf", PDF)]);
    let lines = bed.run(Some("Look.")).await;
    assert_eq!(end(&lines), TurnEnd::Done);
    assert!(provider.asked()[0].text.contains(&STANDARD.encode(PNG)));
    let text = &other.asked()[0].text;
    assert!(
        text.contains("a.png (image/png); you cannot be shown it as it is"),
        "{text}"
    );
    assert!(!text.contains(&STANDARD.encode(PNG)) && text.contains(&STANDARD.encode(PDF)));
}
