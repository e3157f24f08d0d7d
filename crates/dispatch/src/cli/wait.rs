//! `dispatch wait`: until tasks have ended. Starts an engine only when there is something to wait
//! for; one that ended is not asked about again.

use super::{Ctx, error::Result, exit::Exit, follow, ids, out, screen::Screen, tasks};
use crate::{api::task::Task, client::start};

/// Wait until tasks have ended; the exit code tells how.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch wait 3f 9a\n  dispatch wait 3f --json | jq .verified\n\nOf several tasks the exit code is the one that needs you most: failed, blocked, stopped, completed."
)]
pub(crate) struct Args {
    /// Tasks, by prefixes of their ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// One JSON object, or an array for several tasks
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let all = tasks::all(&ctx.settings).await?;
    let wanted: Result<Vec<Task>> = args
        .ids
        .iter()
        .map(|id| ids::resolve(&all, id).cloned())
        .collect();
    let mut ended = Vec::new();
    // One after the other is as fast as together: the last one decides.
    for task in wanted? {
        let task = if task.is_open() {
            let client = start::connect(&ctx.settings).await?;
            follow::to_end(ctx, client, &task, Screen::silent()).await?
        } else {
            task
        };
        if !args.json {
            out::line(&follow::summary(ctx, &task))?;
        }
        ended.push(task);
    }
    if args.json {
        match &ended[..] {
            [one] => out::json(one)?,
            several => out::json(&several)?,
        }
    }
    Ok(Exit::of_all(&ended))
}
