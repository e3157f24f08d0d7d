//! Ways out of this process: connections over HTTP/1.1, with TLS and through proxies.
//! Must not know what is asked over them: models, pages and MCP servers are others' work.
//!
//! * [`proxy`] which way the environment says; [`connect`] a connection
//! * [`address`] addresses, as they are asked
//! * [`ask`] one request with all of its answer, bounded in time and bytes

pub(crate) mod address;
mod ask;
mod connect;
mod proxy;

pub(crate) use ask::{Answered, Bounds, Question, ask};
pub(crate) use connect::{Connection, Connector, Guard, look_at_name};
pub(crate) use proxy::Proxy;

use std::{error::Error, fmt};

use dispatch_core::causes::chain;
use hyper::{
    Uri,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};

const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetFault {
    /// What was asked for cannot be asked for.
    Request,
    /// It may not be asked for.
    Refused,
    Network,
    Timeout,
    /// What came back is no answer.
    Answer,
    /// A secret that no header can carry.
    Key,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct NetError {
    pub(crate) fault: NetFault,
    pub(crate) message: String,
}

impl NetError {
    pub(crate) fn new(fault: NetFault, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { fault, message }
    }

    pub(crate) fn timed_out(what: &str) -> Self {
        Self::new(NetFault::Timeout, what)
    }

    /// With its causes: the outermost says the least.
    pub(crate) fn unreachable(doing: &str, error: &dyn Error) -> Self {
        Self::new(NetFault::Network, format!("{doing}: {}", chain(error)))
    }
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) tls: bool,
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Host {
    pub(crate) fn of(uri: &Uri) -> Result<Self, NetError> {
        let bad = |what: &str| NetError::new(NetFault::Request, format!("{uri}: {what}"));
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("it is neither https nor http")),
        };
        let name = uri.host().ok_or_else(|| bad("it has no host"))?;
        let name = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let usual = if tls { HTTPS_PORT } else { HTTP_PORT };
        let port = uri.port_u16().unwrap_or(usual);
        Ok(Self { tls, name, port })
    }
}

/// As a request to a proxy names it.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// The header of that name: the authority without who is asking.
pub(crate) fn host_header(uri: &Uri) -> Result<HeaderValue, NetError> {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let host = host.rsplit('@').next().unwrap_or_default();
    HeaderValue::from_str(host).map_err(|error| NetError::new(NetFault::Request, error.to_string()))
}

/// What the first line of a request names.
pub(crate) fn path_of(uri: &Uri) -> Result<Uri, NetError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    path.parse()
        .map_err(|_| NetError::new(NetFault::Request, format!("{uri}: it has no path")))
}

/// A key as a header has it, hidden from whoever prints the request.
pub(crate) fn secret_header(value: &str) -> Result<HeaderValue, NetError> {
    let mut header = HeaderValue::from_str(value)
        .map_err(|_| NetError::new(NetFault::Key, "the key holds what no header can carry"))?;
    header.set_sensitive(true);
    Ok(header)
}

pub(crate) fn bearer(key: &str) -> Result<(HeaderName, HeaderValue), NetError> {
    Ok((AUTHORIZATION, secret_header(&format!("Bearer {key}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let host = |text: &str| Host::of(&text.parse().unwrap());
        assert_eq!(
            host("https://a.example/x").unwrap().to_string(),
            "a.example:443"
        );
        assert_eq!(host("http://[::1]:8/x").unwrap().to_string(), "[::1]:8");
        assert!(host("ftp://a/").is_err());
    }
}
