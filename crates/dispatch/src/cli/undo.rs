//! `dispatch undo`: gets back what a removed workspace held.

use super::{Ctx, error::Result, exit::Exit, out, tasks};
use crate::{
    api,
    client::{Client, start},
};

/// Get back what a removed workspace held.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  dispatch rm 3f && dispatch undo 3f")]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// One JSON object: workspace
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let nothing = serde_json::json!({});
    let path = format!("/v1/tasks/{}/undo", task.id);
    let ask = async |client: &Client| client.post(&path, &nothing).await;
    let (_, done): (_, api::Restored) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&done)?;
    } else {
        out::line(&format!("restored {}", done.workspace.display()))?;
    }
    Ok(Exit::Completed)
}
