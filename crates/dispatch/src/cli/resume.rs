//! `dispatch resume`: another run of a task that has ended, perhaps by another agent. It passes the
//! gate like any other.

use super::{
    Ctx,
    attach::Tune,
    error::Result,
    exit::Exit,
    follow, out,
    run::{Whom, agent_secrets},
    screen::{Screen, waits_line},
    style::clean_line,
    tasks,
};
use crate::{
    api::{request, task::Task},
    client::start,
};

/// Go on with a task that has ended, in the same workspace.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch resume 3f\n  dispatch resume 3f --agent codex --follow"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// Another agent goes on: without the session, with everything that was said
    #[arg(long)]
    agent: Option<String>,
    #[command(flatten)]
    tune: Tune,
    /// Watch the run to its end, as `run` does
    #[arg(short, long)]
    follow: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let agent = args.agent.as_deref().unwrap_or(&task.agent);
    args.tune.check(&ctx.settings, agent)?;
    let now = match &args.agent {
        Some(_) => Whom::default(),
        None => Whom::of(&task),
    };
    let secrets = agent_secrets(&ctx.settings, agent, now.tuned(args.tune.tuned()))?;
    let asked = request::Resume {
        agent: args.agent.clone(),
        model: args.tune.model,
        effort: args.tune.effort,
        chain: None,
        secrets,
    };
    let path = format!("/v1/tasks/{}/resume", task.id);
    let (client, task): (_, Task) = start::make(&ctx.settings, &path, &asked).await?;
    if args.follow {
        let screen = Screen::new(ctx.style, args.json, &task);
        let task = follow::to_end(ctx, client, &task, screen).await?;
        return follow::finish(ctx, &task, args.json);
    }
    if args.json {
        out::json(&task)?;
        return Ok(Exit::Completed);
    }
    let n = task.runs.last().map_or(0, |run| run.n);
    let title = clean_line(&task.title);
    out::line(&format!("{} {} (run {n}) {title}", task.short, task.state))?;
    if let Some(waits) = waits_line(&task) {
        out::line(&format!("  {waits}"))?;
    }
    Ok(Exit::Completed)
}
