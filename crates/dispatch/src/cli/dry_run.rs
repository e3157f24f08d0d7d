//! `dispatch run --dry-run`: what a task would be, from the same parts that make it one.
//! Must not start an engine, fetch, run a program that hands out secrets, or write anything below
//! the data directory or the repository.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dispatch_core::{
    cage,
    config::{AgentProfile, EnvValue},
    drivers::Ask,
    limits::JobLimits,
    naming, prompt,
    review::{self, Range},
    run::RunCause,
    task::{Base, Expects, TaskSpec, Wrap},
};
use dispatch_engine::{
    fence::Fences,
    mirror::{Wanted, place_of},
    sites::local::Keeper,
};
use serde::Serialize;

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    style::clean_text,
};
use crate::settings::Settings;

/// Stands for what only a real task has.
const NOT_YET: &str = "new";
const HOME: &str = "/the/private/home/of/the/task";
const WORKSPACE: &str = "/the/workspace/of/the/task";

#[derive(Debug, Serialize)]
struct Plan {
    title: String,
    agent: String,
    argv: Vec<String>,
    prompt: String,
    repo: String,
    from: String,
    /// As far as it is known here, without asking upstream.
    base: Option<String>,
    branch: String,
    workspace_name: String,
    expects: Expects,
    placement: String,
    /// What the fence of this machine would be made of, tried out.
    would_enforce: String,
    limits: JobLimits,
    pool: String,
    slots: usize,
    /// Variables that it takes from whoever dispatches.
    takes: Vec<String>,
}

pub(crate) fn run(ctx: &Ctx, spec: &TaskSpec, profile: &AgentProfile, json: bool) -> Result<Exit> {
    let plan = plan(&ctx.settings, spec, profile)?;
    if json {
        out::json(&plan)?;
        return Ok(Exit::Completed);
    }
    let base = match &plan.base {
        Some(base) => format!("{}, now {base}", plan.from),
        None => format!("{}, which is not known before it is fetched", plan.from),
    };
    let takes = plan.takes.join(", ");
    for (name, value) in [
        ("title", plan.title.as_str()),
        ("repo", &plan.repo),
        ("from", &base),
        ("branch", &plan.branch),
        ("workspace", &plan.workspace_name),
        ("agent", &plan.agent),
        ("argv", &plan.argv.join(" ")),
        ("takes", &takes),
        ("pool", &format!("{} ({} slots)", plan.pool, plan.slots)),
        ("placement", &plan.placement),
        ("fence", &plan.would_enforce),
        ("prompt", &plan.prompt),
    ] {
        if !value.is_empty() {
            let value = clean_text(value).replace('\n', "\n             ");
            out::line(&format!("  {name:<10} {value}"))?;
        }
    }
    out::line("nothing was started, and nothing was written")?;
    Ok(Exit::Completed)
}

fn plan(settings: &Settings, spec: &TaskSpec, profile: &AgentProfile) -> Result<Plan> {
    let wanted = Wanted::of(&spec.base)
        .map_err(|error| CliError::usage(format!("start a task: {error}")))?;
    let base = known_base(settings, spec, &wanted);
    let mut asked = prompt::with_issue(&spec.text, spec.labels.issue_text.as_deref());
    // Where it begins is found when the base is fetched; here it is what was asked for.
    let range = spec.review_base.as_ref().map(|from| Range {
        base: from.clone(),
        head: base.clone().unwrap_or_else(|| "HEAD".to_owned()),
    });
    if let Some(range) = &range {
        asked.push_str("\n\n");
        asked.push_str(&review::instructions(range));
    }
    let text = prompt::prompt(&asked, &RunCause::Dispatched, spec.expects, false);
    let program = settings.find(&profile.program);
    let program = program.map_or(profile.program.clone(), |path| {
        path.to_string_lossy().into_owned()
    });
    let opening = profile.driver.driver().open(&Ask {
        prompt: &text,
        whole: &text,
        cwd: WORKSPACE,
        program: &program,
        args: &profile.args,
        home: HOME,
        resume: None,
        review: range.as_ref(),
        unfenced: spec.placement.wrap == Wrap::Host,
    });
    let takes = profile.env.iter().filter_map(|(name, value)| match value {
        EnvValue::Taken { .. } => value.key(&spec.agent, name),
        EnvValue::Literal(_) => None,
    });
    Ok(Plan {
        title: spec.title.clone(),
        agent: spec.agent.to_string(),
        argv: opening.argv,
        prompt: text,
        repo: spec.repo.clone(),
        from: spec.base.words(),
        base,
        branch: spec.branch(NOT_YET),
        workspace_name: naming::workspace_name(spec, NOT_YET),
        expects: spec.expects,
        placement: spec.placement.word().to_owned(),
        would_enforce: would_enforce(settings, spec)?,
        limits: settings.config.limits.agent_job(),
        pool: spec.pool.to_string(),
        slots: settings.config.pools.get(&spec.pool).map_or(0, |p| p.slots),
        takes: takes.collect(),
    })
}

/// From the repository itself where it lies here, else from what the mirror had last.
fn known_base(settings: &Settings, spec: &TaskSpec, wanted: &Wanted) -> Option<String> {
    if !spec.base.is_repository() {
        return None;
    }
    let mirror = place_of(&settings.paths.data, &spec.repo);
    if !spec.repo.starts_with('/') {
        return wanted.known().iter().find_map(|name| {
            let dir = [
                "--git-dir".to_owned(),
                mirror.to_string_lossy().into_owned(),
            ];
            commit_of(settings, &dir, name)
        });
    }
    let mut names = match &spec.base {
        Base::Head => vec!["HEAD".to_owned()],
        _ => wanted.known(),
    };
    if let Base::Branch { name } | Base::Default { name } = &spec.base {
        names.push(format!("refs/remotes/origin/{name}"));
    }
    let dir = ["-C".to_owned(), spec.repo.clone()];
    names
        .iter()
        .find_map(|name| commit_of(settings, &dir, name))
}

fn commit_of(settings: &Settings, dir: &[String], name: &str) -> Option<String> {
    let found = Command::new(settings.find("git")?)
        .args(["--no-optional-locks", "-c", "core.hooksPath=/dev/null"])
        .args(dir)
        .args(["rev-parse", "--verify", "--quiet", "--end-of-options"])
        .arg(format!("{name}^{{commit}}"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    (found.status.success() && !text.is_empty()).then_some(text)
}

fn would_enforce(settings: &Settings, spec: &TaskSpec) -> Result<String> {
    let placement = &spec.placement;
    if placement.wrap == Wrap::Host {
        return Ok("nothing (host)".to_owned());
    }
    // The fence is tried out with a copy of this program, and that must lie somewhere.
    let scratch = Scratch::new(&std::env::temp_dir())
        .map_err(|error| CliError::failed("try the fence out", &error))?;
    let fences = Fences::new(scratch.0.clone(), Keeper::own(), settings.find("bwrap"));
    let (layers, refused) = match fences.layers() {
        Ok(found) => found,
        Err(why) => return Ok(format!("it could not start: {why}")),
    };
    let enforced = cage::enforced(&layers, &[], placement.network);
    Ok(match refused {
        Some(why) if placement.strict => format!("it could not start: {why}"),
        Some(why) => format!("{enforced}; without bubblewrap: {why}"),
        None => enforced,
    })
}

/// A directory of our own that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(below: &Path) -> io::Result<Self> {
        let dir = below.join(format!("dispatch-dry-run-{}", std::process::id()));
        // One that is there already is somebody else's, whoever made it.
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            // What stays behind is a copy of this program.
            Ok(()) | Err(_) => {}
        }
    }
}
