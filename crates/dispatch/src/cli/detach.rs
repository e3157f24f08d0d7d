//! `dispatch detach`: whoever asked for a task waits for it no more.

use super::{Ctx, error::Result, exit::Exit, out, tasks};
use crate::{
    api::task::Task,
    client::{Client, start},
};

/// Let a task go on alone: whoever asked for it waits for it no more.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  dispatch detach 3f\n\nFor tasks that an agent asked for. Its asker is not told how it ends, and is not kept from\nending by it; stopping the asker leaves it alone."
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let path = format!("/v1/tasks/{}/detach", task.id);
    let nothing = serde_json::json!({});
    let ask = async |client: &Client| client.post(&path, &nothing).await;
    let (_, task): (_, Task) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&task)?;
    } else {
        out::line(&format!("{} {}", task.short, ctx.style.state(&task.state)))?;
    }
    Ok(Exit::Completed)
}
