//! The server as rmcp sees it: each request of the protocol, answered from the tables.
//! Must not hold what a tool does, and must not keep anything that another process would need.

use std::sync::LazyLock;

use axum::{Router, http::request::Parts};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ContentBlock,
        ErrorCode, Extensions, GetTaskParams, GetTaskResult, Implementation, InputResponses,
        JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig,
        TASKS_EXTENSION_ID, Tool, UpdateTaskParams,
    },
    service::RequestContext,
};

use super::{
    door::{Door, Refusal},
    needs, own,
    table::{Call, Row},
    tasks,
};
use crate::{
    api::{request, task::Task},
    http::caller::Caller,
};

const INSTRUCTIONS: &str = "\
Dispatch hands tasks to coding agents that work by themselves, each in a checkout of its own. \
`dispatch` returns at once with a task's handle; `wait` tells its end. A task that is `blocked` asks \
something: `answer` goes on with it. Its result is a branch that a person brings in with \
`dispatch apply ID`; the resource dispatch://tasks/ID/diff shows it.";

/// Every tool, in the order in which they are listed.
fn rows() -> impl Iterator<Item = &'static Row> {
    own::TOOLS.iter()
}

static TOOLS: LazyLock<Vec<Tool>> = LazyLock::new(|| rows().map(Row::tool).collect());

/// Whose the requests of a connection are.
#[derive(Clone, Debug)]
enum Whose {
    /// All of one.
    One(Door),
    /// Each says it itself; these are the routes for it.
    Callers(Router),
}

/// One connection, or one request where there are no connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Mcp {
    whose: Whose,
}

impl Mcp {
    pub(crate) fn new(door: Door) -> Self {
        let whose = Whose::One(door);
        Self { whose }
    }

    pub(crate) fn of_callers(routes: Router) -> Self {
        let whose = Whose::Callers(routes);
        Self { whose }
    }

    /// The engine as whoever sent this may reach it.
    fn door(&self, extensions: &Extensions) -> Result<Door, ErrorData> {
        match &self.whose {
            Whose::One(door) => Ok(door.clone()),
            Whose::Callers(routes) => {
                let parts = extensions.get::<Parts>();
                let caller = parts.and_then(|parts| parts.extensions.get::<Caller>());
                let caller = caller.cloned().ok_or_else(|| {
                    let what = "do that: nobody has said whose request it is";
                    ErrorData::internal_error(what, None)
                })?;
                Ok(Door::inside(routes.clone(), caller))
            }
        }
    }

    fn call(&self, context: RequestContext<RoleServer>) -> Result<Call, ErrorData> {
        Ok(Call {
            door: self.door(&context.extensions)?,
            context,
            entered: InputResponses::default(),
        })
    }

    async fn task(&self, call: &Call, id: &str) -> Result<Task, ErrorData> {
        let whole = id.parse::<dispatch_core::id::TaskId>();
        let whole = whole.map_err(|error| ErrorData::invalid_params(error.to_string(), None))?;
        let found = call.door.get(&format!("/v1/tasks/{whole}")).await;
        found.map_err(protocol)
    }
}

/// For requests that have no room for a refusal of ours.
fn protocol(refusal: Refusal) -> ErrorData {
    let code = match refusal.code.as_deref() {
        Some("no_such_task" | "bad_input") => ErrorCode::INVALID_PARAMS,
        Some(_) | None => ErrorCode::INTERNAL_ERROR,
    };
    let data = refusal
        .code
        .as_ref()
        .map(|code| serde_json::json!({"code": code}));
    ErrorData::new(code, refusal.to_string(), data)
}

/// The model reads it and can do better.
fn refused(refusal: &Refusal) -> CallToolResponse {
    CallToolResult::error(vec![ContentBlock::text(refusal.to_string())]).into()
}

impl ServerHandler for Mcp {
    fn get_info(&self) -> ServerConfig {
        let mut can = ServerCapabilities::default();
        can.tools = Some(Default::default());
        let tasks = (TASKS_EXTENSION_ID.to_owned(), JsonObject::new());
        can.extensions = Some([tasks].into());
        let us = Implementation::new("dispatch", env!("CARGO_PKG_VERSION")).with_title("Dispatch");
        ServerConfig::new(can)
            .with_server_info(us)
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(TOOLS.clone()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        TOOLS.iter().find(|tool| tool.name == name).cloned()
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let row = rows().find(|row| row.name == request.name).ok_or_else(|| {
            let what = format!("call tool {}: there is none", request.name);
            ErrorData::invalid_params(what, None)
        })?;
        let gone = context.ct.clone();
        let mut call = self.call(context)?;
        call.entered = request.input_responses.unwrap_or_default();
        let arguments = request.arguments.unwrap_or_default();
        tokio::select! {
            answer = (row.call)(&call, arguments) => {
                Ok(answer.unwrap_or_else(|refusal| refused(&refusal)))
            }
            // Nobody reads the answer; what was asked of the engine is done all the same.
            () = gone.cancelled() => Ok(refused(&Refusal::new("go on: the call was cancelled"))),
        }
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let call = self.call(context)?;
        let task = self.task(&call, &request.task_id).await?;
        Ok(GetTaskResult::new(
            tasks::detailed(&task).map_err(protocol)?,
        ))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let call = self.call(context)?;
        let task = self.task(&call, &request.task_id).await?;
        let entered = needs::enter(&call, &task, &request.input_responses).await;
        entered.map(drop).map_err(protocol)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let call = self.call(context)?;
        let task = self.task(&call, &request.task_id).await?;
        if !task.is_open() {
            return Ok(());
        }
        let path = format!("/v1/tasks/{}/stop", task.id);
        let stopped: Result<Task, Refusal> = call.door.post(&path, &request::Stop::default()).await;
        stopped.map(drop).map_err(protocol)
    }
}
