//! `dispatch apply`: brings a result into a person's repository as a branch.
//! Must not touch a checkout.

use std::path::PathBuf;

use super::{Ctx, error::Result, exit::Exit, out, repo, tasks};
use crate::{
    api::{self, request},
    client::{Client, start},
};

/// Bring the result into your repository as a branch; your checkout is not touched.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch apply 3f && git merge dispatch/fix-the-failing-test-3f\n  dispatch apply 3f --to ../other-clone"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// Into this repository instead of the one the task came from
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// One JSON object: repo, branch, commit
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let to = args.to.as_deref().map(repo::top_level).transpose()?;
    let path = format!("/v1/tasks/{}/apply", task.id);
    let asked = request::Apply { to };
    let ask = async |client: &Client| client.post(&path, &asked).await;
    let (_, done): (_, api::Applied) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&done)?;
    } else {
        let short: String = done.commit.chars().take(12).collect();
        let repo = done.repo.display();
        out::line(&format!("branch {} at {short} in {repo}", done.branch))?;
        out::line(&format!("  git -C {repo} log -p {}", done.branch))?;
        out::line(&format!("  git -C {repo} merge {}", done.branch))?;
    }
    Ok(Exit::Completed)
}
