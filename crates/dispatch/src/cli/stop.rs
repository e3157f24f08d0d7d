//! `dispatch stop`: asks an agent to end, or kills it, and waits until it has.

use super::{Ctx, error::Result, exit::Exit, follow, out, screen::Screen, tasks};
use crate::{
    api::{request, task::Task},
    client::{Client, start},
};

/// Stop a task; its work so far is kept.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch stop 3f\n  dispatch stop 3f --kill")]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// At once, without asking
    #[arg(long)]
    kill: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let force = if args.kill {
        request::Force::Kill
    } else {
        request::Force::Ask
    };
    let path = format!("/v1/tasks/{}/stop", task.id);
    let asked = request::Stop { force };
    let ask = async |client: &Client| client.post(&path, &asked).await;
    let (client, mut task): (_, Task) = start::ask(&ctx.settings, ask).await?;
    if task.is_open() {
        task = follow::to_end(ctx, client, &task, Screen::silent()).await?;
    }
    if args.json {
        out::json(&task)?;
    } else {
        out::line(&format!("{} {}", task.short, ctx.style.state(&task.state)))?;
    }
    Ok(Exit::Completed)
}
