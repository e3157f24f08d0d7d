//! A task that is summoned by a definition: what the file says and what the call asks for, laid into the
//! request of whoever summons.
//! Must not widen anything: what it makes is narrowed by the engine like all that agents ask for.

use dispatch_core::{
    definition::{self, BadSummon, Definition, Role},
    grant::Grant,
    models::Choice,
    state::Task,
    task::{ChecksAsked, Expects, TaskSpec},
    toolset::{self, Toolset},
};
use dispatch_engine::view::VerbError;

use super::Ctx;
use crate::api::request::{ChecksWanted, ChecksWord, Dispatch, NO_GRANT, Summon};

/// What of it no request can say.
#[derive(Debug)]
pub(super) struct Summoned {
    role: Box<Role>,
    tools: Toolset,
    directory: String,
    grant: Option<Grant>,
}

fn bad(error: &impl ToString) -> VerbError {
    let what = error.to_string();
    VerbError::BadInput { what }
}

/// The definition as it lies there now.
pub(super) async fn summoned(
    ctx: &Ctx,
    asked: &mut Dispatch,
    summon: Summon,
    own: Option<&Task>,
) -> Result<Summoned, VerbError> {
    let own = own.ok_or_else(|| bad(&"summon: it is for the agents of tasks"))?;
    let profile = ctx.config.agents.get(&own.spec.agent);
    if !profile.is_some_and(|profile| profile.is_native()) {
        return Err(bad(&"summon: it is for the native agent; use dispatch"));
    }
    let all = ctx.engine.definitions(own).await?;
    let definition = all.find(&summon.agent, summon.top_level);
    let definition = definition.map_err(|error| bad(&error))?;
    let chain = definition.chain(&own.spec.terms.chain);
    lay_into(asked, &summon, own, chain.map_err(|error| bad(&error))?);
    let mut laid = laid(&summon, own, definition).map_err(|error| bad(&error))?;
    laid.role.taught = ctx.engine.skills(own, &definition.role).await?;
    Ok(laid)
}

/// What a definition does not say is as whoever summons has it.
fn lay_into(asked: &mut Dispatch, summon: &Summon, own: &Task, chain: Vec<Choice>) {
    asked.agent = Some(own.spec.agent.to_string());
    asked.model = None;
    asked.effort = asked.effort.or(own.spec.guide.effort);
    asked.chain = Some(chain);
    asked.detached = summon.top_level;
    // It may have been asked to find something out, or to change something.
    asked.expects = asked.expects.or(Some(Expects::Either));
    asked.checks = asked.checks.take().or_else(|| {
        Some(match &own.spec.checks {
            ChecksAsked::Detect => ChecksWanted::Word(ChecksWord::Detect),
            ChecksAsked::None => ChecksWanted::Word(ChecksWord::None),
            ChecksAsked::Named(names) => ChecksWanted::Named(names.clone()),
        })
    });
    // Its own is laid on below.
    asked.grant = Some(NO_GRANT.to_owned());
}

fn laid(summon: &Summon, own: &Task, definition: &Definition) -> Result<Summoned, BadSummon> {
    let terms = &own.spec.terms;
    let root = own.workspace.as_ref().map(|there| there.path.as_path());
    let root = root.and_then(|path| path.to_str()).unwrap_or_default();
    let within = |below: &str, asked: Option<&str>| definition::directory(below, asked, root);
    // Where the definition says, and in there where the call does.
    let there = within(&terms.directory, definition.cwd.as_deref())?;
    let directory = within(&there, summon.working_directory.as_deref())?;
    let mut tools = terms.tools.clone();
    if let Some(named) = &definition.tools {
        tools = tools.and(named.iter().cloned());
    }
    if let Some(named) = &summon.tools {
        tools = tools.and(toolset::list(named)?);
    }
    let grant = terms.grant.as_deref().and_then(Grant::below);
    Ok(Summoned {
        role: Box::new(definition.role.clone()),
        grant: grant.filter(|_| tools.has("summon")),
        tools,
        directory,
    })
}

impl Summoned {
    pub(super) fn lay_on(self, spec: &mut TaskSpec) {
        let terms = &mut spec.terms;
        terms.role = Some(self.role);
        terms.tools = terms.tools.meet(&self.tools);
        terms.directory = self.directory;
        let grant = self.grant.map(|grant| grant.held_to(spec));
        spec.terms.grant = grant.map(Box::new);
    }
}
