//! `dispatch answer`: the question of a blocked task, answered; it goes on where it was.

use super::{
    Ctx,
    attach::Tune,
    error::Result,
    exit::Exit,
    follow, out,
    run::{Whom, agent_secrets, read_text},
    screen::Screen,
    style::clean_line,
    tasks,
};
use crate::{
    api::{request, task::Task},
    client::start,
};

/// Answer the question of a blocked task.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch answer 3f \"use UTC\"\n  dispatch answer 3f --follow - < answer.txt"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// The answer; `-` reads it from standard input
    text: String,
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
    let text = read_text(Some(&args.text), None)?;
    let task = tasks::one(&ctx.settings, &args.id).await?;
    args.tune.check(&ctx.settings, &task.agent)?;
    let whom = Whom::of(&task).tuned(args.tune.tuned());
    let secrets = agent_secrets(&ctx.settings, &task.agent, whom)?;
    let asked = request::Answer {
        text,
        model: args.tune.model,
        effort: args.tune.effort,
        chain: None,
        secrets,
    };
    let path = format!("/v1/tasks/{}/answer", task.id);
    let (client, task): (_, Task) = start::make(&ctx.settings, &path, &asked).await?;
    if args.follow {
        let screen = Screen::new(ctx.style, args.json, &task);
        let task = follow::to_end(ctx, client, &task, screen).await?;
        return follow::finish(ctx, &task, args.json);
    }
    if args.json {
        out::json(&task)?;
    } else {
        let n = task.runs.last().map_or(0, |run| run.n);
        out::line(&format!(
            "{} {} (run {n}) {}",
            task.short,
            task.state,
            clean_line(&task.title)
        ))?;
    }
    Ok(Exit::Completed)
}
