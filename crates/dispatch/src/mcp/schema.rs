//! Schemas of what tools take and give, from the same types that read and write it.
//! Must not be made by hand: what a schema says and what a tool reads would come apart.

use rmcp::model::JsonObject;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

/// What a tool takes.
pub(crate) fn input<T: JsonSchema>() -> JsonObject {
    let mut object = made::<T>(SchemaSettings::draft2020_12());
    // Nothing is said by leaving it out; some clients know no type with two names.
    for property in properties(&mut object) {
        drop_null(property);
    }
    // Some clients insist on it where a tool takes nothing.
    object
        .entry("properties")
        .or_insert_with(|| Value::Object(JsonObject::new()));
    object
}

/// What a tool gives.
pub(crate) fn output<T: JsonSchema>() -> JsonObject {
    made::<T>(SchemaSettings::draft2020_12().for_serialize())
}

/// A type with two names, one of them null, as one of two types: some clients know only types with one.
fn split(schema: &mut JsonObject) {
    let Some(Value::Array(types)) = schema.get("type") else {
        return;
    };
    let other = types.iter().find(|name| **name != "null").cloned();
    let (Some(other), 2) = (other, types.len()) else {
        return;
    };
    let mut about = JsonObject::new();
    for name in ["title", "description", "default"] {
        about.extend(schema.remove_entry(name));
    }
    let mut one = std::mem::replace(schema, about);
    one.insert("type".into(), other);
    if let Some(Value::Array(words)) = one.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    let both = vec![Value::Object(one), json!({"type": "null"})];
    schema.insert("anyOf".into(), Value::Array(both));
}

/// In one piece: many clients do not follow references.
fn made<T: JsonSchema>(mut settings: SchemaSettings) -> JsonObject {
    settings.inline_subschemas = true;
    settings.meta_schema = None;
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut object = match schema.to_value() {
        Value::Object(object) => object,
        _ => JsonObject::new(),
    };
    // The name and the comment of a type of ours; each tool has its own.
    object.remove("title");
    object.remove("description");
    object.values_mut().for_each(plain);
    object
}

/// Comments on one line, and no formats that only Rust knows.
fn plain(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(plain),
        Value::Object(members) => {
            if let Some(Value::String(format)) = members.get("format") {
                const OURS: [&str; 3] = ["uint", "int", "double"];
                if OURS.iter().any(|own| format.starts_with(own)) {
                    members.remove("format");
                }
            }
            if let Some(Value::String(text)) = members.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            members.values_mut().for_each(plain);
            split(members);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn properties(object: &mut JsonObject) -> impl Iterator<Item = &mut Value> {
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(|all| all.values_mut())
}

fn drop_null(property: &mut Value) {
    let Some(property) = property.as_object_mut() else {
        return;
    };
    // What is left of one that may also be null stands for itself.
    if let Some(Value::Array(kinds)) = property.get_mut("anyOf") {
        kinds.retain(|kind| kind.get("type") != Some(&Value::from("null")));
        if let [Value::Object(one)] = &kinds[..] {
            let one = one.clone();
            property.remove("anyOf");
            property.extend(one);
        }
    }
    if property.get("default") == Some(&Value::Null) {
        property.remove("default");
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::json;

    use super::*;

    #[derive(Serialize, JsonSchema)]
    struct Inner {
        a: u32,
    }

    /// A comment of ours.
    #[derive(Serialize, JsonSchema)]
    struct Outer {
        /// What it is.
        #[serde(default)]
        name: Option<String>,
        #[serde(default)]
        inner: Option<Inner>,
        all: Vec<Inner>,
    }

    #[test]
    fn schemas_are_plain_and_in_one_piece() {
        let inner = json!({
            "type": "object", "properties": {"a": {"type": "integer", "minimum": 0}},
            "required": ["a"],
        });
        let got = Value::Object(input::<Outer>());
        assert_eq!(
            got["properties"]["name"],
            json!({"description": "What it is.", "type": "string"})
        );
        assert_eq!(got["properties"]["inner"], inner);
        assert_eq!(got["properties"]["all"]["items"], inner);
        assert_eq!(got["required"], json!(["all"]));
        assert!(got.get("title").is_none() && got.get("description").is_none());
        let got = Value::Object(output::<Outer>());
        assert_eq!(got["properties"]["name"]["type"], Value::Null);
        assert_eq!(
            got["properties"]["name"]["anyOf"],
            json!([{"type": "string"}, {"type": "null"}])
        );
        assert!(!got.to_string().contains("$ref"));
    }
}
