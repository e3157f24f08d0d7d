//! `web_search`: what a search engine of the settings finds, SearXNG or Firecrawl.
//! Must not search anywhere that the settings do not name.

use dispatch_core::{
    address::{Address, query},
    rules::{Action, Group, Subject},
    web::{SearchShape, SearchTable},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    Given, Outside, Planned, Run, Tool, Wrong, schema,
    web::{Service, cut},
    web_fetch::{self, Pages},
};

const LIMIT_USUAL: usize = 7;
const LIMIT_MAX: usize = 20;
/// Of each page that is fetched along with its result.
const PAGE_CHARS: u64 = 8_000;

pub(super) const TOOL: Tool = Tool {
    name: "web_search",
    line: "search the web",
    help: "Searches the web and answers with titles, addresses and descriptions, best first; with \
           scrape also with the text of each page.",
    group: Group::WebSearch,
    safe: true,
    schema: schema::<Input>,
    plan,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// What to search for.
    query: String,
    /// How many results; without it 7.
    #[serde(default)]
    #[schemars(range(min = 1, max = 20))]
    limit: Option<usize>,
    /// The text of the pages, too.
    #[serde(default)]
    scrape: bool,
    /// The language of the results: en, de.
    #[serde(default)]
    lang: Option<String>,
    /// The country they are for: us, de.
    #[serde(default)]
    country: Option<String>,
}

#[derive(Debug, Default)]
struct Found {
    title: String,
    url: String,
    description: String,
    text: Option<String>,
}

fn plan(given: &Given) -> Result<Planned, Wrong> {
    let input: Input = given.parse()?;
    if input.query.trim().is_empty() {
        return Err(Wrong::new("the query is empty"));
    }
    // Whoever allowed the search has allowed what it finds, but for what is denied.
    let pages = Pages::new(given.judge.of(Group::WebFetch), Action::Ask);
    let subject = Subject::name(input.query.clone());
    Ok(Planned::new(vec![subject], |run| search(run, input, pages)))
}

async fn search(run: Run, input: Input, pages: Pages) -> Result<String, Wrong> {
    let outside = &run.place.outside;
    outside.granted("search the web")?;
    let Some(table) = &outside.web.search else {
        return Err(Wrong::new(
            "search the web: no search engine is configured; whoever runs Dispatch can name one in \
             [web.search]",
        ));
    };
    let limit = input.limit.unwrap_or(LIMIT_USUAL).clamp(1, LIMIT_MAX);
    let mut found = match table.shape {
        SearchShape::Searxng => searxng(outside, table, &input).await?,
        SearchShape::Firecrawl => firecrawl(outside, table, &input, limit).await?,
    };
    found.truncate(limit);
    if found.is_empty() {
        return Ok(format!("nothing was found for {:?}", input.query));
    }
    if input.scrape && table.shape == SearchShape::Searxng {
        found = with_pages(outside, &pages, found).await;
    }
    for found in &mut found {
        if let (Some(text), Err(wrong)) = (&mut found.text, permitted(&pages, &found.url)) {
            *text = format!("[{wrong}]");
        }
    }
    let mut told = String::new();
    for (n, found) in found.iter().enumerate() {
        told.push_str(&format!("{}. {}\n   {}\n", n + 1, found.title, found.url));
        if !found.description.is_empty() {
            told.push_str(&format!("   {}\n", found.description));
        }
        if let Some(text) = &found.text {
            told.push_str(&format!("\n{text}\n"));
        }
        told.push('\n');
    }
    cut(&mut told, outside.web.text_chars_max);
    Ok(told.trim_end().to_owned())
}

async fn searxng(
    outside: &Outside,
    table: &SearchTable,
    input: &Input,
) -> Result<Vec<Found>, Wrong> {
    let asked = query(&input.query);
    let base = table.url.trim_end_matches('/');
    let mut url = format!("{base}/search?q={asked}&format=json");
    let language = match (&input.lang, &input.country) {
        (Some(lang), Some(country)) => Some(format!("{lang}-{}", country.to_uppercase())),
        (Some(lang), None) => Some(lang.clone()),
        (None, Some(_)) | (None, None) => None,
    };
    if let Some(language) = language {
        url.push_str(&format!("&language={}", query(&language)));
    }
    let answer = ask(outside, table, url, None).await?;
    Ok(list(&answer["results"], "content"))
}

async fn firecrawl(
    outside: &Outside,
    table: &SearchTable,
    input: &Input,
    limit: usize,
) -> Result<Vec<Found>, Wrong> {
    let mut body = json!({"query": input.query, "limit": limit});
    if let Some(lang) = &input.lang {
        body["lang"] = json!(lang);
    }
    if let Some(country) = &input.country {
        body["country"] = json!(country);
    }
    if input.scrape {
        body["scrapeOptions"] = json!({"formats": ["markdown"], "onlyMainContent": true});
    }
    let url = format!("{}/search", table.url.trim_end_matches('/'));
    let answer = ask(outside, table, url, Some(body)).await?;
    if answer["success"] == false {
        let why = web_fetch::why(&answer).unwrap_or_default();
        return Err(Wrong::new(format!("search the web: it failed: {why}")));
    }
    // Its second version tells kinds of results apart.
    let data = &answer["data"];
    let data = if data["web"].is_array() {
        &data["web"]
    } else {
        data
    };
    Ok(list(data, "description"))
}

async fn ask(
    outside: &Outside,
    table: &SearchTable,
    url: String,
    body: Option<Value>,
) -> Result<Value, Wrong> {
    let order = Service {
        doing: "search the web",
        url,
        key_name: "web.search",
        key: table.key.as_ref(),
        body,
    };
    outside.service(order).await
}

/// Results as either of them writes them. One without an address is none.
fn list(results: &Value, description: &str) -> Vec<Found> {
    let results = results.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |result: &Value, name: &str| {
        let text = result[name].as_str().unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let found = results.iter().map(|result| Found {
        title: text(result, "title"),
        url: text(result, "url"),
        description: text(result, description),
        text: result["markdown"].as_str().map(|text| {
            let mut text = text.trim().to_owned();
            cut(&mut text, PAGE_CHARS);
            text
        }),
    });
    found.filter(|found| !found.url.is_empty()).collect()
}

fn permitted(pages: &Pages, url: &str) -> Result<Address, Wrong> {
    let address = Address::parse(url).map_err(|error| Wrong::new(error.to_string()))?;
    pages.check(&address)?;
    Ok(address)
}

/// The pages of all results at once. One that cannot be had says why in its place.
async fn with_pages(outside: &Outside, pages: &Pages, mut found: Vec<Found>) -> Vec<Found> {
    let mut fetches = JoinSet::new();
    for (index, found) in found.iter().enumerate() {
        let (outside, pages, url) = (outside.clone(), pages.clone(), found.url.clone());
        fetches.spawn(async move {
            let text = match permitted(&pages, &url) {
                Ok(address) => web_fetch::page(&outside, &address, false, &pages).await,
                Err(error) => Err(error),
            };
            let mut text = text.map_or_else(|wrong| format!("[{wrong}]"), |page| page.text);
            cut(&mut text, PAGE_CHARS);
            (index, text)
        });
    }
    while let Some(page) = fetches.join_next().await {
        if let Ok((index, text)) = page
            && let Some(found) = found.get_mut(index)
        {
            found.text = Some(text);
        }
    }
    found
}
