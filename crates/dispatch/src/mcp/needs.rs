//! What a task needs from somebody, in the form in which MCP asks people: the question of a blocked
//! task, and permissions that its agent waits for.
//! Must not answer in anybody's place: declining leaves all as it is.

use rmcp::{
    RoleServer,
    model::{
        ClientResult, ElicitRequest, ElicitRequestParams, ElicitResult, ElicitationAction,
        ElicitationSchema, InputRequest, InputRequests, ProtocolVersion, ServerRequest,
    },
    service::{PeerRequestOptions, RequestContext, RequestHandle},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{door::Refusal, own, table::Call};
use crate::api::task::Task;

/// How this client lets somebody be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// Not at all: the model hears of it and has the tool `answer`.
    Never,
    /// By a request of ours while its call goes on (2025-11-25 and before).
    Request,
    /// By an answer to its call that says what is needed (2026-07-28 and later).
    Result,
}

impl Asking {
    pub(crate) fn of(context: &RequestContext<RoleServer>) -> Self {
        let capabilities = context.client_capabilities();
        let form = capabilities
            .and_then(|capabilities| capabilities.elicitation)
            .is_some_and(|can| can.form.is_some() || can.url.is_none());
        let modern = context
            .protocol_version()
            .is_some_and(|version| version >= ProtocolVersion::NO_INITIALIZE);
        match (form, modern) {
            (false, _) => Self::Never,
            (true, false) => Self::Request,
            (true, true) => Self::Result,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Of the run that ended with it.
    Question { run: u32, text: String },
    Permission {
        ask: u32,
        tool: String,
        input: String,
    },
}

/// What is entered for a question.
#[derive(Deserialize)]
struct Answered {
    answer: String,
}

/// What is entered for a permission.
#[derive(Deserialize)]
struct Permitted {
    allow: bool,
    #[serde(default)]
    why: Option<String>,
}

/// Everything that it needs now.
pub(crate) fn of(task: &Task) -> Vec<Need> {
    let question = task.question.as_ref().filter(|_| task.state == "blocked");
    let question = question.map(|text| Need::Question {
        run: task.runs.last().map_or(0, |run| run.n),
        text: text.clone(),
    });
    let asks = task.open_asks().map(|ask| Need::Permission {
        ask: ask.id,
        tool: ask.tool.clone(),
        input: ask.input.clone(),
    });
    question.into_iter().chain(asks).collect()
}

impl Need {
    /// Its name over restarts and for every client: what it is of, and which one.
    pub(crate) fn key(&self, task: &Task) -> String {
        match self {
            Self::Question { run, .. } => format!("{}.question.{run}", task.id),
            Self::Permission { ask, .. } => format!("{}.ask.{ask}", task.id),
        }
    }

    fn form(&self, task: &Task) -> Result<ElicitRequestParams, Refusal> {
        let (short, title) = (&task.short, &task.title);
        let (message, schema) = match self {
            Self::Question { text, .. } => (
                format!("Task {short} ({title}) asks:\n\n{text}"),
                json!({
                    "type": "object", "required": ["answer"],
                    "properties": {"answer": {
                        "type": "string", "title": "Answer",
                        "description": "What the agent is told before it goes on.",
                    }},
                }),
            ),
            Self::Permission { tool, input, .. } => (
                format!(
                    "The agent of task {short} ({title}) asks permission for {tool}:\n\n{input}"
                ),
                json!({
                    "type": "object", "required": ["allow"],
                    "properties": {
                        "allow": {"type": "boolean", "title": "Allow it, this once"},
                        "why": {"type": "string", "title": "Why not",
                            "description": "Told to the agent where its protocol has room for it."},
                    },
                }),
            ),
        };
        let requested_schema: ElicitationSchema = serde_json::from_value(schema)
            .map_err(|error| Refusal::new(format!("make a form: {error}")))?;
        Ok(ElicitRequestParams::FormElicitationParams {
            meta: None,
            message,
            requested_schema,
        })
    }

    /// Does what was entered. `None`: nothing was, or nothing that fits.
    pub(crate) async fn meet(
        &self,
        call: &Call,
        task: &Task,
        entered: &ElicitResult,
    ) -> Result<Option<Task>, Refusal> {
        if entered.action != ElicitationAction::Accept {
            return Ok(None);
        }
        let content = entered.content.clone().unwrap_or(Value::Null);
        let wrong = |error| Refusal::new(format!("read what was entered: {error}"));
        let met = match self {
            Self::Question { .. } => {
                let Answered { answer } = serde_json::from_value(content).map_err(wrong)?;
                own::give_answer(call, task, answer).await
            }
            Self::Permission { ask, .. } => {
                let Permitted { allow, why } = serde_json::from_value(content).map_err(wrong)?;
                let why = why.filter(|why| !allow && !why.trim().is_empty());
                own::permit(call, task, Some(*ask), allow, why).await
            }
        };
        match met {
            // Somebody else was faster, which is no failure of whoever waits.
            Err(refusal) if refusal.is_too_late() => {
                let now = call.door.get(&format!("/v1/tasks/{}", task.id)).await;
                now.map(Some)
            }
            met => met.map(Some),
        }
    }

    /// Puts it before whoever sits at the client. `None`: the client takes no such request after all.
    pub(crate) async fn put(&self, call: &Call, task: &Task) -> Result<Option<Form>, Refusal> {
        let request = ServerRequest::ElicitRequest(ElicitRequest::new(self.form(task)?));
        let options = PeerRequestOptions::no_options();
        let sent = call.context.peer.send_request_with_option(request, options);
        Ok(sent.await.ok().map(Form))
    }
}

/// A form that somebody may fill in.
pub(crate) struct Form(RequestHandle<RoleServer>);

impl Form {
    /// What was entered; `None` where the client knows no such request. Safe to cancel, until it answers.
    pub(crate) async fn entered(&mut self) -> Option<ElicitResult> {
        match (&mut self.0.rx).await {
            Ok(Ok(ClientResult::ElicitResult(result))) => Some(result),
            Ok(_) | Err(_) => None,
        }
    }

    /// It is needed no more.
    pub(crate) async fn withdraw(self, why: &str) {
        match self.0.cancel(Some(why.to_owned())).await {
            // A client that has gone shows no form.
            Ok(()) | Err(_) => {}
        }
    }
}

/// All that several tasks need, by their names.
pub(crate) fn requests<'a>(
    tasks: impl IntoIterator<Item = &'a Task>,
) -> Result<InputRequests, Refusal> {
    let mut all = InputRequests::new();
    for task in tasks {
        for need in of(task) {
            let request = ElicitRequest::new(need.form(task)?);
            all.insert(need.key(task), InputRequest::Elicitation(request));
        }
    }
    Ok(all)
}

/// Does what was entered for a task; what is unknown or over is left alone.
pub(crate) async fn enter(
    call: &Call,
    task: &Task,
    entered: &rmcp::model::InputResponses,
) -> Result<Option<Task>, Refusal> {
    let mut now = None;
    for need in of(task) {
        let Some(value) = entered.get(&need.key(task)) else {
            continue;
        };
        let result: ElicitResult = serde_json::from_value(value.clone())
            .map_err(|error| Refusal::new(format!("read what was entered: {error}")))?;
        now = need.meet(call, task, &result).await?.or(now);
    }
    Ok(now)
}
