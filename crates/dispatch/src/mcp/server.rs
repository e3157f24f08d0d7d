//! The server as rmcp sees it: each request of the protocol, answered from the tables.
//! Must not hold what a tool does, and must not keep anything that another process would need.
#![allow(
    deprecated,
    reason = "the older generation subscribes to resources and sets the level of logging so"
)]

use std::time::Duration;

use axum::{Router, http::request::Parts};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams,
        CompleteRequestParams, CompleteResult, ContentBlock, ErrorCode, Extensions,
        GetPromptRequestParams, GetPromptResponse, GetTaskParams, GetTaskResult, Implementation,
        InitializeRequestParams, InitializeResult, InputResponses, JsonObject, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams,
        PromptsCapability, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
        Reference, ResourcesCapability, ServerCapabilities, ServerConfig, SetLevelRequestParams,
        SubscribeRequestParams, SubscriptionFilter, TASKS_EXTENSION_ID, Tool, ToolsCapability,
        UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    agentic,
    complete::{self, Of},
    door::{Door, Refusal},
    family, letters, needs,
    notify::{self, Ear, Notifier, SUBSCRIPTIONS_MAX},
    own,
    prompts::{PROMPTS, PromptRow},
    resources::{self, Address},
    table::{Call, Row},
    tasks,
};
use crate::{
    api::{request, task::Task},
    http::caller::Caller,
};

/// Claude's channel: what it is declared as.
const CHANNEL: &str = "claude/channel";
/// A request that only looks is answered by then; a tool has bounds of its own.
const LOOK_MAX: Duration = Duration::from_secs(60);

const INSTRUCTIONS: &str = "\
Dispatch hands tasks to coding agents that work by themselves, each in a checkout of its own. \
`dispatch` returns at once with a task's handle; `wait` tells its end. A task that is `blocked` asks \
something: `answer` goes on with it. Its result is a branch that a person brings in with \
`dispatch apply ID`; the resource dispatch://tasks/ID/diff shows it.";

/// Everything that is served, by name. There is one for the product; tests add what a suite asks for.
pub(crate) struct Tables {
    pub(crate) tools: &'static [&'static [Row]],
    pub(crate) prompts: &'static [&'static [PromptRow]],
    /// Resources of tests.
    #[cfg(test)]
    pub(crate) fixtures: &'static [super::fixtures::Fixed],
}

pub(crate) const PRODUCT: &Tables = &Tables {
    tools: &[own::TOOLS, agentic::TOOLS, letters::TOOLS],
    prompts: &[PROMPTS],
    #[cfg(test)]
    fixtures: &[],
};

impl Tables {
    pub(crate) fn tools(&self) -> impl Iterator<Item = &'static Row> {
        self.tools.iter().flat_map(|rows| rows.iter())
    }

    pub(crate) fn prompts(&self) -> impl Iterator<Item = &'static PromptRow> {
        self.prompts.iter().flat_map(|rows| rows.iter())
    }
}

/// Whose the requests of a connection are.
#[derive(Clone, Debug)]
enum Whose {
    /// All of one.
    One(Door),
    /// Each says it itself; these are the routes for it.
    Callers(Router),
}

/// One connection, or one request where there are no connections.
#[derive(Clone)]
pub(crate) struct Mcp {
    whose: Whose,
    tables: &'static Tables,
    notifier: Notifier,
    /// Whether Claude's channel is spoken to clients that did not ask for it.
    channel: bool,
}

impl Mcp {
    pub(crate) fn new(door: Door) -> Self {
        Self::of(Whose::One(door), PRODUCT)
    }

    pub(crate) fn of_callers(routes: Router, tables: &'static Tables) -> Self {
        Self::of(Whose::Callers(routes), tables)
    }

    fn of(whose: Whose, tables: &'static Tables) -> Self {
        Self {
            whose,
            tables,
            notifier: Notifier::default(),
            channel: false,
        }
    }

    #[must_use]
    pub(crate) fn with_channel(self) -> Self {
        Self {
            channel: true,
            ..self
        }
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
        look(call.door.get(&format!("/v1/tasks/{whole}"))).await
    }

    fn row(&self, name: &str) -> Option<&'static Row> {
        self.tables.tools().find(|row| row.name == name)
    }

    fn address(&self, uri: &str) -> Result<Address, ErrorData> {
        Address::of(uri).ok_or_else(|| {
            let what = format!("find resource {uri}: there is none");
            ErrorData::resource_not_found(what, Some(json!({"uri": uri})))
        })
    }
}

/// For requests that have no room for a refusal of ours.
fn protocol(refusal: &Refusal) -> ErrorData {
    let code = match refusal.code.as_deref() {
        Some("no_such_task" | "no_such_run") => ErrorCode::RESOURCE_NOT_FOUND,
        Some("bad_input" | "nothing_to_do" | "wrong_state") => ErrorCode::INVALID_PARAMS,
        Some(_) | None => ErrorCode::INTERNAL_ERROR,
    };
    let data = refusal.code.as_ref().map(|code| json!({"code": code}));
    ErrorData::new(code, refusal.to_string(), data)
}

/// The model reads it and can do better.
fn refused(refusal: &Refusal) -> CallToolResponse {
    CallToolResult::error(vec![ContentBlock::text(refusal.to_string())]).into()
}

async fn look<T>(looking: impl Future<Output = Result<T, Refusal>>) -> Result<T, ErrorData> {
    match timeout(LOOK_MAX, looking).await {
        Ok(found) => found.map_err(|refusal| protocol(&refusal)),
        Err(_) => {
            let what = format!(
                "answer within {} s: the engine is silent",
                LOOK_MAX.as_secs()
            );
            Err(ErrorData::internal_error(what, None))
        }
    }
}

impl ServerHandler for Mcp {
    fn get_info(&self) -> ServerConfig {
        let mut can = ServerCapabilities::default();
        can.tools = Some(ToolsCapability::default());
        let mut prompts = PromptsCapability::default();
        prompts.list_changed = Some(false);
        can.prompts = Some(prompts);
        let mut resources = ResourcesCapability::default();
        (resources.subscribe, resources.list_changed) = (Some(true), Some(true));
        can.resources = Some(resources);
        can.completions = Some(JsonObject::new());
        can.logging = Some(JsonObject::new());
        let tasks = (TASKS_EXTENSION_ID.to_owned(), JsonObject::new());
        can.extensions = Some([tasks].into());
        can.experimental = Some([(CHANNEL.to_owned(), JsonObject::new())].into());
        let us = Implementation::new("dispatch", env!("CARGO_PKG_VERSION")).with_title("Dispatch");
        ServerConfig::new(can)
            .with_server_info(us)
            .with_instructions(INSTRUCTIONS)
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        let asked = request.capabilities.experimental.as_ref();
        if self.channel || asked.is_some_and(|asked| asked.contains_key(CHANNEL)) {
            self.notifier.channel();
        }
        context.peer.set_peer_info(request.clone());
        self.negotiate_initialize(&request)
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        // Who cannot be found out is told nothing.
        if let (true, Ok(door)) = (self.notifier.has_channel(), self.door(&context.extensions)) {
            match self.notifier.follow(door, context.peer).await {
                // Neither is who may not hear of it: this was no request.
                Ok(()) | Err(_) => {}
            }
        }
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.notifier.level(request.level);
        let door = self.door(&context.extensions)?;
        let followed = self.notifier.follow(door, context.peer).await;
        followed.map_err(|refusal| protocol(&refusal))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let door = self.door(&context.extensions)?;
        let shown = look(family::shown(&door, self.tables.tools())).await?;
        let tools = shown.into_iter().map(Row::tool).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.row(name).map(Row::tool)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let row = self.row(&request.name).ok_or_else(|| {
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

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let door = self.door(&context.extensions)?;
        #[allow(unused_mut, reason = "tests add theirs")]
        let mut listed = look(resources::listed(&door)).await?;
        #[cfg(test)]
        listed.extend(super::fixtures::listed(self.tables));
        Ok(ListResourcesResult::with_all_items(listed))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        #[allow(unused_mut, reason = "tests add theirs")]
        let mut templates = resources::templates();
        #[cfg(test)]
        templates.extend(super::fixtures::templates(self.tables));
        Ok(ListResourceTemplatesResult::with_all_items(templates))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        #[cfg(test)]
        if let Some(found) = super::fixtures::read(self.tables, &request.uri) {
            return Ok(ReadResourceResult::new(vec![found]).into());
        }
        let address = self.address(&request.uri)?;
        let door = self.door(&context.extensions)?;
        let found = look(resources::read(&door, &request.uri, &address)).await?;
        Ok(ReadResourceResult::new(vec![found]).into())
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        #[cfg(test)]
        if super::fixtures::is_watched(self.tables, &request.uri) {
            return Ok(());
        }
        self.address(&request.uri)?;
        let subscribed = self.notifier.subscribe(&request.uri);
        subscribed.map_err(|what| ErrorData::invalid_params(what, None))?;
        let door = self.door(&context.extensions)?;
        let followed = self.notifier.follow(door, context.peer).await;
        followed.map_err(|refusal| {
            self.notifier.unsubscribe(&request.uri);
            protocol(&refusal)
        })
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.notifier.unsubscribe(&request.uri);
        Ok(())
    }

    /// What is not ours, and what is more than one may have, is left out, as the client can see.
    fn accepted_subscription_filter(
        &self,
        asked: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        let mut accepted = SubscriptionFilter::new();
        accepted.resources_list_changed = asked.resources_list_changed;
        accepted.resource_subscriptions = asked.resource_subscriptions.as_ref().map(|uris| {
            let ours = uris.iter().filter(|uri| Address::of(uri).is_some());
            ours.take(SUBSCRIPTIONS_MAX).cloned().collect()
        });
        Some(accepted)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let door = self.door(&context.request_context().extensions)?;
        let begun = door.begin().await.map_err(|refusal| protocol(&refusal))?;
        let ear = Ear::Listening(context.sink().clone());
        tokio::select! {
            () = notify::follow(&door, &ear, begun) => {}
            () = context.cancelled() => {}
        }
        Ok(())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let prompts = self.tables.prompts().map(PromptRow::prompt).collect();
        Ok(ListPromptsResult::with_all_items(prompts))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let wrong = |what: String| ErrorData::invalid_params(format!("get a prompt: {what}"), None);
        let mut prompts = self.tables.prompts();
        let row = prompts.find(|row| row.name == request.name);
        let row = row.ok_or_else(|| wrong(format!("there is none called {}", request.name)))?;
        let made = row.get(request.arguments.as_ref()).map_err(wrong)?;
        Ok(made.into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let argument = &request.argument;
        let of = match &request.r#ref {
            Reference::Prompt(prompt) => {
                let row = self.tables.prompts().find(|row| row.name == prompt.name);
                let arguments = row.into_iter().flat_map(|row| row.arguments);
                let mut named = arguments.filter(|known| known.name == argument.name);
                named.next().map(|known| known.of)
            }
            // Our templates have one variable.
            Reference::Resource(template) => {
                let ours = resources::templates();
                let known = ours.iter().any(|known| known.uri_template == template.uri);
                (known && argument.name == "id").then_some(Of::Tasks)
            }
            _ => None,
        };
        let door = self.door(&context.extensions)?;
        look(complete::complete(
            &door,
            of.unwrap_or(Of::Nothing),
            &argument.value,
        ))
        .await
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        let call = self.call(context)?;
        let task = self.task(&call, &request.task_id).await?;
        Ok(GetTaskResult::new(
            tasks::detailed(&task).map_err(|refusal| protocol(&refusal))?,
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
        entered.map(drop).map_err(|refusal| protocol(&refusal))
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
        let asked = request::Stop::default();
        let stopped: Result<Task, Refusal> = call.door.post(&path, &asked).await;
        stopped.map(drop).map_err(|refusal| protocol(&refusal))
    }
}
