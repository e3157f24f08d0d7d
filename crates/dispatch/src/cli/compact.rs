//! `dispatch compact`: a long conversation of our own agent becomes shorter before its next turn.

use super::{Ctx, error::Result, exit::Exit, out, tasks};
use crate::{
    api::task::Task,
    client::{Client, start},
};

/// Have the conversation of its agent made shorter, before its next turn.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  dispatch compact 3f\n\nFor tasks of our own agent: with its next run, the beginning of its conversation becomes a\nsummary that the model writes. It does so by itself when the conversation nears what the model\ntakes. All that was said stays in the record."
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
    let path = format!("/v1/tasks/{}/compact", task.id);
    let nothing = serde_json::json!({});
    let ask = async |client: &Client| client.post(&path, &nothing).await;
    let (_, task): (_, Task) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&task)?;
    } else {
        let told = "before its next turn its conversation becomes shorter";
        out::line(&format!("{} {told}", task.short))?;
    }
    Ok(Exit::Completed)
}
