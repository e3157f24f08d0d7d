//! The tables of docs/mcp.md are the tables of the server.
//! `DISPATCH_BLESS=1 cargo test -p dispatch mcp::manual` writes them anew.

use serde_json::Value;

use super::{agentic, letters, own, prompts::PROMPTS, resources, table::Row};

const PLACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/mcp.md");

fn required(schema: &Value, name: &str) -> bool {
    let all = schema["required"].as_array();
    all.is_some_and(|all| all.iter().any(|known| known == name))
}

fn row(row: &Row) -> String {
    let schema = Value::Object((row.input)());
    let names = schema["properties"].as_object().unwrap().keys();
    let (needed, free): (Vec<_>, Vec<_>) = names.partition(|name| required(&schema, name));
    let needed = needed.iter().map(|name| format!("**`{name}`**"));
    let free = free.iter().map(|name| format!("`{name}`"));
    let takes: Vec<String> = needed.chain(free).collect();
    format!("| `{}` | {} | {} |\n", row.name, takes.join(" "), row.about)
}

fn tools(rows: &[&[Row]]) -> String {
    let rows: String = rows.iter().flat_map(|rows| rows.iter()).map(row).collect();
    format!("| tool | takes | |\n|---|---|---|\n{rows}")
}

fn prompts() -> String {
    let rows = PROMPTS.iter().map(|prompt| {
        let arguments = prompt
            .arguments
            .iter()
            .map(|argument| match argument.required {
                true => format!("**`{}`**", argument.name),
                false => format!("`{}`", argument.name),
            });
        let takes: Vec<String> = arguments.collect();
        format!(
            "| `{}` | {} | {} |\n",
            prompt.name,
            takes.join(" "),
            prompt.about
        )
    });
    let rows: String = rows.collect();
    format!("| prompt | takes | |\n|---|---|---|\n{rows}")
}

/// What stands between two marks is replaced.
fn with(text: &str, mark: &str, table: &str) -> String {
    let (open, close) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let (before, rest) = text.split_once(&open).unwrap();
    let (_, after) = rest.split_once(&close).unwrap();
    format!("{before}{open}{table}{close}{after}")
}

#[test]
fn the_manual_has_the_tables_of_the_server() {
    let manual = std::fs::read_to_string(PLACE).unwrap();
    let made = with(&manual, "tools", &tools(&[own::TOOLS]));
    let made = with(&made, "go", &tools(&[agentic::TOOLS, letters::TOOLS]));
    let made = with(&made, "prompts", &prompts());
    if std::env::var_os("DISPATCH_BLESS").is_some() {
        std::fs::write(PLACE, &made).unwrap();
    } else {
        assert_eq!(manual, made, "docs/mcp.md");
    }
    for template in resources::templates() {
        assert!(manual.contains(&format!("| `{}` |", template.uri_template)));
    }
}
