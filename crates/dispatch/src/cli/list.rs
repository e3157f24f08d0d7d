//! `dispatch list`. Must not start an engine.

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out,
    screen::waits_line,
    style::{clean_line, cut, span},
    tasks,
};
use crate::api::task::{STATES, Task};

const REASON_CHARS: usize = 80;

/// Show tasks by what they need: you, nothing, their turn, or nothing any more.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch list\n  dispatch list --state blocked\n  dispatch list --all --json"
)]
pub(crate) struct Args {
    /// Removed ones too
    #[arg(long)]
    all: bool,
    /// Only tasks in this state (may be given several times)
    #[arg(long, value_parser = STATES)]
    state: Vec<String>,
    /// One JSON array
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let all = tasks::all(&ctx.settings).await?;
    let wanted = |task: &&Task| {
        (args.all || !task.removed) && (args.state.is_empty() || args.state.contains(&task.state))
    };
    let shown: Vec<&Task> = all.iter().filter(wanted).collect();
    if args.json {
        out::json(&shown)?;
        return Ok(Exit::Completed);
    }
    if shown.is_empty() {
        out::line("no tasks; `dispatch run --repo . \"...\"` makes one")?;
    }
    let now = jiff::Timestamp::now();
    for group in GROUPS {
        let of_group: Vec<&&Task> = shown
            .iter()
            .filter(|task| group_of(task) == group)
            .collect();
        if of_group.is_empty() {
            continue;
        }
        let head = format!("{group} ({})", of_group.len());
        out::line(&ctx.style.paint(super::style::Colour::Bold, &head))?;
        for task in of_group {
            out::line(&row(ctx, task, now)?)?;
        }
    }
    Ok(Exit::Completed)
}

/// By what the person must do, the most urgent first.
pub(super) const GROUPS: [&str; 4] = ["needs you", "working", "waiting", "done"];

pub(super) fn group_of(task: &Task) -> &'static str {
    match task.state.as_str() {
        _ if task.removed => "done",
        _ if task.needs_you() || task.open_asks().next().is_some() => "needs you",
        "blocked" | "failed" | "lost" => "needs you",
        "queued" => "waiting",
        "completed" | "stopped" => "done",
        _ => "working",
    }
}

fn row(ctx: &Ctx, task: &Task, now: jiff::Timestamp) -> Result<String> {
    let created: jiff::Timestamp = task
        .created_at
        .parse()
        .map_err(|error| CliError::failed("read a time", &error))?;
    let age = u64::try_from(now.as_second() - created.as_second()).unwrap_or(0);
    let repo = task
        .repo
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or("-");
    let state = ctx.style.state(&task.state);
    // Colours have no width, so the padding is put outside of them.
    let pad = " ".repeat(10_usize.saturating_sub(task.state.len()));
    let mut line = format!(
        "  {:<4} {state}{pad} {:<8} {:>6}  {:<12} {}",
        task.short,
        cut(&task.agent, 8),
        span(age),
        cut(&clean_line(repo), 12),
        clean_line(&task.title),
    );
    let reason = waits_line(task).or_else(|| task.reason.as_deref().map(clean_line));
    if let Some(reason) = reason.filter(|_| task.state != "completed") {
        let reason = cut(&reason, REASON_CHARS);
        line.push_str(
            &ctx.style
                .paint(super::style::Colour::Dim, &format!("  ({reason})")),
        );
    }
    if task.placement == "host" && task.is_open() {
        line.push_str(
            &ctx.style
                .paint(super::style::Colour::Yellow, "  [host: no fence]"),
        );
    }
    if task.removed {
        line.push_str("  [removed]");
    }
    Ok(line)
}
