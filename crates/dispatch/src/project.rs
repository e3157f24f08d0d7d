//! What a repository's own `dispatch.toml` asks for, laid under a request. Every door does it here,
//! so that a task is the same whoever sends it.
//! Must not follow a link, and must not let a repository choose what the person would have to.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use dispatch_core::{
    config::Config,
    project::{self, Project},
    task::Wrap,
};

use crate::api::request::{self, BadRequest, ChecksWanted, Dispatch};

/// Fills in what the request leaves open. Once more is the same as once.
///
/// # Errors
/// When the file says something that a repository may not say, or names what is not configured.
pub(crate) fn fill(
    asked: &mut Dispatch,
    config: &Config,
    own_config: &Path,
) -> Result<(), BadRequest> {
    let place = asked
        .repo
        .as_deref()
        .map(|repo| request::place(config, repo));
    // Of a directory without git nothing is read before it is copied; a word that is neither a path
    // nor known is refused later.
    let Some(place) = place.filter(|place| place.starts_with('/')) else {
        return Ok(());
    };
    let project = read(&Path::new(place).join(project::FILE), own_config)?;
    if let Some(what) = config.limits.too_high(&project.limits) {
        return Err(BadRequest::Project(format!(
            "use {what}; a repository's dispatch.toml may only lower them"
        )));
    }
    asked.limits.fill(&project.limits);
    asked.expects = asked.expects.or(project.expects);
    asked.checks = asked
        .checks
        .take()
        .or(project.checks.map(ChecksWanted::Named));
    if let (None, Some(chosen)) = (&asked.agent, project.agent) {
        let selection = request::agent(config, Some(&chosen))?;
        if !selection.command.is_empty() {
            return Err(BadRequest::Project(
                "use the agent that the repository's dispatch.toml brings as a command: it may only \
                 choose among what you configured"
                    .into(),
            ));
        }
        let name = selection.agent;
        // A repository may choose among what was configured, but never its way out of the fence.
        let placement = config.agents.get(&name).map(|a| config.placement_of(a));
        let host = placement.is_some_and(|placement| placement.as_str() == Wrap::Host.word());
        if host && asked.placement.is_none() {
            return Err(BadRequest::Project(format!(
                "use agent {name}, which the repository's dispatch.toml chose: its placement is \
                 host, which has no fence; if that is what you want, say so yourself: --agent {name}"
            )));
        }
        asked.agent = Some(chosen);
    }
    asked.grant_most = project.grant;
    asked.rules_most = project.rules;
    if let (None, Some(own)) = (asked.permissions, project.permissions) {
        let name = request::agent(config, asked.agent.as_deref())?.agent;
        let configured = config.agents.get(&name).map(|agent| agent.permissions);
        asked.permissions = Some(configured.unwrap_or_default().stricter(own));
    }
    Ok(())
}

/// A plain file only: a checkout may come from anywhere.
fn read(path: &PathBuf, own_config: &Path) -> Result<Project, BadRequest> {
    use rustix::fs::{Mode, OFlags};
    // With DISPATCH_HOME in a checkout, the person's own one lies there.
    if path == own_config {
        return Ok(Project::default());
    }
    let failed = |why: &dyn std::fmt::Display| {
        BadRequest::Project(format!(
            "read {}: {why}; it must be a short plain file, and docs/cli.md says what may be in it",
            path.display()
        ))
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // That there is no such repository is found out, and said better, by git.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            return Ok(Project::default());
        }
        Err(error) => return Err(failed(&error)),
    };
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(failed(&"it is no plain file"));
    }
    let mut text = String::new();
    file.take(project::BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(&error))?;
    if text.len() as u64 > project::BYTES_MAX {
        return Err(failed(&format!("longer than {} bytes", project::BYTES_MAX)));
    }
    project::parse(&text).map_err(|error| BadRequest::Project(error.to_string()))
}
