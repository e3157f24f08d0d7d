//! A value that is never printed: its only way out is `expose`, which is easy to search for.
//! Must not be serialized but where it must travel: over the socket to the engine (`travel`) and over
//! the pipe to a keeper (`travel_list`).

use std::fmt;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself, to hand it on; never to show it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Shorter texts are no tokens, and masking them would spoil the output.
const TOKEN_CHARS_MIN: usize = 12;

/// A job may have written the file.
const TOKENS_MAX: usize = 32;

/// The tokens and keys in a file that a CLI keeps its login in: JSON, told by the names of its
/// members. Anything else has none that we know.
#[must_use]
pub fn of_login(file: &[u8]) -> Vec<Secret> {
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_slice(file) {
        collect("", value, &mut found);
    }
    found
}

fn collect(name: &str, value: serde_json::Value, found: &mut Vec<Secret>) {
    use serde_json::Value;
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                collect(&name, value, found);
            }
        }
        Value::Array(items) => {
            for value in items {
                collect(name, value, found);
            }
        }
        Value::String(text) => {
            let name = name.to_ascii_lowercase();
            let hides = ["token", "key", "secret", "access", "refresh"];
            let told = hides.iter().any(|word| name.contains(word));
            if told && text.len() >= TOKEN_CHARS_MIN && found.len() < TOKENS_MAX {
                found.push(Secret(text));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Secrets by name on their way through a request: `#[serde(with = "travel")]`.
pub mod travel {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use super::Secret;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        secrets: &BTreeMap<String, Secret>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(secrets.iter().map(|(name, secret)| (name, secret.expose())))
    }

    /// # Errors
    /// When it is no object of texts. The error does not quote what it is instead.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, Secret>, D::Error> {
        let wrong = || D::Error::custom("secrets are an object of names and texts");
        let value = serde_json::Value::deserialize(from).map_err(|_| wrong())?;
        let serde_json::Value::Object(all) = value else {
            return Err(wrong());
        };
        all.into_iter()
            .map(|(name, value)| match value {
                serde_json::Value::String(text) => Ok((name, Secret(text))),
                _ => Err(wrong()),
            })
            .collect()
    }
}

/// Secrets without names on their way to a keeper: `#[serde(with = "travel_list")]`.
pub mod travel_list {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use super::Secret;

    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(secrets: &[Secret], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(secrets.iter().map(Secret::expose))
    }

    /// # Errors
    /// When it is no list of texts. The error does not quote what it is instead.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Secret>, D::Error> {
        let texts = Vec::<String>::deserialize(from)
            .map_err(|_| D::Error::custom("what is masked is a list of texts"))?;
        Ok(texts.into_iter().map(Secret).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Request {
        #[serde(with = "travel")]
        secrets: BTreeMap<String, Secret>,
    }

    #[test]
    fn a_login_is_known_by_the_names_in_it() {
        let claude =
            br#"{"claudeAiOauth":{"accessToken":"a-long-token-1","refreshToken":"a-long-token-2",
            "expiresAt":1,"scopes":["user:inference"],"subscriptionType":"max"}}"#;
        let codex = br#"{"auth_mode":"chatgpt","OPENAI_API_KEY":null,"last_refresh":"2026",
            "tokens":{"id_token":"a-long-token-3","account_id":"not-a-token-at-all"}}"#;
        let texts = |file: &[u8]| -> Vec<String> {
            of_login(file)
                .iter()
                .map(|secret| secret.expose().to_owned())
                .collect()
        };
        assert_eq!(texts(claude), ["a-long-token-1", "a-long-token-2"]);
        assert_eq!(texts(codex), ["a-long-token-3"]);
        assert_eq!(texts(br#"{"key":"short"}"#), [""; 0]);
        assert_eq!(texts(b"not json"), [""; 0]);
    }

    #[test]
    fn it_travels_and_is_not_printed() {
        let request = Request {
            secrets: BTreeMap::from([("K".into(), "hunter2".into())]),
        };
        assert_eq!(format!("{request:?}"), "Request { secrets: {\"K\": ***} }");
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, "{\"secrets\":{\"K\":\"hunter2\"}}");
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
    }

    #[test]
    fn a_bad_request_is_not_quoted() {
        for text in ["\"hunter2\"", "{\"K\":[\"hunter2\"]}", "{\"K\":271828}"] {
            let text = format!("{{\"secrets\":{text}}}");
            let error = serde_json::from_str::<Request>(&text)
                .unwrap_err()
                .to_string();
            assert!(error.contains("names and texts"), "{error}");
            assert!(
                !error.contains("hunter2") && !error.contains("271828"),
                "{error}"
            );
        }
    }
}
