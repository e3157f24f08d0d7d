//! `dispatch run`: a task in, watched to its end. A client like any other; `--here` only brings its
//! own engine along.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use dispatch_core::{
    ask::Permissions,
    config::{AgentProfile, list},
    gate::BadMoney,
    grant::Among,
    id::{AgentName, ModelName},
    limits::{Limit, Lowered},
    models::Choice,
    secret::Secret,
    task::{Effort, Expects, IssueText, Priority, Taken, TaskSpec, Wrap},
};

use super::{
    Ctx, agents, attach, dry_run,
    error::{CliError, Result, chain},
    exit::Exit,
    follow, ids, out, repo,
    screen::{Screen, next_lines, waits_line},
    serve,
    style::{Colour, clean_line},
    tasks,
};
use crate::{
    api::{
        request::{self, BadRequest, ChecksWanted, ChecksWord, Dispatch, Secrets, Tuned},
        task::Task,
    },
    client::start,
    forge::{self, Hosted, IssueError},
    project,
    settings::Settings,
};

/// The engine has the real limit; this keeps a wrong file from filling memory.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// The text of a review that was given none.
const REVIEW: &str = "Review the changes";

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ExpectsArg {
    Change,
    Report,
    Either,
    Review,
}

/// Hand a task to an agent and watch it to its end.
#[derive(Debug, Default, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch run --repo . \"Fix the failing test in parser.rs\"\n  dispatch run --repo ../api --agent codex --detach \"Add pagination to /users\"\n  dispatch run --after 3f --priority high \"Write its changelog\"\n  dispatch run --expects report --no-checks --file review.md\n  git log -5 | dispatch run -\n\nCtrl-C stops the task, twice kills it; a hang-up leaves it alive.\nExit codes: 0 completed, 1 failed or lost, 2 usage, 3 blocked, 4 stopped, 5 engine unreachable."
)]
pub(crate) struct Args {
    /// What to do; `-` reads it from standard input
    #[arg(
        value_name = "TASK",
        required_unless_present_any = ["file", "issue", "base"],
        conflicts_with = "file"
    )]
    text: Option<String>,
    /// What to do, from a file
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// A path in a git repository, a URL, or a name of the configuration (default: here)
    #[arg(long, value_name = "PATH|URL|NAME", conflicts_with_all = ["dir", "no_repo"])]
    repo: Option<String>,
    /// Work without git on a private copy of this directory; `dispatch apply` writes back
    #[arg(long, value_name = "PATH", conflicts_with = "no_repo")]
    dir: Option<PathBuf>,
    /// Work in an empty directory: the answer is the result
    #[arg(long)]
    no_repo: bool,
    /// One of `dispatch agents`
    #[arg(long)]
    agent: Option<String>,
    /// The model, as the agent's program calls it
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Who goes first where tasks wait for the same pool
    #[arg(long, value_parser = ["low", "normal", "high", "urgent"])]
    priority: Option<String>,
    /// Start when this task has completed (may be given several times)
    #[arg(long, value_name = "ID")]
    after: Vec<String>,
    /// What all runs of the task may spend, in US dollars
    #[arg(long, value_name = "USD")]
    budget_usd: Option<f64>,
    /// The same in tokens
    #[arg(long, value_name = "N")]
    budget_tokens: Option<u64>,
    /// A placement of the configuration: cage (the default), container, host (no fence), your own
    #[arg(long, value_name = "NAME")]
    placement: Option<String>,
    /// Run in a container of this image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The container engine: auto, apple, docker, podman
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Start from this branch instead of what the repository has checked out
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pr", "tag", "dir", "no_repo"])]
    branch: Option<String>,
    /// Start from the head of this pull or merge request
    #[arg(long, value_name = "N", conflicts_with_all = ["tag", "dir", "no_repo"])]
    pr: Option<u64>,
    /// Start from this tag: the result is kept, and cannot be applied
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dir", "no_repo"])]
    tag: Option<String>,
    /// The issue that this is about: its text comes from the forge of the repository's URL
    #[arg(long, value_name = "N")]
    issue: Option<u64>,
    /// The issue's text from a file instead (`-`: standard input): a forge's JSON, or Markdown
    #[arg(long, value_name = "PATH", requires = "issue")]
    issue_file: Option<PathBuf>,
    /// How to work: coding (the default), review, security, ... (docs/prompts.md)
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Who works: engineering/rust-engineer, security/auditor, ...
    #[arg(long, value_name = "NAME")]
    persona: Option<String>,
    /// What to do in which order: bug-fix, new-feature, code-review, ...
    #[arg(long, value_name = "NAME")]
    plan: Option<String>,
    /// A variable of the template, persona or plan (may be given several times)
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    var: Vec<(String, String)>,
    /// A file that the agent is given to read (may be given several times)
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    /// How hard to think: none, minimal, low, medium, high, xhigh or max, as far as the agent takes it
    #[arg(long, value_name = "LEVEL", value_parser = effort)]
    effort: Option<Effort>,
    /// What becomes of the agent's permission requests, instead of what its table says
    #[arg(long, value_parser = ["allow", "ask", "deny"])]
    permissions: Option<String>,
    /// What the agent may do at Dispatch's own door, such as asking for tasks itself: a name of
    /// `[grants]`, or none
    #[arg(long, value_name = "NAME")]
    grant: Option<String>,
    /// What a good end looks like
    #[arg(long, value_enum)]
    expects: Option<ExpectsArg>,
    /// A review begins here: a branch, a tag, a commit, or steps back such as HEAD~2
    #[arg(long, value_name = "REVISION")]
    base: Option<String>,
    /// A check that must pass, instead of what the repository suggests (may be given several times)
    #[arg(long, value_name = "NAME")]
    check: Vec<String>,
    /// No checks: the result is then not verified
    #[arg(long, conflicts_with = "check")]
    no_checks: bool,
    /// A limit lower than configured, for this task (may be given several times)
    #[arg(long, value_name = "NAME=NUMBER", value_parser = limit)]
    limit: Vec<(Limit, u64)>,
    /// Name of the workspace; two live tasks never share one
    #[arg(long, value_name = "NAME")]
    workspace: Option<String>,
    /// When another task has the workspace: wait for it, instead of an error
    #[arg(long, conflicts_with = "supersede")]
    queue: bool,
    /// When another task has the workspace: stop that one, keep its result, and start
    #[arg(long)]
    supersede: bool,
    /// Show what would be done, and do nothing of it
    #[arg(long, conflicts_with_all = ["detach", "here"])]
    dry_run: bool,
    /// Do not wait: print the task and leave
    #[arg(short, long)]
    detach: bool,
    /// Keep the engine in this process instead of one of its own
    #[arg(long, conflicts_with = "detach")]
    pub(crate) here: bool,
    /// One JSON object at the end
    #[arg(long)]
    json: bool,
    /// Shown in lists instead of the first line
    #[arg(long)]
    title: Option<String>,
    /// For whom: a label, and the first part of the workspace's name
    #[arg(long, value_name = "NAME")]
    org: Option<String>,
}

/// `wall_clock_s=600`, for clap.
fn limit(text: &str) -> std::result::Result<(Limit, u64), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("write it as NAME=NUMBER, such as wall_clock_s=600")?;
    let value = value
        .parse()
        .map_err(|error| format!("read the number {value:?}: {error}"))?;
    Ok((name.parse()?, value))
}

fn variable(text: &str) -> std::result::Result<(String, String), String> {
    let split = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = split.ok_or("it is not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn effort(text: &str) -> std::result::Result<Effort, String> {
    let found = Effort::ALL.into_iter().find(|effort| effort.word() == text);
    found.ok_or_else(|| {
        let there = list(Effort::ALL.iter().map(|effort| effort.word()));
        format!("there are {there}")
    })
}

/// A text argument, standard input for `-`, or a file.
pub(crate) fn read_text(text: Option<&str>, file: Option<&PathBuf>) -> Result<String> {
    let mut out = String::new();
    let read: io::Result<usize> = match (text, file) {
        (Some("-"), _) => io::stdin()
            .lock()
            .take(TEXT_BYTES_MAX)
            .read_to_string(&mut out),
        (Some(text), _) => return Ok(text.to_owned()),
        (None, Some(file)) => {
            File::open(file).and_then(|file| file.take(TEXT_BYTES_MAX).read_to_string(&mut out))
        }
        (None, None) => Ok(0),
    };
    let name = file.map_or("standard input".into(), |file| file.display().to_string());
    read.map_err(|error| CliError::usage(format!("read the text from {name}: {error}")))?;
    Ok(out)
}

fn profile<'a>(
    settings: &'a Settings,
    name: &dispatch_core::id::AgentName,
) -> Result<&'a AgentProfile> {
    settings.config.agents.get(name).ok_or_else(|| {
        CliError::usage(format!("use agent {name}: it is not configured"))
            .hint("`dispatch agents` lists what is")
    })
}

/// The agent that a task has, or that a person names with a word behind its colon. The name alone of
/// an agent that needs such a word (`acp`) is one that a task has.
pub(super) fn agent_of(settings: &Settings, agent: &str) -> Result<AgentName> {
    let mut known = settings.config.agents.keys();
    match known.find(|known| known.as_str() == agent) {
        Some(name) => Ok(name.clone()),
        None => Ok(request::agent(&settings.config, Some(agent))?.agent),
    }
}

/// Whom our own agent asks, as far as that is known where its keys are taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Whom<'a> {
    /// As the task stands.
    now: &'a [Choice],
    tuned: Tuned<'a>,
}

impl<'a> Whom<'a> {
    pub(crate) fn of(task: &'a Task) -> Self {
        Self::now(&task.chain)
    }

    pub(crate) fn now(now: &'a [Choice]) -> Self {
        Self {
            now,
            tuned: Tuned::default(),
        }
    }

    pub(crate) fn tuned(self, tuned: Tuned<'a>) -> Self {
        Self { tuned, ..self }
    }

    fn chain(&self, settings: &Settings, agent: &AgentName) -> Result<Vec<Choice>> {
        let Tuned { model, chain, .. } = self.tuned;
        if model.is_none() && chain.is_none() && !self.now.is_empty() {
            return Ok(self.now.to_vec());
        }
        let own = settings.config.agents.get(agent);
        let own = own.and_then(|own| own.model.clone());
        let asked: Option<ModelName> = model
            .map(str::parse)
            .transpose()
            .map_err(BadRequest::from)?;
        let model = asked.or(own);
        let chain = settings.config.chain(agent, chain, model.as_ref());
        Ok(chain.map_err(BadRequest::from)?)
    }
}

/// What an agent's table takes from us, and the keys of those it asks.
pub(crate) fn agent_secrets(settings: &Settings, agent: &str, whom: Whom<'_>) -> Result<Secrets> {
    let name = agent_of(settings, agent)?;
    let own = profile(settings, &name)?;
    let found = match own.is_native() {
        true => settings
            .config
            .agent_for(&name, &whom.chain(settings, &name)?),
        false => None,
    };
    let taken = settings.secrets_of(&name, found.as_deref().unwrap_or(own));
    let (found, missing) = taken.map_err(|error| {
        let told = CliError::usage(chain(&error));
        match error.hint() {
            Some(hint) => told.hint(hint),
            None => told,
        }
    })?;
    if missing.is_empty() {
        return Ok(Secrets(found));
    }
    let names = missing.join(", ");
    Err(CliError::usage(format!(
        "use agent {name}: its table takes {names} from your environment, where it is not set"
    ))
    .hint(format!(
        "`export {names}=...`, or mark it `optional = true` in [agents.{name}]"
    )))
}

pub(crate) async fn run(ctx: &Ctx, args: Args) -> Result<Exit> {
    let settings = &ctx.settings;
    let (here, detach, json, dry) = (args.here, args.detach, args.json, args.dry_run);
    let after = ids_of(settings, &args.after).await?;
    let asked = Box::pin(request_of(ctx, args, after)).await?;
    if dry {
        let files = asked.attachments.clone();
        let spec = asked.spec(&settings.config)?;
        return dry_run::run(ctx, &spec, &files, json);
    }
    warn_of_uncommitted(ctx, &asked);
    let server = if here {
        serve::open_unless_served(settings).await?
    } else {
        None
    };
    let end = Box::pin(watched(ctx, &asked, detach, json)).await;
    if let Some(server) = server {
        server.tell_hooks().await;
        let closed = server.close().await;
        // The task's own end says more than the engine's.
        if end.is_ok() {
            closed.map_err(|error| CliError::failed("end the engine", &error))?;
        }
    }
    end
}

fn warn_of_uncommitted(ctx: &Ctx, asked: &Dispatch) {
    let settings = &ctx.settings;
    let named = asked.branch.is_some() || asked.pr.is_some() || asked.tag.is_some();
    let left_out = match &asked.repo {
        Some(repo) if !named => match request::place(&settings.config, repo) {
            path if path.starts_with('/') => repo::uncommitted(settings, path),
            _ => 0,
        },
        Some(_) | None => 0,
    };
    if left_out > 0 {
        let text = format!(
            "warning: {left_out} uncommitted file(s) are not part of what the task starts from"
        );
        out::aside(&ctx.style.paint(Colour::Yellow, &text));
    }
}

/// What a chat has of these.
#[cfg(feature = "tui")]
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) repo: Option<String>,
    pub(super) dir: Option<PathBuf>,
    pub(super) no_repo: bool,
    pub(super) branch: Option<String>,
    pub(super) agent: Option<String>,
    pub(super) model: Option<String>,
    pub(super) effort: Option<Effort>,
    pub(super) placement: Option<String>,
    pub(super) permissions: Option<String>,
    pub(super) grant: Option<String>,
    pub(super) check: Vec<String>,
    pub(super) no_checks: bool,
}

/// The task that a chat makes, but for its words: those are still to be typed. A turn of it may end
/// with a change or without one.
#[cfg(feature = "tui")]
pub(super) async fn chat_request(ctx: &Ctx, talk: Talk) -> Result<Dispatch> {
    let args = Args {
        text: Some("to be typed".to_owned()),
        repo: talk.repo,
        dir: talk.dir,
        no_repo: talk.no_repo,
        branch: talk.branch,
        agent: talk.agent,
        model: talk.model,
        effort: talk.effort,
        placement: talk.placement,
        permissions: talk.permissions,
        grant: talk.grant,
        check: talk.check,
        no_checks: talk.no_checks,
        expects: Some(ExpectsArg::Either),
        ..Args::default()
    };
    let asked = Box::pin(request_of(ctx, args, Vec::new())).await?;
    warn_of_uncommitted(ctx, &asked);
    Ok(asked)
}

/// The whole ids of tasks named by prefixes.
async fn ids_of(settings: &Settings, prefixes: &[String]) -> Result<Vec<String>> {
    if prefixes.is_empty() {
        return Ok(Vec::new());
    }
    let all = tasks::all(settings).await?;
    let id = |prefix: &String| Ok(ids::resolve(&all, prefix)?.id.clone());
    prefixes.iter().map(id).collect()
}

async fn request_of(ctx: &Ctx, args: Args, after: Vec<String>) -> Result<Dispatch> {
    let settings = &ctx.settings;
    let text = match (&args.text, &args.file) {
        // What a review is about is said by its commits.
        (None, None) if args.base.is_some() => REVIEW.to_owned(),
        (text, file) => read_text(text.as_deref(), file.as_ref())?,
    };
    let dir = args.dir.as_deref().map(repo::folder).transpose()?;
    let repo = match (&args.repo, &dir, args.no_repo) {
        (None, Some(_), _) | (None, _, true) => None,
        (repo, ..) => {
            let repo = repo.as_deref().unwrap_or(".");
            Some(repo::resolve(&settings.config, repo)?)
        }
    };
    let place = repo
        .as_deref()
        .map(|repo| request::place(&settings.config, repo));
    let (image, runtime) = container_asked(settings, &args);
    let checks = if args.no_checks {
        Some(ChecksWanted::Word(ChecksWord::None))
    } else if args.check.is_empty() {
        None
    } else {
        let names: std::result::Result<Vec<_>, dispatch_core::id::BadId> =
            args.check.iter().map(|name| name.parse()).collect();
        Some(ChecksWanted::Named(
            names.map_err(request::BadRequest::from)?,
        ))
    };
    let issue_text = issue(settings, &args, place).await?;
    let (text, title) = match &issue_text {
        Some(issue) if text.is_empty() => (
            format!("Do what issue {} asks for.", issue.number),
            Some(format!("issue {}: {}", issue.number, issue.title)),
        ),
        Some(_) | None => (text, None),
    };
    let mut limits = Lowered::default();
    for (limit, value) in args.limit {
        limits.set(limit, value);
    }
    let mut variables = BTreeMap::new();
    for (name, value) in args.var {
        if variables.insert(name.clone(), value).is_some() {
            return Err(CliError::usage(format!(
                "use --var {name}: it is given twice"
            )));
        }
    }
    let attachments = attach::read(settings, &args.attach)?;
    let mut asked = Dispatch {
        summon: None,
        chain: None,
        task: text,
        repo,
        dir,
        no_repo: args.no_repo,
        title: args.title.or(title),
        branch: args.branch,
        secrets: Secrets::default(),
        agent: args.agent,
        model: args.model,
        priority: args.priority.as_deref().map(priority),
        after,
        budget_tokens: args.budget_tokens,
        budget_usd: match args.budget_usd {
            Some(usd) => Some(
                usd.try_into()
                    .map_err(|error: BadMoney| CliError::usage(error.to_string()))?,
            ),
            None => None,
        },
        placement: args.placement,
        image,
        runtime,
        expects: match args.expects {
            Some(ExpectsArg::Change) => Some(Expects::Change),
            Some(ExpectsArg::Report) => Some(Expects::Report),
            Some(ExpectsArg::Either) => Some(Expects::Either),
            Some(ExpectsArg::Review) => Some(Expects::Review),
            None if args.base.is_some() => Some(Expects::Review),
            None => None,
        },
        permissions: args.permissions.as_deref().map(permissions),
        grant: args.grant,
        grant_most: None,
        rules: Vec::new(),
        rules_most: Vec::new(),
        detached: false,
        review_base: args.base.clone(),
        checks,
        workspace: args.workspace,
        taken: match (args.queue, args.supersede) {
            (true, _) => Taken::Queue,
            (false, true) => Taken::Supersede,
            (false, false) => Taken::Refuse,
        },
        parent: None,
        org: args.org,
        issue: args.issue,
        pr: args.pr,
        tag: args.tag,
        issue_text,
        limits,
        template: args.template,
        persona: args.persona,
        plan: args.plan,
        variables,
        effort: args.effort,
        attachments,
    };
    let agent = choose(settings, &mut asked)?;
    // A command that hands one out may ask somebody to touch a key.
    if !args.dry_run {
        asked.secrets = agent_secrets(settings, agent.name.as_str(), agent.whom(&asked))?;
    }
    let spec = check(settings, &asked, &agent)?;
    if !args.dry_run {
        let others = granted_secrets(settings, &spec);
        others.into_iter().for_each(|(key, value)| {
            asked.secrets.0.entry(key).or_insert(value);
        });
    }
    if let Some(container) = &spec.placement.container
        && let Some(warning) = container.image.warning()
    {
        let text = format!("warning: {warning}");
        out::aside(&ctx.style.paint(Colour::Yellow, &text));
    }
    Ok(asked)
}

/// Who is to do it, and what that needs here.
struct Chosen {
    name: AgentName,
    program: String,
    /// Behind its colon.
    model: Option<ModelName>,
}

impl Chosen {
    fn whom<'a>(&'a self, asked: &'a Dispatch) -> Whom<'a> {
        let own = self.model.as_ref().map(ModelName::as_str);
        Whom::default().tuned(Tuned {
            model: asked.model.as_deref().or(own),
            chain: asked.chain.as_deref(),
            effort: asked.effort,
        })
    }
}

/// The engine does it, too; here it says whose keys are needed.
fn choose(settings: &Settings, asked: &mut Dispatch) -> Result<Chosen> {
    project::fill(asked, &settings.config, &settings.paths.config)?;
    let selection = request::agent(&settings.config, asked.agent.as_deref())?;
    let name = selection.agent;
    let own = profile(settings, &name)?;
    let program = selection.command.into_iter().next();
    asked.agent.get_or_insert_with(|| name.to_string());
    Ok(Chosen {
        program: program.unwrap_or_else(|| own.program.clone()),
        name,
        model: selection.model,
    })
}

/// What the engine would refuse is refused before one is started for it.
fn check(settings: &Settings, asked: &Dispatch, agent: &Chosen) -> Result<TaskSpec> {
    let spec = asked.clone().spec(&settings.config)?;
    let Chosen { name, program, .. } = agent;
    let own = settings
        .config
        .agents
        .get(name)
        .is_some_and(AgentProfile::is_native);
    if !own && spec.placement.wrap != Wrap::Container && settings.find(program).is_none() {
        let what = format!("use agent {name}: its program {program:?} is not on PATH");
        return Err(CliError::usage(what).hint(agents::how_to_get(program)));
    }
    Ok(spec)
}

/// For a request of somebody who sits beside us, such as an editor: the repository is the one we were
/// started in where none is named, and the keys are those that we have.
pub(crate) async fn complete(settings: &Settings, asked: &mut Dispatch) -> Result<()> {
    if let Some(dir) = &asked.dir {
        asked.dir = Some(repo::folder(dir.as_ref())?);
    } else if !asked.no_repo {
        let named = asked.repo.as_deref().unwrap_or(".");
        asked.repo = Some(repo::resolve(&settings.config, named)?);
    }
    if let (Some(number), None) = (asked.issue, &asked.issue_text) {
        let place = asked.repo.as_deref();
        let place = place.map(|repo| request::place(&settings.config, repo));
        asked.issue_text = match of_forge(settings, number, place).await {
            Ok(found) => found,
            Err(error) => {
                without_its_text(&error);
                None
            }
        };
    }
    let agent = choose(settings, asked)?;
    asked.secrets = agent_secrets(settings, agent.name.as_str(), agent.whom(asked))?;
    check(settings, asked, &agent)?;
    Ok(())
}

/// What the forge of a repository says of an issue; `None`: no forge is configured for it.
async fn of_forge(
    settings: &Settings,
    number: u64,
    place: Option<&str>,
) -> std::result::Result<Option<IssueText>, IssueError> {
    match hosted(settings, place) {
        Some(hosted) => forge::fetch(settings, &hosted, number).await.map(Some),
        None => Ok(None),
    }
}

fn hosted(settings: &Settings, place: Option<&str>) -> Option<Hosted> {
    let url = repo::url(settings, place?)?;
    Hosted::of(&url).filter(|hosted| forge::forge_of(settings, hosted).is_some())
}

fn without_its_text(error: &IssueError) {
    let why = chain(error);
    out::aside(&format!(
        "warning: {why}; the task goes on without its text"
    ));
}

/// What the issue says. Beside a task's own text it is a help, without one it is needed.
async fn issue(settings: &Settings, args: &Args, place: Option<&str>) -> Result<Option<IssueText>> {
    let Some(number) = args.issue else {
        return Ok(None);
    };
    let told = |error: IssueError| CliError::usage(chain(&error));
    if let Some(file) = &args.issue_file {
        let text = match file.to_str() {
            Some("-") => read_text(Some("-"), None)?,
            _ => read_text(None, Some(file))?,
        };
        return forge::parse(number, &text).map(Some).map_err(told);
    }
    let needed = args.text.is_none() && args.file.is_none() && args.base.is_none();
    let Some(hosted) = hosted(settings, place) else {
        if !needed {
            return Ok(None);
        }
        let what = format!("read issue {number}: no forge is configured for this repository's URL");
        let hint = "give its text with --issue-file, say what to do yourself, or add [forges.NAME]";
        return Err(CliError::usage(what).hint(hint));
    };
    if args.dry_run {
        let title = format!("(read from {hosted} when it is run)");
        return Ok(Some(IssueText {
            number,
            title,
            ..IssueText::default()
        }));
    }
    match forge::fetch(settings, &hosted, number).await {
        Ok(issue) => Ok(Some(issue)),
        Err(error) if needed => {
            Err(told(error).hint("--issue-file gives its text without the forge"))
        }
        Err(error) => {
            without_its_text(&error);
            Ok(None)
        }
    }
}

/// Of the agents that a task may ask for by name: what its children cannot bring, it hands on. What is
/// not there they ask a person for.
fn granted_secrets(settings: &Settings, spec: &TaskSpec) -> BTreeMap<String, Secret> {
    let grant = spec.terms.grant.as_deref();
    let Some(Among::Only(agents)) = grant.map(|grant| &grant.agents) else {
        return BTreeMap::new();
    };
    let others = agents.iter().filter(|name| **name != spec.agent);
    let profiles = others.filter_map(|name| Some((name, settings.config.agents.get(name)?)));
    let taken = profiles.filter_map(|(name, profile)| settings.secrets_of(name, profile).ok());
    taken.flat_map(|(found, _)| found).collect()
}

/// Clap has looked at the word.
fn permissions(word: &str) -> Permissions {
    let known = Permissions::ALL.into_iter().find(|one| one.word() == word);
    known.unwrap_or_default()
}

/// Clap has looked at the word.
fn priority(word: &str) -> Priority {
    match word {
        "low" => Priority::Low,
        "high" => Priority::High,
        "urgent" => Priority::Urgent,
        _ => Priority::Normal,
    }
}

/// What the command line says, else the environment, which does not undo a placement by name.
fn container_asked(settings: &Settings, args: &Args) -> (Option<String>, Option<String>) {
    let placed = args.placement.as_deref().is_some_and(|name| {
        let found = settings.config.placements.iter();
        let mut found = found.filter(|(known, _)| known.as_str() == name);
        found.any(|(_, placement)| placement.wrap != Wrap::Container)
    });
    let (image, runtime) = if placed {
        (None, None)
    } else {
        settings.container_variables()
    };
    // A runtime says which engine a container goes to, not that there is to be one.
    let runtime = runtime.filter(|_| image.is_some() || args.image.is_some());
    (
        args.image.clone().or(image),
        args.runtime.clone().or(runtime),
    )
}

async fn watched(ctx: &Ctx, asked: &Dispatch, detach: bool, json: bool) -> Result<Exit> {
    let (client, task): (_, Task) = start::make(&ctx.settings, "/v1/tasks", asked).await?;
    if task.placement == "host" {
        let text = format!(
            "{}: placement host: the agent runs as you, with no fence around it",
            task.short
        );
        out::aside(&ctx.style.paint(Colour::Yellow, &text));
    }
    if !detach {
        let screen = Screen::new(ctx.style, json, &task);
        let task = follow::to_end(ctx, client, &task, screen).await?;
        return follow::finish(ctx, &task, json);
    }
    if json {
        out::json(&task)?;
        return Ok(Exit::Completed);
    }
    out::line(&format!(
        "{} {} {}",
        task.short,
        task.state,
        clean_line(&task.title)
    ))?;
    if let Some(waits) = waits_line(&task) {
        out::line(&format!("  {waits}"))?;
    }
    for line in next_lines(&task) {
        out::line(&line)?;
    }
    Ok(Exit::Completed)
}
