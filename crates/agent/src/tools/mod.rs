//! What a model may do: one file a tool, one row a tool in [`TOOLS`]. Each has its name, its help, a
//! schema made of a type, the group of permissions it belongs to, and how a call of it is planned.
//! Must not decide whether a call is allowed, and must not tell anybody but the model of a mistake
//! that the model made.

mod apply_patch;
mod capture;
mod edit_file;
mod granted;
mod group;
mod html;
mod jobs;
mod key_usage;
pub(crate) mod kin;
mod known;
mod line_kind;
mod list_files;
pub(crate) mod mcp;
#[cfg(test)]
mod odd_files;
mod open;
mod patch;
mod place;
mod plan;
mod rank;
mod read_file;
mod read_file_slice;
mod read_tab;
mod retrieve;
#[cfg(test)]
mod rules_tests;
mod run_shell;
mod search_code;
mod send_to_tab;
mod shell_jobs;
#[cfg(test)]
pub(crate) mod site;
mod snippet;
mod spill;
mod summon;
#[cfg(test)]
mod testing;
mod todo;
mod tree;
mod web;
mod web_fetch;
mod web_search;
#[cfg(test)]
mod web_tests;
mod write_file;
mod youtube_transcribe;

pub(crate) use granted::{Granted, find, granted, list};
pub(crate) use key_usage::Seen;
pub(crate) use place::{Place, Roots, Sign};
pub(crate) use plan::{Given, Judge, Planned};
pub(crate) use spill::Spill;
pub(crate) use web::Outside;

use std::{fmt, pin::Pin, sync::Arc};

use dispatch_core::rules::Group;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// What went wrong with a call, for the model: it can do better, or do something else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("error: {0}")]
pub(crate) struct Wrong(String);

impl Wrong {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

pub(crate) type Running = Pin<Box<dyn Future<Output = Result<String, Wrong>> + Send>>;

/// A call under way.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) call: String,
    pub(crate) place: Arc<Place>,
    pub(crate) seen: Arc<Seen>,
}

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// For a person and for the list in the system prompt: one line.
    pub(crate) line: &'static str,
    /// For the model.
    pub(crate) help: &'static str,
    pub(crate) group: Group,
    /// Changes nothing: may run beside others of its kind, and again after a crash.
    pub(crate) safe: bool,
    pub(crate) schema: fn() -> Value,
    pub(crate) plan: fn(&Given) -> Result<Planned, Wrong>,
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// In the order in which a model is told of them, which must stay: a cache at the provider begins
/// with it.
pub(crate) const TOOLS: &[&Tool] = &[
    &read_file::TOOL,
    &read_file_slice::TOOL,
    &list_files::TOOL,
    &write_file::TOOL,
    &edit_file::TOOL,
    &apply_patch::TOOL,
    &run_shell::TOOL,
    &shell_jobs::TOOL,
    &search_code::TOOL,
    &web_search::TOOL,
    &web_fetch::TOOL,
    &key_usage::TOOL,
    &youtube_transcribe::TOOL,
    &todo::TOOL,
    &summon::TOOL,
    &retrieve::TOOL,
    &send_to_tab::TOOL,
    &read_tab::TOOL,
];

/// As providers take it: nothing that refers to another place, nothing only some of them know.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    plain(&mut schema);
    if let Value::Object(members) = &mut schema {
        members.entry("properties").or_insert_with(|| json!({}));
    }
    schema
}

fn plain(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            for name in ["$schema", "title", "format", "default"] {
                // A property may have such a name; a keyword of the schema is a text or a value.
                if !members.get(name).is_some_and(Value::is_object) {
                    members.remove(name);
                }
            }
            either_or_null(members);
            members.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

/// What may be left out need not be null as well: some providers refuse two types at once.
fn either_or_null(members: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = members.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            members.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(kinds)) = members.get_mut("anyOf") {
        kinds.retain(|kind| kind["type"] != "null");
        if let [Value::Object(one)] = &kinds[..] {
            let one = one.clone();
            members.remove("anyOf");
            for (name, value) in one {
                members.entry(name).or_insert(value);
            }
        }
    }
    if let Some(Value::Array(values)) = members.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

/// Work on files, off the threads that must not wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Wrong> + Send + 'static,
) -> Result<T, Wrong> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Wrong(format!("this is a bug in the tool: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use dispatch_core::toolset;

    use super::*;

    /// Lists of tools are read by core, which does not know them.
    #[test]
    fn core_knows_every_tool_by_its_name() {
        let known = toolset::NAMES.iter().flat_map(|(_, names)| names.iter());
        let known: Vec<&str> = known.copied().collect();
        for tool in TOOLS {
            assert!(known.contains(&tool.name), "{tool:?}");
        }
        for name in known.iter().filter(|name| **name != "lsp") {
            assert!(TOOLS.iter().any(|tool| tool.name == *name), "{name}");
        }
    }

    #[test]
    fn every_tool_has_a_name_a_help_and_a_schema_that_providers_take() {
        let mut names = Vec::new();
        for tool in TOOLS {
            assert!(!names.contains(&tool.name));
            names.push(tool.name);
            assert!(
                tool.help.len() > tool.line.len() && !tool.line.ends_with('.'),
                "{tool:?}"
            );
            let schema = (tool.schema)();
            assert_eq!(schema["type"], "object", "{tool:?}: {schema}");
            let text = schema.to_string();
            for word in ["$ref", "$schema", "\"title\":\"", "\"format\":\"", "null"] {
                assert!(!text.contains(word), "{tool:?}: {text}");
            }
            let described = schema["properties"].as_object().unwrap();
            for (name, property) in described {
                assert!(
                    property["description"].is_string(),
                    "{tool:?} {name}: {text}"
                );
            }
        }
    }
}
