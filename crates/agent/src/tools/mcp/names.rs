//! What a model is told of a server's tools: names that every provider takes, help and schemas
//! within limits, in an order that does not depend on the server's mood.
//! Must not give two tools one name.

use std::collections::BTreeSet;

use dispatch_core::{
    id::ServerName,
    native::{Raw, ServedTool},
};
use rmcp::model::Tool;
use serde_json::{Map, Value, json};

/// Between a server's name and its tool's.
pub(crate) const BETWEEN: &str = "__";
/// The shortest limit of all providers.
const NAME_CHARS_MAX: usize = 64;
const HELP_CHARS_MAX: usize = 4_000;
const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Of one server. Each one costs tokens in every step.
const TOOLS_MAX: usize = 128;
/// Help and schemas of one server together: they are one line of the record.
const ALL_BYTES_MAX: usize = 256 << 10;

/// Those that a model can be told of, and why not the others.
pub(super) fn told(
    server: &ServerName,
    mut tools: Vec<Tool>,
    known: &[(ServerName, Vec<ServedTool>)],
) -> (Vec<ServedTool>, Vec<String>) {
    tools.sort_by(|a, b| a.name.cmp(&b.name));
    let earlier = known.iter().flat_map(|(_, tools)| tools);
    let mut taken: BTreeSet<String> = earlier.map(|tool| tool.name.clone()).collect();
    let (mut told, mut left_out): (Vec<ServedTool>, _) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for tool in tools {
        let shown: String = tool.name.chars().take(NAME_CHARS_MAX).collect();
        let one = one(server, &tool);
        let size = one
            .as_ref()
            .map_or(0, |one| one.help.len() + one.schema.text().len());
        bytes += size;
        match one {
            _ if told.len() >= TOOLS_MAX || bytes > ALL_BYTES_MAX => {
                left_out.push(format!(
                    "MCP server {server} has more than {TOOLS_MAX} tools, or than {ALL_BYTES_MAX} \
                     bytes of help and schemas; from {shown:?} on they are left out; name those \
                     you want in its table"
                ));
                break;
            }
            Err(why) => left_out.push(format!(
                "tool {shown:?} of MCP server {server} is left out: {why}"
            )),
            Ok(one) if !taken.insert(one.name.clone()) => left_out.push(format!(
                "tool {shown:?} of MCP server {server} is left out: there is another {}",
                one.name
            )),
            Ok(one) => told.push(one),
        }
    }
    (told, left_out)
}

fn one(server: &ServerName, tool: &Tool) -> Result<ServedTool, String> {
    let plain = |name: &str| -> String {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        name.chars()
            .map(|c| if good(c) { c } else { '_' })
            .collect()
    };
    let name = format!("{}{BETWEEN}{}", plain(server.as_str()), plain(&tool.name));
    if tool.name.is_empty() {
        return Err("it has no name".to_owned());
    }
    if name.len() > NAME_CHARS_MAX {
        return Err(format!(
            "its name is longer than {NAME_CHARS_MAX} characters"
        ));
    }
    let help = tool.description.as_deref().unwrap_or_default().trim();
    let help = match help.char_indices().nth(HELP_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &help[..at]),
        None if help.is_empty() => format!("{} of {server}", tool.name),
        None => help.to_owned(),
    };
    let hint = tool.annotations.as_ref().and_then(|a| a.read_only_hint);
    Ok(ServedTool {
        name,
        tool: tool.name.clone().into_owned(),
        help,
        schema: schema(&tool.input_schema)?,
        safe: hint.unwrap_or(false),
    })
}

/// As it is, but for what some providers refuse: no type, or no properties at all.
fn schema(schema: &Map<String, Value>) -> Result<Raw, String> {
    let mut schema = schema.clone();
    schema.remove("$schema");
    if schema.is_empty() {
        schema.insert("type".into(), json!("object"));
    }
    if schema.get("type") != Some(&json!("object")) {
        return Err("its schema is not that of an object".to_owned());
    }
    schema.entry("properties").or_insert_with(|| json!({}));
    let text = Value::Object(schema).to_string();
    if text.len() > SCHEMA_BYTES_MAX {
        return Err(format!("its schema has more than {SCHEMA_BYTES_MAX} bytes"));
    }
    Raw::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, schema: &Value) -> Tool {
        let mut tool = json!({"name": name, "inputSchema": schema});
        if name != "plain" && !name.starts_with('t') {
            tool["description"] = json!("x".repeat(HELP_CHARS_MAX + 1));
        }
        serde_json::from_value(tool).unwrap()
    }

    #[test]
    fn odd_tools_are_told_or_named() {
        let server: ServerName = "my.files".parse().unwrap();
        let object = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let large = json!({"type": "object", "x": "y".repeat(SCHEMA_BYTES_MAX)});
        let tools = vec![
            tool("read_file", &object),
            tool("read.file", &object),
            tool("plain", &json!({})),
            tool("", &object),
            tool(&"n".repeat(60), &object),
            tool("\u{1f600} x\n", &object),
            tool("array", &json!({"type": "array"})),
            tool("large", &large),
        ];
        let mut backwards = tools.clone();
        backwards.reverse();
        let (told, left_out) = super::told(&server, tools, &[]);
        let names: Vec<&str> = told.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(
            names,
            ["my_files__plain", "my_files__read_file", "my_files____x_"]
        );
        assert_eq!(told[1].tool, "read.file");
        assert_eq!(told[1].schema.text(), object.to_string());
        assert_eq!(told[0].help, "plain of my.files");
        assert_eq!(
            told[0].schema.text(),
            r#"{"type":"object","properties":{}}"#
        );
        assert_eq!(told[1].help.len(), HELP_CHARS_MAX + 3);
        let all = left_out.join("\n");
        for part in [
            "\"read_file\" of MCP server my.files is left out: there is another my_files__read_file",
            "\"\" of MCP server my.files is left out: it has no name",
            "longer than 64",
            "\"array\" of",
            "more than 65536 bytes",
        ] {
            assert!(all.contains(part), "{all}");
        }
        assert_eq!(left_out.len(), 5);
        // A server may list them as it likes.
        assert_eq!(super::told(&server, backwards, &[]).0, told);
        let known = [("other".parse().unwrap(), told)];
        let again = super::told(&server, vec![tool("plain", &object)], &known);
        assert!(again.0.is_empty() && again.1.len() == 1);
    }

    #[test]
    fn a_server_with_too_many_tools_is_cut() {
        let tools = (0..TOOLS_MAX + 9).map(|n| tool(&format!("t{n:03}"), &json!({})));
        let (told, left_out) = super::told(&"s".parse().unwrap(), tools.collect(), &[]);
        assert_eq!(told.len(), TOOLS_MAX);
        assert_eq!(left_out.len(), 1);
        assert!(left_out[0].contains("from \"t128\" on"), "{left_out:?}");
        let wordy = json!({"type": "object", "x": "y".repeat(SCHEMA_BYTES_MAX / 2)});
        let tools = (0..9).map(|n| tool(&format!("t{n}"), &wordy));
        let (told, left_out) = super::told(&"s".parse().unwrap(), tools.collect(), &[]);
        assert_eq!((told.len(), left_out.len()), (7, 1));
    }
}
