//! `dispatch run`: a task in, watched to its end. A client like any other; `--here` only brings its
//! own engine along.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use dispatch_core::{
    config::AgentProfile,
    project::Project,
    task::{Expects, IssueText, Taken, Wrap},
};

use super::{
    Ctx, agents, dry_run,
    error::{CliError, Result, chain},
    exit::Exit,
    follow, out, repo,
    screen::{Screen, next_lines},
    serve,
    style::{Colour, clean_line},
};
use crate::{
    api::{
        request::{self, ChecksWanted, ChecksWord, Dispatch, Secrets},
        task::Task,
    },
    client::{Client, start},
    forge::{self, Hosted, IssueError},
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
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch run --repo . \"Fix the failing test in parser.rs\"\n  dispatch run --repo ../api --agent codex --detach \"Add pagination to /users\"\n  dispatch run --expects report --no-checks --file review.md\n  git log -5 | dispatch run -\n\nCtrl-C stops the task, twice kills it; a hang-up leaves it alive.\nExit codes: 0 completed, 1 failed or lost, 2 usage, 3 blocked, 4 stopped, 5 engine unreachable."
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
    /// A placement of the configuration: cage (the default), host (no fence), your own
    #[arg(long, value_name = "NAME")]
    placement: Option<String>,
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

/// What an agent's table takes from us.
pub(crate) fn agent_secrets(settings: &Settings, agent: &str) -> Result<Secrets> {
    let name = request::agent(&settings.config, Some(agent))?;
    let taken = settings.secrets_of(&name, profile(settings, &name)?);
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
    let asked = Box::pin(request_of(settings, args)).await?;
    if dry {
        let spec = asked.spec(&settings.config)?;
        let profile = profile(settings, &spec.agent)?;
        return dry_run::run(ctx, &spec, profile, json);
    }
    let named = asked.branch.is_some() || asked.pr.is_some() || asked.tag.is_some();
    let left_out = match &asked.repo {
        Some(repo) if !named => match repo::place(&settings.config, repo) {
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
    let server = if here {
        serve::open_unless_served(settings).await?
    } else {
        None
    };
    let end = Box::pin(watched(ctx, &asked, detach, json)).await;
    if let Some(server) = server {
        let closed = server.close().await;
        // The task's own end says more than the engine's.
        if end.is_ok() {
            closed.map_err(|error| CliError::failed("end the engine", &error))?;
        }
    }
    end
}

async fn request_of(settings: &Settings, args: Args) -> Result<Dispatch> {
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
    // Of a directory without git nothing is read before it is copied.
    let place = repo
        .as_deref()
        .map(|repo| repo::place(&settings.config, repo));
    let project = match place {
        Some(path) if path.starts_with('/') => repo::project(settings, path)?,
        Some(_) | None => Project::default(),
    };
    let by_repository = args.agent.is_none() && project.agent.is_some();
    let wanted = args.agent.clone().or(project.agent);
    let name = request::agent(&settings.config, wanted.as_deref())?;
    let agent = profile(settings, &name)?;
    // A repository may choose among what was configured, but never its way out of the fence.
    let own = settings.config.placement_of(agent).as_str();
    if by_repository && args.placement.is_none() && own == Wrap::Host.word() {
        let what = format!(
            "use agent {name}, which the repository's dispatch.toml chose: its placement is host, \
             which has no fence"
        );
        let hint = format!("if that is what you want, say so yourself: --agent {name}");
        return Err(CliError::usage(what).hint(hint));
    }
    let program = &agent.program;
    if settings.find(program).is_none() {
        let what = format!("use agent {name}: its program {program:?} is not on PATH");
        return Err(CliError::usage(what).hint(agents::how_to_get(program)));
    }
    let checks = if args.no_checks {
        Some(ChecksWanted::Word(ChecksWord::None))
    } else if args.check.is_empty() {
        project.checks.map(ChecksWanted::Named)
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
    let asked = Dispatch {
        task: text,
        repo,
        dir,
        no_repo: args.no_repo,
        title: args.title.or(title),
        branch: args.branch,
        // A command that hands one out may ask somebody to touch a key.
        secrets: match args.dry_run {
            true => Secrets::default(),
            false => agent_secrets(settings, name.as_str())?,
        },
        agent: Some(name.to_string()),
        placement: args.placement,
        expects: match args.expects {
            Some(ExpectsArg::Change) => Some(Expects::Change),
            Some(ExpectsArg::Report) => Some(Expects::Report),
            Some(ExpectsArg::Either) => Some(Expects::Either),
            Some(ExpectsArg::Review) => Some(Expects::Review),
            None if args.base.is_some() => Some(Expects::Review),
            None => project.expects,
        },
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
    };
    // What the engine would refuse is refused before one is started for it.
    asked.clone().spec(&settings.config)?;
    Ok(asked)
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
    let hosted = place
        .and_then(|place| repo::url(settings, place))
        .and_then(|url| Hosted::of(&url));
    let known = hosted.filter(|hosted| forge::forge_of(settings, hosted).is_some());
    let Some(hosted) = known else {
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
            out::aside(&format!(
                "warning: {}; the task goes on without its text",
                chain(&error)
            ));
            Ok(None)
        }
    }
}

async fn watched(ctx: &Ctx, asked: &Dispatch, detach: bool, json: bool) -> Result<Exit> {
    let ask = async |client: &Client| client.post("/v1/tasks", asked).await;
    let (client, task): (_, Task) = start::ask(&ctx.settings, ask).await?;
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
    for line in next_lines(&task) {
        out::line(&line)?;
    }
    Ok(Exit::Completed)
}
