//! What a server's tool answered, as a model reads it.
//! Must not hand on what no text can show; what is left out is said.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use crate::tools::Wrong;

pub(super) fn text(result: &CallToolResult) -> Result<String, Wrong> {
    let mut parts: Vec<String> = result.content.iter().map(part).collect();
    // The same again in a form for programs, unless it is all there is.
    if let (true, Some(value)) = (parts.is_empty(), &result.structured_content) {
        parts.push(value.to_string());
    }
    let text = parts.join("\n\n");
    if result.is_error == Some(true) {
        return Err(Wrong::new(text));
    }
    Ok(if text.is_empty() {
        "(no output)".to_owned()
    } else {
        text
    })
}

fn part(content: &ContentBlock) -> String {
    match content {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => left_out(&image.mime_type, &image.data),
        ContentBlock::Audio(audio) => left_out(&audio.mime_type, &audio.data),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("{uri}:\n{text}"),
            ResourceContents::BlobResourceContents {
                uri,
                mime_type,
                blob,
                ..
            } => {
                let kind = mime_type.as_deref().unwrap_or("binary");
                format!("{uri}: {}", left_out(kind, blob))
            }
            _ => "[a resource of a kind that is not known]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => format!("[{}]({})", link.name, link.uri),
        _ => "[content of a kind that is not known]".to_owned(),
    }
}

fn left_out(kind: &str, data: &str) -> String {
    format!("[{kind}, {} bytes in Base64, is left out]", data.len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(result: Value) -> Result<String, String> {
        let result: CallToolResult = serde_json::from_value(result).unwrap();
        text(&result).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn what_is_no_text_is_named() {
        let content = json!([
            {"type": "text", "text": "a"},
            {"type": "image", "data": "AAAA", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "x://1", "text": "b"}},
            {"type": "resource_link", "uri": "x://2", "name": "two"},
        ]);
        let expected =
            "a\n\n[image/png, 4 bytes in Base64, is left out]\n\nx://1:\nb\n\n[two](x://2)";
        let both = json!({"content": content, "structuredContent": {"a": 1}});
        assert_eq!(told(both), Ok(expected.into()));
        let structured = json!({"content": [], "structuredContent": {"b": 1, "a": 2}});
        assert_eq!(told(structured), Ok(r#"{"b":1,"a":2}"#.into()));
        assert_eq!(told(json!({"content": []})), Ok("(no output)".into()));
        let failed = json!({"content": [{"type": "text", "text": "no such"}], "isError": true});
        assert_eq!(told(failed), Err("error: no such".into()));
    }
}
