//! `dispatch diff`: what a task changed, as the vault holds it.
//! Must not run git itself.

use super::{
    Ctx,
    error::Result,
    exit::Exit,
    out,
    style::{Colour, clean_line},
    tasks,
};
use crate::client::{Client, start};

/// Show what a task changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dispatch diff 3f\n  dispatch diff 3f | git apply --stat")]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
}

pub(crate) async fn run(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, &args.id).await?;
    let path = format!("/v1/tasks/{}/diff", task.id);
    let ask = async |client: &Client| client.text(&path).await;
    let (_, diff) = start::ask(&ctx.settings, ask).await?;
    if !ctx.style.tty {
        out::bytes(diff.as_bytes())?;
        return Ok(Exit::Completed);
    }
    for line in diff.lines() {
        let text = clean_line(&line.replace('\t', "    "));
        out::line(&match line.as_bytes().first() {
            Some(b'+') => ctx.style.paint(Colour::Green, &text),
            Some(b'-') => ctx.style.paint(Colour::Red, &text),
            Some(b'@') => ctx.style.paint(Colour::Dim, &text),
            Some(b'd') => ctx.style.paint(Colour::Bold, &text),
            _ => text,
        })?;
    }
    Ok(Exit::Completed)
}
