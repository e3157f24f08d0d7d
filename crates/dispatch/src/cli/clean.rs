//! `dispatch clean`: removes tasks by state and age, as `rm` does.

use super::{Ctx, duration, error::Result, exit::Exit, out};
use crate::{
    api::request,
    client::{Client, start},
};

/// Remove ended tasks by state and age; what they held is kept for `undo`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch clean --state completed --older-than 7d\n  dispatch clean --state failed --state lost --older-than 12h"
)]
pub(crate) struct Args {
    /// Of tasks in this state (may be given several times)
    #[arg(long, required = true, value_parser = ["completed", "blocked", "failed", "stopped", "lost"])]
    state: Vec<String>,
    /// That ended longer ago than this: 7d, 12h, 30m; 0 for all
    #[arg(long, required = true, value_parser = duration::parse, value_name = "AGE")]
    older_than: u64,
    /// One JSON array of ids
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: Args) -> Result<Exit> {
    let asked = request::Clean {
        states: args.state,
        older_than_ms: args.older_than,
    };
    let ask = async |client: &Client| client.post("/v1/clean", &asked).await;
    let (_, gone): (_, Vec<String>) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&gone)?;
    } else {
        out::line(&format!("removed {} task(s)", gone.len()))?;
    }
    Ok(Exit::Completed)
}
