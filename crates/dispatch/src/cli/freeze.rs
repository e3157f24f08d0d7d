//! `dispatch freeze` and `dispatch thaw`: nothing new starts, or starts again.

use dispatch_core::config::Config;

use super::{Ctx, error::Result, exit::Exit, out, repo, style::clean_line};
use crate::{
    api::request,
    client::{Client, start},
};

/// All of it, or a part.
#[derive(Debug, clap::Args)]
struct What {
    /// Only tasks of this pool
    #[arg(long, value_name = "NAME", conflicts_with = "repo")]
    pool: Option<String>,
    /// Only tasks of this repository
    #[arg(long, value_name = "PATH|URL|NAME")]
    repo: Option<String>,
}

impl What {
    fn request(&self, config: &Config, frozen: bool) -> Result<request::Freeze> {
        let resolve = |repo| repo::resolve(config, repo);
        let repo = self.repo.as_deref().map(resolve).transpose()?;
        Ok(request::Freeze {
            frozen,
            pool: self.pool.clone(),
            // As its tasks say it.
            repo: repo.map(|repo| request::place(config, &repo).to_owned()),
        })
    }
}

/// Start nothing new until `thaw`; what runs goes on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch freeze\n  dispatch freeze --pool anthropic\n  dispatch freeze --repo ."
)]
pub(crate) struct FreezeArgs {
    #[command(flatten)]
    what: What,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Start waiting tasks again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch thaw\n  dispatch thaw --pool anthropic")]
pub(crate) struct ThawArgs {
    #[command(flatten)]
    what: What,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn freeze(ctx: &Ctx, args: &FreezeArgs) -> Result<Exit> {
    set(
        ctx,
        args.what.request(&ctx.settings.config, true)?,
        args.json,
    )
    .await?;
    Ok(Exit::Completed)
}

pub(crate) async fn thaw(ctx: &Ctx, args: &ThawArgs) -> Result<Exit> {
    set(
        ctx,
        args.what.request(&ctx.settings.config, false)?,
        args.json,
    )
    .await?;
    Ok(Exit::Completed)
}

async fn set(ctx: &Ctx, asked: request::Freeze, json: bool) -> Result<()> {
    let ask = async |client: &Client| client.post("/v1/freeze", &asked).await;
    let (_, ()) = start::ask(&ctx.settings, ask).await?;
    if json {
        return out::json(&asked);
    }
    let part = match (&asked.pool, &asked.repo) {
        (Some(pool), _) => format!("pool {pool}: "),
        (None, Some(repo)) => format!("{}: ", clean_line(repo)),
        (None, None) => String::new(),
    };
    if asked.frozen {
        out::line(&format!(
            "{part}frozen: nothing new starts; `dispatch thaw` goes on"
        ))
    } else {
        out::line(&format!("{part}thawed"))
    }
}
