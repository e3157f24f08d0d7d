//! The tools that reach outside, against sites of all kinds on this machine.
//! Must not need any other network.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dispatch_core::{native::Window, web::Reach};
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, LOCATION};
use serde_json::{Value, json};

use super::{
    Outside, Seen,
    site::{Page, Piece, Site},
    testing::Bench,
};
use crate::{keys::Told, model::now};

/// A bench that may reach the site, with these settings.
fn bench(site: &Site, web: &Value) -> Bench {
    let mut web = web.clone();
    web["private"] = json!([site.address()]);
    Bench::with(|outside| outside.web = serde_json::from_value(web).unwrap())
}

async fn site(pages: impl Fn(&str) -> Page + Send + Sync + 'static) -> Site {
    Site::start(move |visit| pages(&visit.target)).await
}

async fn fetched(bench: &Bench, site: &Site, path: &str) -> Result<String, String> {
    let url = format!("{}{path}", site.url);
    bench.run("web_fetch", json!({"url": url})).await
}

#[tokio::test]
async fn a_page_is_read_as_text() {
    let site = site(|path| match path {
        "/html" => Page::html("<title>T</title><h1>Head</h1><p>Some <a href=/x>text</a>"),
        "/json" => Page::new("application/vnd.a+json", "{\"a\":1}"),
        "/text" => Page::new("text/plain", "<b>as it is"),
        "/old" => Page::new("text/plain; charset=ISO-8859-1", vec![b'c', 0xe9]),
        "/none" => Page::new("application/octet-stream", "<!DOCTYPE html><p>typeless"),
        "/image" => Page::new("image/png", vec![0x89, 0, 1]),
        "/binary" => Page::new("application/octet-stream", vec![0x7f, b'E', b'L', b'F', 0]),
        path if path.starts_with("/q?a=") => Page::new("text/plain", path.to_owned()),
        _ => Page::html("<h1>Nothing here</h1>").status(404),
    })
    .await;
    let bench = bench(&site, &json!({}));
    let html = fetched(&bench, &site, "/html#part").await.unwrap();
    let (head, text) = html.split_once("\n\n").unwrap();
    assert_eq!(head, format!("{}/html (text/html)\nTitle: T", site.url));
    assert_eq!(text, format!("# Head\n\nSome [text]({}/x)", site.url));
    let raw = json!({"url": format!("{}/html", site.url), "raw": true});
    assert!(bench.told("web_fetch", raw).await.contains("<h1>Head"));
    for (path, end) in [
        ("/json", "{\"a\":1}"),
        ("/text", "<b>as it is"),
        ("/old", "c\u{e9}"),
        ("/none", "\n\ntypeless"),
        ("/q?a=b c\u{e9}", "/q?a=b%20c%C3%A9"),
    ] {
        let told = fetched(&bench, &site, path).await.unwrap();
        assert!(told.ends_with(end), "{path}: {told}");
    }
    for (path, part) in [
        ("/image", "\"image/png\" of 3 bytes, and no text"),
        ("/binary", "and no text"),
        ("/gone", "it answered 404 Not Found: # Nothing here"),
    ] {
        let error = fetched(&bench, &site, path).await.unwrap_err();
        assert!(error.contains(part), "{path}: {error}");
    }
    let visits = site.visits();
    assert_eq!(visits[0].target, "/html");
    assert_eq!(visits[0].headers["accept-encoding"], "identity");
    assert_eq!(visits[0].headers["host"], site.address());
    assert!(
        !visits
            .iter()
            .any(|visit| visit.headers.contains_key("cookie"))
    );
}

#[tokio::test]
async fn a_page_that_moved_is_followed_on_its_own_host_only() {
    let site = site(|path| match path {
        "/a" => Page::moved("/b/c"),
        "/b/c" => Page::moved("../d?x=1").status(308),
        "/d?x=1" => Page::html("there"),
        "/away" => Page::moved("https://b.example/x"),
        "/port" => Page::moved("//127.0.0.1:1/x"),
        "/file" => Page::moved("file:///etc/passwd"),
        "/loop" => Page::moved("/loop"),
        _ => Page::html("").status(301),
    })
    .await;
    let bench = bench(&site, &json!({"redirects_max": 3}));
    let told = fetched(&bench, &site, "/a").await.unwrap();
    assert!(told.contains("/d?x=1 (text/html)") && told.ends_with("there"));
    for (path, part) in [
        ("/away", "another place; fetch https://b.example/x if"),
        ("/port", "another place; fetch http://127.0.0.1:1/x if"),
        ("/file", "to what is no address"),
        ("/loop", "moved more than 3 times"),
        ("/lost", "does not say where"),
    ] {
        let error = fetched(&bench, &site, path).await.unwrap_err();
        assert!(error.contains(part), "{path}: {error}");
    }
    let loops = site.visits();
    let loops = loops.iter().filter(|visit| visit.target == "/loop");
    assert_eq!(loops.count(), 4);
}

#[tokio::test]
async fn a_hostile_page_takes_no_more_than_its_limits() {
    let piece = Bytes::from(vec![b'x'; 16 << 10]);
    let site = site(move |path| match path {
        "/endless" => Page::new("text/plain", "").piece(Piece::Endless(piece.clone())),
        "/hangs" => Page::new("text/plain", "").piece(Piece::Hangs),
        "/packed" => Page::html("bomb").with(CONTENT_ENCODING, "gzip"),
        _ => Page::html("").with(LOCATION, &"x".repeat(300_000)),
    })
    .await;
    let mut web = json!({"body_bytes_max": 100_000, "text_chars_max": 2000});
    let quick = {
        web["request_ms"] = json!(300);
        bench(&site, &web)
    };
    web["request_ms"] = json!(20_000);
    let bench = bench(&site, &web);
    let told = fetched(&bench, &site, "/endless").await.unwrap();
    assert!(told.contains("Only the first 100000 bytes"), "{told}");
    assert!(
        told.ends_with("xxx\n\n[cut after 2000 characters]"),
        "{told}"
    );
    for (path, part) in [
        ("/hangs", "it took longer than 300"),
        ("/packed", "packed although it was not to be"),
        ("/head", "read the answer"),
    ] {
        let bench = if path == "/hangs" { &quick } else { &bench };
        let error = fetched(bench, &site, path).await.unwrap_err();
        assert!(error.contains(part), "{path}: {error}");
    }
}

#[tokio::test]
async fn what_is_not_public_is_refused_before_a_byte_is_sent() {
    let site = site(|_| Page::html("inside")).await;
    let port = site.address().split_once(':').unwrap().1.to_owned();
    let reach = |reach| Bench::with(|outside| outside.reach = reach);
    let all = reach(Reach::Everything);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let url = format!("http://{host}:{port}/");
        let error = all.wrong("web_fetch", json!({"url": url})).await;
        assert!(error.contains("may not be reached"), "{url}: {error}");
    }
    for url in ["file:///etc/passwd", "a.example", "http://me@a.example/"] {
        let error = all.wrong("web_fetch", json!({"url": url})).await;
        assert!(error.contains(url), "{error}");
    }
    assert_eq!(site.visits().len(), 0);
    let none = reach(Reach::Nothing);
    let error = fetched(&none, &site, "/").await.unwrap_err();
    assert!(error.contains("this task has no network"), "{error}");
    assert_eq!(site.visits().len(), 0);
    // Inside the fence its proxy decides.
    let listed = reach(Reach::Listed);
    assert!(fetched(&listed, &site, "/").await.is_ok());
}

#[tokio::test]
async fn a_scraper_fetches_in_our_place() {
    let site = Site::start(|visit| {
        assert_eq!(visit.target, "/v2/scrape");
        match visit.body["url"].as_str().unwrap() {
            "https://a.example/good" => Page::json(&json!({
                "success": true,
                "data": {"markdown": "# Good", "metadata": {"title": "T", "statusCode": 200}},
            })),
            "https://a.example/gone" => Page::json(&json!({
                "success": true, "data": {"markdown": "gone", "metadata": {"statusCode": 404}},
            })),
            "https://a.example/bad" => Page::html("<p>no JSON"),
            _ => Page::json(&json!({"success": false, "error": "no credits"})),
        }
    })
    .await;
    // The variable is there in every test of cargo.
    let scrape = json!({"url": format!("{}/v2/", site.url), "key": {"from": "CARGO_PKG_NAME"}});
    let bench = bench(&site, &json!({"scrape": scrape}));
    let told = bench
        .told("web_fetch", json!({"url": "https://a.example/good"}))
        .await;
    assert_eq!(
        told,
        "https://a.example/good (markdown)\nTitle: T\n\n# Good"
    );
    let visit = &site.visits()[0];
    assert_eq!(visit.headers[AUTHORIZATION], "Bearer dispatch-agent");
    for (url, part) in [
        ("https://a.example/gone", "the page answered 404"),
        ("https://a.example/bad", "not what it should be"),
        ("https://a.example/paid", "no credits"),
        ("http://169.254.169.254/latest", "may not be reached"),
    ] {
        let error = bench.wrong("web_fetch", json!({"url": url})).await;
        assert!(error.contains(part), "{url}: {error}");
    }
    assert_eq!(site.visits().len(), 4);
}

fn searching(site: &Site, shape: &str) -> Value {
    json!({"search": {"shape": shape, "url": site.url}})
}

#[tokio::test]
async fn searxng_is_searched() {
    let site = site(|path| match path {
        path if path.contains("q=none") => Page::json(&json!({"results": []})),
        path if path.contains("q=down") => Page::html("Too many requests").status(429),
        path if path.contains("q=broken") => Page::html("<p>forbidden format"),
        path if path.contains("q=long") => {
            Page::new("application/json", "").piece(Piece::Endless(Bytes::from_static(b"[[[[")))
        }
        path if path.starts_with("/search?q=") => {
            let results = (0..30).map(|n| {
                json!({"title": format!("Title\n{n}"), "url": format!("http://x.example/{n}"),
                    "content": "About it."})
            });
            let mut results: Vec<Value> = results.collect();
            results[1] = json!({"title": "no address"});
            Page::json(&json!({"results": results}))
        }
        path => panic!("{path}"),
    })
    .await;
    let bench = bench(&site, &searching(&site, "searxng"));
    let input = json!({"query": "a & b", "limit": 2, "lang": "en", "country": "us"});
    let told = bench.told("web_search", input).await;
    let expected = "1. Title 0\n   http://x.example/0\n   About it.\n\n2. Title 2\n   \
                    http://x.example/2\n   About it.";
    assert_eq!(told, expected);
    let target = &site.visits()[0].target;
    assert_eq!(target, "/search?q=a%20%26%20b&format=json&language=en-US");
    let usual = bench.told("web_search", json!({"query": "x"})).await;
    assert!(usual.contains("\n7. ") && !usual.contains("\n8. "));
    let none = bench.told("web_search", json!({"query": "none"})).await;
    assert_eq!(none, "nothing was found for \"none\"");
    for (query, part) in [
        ("", "the query is empty"),
        ("down", "it answered 429 Too Many Requests: Too many"),
        ("broken", "not what it should be"),
        ("long", "longer than"),
    ] {
        let error = bench.wrong("web_search", json!({"query": query})).await;
        assert!(error.contains(part), "{query}: {error}");
    }
}

#[tokio::test]
async fn pages_come_along_with_their_results() {
    let pages = site(|path| match path {
        "/good" => Page::html("<h1>Good</h1>"),
        _ => Page::html("").status(500),
    })
    .await;
    let (good, bad) = (format!("{}/good", pages.url), format!("{}/bad", pages.url));
    let results = json!({"results": [{"title": "a", "url": good}, {"title": "b", "url": bad},
        {"title": "c", "url": "http://127.0.0.1:1/"}]});
    let engine = site(move |_| Page::json(&results)).await;
    let bench = bench(&pages, &searching(&engine, "searxng"));
    let told = bench
        .told("web_search", json!({"query": "x", "scrape": true}))
        .await;
    assert!(told.contains("# Good"), "{told}");
    assert!(told.contains("it answered 500"), "{told}");
    assert!(told.contains("127.0.0.1:1 may not be reached"), "{told}");
}

#[tokio::test]
async fn firecrawl_is_searched_in_both_versions() {
    let result = json!({"title": "T", "url": "https://a.example", "description": "D",
        "markdown": "x".repeat(9000)});
    for data in [json!([result]), json!({"web": [result]})] {
        let site = site(move |_| Page::json(&json!({"success": true, "data": data}))).await;
        let bench = bench(&site, &searching(&site, "firecrawl"));
        let input = json!({"query": "x", "scrape": true, "country": "de"});
        let told = bench.told("web_search", input).await;
        assert!(
            told.starts_with("1. T\n   https://a.example\n   D\n\nxxx"),
            "{told}"
        );
        assert!(told.ends_with("[cut after 8000 characters]"));
        let body = &site.visits()[0].body;
        assert_eq!(body["limit"], 7);
        assert_eq!(body["country"], "de");
        assert_eq!(body["scrapeOptions"]["formats"], json!(["markdown"]));
    }
    let failed = json!({"success": false, "error": "no credits"});
    let site = site(move |_| Page::json(&failed)).await;
    let bench = bench(&site, &searching(&site, "firecrawl"));
    let error = bench.wrong("web_search", json!({"query": "x"})).await;
    assert!(error.contains("it failed: no credits"), "{error}");
}

#[tokio::test]
async fn what_is_not_configured_or_not_granted_says_so() {
    let bench = Bench::new();
    let none = Bench::with(|outside| outside.reach = Reach::Nothing);
    let url = json!({"url": "https://youtu.be/x"});
    for (tool, input) in [
        ("web_search", json!({"query": "x"})),
        ("youtube_transcribe", url),
    ] {
        let error = bench.wrong(tool, input.clone()).await;
        assert!(error.contains("configured"), "{error}");
        let error = none.wrong(tool, input).await;
        assert!(error.contains("has no network"), "{error}");
    }
}

/// A transcriber that is done when it was asked three times.
async fn transcriber() -> Site {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    Site::start(move |visit| {
        let url = visit.body["url"].as_str().unwrap();
        let n = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Page::json(&match url {
            "https://youtu.be/private" => {
                json!({"status": "failed", "error": {"type": "private", "message": "no access"}})
            }
            "https://youtu.be/odd" => json!({"status": "paused"}),
            "https://youtu.be/slow" => json!({"status": "working", "estimate_seconds": 1e300}),
            _ if n < 2 => json!({"status": "working", "estimate_seconds": 0.001}),
            _ => json!({"status": "ready", "text": "All of it.", "segments": [
                {"start": 0.0, "text": " All "}, {"start": 3723.9, "text": "of it."},
            ]}),
        })
    })
    .await
}

#[tokio::test]
async fn a_film_is_asked_for_until_it_is_written_down() {
    let site = transcriber().await;
    let web = json!({"transcribe": {"url": format!("{}/t", site.url), "pause_ms_min": 1,
        "wait_ms_max": 60_000}});
    let bench = bench(&site, &web);
    let ask = |url: &str, background| {
        let input = json!({"url": format!("https://youtu.be/{url}"), "background": background});
        bench.run("youtube_transcribe", input)
    };
    let later = ask("x", true).await.unwrap();
    assert!(later.contains("with the same url again"), "{later}");
    let told = ask("x", false).await.unwrap();
    assert_eq!(told, "All of it.\n\n[0:00:00] All\n[1:02:03] of it.");
    assert_eq!(site.visits().len(), 3);
    for (url, part) in [
        ("private", "private: no access"),
        ("odd", "status is \"paused\", which is not known"),
    ] {
        let error = ask(url, false).await.unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    // It would wait for a minute, and a person is not kept waiting for that.
    bench.messages.send_replace(1);
    let told = ask("slow", false).await.unwrap();
    assert!(told.starts_with("Somebody has said something"), "{told}");
}

#[tokio::test]
async fn a_film_that_takes_too_long_is_left() {
    let site = transcriber().await;
    let web = json!({"transcribe": {"url": site.url, "wait_ms_max": 5}});
    let input = json!({"url": "https://youtu.be/slow"});
    let error = bench(&site, &web).wrong("youtube_transcribe", input).await;
    assert!(error.contains("takes longer than 5ms"), "{error}");
}

fn with_keys(keys: Value) -> impl FnOnce(&mut Outside) {
    move |outside| outside.keys = serde_json::from_value(keys).unwrap()
}

#[tokio::test]
async fn what_is_left_is_asked_for_where_that_is_documented() {
    let site = Site::start(|visit| match visit.target.as_str() {
        "/usage" => Page::json(&json!({
            "five_hour": {"utilization": 25.5, "resets_at": "2100-01-01T00:00:00Z"},
            "data": {"limit": 20, "usage": "7.5", "left": null},
        })),
        _ => Page::html("no such page").status(404),
    })
    .await;
    let windows = json!([
        {"name": "5h", "used_percent": "/five_hour/utilization", "resets_at": "/five_hour/resets_at"},
        {"name": "credit", "limit": "/data/limit", "used": "/data/usage", "remaining": "/data/left"},
        {"name": "week", "remaining": "/data/week", "limit": "/data/limit"},
    ]);
    let table = |path: &str| {
        json!({"provider": "anthropic", "key": {"from": "CARGO_PKG_NAME"}, "base_url": site.url,
            "usage": {"path": path, "windows": windows}})
    };
    let keys = json!({"a": table("/usage"), "b": table("/gone"),
        "c": {"provider": "openai", "key": {"from": "X"}}});
    let mut bench = Bench::with(with_keys(keys));
    let window = |name: &str, remaining| Window {
        name: name.to_owned(),
        limit: Some(60),
        remaining,
        resets_at: Some(now() - 5000),
    };
    let told = Told {
        windows: vec![window("requests", Some(15)), window("tokens", None)],
        at: Some(now() - 30_000),
    };
    let mut seen = Seen::default();
    seen.told.insert("b".parse().unwrap(), told);
    seen.outs.apply(&dispatch_core::native::Chunk::KeyOut {
        key: "b".parse().unwrap(),
        until: Some(now() + 3 * 3_600_000),
        why: String::new(),
    });
    bench.seen = Arc::new(seen);
    let told = bench.told("key_usage", json!({})).await;
    let parts: Vec<&str> = told.split("\n\n").collect();
    let [a, b, c] = parts[..] else {
        panic!("{told}");
    };
    assert!(
        a.starts_with(
            "a: in use\nlive:\n- 5h: 74.50 of 100 left (74 %), resets 2100-01-01T00:00:00Z (in "
        ),
        "{a}"
    );
    assert!(a.contains("\n- credit: 12.50 of 20 left (62 %)\n"), "{a}");
    assert!(
        a.ends_with("\n- week: what is left of 20 is unknown"),
        "{a}"
    );
    assert!(b.starts_with("b: exhausted until "), "{b}");
    assert!(
        b.contains("did not tell: error: ask it: it answered 404"),
        "{b}"
    );
    assert!(
        b.contains("cached (30 s ago):\n- requests: 15 of 60 left (25 %), resets "),
        "{b}"
    );
    assert!(b.contains("- tokens: what is left of 60 is unknown"), "{b}");
    assert_eq!(
        c,
        "c: in use\nwhat is left is unknown: no answer has told of it"
    );
    let asked = &site.visits()[0];
    assert_eq!(asked.headers["x-api-key"], "dispatch-agent");
    assert!(!told.contains("dispatch-agent"));
    let one = bench.told("key_usage", json!({"key_id": "c"})).await;
    assert_eq!(one, c);
    let error = bench.wrong("key_usage", json!({"key_id": "d"})).await;
    assert!(error.contains("no key d; there are a, b, c"), "{error}");
    assert!(
        Bench::new()
            .wrong("key_usage", json!({}))
            .await
            .contains("no keys")
    );
}

/// A limit of the test itself: it must not hang where a tool would.
#[tokio::test]
async fn a_service_that_hangs_is_given_up() {
    let site = site(|_| Page::new("application/json", "").piece(Piece::Hangs)).await;
    let mut web = searching(&site, "firecrawl");
    web["request_ms"] = json!(50);
    let bench = bench(&site, &web);
    let asked = bench.wrong("web_search", json!({"query": "x"}));
    let error = tokio::time::timeout(Duration::from_secs(20), asked).await;
    assert!(error.unwrap().contains("longer than 50ms"));
}
