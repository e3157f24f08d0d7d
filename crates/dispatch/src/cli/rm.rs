//! `dispatch rm`: puts a task away. Its workspace is kept under a ref first, for `undo`.

use super::{Ctx, error::Result, exit::Exit, out, tasks};
use crate::client::{Client, start};

/// Remove a task and its workspace; what it held is kept for `undo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch rm 3f\n  dispatch undo 3f     # get it back")]
pub(crate) struct Args {
    /// A task, by a prefix of its id; a live one is stopped first
    id: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let path = format!("/v1/tasks/{}", task.id);
    let ask = async |client: &Client| client.delete(&path).await;
    let (_, task) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&task)?;
    } else {
        out::line(&format!(
            "removed {0}; `dispatch undo {0}` gets it back",
            task.short
        ))?;
    }
    Ok(Exit::Completed)
}
