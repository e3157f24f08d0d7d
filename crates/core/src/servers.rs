//! MCP servers whose tools the native agent may use: `[mcp.NAME]`, and which of them a task has.
//! Must not start one, and must not hold a secret: a value is written down, or says where to read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{id::ServerName, models::KeySource, web::is_base};

/// From its start to the list of its tools.
const START_MS: u64 = 30_000;
/// One call of a tool.
const CALL_MS: u64 = 120_000;

/// A value of a variable or a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Given {
    Text(String),
    Taken(KeySource),
}

/// `[mcp.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTable {
    /// A program that speaks on its standard input and output: an argv, no shell. It runs where the
    /// agent runs, inside the same fence.
    #[serde(default)]
    pub command: Vec<String>,
    /// Beside the agent's own environment without its keys.
    #[serde(default)]
    pub env: BTreeMap<String, Given>,
    /// Or one that is spoken to over HTTP.
    #[serde(default)]
    pub url: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, Given>,
    /// The only ones of its tools to offer, by its own names; all where there is none.
    #[serde(default)]
    pub tools: Option<Vec<String>>,
    #[serde(default = "start_ms")]
    pub start_ms: u64,
    #[serde(default = "call_ms")]
    pub call_ms: u64,
}

fn start_ms() -> u64 {
    START_MS
}

fn call_ms() -> u64 {
    CALL_MS
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way<'a> {
    Program(&'a [String]),
    Http(&'a str),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadServer {
    #[error("use MCP server {name}: say either command or url")]
    Way { name: ServerName },
    #[error("use MCP server {name}: {member} is only for one that has a {other}")]
    Member {
        name: ServerName,
        member: &'static str,
        other: &'static str,
    },
    #[error(
        "use MCP server {name}: its url {url:?} must begin with https:// or http://, and have no query"
    )]
    Url { name: ServerName, url: String },
    #[error("use MCP server {name}: {what:?} is no name of {member}")]
    Name {
        name: ServerName,
        member: &'static str,
        what: String,
    },
    #[error("use MCP server {name}: {limit} is 0, and it could never answer; raise it")]
    Zero {
        name: ServerName,
        limit: &'static str,
    },
    #[error("use MCP server {name}: it is not configured; there are {there}")]
    Unknown { name: ServerName, there: String },
}

impl ServerTable {
    /// One that is started by this argv, as a table that says nothing else.
    #[must_use]
    pub fn program(command: Vec<String>) -> Self {
        Self {
            command,
            env: BTreeMap::new(),
            url: None,
            headers: BTreeMap::new(),
            tools: None,
            start_ms: START_MS,
            call_ms: CALL_MS,
        }
    }

    /// How to reach it; every fault of the table is one of [`BadServer`].
    ///
    /// # Errors
    /// When the table cannot be followed.
    pub fn way(&self, name: &ServerName) -> Result<Way<'_>, BadServer> {
        let own = || name.clone();
        for (limit, value) in [("start_ms", self.start_ms), ("call_ms", self.call_ms)] {
            if value == 0 {
                return Err(BadServer::Zero { name: own(), limit });
            }
        }
        let only = |member, other| BadServer::Member {
            name: own(),
            member,
            other,
        };
        let named = |member, what: &str| BadServer::Name {
            name: own(),
            member,
            what: what.to_owned(),
        };
        match (&self.command[..], self.url.as_deref()) {
            ([program, ..], None) if !program.is_empty() => {
                if !self.headers.is_empty() {
                    return Err(only("headers", "url"));
                }
                match self.env.keys().find(|name| !is_variable(name)) {
                    Some(what) => Err(named("env", what)),
                    None => Ok(Way::Program(&self.command)),
                }
            }
            ([], Some(url)) => {
                if !self.env.is_empty() {
                    return Err(only("env", "command"));
                }
                if !is_base(url) {
                    let url = url.to_owned();
                    return Err(BadServer::Url { name: own(), url });
                }
                match self.headers.keys().find(|name| !is_header(name)) {
                    Some(what) => Err(named("headers", what)),
                    None => Ok(Way::Http(url)),
                }
            }
            _ => Err(BadServer::Way { name: own() }),
        }
    }

    /// Where its secrets come from.
    pub fn sources(&self) -> impl Iterator<Item = &KeySource> {
        let all = self.env.values().chain(self.headers.values());
        all.filter_map(|given| match given {
            Given::Text(_) => None,
            Given::Taken(source) => Some(source),
        })
    }

    /// With the name of the variable or header that each is for.
    pub(crate) fn sources_mut(&mut self) -> impl Iterator<Item = (&str, &mut KeySource)> {
        let all = self.env.iter_mut().chain(&mut self.headers);
        all.filter_map(|(name, given)| match given {
            Given::Text(_) => None,
            Given::Taken(source) => Some((name.as_str(), source)),
        })
    }
}

/// Those that a task has: all of them, or the ones it names.
///
/// # Errors
/// When one is named that is not there, or a table cannot be followed.
pub fn chosen(
    all: &BTreeMap<ServerName, ServerTable>,
    names: Option<&[ServerName]>,
) -> Result<BTreeMap<ServerName, ServerTable>, BadServer> {
    let mut found = BTreeMap::new();
    let names = names.map_or_else(|| all.keys().cloned().collect(), <[ServerName]>::to_vec);
    for name in names {
        let Some(table) = all.get(&name) else {
            let there: Vec<&str> = all.keys().map(ServerName::as_str).collect();
            let there = there.join(", ");
            return Err(BadServer::Unknown { name, there });
        };
        table.way(&name)?;
        found.insert(name, table.clone());
    }
    Ok(found)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// A token of HTTP, and none of those that say where a message ends or whose it is.
fn is_header(name: &str) -> bool {
    const OURS: [&str; 7] = [
        "accept",
        "connection",
        "content-length",
        "content-type",
        "host",
        "mcp-session-id",
        "transfer-encoding",
    ];
    let byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let lower = name.to_ascii_lowercase();
    !name.is_empty() && name.bytes().all(byte) && !OURS.contains(&lower.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> ServerTable {
        toml::from_str(text).unwrap()
    }

    fn wrong(text: &str) -> String {
        let name = "files".parse().unwrap();
        table(text).way(&name).unwrap_err().to_string()
    }

    #[test]
    fn a_program_or_an_address() {
        let name: ServerName = "files".parse().unwrap();
        let program = table(
            "command = [\"mcp-files\", \"--root\"]\nenv = { A = \"1\", TOKEN = { from = \"T\" } }",
        );
        assert_eq!(program.way(&name), Ok(Way::Program(&program.command)));
        let sources: Vec<&KeySource> = program.sources().collect();
        assert_eq!(sources, [&KeySource::From("T".into())]);
        assert_eq!((program.start_ms, program.call_ms), (START_MS, CALL_MS));
        let http = table(
            "url = \"https://a.example/mcp\"\nheaders = { Authorization = { file = \"/t\" } }",
        );
        assert_eq!(http.way(&name), Ok(Way::Http("https://a.example/mcp")));
    }

    #[test]
    fn a_table_that_cannot_be_followed_says_why() {
        for (text, part) in [
            ("", "MCP server files: say either"),
            ("command = [\"\"]", "say either"),
            ("command = [\"x\"]\nurl = \"http://a\"", "say either"),
            ("url = \"a.example\"", "must begin with"),
            (
                "command = [\"x\"]\nheaders = { A = \"b\" }",
                "headers is only for one that has a url",
            ),
            ("url = \"http://a\"\nenv = { A = \"b\" }", "env is only for"),
            (
                "command = [\"x\"]\nenv = { \"A=B\" = \"b\" }",
                "\"A=B\" is no name of env",
            ),
            (
                "url = \"http://a\"\nheaders = { \"a b\" = \"b\" }",
                "no name of headers",
            ),
            (
                "url = \"http://a\"\nheaders = { Host = \"b\" }",
                "no name of headers",
            ),
            ("command = [\"x\"]\ncall_ms = 0", "call_ms is 0"),
        ] {
            let error = wrong(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(toml::from_str::<ServerTable>("comand = []").is_err());
    }

    #[test]
    fn a_task_has_all_of_them_or_those_it_names() {
        let all: BTreeMap<ServerName, ServerTable> = ["a", "b"]
            .into_iter()
            .map(|name| (name.parse().unwrap(), table("command = [\"x\"]")))
            .collect();
        assert_eq!(chosen(&all, None).unwrap().len(), 2);
        assert_eq!(chosen(&all, Some(&[])).unwrap().len(), 0);
        let one = chosen(&all, Some(&["b".parse().unwrap()])).unwrap();
        assert_eq!(one.keys().next().unwrap().as_str(), "b");
        let error = chosen(&all, Some(&["c".parse().unwrap()])).unwrap_err();
        assert!(error.to_string().contains("there are a, b"), "{error}");
    }
}
