//! What the native agent may look up on the web, and where: `[web]` and the services it names.
//! Must not fetch anything, and must not hold a secret: a key is a place where it can be read.

use serde::{Deserialize, Serialize};

use crate::{models::KeySource, network::AllowList, task::Network};

/// From a request to the end of its answer, redirects included.
const REQUEST_MS: u64 = 30_000;
/// Of one answer. A page that is longer is cut; what a service answers is refused.
const BODY_BYTES_MAX: u64 = 8 << 20;
/// What a tool tells a model, before it is kept in a file like every long result.
const TEXT_CHARS_MAX: u64 = 60_000;
const REDIRECTS_MAX: u32 = 5;
/// A long film takes its time to be written down.
const TRANSCRIPT_MS: u64 = 10 * 60_000;
const PAUSE_MS: u64 = 2_000;

/// How far the tools of the web get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// No network was granted: they say so.
    #[default]
    Nothing,
    /// What the fence's proxy lets through. It decides, by the list of the task.
    Listed,
    /// All that this machine reaches: they refuse by themselves what is not public.
    Everything,
}

impl From<&Network> for Reach {
    fn from(network: &Network) -> Self {
        match network {
            Network::None => Self::Nothing,
            Network::Allow(_) => Self::Listed,
            Network::Full => Self::Everything,
        }
    }
}

/// How a search engine is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchShape {
    /// `GET URL/search?q=..&format=json`.
    Searxng,
    /// `POST URL/search`; its version belongs to the URL.
    Firecrawl,
}

/// `[web.search]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchTable {
    pub shape: SearchShape,
    pub url: String,
    /// Sent as a bearer token.
    #[serde(default)]
    pub key: Option<KeySource>,
}

/// `[web.scrape]`: a Firecrawl that fetches pages in our place, `POST URL/scrape`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrapeTable {
    pub url: String,
    #[serde(default)]
    pub key: Option<KeySource>,
}

/// `[web.transcribe]`: asked with `POST URL` until it is done; docs/tools.md has the words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranscribeTable {
    pub url: String,
    #[serde(default)]
    pub key: Option<KeySource>,
    /// From the first request to the transcript.
    #[serde(default = "transcript_ms")]
    pub wait_ms_max: u64,
    /// Between two questions whether it is done.
    #[serde(default = "pause_ms")]
    pub pause_ms_min: u64,
}

fn transcript_ms() -> u64 {
    TRANSCRIPT_MS
}

fn pause_ms() -> u64 {
    PAUSE_MS
}

/// `[web]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebTable {
    pub search: Option<SearchTable>,
    /// None: pages are fetched by the agent itself.
    pub scrape: Option<ScrapeTable>,
    pub transcribe: Option<TranscribeTable>,
    /// Addresses that are not public and may be fetched from all the same.
    pub private: AllowList,
    pub request_ms: u64,
    pub body_bytes_max: u64,
    pub text_chars_max: u64,
    pub redirects_max: u32,
}

impl Default for WebTable {
    fn default() -> Self {
        Self {
            search: None,
            scrape: None,
            transcribe: None,
            private: AllowList::default(),
            request_ms: REQUEST_MS,
            body_bytes_max: BODY_BYTES_MAX,
            text_chars_max: TEXT_CHARS_MAX,
            redirects_max: REDIRECTS_MAX,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWeb {
    #[error(
        "use [web.{service}]: its url {url:?} must begin with https:// or http://, and have no query"
    )]
    Url { service: &'static str, url: String },
    #[error("use [web]: {limit} is 0, and nothing could be looked up; leave it out or raise it")]
    Zero { limit: &'static str },
}

impl WebTable {
    /// # Errors
    /// When the table cannot be followed.
    pub fn check(&self) -> Result<(), BadWeb> {
        let urls = [
            ("search", self.search.as_ref().map(|table| &table.url)),
            ("scrape", self.scrape.as_ref().map(|table| &table.url)),
            ("transcribe", self.transcribe.as_ref().map(|t| &t.url)),
        ];
        for (service, url) in urls {
            if let Some(url) = url.filter(|url| !is_base(url)) {
                let url = url.clone();
                return Err(BadWeb::Url { service, url });
            }
        }
        let waits = self.transcribe.as_ref().map_or(1, |t| t.wait_ms_max);
        let pause = self.transcribe.as_ref().map_or(1, |t| t.pause_ms_min);
        let limits = [
            ("request_ms", self.request_ms),
            ("body_bytes_max", self.body_bytes_max),
            ("text_chars_max", self.text_chars_max),
            ("transcribe.wait_ms_max", waits),
            ("transcribe.pause_ms_min", pause),
        ];
        match limits.into_iter().find(|(_, value)| *value == 0) {
            Some((limit, _)) => Err(BadWeb::Zero { limit }),
            None => Ok(()),
        }
    }

    /// Where the keys of its services come from.
    pub fn sources(&self) -> impl Iterator<Item = &KeySource> {
        let search = self.search.as_ref().and_then(|table| table.key.as_ref());
        let scrape = self.scrape.as_ref().and_then(|table| table.key.as_ref());
        let transcribe = self.transcribe.as_ref().and_then(|t| t.key.as_ref());
        [search, scrape, transcribe].into_iter().flatten()
    }

    pub(crate) fn sources_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut KeySource)> {
        let search = self.search.as_mut().and_then(|table| table.key.as_mut());
        let scrape = self.scrape.as_mut().and_then(|table| table.key.as_mut());
        let transcribe = self.transcribe.as_mut().and_then(|t| t.key.as_mut());
        let all = [
            ("search", search),
            ("scrape", scrape),
            ("transcribe", transcribe),
        ];
        all.into_iter()
            .filter_map(|(service, source)| Some((service, source?)))
    }
}

/// An address that paths are put behind.
#[must_use]
pub fn is_base(url: &str) -> bool {
    let host = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let odd = |c: char| matches!(c, '?' | '#' | '@') || c.is_whitespace() || c.is_control();
    host.is_some_and(|host| !host.is_empty() && !host.starts_with('/') && !host.contains(odd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<WebTable, String> {
        let table: WebTable = toml::from_str(text).map_err(|error| error.to_string())?;
        table.check().map_err(|error| error.to_string())?;
        Ok(table)
    }

    #[test]
    fn what_is_not_said_has_a_limit_all_the_same() {
        let none = table("").unwrap();
        assert_eq!(none, WebTable::default());
        assert!(none.search.is_none() && none.request_ms > 0);
        let all = table(
            "redirects_max = 0\nprivate = [\"10.0.0.0/8:80\"]\n\
             [search]\nshape = \"searxng\"\nurl = \"http://127.0.0.1:8080\"\n\
             [scrape]\nurl = \"https://scrape.example/v2\"\nkey = { from = \"SCRAPE_KEY\" }\n\
             [transcribe]\nurl = \"http://10.0.0.7/transcribe\"",
        )
        .unwrap();
        assert_eq!(all.transcribe.as_ref().unwrap().wait_ms_max, TRANSCRIPT_MS);
        let sources: Vec<&KeySource> = all.sources().collect();
        assert_eq!(sources, [&KeySource::From("SCRAPE_KEY".into())]);
    }

    #[test]
    fn a_table_that_cannot_be_followed_says_why() {
        for (text, part) in [
            ("reqest_ms = 1", "unknown field"),
            ("request_ms = 0", "request_ms is 0"),
            (
                "[scrape]\nurl = \"file:///etc/passwd\"",
                "[web.scrape]: its url \"file:///etc/passwd\" must begin",
            ),
            ("[search]\nurl = \"http://x\"", "missing field `shape`"),
            (
                "[search]\nshape = \"google\"\nurl = \"http://x\"",
                "unknown variant",
            ),
            (
                "[transcribe]\nurl = \"http://x\"\nwait_ms_max = 0",
                "wait_ms_max is 0",
            ),
            ("private = [\"127.1:80\"]", "an entry is"),
        ] {
            let error = table(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_that_paths_are_put_behind() {
        for good in [
            "http://a",
            "https://a.example:1/v1",
            "http://[::1]:8080/x/y",
        ] {
            assert!(is_base(good), "{good}");
        }
        for bad in [
            "",
            "a.example",
            "ftp://a",
            "http://",
            "http:///x",
            "http://a?b",
            "http://u@a",
            "http://a b",
            "http://a#b",
        ] {
            assert!(!is_base(bad), "{bad}");
        }
    }

    #[test]
    fn the_network_that_was_granted_says_how_far() {
        let list: AllowList = vec!["a.example".to_owned()].try_into().unwrap();
        assert_eq!(Reach::from(&Network::None), Reach::Nothing);
        assert_eq!(Reach::from(&Network::Allow(list)), Reach::Listed);
        assert_eq!(Reach::from(&Network::Full), Reach::Everything);
    }
}
