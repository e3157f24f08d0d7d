//! Rules against what turns up only while a call runs, and against several things at once.
//! Must not need any network but this machine's own.

use std::sync::Arc;

use dispatch_core::rules::{Action, Subject};
use serde_json::{Value, json};

use super::{
    site::{Page, Site},
    testing::{Bench, rules},
};

fn bench(site: &Site, web: &Value, guarded: &[(&str, &str, &str)]) -> Bench {
    let mut web = web.clone();
    web["private"] = json!([site.address()]);
    let mut bench = Bench::with(|outside| outside.web = serde_json::from_value(web).unwrap());
    bench.rules = Arc::new(rules(guarded));
    bench
}

#[tokio::test]
async fn a_page_that_moved_is_decided_about_again() {
    let site = Site::start(|visit| match visit.target.as_str() {
        "/public/a" => Page::moved("/public/b"),
        "/public/b" => Page::moved("/admin"),
        _ => Page::html("inside"),
    })
    .await;
    let url = json!({"url": format!("{}/public/a", site.url)});
    for (action, why) in [
        ("ask", "is another page, which nobody has allowed; fetch it"),
        ("deny", "a rule for web_fetch denies http://"),
    ] {
        let bench = bench(
            &site,
            &json!({}),
            &[("web_fetch", "http://*/admin*", action)],
        );
        let wrong = bench.wrong("web_fetch", url.clone()).await;
        assert!(
            wrong.contains("/public/b: it was moved: ") && wrong.contains(why),
            "{wrong}"
        );
    }
    assert!(site.visits().iter().all(|visit| visit.target != "/admin"));
    let free = bench(&site, &json!({}), &[]);
    assert!(free.told("web_fetch", url).await.ends_with("inside"));
}

#[tokio::test]
async fn a_search_brings_no_page_that_a_rule_denies() {
    let pages = Site::start(|_| Page::html("inside")).await;
    let results = ["/a", "/secret/b"].map(|path| json!({"url": format!("{}{path}", pages.url)}));
    let engine = Site::start(move |_| Page::json(&json!({"results": results}))).await;
    let web = json!({"search": {"shape": "searxng", "url": engine.url}});
    let guarded = [
        ("web_fetch", "*", "ask"),
        ("web_fetch", "http://*/secret/*", "deny"),
    ];
    let bench = bench(&pages, &web, &guarded);
    let told = bench
        .told("web_search", json!({"query": "x", "scrape": true}))
        .await;
    assert!(
        told.contains("inside") && told.contains("a rule for web_fetch denies"),
        "{told}"
    );
    let visits = pages.visits();
    assert_eq!(visits.len(), 1, "{visits:?}");
}

#[tokio::test]
async fn of_all_keys_those_are_told_of_that_may_be() {
    let table = json!({"provider": "openai", "key": {"from": "X"}});
    let keys = json!({"open": table, "secret": table});
    let mut bench = Bench::with(|outside| outside.keys = serde_json::from_value(keys).unwrap());
    bench.rules = Arc::new(rules(&[("key_usage", "secret", "deny")]));
    let told = bench.told("key_usage", json!({})).await;
    assert!(told.starts_with("open: in use"), "{told}");
    assert!(
        told.ends_with("secret: a rule for key_usage denies it"),
        "{told}"
    );
    let of = |input: Value| {
        let bench = &bench;
        async move { bench.plan("key_usage", &input).await.unwrap().subjects }
    };
    assert_eq!(of(json!({})).await, [Subject::name("open")]);
    assert_eq!(
        of(json!({"key_id": "secret"})).await,
        [Subject::name("secret")]
    );
    // Where all are denied, that is what the call is.
    bench.rules = Arc::new(rules(&[("key_usage", "*", "deny")]));
    let all = bench.plan("key_usage", &json!({})).await.unwrap().subjects;
    let decided = bench
        .rules
        .decide_all(dispatch_core::rules::Group::KeyUsage, &all);
    assert_eq!((all.len(), decided), (2, Action::Deny));
}

#[tokio::test]
async fn what_a_shell_is_given_to_read_is_a_command() {
    let bench = Bench::new();
    let input = json!({"action": "stdin", "job": "job-1", "input": "sudo x\n"});
    let planned = bench.plan("shell_jobs", &input).await.unwrap();
    let typed = Subject::Command("sudo x".into());
    assert_eq!(planned.subjects, [Subject::name("stdin job-1"), typed]);
}

/// What a rule is asked about does not depend on how a model writes it.
#[tokio::test]
async fn a_spelling_is_no_way_around_a_rule() {
    let bench = Bench::new();
    bench.write(".github/workflows/x.yml", "");
    std::os::unix::fs::symlink(".github/workflows", bench.path("l")).unwrap();
    let absolute = bench.path(".github/workflows/x.yml").display().to_string();
    for (tool, member, spellings, subject) in [
        (
            "write_file",
            "path",
            &[
                "l/x.yml",
                "./.github//workflows/x.yml",
                "l/../workflows/x.yml",
                absolute.as_str(),
            ][..],
            Subject::Path(".github/workflows/x.yml".into()),
        ),
        (
            "web_fetch",
            "url",
            &[
                "https://h/admin",
                "HTTPS://H.:443/public/%2e%2e/%61dmin#x",
                "https://h/a/../admin",
            ],
            Subject::Url(dispatch_core::address::Address::parse("https://h/admin").unwrap()),
        ),
    ] {
        for spelling in spellings {
            let mut input = json!({"content": ""});
            input[member] = json!(spelling);
            if tool == "web_fetch" {
                input.as_object_mut().unwrap().remove("content");
            }
            let planned = bench.plan(tool, &input).await.unwrap();
            assert_eq!(
                planned.subjects,
                std::slice::from_ref(&subject),
                "{spelling}"
            );
        }
    }
}
