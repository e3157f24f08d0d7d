//! What a task would be, from the same parts that make it one.
//! Must not start an engine, fetch, run a program that hands out secrets, or write anything below
//! the data directory or the repository.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use dispatch_core::{
    attach::{self, FileName},
    cage,
    config::EnvValue,
    drivers::Ask,
    id::{AgentName, ModelName},
    naming,
    prompt::ToldFile,
    task::{Base, TaskSpec, Wrap},
};
use dispatch_engine::{
    fence::Fences,
    git::GitError,
    mirror::{Wanted, place_of},
    prompts::{self, Known, Preview},
    sites::local::Keeper,
    trees::workspace_of,
};

use crate::{
    api::{plan::Plan, request::Attach},
    own_git::{OwnGit, OwnGitError, says},
    settings::Settings,
};

/// Stands for what only a real task has.
const NOT_YET: &str = "new";
const HOME: &str = "/the/private/home/of/the/task";
const ATTACHMENTS: &str = "/the/attachments/of/the/task";
const WORKSPACE: &str = "/the/workspace/of/the/task";

#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("use agent {0}: it is not configured")]
    Agent(AgentName),
    #[error("start a task")]
    Base(#[source] GitError),
    #[error("ask git about the base")]
    Git(#[source] OwnGitError),
    #[error("make the prompt")]
    Prompt(#[source] Box<dyn Error + Send + Sync>),
}

/// Looks at files, asks git and tries out a fence: it takes a while.
pub(crate) fn plan(
    settings: &Settings,
    spec: &TaskSpec,
    files: &[Attach],
) -> Result<Plan, PlanError> {
    let agents = &settings.config.agents;
    let profile = agents
        .get(&spec.agent)
        .ok_or_else(|| PlanError::Agent(spec.agent.clone()))?;
    let wanted = Wanted::of(&spec.base).map_err(PlanError::Base)?;
    // Git and the fence want a place of their own, and that must lie somewhere.
    let git = OwnGit::new(settings).map_err(PlanError::Git)?;
    let base = known_base(settings, &git, spec, &wanted);
    let folders = match files.is_empty() {
        true => Vec::new(),
        false => vec![ATTACHMENTS.to_owned()],
    };
    let preview = preview(settings, &git, spec, base.as_ref(), files)?;
    let (program, args) = match spec.terms.command.split_first() {
        Some((program, args)) => (program, args),
        None => (&profile.program, &profile.args[..]),
    };
    let found = settings.find(program);
    let found = found.filter(|_| spec.placement.wrap != Wrap::Container);
    let program = found.map_or_else(|| program.clone(), |p| p.to_string_lossy().into_owned());
    let opening = profile.driver.driver().open(&Ask {
        prompt: &preview.prompt,
        whole: &preview.prompt,
        cwd: WORKSPACE,
        folders: &folders,
        program: &program,
        args,
        home: HOME,
        resume: None,
        effort: spec.guide.effort,
        review: preview.review.as_ref(),
        model: spec.terms.model.as_ref().map(ModelName::as_str),
        profile: spec.terms.profile.as_ref().map(ModelName::as_str),
        unfenced: spec.placement.wrap == Wrap::Host,
        permissions: spec.terms.permissions,
        tools: None,
        native: None,
    });
    let profile = settings.config.agent_for(&spec.agent, &spec.terms.chain);
    let takes = profile.iter().flat_map(|profile| &profile.env);
    let takes = takes.filter_map(|(name, value)| match value {
        EnvValue::Taken { .. } => value.key(&spec.agent, name),
        EnvValue::Literal(_) => None,
    });
    Ok(Plan {
        title: spec.title.clone(),
        agent: spec.agent.to_string(),
        argv: opening.argv,
        prompt: preview.prompt,
        repo: spec.repo.clone(),
        from: spec.base.words(),
        base: base.map(|base| base.commit),
        branch: spec.branch(NOT_YET),
        workspace_name: naming::workspace_name(spec, NOT_YET),
        workspace_dir: workspace_of(&settings.paths.data, spec, NOT_YET),
        expects: spec.expects,
        placement: spec.placement.word().to_owned(),
        would_enforce: would_enforce(settings, spec, git.scratch()),
        limits: settings.config.limits.lowered(&spec.limits).agent_job(),
        pool: spec.pool.to_string(),
        slots: settings
            .config
            .pools
            .get(&spec.pool)
            .map_or(0, |p| p.slots.total),
        takes: takes.collect(),
    })
}

/// A base that can be read without asking anybody.
struct Found {
    git_dir: PathBuf,
    commit: String,
    branch: Option<String>,
}

/// From the repository itself where it lies here, else from what the mirror had last.
fn known_base(
    settings: &Settings,
    git: &OwnGit,
    spec: &TaskSpec,
    wanted: &Wanted,
) -> Option<Found> {
    if !spec.base.is_repository() {
        return None;
    }
    let here = spec.repo.starts_with('/');
    let mut names = wanted.known();
    if here {
        if spec.base == Base::Head {
            names = vec!["HEAD".to_owned()];
        }
        if let Base::Branch { name } | Base::Default { name } = &spec.base {
            names.push(format!("refs/remotes/origin/{name}"));
        }
    }
    let mirror = place_of(&settings.paths.data, &spec.repo);
    let ask = |verb| match here {
        true => git.at(Path::new(&spec.repo), verb),
        false => git.of(&mirror, verb),
    };
    let commit = names.iter().find_map(|name| {
        let name = format!("{name}^{{commit}}");
        let known = ["--verify", "--quiet", "--end-of-options", &name];
        says(ask("rev-parse").args(known))
    })?;
    let branch = match &spec.base {
        Base::Branch { name } | Base::Default { name } => Some(name.clone()),
        Base::Head => says(ask("symbolic-ref").args(["--quiet", "--short", "HEAD"])),
        Base::Pr { .. } | Base::Tag { .. } | Base::Folder | Base::Nothing => None,
    };
    Some(Found {
        git_dir: says(ask("rev-parse").arg("--absolute-git-dir"))?.into(),
        commit,
        branch,
    })
}

fn preview(
    settings: &Settings,
    git: &OwnGit,
    spec: &TaskSpec,
    base: Option<&Found>,
    files: &[Attach],
) -> Result<Preview, PlanError> {
    let known = match (&spec.base, base) {
        (Base::Folder, _) => Known::Folder(Path::new(&spec.repo)),
        (_, Some(base)) => Known::Commit {
            git: git.git(),
            git_dir: &base.git_dir,
            commit: &base.commit,
            branch: base.branch.as_deref(),
        },
        (_, None) => Known::Nothing,
    };
    let names = attach::names(files.iter().map(|file| file.name.as_str()));
    let told = |(name, file): (FileName, &Attach)| ToldFile {
        path: format!("{ATTACHMENTS}/{name}"),
        bytes: file.base64.0.len() as u64,
        new: true,
    };
    let files = names.into_iter().zip(files).map(told).collect();
    prompts::preview(&settings.config, spec, known, files)
        .map_err(|error| PlanError::Prompt(Box::new(error)))
}

fn would_enforce(settings: &Settings, spec: &TaskSpec, scratch: &Path) -> String {
    let placement = &spec.placement;
    match placement.wrap {
        Wrap::Host => return "nothing (host)".to_owned(),
        // To try one out, an image might have to be fetched.
        Wrap::Container => {
            let container = placement.container.as_ref();
            let container = container.map_or_else(String::new, |container| {
                let (image, runtime) = (&container.image, container.runtime.word());
                format!(" of {image} (runtime: {runtime})")
            });
            let network = placement.network.word();
            return format!("a container{container}, not tried out; network: {network}");
        }
        Wrap::Cage => {}
    }
    // The fence is tried out with a copy of this program.
    let fences = Fences::new(scratch.to_owned(), Keeper::own(), settings.find("bwrap"));
    let (layers, refused) = match fences.layers() {
        Ok(found) => found,
        Err(why) => return format!("it could not start: {why}"),
    };
    let enforced = cage::enforced(&layers, &[], &placement.network);
    match refused {
        Some(why) if placement.strict => format!("it could not start: {why}"),
        Some(why) => format!("{enforced}; without bubblewrap: {why}"),
        None => enforced,
    }
}
