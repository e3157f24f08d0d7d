//! What a person lists as reachable, and what an agent asks a sidecar for.
//! Must not resolve a name or open a connection.

use dispatch_core::{
    network::{AllowList, Host, HostName, Target as Asked, is_public},
    sidecar::{Upstream, Word},
};
use dispatch_sidecar::fuzzing;

use super::{Shape, Target, holds, pieces, shape_of};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "allow-list",
        property: "a problem, or a list that reads back as it was and lists what it was made of",
        seeds: || {
            let texts = [
                "api.anthropic.com\n*.example.com\nhost.test:8443",
                "127.0.0.1:8080\n10.0.0.0/8:5432\n[::1]:80\n[fd00::/8]:1",
                "0.0.0.0/0:1\n[::/0]:1",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &[
            "*.", ".", ":", ":443", "/0", "/32", "[", "]", "::", "0x", "127.1", "\n", "-",
        ],
        check: allow_list,
    },
    Target {
        name: "connect",
        property: "no target, or one that reads back as it was and that no resolver takes for an \
                   address",
        seeds: || {
            let texts = [
                "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
                "CONNECT [::ffff:127.0.0.1]:1 HTTP/1.0\r\n\r\n",
                "CONNECT 127.0.0.1:80 HTTP/1.1\r\n\r\n",
                "GET http://a.test/ HTTP/1.1\r\n\r\n",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &[
            "CONNECT ",
            " HTTP/1.1",
            "\r\n",
            "127.1",
            "0x7f000001",
            "@",
            ".",
            ":",
            "%2e",
            "\0",
        ],
        check: connect,
    },
    Target {
        name: "upstream",
        property: "a problem, or one origin that reads back as it was, in the clear only nearby",
        seeds: || {
            let texts = [
                "https://api.anthropic.com",
                "http://[::1]:8080/v1",
                "http://10.0.0.7/a/b",
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &[
            "https://",
            "http://",
            "/..",
            "%2e",
            "@",
            "?",
            "#",
            ":1",
            "localhost",
            "8.8.8.8",
        ],
        check: upstream,
    },
    Target {
        name: "sidecar-word",
        property: "no word, or one that reads back as it was",
        seeds: || {
            let texts = [
                r#"{"ready":{"broker_port":1,"placeholder":"x"}}"#,
                r#"{"refused":{"what":"a.test:443","why":"not in the list","times":3}}"#,
            ];
            texts.map(|text| text.as_bytes().to_vec()).to_vec()
        },
        words: &["ready", "refused", "times", "what", "why"],
        check: word,
    },
    Target {
        name: "broker-mask",
        property: "the key is nowhere in what is shown, however it was cut, and no length changes",
        seeds: || {
            vec![
                b"data: aab-aac\n\n".to_vec(),
                b"aab-aaab-aacaab-aac".to_vec(),
            ]
        },
        words: &["aab-aac", "aab-", "-aac", "aa"],
        check: masked,
    },
];

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

fn allow_list(input: &[u8]) -> Result<Shape, String> {
    let entries: Vec<String> = text(input).lines().map(str::to_owned).collect();
    let Ok(list) = AllowList::try_from(entries.clone()) else {
        return Ok(shape_of(("bad", entries.len().min(3))));
    };
    holds(list.len() == entries.len(), || {
        format!("{entries:?} became {list:?}")
    })?;
    let written = Vec::<String>::from(list.clone());
    let again = AllowList::try_from(written.clone());
    holds(again.as_ref() == Ok(&list), || {
        format!("{written:?} is not {list:?}")
    })?;
    for entry in &written {
        let with_port = if entry.contains(':') {
            entry.clone()
        } else {
            format!("{entry}:443")
        };
        let wide = entry.contains('*') || entry.contains('/');
        let named = with_port.parse::<Asked>();
        let reached = named
            .as_ref()
            .is_ok_and(|target| list.target(target).is_ok());
        holds(wide || reached, || {
            format!("{entry:?} does not let itself through")
        })?;
    }
    Ok(shape_of((
        written.len().min(4),
        written.iter().map(|e| e.contains('/')).collect::<Vec<_>>(),
    )))
}

fn connect(input: &[u8]) -> Result<Shape, String> {
    let (target, request) = fuzzing::asked(input);
    let Some(target) = target else {
        return Ok(shape_of(("none", request)));
    };
    let asked: Asked = target.parse().map_err(|why| format!("{target}: {why}"))?;
    holds(asked.to_string() == target, || {
        format!("{target} is not {asked}")
    })?;
    if let Host::Name(name) = &asked.host {
        // What the C library would take for an address is not let by as a name.
        let last = name.as_str().rsplit('.').next().unwrap_or_default();
        let number = last.bytes().all(|b| b.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|n| u64::from_str_radix(n, 16).is_ok());
        holds(!number, || format!("{target} is an address"))?;
        holds(
            name.as_str().parse::<HostName>().as_ref() == Ok(name),
            || target.clone(),
        )?;
    }
    let nothing = AllowList::default();
    holds(nothing.target(&asked).is_err(), || {
        format!("nothing lets {target} through")
    })?;
    Ok(shape_of((
        matches!(asked.host, Host::Name(_)),
        asked.port == 443,
    )))
}

fn upstream(input: &[u8]) -> Result<Shape, String> {
    let Ok(upstream) = text(input).parse::<Upstream>() else {
        return Ok(shape_of("bad"));
    };
    let again = upstream.to_string().parse::<Upstream>();
    holds(again.as_ref() == Ok(&upstream), || {
        format!("{upstream} is not {upstream:?}")
    })?;
    let port = upstream
        .authority
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'));
    let host = port.map_or(upstream.authority.as_str(), |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    let near = host.trim_end_matches('.') == "localhost" || address.is_ok_and(|a| !is_public(a));
    holds(upstream.tls || near, || {
        format!("{upstream} is in the clear")
    })?;
    Ok(shape_of((
        upstream.tls,
        upstream.path.len().min(4),
        port.is_some(),
    )))
}

fn word(input: &[u8]) -> Result<Shape, String> {
    let Ok(word) = serde_json::from_slice::<Word>(input) else {
        return Ok(shape_of("bad"));
    };
    let written = serde_json::to_string(&word).map_err(|error| error.to_string())?;
    let again: Word = serde_json::from_str(&written).map_err(|error| error.to_string())?;
    holds(again == word, || written)?;
    Ok(shape_of(std::mem::discriminant(&word)))
}

fn masked(input: &[u8]) -> Result<Shape, String> {
    const KEY: &str = "aab-aac";
    let shown = fuzzing::masked(KEY, &pieces(input, 9));
    holds(shown.len() == input.len(), || {
        format!("{} bytes became {}", input.len(), shown.len())
    })?;
    let whole = fuzzing::masked(KEY, &[input]);
    holds(shown == whole, || "it depends on where it is cut".into())?;
    let there = shown.windows(KEY.len()).any(|part| part == KEY.as_bytes());
    holds(!there, || "the key is shown".into())?;
    Ok(shape_of(
        shown.iter().filter(|b| **b == b'*').count().min(40),
    ))
}
