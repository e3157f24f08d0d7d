//! Images and documents in a request, in all wire formats: what they are and the hash of their bytes,
//! so that a test can tell whether the file that was handed over is what arrived. It must keep none of
//! the bytes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dispatch_core::hex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// In their order: `{"type", "bytes", "sha256"}`, or `{"type", "bad"}` where it is no base64.
pub(super) fn of(body: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    look(body, &mut found);
    found
}

/// The depth is bounded by the JSON parser.
fn look(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| look(item, found)),
        Value::Object(fields) => match part(value) {
            Some((media, data)) => found.push(told(media, data)),
            None => fields.values().for_each(|field| look(field, found)),
        },
        _ => {}
    }
}

/// Media type and base64 of a part that holds a file.
fn part(value: &Value) -> Option<(&str, &str)> {
    let source = &value["source"];
    if source["type"] == "base64" {
        return Some((source["media_type"].as_str()?, source["data"].as_str()?));
    }
    let places = [
        "/image_url",
        "/image_url/url",
        "/file_data",
        "/file/file_data",
    ];
    let mut urls = places
        .iter()
        .filter_map(|place| value.pointer(place)?.as_str());
    urls.find_map(|url| url.strip_prefix("data:")?.split_once(";base64,"))
}

fn told(media: &str, data: &str) -> Value {
    match STANDARD.decode(data) {
        Ok(bytes) => json!({
            "type": media, "bytes": bytes.len(), "sha256": hex::hex(&Sha256::digest(&bytes)),
        }),
        Err(error) => json!({"type": media, "bad": error.to_string()}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_in_every_format() {
        let hash = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";
        let foo = "Zm9v";
        let png = format!("data:image/png;base64,{foo}");
        for part in [
            json!({"type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": foo}}),
            json!({"type": "input_image", "image_url": png}),
            json!({"type": "image_url", "image_url": {"url": png}}),
            json!({"type": "input_file", "filename": "x", "file_data": png}),
            json!({"type": "file", "file": {"filename": "x", "file_data": png}}),
        ] {
            let body = json!({"messages": [{"role": "user", "content": [{"text": "x"}, part]}]});
            let expected = json!({"type": "image/png", "bytes": 3, "sha256": hash});
            assert_eq!(of(&body), [expected]);
        }
        assert!(of(&json!({"messages": [{"content": "data:image/png;base64,x"}]})).is_empty());
        let bad = json!({"image_url": "data:image/png;base64,?"});
        assert!(of(&bad)[0]["bad"].is_string());
    }
}
