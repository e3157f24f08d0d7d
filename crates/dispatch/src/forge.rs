//! The text of an issue: from a file, or from the forge that a repository's URL names, by one GET.
//! Must not send a token anywhere but to the configured address of its forge, and must not follow a
//! redirect with it.

use std::{fmt, time::Duration};

use dispatch_core::{
    config::{EnvValue, Forge},
    secret::Secret,
    task::IssueText,
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT},
};
use hyper_util::{
    client::legacy::{Client, Error as LegacyError},
    rt::TokioExecutor,
};
use serde::Deserialize;

use crate::{secrets::SecretError, settings::Settings};

/// An issue with its longest possible text, as JSON.
const ANSWER_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("read issue {number}: no forge is configured for {place}")]
    NoForge { number: u64, place: String },
    #[error("read issue {number}")]
    Token { number: u64, source: SecretError },
    #[error("read issue {number} from {address}: {what}")]
    Answer {
        number: u64,
        address: String,
        what: String,
    },
    #[error("read the issue: {what}")]
    Text { what: String },
}

/// A repository on a forge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hosted {
    pub(crate) host: String,
    pub(crate) owner: String,
    pub(crate) repo: String,
}

impl fmt::Display for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.host, self.owner, self.repo)
    }
}

impl Hosted {
    /// From the URL of a repository as git takes it.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let (authority, path) = match url.split_once("://") {
            Some((_, rest)) => rest.split_once('/')?,
            None => url
                .split_once(':')
                .filter(|(host, _)| !host.contains('/'))?,
        };
        let host = authority.rsplit('@').next()?;
        // Of ssh a port says nothing of the forge's web address.
        let host = host.split(':').next()?.to_ascii_lowercase();
        let path = path.trim_matches('/');
        let (owner, repo) = path.split_once('/')?;
        let repo = repo.strip_suffix(".git").unwrap_or(repo);
        let plain = |text: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !text.is_empty() && !text.starts_with('.') && text.chars().all(good)
        };
        (plain(&host) && plain(owner) && plain(repo)).then(|| Self {
            host,
            owner: owner.to_owned(),
            repo: repo.to_owned(),
        })
    }
}

/// What GitHub, Forgejo and Gitea answer, as far as it is of use.
#[derive(Debug, Deserialize)]
struct Answer {
    title: String,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Label {
    Name(String),
    Object { name: String },
}

impl Answer {
    fn issue(self, number: u64) -> IssueText {
        let name = |label| match label {
            Label::Name(name) | Label::Object { name } => name,
        };
        IssueText {
            number,
            title: self.title,
            body: self.body.unwrap_or_default(),
            labels: self.labels.into_iter().map(name).collect(),
        }
    }
}

/// An issue from a text of the person's: the JSON of a forge, or Markdown whose first line is the
/// title.
pub(crate) fn parse(number: u64, text: &str) -> Result<IssueText, IssueError> {
    let empty = || IssueError::Text {
        what: "it is empty; give its title, and its text below".into(),
    };
    if text.trim_start().starts_with('{') {
        let answer: Answer = serde_json::from_str(text).map_err(|error| IssueError::Text {
            what: format!("{error}; an object has title, body and labels"),
        })?;
        return Ok(answer.issue(number));
    }
    let text = text.trim();
    let (title, body) = text.split_once('\n').unwrap_or((text, ""));
    let title = title.trim_start_matches('#').trim();
    if title.is_empty() {
        return Err(empty());
    }
    Ok(IssueText {
        number,
        title: title.to_owned(),
        body: body.trim().to_owned(),
        labels: Vec::new(),
    })
}

/// The forge that a repository lies on, if one is configured for its host.
pub(crate) fn forge_of<'a>(
    settings: &'a Settings,
    hosted: &Hosted,
) -> Option<(&'a str, &'a Forge)> {
    let mut forges = settings.config.forges.iter();
    forges
        .find(|(_, forge)| forge.host == hosted.host)
        .map(|(name, forge)| (name.as_str(), forge))
}

/// Reads an issue by one GET of its forge.
pub(crate) async fn fetch(
    settings: &Settings,
    hosted: &Hosted,
    number: u64,
) -> Result<IssueText, IssueError> {
    let Some((name, forge)) = forge_of(settings, hosted) else {
        let place = hosted.to_string();
        return Err(IssueError::NoForge { number, place });
    };
    let token =
        token(settings, name, forge).map_err(|source| IssueError::Token { number, source })?;
    let Hosted { owner, repo, .. } = hosted;
    let api = forge.api.trim_end_matches('/');
    let address = format!("{api}/repos/{owner}/{repo}/issues/{number}");
    let failed = |what: String| IssueError::Answer {
        number,
        address: address.clone(),
        what,
    };
    let patience = Duration::from_secs(settings.config.limits.upstream_s);
    let asked = tokio::time::timeout(patience, get(&address, token.as_ref()));
    let bytes = match asked.await {
        Ok(answer) => answer.map_err(failed)?,
        Err(_) => {
            let what = format!("it does not answer within {} s", patience.as_secs());
            return Err(failed(what));
        }
    };
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|error| failed(format!("it answered something else ({error})")))?;
    Ok(answer.issue(number))
}

fn token(settings: &Settings, name: &str, forge: &Forge) -> Result<Option<Secret>, SecretError> {
    match &forge.token {
        Some(EnvValue::Taken { source, optional }) => {
            settings.take(&format!("forges.{name}/token"), source, *optional)
        }
        Some(EnvValue::Literal(_)) | None => Ok(None),
    }
}

async fn get(address: &str, token: Option<&Secret>) -> Result<Bytes, String> {
    let words = |error: &dyn std::error::Error| dispatch_core::causes::chain(error);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(|error| format!("find the system's certificates: {error}"))?
        .https_or_http()
        .enable_http1()
        .build();
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(https);
    let mut request = Request::get(address)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("dispatch/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = token {
        let value = format!("Bearer {}", token.expose());
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| "its token is no text that a header can hold".to_owned())?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request
        .body(Full::default())
        .map_err(|error| words(&error))?;
    let answer = client.request(request).await;
    let answer = answer.map_err(|error: LegacyError| words(&error))?;
    let status = answer.status();
    if !status.is_success() {
        return Err(refusal(status, token.is_some()));
    }
    let whole = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    let whole = whole.map_err(|error| format!("it answered too much or broke off: {error}"))?;
    Ok(whole.to_bytes())
}

fn refusal(status: StatusCode, with_token: bool) -> String {
    let hint = match (status, with_token) {
        (StatusCode::NOT_FOUND | StatusCode::GONE, true) => {
            "there is no such issue, or the token may not see it"
        }
        (StatusCode::NOT_FOUND | StatusCode::GONE, false) => {
            "there is no such issue, or it needs a token ([forges.NAME] token)"
        }
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
            "see the token of its forge ([forges.NAME] token), or its rate limit"
        }
        (other, _) if other.is_redirection() => "it has moved; give the repository's new URL",
        _ => "try again later, or give the text with --issue-file",
    };
    format!("it answered {status}; {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_repository_on_a_forge() {
        for url in [
            "https://forge.test/acme/api.git",
            "https://me@Forge.test:3000/acme/api/",
            "ssh://git@forge.test:2222/acme/api.git",
            "git@forge.test:acme/api.git",
            "forge.test:acme/api",
        ] {
            let hosted = Hosted::of(url).unwrap();
            assert_eq!(hosted.to_string(), "forge.test/acme/api", "{url}");
        }
        for url in [
            "/src/api",
            "../api",
            "https://forge.test/api",
            "https://forge.test/group/sub/api",
            "https://forge.test/acme/..",
            "https://forge.test/acme/api?x=y",
            "https://forge.test/a%2fb/api",
        ] {
            assert_eq!(Hosted::of(url), None, "{url}");
        }
    }

    #[test]
    fn an_issue_is_json_or_markdown() {
        let json = r##"{"number": 9, "title": "Crash", "body": null,
                       "labels": [{"name": "bug", "color": "red"}, "p1"], "pull_request": {}}"##;
        let issue = parse(5, json).unwrap();
        assert_eq!(
            (issue.number, issue.title.as_str(), issue.body.as_str()),
            (5, "Crash", "")
        );
        assert_eq!(issue.labels, ["bug", "p1"]);
        let issue = parse(5, "\n# Crash\n\nIt crashes.\nOften.\n").unwrap();
        assert_eq!(
            (issue.title.as_str(), issue.body.as_str()),
            ("Crash", "It crashes.\nOften.")
        );
        for bad in ["", "  \n", "#\n", "{", r#"{"body": "x"}"#] {
            assert!(parse(5, bad).is_err(), "{bad:?}");
        }
    }
}
