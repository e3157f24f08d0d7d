//! What of a person's cargo `config.toml` a job may have: where registries and mirrors are and how to
//! reach them. A task has a CARGO_HOME of its own, so without it nothing builds behind a mirror.
//! Must not let a token through, nor anything that runs a program.

use toml::{Table, Value};

/// A longer file is left alone.
pub const BYTES_MAX: u64 = 256 << 10;

/// By table; in those of names, below each name.
const PLAIN: [(&str, &[&str]); 3] = [
    ("registry", &["default", "index"]),
    ("net", &["retry", "offline", "git-fetch-with-cli"]),
    (
        "http",
        &[
            "proxy",
            "cainfo",
            "timeout",
            "low-speed-limit",
            "multiplexing",
            "check-revoke",
            "ssl-version",
        ],
    ),
];
const NAMED: [(&str, &[&str]); 2] = [
    ("registries", &["index", "protocol"]),
    (
        "source",
        &[
            "registry",
            "replace-with",
            "local-registry",
            "directory",
            "git",
            "branch",
            "tag",
            "rev",
        ],
    ),
];

/// The part that is allowed, as a file of its own; `None`: there is nothing in it, or it is no TOML.
#[must_use]
pub fn allowed(text: &str) -> Option<String> {
    let mut whole: Table = text.parse().ok()?;
    let mut out = Table::new();
    for (name, keys) in PLAIN {
        let kept = kept(whole.remove(name), keys);
        if !kept.is_empty() {
            out.insert(name.into(), Value::Table(kept));
        }
    }
    for (name, keys) in NAMED {
        let mut tables = Table::new();
        if let Some(Value::Table(named)) = whole.remove(name) {
            for (inner, value) in named {
                let kept = kept(Some(value), keys);
                if !kept.is_empty() {
                    tables.insert(inner, Value::Table(kept));
                }
            }
        }
        if !tables.is_empty() {
            out.insert(name.into(), Value::Table(tables));
        }
    }
    (!out.is_empty()).then(|| out.to_string())
}

fn kept(table: Option<Value>, keys: &[&str]) -> Table {
    let Some(Value::Table(table)) = table else {
        return Table::new();
    };
    let wanted = |(key, value): &(String, Value)| {
        keys.contains(&key.as_str()) && !value.is_table() && !holds_a_login(value)
    };
    table.into_iter().filter(wanted).collect()
}

/// `https://me:password@proxy` and the like. A user alone (`ssh://git@host`) is none.
fn holds_a_login(value: &Value) -> bool {
    let Some(text) = value.as_str() else {
        return !(value.is_integer() || value.is_bool());
    };
    let after = text.split_once("//").map_or(text, |(_, after)| after);
    let authority = after.split(['/', '?', '#']).next().unwrap_or(after);
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    user.is_some_and(|user| user.contains(':') || !text.contains("ssh://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_proxies_pass_and_nothing_else() {
        let text = "[source.crates-io]\nreplace-with = \"mirror\"\n\
            [source.mirror]\nregistry = \"sparse+https://mirror.invalid/index/\"\n\
            [registries.ours]\nindex = \"ssh://git@h/index\"\ntoken = \"t0ken\"\n\
            credential-provider = [\"sh\", \"-c\", \"x\"]\n\
            [registry]\ntoken = \"t0ken\"\nglobal-credential-providers = [\"x\"]\n\
            [http]\nproxy = \"proxy.invalid:3128\"\ntimeout = 9\n\
            [net]\ngit-fetch-with-cli = true\n\
            [build]\nrustc-wrapper = \"/evil\"\n[target.x86_64-unknown-linux-gnu]\nrunner = \"r\"\n\
            [alias]\nx = \"run\"\n[env]\nK = \"v\"\n";
        let got = allowed(text).unwrap();
        for word in [
            "t0ken",
            "evil",
            "runner",
            "credential",
            "alias",
            "env",
            "build",
        ] {
            assert!(!got.contains(word), "{word}: {got}");
        }
        let table: Table = got.parse().unwrap();
        assert_eq!(
            table["source"]["crates-io"]["replace-with"].as_str(),
            Some("mirror")
        );
        assert_eq!(
            table["registries"]["ours"]["index"].as_str(),
            Some("ssh://git@h/index")
        );
        assert_eq!(table["http"]["proxy"].as_str(), Some("proxy.invalid:3128"));
        assert_eq!(table["http"]["timeout"].as_integer(), Some(9));
        assert_eq!(table["net"]["git-fetch-with-cli"].as_bool(), Some(true));
        // Once more is the same as once.
        assert_eq!(allowed(&got).unwrap(), got);
    }

    #[test]
    fn a_login_in_an_address_is_not_handed_over() {
        for address in [
            "https://me:pw@proxy.invalid:3128",
            "me:pw@proxy.invalid:3128",
            "http://token@proxy.invalid/",
            "sparse+https://me:pw@h/x?y#z",
            "ssh://git:pw@h/x",
        ] {
            let text =
                format!("[http]\nproxy = \"{address}\"\n[registries.r]\nindex = \"{address}\"\n");
            assert_eq!(allowed(&text), None, "{address}");
        }
        for text in [
            "",
            "[",
            "http = 3",
            "[http]\nproxy = [\"x\"]",
            "[build]\njobs = 1",
        ] {
            assert_eq!(allowed(text), None, "{text}");
        }
    }
}
