//! What agents have of the routes: the engine that a handler gets does what its caller may, a request
//! of an agent is filled in from its own task, and the routes that are theirs above all.
//! Must not decide what an agent may: the engine does, with the grant of its task.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::request::Parts,
};
use dispatch_core::{
    family::{Deed, Names, Refusal},
    grant::{self, Grant},
    id::TaskId,
    state::Task as CoreTask,
    task::{Base, Start, TaskSpec},
};
use dispatch_engine::{
    engine::Engine,
    view::{Until, VerbError, Who},
};

use super::{
    Ctx,
    caller::{self, Caller},
    error::{Body, Code, Problem},
    tasks::id,
};
use crate::api::{
    family::{Door, Waited},
    request::{self, Dispatch, NO_GRANT, Wait},
    task::Task,
};

/// How long a wait takes that says nothing, and how long one may.
const WAIT_S: u64 = 50;
const WAIT_S_MAX: u64 = 3600;

/// What every handler gets that agents may call: its engine is the caller's.
#[derive(Clone, Debug)]
pub(crate) struct Acting(pub(crate) Ctx);

impl FromRequestParts<Ctx> for Acting {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, ctx: &Ctx) -> Result<Self, Problem> {
        let caller = caller::of(parts)?;
        Ok(Self(acting(ctx, &caller)))
    }
}

pub(super) fn acting(ctx: &Ctx, caller: &Caller) -> Ctx {
    let mut ctx = ctx.clone();
    if let Caller::Run(run) = caller {
        ctx.engine = ctx.engine.on_behalf_of(*run);
    }
    ctx
}

/// Where a task starts that says nothing of it: where its asker did.
#[derive(Debug)]
pub(super) struct Inherited {
    base: Base,
    start: Option<Start>,
}

impl Inherited {
    fn of(own: &CoreTask) -> Self {
        let there = own.workspace.as_ref();
        let there = there.filter(|_| own.spec.base.is_repository());
        Self {
            base: own.spec.base.clone(),
            start: there.map(|workspace| Start {
                commit: workspace.base.clone(),
                branch: workspace.base_branch.clone(),
            }),
        }
    }

    pub(super) fn lay_on(self, spec: &mut TaskSpec) {
        spec.base = self.base;
        spec.terms.start = self.start;
    }
}

/// What an agent leaves out is as its own task has it. It asks for a grant by name, or has none.
pub(super) fn fill_in(asked: &mut Dispatch, own: &CoreTask) -> Option<Inherited> {
    let spec = &own.spec;
    asked.parent = None;
    if asked.agent.is_none() {
        let command = spec.terms.command.join(" ");
        asked.agent = Some(match command.as_str() {
            "" => spec.agent.to_string(),
            command => format!("{}:{command}", spec.agent),
        });
    }
    if asked.placement.is_none() {
        asked.placement = Some(spec.placement.word().to_owned());
        let container = spec.placement.container.as_ref();
        asked.image = asked
            .image
            .take()
            .or_else(|| container.map(|container| container.image.to_string()));
    }
    asked.grant.get_or_insert_with(|| NO_GRANT.to_owned());
    fill_in_place(asked, own)
}

fn fill_in_place(asked: &mut Dispatch, own: &CoreTask) -> Option<Inherited> {
    if asked.repo.is_some() || asked.dir.is_some() || asked.no_repo {
        return None;
    }
    let base = &own.spec.base;
    let place = Some(own.spec.repo.clone());
    match base {
        Base::Nothing => asked.no_repo = true,
        Base::Folder => asked.dir = place,
        Base::Head
        | Base::Branch { .. }
        | Base::Default { .. }
        | Base::Pr { .. }
        | Base::Tag { .. } => asked.repo = place,
    }
    if asked.branch.is_some() || asked.pr.is_some() || asked.tag.is_some() {
        return None;
    }
    match base {
        Base::Pr { number } => asked.pr = Some(*number),
        Base::Tag { name } => asked.tag = Some(name.clone()),
        Base::Head | Base::Branch { .. } | Base::Default { .. } | Base::Folder | Base::Nothing => {}
    }
    Some(Inherited::of(own))
}

/// What an agent names and may not have is refused before it is looked up or touched: whether there is
/// such a thing is not told.
pub(super) fn within<'a>(
    ctx: &Ctx,
    asked: &Dispatch,
    own: &'a CoreTask,
) -> Result<&'a Grant, VerbError> {
    let grant = own.spec.terms.grant.as_deref();
    let verb = Deed::Dispatch.verb();
    let grant = grant.ok_or(Refusal::NoGrant { verb })?;
    let agent = asked.agent.as_deref();
    let folder = asked.dir.as_deref().map(grant::folder);
    let repo = asked.repo.as_deref();
    let names = Names {
        agent: agent.map(|agent| agent.split_once(':').map_or(agent, |(name, _)| name)),
        place: match &folder {
            Some(folder) => Some(folder),
            None => repo.map(|repo| request::place(&ctx.config, repo)),
        },
        placement: asked.placement.as_deref(),
    };
    let outside = names.outside(grant);
    if outside.is_empty() {
        return Ok(grant);
    }
    Err(Refusal::Outside { outside }.into())
}

/// How a task stands that the caller has just done something to, which is durable. One who spoke to
/// whoever asked for its own task sees its own.
pub(super) async fn seen(engine: &Engine, task: TaskId) -> Result<Task, Problem> {
    let view = view_of(engine, task).await;
    view.map_err(|error| Problem::unseen(task, &error))
}

async fn view_of(engine: &Engine, task: TaskId) -> Result<Task, VerbError> {
    let (own, shown) = match engine.who() {
        Who::Person => (None, true),
        Who::Run(run) => {
            let shown = engine.may(Deed::Show(task)).await;
            (Some(run.task), shown.is_ok() || run.task == task)
        }
    };
    let task = own.filter(|_| !shown).unwrap_or(task);
    Ok(Task::from(&engine.look(task).await?))
}

pub(crate) async fn wait(
    Acting(ctx): Acting,
    caller: Caller,
    Body(asked): Body<Wait>,
) -> Result<Json<Waited>, Problem> {
    let place = ctx.rooms.waits.take(&caller, 1)?;
    let tasks: Result<Vec<TaskId>, Problem> = asked.tasks.iter().map(|task| id(task)).collect();
    let timeout_s = asked.timeout_s.unwrap_or(WAIT_S);
    if timeout_s > WAIT_S_MAX {
        let detail =
            format!("wait for {timeout_s} s: {WAIT_S_MAX} are the most; ask again after that");
        return Err(Problem::new(Code::BadInput, detail));
    }
    let until = ctx.engine.now().saturating_add(timeout_s * 1000);
    let mode = match asked.mode {
        request::WaitFor::All => Until::All,
        request::WaitFor::Any => Until::Any,
    };
    let mut closing = ctx.closing.clone();
    let waited = tokio::select! {
        waited = ctx.engine.wait(tasks?, mode, until) => waited?,
        // Nothing was delivered, so whoever asks the next engine misses nothing.
        _ = closing.changed() => return Err(VerbError::Gone.into()),
        () = Arc::clone(&ctx.standing).over(caller) => {
            let detail = "wait: the token is revoked or its time is over, or the run has ended";
            return Err(Problem::new(Code::BadToken, detail));
        }
    };
    drop(place);
    Ok(Json(Waited::from(&waited)))
}

pub(crate) async fn detach(
    Acting(ctx): Acting,
    Path(task): Path<String>,
) -> Result<Json<Task>, Problem> {
    let task = id(&task)?;
    ctx.engine.detach(task).await?;
    Ok(Json(seen(&ctx.engine, task).await?))
}

/// What the caller may do here, for a program that shows an agent only what it can use.
pub(crate) async fn door(State(ctx): State<Ctx>, caller: Caller) -> Result<Json<Door>, Problem> {
    let Caller::Run(run) = caller else {
        return Ok(Json(Door::default()));
    };
    let own = ctx.engine.look(run.task).await?.task;
    let grant: Option<Grant> = own.spec.terms.grant.as_deref().cloned();
    let place = grant::place(&own.spec);
    Ok(Json(Door {
        run: Some(run.to_string()),
        task: Some(run.task.to_string()),
        place,
        grant,
    }))
}
