//! `[server]`: where the engine listens on the network, by which names it may be called, and with
//! which certificate. Must not open anything: `dispatch serve` does.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

/// As it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerTable {
    listen: String,
    hosts: Vec<String>,
    origins: Vec<String>,
    tls_cert: String,
    tls_key: String,
    insecure_plain_http: bool,
}

/// The same, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `None`: the unix sockets only.
    pub listen: Option<SocketAddr>,
    /// Names it may be called by, besides those of this machine: `name` or `name:port`.
    pub hosts: Vec<String>,
    /// Pages that may speak to it, besides its own: `scheme://host[:port]`.
    pub origins: Vec<String>,
    pub tls: Option<Tls>,
    /// The explicit word for an address that others reach, without TLS.
    pub insecure_plain_http: bool,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl ServerTable {
    /// Every problem as key and what is wrong, or what is meant.
    pub(crate) fn resolve(self) -> Result<Server, Vec<(&'static str, String)>> {
        let mut problems = Vec::new();
        let listen = match self.listen.as_str() {
            "" => None,
            text => match text.parse::<SocketAddr>() {
                Ok(address) => Some(address),
                Err(_) => {
                    let what = format!(
                        "{text:?} is no ADDRESS:PORT, such as 127.0.0.1:7717 or [::1]:7717"
                    );
                    problems.push(("listen", what));
                    None
                }
            },
        };
        for host in self.hosts.iter().filter(|host| !is_host(host)) {
            let what = format!("{host:?} is no name that a Host header has: `name` or `name:port`");
            problems.push(("hosts", what));
        }
        for origin in self.origins.iter().filter(|origin| !is_origin(origin)) {
            let what = format!("{origin:?} is no origin, such as https://desk.example");
            problems.push(("origins", what));
        }
        let tls = match (self.tls_cert.as_str(), self.tls_key.as_str()) {
            ("", "") => None,
            ("", _) => {
                problems.push(("tls_cert", "a key needs its certificate".to_owned()));
                None
            }
            (_, "") => {
                problems.push(("tls_key", "a certificate needs its key".to_owned()));
                None
            }
            (cert, key) => {
                for (name, path) in [("tls_cert", cert), ("tls_key", key)] {
                    if !path.starts_with('/') {
                        problems.push((name, format!("{path:?} is not an absolute path")));
                    }
                }
                let (cert, key) = (cert.into(), key.into());
                Some(Tls { cert, key })
            }
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Server {
            listen,
            hosts: self.hosts,
            origins: self.origins,
            tls,
            insecure_plain_http: self.insecure_plain_http,
        })
    }
}

impl Server {
    /// Whether tokens would cross a network in the clear at this address.
    #[must_use]
    pub fn is_exposed(&self, at: SocketAddr) -> bool {
        !at.ip().is_loopback() && self.tls.is_none() && !self.insecure_plain_http
    }
}

fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

fn is_origin(text: &str) -> bool {
    let authority = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    authority.is_some_and(is_host)
}

#[cfg(test)]
mod tests {
    use crate::config::{Layer, load};

    fn server(text: &str) -> Result<super::Server, Vec<String>> {
        let (source, text) = ("t", &format!("[server]\n{text}"));
        match load(&[Layer { source, text }]) {
            Ok((config, _)) => Ok(config.server),
            Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn what_crosses_a_network_in_the_clear_is_asked_for() {
        let own = server("listen = \"127.0.0.1:0\"").unwrap();
        assert!(!own.is_exposed(own.listen.unwrap()));
        let all = "0.0.0.0:80".parse().unwrap();
        assert!(own.is_exposed(all) && own.is_exposed("[::]:80".parse().unwrap()));
        let tls = server("tls_cert = \"/c\"\ntls_key = \"/k\"").unwrap();
        assert!(tls.listen.is_none() && !tls.is_exposed(all));
        let word = server("insecure_plain_http = true").unwrap();
        assert!(!word.is_exposed(all));
    }

    #[test]
    fn every_key_is_looked_at() {
        for (text, part) in [
            (
                "listen = \"7717\"",
                "server.listen: \"7717\" is no ADDRESS:PORT",
            ),
            ("listen = \"localhost:1\"", "is no ADDRESS:PORT"),
            ("hosts = [\"https://x\"]", "server.hosts"),
            ("hosts = [\"*\"]", "server.hosts"),
            ("origins = [\"desk.example\"]", "server.origins"),
            ("origins = [\"https://desk.example/\"]", "server.origins"),
            ("tls_cert = \"/c\"", "server.tls_key"),
            ("tls_key = \"/k\"", "server.tls_cert"),
            (
                "tls_cert = \"c\"\ntls_key = \"/k\"",
                "\"c\" is not an absolute path",
            ),
            ("port = 1", "server"),
        ] {
            let told = server(text).unwrap_err().join("\n");
            assert!(told.contains(part), "{text}: {told}");
        }
    }
}
