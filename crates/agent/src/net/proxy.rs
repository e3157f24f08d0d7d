//! Which way a request goes: the variables of proxies, as programs read them.
//! Must not connect to anything.

/// Where requests go through, from the environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxy {
    https: Option<String>,
    http: Option<String>,
    /// Hosts that are asked directly.
    direct: Vec<String>,
}

impl Proxy {
    /// The variables as programs read them; both spellings are in use.
    pub(crate) fn from(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            lookup(&name.to_lowercase())
                .or_else(|| lookup(name))
                .filter(|value| !value.is_empty())
        };
        let all = either("ALL_PROXY");
        let direct = either("NO_PROXY").unwrap_or_default();
        Self {
            https: either("HTTPS_PROXY").or_else(|| all.clone()),
            http: either("HTTP_PROXY").or(all),
            direct: direct
                .split(',')
                .map(|host| host.trim().trim_start_matches('.').to_lowercase())
                .filter(|host| !host.is_empty())
                .collect(),
        }
    }

    pub(super) fn of(&self, tls: bool, host: &str) -> Option<&str> {
        let host = host.to_lowercase();
        let below = |known: &String| {
            let rest = host.strip_suffix(known.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if self.direct.iter().any(|known| known == "*" || below(known)) {
            return None;
        }
        if tls {
            self.https.as_deref()
        } else {
            self.http.as_deref()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(pairs: &[(&str, &str)]) -> Proxy {
        Proxy::from(|name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_which_way() {
        let both = proxy(&[
            ("HTTPS_PROXY", "http://127.0.0.1:9"),
            ("NO_PROXY", "localhost, .corp.example,10.0.0.1"),
        ]);
        assert_eq!(both.of(true, "api.example"), Some("http://127.0.0.1:9"));
        assert_eq!(both.of(false, "api.example"), None);
        for direct in ["localhost", "a.corp.example", "CORP.example", "10.0.0.1"] {
            assert_eq!(both.of(true, direct), None, "{direct}");
        }
        assert!(both.of(true, "notcorp.example").is_some());
        let all = proxy(&[("ALL_PROXY", "p:1"), ("https_proxy", ""), ("NO_PROXY", "*")]);
        assert_eq!(all.of(true, "x"), None);
        let lower = proxy(&[("https_proxy", "a:1"), ("HTTPS_PROXY", "b:1")]);
        assert_eq!(lower.of(true, "x"), Some("a:1"));
    }
}
