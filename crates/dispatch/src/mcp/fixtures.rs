//! What the official conformance suite asks a server for and no product would have: rows beside the
//! product's own, for the same server code. The delays are the suite's.
//! Must not be in the product.
#![allow(
    deprecated,
    reason = "the suite asks for sampling, which the newer generation has no more"
)]

use std::{sync::Arc, time::Duration};

use axum::http::request::Parts;
use futures_util::future::BoxFuture;
use rmcp::{
    model::{
        AudioContent, CallToolResult, ClientResult, ContentBlock, CreateMessageRequest,
        CreateMessageRequestParams, ElicitRequest, ElicitRequestParams, EmbeddedResource,
        ImageContent, JsonObject, LoggingLevel, LoggingMessageNotificationParam, PromptMessage,
        Resource, ResourceContents, ResourceTemplate, Role, SamplingMessage, ServerRequest,
    },
    transport::streamable_http_server::session::local::LocalSessionManager,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    complete::Of,
    door::Refusal,
    prompts::{Argument, Given, PROMPTS, PromptRow},
    server::{PRODUCT, Tables},
    table::{Answer, Call, Effect, Row},
};

const DELAY: Duration = Duration::from_millis(50);
/// A red dot.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// A header, and no sound.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

pub(crate) const SUITE: &Tables = &Tables {
    tools: &[PRODUCT.tools[0], PRODUCT.tools[1], PRODUCT.tools[2], TOOLS],
    prompts: &[PROMPTS, ASKED],
    fixtures: &[
        Fixed {
            uri: "test://static-text",
            name: "static text",
            kind: "text/plain",
            text: Some("This is the content of the static text resource."),
        },
        Fixed {
            uri: "test://static-binary",
            name: "static binary",
            kind: "image/png",
            text: None,
        },
        Fixed {
            uri: WATCHED,
            name: "watched",
            kind: "text/plain",
            text: Some("It never changes."),
        },
    ],
};

const WATCHED: &str = "test://watched-resource";
const TEMPLATE: &str = "test://template/{id}/data";

/// A resource that is always the same.
pub(crate) struct Fixed {
    uri: &'static str,
    name: &'static str,
    kind: &'static str,
    /// Else an image.
    text: Option<&'static str>,
}

impl Fixed {
    fn contents(&self) -> ResourceContents {
        match self.text {
            Some(text) => ResourceContents::text(text, self.uri),
            None => ResourceContents::blob(PNG, self.uri),
        }
        .with_mime_type(self.kind)
    }
}

pub(crate) fn listed(tables: &Tables) -> Vec<Resource> {
    let resource = |fixed: &Fixed| {
        Resource::new(fixed.uri, fixed.name)
            .with_description("For the conformance suite")
            .with_mime_type(fixed.kind)
    };
    tables.fixtures.iter().map(resource).collect()
}

pub(crate) fn templates(tables: &Tables) -> Vec<ResourceTemplate> {
    let there = !tables.fixtures.is_empty();
    let template = ResourceTemplate::new(TEMPLATE, "template").with_mime_type("application/json");
    there.then_some(template).into_iter().collect()
}

pub(crate) fn read(tables: &Tables, uri: &str) -> Option<ResourceContents> {
    if let Some(fixed) = tables.fixtures.iter().find(|fixed| fixed.uri == uri) {
        return Some(fixed.contents());
    }
    let (before, behind) = TEMPLATE.split_once("{id}")?;
    let id = uri.strip_prefix(before)?.strip_suffix(behind)?;
    let text = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
    (!tables.fixtures.is_empty())
        .then(|| ResourceContents::text(text.to_string(), uri).with_mime_type("application/json"))
}

pub(crate) fn is_watched(tables: &Tables, uri: &str) -> bool {
    tables.fixtures.iter().any(|fixed| fixed.uri == uri)
}

const fn argument(name: &'static str) -> Argument {
    Argument {
        name,
        about: "Of the suite",
        required: true,
        of: Of::Nothing,
    }
}

const fn prompt(
    name: &'static str,
    arguments: &'static [Argument],
    make: fn(&Given<'_>) -> Vec<PromptMessage>,
) -> PromptRow {
    PromptRow {
        name,
        title: "Of the suite",
        about: "For the conformance suite",
        arguments,
        make,
    }
}

fn says(text: impl Into<String>) -> PromptMessage {
    PromptMessage::new_text(Role::User, text)
}

const ASKED: &[PromptRow] = &[
    prompt("test_simple_prompt", &[], |_| {
        vec![says("This is a simple prompt for testing.")]
    }),
    prompt(
        "test_prompt_with_arguments",
        &[argument("arg1"), argument("arg2")],
        |given| {
            let (one, two) = (given.get("arg1"), given.get("arg2"));
            vec![says(format!(
                "Prompt with arguments: arg1='{one}', arg2='{two}'"
            ))]
        },
    ),
    prompt(
        "test_prompt_with_embedded_resource",
        &[argument("resourceUri")],
        |given| {
            let contents = ResourceContents::text(
                "Embedded resource content for testing.",
                given.get("resourceUri"),
            );
            let block = ContentBlock::Resource(EmbeddedResource::new(contents));
            vec![
                PromptMessage::new(Role::User, block),
                says("Please process the embedded resource above."),
            ]
        },
    ),
    prompt("test_prompt_with_image", &[], |_| {
        let image = ContentBlock::Image(ImageContent::new(PNG, "image/png"));
        vec![
            PromptMessage::new(Role::User, image),
            says("Please analyze the image above."),
        ]
    }),
];

fn nothing() -> JsonObject {
    object(&json!({"type": "object", "properties": {}}))
}

fn object(value: &Value) -> JsonObject {
    value.as_object().unwrap().clone()
}

const fn tool(
    name: &'static str,
    call: for<'a> fn(&'a Call, JsonObject) -> BoxFuture<'a, Answer>,
) -> Row {
    Row {
        name,
        title: "Of the suite",
        about: "For the conformance suite",
        effect: Effect::Looks,
        input: nothing,
        output: None,
        call,
    }
}

fn gives(content: Vec<ContentBlock>) -> Answer {
    Ok(CallToolResult::success(content).into())
}

fn text(text: impl Into<String>) -> Answer {
    gives(vec![ContentBlock::text(text)])
}

fn image() -> ContentBlock {
    ContentBlock::Image(ImageContent::new(PNG, "image/png"))
}

fn resource(uri: &str, kind: &str, text: &str) -> ContentBlock {
    let contents = ResourceContents::text(text, uri).with_mime_type(kind);
    ContentBlock::Resource(EmbeddedResource::new(contents))
}

const TOOLS: &[Row] = &[
    tool("test_simple_text", |_, _| {
        Box::pin(async { text("This is a simple text response for testing.") })
    }),
    tool("test_image_content", |_, _| {
        Box::pin(async { gives(vec![image()]) })
    }),
    tool("test_audio_content", |_, _| {
        let audio = ContentBlock::Audio(AudioContent::new(WAV, "audio/wav"));
        Box::pin(async { gives(vec![audio]) })
    }),
    tool("test_embedded_resource", |_, _| {
        let told = "This is an embedded resource content.";
        let block = resource("test://embedded-resource", "text/plain", told);
        Box::pin(async { gives(vec![block]) })
    }),
    tool("test_multiple_content_types", |_, _| {
        let told = json!({"test": "data", "value": 123}).to_string();
        let block = resource("test://mixed-content-resource", "application/json", &told);
        let first = ContentBlock::text("Multiple content types test:");
        Box::pin(async { gives(vec![first, image(), block]) })
    }),
    tool("test_tool_with_logging", |call, _| Box::pin(logging(call))),
    tool("test_error_handling", |_, _| {
        Box::pin(async {
            let told = "This tool intentionally returns an error for testing";
            Ok(CallToolResult::error(vec![ContentBlock::text(told)]).into())
        })
    }),
    tool("test_tool_with_progress", |call, _| {
        Box::pin(progress(call))
    }),
    tool("test_reconnection", |call, _| Box::pin(reconnection(call))),
    Row {
        input: || {
            object(&json!({
                "type": "object", "required": ["prompt"],
                "properties": {"prompt": {"type": "string"}},
            }))
        },
        ..tool("test_sampling", |call, given| {
            Box::pin(sampling(call, given))
        })
    },
    Row {
        input: || {
            object(&json!({
                "type": "object", "required": ["message"],
                "properties": {"message": {"type": "string"}},
            }))
        },
        ..tool("test_elicitation", |call, given| {
            let message = given["message"].as_str().unwrap_or_default().to_owned();
            Box::pin(elicit(
                call,
                "User response",
                message,
                json!({
                    "type": "object", "required": ["username", "email"],
                    "properties": {
                        "username": {"type": "string", "description": "User's response"},
                        "email": {"type": "string", "description": "User's email address"},
                    },
                }),
            ))
        })
    },
    tool("test_elicitation_sep1034_defaults", |call, _| {
        Box::pin(elicit(
            call,
            "Elicitation completed",
            "Defaults".into(),
            json!({
                "type": "object", "required": [],
                "properties": {
                    "name": {"type": "string", "default": "John Doe"},
                    "age": {"type": "integer", "default": 30},
                    "score": {"type": "number", "default": 95.5},
                    "status": {
                        "type": "string", "enum": ["active", "inactive", "pending"],
                        "default": "active",
                    },
                    "verified": {"type": "boolean", "default": true},
                },
            }),
        ))
    }),
    tool("test_elicitation_sep1330_enums", |call, _| {
        Box::pin(elicit(
            call,
            "Elicitation completed",
            "Enums".into(),
            enums(),
        ))
    }),
    Row {
        input: || {
            object(&json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "$defs": {"address": {
                    "type": "object",
                    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                }},
                "properties": {
                    "name": {"type": "string"},
                    "address": {"$ref": "#/$defs/address"},
                },
                "additionalProperties": false,
            }))
        },
        ..tool("json_schema_2020_12_tool", |_, _| {
            Box::pin(async { text("ok") })
        })
    },
];

fn enums() -> Value {
    let titled = |names: [(&str, &str); 3]| {
        names.map(|(value, title)| json!({"const": value, "title": title}))
    };
    let options = [
        ("value1", "First Option"),
        ("value2", "Second Option"),
        ("value3", "Third Option"),
    ];
    let choices = [
        ("value1", "First Choice"),
        ("value2", "Second Choice"),
        ("value3", "Third Choice"),
    ];
    json!({
        "type": "object", "required": [],
        "properties": {
            "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
            "titledSingle": {"type": "string", "oneOf": titled(options)},
            "legacyEnum": {
                "type": "string", "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"],
            },
            "untitledMulti": {
                "type": "array",
                "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
            },
            "titledMulti": {"type": "array", "items": {"anyOf": titled(choices)}},
        },
    })
}

async fn logging(call: &Call) -> Answer {
    for told in [
        "Tool execution started",
        "Tool processing data",
        "Tool execution completed",
    ] {
        let param = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(told));
        call.context
            .peer
            .notify_logging_message(param)
            .await
            .unwrap();
        sleep(DELAY).await;
    }
    text("It was logged.")
}

async fn progress(call: &Call) -> Answer {
    for done in [0, 50, 100] {
        call.progress(done, Some(100), format!("{done} of 100"))
            .await;
        sleep(DELAY).await;
    }
    text("It came on.")
}

/// The stream of this very call is closed in the middle of it; the client comes back for the rest.
async fn reconnection(call: &Call) -> Answer {
    const REQUESTS: u64 = 16;
    let parts = call.context.extensions.get::<Parts>().unwrap();
    let sessions: &Arc<LocalSessionManager> = parts.extensions.get().unwrap();
    let name = parts.headers["mcp-session-id"].to_str().unwrap();
    let session = sessions.sessions.read().await.get(name).cloned().unwrap();
    for request in 0..REQUESTS {
        // Which of them is ours is not told; the others are over.
        drop(session.close_sse_stream(request, Some(DELAY)).await);
    }
    sleep(DELAY).await;
    text("Reconnection test completed")
}

async fn sampling(call: &Call, given: JsonObject) -> Answer {
    let prompt = given["prompt"].as_str().unwrap_or_default();
    let message = SamplingMessage::user_text(prompt);
    let params = CreateMessageRequestParams::new(vec![message], 100);
    let request = ServerRequest::CreateMessageRequest(CreateMessageRequest::new(params));
    match call.context.peer.send_request(request).await {
        Ok(ClientResult::CreateMessageResult(result)) => {
            let said = result
                .message
                .content
                .first()
                .and_then(|said| said.as_text());
            let said = said.map(|said| said.text.clone()).unwrap_or_default();
            text(format!("LLM response: {said}"))
        }
        other => Err(Refusal::new(format!("sample: {other:?}"))),
    }
}

async fn elicit(call: &Call, says: &str, message: String, schema: Value) -> Answer {
    let params = ElicitRequestParams::FormElicitationParams {
        meta: None,
        message,
        requested_schema: serde_json::from_value(schema).unwrap(),
    };
    let request = ServerRequest::ElicitRequest(ElicitRequest::new(params));
    match call.context.peer.send_request(request).await {
        Ok(ClientResult::ElicitResult(result)) => {
            let action = serde_json::to_value(&result.action).unwrap();
            let content = result.content.unwrap_or_default();
            text(format!(
                "{says}: action={}, content={content}",
                action.as_str().unwrap()
            ))
        }
        other => Err(Refusal::new(format!("elicit: {other:?}"))),
    }
}
