//! `dispatch freeze` and `dispatch thaw`: nothing new starts, or starts again.

use super::{Ctx, error::Result, exit::Exit, out};
use crate::{
    api::request,
    client::{Client, start},
};

/// Start nothing new until `thaw`; what runs goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  dispatch freeze")]
pub(crate) struct FreezeArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Start waiting tasks again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  dispatch thaw")]
pub(crate) struct ThawArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn freeze(ctx: &Ctx, args: &FreezeArgs) -> Result<Exit> {
    set(ctx, request::Freeze { frozen: true }, args.json).await?;
    Ok(Exit::Completed)
}

pub(crate) async fn thaw(ctx: &Ctx, args: &ThawArgs) -> Result<Exit> {
    set(ctx, request::Freeze { frozen: false }, args.json).await?;
    Ok(Exit::Completed)
}

async fn set(ctx: &Ctx, asked: request::Freeze, json: bool) -> Result<()> {
    let ask = async |client: &Client| client.post("/v1/freeze", &asked).await;
    let (_, ()) = start::ask(&ctx.settings, ask).await?;
    match (json, asked.frozen) {
        (true, _) => out::json(&asked),
        (false, true) => out::line("frozen: nothing new starts; `dispatch thaw` goes on"),
        (false, false) => out::line("thawed"),
    }
}
