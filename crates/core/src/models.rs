//! Keys and models of the native agent: `[keys.*]`, and what a key's table says of single models.
//! Must not hold a secret, and must not guess: what a table does not say, its provider's row says,
//! and a model that no row knows is asked for as it is.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    attach::MediaKind,
    id::{KeyName, ModelName},
    rules::fits,
    task::Effort,
};

/// How requests and answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Anthropic Messages.
    Anthropic,
    /// OpenAI Responses.
    Responses,
    /// OpenAI Chat Completions, and whatever is compatible with it.
    Chat,
}

impl Wire {
    pub const ALL: [Self; 3] = [Self::Anthropic, Self::Responses, Self::Chat];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Responses => "responses",
            Self::Chat => "chat",
        }
    }

    /// Below the base URL.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Anthropic => "/v1/messages",
            Self::Responses => "/responses",
            Self::Chat => "/chat/completions",
        }
    }

    #[must_use]
    pub fn auth(self) -> Auth {
        match self {
            Self::Anthropic => Auth::XApiKey,
            Self::Responses | Self::Chat => Auth::Bearer,
        }
    }
}

/// The header that carries the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    XApiKey,
    Bearer,
    /// A model on this machine that wants no key.
    None,
}

/// Who answers at a key's base URL: the row of what its table does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    Anthropic,
    Openai,
    /// Anybody else who speaks Chat Completions; the base URL must be said.
    Compatible,
}

impl Provider {
    #[must_use]
    pub fn wire(self) -> Wire {
        match self {
            Self::Anthropic => Wire::Anthropic,
            Self::Openai => Wire::Responses,
            Self::Compatible => Wire::Chat,
        }
    }

    #[must_use]
    pub fn base_url(self) -> Option<&'static str> {
        match self {
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::Openai => Some("https://api.openai.com/v1"),
            Self::Compatible => None,
        }
    }
}

/// Where a key comes from, in the words of an agent's `env`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// A variable of the agent's environment.
    From(String),
    /// A file that holds nothing else.
    File(PathBuf),
    /// The output of a program: an argv, no shell.
    Command(Vec<String>),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(name) => write!(f, "the variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Command(argv) => {
                let program = argv.first().map_or("", String::as_str);
                write!(f, "the program {program}")
            }
        }
    }
}

/// US dollars for a million tokens. What is not said costs as much as `input`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: f64,
    pub output: f64,
    #[serde(default)]
    pub cache_read: Option<f64>,
    #[serde(default)]
    pub cache_write: Option<f64>,
}

/// What a key's table says of the models whose names fit a pattern.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRow {
    /// `*` is any text, `?` any character, everything else is itself.
    #[serde(rename = "match")]
    pub pattern: String,
    #[serde(default)]
    pub wire: Option<Wire>,
    /// Below the base URL, from its slash on.
    #[serde(default)]
    pub path: Option<String>,
    /// For a level of thinking, what is merged into the request; empty: nothing.
    #[serde(default)]
    pub effort: BTreeMap<Effort, Map<String, Value>>,
    #[serde(default)]
    pub max_output_tokens: Option<u32>,
    /// All that a request and its answer may have. None: only the provider knows.
    #[serde(default)]
    pub context_tokens: Option<u64>,
    /// What the model takes besides text. None: all there is in its wire format.
    #[serde(default)]
    pub media: Option<Vec<MediaKind>>,
    #[serde(default)]
    pub price: Option<Price>,
    /// Merged into every request.
    #[serde(default)]
    pub body: Map<String, Value>,
}

/// One limit in the answer of a usage endpoint: where its numbers stand, as JSON pointers. What is
/// not named is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageWindow {
    pub name: String,
    #[serde(default)]
    pub limit: Option<String>,
    #[serde(default)]
    pub used: Option<String>,
    #[serde(default)]
    pub remaining: Option<String>,
    /// Of a hundred.
    #[serde(default)]
    pub used_percent: Option<String>,
    /// A time (RFC 3339), seconds or milliseconds since 1970, or seconds from now.
    #[serde(default)]
    pub resets_at: Option<String>,
}

impl UsageWindow {
    fn pointers(&self) -> impl Iterator<Item = &String> {
        let all = [
            &self.limit,
            &self.used,
            &self.remaining,
            &self.used_percent,
            &self.resets_at,
        ];
        all.into_iter().flatten()
    }
}

/// `[keys.NAME.usage]`: the documented place where a provider tells what is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageTable {
    /// Below the base URL, from its slash on: asked with GET and the key, where the models are.
    pub path: String,
    pub windows: Vec<UsageWindow>,
}

/// `[keys.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyTable {
    pub provider: Provider,
    #[serde(default)]
    pub base_url: Option<String>,
    /// None: no key is sent.
    #[serde(default)]
    pub key: Option<KeySource>,
    #[serde(default)]
    pub auth: Option<Auth>,
    /// Sent with every request; never the key.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The first that fits is taken, whole.
    #[serde(default)]
    pub models: Vec<ModelRow>,
    /// None: what is left is known from the headers of answers only.
    #[serde(default)]
    pub usage: Option<UsageTable>,
}

/// Members of a request that are ours: a table that set them would break what depends on them.
const OURS: [&str; 11] = [
    "messages",
    "input",
    "instructions",
    "model",
    "store",
    "stream",
    "stream_options",
    "system",
    "tools",
    "include",
    "prompt_cache_key",
];

/// One key and model, with all its table says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub key: KeyName,
    pub model: ModelName,
    pub wire: Wire,
    pub url: String,
    pub auth: Auth,
    pub source: Option<KeySource>,
    pub headers: BTreeMap<String, String>,
    pub row: ModelRow,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("use key {key}: its table has no base_url, and its provider is anybody's")]
    NoUrl { key: KeyName },
    #[error("use key {key}: its base_url must begin with https:// or http://, and have no query")]
    Url { key: KeyName },
    #[error("use key {key}: the path {path:?} must begin with a slash")]
    Path { key: KeyName, path: String },
    #[error("use key {key}: `{member}` of a request is not for its table to set")]
    Member { key: KeyName, member: String },
    #[error("use key {key}: its table says {auth:?} and names no key")]
    NoSource { key: KeyName, auth: Auth },
    #[error("use key {key}: {pointer:?} of its usage is no JSON pointer; one is /data/limit")]
    UsagePointer { key: KeyName, pointer: String },
    #[error("use key {key}: a price is a number that is not below zero")]
    Price { key: KeyName },
}

impl ModelRow {
    /// Whether the model takes what is of this kind.
    #[must_use]
    pub fn takes(&self, kind: MediaKind) -> bool {
        self.media
            .as_ref()
            .is_none_or(|media| media.contains(&kind))
    }
}

impl KeyTable {
    /// What asking for this model means; every fault of the table is one of [`BadKey`].
    ///
    /// # Errors
    /// When the table cannot be followed.
    pub fn endpoint(&self, key: &KeyName, model: &ModelName) -> Result<Endpoint, BadKey> {
        let row = self.row(model).cloned().unwrap_or_default();
        let key = key.clone();
        let base = self.base_url.as_deref().or(self.provider.base_url());
        let Some(base) = base.map(|url| url.trim_end_matches('/')) else {
            return Err(BadKey::NoUrl { key });
        };
        let host = base
            .strip_prefix("https://")
            .or_else(|| base.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains(['?', '#', '@', ' '])) {
            return Err(BadKey::Url { key });
        }
        let wire = row.wire.unwrap_or_else(|| self.provider.wire());
        let path = row.path.as_deref().unwrap_or_else(|| wire.path());
        if !path.starts_with('/') {
            let path = path.to_owned();
            return Err(BadKey::Path { key, path });
        }
        let auth = self.auth.unwrap_or_else(|| wire.auth());
        if auth != Auth::None && self.key.is_none() {
            return Err(BadKey::NoSource { key, auth });
        }
        let members = row
            .effort
            .values()
            .flat_map(Map::keys)
            .chain(row.body.keys());
        if let Some(member) = members
            .into_iter()
            .find(|name| OURS.contains(&name.as_str()))
        {
            let member = member.clone();
            return Err(BadKey::Member { key, member });
        }
        if row.price.is_some_and(|price| !price.good()) {
            return Err(BadKey::Price { key });
        }
        self.check_usage(&key)?;
        Ok(Endpoint {
            url: format!("{base}{path}"),
            source: self.key.clone().filter(|_| auth != Auth::None),
            headers: self.headers.clone(),
            model: model.clone(),
            key,
            wire,
            auth,
            row,
        })
    }

    fn check_usage(&self, key: &KeyName) -> Result<(), BadKey> {
        let Some(usage) = &self.usage else {
            return Ok(());
        };
        let key = key.clone();
        if !usage.path.starts_with('/') {
            let path = usage.path.clone();
            return Err(BadKey::Path { key, path });
        }
        let mut pointers = usage.windows.iter().flat_map(UsageWindow::pointers);
        match pointers.find(|pointer| !pointer.starts_with('/')) {
            Some(pointer) => Err(BadKey::UsagePointer {
                key,
                pointer: pointer.clone(),
            }),
            None => Ok(()),
        }
    }

    /// What is wrong with it whatever the model is.
    #[must_use]
    pub fn problems(&self, key: &KeyName) -> Vec<String> {
        let mut problems = Vec::new();
        match &self.key {
            Some(KeySource::From(name)) if name.is_empty() || name.contains(['/', '=', '\0']) => {
                problems.push(format!("{name:?} is no name of a variable"));
            }
            Some(KeySource::File(path)) if !path.is_absolute() => {
                problems.push(format!("{} is not an absolute path", path.display()));
            }
            Some(KeySource::Command(argv)) if argv.first().is_none_or(String::is_empty) => {
                problems.push("the command has no program".to_owned());
            }
            Some(KeySource::From(_) | KeySource::File(_) | KeySource::Command(_)) | None => {}
        }
        let secret = [
            "authorization",
            "x-api-key",
            "proxy-authorization",
            "cookie",
        ];
        let carries = |name: &&String| secret.contains(&name.to_ascii_lowercase().as_str());
        if let Some(name) = self.headers.keys().find(carries) {
            problems.push(format!(
                "the header {name} is the key's own; give it as `key`"
            ));
        }
        let rows = self
            .models
            .iter()
            .filter_map(|row| row.pattern.replace(['*', '?'], "x").parse().ok());
        let models = rows.chain("x".parse::<ModelName>());
        let errors = models.filter_map(|model| self.endpoint(key, &model).err());
        for error in errors.map(|error| error.to_string()) {
            if !problems.contains(&error) {
                problems.push(error);
            }
        }
        problems
    }

    fn row(&self, model: &ModelName) -> Option<&ModelRow> {
        self.models
            .iter()
            .find(|row| fits(&row.pattern, model.as_str()))
    }
}

impl Price {
    fn good(&self) -> bool {
        let rest = [self.cache_read, self.cache_write];
        [Some(self.input), Some(self.output)]
            .into_iter()
            .chain(rest)
            .flatten()
            .all(|price| price.is_finite() && price >= 0.0)
    }
}

/// One step of a chain: which key, which model, how hard to think.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    pub key: KeyName,
    pub model: ModelName,
    /// None: nothing is said of it, and the model does as it does by itself.
    #[serde(default)]
    pub effort: Option<Effort>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of key {}", self.model, self.key)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoint(table: &Value, model: &str) -> Result<Endpoint, BadKey> {
        let table: KeyTable = serde_json::from_value(table.clone()).unwrap();
        table.endpoint(&"k".parse().unwrap(), &model.parse().unwrap())
    }

    #[test]
    fn a_gateway_serves_some_models_in_another_format() {
        let gateway = json!({
            "provider": "compatible", "base_url": "https://gate.example/zen/v1/",
            "key": {"from": "GATE_KEY"},
            "models": [
                {"match": "minimax-*", "wire": "anthropic", "path": "/messages"},
                {"match": "qwen*", "wire": "anthropic", "path": "/messages"},
            ],
        });
        let qwen = endpoint(&gateway, "qwen3").unwrap();
        assert_eq!(qwen.wire, Wire::Anthropic);
        assert_eq!(qwen.url, "https://gate.example/zen/v1/messages");
        assert_eq!(qwen.auth, Auth::XApiKey);
        let other = endpoint(&gateway, "glm-5").unwrap();
        assert_eq!(other.wire, Wire::Chat);
        assert_eq!(other.url, "https://gate.example/zen/v1/chat/completions");
        assert_eq!(other.auth, Auth::Bearer);
    }

    #[test]
    fn a_table_that_cannot_be_followed_says_why() {
        let says = |table: Value| endpoint(&table, "m").unwrap_err().to_string();
        let no_url = says(json!({"provider": "compatible", "key": {"from": "K"}}));
        assert!(no_url.contains("no base_url"), "{no_url}");
        let url = says(json!({"provider": "openai", "base_url": "file:///etc/passwd"}));
        assert!(url.contains("https://"), "{url}");
        let none = says(json!({"provider": "anthropic"}));
        assert!(none.contains("names no key"), "{none}");
        let ours = says(json!({
            "provider": "openai", "key": {"from": "K"},
            "models": [{"match": "*", "effort": {"none": {"stream": false}}}],
        }));
        assert!(ours.contains("`stream`"), "{ours}");
        let price = says(json!({
            "provider": "openai", "key": {"from": "K"},
            "models": [{"match": "*", "price": {"input": -1.0, "output": 0.0}}],
        }));
        assert!(price.contains("below zero"), "{price}");
        let usage = |path: &str, limit: &str| {
            says(json!({
                "provider": "openai", "key": {"from": "K"},
                "usage": {"path": path, "windows": [{"name": "w", "limit": limit}]},
            }))
        };
        let path = usage("https://x/credits", "/a");
        assert!(path.contains("must begin with a slash"), "{path}");
        let pointer = usage("/credits?of=me", "data.limit");
        assert!(pointer.contains("\"data.limit\""), "{pointer}");
    }

    #[test]
    fn a_model_on_this_machine_needs_no_key() {
        let local = json!({
            "provider": "compatible", "base_url": "http://127.0.0.1:11434/v1", "auth": "none",
        });
        let local = endpoint(&local, "qwen2.5-coder:32b").unwrap();
        assert_eq!((local.auth, local.source), (Auth::None, None));
    }
}
