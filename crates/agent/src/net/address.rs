//! Addresses as models and pages write them: read strictly, and joined as a browser does.
//! Must not let an address through that two readers take for different hosts.

use hyper::Uri;

use super::{NetError, NetFault};

const BYTES_MAX: usize = 8 << 10;

fn bad(text: &str, what: &str) -> NetError {
    let short: String = text.chars().take(200).collect();
    NetError::new(NetFault::Request, format!("{short}: {what}"))
}

/// A whole address of the web. What stands behind a `#` is for whoever reads the page.
pub(crate) fn parse(text: &str) -> Result<Uri, NetError> {
    let text = text.trim();
    if text.len() > BYTES_MAX {
        return Err(bad(text, "it is longer than any address"));
    }
    let (whole, _) = text.split_once('#').unwrap_or((text, ""));
    let Some((scheme, rest)) = whole.split_once("://") else {
        return Err(bad(
            text,
            "it is no whole address; begin it with https:// or http://",
        ));
    };
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "https" && scheme != "http" {
        return Err(bad(text, "it is neither https nor http"));
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    if host.contains(['@', '\\']) {
        return Err(bad(text, "its host is not clear"));
    }
    if !host.is_ascii() {
        return Err(bad(text, "write its host in letters of ASCII (xn--..)"));
    }
    let host = host.to_ascii_lowercase();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let whole = format!("{scheme}://{host}{slash}{}", written(path));
    whole.parse().map_err(|_| bad(text, "it is no address"))
}

/// What a page or a redirect at `base` means by this.
pub(crate) fn join(base: &Uri, text: &str) -> Result<Uri, NetError> {
    let text = text.trim();
    let (text, _) = text.split_once('#').unwrap_or((text, ""));
    if has_scheme(text) {
        return parse(text);
    }
    let scheme = base.scheme_str().unwrap_or("https");
    if text.starts_with("//") {
        return parse(&format!("{scheme}:{text}"));
    }
    let host = base.authority().map_or("", |authority| authority.as_str());
    let path = base.path();
    let joined = if text.is_empty() {
        base.path_and_query()
            .map_or("/", |all| all.as_str())
            .to_owned()
    } else if text.starts_with('?') {
        format!("{path}{text}")
    } else {
        let (own, query) = match text.split_once('?') {
            Some((own, query)) => (own, format!("?{query}")),
            None => (text, String::new()),
        };
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        let whole = if own.starts_with('/') {
            own.to_owned()
        } else {
            format!("{above}/{own}")
        };
        format!("{}{query}", without_dots(&whole))
    };
    parse(&format!("{scheme}://{host}{joined}"))
}

/// `mailto:` is one, `a/b:c` is none.
fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once(':') else {
        return false;
    };
    let byte = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(byte)
}

fn without_dots(path: &str) -> String {
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
    format!("/{}", kept.join("/"))
}

/// Bytes that no request's first line can hold are written as `%XX`.
fn written(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// A value of a query.
pub(crate) fn query(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_addresses() {
        for (text, expected) in [
            ("https://A.Example", "https://a.example/"),
            (" HTTP://a.example:8/X y#z ", "http://a.example:8/X%20y"),
            ("https://a.example?q=ü", "https://a.example/?q=%C3%BC"),
            ("http://[::1]:8/x", "http://[::1]:8/x"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), expected);
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
            "javascript:alert(1)",
        ] {
            assert!(parse(sly).is_err(), "{sly}");
        }
        assert!(parse(&format!("https://a/{}", "x".repeat(BYTES_MAX))).is_err());
    }

    #[test]
    fn what_a_page_means() {
        let base = parse("https://a.example/x/y?q=1").unwrap();
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
            assert_eq!(join(&base, text).unwrap().to_string(), expected, "{text}");
        }
        for none in ["mailto:me@a.example", "javascript:x()", "data:,x"] {
            assert!(join(&base, none).is_err(), "{none}");
        }
    }

    #[test]
    fn a_value_of_a_query_holds_no_other() {
        assert_eq!(query("a&b=c d+é"), "a%26b%3Dc%20d%2B%C3%A9");
    }
}
