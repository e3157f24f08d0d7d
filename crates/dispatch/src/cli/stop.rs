//! `dispatch stop`: asks an agent to end, or kills it, and waits until it has.

use super::{Ctx, error::Result, exit::Exit, follow, out, screen::Screen, tasks};
use crate::{
    api::{request, task::Task},
    client::{Client, start},
};

/// Stop a task and those it asked for, or all; the work so far is kept.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch stop 3f\n  dispatch stop 3f --kill\n  dispatch stop --all"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    #[arg(required_unless_present = "all")]
    id: Option<String>,
    /// Every task that runs or waits
    #[arg(long, conflicts_with = "id")]
    all: bool,
    /// At once, without asking
    #[arg(long)]
    kill: bool,
    /// One JSON object; of `--all` an array
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let force = if args.kill {
        request::Force::Kill
    } else {
        request::Force::Ask
    };
    let Some(id) = &args.id else {
        return all(ctx, args, force).await;
    };
    let task = tasks::one(&ctx.settings, id).await?;
    let path = format!("/v1/tasks/{}/stop", task.id);
    let asked = request::Stop { force };
    let (client, mut task): (_, Task) = start::make(&ctx.settings, &path, &asked).await?;
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

async fn all(ctx: &Ctx, args: &Args, force: request::Force) -> Result<Exit> {
    let asked = request::Stop { force };
    let ask = async |client: &Client| client.post("/v1/stop", &asked).await;
    let (client, ids): (_, Vec<String>) = start::ask(&ctx.settings, ask).await?;
    let mut stopped = Vec::new();
    for id in ids {
        let mut task: Task = client.get(&format!("/v1/tasks/{id}")).await?;
        if task.is_open() {
            task = follow::to_end(ctx, client.clone(), &task, Screen::silent()).await?;
        }
        if !args.json {
            out::line(&format!("{} {}", task.short, ctx.style.state(&task.state)))?;
        }
        stopped.push(task);
    }
    if args.json {
        out::json(&stopped)?;
    }
    Ok(Exit::Completed)
}
