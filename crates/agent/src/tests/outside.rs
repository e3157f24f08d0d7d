//! Turns that reach outside: how far is what the opening says, and what providers tell of their
//! limits is known later, in another process too.

use dispatch_core::native::TurnEnd;
use serde_json::json;

use super::bed::{Bed, end, results};
use crate::{
    provider::{Provider, Reply, say},
    tools::site::{Page, Site},
};

/// A provider that has one call made, and is then content. Again for each turn.
async fn calling(tool: &str, input: &serde_json::Value, turns: usize) -> Provider {
    let call = say::chat("", &[("c1", tool, input.clone())]);
    let done = say::chat("Done.", &[]);
    let turn = [Reply::Events(call), Reply::Events(done)];
    Provider::start(turn.iter().cycle().take(2 * turns).cloned().collect()).await
}

#[tokio::test]
async fn a_page_is_fetched_as_far_as_the_opening_says() {
    let site = Site::start(|_| Page::html("<h1>Inside</h1>")).await;
    let input = json!({"url": format!("{}/x", site.url)});
    let provider = calling("web_fetch", &input, 3).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    bed.resume = false;
    for (reach, private, part) in [
        (json!("everything"), json!([site.address()]), "# Inside"),
        (json!("everything"), json!([]), "may not be reached"),
        (json!("nothing"), json!([site.address()]), "has no network"),
    ] {
        bed.opening["reach"] = reach;
        bed.opening["web"] = json!({"private": private});
        let lines = bed.run(Some("Look.")).await;
        assert_eq!(end(&lines), TurnEnd::Done);
        let told = &results(&lines)[&("1.1".into(), "c1".into())];
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(site.visits().len(), 1);
}

#[tokio::test]
async fn what_an_answer_said_of_its_limits_is_known_later() {
    let provider = calling("key_usage", &json!({}), 2).await;
    let mut bed = Bed::new(&[("k", "compatible", &provider)]);
    let first = bed.run(Some("How much?")).await;
    let second = bed.run(Some("And now?")).await;
    for (lines, step) in [(first, "1.1"), (second, "2.1")] {
        let told = &results(&lines)[&(step.into(), "c1".into())];
        let rest = told.strip_prefix("k: in use\ncached (").unwrap_or(told);
        assert!(rest.ends_with(" ago):\n- requests: 7 left"), "{told}");
    }
}

#[tokio::test]
async fn a_table_that_cannot_be_followed_is_an_error_of_the_opening() {
    let provider = calling("todo", &json!({"todos": []}), 1).await;
    for (member, value, part) in [
        (
            "web",
            json!({"request_ms": 0}),
            "open: use [web]: request_ms is 0",
        ),
        (
            "servers",
            json!({"s": {}}),
            "open: use MCP server s: say either",
        ),
        ("tools", json!(["fly"]), "SERVER__TOOL of MCP servers"),
    ] {
        let mut bed = Bed::new(&[("k", "compatible", &provider)]);
        bed.opening[member] = value;
        let error = bed.start(Some("Go.")).error().await;
        assert!(error.contains(part), "{error}");
    }
}
