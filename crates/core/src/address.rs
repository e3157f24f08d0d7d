//! Addresses of the web in one spelling, so that what a rule says of one holds however somebody
//! writes it. Pure: nobody is asked for a name here.
//! Must not accept what two readers take for different places, or for different paths.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

const BYTES_MAX: usize = 8 << 10;
const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;
/// Of what was written, in an error.
const SHOWN_CHARS: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}: {what}")]
pub struct BadAddress {
    text: String,
    what: &'static str,
}

/// A whole address. What stood behind a `#` was for whoever reads the page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    tls: bool,
    /// A name in small letters without a dot at its end, or an IP address as everybody writes it.
    host: String,
    /// None: the usual one.
    port: Option<u16>,
    /// From its slash on, without `.` and `..`.
    path: String,
    query: Option<String>,
}

impl Address {
    /// # Errors
    /// When it is not whole, or its host or path can be read in two ways.
    pub fn parse(text: &str) -> Result<Self, BadAddress> {
        let text = text.trim();
        read(text).map_err(|what| BadAddress {
            text: text.chars().take(SHOWN_CHARS).collect(),
            what,
        })
    }

    /// What a page or a redirect here means by this.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub fn join(&self, text: &str) -> Result<Self, BadAddress> {
        let text = text.trim();
        let (text, _) = text.split_once('#').unwrap_or((text, ""));
        if has_scheme(text) {
            return Self::parse(text);
        }
        let scheme = self.scheme();
        if text.starts_with("//") {
            return Self::parse(&format!("{scheme}:{text}"));
        }
        if text.is_empty() {
            return Ok(self.clone());
        }
        let path = match text.as_bytes().first() {
            Some(b'/') => text.to_owned(),
            Some(b'?') => format!("{}{text}", self.path),
            _ => {
                let above = self.path.rsplit_once('/').map_or("", |(above, _)| above);
                format!("{above}/{text}")
            }
        };
        Self::parse(&format!("{scheme}://{}{path}", self.authority()))
    }

    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.tls
    }

    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// The host, and its port where that is not the usual one.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// The path, and the query behind it.
    #[must_use]
    pub fn path(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// The same host and port, and no less safe.
    #[must_use]
    pub fn is_where(&self, from: &Self) -> bool {
        self.host == from.host && self.port == from.port && (self.tls || !from.tls)
    }

    /// Whether the pattern is for this one: scheme, host and path each by its own part of it, so that
    /// a star in a host is never a path. What a pattern leaves out is any.
    pub(crate) fn is_of(&self, pattern: &str) -> bool {
        let (scheme, rest) = pattern.split_once("://").unwrap_or(("*", pattern));
        let (host, path) = match rest.find('/') {
            Some(at) => (&rest[..at], plain(&rest[at..])),
            None => (rest, "*".to_owned()),
        };
        let host = host.to_ascii_lowercase();
        let usual = if self.tls { ":443" } else { ":80" };
        let host = host.strip_suffix(usual).unwrap_or(&host);
        let host = host.strip_suffix('.').unwrap_or(host);
        let fits = crate::rules::fits;
        fits(&scheme.to_ascii_lowercase(), self.scheme())
            && fits(host, &self.authority())
            && fits(&path, &self.path())
    }

    /// Other ways to read it, for patterns that narrow: many servers take two slashes for one.
    pub(crate) fn readings(&self) -> [String; 2] {
        let whole = self.to_string();
        let mut path = self.path();
        while path.contains("//") {
            path = path.replace("//", "/");
        }
        let plain = format!("{}://{}{path}", self.scheme(), self.authority());
        [whole, plain]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.path())
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        Self::parse(&text)
    }
}

fn read(text: &str) -> Result<Address, &'static str> {
    if text.len() > BYTES_MAX {
        return Err("it is longer than any address");
    }
    let (whole, _) = text.split_once('#').unwrap_or((text, ""));
    let Some((scheme, rest)) = whole.split_once("://") else {
        return Err("it is no whole address; begin it with https:// or http://");
    };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err("it is neither https nor http"),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = authority_of(authority)?;
    let usual = if tls { HTTPS_PORT } else { HTTP_PORT };
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(plain(query))),
        None => (path, None),
    };
    Ok(Address {
        tls,
        host,
        port: port.filter(|port| *port != usual),
        path: path_of(&plain(path))?,
        query,
    })
}

fn authority_of(text: &str) -> Result<(String, Option<u16>), &'static str> {
    if text.contains(['@', '\\']) {
        return Err("its host is not clear");
    }
    if !text.is_ascii() {
        return Err("write its host in letters of ASCII (xn--..)");
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inner, behind) = rest.split_once(']').ok_or("its host is not clear")?;
            let address: Ipv6Addr = inner.parse().map_err(|_| "its host is not clear")?;
            let port = match behind {
                "" => "",
                behind => behind.strip_prefix(':').ok_or("its host is not clear")?,
            };
            (format!("[{address}]"), port)
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            (host_of(host)?, port)
        }
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port {
        "" => Ok((host, None)),
        port if digits => {
            let port = port.parse().map_err(|_| "its port is none")?;
            Ok((host, Some(port)))
        }
        _ => Err("its port is none"),
    }
}

fn host_of(text: &str) -> Result<String, &'static str> {
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if !host
        .split('.')
        .all(|label| !label.is_empty() && label.bytes().all(byte))
    {
        return Err("its host is no name");
    }
    // `127.1`, `0x7f000001` and `017.0.0.1` are addresses to some readers and names to others.
    let last = host.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    if number && host.parse::<Ipv4Addr>().is_err() {
        return Err("its host is not clear");
    }
    Ok(host)
}

/// Without `.` and `..`, and nothing that a server may take for them.
fn path_of(path: &str) -> Result<String, &'static str> {
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    let dots = |part: &str| {
        let name = part.split(';').next().unwrap_or_default();
        name == "." || name == ".."
    };
    let disguised = |part: &&str| part.replace("%5C", "%2F").split("%2F").any(dots);
    if kept.iter().any(disguised) {
        return Err("where its path leads is not clear");
    }
    Ok(format!("/{}", kept.join("/")))
}

/// Each character in one spelling: what no request's first line can hold is `%XX`, what needs no
/// such thing is itself.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let escaped = match byte {
            b'%' => ahead.next().zip(ahead.next()).and_then(byte_of),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                rest = ahead;
                if is_unreserved(byte) {
                    plain.push(char::from(byte));
                } else {
                    escape(&mut plain, byte);
                }
            }
            None if byte.is_ascii_graphic() && !b"\"<>\\^`{|}%".contains(&byte) => {
                plain.push(char::from(byte));
            }
            None => escape(&mut plain, byte),
        }
    }
    plain
}

fn byte_of((high, low): (u8, u8)) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn escape(to: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    to.push('%');
    to.push(char::from(DIGITS[usize::from(byte >> 4)]));
    to.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// A value of a query.
#[must_use]
pub fn query(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if is_unreserved(byte) {
            text.push(char::from(byte));
        } else {
            escape(&mut text, byte);
        }
    }
    text
}

/// `mailto:` is one, `a/b:c` is none.
fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else {
        return false;
    };
    let byte = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        for (text, expected) in [
            ("https://A.Example", "https://a.example/"),
            (" HTTP://a.example:8/X y#z ", "http://a.example:8/X%20y"),
            ("https://a.example?q=ü", "https://a.example/?q=%C3%BC"),
            ("http://[::1]:8/x", "http://[::1]:8/x"),
            ("http://[0:0::1]/x", "http://[::1]/x"),
            ("https://h:443/x", "https://h/x"),
            ("http://h:080/x", "http://h/x"),
            ("https://h:/x", "https://h/x"),
            ("https://h./x", "https://h/x"),
            ("https://h/public/../admin", "https://h/admin"),
            ("https://h/public/%2e%2E/admin", "https://h/admin"),
            ("https://h/./a/./b/.", "https://h/a/b/"),
            ("https://h/../..", "https://h/"),
            ("https://h/%7euser/%41%2f", "https://h/~user/A%2F"),
            // Decoded once, and what is left is not decoded again by anybody.
            ("https://h/%%32e%%32e/a", "https://h/%252e%252e/a"),
            ("https://h/100%", "https://h/100%25"),
            ("https://h/a?b=../c&d=%2e", "https://h/a?b=../c&d=."),
            ("http://127.0.0.1/", "http://127.0.0.1/"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), expected);
            assert_eq!(Address::parse(expected).unwrap(), address);
        }
        for sly in [
            "",
            "a.example",
            "file:///etc/passwd",
            "https://",
            "https://docs.rs@evil.example/",
            "https://evil.example\\@docs.rs/",
            "https://dócs.rs/",
            "https://a b/",
            "https://a%2eb/",
            "https://a..b/",
            "https://a:b/",
            "https://a:1:2/",
            "https://a:70000/",
            "https://a:+8/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0x7f000001/",
            "https://127.0.0.01/",
            "https://[::1/",
            "https://[::1]x/",
            "https://h/public/..%2fadmin",
            "https://h/public/..\\admin",
            "https://h/public/..;/admin",
            "javascript:alert(1)",
        ] {
            assert!(Address::parse(sly).is_err(), "{sly}");
        }
        assert!(Address::parse(&format!("https://a/{}", "x".repeat(BYTES_MAX))).is_err());
    }

    #[test]
    fn what_a_page_means() {
        let base = Address::parse("https://a.example/x/y?q=1").unwrap();
        for (text, expected) in [
            ("z", "https://a.example/x/z"),
            ("./z/", "https://a.example/x/z/"),
            ("../../../z", "https://a.example/z"),
            ("..", "https://a.example/"),
            ("/z?a=../b", "https://a.example/z?a=../b"),
            ("?p=2", "https://a.example/x/y?p=2"),
            ("#part", "https://a.example/x/y?q=1"),
            ("//b.example/z", "https://b.example/z"),
            ("http://b.example", "http://b.example/"),
            ("a/b:c", "https://a.example/x/a/b:c"),
        ] {
            assert_eq!(base.join(text).unwrap().to_string(), expected, "{text}");
        }
        for none in ["mailto:me@a.example", "javascript:x()", "data:,x"] {
            assert!(base.join(none).is_err(), "{none}");
        }
    }

    #[test]
    fn a_value_of_a_query_holds_no_other() {
        assert_eq!(query("a&b=c d+é"), "a%26b%3Dc%20d%2B%C3%A9");
    }
}
