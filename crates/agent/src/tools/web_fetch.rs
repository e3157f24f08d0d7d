//! `web_fetch`: a page of the web as text, fetched by ourselves or by a Firecrawl of the settings.
//! Must not follow a page to another host: who allowed the one has not allowed the other.

use std::time::Duration;

use dispatch_core::{
    address::Address,
    rules::{Action, Group, Subject},
    web::ScrapeTable,
};
use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, LOCATION},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    Given, Judge, Outside, Planned, Run, Tool, Wrong, html, schema,
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
    plan,
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

/// Which pages may be read without asking anybody.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    judge: Judge,
    at_most: Action,
}

impl Pages {
    pub(super) fn new(judge: Judge, at_most: Action) -> Self {
        Self { judge, at_most }
    }

    pub(super) fn check(&self, address: &Address) -> Result<(), Wrong> {
        match self.judge.decide(&Subject::Url(address.clone())) {
            Action::Deny => Err(Wrong::new(format!("a rule for web_fetch denies {address}"))),
            action if action > self.at_most => Err(Wrong::new(format!(
                "{address} is another page, which nobody has allowed; fetch it if that is what you \
                 want"
            ))),
            _ => Ok(()),
        }
    }
}

/// What is told of a page.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) title: String,
    pub(super) text: String,
    url: Address,
    kind: String,
    cut: bool,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    let address = Address::parse(&input.url).map_err(|error| Wrong::new(error.to_string()))?;
    let pages = Pages::new(given.judge.clone(), Action::Allow);
    let subject = Subject::Url(address.clone());
    let raw = input.raw;
    Ok(Planned::new(vec![subject], move |run| {
        fetch(run, address, raw, pages)
    }))
}

async fn fetch(run: Run, address: Address, raw: bool, pages: Pages) -> Result<String, Wrong> {
    let outside = &run.place.outside;
    outside.granted("fetch a page")?;
    let fetched = match &outside.web.scrape {
        Some(scrape) if !raw => scraped(outside, scrape, &address).await?,
        _ => page(outside, &address, raw, &pages).await?,
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
pub(super) async fn page(
    outside: &Outside,
    address: &Address,
    raw: bool,
    pages: &Pages,
) -> Result<Fetched, Wrong> {
    let limit = Duration::from_millis(outside.web.request_ms);
    let followed = timeout(limit, follow(outside, address.clone(), pages)).await;
    let (at, answered) = followed.map_err(|_| {
        let most = outside.web.request_ms;
        Wrong::new(format!("fetch {address}: it took longer than {most} ms"))
    })??;
    let room = size(outside.web.text_chars_max).saturating_mul(4);
    // A long page takes a while to read, and others are waiting for this thread.
    super::blocking(move || read(at, &answered, raw, room)).await
}

async fn follow(
    outside: &Outside,
    mut at: Address,
    pages: &Pages,
) -> Result<(Address, Answered), Wrong> {
    for _ in 0..=outside.web.redirects_max {
        let uri = address::uri(&at).map_err(|error| Wrong::new(error.to_string()))?;
        let mut question = Question::get(uri);
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
            .map_err(|error| Wrong::new(format!("fetch {at}: {error}")))?;
        if !is_moved(answered.status) {
            return Ok((at, answered));
        }
        at = moved(&at, &answered.headers, pages)?;
    }
    let most = outside.web.redirects_max;
    Err(Wrong::new(format!(
        "fetch {at}: it was moved more than {most} times"
    )))
}

fn is_moved(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where the page is now, if that is the same host, and the rules let that be read as well.
fn moved(from: &Address, headers: &HeaderMap, pages: &Pages) -> Result<Address, Wrong> {
    let wrong = |what: String| Wrong::new(format!("fetch {from}: {what}"));
    let location = headers.get(LOCATION).map(HeaderValue::as_bytes);
    let location = location.ok_or_else(|| wrong("it was moved, and does not say where".into()))?;
    let location = String::from_utf8_lossy(location);
    let to = from
        .join(&location)
        .map_err(|error| wrong(format!("it was moved to what is no address: {error}")))?;
    if !to.is_where(from) {
        return Err(wrong(format!(
            "it was moved to another place; fetch {to} if that is what you want"
        )));
    }
    match pages.check(&to) {
        Ok(()) => Ok(to),
        Err(Wrong(why)) => Err(wrong(format!("it was moved: {why}"))),
    }
}

fn read(at: Address, answered: &Answered, raw: bool, room: usize) -> Result<Fetched, Wrong> {
    let kind = answered.headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let (media, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    let media = media.trim().to_ascii_lowercase();
    let status = answered.status;
    if !status.is_success() {
        let said = match media.as_str() {
            "text/html" | "application/xhtml+xml" => {
                let text = decoded(&answered.body, parameters);
                said(html::page(&text, &at, room).markdown.as_bytes())
            }
            _ => said(&answered.body),
        };
        return Err(Wrong::new(format!(
            "fetch {at}: it answered {status}: {said}"
        )));
    }
    let reads = reads_as(&media, &answered.body);
    let Some(reads) = reads else {
        let bytes = answered.body.len();
        return Err(Wrong::new(format!(
            "fetch {at}: it is {media:?} of {bytes} bytes, and no text"
        )));
    };
    let text = decoded(&answered.body, parameters);
    let (title, text) = match reads {
        Reads::Html if !raw => {
            let page = html::page(&text, &at, room);
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
        url: at,
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

async fn scraped(outside: &Outside, scrape: &ScrapeTable, at: &Address) -> Result<Fetched, Wrong> {
    let doing = format!("fetch {at} by way of [web.scrape]");
    // It asks in our place, from where it stands.
    let private = Guard::Public(&outside.web.private);
    address::uri(at)
        .and_then(|uri| Host::of(&uri))
        .and_then(|host| look_at_name(&host, private))
        .map_err(|error| Wrong::new(format!("{doing}: {error}")))?;
    let answer = outside
        .service(Service {
            doing: &doing,
            url: format!("{}/scrape", scrape.url.trim_end_matches('/')),
            key_name: "web.scrape",
            key: scrape.key.as_ref(),
            body: Some(json!({
                "url": at, "formats": ["markdown"], "onlyMainContent": true,
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
        url: at.clone(),
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
