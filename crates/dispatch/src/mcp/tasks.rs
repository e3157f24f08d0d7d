//! A task of ours as a task of MCP (SEP-2663): the same id, the same state, nothing kept beside. So it
//! is durable over restarts, and what one client dispatched another may look after.
//! Must not remember a task, and must not end one that a client forgets.

use rmcp::{
    RoleServer,
    model::{
        CallToolResult, CreateTaskResult, DetailedTask, ErrorCode, JsonObject, ProtocolVersion,
        Task as McpTask, TaskPayload, TaskStatus,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::{door::Refusal, needs};
use crate::api::{mcp::Handle, task::Task};

/// How often a client is asked to look.
const POLL_MS: u64 = 2_000;

/// Whether this client knows tasks of MCP; one that does not could not read them. Clients of both
/// generations say that they do in the older one too, and then take no task for an answer.
pub(crate) fn spoken(context: &RequestContext<RoleServer>) -> bool {
    let version = context.protocol_version();
    let modern = version.is_some_and(|version| version >= ProtocolVersion::NO_INITIALIZE);
    let capabilities = context.client_capabilities();
    modern && capabilities.is_some_and(|capabilities| capabilities.supports_tasks())
}

pub(crate) fn created(task: &Task) -> CreateTaskResult {
    CreateTaskResult::new(seed(task))
}

fn status(task: &Task) -> TaskStatus {
    match task.state.as_str() {
        "completed" => TaskStatus::Completed,
        "stopped" => TaskStatus::Cancelled,
        "failed" | "lost" => TaskStatus::Failed,
        // An agent that waits for a permission does not go on either.
        _ if !needs::of(task).is_empty() => TaskStatus::InputRequired,
        _ => TaskStatus::Working,
    }
}

fn seed(task: &Task) -> McpTask {
    let made = McpTask::new(&task.id, status(task), &task.created_at, changed_at(task));
    let made = made.with_poll_interval_ms(POLL_MS);
    let reason = task.reason.as_deref().unwrap_or(&task.state);
    made.with_status_message(reason)
}

/// Times have one length, so they sort as text.
fn changed_at(task: &Task) -> &str {
    let runs = task.runs.iter();
    let runs = runs.flat_map(|run| [run.started_at.as_deref(), run.ended_at.as_deref()]);
    let said = task.messages.iter().map(|message| message.at.as_str());
    let asked = task.asks.iter().map(|ask| ask.at.as_str());
    let all = runs.flatten().chain(said).chain(asked);
    all.fold(
        &task.created_at,
        |last, at| if at > last { at } else { last },
    )
}

pub(crate) fn detailed(task: &Task) -> Result<DetailedTask, Refusal> {
    let payload = match status(task) {
        TaskStatus::InputRequired => TaskPayload::InputRequired {
            input_requests: needs::requests([task])?,
        },
        TaskStatus::Completed => TaskPayload::Completed {
            result: result(task)?,
        },
        TaskStatus::Failed => TaskPayload::Failed {
            error: error(task)?,
        },
        TaskStatus::Cancelled => TaskPayload::Cancelled,
        _ => TaskPayload::Working,
    };
    Ok(DetailedTask::new(seed(task), payload))
}

/// What the tool that made it would have answered, had it waited.
fn result(task: &Task) -> Result<JsonObject, Refusal> {
    let handle = object(&Handle::from(task))?;
    object(&CallToolResult::structured(Value::Object(handle)))
}

fn error(task: &Task) -> Result<JsonObject, Refusal> {
    let reason = task.reason.as_deref().unwrap_or("no reason is known");
    object(&json!({
        "code": ErrorCode::INTERNAL_ERROR.0,
        "message": format!("task {} {}: {reason}", task.short, task.state),
        "data": Handle::from(task),
    }))
}

fn object(value: &impl serde::Serialize) -> Result<JsonObject, Refusal> {
    match serde_json::to_value(value) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::new("write a task: it is no object")),
        Err(error) => Err(Refusal::new(format!("write a task: {error}"))),
    }
}
