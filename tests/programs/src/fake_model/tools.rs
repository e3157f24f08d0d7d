//! The tools that a client offers: finding the one a script means and filling its arguments from
//! its own JSON schema. It must not know which client is asking.

use super::script::Wish;
use serde_json::{Map, Value, json};

/// Names under which the known agents offer a shell, the most specific first.
const SHELLS: [&str; 13] = [
    "Bash",
    "bash",
    "exec_command",
    "shell_command",
    "run_shell",
    "shell",
    "local_shell",
    "run_shell_command",
    "execute_command",
    "run_commands",
    "run_command",
    "terminal",
    "container.exec",
];

/// Names under which the known agents offer to write a whole file.
const WRITERS: [&str; 6] = [
    "Write",
    "write",
    "write_file",
    "write_to_file",
    "create",
    "str_replace_based_edit_tool",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Takes a JSON object.
    Function,
    /// Takes free text.
    Custom,
    /// The Responses API's own shell, which has no schema.
    LocalShell,
}

#[derive(Debug, Clone)]
pub(super) struct Offered {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) kind: Kind,
    pub(super) schema: Value,
}

/// A tool call that is ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) namespace: Option<String>,
    pub(super) kind: Kind,
    /// An object, or a string for [`Kind::Custom`].
    pub(super) input: Value,
}

/// Reads the tools of a request in any of the four wire formats.
pub(super) fn offered(request: &Value) -> Vec<Offered> {
    let mut found = Vec::new();
    for tool in list(request, "tools") {
        if let Some(functions) = tool.get("functionDeclarations").and_then(Value::as_array) {
            for function in functions {
                push(
                    &mut found,
                    function,
                    None,
                    &["parametersJsonSchema", "parameters"],
                );
            }
        } else if let Some(function) = tool.get("function").filter(|inner| inner.is_object()) {
            push(&mut found, function, None, &["parameters"]);
        } else if tool.get("type").and_then(Value::as_str) == Some("namespace") {
            for inner in list(tool, "tools") {
                push(
                    &mut found,
                    inner,
                    text(tool, "name"),
                    &["parameters", "input_schema"],
                );
            }
        } else {
            push(&mut found, tool, None, &["input_schema", "parameters"]);
        }
    }
    found
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

fn push(found: &mut Vec<Offered>, tool: &Value, namespace: Option<&str>, schemas: &[&str]) {
    let kind = match text(tool, "type") {
        Some("custom") if tool.get("input_schema").is_none() => Kind::Custom,
        Some("local_shell") => Kind::LocalShell,
        _ => Kind::Function,
    };
    // Tools that the provider runs itself (such as a web search) have a type and no name.
    let Some(name) = text(tool, "name").or((kind == Kind::LocalShell).then_some("local_shell"))
    else {
        return;
    };
    let schema = schemas
        .iter()
        .find_map(|key| tool.get(*key))
        .cloned()
        .unwrap_or(Value::Null);
    found.push(Offered {
        name: name.to_owned(),
        namespace: namespace.map(str::to_owned),
        kind,
        schema,
    });
}

/// Finds the tool that `wish` means and fills its arguments. `directory` is where the client works,
/// if its request says so: a writer gets absolute paths.
pub(super) fn call(
    wish: &Wish,
    tools: &[Offered],
    directory: Option<&str>,
) -> Result<Call, String> {
    let known = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| tools.iter().find(|tool| tool.name == *name))
    };
    match wish.name.as_str() {
        "shell" => known(&SHELLS)
            .or_else(|| {
                tools
                    .iter()
                    .find(|tool| tool.name.to_lowercase().contains("shell"))
            })
            .map(|tool| fill(tool, wish)),
        "write" => match known(&WRITERS) {
            Some(tool) => {
                let path = wish.path.as_deref().map(|path| absolute(path, directory));
                Some(fill(
                    tool,
                    &Wish {
                        path,
                        ..wish.clone()
                    },
                ))
            }
            None => known(&SHELLS).map(|tool| {
                let wish = Wish {
                    command: Some(write_by_shell(wish)),
                    ..wish.clone()
                };
                fill(tool, &wish)
            }),
        },
        name => {
            let ending = format!("__{name}");
            tools
                .iter()
                .find(|tool| tool.name == name || full_name(tool) == name)
                .or_else(|| tools.iter().find(|tool| full_name(tool).ends_with(&ending)))
                .map(|tool| fill(tool, wish))
        }
    }
    .ok_or_else(|| {
        let names: Vec<_> = tools.iter().map(full_name).collect();
        format!(
            "no offered tool fits {:?}; offered: {}",
            wish.name,
            names.join(", ")
        )
    })
}

/// The name with its namespace in front, as it is logged.
pub(super) fn full_name(tool: &Offered) -> String {
    match &tool.namespace {
        Some(namespace) => format!("{}__{}", namespace.trim_end_matches('_'), tool.name),
        None => tool.name.clone(),
    }
}

fn absolute(path: &str, directory: Option<&str>) -> String {
    match directory {
        Some(directory) if !path.starts_with('/') => {
            format!("{}/{path}", directory.trim_end_matches('/'))
        }
        _ => path.to_owned(),
    }
}

fn write_by_shell(wish: &Wish) -> String {
    let path = wish.path.as_deref().unwrap_or_default();
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let content = quote(wish.content.as_deref().unwrap_or_default());
    let write = format!("printf '%s' {content} > {}", quote(path));
    match path.rsplit_once('/') {
        Some((parent, _)) if !parent.is_empty() => {
            format!("mkdir -p {} && {write}", quote(parent))
        }
        _ => write,
    }
}

fn fill(tool: &Offered, wish: &Wish) -> Call {
    let input = match tool.kind {
        Kind::Function => Value::Object(arguments(tool, wish)),
        Kind::Custom => {
            let given = wish.args.get("input").and_then(Value::as_str);
            json!(
                given
                    .or(wish.content.as_deref())
                    .or(wish.command.as_deref())
                    .unwrap_or("")
            )
        }
        Kind::LocalShell => json!({"command": ["bash", "-lc", wish.command]}),
    };
    Call {
        name: tool.name.clone(),
        namespace: tool.namespace.clone(),
        kind: tool.kind,
        input,
    }
}

/// Explicit `args` first, then what the property's name asks for, then anything that the schema
/// accepts for the required rest.
fn arguments(tool: &Offered, wish: &Wish) -> Map<String, Value> {
    let mut filled = Map::new();
    let required: Vec<_> = list(&tool.schema, "required")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let properties = tool.schema.get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        let value = wish
            .args
            .get(name)
            .cloned()
            .or_else(|| by_name(name, schema, wish))
            .or_else(|| {
                required
                    .contains(&name.as_str())
                    .then(|| required_value(name, schema))
            });
        if let Some(value) = value {
            filled.insert(name.clone(), value);
        }
    }
    for (name, value) in &wish.args {
        filled.entry(name.clone()).or_insert_with(|| value.clone());
    }
    filled
}

fn by_name(name: &str, schema: &Value, wish: &Wish) -> Option<Value> {
    match name.to_lowercase().as_str() {
        "file_path" | "filepath" | "path" | "absolute_path" | "absolutepath" => {
            wish.path.as_ref().map(|path| json!(path))
        }
        "content" | "contents" | "file_text" | "new_text" => {
            wish.content.as_ref().map(|content| json!(content))
        }
        key @ ("command" | "cmd" | "commands" | "script") => {
            // Editors have a sub-command under the same name, which is an enumeration.
            let verbs = list(schema, "enum");
            if !verbs.is_empty() {
                return verbs
                    .iter()
                    .find(|verb| *verb == "create")
                    .or(verbs.first())
                    .cloned();
            }
            let command = wish.command.as_ref()?;
            Some(match (type_of(schema), key) {
                ("array", "command") => json!(["bash", "-lc", command]),
                ("array", _) => json!([command]),
                _ => json!(command),
            })
        }
        _ => None,
    }
}

fn required_value(name: &str, schema: &Value) -> Value {
    let name = name.to_lowercase();
    if matches!(type_of(schema), "integer" | "number") && name.contains("time") {
        return json!(10_000);
    }
    sample(schema)
}

fn type_of(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::Array(types)) => types.first().and_then(Value::as_str).unwrap_or(""),
        Some(kind) => kind.as_str().unwrap_or(""),
        None => "",
    }
}

/// Some value that a JSON schema accepts, for answers that no test reads.
pub(super) fn sample(schema: &Value) -> Value {
    if let Some(value) = schema.get("const").or_else(|| list(schema, "enum").first()) {
        return value.clone();
    }
    let alternatives = ["anyOf", "oneOf", "allOf"];
    if let Some(first) = alternatives
        .iter()
        .find_map(|key| list(schema, key).first())
    {
        return sample(first);
    }
    match type_of(schema).to_lowercase().as_str() {
        "string" => json!("scripted"),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(1)),
        "boolean" => json!(false),
        "array" => match schema.get("items") {
            Some(items) if schema.get("minItems").and_then(Value::as_u64) > Some(0) => {
                json!([sample(items)])
            }
            _ => json!([]),
        },
        "null" => Value::Null,
        _ => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let sampled = properties.into_iter().flatten();
            Value::Object(
                sampled
                    .map(|(name, inner)| (name.clone(), sample(inner)))
                    .collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(command: &str) -> Wish {
        Wish {
            name: "shell".to_owned(),
            command: Some(command.to_owned()),
            ..Wish::default()
        }
    }

    #[test]
    fn arguments_come_from_the_schema() {
        let request = json!({"tools": [{"type": "function", "name": "exec_command", "parameters": {
            "type": "object", "required": ["cmd", "timeout_ms", "mode"],
            "properties": {"cmd": {"type": "string"}, "timeout_ms": {"type": "number"},
                "mode": {"type": "string", "enum": ["fast", "slow"]}, "optional": {"type": "string"}}}}]});
        let called = call(&shell("ls"), &offered(&request), None).unwrap();
        assert_eq!(
            called.input,
            json!({"cmd": "ls", "timeout_ms": 10_000, "mode": "fast"})
        );
    }

    #[test]
    fn a_shell_stands_in_for_a_missing_writer() {
        let request = json!({"tools": [{"function": {"name": "bash",
            "parameters": {"properties": {"command": {"type": "string"}}}}}]});
        let wish = Wish {
            name: "write".to_owned(),
            path: Some("a/it's".to_owned()),
            content: Some("x".to_owned()),
            ..Wish::default()
        };
        let called = call(&wish, &offered(&request), Some("/w")).unwrap();
        let expected = r"mkdir -p 'a' && printf '%s' 'x' > 'a/it'\''s'";
        assert_eq!(called.input, json!({"command": expected}));
    }

    #[test]
    fn a_writer_gets_an_absolute_path() {
        let request = json!({"tools": [{"name": "Write", "input_schema": {
            "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}}}}]});
        let wish = Wish {
            name: "write".to_owned(),
            path: Some("a".to_owned()),
            content: Some("x".to_owned()),
            ..Wish::default()
        };
        let called = call(&wish, &offered(&request), Some("/w")).unwrap();
        assert_eq!(called.input, json!({"file_path": "/w/a", "content": "x"}));
    }

    #[test]
    fn namespaced_custom_and_suffixed_tools_are_found() {
        let request = json!({"tools": [
            {"type": "namespace", "name": "mcp__board", "tools": [{"type": "function", "name": "done"}]},
            {"type": "custom", "name": "apply_patch"},
            {"type": "web_search"}]});
        let tools = offered(&request);
        assert_eq!(tools.len(), 2);
        let wish = |name: &str| Wish {
            name: name.to_owned(),
            content: Some("p".to_owned()),
            ..Wish::default()
        };
        let called = call(&wish("mcp__board__done"), &tools, None).unwrap();
        assert_eq!(called.namespace.as_deref(), Some("mcp__board"));
        assert!(call(&wish("board__done"), &tools, None).is_ok());
        let patch = call(&wish("apply_patch"), &tools, None).unwrap();
        assert_eq!((patch.kind, patch.input), (Kind::Custom, json!("p")));
        let said = call(&wish("nope"), &tools, None).unwrap_err();
        assert!(
            said.ends_with("offered: mcp__board__done, apply_patch"),
            "{said}"
        );
    }
}
