//! `dispatch show`. Must not start an engine.

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    screen::{checks_line, diffstat_line, next_lines, waits_line},
    style::{Colour, Style, clean_line, clean_text},
    tasks,
};
use dispatch_core::{
    ask::shown,
    carried::Can,
    grant::{Among, Grant},
    review::Review,
};
use dispatch_engine::prompts::sha256;

use crate::api::task::{
    Ask, Attachment, Budget, Child, Exit as JobExit, Message, NextRun, Run, Summoned, Task,
};

/// Show one task: what was asked, its runs, its result.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch show 3f\n  dispatch show 3f --json | jq -r .state\n  dispatch show 3f --prompt --run 1"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Exactly what the agent was given to read
    #[arg(long, conflicts_with = "json")]
    prompt: bool,
    /// Of this run instead of the last one
    #[arg(long, value_name = "N", requires = "prompt")]
    run: Option<u32>,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    if args.prompt {
        return prompt(ctx, &task, args.run);
    }
    if args.json {
        out::json(&task)?;
    } else {
        for line in lines(ctx.style, &task) {
            out::line(&line)?;
        }
    }
    Ok(Exit::Completed)
}

/// Only what is as it was recorded is shown as what an agent was given.
fn prompt(ctx: &Ctx, task: &Task, n: Option<u32>) -> Result<Exit> {
    let run = match n {
        None => task.runs.last(),
        Some(n) => Some(task.runs.iter().find(|run| run.n == n).ok_or_else(|| {
            let what = format!("find run {n}: task {} has {}", task.short, task.runs.len());
            CliError::usage(what)
        })?),
    };
    let Some(made) = run.and_then(|run| run.prompt.as_ref()) else {
        let what = format!("show the prompt of task {}: there is none yet", task.short);
        let hint = "it is made when the workspace is ready; older versions kept none";
        return Err(CliError::new(Exit::Failed, what).hint(hint));
    };
    let path = made.path.display();
    let bytes = std::fs::read(&made.path)
        .map_err(|error| CliError::failed(format!("read the prompt in {path}"), &error))?;
    if sha256(&bytes) != made.sha256 {
        let what = format!("show the prompt of task {}: {path} was changed", task.short);
        let hint = format!("its sha256 was {}", made.sha256);
        return Err(CliError::new(Exit::Failed, what).hint(hint));
    }
    if ctx.style.tty {
        let text = String::from_utf8_lossy(&bytes);
        out::bytes(clean_text(&text).as_bytes())?;
    } else {
        out::bytes(&bytes)?;
    }
    Ok(Exit::Completed)
}

pub(super) fn lines(style: Style, task: &Task) -> Vec<String> {
    let bold = |text: &str| style.paint(Colour::Bold, text);
    let mut out = vec![format!(
        "{} {} {}",
        bold(&task.short),
        style.state(&task.state),
        bold(&clean_line(&task.title))
    )];
    let mut field = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            out.push(format!(
                "  {name:<10} {}",
                clean_text(value).replace('\n', "\n             ")
            ));
        }
    };
    let waits = waits_line(task);
    field("reason", waits.as_deref().or(task.reason.as_deref()));
    field("id", Some(&task.id));
    field("repo", Some(&task.repo));
    field("branch", Some(&task.branch));
    field("base", task.base.as_deref());
    field(
        "from",
        Some(task.from.as_str()).filter(|from| *from != "head"),
    );
    field("behind", task.behind.as_deref());
    let model = task.model.as_ref().map(|model| format!(", model {model}"));
    let agent = format!("{}{}", task.agent, model.unwrap_or_default());
    field("agent", Some(&agent));
    field(
        "next run",
        task.next_run.as_ref().map(next_run_line).as_deref(),
    );
    field("pool", Some(&task.pool));
    if task.priority != "normal" {
        field("priority", Some(&task.priority));
    }
    if !task.after.is_empty() {
        field("after", Some(&task.after.join(" ")));
    }
    field("budget", task.budget.map(budget_text).as_deref());
    let placement = match &task.enforced {
        Some(enforced) => format!("{} ({enforced})", task.placement),
        None => task.placement.clone(),
    };
    field("placement", Some(&placement));
    field("image", task.image.as_deref());
    field("runtime", task.runtime.as_deref());
    field(
        "workspace",
        task.workspace.as_ref().and_then(|path| path.to_str()),
    );
    let guide = &task.guide;
    let names = [&guide.template, &guide.persona, &guide.plan];
    let names: Vec<&str> = names.into_iter().flatten().map(String::as_str).collect();
    field(
        "guide",
        Some(names.join(", ")).filter(|n| !n.is_empty()).as_deref(),
    );
    field("created", Some(&task.created_at));
    field("parent", task.parent.as_deref());
    let asked = task.asked_by.as_deref();
    let asked = asked.map(|run| match task.detached {
        true => format!("run {run}, which does not wait for it"),
        false => format!("run {run}"),
    });
    field("asked by", asked.as_deref());
    field(
        "summoned as",
        task.summoned.as_ref().map(summoned_line).as_deref(),
    );
    field("until", task.until.as_deref());
    field("grant", task.grant.as_ref().map(grant_line).as_deref());
    for child in &task.children {
        field(
            &format!("child {}", child.short),
            Some(&child_line(task, child)),
        );
    }
    field("result", diffstat_line(task).as_deref());
    field("verified", Some(&checks_line(task)));
    for note in &task.notes {
        field("note", Some(note));
    }
    for item in &task.carried {
        let all = [Can::RunCommands, Can::ChangeAccess, Can::Instruct];
        let known = all.iter().find(|can| can.word() == item.can);
        let phrase = known.map_or(item.can.as_str(), |can| can.phrase());
        field("carries", Some(&format!("{} ({phrase})", item.path)));
    }
    if task.permissions != "allow" {
        field("permits", Some(&task.permissions));
    }
    for ask in &task.asks {
        field(&format!("asked {}", ask.id), Some(&asked_line(ask)));
    }
    for message in &task.messages {
        field(&format!("said {}", message.id), Some(&said_line(message)));
    }
    for file in &task.attachments {
        field("attached", Some(&attached_line(file)));
    }
    let review = task.runs.iter().rev().find_map(|run| run.review.as_ref());
    for line in review.iter().flat_map(|review| review_lines(review)) {
        field("review", Some(&line));
    }
    for run in &task.runs {
        field(&format!("run {}", run.n), Some(&run_line(run)));
    }
    if task.task.trim() != task.title {
        field("task", Some(&task.task));
    }
    out.extend(next_lines(task));
    out
}

/// The verdict, then what was found, the worst first.
pub(crate) fn review_lines(review: &Review) -> Vec<String> {
    let short = |commit: &str| commit.chars().take(12).collect::<String>();
    let range = &review.range;
    let (base, head) = (short(&range.base), short(&range.head));
    let mut out = vec![format!("{} ({base}..{head})", review.verdict.word())];
    if !review.note.is_empty() {
        out.push(review.note.clone());
    }
    let mut findings: Vec<_> = review.findings.iter().collect();
    findings.sort_by_key(|finding| finding.severity);
    out.extend(findings.iter().map(ToString::to_string));
    out
}

/// What is asked stands alone at the end, so that all of it is read as that.
fn asked_line(ask: &Ask) -> String {
    let how = match (&ask.by, &ask.why) {
        _ if ask.is_open() => format!("waits until {}", ask.until),
        (Some(by), Some(why)) => format!("{} by {by}: {why}", ask.state),
        (Some(by), None) => format!("{} by {by}", ask.state),
        (None, _) => ask.state.clone(),
    };
    let owner = match ask.owner.as_str() {
        "person" => String::new(),
        task => format!(", task {task} is to answer"),
    };
    let what = shown(&format!("{}: {}", ask.tool, ask.input));
    format!("({how}{owner}, run {}) {what}", ask.run)
}

/// What it may do, and how much of it.
fn summoned_line(summoned: &Summoned) -> String {
    let whose = match summoned.scope.as_str() {
        "repository" => ", as the repository has it",
        _ => "",
    };
    let there = match summoned.directory.as_str() {
        "" => String::new(),
        directory => format!(", in {directory}"),
    };
    format!("{}{whose}{there}", summoned.agent)
}

fn grant_line(grant: &Grant) -> String {
    let tools: Vec<&str> = grant.tools.iter().map(|tool| tool.word()).collect();
    let agents = match &grant.agents {
        Among::Any => "any agent".to_owned(),
        Among::Only(names) => names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let asked = if grant.asked {
        "what somebody lets it summon: "
    } else {
        ""
    };
    format!(
        "{asked}{}; {agents}; {} tasks, {} at once, {} deep",
        tools.join(", "),
        grant.children_max,
        grant.children_live_max,
        grant.depth
    )
}

/// How it is, and whether its asker knows.
fn child_line(task: &Task, child: &Child) -> String {
    let ends = task.ends.iter().rev();
    let end = ends.clone().find(|end| end.task == child.id);
    let told = match end.map(|end| (end.state.as_str(), end.message)) {
        Some(("told", Some(message))) => format!(", told in message {message}"),
        Some(("owed", _)) => ", not told yet".to_owned(),
        Some(("waited_for", _)) => ", heard while it was waited for".to_owned(),
        Some(_) | None => String::new(),
    };
    let alone = if child.detached {
        ", not waited for"
    } else {
        ""
    };
    format!("{}{told}{alone}", child.state)
}

fn attached_line(file: &Attachment) -> String {
    let with = file.message.map(|n| format!(", with message {n}"));
    let with = with.unwrap_or_default();
    format!(
        "{} ({} bytes{with})\n{}",
        file.name,
        file.bytes,
        file.path.display()
    )
}

fn next_run_line(next: &NextRun) -> String {
    let model = next.model.as_ref().map(|model| format!("model {model}"));
    let effort = next
        .effort
        .map(|effort| format!("effort {}", effort.word()));
    let words: Vec<String> = model.into_iter().chain(effort).collect();
    words.join(", ")
}

fn said_line(message: &Message) -> String {
    let how = match (&message.delivery, message.run) {
        (Some(delivery), Some(run)) => format!("{delivery}, run {run}"),
        (_, Some(run)) => format!("on its way, run {run}"),
        (_, None) => message.state.clone(),
    };
    let from = match message.from.as_str() {
        "person" | "dispatch" => String::new(),
        task => format!(", from {task}"),
    };
    format!("({how}{from}) {}", message.text)
}

fn budget_text(budget: Budget) -> String {
    match (budget.usd > 0.0, budget.tokens) {
        (true, 0) => format!("${:.2}", budget.usd),
        (true, tokens) => format!("${:.2} and {tokens} tokens", budget.usd),
        (false, tokens) => format!("{tokens} tokens"),
    }
}

fn run_line(run: &Run) -> String {
    let mut out = format!("{} ({})", run.state, run.cause);
    match run.exit {
        Some(JobExit::Code(code)) => out.push_str(&format!(", exit code {code}")),
        Some(JobExit::Signal(signal)) => out.push_str(&format!(", signal {signal}")),
        None => {}
    }
    if let Some(pid) = run.pid {
        out.push_str(&format!(", keeper {pid}"));
    }
    if let Some(usage) = &run.usage {
        let cost = usage.cost_usd.map(|cost| format!(", ${cost:.2}"));
        out.push_str(&cost.unwrap_or_default());
    }
    if let Some(log) = &run.log {
        out.push_str(&format!("\nlog {}", log.display()));
    }
    out
}
