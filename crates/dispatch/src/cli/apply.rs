//! `dispatch apply`: brings a result into a person's repository as a branch, or into the directory
//! without git that it was copied from. Must not touch a checkout, and must not write into a
//! directory before a person has said so.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    path::PathBuf,
};

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out, repo,
    style::clean_line,
    tasks,
};
use crate::{
    api::{self, request, task::Task},
    client::{Client, start},
};

/// Bring the result into your repository as a branch; your checkout is not touched.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch apply 3f && git merge dispatch/fix-the-failing-test-3f\n  dispatch apply 3f --to ../other-clone\n  dispatch apply 3f --yes           # a task without git: write its files back"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// Into this repository or directory instead of the one the task came from
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// Write the files of a task without git, and do not ask
    #[arg(long)]
    yes: bool,
    /// One JSON object: repo, branch, commit; and files of a task without git
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let write = matches!(task.from.as_str(), "folder" | "nothing");
    let to = match (&args.to, write) {
        (Some(to), true) => Some(PathBuf::from(repo::folder(to)?)),
        (Some(to), false) => Some(repo::top_level(to)?),
        (None, _) => None,
    };
    if write && task.changed && !args.yes && !asked(&task, to.as_ref())? {
        out::aside("nothing was written");
        return Ok(Exit::Stopped);
    }
    let path = format!("/v1/tasks/{}/apply", task.id);
    let asked = request::Apply { to, write };
    let ask = async |client: &Client| client.post(&path, &asked).await;
    let (_, done): (_, api::Applied) = start::ask(&ctx.settings, ask).await?;
    if args.json {
        out::json(&done)?;
    } else if let Some(files) = done.files {
        out::line(&format!("{files} file(s) in {}", done.repo.display()))?;
    } else {
        let short: String = done.commit.chars().take(12).collect();
        let repo = done.repo.display();
        out::line(&format!("branch {} at {short} in {repo}", done.branch))?;
        out::line(&format!("  git -C {repo} log -p {}", done.branch))?;
        out::line(&format!("  git -C {repo} merge {}", done.branch))?;
    }
    Ok(Exit::Completed)
}

/// Whether the person lets the files be written. Nobody there to ask is no yes.
fn asked(task: &Task, to: Option<&PathBuf>) -> Result<bool> {
    if !io::stdin().is_terminal() {
        let what = format!(
            "apply task {}: it would write files, and nobody can be asked",
            task.short
        );
        return Err(
            CliError::usage(what).hint("--yes says that it may; `dispatch diff` shows what")
        );
    }
    let folder = to.map_or_else(|| task.repo.clone(), |to| to.display().to_string());
    let stat = task.diffstat.as_ref().map_or(0, |stat| stat.files);
    let question = format!("write {stat} file(s) into {}? [y/N]", clean_line(&folder));
    out::aside(&question);
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| CliError::usage(format!("read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
