//! `web_fetch`: a page of the web as text, fetched by ourselves or by a Firecrawl of the settings.
//! Must not follow a page to another host: who allowed the one has not allowed the other.

use std::time::Duration;

use dispatch_core::{rules::Group, web::ScrapeTable};
use hyper::{
    HeaderMap, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, LOCATION},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Outside, Run, Tool, Wrong, html, schema, text_of,
    web::{Service, cut, said, size},
};
use crate::net::{Answered, Guard, Host, Question, address, ask, look_at_name};

pub(super) const TOOL: Tool = Tool {
    name: "web_fetch",
    line: "read a page of the web",
    help: "Fetches one page and answers with its text: HTML as Markdown, other text as it is. A page \
           that has moved to another host is not followed; the answer says where it is now. Files \
           that are no text are refused.",
    group: Group::WebFetch,
    safe: true,
    schema: schema::<Input>,
    subjects: |input, _| vec![subject(text_of(input, "url"))],
    run: |run| Box::pin(fetch(run)),
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The whole address, from https:// on.
    url: String,
    /// HTML as it is, not as Markdown.
    #[serde(default)]
    raw: bool,
}

/// As the rules see an address: what it is asked with, however it was written.
pub(super) fn subject(url: &str) -> String {
    address::parse(url).map_or_else(|_| url.to_owned(), |uri| uri.to_string())
}

/// What is told of a page.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) title: String,
    pub(super) text: String,
    url: Uri,
    kind: String,
    cut: bool,
}

async fn fetch(run: Run) -> Result<String, Wrong> {
    let input: Input = run.parse()?;
    let outside = &run.place.outside;
    outside.granted("fetch a page")?;
    let uri = address::parse(&input.url).map_err(|error| Wrong::new(error.to_string()))?;
    let fetched = match &outside.web.scrape {
        Some(scrape) if !input.raw => scraped(outside, scrape, &uri).await?,
        _ => page(outside, &uri, input.raw).await?,
    };
    let mut told = format!("{} ({})\n", fetched.url, fetched.kind);
    if !fetched.title.is_empty() {
        told.push_str(&format!("Title: {}\n", fetched.title));
    }
    if fetched.cut {
        let most = outside.web.body_bytes_max;
        told.push_str(&format!("Only the first {most} bytes of it were read.\n"));
    }
    let mut text = fetched.text;
    cut(&mut text, outside.web.text_chars_max);
    told.push('\n');
    told.push_str(&text);
    Ok(told)
}

/// Fetched by ourselves; all redirects together have the time of one request.
pub(super) async fn page(outside: &Outside, uri: &Uri, raw: bool) -> Result<Fetched, Wrong> {
    let limit = Duration::from_millis(outside.web.request_ms);
    let followed = timeout(limit, follow(outside, uri.clone())).await;
    let (uri, answered) = followed.map_err(|_| {
        let most = outside.web.request_ms;
        Wrong::new(format!("fetch {uri}: it took longer than {most} ms"))
    })??;
    let room = size(outside.web.text_chars_max).saturating_mul(4);
    // A long page takes a while to read, and others are waiting for this thread.
    super::blocking(move || read(uri, &answered, raw, room)).await
}

async fn follow(outside: &Outside, mut uri: Uri) -> Result<(Uri, Answered), Wrong> {
    for _ in 0..=outside.web.redirects_max {
        let mut question = Question::get(uri.clone());
        let wanted =
            "text/html,application/xhtml+xml,text/*;q=0.9,application/json;q=0.9,*/*;q=0.5";
        let wanted = HeaderValue::from_static(wanted);
        question.headers.insert(ACCEPT, wanted);
        let asked = ask(
            &outside.connector,
            outside.guard(),
            question,
            outside.bounds(),
        );
        let answered = asked
            .await
            .map_err(|error| Wrong::new(format!("fetch {uri}: {error}")))?;
        if !is_moved(answered.status) {
            return Ok((uri, answered));
        }
        uri = moved(&uri, &answered.headers)?;
    }
    let most = outside.web.redirects_max;
    Err(Wrong::new(format!(
        "fetch {uri}: it was moved more than {most} times"
    )))
}

fn is_moved(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where the page is now, if that is the same host.
fn moved(from: &Uri, headers: &HeaderMap) -> Result<Uri, Wrong> {
    let wrong = |what: String| Wrong::new(format!("fetch {from}: {what}"));
    let location = headers.get(LOCATION).map(HeaderValue::as_bytes);
    let location = location.ok_or_else(|| wrong("it was moved, and does not say where".into()))?;
    let location = String::from_utf8_lossy(location);
    let to = address::join(from, &location)
        .map_err(|error| wrong(format!("it was moved to what is no address: {error}")))?;
    let safe = from.scheme_str() == to.scheme_str() || to.scheme_str() == Some("https");
    let port = |uri: &Uri| uri.port_u16().unwrap_or(0);
    if to.host() == from.host() && port(&to) == port(from) && safe {
        return Ok(to);
    }
    Err(wrong(format!(
        "it was moved to another place; fetch {to} if that is what you want"
    )))
}

fn read(uri: Uri, answered: &Answered, raw: bool, room: usize) -> Result<Fetched, Wrong> {
    let kind = answered.headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let (media, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    let media = media.trim().to_ascii_lowercase();
    let status = answered.status;
    if !status.is_success() {
        let said = match media.as_str() {
            "text/html" | "application/xhtml+xml" => {
                let text = decoded(&answered.body, parameters);
                said(html::page(&text, &uri, room).markdown.as_bytes())
            }
            _ => said(&answered.body),
        };
        return Err(Wrong::new(format!(
            "fetch {uri}: it answered {status}: {said}"
        )));
    }
    let reads = reads_as(&media, &answered.body);
    let Some(reads) = reads else {
        let bytes = answered.body.len();
        return Err(Wrong::new(format!(
            "fetch {uri}: it is {media:?} of {bytes} bytes, and no text"
        )));
    };
    let text = decoded(&answered.body, parameters);
    let (title, text) = match reads {
        Reads::Html if !raw => {
            let page = html::page(&text, &uri, room);
            (page.title, page.markdown)
        }
        Reads::Html | Reads::Plain => (String::new(), text),
    };
    let kind = if media.is_empty() {
        "no type".to_owned()
    } else {
        media
    };
    Ok(Fetched {
        title,
        text,
        url: uri,
        kind,
        cut: answered.cut,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Html,
    Plain,
}

fn reads_as(media: &str, body: &[u8]) -> Option<Reads> {
    match media {
        "text/html" | "application/xhtml+xml" => return Some(Reads::Html),
        "application/json"
        | "application/xml"
        | "application/javascript"
        | "application/ecmascript"
        | "application/x-ndjson"
        | "application/yaml"
        | "application/x-yaml"
        | "application/toml"
        | "application/x-sh" => return Some(Reads::Plain),
        "" | "application/octet-stream" => {}
        media if media.starts_with("text/") => return Some(Reads::Plain),
        media if media.ends_with("+json") || media.ends_with("+xml") => return Some(Reads::Plain),
        _ => return None,
    }
    // It does not say what it is. What was cut may end in the middle of a character.
    let begin = &body[..body.len().min(1024)];
    let text = match std::str::from_utf8(begin) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&begin[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.contains('\0') {
        return None;
    }
    let begin = text.trim_start().to_ascii_lowercase();
    let html = begin.starts_with("<!doctype html") || begin.starts_with("<html");
    Some(if html { Reads::Html } else { Reads::Plain })
}

/// UTF-8, or the one older way of writing that still is about, where the page says so.
fn decoded(body: &[u8], parameters: &str) -> String {
    let parameters = parameters.to_ascii_lowercase();
    let western = ["iso-8859-1", "latin1", "windows-1252"];
    if western.iter().any(|name| parameters.contains(name)) {
        return body.iter().map(|byte| char::from(*byte)).collect();
    }
    String::from_utf8_lossy(body).into_owned()
}

async fn scraped(outside: &Outside, scrape: &ScrapeTable, uri: &Uri) -> Result<Fetched, Wrong> {
    let doing = format!("fetch {uri} by way of [web.scrape]");
    // It asks in our place, from where it stands.
    let private = Guard::Public(&outside.web.private);
    Host::of(uri)
        .and_then(|host| look_at_name(&host, private))
        .map_err(|error| Wrong::new(format!("{doing}: {error}")))?;
    let answer = outside
        .service(Service {
            doing: &doing,
            url: format!("{}/scrape", scrape.url.trim_end_matches('/')),
            key_name: "web.scrape",
            key: scrape.key.as_ref(),
            body: Some(json!({
                "url": uri.to_string(), "formats": ["markdown"], "onlyMainContent": true,
            })),
        })
        .await?;
    let data = &answer["data"];
    let status = data["metadata"]["statusCode"].as_u64().unwrap_or(200);
    let text = data["markdown"].as_str();
    let (Some(text), false, true) = (text, answer["success"] == false, status < 400) else {
        let why = why(&answer).unwrap_or_else(|| format!("the page answered {status}"));
        return Err(Wrong::new(format!("{doing}: {why}")));
    };
    Ok(Fetched {
        title: data["metadata"]["title"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        text: text.to_owned(),
        url: uri.clone(),
        kind: "markdown".to_owned(),
        cut: false,
    })
}

/// What a service says went wrong.
pub(super) fn why(answer: &Value) -> Option<String> {
    let error = &answer["error"];
    let text = error.as_str().or(error["message"].as_str());
    let text = text.or(answer["message"].as_str());
    text.map(|text| said(text.as_bytes()))
}
