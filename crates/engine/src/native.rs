//! What our own agent is told at its opening besides the prompt: whom it asks and where, what it may
//! do, and what it said in earlier runs.
//! Must not give it anything that another guest could not be given: it has no way past its fence.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use dispatch_core::{
    chain,
    config::AgentProfile,
    grant::Grant,
    id::{KeyName, RunId, ServerName},
    job::{JobId, Part},
    models::KeyTable,
    native::{Kin, Opening, VERSION},
    servers,
    state::Task,
    task::Wrap,
    web::Reach,
};

use crate::{
    attachments, definitions,
    fence::{self, Fences},
    files,
    jobdir::JobDir,
    run::Ctx,
    sidecar::Aid,
};

/// Below the task's private home: results that are too long for a model.
const RESULTS: &str = ".dispatch/results";

/// Our own program, where the job sees it.
pub(crate) fn program(fences: &Fences) -> Result<String, String> {
    fences.program().and_then(fence::utf8)
}

/// `None`: another agent. `aid` is not known when a run is taken over, and then nobody hears it.
pub(crate) fn setup(
    ctx: &Ctx,
    task: &Task,
    n: u32,
    profile: &AgentProfile,
    aid: Option<&Aid>,
    resumes: Option<&str>,
) -> Result<Option<Opening>, String> {
    if !profile.is_native() {
        return Ok(None);
    }
    let config = &ctx.settings.config;
    let asked = chain::thinking(task.spec.terms.chain.clone(), task.spec.guide.effort);
    let broker_url = aid.and_then(|aid| aid.broker_url.as_deref());
    let inside = |key: &KeyName| -> Result<(KeyName, KeyTable), String> {
        let table = config.keys.get(key);
        let table = table.ok_or_else(|| format!("use key {key}: it is not configured any more"))?;
        let table = chain::inside(key, table, broker_url.unwrap_or_default());
        Ok((key.clone(), table))
    };
    let keys = asked.iter().map(|choice| inside(&choice.key));
    let keys = keys.collect::<Result<_, _>>()?;
    let resume = records(&ctx.settings.data, task, n, resumes);
    let session = match resumes {
        Some(session) if !resume.is_empty() => session.to_owned(),
        Some(_) | None => format!("{}-{n}", task.id),
    };
    let fenced = task.spec.placement.wrap != Wrap::Host;
    let own = config.rules(profile, fenced);
    let terms = &task.spec.terms;
    let mut servers =
        servers::chosen(&config.mcp, profile.mcp.as_deref()).map_err(|error| error.to_string())?;
    let made_with = |name: &ServerName| terms.mcp.as_ref().is_none_or(|mcp| mcp.contains(name));
    servers.retain(|name, _| made_with(name) && terms.tools.reaches(name));
    // Those that the task was made with hold for a later agent, too.
    let rules = match task.spec.terms.rules.as_deref() {
        Some(made_with) => made_with.intersect(&own),
        None => own,
    };
    let limits = config.limits.lowered(&task.spec.limits);
    Ok(Some(Opening {
        version: VERSION,
        session,
        cwd: PathBuf::new(),
        checkout: task.workspace.as_ref().map(|there| there.path.clone()),
        spill: ctx.trees.home(task).join(RESULTS),
        resume,
        prompt: None,
        compact: task.compacts,
        files: attachments::handed(&ctx.settings.data, task, n),
        system: profile.system_prompt.clone(),
        chain: asked,
        known: None,
        keys,
        tools: profile.tools.clone(),
        within: terms.tools.clone(),
        role: terms.role.as_ref().map(|role| role.words()),
        kin: terms.grant.as_deref().map(|grant| kin(ctx, task, grant)),
        rules,
        reach: Reach::from(&task.spec.placement.network),
        web: config.web.clone(),
        servers,
        limits: config.native.limits(limits.ask_wait_ms()),
        live: true,
    }))
}

/// Whom it may summon: what lies there as this run begins.
fn kin(ctx: &Ctx, task: &Task, grant: &Grant) -> Kin {
    let workspace = task.workspace.as_ref().map(|there| there.path.as_path());
    let all = definitions::read(ctx.settings.definitions.as_deref(), workspace);
    Kin {
        task: task.id.to_string(),
        asker: task.asker().map(|asker| asker.to_string()),
        tools: grant.tools.clone(),
        asked: grant.asked,
        listed: all.listed(),
        faults: definitions::faults_told(&all),
        // The driver knows how our tools are reached.
        door: None,
    }
}

/// Where it works: a directory of its workspace, no part of which is a link.
///
/// # Errors
/// When there is no such directory.
pub(crate) fn directory(workspace: &Path, below: &str) -> Result<PathBuf, String> {
    let mut at = workspace.to_owned();
    let mut open = files::open_dir(workspace).map_err(|error| error.to_string())?;
    for part in below.split('/').filter(|part| !part.is_empty()) {
        let next = files::open_dir_at(open.as_fd(), part.as_ref());
        open = next.map_err(|error| {
            format!("work in {below} of the repository: it is no directory there: {error}")
        })?;
        at.push(part);
    }
    Ok(at)
}

/// The output of the earlier runs of a conversation, oldest first; nothing where one of them is gone,
/// for half of a conversation is none.
pub(crate) fn records(data: &Path, task: &Task, n: u32, resumes: Option<&str>) -> Vec<PathBuf> {
    let Some(session) = resumes else {
        return Vec::new();
    };
    let earlier = task.runs.iter().filter(|run| run.n < n);
    let same = earlier.filter(|run| run.session.as_deref() == Some(session));
    let output = |n: u32| {
        let run = RunId { task: task.id, n };
        let part = Part::Agent;
        JobDir::of(data, &JobId { run, part }).path().join("out")
    };
    let records: Vec<PathBuf> = same.map(|run| output(run.n)).collect();
    match records.iter().all(|record| record.is_file()) {
        true => records,
        false => Vec::new(),
    }
}
