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
