//! Routes of tasks: one handler a verb.
//! Must not resolve prefixes: a path names a task by its whole id.

use std::path::PathBuf;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use dispatch_core::{
    ask::AskId,
    family::Deed,
    id::TaskId,
    message::{MessageId, Sender},
    task::Tuning,
};
use dispatch_engine::view::{Force, VerbError};

use super::{
    Ctx,
    error::{Body, Code, Params, Problem},
    family::{self, Acting},
    reads::{At, NEXT},
    repeats::Key,
    summon,
};
use crate::{
    api::{
        self,
        request::{self, Tuned},
        task::Task,
    },
    project,
};

impl From<request::Force> for Force {
    fn from(force: request::Force) -> Self {
        match force {
            request::Force::Ask => Self::Ask,
            request::Force::Kill => Self::Kill,
        }
    }
}

pub(super) fn id(text: &str) -> Result<TaskId, Problem> {
    text.parse::<TaskId>()
        .map_err(|error| Problem::new(Code::NoSuchTask, error.to_string()))
}

async fn find(ctx: &Ctx, task: TaskId) -> Result<At<Json<Task>>, Problem> {
    let view = ctx.engine.task(task).await?;
    Ok(At(view.seq, Json(Task::from(&view))))
}

pub(crate) async fn dispatch(
    Acting(ctx): Acting,
    Key(key): Key,
    Body(mut asked): Body<request::Dispatch>,
) -> Result<(StatusCode, At<Json<Task>>), Problem> {
    let asker = ctx.engine.own_task().await?;
    let (mut inherited, mut grant, mut summoned) = (None, None, None);
    if let Some(summon) = asked.summon.take() {
        let made = summon::summoned(&ctx, &mut asked, summon, asker.as_ref()).await?;
        summoned = Some(made);
    }
    if let Some(own) = &asker {
        inherited = family::fill_in(&mut asked, own);
        grant = Some(family::within(&ctx, &asked, own)?.clone());
    }
    let secrets = asked.secrets.clone();
    let tuning = Tuning::default();
    let (config, own) = (std::sync::Arc::clone(&ctx.config), ctx.config_file.clone());
    // A repository may lie on a disk that does not answer.
    let spec = tokio::task::spawn_blocking(move || {
        let filled = project::fill(&mut asked, &config, &own);
        let files = asked.attachments.clone();
        let spec = filled.and_then(|()| asked.spec(&config));
        let mut spec = match grant {
            None => spec?,
            Some(grant) => spec.map_err(|error| error.told_to(&grant))?,
        };
        if let Some(inherited) = inherited {
            inherited.lay_on(&mut spec);
        }
        if let Some(summoned) = summoned {
            summoned.lay_on(&mut spec);
        }
        Ok::<_, request::BadRequest>((spec, files))
    });
    let (spec, files) = spec.await.map_err(VerbError::from)??;
    let given = request::given(secrets, files, tuning, key);
    let run = ctx.engine.dispatch(spec, given).await?;
    Ok((StatusCode::ACCEPTED, seen(&ctx, run.task).await?))
}

/// How a task stands that the caller has just done something to. What was done is durable, so whatever
/// goes wrong here is no refusal of it.
async fn seen(ctx: &Ctx, task: TaskId) -> Result<At<Json<Task>>, Problem> {
    let task = family::seen(&ctx.engine, task).await?;
    Ok(At(task.seq, Json(task)))
}

/// Checked with the agent that the task has now.
async fn tuning(ctx: &Ctx, task: TaskId, asked: Tuned<'_>) -> Result<Tuning, Problem> {
    if asked.is_empty() {
        return Ok(Tuning::default());
    }
    ctx.engine.may(Deed::Say(task)).await?;
    let agent = ctx.engine.look(task).await?.task.spec.agent;
    Ok(request::tuning(&ctx.config, &agent, asked)?)
}

/// A page of tasks, and where the next one begins.
#[derive(Debug)]
pub(crate) struct Page {
    tasks: Vec<Task>,
    next: Option<TaskId>,
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = Json(self.tasks).into_response();
        let next = self
            .next
            .map(|next| next.to_string().parse::<HeaderValue>());
        if let Some(Ok(next)) = next {
            response.headers_mut().insert(NEXT, next);
        }
        response
    }
}

pub(crate) async fn all(
    Acting(ctx): Acting,
    Params(asked): Params<request::List>,
) -> Result<At<Page>, Problem> {
    let listed = ctx.engine.list(asked.listing(&ctx.config)?).await?;
    let tasks = listed.tasks.iter().map(Task::from).collect();
    let next = listed.next;
    Ok(At(listed.seq, Page { tasks, next }))
}

pub(crate) async fn one(
    Acting(ctx): Acting,
    Path(task): Path<String>,
) -> Result<At<Json<Task>>, Problem> {
    find(&ctx, id(&task)?).await
}

pub(crate) async fn remove(
    State(ctx): State<Ctx>,
    Path(task): Path<String>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    ctx.engine.remove(task).await?;
    seen(&ctx, task).await
}

pub(crate) async fn answer(
    Acting(ctx): Acting,
    Path(task): Path<String>,
    Key(key): Key,
    Body(asked): Body<request::Answer>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    let tuning = tuning(&ctx, task, asked.tuned()).await?;
    let given = request::given(asked.secrets, Vec::new(), tuning, key);
    ctx.engine.answer(task, asked.text, given).await?;
    seen(&ctx, task).await
}

pub(crate) async fn retry(
    State(ctx): State<Ctx>,
    Path(task): Path<String>,
    Key(key): Key,
    Body(asked): Body<request::Retry>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    let tuning = tuning(&ctx, task, asked.tuned()).await?;
    let given = request::given(asked.secrets, Vec::new(), tuning, key);
    ctx.engine.retry(task, given).await?;
    seen(&ctx, task).await
}

pub(crate) async fn say(
    Acting(ctx): Acting,
    Path(task): Path<String>,
    Key(key): Key,
    Body(asked): Body<request::Say>,
) -> Result<Json<api::Spoken>, Problem> {
    let task = id(&task)?;
    let tuning = tuning(&ctx, task, asked.tuned()).await?;
    let given = request::given(asked.secrets, asked.attachments, tuning, key);
    let spoken = ctx
        .engine
        .say(task, asked.text, Sender::Person, given)
        .await?;
    let At(_, Json(task)) = seen(&ctx, task).await?;
    Ok(Json(api::Spoken {
        message: spoken.message.0,
        how: spoken.how.word().into(),
        task,
    }))
}

pub(crate) async fn unsay(
    State(ctx): State<Ctx>,
    Path((task, message)): Path<(String, String)>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    let message = message
        .parse::<MessageId>()
        .map_err(|error| Problem::new(Code::NoSuchMessage, error.to_string()))?;
    ctx.engine.unsay(task, message).await?;
    seen(&ctx, task).await
}

pub(crate) async fn compact(
    State(ctx): State<Ctx>,
    Path(task): Path<String>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    ctx.engine.compact(task).await?;
    seen(&ctx, task).await
}

pub(crate) async fn permit(
    Acting(ctx): Acting,
    Path((task, ask)): Path<(String, String)>,
    Body(asked): Body<request::Permit>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    let ask = ask
        .parse::<AskId>()
        .map_err(|error| Problem::new(Code::NoSuchAsk, error.to_string()))?;
    match (asked.allow, asked.always) {
        (true, true) => ctx.engine.permit_always(task, ask).await?,
        (allow, false) => ctx.engine.permit(task, ask, allow, asked.why).await?,
        (false, true) => return Err(request::BadRequest::DenyAlways.into()),
    }
    seen(&ctx, task).await
}

pub(crate) async fn resume(
    State(ctx): State<Ctx>,
    Path(task): Path<String>,
    Key(key): Key,
    Body(asked): Body<request::Resume>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    let agent = match asked.agent.as_deref() {
        Some(name) => Some(request::agent(&ctx.config, Some(name))?),
        None => None,
    };
    let tuned = asked.tuned();
    let tuning = match &agent {
        Some(selection) if selection.model.is_some() && tuned.model.is_some() => {
            return Err(request::BadRequest::TwoModels.into());
        }
        Some(selection) => request::tuning_of(&ctx.config, selection, tuned)?,
        None => tuning(&ctx, task, tuned).await?,
    };
    let given = request::given(asked.secrets, Vec::new(), tuning, key);
    ctx.engine.resume(task, agent, given).await?;
    seen(&ctx, task).await
}

pub(crate) async fn stop_all(
    State(ctx): State<Ctx>,
    Body(asked): Body<request::Stop>,
) -> Result<Json<Vec<String>>, Problem> {
    let stopped = ctx.engine.stop_all(asked.force.into()).await?;
    Ok(Json(stopped.iter().map(TaskId::to_string).collect()))
}

pub(crate) async fn stop(
    Acting(ctx): Acting,
    Path(task): Path<String>,
    Key(key): Key,
    Body(asked): Body<request::Stop>,
) -> Result<At<Json<Task>>, Problem> {
    let task = id(&task)?;
    let force = asked.force.into();
    ctx.engine.stop_once(task, force, key).await?;
    seen(&ctx, task).await
}

pub(crate) async fn undo(
    State(ctx): State<Ctx>,
    Path(task): Path<String>,
) -> Result<Json<api::Restored>, Problem> {
    let workspace: PathBuf = ctx.engine.undo(id(&task)?).await?;
    Ok(Json(api::Restored { workspace }))
}

pub(crate) async fn apply(
    State(ctx): State<Ctx>,
    Path(task): Path<String>,
    Body(asked): Body<request::Apply>,
) -> Result<Json<api::Applied>, Problem> {
    let task = id(&task)?;
    if asked.write {
        let done = ctx.engine.write_back(task, asked.to).await?;
        return Ok(Json(api::Applied {
            repo: done.folder,
            branch: String::new(),
            commit: done.commit,
            files: Some(done.files),
        }));
    }
    let done = ctx.engine.apply(task, asked.to).await?;
    Ok(Json(api::Applied {
        repo: done.repo,
        branch: done.branch,
        commit: done.commit,
        files: None,
    }))
}

pub(crate) async fn diff(Acting(ctx): Acting, Path(task): Path<String>) -> Result<String, Problem> {
    Ok(ctx.engine.diff(id(&task)?).await?)
}

pub(crate) async fn clean(
    State(ctx): State<Ctx>,
    Body(asked): Body<request::Clean>,
) -> Result<Json<Vec<String>>, Problem> {
    let gone = ctx.engine.clean(asked.states, asked.older_than_ms).await?;
    Ok(Json(gone.iter().map(TaskId::to_string).collect()))
}

#[cfg(test)]
mod tests;
