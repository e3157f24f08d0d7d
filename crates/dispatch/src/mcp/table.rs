//! The table of tools: each has a name, words for the model, the shape of what it takes and gives, and
//! the function that does it. Whoever lists tools and whoever calls one read the same row.
//! Must not hold what a tool does; those are the files beside.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use rmcp::{
    RoleServer,
    model::{
        CallToolResponse, CallToolResult, CreateTaskResult, InputRequiredResult, InputResponses,
        JsonObject, ProgressNotificationParam, Tool, ToolAnnotations,
    },
    service::RequestContext,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::door::{Door, Refusal};

/// What calling a tool may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Looks,
    /// Something is added.
    Adds,
    /// Something goes on or ends otherwise than it would.
    Changes,
    /// Work that goes on is ended.
    Ends,
}

impl Effect {
    fn hints(self) -> ToolAnnotations {
        let hints = ToolAnnotations::new().read_only(self == Self::Looks);
        let hints = hints.destructive(self == Self::Ends);
        let idempotent = matches!(self, Self::Looks | Self::Ends);
        // An agent may reach whatever its placement lets it.
        hints
            .idempotent(idempotent)
            .open_world(matches!(self, Self::Adds | Self::Changes))
    }
}

/// One call: how to reach the engine for whoever calls, and what else came with it.
pub(crate) struct Call {
    pub(crate) door: Door,
    pub(crate) context: RequestContext<RoleServer>,
    /// What somebody has entered since the call was made for the first time.
    pub(crate) entered: InputResponses,
}

impl Call {
    /// Where the client has asked for it; it may also be gone.
    pub(crate) async fn progress(&self, done: usize, of: Option<usize>, message: String) {
        let Some(token) = self.context.meta.get_progress_token() else {
            return;
        };
        let mut told = ProgressNotificationParam::new(token, done as f64).with_message(message);
        told.total = of.map(|of| of as f64);
        match self.context.peer.notify_progress(told).await {
            Ok(()) | Err(_) => {}
        }
    }
}

pub(crate) type Answer = Result<CallToolResponse, Refusal>;

type Doing = for<'a> fn(&'a Call, JsonObject) -> BoxFuture<'a, Answer>;

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    pub(crate) effect: Effect,
    pub(crate) input: fn() -> JsonObject,
    pub(crate) output: Option<fn() -> JsonObject>,
    pub(crate) call: Doing,
}

impl Row {
    pub(crate) fn tool(&self) -> Tool {
        let tool = Tool::new(self.name, self.about, Arc::new((self.input)()));
        let tool = tool.with_title(self.title).annotate(self.effect.hints());
        match self.output {
            Some(output) => tool.with_raw_output_schema(Arc::new(output())),
            None => tool,
        }
    }
}

/// What a tool came to.
pub(crate) enum Reply<T> {
    Done(T),
    /// The client asks about it by the name of the task.
    Task(CreateTaskResult),
    /// Somebody has to enter something first.
    Needs(InputRequiredResult),
}

impl<T> From<T> for Reply<T> {
    fn from(value: T) -> Self {
        Self::Done(value)
    }
}

/// What is given, as data and as text for clients that read only that.
pub(crate) fn told<T: Serialize>(reply: Reply<T>) -> Answer {
    Ok(match reply {
        Reply::Done(value) => {
            let value = serde_json::to_value(value)
                .map_err(|error| Refusal::new(format!("write the answer: {error}")))?;
            CallToolResult::structured(value).into()
        }
        Reply::Task(task) => task.into(),
        Reply::Needs(input) => input.into(),
    })
}

/// What came, as a tool takes it; an error names what does not fit.
pub(crate) fn read<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Refusal> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| Refusal::new(format!("read the arguments: {error}")))
}

/// A row whose function takes one type and gives another.
macro_rules! row {
    ($name:literal, $title:literal, $effect:ident, $call:path: $input:ty => $output:ty, $about:expr) => {
        $crate::mcp::table::Row {
            name: $name,
            title: $title,
            about: $about,
            effect: $crate::mcp::table::Effect::$effect,
            input: $crate::mcp::schema::input::<$input>,
            output: Some($crate::mcp::schema::output::<$output>),
            call: |call, arguments| {
                Box::pin(async move {
                    let input: $input = $crate::mcp::table::read(arguments)?;
                    let reply: $crate::mcp::table::Reply<$output> = $call(call, input).await?;
                    $crate::mcp::table::told(reply)
                })
            },
        }
    };
}
pub(crate) use row;
