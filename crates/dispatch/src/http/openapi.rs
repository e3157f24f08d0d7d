//! The document of the API, OpenAPI 3.1, made from the table of routes and the types that its handlers
//! take and give. Must not know a route by itself: what is not in the table is not in the document.

use axum::Json;
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    caller::{Access, Scope},
    error::{Code, Problem},
    reads::{NEXT, SEQ},
    repeats::KEY,
    routes::{self, Answer, Route, Verb},
};

const SCHEMAS: &str = "/components/schemas";

/// Requests and answers have schemas of their own: what may be left out of one is always in the other.
struct Maker {
    asked: SchemaGenerator,
    given: SchemaGenerator,
}

impl Maker {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
            })
        };
        Self {
            asked: settings().for_deserialize().into_generator(),
            given: settings().for_serialize().into_generator(),
        }
    }

    /// All that was used, by name. A name that means two things would be a bug, which a test finds.
    fn schemas(mut self) -> Result<Map<String, Value>, String> {
        let mut all = self.asked.take_definitions(true);
        for (name, schema) in self.given.take_definitions(true) {
            match all.get(&name) {
                Some(other) if *other != schema => {
                    return Err(format!("{name} is asked and given in two shapes"));
                }
                Some(_) => {}
                None => {
                    all.insert(name, schema);
                }
            }
        }
        all.sort_keys();
        Ok(all)
    }
}

/// The whole document.
///
/// # Errors
/// When one name of a schema would mean two things.
pub(crate) fn document() -> Result<Value, String> {
    let mut maker = Maker::new();
    let problem = maker.given.subschema_for::<crate::api::Problem>();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::table() {
        let operation = operation(&route, &mut maker);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(route.verb.word().to_ascii_lowercase(), operation);
        }
    }
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Dispatch",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Hands tasks to coding agents. docs/http.md is the manual.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`dispatch token new`; on the person's own unix socket none is needed.",
                },
            },
            "headers": headers(),
            "responses": {
                "problem": {
                    "description": problems(),
                    "content": {"application/problem+json": {"schema": problem}},
                },
            },
            "schemas": maker.schemas()?,
        },
    }))
}

fn headers() -> Value {
    json!({
        SEQ.as_str(): {
            "description": "The position of the log that the answer is true at: follow /v1/events after it.",
            "schema": {"type": "integer", "minimum": 0},
        },
        NEXT.as_str(): {
            "description": "Where the next page or piece begins; without it there is none.",
            "schema": {"type": "string"},
        },
    })
}

fn problems() -> String {
    let mut text = "Refused or failed, by `code`:\n\n".to_owned();
    for code in Code::ALL {
        text.push_str(&format!(
            "* `{}` ({}): {}\n",
            code.word(),
            code.status(),
            code.means()
        ));
    }
    text
}

fn operation(route: &Route, maker: &mut Maker) -> Value {
    let mut out = Map::new();
    out.insert("summary".into(), route.summary.into());
    out.insert("operationId".into(), operation_id(route).into());
    out.insert("description".into(), who(route.access).into());
    if let Some(scope) = route.access.scope() {
        out.insert("security".into(), json!([{"token": [scope.word()]}]));
    }
    let mut parameters = path_parameters(route.path);
    if let Some(query) = route.sheet.query {
        parameters.extend(query_parameters(&query(&mut maker.asked), &maker.asked));
    }
    if route.verb == Verb::Post {
        parameters.push(json!({
            "name": KEY.as_str(),
            "in": "header",
            "description": "1 to 255 visible characters: the same request with it is done once.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        }));
    }
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    if let Some(body) = route.sheet.body {
        let schema = body(&mut maker.asked);
        let content = json!({"application/json": {"schema": schema}});
        out.insert("requestBody".into(), json!({"content": content}));
    }
    out.insert("responses".into(), responses(route, maker));
    Value::Object(out)
}

/// `GET /v1/tasks/{id}/runs/{n}/log` is `get_tasks_runs_log`.
fn operation_id(route: &Route) -> String {
    let parts = route
        .path
        .split('/')
        .filter(|part| !part.is_empty() && *part != "v1" && !part.starts_with('{'));
    let one = if route.path.ends_with('}') {
        "_one"
    } else {
        ""
    };
    let verb = route.verb.word().to_ascii_lowercase();
    let parts: Vec<&str> = std::iter::once(verb.as_str()).chain(parts).collect();
    format!("{}{one}", parts.join("_"))
}

fn who(access: Access) -> String {
    let scope = |scope: Scope| format!("Needs the scope `{}`.", scope.word());
    match access {
        Access::Needs(needed) => scope(needed),
        Access::AgentsToo(needed) => {
            format!(
                "{} Agents of live runs may, within their grant.",
                scope(needed)
            )
        }
        Access::Known => "Any token.".to_owned(),
    }
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        let (what, schema) = match name {
            "id" => (
                "The whole id of a task.",
                json!({"type": "string", "pattern": "^[0-9a-f]{16}$"}),
            ),
            _ => (
                "Its number within the task, from 1.",
                json!({"type": "integer", "minimum": 1}),
            ),
        };
        Some(json!({
            "name": name, "in": "path", "required": true, "description": what, "schema": schema,
        }))
    });
    names.collect()
}

/// The members of a query's type, one by one.
fn query_parameters(schema: &Schema, maker: &SchemaGenerator) -> Vec<Value> {
    let named = schema.get("$ref").and_then(Value::as_str);
    let named = named.and_then(|path| path.rsplit('/').next());
    let found = named.and_then(|name| maker.definitions().get(name));
    let members = found.and_then(|found| found.get("properties")?.as_object());
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let described = schema.as_object_mut().and_then(|schema| {
            // It is left out, and never null.
            schema.retain(|key, value| key != "default" || !value.is_null());
            if let Some(Value::Array(types)) = schema.get("type")
                && let [one, _] = &types[..]
            {
                let one = one.clone();
                schema.insert("type".into(), one);
            }
            schema.remove("description")
        });
        let mut out = json!({"name": name, "in": "query", "schema": schema});
        if let Some(text) = described {
            out["description"] = text;
        }
        out
    };
    members.into_iter().flatten().map(parameter).collect()
}

fn responses(route: &Route, maker: &mut Maker) -> Value {
    let (kind, status, schema) = route.sheet.answer.unwrap_or((Answer::Own, 200, None));
    let schema = schema.map(|make| make(&mut maker.given));
    let content = match kind {
        Answer::Json => json!({"application/json": {"schema": schema}}),
        Answer::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
        Answer::Bytes => json!({"application/octet-stream": {}}),
        Answer::Events => json!({"text/event-stream": {"schema": {"type": "string"}}}),
        Answer::Own => Value::Null,
    };
    let mut good = json!({"description": route.summary});
    if !content.is_null() {
        good["content"] = content;
    }
    if route.verb == Verb::Get && kind != Answer::Own {
        let pages = route.path == "/v1/tasks" || kind == Answer::Bytes;
        for name in [SEQ].into_iter().chain(pages.then_some(NEXT)) {
            let header = format!("#/components/headers/{name}");
            good["headers"][name.as_str()] = json!({"$ref": header});
        }
    }
    json!({
        status.to_string(): good,
        "default": {"$ref": "#/components/responses/problem"},
    })
}

/// For programs that make their client from it.
pub(crate) async fn openapi() -> Result<Json<Value>, Problem> {
    let document = document().map_err(|what| Problem::new(Code::Failed, what))?;
    Ok(Json(document))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CHECKED_IN: &str = include_str!("../../../../docs/openapi.json");

    /// Every `$ref` in a value.
    fn refs<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| refs(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }

    /// `DISPATCH_BLESS=1 cargo test -p dispatch openapi` writes it anew.
    #[test]
    fn the_document_that_is_checked_in_is_the_one_that_is_made() {
        let made = document().unwrap();
        let mut text = serde_json::to_string_pretty(&made).unwrap();
        text.push('\n');
        if std::env::var_os("DISPATCH_BLESS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
            std::fs::write(path, &text).unwrap();
            return;
        }
        for (line, (made, there)) in text.lines().zip(CHECKED_IN.lines()).enumerate() {
            assert_eq!(made, there, "docs/openapi.json, line {}", line + 1);
        }
        assert_eq!(text.len(), CHECKED_IN.len(), "docs/openapi.json");
    }

    /// As above, of the table in docs/http.md.
    #[test]
    fn the_manual_names_every_code() {
        const HEAD: &str = "| code | status | means |\n|---|---|---|\n";
        let manual = include_str!("../../../../docs/http.md");
        let row = |code: &Code| {
            let (word, status, means) = (code.word(), code.status(), code.means());
            format!("| `{word}` | {status} | {means} |\n")
        };
        let made: String = Code::ALL.iter().map(row).collect();
        let (before, rest) = manual.split_once(HEAD).unwrap();
        let (there, after) = rest.split_once("\n\n").unwrap();
        if std::env::var_os("DISPATCH_BLESS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http.md");
            std::fs::write(path, format!("{before}{HEAD}{made}\n{after}")).unwrap();
            return;
        }
        assert_eq!(format!("{there}\n"), made, "docs/http.md");
    }

    #[test]
    fn the_document_is_whole() {
        let made = document().unwrap();
        let mut found = BTreeSet::new();
        refs(&made, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for path in found {
            let target = made.pointer(path.strip_prefix('#').unwrap());
            assert!(target.is_some(), "{path}");
        }
        let mut ids = BTreeSet::new();
        for (path, operations) in made["paths"].as_object().unwrap() {
            for (verb, operation) in operations.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(
                    ids.insert(id.to_owned()),
                    "{id} of {verb} {path} comes twice"
                );
                let description = operation["description"].as_str().unwrap();
                assert!(!description.is_empty() && operation["responses"]["default"].is_object());
            }
        }
        assert_eq!(ids.len(), routes::table().len());
        // A field that is not known is refused, and the document says so.
        for name in ["Dispatch", "Say", "Answer", "Freeze", "Permit"] {
            let schema = &made["components"]["schemas"][name];
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
        let problems = made["components"]["responses"]["problem"]["description"].as_str();
        for code in Code::ALL {
            assert!(problems.unwrap().contains(&format!("`{}`", code.word())));
        }
    }
}
