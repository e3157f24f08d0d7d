//! What a run's sidecar is told and what it says: the proxy's list, the broker's upstream, and the
//! lines on its output. Plain data, so that the engine can ask for it without hearing of HTTP.
//! Must not hold a secret: the plan is in an argv, and the real key in an environment only.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    models::KeySource,
    network::{AllowList, HostName, is_public},
};

/// Where the proxy listens inside a network of the job's own. Below the ports that a system gives
/// out by itself, so nothing in there can have them before us.
pub const PROXY_PORT: u16 = 18128;
/// The same of the broker.
pub const BROKER_PORT: u16 = 18129;
/// Names of the sockets in the directory that is bound into the fence.
pub const PROXY_SOCKET: &str = "proxy.sock";
pub const BROKER_SOCKET: &str = "broker.sock";
/// A header of an answer whose key was refused: there is another one now, so it is worth asking again.
pub const RENEWED_HEADER: &str = "dispatch-key-renewed";
/// What the agent's table writes where the broker's address belongs, in `args`.
pub const BROKER_URL: &str = "{broker_url}";

/// As JSON in its argv.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub at: At,
    pub proxy: Option<AllowList>,
    #[serde(default)]
    pub brokers: Vec<Broker>,
}

/// Where it listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// On a free port of the host's loopback, which the job shares.
    Loopback,
    /// On sockets in a directory; a job with a network of its own reaches them by its warden.
    Directory(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broker {
    /// The variable of the sidecar's own environment that the real key is in. The agent has one of the
    /// same name.
    pub key: String,
    pub upstream: Upstream,
    /// Upstream wants no key, so there is no such variable: the placeholder goes out, and nothing in.
    #[serde(default)]
    pub keyless: bool,
    /// Where the key is read again when upstream has refused it: it may have been renewed there.
    /// Never a variable, which stays what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<KeySource>,
}

/// The one origin that the real key is sent to, and the path that every request's begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Upstream {
    pub tls: bool,
    /// Host, and port unless it is the usual one.
    pub authority: String,
    /// Without a slash at the end; often nothing.
    pub path: String,
}

const UPSTREAM_RULE: &str = "an upstream is https://HOST[:PORT][/PATH]; http:// only for this \
                             machine and its network, where nobody else reads the key";

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: {UPSTREAM_RULE}");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let path = path.trim_end_matches('/');
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
        if !path.bytes().all(plain) || has_dot_segment(path) {
            return Err(wrong());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let good_port = port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
        });
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let address = match inner {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().ok().map(Into::into),
            None => host.parse::<std::net::Ipv4Addr>().ok().map(Into::into),
        };
        let name = host.parse::<HostName>().ok();
        let near = match (&address, &name) {
            (Some(address), _) => !is_public(*address),
            (None, Some(name)) => name.as_str() == "localhost",
            (None, None) => return Err(wrong()),
        };
        if !good_port || (!tls && !near) {
            return Err(wrong());
        }
        Ok(Self {
            tls,
            authority: authority.to_ascii_lowercase(),
            path: path.to_owned(),
        })
    }
}

/// `..` and `.` as a path's part, in the ways a server may read them.
#[must_use]
pub fn has_dot_segment(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2e", ".");
    let path = path.replace("%2f", "/").replace("%5c", "/");
    let mut parts = path.split(['/', '\\']);
    parts.any(|part| part == "." || part == "..")
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

impl TryFrom<String> for Upstream {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> Self {
        upstream.to_string()
    }
}

/// What it says, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Word {
    /// It listens. The first word, said once.
    Ready {
        /// On the host's loopback; nothing where it listens on sockets.
        broker_port: Option<u16>,
        /// What the agent gets in place of its keys, by their variables.
        #[serde(default)]
        placeholders: BTreeMap<String, String>,
    },
    /// Something was not let through; `times` counts from the beginning.
    Refused {
        what: String,
        why: String,
        times: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_one_origin() {
        for (text, tls, authority, path) in [
            ("https://api.anthropic.com", true, "api.anthropic.com", ""),
            (
                "https://API.example.com:8443/api/",
                true,
                "api.example.com:8443",
                "/api",
            ),
            ("http://127.0.0.1:8080/", false, "127.0.0.1:8080", ""),
            ("http://localhost:11434", false, "localhost:11434", ""),
            ("http://[::1]:8080/v1", false, "[::1]:8080", "/v1"),
            ("http://10.0.0.7", false, "10.0.0.7", ""),
        ] {
            let upstream: Upstream = text.parse().unwrap();
            let parts = (
                upstream.tls,
                upstream.authority.as_str(),
                upstream.path.as_str(),
            );
            assert_eq!(parts, (tls, authority, path));
            assert_eq!(upstream.to_string().parse(), Ok(upstream));
        }
        for bad in [
            "api.anthropic.com",
            "http://api.anthropic.com",
            "ftp://127.0.0.1",
            "https://",
            "https://u@h.test",
            "https://h.test?x=1",
            "https://h.test/#f",
            "https://h.test/a/../b",
            "https://h.test:0",
            "https://h.test:",
            "https://h.test:+1",
            "http://8.8.8.8",
            "https://h.test/%2e%2e",
            "https://h .test",
            "http://127.1",
        ] {
            assert!(bad.parse::<Upstream>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_and_its_words_round_trip() {
        let plan = Plan {
            at: At::Directory("/data/inside/x".into()),
            proxy: Some(vec!["a.test".to_owned()].try_into().unwrap()),
            brokers: vec![Broker {
                key: "KEY".into(),
                upstream: "https://a.test/v1".parse().unwrap(),
                keyless: false,
                again: Some(KeySource::File("/keys/a".into())),
            }],
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        let word = r#"{"refused":{"what":"a.test:443","why":"not in the list","times":3}}"#;
        let said: Word = serde_json::from_str(word).unwrap();
        assert_eq!(serde_json::to_string(&said).unwrap(), word);
    }
}
