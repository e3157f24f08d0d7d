//! `dispatch allow` and `deny`: the answer to what a running agent asks permission for.

use super::{
    Ctx,
    error::{CliError, Result},
    exit::Exit,
    out, tasks,
};
use crate::{
    api::{request, task::Task},
    client::{Client, start},
};
use dispatch_core::ask::{AskId, shown};

/// Allow what the agent of a task asks for, this once or until the task's end.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch allow 3f\n  dispatch allow 3f 2\n  dispatch allow 3f --always"
)]
pub(crate) struct Args {
    /// A task, by a prefix of its id
    id: String,
    /// The number of the ask; needed where several wait
    ask: Option<String>,
    /// The very same needs no more asking until the task's end (our own agent remembers it)
    #[arg(long)]
    always: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Deny what the agent of a task asks for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  dispatch deny 3f\n  dispatch deny 3f 2 --why \"the tests are not yours\""
)]
pub(crate) struct DenyArgs {
    /// A task, by a prefix of its id
    id: String,
    /// The number of the ask; needed where several wait
    ask: Option<String>,
    /// What the agent is told, where its protocol has room for it
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn allow(ctx: &Ctx, args: &Args) -> Result<Exit> {
    let asked = request::Permit {
        allow: true,
        why: None,
        always: args.always,
    };
    answer(ctx, &args.id, args.ask.as_deref(), &asked, args.json).await
}

pub(crate) async fn deny(ctx: &Ctx, args: &DenyArgs) -> Result<Exit> {
    let asked = request::Permit {
        allow: false,
        why: args.why.clone(),
        always: false,
    };
    answer(ctx, &args.id, args.ask.as_deref(), &asked, args.json).await
}

async fn answer(
    ctx: &Ctx,
    id: &str,
    ask: Option<&str>,
    asked: &request::Permit,
    json: bool,
) -> Result<Exit> {
    let task = tasks::one(&ctx.settings, id).await?;
    let ask = which(&task, ask)?;
    let path = format!("/v1/tasks/{}/asks/{ask}", task.id);
    let send = async |client: &Client| client.post(&path, asked).await;
    let (_, task): (_, Task) = start::ask(&ctx.settings, send).await?;
    if json {
        out::json(&task)?;
        return Ok(Exit::Completed);
    }
    let known = task.asks.iter().find(|known| known.id == ask.0);
    let (state, tool) = known.map_or(("answered", ""), |known| (&known.state, &known.tool));
    let short = &task.short;
    out::line(&format!("{short} ask {ask}: {state} {}", shown(tool)))?;
    Ok(Exit::Completed)
}

/// The one that is named, or the only one there is.
fn which(task: &Task, named: Option<&str>) -> Result<AskId> {
    if let Some(named) = named {
        let ask = named.parse::<AskId>();
        return ask.map_err(|error| CliError::usage(error.to_string()));
    }
    let open: Vec<_> = task.open_asks().collect();
    match open.as_slice() {
        [only] => Ok(AskId(only.id)),
        [] => {
            let what = format!("answer task {}: its agent asks for nothing now", task.short);
            Err(CliError::usage(what))
        }
        several => {
            let line = |ask: &&crate::api::task::Ask| {
                format!("{} ({} {})", ask.id, shown(&ask.tool), shown(&ask.input))
            };
            let list: Vec<String> = several.iter().map(line).collect();
            let what = format!("answer task {}: {} asks wait", task.short, list.len());
            let hint = format!("say which: {}", list.join(", "));
            Err(CliError::usage(what).hint(hint))
        }
    }
}
