//! `dispatch say` and `unsay`: a message for a task, to its running agent or its next run, and a
//! message taken back.

use std::path::PathBuf;

use super::{
    Ctx,
    attach::{self, Tune},
    error::{CliError, Result},
    exit::Exit,
    follow, out,
    run::{Whom, agent_of, agent_secrets, read_text},
    screen::Screen,
    tasks,
};
use crate::{
    api::{Spoken, request, task::Task},
    client::{Client, start},
};
use dispatch_core::message::MessageId;

/// Say something to a task: to its agent while it runs, else with its next run.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch say 3f \"leave the tests alone\"\n  dispatch say 3f --follow - < more.txt\n  dispatch say 3f --attach trace.log \"it still fails\"\n  dispatch say 3f --model opus --effort high \"try harder\""
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// The message; `-` reads it from standard input
    text: String,
    /// A file that comes with it, to a run that has not begun (may be given several times)
    #[arg(long, value_name = "FILE")]
    attach: Vec<PathBuf>,
    #[command(flatten)]
    tune: Tune,
    /// Watch the task to its end, as `run` does
    #[arg(short, long)]
    follow: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: Args) -> Result<Exit> {
    let text = read_text(Some(&args.text), None)?;
    let attachments = attach::read(&ctx.settings, &args.attach)?;
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let agent = agent_of(&ctx.settings, &task.agent)?;
    request::check_attachments(&ctx.settings.config, &agent, &attachments)?;
    args.tune.check(&ctx.settings, &task.agent)?;
    let whom = Whom::of(&task).tuned(args.tune.tuned());
    let secrets = agent_secrets(&ctx.settings, &task.agent, whom)?;
    let asked = request::Say {
        text,
        attachments,
        model: args.tune.model,
        effort: args.tune.effort,
        chain: None,
        secrets,
    };
    let path = format!("/v1/tasks/{}/say", task.id);
    let (client, spoken): (_, Spoken) = start::make(&ctx.settings, &path, &asked).await?;
    if args.follow {
        let screen = Screen::new(ctx.style, args.json, &spoken.task);
        let task = follow::to_end(ctx, client, &spoken.task, screen).await?;
        return follow::finish(ctx, &task, args.json);
    }
    if args.json {
        out::json(&spoken)?;
    } else {
        out::line(&spoken_line(&spoken))?;
    }
    Ok(Exit::Completed)
}

/// Where a message is.
pub(super) fn spoken_line(spoken: &Spoken) -> String {
    let task = &spoken.task;
    let (short, message) = (&task.short, spoken.message);
    let (n, open) = (
        task.runs.last().map_or(0, |run| run.n),
        task.runs.last().is_some_and(|run| run.started_at.is_none()),
    );
    let what = match spoken.how.as_str() {
        "delivered" => "delivered to the running agent".to_owned(),
        "on_its_way" => "on its way: the running agent takes it up at its next step".to_owned(),
        "queued" if open => format!("comes with run {n}"),
        "queued" => format!("comes with the next run, after run {n}"),
        _ => "held, until a person says something".to_owned(),
    };
    format!("{short} message {message}: {what}")
}

/// Take a message back that no agent has heard yet.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch unsay 3f 2")]
pub(crate) struct UnsayArgs {
    /// A task, by a prefix of its id
    id: String,
    /// The number of the message
    message: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn unsay(ctx: &Ctx, args: &UnsayArgs) -> Result<Exit> {
    let message = args.message.parse::<MessageId>();
    let message = message.map_err(|error| CliError::usage(error.to_string()))?;
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let path = format!("/v1/tasks/{}/messages/{message}", task.id);
    let ask = async |client: &Client| client.delete(&path).await;
    let (_, task): (_, Task) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&task)?;
    } else {
        out::line(&format!("{} message {message}: taken back", task.short))?;
    }
    Ok(Exit::Completed)
}
